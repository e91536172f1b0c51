"""What training holds in a device's memory before the first row, and what to try when it runs out.

Weights, gradients and optimiser are certain and counted; activations are not: the trainer halves
its token budget when the device runs out of memory (`harness.train.trainer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.model.shape import Shape
from harness.study.optimizers import OPTIMIZERS
from harness.study.sections import TrainingSettings
from harness.study.settings import Recipe

GB = 1e9


@dataclass(frozen=True)
class Part:
    """One part of the memory of one process, in bytes, with its arithmetic."""

    what: str
    how: str
    size: float


def training_parts(shape: Shape, recipe: Recipe) -> tuple[Part, ...]:
    """Weights, gradients and optimiser of one training process, in bytes.

    Full training keeps float32 weights whatever the model's dtype; adapters train in float32 over
    frozen weights of the model's dtype. With sharding each process holds its share.
    """
    n, training, runtime = shape.parameters, recipe.training, recipe.runtime
    shards = runtime.processes if runtime.sharding != "none" else 1
    over = f" / {shards}" if shards > 1 else ""
    state = OPTIMIZERS[training.optimizer].state
    if training.lora:
        wide = _frozen_width(shape, recipe)
        trained, each = shape.adapters(training.lora.r), 8 + state
        frozen = f"{n / 1e9:.2f} B × {wide:.3g} bytes{over}"
        return (
            Part("weights (frozen)", frozen, wide * n / shards),
            Part(
                "adapters with gradients and optimiser",
                f"{trained / 1e6:.0f} M × {each:g} bytes{over}",
                each * trained / shards,
            ),
        )
    states = (("weights", 4), ("gradients", 4), ("optimiser", state))
    return tuple(
        Part(what, f"{n / 1e9:.2f} B × {size:g} bytes{over}", size * n / shards)
        for what, size in states
    )


NF4_BYTES = (4 + (8 + 32 / 256) / 64) / 8
"""A weight in 4 bits; a scale of 8 bits for 64 of them, one of 32 for 256 scales."""


def _frozen_width(shape: Shape, recipe: Recipe) -> float:
    """Bytes of a frozen weight on the average: with 4 bits, embeddings and head keep the dtype."""
    lora = recipe.training.lora
    wide = 2 if recipe.model.dtype == "bfloat16" else 4
    if not lora or lora.base == "whole":
        return wide
    kept = shape.embeddings / shape.parameters
    return wide * kept + NF4_BYTES * (1 - kept)


def training_bytes(shape: Shape, recipe: Recipe) -> float:
    """Bytes that one training process holds without a single row."""
    return sum(part.size for part in training_parts(shape, recipe))


def scoring_bytes(shape: Shape, recipe: Recipe) -> float:
    """Bytes of the policy that scores pairs, on one device: in mixed precision float32 weights and
    their bfloat16 copies.
    """
    if recipe.model.dtype == "bfloat16" and not recipe.training.lora:
        return 6 * shape.parameters
    return _frozen_width(shape, recipe) * shape.parameters


def node_needed(shape: Shape, recipe: Recipe) -> str:
    """The node that a training stage needs, in a sentence."""
    runtime = recipe.runtime
    count = f"{runtime.processes} GPUs" if runtime.processes > 1 else "one GPU"
    whole = runtime.sharding == "none"
    divided = "" if whole else f", divided by {runtime.sharding}"
    return (
        f"Training {shape.name} needs a node of {count}, and on each "
        f"{training_bytes(shape, recipe) / GB:.1f} GB for weights, gradients and "
        f"{recipe.training.optimizer}'s states{divided}; scoring pairs, "
        f"{scoring_bytes(shape, recipe) / GB:.1f} GB on one. Rows and fragments come on top."
    )


def arithmetic(parts: Sequence[Part]) -> str:
    """``weights: 7.24 B × 4 bytes = 29.0 GB; …``"""
    return "; ".join(f"{part.what}: {part.how} = {part.size / GB:.1f} GB" for part in parts)


def remedies(training: TrainingSettings, sharded: bool) -> str:
    """What would make training smaller and is not used yet."""
    found = [] if training.gradient_checkpointing else ["training.gradient_checkpointing: true"]
    if not training.lora:
        found.append("training.lora")
    elif training.lora.base == "whole" and not sharded:
        found.append("training.lora.base: nf4")
    if sharded:
        found.append("more runtime.processes")
    else:
        found.append("runtime.sharding: fsdp over several runtime.processes")
    return ", ".join([*found, "a shorter training.max_length"])
