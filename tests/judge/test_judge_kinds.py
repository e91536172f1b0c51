"""Endpoints of every kind that makers offer: whole MT-Bench and AlpacaEval by the libraries' own
code give the same verdicts with one call each, or one message that says what to set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest

from harness.evaluate import alpaca_eval, mt_bench
from harness.judge.journal import JUDGMENTS_NAME
from harness.pocket import benchmarks, oracle
from harness.records import HarnessError, read_jsonl, write_jsonl
from harness.study.sections import JudgeSettings
from tests.faulty_judge import FaultyJudge, serve
from tests.tasks import settings_of, stage_task

QUESTIONS, INSTRUCTIONS = 8, 16
TEXT = {"verdict": "text"}
NEW = TEXT | {"temperature": None, "max_tokens_as": "max_completion_tokens"}
KINDS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "plain": ((), {"verdict": "logprobs"}),
    "vllm": ((), {"annotator": "weighted_alpaca_eval_vllm_llama3_70b"}),
    "without log-probabilities": (("no-logprobs",), TEXT),
    "of a new API": (("refuses-logprobs", "new-parameters"), NEW | {"reasoning_effort": "low"}),
    "thinks in its text": (("thinks",), TEXT),
    "thinks apart": (("thinks-apart", "new-parameters"), NEW),
    "parts": (("parts",), {"verdict": "logprobs"}),
    "parts and text": (("parts", "thinks-apart"), TEXT),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pocket world's questions, and answers good and bad."""
    root = tmp_path_factory.mktemp("kinds")
    limits = {"mt_bench": {"limit": QUESTIONS}, "alpaca_eval": {"limit": INSTRUCTIONS}}
    found = {"benchmarks": root / "benchmarks", "answer": root / "answer"}
    for folder in found.values():
        folder.mkdir()
    benchmarks.run(
        stage_task("k", "benchmarks.pocket", {"limits": limits}, {}, found["benchmarks"])
    )
    rows = json.loads((found["benchmarks"] / "alpaca_eval" / "eval.json").read_text())
    for number, row in enumerate(rows):
        row["output"] = "nothing" if number % 2 else f"checked {row['output']}"
    (found["answer"] / "alpaca_eval.json").write_text(json.dumps(rows))
    turns = []
    for row in read_jsonl(found["benchmarks"] / "mt_bench" / "question.jsonl"):
        first = oracle.reference([{"role": "user", "content": row["turns"][0]}])
        answers = [first, "nothing"] if row["question_id"] % 2 else ["nothing", first]
        choices = [{"index": 0, "turns": answers}]
        turns.append({"question_id": row["question_id"], "choices": choices})
    write_jsonl(found["answer"] / "mt_bench.jsonl", [row | {"status": ["ok"] * 2} for row in turns])
    return found


def judged(
    benchmark: str, server: FaultyJudge, files: Mapping[str, Path], out: Path, **judge: Any
) -> dict[tuple[str, int], float | None]:
    """(item, repeat) → score, by a benchmark's whole stage."""
    fields = {"kind": "openai", "base_url": server.base_url, "model": "judge-1"} | judge
    asked = JudgeSettings.model_validate(fields)
    name = alpaca_eval.annotators.annotator_of(asked, "weighted_alpaca_eval_gpt4_turbo")
    module, own = {
        "mt_bench": (mt_bench, {"reference_set": "pocket"}),
        "alpaca_eval": (alpaca_eval, {"annotator": name}),
    }[benchmark]
    stage = f"judge.{benchmark}"
    out.mkdir(parents=True)
    settings = settings_of(stage, {"judge": asked, **own})
    runtime = {"judge_backoff_s": 0.01, "judge_timeout_s": 5.0, "judge_deadline_s": 20.0}
    module.run(stage_task("k", stage, settings, files, out, runtime))
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    metric = {"mt_bench": "rating", "alpaca_eval": "win_rate"}[benchmark]
    return {(r["item"], r["repeat"]): r["value"] for r in rows if r["metric"] == metric}


