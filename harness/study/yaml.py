"""YAML as people mean it: 1e-3 is a number, yes is text, a doubled key is an error, and every value
knows its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from harness.records import HarnessError

Location = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core scalars in place of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_FLOAT = re.compile(
    r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)


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
        raise HarnessError(f"{path}: {_TOO_DEEP}") from None


_TOO_DEEP = "values are nested too deeply, or one contains itself (an anchor and its alias)"


def _composed(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _build(node: yaml.Node, at: Location, lines: dict[Location, int], path: Path) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(at, line)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise HarnessError(
                    f"{path}:{key_node.start_mark.line + 1}: a key must be plain text"
                )
            key = str(key_node.value)
            if key in result:
                raise HarnessError(
                    f"{path}:{key_node.start_mark.line + 1}: key {key!r} is given twice (first at "
                    f"line {lines[(*at, key)]})"
                )
            lines[(*at, key)] = key_node.start_mark.line + 1
            result[key] = _build(value_node, (*at, key), lines, path)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*at, index), lines, path) for index, item in enumerate(node.value)]
    return _scalar(node, path, line)


_READ: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    # YAML writes .inf and .nan with a point; minus zero is zero: equal values have one key.
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())) + 0.0,
}


def _scalar(node: yaml.Node, path: Path, line: int) -> Any:
    kind, value = node.tag.rsplit(":", 1)[-1], str(node.value)
    if kind == "str":
        if re.search("[\ud800-\udfff]", value):
            raise HarnessError(f"{path}:{line}: a lone surrogate (\\ud800 to \\udfff) is no text")
        return value
    if kind in _READ:
        try:
            return _READ[kind](value)
        except (ValueError, KeyError):
            said = f"{value[:40]!r} ({len(value)} characters) is no {kind}"
            raise HarnessError(f"{path}:{line}: {said}") from None
    if kind == "null":
        return None
    raise HarnessError(f"{path}:{line}: tag {node.tag!r} is not allowed in a study")


def parse_scalar(text: str) -> Any:
    """A value of the command line: ``1e-3`` → 0.001, ``[1, 2]`` → list, else text."""
    try:
        node = _composed(text)
        return text if node is None else _build(node, (), {}, Path("command line"))
    except yaml.YAMLError:
        return text
    except RecursionError:
        raise HarnessError(f"command line: {_TOO_DEEP}") from None
