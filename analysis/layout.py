"""The one array shape of the analysis: scores of seeds × item clusters, with what is missing kept
visible.

Axis letters: S seeds, n item clusters (MT-Bench: the question, both turns; AlpacaEval: the
instruction; otherwise the item).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        """Mean with all that is missing at its worst and at its best; None when the scale is open
        or there is nothing.
        """
        if self.low is None or self.high is None or not self.low.size:
            return None
        return float(self.low.mean()), float(self.high.mean())

    def take(self, seeds: Sequence[int]) -> Layout:
        """The rows of these seeds, in this order."""
        pick = [self.seeds.index(s) for s in seeds]
        low, high = (None if part is None else part[pick] for part in (self.low, self.high))
        return replace(
            self,
            values=self.values[pick],
            seeds=tuple(seeds),
            missing=self.missing[pick],
            rows=self.rows[pick],
            low=low,
            high=high,
        )

    def keep(self, columns: NDArray[np.bool_]) -> Layout:
        """The clusters where ``columns`` (n,) is true."""
        names = tuple(c for c, k in zip(self.clusters, columns.tolist(), strict=True) if k)
        low, high = (None if part is None else part[:, columns] for part in (self.low, self.high))
        return replace(
            self,
            values=self.values[:, columns],
            clusters=names,
            missing=self.missing[:, columns],
            rows=self.rows[:, columns],
            low=low,
            high=high,
        )

    def spread(self, clusters: tuple[str, ...]) -> Layout:
        """The same over a larger set of clusters; those that were not there are missing, of the
        median number of rows.
        """
        if clusters == self.clusters:
            return self
        place = {c: i for i, c in enumerate(clusters)}
        columns = [place[c] for c in self.clusters]
        shape = (len(self.seeds), len(clusters))
        usual = int(np.median(self.rows)) if self.rows.size else 1
        values, missing, rows = (
            np.full(shape, math.nan),
            np.full(shape, usual, np.int64),
            np.full(shape, usual, np.int64),
        )
        values[:, columns], missing[:, columns], rows[:, columns] = (
            self.values,
            self.missing,
            self.rows,
        )
        ends: list[Floats | None] = [None, None]
        if self.scale is not None and self.low is not None and self.high is not None:
            for i, part in enumerate((self.low, self.high)):
                wide = np.full(shape, self.scale[i])
                wide[:, columns] = part
                ends[i] = wide
        return Layout(values, self.seeds, clusters, self.scale, missing, rows, *ends)


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
    value = np.asarray(
        [math.nan if v is None else v for v in values]
        if not isinstance(values, np.ndarray)
        else values,
        dtype=np.float64,
    )
    if not seed.shape == cluster.shape == value.shape or value.ndim != 1:
        raise ValueError(
            f"columns of different length: {seed.shape[0]} seeds, {cluster.shape[0]} clusters, "
            f"{value.shape[0]} values"
        )
    if np.isinf(value).any():
        raise ValueError(
            "a score is infinite; missing scores are None or NaN, and nothing else is accepted"
        )
    seed_names, row = np.unique(seed, return_inverse=True)
    cluster_names, column = np.unique(cluster, return_inverse=True)
    shape = (len(seed_names), len(cluster_names))
    if not value.size:
        nothing = np.zeros((0, 0), np.int64)
        return Layout(np.empty((0, 0)), (), (), scale, nothing, nothing)
    cell = row * shape[1] + column
    order = np.lexsort((value, cell))
    cell, value = cell[order], value[order]
    have = ~np.isnan(value)
    rows = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    expected = np.repeat(rows.max(axis=0, keepdims=True), shape[0], axis=0)
    scored = np.bincount(cell[have], minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(cell[have], weights=value[have], minlength=shape[0] * shape[1]).reshape(
        shape
    )
    full = scored == expected
    mean = np.where(full, sums / np.maximum(scored, 1), math.nan)
    low: Floats | None = mean
    high: Floats | None = mean
    if not full.all():
        low, high = (
            (None, None)
            if scale is None
            else ((sums + (expected - scored) * end) / expected for end in scale)
        )
    names = tuple(int(s) for s in seed_names), tuple(str(c) for c in cluster_names)
    return Layout(mean, *names, scale, expected - scored, expected, low, high)


def from_array(values: Any, scale: tuple[float, float] | None = None) -> Layout:
    """Layout of an array (S, n) whose seeds are 0…S−1 and whose clusters are numbered in order."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    width = len(str(max(array.shape[1] - 1, 0)))
    names = [f"{i:0{width}d}" for i in range(array.shape[1])]
    return layout(
        np.repeat(np.arange(array.shape[0]), array.shape[1]),
        np.tile(names, array.shape[0]),
        array.ravel(),
        scale,
    )


def complete(cell: Layout, bar: float = 1.0) -> tuple[Layout, str, tuple[str, ...]]:
    """The clusters scored for every seed, why the cell is INCOMPLETE (empty if it is not), and
    flags about what was left out.

    bar: the share of rows that must be scored for the cell to have a value at all.
    """
    n = cell.values.shape[1]
    if not cell.values.size:
        return cell, "no scores", ()
    there = np.asarray(~np.isnan(cell.values).any(axis=0))
    kept = int(there.sum())
    if kept == n:
        return cell, "", ()
    if kept == 0 or cell.scored < bar * cell.expected:
        return cell, f"INCOMPLETE: {cell.scored} of {cell.expected} scored", ()
    return (
        cell.keep(there),
        "",
        (f"{n - kept} of {n} item clusters left out: not scored everywhere",),
    )


def paired(arm: Layout, twin: Layout) -> tuple[Layout, tuple[str, ...]]:
    """D_si = arm − twin over the seeds both have and the clusters either has (missing in one:
    missing), and flags about seeds left out.

    Bounds pair the worst of one with the best of the other.
    """
    seeds = sorted(set(arm.seeds) & set(twin.seeds))
    lost = sorted(set(arm.seeds) ^ set(twin.seeds))
    flags = (f"seeds left out, only on one side: {', '.join(map(str, lost))}",) if lost else ()
    clusters = (
        arm.clusters
        if arm.clusters == twin.clusters
        else tuple(sorted(set(arm.clusters) | set(twin.clusters)))
    )
    x, y = arm.take(seeds).spread(clusters), twin.take(seeds).spread(clusters)
    low = None if x.low is None or y.high is None else x.low - y.high
    high = None if x.high is None or y.low is None else x.high - y.low
    missing = np.maximum(x.missing, y.missing)
    return Layout(
        x.values - y.values,
        tuple(seeds),
        clusters,
        None,
        missing,
        np.maximum(x.rows, y.rows),
        low,
        high,
    ), flags
