"""What training holds before its first row by hand, and what happens when a device runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.model.shape import KNOWN, remedies, training_bytes, training_parts
from harness.records import HarnessError, read_jsonl
from harness.study.settings import Recipe
from harness.train.trainer import PreferenceTrainer
from tests.preferences import config, model, rows, run_train, stage_inputs

ZEPHYR = KNOWN["HuggingFaceH4/mistral-7b-sft-beta"]
N = ZEPHYR.parameters
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(sections)


def test_whole_training_takes_sixteen_bytes_a_parameter() -> None:
    parts = training_parts(ZEPHYR, recipe())
    assert [part.size / N for part in parts] == [4, 4, 8], "weights, gradients, two moments"
    assert training_bytes(ZEPHYR, recipe(training={"optimizer": "rmsprop"})) == 12 * N
    assert training_bytes(ZEPHYR, recipe(training={"optimizer": "sgd"})) == 8 * N
    assert training_bytes(ZEPHYR, recipe(training={"optimizer": "adamw_8bit"})) == 10 * N
    sharded = recipe(runtime={"processes": 8, "sharding": "fsdp"})
    assert training_bytes(ZEPHYR, sharded) == 2 * N
    assert training_bytes(ZEPHYR, recipe(runtime={"processes": 8})) == 16 * N


def test_adapters_train_a_small_share() -> None:
    found = training_parts(ZEPHYR, recipe(training={"lora": LORA}, model={"dtype": "bfloat16"}))
    sides = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert [part.size for part in found] == [2 * N, 16 * 32 * 16 * sides]


def test_what_to_try_leaves_out_what_is_done() -> None:
    plain = recipe().training
    assert remedies(plain, sharded=False).startswith("training.gradient_checkpointing: true, tr")
    tight = recipe(training={"lora": LORA, "gradient_checkpointing": True}).training
    assert remedies(tight, sharded=True) == "more runtime.processes, a shorter training.max_length"
    assert remedies(tight, sharded=False).startswith("training.lora.base: nf4, runtime.sharding")


def runs_out_above(
    monkeypatch: pytest.MonkeyPatch, tokens: int, *, backward: bool = False
) -> list[int]:
    """Every micro-batch over ``tokens`` runs out of memory; returns the tokens that were tried."""
    tried: list[int] = []
    real, real_backward = PreferenceTrainer.micro_batch_loss, PreferenceTrainer._backward

    def loss(self: Any, model: Any, micro: Any) -> Any:
        tried.append(micro.batch.tokens)
        found = real(self, model, micro)
        if micro.batch.tokens > tokens and not backward:
            raise torch.OutOfMemoryError
        return found

    def backwards(self: Any, found: Any) -> Any:
        if tried[-1] > tokens and backward:
            raise torch.OutOfMemoryError
        return real_backward(self, found)

    monkeypatch.setattr(PreferenceTrainer, "micro_batch_loss", loss)
    monkeypatch.setattr(PreferenceTrainer, "_backward", backwards)
    return tried


@pytest.mark.parametrize("backward", [False, True])
def test_out_of_memory_halves_the_budget_and_learns_the_same(
    backward: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller budget changes the cut of a batch, not what is learned; the record says so."""
    inputs = stage_inputs(tmp_path)
    whole = run_train(inputs, tmp_path / "whole")
    tried = runs_out_above(monkeypatch, 150, backward=backward)
    cut = run_train(inputs, tmp_path / "cut")
    assert "token_budget" not in whole.summary
    assert cut.summary["token_budget"] <= 150
    assert tried[0] > 150, "the first attempt is the whole batch"
    assert sum(tokens > 150 for tokens in tried) <= 2, "the smaller budget is kept"
    steps = [list(read_jsonl(tmp_path / name / "steps.jsonl")) for name in ("whole", "cut")]
    for name in ("loss", "grad_norm", "margin", "rhat_explore"):
        both = np.array([[row[name] for row in one] for one in steps], dtype=float)
        assert both[1] == pytest.approx(both[0], rel=1e-4, abs=1e-5, nan_ok=True), name
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut")]
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-4) for k in weights[0])


def test_a_row_that_never_fits_ends_the_run_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_out_above(monkeypatch, 1)
    trainer = PreferenceTrainer(model(), config(tmp_path, token_budget=160), rows(12))
    with pytest.raises(HarnessError, match=r"does not fit: one row of \d+ tokens ran out.*Try"):
        trainer.train()
