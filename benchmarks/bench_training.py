"""Speed and memory of a SELM step against the published formulation, and of alpha 0 against TRL's
DPOTrainer.

    python -m benchmarks.bench_training [--quick] [--threads 2] [--device cuda] [--out
    results/bench]

Arms run in turns on the same rows, so that whatever else the machine does falls on all of them; a
figure is the median of paired ratios. A step is forward, backward and AdamW. Ours counts its share
of reference passes: one per step, or one in five where five values of alpha share them. Writes
``training.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import published
from benchmarks.rows import PROMPT, RESPONSE, VOCABULARY, hh_rows, pocket_rows, random_rows
from harness.model.logprobs import enable_packed_forward, response_logps, sequence_logps
from harness.train.batching import PreferenceRow, collate_for_rank
from harness.train.objectives import Rows, resolve

ALPHA, BETA = 1e-3, 0.01
MICRO_BATCH, GLOBAL_BATCH, TOKEN_BUDGET = 8, 32, 4096
HH_MODEL = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 688,
}
POCKET_MODEL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "tie_word_embeddings": True,
}
SMOL_MODEL = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's sizes, under the small vocabulary."""
LENGTHS = {
    "long_prompts_short_answers": ((200, 256), (8, 40)),
    "short_prompts_long_answers": ((8, 16), (256, 256)),
}
"""Fewest and most tokens of a prompt and of an answer; the second's answers are all as long."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s by name, from the vendor's data sheets."""
ROLES = ("chosen", "rejected", "explore")


