"""Stage `train`: one iteration of preference training, from the policy's checkpoint to the next
one.

Written: model/ (safetensors and tokenizer), carried/ (what the next part of the same run continues
with, `harness.train.carried`; only where there are parts) and steps.jsonl (one row per optimiser
step: step, loss, grad_norm, learning_rate, margin, accuracy, rhat_* in nats; null where a step had
no such row). A run that was killed goes on from its last mid-iteration checkpoint to the same bits.
With ``runtime.processes`` above one the same function runs in so many ranks, and the first of them
writes. Without a pair that can be trained on the policy passes through unchanged, and what is
carried with it; the record says so.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from harness.model.chat import end_of_turn
from harness.model.checkpoint import quiet
from harness.model.isolated_rng import isolated_rng
from harness.model.policy import load_policy, load_tokenizer, release_policies
from harness.model.sources import merged
from harness.records import (
    HarnessError,
    LeftOut,
    StageOutcome,
    StageTask,
    Tally,
    content_hash,
    write_jsonl,
)
from harness.study.sections import LoraSettings
from harness.study.tasks import TrainTask
from harness.train import distributed
from harness.train.batching import PreferenceRow, encode_pairs, with_others
from harness.train.carried import Carried, pass_on
from harness.train.objectives import ResolvedObjective
from harness.train.trainer import (
    CHECKPOINTING,
    METRICS,
    PreferenceConfig,
    PreferenceTrainer,
    without_dropout,
)

STEP_COLUMNS = ("step", "loss", "grad_norm", "learning_rate")
MAX_LENGTH = "training.max_length"
NO_PAIR = "portions without a pair"
JOURNAL = "train.journal.jsonl"
"""Its presence tells the store that a killed attempt left something to go on from."""


def run(task: StageTask[TrainTask]) -> StageOutcome:
    """Train. Raises HarnessError when the run diverges or does not fit."""
    runtime = task.runtime
    try:
        if runtime.processes == 1:
            told = train_here(task)
        else:
            lent = len(runtime.devices.split(",")) if runtime.devices else torch.cuda.device_count()
            distributed.check_ready(runtime, 0 if runtime.device == "cpu" else lent)
            release_policies()
            function = "harness.stages.train:train_here"
            told = distributed.run_processes(function, task, runtime.processes)
    except HarnessError:
        _forget_attempt(task)
        raise
    _forget_attempt(task)
    left_out = tuple(LeftOut(**one) for one in told["left_out"])
    costs = {"tokens_trained": told["tokens"]}
    return StageOutcome(told["rows"], costs=costs, summary=told["summary"], left_out=left_out)


def train_here(task: StageTask[TrainTask]) -> dict[str, Any]:
    """Train in this process, alone or as one rank, of which the first writes."""
    _leave_imports_uncollected()
    settings, sharded = task.settings, task.runtime.sharding
    # One way of sharding cannot read another's checkpoints.
    work = task.out / ("checkpoints" if sharded == "none" else f"checkpoints-{sharded}")
    objective = ResolvedObjective(**vars(settings.objective))
    with isolated_rng():
        tokenizer = load_tokenizer(task.inputs["policy"])
        every = training_rows(task, tokenizer, objective)
        rows, left_out = teaching(task, tokenizer, every, objective.roles)
        if not rows:
            return _pass_through(task, tokenizer, left_out)
        sizes = [row.packed(objective.roles)[0].tokens for row in rows]
        trainer, clock = _trainer(task, _load(task), rows, work)
        with distributed.termination_noted(clock.terminate):
            trainer.train(resume_from_checkpoint=last_checkpoint(work))
        if clock.terminated and trainer.state.global_step < trainer.state.max_steps:
            raise SystemExit(128 + signal.SIGTERM)
        model = _whole_model(task, trainer)
        if trainer.is_world_process_zero():
            _save(model, tokenizer, task.out / "model", settings.dtype)
    steps = [_step(entry) for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        write_jsonl(task.out / "steps.jsonl", steps)
    last = {name: steps[-1][name] for name in ("loss", "margin", "accuracy")}
    summary = {"steps": len(steps), **last}
    if trainer.args.token_budget != task.runtime.token_budget:
        summary["token_budget"] = trainer.args.token_budget
    return {
        "rows": len(rows),
        "tokens": sum(sizes) * settings.training.epochs,
        "summary": summary,
        "left_out": [vars(one) for one in left_out],
    }


def _pass_through(
    task: StageTask[TrainTask], tokenizer: Any, left_out: tuple[LeftOut, ...]
) -> dict[str, Any]:
    """The policy as it came in, where there is nothing to train on."""
    settings = task.settings
    if os.environ.get("RANK", "0") == "0":
        _save(_load(task), tokenizer, task.out / "model", settings.dtype)
        write_jsonl(task.out / "steps.jsonl", [])
        if settings.carried:
            pass_on(task.inputs["policy"] if settings.carried.part else None, task.out)
    place = f"seed {settings.seed}, iteration {settings.iteration}"
    told = LeftOut(task.stage, NO_PAIR, "the policy passes through unchanged", 1, 1, (place,))
    return {
        "rows": 0,
        "tokens": 0,
        "summary": {"steps": 0},
        "left_out": [vars(one) for one in (told, *left_out)],
    }


@functools.cache
def _leave_imports_uncollected() -> None:
    """Once a process: the Trainer asks for a garbage collection after every run, and looking
    through all that was imported takes 0.27 of a small iteration's 0.39 seconds. No model may be in
    memory meanwhile: it would stay.
    """
    release_policies()
    gc.collect()
    gc.freeze()


def _forget_attempt(task: StageTask[TrainTask]) -> None:
    for folder in task.out.glob("checkpoints*"):
        shutil.rmtree(folder, ignore_errors=True)
    (task.out / JOURNAL).unlink(missing_ok=True)


def _load(task: StageTask[TrainTask]) -> Any:
    """The policy, for training: bfloat16 runs keep float32 weights (mixed precision)."""
    lora, dtype = task.settings.training.lora, task.settings.dtype
    alone = task.runtime.processes == 1
    quantised = lora is not None and lora.base != "whole"
    # Of several ranks, the trainer places each where it belongs.
    how = task.settings.scoring(task.runtime.device if alone else "cpu")
    how |= {"dtype": dtype if lora else "float32", "quantised": quantised}
    return load_policy(task.inputs["policy"], cached=False, **how).model


def _whole_model(task: StageTask[TrainTask], trainer: Any) -> Any:
    """The trained model in one piece; sharded weights are gathered on the first rank."""
    lora = task.settings.training.lora
    if lora and lora.base != "whole":
        return _dequantised(task, lora, trainer.model) if trainer.is_world_process_zero() else None
    if task.runtime.sharding == "none":
        return trainer.model
    state = distributed.whole_state(trainer)
    if not trainer.is_world_process_zero():
        return None
    model = _load(task)
    if lora:
        model = with_lora(model, lora, seed=0)
    model.load_state_dict(state)
    return model


def _dequantised(task: StageTask[TrainTask], lora: LoraSettings, trained: Any) -> Any:
    """The policy in its dtype on the CPU, with its 4 bits' values and the adapters."""
    from bitsandbytes.functional import dequantize_4bit

    adapters = {}
    policy = load_policy(task.inputs["policy"], dtype=task.settings.dtype, cached=False).model
    whole = with_lora(policy, lora, seed=0)
    for name, weight in trained.named_parameters():
        if weight.requires_grad:
            adapters[name] = weight.detach().cpu()
        elif state := getattr(weight, "quant_state", None):
            value = dequantize_4bit(weight.data, state)
            whole.get_parameter(name).data.copy_(value)
    whole.load_state_dict(adapters, strict=False)
    return whole


