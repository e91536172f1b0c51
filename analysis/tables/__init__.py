"""Every table of a report: a function of a study that returns a ``Table``, or ``Unavailable``
with the reason when the study does not hold its data.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.load import StudyData
from analysis.table import Table, Unavailable
from analysis.tables import differences, judge, scores, study

TABLES: dict[str, Callable[[StudyData], Table | Unavailable]] = {
    "differences": differences.table_differences,
    "difference_checks": differences.table_difference_checks,
    "differences_by_iteration": differences.table_differences_by_iteration,
    "matched_kl": differences.table_matched_kl,
    "table_1": scores.table_1,
    "table_2": scores.table_2,
    "heldout": scores.table_heldout,
    "iqm": scores.table_iqm,
    "selection": differences.table_selection,
    "diagnostics": scores.table_diagnostics,
    "judge": judge.table_judge,
    "alpaca_eval": judge.table_alpaca_eval,
    "position_flips": judge.table_position_flips,
    "ranker_judge": judge.table_ranker_judge,
    "completeness": study.table_completeness,
    "left_out": study.table_left_out,
    "unfinished": study.table_unfinished,
    "published_1": lambda _: scores.table_published("published_1"),
    "published_2": lambda _: scores.table_published("published_2"),
    "published_cards": lambda _: scores.table_published("published_cards"),
    "costs": study.table_costs,
}
"""Every table, in the report's order."""


def tables_of(data: StudyData) -> dict[str, Table | Unavailable]:
    """Every table of a study: those of ``TABLES``, and one for each benchmark that has its own."""
    return {key: build(data) for key, build in TABLES.items()} | scores.own_tables(data)
