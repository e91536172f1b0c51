"""Every figure of a report. A new figure is one function of a study and one entry of ``FIGURES``.

A function returns a ``Drawn`` figure, or ``Unavailable`` with the reason when the study does not
hold its data.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis import figures_bandit, figures_diagnostics, figures_scores
from analysis import figures_diagnostics as figures_exact
from analysis.figure import Drawn, paper_style
from analysis.load import StudyData
from analysis.table import Unavailable

FIGURES: dict[str, Callable[[StudyData], Drawn | Unavailable]] = {
    "differences": figures_diagnostics.figure_differences,
    "figure_3": figures_scores.figure_3,
    "curves": figures_scores.figure_curves,
    "trend": figures_diagnostics.figure_trend,
    "figure_1": figures_exact.figure_1,
    "bandit": figures_bandit.figure_bandit,
    "figure_2": figures_scores.figure_2,
    "figure_4": figures_diagnostics.figure_4,
    "figure_5": figures_diagnostics.figure_5,
    "figure_6": figures_scores.figure_6,
    "diagnostics_exploration": figures_diagnostics.figure_exploration,
    "diagnostics_extrapolation": figures_diagnostics.figure_extrapolation,
    "matched_kl": figures_diagnostics.figure_matched_kl,
}
"""Every figure, in the report's order."""


def draw(key: str, data: StudyData) -> Drawn | Unavailable:
    """Draw one figure in the paper's style."""
    with paper_style():
        return FIGURES[key](data)
