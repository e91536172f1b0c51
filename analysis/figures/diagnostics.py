"""Figures of diagnostics: the trend, exploration, extrapolation, reward at matched KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis import findings, measures
from analysis.figure import (
    SINGLE,
    Drawn,
    axis_label,
    error_bar_note,
    legend_below,
    new_figure,
    pale,
    seeds_and_mean,
    shown,
    styles,
)
from analysis.figures.scores import small_multiples
from analysis.load import StudyData
from analysis.measures import Measure, diagnostic
from analysis.table import Observation, Unavailable
from analysis.text import number, p_value


def figure_trend(data: StudyData) -> Drawn | Unavailable:
    """The diagnostic declared in advance against its axis, with the trend test."""
    title, finding = "Declared diagnostic trend", findings.find(data).trend
    if finding is None:
        return Unavailable("trend", title, "the study declares no trend (declare.trend)")
    measure, axis = finding.measure, finding.axis
    levels = sorted(findings.along(data, axis))
    figure, grid = new_figure(SINGLE, 2.5)
    axes = grid[0, 0]
    rows = []
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
    axes.set_title(f"expected {finding.expected};\n{trend_text(finding)}", fontsize=7)
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


def trend_text(finding: findings.TrendFinding) -> str:
    """ "slope −0.28 per step, p = 0.001 (A)": the test in one phrase."""
    if finding.result is None:
        return "not tested"
    value = finding.result.estimate
    if value.value is None:
        return "not tested (incomplete)"
    p = p_value(finding.result.p_directed)
    slope = number(value.value, 3, sign=True)
    return f"slope {slope} per step, one-sided p {p if p.startswith('<') else '= ' + p}"


EXPLORATION = (
    "kl_base",
    "kl_previous",
    "entropy",
    "newness",
    "mode_coverage",
    "unseen_mass",
    "distinct_2",
    "self_rouge",
    "grad_ratio_end",
)
EXTRAPOLATION = (
    "rhat_reference_samples",
    "displacement_chosen_train",
    "displacement_chosen_heldout",
    "displaced_share_heldout",
    "spearman_reward",
    "brier_pairs_heldout",
    "regret",
    "length_tokens",
    "truncated_share",
)


def _group(data: StudyData, key: str, title: str, metrics: Sequence[str]) -> Drawn | Unavailable:
    available = {measure.metric: measure for measure in measures.diagnostics(data)}
    chosen = [available[name] for name in metrics if name in available]
    if not chosen:
        return Unavailable(key, title, "no diagnostics are stored yet")
    figure, rows = small_multiples(data, chosen, 1.75)
    caption = (
        f"Mean over seeds; {error_bar_note(data)}; small marks: every seed. Clusters are prompts; "
        "nats are per response unless a token is named."
    )
    return Drawn(key, title, caption, figure, rows, title)


def figure_exploration(data: StudyData) -> Drawn | Unavailable:
    title = "Exploration over iterations"
    return _group(data, "diagnostics_exploration", title, EXPLORATION)


def figure_extrapolation(data: StudyData) -> Drawn | Unavailable:
    title = "Extrapolation over iterations"
    return _group(data, "diagnostics_extrapolation", title, EXTRAPOLATION)


def figure_matched_kl(data: StudyData) -> Drawn | Unavailable:
    """Held-out reward of samples against KL from π_0: what a unit of drift buys."""
    title, kl = "Reward at matched KL", diagnostic("kl_base", "KL(π_θ‖π_0)")
    reward = measures.heldout(data, sampled=True)
    if not {(m.benchmark, m.metric) for m in (kl, reward)} <= set(data.metrics()):
        reason = "KL from the base and held-out reward are not both stored yet"
        return Unavailable("matched_kl", title, reason)
    figure, grid = new_figure(SINGLE, 2.6)
    axes, look = grid[0, 0], styles(data)
    rows: list[Observation] = []
    for arm in data.arms:
        rows += _drift(axes, data, arm, kl, reward)
    axes.set_xlabel(axis_label(kl))
    axes.set_ylabel(axis_label(reward))
    legend_below(figure, [style.handle() for style in look.values()])
    caption = (
        "Held-out reward of temperature-1 samples against KL(π_θ‖π_0), iteration by iteration "
        "from the base (KL 0). Lines: means over seeds; small marks: every seed."
    )
    return Drawn("matched_kl", title, caption, figure, rows, title)


def _drift(
    axes: Axes, data: StudyData, arm: str, kl: Measure, reward: Measure
) -> list[Observation]:
    """One arm from the base on: every seed's point after every iteration, a line through means."""
    style, xs, ys = styles(data)[arm], [], []
    rows: list[Observation] = []
    for iteration in data.iterations:
        checkpoint = data.checkpoint(arm, iteration)
        rewards = measures.points(data, checkpoint, reward)
        drifts = dict.fromkeys(rewards, 0.0)  # the base is at no distance from itself
        if iteration:
            drifts = measures.points(data, checkpoint, kl)
        both = {seed: (drifts[seed], rewards[seed]) for seed in sorted({*drifts} & {*rewards})}
        if not both:
            continue
        axes.plot(*zip(*both.values(), strict=True), **pale(style))
        means = np.array(list(both.values())).mean(axis=0).tolist()
        xs.append(means[0])
        ys.append(means[1])
        place = {"arm": arm, "label": style.label, "iteration": iteration}
        for seed, (x, y) in both.items():
            rows.append({**place, "kind": "seed", "seed": seed, "kl_base": x, "reward": y})
        last = {"kl_base": xs[-1], "reward": ys[-1]}
        rows.append({**place, "kind": "mean", "seed": None, **last})
    if xs:
        axes.plot(xs, ys, **style.look)
    return rows
