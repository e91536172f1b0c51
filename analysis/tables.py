"""Every table of a report. A new table is one function of a study and one entry of ``TABLES``.

A function returns a ``Table``, or ``Unavailable`` with the reason when the study does not hold its data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis import comparable, findings, measures
from analysis import tables_more as more
from analysis.findings import Comparison
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.table import Row, Table, Unavailable, unique
from analysis.table_cells import POPULATIONS_NOTE, SCORE_DATA, c_of, cell_text, interval_text, kappa_of, score_data
from analysis.text import coefficient, number, p_value


# -- scores --------------------------------------------------------------------------------------------------
def score_table(data: StudyData, key: str, title: str, columns: Sequence[Measure], extra: str = "") -> Table | Unavailable:
    """Checkpoints × measures in the paper's form, with c, κ and the number of seeds."""
    present = {benchmark for benchmark, _ in data.metrics()}
    if not any(set(measure.strata or (measure.benchmark,)) & present for measure in columns):
        return Unavailable(key, title, "no score of these benchmarks is stored yet")
    rows, numbers, notes, arm = [], [], [], None
    for checkpoint in data.checkpoints:
        estimates = [findings.estimate(data, checkpoint, measure) for measure in columns]
        numbers += [score_data(data, checkpoint, m, e) for m, e in zip(columns, estimates, strict=True)]
        cells = [cell_text(e, m) for m, e in zip(columns, estimates, strict=True)]
        seeds = str(max((len(measures.points(data, checkpoint, m)) for m in columns), default=0))
        rows.append(Row((checkpoint.title, coefficient(c_of(checkpoint)), coefficient(kappa_of(checkpoint)), *cells, seeds), checkpoint.arm != arm))
        arm = checkpoint.arm
        notes += [f"{checkpoint.title}: {reason}" for m in columns for part in measures.parts(data, checkpoint, m) for reason in part.absent]
    single = all(len(c.runs) == 1 for c in data.checkpoints)
    shown = (
        "± half-width of the interval over items, given this one checkpoint"
        if single
        else "mean over seeds ± half-width (A), in brackets half-width (B)"
    )
    caption = f"{shown}; c: coefficient on log π(y), κ = 2c/β; n: seeds with scores.{' ' + extra if extra else ''}"
    if any("†" in cell for row in rows for cell in row.cells):
        notes.insert(0, f"†: at least {findings.bar(data):.0%} but not all rows are scored; items not scored for every seed are left out.")
    if any("± –" in cell or "(–)" in cell for row in rows for cell in row.cells):
        notes.insert(0, "± –: no interval, because all seeds (or all items) gave the same score; it is never shown as zero.")
    notes[:0] = comparable.notes(data, {measure.benchmark for measure in columns})
    heads = tuple(measure.title for measure in columns)
    return Table(
        key, title, caption[0].upper() + caption[1:], ("checkpoint", "c", "κ", *heads, "n"), tuple(rows), SCORE_DATA, tuple(numbers),
        unique([POPULATIONS_NOTE, *notes] if not single else notes),
    )  # fmt: skip


def table_1(data: StudyData) -> Table | Unavailable:
    return score_table(
        data, "table_1", "Table 1. AlpacaEval 2.0 and MT-Bench", measures.TABLE_1,
        "Length-controlled win rate: the library's point, intervals from the delete-one-instruction jackknife.",
    )  # fmt: skip


def table_2(data: StudyData) -> Table | Unavailable:
    return score_table(data, "table_2", "Table 2. Academic benchmarks", measures.academic(data), "The mean weighs every benchmark the same.")


def table_heldout(data: StudyData) -> Table | Unavailable:
    columns = [measures.heldout(data, sampled=s, ood=o) for o in (False, True) for s in (False, True)]
    present = [m for m in columns if (m.benchmark, m.metric) in data.metrics()]
    kind = (data.recipe.get("ranker") or {}).get("kind", "oracle")
    return score_table(data, "heldout", "Reward of answers to held-out prompts", present, f"Reward by the recipe's ranker ({kind}).")


