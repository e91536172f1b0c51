"""Every table of ``TABLES`` on complete, faulty and empty studies; hand-worked cells; LaTeX, CSV
and HTML forms.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from analysis import findings, measures, text
from analysis.compare import compare
from analysis.judge_runs import judge_table
from analysis.layout import from_array
from analysis.load import StudyData, load_study
from analysis.measures import Measure
from analysis.report import sort_value, to_html
from analysis.stats import Estimate, Interval, mean_over_seeds, one_checkpoint
from analysis.table import (
    Observation,
    Table,
    TableRow,
    Unavailable,
    as_csv,
    as_latex,
    as_markdown,
    cell_text,
)
from analysis.tables import TABLES, differences
from analysis.tables.judge import FLAGS, disagreement, flips_of
from analysis.tables.scores import PUBLISHED, published
from analysis.text import finer
from harness.judge.meta import LabelledPair, agreement, noise_floor, position_flips
from harness.records import HarnessError
from tests import synthetic


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("empty")
    study, _ = synthetic.build(folder, synthetic.Synthetic(answers=False))
    return load_study(study, folder / "nowhere")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    """Six seeds, every item judged twice, two checkpoints judged against each other, AlpacaEval's
    answers ranked.
    """
    spec = synthetic.Synthetic(
        alphas=(0.0, 1.0),
        seeds=range(6),
        iterations=1,
        faults=False,
        answers=False,
        repeats=2,
        both_orders=True,
        ranked=True,
        heldout=6,
        ood=3,
        task_items=4,
    )
    return load_study(*synthetic.build(tmp_path_factory.mktemp("rich"), spec))


def test_from_ten_seeds_the_share_of_pairs_won_has_an_interval(tmp_path: Path) -> None:
    sizes = {"alphas": (0.0, 1.0), "iterations": 1, "heldout": 4, "ood": 2, "task_items": 4}
    spec = synthetic.Synthetic(seeds=range(10), faults=False, answers=False, **sizes)
    table = TABLES["difference_checks"](load_study(*synthetic.build(tmp_path, spec)))
    assert isinstance(table, Table)
    for row in table.data:
        won, high = row["pairs_won"] / row["pairs"], row["improvement_high"]
        assert row["improvement_low"] < won <= high <= 1


NEEDS_MORE = {"iqm": "it needs 5 seeds and there are 3", "position_flips": "declare.pairwise"}
"""Tables whose data the plain study does not hold, and what they say instead."""


@pytest.mark.parametrize("key", TABLES)
def test_every_table_is_built_in_every_form(complete: StudyData, rich: StudyData, key: str) -> None:
    table = TABLES[key](rich if key in NEEDS_MORE else complete)
    assert isinstance(table, Table), table
    assert table.key == key
    assert as_markdown(table).count("\n| ") == len(table.rows or [0]) + 2
    assert len(list(csv.reader(io.StringIO(as_csv(table))))) == len(table.data) + 1
    latex = as_latex(table)
    assert latex.count("{") == latex.count("}")
    assert latex.isascii()
    assert to_html(as_markdown(table), {}).count("<tr") == len(table.rows or [0]) + 1


def test_every_table_and_flag_is_explained() -> None:
    explained = (Path(__file__).parents[2] / "results" / "README.md").read_text(encoding="utf-8")
    for name in [*TABLES, *FLAGS]:
        assert f"`{name}`" in explained, name


@pytest.mark.parametrize("key", TABLES)
def test_every_table_works_on_unfinished_and_empty_studies(
    faulty: StudyData, empty: StudyData, key: str
) -> None:
    table = TABLES[key](faulty)
    assert (
        isinstance(table, Table)
        if key not in NEEDS_MORE
        else isinstance(table, Unavailable) and NEEDS_MORE[key] in table.reason
    )
    table = TABLES[key](empty)
    assert isinstance(table, Table) or table.reason


def _row(table: Table, **fields: object) -> Observation:
    """The first observation with these fields."""
    return next(row for row in table.data if fields.items() <= row.items())


def test_rows_of_other_names_or_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"table t, shown: row 1 has \['b', 'a'\]"):
        Table("t", "t", "t", [TableRow({"a": "", "b": ""}), TableRow({"b": "", "a": ""})], [])
    with pytest.raises(ValueError, match=r"table t, data: row 1 has \['a'\]"):
        Table("t", "t", "t", [], [{"a": 1, "b": 2}, {"a": 1}])


def test_a_cell_is_the_mean_over_seeds_with_both_half_widths(complete: StudyData) -> None:
    checkpoint = complete.checkpoint("objective.alpha=0", 1)
    assert checkpoint is not None
    measure = measures.all_measures(complete)["mt_bench.rating"]
    estimate = findings.estimate(complete, checkpoint, measure)
    points = list(measures.points(complete, checkpoint, measure).values())
    mean = sum(points) / 3
    spread = (sum((p - mean) ** 2 for p in points) / 2 / 3) ** 0.5
    assert estimate.value == pytest.approx(mean)
    assert estimate.intervals["A"].half_width == pytest.approx(
        4.302652729749464 * spread
    )  # t with 2 degrees of freedom
    assert cell_text(estimate, measure).startswith(
        f"{mean:.2f} ± {4.302652729749464 * spread:.2f} ("
    )


@pytest.mark.parametrize(
    ("right", "shown"),
    # Wilson by hand at 12 of 12: n/(n + z²) = 12/15.8415; at 6 of 12 it is symmetric about one half
    [(12, "100.0 (75.8 to 100.0)"), (0, "0.0 (0.0 to 24.2)"), (6, "50.0 (25.4 to 74.6)")],
)
def test_an_interval_that_is_not_symmetric_is_shown_by_its_ends(right: int, shown: str) -> None:
    scores = from_array([[100.0] * right + [0.0] * (12 - right)], scale=(0.0, 100.0))
    assert cell_text(one_checkpoint(scores), Measure("HellaSwag", "hellaswag", "score", "", 1)) == (
        shown
    )


def test_a_spread_below_the_last_digit_is_not_rounded_to_it() -> None:
    scores = mean_over_seeds(from_array(0.5 + 1e-4 * np.array([[1, 3], [2, 2], [4, 6], [1, 1]])))
    assert cell_text(scores, Measure("KL", "diagnostics", "kl", "nats", 2)).startswith("0.50025 ± ")
    wide, narrow = Interval("A", "", low=-0.5, high=0.5), Interval("A", "", low=-1e-5, high=1e-5)
    both = Estimate("", 0.0, 3, 9, {"A": wide, "items": narrow, "A_paired": narrow})
    assert (both.digits(2), both.digits(2, "A_paired")) == (2, 6)
    assert [finer(2, size) for size in (0.0056, 0.01, 24.6, 1e-15, None)] == [4, 2, 2, 2, 2]


def test_why_there_is_no_interval_is_the_reason_that_holds(tmp_path: Path) -> None:
    """Two seeds: their number, not scores that happen to be equal."""
    made = synthetic.Synthetic(seeds=(0, 1), iterations=1, faults=False, answers=False)
    table = TABLES["table_1"](load_study(*synthetic.build(tmp_path, made)))
    assert isinstance(table, Table)
    (note,) = [note for note in table.notes if note.startswith("–: no interval")]
    assert note == "–: no interval (2 seeds: none below 3); it is never shown as zero."


def test_agreement_with_labels_has_an_interval() -> None:
    """66 of 100 pairs: Wilson's 56.3 to 74.5, by scipy."""
    pairs = [LabelledPair(str(i), "", "", "", 1) for i in range(100)]
    said = {pair.id: 1.0 if i < 66 else 2.0 for i, pair in enumerate(pairs)}
    found = {"agreement": agreement(pairs, said, said), "by_group": {}, "costs": {}}
    found |= {"position": position_flips(said, said, dict.fromkeys(said, False))}
    cells = judge_table("j", "pairs", 1, found | {"noise": noise_floor({})}).rows[0].cells
    ends = binomtest(66, 100).proportion_ci(method="wilson")
    assert cells["value"] == f"66.0 ({100 * ends.low:.1f}–{100 * ends.high:.1f})"