@pytest.mark.parametrize("kind", KINDS)
def test_both_benchmarks_read_every_kind_with_one_call_a_verdict(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    like, judge = KINDS[kind]
    expected = {"mt_bench": 2 * QUESTIONS, "alpaca_eval": INSTRUCTIONS}
    for benchmark, calls in expected.items():
        with serve({"noise": 0.0}) as plain:
            right = judged(benchmark, plain, files, tmp_path / f"{benchmark}-plain")
        with serve({"noise": 0.0}, like=like) as server:
            found = judged(benchmark, server, files, tmp_path / benchmark, **judge)
            assert server.counters["calls"] == calls
        if benchmark == "alpaca_eval" and judge.get("verdict") == "text":
            right = {key: 100.0 * (value > 50.0) for key, value in right.items()}  # type: ignore[operator]
        assert found == right
        summary = json.loads((tmp_path / benchmark / "summary.json").read_text())
        says = "text" if judge.get("verdict") == "text" else "log-probabilities"
        assert benchmark == "mt_bench" or summary["verdict"] == says
        assert len(set(right.values())) > 1, "a judge that says one thing shows nothing"


@pytest.mark.parametrize(
    ("like", "judge", "benchmark", "says"),
    [
        ("no-logprobs", {}, "alpaca_eval", "judge.verdict: text"),
        ("refuses-logprobs", {}, "alpaca_eval", "judge.verdict"),
        ("thinks", {}, "alpaca_eval", "thinks before it answers"),
        ("new-parameters", TEXT, "alpaca_eval", "judge.temperature"),
        ("new-parameters", {}, "mt_bench", "judge.temperature"),
        ("streams-only", TEXT, "alpaca_eval", "stream"),
        ("streams-only", {}, "mt_bench", "stream"),
    ],
)
def test_what_cannot_be_read_ends_at_once_with_the_key_to_set(
    like: str,
    judge: dict[str, Any],
    benchmark: str,
    says: str,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    with serve(like=(like,)) as server:
        with pytest.raises(HarnessError, match=says):
            judged(benchmark, server, files, tmp_path / "out", **judge)
        assert server.counters["calls"] <= 20, "up to eight at once, each renamed once"


def test_an_annotator_that_reads_otherwise_than_the_judge_is_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    with serve() as server, pytest.raises(HarnessError, match="reads text, but judge"):
        settings = {"verdict": "logprobs", "annotator": "alpaca_eval_gpt4"}
        judged("alpaca_eval", server, files, tmp_path / "out", **settings)


def test_the_official_client_meets_the_same_refusals() -> None:
    said = [{"role": "user", "content": "Judge."}]
    with serve(like=("new-parameters", "refuses-logprobs")) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="unused", max_retries=0)
        ask: Callable[..., Any] = partial(
            client.chat.completions.create, model="judge-1", messages=said
        )
        for refused in ({"max_tokens": 9}, {"temperature": 0.0}, {"logprobs": True}):
            with pytest.raises(openai.BadRequestError, match=next(iter(refused))):
                ask(**refused)
        assert ask(max_completion_tokens=64).choices[0].message.content.startswith("I can only")


# -- sampled verdicts ------------------------------------------------------------------------------
def test_a_sampled_judges_score_is_the_mean_of_its_verdicts(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """Seeds 0, 1, 2 are the first repeat's, 3 to 5 the second's."""
    ratings = [2, 4, 9, 1, 1, 10]

    def script(body: Mapping[str, Any]) -> str:
        seed = int(body.get("seed", 0))
        if "rank the models" in body["messages"][-1]["content"]:
            ranks = (1, 2) if seed in (0, 4) else (2, 1)
            return str([{"model": f"model_{n}", "rank": r} for n, r in enumerate(ranks, 1)])
        return f"Rating: [[{ratings[seed]}]]"

    judge = TEXT | {"samples": 3, "repeats": 2, "temperature": 1.0}
    with serve(script=script) as server:
        found = judged("mt_bench", server, files, tmp_path / "mt", **judge)
        assert {found[item, 0] for item, _ in found} == {5.0}
        assert {found[item, 1] for item, _ in found} == {4.0}
        summary = json.loads((tmp_path / "mt" / "summary.json").read_text())
        assert summary["verdict"] == "the mean of 3 ratings"
        found = judged("alpaca_eval", server, files, tmp_path / "ae", **judge)
    assert {round(value, 6) for value in found.values() if value is not None} == {
        33.333333,
        66.666667,
    }
    assert len(list(read_jsonl(tmp_path / "ae" / JUDGMENTS_NAME))) == INSTRUCTIONS * 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 3},
        {"samples": 3, "temperature": None, "verdict": "logprobs"},
        {"extra_body": {"max_tokens": 1}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"samples is 3|extra_body holds max_tokens"):
        JudgeSettings.model_validate(wrong)
