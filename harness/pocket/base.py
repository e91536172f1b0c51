"""Stage ``base.pocket``: a small Llama trained by TRL's SFTTrainer on the pocket world's conversations.

Settings: those of PocketBaseSettings, and ``threads``. The same settings and data give the same bytes; what the Trainer
seeds globally is fenced and put back.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.records import HarnessError, StageOutcome, StageTask, read_jsonl

VERSION = 1
MAX_LENGTH = 128
"""Longest supervised conversation in tokens; the language's longest has about 100."""


@contextlib.contextmanager
def fenced_seeds(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators inside the block, and put their states back after it."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def build_model(settings: Mapping[str, Any], tokenizer: Any) -> Any:
    """A fresh Llama of the settings' size for ``tokenizer``; draws its weights from torch's global generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, heads = int(settings["hidden_size"]), int(settings["heads"])
    if hidden % heads or (hidden // heads) % 2:
        raise HarnessError(f"pocket.hidden_size {hidden} must be an even multiple of pocket.heads {heads}")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=int(settings["layers"]),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def run(task: StageTask) -> StageOutcome:
    """Train on ``inputs["data"]/sft.jsonl`` and write ``model/`` (safetensors and tokenizer) into ``task.out``."""
    from datasets import Dataset

    from harness.pocket import tokenizer as pocket_tokenizer

    settings = task.settings
    conversations = [row for _, row in zip(range(int(settings["rows"])), read_jsonl(task.inputs["data"] / "sft.jsonl"), strict=False)]
    tokenizer = pocket_tokenizer.build()
    with fenced_seeds(int(settings["seed"])), tempfile.TemporaryDirectory() as scratch:
        model = build_model(settings, tokenizer)
        result = _fit(model, tokenizer, Dataset.from_list(conversations), settings, Path(scratch))
    folder = task.out / "model"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    summary = {"loss": round(float(result.training_loss), 6), "parameters": int(model.num_parameters())}
    return StageOutcome(rows=len(conversations), costs={"steps": float(settings["steps"])}, summary=summary)


def _fit(model: Any, tokenizer: Any, rows: Any, settings: Mapping[str, Any], scratch: Path) -> Any:
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(scratch),
        max_steps=int(settings["steps"]),
        per_device_train_batch_size=int(settings["batch_size"]),
        learning_rate=float(settings["learning_rate"]),
        lr_scheduler_type="cosine",
        warmup_steps=max(1, int(settings["steps"]) // 20),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_length=MAX_LENGTH,
        assistant_only_loss=True,
        seed=int(settings["seed"]),
        data_seed=int(settings["seed"]),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    return trainer.train()
