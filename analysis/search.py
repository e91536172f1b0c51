"""What a search found: every trial with its state and reason, history, importance, contour and Pareto figures, and the winner on fresh seeds.

The search's own estimate of its winner is optimistic (the best of many noisy trials); the fresh-seed estimate beside it is not.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import optuna
import optuna.visualization.matplotlib as plots
import pandas as pd
from optuna.trial import TrialState


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: state, values, parameters, per-seed values, the reason of a failure, seconds."""
    rows = []
    trials = study.get_trials(deepcopy=False)
    again = {old: trial.number for trial in trials for old in trial.system_attrs.get("retry_history", [])[-1:]}
    for trial in trials:
        values = {f"value_{i}": v for i, v in enumerate(trial.values or [])} if len(study.directions) > 1 else {"value": trial.value}
        seeds = {key: value[0] for key, value in sorted(trial.user_attrs.items()) if key.startswith("seed_")}
        seconds = trial.duration.total_seconds() if trial.duration else None
        reason = trial.user_attrs.get("reason", "")
        if trial.state == TrialState.FAIL and not reason:
            reason = f"its worker died; {f'tried again as trial {again[trial.number]}' if trial.number in again else 'not tried again'}"
        rows.append({"trial": trial.number, "state": trial.state.name, **values, **trial.params, **seeds,
                     "reason": reason, "seconds": seconds})  # fmt: skip
    return pd.DataFrame(rows).sort_values("trial")


def write_search(study: optuna.Study, folder: Path, fresh: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write ``search.md``, ``trials.csv`` and the figures below ``folder``.

    fresh: label of a finalist → its metric on fresh seeds (``mean``, ``low``, ``high``, ``n``), empty before the finalists ran.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = trials_table(study)
    table.to_csv(folder / "trials.csv", index=False, float_format="%.10g")
    drawn = [name for name, draw in FIGURES.items() if _draw(draw, study, folder / name)]
    counts = table["state"].value_counts().to_dict()
    lines = [
        f"# Search {study.study_name}",
        "",
        ", ".join(f"{counts.get(s.name, 0)} {s.name.lower()}" for s in TrialState) + f" of {len(table)} trials.",
        "",
    ]
    for label, trial in _best(study).items():
        settings = ", ".join(f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in trial.params.items())
        values = ", ".join(f"{value:.4g}" for value in trial.values or [])
        lines.append(f"- {label}: trial {trial.number}, {settings}; the search's own estimate {values} (optimistic: the best of {len(table)})")
    if fresh:
        lines += ["", "On seeds no trial saw:", "", "| settings | mean | 95 % interval | seeds |", "|---|---|---|---|"]
        lines += [f"| {label} | {row['mean']:.4g} | {_interval(row)} | {row['n']} |" for label, row in fresh.items()]
    importance = _importance(study)
    if importance:
        lines += ["", "Importance (fANOVA, share of the variance between trials):", ""] + [
            f"- `{key}` {value:.2f}" for key, value in importance.items()
        ]
    failed = table[table["reason"] != ""]
    if len(failed):
        lines += ["", "Failed trials:", ""] + [f"- trial {row.trial}: {row.reason}" for row in failed.itertuples()]
    lines += ["", *(f"![{name}]({name}.svg)" for name in drawn), ""]
    path = folder / "search.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    (folder / "search.json").write_text(json.dumps({"fresh": fresh, "importance": importance}, indent=1, sort_keys=True), encoding="utf-8")
    return path


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.4g} to {row['high']:.4g}" if row.get("low") is not None else "undefined below 3 seeds"


def _best(study: optuna.Study) -> dict[str, Any]:
    try:
        trials = study.best_trials
    except ValueError:
        return {}
    return {"best" if len(study.directions) == 1 else f"Pareto {i}": trial for i, trial in enumerate(trials, 1)}


def _importance(study: optuna.Study) -> dict[str, float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len(study.directions) > 1:
        return {}
    try:
        found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    except (RuntimeError, ValueError):  # all values equal, or parameters that never varied together
        return {}
    return {key: float(value) for key, value in found.items()}


def _draw(draw: Callable[[optuna.Study], Any], study: optuna.Study, path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            axes = draw(study)
        except (ValueError, RuntimeError):  # too few finished trials for this figure
            plt.close("all")
            return False
        if axes is None:
            return False
        figure = axes.flat[0].figure if hasattr(axes, "flat") else axes.figure
        for ending in ("svg", "pdf", "png"):
            figure.savefig(path.with_suffix(f".{ending}"), bbox_inches="tight", metadata={"Date": None} if ending == "svg" else None)
        plt.close("all")
    return True


def _single(draw: Callable[[optuna.Study], Any]) -> Callable[[optuna.Study], Any]:
    return lambda study: draw(study) if len(study.directions) == 1 else None


FIGURES: dict[str, Callable[[optuna.Study], Any]] = {
    "history": _single(plots.plot_optimization_history),
    "importance": _single(plots.plot_param_importances),
    "contour": _single(plots.plot_contour),
    "slice": _single(plots.plot_slice),
    "pareto": lambda study: plots.plot_pareto_front(study) if 2 <= len(study.directions) <= 3 else None,
}
