"""Figures of scores: over iterations, histograms, the pairwise matrix (Figs. 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import findings, measures, prose
from analysis.figure import (
    DOUBLE,
    LINES,
    MARKERS,
    SINGLE,
    ArmStyle,
    Drawn,
    axis_label,
    dodge,
    error_bar_note,
    hollow,
    legend_below,
    new_figure,
    ramp,
    seed_points,
    seeds_and_mean,
    set_title,
    shown,
    styles,
)
from analysis.load import DIAGNOSTICS, StudyData
from analysis.measures import Measure
from analysis.table import Observation, Unavailable

MOST_OUTLINES = 6
"""Arms whose histograms are laid over one another."""
SCALAR = (
    " PairRM compares two texts; how the paper makes one answer's reward of it is not said there. "
    "Here it is the mean of its logit differences to all answers ranked with it."
)


THIN: dict[str, Any] = {"markersize": 3.6, "capsize": 1.5, "elinewidth": 0.6, "capthick": 0.6}


def curve(
    axes: Axes,
    data: StudyData,
    measure: Measure,
    panel: str,
    pairs: Mapping[tuple[str, int], float] | None = None,
) -> list[Observation]:
    """One line per arm over iterations, or over the ``pairs`` trained on by arm and iteration: mean
    with interval (A), and every seed's point. Returns what was drawn.
    """
    look, rows, arms = styles(data), [], list(data.arms)
    for number, arm in enumerate(arms):
        xs, means, errors, style = [], [], [], look[arm]
        for iteration in data.iterations:
            checkpoint = data.checkpoint(arm, iteration)
            points = measures.points(data, checkpoint, measure)
            if not checkpoint or not points or (pairs and (arm, iteration) not in pairs):
                continue
            x = pairs[arm, iteration] if pairs else iteration + dodge(number, len(arms), 0.3)
            seed_points(axes, x, list(points.values()), style)
            estimate = findings.estimate(data, checkpoint, measure)
            place = {"panel": panel, "arm": arm, "label": style.label, "iteration": iteration}
            place |= {"pairs": x} if pairs else {}
            rows += seeds_and_mean({**place, "measure": measure.key}, points, estimate)
            if estimate.value is not None:
                xs.append(x)
                means.append(estimate.value)
                errors.append(estimate.half_width() or 0.0)
        if xs:
            axes.errorbar(xs, means, yerr=errors, **style.look, **THIN)
    axes.set_xlabel("pairs trained on" if pairs else prose.counted_in(data))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    set_title(axes, measure.name)
    axes.set_ylabel(measure.unit)
    return rows


def headline(data: StudyData) -> Measure:
    """Length-controlled win rate, or the declared primary measure where AlpacaEval was not run."""
    name = ("alpaca_eval", "length_controlled_win_rate")
    if name in data.metrics():
        return measures.find(data, *name)
    return findings.find(data).primary_measure


@dataclass(frozen=True)
class Outline:
    """A histogram: its label and style, and the values of every seed."""

    label: str
    style: ArmStyle
    seeds: dict[int, np.ndarray]


def histogram(
    axes: Axes, outlines: list[Outline], panel: str, measure: Measure
) -> list[Observation]:
    """Common bins, seeds pooled; every seed's mean under the axis. Returns what was drawn."""
    rows: list[Observation] = []
    pooled = [np.concatenate(list(outline.seeds.values())) for outline in outlines]
    every = np.concatenate(pooled)
    low, high = measure.scale or (float(every.min()), float(every.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, 13)
    shares = [np.histogram(values, edges)[0] / len(values) for values in pooled]
    for number, (outline, share) in enumerate(zip(outlines, shares, strict=True), 1):
        style = outline.style
        axes.stairs(share, edges, color=style.color, linestyle=style.line, linewidth=1.2)
        means = {seed: float(values.mean()) for seed, values in outline.seeds.items()}
        axes.plot(
            list(means.values()),
            [-0.05 * number] * len(means),
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            **{**hollow(style, 3, "none"), "markeredgewidth": 0.7},
        )
        place = {"panel": panel, "arm": outline.label, "label": outline.label, "iteration": None}
        place["measure"] = measure.key
        for seed, mean in means.items():
            rows.append(_binned({**place, "kind": "seed mean", "seed": seed, "value": mean}))
        for value, a, b in zip(share.tolist(), edges[:-1], edges[1:], strict=True):
            bin_ = {**place, "kind": "share", "seed": None, "value": value}
            rows.append(_binned(bin_, float(a), float(b)))
    axes.set_ylim(0, max(float(share.max()) for share in shares) * 1.08 or 1)
    axes.tick_params(axis="x", pad=3 + 5.5 * len(outlines))
    axes.set_ylabel("share of answers")
    return rows


def _binned(row: Observation, low: float | None = None, high: float | None = None) -> Observation:
    """A histogram's row among those of curves: a bin's ends stand where an interval would."""
    return {**row, "A_low": low, "A_high": high, "B_low": None, "B_high": None}


def _rewards(data: StudyData, arm: str, iteration: int, measure: Measure) -> dict[int, np.ndarray]:
    """Seed → sorted rewards of the answers of an arm after an iteration."""
    found = {}
    for run in data.arms[arm]:
        rows = data.rows(run.name, iteration, measure.benchmark, measure.metric)
        values = rows["value"].dropna().to_numpy(dtype=float)
        if len(values):
            found[run.seed] = np.sort(values)
    return found


def figure_3(data: StudyData) -> Drawn | Unavailable:
    """Left: score by iteration; then held-out reward by arm, and by iteration."""
    title = "Figure 3. Scores over iterations and rewards of greedy answers"
    measure, reward, look = headline(data), measures.heldout(data), styles(data)
    figure, grid = new_figure(DOUBLE, 2.75, 1, 3)
    left, middle, right = grid[0]
    rows = curve(left, data, measure, "left")
    left.set_ylabel(axis_label(measure))
    counted = prose.counted_in(data)
    set_title(left, f"by {counted}")
    at = data.iterations[: 2 + 1][-1]
    rewards = {arm: _rewards(data, arm, at, reward) for arm in data.arms}
    outlines = [Outline(look[a].label, look[a], found) for a, found in rewards.items() if found]
    if not rows and not outlines:
        return Unavailable("figure_3", title, "neither scores nor held-out rewards are stored yet")
    few = outlines[:MOST_OUTLINES]
    if few:
        rows += histogram(middle, few, "histogram middle", reward)
    set_title(middle, f"{counted} {at}, by arm")
    arm = _strongest(data)
    rows += _by_iteration(right, data, arm, reward)
    set_title(right, f"{look[arm].label}, by {counted}")
    for axes in (middle, right):
        axes.set_xlabel(reward.title)
    legend_below(figure, [style.handle() for style in look.values()])
    which = ""
    if len(few) < len(outlines):
        which = f" (the first {len(few)} of {len(outlines)} arms)"
    caption = (
        f"Left: {measure.name} against {counted}, one line per arm, {error_bar_note(data)}; "
        "small marks: every seed. Middle: reward of greedy answers to held-out prompts after "
        f"{counted} {at}{which}, seeds pooled; marks under "
        f"the axis: every seed's mean. Right: the same by {counted} for {look[arm].label}."
        f"{SCALAR if data.recipe['ranker']['kind'] == 'pairrm' else ''}"
    )
    alt = f"{measure.name} over iterations by arm, and histograms of held-out reward."
    return Drawn("figure_3", title, caption, figure, rows, alt)


def _by_iteration(axes: Axes, data: StudyData, arm: str, reward: Measure) -> list[Observation]:
    """An arm's histograms, light to dark with the iteration."""
    outlines, counted = [], data.runs[0].counted
    colours = ramp("cividis", 0.85, 0.0, len(data.iterations))
    for place, (i, colour) in enumerate(zip(data.iterations, colours, strict=False)):
        label = f"{counted} {i}" if i else "base"
        mark, line = MARKERS[place % len(MARKERS)], LINES[(place + 1) % len(LINES)]
        style = ArmStyle(colour, mark, line, label)
        if found := _rewards(data, arm, i, reward):
            outlines.append(Outline(label, style, found))
    if not outlines:
        return []
    rows = histogram(axes, outlines, "histogram right", reward)
    room = 1.2 + 0.12 * (-(-len(outlines) // 3))  # for the legend
    axes.set_ylim(0, axes.get_ylim()[1] * room)
    axes.legend(
        handles=[outline.style.handle() for outline in outlines],
        loc="upper center",
        ncols=3,
        handlelength=1.6,
        columnspacing=0.8,
    )
    return rows


def _strongest(data: StudyData) -> str:
    """The first arm with the largest κ (declared, not chosen by score), else the baseline."""
    others = [arm for arm in data.arms if arm != data.baseline_arm] or list(data.arms)
    return max(others, key=lambda arm: max(data.arms[arm][0].kappa.values(), default=0.0))


def figure_curves(data: StudyData) -> Drawn | Unavailable:
    """Small multiples: every headline measure against iteration."""
    shown_ = measures.present(data, measures.headlines(data))
    chosen = [one for one in shown_ if not one.part and one != measures.heldout(data)]
    title = "Scores over iterations"
    if not chosen:
        return Unavailable("curves", title, "no scores are stored yet")
    figure, rows = small_multiples(data, chosen, 1.85)
    caption = (
        f"Mean over seeds; {error_bar_note(data)}; small marks: every seed. "
        f"{prose.counted_in(data).capitalize()} 0 is the first model."
    )
    alt = "Scores of every benchmark over iterations, one line per arm."
    return Drawn("curves", title, caption, figure, rows, alt)


def small_multiples(
    data: StudyData, chosen: Sequence[Measure], height: float
) -> tuple[Figure, list[Observation]]:
    """Measures over iterations, a panel each, three in a line of ``height`` inches."""
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    figure, grid = new_figure(DOUBLE, height * lines + 0.35, lines, columns)
    rows = []
    for axes, measure in zip(grid.ravel(), chosen, strict=False):
        diagnostic = measure.benchmark == DIAGNOSTICS
        rows += curve(axes, data, measure, measure.metric if diagnostic else measure.key)
    for axes in grid.ravel()[len(chosen) :]:
        axes.set_axis_off()
    legend_below(figure, [style.handle() for style in styles(data).values()])
    return figure, rows


def figure_2(data: StudyData) -> Drawn | Unavailable:
    """Matrix of pairwise length-controlled win rates among declared checkpoints."""
    title, judged = "Figure 2. Pairwise length-controlled win rates", data.manifest["pairwise"]
    wins = {}
    for pair in judged:
        stage = data.stages.get(str(pair["key"]))
        if stage and stage.state == "done":
            wins[pair["b"], pair["a"]] = stage.summary.get("length_controlled_win_rate")
    if not any(value is not None for value in wins.values()):
        reason = "the study declares no pairwise checkpoints (declare.pairwise)"
        if judged:
            reason = "pairwise judgments are not stored yet"
        return Unavailable("figure_2", title, reason)
    ids = list(dict.fromkeys(pair["a"] for pair in judged))
    names = [data.title_of(name) for name in ids]
    matrix = [[wins.get((row, column)) for column in ids] for row in ids]
    values = np.array(matrix, dtype=float)
    figure, grid = new_figure(SINGLE + 0.4, SINGLE, 1, 1)
    axes = grid[0, 0]
    reach = max(10.0, 5.0 * np.ceil(float(np.nanmax(np.abs(values - 50.0))) / 5.0))
    image = axes.imshow(values, cmap="cividis", vmin=50.0 - reach, vmax=50.0 + reach)
    axes.grid(False)
    axes.set_xticks(range(len(names)), [shown(n, 22) for n in names], rotation=35, ha="right")
    axes.set_yticks(range(len(names)), [shown(n, 22) for n in names])
    rows = []
    for (i, j), value in np.ndenumerate(values):
        of = {"row": names[i], "column": names[j]}
        rows.append({**of, "length_controlled_win_rate": float(value)})
        if np.isfinite(value):
            color = "white" if value < 50.0 + 0.1 * reach else "black"
            how = {"ha": "center", "va": "center", "fontsize": 6.5, "color": color}
            axes.text(j, i, f"{value:.1f}", **how)
    figure.colorbar(image, ax=axes, label="LC win rate of row against column [percent]", shrink=0.8)
    caption = "Length-controlled win rate of the row's checkpoint against the column's, in percent."
    return Drawn("figure_2", title, caption, figure, rows, "Matrix of pairwise win rates.")
