"""Training, memory, attention and sampling on one GPU, at the real shapes of Llama-3.2-1B and
Llama-3-8B with random weights, against TRL's DPOTrainer on the same rows.

    python -m benchmarks.bench_gpu [--parts attention one_b trl_one_b …]
    python -m benchmarks.bench_gpu --device cpu   (tiny shapes: does it run?)

Writes ``gpu.json``, part after part, so that what was measured stays when time runs out. Needs no
file and no network. Operations that are counted are those of the model (forward, and backward at
twice that; nothing for what is computed again): 6 per weight of a linear layer and token, the head
at predicted tokens only, attention by the pairs of tokens that see each other; with adapters 4,
for frozen weights have no gradient.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import TrainerCallback

from benchmarks import write
from benchmarks.bench_training import (
    ROLES,
    dpo_trainer,
    least_tokenizer,
    make_model,
    options,
    random_rows,
)
from harness.cost import DEVICES
from harness.model import attention
from harness.model.attention import pack
from harness.model.generate import generate
from harness.model.policy import Policy
from harness.model.shape import Shape, shape_from_config, training_bytes
from harness.records import GenerationRequest
from harness.stages.train import with_lora
from harness.study.sections import LoraSettings
from harness.study.settings import Recipe
from harness.train.batching import PreferenceRow
from harness.train.trainer import PreferenceConfig, PreferenceTrainer, without_dropout

PROMPT, RESPONSE = (150, 512), (250, 512)
"""Median and most tokens; lengths are log-normal with a standard deviation of 0.8."""
SIZES = {
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, True),
    "llama-3-8b": (4096, 14336, 32, 32, 8, False),
    "tiny": (64, 128, 2, 4, 2, False),
}
VOCABULARY = 128_256
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Bench:
    """Where and how large. rows: of one optimiser step; steps: after one that is not counted."""

    device: str
    rows: int
    steps: int
    token_budget: int

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def vocabulary(self) -> int:
        return VOCABULARY if self.on_gpu else 512

    def model(self, name: str, dtype: torch.dtype) -> Any:
        """A random model of a real shape (on a CPU: of a tiny one)."""
        sizes = SIZES[name if self.on_gpu else "tiny"]
        with torch.device(self.device):
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                return make_model(self.vocabulary, sizes)
            finally:
                torch.set_default_dtype(before)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def peak(self) -> float:
        """Most bytes allocated since the last call."""
        if not self.on_gpu:
            return 0.0
        found = float(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return found

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of a call and of what it left to the device, and its result."""

        self.wait()
        start = time.perf_counter()
        found = work()
        self.wait()
        return time.perf_counter() - start, found

    def median_ms(self, work: Callable[[], Any], repeats: int = 15) -> float:
        """Median milliseconds of a call after three warm-ups."""
        return 1e3 * statistics.median([self.timed(work)[0] for _ in range(repeats + 3)][3:])


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ragged_rows(count: int, vocabulary: int) -> list[PreferenceRow]:
    """Rows of random tokens whose lengths spread like a chat data set's."""

    def length(median: int, most: int, rng: np.random.Generator) -> int:
        return int(np.clip(rng.lognormal(np.log(median), 0.8), 8, most))

    prompt, response = (partial(length, *limits) for limits in (PROMPT, RESPONSE))
    return random_rows(count, prompt, response, vocabulary=vocabulary)


def operations(shape: Shape, rows: Sequence[PreferenceRow], roles: Sequence[str]) -> float:
    """Forward operations of the model on every unique token of the rows."""
    tokens = predicted = pairs = 0
    for row in rows:
        packed = row.packed(roles)[0]
        tokens += packed.tokens
        prompt = len(packed.prompt_ids)
        pairs += prompt * (prompt + 1) // 2
        for response in packed.responses:
            size = len(response)
            predicted += size
            pairs += size * prompt + size * (size + 1) // 2
    embeddings = shape.vocabulary * shape.hidden
    trunk = shape.parameters - embeddings * (1 if shape.tied else 2)
    seen = 4 * shape.layers * shape.heads * shape.head_size * pairs
    return 2 * trunk * tokens + 2 * embeddings * predicted + seen


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of every optimiser step, and bytes held after the last."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.seconds, self.held, self.start = bench, [], 0.0, 0.0  # type: ignore[var-annotated]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.bench.wait()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.bench.wait()
        self.seconds.append(time.perf_counter() - self.start)
        self.held = float(torch.cuda.memory_allocated()) if self.bench.on_gpu else 0.0

    @property
    def step(self) -> float:
        """Median seconds, the first step left out."""
        return float(statistics.median(self.seconds[1:]))


def arguments(bench: Bench, folder: str, **changes: Any) -> dict[str, Any]:
    """Training arguments of both trainers."""
    where = {"use_cpu": not bench.on_gpu, "bf16": True, "max_length": PROMPT[1] + RESPONSE[1]}
    return options(folder, learning_rate=1e-6, **where, **changes)


