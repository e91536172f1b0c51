"""Answers to MT-Bench, AlpacaEval and the held-out prompts, in the libraries' formats; the held-out
scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.evaluate import heldout
from harness.model import generate as g
from harness.records import Prompt, Response, StageTask, read_jsonl, write_jsonl
from harness.stages import answer
from tests import tiny
from tests.tasks import stage_task

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now another."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who is it?", "Why?"]},
    {"question_id": 141, "category": "stem", "turns": ["What is heat?", "And cold?"]},
]
INSTRUCTIONS = [
    {
        "id": str(i),
        "instruction": f"Name {i} things",
        "output": "ref",
        "generator": "base",
        "dataset": "d",
    }
    for i in range(3)
]
SETTINGS = {
    "answers": {
        "mt_bench": {"max_new_tokens": 6},
        "alpaca_eval": {"max_new_tokens": 6, "temperature": 0.0},
    },
    "heldout_samples": 2,
    "heldout_max_new_tokens": 5,
    "generation_batch": 8,
    "max_prompt_length": 64,
}


def _prompt(name: str, text: str) -> Prompt:
    return Prompt(name, ({"role": "user", "content": text},), "good", "bad")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    for name in ("benchmarks/mt_bench", "benchmarks/alpaca_eval", "data"):
        (root / name).mkdir(parents=True)
    write_jsonl(root / "benchmarks/mt_bench/question.jsonl", QUESTIONS)
    (root / "benchmarks/alpaca_eval/eval.json").write_text(json.dumps(INSTRUCTIONS))
    write_jsonl(root / "data/heldout.jsonl", [_prompt("h0", "Hi"), _prompt("h1", "Hello there")])
    write_jsonl(root / "data/ood.jsonl", [_prompt("o0", "Odd one")])
    return {
        "policy": tiny.checkpoint(root / "policy"),
        "benchmarks": root / "benchmarks",
        "data": root / "data",
    }


def _task(out: Path, inputs: dict[str, Path], **changes) -> StageTask:
    out.mkdir(exist_ok=True)
    return stage_task("k", "answer", SETTINGS | changes, inputs, out, {"device": "cpu"})


@pytest.fixture(scope="module")
def answered(inputs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("answered")
    assert answer.run(_task(out, inputs)).errors == 0
    return out


def test_files_have_the_libraries_formats(answered):
    rows = list(read_jsonl(answered / "mt_bench.jsonl"))
    assert [row["question_id"] for row in rows] == [81, 101, 141]
    for row in rows:
        assert set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp", "status"}
        assert len(row["choices"][0]["turns"]) == len(row["status"]) == 2
        assert row["choices"][0]["index"] == 0
        assert row["tstamp"] == 0
    outputs = json.loads((answered / "alpaca_eval.json").read_text())
    assert [(row["id"], row["instruction"], row["dataset"]) for row in outputs] == [
        (r["id"], r["instruction"], "d") for r in INSTRUCTIONS
    ]
    assert all(
        set(row) == {"id", "instruction", "output", "generator", "dataset", "status"}
        for row in outputs
    )


def test_heldout_rows_are_prompts_times_greedy_and_samples(answered):
    rows = [(row["prompt_id"], row["sample"]) for row in read_jsonl(answered / "heldout.jsonl")]
    assert rows == [(name, sample) for name in ("h0", "h1", "o0") for sample in (0, 1, 2)]


def test_reruns_are_byte_identical(answered, inputs, tmp_path):
    answer.run(_task(tmp_path / "again", inputs))
    for name in ("mt_bench.jsonl", "alpaca_eval.json", "heldout.jsonl"):
        assert (answered / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_another_seed_changes_what_is_sampled_and_nothing_greedy(answered, inputs, tmp_path):
    out = tmp_path / "seed1"
    answer.run(_task(out, inputs, seed=1))

    def turns(folder):
        return {
            row["question_id"]: row["choices"][0]["turns"]
            for row in read_jsonl(folder / "mt_bench.jsonl")
        }

    assert turns(answered)[81] != turns(out)[81]
    assert turns(answered)[101] == turns(out)[101]
    assert (answered / "alpaca_eval.json").read_bytes() == (out / "alpaca_eval.json").read_bytes()
    first, second = (
        {(r["prompt_id"], r["sample"]): r["text"] for r in read_jsonl(f / "heldout.jsonl")}
        for f in (answered, out)
    )
    assert all((first[key] == second[key]) == (key[1] == 0) for key in first)


def _requests(monkeypatch) -> list[list[g.GenerationRequest]]:
    calls: list[list[g.GenerationRequest]] = []
    real = g.generate

    def spy(policy, requests, *, batch_size, engine):
        calls.append(list(requests))
        return real(policy, requests, batch_size=batch_size)

    monkeypatch.setattr(answer, "generate", spy)
    return calls


def test_first_turns_go_together_then_second_turns(inputs, tmp_path, monkeypatch):
    calls = _requests(monkeypatch)
    answer.run(_task(tmp_path / "out", inputs))
    assert [len(call) for call in calls] == [3 + 3 + 3 * 3, 3]
    assert [request.temperature for request in calls[0][:3]] == [0.7, 0.0, 0.1]
    assert [request.temperature for request in calls[1]] == [0.7, 0.0, 0.1]
    assert {request.temperature for request in calls[0][3:6]} == {0.0}


def test_the_second_turn_reads_the_first_answer(inputs, tmp_path, monkeypatch):
    calls = _requests(monkeypatch)
    answer.run(_task(tmp_path / "out", inputs, sets=["mt_bench"]))
    tokenizer = answer.load_policy(inputs["policy"]).tokenizer
    rows = list(read_jsonl(tmp_path / "out" / "mt_bench.jsonl"))
    for row, question, request in zip(rows, QUESTIONS, calls[1], strict=True):
        first = row["choices"][0]["turns"][0]
        turns = [
            ("user", question["turns"][0]),
            ("assistant", first),
            ("user", question["turns"][1]),
        ]
        messages = [{"role": role, "content": content} for role, content in turns]
        assert list(request.prompt_ids) == answer.encode_prompt(tokenizer, messages)


def test_alpaca_eval_temperature_is_a_setting(inputs, tmp_path, monkeypatch):
    calls = _requests(monkeypatch)
    answer.run(
        _task(
            tmp_path / "out",
            inputs,
            sets=["alpaca_eval"],
            answers={"alpaca_eval": {"max_new_tokens": 4, "temperature": 0.7}},
        )
    )
    assert {request.temperature for request in calls[0]} == {0.7}


def test_a_failed_first_turn_fails_the_second_and_is_never_text(inputs, tmp_path, monkeypatch):
    real = g.generate
    calls = []

    def fails(policy, requests, *, batch_size, engine):
        calls.append(len(requests))
        made = real(policy, requests, batch_size=batch_size)
        return [g.Generation((), "", "error", "injected"), *made[1:]] if len(calls) == 1 else made

    monkeypatch.setattr(answer, "generate", fails)
    outcome = answer.run(_task(tmp_path / "out", inputs))
    assert outcome.errors == 2
    assert calls[1] == 2
    row = next(iter(read_jsonl(tmp_path / "out" / "mt_bench.jsonl")))
    assert row["status"] == ["error", "error"]
    assert row["choices"][0]["turns"] == ["", ""]
    assert "ERROR" not in (tmp_path / "out" / "mt_bench.jsonl").read_text().replace('"status"', "")


def test_heldout_prompts_over_the_limit_have_no_answer(inputs, tmp_path):
    tokenizer = answer.load_policy(inputs["policy"]).tokenizer
    limit = len(answer.encode_prompt(tokenizer, [{"role": "user", "content": "Hi"}]))
    outcome = answer.run(_task(tmp_path / "out", inputs, max_prompt_length=limit))
    statuses = {
        (row["prompt_id"], row["sample"]): row["status"]
        for row in read_jsonl(tmp_path / "out" / "heldout.jsonl")
    }
    assert {name for (name, _), status in statuses.items() if status == "no_answer"} == {"h1", "o0"}
    assert outcome.errors == 0
    (left,) = (one for one in outcome.left_out if one.reason == "no_answer")
    assert (left.what, left.count, left.of) == ("heldout answers", 6, 9)
    assert all(
        row["status"] != ["no_answer"] * 2
        for row in read_jsonl(tmp_path / "out" / "mt_bench.jsonl")
    )


# Held-out scores
# --------------------------------------------------------------------------------------------


def _oracle_by_length(monkeypatch):
    monkeypatch.setattr(
        "harness.pocket.oracle.reward", lambda messages, text, worth: len(text) / 10
    )


def _score(
    tmp_path: Path, inputs: dict[str, Path], responses: list[Response], **settings
) -> tuple[dict, object]:
    answers, out = tmp_path / "answers", tmp_path / "scores"
    answers.mkdir()
    out.mkdir()
    write_jsonl(answers / "heldout.jsonl", responses)
    task = stage_task(
        "k",
        "heldout",
        {"ranker": {"kind": "oracle"}, "judge": None} | settings,
        {"answer": answers, "data": inputs["data"]},
        out,
    )
    outcome = heldout.run(task)
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    return {(row["benchmark"], row["item"], row["metric"]): row for row in rows}, outcome


def test_alpaca_evals_answers_are_ranked_against_the_baselines_when_asked(tmp_path, monkeypatch):
    answer, benchmarks, data, out = (
        tmp_path / name for name in ("answer", "benchmarks", "data", "out")
    )
    for folder in (answer, benchmarks / "alpaca_eval", data, out):
        folder.mkdir(parents=True)
    (answer / "heldout.jsonl").touch()
    (data / "heldout.jsonl").touch()
    baseline = [
        {"id": str(i), "instruction": f"do {i}", "output": "four", "generator": "b"}
        for i in range(4)
    ]
    (benchmarks / "alpaca_eval" / "eval.json").write_text(json.dumps(baseline))
    given = [
        ("0", "ninety", "ok"),
        ("1", "four", "ok"),
        ("2", "x", "truncated"),
    ]  # the fourth has no answer
    (answer / "alpaca_eval.json").write_text(
        json.dumps([{"id": i, "output": text, "status": status} for i, text, status in given])
    )
    _oracle_by_length(monkeypatch)  # a tenth of the length
    settings = {"ranker": {"kind": "oracle"}, "rank_alpaca_eval": True}
    heldout.run(
        stage_task(
            "k",
            "heldout",
            settings,
            {"answer": answer, "benchmarks": benchmarks, "data": data},
            out,
            {},
        )
    )
    rows = {row["item"]: row for row in pq.read_table(out / "scores.parquet").to_pylist()}
    assert [rows[name]["value"] for name in "012"] == [pytest.approx(0.2), 0.0, pytest.approx(-0.3)]
    assert (rows["3"]["value"], rows["3"]["status"]) == (None, "no_answer")
    assert {(row["benchmark"], row["metric"]) for row in rows.values()} == {
        ("ranker_alpaca_eval", "reward_difference")
    }


def test_heldout_scores_by_hand(tmp_path, inputs, monkeypatch):
    """Reward is a tenth of the length here: greedy 0.2; samples 0.4 and 0.1, mean 0.25. A failed
    sample takes its mean away.
    """
    _oracle_by_length(monkeypatch)
    responses = [
        Response("h0", 0, "ab", (1, 2)),
        Response("h0", 1, "abcd", (1,)),
        Response("h0", 2, "a", (1,), "truncated"),
        Response("h1", 0, "abc", (1,)),
        Response("h1", 1, "", (), "error"),
        Response("h1", 2, "abc", (1,)),
    ]
    rows, outcome = _score(tmp_path, inputs, responses)
    assert len(rows) == 6
    assert rows["heldout", "h0", "reward"]["value"] == pytest.approx(0.2)
    assert rows["heldout", "h0", "reward_sampled"]["value"] == pytest.approx(0.25)
    assert rows["heldout", "h1", "reward"]["value"] == pytest.approx(0.3)
    assert (
        rows["heldout", "h1", "reward_sampled"]["value"],
        rows["heldout", "h1", "reward_sampled"]["status"],
    ) == (None, "error")
    assert (
        rows["heldout_ood", "o0", "reward"]["value"],
        rows["heldout_ood", "o0", "reward"]["status"],
    ) == (None, "no_answer")
    assert rows["heldout", "h0", "reward"]["cluster"] == "h0"
    assert outcome.errors == 1


def test_scores_name_the_ranker_and_never_a_path(tmp_path, inputs, monkeypatch):
    _oracle_by_length(monkeypatch)
    ranker = {
        "kind": "oracle",
        "model": "/somewhere/model",
        "model_fingerprint": "0123456789abcdef",
    }
    rows, _ = _score(tmp_path, inputs, [Response("h0", 0, "ab", (2,))], ranker=ranker)
    assert {row["judge"] for row in rows.values()} == {"oracle:0123456789ab"}


def test_an_empty_answer_is_an_answer(tmp_path, inputs, monkeypatch):
    _oracle_by_length(monkeypatch)
    rows, _ = _score(tmp_path, inputs, [Response("h0", 0, "", (2,))])
    assert rows["heldout", "h0", "reward"]["value"] == 0.0
