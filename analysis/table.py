"""A table and its three forms: Markdown, LaTeX (booktabs), and CSV of the full-precision data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from analysis import measures, text
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.stats import Estimate, Interval
from analysis.text import number
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
    for place, row in enumerate(rows):
        if list(row) != list(rows[0]):
            raise ValueError(f"{what}: row {place} has {list(row)}, the first {list(rows[0])}")


@dataclass(frozen=True)
class Unavailable:
    """Why a table or figure is not there; shown in its place."""

    key: str
    title: str
    reason: str


def as_markdown(table: Table) -> str:
    """Heading, pipe table, notes."""
    lines = [f"### {text.markdown(table.title)}", "", text.markdown(table.caption), ""]
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


_LATEX = Template(
    r"""% needs \usepackage{booktabs,graphicx,textcomp} and \usepackage[T1]{fontenc}
\begin{table*}[t]
\centering
\caption{$caption}
\label{tab:$label}
\small
\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%
\begin{tabular}{$alignment}
\toprule
$body
\bottomrule
\end{tabular}}
$notes\end{table*}
"""
)


def as_latex(table: Table) -> str:
    """A booktabs ``table*``."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(text.latex(cell) for cell in cells) + r" \\"

    body = [line(table.columns), r"\midrule"]
    for place, row in enumerate(table.rows):
        body += [r"\midrule"] if row.rule and place else []
        body.append(line(row.cells.values()))
    if not table.rows:
        body.append("none" + " &" * (len(table.columns) - 1) + r" \\")
    notes = " ".join(text.latex(note) for note in table.notes)
    if notes:
        notes = rf"\par\smallskip\parbox{{\textwidth}}{{\footnotesize {notes}}}" + "\n"
    return _LATEX.substitute(
        caption=f"{text.latex(table.title)}. {text.latex(table.caption)}",
        label=table.key.replace("_", "-"),
        alignment="l" * table.left + "r" * (len(table.columns) - table.left),
        body="\n".join(body),
        notes=notes,
    )


def as_csv(table: Table) -> str:
    return text.csv_text(table.data_columns, table.data)


def write_table(table: Table, folder: Path) -> None:
    """Write ``<key>.md``, ``.tex`` and ``.csv``."""
    for kind, form in {"md": as_markdown, "tex": as_latex, "csv": as_csv}.items():
        write_atomic(folder / f"{table.key}.{kind}", form(table))


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


# -- cells of scores -------------------------------------------------------------------------------
POPULATIONS_NOTE = (
    "Intervals are 95 %. (A): this benchmark, new seeds. (B): new seeds and new items. Seeds and "
    "items are crossed; none is given below 3 seeds."
)


def judged(data: StudyData) -> dict[str, Measure]:
    """Title of a judged benchmark → its measure that has one value an item."""
    found = {}
    for benchmark in data.benchmarks:
        if benchmark["judged"]:
            metric = (benchmark["samples"] or benchmark["measures"][0])["metric"]
            found[benchmark["title"]] = measures.find(data, benchmark["name"], metric)
    return found


def verdict(comparable: bool) -> str:
    """Whether scores may stand beside published ones, in words."""
    scores = "comparable with published scores"
    if comparable:
        return f"{scores}: judge, questions, references and prompts are the published ones"
    return f"not {scores}: another judge, or other questions, references or prompts"


def grouped(head: str, said: Mapping[str, str]) -> str:
    """ "Units: percent (AlpacaEval LC, AlpacaEval WR), characters (length)."."""
    by: dict[str, list[str]] = {}
    for name, value in said.items():
        by.setdefault(value, []).append(name)
    if len(by) == 1:
        return f"{head}: {next(iter(by))}."
    parts = [f"{value} ({', '.join(names)})" for value, names in by.items()]
    return f"{head}: {'; '.join(parts) if any(',' in one for one in by) else ', '.join(parts)}."


def items_note(data: StudyData, scored: Mapping[Measure, int], *, alone: bool = False) -> str:
    """ "Items a seed: 80 questions (MT-Bench), 12 items, the first of … (HellaSwag).". alone: under
    the names that measures have outside their table.
    """
    told = {
        m.name if alone else m.title: measures.items_told(data, m, count)
        for m, count in scored.items()
    }
    return grouped("Items a seed" if len(data.seeds) > 1 else "Items scored", told)


def cell_text(estimate: Estimate, measure: Measure) -> str:
    """ "24.25 ± 0.41 (1.62)": mean, half-widths (A) and (B); or INCOMPLETE with bounds."""
    digits = estimate.digits(measure.digits)
    if estimate.incomplete or estimate.value is None:
        if not estimate.expected:
            return "–"
        ends = [number(end, digits) for end in estimate.bounds or ()]
        return f"{incomplete_text(estimate)} {'–'.join(ends)}".rstrip()
    dagger = "†" if estimate.scored < estimate.expected else ""
    value = number(estimate.value, digits) + dagger
    items = estimate.intervals.get("items")
    if items is not None:
        return f"{value} {spread_text(items, digits)}"
    half = {name: number(i.half_width, digits) for name, i in estimate.intervals.items()}
    return f"{value} ± {half['A']} ({half['B']})"


def spread_text(interval: Interval, digits: int) -> str:
    """What stands behind a value: "± 0.41"; the ends of an interval that lies otherwise around it
    (100 of 100 right is 96.3 to 100.0, never 100 ± 1.8).
    """
    if interval.defined and not interval.symmetric:
        return f"({interval_text(interval, digits)})"
    return f"± {number(interval.half_width, digits)}"


def incomplete_text(estimate: Estimate) -> str:
    return f"INCOMPLETE ({estimate.scored} of {estimate.expected})"


def interval_text(interval: Interval | None, digits: int) -> str:
    """ "−0.80 to 3.20", or a dash."""
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def ends(estimate: Estimate, *names: str, p: bool = False) -> dict[str, object]:
    """Fields "A_low", "A_high" (and "A_p") of the named intervals; None where there is none."""
    fields: dict[str, object] = {}
    for name in names:
        interval = estimate.intervals.get(name)
        for end in ("low", "high", "p") if p else ("low", "high"):
            fields[f"{name}_{end}"] = getattr(interval, end, None)
    return fields


def counts(estimate: Estimate) -> dict[str, object]:
    """Fields that say what an estimate rests on."""
    return {name: getattr(estimate, name) for name in ("seeds", "clusters", "scored", "expected")}
