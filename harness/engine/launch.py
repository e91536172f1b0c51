"""From a study file to a running plan: its files are there, its needs fit, and where it runs.

What is refused is refused here, before any compute is spent.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from harness.data.files import commit_of
from harness.engine.execute import Executor, Inline, Listener, Pool, Summary, execute
from harness.engine.graph import DIAGNOSTICS, Plan, manifest
from harness.engine.ray import RayExecutor
from harness.engine.runs import build_plan, named_by
from harness.engine.store import Store
from harness.evaluate.benchmark import load
from harness.evaluate.registry import BENCHMARKS
from harness.files import hash_file
from harness.model.checkpoint_files import check_no_adapter, fingerprint
from harness.model.shape import GB, arithmetic, shape_of, training_bytes, training_parts
from harness.model.vllm_engine import check_vllm
from harness.records import HarnessError, content_hash, is_hub_id
from harness.study import shipped
from harness.study.given import Given
from harness.study.optimizers import check_package, check_usable
from harness.study.settings import Recipe
from harness.study.study import Study, load_any, load_study
from harness.train.distributed import check_ready


def fingerprints(study: Study) -> dict[str, str]:
    """Content hash of every file and checkpoint folder the study's recipes use, and the commit of
    everything from the hub. A missing file is an error here, before any compute.
    """
    for row in (row for cell in study.cells for row in cell.given.values()):
        column, name = ("base", row.base) if row.base else ("checkpoint", row.checkpoint)
        folder = Path(name)
        if name and folder.is_dir() and not (folder / "config.json").is_file():
            where = f"{row.place}: column '{column}': {name}"
            check_no_adapter(folder, where)
            raise HarnessError(f"{where}: this folder is no checkpoint (no config.json)")
    rows = [row for cell in study.cells for row in cell.given.values() if row.content]
    gone = {row.checkpoint: row.content for row in rows if not Path(row.checkpoint).exists()}
    names, hub = named_by(study)
    found = {str(one): commit_of(one.kind, one.name, one.revision) for one in hub}
    for name in names:
        if name in gone:
            found[name] = gone[name]
            continue
        path = Path(name)
        if path.is_file():
            found[name] = hash_file(path)
        elif path.is_dir():
            found[name] = fingerprint(path)
        elif not is_hub_id(name):
            raise HarnessError(
                f"{study.file}: {path.absolute()}: no such file or folder (named by the recipe or "
                "on the command line)"
            )
    return found


def plan_study(study: Study) -> Plan:
    """The graph of a study whose files are there, and whose declared outcomes are known."""
    declare = study.declare
    family = {f"family.{number}": outcome for number, outcome in enumerate(declare.family)}
    for key, outcome in {"primary": declare.primary, "trend": declare.trend, **family}.items():
        if outcome:
            place = f"{study.file}: declare.{key}"
            check_measured(place, outcome.benchmark, outcome.metric, study.base, BENCHMARKS)
    return build_plan(study, fingerprints(study))


def check_measured(
    place: str, benchmark: str, metric: str, recipe: Recipe, benchmarks: Iterable[str]
) -> None:
    """Raise HarnessError where nothing gives a metric that is asked for: after the run is too
    late. benchmarks: those that may.
    """
    found = [BENCHMARKS[name].measures(recipe.evaluation) for name in benchmarks]
    known = {f"{one.benchmark}/{one.metric}": "" for measures in found for one in measures}
    known |= {f"diagnostics/{one['metric']}": "" for one in load(DIAGNOSTICS)()}
    name = f"{benchmark}/{metric}"
    if name not in known:
        alike = [one for one in known if one.startswith(f"{benchmark}/")] or list(known)
        raise HarnessError(
            f"{place}: nothing measures {name}{shipped.suggest(name, known)}; known: "
            f"{', '.join(alike[:16])}"
        )


def prepare(path: Path, overrides: Mapping[str, Any], found: Sequence[Given] = ()) -> Plan:
    """Read a study's file and lay out its graph. found: given checkpoints besides its table's."""
    return plan_study(load_study(path, overrides, found))


def prepare_recipe(path: Path, overrides: Mapping[str, Any]) -> Plan:
    """The plan of a study's file, or of a recipe's: one run of it."""
    return plan_study(load_any(path, overrides))


def share_cost(plan: Plan, store: Store, max_cost: float) -> Plan:
    """The plan with ``max_cost`` USD (0: no limit) shared evenly by its stages that ask a judge and
    are not done, so that all of them together stay within it. What a stage's own journal spent
    earlier counts against its share.
    """
    waiting = [
        key
        for key, node in plan.nodes.items()
        if getattr(node.settings, "judge", None) and not store.has(key)
    ]
    if not max_cost or not waiting:
        return plan
    share = max_cost / len(waiting)
    limited = {}
    for key in waiting:
        runtime = plan.nodes[key].runtime.model_copy(update={"max_cost_usd": share})
        limited[key] = dataclasses.replace(plan.nodes[key], runtime=runtime)
    return dataclasses.replace(plan, nodes={**plan.nodes, **limited})


# -- where it runs ---------------------------------------------------------------------------------
def make_executor(kind: str, store: Store, workers: int, plan: Plan) -> Executor:
    """The executor by name. Pools have one worker per core, or per GPU where there are any."""
    recipes = {id(cell.recipe): cell.recipe for cell in plan.study.cells}.values()
    hub = bool(named_by(plan.study)[1])
    here = None if kind == "ray" else len(devices())
    for recipe in recipes:
        usable = 0 if recipe.runtime.device == "cpu" else here
        check_ready(recipe.runtime, usable)
        if kind != "ray":  # a cluster's nodes have packages and devices of their own
            for check in needs(recipe, usable or 0).values():
                check()
    if kind == "inline":
        return Inline(store, hub)
    if kind == "ray":
        return RayExecutor(store, workers, hub=hub)
    if kind != "pool":
        raise HarnessError(f"--executor {kind!r} is unknown; allowed: inline, pool, ray")
    return Pool(store, workers, devices(), hub)


def needs(recipe: Recipe, count: int) -> dict[str, Callable[[], None]]:
    """What a recipe needs of a machine with so many devices, by name: each raises HarnessError
    where it is missing.
    """
    lora, attention, engines = recipe.training.lora, recipe.model.attention, recipe.engines
    found: dict[str, Callable[[], None]] = {
        "optimiser": partial(check_usable, recipe.training.optimizer, count)
    }
    packages = (
        ("bitsandbytes", lora and lora.base != "whole", "training.lora.base nf4", "whole"),
        ("kernels", "/" in attention, f"model.attention {attention}", "sdpa"),
        ("flash-attn", attention == "flash_attention_2", f"model.attention {attention}", "sdpa"),
    )
    for package, wanted, setting, instead in packages:
        if wanted and (package == "bitsandbytes" or "transformers" in engines):
            key, module = setting.split()[0], package.replace("-", "_")
            found[package] = partial(check_package, setting, package, f"{key}: {instead}", module)
    return found | ({"vllm": check_vllm} if "vllm" in engines else {})


def devices() -> list[str]:
    """Visible GPUs by index or UUID, asked of the driver's tool: torch need not be imported here.

    As CUDA reads the variable: up to the first entry that names none (Slurm writes NoDevFiles).
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = _driver_says("index") if visible is None else visible.replace(" ", "").split(",")
    return list(takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, names))


