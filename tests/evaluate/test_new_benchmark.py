"""The README's new benchmark is one file, and appears wherever benchmarks are shown."""

from __future__ import annotations

import json

import pytest

from tests.processes import python
from tests.tree import Tree, code_of_the_readme

NAME = "exact_answer"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    made = Tree(tmp_path_factory.mktemp("tree"))
    made.add(f"harness/evaluate/{NAME}.py", *code_of_the_readme("benchmark"))
    return made


STUDY = ("ablations/smoke.yaml", "--set", f"evaluation.benchmarks=[{NAME},heldout]")
SMALL = ("pocket.steps=20", "pocket.rows=400", "diagnostics.enabled=false")


def test_it_is_planned_counted_and_documented(tree: Tree) -> None:
    assert NAME in tree.selm("plan", *STUDY)
    cost = tree.selm("plan", *STUDY, "--cost")
    assert NAME in cost
    pages = tree.python(
        "-c", "from harness.cli.docs import pages; print(*pages().values(), sep='\\n')"
    )
    assert f"evaluation.{NAME}.questions" in pages.stdout, pages.stderr


def test_doctor_asks_for_its_file(tree: Tree) -> None:
    asked = ("ablations/recipes/own_data.yaml", "--set", f"evaluation.benchmarks=[{NAME}]")
    found = tree.python("-m", "harness.cli", "doctor", *asked)
    assert f"evaluation.{NAME}.questions" in found.stdout, found.stdout + found.stderr


def test_without_its_file_nothing_is_added_to_a_finished_studys_keys(tree: Tree) -> None:
    count = (
        "from pathlib import Path; from harness.engine.runs import build_plan; "
        "from harness.study.study import load_study; "
        "print(*sorted(build_plan(load_study(Path('ablations/smoke.yaml'))).nodes))"
    )
    with_it = tree.python("-c", count).stdout
    without = python("-c", count)
    assert with_it == without.stdout != ""


def test_a_run_scores_it_and_the_report_shows_it(tree: Tree) -> None:
    small = [part for setting in SMALL for part in ("--set", setting)]
    tree.selm("run", *STUDY, *small, "--workers", "1")
    report = tree.root / "results" / "smoke" / "report"
    manifest = json.loads((report.parent / "manifest.json").read_text())
    (entry,) = [one for one in manifest["benchmarks"] if one["name"] == NAME]
    assert entry["measures"][0]["title"] == "right answers"
    assert "right answers" in (report / "tables" / f"scores_{NAME}.md").read_text()
    assert f"{NAME}.accuracy" in (report / "figures" / "curves.csv").read_text()
    assert '"title":"Exact answers"' in (report / "index.html").read_text()
