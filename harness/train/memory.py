"""What training holds in a device's memory, counted before it runs; the largest micro-batch that
fits, or by how much none does.

The count is a function of a model's sizes; ``selm plan --cost`` prints it and the train stage
compares it with the memory that is free. On CUDA one measured trial follows, since a count is not a
measurement.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cost.work import Shape, shape_from_config
from harness.records import HarnessError, StageTask

GIB = 2**30
USABLE = 0.9
"""Share of the free memory that training may fill: the rest is for fragments, buffers of the
libraries, and what was not counted.
"""
CPU_CHUNK, CUDA_CHUNK = 2**21, 2**27
"""Logits that the fused head holds at a time (``harness.model.head``)."""


@dataclass(frozen=True)
class Part:
    """One part of the memory of one process, in bytes, with its arithmetic."""

    what: str
    how: str
    size: float


@dataclass(frozen=True)
class Setup:
    """What decides the memory of one training process besides the model's sizes."""

    bfloat16: bool = False
    checkpointing: bool = False
    lora_rank: int = 0
    moments: int = 2
    """Numbers an optimiser keeps per parameter: two for AdamW, one for RMSprop."""
    processes: int = 1
    sharded: bool = False
    cuda: bool = True


def lora_parameters(shape: Shape, rank: int) -> float:
    """Parameters of adapters of this rank on every linear layer but the head."""
    query, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    pairs = [
        (shape.hidden, query),
        (shape.hidden, keys),
        (shape.hidden, keys),
        (query, shape.hidden),
    ] + 3 * [(shape.hidden, shape.inner)]
    return float(shape.layers * rank * sum(a + b for a, b in pairs))


def training_parts(shape: Shape, setup: Setup, tokens: float) -> tuple[Part, ...]:
    """Memory of one training process at micro-batches of ``tokens`` tokens, part by part, in bytes;
    linear in ``tokens``.
    """
    n, shards = shape.parameters, setup.processes if setup.sharded else 1
    wide = 2 if setup.bfloat16 else 4
    over = f" / {shards}" if shards > 1 else ""
    if setup.lora_rank:
        trained = lora_parameters(shape, setup.lora_rank)
        each, shown = (
            8 + 4 * setup.moments,
            f"{trained / 1e6:.0f} M × {8 + 4 * setup.moments} bytes",
        )
        parts = [
            Part("weights (frozen)", f"{n / 1e9:.2f} B × {wide} bytes{over}", wide * n / shards),
            Part("adapters with gradients and optimiser", shown + over, each * trained / shards),
        ]
    else:
        trained = n
        states = [
            ("weights", 4, ""),
            ("gradients", 4, ""),
            ("optimiser", 4 * setup.moments, f" ({setup.moments} moments)"),
        ]
        parts = [
            Part(what, f"{n / 1e9:.2f} B × {size} bytes{more}{over}", size * n / shards)
            for what, size, more in states
        ]
    return (
        *parts,
        *_passing_weights(shape, setup, trained),
        *_activations(shape, setup, tokens),
        _head(shape, setup),
    )


def _passing_weights(shape: Shape, setup: Setup, trained: float) -> list[Part]:
    """Copies of weights that live while a micro-batch is computed: rounded ones, gathered ones, and
    buckets of gradients.
    """
    n, embedding = shape.parameters, float(shape.vocabulary * shape.hidden)
    layer = (n - embedding * (1 if shape.tied else 2)) / shape.layers
    found = []
    if setup.bfloat16 and not setup.lora_rank:
        # Autocast keeps each rounded weight until its pass ends; checkpointed shards are rounded a
        # layer at a time.
        held = layer if setup.sharded and setup.checkpointing else n
        found.append(Part("weights rounded to bfloat16", f"{held / 1e9:.2f} B × 2 bytes", 2 * held))
    if setup.sharded:
        each = 2 if setup.lora_rank and setup.bfloat16 else 4
        gathered = 2 * layer + embedding * (1 if shape.tied else 2)
        found.append(
            Part(
                "gathered weights",
                f"two layers and embeddings, {gathered / 1e9:.2f} B × {each} bytes",
                each * gathered,
            )
        )
    elif setup.processes > 1:
        found.append(Part("buckets of gradients", f"{trained / 1e9:.2f} B × 4 bytes", 4 * trained))
    return found


def _activations(shape: Shape, setup: Setup, tokens: float) -> list[Part]:
    """What the backward pass reads again. Per token and layer, see ``layer_bytes``; with
    checkpointing one layer's, and each layer's input.
    """
    within, rule = layer_bytes(shape, setup)
    if not setup.checkpointing:
        return [
            Part(
                "activations kept",
                f"{tokens:,.0f} tokens × {shape.layers} layers × {rule}",
                tokens * shape.layers * within,
            )
        ]
    kept = 4 * shape.hidden if not setup.lora_rank or not setup.bfloat16 else 2 * shape.hidden
    return [
        Part(
            "activations kept",
            f"{tokens:,.0f} tokens × {shape.layers} layers × {kept:,} bytes",
            tokens * shape.layers * kept,
        ),
        Part(
            "activations of the layer under way", f"{tokens:,.0f} tokens × {rule}", tokens * within
        ),
    ]


