"""Every figure of a report: a function of a study that returns a ``Drawn`` figure, or
``Unavailable`` with the reason when the study does not hold its data.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.figure import Drawn, paper_style
from analysis.figures import differences, optimism, scores
from analysis.load import StudyData
from analysis.table import Unavailable

FIGURES: dict[str, Callable[[StudyData], Drawn | Unavailable]] = {
    "differences": differences.figure_differences,
    "matrix": differences.figure_matrix,
    "figure_3": scores.figure_3,
    "curves": scores.figure_curves,
    "trend": differences.figure_trend,
    "figure_1": optimism.figure_1,
    "bandit": optimism.figure_bandit,
    "figure_2": scores.figure_2,
    "figure_4": differences.figure_4,
    "figure_5": differences.figure_5,
    "figure_6": differences.figure_6,
    "figure_6_offline": scores.figure_6_offline,
    "diagnostics_exploration": scores.figure_exploration,
    "diagnostics_extrapolation": scores.figure_extrapolation,
    "matched_kl": scores.figure_matched_kl,
}
"""Every figure, in the report's order."""


def draw(key: str, data: StudyData) -> Drawn | Unavailable:
    """Draw one figure in the paper's style."""
    with paper_style():
        return FIGURES[key](data)
