"""Prompts and their responses laid out as one row of tokens, and rows cut into batches.

The tokens of every prompt are followed by its unique responses, one after the other. Positions
restart after the prompt for every response. A token sees its own prompt and its own response's
past, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.model import attention as shared_prefix
from harness.model.attention import Layout, on_device
from harness.records import HarnessError


@dataclass(frozen=True)
class PackedPrompt:
    """A prompt with its unique responses, as token ids. A response holds its end-of-turn token and
    is never empty.
    """

    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens computed for it."""
        return len(self.prompt_ids) + sum(len(response) for response in self.responses)


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of one packed batch. predict: (M,) positions whose hidden state predicts ``targets``
    (M,); response_of: (M,) response index.
    """

    input_ids: Tensor
    position_ids: Tensor
    predict: Tensor
    targets: Tensor
    response_of: Tensor
    lengths: tuple[int, ...]
    layout: Layout

    @property
    def responses(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.input_ids.shape[1])

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on another device."""
        if torch.device(device) == self.input_ids.device:
            return self
        names = ("input_ids", "position_ids", "predict", "targets", "response_of")
        moved: dict[str, Any] = {name: on_device(getattr(self, name), device) for name in names}
        return replace(self, layout=self.layout.to(device), **moved)


def pack(rows: Sequence[PackedPrompt]) -> PackedBatch:
    """Lay prompts and responses out in one row of tokens. Responses keep their order: row by row.

    Raises HarnessError on an empty prompt or response (nothing would predict it).
    """
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []
    predict: list[int] = []
    lengths: list[int] = []
    prompt_spans: list[tuple[int, int]] = []
    response_spans: list[tuple[tuple[int, int], ...]] = []
    for number, row in enumerate(rows):
        if not row.prompt_ids or not row.responses or not all(row.responses):
            raise HarnessError(
                f"packed row {number}: prompt and responses must have at least one token each"
            )
        start, size = len(ids), len(row.prompt_ids)
        ids.extend(row.prompt_ids)
        positions.extend(range(size))
        owner.extend([-1 - number] * size)
        prompt_spans.append((start, start + size))
        spans = []
        for response in row.responses:
            first, count = len(ids), len(response)
            ids.extend(response)
            positions.extend(range(size, size + count))
            owner.extend([len(lengths)] * count)
            predict.extend([start + size - 1, *range(first, first + count - 1)])
            lengths.append(count)
            spans.append((first, first + count))
        response_spans.append(tuple(spans))
    spans_of = (tuple(prompt_spans), tuple(response_spans))
    layout = Layout(*spans_of, torch.tensor(positions), torch.tensor(owner))
    tokens, responses = torch.tensor(ids), layout.owner >= 0
    if len(ids) <= shared_prefix.SHORT_PROMPT_TOKENS * len(rows):
        shared_prefix.add_padded_form(layout)
    return PackedBatch(
        tokens[None],
        layout.positions[None],
        torch.tensor(predict),
        targets=tokens[responses],
        response_of=layout.owner[responses],
        lengths=tuple(lengths),
        layout=layout,
    )


def chunk_by_tokens(sizes: Sequence[int], budget: int, most_rows: int = 0) -> list[list[int]]:
    """Cut row indices, longest first, into groups of at most ``budget`` tokens and ``most_rows``
    rows (0: no limit).
    """
    groups: list[list[int]] = []
    used = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        full = groups and (
            (budget and used + sizes[i] > budget) or (most_rows and len(groups[-1]) >= most_rows)
        )
        if not groups or full:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += sizes[i]
    return groups
