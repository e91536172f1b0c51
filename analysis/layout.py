"""The one array shape of the analysis. Axis letters: S seeds, n item clusters (MT-Bench: the
question, both turns; AlpacaEval: the instruction; otherwise the item).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Scores of one cell on one metric: ``values`` (S, n) with NaN where missing; rows follow
    ``seeds``, columns ``clusters`` (sorted).

    missing, rows: score rows (turns, repeats) that are missing, and that should be there, in every
    cell (S, n). low, high: the values with every missing row at the end of ``scale``; None when the
    scale is open and something is missing.
    """

    values: Floats
    seeds: tuple[int, ...]
    clusters: tuple[str, ...]
    scale: tuple[float, float] | None
    missing: Counts
    rows: Counts
    low: Floats | None = None
    high: Floats | None = None

    @property
    def expected(self) -> int:
        """Score rows that should be there."""
        return int(self.rows.sum())

    @property
    def scored(self) -> int:
        """Score rows that have a value."""
        return int(self.rows.sum() - self.missing.sum())

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Means with what is missing at its worst and best; None of an open scale or nothing."""
        if self.low is None or self.high is None or not self.low.size:
            return None
        return float(self.low.mean()), float(self.high.mean())

    def take(self, seeds: Sequence[int]) -> Layout:
        """The rows of these seeds, in this order."""
        pick = [self.seeds.index(s) for s in seeds]
        return self._each(lambda part: part[pick], seeds=tuple(seeds))

    def keep(self, columns: NDArray[np.bool_]) -> Layout:
        """The clusters where ``columns`` (n,) is true."""
        names = tuple(c for c, k in zip(self.clusters, columns.tolist(), strict=True) if k)
        return self._each(lambda part: part[:, columns], clusters=names)

    def _each(self, pick: Callable[[Any], Any], **names: Any) -> Layout:
        low, high = (None if part is None else pick(part) for part in (self.low, self.high))
        parts = {"missing": pick(self.missing), "rows": pick(self.rows), "low": low, "high": high}
        return replace(self, values=pick(self.values), **parts, **names)

    def spread(self, clusters: tuple[str, ...]) -> Layout:
        """Over more clusters: new ones are missing, of the median number of rows."""
        if clusters == self.clusters:
            return self
        place = {c: i for i, c in enumerate(clusters)}
        columns = [place[c] for c in self.clusters]

        def widen(part: NDArray[Any], fill: float) -> NDArray[Any]:
            wide = np.full((len(self.seeds), len(clusters)), fill, part.dtype)
            wide[:, columns] = part
            return wide

        usual = int(np.median(self.rows)) if self.rows.size else 1
        low, high = None, None
        if self.scale is not None and self.low is not None and self.high is not None:
            low, high = widen(self.low, self.scale[0]), widen(self.high, self.scale[1])
        missing, rows = widen(self.missing, usual), widen(self.rows, usual)
        values = widen(self.values, math.nan)
        return Layout(values, self.seeds, clusters, self.scale, missing, rows, low, high)


def layout(
    seeds: Sequence[Any] | NDArray[Any],
    clusters: Sequence[Any] | NDArray[Any],
    values: Sequence[float | None] | Floats,
    scale: tuple[float, float] | None = None,
) -> Layout:
    """Layout from three columns, one row per score (None or NaN: missing). The order of rows
    changes nothing, to the last bit.

    A cluster's score is the mean of its rows (turns, judge repeats) and is missing when any of them
    is. A row that stands for one seed and not for another is missing too. scale: the worst and the
    best a row can score, for bounds and for Wilson.
    """
    seed, cluster = np.asarray(seeds).astype(np.int64), np.asarray(clusters).astype(str)
    value = np.asarray(values, dtype=np.float64)  # None becomes NaN
    if not seed.shape == cluster.shape == value.shape or value.ndim != 1:
        lengths = f"{len(seed)} seeds, {len(cluster)} clusters, {len(value)} values"
        raise ValueError(f"columns of different length: {lengths}")
    if np.isinf(value).any():
        raise ValueError("a score is infinite; missing scores are None or NaN, nothing else")
    seed_names, row = np.unique(seed, return_inverse=True)
    cluster_names, column = np.unique(cluster, return_inverse=True)
    shape = (len(seed_names), len(cluster_names))
    if not value.size:
        return empty(scale)
    cell = row * shape[1] + column
    order = np.lexsort((value, cell))
    cell, value = cell[order], value[order]
    have = ~np.isnan(value)

    def counted(cells: NDArray[Any], weights: Floats | None = None) -> NDArray[Any]:
        return np.bincount(cells, weights, minlength=shape[0] * shape[1]).reshape(shape)

    rows, scored, sums = counted(cell), counted(cell[have]), counted(cell[have], value[have])
    expected = np.repeat(rows.max(axis=0, keepdims=True), shape[0], axis=0)
    full = scored == expected
    mean = np.where(full, sums / np.maximum(scored, 1), math.nan)
    low: Floats | None = None
    high: Floats | None = None
    if full.all():
        low = high = mean
    elif scale is not None:
        low, high = ((sums + (expected - scored) * end) / expected for end in scale)
    names = tuple(int(s) for s in seed_names), tuple(str(c) for c in cluster_names)
    return Layout(mean, *names, scale, expected - scored, expected, low, high)


def empty(scale: tuple[float, float] | None) -> Layout:
    """A layout without scores."""
    nothing = np.zeros((0, 0), np.int64)
    return Layout(np.empty((0, 0)), (), (), scale, nothing, nothing)


def from_array(values: Any, scale: tuple[float, float] | None = None) -> Layout:
    """Layout of an array (S, n) whose seeds are 0…S−1 and whose clusters are numbered in order."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    seeds, clusters = array.shape
    width = len(str(max(clusters - 1, 0)))
    names = np.tile([f"{i:0{width}d}" for i in range(clusters)], seeds)
    return layout(np.repeat(np.arange(seeds), clusters), names, array.ravel(), scale)


