"""Scores to intervals: every estimator works on one shape, ``Layout``: Y_si = score of seed s on
item cluster i, (S, n).

Seeds and items are crossed (every seed answers the same items), so the variance of a mean has two
parts, a² = MS_seed/N (seeds, with what is left) and b² = max(MS_item − MS_error, 0)/N (items), N =
S·n, with the mean squares of the two-way layout. Two populations are named everywhere:

  (A) this benchmark, new seeds:   ± t_{S−1}·a, exact for normal seed effects
  (B) new seeds and new items:     ± (t_{S−1}·a² + t_{n−1}·b²)/√(a² + b²), Cochran's approximation

Why Cochran and not Satterthwaite's degrees of freedom for a² + b²: at 3 seeds and seed shares of
variance 50–95 % Satterthwaite covers 92–94 % where Cochran covers 95–97 %; the price is an interval
up to a fifth wider at 3 seeds, a tenth at 5 (``benchmarks/bench_coverage.py``). Both cover 94–97.5
% in simulation for seed shares 0–95 %, 3, 5 and 10 seeds, ratings and 0/100 scores, down to 5
clusters with normal item effects (fewer than 10 are flagged). They cannot hold for a *mean* whose
seeds are strongly skewed and dominate (exponential seed effects: 89–90 % at any of these numbers of
seeds); no check sees that at 3 seeds. The *difference* of two such arms is symmetric and holds
(95–97 %).

Missing is never a number: a layout with a missing cell is INCOMPLETE. It has ``bounds`` (every
missing score at the worst and at the best of its scale) and no value, unless ``min_complete``
allows the share that is there; then clusters scored everywhere are used, and a flag says how many
were left out. Nothing is imputed. An interval that cannot be had says why in ``undefined``; none
has zero width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize  # type: ignore[import-untyped]
from scipy import stats as distributions
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

from analysis.layout import Floats, Layout, complete, paired
from analysis.text import finer, plural

LEVEL = 0.95
"""Of an interval where no other is asked for."""
MIN_SEEDS = 3
"""No interval over seeds below this number."""
FEW_CLUSTERS = 10
"""Below this number of clusters an interval over items leans on their normality and is flagged."""
ITEMS = "these checkpoints, new items"
NEW_SEEDS = "(A) this benchmark, new seeds"
NEW_SEEDS_AND_ITEMS = "(B) new seeds and new items"


@dataclass(frozen=True)
class Interval:
    """An interval, or why there is none. ``df``: of the seed part, then of the item part. p:
    two-sided, by inversion against ``null`` (None where no null value was given).
    """

    population: str
    method: str
    level: float = LEVEL
    low: float | None = None
    high: float | None = None
    se: float | None = None
    df: tuple[float, ...] = ()
    p: float | None = None
    undefined: str = ""
    flags: tuple[str, ...] = ()

    @property
    def defined(self) -> bool:
        return not self.undefined

    @property
    def symmetric(self) -> bool:
        """Whether the estimate is its middle, so that ± says it: t intervals, but not Wilson's."""
        return bool(self.df)

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Estimate:
    """A value, its intervals by name ("items", "A", "B"; in a family "A_paired", "B_paired" too).
    value: None when INCOMPLETE (then ``bounds``, if the scale has ends). points: by seed.
    """

    method: str
    value: float | None
    seeds: int
    clusters: int
    intervals: Mapping[str, Interval]
    points: tuple[float, ...] = ()
    scored: int = 0
    expected: int = 0
    incomplete: bool = False
    bounds: tuple[float, float] | None = None
    squares: MeanSquares | None = None
    flags: tuple[str, ...] = ()

    @property
    def cautions(self) -> tuple[str, ...]:
        """Its flags and those of its intervals, each once."""
        raised = (flag for interval in self.intervals.values() for flag in interval.flags)
        return tuple(dict.fromkeys((*self.flags, *raised)))

    def p(self, name: str) -> float | None:
        """The p of the named interval, if there is one."""
        return getattr(self.intervals.get(name), "p", None)

    def half_width(self, name: str = "A") -> float | None:
        """That of the named interval, if there is one."""
        return getattr(self.intervals.get(name), "half_width", None)

    def digits(self, least: int, *names: str) -> int:
        """Digits to show it and the named intervals with ((A) and (B), else that over items):
        ``least``, or more for a narrow one.
        """
        shown = names or (("A", "B") if self.half_width("A") else ("items",))
        halves = [half for name in shown if (half := self.half_width(name))]
        return finer(least, min(halves, default=None))


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares of the two-way layout; leading axes of the input stay (simulations)."""

    seeds: int
    clusters: int
    mean: Floats
    seed: Floats
    item: Floats
    error: Floats
    a2: Floats
    b2: Floats


def two_way(values: Floats) -> MeanSquares:
    """Mean squares, a² = MS_seed/N, b² = max(MS_item − MS_error, 0)/N of ``values`` (…, S, n), no
    NaN. Rounding (below 1e-12 of the largest score) is zero: equal scores have no variance.
    """
    S, n = values.shape[-2:]
    mean = values.mean(axis=(-2, -1))
    centred = values - mean[..., None, None]
    by_seed, by_item = centred.mean(axis=-1), centred.mean(axis=-2)
    ss_seed, ss_item = n * (by_seed**2).sum(axis=-1), S * (by_item**2).sum(axis=-1)
    ss_error = ((centred - by_seed[..., :, None] - by_item[..., None, :]) ** 2).sum(axis=(-2, -1))
    ms_seed, ms_item = ss_seed / max(S - 1, 1), ss_item / max(n - 1, 1)
    ms_error = ss_error / max((S - 1) * (n - 1), 1)
    tiny = (1e-12 * np.abs(values).max(axis=(-2, -1), initial=0.0)) ** 2
    seed, item, error = (
        np.where(ms < tiny * k, 0.0, ms) for ms, k in ((ms_seed, n), (ms_item, S), (ms_error, 1))
    )
    a2, b2 = seed / (S * n), np.maximum(item - error, 0.0) / (S * n)
    return MeanSquares(S, n, mean, seed, item, error, a2, b2)


def cochran_half_width(a2: Any, df_a: float, b2: Any, df_b: float, level: float = LEVEL) -> Any:
    """(t_{df_a}·a² + t_{df_b}·b²)/√(a² + b²), a weighted mean of the two t quantiles times the
    standard error. Broadcasts; 0 at a² + b² = 0.
    """
    t_a, t_b = (distributions.t.isf((1 - level) / 2, df) for df in (df_a, df_b))
    total = np.asarray(a2 + b2, dtype=np.float64)
    root = np.sqrt(np.where(total > 0, total, 1.0))
    return np.where(total > 0, (t_a * a2 + t_b * b2) / root, 0.0)


def cochran_p(difference: float, a2: float, df_a: float, b2: float, df_b: float) -> float:
    """p at which Cochran's interval touches the null; ``difference`` = estimate − null."""
    total = math.sqrt(a2 + b2)
    by_a, by_b = (float(2 * distributions.t.sf(abs(difference) / total, df)) for df in (df_a, df_b))
    if b2 == 0 or df_a == df_b:
        return by_a
    if a2 == 0:
        return by_b

    def excess(log_p: float) -> float:
        t_a, t_b = (distributions.t.isf(math.exp(log_p) / 2, df) for df in (df_a, df_b))
        return float((t_a * a2 + t_b * b2) / total - abs(difference))

    low, high = sorted((math.log(max(by_a, 1e-280)), math.log(max(by_b, 1e-280))))
    if excess(low) <= 0 or excess(high) >= 0:
        return math.exp(low) if excess(low) <= 0 else math.exp(high)
    return math.exp(optimize.brentq(excess, low, high, xtol=1e-13))


