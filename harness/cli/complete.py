"""What a shell offers after TAB (`selm --install-completion`, once): studies, arms, recipe keys,
stages. Where nothing is offered the shell goes on to files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from harness.files import names
from harness.study import shipped


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
    from harness.study.settings import Recipe

    return [f"{key}=" for key in _keys(Recipe)]


def stage_names() -> list[str]:
    """For ``--only``."""
    from harness.engine.stages import STAGES

    return list(STAGES)


def stage_keys(ctx: typer.Context) -> list[str]:
    """The first characters of the keys of finished stages."""
    folder = Path(ctx.params.get("store") or "results/store") / "objects"
    return [key[:12] for part in names(folder) for key in names(folder / part)]


def _results(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("results") or "results")


def _keys(section: Any, above: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield above + name
        for one in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(one, "model_fields"):
                yield from _keys(one, f"{above}{name}.")
