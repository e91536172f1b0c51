"""Size and direction of the exploration term's gradient against DPO's, on small batches of the
iteration's training pairs.

grad_ratio = |c|·‖g_y‖ / ‖g_DPO‖ and grad_cosine = cos(sign(c)·g_y, g_DPO), with g_y the gradient of
the batch mean of log π_θ(y), g_DPO that of −log σ(βΔ), c the objective's coefficient (sign +1 where
c is 0). Measured where the iteration's training starts (``grad_*``) and at the checkpoint
(``grad_*_end``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from harness.model.chat import PromptTooLongError
from harness.model.logprobs import base_model_of, packed_attention, sequence_logps
from harness.records import Pair, StageTask, read_jsonl
from harness.study.tasks import DiagnosticsTask, ObjectiveTask
from harness.train.batching import PreferenceRow, encode_pair, make_micro_batch

ROWS = 8
"""Pairs of one batch."""
BATCHES = 2


@dataclass(frozen=True)
class GradientPair:
    """ratio is None where g_DPO is 0; cosine is None where either gradient is 0."""

    ratio: float | None
    cosine: float | None


def read_rows(task: StageTask[DiagnosticsTask], tokenizer: Any) -> list[PreferenceRow]:
    """The last pairs that have an exploration response (with accumulated data: the iteration's
    own), encoded as in training.
    """
    rows: list[PreferenceRow] = []
    for raw in reversed(list(read_jsonl(task.inputs["pairs"] / "pairs.jsonl"))):
        pair = Pair(**raw)
        if not pair.explore:
            continue
        try:
            lengths = {
                "max_length": task.settings.max_length,
                "max_prompt_length": task.settings.max_prompt_length,
            }
            rows.append(encode_pair(tokenizer, pair, **lengths))
        except PromptTooLongError:
            continue
        if len(rows) == ROWS * BATCHES:
            break
    return rows


def coefficient(objective: ObjectiveTask) -> tuple[float, float]:
    """(c, β) of the stage's objective, c without the ``negative`` placebo's sign."""
    sign = -1.0 if objective.placebo == "negative" else 1.0
    return sign * objective.c, objective.beta


def measure(model: Any, rows: Sequence[PreferenceRow], *, c: float, beta: float) -> GradientPair:
    """Gradients of one batch at the model's present parameters; the model's own ``.grad`` stays as
    it is.
    """
    base = base_model_of(model)
    parameters = [p for p in base.parameters() if p.requires_grad]
    roles = ("chosen", "rejected", "explore")
    batch = make_micro_batch(rows, roles).to(parameters[0].device)
    with torch.enable_grad(), packed_attention(base):
        logps = sequence_logps(base, batch.batch)
        by_role = {role: logps[batch.slots[role]] for role in roles}
        gap = (
            by_role["chosen"]
            - batch.reference["chosen"]
            - by_role["rejected"]
            + batch.reference["rejected"]
        )
        loss = -logsigmoid(beta * gap).mean()
        dpo = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        explore = torch.autograd.grad(by_role["explore"].mean(), parameters, allow_unused=True)
    dot = dpo_square = explore_square = 0.0
    for g, h in zip(dpo, explore, strict=True):
        if g is not None and h is not None:
            dot += float((g.double() * h.double()).sum())
        dpo_square += 0.0 if g is None else float(g.double().square().sum())
        explore_square += 0.0 if h is None else float(h.double().square().sum())
    return compare(dot, dpo_square, explore_square, c)


def compare(dot: float, dpo_square: float, explore_square: float, c: float) -> GradientPair:
    """The pair of numbers from g_y·g_DPO, ‖g_DPO‖² and ‖g_y‖²."""
    ratio = abs(c) * math.sqrt(explore_square / dpo_square) if dpo_square > 0 else None
    product = math.sqrt(dpo_square * explore_square)
    return GradientPair(
        ratio, math.copysign(1.0, c or 1.0) * dot / product if product > 0 else None
    )
