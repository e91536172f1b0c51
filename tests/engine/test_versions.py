"""What asks for a new stage version is what the stage reaches, and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.engine.stages import STAGES
from tests.golden.versions import ROOT, definitions, source_hash

ASK_A_JUDGE = {
    "diagnostics",
    "heldout",
    "judge.alpaca_eval",
    "judge.arena_hard",
    "judge.mt_bench",
    "judge.pairwise",
    "judge.wildbench",
    "rank",
}
"""Stages whose numbers follow the pocket judge's opinions: the judges', and those that a judge may
rank in.
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "harness", tmp_path / "harness")
    return tmp_path


def changed(tree: Path, file: str, edit: Callable[[str], str]) -> set[str]:
    path = tree / file
    text = edit(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    return {stage for stage in STAGES if source_hash(stage, tree) != source_hash(stage)}


def test_a_changed_opinion_of_the_pocket_judge_asks_for_the_stages_that_use_it(tree: Path) -> None:
    def stricter(text: str) -> str:
        return text.replace("TIE_LOG_ODDS = 0.3", "TIE_LOG_ODDS = 0.4")

    file = next(
        path.relative_to(ROOT)
        for path in (ROOT / "harness" / "pocket").glob("*.py")
        if "TIE_LOG_ODDS = " in path.read_text()
    )
    assert changed(tree, str(file), stricter) == ASK_A_JUDGE


def test_a_local_variable_by_another_name_asks_for_nothing(tree: Path) -> None:
    def renamed(text: str) -> str:
        return re.sub(r"\bstatuses\b", "by_status", text)

    assert not changed(tree, "harness/stages/answer.py", renamed)


def test_comments_docstrings_and_annotations_ask_for_nothing(tree: Path) -> None:
    def commented(text: str) -> str:
        return text.replace('"""Terms', '"""Other terms').replace(
            "def run(", "# a remark\ndef run("
        )

    assert not changed(tree, "harness/stages/rank.py", commented)


def test_a_changed_objective_asks_for_training_alone(tree: Path) -> None:
    def halved(text: str) -> str:
        return text.replace("1 / (2 * beta)", "1 / (4 * beta)")

    assert changed(tree, "harness/train/objectives.py", halved) == {"train"}


def test_every_stage_reaches_its_own_function() -> None:
    for name, stage in STAGES.items():
        module, _, function = stage.function.partition(":")
        assert (module, function) in definitions(name)
