"""Every optimiser of transformers' Trainer is passed through, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.training_args import OptimizerNames

from harness.cli import doctor
from harness.engine.launch import make_executor
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.records import HarnessError
from harness.study.optimizers import OPTIMIZERS, check_installed
from harness.study.study import Study, compose

RECIPE = Path(__file__).parents[2] / "ablations" / "recipes" / "pocket.yaml"


def study(optimizer: str) -> Study:
    changes = {"training.optimizer": optimizer}
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
        check_installed(name)


def test_a_missing_package_is_told_before_anything_runs(tmp_path: Path) -> None:
    asked = study("adamw_anyprecision")
    with pytest.raises(HarnessError, match="needs the package torchdistx, which is not installed"):
        make_executor("inline", Store(tmp_path), 1, build_plan(asked))
    found = {one.what: one.state for one in doctor.accelerators(asked.base)}
    assert found["optimiser"] == "WRONG"
