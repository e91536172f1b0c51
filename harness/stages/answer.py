"""A checkpoint answers every benchmark with one model load. Stage ``answer``.

All first turns, instructions and held-out prompts are one batch sorted by length, MT-Bench's second
turns another. Seeds follow the run's (FastChat gives a question the same seed in every run). A
failed answer is a status, never a text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.model.generate import Generation, GenerationRequest, generate, request_seed
from harness.model.policy import Policy, PromptTooLongError, encode_prompt, load_policy
from harness.records import (
    HarnessError,
    Prompt,
    Response,
    StageOutcome,
    StageTask,
    Status,
    canonical_json,
    content_hash,
    read_jsonl,
    write_jsonl,
)

MT_BENCH_TEMPERATURE = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""FastChat's answer temperature by category; every other category is greedy."""
MODEL_ID = "model"
"""Name of the checkpoint in the benchmark libraries' files: the same for all, so that equal answers
are equal files.
"""


@dataclass(frozen=True)
class _Ask:
    """One answer wanted: what it is, the conversation before it, and how it is drawn. limit: prompt
    tokens allowed (0: the model's own).
    """

    key: tuple[Any, ...]
    messages: tuple[Mapping[str, str], ...]
    max_new_tokens: int
    temperature: float
    limit: int = 0


class _Desk:
    """Draws answers and keeps them by key."""

    def __init__(self, policy: Policy, settings: Mapping[str, Any], backend: str) -> None:
        self.policy, self.settings, self.backend = policy, settings, backend
        self.answers: dict[tuple[Any, ...], Generation] = {}

    def seed(self, key: tuple[Any, ...]) -> int:
        return request_seed(
            self.settings["seed"], self.settings.get("iteration", 0), "answer", *key
        )

    def ask(self, asks: Sequence[_Ask]) -> None:
        wanted: list[tuple[_Ask, GenerationRequest]] = []
        for ask in asks:
            try:
                ids = tuple(encode_prompt(self.policy.tokenizer, ask.messages, ask.limit))
            except PromptTooLongError as error:
                self.answers[ask.key] = Generation((), "", "no_answer", str(error))
                continue
            wanted.append(
                (
                    ask,
                    GenerationRequest(
                        ids, ask.max_new_tokens, ask.temperature, 1.0, self.seed(ask.key)
                    ),
                )
            )
        batch = int(self.settings.get("generation_batch", 64))
        drawn = generate(
            self.policy, [request for _, request in wanted], batch_size=batch, backend=self.backend
        )
        self.answers.update(
            {ask.key: answer for (ask, _), answer in zip(wanted, drawn, strict=True)}
        )


def run(task: StageTask) -> StageOutcome:
    """Write ``mt_bench.jsonl``, ``alpaca_eval.json`` and ``heldout.jsonl``, those of
    ``settings["sets"]``.

    Benchmark prompts are limited only by what the model can read; held-out prompts over
    ``max_prompt_length`` tokens are "no_answer", as are prompts the model has no room for.
    """
    settings, backend = task.settings, str(task.runtime.get("generation_backend", "transformers"))
    policy = load_policy(
        task.inputs["policy"],
        dtype=settings.get("dtype", "float32"),
        attention=settings.get("attention", "sdpa"),
        device=task.runtime.get("device", "cpu"),
        weights=backend != "vllm",
    )
    sets, desk = list(settings["sets"]), _Desk(policy, settings, backend)
    unknown = sorted(set(sets) - {"mt_bench", "alpaca_eval", "heldout"})
    if unknown:
        raise HarnessError(
            f"answer: unknown sets {unknown}; allowed: mt_bench, alpaca_eval, heldout"
        )
    questions = (
        list(read_jsonl(task.inputs["benchmarks"] / "mt_bench" / "question.jsonl"))
        if "mt_bench" in sets
        else []
    )
    instructions = _instructions(task.inputs["benchmarks"]) if "alpaca_eval" in sets else []
    prompts = _prompts(task.inputs["data"]) if "heldout" in sets else []
    desk.ask(
        [
            *_turns(questions, 0, desk, settings),
            *_alpaca(instructions, settings),
            *_heldout(prompts, settings),
        ]
    )
    desk.ask(list(_turns(questions, 1, desk, settings)))
    if "mt_bench" in sets:
        write_jsonl(
            task.out / "mt_bench.jsonl", (_mt_row(question, desk) for question in questions)
        )
    if "alpaca_eval" in sets:
        rows = [_alpaca_row(row, desk) for row in instructions]
        (task.out / "alpaca_eval.json").write_text(
            "[\n" + ",\n".join(canonical_json(row) for row in rows) + "\n]\n", encoding="utf-8"
        )
    if "heldout" in sets:
        write_jsonl(
            task.out / "heldout.jsonl",
            (_response(ask, desk) for ask in _heldout(prompts, settings)),
        )
    return _outcome(desk, settings)


