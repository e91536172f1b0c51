"""Sizes of a decoder, without loading it: what its cost is computed from, and what training holds
in a device's memory before the first row.

Weights, gradients and optimiser are certain and counted; activations are not: the trainer halves
its token budget when the device runs out of memory (`harness.train.trainer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from harness.model import sources
from harness.model.checkpoint import quiet
from harness.model.checkpoint_files import settings_of
from harness.records import HarnessError, first_line
from harness.study.optimizers import OPTIMIZERS
from harness.study.sections import TrainingSettings
from harness.study.settings import Recipe

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. ``tied``: the output layer is the input embedding. counted: its weights,
    and those that one token passes through (of a mixture of experts, the chosen ones), where the
    model itself was asked.
    """

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    counted: tuple[float, float] | None = None

    @property
    def parameters(self) -> float:
        """All weights; of those not counted embeddings, attention and gated MLP, without norms."""
        if self.counted:
            return self.counted[0]
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.embeddings

    @property
    def active(self) -> float:
        """Weights that one token passes through."""
        return self.counted[1] if self.counted else self.parameters

    @property
    def embeddings(self) -> float:
        """Weights of the embedding and the head."""
        return float(self.vocabulary * self.hidden * (1 if self.tied else 2))

    @property
    def cache_per_token(self) -> int:
        """Numbers kept for one token while generating: a key and a value per layer."""
        return 2 * self.layers * self.kv_heads * self.head_size

    def adapters(self, rank: int) -> float:
        """Parameters of LoRA adapters of this rank on every linear layer but the head."""
        query, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        sides = 2 * (self.hidden + query) + 2 * (self.hidden + keys)
        return float(self.layers * rank * (sides + 3 * (self.hidden + self.inner)))


KNOWN = {
    "HuggingFaceH4/mistral-7b-sft-beta": Shape("Mistral 7B", 32, 4096, 14336, 32, 8, 128, 32_000),
    "meta-llama/Meta-Llama-3-8B-Instruct": Shape(
        "Llama 3 8B", 32, 4096, 14336, 32, 8, 128, 128_256
    ),
    "microsoft/Phi-3-mini-4k-instruct": Shape("Phi-3 mini", 32, 3072, 8192, 32, 32, 96, 32_064),
    "meta-llama/Llama-3.2-1B-Instruct": Shape(
        "Llama 3.2 1B", 16, 2048, 8192, 32, 8, 64, 128_256, True
    ),
    "microsoft/Phi-4-mini-instruct": Shape("Phi-4 mini", 32, 3072, 8192, 24, 8, 128, 200_064, True),
    "google/gemma-3-1b-it": Shape("Gemma 3 1B", 26, 1152, 6912, 4, 1, 256, 262_144, True),
    "Qwen/Qwen3-1.7B": Shape("Qwen3 1.7B", 28, 2048, 6144, 16, 8, 128, 151_936, True),
}
"""Shapes of the recipes' models, so that a budget needs no download."""
POCKET_VOCABULARY = 100


def shape_of(recipe: Recipe) -> Shape:
    """The model's shape: known by name, or by a config.json here. Raises HarnessError for none."""
    source = recipe.model.source
    if source == "pocket":
        pocket = recipe.pocket
        width, heads = pocket.hidden_size, pocket.heads
        sizes = (pocket.layers, width, width, heads, heads, width // heads, POCKET_VOCABULARY)
        return Shape("pocket", *sizes, tied=True)
    if source in KNOWN:
        return KNOWN[source]
    if sources.is_gguf(source):
        return shape_from_config(source, sources.gguf_settings(Path(source).expanduser()))
    file: Any = str(Path(source) / "config.json")
    if not Path(file).is_file() and source.count("/") == 1:
        revision = recipe.model.revision or None
        file = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(file, str) or not Path(file).is_file():
        raise HarnessError(
            f"{source}: its sizes are not known here; give a folder, or fetch its config.json "
            f"first (`hf download {source} config.json`)"
        )
    return shape_from_config(source, settings_of(Path(file), source))


def shape_from_config(source: str, config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json states, its weights counted in the empty model. Raises
    HarnessError for what is no decoder with attention, or needs code of its own.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        whole = AutoConfig.for_model(**config)
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(whole)
        text = whole.get_text_config()
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
        sizes = dict(model.named_parameters())
        total = sum(tensor.numel() for tensor in sizes.values())
        # Experts of a layer are stacked in one tensor.
        experts = [tensor for name, tensor in sizes.items() if ".experts." in name]
        idle = sum(one.numel() * (1 - text.num_experts_per_tok / len(one)) for one in experts)
        kv_heads = getattr(text, "num_key_value_heads", None)
        if not kv_heads:  # Falcon's own names
            grouped = getattr(text, "new_decoder_architecture", False)
            one = getattr(text, "multi_query", False)
            kv_heads = 1 if one else heads
            kv_heads = text.num_kv_heads if grouped else kv_heads
        return Shape(
            source,
            int(text.num_hidden_layers),
            hidden,
            int(getattr(text, "intermediate_size", None) or 4 * hidden),
            heads,
            int(kv_heads),
            int(getattr(text, "head_dim", None) or hidden // heads),
            int(text.vocab_size),
            bool(text.tie_word_embeddings),
            (float(total), float(total - idle)),
        )
    except Exception as error:  # of any model's own making
        raise HarnessError(
            f"{source}: the sizes in config.json cannot be read as those of a decoder with "
            f"attention ({first_line(error, 200)})"
        ) from error


# -- memory ----------------------------------------------------------------------------------------


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
    if not training.lora:
        states = (("weights", 4), ("gradients", 4), ("optimiser", state))
        return tuple(
            Part(what, f"{n / 1e9:.2f} B × {size:g} bytes{over}", size * n / shards)
            for what, size in states
        )
    wide, each, trained = _frozen_width(shape, recipe), 8 + state, shape.adapters(training.lora.r)
    frozen = f"{n / 1e9:.2f} B × {wide:.3g} bytes{over}"
    added = f"{trained / 1e6:.0f} M × {each:g} bytes{over}"
    return (
        Part("weights (frozen)", frozen, wide * n / shards),
        Part("adapters with gradients and optimiser", added, each * trained / shards),
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
    """Bytes of the policy that scores pairs; in mixed precision with bfloat16 copies."""
    if recipe.model.dtype == "bfloat16" and not recipe.training.lora:
        return 6 * shape.parameters
    return _frozen_width(shape, recipe) * shape.parameters


def node_needed(shape: Shape, recipe: Recipe) -> str:
    """The node that a training stage needs, in a sentence."""
    runtime = recipe.runtime
    count = f"{runtime.processes} GPUs" if runtime.processes > 1 else "one GPU"
    divided = "" if runtime.sharding == "none" else f", divided by {runtime.sharding}"
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
