"""Judging stages between checkpoints of a study: AlpacaEval for ordered pairs (Fig. 2), MT-Bench's
two games for unordered ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.records import HarnessError
from harness.study.settings import Recipe
from harness.study.study import Study

if TYPE_CHECKING:
    from harness.engine.plan import RunPlan

Pairs = tuple[tuple[str, str, str], ...]
"""(checkpoint a, checkpoint b, key of the stage that scores b against a)."""
Add = Callable[[str, Mapping[str, Any], Mapping[str, str], Recipe], str]


def add_pairs(
    study: Study, runs: Sequence[RunPlan], add: Add, benchmarks_of: Callable[[Recipe], str]
) -> tuple[Pairs, Pairs]:
    """Stages of the pairs of the checkpoints declared as ``run@iteration``: (AlpacaEval's,
    MT-Bench's where asked for).

    Raises HarnessError for names that are no checkpoint, and where MT-Bench pairs are asked for
    without their checkpoints or answers.
    """
    names = study.declare.pairwise
    known = {
        f"{run.cell.run}@{index}": (run, stages)
        for run in runs
        for index, stages in enumerate(run.iterations)
    }
    for name in names:
        if name not in known:
            raise HarnessError(
                f"{study.file}: declare.pairwise: {name!r} is no checkpoint of this study; write "
                f"run@iteration, for example {next(iter(known))!r}"
            )

    def stage(name: str, a: str, b: str, settings: Mapping[str, Any]) -> tuple[str, str, str]:
        (run, stages), (_, others) = known[a], known[b]
        recipe = run.cell.recipe
        inputs = {
            "answer_a": stages["answer"],
            "answer_b": others["answer"],
            "benchmarks": benchmarks_of(recipe),
        }
        return a, b, add(name, {"judge": recipe.judge.model_dump(), **settings}, inputs, recipe)

    def evaluation(name: str) -> Any:
        return known[name][0].cell.recipe.evaluation

    ordered = [
        stage("judge.pairwise", a, b, {"annotator": evaluation(a).alpaca_eval.annotator})
        for a, b in itertools.permutations(names, 2)
    ]
    if not study.declare.pairwise_mt_bench:
        return tuple(ordered), ()
    without = [name for name in names if "mt_bench" not in evaluation(name).benchmarks]
    if len(names) < 2 or without:
        reason = (
            f"{without[0]!r} does not answer MT-Bench (evaluation.benchmarks)"
            if without
            else "declare.pairwise names fewer than two checkpoints"
        )
        raise HarnessError(f"{study.file}: declare.pairwise_mt_bench is true, but {reason}")
    graded = [
        stage(
            "judge.mt_bench_pairwise", a, b, {"reference_set": evaluation(a).mt_bench.reference_set}
        )
        for a, b in itertools.combinations(names, 2)
    ]
    return tuple(ordered), tuple(graded)
