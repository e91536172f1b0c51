"""A study sent to real trackers and read back by their own readers."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis import trackers
from analysis.load import StudyData, load_study
from harness.cli import app
from harness.records import HarnessError
from tests import synthetic

SPEC = synthetic.Synthetic(
    alphas=(0.0, 1.0), seeds=(0, 1), faults=False, answers=False, questions=4, instructions=6
)
ARMS = ("objective.alpha=0", "objective.alpha=1")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[trackers.Tracked, StudyData]:
    folder, store = synthetic.build(tmp_path_factory.mktemp("tracked"), SPEC)
    (folder / "report").mkdir()
    (folder / "report" / "report.md").write_text("# The report\n")
    data = load_study(folder, store)
    return trackers.tracked(data, folder), data


def stored(data: StudyData, run: str, iteration: int) -> float:
    """Mean win rate of the store's rows."""
    return float(data.rows(run, iteration, "alpaca_eval", "win_rate")["value"].mean())


def test_tensorboard_holds_one_run_a_cell_with_the_stores_last_scores(
    built: tuple[trackers.Tracked, StudyData],
) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_multiplexer"
    )
    study, data = built
    for _ in range(2):  # sent again, nothing is doubled
        trackers.TRACKERS["tensorboard"](study)
        read = accumulator.EventMultiplexer()
        read.AddRunsFromDirectory(str(study.folder / "tensorboard"))
        read.Reload()
        runs = {f"{arm}/seed={seed}" for arm in ARMS for seed in (0, 1)}
        assert set(read.Runs()) == runs
        for name in runs:
            points = read.Tensors(name, "alpaca_eval/win_rate")
            assert [point.step for point in points] == [0, 1, 2]
            last = float(points[-1].tensor_proto.float_val[0])
            assert last == pytest.approx(stored(data, name.replace("/", ","), 2), rel=1e-6)
            steps = [point.step for point in read.Tensors(name, "train/loss")]
            assert steps == [1, 2, 3, 4, 5, 6]


def test_tensorboard_groups_seeds_by_arm(built: tuple[trackers.Tracked, StudyData]) -> None:
    metadata = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    study, _ = built
    trackers.TRACKERS["tensorboard"](study)
    groups = {}
    for folder in sorted((study.folder / "tensorboard").glob("*/*")):
        read = accumulator.EventAccumulator(str(folder))
        read.Reload()
        content = read.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
        info = metadata.parse_session_start_info_plugin_data(content)
        told = info.hparams["objective.alpha"].number_value
        groups[f"{folder.parent.name}/{folder.name}"] = (info.group_name, told)
    assert groups == {
        f"{arm}/seed={seed}": (arm, float(arm[-1])) for arm in ARMS for seed in (0, 1)
    }


READ_TRACKIO = """
import json, sys
import trackio
from trackio.sqlite_storage import SQLiteStorage
from analysis import trackers
from analysis.load import load_study
from pathlib import Path

folder, store = map(Path, sys.argv[1:])
study = trackers.tracked(load_study(folder, store), folder)
trackers.TRACKERS["trackio"](study)
trackers.TRACKERS["trackio"](study)
found = {}
for run in trackio.Api().runs("synthetic"):
    logs = SQLiteStorage.get_logs("synthetic", run.name, run_id=run.id)
    found.setdefault(run.name, []).append([run.config, logs])
print(json.dumps({"runs": found, "files": SQLiteStorage.get_artifacts("synthetic")}, default=str))
"""


