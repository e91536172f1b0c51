"""Prompts that share their tokens among several responses: how they are laid out as one row of N
tokens, and attention over it as a transformers attention implementation.

The tokens of every prompt are followed by its unique responses, one after the other. Positions
restart after the prompt for every response. A token sees its own prompt and its own response's
past, nothing else. Three forms give the same numbers. In half precision on a GPU: one call of
FlashAttention over sequences of different lengths, without a mask (``add_sequences``). Elsewhere:
one padded call for all prompts (short prompts), or one causal call per response (long ones; a first
response is contiguous with its prompt and needs no mask).

Legend: N tokens, B prompts, T longest prompt with its responses, S sequences, K their keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.records import HarnessError

VARLEN_TAKES = tuple(inspect.signature(varlen_attn).parameters)
"""It learnt ``enable_gqa`` after torch 2.11, which needs no word for it."""
Record = TypeVar("Record")
Span = tuple[int, int]
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
    """Who sees whom. spans: of each prompt and of its responses, (start, end) in the row of N
    tokens.

    positions: (N,) place within prompt and own response. owner: (N,) number of the response,
    negative for prompt tokens. padded: where that form is used. sequences: on GPUs. masks: additive
    masks by (window, form), made at first use and shared by all layers. calls: attention calls that
    read the layout.
    """

    spans: tuple[tuple[Span, tuple[Span, ...]], ...]
    positions: Tensor
    owner: Tensor
    padded: Padded | None = None
    sequences: Sequences | None = None
    calls: int = 0
    masks: dict[Any, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Layout:
        """The layout on another device."""
        padded = _moved(self.padded, device) if self.padded else None
        there = replace(_moved(self, device), padded=padded, masks={})
        if torch.device(device).type == "cuda":
            add_sequences(there, device)
        return there


@dataclass(frozen=True)
class Padded:
    """The (B, T) form of the batch. indices: (B * T,) into the N tokens, padding at token 0. place:
    (N,) index of each token in that form. longest: T.
    """

    indices: Tensor
    place: Tensor
    longest: int


@dataclass(frozen=True)
class Sequences:
    """The batch as S causal sequences: a prompt with its first response, and each further response
    after a copy of its prompt. Their queries are the N tokens in order; only keys are copied.

    keys: (K,) tokens in the order of the sequences. own: (N,) place of each token's own key among
    the K. copies: (tokens, their places among the K) of the second, third, … copy of a prompt; no
    token twice in one of them. query_starts, key_starts: (S + 1,) int32, ends of the last included.
    """

    keys: Tensor
    own: Tensor
    copies: tuple[tuple[Tensor, Tensor], ...]
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True)
class PackedPrompt:
    """A prompt with its unique responses, none empty, as token ids; end-of-turn tokens included."""

    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens computed for it."""
        return len(self.prompt_ids) + sum(len(response) for response in self.responses)


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of one packed batch. predict: (M,) positions whose hidden state predicts ``targets``
    (M,); response_of: (M,) response index; lengths: tokens of each response.
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
        return replace(_moved(self, device), layout=self.layout.to(device))


def pack(rows: Sequence[PackedPrompt]) -> PackedBatch:
    """Lay prompts and responses out in one row of tokens. Responses keep their order: row by row.

    Raises HarnessError on an empty prompt or response (nothing would predict it).
    """
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []
    predict: list[int] = []
    lengths: list[int] = []
    spans: list[tuple[Span, tuple[Span, ...]]] = []
    for number, row in enumerate(rows):
        if not row.prompt_ids or not row.responses or not all(row.responses):
            raise HarnessError(
                f"packed row {number}: prompt and responses must have at least one token each"
            )
        start, size = len(ids), len(row.prompt_ids)
        ids.extend(row.prompt_ids)
        positions.extend(range(size))
        owner.extend([-1 - number] * size)
        answers = []
        for response in row.responses:
            first, count = len(ids), len(response)
            ids.extend(response)
            positions.extend(range(size, size + count))
            owner.extend([len(lengths)] * count)
            predict.extend([start + size - 1, *range(first, first + count - 1)])
            lengths.append(count)
            answers.append((first, first + count))
        spans.append(((start, start + size), tuple(answers)))
    layout = Layout(tuple(spans), torch.tensor(positions), torch.tensor(owner))
    tokens, responses = torch.tensor(ids), layout.owner >= 0
    if len(ids) <= SHORT_PROMPT_TOKENS * len(rows):
        add_padded_form(layout)
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
    """Row numbers, longest first, in groups of at most so many tokens and rows (0: no limit)."""
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


