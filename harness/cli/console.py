"""What a person sees: progress of a run, tables of plans and states. Plain lines when the output is
no terminal.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
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

from harness.engine.execute import Summary
from harness.engine.graph import Node, Plan
from harness.engine.store import Store
from harness.engine.worker import Result

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


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
        )
        self.task = self.bar.add_task("starting", total=todo)

    def __enter__(self) -> ProgressDisplay:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def __call__(self, event: str, node: Node | None, result: Result | None) -> None:
        if node is None:
            return
        name = escape(self.names.get(node.key, node.stage))
        if event == "start" and self.live:
            self.bar.update(self.task, description=name)
        elif event == "end" and result is not None:
            self.ended += 1
            if self.live:
                self.bar.update(self.task, completed=self.ended)
            mark = {"done": "done   ", "partial": "partial", "failed": "FAILED "}.get(
                result.state, result.state
            )
            note = f"  {escape(result.message)}" if result.message else ""
            if not self.live or result.state != "done":
                elapsed = time.time() - self.started
                console.print(
                    f"{elapsed:7.1f} s  {self.ended:4d}/{self.todo}  {mark}  {name}  "
                    f"{result.seconds:.1f} s{note}",
                    soft_wrap=True,
                )


def describe(plan: Plan) -> dict[str, str]:
    """A readable name for every stage: stage, the first run and iteration that need it, and how
    many share it.
    """
    names: dict[str, str] = {}
    uses = plan.uses
    for run in plan.runs:
        for iteration, stages in enumerate(run.iterations):
            for stage, key in stages.items():
                shared = f" (shared by {uses[key]} runs)" if uses[key] > 1 else ""
                names.setdefault(
                    key,
                    f"{plan.nodes[key].stage if key in plan.nodes else stage} · {run.cell.run} · "
                    f"iteration {iteration}{shared}",
                )
    return names


def show_plan(
    plan: Plan, states: Mapping[str, str], seconds: Mapping[str, float], workers: int
) -> None:
    """Cells, stages by name, shared, done and to do, and the estimated time with and without
    sharing.
    """
    uses = plan.uses
    cells, seeds = len(plan.study.cells), len(plan.study.seeds)
    table = Table(
        title=f"Study {plan.study.name}: {cells} cells ({cells // seeds} arms × {seeds} seeds)"
    )
    for column in ("stage", "in all", "shared", "done", "to do", "seconds to do"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    names = list(dict.fromkeys(node.stage for node in plan.nodes.values()))
    for name in names:
        keys = [key for key, node in plan.nodes.items() if node.stage == name]
        todo = [key for key in keys if states.get(key) != "done"]
        shared = sum(uses.get(key, 0) > 1 for key in keys)
        table.add_row(
            name,
            str(len(keys)),
            str(shared),
            str(len(keys) - len(todo)),
            str(len(todo)),
            f"{sum(seconds[key] for key in todo):.0f}",
        )
    todo = [key for key in plan.nodes if states.get(key) != "done"]
    table.add_section()
    table.add_row(
        "all",
        str(len(plan.nodes)),
        str(sum(count > 1 for count in uses.values())),
        str(len(plan.nodes) - len(todo)),
        str(len(todo)),
        f"{sum(seconds[key] for key in todo):.0f}",
    )
    console.print(table)
    unshared = sum(seconds[key] * uses.get(key, 1) for key in plan.nodes)
    whole = sum(seconds.values())
    console.print(
        f"Stage-seconds of the whole study: {whole:.0f} with sharing, {unshared:.0f} without "
        f"({unshared / max(whole, 1e-9):.2f}×)."
    )
    left = sum(seconds[key] for key in todo)
    console.print(
        f"Left to do: {left:.0f} stage-seconds, about {left / max(1, workers) / 60:.1f} minutes "
        f"on {workers} worker{'s' if workers != 1 else ''}."
    )


def show_summary(summary: Summary, elapsed: float, names: Mapping[str, str]) -> None:
    """One line on how the walk ended, then every failed, incomplete or blocked stage with its
    reason.
    """
    console.print(
        f"{summary.executed} stages executed, {summary.reused} reused, {len(summary.failed)} "
        f"failed, {len(summary.partial)} partial, "
        f"{len(summary.blocked)} not reached; {elapsed:.1f} s ({summary.seconds:.0f} "
        "stage-seconds)."
    )
    for title, reasons in (("FAILED", summary.failed), ("PARTIAL", summary.partial)):
        for key, reason in reasons.items():
            errors.print(
                f"{title} {escape(names.get(key, key[:12]))} \\[{key[:12]}]: {escape(reason)}"
            )


def show_status(manifest: Mapping[str, Any], store: Store) -> int:
    """States of a study's stages, by run; returns how many are not done."""
    keys = list(manifest["stages"])
    states = store.states(keys)
    counts = Counter(states.values())
    console.print(
        f"Study {escape(manifest['study']['name'])}: {len(keys)} stages: "
        + ", ".join(
            f"{counts.get(s, 0)} {s}" for s in ("done", "running", "partial", "failed", "missing")
        )
    )
    table = Table()
    for column in ("run", "done", "running", "partial", "failed", "missing"):
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for run in manifest["runs"][:200]:
        mine = Counter(
            states[key]
            for key in {key for it in run["iterations"] for key in it["stages"].values()}
        )
        table.add_row(
            escape(run["run"]),
            *(
                str(mine.get(state, 0))
                for state in ("done", "running", "partial", "failed", "missing")
            ),
        )
    console.print(table)
    for key in keys:
        if states[key] == "running":
            owner = store.owner(key)
            by = (
                f" on {owner['host']}, process {owner['pid']}, since {clock(owner['since'])}"
                if owner
                else ""
            )
            console.print(
                f"running  {manifest['stages'][key]['stage']}  \\[{key[:12]}]{escape(by)}",
                soft_wrap=True,
            )
        elif states[key] == "failed":
            console.print(
                f"FAILED   {manifest['stages'][key]['stage']}  \\[{key[:12]}]: "
                f"{escape(str(store.failure(key).get('reason', '')))}",
                soft_wrap=True,
            )
    return len(keys) - counts.get("done", 0)


def clock(seconds: float) -> str:
    """A moment as the owner's clock told it, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def show_stage(store: Store, key: str) -> None:
    """A stage's record: settings, inputs, files, costs."""
    record = store.record(key)
    console.print(
        f"stage {record.stage} v{record.version}  {key}\nfolder {store.folder(key)}", soft_wrap=True
    )
    for title, mapping in (
        ("settings", record.settings),
        ("inputs", record.inputs),
        ("costs", record.costs),
        ("summary", record.summary),
        ("files (SHA-256)", record.files),
        ("environment", record.environment),
    ):
        console.print(f"{title}:")
        for name, value in mapping.items():
            console.print(f"  {escape(str(name))}: {escape(str(value))}", soft_wrap=True)


def relative(path: Path) -> str:
    """A path as the reader would type it from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def show_table(table: Any) -> None:
    """An analysis table on the terminal, its notes below."""
    shown = Table(title=escape(table.title), caption=escape(table.caption))
    for index, column in enumerate(table.columns):
        shown.add_column(escape(column), justify="left" if index < table.left else "right")
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row.cells))
    console.print(shown)
    for note in table.notes:
        console.print(escape(note), soft_wrap=True)
