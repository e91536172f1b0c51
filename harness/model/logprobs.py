"""Sequence log-probabilities of all unique responses of a prompt, in one pass, without padding and
without full logits.

Linear layers run on the N tokens of a packed batch (`harness.model.attention`); the head is applied
only where a response token is predicted, a chunk at a time. Models that mix tokens in another way
than by replaceable attention get padded batches instead (``packs``): slower, the same numbers.

Legend: N tokens of the batch, M predicted tokens, R responses, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from harness.model.attention import ATTENTION, PackedBatch, PackedPrompt, chunk_by_tokens, pack
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
        trained = model.training
        model.eval()
        try:
            with torch.no_grad(), _short_windows(model):
                known = _probe(model)
        finally:
            model.train(trained)
        vars(model)["_computes_packed_batches"] = known
    return known


def _probed(model: PreTrainedModel) -> tuple[list[PackedPrompt], float]:
    """A few rows, and how far apart two computations of a response may be (nats)."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = tuple((7 * i + 3) % vocabulary for i in range(24))
    rows = [PackedPrompt(ids[:5], (ids[5:9], ids[9:14])), PackedPrompt(ids[14:17], (ids[17:24],))]
    return rows, 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.5


def _probe(model: PreTrainedModel) -> bool:
    """True: packed batches agree with the model's own logits. False: only padded ones do."""
    name = type(model).__name__
    rows, tolerance = _probed(model)
    batch = pack(rows).to(next(model.parameters()).device)
    (first, second, _), own = _own_logps(model, rows).unbind(1)
    if abs(first - second) > tolerance:
        raise HarnessError(
            f"{name}: sees the tokens to come (one prompt has the log-probability {first:.4f} "
            f"before one response, {second:.4f} before another); it cannot be a policy"
        )
    # Whatever goes wrong in a forward pass that the model's authors did not foresee means that it
    # cannot be used.
    with contextlib.suppress(Exception), _implementation(model, ATTENTION):
        if torch.allclose(sequence_logps(model, batch), own, rtol=0.0, atol=tolerance):
            return True
    try:
        found = sequence_logps(model, batch)
    except (AttributeError, TypeError, ValueError) as error:
        raise HarnessError(f"{name}: its last hidden states cannot be had ({error})") from error
    if not torch.allclose(found, own, rtol=0.0, atol=tolerance):
        raise HarnessError(
            f"{name}: log-probabilities from its hidden states and head ({found.tolist()}) are not "
            f"those of its logits ({own.tolist()}); its forward pass does something between the "
            "two that is not known here"
        )
    slower = "its responses are computed one by one, several times slower"
    logger.warning("%s does not compute packed batches; %s", name, slower)
    return False


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


def _own_logps(model: PreTrainedModel, rows: Sequence[PackedPrompt]) -> Tensor:
    """log pi of prompt (after its first token) and response by plain passes, (R, 2), float64."""
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
    """Attention windows of four tokens, which bind on the few of ``_probe``: some models keep
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
    """Within it, the model's attention understands packed batches where it can."""
    base = base_model_of(model)
    with _implementation(base, ATTENTION) if packs(base) else contextlib.nullcontext():
        yield


def _body(model: PreTrainedModel) -> Any:
    """What computes the hidden states; some classes name another part than they have."""
    return model.base_model if model.base_model is not model else model.model