# -- differences ---------------------------------------------------------------------------------------------
DIFFERENCE_DATA = (
    "arm", "label", "measure", "unit", "iteration", "declared", "difference", "A_low", "A_high", "A_p", "A_p_holm", "B_low",
    "B_high", "B_p", "B_p_holm",
    "A_paired_low", "A_paired_high", "A_paired_p", "B_paired_low", "B_paired_high", "B_paired_p", "dunnett_low", "dunnett_high", "dunnett_p",
    "mde_A", "mde_A_low", "mde_A_high", "mde_B", "mde_B_low", "mde_B_high", "sign_flip_p", "sign_flip_floor", "pairs_won", "pairs", "mann_whitney_p",
    "seeds", "clusters", "scored", "expected", "points", "method",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "arm", "measure", "iter", "difference", "(A) 95 %", "p (A)", "(B) 95 %", "p (B)", "paired (A)", "paired (B)", "MDE (A)", "MDE (B)",
    "sign flip p", "pairs won",
    "n",
)  # fmt: skip


def _difference_row(c: Comparison) -> tuple[str, ...]:
    digits, value = c.measure.digits, c.estimate
    intervals = value.intervals
    if value.value is None:
        return (c.label, c.measure.name, str(c.iteration), f"INCOMPLETE ({value.scored} of {value.expected})", *["–"] * 10, str(value.seeds))
    shown = {p: p_value(c.p(p)) + (" ᴴ" if c.declared and c.p(p) is not None else "") for p in ("A", "B")}
    mde = [number(c.detectable[p].value, digits) if p in c.detectable else "–" for p in ("A", "B")]
    flip = f"{p_value(c.flip.p)} (floor {c.flip.floor:.3g})" if c.flip and c.flip.p is not None and c.flip.floor is not None else "–"
    won = f"{c.improvement.k:g} of {c.improvement.pairs}" if c.improvement else "–"
    return (
        c.label, c.measure.name, str(c.iteration), number(value.value, digits, sign=True), interval_text(intervals.get("A"), digits), shown["A"],
        interval_text(intervals.get("B"), digits), shown["B"], interval_text(intervals.get("A_paired"), digits),
        interval_text(intervals.get("B_paired"), digits), *mde, flip, won, f"{value.seeds} × {value.clusters}",
    )  # fmt: skip


def _difference_data(c: Comparison) -> tuple[object, ...]:
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
    mde = [getattr(c.detectable.get(p), end, None) for p in ("A", "B") for end in ("value", "low", "high")]
    flip = [c.flip.p, c.flip.floor] if c.flip else [None, None]
    won = [c.improvement.k, c.improvement.pairs, c.improvement.p] if c.improvement else [None] * 3
    return (
        c.arm, c.label, c.measure.key, c.measure.unit, c.iteration, c.declared, value.value, *ends, d.low, d.high, d.p, *mde, *flip, *won,
        value.seeds,
        value.clusters, value.scored, value.expected, ";".join(repr(p) for p in value.points), value.method,
    )  # fmt: skip


def _difference_table(data: StudyData, key: str, title: str, caption: str, comparisons: Sequence[Comparison]) -> Table | Unavailable:
    if not data.baseline_arm:
        return Unavailable(key, title, "the study declares no baseline, so nothing is compared")
    if not comparisons:
        return Unavailable(key, title, "no arm beside the baseline has scores yet")
    rows, last = [], None
    for c in comparisons:
        rows.append(Row(_difference_row(c), (c.measure.key, c.iteration) != last))
        last = (c.measure.key, c.iteration)
    notes = [
        POPULATIONS_NOTE,
        "With three or more complete arms (A) and (B) pool the arm × seed residual; the paired columns use the two arms alone.",
        "ᴴ: p after Holm over the study's declared family. Other p are exploratory and not corrected.",
        "MDE: smallest difference found with 80 % power at 5 %, two-sided; its range over what is known of the seeds' spread is in the CSV.",
        "Sign flip: permutation over seeds; its p is never below the floor. Pairs won: (arm seed, baseline seed) pairs in which the arm is higher.",
    ]
    notes += [f"{c.label}, {c.measure.name}, iter {c.iteration}: {flag}" for c in comparisons for flag in c.estimate.flags]
    return Table(
        key, title, caption, DIFFERENCE_COLUMNS, tuple(rows), DIFFERENCE_DATA, tuple(_difference_data(c) for c in comparisons), unique(notes), left=2
    )


