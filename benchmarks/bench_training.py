"""Speed and memory of a SELM step against the published form, and of alpha 0 against TRL's.

    python -m benchmarks.bench_training [--quick] [--threads 2] [--only PART]

On a CPU; ``bench_gpu`` is its like on a GPU. Arms run in turns on the same rows, so that whatever
else the machine does falls on all of them; a figure is the median of paired ratios. A step is
forward, backward and AdamW. Ours counts its share of reference passes: one per step, or one in five
where five values of alpha share them. Writes ``training.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks import OUT, timed, write
from harness.model.logprobs import enable_packed_forward, response_logps, sequence_logps
from harness.train.batching import PreferenceRow, collate_for_rank
from harness.train.objectives import Rows, resolve

ROLES = ("chosen", "rejected", "explore")
SHARES = {"winner": 0.45, "loser": 0.30, "middle": 0.25}
"""How often y is the chosen one, the rejected one, or neither."""
VOCABULARY = 8000
PROMPT, RESPONSE = 256, 256
"""Most tokens of a prompt (its last ones are kept) and of a response."""
ALPHA, BETA = 1e-3, 0.01
MICRO_BATCH, GLOBAL_BATCH, TOKEN_BUDGET = 8, 32, 4096
DIMENSIONS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "tie_word_embeddings"),
)
HH_MODEL = (256, 688, 6, 4, 4, False)
SMOL_MODEL = (576, 1536, 30, 9, 3, True)
"""SmolLM2-135M's sizes, under the small vocabulary."""
LENGTHS = {
    "long_prompts_short_answers": ((200, 256), (8, 40)),
    "short_prompts_long_answers": ((8, 16), (256, 256)),
}
"""Fewest and most tokens of a prompt and of an answer; the second's answers are all as long."""


# -- rows: real text, or random tokens -------------------------------------------------------------
def _conversations() -> Iterator[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of the HH test pairs: the last assistant turn is the response."""
    folder = Path(os.environ.get("SHARED_DATA", OUT.parents[2] / "shared" / "data")) / "preferences"
    files = sorted(folder.glob("hh_*_test.jsonl.gz"))
    if not files:
        raise SystemExit(
            f"no HH pairs at {folder}; set SHARED_DATA to a folder that holds "
            "preferences/hh_*_test.jsonl.gz"
        )
    mark = "\n\nAssistant:"
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as handle:
            for line in handle:
                row = json.loads(line)
                cut = row["chosen"].rfind(mark) + len(mark)
                prompt, *said = row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:]
                if row["rejected"].startswith(prompt) and all(text.strip() for text in said):
                    yield prompt, *said


def hh_rows(count: int) -> list[PreferenceRow]:
    """``count`` rows of HH text under its own BPE; "neither": another row's chosen response."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(_conversations())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<end>"], show_progress=False
    )
    tokenizer.train_from_iterator((part for row in texts[:1500] for part in row), trainer)
    rng = np.random.default_rng(0)
    triples = []
    for place in rng.permutation(len(texts))[: count + 1]:
        prompt, *said = (tokenizer.encode(text).ids for text in texts[place])
        triples.append((prompt[-PROMPT:], *([*one, 1][:RESPONSE] for one in said)))
    return _with_y(triples, count, rng)


Length = Callable[[np.random.Generator], int]


def random_rows(
    count: int, prompt: Length, response: Length, vocabulary: int = VOCABULARY
) -> list[PreferenceRow]:
    """``count`` rows of random tokens, as many in a prompt and in a response as these draw."""
    rng = np.random.default_rng(0)
    triples = [
        tuple(rng.integers(2, vocabulary, length(rng)) for length in (prompt, response, response))
        for _ in range(count + 1)
    ]
    return _with_y(triples, count, rng)


def _with_y(triples: Sequence[Any], count: int, rng: np.random.Generator) -> list[PreferenceRow]:
    roles = rng.choice(list(SHARES), size=count, p=list(SHARES.values()))
    rows = []
    for place, role in enumerate(roles):
        prompt, chosen, rejected, other = (
            tuple(int(token) for token in one) for one in (*triples[place], triples[place + 1][1])
        )
        y = {"winner": chosen, "loser": rejected, "middle": other}[str(role)]
        responses = dict(zip(ROLES, (chosen, rejected, y), strict=True))
        rows.append(PreferenceRow(str(place), prompt, responses, y_role=str(role)))
    return rows


