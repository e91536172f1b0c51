"""The import graph of the project's own modules, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "harness").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imported(node: ast.AST) -> Iterator[str]:
    """Modules of ours that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        whole = any(name not in MODULES for name in inner)
        names = [name for name in inner if name in MODULES] + [node.module] * whole
    else:
        return
    yield from (name for name in names if name in MODULES)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """Module -> modules it imports, inside functions too."""
    found = {}
    for module in MODULES:
        names = {name for node in ast.walk(tree_of(module)) for name in imported(node)}
        found[module] = frozenset(names - {module})
    return found


def circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or not (strongly connected, over one)."""
    reached = {module: _reach(module) for module in graph()}
    groups: list[list[str]] = []
    seen: set[str] = set()
    for module in graph():
        group = sorted(other for other in reached[module] if module in reached[other])
        if module in reached[module] and module not in seen:
            groups.append(group)
        seen |= set(group)
    return groups


def _reach(module: str) -> set[str]:
    found: set[str] = set()
    todo = list(graph()[module])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += graph()[name]
    return found


def inside_functions() -> list[str]:
    """Own imports inside a function, as "module: imported"."""
    found = set()
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for inner in ast.walk(node):
                    found |= {f"{module}: {name}" for name in imported(inner)}
    return sorted(found)
