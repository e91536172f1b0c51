"""Every figure of ``FIGURES``: drawn or said to be missing, the same bytes twice, all seeds in its
data, readable in grey.
"""

from __future__ import annotations

import copy
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text

from analysis import measures, text
from analysis.figure import (
    METADATA,
    Drawn,
    paper_style,
    render,
    shown,
    styles,
    symbols,
    write_figure,
)
from analysis.figures import FIGURES, draw
from analysis.load import StudyData, load_study
from analysis.table import Observation, Unavailable
from harness.records import canonical_json, content_hash
from tests import synthetic

NEEDS_MORE = {"figure_2", "figure_6_offline"}
"""Figures whose data is not in the synthetic study."""
NEEDS_NOTHING = {"figure_1", "bandit"}
"""Figures that are worked out, not read from scores."""


@pytest.mark.parametrize("key", sorted(set(FIGURES) - NEEDS_MORE))
def test_every_figure_is_drawn_with_the_same_bytes_twice(
    complete: StudyData, key: str, tmp_path: Path
) -> None:
    first, second = draw(key, complete), draw(key, complete)
    assert isinstance(first, Drawn), first
    assert isinstance(second, Drawn)
    assert (first.key, first.title != "", first.caption != "") == (key, True, True)
    for kind in METADATA:
        assert render(first, kind) == render(second, kind), kind
    assert render(first, "pdf").startswith(b"%PDF")
    assert b"CreationDate" not in render(first, "pdf")
    assert b"<dc:date>" not in render(first, "svg")
    write_figure(first, tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".pdf", ".png", ".svg"]
    rows = list(csv.reader(io.StringIO((tmp_path / f"{key}.csv").read_text())))
    assert len(rows) == len(first.data) + 1 > 1
    assert all(len(row) == len(first.data[0]) for row in rows)


@pytest.mark.parametrize("key", FIGURES)
def test_every_figure_works_on_unfinished_and_empty_studies(
    faulty: StudyData, tmp_path: Path, key: str
) -> None:
    drawn = draw(key, faulty)
    assert isinstance(drawn, Drawn) or drawn.reason
    study, _ = synthetic.build(tmp_path, synthetic.Synthetic(answers=False))
    nothing = draw(key, load_study(study, tmp_path / "nowhere"))
    assert isinstance(nothing, Unavailable) or key in NEEDS_NOTHING


def test_the_bandit_stands_only_beside_a_study_that_varies_alpha(complete: StudyData) -> None:
    drawn = draw("bandit", complete)
    assert isinstance(drawn, Drawn)
    found = {tuple(row.values())[:3]: row["value"] for row in drawn.data}
    assert found[1.0, 0.1, "optimistic"] == found[0.0, 0.1, "optimistic"] == 1
    assert found[1.0, 0.1, "regret"] < 1e-9 < 0.7 < found[0.0, 0.1, "regret"]
    other = copy.copy(complete)
    other.axes = {"objective.beta": [0.1, 0.2]}
    assert isinstance(draw("bandit", other), Unavailable)


@pytest.mark.parametrize(
    "key", ["figure_3", "curves", "trend", "matched_kl", "differences", "figure_6"]
)
def test_every_seed_is_in_the_figure(complete: StudyData, key: str) -> None:
    drawn = draw(key, complete)
    assert isinstance(drawn, Drawn)
    seed = "seed" if "seed" in drawn.data[0] else "seed_number"
    assert {row[seed] for row in drawn.data if row["kind"] == "seed"} == {0, 1, 2}


def test_curves_hold_the_tables_numbers(complete: StudyData) -> None:
    drawn = draw("curves", complete)
    assert isinstance(drawn, Drawn)
    checkpoint = complete.checkpoint("objective.alpha=1", 2)
    assert checkpoint is not None
    points = measures.points(complete, checkpoint, measures.find(complete, "mt_bench", "rating"))
    rows = _of(drawn, "mt_bench.rating", "objective.alpha=1", 2)
    assert {row["seed"]: row["value"] for row in rows if row["kind"] == "seed"} == points


def _of(drawn: Drawn, panel: str, arm: str, iteration: int) -> list[Observation]:
    wanted = {"panel": panel, "arm": arm, "iteration": iteration}
    return [row for row in drawn.data if wanted.items() <= row.items()]


