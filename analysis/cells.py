"""Who judged a study's scores and on what, and whether published scores may stand beside them."""

from __future__ import annotations

from collections.abc import Collection

from analysis import measures
from analysis.load import Checkpoint, StudyData, stage_of
from analysis.measures import Measure
from analysis.stats import Estimate, Interval
from analysis.text import number

JUDGED = {"alpaca_eval": ("AlpacaEval", "win_rate"), "mt_bench": ("MT-Bench", "rating")}
"""Judged benchmark → its name in notes, the metric whose rows are looked at."""


def verdict(comparable: bool) -> str:
    """Whether scores may stand beside published ones, in words."""
    if comparable:
        return (
            "comparable with published scores: judge, questions, references and prompts are "
            "the published ones"
        )
    return (
        "not comparable with published scores: another judge, or other questions, references "
        "or prompts"
    )


def notes(data: StudyData, benchmarks: Collection[str]) -> list[str]:
    """One sentence for every judge and benchmark version among the scores: comparable with
    published scores or not.

    Comparable only if every stored set says so (judge, questions, references and prompts are the
    published ones); nothing is assumed.
    """
    sentences = []
    for benchmark, (title, metric) in JUDGED.items():
        if benchmark not in benchmarks:
            continue
        found: dict[str, list[bool]] = {}
        titles: dict[str, list[str]] = {}
        for checkpoint in data.checkpoints:
            if name := data.identity(checkpoint, benchmark, metric):
                summaries = [
                    data.summary(run, checkpoint.iteration, stage_of(benchmark))
                    for run in checkpoint.runs
                ]
                found.setdefault(name, []).append(
                    all(s.get("comparable") is True for s in summaries if s)
                )
                titles.setdefault(name, []).append(checkpoint.title)
        for name, comparable in found.items():
            where = f" ({', '.join(titles[name])})" if len(found) > 1 else ""
            sentences.append(f"{title}{where}, judged by {name}: {verdict(all(comparable))}.")
        if len(found) > 1:
            sentences.append(
                f"{title}: rows of different judges or references are not comparable with one "
                "another, and no difference between them is given."
            )
    return sentences


SCORE_DATA = (
    "checkpoint",
    "arm",
    "iteration",
    "c",
    "kappa",
    "measure",
    "unit",
    "mean",
    "A_low",
    "A_high",
    "B_low",
    "B_high",
    "items_low",
    "items_high",
    "seeds",
    "clusters",
    "scored",
    "expected",
    "incomplete",
    "worst",
    "best",
    "points",
)
POPULATIONS_NOTE = (
    "Intervals are 95 %. (A): this benchmark, new seeds. (B): new seeds and new items. Seeds "
    "and items are crossed; none is given below 3 seeds."
)


# -- cells -----------------------------------------------------------------------------------------
def cell_text(estimate: Estimate, measure: Measure) -> str:
    """ "24.25 ± 0.41 (1.62)": mean, half-width (A), half-width (B); "INCOMPLETE (94 of 96)
    8.61–8.70" with bounds.
    """
    digits = measure.digits
    if estimate.incomplete or estimate.value is None:
        if not estimate.expected:
            return "–"
        bounds = (
            f" {number(estimate.bounds[0], digits)}–{number(estimate.bounds[1], digits)}"
            if estimate.bounds
            else ""
        )
        return f"INCOMPLETE ({estimate.scored} of {estimate.expected}){bounds}"
    dagger = "†" if estimate.scored < estimate.expected else ""
    if "items" in estimate.intervals:
        return (
            f"{number(estimate.value, digits)}{dagger} ± "
            f"{number(estimate.intervals['items'].half_width, digits)}"
        )
    halves = [number(estimate.intervals[p].half_width, digits) for p in ("A", "B")]
    return f"{number(estimate.value, digits)}{dagger} ± {halves[0]} ({halves[1]})"


def score_data(
    data: StudyData, checkpoint: Checkpoint, measure: Measure, estimate: Estimate
) -> tuple[object, ...]:
    """One row of full-precision numbers behind a cell."""
    ends: list[float | None] = []
    for name in ("A", "B", "items"):
        interval = estimate.intervals.get(name)
        ends += [interval.low, interval.high] if interval else [None, None]
    worst, best = (
        estimate.bounds if estimate.bounds and estimate.scored < estimate.expected else (None, None)
    )
    points = measures.points(data, checkpoint, measure)
    return (
        checkpoint.title,
        checkpoint.arm,
        checkpoint.iteration,
        c_of(checkpoint),
        kappa_of(checkpoint),
        measure.key,
        measure.unit,
        estimate.value,
        *ends,
        estimate.seeds,
        estimate.clusters,
        estimate.scored,
        estimate.expected,
        estimate.incomplete,
        worst,
        best,
        ";".join(f"{seed}:{value!r}" for seed, value in sorted(points.items())),
    )


def c_of(checkpoint: Checkpoint) -> float | None:
    """The coefficient on log π(y) of this iteration."""
    return checkpoint.runs[0].c.get(checkpoint.iteration) if checkpoint.iteration else None


def kappa_of(checkpoint: Checkpoint) -> float | None:
    """κ = 2c/β of this iteration."""
    return checkpoint.runs[0].kappa.get(checkpoint.iteration) if checkpoint.iteration else None


def interval_text(interval: Interval | None, digits: int) -> str:
    """ "−0.80 to 3.20", or a dash."""
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"
