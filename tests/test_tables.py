"""Every table of ``TABLES`` on complete, faulty and empty studies; hand-worked cells; LaTeX, CSV and HTML forms."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis import findings, measures, paper, text
from analysis.compare import compare
from analysis.load import StudyData, load_study
from analysis.table import Row, Table, Unavailable, as_csv, as_html, as_latex, as_markdown, sort_value
from analysis.table_cells import cell_text
from analysis.tables import TABLES
from harness.records import HarnessError
from tests import synthetic


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return load_study(*synthetic.build(tmp_path_factory.mktemp("complete"), synthetic.Synthetic(faults=False, answers=False)))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return load_study(*synthetic.build(tmp_path_factory.mktemp("faulty"), synthetic.Synthetic(answers=False)))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("empty")
    study, _ = synthetic.build(folder, synthetic.Synthetic(answers=False))
    return load_study(study, folder / "nowhere")


@pytest.mark.parametrize("key", TABLES)
def test_every_table_is_built_in_every_form(complete: StudyData, key: str) -> None:
    table = TABLES[key](complete)
    assert isinstance(table, Table), table
    assert table.key == key
    assert as_markdown(table).count("\n| ") == len(table.rows or [0]) + 2
    assert len(list(csv.reader(io.StringIO(as_csv(table))))) == len(table.data) + 1
    latex = as_latex(table)
    assert latex.count("{") == latex.count("}")
    assert latex.isascii()
    assert as_html(table).count("<tr") == len(table.rows or [0]) + 1


@pytest.mark.parametrize("key", TABLES)
def test_every_table_works_on_unfinished_and_empty_studies(faulty: StudyData, empty: StudyData, key: str) -> None:
    assert isinstance(TABLES[key](faulty), Table)
    table = TABLES[key](empty)
    assert isinstance(table, Table) or table.reason


def test_a_cell_is_the_mean_over_seeds_with_both_half_widths(complete: StudyData) -> None:
    checkpoint = complete.checkpoint("objective.alpha=0", 1)
    assert checkpoint is not None
    measure = measures.all_measures(complete)["mt_bench.rating"]
    estimate = findings.estimate(complete, checkpoint, measure)
    points = list(measures.points(complete, checkpoint, measure).values())
    mean = sum(points) / 3
    spread = (sum((p - mean) ** 2 for p in points) / 2 / 3) ** 0.5
    assert estimate.value == pytest.approx(mean)
    assert estimate.intervals["A"].half_width == pytest.approx(4.302652729749464 * spread)  # t with 2 degrees of freedom
    assert cell_text(estimate, measure).startswith(f"{mean:.2f} ± {4.302652729749464 * spread:.2f} (")


def test_incomplete_cells_have_bounds_and_no_value(faulty: StudyData) -> None:
    table = TABLES["table_1"](faulty)
    assert isinstance(table, Table)
    row = next(row for row in table.rows if row.cells[0] == "α = 1, iter 2")
    mt_bench = row.cells[table.columns.index("MT-Bench mean")]
    checkpoint = faulty.checkpoint("objective.alpha=1", 2)
    assert checkpoint is not None
    values = faulty.cell(checkpoint, "mt_bench", "rating").points
    scored = (values[0] * 32 + values[1] * 32 + values[2] * 30) / 94
    worst, best = (scored * 94 + 2 * 1) / 96, (scored * 94 + 2 * 10) / 96  # two ratings missing, at 1 and at 10
    assert mt_bench == f"INCOMPLETE (94 of 96) {worst:.2f}–{best:.2f}"
    assert any("the key was refused" in note for note in table.notes)


def test_differences_state_declared_and_exploratory_p(complete: StudyData) -> None:
    table = TABLES["differences"](complete)
    assert isinstance(table, Table)
    at = table.columns.index("p (A)")
    assert all("ᴴ" in row.cells[at] for row in table.rows if row.cells[1] == "AlpacaEval LC")
    assert not any("ᴴ" in row.cells[at] for row in table.rows if row.cells[1] == "MT-Bench mean")


def test_holm_runs_over_the_whole_declared_family(tmp_path: Path) -> None:
    declare = {"family": [{"benchmark": "mt_bench", "metric": "rating", "iteration": "last"}]}
    data = load_study(*synthetic.build(tmp_path, synthetic.Synthetic(faults=False, answers=False, effect=0.02, declare=declare)))
    found = findings.find(data)
    assert found.family_size == 4
    raw = sorted((c.estimate.intervals["A"].p or 1.0, c) for c in found.declared)
    running = 0.0
    for rank, (p, comparison) in enumerate(raw):
        running = max(running, min(p * (4 - rank), 1.0))
        assert comparison.holm["A"] == pytest.approx(running)


def test_published_rows_are_the_papers() -> None:
    rows = {row.model: row.values for row in paper.TABLE_1}
    assert rows["SELM Iter 3 (Zephyr)"] == (24.25, 21.05, 1694, 7.61, 7.74, 7.49)
    assert rows["Yi-34B-Chat"] == (27.19, 21.23, 2123, 7.90, None, None)
    assert (len(paper.TABLE_1), len(paper.TABLE_2)) == (23, 18)
    for row in paper.TABLE_2:
        assert row.values[-1] == pytest.approx(sum(v or 0 for v in row.values[:-1]) / 6, abs=0.051), row.model
    assert rows["DPO Iter 3 (Llama3-It)"][0] == 33.17


def test_costs_count_a_shared_stage_once(complete: StudyData) -> None:
    table = TABLES["costs"](complete)
    assert isinstance(table, Table)
    assert table.volatile
    trained = next(row for row in table.data if row[0] == "train")
    assert trained[table.data_columns.index("tokens_trained")] == 18 * 4000  # 3 arms × 3 seeds × 2 iterations
    base = next(row for row in table.data if row[0] == "base.pocket")
    assert base[1:3] == (1, 1)


def test_sorting_values_are_plain_numbers_and_missing_ones_empty() -> None:
    assert [sort_value(c) for c in ("−1.50 ± 0.2", "+3", "< 0.001", "INCOMPLETE (3 of 4)", "–", "6 of 9", "0.006 ᴴ")] == [
        "-1.50", "3", "0.001", "", "", "6", "0.006",
    ]  # fmt: skip


@pytest.mark.parametrize("evil", [*synthetic.HOSTILE, "| pipe", "a\nb", "`code`", "x&nbsp;y"])
def test_hostile_text_stays_text_in_every_form(evil: str) -> None:
    table = Table("t", evil, evil, ("a", evil), (Row((evil, evil)),), ("a", evil), ((evil, 1.0),), (evil,))
    page = as_html(table)
    assert _tags(page) == _tags(as_html(Table("t", "x", "x", ("a", "x"), (Row(("x", "x")),), ("a", "x"), (("x", 1.0),), ("x",))))
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
    assert arms.data[0][arms.data_columns.index("seeds")] == 3
    runs = compare(complete, "objective.alpha=1,seed=0@2", "objective.alpha=0,seed=2@1", "mt_bench.rating")
    ours, theirs = (complete.cell(c, "mt_bench", "rating").points for c in (_one(complete, "1", 0, 2), _one(complete, "0", 2, 1)))
    assert runs.data[0][runs.data_columns.index("difference")] == pytest.approx(ours[0] - theirs[0])
    assert runs.data[0][runs.data_columns.index("items_low")] is not None
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
