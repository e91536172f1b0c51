"""The import table of the house: stages do not import one another, data flows one way, analysis
never touches torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from harness.engine.stages import STAGES

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "harness").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")])

LIBRARY = {
    "records",
    "settings",
    "models",
    "generate",
    "logprobs",
    "head",
    "objectives",
    "batching",
    "yaml_strict",
    "step_metrics",
    "score_files",
}
"""Modules any stage may import: they hold no stage."""
STAGE_MODULES = {stage.function.partition(":")[0] for stage in STAGES.values()}
ORDER = {"execute", "commands", "cli", "ray_executor", "tune"}
"""The only modules that may know how stages follow one another."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def same_room(a: str, b: str) -> bool:
    """A stage split over several files of one package or prefix is still one stage."""
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_stages_do_not_import_stages(path: Path) -> None:
    me = module_of(path)
    if me in {"harness.engine.stages"} or me.split(".")[-1] in ORDER:
        return
    others = {
        name for name in imports_of(path) if name in STAGE_MODULES and not same_room(name, me)
    }
    assert not others or (me in ALLOWED and others <= ALLOWED[me]), (
        f"{me} imports the stage {sorted(others)}"
    )


ALLOWED: dict[str, set[str]] = {}


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "analysis" in p.relative_to(ROOT).parts[0]], ids=module_of
)
def test_analysis_reads_records_only(path: Path) -> None:
    ours = {name for name in imports_of(path) if name.startswith("harness")}
    assert all(name.startswith(("harness.records", "harness.study.settings")) for name in ours), (
        sorted(ours)
    )
    assert not any(
        name.split(".")[0] in {"torch", "transformers", "trl", "lm_eval", "alpaca_eval", "fastchat"}
        for name in imports_of(path)
    )


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "harness"], ids=module_of)
def test_the_harness_does_not_know_analysis(path: Path) -> None:
    if path.stem in {"commands", "cli", "tune"}:
        return
    assert not any(name.split(".")[0] == "analysis" for name in imports_of(path))


def test_records_and_settings_import_nothing_of_ours() -> None:
    for name in ("records", "settings"):
        assert not any(
            found.startswith(("harness", "analysis"))
            for found in imports_of(ROOT / "harness" / f"{name}.py")
        )


@pytest.mark.parametrize(
    "module",
    [
        "analysis.report",
        "analysis.stats",
        "harness.engine.plan",
        "harness.train.objectives",
        "harness.cli",
        "harness.pocket.oracle",
    ],
)
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


SEEDING = {"torch.manual_seed", "np.random.seed", "random.seed"}
FORBIDDEN_CALLS = SEEDING | {"eval", "exec", "pickle.load", "pickle.loads"}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_eval_no_pickle_no_global_seed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN_CALLS or (name in SEEDING and path.stem == "fence"), (
                f"{path}:{node.lineno} {name}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path}:{node.lineno} {node.name}"


def test_every_stage_names_a_function_and_files_that_exist() -> None:
    for name, stage in STAGES.items():
        module, _, function = stage.function.partition(":")
        path = ROOT / (module.replace(".", "/") + ".py")
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        body = ast.parse(path.read_text()).body
        names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        names |= {
            alias.asname or alias.name
            for node in body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert function in names, f"stage {name}: {stage.function}"
        assert all((ROOT / file).exists() for file in stage.modules), name
