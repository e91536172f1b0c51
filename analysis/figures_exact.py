"""The paper's Fig. 1 and section 5.1 on a finite answer set, exact: no study and no sampling
enters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis import exact
from analysis.figure import DISTINCT, DOUBLE, LINES, MARKERS, Drawn, legend_below, new_figure
from analysis.load import StudyData

Rows = list[tuple[object, ...]]
PLAIN, OPTIMISTIC = DISTINCT[0], DISTINCT[1]


def figure_1(_: StudyData | None = None) -> Drawn:
    """Left: two reward models equal on the data, the optimistic one larger off it; middle: their
    best policies; right: SELM's early steps.
    """
    found = exact.figure_one()
    figure, grid = new_figure(DOUBLE, 2.55, 1, 3)
    left, middle, right = grid[0]
    rows: Rows = []
    answers, seen = np.array(found["answer"]), np.array(found["in_data"])
    pairs = (
        ("reward", left, ("reward_model", "optimistic_reward_model")),
        ("policy", middle, ("policy", "optimistic_policy")),
    )
    for panel, axes, (plain, optimistic) in pairs:
        axes.axvspan(
            float(answers[seen].min()) - 0.5,
            float(answers[seen].max()) + 0.5,
            color="#eeeeee",
            linewidth=0,
            zorder=0,
        )
        for name, offset, colour, marker in (
            (plain, -0.12, PLAIN, MARKERS[0]),
            (optimistic, 0.12, OPTIMISTIC, MARKERS[1]),
        ):
            values = np.array(found[name])
            axes.vlines(answers + offset, 0, values, color=colour, linewidth=1.2)
            axes.plot(answers + offset, values, linestyle="none", marker=marker, color=colour)
            rows.extend(
                (panel, name, None, int(y), bool(known), float(v))
                for y, known, v in zip(answers, seen, values, strict=True)
            )
        axes.set_xlabel("answer (grey: in the data)")
        axes.set_xticks(answers)
    left.plot(
        answers, found["true_reward"], linestyle="none", marker="_", markersize=9, color=DISTINCT[2]
    )
    rows.extend(
        ("reward", "true_reward", None, int(y), bool(known), float(v))
        for y, known, v in zip(answers, seen, found["true_reward"], strict=True)
    )
    left.set_title("reward models")
    middle.set_title("policies they lead to")
    _steps(right, found, rows)
    handles = [
        *middle.plot([], [], color=PLAIN, marker=MARKERS[0], label="plain reward model"),
        *middle.plot([], [], color=OPTIMISTIC, marker=MARKERS[1], label="optimistic reward model"),
        *left.plot([], [], color=DISTINCT[2], marker="_", linestyle="none", label="true reward"),
    ]
    legend_below(figure, handles, 3)
    caption = (
        "A finite answer set, exact. Left: two reward models that agree on the compared answers; "
        "the optimistic one is larger off them. "
        "Middle: the policies that maximise each with the KL penalty. "
        "Right: mean of r/β under π_ref over gradient steps; DPO already lowers it, α > 0 lowers "
        "it more."
    )
    columns = ("panel", "series", "alpha", "answer_or_step", "in_data", "value")
    title = "Figure 1. Optimism off the data (exact, finite answer set)"
    return Drawn(
        "figure_1",
        title,
        caption,
        figure,
        columns,
        tuple(rows),
        "Two reward models, their policies, and mean log-ratio over steps.",
    )


def _steps(axes: Axes, found: dict[str, Any], rows: Rows) -> None:
    for number, (alpha, values) in enumerate(
        zip(found["alphas"], found["mean_log_ratio"], strict=True)
    ):
        axes.plot(
            found["steps"],
            values,
            color=DISTINCT[(number + 2) % len(DISTINCT)] if number else DISTINCT[0],
            linestyle=LINES[number],
            marker=MARKERS[number],
            markevery=5,
            label=f"α = {alpha:g}",
        )
        rows.extend(
            ("steps", "mean_log_ratio", float(alpha), int(step), None, float(v))
            for step, v in zip(found["steps"], values, strict=True)
        )
    axes.set_title(r"$E_{\pi_{\mathrm{ref}}}[r/\beta] = -KL(\pi_{\mathrm{ref}} \Vert \pi)$")
    axes.set_xlabel("gradient step")
    axes.set_ylabel("nats")
    axes.legend(loc="best")
