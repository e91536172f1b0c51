"""A checkpoint answers every benchmark with one model load. Stage ``answer``.

What is asked, and how the answers are laid out, is the benchmarks' (`harness.evaluate`). All first
rounds are one batch sorted by length, second rounds (MT-Bench's second turns) another. Seeds follow
the run's (FastChat gives a question the same seed in every run). A failed answer is a status, never
a text.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from harness.evaluate.benchmark import Ask
from harness.evaluate.registry import BENCHMARKS
from harness.model.chat import PromptTooLongError, encode_prompt
from harness.model.generate import engine_of, generate
from harness.model.policy import Policy, load_policy
from harness.model.vllm_engine import Engine
from harness.records import (
    Generation,
    GenerationRequest,
    StageOutcome,
    StageTask,
    Tally,
    request_seed,
)
from harness.study.tasks import AnswerTask


class AnswerDesk:
    """Draws answers and keeps them by key."""

    def __init__(self, policy: Policy, settings: AnswerTask, engine: Engine | None = None) -> None:
        self.policy, self.settings, self.engine = policy, settings, engine
        self.answers: dict[tuple[Any, ...], Generation] = {}

    def seed(self, key: tuple[Any, ...]) -> int:
        """Seed of an answer."""
        return request_seed(self.settings.seed, self.settings.iteration, "answer", *key)

    def ask(self, asks: Iterable[Ask]) -> None:
        """Draw answers in one batch; a prompt the model has no room for is "no_answer"."""
        requests: dict[tuple[Any, ...], GenerationRequest] = {}
        for ask in asks:
            try:
                ids = tuple(encode_prompt(self.policy.tokenizer, ask.messages, ask.limit))
            except PromptTooLongError as error:
                self.answers[ask.key] = Generation((), "", "no_answer", str(error))
                continue
            requests[ask.key] = GenerationRequest(
                ids, ask.max_new_tokens, ask.temperature, 1.0, self.seed(ask.key)
            )
        batch, asked = self.settings.generation_batch, list(requests.values())
        drawn = generate(self.policy, asked, batch_size=batch, engine=self.engine)
        self.answers.update(zip(requests, drawn, strict=True))


def run(task: StageTask[AnswerTask]) -> StageOutcome:
    """Write the answer file of every benchmark in ``settings.sets``."""
    settings = task.settings
    policy = load_policy(task.inputs["policy"], **settings.sampling(task.runtime.device))
    makers = [BENCHMARKS[name].questions for name in settings.sets]
    asking = [make(task) for make in makers if make is not None]
    with engine_of(policy, settings, task.runtime) as engine:
        desk = AnswerDesk(policy, settings, engine)
        for together in itertools.zip_longest(*(one.rounds(desk) for one in asking), fillvalue=()):
            desk.ask(itertools.chain(*together))
    for one in asking:
        one.write(desk, task.out)
    return _outcome(desk, task.stage)


def _outcome(desk: AnswerDesk, stage: str) -> StageOutcome:
    statuses: dict[str, Counter[str]] = {}
    tallies: dict[str, Tally] = {}
    for (name, *rest), answer in desk.answers.items():
        statuses.setdefault(name, Counter())[answer.status] += 1
        tally = tallies.setdefault(name, Tally(stage, f"{name} answers"))
        tally.meet(" ".join(map(str, rest)), answer.status)
    summary: dict[str, Any] = {
        name: dict(sorted(count.items())) for name, count in sorted(statuses.items())
    }
    failed = [answer.error for answer in desk.answers.values() if answer.status == "error"]
    if failed:
        summary["errors"] = sorted(set(failed))[:5]
    tokens = sum(len(answer.token_ids) for answer in desk.answers.values())
    costs = {"tokens_generated": tokens, "answers_generated": len(desk.answers)}
    left_out = tuple(one for tally in tallies.values() for one in tally.left_out())
    return StageOutcome(len(desk.answers), len(failed), costs, summary, left_out)