# -- attention -------------------------------------------------------------------------------------


def add_sequences(layout: Layout, device: torch.device | str) -> None:
    """The batch as sequences, on ``device``."""
    keys: list[int] = []
    own: list[int] = []
    copies: list[tuple[list[int], list[int]]] = []
    query_sizes, key_sizes = [], []
    for (start, prompt_end), responses in layout.spans:
        for number, (first, last) in enumerate(responses):
            begin, prompt = len(keys), range(start, prompt_end)
            keys += [*prompt, *range(first, last)]
            inside = range(begin + len(prompt), len(keys))
            if number == 0:
                inside = range(begin, len(keys))
            else:
                if number > len(copies):
                    copies.append(([], []))
                tokens, places = copies[number - 1]
                tokens += prompt
                places += range(begin, begin + len(prompt))
            own += inside
            query_sizes.append(len(inside))
            key_sizes.append(len(keys) - begin)

    def indices(values: list[int]) -> Tensor:
        return on_device(torch.tensor(values), device)

    def starts(sizes: list[int]) -> Tensor:
        return on_device(torch.tensor([0, *sizes]).cumsum(0).int(), device)

    layout.sequences = Sequences(
        indices(keys),
        indices(own),
        tuple((indices(tokens), indices(places)) for tokens, places in copies),
        starts(query_sizes),
        starts(key_sizes),
        max(query_sizes),
        max(key_sizes),
    )


def on_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; to a GPU without waiting for what that computes."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _moved(record: Record, device: torch.device | str) -> Record:
    """The record with its tensors on another device."""
    tensors = {name: x for name, x in vars(record).items() if isinstance(x, Tensor)}
    return replace(record, **{name: on_device(x, device) for name, x in tensors.items()})  # type: ignore[type-var]


def add_padded_form(layout: Layout) -> None:
    """The padded form of the batch."""
    spans = [(prompt[0], responses[-1][1]) for prompt, responses in layout.spans]
    longest = max(end - start for start, end in spans)
    columns = torch.arange(longest)
    starts = torch.tensor([start for start, _ in spans])[:, None]
    sizes = torch.tensor([end - start for start, end in spans])[:, None]
    inside = columns < sizes
    indices = torch.where(inside, starts + columns, torch.zeros_like(starts)).reshape(-1)
    layout.padded = Padded(indices, inside.reshape(-1).nonzero()[:, 0], longest)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed batch where ``packed_layout`` is given, else plain SDPA."""
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
    window, scale = kwargs.get("sliding_window"), kwargs.get("scaling")
    dropout = kwargs.get("dropout", 0.0)
    if torch.is_autocast_enabled(query.device.type):
        # The rotary embedding leaves queries and keys in float32; SDPA would round them here too.
        half = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(half) for x in (query, key, value))
    if layout.sequences is not None and flash_computes(query, value, dropout):
        output = _attend_sequences(layout.sequences, query, key, value, window, scale)
        return output, None
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    form = _attend_padded if layout.padded is not None else _attend_blocks
    options = {"scale": scale, "dropout_p": dropout}
    output = form(layout, query, key, value, window=window, **options)
    return output.transpose(1, 2).contiguous(), None


def flash_computes(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether torch's FlashAttention takes these heads, and their dropout."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] == width
        and width % 8 == 0
        and width <= 256
        and dropout == 0.0
    )


def _attend_sequences(
    sequences: Sequences,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """All sequences in one call, aligned at their ends: a response sees its whole prompt."""
    keys, values = (_WithCopies.apply(x[0].transpose(0, 1), sequences) for x in (key, value))
    queries = query[0].transpose(0, 1)
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in VARLEN_TAKES else {}
    output: Any = varlen_attn(
        queries,
        keys,
        values,
        sequences.query_starts,
        sequences.key_starts,
        sequences.most_queries,
        sequences.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    found: Tensor = output[None]
    return found


class _WithCopies(torch.autograd.Function):
    """Rows of x (N, …) in the order of the sequences' keys (K, …). The gradients of a prompt's
    copies are added one copy after the other: a GPU adds those of plain indexing in any order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sequences: Sequences) -> Tensor:
        ctx.sequences = sequences
        return x.index_select(0, sequences.keys)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        found = grad.index_select(0, ctx.sequences.own)
        for tokens, places in ctx.sequences.copies:
            found.index_add_(0, tokens, grad.index_select(0, places))
        return found, None


