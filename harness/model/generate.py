"""Batched sampling whose randomness belongs to the request, not to the batch.

A token is drawn as argmax_v(logit_v + T·G_v), where G is Gumbel noise and T the temperature:
exactly a draw from softmax(logit / T), and the greedy token at T = 0. G is a hash of (request seed,
position, v), so a request gets the same noise in any batch, on any device and after any restart.
Equal batches repeat exactly; in other batches the logits differ in the last bits, which changes a
token only where two candidates are that close.

``transformers.generate`` takes no generator and costs more than the model does when the model is
small, so the decode loop is our own: prompts sorted by length, each distinct prompt read once and
its cache copied to its samples, finished rows dropped from the batch. Letters: B rows, U distinct
prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.model.logprobs import positions_of
from harness.model.policy import Policy, release_policies
from harness.model.vllm_engine import Drawn, Engine
from harness.records import Generation, GenerationRequest, HarnessError, Status
from harness.study.tasks import Generating, Runtime

KEEP_SHARE = 0.75
"""The batch is compacted when fewer than this share of its rows still run: a copy of the cache
against idle rows.
"""
CACHES = ("past_key_values", "cache_params")
"""Names under which transformers' models give and take what they keep of earlier tokens."""


def generate(
    policy: Policy,
    requests: Sequence[GenerationRequest],
    *,
    batch_size: int = 64,
    engine: Engine | None = None,
) -> list[Generation]:
    """Draw every request, in the order given: by the policy's model, or by vLLM's ``engine``, which
    chooses its batches itself.

    A prompt without room for an answer is "no_answer", one with a token that the model has no
    embedding of an "error". Out of memory halves the batch; a single request that does not fit is
    an "error" row.
    """
    words = policy.model.get_input_embeddings().num_embeddings
    found: dict[int, Drawn] = {}
    asked: dict[int, GenerationRequest] = {}
    for i, request in enumerate(requests):
        ids, room = request.prompt_ids, _room(policy, request)
        if ids and not 0 <= min(ids) <= max(ids) < words:
            token = next(token for token in ids if not 0 <= token < words)
            error = f"token {token} of the prompt is none of the model's {words:,}"
            found[i] = ([], "error", error)
        elif room == 0:
            found[i] = ([], "no_answer", f"no room to answer: the prompt has {len(ids)} tokens")
        else:
            asked[i] = replace(request, max_new_tokens=room)
    for batch in [list(asked)] if engine else _batches(policy.model, requests, batch_size):
        rows = [i for i in batch if i in asked]
        together = [asked[i] for i in rows]
        drawn = engine.draw(together) if engine else _attempt(policy, together)
        found.update(zip(rows, drawn, strict=True))
    ordered = [found[i] for i in range(len(requests))]
    stops = set(policy.stop_token_ids)
    bodies = [ids[:-1] if ids and ids[-1] in stops else ids for ids, _, _ in ordered]
    texts = policy.tokenizer.batch_decode(bodies, skip_special_tokens=True) if bodies else []
    return [
        Generation(tuple(ids), text, status, error)
        for text, (ids, status, error) in zip(texts, ordered, strict=True)
    ]


def engine_of(
    policy: Policy, settings: Generating, runtime: Runtime
) -> AbstractContextManager[Engine | None]:
    """vLLM's engine of a policy where the settings ask for it, until the block ends. It wants the
    device for itself: the policies that this process keeps are released.
    """
    if not settings.by_vllm:
        return nullcontext()
    release_policies()
    return Engine(policy.folder, policy.stop_token_ids, settings, runtime)


