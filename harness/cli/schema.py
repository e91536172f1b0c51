"""JSON schemas of the files that people write, for editors that read YAML with one: completion, the
meaning of a key, and wrong keys marked while typing. Made from the settings themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from harness.study.settings import Recipe
from harness.study.study import StudyFile
from harness.tune.search import TuneFile

Schema = dict[str, Any]
REF, CHANGED = "#/$defs/", "changed "
"""Where a named schema stands, and what leads the name of one whose keys may be dotted."""
PROFILE = {"type": "string", "description": "A judge's profile."}


def schemas() -> dict[str, Schema]:
    """Schema by what it is of: a recipe, a preset, a study, a search."""
    recipe = Recipe.model_json_schema()
    defs = recipe["$defs"] | {"Recipe": {name: recipe[name] for name in ("type", "properties")}}
    for section in defs.values():
        judge = section.get("properties", {}).get("judge")
        if judge is not None:
            options = judge.pop("anyOf", None) or [{"$ref": judge.pop("$ref")}]
            judge["anyOf"] = [PROFILE, *options]
    trees = [name for name, one in defs.items() if "properties" in one]
    changed = {CHANGED + name: _changed(name, defs) for name in trees}
    whole = changed[CHANGED + "Recipe"]["properties"]
    patterns = changed[CHANGED + "Recipe"]["patternProperties"]
    axes = {
        "type": "object",
        "properties": {key: {"type": "array", "items": one} for key, one in whole.items()},
        "patternProperties": {key: {"type": "array"} for key in patterns},
        "additionalProperties": False,
    }
    named = defs | changed | {"axes": axes}
    return {
        "recipe": recipe,
        "preset": {"$ref": f"{REF}{CHANGED}Recipe", "$defs": defs | changed},
        "study": _with(StudyFile.model_json_schema(), named),
        "search": _with(TuneFile.model_json_schema(), named),
    }


def files() -> dict[str, str]:
    """The schemas as files, by name."""
    texts = {name: json.dumps(one, indent=1, ensure_ascii=False) for name, one in schemas().items()}
    return {f"{name}.schema.json": f"{text}\n" for name, text in texts.items()}


def _trees(schema: Schema, defs: Schema) -> Iterator[str]:
    """The sections that a key may hold."""
    for option in (schema, *schema.get("anyOf", ())):
        name = option.get("$ref", "").removeprefix(REF)
        if name and "properties" in defs[name]:
            yield name


def _changed(section: str, defs: Schema) -> Schema:
    """A section as ``set`` takes it: keys nested or dotted, at any depth."""
    properties: Schema = {}
    patterns: Schema = {}
    for path, schema, pointer in _leaves(section, defs):
        properties[path] = {"$ref": pointer}
        below = list(_trees(schema, defs))
        if below:
            options = [one for one in schema.get("anyOf", ()) if "$ref" not in one]
            options += [{"$ref": f"{REF}{CHANGED}{name}"} for name in below]
            properties[path] = {"anyOf": options}
        if isinstance(schema.get("additionalProperties"), dict):
            patterns[f"^{re.escape(path)}\\."] = schema["additionalProperties"]
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": patterns,
        "additionalProperties": False,
    }


def _leaves(section: str, defs: Schema) -> Iterator[tuple[str, Schema, str]]:
    """(dotted key, schema, where it stands) of everything below a section."""
    for name, schema in defs[section]["properties"].items():
        yield name, schema, f"{REF}{section}/properties/{name}"
        for tree in _trees(schema, defs):
            for path, below, pointer in _leaves(tree, defs):
                yield f"{name}.{path}", below, pointer


def _with(made: Schema, named: Schema) -> Schema:
    """Where a file changes a recipe's keys, the schema says which there are."""
    for section in (made, *made.get("$defs", {}).values()):
        for key, kind in (("set", f"{CHANGED}Recipe"), ("axes", "axes")):
            found = section.get("properties", {}).get(key)
            if found is not None:
                told = {name: found[name] for name in ("description",) if name in found}
                section["properties"][key] = {"$ref": REF + kind} | told
    return made | {"$defs": made.get("$defs", {}) | named}
