"""A reward model trained in place with TRL's RewardTrainer, on pairs the policy never trains on.
Stage ``ranker.train``.

The start is a causal checkpoint's body with a new head of one number. Loss: -log σ(r(x, y_w) - r(x,
y_l)), Bradley and Terry (1952). Conversations are encoded as the ranker ``reward_model`` encodes
them, end of turn included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.model.chat import encode_conversation
from harness.model.checkpoint import CheckpointSummary, check_checkpoint
from harness.model.isolated_rng import isolated_rng
from harness.model.policy import load_tokenizer
from harness.records import HarnessError, Prompt, StageOutcome, StageTask, Tally, read_jsonl
from harness.study.tasks import RankerTrainTask


def run(task: StageTask[RankerTrainTask]) -> StageOutcome:
    """Train on ``inputs["data"]/ranker.jsonl`` (pairs held aside by data.ranker_pairs) from
    ``inputs["base"]``; write ``model/``.
    """
    file = task.inputs["data"] / "ranker.jsonl"
    prompts = [Prompt(**row) for row in read_jsonl(file)] if file.exists() else []
    if not prompts:
        raise HarnessError(
            "ranker.train: no pairs are held aside for the ranker; set data.ranker_pairs"
        )
    start, out = task.inputs["base"], task.out / "model"
    return train_reward_model(start, prompts, out, task.settings, device=task.runtime.device)


def train_reward_model(
    start: Path,
    prompts: Sequence[Prompt],
    out: Path,
    settings: RankerTrainTask,
    *,
    device: str = "cpu",
) -> StageOutcome:
    """Train a one-label classifier on the prompts' offline pairs and save it with its tokenizer to
    ``out``. Conversations over ``max_length`` tokens are left out and counted. Raises HarnessError
    when none is left.
    """
    tokenizer, limit = load_tokenizer(start), settings.max_length
    found = check_checkpoint(start, head="new", tokenizer=tokenizer)
    rows, tally = [], Tally("ranker.train", "ranker pairs")
    for prompt in prompts:
        row = {}
        for side, answer in (("chosen_ids", prompt.chosen), ("rejected_ids", prompt.rejected)):
            turns = [*prompt.messages, {"role": "assistant", "content": answer}]
            row[side] = encode_conversation(tokenizer, turns)
        fits = max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= limit
        tally.meet(prompt.id, "ok" if fits else f"over ranker_training.max_length = {limit} tokens")
        rows += [row] if fits else []
    if not rows:
        raise HarnessError(
            f"reward model: all {len(prompts)} pairs are over max_length = {limit} tokens"
        )
    with isolated_rng(), tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(found, tokenizer, rows, settings, Path(scratch), device)
        result = trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    summary = {"loss": round(float(result.training_loss), 6), "pairs": len(rows)}
    return StageOutcome(len(rows), summary=summary, left_out=tally.left_out())


def _trainer(
    start: CheckpointSummary,
    tokenizer: Any,
    rows: Sequence[Mapping[str, list[int]]],
    settings: RankerTrainTask,
    scratch: Path,
    device: str,
) -> Any:
    """A RewardTrainer that loads the body itself and seeds the new head's weights."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer  # type: ignore[attr-defined]

    arguments = RewardConfig(
        output_dir=str(scratch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        max_length=None,
        model_init_kwargs={
            "dtype": "float32",
            "use_safetensors": not start.weights.pickled,
            "local_files_only": True,
            "device_map": None,
        },
        trust_remote_code=start.code,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    dataset = Dataset.from_list([dict(row) for row in rows])
    return RewardTrainer(
        model=str(start.path), args=arguments, train_dataset=dataset, processing_class=tokenizer
    )
