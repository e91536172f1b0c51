"""A language model as ranker: every two answers are shown in both orders to a judge, in AlpacaEval
2.0's own words.

The judge answers one token, "m" for the output shown first or "M" for the second; with their
probabilities, p = P(m) / (P(m) + P(M)), averaged over the two orders, is the preference, and a
text's score is its mean preference over the other texts of its prompt (0.5 when it is alone).
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

from harness.judge.client import (
    JOURNAL_NAME,
    JUDGMENTS_NAME,
    JudgeClient,
    JudgeReply,
    JudgeRequest,
    finalise,
)
from harness.judge.verdicts import verdict_logprobs
from harness.rankers.ranker import RankContext, Ranked, Ranker, RankItem
from harness.records import HarnessError, Status
from harness.study.work import Lengths, Work

FIRST, SECOND = "m", "M"


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Mean preference of every text over the others; an item with a failed call is "error", with an
    unreadable verdict "unparsed".
    """
    if context.judge is None:
        raise HarnessError("ranker.kind judge needs the judge settings")
    duels = [
        (i, a, b)
        for i, item in enumerate(items)
        for a, b in permutations(range(len(item.texts)), 2)
    ]
    parameters: dict[str, Any] = {}
    if context.judge.verdict != "text":
        parameters = {"temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}
    requests = [
        JudgeRequest(
            f"{items[i].id}:{a}:{b}",
            comparison(items[i].messages, items[i].texts[a], items[i].texts[b]),
            parameters,
        )
        for i, a, b in duels
    ]
    with JudgeClient(context.judge, context.runtime, context.out / JOURNAL_NAME) as client:
        replies = client.complete(requests, accept=lambda reply: preference(reply) is not None)
        for name, amount in client.costs.items():
            context.add_cost(name, amount)
    finalise(context.out / JOURNAL_NAME, context.out / JUDGMENTS_NAME)
    found = dict(zip(duels, replies, strict=True))
    return [
        _ranked(
            len(item.texts),
            {(a, b): found[i, a, b] for a, b in permutations(range(len(item.texts)), 2)},
        )
        for i, item in enumerate(items)
    ]


def _ranked(count: int, replies: Mapping[tuple[int, int], JudgeReply]) -> Ranked:
    status = _status(replies)
    if status != "ok":
        return Ranked((), status)
    first = {pair: preference(reply) or 0.0 for pair, reply in replies.items()}
    if count < 2:
        return Ranked((0.5,) * count)
    return Ranked(
        tuple(
            sum(0.5 * (first[a, b] + 1.0 - first[b, a]) for b in range(count) if b != a)
            / (count - 1)
            for a in range(count)
        )
    )


def _status(replies: Mapping[tuple[int, int], JudgeReply]) -> Status:
    statuses = [
        reply.status if reply.status != "ok" or preference(reply) is not None else "unparsed"
        for reply in replies.values()
    ]
    if "error" in statuses:
        return "error"
    return next((status for status in statuses if status != "ok"), "ok")


def preference(reply: JudgeReply) -> float | None:
    """Probability that the output shown first is better, from the first token's log-probs, or from
    the text where the judge gives none; None when unreadable.
    """
    if reply.logprobs:
        found = verdict_logprobs(reply.logprobs[0], (FIRST, SECOND))
        if found is None:
            return None
        first, second = (math.exp(found[one]) if one in found else 0.0 for one in (FIRST, SECOND))
        return first / (first + second)
    return {FIRST: 1.0, SECOND: 0.0}.get(reply.text.strip())


def comparison(
    messages: Sequence[Mapping[str, str]], first: str, second: str
) -> tuple[dict[str, str], ...]:
    """The judge's chat: AlpacaEval's template filled with the prompt and two outputs."""
    instruction = (
        messages[0]["content"]
        if len(messages) == 1
        else "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)
    )
    values = {"{instruction}": instruction, "{output_1}": first, "{output_2}": second}
    pattern = re.compile("|".join(re.escape(name) for name in values))
    return tuple(
        {"role": role, "content": pattern.sub(lambda match: values[match.group()], text)}
        for role, text in _template()
    )


@lru_cache(maxsize=1)
def _template() -> tuple[tuple[str, str], ...]:
    """Turns of the template that ships with alpaca_eval (read from its package, which is not
    imported: that takes seconds).
    """
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise HarnessError(
            "ranker.kind judge needs the alpaca_eval package for its prompt; install the "
            "project's dependencies"
        )
    file = (
        Path(spec.submodule_search_locations[0])
        / "evaluators_configs"
        / "alpaca_eval_clf_gpt4_turbo"
        / "alpaca_eval_clf.txt"
    )
    turns: list[Any] = re.findall(
        r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", file.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    return tuple((str(role), str(text).strip()) for role, text in turns)


def _work(lengths: Lengths, prompts: int, texts: int) -> Work:
    rows, pairs = prompts * texts, prompts * texts * (texts - 1)
    prompt = pairs * (lengths.prompt + 2 * lengths.answer)
    how = f"{prompts:,} prompts × {texts} answers, every ordered pair"
    return Work(rows, judge_calls=pairs, judge_prompt=prompt, judge_reply=pairs, how=how)


RANKER = Ranker("judge", rank, pairwise=True, even=0.5, asks_judge=True, work=_work)
