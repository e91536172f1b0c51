"""Judge profiles: ``judges/NAME.yaml``, one judge a file, and the day on which one is gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from harness.records import HarnessError
from harness.study import shipped
from harness.study.sections import JudgeSettings
from harness.study.settings import Recipe
from harness.study.yaml import Location, load_yaml

FOLDER = "judges"
NEAR = timedelta(days=90)
"""How long before its end a judge is spoken of: a study with seeds takes weeks."""


def find(name: str, beside: Sequence[Path], where: str) -> Path:
    """A profile's file, by its path or its name in ``judges/`` of the folder of one of the files
    in ``beside``, or of the folder above, or of the harness.
    """
    near = [up for file in beside for up in file.resolve().parents[:2]]
    folders = list(dict.fromkeys([*near, shipped.FOLDER]))
    files = [folder / name for folder in folders]
    return shipped.find("judge", name, files, [one / FOLDER for one in folders], f"{where}: ")


def read(path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    """A profile's settings as written, and their lines. Raises HarnessError without facts."""
    values, lines = load_yaml(path)
    if not isinstance(values, dict) or "facts" not in values:
        raise HarnessError(f"{path}:1: a judge's profile is a mapping of its settings with facts")
    return {**values, "profile": path.stem}, lines


def places(values: Mapping[str, Any]) -> Iterator[Location]:
    """Where a recipe's tree names a profile: of all benchmarks, and of one."""
    sections = values.get("evaluation")
    names = sections if isinstance(sections, Mapping) else ()
    for at in (("judge",), *(("evaluation", name, "judge") for name in names)):
        value: Any = values
        for key in at:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str) or (isinstance(value, Mapping) and "profile" in value):
            yield at


def asked(recipe: Recipe) -> dict[str, JudgeSettings]:
    """Who judges what: the judged benchmarks of a recipe, with the judge of each."""
    sections = {name: recipe.evaluation.of(name) for name in recipe.evaluation.benchmarks}
    return {
        name: section.judge or recipe.judge
        for name, section in sections.items()
        if hasattr(section, "judge")
    }


def sunset(judge: JudgeSettings, today: date) -> str:
    """What is to be said of a judge whose end is past or near; nothing of another."""
    facts = judge.facts
    if facts is None or facts.end_of_life is None:
        return ""
    left = date.fromisoformat(facts.end_of_life) - today
    name = judge.profile or judge.model
    instead = f"use {facts.instead} instead (`selm bridge` says how the two compare)"
    if left.days <= 0:
        return f"{name} was shut down on {facts.end_of_life}: {instead}"
    if left <= NEAR:
        return f"{name} will be shut down on {facts.end_of_life}, in {left.days} days: {instead}"
    return ""
