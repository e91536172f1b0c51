"""Figures of scores: curves over iterations, reward histograms, pairwise matrix, ablations of the
baseline (the paper's Figs. 1, 2, 3 and 6).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import findings, measures, prose
from analysis.figure import (
    DOUBLE,
    SINGLE,
    Drawn,
    bars,
    dodge,
    legend_below,
    new_figure,
    seed_points,
    shown,
    styles,
    symbols,
)
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.table import Unavailable

CURVE_DATA = (
    "panel",
    "arm",
    "label",
    "iteration",
    "measure",
    "kind",
    "seed",
    "value",
    "A_low",
    "A_high",
    "B_low",
    "B_high",
)
Rows = list[tuple[object, ...]]
MOST_OUTLINES = 6
"""Arms whose histograms are laid over one another."""
LONG_LABEL = 9
"""Characters of a level beyond which levels stand under one another."""


def curve(axes: Axes, data: StudyData, measure: Measure, rows: Rows, panel: str = "") -> bool:
    """One line per arm over iterations: mean with interval (A), and every seed's point. Returns
    whether anything was drawn.
    """
    look, drawn, arms = styles(data), False, list(data.arms)
    for number, arm in enumerate(arms):
        xs, means, errors = [], [], []
        for iteration in range(data.last_iteration + 1):
            checkpoint = data.checkpoint(arm, iteration)
            points = measures.points(data, checkpoint, measure) if checkpoint else {}
            if not checkpoint or not points:
                continue
            x = iteration + dodge(number, len(arms), 0.3)
            seed_points(axes, x, list(points.values()), look[arm])
            rows.extend(
                (
                    panel,
                    arm,
                    look[arm].label,
                    iteration,
                    measure.key,
                    "seed",
                    seed,
                    value,
                    *[None] * 4,
                )
                for seed, value in points.items()
            )
            estimate = findings.estimate(data, checkpoint, measure)
            if estimate.value is None:
                continue
            half = estimate.intervals["A"].half_width if "A" in estimate.intervals else None
            ends = [
                end
                for p in ("A", "B")
                if p in estimate.intervals
                for end in (estimate.intervals[p].low, estimate.intervals[p].high)
            ]
            rows.append(
                (
                    panel,
                    arm,
                    look[arm].label,
                    iteration,
                    measure.key,
                    "mean",
                    None,
                    estimate.value,
                    *(ends or [None] * 4),
                )
            )
            xs.append(x)
            means.append(estimate.value)
            errors.append(half if half is not None else 0.0)
        if xs:
            style = look[arm]
            axes.errorbar(
                xs,
                means,
                yerr=errors,
                color=style.color,
                marker=style.marker,
                markersize=3.6,
                linestyle=style.line,
                capsize=1.5,
                elinewidth=0.6,
                capthick=0.6,
            )
        drawn = drawn or bool(xs) or any(row[1] == arm and row[0] == panel for row in rows)
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(symbols(measure.name))
    axes.set_ylabel(measure.unit)
    return drawn


def axis_label(measure: Measure) -> str:
    """Name and unit, as mathematics where it has symbols."""
    return symbols(
        f"{measure.name} [{measure.unit}]"
        if measure.unit and measure.unit not in measure.name
        else measure.name
    )


def _headline(data: StudyData) -> Measure:
    """Length-controlled win rate, or the declared primary measure where AlpacaEval was not run."""
    present = set(data.metrics())
    if (measures.LC.benchmark, measures.LC.metric) in present:
        return measures.LC
    return findings.find(data).primary_measure


def histogram(
    axes: Axes,
    groups: list[tuple[str, Any, dict[int, np.ndarray]]],
    panel: str,
    rows: Rows,
    unit: tuple[float, float] | None,
) -> None:
    """One outline per group over common bins, seeds pooled, with every seed's mean as a mark under
    the axis.
    """
    everything = np.concatenate([values for _, _, seeds in groups for values in seeds.values()])
    low, high = unit or (float(everything.min()), float(everything.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, 13)
    top = 0.0
    for number, (label, style, seeds) in enumerate(groups):
        pooled = np.concatenate(list(seeds.values()))
        share = np.histogram(pooled, edges)[0] / len(pooled)
        top = max(top, float(share.max()))
        axes.stairs(share, edges, color=style.color, linestyle=style.line, linewidth=1.2)
        for seed, values in seeds.items():
            rows.append((panel, label, seed, "seed mean", float(values.mean()), None, None))
        axes.plot(
            [float(v.mean()) for v in seeds.values()],
            [-0.05 * (number + 1)] * len(seeds),
            linestyle="none",
            marker=style.marker,
            markersize=3,
            markerfacecolor="none",
            markeredgecolor=style.color,
            markeredgewidth=0.7,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
        rows.extend(
            (panel, label, None, "share", float(s), float(a), float(b))
            for s, a, b in zip(share, edges[:-1], edges[1:], strict=True)
        )
    axes.set_ylim(0, top * 1.08 or 1)
    axes.tick_params(axis="x", pad=3 + 5.5 * len(groups))
    axes.set_ylabel("share of answers")


def _rewards(data: StudyData, arm: str, iteration: int, measure: Measure) -> dict[int, np.ndarray]:
    found = {}
    for run in data.arms[arm]:
        values = (
            data.rows(run.name, iteration, measure.benchmark, measure.metric)["value"]
            .dropna()
            .to_numpy(dtype=float)
        )
        if len(values):
            found[run.seed] = np.sort(values)
    return found


def figure_3(data: StudyData) -> Drawn | Unavailable:
    """Left: score against iteration; middle: greedy held-out reward by arm; right: the same by
    iteration.
    """
    title, reward = (
        "Figure 3. Scores over iterations and rewards of greedy answers",
        measures.heldout(data),
    )
    headline, look, rows = _headline(data), styles(data), []  # type: Measure, Any, Rows
    figure, grid = new_figure(DOUBLE, 2.75, 1, 3)
    left, middle, right = grid[0]
    drawn = curve(left, data, headline, rows, "left")
    left.set_ylabel(axis_label(headline))
    left.set_title("by iteration")
    at = min(2, data.last_iteration)
    bins: Rows = []
    groups = [
        (look[arm].label, look[arm], seeds)
        for arm in data.arms
        if (seeds := _rewards(data, arm, at, reward))
    ]
    few = groups[:MOST_OUTLINES]
    if groups:
        histogram(middle, few, "middle", bins, reward.scale)
    middle.set_title(f"iteration {at}, by arm")
    arm = _strongest(data)
    which = f" (the first {len(few)} of {len(groups)} arms)" if len(few) < len(groups) else ""
    ramp = styles_of_iterations(data)
    stages = [
        (f"iter {i}" if i else "base", ramp[i], seeds)
        for i in range(data.own_last(arm) + 1)
        if (seeds := _rewards(data, arm, i, reward))
    ]
    if stages:
        histogram(right, stages, "right", bins, reward.scale)
        right.set_ylim(
            0, right.get_ylim()[1] * (1.2 + 0.12 * (-(-len(stages) // 3)))
        )  # room for the legend
        right.legend(
            handles=[style.handle() for _, style, _ in stages],
            loc="upper center",
            ncols=3,
            handlelength=1.6,
            columnspacing=0.8,
        )
    right.set_title(f"{look[arm].label}, by iteration")
    for axes in (middle, right):
        axes.set_xlabel(f"{reward.title}")
    if not drawn and not groups:
        return Unavailable("figure_3", title, "neither scores nor held-out rewards are stored yet")
    legend_below(figure, [style.handle() for style in look.values()])
    rows.extend(
        (
            "histogram " + str(p),
            label,
            label,
            None,
            reward.key,
            kind,
            seed,
            value,
            low,
            high,
            None,
            None,
        )
        for p, label, seed, kind, value, low, high in bins
    )
    caption = (
        f"Left: {headline.name} against iteration, one line per arm, {bars(data)}; "
        "small marks: every seed. Middle: reward of greedy answers to held-out prompts after "
        f"iteration {at}{which}, seeds pooled; marks under "
        f"the axis: every seed's mean. Right: the same by iteration for {look[arm].label}."
    )
    return Drawn(
        "figure_3",
        title,
        caption,
        figure,
        CURVE_DATA,
        tuple(rows),
        f"{headline.name} over iterations by arm, and histograms of held-out reward.",
    )


def _strongest(data: StudyData) -> str:
    """The arm of the right panel: the one with the largest κ (declared, not chosen by score); the
    baseline when it is alone.
    """
    others = [arm for arm in data.arms if arm != data.baseline_arm] or list(data.arms)
    return max(
        others,
        key=lambda arm: (
            max(data.arms[arm][0].kappa.values(), default=0.0),
            -list(data.arms).index(arm),
        ),
    )


def styles_of_iterations(data: StudyData) -> dict[int, Any]:
    """Iteration → style, light to dark."""
    import matplotlib as mpl

    from analysis.figure import LINES, MARKERS, ArmStyle

    count = data.last_iteration + 1
    colours = mpl.colormaps["cividis"](np.linspace(0.85, 0.0, max(count, 2)))
    return {
        i: ArmStyle(
            mpl.colors.to_hex(colours[i]),
            MARKERS[i % len(MARKERS)],
            LINES[(i + 1) % len(LINES)],
            f"iter {i}" if i else "base",
        )
        for i in range(count)
    }


def figure_curves(data: StudyData) -> Drawn | Unavailable:
    """Small multiples: every headline measure against iteration."""
    present = {(b, m) for b, m in data.metrics()}
    wanted = [
        measures.LC,
        measures.WR,
        measures.LENGTH,
        measures.MT,
        *measures.academic(data)[-1:],
        measures.heldout(data, sampled=True),
        *measures.others(data),
    ]
    chosen = [
        m for m in wanted if any((b, m.metric) in present for b in (m.strata or (m.benchmark,)))
    ]
    title = "Scores over iterations"
    if not chosen:
        return Unavailable("curves", title, "no scores are stored yet")
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    figure, grid = new_figure(DOUBLE, 1.85 * lines + 0.35, lines, columns)
    rows: Rows = []
    for axes, measure in zip(grid.ravel(), chosen, strict=False):
        curve(axes, data, measure, rows, measure.key)
    for axes in grid.ravel()[len(chosen) :]:
        axes.set_axis_off()
    legend_below(figure, [style.handle() for style in styles(data).values()])
    caption = (
        f"Mean over seeds; {bars(data)}; small marks: every seed. Iteration 0 is the first model."
    )
    return Drawn(
        "curves",
        title,
        caption,
        figure,
        CURVE_DATA,
        tuple(rows),
        "Scores of every benchmark over iterations, one line per arm.",
    )


def figure_2(data: StudyData) -> Drawn | Unavailable:
    """Matrix of pairwise length-controlled win rates among declared checkpoints."""
    title = "Figure 2. Pairwise length-controlled win rates"
    judged = [
        (pair, data.stages.get(str(pair["key"]))) for pair in data.manifest.get("pairwise") or []
    ]
    wins = {
        (pair["b"], pair["a"]): stage.summary.get("length_controlled_win_rate")
        for pair, stage in judged
        if stage and stage.state == "done"
    }
    if not any(value is not None for value in wins.values()):
        reason = (
            "pairwise judgments are not stored yet"
            if judged
            else "the study declares no pairwise checkpoints (declare.pairwise)"
        )
        return Unavailable("figure_2", title, reason)
    ids = list(dict.fromkeys(pair["a"] for pair, _ in judged))
    names = [data.title_of(name) for name in ids]
    matrix = [[wins.get((row, column)) for column in ids] for row in ids]
    values = np.array([[np.nan if v is None else float(v) for v in row] for row in matrix])
    figure, grid = new_figure(SINGLE + 0.4, SINGLE, 1, 1)
    axes = grid[0, 0]
    reach = max(10.0, 5.0 * np.ceil(float(np.nanmax(np.abs(values - 50.0))) / 5.0))
    image = axes.imshow(values, cmap="cividis", vmin=50.0 - reach, vmax=50.0 + reach)
    axes.grid(False)
    axes.set_xticks(range(len(names)), [shown(n, 22) for n in names], rotation=35, ha="right")
    axes.set_yticks(range(len(names)), [shown(n, 22) for n in names])
    for i, j in np.ndindex(values.shape):
        if np.isfinite(values[i, j]):
            axes.text(
                j,
                i,
                f"{values[i, j]:.1f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if values[i, j] < 50.0 + 0.1 * reach else "black",
            )
    figure.colorbar(image, ax=axes, label="LC win rate of row against column [percent]", shrink=0.8)
    rows = tuple((names[i], names[j], float(values[i, j])) for i, j in np.ndindex(values.shape))
    caption = "Length-controlled win rate of the row's checkpoint against the column's, in percent."
    return Drawn(
        "figure_2",
        title,
        caption,
        figure,
        ("row", "column", "length_controlled_win_rate"),
        rows,
        "Matrix of pairwise win rates.",
    )


def figure_6(data: StudyData) -> Drawn | Unavailable:
    """One panel per axis of the study: the headline after the last iteration at every level, other
    axes at the baseline.
    """
    title, measure, rows = "Figure 6. Ablations, one axis at a time", _headline(data), []  # type: str, Measure, Rows
    axes_of = {name: levels for name, levels in data.axes.items() if len(levels) > 1}
    if not axes_of:
        return Unavailable("figure_6", title, "the study varies no axis")
    names = {
        name: [shown(_level(level), 30) for level in levels] for name, levels in axes_of.items()
    }
    below = any(len(label) > LONG_LABEL for labels in names.values() for label in labels) or any(
        len(labels) > 8 for labels in names.values()
    )
    columns = min(2 if below else 3, len(axes_of))
    lines = -(-len(axes_of) // columns)
    height = max(1.3, 0.6 + 0.24 * max(map(len, axes_of.values()))) if below else 2.3
    figure, grid = new_figure(DOUBLE if columns > 1 else SINGLE, height * lines, lines, columns)
    drawn = False
    for panel, (name, levels) in zip(grid.ravel(), axes_of.items(), strict=False):
        for position, level in enumerate(levels):
            drawn = _level_on(panel, data, measure, name, level, position, rows, below) or drawn
        axis, across = (panel.yaxis, panel.xaxis) if below else (panel.xaxis, panel.yaxis)
        axis.set_ticks(range(len(levels)), names[name])
        (panel.set_ylim if below else panel.set_xlim)(
            *((len(levels) - 0.5, -0.5) if below else (-0.5, len(levels) - 0.5))
        )
        across.set_label_text(axis_label(measure))
        title_of_axis = shown(
            {"objective.alpha": "α", "objective.beta": "β", "arm": ""}.get(name, name)
        )
        if below:  # a name beside few levels would be cut
            panel.set_title(title_of_axis)
        else:
            axis.set_label_text(title_of_axis)
    _same_range(list(grid.ravel()[: len(axes_of)]), below)
    for panel in grid.ravel()[len(axes_of) :]:
        panel.set_axis_off()
    if not drawn:
        return Unavailable(
            "figure_6", title, f"no {measure.name} is stored after the last iteration yet"
        )
    intervals = (
        "thick 95 % interval (A), thin (B)"
        if len(data.seeds) >= 3
        else "no interval over seeds below 3 seeds"
    )
    others = "; other axes at the baseline's values" if len(axes_of) > 1 else ""
    caption = (
        f"{measure.name} {prose.after(data, data.last_iteration)}: mean, {intervals}, every "
        f"seed's point{others}."
    )
    return Drawn(
        "figure_6",
        title,
        caption,
        figure,
        CURVE_DATA,
        tuple(rows),
        f"{measure.name} at every level of every axis.",
    )


def _same_range(panels: list[Axes], below: bool) -> None:
    """One range of scores for all panels: effects of different axes can be compared by eye."""
    ends = [panel.get_xlim() if below else panel.get_ylim() for panel in panels]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    for panel in panels:
        (panel.set_xlim if below else panel.set_ylim)(low, high)


def _level_on(
    panel: Axes,
    data: StudyData,
    measure: Measure,
    name: str,
    level: Any,
    position: int,
    rows: Rows,
    below: bool,
) -> bool:
    """One level of an axis: every seed's point, both intervals, the mean. below: levels under one
    another. Returns whether it has scores.
    """
    arm = _arm_at(data, name, level)
    checkpoint = data.at(arm, data.last_iteration) if arm else None
    points = measures.points(data, checkpoint, measure) if checkpoint else {}
    if not arm or not checkpoint or not points:
        return False
    style, estimate = styles(data)[arm], findings.estimate(data, checkpoint, measure)

    def put(place: list[float], values: list[float], **how: Any) -> None:
        panel.plot(*((values, place) if below else (place, values)), **how)

    count = len(points)
    aside = [
        position - 0.24
        if below
        else position + (0.0 if count < 2 else 0.2 * (i / (count - 1) - 0.5))
        for i in range(count)
    ]
    hollow = {
        "linestyle": "none",
        "marker": style.marker,
        "markersize": 2.4,
        "markerfacecolor": "white",
        "markeredgewidth": 0.6,
    }
    put(aside, list(points.values()), markeredgecolor=style.color, zorder=5, **hollow)
    where = (name, arm, str(level), checkpoint.iteration, measure.key)
    rows.extend((*where, "seed", s, v, *[None] * 4) for s, v in points.items())
    if estimate.value is not None:
        a, b = (estimate.intervals.get(p) for p in ("A", "B"))
        for interval, thick in ((b, 0.6), (a, 1.8)):
            if interval and interval.low is not None and interval.high is not None:
                put(
                    [position] * 2,
                    [interval.low, interval.high],
                    color=style.color,
                    linewidth=thick,
                    solid_capstyle="butt",
                )
        put([position], [estimate.value], marker=style.marker, color=style.color, markersize=5)
        ends = [end for i in (a, b) for end in ((i.low, i.high) if i else (None, None))]
        rows.append((*where, "mean", None, estimate.value, *ends))
    return True


def _level(level: Any) -> str:
    return (
        f"{level:g}"
        if isinstance(level, (int, float)) and not isinstance(level, bool)
        else str(level)
    )


def _arm_at(data: StudyData, name: str, level: Any) -> str | None:
    for arm, runs in data.arms.items():
        rest = {k: v for k, v in runs[0].arm.items() if k != name}
        if runs[0].arm.get(name) == level and all(
            data.baseline.get(k, v) == v for k, v in rest.items()
        ):
            return arm
    return None
