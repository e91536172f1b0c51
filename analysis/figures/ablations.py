"""The paper's Fig. 6: ablations, one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from analysis import findings, measures, prose
from analysis.figure import (
    DOUBLE,
    SINGLE,
    ArmStyle,
    Drawn,
    axis_label,
    error_bar_note,
    hollow,
    legend_below,
    new_figure,
    seeds_and_mean,
    set_title,
    shown,
    styles,
)
from analysis.figures.scores import curve, headline
from analysis.load import Run, StudyData
from analysis.measures import Measure
from analysis.stats import Estimate
from analysis.table import Observation, Unavailable

LONG_LABEL, MANY_LEVELS = 9, 8
"""Characters of a level, and levels of an axis, beyond which levels stand under one another."""


def figure_6(data: StudyData) -> Drawn | Unavailable:
    """The headline after the last iteration by axis, other axes at the baseline."""
    title, measure = "Figure 6. Ablations, one axis at a time", headline(data)
    levels = {axis: values for axis, values in data.axes.items() if len(values) > 1}
    if not levels:
        return Unavailable("figure_6", title, "the study varies no axis")
    names = {axis: [shown(_level(level), 30) for level in levels[axis]] for axis in levels}
    below = any(
        len(labels) > MANY_LEVELS or max(map(len, labels)) > LONG_LABEL for labels in names.values()
    )
    columns = min(2 if below else 3, len(levels))
    lines = -(-len(levels) // columns)
    height = max(1.3, 0.6 + 0.24 * max(map(len, levels.values()))) if below else 2.3
    figure, grid = new_figure(DOUBLE if columns > 1 else SINGLE, height * lines, lines, columns)
    rows: list[Observation] = []
    for axes, axis in zip(grid.ravel(), levels, strict=False):
        panel = Panel(axes, below)
        for position, level in enumerate(levels[axis]):
            rows += _level_on(panel, data, measure, axis, level, position)
        panel.label_levels(axis, names[axis], axis_label(measure))
    _same_range(list(grid.ravel()[: len(levels)]), below)
    for axes in grid.ravel()[len(levels) :]:
        axes.set_axis_off()
    if not rows:
        reason = f"no {measure.name} is stored after the last iteration yet"
        return Unavailable("figure_6", title, reason)
    intervals = "no interval over seeds below 3 seeds"
    if len(data.seeds) >= 3:
        intervals = "thick 95 % interval (A), thin (B)"
    others = "; other axes at the baseline's values" if len(levels) > 1 else ""
    caption = (
        f"{measure.name} {prose.after(data, data.last_iteration)}: mean, {intervals}, every "
        f"seed's point{others}."
    )
    alt = f"{measure.name} at every level of every axis."
    return Drawn("figure_6", title, caption, figure, rows, alt)


class Panel:
    """Scores run upwards, or sideways where levels stand ``below`` one another."""

    def __init__(self, axes: Axes, below: bool) -> None:
        self.axes, self.below = axes, below

    def plot(self, places: Sequence[float], values: Sequence[float], **how: Any) -> None:
        self.axes.plot(*((values, places) if self.below else (places, values)), **how)

    def put(self, position: int, points: Sequence[float], told: Estimate, style: ArmStyle) -> None:
        """Every seed's point, both intervals, the mean, at one level."""
        aside = [position - 0.24] * len(points)
        self.plot(aside, points, **hollow(style, fill="none"))
        if told.value is None:
            return
        for name, thick in (("B", 0.6), ("A", 1.8)):
            interval = told.intervals.get(name)
            if interval and interval.low is not None and interval.high is not None:
                bar = {"color": style.color, "linewidth": thick, "solid_capstyle": "butt"}
                self.plot([position] * 2, [interval.low, interval.high], **bar)
        self.plot([position], [told.value], marker=style.marker, color=style.color, markersize=5)

    def label_levels(self, axis: str, names: Sequence[str], scores: str) -> None:
        along, across = self.axes.xaxis, self.axes.yaxis
        if self.below:
            along, across = across, along  # type: ignore[assignment]
        along.set_ticks(range(len(names)), names)
        across.set_label_text(scores)
        title = shown({"objective.alpha": "α", "objective.beta": "β", "arm": ""}.get(axis, axis))
        if self.below:  # a name beside few levels would be cut
            self.axes.set_ylim(len(names) - 0.5, -0.5)
            set_title(self.axes, title)
        else:
            self.axes.set_xlim(-0.5, len(names) - 0.5)
            along.set_label_text(title)