def _attend_padded(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, window: int | None, **options: Any
) -> Tensor:
    """One call: heads as batch, prompts as heads, so that all heads share the (B, T, T) mask."""
    assert layout.padded is not None
    padded, heads, width = layout.padded, query.shape[1], query.shape[3]

    def spread(x: Tensor) -> Tensor:
        return x[0].index_select(1, padded.indices).view(heads, -1, padded.longest, width)

    mask = _padded_mask(layout, padded, window, query)
    output = sdpa(spread(query), spread(key), spread(value), attn_mask=mask, **options)
    return output.reshape(heads, -1, width).index_select(1, padded.place)[None]


def _padded_mask(layout: Layout, padded: Padded, window: int | None, like: Tensor) -> Tensor:
    """(1, B, T, T); a padding token sees itself only."""

    def seen() -> Tensor:
        shape = (-1, padded.longest)
        real = torch.zeros(len(padded.indices), dtype=torch.bool, device=like.device)
        real = real.index_fill_(0, padded.place, True).view(shape)
        owner = layout.owner[padded.indices].view(shape)
        position = layout.positions[padded.indices].view(shape)
        mine, theirs = owner[:, :, None], owner[:, None, :]
        found = _past(position[:, :, None] - position[:, None, :], window)
        found &= ((theirs < 0) | (mine == theirs)) & real[:, None, :]
        found |= torch.eye(padded.longest, dtype=torch.bool, device=like.device)
        return found[None]

    return _mask(layout, ("padded", window, like.dtype), seen)


def _attend_blocks(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, window: int | None, **options: Any
) -> Tensor:
    """One causal call for a prompt with its first response, one for each further response."""
    # Split once: a slice of the whole per response would write a gradient as long as the batch for
    # each of them.
    sizes = [
        last - (start if number == 0 else first)
        for (start, _), responses in layout.spans
        for number, (first, last) in enumerate(responses)
    ]
    blocks = zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    pieces = []
    for (start, prompt_end), responses in layout.spans:
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
    """(queries, keys): the last of so many consecutive positions, each seeing its past."""

    def seen() -> Tensor:
        columns = torch.arange(keys, device=like.device)
        return _past(columns[keys - queries :, None] - columns[None, :], window)

    return _mask(layout, (queries, keys, window, like.dtype), seen)


def _past(distance: Tensor, window: int | None) -> Tensor:
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _mask(layout: Layout, key: tuple[Any, ...], seen: Callable[[], Tensor]) -> Tensor:
    """Additive, the lowest number where nothing is seen; kept. The key ends with its dtype."""
    if key not in layout.masks:
        where, dtype = seen(), key[-1]
        mask = torch.zeros(where.shape, dtype=dtype, device=where.device)
        layout.masks[key] = mask.masked_fill_(~where, torch.finfo(dtype).min)
    return layout.masks[key]


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
