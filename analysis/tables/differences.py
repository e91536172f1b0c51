"""Differences to the baseline: headline, other tests, other seeds, at matched KL."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from analysis import findings, measures, prose
from analysis.findings import POPULATIONS, Comparison
from analysis.load import StudyData
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


def _headline(c: Comparison, *, single: bool) -> dict[str, str]:
    """Cells of the first table, by column. single: of a study of one seed."""
    value, digits = c.estimate, c.digits
    p, mde = {}, {}
    for name in POPULATIONS:
        corrected = c.declared and c.p(name) is not None
        p[name] = p_value(c.p(name)) + (" ᴴ" if corrected else "")
        mde[name] = size(c.detectable[name].value if name in c.detectable else None, digits)
    items = value.intervals.get("items")
    if single:
        return {
            "(items) 95 %": interval_text(items, digits),
            "p (items)": p_value(value.p("items")),
        }
    return {
        "(A) 95 %": interval_text(value.intervals.get("A"), digits),
        "p (A)": p["A"],
        "(B) 95 %": interval_text(value.intervals.get("B"), digits),
        "p (B)": p["B"],
        "MDE (A)": mde["A"],
        "MDE (B)": mde["B"],
    }


def _checks(c: Comparison) -> dict[str, str]:
    """Cells of the second table, by column."""
    value = c.estimate
    digits = value.digits(c.measure.digits, *value.intervals)
    flip, won, p = "–", "–", None
    if c.flip and c.flip.p is not None:
        flip = f"{p_value(c.flip.p)} ({c.flip.floor:.3g})"
    if c.improvement:
        won, p = f"{c.improvement.k:g} of {c.improvement.pairs}", c.improvement.p
    return {
        "paired (A)": interval_text(value.intervals.get("A_paired"), digits),
        "paired (B)": interval_text(value.intervals.get("B_paired"), digits),
        "Dunnett (A)": interval_text(c.member.dunnett, digits),
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
    told = _checks(c) if checks else _headline(c, single=len(data.seeds) == 1)
    items = f"{value.seeds} × {value.clusters}"
    difference = number(value.value, c.digits, sign=True)
    if value.value is None:
        told, items, difference = dict.fromkeys(told, "–"), str(value.seeds), incomplete_text(value)
    head = {"arm": c.label, "measure": c.measure.name, "iter": iteration, "difference": difference}
    return {**head, **told, **({} if checks else {"seeds × items": items})}


def _observation(c: Comparison) -> dict[str, object]:
    """Every number of a comparison."""
    value, found = c.estimate, ends(c.estimate, *POPULATIONS, p=True)
    headline: dict[str, object] = {}
    mde = {}
    for name in POPULATIONS:
        headline |= {key: number_ for key, number_ in found.items() if key.startswith(name)}
        headline[f"{name}_p_holm"] = c.holm.get(name)
        for field, end in (("", "value"), ("_low", "low"), ("_high", "high")):
            mde[f"mde_{name}{field}"] = getattr(c.detectable.get(name), end, None)
    return {
        "arm": c.arm,
        "label": c.label,
        "measure": c.measure.key,
        "unit": c.measure.unit,
        "iteration": c.iteration,
        "declared": c.declared,
        "difference": value.value,
        **headline,
        **ends(value, "A_paired", "B_paired", "items", p=True),
        "dunnett_low": c.member.dunnett.low,
        "dunnett_high": c.member.dunnett.high,
        "dunnett_p": c.member.dunnett.p,
        **mde,
        "sign_flip_p": c.flip and c.flip.p,
        "sign_flip_floor": c.flip and c.flip.floor,
        "pairs_won": c.improvement and c.improvement.k,
        "pairs": c.improvement and c.improvement.pairs,
        "mann_whitney_p": c.improvement and c.improvement.p,
        "improvement_low": c.improvement and c.improvement.interval.low,
        "improvement_high": c.improvement and c.improvement.interval.high,
        **counts(value),
        "points": ";".join(map(repr, value.points)),
        "method": value.method,
    }


def _units(comparisons: Sequence[Comparison]) -> str:
    """ "Units: points: AlpacaEval LC; characters: answer length (AlpacaEval)."."""
    by: dict[str, dict[str, None]] = {}
    for c in comparisons:
        by.setdefault(prose.unit(c.measure), {})[c.measure.name] = None
    parts = [f"{unit}: {', '.join(names)}" for unit, names in by.items()]
    return f"Units: {'; '.join(parts)}."


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
        return Unavailable(key, title, "the study declares no baseline, so nothing is compared")
    if not comparisons:
        return Unavailable(key, title, "no arm beside the baseline has scores yet")
    shown = [c for c in comparisons if c.declared or not c.measure.part]
    cells = [_cells(data, c, checks=checks) for c in shown]
    dropped = {hide, "iter" if len({row["iter"] for row in cells}) == 1 else ""}
    columns = [name for name in cells[0] if name not in dropped]
    rows, last = [], None
    for c, row in zip(shown, cells, strict=True):
        of = (c.measure.key, c.iteration)
        rows.append(TableRow({name: row[name] for name in columns}, rule=of != last))
        last = of
    flags = [
        f"{c.label}, {c.measure.name}, iter {c.iteration}: {flag}"
        for c in shown
        for flag in c.estimate.cautions
    ]
    flags += [f"{c.measure.name}, iter {c.iteration}: {flag}" for c in shown for flag in c.flags]
    about: tuple[str, ...] = CHECK_NOTES if checks else NOTES
    if len(data.seeds) == 1 and not checks:
        about = (SINGLE_NOTE,)
    notes = unique([POPULATIONS_NOTE, _units(shown), *about, *flags])
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
    label = _baseline(data)
    title = f"Differences to {label}, same seeds and items"
    when = prose.after(data, data.last_iteration)
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
    notes = unique(
        [
            *chosen.flags,
            *(f"No interval from {reason}." for reason in reasons),
            "Leave one seed out: mean over seeds of the difference, on each, of the arm that the "
            "other seeds choose.",
        ]
    )
    caption = (
        f"{measure.name} [{prose.unit(measure)}] {prose.after(data, found.primary_iteration)}. "
        "The seeds that chose an arm flatter it; the others do not."
    )
    return Table("selection", title, caption, [TableRow(shown)], [observation], notes)


# -- at the same distance from the base ------------------------------------------------------------
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
        digits = finer(measure.digits, interval.half_width if interval else None)
        ends = [np.mean([paths[seed][-1][0] for seed in pairs]) for paths in (ours, theirs)]
        rows.append(
            TableRow(
                {
                    "arm": data.label(arm),
                    "KL": number(float(ends[0]), kl.digits),
                    "baseline's KL": number(float(ends[1]), kl.digits),
                    "difference": number(told, digits, sign=True),
                    "(A) 95 %": interval_text(interval, digits),
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
    """Seed → its path where the last iteration has both; a stored base stands at KL 0."""
    paths: dict[int, Path] = {}
    drifts: Mapping[int, float] = {}
    scores: Mapping[int, float] = {}
    for iteration in range(last + 1):
        checkpoint = data.checkpoint(arm, iteration)
        if checkpoint is None:  # not scored, or the arm has ended
            continue
        scores = measures.points(data, checkpoint, measure)
        drifts = measures.points(data, checkpoint, kl) if iteration else {}
        for seed, score in scores.items():
            drift = drifts.get(seed) if iteration else 0.0
            if drift is not None:
                paths.setdefault(seed, []).append((drift, score))
    return {seed: path for seed, path in paths.items() if seed in drifts and seed in scores}


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