def predicting_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Hidden states (M, H) that predict response tokens. Inside ``packed_attention``."""
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
    """The same (M, H) for any causal model: each response behind its prompt, padded at the end."""
    tokens, device = batch.input_ids[0], batch.input_ids.device
    sequences, places = [], []
    for (start, end), responses in batch.layout.spans:
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
    """Let ``model(packed_batch=...)`` return ``sequence_logps``, and a plain linear head, called
    with ``targets``, their log-probabilities; other calls are unchanged. Idempotent.

    Going through ``forward`` keeps the hooks of data-parallel, sharded and mixed-precision
    wrappers; a head whose weight is sharded later (FSDP, ZeRO-3) is whole inside its own call only,
    and one call gathers it once on every rank.
    """
    base = base_model_of(model)
    if packs(base):
        base.config._attn_implementation = ATTENTION
    head = base.get_output_embeddings()
    if type(head) is nn.Linear:
        _extend(head, "targets", lambda h, hidden, t: _fused(h.weight, h.bias, hidden, t))
    _extend(base, "packed_batch", sequence_logps)
    return base


def _extend(module: nn.Module, keyword: str, compute: Callable[..., Tensor]) -> None:
    """Let ``module(…, keyword=x)`` return compute(module, …, x)."""
    # A bound method, so that a copy of the model gets a forward of its own.
    before: Any = module.forward.__func__  # type: ignore[attr-defined]
    if getattr(before, "extended", False):
        return

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.pop(keyword, None)
        if given is not None:
            return compute(self, *args, given)
        return before(self, *args, **kwargs)

    forward.extended = True  # type: ignore[attr-defined]
    module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]


# -- the head --------------------------------------------------------------------------------------

CHUNK_ELEMENTS = 2**21
"""Logits alive at a time (8 MiB of float32: they stay near a CPU's cache; 2**18 to 2**22 measured
within 10 %). GPUs take CUDA_CHUNK_ELEMENTS.
"""
CUDA_CHUNK_ELEMENTS = 2**28


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of logits computed at a time."""
    elements = CUDA_CHUNK_ELEMENTS if device.type == "cuda" else CHUNK_ELEMENTS
    return max(16, elements // vocabulary)


def _chunks(hidden: Tensor, vocabulary: int) -> list[slice]:
    size = chunk_rows(vocabulary, hidden.device)
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


class _FusedHead(torch.autograd.Function):
    """log softmax(h W^T + b)[target] for M rows. The backward pass computes the chunk's logits
    again instead of keeping them.

    In half precision on a GPU, with a third of the passes over logits: softmax is rounded once from
    its float32 inside, its entry at the target taken from the stored log-probability (1 - p would
    lose all digits where p is near 1), and the incoming gradient scales hidden states, not logits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        logps = torch.empty(len(hidden), dtype=_wide(hidden.dtype), device=hidden.device)
        normalisers = torch.empty_like(logps)
        ctx.half = half_on_gpu(hidden)
        for rows in _chunks(hidden, weight.shape[0]):
            logits = _logits(hidden[rows], weight, bias).to(logps.dtype)
            wanted = targets[rows, None]
            if ctx.half:
                logps[rows] = logits.log_softmax(-1).gather(1, wanted)[:, 0]
                continue
            normalisers[rows] = logits.logsumexp(-1)
            logps[rows] = logits.gather(1, wanted)[:, 0] - normalisers[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, logps if ctx.half else normalisers)
        return logps

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = {"dtype": _wide(weight.dtype), "device": weight.device}
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, **wide) if wants_weight else None
        grad_bias = torch.zeros(weight.shape[0], **wide) if wants_bias else None
        for rows in _chunks(hidden, weight.shape[0]):
            states, wanted, scale = hidden[rows], targets[rows, None], grad[rows, None]
            logits = _logits(states, weight, bias)
            # d logp / d logits = onehot(target) - softmax, scaled by the incoming gradient.
            if ctx.half:
                slopes = logits.softmax(-1)
                slopes.scatter_(1, wanted, kept[rows, None].expm1().to(slopes.dtype))
                if grad_hidden is not None:
                    torch.mul(slopes @ weight, -scale, out=grad_hidden[rows])
                if grad_weight is not None:
                    grad_weight += slopes.t() @ (states * -scale).to(slopes.dtype)
                if grad_bias is not None:
                    grad_bias += (slopes * -scale).sum(0)
                continue
            slopes = logits.to(_wide(hidden.dtype)).sub_(kept[rows, None]).exp_().mul_(-scale)
            slopes.scatter_add_(1, wanted, scale)
            narrow = slopes.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[rows])
            if grad_weight is not None and narrow.dtype == grad_weight.dtype:
                grad_weight.addmm_(narrow.t(), states)
            elif grad_weight is not None:
                grad_weight += narrow.t() @ states
            if grad_bias is not None:
                grad_bias += slopes.sum(0)
        cast_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        cast_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, cast_weight, cast_bias, None


def half_on_gpu(hidden: Tensor) -> bool:
    """Whether logits are in half precision, on a device that waits for reading them."""
    return hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden @ weight.t()
    if bias is not None:
        logits += bias
    return logits


def plain_head(head: Any) -> bool:
    """Whether the head is one whole matrix here: not adapted by LoRA, not sharded."""
    weight = getattr(head, "weight", None)
    return (
        type(head) is nn.Linear
        and type(weight) is nn.Parameter
        and weight.dim() == 2
        and weight.shape[0] == head.out_features
    )


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
    """A head with its model's softcap c (x → c tanh(x / c)) and scale s (x → s x) of logits."""

    def __init__(self, head: Any, scale: float, softcap: float | None = None) -> None:
        self.head, self.scale, self.softcap = head, scale, softcap
        self.weight, self.out_features = head.weight, head.weight.shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def output_head(model: Any) -> Any:
    """What makes logits of last hidden states: the linear head, softcap and scale by config."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()

    def of(*names: str) -> list[float]:
        return [one for one in (getattr(config, name, None) for name in names) if one is not None]

    # Cohere and Falcon-H1 multiply, Granite and Inkling divide; the caps are of Gemma,
    # RecurrentGemma and xLSTM.
    scale = math.prod(of("logit_scale", "lm_head_multiplier"))
    scale /= math.prod(of("logits_scaling", "logits_mup_width_multiplier"))
    caps = of("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return head if scale == 1.0 and not caps else ShapedHead(head, scale, *caps[:1])


def head_logps(head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """log pi(target) per row, shape (M,), from hidden states (M, H) and targets (M,); float32 or
    float64.

    A plain linear head is fused, a sharded one inside its own call; any other (LoRA on the head) is
    called a checkpointed chunk at a time.
    """
    if plain_head(head):
        return _fused(head.weight, head.bias, hidden, targets)  # type: ignore[arg-type]
    if getattr(getattr(head, "forward", None), "extended", False):
        gathered: Tensor = head(hidden, targets=targets)
        return gathered

    def piece(part: Tensor, wanted: Tensor) -> Tensor:
        logits: Tensor = head(part)
        return logits.to(_wide(logits.dtype)).log_softmax(-1).gather(1, wanted[:, None])[:, 0]

    chunks = _chunks(hidden, getattr(head, "out_features", 2**15))
    parts = [(hidden[rows], targets[rows]) for rows in chunks]
    return torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in parts])  # type: ignore[misc]
