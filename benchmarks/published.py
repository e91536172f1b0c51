"""The published formulation of a SELM step, as the yardstick of ``bench_training``: padded batches,
chosen and rejected concatenated, a separate pass for y, full float32 log-softmax, and two passes of
the reference model every step.

Written anew from the description in the paper (arXiv 2405.19332) and its released recipe's
behaviour; no code is theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.train.batching import PreferenceRow


def padded_logps(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: str
) -> Tensor:
    """log pi(response | prompt) of a padded batch, from full float32 logits; shape (B,)."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    seen, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        size = len(prompt) + len(response)
        ids[i, :size] = torch.tensor([*prompt, *response])
        seen[i, :size] = 1
        labels[i, len(prompt) : size] = ids[i, len(prompt) : size]
    ids, seen, labels = ids.to(device), seen.to(device), labels.to(device)
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    mask = targets != -100
    table = torch.gather(logits.log_softmax(-1), 2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (table * mask).sum(-1)


def loss(
    policy: Any,
    reference: Any,
    rows: Sequence[PreferenceRow],
    *,
    alpha: float,
    beta: float,
    device: str,
) -> Tensor:
    """Mean over rows of -log sigma(beta Delta) + alpha beta (log pi(y) - log pi_ref(y))."""
    prompts = [row.prompt_ids for row in rows]
    pairs = [row.responses["chosen"] for row in rows] + [row.responses["rejected"] for row in rows]
    explored = [row.responses["explore"] for row in rows]
    logps = []
    for model, context in ((policy, contextlib.nullcontext()), (reference, torch.no_grad())):
        with context:
            logps.append(
                (
                    padded_logps(model, prompts + prompts, pairs, device),
                    padded_logps(model, prompts, explored, device),
                )
            )
    (policy_pair, policy_y), (reference_pair, reference_y) = logps
    chosen, rejected = (policy_pair - reference_pair).chunk(2)
    return (
        -logsigmoid(beta * (chosen - rejected)) + alpha * beta * (policy_y - reference_y)
    ).mean()
