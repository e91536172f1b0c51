"""Arms beside one another: the primary outcome, arms by measures, prompt by prompt (Figs. 4, 5),
one axis at a time (Fig. 6), and the trend declared in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import matplotlib as mpl
import numpy as np
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
from analysis.figures.scores import headline
from analysis.findings import POPULATIONS, Comparison, TrendFinding
from analysis.layout import Floats, Layout, paired
from analysis.load import StudyData
from analysis.measures import Measure, diagnostic
from analysis.opening import matrix
from analysis.table import Observation, Unavailable, ends
from analysis.text import number


# -- the primary outcome ---------------------------------------------------------------------------
def figure_differences(data: StudyData) -> Drawn | Unavailable:
    """The primary outcome with both intervals and what could have been detected."""
    title, found = "Differences to the baseline", findings.find(data)
    measure, baseline = found.primary_measure, found.baseline_label
    done = [c for c in found.primary if c.estimate.value is not None]
    if not done:
        reason = "no arm has a complete difference to the baseline on the primary outcome yet"
        return Unavailable("differences", title, reason)
    width = SINGLE if max(len(c.label) for c in done) <= 24 else DOUBLE
    figure, grid = new_figure(width, 0.8 + (0.36 if len(done) <= 6 else 0.24) * len(done))
    axes, look, rows = grid[0, 0], styles(data), []
    for position, comparison in enumerate(done):
        rows += _difference(axes, -position, comparison, look[comparison.arm])
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks([-i for i in range(len(done))], [look[c.arm].label for c in done])
    axes.set_ylim(-len(done) + 0.4, 0.6)
    against = shown(baseline) if len(baseline) <= 16 else "baseline"
    axes.set_xlabel(f"{measure.name}: arm − {against} [{prose.unit(measure)}]")
    what = "Every seed and their mean; no interval over seeds below 3 seeds."
    if len(data.seeds) >= 3:
        what = (
            "Thick: 95 % interval (A), this benchmark and new seeds; thin: (B), new seeds and new "
            f"{measure.unit_of_items}; small marks: every seed. "
            "Grey: differences too small to be detected with 80 % power under (A)."
        )
    when = prose.after(data, found.primary_iteration)
    caption = f"{measure.name} {when}, arm minus {prose.named(baseline)}. {what}"
    alt = f"Differences of every arm to {baseline}."
    return Drawn("differences", title, caption, figure, rows, alt)


def _difference(axes: Axes, y: float, c: Comparison, style: ArmStyle) -> list[Observation]:
    """One arm: what is too small to be detected, both intervals, the mean, every seed."""
    smallest = {name: found.value for name, found in c.detectable.items()}
    if (too_small := smallest.get("A")) is not None:
        edges = (y - 0.32, y + 0.32)
        axes.fill_betweenx(edges, -too_small, too_small, color="#e6e6e6", linewidth=0, zorder=0)
    for name, thick in (("B", 0.7), ("A", 2.0)):
        interval = c.estimate.intervals[name]
        if interval.low is not None and interval.high is not None:
            look: dict[str, Any] = {"linewidth": thick, "solid_capstyle": "butt"}
            axes.plot([interval.low, interval.high], [y, y], color=style.color, **look)
    mean, points = c.estimate.value, c.estimate.points
    axes.plot([mean or 0.0], [y], marker=style.marker, color=style.color, markersize=5)
    axes.plot(points, [y + 0.22] * len(points), **hollow(style, 2.6))
    place = {"arm": c.arm, "label": style.label, "measure": c.measure.key, "iteration": c.iteration}
    told = ends(c.estimate, *POPULATIONS)
    told |= {f"mde_{name}": smallest.get(name) for name in POPULATIONS}
    first = {"kind": "mean", "seed_number": None, "difference": mean}
    rows: list[Observation] = [{**place, **first, **told}]
    for seed, value in enumerate(points):
        of_seed = {"kind": "seed", "seed_number": seed, "difference": value}
        rows.append({**place, **of_seed, **dict.fromkeys(told)})
    return rows


# -- arms by measures ------------------------------------------------------------------------------
DEEPEST = 3.0
"""Difference over half the interval's width that has the deepest shade."""
LONGEST = 30
"""Characters of a label."""


