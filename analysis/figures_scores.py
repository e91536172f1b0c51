"""Figures of scores: curves over iterations, reward histograms, pairwise matrix, ablations of the baseline (the paper's Figs. 1, 2, 3 and 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import findings, measures
from analysis.figure import DOUBLE, SINGLE, Drawn, dodge, legend_below, new_figure, seed_points, shown, styles, symbols
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.table import Unavailable

CURVE_DATA = ("panel", "arm", "label", "iteration", "measure", "kind", "seed", "value", "A_low", "A_high", "B_low", "B_high")
Rows = list[tuple[object, ...]]


def curve(axes: Axes, data: StudyData, measure: Measure, rows: Rows, panel: str = "") -> bool:
    """One line per arm over iterations: mean with interval (A), and every seed's point. Returns whether anything was drawn."""
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
            rows.extend((panel, arm, look[arm].label, iteration, measure.key, "seed", seed, value, *[None] * 4) for seed, value in points.items())
            estimate = findings.estimate(data, checkpoint, measure)
            if estimate.value is None:
                continue
            half = estimate.intervals["A"].half_width if "A" in estimate.intervals else None
            ends = [end for p in ("A", "B") if p in estimate.intervals for end in (estimate.intervals[p].low, estimate.intervals[p].high)]
            rows.append((panel, arm, look[arm].label, iteration, measure.key, "mean", None, estimate.value, *(ends or [None] * 4)))
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
    return symbols(f"{measure.name} [{measure.unit}]" if measure.unit and measure.unit not in measure.name else measure.name)


def _headline(data: StudyData) -> Measure:
    """Length-controlled win rate, or the declared primary measure where AlpacaEval was not run."""
    present = set(data.metrics())
    if (measures.LC.benchmark, measures.LC.metric) in present:
        return measures.LC
    return findings.find(data).primary_measure


def histogram(axes: Axes, groups: list[tuple[str, Any, dict[int, np.ndarray]]], panel: str, rows: Rows, unit: tuple[float, float] | None) -> None:
    """One outline per group over common bins, seeds pooled, with every seed's mean as a mark under the axis."""
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
            [float(v.mean()) for v in seeds.values()], [-0.05 * (number + 1)] * len(seeds), linestyle="none", marker=style.marker, markersize=3,
            markerfacecolor="none", markeredgecolor=style.color, markeredgewidth=0.7, transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
        rows.extend((panel, label, None, "share", float(s), float(a), float(b)) for s, a, b in zip(share, edges[:-1], edges[1:], strict=True))
    axes.set_ylim(0, top * 1.08 or 1)
    axes.tick_params(axis="x", pad=3 + 5.5 * len(groups))
    axes.set_ylabel("share of answers")


def _rewards(data: StudyData, arm: str, iteration: int, measure: Measure) -> dict[int, np.ndarray]:
    found = {}
    for run in data.arms[arm]:
        values = data.rows(run.name, iteration, measure.benchmark, measure.metric)["value"].dropna().to_numpy(dtype=float)
        if len(values):
            found[run.seed] = np.sort(values)
    return found


def figure_3(data: StudyData) -> Drawn | Unavailable:
    """Left: score against iteration; middle: greedy held-out reward by arm; right: the same by iteration."""
    title, reward = "Figure 3. Scores over iterations and rewards of greedy answers", measures.heldout(data)
    headline, look, rows = _headline(data), styles(data), []  # type: Measure, Any, Rows
    figure, grid = new_figure(DOUBLE, 2.75, 1, 3)
    left, middle, right = grid[0]
    drawn = curve(left, data, headline, rows, "left")
    left.set_ylabel(axis_label(headline))
    left.set_title("by iteration")
    at = min(2, data.last_iteration)
    bins: Rows = []
    groups = [(look[arm].label, look[arm], seeds) for arm in data.arms if (seeds := _rewards(data, arm, at, reward))]
    if groups:
        histogram(middle, groups, "middle", bins, reward.scale)
    middle.set_title(f"iteration {at}, by arm")
    arm = _strongest(data)
    ramp = styles_of_iterations(data)
    stages = [(f"iter {i}" if i else "base", ramp[i], seeds) for i in range(data.last_iteration + 1) if (seeds := _rewards(data, arm, i, reward))]
    if stages:
        histogram(right, stages, "right", bins, reward.scale)
        right.legend(handles=[ramp[i].handle() for i in range(data.last_iteration + 1)], loc="best", handlelength=1.6)
    right.set_title(f"{look[arm].label}, by iteration")
    for axes in (middle, right):
        axes.set_xlabel(f"{reward.title}")
    if not drawn and not groups:
        return Unavailable("figure_3", title, "neither scores nor held-out rewards are stored yet")
    legend_below(figure, [style.handle() for style in look.values()], 6)
    rows.extend(
        ("histogram " + str(p), label, label, None, reward.key, kind, seed, value, low, high, None, None)
        for p, label, seed, kind, value, low, high in bins
    )
    caption = (
        f"Left: {headline.name} against iteration, one line per arm, error bars: 95 % interval (A), this benchmark and new seeds; "
        f"small marks: every seed. Middle: reward of greedy answers to held-out prompts after iteration {at}, seeds pooled; marks under the axis: "
        f"every seed's mean. Right: the same by iteration for {look[arm].label}."
    )
    return Drawn(
        "figure_3", title, caption, figure, CURVE_DATA, tuple(rows), f"{headline.name} over iterations by arm, and histograms of held-out reward."
    )