# -- the published formulation ---------------------------------------------------------------------
def padded_logps(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """log pi(response | prompt) of a padded batch, from full float32 logits; shape (B,)."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    seen, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        size = len(prompt) + len(response)
        ids[i, :size] = torch.tensor([*prompt, *response])
        seen[i, :size] = 1
        labels[i, len(prompt) : size] = ids[i, len(prompt) : size]
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    mask = targets != -100
    table = torch.gather(logits.log_softmax(-1), 2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (table * mask).sum(-1)


def published_loss(policy: Any, reference: Any, rows: Sequence[PreferenceRow]) -> Tensor:
    """Mean over rows of -log sigma(beta Delta) + alpha beta (log pi(y) - log pi_ref(y)): padded,
    y in a pass of its own, full log-softmax. Anew from arXiv 2405.19332; no code is theirs.
    """
    prompts = [row.prompt_ids for row in rows]
    pairs = [row.responses["chosen"] for row in rows] + [row.responses["rejected"] for row in rows]
    explored = [row.responses["explore"] for row in rows]
    logps = []
    for model, context in ((policy, contextlib.nullcontext()), (reference, torch.no_grad())):
        with context:
            pair = padded_logps(model, prompts + prompts, pairs)
            logps.append((pair, padded_logps(model, prompts, explored)))
    (policy_pair, policy_y), (reference_pair, reference_y) = logps
    chosen, rejected = (policy_pair - reference_pair).chunk(2)
    explores = ALPHA * BETA * (policy_y - reference_y)
    return (-logsigmoid(BETA * (chosen - rejected)) + explores).mean()


# -- the arms --------------------------------------------------------------------------------------
def make_model(vocabulary: int, sizes: tuple[int, ...]) -> Any:
    """A random Llama of these sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    given: dict[str, Any] = dict(zip(DIMENSIONS, sizes, strict=True))
    given |= {"max_position_embeddings": 2048, "attn_implementation": "sdpa"}
    config = LlamaConfig(vocab_size=vocabulary, **given)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


class Published:
    """A policy with its reference and optimiser. A step: micro-batches of eight rows in the given
    order, padded.
    """

    def __init__(self, start: Any) -> None:
        self.policy = copy.deepcopy(start)
        self.reference = copy.deepcopy(start).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-5)

    def score(self, rows: Sequence[PreferenceRow]) -> Sequence[PreferenceRow]:
        """The pass that is stored and shared; here there is none."""
        return rows

    def step(self, rows: Sequence[PreferenceRow]) -> list[float]:
        """Learn from the rows; the losses of its micro-batches."""
        losses = []
        for start in range(0, len(rows), MICRO_BATCH):
            part = rows[start : start + MICRO_BATCH]
            loss = published_loss(self.policy, self.reference, part)
            (loss * len(part) / len(rows)).backward()
            losses.append(float(loss.detach()))
        self.update()
        return losses

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Packed(Published):
    """Ours. ``token_budget`` 0: the published arm's micro-batches; else planned by tokens."""

    def __init__(self, start: Any, token_budget: int) -> None:
        super().__init__(start)
        self.token_budget = token_budget
        self.objective = resolve("selm", alpha=ALPHA, beta=BETA)
        for model in (self.policy, self.reference):
            enable_packed_forward(model)

    def score(self, rows: Sequence[PreferenceRow]) -> Sequence[PreferenceRow]:
        """Rows with reference log-probabilities."""
        packed = [row.packed(ROLES) for row in rows]
        budget, prompts = self.token_budget or TOKEN_BUDGET, [prompt for prompt, _ in packed]
        values = response_logps(self.reference, prompts, token_budget=budget)
        return [
            replace(row, reference={role: own[slot] for role, slot in slots.items()})
            for row, own, (_, slots) in zip(rows, values, packed, strict=True)
        ]

    def step(self, rows: Sequence[PreferenceRow]) -> list[float]:
        size = len(rows) if self.token_budget else MICRO_BATCH
        losses = []
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            given = {"token_budget": self.token_budget, "micro_batch": 0}
            for batch in collate_for_rank(part, ROLES, **given):
                logps = sequence_logps(self.policy, batch.batch)
                own = {role: logps[slots] for role, slots in batch.slots.items()}
                table = Rows(own, batch.reference, batch.tokens)
                loss = self.objective.losses(table).sum()
                (loss / len(rows)).backward()
                losses.append(float(loss.detach()) / len(batch.weights))
        self.update()
        return losses


