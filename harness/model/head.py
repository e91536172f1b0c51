"""Log-probabilities of given tokens from hidden states, a chunk of rows at a time: full logits
never exist.

Legend: M predicted tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import math
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**21
"""Logits alive at a time (8 MiB of float32: they stay near a CPU's cache; 2**18 to 2**22 measured
within 10 %). GPUs take CUDA_CHUNK_ELEMENTS.
"""
CUDA_CHUNK_ELEMENTS = 2**28


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of logits computed at a time."""
    elements = CUDA_CHUNK_ELEMENTS if device.type == "cuda" else CHUNK_ELEMENTS
    return max(16, elements // vocabulary)


class _FusedHead(torch.autograd.Function):
    """log softmax(h W^T + b)[target] for M rows. The backward pass computes the chunk's logits
    again instead of keeping them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        logps = torch.empty(len(hidden), dtype=_wide(hidden.dtype), device=hidden.device)
        normalisers = torch.empty_like(logps)
        ctx.half = half_on_gpu(hidden)
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, bias).to(logps.dtype)
            wanted = targets[rows, None]
            if ctx.half:
                logps[rows] = logits.log_softmax(-1).gather(1, wanted)[:, 0]
                continue
            normalisers[rows] = logits.logsumexp(-1)
            logps[rows] = logits.gather(1, wanted)[:, 0] - normalisers[rows]
        kept = logps if ctx.half else normalisers
        ctx.save_for_backward(hidden, weight, bias, targets, kept)
        return logps

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        if ctx.half:
            return _half_backward(ctx, grad)
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        wide = {"dtype": _wide(weight.dtype), "device": weight.device}
        grad_weight = torch.zeros(weight.shape, **wide) if wants_weight else None
        grad_bias = torch.zeros(weight.shape[0], **wide) if wants_bias else None
        for rows in _chunks(hidden, weight):
            # d logp / d logits = onehot(target) - softmax, scaled by the incoming gradient.
            logits = _logits(hidden[rows], weight, bias).to(_wide(hidden.dtype))
            slopes = logits.sub_(normalisers[rows, None]).exp_().mul_(-grad[rows, None])
            slopes.scatter_add_(1, targets[rows, None], grad[rows, None])
            narrow = slopes.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                if narrow.dtype == grad_weight.dtype:
                    grad_weight.addmm_(narrow.t(), hidden[rows])
                else:
                    grad_weight += narrow.t() @ hidden[rows]
            if grad_bias is not None:
                grad_bias += slopes.sum(0)
        cast_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        cast_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, cast_weight, cast_bias, None


def half_on_gpu(hidden: Tensor) -> bool:
    """Whether logits are rounded to half precision anyway, on a device whose time goes into reading
    and writing them.
    """
    return hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16)


def _half_backward(
    ctx: Any, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """The same slopes with a third of the passes over logits: softmax is rounded once from its
    float32 inside, its entry at the target taken from the stored log-probability (1 - p would lose
    all digits where p is near 1), and the incoming gradient scales hidden states, not logits.
    """
    hidden, weight, bias, targets, logps = ctx.saved_tensors
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    grad_hidden = torch.empty_like(hidden) if wants_hidden else None
    wide = {"dtype": torch.float32, "device": weight.device}
    grad_weight = torch.zeros(weight.shape, **wide) if wants_weight else None
    grad_bias = torch.zeros(weight.shape[0], **wide) if wants_bias else None
    for rows in _chunks(hidden, weight):
        seen = _logits(hidden[rows], weight, bias).softmax(-1)
        seen.scatter_(1, targets[rows, None], logps[rows, None].expm1().to(seen.dtype))
        scale = -grad[rows, None]
        if grad_hidden is not None:
            torch.mul(seen @ weight, scale, out=grad_hidden[rows])
        if grad_weight is not None:
            grad_weight += seen.t() @ (hidden[rows] * scale).to(seen.dtype)
        if grad_bias is not None:
            grad_bias += (seen * scale).sum(0)
    cast_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
    cast_bias = None if grad_bias is None else grad_bias.to(weight.dtype)
    return grad_hidden, cast_weight, cast_bias, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden @ weight.t()
    if bias is not None:
        logits += bias
    return logits


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = chunk_rows(weight.shape[0], hidden.device)
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def plain_head(head: Any) -> bool:
    """Whether the head is one whole matrix here: not adapted by LoRA, not sharded."""
    weight = getattr(head, "weight", None)
    return (
        type(head) is nn.Linear
        and type(weight) is nn.Parameter
        and weight.dim() == 2
        and weight.shape[0] == head.out_features
    )


def enable_fused_head(head: nn.Module) -> None:
    """Let a plain linear head, called with ``targets``, return their log-probabilities; other calls
    are unchanged. Idempotent.

    A head whose weight is sharded later (FSDP, ZeRO-3) is whole inside its own call only, and one
    call gathers it once on every rank.
    """
    before: Any = head.forward.__func__  # type: ignore[attr-defined]
    if type(head) is not nn.Linear or getattr(before, "fused", False):
        return

    def forward(self: Any, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is not None:
            return _fused(self.weight, self.bias, hidden, targets)
        logits: Tensor = before(self, hidden)
        return logits

    forward.fused = True  # type: ignore[attr-defined]
    head.forward = types.MethodType(forward, head)  # type: ignore[method-assign]


def _fused(weight: Tensor, bias: Tensor | None, hidden: Tensor, targets: Tensor) -> Tensor:
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        logps: Tensor = _FusedHead.apply(hidden, weight, bias, targets)
    return logps


class ShapedHead:
    """A head with what a model does to its logits afterwards: softcap c (x → c tanh(x / c)) and
    scale s (x → s x).
    """

    def __init__(self, head: Any, scale: float, softcap: float | None) -> None:
        self.head, self.scale, self.softcap = head, scale, softcap
        self.weight, self.out_features = head.weight, head.weight.shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def output_head(model: Any) -> Any:
    """What turns the model's last hidden states into its logits: its linear head, with the softcap
    and scale of its config if it has any.
    """
    config, head = model.config.get_text_config(), model.get_output_embeddings()

    def of(*names: str) -> list[float]:
        return [one for one in (getattr(config, name, None) for name in names) if one is not None]

    # Cohere and Falcon-H1 multiply, Granite and Inkling divide; the caps are of Gemma,
    # RecurrentGemma and xLSTM.
    scale = math.prod(of("logit_scale", "lm_head_multiplier"))
    scale /= math.prod(of("logits_scaling", "logits_mup_width_multiplier"))
    softcap = next(
        iter(of("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")), None
    )
    return head if scale == 1.0 and softcap is None else ShapedHead(head, scale, softcap)


def head_logps(head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """log pi(target) per row, shape (M,), from hidden states (M, H) and targets (M,); float32 or
    float64.

    A plain linear head is fused, a sharded one inside its own call; any other (LoRA on the head) is
    called a checkpointed chunk at a time.
    """
    if plain_head(head):
        return _fused(head.weight, head.bias, hidden, targets)  # type: ignore[arg-type]
    if getattr(getattr(head, "forward", None), "fused", False):
        gathered: Tensor = head(hidden, targets)
        return gathered

    def piece(part: Tensor, wanted: Tensor) -> Tensor:
        logits: Tensor = head(part)
        return logits.to(_wide(logits.dtype)).log_softmax(-1).gather(1, wanted[:, None])[:, 0]

    size = chunk_rows(getattr(head, "out_features", 2**15), hidden.device)
    parts = [
        (hidden[start : start + size], targets[start : start + size])
        for start in range(0, len(hidden), size)
    ]
    return torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in parts])  # type: ignore[misc]
