"""The import table of the house: no circle, data flows one way, analysis never touches torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.engine.stages import STAGES
from tests.imports import MODULES, ROOT, SOURCES, circles, graph, inside_functions, tree_of

TABLE: dict[str, set[str]] = {
    "records": set(),
    "files": {"records"},
    "data": {"records", "files"},
    "study": {
        "records",
        "files",
        "evaluate",
        "rankers",
        "train.objectives",
        "model.checkpoint_files",
    },
    "evaluate": {"records", "files", "study", "data.files", "judge", "model", "rankers", "pocket"},
    "rankers": {"records", "files", "study", "judge", "model", "pocket", "rules"},
    "rules": {"records", "study", "data", "model", "evaluate.libraries"},
    "judge": {"records", "files", "study", "data.files", "evaluate", "model", "pocket"},
    "pocket": {"records", "files", "study", "judge", "model", "evaluate"},
    "model": {"records", "files", "study"},
    "train": {"records", "files", "study", "data", "model"},
    "engine": {"records", "files", "study", "data.files", "evaluate", "rankers", "model", "train"},
    "stages": {
        "records",
        "files",
        "study",
        "data",
        "model",
        "train",
        "rankers",
        "judge",
        "evaluate",
        "pocket",
    },
    "cost": {"records", "files", "study", "engine", "evaluate", "rankers", "model", "train"},
    "tune": {"records", "files", "study", "engine"},
}
"""Room of ``harness`` -> what it may import besides itself. ``cli`` may import everything: it is on
top, and nothing imports it.
"""
INSIDE_FUNCTIONS = 20
"""Own imports inside functions: torch-heavy modules behind light ones."""


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_no_circle() -> None:
    assert circles() == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("harness.")])
def test_rooms_import_what_the_table_allows(module: str) -> None:
    mine = room(module)
    if mine == "cli":
        return
    for other in graph()[module]:
        assert other.startswith("harness."), f"{module} imports {other}"
        theirs = room(other)
        inner = ".".join(other.split(".")[1:])
        allowed = theirs == mine or theirs in TABLE[mine] or inner in TABLE[mine]
        assert allowed or theirs == "", f"{module} imports {other}"


def test_stages_do_not_import_stages() -> None:
    own = {stage.function.partition(":")[0] for stage in STAGES.values()}
    for module in MODULES:
        if not module.startswith("harness.stages."):
            continue
        mine = ".".join(module.split(".")[:3])
        others = {name for name in graph()[module] if name.startswith("harness.stages.")}
        assert not {o for o in others if not o.startswith(mine)}, module
    assert own <= set(MODULES)


def test_own_imports_inside_functions_are_few() -> None:
    found = inside_functions()
    assert len(found) <= INSIDE_FUNCTIONS, "\n".join(found)


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("analysis")])
def test_analysis_reads_records_and_files_only(module: str) -> None:
    ours = {name for name in graph()[module] if name.startswith("harness")}
    assert ours <= {"harness.records", "harness.files"}, sorted(ours)
    heavy = {"torch", "transformers", "trl", "lm_eval", "alpaca_eval", "fastchat"}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & heavy
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in heavy


@pytest.mark.parametrize(
    "module",
    [
        "analysis.report",
        "analysis.compare",
        "harness.engine.runs",
        "harness.engine.launch",
        "harness.engine.worker",  # which sets CUDA_VISIBLE_DEVICES before anything sees a device
        "harness.engine.pool",
        "harness.evaluate.registry",
        "harness.rankers.registry",
        "harness.train.objectives",
        "harness.cli",
        "harness.pocket.oracle",
    ],
)
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


LATE = {"lm_eval", "alpaca_eval", "fastchat", "openai", "anthropic", "vllm", "ray", "datasets"}
"""What a node that only trains may lack."""


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("harness")])
def test_benchmark_libraries_are_imported_where_they_are_used(module: str) -> None:
    for node in tree_of(module).body:
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & LATE
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in LATE


SEEDING = {"torch.manual_seed", "np.random.seed", "random.seed"}
FORBIDDEN_CALLS = SEEDING | {"eval", "exec", "pickle.load", "pickle.loads"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_eval_no_pickle_no_global_seed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            fenced = name in SEEDING and path.stem == "isolated_rng"
            assert name not in FORBIDDEN_CALLS or fenced, f"{path}:{node.lineno} {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_conditional_expression_inside_another(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.IfExp):
            parts = (node.test, node.body, node.orelse)
            nested = any(isinstance(part, ast.IfExp) for part in parts)
            assert not nested, f"{path}:{node.lineno}"


def sections() -> dict[str, list[tuple[str, ast.AnnAssign]]]:
    """Class name -> (module, field) of every settings class, found by its base."""
    found: dict[str, list[tuple[str, ast.AnnAssign]]] = {}
    bases = {"Section"}
    for _ in range(4):
        for module in MODULES:
            for node in tree_of(module).body:
                if not isinstance(node, ast.ClassDef):
                    continue
                if any(isinstance(base, ast.Name) and base.id in bases for base in node.bases):
                    bases.add(node.name)
                    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
                    found[node.name] = [(module, part) for part in fields]
    return found


def is_class_variable(field: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(field.annotation)


def test_every_setting_is_read() -> None:
    read = Counter[str]()
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Attribute):
                read[node.attr] += 1
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read[node.value] += 1
    unread = [
        f"{name}.{ast.unparse(field.target)}"
        for name, fields in sections().items()
        for _, field in fields
        if not is_class_variable(field) and not read[ast.unparse(field.target)]
    ]
    assert not unread


def test_a_default_stands_in_one_place() -> None:
    """No settings class repeats a field's default, no reader brings one of its own."""
    places: dict[str, set[str]] = {}
    for name, fields in sections().items():
        for module, field in fields:
            if field.value is not None and not is_class_variable(field):
                where = f"{module}.{name}"
                places.setdefault(ast.unparse(field.target), set()).add(where)
    stage_settings = {
        key: sorted(found)
        for key, found in places.items()
        if len({where for where in found if ".tasks." in where}) and len(found) > 1
    }
    # A stage sees a resolved device, and answers without a temperature have the benchmark's own.
    assert set(stage_settings) <= {"device", "temperature"}, stage_settings
    readers = ("settings", "runtime", "training", "judge", "ranker")
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                holder = ast.unparse(node.func.value).split(".")[-1]
                brought = node.func.attr == "get" and holder in readers and len(node.args) == 2
                known = module.startswith(("analysis", "harness.rankers.pairrm"))
                assert not brought or known, f"{module}:{node.lineno} {ast.unparse(node)}"