def _batches(
    model: Any, requests: Sequence[GenerationRequest], batch_size: int
) -> Iterator[list[int]]:
    """Rows that are drawn together: by length, so that little is padded; of one length only where
    the model takes no positions, and would count the padding's; on one side of ``positions_of``.
    """
    prompts = [request.prompt_ids for request in requests]
    told = "position_ids" in inspect.signature(type(model).forward).parameters
    near, _ = positions_of(model)

    def kind(i: int) -> tuple[bool, int]:
        return len(prompts[i]) > near, 0 if told else len(prompts[i])

    order = sorted(range(len(requests)), key=lambda i: (len(prompts[i]), prompts[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or kind(i) != kind(batch[0])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _attempt(policy: Policy, requests: list[GenerationRequest]) -> list[Drawn]:
    if not requests:
        return []
    try:
        return _decode(policy, requests)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one of the first
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        told = ("can't allocate memory", "out of memory")
        if not known and not any(words in str(error) for words in told):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(requests) == 1:
        tokens, new = len(requests[0].prompt_ids), requests[0].max_new_tokens
        message = f"out of memory with a single prompt of {tokens} tokens and {new} new ones"
        return [([], "error", message)]
    half = len(requests) // 2
    return _attempt(policy, requests[:half]) + _attempt(policy, requests[half:])


def _room(policy: Policy, request: GenerationRequest) -> int:
    """New tokens that fit: the request's limit, or what the model's positions leave."""
    size = len(request.prompt_ids)
    positions = next((most for most in positions_of(policy.model) if size <= most), 0)
    return min(request.max_new_tokens, positions - size) if size and positions else 0


@torch.inference_mode()
def _decode(policy: Policy, requests: list[GenerationRequest]) -> list[Drawn]:
    state = _Rows(policy, requests)
    while state.alive:
        state.step()
    # An error row keeps no tokens.
    return [
        ([t for t in ids if t >= 0 and status != "error"], status, error)
        for ids, (status, error) in zip(state.drawn_BT.tolist(), state.status, strict=True)
    ]


class _Rows:
    """The rows of one batch; ``alive`` maps rows of the tensors to rows of the batch."""

    def __init__(self, policy: Policy, requests: list[GenerationRequest]) -> None:
        self.policy = policy
        device, count = policy.device, len(requests)

        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([getattr(r, name) for r in requests], dtype=dtype, device=device)

        self.seeds_B = column("seed", torch.int64)
        self.room_B = column("max_new_tokens", torch.int64)
        self.temperature_B = column("temperature", torch.float64)
        self.top_p_B = column("top_p", torch.float64)
        self.stops = torch.tensor(policy.stop_token_ids, device=device)
        longest = max(r.max_new_tokens for r in requests)
        self.drawn_BT = torch.full((count, longest), -1, dtype=torch.int64, device=device)
        self.status: list[tuple[Status, str]] = [("truncated", "")] * count
        self.position = 0
        self.alive = list(range(count))
        self._prefill([r.prompt_ids for r in requests])

    def _prefill(self, prompts: list[tuple[int, ...]]) -> None:
        unique = list(dict.fromkeys(prompts))
        longest, device = max(len(p) for p in unique), self.policy.device
        pad = self.policy.tokenizer.pad_token_id or 0
        ids = [[pad] * (longest - len(p)) + list(p) for p in unique]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in unique]
        ids_UT, self.mask_BT = (torch.tensor(rows, device=device) for rows in (ids, mask))
        self.ragged = any(len(p) != longest for p in unique)
        self.next_B = torch.tensor([len(p) for p in unique], device=device)
        self.cache: dict[str, Any] = {}
        positions_UT = (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        self.logits_BV = self._forward(ids_UT, positions_UT)
        if len(unique) < len(prompts):
            place = {prompt: i for i, prompt in enumerate(unique)}
            self._take(torch.tensor([place[p] for p in prompts], device=device))

    def _forward(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        out = self.policy.model(
            input_ids=ids_BT,
            attention_mask=self.mask_BT if self.ragged else None,
            position_ids=positions_BT,
            use_cache=True,
            logits_to_keep=1,
            **self.cache,
        )
        self.cache = {name: out[name] for name in CACHES if out.get(name) is not None}
        if not self.cache:
            name = type(self.policy.model).__name__
            raise HarnessError(
                f"{name}: keeps nothing of earlier tokens under a name that is known here "
                f"({', '.join(CACHES)}), and would read each token alone; set "
                "model.generation_backend: vllm"
            )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _take(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows of what depends on the prompt."""
        for cache in self.cache.values():
            # Not `batch_select_indices`, which recurrent layers lack or inherit for keys alone.
            cache.reorder_cache(rows)
        self.mask_BT, self.next_B = self.mask_BT[rows], self.next_B[rows]
        self.logits_BV = self.logits_BV[rows]

    def step(self) -> None:
        """Draw one token for every row, retire those that end, read those of the others."""
        token_B = draw(
            self.logits_BV, self.seeds_B, self.temperature_B, self.top_p_B, self.position
        )
        broken_B = ~torch.isfinite(self.logits_BV.amax(-1))
        stopped_B = torch.isin(token_B, self.stops) & ~broken_B
        full_B = self.room_B <= self.position + 1
        alive = torch.tensor(self.alive, device=token_B.device)
        live_B = alive >= 0
        self.drawn_BT[alive[live_B], self.position] = torch.where(broken_B, -1, token_B)[live_B]
        ends = torch.stack([broken_B, stopped_B, full_B], 1).tolist()
        for place, row in enumerate(self.alive):
            broken, stopped, full = ends[place]
            if row >= 0 and broken:
                words = f"the model's logits are not finite at new token {self.position}"
                self.status[row] = ("error", words)
            elif row >= 0 and stopped:
                self.status[row] = ("ok", "")
            if broken or stopped or full:
                self.alive[place] = -1
        self.position += 1
        kept = [place for place, row in enumerate(self.alive) if row >= 0]
        if not kept:
            self.alive = []
            return
        # Idle rows are dropped.
        if len(kept) < KEEP_SHARE * len(self.alive):
            rows = torch.tensor(kept, device=token_B.device)
            self._take(rows)
            token_B = token_B[rows]
            self.seeds_B, self.temperature_B = self.seeds_B[rows], self.temperature_B[rows]
            self.top_p_B, self.room_B = self.top_p_B[rows], self.room_B[rows]
            self.alive = [self.alive[place] for place in kept]
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(self.alive), 1)], 1)
        self.logits_BV = self._forward(token_B[:, None], self.next_B[:, None])
        self.next_B = self.next_B + 1


def draw(
    logits_BV: Tensor, seeds_B: Tensor, temperature_B: Tensor, top_p_B: Tensor, position: int
) -> Tensor:
    """Next tokens (B,): argmax(logits + T·Gumbel), within the likeliest that reach top_p at T."""
    if not bool((temperature_B > 0).any()):
        return logits_BV.argmax(-1)
    if bool((top_p_B < 1).any()):
        logits_BV = _nucleus(logits_BV, temperature_B, top_p_B)
    noise_BV = gumbel(seeds_B, position, logits_BV.shape[-1])
    return (logits_BV + temperature_B[:, None] * noise_BV).argmax(-1)


def _nucleus(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor) -> Tensor:
    sorted_BV, order_BV = (logits_BV.double() / temperature_B.clamp(min=1e-6)[:, None]).sort(
        dim=-1, descending=True, stable=True
    )
    p_BV = sorted_BV.softmax(-1)
    outside_BV = (p_BV.cumsum(-1) - p_BV >= top_p_B[:, None]) & (top_p_B < 1)[:, None]
    outside_BV[:, 0] = False
    return logits_BV.masked_fill(
        torch.zeros_like(outside_BV).scatter(-1, order_BV, outside_BV), -math.inf
    )


# Counter-based noise: splitmix64 (Steele, Lea and Flood 2014), whose k-th output is a mix of seed +
# k·GOLDEN.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _mix(x: Tensor) -> Tensor:
    """Finaliser of splitmix64 on signed integers, whose products wrap as unsigned ones do."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX_2
    return x ^ ((x >> 31) & (2**33 - 1))


def gumbel(seeds_B: Tensor, position: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise (B, V), float64, of the 53-bit hash of (seed, position, token)."""
    state_B = _mix(_mix(seeds_B + _GOLDEN) + (position + 1) * (_GOLDEN | 1) % 2**63)
    counter_V = torch.arange(1, vocabulary + 1, dtype=torch.int64, device=seeds_B.device) * _GOLDEN
    bits_BV = (_mix(state_B[:, None] + counter_V) >> 11) & (2**53 - 1)
    u_BV = (bits_BV.double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(u_BV))