def _outcome(desk: _Desk, settings: Mapping[str, Any]) -> StageOutcome:
    statuses = {
        name: Counter(a.status for key, a in desk.answers.items() if key[0] == name)
        for name in ("mt_bench", "alpaca_eval", "heldout")
    }
    errors = sum(count["error"] for count in statuses.values())
    tokens = sum(len(answer.token_ids) for answer in desk.answers.values())
    summary: dict[str, Any] = {
        name: dict(sorted(count.items())) for name, count in statuses.items() if count
    }
    summary["temperatures"] = {
        "mt_bench": MT_BENCH_TEMPERATURE | {"other": 0.0},
        "alpaca_eval": _alpaca_temperature(settings),
        "heldout": [0.0, 1.0],
    }
    reasons = sorted({answer.error for answer in desk.answers.values() if answer.status == "error"})
    if reasons:
        summary["errors"] = reasons[:5]
    return StageOutcome(
        len(desk.answers),
        errors,
        {"tokens_generated": tokens, "answers_generated": len(desk.answers)},
        summary,
    )


# MT-Bench
# --------------------------------------------------------------------------------------------------


def _turns(
    questions: Sequence[Mapping[str, Any]], turn: int, desk: _Desk, settings: Mapping[str, Any]
) -> Iterator[_Ask]:
    """Asks for one turn of every question that has it and whose earlier turns were answered; the
    others get a status.
    """
    for question in questions:
        if turn >= len(question["turns"]):
            continue
        key = ("mt_bench", str(question["question_id"]), turn)
        before = [desk.answers[(*key[:2], earlier)] for earlier in range(turn)]
        failed = next(
            (answer for answer in before if answer.status in ("error", "no_answer")), None
        )
        if failed:
            desk.answers[key] = Generation(
                (), "", failed.status, failed.error and f"turn 1: {failed.error}"
            )
            continue
        messages: list[Mapping[str, str]] = []
        for text, answer in zip(question["turns"], before, strict=False):
            messages += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer.text.strip()},
            ]
        messages.append({"role": "user", "content": question["turns"][turn]})
        heat = float(
            question.get(
                "required_temperature", MT_BENCH_TEMPERATURE.get(question["category"], 0.0)
            )
        )
        yield _Ask(key, tuple(messages), int(settings["mt_bench"]["max_new_tokens"]), heat)


def _mt_row(question: Mapping[str, Any], desk: _Desk) -> dict[str, Any]:
    """FastChat's model_answer row with a constant time stamp, and ``status`` per turn beside the
    choices.
    """
    answers = [
        desk.answers["mt_bench", str(question["question_id"]), turn]
        for turn in range(len(question["turns"]))
    ]
    turns = [answer.text.strip() for answer in answers]
    return {
        "question_id": question["question_id"],
        "answer_id": content_hash(question["question_id"], turns, length=22),
        "model_id": MODEL_ID,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": 0,
        "status": [answer.status for answer in answers],
    }


# AlpacaEval
# ------------------------------------------------------------------------------------------------


def _instructions(benchmarks: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        (benchmarks / "alpaca_eval" / "eval.json").read_text(encoding="utf-8")
    )
    return [{**row, "id": str(row.get("id", place))} for place, row in enumerate(rows)]


def _alpaca_temperature(settings: Mapping[str, Any]) -> float:
    return float(settings.get("alpaca_eval", {}).get("temperature", 0.0))


def _alpaca(
    instructions: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> Iterator[_Ask]:
    for row in instructions:
        messages = ({"role": "user", "content": row["instruction"]},)
        yield _Ask(
            ("alpaca_eval", row["id"]),
            messages,
            int(settings["alpaca_eval"]["max_new_tokens"]),
            _alpaca_temperature(settings),
        )


def _alpaca_row(row: Mapping[str, Any], desk: _Desk) -> dict[str, Any]:
    answer = desk.answers["alpaca_eval", row["id"]]
    return {
        "id": row["id"],
        "instruction": row["instruction"],
        "output": answer.text.strip(),
        "generator": MODEL_ID,
        "dataset": row.get("dataset", ""),
        "status": answer.status,
    }


# Held-out prompts
# ------------------------------------------------------------------------------------------


def _prompts(data: Path) -> list[Prompt]:
    return [
        Prompt(**row)
        for name in ("heldout.jsonl", "ood.jsonl")
        if (data / name).exists()
        for row in read_jsonl(data / name)
    ]


def _heldout(prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> Iterator[_Ask]:
    """The greedy answer (sample 0) and ``heldout_samples`` at temperature 1 of every prompt."""
    for prompt in prompts:
        for sample in range(1 + int(settings["heldout_samples"])):
            yield _Ask(
                ("heldout", prompt.id, sample),
                tuple(prompt.messages),
                int(settings["heldout_max_new_tokens"]),
                1.0 if sample else 0.0,
                int(settings.get("max_prompt_length", 0)),
            )


def _response(ask: _Ask, desk: _Desk) -> Response:
    answer: Generation = desk.answers[ask.key]
    status: Status = answer.status
    return Response(
        str(ask.key[1]), int(ask.key[2]), answer.text, answer.token_ids, status, desk.seed(ask.key)
    )
