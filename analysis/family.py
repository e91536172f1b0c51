"""Arms against a baseline: trend, pooled headline, Holm, Dunnett, selection with seeds to spare.
Axis letters: A arms (the baseline among them), S seeds, n item clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special  # type: ignore[import-untyped]
from scipy import stats as distributions  # type: ignore[import-untyped]

from analysis.layout import Floats, Layout, complete, paired
from analysis.rank import Permutation, floor_flags
from analysis.stats import (
    LEVEL,
    MIN_SEEDS,
    NEW_SEEDS,
    Estimate,
    Interval,
    crossed_interval,
    difference,
    mean_over_seeds,
    seed_interval,
)

MOST_ARMS = 14
"""Arms up to which Page's test counts all A! orders of a seed; there is none beyond."""
STRAY_SIZE, APART_SIZE = 0.005, 0.01
"""Sizes of the checks of a shared seed variance: of one arm alone, and of a difference."""
POOLED = "difference, pooled"
"""``Estimate.method`` of an arm whose headline is pooled."""
_NO_PAGE = Permutation(
    "these seeds, every order of the arms equally likely", "Page's L", None, None, None, 0
)


# -- a trend ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trend:
    """estimate: slope with "A" and "B"; page and p_directed: in the declared direction."""

    alphas: tuple[float, ...]
    estimate: Estimate
    page: Permutation
    p_directed: float | None
    flags: tuple[str, ...] = ()


def trend(arms: Mapping[float, Layout], expected: str, *, min_complete: float = 1.0) -> Trend:
    """Trend of the score in α, seeds as blocks. expected: "falling" or "rising", declared before
    the data were seen.

    Slope: C_si = Σ_α (x_α − x̄)·Y_αsi / Σ(x_α − x̄)², x the rank of α; C is a layout like any other,
    so (A) and (B) and their p are those of a mean. ``p_directed`` is (A)'s one-sided p. page:
    Page's L on ranks within a seed, every order within a seed equally likely (exact with ties, up
    to 14 arms), floor (A!)^{−S}.
    """
    if expected not in ("falling", "rising"):
        raise ValueError(f"expected is {expected!r}; declare 'falling' or 'rising'")
    alphas = sorted(arms)
    if len(alphas) < 3:
        raise ValueError(f"a trend needs three values of α; got {len(alphas)}")
    x = np.arange(len(alphas), dtype=float)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    cells = [arms[alpha] for alpha in alphas]
    common, flags = cells[0], ()  # type: tuple[Layout, tuple[str, ...]]
    for cell in cells[1:]:
        common, lost = paired(common, cell)
        flags += lost
    parts = [cell.take(common.seeds).spread(common.clusters).values for cell in cells]
    contrast = np.sum([w * part for w, part in zip(weights, parts, strict=True)], axis=0)
    slope = replace(common, values=contrast, low=None, high=None)  # a slope has no bounds
    estimate = mean_over_seeds(slope, null=0.0, min_complete=min_complete)
    sign = -1.0 if expected == "falling" else 1.0
    a, directed = estimate.intervals["A"], None
    if estimate.value is not None and a.se and a.df:
        directed = float(distributions.t.sf(sign * estimate.value / a.se, a.df[0]))
    used, reason, _ = complete(slope, min_complete)
    page = replace(_NO_PAGE, undefined=reason)
    if not reason:
        there = np.isin(np.array(slope.clusters), np.array(used.clusters))
        means = np.array([part[:, there].mean(axis=1) for part in parts]).T
        page = page_trend(means * sign)
    estimate = replace(estimate, method="slope on rank of α")
    return Trend(tuple(alphas), estimate, page, directed, tuple(dict.fromkeys(flags)))


