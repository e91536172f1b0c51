"""Benchmarks by name. To add one: a stage that writes ``scores.parquet``, and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """stage: the stage that scores it (`harness.engine.stages` names its function). metrics: metric
    → higher is better, the headline one first.

    scale: lowest and highest possible value of the headline metric, for bounds of incomplete sets.
    judged: a judge is asked. cluster: what was sampled, the unit that intervals resample. official:
    items of the published benchmark (0: not one number).
    """

    title: str
    stage: str
    metrics: Mapping[str, bool]
    scale: tuple[float, float]
    judged: bool
    cluster: str
    official: int


_LC = {"length_controlled_win_rate": True, "win_rate": True, "length": False}

BENCHMARKS: Mapping[str, Benchmark] = {
    "mt_bench": Benchmark(
        "MT-Bench", "judge.mt_bench", {"rating": True}, (1.0, 10.0), True, "question", 160
    ),
    "alpaca_eval": Benchmark(
        "AlpacaEval 2.0", "judge.alpaca_eval", _LC, (0.0, 100.0), True, "instruction", 805
    ),
    "academic": Benchmark(
        "Academic tasks", "academic", {"score": True}, (0.0, 100.0), False, "item", 0
    ),
    "heldout": Benchmark(
        "Held-out reward",
        "heldout",
        {"reward": True, "reward_sampled": True},
        (0.0, 1.0),
        False,
        "prompt",
        0,
    ),
}
