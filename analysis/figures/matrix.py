"""Arms by measures at a glance: differences to the baseline, shaded by how far they leave 0."""

from __future__ import annotations

from itertools import chain

import matplotlib as mpl
import numpy as np

from analysis.figure import SINGLE, Drawn, new_figure, shown
from analysis.load import StudyData
from analysis.opening import matrix
from analysis.table import Unavailable

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
    texts = [[s.shown.removesuffix("*").replace(" ", "\n", 1) for s in row] for row in found.cells]
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
    caption = (
        f"{found.caption} Purple: better than the baseline, orange: worse (for measures that have "
        "no better side: higher and lower); the deeper, the larger the difference over half of its "
        "interval; bold: the interval leaves out 0; grey: nothing to compare or no interval."
    )
    return Drawn(key, title, caption, figure, rows, "Every arm on every measure.")
