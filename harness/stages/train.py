"""Stage `train`: one iteration of preference training, from the policy's checkpoint to the next
one.

Written: model/ (safetensors and tokenizer) and steps.jsonl (one row per optimiser step: step, loss,
grad_norm, learning_rate, margin, accuracy, rhat_* in nats; null where a step had no such row). A
run that was killed goes on from its last mid-iteration checkpoint to the same bits. With
``runtime.processes`` above one the same function runs in so many ranks, and the first of them
writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.model.isolated_rng import isolated_rng
from harness.model.policy import load_policy, load_tokenizer, release_policies
from harness.records import (
    HarnessError,
    Pair,
    StageOutcome,
    StageTask,
    content_hash,
    read_jsonl,
    write_jsonl,
)
from harness.study.sections import LoraSettings
from harness.study.tasks import ObjectiveTask, TrainTask
from harness.train import distributed
from harness.train.batching import PreferenceRow, encode_pair, with_reference
from harness.train.objectives import ResolvedObjective

STEP_COLUMNS = ("step", "loss", "grad_norm", "learning_rate")
CHECKPOINT_SECONDS = 600.0
DEFAULT_BUDGET = 8192
JOURNAL = "train.journal.jsonl"
"""Its presence tells the store that a killed attempt left something to go on from."""


def run(task: StageTask[TrainTask]) -> StageOutcome:
    """Train. Settings: objective, training, seed, iteration, dtype, attention. Raises HarnessError
    when the run diverges or does not fit.
    """
    processes = task.runtime.processes
    try:
        if processes == 1:
            told = train_here(task)
        else:
            distributed.check_ready(task.runtime, _devices(task))
            release_policies()
            told = distributed.run_processes("harness.stages.train:train_here", task, processes)
    except HarnessError:
        _forget_attempt(task)
        raise
    _forget_attempt(task)
    return StageOutcome(
        rows=told["rows"], costs={"tokens_trained": told["tokens"]}, summary=told["summary"]
    )


def train_here(task: StageTask[TrainTask]) -> dict[str, Any]:
    """Train in this process, alone or as one rank; the first rank writes. Returns rows, tokens
    trained and the summary.
    """
    settings, work = task.settings, _checkpoints(task)
    objective = resolved(settings.objective)
    with isolated_rng():
        tokenizer = load_tokenizer(task.inputs["policy"])
        rows = training_rows(task, tokenizer, objective)
        sizes = [row.packed(objective.roles)[0].tokens for row in rows]
        trainer, clock = _trainer(task, _load(task).model, rows, work)
        with distributed.termination_noted(clock.terminate):
            trainer.train(resume_from_checkpoint=last_checkpoint(work))
        if clock.terminated and trainer.state.global_step < trainer.state.max_steps:
            raise SystemExit(128 + signal.SIGTERM)
        model = _whole_model(task, trainer)
        if trainer.is_world_process_zero():
            _save(model, tokenizer, task.out / "model", settings.dtype)
    steps = [step_row(entry) for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        write_jsonl(task.out / "steps.jsonl", steps)
    summary = {"steps": len(steps)} | {
        name: steps[-1][name] for name in ("loss", "margin", "accuracy")
    }
    if trainer.args.token_budget != task.runtime.token_budget:
        summary["token_budget"] = trainer.args.token_budget
    return {"rows": len(rows), "tokens": sum(sizes) * settings.training.epochs, "summary": summary}


def _checkpoints(task: StageTask[TrainTask]) -> Path:
    """Where this attempt keeps mid-iteration checkpoints: one way of sharding cannot read
    another's.
    """
    sharding = task.runtime.sharding
    return task.out / ("checkpoints" if sharding == "none" else f"checkpoints-{sharding}")


def _forget_attempt(task: StageTask[TrainTask]) -> None:
    for folder in task.out.glob("checkpoints*"):
        shutil.rmtree(folder, ignore_errors=True)
    (task.out / JOURNAL).unlink(missing_ok=True)


def _devices(task: StageTask[TrainTask]) -> int:
    """Accelerators that the ranks may use; 0 when they train on the CPU."""
    import torch

    if task.runtime.device == "cpu":
        return 0
    named = task.runtime.devices
    return len(named.split(",")) if named else torch.cuda.device_count()


def resolved(settings: ObjectiveTask) -> ResolvedObjective:
    """The objective of a stage's settings, as the plan resolved it."""
    return ResolvedObjective(**vars(settings))


