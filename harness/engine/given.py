"""A run that somebody else trained: the stages of its checkpoints, answers or verdicts by step; and
checkpoints that appear in a folder meanwhile: which are whole, and what they are called.

``RUN/checkpoint-500``, ``RUN/step_500``, … are step 500 of an arm named as the folders between; a
part ``seed-1`` of these is the seed. A checkpoint counts when its configuration, tokenizer and
every shard are there and readable, and nothing in it changed between two looks; of a PEFT adapter,
its configuration, its weights and the base that it names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.engine.graph import Builder, RunPlan
from harness.engine.scores import add_scores, settled
from harness.evaluate.registry import BENCHMARKS
from harness.files import read_json, write_atomic
from harness.model.checkpoint_files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    base_of,
    fingerprint,
    is_adapter,
    settings_of,
    weight_files,
)
from harness.records import HarnessError, canonical_json, first_line, is_hub_id
from harness.study import names, tasks
from harness.study.given import Given
from harness.study.study import Cell

NOTHING = "no checkpoint is given, and no file of its answers or verdicts"
NO_WEIGHTS = "no checkpoint is given"


def given_run(
    builder: Builder,
    cell: Cell,
    shared: Mapping[str, str],
    checkpoint: Callable[[str, str, bool, str], str],
) -> RunPlan:
    """What scores every step of a cell. Step 0 is what training started from: the recipe's model
    unless the table gives it. checkpoint: (folder or hub id, revision, whether it needs a chat
    template, the base of an adapter) → key.
    """
    iterations: dict[int, Mapping[str, str]] = {}
    absent: dict[int, Mapping[str, str]] = {}
    base, answer = shared.get("base", ""), ""
    if 0 not in cell.given and any(row.checkpoint for row in cell.given.values()):
        iterations[0] = dict(shared) | add_scores(builder, cell, 0, shared, base, {})
        answer = iterations[0].get("answer", "")
    previous = base
    for step, row in cell.given.items():
        if not row.checkpoint:
            stages = _files(builder, cell, shared, row)
            absent[step] = _absent(cell, stages)
        else:
            policy = checkpoint(row.checkpoint, row.revision, True, row.base)
            history = _history(builder, cell, shared, (base, previous, answer)) if step else {}
            stages = {"given" if step else "base": policy}
            stages |= add_scores(builder, cell, step, shared, policy, history)
            previous, answer = policy, stages.get("answer", "")
            base = base if step else policy
        iterations[step] = stages if iterations else {**shared, **stages}
    return RunPlan(cell, iterations, {step: {} for step in iterations}, absent)


def _history(
    builder: Builder, cell: Cell, shared: Mapping[str, str], before: tuple[str, str, str]
) -> dict[str, str]:
    """What diagnostics compare a checkpoint with: the base, which is the reference policy too, the
    step before, and the data's pairs as labelled. before: keys of base, previous, its answers.
    """
    recipe = cell.recipe
    if not recipe.diagnostics.enabled:
        return {}
    whole = {"portion": 0, "portions": 1, "prompts_per_iteration": 0}
    settings = builder.filled(tasks.LabelledTask, recipe, seed=cell.seed, **whole)
    inputs = {"policy": shared["base"], "data": shared["data"]}
    base, previous, answer = before
    return {
        "previous": previous,
        "base": base,
        "pairs": builder.add("pairs.labelled", settings, inputs, recipe),
        "reference_policy": base,
        "answer_previous": answer,
    }


def _files(builder: Builder, cell: Cell, shared: Mapping[str, str], row: Given) -> dict[str, str]:
    """Stage name → key of what scores given answers, and reads given verdicts."""
    recipe, benchmarks = cell.recipe, {"benchmarks": shared["benchmarks"]}
    both = {
        name: file
        for name, file in row.verdicts.items()
        if (given := BENCHMARKS[name].given) and given.both
    }
    files = {
        name: tasks.GivenFile(path=file, model=row.model)
        for name, file in (dict(row.answers) | both).items()
    }
    stages: dict[str, str] = {}
    if files:
        asked = tasks.GivenAnswersTask(files=files)
        stages["answer"] = builder.add("answers.given", asked, benchmarks, recipe)
    for name in recipe.evaluation.benchmarks:
        benchmark = BENCHMARKS[name]
        if name in row.verdicts:
            file, section = row.verdicts[name], recipe.evaluation.of(name)
            keys = benchmark.given.keys if benchmark.given else ()
            own = {key: getattr(section, key) for key in keys}
            own = {key: value for key, value in own.items() if value is not None}
            told = tasks.GivenVerdictsTask(benchmark=name, path=file, model=row.model, own=own)
            read = benchmarks | ({"answer": stages["answer"]} if name in both else {})
            stages[benchmark.stage] = builder.add("verdicts.given", told, read, recipe)
        elif name in row.answers:
            read = benchmarks | {"answer": stages["answer"]}
            settings = settled(builder, recipe, benchmark)
            stages[benchmark.stage] = builder.add(benchmark.stage, settings, read, recipe)
    return stages


def _absent(cell: Cell, stages: Mapping[str, str]) -> dict[str, str]:
    """Why a stage that the study asks for is not there, by its name."""
    recipe = cell.recipe
    reasons = {
        BENCHMARKS[name].stage: NOTHING if BENCHMARKS[name].given else NO_WEIGHTS
        for name in recipe.evaluation.benchmarks
    }
    if recipe.diagnostics.enabled:
        reasons["diagnostics"] = NO_WEIGHTS
    return {stage: reason for stage, reason in reasons.items() if stage not in stages}


# -- checkpoints that appear while somebody trains -------------------------------------------------
POLL_S = 5.0
"""Between two looks."""
STEP = re.compile(r"(?:(?:checkpoint|ckpt|step|global_?step|iter|iteration)[-_]?)?(\d+)", re.I)
SEED = re.compile(r"[-_./]?seed[-_=]?(\d+)", re.I)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def not_whole(folder: Path) -> str:
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
            step, reason = STEP.fullmatch(folder.name), "the name ends in no step"
            if step is not None:
                reason = not_whole(folder) or self._changing(folder)
            if step is None or reason:
                self.waiting[str(folder)] = reason
                continue
            self.rows[str(folder)] = self._row(folder, int(step[1]))
        rows = sorted(self.rows.values(), key=lambda row: (row.arm, row.seed, row.step))
        if rows:
            write_atomic(self.memory, canonical_json([vars(row) for row in rows]))
        return rows

    def _changing(self, folder: Path) -> str:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        stats = [(file.name, file.stat()) for file in files]
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
            names.check_label(arm)
        except ValueError as error:
            raise HarnessError(f"{folder}: arm {arm!r}: {error}") from None
        content, number = fingerprint(folder), int(seed[1]) if seed else 0
        base = base_of(folder) if is_adapter(folder) else ""
        return Given(arm, number, step, str(folder), str(folder), content=content, base=base)