def layer_bytes(shape: Shape, setup: Setup) -> tuple[float, str]:
    """Bytes one decoder layer keeps for a token, and their rule: H hidden width, Q width of the
    queries, I of the gated MLP.

    Found by counting the tensors autograd saves on Llamas of several sizes (the test counts again).
    Adapters keep 8 H less: frozen products need no inputs. Autocast keeps float32 norms and a
    rounded copy for every product.
    """
    query = shape.heads * shape.head_size
    per = (26, 15, 8) if setup.bfloat16 else (24, 26, 16)
    hidden = per[0] - (8 if setup.lora_rank else 0)
    size = hidden * shape.hidden + per[1] * query + per[2] * shape.inner
    return float(
        size
    ), f"({hidden} × {shape.hidden} + {per[1]} × {query} + {per[2]} × {shape.inner}) bytes"


def _head(shape: Shape, setup: Setup) -> Part:
    """The fused head's chunk of logits (float32, its slopes, a rounded copy), and its weight's
    gradient before it is added.
    """
    chunk = float(CUDA_CHUNK if setup.cuda else CPU_CHUNK)
    per, weight = (10, 6) if setup.bfloat16 else (8, 4)
    matrix = 0.0 if setup.lora_rank else float(shape.vocabulary * shape.hidden)
    how = f"{chunk / 1e6:.0f} M logits × {per} bytes" + (
        f" + {shape.vocabulary:,} × {shape.hidden} × {weight} bytes" if matrix else ""
    )
    return Part("head", how, per * chunk + weight * matrix)


# -- before a stage trains -------------------------------------------------------------------------


def largest_budget(
    bytes_at: Callable[[float], float], free: float, longest: int, wanted: float
) -> int:
    """The most tokens up to ``wanted`` whose bytes fit into ``free``; 0 when not even one row of
    ``longest`` tokens does.

    ``bytes_at`` is linear in the tokens. A row is never cut, so that nothing below ``longest`` is
    asked for.
    """
    fixed = bytes_at(0.0)
    each = bytes_at(1.0) - fixed
    most = int(min(wanted, (free - fixed) / each))
    return max(most, longest) if bytes_at(float(longest)) <= free else 0


def setup_of(task: StageTask) -> Setup:
    """A train stage's setup from its settings and runtime."""
    training, runtime = task.settings["training"], task.runtime
    return Setup(
        bfloat16=task.settings["dtype"] == "bfloat16",
        checkpointing=bool(training["gradient_checkpointing"]),
        lora_rank=int((training.get("lora") or {}).get("r", 0)),
        moments=2 if training["optimizer"] == "adamw_torch" else 1,
        processes=int(runtime.get("processes", 1)),
        sharded=runtime.get("sharding", "none") != "none",
        cuda=str(runtime.get("device", "cpu")) != "cpu",
    )


def fitted_budget(task: StageTask, sizes: Sequence[int], free: float | None = None) -> int:
    """``runtime.token_budget``, or the largest that fits into ``free`` bytes (default: what the
    device has). sizes: tokens of each row.

    Raises HarnessError when not even the longest row fits, saying by how much and what to try.
    Models of unknown form are not counted.
    """
    from harness.model.policy import model_folder

    asked = int(task.runtime.get("token_budget", 8192))
    if task.runtime.get("memory", "fit") == "off":
        return asked
    config = json.loads(
        (model_folder(task.inputs["policy"]) / "config.json").read_text(encoding="utf-8")
    )
    try:
        shape = shape_from_config(str(task.inputs["policy"]), config)
    except HarnessError:
        return asked
    setup, longest = setup_of(task), max(sizes)
    rows = int(task.runtime.get("micro_batch") or task.settings["training"]["batch_size"])
    heaviest = sum(
        sorted(sizes, reverse=True)[: min(rows, int(task.settings["training"]["batch_size"]))]
    )
    wanted = max(longest, min(asked or heaviest, heaviest))
    usable = USABLE * (free_bytes(setup) if free is None else free)

    def bytes_at(tokens: float) -> float:
        return sum(part.size for part in training_parts(shape, setup, tokens))

    if bytes_at(float(wanted)) <= usable:
        return asked
    fits = largest_budget(bytes_at, usable, longest, wanted)
    if not fits:
        raise HarnessError(
            _does_not_fit(training_parts(shape, setup, float(longest)), setup, longest, usable)
        )
    return fits


