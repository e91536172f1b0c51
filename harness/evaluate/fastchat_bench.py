"""MT-Bench as FastChat defines it: questions, references, judge prompts, and FastChat's own
rendering and reading of a match.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evaluate import libraries
from harness.judge import verdicts
from harness.records import HarnessError, Status, content_hash, read_jsonl

NEED_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
"""FastChat's NEED_REF_CATS: these categories are judged with the ``-math-`` prompts and a reference
answer.
"""
PROMPT_NAMES = {
    "default": "single-v1",
    "math": "single-math-v1",
    "default-mt": "single-v1-multi-turn",
    "math-mt": "single-math-v1-multi-turn",
}
PAIR_PROMPT_NAMES = ("pair-v2", "pair-math-v1", "pair-v2-multi-turn", "pair-math-v1-multi-turn")
OFFICIAL = {
    "questions": "1c5ac98db58b",
    "references": "88f06568f8ba",
    "judge_prompts": "ca2cb45233ee",
}
"""Content hashes of lm-sys/FastChat's 80 questions, 30 GPT-4 references and four single-answer
prompts.
"""
OFFICIAL_JUDGES = ("gpt-4", "gpt-4-0314", "gpt-4-0613")


@dataclass(frozen=True)
class Bench:
    """Questions in file order, references by question id, judge prompts by name, and what the set
    of references is called.
    """

    questions: tuple[Mapping[str, Any], ...]
    references: Mapping[int, Mapping[str, Any]]
    prompts: Mapping[str, Mapping[str, Any]]
    reference_set: str = ""

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """Content hashes (12 hex digits) of questions, references and prompts, independent of file
        layout.
        """
        questions = [(q["question_id"], q["category"], q["turns"]) for q in self.questions]
        references = sorted(
            (number, row["choices"][0]["turns"]) for number, row in self.references.items()
        )
        prompts = [
            (name, self.prompts[name]["system_prompt"], self.prompts[name]["prompt_template"])
            for name in sorted(PROMPT_NAMES.values())
        ]
        return {
            "questions": content_hash(questions, length=12),
            "references": content_hash(references, length=12),
            "judge_prompts": content_hash(prompts, length=12),
        }


def load_bench(folder: Path, reference_set: str = "") -> Bench:
    """The bench of a benchmark folder: question.jsonl, reference_answer.jsonl, judge_prompts.jsonl."""
    return read_bench(
        folder / "question.jsonl",
        folder / "reference_answer.jsonl",
        folder / "judge_prompts.jsonl",
        reference_set,
    )


def read_bench(questions: Path, references: Path, prompts: Path, reference_set: str = "") -> Bench:
    """Questions, references and judge prompts in FastChat's formats, checked; HarnessError names
    file, line and what is wrong.
    """
    asked = tuple(_rows(questions, {"question_id": int, "category": str, "turns": list}))
    doubled = sorted(
        {
            q["question_id"]
            for q in asked
            if sum(r["question_id"] == q["question_id"] for r in asked) > 1
        }
    )
    if doubled or not asked:
        raise HarnessError(
            f"{questions}: "
            + (
                f"question {', '.join(map(str, doubled))} occurs more than once"
                if doubled
                else "holds no question"
            )
        )
    answered = (
        {
            row["question_id"]: row
            for row in _rows(references, {"question_id": int, "choices": list})
        }
        if references.exists()
        else {}
    )
    named = {
        row["name"]: row
        for row in _rows(
            prompts,
            {"name": str, "system_prompt": str, "prompt_template": str, "output_format": str},
        )
    }
    missing = [name for name in PROMPT_NAMES.values() if name not in named]
    if missing:
        raise HarnessError(f"{prompts}: no judge prompt named {', '.join(missing)}")
    without = [
        q["question_id"]
        for q in asked
        if q["category"] in NEED_REFERENCE and not _answers_all(answered.get(q["question_id"]), q)
    ]
    if without:
        raise HarnessError(
            f"{references}: no reference for every turn of question "
            f"{', '.join(map(str, without[:10]))}; "
            f"{', '.join(NEED_REFERENCE[:3])} are judged with one"
        )
    return Bench(asked, answered, named, reference_set)


def _answers_all(row: Mapping[str, Any] | None, question: Mapping[str, Any]) -> bool:
    return row is not None and len(row["choices"][0]["turns"]) >= len(question["turns"])


def _rows(path: Path, keys: Mapping[str, type]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise HarnessError(f"{path} does not exist")
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, 1):
        for key, kind in keys.items():
            found = row.get(key) if isinstance(row, dict) else row
            if not isinstance(row, dict) or not isinstance(found, kind):
                raise HarnessError(
                    f"{path}: row {number}: key {key!r} should be {kind.__name__}, found "
                    f"{type(found).__name__}"
                )
    return rows


def read_answers(path: Path) -> dict[int, dict[str, Any]]:
    """Answers by question id. A doubled question is an error: FastChat would silently use the last."""
    answers: dict[int, dict[str, Any]] = {}
    for row in read_jsonl(path):
        if row["question_id"] in answers:
            raise HarnessError(f"{path}: question {row['question_id']} is answered twice")
        answers[row["question_id"]] = row
    return answers


def turn_of(answer: Mapping[str, Any], turn: int) -> tuple[str, Status]:
    """Text and status of one turn of an answer row; rows without ``status`` (FastChat's own) are
    judged by their text.
    """
    turns = answer["choices"][0]["turns"]
    text = turns[turn - 1] if turn <= len(turns) else ""
    statuses = answer.get("status") or []
    status: Status = statuses[turn - 1] if turn <= len(statuses) else "ok"
    if status in ("ok", "truncated") and str(text).strip() in verdicts.FAILED_ANSWERS:
        return "", "error"
    if status in ("ok", "truncated") and not str(text).strip():
        return "", "no_answer"
    return text, status


def turn_status(answer: Mapping[str, Any] | None, turn: int) -> Status:
    """``ok`` when this turn and the ones before it have an answer to judge (cut-off ones count);
    else the worst of their statuses.
    """
    if answer is None:
        return "no_answer"
    found = [turn_of(answer, t)[1] for t in range(1, turn + 1)]
    for status in ("error", "refused", "no_answer", "unparsed"):
        if status in found:
            return status  # type: ignore[return-value]
    return "ok"


def neutral_answer(answer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, list[str]]]:
    """The answer row with verdict syntax and prompt delimiters defused, and what was found by turn."""
    turns, found = [], {}
    for turn, text in enumerate(answer["choices"][0]["turns"], 1):
        defused, matches = verdicts.neutralise(str(text), verdicts.MT_BENCH_PATTERNS)
        turns.append(defused)
        if matches:
            found[turn] = matches
    return {**answer, "choices": [{"index": 0, "turns": turns}]}, found


def reference_turns(bench: Bench, question: Mapping[str, Any]) -> list[str] | None:
    """The reference answers a question is judged with, if its category wants any."""
    return (
        list(bench.references[question["question_id"]]["choices"][0]["turns"])
        if question["category"] in NEED_REFERENCE
        else None
    )


def make_match(
    bench: Bench,
    question: Mapping[str, Any],
    turn: int,
    answer: Mapping[str, Any],
    judge_model: str,
) -> Any:
    """FastChat's MatchSingle of one question and turn, with the judge prompt and reference that
    FastChat's main program would take.
    """
    fastchat = libraries.fastchat()
    needs = question["category"] in NEED_REFERENCE
    judge = fastchat.make_judge_single(judge_model, dict(bench.prompts))[
        ("math" if needs else "default") + ("-mt" if turn == 2 else "")
    ]
    references = {judge_model: dict(bench.references)} if needs else None
    answers = {"answer": {question["question_id"]: answer}}
    return fastchat.make_match_single(
        [question], ["answer"], answers, judge, None, references, turn == 2
    )[0]


def make_pair(
    bench: Bench,
    question: Mapping[str, Any],
    turn: int,
    answers: tuple[Mapping[str, Any], Mapping[str, Any]],
    judge_model: str,
) -> Any:
    """FastChat's MatchPair of two models' answers to one question and turn; HarnessError when the
    bench has no pairwise prompts.
    """
    missing = [name for name in PAIR_PROMPT_NAMES if name not in bench.prompts]
    if missing:
        raise HarnessError(
            f"judge_prompts.jsonl: no judge prompt named {', '.join(missing)}; pairwise grading "
            "needs them"
        )
    fastchat = libraries.fastchat()
    needs = question["category"] in NEED_REFERENCE
    judge = fastchat.make_judge_pairwise(judge_model, dict(bench.prompts))[
        ("math" if needs else "default") + ("-mt" if turn == 2 else "")
    ]
    references = {judge_model: dict(bench.references)} if needs else None
    given = {
        name: {question["question_id"]: answer}
        for name, answer in zip(("a", "b"), answers, strict=True)
    }
    return fastchat.make_match([question], ["a"], given, judge, "b", references, turn == 2)[0]


def play_pair(
    match: Any, judgments: Sequence[str] = ("[[C]]", "[[C]]")
) -> tuple[list[list[dict[str, str]]], dict[str, Any]]:
    """FastChat's two games of a pair (a first, then b first) with these judgments: (messages of
    each game, FastChat's result row).
    """
    sent: list[list[dict[str, str]]] = []

    def answer(messages: list[dict[str, str]]) -> str:
        sent.append(messages)
        return judgments[len(sent) - 1]

    with libraries.fastchat_completions(answer, match.judge.model_name) as fastchat:
        row: dict[str, Any] = fastchat.play_a_match_pair(match, output_file=None)
    return sent, row


def render(match: Any) -> tuple[list[dict[str, str]], str]:
    """(messages, user prompt) FastChat would send for a match."""
    sent: list[list[dict[str, str]]] = []

    def record(messages: list[dict[str, str]]) -> str:
        sent.append(messages)
        return "[[1]]"

    with libraries.fastchat_completions(record, match.judge.model_name) as fastchat:
        row = fastchat.play_a_match_single(match, output_file=None)
    return sent[0], row["user_prompt"]


def replay(match: Any, judgment: str) -> float | None:
    """FastChat's score of a judgment: -1 when it finds none, None when its parser crashes
    (full-width digits).
    """
    with libraries.fastchat_completions(
        lambda _messages: judgment, match.judge.model_name
    ) as fastchat:
        try:
            return float(fastchat.play_a_match_single(match, output_file=None)["score"])
        except (SyntaxError, ValueError):
            return None
