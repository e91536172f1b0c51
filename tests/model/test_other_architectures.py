"""Any causal language model gets the log-probabilities of its own logits, packed where it can be,
padded where not, and answers as its own passes do; or it is refused.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2ForCausalLM

from harness.model import attention as shared_prefix
from harness.model.generate import generate
from harness.model.logprobs import packs, response_logps
from harness.model.policy import Policy, load_policy
from harness.records import GenerationRequest, HarnessError
from harness.stages.diagnostics.passes import Sheet, score_sheets
from harness.train.trainer import PreferenceTrainer, without_dropout
from tests import plain, tiny
from tests.model.test_logprobs import SHAPES, compare, rows_of
from tests.preferences import VOCABULARY, config, rows
from tests.train.test_trainer import ALPHA, moved, plain_loss, step

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED = {
    **SIZES,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
EXPERTS = {**GATED, "head_dim": 8, "num_experts_per_tok": 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
PACKED: dict[str, dict[str, Any]] = {
    "gpt2": {**SIZES, "n_positions": 128, "initializer_range": 0.3},
    "opt": {
        **SIZES,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 128,
        "init_std": 0.3,
        "dropout": 0.0,
    },
    "gpt_neox": {**GATED},
    "gemma": {**GATED, "head_dim": 8},
    "gemma3_text": {
        **GATED,
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmo2": {**GATED},
    "granite": {**GATED, "logits_scaling": 4.0},
    "cohere2": {
        **GATED,
        "logit_scale": 0.25,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    # latent attention
    "deepseek_v3": {
        **SIZES,
        "initializer_range": 0.3,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
}
PADDED: dict[str, dict[str, Any]] = {
    "gemma2": {**GATED, "head_dim": 8, "sliding_window": 6},  # softcaps scores and logits
    "stablelm": {**GATED},  # attention of its own
    "gpt_oss": {**EXPERTS, "num_local_experts": 4, "sliding_window": 6},  # attention sinks
    # distance biases
    "bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.3,
    },
    "falcon": {**SIZES, "initializer_range": 0.3},
    # A window in the mask alone, longer than the probe's rows; chunks.
    "phimoe": {**EXPERTS, "num_local_experts": 4, "sliding_window": 20},
    "llama4_text": {
        **EXPERTS,
        "num_local_experts": 4,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 20,
    },
    # recurrent layers
    "mamba": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "initializer_range": 0.3,
        "eos_token_id": 2,
    },
    "falcon_h1": {
        **GATED,
        "head_dim": 8,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
        "lm_head_multiplier": 0.5,
    },
    "recurrent_gemma": {
        **GATED,
        "lru_width": 32,
        "attention_window_size": 6,
        "block_types": ["recurrent", "attention"],
        "logits_soft_cap": 2.0,
    },
    "qwen3_next": {
        **EXPERTS,
        **LINEAR,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


OTHERS: dict[str, dict[str, Any]] = {
    "bart": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
        "init_std": 0.3,
    },
    "phi3": {**GATED},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2},
    "seed_oss": {**GATED, "head_dim": 8},
    "xlnet": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 48,
        "initializer_range": 0.3,
    },
}


def built(name: str, **changes: Any) -> Any:
    settings = AutoConfig.for_model(name, **({**PACKED, **PADDED, **OTHERS}[name] | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(settings).eval()


@pytest.mark.parametrize("short_prompts", [True, False])
@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_log_probabilities_and_gradients_are_those_of_the_models_own_logits(
    name: str, short_prompts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "SHORT_PROMPT_TOKENS", 10_000 if short_prompts else 0)
    model = built(name)
    assert packs(model) == (name in PACKED)
    value_error, gradient_error = compare(model, rows_of(SHAPES))
    assert value_error < 1e-5
    assert gradient_error < 1e-4


@pytest.mark.parametrize(
    "name", ["bloom", "bart", "gemma3_text", "mamba", "falcon_h1", "qwen3_next"]
)
def test_greedy_answers_are_those_of_the_models_own_passes(name: str) -> None:
    """Prompts of several lengths, two of them equal, and answers that end one after the other."""
    model = built(name, vocab_size=300)
    asked = [(3, 24), (1, 2), (9, 24), (9, 3), (3, 5), (14, 24)]
    requests = [GenerationRequest(tuple(range(5, 5 + size)), new, 0.0) for size, new in asked]
    made = tiny.tokenizer("chatml")
    found = generate(Policy(model, made, Path(), (2,), "cpu"), requests)
    for request, answer in zip(requests, found, strict=True):
        ids = list(request.prompt_ids)
        with torch.no_grad():
            for _ in answer.token_ids:
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
        assert answer.token_ids == tuple(ids[len(request.prompt_ids) :])
        assert len(answer.token_ids) == request.max_new_tokens or ids[-1] == 2


def test_a_model_that_keeps_nothing_of_earlier_tokens_is_not_sampled() -> None:
    policy = Policy(built("rwkv"), tiny.tokenizer("chatml"), Path(), (2,), "cpu")
    with pytest.raises(HarnessError, match="RwkvForCausalLM: keeps nothing of earlier tokens"):
        generate(policy, [GenerationRequest((5, 6), 4, 0.0)])


def test_a_model_that_sees_the_tokens_to_come_is_no_policy() -> None:
    with pytest.raises(HarnessError, match="XLNetLMHeadModel: sees the tokens to come"):
        response_logps(built("xlnet"), rows_of(SHAPES))


@pytest.mark.parametrize(
    ("name", "drops"),
    [("opt", "dropout"), ("seed_oss", "residual_dropout"), ("mixtral", "router_jitter_noise")],
)
def test_without_dropout_a_model_computes_the_same_while_it_is_trained(
    name: str, drops: str
) -> None:
    model = built(name, **{drops: 0.5})
    tokens = torch.tensor([[5, 6, 7, 8]])
    wanted = model(input_ids=tokens).logits
    assert not torch.equal(model.train()(input_ids=tokens).logits, wanted)
    without_dropout(model)
    assert torch.equal(model(input_ids=tokens).logits, wanted)


def test_a_model_that_draws_at_random_in_training_is_refused() -> None:
    model = built("falcon", hidden_dropout=0.5)  # read from the configuration in each pass
    with pytest.raises(HarnessError, match="FalconForCausalLM: draws at random"):
        without_dropout(model)


def test_rows_and_answers_stay_on_one_side_of_where_longrope_turns() -> None:
    """Beyond 16 tokens of a pass, every token of it is rotated otherwise."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, **factors}
    sizes = {"vocab_size": 300, "original_max_position_embeddings": 16}
    model = built("phi3", rope_parameters=rope, **sizes)
    with pytest.raises(HarnessError, match=r"18 tokens.*16.*\(longrope\): set training.max_length"):
        response_logps(model, rows_of([(8, (10, 2))]))
    policy = Policy(model, tiny.tokenizer("chatml"), Path(), (), "cpu")
    near, far = (GenerationRequest(tuple(range(5, 5 + size)), 40, 0.0) for size in (12, 20))
    together = generate(policy, [near, far])
    assert [len(answer.token_ids) for answer in together] == [4, 40]
    assert together == [generate(policy, [one])[0] for one in (near, far)]


