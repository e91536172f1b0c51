"""Arms against the baseline at the same distance from the base, so that a larger step is not taken
for a better direction.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from analysis import findings, measures, prose
from analysis.cells import interval_text
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.stats import seed_interval
from analysis.table import Table, TableRow, Unavailable
from analysis.text import number

Path = list[tuple[float, float]]
"""(KL(π_θ‖π_0), score) after every iteration, in order."""


def table_matched_kl(data: StudyData) -> Table | Unavailable:
    """The primary outcome of every arm minus the baseline's, seed by seed, where both are as far
    from the base: at the smaller of the two last KL(π_θ‖π_0), each score interpolated linearly
    between the iterations around it.
    """
    key, kl = "matched_kl", measures.diagnostic("kl_base", "KL(π_θ‖π_0)")
    found = findings.find(data)
    measure, last = found.primary_measure, found.primary_iteration
    title = f"{measure.name} at matched KL(π_θ‖π_0)"
    if not data.baseline_arm:
        return Unavailable(key, title, "the study declares no baseline, so nothing is compared")
    rows, observations = [], []
    theirs = _paths(data, data.baseline_arm, measure, kl, last)
    for arm in data.arms:
        ours = {} if arm == data.baseline_arm else _paths(data, arm, measure, kl, last)
        pairs = {seed: matched(ours[seed], theirs[seed]) for seed in sorted({*ours} & {*theirs})}
        if not pairs:
            continue
        inside = {seed: pair for seed, pair in pairs.items() if pair}
        told = interval = None
        if len(inside) == len(pairs):
            differences = np.array([a - b for a, b in inside.values()])
            told, count = float(differences.mean()), len(differences)
            spread = float(differences.var(ddof=1)) / count if count > 1 else 0.0
            interval = seed_interval(told, spread, count - 1, count, null=0.0)
        ends = [np.mean([paths[seed][-1][0] for seed in pairs]) for paths in (ours, theirs)]
        rows.append(
            TableRow(
                {
                    "arm": data.label(arm),
                    "KL": number(float(ends[0]), kl.digits),
                    "baseline's KL": number(float(ends[1]), kl.digits),
                    "difference": number(told, measure.digits, sign=True),
                    "(A) 95 %": interval_text(interval, measure.digits),
                    "seeds": f"{len(inside)} of {len(pairs)}",
                }
            )
        )
        for seed, pair in pairs.items():
            row = {"arm": arm, "label": data.label(arm), "measure": measure.key, "seed": seed}
            row |= {"kl": ours[seed][-1][0], "baseline_kl": theirs[seed][-1][0]}
            observations.append(row | {"difference": pair[0] - pair[1] if pair else None})
    if not rows:
        return Unavailable(key, title, f"KL from the base and {measure.name} are not both stored")
    caption = (
        f"{prose.named(found.baseline_label)} subtracted seed by seed at the smaller of both last "
        f"KL (nats per response); scores between two iterations are interpolated. No difference "
        "where that KL was passed before the first stored iteration."
    )
    return Table(key, title, caption, rows, observations, [])


def _paths(
    data: StudyData, arm: str, measure: Measure, kl: Measure, last: int
) -> Mapping[int, Path]:
    """Seed → its path, of those whose last iteration has a score and a KL; the base stands at KL 0
    where the measure is stored for it.
    """
    paths: dict[int, Path] = {}
    drifts: Mapping[int, float] = {}
    for iteration in range(last + 1):
        checkpoint = data.checkpoint(arm, iteration)
        scores = measures.points(data, checkpoint, measure) if checkpoint else {}
        drifts = measures.points(data, checkpoint, kl) if checkpoint and iteration else {}
        for seed, score in scores.items():
            drift = drifts.get(seed) if iteration else 0.0
            if drift is not None:
                paths.setdefault(seed, []).append((drift, score))
    return {seed: path for seed, path in paths.items() if seed in drifts}


def matched(ours: Path, theirs: Path) -> tuple[float, float] | None:
    """Both scores at the smaller last KL; None where one path begins beyond it."""
    at = min(ours[-1][0], theirs[-1][0])
    scores = [_at(path, at) for path in (ours, theirs)]
    return None if scores[0] is None or scores[1] is None else (scores[0], scores[1])


def _at(path: Path, kl: float) -> float | None:
    """The score where the path last passed ``kl``."""
    for (x, a), (y, b) in reversed(list(itertools.pairwise(path))):
        if min(x, y) <= kl <= max(x, y):
            return a if x == y else a + (b - a) * (kl - x) / (y - x)
    return path[0][1] if len(path) == 1 and path[0][0] == kl else None
