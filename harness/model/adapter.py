"""A PEFT adapter and its base, merged into the whole checkpoint that they stand for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.model.checkpoint import check_checkpoint, load_model
from harness.model.checkpoint_files import ADAPTER_WEIGHTS, CheckpointError
from harness.model.isolated_rng import isolated_rng

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""Files of a tokenizer: the adapter's where its folder holds any, else the base's."""


def merge(adapter: Path, base: Path, out: Path) -> None:
    """Write ``base`` with the adapter added to its weights, in the base's precision, to ``out``;
    with the adapter's vocabulary where it was extended and the adapter stores its rows.

    Raises CheckpointError for pickled weights, for an adapter that is not of this base, and for one
    that adds to no weights (prompt tuning).
    """
    from peft import PeftConfig, get_peft_model
    from safetensors import SafetensorError

    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{adapter}: no {ADAPTER_WEIGHTS} (pickled ones are not read; save it as safetensors)"
        )
    whole = check_checkpoint(base, head="causal")
    model = load_model(whole, dtype="auto", attention=None, device="cpu")
    try:
        settings = PeftConfig.from_pretrained(str(adapter))
        if settings.is_prompt_learning:
            raise CheckpointError(
                f"{adapter}: {settings.peft_type} learns tokens before the prompt and adds to no "
                "weights, so there is no checkpoint that it and its base stand for"
            )
        stored = _extend_vocabulary(model, adapter / ADAPTER_WEIGHTS)
        with isolated_rng(0):
            wrapped = get_peft_model(model, settings)
        told = wrapped.load_adapter(str(adapter), "default", torch_device="cpu")
        whole_model = merged(wrapped)
    except CheckpointError:
        raise
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        OSError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{adapter}: cannot be merged into {base} ({reason}); name its own base in column "
            "'base'"
        ) from error
    # With an extended vocabulary peft stores what it trained whole twice, under two names.
    twice = {name for name in stored if name.replace(".modules_to_save.", ".") in stored - {name}}
    stray = [*told.missing_keys, *(set(told.unexpected_keys) - twice)]
    if stray:
        raise CheckpointError(
            f"{adapter}: {len(stray)} tensors are missing or have no place in {base} "
            f"({', '.join(stray[:3])}); name its own base in column 'base'"
        )
    whole_model.save_pretrained(out)
    named = adapter if any(adapter.glob("tokenizer*")) else base
    for file in {found for pattern in TOKENIZER for found in named.glob(pattern)}:
        if file.is_file():
            shutil.copy(file, out)


def merged(policy: Any) -> Any:
    """The whole model of a PEFT model, its adapter added to its weights. Where it changes one of
    embedding and head, which share a matrix, each gets its own first: peft would add to both.
    """
    from torch import nn

    base = policy.get_base_model()
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        if base.config.get_text_config().tie_word_embeddings and hasattr(layer, "base_layer"):
            layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().clone())
    return policy.merge_and_unload(safe_merge=True)


def _extend_vocabulary(model: Any, file: Path) -> set[str]:
    """Give embedding and head the rows that the adapter's file stores of both; their values come
    with the adapter. Returns the names in the file.
    """
    from safetensors import safe_open

    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    parts = [name for name, module in model.named_modules() if module in layers]
    names = {f"base_model.model.{name}.weight" for name in parts}
    with safe_open(file, framework="pt") as opened:
        stored = set(opened.keys())
        if names <= stored:
            rows = {opened.get_slice(name).get_shape()[0] for name in names}
            if len(rows) == 1 and rows != {layers[0].num_embeddings}:
                model.resize_token_embeddings(rows.pop(), mean_resizing=False)
    return stored
