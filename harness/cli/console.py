"""What a person sees: a run's progress, its finding, and tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from analysis.screen import ADAPTER, TERMS, Matrix, Opening, Score, Statement, command
from harness.engine.graph import Node, Plan
from harness.engine.worker import Result

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
MINUTE = 60.0


def say(text: str, *, wrong: bool = False) -> None:
    """One line as it stands: brackets in it are no markup."""
    (errors if wrong else console).print(text, markup=False, soft_wrap=True)


class ProgressDisplay:
    """Listener of a walk: a live bar by kind of stage on a terminal, otherwise one line a minute.
    What fails is said at once; ``verbose``: every ended stage. seconds: what each stage is expected
    to take; done: keys that are there already.
    """

    def __init__(
        self,
        plan: Plan,
        seconds: Mapping[str, float],
        done: Collection[str],
        workers: int,
        verbose: bool = False,
    ) -> None:
        self.names, self.verbose, self.workers = describe(plan), verbose, workers
        self.todo = {key: seconds[key] for key in plan.nodes if key not in done}
        self.kinds: dict[str, list[int]] = {}
        """Ended and all stages of a name."""
        for key in self.todo:
            self.kinds.setdefault(plan.nodes[key].stage, [0, 0])[1] += 1
        self.left, self.started = dict(self.todo), time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", justify="right"),
        )
        live = console.is_terminal
        self.bar = Progress(*columns, console=console, disable=not live, expand=True)
        self.tasks = {
            kind: self.bar.add_task(kind, total=count, left="")
            for kind, (_, count) in self.kinds.items()
        }
        self.whole = self.bar.add_task("all", total=len(self.todo), left=self.remaining())
        self.over = threading.Event()
        self.clock = threading.Thread(target=self._every_minute, daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self.bar.start()
        if self.bar.disable:
            self.clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.bar.stop()

    def __call__(self, node: Node, result: Result | None) -> None:
        if result is None:
            return
        if self.left.pop(node.key, None) is not None:
            self.kinds[node.stage][0] += 1
            self.bar.advance(self.tasks[node.stage])
            self.bar.update(self.whole, advance=1, left=self.remaining())
        if self.verbose or result.state != "done":
            state = "FAILED" if result.state == "failed" else result.state
            note = f"  {result.message}" if result.message else ""
            name = self.names.get(node.key, node.stage)
            say(f"{self.counted()}  {state:7s}  {name}  {result.seconds:.1f} s{note}")

    def counted(self) -> str:
        ended = len(self.todo) - len(self.left)
        return f"{duration(time.monotonic() - self.started):>8}  {ended:4d}/{len(self.todo)}"

    def remaining(self) -> str:
        """Expected from what is left, at the pace so far; a stage as long as the longest, which may
        be running, counts as if it had ended at the expected pace.
        """
        left, whole = sum(self.left.values()), sum(self.todo.values())
        longest = max(self.todo.values(), default=0.0) or 1.0
        elapsed = time.monotonic() - self.started + longest / max(1, self.workers)
        return f"about {duration(left * elapsed / (whole - left + longest))} left"

    def line(self) -> str:
        """``2 min 0 s  40/442  about 11 min left  (train 3/45, answer 5/48)``."""
        kinds = [f"{kind} {done}/{count}" for kind, (done, count) in self.kinds.items()]
        return f"{self.counted()}  {self.remaining()}  ({', '.join(kinds)})"

    def _every_minute(self) -> None:
        while not self.over.wait(MINUTE):
            say(self.line())


def duration(seconds: float) -> str:
    """``40 s``, ``2 min 5 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def describe(plan: Plan) -> dict[str, str]:
    """Key -> readable name: stage, the first run and iteration that need it, how many share it."""
    names: dict[str, str] = {}
    uses = plan.uses
    for run in plan.runs:
        for iteration, stages in run.iterations.items():
            for stage, key in stages.items():
                shared = f" (shared by {uses[key]} runs)" if uses[key] > 1 else ""
                name = plan.nodes[key].stage if key in plan.nodes else stage
                where = f"{name} · {run.cell.run} · iteration {iteration}{shared}"
                names.setdefault(key, where)
    return names


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    left: Sequence[int] = (0,),
    caption: str = "",
) -> None:
    """Print rows under their heads; columns are right-aligned but for ``left``. Where the terminal
    is too narrow for their longest words, each row stands as a list under its first cell.
    """
    shown = Table(title=escape(title) or None, caption=escape(caption) or None)
    for index, column in enumerate(columns):
        side: JustifyMethod = "left" if index in left else "right"
        shown.add_column(escape(column), justify=side, overflow="fold")
    cells = [[str(cell) for cell in row] for row in rows]
    for row in cells:
        shown.add_row(*map(escape, row))
    words = [" ".join(column).split() for column in zip(columns, *cells, strict=True)]
    if 1 + sum(3 + max(map(cell_len, some or [""])) for some in words) <= console.width:
        console.print(shown)
        return
    for text in (title, caption):
        console.print(text, markup=False, style="bold" if text == title else None)
    for first, *rest in cells:
        console.print(first, markup=False, style="bold")
        said = [f"{head}: {cell}" for head, cell in zip(columns[1:], rest, strict=True) if cell]
        console.print(Padding(escape("; ".join(said)), (0, 0, 0, 2)))


def analysis_table(found: Any) -> None:
    """A table of the analysis, its notes below."""
    cells = [row.cells.values() for row in found.rows]
    table(found.title, found.columns, cells, range(found.left), found.caption)
    for note in found.notes:
        say(note)


def relative(path: Path) -> str:
    """A path as the reader would type it from here."""
    whole = path.resolve()
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path)


MOST_MEASURES, MOST_ARMS, WIDEST_LABEL = 5, 24, 28
"""Of the table; the report holds all."""


def show_finding(folder: Path, file: str) -> None:
    """Print what ``finding.json`` in a report's folder holds. file: the study's, for commands."""
    found = ADAPTER.validate_json((folder / "finding.json").read_bytes())
    console.print(screen(found, folder, file, console.width))


def screen(found: Opening, folder: Path, file: str, width: int) -> Group:
    """Question, answer, what could be told, arms by measures, the report, what to do next."""
    parts: list[RenderableType] = [Rule(Text(found.name, style="bold"))]
    if found.question:
        parts.append(Text(found.question, style="italic"))
    parts += _statement(found.answer, "bold")
    parts += [Text(warning, style="yellow") for warning in found.warnings]
    for statement in found.statements[:1]:
        parts += _statement(statement)
    if found.matrix.measures:
        parts += ["", _matrix(found.matrix, width), Text(found.matrix.caption, style="dim")]
    if any(statement.exact for statement in (found.answer, *found.statements[:1])):
        parts.append(Text(TERMS, style="dim"))
    facts = Table.grid(padding=(0, 2))
    page = relative(folder / "index.html")
    facts.add_row("Report", Text(f"{page} (and report.md)", overflow="fold"))
    for step in found.next:
        facts.add_row("Next", Text(step.says, overflow="fold"))
        if typed := command(step, file, found.changed) if file else "":
            facts.add_row("", Text(typed, style="cyan", overflow="fold"))
    return Group(*parts, "", facts)


def _statement(statement: Statement, style: str = "") -> list[RenderableType]:
    exact = [Padding(Text(statement.exact, style="dim"), (0, 0, 0, 2))] * bool(statement.exact)
    return [Text(statement.plain, style=style), *exact]


def _matrix(matrix: Matrix, width: int) -> Table:
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