def make_model(vocabulary: int, sizes: dict[str, Any], args: argparse.Namespace) -> Any:
    """A random Llama of these sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    options: dict[str, Any] = {"attn_implementation": "sdpa", **sizes}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=1024, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    return model.to(device=args.device, dtype=getattr(torch, args.dtype)).eval()


class Arm:
    """A policy with its reference and optimiser, and what a step does."""

    def __init__(self, start: Any, args: argparse.Namespace) -> None:
        self.policy = copy.deepcopy(start)
        self.reference = copy.deepcopy(start).requires_grad_(False)
        self.args = args
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-5)

    def step(self, rows: Sequence[PreferenceRow]) -> list[float]:
        """Learn from the rows; the losses of its micro-batches."""
        raise NotImplementedError

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Published(Arm):
    """Micro-batches of eight rows in the given order, padded."""

    def step(self, rows: Sequence[PreferenceRow]) -> list[float]:
        losses = []
        for start in range(0, len(rows), MICRO_BATCH):
            part = rows[start : start + MICRO_BATCH]
            loss = published.loss(
                self.policy, self.reference, part, alpha=ALPHA, beta=BETA, device=self.args.device
            )
            (loss * len(part) / len(rows)).backward()
            losses.append(float(loss.detach()))
        self.update()
        return losses


class Packed(Arm):
    """Ours. ``token_budget`` 0: the published arm's micro-batches; else planned by tokens."""

    def __init__(self, start: Any, args: argparse.Namespace, token_budget: int) -> None:
        super().__init__(start, args)
        self.token_budget = token_budget
        self.objective = resolve("selm", alpha=ALPHA, beta=BETA)
        for model in (self.policy, self.reference):
            enable_packed_forward(model)

    def score(self, rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
        """Rows with reference log-probabilities: the pass that is stored and shared."""
        packed = [row.packed(ROLES) for row in rows]
        values = response_logps(
            self.reference,
            [prompt for prompt, _ in packed],
            token_budget=self.token_budget or TOKEN_BUDGET,
        )
        scored = zip(rows, values, packed, strict=True)
        return [
            replace(row, reference={role: own[slot] for role, slot in slots.items()})
            for row, own, (_, slots) in scored
        ]

    def step(self, rows: Sequence[PreferenceRow]) -> list[float]:
        if self.token_budget:
            micro = collate_for_rank(rows, ROLES, token_budget=self.token_budget, micro_batch=0)
        else:
            parts = [
                rows[start : start + MICRO_BATCH] for start in range(0, len(rows), MICRO_BATCH)
            ]
            micro = [
                batch
                for part in parts
                for batch in collate_for_rank(part, ROLES, token_budget=0, micro_batch=0)
            ]
        losses = []
        for batch in (one.to(self.args.device) for one in micro):
            logps = sequence_logps(self.policy, batch.batch)
            table = Rows(
                {role: logps[slots] for role, slots in batch.slots.items()},
                batch.reference,
                batch.tokens,
            )
            loss = self.objective.losses(table).sum()
            (loss / len(rows)).backward()
            losses.append(float(loss.detach()) / len(batch.weights))
        self.update()
        return losses


def clock(args: argparse.Namespace) -> float:
    """Seconds: wall, or CPU time of this process where others share the cores (``--clock cpu``)."""
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if args.clock == "cpu" else time.perf_counter()


def timed(work: Callable[[], Any], args: argparse.Namespace) -> tuple[float, Any]:
    """Seconds and result."""
    start = clock(args)
    result = work()
    return clock(args) - start, result


def selm_ratios(rows: list[PreferenceRow], start: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Paired rounds of all arms on the same rows; a warm-up round is not counted."""
    arms = {
        "published": Published(start, args),
        "same": Packed(start, args, 0),
        "budget": Packed(start, args, TOKEN_BUDGET),
    }
    ratios: dict[str, list[float]] = {"same_batches": [], "token_budget": [], "five_alphas": []}
    worst, seconds = 0.0, {"published": 0.0, "step": 0.0, "reference": 0.0}
    tokens = {"published_padded": 0, "unique": 0, "rows": 0}
    for number in range(args.rounds + 1):
        batch = rows[number * args.rows : (number + 1) * args.rows]
        if not number:
            batch = batch[:MICRO_BATCH]
        order = list(arms) if number % 2 else list(arms)[::-1]
        cost: dict[str, tuple[float, float]] = {}
        losses: dict[str, list[float]] = {}
        for name in order:
            arm = arms[name]
            scoring, scored = (
                timed(partial(arm.score, batch), args) if isinstance(arm, Packed) else (0.0, batch)
            )
            stepping, losses[name] = timed(partial(arm.step, scored), args)
            cost[name] = scoring, stepping
        for mine, theirs in zip(losses["same"], losses["published"], strict=True):
            worst = max(worst, abs(mine - theirs) / abs(theirs))
        if not number:
            continue
        whole = cost["published"][1]
        ratios["same_batches"].append(whole / sum(cost["same"]))
        ratios["token_budget"].append(whole / sum(cost["budget"]))
        ratios["five_alphas"].append(5 * whole / (cost["budget"][0] + 5 * cost["budget"][1]))
        seconds["published"] += whole
        seconds["reference"] += cost["budget"][0]
        seconds["step"] += cost["budget"][1]
        tokens["rows"] += len(batch)
        tokens["unique"] += sum(row.packed(ROLES)[0].tokens for row in batch)
        tokens["published_padded"] += sum(
            _padded(batch[i : i + MICRO_BATCH]) for i in range(0, len(batch), MICRO_BATCH)
        )
    found: dict[str, Any] = {
        f"selm_vs_published_{name}": statistics.median(values) for name, values in ratios.items()
    }
    return (
        found
        | {
            "max_relative_loss_difference": worst,
            "rounds": ratios,
            "seconds": seconds,
            "tokens": tokens,
        }
        | utilisation(start, tokens, seconds, args)
    )


def _padded(rows: Sequence[PreferenceRow]) -> int:
    longest = {
        role: max(len(row.prompt_ids) + len(row.responses[role]) for row in rows) for role in ROLES
    }
    return len(rows) * (2 * max(longest["chosen"], longest["rejected"]) + longest["explore"])


def utilisation(
    model: Any, tokens: dict[str, int], seconds: dict[str, float], args: argparse.Namespace
) -> dict[str, Any]:
    """Share of the device's peak that unique tokens use in our step (6 FLOPs per parameter and
    token; attention left out).
    """
    rate = 6 * sum(p.numel() for p in model.parameters()) * tokens["unique"] / seconds["step"]
    name = torch.cuda.get_device_name() if args.device == "cuda" else ""
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
    return {
        "model_flops_per_second": rate,
        "model_flops_utilisation": rate / peak if peak and args.dtype == "bfloat16" else None,
    }


def trl_ratio(rows: list[PreferenceRow], start: Any, args: argparse.Namespace) -> dict[str, Any]:
    """alpha 0 against TRL's DPOTrainer, both with stored references: seconds of ``train()`` on the
    same rows in the same order.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from harness.train.trainer import PreferenceConfig, PreferenceTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    rows = [row for row in rows if row.responses["chosen"] != row.responses["rejected"]][
        : args.rows
    ]
    data = [
        {
            "prompt_ids": [*r.prompt_ids],
            "chosen_ids": [*r.responses["chosen"]],
            "rejected_ids": [*r.responses["rejected"]],
        }
        for r in rows
    ]
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        common: dict[str, Any] = {
            "output_dir": scratch,
            "beta": BETA,
            "learning_rate": 1e-5,
            "num_train_epochs": 1,
            "per_device_train_batch_size": MICRO_BATCH,
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "report_to": "none",
            "use_cpu": args.device == "cpu",
            "bf16": args.dtype == "bfloat16",
            "precompute_ref_log_probs": True,
            "max_length": PROMPT + RESPONSE,
        }
        accumulation = max(1, min(GLOBAL_BATCH, len(rows)) // MICRO_BATCH)
        for _ in range(min(3, args.rounds)):
            config = DPOConfig(
                gradient_checkpointing=False, gradient_accumulation_steps=accumulation, **common
            )
            reference = copy.deepcopy(start)
            theirs = Tokenised(
                copy.deepcopy(start),
                reference,
                config,
                train_dataset=Dataset.from_list(data),
                processing_class=least_tokenizer(),
            )
            ours = {
                **common,
                "per_device_train_batch_size": len(rows),
                "global_batch_size": accumulation * MICRO_BATCH,
            }
            mine = PreferenceTrainer(
                copy.deepcopy(start),
                PreferenceConfig(alpha=0.0, token_budget=TOKEN_BUDGET, **ours),
                rows,
            )
            slow, _ = timed(theirs.train, args)
            fast, _ = timed(mine.train, args)
            ratios.append(slow / fast)
    return {"alpha0_vs_trl_dpo": statistics.median(ratios), "alpha0_rounds": ratios}


def least_tokenizer() -> Any:
    """The least tokenizer DPOTrainer accepts."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


def peak_memory(arm: str, rows: list[PreferenceRow], args: argparse.Namespace) -> float:
    """Bytes by which one step raises the peak of a process of its own over what it held with
    libraries, data and one model loaded.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as handle:
        json.dump([[row.prompt_ids, row.responses, row.y_role] for row in rows], handle)
        handle.flush()
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench_training",
            "--memory-arm",
            arm,
            "--memory-rows",
            handle.name,
        ]
        command += ["--device", args.device, "--dtype", args.dtype, "--threads", str(args.threads)]
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
        )
    return float(done.stdout.strip().splitlines()[-1])