def ours(
    bench: Bench, model: Any, rows: list[PreferenceRow], alpha: float, **changes: Any
) -> tuple[Clock, dict[str, float]]:
    """A short run: its clock, seconds of the references, first loss, peak memory."""
    clock = Clock(bench)
    changes = {"token_budget": bench.token_budget, **changes}
    with tempfile.TemporaryDirectory() as scratch:
        args = PreferenceConfig(
            alpha=alpha,
            global_batch_size=bench.rows,
            per_device_train_batch_size=len(rows),
            **arguments(bench, scratch, **changes),
        )
        job = partial(PreferenceTrainer, model, args, rows, callbacks=[clock])
        scoring, trainer = bench.timed(job)
        bench.peak()
        trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    return clock, {
        "seconds_of_references": scoring,
        "first_loss": loss,
        "bytes_held_after_a_step": clock.held,
        "bytes_at_peak": bench.peak(),
    }


def selm_and_dpo(
    bench: Bench, name: str, made: Callable[[], Any], lora: bool, **changes: Any
) -> dict[str, Any]:
    """SELM (three responses) and DPO (two): rates by the median step, utilisation, memory beside
    the plan's estimate.
    """
    rows = ragged_rows(bench.rows * (bench.steps + 1), bench.vocabulary)
    given: dict[str, Any] = {"training": {"lora": LORA}} if lora else {}
    recipe = Recipe.model_validate({"model": {"dtype": "bfloat16"}, **given})
    card = torch.cuda.get_device_name().lower().replace(" ", "") if bench.on_gpu else ""
    peaks = (one.flops for key, one in DEVICES.items() if key in card)
    limit, share, found = next(peaks, None), bench.rows / len(rows), {}
    for what, alpha, roles in (("selm", 1e-3, ROLES), ("dpo", 0.0, ROLES[:2])):
        model = made()
        shape = shape_from_config(name, model.config.to_dict())
        clock, measured = ours(bench, model, rows, alpha, **changes)
        tokens = share * sum(row.packed(roles)[0].tokens for row in rows)
        rate = share * operations(shape, rows, roles) * (2 if lora else 3) / clock.step
        found[what] = {
            "model": name,
            "parameters": shape.parameters,
            "seconds_per_step": clock.step,
            "unique_tokens_per_second": tokens / clock.step,
            "rows_per_second": bench.rows / clock.step,
            "model_flops_per_second": rate,
            "model_flops_utilisation": rate / limit if limit else None,
            **measured,
            "bytes_planned_before_rows": training_bytes(shape, recipe),
        }
        del model
        free()
    return found


def one_b(bench: Bench) -> dict[str, Any]:
    """Full training of 1 B."""
    name = "llama-3.2-1b"
    return selm_and_dpo(bench, name, partial(bench.model, name, torch.float32), lora=False)


def eight_b_with_adapters(bench: Bench) -> Any:
    """Llama-3-8B in bfloat16 with LoRA on every linear layer."""
    model = bench.model("llama-3-8b", torch.bfloat16)
    without_dropout(model)
    return with_lora(model, LoraSettings.model_validate(LORA), seed=0)


