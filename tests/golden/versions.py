"""What a stage's numbers are made by, found from its imports: the definitions its function reaches.

From the stage's function every name it uses is followed to its definition, in the same module or
through an import of ours, and so on. The hash of those definitions, without comments, docstrings,
annotations and the names of local variables, and of the data files beside their modules, is
compared with the one that was accepted: where it differs, either the numbers cannot have changed
(`make golden`), or the stage needs a new version.

Registries are not followed: what a stage reaches through one (a benchmark's questions, a ranker's
function) is added by iterating over its records.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.engine.stages import STAGES
from harness.evaluate.registry import BENCHMARKS
from harness.rankers.registry import RANKERS

ROOT = Path(__file__).parents[2]
STOP = frozenset({"BENCHMARK", "BENCHMARKS", "RANKER", "RANKERS", "STAGES"})
"""Registries, and the records in them."""
PLUMBING = ("harness.engine", "harness.records", "harness.study", "harness.files")
"""Rows, settings and the store: what a number depends on there is in keys and inputs, and an
error's words decide no number.
"""
Definition = tuple[str, str]
"""(module, name)."""


def definitions(stage: str, root: Path = ROOT) -> list[Definition]:
    """Every definition of ours that a stage's function reaches, sorted."""
    todo = [_named(STAGES[stage].function), *_through_registries(stage)]
    found: set[Definition] = set()
    while todo:
        module, name = todo.pop()
        if module.startswith(PLUMBING) or name in STOP or (module, name) in found:
            continue
        source = _module(module, root)
        if name in source.imports:
            todo.append(source.imports[name])
        elif name in source.bodies:
            found.add((module, name))
            todo += source.uses(name)
    return sorted(found)


def source_hash(stage: str, root: Path = ROOT) -> str:
    """Hash of the definitions that a stage reaches, and of the data files beside them."""
    digest = hashlib.sha256()
    reached = definitions(stage, root)
    folders = {(root / module.replace(".", "/")).parent for module, _ in reached}
    for file in sorted(one for folder in folders for one in folder.rglob("*")):
        if file.suffix in (".json", ".jsonl", ".yaml"):
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    for module, name in reached:
        outlines = [_outline(node) for node in _module(module, root).bodies[name]]
        digest.update(json.dumps([module, name, outlines]).encode())
    return digest.hexdigest()


def _named(function: str) -> Definition:
    module, _, name = function.partition(":")
    return module, name


def _through_registries(stage: str) -> Iterator[Definition]:
    if stage == "answer":
        for benchmark in BENCHMARKS.values():
            if benchmark.questions is not None:
                yield benchmark.questions.__module__, benchmark.questions.__qualname__
    if stage == "benchmarks.files":
        for benchmark in BENCHMARKS.values():
            if benchmark.prepare is not None:
                yield benchmark.prepare.__module__, benchmark.prepare.__qualname__
    if stage == "benchmarks.pocket":
        for benchmark in BENCHMARKS.values():
            if benchmark.pocket:
                yield _named(benchmark.pocket)
    if stage in ("rank", "heldout", "diagnostics"):
        for ranker in RANKERS.values():
            yield ranker.rank.__module__, ranker.rank.__qualname__


class _Source:
    """A module's top-level definitions and imports by name."""

    def __init__(self, module: str, root: Path) -> None:
        self.module, self.root = module, root
        path = root / (module.replace(".", "/") + ".py")
        if not path.is_file():
            path = root / module.replace(".", "/") / "__init__.py"
        self.imports: dict[str, Definition] = {}
        self.bodies: dict[str, list[ast.AST]] = {}
        if not path.is_file():
            return
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                self.imports |= _imported(node)
            for name in _defined(node):
                self.bodies.setdefault(name, []).append(node)

    def uses(self, name: str) -> list[Definition]:
        """Definitions that a definition's body names: its own module's, imported ones, those of
        imported modules, and "module:function" texts.
        """
        found: list[Definition] = []
        for body in self.bodies[name]:
            inner: dict[str, Definition] = {}
            for node in ast.walk(body):
                if isinstance(node, ast.ImportFrom):
                    inner |= _imported(node)
            known = self.imports | inner
            for node in ast.walk(body):
                found += self._used_by(node, known)
        return found

    def _used_by(self, node: ast.AST, known: Mapping[str, Definition]) -> list[Definition]:
        if isinstance(node, ast.Name):
            if node.id in known:
                module, name = known[node.id]
                return [] if _is_module(f"{module}.{name}", self.root) else [(module, name)]
            return [(self.module, node.id)] if node.id in self.bodies else []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            whole = ".".join(known.get(node.value.id, ()))
            return [(whole, node.attr)] if whole and _is_module(whole, self.root) else []
        if isinstance(node, ast.Constant):
            named = re.fullmatch(r"harness(\.\w+)+:\w+", str(node.value))
            return [_named(named[0])] if named else []
        return []


@cache
def _module(module: str, root: Path) -> _Source:
    return _Source(module, root)


@cache
def _is_module(name: str, root: Path) -> bool:
    path = root / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _imported(node: ast.ImportFrom) -> dict[str, Definition]:
    if not (node.module or "").startswith("harness"):
        return {}
    return {alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names}


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        targets = [name for target in node.targets for name in ast.walk(target)]
        return [name.id for name in targets if isinstance(name, ast.Name)]
    return []


class _Plain(ast.NodeTransformer):
    """Local variables become their order of appearance; docstrings and annotations go."""

    def __init__(self) -> None:
        self.local: dict[str, str] = {}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        before = dict(self.local)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        taken = {argument.arg for argument in arguments}
        names = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
        for name in names:
            if isinstance(name.ctx, ast.Store) and name.id not in taken:
                self.local.setdefault(name.id, f"_{len(self.local)}")
        node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
        node.returns = None
        for argument in arguments:
            argument.annotation = None
        self.generic_visit(node)
        self.local = before
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> Any:
        node.id = self.local.get(node.id, node.id)
        return node


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _outline(node: ast.AST) -> Any:
    """A definition as lists and texts. Empty fields do not count: which of them there are depends
    on Python's version.
    """
    copy = ast.parse(ast.unparse(node)).body[0]
    return _listed(_Plain().visit(copy))


def _listed(node: Any) -> Any:
    if isinstance(node, ast.AST):
        fields = {name: _listed(value) for name, value in ast.iter_fields(node) if value}
        return [type(node).__name__, fields]
    return [_listed(part) for part in node] if isinstance(node, list) else repr(node)
