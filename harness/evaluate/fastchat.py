"""FastChat's side of MT-Bench: its questions, references and judge prompts, checked; its matches,
rendered and scored by its own code. Only its network call is ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evaluate import libraries
from harness.evaluate.benchmark import by_key
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
QUESTION_KEYS = {"question_id": int, "category": str, "turns": list}
PROMPT_KEYS = {"name": str, "system_prompt": str, "prompt_template": str, "output_format": str}
Messages = list[dict[str, str]]


# -- the bench -------------------------------------------------------------------------------------
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
        parts = {"questions": questions, "references": references, "judge_prompts": prompts}
        return {name: content_hash(part, length=12) for name, part in parts.items()}

    @property
    def references_hash(self) -> str:
        """The named and hashed set of references."""
        return f"references:{self.reference_set or 'unnamed'}@{self.hashes['references']}"

    def reference_turns(self, question: Mapping[str, Any]) -> list[str] | None:
        """The reference answers a question is judged with, if its category wants any."""
        if question["category"] not in NEED_REFERENCE:
            return None
        return list(self.references[question["question_id"]]["choices"][0]["turns"])


def load_bench(folder: Path, reference_set: str = "") -> Bench:
    """The bench of a benchmark folder."""
    names = ("question.jsonl", "reference_answer.jsonl", "judge_prompts.jsonl")
    questions, references, prompts = (folder / name for name in names)
    return read_bench(questions, references, prompts, reference_set)


def read_bench(questions: Path, references: Path, prompts: Path, reference_set: str = "") -> Bench:
    """Questions, references and judge prompts in FastChat's formats, checked; HarnessError names
    file, line and what is wrong.
    """
    asked = tuple(_rows(questions, QUESTION_KEYS))
    if not asked:
        raise HarnessError(f"{questions}: holds no question")
    by_key(asked, "question_id", questions)
    rows = answers(references) if references.exists() else []
    answered = by_key(rows, "question_id", references)
    named = by_key(_rows(prompts, PROMPT_KEYS), "name", prompts)
    missing = [name for name in PROMPT_NAMES.values() if name not in named]
    if missing:
        raise HarnessError(f"{prompts}: no judge prompt named {', '.join(missing)}")
    without = []
    for question in asked:
        row = answered.get(question["question_id"], {"choices": [{"turns": []}]})
        short = sum(map(bool, row["choices"][0]["turns"])) < len(question["turns"])
        if short and question["category"] in NEED_REFERENCE:
            without.append(question["question_id"])
    if without:
        raise HarnessError(
            f"{references}: no reference for every turn of question {_listed(without)}; "
            f"{', '.join(NEED_REFERENCE[:3])} are judged with one"
        )
    return Bench(asked, answered, named, reference_set)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, list(names)[:10]))


def _rows(path: Path, keys: Mapping[str, type]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise HarnessError(f"{path} does not exist")
    rows = [_with_numbers(row) for row in read_jsonl(path)]
    for number, row in enumerate(rows, 1):
        for key, kind in keys.items():
            found = row.get(key) if isinstance(row, dict) else row
            if not isinstance(row, dict) or not isinstance(found, kind):
                wrong = f"should be {kind.__name__}, found {type(found).__name__}"
                raise HarnessError(f"{path}: row {number}: key {key!r} {wrong}")
    return rows


def _with_numbers(row: Any) -> Any:
    """A row whose question id and turn are whole numbers, also where they were stored as text or
    as pandas' floats.
    """
    if not isinstance(row, dict):
        return row
    named = {key: str(row[key]) for key in ("question_id", "turn") if key in row}
    whole = {key: re.fullmatch(r"([0-9]+)(\.0)?", text) for key, text in named.items()}
    return row | {key: int(found[1]) for key, found in whole.items() if found}


# -- answers ---------------------------------------------------------------------------------------
def answers(path: Path) -> list[dict[str, Any]]:
    """Rows of a model_answer file, of any models; a turn that is null is an empty text."""
    rows = _rows(path, {"question_id": int, "choices": list})
    for number, row in enumerate(rows, 1):
        for choice in row["choices"] or [None]:
            turns = choice.get("turns") if isinstance(choice, dict) else None
            if not isinstance(turns, list) or not all(isinstance(one or "", str) for one in turns):
                raise HarnessError(
                    f"{path}: row {number}: each choice wants 'turns', a list of texts"
                )
            choice["turns"] = [one or "" for one in turns]
    return rows


def read_answers(path: Path) -> dict[int, Mapping[str, Any]]:
    """Answers by question id. A doubled question is an error: FastChat would silently use the
    last.
    """
    return by_key(answers(path), "question_id", path)


def judgments(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of single-answer judgments, of any models; a missing text is an empty one."""
    rows = _rows(path, {"question_id": int, "turn": int})
    if any("g1_winner" in row for row in rows):
        raise HarnessError(f"{path}: judgments of pairs (g1_winner); wants those of single answers")
    for number, row in enumerate(rows, 1):
        row["judgment"] = row.get("judgment") or ""
        judge, texts = row.get("judge"), [row.get(key) for key in ("model", "user_prompt")]
        named = isinstance(judge, list) and len(judge) == 2
        if not named or not all(isinstance(text, str) for text in (row["judgment"], *texts)):
            wanted = "model, user_prompt, judgment and judge (a list of its name and prompt)"
            raise HarnessError(f"{path}: row {number}: wants {wanted}")
    return rows


