"""Figure 1: optimism off the data, in a world whose answers can all be listed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis import exact
from analysis.figure import DISTINCT, DOUBLE, MARKERS, Drawn, legend_below, new_figure, nth_style
from analysis.load import StudyData
from analysis.table import Observation, Unavailable

PLAIN = {"color": DISTINCT[0], "marker": MARKERS[0]}
OPTIMISTIC = {"color": DISTINCT[1], "marker": MARKERS[1]}
TRUE = {"color": DISTINCT[2], "marker": "_", "linestyle": "none"}
MODELS = (("reward_model", "optimistic_reward_model"), ("policy", "optimistic_policy"))


def figure_1(data: StudyData) -> Drawn | Unavailable:
    """Left: reward models equal on the data; middle: their policies; right: SELM's early steps."""
    title = "Figure 1. Optimism off the data (exact, finite answer set)"
    if not data.trains:
        return Unavailable("figure_1", title, "it is about training, and this study trains nothing")
    found = exact.figure_one()
    figure, grid = new_figure(DOUBLE, 2.55, 1, 3)
    left, middle, right = grid[0]
    answers = np.array(found["answer"])
    rows = []
    for axes, panel, series in zip((left, middle), ("reward", "policy"), MODELS, strict=True):
        rows += _bars(axes, found, panel, series)
    left.plot(answers, found["true_reward"], markersize=9, **TRUE)
    rows += _by_answer(found, "reward", "true_reward")
    left.set_title("reward models")
    middle.set_title("policies they lead to")
    rows += _steps(right, found)
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


def _bars(
    axes: Axes, found: dict[str, Any], panel: str, series: tuple[str, str]
) -> list[Observation]:
    """A stem an answer for both models, side by side; grey: the answers in the data."""
    answers, seen = np.array(found["answer"]), np.array(found["in_data"])
    first, last = float(answers[seen].min()) - 0.5, float(answers[seen].max()) + 0.5
    axes.axvspan(first, last, color="#eeeeee", linewidth=0, zorder=0)
    rows: list[Observation] = []
    for name, offset, look in zip(series, (-0.12, 0.12), (PLAIN, OPTIMISTIC), strict=True):
        values = np.array(found[name])
        axes.vlines(answers + offset, 0, values, color=look["color"], linewidth=1.2)
        axes.plot(answers + offset, values, linestyle="none", **look)  # type: ignore[arg-type]
        rows += _by_answer(found, panel, name)
    axes.set_xlabel("answer (grey: in the data)")
    axes.set_xticks(answers)
    return rows


def _by_answer(found: dict[str, Any], panel: str, name: str) -> list[Observation]:
    columns = zip(found["answer"], found["in_data"], found[name], strict=True)
    return [_observation(panel, name, None, y, known, value) for y, known, value in columns]


def _observation(panel: str, name: str, alpha: float | None, *told: Any) -> Observation:
    names = ("answer_or_step", "in_data", "value")
    return {"panel": panel, "series": name, "alpha": alpha, **dict(zip(names, told, strict=True))}


def _steps(axes: Axes, found: dict[str, Any]) -> list[Observation]:
    """E_{π_ref}[r/β] over gradient steps, one line an α."""
    name, rows = "mean_log_ratio", []
    for place, (alpha, values) in enumerate(zip(found["alphas"], found[name], strict=True)):
        color = DISTINCT[(place + 2) % len(DISTINCT)] if place else DISTINCT[0]
        style = nth_style(place, color, f"α = {alpha:g}")
        axes.plot(found["steps"], values, markevery=5, label=style.label, **style.look)
        for step, value in zip(found["steps"], values, strict=True):
            rows.append(_observation("steps", name, float(alpha), step, None, value))
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
