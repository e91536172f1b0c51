"""What could have been detected: the smallest difference seen with 80 % power, and the seeds and
items a given difference needs.

Variance components of a paired difference D_si: σ_s (seeds), σ_i (items), σ_e (the rest); for S
seeds and n item clusters a² = σ_s²/S + σ_e²/(S·n), b² = σ_i²/n, and with ν degrees of freedom of
the seed part

  (A)  MDE = λ_ν·a                                 this benchmark, new seeds
  (B)  MDE = (λ_ν·a² + λ_{n−1}·b²)/√(a² + b²)      new seeds and new items; never under 2.80·σ_i/√n

λ_ν is the shift that a two-sided 5 % t test of ν degrees of freedom detects with 80 % power: 5.65,
3.76, 3.15, 2.80 for ν = 2, 4, 9, ∞. Simulated power at these MDE is 79.5–81.5 % for seed shares of
variance 0–95 % and 3–10 seeds, 78.5–81 % for a pooled headline with its guard. That is with the
true components: where S seeds of two arms estimated σ_s too, the mean true power at the MDE they
give is 59 % at 3 seeds, 68 % at 5, 74 % at 10 (at 3 from 19 to 94 % between the outer tenths),
hence the ranges.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from scipy import optimize, special  # type: ignore[import-untyped]
from scipy import stats as distributions

from analysis.layout import Floats
from analysis.stats import MIN_SEEDS, MeanSquares, cochran_half_width

POWER, SIZE = 0.80, 0.05
MOST_SEEDS, MOST_ITEMS = 1000, 1_000_000
"""Up to which a needed number is looked for."""
Population = Literal["A", "B"]


@dataclass(frozen=True)
class Components:
    """Standard deviations, in the score's units. low, high: 95 % range of an estimated σ_s."""

    sigma_s: float
    sigma_i: float
    sigma_e: float
    low: float | None = None
    high: float | None = None
    df: int | None = None


def from_squares(
    squares: MeanSquares, *, ms: float | None = None, df: int | None = None
) -> Components:
    """Components from the mean squares of D, 2 seeds and 2 clusters or more. ms, df: the pooled
    arm × seed residual of cell means (``Family.ms``, ``Family.df``), if there is one.

    σ_s² = (MS_seed − MS_error)/n, σ_i² = (MS_item − MS_error)/S, not below 0. Range of σ_s:
    MS_seed·ν/χ²; at 2 degrees of freedom the spread over seeds is known within a factor 0.5–6.3.
    """
    S, n, error = squares.seeds, squares.clusters, float(squares.error)
    ms_seed, nu = float(squares.seed), S - 1
    if ms is not None and df is not None:
        ms_seed, nu = 2 * ms * n, df

    def sigma(mean_square: float) -> float:
        return math.sqrt(max(mean_square - error, 0.0) / n)

    low, high = (sigma(ms_seed * nu / float(distributions.chi2.isf(q, nu))) for q in (0.025, 0.975))
    sigma_i = math.sqrt(max(float(squares.item) - error, 0.0) / S)
    return Components(sigma(ms_seed), sigma_i, math.sqrt(error), low, high, nu)


@lru_cache(maxsize=256)
def _nodes(df: float) -> tuple[Floats, Floats]:
    """Nodes and weights for the mean over χ²_df/df (Gauss–Legendre in χ)."""
    x, w = np.polynomial.legendre.leggauss(96)
    low, high = distributions.chi.ppf([1e-13, 1 - 1e-13], df)
    z = low + (x + 1) / 2 * (high - low)
    w = w * distributions.chi.pdf(z, df)
    return z**2 / df, w / w.sum()


def power_at(delta: float, a2: float, df_a: float, b2: float = 0.0, df_b: float = 1.0) -> float:
    """Probability that Cochran's interval leaves out 0 when the truth is ``delta``: mean over the
    chi-squares of both variances (2-d quadrature).
    """
    total = math.sqrt(a2 + b2)
    if total == 0:
        return 1.0 if delta else SIZE
    (x, w), (y, v) = _nodes(df_a), _nodes(df_b) if b2 > 0 else (np.ones(1), np.ones(1))
    half = cochran_half_width(a2 * x[:, None], df_a, b2 * y[None, :], df_b, 1 - SIZE)
    return float(
        w @ (special.ndtr((delta - half) / total) + special.ndtr((-delta - half) / total)) @ v
    )


@lru_cache(maxsize=1024)
def multiplier(df: float) -> float:
    """λ_df, in standard errors (scipy's noncentral t fails at few df)."""
    t = float(distributions.t.isf(SIZE / 2, df))
    return float(
        optimize.brentq(lambda shift: power_at(shift, 1.0, df) - POWER, 0.0, 4 * t + 10, xtol=1e-10)
    )


