"""Every optimiser of transformers' Trainer is passed through, or refused with the reason."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from harness.cli import doctor
from harness.engine.launch import make_executor
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.records import HarnessError
from harness.study.optimizers import OPTIMIZERS, UNPAGED, check_usable
from harness.study.study import Study, compose

RECIPE = Path(__file__).parents[2] / "ablations" / "recipes" / "pocket.yaml"


def study(optimizer: str, device: str = "auto") -> Study:
    changes = {"training.optimizer": optimizer, "runtime.device": device}
    return compose(RECIPE, "mine", str(RECIPE), changes, {"one": {}}, [0])


def test_the_table_is_transformers() -> None:
    assert set(OPTIMIZERS) == {one.value for one in OptimizerNames}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_name_is_passed_through_or_refused_with_the_reason(name: str) -> None:
    why = OPTIMIZERS[name].refused
    if not why:
        assert study(name).base.training.optimizer == name
        return
    with pytest.raises(HarnessError, match=why) as error:
        study(name)
    assert "training.optimizer" in str(error.value)


def test_a_misspelt_name_is_told_what_there_is() -> None:
    with pytest.raises(HarnessError, match=r"training\.optimizer: no optimiser .* sgd, adagrad"):
        study("adamw")


def test_what_torch_and_transformers_bring_is_installed() -> None:
    for name in ("adamw_torch", "sgd", "adagrad", "rmsprop", "adafactor"):
        check_usable(name, 0)


@pytest.mark.parametrize("name", [n for n, o in OPTIMIZERS.items() if o.module == "bitsandbytes"])
def test_quantised_optimisers_step_on_a_cpu_and_paged_ones_do_not_page(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    layer = torch.nn.Linear(128, 128)  # above the size from which states are quantised
    arguments = TrainingArguments(str(tmp_path), optim=name, learning_rate=1e-4, use_cpu=True)
    stepping = Trainer(layer, arguments).create_optimizer()
    before = layer.weight.detach().clone()
    rows = torch.ones(4, 128)
    losses = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            stepping.zero_grad()
            loss = layer(rows).square().mean()
            loss.backward()
            stepping.step()
            losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert bool((layer.weight != before).all())
    assert any("Paged optimizers" in str(one.message) for one in told) == OPTIMIZERS[name].paged


def test_paged_optimisers_are_refused_on_a_cpu_before_anything_runs(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    for name, instead in UNPAGED.items():
        assert instead in OPTIMIZERS
        asked = study(name, device="cpu")
        with pytest.raises(HarnessError, match=f"set training.optimizer: {instead}, which takes"):
            make_executor("inline", Store(tmp_path), 1, build_plan(asked))
        found = {one.what: one.state for one in doctor.accelerators(asked.base)}
        assert found["optimiser"] == "WRONG"
        check_usable(name, 1)
    check_usable("adamw_8bit", 0)


def test_a_missing_package_is_told_before_anything_runs(tmp_path: Path) -> None:
    asked = study("adamw_anyprecision")
    with pytest.raises(HarnessError, match="needs the package torchdistx, which is not installed"):
        make_executor("inline", Store(tmp_path), 1, build_plan(asked))
    found = {one.what: one.state for one in doctor.accelerators(asked.base)}
    assert found["optimiser"] == "WRONG"
