"""A PEFT adapter and its base, merged into the whole checkpoint that they stand for."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.model.checkpoint import check_checkpoint, load_model
from harness.model.checkpoint_files import ADAPTER_WEIGHTS, CheckpointError
from harness.model.isolated_rng import isolated_rng
from harness.records import first_line

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
    """Write ``base`` with the adapter added to its weights, in the base's precision, to ``out``.

    Raises CheckpointError for pickled weights, and for an adapter that is not of this base.
    """
    from peft import PeftConfig, get_peft_model

    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{adapter}: no {ADAPTER_WEIGHTS} (pickled ones are not read; save it as safetensors)"
        )
    whole = check_checkpoint(base, head="causal")
    model = load_model(whole, dtype="auto", attention=None, device="cpu")
    try:
        with isolated_rng(0):
            wrapped = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
        told = wrapped.load_adapter(str(adapter), "default", torch_device="cpu")
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{adapter}: cannot be merged into {base} ({first_line(error, 200)}); name its own "
            "base in column 'base'"
        ) from error
    stray = [*told.missing_keys, *told.unexpected_keys]
    if stray:
        raise CheckpointError(
            f"{adapter}: {len(stray)} tensors are missing or have no place in {base} "
            f"({', '.join(stray[:3])}); name its own base in column 'base'"
        )
    merged.save_pretrained(out)
    named = adapter if any(adapter.glob("tokenizer*")) else base
    for file in {found for pattern in TOKENIZER for found in named.glob(pattern)}:
        if file.is_file():
            shutil.copy(file, out)
