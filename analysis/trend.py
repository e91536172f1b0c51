"""The declared trend test: does a score fall or rise with α, seeds as blocks?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats as distributions  # type: ignore[import-untyped]

from analysis.layout import Floats, Layout, complete, paired
from analysis.rank import Permutation, floor_flags, needed
from analysis.stats import Estimate, mean_over_seeds

EXACT_ARMS = 7
"""Arms up to which all A! orders of a seed are listed."""
ORDERS = "these seeds, every order of the arms equally likely"


@dataclass(frozen=True)
class Trend:
    """Does a score fall or rise with α? estimate: slope over seeds with "A" and "B"; page:
    one-sided exact p in the declared direction.

    x: the positions the slope is taken on, one per α. rho: Spearman of α and score for every seed.
    """

    expected: str
    alphas: tuple[float, ...]
    x: tuple[float, ...]
    estimate: Estimate
    rho: tuple[float | None, ...]
    page: Permutation
    p_directed: float | None
    flags: tuple[str, ...] = ()


def trend(
    arms: Mapping[float, Layout],
    expected: str,
    *,
    scale: str = "rank",
    level: float = 0.95,
    bar: float = 1.0,
    generator: np.random.Generator | None = None,
) -> Trend:
    """Trend of the score in α, seeds as blocks. expected: "falling" or "rising", declared before
    the data were seen.

    Slope: C_si = Σ_α (x_α − x̄)·Y_αsi / Σ(x_α − x̄)², x the rank of α, α itself ("linear") or log10
    α ("log", α > 0 only); C is a layout like any other, so (A) and (B) and their p are those of a
    mean. ``p_directed`` is (A)'s one-sided p. page: Page's L on ranks within a seed, every order
    within a seed equally likely (exact with ties up to 7 arms), floor (A!)^{−S}.
    """
    if expected not in ("falling", "rising"):
        raise ValueError(f"expected is {expected!r}; declare 'falling' or 'rising'")
    alphas = sorted(a for a in arms if scale != "log" or a > 0)
    flags = ("α = 0 is not on a log scale and was left out",) if len(alphas) < len(arms) else ()
    if len(alphas) < 3 or scale not in ("rank", "linear", "log"):
        raise ValueError(
            f"a trend needs three values of α and scale rank, linear or log; got {len(alphas)} "
            f"values, scale {scale!r}"
        )
    x = np.array(
        {
            "rank": list(range(len(alphas))),
            "linear": alphas,
            "log": [math.log10(a) if a > 0 else 0.0 for a in alphas],
        }[scale],
        dtype=float,
    )
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slope, lost = _contrast([arms[a] for a in alphas], weights)
    estimate = mean_over_seeds(slope, null=0.0, level=level, bar=bar)
    sign = -1.0 if expected == "falling" else 1.0
    a = estimate.intervals["A"]
    directed = None
    if estimate.value is not None and a.se and a.df:
        directed = float(distributions.t.sf(sign * estimate.value / a.se, a.df[0]))
    means = _block_means([arms[v] for v in alphas], slope, bar)
    rho = tuple(_rho(row) for row in means)
    page = (
        page_trend(means * sign, generator)
        if means.size
        else replace(_NO_PAGE, undefined="; ".join(estimate.flags) or "no scores")
    )
    return Trend(
        expected,
        tuple(alphas),
        tuple(x.tolist()),
        replace(estimate, method=f"slope on {scale} of α"),
        rho,
        page,
        directed,
        flags + lost,
    )


def _contrast(cells: Sequence[Layout], weights: Floats) -> tuple[Layout, tuple[str, ...]]:
    """Σ weights·Y over common seeds, as a layout (no bounds: a slope has none of its own)."""
    total, flags = cells[0], ()  # type: tuple[Layout, tuple[str, ...]]
    for cell in cells[1:]:
        total, lost = paired(total, cell)
        flags += lost
    parts = [cell.take(total.seeds).spread(total.clusters) for cell in cells]
    values = np.sum([w * p.values for w, p in zip(weights, parts, strict=True)], axis=0)
    return replace(total, values=values, low=None, high=None), tuple(dict.fromkeys(flags))


def _block_means(cells: Sequence[Layout], slope: Layout, bar: float) -> Floats:
    used, reason, _ = complete(slope, bar)
    if reason:
        return np.empty((0, len(cells)))
    parts = [cell.take(used.seeds).spread(slope.clusters) for cell in cells]
    there = np.isin(np.array(slope.clusters), np.array(used.clusters))
    return np.array([part.values[:, there].mean(axis=1) for part in parts]).T


def _rho(row: Floats) -> float | None:
    return (
        None
        if np.ptp(row) == 0
        else float(distributions.spearmanr(np.arange(row.size), row).statistic)
    )


_NO_PAGE = Permutation(ORDERS, "Page's L", None, None, None, 0)


def page_trend(
    means: Floats, generator: np.random.Generator | None = None, *, draws: int = 19_999
) -> Permutation:
    """Page's L for scores rising along the columns of ``means`` (S, A): one-sided p = P(L* ≥ L)
    over all orders within every row.

    Up to 7 arms the null is the exact convolution of the rows' own distributions (midranks, so ties
    are exact); beyond, drawn.
    """
    S, A = means.shape
    ranks = np.array([distributions.rankdata(row) for row in means])
    place = np.arange(1, A + 1, dtype=np.float64)
    L, floor = float((ranks @ place).sum()), math.factorial(A) ** -float(S)
    blank = replace(_NO_PAGE, n=S, statistic=L)
    if all(np.ptp(row) == 0 for row in ranks):
        return replace(blank, undefined="all arms are tied in every seed")
    if A <= EXACT_ARMS:
        orders = np.array(list(itertools.permutations(range(A))))
        null = np.ones(1)
        for row in ranks:
            doubled = np.rint(2 * (row[orders] @ place)).astype(np.int64)
            null = np.convolve(null, np.bincount(doubled) / len(orders))
        return replace(
            blank,
            p=min(float(null[round(2 * L) :].sum()), 1.0),
            floor=floor,
            flags=floor_flags(floor),
        )
    rng = needed(generator, f"Page's test with more than {EXACT_ARMS} arms")
    drawn = np.sum(
        [rng.permuted(np.tile(row, (draws, 1)), axis=1) @ place for row in ranks], axis=0
    )
    hits = int((drawn >= L - 1e-9).sum())
    return replace(blank, p=(1 + hits) / (1 + draws), floor=1 / (1 + draws), draws=draws)
