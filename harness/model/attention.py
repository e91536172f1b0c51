"""Attention over prompts that share their tokens among several responses, as a transformers
attention implementation.

All tokens of a batch are one row of N tokens, prompt after prompt, each followed by its responses.
A token sees its own prompt and its own response's past, nothing else. Two forms give the same
numbers: one padded call for all prompts (short prompts), or one causal call per response (long
ones; a first response is contiguous with its prompt and needs no mask).

Legend: N tokens, B prompts, T longest prompt with its responses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.records import HarnessError

ATTENTION = "selm_shared_prefix"
"""Name under which the attention of packed batches is registered; without a layout it is plain
SDPA.
"""

CHANGES_SCORES = ("softcap", "s_aux", "position_bias", "alibi")
"""Keyword arguments with which some models change their attention scores."""

SHORT_PROMPT_TOKENS = 160
"""Mean tokens per packed prompt below which one padded attention call beats one call per response
(measured on CPU).
"""


@dataclass
class Layout:
    """Who sees whom. Spans are (start, end) in the row of N tokens: one per prompt, and one per
    response of each prompt.

    positions: (N,) place within prompt and own response. owner: (N,) number of the response,
    negative for prompt tokens. padded: (B * T,) indices into the N tokens when the padded form is
    used; place: (N,) index of each token in that form. masks: additive masks by (window, form),
    made at first use and shared by all layers. calls: attention calls that read the layout.
    """

    prompt_spans: tuple[tuple[int, int], ...]
    response_spans: tuple[tuple[tuple[int, int], ...], ...]
    positions: Tensor
    owner: Tensor
    padded: Tensor | None = None
    place: Tensor | None = None
    longest: int = 0
    calls: int = 0
    masks: dict[Any, Tensor] = field(default_factory=dict)


def add_padded_form(layout: Layout) -> None:
    """(B, T) form of the batch: padding points at token 0 and is masked."""
    spans = [
        (prompt[0], responses[-1][1])
        for prompt, responses in zip(layout.prompt_spans, layout.response_spans, strict=True)
    ]
    longest = max(end - start for start, end in spans)
    columns = torch.arange(longest)
    starts = torch.tensor([start for start, _ in spans])[:, None]
    sizes = torch.tensor([end - start for start, end in spans])[:, None]
    inside = columns < sizes
    layout.padded = torch.where(inside, starts + columns, torch.zeros_like(starts)).reshape(-1)
    layout.place = inside.reshape(-1).nonzero()[:, 0]
    layout.longest = longest


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed batch when ``packed_layout`` is among the keyword arguments, else plain
    SDPA.
    """
    layout: Layout | None = kwargs.pop("packed_layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    unknown = [name for name in CHANGES_SCORES if kwargs.get(name) is not None]
    if unknown:
        raise HarnessError(
            f"{type(module).__name__}: its attention uses {', '.join(unknown)}, which packed "
            "batches do not compute"
        )
    layout.calls += 1
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    form = _attend_padded if layout.padded is not None else _attend_blocks
    options = {"scale": kwargs.get("scaling"), "dropout_p": kwargs.get("dropout", 0.0)}
    output = form(layout, query, key, value, window=kwargs.get("sliding_window"), **options)
    return output.transpose(1, 2).contiguous(), None


def _attend_padded(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, window: int | None, **options: Any
) -> Tensor:
    """One call for all prompts: heads as batch, prompts as heads, so that the (B, T, T) mask is
    shared by all heads.
    """
    padded, place = layout.padded, layout.place
    assert padded is not None
    assert place is not None
    heads, width = query.shape[1], query.shape[3]

    def spread(x: Tensor) -> Tensor:
        return x[0].index_select(1, padded).view(heads, -1, layout.longest, width)

    mask = _padded_mask(layout, window, query)
    output = sdpa(spread(query), spread(key), spread(value), attn_mask=mask, **options)
    return output.reshape(heads, -1, width).index_select(1, place)[None]


def _padded_mask(layout: Layout, window: int | None, like: Tensor) -> Tensor:
    """Additive (1, B, T, T): 0 where a token is seen, the lowest number elsewhere. A padding token
    sees itself only.
    """
    assert layout.padded is not None
    assert layout.place is not None
    cache_key = ("padded", window, like.dtype)
    if cache_key not in layout.masks:
        shape = (-1, layout.longest)
        real = torch.zeros(len(layout.padded), dtype=torch.bool, device=like.device)
        real = real.index_fill_(0, layout.place, True).view(shape)
        owner = layout.owner[layout.padded].view(shape)
        position = layout.positions[layout.padded].view(shape)
        mine, theirs = owner[:, :, None], owner[:, None, :]
        distance = position[:, :, None] - position[:, None, :]
        seen = (distance >= 0) & ((theirs < 0) | (mine == theirs)) & real[:, None, :]
        if window is not None:
            seen &= distance < window
        seen |= torch.eye(layout.longest, dtype=torch.bool, device=like.device)
        layout.masks[cache_key] = _additive(seen, like.dtype)[None]
    return layout.masks[cache_key]


def _attend_blocks(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, window: int | None, **options: Any
) -> Tensor:
    """One causal call for a prompt with its first response, one call for each further response over
    prompt and itself.
    """
    # Split once: a slice of the whole per response would write a gradient as long as the batch for
    # each of them.
    sizes = [
        last - (start if number == 0 else first)
        for (start, _), responses in zip(layout.prompt_spans, layout.response_spans, strict=True)
        for number, (first, last) in enumerate(responses)
    ]
    blocks = zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    pieces = []
    for (start, prompt_end), responses in zip(
        layout.prompt_spans, layout.response_spans, strict=True
    ):
        prompt_keys = prompt_values = query
        for number in range(len(responses)):
            queries, keys, values = next(blocks)
            if number == 0:
                size = prompt_end - start
                prompt_keys, prompt_values = keys[:, :, :size], values[:, :, :size]
            else:
                keys = torch.cat([prompt_keys, keys], 2)
                values = torch.cat([prompt_values, values], 2)
            plain = number == 0 and (window is None or keys.shape[2] <= window)
            mask = None
            if not plain:
                mask = _block_mask(layout, queries.shape[2], keys.shape[2], window, query)
            pieces.append(sdpa(queries, keys, values, attn_mask=mask, is_causal=plain, **options))
    return torch.cat(pieces, 2)


def _block_mask(
    layout: Layout, queries: int, keys: int, window: int | None, like: Tensor
) -> Tensor:
    """Additive (queries, keys): the last ``queries`` of ``keys`` consecutive positions, each seeing
    itself and its past.
    """
    cache_key = (queries, keys, window, like.dtype)
    if cache_key not in layout.masks:
        columns = torch.arange(keys, device=like.device)
        distance = columns[keys - queries :, None] - columns[None, :]
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        layout.masks[cache_key] = _additive(seen, like.dtype)
    return layout.masks[cache_key]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
