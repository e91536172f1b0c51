"""What is loaded is what was saved: checkpoints that transformers would fill up, trim or adapt with
a warning at most, refused by every load; and forms that differ in their files alone, which load.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from harness.model import policy
from harness.model.checkpoint import check_checkpoint
from harness.model.checkpoint_files import CheckpointError
from harness.model.policy import load_policy
from harness.rankers import reward_model
from harness.records import HarnessError, Prompt
from harness.stages import reward
from tests import tiny
from tests.tasks import located, settings_of

Tensors = dict[str, Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    weights = load_file(folder / SINGLE)
    changed = {name: tensor.contiguous() for name, tensor in change(weights).items()}
    save_file(changed, folder / SINGLE, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def renamed(pattern: str, by: str) -> Callable[[Path], None]:
    def change(weights: Tensors) -> Tensors:
        return {re.sub(pattern, by, name): tensor for name, tensor in weights.items()}

    return lambda folder: rewrite(folder, change)


def without(pattern: str) -> Callable[[Path], None]:
    def change(weights: Tensors) -> Tensors:
        return {name: t for name, t in weights.items() if not re.search(pattern, name)}

    return lambda folder: rewrite(folder, change)


def holding(**added: Tensor) -> Callable[[Path], None]:
    named = {name.replace("__", "."): tensor for name, tensor in added.items()}
    return lambda folder: rewrite(folder, lambda weights: weights | named)


def with_value(name: str, value: float, everywhere: bool = False) -> Callable[[Path], None]:
    def change(weights: Tensors) -> Tensors:
        weights[name].view(-1)[slice(None) if everywhere else 3] = value
        return weights

    return lambda folder: rewrite(folder, change)


def beside(name: str, text: str = "{}") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **changes)


def sharded(folder: Path, *, drop: str = "", twice: str = "") -> None:
    """The same weights in two shards. drop: a shard to leave out; twice: a tensor put into both."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(weights)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, mine in shards.items():
        held = {name: weights[name] for name in weights if name in mine or name == twice}
        if file != drop:
            save_file(held, folder / file, metadata={"format": "pt"})
    where = {name: file for file, mine in shards.items() for name in mine}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def two_sets(folder: Path) -> None:
    old = load_file(folder / SINGLE)
    sharded(folder)
    save_file(old, folder / SINGLE, metadata={"format": "pt"})


def adapter_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / SINGLE).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')


def lora(folder: Path) -> None:
    def change(weights: Tensors) -> Tensors:
        name = "model.layers.0.self_attn.q_proj"
        kept = weights.pop(f"{name}.weight")
        return weights | {
            f"{name}.base_layer.weight": kept,
            f"{name}.lora_A.default.weight": torch.ones(2, 32),
            f"{name}.lora_B.default.weight": torch.ones(32, 2),
        }

    rewrite(folder, change)


def cut_layer(weights: Tensors) -> Tensors:
    extra = {n.replace("layers.1.", "layers.2."): t.clone() for n, t in weights.items()}
    return extra | weights


def narrow(weights: Tensors) -> Tensors:
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].T
    return weights


def fewer_rows(folder: Path) -> None:
    def change(weights: Tensors) -> Tensors:
        return weights | {name: weights[name][:260].clone() for name in (EMBEDDING, HEAD)}

    rewrite(folder, change)
    configure(folder, vocab_size=260)