# -- what is measured ------------------------------------------------------------------------------
def selm_ratios(
    rows: list[PreferenceRow], args: argparse.Namespace, sizes: tuple[int, ...] = HH_MODEL
) -> dict[str, Any]:
    """Paired rounds of all arms on the same rows; a warm-up round is not counted."""
    start = make_model(VOCABULARY, sizes)
    arms = {
        "published": Published(start),
        "same": Packed(start, 0),
        "budget": Packed(start, TOKEN_BUDGET),
    }
    ratios: dict[str, list[float]] = {"same_batches": [], "token_budget": [], "five_alphas": []}
    worst, seconds = 0.0, {"published": 0.0, "step": 0.0, "reference": 0.0}
    tokens = {"published_padded": 0, "unique": 0, "rows": 0}
    for number in range(args.rounds + 1):
        batch = rows[number * args.rows : (number + 1) * args.rows]
        if not number:
            batch = batch[:MICRO_BATCH]
        scoring: dict[str, float] = {}
        stepping: dict[str, float] = {}
        losses: dict[str, list[float]] = {}
        for name in list(arms) if number % 2 else reversed(arms):
            scoring[name], scored = timed(partial(arms[name].score, batch))
            stepping[name], losses[name] = timed(partial(arms[name].step, scored))
        for mine, theirs in zip(losses["same"], losses["published"], strict=True):
            worst = max(worst, abs(mine - theirs) / abs(theirs))
        if not number:
            continue
        whole, ours, reference = stepping["published"], stepping["budget"], scoring["budget"]
        ratios["same_batches"].append(whole / (scoring["same"] + stepping["same"]))
        ratios["token_budget"].append(whole / (reference + ours))
        ratios["five_alphas"].append(5 * whole / (reference + 5 * ours))
        for part, taken in (("published", whole), ("reference", reference), ("step", ours)):
            seconds[part] += taken
        tokens["rows"] += len(batch)
        tokens["unique"] += sum(row.packed(ROLES)[0].tokens for row in batch)
        tokens["published_padded"] += sum(
            _padded(batch[i : i + MICRO_BATCH]) for i in range(0, len(batch), MICRO_BATCH)
        )
    return {
        **{f"selm_vs_published_{name}": statistics.median(all_) for name, all_ in ratios.items()},
        "max_relative_loss_difference": worst,
        "rounds": ratios,
        "seconds": seconds,
        "tokens": tokens,
    }


def _padded(rows: Sequence[PreferenceRow]) -> int:
    longest = {
        role: max(len(row.prompt_ids) + len(row.responses[role]) for row in rows) for role in ROLES
    }
    return len(rows) * (2 * max(longest["chosen"], longest["rejected"]) + longest["explore"])


def options(folder: str, **changes: Any) -> dict[str, Any]:
    """Training arguments of both trainers."""
    return {
        "output_dir": folder,
        "beta": BETA,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        **changes,
    }


def dpo_trainer(
    model: Any, reference: Any, rows: Sequence[PreferenceRow], arguments: dict[str, Any]
) -> Any:
    """TRL's DPOTrainer on rows that are tokenised already."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    data = [
        {"prompt_ids": [*row.prompt_ids]}
        | {f"{role}_ids": [*row.responses[role]] for role in ROLES[:2]}
        for row in rows
    ]
    return Tokenised(
        model,
        reference,
        DPOConfig(**arguments),
        train_dataset=Dataset.from_list(data),
        processing_class=least_tokenizer(),
    )


def least_tokenizer() -> Any:
    """The least tokenizer DPOTrainer accepts."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