def eight_b(bench: Bench) -> dict[str, Any]:
    """LoRA on 8 B in bfloat16 with checkpointing, half the rows."""
    half = replace(bench, rows=bench.rows // 2)
    made = partial(eight_b_with_adapters, half)
    return selm_and_dpo(half, "llama-3-8b", made, lora=True, gradient_checkpointing=True)


def trl_one_b(bench: Bench) -> dict[str, Any]:
    """TRL's DPOTrainer on the rows of ``one_b``."""
    start = bench.model("llama-3.2-1b", torch.float32)
    return trl(bench, start, copy.deepcopy(start))


def trl_eight_b(bench: Bench) -> dict[str, Any]:
    """TRL's DPOTrainer on the rows of ``eight_b``; its reference is the model without adapters."""
    half = replace(bench, rows=bench.rows // 2)
    return trl(half, eight_b_with_adapters(half), None, gradient_checkpointing=True)


def trl(bench: Bench, model: Any, reference: Any, **changes: Any) -> dict[str, Any]:
    """TRL's DPOTrainer with stored references and the same global batch as ours."""
    rows = ragged_rows(bench.rows * (bench.steps + 1), bench.vocabulary)
    size = 4 if bench.on_gpu else 2  # about as many tokens in a pass as ours
    clock = Clock(bench)
    with tempfile.TemporaryDirectory() as scratch:
        batch = {"per_device_train_batch_size": size}
        batch["gradient_accumulation_steps"] = bench.rows // size
        told = arguments(bench, scratch, **batch, **changes)
        trainer = dpo_trainer(model, reference, rows, told)
        trainer.add_callback(clock)
        bench.peak()
        trainer.train()
    return {
        "seconds_per_step": clock.step,
        "rows_per_second": bench.rows / clock.step,
        "bytes_at_peak": bench.peak(),
        "first_loss": trainer.state.log_history[0]["loss"],
    }


def forms_of_attention(bench: Bench) -> dict[str, Any]:
    """Milliseconds of one layer's attention, forward and backward, of one packed batch at the shape
    of Llama-3-8B in bfloat16.
    """
    heads, kv_heads, width = (32, 8, 128) if bench.on_gpu else (4, 2, 16)
    prompts = [row.packed(ROLES)[0] for row in ragged_rows(64, bench.vocabulary)]
    sizes = np.cumsum([prompt.tokens for prompt in prompts])
    chosen = prompts[: max(2, int((sizes <= bench.token_budget).sum()))]
    tokens = sum(prompt.tokens for prompt in chosen)
    generator = torch.Generator(device=bench.device).manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        shape = (1, count, tokens, width)
        made = torch.randn(shape, generator=generator, device=bench.device, dtype=torch.bfloat16)
        return made.requires_grad_()

    q, k, v, slope = drawn(heads), drawn(kv_heads), drawn(kv_heads), drawn(heads).detach()
    module = torch.nn.Module()
    module.num_key_value_groups = heads // kv_heads  # type: ignore[assignment]

    def packed(threshold: int, flash: bool) -> Callable[[], Any]:
        attention.SHORT_PROMPT_TOKENS = threshold
        layout = pack(chosen).to(bench.device).layout
        if not flash:
            layout.sequences = None

        def work() -> Any:
            given = {"packed_layout": layout, "scaling": width**-0.5}
            out, _ = attention.shared_prefix_attention(module, q, k, v, None, **given)
            return torch.autograd.grad(out, (q, k, v), slope.transpose(1, 2))

        return work

    before = attention.SHORT_PROMPT_TOKENS
    forms = {
        "flash_sequences": packed(0, flash=True),
        "sdpa_padded_mask": packed(10**6, flash=False),
        "sdpa_call_per_response": packed(0, flash=False),
    }
    attention.SHORT_PROMPT_TOKENS = before
    found: dict[str, Any] = {name: bench.median_ms(work) for name, work in forms.items()}
    found["tokens"], found["prompts"] = tokens, len(chosen)
    if bench.on_gpu:
        wanted = forms["flash_sequences"]()
        work = flex(pack(chosen).to(bench.device).layout, q, k, v, slope)
        gaps = [float((a - b).norm() / b.norm()) for a, b in zip(work(), wanted, strict=True)]
        found["flex_relative_difference"] = max(gaps)
        found["flex_block_mask"] = bench.median_ms(work)
    return found


def flex(layout: Any, q: Any, k: Any, v: Any, slope: Any) -> Callable[[], Any]:
    """FlexAttention with a block mask over the one row of tokens."""
    spans = layout.spans
    prompt_of = torch.empty_like(layout.owner)
    for number, ((start, _), responses) in enumerate(spans):
        prompt_of[start : responses[-1][1]] = number
    owner = layout.owner

    def seen(_b: Any, _h: Any, i: Any, j: Any) -> Any:
        same = (owner[j] < 0) | (owner[i] == owner[j])
        return (prompt_of[i] == prompt_of[j]) & same & (j <= i)

    tokens = q.shape[2]
    mask = create_block_mask(seen, None, None, tokens, tokens, device=q.device)
    compiled = torch.compile(flex_attention)

    def work() -> Any:
        out = compiled(q, k, v, block_mask=mask, enable_gqa=True)
        return torch.autograd.grad(out, (q, k, v), slope)

    return work


def generation(bench: Bench) -> dict[str, Any]:
    """Tokens a second of transformers' loop with our noise: 1 B in bfloat16, nothing ends early."""
    model = bench.model("llama-3.2-1b", torch.bfloat16)
    rows, new = (64, 128) if bench.on_gpu else (4, 8)
    prompts = [row.prompt_ids for row in ragged_rows(rows, bench.vocabulary)]
    policy = Policy(model, least_tokenizer(), Path(), (-1,), bench.device)
    found = {}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        asked = [
            GenerationRequest(prompt, new, temperature, seed=i) for i, prompt in enumerate(prompts)
        ]
        generate(policy, asked)  # the allocator learns the sizes of a growing cache
        taken, answers = bench.timed(partial(generate, policy, asked))
        drawn = sum(len(answer.token_ids) for answer in answers)
        found[name] = {"tokens_per_second": drawn / taken, "rows": rows}
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "attention": forms_of_attention,
    "one_b": one_b,
    "trl_one_b": trl_one_b,
    "eight_b": eight_b,
    "trl_eight_b": trl_eight_b,
    "generation": generation,
}


def main() -> None:
    """Measure the parts asked for, each written as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --device cpu runs tiny shapes")
    rows, budget = (64, 8192) if on_gpu else (4, 2048)
    bench = Bench(args.device, rows, 2, budget)
    result: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "settings": {"rows_per_step": bench.rows, "token_budget": bench.token_budget},
    }
    for name in args.parts:
        start = time.perf_counter()
        try:
            result[name] = PARTS[name](bench)
        except Exception as error:  # noqa: BLE001 - one part that fails must not cost the others
            result[name] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        result[name]["seconds_in_all"] = time.perf_counter() - start
        free()
        write("gpu" if on_gpu else "gpu_on_cpu", result)
        print(name, json.dumps(result[name]), flush=True)


if __name__ == "__main__":
    main()