def page_trend(means: Floats) -> Permutation:
    """Page's L of ``means`` (S, A): one-sided p = P(L* ≥ L) over all orders within every row, the
    convolution of the rows' own distributions (midranks). Undefined above 14 arms.
    """
    S, A = means.shape
    ranks = np.array([distributions.rankdata(row) for row in means])
    place = np.arange(1, A + 1, dtype=np.float64)
    L, floor = float((ranks @ place).sum()), math.factorial(A) ** -float(S)
    found = replace(_NO_PAGE, n=S, statistic=L)
    if all(np.ptp(row) == 0 for row in ranks):
        return replace(found, undefined="all arms are tied in every seed")
    if A > MOST_ARMS:
        return replace(found, undefined=f"{A} arms: none above {MOST_ARMS}")
    null = np.ones(1)
    for row in ranks:
        null = np.convolve(null, _orders(tuple(sorted(np.rint(2 * row).astype(int).tolist()))))
    p = min(float(null[round(2 * L) :].sum()), 1.0)
    return replace(found, p=p, floor=floor, flags=floor_flags(floor))


@lru_cache(maxsize=64)
def _orders(doubled: tuple[int, ...]) -> Floats:
    """Share of the A! orders of a row by twice its L; doubled: twice its ranks, ascending. Counted
    place by place, by which ranks stand in the places so far.
    """
    A = len(doubled)
    width = 1 + sum(place * rank for place, rank in enumerate(doubled, 1))
    counts = {0: np.eye(1, width)[0]}
    for place in range(1, A + 1):
        longer: dict[int, Floats] = {}
        for used, count in counts.items():
            for i, rank in enumerate(doubled):
                if not used & 1 << i:
                    to = longer.setdefault(used | 1 << i, np.zeros(width))
                    to[place * rank :] += count[: width - place * rank]
        counts = longer
    return np.asarray(counts[(1 << A) - 1] / math.factorial(A))


# -- the arms' residual over seeds -----------------------------------------------------------------
def residual(means: Floats) -> tuple[Floats, int]:
    """MS = Σ(m_as − m_a. − m_.s + m..)²/df of cell means (…, A, S), df = (A−1)(S−1)."""
    A, S = means.shape[-2:]
    of_arm, of_seed = means.mean(axis=-1, keepdims=True), means.mean(axis=-2, keepdims=True)
    rest = means - of_arm - of_seed + means.mean(axis=(-2, -1), keepdims=True)
    df = (A - 1) * (S - 1)
    ms = (rest**2).sum(axis=(-2, -1)) / max(df, 1)
    return np.where(ms < _tiny(means), 0.0, ms), df


def _tiny(means: Floats) -> Floats:
    """A variance below it is rounding."""
    return np.asarray((1e-12 * np.abs(means).max(axis=(-2, -1))) ** 2)


def _f_test(own: Floats, rest: Floats, tiny: Floats, df: tuple[int, int]) -> Floats:
    """p of own/rest against F with these degrees of freedom; rounding is no variance."""
    with_rest = own / np.where(rest > tiny, rest, 1.0)
    ratio = np.where(rest > tiny, with_rest, np.where(own > tiny, np.inf, 1.0))
    return np.asarray(distributions.f.sf(ratio, *df))


def stray(means: Floats, arm: int) -> Floats:
    """p of the F test that one arm of ``means`` (…, A, S) has the seed variance of the others,
    against a larger one.

    MS of m_as − mean of the others (times (A−1)/A, S − 1 degrees of freedom) over the others' own
    residual: independent when all share one variance, so exactly F. (Against a pool that holds the
    arm itself the ratio can never pass A/2.)
    """
    A, S = means.shape[-2:]
    others = np.delete(means, arm, axis=-2)
    ms, df = residual(others)
    own = (A - 1) / A * (means[..., arm, :] - others.mean(axis=-2)).var(axis=-1, ddof=1)
    own = np.where(own < _tiny(means), 0.0, own)
    return _f_test(own, ms, np.zeros(()), (S - 1, df))


