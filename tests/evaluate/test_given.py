"""Answers and verdicts that exist: published ones become a study with the published scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.load import load_study as load_results
from harness.cli.run import run_plan
from harness.engine.launch import plan_study
from harness.engine.stages import function_of
from harness.evaluate import alpaca_eval, given, mt_bench
from harness.records import HarnessError, read_jsonl, write_jsonl
from harness.study.study import load_study
from harness.study.tasks import GivenVerdictsTask
from tests import evaluation_files
from tests.tasks import stage_task

ROOT = Path(__file__).parents[2]
REFIT = 0.16
"""How near the reconstructed gamed baselines bring a length-controlled win rate."""


def report(folder: Path, table: str, evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The summary of every arm's only benchmark, by arm; the study ends in a report."""
    (folder / "t.csv").write_text(table)
    recipe = str(ROOT / "ablations" / "recipes" / "own_data.yaml")
    asked = {
        "name": "public",
        "recipe": recipe,
        "given": "t.csv",
        "set": {"evaluation": evaluation},
    }
    (folder / "public.yaml").write_text(yaml.safe_dump(asked))
    plan = plan_study(load_study(folder / "public.yaml"))
    assert not run_plan(plan, folder / "store", folder, executor="inline", workers=1)
    data = load_results(folder / "public", folder / "store")
    (name,) = evaluation["benchmarks"]
    assert "comparable with published scores: " in (folder / "public/report/report.md").read_text()
    return {run.label: dict(data.summary(run, 1, name)) for run in data.runs}


def test_public_annotations_become_a_report_with_published_scores(
    shared_data: Path, tmp_path: Path
) -> None:
    public = shared_data / "alpaca_eval"
    with open(public / "leaderboard.csv", encoding="utf-8", newline="") as handle:
        board = {row[""]: row for row in csv.DictReader(handle)}
    models = [path.parent.name for path in sorted(public.glob("*/annotations.json"))]
    models.remove("gpt4_1106_preview")
    assert len(models) == 5
    rows = [f"{name},1,{public / name / 'annotations.json'}\n" for name in models]
    evaluation = {
        "benchmarks": ["alpaca_eval"],
        "alpaca_eval": {
            "limit": 0,
            "instructions": str(public / "gpt4_1106_preview" / "model_outputs.json"),
            "gamed_baseline": str(public / "df_gamed_reconstructed.csv"),
        },
    }
    found = report(tmp_path, "arm,step,alpaca_eval_verdicts\n" + "".join(rows), evaluation)
    for name in models:
        wins, length = float(board[name]["win_rate"]), int(board[name]["avg_length"])
        assert found[name]["win_rate"] == pytest.approx(wins, abs=1e-6)
        assert found[name]["n_total"] == int(board[name]["n_total"])
        if found[name]["n_total"] == 805:
            assert found[name]["avg_length"] == length
            published = float(board[name]["length_controlled_winrate"])
            assert found[name]["length_controlled_win_rate"] == pytest.approx(published, abs=REFIT)
    # Its published fit joined 802 rows by position; joined by instruction it is another.
    assert found["alpaca-7b_verbose"]["n_total"] == 802
    assert found["alpaca-7b_verbose"]["length_controlled_win_rate"] == pytest.approx(5.20, abs=0.01)