def in_type(dtype: torch.dtype) -> Callable[[Path], None]:
    name = "model.layers.0.mlp.up_proj.weight"
    return lambda folder: rewrite(folder, lambda w: w | {name: w[name].to(dtype)})


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "torch.compile": (
        renamed("^", "_orig_mod."),
        r"missing: lm_head\.weight, .*_orig_mod\.lm_head\.weight, .*'_orig_mod\.' \(torch\.compile"
        r"\).*rename _orig_mod\.lm_head\.weight to lm_head\.weight",
    ),
    "DataParallel": (renamed("^", "module."), r"'module\.' \(DataParallel"),
    "PEFT": (renamed("^", "base_model.model."), r"'base_model\.model\.' \(PEFT\)"),
    "TRL value head": (renamed("^", "pretrained_model."), r"'pretrained_model\.' \(a TRL model"),
    "FSDP inside names": (
        renamed(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module."),
        r"'_fsdp_wrapped_module\.' \(FSDP\).*rename model\.layers\.0\._fsdp",
    ),
    "two wrappers": (renamed("^", "_orig_mod.module."), r"'_orig_mod\.' .*'module\.'"),
    "a trainer's own prefix": (
        renamed("^", "actor."),
        r"carry 'actor\.' of a wrapper.*rename actor\.lm_head\.weight to lm_head\.weight",
    ),
    "no head, not tied": (without("lm_head"), r"missing: lm_head\.weight\..*tie_word_embeddings"),
    "a layer lost": (
        without(r"layers\.1\."),
        r"and 6 more\. The weights have 1 layers, config\.json describes 2",
    ),
    "a layer too many": (
        lambda folder: rewrite(folder, cut_layer),
        r"without a place in it: model\.layers\.2\..*have 3 layers, config\.json describes 2",
    ),
    "a bias that this class has not": (
        holding(model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
        r"without a place in it: model\.layers\.0\.self_attn\.q_proj\.bias\. Save it again",
    ),
    "transposed": (
        lambda folder: rewrite(folder, narrow),
        r"up_proj\.weight \[32, 64\] instead of \[64, 32\]",
    ),
    "vocabulary resized in the weights": (
        configured(vocab_size=300),
        r"embed_tokens\.weight \[262, 32\] instead of \[300, 32\].*vocab_size: 262",
    ),
    "another class": (
        configured(num_key_value_heads=4),
        r"k_proj\.weight \[16, 32\] instead of \[32, 32\]",
    ),
    "two names for one tensor": (
        holding(layers__0__mlp__up_proj__weight=torch.ones(64, 32)),
        r"layers\.0\.mlp\.up_proj\.weight and model\.layers\.0\.mlp\.up_proj\.weight",
    ),
    "adapter weights inside": (lora, r"They are a PEFT adapter's: merge it"),
    "adapter files beside": (
        beside("adapter_config.json", '{"base_model_name_or_path": "x", "peft_type": "LORA"}'),
        r"adapter files lie beside the model \(adapter_config\.json\).*merged.*delete them",
    ),
    "adapter alone": (adapter_alone, r"a PEFT adapter alone.*into its base owner/base"),
    "two sets of weights": (two_sets, r"two sets of weights, model\.safetensors and the shards"),
    "a stray set": (
        lambda folder: save_file({"x": torch.ones(1)}, folder / "old.safetensors"),
        r"old\.safetensors beside model\.safetensors: weights that no index names",
    ),
    "a shard lost": (
        lambda folder: sharded(folder, drop="model-00002-of-00002.safetensors"),
        r"names 2 shards, of which 1 are absent \(model-00002-of-00002",
    ),
    "shards of two saves": (
        lambda folder: sharded(folder, twice=EMBEDDING),
        r"model\.embed_tokens\.weight is stored twice, in model-00001.* and model-00002",
    ),
    "shards without an index": (
        lambda folder: (sharded(folder), (folder / INDEX).unlink()),
        r"neither model\.safetensors nor model\.safetensors\.index\.json",
    ),
    "a broken index": (
        lambda folder: (sharded(folder), (folder / INDEX).write_text("[]")),
        r"cannot be read as an index of shards",
    ),
    "NaN": (with_value(EMBEDDING, math.nan), r"embed_tokens\.weight holds NaN"),
    "infinite": (with_value("model.norm.weight", math.inf), r"model\.norm\.weight holds NaN or in"),
    "zeros for an embedding": (with_value(EMBEDDING, 0.0, True), r"embed_tokens.* zero throughout"),
    "zeros for a head": (with_value(HEAD, 0.0, True), r"lm_head\.weight is zero throughout"),
    "tied, but stored apart": (
        configured(tie_word_embeddings=True),
        r"lm_head\.weight and model\.embed_tokens\.weight are stored with other values",
    ),
    "fewer rows than tokens": (
        fewer_rows,
        r"embedding has 260 rows.*'<\|end_header_id\|>' \(260\), '<\|eot_id\|>' \(261\)",
    ),
    "quantised": (
        configured(quantization_config={"quant_method": "fp8"}),
        r"quantised \(quantization_config: fp8\)",
    ),
    "int8 without scales": (in_type(torch.int8), r"up_proj\.weight is stored as torch\.int8"),
    "fp8 without scales": (in_type(torch.float8_e4m3fn), r"stored as torch\.float8_e4m3fn"),
    "a value head beside": (
        holding(v_head__summary__weight=torch.ones(1, 32)),
        r"v_head\.summary\.weight is a value or reward head: a policy is saved without it",
    ),
}


GENERATION = "generation_config.json"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a cut generation config": (beside(GENERATION, '{"eos'), f"{GENERATION} cannot be read"),
    "a generation config that is a list": (beside(GENERATION, "[]"), "holds no settings, but '"),
    "an end token by its text": (
        beside(GENERATION, '{"eos_token_id": "</s>"}'),
        f"{GENERATION} ends answers with eos_token_id '</s>', which is no row",
    ),
    "an end token beyond the rows": (
        beside(GENERATION, '{"eos_token_id": [256, 128009]}'),
        r"ends answers with eos_token_id 128009, which is no row of the embedding \(0 to 261\)",
    ),
    "another end token of the model": (
        configured(eos_token_id=262),
        r"config\.json ends ans.* 262",
    ),
    "a cut tokenizer config": (
        beside("tokenizer_config.json", "{"),
        "tokenizer_config.json cannot",
    ),
    "a list of settings": (beside("tokenizer_config.json", "[]"), "tokenizer_config.json holds no"),
    "a cut tokenizer": (beside("tokenizer.json", "{"), "cannot be read as a tokenizer"),
    "an empty tokenizer": (beside("tokenizer.json"), "cannot be read as a tokenizer"),
    "a pointer in place of the tokenizer": (
        beside("tokenizer.json", "version https://git-lfs.github.com/spec/v1"),
        "cannot be read as a tokenizer",
    ),
    "special tokens that are a list": (
        beside("special_tokens_map.json", "[]"),
        "holds no settings",
    ),
    "a template that is no UTF-8": (
        lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xe9"),
        "cannot load the tokenizer .*UnicodeDecodeError",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_beside_the_weights_that_holds_no_settings_is_told(
    case: str, tmp_path: Path
) -> None:
    """transformers passes over a generation config that it cannot read: answers would not end."""
    spoil, message = BROKEN[case]
    folder = tiny.checkpoint(tmp_path / "policy")
    spoil(folder)
    for load in (load_policy, lambda where: located(where, tmp_path / "out")):
        with pytest.raises(HarnessError, match=message) as raised:
            load(folder)
        assert str(folder) in str(raised.value)


@pytest.mark.parametrize("case", WRONG)
def test_no_policy_is_loaded_that_was_not_saved_so(case: str, tmp_path: Path) -> None:
    """By a load, and before it by the stage that takes a checkpoint into a study."""
    spoil, message = WRONG[case]
    folder = tiny.checkpoint(tmp_path / "policy")
    spoil(folder)
    for load in (load_policy, lambda where: located(where, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=message) as raised:
            load(folder)
        assert str(folder) in str(raised.value)


def logits(folder: Path, **options: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = load_policy(folder, **options).model(torch.tensor([[1, 2, 3]])).logits
    return found


def bare_names(folder: Path) -> None:
    """As the body alone saves itself (LlamaModel): transformers adds the prefix."""
    rewrite(folder, lambda w: {n.removeprefix("model."): t for n, t in w.items()})


def pickled_beside(folder: Path) -> None:
    torch.save({"lm_head.weight": torch.zeros(3)}, folder / "pytorch_model.bin")


def cutting_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    stored = Tokenizer.from_file(str(file))
    stored.enable_truncation(4)
    stored.enable_padding(length=64)
    stored.save(str(file))


RIGHT: dict[str, Callable[[Path], None]] = {
    "in shards": sharded,
    "named as by the body alone": bare_names,
    "with a buffer that older releases saved": holding(
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)
    ),
    "beside Mistral's own form": lambda folder: save_file(
        {"output.weight": torch.ones(1)}, folder / "consolidated.safetensors"
    ),
    "beside pickled weights, which are not read": pickled_beside,
    "beside what a trainer leaves": beside("trainer_state.json"),
    "with a tokenizer that was saved as it cut and filled up": cutting_tokenizer,
}


@pytest.mark.parametrize("case", RIGHT)
def test_files_may_differ_where_the_weights_do_not(case: str, tmp_path: Path) -> None:
    wanted = logits(tiny.checkpoint(tmp_path / "plain"))
    folder = tiny.checkpoint(tmp_path / "other")
    RIGHT[case](folder)
    assert torch.equal(logits(located(folder, tmp_path / "out")), wanted)


def test_tied_weights_may_be_stored_once_or_twice_and_under_either_name(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, tie_word_embeddings=True)
    wanted = logits(folder)
    rewrite(folder, lambda weights: weights | {HEAD: weights[EMBEDDING].clone()})
    assert torch.equal(logits(folder), wanted)
    without("embed_tokens")(folder)
    assert torch.equal(logits(folder), wanted)


def test_rows_beyond_the_tokenizer_are_padding(tmp_path: Path) -> None:
    made = tiny.tokenizer()
    tiny.model("llama", made, vocab_size=300).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    found = check_checkpoint(tmp_path, head="causal")
    assert found.architecture == "LlamaForCausalLM"


def test_a_pickled_checkpoint_is_held_to_the_same(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path)
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    allowed = {"pickle_weights": str(folder)}
    assert check_checkpoint(folder, head="causal", **allowed).tensors == len(weights)
    torch.save({f"_orig_mod.{n}": t for n, t in weights.items()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"rename _orig_mod\.lm_head\.weight"):
        check_checkpoint(folder, head="causal", **allowed)


def test_experts_stored_one_by_one_find_their_place_and_one_lost_is_told(tmp_path: Path) -> None:
    """transformers 5 keeps a layer's experts in one tensor and joins what is stored apart."""
    from transformers import MixtralConfig, MixtralForCausalLM

    made = tiny.tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=len(made), **sizes, **heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MixtralForCausalLM(config).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    assert any("experts.3.w2" in name for name in load_file(tmp_path / SINGLE))
    assert torch.equal(logits(tmp_path), logits(tmp_path, cached=False))
    without(r"layers\.0\..*experts\.\d\.w2")(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.0\.mlp\.experts"):
        load_policy(tmp_path)


def test_an_encoder_is_no_policy(tmp_path: Path) -> None:
    """BERT's language head would load, and see the tokens that it is to predict."""
    from transformers import BertConfig, BertForMaskedLM

    made = tiny.tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=len(made), num_attention_heads=2, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"bert is an encoder.*cannot be a policy"):
        load_policy(tmp_path)


def test_pythia_is_a_policy(tmp_path: Path) -> None:
    """Its configuration has the encoders' is_decoder, and says no."""
    assert load_policy(tiny.checkpoint(tmp_path, "gpt_neox")).model.config.is_decoder is False


# -- reward models, and what they start from -------------------------------------------------------


WRONG_RANKERS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"head called {name}": (
            renamed(r"^score\.", f"{name}."),
            rf"missing: score\.weight; .*Its reward head is called {re.escape(name)}\.weight: "
            r"rename it to score\.weight",
        )
        for name in ("value_head", "v_head.summary")
    },
    "no head": (without("score"), r"missing: score\.weight\. It has no reward head: give a rew"),
    "a policy": (
        tiny.checkpoint,
        r"without a place in it: lm_head\.weight\. It has no reward head",
    ),
    "torch.compile": (renamed("^", "_orig_mod."), r"rename _orig_mod\.model\..* to model\."),
    "a layer too many": (
        lambda folder: rewrite(folder, cut_layer),
        r"have 3 layers, config\.json describes 2",
    ),
    "NaN": (with_value("score.weight", math.nan), r"score\.weight holds NaN"),
    "zeros for a head": (with_value("score.weight", 0.0, True), r"score\.weight is zero through"),
    "adapter files beside": (beside("adapter_config.json"), r"adapter files lie beside the model"),
    "LLaMA-Factory's head beside": (
        lambda folder: save_file(
            {"v_head.summary.weight": torch.ones(1, 32)}, folder / "value_head.safetensors"
        ),
        r"value_head\.safetensors beside model\.safetensors",
    ),
    "two labels in the configuration alone": (
        configured(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}),
        r"score\.weight \[1, 32\] instead of \[2, 32\].*one label",
    ),
}


@pytest.mark.parametrize("case", WRONG_RANKERS)
def test_no_reward_model_ranks_at_random(case: str, tmp_path: Path) -> None:
    spoil, message = WRONG_RANKERS[case]
    folder = tiny.reward_model(tmp_path / "ranker")
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        reward_model.load(str(folder), "cpu")
    with pytest.raises(CheckpointError, match=message):
        located(folder, tmp_path / "out", needs_template=False)


def test_a_reward_model_of_several_labels_is_refused(tmp_path: Path) -> None:
    folder = tiny.reward_model(tmp_path, num_labels=3)
    with pytest.raises(CheckpointError, match="one label, this one has 3"):
        reward_model.load(str(folder), "cpu")


def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight; .*score\.weight is a"):
        load_policy(tiny.reward_model(tmp_path))


def test_a_reward_model_starts_from_a_whole_policy_with_a_new_head_only(tmp_path: Path) -> None:
    settings = settings_of(
        "ranker.train", {"learning_rate": 1e-3, "batch_size": 2, "epochs": 1, "max_length": 64}
    )
    prompts = [Prompt(f"p{i}", ({"role": "user", "content": "Q"},), "yes", "no") for i in range(2)]
    start = tiny.checkpoint(tmp_path / "start")
    found = check_checkpoint(start, head="new")
    assert found.architecture == "LlamaForSequenceClassification"
    reward.train_reward_model(start, prompts, tmp_path / "trained", settings)
    reward_model.load(str(tmp_path / "trained"), "cpu")
    for case in ("torch.compile", "a layer lost", "NaN", "adapter files beside"):
        spoil, message = WRONG[case]
        folder = tiny.checkpoint(tmp_path / case)
        spoil(folder)
        with pytest.raises(CheckpointError, match=message):
            reward.train_reward_model(folder, prompts, tmp_path / "never", settings)
    with pytest.raises(CheckpointError, match="reward head: a policy is saved without it"):
        reward.train_reward_model(
            tiny.reward_model(tmp_path / "rm"), prompts, tmp_path / "no", settings
        )


def test_a_gpu_holds_one_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process kept goes before the next is loaded, so that no device holds two."""
    kept: list[int] = []

    def loading(*_: Any, device: str, **__: Any) -> Any:
        kept.append(len(policy._CACHE))
        return tiny.model("llama", tiny.tokenizer())

    monkeypatch.setattr(policy, "load_model", loading)
    folders = [tiny.checkpoint(tmp_path / name) for name in ("a", "b", "c")]
    policy.release_policies()
    for folder in folders:
        load_policy(folder, device="cuda")
    load_policy(folders[0], device="cuda", cached=False)
    assert kept == [0, 0, 0, 0]
    policy.release_policies()
