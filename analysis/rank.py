"""Permutations, order statistics over seeds, the judge's noise; what draws takes a generator. A p
from P equally likely outcomes is never below its ``floor``; over 5 % it cannot reject.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize  # type: ignore[import-untyped]
from scipy import stats as distributions
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

from analysis.layout import Floats
from analysis.stats import LEVEL, NEW_SEEDS, Interval

EXACT_FLIPS = 16
"""Seeds up to which all 2^S sign flips are listed."""
MIN_SEEDS_IQM = 5
MIN_SEEDS_IMPROVEMENT = 10


@dataclass(frozen=True)
class Permutation:
    """draws: 0 when every outcome was listed. floor: the smallest p it can give."""

    population: str
    method: str
    statistic: float | None
    p: float | None
    floor: float | None
    n: int
    draws: int = 0
    undefined: str = ""
    flags: tuple[str, ...] = ()


def floor_flags(floor: float) -> tuple[str, ...]:
    """The flag of a test whose smallest p is above 5 %."""
    return (f"floor {floor:.3g}: cannot reject at 5 %",) if floor > 0.05 else ()


def sign_flip(
    points: Sequence[float] | Floats,
    generator: np.random.Generator | None = None,
    *,
    draws: int = 9999,
) -> Permutation:
    """Sign flips of paired differences per seed, (S,): p = share of the 2^S flips with |mean| at
    least as large. Floor 2^{1−S}.

    Needs 6 seeds to reject at 5 %. Above 16 seeds flips are drawn: then ``generator`` is needed,
    and p = (1 + hits)/(1 + draws).
    """
    d = np.asarray(points, dtype=np.float64)
    S = d.size
    blank = Permutation(NEW_SEEDS, "sign flip over seeds", None, None, None, S)
    if S < 2:
        return replace(blank, undefined=f"{S} seed{'s' * (S != 1)}")
    if not np.isfinite(d).all():
        return replace(blank, undefined="a difference is missing")
    if not d.any():
        return replace(blank, undefined="all differences are zero")
    observed = float(d.mean())
    if S <= EXACT_FLIPS:
        bits, floor, draws = (np.arange(2**S)[:, None] >> np.arange(S)) & 1, 2.0 ** (1 - S), 0
    else:
        rng, floor = needed(generator, "sign_flip above 16 seeds"), 1 / (1 + draws)
        drawn = np.frombuffer(rng.bytes(draws * -(-S // 8)), np.uint8).reshape(draws, -1)
        bits = np.vstack([np.zeros(S, int), np.unpackbits(drawn, axis=1)[:, :S]])  # as observed too
    p = float((np.abs((1.0 - 2.0 * bits) @ d) >= abs(d.sum()) * (1 - 1e-12)).mean())
    return replace(
        blank, statistic=observed, p=p, floor=floor, draws=draws, flags=floor_flags(floor)
    )


def needed(generator: np.random.Generator | None, what: str) -> np.random.Generator:
    """The generator, or a TypeError that says what needs one."""
    if generator is None:
        raise TypeError(f"{what} draws at random: pass a numpy Generator")
    return generator


@dataclass(frozen=True)
class Improvement:
    """k of S² pairs in which the arm is higher (ties ½); p: exact Mann–Whitney, two-sided."""

    k: float
    pairs: int
    share: float
    p: float
    floor: float
    interval: Interval


def probability_of_improvement(
    arm: Sequence[float] | Floats, baseline: Sequence[float] | Floats
) -> Improvement:
    """P(a run of the arm beats one of the baseline), unpaired, from one mean per seed: exact p over
    every split of the pooled runs, ties too; from 10 seeds Newcombe's interval.
    """
    x, y = np.asarray(arm, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if not x.size or not y.size or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("probability_of_improvement needs at least one finite mean on each side")
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    splits = math.comb(x.size + y.size, x.size)
    pairs, floor = x.size * y.size, min(2 / splits, 1.0)
    share = float(wins.sum()) / pairs
    interval = _improvement_interval(x.size, y.size, share)
    return Improvement(float(wins.sum()), pairs, share, _exact_splits(x, y), floor, interval)


def _exact_splits(x: Floats, y: Floats) -> float:
    """Share of splits whose rank sum is as far from its mean, counted run by run."""
    doubled = np.rint(2 * distributions.rankdata(np.r_[x, y])).astype(np.int64)
    m, total = x.size, x.size + y.size
    ways = np.zeros((m + 1, int(doubled.sum()) + 1))
    ways[0, 0] = 1.0
    for rank in doubled.tolist():
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    away = np.abs(np.arange(ways.shape[1]) - m * (total + 1))
    seen = abs(int(doubled[:m].sum()) - m * (total + 1))
    return float(ways[m, away >= seen].sum() / ways[m].sum())


def _improvement_interval(m: int, n: int, share: float) -> Interval:
    """Newcombe's (2006, method 5) score interval: the θ with |share − θ| ≤ z·√V(θ), defined at
    complete separation too.

    V(θ) = θ(1−θ)·[1 + c(1−θ)/(2−θ) + cθ/(1+θ)]/(m·n), c = (m+n)/2 − 1. Covers 94–97 % at 10 seeds,
    where Brunner and Munzel's t covers 87–94 % and its logit form 97–98 %.
    """
    blank = Interval("new seeds of both, unpaired", "Newcombe's score interval")
    if min(m, n) < MIN_SEEDS_IMPROVEMENT:
        return replace(blank, undefined=f"{min(m, n)} seeds: none below {MIN_SEEDS_IMPROVEMENT}")
    z, c = float(distributions.norm.isf((1 - LEVEL) / 2)), (m + n) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + c * (1 - theta) / (2 - theta) + c * theta / (1 + theta)
        variance = theta * (1 - theta) * spread / (m * n)
        return abs(share - theta) - z * math.sqrt(variance)

    inside = min(max(share, 1e-9), 1 - 1e-9)  # at 0 and 1 the variance is nil: start beside them
    low = 0.0 if share == 0 else float(optimize.brentq(excess, 0.0, inside, xtol=1e-12))
    high = 1.0 if share == 1 else float(optimize.brentq(excess, inside, 1.0, xtol=1e-12))
    return replace(blank, low=low, high=high)


@dataclass(frozen=True)
class InterquartileMean:
    """Mean of the middle half of the seeds' means on one benchmark, with its interval (A)."""

    value: float | None
    n: int
    interval: Interval
    undefined: str = ""


