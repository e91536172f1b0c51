"""What the pocket judge thinks of an answer: the oracle's view for prompts of the language, a
stand-in for any other text.

Every opinion is a pure function of (judge seed, prompt, the request's ``seed`` modulo
``SEED_PERIOD``), so repeats differ and re-runs do not. Prompts that are not of the pocket language
(real MT-Bench or AlpacaEval text) get ``surface_quality``: word overlap with the question and
reference, moderate length, little repetition. It keeps runs on real text going without a network.
It is no measure of quality.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from harness.pocket import judge_prompts, language, oracle
from harness.pocket.judge_prompts import Judgment
from harness.study.sections import JudgeSettings

SEED_PERIOD = 1_000_000
"""Request seeds equal modulo this give the same opinion: the judge client adds multiples of it when
a reply was unreadable.
"""
OPINION = JudgeSettings().opinion
TIE_LOG_ODDS = 0.3
"""Pairwise verdicts with smaller log-odds are ties."""


def verdict(
    body: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[str, dict[str, float] | None]:
    """The judge's text and, for a one-token verdict, the probabilities of its tokens."""
    judgment = judge_prompts.read(body["messages"])
    if judgment is None:
        return "I can only judge answers, and I find none in this prompt.", None
    seed = settings["seed"] + SEED_PERIOD * (int(body.get("seed") or 0) % SEED_PERIOD)
    if judgment.form == "rating":
        rating = _rating(judgment, settings, seed)
        return f"{_remark(rating)} Rating: [[{rating}]]", None
    second = min(max(_preference(judgment, settings, seed), 1e-6), 1.0 - 1e-6)
    if judgment.form == "token":
        return ("M" if second > 0.5 else "m"), {"m": 1.0 - second, "M": second}
    log_odds = math.log(second / (1.0 - second))
    winner = "B" if log_odds > 0 else "A"
    if abs(log_odds) < TIE_LOG_ODDS:
        winner = "C"
    return f"I compared the two answers. My final verdict: [[{winner}]]", None


def _remark(rating: int) -> str:
    return (
        "The answer is wrong or empty.",
        "The answer is partly right.",
        "The answer is right.",
        "The answer is right and well put.",
    )[min(3, rating // 3)]


def _worth(settings: Mapping[str, Any]) -> float:
    """What the best style is worth to this judge."""
    worth = settings.get("best_style_worth")
    return 1.0 if worth is None else float(worth)


def _known(messages: list[dict[str, str]]) -> bool:
    return language.parse_messages(messages) is not None


def _rating(judgment: Judgment, settings: Mapping[str, Any], seed: int) -> int:
    noise, worth = float(settings["noise"]), _worth(settings)
    if _known(judgment.messages):
        answer = judgment.answers[0]
        return oracle.rating(
            judgment.messages, answer, noise=noise, seed=seed, best_style_worth=worth
        )
    question, answer = judgment.messages[-1]["content"], judgment.answers[0]
    value = 1.0 + 9.0 * surface_quality(question, answer, judgment.reference)
    value += noise * oracle.standard_normal("rating", seed, question, answer)
    return max(1, min(10, math.floor(value + 0.5)))


def _preference(judgment: Judgment, settings: Mapping[str, Any], seed: int) -> float:
    """Probability that the second answer is preferred."""
    a, b = judgment.answers
    worth = _worth(settings)
    noise, position, length = (
        float(settings[name]) for name in ("noise", "position_bias", "length_bias")
    )
    if _known(judgment.messages) and (
        judgment.other is None or judgment.other == judgment.messages
    ):
        return oracle.preference(
            judgment.messages,
            a,
            b,
            noise=noise,
            position_bias=position,
            length_bias=length,
            seed=seed,
            best_style_worth=worth,
        )
    question_a, question_b = (
        judgment.messages[-1]["content"],
        (judgment.other or judgment.messages)[-1]["content"],
    )
    if _known(judgment.messages) and judgment.other is not None and _known(judgment.other):
        gap = oracle.reward(judgment.other, b, worth) - oracle.reward(judgment.messages, a, worth)
    else:
        gap = surface_quality(question_b, b, judgment.reference) - surface_quality(
            question_a, a, judgment.reference
        )
    sign = float(a < b) - float(b < a)
    logit = (
        oracle.PREFERENCE_SHARPNESS * gap
        - position
        + length * math.tanh((len(b) - len(a)) / (10.0 * oracle.LENGTH_SCALE))
    )
    logit += noise * sign * oracle.standard_normal("preference", seed, question_a, *sorted((a, b)))
    return 1.0 / (1.0 + math.exp(-logit))


_WORD = re.compile(r"\w+")


def surface_quality(question: str, answer: str, reference: str = "") -> float:
    """Stand-in for real text, in [0, 1]; no measure of quality.

    0.4 share of the question's (and reference's) longer words that the answer takes up + 0.35
    length (log scale, best near 150 words) + 0.25 share of distinct words among the first 200.
    """
    words = _WORD.findall(answer.lower())
    if not words:
        return 0.0
    asked = {word for word in _WORD.findall(f"{question} {reference}".lower()) if len(word) > 3}
    overlap = len(asked & set(words)) / len(asked) if asked else 0.5
    length = math.exp(-0.5 * (math.log(len(words) / 150.0) / 1.5) ** 2)
    distinct = len(set(words[:200])) / len(words[:200])
    return 0.4 * min(1.0, 2.0 * overlap) + 0.35 * length + 0.25 * distinct
