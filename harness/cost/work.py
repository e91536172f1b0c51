"""Counting rules: what each stage has to do, from its settings and those of its inputs. Every count
keeps the sentence it came from. A benchmark's stage is counted by its own record. And what judging
takes, judge by judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.engine.graph import Node, Plan
from harness.evaluate.benchmark import reply_tokens
from harness.evaluate.registry import BENCHMARKS
from harness.rankers.pairs import SELECTORS
from harness.rankers.registry import RANKERS
from harness.study.sections import JudgeSettings
from harness.study.tasks import PortionTask, Runtime
from harness.study.work import LENGTHS, Lengths, Work
from harness.train.objectives import OBJECTIVES

ROWS = {"HuggingFaceH4/ultrafeedback_binarized": 61_135}
"""Training rows of known data sets; of others the data stage's record or ``data.prompts`` tells."""
POCKET_ROWS = 1536
ROLLOUTS = ("rollout", "current", "first")
TO_PROMPTS = ("pairs", *ROLLOUTS)
"""Inputs that lead back to a portion of the prompts."""
ANSWERS_OF_A_ROW = 7 / 3
"""y is one of the pair in two of three rows, so that a row holds 2⅓ different answers."""


@dataclass(frozen=True)
class Counting:
    """Counts a plan's stages. rows_in_all: training rows, 0 where nothing tells."""

    plan: Plan
    lengths: Lengths
    pocket: bool
    rows_in_all: int = 0

    def work(self, node: Node) -> Work:
        """The work of one stage."""
        if node.stage in RULES:
            return RULES[node.stage](self, node, node.settings)
        for benchmark in BENCHMARKS.values():
            for scoring in (benchmark, benchmark.pairs):
                if scoring and node.stage == scoring.stage:
                    return scoring.work(Inputs(self, node), node.settings)
        return Work(rows=1)

    def source(self, node: Node, name: str) -> Node:
        """The stage that makes an input."""
        return self.plan.nodes[node.inputs[name]]

    def answer_tokens(self, limit: int) -> int:
        """Tokens of an answer of at most ``limit``."""
        return min(self.lengths.answer, limit)

    def trained_answer(self, max_length: int) -> int:
        """Tokens of an answer in a training row of at most ``max_length``."""
        return max(1, min(self.lengths.answer, max_length - self.lengths.prompt))

    def prompts(self, node: Node) -> int:
        """Prompts of one iteration, found by following a stage back to its portion of them."""
        share = 1.0
        while not isinstance(node.settings, PortionTask):
            if node.stage == "pairs.merge":
                return sum(self.prompts(self.plan.nodes[key]) for key in node.inputs.values())
            if "select" in node.inputs:
                selected: Any = self.source(node, "select").settings
                share = SELECTORS[selected.selector].share(selected)
            node = self.source(node, next(name for name in TO_PROMPTS if name in node.inputs))
        settings = node.settings
        data: Any = self.source(node, "data").settings
        whole = settings.prompts or self.rows_in_all or ROWS.get(data.path, POCKET_ROWS)
        portion = whole // settings.portions
        limit = settings.prompts_per_iteration
        return math.ceil(share * (min(portion, limit) if limit else portion))


@dataclass(frozen=True)
class Inputs:
    """What a benchmark's record counts with: the settings of its stage's inputs."""

    counting: Counting
    node: Node

    @property
    def lengths(self) -> Lengths:
        return self.counting.lengths

    @property
    def pocket(self) -> bool:
        return self.counting.pocket

    def settings(self, name: str) -> Any:
        """Settings of the stage that makes an input; of the benchmarks' files, by benchmark."""
        return self.counting.source(self.node, name).settings

    def limit(self, benchmark: str, whole: int) -> int:
        """Items of a benchmark: all of them, or as many as its limit says."""
        prepared = self.settings("benchmarks")
        sections = prepared.limits if self.pocket else prepared.sections
        limit = sections[benchmark].limit if benchmark in sections else 0
        return min(whole, limit or whole)

    def ranked(self, kind: str, prompts: int, texts: int) -> Work:
        """Ranking so many texts for each prompt."""
        return RANKERS[kind].work(self.lengths, prompts, texts)


def _base_pocket(count: Counting, _node: Node, settings: Any) -> Work:
    rows = float(settings.steps * settings.batch_size)
    tokens = 2 * (count.lengths.prompt + count.lengths.answer)
    return Work(rows, trained=rows * tokens, how=f"{rows:,.0f} rows × {tokens} tokens")


def _ranker_train(count: Counting, node: Node, settings: Any) -> Work:
    data: Any = count.source(node, "data").settings
    pairs = data.ranker_pairs * settings.epochs
    tokens = pairs * 2 * (count.lengths.prompt + count.lengths.answer)
    return Work(pairs, trained=tokens, how=f"{pairs:,} pairs × 2 × (prompt + answer) tokens")


