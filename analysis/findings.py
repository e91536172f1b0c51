"""What a study says: every arm against the baseline, the base's improvement, the declared trend,
the best arm told on other seeds.

Only numbers and reasons; words are in ``analysis.prose``. The declared family (primary and further
outcomes × arms) is corrected by Holm as one; any other comparison is exploratory and carries its
plain p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis import measures, power, rank
from analysis.family import Family, Member, Selection, Trend, family, holm, reestimate_best, trend
from analysis.load import Checkpoint, StudyData
from analysis.measures import Measure
from analysis.stats import Estimate, difference, mean_over_seeds, one_checkpoint

POPULATIONS: tuple[power.Population, ...] = ("A", "B")


@dataclass(frozen=True)
class Comparison:
    """One arm minus the baseline on one measure after one iteration.

    holm: p by population over the whole declared family; empty for an exploratory comparison.
    detectable: minimum detectable effect by population, or the reason why there is none. flip: sign
    flips over seeds. improvement: k of S² pairs.
    """

    arm: str
    label: str
    measure: Measure
    iteration: int
    member: Member
    holm: Mapping[str, float | None] = field(default_factory=dict)
    detectable: Mapping[str, power.Detectable] = field(default_factory=dict)
    flip: rank.Permutation | None = None
    improvement: rank.Improvement | None = None
    pooled: bool = False
    flags: tuple[str, ...] = ()

    @property
    def estimate(self) -> Estimate:
        return self.member.estimate

    @property
    def declared(self) -> bool:
        return bool(self.holm)

    def p(self, population: str) -> float | None:
        """The p to judge by: after Holm where the comparison was declared, else the plain one."""
        if self.declared:
            return self.holm.get(population)
        interval = self.estimate.intervals.get(population)
        return interval.p if interval else None

    def detected(self, population: str, size: float = 0.05) -> bool:
        p = self.p(population)
        return p is not None and p < size


@dataclass(frozen=True)
class TrendFinding:
    """The declared diagnostic trend, or why it could not be tested."""

    measure: Measure
    iteration: int
    axis: str
    expected: str
    result: Trend | None
    reason: str = ""


@dataclass(frozen=True)
class Improvement:
    """Held-out reward of the baseline arm after the last iteration minus the base's: same seeds,
    same prompts.
    """

    measure: Measure
    label: str
    iteration: int
    before: float | None
    after: float | None
    estimate: Estimate | None
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """All of it. ``primary`` and ``declared`` hold the declared comparisons, in study order of the
    arms.
    """

    primary_measure: Measure
    primary_iteration: int
    primary: tuple[Comparison, ...]
    declared: tuple[Comparison, ...]
    family_size: int
    baseline_label: str
    trend: TrendFinding | None
    improvement: Improvement
    selection: Selection | None
    selection_reason: str


def bar(data: StudyData) -> float:
    """The share of score rows a cell needs before it has a value."""
    return float(data.declare.get("completeness_bar") or 0.99)


def estimate(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> Estimate:
    """A table cell: mean over seeds with (A) and (B); with one seed the interval over items
    ("items").
    """
    cell = measures.layout_of(data, checkpoint, measure)
    if len(cell.seeds) == 1:
        return one_checkpoint(cell, bar=bar(data))
    return mean_over_seeds(cell, bar=bar(data))


def compare_arms(data: StudyData, measure: Measure, iteration: int) -> tuple[Comparison, ...]:
    """Every arm against the baseline on one measure after one iteration; empty without a baseline
    or scores of it.
    """
    key = ("comparison", measure.key, iteration)
    cache: dict[Any, tuple[Comparison, ...]] = data.__dict__.setdefault("_comparisons", {})
    if key not in cache:
        cache[key] = _compare_arms(data, measure, iteration)
    return cache[key]


def _compare_arms(data: StudyData, measure: Measure, iteration: int) -> tuple[Comparison, ...]:
    cells = {}
    for arm in data.arms:
        checkpoint = data.at(arm, iteration)
        cell = measures.layout_of(data, checkpoint, measure) if checkpoint else None
        if cell is not None and cell.values.size:
            cells[arm] = cell
    if data.baseline_arm not in cells or len(cells) < 2:
        return ()
    judged = {arm: _judged(data, arm, measure, iteration) for arm in cells}
    cells = {arm: cell for arm, cell in cells.items() if judged[arm] == judged[data.baseline_arm]}
    if len(cells) < 2:
        return ()
    found = family(cells, data.baseline_arm, bar=bar(data))
    return tuple(_comparison(data, measure, iteration, member, found) for member in found.members)


def _judged(data: StudyData, arm: str, measure: Measure, iteration: int) -> tuple[str, ...]:
    """Who judged an arm's scores and on what: arms that differ in it are not compared."""
    checkpoint = data.at(arm, iteration)
    return (
        tuple(
            data.identity(checkpoint, name, measure.metric)
            for name in measure.strata or (measure.benchmark,)
        )
        if checkpoint
        else ()
    )