@pytest.mark.slow
def test_trackio_holds_one_run_a_cell_however_often_it_is_sent(
    built: tuple[trackers.Tracked, StudyData], tmp_path: Path
) -> None:
    pytest.importorskip("trackio")
    study, data = built
    places = [str(study.folder), str(study.folder.parent / "store")]
    done = subprocess.run(
        [sys.executable, "-c", READ_TRACKIO, *places],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1  # nothing but ours is printed
    told = json.loads(done.stdout)
    assert set(told["runs"]) == {f"{arm},seed={seed}" for arm in ARMS for seed in (0, 1)}
    for name, found in told["runs"].items():
        ((config, logs),) = found
        assert config["_Group"] == name.rpartition(",")[0]
        assert config["objective.alpha"] == float(config["_Group"][-1])
        scores = {row["step"]: row for row in logs if "alpaca_eval/win_rate" in row}
        assert set(scores) == {0, 1, 2}
        assert scores[2]["alpaca_eval/win_rate"] == pytest.approx(stored(data, name, 2))
        assert (
            scores[2]["alpaca_eval/win_rate_low"]
            < scores[2]["alpaca_eval/win_rate"]
            < scores[2]["alpaca_eval/win_rate_high"]
        )
        assert [row["step"] for row in logs if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [one["name"] for one in told["files"]] == ["report"]


@pytest.mark.slow
def test_mlflow_holds_what_was_sent_last(
    built: tuple[trackers.Tracked, StudyData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent first while half of the rows were there, so that every mean was another."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where its artifacts lie
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    study, data = built
    partial = {0: {"alpaca_eval/win_rate": 0.0}, 1: {"alpaca_eval/win_rate": 99.0}}
    before = replace(study, runs=[replace(one, scores=partial) for one in study.runs])
    trackers.TRACKERS["mlflow"](before)
    trackers.TRACKERS["mlflow"](study)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("synthetic")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {f"{arm},seed={seed}" for arm in ARMS for seed in (0, 1)}
    for name, run in runs.items():
        assert run.data.tags["group"] == name.rpartition(",")[0]
        assert run.data.params["objective.alpha"] == str(float(run.data.tags["group"][-1]))
        points = client.get_metric_history(run.info.run_id, "alpaca_eval/win_rate")
        told = {point.step: point.value for point in points}
        assert len(points) == len(told) == 3
        assert told == pytest.approx({at: stored(data, name, at) for at in told})
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in losses] == [1, 2, 3, 4, 5, 6]


def test_a_cell_has_one_id_until_its_settings_change(
    built: tuple[trackers.Tracked, StudyData],
) -> None:
    study, data = built
    ids = [run.id for run in study.runs]
    assert len(set(ids)) == 4
    changed = copy.copy(data)
    first, *rest = data.runs
    other = {**first.iterations, 2: {**first.iterations[2], "train": "another key"}}
    changed.runs = (replace(first, iterations=other), *rest)
    again = [run.id for run in trackers.tracked(changed, study.folder).runs]
    assert again[0] != ids[0] and again[1:] == ids[1:]


def test_settings_are_numbers_where_they_were_and_hold_no_address(
    built: tuple[trackers.Tracked, StudyData],
) -> None:
    study, _ = built
    config = study.runs[-1].config
    assert (config["objective.alpha"], config["training.learning_rate"]) == (1.0, 3e-5)
    assert config["model.source"] == "pocket" and config["seed"] == 1
    assert not [key for key in config if key.endswith("base_url")]
    assert study.incomplete == 0  # the base has no diagnostics, and none were asked of it


def test_scores_without_a_value_are_counted_and_not_sent(tmp_path: Path) -> None:
    spec = synthetic.Synthetic(answers=False, alphas=(0.0, 1.0), seeds=(0,), questions=4)
    folder, store = synthetic.build(tmp_path, spec)
    study = trackers.tracked(load_study(folder, store), folder)
    broken = next(run for run in study.runs if run.name == "objective.alpha=1,seed=0")
    assert "alpaca_eval/win_rate" in broken.scores[1]
    assert "alpaca_eval/win_rate" not in broken.scores[2]
    assert study.incomplete > 0


@pytest.mark.parametrize(
    ("to", "says"),
    [("abacus", "allowed: tensorboard, trackio, wandb, mlflow"), ("mlflow", "pip install mlflow")],
)
def test_what_cannot_be_sent_is_said_before_the_report_is_written(
    built: tuple[trackers.Tracked, StudyData], to: str, says: str
) -> None:
    if importlib.util.find_spec(to):
        pytest.skip(f"{to} is installed")
    folder = built[0].folder
    arguments = ["report", "synthetic", "--to", to, "--results", str(folder.parent)]
    told = CliRunner().invoke(app, [*arguments, "--store", str(folder.parent / "store")])
    assert isinstance(told.exception, HarnessError)
    assert says in str(told.exception)
    assert [path.name for path in (folder / "report").iterdir()] == ["report.md"]
