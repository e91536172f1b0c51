"""Stage ``data.pocket``: prompts with offline pairs, held-out and out-of-distribution prompts, and
supervised conversations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from harness.pocket import language, oracle
from harness.pocket.language import Rng
from harness.records import HarnessError, Prompt, StageOutcome, StageTask, write_jsonl
from harness.study.tasks import PocketDataTask

DEFAULT_PROMPTS = 1536
"""Training prompts when ``prompts`` is 0: three iterations of 512."""
PAIR_CORRECT_SHARE = 0.7
"""Share of right answers among the offline answers, which come from 'other models'."""


def with_pair(
    prompt: Prompt, rng: Rng, best_style_share: float, best_style_worth: float = 1.0
) -> Prompt:
    """The prompt with two drawn answers, the one of higher reward as chosen."""
    task = oracle.task_of(prompt.messages)
    for _ in range(1000):
        shares = {"correct_share": PAIR_CORRECT_SHARE, "best_style_share": best_style_share}
        drawn = [language.sample_answer(task, rng, **shares) for _ in range(2)]
        rewards = [oracle.reward(prompt.messages, text, best_style_worth) for text in drawn]
        if rewards[0] != rewards[1]:
            best = 0 if rewards[0] > rewards[1] else 1
            return dataclasses.replace(prompt, chosen=drawn[best], rejected=drawn[1 - best])
    raise HarnessError(
        f"prompt {prompt.id}: a thousand draws gave no two answers of different reward; check the "
        "styles' shares"
    )


def conversation(rng: Rng, best_style_share: float) -> list[dict[str, str]]:
    """Turns of one supervised conversation: a prompt (75 %), a prompt and its follow-up (18 %), or
    two to three unrelated prompts (7 %).
    """
    kind = rng.random()
    turns = 1 if kind < 0.93 else int(rng.integers(2, 4))
    messages: list[dict[str, str]] = []

    def say(task: language.Task) -> None:
        answer = language.sample_answer(task, rng, best_style_share=best_style_share)
        messages.append({"role": "user", "content": language.render(task, rng)})
        messages.append({"role": "assistant", "content": answer})

    for _ in range(turns):
        task = language.sample_task(rng, "train")
        say(task)
    if 0.75 <= kind < 0.93:
        say(language.sample_follow_up(task, rng))
    return messages


def run(task: StageTask[PocketDataTask]) -> StageOutcome:
    """Write train.jsonl, heldout.jsonl, ood.jsonl (Prompt rows) and sft.jsonl ({"messages"})."""
    settings, world = task.settings, task.settings.world
    seed, share = settings.seed, settings.best_style_share
    offline = share if world.offline_best_style_share is None else world.offline_best_style_share
    sizes: dict[language.Split, int] = {
        "train": settings.prompts or DEFAULT_PROMPTS,
        "heldout": settings.heldout,
        "ood": settings.ood,
    }
    rows = 0
    for number, (split, size) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, number])
        two_turns = 0.0 if split == "ood" else 0.2
        asked = language.sample_prompts(size, rng, split, two_turn_share=two_turns)
        pairs = (with_pair(prompt, rng, offline, world.best_style_worth) for prompt in asked)
        rows += write_jsonl(task.out / f"{split}.jsonl", pairs)
    rng = np.random.default_rng([seed, len(sizes)])
    said = ({"messages": conversation(rng, share)} for _ in range(settings.rows))
    rows += write_jsonl(task.out / "sft.jsonl", said)
    return StageOutcome(rows=rows, summary=dict[str, Any](**sizes, sft=settings.rows))
