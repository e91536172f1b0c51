"""The stages of a run that somebody else trained: its checkpoints, answers or verdicts by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.engine.graph import Builder, RunPlan
from harness.engine.scores import add_scores, settled
from harness.evaluate.registry import BENCHMARKS
from harness.study import tasks
from harness.study.given import Given
from harness.study.study import Cell

NOTHING = "no checkpoint is given, and no file of its answers or verdicts"
NO_WEIGHTS = "no checkpoint is given"


def given_run(
    builder: Builder,
    cell: Cell,
    shared: Mapping[str, str],
    checkpoint: Callable[[str, str, bool], str],
) -> RunPlan:
    """What scores every step of a cell. Step 0 is what training started from: the recipe's model
    unless the table gives it. checkpoint: (folder or hub id, revision, whether it needs a chat
    template) → key.
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
            policy = checkpoint(row.checkpoint, row.revision, True)
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
    settings = tasks.LabelledTask(
        seed=cell.seed,
        order=recipe.loop.order,
        portion=0,
        portions=1,
        prompts=recipe.data.prompts,
        prompts_per_iteration=0,
        max_prompt_length=recipe.training.max_prompt_length,
        max_left_out=recipe.data.max_left_out,
        overlong_prompts=recipe.exploration.overlong_prompts,
    )
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