def _load(task: StageTask[TrainTask]) -> Any:
    """The policy, for training: full bfloat16 runs keep float32 weights and compute in bfloat16
    (mixed precision).
    """
    lora, dtype = task.settings.training.lora, task.settings.dtype
    weights = dtype if lora else "float32"
    alone = task.runtime.processes == 1
    device = (
        task.runtime.device if alone else "cpu"
    )  # of several, the trainer places each where it belongs
    return load_policy(
        task.inputs["policy"],
        dtype=weights,
        attention=task.settings.attention,
        device=device,
        cached=False,
    )


def _whole_model(task: StageTask[TrainTask], trainer: Any) -> Any:
    """The trained model in one piece; with sharded weights gathered on the first rank (None on
    others).
    """
    if task.runtime.sharding == "none":
        return trainer.model
    state = distributed.whole_state(trainer)
    if not trainer.is_world_process_zero():
        return None
    model, lora = _load(task).model, task.settings.training.lora
    if lora:
        model = _with_lora(model, lora, seed=0)
    model.load_state_dict(state)
    return model


def training_rows(
    task: StageTask[TrainTask], tokenizer: Any, objective: ResolvedObjective
) -> list[PreferenceRow]:
    """Rows of the pairs with their stored reference log-probabilities. Raises HarnessError when any
    is missing or of another tokenisation.
    """
    training = task.settings.training
    limits = {"max_length": training.max_length, "max_prompt_length": training.max_prompt_length}
    path = task.inputs["pairs"] / "pairs.jsonl"
    rows = [encode_pair(tokenizer, Pair(**row), **limits) for row in read_jsonl(path)]
    if not rows:
        raise HarnessError(f"{path}: no pairs to train on")
    for row in rows:
        absent = next((role for role in objective.roles if role not in row.responses), None)
        if absent:
            raise HarnessError(
                f"{path}: prompt {row.prompt_id} has no {absent!r} response, which objective "
                f"{objective.name} reads"
            )
    if not objective.needs_reference:
        return rows
    return with_reference(
        rows,
        _stored_reference(task.inputs["reference"] / "reference.parquet", rows, objective.roles),
    )


def _stored_reference(
    path: Path, rows: Sequence[PreferenceRow], roles: Sequence[str]
) -> dict[tuple[int, str], float]:
    import pyarrow.parquet as pq

    table = pq.read_table(path).to_pydict()
    keys = zip(table["row"], table["role"], strict=True)
    stored = dict(
        zip(keys, zip(table["prompt_id"], table["logp"], table["tokens"], strict=True), strict=True)
    )
    found: dict[tuple[int, str], float] = {}
    for number, row in enumerate(rows):
        for role in roles:
            if (number, role) not in stored:
                raise HarnessError(
                    f"{path}: no reference log-probability for prompt {row.prompt_id}, {role}; "
                    "run the reference stage again"
                )
            prompt_id, logp, tokens = stored[number, role]
            if prompt_id != row.prompt_id or tokens != len(row.responses[role]):
                raise HarnessError(
                    f"{path}: row {number} holds prompt {prompt_id} with {tokens} tokens of "
                    f"{role}, but training reads prompt {row.prompt_id} with "
                    f"{len(row.responses[role])}; pairs, tokenizer or max_length differ from the "
                    "reference stage's"
                )
            found[number, role] = logp
    return found


