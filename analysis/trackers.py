"""A study in an experiment tracker: TensorBoard, trackio, Weights & Biases or MLflow.

One run a cell (arm and seed), grouped by arm, so that seeds are its repeats. Scores and their
intervals stand at the iteration, training curves (``train/…``) at the optimiser's step over all
iterations of the cell. Each library is reached through its own functions and told where to write by
its own environment variables. Sent again, a cell takes the place of what it sent before.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import cards, measures
from analysis.load import StudyData
from harness.records import HarnessError, content_hash, read_jsonl

ITERATION, STEP = "iteration", "train/step"
Points = Mapping[int, Mapping[str, float]]
"""Step → name → value."""


@dataclass(frozen=True)
class TrackedRun:
    """id: of the cell and its settings. arm: in what arms differ; config: all settings. scores by
    iteration: ``benchmark/metric``, ``_low``, ``_high`` (95 % over items). curves by step.
    """

    id: str
    name: str
    group: str
    arm: Mapping[str, Any]
    config: Mapping[str, Any]
    scores: Points
    curves: Points


@dataclass(frozen=True)
class Tracked:
    """A study as trackers take it. folder: its own, where files of a tracker may lie. incomplete:
    scores without a value (too few rows), which are not sent.
    """

    name: str
    folder: Path
    runs: Sequence[TrackedRun]
    incomplete: int

    @property
    def report(self) -> str:
        return str(self.folder / "report")


def tracked(data: StudyData, study_dir: Path) -> Tracked:
    """Everything of a loaded study that a tracker shows."""
    (row,) = pd.json_normalize(dict(data.recipe)).to_dict("records")
    settings = {str(k): value for k, value in row.items() if not str(k).endswith("base_url")}
    every = measures.all_measures(data).values()
    runs, incomplete = [], 0
    for run in data.runs:
        scores: dict[int, dict[str, float]] = {}
        for iteration in run.iterations:
            asked = [one for one in every if data.stage_of(run, iteration, one.benchmark)]
            for one in cards.scores(data, run, iteration, asked):
                if one.estimate.value is None:
                    incomplete += 1
                    continue
                name, interval = one.measure.key.replace(".", "/"), one.estimate.intervals["items"]
                here = scores.setdefault(iteration, {})
                here[name] = one.estimate.value
                if interval.low is not None and interval.high is not None:
                    here |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        keys = [[at, one.get("train", one.get("base"))] for at, one in run.iterations.items()]
        config = {**settings, **run.arm, "seed": run.seed, "study": data.name}
        cell = content_hash(data.name, run.name, keys, length=16)
        curves = _curves(data, run)
        runs.append(TrackedRun(cell, run.name, run.arm_name, run.arm, config, scores, curves))
    return Tracked(data.name, study_dir, runs, incomplete)


def _curves(data: StudyData, run: Any) -> Points:
    """Rows of every iteration's ``steps.jsonl`` that is stored, their steps one after another."""
    found: dict[int, Mapping[str, float]] = {}
    for iteration in run.iterations:
        stage = data.stage(run, iteration, "train")
        path = stage.folder / "steps.jsonl" if stage and stage.state == "done" else None
        if path is None or not path.is_file():
            continue
        before = max(found, default=0)
        for row in read_jsonl(path):
            step = before + row.pop("step")
            told = {f"train/{name}": value for name, value in row.items() if value is not None}
            found[step] = {**told, f"train/{ITERATION}": iteration}
    return found


# -- the libraries ---------------------------------------------------------------------------------
def check(to: str) -> None:
    """Raise HarnessError for an unknown tracker, and where its library is not installed."""
    if to not in TRACKERS:
        raise HarnessError(f"--to {to!r} is no tracker; allowed: {', '.join(TRACKERS)}")
    if importlib.util.find_spec(to) is None:
        package = "'selm-harness[trackers]'" if to in ("tensorboard", "trackio") else to
        raise HarnessError(
            f"--to {to} needs the package {to}, which is not installed: `pip install {package}`"
        )


