"""The work of a stage as numbers: rows, tokens, operations, judge calls; and assumed lengths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of an answer: assumptions, shown with every budget. An answer
    never counts over its limit. judged_answer: answers on MT-Bench and AlpacaEval are longer.
    thinking: of a judge that thinks, before each reply.
    """

    prompt: int = 180
    answer: int = 300
    judged_answer: int = 400
    rating_prompt: int = 1200
    rating_reply: int = 200
    verdict_prompt: int = 1300
    verdict_reply: int = 1
    verdict_text: int = 50
    thinking: int = 500


LENGTHS = Lengths()
POCKET_LENGTHS = Lengths(20, 10, 10, 170, 8, 360, 1)


@dataclass(frozen=True)
class Work:
    """One stage's work. read, generated, trained: tokens. how: the arithmetic in words.
    parameters: of the model that does it, where it is not the policy.
    """

    rows: float = 0
    read: float = 0
    generated: float = 0
    trained: float = 0
    judge_calls: float = 0
    judge_prompt: float = 0
    judge_reply: float = 0
    how: str = ""
    parameters: float = 0