def test_incomplete_cells_have_bounds_and_no_value(faulty: StudyData) -> None:
    table = TABLES["table_1"](faulty)
    assert isinstance(table, Table)
    row = next(row for row in table.rows if row.cells["checkpoint"] == "α = 1, iter 2")
    mt_bench = row.cells["MT-Bench mean"]
    checkpoint = faulty.checkpoint("objective.alpha=1", 2)
    assert checkpoint is not None
    values = faulty.cell(checkpoint, "mt_bench", "rating").points
    scored = (values[0] * 32 + values[1] * 32 + values[2] * 30) / 94
    worst, best = (
        (scored * 94 + 2 * 1) / 96,
        (scored * 94 + 2 * 10) / 96,
    )  # two ratings missing, at 1 and at 10
    assert mt_bench == f"INCOMPLETE (94 of 96) {worst:.2f}–{best:.2f}"
    assert any("the key was refused" in note for note in table.notes)


def test_differences_state_declared_and_exploratory_p(complete: StudyData) -> None:
    table = TABLES["differences"](complete)
    assert isinstance(table, Table)
    shown = {(row.cells["measure"], "ᴴ" in row.cells["p (A)"]) for row in table.rows}
    assert {("AlpacaEval LC", True), ("MT-Bench mean", False)} <= shown
    assert not {("AlpacaEval LC", False), ("MT-Bench mean", True)} & shown


