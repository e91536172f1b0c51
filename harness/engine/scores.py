"""What scores a checkpoint: its answers, every benchmark's stage, diagnostics; and the judged pairs
of declared checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from harness.engine.graph import Builder, JudgedPair, RunPlan
from harness.evaluate.benchmark import Asked, Benchmark
from harness.evaluate.registry import BENCHMARKS
from harness.rankers.registry import RANKERS
from harness.records import HarnessError
from harness.study import tasks
from harness.study.sections import DiagnosticsSamples, Section
from harness.study.settings import Recipe
from harness.study.study import Cell


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
        stages["answer"] = builder.add("answer", asked, read, recipe)
        inputs["answer"] = stages["answer"]
    for benchmark in wanted:
        reads = {*benchmark.inputs, *benchmark.more_inputs(recipe.evaluation)}
        read = {name: key for name, key in inputs.items() if name in reads}
        settings = settled(builder, recipe, benchmark)
        stages[benchmark.stage] = builder.add(benchmark.stage, settings, read, recipe)
    if recipe.diagnostics.enabled and history:
        read = {name: key for name, key in inputs.items() if name != "benchmarks"}
        read |= {name: key for name, key in history.items() if key}
        measured = _diagnostics_task(builder, cell, iteration)
        stages["diagnostics"] = builder.add("diagnostics", measured, read, recipe)
    return stages


def settled(builder: Builder, recipe: Recipe, benchmark: Benchmark) -> Section:
    """The settings of a benchmark's stage."""

    def make() -> Section:
        asked = Asked(
            settings=recipe.evaluation.of(benchmark.name),
            evaluation=recipe.evaluation,
            judge=builder.judge(recipe, benchmark.name),
            ranker=builder.ranker(recipe),
            ranker_judge=builder.judge(recipe) if RANKERS[recipe.ranker.kind].asks_judge else None,
            generating=builder.generating(recipe),
            threads=recipe.training.threads,
        )
        return benchmark.settle(asked)

    return builder.once(recipe, ("settled", benchmark.name), make)


ALWAYS_KEYED = ("mt_bench", "alpaca_eval")
"""Whose answers' settings are in the answer stage's key also where they are not asked: they were
when that stage was first stored.
"""


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


def _diagnostics_task(builder: Builder, cell: Cell, iteration: int) -> tasks.DiagnosticsTask:
    recipe = cell.recipe
    samples = {name: getattr(recipe.diagnostics, name) for name in DiagnosticsSamples.model_fields}
    return builder.filled(
        tasks.DiagnosticsTask,
        recipe,
        **samples,
        seed=cell.seed,
        iteration=iteration,
        objective=tasks.MeasuredObjective(**vars(builder.objective(recipe, iteration))),
        ranker=builder.ranker(recipe),
        pocket=recipe.data.source == "pocket",
    )


# -- pairs of checkpoints -------------------------------------------------------
def add_pairs(builder: Builder, runs: Sequence[RunPlan]) -> tuple[JudgedPair, ...]:
    """Stages of every ordered pair of the checkpoints declared as ``run@iteration``, judged on
    AlpacaEval (Fig. 2). Raises HarnessError for names that are no checkpoint.
    """
    study, benchmark = builder.study, BENCHMARKS["alpaca_eval"]
    names = study.declare.pairwise
    known: dict[str, tuple[Recipe, Mapping[str, str]]] = {}
    for run in runs:
        benchmarks = {"benchmarks": run.iterations[min(run.iterations)]["benchmarks"]}
        for index, stages in run.iterations.items():
            known[f"{run.cell.run}@{index}"] = run.cell.recipe, {**stages, **benchmarks}
    for name in names:
        if name not in known:
            raise HarnessError(
                f"{study.file}: declare.pairwise: {name!r} is no checkpoint of this study; write "
                f"run@iteration, for example {next(iter(known))!r}"
            )
    assert benchmark.pairs is not None
    pairs = []
    for a, b in itertools.permutations(names, 2):
        recipe, stages = known[a]
        inputs = {"answer_a": stages["answer"], "answer_b": known[b][1]["answer"]}
        inputs |= {"benchmarks": stages["benchmarks"]}
        settings = settled(builder, recipe, benchmark)
        pairs.append(JudgedPair(a, b, builder.add(benchmark.pairs.stage, settings, inputs, recipe)))
    return tuple(pairs)