def test_a_failed_seed_is_left_out_and_the_others_are_drawn(faulty: StudyData) -> None:
    drawn = draw("curves", faulty)
    assert isinstance(drawn, Drawn)
    rows = _of(drawn, "alpaca_eval.win_rate", "objective.alpha=1", 2)
    assert {row["seed"] for row in rows} == {1, 2}
    assert not any(row["kind"] == "mean" for row in rows)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    """Fifteen arms with long names."""
    arms = ["DPO", *(f"an objective with a long name, {i}" for i in range(14))]
    spec = synthetic.Synthetic(
        axes={"arm": arms},
        iterations=1,
        faults=False,
        answers=False,
        heldout=4,
        ood=2,
        task_items=2,
        questions=4,
    )
    return load_study(*synthetic.build(tmp_path_factory.mktemp("named"), spec))


@pytest.mark.parametrize(
    "key", ["figure_3", "matched_kl", "curves", "figure_6", "differences", "matrix"]
)
def test_long_names_and_many_arms_stay_inside_the_figure_and_apart(
    named: StudyData, key: str
) -> None:
    drawn = draw(key, named)
    assert isinstance(drawn, Drawn)
    with paper_style():
        drawn.figure.draw_without_rendering()
    figure, renderer = drawn.figure, drawn.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [legend.get_window_extent(renderer) for legend in figure.legends]
    boxes += [
        label.get_window_extent(renderer)
        for axes in figure.axes
        for label in (axes.xaxis.label, axes.yaxis.label)
        if label.get_text()
    ]
    rows = (
        [label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()]
        if key in ("figure_6", "differences", "matrix")
        else []
    )
    for box in [*boxes, *rows]:
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2
    assert len(rows) in (0, 14, 15)
    assert not any(a.overlaps(b) for i, a in enumerate(rows) for b in rows[:i])


@pytest.mark.parametrize("key", sorted(set(FIGURES) - NEEDS_MORE))
def test_titles_fit_their_panels_and_no_seed_hides_a_line(complete: StudyData, key: str) -> None:
    drawn = draw(key, complete)
    assert isinstance(drawn, Drawn)
    with paper_style():
        drawn.figure.draw_without_rendering()
    figure, renderer = drawn.figure, drawn.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    titles = [axes.title.get_window_extent(renderer) for axes in figure.axes]
    titles = [box for box in titles if box.width > 1]
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    assert all(box.x0 > 0 and box.x1 < figure.bbox.width for box in titles)
    for axes in figure.axes:
        lines = [line for line in axes.lines if line.get_linestyle() not in ("None", "none")]
        for seeds in (line for line in axes.lines if line.get_markersize() < 2.3):
            assert all(seeds.get_zorder() < line.get_zorder() for line in lines)


def test_the_matrix_is_shaded_by_what_is_better(complete: StudyData) -> None:
    drawn = draw("matrix", complete)
    assert isinstance(drawn, Drawn)
    cells = {(row["arm"], row["measure"]): row for row in drawn.data}
    best, base = (cells[arm, "AlpacaEval LC"] for arm in ("α = 1", "α = 0"))
    assert best["value"] == pytest.approx(29.60, abs=0.01)
    assert best["effect"] == pytest.approx(best["value"] / best["half_width"])
    assert (base["effect"], base["value"] > 40) == (None, True)
    shades = drawn.figure.axes[0].images[0].get_array()
    assert shades is not None
    assert shades[2, 0] == pytest.approx(best["effect"])


def test_an_axis_of_lengths_shows_every_arm_at_its_own_last_iteration(tmp_path: Path) -> None:
    spec = synthetic.Synthetic(axes={"loop.iterations": [1, 2, 3]}, faults=False, answers=False)
    drawn = draw("figure_6", load_study(*synthetic.build(tmp_path, spec)))
    assert isinstance(drawn, Drawn)
    shown = {(row["label"], row["iteration"]) for row in drawn.data}
    assert shown == {("1", 1), ("2", 2), ("3", 3)}
    assert "after each arm's last iteration (1 to 3)" in drawn.caption


def test_iterative_and_offline_arms_stand_over_the_pairs_they_trained_on(tmp_path: Path) -> None:
    spec = synthetic.Synthetic(
        axes={"loop.mode": ["iterative", "offline"]}, faults=False, answers=False
    )
    data = load_study(*synthetic.build(tmp_path, spec))
    drawn = draw("figure_6_offline", data)
    assert isinstance(drawn, Drawn)
    means = [row for row in drawn.data if row["kind"] == "mean"]
    places = [(row["arm"], row["iteration"], row["pairs"]) for row in means]
    modes = ("loop.mode=iterative", "loop.mode=offline")
    # one stored pair, two passes an iteration
    assert places == [(arm, i, 2.0 * i) for arm in modes for i in range(3)]
    assert {row["measure"] for row in means} == {"mt_bench.rating"}
    assert "does not say whether passes are counted" in drawn.caption
    train = data.stage(data.runs[0], 1, "train")
    assert train is not None
    (train.folder / "record.json").unlink()
    left = draw("figure_6_offline", load_study(tmp_path / "synthetic", tmp_path / "store"))
    assert isinstance(left, Drawn)
    assert {row["iteration"] for row in left.data if row["arm"] == modes[0]} == {0}


