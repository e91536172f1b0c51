"""The studies, recipes, presets and judges that come with the harness: a name stands for a file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from harness.records import HarnessError

FOLDER = Path(__file__).parents[2] / "ablations"
"""In a checkout as where a wheel was installed."""


def named(folders: Iterable[Path]) -> list[str]:
    """Names that YAML files of these folders stand for."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def study(given: Path) -> Path:
    """The file of a study or a search: what is given, or the file of that name in ``ablations/``
    here, or else of the harness.

    Raises HarnessError for a name that no file has, with the names there are.
    """
    if given.suffix or len(given.parts) > 1 or given.is_file():
        return given
    here = (Path("ablations"), FOLDER)
    for folder in here:
        if (folder / f"{given}.yaml").is_file():
            return folder / f"{given}.yaml"
    known = named(here)
    close = difflib.get_close_matches(str(given), known, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    raise HarnessError(
        f"study {str(given)!r} not found{meant}; known: {', '.join(known)}; or give a file"
    )


def word(file: Path) -> str:
    """A study's file as commands take it: its name where that stands for this very file."""
    try:
        named = study(Path(file.stem)).resolve() == file.resolve()
    except HarnessError:
        named = False
    return file.stem if named else str(file)