def _trainer(
    task: StageTask[TrainTask], model: Any, rows: list[PreferenceRow], work: Path
) -> tuple[Any, Any]:
    from harness.train.trainer import (
        CHECKPOINTING,
        PreferenceConfig,
        PreferenceTrainer,
        without_dropout,
    )

    settings, runtime = task.settings, task.runtime
    training, objective = settings.training, settings.objective
    seed = int(content_hash("train", settings.seed, settings.iteration, length=7), 16)
    steps = math.ceil(len(rows) / training.batch_size) * training.epochs
    without_dropout(model)
    if training.lora:
        model = _with_lora(model, training.lora, seed)
    _forget_mixed_precision()
    checkpointing: dict[str, Any] = {CHECKPOINTING: training.gradient_checkpointing}
    args = PreferenceConfig(
        output_dir=str(work),
        objective=objective.name,
        alpha=objective.alpha,
        beta=objective.beta,
        placebo=objective.placebo,
        objective_params=dict(objective.given),
        global_batch_size=training.batch_size,
        per_device_train_batch_size=runtime.micro_batch or training.batch_size,
        token_budget=runtime.token_budget,
        iteration=settings.iteration,
        learning_rate=training.learning_rate,
        num_train_epochs=training.epochs,
        warmup_steps=math.ceil(training.warmup_ratio * steps),
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
    distributed.keep_precision(args)
    clock = _checkpoint_clock(runtime.checkpoint_seconds, task.out, args.world_size)
    return PreferenceTrainer(model, args, rows, callbacks=[clock]), clock


def _with_lora(model: Any, lora: LoraSettings, seed: int) -> Any:
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


def _forget_mixed_precision() -> None:
    """Accelerate keeps the first precision of a process; a worker runs stages of several."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def _save(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Write the whole model (adapters merged) in the run's precision, with its tokenizer."""
    import torch

    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.config.use_cache = (
        True  # the Trainer switches it off, and the config is saved with the model
    )
    with _without_progress_bar():
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def step_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of steps.jsonl: nine significant digits, null where nothing was measured."""
    from harness.train.step_metrics import NAMES

    def short(value: Any) -> Any:
        return float(f"{value:.9g}") if isinstance(value, float) else value

    return {name: short(entry.get(name)) for name in (*STEP_COLUMNS, *NAMES)}


def last_checkpoint(work: Path) -> str | None:
    """The newest complete mid-iteration checkpoint; torn ones (killed while being written) are
    removed.

    The Trainer writes trainer_state.json last, so a checkpoint with a readable one is whole.
    """
    complete = []
    for folder in sorted(work.glob("checkpoint-*")) if work.is_dir() else []:
        try:
            complete.append(
                (
                    int(
                        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))[
                            "global_step"
                        ]
                    ),
                    str(folder),
                )
            )
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)
    return max(complete)[1] if complete else None


def _checkpoint_clock(seconds: float, out: Path, ranks: int) -> Any:
    """Callback: a checkpoint every ``seconds``; once ``terminated`` is set, one after the step
    under way, and no further step.

    Ranks do what any of them was told, all after the same step.
    """
    from transformers import TrainerCallback

    class CheckpointClock(TrainerCallback):
        def __init__(self) -> None:
            self.last = time.monotonic()
            self.terminated = False

        def terminate(self) -> None:
            """End after the step under way and its checkpoint."""
            self.terminated = True

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step >= state.max_steps:
                return
            due = time.monotonic() - self.last >= seconds
            if ranks > 1:
                self.terminated, due = distributed.any_rank(
                    args.device, self.terminated or distributed.stop_asked(out), due
                )
            if self.terminated or due:
                control.should_save = True
                control.should_training_stop = self.terminated
                self.last = time.monotonic()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.is_world_process_zero:
                write_jsonl(
                    out / JOURNAL,
                    [{"checkpoint": f"checkpoint-{state.global_step}", "step": state.global_step}],
                )

    return CheckpointClock()