def complete(cell: Layout, min_complete: float = 1.0) -> tuple[Layout, str, tuple[str, ...]]:
    """The clusters scored for every seed, why the cell is INCOMPLETE ("": it is not), and flags.
    min_complete: the share of rows that must be scored for the cell to have a value at all.
    """
    n = cell.values.shape[1]
    if not cell.values.size:
        return cell, "no scores", ()
    there = np.asarray(~np.isnan(cell.values).any(axis=0))
    kept = int(there.sum())
    if kept == n:
        return cell, "", ()
    if kept == 0 or cell.scored < min_complete * cell.expected - 1e-9:  # 55 of 100 reach 0.55
        return cell, f"INCOMPLETE: {cell.scored} of {cell.expected} scored", ()
    flag = f"{n - kept} of {n} item clusters left out: not scored everywhere"
    return cell.keep(there), "", (flag,)


def paired(arm: Layout, baseline: Layout) -> tuple[Layout, tuple[str, ...]]:
    """D_si over the seeds both have and the clusters either has, and flags about seeds left out.
    Bounds pair the worst of one with the best of the other.
    """
    seeds = sorted(set(arm.seeds) & set(baseline.seeds))
    lost = sorted(set(arm.seeds) ^ set(baseline.seeds))
    flags = (f"seeds left out, only on one side: {', '.join(map(str, lost))}",) if lost else ()
    clusters = arm.clusters
    if clusters != baseline.clusters:
        clusters = tuple(sorted(set(arm.clusters) | set(baseline.clusters)))
    x, y = arm.take(seeds).spread(clusters), baseline.take(seeds).spread(clusters)
    low = None if x.low is None or y.high is None else x.low - y.high
    high = None if x.high is None or y.low is None else x.high - y.low
    missing, rows = np.maximum(x.missing, y.missing), np.maximum(x.rows, y.rows)
    values = x.values - y.values
    return Layout(values, tuple(seeds), clusters, None, missing, rows, low, high), flags
