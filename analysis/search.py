"""What a search found, every trial, and figures. Its own estimate of its winner is optimistic (the
best of many noisy trials); the fresh-seed estimate beside it is not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import optuna.visualization.matplotlib as plots
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from analysis.figure import Drawn, paper_style, write_figure
from analysis.stats import Interval, seed_interval
from analysis.table import pipes
from analysis.text import markdown, template
from harness.files import write_atomic
from harness.records import canonical_json

MOST_SETTINGS = 4
"""Settings in the contour figure, the most important first: panels grow with their square."""
SHOWN_TRIALS = 60
"""Rows of the report's table of trials; trials.csv always holds all."""


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


# -- trials ----------------------------------------------------------------------------------------
def state_of(trial: FrozenTrial) -> str:
    """A trial's state in words. "lost": its worker died, which says nothing of its settings."""
    if "reason" in trial.user_attrs:
        return "failed"
    return "lost" if trial.state == TrialState.FAIL else trial.state.name.lower()


def values_of(trial: FrozenTrial) -> list[Any]:
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
    """One row per trial: state, values, parameters, values by seed, note, seconds."""
    rows = []
    lost, several = study.user_attrs.get("lost", {}), len(study.directions)
    names = [f"value_{place}" for place in range(several)] if several > 1 else ["value"]
    trials = study.get_trials(deepcopy=False)
    histories = {trial.number: trial.system_attrs.get("retry_history") for trial in trials}
    again = {history[-1]: number for number, history in histories.items() if history}
    for trial in trials:
        values = values_of(trial) or [None] * several
        seeds = {f"seed_{seed}": found[0] for seed, found in seed_values(trial).items()}
        note = trial.user_attrs.get("reason", "")
        if state_of(trial) == "lost":
            note = lost.get(str(trial.number), "its worker died or was stopped")
            note += f" as trial {again[trial.number]}" if trial.number in again else ""
        seconds = trial.duration.total_seconds() if trial.duration else None
        row = {
            "trial": trial.number,
            "state": state_of(trial),
            **dict(zip(names, values, strict=True)),
        }
        rows.append({**row, **trial.params, **seeds, "note": note, "seconds": seconds})
    return pd.DataFrame(rows, columns=None if rows else ["trial", "state", "note"])


# -- figures ---------------------------------------------------------------------------------------
CAPTIONS = {
    "pareto": "Complete trials by their metrics; the front in red.",
    "history": "Value of every complete trial, in order, and the best so far.",
    "slice": "Value against each searched setting; the others vary along.",
    "importance": "Share of the variance between complete trials. With few trials it is a hint: a "
    "forest fitted to noise finds importance too.",
    "contour": "Complete trials and the value interpolated between them.",
}


def _evaluator() -> optuna.importance.FanovaImportanceEvaluator:
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _draw(study: optuna.Study, metrics: Sequence[str], weights: Mapping[str, float]) -> list[Drawn]:
    """Optuna's own figures, those that this search has enough trials for."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    settings = sorted({key for trial in complete for key in trial.params})
    first: dict[str, Any] = {"target_name": metrics[0]}
    with paper_style(), warnings.catch_warnings():
        # Optuna's matplotlib figures are marked experimental, and it says so at every call.
        warnings.simplefilter("ignore")
        if len(metrics) > 1:
            front = plots.plot_pareto_front(study, target_names=list(metrics))
            return [_drawn(study, "pareto", "Pareto front", front)]
        found = [
            _drawn(study, "history", "History", plots.plot_optimization_history(study, **first)),
            _drawn(study, "slice", "Slices", plots.plot_slice(study, **first)),
        ]
        if weights:
            bars = plots.plot_param_importances(study, evaluator=_evaluator(), **first)
            found.append(_drawn(study, "importance", "Importance (fANOVA)", bars))
        if len(settings) > 1 and len(complete) >= 4:
            most = sorted(settings, key=lambda key: -weights.get(key, 0.0))[:MOST_SETTINGS]
            grid = plots.plot_contour(study, params=most, **first)
            found.append(_drawn(study, "contour", "Contours", grid))
    return found


def _drawn(study: optuna.Study, key: str, title: str, axes: Any) -> Drawn:
    figure = np.ravel(axes)[0].figure
    figure.suptitle("")
    for panel in figure.axes:  # Optuna's labels are made for one large panel
        panel.title.set_size(9)
        panel.tick_params(labelsize=6)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_size(7)
    rows = [
        {"trial": trial.number, "state": state_of(trial), "value": values[0]}
        for trial in study.get_trials(deepcopy=False)
        if (values := values_of(trial))
    ]
    return Drawn(key, title, CAPTIONS[key], figure, rows)


def _importance(study: optuna.Study) -> dict[str, float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len(study.directions) > 1:
        return {}
    try:
        found = optuna.importance.get_param_importances(study, evaluator=_evaluator())
    except (RuntimeError, ValueError):  # all values equal, or parameters that never varied together
        return {}
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


# -- the report ------------------------------------------------------------------------------------
def write_search(study: optuna.Study, folder: Path, found: Found) -> Path:
    """Write the search's report, numbers, trials and figures; returns the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    table, trials = trials_table(study), study.get_trials(deepcopy=False)
    write_atomic(folder / "trials.csv", table.to_csv(index=False, float_format="%.10g"))
    for old in folder.glob("*.svg"):
        for kind in ("svg", "pdf", "png", "csv"):
            old.with_suffix(f".{kind}").unlink(missing_ok=True)
    weights = _importance(study)
    drawn = _draw(study, found.metrics, weights)
    for figure in drawn:
        write_figure(figure, folder)
    counts = table["state"].value_counts()
    order = ("complete", "pruned", "failed", "lost", "running", "waiting")
    aims = (
        f"{name} ({'higher' if _sign(study, place) > 0 else 'lower'} is better)"
        for place, name in enumerate(found.metrics)
    )
    notes = {"failed": "Failed trials", "lost": "Trials that lost their worker"}
    columns, rows = _rows(study, table, found)
    written = template("search.md.jinja").render(
        study=study,
        found=found,
        trials=trials,
        aims=", ".join(aims),
        count=len(table),
        states=", ".join(f"{counts[name]} {name}" for name in order if counts.get(name)),
        complete=counts.get("complete", 0),
        finals=[_final(study, found, *one) for one in enumerate(found.metrics)],
        settings=_settings,
        drawn=drawn,
        noted={
            title: table.loc[table["state"] == state, ["trial", "note"]].values.tolist()
            for state, title in notes.items()
        },
        pipes=pipes,
        columns=columns,
        rows=rows,
    )
    write_atomic(folder / "search.md", written)
    numbers = {name: getattr(found, name) for name in ("fresh", "winners", "usd", "ended")}
    write_atomic(folder / "search.json", canonical_json({**numbers, "importance": weights}) + "\n")
    return folder / "search.md"


