"""Objectives that TRL has too, beside TRL's own trainers: the same rows, loss and gradient."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.train.objectives import OBJECTIVES, Rows, resolve
from harness.train.trainer import PreferenceTrainer
from tests import plain, tiny
from tests.preferences import config, model, rows, trls
from tests.train.test_trainer import moved

CASES = {name: one.trl.split() for name, one in OBJECTIVES.items() if one.trl}
ON_PAIRS = [name for name, (trainer, _) in CASES.items() if trainer == "DPOTrainer"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("CI", "1")


@pytest.mark.parametrize("name", ON_PAIRS)
def test_loss_and_gradient_are_trls(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = model(vocab_size=len(tiny.tokenizer("llama3")))
    policy, batch = moved(start), rows(12)
    arguments = config(tmp_path, objective=name, alpha=0.0, max_log_ratio=1e9)
    ours = PreferenceTrainer(copy.deepcopy(policy), arguments, batch, ref_model=start)
    loss = float(ours.training_step(ours.model, batch))
    asked = {"loss_type": [CASES[name][1]], "per_device_train_batch_size": len(batch)}
    asked["label_smoothing"] = OBJECTIVES[name].parameters.get("epsilon", 0.0)
    made = tiny.tokenizer("llama3")
    theirs = trls(policy, copy.deepcopy(start), batch, made, tmp_path, monkeypatch, **asked)
    wanted = theirs.compute_loss(theirs.model, next(iter(theirs.get_train_dataloader())))
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    gradient = plain.gradient(theirs.model)
    assert plain.relative_error(plain.gradient(ours.model), gradient) < 1e-5


def test_kto_is_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs as TRL's unpaired rows, with the same mismatched responses."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    monkeypatch.setattr(KTOTrainer, "_prepare_dataset", lambda self, dataset, *arguments: dataset)
    reference = model(vocab_size=len(tiny.tokenizer("llama3")))
    start, policy, batch = moved(reference), copy.deepcopy(reference), rows(12)
    arguments = config(tmp_path, objective="kto", max_log_ratio=1e9)
    ours = PreferenceTrainer(copy.deepcopy(policy), arguments, batch, ref_model=start)
    loss = float(ours.training_step(ours.model, list(ours.train_dataset)))
    assert float(ours.batch["mean"]) > 0
    data = [
        {
            "prompt_ids": [*row.prompt_ids],
            "completion_ids": [*row.responses[role]],
            "KL_completion_ids": [*row.responses[f"other_{role}"]],
            "label": role == "chosen",
        }
        for row in ours.train_dataset
        for role in ("chosen", "rejected")
    ]
    theirs = KTOTrainer(
        model=policy,
        ref_model=copy.deepcopy(start),
        args=KTOConfig(
            output_dir=str(tmp_path),
            beta=0.1,
            per_device_train_batch_size=len(data),
            train_sampling_strategy="sequential",
            max_length=64,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=tiny.tokenizer("llama3"),
    )
    wanted = theirs.compute_loss(theirs.model, next(iter(theirs.get_train_dataloader())))
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    gradient = plain.gradient(theirs.model)
    assert plain.relative_error(plain.gradient(ours.model), gradient) < 1e-5


def test_a_step_of_orpo_is_trls_where_both_count_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of one token and chosen answers of one length: TRL's mean over all tokens behind the
    first is then ours.
    """
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    def tokens(_trainer: Any, row: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for role in ("chosen", "rejected"):
            ids = [row["prompt"], *row[role]]
            made |= {f"{role}_input_ids": ids, f"{role}_attention_mask": [1] * len(ids)}
            made[f"{role}_labels"] = [-100, *row[role]]
        return made | {"prompt_input_ids": [row["prompt"]], "prompt_attention_mask": [1]}

    monkeypatch.setattr(ORPOTrainer, "tokenize_row", tokens)
    policy = model(vocab_size=len(tiny.tokenizer("llama3")))
    batch = [
        replace(
            row,
            prompt_ids=row.prompt_ids[:1],
            responses={**row.responses, "chosen": tuple(range(number + 3, number + 8))},
        )
        for number, row in enumerate(rows(6))
    ]
    arguments = config(tmp_path, objective="orpo", alpha=0.0)
    ours = PreferenceTrainer(copy.deepcopy(policy), arguments, batch)
    loss = float(ours.training_step(ours.model, batch))
    names = ("prompt", "chosen", "rejected")
    data = [
        (row.prompt_ids[0], [*row.responses["chosen"]], [*row.responses["rejected"]])
        for row in batch
    ]
    theirs = ORPOTrainer(
        model=policy,
        args=ORPOConfig(
            output_dir=str(tmp_path),
            beta=0.1,
            per_device_train_batch_size=len(data),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([dict(zip(names, row, strict=True)) for row in data]),
        processing_class=tiny.tokenizer("llama3"),
    )
    wanted = theirs.compute_loss(theirs.model, next(iter(theirs.get_train_dataloader())))
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    gradient = plain.gradient(theirs.model)
    assert plain.relative_error(plain.gradient(ours.model), gradient) < 1e-5


def means(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        role: -torch.rand(7, generator=generator, dtype=torch.float64).mul(3).add(0.05)
        for role in ("chosen", "rejected")
    }


def ours_of(name: str, logps: dict[str, Tensor]) -> Tensor:
    """Losses of responses of one token: their mean is their sum."""
    tokens = {role: torch.ones(7, dtype=torch.float64) for role in logps}
    return resolve(name, beta=0.3).losses(Rows(logps, tokens=tokens))


def test_simpo_is_trls() -> None:
    logps = means(2)
    from trl.experimental.cpo import CPOTrainer

    itself: Any = SimpleNamespace(
        beta=0.3,
        loss_type="simpo",
        alpha=0.0,
        simpo_gamma=OBJECTIVES["simpo"].parameters["gamma"],
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs, *_ = CPOTrainer.cpo_loss(itself, *logps.values())
    assert torch.allclose(ours_of("simpo", logps), theirs, rtol=1e-6)


def test_what_the_table_calls_checked_has_a_check_here() -> None:
    elsewhere = {"kto", "orpo", "simpo"}
    assert set(CASES) == {*ON_PAIRS, *elsewhere}
