"""The plainest way to the same numbers: one response at a time, no packing, no sharing, full
log-softmax, float64 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def exact_norms(model: nn.Module) -> nn.Module:
    """Let RMS norms work in the model's own precision: transformers rounds them to float32, which
    hides errors below 1e-8.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _rms_norm(module)  # type: ignore[method-assign]
    return model


def _rms_norm(module: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        return module.weight * (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        )

    return forward


def logp(model: Any, prompt_ids: Sequence[int], response: Sequence[int]) -> Tensor:
    """log pi(response | prompt), summed over the response's tokens, from an ordinary pass over
    prompt and response.
    """
    logits = model(input_ids=torch.tensor([[*prompt_ids, *response]]), use_cache=False).logits[0]
    table = logits.to(torch.float64).log_softmax(-1)
    return torch.stack(
        [table[len(prompt_ids) - 1 + k, token] for k, token in enumerate(response)]
    ).sum()


def gradient(model: nn.Module) -> Tensor:
    """All gradients as one float64 vector (zero where there is none); the model's gradients are
    cleared.
    """
    flat = torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().double()
            for p in model.parameters()
            if p.requires_grad
        ]
    )
    model.zero_grad(set_to_none=True)
    return flat


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Error relative to the norm of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
