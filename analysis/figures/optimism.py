"""Figure 1: optimism off the data, in a world whose answers can all be listed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from analysis import exact
from analysis.figure import DISTINCT, DOUBLE, MARKERS, Drawn, legend_below, new_figure, nth_style
from analysis.load import StudyData
from analysis.table import Observation, Unavailable

PLAIN = {"color": DISTINCT[0], "marker": MARKERS[0]}
OPTIMISTIC = {"color": DISTINCT[1], "marker": MARKERS[1]}
TRUE = {"color": DISTINCT[2], "marker": "_", "linestyle": "none"}


def figure_1(data: StudyData) -> Drawn | Unavailable:
    """Left: reward models equal on the data; middle: their policies; right: SELM's early steps."""
    title = "Figure 1. Optimism off the data (exact, finite answer set)"
    if not data.trains:
        return Unavailable("figure_1", title, "it is about training, and this study trains nothing")
    found, steps = exact.figure_one()
    figure, grid = new_figure(DOUBLE, 2.55, 1, 3)
    left, middle, right = grid[0]
    rows = _stems(left, found, "reward", ("reward_model", "optimistic_reward_model"))
    rows += _stems(middle, found, "policy", ("policy", "optimistic_policy"))
    left.plot(found["true_reward"], markersize=9, **TRUE)
    rows += [*_by_answer(found, "reward", "true_reward"), *_steps(right, steps)]
    left.set_title("reward models")
    middle.set_title("policies they lead to")
    handles = [
        *middle.plot([], [], label="plain reward model", **PLAIN),
        *middle.plot([], [], label="optimistic reward model", **OPTIMISTIC),
        *left.plot([], [], label="true reward", **TRUE),
        *right.get_legend_handles_labels()[0],
    ]
    legend_below(figure, handles, 3)
    caption = (
        "A finite answer set, exact. Left: two reward models that agree on the compared answers; "
        "the optimistic one is larger off them. "
        "Middle: the policies that maximise each with the KL penalty. "
        "Right: mean of r/β under π_ref over gradient steps; DPO already lowers it, α > 0 lowers "
        "it more."
    )
    alt = "Two reward models, their policies, and mean log-ratio over steps."
    return Drawn("figure_1", title, caption, figure, rows, alt)


def _stems(
    axes: Axes, found: Mapping[str, exact.Vector], panel: str, series: tuple[str, str]
) -> list[Observation]:
    """A stem an answer for both models, side by side; grey: the answers in the data."""
    seen, rows = exact.FIGURE_ONE.seen, []
    axes.axvspan(seen.min() - 0.5, seen.max() + 0.5, color="#eeeeee", linewidth=0, zorder=0)
    answers = np.arange(len(found["true_reward"]))
    for name, offset, look in zip(series, (-0.12, 0.12), (PLAIN, OPTIMISTIC), strict=True):
        axes.vlines(answers + offset, 0, found[name], color=look["color"], linewidth=1.2)
        axes.plot(answers + offset, found[name], linestyle="none", **look)  # type: ignore[arg-type]
        rows += _by_answer(found, panel, name)
    axes.set_xlabel("answer (grey: in the data)")
    axes.set_xticks(answers)
    return rows


def _by_answer(found: Mapping[str, exact.Vector], panel: str, name: str) -> list[Observation]:
    of, seen = {"panel": panel, "series": name, "alpha": None}, exact.FIGURE_ONE.seen.tolist()
    return [
        {**of, "answer_or_step": answer, "in_data": answer in seen, "value": value}
        for answer, value in enumerate(found[name].tolist())
    ]


def _steps(axes: Axes, steps: Mapping[float, list[float]]) -> list[Observation]:
    """E_{π_ref}[r/β] over gradient steps, one line an α."""
    rows: list[Observation] = []
    for number, (alpha, values) in enumerate(steps.items()):
        colour = DISTINCT[number + 2] if number else DISTINCT[0]
        style = nth_style(number, colour, f"α = {alpha:g}")
        axes.plot(values, markevery=5, label=style.label, **style.look)
        of = {"panel": "steps", "series": "mean_log_ratio", "alpha": alpha}
        for step, value in enumerate(values):
            rows.append({**of, "answer_or_step": step, "in_data": None, "value": value})
    axes.set_title(r"$E_{\pi_{\mathrm{ref}}}[r/\beta] = -KL(\pi_{\mathrm{ref}} \Vert \pi)$")
    axes.set_xlabel("gradient step")
    axes.set_ylabel("nats")
    return rows


# -- the bandit ------------------------------------------------------------------------------------
AXIS = "objective.alpha"
SERIES = {
    "seen": "runs that ever saw the rare answer",
    "optimistic": "runs that end at the optimistic policy",
    "regret": "mean regret of the last policy",
}


def figure_bandit(data: StudyData) -> Drawn | Unavailable:
    """XPO with an exact argmin on two answers, the rare one being the best or the worst."""
    key, title = "bandit", "Where optimism must show (exact bandit)"
    if AXIS not in data.axes:
        return Unavailable(key, title, f"the study does not vary {AXIS}")
    figure, grid = new_figure(DOUBLE, 2.4, 1, 2)
    rows: list[Observation] = []
    places = range(len(exact.BANDIT_ALPHAS))
    for axes, reward in zip(grid[0], (1.0, 0.0), strict=True):
        generator = np.random.default_rng(0)
        found = [exact.bandit(reward, alpha, generator) for alpha in exact.BANDIT_ALPHAS]
        for number, (name, label) in enumerate(SERIES.items()):
            style = nth_style(number, DISTINCT[number], label)
            axes.plot(places, [one[name] for one in found], label=label, **style.look)
        for alpha, one in zip(exact.BANDIT_ALPHAS, found, strict=True):
            place = {"reward_of_rare_answer": reward, "alpha": alpha}
            rows += [{**place, "series": name, "value": value} for name, value in one.items()]
        axes.set_title(f"the rare answer's reward is {reward:g}")
        axes.set_xticks(places, [f"{alpha:g}" for alpha in exact.BANDIT_ALPHAS])
        axes.set_xlabel("α")
        axes.set_ylim(-0.05, 1.05)
    legend_below(figure, grid[0][0].get_legend_handles_labels()[0], 3)
    caption = (
        "No model is trained here: two answers, a reference that gives one of them probability "
        "e⁻⁸, two policies to choose from, 300 rounds, "
        f"{exact.BANDIT_RUNS} runs per point. Left: the rare answer is worth 1 and the other ½, so "
        "DPO (α = 0) rarely finds it and optimism always does. Right: it is worth 0, and the same "
        "optimism costs."
    )
    alternative = "Shares of runs and regret over alpha in two worlds."
    return Drawn(key, title, caption, figure, rows, alternative)
