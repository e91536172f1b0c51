"""Several arms against one baseline over the same seeds: the pooled headline, Holm, Dunnett, and selection with seeds to spare.

Axis letters: A arms (the baseline among them), S seeds, n item clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special  # type: ignore[import-untyped]
from scipy import stats as distributions
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from analysis.layout import Floats, Layout, complete, paired
from analysis.stats import MIN_SEEDS, NEW_SEEDS, Estimate, Interval, crossed_interval, difference, seed_interval

UNEQUAL_LEVEL = 0.01
"""Size of the check that arms share a seed variance."""
UNEQUAL = "unequal: this arm strays over seeds more than the others; read the paired interval"


@dataclass(frozen=True)
class Member:
    """One arm against the baseline. ``estimate.intervals``: "A", "B" (the headline: pooled with three or more arms), "A_paired", "B_paired".

    dunnett: simultaneous (A) interval over all arms of the family, with its adjusted p. holm: adjusted p by interval name.
    """

    arm: str
    estimate: Estimate
    dunnett: Interval
    holm: Mapping[str, float | None]


@dataclass(frozen=True)
class Family:
    """All arms against ``baseline``; ms: the pooled arm × seed residual mean square of cell means, with its df (None: paired only)."""

    baseline: str
    members: tuple[Member, ...]
    seeds: tuple[int, ...]
    ms: float | None
    df: int | None
    pooled: bool
    flags: tuple[str, ...] = ()

    def __getitem__(self, arm: str) -> Member:
        return next(m for m in self.members if m.arm == arm)


def residual(means: Floats) -> tuple[float, int]:
    """Arm × seed residual of cell means (A, S): MS = Σ(m_as − m_a. − m_.s + m..)²/df, df = (A−1)(S−1)."""
    centred = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0, keepdims=True) + means.mean()
    df = (means.shape[0] - 1) * (means.shape[1] - 1)
    ms = float((centred**2).sum() / max(df, 1))
    return (0.0 if ms < (1e-12 * float(np.abs(means).max())) ** 2 else ms), df


def family(arms: Mapping[str, Layout], baseline: str, *, level: float = 0.95, bar: float = 1.0) -> Family:
    """Every arm minus ``baseline``, paired by seed and item; with three or more arms the headline pools the arm × seed residual.

    Pooled: a² = 2·MS/S with (A−1)(S−1) degrees of freedom, b² of the pair's own D. It assumes that arms share a seed variance and
    that every pair of arms has the same covariance over seeds. An arm that strays over seeds far more than the others do (``stray``
    below 1 %) is flagged "unequal", and then the paired interval is the one to read; so are all arms when the baseline does. Seeds
    not in every arm are left out of the pool (flagged), INCOMPLETE arms too. The order of ``arms`` is the order of members, no more.
    """
    pairs = {name: difference(cell, arms[baseline], level=level, bar=bar) for name, cell in arms.items() if name != baseline}
    usable = {baseline: arms[baseline]} | {name: arms[name] for name, e in pairs.items() if not e.incomplete}
    seeds = tuple(sorted(set.intersection(*(set(cell.seeds) for cell in usable.values()))))
    flags: list[str] = []
    lost = sorted(set().union(*(cell.seeds for cell in usable.values())) - set(seeds))
    if lost:
        flags.append(f"seeds left out of the pool, not in every arm: {', '.join(map(str, lost))}")
    flags += [f"{name} left out: {e.flags[0]}" for name, e in pairs.items() if e.incomplete]
    ms, df, strays = _pool(usable, seeds, bar)
    if strays.get(baseline, 1.0) < UNEQUAL_LEVEL:
        flags.append("unequal: the baseline strays over seeds more than the arms; read the paired intervals")
    if ms is None and len(usable) >= 3:
        flags.append("no pooled residual: " + ("no item cluster is scored in every arm" if len(seeds) >= MIN_SEEDS else f"{len(seeds)} common seeds"))
    members = tuple(_member(name, e, ms, df, len(seeds), strays, level) for name, e in pairs.items())
    names = sorted(pairs)
    adjusted = {key: holm({m.arm: _p(m, key) for m in members}) for key in ("A", "B", "A_paired", "B_paired")}
    critical = dunnett_critical(max(len(usable) - 1, 1), df, level) if ms else None
    done = tuple(
        replace(m, holm={key: adjusted[key][m.arm] for key in adjusted}, dunnett=_dunnett(m, ms, df, len(seeds), len(usable) - 1, critical, level))
        for m in sorted(members, key=lambda m: names.index(m.arm))
    )
    by_name = {m.arm: m for m in done}
    return Family(baseline, tuple(by_name[name] for name in pairs), seeds, ms, df if ms is not None else None, ms is not None, tuple(flags))


def stray(means: Floats) -> Floats:
    """For every arm of ``means`` (A, S): p of the F test that its seed variance is that of the others, against larger.

    MS of m_as − mean of the others (times (A−1)/A, S − 1 degrees of freedom) over the others' own residual: independent when all share
    one variance, so exactly F. (Against a pool that holds the arm itself the ratio can never pass A/2.)
    """
    A, S = means.shape
    p = np.ones(A)
    for a in range(A):
        others = np.delete(means, a, axis=0)
        ms, df = residual(others)
        own = (A - 1) / A * float((means[a] - others.mean(axis=0)).var(ddof=1))
        if ms > 0:
            p[a] = distributions.f.sf(own / ms, S - 1, df)
        elif own > (1e-12 * float(np.abs(means).max())) ** 2:
            p[a] = 0.0
    return p


def _p(member: Member, key: str) -> float | None:
    interval = member.estimate.intervals.get(key)
    return None if interval is None else interval.p


def _pool(usable: Mapping[str, Layout], seeds: tuple[int, ...], bar: float) -> tuple[float | None, int, dict[str, float]]:
    """The residual over clusters scored in every arm, its df, and every arm's ``stray`` p."""
    if len(usable) < 3 or len(seeds) < MIN_SEEDS:
        return None, 0, {}
    clusters = tuple(sorted(set.intersection(*(set(complete(cell.take(seeds), bar)[0].clusters) for cell in usable.values()))))
    if not clusters:
        return None, 0, {}
    rows = []
    for name in sorted(usable):
        cell = usable[name].take(seeds)
        wanted = set(clusters)
        rows.append(cell.keep(np.array([c in wanted for c in cell.clusters])).values.mean(axis=1))
    ms, df = residual(np.array(rows))
    return ms, df, dict(zip(sorted(usable), stray(np.array(rows)).tolist(), strict=True))


