"""A table and its four forms: Markdown, LaTeX (booktabs), CSV of the full-precision data, and HTML
that can be sorted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import text
from harness.records import HarnessError


@dataclass(frozen=True)
class Row:
    """One row of shown cells; ``rule``: a line above it."""

    cells: tuple[str, ...]
    rule: bool = False


@dataclass(frozen=True)
class Table:
    """``columns`` and ``rows`` are for reading; ``data_columns`` and ``data`` are the numbers
    behind them, one observation a row.

    volatile: holds times and costs, so it differs between two runs of the same study and is kept
    apart from the data files.
    """

    key: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    data_columns: tuple[str, ...]
    data: tuple[tuple[object, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 1
    volatile: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"table {self.key}: a row of {len(row.cells)} cells under {len(self.columns)} "
                    f"columns: {row.cells[:2]}"
                )
        for values in self.data:
            if len(values) != len(self.data_columns):
                raise ValueError(
                    f"table {self.key}: data row of {len(values)} values under "
                    f"{len(self.data_columns)} columns"
                )


@dataclass(frozen=True)
class Unavailable:
    """Why a table or figure is not there; shown in its place."""

    key: str
    title: str
    reason: str


def as_markdown(table: Table, level: int = 3) -> str:
    """Heading, pipe table, notes."""
    lines = [f"{'#' * level} {text.markdown(table.title)}", "", text.markdown(table.caption), ""]
    lines.append("| " + " | ".join(text.markdown(name) for name in table.columns) + " |")
    lines.append(
        "|"
        + "|".join(" :-- " if i < table.left else " --: " for i in range(len(table.columns)))
        + "|"
    )
    lines += [
        "| " + " | ".join(text.markdown(cell) for cell in row.cells) + " |" for row in table.rows
    ]
    if not table.rows:
        lines.append("| none |" + " |" * (len(table.columns) - 1))
    lines += ["", *(f"- {text.markdown(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def as_latex(table: Table) -> str:
    """A booktabs ``table*`` for a two-column paper; needs booktabs, graphicx and, for accents in
    labels, T1 and textcomp.
    """
    alignment = "l" * table.left + "r" * (len(table.columns) - table.left)
    body = []
    for number, row in enumerate(table.rows):
        if row.rule and number:
            body.append(r"\midrule")
        body.append(" & ".join(text.latex(cell) for cell in row.cells) + r" \\")
    if not table.rows:
        body.append("none" + " &" * (len(table.columns) - 1) + r" \\")
    notes = " ".join(text.latex(note) for note in table.notes)
    header = " & ".join(text.latex(name) for name in table.columns)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx,textcomp} and \\usepackage[T1]{fontenc}",
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{text.latex(table.title)}. {text.latex(table.caption)}}}",
            rf"\label{{tab:{table.key.replace('_', '-')}}}",
            r"\small",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            header + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *([rf"\par\smallskip\parbox{{\textwidth}}{{\footnotesize {notes}}}"] if notes else []),
            r"\end{table*}",
            "",
        ]
    )


def as_csv(table: Table) -> str:
    return text.csv_text(table.data_columns, table.data)


def as_html(table: Table) -> str:
    """A table in a scrollable region; column heads are buttons that sort."""
    head = "".join(
        f'<th scope="col"{" class=text" if i < table.left else ""} aria-sort="none">'
        f'<button type="button" class="sort">{text.html(name)}</button></th>'
        for i, name in enumerate(table.columns)
    )
    body = []
    for row in table.rows:
        cells = []
        for i, cell in enumerate(row.cells):
            shown = f'data-v="{text.html(sort_value(cell))}">{text.html(cell)}'
            if i == 0:
                cells.append(f'<th scope="row" {shown}</th>')
                continue
            kind = ""
            if i < table.left:
                kind = ' class="text"'
            elif cell.startswith("INCOMPLETE"):
                kind = ' class="missing"'
            cells.append(f"<td{kind} {shown}</td>")
        body.append(f"<tr{' class=rule' if row.rule else ''}>{''.join(cells)}</tr>")
    if not table.rows:
        body.append(f'<tr><td colspan="{len(table.columns)}">none</td></tr>')
    notes = "".join(f"<li>{text.html(note)}</li>" for note in table.notes)
    notes = f"<ul class=notes>{notes}</ul>" if notes else ""
    title = text.html(table.title)
    return (
        f'<section id="table-{table.key}" class="exhibit"><h3>{title}</h3><p '
        f'class="caption">{text.html(table.caption)}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table '
        f'class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{notes}</section>"
    )


def sort_value(cell: str) -> str:
    """The number a cell starts with, as a plain decimal; other text as it is, and missing values as
    an empty text (sorted last).
    """
    if cell in ("", "–") or cell.startswith("INCOMPLETE"):
        return ""
    match = re.match(r"[+<≥≈ ]*([−-]?\d+(?:\.\d+)?(?:e[−+-]?\d+)?)(?=$|[\s/%†(])", cell)
    return match.group(1).replace("−", "-") if match else cell


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write ``<key>.md``, ``.tex`` and ``.csv``; returns the paths."""
    written = []
    for suffix, content in (
        (".md", as_markdown(table)),
        (".tex", as_latex(table)),
        (".csv", as_csv(table)),
    ):
        path = folder / f"{table.key}{suffix}"
        write_text(path, content)
        written.append(path)
    return written


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text through a temporary file; a full disk leaves the old file and raises
    HarnessError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.encode("utf-8", "strict"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HarnessError(
            f"{path}: cannot be written ({error.strerror or error}); the old file is intact"
        ) from error


def unique(notes: Sequence[str]) -> tuple[str, ...]:
    """Notes without repeats, in order."""
    return tuple(dict.fromkeys(note for note in notes if note))
