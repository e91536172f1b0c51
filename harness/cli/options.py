"""Arguments and options that several commands of ``selm`` share, and modules loaded when used."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import complete
from harness.records import HarnessError
from harness.study import shipped
from harness.study.yaml import parse_scalar


def study_file(ctx: typer.Context, given: Path) -> Path:
    """What a name on the command line stands for; as it is while a shell asks how to go on."""
    return given if ctx.resilient_parsing else shipped.study(given)


StudyFile = Annotated[
    Path,
    typer.Argument(
        callback=study_file,
        autocompletion=complete.studies,
        help="The study's YAML file, for example ablations/alpha.yaml, or the name of one there.",
    ),
]
StudyName = Annotated[
    str,
    typer.Argument(
        autocompletion=complete.finished,
        help="A study's name (a folder below --results) or its YAML file.",
    ),
]
Key = Annotated[
    str,
    typer.Argument(
        autocompletion=complete.stage_keys, help="The first characters of a stage's key."
    ),
]
StoreRoot = Annotated[Path, typer.Option("--store", help="Folder of finished stages.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of manifests and reports.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        autocompletion=complete.recipe_keys,
        help="Change one recipe key: key=value. May be repeated.",
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Worker processes; 0: one per core (or per GPU).")
]
MaxCost = Annotated[
    float,
    typer.Option(min=0.0, help="USD that this command may spend on judging in all; 0: no limit."),
]

STORE, RESULTS = Path("results/store"), Path("results")


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def lazy(*names: str) -> Any:
    """Modules that are imported when one of their attributes is first read.

    Help is instant so: pydantic, pandas and torch take up to two seconds.
    """
    return tuple(_Lazy(name) for name in names)


def worker_count(count: int) -> int:
    """Worker processes asked for; 0 is one per core."""
    return count or os.cpu_count() or 1


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
