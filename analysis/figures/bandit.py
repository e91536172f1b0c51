"""The bandit in which optimism provably matters, beside a study that varies alpha."""

from __future__ import annotations

import numpy as np

from analysis import exact
from analysis.figure import DISTINCT, DOUBLE, LINES, MARKERS, Drawn, legend_below, new_figure
from analysis.load import StudyData
from analysis.table import Observation, Unavailable

AXIS = "objective.alpha"
SERIES = {
    "seen": "runs that ever saw the rare answer",
    "optimistic": "runs that end at the optimistic policy",
    "regret": "mean regret of the last policy",
}


def figure_bandit(data: StudyData) -> Drawn | Unavailable:
    """XPO with an exact argmin on two answers, over alpha, where the rare answer is the best and
    where it is the worst.
    """
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
            look = {
                "color": DISTINCT[number],
                "linestyle": LINES[number],
                "marker": MARKERS[number],
            }
            axes.plot(places, [one[name] for one in found], label=label, **look)
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
