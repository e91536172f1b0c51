"""The documents say what the code does: pages that are generated are fresh, files and commands that are named exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.docs import pages

ROOT = Path(__file__).parent.parent
DOCUMENTS = [path for path in (ROOT / "README.md", ROOT / "ablations" / "README.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")) if path.exists()]


@pytest.mark.parametrize("path", pages(), ids=lambda p: p.name)
def test_generated_pages_are_fresh(path: Path) -> None:
    assert path.read_text() == pages()[path], "run `.venv/bin/python -m harness.docs`"


def test_every_study_is_listed() -> None:
    listed = (ROOT / "ablations" / "README.md").read_text()
    for path in (ROOT / "ablations").glob("*.yaml"):
        assert f"`{path.name}`" in listed


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text()))
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_and_link_exists(path: Path) -> None:
    from harness.cli import app

    commands = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    text = path.read_text()
    assert set(re.findall(r"`selm ([a-z-]+)", text)) <= commands
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (path.parent / link).exists(), link


def test_help_of_every_command_has_an_example() -> None:
    from harness.cli import app

    for info in app.registered_commands:
        assert info.callback
        assert "Example: selm " in (info.callback.__doc__ or ""), info.callback.__name__


def test_the_project_speaks_of_itself_alone() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    forbidden = re.compile(r"/work/|/root/|farm-studio|farm-bench|opt/pypi|\bhelper-\d")
    for name in files:
        path = ROOT / name
        if path == Path(__file__) or not path.is_file() or path.suffix in {".png", ".pdf", ".parquet"}:
            continue
        found = forbidden.search(path.read_text(errors="replace"))
        assert not found, f"{name}: {found and found.group()}"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
def test_the_readme_shows_code_that_runs() -> None:
    """Every ```python block of the README is run, in order, in a fresh interpreter and an empty folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, block + done.stderr[-2000:]
