"""Sequence log-probabilities of all unique responses of a prompt, in one pass, without padding and
without full logits.

Linear layers run on the N tokens of a packed batch (`packing`); attention runs per prompt (or,
where prompts are short, on one small padded batch). The head is applied only where a response token
is predicted, a chunk at a time. Models that mix tokens in another way than by replaceable attention
get padded batches instead (``packs``): slower, the same numbers.

Legend: N tokens of the batch, M predicted tokens, R responses, B prompts, T longest prompt with
responses, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.model.attention import ATTENTION
from harness.model.head import enable_fused_head, head_logps, output_head
from harness.model.packing import PackedBatch, PackedPrompt, chunk_by_tokens, pack
from harness.records import HarnessError

logger = logging.getLogger(__name__)

WINDOWS = ("sliding_window", "attention_chunk_size")
"""What configurations and layers call the number of tokens that local attention sees."""


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside wrappers (PEFT's; ``module`` of data-parallel ones)."""
    while hasattr(model, "module") and not isinstance(model, PreTrainedModel):
        model = model.module  # type: ignore[assignment]
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    if not isinstance(model, PreTrainedModel):
        raise HarnessError(
            "log-probabilities need a transformers causal language model; got "
            f"{type(model).__name__}"
        )
    return model


def packs(model: PreTrainedModel) -> bool:
    """Whether the model computes packed batches; if not, its responses are computed one by one in
    padded batches.

    Found out once per model, on a few tokens: the attention of every layer must read the layout,
    and log-probabilities must be those of the model's own logits. Raises HarnessError when the
    padded form differs from them as well.
    """
    known: bool | None = vars(model).get("_computes_packed_batches")
    if known is None:
        known = probe(model)
        vars(model)["_computes_packed_batches"] = known
    return known


def _probed(model: PreTrainedModel) -> tuple[list[PackedPrompt], float]:
    """A few rows, and how far apart two computations of a response may be (nats)."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = tuple((7 * i + 3) % vocabulary for i in range(24))
    rows = [PackedPrompt(ids[:5], (ids[5:9], ids[9:14])), PackedPrompt(ids[14:17], (ids[17:24],))]
    return rows, 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.5


def check_draws_nothing(model: nn.Module) -> None:
    """Raise HarnessError for a model whose log-probabilities are others while it is trained."""
    base = base_model_of(model)
    rows, tolerance = _probed(base)
    trained = base.training
    try:
        with torch.no_grad():
            found, wanted = (_own_logps(base.train(mode), rows) for mode in (True, False))
    finally:
        base.train(trained)
    if not torch.allclose(found, wanted, rtol=0.0, atol=tolerance):
        raise HarnessError(
            f"{type(base).__name__}: draws at random while it is trained (a router that samples "
            "its experts, say), though every dropout is off: a step would not compare the policy "
            "with its reference"
        )


def probe(model: PreTrainedModel) -> bool:
    """True: packed batches agree with the model's own logits. False: only padded ones do."""
    rows, tolerance = _probed(model)
    batch = pack(rows).to(next(model.parameters()).device)
    trained = model.training
    model.eval()
    try:
        with torch.no_grad(), _short_windows(model):
            (first, second, _), own = _own_logps(model, rows).unbind(1)
            if abs(first - second) > tolerance:
                raise HarnessError(
                    f"{type(model).__name__}: sees the tokens to come (one prompt has the "
                    f"log-probability {first:.4f} before one response, {second:.4f} before "
                    "another); it cannot be a policy"
                )
            # Whatever goes wrong in a forward pass that the model's authors did not foresee means
            # that it cannot be used.
            with contextlib.suppress(Exception), _implementation(model, ATTENTION):
                if torch.allclose(sequence_logps(model, batch), own, rtol=0.0, atol=tolerance):
                    return True
            try:
                found = sequence_logps(model, batch)
            except (AttributeError, TypeError, ValueError) as error:
                raise HarnessError(
                    f"{type(model).__name__}: its last hidden states cannot be had ({error})"
                ) from error
    finally:
        model.train(trained)
    name = type(model).__name__
    if not torch.allclose(found, own, rtol=0.0, atol=tolerance):
        raise HarnessError(
            f"{name}: log-probabilities from its hidden states and head ({found.tolist()}) are not "
            f"those of its logits ({own.tolist()}); its forward pass does something between the "
            "two that is not known here"
        )
    slower = "its responses are computed one by one, several times slower"
    logger.warning("%s does not compute packed batches; %s", name, slower)
    return False


