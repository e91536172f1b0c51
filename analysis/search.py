"""What a search found: the winner on fresh seeds beside the default and beside the search's own
estimate, every trial, and figures.

The search's own estimate of its winner is optimistic (the best of many noisy trials); the
fresh-seed estimate beside it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from analysis.figure import write_figure
from analysis.search_figures import Point, Scene, draw_all, short
from analysis.stats import Interval, seed_interval
from analysis.table import write_text
from analysis.text import markdown
from harness.records import canonical_json

SHOWN_TRIALS = 60
"""Rows of the report's table of trials; trials.csv always holds all."""
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "lost",
}


@dataclass(frozen=True)
class Found:
    """What the harness knows of a search besides its Optuna study.

    metrics: ``benchmark/metric``. winners: label → trial. fresh: label (and ``default``) → per
    metric: fresh seed → mean over items; empty before the finalists ran. default: the recipe's own
    values of the searched settings. ended: why no further trial was begun.
    """

    question: str
    metrics: Sequence[str]
    seeds: Sequence[int]
    fresh_seeds: Sequence[int]
    winners: Mapping[str, int]
    fresh: Mapping[str, Sequence[Mapping[int, float]]] = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=dict)
    ended: str = ""
    hours: float = 0.0
    usd: float = 0.0


def state_of(trial: FrozenTrial) -> str:
    """complete | pruned | failed | lost | running | waiting. Lost: its worker died, so it says
    nothing about its settings.
    """
    return "failed" if "reason" in trial.user_attrs else STATES[trial.state]


def values_of(trial: FrozenTrial) -> list[float]:
    """A complete trial's values; of any other the means over the seeds it ran."""
    if trial.state == TrialState.COMPLETE:
        return list(trial.values)
    seeds = list(seed_values(trial).values())
    return [sum(column) / len(column) for column in zip(*seeds, strict=True)] if seeds else []


def seed_values(trial: FrozenTrial) -> dict[int, list[float]]:
    """Seed → values, as far as the trial got."""
    return {
        int(key.removeprefix("seed_")): value
        for key, value in sorted(trial.user_attrs.items())
        if key.startswith("seed_")
    }


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: state, values, parameters, per-seed values, the reason of a failure,
    seconds.
    """
    rows = []
    lost, fork = study.user_attrs.get("lost", {}), study.user_attrs.get("fork", {})
    trials = study.get_trials(deepcopy=False)
    again = {
        trial.system_attrs["retry_history"][-1]: trial.number
        for trial in trials
        if trial.system_attrs.get("retry_history")
    }
    for trial in trials:
        values: list[float | None] = [*values_of(trial)] or [None] * len(study.directions)
        names = (
            ["value"]
            if len(study.directions) == 1
            else [f"value_{place}" for place in range(len(values))]
        )
        seeds = {f"seed_{seed}": found[0] for seed, found in seed_values(trial).items()}
        note = trial.user_attrs.get("reason", "")
        if state_of(trial) == "lost":
            note = lost.get(str(trial.number), "its worker died or was stopped")
            note += f" as trial {again[trial.number]}" if trial.number in again else ""
        if "taken_over" in trial.user_attrs:
            note = f"taken over from {fork.get('of', '')}, trial {trial.user_attrs['taken_over']}"
        rows.append(
            {
                "trial": trial.number,
                "state": state_of(trial),
                **dict(zip(names, values, strict=True)),
                **trial.params,
                **seeds,
                "note": note,
                "seconds": trial.duration.total_seconds() if trial.duration else None,
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["trial", "state", "note"])


def write_search(study: optuna.Study, folder: Path, found: Found) -> Path:
    """Write ``search.md``, ``search.json``, ``trials.csv`` and the figures below ``folder``;
    returns the report's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, scene = trials_table(study), scene_of(study, found)
    write_text(folder / "trials.csv", table.to_csv(index=False, float_format="%.10g"))
    for old in folder.glob("*.svg"):
        for kind in ("svg", "pdf", "png", "csv"):
            old.with_suffix(f".{kind}").unlink(missing_ok=True)
    drawn = draw_all(scene)
    for figure in drawn:
        write_figure(figure, folder)
    lines = [
        f"# Search {study.study_name}",
        "",
        *([markdown(found.question), ""] if found.question else []),
        *_summary(study, table, found),
        "",
    ]
    lines += (
        [*_finals(study, scene, found), ""]
        if scene.chosen
        else ["No trial ended with a value.", ""]
    )
    for figure in drawn:
        lines += [
            f"## {figure.title}",
            "",
            figure.caption,
            "",
            f"![{figure.title}]({figure.key}.svg)",
            "",
        ]
    lines += [*_notes(table), "## Trials", "", *_trials(table, scene), ""]
    path = folder / "search.md"
    write_text(path, "\n".join(lines))
    numbers = {
        "fresh": found.fresh,
        "importance": scene.importance,
        "winners": found.winners,
        "usd": found.usd,
        "ended": found.ended,
    }
    write_text(folder / "search.json", canonical_json(numbers) + "\n")
    return path


