"""Stage ``count``: how rarely the exploration responses of the pairs were met, which COPO's bonus
reads.

Written: counts.parquet, one row per (pair, role of y): row (place in pairs.jsonl), prompt_id, role,
rarity (√mean f² of a coin-flip head, about n^(-1/2) for an answer met n times).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from harness.model.logprobs import PackedPrompt
from harness.model.policy import load_policy
from harness.model.probes import rarity, response_states
from harness.records import StageOutcome, StageTask, request_seed
from harness.study.tasks import CountTask
from harness.train.batching import encode_pairs

FILE = "counts.parquet"


def run(task: StageTask[CountTask]) -> StageOutcome:
    """Fit the head to the states of every y under the reference policy, and read it there."""
    settings = task.settings
    policy = load_policy(
        task.inputs["policy"],
        dtype=settings.dtype,
        attention=settings.scoring_attention,
        device=task.runtime.device,
    )
    rows = encode_pairs(policy.tokenizer, task.inputs["pairs"], settings.limits)
    asked: list[tuple[int, str, str, int, int]] = []
    packed: list[PackedPrompt] = []
    for number, row in enumerate(rows):
        roles = [role for role in row.responses if role.startswith("explore")]
        if roles:
            prompt, slots = row.packed(roles)
            asked += [(number, row.prompt_id, role, len(packed), slots[role]) for role in roles]
            packed.append(prompt)
    states = response_states(policy.model, packed, token_budget=task.runtime.token_budget or 8192)
    found: list[float] = []
    if asked:
        every = torch.stack([states[place][slot] for *_, place, slot in asked])
        seed = request_seed(settings.seed, settings.iteration, "count")
        found = rarity(every, settings.counts, seed).tolist()
    columns = {
        name: [one[k] for one in asked] for k, name in enumerate(("row", "prompt_id", "role"))
    }
    pq.write_table(pa.table(columns | {"rarity": found}), task.out / FILE)
    tokens = sum(prompt.tokens for prompt in packed)
    return StageOutcome(len(found), costs={"tokens_scored": tokens})
