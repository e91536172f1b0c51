"""What scores a checkpoint, trained here or given: its answers, every benchmark's stage,
diagnostics; and the judged pairs of declared checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from harness.engine.graph import Builder, JudgedPair, RunPlan, once
from harness.evaluate.benchmark import Asked, Benchmark
from harness.evaluate.registry import BENCHMARKS
from harness.rankers.registry import RANKERS
from harness.records import HarnessError
from harness.study import tasks
from harness.study.given import Given
from harness.study.sections import DiagnosticsSamples, Section
from harness.study.settings import Recipe
from harness.study.study import Cell

ALWAYS_KEYED = ("mt_bench", "alpaca_eval")
"""Whose answers' settings are in the answer stage's key also where they are not asked: they were
when that stage was first stored.
"""


def add_scores(
    builder: Builder,
    cell: Cell,
    iteration: int,
    shared: Mapping[str, str],
    policy: str,
    history: Mapping[str, str],
) -> dict[str, str]:
    """Stage name → key of everything that scores ``policy``. ``history``: what diagnostics compare
    it with; empty for the base, which is scored alike whether or not a warm-up follows.
    """
    recipe = cell.recipe
    stages: dict[str, str] = {}
    inputs = {"policy": policy} | {
        name: shared[name] for name in ("benchmarks", "data", "ranker") if name in shared
    }
    wanted = [one for one in BENCHMARKS.values() if one.name in recipe.evaluation.benchmarks]
    if any(benchmark.questions for benchmark in wanted):
        read = {name: inputs[name] for name in ("policy", "benchmarks", "data")}
        asked = _answer_task(builder, cell, iteration, wanted)
        inputs["answer"] = stages["answer"] = builder.add("answer", asked, read, recipe)
    for benchmark in wanted:
        reads = {*benchmark.inputs, *benchmark.more_inputs(recipe.evaluation)}
        read = {name: key for name, key in inputs.items() if name in reads}
        settings = settled(builder, recipe, benchmark.name)
        stages[benchmark.stage] = builder.add(benchmark.stage, settings, read, recipe)
    if recipe.diagnostics.enabled and history:
        read = {name: key for name, key in inputs.items() if name != "benchmarks"}
        read |= {name: key for name, key in history.items() if key}
        names = DiagnosticsSamples.model_fields
        measured = builder.filled(
            tasks.DiagnosticsTask,
            recipe,
            **{name: getattr(recipe.diagnostics, name) for name in names},
            seed=cell.seed,
            iteration=iteration,
            objective=tasks.MeasuredObjective(**vars(builder.objective(recipe, iteration))),
            ranker=builder.ranker(recipe),
            pocket=recipe.data.source == "pocket",
        )
        stages["diagnostics"] = builder.add("diagnostics", measured, read, recipe)
    return stages


@once
def settled(builder: Builder, recipe: Recipe, name: str) -> Section:
    """The settings of a benchmark's stage."""
    said = builder.said(recipe)
    asked = Asked(
        settings=recipe.evaluation.of(name),
        evaluation=recipe.evaluation,
        judge=builder.judge(recipe, name),
        ranker=builder.ranker(recipe),
        ranker_judge=builder.judge(recipe) if RANKERS[recipe.ranker.kind].asks_judge else None,
        generating={name: said[name] for name in tasks.Generating.model_fields},
        threads=recipe.training.threads,
    )
    return BENCHMARKS[name].settle(asked)


def _answer_task(
    builder: Builder, cell: Cell, iteration: int, wanted: Sequence[Benchmark]
) -> tasks.AnswerTask:
    recipe, evaluation = cell.recipe, cell.recipe.evaluation
    sets = [benchmark.name for benchmark in wanted if benchmark.questions]
    answers = {
        name: benchmark.answers(evaluation.of(name))
        for name, benchmark in BENCHMARKS.items()
        if benchmark.answers and (name in sets or name in ALWAYS_KEYED)
    }
    return builder.filled(
        tasks.AnswerTask,
        recipe,
        seed=cell.seed,
        iteration=max(iteration, 0),
        sets=sets,
        answers=answers,
        heldout_samples=evaluation.heldout_samples,
        heldout_max_new_tokens=evaluation.heldout_max_new_tokens,
    )


# -- a run that somebody else trained --------------------------------------------------------------
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
            settings = settled(builder, recipe, benchmark.name)
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


# -- pairs of checkpoints -------------------------------------------------------
def add_pairs(builder: Builder, runs: Sequence[RunPlan]) -> tuple[JudgedPair, ...]:
    """Stages of every ordered pair of the checkpoints declared as ``run@iteration``, judged on
    AlpacaEval (Fig. 2). Raises HarnessError for names that are no checkpoint with answers.
    """
    study, benchmark = builder.study, BENCHMARKS["alpaca_eval"]
    names = study.declare.pairwise
    known: dict[str, tuple[Recipe, Mapping[str, str]]] = {}
    for run in runs:
        benchmarks = {"benchmarks": run.iterations[min(run.iterations)]["benchmarks"]}
        for index, stages in run.iterations.items():
            if "answer" in stages:
                known[f"{run.cell.run}@{index}"] = run.cell.recipe, {**stages, **benchmarks}
    for name in names:
        if name not in known:
            raise HarnessError(
                f"{study.file}: declare.pairwise: {name!r} is no checkpoint of this study with "
                f"answers; write run@iteration, for example {next(iter(known), '')!r}"
            )
    assert benchmark.pairs is not None
    pairs = []
    for a, b in itertools.permutations(names, 2):
        recipe, stages = known[a]
        inputs = {"answer_a": stages["answer"], "answer_b": known[b][1]["answer"]}
        inputs |= {"benchmarks": stages["benchmarks"]}
        settings = settled(builder, recipe, benchmark.name)
        pairs.append(JudgedPair(a, b, builder.add(benchmark.pairs.stage, settings, inputs, recipe)))
    return tuple(pairs)
