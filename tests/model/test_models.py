"""Loading, chat encoding and the token pre-flight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.model import chat, checkpoint_files
from harness.model import policy as models
from harness.records import HarnessError
from tests import tiny
from tests.tasks import located

HELLO = [{"role": "user", "content": "Hi"}]


STOPS = [
    ("llama3", {"<|eot_id|>", "<|end_of_text|>"}),
    ("zephyr", {"</s>"}),
    ("phi3", {"<|end|>", "<|endoftext|>"}),
]


@pytest.mark.parametrize(("style", "expected"), STOPS)
def test_stop_tokens_hold_the_templates_end_of_turn(style, expected):
    tokenizer = tiny.tokenizer(style)
    assert set(tokenizer.convert_ids_to_tokens(list(chat.stop_tokens(tokenizer)))) == expected


def test_response_is_cut_at_the_limit():
    tokenizer = tiny.tokenizer("zephyr")
    assert (
        chat.encode_response(tokenizer, HELLO, "abcdef", 3)
        == tokenizer("abc", add_special_tokens=False)["input_ids"]
    )


def test_a_long_prompt_is_refused_never_cut():
    tokenizer = tiny.tokenizer("zephyr")
    length = len(chat.encode_prompt(tokenizer, HELLO))
    assert len(chat.encode_prompt(tokenizer, HELLO, length)) == length
    with pytest.raises(
        chat.PromptTooLongError, match=f"{length} tokens, the limit is {length - 1}"
    ):
        chat.encode_prompt(tokenizer, HELLO, length - 1)


def test_a_header_that_merges_with_the_answer_is_refused():
    """A tokenizer with the token "\\nF" spans header and answer: the prompt's last token is another
    when the answer is there.
    """
    tokenizer = tiny.tokenizer("zephyr")
    tokenizer.add_tokens(["\nFine"])
    with pytest.raises(HarnessError, match="prompt's tokens change when the answer is added"):
        chat.preflight(tokenizer)


def test_no_template_is_said_so():
    tokenizer = tiny.tokenizer("zephyr", template="")
    tokenizer.chat_template = None
    with pytest.raises(HarnessError, match=r"no chat template.*model.chat_template"):
        chat.preflight(tokenizer)


def test_a_template_set_later_is_seen():
    tokenizer = tiny.tokenizer("phi3")
    assert chat.end_of_turn(tokenizer) == "<|end|>"
    tokenizer.chat_template = tiny.ZEPHYR
    assert chat.end_of_turn(tokenizer) == "<|endoftext|>"


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_loads_from_safetensors(tmp_path, architecture):
    folder = tiny.checkpoint(tmp_path, architecture, "chatml")
    policy = models.load_policy(folder)
    assert not policy.model.training
    assert policy.model.config.model_type == architecture
    assert policy.tokenizer.pad_token_id is not None


def test_tied_weights_stay_tied(tmp_path):
    policy = models.load_policy(tiny.checkpoint(tmp_path, tie_word_embeddings=True))
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    untied = models.load_policy(tiny.checkpoint(tmp_path / "untied"))
    assert untied.model.lm_head.weight is not untied.model.model.embed_tokens.weight


def test_cache_keeps_two_and_gives_a_trainer_its_own(tmp_path):
    folders = [tiny.checkpoint(tmp_path / str(i), seed=i) for i in range(3)]
    first = models.load_policy(folders[0])
    assert models.load_policy(folders[0]) is first
    assert models.load_policy(folders[0], cached=False).model is not first.model
    for folder in folders[1:]:
        models.load_policy(folder)
    assert models.load_policy(folders[0]) is not first


def test_an_empty_model_has_the_configuration_and_the_stop_tokens(tmp_path):
    folder = tiny.checkpoint(tmp_path, style="phi3")
    full, empty = (
        models.load_policy(folder),
        models.load_policy(folder, weights=False, dtype="bfloat16"),
    )
    assert empty.stop_token_ids == full.stop_token_ids
    assert (empty.model.dtype, empty.model.device.type) == (torch.bfloat16, "meta")
    assert models.load_policy(folder) is full


def test_a_folder_written_again_is_loaded_again(tmp_path):
    old = models.load_policy(tiny.checkpoint(tmp_path, seed=0)).model.lm_head.weight.clone()
    new = models.load_policy(tiny.checkpoint(tmp_path, seed=1)).model.lm_head.weight
    assert not torch.equal(old, new)


def test_location_points_to_the_checkpoint(tmp_path):
    folder = tiny.checkpoint(tmp_path / "real", style="zephyr")
    stage = tmp_path / "stage"
    stage.mkdir()
    other = tiny.ZEPHYR.replace("|>", "::|>")
    (stage / "location.json").write_text(json.dumps({"path": str(folder), "chat_template": other}))
    assert checkpoint_files.model_folder(stage) == folder
    assert models.load_tokenizer(stage).chat_template == other
    with pytest.raises(HarnessError, match="no checkpoint here"):
        checkpoint_files.model_folder(tmp_path / "nothing")


def _pickled(folder: Path) -> Path:
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_pickle_weights_are_refused_unless_named(tmp_path):
    folder = _pickled(tiny.checkpoint(tmp_path))
    with pytest.raises(
        HarnessError, match=r"pickle files \(pytorch_model.bin\).*model.pickle_weights"
    ):
        models.load_policy(folder)
    with pytest.raises(HarnessError, match="pickle"):
        checkpoint_files.weight_files(folder, "owner/name", "owner/other")
    assert checkpoint_files.weight_files(folder, "owner/name", "owner/name").pickled


def test_repository_code_is_refused_unless_named(tmp_path):
    folder = tiny.checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "made_up", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(HarnessError, match=r"model\.trust_remote_code: owner/name"):
        checkpoint_files.check_code(folder, "owner/name", "owner/other")
    assert checkpoint_files.check_code(folder, "owner/name", "owner/name")
    with pytest.raises(HarnessError, match="needs code from the repository"):
        models.load_policy(folder)


def test_broken_weights_are_a_clear_error(tmp_path):
    folder = tiny.checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(HarnessError, match=r"cannot be read from model\.safetensors"):
        models.load_policy(folder)


def test_checkpoint_stage_points_and_loads(tmp_path):
    folder = tiny.checkpoint(tmp_path / "real")
    located(folder, tmp_path / "out")
    assert models.load_policy(tmp_path / "out").folder == folder
    assert json.loads((tmp_path / "out" / "location.json").read_text())[
        "fingerprint"
    ] == checkpoint_files.fingerprint(folder)


def test_checkpoint_stage_takes_a_template_from_a_file(tmp_path):
    folder = tiny.checkpoint(tmp_path / "real", style="zephyr", template="")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(HarnessError, match="no chat template"):
        located(folder, tmp_path / "out")
    (tmp_path / "zephyr.jinja").write_text(tiny.ZEPHYR)
    located(folder, tmp_path / "out", chat_template=str(tmp_path / "zephyr.jinja"))
    assert models.load_tokenizer(tmp_path / "out").chat_template == tiny.ZEPHYR


def test_checkpoint_stage_runs_the_token_preflight(tmp_path):
    folder = tiny.checkpoint(tmp_path / "real", template="{{ bos_token }}" + tiny.LLAMA3)
    with pytest.raises(HarnessError, match="doubled"):
        located(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "no such checkpoint folder"),
        ("nobody", "no such checkpoint folder"),
        ("nobody/no-such-model", "hub"),
    ],
)
def test_a_missing_checkpoint_is_a_clear_error(tmp_path, monkeypatch, source, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HarnessError, match=message):
        located(source, tmp_path / "out")


def test_checkpoint_changed_since_planning_is_refused(tmp_path):
    folder = tiny.checkpoint(tmp_path / "real")
    planned = checkpoint_files.fingerprint(folder)
    located(folder, tmp_path / "out", source_fingerprint=planned)
    tiny.checkpoint(folder, seed=1)
    with pytest.raises(HarnessError, match="changed since the study was planned"):
        located(folder, tmp_path / "out", source_fingerprint=planned)


def test_fingerprint_follows_content_and_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tiny.checkpoint(tmp_path / "a", seed=0)
    first = checkpoint_files.fingerprint(folder)
    assert checkpoint_files.fingerprint(tiny.checkpoint(tmp_path / "b", seed=0)) == first
    assert checkpoint_files.fingerprint(tiny.checkpoint(tmp_path / "c", seed=1)) != first
    (folder / "README.md").write_text("says nothing about the model")
    monkeypatch.setattr(
        checkpoint_files, "hash_file", lambda path: pytest.fail(f"{path} was read again")
    )
    assert checkpoint_files.fingerprint(folder) == first
