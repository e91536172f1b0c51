"""From a study file to a running plan: its files are there, its needs fit, and where it runs. What
is refused is refused here, before any compute is spent. And what is given while somebody trains it:
the checkpoints that appear in a folder.
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
from harness.engine.execute import Executor, Inline
from harness.engine.graph import DIAGNOSTICS, Plan
from harness.engine.pool import Pool, RayExecutor
from harness.engine.runs import build_plan, named_by
from harness.engine.store import Store
from harness.evaluate.benchmark import load
from harness.evaluate.registry import BENCHMARKS
from harness.files import hash_file, read_json, write_atomic
from harness.model.checkpoint_files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    base_of,
    check_no_adapter,
    fingerprint,
    is_adapter,
    settings_of,
    weight_files,
)
from harness.model.shape import GB, arithmetic, shape_of, training_bytes, training_parts
from harness.model.vllm_engine import check_vllm
from harness.records import HarnessError, canonical_json, first_line, is_hub_id
from harness.study import names as naming
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
    rows = [row for cell in study.cells for row in cell.given.values()]
    for row in rows:
        column, name = ("base", row.base) if row.base else ("checkpoint", row.checkpoint)
        folder = Path(name)
        if name and folder.is_dir() and not (folder / "config.json").is_file():
            where = f"{row.place}: column '{column}': {name}"
            check_no_adapter(folder, where)
            raise HarnessError(f"{where}: this folder is no checkpoint (no config.json)")
    names, hub = named_by(study)
    found = {str(one): commit_of(one.kind, one.name, one.revision) for one in hub}
    for name in names:
        path = Path(name)
        if path.is_file():
            found[name] = hash_file(path)
        elif path.is_dir():
            found[name] = fingerprint(path)
    # A checkpoint that its trainer deleted once it was scored is what it was.
    found = {row.checkpoint: row.content for row in rows if row.content} | found
    for name in names:
        if name not in found and not is_hub_id(name):
            raise HarnessError(
                f"{study.file}: {Path(name).absolute()}: no such file or folder (named by the "
                "recipe or on the command line)"
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


# -- checkpoints that appear while somebody trains -------------------------------------------------
POLL_S = 5.0
"""Between two looks."""
STEP = re.compile(r"(?:(?:checkpoint|ckpt|step|global_?step|iter|iteration)[-_]?)?(\d+)", re.I)
SEED = re.compile(r"[-_./]?seed[-_=]?(\d+)", re.I)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def _not_whole(folder: Path) -> str:
    """Why a checkpoint's folder is not whole; empty where it is."""
    from safetensors import SafetensorError, safe_open

    source = folder.name
    try:
        if is_adapter(folder):
            settings_of(folder / ADAPTER, source)
            base = base_of(folder)
            if not (Path(base, "config.json").is_file() or is_hub_id(base)):
                return f"the adapter's base {base!r} is no checkpoint; name it in a table"
            files: tuple[Path, ...] = (folder / ADAPTER_WEIGHTS,)
        else:
            settings_of(folder / "config.json", source)
            found = [name for name in TOKENIZERS if (folder / name).is_file()]
            if not found:
                return "it holds no tokenizer"
            if found[0].endswith(".json"):
                settings_of(folder / found[0], source)
            files = weight_files(folder, source).files
        for file in files:
            # Opening compares the file's length with what its header says.
            with safe_open(file, framework="numpy"):
                pass
    except (HarnessError, SafetensorError, OSError) as error:
        return first_line(error)
    return ""


class Watcher:
    """What has been whole below ``folder`` so far, also where it is deleted later (trainers keep
    the last few); ``memory`` is a file that carries it from one run of the command to the next.
    waiting: folders that do not count, and why.

    ``RUN/checkpoint-500``, ``RUN/step_500``, … are step 500 of an arm named as the folders between;
    a part ``seed-1`` of these is the seed. A checkpoint counts when its configuration, tokenizer
    and every shard are there and readable, and nothing in it changed between two looks; of a PEFT
    adapter, its configuration, its weights and the base that it names.
    """

    def __init__(self, folder: Path, memory: Path) -> None:
        if not folder.is_dir():
            raise HarnessError(f"--watch {folder}: no such folder")
        self.folder, self.memory = folder.resolve(), memory
        self.waiting: dict[str, str] = {}
        self._states: dict[Path, list[tuple[str, int, int]]] = {}
        advice = "delete it: checkpoints that are there are found again"
        known = read_json(memory, advice) if memory.is_file() else []
        self.rows = {row["checkpoint"]: Given(**row) for row in known}

    def look(self) -> list[Given]:
        """Every checkpoint that is or was whole, in the order of arm, seed and step."""
        self.waiting = {}
        settings = [*self.folder.rglob("config.json"), *self.folder.rglob(ADAPTER)]
        for folder in sorted({file.parent for file in settings}):
            if str(folder) in self.rows:
                continue
            step = STEP.fullmatch(folder.name)
            if step is None:
                self.waiting[str(folder)] = "the name ends in no step"
            elif reason := _not_whole(folder) or self._changing(folder):
                self.waiting[str(folder)] = reason
            else:
                self.rows[str(folder)] = self._row(folder, int(step[1]))
        rows = sorted(self.rows.values(), key=lambda row: (row.arm, row.seed, row.step))
        if rows:
            write_atomic(self.memory, canonical_json([vars(row) for row in rows]))
        return rows

    def _changing(self, folder: Path) -> str:
        stats = [(file.name, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
        state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        same = self._states.get(folder) == state
        self._states[folder] = state
        return "" if same else "it changed since the last look"

    def _row(self, folder: Path, step: int) -> Given:
        run = folder.parent.relative_to(self.folder).as_posix()
        run = self.folder.name if run == "." else run
        seed = SEED.search(run)
        arm = SEED.sub("", run).strip("-_./") or self.folder.name
        try:
            naming.check_label(arm)
        except ValueError as error:
            raise HarnessError(f"{folder}: arm {arm!r}: {error}") from None
        content, number = fingerprint(folder), int(seed[1]) if seed else 0
        base = base_of(folder) if is_adapter(folder) else ""
        return Given(arm, number, step, str(folder), str(folder), content=content, base=base)
