"""``selm published DIR``: every published figure that public artefacts allow to recompute, beside
what this harness computes.

DIR is laid out as the benchmarks' owners publish:
``alpaca_eval/<model>/{annotations,model_outputs}.json`` with ``leaderboard.csv`` and GLM weights,
``mt_bench/judgments_*.jsonl`` with ``published.csv``, answers, references and judge prompts,
``academic/*_eqbench_v2_results.json``. Any model found there is checked. Nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.records import HarnessError

if TYPE_CHECKING:
    from rich.console import Console

EQ_BENCH_TOLERANCE = 0.02
"""Published with two decimals, some cut and some rounded."""


@dataclass(frozen=True)
class Row:
    """One figure. tolerance None: shown for comparison, not required to agree (the note says why);
    such rows are ``ok``.
    """

    source: str
    model: str
    figure: str
    published: float | None
    recomputed: float | None
    tolerance: float | None
    ok: bool
    note: str = ""

    @property
    def difference(self) -> float | None:
        """recomputed - published, or None when one of them is missing."""
        return (
            None
            if self.published is None or self.recomputed is None
            else self.recomputed - self.published
        )


def compare(
    source: str,
    model: str,
    figure: str,
    published: float | None,
    recomputed: float | None,
    tolerance: float,
    note: str = "",
) -> Row:
    """A row that must agree within ``tolerance`` (absolute); without a published figure it is only
    shown.
    """
    if published is None or math.isnan(published):
        return show(
            source, model, figure, None, recomputed, note or "no published figure to compare with"
        )
    ok = recomputed is not None and abs(recomputed - published) <= tolerance
    return Row(source, model, figure, published, recomputed, tolerance, ok, note)


def show(
    source: str,
    model: str,
    figure: str,
    published: float | None,
    recomputed: float | None,
    note: str,
) -> Row:
    """A row that is shown and not compared."""
    published = None if published is None or math.isnan(published) else published
    return Row(source, model, figure, published, recomputed, None, True, note)


def failed(source: str, model: str, figure: str, note: str) -> Row:
    """A row for artefacts that cannot be read."""
    return Row(source, model, figure, None, None, None, False, note)


def recompute(directory: Path) -> list[Row]:
    """Every row for the artefacts below ``directory``; HarnessError when there are none."""
    from harness.evaluate import published_alpaca_eval, published_mt_bench

    rows: list[Row] = []
    if (directory / "alpaca_eval").is_dir():
        rows += published_alpaca_eval.recompute(directory / "alpaca_eval")
    if (directory / "mt_bench").is_dir():
        rows += published_mt_bench.recompute(directory / "mt_bench")
    if (directory / "academic").is_dir():
        rows += eq_bench(directory / "academic")
    if not any(row.tolerance is not None or not row.ok for row in rows):
        raise HarnessError(
            f"{directory}: nothing to recompute; looked for alpaca_eval/*/annotations.json with "
            "alpaca_eval/leaderboard.csv, "
            "mt_bench/judgments_*.jsonl with mt_bench/published.csv, "
            "academic/*_eqbench_v2_results.json"
        )
    return rows


def eq_bench(folder: Path) -> list[Row]:
    """EQ-Bench v2 scores of recorded answers, by lm-eval's scoring function."""
    from harness.evaluate.academic_files import eq_bench_recorded

    rows = []
    for path in sorted(folder.glob("*_eqbench_v2_results.json")):
        model = path.name.removesuffix("_eqbench_v2_results.json")
        try:
            published, recomputed = eq_bench_recorded(path)
        except (HarnessError, KeyError, TypeError, ValueError, AttributeError) as error:
            rows.append(
                failed(
                    "academic", model, "eq_bench", f"{path.name}: {type(error).__name__}: {error}"
                )
            )
            continue
        rows.append(
            compare(
                "academic",
                model,
                "eq_bench",
                published,
                recomputed,
                EQ_BENCH_TOLERANCE,
                "EQ-Bench v2: better of first and revised answers",
            )
        )
    return rows


def render(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows as a table, and how many agree."""
    from rich.console import Console
    from rich.table import Table

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)  # a pipe or file is no narrow screen
    table = Table(title="Published figures recomputed", show_lines=False)
    for name in ("benchmark", "model", "figure"):
        table.add_column(name, overflow="fold")
    for name in ("published", "recomputed", "difference", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("note", overflow="fold")
    for row in rows:
        verdict = "FAIL" if not row.ok else "ok" if row.tolerance is not None else "shown"
        numbers = (
            _number(row.published),
            _number(row.recomputed),
            "" if row.difference is None else f"{row.difference:+.2g}",
        )
        tolerance = "" if row.tolerance is None else f"{row.tolerance:g}"
        table.add_row(
            row.source,
            _plain(row.model),
            row.figure,
            *numbers,
            tolerance,
            verdict,
            _plain(row.note),
            style=None if row.ok else "bold red",
        )
    console.print(table)
    compared, wrong = (
        [row for row in rows if row.tolerance is not None],
        [row for row in rows if not row.ok],
    )
    console.print(
        f"{len(compared)} figures compared, {len(compared) - sum(not row.ok for row in compared)} "
        f"agree, {len(wrong)} fail, "
        f"{len(rows) - len(compared) - sum(row.tolerance is None and not row.ok for row in rows)} "
        "only shown"
    )


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else "\ufffd" for character in text))


def _number(value: float | None) -> str:
    return (
        ""
        if value is None
        else f"{value:.0f}"
        if float(value).is_integer() and abs(value) >= 1
        else f"{value:.6f}"
    )