def turns_of(answer: Mapping[str, Any] | None, turn: int) -> list[tuple[str, Status]]:
    """(text, status) of an answer's turns up to one; rows without ``status`` (FastChat's own) are
    judged by their text. A failed turn has no text; nothing without an answer.
    """
    found: list[tuple[str, Status]] = []
    for place in range(turn if answer else 0):
        assert answer is not None
        turns, statuses = answer["choices"][0]["turns"], answer.get("status") or ()
        text = turns[place] if place < len(turns) else ""
        told: Status = statuses[place] if place < len(statuses) else "ok"
        status, _ = verdicts.answer_status(told, text)
        gone = told in ("ok", "truncated") and status != "ok"
        found.append(("", status) if gone else (text, told))
    return found


def turn_status(turns: Sequence[tuple[str, Status]]) -> Status:
    """``ok`` when every turn has an answer to judge (cut-off ones count); else the worst status."""
    found = [status for _, status in turns] or ["no_answer"]
    worst: tuple[Status, ...] = ("error", "refused", "no_answer", "unparsed")
    return next((status for status in worst if status in found), "ok")


def neutral_answer(answer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, list[str]]]:
    """The answer row with verdict syntax and prompt delimiters defused, and what was found by
    turn.
    """
    turns, found = [], {}
    for turn, text in enumerate(answer["choices"][0]["turns"], 1):
        defused, matches = verdicts.neutralise(str(text), verdicts.MT_BENCH_PATTERNS)
        turns.append(defused)
        if matches:
            found[turn] = matches
    return {**answer, "choices": [{"index": 0, "turns": turns}]}, found


# -- matches ---------------------------------------------------------------------------------------
# FastChat's maker of matches is called for one question at a time, with the prompt and references
# its main program would take: its own loop over a folder drops what it cannot find.
def make_match(
    bench: Bench, question: Mapping[str, Any], turn: int, answer: Mapping[str, Any], judge: str
) -> Any:
    """FastChat's MatchSingle of one question and turn."""
    fastchat, needs = libraries.fastchat(), question["category"] in NEED_REFERENCE
    kind = ("math" if needs else "default") + ("-mt" if turn == 2 else "")
    prompt = fastchat.make_judge_single(judge, dict(bench.prompts))[kind]
    references = {judge: dict(bench.references)} if needs else None
    given = {"answer": {question["question_id"]: answer}}
    make = fastchat.make_match_single
    return make([question], ["answer"], given, prompt, None, references, turn == 2)[0]


def render(match: Any) -> tuple[Messages, str]:
    """(messages, user prompt) FastChat would send for a match."""
    sent: list[Messages] = []

    def record(messages: Messages) -> str:
        sent.append(messages)
        return "[[1]]"

    with libraries.fastchat_completions(record, match.judge.model_name) as fastchat:
        row = fastchat.play_a_match_single(match, output_file=None)
    return sent[0], row["user_prompt"]


def replay(match: Any, judgment: str) -> float | None:
    """FastChat's score of a judgment: -1 when it finds none, None when its parser crashes
    (full-width digits).
    """

    def answer(_messages: Messages) -> str:
        return judgment

    with libraries.fastchat_completions(answer, match.judge.model_name) as fastchat:
        try:
            return float(fastchat.play_a_match_single(match, output_file=None)["score"])
        except (SyntaxError, ValueError):
            return None