def _member(name: str, pair: Estimate, ms: float | None, df: int, seeds: int, strays: Mapping[str, float], level: float) -> Member:
    blank = Interval(NEW_SEEDS, "Dunnett", level, undefined="no pooled residual")
    paired_intervals = {f"{key}_paired": interval for key, interval in pair.intervals.items() if key in "AB"}
    if ms is None or pair.incomplete or pair.squares is None or pair.value is None or seeds != pair.seeds:
        why = () if ms is None or pair.incomplete else ("headline is the paired interval: its seeds are not those of the pool",)
        return Member(name, replace(pair, intervals={**pair.intervals, **paired_intervals}, flags=pair.flags + why), blank, {})
    a2, flags = 2 * ms / seeds, pair.flags
    if strays[name] < UNEQUAL_LEVEL:
        flags += (UNEQUAL,)
    pooled = {
        "A": seed_interval(pair.value, a2, float(df), seeds, null=0.0, level=level),
        "B": crossed_interval(pair.value, a2, float(df), pair.squares, null=0.0, level=level),
    }
    pooled = {key: replace(i, method=f"{i.method}, arm × seed residual pooled over {len(strays)} arms") for key, i in pooled.items()}
    rest = {key: i for key, i in pair.intervals.items() if key not in pooled}
    return Member(name, replace(pair, method="difference, pooled", intervals={**pooled, **paired_intervals, **rest}, flags=flags), blank, {})


def _dunnett(m: Member, ms: float | None, df: int, seeds: int, arms: int, critical: float | None, level: float) -> Interval:
    value = m.estimate.value
    if ms is None or not ms or critical is None or value is None or m.estimate.method != "difference, pooled":
        return m.dunnett
    se = math.sqrt(2 * ms / seeds)
    p = dunnett_p(value / se, arms, df)
    half = critical * se
    return Interval(NEW_SEEDS, f"Dunnett, {arms} arms simultaneously", level, value - half, value + half, se, (float(df),), p)


