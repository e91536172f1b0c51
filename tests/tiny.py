"""Tiny checkpoints for tests: real architectures, a byte-level tokenizer that takes any text,
templates in the style of known models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] "
    "}}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Style(NamedTuple):
    """Template and tokens. end_of_turn: what ends an assistant's turn, not always the eos."""

    template: str
    bos: str | None
    eos: str
    end_of_turn: str
    extra: tuple[str, ...] = ()
    adds_bos: bool = False


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
STYLES = {
    "llama3": Style(LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", HEADERS, True),
    "zephyr": Style(ZEPHYR, "<s>", "</s>", "</s>", adds_bos=True),
    "phi3": Style(PHI3, "<s>", "<|endoftext|>", "<|end|>", ROLES),
    "chatml": Style(CHATML, None, "<|im_end|>", "<|im_end|>", ("<|im_start|>",)),
}
ARCHITECTURES = ("llama", "mistral", "phi3", "qwen2", "qwen3")


def tokenizer(style: str = "llama3", *, template: str | None = None) -> Any:
    """Byte-level tokenizer with a style's special tokens and chat template."""
    spec = STYLES[style]
    made = byte_tokenizer(spec.bos, spec.eos, spec.extra, adds_bos=spec.adds_bos)
    made.chat_template = spec.template if template is None else template
    return made


def byte_tokenizer(bos: str | None, eos: str, extra: Sequence[str], *, adds_bos: bool) -> Any:
    """Byte-level tokenizer (one token a byte, no merges) with these special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    names = {"eos_token": eos, "pad_token": "<pad>"}
    if bos:
        names["bos_token"] = bos
    raw.add_special_tokens([*names.values(), *extra])
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, raw.token_to_id(bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, additional_special_tokens=list(extra), **names
    )


def config(architecture: str, vocabulary: int, **changes: Any) -> Any:
    """A two-layer, 32-wide configuration of the architecture, with grouped keys; ``changes``
    override.
    """
    from transformers import AutoConfig

    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    if architecture in ("qwen3", "gemma3_text"):
        settings["head_dim"] = 8
    return AutoConfig.for_model(architecture, **{**settings, **changes})


def model(architecture: str, made: Any, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of the architecture for tokenizer ``made``; the same ``seed`` gives the same
    weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    given = {
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
    }
    settings = config(architecture, len(made), **given | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(settings).eval()


def checkpoint(
    folder: Path,
    architecture: str = "llama",
    style: str = "llama3",
    *,
    seed: int = 0,
    template: str | None = None,
    **changes: Any,
) -> Path:
    """Write a tiny safetensors checkpoint with its tokenizer into ``folder`` and return it."""
    return written(folder, architecture, tokenizer(style, template=template), seed=seed, **changes)


def reward_model(folder: Path, style: str = "llama3", **changes: Any) -> Path:
    """Write a tiny Llama with one label and a chat template into ``folder`` and return it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    made = tokenizer(style)
    given = {"num_labels": 1, "pad_token_id": made.pad_token_id}
    settings = config("llama", len(made), **given | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def written(folder: Path, architecture: str, made: Any, **changes: Any) -> Path:
    """The same with a tokenizer of one's own."""
    model(architecture, made, **changes).save_pretrained(folder, safe_serialization=True)
    made.save_pretrained(folder)
    return folder


def save(made: Any, folder: Path) -> Path:
    """Write a tokenizer where a checkpoint would be (without weights) and return the folder."""
    made.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return folder
