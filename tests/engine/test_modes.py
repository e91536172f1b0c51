"""Modes with one optimiser and one schedule through all iterations, against TRL and themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.engine.store import Store
from harness.model.policy import load_policy
from harness.records import content_hash, read_jsonl
from harness.study.settings import Recipe
from harness.train.batching import GlobalBatchSampler, PreferenceRow, encode_pairs
from tests.engine.test_presets import Ran, run_all, study

BATCH, RATE = 8, 1e-3
MODE: dict[str, Any] = {
    "objective.alpha": 0,
    "loop.prompts_per_iteration": BATCH,
    "training.batch_size": BATCH,
    "training.learning_rate": RATE,
    "loop.reference_policy": "fixed",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("store"))
    made.open()
    return made


def ran(folder: Path, store: Store, **changes: Any) -> Ran:
    return run_all(study(folder, "selm", **MODE, **changes), store)


def order(found: Ran, iteration: int) -> list[PreferenceRow]:
    """The rows of an iteration as training saw them."""
    train = found.stage(iteration, "train")
    folder = found.store.folder(train.inputs["pairs"])
    tokenizer = load_policy(found.store.folder(train.inputs["policy"])).tokenizer
    limits = {"max_length": 256, "max_prompt_length": 128}
    return encode_pairs(tokenizer, folder, limits)


def parameters(found: Ran, key: str) -> dict[str, torch.Tensor]:
    return dict(load_policy(found.store.folder(key)).model.named_parameters())


def trl_run(
    found: Ran, rows: list[PreferenceRow], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """Parameters that TRL's DPOTrainer ends with, on these rows in this order."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    # Tokens in, as ours: its own tokenisation is not what is compared.
    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", lambda self, dataset, *arguments: dataset)
    base = found.store.folder(found.plan.runs[0].iterations[0]["base"])
    policy, reference = (load_policy(base, cached=False) for _ in range(2))
    config = DPOConfig(
        output_dir=str(folder),
        learning_rate=RATE,
        num_train_epochs=1,
        beta=0.1,
        lr_scheduler_type="cosine",
        warmup_steps=1,  # a tenth of six steps, rounded up
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        max_length=256,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    columns = [
        {
            "prompt_ids": [*row.prompt_ids],
            "chosen_ids": [*row.responses["chosen"]],
            "rejected_ids": [*row.responses["rejected"]],
        }
        for row in rows
    ]
    trainer = DPOTrainer(
        model=policy.model,
        ref_model=reference.model,
        args=config,
        train_dataset=Dataset.from_list(columns),
        processing_class=policy.tokenizer,
    )
    trainer.train()
    return dict(trainer.model.named_parameters())


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_one_step_an_iteration_is_trls_dpo_trainer_over_all_of_them(
    mode: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterations = 6
    found = ran(tmp_path, store, **{"loop.mode": mode, "loop.iterations": iterations})
    rows = [row for i in range(1, iterations + 1) for row in order(found, i)]
    assert len(rows) == iterations * BATCH, "a full batch at every step"
    theirs = trl_run(found, rows, tmp_path / "trl", monkeypatch)
    ours = parameters(found, found.stage(iterations, "train").key)
    base = parameters(found, found.plan.runs[0].iterations[0]["base"])
    moved = max(float((ours[name] - base[name]).detach().abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert apart < 1e-5 < 1e-3 < moved
    rates = [
        row["learning_rate"]
        for i in range(1, iterations + 1)
        for row in read_jsonl(store.folder(found.stage(i, "train").key) / "steps.jsonl")
    ]
    assert len(rates) == iterations
    assert rates[1] == RATE
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_offline_in_one_iteration_is_trls_dpo_trainer_over_one_pass(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"loop.mode": "offline", "loop.iterations": 1, "loop.prompts_per_iteration": 48}
    found = run_all(study(tmp_path, "selm", **(MODE | changes)), store)
    rows, train = order(found, 1), found.stage(1, "train").settings
    seed = int(content_hash("train", train.seed, train.iteration, length=7), 16)
    batches = GlobalBatchSampler(len(rows), BATCH, seed)
    theirs = trl_run(found, [rows[i] for batch in batches for i in batch], tmp_path, monkeypatch)
    ours = parameters(found, found.stage(1, "train").key)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"training": {"learning_rate": [1e-4, 1e-5]}}, "learning_rate as one number"),
        ({"training": {"lora": {}}}, "leave training.lora"),
        ({"loop": {"mode": "offline"}}, "set loop.reference_policy: fixed"),
        (
            {"loop": {"mode": "offline", "reference_policy": "fixed"}, "training": {"epochs": 2}},
            "goes through all the data before it meets any again",
        ),
    ],
)
def test_what_one_optimiser_cannot_be_carried_through_is_refused(
    recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe(**({"loop": {"mode": "online"}} | recipe))
