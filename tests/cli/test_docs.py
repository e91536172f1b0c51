"""The documents say what the code does: pages that are generated are fresh, files and commands that
are named exist.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from harness.cli import options
from harness.cli.docs import pages
from harness.engine.stages import STAGES
from tests.processes import ROOT, python
from tests.tree import Tree, code_of_the_readme

DOCUMENTS = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "ablations" / "README.md",
        ROOT / "results" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    )
    if path.exists()
]


WRITTEN = pages()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.name)
def test_generated_pages_are_fresh(path: Path) -> None:
    assert path.read_text() == WRITTEN[path], "run `.venv/bin/python -m harness.cli.docs`"


def test_every_study_is_listed() -> None:
    listed = (ROOT / "ablations" / "README.md").read_text()
    for path in (ROOT / "ablations").glob("*.yaml"):
        assert f"`{path.name}`" in listed


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text()))
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_and_link_exists(path: Path) -> None:
    from harness.cli import app

    commands = {
        info.name or info.callback.__name__ for info in app.registered_commands if info.callback
    }
    text = path.read_text()
    assert set(re.findall(r"`selm ([a-z][a-z-]*)", text)) <= commands
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (path.parent / link).exists(), link


WALKED_THROUGH = {"evaluation.exact_answer"}
"""Keys of what the README adds."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_key_that_is_named_exists(path: Path) -> None:
    keys = {key.removesuffix("=") for key in options.recipe_keys()}
    sections = {key.split(".")[0] for key in keys}
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", path.read_text()))
    files = {one for one in named if one.endswith((".py", ".jsonl"))}
    keyed = {one for one in named - files if one.split(".")[0] in sections}
    assert keyed <= keys | STAGES.keys() | WALKED_THROUGH


def test_every_key_says_what_it_means() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| (.*)\|$", (ROOT / "docs/keys.md").read_text(), re.M)
    keys = {key: meaning.strip() for key, meaning in rows if "." in key}
    assert len(keys) > 150
    assert not [key for key, meaning in keys.items() if not meaning]


def test_help_of_every_command_has_an_example() -> None:
    from harness.cli import app

    for info in app.registered_commands:
        assert info.callback
        assert "Example: selm " in (info.callback.__doc__ or ""), info.callback.__name__


def test_the_project_speaks_of_itself_alone() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    forbidden = re.compile(
        r"/work/(main|shared|\.)|/root/|farm-studio|farm-bench|opt/pypi|\bhelper-\d"
    )
    for name in files:
        path = ROOT / name
        if (
            path == Path(__file__)
            or not path.is_file()
            or path.suffix in {".png", ".pdf", ".parquet"}
        ):
            continue
        found = forbidden.search(path.read_text(errors="replace"))
        assert not found, f"{name}: {found and found.group()}"


def test_the_readmes_trainer_example_runs(tmp_path: Path) -> None:
    from tests import tiny

    tiny.checkpoint(tmp_path / "CHECKPOINT", "llama", "llama3")
    (block,) = code_of_the_readme("example")
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    python("-c", block, cwd=tmp_path, HF_HUB_OFFLINE="1")


def test_the_readmes_new_objective_works_as_written(tmp_path: Path) -> None:
    """Follows the walk-through on a copy: one function, one entry, one worked number; then the
    listed tests and a plan.
    """
    tree = Tree(tmp_path, "tests")
    function, entry, worked = code_of_the_readme("walkthrough")
    start = "OBJECTIVES: dict[str, Objective] = {\n"
    tree.insert("harness/train/objectives.py", start, function + "\n\n", entry)
    start = "WORKED: dict[str, list[tuple[dict[str, Any], float]]] = {\n"
    tree.insert("tests/train/test_objectives.py", start, "", worked)
    asked = ("tests/train/test_objectives.py", "-k", "odpo or every_objective")
    done = tree.python("-m", "pytest", "-p", "no:cacheprovider", *asked)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    study = "name: mine\nrecipe: pocket\nseeds: [0]\n"
    study += "axes: {objective.params.offset: [0.5, 1.0]}\nset: {objective.name: odpo}\n"
    (tmp_path / "ablations" / "mine.yaml").write_text(study)
    assert "2 cells" in tree.selm("plan", "ablations/mine.yaml")