def training_rows(
    task: StageTask[TrainTask], tokenizer: Any, objective: ResolvedObjective
) -> list[PreferenceRow]:
    """Rows of the pairs with the rarity of each y, where it is counted, and their stored reference
    log-probabilities. Raises HarnessError when any is missing or of another tokenisation.
    """
    limits = task.settings.training.limits
    rows = encode_pairs(tokenizer, task.inputs["pairs"], limits)
    rows = with_others(rows, objective.scored, task.settings.training.max_length)
    if "count" in task.inputs:
        counts: dict[int, dict[str, float]] = {}
        for one in pq.read_table(task.inputs["count"] / "counts.parquet").to_pylist():
            counts.setdefault(one["row"], {})[one["role"]] = one["rarity"]
        rows = [replace(row, extras=counts.get(i, {})) for i, row in enumerate(rows)]
    if not objective.needs_reference:
        return rows
    path = task.inputs["reference"] / "reference.parquet"
    stored = {(one["row"], one["role"]): one for one in pq.read_table(path).to_pylist()}
    filled = []
    for number, row in enumerate(rows):
        reference = {}
        for role in (role for role in objective.scored if role in row.responses):
            tokens = len(row.responses[role])
            one = stored.get((number, role), {"prompt_id": "", "tokens": 0})
            if (one["prompt_id"], one["tokens"]) != (row.prompt_id, tokens):
                raise HarnessError(
                    f"{path}: no reference log-probability for prompt {row.prompt_id}, {role} of "
                    f"{tokens} tokens in row {number}; pairs, tokenizer or max_length differ from "
                    "the reference stage's: run it again"
                )
            reference[role] = one["logp"]
        filled.append(replace(row, reference=reference))
    return filled


