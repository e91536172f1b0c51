"""Reads the prompts that judged benchmarks send: FastChat's single and pairwise grading,
alpaca_eval's weighted annotator.

Answers may hold verdict syntax and the prompts' own delimiters. Questions are trusted, answers are
not: a delimiter before an answer is taken at its first occurrence, the one after it at its last.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Message = dict[str, str]
ALPACA_TEMPLATE = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"


@dataclass(frozen=True)
class Judgment:
    """What is to be judged. messages: the conversation up to the last question; answers: one
    (rating) or two (preference).

    For a pairwise two-turn prompt ``other`` is the second assistant's conversation. form decides
    how the verdict is written.
    """

    form: Literal["rating", "pair", "token"]
    messages: list[Message]
    answers: tuple[str, ...]
    reference: str = ""
    other: list[Message] | None = None


def read(messages: Sequence[Mapping[str, object]]) -> Judgment | None:
    """The judgment asked for by a chat request, or None when the prompt is of no known form."""
    text = next(
        (str(m.get("content") or "") for m in reversed(messages) if m.get("role") == "user"), ""
    )
    return (
        _alpaca(text)
        or _pair_conversations(text)
        or _conversation(text)
        or _pair(text)
        or _single(text)
    )


def _between(text: str, start: str, end: str) -> str | None:
    """Text after the first ``start`` and before the last ``end``."""
    left = text.find(start)
    right = text.rfind(end)
    return text[left + len(start) : right] if left >= 0 and right >= left + len(start) else None


def _user(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def _single(text: str) -> Judgment | None:
    answer = _between(
        text, "[The Start of Assistant's Answer]\n", "\n[The End of Assistant's Answer]"
    )
    head, found, _ = text.partition("[The Start of Assistant's Answer]\n")
    question = re.search(
        r"\[Question\]\n(.*?)\s*(?:\[The Start of Reference Answer\]\n(.*?)\n\[The End of "
        r"Reference Answer\]\s*)?\Z",
        head,
        re.DOTALL,
    )
    if answer is None or not found or question is None:
        return None
    return Judgment("rating", _user(question[1]), (answer,), question[2] or "")


def _pair(text: str) -> Judgment | None:
    match = re.search(
        r"\[User Question\]\n(.*?)\s*(?:\[The Start of Reference Answer\]\n(.*?)\n\[The End of "
        r"Reference Answer\]\s*)?"
        r"\[The Start of Assistant A's Answer\]\n(.*)\n\[The End of Assistant A's Answer\]\s*"
        r"\[The Start of Assistant B's Answer\]\n(.*)\n\[The End of Assistant B's Answer\]",
        text,
        re.DOTALL,
    )
    return (
        Judgment("pair", _user(match[1]), (match[3], match[4]), match[2] or "") if match else None
    )


def _turns(text: str, assistant: str) -> tuple[list[Message], str] | None:
    """Question, answer, question and the last answer of a two-turn conversation between its
    markers.
    """
    first, found, rest = text.partition(f"\n\n### {assistant}:\n")
    if not found or not first.strip().startswith("### User:\n"):
        return None
    question_1 = first.strip().removeprefix("### User:\n")
    # the answers may hold markers too: of all ways to cut, the shortest second question is the
    # likeliest
    cuts = list(
        re.finditer(
            rf"\n\n### User:\n(?P<question>(?:(?!\n\n### ).)*)\n\n### {re.escape(assistant)}:\n",
            rest,
            re.DOTALL,
        )
    )
    if not cuts:
        return _user(question_1), rest.strip("\n")
    cut = min(cuts, key=lambda c: len(c["question"]))
    messages = [
        *_user(question_1),
        {"role": "assistant", "content": rest[: cut.start()]},
        *_user(cut["question"]),
    ]
    return messages, rest[cut.end() :].removesuffix("\n\n")


def _conversation(text: str) -> Judgment | None:
    inside = _between(
        text,
        "<|The Start of Assistant A's Conversation with User|>\n\n",
        "<|The End of Assistant A's Conversation with User|>",
    )
    turns = _turns(inside, "Assistant A") if inside is not None else None
    if turns is None:
        return None
    return Judgment("rating", turns[0], (turns[1],), _last_reference(text))


def _pair_conversations(text: str) -> Judgment | None:
    if (
        "<|The Start of Assistant B's Conversation with User|>" not in text
        or "\n\n### Assistant B:\n" not in text
    ):
        return None
    head, _, tail = text.rpartition("<|The Start of Assistant B's Conversation with User|>\n\n")
    a = _between(
        head,
        "<|The Start of Assistant A's Conversation with User|>\n\n",
        "<|The End of Assistant A's Conversation with User|>",
    )
    b = tail[: tail.rfind("<|The End of Assistant B's Conversation with User|>")]
    turns_a, turns_b = _turns(a or "", "Assistant A"), _turns(b, "Assistant B")
    if turns_a is None or turns_b is None:
        return None
    return Judgment(
        "pair", turns_a[0], (turns_a[1], turns_b[1]), _last_reference(text), other=turns_b[0]
    )


def _last_reference(text: str) -> str:
    inside = _between(
        text.partition("<|The End of Reference Answer|>")[0] + "\n",
        "<|The Start of Reference Answer|>\n\n",
        "\n",
    )
    return (
        inside.rpartition("### Reference answer:\n")[2].strip()
        if inside and "### Reference answer:\n" in inside
        else ""
    )


@functools.cache
def _alpaca_pieces() -> tuple[str, ...]:
    """The literal pieces around {instruction}, {output_1}, {output_2} in the prompt that the
    installed alpaca_eval ships; () without it.
    """
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        return ()
    template = (Path(spec.submodule_search_locations[0]) / ALPACA_TEMPLATE).read_text(
        encoding="utf-8"
    )
    user = template.split("<|im_start|>user\n")[1].split("<|im_end|>")[0].strip()
    return tuple(re.split(r"\{instruction\}|\{output_1\}|\{output_2\}", user))


def _alpaca(text: str) -> Judgment | None:
    pieces = _alpaca_pieces()
    if not pieces or not text.startswith(pieces[0]):
        return None
    instruction, found, rest = text[len(pieces[0]) :].partition(pieces[1])
    output_1, between, output_2 = rest.rpartition(pieces[2])
    if not found or not between:
        return None
    cut = output_2.rfind(pieces[3].rstrip())
    return Judgment(
        "token", _user(instruction), (output_1, output_2[:cut] if cut >= 0 else output_2)
    )
