"""Tables of differences to the baseline: the headline, the same differences told by other tests,
and the best arm on other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis import findings, measures, prose
from analysis.cells import POPULATIONS_NOTE, interval_text
from analysis.findings import Comparison
from analysis.load import StudyData
from analysis.table import Row, Table, Unavailable, unique
from analysis.text import number, p_value

DATA = (
    "arm",
    "label",
    "measure",
    "unit",
    "iteration",
    "declared",
    "difference",
    "A_low",
    "A_high",
    "A_p",
    "A_p_holm",
    "B_low",
    "B_high",
    "B_p",
    "B_p_holm",
    "A_paired_low",
    "A_paired_high",
    "A_paired_p",
    "B_paired_low",
    "B_paired_high",
    "B_paired_p",
    "dunnett_low",
    "dunnett_high",
    "dunnett_p",
    "mde_A",
    "mde_A_low",
    "mde_A_high",
    "mde_B",
    "mde_B_low",
    "mde_B_high",
    "sign_flip_p",
    "sign_flip_floor",
    "pairs_won",
    "pairs",
    "mann_whitney_p",
    "seeds",
    "clusters",
    "scored",
    "expected",
    "points",
    "method",
)
COLUMNS = (
    "arm",
    "measure",
    "iter",
    "difference",
    "(A) 95 %",
    "p (A)",
    "(B) 95 %",
    "p (B)",
    "MDE (A)",
    "MDE (B)",
    "seeds × items",
)
CHECKS = (
    "arm",
    "measure",
    "iter",
    "difference",
    "paired (A)",
    "paired (B)",
    "Dunnett (A)",
    "sign flip p (floor)",
    "pairs won",
    "Mann–Whitney p",
)
NOT_SHOWN = {f"{measures.MT.key}.turn_1", f"{measures.MT.key}.turn_2"}
"""Exploratory measures whose rows are in the CSV alone: parts of another one."""


def own_iteration(data: StudyData, c: Comparison) -> str:
    """The iteration a comparison is about; of an arm that ends earlier, its own last."""
    own = data.own_last(c.arm)
    return (
        f"{own} (its last)"
        if c.iteration == data.last_iteration and own != c.iteration
        else str(c.iteration)
    )


def _head(data: StudyData, c: Comparison) -> tuple[str, str, str]:
    return c.label, c.measure.name, own_iteration(data, c)


def _row(data: StudyData, c: Comparison) -> tuple[str, ...]:
    digits, value = c.measure.digits, c.estimate
    if value.value is None:
        return (
            *_head(data, c),
            f"INCOMPLETE ({value.scored} of {value.expected})",
            *["–"] * 6,
            str(value.seeds),
        )
    shown = {
        p: p_value(c.p(p)) + (" ᴴ" if c.declared and c.p(p) is not None else "") for p in ("A", "B")
    }
    mde = [number(c.detectable[p].value, digits) if p in c.detectable else "–" for p in ("A", "B")]
    return (
        *_head(data, c),
        number(value.value, digits, sign=True),
        interval_text(value.intervals.get("A"), digits),
        shown["A"],
        interval_text(value.intervals.get("B"), digits),
        shown["B"],
        *mde,
        f"{value.seeds} × {value.clusters}",
    )


def _check_row(data: StudyData, c: Comparison) -> tuple[str, ...]:
    digits, value = c.measure.digits, c.estimate
    if value.value is None:
        return (*_head(data, c), f"INCOMPLETE ({value.scored} of {value.expected})", *["–"] * 6)
    flip = (
        f"{p_value(c.flip.p)} ({c.flip.floor:.3g})"
        if c.flip and c.flip.p is not None and c.flip.floor is not None
        else "–"
    )
    won, p = (
        (f"{c.improvement.k:g} of {c.improvement.pairs}", p_value(c.improvement.p))
        if c.improvement
        else ("–", "–")
    )
    return (
        *_head(data, c),
        number(value.value, digits, sign=True),
        interval_text(value.intervals.get("A_paired"), digits),
        interval_text(value.intervals.get("B_paired"), digits),
        interval_text(c.member.dunnett, digits),
        flip,
        won,
        p,
    )


def _numbers(c: Comparison) -> tuple[object, ...]:
    value, by = c.estimate, c.estimate.intervals
    ends: list[object] = []
    for name in ("A", "B"):
        interval = by.get(name)
        ends += [interval.low, interval.high, interval.p] if interval else [None] * 3
        ends.append(c.holm.get(name))
    for name in ("A_paired", "B_paired"):
        interval = by.get(name)
        ends += [interval.low, interval.high, interval.p] if interval else [None] * 3
    d = c.member.dunnett
    mde = [
        getattr(c.detectable.get(p), end, None)
        for p in ("A", "B")
        for end in ("value", "low", "high")
    ]
    flip = [c.flip.p, c.flip.floor] if c.flip else [None, None]
    won = [c.improvement.k, c.improvement.pairs, c.improvement.p] if c.improvement else [None] * 3
    return (
        c.arm,
        c.label,
        c.measure.key,
        c.measure.unit,
        c.iteration,
        c.declared,
        value.value,
        *ends,
        d.low,
        d.high,
        d.p,
        *mde,
        *flip,
        *won,
        value.seeds,
        value.clusters,
        value.scored,
        value.expected,
        ";".join(repr(p) for p in value.points),
        value.method,
    )


def _units(comparisons: Sequence[Comparison]) -> str:
    """ "Units: points (AlpacaEval LC), characters (answer length (AlpacaEval))."."""
    by: dict[str, list[str]] = {}
    for c in comparisons:
        if c.measure.name not in by.setdefault(prose.unit(c.measure), []):
            by[prose.unit(c.measure)].append(c.measure.name)
    return "Units: " + "; ".join(f"{unit}: {', '.join(names)}" for unit, names in by.items()) + "."


def _table(
    data: StudyData,
    key: str,
    title: str,
    caption: str,
    comparisons: Sequence[Comparison],
    checks: bool = False,
    hide: Sequence[str] = (),
) -> Table | Unavailable:
    """A table of comparisons. A column named in ``hide``, or "iter" where all rows share it, is
    left to the title and caption.
    """
    if not data.baseline_arm:
        return Unavailable(key, title, "the study declares no baseline, so nothing is compared")
    if not comparisons:
        return Unavailable(key, title, "no arm beside the baseline has scores yet")
    shown = [c for c in comparisons if c.declared or c.measure.key not in NOT_SHOWN]
    columns, row_of = (CHECKS, _check_row) if checks else (COLUMNS, _row)
    cells = [row_of(data, c) for c in shown]
    dropped = [
        i
        for i, name in enumerate(columns)
        if name in hide or (name == "iter" and len({row[i] for row in cells}) == 1)
    ]
    keep = [i for i in range(len(columns)) if i not in dropped]
    rows, last = [], None
    for c, row in zip(shown, cells, strict=True):
        rows.append(Row(tuple(row[i] for i in keep), (c.measure.key, c.iteration) != last))
        last = (c.measure.key, c.iteration)
    notes = [POPULATIONS_NOTE, _units(shown), *(CHECK_NOTES if checks else NOTES)]
    notes += [
        f"{c.label}, {c.measure.name}, iter {c.iteration}: {flag}"
        for c in shown
        for flag in c.estimate.flags
    ]
    names, numbers = tuple(columns[i] for i in keep), tuple(_numbers(c) for c in comparisons)
    return Table(
        key,
        title,
        caption,
        names,
        tuple(rows),
        DATA,
        numbers,
        unique(notes),
        left=1 if "measure" in hide else 2,
    )


NOTES = (
    "With three or more complete arms (A) and (B) pool the arm × seed residual. (B) equals (A) "
    "where the items add no variance of their own, and "
    "may be a trace narrower where they add very little (Cochran's approximation weighs two t "
    "quantiles).",
    "ᴴ: p after Holm over the study's declared family. Other p are exploratory and not corrected.",
    "MDE: smallest difference found with 80 % power at 5 %, two-sided, in one comparison; its "
    "range over what is known of the seeds' spread is in "
    "the CSV.",
)
CHECK_NOTES = (
    "Paired: the two arms alone, without the other arms' residual. Dunnett: simultaneous (A) "
    "interval over all arms (–: withheld where "
    "arms differ in their spread over seeds). None of these p is corrected.",
    "Sign flip: permutation over seeds; its p is never below the floor. Pairs won: (arm seed, "
    "baseline seed) pairs in which the arm is higher, ties "
    "one half, with the exact Mann–Whitney p.",
)


def _last(data: StudyData) -> list[Comparison]:
    """Declared outcomes first, then every other headline measure after the last iteration."""
    found = findings.find(data)
    declared = {(c.measure.key, c.iteration) for c in found.declared}
    others = [
        *measures.columns(data, "table_1"),
        *measures.academic(data)[-1:],
        measures.heldout(data),
        measures.heldout(data, sampled=True),
        *measures.others(data),
    ]
    rows = list(found.declared)
    for measure in others:
        if (measure.key, data.last_iteration) not in declared:
            rows += findings.compare_arms(data, measure, data.last_iteration)
    return rows


def _baseline(data: StudyData) -> str:
    label = findings.find(data).baseline_label
    return prose.named(label) if label else "the baseline"


def table_differences(data: StudyData) -> Table | Unavailable:
    label = _baseline(data)
    title = f"Differences to {label}, same seeds and items"
    caption = (
        f"Each arm minus {label} {prose.after(data, data.last_iteration)}, declared outcomes first."
    )
    return _table(data, "differences", title, caption, _last(data))


def table_difference_checks(data: StudyData) -> Table | Unavailable:
    """The differences of the first table by tests that assume less: paired, simultaneous,
    permutation, order.
    """
    label = _baseline(data)
    title, caption = (
        f"The same differences to {label}, told otherwise",
        f"{prose.after(data, data.last_iteration).capitalize()}.",
    )
    return _table(data, "difference_checks", title, caption, _last(data), checks=True)


def table_differences_by_iteration(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    measure = found.primary_measure
    declared = {(c.measure.key, c.iteration, c.arm): c for c in found.declared}
    rows = []
    for iteration in range(1, data.last_iteration + 1):
        rows += [
            declared.get((c.measure.key, c.iteration, c.arm), c)
            for c in findings.compare_arms(data, measure, iteration)
        ]
    title = f"{measure.name}: differences to {_baseline(data)} by iteration"
    return _table(
        data,
        "differences_by_iteration",
        title,
        "The primary outcome after every iteration.",
        rows,
        hide=("measure",),
    )


def table_selection(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    title, chosen = "Best arm, told on seeds that did not choose it", found.selection
    if chosen is None:
        return Unavailable("selection", title, found.selection_reason)
    digits, value = found.primary_measure.digits, chosen.estimate
    row = (
        data.arms[chosen.best][0].label,
        str(chosen.trials),
        ", ".join(map(str, chosen.choosing)),
        number(chosen.naive, digits, sign=True),
        ", ".join(map(str, chosen.estimating)),
        number(value.value, digits, sign=True),
        interval_text(value.intervals.get("A"), digits),
        interval_text(value.intervals.get("B"), digits),
        number(chosen.rotated, digits, sign=True),
    )
    columns = (
        "best arm",
        "arms tried",
        "seeds that chose",
        "difference there",
        "other seeds",
        "difference on them",
        "(A) 95 %",
        "(B) 95 %",
        "leave one seed out",
    )
    numbers = (
        chosen.best,
        chosen.trials,
        ";".join(map(str, chosen.choosing)),
        chosen.naive,
        ";".join(map(str, chosen.estimating)),
        value.value,
        chosen.rotated,
        ";".join(chosen.rotated_choices),
    )
    names = (
        "best",
        "arms_tried",
        "choosing_seeds",
        "naive_difference",
        "other_seeds",
        "difference",
        "leave_one_out_difference",
        "leave_one_out_choices",
    )
    reasons = [i.undefined for i in value.intervals.values() if i.undefined]
    notes = unique(
        [
            *chosen.flags,
            *(f"No interval from {reason}." for reason in reasons),
            "Leave one seed out: mean over seeds of the difference, on each, of the arm that the "
            "other seeds choose.",
        ]
    )
    where = (
        f"{found.primary_measure.name} [{prose.unit(found.primary_measure)}] "
        f"{prose.after(data, found.primary_iteration)}"
    )
    caption = f"{where}. The seeds that chose an arm flatter it; the others do not."
    return Table("selection", title, caption, columns, (Row(row),), names, (numbers,), notes)
