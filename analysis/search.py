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
from analysis.text import markdown
from harness.files import write_atomic
from harness.records import canonical_json

MOST_SETTINGS = 4
"""Settings in the contour figure, the most important first: panels grow with their square."""


def short(key: str) -> str:
    """``objective.alpha`` as α: the last part of a dotted key."""
    last = key.rsplit(".", 1)[-1]
    return {"alpha": "α", "beta": "β"}.get(last, last.replace("_", " "))


def draw_all(study: optuna.Study, metrics: Sequence[str]) -> list[Drawn]:
    """Optuna's own figures, those that this search has enough trials for."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    settings = sorted({key for trial in complete for key in trial.params})
    with paper_style(), warnings.catch_warnings():
        # Optuna's matplotlib figures are marked experimental, and it says so at every call.
        warnings.simplefilter("ignore")
        if len(metrics) > 1:
            front = plots.plot_pareto_front(study, target_names=list(metrics))
            return [_drawn(study, "pareto", "Pareto front", front)]
        name = metrics[0]
        history = plots.plot_optimization_history(study, target_name=name)
        found = [
            _drawn(study, "history", "History", history),
            _drawn(study, "slice", "Slices", plots.plot_slice(study, target_name=name)),
        ]
        weights = _importance(study)
        if weights:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            bars: Any = plots.plot_param_importances(study, evaluator=evaluator, target_name=name)
            found.append(_drawn(study, "importance", "Importance (fANOVA)", bars))
        if len(settings) > 1 and len(complete) >= 4:
            first = sorted(settings, key=lambda key: -weights.get(key, 0.0))[:MOST_SETTINGS]
            grid: Any = plots.plot_contour(study, params=first, target_name=name)
            found.append(_drawn(study, "contour", "Contours", grid))
    return found


CAPTIONS = {
    "pareto": "Complete trials by their metrics; the front in red.",
    "history": "Value of every complete trial, in order, and the best so far.",
    "slice": "Value against each searched setting; the others vary along.",
    "importance": "Share of the variance between complete trials. With few trials it is a hint: a "
    "forest fitted to noise finds importance too.",
    "contour": "Complete trials and the value interpolated between them.",
}


def _drawn(study: optuna.Study, key: str, title: str, axes: Any) -> Drawn:
    figure = np.ravel(axes)[0].figure
    figure.suptitle("")
    for panel in figure.axes:  # Optuna's labels are made for one large panel
        panel.title.set_size(9)
        panel.tick_params(labelsize=6)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_size(7)
    rows = [
        {"trial": trial.number, "state": state_of(trial), "value": values_of(trial)[0]}
        for trial in study.get_trials(deepcopy=False)
        if values_of(trial)
    ]
    return Drawn(key, title, CAPTIONS[key], figure, rows)


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


def write_search(study: optuna.Study, folder: Path, found: Found) -> Path:
    """Write the search's report, numbers, trials and figures; returns the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    table = trials_table(study)
    write_atomic(folder / "trials.csv", table.to_csv(index=False, float_format="%.10g"))
    for old in folder.glob("*.svg"):
        for kind in ("svg", "pdf", "png", "csv"):
            old.with_suffix(f".{kind}").unlink(missing_ok=True)
    drawn = draw_all(study, found.metrics)
    for figure in drawn:
        write_figure(figure, folder)
    lines = [f"# Search {study.study_name}", ""]
    lines += [markdown(found.question), ""] if found.question else []
    lines += [*_summary(study, table, found), ""]
    lines += [*_finals(study, found), ""] if found.winners else ["No trial ended with a value.", ""]
    for one in drawn:
        picture = f"![{one.title}]({one.key}.svg)"
        lines += [f"## {one.title}", "", one.caption, "", picture, ""]
    lines += [*_notes(table), "## Trials", "", *_trials(study, table, found), ""]
    path = folder / "search.md"
    write_atomic(path, "\n".join(lines))
    numbers = {name: getattr(found, name) for name in ("fresh", "winners", "usd", "ended")}
    numbers["importance"] = _importance(study)
    write_atomic(folder / "search.json", canonical_json(numbers) + "\n")
    return path


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
    counts = table["state"].value_counts()
    order = ("complete", "pruned", "failed", "lost", "running", "waiting")
    aims = ", ".join(
        f"{name} ({'higher' if _maximised(study, place) else 'lower'} is better)"
        for place, name in enumerate(found.metrics)
    )
    told = ", ".join(f"{counts[name]} {name}" for name in order if counts.get(name))
    spent = (
        f"Trials ran for {found.hours * 60:.1f} minutes; judging for them cost {found.usd:.4g} USD."
    )
    if found.ended:
        spent += f" Ended at {found.ended}; with a larger budget the same command continues."
    seeds, fresh = (", ".join(map(str, some)) for some in (found.seeds, found.fresh_seeds))
    return [
        f"- Objective: {markdown(aims)}, mean over seeds {seeds}; the finals are on seeds {fresh}.",
        f"- {len(table)} trials: {told}.",
        f"- {spent}",
    ]


# -- the finals ------------------------------------------------------------------------------------
def over_seeds(values: Sequence[float], null: float | None = None) -> tuple[float, Interval]:
    """Mean over seeds with its t interval (new seeds, these items)."""
    array = np.asarray(values, dtype=np.float64)
    count, mean = len(array), float(array.mean())
    a2 = float(array.var(ddof=1)) / count if count > 1 else 0.0
    return mean, seed_interval(mean, a2, float(count - 1), count, null=null)


