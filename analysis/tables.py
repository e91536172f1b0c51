"""Every table of a report. A new table is one function of a study and one entry of ``TABLES``.

A function returns a ``Table``, or ``Unavailable`` with the reason when the study does not hold its
data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis import comparable, findings, measures
from analysis import tables_agreement as agreement
from analysis import tables_differences as differences
from analysis import tables_judge as judge
from analysis import tables_more as more
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.table import Row, Table, Unavailable, unique
from analysis.table_cells import POPULATIONS_NOTE, SCORE_DATA, c_of, cell_text, kappa_of, score_data
from analysis.text import coefficient


# -- scores ----------------------------------------------------------------------------------------
def score_table(
    data: StudyData, key: str, title: str, columns: Sequence[Measure], extra: str = ""
) -> Table | Unavailable:
    """Checkpoints × measures in the paper's form, with c, κ (where any arm explores) and the number
    of seeds.
    """
    present = {benchmark for benchmark, _ in data.metrics()}
    if not any(set(measure.strata or (measure.benchmark,)) & present for measure in columns):
        return Unavailable(key, title, "no score of these benchmarks is stored yet")
    explores = any(c_of(checkpoint) for checkpoint in data.checkpoints)
    rows, numbers, notes, arm = [], [], [], None
    items: dict[str, int] = {}
    for checkpoint in data.checkpoints:
        estimates = [findings.estimate(data, checkpoint, measure) for measure in columns]
        numbers += [
            score_data(data, checkpoint, m, e) for m, e in zip(columns, estimates, strict=True)
        ]
        items |= {
            m.key: max(items.get(m.key, 0), e.clusters)
            for m, e in zip(columns, estimates, strict=True)
        }
        cells = [cell_text(e, m) for m, e in zip(columns, estimates, strict=True)]
        seeds = str(max((len(measures.points(data, checkpoint, m)) for m in columns), default=0))
        strength = (
            (coefficient(c_of(checkpoint)), coefficient(kappa_of(checkpoint))) if explores else ()
        )
        rows.append(Row((checkpoint.title, *strength, *cells, seeds), checkpoint.arm != arm))
        arm = checkpoint.arm
        notes += [
            f"{checkpoint.title}: {reason}"
            for m in columns
            for part in measures.parts(data, checkpoint, m)
            for reason in part.absent
        ]
    single = all(len(c.runs) == 1 for c in data.checkpoints)
    shown = (
        "± half-width of the interval over items, given this one checkpoint"
        if single
        else "mean over seeds ± half-width (A), in brackets half-width (B)"
    )
    caption = f"{shown}{'; c: coefficient on log π(y), κ = 2c/β' if explores else ''}; n: seeds with scores.{' ' + extra if extra else ''}"
    if any("†" in cell for row in rows for cell in row.cells):
        notes.insert(
            0,
            f"†: at least {_percent(findings.bar(data))} but not all rows are scored; items not "
            "scored for every seed are left out.",
        )
    if any("± –" in cell or "(–)" in cell for row in rows for cell in row.cells):
        notes.insert(
            0,
            "± –: no interval, because all seeds (or all items) gave the same score; it is never "
            "shown as zero.",
        )
    notes[:0] = comparable.notes(data, {measure.benchmark for measure in columns})
    notes[:0] = [
        _grouped("Units", [(m.unit, m) for m in columns]),
        _grouped("Items a seed", [(_items(m, items), m) for m in columns]),
    ]
    heads = (
        "checkpoint",
        *(("c", "κ") if explores else ()),
        *(measure.title for measure in columns),
        "n",
    )
    return Table(
        key,
        title,
        caption[0].upper() + caption[1:],
        heads,
        tuple(rows),
        SCORE_DATA,
        tuple(numbers),
        unique([POPULATIONS_NOTE, *notes] if not single else notes),
    )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _items(measure: Measure, items: dict[str, int]) -> str:
    return f"{items.get(measure.key, 0)} {measure.unit_of_items}"


def _grouped(head: str, pairs: Sequence[tuple[str, Measure]]) -> str:
    """ "Units: percent (AlpacaEval LC, AlpacaEval WR), characters (length)."."""
    by: dict[str, list[str]] = {}
    for value, measure in pairs:
        by.setdefault(value, []).append(measure.title)
    return (
        f"{head}: "
        + ", ".join(
            value if len(by) == 1 else f"{value} ({', '.join(titles)})"
            for value, titles in by.items()
        )
        + "."
    )


def table_1(data: StudyData) -> Table | Unavailable:
    return score_table(
        data,
        "table_1",
        "Table 1. AlpacaEval 2.0 and MT-Bench",
        measures.TABLE_1,
        "Length-controlled win rate: the library's point, intervals from the "
        "delete-one-instruction jackknife.",
    )


def table_2(data: StudyData) -> Table | Unavailable:
    return score_table(
        data,
        "table_2",
        "Table 2. Academic benchmarks",
        measures.academic(data),
        "The mean weighs every benchmark the same.",
    )


def table_heldout(data: StudyData) -> Table | Unavailable:
    columns = [
        measures.heldout(data, sampled=s, ood=o) for o in (False, True) for s in (False, True)
    ]
    present = [m for m in columns if (m.benchmark, m.metric) in data.metrics()]
    kind = (data.recipe.get("ranker") or {}).get("kind", "oracle")
    return score_table(
        data,
        "heldout",
        "Reward of answers to held-out prompts",
        present,
        f"Reward by the recipe's ranker ({kind}).",
    )


TABLES: dict[str, Callable[[StudyData], Table | Unavailable]] = {
    "differences": differences.table_differences,
    "difference_checks": differences.table_difference_checks,
    "differences_by_iteration": differences.table_differences_by_iteration,
    "table_1": table_1,
    "table_2": table_2,
    "heldout": table_heldout,
    "iqm": more.table_iqm,
    "selection": differences.table_selection,
    "diagnostics": more.table_diagnostics,
    "judge": judge.table_judge,
    "alpaca_eval": judge.table_alpaca_eval,
    "position_flips": agreement.table_position_flips,
    "ranker_judge": agreement.table_ranker_judge,
    "completeness": more.table_completeness,
    "unfinished": more.table_unfinished,
    "published_1": more.table_published_1,
    "published_2": more.table_published_2,
    "costs": more.table_costs,
}
"""Every table, in the report's order."""