def test_public_judgments_become_a_report_with_published_scores(
    shared_data: Path, tmp_path: Path
) -> None:
    public, models = shared_data / "mt_bench", ("mamba_0_5_dpo_ep3", "mamba_0_875_dpo_ep3")
    judgments = [row for name in models for row in read_jsonl(public / f"judgments_{name}.jsonl")]
    write_jsonl(tmp_path / "gpt-4_single.jsonl", judgments)
    table = "arm,step,model,mt_bench,mt_bench_verdicts\n"
    for name in models:
        answers = public / "model_answer" / f"{name}.jsonl"
        table += f"{name},1,{name},{answers},gpt-4_single.jsonl\n"
    files = {
        "questions": "question.jsonl",
        "references": "reference_answers_gpt-4.jsonl",
        "judge_prompts": "judge_prompts.jsonl",
    }
    named = {key: str(public / name) for key, name in files.items()}
    evaluation = {"benchmarks": ["mt_bench"], "mt_bench": {"limit": 0, **named}}
    found = report(tmp_path, table, evaluation)
    with open(public / "published.csv", encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            for figure in ("turn_1", "turn_2", "mean"):
                assert found[row["model"]][figure] == pytest.approx(float(row[figure]), abs=1e-9)


# -- what is refused -------------------------------------------------------------------------------
@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """Six instructions and three questions, laid out."""
    files = evaluation_files.write(tmp_path / "files")
    settings = {key: files[f"evaluation.mt_bench.{key}"] for key in mt_bench.BENCHMARK.files}
    told = mt_bench.MTBenchSettings(**{key: str(path) for key, path in settings.items()})
    mt_bench.prepare(told, tmp_path / "mt_bench")
    asked = alpaca_eval.AlpacaEvalSettings(instructions=str(tmp_path / "files/model_outputs.json"))
    alpaca_eval.prepare(asked, tmp_path / "alpaca_eval")
    return tmp_path


def annotated(folder: Path, **changes: object) -> list[dict[str, object]]:
    """An annotation of every instruction."""
    rows = json.loads((folder / "files" / "model_outputs.json").read_text())
    return [
        {
            "instruction": row["instruction"],
            "output_1": row["output"],
            "output_2": "This.",
            "generator_2": "m",
            "annotator": "a",
            "preference": 1.75,
        }
        | changes
        for row in rows
    ]


def read(folder: Path, rows: object, model: str = "") -> int:
    (folder / "a.json").write_text(json.dumps(rows))
    return given.alpaca_eval_answers(folder / "a.json", model, folder, folder)


def test_rows_are_aligned_by_instruction(benchmarks: Path) -> None:
    assert read(benchmarks, annotated(benchmarks)[::-1]) == 6
    written = json.loads((benchmarks / "alpaca_eval.json").read_text())
    assert [row["id"] for row in written] == list("012345")
    assert {row["preference"] for row in written} == {1.75}
    write_jsonl(benchmarks / "a.jsonl", annotated(benchmarks))
    (benchmarks / "b.json").write_text("\ufeff" + json.dumps(annotated(benchmarks)))
    for name in ("a.jsonl", "b.json"):
        assert given.alpaca_eval_answers(benchmarks / name, "", benchmarks, benchmarks) == 6


def test_files_of_another_benchmark_baseline_or_of_two_models_are_refused(benchmarks: Path) -> None:
    good = annotated(benchmarks)
    for rows, words in (
        ([*good[:5], {**good[5], "instruction": "Other?"}], "1 of 6 instructions are not the"),
        (annotated(benchmarks, output_1="Else."), r"6 of 6 annotations are against another output"),
        ([*good[:5], {**good[5], "generator_2": "n"}], "holds generator_2 m, n; name one in colum"),
        ([*good, good[0]], r"a.json: rows 1 and 7 annotate the same instruction"),
        ([*good[:5], {**good[5], "annotator": "b"}], "a.json: mixes annotator a, b"),
        ([*good[:5], "text"], "row 6: a row is an object .* this is a str"),
        ([*good[:5], {**good[5], "output_2": None}], "a.json: row 6: output_2: Input should be a"),
        ([*good[:5], {**good[5], "preference": 0.3}], "row 6: preference 0.3 is no number from 1"),
    ):
        with pytest.raises(HarnessError, match=words):
            read(benchmarks, rows)
    with pytest.raises(HarnessError, match="no row of generator_2 'x'; it holds m"):
        read(benchmarks, good, "x")
    assert read(benchmarks, good, "m") == 6


def test_a_preference_of_0_is_a_draw_and_one_as_text_is_a_number(benchmarks: Path) -> None:
    rows = [
        row | {"preference": value}
        for row, value in zip(
            annotated(benchmarks), [0, "2.0", None, -1, float("nan"), 1], strict=True
        )
    ]
    read(benchmarks, rows)
    written = json.loads((benchmarks / "alpaca_eval.json").read_text())
    assert [row["preference"] for row in written] == [1.5, 2.0, None, None, None, 1.0]


def judgment(question: int, turn: int, text: Any = "[[7]]") -> dict[str, Any]:
    shown = f"Rate this. What is {question}? And what is {question + 1}? It is 101. It is 102."
    said = {"judge": ["gpt-4", "single-v1"], "user_prompt": shown, "judgment": text}
    return {"question_id": question, "turn": turn, "model": "m"} | said


def scored(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    write_jsonl(folder / "j.jsonl", rows)
    settings = GivenVerdictsTask(benchmark="mt_bench", path=str(folder / "j.jsonl"), model="")
    out = folder / "out"
    out.mkdir(exist_ok=True)
    task = stage_task("k", "verdicts.given", settings.model_dump(), {"benchmarks": folder}, out)
    function_of("verdicts.given")(task)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_what_was_not_judged_or_cannot_be_read_has_no_score(benchmarks: Path) -> None:
    found = scored(benchmarks, [judgment(81, 1), judgment(81, 2, "no verdict")])
    assert (found["mean"], found["scored"], found["expected"]) == (7.0, 1, 6)
    assert found["statuses"] == {"ok": 1, "unparsed": 1, "no_answer": 4}
    for rows, words in (
        (
            [judgment(81, 1), judgment(81, 1)],
            "question 81:1 occurs more than once; keep one of each",
        ),
        ([judgment(9, 1)], "1 of 1 questions are not the benchmark's, the first:.*9:1"),
        ([{"question_id": 81, "model": "m"}], "row 1: turn: Field required"),
        ([judgment(81, 1), judgment(81, 2) | {"judge": ["o", "p"]}], "judgments of gpt-4, o are"),
        ([judgment(81, 1) | {"judge": "gpt-4"}], "row 1: judge: Input should be a valid list"),
        ([judgment(81, 1) | {"g1_winner": "tie"}], "judgments of pairs"),
        (
            [judgment(81, 1) | {"user_prompt": "81\u306f?"}],
            "question 81:1: the judge was shown anothe",
        ),
    ):
        with pytest.raises(HarnessError, match=words):
            scored(benchmarks, rows)


def test_judgments_by_other_reference_answers_are_scored_and_told(benchmarks: Path) -> None:
    shown = "What is 101?\nAnd  what is 102? It is 101. It is 103."
    write_jsonl(
        benchmarks / "j.jsonl", [judgment(101, 1), judgment(101, 2) | {"user_prompt": shown}]
    )
    settings = GivenVerdictsTask(benchmark="mt_bench", path=str(benchmarks / "j.jsonl"), model="")
    place = {"benchmarks": benchmarks}
    task = stage_task("k", "verdicts.given", settings.model_dump(), place, benchmarks)
    outcome = function_of("verdicts.given")(task)
    (told,) = [one for one in outcome.left_out if one.what == "given mt_bench judgments"]
    assert (told.count, told.of, told.examples) == (1, 2, ("101:2",))
    assert outcome.summary["statuses"]["ok"] == 2


def test_judgments_as_pandas_writes_them_are_the_same(benchmarks: Path) -> None:
    rows = [judgment(81, 1), judgment(81, 2, "[[9]]"), judgment(141, 1, None)]
    floats = [
        row | {"question_id": float(row["question_id"]), "turn": float(row["turn"])} for row in rows
    ]
    found = scored(benchmarks, floats)
    assert (found["turn_1"], found["turn_2"]) == (7.0, 9.0)
    assert found["statuses"] == {"ok": 2, "unparsed": 1, "no_answer": 3}
    assert found["fastchat_reads_otherwise"] == []


def test_answers_of_another_form_or_of_other_questions_are_refused(benchmarks: Path) -> None:
    def read_answers(*rows: dict[str, Any]) -> int:
        write_jsonl(benchmarks / "a.jsonl", rows)
        return given.mt_bench_answers(benchmarks / "a.jsonl", "", benchmarks, benchmarks)

    def answer(question: Any, *turns: Any) -> dict[str, Any]:
        return {"question_id": question, "choices": [{"index": 0, "turns": list(turns)}]}

    assert read_answers(answer("81", "Ja.", None), answer(101.0, "Yes.", "No.")) == 2
    written = mt_bench.read_answers(benchmarks / "mt_bench.jsonl")
    assert mt_bench.turns_of(written[81], 2) == [("Ja.", "ok"), ("", "no_answer")]
    assert set(written) == {81, 101}
    for row, words in (
        ({"question_id": 81, "text": "Old."}, "row 1: choices: Field required"),
        (
            answer(81) | {"choices": [{"turns": "Yes."}]},
            "row 1: choices.0.turns: Input should be a",
        ),
        (answer(81, {"content": "Yes."}), "choices.0.turns.0: Input should be a valid str"),
        (answer(81, "Yes.") | {"choices": [{"turns": ["Yes."]}] * 2}, "wants one choice"),
        (answer(1, "Yes."), "1 of 1 questions are not the benchmark's"),
    ):
        with pytest.raises(HarnessError, match=words):
            read_answers(row)