def _cochran(
    found: Interval, value: float, a2: float, b2: float, df: tuple[float, float], null: float | None
) -> Interval:
    half = float(cochran_half_width(a2, df[0], b2, df[1], found.level))
    p = None if null is None else cochran_p(value - null, a2, df[0], b2, df[1])
    return replace(found, low=value - half, high=value + half, se=math.sqrt(a2 + b2), p=p)


def seed_interval(
    value: float,
    a2: float,
    df: float,
    seeds: int,
    *,
    null: float | None = None,
    level: float = LEVEL,
) -> Interval:
    """(A): value ± t_df·a. Undefined below 3 seeds and when the seed means do not differ."""
    found = Interval(NEW_SEEDS, f"t with {df:g} degrees of freedom", level, df=(df,))
    if seeds < MIN_SEEDS:
        return replace(found, undefined=f"{plural(seeds, 'seed')}: none below {MIN_SEEDS}")
    if a2 <= 0:
        return replace(found, undefined="all seeds give the same mean")
    return _cochran(found, value, a2, 0.0, (df, df), null)


def crossed_interval(
    value: float,
    a2: float,
    df: float,
    squares: MeanSquares,
    *,
    null: float | None = None,
    level: float = LEVEL,
) -> Interval:
    """(B): Cochran's interval; undefined below 3 seeds, with one cluster, without variance. Where
    all seeds give the same mean, a² falls back to its floor MS_error/N.
    """
    S, n, b2, flags = squares.seeds, squares.clusters, float(squares.b2), []
    method = "Cochran's t over crossed seeds and items"
    found = Interval(NEW_SEEDS_AND_ITEMS, method, level, df=(df, n - 1))
    if S < MIN_SEEDS:
        return replace(found, undefined=f"{plural(S, 'seed')}: none below {MIN_SEEDS}")
    if n < 2:
        return replace(found, undefined="one item cluster")
    if a2 <= 0:
        a2 = float(squares.error) / (S * n)
        flags.append("all seeds give the same mean: the seed part is only the residual")
    if a2 + b2 <= 0:
        return replace(found, undefined="all scores are equal")
    if n < FEW_CLUSTERS:
        flags.append(f"only {n} item clusters: the interval leans on normal item effects")
    return _cochran(replace(found, flags=tuple(flags)), value, a2, b2, (df, n - 1), null)


