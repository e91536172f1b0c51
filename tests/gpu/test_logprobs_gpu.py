"""Log-probabilities on a CUDA device against the CPU's: float32 and bfloat16, packed with shared
prompts, by FlashAttention and by SDPA, and the fused head at a vocabulary of 128,256.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.model import attention
from harness.model.attention import PackedPrompt, pack
from harness.model.logprobs import (
    head_logps,
    mixed_precision,
    packed_attention,
    padded_states,
    sequence_logps,
)
from tests import plain
from tests.gpu.device import DEVICE, NEEDS_DEVICE, ON_GPU
from tests.model.test_logprobs import SHAPES, model_of, rows_of

pytestmark = NEEDS_DEVICE

WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Heads of 64, as FlashAttention is built for."""
WINDOW = {"sliding_window": 5}
LONG = [(90, (120, 35)), (300, (64, 7, 150)), (5, (400,)), (17, (1,))]


def wide(architecture: str, **changes: Any) -> Any:
    sizes = {**WIDE, "initializer_range": 0.05, **changes}
    if architecture == "qwen3":
        sizes["head_dim"] = 64
    return model_of(architecture, **sizes)


def scored(model: Any, rows: list[PackedPrompt], mixed: bool) -> tuple[Any, Any]:
    """Log-probabilities, and the gradient of a weighted sum of them, on the CPU."""
    model.zero_grad(set_to_none=True)
    batch = pack(rows).to(next(model.parameters()).device)
    with packed_attention(model), mixed_precision(model, mixed):
        found = sequence_logps(model, batch)
    weights = torch.arange(1, len(found) + 1, dtype=torch.float64, device=found.device).cos()
    (found * weights).sum().backward()
    return found.detach().cpu(), plain.gradient(model).cpu()


def both(architecture: str, rows: list[PackedPrompt], mixed: bool, **changes: Any) -> Any:
    """The device's numbers, and the CPU's in float32."""
    wanted = scored(wide(architecture, **changes), rows, False)
    return scored(wide(architecture, **changes).to(DEVICE), rows, mixed), wanted


CASES = [("llama", {}), ("mistral", WINDOW), ("phi3", {}), ("qwen2", {}), ("qwen3", {})]


@pytest.mark.parametrize(("architecture", "changes"), CASES)
@pytest.mark.parametrize("shapes", [SHAPES, LONG], ids=["short", "long"])
def test_float32_is_the_cpus(architecture: str, changes: dict[str, Any], shapes: Any) -> None:
    found, wanted = both(architecture, rows_of(shapes), False, **changes)
    assert plain.relative_error(found[0], wanted[0]) < 1e-5
    assert plain.relative_error(found[1], wanted[1]) < 1e-4


@pytest.mark.parametrize(("architecture", "changes"), CASES)
@pytest.mark.parametrize("shapes", [SHAPES, LONG], ids=["short", "long"])
def test_bfloat16_is_the_cpus_float32_up_to_its_rounding(
    architecture: str, changes: dict[str, Any], shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = attention._attend_sequences
    monkeypatch.setattr(
        attention, "_attend_sequences", lambda *given: calls.append(1) or real(*given)
    )
    found, wanted = both(architecture, rows_of(shapes), True, **changes)
    assert plain.relative_error(found[0], wanted[0]) < 0.01
    assert plain.relative_error(found[1], wanted[1]) < 0.05
    assert bool(calls) is ON_GPU, "one call of FlashAttention a layer"


@pytest.mark.skipif(not ON_GPU, reason="the CPU has no FlashAttention")
@pytest.mark.parametrize(("architecture", "changes"), CASES)
def test_flash_attention_is_sdpa(
    architecture: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rounding on both sides, so that a wrong mask shows."""
    model, rows = wide(architecture, **changes).to(DEVICE), rows_of(LONG)
    flash = scored(model, rows, True)
    monkeypatch.setattr(attention, "flash_computes", lambda *_: False)
    for threshold in (0, 10_000):
        monkeypatch.setattr(attention, "SHORT_PROMPT_TOKENS", threshold)
        sdpa = scored(model, rows, True)
        assert plain.relative_error(flash[0], sdpa[0]) < 2e-3
        assert plain.relative_error(flash[1], sdpa[1]) < 2e-2


def test_packed_is_padded() -> None:
    """A prompt computed once for its responses, and once for each."""
    model, rows = wide("llama").to(DEVICE), rows_of(LONG)
    packed, _ = scored(model, rows, False)
    batch = pack(rows).to(DEVICE)
    with torch.no_grad():
        logps = head_logps(model.lm_head, padded_states(model, batch), batch.targets)
    padded = torch.zeros(batch.responses, dtype=torch.float64, device=DEVICE)
    padded.index_add_(0, batch.response_of, logps.double())
    assert plain.relative_error(packed, padded.cpu()) < 1e-5


@pytest.mark.parametrize("vocabulary", [128_256 if ON_GPU else 4096])
def test_the_fused_head_holds_a_chunk_of_logits(vocabulary: int) -> None:
    """float32 against float64 with all logits; bfloat16 in a fraction of their memory."""
    tokens, width = (16_384, 1024) if ON_GPU else (64, 32)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(DEVICE)
    weight = torch.randn(vocabulary, width, generator=generator).div(width**0.5).to(DEVICE)
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(DEVICE)
    head = torch.nn.Linear(width, vocabulary, bias=False, device=DEVICE)
    head.weight.data.copy_(weight)
    few = hidden[:64].double().requires_grad_()
    exact = (few @ weight.double().t()).log_softmax(-1).gather(1, targets[:64, None])[:, 0]
    exact.sum().backward()
    mine = hidden[:64].clone().requires_grad_()
    found = head_logps(head, mine, targets[:64])
    found.sum().backward()
    assert plain.relative_error(found.detach(), exact.detach()) < 1e-5
    assert plain.relative_error(mine.grad, few.grad) < 1e-5
    half, narrow = head.to(torch.bfloat16), hidden.bfloat16().requires_grad_()
    half.weight.grad = None
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    logps = head_logps(half, narrow, targets)
    logps.sum().backward()
    assert torch.isfinite(logps).all()
    if ON_GPU:
        logits = tokens * vocabulary * 4
        gradient = weight.numel() * 6  # float32 while it is summed, bfloat16 at the end
        assert torch.cuda.max_memory_allocated() - before < 0.75 * logits + 1.1 * gradient