@dataclass(frozen=True)
class Detectable:
    """low, high: over the range of σ_s. floor: what no number of seeds can undercut ((B))."""

    value: float | None
    low: float | None
    high: float | None
    floor: float
    undefined: str = ""


def seed_df(seeds: int, arms: int = 2) -> int:
    """Degrees of freedom of the seed part: S − 1, pooled (A−1)(S−1) with three or more arms."""
    return (seeds - 1) * (max(arms, 2) - 1)


def _mde(
    sigma_s: float, c: Components, seeds: int, clusters: int, arms: int, population: Population
) -> float:
    a2 = sigma_s**2 / seeds + c.sigma_e**2 / (seeds * clusters)
    b2 = c.sigma_i**2 / clusters if population == "B" else 0.0
    if a2 + b2 == 0:
        return 0.0
    shift_b = multiplier(max(clusters - 1, 1)) if b2 > 0 else 0.0
    return (multiplier(seed_df(seeds, arms)) * a2 + shift_b * b2) / math.sqrt(a2 + b2)


def detectable(
    c: Components, seeds: int, clusters: int, population: Population = "B", *, arms: int = 2
) -> Detectable:
    """Smallest difference found with 80 % power by a two-sided 5 % test, in the score's units."""
    shift = float(distributions.norm.isf(SIZE / 2) + distributions.norm.ppf(POWER))
    floor = shift * c.sigma_i / math.sqrt(clusters) if population == "B" else 0.0
    if seeds < MIN_SEEDS or (clusters < 2 and population == "B"):
        why = f"{seeds} seeds, {clusters} items: no interval, so nothing is detectable"
        return Detectable(None, None, None, floor, why)
    value, low, high = (
        None if sigma_s is None else _mde(sigma_s, c, seeds, clusters, arms, population)
        for sigma_s in (c.sigma_s, c.low, c.high)
    )
    if value == 0:
        return Detectable(None, None, None, floor, "no variance in the components")
    return Detectable(value, low, high, floor)


@dataclass(frozen=True)
class Needed:
    """Seeds (or items) for ``delta``; low, high: with σ_s at the ends of its range. None: not
    within the limit (``reason`` when the value is).
    """

    value: int | None
    low: int | None
    high: int | None
    limit: int
    reason: str = ""


def seeds_needed(
    c: Components, delta: float, clusters: int, population: Population = "B", *, arms: int = 2
) -> Needed:
    """Fewest seeds that detect ``delta`` > 0 on ``clusters`` items. Says so when the items alone
    forbid it ((B): delta under 2.80·σ_i/√n).
    """

    def enough(sigma_s: float, S: int) -> bool:
        return _mde(sigma_s, c, S, clusters, arms, population) <= delta

    floor = detectable(c, MIN_SEEDS, clusters, population).floor
    forbidden = f"items alone allow no less than {floor:.3g}: more items, not more seeds"
    reason = forbidden if floor > delta else f"more than {MOST_SEEDS} seeds"
    return _needed(c, enough, MIN_SEEDS, MOST_SEEDS, reason)


def items_needed(
    c: Components, delta: float, seeds: int, population: Population = "B", *, arms: int = 2
) -> Needed:
    """Fewest item clusters that detect ``delta`` > 0 with ``seeds``. Says so when the seeds alone
    forbid it (λ_ν·σ_s/√S over delta).
    """
    if seeds < MIN_SEEDS:
        return Needed(None, None, None, MOST_ITEMS, f"{seeds} seeds: no interval below {MIN_SEEDS}")

    def enough(sigma_s: float, n: int) -> bool:
        return _mde(sigma_s, c, seeds, n, arms, population) <= delta

    floor = multiplier(seed_df(seeds, arms)) * c.sigma_s / math.sqrt(seeds)
    forbidden = f"seeds alone allow no less than {floor:.3g}: more seeds, not more items"
    reason = forbidden if floor > delta else f"more than {MOST_ITEMS} items"
    return _needed(c, enough, 2, MOST_ITEMS, reason)


def _needed(
    c: Components, enough: Callable[[float, int], bool], start: int, limit: int, reason: str
) -> Needed:
    """Smallest numbers from ``start`` to ``limit`` that are enough (as are all larger ones), by σ_s
    and the ends of its range. reason: why there is none at σ_s.
    """

    def first(sigma_s: float | None) -> int | None:
        if sigma_s is None or not enough(sigma_s, limit):
            return None
        numbers = range(start, limit + 1)
        return numbers[bisect_left(numbers, True, key=partial(enough, sigma_s))]

    value = first(c.sigma_s)
    return Needed(value, first(c.low), first(c.high), limit, reason if value is None else "")