def trl_ratio(rows: list[PreferenceRow], args: argparse.Namespace) -> dict[str, Any]:
    """alpha 0 against TRL, stored references: seconds of ``train()`` on the same rows."""
    from harness.train.trainer import PreferenceConfig, PreferenceTrainer

    start, ratios = make_model(VOCABULARY, HH_MODEL), []
    different = [row for row in rows if row.responses["chosen"] != row.responses["rejected"]]
    rows = different[: args.rows]
    accumulation = max(1, min(GLOBAL_BATCH, len(rows)) // MICRO_BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        limits = {"learning_rate": 1e-5, "use_cpu": True, "bf16": False}
        common = options(scratch, max_length=PROMPT + RESPONSE, **limits)
        own: dict[str, Any] = {"token_budget": TOKEN_BUDGET}
        own["global_batch_size"] = accumulation * MICRO_BATCH
        own["per_device_train_batch_size"] = len(rows)
        trl = {"per_device_train_batch_size": MICRO_BATCH}
        trl["gradient_accumulation_steps"] = accumulation
        for _ in range(min(3, args.rounds)):
            model, reference = copy.deepcopy(start), copy.deepcopy(start)
            theirs = dpo_trainer(model, reference, rows, {**common, **trl})
            config = PreferenceConfig(alpha=0.0, **common, **own)
            mine = PreferenceTrainer(copy.deepcopy(start), config, rows)
            slow, _ = timed(theirs.train)
            fast, _ = timed(mine.train)
            ratios.append(slow / fast)
    return {"alpha0_vs_trl_dpo": statistics.median(ratios), "alpha0_rounds": ratios}


def memory_raised(arm: str, rows: list[PreferenceRow], threads: int) -> float:
    """Bytes by which a step raises the peak over libraries, data and one model; in a process that
    did nothing else.
    """
    torch.set_num_threads(threads)
    start = make_model(VOCABULARY, HH_MODEL)
    before = _memory("VmRSS")
    made = Published(start) if arm == "published" else Packed(start, 0)
    made.step(made.score(rows))
    return _memory("VmHWM") - before


def _memory(name: str) -> float:
    """VmRSS or VmHWM in bytes; of ``ru_maxrss`` a child inherits its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def memory_ratio(rows: list[PreferenceRow], args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a step, ours over the published form's, each in a process of its own."""
    memory = {}
    for arm in ("published", "same"):
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            memory[arm] = alone.apply(memory_raised, (arm, rows[: args.rows], args.threads))
    return {"peak_memory_ratio": memory["same"] / memory["published"], "peak_memory_bytes": memory}


def between(low: int, high: int, rng: np.random.Generator) -> int:
    return int(rng.integers(low, high + 1))


def other_shapes(rows: list[PreferenceRow], args: argparse.Namespace) -> dict[str, Any]:
    """Ratios by lengths of prompts and answers, and with a model of 135 M on the text (a step of
    eight rows, two rounds at most: one takes minutes).
    """
    found = {}
    for name, lengths in LENGTHS.items():
        prompt, response = (partial(between, *ends) for ends in lengths)
        drawn = random_rows(args.rows * (args.rounds + 1), prompt, response)
        found[name] = selm_ratios(drawn, args)
    few = argparse.Namespace(**vars(args))
    few.rows, few.rounds = MICRO_BATCH if not args.quick else 2, min(2, args.rounds)
    found["model_of_135m"] = selm_ratios(rows, few, SMOL_MODEL)
    return {"shapes": found}


PARTS = {"selm": selm_ratios, "memory": memory_ratio, "trl": trl_ratio, "shapes": other_shapes}


def main() -> None:
    """Measure and write ``training.json``, part after part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="eight rows, one round: does it run?")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rows", type=int, default=GLOBAL_BATCH, help="rows of one step")
    parser.add_argument("--rounds", type=int, default=5)
    alone = "measure these alone and keep the file's others; may be repeated"
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help=alone)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds = min(args.rows, MICRO_BATCH), 1
    torch.set_num_threads(args.threads)
    rows = hh_rows(args.rows * (args.rounds + 1))
    file = OUT / "training.json"
    result = json.loads(file.read_text(encoding="utf-8")) if args.only and file.exists() else {}
    result["settings"] = {
        **{name: str(getattr(args, name)) for name in ("threads", "rows", "rounds")},
        "micro_batch": MICRO_BATCH,
        "token_budget": TOKEN_BUDGET,
        "alpha": ALPHA,
        "beta": BETA,
        "model": HH_MODEL,
        "vocabulary": VOCABULARY,
    }
    for part in args.only or PARTS:
        measured = PARTS[part](rows, args)
        result |= measured
        write("training", result)
        for key, value in measured.items():
            if isinstance(value, float):
                print(f"{key:40s} {value:.4g}", flush=True)


if __name__ == "__main__":
    main()