def _strongest(data: StudyData) -> str:
    """The arm of the right panel: the one with the largest κ (declared, not chosen by score); the baseline when it is alone."""
    others = [arm for arm in data.arms if arm != data.baseline_arm] or list(data.arms)
    return max(others, key=lambda arm: (max(data.arms[arm][0].kappa.values(), default=0.0), -list(data.arms).index(arm)))


def styles_of_iterations(data: StudyData) -> dict[int, Any]:
    """Iteration → style, light to dark."""
    import matplotlib as mpl

    from analysis.figure import LINES, MARKERS, ArmStyle

    count = data.last_iteration + 1
    colours = mpl.colormaps["cividis"](np.linspace(0.85, 0.0, max(count, 2)))
    return {
        i: ArmStyle(mpl.colors.to_hex(colours[i]), MARKERS[i % len(MARKERS)], LINES[(i + 1) % len(LINES)], f"iter {i}" if i else "base")
        for i in range(count)
    }


def figure_curves(data: StudyData) -> Drawn | Unavailable:
    """Small multiples: every headline measure against iteration."""
    present = {(b, m) for b, m in data.metrics()}
    wanted = [measures.LC, measures.WR, measures.LENGTH, measures.MT, *measures.academic(data)[-1:], measures.heldout(data, sampled=True)]
    chosen = [m for m in wanted if any((b, m.metric) in present for b in (m.strata or (m.benchmark,)))]
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
    legend_below(figure, [style.handle() for style in styles(data).values()], 6)
    caption = "Mean over seeds with 95 % interval (A), this benchmark and new seeds; small marks: every seed. Iteration 0 is the shared base."
    return Drawn("curves", title, caption, figure, CURVE_DATA, tuple(rows), "Scores of every benchmark over iterations, one line per arm.")


def figure_2(data: StudyData) -> Drawn | Unavailable:
    """Matrix of pairwise length-controlled win rates among declared checkpoints."""
    title = "Figure 2. Pairwise length-controlled win rates"
    judged = [(pair, data.stages.get(str(pair["key"]))) for pair in data.manifest.get("pairwise") or []]
    wins = {(pair["b"], pair["a"]): stage.summary.get("length_controlled_win_rate") for pair, stage in judged if stage and stage.state == "done"}
    if not any(value is not None for value in wins.values()):
        reason = "pairwise judgments are not stored yet" if judged else "the study declares no pairwise checkpoints (declare.pairwise)"
        return Unavailable("figure_2", title, reason)
    ids = list(dict.fromkeys(pair["a"] for pair, _ in judged))
    names = [checkpoint_name(data, name) for name in ids]
    matrix = [[wins.get((row, column)) for column in ids] for row in ids]
    values = np.array([[np.nan if v is None else float(v) for v in row] for row in matrix])
    figure, grid = new_figure(SINGLE + 0.4, SINGLE, 1, 1)
    axes = grid[0, 0]
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100)
    axes.grid(False)
    axes.set_xticks(range(len(names)), [shown(n, 22) for n in names], rotation=35, ha="right")
    axes.set_yticks(range(len(names)), [shown(n, 22) for n in names])
    for i, j in np.ndindex(values.shape):
        if np.isfinite(values[i, j]):
            axes.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", fontsize=6.5, color="white" if values[i, j] < 55 else "black")
    figure.colorbar(image, ax=axes, label="LC win rate of row against column [percent]", shrink=0.8)
    rows = tuple((names[i], names[j], float(values[i, j])) for i, j in np.ndindex(values.shape))
    caption = "Length-controlled win rate of the row's checkpoint against the column's, in percent."
    return Drawn("figure_2", title, caption, figure, ("row", "column", "length_controlled_win_rate"), rows, "Matrix of pairwise win rates.")


