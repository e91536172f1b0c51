"""Stage `reference`: log pi_ref of every response of every pair, once per (policy, pairs), shared
by all that train from them. Stage `average`: the moving pi_ref of ``loop.reference_policy: ema``.

Written: reference.parquet, one row per (pair, role): row (place in pairs.jsonl), prompt_id, role,
logp (nats, summed over the response's tokens, end of turn included), tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.model.policy import load_policy
from harness.records import StageOutcome, StageTask
from harness.study.tasks import AverageTask, ReferenceTask
from harness.train.batching import PreferenceRow, encode_pairs, with_others, with_reference

FILE = "reference.parquet"


def run(task: StageTask[ReferenceTask]) -> StageOutcome:
    """Score the pairs under the reference policy, in the precision in which training computes the
    policy's: before the first step both are then the same numbers, but for how batches are cut.
    Settings: max_length, max_prompt_length, truncation, dtype, mixed, attention, roles,
    base.
    """
    settings = task.settings
    policy = load_policy(
        task.inputs["policy"],
        dtype="float32" if settings.mixed else settings.dtype,
        attention=settings.scoring_attention,
        device=task.runtime.device,
        quantised=settings.base != "whole",
    )
    rows = encode_pairs(policy.tokenizer, task.inputs["pairs"], settings.limits)
    rows = with_others(rows, settings.roles, settings.max_length)
    budget = task.runtime.token_budget or 8192
    half = settings.dtype == "bfloat16"
    rows = with_reference(policy.model, rows, settings.roles, budget, mixed=half)
    written = write_reference(task.out / FILE, rows)
    tokens = sum(row.packed(list(row.reference))[0].tokens for row in rows)
    return StageOutcome(rows=written, costs={"tokens_scored": tokens})


def write_reference(path: Path, rows: Sequence[PreferenceRow]) -> int:
    """Write the log-probabilities by place and role; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [
        (i, row.prompt_id, role, logp, len(row.responses[role]))
        for i, row in enumerate(rows)
        for role, logp in row.reference.items()
    ]
    types = {
        "row": pa.int64(),
        "prompt_id": pa.string(),
        "role": pa.string(),
        "logp": pa.float64(),
        "tokens": pa.int64(),
    }
    columns = {name: [item[k] for item in flat] for k, name in enumerate(types)}
    pq.write_table(
        pa.table(columns, schema=pa.schema(list(types.items()))), path, compression="zstd"
    )
    return len(flat)


def average(task: StageTask[AverageTask]) -> StageOutcome:
    """Write the policy's folder with its parameters replaced by d average + (1 - d) policy,
    computed in float32 and stored in the run's precision. d: ``decay``.
    """
    settings = task.settings
    former, policy = (
        load_policy(
            task.inputs[name],
            dtype="float32",
            attention=settings.scoring_attention,
            device="cpu",
            cached=False,
        ).model
        for name in ("average", "policy")
    )
    kept = dict(former.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.lerp_(kept[name], settings.decay)
    shutil.copytree(task.inputs["policy"] / "model", task.out / "model", dirs_exist_ok=True)
    for file in (task.out / "model").glob("*.safetensors*"):
        file.unlink()
    policy.to(getattr(torch, settings.dtype)).save_pretrained(task.out / "model")
    return StageOutcome(rows=len(kept))
