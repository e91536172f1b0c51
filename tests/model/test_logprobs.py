"""Shared-prefix, unpadded, head-fused log-probabilities against one plain pass per response, for
every architecture.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from harness.model import attention as shared_prefix
from harness.model import logprobs as head_module
from harness.model.attention import PackedPrompt, add_sequences, chunk_by_tokens, pack
from harness.model.logprobs import (
    head_logps,
    packed_attention,
    packs,
    plain_head,
    response_logps,
    sequence_logps,
)
from harness.records import HarnessError
from tests import plain, tiny
from tests.preferences import VOCABULARY, Tokens

SHAPES = [(1, (1, 6, 2)), (9, (7,)), (13, (3, 11)), (4, (21, 1, 1)), (1, (1,))]
"""Prompt length and response lengths of each row: prompts and responses of one token among them."""


def rows_of(shapes: list[tuple[int, tuple[int, ...]]], seed: int = 0) -> list[PackedPrompt]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

    return [
        PackedPrompt(ids(size), tuple(ids(count) for count in responses))
        for size, responses in shapes
    ]


def model_of(architecture: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return tiny.model(architecture, Tokens(), **changes).to(dtype)


def flash_on_cpu(queries: Any, keys: Any, values: Any, *sizes: Any, **options: Any) -> Any:
    """What FlashAttention computes of sequences of different lengths, one after the other."""
    assert options["enable_gqa"]
    query_starts, key_starts, most_queries, most_keys = sizes
    left, right = options["window_size"]
    pieces = []
    for number in range(len(query_starts) - 1):
        q = queries[query_starts[number] : query_starts[number + 1]].transpose(0, 1)
        inside = slice(key_starts[number], key_starts[number + 1])
        k, v = keys[inside].transpose(0, 1), values[inside].transpose(0, 1)
        assert q.shape[1] <= most_queries
        assert k.shape[1] <= most_keys
        last = torch.arange(k.shape[1])
        distance = last[-q.shape[1] :, None] - last[None, :]
        seen = distance >= -right
        if left >= 0:
            seen &= distance <= left
        groups = q.shape[0] // k.shape[0]
        scores = q @ k.repeat_interleave(groups, 0).transpose(1, 2) * options["scale"]
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        pieces.append((weights @ v.repeat_interleave(groups, 0)).transpose(0, 1))
    return torch.cat(pieces)


@pytest.fixture(params=["padded", "blocks", "sequences"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(
        shared_prefix, "SHORT_PROMPT_TOKENS", 0 if request.param == "blocks" else 10_000
    )
    if request.param == "sequences":  # a GPU's form, with its kernel's part done here
        monkeypatch.setattr(shared_prefix, "varlen_attn", flash_on_cpu)
        monkeypatch.setattr(shared_prefix, "VARLEN_TAKES", ("window_size", "enable_gqa"))
        monkeypatch.setattr(shared_prefix, "flash_computes", lambda *_: True)
        monkeypatch.setattr(
            shared_prefix, "add_padded_form", lambda layout: add_sequences(layout, "cpu")
        )
    return str(request.param)


def compare(model: Any, rows: list[PackedPrompt]) -> tuple[float, float]:
    """Relative errors of log-probabilities and of the gradient of a weighted sum of them."""
    plainly = torch.stack(
        [plain.logp(model, row.prompt_ids, response) for row in rows for response in row.responses]
    )
    weights = torch.arange(1, len(plainly) + 1, dtype=torch.float64).cos()
    (plainly * weights).sum().backward()
    wanted = plain.gradient(model)
    with packed_attention(model):
        found = sequence_logps(model, pack(rows))
        (found * weights).sum().backward()
    return plain.relative_error(found.detach(), plainly.detach()), plain.relative_error(
        plain.gradient(model), wanted
    )


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_equals_plain_passes_in_float64(architecture: str, form: str) -> None:
    model = plain.exact_norms(model_of(architecture, torch.float64))
    value_error, gradient_error = compare(model, rows_of(SHAPES))
    assert value_error < 1e-12
    assert gradient_error < 1e-9


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_equals_plain_passes_in_float32_and_bfloat16(architecture: str, form: str) -> None:
    value_error, gradient_error = compare(model_of(architecture), rows_of(SHAPES))
    assert value_error < 1e-6
    assert gradient_error < 1e-5
    value_error, gradient_error = compare(model_of(architecture, torch.bfloat16), rows_of(SHAPES))
    assert value_error < 0.02
    assert gradient_error < 0.1


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("mistral", {"sliding_window": 5}),
        ("phi3", {"sliding_window": 5}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ],
)
def test_sliding_windows_count_positions_not_places(
    architecture: str, changes: dict[str, Any], form: str
) -> None:
    model = plain.exact_norms(model_of(architecture, torch.float64, **changes))
    value_error, gradient_error = compare(model, rows_of(SHAPES))
    assert value_error < 1e-12
    assert gradient_error < 1e-9
    unwindowed = plain.exact_norms(model_of(architecture, torch.float64))
    assert response_logps(unwindowed, rows_of(SHAPES)) != response_logps(model, rows_of(SHAPES)), (
        "the window must bind for this to test anything"
    )


def test_tied_and_biased_heads() -> None:
    assert (
        max(
            compare(
                plain.exact_norms(model_of("llama", torch.float64, tie_word_embeddings=True)),
                rows_of(SHAPES),
            )
        )
        < 1e-9
    )
    model = plain.exact_norms(model_of("llama", torch.float64))
    model.lm_head = nn.Linear(32, VOCABULARY, dtype=torch.float64)
    assert max(compare(model, rows_of(SHAPES))) < 1e-9


def test_budget_does_not_change_numbers_nor_order() -> None:
    model, rows = model_of("llama", torch.float64), rows_of(SHAPES)
    whole = response_logps(model, rows)
    assert [len(own) for own in whole] == [3, 1, 2, 3, 1]
    for budget in (1, 20, 40):
        for mine, theirs in zip(
            response_logps(model, rows, token_budget=budget), whole, strict=True
        ):
            assert mine == pytest.approx(theirs, rel=1e-10)


def test_no_grad_pass_leaves_the_model_as_it_was() -> None:
    model = model_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    implementation, forward = model.config._attn_implementation, vars(model).get("forward")
    response_logps(model, rows_of(SHAPES))
    assert (model.config._attn_implementation, vars(model).get("forward")) == (
        implementation,
        forward,
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_response_of_certain_tokens_by_hand() -> None:
    """With hidden state h and a head whose logits are (0, ln 3), the second token has probability
    3/4.
    """
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[0.0], [math.log(3.0)]])
    found = head_logps(layer, torch.ones(3, 1), torch.tensor([1, 1, 0]))
    assert found.tolist() == pytest.approx([math.log(0.75), math.log(0.75), math.log(0.25)])


def test_head_in_chunks_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", VOCABULARY * 16)
    shapes: list[tuple[int, ...]] = []
    original = head_module._logits

    def watched(*arguments: Any) -> torch.Tensor:
        logits = original(*arguments)
        shapes.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(head_module, "_logits", watched)
    model = plain.exact_norms(model_of("llama", torch.float64))
    assert packs(model)
    shapes.clear()
    assert max(compare(model, rows_of([(5, (30, 40))]))) < 1e-9
    assert max(rows for rows, _ in shapes) == 16
    assert sum(rows for rows, _ in shapes) == 2 * 70, "once forward, once backward"


def test_frozen_or_adapted_heads_take_the_right_path() -> None:
    layer = nn.Linear(8, 5)
    hidden, targets = (
        torch.randn(7, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 3, 4, 0, 1]),
    )
    assert plain_head(layer)
    assert not plain_head(nn.Sequential(layer))

    class Adapted(nn.Module):
        out_features = 5

        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(layer)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    other = Adapted()
    a, b = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    weights = torch.arange(7.0).sin()
    (head_logps(layer, a, targets) * weights).sum().backward()
    (head_logps(other, b, targets) * weights).sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-6)
    assert torch.allclose(layer.weight.grad, other.inner.weight.grad, atol=1e-6)
    assert torch.allclose(layer.bias.grad, other.inner.bias.grad, atol=1e-6)
    layer.requires_grad_(False)
    head_logps(layer, hidden.clone().requires_grad_(), targets).sum().backward()


def test_chunks_by_tokens_by_hand() -> None:
    assert chunk_by_tokens([5, 9, 3, 9], 14) == [[1], [3, 0], [2]]
    assert chunk_by_tokens([5, 9, 3, 9], 0) == [[1, 3, 0, 2]]
    assert chunk_by_tokens([5, 9, 3, 9], 0, 3) == [[1, 3, 0], [2]]
    assert chunk_by_tokens([50, 9], 14) == [[0], [1]], "a row over the budget runs alone"
    assert chunk_by_tokens([], 14) == []


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(HarnessError, match="packed row 1"):
        pack([PackedPrompt((1,), ((2,),)), PackedPrompt((1,), ((2,), ()))])
    with pytest.raises(HarnessError, match="packed row 0"):
        pack([PackedPrompt((), ((2,),))])
    model = model_of("llama")
    vars(model.config)["final_logit_softcapping"] = 30.0
    with pytest.raises(HarnessError, match="not those of its logits"):
        response_logps(model, rows_of(SHAPES))
    with pytest.raises(HarnessError, match="Linear"):
        response_logps(nn.Linear(2, 2), rows_of(SHAPES))


def test_half_precision_slopes_keep_their_digits_where_the_target_is_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU's backward pass of the fused head, done here. In row 0 the target has probability
    0.9998: 1 - p is below bfloat16's last digit of p, and still is the slope.
    """
    monkeypatch.setattr(head_module, "half_on_gpu", lambda _: True)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 0)  # sixteen rows at a time
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(32, 200)
    nn.init.normal_(head.weight, generator=generator)
    nn.init.zeros_(head.bias)
    head = head.to(torch.bfloat16)
    hidden = torch.randn(40, 32, generator=generator).bfloat16()
    targets = torch.randint(200, (40,), generator=generator)
    hidden[0] = 0.75 * head.weight[targets[0]].detach()
    slopes = torch.randn(40, generator=generator)
    slopes[0] = 5000.0

    exact = copy.deepcopy(head).double()
    wide = hidden.double().requires_grad_()
    wanted = exact(wide).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert 0.9990 < float(wanted[0].detach().exp()) < 0.99999
    (wanted * slopes).sum().backward()
    mine = hidden.clone().requires_grad_()
    (head_logps(head, mine, targets) * slopes).sum().backward()
    for rows in (slice(0, 1), slice(1, 40)):
        assert plain.relative_error(mine.grad[rows], wide.grad[rows]) < 0.05
    assert plain.relative_error(head.weight.grad, exact.weight.grad) < 0.05
    assert plain.relative_error(head.bias.grad, exact.bias.grad) < 0.05