def figure_matrix(data: StudyData) -> Drawn | Unavailable:
    """The difference of every arm on every measure: purple where better, orange where worse."""
    key, title, found = "matrix", "Arms by measures", matrix(data)
    if not any(score.value is not None for row in found.cells for score in row):
        return Unavailable(key, title, "no score of an arm is stored yet")
    arms, names = ([shown(name, LONGEST) for name in some] for some in (found.arms, found.measures))
    width = max(SINGLE, 0.4 + 0.055 * max(map(len, arms)) + 0.43 * len(names))
    figure, grid = new_figure(width, 1.3 + 0.26 * len(arms))
    axes = grid[0, 0]
    effects = np.array([[s.effect for s in row] for row in found.cells], dtype=float)
    shades = mpl.colormaps["PuOr"].with_extremes(bad="#f2f2f2")
    axes.imshow(effects, cmap=shades, vmin=-DEEPEST, vmax=DEEPEST, aspect="auto")
    axes.grid(False)
    texts = [
        [s.shown.removesuffix("*").replace(" to ", " to\n").replace(" ", "\n", 1) for s in row]
        for row in found.cells
    ]
    longest = max(len(line) for said in chain(*texts) for line in said.split("\n"))
    for (row, column), effect in np.ndenumerate(effects):
        look = {
            "color": "white" if abs(effect) > 0.7 * DEEPEST else "black",
            "fontweight": "bold" if abs(effect) > 1 else "normal",
            "fontsize": min(6.0, 34 / max(longest, 1)),  # a cell holds six characters at 6
            "ha": "center",
            "va": "center",
        }
        axes.text(column, row, texts[row][column], **look)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(arms)), arms)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    rows = [
        {"arm": label, "measure": name, "value": s.value, "half_width": s.half, "effect": s.effect}
        for label, row in zip(found.arms, found.cells, strict=True)
        for name, s in zip(found.measures, row, strict=True)
    ]
    caption = found.caption
    if not np.isnan(effects).all():
        caption += (
            " Purple: better than the baseline, orange: worse (for measures that have no better "
            "side: higher and lower); the deeper, the larger the difference over half of its "
            "interval; bold: the interval leaves out 0; grey: nothing to compare or no interval."
        )
    return Drawn(key, title, caption, figure, rows, "Every arm on every measure.")


# -- prompt by prompt ------------------------------------------------------------------------------
def figure_4(data: StudyData) -> Drawn | Unavailable:
    """r_arm − r_baseline on y_w and y_l after the first iteration, sorted."""
    at = data.iterations[:2][-1]
    when = prose.after(data, at)
    unit, factor = "nats", 1.0
    if "objective.beta" not in data.axes:
        unit, beta = "reward, β·nats", data.recipe["objective"].get("beta", 1.0)
        if isinstance(beta, dict):
            beta = beta.get("start", 1.0)
        factor = float(beta[0] if isinstance(beta, list) else beta)
    panels = [
        diagnostic(metric, f"{name} (held-out), {when}", unit)
        for name, metric in (("y_w", "rhat_heldout_chosen"), ("y_l", "rhat_heldout_rejected"))
    ]
    title = "Figure 4. Implicit reward differences on held-out pairs"
    caption = (
        "Implicit reward of the arm minus that of the baseline on held-out preferred (left) and "
        f"dispreferred (right) answers {when}, each curve sorted by itself. Thick: mean over seeds "
        "per prompt; thin: every seed."
    )
    return _sorted_panels(data, "figure_4", title, panels, at, caption, factor)


def figure_5(data: StudyData) -> Drawn | Unavailable:
    """Reward of each model's own samples after the method's second iteration, arm minus baseline,
    sorted: under each model's implicit reward, and under the external one.
    """
    title, at = "Figure 5. Rewards of each model's own samples", data.iterations[:3][-1]
    wanted = [
        diagnostic("implicit_reward_samples", "own samples, own implicit reward"),
        diagnostic("implicit_reward_reference_samples", "π_ref's samples, own implicit reward"),
        replace(measures.heldout(data, sampled=True), title="own samples, external reward"),
    ]
    held = data.metrics()
    panels = [replace(m, unit="reward") for m in wanted if (m.benchmark, m.metric) in held]
    if not panels:
        return Unavailable("figure_5", title, "no rewards of own samples are stored yet")
    caption = (
        f"Mean reward of temperature-1 samples per held-out prompt {prose.after(data, at)}, arm "
        "minus baseline, each curve sorted by "
        "itself. Thick: mean over seeds; thin: every seed. Implicit rewards are β·log π_θ/π_0 "
        "against the common π_0. On own samples their mean is "
        "β·KL ≥ 0: it measures drift; only the external reward measures quality."
    )
    return _sorted_panels(data, "figure_5", title, panels, at, caption)