def test_a_model_that_is_computed_one_response_at_a_time_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = built("gemma2")
    with caplog.at_level(logging.WARNING):
        response_logps(model, rows_of(SHAPES))
        response_logps(model, rows_of(SHAPES))
    assert [
        record.message
        for record in caplog.records
        if "Gemma2ForCausalLM" in record.message and "one by one" in record.message
    ] != []
    assert len(caplog.records) == 1


def test_the_trainer_takes_the_same_step(tmp_path: Path) -> None:
    start = built("gemma2", vocab_size=300)
    policy = moved(start)
    batch = rows(6)
    wanted = plain_loss("selm", exact := copy.deepcopy(policy), start, batch)
    wanted.backward()
    gradient = plain.gradient(exact)
    trainer = PreferenceTrainer(
        policy,
        config(tmp_path, objective="selm", alpha=ALPHA, max_log_ratio=1e9),
        batch,
        ref_model=start,
    )
    loss, found = step(trainer, batch)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert plain.relative_error(found, gradient) < 1e-4


def test_what_happens_between_hidden_states_and_logits_unknown_to_us_is_refused() -> None:
    model = built("olmo2")
    before = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = before(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = forward
    with pytest.raises(
        HarnessError, match="Olmo2ForCausalLM: log-probabilities from its hidden states"
    ):
        response_logps(model, rows_of(SHAPES))


def test_entropy_and_divergence_use_the_models_own_logits() -> None:
    theta = built("gemma2")
    base = moved(theta)
    prompt, answer = (5, 9, 11), (7, 3, 21)
    sheet = Sheet(prompt)
    sheet.add(answer, own=True)
    loaders = {
        "theta": lambda: SimpleNamespace(model=theta),
        "base": lambda: SimpleNamespace(model=base),
    }
    score_sheets([sheet], loaders, {"theta": "theta", "base": "base"}, token_budget=100)
    tokens = torch.tensor([prompt + answer])
    with torch.no_grad():
        p, q = (
            model(input_ids=tokens).logits[0, 2:5].double().log_softmax(-1)
            for model in (theta, base)
        )
    assert sheet.logps["theta"][answer] == pytest.approx(float(p[range(3), answer].sum()), abs=1e-4)
    assert sheet.entropy[answer] == pytest.approx(float(-(p.exp() * p).sum()), abs=1e-4)
    assert sheet.kl["base"][answer] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)


def test_a_model_without_the_asked_attention_says_which_to_ask_for(tmp_path: Path) -> None:
    if Gemma2ForCausalLM._supports_sdpa:
        pytest.skip("this transformers gives Gemma 2 every attention")
    made = tiny.tokenizer("chatml")
    built("gemma2", vocab_size=len(made), max_position_embeddings=256).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    with pytest.raises(
        HarnessError, match=r"scaled_dot_product_attention.*; set model\.attention: eager"
    ):
        load_policy(tmp_path)
    assert load_policy(tmp_path, attention="eager").model.config.model_type == "gemma2"
