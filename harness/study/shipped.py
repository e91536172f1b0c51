"""Names that stand for files: studies, recipes, presets and judges, here or of the harness."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.records import HarnessError

FOLDER = Path(__file__).parents[2] / "ablations"
"""In a checkout as where a wheel was installed."""


def named(folders: Iterable[Path]) -> list[str]:
    """Names that YAML files of these folders stand for."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def suggest(word: str, known: Iterable[object]) -> str:
    """`` (did you mean …?)`` where a known word is close; nothing where none is."""
    close = difflib.get_close_matches(word, map(str, known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def find(
    kind: str, name: str, files: Iterable[Path], folders: Sequence[Path], where: str = ""
) -> Path:
    """The first of ``files`` that is there, else NAME.yaml in one of the folders. Raises
    HarnessError, led by ``where``, with the names there are.
    """
    for candidate in (*files, *(folder / f"{name}.yaml" for folder in folders)):
        if candidate.is_file():
            return candidate
    known = named(folders)
    raise HarnessError(
        f"{where}{kind} {name!r} not found{suggest(name, known)}; known: "
        f"{', '.join(known) or 'none'}; or give a file"
    )


def study(given: Path) -> Path:
    """The file of a study or a search: as given, or of that name in ``ablations/`` or shipped."""
    if given.suffix or len(given.parts) > 1 or given.is_file():
        return given
    return find("study", str(given), (), (Path("ablations"), FOLDER))


def word(file: Path) -> str:
    """A study's file as commands take it: its name where that stands for this very file."""
    try:
        named = study(Path(file.stem)).resolve() == file.resolve()
    except HarnessError:
        named = False
    return file.stem if named else str(file)
