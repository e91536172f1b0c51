"""Before a run spends anything: what it names must be there and usable, and a device must hold at
least the model it trains.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from harness.cost.budget import GB
from harness.cost.work import shape_of
from harness.engine.execute import Executor, Listener, Summary, execute
from harness.engine.graph import Plan
from harness.engine.store import Store
from harness.records import HarnessError
from harness.study.settings import Recipe
from harness.train.memory import Setup, training_parts

CHECKS = ("data.files", "base.checkpoint", "benchmarks.files")
"""Stages that only read and check what the recipe names. They go first, and nothing else starts
when one of them fails.
"""


def execute_checked(
    plan: Plan, store: Store, executor: Executor, listener: Listener, only: Sequence[str]
) -> Summary:
    """``execute``, but the stages that check come first; where one fails, nothing that computes has
    been started.
    """
    if only or not any(node.stage in CHECKS for node in plan.nodes.values()):
        return execute(plan, store, executor, listener, only)
    first = execute(plan, store, executor, listener, CHECKS)
    if first.failed:
        states = store.states(list(plan.nodes))
        first.blocked = sorted(
            key for key, state in states.items() if state != "done" and key not in first.failed
        )
        return first
    found = execute(plan, store, executor, listener)
    found.executed, found.reused, found.seconds = (
        found.executed + first.executed,
        found.reused - first.executed,
        found.seconds + first.seconds,
    )
    return found


def check_memory(plan: Plan, devices: Sequence[float]) -> None:
    """Raise HarnessError when the smallest of the devices (bytes each) cannot hold what training
    holds without a single row.

    Only what is certain is refused here: rows and their activations are fitted by the training
    stage itself.
    """
    for recipe in {id(cell.recipe): cell.recipe for cell in plan.study.cells}.values():
        if (
            not devices
            or recipe.model.source == "pocket"
            or not recipe.loop.iterations
            or recipe.runtime.memory == "off"
        ):
            continue
        if recipe.runtime.device == "cpu":
            continue
        try:
            parts = training_parts(shape_of(recipe), setup_of(recipe), 0)
        except HarnessError:  # a model whose sizes are not known before it is fetched
            continue
        needed, room = sum(part.size for part in parts), min(devices)
        if needed > room:
            detail = "; ".join(
                f"{part.what}: {part.how} = {part.size / GB:.1f} GB" for part in parts if part.size
            )
            raise HarnessError(
                f"{plan.study.file}: training {recipe.model.source} does not fit: "
                f"{needed / GB:.1f} GB before the first row, {room / GB:.1f} GB on a "
                f"device, {(needed - room) / GB:.1f} GB short ({detail}). Set training.lora, or "
                "runtime.sharding: fsdp with more "
                "runtime.processes; runtime.memory: off goes on without this check"
            )


def setup_of(recipe: Recipe) -> Setup:
    """One training process of this recipe on a GPU."""
    training, runtime = recipe.training, recipe.runtime
    return Setup(
        bfloat16=recipe.model.dtype == "bfloat16",
        checkpointing=training.gradient_checkpointing,
        lora_rank=training.lora.r if training.lora else 0,
        moments=2 if training.optimizer == "adamw_torch" else 1,
        processes=runtime.processes,
        sharded=runtime.sharding != "none",
    )


def device_memory() -> list[float]:
    """Bytes of every visible GPU as the driver's tool tells them; empty where there is none or it
    cannot be asked.
    """
    if not shutil.which("nvidia-smi"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = [] if visible is None else ["-i", visible]
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    command = ["nvidia-smi", *chosen, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = listing.stdout.split() if listing.returncode == 0 else []
    return [float(line) * 2**20 for line in lines if line.replace(".", "").isdigit()]