def _sorted_panels(
    data: StudyData,
    key: str,
    title: str,
    panels: Sequence[Measure],
    iteration: int,
    caption: str,
    factor: float = 1.0,
) -> Drawn | Unavailable:
    """Arm minus baseline per prompt, times ``factor``, sorted, a panel a measure."""
    if not data.baseline_arm:
        return Unavailable(key, title, "the study declares no baseline")
    look, rows = styles(data), []
    figure, grid = new_figure(DOUBLE, 2.5, 1, len(panels))
    for axes, panel in zip(grid[0], panels, strict=True):
        for arm in data.arms:
            difference = _by_prompt(data, arm, panel, iteration)
            if difference is not None:
                where = {"panel": panel.title, "arm": arm, "label": look[arm].label}
                place = {**where, "iteration": iteration}
                rows += _sorted_curves(axes, difference, factor, look[arm], place)
        axes.axhline(0, color="black", linewidth=0.6)
        set_title(axes, panel.title)
        axes.set_xlabel("prompts, sorted (share)")
        axes.set_ylabel(f"arm − {look[data.baseline_arm].label} [{panel.unit}]")
    if not rows:
        return Unavailable(key, title, "its values are not stored for an arm and the baseline yet")
    drawn = {row["arm"] for row in rows}
    counts = [sum(row["seed"] is None and row["arm"] == arm for row in rows) for arm in drawn]
    most = max(counts) // len(panels)
    caption += f" {most} prompts, those whose diagnostics were drawn (diagnostics.prompts)."
    legend_below(figure, [look[arm].handle() for arm in data.arms if arm in drawn])
    return Drawn(key, title, caption, figure, rows, title)


def _by_prompt(data: StudyData, arm: str, panel: Measure, iteration: int) -> Layout | None:
    """Arm minus baseline, seeds × prompts; None for the baseline and where nothing is stored."""
    pair = [data.at(name, iteration) for name in (arm, data.baseline_arm)]
    if arm == data.baseline_arm or None in pair:
        return None
    found, _ = paired(*(measures.layout_of(data, c, panel) for c in pair if c))
    return found if found.values.size and not np.isnan(found.values).all() else None


def _sorted_curves(
    axes: Axes, difference: Layout, factor: float, style: ArmStyle, place: Observation
) -> list[Observation]:
    """Thin: every seed; thick: the mean over seeds."""
    values = difference.values * factor
    rows: list[Observation] = []

    def draw(seed: int | None, ordered: Floats, **look: Any) -> None:
        shares = (np.arange(len(ordered)) + 0.5) / max(len(ordered), 1)
        axes.plot(shares, ordered, **look)
        for rank, value in enumerate(ordered.tolist()):
            rows.append({**place, "seed": seed, "rank": rank, "difference": value})

    for seed, row in zip(difference.seeds, values, strict=True):
        kept = np.sort(row[~np.isnan(row)])
        draw(seed, kept, color=style.color, linewidth=0.4, alpha=0.55)
    there = ~np.isnan(values).all(axis=0)
    mean = np.nanmean(values[:, there], axis=0) if np.isnan(values).any() else values.mean(axis=0)
    draw(None, np.sort(mean), markevery=max(len(mean) // 8, 1), markersize=3, **style.look)
    return rows


# -- one axis at a time ----------------------------------------------------------------------------
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
    panels, unused = grid.ravel()[: len(levels)], grid.ravel()[len(levels) :]
    rows: list[Observation] = []
    for axes, axis in zip(panels, levels, strict=True):
        rows += _axis_panel(axes, data, measure, axis, names[axis], below)
    # one range of scores for all panels: effects of different axes can be compared by eye
    ranges = [axes.get_xlim() if below else axes.get_ylim() for axes in panels]
    for axes in panels:
        one_range = min(low for low, _ in ranges), max(high for _, high in ranges)
        (axes.set_xlim if below else axes.set_ylim)(*one_range)
    for axes in unused:
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


def _axis_panel(
    axes: Axes, data: StudyData, measure: Measure, axis: str, names: Sequence[str], below: bool
) -> list[Observation]:
    """Every seed's point, both intervals and the mean at every level. Scores run upwards, or
    sideways where levels stand ``below`` one another.
    """

    def plot(places: Sequence[float], values: Sequence[float], **how: Any) -> None:
        axes.plot(*((values, places) if below else (places, values)), **how)

    rows: list[Observation] = []
    for position, level in enumerate(data.axes[axis]):
        arm = _arm_at(data, axis, level)
        checkpoint = data.at(arm, data.last_iteration) if arm else None
        points = measures.points(data, checkpoint, measure)
        if not checkpoint or not points:
            continue
        estimate, style = findings.estimate(data, checkpoint, measure), styles(data)[arm]
        plot([position - 0.24] * len(points), list(points.values()), **hollow(style))
        for name, thick in (("B", 0.6), ("A", 1.8)):
            interval = estimate.intervals.get(name)
            if interval and interval.low is not None and interval.high is not None:
                bar = {"color": style.color, "linewidth": thick, "solid_capstyle": "butt"}
                plot([position] * 2, [interval.low, interval.high], **bar)
        if estimate.value is not None:
            mark = {"marker": style.marker, "color": style.color, "markersize": 5}
            plot([position], [estimate.value], **mark)
        place = {"panel": axis, "arm": arm, "label": str(level), "iteration": checkpoint.iteration}
        rows += seeds_and_mean({**place, "measure": measure.key}, points, estimate)
    title = shown({"objective.alpha": "α", "objective.beta": "β", "arm": ""}.get(axis, axis))
    if below:  # a name beside few levels would be cut
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(axis_label(measure))
        axes.set_ylim(len(names) - 0.5, -0.5)
        set_title(axes, title)
    else:
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(axis_label(measure))
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xlabel(title)
    return rows


def _arm_at(data: StudyData, axis: str, level: Any) -> str:
    """The first arm at a level whose other axes are the baseline's; empty where there is none."""
    wanted = {**data.baseline, axis: level}
    for arm, runs in data.arms.items():
        settings = {axis: None, **runs[0].arm}
        if all(wanted.get(name, value) == value for name, value in settings.items()):
            return arm
    return ""


def _level(level: Any) -> str:
    return f"{level:g}" if type(level) in (int, float) else str(level)


# -- the declared trend ----------------------------------------------------------------------------
def figure_trend(data: StudyData) -> Drawn | Unavailable:
    """The diagnostic declared in advance against its axis, with the trend test."""
    title, finding = "Declared diagnostic trend", findings.find(data).trend
    if finding is None:
        return Unavailable("trend", title, "the study declares no trend (declare.trend)")
    measure, axis = finding.measure, finding.axis
    levels = sorted(findings.along(data, axis))
    figure, grid = new_figure(SINGLE, 2.5)
    axes, rows = grid[0, 0], []
    for position, (level, arm) in enumerate(levels):
        place = {"arm": arm, "alpha": level, "position": position, "iteration": finding.iteration}
        rows += _trend_arm(axes, data, measure, place)
    if not rows:
        reason = f"{measure.name} after iteration {finding.iteration} is not stored yet"
        return Unavailable("trend", title, reason)
    _trend_seeds(axes, rows)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level, _ in levels])
    axes.set_xlabel(shown(axis.rsplit(".", 1)[-1].replace("alpha", "α")))
    axes.set_ylabel(axis_label(measure))
    axes.set_title(f"expected {finding.expected};\n{_trend_text(finding)}", fontsize=7)
    caption = (
        f"{measure.name} after iteration {finding.iteration}, declared before the run and "
        f"expected {finding.expected}. Grey lines: one seed each (its number at the right); "
        f"markers: mean; {error_bar_note(data)}. The slope is taken on the rank of the values."
    )
    return Drawn("trend", title, caption, figure, rows, f"{measure.name} against {axis}.")


