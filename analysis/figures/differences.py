"""Differences to the baseline: primary outcome, prompt by prompt (Figs. 4, 5), at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from analysis import findings, measures, prose
from analysis.figure import (
    DOUBLE,
    SINGLE,
    ArmStyle,
    Drawn,
    hollow,
    legend_below,
    new_figure,
    set_title,
    shown,
    styles,
)
from analysis.findings import POPULATIONS, Comparison
from analysis.layout import Floats, Layout, paired
from analysis.load import StudyData
from analysis.measures import Measure, diagnostic
from analysis.opening import matrix
from analysis.table import Observation, Unavailable, ends


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
    axes, look = grid[0, 0], styles(data)
    rows = []
    for position, comparison in enumerate(done):
        _difference(axes, -position, comparison, look[comparison.arm])
        rows += _difference_rows(comparison, look[comparison.arm].label)
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


def _detectable(c: Comparison, population: str) -> float | None:
    return c.detectable[population].value if population in c.detectable else None


def _difference(axes: Axes, y: float, c: Comparison, style: ArmStyle) -> None:
    """One arm: what is too small to be detected, both intervals, the mean, every seed."""
    too_small = _detectable(c, "A")
    if too_small is not None:
        edges = (y - 0.32, y + 0.32)
        axes.fill_betweenx(edges, -too_small, too_small, color="#e6e6e6", linewidth=0, zorder=0)
    for name, thick in (("B", 0.7), ("A", 2.0)):
        interval = c.estimate.intervals[name]
        if interval.low is not None and interval.high is not None:
            ends_, color = [interval.low, interval.high], style.color
            axes.plot(ends_, [y, y], color=color, linewidth=thick, solid_capstyle="butt")
    mean = c.estimate.value or 0.0
    axes.plot([mean], [y], marker=style.marker, color=style.color, markersize=5)
    points = c.estimate.points
    axes.plot(points, [y + 0.22] * len(points), **hollow(style, 2.6, "none"))


def _difference_rows(c: Comparison, label: str) -> list[Observation]:
    place = {"arm": c.arm, "label": label, "measure": c.measure.key, "iteration": c.iteration}
    mean = {"kind": "mean", "seed_number": None, "difference": c.estimate.value}
    told = ends(c.estimate, *POPULATIONS)
    told |= {f"mde_{name}": _detectable(c, name) for name in POPULATIONS}
    rows: list[Observation] = [{**place, **mean, **told}]
    for number, value in enumerate(c.estimate.points):
        seed = {"kind": "seed", "seed_number": number, "difference": value}
        rows.append({**place, **seed, **dict.fromkeys(told)})
    return rows


# -- prompt by prompt ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Panel:
    """What a panel shows of every arm minus the baseline; values are multiplied by ``factor``."""

    heading: str
    measure: Measure
    iteration: int
    unit: str = "reward"
    factor: float = 1.0


def _sorted_panels(
    data: StudyData, key: str, title: str, panels: Sequence[Panel], caption: str
) -> Drawn | Unavailable:
    """Arm minus baseline per prompt, sorted; thick: mean over seeds, thin: seeds."""
    if not data.baseline_arm:
        return Unavailable(key, title, "the study declares no baseline")
    look, rows = styles(data), []
    figure, grid = new_figure(DOUBLE, 2.5, 1, len(panels))
    for axes, panel in zip(grid[0], panels, strict=True):
        for arm in data.arms:
            difference = _by_prompt(data, arm, panel)
            if difference is not None:
                where = {"panel": panel.heading, "arm": arm, "label": look[arm].label}
                place = {**where, "iteration": panel.iteration}
                rows += _sorted_curves(axes, difference, panel.factor, look[arm], place)
        axes.axhline(0, color="black", linewidth=0.6)
        set_title(axes, panel.heading)
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


def _by_prompt(data: StudyData, arm: str, panel: Panel) -> Layout | None:
    """Arm minus baseline, seeds × prompts; None for the baseline and where nothing is stored."""
    pair = [data.at(name, panel.iteration) for name in (arm, data.baseline_arm)]
    if arm == data.baseline_arm or None in pair:
        return None
    found, _ = paired(*(measures.layout_of(data, c, panel.measure) for c in pair if c))
    return found if found.values.size and not np.isnan(found.values).all() else None


def _sorted_curves(
    axes: Axes, difference: Layout, factor: float, style: ArmStyle, place: Observation
) -> list[Observation]:
    values = difference.values * factor
    rows: list[Observation] = []
    for seed, row in zip(difference.seeds, values, strict=True):
        kept = np.sort(row[~np.isnan(row)])
        axes.plot(_shares(len(kept)), kept, color=style.color, linewidth=0.4, alpha=0.55)
        rows += _ranks(place, seed, kept)
    there = ~np.isnan(values).all(axis=0)
    mean = np.nanmean(values[:, there], axis=0) if np.isnan(values).any() else values.mean(axis=0)
    order = np.sort(mean)
    every = max(len(order) // 8, 1)
    axes.plot(_shares(len(order)), order, markevery=every, markersize=3, **style.look)
    return rows + _ranks(place, None, order)


def _shares(count: int) -> Floats:
    return (np.arange(count) + 0.5) / max(count, 1)


def _ranks(place: Observation, seed: int | None, values: Floats) -> list[Observation]:
    numbered = enumerate(values.tolist())
    return [{**place, "seed": seed, "rank": i, "difference": value} for i, value in numbered]


def figure_4(data: StudyData) -> Drawn | Unavailable:
    """r_arm − r_baseline on y_w and y_l after the first iteration, sorted."""
    at = data.iterations[:2][-1]
    when = prose.after(data, at)
    unit, factor = "nats", 1.0
    if "objective.beta" not in data.axes:
        unit, factor = "reward, β·nats", _beta(data)
    panels = [
        Panel(f"{name} (held-out), {when}", diagnostic(metric, f"r̂ of {name}"), at, unit, factor)
        for name, metric in (("y_w", "rhat_heldout_chosen"), ("y_l", "rhat_heldout_rejected"))
    ]
    title = "Figure 4. Implicit reward differences on held-out pairs"
    caption = (
        "Implicit reward of the arm minus that of the baseline on held-out preferred (left) and "
        f"dispreferred (right) answers {when}, each curve sorted by itself. Thick: mean over seeds "
        "per prompt; thin: every seed."
    )
    return _sorted_panels(data, "figure_4", title, panels, caption)


def _beta(data: StudyData) -> float:
    beta = data.recipe["objective"].get("beta", 1.0)
    if isinstance(beta, dict):
        beta = beta.get("start", 1.0)
    return float(beta[0] if isinstance(beta, list) else beta)


def figure_5(data: StudyData) -> Drawn | Unavailable:
    """Reward of each model's own samples after the method's second iteration, arm minus baseline,
    sorted: under each model's implicit reward, and under the external one.
    """
    title, at = "Figure 5. Rewards of each model's own samples", data.iterations[:3][-1]
    wanted = [
        diagnostic("implicit_reward_samples", "own samples, own implicit reward"),
        diagnostic("implicit_reward_reference_samples", "π_ref's samples, own implicit reward"),
        replace(
            measures.heldout(data, sampled=True), title="own samples, external reward", long=""
        ),
    ]
    held = data.metrics()
    panels = [Panel(m.title, m, at) for m in wanted if (m.benchmark, m.metric) in held]
    if not panels:
        return Unavailable("figure_5", title, "no rewards of own samples are stored yet")
    caption = (
        f"Mean reward of temperature-1 samples per held-out prompt {prose.after(data, at)}, arm "
        "minus baseline, each curve sorted by "
        "itself. Thick: mean over seeds; thin: every seed. Implicit rewards are β·log π_θ/π_0 "
        "against the common π_0. On own samples their mean is "
        "β·KL ≥ 0: it measures drift; only the external reward measures quality."
    )
    return _sorted_panels(data, "figure_5", title, panels, caption)


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
    arms = [shown(label, LONGEST) for label in found.arms]
    names = [shown(name, LONGEST) for name in found.measures]
    width = max(SINGLE, 0.4 + 0.055 * max(map(len, arms)) + 0.43 * len(names))
    figure, grid = new_figure(width, 1.3 + 0.26 * len(arms))
    axes = grid[0, 0]
    effects = np.array(
        [[np.nan if s.effect is None else s.effect for s in row] for row in found.cells]
    )
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
