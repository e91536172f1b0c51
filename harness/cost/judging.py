"""What judging takes, judge by judge, before anything is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.evaluate.benchmark import reply_tokens
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime
from harness.study.work import LENGTHS, Work

CHECKPOINT = {"mt_bench": 160, "alpaca_eval": 805}
"""Judgments of one checkpoint on the whole benchmarks."""


@dataclass(frozen=True)
class Bill:
    """What one judge is asked by some stages. Tokens of prompts and replies; usd: their price."""

    name: str
    calls: float
    prompt: float
    reply: float
    usd: float
    priced: bool

    def __str__(self) -> str:
        tokens = f"{self.prompt:,.0f} + {self.reply:,.0f} tokens"
        price = f"{self.usd:,.2f} USD"
        if not self.usd and not self.priced:
            price += " (no prices in runtime.price_…)"
        return f"{self.name}: {self.calls:,.0f} calls of {tokens} = {price}"


def usd(judge: JudgeSettings, runtime: Runtime, work: Work) -> float:
    """Price of a stage's judging."""
    prompt, completion = judge.prices(runtime)
    return (work.judge_prompt * prompt + work.judge_reply * completion) / 1e6


def bills(asked: Iterable[tuple[JudgeSettings, Runtime, Work]]) -> Sequence[Bill]:
    """One bill for every judge, in the order in which they first come."""
    found: dict[str, Bill] = {}
    for judge, runtime, work in asked:
        name = judge.profile or judge.model
        name += " by batch" if judge.transport == "batch" else ""
        old = found.get(name, Bill(name, 0, 0, 0, 0, True))
        found[name] = Bill(
            name,
            old.calls + work.judge_calls,
            old.prompt + work.judge_prompt,
            old.reply + work.judge_reply,
            old.usd + usd(judge, runtime, work),
            judge.facts is not None or judge.kind == "pocket",
        )
    return list(found.values())


def of_a_checkpoint(judge: JudgeSettings, runtime: Runtime) -> str:
    """What one checkpoint costs on whole MT-Bench and AlpacaEval, in words."""
    prompts = {"mt_bench": LENGTHS.rating_prompt, "alpaca_eval": LENGTHS.verdict_prompt}
    works = []
    for benchmark, items in CHECKPOINT.items():
        calls = items * judge.repeats * judge.samples
        reply = reply_tokens(judge, LENGTHS, pairwise=benchmark == "alpaca_eval")
        prompt = calls * prompts[benchmark]
        works.append(Work(judge_calls=calls, judge_prompt=prompt, judge_reply=calls * reply))
    (bill,) = bills((judge, runtime, work) for work in works)
    return f"one checkpoint on MT-Bench and AlpacaEval, {bill}"
