"""A language model as ranker: every two answers are shown in both orders to a judge, in AlpacaEval
2.0's own words.

The judge answers one token, "m" for the output shown first or "M" for the second; with their
probabilities, p = P(m) / (P(m) + P(M)), averaged over the two orders, is the preference, and a
text's score is its mean preference over the other texts of its prompt (0.5 when it is alone).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

from harness.judge import verdicts
from harness.judge.client import JudgeClient, JudgeReply, JudgeRequest
from harness.judge.journal import finalise
from harness.rankers.ranker import Messages, RankContext, Ranked, Ranker, RankItem
from harness.records import Status
from harness.study.work import Lengths, Work

FIRST, SECOND = "m", "M"
TEMPLATE = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Mean preference of every text over its prompt's others."""
    assert context.judge is not None
    parameters: dict[str, Any] = {}
    if context.judge.verdict != "text":
        parameters = {"temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}
    requests = [
        JudgeRequest(
            f"{item.id}:{a}:{b}",
            comparison(item.messages, item.texts[a], item.texts[b]),
            parameters,
        )
        for item in items
        for a, b in permutations(range(len(item.texts)), 2)
    ]
    with JudgeClient(context.judge, context.runtime, context.out) as client:
        replies = client.complete(requests, accept=lambda one: preference(one) is not None)
        for name, amount in client.costs.items():
            context.add_cost(name, amount)
    finalise(context.out)
    left = iter(replies)
    return [_ranked(len(item.texts), left) for item in items]


def _ranked(count: int, replies: Iterator[JudgeReply]) -> Ranked:
    """Scores of one item's texts, whose replies come next."""
    first: dict[tuple[int, int], float] = {}
    failed: list[Status] = []
    for pair in permutations(range(count), 2):
        reply = next(replies)
        said = preference(reply)
        if reply.status != "ok" or said is None:
            failed.append("unparsed" if reply.status == "ok" else reply.status)
        else:
            first[pair] = said
    if failed:
        return Ranked((), "error" if "error" in failed else failed[0])
    if count < 2:
        return Ranked((0.5,) * count)
    scores = [0.0] * count
    for a, b in first:
        scores[a] += 0.5 * (first[a, b] + 1.0 - first[b, a])
    return Ranked(tuple(score / (count - 1) for score in scores))


def preference(reply: JudgeReply) -> float | None:
    """Probability that the output shown first is better, from the first token's log-probs, or from
    the text where the judge gives none; None when unreadable.
    """
    if reply.logprobs:
        found = verdicts.verdict_logprobs(reply.logprobs[0], (FIRST, SECOND))
        if found is None:
            return None
        first, second = (math.exp(found.get(one, -math.inf)) for one in (FIRST, SECOND))
        return first / (first + second)
    return {FIRST: 1.0, SECOND: 0.0}.get(reply.text.strip(" \t\n*_\"'`.()"))


def comparison(messages: Messages, first: str, second: str) -> tuple[dict[str, str], ...]:
    """The judge's chat: AlpacaEval's template filled with the prompt and two outputs."""
    instruction = messages[0]["content"]
    if len(messages) > 1:
        instruction = "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)
    values = {"{instruction}": instruction, "{output_1}": first, "{output_2}": second}
    pattern = re.compile("|".join(re.escape(name) for name in values))
    return tuple(
        {"role": role, "content": pattern.sub(lambda match: values[match.group()], text)}
        for role, text in verdicts.annotator_prompt(TEMPLATE)
    )


def _work(lengths: Lengths, prompts: int, texts: int) -> Work:
    rows, pairs = prompts * texts, prompts * texts * (texts - 1)
    prompt = pairs * (lengths.prompt + 2 * lengths.answer)
    how = f"{prompts:,} prompts × {texts} answers, every ordered pair"
    return Work(rows, judge_calls=pairs, judge_prompt=prompt, judge_reply=pairs, how=how)


RANKER = Ranker("judge", rank, pairwise=True, even=0.5, asks_judge=True, work=_work)
