"""Differences to the baseline: headline, other tests, other seeds, at matched KL."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from analysis import findings, measures, prose
from analysis.findings import POPULATIONS, Comparison
from analysis.load import Checkpoint, StudyData
from analysis.measures import Measure
from analysis.stats import seed_interval
from analysis.table import (
    POPULATIONS_NOTE,
    Table,
    TableRow,
    Unavailable,
    counts,
    ends,
    incomplete_text,
    interval_text,
    unique,
)
from analysis.text import capitalised, finer, number, p_value, size

NOTES = (
    "With three or more complete arms (A) and (B) pool the arm × seed residual. (B) equals (A) "
    "where the items add no variance of their own, and may be a trace narrower where they add very "
    "little (Cochran's approximation weighs two t quantiles).",
    "ᴴ: p after Holm over the study's declared family. Other p are exploratory and not corrected.",
    "MDE: smallest difference found with 80 % power at 5 %, two-sided, in one comparison; its "
    "range over what is known of the seeds' spread is in the CSV.",
)
NO_BASELINE = "the study declares no baseline, so nothing is compared"
SINGLE_NOTE = (
    "(items): new items, these very checkpoints; it says nothing of other seeds. No p is corrected "
    "for the number of comparisons."
)
CHECK_NOTES = (
    "Paired: the two arms alone, without the other arms' residual. Dunnett: simultaneous (A) "
    "interval over all arms (–: withheld where arms differ in their spread over seeds). None of "
    "these p is corrected.",
    "Sign flip: permutation over seeds; its p is never below the floor. Pairs won: (arm seed, "
    "baseline seed) pairs in which the arm is better (higher where neither is), ties one half, "
    "with the exact Mann–Whitney p.",
)


def _headline(data: StudyData, c: Comparison) -> dict[str, str]:
    """Cells of the first table, by column."""
    intervals, digits = c.estimate.intervals, c.digits
    if len(data.seeds) == 1:
        ends = interval_text(intervals.get("items"), digits)
        return {"(items) 95 %": ends, "p (items)": p_value(c.estimate.p("items"))}
    cells, smallest = {}, {}
    for name in POPULATIONS:
        corrected = " ᴴ" if c.declared and c.p(name) is not None else ""
        cells[f"({name}) 95 %"] = interval_text(intervals.get(name), digits)
        cells[f"p ({name})"] = p_value(c.p(name)) + corrected
        found = c.detectable.get(name)
        smallest[f"MDE ({name})"] = size(found.value if found else None, digits)
    return cells | smallest


def _checks(c: Comparison) -> dict[str, str]:
    """Cells of the second table, by column."""
    intervals = c.estimate.intervals
    digits = c.estimate.digits(c.measure.digits, *intervals)
    flip, won, p = "–", "–", None
    if c.flip and c.flip.p is not None:
        flip = f"{p_value(c.flip.p)} ({c.flip.floor:.3g})"
    if c.improvement:
        won, p = f"{c.improvement.k:g} of {c.improvement.pairs}", c.improvement.p
    return {
        "paired (A)": interval_text(intervals.get("A_paired"), digits),
        "paired (B)": interval_text(intervals.get("B_paired"), digits),
        "Dunnett (A)": interval_text(intervals.get("dunnett"), digits),
        "sign flip p (floor)": flip,
        "pairs won": won,
        "Mann–Whitney p": p_value(p),
    }


def _cells(data: StudyData, c: Comparison, *, checks: bool) -> dict[str, str]:
    """A shown row by column; without a value its cells are dashes."""
    value = c.estimate
    iteration, own = str(c.iteration), data.own_last(c.arm)
    if c.iteration == data.last_iteration != own:  # an arm that ends earlier than others
        iteration = f"{own} (its last)"
    told = _checks(c) if checks else _headline(data, c)
    items = f"{value.seeds} × {value.clusters}"
    difference = number(value.value, c.digits, sign=True)
    if value.value is None:
        told, items, difference = dict.fromkeys(told, "–"), str(value.seeds), incomplete_text(value)
    head = {"arm": c.label, "measure": c.measure.name, "iter": iteration, "difference": difference}
    return {**head, **told, **({} if checks else {"seeds × items": items})}


def _observation(c: Comparison) -> dict[str, object]:
    """Every number of a comparison."""
    value, flip, won = c.estimate, c.flip, c.improvement
    headline: dict[str, object] = {}
    smallest = {}
    for name in POPULATIONS:
        headline |= {**ends(value, name, p=True), f"{name}_p_holm": c.holm.get(name)}
        for field, end in (("", "value"), ("_low", "low"), ("_high", "high")):
            smallest[f"mde_{name}{field}"] = getattr(c.detectable.get(name), end, None)
    return {
        "arm": c.arm,
        "label": c.label,
        "measure": c.measure.key,
        "unit": c.measure.unit,
        "iteration": c.iteration,
        "declared": c.declared,
        "difference": value.value,
        **headline,
        **ends(value, "A_paired", "B_paired", "items", "dunnett", p=True),
        **smallest,
        "sign_flip_p": flip and flip.p,
        "sign_flip_floor": flip and flip.floor,
        "pairs_won": won and won.k,
        "pairs": won and won.pairs,
        "mann_whitney_p": won and won.p,
        "improvement_low": won and won.interval.low,
        "improvement_high": won and won.interval.high,
        **counts(value),
        "points": ";".join(map(repr, value.points)),
        "method": value.method,
    }


def _table(
    data: StudyData,
    key: str,
    title: str,
    caption: str,
    comparisons: Sequence[Comparison],
    *,
    checks: bool = False,
    hide: str = "",
) -> Table | Unavailable:
    """A table of comparisons. The column ``hide``, and "iter" where all rows share it, are left to
    the title and caption; parts of a measure (MT-Bench's turns) that are not declared, to the CSV.
    """
    if not data.baseline_arm:
        return Unavailable(key, title, NO_BASELINE)
    if not comparisons:
        return Unavailable(key, title, "no arm beside the baseline has scores yet")
    shown = [c for c in comparisons if c.declared or not c.measure.part]
    cells = [_cells(data, c, checks=checks) for c in shown]
    dropped = {hide, "iter" if len({row["iter"] for row in cells}) == 1 else ""}
    rows, flags, last = [], [], None
    units: dict[str, dict[str, None]] = {}
    for c, row in zip(shown, cells, strict=True):
        of = (c.measure.key, c.iteration)
        kept = {name: cell for name, cell in row.items() if name not in dropped}
        rows.append(TableRow(kept, rule=of != last))
        last = of
        where = f"{c.measure.name}, iter {c.iteration}"
        flags += [f"{c.label}, {where}: {flag}" for flag in c.estimate.cautions]
        units.setdefault(prose.unit(c.measure), {})[c.measure.name] = None
    flags += [f"{c.measure.name}, iter {c.iteration}: {flag}" for c in shown for flag in c.flags]
    told = "; ".join(f"{unit}: {', '.join(names)}" for unit, names in units.items())
    about: tuple[str, ...] = CHECK_NOTES if checks else NOTES
    if len(data.seeds) == 1 and not checks:
        about = (SINGLE_NOTE,)
    notes = unique([POPULATIONS_NOTE, f"Units: {told}.", *about, *flags])
    observations = [_observation(c) for c in comparisons]
    left = 1 if hide == "measure" else 2
    return Table(key, title, caption, rows, observations, notes, left)


def _last(data: StudyData) -> list[Comparison]:
    """Declared outcomes first, then every other headline measure after the last iteration."""
    rows = list(findings.find(data).declared)
    declared = {(c.measure.key, c.iteration) for c in rows}
    for measure in measures.headlines(data):
        if (measure.key, data.last_iteration) not in declared:
            rows += findings.compare_arms(data, measure, data.last_iteration)
    return rows


def _baseline(data: StudyData) -> str:
    return prose.named(data.label(data.baseline_arm)) if data.baseline_arm else "the baseline"


def table_differences(data: StudyData) -> Table | Unavailable:
    label, when = _baseline(data), prose.after(data, data.last_iteration)
    title = f"Differences to {label}, same seeds and items"
    caption = f"Each arm minus {label} {when}, declared outcomes first."
    return _table(data, "differences", title, caption, _last(data))


def table_difference_checks(data: StudyData) -> Table | Unavailable:
    """The same by tests that assume less: paired, simultaneous, permutation, order."""
    title = f"The same differences to {_baseline(data)}, told otherwise"
    caption = f"{capitalised(prose.after(data, data.last_iteration))}."
    return _table(data, "difference_checks", title, caption, _last(data), checks=True)


def table_differences_by_iteration(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    measure = found.primary_measure
    declared = {(c.measure.key, c.iteration, c.arm): c for c in found.declared}
    rows = []
    for iteration in [one for one in data.iterations if one > 0]:
        for c in findings.compare_arms(data, measure, iteration):
            rows.append(declared.get((c.measure.key, c.iteration, c.arm), c))
    title = f"{measure.name}: differences to {_baseline(data)} by iteration"
    caption = "The primary outcome after every iteration."
    return _table(data, "differences_by_iteration", title, caption, rows, hide="measure")


def table_selection(data: StudyData) -> Table | Unavailable:
    """The best arm, and its difference on seeds that did not choose it."""
    found = findings.find(data)
    title, chosen = "Best arm, told on seeds that did not choose it", found.selection
    if chosen is None:
        return Unavailable("selection", title, found.selection_reason)
    measure, value = found.primary_measure, chosen.estimate
    digits = value.digits(measure.digits)
    shown = {
        "best arm": data.label(chosen.best),
        "arms tried": str(chosen.trials),
        "seeds that chose": ", ".join(map(str, chosen.choosing)),
        "difference there": number(chosen.naive, digits, sign=True),
        "other seeds": ", ".join(map(str, chosen.estimating)),
        "difference on them": number(value.value, digits, sign=True),
        "(A) 95 %": interval_text(value.intervals.get("A"), digits),
        "(B) 95 %": interval_text(value.intervals.get("B"), digits),
        "leave one seed out": number(chosen.rotated, digits, sign=True),
    }
    observation = {
        "best": chosen.best,
        "arms_tried": chosen.trials,
        "choosing_seeds": ";".join(map(str, chosen.choosing)),
        "naive_difference": chosen.naive,
        "other_seeds": ";".join(map(str, chosen.estimating)),
        "difference": value.value,
        "leave_one_out_difference": chosen.rotated,
        "leave_one_out_choices": ";".join(chosen.rotated_choices),
    }
    reasons = [i.undefined for i in value.intervals.values() if i.undefined]
    about = (
        "Leave one seed out: mean over seeds of the difference, on each, of the arm that the "
        "other seeds choose."
    )
    none = (f"No interval from {reason}." for reason in reasons)
    notes = unique([*chosen.flags, *none, about])
    caption = (
        f"{measure.name} [{prose.unit(measure)}] {prose.after(data, found.primary_iteration)}. "
        "The seeds that chose an arm flatter it; the others do not."
    )
    return Table("selection", title, caption, [TableRow(shown)], [observation], notes)


# -- at the same distance from the base ------------------------------------------------------------
KL = measures.diagnostic("kl_base", "KL(π_θ‖π_0)")
Path = list[tuple[float, float]]
"""(KL(π_θ‖π_0), score) after every iteration, in order."""


def table_matched_kl(data: StudyData) -> Table | Unavailable:
    """The primary outcome of every arm minus the baseline's, seed by seed, where both are as far
    from the base: at the smaller of the two last KL(π_θ‖π_0), each score interpolated linearly
    between the iterations around it.
    """
    key, found = "matched_kl", findings.find(data)
    measure, last = found.primary_measure, found.primary_iteration
    title = f"{measure.name} at matched KL(π_θ‖π_0)"
    if not data.baseline_arm:
        return Unavailable(key, title, NO_BASELINE)
    rows, observations = [], []
    theirs = _paths(data, data.baseline_arm, measure, last)
    for arm in data.arms:
        ours = {} if arm == data.baseline_arm else _paths(data, arm, measure, last)
        seeds = sorted({*ours} & {*theirs})
        if not seeds:
            continue
        differences = []
        for seed in seeds:
            pair = matched(ours[seed], theirs[seed])
            differences += [pair[0] - pair[1]] if pair else []
            row = {"arm": arm, "label": data.label(arm), "measure": measure.key, "seed": seed}
            row |= {"kl": ours[seed][-1][0], "baseline_kl": theirs[seed][-1][0]}
            observations.append(row | {"difference": differences[-1] if pair else None})
        told = interval = None
        if len(differences) == len(seeds):
            told, count = float(np.mean(differences)), len(seeds)
            spread = float(np.var(differences, ddof=1)) / count if count > 1 else 0.0
            interval = seed_interval(told, spread, count - 1, count, null=0.0)
        digits = finer(measure.digits, interval.half_width if interval else None)
        ends = [float(np.mean([some[seed][-1][0] for seed in seeds])) for some in (ours, theirs)]
        cells = {
            "arm": data.label(arm),
            "KL": number(ends[0], KL.digits),
            "baseline's KL": number(ends[1], KL.digits),
            "difference": number(told, digits, sign=True),
            "(A) 95 %": interval_text(interval, digits),
            "seeds": f"{len(differences)} of {len(seeds)}",
        }
        rows.append(TableRow(cells))
    if not rows:
        return Unavailable(key, title, f"KL from the base and {measure.name} are not both stored")
    caption = (
        f"{prose.named(found.baseline_label)} subtracted seed by seed at the smaller of both last "
        f"KL (nats per response); scores between two iterations are interpolated. No difference "
        "where that KL was passed before the first stored iteration."
    )
    return Table(key, title, caption, rows, observations)


def _paths(data: StudyData, arm: str, measure: Measure, last: int) -> dict[int, Path]:
    """Seed → its path where the last iteration has both."""
    paths: dict[int, Path] = {}
    ends: set[int] = set()
    for iteration in range(last + 1):
        checkpoint = data.checkpoint(arm, iteration)
        if checkpoint is None:  # not scored, or the arm has ended
            continue
        both = drifts(data, checkpoint, measure)
        ends = {*both} if iteration else set()
        for seed, place in both.items():
            paths.setdefault(seed, []).append(place)
    return {seed: path for seed, path in paths.items() if seed in ends}


def drifts(
    data: StudyData, checkpoint: Checkpoint, measure: Measure
) -> dict[int, tuple[float, float]]:
    """Seed → (KL(π_θ‖π_0), score) where both are stored; the base is at no distance from itself."""
    scores = measures.points(data, checkpoint, measure)
    distances = dict.fromkeys(scores, 0.0)
    if checkpoint.iteration:
        distances = measures.points(data, checkpoint, KL)
    return {seed: (distances[seed], scores[seed]) for seed in sorted({*scores} & {*distances})}


def matched(ours: Path, theirs: Path) -> tuple[float, float] | None:
    """Both scores at the smaller last KL; None where one path begins beyond it."""
    at = min(ours[-1][0], theirs[-1][0])
    a, b = (_at(path, at) for path in (ours, theirs))
    return None if a is None or b is None else (a, b)


def _at(path: Path, kl: float) -> float | None:
    """The score where the path last passed ``kl``."""
    for (x, a), (y, b) in reversed(list(itertools.pairwise(path))):
        if min(x, y) <= kl <= max(x, y):
            return a if x == y else a + (b - a) * (kl - x) / (y - x)
    return path[0][1] if len(path) == 1 and path[0][0] == kl else None
