"""What a person sees: a run's progress, and tables. Plain lines where output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from harness.engine.graph import Node, Plan
from harness.engine.worker import Result

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
MARKS = {"done": "done   ", "partial": "partial", "failed": "FAILED "}


def say(text: str, *, wrong: bool = False) -> None:
    """One line as it stands: brackets in it are no markup."""
    (errors if wrong else console).print(text, markup=False, soft_wrap=True)


class ProgressDisplay:
    """Listener of a walk: a live bar on a terminal, otherwise one line per ended stage."""

    def __init__(self, plan: Plan, todo: int) -> None:
        self.names = describe(plan)
        self.todo, self.ended, self.started = todo, 0, time.time()
        self.live = console.is_terminal
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("starting", total=todo)

    def __enter__(self) -> ProgressDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: str, node: Node | None, result: Result | None) -> None:
        if node is None:
            return
        name = self.names.get(node.key, node.stage)
        if event == "start":
            self.bar.update(self.task, description=escape(name))
        elif event == "end" and result is not None:
            self.ended += 1
            self.bar.update(self.task, completed=self.ended)
            if self.live and result.state == "done":
                return
            mark = MARKS.get(result.state, result.state)
            note = f"  {result.message}" if result.message else ""
            when = f"{time.time() - self.started:7.1f} s  {self.ended:4d}/{self.todo}"
            say(f"{when}  {mark}  {name}  {result.seconds:.1f} s{note}")


def describe(plan: Plan) -> dict[str, str]:
    """Key -> readable name: stage, the first run and iteration that need it, how many share it."""
    names: dict[str, str] = {}
    for run in plan.runs:
        for iteration, stages in run.iterations.items():
            for stage, key in stages.items():
                shared = f" (shared by {plan.uses[key]} runs)" if plan.uses[key] > 1 else ""
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
    """Print rows under their heads; columns are right-aligned but for ``left``."""
    shown = Table(title=escape(title) or None, caption=escape(caption) or None)
    for index, column in enumerate(columns):
        shown.add_column(escape(column), justify="left" if index in left else "right")
    for row in rows:
        shown.add_row(*(escape(str(cell)) for cell in row))
    console.print(shown)


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
