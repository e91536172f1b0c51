"""Coverage, size and power of every interval and test of the analysis, by simulation.

    python -m benchmarks.bench_coverage [--quick] [--out results/bench]

Scores are drawn as seed + item + rest (crossed), with 0, 20, 50, 80 and 95 % of the variance of the
mean from seeds, at 3, 5 and 10 seeds; then with what breaks the normal model. Prints a table and
writes ``coverage.json``. Rows whose target is empty are limits that are shown, not promises: each
of them is carried as a flag or as a sentence in the docstring of the estimator.

Axis letters: R simulated studies, S seeds, n item clusters, A arms.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special
from scipy import stats as distributions

from analysis.family import dunnett_critical, page_trend, residual, unequal
from analysis.layout import Floats, from_array
from analysis.power import Components, detectable
from analysis.rank import interquartile_mean, probability_of_improvement, sign_flip
from analysis.stats import Interval, MeanSquares, cochran_half_width, one_checkpoint, two_way
from benchmarks import OUT, write

SHARES = (0.0, 0.2, 0.5, 0.8, 0.95)
SEEDS = (3, 5, 10)
COVERAGE, POWER, SIZE, AT_MOST = (0.93, 0.975), (0.78, 0.82), (0.04, 0.06), (0.0, 0.05)
Target = tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """A simulated rate; ``ok`` allows twice the Monte Carlo error, None: only shown."""

    what: str
    estimator: str
    seeds: int
    clusters: int
    share: float | None
    rate: float
    draws: int
    target: Target

    @property
    def ok(self) -> bool | None:
        if self.target is None:
            return None
        slack = 2 * math.sqrt(max(self.rate * (1 - self.rate), 1e-4) / self.draws)
        return self.target[0] - slack <= self.rate <= self.target[1] + slack


def rate(
    what: str, estimator: str, seeds: int, clusters: int, share: float | None, hits: Any, to: Target
) -> Row:
    """The row of ``hits``, one truth value a simulated study, with its target."""
    found = np.asarray(hits, dtype=bool)
    return Row(what, estimator, seeds, clusters, share, float(found.mean()), found.size, to)


def sigmas(S: int, n: int, share: float, item_part: float = 0.5) -> Components:
    """Var(mean) = 1, ``share`` of it from seeds; σ_i² : σ_e² = item_part : 1 − item_part."""
    rest = (1 - share) / (item_part / n + (1 - item_part) / (S * n))
    return Components(*np.sqrt([share * S, rest * item_part, rest * (1 - item_part)]).tolist())


def crossed(
    rng: np.random.Generator, R: int, S: int, n: int, c: Components, skewed: bool = False
) -> tuple[Floats, Floats]:
    """Scores (R, S, n) with population mean 0, and the mean (R,) of their own items."""
    seed = rng.exponential(1.0, (R, S, 1)) - 1 if skewed else rng.standard_normal((R, S, 1))
    item = c.sigma_i * rng.standard_normal((R, 1, n))
    rest = c.sigma_e * rng.standard_normal((R, S, n))
    return c.sigma_s * seed + item + rest, item.mean(axis=(1, 2))


def halves(a2: Floats, df: int, q: MeanSquares) -> tuple[Floats, Floats]:
    """Half-widths (R,) of (A) and (B)."""
    a = cochran_half_width(a2, df, 0 * a2, 1)
    return a, cochran_half_width(a2, df, q.b2, q.clusters - 1)


def blocks(R: int, size: int) -> Iterator[int]:
    """R in parts of at most ten million numbers."""
    part = max(1, 10_000_000 // size)
    yield from (min(part, R - start) for start in range(0, R, part))


def means(rng: np.random.Generator, R: int, what: str = "mean", n: int = 80) -> Iterator[Row]:
    """(A) and (B) of a mean or a difference: coverage, and power at the detectable effect."""
    for S, share in itertools.product(SEEDS, SHARES):
        c = sigmas(S, n, share)
        shift_a = detectable(c, S, n, "A").value or 0.0
        shift_b = detectable(c, S, n, "B").value or 0.0
        hits = dict.fromkeys(("A", "B", "power A", "power B"), 0)
        for part in blocks(R, S * n):
            y, own = crossed(rng, part, S, n, c)
            if what == "difference":  # two arms whose common seed and item effects cancel
                items = 3 * rng.standard_normal((part, 1, n))
                common = items + 3 * rng.standard_normal((part, S, 1))
                y = (y + common) - common
            q = two_way(y)
            half_a, half_b = halves(q.a2, S - 1, q)
            hits["A"] += int((np.abs(q.mean - own) < half_a).sum())
            hits["B"] += int((np.abs(q.mean) < half_b).sum())
            hits["power A"] += int((np.abs(q.mean - own + shift_a) > half_a).sum())
            hits["power B"] += int((np.abs(q.mean + shift_b) > half_b).sum())
        for name, count in hits.items():
            target = POWER if "power" in name else COVERAGE
            yield Row(what, name, S, n, share, count / R, R, target)


def pooled(
    rng: np.random.Generator, R: int, A: int = 5, n: int = 80, odd: str = ""
) -> Iterator[Row]:
    """The headline of the last arm against arm 0 (pooled, guarded), and Dunnett over all. odd: how
    the arms break the pool's model.
    """
    targets: dict[str, Target] = {
        "A headline": COVERAGE,
        "B headline": COVERAGE,
        "power B headline": POWER,
        "Dunnett, all arms": COVERAGE,
        "sent back to paired": None,
        "A pooled, unguarded": COVERAGE,
        "A paired": COVERAGE,
    }
    if odd:  # shown only, but for what holds whatever the arms do
        targets = {name: COVERAGE if name == "A paired" else None for name in targets}
    for S, share in itertools.product(SEEDS, (0.5, 0.95) if odd else SHARES):
        c = sigmas(S, n, share)
        of_two = math.sqrt(2) * np.array([c.sigma_s, c.sigma_i, c.sigma_e])
        lift = detectable(Components(*of_two.tolist()), S, n, arms=A).value or 0.0
        parts = [_headline(rng, part, A, S, n, c, lift, odd) for part in blocks(R, A * S * n)]
        rates = np.sum([hits for hits, _ in parts], axis=0) / R
        what = f"{A} arms{', ' * bool(odd)}{odd}"
        for (name, target), found in zip(targets.items(), rates, strict=True):
            if not (odd and "power" in name):
                yield Row(what, name, S, n, share, float(found), R, target)
        wide = np.sum([widths for _, widths in parts], axis=0)
        ratio = float(wide[0] / wide[1])
        yield Row(what, "width of B, headline / paired", S, n, share, ratio, R, None)


ONE_WIDE, GROWING = "the last 3 times the seed spread", "seed spread grows with α"


def _headline(
    rng: np.random.Generator, R: int, A: int, S: int, n: int, c: Components, lift: float, odd: str
) -> tuple[Floats, Floats]:
    """Counts for the names of ``pooled``, and summed half-widths of headline and paired (B)."""
    df, arm = (A - 1) * (S - 1), np.arange(A)[:, None, None]
    item = c.sigma_i * rng.standard_normal((R, A, 1, n))
    y = item + c.sigma_e * rng.standard_normal((R, A, S, n)) + rng.standard_normal((R, 1, S, 1))
    wide = np.where((odd == ONE_WIDE) & (arm == A - 1), 3.0, 1.0)
    y += c.sigma_s * rng.standard_normal((R, A, S, 1)) * wide
    if odd == GROWING:
        # A common effect of the seed, in proportion to the rank of α, twice the arm's own at the
        # largest.
        y += 2 * c.sigma_s * arm / (A - 1) * rng.standard_normal((R, 1, S, 1))
    cell, own = y.mean(axis=3), item.mean(axis=(2, 3))
    back = unequal(cell, A - 1, 0)
    a2, q = 2 * residual(cell)[0] / S, two_way(y[:, -1] - y[:, 0])
    alone_a, alone_b = halves(q.a2, S - 1, q)
    pool_a, pool_b = halves(a2, df, q)
    half_a, half_b = np.where(back, alone_a, pool_a), np.where(back, alone_b, pool_b)
    fixed = cell.mean(axis=2) - own
    off = np.abs(fixed[:, -1] - fixed[:, 0])
    widest = np.abs(fixed[:, 1:] - fixed[:, :1]).max(axis=1)
    hits = [
        off < half_a,
        np.abs(q.mean) < half_b,
        np.abs(q.mean + lift) > half_b,
        widest < dunnett_critical(A - 1, df) * np.sqrt(a2),
        back,
        off < pool_a,
        off < alone_a,
    ]
    counts = np.array([h.sum() for h in hits], dtype=np.float64)
    return counts, np.array([half_b.sum(), alone_b.sum()])


LIMITS: Sequence[tuple[str, int, float, bool, Target]] = (
    ("weak items (σ_i² a tenth)", 80, 0.1, False, COVERAGE),
    ("no item variance", 80, 0.0, False, COVERAGE),
    ("24 clusters", 24, 0.5, False, COVERAGE),
    ("10 clusters", 10, 0.5, False, COVERAGE),
    ("5 clusters", 5, 0.5, False, None),
    ("exponential seeds", 80, 0.5, True, None),
    ("exponential seeds, difference", 80, 0.5, True, COVERAGE),
)
"""What, clusters, the items' part of the variance that is not the seeds', skewed seeds, target."""


def limits(rng: np.random.Generator, R: int) -> Iterator[Row]:
    """Weak items, few clusters, skewed seeds (whose difference is symmetric, so it holds)."""
    for case, S, share in itertools.product(LIMITS, SEEDS, (0.0, 0.5, 0.95)):
        what, n, item_part, skewed, target = case
        c = sigmas(S, n, share, item_part)
        y, own = crossed(rng, R, S, n, c, skewed)
        if "difference" in what:
            twin, of_twin = crossed(rng, R, S, n, c, skewed)
            y, own = y - twin, own - of_twin
        q = two_way(y)
        half_a, half_b = halves(q.a2, S - 1, q)
        yield rate(what, "A", S, n, share, np.abs(q.mean - own) < half_a, target)
        yield rate(what, "B", S, n, share, np.abs(q.mean) < half_b, target)


def binary(rng: np.random.Generator, R: int, n: int = 80) -> Iterator[Row]:
    """Differences of 0/100 scores: P(correct) = Φ(item + arm·item + seed), so that (A)'s truth is
    Φ(m/√(1 + τ²)) exactly.
    """
    for S, tau in itertools.product(SEEDS, (0.0, 0.1, 0.5)):
        item, arm = rng.standard_normal((R, 1, 1, n)), 0.3 * rng.standard_normal((R, 2, 1, n))
        p = special.ndtr(item + arm + tau * rng.standard_normal((R, 2, S, 1)))
        y = 100.0 * (rng.random((R, 2, S, n)) < p)
        exact = 100 * special.ndtr((item + arm) / math.sqrt(1 + tau**2)).mean(axis=(2, 3))
        q, own = two_way(y[:, 1] - y[:, 0]), exact[:, 1] - exact[:, 0]
        what = f"0/100 scores, seeds {tau:g}"
        moved = q.a2 > 0  # equal seed means: (A) is undefined there and counts as no interval
        half_a, _ = halves(q.a2, S - 1, q)
        _, half_b = halves(np.where(moved, q.a2, q.error / (S * n)), S - 1, q)
        inside = (np.abs(q.mean - own) < half_a)[moved]
        yield rate(what, "A", S, n, None, inside, COVERAGE)
        yield rate(what, "B", S, n, None, np.abs(q.mean) < half_b, COVERAGE)


def checkpoints(rng: np.random.Generator, R: int) -> Iterator[Row]:
    """One checkpoint: t over clusters for ratings, Wilson for 0/1."""
    for n in (24, 80, 805):
        y = np.clip(np.rint(rng.normal(7.5, 2.0, (R, n))), 1, 10)
        truth = 10 - special.ndtr((np.arange(1.5, 10) - 7.5) / 2.0).sum()  # of rounded scores
        half = distributions.t.isf(0.025, n - 1) * y.std(axis=1, ddof=1) / math.sqrt(n)
        inside = np.abs(y.mean(axis=1) - truth) < half
        yield rate("one checkpoint, ratings", "items", 1, n, None, inside, COVERAGE)
        for p in (0.05, 0.5, 0.9):
            counts, times = np.unique(rng.binomial(n, p, R), return_counts=True)
            cover = 0
            for k, m in zip(counts.tolist(), times.tolist(), strict=True):
                cell = from_array([[1.0] * k + [0.0] * (n - k)], scale=(0.0, 1.0))
                cover += m * _inside(one_checkpoint(cell).intervals["items"], p)
            what = f"one checkpoint, {p:g} correct"
            yield Row(what, "items, Wilson", 1, n, None, cover / R, R, (0.92, 0.98))


def _inside(interval: Interval, truth: float) -> bool:
    return (interval.low or 0.0) <= truth <= (interval.high or 0.0)


def seed_tests(rng: np.random.Generator, R: int) -> Iterator[Row]:
    """Size of the tests over seeds under their null, and coverage of the order statistics."""
    for S in SEEDS:
        d = rng.standard_normal((R, S))
        few = min(R, 2000)
        flips = [sign_flip(row).p for row in d[:few]]
        wins = [
            probability_of_improvement(rng.standard_normal(S), rng.standard_normal(S)).p
            for _ in range(min(few, 300))
        ]
        pages = [page_trend(rng.standard_normal((S, 5))).p for _ in range(few)]
        for name, p, target in (
            ("t over seeds", distributions.ttest_1samp(d, 0.0, axis=1).pvalue, SIZE),
            ("sign flip", flips, AT_MOST),
            ("Mann–Whitney, exact", wins, AT_MOST),
            ("Page, 5 arms, one-sided", pages, AT_MOST),
        ):
            rejected = np.array(p, dtype=np.float64) <= 0.05
            yield rate("size", name, S, 0, None, rejected, target)
        if S < 10:
            continue
        inside = [_inside(interquartile_mean(row).interval, 0.0) for row in d[:few].tolist()]
        yield rate("IQM", "trimmed t", S, 0, None, inside, COVERAGE)
        for shift in (0.0, 1.0):
            truth, inside = float(special.ndtr(shift / math.sqrt(2))), []
            for _ in range(min(few, 400)):
                x, y = rng.normal(shift, 1, S), rng.standard_normal(S)
                found = probability_of_improvement(x, y).interval
                if found.defined:
                    inside.append(_inside(found, truth))
            what = f"P(improvement) {truth:.2f}"
            yield rate(what, "Newcombe", S, 0, None, inside, COVERAGE)


def simulate(draws: int, seed: int = 0) -> list[Row]:
    """All rows; every part has a generator of its own, so one part's size changes no other part."""
    streams = iter(np.random.default_rng(seed).spawn(12))
    half, quarter = max(draws // 2, 500), max(draws // 4, 500)
    rows: list[Row] = []
    rows += means(next(streams), draws)
    rows += means(next(streams), draws, "difference")
    rows += pooled(next(streams), half)
    rows += pooled(next(streams), half, A=3)
    for A, odd in ((5, ONE_WIDE), (3, ONE_WIDE), (5, GROWING)):
        rows += pooled(next(streams), quarter, A, odd=odd)
    rows += limits(next(streams), half)
    rows += binary(next(streams), quarter)
    rows += checkpoints(next(streams), half)
    rows += seed_tests(next(streams), draws)
    return rows


def table(rows: list[Row]) -> str:
    """Rates in percent, one case a line, seed shares side by side; ``!``: outside its target."""
    told = [f"{100 * row.rate:.1f}{'!' * (row.ok is False)}" for row in rows]
    share = ["any" if row.share is None else row.share for row in rows]
    frame = pd.DataFrame([asdict(row) for row in rows]).assign(rate=told, share=share)
    case = ["what", "estimator", "seeds", "clusters"]
    return frame.pivot_table("rate", case, "share", "first", sort=False).to_string(na_rep="")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 studies a case, not 20,000")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for coverage.json")
    options = parser.parse_args(arguments)
    draws, start = 2_000 if options.quick else 20_000, time.perf_counter()
    rows = simulate(draws)
    missed = [r for r in rows if r.ok is False]
    print(table(rows))
    spent = f"{draws} studies a case, {time.perf_counter() - start:.0f} s"
    print(f"{len(rows)} rates, {len(missed)} outside their target, {spent}")
    told = {"draws": draws, "rows": [{**asdict(r), "ok": r.ok} for r in rows]}
    write("coverage", told, options.out)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