def scene_of(study: optuna.Study, found: Found) -> Scene:
    """The trials as the figures show them. Lost, running and waiting ones are not shown."""
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if state_of(trial) in ("complete", "pruned", "failed")
    ]
    points = [
        Point(
            trial.number,
            state_of(trial),
            () if state_of(trial) == "failed" else tuple(values_of(trial)),
            trial.params,
        )
        for trial in trials
    ]
    kinds = {key: kind for trial in trials for key, kind in trial.distributions.items()}
    floats = {key: kind for key, kind in kinds.items() if isinstance(kind, FloatDistribution)}
    ranges, log = (
        {key: (kind.low, kind.high) for key, kind in floats.items()},
        frozenset(key for key, kind in floats.items() if kind.log),
    )
    up = [direction == optuna.study.StudyDirection.MAXIMIZE for direction in study.directions]
    return Scene(
        points, found.metrics, up, sorted(kinds), ranges, log, found.winners, _importance(study)
    )


def _importance(study: optuna.Study) -> dict[str, float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len(study.directions) > 1:
        return {}
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (RuntimeError, ValueError):  # all values equal, or parameters that never varied together
        return {}
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def _summary(study: optuna.Study, table: pd.DataFrame, found: Found) -> list[str]:
    counts = table["state"].value_counts().to_dict()
    order = ("complete", "pruned", "failed", "lost", "running", "waiting")
    aims = ", ".join(
        f"{name} ({'higher' if direction == optuna.study.StudyDirection.MAXIMIZE else 'lower'} is "
        "better)"
        for name, direction in zip(found.metrics, study.directions, strict=True)
    )
    lines = [
        f"- Objective: {markdown(aims)}, mean over seeds {_listed(found.seeds)}; the finals are "
        f"on seeds {_listed(found.fresh_seeds)}.",
        f"- {len(table)} trials: "
        + ", ".join(f"{counts[name]} {name}" for name in order if counts.get(name))
        + ".",
        f"- Trials ran for {found.hours * 60:.1f} minutes; judging for them cost {found.usd:.4g} "
        "USD."
        + (
            f" Ended at {found.ended}; with a larger budget the same command continues."
            if found.ended
            else ""
        ),
    ]
    fork = study.user_attrs.get("fork")
    if fork:
        left = "; ".join(f"{count} {markdown(why)}" for why, count in fork["left"].items())
        lines.append(
            f"- Fork of {markdown(fork['of'])}: {fork['taken']} of its trials taken over"
            + (f", not taken: {left}." if left else ".")
        )
    return lines


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


# -- the finals ------------------------------------------------------------------------------------
def over_seeds(values: Sequence[float], null: float | None = None) -> tuple[float, Interval]:
    """Mean over seeds with its t interval (new seeds, these items)."""
    array = np.asarray(values, dtype=np.float64)
    a2 = float(array.var(ddof=1)) / len(array) if len(array) > 1 else 0.0
    return float(array.mean()), seed_interval(
        float(array.mean()), a2, float(len(array) - 1), len(array), null=null
    )


def shown_estimate(values: Sequence[float], signed: bool = False) -> str:
    """``0.53 (0.51 to 0.55)``, or why there is no interval."""
    if not values:
        return "not scored"
    mean, interval = over_seeds(values)
    spec = "+.4g" if signed else ".4g"
    if interval.low is None or interval.high is None:
        return f"{mean:{spec}} ({interval.undefined})"
    return f"{mean:{spec}} ({interval.low:{spec}} to {interval.high:{spec}})"


def _finals(study: optuna.Study, scene: Scene, found: Found) -> list[str]:
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    lines = [
        "## The winner on fresh seeds"
        if len(scene.metrics) == 1
        else "## Trials of the front on fresh seeds",
        "",
    ]
    for place, metric in enumerate(scene.metrics):
        lines += (
            [f"{markdown(metric)}, mean (95 % interval over seeds):", ""]
            if len(scene.metrics) > 1
            else []
        )
        lines += [
            "| settings | the search's own estimate (optimistic) | on seeds no trial saw | minus "
            "the default, paired by seed |",
            "|---|---|---|---|",
        ]
        base = found.fresh["default"][place] if "default" in found.fresh else {}
        if found.fresh:
            lines.append(f"| default | | {shown_estimate(list(base.values()))} | |")
        for label, number in scene.chosen.items():
            own = [values[place] for values in seed_values(trials[number]).values()]
            fresh = found.fresh[label][place] if label in found.fresh else {}
            paired = [value - base[seed] for seed, value in fresh.items() if seed in base]
            lines.append(
                f"| {label} | {shown_estimate(own)} | "
                f"{shown_estimate(list(fresh.values())) if found.fresh else 'to come'} | "
                f"{shown_estimate(paired, signed=True) if paired else ''} |"
            )
        lines += ["", *_verdicts(scene, found, place)]
    lines += (
        ["Comparisons are not corrected for their number.", ""]
        if found.fresh and len(scene.chosen) * len(scene.metrics) > 1
        else []
    )
    best_of = len(scene.complete())
    lines += [f"- default: {_settings(found.default)}."] if found.default else []
    lines += [
        f"- {label} is trial {number}: {_settings(trials[number].params)}."
        for label, number in scene.chosen.items()
    ]
    lines += [
        "",
        f"The search's own estimate is that of the best of {best_of} complete trials on the seeds "
        "that chose it: it flatters the winner, and its "
        "interval leaves the choosing out. The fresh seeds do neither. Intervals are over seeds "
        "at these items."
        + (
            " The finalists' whole report: [../report/report.md](../report/report.md)."
            if found.fresh
            else ""
        ),
    ]
    return lines


def _verdicts(scene: Scene, found: Found, place: int) -> list[str]:
    """One sentence per finalist: is it better than the default on fresh seeds?"""
    lines = []
    for label in scene.chosen if "default" in found.fresh else ():
        base, fresh = found.fresh["default"][place], found.fresh[label][place]
        paired = [value - base[seed] for seed, value in fresh.items() if seed in base]
        if not paired:
            continue
        mean, interval = over_seeds(
            [value if scene.maximise[place] else -value for value in paired], null=0.0
        )
        if interval.low is None or interval.high is None:
            said = f"{'ahead of' if mean > 0 else 'level with' if mean == 0 else 'behind'} the default; {interval.undefined}, so nothing is claimed"
        elif interval.low > 0:
            said = "better than the default: the interval of the difference excludes 0"
        elif interval.high < 0:
            said = "worse than the default: the interval of the difference excludes 0"
        else:
            said = "not told apart from the default: the interval of the difference includes 0"
        lines.append(f"- On fresh seeds {label} is {said}.")
    return [*lines, ""] if lines else []


def _settings(params: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` = {_cell(value)}" for key, value in params.items())


# -- every trial -----------------------------------------------------------------------------------
def _notes(table: pd.DataFrame) -> list[str]:
    lines = []
    for state, title in (("failed", "Failed trials"), ("lost", "Trials that lost their worker")):
        some = table[table["state"] == state]
        if len(some):
            lines += [
                f"## {title}",
                "",
                *(f"- trial {row.trial}: {markdown(str(row.note))}" for row in some.itertuples()),
                "",
            ]
    return lines


def _trials(table: pd.DataFrame, scene: Scene) -> list[str]:
    """Every trial, the best first; failed ones last."""
    values = [name for name in table.columns if name == "value" or name.startswith("value_")]
    seeds = [name for name in table.columns if name.startswith("seed_")]
    if values:
        rank = table["state"].map({"complete": 0, "pruned": 1}).fillna(2)
        table = table.assign(rank=rank).sort_values(
            ["rank", values[0], "trial"], ascending=[True, not scene.maximise[0], True]
        )
    heads = dict(zip(values, scene.metrics, strict=True)) | {
        name: name.replace("_", " ") for name in seeds
    }
    columns = ["trial", "state", *values, *(key for key in scene.settings if key in table), *seeds]
    lines = [
        "| "
        + " | ".join(
            markdown(heads.get(name, short(name) if name in scene.settings else name))
            for name in columns
        )
        + " |"
    ]
    lines.append("|" + "---|" * len(columns))
    for row in table.head(SHOWN_TRIALS).to_dict("records"):
        lines.append("| " + " | ".join(_cell(row[name]) for name in columns) + " |")
    more = len(table) - SHOWN_TRIALS
    rest = (
        f"{more} more are in [trials.csv](trials.csv)."
        if more > 0
        else "The same at full precision: [trials.csv](trials.csv)."
    )
    return [*lines, "", f"A pruned trial shows the mean over what it ran; it is never best. {rest}"]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else markdown(str(value))