def _own_logps(model: PreTrainedModel, rows: Sequence[PackedPrompt]) -> Tensor:
    """log pi of a prompt's tokens after its first and log pi(response | prompt), shape (R, 2),
    float64, by a plain forward pass per response.
    """
    values = []
    for row in rows:
        for response in row.responses:
            size, device = len(row.prompt_ids), next(model.parameters()).device
            tokens = torch.tensor([row.prompt_ids + response], device=device)
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
            logps = logits.double().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
            values.append(torch.stack([logps[: size - 1].sum(), logps[size - 1 :].sum()]))
    return torch.stack(values)


@contextlib.contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Attention windows of four tokens, so that they bind on the few of ``probe``: some models keep
    them in the mask only, which a packed pass does without.
    """
    parts = [vars(part) for part in (model.config.get_text_config(), *model.modules())]
    found = [(part, name, part[name]) for name in WINDOWS for part in parts if part.get(name)]
    for part, name, _ in found:
        part[name] = 4
    try:
        yield
    finally:
        for part, name, size in found:
            part[name] = size


@contextlib.contextmanager
def _implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextlib.contextmanager
def packed_attention(model: nn.Module) -> Iterator[None]:
    """Within it, the model's attention understands packed batches where it can; its own
    implementation is put back afterwards.
    """
    base = base_model_of(model)
    with _implementation(base, ATTENTION) if packs(base) else contextlib.nullcontext():
        yield


def _body(model: PreTrainedModel) -> Any:
    """What computes the hidden states; some classes name another part than they have."""
    return model.base_model if model.base_model is not model else model.model


def predicting_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Hidden states (M, H) at the positions that predict response tokens. Call it inside
    ``packed_attention``.
    """
    if model.config._attn_implementation != ATTENTION:
        return padded_states(model, batch)
    layout = batch.layout
    layout.calls = 0
    # A four-dimensional mask is taken as given by every architecture that packs; the layout
    # replaces it.
    dummy = torch.zeros((1, 1, 1, 1), device=batch.input_ids.device)
    hidden = _body(model)(
        input_ids=batch.input_ids,
        attention_mask=dummy,
        position_ids=batch.position_ids,
        use_cache=False,
        packed_layout=layout,
    ).last_hidden_state
    layers = model.config.get_text_config().num_hidden_layers
    if layout.calls != layers:
        raise HarnessError(
            f"{type(model).__name__}: {layout.calls} of its {layers} layers read the layout of a "
            "packed batch"
        )
    chosen: Tensor = hidden[0].index_select(0, batch.predict)
    return chosen


def padded_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The same (M, H) for any causal model: every response behind a copy of its prompt, padded at
    the end.
    """
    tokens, device = batch.input_ids[0], batch.input_ids.device
    sequences, places = [], []
    for (start, end), responses in zip(
        batch.layout.prompt_spans, batch.layout.response_spans, strict=True
    ):
        for first, last in responses:
            size = end - start
            places.append(torch.arange(size - 1, size + last - first - 1, device=device))
            sequences.append(torch.cat([tokens[start:end], tokens[first:last]]))
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    hidden = _body(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return torch.cat([row[place] for row, place in zip(hidden, places, strict=True)])


def sequence_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """log pi(response | prompt), shape (R,), float64, differentiable. Call it inside
    ``packed_attention``.

    Token log-probabilities are computed in the model's precision (softmax in float32 or better) and
    summed in float64.
    """
    token_logps = head_logps(output_head(model), predicting_states(model, batch), batch.targets)
    zeros = torch.zeros(batch.responses, dtype=torch.float64, device=token_logps.device)
    return zeros.index_add(0, batch.response_of, token_logps.double())


def mixed_precision(model: nn.Module, mixed: bool) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic of mixed-precision training (bfloat16 autocast), or the model's own."""
    if not mixed:
        return contextlib.nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)


