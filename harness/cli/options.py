"""What commands of ``selm`` share: arguments, options, what a shell offers after TAB for them
(`selm --install-completion`, once; files where nothing is offered), and modules loaded when used.
"""

from __future__ import annotations

import builtins
import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Annotated, Any, cast

import typer
from typer import Argument, Option

from harness.records import HarnessError
from harness.study import shipped
from harness.study.yaml import parse_scalar


def studies() -> list[str]:
    """Names of studies and searches, of the harness and here."""
    return shipped.named((Path("ablations"), shipped.FOLDER))


def finished(ctx: typer.Context) -> list[str]:
    """Studies that have run here."""
    return sorted(path.parent.name for path in _results(ctx).glob("*/manifest.json"))


def arms(ctx: typer.Context) -> Iterator[str]:
    """Arms, labels and runs of the study that ``--study`` names."""
    manifest = _results(ctx) / str(ctx.params.get("study")) / "manifest.json"
    if not manifest.is_file():
        return
    yield "base"
    for run in json.loads(manifest.read_text(encoding="utf-8"))["runs"]:
        yield from (run["run"].removesuffix(f",seed={run['seed']}"), run["label"], run["run"])


def recipe_keys() -> list[str]:
    """``key=`` of every recipe key, for ``--set``."""
    from harness.study.sections import keys_of
    from harness.study.settings import Recipe

    return [f"{key}=" for key in keys_of(Recipe)]


def _results(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("results") or "results")


def study_file(ctx: typer.Context, given: Path) -> Path:
    """What a name on the command line stands for; as it is while a shell asks how to go on."""
    return given if ctx.resilient_parsing else shipped.study(given)


StudyFile = Annotated[
    Path,
    Argument(
        callback=study_file,
        autocompletion=studies,
        help="The study's YAML file, for example ablations/alpha.yaml, or the name of one there.",
    ),
]
StudyName = Annotated[
    str,
    Argument(
        autocompletion=finished, help="A study's name (a folder below --results) or its YAML file."
    ),
]
Key = Annotated[str, Argument(help="The first characters of a stage's key.")]
StoreRoot = Annotated[Path, Option("--store", help="Folder of finished stages.")]
Results = Annotated[Path, Option("--results", help="Folder of manifests and reports.")]
Overrides = Annotated[
    list[str] | None,
    Option(
        "--set",
        autocompletion=recipe_keys,
        help="Change one recipe key: key=value. May be repeated.",
    ),
]
Workers = Annotated[
    int, Option("--workers", min=0, help="Worker processes; 0: one per core (or per GPU).")
]
MaxCost = Annotated[
    float, Option(min=0.0, help="USD that this command may spend on judging in all; 0: no limit.")
]

STORE, RESULTS = Path("results/store"), Path("results")


class _Later:
    """A module or a function, imported when it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

    def __call__(self, *given: Any) -> Any:
        return resolve_name(self._name)(*given)


@contextmanager
def lazily() -> Iterator[None]:
    """What is imported in this block loads when it is first used, types for annotations never:
    pydantic, pandas and torch take up to two seconds, and help is instant.
    """

    def later(name: str, *given: Any) -> Any:
        if not given[2]:
            return _Later(name)
        return SimpleNamespace(**{one: _Later(f"{name}.{one}") for one in given[2]})

    real, builtins.__import__ = builtins.__import__, cast("Any", later)
    try:
        yield
    finally:
        builtins.__import__ = real


def worker_count(count: int) -> int:
    """Worker processes asked for; 0 is one per core that this process may use: a container's or a
    batch system's share of the machine.
    """
    from joblib import cpu_count

    return count or int(cpu_count())


def parse_overrides(items: Sequence[str] | None) -> dict[str, Any]:
    """``key=value`` pairs of the command line; values are read as YAML scalars."""
    result: dict[str, Any] = {}
    for item in items or ():
        key, sign, value = item.partition("=")
        if not sign or not key:
            example = "--set training.batch_size=32"
            raise HarnessError(f"--set {item!r}: give key=value, for example {example}")
        result[key] = parse_scalar(value)
    return result
