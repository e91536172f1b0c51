"""``selm published``: public artefacts reproduce the published figures, and a changed figure does
not pass.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.evaluate import published
from harness.records import HarnessError, read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[published.Figure]:
    return published.recompute(shared_data)


@pytest.fixture
def copy(shared_data: Path, tmp_path: Path) -> Path:
    """A copy of links: a test replaces the file it changes."""
    for part in ("alpaca_eval", "mt_bench", "academic"):
        shutil.copytree(
            shared_data / part, tmp_path / part, copy_function=lambda a, b: os.symlink(a, b)
        )
    return tmp_path


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new, 1))


def only(folder: Path, *keep: str) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in keep:
            shutil.rmtree(path)


def find(rows: list[published.Figure], model: str, figure: str) -> published.Figure:
    (row,) = [row for row in rows if row.model == model and row.figure == figure]
    return row


def test_everything_published_is_reproduced(rows: list[published.Figure]) -> None:
    assert [row for row in rows if row.ok is not True] == []
    assert sum(row.tolerance is not None for row in rows) > 280


@pytest.mark.parametrize(
    "model",
    [
        "claude-2",
        "OpenHermes-2.5-Mistral-7B",
        "alpaca-7b",
        "alpaca-7b_verbose",
        "NullModel",
        "gpt4_1106_preview",
    ],
)
@pytest.mark.parametrize(
    "figure", ["win_rate", "standard_error", "n_total", "avg_length", "n_wins", "discrete_win_rate"]
)
def test_leaderboard_columns_are_exact(
    rows: list[published.Figure], model: str, figure: str
) -> None:
    row = find(rows, model, figure)
    assert row.tolerance == 1e-6
    assert row.difference is not None
    assert abs(row.difference) <= 1e-6


@pytest.mark.parametrize(
    ("model", "lc"),
    [
        ("claude-2", 28.1552),
        ("OpenHermes-2.5-Mistral-7B", 16.2486),
        ("alpaca-7b", 5.8755),
        ("NullModel", 86.4578),
    ],
)
def test_length_controlled_win_rate_is_refitted(
    rows: list[published.Figure], model: str, lc: float
) -> None:
    row = find(rows, model, "length_controlled_winrate")
    assert row.published == pytest.approx(lc, abs=1e-4)
    assert row.recomputed == pytest.approx(lc, abs=0.16)
    assert row.tolerance == 0.16


def test_the_802_row_model_shows_all_three_values(rows: list[published.Figure]) -> None:
    position = find(rows, "alpaca-7b_verbose", "length_controlled_winrate (by position)")
    by_id = find(rows, "alpaca-7b_verbose", "length_controlled_winrate (by id)")
    assert (
        round(position.published or 0, 2),
        round(position.recomputed or 0, 2),
        round(by_id.recomputed or 0, 2),
    ) == (6.82, 6.90, 5.20)
    assert position.tolerance is None
    assert find(rows, "alpaca-7b_verbose", "n_total").recomputed == 802


def test_weights_reproduce_most_of_the_leaderboard_and_stale_ones_are_named(
    rows: list[published.Figure],
) -> None:
    weights = [row for row in rows if row.figure == "length_controlled_winrate (weights)"]
    compared = [row for row in weights if row.tolerance is not None]
    assert len(compared) == 194
    assert max(abs(row.difference or 0) for row in compared) < 1e-6
    stale = {row.model for row in weights if row.tolerance is None}
    assert stale == {
        "NullModel",
        "Meta-Llama-3.1-8B-Instruct-Turbo",
        "dbrx-instruct",
        "Snorkel-Mistral-PairRM-DPO",
        "Qwen1.5-1.8B-Chat",
    }
    assert (
        "weights not current" in find(rows, "NullModel", "length_controlled_winrate (weights)").note
    )


@pytest.mark.parametrize(
    ("model", "figures"),
    [
        ("mamba_0_5_dpo_ep3", (7.7375, 6.8875, 7.3125)),
        ("mamba_0_875_dpo_ep3", (6.93125, 5.80625, 6.36875)),
    ],
)
def test_mt_bench_scores_prompts_and_ratings_are_exact(
    rows: list[published.Figure], model: str, figures: tuple[float, float, float]
) -> None:
    assert (
        tuple(find(rows, model, name).recomputed for name in ("turn_1", "turn_2", "mean"))
        == figures
    )
    assert find(rows, model, "judge prompts rendered").recomputed == 160
    assert find(rows, model, "ratings read").recomputed == 160
    assert find(rows, model, "verdicts studies read otherwise").recomputed == 0


def test_eq_bench_is_reproduced(rows: list[published.Figure]) -> None:
    row = find(rows, "huggingfaceh4__zephyr-7b-beta", "eq_bench")
    assert (row.published, row.tolerance) == (58.33, 0.02)
    assert row.recomputed == pytest.approx(58.3358, abs=1e-3)


@pytest.mark.parametrize(
    ("file", "old", "new", "model", "figure"),
    [
        (
            "alpaca_eval/leaderboard.csv",
            "claude-2,17.188240",
            "claude-2,17.188340",
            "claude-2",
            "win_rate",
        ),
        (
            "alpaca_eval/leaderboard.csv",
            "28.155196",
            "28.655196",
            "claude-2",
            "length_controlled_winrate",
        ),
        (
            "alpaca_eval/published_glm_weights.csv",
            "claude-2,",
            "claude-2,9,9,9\nold,",
            "claude-2",
            "length_controlled_winrate (weights)",
        ),
        ("mt_bench/published.csv", "7.3125", "7.3", "mamba_0_5_dpo_ep3", "mean"),
        (
            "mt_bench/judge_prompts.jsonl",
            'strictly following this format: \\"[[rating]]\\"',
            'following this format: \\"[[rating]]\\"',
            "mamba_0_5_dpo_ep3",
            "judge prompts rendered",
        ),
        (
            "mt_bench/judgments_mamba_0_5_dpo_ep3.jsonl",
            '"score": 10,',
            '"score": 9,',
            "mamba_0_5_dpo_ep3",
            "ratings read",
        ),
        (
            "academic/huggingfaceh4__zephyr-7b-beta_eqbench_v2_results.json",
            "58.33",
            "58.43",
            "huggingfaceh4__zephyr-7b-beta",
            "eq_bench",
        ),
    ],
)
def test_a_changed_figure_fails(
    copy: Path, file: str, old: str, new: str, model: str, figure: str
) -> None:
    only(copy / "alpaca_eval", "claude-2", "gpt4_1106_preview")
    for part in {"alpaca_eval", "mt_bench", "academic"} - {file.split("/")[0]}:
        shutil.rmtree(copy / part)
    rewrite(copy / file, old, new)
    assert not find(published.recompute(copy), model, figure).ok


def test_a_changed_preference_fails(copy: Path) -> None:
    shutil.rmtree(copy / "mt_bench")
    shutil.rmtree(copy / "academic")
    only(copy / "alpaca_eval", "alpaca-7b")
    path = copy / "alpaca_eval" / "alpaca-7b" / "annotations.json"
    stored = json.loads(path.read_text())
    stored[17]["preference"] = 1.9
    path.unlink()
    path.write_text(json.dumps(stored))
    rows = published.recompute(copy)
    assert {row.figure for row in rows if not row.ok} >= {"win_rate", "standard_error", "n_wins"}


def test_other_models_are_found_by_their_folders(copy: Path) -> None:
    """A model under another name, its leaderboard row beside it, is checked like any other; one
    without a row is shown.
    """
    shutil.rmtree(copy / "academic")
    only(copy / "alpaca_eval", "claude-2")
    (copy / "alpaca_eval" / "claude-2").rename(copy / "alpaca_eval" / "somebody-7b")
    rows = [row for row in published.recompute(copy) if row.model == "somebody-7b"]
    assert rows
    assert all(row.ok and row.tolerance is None for row in rows)
    rewrite(copy / "alpaca_eval" / "leaderboard.csv", "\nclaude-2,", "\nsomebody-7b,")
    rows = [row for row in published.recompute(copy) if row.model == "somebody-7b"]
    assert sum(row.tolerance is not None for row in rows) >= 9
    assert all(row.ok for row in rows)


def test_judgments_of_several_models_in_one_file_and_missing_answers(copy: Path) -> None:
    shutil.rmtree(copy / "alpaca_eval")
    shutil.rmtree(copy / "academic")
    text = "".join(
        path.read_text() for path in sorted((copy / "mt_bench").glob("judgments_*.jsonl"))
    )
    for path in (copy / "mt_bench").glob("judgments_*.jsonl"):
        path.unlink()
    (copy / "mt_bench" / "judgments_all.jsonl").write_text(text)
    (copy / "mt_bench" / "model_answer" / "mamba_0_5_dpo_ep3.jsonl").unlink()
    (copy / "mt_bench" / "judge_prompts.jsonl").rename(copy / "judge_prompts.jsonl")
    rows = published.recompute(copy)
    assert all(row.ok for row in rows)
    assert find(rows, "mamba_0_5_dpo_ep3", "judge prompts rendered").tolerance is None
    assert find(rows, "mamba_0_5_dpo_ep3", "mean").recomputed == 7.3125
    assert find(rows, "mamba_0_875_dpo_ep3", "judge prompts rendered").recomputed == 160


def test_a_crashing_rating_is_a_difference_not_a_crash(copy: Path) -> None:
    shutil.rmtree(copy / "alpaca_eval")
    shutil.rmtree(copy / "academic")
    path = copy / "mt_bench" / "judgments_mamba_0_5_dpo_ep3.jsonl"
    stored = list(read_jsonl(path))
    stored[0]["judgment"] = "Rating: [[\uff17]]"
    path.unlink()
    path.write_text("".join(json.dumps(row) + "\n" for row in stored))
    row = find(published.recompute(copy), "mamba_0_5_dpo_ep3", "ratings read")
    assert (row.recomputed, row.ok) == (159, False)


def test_a_broken_file_fails_its_own_row_only(copy: Path) -> None:
    shutil.rmtree(copy / "mt_bench")
    only(copy / "alpaca_eval", "claude-2", "alpaca-7b")
    path = copy / "alpaca_eval" / "alpaca-7b" / "annotations.json"
    path.unlink()
    path.write_text('[{"instruction": ')
    rows = published.recompute(copy)
    (bad,) = [row for row in rows if not row.ok]
    assert bad.model == "alpaca-7b"
    assert "annotations.json" in bad.note
    assert find(rows, "claude-2", "win_rate").ok


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[]", "holds no annotation"),
        ('[{"preference": 1.0}]', "row 1: instruction: Field required"),
        ("{}", "holds no annotation"),
    ],
)
def test_odd_annotations_are_a_failing_row(copy: Path, text: str, shown: str) -> None:
    shutil.rmtree(copy / "mt_bench")
    only(copy / "alpaca_eval", "claude-2")
    path = copy / "alpaca_eval" / "claude-2" / "annotations.json"
    path.unlink()
    path.write_text(text)
    (bad,) = [row for row in published.recompute(copy) if not row.ok]
    assert shown in bad.note


def test_a_row_without_a_preference_is_left_out_as_the_library_does(copy: Path) -> None:
    shutil.rmtree(copy / "mt_bench")
    only(copy / "alpaca_eval", "claude-2")
    path = copy / "alpaca_eval" / "claude-2" / "annotations.json"
    stored = json.loads(path.read_text())
    stored[5]["preference"] = None
    path.unlink()
    path.write_text(json.dumps(stored))
    rows = published.recompute(copy)
    assert find(rows, "claude-2", "n_total").recomputed == 804
    assert not find(rows, "claude-2", "win_rate").ok


def test_annotators_of_one_model_are_compared_each_with_its_own_leaderboard(copy: Path) -> None:
    path, stored = claude(copy)
    other = [row | {"annotator": "alpaca_eval_gpt4", "preference": 2} for row in stored]
    for name, rows in (("weighted_alpaca_eval_gpt4_turbo", stored), ("alpaca_eval_gpt4", other)):
        folder = path.parent / name
        folder.mkdir()
        (folder / path.name).write_text(json.dumps(rows))
    (copy / "alpaca_eval" / "alpaca_eval_gpt4_leaderboard.csv").write_text(
        ",win_rate\nclaude-2,99\n"
    )
    rows = published.recompute(copy)
    assert find(rows, "claude-2", "win_rate").ok
    wrong = find(rows, "claude-2 (alpaca_eval_gpt4)", "win_rate")
    assert (wrong.published, wrong.recomputed, wrong.ok) == (99.0, 100.0, False)
    assert [row for row in rows if not row.ok] == [wrong]


def test_a_draw_written_as_0_or_a_preference_as_text_counts_as_the_library_counts(
    copy: Path,
) -> None:
    path, stored = claude(copy)
    draws = [row["preference"] for row in stored].count(1.5)
    stored[3]["preference"], stored[4]["preference"] = 0, str(stored[4]["preference"])
    path.write_text(json.dumps(stored))
    rows = published.recompute(copy)
    assert find(rows, "claude-2", "n_draws").recomputed == draws + 1
    assert find(rows, "claude-2", "n_total").recomputed == 805


def test_a_folder_without_artefacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="nothing to recompute"):
        published.recompute(tmp_path)


def test_the_table_prints_every_row_with_its_numbers(rows: list[published.Figure]) -> None:
    from rich.console import Console

    console = Console(width=240, record=True, file=io.StringIO())
    published.show_figures(rows, console)
    text = console.export_text()
    assert "17.188240" in text
    assert "5.202" in text
    assert "0 fail" in text
    assert text.count(" ok ") == sum(row.tolerance is not None for row in rows)


def test_nothing_is_compared_when_a_figure_is_not_a_number() -> None:
    assert published.Sheet("x", "m").compare("f", float("nan"), 1.0, 0.1).tolerance is None
    assert not published.Sheet("x", "m").compare("f", 1.0, None, 0.1).ok
    assert not published.Sheet("x", "m").compare("f", 1.0, float("nan"), 0.1).ok


# -- order, doubles and mixtures -------------------------------------------------------------------


def claude(copy: Path) -> tuple[Path, list[dict[str, Any]]]:
    """claude-2's annotations, alone beside the official outputs."""
    shutil.rmtree(copy / "mt_bench")
    shutil.rmtree(copy / "academic")
    only(copy / "alpaca_eval", "claude-2", "gpt4_1106_preview")
    path = copy / "alpaca_eval" / "claude-2" / "annotations.json"
    stored = json.loads(path.read_text())
    path.unlink()
    return path, stored