def device_memory() -> list[float]:
    """Bytes of every visible GPU as the driver's tool tells them; empty where it cannot."""
    visible = devices()
    if not visible:
        return []
    chosen = ["-i", ",".join(visible)]
    told = _driver_says("memory.total", *chosen)
    return [float(size) * 2**20 for size in told if size.replace(".", "").isdigit()]


def _driver_says(what: str, *chosen: str) -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", *chosen, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    return listing.stdout.split() if listing.returncode == 0 else []


# -- before it runs --------------------------------------------------------------------------------
CHECKS = ("data.files", "data.rules", "base.checkpoint", "benchmarks.files")
"""Stages that only read and check what the recipe names. They go first, and nothing else starts
when one of them fails.
"""


def execute_checked(
    plan: Plan, store: Store, executor: Executor, listener: Listener, only: Sequence[str]
) -> Summary:
    """``execute``, but the stages that check come first, and nothing else where one fails."""
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
    found.executed += first.executed
    found.reused -= first.executed
    found.seconds += first.seconds
    return found


def check_memory(plan: Plan, rooms: Sequence[float]) -> None:
    """Raise HarnessError when the smallest device (``rooms``: bytes of each) cannot hold what
    training holds without a single row.

    Only what is certain is refused here: rows are fitted by the trainer itself.
    """
    for recipe in {id(cell.recipe): cell.recipe for cell in plan.study.cells}.values():
        runtime = recipe.runtime
        skipped = recipe.model.source == "pocket" or not recipe.loop.iterations
        if not rooms or skipped or runtime.memory == "off" or runtime.device == "cpu":
            continue
        try:
            shape = shape_of(recipe)
        except HarnessError:  # a model whose sizes are not known before it is fetched
            continue
        needed, room = training_bytes(shape, recipe), min(rooms)
        if needed > room:
            raise HarnessError(
                f"{plan.study.file}: training {recipe.model.source} does not fit: "
                f"{needed / GB:.1f} GB before the first row, {room / GB:.1f} GB on a device, "
                f"{(needed - room) / GB:.1f} GB short "
                f"({arithmetic(training_parts(shape, recipe))}). Set training.lora, or "
                "runtime.sharding: fsdp with more runtime.processes; runtime.memory: off goes on "
                "without this check"
            )


def report_stamp(plan: Plan, store: Store, sources: Iterable[Path]) -> str:
    """Hash of what a report shows: study, states of its stages, the code (``sources``)."""
    code = {str(path): hash_file(path) for path in sorted(sources)}
    return content_hash(manifest(plan, {}), store.states(list(plan.nodes)), code)