def test_holm_runs_over_the_whole_declared_family(tmp_path: Path) -> None:
    declare = {"family": [{"benchmark": "mt_bench", "metric": "rating", "iteration": "last"}]}
    data = load_study(
        *synthetic.build(
            tmp_path, synthetic.Synthetic(faults=False, answers=False, effect=0.02, declare=declare)
        )
    )
    found = findings.find(data)
    assert len(found.declared) == 4
    raw = sorted((c.estimate.intervals["A"].p or 1.0, c) for c in found.declared)
    running = 0.0
    for rank, (p, comparison) in enumerate(raw):
        running = max(running, min(p * (4 - rank), 1.0))
        assert comparison.holm["A"] == pytest.approx(running)


def test_arms_are_compared_where_both_are_as_far_from_the_base() -> None:
    ours, theirs = [(1.0, 0.5), (3.0, 0.3)], [(0.5, 0.6), (2.0, 0.3)]
    assert differences.matched(ours, theirs) == pytest.approx((0.4, 0.3))
    assert differences.matched(theirs, ours) == pytest.approx((0.3, 0.4))
    assert differences.matched(ours, [(0.2, 0.6), (0.9, 0.3)]) is None


def test_a_difference_at_matched_kl_stands_for_every_arm(complete: StudyData) -> None:
    table = TABLES["matched_kl"](complete)
    assert isinstance(table, Table)
    assert [row.cells["seeds"] for row in table.rows] == ["3 of 3"] * 2
    for row in table.data:
        assert row["baseline_kl"] < row["kl"]
        assert row["difference"] > 0


def test_a_seed_whose_last_score_is_missing_is_not_compared_earlier(tmp_path: Path) -> None:
    """Its KL is stored there: the score of the iteration before would stand in for the last."""
    spec = synthetic.Synthetic(answers=False)
    data = load_study(*synthetic.build(tmp_path, spec))
    table = TABLES["matched_kl"](data)
    assert isinstance(table, Table)
    compared = {row["seed"] for row in table.data if row["arm"] == "objective.alpha=1"}
    last = data.checkpoint("objective.alpha=1", spec.iterations)
    assert last is not None
    win_rate = measures.find(data, "alpaca_eval", "length_controlled_win_rate")
    scored = set(measures.points(data, last, win_rate))
    assert scored < set(measures.points(data, last, measures.diagnostic("kl_base", "KL")))
    assert compared == scored


