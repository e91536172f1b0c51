"""Sizes of a decoder: what its cost and its memory are computed from, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from harness.model import gguf
from harness.model.checkpoint_files import settings_of
from harness.records import HarnessError
from harness.study.settings import Recipe


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. ``tied``: the output layer is the input embedding."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def parameters(self) -> float:
        """Weights of embeddings, attention and gated MLP (norms left out)."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.embeddings

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
    """The model's shape: known by name, or read from the config.json of a folder or of the hub's
    cache. Raises HarnessError when it is in none of them.
    """
    source = recipe.model.source
    if source == "pocket":
        pocket = recipe.pocket
        width, heads = pocket.hidden_size, pocket.heads
        return Shape(
            "pocket",
            pocket.layers,
            width,
            width,
            heads,
            heads,
            width // heads,
            POCKET_VOCABULARY,
            True,
        )
    if source in KNOWN:
        return KNOWN[source]
    if gguf.is_gguf(source):
        return shape_from_config(source, gguf.settings_of(Path(source).expanduser()))
    file: Any = Path(source) / "config.json"
    if not file.is_file():
        file = None
        if source.count("/") == 1:
            revision = recipe.model.revision or None
            file = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(file, (str, Path)):
        raise HarnessError(
            f"{source}: its sizes are not known here; give a folder, or fetch its config.json "
            f"first (`hf download {source} config.json`)"
        )
    return shape_from_config(source, settings_of(Path(file), source))


def shape_from_config(source: str, config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json states. Raises HarnessError for decoders of another form."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return Shape(
            source,
            int(config["num_hidden_layers"]),
            hidden,
            int(config["intermediate_size"]),
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or hidden // heads),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as missing:
        raise HarnessError(
            f"{source}: config.json has no {missing}; only usual decoders can be counted"
        ) from None
