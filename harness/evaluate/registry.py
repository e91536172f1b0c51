"""Every benchmark by name: those modules of this folder that define ``BENCHMARK``.

Found by reading, not by importing everything: published scores and library glue stand in the same
folder, and planning should not load them. A new file is all that a new benchmark needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.evaluate.benchmark import Benchmark
from harness.files import defined

FOLDER = Path(__file__).parent
FIRST = ("mt_bench", "alpaca_eval", "academic", "heldout")
"""The paper's order; others follow by name."""


def _found() -> Mapping[str, Benchmark]:
    found = {one.name: one for one in defined("harness.evaluate", FOLDER, "BENCHMARK")}
    return {name: found[name] for name in dict.fromkeys([*FIRST, *found]) if name in found}


BENCHMARKS: Mapping[str, Benchmark] = _found()

JUDGED_STAGES = tuple(
    stage
    for one in BENCHMARKS.values()
    for stage in (one.stage, one.pairs.stage if one.pairs else "")
    if one.judged and stage
)
"""Stages that ask a judge about stored answers."""


def manifest_of(evaluation: Any) -> list[dict[str, Any]]:
    """What analysis reads of the benchmarks that a recipe's evaluation section names."""
    return [
        {
            "name": name,
            "title": one.title,
            "stage": one.stage,
            "judged": one.judged,
            "samples": asdict(one.samples) if one.samples else None,
            "measures": [asdict(measure) for measure in one.measures(evaluation)],
        }
        for name, one in BENCHMARKS.items()
        if name in evaluation.benchmarks
    ]
