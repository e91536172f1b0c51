"""``selm evaluate``: a checkpoint of one's own on files of one's own, through the command line;
``selm meta-judge`` and ``--max-cost``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.engine.launch import share_cost
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.study.study import load_study
from tests import evaluation_files
from tests.processes import ROOT, selm


@pytest.mark.slow
def test_a_checkpoint_and_files_of_ones_own_are_scored_and_a_second_run_does_nothing(
    tmp_path: Path,
) -> None:
    settings = evaluation_files.write(tmp_path / "files")
    settings["evaluation.benchmarks"] = "[mt_bench, alpaca_eval, academic]"
    where = ["--store", tmp_path / "store", "--results", tmp_path, "--workers", 1, "--name", "mine"]
    command = [
        "evaluate",
        tmp_path / "files" / "checkpoint",
        *where,
        *evaluation_files.options(settings),
    ]
    selm(*command)
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    stages = manifest["runs"][0]["iterations"][0]["stages"]
    store = Store(tmp_path / "store")
    rows = {
        name: pd.read_parquet(store.folder(stages[name]) / "scores.parquet")
        for name in ("judge.mt_bench", "judge.alpaca_eval", "academic")
    }
    assert len(rows["judge.mt_bench"]) == 6
    assert (rows["judge.alpaca_eval"]["metric"] == "win_rate").sum() == 6
    assert len(rows["academic"]) == 4
    assert "references:mine@" in rows["judge.mt_bench"]["benchmark_version"].iloc[0]
    assert not any(
        frame["value"].notna().ne(frame["status"] == "ok").any() for frame in rows.values()
    )
    report = (tmp_path / "mine" / "report" / "report.md").read_text()
    assert "not comparable with published scores" in report
    assert "How does" in report
    again = selm(*command)
    assert "0 stages executed" in again.stdout.replace("\n", " ")


def test_a_wrong_model_or_recipe_is_refused_before_any_work(tmp_path: Path) -> None:
    where = ["--store", tmp_path / "store", "--results", tmp_path]
    for arguments, words in (
        (["nowhere/at/all"], "no such file or folder"),
        (["x", "--recipe", "no.yaml"], "no such recipe"),
    ):
        done = selm("evaluate", *arguments, *where, status=2)
        assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_meta_judge_prints_agreement_noise_and_flips(tmp_path: Path) -> None:
    pairs = [
        {
            "input": f"Which is larger, {i} or {i + 5}?",
            "output_1": f"{i + 5} is.",
            "output_2": "no",
            "label": 1 + i % 2,
        }
        for i in range(6)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    recipe = ROOT / "ablations" / "recipes" / "pocket.yaml"
    command = [
        "meta-judge",
        tmp_path / "pairs.json",
        "--recipe",
        recipe,
        "--repeats",
        2,
        "--results",
        tmp_path,
        "--set",
        "judge.noise=0.5",
    ]
    done = selm(*command)
    for words in (
        "agreement with the labels",
        "position-flip rate",
        "noise floor",
        "6 pairs",
        "pocket-judge",
    ):
        assert words in " ".join(done.stdout.split()), words
    (written,) = tmp_path.glob("meta-judge/*/meta.json")
    found = json.loads(written.read_text())
    assert (
        found["agreement"]["pairs"],
        found["noise"]["items"],
        found["costs"]["judge_calls"],
    ) == (6, 12, 24)
    assert selm(*command).stdout == done.stdout
    assert json.loads(written.read_text()) == found, "nothing is asked again"
    where = ("--results", tmp_path, "--recipe", recipe)
    refused = selm("meta-judge", tmp_path / "none.json", *where, status=2)
    assert "none.json" in refused.stderr


def test_the_cost_limit_of_a_command_is_shared_by_its_judging_stages(tmp_path: Path) -> None:
    plan = build_plan(load_study(ROOT / "ablations" / "smoke.yaml"))
    store = Store(tmp_path)
    limited = share_cost(plan, store, 6.0)
    judged = [node for node in limited.nodes.values() if node.stage.startswith("judge.")]
    assert sum(node.runtime.max_cost_usd for node in judged) == pytest.approx(6.0)
    assert len({node.runtime.max_cost_usd for node in judged}) == 1
    assert all(
        node.runtime.max_cost_usd == 0
        for node in limited.nodes.values()
        if not node.stage.startswith("judge.")
    )
    assert set(limited.nodes) == set(plan.nodes)
    assert share_cost(plan, store, 0.0) is plan
