"""The first screen of a report as plain data: what ``finding.json`` holds, the terminal, report.md
and the page show. Light to import, so that a finished study's finding is shown at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

TERMS = (
    "Small print: intervals are 95 %, for (A) this benchmark and new seeds, or (B) new seeds and "
    "new items. Holm: p corrected for all declared comparisons together. MDE: the smallest "
    "difference found with 80 % power at 5 % in one comparison alone (in brackets: as far as the "
    "spread over seeds is known)."
)


@dataclass(frozen=True)
class Statement:
    """plain: sentences for any reader. exact: the statistics behind them, for specialists."""

    plain: str
    exact: str = ""


@dataclass(frozen=True)
class Score:
    """One arm on one measure. value: the difference to the baseline; the score itself for the
    baseline and where nothing is compared. half: half-width of interval (A), None without one.
    effect: value over half times the sign of better. shown: what a cell of a table says.
    """

    shown: str
    value: float | None = None
    half: float | None = None
    effect: float | None = None
    baseline: bool = False


@dataclass(frozen=True)
class Matrix:
    """Arms by measures: primary, declared, headlines. caption: what a cell is."""

    measures: tuple[str, ...]
    arms: tuple[str, ...]
    cells: tuple[tuple[Score, ...], ...]
    caption: str


@dataclass(frozen=True)
class Next:
    """What to do: a reason and, where it is a command, what follows ``selm run STUDY.yaml``."""

    says: str
    options: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Opening:
    """All of it, as plain data: what ``finding.json`` holds."""

    name: str
    question: str
    answer: Statement
    warnings: tuple[str, ...]
    statements: tuple[Statement, ...]
    matrix: Matrix
    next: tuple[Next, ...]
    changed: tuple[str, ...]
    """``key=value`` of every ``--set`` that the study ran with, quoted for a shell."""


ADAPTER = TypeAdapter(Opening)


def command(step: Next, file: str, changed: Sequence[str]) -> str:
    """The step as typed, with what ``--set`` changed before; empty of no command."""
    if step.options is None:
        return ""
    kept = [one for one in changed if not one.lstrip("'").startswith("seeds=") or not step.options]
    options = (*kept, *map(shlex.quote, step.options))
    return " ".join(["selm run", shlex.quote(file), *(f"--set {one}" for one in options)])