def teaching(
    task: StageTask[TrainTask], tokenizer: Any, rows: Sequence[PreferenceRow], roles: Sequence[str]
) -> tuple[list[PreferenceRow], tuple[LeftOut, ...]]:
    """The rows that have every response of ``roles`` (y may have had no room to answer) and whose
    chosen and rejected answers differ in a token that is trained on: where they do not, the
    preference loss is log 2 whatever the policy. Raises HarnessError where more than
    ``max_left_out`` do not.
    """
    limit, end = task.settings.training.max_length, end_of_turn(tokenizer)
    pairs, answers = Tally(task.stage, "pairs"), Tally(task.stage, "answers")
    kept, where = [], str(task.inputs["pairs"] / "pairs.jsonl")
    for row in rows:
        status = "ok"
        if absent := sorted(set(roles) - set(row.responses)):
            name = task.settings.objective.name
            status = f"no {absent[0]!r} response, which objective {name} reads"
        elif row.responses["chosen"] == row.responses["rejected"]:
            status = f"equal after cutting to {MAX_LENGTH}"
        else:
            kept.append(row)
        pairs.meet(row.prompt_id, status)
        room = limit - len(row.prompt_ids)
        for ids in set(row.responses.values()):
            cut = len(ids) == room and tokenizer.convert_ids_to_tokens(ids[-1]) != end
            answers.meet(row.prompt_id, f"cut at {MAX_LENGTH}" if cut else "ok")
    pairs.check(task.settings.max_left_out, where)
    return kept, pairs.left_out() + answers.left_out()