def test_an_arm_whose_distance_is_not_stored_is_at_none(tmp_path: Path) -> None:
    """The base is at KL 0; a checkpoint without diagnostics is not."""
    study, store = synthetic.build(tmp_path, synthetic.Synthetic(answers=False))
    for record in list(store.rglob("record.json")):
        if json.loads(record.read_text())["stage"] == "diagnostics":
            shutil.rmtree(record.parent)
    found = TABLES["matched_kl"](load_study(study, store))
    assert isinstance(found, Unavailable)
    assert "not both stored" in found.reason


def test_an_arm_that_ends_earlier_is_compared_at_its_own_end(tmp_path: Path) -> None:
    axes = {"loop.iterations": (1, 3)}
    spec = synthetic.Synthetic(axes=axes, faults=False, answers=False)
    found = TABLES["matched_kl"](load_study(*synthetic.build(tmp_path, spec)))
    assert isinstance(found, Table)
    assert {row["arm"] for row in found.data} == {"loop.iterations=3"}
    assert len(found.data) == 3


def test_the_interquartile_mean_is_that_of_the_seeds_points(rich: StudyData) -> None:
    checkpoint = rich.checkpoint("objective.alpha=1", 1)
    assert checkpoint is not None
    win_rate = measures.find(rich, "alpaca_eval", "win_rate")
    points = sorted(measures.points(rich, checkpoint, win_rate).values())
    table = TABLES["iqm"](rich)
    assert isinstance(table, Table)
    row = _row(table, checkpoint="α = 1, iter 1", measure="alpaca_eval.win_rate")
    assert row["iqm"] == pytest.approx(sum(points[1:5]) / 4)  # six seeds: one cut at each end
    assert row["mean"] == pytest.approx(sum(points) / 6)
    assert row["low"] is not None


def test_the_noise_floor_counts_ratings_and_not_questions(rich: StudyData) -> None:
    table = TABLES["judge"](rich)
    assert isinstance(table, Table)
    row = _row(table, benchmark="mt_bench", checkpoint="α = 1, iter 1")
    # per seed 16 questions × 2 turns, judged twice; question i and its second judgment differ by 1
    # where (i + 1) % 4 == 0: 4 of 16 questions
    assert (row["items_judged_twice"], row["items_unequal"], row["df"]) == (192, 48, 192)
    assert row["judgment_sd"] == pytest.approx((48 * 0.5 / 192) ** 0.5)
    assert row["floor_mean"] == pytest.approx((48 * 0.5 / 192) ** 0.5 / 32**0.5)
    assert table.columns[-1] == "floor of a difference"


def test_without_repeats_the_judges_noise_is_said_to_be_unknown(complete: StudyData) -> None:
    table = TABLES["judge"](complete)
    assert isinstance(table, Table)
    assert "judge.repeats" in table.notes[0]
    assert table.columns[-1] == "read otherwise by FastChat"


def test_position_flips_by_hand() -> None:
    # instruction 1: b wins in both orders; 2: whoever stands second wins; 3: shown in the same
    # order twice, so it says nothing; 4: a tie, then a
    first = {"1": (1.8, False), "2": (1.7, False), "3": (1.2, True), "4": (1.5, True)}
    second = {"1": (1.2, False), "2": (1.7, False), "3": (1.2, False), "4": (1.6, True)}
    pairs, flips, advantage = flips_of(first, second)
    assert (pairs, flips) == (3, 2)
    # mean preference for the second place: 1: (0.8 + 0.2)/2; 2: 0.7; 4, switched: (0.5 + 0.4)/2;
    # minus one half each
    assert advantage == pytest.approx((0.0 + 0.2 - 0.05) / 3)