def dunnett_cdf(q: float, arms: int, df: float) -> float:
    """P(max_j |T_j| ≤ q) for ``arms`` comparisons with one baseline, T_j = d_j/√(2·MS/S): multivariate t with correlations ½.

    With Z_j = (U_j + V)/√2 it is E_χ E_V [Φ(√2·q·s − V) − Φ(−√2·q·s − V)]^arms, s² = χ²_df/df: two Gauss–Legendre sums, accurate to
    about 1e-10 and the same at every call (scipy's own integration is quasi-random, about 1e-4).
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
    """Two-sided p of one of ``arms`` comparisons, adjusted for all of them. With one arm it is Student's."""
    if arms == 1:
        return float(2 * distributions.t.sf(abs(t), df))
    return min(max(1 - dunnett_cdf(abs(t), arms, df), 0.0), 1.0)


def dunnett_critical(arms: int, df: float, level: float = 0.95) -> float:
    """The d with P(max |T_j| ≤ d) = level (Dunnett 1955, two-sided)."""
    low = float(distributions.t.isf((1 - level) / 2, df))
    if arms == 1:
        return low
    high = float(distributions.t.isf((1 - level) / 2 / arms, df))
    return float(optimize.brentq(lambda q: dunnett_cdf(q, arms, df) - level, low * 0.99, high * 1.01, xtol=1e-10))


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm-adjusted p by name, over the whole declared family: an undefined p stays undefined but counts as a member (as 1)."""
    if not p:
        return {}
    names = sorted(p)
    raw = [1.0 if p[name] is None else float(p[name] or 0.0) for name in names]
    adjusted = dict(zip(names, multipletests(raw, method="holm")[1].tolist(), strict=True))
    return {name: None if p[name] is None else adjusted[name] for name in p}


@dataclass(frozen=True)
class Selection:
    """The best of several arms, told on seeds that did not choose it.

    naive: its difference to the baseline on the seeds that chose it (too high on average). estimate: on the others.
    rotated: mean over seeds of the difference of the arm chosen without that seed (no interval: the choices share seeds).
    """

    best: str
    trials: int
    choosing: tuple[int, ...]
    estimating: tuple[int, ...]
    naive: float
    estimate: Estimate
    rotated: float | None
    rotated_choices: tuple[str, ...]
    flags: tuple[str, ...] = ()


def reestimate_best(
    arms: Mapping[str, Layout], baseline: str, *, choosing: Sequence[int] | None = None, level: float = 0.95, bar: float = 1.0
) -> Selection:
    """Choose the arm with the highest mean on ``choosing`` seeds, and estimate its paired difference on the other seeds.

    choosing: default the first half of the common seeds (rounded down, at least 1). Below 3 other seeds the estimate has no interval.
    INCOMPLETE arms cannot be chosen. ``trials`` counts every arm that was tried, complete or not.
    """
    pairs = {name: paired(cell, arms[baseline])[0] for name, cell in arms.items() if name != baseline}
    seeds = sorted(set.intersection(*(set(cell.seeds) for cell in pairs.values()))) if pairs else []
    checked = {name: complete(cell.take(seeds), bar) for name, cell in pairs.items()}
    names = sorted(name for name, (_, reason, _) in checked.items() if not reason)
    if not names or len(seeds) < 2:
        raise ValueError(f"nothing to choose from: {len(names)} complete arms beside {baseline!r}, {len(seeds)} common seeds (2 needed)")
    first = tuple(seeds[: max(len(seeds) // 2, 1)] if choosing is None else sorted(set(choosing)))
    others = tuple(s for s in seeds if s not in first)
    if not set(first) <= set(seeds) or not first or not others:
        raise ValueError(f"choosing seeds {list(first)} must be some, not all, of the common seeds {seeds}")
    D = np.array([checked[name][0].values.mean(axis=1) for name in names])
    at = {s: i for i, s in enumerate(seeds)}
    scores = D[:, [at[s] for s in first]].mean(axis=1)
    best = names[int(scores.argmax())]
    left = [seeds[:i] + seeds[i + 1 :] for i in range(len(seeds))]
    choices = [int(D[:, [at[s] for s in rest]].mean(axis=1).argmax()) for rest in left]
    rotated = float(np.mean([D[c, i] for i, c in enumerate(choices)]))
    estimate = difference(arms[best].take(others), arms[baseline].take(others), level=level, bar=bar)
    flags = tuple(f"{name} could not be chosen: {reason}" for name, (_, reason, _) in checked.items() if reason)
    if int((scores == scores.max()).sum()) > 1:
        flags += ("tied for best: the first by name was taken",)
    return Selection(best, len(pairs), first, others, float(scores.max()), estimate, rotated, tuple(names[c] for c in choices), flags)
