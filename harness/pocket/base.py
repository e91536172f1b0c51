"""Stage ``base.pocket``: a small Llama trained by TRL's SFTTrainer on the pocket world's conversations.

Settings: those of PocketBaseSettings, and ``threads``. The same settings and data give the same bytes; what the Trainer
seeds globally is fenced and put back.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.records import HarnessError, StageOutcome, StageTask, read_jsonl

VERSION = 1
MAX_LENGTH = 128
"""Longest supervised conversation in tokens; the language's longest has about 100."""

INITIAL_SPREAD = 0.1
"""Standard deviation of the initial weights: the usual 0.02 makes so small a model learn several times slower."""
ROPE_THETA = 100.0
"""Base of the rotary positions: conversations are short, so positions must differ within tens of tokens."""
COPY_GAIN = 0.7
"""Multiple of the identity added to the initial value and output projections, so that an attended word can be copied at once
("mimetic" initialisation, Trockman and Kolter 2023, arXiv 2305.09828). Most answers copy words of the prompt."""
BATCHES_PER_BUCKET = 50


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
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, heads = int(settings["hidden_size"]), int(settings["heads"])
    if hidden % heads or (hidden // heads) % 2:
        raise HarnessError(f"pocket.hidden_size {hidden} must be an even multiple of pocket.heads {heads}")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=int(settings["layers"]),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=INITIAL_SPREAD,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.v_proj, layer.self_attn.o_proj):
                projection.weight.add_(COPY_GAIN * torch.eye(hidden))
    return model


def batch_order(lengths: Sequence[int], batch_size: int, steps: int, rng: np.random.Generator) -> list[int]:
    """Row numbers of ``steps`` batches: rows shuffled, sorted by length within buckets of 50 batches, batches shuffled. Little padding."""
    order: list[int] = []
    while len(order) < steps * batch_size:
        shuffled = rng.permutation(len(lengths))
        whole = max(batch_size, len(lengths) // batch_size * batch_size)
        batches: list[list[int]] = []
        for start in range(0, min(whole, len(lengths)), BATCHES_PER_BUCKET * batch_size):
            bucket = sorted((int(i) for i in shuffled[start : min(start + BATCHES_PER_BUCKET * batch_size, whole)]), key=lambda i: (lengths[i], i))
            batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        for i in rng.permutation(len(batches)):
            order += batches[int(i)]
    return order[: steps * batch_size]


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

    steps, batch_size, seed = int(settings["steps"]), int(settings["batch_size"]), int(settings["seed"])

    class LengthOrderedTrainer(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer that draws rows in the order of ``batch_order``."""

        def _get_train_sampler(self, train_dataset: Any = None) -> list[int]:
            lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
            return batch_order(lengths, batch_size, steps, np.random.default_rng(seed))

    arguments = SFTConfig(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=float(settings["learning_rate"]),
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_length=MAX_LENGTH,
        assistant_only_loss=True,
        seed=seed,
        data_seed=seed,
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
    trainer = LengthOrderedTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    return trainer.train()