def test_position_flips_are_counted(rich: StudyData) -> None:
    table = TABLES["position_flips"](rich)
    assert isinstance(table, Table)
    counted = [(row["benchmark"], row["answer_pairs"], row["flips"]) for row in table.data]
    assert counted == [("AlpacaEval", 24, 6)]
    assert table.rows[0].cells["flips"] == "6 of 24 (25.0 %)"


def test_ranker_and_judge_disagree_where_their_signs_differ(rich: StudyData) -> None:
    checkpoint = rich.checkpoint("objective.alpha=1", 1)
    assert checkpoint is not None
    estimate, ties = disagreement(rich, checkpoint)
    expected, even = [], 0
    for run in checkpoint.runs:
        wins = rich.rows(run.name, 1, "alpaca_eval", "win_rate")
        for item, win in zip(wins["item"].astype(str).astype(int), wins["value"], strict=True):
            reward = item % 4 - 1
            expected.append(50 if reward == 0 else 100.0 * ((reward > 0) != (win > 50)))
            even += reward == 0
    assert estimate is not None and estimate.value == pytest.approx(sum(expected) / len(expected))
    assert ties == even == 36


def test_without_ranked_answers_the_setting_is_named(complete: StudyData) -> None:
    table = TABLES["ranker_judge"](complete)
    assert isinstance(table, Table)
    assert "evaluation.rank_alpaca_eval: true" in table.notes[0]
    assert [row.cells["checkpoint"] for row in table.rows] == ["order of checkpoints"]


def test_a_fit_without_coefficients_is_no_measurement() -> None:
    empty = {"length_controlled_win_rate": 50.0, "lc_standard_error_library": 0.0, "win_rate": 42.0}
    assert measures.penalised_to_nothing(empty)
    for other in ({"win_rate": 50.0}, {"lc_standard_error_library": 0.1}):
        assert not measures.penalised_to_nothing(empty | other)
    assert not measures.penalised_to_nothing({})


