"""A table and its three forms: Markdown, LaTeX (booktabs), and CSV of the full-precision data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import text
from harness.files import write_atomic

Observation = Mapping[str, Any]
"""One row of the data behind a table or figure: its names are the columns of the CSV."""


@dataclass(frozen=True)
class TableRow:
    """One row as shown: heads of columns and their cells; ``rule``: a line above it."""

    cells: Mapping[str, str]
    rule: bool = False


@dataclass(frozen=True)
class Table:
    """``rows`` are for reading; ``data`` are the numbers behind them, one observation a row. The
    columns of both are the names in their first row, and every other row must have the same.

    left: text columns. volatile: holds times and costs, so it differs between two runs of the same
    study and is kept apart from the data files. empty: the columns shown and those of the data, for
    a table that may have no row.
    """

    key: str
    title: str
    caption: str
    rows: Sequence[TableRow]
    data: Sequence[Observation]
    notes: Sequence[str] = ()
    left: int = 1
    volatile: bool = False
    empty: tuple[Sequence[str], Sequence[str]] = ((), ())

    def __post_init__(self) -> None:
        same_names(f"table {self.key}, shown", [row.cells for row in self.rows])
        same_names(f"table {self.key}, data", self.data)

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0].cells if self.rows else self.empty[0])

    @property
    def data_columns(self) -> list[str]:
        return list(self.data[0] if self.data else self.empty[1])


def same_names(what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every row has the names of the first, in its order; ValueError names one that has not."""
    for number, row in enumerate(rows):
        if list(row) != list(rows[0]):
            raise ValueError(f"{what}: row {number} has {list(row)}, the first {list(rows[0])}")


@dataclass(frozen=True)
class Unavailable:
    """Why a table or figure is not there; shown in its place."""

    key: str
    title: str
    reason: str


def as_markdown(table: Table, level: int = 3) -> str:
    """Heading, pipe table, notes."""
    lines = [f"{'#' * level} {text.markdown(table.title)}", "", text.markdown(table.caption), ""]
    lines.append(pipes(table.columns, (row.cells.values() for row in table.rows), table.left))
    lines += ["", *(f"- {text.markdown(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def pipes(columns: Sequence[str], rows: Iterable[Iterable[str]], left: int) -> str:
    """A Markdown table; the first ``left`` columns are aligned left."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(text.markdown(cell) for cell in cells) + " |"

    lines = [line(columns), "|" + " :-- |" * left + " --: |" * (len(columns) - left)]
    body = [line(row) for row in rows] or ["| none |" + " |" * (len(columns) - 1)]
    return "\n".join([*lines, *body])


_LATEX = r"""% needs \usepackage{booktabs,graphicx,textcomp} and \usepackage[T1]{fontenc}
\begin{table*}[t]
\centering
\caption{CAPTION}
\label{tab:LABEL}
\small
\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%
\begin{tabular}{ALIGNMENT}
\toprule
BODY
\bottomrule
\end{tabular}}
NOTES\end{table*}
"""


def as_latex(table: Table) -> str:
    """A booktabs ``table*`` for a two-column paper; needs booktabs, graphicx and, for accents in
    labels, T1 and textcomp.
    """

    def line(cells: Iterable[str]) -> str:
        return " & ".join(text.latex(cell) for cell in cells) + r" \\"

    body = [line(table.columns), r"\midrule"]
    for number, row in enumerate(table.rows):
        if row.rule and number:
            body.append(r"\midrule")
        body.append(line(row.cells.values()))
    if not table.rows:
        body.append("none" + " &" * (len(table.columns) - 1) + r" \\")
    notes = " ".join(text.latex(note) for note in table.notes)
    if notes:
        notes = rf"\par\smallskip\parbox{{\textwidth}}{{\footnotesize {notes}}}" + "\n"
    parts = {
        "CAPTION": f"{text.latex(table.title)}. {text.latex(table.caption)}",
        "LABEL": table.key.replace("_", "-"),
        "ALIGNMENT": "l" * table.left + "r" * (len(table.columns) - table.left),
        "BODY": "\n".join(body),
        "NOTES": notes,
    }
    return re.sub("|".join(parts), lambda found: parts[found.group()], _LATEX)


def as_csv(table: Table) -> str:
    return text.csv_text(table.data_columns, (row.values() for row in table.data))


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write ``<key>.md``, ``.tex`` and ``.csv``; returns the paths."""
    forms = {".md": as_markdown(table), ".tex": as_latex(table), ".csv": as_csv(table)}
    paths = [folder / f"{table.key}{suffix}" for suffix in forms]
    for path, content in zip(paths, forms.values(), strict=True):
        write_atomic(path, content)
    return paths


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and JSON values of a nested mapping, in order."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((f"{prefix}{key}", said))
    return rows


def unique(notes: Sequence[str]) -> list[str]:
    """Notes without repeats, in order."""
    return list(dict.fromkeys(note for note in notes if note))