@pytest.mark.parametrize("by", ["instruction", "output_2"])
def test_annotations_in_any_order_give_the_same_numbers(
    copy: Path, rows: list[published.Figure], by: str
) -> None:
    path, stored = claude(copy)
    stored.sort(key=lambda row: row[by])
    stored[0]["instruction"] = f" {stored[0]['instruction']}\n"
    path.write_text(json.dumps(stored))
    found = [row for row in published.recompute(copy) if row.model == "claude-2"]
    assert found == [row for row in rows if row.model == "claude-2"]
    lc = find(found, "claude-2", "length_controlled_winrate")
    assert lc.recomputed == pytest.approx(28.155, abs=0.16)


def test_annotations_in_another_order_are_refused_where_nothing_tells_it(copy: Path) -> None:
    path, stored = claude(copy)
    shutil.rmtree(copy / "alpaca_eval" / "gpt4_1106_preview")
    path.write_text(json.dumps(sorted(stored, key=lambda row: row["instruction"])))
    row = find(published.recompute(copy), "claude-2", "length_controlled_winrate")
    assert (row.recomputed, row.ok) == (None, False)
    assert "gpt4_1106_preview/model_outputs.json" in row.note


def test_the_802_rows_shuffled_read_as_they_do_in_order(
    copy: Path, rows: list[published.Figure]
) -> None:
    claude(copy)[0].parent.rename(copy / "alpaca_eval" / "gone")
    folder = copy / "alpaca_eval" / "alpaca-7b_verbose"
    folder.mkdir()
    source = Path(os.readlink(copy / "alpaca_eval" / "leaderboard.csv")).parent / folder.name
    stored = json.loads((source / "annotations.json").read_text())
    (folder / "annotations.json").write_text(json.dumps(stored[::-1]))
    shutil.copy(source / "model_outputs.json", folder)
    found = [row for row in published.recompute(copy) if row.model == folder.name]
    assert found == [row for row in rows if row.model == folder.name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [*rows[:-1], rows[0]], "rows 1 and 805 annotate the same instruction"),
        (lambda rows: [*rows[:-1], rows[-1] | {"generator_2": "other"}], "mixes generator_2"),
        (lambda rows: [*rows[:-1], rows[-1] | {"annotator": "other"}], "mixes annotator"),
        (
            lambda rows: [rows[0] | {"instruction": "Another version?"}, *rows[1:]],
            "1 of 805 instructions are not the benchmark's, the first: 'Another version?'",
        ),
    ],
)
def test_annotations_that_are_no_set_of_the_benchmark_give_no_number(
    copy: Path, change: Any, says: str
) -> None:
    path, stored = claude(copy)
    path.write_text(json.dumps(change(stored)))
    bad = [row for row in published.recompute(copy) if row.model == "claude-2" and not row.ok]
    assert [row.recomputed for row in bad] == [None]
    assert says in bad[0].note