def _trend_arm(
    axes: Axes, data: StudyData, measure: Measure, place: Observation
) -> list[Observation]:
    """The mean of one arm with interval (A); returns its rows, seeds among them."""
    style, checkpoint = styles(data)[place["arm"]], data.at(place["arm"], place["iteration"])
    points = measures.points(data, checkpoint, measure)
    if not checkpoint or not points:
        return []
    estimate = findings.estimate(data, checkpoint, measure)
    if estimate.value is not None:
        error, look = [estimate.half_width() or 0.0], {**style.look, "linestyle": "-"}
        at = [place["position"]], [estimate.value]
        axes.errorbar(*at, yerr=error, capsize=2, zorder=4, **look)
    return seeds_and_mean({**place, "measure": measure.key}, points, estimate)


SEED_LINE: dict[str, Any] = {"color": "#888888", "linewidth": 0.7, "zorder": 2, "marker": "o"}
SEED_LINE |= {"markersize": 2.4, "markerfacecolor": "none"}
SEED_NUMBER: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6, "va": "center"}
SEED_NUMBER |= {"color": "#555555"}


def _trend_seeds(axes: Axes, rows: Sequence[Observation]) -> None:
    """A grey line through each seed's points, with its number at the end."""
    paths: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row["kind"] == "seed":
            paths.setdefault(row["seed"], []).append((row["position"], row["value"]))
    for seed, path in sorted(paths.items()):
        axes.plot(*zip(*path, strict=True), **SEED_LINE)
        axes.annotate(f"{seed}", path[-1], xytext=(4, 0), **SEED_NUMBER)


def _trend_text(finding: TrendFinding) -> str:
    """ "slope −0.28 per step, one-sided p = 0.001": the test in one phrase."""
    if finding.result is None:
        return "not tested"
    value = finding.result.estimate.value
    if value is None:
        return "not tested (incomplete)"
    slope = number(value, 3, sign=True)
    return f"slope {slope} per step, one-sided {prose.p_words(finding.result.p_directed)}"
