"""A study read from disk: joins, shared base, completeness, reasons, speed."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from analysis import measures
from analysis.load import StudyData, load_study
from harness.records import HarnessError, Score, read_jsonl, write_jsonl, write_scores
from tests import synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return synthetic.build(tmp_path_factory.mktemp("load"))


def test_rows_are_joined_with_their_run_iteration_and_seed(folders: tuple[Path, Path]) -> None:
    data = load_study(*folders)
    row = data.scores[
        (data.scores["run"] == "objective.alpha=0.3,seed=1") & (data.scores["iteration"] == 2)
    ].iloc[0]
    assert row["seed"] == 1
    run = next(run for run in data.runs if run.name == row["run"])
    told = (run.arm_name, run.baseline_run, run.label)
    assert told == ("objective.alpha=0.3", "objective.alpha=0,seed=1", "α = 0.3")
    assert data.baseline_arm == "objective.alpha=0"
    assert [c.title for c in data.checkpoints][:3] == ["Base", "α = 0, iter 1", "α = 0, iter 2"]


def test_a_warm_up_stands_between_base_and_first_iteration(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """The same study as if its first iteration had been the warm-up."""
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    for run in manifest["runs"]:
        for entry in run["iterations"]:
            entry["iteration"] -= 1
            if entry["iteration"] == 0:
                entry["stages"]["base"] = f"seed {run['seed']}"  # the arms share it
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    data = load_study(tmp_path, folders[1])
    titles = [c.title for c in data.checkpoints]
    assert titles[:3] == ["Base", "Warm-up", "α = 0, iter 1"]
    assert {iteration for run in data.runs for iteration in run.c} == {1}
    assert data.title_of(f"{data.runs[0].name}@-1") == f"Base, seed {data.runs[0].seed}"


def test_coefficients_follow_the_iteration(folders: tuple[Path, Path]) -> None:
    run = load_study(*folders).arms["objective.alpha=1"][0]
    assert run.c == {1: 0.1, 2: 0.1}
    assert run.kappa == {1: 2.0, 2: 2.0}


def test_a_cell_counts_what_is_missing_and_says_why(folders: tuple[Path, Path]) -> None:
    data = load_study(*folders)
    last = data.checkpoint("objective.alpha=1", 2)
    assert last is not None
    partial = data.cell(last, "mt_bench", "rating", scale=(1.0, 10.0))
    assert (partial.layout.scored, partial.layout.expected, partial.statuses["error"]) == (
        94,
        96,
        2,
    )
    assert np.isnan(partial.layout.values[2, 0])
    failed = data.cell(last, "alpaca_eval", "win_rate")
    assert (failed.layout.scored, failed.layout.expected) == (48, 72)
    assert failed.absent == (
        "seed 0: judge.alpaca_eval failed (judge endpoint answered 401: the key was refused)",
    )
    assert not failed.complete
    assert [stage.state for stage, _ in data.unfinished].count("failed") == 1


def test_a_stage_behind_a_failed_one_names_it(tmp_path: Path) -> None:
    study, store = synthetic.build(tmp_path)
    manifest = json.loads((study / "manifest.json").read_text())
    failed = next(
        k
        for k, s in manifest["stages"].items()
        if s["stage"] == "judge.alpaca_eval" and (store / "failed" / f"{k}.json").exists()
    )
    manifest["stages"]["f" * 64] = {
        "stage": "academic",
        "version": 1,
        "inputs": {"answer": failed},
        "seconds_estimated": 0,
    }
    (study / "manifest.json").write_text(json.dumps(manifest))
    assert (
        load_study(study, store)
        .stages["f" * 64]
        .reason.startswith("waits for judge.alpaca_eval, which failed: judge endpoint answered 401")
    )


def test_the_library_gives_the_length_controlled_point(folders: tuple[Path, Path]) -> None:
    data = load_study(*folders)
    checkpoint = data.checkpoint("objective.alpha=0", 2)
    assert checkpoint is not None
    summary = data.summary(checkpoint.runs[0], 2, "alpaca_eval")["length_controlled_win_rate"]
    lc = measures.find(data, "alpaca_eval", "length_controlled_win_rate")
    assert measures.points(data, checkpoint, lc)[0] == summary
    cell = measures.layout_of(data, checkpoint, lc)
    assert cell.values[0].mean() == pytest.approx(summary, abs=1e-9)
    raw = data.cell(checkpoint, "alpaca_eval", "length_controlled_win_rate").layout
    assert np.ptp(cell.values[0] - raw.values[0]) == pytest.approx(0, abs=1e-9)


def test_a_mean_over_benchmarks_is_stratified() -> None:
    from analysis.layout import from_array

    few, many = (
        from_array([[0.0, 2.0], [0.0, 2.0]]),
        from_array([[10.0, 12.0, 14.0, 12.0], [11.0, 13.0, 15.0, 13.0]]),
    )
    both = measures.stack([few, many])
    assert both.values.mean(axis=1) == pytest.approx([(1 + 12) / 2, (1 + 13) / 2])
    # items alone, variances 2 and 8/3 with each benchmark's own n − 1: (2/2 + (8/3)/4) / 2²
    items = both.values.mean(axis=0) - both.values.mean()
    assert (items**2).sum() / (6 * 5) == pytest.approx((2 / 2 + 8 / 3 / 4) / 4)


def test_a_mean_says_how_many_of_its_benchmarks_have_scores(folders: tuple[Path, Path]) -> None:
    whole = load_study(*folders)
    assert [m.title for m in measures.columns(whole, "table_2")][-1] == "mean"
    lacks = whole.scores[whole.scores["benchmark"] != "gsm8k"].reset_index(drop=True)
    data = StudyData(whole.manifest, whole.runs, whole.stages, lacks)
    titles = [(m.title, m.name) for m in measures.columns(data, "table_2")]
    assert titles[0] == ("HellaSwag", "HellaSwag")
    assert titles[-1] == ("mean (5 of 6)", "mean of academic benchmarks (5 of 6)")


def test_diagnostics_of_different_prompts_are_compared_by_seed(folders: tuple[Path, Path]) -> None:
    data = load_study(*folders)
    by_metric = {m.metric: m for m in measures.diagnostics(data)}
    assert measures.crossed(data, by_metric["rhat_reference_samples"])
    assert not measures.crossed(data, by_metric["displacement_chosen_train"])
    checkpoint = data.checkpoint("objective.alpha=0", 1)
    assert checkpoint is not None
    assert measures.layout_of(
        data, checkpoint, by_metric["displacement_chosen_train"]
    ).values.shape == (3, 1)


def test_broken_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"manifest\.json is missing; run `selm run`"):
        load_study(tmp_path, tmp_path)
    study, store = synthetic.build(tmp_path, synthetic.Synthetic(answers=False))
    scores = next(store.glob("objects/*/*/scores.parquet"))
    scores.write_bytes(b"not parquet")
    with pytest.raises(HarnessError, match=r"scores\.parquet: cannot be read"):
        load_study(study, store)
    manifest = json.loads((study / "manifest.json").read_text())
    (study / "manifest.json").write_text(json.dumps(manifest | {"schema": 9}))
    with pytest.raises(HarnessError, match="schema 9"):
        load_study(study, store)


def test_a_store_without_results_is_a_study_without_scores(tmp_path: Path) -> None:
    study, _ = synthetic.build(tmp_path, synthetic.Synthetic(answers=False))
    data = load_study(study, tmp_path / "nowhere")
    assert len(data.scores) == 0
    assert all(stage.state == "missing" for stage in data.stages.values())


def test_the_order_of_files_changes_nothing(tmp_path: Path) -> None:
    study, store = synthetic.build(tmp_path, synthetic.Synthetic(answers=False))
    first = load_study(study, store).scores
    path = study / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["stages"] = dict(reversed(manifest["stages"].items()))
    path.write_text(json.dumps(manifest))
    assert load_study(study, store).scores.equals(first)


@pytest.mark.slow
def test_a_million_rows_load_in_seconds(tmp_path: Path) -> None:
    study, store = synthetic.build(tmp_path, synthetic.Synthetic(answers=False, faults=False))
    manifest = json.loads((study / "manifest.json").read_text())
    keys = sorted(
        {run["iterations"][i]["stages"]["academic"] for run in manifest["runs"] for i in range(3)}
    )
    rows = [
        Score("gsm8k", "1", f"gsm8k-{i}", f"gsm8k-{i}", "score", float(i % 2) * 100)
        for i in range(1_000_000 // 27 + 1)
    ]
    for key in keys:
        write_scores(store / "objects" / key[:2] / key / "scores.parquet", rows)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    data = load_study(study, store)
    assert len(data.scores) > 1_000_000
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kilobytes


def test_judges_that_answer_under_one_name_are_told_apart(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """The alias moved on between the stages of two seeds."""
    store = shutil.copytree(folders[1], tmp_path / "store")
    arm, of = "objective.alpha=1", ("mt_bench", "rating")

    def answered_by(*models: str) -> StudyData:
        data = load_study(folders[0], store)
        for run, model in zip(data.arms[arm], itertools.cycle(models)):
            stage = data.stage_of(run, 2, of[0])
            assert stage
            path = stage.folder / "judgments.jsonl"
            write_jsonl(path, [row | {"model": model} for row in read_jsonl(path)])
        return load_study(folders[0], store)

    data = answered_by("pocket-judge")
    checkpoint = data.at(arm, 2)
    assert checkpoint
    assert data.identity(checkpoint, *of) == "pocket-judge on 1"
    data = answered_by("judge-may")
    assert data.identity(checkpoint, *of) == "pocket-judge as judge-may on 1"
    with pytest.raises(HarnessError, match=r"mixes rows of pocket-judge as judge-june .*judge-may"):
        answered_by("judge-may", "judge-june").cell(checkpoint, *of)
