"""What training reads beside its pairs, once per (policy, pairs) and shared by all that train from
them. Stage `reference`: log pi_ref of every response. Stage `count`: how rarely each exploration
response was met, which COPO's bonus reads. Stage `average`: the moving pi_ref of
``loop.reference_policy: ema``.

Written: reference.parquet with logp (nats, summed over the response's tokens, end of turn included)
and tokens, or counts.parquet with rarity (√mean f² of a coin-flip head, about n^(-1/2) for an
answer met n times): one row per (pair, role), with row (place in pairs.jsonl), prompt_id and role.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from harness.model.attention import PackedPrompt
from harness.model.policy import load_policy
from harness.model.probes import rarity, response_states
from harness.records import StageOutcome, StageTask, request_seed
from harness.study.tasks import AverageTask, CountTask, ReferenceTask
from harness.train.batching import encode_pairs, with_others, with_reference

ROW = {"row": pa.int64(), "prompt_id": pa.string(), "role": pa.string()}


def run(task: StageTask[ReferenceTask]) -> StageOutcome:
    """Score the pairs under the reference policy, in the precision in which training computes the
    policy's: before the first step both are then the same numbers, but for how batches are cut.
    """
    settings = task.settings
    how = settings.scoring(task.runtime.device) | {"quantised": settings.base != "whole"}
    if settings.mixed:
        how["dtype"] = "float32"
    policy = load_policy(task.inputs["policy"], **how)
    rows = encode_pairs(policy.tokenizer, task.inputs["pairs"], settings.limits)
    rows = with_others(rows, settings.roles, settings.max_length)
    budget = task.runtime.token_budget or 8192
    half = settings.dtype == "bfloat16"
    rows = with_reference(policy.model, rows, settings.roles, budget, mixed=half)
    flat = [
        (i, row.prompt_id, role, logp, len(row.responses[role]))
        for i, row in enumerate(rows)
        for role, logp in row.reference.items()
    ]
    types = ROW | {"logp": pa.float64(), "tokens": pa.int64()}
    _write(task.out / "reference.parquet", flat, types)
    tokens = sum(row.packed(list(row.reference))[0].tokens for row in rows)
    return StageOutcome(rows=len(flat), costs={"tokens_scored": tokens})


def _write(path: Path, rows: Sequence[tuple[Any, ...]], types: Mapping[str, Any]) -> None:
    columns = {name: [row[k] for row in rows] for k, name in enumerate(types)}
    table = pa.table(columns, schema=pa.schema(list(types.items())))
    pq.write_table(table, path, compression="zstd")


def count(task: StageTask[CountTask]) -> StageOutcome:
    """Fit the head to the states of every y under the reference policy, and read it there."""
    settings = task.settings
    policy = load_policy(task.inputs["policy"], **settings.scoring(task.runtime.device))
    rows = encode_pairs(policy.tokenizer, task.inputs["pairs"], settings.limits)
    asked: list[tuple[int, str, str]] = []
    places: list[tuple[int, int]] = []
    packed: list[PackedPrompt] = []
    for number, row in enumerate(rows):
        if roles := [role for role in row.responses if role.startswith("explore")]:
            prompt, slots = row.packed(roles)
            asked += [(number, row.prompt_id, role) for role in roles]
            places += [(len(packed), slots[role]) for role in roles]
            packed.append(prompt)
    states = response_states(policy.model, packed, token_budget=task.runtime.token_budget or 8192)
    found: list[float] = []
    if asked:
        every = torch.stack([states[place][slot] for place, slot in places])
        seed = request_seed(settings.seed, settings.iteration, "count")
        found = rarity(every, settings.counts, seed).tolist()
    table = [(*one, value) for one, value in zip(asked, found, strict=True)]
    _write(task.out / "counts.parquet", table, ROW | {"rarity": pa.float64()})
    tokens = sum(prompt.tokens for prompt in packed)
    return StageOutcome(len(found), costs={"tokens_scored": tokens})


def average(task: StageTask[AverageTask]) -> StageOutcome:
    """Write the policy's folder with its parameters replaced by d average + (1 - d) policy,
    computed and stored in float32: bfloat16 would round most of a step of 1 - d away, and the
    average would stand still. d: ``decay``.
    """
    settings = task.settings
    how = settings.scoring("cpu") | {"dtype": "float32"}
    former, policy = (
        load_policy(task.inputs[name], cached=False, **how).model for name in ("average", "policy")
    )
    kept = dict(former.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.lerp_(kept[name], settings.decay)
    shutil.copytree(task.inputs["policy"] / "model", task.out / "model", dirs_exist_ok=True)
    for file in (task.out / "model").glob("*.safetensors*"):
        file.unlink()
    policy.save_pretrained(task.out / "model")
    return StageOutcome(rows=len(kept))