def apart(means: Floats, arm: int, baseline: int) -> Floats:
    """p of the F test that one arm's difference to the baseline varies over seeds as the rest of
    the residual does, against more.

    The contrast (m_as − m_0s)/√2 and the residual without it are independent under the pooled
    model: exactly F, S − 1 and (A−2)(S−1) degrees of freedom. It sees what ``stray`` cannot: a
    spread that grows with α.
    """
    A, S = means.shape[-2:]
    ms, df = residual(means)
    own = ((means[..., arm, :] - means[..., baseline, :]) / math.sqrt(2)).var(axis=-1, ddof=1)
    df_rest = (A - 2) * (S - 1)
    rest = np.maximum(ms * df - own * (S - 1), 0.0) / df_rest
    return _f_test(own, rest, _tiny(means), (S - 1, df_rest))


def unequal(means: Floats, arm: int, baseline: int) -> NDArray[np.bool_]:
    """Whether an F test (size 2 % together) finds that the pool does not speak for this pair."""
    alone = np.minimum(stray(means, arm), stray(means, baseline))
    return np.asarray((alone < STRAY_SIZE) | (apart(means, arm, baseline) < APART_SIZE))


# -- a family --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Family:
    """Every arm's difference to the baseline: intervals "A" and "B" (pooled with three or more
    arms), "A_paired", "B_paired", and "dunnett", simultaneous (A) over all arms. ms, df: the pooled
    arm × seed residual (None: paired only).
    """

    arms: Mapping[str, Estimate]
    ms: float | None = None
    df: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pool:
    """arms: how many different ones; unequal: names whose headline is the paired interval."""

    seeds: tuple[int, ...]
    ms: float
    df: int
    arms: int
    unequal: frozenset[str]


def family(arms: Mapping[str, Layout], baseline: str, *, min_complete: float = 1.0) -> Family:
    """Every arm minus ``baseline``, paired by seed and item; with three or more arms the headline
    pools the arm × seed residual.

    Pooled: a² = 2·MS/S with (A−1)(S−1) degrees of freedom, b² of the pair's own D. It assumes that
    arms share a seed variance and that every two have the same covariance over seeds. Where the
    data say otherwise (``unequal``, size 2 %), the headline goes back to the paired interval,
    Dunnett's is withheld, and the flag "unequal" says so; that costs one point of power when all
    are equal. Few seeds cannot say much: for one arm of three times the others' seed spread the
    headline covers 85–91 % at 3 seeds, 89–92 % at 5, 92–94 % at 10; for the largest of five α whose
    seed spread grows with α (to 2.2 times the smallest's) 87–91 %. So the paired interval, which
    holds whatever the arms do, is always beside it. Seeds not in every arm are left out of the pool
    (flagged), INCOMPLETE arms and those of too few seeds for an interval too.
    """
    ours = arms[baseline]
    pairs = {
        name: difference(cell, ours, min_complete=min_complete)
        for name, cell in arms.items()
        if name != baseline
    }
    usable = {baseline: ours} | {
        name: arms[name] for name, e in pairs.items() if not e.incomplete and e.seeds >= MIN_SEEDS
    }
    pool, flags = _pool(usable, baseline, min_complete)
    flags += [f"{name} left out: {e.flags[0]}" for name, e in pairs.items() if e.incomplete]
    told = {name: _headline(name, pair, pool) for name, pair in pairs.items()}
    if pool is None:
        return Family(told, flags=tuple(flags))
    return Family(told, pool.ms, pool.df, tuple(flags))


def _pool(
    usable: Mapping[str, Layout], baseline: str, min_complete: float
) -> tuple[_Pool | None, list[str]]:
    """The residual over what is scored in every arm; copies of an arm are counted once."""
    if len(usable) < 3:
        return None, []
    names, flags = sorted(usable), []
    seeds = tuple(sorted(set.intersection(*(set(cell.seeds) for cell in usable.values()))))
    lost = sorted(set().union(*(cell.seeds for cell in usable.values())) - set(seeds))
    if lost:
        told = ", ".join(map(str, lost))
        flags.append(f"seeds left out of the pool, not in every arm: {told}")
    if len(seeds) < MIN_SEEDS:
        return None, [*flags, f"no pooled residual: {len(seeds)} common seeds"]
    cells = [complete(usable[name].take(seeds), min_complete)[0] for name in names]
    clusters = set.intersection(*(set(cell.clusters) for cell in cells))
    if not clusters:
        return None, [*flags, "no pooled residual: no item cluster is scored in every arm"]
    shared = [cell.keep(np.array([c in clusters for c in cell.clusters])) for cell in cells]
    rows = np.array([cell.values.mean(axis=1) for cell in shared])
    different, which = np.unique(rows, axis=0, return_inverse=True)
    if len(different) < 3:
        return None, [*flags, f"no pooled residual: {len(different)} different arms"]
    ms, df = residual(different)
    place = dict(zip(names, which.ravel().tolist(), strict=True))
    off = frozenset(
        name
        for name in names
        if place[name] != place[baseline] and bool(unequal(different, place[name], place[baseline]))
    )
    return _Pool(seeds, float(ms), df, len(different), off), flags