def test_alpaca_evals_flags_are_in_words_and_few_instructions_are_said(
    complete: StudyData, tmp_path: Path
) -> None:
    folder, store = synthetic.build(
        tmp_path, synthetic.Synthetic(alphas=(0.0, 1.0), faults=False, answers=False, iterations=1)
    )
    data = load_study(folder, store)
    stage = data.stage(data.runs[-1], 1, "judge.alpaca_eval")
    assert stage is not None
    path = stage.folder / "summary.json"
    told = {"flags": ["no_length_variance"], "truncated": ["0", "7"], "comparable": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    table = TABLES["alpaca_eval"](data)
    assert isinstance(table, Table)
    numbers = [table.data[-1][name] for name in ("truncated", "neutralised", "comparable")]
    assert numbers == [2, 0, False]
    flags = {row.cells["checkpoint"]: row.cells["flags"] for row in table.rows}
    assert flags["α = 1, iter 1"] == (
        "all length differences equal: LC is the plain win rate (1 of 3 seeds)"
    )
    assert table.notes[-1].startswith("9 sets have under 100 scored instructions")


def test_scores_have_units_and_items(complete: StudyData) -> None:
    table = TABLES["table_1"](complete)
    assert isinstance(table, Table)
    assert (
        "Units: percent (AlpacaEval LC, AlpacaEval WR), characters (length), rating 1–10 "
        "(MT-Bench mean, turn 1, turn 2)." in table.notes
    )
    assert (
        "Items a seed: 24 instructions (AlpacaEval LC, AlpacaEval WR, length), 16 questions "
        "(MT-Bench mean, turn 1, turn 2)." in table.notes
    )


def test_complete_checkpoints_share_a_row(complete: StudyData, faulty: StudyData) -> None:
    whole, lacking = TABLES["completeness"](complete), TABLES["completeness"](faulty)
    assert isinstance(whole, Table) and isinstance(lacking, Table)
    assert [row.cells["checkpoint"] for row in whole.rows] == ["7 complete checkpoints"]
    assert lacking.rows[0].cells["checkpoint"] == "α = 1, iter 2"
    assert lacking.rows[0].cells["alpaca_eval"] == "48/72 (24 not run)"
    assert lacking.rows[1].cells["checkpoint"] == "6 complete checkpoints"


@pytest.mark.slow
def test_no_table_is_wider_than_a_page_holds(
    complete: StudyData, rich: StudyData, many: StudyData
) -> None:
    for data in (complete, rich, many):
        for key in TABLES:
            table = TABLES[key](data)
            assert isinstance(table, Unavailable) or len(table.columns) <= 12, (
                key,
                len(table.columns),
            )


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    """Fifteen arms with names, as the study of objectives has."""
    spec = synthetic.Synthetic(
        axes={"arm": ["DPO", *(f"objective {i}" for i in range(14))]},
        iterations=1,
        faults=False,
        answers=False,
        heldout=4,
        ood=2,
        task_items=2,
        questions=4,
        instructions=12,
    )
    return load_study(*synthetic.build(tmp_path_factory.mktemp("many"), spec))


def test_c_and_kappa_stand_only_where_an_arm_explores(complete: StudyData, many: StudyData) -> None:
    with_c, without = TABLES["table_1"](complete), TABLES["table_1"](many)
    assert isinstance(with_c, Table) and isinstance(without, Table)
    assert with_c.columns[1:3] == ["c", "κ"]
    assert without.columns[1] == "AlpacaEval LC"


def test_many_arms_are_rows_of_the_diagnostics(many: StudyData) -> None:
    table = TABLES["diagnostics"](many)
    assert isinstance(table, Table)
    assert [row.cells["arm"] for row in table.rows][:2] == ["DPO", "objective 0"]
    assert len({row["measure"] for row in table.data}) == 25  # the CSV keeps every diagnostic


def test_arms_of_different_length_are_compared_at_their_own_last_iteration(tmp_path: Path) -> None:
    spec = synthetic.Synthetic(axes={"loop.iterations": [2, 3]}, faults=False, answers=False)
    data = load_study(*synthetic.build(tmp_path, spec))
    table = TABLES["differences"](data)
    assert isinstance(table, Table)
    assert table.caption.startswith(
        "Each arm minus iterations = 2 after each arm's last iteration (2 to 3)"
    )
    ours, theirs = (data.checkpoint(f"loop.iterations={n}", n) for n in (3, 2))
    assert ours is not None and theirs is not None
    win_rate = measures.find(data, "alpaca_eval", "win_rate")
    x, y = (measures.points(data, c, win_rate) for c in (ours, theirs))
    row = _row(table, measure="alpaca_eval.win_rate")
    assert row["difference"] == pytest.approx(sum(x.values()) / 3 - sum(y.values()) / 3)


def test_published_rows_are_the_papers() -> None:
    rows = {model: tuple(row.values()) for model, row in published("published_1").items()}
    assert rows["SELM Iter 3 (Zephyr)"] == (24.25, 21.05, 1694, 7.61, 7.74, 7.49)
    assert rows["Yi-34B-Chat"] == (27.19, 21.23, 2123, 7.90, None, None)
    second = published("published_2")
    assert (len(rows), len(second)) == (23, 18)
    for model, row in second.items():
        *parts, mean = row.values()
        assert mean == pytest.approx(sum(v or 0 for v in parts) / 6, abs=0.051), model
    assert rows["DPO Iter 3 (Llama3-It)"][0] == 33.17


def test_the_released_models_cards_are_rows_of_their_own() -> None:
    rows = {model: tuple(row.values()) for model, row in published("published_cards").items()}
    assert rows["SELM-Llama-3-8B-iter-2"] == (35.65, 8.09, None)
    assert rows["SELM-Zephyr-7B-iter-3"] == (24.00, 7.48, 6.576)
    assert [row[0] for model, row in rows.items() if "hi-3" in model] == [
        *(23.05, 27.33, 26.79, 27.98)
    ]
    assert "leaderboard" in PUBLISHED["published_cards"][2]


def test_costs_count_a_shared_stage_once(complete: StudyData) -> None:
    table = TABLES["costs"](complete)
    assert isinstance(table, Table)
    assert table.volatile
    trained = _row(table, stage="train")
    assert trained["tokens_trained"] == 18 * 4000  # 3 arms × 3 seeds × 2 iterations
    base = _row(table, stage="base.pocket")
    assert (base["done"], base["stages"]) == (1, 1)


def test_sorting_values_are_plain_numbers_and_missing_ones_empty() -> None:
    assert [
        sort_value(c)
        for c in ("−1.50 ± 0.2", "+3", "< 0.001", "INCOMPLETE (3 of 4)", "–", "6 of 9", "0.006 ᴴ")
    ] == ["-1.50", "3", "0.001", "", "", "6", "0.006"]


@pytest.mark.parametrize("evil", [*synthetic.HOSTILE, "| pipe", "a\nb", "`code`", "x&nbsp;y"])
def test_hostile_text_stays_text_in_every_form(evil: str) -> None:
    table, plain = (
        Table("t", s, s, [TableRow({"a": s, s: s})], [{"a": s, s: 1.0}], [s]) for s in (evil, "x")
    )
    page = to_html(as_markdown(table), {})
    assert _tags(page) == _tags(to_html(as_markdown(plain), {}))
    for form in (as_markdown(table), as_latex(table), as_csv(table), page):
        form.encode("utf-8")
        assert not any(c in form for c in "\x1b\x07\u202e\u200f\ud800")
    latex = as_latex(table)
    assert r"\input" not in latex
    assert r"\write18" not in latex
    assert next(csv.reader(io.StringIO(as_csv(table).split("\n", 1)[1])))[0][:1] not in "=+@"
    assert as_markdown(table).count("\n| ") == 3


def _tags(page: str) -> list[tuple[str, list[str]]]:
    """Every element with its attributes' names, as a browser would see them."""
    found: list[tuple[str, list[str]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, [name for name, _ in attrs]))

    Reader().feed(page)
    return found


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert text.number(-0.004, 2) == "0.00"
    assert text.number(-1.5, 1) == "−1.5"
    assert text.number(2.0, 1, sign=True) == "+2.0"
    assert text.number(float("nan")) == "–"
    assert text.p_value(0.0) == "< 0.001"


def test_compare_pairs_arms_by_seed_and_runs_by_item(complete: StudyData) -> None:
    arms = compare(complete, "α = 1", "objective.alpha=0@2", "mt_bench")
    assert arms.data[0]["seeds"] == 3
    runs = compare(
        complete, "objective.alpha=1,seed=0@2", "objective.alpha=0,seed=2@1", "mt_bench.rating"
    )
    ours, theirs = (
        complete.cell(c, "mt_bench", "rating").points
        for c in (_one(complete, "1", 0, 2), _one(complete, "0", 2, 1))
    )
    assert runs.data[0]["difference"] == pytest.approx(ours[0] - theirs[0])
    assert runs.data[0]["items_low"] is not None
    assert compare(complete, "α = 1", "base").rows


def _one(data: StudyData, alpha: str, seed: int, iteration: int):  # type: ignore[no-untyped-def]
    from analysis.compare import resolve

    return resolve(data, f"objective.alpha={alpha},seed={seed}@{iteration}")


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        ("α = 2", "base", "no run or arm"),
        ("α = 1@9", "base", "no iteration 9"),
        ("base", "base", "the same checkpoint"),
        ("α = 1@x", "base", "no iteration"),
    ],
)
def test_compare_names_what_is_wrong(complete: StudyData, a: str, b: str, what: str) -> None:
    with pytest.raises(HarnessError, match=what):
        compare(complete, a, b)
    with pytest.raises(HarnessError, match="unknown benchmark"):
        compare(complete, "α = 1", "base", "nonsense")


def test_unavailable_says_why(empty: StudyData) -> None:
    table = TABLES["table_1"](empty)
    assert isinstance(table, Unavailable)
    assert table.reason == "no score of these benchmarks is stored yet"
