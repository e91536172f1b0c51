"""Arguments and options that several commands of ``selm`` share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

StudyFile = Annotated[
    Path, typer.Argument(help="The study's YAML file, for example ablations/alpha.yaml.")
]
StudyName = Annotated[
    str, typer.Argument(help="A study's name (a folder below --results) or its YAML file.")
]
StoreRoot = Annotated[Path, typer.Option("--store", help="Folder of finished stages.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of manifests and reports.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one recipe key: key=value. May be repeated."),
]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Worker processes; 0: one per core (or per GPU).")
]

MaxCost = Annotated[
    float,
    typer.Option(
        "--max-cost",
        min=0.0,
        help="USD that this command may spend on judging in all; 0: no limit.",
    ),
]

STORE, RESULTS = Path("results/store"), Path("results")


def worker_count(count: int) -> int:
    """Worker processes asked for; 0 is one per core."""
    return count or os.cpu_count() or 1