MODEL = "mamba_0_5_dpo_ep3"


def mt_bench_alone(copy: Path) -> Path:
    shutil.rmtree(copy / "alpaca_eval")
    shutil.rmtree(copy / "academic")
    return copy / "mt_bench"


def change_rows(path: Path, change: Any) -> None:
    stored = list(read_jsonl(path))
    path.unlink()
    write_jsonl(path, change(stored))


def test_mt_bench_files_in_any_order_with_ids_as_text_give_the_same_numbers(
    copy: Path, rows: list[published.Figure]
) -> None:
    folder = mt_bench_alone(copy)

    def as_text(stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"question_id": str(row["question_id"])} for row in reversed(stored)]

    for file in (f"judgments_{MODEL}.jsonl", f"model_answer/{MODEL}.jsonl", "question.jsonl"):
        change_rows(folder / file, as_text)
    change_rows(folder / "reference_answers_gpt-4.jsonl", as_text)
    found = [row for row in published.recompute(copy) if row.model == MODEL]
    assert found == [row for row in rows if row.model == MODEL]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (
            f"judgments_{MODEL}.jsonl",
            lambda rows: [rows[0] | {"judge": ["gpt-4o", rows[0]["judge"][1]]}, *rows[1:]],
            "by gpt-4, gpt-4o are mixed",
        ),
        (
            f"model_answer/{MODEL}.jsonl",
            lambda rows: [rows[0] | {"choices": [{"turns": ["Once."]}]}, *rows[1:]],
            "has no answer in turn 2",
        ),
        ("reference_answers_gpt-4.jsonl", lambda rows: [*rows, rows[0]], "more than once"),
        ("judge_prompts.jsonl", lambda rows: [*rows, rows[0]], "more than once"),
        ("question.jsonl", lambda rows: [*rows, rows[0]], "more than once"),
    ],
)
def test_mixed_short_and_doubled_mt_bench_rows_are_refused(
    copy: Path, file: str, change: Any, says: str
) -> None:
    change_rows(mt_bench_alone(copy) / file, change)
    (bad,) = [row for row in published.recompute(copy) if row.model == MODEL]
    assert (bad.ok, bad.recomputed) == (False, None)
    assert says in bad.note


def test_turns_without_a_judgment_are_named(copy: Path) -> None:
    file = mt_bench_alone(copy) / f"judgments_{MODEL}.jsonl"
    change_rows(file, lambda rows: [row for row in rows if row["question_id"] != 90])
    row = find(published.recompute(copy), MODEL, "mean")
    assert not row.ok
    assert "2 absent: 90:1, 90:2" in row.note