def test_figures_4_and_5_show_the_methods_first_and_second_iteration(tmp_path: Path) -> None:
    spec = synthetic.Synthetic(iterations=3, faults=False, answers=False, heldout=12)
    data = load_study(*synthetic.build(tmp_path, spec))
    for key, iteration in (("figure_4", 1), ("figure_5", 2)):
        drawn = draw(key, data)
        assert isinstance(drawn, Drawn)
        assert {row["iteration"] for row in drawn.data} == {iteration}
        assert f"after iteration {iteration}" in drawn.caption
        ranks = [row["rank"] for row in drawn.data if row["seed"] is None]
        assert f" {max(ranks) + 1} prompts" in drawn.caption  # all that are stored


def test_given_checkpoints_are_counted_in_steps(complete: StudyData) -> None:
    given = copy.copy(complete)
    given.runs = tuple(replace(run, given=True) for run in complete.runs)
    for key in ("figure_3", "curves", "figure_4", "figure_5"):
        drawn = draw(key, given)
        assert isinstance(drawn, Drawn)
        shown = [*(text.get_text() for text in drawn.figure.findobj(Text)), drawn.caption]
        assert any("step" in text for text in shown)
        assert not any("iteration" in text for text in shown), key


def test_without_intervals_no_caption_speaks_of_them(tmp_path: Path) -> None:
    data = load_study(
        *synthetic.build(
            tmp_path,
            synthetic.Synthetic(alphas=(0.0, 1.0), seeds=(0,), faults=False, answers=False),
        )
    )
    for key in ("figure_3", "curves", "figure_6", "differences", "diagnostics_exploration"):
        drawn = draw(key, data)
        assert isinstance(drawn, Drawn)
        assert "95 %" not in drawn.caption


def test_arms_differ_in_lightness_marker_and_line(complete: StudyData) -> None:
    looks = list(styles(complete).values())
    grey = [float(np.dot(mpl.colors.to_rgb(look.color), (0.299, 0.587, 0.114))) for look in looks]
    assert min(abs(a - b) for i, a in enumerate(grey) for b in grey[:i]) > 0.1
    assert (
        len({look.marker for look in looks})
        == len({str(look.line) for look in looks})
        == len(looks)
    )
    assert looks[0].color == "#000000"


def test_the_pairwise_matrix_is_drawn_from_a_stored_stage(tmp_path: Path) -> None:
    study, store = synthetic.build(tmp_path, synthetic.Synthetic(answers=False))
    manifest = json.loads((study / "manifest.json").read_text())
    names = [f"{manifest['runs'][0]['run']}@{iteration}" for iteration in (0, 2)]
    manifest["pairwise"] = []
    for (a, b), value in {(names[0], names[1]): 80.0, (names[1], names[0]): 20.0}.items():
        key = content_hash(a, b)
        folder = store / "objects" / key[:2] / key
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(
            canonical_json({"schema": 1, "summary": {"length_controlled_win_rate": value}})
        )
        manifest["stages"][key] = {
            "stage": "judge.pairwise",
            "version": 1,
            "inputs": {},
            "seconds_estimated": 0,
        }
        manifest["pairwise"].append({"a": a, "b": b, "key": key})
    (study / "manifest.json").write_text(canonical_json(manifest))
    drawn = draw("figure_2", load_study(study, store))
    assert isinstance(drawn, Drawn)
    won = {(row["row"], row["column"]): row["length_controlled_win_rate"] for row in drawn.data}
    base, last = (drawn.data[0]["row"], drawn.data[-1]["row"])
    assert ("Base" in base, "iter 2" in last) == (True, True)
    assert (won[last, base], won[base, last]) == (80.0, 20.0)


def test_labels_with_markup_do_not_become_mathematics() -> None:
    assert symbols("KL(π_θ‖π_0) and y_w") == r"KL($\pi_{\theta}$‖$\pi_{0}$) and $y_{w}$"
    assert symbols("loop.warmup_dpo") == "loop.warmup_dpo"
    assert shown("cost $5 \x1b[31m") == r"cost \$5 ␛[31m"
    assert text.visible("\u202e") == "‹U+202E›"