def _headline(name: str, pair: Estimate, pool: _Pool | None) -> Estimate:
    """A paired difference with the intervals of a family."""
    beside = {f"{key}_paired": pair.intervals[key] for key in "AB" if key in pair.intervals}
    intervals = {**pair.intervals, **beside}
    why = "no pooled residual"
    if pair.value is None or pair.squares is None:
        why = pair.flags[0]
    elif pool is not None:
        why = ""
        if len(pool.seeds) != pair.seeds:
            why = "the headline is the paired interval: its seeds are not those of the pool"
        elif name in pool.unequal:
            why = (
                "unequal: this difference varies over seeds more than the other arms do, so "
                "the headline is the paired interval"
            )
        pair = replace(pair, flags=(*pair.flags, why) if why else pair.flags)
    if why or pool is None or pair.value is None or pair.squares is None:
        intervals["dunnett"] = Interval(NEW_SEEDS, "Dunnett", undefined=why)
        return replace(pair, intervals=intervals)
    a2, df = 2 * pool.ms / len(pool.seeds), float(pool.df)
    pooled = {
        "A": seed_interval(pair.value, a2, df, pair.seeds, null=0.0),
        "B": crossed_interval(pair.value, a2, df, pair.squares, null=0.0),
    }
    for key, interval in pooled.items():
        method = f"{interval.method}, arm × seed residual pooled over {pool.arms} arms"
        intervals[key] = replace(interval, method=method)
    intervals["dunnett"] = _dunnett(pair.value, a2, pool.arms - 1, df)
    return replace(pair, method=POOLED, intervals=intervals)


def _dunnett(value: float, a2: float, arms: int, df: float) -> Interval:
    found = Interval(NEW_SEEDS, f"Dunnett, {arms} arms simultaneously", df=(df,))
    if a2 <= 0:
        return replace(found, undefined="all seeds give the same difference")
    se = math.sqrt(a2)
    half, p = dunnett_critical(arms, df) * se, dunnett_p(value / se, arms, df)
    return replace(found, low=value - half, high=value + half, se=se, p=p)


def dunnett_cdf(q: float, arms: int, df: float) -> float:
    """P(max_j |T_j| ≤ q) for ``arms`` comparisons with one baseline, T_j = d_j/√(2·MS/S):
    multivariate t with correlations ½.

    With Z_j = (U_j + V)/√2 it is E_χ E_V [Φ(√2·q·s − V) − Φ(−√2·q·s − V)]^arms, s² = χ²_df/df: two
    Gauss–Legendre sums, accurate to about 1e-10 and the same at every call (scipy's own integration
    is quasi-random, about 1e-4).
    """
    x, w = np.polynomial.legendre.leggauss(160)
    v, wv = 9.0 * x, 9.0 * w * distributions.norm.pdf(9.0 * x)
    ends = distributions.chi.ppf([1e-14, 1 - 1e-14], df)
    z = ends[0] + (x + 1) / 2 * (ends[1] - ends[0])
    wz = w * distributions.chi.pdf(z, df)
    h = math.sqrt(2 / df) * q * z[:, None]
    inner = special.ndtr(h - v[None, :]) - special.ndtr(-h - v[None, :])
    return float((wz / wz.sum()) @ (inner**arms @ (wv / wv.sum())))


