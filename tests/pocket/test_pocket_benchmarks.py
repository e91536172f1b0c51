"""The pocket benchmarks are in the libraries' own formats, and lm-eval loads and scores the six
tasks.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.pocket import benchmarks, language, oracle, wordings
from harness.records import read_jsonl
from tests.tasks import stage_task

JUDGE = {"noise": 0.0, "position_bias": 0.4, "length_bias": 0.0, "seed": 0}


ALL = {name: {"limit": 0} for name in ("mt_bench", "alpaca_eval", "academic")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmarks")
    benchmarks.run(stage_task("k", "benchmarks.pocket", {"limits": ALL}, {}, out))
    return out


def test_mt_bench_has_24_questions_of_two_readable_turns_and_references_where_fastchat_wants_them(
    folder: Path,
) -> None:
    questions = list(read_jsonl(folder / "mt_bench" / "question.jsonl"))
    assert [row["question_id"] for row in questions] == list(range(81, 105))
    assert {row["category"] for row in questions[:8]} == set(wordings.CATEGORIES)
    references = {
        row["question_id"]: row["choices"][0]["turns"]
        for row in read_jsonl(folder / "mt_bench" / "reference_answer.jsonl")
    }
    assert set(references) == {
        row["question_id"]
        for row in questions
        if row["category"] in ("math", "reasoning", "coding")
    }
    for row in questions:
        first = {"role": "user", "content": row["turns"][0]}
        conversation = [
            first,
            {"role": "assistant", "content": "?"},
            {"role": "user", "content": row["turns"][1]},
        ]
        if row["question_id"] in references:
            assert oracle.reward([first], references[row["question_id"]][0]) == 1.0
            assert oracle.reward(conversation, references[row["question_id"]][1]) == 1.0
        assert language.parse_messages(conversation) is not None


def test_judge_prompts_take_fastchats_placeholders(folder: Path) -> None:
    prompts = {row["name"]: row for row in read_jsonl(folder / "mt_bench" / "judge_prompts.jsonl")}
    single = {"single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"}
    assert set(prompts) == single
    one = prompts["single-math-v1"]["prompt_template"].format(
        question="Q", answer="A", ref_answer_1="R"
    )
    assert "[The Start of Reference Answer]\nR\n[The End of Reference Answer]" in one
    assert "[[rating]]" in one
    assert "[The Start of Assistant's Answer]\nA\n[The End of Assistant's Answer]" in one
    two = prompts["single-math-v1-multi-turn"]["prompt_template"]
    filled = two.format(
        question_1="Q1",
        question_2="Q2",
        answer_1="A1",
        answer_2="A2",
        ref_answer_1="R1",
        ref_answer_2="R2",
    )
    assert (
        filled.index("### Assistant A:\nA1")
        < filled.index("### User:\nQ2", filled.index("A1"))
        < filled.index("### Assistant A:\nA2")
    )


def test_alpaca_eval_rows_are_128_and_the_baseline_is_neither_perfect_nor_uniform(
    folder: Path,
) -> None:
    rows = json.loads((folder / "alpaca_eval" / "eval.json").read_text())
    assert [row["id"] for row in rows] == [str(i) for i in range(128)]
    assert set(rows[0]) == {"id", "instruction", "output", "generator", "dataset"}
    rewards = [
        oracle.reward([{"role": "user", "content": row["instruction"]}], row["output"])
        for row in rows
    ]
    assert 0.4 < statistics.fmean(rewards) < 0.65
    assert statistics.stdev(len(row["output"]) for row in rows) > 8


def test_gamed_rows_are_judged_verbose_and_concise_wordings_in_the_librarys_columns(
    folder: Path,
) -> None:
    instructions = json.loads((folder / "alpaca_eval" / "eval.json").read_text())
    with open(folder / "alpaca_eval" / "df_gamed.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == [
        "model",
        "preference",
        "index",
        "instruction_difficulty",
        "std_delta_len",
        "not_gamed_baseline",
    ]
    assert [int(row["index"]) for row in rows] == [*range(128), *range(128)]
    assert {row["not_gamed_baseline"] for row in rows} == {"False"}
    assert all(0 < float(row["preference"]) < 1 for row in rows)
    for half in (rows[:128], rows[128:]):
        assert statistics.stdev(float(row["std_delta_len"]) for row in half) == pytest.approx(1.0)
    verbose, concise = (
        statistics.fmean(float(row["std_delta_len"]) for row in half)
        for half in (rows[:128], rows[128:])
    )
    assert verbose < 0 < concise
    difficulty = [float(row["instruction_difficulty"]) for row in rows]
    assert (
        difficulty[:128]
        == difficulty[128:]
        == benchmarks.difficulties(instructions, {**JUDGE, "noise": 0.3, "position_bias": 0.05})
    )
    assert abs(statistics.fmean(difficulty)) < 0.2
    assert max(map(abs, difficulty)) <= 3.0


def test_a_gamed_preference_is_the_mean_over_both_orders() -> None:
    row = {"instruction": "Run reverse on: fox oak red.", "output": "red oak fox is the answer."}
    chatty = "red oak fox, and I am so glad that you asked."

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = (logistic(-1.5 - 0.4) + logistic(-1.5 + 0.4)) / 2
    assert benchmarks.judged(row, chatty, JUDGE) == pytest.approx(expected)
    rows = benchmarks.gamed_rows([row, {"instruction": "What is 3 plus 4?", "output": "7."}], JUDGE)
    assert rows[0]["model"] == "pocket_baseline_verbose"
    assert rows[0]["preference"] == pytest.approx(expected)


def test_difficulty_is_higher_where_the_baseline_is_better() -> None:
    ask = "Run reverse on: fox oak red."
    rows = [
        {"instruction": ask, "output": text}
        for text in ("red oak fox: checked twice.", "red oak fox.", "fox.")
    ]
    best, plain, wrong = benchmarks.difficulties(rows, JUDGE)
    assert best > plain > wrong


def test_limits_cut_the_sets(tmp_path: Path) -> None:
    limits = {"mt_bench": 8, "alpaca_eval": 16, "academic": 5}
    settings = {"limits": {name: {"limit": limit} for name, limit in limits.items()}}
    benchmarks.run(stage_task("k", "benchmarks.pocket", settings, {}, tmp_path))
    assert len(list(read_jsonl(tmp_path / "mt_bench" / "question.jsonl"))) == 8
    assert len(json.loads((tmp_path / "alpaca_eval" / "eval.json").read_text())) == 16
    assert len(list(read_jsonl(tmp_path / "academic" / "eq_bench_test.jsonl"))) == 5


def test_academic_files_name_their_data_by_relative_paths_and_hold_60_items(folder: Path) -> None:
    tasks = json.loads((folder / "academic" / "tasks.json").read_text())
    assert list(tasks) == sorted(benchmarks.FORMS)
    for column, entry in tasks.items():
        text = (folder / "academic" / entry["file"]).read_text()
        assert f"test: {column}_test.jsonl" in text
        assert str(folder) not in text
        rows = list(read_jsonl(folder / "academic" / f"{column}_test.jsonl"))
        assert len({row["id"] for row in rows}) == 60


def test_right_choices_are_right_and_the_others_wrong() -> None:
    rng = np.random.default_rng(0)
    task = language.parse("Run reverse on: fox oak red.")
    assert task is not None
    row = benchmarks.arc(task, "Run reverse on: fox oak red.", rng)
    right = row["choices"]["label"].index(row["answerKey"])
    messages = [{"role": "user", "content": row["question"]}]
    assert [oracle.is_correct(messages, text) for text in row["choices"]["text"]] == [
        i == right for i in range(4)
    ]


class _Oracle:
    """Answers lm-eval as a model that knows the language would: generates and prefers the right
    answer.
    """

    def __init__(self, right: bool) -> None:
        self.right = right

    def answer(self, question: str) -> str:
        task = language.parse(question)
        assert task is not None
        content = language.solve(task) if self.right else language.near_misses(task)[0]
        return wordings.STYLES[1].render(content)


@pytest.mark.parametrize("right", [True, False])
def test_lm_eval_scores_a_model_that_is_always_right_at_100(
    folder: Path, tmp_path: Path, right: bool
) -> None:
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from harness.evaluate.academic_run import materialise

    oracle_model = _Oracle(right)

    class Knower(LM):  # type: ignore[misc]
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [oracle_model.answer(r.args[0].rsplit("\n\n", 1)[-1].strip()) for r in requests]

        def loglikelihood(
            self, requests: Any, disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            found = []
            for request in requests:
                context, choice = request.args
                messages = [{"role": "user", "content": context.rsplit("\n\n", 1)[-1].strip()}]
                good = oracle.is_correct(messages, choice.strip())
                found.append((-1.0 if good == right else -60.0, False))
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError

    materialise(folder / "academic", tmp_path)
    tasks = json.loads((folder / "academic" / "tasks.json").read_text())
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    loaded = {
        entry["task"]: manager.load([entry["task"]])["tasks"][entry["task"]]
        for entry in tasks.values()
    }
    results = evaluate(
        Knower(), {"tasks": loaded, "groups": {}, "group_map": {}}, limit=6, bootstrap_iters=0
    )["results"]
    for entry in tasks.values():
        value = results[entry["task"]][f"{entry['metric']},{entry['filter']}"] * entry["scale"]
        if right:
            assert value == pytest.approx(100.0, abs=1.0), entry["task"]
        else:
            assert value < (90.0 if entry["task"] == "pocket_eq_bench" else 35.0), entry["task"]
