"""YAML as people mean it: 1e-3 is a number, yes is text, a doubled key is an error, and every value
knows its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.records import HarnessError

Location = tuple[str | int, ...]
Places = Mapping[Location, str]
"""Path of keys → where its value was written, as ``file:line``; of the whole under ()."""
TOO_DEEP = "values are nested too deeply, or one contains itself (an anchor and its alias)"


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core scalars in place of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_FLOAT = r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
_SCALARS: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    "bool": (
        r"(true|True|TRUE|false|False|FALSE)$",
        list("tTfF"),
        lambda text: {"true": True, "false": False}[text.lower()],
    ),
    "int": (r"[-+]?\d+$", list("-+0123456789"), int),
    # YAML writes .inf and .nan with a point; minus zero is zero: equal values have one key.
    "float": (
        _FLOAT,
        list("-+0123456789."),
        lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())) + 0.0,
    ),
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""], lambda _text: None),
}
"""Kind → how it is written, its first characters, how it is read."""
for _kind, (_pattern, _first, _read) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), _first)


def load_yaml(path: Path) -> tuple[Any, dict[Location, int]]:
    """Parse one YAML document; returns plain data and the 1-based line of every value by its path
    of keys.

    Raises HarnessError, with file and line, for a missing file, broken YAML, a doubled key, a tag
    or an anchor cycle.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read ({error})") from None
    lines: dict[Location, int] = {}
    try:
        node = _composed(text)
        return (None if node is None else _build(node, (), lines, path)), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise HarnessError(f"{path}{where}: not valid YAML ({problem})") from None
    except RecursionError:
        raise HarnessError(f"{path}: {TOO_DEEP}") from None


def load_mapping(path: Path, what: str) -> tuple[dict[str, Any], dict[Location, str]]:
    """A file of settings, and where each was written. ``what`` it is: in the error where not."""
    values, lines = load_yaml(path)
    if not isinstance(values, dict):
        raise HarnessError(f"{path}:1: {what}")
    return values, {at: f"{path}:{line}" for at, line in lines.items()}


def place_of(places: Places, at: Location) -> str:
    """Where a value, or what it stands in, was written."""
    while at not in places:
        at = at[:-1]
    return places[at]


def parse_scalar(text: str) -> Any:
    """A value of the command line: ``1e-3`` → 0.001, ``[1, 2]`` → list, else text."""
    try:
        node = _composed(text)
        return text if node is None else _build(node, (), {}, Path("command line"))
    except yaml.YAMLError:
        return text
    except RecursionError:
        raise HarnessError(f"command line: {TOO_DEEP}") from None


def _composed(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _build(node: yaml.Node, at: Location, lines: dict[Location, int], path: Path) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*at, index), lines, path) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, f"{path}:{node.start_mark.line + 1}")
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise HarnessError(f"{path}:{line}: a key must be plain text")
        key = str(key_node.value)
        if key in result:
            first = lines[(*at, key)]
            said = f"key {key!r} is given twice (first at line {first})"
            raise HarnessError(f"{path}:{line}: {said}")
        lines[(*at, key)] = line
        result[key] = _build(value_node, (*at, key), lines, path)
    return result


def _scalar(node: yaml.Node, place: str) -> Any:
    kind, value = node.tag.rsplit(":", 1)[-1], str(node.value)
    if kind in _SCALARS:
        try:
            return _SCALARS[kind][2](value)
        except (ValueError, KeyError):
            said = f"{value[:40]!r} ({len(value)} characters) is no {kind}"
            raise HarnessError(f"{place}: {said}") from None
    if kind != "str":
        raise HarnessError(f"{place}: tag {node.tag!r} is not allowed in a study")
    if re.search("[\ud800-\udfff]", value):
        raise HarnessError(f"{place}: a lone surrogate (\\ud800 to \\udfff) is no text")
    return value
