"""The paper's Fig. 6, iterative beside offline DPO: a benchmark over training data."""

from __future__ import annotations

from analysis import measures
from analysis.figure import (
    SINGLE,
    Drawn,
    axis_label,
    error_bar_note,
    legend_below,
    new_figure,
    set_title,
    styles,
)
from analysis.figures.scores import curve, headline
from analysis.load import Run, StudyData
from analysis.table import Unavailable

MODE = "offline"
"""``loop.mode`` of an arm that trains in one run over all labelled pairs."""
PAPER = ("mt_bench", "rating")
"""What the paper's panel shows."""


def pairs_seen(data: StudyData, run: Run, iteration: int) -> float | None:
    """Pairs that a run has trained on after an iteration, counted again in every pass; None where a
    training stage before it is not done.
    """
    seen = 0.0
    for at in (i for i in run.iterations if 0 < i <= iteration):
        stage = data.stage(run, at, "train")
        if stage is None or stage.state != "done":
            return None
        seen += stage.rows * float(stage.settings["training"]["epochs"])
    return seen


def figure_6_offline(data: StudyData) -> Drawn | Unavailable:
    """One line per arm over the pairs trained on; the offline arm's is one run, one optimiser, one
    schedule.
    """
    title = "Figure 6, last panel. A benchmark over training data, beside offline DPO"
    offline = [arm for arm, runs in data.arms.items() if runs[0].mode == MODE]
    if not offline:
        reason = f"no arm of this study trains offline (loop.mode: {MODE})"
        return Unavailable("figure_6_offline", title, reason)
    pairs: dict[tuple[str, int], float] = {}
    for arm, runs in data.arms.items():
        for iteration in data.iterations:
            seen = [pairs_seen(data, run, iteration) for run in runs if iteration in run.iterations]
            known = [count for count in seen if count is not None]
            if known and len(known) == len(seen):
                pairs[arm, iteration] = sum(known) / len(known)
    measure = measures.find(data, *PAPER) if PAPER in data.metrics() else headline(data)
    figure, grid = new_figure(SINGLE, 2.6, 1, 1)
    axes, look = grid[0, 0], styles(data)
    rows = curve(axes, data, measure, "training data", pairs) if pairs else []
    if not rows:
        reason = f"no {measure.name} of a trained checkpoint is stored yet"
        return Unavailable("figure_6_offline", title, reason)
    axes.set_ylabel(axis_label(measure))
    set_title(axes, measure.name)
    legend_below(figure, [look[arm].handle() for arm in data.arms])
    names = ", ".join(look[arm].label for arm in offline)
    caption = (
        f"{measure.name} against the pairs trained on (a pair counts in every pass over it), one "
        f"line per arm, {error_bar_note(data)}; small marks: every seed. {names}: one run over the "
        "labelled pairs, one optimiser, one schedule, scored on its way. The paper shows a "
        "single run of each up to 60,000 prompts, and does not say whether passes are counted nor "
        "which of the offline run's checkpoints its line joins."
    )
    alt = f"{measure.name} over training data, a line per arm."
    return Drawn("figure_6_offline", title, caption, figure, rows, alt)