def _rows(run: TrackedRun) -> Iterator[tuple[int, dict[str, float]]]:
    for points in (run.scores, run.curves):
        for step, values in points.items():
            yield step, dict(values)


def _tensorboard(study: Tracked) -> str:
    """A folder a run below ``tensorboard/<arm>``, written anew; hyper-parameters are the arm's, its
    session group is the arm. It has no place for files.
    """
    from tensorboard import summary
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    root = study.folder / "tensorboard"
    shutil.rmtree(root, ignore_errors=True)
    for run in study.runs:
        folder = root / cards.path_part(run.group) / f"seed={run.config['seed']}"
        writer = summary.Writer(str(folder))
        for step, values in _rows(run):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        writer.close()
        file = EventFileWriter(str(folder), filename_suffix=".hparams")
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in run.arm.items()}
        told = hparams_pb(plain, trial_id=run.group)
        file.add_event(Event(summary=told))
        file.close()
    return f"{root}: tensorboard --logdir {root}"


def _trackio(study: Tracked) -> str:
    """Runs of a local project, what was sent of the same cells before deleted first."""
    for remote in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        if os.environ.get(remote):
            raise HarnessError(
                f"{remote} is set, and a run that was sent there can be neither found nor replaced;"
                f" unset it, send to the local project, then `trackio sync --project {study.name}`"
            )
    import trackio

    with contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(ValueError):  # there is no such project yet
            for old in trackio.Api().runs(study.name):
                if (old.config or {}).get("cell") in {run.id for run in study.runs}:
                    old.delete()
        for number, run in enumerate(study.runs):
            opened = trackio.init(
                project=study.name,
                name=run.name,
                group=run.group,
                config={**run.config, "cell": run.id},
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
            for step, values in _rows(run):
                opened.log(values, step=step)
            if number == 0:
                opened.log_artifact(study.report, name="report", type="report")
            trackio.finish()
    return f"trackio show --project {study.name}"


def _wandb(study: Tracked) -> str:
    """Runs with the cell's id: W&B replaces what a run of the same id held (it has been run offline
    here, never against its server).
    """
    import wandb

    for number, run in enumerate(study.runs):
        opened = wandb.init(
            project=study.name,
            id=run.id,
            name=run.name,
            group=run.group,
            config=dict(run.config),
            dir=str(study.folder),
            settings=wandb.Settings(silent=True),
        )
        opened.define_metric("*", step_metric=ITERATION)
        opened.define_metric("train/*", step_metric=STEP)
        for iteration, values in run.scores.items():
            opened.log({**values, ITERATION: iteration})
        for step, values in run.curves.items():
            opened.log({**values, STEP: step})
        if number == 0:
            report = wandb.Artifact("report", type="report")
            report.add_dir(study.report)
            opened.log_artifact(report)
        opened.finish()
    place = study.folder / "wandb"
    return f"W&B project {study.name}, {opened.url or f'offline: wandb sync --sync-all {place}'}"


def _mlflow(study: Tracked) -> str:
    """Runs tagged with the cell's id; one that was sent before goes to MLflow's bin once the new
    one is whole: a metric of MLflow's keeps every point that it ever got.
    """
    import mlflow

    experiment = mlflow.set_experiment(study.name)
    client = mlflow.MlflowClient()
    for number, run in enumerate(study.runs):
        asked = f"tags.cell = '{run.id}'"
        before = client.search_runs([experiment.experiment_id], filter_string=asked)
        with mlflow.start_run(run_name=run.name, tags={"cell": run.id, "group": run.group}):
            mlflow.log_params(dict(run.config))
            for step, values in _rows(run):
                mlflow.log_metrics(values, step=step)
            if number == 0:
                mlflow.log_artifacts(study.report, "report")
        for old in before:
            client.delete_run(old.info.run_id)
    return f"MLflow experiment {study.name} at {mlflow.get_tracking_uri()}"


TRACKERS: Mapping[str, Callable[[Tracked], str]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