def incomplete(method: str, cell: Layout, reason: str, names: Sequence[str]) -> Estimate:
    """An estimate without value: bounds, counts and the reason in every interval."""
    populations = {"items": ITEMS, "A": NEW_SEEDS, "B": NEW_SEEDS_AND_ITEMS}
    seeds, clusters = cell.values.shape
    return Estimate(
        method,
        None,
        seeds,
        clusters,
        {name: Interval(populations[name], "none", undefined=reason) for name in names},
        scored=cell.scored,
        expected=cell.expected,
        incomplete=True,
        bounds=cell.bounds,
        flags=(reason,),
    )


def one_checkpoint(
    cell: Layout, *, null: float | None = None, level: float = LEVEL, min_complete: float = 1.0
) -> Estimate:
    """Mean of one checkpoint (S = 1) ± t_{n−1}·sd/√n over clusters; Wilson where every score is at
    an end of ``cell.scale`` (0 or 1, 0 or 100).

    se = sd/√n with n − 1, as lm-eval prints it. Conditional on the checkpoint: says nothing about
    another seed.
    """
    method = "one checkpoint"
    used, reason, flags = complete(cell, min_complete)
    if reason:
        return incomplete(method, cell, reason, ("items",))
    (y,) = used.values
    n, value = len(y), float(y.mean())
    sd = float(y.std(ddof=1)) if n > 1 else 0.0
    sd = 0.0 if sd < 1e-12 * float(np.abs(y).max()) else sd
    se = sd / math.sqrt(n) if sd > 0 else None
    over = f"t with {n - 1} degrees of freedom over items"
    interval = Interval(ITEMS, over, level, se=se, df=(float(n - 1),))
    if used.scale is not None and bool(np.isin(y, used.scale).all()):
        interval = _wilson(y, used.scale, replace(interval, method="Wilson", df=()), null)
    elif n < 2:
        interval = replace(interval, undefined="one item")
    elif se is None:
        interval = replace(interval, undefined="all scores are equal")
    else:
        half = float(distributions.t.isf((1 - level) / 2, n - 1)) * se
        p = None if null is None else cochran_p(value - null, se * se, n - 1, 0.0, n - 1)
        interval = replace(interval, low=value - half, high=value + half, p=p)
        if n < FEW_CLUSTERS:
            few = f"only {n} item clusters: the interval leans on their normality"
            interval = replace(interval, flags=(few,))
    return Estimate(
        method,
        value,
        1,
        n,
        {"items": interval},
        points=(value,),
        scored=cell.scored,
        expected=cell.expected,
        bounds=cell.bounds,
        flags=flags,
    )