def measure_memory(args: argparse.Namespace) -> None:
    """Child of ``peak_memory``: print the rise in bytes."""
    found = json.loads(args.memory_rows.read_text(encoding="utf-8"))
    rows = [
        PreferenceRow(str(i), tuple(p), {role: tuple(ids) for role, ids in r.items()}, y_role=y)
        for i, (p, r, y) in enumerate(found)
    ]
    start = make_model(VOCABULARY, HH_MODEL, args)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = 0.0 if args.device == "cuda" else _memory("VmRSS")
    arm = Published(start, args) if args.memory_arm == "published" else Packed(start, args, 0)
    arm.step(arm.score(rows) if isinstance(arm, Packed) else rows)
    after = float(torch.cuda.max_memory_allocated()) if args.device == "cuda" else _memory("VmHWM")
    print(after - before)


def _memory(name: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in bytes. Not ``ru_maxrss``: a child inherits its
    parent's there.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def other_shapes(rows: list[PreferenceRow], start: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Ratios by lengths of prompts and answers, and with a model of 135 M on the text (a step of
    eight rows, two rounds at most: one takes minutes).
    """
    found = {}
    for name, lengths in LENGTHS.items():
        drawn = random_rows(args.rows * (args.rounds + 1), *lengths)
        found[name] = selm_ratios(drawn, start, args)
    few = argparse.Namespace(**vars(args))
    few.rows, few.rounds = MICRO_BATCH if not args.quick else 2, min(2, args.rounds)
    found["model_of_135m"] = selm_ratios(rows, make_model(VOCABULARY, SMOL_MODEL, args), few)
    return found


def main() -> None:
    """Measure and write ``training.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="eight rows and one round: does it run?"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu where other work shares the cores",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=GLOBAL_BATCH, help="rows of one step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument(
        "--only",
        action="append",
        choices=("selm", "memory", "trl", "pocket", "shapes"),
        help="measure these alone and keep the file's others; may be repeated",
    )
    parser.add_argument("--memory-arm", default="", help=argparse.SUPPRESS)
    parser.add_argument("--memory-rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds = min(args.rows, MICRO_BATCH), 1
    torch.set_num_threads(args.threads)
    if args.memory_arm:
        measure_memory(args)
        return
    rows = hh_rows(args.rows * (args.rounds + 1))
    start = make_model(VOCABULARY, HH_MODEL, args)
    small, vocabulary = pocket_rows(args.rows * (args.rounds + 1))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "selm": lambda: selm_ratios(rows, start, args),
        "memory": lambda: memory_ratio(rows, args),
        "trl": lambda: trl_ratio(rows, start, args),
        "pocket": lambda: {
            "pocket": selm_ratios(small, make_model(vocabulary, POCKET_MODEL, args), args)
        },
        "shapes": lambda: {"shapes": other_shapes(rows, start, args)},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / ("training.json" if args.device == "cpu" else "training_cuda.json")
    only = args.only or list(parts)
    result = json.loads(file.read_text(encoding="utf-8")) if args.only and file.exists() else {}
    for part in only:
        measured = parts[part]()
        result |= measured | {"settings": settings(args, start)}
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        for key, value in measured.items():
            if isinstance(value, float):
                print(f"{key:40s} {value:.4g}", flush=True)


def memory_ratio(rows: list[PreferenceRow], args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a step, ours over the published form's, each in a process of its own."""
    memory = {arm: peak_memory(arm, rows[: args.rows], args) for arm in ("published", "same")}
    return {"peak_memory_ratio": memory["same"] / memory["published"], "peak_memory_bytes": memory}


def settings(args: argparse.Namespace, start: Any) -> dict[str, Any]:
    """What the last parts were measured with."""
    left_out = {"out", "only", "memory_arm", "memory_rows"}
    return {name: str(value) for name, value in vars(args).items() if name not in left_out} | {
        "micro_batch": MICRO_BATCH,
        "token_budget": TOKEN_BUDGET,
        "alpha": ALPHA,
        "beta": BETA,
        "model": HH_MODEL,
        "vocabulary": VOCABULARY,
        "parameters": sum(p.numel() for p in start.parameters()),
        "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }


if __name__ == "__main__":
    main()
