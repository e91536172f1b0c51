"""What a study says: every arm against the baseline, the base's improvement, the declared trend,
the best arm told on other seeds.

Only numbers and reasons; words are in ``analysis.prose``. The declared family (primary and further
outcomes × arms) is corrected by Holm as one; any other comparison is exploratory and carries its
plain p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from analysis import measures, power, rank
from analysis.family import POOLED, Family, Selection, Trend, family, holm, reestimate_best, trend
from analysis.layout import Layout
from analysis.load import Checkpoint, StudyData, once
from analysis.measures import Measure
from analysis.stats import Estimate, difference, mean_over_seeds, one_checkpoint

POPULATIONS: tuple[power.Population, ...] = ("A", "B")


@dataclass(frozen=True)
class Comparison:
    """One arm minus the baseline on one measure after one iteration.

    holm: p by population over the whole declared family; empty for an exploratory comparison.
    detectable: minimum detectable effect by population, or the reason why there is none; spread and
    arms: what it rests on (the components, and how many arms estimate the seeds' part). flip: sign
    flips over seeds. improvement: k of S² pairs. flags: of the family, the same for all its arms.
    """

    arm: str
    label: str
    measure: Measure
    iteration: int
    estimate: Estimate
    flags: tuple[str, ...] = ()
    holm: Mapping[str, float | None] = field(default_factory=dict)
    detectable: Mapping[str, power.Detectable] = field(default_factory=dict)
    spread: power.Components | None = None
    arms: int = 2
    flip: rank.Permutation | None = None
    improvement: rank.Improvement | None = None

    @property
    def digits(self) -> int:
        """Those to show it with."""
        return self.estimate.digits(self.measure.digits)

    @property
    def declared(self) -> bool:
        return bool(self.holm)

    def p(self, population: str) -> float | None:
        """The p to judge by: after Holm where the comparison was declared, else the plain one."""
        return self.holm.get(population) if self.declared else self.estimate.p(population)

    def detected(self, *populations: str) -> bool:
        """Whether zero is refused at 5 % under one of them; none named: under any."""
        found = [self.p(one) for one in populations or POPULATIONS]
        return any(p is not None and p < 0.05 for p in found)


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
    """Held-out reward of the baseline arm's end minus the base's: same seeds and prompts."""

    measure: Measure
    label: str
    iteration: int
    before: float | None = None
    after: float | None = None
    estimate: Estimate | None = None
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """``primary`` and ``declared``: the declared comparisons, in study order of the arms."""

    primary_measure: Measure
    primary_iteration: int
    primary: tuple[Comparison, ...]
    declared: tuple[Comparison, ...]
    baseline_label: str
    trend: TrendFinding | None
    improvement: Improvement
    selection: Selection | None
    selection_reason: str


def estimate(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> Estimate:
    """Mean over seeds with (A) and (B); of one seed with the interval over "items"."""
    cell = measures.layout_of(data, checkpoint, measure)
    of = one_checkpoint if len(cell.seeds) == 1 else mean_over_seeds
    return of(cell, min_complete=data.min_complete)


@once
def compare_arms(data: StudyData, measure: Measure, iteration: int) -> tuple[Comparison, ...]:
    """Every arm against the baseline; empty without a baseline or scores of it. Arms whose scores
    another judge gave, or on other questions, are not compared.
    """
    cells = {arm: c for arm, c in _layouts(data, measure, iteration).items() if c.values.size}
    if data.baseline_arm not in cells:
        return ()
    ours = _judged(data, data.baseline_arm, measure, iteration)
    for arm in list(cells):
        theirs = _judged(data, arm, measure, iteration)
        # without rows yet it is INCOMPLETE, and counts in the declared family
        if any(a != b and a and b for a, b in zip(theirs, ours, strict=True)):
            del cells[arm]
    if len(cells) < 2:
        return ()
    found = family(cells, data.baseline_arm, min_complete=data.min_complete)
    return tuple(_comparison(data, measure, iteration, arm, found) for arm in found.arms)


def _layouts(data: StudyData, measure: Measure, iteration: int) -> dict[str, Layout]:
    """Arm → its scores after an iteration, of the arms that are scored there."""
    there = {arm: data.at(arm, iteration) for arm in data.arms}
    return {arm: measures.layout_of(data, c, measure) for arm, c in there.items() if c}


def _judged(data: StudyData, arm: str, measure: Measure, iteration: int) -> list[str]:
    """Who judged an arm's scores and on what, benchmark by benchmark."""
    checkpoint = data.at(arm, iteration)
    names = measure.benchmarks
    return [data.identity(checkpoint, name, measure.metric) if checkpoint else "" for name in names]


def _comparison(
    data: StudyData, measure: Measure, iteration: int, arm: str, found: Family
) -> Comparison:
    value = found.arms[arm]
    plain = Comparison(arm, data.label(arm), measure, iteration, value, found.flags)
    if value.squares is None or min(value.seeds, value.clusters) < 2:
        return plain
    spread, arms = power.from_squares(value.squares), 2
    if value.method == POOLED:
        spread = power.from_squares(value.squares, ms=found.ms, df=found.df)
        arms = (found.df or 0) // max(value.seeds - 1, 1) + 1
    sizes = value.seeds, value.clusters
    improvement = None
    both = (data.at(one, iteration) for one in (arm, data.baseline_arm))
    x, y = (list(measures.points(data, c, measure).values()) for c in both)
    if x and y:
        pair = (y, x) if measure.better < 0 else (x, y)
        improvement = rank.probability_of_improvement(*pair)
    return replace(
        plain,
        detectable={p: power.detectable(spread, *sizes, p, arms=arms) for p in POPULATIONS},
        spread=spread,
        arms=arms,
        flip=rank.sign_flip(np.array(value.points), np.random.default_rng(0)),
        improvement=improvement,
    )


def declared_outcomes(data: StudyData) -> list[tuple[Measure, int]]:
    """Primary outcome first, then the further declared ones, without repeats."""
    outcomes = [data.declare["primary"], *data.declare["family"]]
    return list(dict.fromkeys(measures.declared(data, outcome) for outcome in outcomes))


@once
def find(data: StudyData) -> Findings:
    """The study's findings (computed once per study object)."""
    outcomes = declared_outcomes(data)
    plain = [c for outcome in outcomes for c in compare_arms(data, *outcome)]
    adjusted = {
        p: holm({str(i): c.estimate.p(p) for i, c in enumerate(plain)}) for p in POPULATIONS
    }
    declared = tuple(
        replace(c, holm={p: adjusted[p][str(i)] for p in POPULATIONS}) for i, c in enumerate(plain)
    )
    measure, iteration = outcomes[0]
    selection, reason = _selection(data, measure, iteration)
    return Findings(
        measure,
        iteration,
        tuple(c for c in declared if (c.measure, c.iteration) == outcomes[0]),
        declared,
        data.label(data.baseline_arm),
        _trend(data),
        _improvement(data),
        selection,
        reason,
    )


def _selection(data: StudyData, measure: Measure, iteration: int) -> tuple[Selection | None, str]:
    cells = _layouts(data, measure, iteration)
    if data.baseline_arm not in cells or len(cells) < 3:
        return None, "fewer than two arms beside the baseline: nothing was selected"
    ours, least, better = data.baseline_arm, data.min_complete, measure.better
    try:
        return reestimate_best(cells, ours, better=better, min_complete=least), ""
    except ValueError as error:
        return None, str(error)


def _trend(data: StudyData) -> TrendFinding | None:
    declared = data.declare.get("trend")
    if not declared:
        return None
    measure, iteration = measures.declared(data, declared)
    axis, expected = declared["axis"], declared["expected"]
    stored = {arm: c for arm, c in _layouts(data, measure, iteration).items() if c.values.size}
    cells = {value: stored[arm] for value, arm in along(data, axis) if arm in stored}
    found = TrendFinding(measure, iteration, axis, expected, None)
    if len(cells) < 3:
        reason = f"scores of it are stored for {len(cells)} of {axis}'s values; a trend needs three"
        return replace(found, reason=reason)
    try:
        result = trend(cells, expected, min_complete=data.min_complete)
    except ValueError as error:
        return replace(found, reason=str(error))
    return replace(found, result=result)


def along(data: StudyData, axis: str) -> list[tuple[float, str]]:
    """An axis's numbers with their arms, in study order; other axes at the baseline's values."""
    found = []
    for arm, runs in data.arms.items():
        settings = dict(runs[0].arm)
        value = settings.pop(axis, None)
        others = all(data.baseline.get(name) == other for name, other in settings.items())
        if isinstance(value, (int, float)) and others:
            found.append((float(value), arm))
    return found


def _improvement(data: StudyData) -> Improvement:
    arm = data.baseline_arm or next(iter(data.arms), "")
    measure, iteration = measures.heldout(data), data.own_last(arm)
    found = Improvement(measure, data.label(arm), iteration)
    after, before = (data.checkpoint(arm, i) if arm else None for i in (iteration, 0))
    if after is None or before is None or iteration == 0:
        return replace(found, reason="base or last iteration is not scored")
    cells = [measures.layout_of(data, c, measure) for c in (after, before)]
    if not all(cell.values.size for cell in cells):
        return replace(found, reason="no held-out reward stored")
    change = difference(*cells, min_complete=data.min_complete)
    return replace(
        found,
        before=estimate(data, before, measure).value,
        after=estimate(data, after, measure).value,
        estimate=change,
        reason="; ".join(change.flags) if change.incomplete else "",
    )
