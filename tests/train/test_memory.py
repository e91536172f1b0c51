"""Memory of training by hand, against what autograd really keeps, and against what a device has
free.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks

from harness.cost.work import KNOWN, Shape
from harness.model.logprobs import PackedPrompt, enable_packed_forward, pack
from harness.records import HarnessError, read_jsonl
from harness.stages import train
from harness.train import memory
from harness.train.memory import (
    GIB,
    USABLE,
    Setup,
    fitted_budget,
    largest_budget,
    layer_bytes,
    training_parts,
    tried_budget,
)
from harness.train.trainer import PreferenceTrainer
from tests import tiny
from tests.preferences import Tokens, config, model, rows, run_train, stage_inputs, train_task

ZEPHYR = KNOWN["HuggingFaceH4/mistral-7b-sft-beta"]
MIXED = Setup(bfloat16=True, checkpointing=True)
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}


def sizes(shape: Shape, setup: Setup, tokens: float) -> dict[str, float]:
    return {part.what: part.size for part in training_parts(shape, setup, tokens)}


def test_seven_billion_parameters_in_mixed_precision_take_sixteen_bytes_each() -> None:
    found = sizes(ZEPHYR, MIXED, 8192)
    n = ZEPHYR.parameters
    assert [found[what] / n for what in ("weights", "gradients", "optimiser")] == [4, 4, 8]
    assert found["weights rounded to bfloat16"] == 2 * n
    assert found["activations kept"] == 8192 * 32 * 4 * 4096
    assert found["activations of the layer under way"] == 8192 * (26 * 4096 + 15 * 4096 + 8 * 14336)
    assert sizes(ZEPHYR, replace(MIXED, moments=1), 0)["optimiser"] == 4 * n
    assert sum(found.values()) == pytest.approx(
        18 * n + 8192 * (32 * 16384 + 41 * 4096 + 8 * 14336) + 10 * 2**27 + 6 * 32000 * 4096
    )


def test_shards_divide_states_and_gather_two_layers() -> None:
    found = sizes(ZEPHYR, replace(MIXED, processes=8, sharded=True), 8192)
    n, embeddings = ZEPHYR.parameters, 2 * 32000 * 4096
    layer = (n - embeddings) / 32
    assert sum(found[what] for what in ("weights", "gradients", "optimiser")) == 16 * n / 8
    assert found["gathered weights"] == 4 * (2 * layer + embeddings)
    assert found["weights rounded to bfloat16"] == 2 * layer
    assert sum(found.values()) < 0.9 * 80e9 < sum(sizes(ZEPHYR, MIXED, 8192).values())


def test_data_parallel_processes_each_hold_everything_and_buckets() -> None:
    alone, two = sizes(ZEPHYR, MIXED, 100), sizes(ZEPHYR, replace(MIXED, processes=2), 100)
    assert two.pop("buckets of gradients") == 4 * ZEPHYR.parameters
    assert two == alone


def test_adapters_train_a_small_share() -> None:
    found = sizes(ZEPHYR, replace(MIXED, lora_rank=16), 8192)
    assert found["weights (frozen)"] == 2 * ZEPHYR.parameters
    assert found["adapters with gradients and optimiser"] == 16 * 32 * 16 * (
        2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    )
    assert sum(found.values()) < 24 * GIB


def kept_by_autograd(shape: Shape, layers: int, setup: Setup) -> float:
    """Bytes of the distinct tensors that a forward pass saves for the backward one, weights left
    out, over its tokens.
    """
    made = tiny.model(
        "llama",
        Tokens(),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        num_hidden_layers=layers,
    )
    if setup.lora_rank:
        made = get_peft_model(
            made.to(torch.bfloat16 if setup.bfloat16 else torch.float32),
            LoraConfig(r=setup.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    made.train()
    enable_packed_forward(made)
    batch = pack([PackedPrompt((5,) * 256, ((6,) * 128, (7,) * 128))] * 4)
    weights = {p.untyped_storage().data_ptr() for p in made.parameters()}
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=setup.bfloat16),
    ):
        made(packed_batch=batch)
    return sum(size for size, _ in saved.values()) / batch.tokens


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(
    "shape", [(256, 640, 4, 4, 64), (256, 64, 8, 2, 64), (512, 256, 4, 1, 32)], ids=str
)
def test_a_layer_keeps_what_autograd_keeps(
    shape: tuple[int, ...], rank: int, bfloat16: bool
) -> None:
    hidden, inner, heads, kv_heads, head_size = shape
    sized = Shape("double", 2, hidden, inner, heads, kv_heads, head_size, 61)
    setup = Setup(bfloat16=bfloat16, lora_rank=rank)
    kept = (kept_by_autograd(sized, 4, setup) - kept_by_autograd(sized, 2, setup)) / 2
    if bfloat16 and not rank:  # the rounded weights are a part of their own
        query, keys = heads * head_size, kv_heads * head_size
        kept -= 2 * (2 * hidden * query + 2 * hidden * keys + 3 * hidden * inner) / 2048
    assert 0.97 < layer_bytes(sized, setup)[0] / kept < 1.25


def test_the_largest_budget_by_hand() -> None:
    """100 bytes and 3 a token: 25 tokens need 175."""

    def bytes_at(tokens: float) -> float:
        return 100 + 3 * tokens

    assert largest_budget(bytes_at, 175, longest=10, wanted=100) == 25
    assert largest_budget(bytes_at, 1000, longest=10, wanted=100) == 100
    assert largest_budget(bytes_at, 131, longest=10, wanted=100) == 10
    assert largest_budget(bytes_at, 129, longest=10, wanted=100) == 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return stage_inputs(tmp_path_factory.mktemp("stage"))


def needed(tokens: float, **changes: Any) -> float:
    tiny_llama = Shape("tiny", 2, 32, 64, 4, 2, 8, len(tiny.tokenizer("llama3")))
    return sum(sizes(tiny_llama, replace(Setup(cuda=False), **changes), tokens).values())


def test_a_budget_that_fits_is_left_alone_and_another_is_lowered(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    task = train_task(inputs, tmp_path, batch_size=10, runtime={"token_budget": 500})
    lengths = [90] * 10
    assert fitted_budget(task, lengths, needed(500) / USABLE + 1) == 500
    assert fitted_budget(task, lengths, needed(320) / USABLE + 1) == 320
    assert fitted_budget(task, lengths, needed(90) / USABLE + 1) == 90
    unlimited = train_task(inputs, tmp_path, batch_size=10, runtime={"token_budget": 0})
    assert fitted_budget(unlimited, lengths, needed(900) / USABLE + 1) == 0
    assert fitted_budget(unlimited, lengths, needed(320) / USABLE + 1) == 320


def test_what_never_comes_together_needs_no_room(inputs: dict[str, Path], tmp_path: Path) -> None:
    """A global batch of two rows is at most 180 tokens, whatever the budget says."""
    task = train_task(inputs, tmp_path, batch_size=2, runtime={"token_budget": 8192})
    assert fitted_budget(task, [90] * 10, needed(180) / USABLE + 1) == 8192


def test_too_small_a_device_is_told_how_much_is_missing_and_what_to_try(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    task = train_task(inputs, tmp_path)
    free = (needed(90) - 0.5 * GIB) / USABLE
    with pytest.raises(
        HarnessError,
        match=r"one row of 90 tokens needs 0\.02 GiB.*0\.50 GiB short.*weights: .*Try "
        r"training\.gradient_checkpointing: true",
    ):
        fitted_budget(task, [90, 80], free)
    with pytest.raises(
        HarnessError, match=r"Try training\.lora, more runtime\.processes, a shorter"
    ):
        fitted_budget(
            train_task(
                inputs,
                tmp_path,
                gradient_checkpointing=True,
                runtime={"processes": 2, "sharding": "fsdp"},
            ),
            [90],
            0.0,
        )
    assert fitted_budget(train_task(inputs, tmp_path, runtime={"memory": "off"}), [90], 0.0) == 8192


def test_the_stage_trains_with_the_budget_that_fits(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller budget changes the cut of a batch, not what is learned; the record says so."""
    whole = run_train(inputs, tmp_path / "whole")
    monkeypatch.setattr(memory, "free_bytes", lambda setup: needed(260) / USABLE + 1)
    cut = run_train(inputs, tmp_path / "cut")
    assert cut.summary["token_budget"] == 260
    assert "token_budget" not in whole.summary
    losses = [
        [row["loss"] for row in read_jsonl(tmp_path / name / "steps.jsonl")]
        for name in ("whole", "cut")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    monkeypatch.setattr(memory, "free_bytes", lambda setup: 0.0)
    with pytest.raises(HarnessError, match="training does not fit"):
        train.run(train_task(inputs, tmp_path / "none"))


def trial(
    tmp_path: Path, fails_above: int, peaks_at: float = 0.0
) -> tuple[int, list[int], PreferenceTrainer]:
    """A trial whose micro-batches over ``fails_above`` tokens run out of memory; the tokens it
    tried.
    """
    data = rows(12)
    trainer = PreferenceTrainer(model(), config(tmp_path, token_budget=160), data)
    tried: list[int] = []
    real = trainer.micro_batch_loss

    def loss(own: Any, micro: Any) -> Any:
        tried.append(micro.batch.tokens)
        if micro.batch.tokens > fails_above:
            raise torch.OutOfMemoryError
        return real(own, micro)

    trainer.micro_batch_loss = loss  # type: ignore[method-assign]
    lengths = [row.packed(trainer.objective.roles)[0].tokens for row in data]
    before = torch.get_rng_state()
    budget = tried_budget(trainer, lengths, 1e9, lambda: peaks_at)
    assert torch.equal(torch.get_rng_state(), before)
    return budget, tried, trainer


def test_a_trial_halves_until_it_fits_and_leaves_no_trace(tmp_path: Path) -> None:
    budget, tried, trainer = trial(tmp_path, fails_above=50)
    assert budget == 40
    assert [tokens <= most for tokens, most in zip(tried, (160, 80, 40), strict=True)] == [True] * 3
    assert all(p.grad is None for p in trainer.model.parameters())
    assert not any(trainer.step_metrics.counts.values())


def test_a_trial_that_never_fits_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError, match=r"a trial with one row of \d+ tokens ran out of the 0\.93 GiB"
    ):
        trial(tmp_path, fails_above=1)
    with pytest.raises(HarnessError, match="ran out"):
        trial(tmp_path, fails_above=10**6, peaks_at=0.95e9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_count_is_near_what_a_gpu_holds(tmp_path: Path) -> None:
    """Peak of a few steps against the count, for a model of 0.3 B parameters."""
    shape = Shape("double", 12, 1024, 4096, 16, 8, 64, 32_000)
    made = model(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_hidden_layers=12,
        vocab_size=32_000,
    )
    torch.cuda.reset_peak_memory_stats()
    args = config(
        tmp_path,
        use_cpu=False,
        bf16=True,
        max_steps=2,
        token_budget=8192,
        global_batch_size=64,
        precompute_ref_log_probs=True,
    )
    PreferenceTrainer(made, args, rows(64)).train()
    tokens = sum(row.packed(("chosen", "rejected", "explore"))[0].tokens for row in rows(64))
    counted = sum(sizes(shape, Setup(bfloat16=True), tokens).values())
    assert 0.7 * counted < torch.cuda.max_memory_allocated() < 1.1 * counted