def _comparison(
    data: StudyData, measure: Measure, iteration: int, member: Member, found: Family
) -> Comparison:
    value = member.estimate
    detectable: dict[str, power.Detectable] = {}
    flip = improvement = None
    if (
        not value.incomplete
        and value.squares is not None
        and value.seeds >= 2
        and value.clusters >= 2
    ):
        pooled = found.pooled and value.method == "difference, pooled"
        spread = (
            power.from_estimate(value, ms=found.ms, df=found.df)
            if pooled
            else power.from_estimate(value)
        )
        arms = (found.df or 0) // max(value.seeds - 1, 1) + 1 if pooled else 2
        sizes = value.seeds, value.clusters
        detectable = {p: power.detectable(spread, *sizes, p, arms=arms) for p in POPULATIONS}
        flip = rank.sign_flip(np.array(value.points), np.random.default_rng(0))
        ours, theirs = (data.at(arm, iteration) for arm in (member.arm, data.baseline_arm))
        if ours and theirs:
            x, y = (measures.points(data, c, measure) for c in (ours, theirs))
            if x and y:
                improvement = rank.probability_of_improvement(list(x.values()), list(y.values()))
    label = data.arms[member.arm][0].label
    pooled = value.method == "difference, pooled"
    return Comparison(
        member.arm,
        label,
        measure,
        iteration,
        member,
        {},
        detectable,
        flip,
        improvement,
        pooled,
        found.flags,
    )


def declared_outcomes(data: StudyData) -> list[tuple[Measure, int]]:
    """Primary outcome first, then the further declared ones, without repeats."""
    outcomes = [data.declare.get("primary") or {}, *(data.declare.get("family") or [])]
    found: dict[tuple[str, int], tuple[Measure, int]] = {}
    for outcome in outcomes:
        measure, iteration = measures.declared(data, outcome)
        found.setdefault((measure.key, iteration), (measure, iteration))
    return list(found.values())


def find(data: StudyData) -> Findings:
    """The study's findings (computed once per study object)."""
    if "_findings" not in data.__dict__:
        data.__dict__["_findings"] = _find(data)
    found: Findings = data.__dict__["_findings"]
    return found


def _find(data: StudyData) -> Findings:
    from dataclasses import replace

    outcomes = declared_outcomes(data)
    plain = [
        comparison
        for measure, iteration in outcomes
        for comparison in compare_arms(data, measure, iteration)
    ]
    adjusted = {p: holm({f"{i}": _plain_p(c, p) for i, c in enumerate(plain)}) for p in POPULATIONS}
    declared = tuple(
        replace(c, holm={p: adjusted[p][f"{i}"] for p in POPULATIONS}) for i, c in enumerate(plain)
    )
    measure, iteration = outcomes[0]
    primary = tuple(
        c for c in declared if c.measure.key == measure.key and c.iteration == iteration
    )
    selection, reason = _selection(data, measure, iteration)
    baseline = data.arms[data.baseline_arm][0].label if data.baseline_arm else ""
    return Findings(
        measure,
        iteration,
        primary,
        declared,
        len(plain),
        baseline,
        _trend(data),
        _improvement(data),
        selection,
        reason,
    )


def _plain_p(comparison: Comparison, population: str) -> float | None:
    interval = comparison.estimate.intervals.get(population)
    return interval.p if interval else None


def _selection(data: StudyData, measure: Measure, iteration: int) -> tuple[Selection | None, str]:
    cells = {}
    for arm in data.arms:
        checkpoint = data.at(arm, iteration)
        if checkpoint:
            cells[arm] = measures.layout_of(data, checkpoint, measure)
    if data.baseline_arm not in cells or len(cells) < 3:
        return None, "fewer than two arms beside the baseline: nothing was selected"
    try:
        return reestimate_best(cells, data.baseline_arm, bar=bar(data)), ""
    except ValueError as error:
        return None, str(error)


def _trend(data: StudyData) -> TrendFinding | None:
    declared = data.declare.get("trend")
    if not declared:
        return None
    measure, iteration = measures.declared(data, declared)
    axis, expected = (
        str(declared.get("axis", "objective.alpha")),
        str(declared.get("expected", "falling")),
    )
    cells: dict[float, Any] = {}
    for arm, runs in data.arms.items():
        value = runs[0].arm.get(axis)
        others = {k: v for k, v in runs[0].arm.items() if k != axis}
        checkpoint = data.at(arm, iteration)
        if (
            isinstance(value, (int, float))
            and checkpoint
            and all(data.baseline.get(k) == v for k, v in others.items())
        ):
            cell = measures.layout_of(data, checkpoint, measure)
            if cell.values.size:
                cells[float(value)] = cell
    blank = TrendFinding(measure, iteration, axis, expected, None)
    if len(cells) < 3:
        reason = f"scores of it are stored for {len(cells)} of {axis}'s values; a trend needs three"
        return TrendFinding(measure, iteration, axis, expected, None, reason)
    try:
        result = trend(cells, expected, bar=bar(data), generator=np.random.default_rng(0))
    except ValueError as error:
        return TrendFinding(measure, iteration, axis, expected, None, str(error))
    return TrendFinding(blank.measure, iteration, axis, expected, result)


def _improvement(data: StudyData) -> Improvement:
    arm = data.baseline_arm or next(iter(data.arms), "")
    measure, iteration = measures.heldout(data), data.own_last(arm)
    label = data.arms[arm][0].label if arm else ""
    after, before = (data.checkpoint(arm, i) if arm else None for i in (iteration, 0))
    if after is None or before is None or iteration == 0:
        return Improvement(
            measure, label, iteration, None, None, None, "base or last iteration is not scored"
        )
    cells = [measures.layout_of(data, c, measure) for c in (after, before)]
    if not all(cell.values.size for cell in cells):
        return Improvement(measure, label, iteration, None, None, None, "no held-out reward stored")
    found = difference(cells[0], cells[1], bar=bar(data))
    ends = [estimate(data, c, measure).value for c in (before, after)]
    return Improvement(
        measure,
        label,
        iteration,
        ends[0],
        ends[1],
        found,
        "; ".join(found.flags) if found.incomplete else "",
    )