def _over_seeds(values: Sequence[float], null: float | None = None) -> tuple[float, Interval]:
    """Mean over seeds with its t interval (new seeds, these items)."""
    array = np.asarray(values, dtype=np.float64)
    count, mean = len(array), float(array.mean())
    a2 = float(array.var(ddof=1)) / count if count > 1 else 0.0
    return mean, seed_interval(mean, a2, float(count - 1), count, null=null)


def _shown(values: Sequence[float], spec: str = ".4g") -> str:
    """``0.53 (0.51 to 0.55)``, or why there is no interval."""
    if not values:
        return "not scored"
    mean, interval = _over_seeds(values)
    if interval.low is None or interval.high is None:
        return f"{mean:{spec}} ({interval.undefined})"
    return f"{mean:{spec}} ({interval.low:{spec}} to {interval.high:{spec}})"


def _final(
    study: optuna.Study, found: Found, place: int, metric: str
) -> tuple[str, list[Sequence[str]], list[str]]:
    """A metric, its finalists' rows, and one sentence per finalist: is it better than the default
    on fresh seeds?
    """
    trials = study.get_trials(deepcopy=False)
    fresh = {label: values[place] for label, values in found.fresh.items()}
    default = fresh.get("default", {})
    rows: list[Sequence[str]] = []
    verdicts = []
    if fresh:
        rows.append(("default", "", _shown(list(default.values())), ""))
    for label, number in found.winners.items():
        own = [values[place] for values in seed_values(trials[number]).values()]
        new, apart = _shown(list(fresh[label].values())) if fresh else "to come", ""
        paired = [v - default[seed] for seed, v in fresh.get(label, {}).items() if seed in default]
        if paired:
            apart = _shown(paired, "+.4g")
            verdicts.append(f"{label} is {_verdict([_sign(study, place) * v for v in paired])}")
        rows.append((label, _shown(own), new, apart))
    return metric, rows, verdicts


def _verdict(better_by: Sequence[float]) -> str:
    mean, interval = _over_seeds(better_by, null=0.0)
    if interval.low is None or interval.high is None:
        place = {1: "ahead of", 0: "level with", -1: "behind"}[int(np.sign(mean))]
        return f"{place} the default; {interval.undefined}, so nothing is claimed"
    if interval.low * interval.high > 0:
        word = "better" if mean > 0 else "worse"
        return f"{word} than the default: the interval of the difference excludes 0"
    return "not told apart from the default: the interval of the difference includes 0"


def _sign(study: optuna.Study, place: int) -> int:
    return 1 if study.directions[place] == optuna.study.StudyDirection.MAXIMIZE else -1


def _settings(params: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` = {markdown(_cell(value))}" for key, value in params.items())


def _rows(
    study: optuna.Study, table: pd.DataFrame, found: Found
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the trials, the best first; failed ones last."""
    settings = sorted({key for trial in study.get_trials(deepcopy=False) for key in trial.params})
    values = [name for name in table.columns if name == "value" or name.startswith("value_")]
    seeds = [name for name in table.columns if name.startswith("seed_")]
    if values:
        rank = table["state"].map({"complete": 0, "pruned": 1}).fillna(2)
        rising = [True, _sign(study, 0) < 0, True]
        by = ["rank", values[0], "trial"]
        table = table.assign(rank=rank).sort_values(by, ascending=rising)
    symbols = {"alpha": "α", "beta": "β"}
    heads = dict(zip(values, found.metrics, strict=False))  # no trial: no values
    heads |= {name: name.replace("_", " ") for name in seeds}
    for key in settings:
        last = key.rsplit(".", 1)[-1]
        heads[key] = symbols.get(last, last.replace("_", " "))
    columns = ["trial", "state", *values, *(key for key in settings if key in table), *seeds]
    shown = table.head(SHOWN_TRIALS).to_dict("records")
    return [heads.get(c, c) for c in columns], [[_cell(row[c]) for c in columns] for row in shown]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
