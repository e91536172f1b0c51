"""Arms by measures at a glance: differences to the baseline, shaded by how far they leave 0."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from analysis.figure import DOUBLE, Drawn, new_figure, shown
from analysis.load import StudyData
from analysis.opening import matrix
from analysis.table import Unavailable

DEEPEST = 3.0
"""Effect over half the interval's width that has the deepest shade."""
WRAP, LONGEST = 14, 30
"""Characters of a measure's line, and of an arm's label."""


def figure_matrix(data: StudyData) -> Drawn | Unavailable:
    """A cell an arm and measure: the difference, blue where it is better and orange where worse."""
    key, title, found = "matrix", "Arms by measures", matrix(data)
    if not any(score.value is not None for row in found.cells for score in row):
        return Unavailable(key, title, "no score of an arm is stored yet")
    arms = [shown(label, LONGEST) for label in found.arms]
    figure, grid = new_figure(DOUBLE, 0.75 + 0.24 * len(arms))
    axes = grid[0, 0]
    effects = [[np.nan if s.effect is None else s.effect for s in row] for row in found.cells]
    shades = mpl.colormaps["PuOr"].with_extremes(bad="#f2f2f2")
    axes.imshow(np.array(effects), cmap=shades, vmin=-DEEPEST, vmax=DEEPEST, aspect="auto")
    axes.grid(False)
    for (row, column), effect in np.ndenumerate(np.array(effects)):
        score = found.cells[row][column]
        dark = abs(effect) > 0.7 * DEEPEST
        axes.text(
            column,
            row,
            score.shown.removesuffix("*"),
            ha="center",
            va="center",
            fontsize=6,
            color="white" if dark else "black",
            fontweight="bold" if abs(effect) > 1 else "normal",
        )
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(found.measures)), [_wrapped(name) for name in found.measures])
    axes.set_yticks(range(len(arms)), arms)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    rows = [
        {"arm": label, "measure": name, "value": s.value, "half_width": s.half, "effect": s.effect}
        for label, row in zip(found.arms, found.cells, strict=True)
        for name, s in zip(found.measures, row, strict=True)
    ]
    caption = (
        f"{found.caption} Purple: better than the baseline, orange: worse (for measures that have "
        "no better side: higher and lower); the deeper, the larger the difference over half of its "
        "interval; bold: the interval leaves out 0; grey: nothing to compare or no interval."
    )
    return Drawn(key, title, caption, figure, rows, "Every arm on every measure.")


def _wrapped(name: str) -> str:
    lines = [""]
    for word in shown(name).split():
        if lines[-1] and len(lines[-1]) + len(word) >= WRAP:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