def free_bytes(setup: Setup) -> float:
    """Memory that one process may take: of its GPU (its kept policies are dropped), or its share of
    the machine's.
    """
    if setup.cuda:
        import os

        import torch

        release_policies()
        return float(torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0])
    import psutil

    return float(psutil.virtual_memory().available) / setup.processes


def _does_not_fit(parts: Sequence[Part], setup: Setup, longest: int, usable: float) -> str:
    needed = sum(part.size for part in parts)
    detail = "; ".join(f"{part.what}: {part.how} = {part.size / GIB:.2f} GiB" for part in parts)
    return (
        f"training does not fit: one row of {longest:,} tokens needs {needed / GIB:.2f} GiB, "
        f"{usable / GIB:.2f} GiB are usable "
        f"({USABLE:.0%} of what is free), {(needed - usable) / GIB:.2f} GiB short. {detail}. Try "
        f"{', '.join(_remedies(setup))}; "
        "runtime.memory: off trains without this look"
    )


def _remedies(setup: Setup) -> list[str]:
    """What would make it smaller and is not used yet."""
    found = [] if setup.checkpointing else ["training.gradient_checkpointing: true"]
    if not setup.lora_rank:
        found.append("training.lora")
    found.append(
        "more runtime.processes"
        if setup.sharded
        else "runtime.sharding: fsdp over several runtime.processes"
    )
    return [*found, "a shorter training.max_length"]


def release_policies() -> None:
    """Drop the policies this process keeps for the next stage, and give their device memory back."""
    from harness.model import policy as models

    models._CACHE.clear()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- the measured trial ----------------------------------------------------------------------------


def settle_budget(trainer: Any, sizes: Sequence[int], how: str) -> None:
    """Set the trainer's token budget to one that every rank can run: after a trial on CUDA, and
    never above another rank's.

    Shards are counted only: a trial that fails on one rank would leave the others waiting for its
    weights.
    """
    import torch

    if how == "off":
        return
    args = trainer.args
    if args.device.type == "cuda" and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        args.token_budget = tried_budget(
            trainer,
            sizes,
            float(torch.cuda.mem_get_info(args.device)[1]),
            torch.cuda.max_memory_allocated,
        )
    if args.world_size > 1:
        told = torch.tensor([args.token_budget or 2**62], dtype=torch.int64, device=args.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MIN)
        args.token_budget = 0 if told.item() == 2**62 else int(told.item())


def tried_budget(trainer: Any, sizes: Sequence[int], room: float, peak: Callable[[], float]) -> int:
    """The budget after one forward and backward pass of the heaviest micro-batch, halved until it
    fits. Changes nothing else.

    room: bytes of the device. peak: bytes held at most so far. The optimiser's numbers, not there
    yet, are added.
    """
    import torch

    from harness.model.isolated_rng import fenced_random
    from harness.train.trainer import CHECKPOINTING

    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    states = 4 * trained * (1 if "rmsprop" in str(trainer.args.optim).lower() else 2)
    longest, budget = max(sizes), int(trainer.args.token_budget)
    while True:
        try:
            with fenced_random():
                _trial(trainer, sizes, budget)
            fits = peak() + states <= USABLE * room
        except torch.OutOfMemoryError:
            fits = False
        _clear(trainer)
        if fits:
            return budget
        heaviest = budget or sum(sizes)
        if heaviest <= longest:
            raise HarnessError(
                f"training does not fit: a trial with one row of {longest:,} tokens ran out of "
                f"the {room / GIB:.2f} GiB of the device. "
                f"Try {', '.join(_remedies(Setup(checkpointing=bool(getattr(trainer.args, CHECKPOINTING)))))}"
            )
        budget = max(longest, heaviest // 2)


def _trial(trainer: Any, sizes: Sequence[int], budget: int) -> None:
    import torch

    from harness.model.logprobs import chunk_by_tokens
    from harness.train.batching import make_micro_batch
    from harness.train.trainer import CHECKPOINTING

    args = trainer.args
    rows = [
        trainer.train_dataset[i]
        for i in chunk_by_tokens(sizes, budget, args.per_device_train_batch_size)[0]
    ]
    if getattr(args, CHECKPOINTING):
        trainer.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    trainer.model.train()
    if args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with (
        torch.autocast(args.device.type, dtype=torch.bfloat16)
        if args.bf16
        else contextlib.nullcontext()
    ):
        loss = trainer.micro_batch_loss(
            trainer.model, make_micro_batch(rows, trainer.objective.roles).to(args.device)
        )
    loss.float().backward()


def _clear(trainer: Any) -> None:
    """Leave no trace of a trial: no gradients, no metrics, no cached blocks."""
    import torch

    trainer.model.zero_grad(set_to_none=True)
    trainer.step_metrics = type(trainer.step_metrics)()
    if trainer.args.device.type == "cuda":
        torch.cuda.empty_cache()