def dunnett_p(t: float, arms: int, df: float) -> float:
    """Two-sided p adjusted for ``arms`` comparisons; with one arm Student's."""
    if arms == 1:
        return float(2 * distributions.t.sf(abs(t), df))
    return min(max(1 - dunnett_cdf(abs(t), arms, df), 0.0), 1.0)


@lru_cache(maxsize=64)
def dunnett_critical(arms: int, df: float) -> float:
    """The d with P(max |T_j| ≤ d) = 0.95 (Dunnett 1955, two-sided)."""
    low = float(distributions.t.isf((1 - LEVEL) / 2, df))
    if arms == 1:
        return low
    high = float(distributions.t.isf((1 - LEVEL) / 2 / arms, df))

    def excess(q: float) -> float:
        return dunnett_cdf(q, arms, df) - LEVEL

    return float(optimize.brentq(excess, low * 0.99, high * 1.01, xtol=1e-10))


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm-adjusted p by name; an undefined p stays undefined but counts as a member (as 1)."""
    names = sorted(p)
    raw = np.array([1.0 if p[name] is None else p[name] for name in names], dtype=float)
    # statsmodels' own collects garbage at every call, a quarter of a report's time
    order = np.argsort(raw, kind="stable")
    steps = raw[order] * np.arange(len(raw), 0, -1)
    values = np.minimum(np.maximum.accumulate(steps), 1.0)
    adjusted = {names[at]: float(value) for at, value in zip(order, values, strict=True)}
    return {name: None if p[name] is None else adjusted[name] for name in p}


# -- the best arm ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Selection:
    """The best arm, told on seeds that did not choose it. naive: its difference where it was chosen
    (too good on average). rotated: mean of the differences of leave-one-seed-out choices.
    """

    best: str
    trials: int
    choosing: tuple[int, ...]
    estimating: tuple[int, ...]
    naive: float
    estimate: Estimate
    rotated: float
    rotated_choices: tuple[str, ...]
    flags: tuple[str, ...] = ()


def reestimate_best(
    arms: Mapping[str, Layout], baseline: str, *, better: int = 1, min_complete: float = 1.0
) -> Selection:
    """Choose the best mean on the first half of the common seeds (at least 1), estimate its paired
    difference on the others (no interval below 3). ``trials`` counts INCOMPLETE arms too.
    """
    ours, sign = arms[baseline], better or 1
    pairs = {name: paired(cell, ours)[0] for name, cell in arms.items() if name != baseline}
    seeds = sorted(set.intersection(*(set(cell.seeds) for cell in pairs.values()))) if pairs else []
    checked = {name: complete(cell.take(seeds), min_complete) for name, cell in pairs.items()}
    reasons = {name: reason for name, (_, reason, _) in checked.items() if reason}
    names = sorted(checked.keys() - reasons.keys())
    if not names or len(seeds) < 2:
        raise ValueError(
            f"nothing to choose from: {len(names)} complete arms beside {baseline!r}, "
            f"{len(seeds)} common seeds (2 needed)"
        )
    half = max(len(seeds) // 2, 1)
    first, others = tuple(seeds[:half]), tuple(seeds[half:])
    D = np.array([checked[name][0].values.mean(axis=1) for name in names])
    scores = D[:, :half].mean(axis=1)
    chosen = int((sign * scores).argmax())
    rest = (np.delete(D, i, axis=1).mean(axis=1) for i in range(len(seeds)))
    choices = [int((sign * means).argmax()) for means in rest]
    flags = [
        f"{name} could not be chosen: {reason}"
        for name, (_, reason, _) in checked.items()
        if reason
    ]
    if int((scores == scores[chosen]).sum()) > 1:
        flags.append("tied for best: the first by name was taken")
    best = names[chosen]
    return Selection(
        best,
        len(pairs),
        first,
        others,
        float(scores[chosen]),
        difference(arms[best].take(others), ours.take(others), min_complete=min_complete),
        float(np.mean([D[c, i] for i, c in enumerate(choices)])),
        tuple(names[c] for c in choices),
        tuple(flags),
    )
