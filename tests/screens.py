"""Pictures of a study's first screens: the terminal at 80 and 140 columns, the page at 1300 and 400
pixels. ``python -m tests.screens results/alpha results/examples/screens`` (``make screens``).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from analysis.screen import ADAPTER
from harness.cli.console import screen
from tests.analysis.test_report_browser import ARGUMENTS, CHROMIUM

TERMINAL = """<!doctype html><meta charset="utf-8">
<style>pre{{display:inline-block;margin:12px;font:14px/1.25 'DejaVu Sans Mono',monospace}}</style>
<pre>{code}</pre>
"""
COLUMNS, PAGES = (80, 140), ((1300, 900), (400, 850))


def terminal(report: Path, file: str, columns: int) -> str:
    """The screen that ends a run, as HTML."""
    console = Console(
        record=True, width=columns, file=io.StringIO(), force_terminal=True, highlight=False
    )
    found = ADAPTER.validate_json((report / "finding.json").read_bytes())
    console.print(screen(found, Path("results") / found.name / "report", file, columns))
    return console.export_html(
        theme=DEFAULT_TERMINAL_THEME, inline_styles=True, code_format=TERMINAL
    )


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


def main(study: Path, out: Path) -> None:
    report, file = study / "report", f"ablations/{study.name}.yaml"
    out.mkdir(parents=True, exist_ok=True)
    with browser() as started:
        for columns in COLUMNS:
            page = started.new_page()
            page.set_content(terminal(report, file, columns))
            page.locator("pre").screenshot(path=out / f"terminal_{columns}.png")
        for width, height in PAGES:
            page = started.new_page(viewport={"width": width, "height": height})
            page.goto((report / "index.html").resolve().as_uri())
            page.screenshot(path=out / f"page_{width}.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
