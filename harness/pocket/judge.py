"""The pocket judge: a small OpenAI-compatible server on loopback that thinks what the oracle knows,
or of text outside the language a stand-in. The libraries cannot tell it from a paid one.

Every opinion is a pure function of (judge seed, prompt, the request's ``seed`` modulo
``SEED_PERIOD``), so repeats differ and re-runs do not. Prompts that are not of the pocket language
(real MT-Bench or AlpacaEval text) get ``surface_quality``, which keeps runs on real text going
without a network. It is no measure of quality.

Read are the prompts that judged benchmarks send: FastChat's single-answer grading, alpaca_eval's
weighted and ranking annotators, Arena-Hard's five-way verdict, WildBench's score and choice.
Answers may hold verdict syntax and the prompts' own delimiters. Questions are trusted, answers are
not: a delimiter before an answer is taken at its first occurrence, the one after it at its last.
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web

from harness.judge import chat_http, verdicts
from harness.judge.verdicts import SEED_PERIOD
from harness.pocket import language, oracle
from harness.study.sections import JudgeSettings

OPINION = JudgeSettings().opinion
TIE_LOG_ODDS = 0.3
"""Pairwise verdicts with smaller log-odds are ties."""
STRONG_LOG_ODDS = 2.0
"""Five-way verdicts with larger ones say "much better"."""
REMARKS = (
    "The answer is wrong or empty.",
    "The answer is partly right.",
    "The answer is right.",
    "The answer is right and well put.",
)


def verdict(
    body: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[str, dict[str, float] | None]:
    """The judge's text and, for a one-token verdict, the probabilities of its tokens."""
    judgment = read(body["messages"])
    if judgment is None:
        return "I can only judge answers, and I find none in this prompt.", None
    seed = settings["seed"] + SEED_PERIOD * (int(body.get("seed") or 0) % SEED_PERIOD)
    if judgment.form in ("rating", "score"):
        rating = _rating(judgment, settings, seed)
        remark = REMARKS[min(3, rating // 3)]
        if judgment.form == "rating":
            return f"{remark} Rating: [[{rating}]]", None
        return json.dumps({"strengths": remark, "score": str(rating)}), None
    second = min(max(_preference(judgment, settings, seed), 1e-6), 1.0 - 1e-6)
    if judgment.form == "token":
        return ("M" if second > 0.5 else "m"), {"m": 1.0 - second, "M": second}
    if judgment.form == "ranking":
        ranks = (2, 1) if second > 0.5 else (1, 2)
        models = zip(("model_1", "model_2"), ranks, strict=True)
        return str([{"model": model, "rank": rank} for model, rank in models]), None
    log_odds = math.log(second / (1.0 - second))
    tie, strong = abs(log_odds) < TIE_LOG_ODDS, abs(log_odds) > STRONG_LOG_ODDS
    better, worse = "BA" if log_odds > 0 else "AB"
    if judgment.form == "five":
        label = "A=B" if tie else f"{better}{'>>' if strong else '>'}{worse}"
        return f"I compared the two answers. My final verdict: [[{label}]]", None
    choice = "A=B" if tie else better + ("++" if strong else "+")
    return json.dumps({"analysis": "I compared them.", "choice": choice}), None


def _rating(judgment: Judgment, settings: Mapping[str, Any], seed: int) -> int:
    messages, answer, noise = judgment.messages, judgment.answers[0], float(settings["noise"])
    if language.parse_messages(messages) is not None:
        views = {"noise": noise, "best_style_worth": _worth(settings)}
        return oracle.rating(messages, answer, seed=seed, **views)
    question = messages[-1]["content"]
    quality = surface_quality(question, answer, judgment.reference)
    return oracle.rated(quality, noise, seed, question, answer)


def _preference(judgment: Judgment, settings: Mapping[str, Any], seed: int) -> float:
    """Probability that the second answer is preferred."""
    (a, b), messages = judgment.answers, judgment.messages
    views = {name: float(settings[name]) for name in ("noise", "position_bias", "length_bias")}
    if language.parse_messages(messages) is not None:
        worth = _worth(settings)
        return oracle.preference(messages, a, b, seed=seed, best_style_worth=worth, **views)
    question = messages[-1]["content"]
    gap = surface_quality(question, b) - surface_quality(question, a)
    scale = 10.0 * oracle.LENGTH_SCALE
    return oracle.preferred(gap, a, b, (seed, question), length_scale=scale, **views)


def _worth(settings: Mapping[str, Any]) -> float:
    """What the best style is worth to this judge."""
    worth = settings.get("best_style_worth")
    return 1.0 if worth is None else float(worth)


def surface_quality(question: str, answer: str, reference: str = "") -> float:
    """Stand-in for real text, in [0, 1]; no measure of quality.

    0.4 share of the question's (and reference's) longer words that the answer takes up + 0.35
    length (log scale, best near 150 words) + 0.25 share of distinct words among the first 200.
    """
    words = re.findall(r"\w+", answer.lower())
    if not words:
        return 0.0
    about = re.findall(r"\w+", f"{question} {reference}".lower())
    asked = {word for word in about if len(word) > 3}
    overlap = len(asked & set(words)) / len(asked) if asked else 0.5
    length = math.exp(-0.5 * (math.log(len(words) / 150.0) / 1.5) ** 2)
    distinct = len(set(words[:200])) / len(words[:200])
    return 0.4 * min(1.0, 2.0 * overlap) + 0.35 * length + 0.25 * distinct


# -- reading what is asked ------------------------------------------------------------------------
Form = Literal["rating", "token", "ranking", "five", "score", "choice"]
Message = dict[str, str]
ALPACA_TEMPLATES: Mapping[Form, str] = {
    "token": "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
    "ranking": "alpaca_eval_gpt4/alpaca_eval.txt",
}
"""How the verdict is written → the prompt of alpaca_eval that asks for it so."""


@dataclass(frozen=True)
class Judgment:
    """What is to be judged. messages: the conversation up to the last question; answers: one
    (rating) or two (preference); form: how the verdict is written.
    """

    form: Form
    messages: list[Message]
    answers: tuple[str, ...]
    reference: str = ""


def read(messages: Sequence[Mapping[str, object]]) -> Judgment | None:
    """The judgment asked for by a chat request, or None when the prompt is of no known form."""
    said = [str(m.get("content") or "") for m in messages if m.get("role") == "user"]
    text = said[-1] if said else ""
    return (
        _alpaca(text)
        or _conversation(text)
        or _one_turn(text, "five")
        or _wildbench(text)
        or _one_turn(text, "rating")
    )


def _between(text: str, start: str, end: str) -> str | None:
    """Text after the first ``start`` and before the last ``end``."""
    left = text.find(start)
    right = text.rfind(end)
    return text[left + len(start) : right] if left >= 0 and right >= left + len(start) else None


def _user(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def _part(group: str, name: str, left: str, right: str, inside: str = ".*") -> str:
    """Pattern of what stands between a prompt's markers of a part; an answer may hold them too."""
    start, end = (re.escape(f"{left}The {edge} of {name}{right}") for edge in ("Start", "End"))
    return rf"{start}\n(?P<{group}>{inside})\n{end}"


_BOTH = r"\s*".join(_part(x.lower(), f"Assistant {x}'s Answer", "<|", "|>") for x in "AB")
_REFERENCE = _part("reference", "Reference Answer", "[", "]", ".*?")
_FORMS: Mapping[Form, str] = {
    "five": rf"<\|User Prompt\|>\n(?P<question>.*?)\n\n{_BOTH}",
    "rating": rf"\[Question\]\n(?P<question>.*?)\s*(?:{_REFERENCE}\s*)?"
    + _part("a", "Assistant's Answer", "[", "]"),
}


def _one_turn(text: str, form: Form) -> Judgment | None:
    match = re.search(_FORMS[form], text, re.DOTALL)
    if match is None:
        return None
    found = match.groupdict()
    answers = tuple(found[name] for name in "ab" if name in found)
    return Judgment(form, _user(found["question"]), answers, found.get("reference") or "")


def _wildbench(text: str) -> Judgment | None:
    query, one, a, b = (
        _between(text, f"<|begin_of_{part}|>\n\n", f"\n\n<|end_of_{part}|>")
        for part in ("query", "response", "response_A", "response_B")
    )
    if query is None:
        return None
    if one is not None:
        return Judgment("score", _user(query), (one,))
    return None if a is None or b is None else Judgment("choice", _user(query), (a, b))


def _turns(text: str) -> tuple[list[Message], str] | None:
    """The messages of a two-turn conversation between its markers, and its last answer."""
    mark = "\n\n### Assistant A:\n"
    first, found, rest = text.partition(mark)
    if not found or not first.strip().startswith("### User:\n"):
        return None
    question_1 = first.strip().removeprefix("### User:\n")
    # The answers may hold markers too: of all cuts, the shortest second question is the likeliest.
    second = rf"\n\n### User:\n(?P<question>(?:(?!\n\n### ).)*){mark}"
    cuts = list(re.finditer(second, rest, re.DOTALL))
    if not cuts:
        return _user(question_1), rest.strip("\n")
    cut = min(cuts, key=lambda c: len(c["question"]))
    said = {"role": "assistant", "content": rest[: cut.start()]}
    messages = [*_user(question_1), said, *_user(cut["question"])]
    return messages, rest[cut.end() :].removesuffix("\n\n")


def _conversation(text: str) -> Judgment | None:
    edge = "<|The {} of Assistant A's Conversation with User|>"
    inside = _between(text, edge.format("Start") + "\n\n", edge.format("End"))
    turns = _turns(inside) if inside is not None else None
    if turns is None:
        return None
    head = text.partition("<|The End of Reference Answer|>")[0]
    references = head.partition("<|The Start of Reference Answer|>\n\n")[2]
    _, found, last = references.rpartition("### Reference answer:\n")
    return Judgment("rating", turns[0], (turns[1],), last.strip() if found else "")


def _alpaca(text: str) -> Judgment | None:
    for form, template in ALPACA_TEMPLATES.items():
        user = dict(verdicts.annotator_prompt(template))["user"]
        pieces = re.split(r"\{instruction\}|\{output_1\}|\{output_2\}", user)
        if not text.startswith(pieces[0]):
            continue
        instruction, found, rest = text[len(pieces[0]) :].partition(pieces[1])
        output_1, between, output_2 = rest.rpartition(pieces[2])
        if not found or not between:
            return None
        cut = output_2.rfind(pieces[3].rstrip())
        second = output_2[:cut] if cut >= 0 else output_2
        return Judgment(form, _user(instruction), (output_1, second))
    return None


# -- serving ---------------------------------------------------------------------------------------
class JudgeServer:
    """Answers with the opinions (noise, biases, seed) of ``settings``."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {**OPINION, **settings}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One HTTP request."""
        return await chat_http.route(request, "pocket-judge", "pocket", self._completion)

    async def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("stream"):
            raise ValueError("streaming is not supported")
        return completion(body, *verdict(body, self.settings))


def completion(
    body: Mapping[str, Any],
    text: str,
    tokens: Mapping[str, float] | None,
    reason: str = "",
    thought: int = 0,
) -> dict[str, Any]:
    """The judge's text as a published completion: words are its tokens. tokens: probabilities of a
    verdict of one. reason: why it ends, if not by its length; thought: tokens written before it.
    """
    pieces = re.findall(r"\s*\S+\s*", text) or [text]
    asked = int(body.get("max_tokens") or body.get("max_completion_tokens") or 4096)
    limit = max(0, asked - thought)
    if not reason:
        reason = "length" if len(pieces) > limit or (limit == 1 and pieces) else "stop"
    pieces = pieces[:limit]
    top = int(body.get("top_logprobs") or 0)
    logprobs = [_token(piece, tokens, top) for piece in pieces] if body.get("logprobs") else None
    prompt_tokens = sum(4 + len(str(m.get("content") or "")) // 4 for m in body["messages"])
    choice = chat_http.Choice("".join(pieces), reason, len(pieces) + thought, logprobs)
    return chat_http.completion(body["model"], choice, prompt_tokens, "pocket")


def _token(piece: str, tokens: Mapping[str, float] | None, top: int) -> dict[str, Any]:
    shares = sorted((tokens or {piece: 0.999}).items(), key=lambda item: -item[1])
    listed = [(token, math.log(share)) for token, share in shares]
    own = next((entry for entry in listed if entry[0] == piece), listed[0])
    return chat_http.token_entry(own, listed[:top])


def shared_server(opinion: Mapping[str, Any]) -> str:
    """Address of this process's judge with these opinions; started at the first call."""
    return _shared(json.dumps(dict(opinion), sort_keys=True))


@functools.cache
def _shared(settings: str) -> str:
    kept_open = ExitStack()
    atexit.register(kept_open.close)
    return kept_open.enter_context(chat_http.serving(JudgeServer(json.loads(settings)).handle))
