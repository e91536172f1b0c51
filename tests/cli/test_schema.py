"""The schemas that editors read: every file of ours fits, and what the loader refuses does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.cli.docs import DOCS
from harness.study.yaml import load_yaml

ROOT = Path(__file__).parents[2]
KINDS = {"recipes": "recipe", "presets": "preset"}
FILES = [
    path
    for folder in ("", "recipes", "presets")
    for path in sorted((ROOT / "ablations" / folder).glob("*.yaml"))
]


def kind(path: Path) -> str:
    named = KINDS.get(path.parent.name, "study")
    return "search" if "space" in load_yaml(path)[0] else named


def errors(name: str, tree: Any) -> list[str]:
    schema = json.loads((DOCS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    found = jsonschema.Draft202012Validator(schema).iter_errors(tree)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_fits_the_schema_that_its_first_line_names(path: Path) -> None:
    assert errors(kind(path), load_yaml(path)[0]) == []
    first = path.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == DOCS / f"{kind(path)}.schema.json"


SMALL: dict[str, Any] = {"name": "s", "recipe": "pocket", "seeds": [0]}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"set": {"loop": {"iterations": 1}, "evaluation": {"mt_bench.limit": 8}}}, ""),
        ({"set": {"objective.params.gamma": 1.0, "judge": "pocket"}}, ""),
        ({"arms": [{"label": "a", "set": {"training.lora.r": 4}}]}, ""),
        ({"axes": {"objective.alpha": [0, {"start": 1.0, "end": 0.0}]}}, ""),
        ({"sed": [0]}, ": sed"),
        ({"set": {"loop": {"iteration": 1}}}, "set.loop: iteration"),
        ({"set": {"loop.iteration": 1}}, "set: loop.iteration"),
        ({"set": {"evaluation": {"mt_bench.limits": 8}}}, "set.evaluation: mt_bench.limits"),
        ({"set": {"training.batch_size": "8"}}, "set.training.batch_size: 8"),
        ({"axes": {"objective.alpha": 1}}, "axes.objective.alpha: 1"),
        ({"arms": [{"label": "a", "set": {"world.worth": 1}}]}, "arms.0.set: world.worth"),
    ],
)
def test_wrong_keys_and_types_are_marked_where_they_stand(
    changes: dict[str, Any], where: str
) -> None:
    found = errors("study", SMALL | changes)
    assert len(found) == bool(where), found
    place, _, key = where.rpartition(": ")
    assert all(one.startswith(f"{place}: ") and repr(key)[1:-1] in one for one in found), found