def _trainer(
    task: StageTask[TrainTask], model: Any, rows: list[PreferenceRow], work: Path
) -> tuple[PreferenceTrainer, CheckpointClock]:
    settings, runtime, carried = task.settings, task.runtime, task.settings.carried
    training, objective = settings.training, settings.objective
    seed = int(content_hash("train", settings.seed, settings.iteration, length=7), 16)
    steps = math.ceil(len(rows) / training.batch_size) * training.epochs
    parts = carried.parts if carried else 1
    without_dropout(model)
    if training.lora:
        model = with_lora(model, training.lora, seed)
    # Accelerate keeps the first precision of a process; a worker runs stages of several.
    AcceleratorState._reset_state()
    checkpointing: dict[str, Any] = {CHECKPOINTING: training.gradient_checkpointing}
    args = PreferenceConfig(
        output_dir=str(work),
        objective=objective.name,
        alpha=objective.alpha,
        beta=objective.beta,
        placebo=objective.placebo,
        objective_params=dict(objective.given),
        explore_samples=sum(role.startswith("explore") for role in objective.roles) or 1,
        global_batch_size=training.batch_size,
        per_device_train_batch_size=runtime.micro_batch or training.batch_size,
        token_budget=runtime.token_budget,
        iteration=settings.iteration,
        learning_rate=training.learning_rate,
        num_train_epochs=training.epochs,
        warmup_steps=math.ceil(training.warmup_ratio * steps * parts),
        schedule_parts=parts,
        lr_scheduler_type=training.scheduler,
        optim=training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        **checkpointing,
        bf16=settings.dtype == "bfloat16",
        use_cpu=runtime.device == "cpu",
        disable_dropout=False,  # done above; the adapters keep the dropout that was asked for
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        save_total_limit=2,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        report_to=runtime.report_to,
        **distributed.sharding_arguments(model, runtime.sharding),
    )
    clock = CheckpointClock(runtime.checkpoint_seconds, task.out, args.world_size)
    callbacks: list[Any] = [clock]
    if carried:
        rounded = settings.dtype != "float32"
        callbacks.append(Carried(carried.part, task.inputs["policy"], task.out, rounded))
    return PreferenceTrainer(model, args, rows, callbacks=callbacks), clock


def with_lora(model: Any, lora: LoraSettings, seed: int) -> Any:
    """The model with adapters whose first values follow the run's seed."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    with isolated_rng(seed):
        return get_peft_model(model, config)


def _save(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Write the whole model (adapters merged) in the run's precision, with its tokenizer."""
    if hasattr(model, "merge_and_unload"):
        model = merged(model)
    # The Trainer switches it off, and the config is saved with the model.
    model.config.use_cache = True
    with quiet():
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _step(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of steps.jsonl: nine significant digits, null where nothing was measured."""
    row = {name: entry.get(name) for name in (*STEP_COLUMNS, *METRICS)}
    return {
        name: float(f"{value:.9g}") if isinstance(value, float) else value
        for name, value in row.items()
    }


def last_checkpoint(work: Path) -> str | None:
    """The newest complete mid-iteration checkpoint; torn ones (killed while being written) are
    removed.

    The Trainer writes trainer_state.json last, so a checkpoint with a readable one is whole.
    """
    complete = []
    for folder in work.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append((int(state["global_step"]), str(folder)))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)
    return max(complete)[1] if complete else None


class CheckpointClock(TrainerCallback):  # type: ignore[misc]
    """A checkpoint every ``seconds``; once told to terminate, one after the step under way, and no
    further step. Ranks do what any of them was told, all after the same step.
    """

    def __init__(self, seconds: float, out: Path, ranks: int) -> None:
        self.seconds, self.out, self.ranks = seconds, out, ranks
        self.last = time.monotonic()
        self.terminated = False

    def terminate(self) -> None:
        """End after the step under way and its checkpoint."""
        self.terminated = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Ask for a checkpoint, and for the end, where they are due."""
        if state.global_step >= state.max_steps:
            return
        due = time.monotonic() - self.last >= self.seconds
        if self.ranks > 1:
            told = self.terminated or distributed.stop_asked(self.out)
            self.terminated, due = distributed.any_rank(args.device, told, due)
        if self.terminated or due:
            control.should_save = True
            control.should_training_stop = self.terminated
            self.last = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave word for the store that there is something to go on from."""
        if state.is_world_process_zero:
            row = {"checkpoint": f"checkpoint-{state.global_step}", "step": state.global_step}
            write_jsonl(self.out / JOURNAL, [row])
