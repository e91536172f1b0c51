"""Sizes of models and of texts, and the work they make: rows, tokens and floating-point operations.
Used by ``selm plan --cost``.

6 floating-point operations per parameter and trained token (2 forward, 4 backward), 2 per parameter
and token read or generated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        attention = (
            2 * self.hidden * self.heads * self.head_size
            + 2 * self.hidden * self.kv_heads * self.head_size
        )
        return float(
            self.layers * (attention + 3 * self.hidden * self.inner)
            + self.vocabulary * self.hidden * (1 if self.tied else 2)
        )

    @property
    def cache_per_token(self) -> int:
        """Numbers kept for one token while generating: a key and a value per layer."""
        return 2 * self.layers * self.kv_heads * self.head_size


KNOWN = {
    "HuggingFaceH4/mistral-7b-sft-beta": Shape("Mistral 7B", 32, 4096, 14336, 32, 8, 128, 32_000),
    "meta-llama/Meta-Llama-3-8B-Instruct": Shape(
        "Llama 3 8B", 32, 4096, 14336, 32, 8, 128, 128_256
    ),
    "microsoft/Phi-3-mini-4k-instruct": Shape("Phi-3 mini", 32, 3072, 8192, 32, 32, 96, 32_064),
    "Qwen/Qwen3-1.7B": Shape("Qwen3 1.7B", 28, 2048, 6144, 16, 8, 128, 151_936, True),
}
"""Shapes of the recipes' models, so that a budget needs no download."""


def shape_of(recipe: Recipe) -> Shape:
    """The model's shape: known by name, or read from the config.json of a folder or of the hub's
    cache.
    """
    source = recipe.model.source
    if source == "pocket":
        pocket = recipe.pocket
        return Shape(
            "pocket",
            pocket.layers,
            pocket.hidden_size,
            pocket.hidden_size,
            pocket.heads,
            pocket.heads,
            pocket.hidden_size // pocket.heads,
            100,
            True,
        )
    if source in KNOWN:
        return KNOWN[source]
    file: Any = Path(source) / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache

        file = (
            try_to_load_from_cache(source, "config.json", revision=recipe.model.revision or None)
            if source.count("/") == 1
            else None
        )
    if not isinstance(file, (str, Path)):
        raise HarnessError(
            f"{source}: its sizes are not known here; give a folder, or fetch its config.json "
            f"first (`hf download {source} config.json`)"
        )
    return shape_from_config(source, json.loads(Path(file).read_text(encoding="utf-8")))


def shape_from_config(source: str, config: Mapping[str, Any]) -> Shape:
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
            f"{source}: config.json has no {missing}; only decoders of the usual form can be "
            "counted"
        ) from None


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of an answer: assumptions, shown with every budget. An answer
    never counts over its limit.
    """

    prompt: int = 180
    answer: int = 300
    judged_answer: int = 400
    """Answers on MT-Bench and AlpacaEval are longer."""
    rating_prompt: int = 1200
    rating_reply: int = 200
    verdict_prompt: int = 1300
    verdict_reply: int = 1


POCKET_LENGTHS = Lengths(20, 10, 10, 170, 8, 360, 1)


@dataclass(frozen=True)
class Work:
    """One stage's work. how: the arithmetic in words. flops: 6 per trained and 2 per other token
    and parameter, summed over models.
    """

    rows: float = 0
    read: float = 0
    generated: float = 0
    trained: float = 0
    flops: float = 0
    judge_calls: float = 0
    judge_prompt: float = 0
    judge_reply: float = 0
    how: str = ""

    @property
    def units(self) -> float:
        """What time is proportional to."""
        return max(1.0, self.flops or self.rows)
