"""A portion of the prompts: a policy answers it (stage ``rollout``), or its pairs are taken as
labelled (stage ``pairs.labelled``).

The training prompts are shuffled by the run's seed and cut into equal portions; iteration t reads
portion t. With more iterations than portions the prompts are met again, shuffled anew. Every answer
has a seed of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from harness.model.chat import PromptTooLongError, encode_prompt
from harness.model.generate import engine_of, generate
from harness.model.policy import load_policy, load_tokenizer
from harness.records import (
    GenerationRequest,
    HarnessError,
    LeftOut,
    Pair,
    Prompt,
    Response,
    StageOutcome,
    StageTask,
    Tally,
    content_hash,
    read_jsonl,
    request_seed,
    write_jsonl,
)
from harness.study.tasks import LabelledTask, PortionTask, RolloutTask


def portion(prompts: Sequence[Prompt], settings: PortionTask) -> list[Prompt]:
    """The prompts of this iteration, in the run's order.

    Settings: seed, order, portion (from 0), portions, prompts_per_iteration (0: the whole portion),
    prompts (0: all). Each portion has len(prompts) // portions rows; what does not divide is left
    out.
    """
    wanted, portions, limit = settings.prompts, settings.portions, settings.prompts_per_iteration
    if wanted > len(prompts):
        raise HarnessError(
            f"data.prompts asks for {wanted} training prompts; there are {len(prompts)}"
        )
    order, place = _ordered(prompts, settings), settings.portion % portions
    size = len(order) // portions
    if size == 0:
        raise HarnessError(
            f"{len(order)} training prompts cannot be cut into {portions} portions; give more "
            "prompts or fewer iterations"
        )
    part = order[place * size : (place + 1) * size]
    if limit > len(part):
        raise HarnessError(
            f"loop.prompts_per_iteration is {limit}; a portion has {len(part)} prompts "
            f"({len(order)} // {portions})"
        )
    return part[:limit] if limit else part


def _ordered(prompts: Sequence[Prompt], settings: PortionTask) -> list[Prompt]:
    """The prompts of a study in the run's order, which each pass over them draws anew."""
    order = list(prompts[: settings.prompts or None])
    if settings.order != "seed":
        return order
    cycle = settings.portion // settings.portions
    seed = int(content_hash("prompt order", settings.seed, cycle, length=16), 16)
    return [order[i] for i in np.random.default_rng(seed).permutation(len(order))]


def run(task: StageTask[RolloutTask]) -> StageOutcome:
    """Write ``prompts.jsonl`` (this portion, in order) and ``responses.jsonl`` (records.Response by
    prompt order and sample).

    Prompts over ``max_prompt_length`` tokens follow ``overlong_prompts``; the record counts them.
    Answers of an earlier, partial attempt are kept; only its failed ones are drawn again.
    """
    settings = task.settings
    policy = load_policy(task.inputs["policy"], **settings.sampling(task.runtime.device))
    kept, left_out = _kept(task, policy.tokenizer)
    samples = range(settings.first_sample, settings.first_sample + settings.samples)
    most, top_p = settings.max_new_tokens, settings.top_p
    temperature = 0.0 if settings.decoding == "greedy" else settings.temperature
    wanted: dict[tuple[str, int, int], GenerationRequest] = {}
    for (prompt, ids), sample in product(kept, samples):
        seed = request_seed(settings.seed, settings.iteration, "rollout", prompt.id, sample)
        asked = GenerationRequest(ids, most, temperature, top_p, seed)
        wanted[prompt.id, sample, seed] = asked
    write_jsonl(task.out / "prompts.jsonl", (prompt for prompt, _ in kept))
    file = task.out / "responses.jsonl"
    done = _answered(file)
    missing = [key for key in wanted if key not in done]
    with engine_of(policy, settings, task.runtime) as engine:
        batch, requests = settings.generation_batch, [wanted[key] for key in missing]
        drawn = generate(policy, requests, batch_size=batch, engine=engine)
    for (name, sample, seed), a in zip(missing, drawn, strict=True):
        done[name, sample, seed] = Response(name, sample, a.text, a.token_ids, a.status, seed)
    responses = [done[key] for key in wanted]
    write_jsonl(file, responses)
    statuses, tally = (
        Counter(response.status for response in responses),
        Tally(task.stage, "samples"),
    )
    for response in responses:
        tally.meet(f"{response.prompt_id} {response.sample}", response.status)
    tokens = sum(len(answer.token_ids) for answer in drawn)
    return StageOutcome(
        len(responses),
        statuses["error"],
        {"tokens_generated": tokens, "answers_generated": len(drawn)},
        {"prompts": len(kept), "status": dict(sorted(statuses.items()))},
        left_out + tally.left_out(),
    )