def positions_of(model: nn.Module) -> tuple[int, int]:
    """(near, far): tokens up to which a sequence's positions are rotated alike, and the most that
    the model has positions for (``sys.maxsize`` where nothing says).

    They differ in longrope models (Phi-3 128k, Phi-4 mini): one token beyond the first turns all of
    the pass's tokens to other frequencies (Ding et al. 2024, arXiv 2402.13753).
    """
    config = base_model_of(model).config.get_text_config()
    far = getattr(config, "max_position_embeddings", None) or sys.maxsize
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    longer = [kind for kind in kinds if kind.get("rope_type") == "longrope"]
    return min([far, *(kind["original_max_position_embeddings"] for kind in longer)]), far


def check_positions(model: nn.Module, rows: Iterable[PackedPrompt]) -> None:
    """Raise HarnessError for a row with more tokens than ``positions_of`` has near: where they are
    learned there are no more, where they are computed it was never trained on them, or they would
    change those of shorter rows in the same pass.
    """
    near, far = positions_of(model)
    most = max((len(row.prompt_ids) + max(map(len, row.responses)) for row in rows), default=0)
    if most > near:
        beyond = "" if near == far else ", and rotates them otherwise beyond (longrope)"
        raise HarnessError(
            f"a prompt and its response have {most} tokens, the model has positions for "
            f"{near} (max_position_embeddings){beyond}: set training.max_length to {near} at most"
        )


def response_logps(
    model: nn.Module, rows: Sequence[PackedPrompt], *, token_budget: int = 8192, mixed: bool = False
) -> list[list[float]]:
    """log pi(response | prompt) in nats, summed over the response's tokens; one list per row, in
    the responses' order.

    No gradient. ``token_budget`` bounds the tokens of one pass (a single longer row still runs).
    ``mixed``: in bfloat16 mixed precision.
    """
    base = base_model_of(model)
    results: list[list[float]] = [[] for _ in rows]
    with torch.no_grad(), packed_attention(base), mixed_precision(base, mixed):
        for members, batch in batches_of(base, rows, token_budget):
            values = iter(sequence_logps(base, batch).tolist())
            for i in members:
                results[i] = [next(values) for _ in rows[i].responses]
    return results


def batches_of(
    model: nn.Module, rows: Sequence[PackedPrompt], token_budget: int
) -> Iterator[tuple[list[int], PackedBatch]]:
    """Packed batches of at most ``token_budget`` tokens on the model's device, each with its rows'
    places. Raises HarnessError for a row longer than the model's positions.
    """
    check_positions(model, rows)
    device = next(model.parameters()).device
    for members in chunk_by_tokens([row.tokens for row in rows], token_budget):
        yield members, pack([rows[i] for i in members]).to(device)


def enable_packed_forward(model: nn.Module) -> PreTrainedModel:
    """Let ``model(packed_batch=...)`` return ``sequence_logps``; other calls are unchanged.

    Going through ``forward`` keeps the hooks of data-parallel, sharded and mixed-precision
    wrappers. Idempotent.
    """
    base = base_model_of(model)
    if packs(base):
        base.config._attn_implementation = ATTENTION
    enable_fused_head(base.get_output_embeddings())
    # A bound method, so that a copy of the model gets a forward of its own.
    before: Any = base.forward.__func__  # type: ignore[attr-defined]
    if getattr(before, "packed", False):
        return base

    def forward(
        self: PreTrainedModel, *args: Any, packed_batch: PackedBatch | None = None, **kwargs: Any
    ) -> Any:
        if packed_batch is not None:
            return sequence_logps(self, packed_batch)
        return before(self, *args, **kwargs)

    forward.packed = True  # type: ignore[attr-defined]
    base.forward = types.MethodType(forward, base)  # type: ignore[method-assign]
    return base