def shown_estimate(values: Sequence[float], signed: bool = False) -> str:
    """``0.53 (0.51 to 0.55)``, or why there is no interval."""
    if not values:
        return "not scored"
    mean, interval = over_seeds(values)
    spec = "+.4g" if signed else ".4g"
    if interval.low is None or interval.high is None:
        return f"{mean:{spec}} ({interval.undefined})"
    return f"{mean:{spec}} ({interval.low:{spec}} to {interval.high:{spec}})"


def _finals(study: optuna.Study, found: Found) -> list[str]:
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    several = len(found.metrics) > 1
    lines = [
        "## Trials of the front on fresh seeds" if several else "## The winner on fresh seeds",
        "",
    ]
    head = (
        *("settings", "the search's own estimate (optimistic)", "on seeds no trial saw"),
        "minus the default, paired by seed",
    )
    for place, metric in enumerate(found.metrics):
        if several:
            lines += [f"{markdown(metric)}, mean (95 % interval over seeds):", ""]
        fresh = {
            label: shown_estimate(list(values[place].values()))
            for label, values in found.fresh.items()
        }
        rows = [("default", "", fresh["default"], "")] if fresh else []
        for label, number in found.winners.items():
            own = [values[place] for values in seed_values(trials[number]).values()]
            paired = _paired(found, label, place)
            apart = shown_estimate(paired, signed=True) if paired else ""
            rows.append((label, shown_estimate(own), fresh.get(label, "to come"), apart))
        lines += [pipes(head, rows, 4), "", *_verdicts(study, found, place)]
    if found.fresh and len(found.winners) * len(found.metrics) > 1:
        lines += ["Comparisons are not corrected for their number.", ""]
    best_of = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    lines += [f"- default: {_settings(found.default)}."] if found.default else []
    lines += [
        f"- {label} is trial {number}: {_settings(trials[number].params)}."
        for label, number in found.winners.items()
    ]
    about = (
        f"The search's own estimate is that of the best of {best_of} complete trials on the seeds "
        "that chose it: it flatters the winner, and its interval leaves the choosing out. The "
        "fresh seeds do neither. Intervals are over seeds at these items."
    )
    if found.fresh:
        about += " The finalists' whole report: [../report/report.md](../report/report.md)."
    return [*lines, "", about]


def _paired(found: Found, label: str, place: int) -> list[float]:
    """A finalist's values minus the default's on the fresh seeds that both have."""
    if not found.fresh:
        return []
    base, fresh = found.fresh["default"][place], found.fresh[label][place]
    return [value - base[seed] for seed, value in fresh.items() if seed in base]


def _verdicts(study: optuna.Study, found: Found, place: int) -> list[str]:
    """One sentence per finalist: is it better than the default on fresh seeds?"""
    lines = []
    for label in found.winners:
        paired = _paired(found, label, place)
        if not paired:
            continue
        sign = 1 if _maximised(study, place) else -1
        mean, interval = over_seeds([sign * value for value in paired], null=0.0)
        said = "not told apart from the default: the interval of the difference includes 0"
        if interval.low is None or interval.high is None:
            place_of = {1: "ahead of", 0: "level with", -1: "behind"}[int(np.sign(mean))]
            said = f"{place_of} the default; {interval.undefined}, so nothing is claimed"
        elif interval.low * interval.high > 0:
            word = "better" if mean > 0 else "worse"
            said = f"{word} than the default: the interval of the difference excludes 0"
        lines.append(f"- On fresh seeds {label} is {said}.")
    return [*lines, ""] if lines else []


def _maximised(study: optuna.Study, place: int) -> bool:
    return study.directions[place] == optuna.study.StudyDirection.MAXIMIZE


def _settings(params: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` = {markdown(_cell(value))}" for key, value in params.items())


# -- every trial -----------------------------------------------------------------------------------
def _notes(table: pd.DataFrame) -> list[str]:
    lines = []
    for state, title in (("failed", "Failed trials"), ("lost", "Trials that lost their worker")):
        some = table[table["state"] == state].itertuples()
        listed = [f"- trial {row.trial}: {markdown(str(row.note))}" for row in some]
        lines += [f"## {title}", "", *listed, ""] if listed else []
    return lines


def _trials(study: optuna.Study, table: pd.DataFrame, found: Found) -> list[str]:
    """Every trial, the best first; failed ones last."""
    settings = sorted({key for trial in study.get_trials(deepcopy=False) for key in trial.params})
    values = [name for name in table.columns if name == "value" or name.startswith("value_")]
    seeds = [name for name in table.columns if name.startswith("seed_")]
    if values:
        rank = table["state"].map({"complete": 0, "pruned": 1}).fillna(2)
        order = ["rank", values[0], "trial"]
        rising = [True, not _maximised(study, 0), True]
        table = table.assign(rank=rank).sort_values(order, ascending=rising)
    heads = dict(zip(values, found.metrics, strict=True))
    heads |= {name: name.replace("_", " ") for name in seeds}
    heads |= {name: short(name) for name in settings}
    columns = ["trial", "state", *values, *(key for key in settings if key in table), *seeds]
    rows = ([_cell(row[c]) for c in columns] for row in table.head(SHOWN_TRIALS).to_dict("records"))
    lines = [pipes([heads.get(name, name) for name in columns], rows, 2)]
    more = len(table) - SHOWN_TRIALS
    rest = "The same at full precision: [trials.csv](trials.csv)."
    if more > 0:
        rest = f"{more} more are in [trials.csv](trials.csv)."
    return [*lines, "", f"A pruned trial shows the mean over what it ran; it is never best. {rest}"]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
