"""Stage `reference`: log pi_ref of every response of every pair, once per (policy, pairs), shared
by all that train from them.

Written: reference.parquet, one row per (pair, role): row (place in pairs.jsonl), prompt_id, role,
logp (nats, summed over the response's tokens, end of turn included), tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.model.logprobs import response_logps
from harness.model.policy import load_policy
from harness.records import HarnessError, Pair, StageOutcome, StageTask, read_jsonl
from harness.study.tasks import ReferenceTask
from harness.train.batching import PreferenceRow, encode_pair

FILE = "reference.parquet"


def run(task: StageTask[ReferenceTask]) -> StageOutcome:
    """Score the pairs under the reference policy. Settings: max_length, max_prompt_length, dtype,
    attention, roles.
    """
    settings = task.settings
    policy = load_policy(
        task.inputs["policy"],
        dtype=settings.dtype,
        attention=settings.attention,
        device=task.runtime.device,
    )
    rows = read_rows(task.inputs["pairs"], policy.tokenizer, settings)
    roles = list(settings.roles)
    scored = reference_logps(policy.model, rows, roles, int(task.runtime.token_budget or 8192))
    written = write_reference(task.out / FILE, rows, scored)
    tokens = sum(
        row.packed([role for role in roles if role in row.responses])[0].tokens for row in rows
    )
    return StageOutcome(rows=written, costs={"tokens_scored": tokens})


def read_rows(pairs: Path, tokenizer: Any, settings: ReferenceTask) -> list[PreferenceRow]:
    """Token rows of a pairs folder, in file order."""
    limits = {"max_length": settings.max_length, "max_prompt_length": settings.max_prompt_length}
    found = [
        encode_pair(tokenizer, Pair(**row), **limits) for row in read_jsonl(pairs / "pairs.jsonl")
    ]
    if not found:
        raise HarnessError(f"{pairs / 'pairs.jsonl'}: no pairs to train on")
    return found


def reference_logps(
    model: Any, rows: Sequence[PreferenceRow], roles: Sequence[str], token_budget: int
) -> list[dict[str, float]]:
    """For every row, role → log pi of that response; responses that are equal are scored once."""
    packed = [row.packed([role for role in roles if role in row.responses]) for row in rows]
    values = response_logps(model, [prompt for prompt, _ in packed], token_budget=token_budget)
    return [
        {role: own[slot] for role, slot in slots.items()}
        for own, (_, slots) in zip(values, packed, strict=True)
    ]


def write_reference(
    path: Path, rows: Sequence[PreferenceRow], scored: Sequence[dict[str, float]]
) -> int:
    """Write the rows sorted by place and role; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbered = enumerate(zip(rows, scored, strict=True))
    flat = [
        (i, row.prompt_id, role, own[role], len(row.responses[role]))
        for i, (row, own) in numbered
        for role in own
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
