"""QLoRA: adapters over a base in 4 bits, on a tiny model, with bitsandbytes' own CPU kernels."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli import doctor
from harness.engine.launch import make_executor
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.model.policy import load_policy
from harness.model.shape import KNOWN, scoring_bytes, training_parts
from harness.records import HarnessError, read_jsonl
from harness.study import optimizers
from harness.study.settings import Recipe
from harness.study.study import Study, compose
from tests.preferences import run_train, stage_inputs
from tests.processes import ROOT, python

LORA: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
FOUR = {**LORA, "base": "nf4"}


def study(changes: dict[str, Any]) -> Study:
    file = ROOT / "ablations" / "recipes" / "pocket.yaml"
    return compose(file, "mine", str(file), changes, {"one": {}}, [0])


@pytest.mark.parametrize(("dtype", "checkpointing"), [("float32", False), ("bfloat16", True)])
def test_training_in_four_bits_starts_at_log_2_and_learns(
    dtype: str, checkpointing: bool, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    inputs = stage_inputs(tmp_path, scoring={"dtype": dtype, "base": "nf4"})
    told = {"dtype": dtype, "lora": FOUR, "learning_rate": 3e-3, "warmup_ratio": 0.0}
    told["gradient_checkpointing"] = checkpointing
    run_train(inputs, tmp_path / "a", **told)
    run_train(inputs, tmp_path / "b", **told)
    steps = list(read_jsonl(tmp_path / "a" / "steps.jsonl"))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4 if dtype == "float32" else 2e-3)
    assert steps[-1]["margin"] > 0.05
    written = [tmp_path / name / "model" / "model.safetensors" for name in "ab"]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_a_whole_reference_is_another_model(tmp_path: Path) -> None:
    """What the quantised reference is for: against the whole one the first loss is not log 2."""
    pytest.importorskip("bitsandbytes")
    run_train(stage_inputs(tmp_path), tmp_path / "out", lora=FOUR, epochs=1)
    first = next(iter(read_jsonl(tmp_path / "out" / "steps.jsonl")))
    assert abs(first["loss"] - math.log(2)) > 2e-3


def test_what_is_stored_is_the_policy_that_was_trained(tmp_path: Path) -> None:
    """At a learning rate of zero: the base's 4-bit values, whole, and a checkpoint like any."""
    pytest.importorskip("bitsandbytes")
    inputs = stage_inputs(tmp_path, scoring={"base": "nf4"})
    run_train(inputs, tmp_path / "out", lora=FOUR, epochs=1, learning_rate=0.0)
    stored = load_policy(tmp_path / "out", cached=False).model
    four, base = (
        load_policy(inputs["policy"], cached=False, quantised=q).model for q in (True, False)
    )
    ids = torch.arange(40)[None] % 250
    with torch.no_grad():
        here, quantised, whole = (model(ids).logits for model in (stored, four, base))
    assert torch.allclose(here, quantised, atol=1e-5)
    assert not torch.allclose(here, whole, atol=1e-2)
    assert getattr(stored.config, "quantization_config", None) is None


def test_four_bits_are_in_the_memory_that_a_plan_tells() -> None:
    zephyr = KNOWN["HuggingFaceH4/mistral-7b-sft-beta"]
    made = {"model": {"dtype": "bfloat16"}, "training": {"lora": FOUR}}
    recipe = Recipe.model_validate(made)
    linear = zephyr.parameters - 2 * 32_000 * 4096
    frozen = 2 * 2 * 32_000 * 4096 + linear * 4.127 / 8
    assert training_parts(zephyr, recipe)[0].size == pytest.approx(frozen, rel=1e-4)
    assert scoring_bytes(zephyr, recipe) == pytest.approx(frozen, rel=1e-4)


def test_keys_of_whole_bases_are_what_they_were() -> None:
    """A base named whole is one not named; in 4 bits reference and training move."""
    none, whole, four = (
        build_plan(study({"training.lora": lora})).nodes
        for lora in (LORA, {**LORA, "base": "whole"}, FOUR)
    )
    assert set(none) == set(whole)
    moved = {none[key].stage for key in set(none) - set(four)}
    assert {"reference", "train"} <= moved and not moved & {"base.pocket", "data.pocket"}


@pytest.mark.parametrize(
    ("changes", "setting", "package"),
    [
        ({"training.lora": FOUR}, "training.lora.base nf4", "bitsandbytes"),
        (
            {"model.attention": "kernels-community/flash-attn2@v1"},
            "model.attention kernels-community/flash-attn2@v1",
            "kernels",
        ),
    ],
)
def test_a_missing_package_is_told_before_anything_runs(
    changes: dict[str, Any],
    setting: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    asked = study(changes)
    with pytest.raises(HarnessError, match=re.escape(f"{setting} needs the package {package}")):
        make_executor("inline", Store(tmp_path), 1, build_plan(asked))
    found = {one.what: one for one in doctor.accelerators(asked.base)}
    assert found[package].state == "WRONG"


@pytest.mark.parametrize("name", ["flash", "someone/kernel", "kernels-community/../x"])
def test_an_attention_that_nothing_has_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(HarnessError, match=r"model\.attention: .*sdpa, eager, .*kernels-community"):
        study({"model.attention": name})


def test_a_kernels_name_reaches_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package, or the network, it is transformers that says so."""
    from tests import tiny

    tiny.checkpoint(tmp_path / "model")
    with pytest.raises(HarnessError, match=r"cannot load the model \(.*kernel"):
        load_policy(tmp_path, attention="kernels-community/flash-attn2", cached=False)


def test_shards_of_four_bits_are_refused() -> None:
    runtime = {"processes": 2, "sharding": "fsdp"}
    with pytest.raises(ValueError, match="nf4 is not divided"):
        Recipe.model_validate({"training": {"lora": FOUR}, "runtime": runtime})


@pytest.mark.slow
def test_what_the_package_says_of_kernels_that_nobody_asked_for_is_not_told() -> None:
    pytest.importorskip("bitsandbytes")
    assert "gemm_4bit" not in python("-c", "import harness, peft").stderr