def _answered(file: Path) -> dict[tuple[str, int, int], Response]:
    """What an earlier attempt has drawn, by prompt, sample and seed, without its failures."""
    done: dict[tuple[str, int, int], Response] = {}
    for row in read_jsonl(file) if file.exists() else ():
        if row["status"] != "error":
            old = Response(**{**row, "token_ids": tuple(row["token_ids"])})
            done[old.prompt_id, old.sample, old.seed] = old
    return done


def labelled(task: StageTask[LabelledTask]) -> StageOutcome:
    """Write ``pairs.jsonl`` (records.Pair) of this portion, each pair as the data give it; what has
    none, or one of equal answers, is counted in the record.
    """
    kept, left_out = _kept(task, load_tokenizer(task.inputs["policy"]))
    pairs, tally = [], Tally(task.stage, "labelled pairs")
    for prompt, _ in kept:
        status = "ok"
        if not (prompt.chosen.strip() and prompt.rejected.strip()):
            status = "no offline pair"
        elif prompt.chosen == prompt.rejected:
            status = "identical"
        else:
            pairs.append(Pair(prompt.id, prompt.messages, prompt.chosen, prompt.rejected, ""))
        tally.meet(prompt.id, status)
    left_out += tally.left_out()
    if not pairs:
        reasons = {one.reason: one.count for one in left_out}
        raise HarnessError(f"no prompt of the portion has a labelled pair ({reasons})")
    write_jsonl(task.out / "pairs.jsonl", pairs)
    return StageOutcome(len(pairs), summary={"pairs": len(pairs)}, left_out=left_out)


def _kept(
    task: StageTask[RolloutTask] | StageTask[LabelledTask], tokenizer: Any
) -> tuple[list[tuple[Prompt, tuple[int, ...]]], tuple[LeftOut, ...]]:
    """(prompt, ids) of every prompt of the portion that is used, and what is told of the others;
    with the first portion of a pass, of prompts in none. Raises HarnessError where more than
    ``max_left_out`` are too long.
    """
    settings, tally = task.settings, Tally(task.stage, "prompts")
    limit, rule = settings.max_prompt_length, settings.overlong_prompts
    done = {"drop": "over", "truncate": "cut to", "keep": "kept over"}.get(rule, "")
    every = [Prompt(**row) for row in read_jsonl(task.inputs["data"] / "train.jsonl")]
    kept = []
    for prompt in portion(every, settings):
        tally.read += 1
        try:
            kept.append((prompt, tuple(encode_prompt(tokenizer, prompt.messages, limit))))
        except PromptTooLongError as error:
            tally.leave_out(f"{done} training.max_prompt_length = {limit} tokens", prompt.id)
            if rule == "refuse":
                raise HarnessError(
                    f"prompt {prompt.id}: {error}. Raise training.max_prompt_length, or let such "
                    "prompts be dropped or truncated"
                ) from error
            if rule in ("keep", "truncate"):
                one = truncate(tokenizer, prompt, limit) if rule == "truncate" else prompt
                kept.append((one, tuple(encode_prompt(tokenizer, one.messages))))
    if rule == "drop":
        tally.check(settings.max_left_out, "the portion's prompts")
    undivided = Tally(task.stage, "training prompts")
    if settings.portion % settings.portions == 0:
        order = _ordered(every, settings)
        undivided.read = len(order)
        for prompt in order[len(order) // settings.portions * settings.portions :]:
            reason = f"in none of the {settings.portions} portions, which are equal"
            undivided.leave_out(reason, prompt.id)
    return kept, undivided.left_out() + tally.left_out()


def truncate(tokenizer: Any, prompt: Prompt, limit: int) -> Prompt:
    """The prompt without its oldest turns, then without the beginning of its last one, until it
    fits ``limit`` tokens.

    The shortened messages are what every later stage sees.
    """
    messages = [dict(m) for m in prompt.messages]
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    while len(turns) > 2 and len(encode_prompt(tokenizer, [*system, *turns])) > limit:
        turns = turns[2:]
    while (excess := len(encode_prompt(tokenizer, [*system, *turns])) - limit) > 0:
        text = {"add_special_tokens": False, "split_special_tokens": True}
        ids = tokenizer(turns[-1]["content"], **text)["input_ids"]
        if excess >= len(ids):
            raise HarnessError(
                f"prompt {prompt.id}: the chat template alone takes more than "
                f"training.max_prompt_length = {limit} tokens"
            )
        shorter = tokenizer.decode(ids[excess:], skip_special_tokens=True).lstrip("�")
        turns[-1] = {**turns[-1], "content": shorter}
    return replace(prompt, messages=(*system, *turns))