def _same_range(panels: list[Axes], below: bool) -> None:
    """One range of scores for all panels: effects of different axes can be compared by eye."""
    ends = [panel.get_xlim() if below else panel.get_ylim() for panel in panels]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    for panel in panels:
        (panel.set_xlim if below else panel.set_ylim)(low, high)


def _level_on(
    panel: Panel, data: StudyData, measure: Measure, axis: str, level: Any, position: int
) -> list[Observation]:
    arm = _arm_at(data, axis, level)
    checkpoint = data.at(arm, data.last_iteration) if arm else None
    points = measures.points(data, checkpoint, measure)
    if not arm or not checkpoint or not points:
        return []
    estimate = findings.estimate(data, checkpoint, measure)
    panel.put(position, list(points.values()), estimate, styles(data)[arm])
    place = {"panel": axis, "arm": arm, "label": str(level), "iteration": checkpoint.iteration}
    return seeds_and_mean({**place, "measure": measure.key}, points, estimate)


def _level(level: Any) -> str:
    return f"{level:g}" if type(level) in (int, float) else str(level)


def _arm_at(data: StudyData, axis: str, level: Any) -> str | None:
    for arm, runs in data.arms.items():
        settings = dict(runs[0].arm)
        if settings.pop(axis, None) == level and all(
            data.baseline.get(name, value) == value for name, value in settings.items()
        ):
            return arm
    return None


# -- beside offline DPO ----------------------------------------------------------------------------
MODE = "offline"
"""``loop.mode`` of an arm that trains in one run over all labelled pairs."""
PAPER = ("mt_bench", "rating")
"""What the paper's panel shows."""


def pairs_seen(data: StudyData, run: Run, iteration: int) -> float | None:
    """Pairs trained on, counted in every pass; None where a training stage is not done."""
    seen = 0.0
    for at in (i for i in run.iterations if 0 < i <= iteration):
        stage = data.stage(run, at, "train")
        if stage is None or stage.state != "done":
            return None
        seen += stage.rows * float(stage.settings["training"]["epochs"])
    return seen


def figure_6_offline(data: StudyData) -> Drawn | Unavailable:
    """One line per arm over pairs; the offline arm is one run, optimiser and schedule."""
    title = "Figure 6, last panel. A benchmark over training data, beside offline DPO"
    offline = [arm for arm, runs in data.arms.items() if runs[0].mode == MODE]
    if not offline:
        reason = f"no arm of this study trains offline (loop.mode: {MODE})"
        return Unavailable("figure_6_offline", title, reason)
    pairs: dict[tuple[str, int], float] = {}
    for arm, runs in data.arms.items():
        for iteration in data.iterations:
            seen = [pairs_seen(data, run, iteration) for run in runs if iteration in run.iterations]
            known = [count for count in seen if count is not None]
            if known and len(known) == len(seen):
                pairs[arm, iteration] = sum(known) / len(known)
    measure = measures.find(data, *PAPER) if PAPER in data.metrics() else headline(data)
    figure, grid = new_figure(SINGLE, 2.6, 1, 1)
    axes, look = grid[0, 0], styles(data)
    rows = curve(axes, data, measure, "training data", pairs) if pairs else []
    if not rows:
        reason = f"no {measure.name} of a trained checkpoint is stored yet"
        return Unavailable("figure_6_offline", title, reason)
    axes.set_ylabel(axis_label(measure))
    set_title(axes, measure.name)
    legend_below(figure, [look[arm].handle() for arm in data.arms])
    names = ", ".join(look[arm].label for arm in offline)
    caption = (
        f"{measure.name} against the pairs trained on (a pair counts in every pass over it), one "
        f"line per arm, {error_bar_note(data)}; small marks: every seed. {names}: one run over the "
        "labelled pairs, one optimiser, one schedule, scored on its way. The paper shows a "
        "single run of each up to 60,000 prompts, and does not say whether passes are counted nor "
        "which of the offline run's checkpoints its line joins."
    )
    alt = f"{measure.name} over training data, a line per arm."
    return Drawn("figure_6_offline", title, caption, figure, rows, alt)