def _rollout(count: Counting, node: Node, settings: Any) -> Work:
    prompts, samples = count.prompts(node), settings.samples
    rows, length = prompts * samples, count.answer_tokens(settings.max_new_tokens)
    prompt = count.lengths.prompt
    how = f"{prompts:,} prompts × {samples} answers × ({prompt} read + {length} generated) tokens"
    return Work(rows, rows * prompt, rows * length, how=how)


def _drawn(count: Counting, node: Node) -> int:
    """Candidates of a prompt that were drawn."""
    settings: Any = node.settings
    further: list[Any] = [count.source(node, name) for name in ROLLOUTS[1:] if name in node.inputs]
    y = 1 if settings.y is None else settings.y
    return int(y + sum(one.settings.samples for one in further))


def _select(count: Counting, node: Node, _settings: Any) -> Work:
    prompts, answers, prompt = count.prompts(node), _drawn(count, node), count.lengths.prompt
    passes = 2 if "reference_policy" in node.inputs else 1
    read = passes * prompts * (prompt + answers * count.lengths.answer)
    how = f"{passes} × {prompts:,} prompts × ({prompt} + {answers} × {count.lengths.answer}) tokens"
    return Work(prompts * answers, read, how=how)


def _count(count: Counting, node: Node, settings: Any) -> Work:
    prompts, prompt = count.prompts(node), count.lengths.prompt
    answer = count.trained_answer(settings.max_length)
    how = f"{prompts:,} prompts × ({prompt} + {answer}) tokens"
    return Work(prompts, float(prompts * (prompt + answer)), how=how)


def _rank(count: Counting, node: Node, settings: Any) -> Work:
    texts = 2 * settings.offline + _drawn(count, node)
    if "select" in node.inputs:
        texts = 2
    return RANKERS[settings.kind].work(count.lengths, count.prompts(node), texts)


def _answers(roles: Sequence[str]) -> float:
    """Different answers of a row: its pair, the first y, and further samples of y."""
    return 2.0 if len(roles) == 2 else ANSWERS_OF_A_ROW + len(roles) - 3


def _reference(count: Counting, node: Node, settings: Any) -> Work:
    prompts, prompt = count.prompts(node), count.lengths.prompt
    answers, answer = _answers(settings.roles), count.trained_answer(settings.max_length)
    read = prompts * (prompt + answers * answer)
    how = f"{prompts:,} pairs × ({prompt} + {answers:.3g} × {answer}) tokens"
    return Work(prompts, read, how=how)


def _train(count: Counting, node: Node, settings: Any) -> Work:
    prompts, epochs, prompt = count.prompts(node), settings.training.epochs, count.lengths.prompt
    answers = _answers(settings.objective.roles)
    answer = count.trained_answer(settings.training.max_length)
    rows = prompts * epochs
    trained = rows * (prompt + answers * answer)
    how = f"{prompts:,} pairs × {epochs} epochs × ({prompt} + {answers:.3g} × {answer}) tokens"
    statistic, read = OBJECTIVES[settings.objective.name].statistic, 0
    if statistic:
        others = len(statistic.reads)
        read = rows * (prompt + others * answer)
        how += f", and × ({prompt} + {others} × {answer}) read before, for the batch's mean"
    return Work(rows, float(read), trained=trained, how=how)


def _answer(count: Counting, node: Node, settings: Any) -> Work:
    inputs, parts = Inputs(count, node), []
    rows = generated = 0.0
    for name in settings.sets:
        count_asked = BENCHMARKS[name].asked
        if count_asked is None:
            continue
        asked = count_asked(inputs, settings)
        rows, generated = rows + asked.rows, generated + asked.generated
        parts.append(asked.how)
    read = rows * count.lengths.prompt
    how = f"{' + '.join(parts)} tokens, and {count.lengths.prompt} read for each"
    return Work(rows, read, generated, how=how)


def _diagnostics(count: Counting, _node: Node, settings: Any) -> Work:
    rows = float(settings.prompts * settings.samples)
    length = count.answer_tokens(settings.max_new_tokens)
    read = rows * 8 * (count.lengths.prompt + length)
    how = f"{settings.prompts} prompts × {settings.samples} samples × {length} tokens drawn"
    return Work(rows, read, rows * length, how=f"{how}, and about 8 passes over them")


RULES: Mapping[str, Callable[[Counting, Node, Any], Work]] = {
    "base.pocket": _base_pocket,
    "ranker.train": _ranker_train,
    "rollout": _rollout,
    "select": _select,
    "rank": _rank,
    "count": _count,
    "reference": _reference,
    "train": _train,
    "answer": _answer,
    "diagnostics": _diagnostics,
}
"""How the work of a stage is counted; stages that only move files are one row."""


# -- judging ---------------------------------------------------------------------------------------
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


def price(judge: JudgeSettings, runtime: Runtime, work: Work) -> float:
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
            old.usd + price(judge, runtime, work),
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