def interquartile_mean(points: Sequence[float] | Floats) -> InterquartileMean:
    """IQM of seed means, (S,), from 5 seeds (at 3 it would be the mean): ⌊S/4⌋ cut at each end
    (scipy's trim_mean).

    Interval from 6 seeds: Tukey and McLaughlin's, winsorised sd/(h/S·√S), h = S − 2⌊S/4⌋, but with
    h − 2 degrees of freedom: it covers 94–97 % at 6–20 seeds, where the usual h − 1 covers 92–94 %.
    At 5 seeds one degree of freedom would be left: none is given.
    """
    x = np.sort(np.asarray(points, dtype=np.float64))
    S = x.size
    blank = Interval(NEW_SEEDS, "trimmed-mean t (Tukey–McLaughlin)")
    why = f"{S} seeds: none below {MIN_SEEDS_IQM}" if S < MIN_SEEDS_IQM else ""
    if not why and not np.isfinite(x).all():
        why = "a seed's mean is missing"
    if why:
        return InterquartileMean(None, S, replace(blank, undefined=why), why)
    cut = int(0.25 * S)
    h, value = S - 2 * cut, float(distributions.trim_mean(x, 0.25))
    se = float(np.clip(x, x[cut], x[S - cut - 1]).std(ddof=1)) / (h / S * math.sqrt(S))
    if h < 4:
        none = replace(blank, se=se or None, undefined=f"{S} seeds: no interval of the IQM below 6")
        return InterquartileMean(value, S, none)
    if se <= 1e-12 * float(np.abs(x).max()):
        none = replace(blank, undefined="the middle seeds give the same mean")
        return InterquartileMean(value, S, none)
    half = float(distributions.t.isf((1 - LEVEL) / 2, h - 2)) * se
    found = replace(blank, low=value - half, high=value + half, se=se, df=(h - 2.0,))
    return InterquartileMean(value, S, found)


@dataclass(frozen=True)
class Proportion:
    """k of n with Wilson's interval; nothing of nothing."""

    k: int
    n: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


def proportion(k: int, n: int) -> Proportion:
    """k of n with Wilson's interval; undefined at n = 0."""
    if n == 0:
        return Proportion(k, n)
    low, high = proportion_confint(k, n, alpha=1 - LEVEL, method="wilson")
    return Proportion(k, n, k / n, float(low), float(high))


@dataclass(frozen=True)
class JudgeNoise:
    """What the judge alone adds: sd of one judgment (with its chi-square interval) and the noise
    floors it puts under a benchmark.

    floor: standard error of a mean over the items asked for, judged once; of a difference it is √2
    larger. changed: items with unequal repeats.
    """

    changed: Proportion
    df: int = 0
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    floor_difference: float | None = None
    undefined: str = ""


def judge_noise(repeats: Floats, *, items: int) -> JudgeNoise:
    """From ``repeats`` (items × repeats, NaN: missing), pooled within items, for ``items``."""
    counts = (~np.isnan(repeats)).sum(axis=1)
    used, counts = repeats[counts > 1], counts[counts > 1]
    if not len(used):
        return JudgeNoise(proportion(0, 0), undefined="no item was judged twice")
    df = int((counts - 1).sum())
    spread = np.nanmax(used, axis=1) - np.nanmin(used, axis=1)
    changed = proportion(int((spread > 0).sum()), len(used))
    if not spread.any():
        return JudgeNoise(changed, df, undefined="all repeats agree")
    ss = float(np.nansum((used - np.nanmean(used, axis=1, keepdims=True)) ** 2))
    sd = math.sqrt(ss / df)
    ends = (float(distributions.chi2.isf(q, df)) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    low, high = (math.sqrt(ss / end) for end in ends)
    return JudgeNoise(changed, df, sd, low, high, sd / math.sqrt(items), sd * math.sqrt(2 / items))
