"""Model passes of the diagnostics: every answer under every policy once, and exact per-token KL
along the policy's own samples.

One packed pass per policy scores all answers of a chunk of prompts. For the checkpoint's own
samples the hidden states at the predicting positions are kept, so that next-token distributions of
two policies can be compared without holding both models: full logits exist for a chunk of tokens at
a time. Legend: M predicted tokens, H hidden width, V vocabulary, R responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.model.attention import PackedBatch, PackedPrompt, chunk_by_tokens, pack
from harness.model.chat import PromptTooLongError
from harness.model.logprobs import (
    base_model_of,
    chunk_rows,
    head_logps,
    output_head,
    packed_attention,
    predicting_states,
    sequence_logps,
)
from harness.records import Pair, StageTask, read_jsonl
from harness.study.tasks import DiagnosticsTask
from harness.train.batching import PreferenceRow, encode_pair, make_micro_batch
from harness.train.objectives import PAIR

TokenIds = tuple[int, ...]


@dataclass
class Sheet:
    """Answers of one prompt to be scored. own: those sampled by the checkpoint. Filled in: logps by
    policy; kl by policy and entropy for own ones.
    """

    prompt_ids: TokenIds
    responses: dict[TokenIds, None] = field(default_factory=dict)
    own: set[TokenIds] = field(default_factory=set)
    logps: dict[str, dict[TokenIds, float]] = field(default_factory=dict)
    kl: dict[str, dict[TokenIds, float]] = field(default_factory=dict)
    entropy: dict[TokenIds, float] = field(default_factory=dict)

    def add(self, ids: Sequence[int], *, own: bool = False) -> TokenIds:
        """Ask for an answer; equal ones are scored once."""
        answer = tuple(ids)
        if answer:
            self.responses.setdefault(answer)
            if own:
                self.own.add(answer)
        return answer


@dataclass
class _Chunk:
    """Sheets of one packed batch. answers: the sheet and tokens of each response. own_tokens: (M',)
    which of the M predicted tokens belong to own samples; hidden: π_θ's states there.
    """

    answers: list[tuple[Sheet, TokenIds]]
    batch: PackedBatch
    own_tokens: Tensor
    hidden: Tensor | None = None

    def sums(self, values: Tensor, *, own: bool = False) -> list[float]:
        """Sums of token values (of own samples' tokens) by response, float64."""
        of = self.batch.response_of[self.own_tokens] if own else self.batch.response_of
        zeros = torch.zeros(self.batch.responses, dtype=torch.float64)
        found: list[float] = zeros.index_add(0, of, values).tolist()
        return found


def score_sheets(
    sheets: Sequence[Sheet],
    policies: Mapping[str, Callable[[], Any]],
    names: Mapping[str, str],
    *,
    token_budget: int,
) -> None:
    """Fill the sheets' logps, kl and entropy.

    policies: loader by distinct checkpoint; names: role (theta, reference, base, previous) →
    checkpoint. Models are loaded one after the other, the checkpoint θ first; KL is taken against
    ``base`` and ``previous``. No gradient; numbers are float64 sums of float32 terms.
    """
    chunks = _chunks([sheet for sheet in sheets if sheet.responses], token_budget)
    theta, theta_head = names["theta"], None
    for checkpoint in [theta, *(c for c in policies if c != theta)]:
        roles = [role for role, name in names.items() if name == checkpoint]
        compared = [role for role in roles if role in ("base", "previous")]
        model = base_model_of(policies[checkpoint]().model)
        head, device = output_head(model), next(model.parameters()).device
        with torch.no_grad(), packed_attention(model):
            for chunk in chunks:
                batch = chunk.batch.to(device)
                hidden = predicting_states(model, batch)
                logps = head_logps(head, hidden, batch.targets).double().cpu()
                own_hidden = hidden.index_select(0, chunk.own_tokens.to(device))
                # From itself the checkpoint diverges by exactly 0.
                divergences = [0.0] * chunk.batch.responses
                entropies = None
                if checkpoint == theta:
                    chunk.hidden, theta_head = own_hidden, head
                    entropies = chunk.sums(_entropies(head, own_hidden), own=True)
                elif compared:
                    steps = _divergences(theta_head, chunk.hidden, head, own_hidden)
                    divergences = chunk.sums(steps, own=True)
                sums = chunk.sums(logps)
                for place, (sheet, answer) in enumerate(chunk.answers):
                    for role in roles:
                        sheet.logps.setdefault(role, {})[answer] = sums[place]
                    if answer not in sheet.own:
                        continue
                    if entropies is not None:
                        sheet.entropy[answer] = entropies[place]
                    for role in compared:
                        sheet.kl.setdefault(role, {})[answer] = divergences[place]


def _chunks(sheets: Sequence[Sheet], token_budget: int) -> list[_Chunk]:
    rows = [PackedPrompt(sheet.prompt_ids, tuple(sheet.responses)) for sheet in sheets]
    chunks = []
    for members in chunk_by_tokens([row.tokens for row in rows], token_budget):
        batch = pack([rows[i] for i in members])
        answers = [(sheets[i], answer) for i in members for answer in sheets[i].responses]
        own = torch.tensor([answer in sheet.own for sheet, answer in answers])
        chunks.append(_Chunk(answers, batch, own[batch.response_of].nonzero()[:, 0]))
    return chunks


def _entropies(head: Any, hidden: Tensor) -> Tensor:
    """Entropy of π_θ at every row of hidden states, (M',) float64, a chunk of logits at a time."""
    parts = [torch.zeros(0)]
    for rows in hidden.split(chunk_rows(head.weight.shape[0], hidden.device)):
        logp = head(rows).float().log_softmax(-1)
        parts.append(-(logp.exp() * logp).sum(-1).cpu())
    return torch.cat(parts).double()


def _divergences(head: Any, hidden: Any, other_head: Any, other: Tensor) -> Tensor:
    """KL(π_θ‖π_other) at every row, (M',) float64."""
    parts = [torch.zeros(0)]
    size = chunk_rows(head.weight.shape[0], hidden.device)
    for rows, other_rows in zip(hidden.split(size), other.split(size), strict=True):
        logp = head(rows).float().log_softmax(-1)
        logq = other_head(other_rows).float().log_softmax(-1)
        parts.append((logp.exp() * (logp - logq)).sum(-1).cpu())
    return torch.cat(parts).double()


# --- gradients ------------------------------------------------------------------------------------
# Size and direction of the exploration term's gradient against DPO's, on small batches of the
# iteration's training pairs: grad_ratio = |c|·‖g_y‖ / ‖g_DPO‖ and grad_cosine = cos(sign(c)·g_y,
# g_DPO), with g_y the gradient of the batch mean of log π_θ(y), g_DPO that of −log σ(βΔ), c the
# coefficient as trained, a placebo's sign included (sign +1 where c is 0). Measured where the
# iteration's training starts (``grad_*``) and at the checkpoint (``grad_*_end``).

ROWS = 8
"""Pairs of one batch."""
BATCHES = 2


@dataclass(frozen=True)
class GradientPair:
    """ratio is None where g_DPO is 0; cosine is None where either gradient is 0."""

    ratio: float | None
    cosine: float | None


def read_rows(task: StageTask[DiagnosticsTask], tokenizer: Any) -> list[PreferenceRow]:
    """The last pairs that have an exploration response, encoded as in training."""
    rows: list[PreferenceRow] = []
    for raw in reversed(list(read_jsonl(task.inputs["pairs"] / "pairs.jsonl"))):
        pair = Pair(**raw)
        if not pair.explore:
            continue
        try:
            rows.append(encode_pair(tokenizer, pair, **task.settings.limits))
        except PromptTooLongError:
            continue
        if len(rows) == ROWS * BATCHES:
            break
    return rows


def gradient_pair(
    model: Any, rows: Sequence[PreferenceRow], *, c: float, beta: float
) -> GradientPair:
    """Gradients of one batch at the model's parameters; its own ``.grad`` stays as it is."""
    base = base_model_of(model)
    parameters = [p for p in base.parameters() if p.requires_grad]
    y = sorted(set.intersection(*(set(row.responses) for row in rows)) - set(PAIR))
    roles = (*PAIR, *y)
    batch = make_micro_batch(rows, roles).to(parameters[0].device)
    with torch.enable_grad(), packed_attention(base):
        logps = sequence_logps(base, batch.batch)
        by_role = {role: logps[batch.slots[role]] for role in roles}
        gap = by_role["chosen"] - batch.reference["chosen"]
        gap = gap - by_role["rejected"] + batch.reference["rejected"]
        loss = -logsigmoid(beta * gap).mean()
        dpo = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        term = torch.stack([by_role[role] for role in y]).mean()
        explore = torch.autograd.grad(term, parameters, allow_unused=True)
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
