"""What a search found: the winner on fresh seeds beside the default and beside the search's own
estimate, every trial, and figures.

The search's own estimate of its winner is optimistic (the best of many noisy trials); the
fresh-seed estimate beside it is not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.tri import Triangulation
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from analysis.figure import (
    DISTINCT,
    DOUBLE,
    SINGLE,
    Drawn,
    legend_below,
    new_figure,
    paper_style,
    shown,
    write_figure,
)
from analysis.stats import Interval, seed_interval
from analysis.table import write_text
from analysis.text import markdown
from harness.records import canonical_json

KINDS: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "color": DISTINCT[2]},
    "pruned": {"marker": "v", "color": DISTINCT[1], "markerfacecolor": "white"},
    "failed": {"marker": "x", "color": DISTINCT[6]},
}
MAX_PAIRS = 6
"""Panels of the contour figure: pairs of the most important settings first."""


@dataclass(frozen=True)
class Point:
    """One trial. values: one per metric, empty when it gave none; a pruned trial's are means over
    what it ran.
    """

    number: int
    kind: str
    values: tuple[float, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """What the figures of one search show. chosen: label → number of the trial that went to the
    finals; ranges: (low, high) of every setting that is a number; log: those searched on a log
    scale.
    """

    points: Sequence[Point]
    metrics: Sequence[str]
    maximise: Sequence[bool]
    settings: Sequence[str]
    ranges: Mapping[str, tuple[float, float]]
    log: frozenset[str]
    chosen: Mapping[str, int]
    importance: Mapping[str, float]

    def complete(self) -> list[Point]:
        return [point for point in self.points if point.kind == "complete"]


def short(key: str) -> str:
    """``objective.alpha`` as α: the last part of a dotted key."""
    return {"alpha": "α", "beta": "β"}.get(
        key.rsplit(".", 1)[-1], key.rsplit(".", 1)[-1].replace("_", " ")
    )


def draw_all(scene: Scene) -> list[Drawn]:
    """Every figure that this search has enough trials for."""
    with paper_style():
        found = [draw(scene) for draw in FIGURES]
    return [drawn for drawn in found if drawn is not None]


def history(scene: Scene) -> Drawn | None:
    """Value by trial, and the best so far."""
    if len(scene.metrics) != 1 or not scene.complete():
        return None
    figure, axes = new_figure(DOUBLE, 2.5)
    ax: Axes = axes[0, 0]
    for kind, look in KINDS.items():
        some = [point for point in scene.points if point.kind == kind and point.values]
        ax.plot([p.number for p in some], [p.values[0] for p in some], linestyle="none", **look)
    best, track = -math.inf, []
    sign = 1 if scene.maximise[0] else -1
    for point in sorted(scene.complete(), key=lambda p: p.number):
        best = max(best, sign * point.values[0])
        track.append((point.number, sign * best))
    ax.step(
        [*(n for n, _ in track), scene.points[-1].number],
        [*(v for _, v in track), track[-1][1]],
        where="post",
        color="#555555",
        linewidth=0.9,
    )
    failed = [point.number for point in scene.points if point.kind == "failed"]
    if failed:
        ax.plot(
            failed,
            [0.02] * len(failed),
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            **KINDS["failed"],
        )
    for label, number in scene.chosen.items():
        value = next(point.values[0] for point in scene.points if point.number == number)
        ax.plot(
            [number],
            [value],
            "o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor="black",
            markeredgewidth=0.9,
        )
        ax.annotate(
            shown(label),
            (number, value),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            va="bottom",
        )
    ax.margins(y=0.18)
    ax.set_xlabel("trial")
    ax.set_ylabel(shown(scene.metrics[0]))
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    legend_below(
        figure,
        [*_handles(scene), Line2D([], [], color="#555555", linewidth=0.9, label="best so far")],
    )
    data = tuple((p.number, p.kind, p.values[0] if p.values else None) for p in scene.points)
    caption = "Value of every trial, in order. A pruned trial shows the mean over what it ran; a failed one has no value and is marked at the foot."
    return Drawn("history", "History", caption, figure, ("trial", "state", "value"), data)


def importance(scene: Scene) -> Drawn | None:
    """Share of the variance between complete trials that each setting explains."""
    if not scene.importance:
        return None
    order = sorted(scene.importance.items(), key=lambda item: item[1])
    figure, axes = new_figure(SINGLE, 0.7 + 0.28 * len(order))
    ax: Axes = axes[0, 0]
    ax.barh(
        [short(key) for key, _ in order],
        [value for _, value in order],
        color=DISTINCT[2],
        height=0.6,
    )
    for place, (_, value) in enumerate(order):
        ax.text(value + 0.01, place, f"{value:.2f}", va="center")
    ax.set_xlim(0, max(1.0, order[-1][1] * 1.15))
    ax.set_xlabel("share of the variance between trials")
    ax.grid(axis="y", visible=False)
    caption = "Importance by fANOVA over complete trials. With few trials it is a hint: a forest fitted to noise finds importance too."
    return Drawn(
        "importance",
        "Importance",
        caption,
        figure,
        ("setting", "importance"),
        tuple(reversed(order)),
    )


def slices(scene: Scene) -> Drawn | None:
    """Value against each setting."""
    if len(scene.metrics) != 1 or len(scene.complete()) < 2:
        return None
    columns = min(3, len(scene.settings))
    rows = math.ceil(len(scene.settings) / columns)
    figure, axes = new_figure(DOUBLE, 2.1 * rows + 0.3, rows, columns, sharey=True)
    for place, key in enumerate(scene.settings):
        ax: Axes = axes.flat[place]
        position = _positions(scene, key)
        for kind, look in KINDS.items():
            some = [
                point
                for point in scene.points
                if point.kind == kind and point.values and key in point.settings
            ]
            ax.plot(
                [position(p.settings[key]) for p in some],
                [p.values[0] for p in some],
                linestyle="none",
                **look,
            )
        failed = [
            position(p.settings[key])
            for p in scene.points
            if p.kind == "failed" and key in p.settings
        ]
        ax.plot(
            failed,
            [0.02] * len(failed),
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            **KINDS["failed"],
        )
        for number in scene.chosen.values():
            point = next(p for p in scene.points if p.number == number)
            ax.plot(
                [position(point.settings[key])],
                [point.values[0]],
                "o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor="black",
            )
        _scale(ax, scene, key, "x")
        ax.set_xlabel(short(key))
        if place % columns == 0:
            ax.set_ylabel(shown(scene.metrics[0]))
    for ax in axes.flat[len(scene.settings) :]:
        ax.set_visible(False)
    legend_below(figure, _handles(scene))
    data = tuple(
        (
            p.number,
            p.kind,
            p.values[0] if p.values else None,
            *(p.settings.get(key) for key in scene.settings),
        )
        for p in scene.points
    )
    caption = "Value against each searched setting; the others vary along. Failed trials are marked at the foot."
    return Drawn(
        "slice", "Slices", caption, figure, ("trial", "state", "value", *scene.settings), data
    )


def contour(scene: Scene) -> Drawn | None:
    """Value over pairs of settings: triangles between complete trials, every one shown as a point."""
    points = [
        point for point in scene.complete() if all(key in point.settings for key in scene.settings)
    ]
    keys = sorted(scene.settings, key=lambda key: -scene.importance.get(key, 0.0))
    pairs = list(itertools.combinations(keys, 2))[:MAX_PAIRS]
    if len(scene.metrics) != 1 or not pairs or len(points) < 4:
        return None
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure, axes = new_figure(
        2.3 * columns + (0.0 if columns == 3 else 0.8), 2.1 * rows, rows, columns
    )
    values = np.array([point.values[0] for point in points])
    low, high = float(values.min()), float(values.max())
    norm = mpl.colors.Normalize(low, high if high > low else low + 1e-9)
    best = set(scene.chosen.values())
    for ax, (a, b) in zip(axes.flat, pairs, strict=False):
        xy = np.array(
            [[_positions(scene, key)(point.settings[key]) for key in (a, b)] for point in points]
        )
        if a in scene.ranges and b in scene.ranges:
            _surface(ax, xy, values, norm)
        ax.scatter(
            xy[:, 0],
            xy[:, 1],
            c=values,
            cmap="viridis",
            norm=norm,
            s=14,
            edgecolors="white",
            linewidths=0.5,
            zorder=3,
        )
        here = [place for place, point in enumerate(points) if point.number in best]
        ax.scatter(
            xy[here, 0],
            xy[here, 1],
            s=70,
            facecolors="none",
            edgecolors="black",
            linewidths=0.9,
            zorder=4,
        )
        _scale(ax, scene, a, "x")
        _scale(ax, scene, b, "y")
        ax.set_xlabel(short(a))
        ax.set_ylabel(short(b))
    for ax in axes.flat[len(pairs) :]:
        ax.set_visible(False)
    figure.colorbar(
        mpl.cm.ScalarMappable(norm, "viridis"), ax=axes, label=shown(scene.metrics[0]), shrink=0.9
    )
    data = tuple(
        (point.number, point.values[0], *(point.settings[key] for key in scene.settings))
        for point in points
    )
    caption = "Complete trials (points; the winner is ringed) and the value interpolated linearly between them. Settings not on a panel vary along."
    return Drawn("contour", "Contours", caption, figure, ("trial", "value", *scene.settings), data)


def _surface(ax: Axes, xy: Any, values: Any, norm: Any) -> None:
    """Filled contours between points as drawn, (n, 2)."""
    width = np.ptp(xy, axis=0)
    if (width == 0).any() or len(np.unique(xy, axis=0)) < 3:
        return
    try:
        triangles = Triangulation(
            *((xy - xy.min(axis=0)) / width).T
        ).triangles  # as near as they look, whatever the units
        ax.tricontourf(
            Triangulation(xy[:, 0], xy[:, 1], triangles),
            values,
            levels=12,
            cmap="viridis",
            norm=norm,
            alpha=0.55,
        )
    except (RuntimeError, ValueError):  # all on one line
        return


def pareto(scene: Scene) -> Drawn | None:
    """Metrics against each other; the front in black."""
    points = scene.complete()
    if len(scene.metrics) < 2 or not points:
        return None
    pairs = list(itertools.combinations(range(len(scene.metrics)), 2))
    figure, axes = new_figure(min(DOUBLE, 3.6 * len(pairs)), 2.9, 1, len(pairs))
    front = {point.number for point in front_of(scene)}
    for ax, (a, b) in zip(axes.flat, pairs, strict=True):
        rest, best = ([p for p in points if (p.number in front) == on] for on in (False, True))
        ax.plot(
            [p.values[a] for p in rest],
            [p.values[b] for p in rest],
            linestyle="none",
            marker="o",
            color=DISTINCT[7],
            markersize=3.5,
        )
        best.sort(key=lambda p: (p.values[a], p.values[b]))
        line = "--" if len(scene.metrics) == 2 else "none"
        ax.plot(
            [p.values[a] for p in best],
            [p.values[b] for p in best],
            linestyle=line,
            linewidth=0.8,
            marker="o",
            color="black",
        )
        for label, number in scene.chosen.items():
            x, y = next((p.values[a], p.values[b]) for p in points if p.number == number)
            ax.plot(
                [x],
                [y],
                "o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor="black",
                markeredgewidth=0.9,
            )
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
            ax.annotate(
                shown(label),
                (x, y),
                textcoords="offset points",
                xytext=(7, 5),
                ha="left",
                bbox=box,
                zorder=6,
            )
        ax.margins(0.2)
        for axis, place in ((ax.xaxis, a), (ax.yaxis, b)):
            axis.set_label_text(
                f"{shown(scene.metrics[place])} ({'higher' if scene.maximise[place] else 'lower'} "
                "is better)"
            )
    handles = [
        Line2D([], [], linestyle="none", marker="o", color="black", label="Pareto front"),
        Line2D(
            [], [], linestyle="none", marker="o", color=DISTINCT[7], label="other complete trials"
        ),
    ]
    legend_below(figure, handles)
    data = tuple((point.number, point.number in front, *point.values) for point in points)
    caption = "Complete trials by their metrics: no trial is better than one of the front in every metric. Named ones went on to fresh seeds."
    return Drawn(
        "pareto", "Pareto front", caption, figure, ("trial", "front", *scene.metrics), data
    )


def front_of(scene: Scene) -> list[Point]:
    """Complete trials that no other one matches in all metrics and beats in one."""
    signs = [1 if up else -1 for up in scene.maximise]
    scored = [
        (point, [s * v for s, v in zip(signs, point.values, strict=True)])
        for point in scene.complete()
    ]
    return [
        p
        for p, mine in scored
        if not any(
            all(o >= m for o, m in zip(other, mine, strict=True)) and other != mine
            for _, other in scored
        )
    ]


def _handles(scene: Scene) -> list[Line2D]:
    there = {point.kind for point in scene.points}
    return [
        Line2D([], [], linestyle="none", label=kind, **look)
        for kind, look in KINDS.items()
        if kind in there
    ]


def _choices(scene: Scene, key: str) -> list[str]:
    return sorted({str(point.settings[key]) for point in scene.points if key in point.settings})


def _positions(scene: Scene, key: str) -> Callable[[Any], float]:
    """Value → where it is drawn: a number, its log10, or the place among the choices."""
    if key not in scene.ranges:
        names = _choices(scene, key)
        return lambda value: float(names.index(str(value)))
    return (lambda value: math.log10(value)) if key in scene.log else float


def _scale(ax: Axes, scene: Scene, key: str, side: str) -> None:
    """The whole searched range, with ticks at 1 and 3 of every decade on a log scale."""
    axis, limit = (ax.xaxis, ax.set_xlim) if side == "x" else (ax.yaxis, ax.set_ylim)
    if key not in scene.ranges:
        names = _choices(scene, key)
        axis.set_ticks(range(len(names)), [shown(name.replace("_", " "), 20) for name in names])
        limit(-0.5, len(names) - 0.5)
        return
    low, high = (_positions(scene, key)(end) for end in scene.ranges[key])
    limit(low - 0.05 * (high - low), high + 0.05 * (high - low))
    if key in scene.log:
        decades = range(math.floor(low), math.ceil(high) + 1)
        ticks = [
            digit * 10.0**decade
            for decade in decades
            for digit in (1, 3)
            if low - 1e-9 <= decade + math.log10(digit) <= high + 1e-9
        ]
        ticks = (
            ticks if len(ticks) <= 6 else [tick for tick in ticks if f"{tick:e}".startswith("1")]
        )
        axis.set_ticks(
            [math.log10(tick) for tick in ticks],
            [f"{tick:g}".replace("e-0", "e-") for tick in ticks],
        )


FIGURES: tuple[Callable[[Scene], Drawn | None], ...] = (
    history,
    slices,
    importance,
    contour,
    pareto,
)


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