def checkpoint_name(data: StudyData, name: str) -> str:
    """``run@iteration`` as the tables call it: the arm's label, iteration and seed."""
    run_name, _, iteration = name.rpartition("@")
    run = next((run for run in data.runs if run.name == run_name), None)
    if run is None:
        return name
    return f"Base, seed {run.seed}" if iteration == "0" else f"{run.label}, iter {iteration}, seed {run.seed}"


def figure_6(data: StudyData) -> Drawn | Unavailable:
    """One panel per axis of the study: the headline after the last iteration at every level, other axes at the baseline."""
    title, measure, rows = "Figure 6. Ablations, one axis at a time", _headline(data), []  # type: str, Measure, Rows
    axes_of = {name: levels for name, levels in data.axes.items() if len(levels) > 1}
    if not axes_of:
        return Unavailable("figure_6", title, "the study varies no axis")
    columns = min(3, len(axes_of))
    lines = -(-len(axes_of) // columns)
    width = DOUBLE if columns > 1 else SINGLE
    figure, grid = new_figure(width, 2.3 * lines, lines, columns)
    look, drawn = styles(data), False
    for panel, (name, levels) in zip(grid.ravel(), axes_of.items(), strict=False):
        for position, level in enumerate(levels):
            arm = _arm_at(data, name, level)
            checkpoint = data.checkpoint(arm, data.last_iteration) if arm else None
            points = measures.points(data, checkpoint, measure) if checkpoint else {}
            if not arm or not checkpoint or not points:
                continue
            drawn = True
            estimate = findings.estimate(data, checkpoint, measure)
            seed_points(panel, position, list(points.values()), look[arm], 0.2)
            rows.extend((name, arm, str(level), data.last_iteration, measure.key, "seed", s, v, *[None] * 4) for s, v in points.items())
            if estimate.value is not None:
                a, b = (estimate.intervals.get(p) for p in ("A", "B"))
                for interval, thick in ((b, 0.6), (a, 1.8)):
                    if interval and interval.low is not None and interval.high is not None:
                        panel.plot([position] * 2, [interval.low, interval.high], color=look[arm].color, linewidth=thick, solid_capstyle="butt")
                panel.plot([position], [estimate.value], marker=look[arm].marker, color=look[arm].color, markersize=5)
                ends = [end for i in (a, b) for end in ((i.low, i.high) if i else (None, None))]
                rows.append((name, arm, str(level), data.last_iteration, measure.key, "mean", None, estimate.value, *ends))
        panel.set_xticks(range(len(levels)), [shown(_level(level), 20) for level in levels], rotation=0 if len(levels) < 6 else 30)
        panel.set_xlim(-0.5, len(levels) - 0.5)
        panel.set_xlabel(shown({"objective.alpha": "α", "objective.beta": "β"}.get(name, name)))
        panel.set_ylabel(axis_label(measure))
    for panel in grid.ravel()[len(axes_of) :]:
        panel.set_axis_off()
    if not drawn:
        return Unavailable("figure_6", title, f"no {measure.name} is stored after the last iteration yet")
    caption = (
        f"{measure.name} after iteration {data.last_iteration}: mean, thick 95 % interval (A), thin (B), every seed's point; "
        "other axes at the baseline's values."
    )
    return Drawn("figure_6", title, caption, figure, CURVE_DATA, tuple(rows), f"{measure.name} at every level of every axis.")


def _level(level: Any) -> str:
    return f"{level:g}" if isinstance(level, (int, float)) and not isinstance(level, bool) else str(level)


def _arm_at(data: StudyData, name: str, level: Any) -> str | None:
    for arm, runs in data.arms.items():
        rest = {k: v for k, v in runs[0].arm.items() if k != name}
        if runs[0].arm.get(name) == level and all(data.baseline.get(k, v) == v for k, v in rest.items()):
            return arm
    return None
