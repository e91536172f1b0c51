"""A GGUF file is an ordinary checkpoint: the tensors, tokens and template it was made from, or a
refusal that says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.model import sources
from harness.model.policy import load_policy
from harness.records import HarnessError
from tests import tiny
from tests.tasks import located

writers = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Query or key rows in llama.cpp's order (rotary halves interleaved)."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def write(file: Path, tokenizer: Any, model: Any, **changes: Any) -> Path:
    """A tiny Llama as llama.cpp's converter writes it. changes: architecture, pre (how text is
    split), template, drop (a tensor), extra (tokens beyond the embedding).
    """
    config, architecture = model.config, changes.get("architecture", "llama")
    writer = writers.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens += [f"<extra{n}>" for n in range(changes.get("extra", 0))]
    special = set(tokenizer.all_special_tokens) | {t for t in tokens if t.startswith("<extra")}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if changes.get("template", True):
        writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        kept = next((permuted(tensor, n) for part, n in heads.items() if part in name), tensor)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if name != changes.get("drop"):
            writer.add_tensor(name, np.ascontiguousarray(kept.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


MERGES = (("Ġ", "Ġ"), ("h", "e"))
SPACED = "a  7 hello 2024"
"""Two blanks before a digit are one token only where digits are split off first."""


@pytest.fixture
def made() -> tuple[Any, Any]:
    """Tokenizer and model in SmolLM2's form: byte-level, digits apart, ChatML."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, MERGES)]
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    apart = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([apart, level])
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.chat_template = tiny.CHATML
    return tokenizer, tiny.model("llama", tokenizer)


def test_a_gguf_file_holds_the_model_it_was_made_from(
    made: tuple[Any, Any], tmp_path: Path, cache: Path
) -> None:
    tokenizer, model = made
    policy = load_policy(located(write(tmp_path / "m.gguf", *made), tmp_path / "base"))
    stored = policy.model.state_dict()
    assert stored.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[name], tensor), name
    assert policy.tokenizer.chat_template == tokenizer.chat_template
    assert policy.stop_token_ids == (tokenizer.eos_token_id,)
    assert policy.tokenizer(SPACED)["input_ids"] == tokenizer(SPACED)["input_ids"]
    assert "quantization_config" not in json.loads((policy.folder / "config.json").read_text())
    located(write(tmp_path / "same.gguf", *made), tmp_path / "again")
    assert len(list((cache / "selm" / "gguf").iterdir())) == 1  # by content


def test_a_split_that_transformers_knows_is_left_to_it(
    made: tuple[Any, Any], tmp_path: Path
) -> None:
    found = sources.gguf_checkpoint(write(tmp_path / "m.gguf", *made, pre="llama-bpe"))
    split = json.loads((found / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert r"\p{N}{1,3}" in split[0]["pattern"]["Regex"]


REFUSED = {
    "architecture": ({"architecture": "rwkv6"}, "cannot be read as a GGUF model"),
    "split": ({"pre": "chameleon"}, "tokenizer.ggml.pre: chameleon"),
    "template": ({"template": False}, "no chat template"),
    "tensor": ({"drop": "blk.1.ffn_up.weight"}, "missing: model.layers.1.mlp.up_proj.weight"),
    "tokens": ({"extra": 3}, "tokens beyond them"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_not_be_read_as_it_was_meant_is_refused(
    made: tuple[Any, Any], what: str, tmp_path: Path
) -> None:
    changes, says = REFUSED[what]
    file = write(tmp_path / "m.gguf", *made, **changes)
    with pytest.raises(HarnessError, match=says) as error:
        located(file, tmp_path / "base")
    assert "m.gguf" in str(error.value)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_short_is_refused(
    made: tuple[Any, Any], share: float, tmp_path: Path
) -> None:
    file = write(tmp_path / "m.gguf", *made)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(HarnessError, match=r"m\.gguf: cannot be read .* cut short"):
        sources.gguf_checkpoint(file)
    with pytest.raises(HarnessError, match="no such GGUF file"):
        sources.gguf_checkpoint(tmp_path / "other.gguf")
