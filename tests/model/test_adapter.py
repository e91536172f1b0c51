"""An adapter merged into its base is what PEFT makes of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.model import adapter
from harness.model.checkpoint_files import ADAPTER_WEIGHTS, CheckpointError
from tests import tiny


def trained(base: Path, out: Path) -> Any:
    """The policy whose adapter PEFT saved to ``out``; none of its weights is zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    policy = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    policy.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return policy


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Any]:
    tiny.checkpoint(tmp_path / "base")
    return tmp_path / "base", tmp_path / "a", trained(tmp_path / "base", tmp_path / "a")


def test_the_weights_are_pefts_own_merge(pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, folder, policy = pair
    policy.merge_and_unload().save_pretrained(tmp_path / "theirs")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    adapter.merge(folder, base, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / n / "model.safetensors") for n in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    before = load_file(base / "model.safetensors")
    assert sum(not torch.equal(before[name], ours[name]) for name in ours) > 0
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not list((tmp_path / "ours").glob("adapter*"))


def test_without_a_tokenizer_of_its_own_it_has_the_bases(
    pair: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    base, folder, _ = pair
    for file in folder.glob("*"):
        if not file.name.startswith("adapter"):
            file.unlink()
    adapter.merge(folder, base, tmp_path / "ours")
    told = (base / "tokenizer.json").read_text()
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == told


def test_what_does_not_fit_or_is_pickled_is_refused(
    pair: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    base, folder, _ = pair
    file = folder / ADAPTER_WEIGHTS
    weights = load_file(file)
    name = next(iter(weights))
    for changed, words in (
        ({key: value for key, value in weights.items() if key != name}, "1 tensors are missing"),
        (weights | {name.replace("0", "9"): weights[name].clone()}, "have no place in"),
        (weights | {name: weights[name][:, :3].contiguous()}, "cannot be merged into"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=words):
            adapter.merge(folder, base, tmp_path / "ours")
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled adapters are not read"):
        adapter.merge(folder, base, tmp_path / "ours")
    file.write_text("")
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | {"target_modules": ["none"]}))
    with pytest.raises(CheckpointError, match="cannot be merged into"):
        adapter.merge(folder, base, tmp_path / "ours")
