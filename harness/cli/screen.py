"""The finding of a study on one terminal screen."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from analysis.screen import ADAPTER, TERMS, Matrix, Opening, Score, Statement, command
from harness.cli import console as shown

MOST_MEASURES, MOST_ARMS, WIDEST_LABEL = 5, 24, 28
"""Of the table; the report holds all."""


def show(folder: Path, file: str) -> None:
    """Print what ``finding.json`` in a report's folder holds. file: the study's, for commands."""
    found = ADAPTER.validate_json((folder / "finding.json").read_bytes())
    shown.console.print(screen(found, folder, file, shown.console.width))


def screen(found: Opening, folder: Path, file: str, width: int) -> Group:
    """Question, answer, what could have been told, arms by measures, where the report is, what to
    do next.
    """
    parts: list[RenderableType] = [Rule(Text(found.name, style="bold"))]
    if found.question:
        parts.append(Text(found.question, style="italic"))
    parts += _statement(found.answer, "bold")
    parts += [Text(warning, style="yellow") for warning in found.warnings]
    for statement in found.statements[:1]:
        parts += _statement(statement)
    if found.matrix.measures:
        parts += ["", _table(found.matrix, width), Text(found.matrix.caption, style="dim")]
    if any(statement.exact for statement in (found.answer, *found.statements[:1])):
        parts.append(Text(TERMS, style="dim"))
    facts = Table.grid(padding=(0, 2))
    page = shown.relative(folder / "index.html")
    facts.add_row("Report", Text(f"{page} (and report.md)", overflow="fold"))
    for step in found.next:
        facts.add_row("Next", Text(step.says, overflow="fold"))
        if typed := command(step, file, found.changed) if file else "":
            facts.add_row("", Text(typed, style="cyan", overflow="fold"))
    return Group(*parts, "", facts)


def _statement(statement: Statement, style: str = "") -> list[RenderableType]:
    exact = [Padding(Text(statement.exact, style="dim"), (0, 0, 0, 2))] * bool(statement.exact)
    return [Text(statement.plain, style=style), *exact]


def _table(matrix: Matrix, width: int) -> Table:
    """As many measures as have room, the first of them first."""
    columns = [
        max(*map(len, name.split()), *(len(row[at].shown) for row in matrix.cells))
        for at, name in enumerate(matrix.measures)
    ]
    label = min(max(map(len, matrix.arms)), WIDEST_LABEL)
    room = width - label
    count = 0
    # Three cells part two columns: a blank on either side of the place of a rule.
    while count < min(MOST_MEASURES, len(columns)) and (room := room - columns[count] - 3) >= 0:
        count += 1
    count = max(count, 1)
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    found.add_column("arm", min_width=label, max_width=label, overflow="fold")
    for name, least in zip(matrix.measures[:count], columns, strict=False):
        found.add_column(Text(name), justify="right", width=least)
    for name, row in list(zip(matrix.arms, matrix.cells, strict=True))[:MOST_ARMS]:
        found.add_row(Text(name), *map(_cell, row[:count]))
    if len(matrix.arms) > MOST_ARMS:
        found.add_row(f"and {len(matrix.arms) - MOST_ARMS} more")
    return found


def _cell(score: Score) -> Text:
    if score.effect is None or abs(score.effect) <= 1:
        return Text(score.shown)
    return Text(score.shown, style="green" if score.effect > 0 else "red")
