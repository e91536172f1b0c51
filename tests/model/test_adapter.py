"""An adapter merged into its base is what PEFT makes of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.model import sources
from harness.model.checkpoint_files import ADAPTER_WEIGHTS, CheckpointError
from harness.model.policy import load_policy
from tests import plain, tiny


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
    sources.merge(folder, base, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / n / "model.safetensors") for n in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    before = load_file(base / "model.safetensors")
    assert sum(not torch.equal(before[name], ours[name]) for name in ours) > 0
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not list((tmp_path / "ours").glob("adapter*"))


CHANGED = {
    "head alone": {"target_modules": ["q_proj", "lm_head"]},
    "embedding alone": {"target_modules": ["q_proj", "embed_tokens"]},
    "head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "vocabulary extended": {"target_modules": ["q_proj"]},
    "extended and trained": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_base_that_ties_its_head_is_merged_to_what_the_adapter_computes(
    what: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny.checkpoint(tmp_path / "base", tie_word_embeddings=True)
    made, model = tiny.tokenizer(), load_policy(base, cached=False).model
    if "extended" in what:
        made.add_tokens(["<a>", "<b>"])
        model.resize_token_embeddings(len(made))
    policy = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **CHANGED[what]))
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    policy.eval().save_pretrained(tmp_path / "a")
    made.save_pretrained(tmp_path / "a")
    tokens = torch.tensor([[5, 6, 7, len(made) - 1]])
    with torch.no_grad():
        wanted = policy(input_ids=tokens).logits
        sources.merge(tmp_path / "a", base, tmp_path / "ours")
        found = load_policy(tmp_path / "ours", cached=False).model(input_ids=tokens).logits
    assert plain.relative_error(found, wanted) < 1e-5


def test_a_learned_prompt_is_no_checkpoint(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    base = tiny.checkpoint(tmp_path / "base")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load_policy(base, cached=False).model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="PROMPT_TUNING learns tokens before the prompt"):
        sources.merge(tmp_path / "a", base, tmp_path / "ours")


def test_without_a_tokenizer_of_its_own_it_has_the_bases(
    pair: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    base, folder, _ = pair
    for file in folder.glob("*"):
        if not file.name.startswith("adapter"):
            file.unlink()
    sources.merge(folder, base, tmp_path / "ours")
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
            sources.merge(folder, base, tmp_path / "ours")
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled ones are not read"):
        sources.merge(folder, base, tmp_path / "ours")
    file.write_text("")
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | {"target_modules": ["none"]}))
    with pytest.raises(CheckpointError, match="cannot be merged into"):
        sources.merge(folder, base, tmp_path / "ours")
