"""``selm init``: the studies that come with the harness, to change and run in one's own folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import lazy
from harness.files import write_atomic
from harness.records import HarnessError
from harness.study import shipped

if TYPE_CHECKING:
    from harness.cli import console as shown
    from harness.cli import schema
else:
    shown, schema = lazy("harness.cli.console", "harness.cli.schema")


def init(
    folder: Annotated[Path, typer.Argument(help="Where ablations/ and docs/ are made.")] = Path(),
) -> None:
    """Copy the studies, recipes, presets and judges of the harness into ablations/ of a folder, and
    the schemas that editors read them with into docs/.

    Example: selm init ours
    """
    target = folder / shipped.FOLDER.name
    if target.exists():
        raise HarnessError(f"{target}: is there already; give another folder")
    shutil.copytree(shipped.FOLDER, target, ignore=shutil.ignore_patterns("LOG.md", "README.md"))
    for name, text in schema.files().items():
        write_atomic(folder / "docs" / name, text)
    shown.say(f"{target}: change a study, then selm run {target}/STUDY.yaml")
