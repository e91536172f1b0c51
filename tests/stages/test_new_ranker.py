"""The README's new ranker is one file, and ranks wherever rankers do."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.records import read_jsonl
from tests.tree import ROOT, Tree, code_of_the_readme

NAME = "brevity"
STUDY = ("ablations/smoke.yaml", "--set", f"ranker.kind={NAME}")
SMALL = ("pocket.steps=20", "pocket.rows=400")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    made = Tree(tmp_path_factory.mktemp("tree"))
    made.add(f"harness/rankers/{NAME}.py", *code_of_the_readme("ranker"))
    return made


def test_it_is_planned_counted_and_found_ready(tree: Tree) -> None:
    assert "rank" in tree.selm("plan", *STUDY)
    assert "rank" in tree.selm("plan", *STUDY, "--cost")
    assert NAME not in (ROOT / "harness" / "rankers" / "registry.py").read_text(encoding="utf-8")
    tree.selm("doctor", *STUDY)


def test_its_winner_is_the_shortest_and_diagnostics_hold_its_rewards(tree: Tree) -> None:
    small = [part for one in SMALL for part in ("--set", one)]
    benchmarks = ("--set", "evaluation.benchmarks=[heldout]")
    tree.selm("run", *STUDY, *small, *benchmarks, "--executor", "inline")
    pairs = [
        row
        for file in (tree.root / "results" / "store").rglob("pairs.jsonl")
        for row in read_jsonl(file)
    ]
    assert pairs
    for row in pairs:
        assert len(row["chosen"].split()) <= len(row["rejected"].split())
    scores = pd.concat(
        pd.read_parquet(file) for file in (tree.root / "results" / "store").rglob("scores.parquet")
    )
    rewards = scores[scores["metric"] == "reward_samples"]["value"].dropna()
    assert len(rewards)
    assert (rewards <= 0).all()
