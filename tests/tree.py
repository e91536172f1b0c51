"""A copy of the sources, changed as a reader of the README would change it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.processes import ROOT, Done, python


def code_of_the_readme(marker: str) -> list[str]:
    """The Python blocks of the README between the marker's begin and end."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    marked = text.partition(begin)[2].partition(end)[0]
    return re.findall(r"```python\n(.*?)```", marked, re.DOTALL)


class Tree:
    """The copied sources and the commands run in them."""

    def __init__(self, root: Path, *more: str) -> None:
        self.root = root
        for name in ("harness", "analysis", "ablations", *more):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", root)

    def add(self, file: str, code: str) -> None:
        """A file that was not there."""
        path = self.root / file
        assert not path.exists()
        path.write_text(code, encoding="utf-8")

    def insert(self, file: str, start: str, above: str, below: str) -> None:
        """Code above and below the one place where ``start`` stands."""
        path = self.root / file
        source = path.read_text(encoding="utf-8")
        assert source.count(start) == 1
        path.write_text(source.replace(start, above + start + below), encoding="utf-8")

    def python(self, *arguments: str) -> Done:
        told = {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return python(*arguments, cwd=self.root, status=None, **told)

    def selm(self, *arguments: str) -> str:
        done = self.python("-m", "harness.cli", *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr
