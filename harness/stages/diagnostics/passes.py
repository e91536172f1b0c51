"""Model passes of the diagnostics: every answer under every policy once, and exact per-token KL
along the policy's own samples.

One packed pass per policy scores all answers of a chunk of prompts. For the checkpoint's own
samples the hidden states at the predicting positions are kept, so that next-token distributions of
two policies can be compared without holding both models: full logits exist for a chunk of tokens at
a time. Legend: M predicted tokens, H hidden width, V vocabulary, R responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.model.head import chunk_rows, head_logps, output_head
from harness.model.logprobs import (
    PackedBatch,
    PackedPrompt,
    base_model_of,
    chunk_by_tokens,
    pack,
    packed_attention,
    predicting_states,
)
from harness.records import HarnessError

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
    """Sheets of one packed batch. own_tokens: (M',) which of the M predicted tokens belong to own
    samples; hidden: π_θ's states there.
    """

    sheets: list[Sheet]
    batch: PackedBatch
    own_tokens: Tensor
    hidden: Tensor | None = None

    def answers(self) -> Iterator[tuple[Sheet, TokenIds]]:
        for sheet in self.sheets:
            for answer in sheet.responses:
                yield sheet, answer


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
    theta = names["theta"]
    head: Any = None
    for checkpoint in [theta, *(c for c in policies if c != theta)]:
        roles = [role for role, name in names.items() if name == checkpoint]
        model = base_model_of(policies[checkpoint]().model)
        with torch.no_grad(), packed_attention(model):
            for chunk in chunks:
                hidden = predicting_states(model, chunk.batch.to(next(model.parameters()).device))
                _note_logps(chunk, roles, _token_logps(output_head(model), hidden, chunk.batch))
                own_hidden = hidden.index_select(0, chunk.own_tokens.to(hidden.device))
                if checkpoint == theta:
                    chunk.hidden = own_hidden
                    head = output_head(model)
                    _note_entropy(chunk, _step_sums(chunk, own_hidden, head, None, None))
                compared = [role for role in roles if role in ("base", "previous")]
                if compared:
                    values = (
                        _step_sums(chunk, chunk.hidden, head, own_hidden, output_head(model))
                        if checkpoint != theta
                        else None
                    )
                    _note_kl(chunk, compared, values)


def _chunks(sheets: Sequence[Sheet], token_budget: int) -> list[_Chunk]:
    rows = [PackedPrompt(sheet.prompt_ids, tuple(sheet.responses)) for sheet in sheets]
    chunks = []
    for members in chunk_by_tokens([row.tokens for row in rows], token_budget):
        batch = pack([rows[i] for i in members])
        chunk = _Chunk([sheets[i] for i in members], batch, torch.empty(0))
        own = torch.tensor([answer in sheet.own for sheet, answer in chunk.answers()])
        chunk.own_tokens = own[batch.response_of].nonzero()[:, 0]
        chunks.append(chunk)
    return chunks


def _token_logps(head: Any, hidden: Tensor, batch: PackedBatch) -> Tensor:
    return head_logps(head, hidden, batch.targets.to(hidden.device)).double().cpu()


def _note_logps(chunk: _Chunk, roles: Sequence[str], token_logps: Tensor) -> None:
    sums = (
        torch.zeros(chunk.batch.responses, dtype=torch.float64)
        .index_add(0, chunk.batch.response_of, token_logps)
        .tolist()
    )
    for (sheet, answer), value in zip(chunk.answers(), sums, strict=True):
        for role in roles:
            sheet.logps.setdefault(role, {})[answer] = value


def _step_sums(
    chunk: _Chunk, hidden: Tensor | None, head: Any, other: Tensor | None, other_head: Any
) -> list[float]:
    """Per response the sum over its own-sample tokens of KL(π_θ‖π_other), or of the entropy of π_θ
    when there is no other.
    """
    if hidden is None:
        raise HarnessError(
            "diagnostics: the checkpoint itself must be scored before the policies it is compared "
            "with"
        )
    parts = []
    size = chunk_rows(head.weight.shape[0], hidden.device)
    for start in range(0, len(hidden), size):
        logp = head(hidden[start : start + size]).float().log_softmax(-1)
        if other is None:
            parts.append(-(logp.exp() * logp).sum(-1))
        else:
            logq = other_head(other[start : start + size]).float().log_softmax(-1)
            parts.append((logp.exp() * (logp - logq)).sum(-1))
    steps = torch.cat(parts).double().cpu() if parts else torch.zeros(0, dtype=torch.float64)
    sums = torch.zeros(chunk.batch.responses, dtype=torch.float64)
    return sums.index_add(0, chunk.batch.response_of[chunk.own_tokens], steps).tolist()  # type: ignore[no-any-return]


def _note_entropy(chunk: _Chunk, values: Sequence[float]) -> None:
    for (sheet, answer), value in zip(chunk.answers(), values, strict=True):
        if answer in sheet.own:
            sheet.entropy[answer] = value


def _note_kl(chunk: _Chunk, roles: Sequence[str], values: Sequence[float] | None) -> None:
    """``values`` None: the policy is the checkpoint itself, and the divergence 0."""
    for place, (sheet, answer) in enumerate(chunk.answers()):
        if answer in sheet.own:
            for role in roles:
                sheet.kl.setdefault(role, {})[answer] = 0.0 if values is None else values[place]