def table_differences(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    declared = {(c.measure.key, c.iteration) for c in found.declared}
    others = [*measures.TABLE_1, *measures.academic(data)[-1:], measures.heldout(data), measures.heldout(data, sampled=True)]
    rows = list(found.declared)
    for measure in others:
        if (measure.key, data.last_iteration) not in declared:
            rows += findings.compare_arms(data, measure, data.last_iteration)
    label = found.baseline_label or "the baseline"
    return _difference_table(
        data,
        "differences",
        f"Differences to {label}, same seeds and items",
        f"Each arm minus {label} after the last iteration, declared outcomes first.",
        rows,
    )


def table_differences_by_iteration(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    measure = found.primary_measure
    declared = {(c.measure.key, c.iteration, c.arm): c for c in found.declared}
    rows = []
    for iteration in range(1, data.last_iteration + 1):
        rows += [declared.get((c.measure.key, c.iteration, c.arm), c) for c in findings.compare_arms(data, measure, iteration)]
    label = found.baseline_label or "the baseline"
    return _difference_table(
        data, "differences_by_iteration", f"{measure.name}: differences to {label} by iteration", "The primary outcome after every iteration.", rows
    )


def table_selection(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    title, chosen = "Best arm, told on seeds that did not choose it", found.selection
    if chosen is None:
        return Unavailable("selection", title, found.selection_reason)
    digits, value = found.primary_measure.digits, chosen.estimate
    label = data.arms[chosen.best][0].label
    row = (
        label, str(chosen.trials), ", ".join(map(str, chosen.choosing)), number(chosen.naive, digits, sign=True),
        ", ".join(map(str, chosen.estimating)),
        number(value.value, digits, sign=True), interval_text(value.intervals.get("A"), digits), interval_text(value.intervals.get("B"), digits),
        number(chosen.rotated, digits, sign=True),
    )  # fmt: skip
    columns = (
        "best arm", "arms tried", "seeds that chose", "difference there", "other seeds", "difference on them", "(A) 95 %", "(B) 95 %",
        "leave one seed out",
    )  # fmt: skip
    numbers = (
        chosen.best, chosen.trials, ";".join(map(str, chosen.choosing)), chosen.naive, ";".join(map(str, chosen.estimating)), value.value,
        chosen.rotated, ";".join(chosen.rotated_choices),
    )  # fmt: skip
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
    notes = unique([*chosen.flags, *(f"no interval: {reason}" for reason in reasons)])
    caption = f"{found.primary_measure.name} after iteration {found.primary_iteration}. The seeds that chose an arm flatter it; the others do not."
    return Table("selection", title, caption, columns, (Row(row),), names, (numbers,), notes)


TABLES: dict[str, Callable[[StudyData], Table | Unavailable]] = {
    "differences": table_differences,
    "differences_by_iteration": table_differences_by_iteration,
    "table_1": table_1,
    "table_2": table_2,
    "heldout": table_heldout,
    "selection": table_selection,
    "diagnostics": more.table_diagnostics,
    "judge": more.table_judge,
    "completeness": more.table_completeness,
    "unfinished": more.table_unfinished,
    "published_1": more.table_published_1,
    "published_2": more.table_published_2,
    "costs": more.table_costs,
}
"""Every table, in the report's order."""