def _wilson(y: Floats, scale: tuple[float, float], found: Interval, null: float | None) -> Interval:
    low, high = scale
    k, n, p = int((y == high).sum()), len(y), None
    if null is not None and low < null < high:
        q = (null - low) / (high - low)
        p = float(2 * distributions.norm.sf(abs(k / n - q) / math.sqrt(q * (1 - q) / n)))
    share = proportion_confint(k, n, alpha=1 - found.level, method="wilson")
    ends = [low + (high - low) * float(end) for end in share]
    return replace(found, low=ends[0], high=ends[1], p=p)


def mean_over_seeds(
    cell: Layout,
    *,
    null: float | None = None,
    level: float = LEVEL,
    min_complete: float = 1.0,
    method: str = "mean over seeds",
) -> Estimate:
    """Mean over seeds with intervals "A" (this benchmark, new seeds) and "B" (new seeds and new
    items); p against ``null`` by inversion.
    """
    used, reason, flags = complete(cell, min_complete)
    if reason:
        return incomplete(method, cell, reason, ("A", "B"))
    squares = two_way(used.values)
    value, a2, df = float(squares.mean), float(squares.a2), float(squares.seeds - 1)
    b = crossed_interval(value, a2, df, squares, null=null, level=level)
    if b.defined:
        b = replace(b, flags=b.flags + near_an_end(used))
    return Estimate(
        method,
        value,
        squares.seeds,
        squares.clusters,
        {"A": seed_interval(value, a2, df, squares.seeds, null=null, level=level), "B": b},
        points=tuple(float(v) for v in used.values.mean(axis=1)),
        scored=cell.scored,
        expected=cell.expected,
        bounds=cell.bounds,
        squares=squares,
        flags=flags,
    )


def _all_alike(single: Estimate, scale: tuple[float, float], level: float) -> Interval:
    """Of two checkpoints with the same score on each of n items: at most Wilson's share of new
    items differs (0 of n), each by no more than the whole scale.
    """
    share = proportion_confint(0, single.clusters, alpha=1 - level, method="wilson")[1]
    most = float(share) * abs(scale[1] - scale[0])
    method = "Wilson, of the share of items that differ"
    return Interval(ITEMS, method, level, low=-most, high=most, p=1.0)


def near_an_end(cell: Layout) -> tuple[str, ...]:
    """The flag of right and wrong answers nearly all alike: with 5 seeds and 12 to 50 items, 90 to
    97 % of them right, (B) covers 88–89 %.
    """
    if cell.scale is None or not np.isin(cell.values, cell.scale).all():
        return ()
    apart = [int((cell.values != end).any(axis=0).sum()) for end in cell.scale]
    if min(apart) >= FEW_CLUSTERS:
        return ()
    return (f"fewer than {FEW_CLUSTERS} items off an end of the scale: (B) is too narrow there",)


def difference(
    arm: Layout, baseline: Layout, *, level: float = LEVEL, min_complete: float = 1.0
) -> Estimate:
    """Mean of D_si = arm − baseline (same seed, same item) with "A", "B" and p against 0; with one
    seed also "items" (these two checkpoints only).
    """
    D, flags = paired(arm, baseline)
    method, asked = "paired difference", {"null": 0.0, "level": level, "min_complete": min_complete}
    found = mean_over_seeds(D, method=method, **asked)
    if D.values.shape[0] == 1:
        single = one_checkpoint(D, **asked)
        if single.incomplete:
            return replace(single, method=method, flags=single.flags + flags)
        if arm.scale is not None and not np.nan_to_num(D.values).any():
            single = replace(single, intervals={"items": _all_alike(single, arm.scale, level)})
        found = replace(found, intervals={**found.intervals, **single.intervals})
    return replace(found, flags=found.flags + flags)
