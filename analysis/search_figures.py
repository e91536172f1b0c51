"""Figures of a search: history, importance, slices, contours, and the front of several metrics.
Each comes with its numbers as CSV.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.tri import Triangulation

from analysis.figure import (
    DISTINCT,
    DOUBLE,
    SINGLE,
    Drawn,
    legend_below,
    new_figure,
    paper_style,
    shown,
)

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
