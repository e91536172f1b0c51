"""What the pocket judge thinks of an answer: the oracle's view for prompts of the language, a
stand-in for any other text.

Every opinion is a pure function of (judge seed, prompt, the request's ``seed`` modulo
``SEED_PERIOD``), so repeats differ and re-runs do not. Prompts that are not of the pocket language
(real MT-Bench or AlpacaEval text) get ``surface_quality``: word overlap with the question and
reference, moderate length, little repetition. It keeps runs on real text going without a network.
It is no measure of quality.

Read are the prompts that judged benchmarks send: FastChat's single and pairwise grading,
alpaca_eval's weighted and ranking annotators, Arena-Hard's five-way verdict, WildBench's score and
choice. Answers may hold verdict syntax and the prompts' own delimiters. Questions are trusted,
answers are not: a delimiter before an answer is taken at its first occurrence, the one after it at
its last.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.pocket import language, oracle
from harness.study.sections import JudgeSettings

SEED_PERIOD = 1_000_000
"""Request seeds equal modulo this give the same opinion: the judge client adds multiples of it when
a reply was unreadable.
"""
OPINION = JudgeSettings().opinion
TIE_LOG_ODDS = 0.3
"""Pairwise verdicts with smaller log-odds are ties."""
STRONG_LOG_ODDS = 2.0
"""Five-way verdicts with larger ones say "much better"."""


def verdict(
    body: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[str, dict[str, float] | None]:
    """The judge's text and, for a one-token verdict, the probabilities of its tokens."""
    judgment = read(body["messages"])
    if judgment is None:
        return "I can only judge answers, and I find none in this prompt.", None
    seed = settings["seed"] + SEED_PERIOD * (int(body.get("seed") or 0) % SEED_PERIOD)
    if judgment.form == "rating":
        rating = _rating(judgment, settings, seed)
        return f"{_remark(rating)} Rating: [[{rating}]]", None
    if judgment.form == "score":
        score = _rating(judgment, settings, seed)
        return json.dumps({"strengths": _remark(score), "score": str(score)}), None
    second = min(max(_preference(judgment, settings, seed), 1e-6), 1.0 - 1e-6)
    if judgment.form == "token":
        return ("M" if second > 0.5 else "m"), {"m": 1.0 - second, "M": second}
    if judgment.form == "ranking":
        ranks = (2, 1) if second > 0.5 else (1, 2)
        models = zip(("model_1", "model_2"), ranks, strict=True)
        return str([{"model": model, "rank": rank} for model, rank in models]), None
    log_odds = math.log(second / (1.0 - second))
    if judgment.form == "five":
        return f"I compared the two answers. My final verdict: [[{_label(log_odds)}]]", None
    winner = "B" if log_odds > 0 else "A"
    if judgment.form == "choice":
        better = winner + ("++" if abs(log_odds) > STRONG_LOG_ODDS else "+")
        choice = "A=B" if abs(log_odds) < TIE_LOG_ODDS else better
        return json.dumps({"analysis": "I compared them.", "choice": choice}), None
    if abs(log_odds) < TIE_LOG_ODDS:
        winner = "C"
    return f"I compared the two answers. My final verdict: [[{winner}]]", None


def _label(log_odds: float) -> str:
    """Arena-Hard's verdict for log-odds that B is better."""
    if abs(log_odds) < TIE_LOG_ODDS:
        return "A=B"
    better = ">>" if abs(log_odds) > STRONG_LOG_ODDS else ">"
    return better.join("BA" if log_odds > 0 else "AB")


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


# -- reading what is asked ------------------------------------------------------------------------
Message = dict[str, str]
ALPACA_TEMPLATES: Mapping[Literal["token", "ranking"], str] = {
    "token": "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
    "ranking": "evaluators_configs/alpaca_eval_gpt4/alpaca_eval.txt",
}
"""How the verdict is written → the prompt of alpaca_eval that asks for it so."""


@dataclass(frozen=True)
class Judgment:
    """What is to be judged. messages: the conversation up to the last question; answers: one
    (rating) or two (preference).

    For a pairwise two-turn prompt ``other`` is the second assistant's conversation. form decides
    how the verdict is written.
    """

    form: Literal["rating", "pair", "token", "ranking", "five", "score", "choice"]
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
        or _arena(text)
        or _wildbench(text)
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


def _arena(text: str) -> Judgment | None:
    match = re.search(
        r"<\|User Prompt\|>\n(.*?)\n\n<\|The Start of Assistant A's Answer\|>\n(.*)\n"
        r"<\|The End of Assistant A's Answer\|>\s*<\|The Start of Assistant B's Answer\|>\n(.*)\n"
        r"<\|The End of Assistant B's Answer\|>",
        text,
        re.DOTALL,
    )
    return Judgment("five", _user(match[1]), (match[2], match[3])) if match else None


def _wildbench(text: str) -> Judgment | None:
    query = _between(text, "<|begin_of_query|>\n\n", "\n\n<|end_of_query|>")
    names = ("response", "response_A", "response_B")
    one, a, b = (_between(text, f"<|begin_of_{x}|>\n\n", f"\n\n<|end_of_{x}|>") for x in names)
    if query is None:
        return None
    if one is not None:
        return Judgment("score", _user(query), (one,))
    return None if a is None or b is None else Judgment("choice", _user(query), (a, b))


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
def _alpaca_pieces(template: str) -> tuple[str, ...]:
    """The literal pieces around {instruction}, {output_1}, {output_2} in a prompt that the
    installed alpaca_eval ships; () without it.
    """
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        return ()
    text = (Path(spec.submodule_search_locations[0]) / template).read_text(encoding="utf-8")
    user = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0].strip()
    return tuple(re.split(r"\{instruction\}|\{output_1\}|\{output_2\}", user))


def _alpaca(text: str) -> Judgment | None:
    for form, template in ALPACA_TEMPLATES.items():
        pieces = _alpaca_pieces(template)
        if not pieces or not text.startswith(pieces[0]):
            continue
        instruction, found, rest = text[len(pieces[0]) :].partition(pieces[1])
        output_1, between, output_2 = rest.rpartition(pieces[2])
        if not found or not between:
            return None
        cut = output_2.rfind(pieces[3].rstrip())
        second = output_2[:cut] if cut >= 0 else output_2
        return Judgment(form, _user(instruction), (output_1, second))
    return None
