"""PreferenceTrainer: preference optimisation with any objective of ``OBJECTIVES`` on
``transformers.Trainer``.

Usable alone: give it a model, rows and a ``PreferenceConfig`` (a ``trl.DPOConfig`` with the
exploration settings), call ``train()``. Optimiser, schedule, mixed precision, checkpoints,
DeepSpeed and FSDP are the Trainer's; the batches (planned as global batches), the log-probabilities
(shared prompt, no padding, no full logits) and the loss are ours.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from trl.trainer.dpo_config import DPOConfig

from harness.data.files import Row
from harness.data.rows import NotAPairError, prompt_of, response_of
from harness.model.chat import PromptTooLongError, check_rows
from harness.model.logprobs import (
    base_model_of,
    check_draws_nothing,
    check_positions,
    enable_packed_forward,
    mixed_precision,
    sequence_logps,
)
from harness.records import HarnessError, Pair, canonical_json, content_hash
from harness.train.batching import (
    GlobalBatchSampler,
    MicroBatch,
    PreferenceRow,
    collate_for_rank,
    encode_pair,
    with_others,
    with_reference,
)
from harness.train.objectives import OBJECTIVES, ResolvedObjective, Rows, resolve
from harness.train.sharding import any_rank, shard_on_cpu

logger = logging.getLogger(__name__)

CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(DPOConfig, "activation_checkpointing")
    else "gradient_checkpointing"
)
"""What TrainingArguments calls recomputing activations: the second name until transformers 5.17 at
least.
"""
RUN_FILE = "preference_run.json"
"""Beside a checkpoint's own files: which rows, batch and objective its steps were taken with."""
ROLE_OF_Y = {"winner": "chosen", "loser": "rejected", "middle": "explore"}
"""What y became in its pair → the response that it then is."""
AVERAGE = "batch_average"
"""Where the trainer's state keeps the moving average of an objective's statistic."""
UNREAD = (
    *("loss_type", "loss_weights", "label_smoothing", "f_divergence_type", "ld_alpha"),
    *("use_weighting", "sync_ref_model", "router_aux_loss_coef", "label_smoothing_factor"),
    *("truncation_mode", "dataloader_drop_last", "neftune_noise_alpha"),
)
"""Options of ``DPOConfig`` that would change numbers and that this trainer does not read."""
RATIOS = ("rhat_chosen", "rhat_rejected", "rhat_explore")
METRICS = ("margin", "accuracy", *RATIOS, *(f"rhat_y_{role}" for role in ROLE_OF_Y))


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class PreferenceConfig(DPOConfig):
    """``trl.DPOConfig`` plus what exploration needs. ``beta`` is DPOConfig's; ``objective`` stands
    for its ``loss_type``; an option in ``UNREAD`` is an error; ``data_seed`` orders the rows.

    global_batch_size 0: per_device_train_batch_size times gradient_accumulation_steps times
    devices. token_budget 0: no limit but the rows of per_device_train_batch_size. max_log_ratio: of
    |log pi - log pi_ref|, as a mean over a step.
    """

    objective: str = _option("selm", "Name in harness.train.objectives.OBJECTIVES.")
    alpha: float = _option(0.0, "Exploration coefficient; 0 is DPO bit for bit.")
    placebo: str = _option("none", "none, negative or other_prompt.")
    objective_params: dict[str, Any] | str | None = _option(None, "The objective's parameters.")  # noqa: RUF009 - a field
    explore_samples: int = _option(1, "Samples of y that the exploration term is averaged over.")
    schedule_parts: int = _option(1, "Runs like this one that the schedule is over.")
    global_batch_size: int = _option(0, "Rows per optimiser step over all devices.")
    max_prompt_length: int = _option(0, "Rows with a longer prompt are dropped (0: by max_length).")
    token_budget: int = _option(0, "Most tokens of one forward pass.")
    max_log_ratio: float = _option(20.0, "Nats per token at which a run counts as diverged.")
    iteration: int = _option(0, "Named in messages of diverging runs.")
    # Defaults of transformers that are not ours: mixed precision is asked for, trackers too.
    bf16: bool = _option(False, "bfloat16 mixed precision.")
    gradient_checkpointing: bool = _option(None, "Recompute activations (older name).")
    report_to: Any = _option("none", "Trackers of transformers.")  # noqa: RUF009 - a field
    logging_steps: float = _option(1, "Steps between two logs.")

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "objective_params"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.objective_params, str):
            raise ValueError(f"objective_params: {self.objective_params!r} is not a mapping")
        self._refuse_unread()
        self.resolved()

    def _refuse_unread(self) -> None:
        given = []
        for option in dataclasses.fields(DPOConfig):
            made = option.default_factory
            default = option.default if made is dataclasses.MISSING else made()
            if option.name in UNREAD and getattr(self, option.name) != default:
                given.append(option.name)
        if self.train_sampling_strategy not in ("random", "sequential"):
            given.append("train_sampling_strategy")
        if given:
            raise HarnessError(
                f"{given[0]}: {getattr(self, given[0])!r} is not read by this trainer; leave it "
                "out (the loss is what objective and objective_params say)"
            )

    def resolved(self) -> ResolvedObjective:
        """The objective with its numbers, checked."""
        params: Any = self.objective_params
        numbers = {"alpha": self.alpha, "beta": self.beta, "params": params}
        return resolve(
            self.objective, placebo=self.placebo, samples=self.explore_samples, **numbers
        )

    def rows_per_step(self) -> int:
        """Rows of one global batch."""
        per_device = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return self.global_batch_size or per_device * self.world_size


class PreferenceTrainer(Trainer):
    """Trains a causal language model on preference rows.

    train_dataset: ``PreferenceRow``s, or mappings in any form that `harness.data.rows` reads, with
    (for exploration) explore; a row that is no pair is an error. eval_dataset: the same, or a
    mapping of them; ``evaluate`` reports its loss and the metrics of a step. ref_model: scores rows
    that carry no reference log-probabilities; None takes a frozen copy of the model at the start
    (or, with ``precompute_ref_log_probs``, scores all rows once and keeps no copy).
    """

    loss_is_scaled_for_ga = True
    args: PreferenceConfig
    objective: ResolvedObjective
    train_dataset: Any
    eval_dataset: Any
    state: Any

    def __init__(
        self,
        model: nn.Module,
        args: PreferenceConfig,
        train_dataset: Sequence[Any],
        eval_dataset: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
        *,
        processing_class: Any = None,
        ref_model: nn.Module | None = None,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective = args.resolved()
        self.global_rows = args.rows_per_step()
        # A step's micro-batches are planned and accumulated in ``training_step``. A copy: the
        # caller's may make another trainer.
        args = copy.copy(args)
        args.gradient_accumulation_steps = 1
        if args.disable_dropout:
            without_dropout(model)
        _tell_half_weights(model)
        rows = _as_rows(train_dataset, processing_class, args)
        evaluated = _each(eval_dataset, lambda given: _as_rows(given, processing_class, args))
        self.ref_model = None
        if self.objective.needs_reference:
            roles = self.objective.scored
            rows, self.ref_model = _references(model, rows, ref_model, roles, args)
            if self.ref_model is None:
                scored = ref_model or model
                evaluated = _each(evaluated, lambda given: _scored(scored, given, roles, args))
        enable_packed_forward(model)
        check_positions(model, (row.packed(self.objective.scored)[0] for row in rows))
        if args.bf16:
            round_once(model)
        super().__init__(
            model,
            args,
            train_dataset=rows,
            eval_dataset=evaluated,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self.remove_callback(PrinterCallback)
        if self.ref_model is not None:
            self.ref_model.to(self.args.device)
        self.parameter_count = sum(p.numel() for p in model.parameters())
        self.step_metrics = StepMetrics()
        self._tokens = 0
        self.batch: Mapping[str, Tensor] = {}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, over all parts of the run that this one belongs to."""
        return super().create_scheduler(num_training_steps * self.args.schedule_parts, optimizer)

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, and FSDP on CPU ranks too."""
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item per optimiser step: the rows of its global batch, the same on every rank."""
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        shuffle = args.train_sampling_strategy != "sequential"
        return _StepLoader(self.train_dataset, self.global_rows, seed, shuffle)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """One item per batch of rows, in order, the same on every rank."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = self.eval_dataset[rows]
        rows = _as_rows(rows or (), self.processing_class, self.args)
        if not rows:
            raise HarnessError("nothing to evaluate: pass eval_dataset")
        live = self.ref_model is not None or not self.objective.needs_reference
        if not live and not _have_reference(rows, self.objective.scored):
            raise HarnessError(
                "rows to evaluate have no reference log-probabilities, and the trainer keeps no "
                "reference model: pass them as eval_dataset when the trainer is made"
            )
        size = self.args.per_device_eval_batch_size * self.args.world_size
        return _StepLoader(rows, size, seed=0, shuffle=False)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,  # noqa: ARG002 - the Trainer passes these
        prediction_loss_only: bool | None = None,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over the rows, and the metrics of a training step over them."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        model: Any = self.model_wrapped if sharded else self.model
        model.eval()
        training, self.step_metrics = self.step_metrics, StepMetrics()
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        count = 0
        with torch.no_grad():
            for rows in dataloader:
                count += len(rows)
                self.batch = self._batch_statistic(model, rows)
                for micro in self._micro_batches(rows, self.objective.roles):
                    total += len(rows) * self.micro_batch_loss(model, micro.to(self.args.device))
        found = {"loss": float(self.accelerator.reduce(total, "sum")) / count}
        found |= self.step_metrics.drain(self.accelerator)
        self.step_metrics = training
        known = {name: value for name, value in found.items() if value is not None}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in known.items()}
        return EvalLoopOutput(None, None, metrics, count)  # type: ignore[arg-type]

    @cached_property
    def run_of(self) -> dict[str, str]:
        """What a checkpoint can only be resumed with, each as a hash."""
        what = {
            "rows": [vars(row) for row in self.train_dataset],
            "rows per step": self.global_rows,
            "objective": vars(self.objective),
        }
        return {name: content_hash(value, length=16) for name, value in what.items()}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            file = Path(self._get_output_dir(trial)) / folder / RUN_FILE
            file.write_text(canonical_json(self.run_of), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        file = Path(resume_from_checkpoint) / RUN_FILE
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        changed = [name for name, value in self.run_of.items() if before.get(name, value) != value]
        if changed:
            logger.warning(
                "%s was made with other %s: the steps it counts were taken of another run",
                resume_from_checkpoint,
                " and ".join(changed),
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def training_step(
        self,
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the Trainer passes it
    ) -> Tensor:
        """Forward and backward of this rank's micro-batches of one global batch (its rows).

        Where a device runs out of memory, the token budget is halved on every rank and the batch is
        computed again: its gradient does not depend on how it is cut.
        """
        model.train()
        self.batch = self._batch_statistic(model, inputs)
        if self.batch:  # in the state, so that a resumed run goes on from it
            self.state.stateful_callbacks[AVERAGE] = float(self.batch["average"])
        total: Tensor | None = None
        while total is None:
            micro_batches = self._micro_batches(inputs, self.objective.roles)
            metrics = copy.deepcopy(self.step_metrics)
            total = self._accumulate(model, micro_batches)
            if total is None:
                self.step_metrics = metrics
                self._halve_token_budget(model, inputs)
        self._tokens = sum(micro.batch.tokens for micro in micro_batches)
        self._stop_if_diverged("loss", float(total))
        return total

    def _batch_statistic(
        self, model: nn.Module, rows: Sequence[PreferenceRow]
    ) -> dict[str, Tensor]:
        """What the objective reads of the whole global batch, the same on every rank."""
        statistic = self.objective.statistic
        if statistic is None:
            return {}
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for micro in self._micro_batches(rows, statistic.reads):
                here = micro.to(self.args.device)
                total += (statistic.of(self._rows_of(model, here)) * here.weights).sum()
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        mean = total / len(rows)
        before = statistic.memory * self.state.stateful_callbacks.get(AVERAGE, 0.0)
        return {"mean": mean, "average": before + (1 - statistic.memory) * mean}

    def _micro_batches(
        self, rows: Sequence[PreferenceRow], roles: Sequence[str]
    ) -> list[MicroBatch]:
        args = self.args
        return collate_for_rank(
            rows,
            roles,
            token_budget=args.token_budget,
            micro_batch=args.per_device_train_batch_size,
            ranks=args.world_size,
            rank=args.process_index,
        )

    def _accumulate(self, model: nn.Module, micro_batches: Sequence[MicroBatch]) -> Tensor | None:
        """Sum of the losses with their gradients, or None where any rank ran out of memory.

        Ranks agree before the last backward pass, in which their gradients meet. Shards meet in
        every pass: there a rank without memory ends the run, with advice.
        """
        *early, last = micro_batches
        alone = self.args.world_size == 1
        total = torch.zeros((), device=self.args.device)
        loss = total
        short = False
        try:
            for micro in early:
                self.accelerator.gradient_state._set_sync_gradients(False)
                # Sharded gradients are reduced after every micro-batch: to wait, each rank would
                # hold the whole model's.
                waiting = contextlib.nullcontext()
                if not self.is_fsdp_enabled:
                    waiting = self.accelerator.no_sync(model)
                with waiting:
                    total += self._backward(self._scaled_loss(model, micro))
            self.accelerator.gradient_state._set_sync_gradients(True)
            loss = self._scaled_loss(model, last)
            if alone:
                return total + self._backward(loss)
        except torch.OutOfMemoryError as error:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise HarnessError(self._does_not_fit("a micro-batch")) from error
            short = True
        if not alone:
            (short,) = any_rank(self.args.device, short)
        return None if short else total + self._backward(loss)

    def _scaled_loss(self, model: nn.Module, micro: MicroBatch) -> Tensor:
        """Data-parallel engines average gradients over ranks; the loss is a share of the global
        mean.
        """
        loss = self.micro_batch_loss(model, micro.to(self.args.device))
        scaled: Tensor = loss * self.args.world_size
        return scaled.float()

    def _backward(self, loss: Tensor) -> Tensor:
        extra = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(loss, **extra)
        return loss.detach()

    def _halve_token_budget(self, model: nn.Module, rows: Sequence[PreferenceRow]) -> None:
        """Raises HarnessError when the longest row alone does not fit."""
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        sizes = [row.packed(self.objective.roles)[0].tokens for row in rows]
        held = self.args.token_budget or sum(sizes)
        if held <= max(sizes):
            raise HarnessError(self._does_not_fit(f"one row of {max(sizes):,} tokens"))
        self.args.token_budget = max(max(sizes), min(held, sum(sizes)) // 2)
        logger.warning("out of memory: token budget is now %d tokens", self.args.token_budget)

    def _does_not_fit(self, what: str) -> str:
        return (
            f"training does not fit: {what} ran out of the device's memory at iteration "
            f"{self.args.iteration}, step {self.state.global_step + 1}. Try gradient "
            "checkpointing, training.lora, runtime.sharding: fsdp over several "
            "runtime.processes, or a shorter training.max_length"
        )

    def micro_batch_loss(self, model: nn.Module, micro: MicroBatch) -> Tensor:
        """Sum of the micro-batch's row losses over the rows of the global batch, float64 scalar."""
        rows = self._rows_of(model, micro)
        losses = self.objective.losses(rows)
        self.step_metrics.add(rows, micro)
        loss: Tensor = (losses * micro.weights).sum() / micro.global_rows
        return loss

    def _rows_of(self, model: nn.Module, micro: MicroBatch) -> Rows:
        with self._sharded_precision():
            logps = model(packed_batch=micro.batch)
        reference = micro.reference
        if self.ref_model is not None:
            base = base_model_of(self.ref_model)
            with torch.no_grad(), mixed_precision(base, self.args.bf16):
                reference = micro.by_role(sequence_logps(base, micro.batch))
        return Rows(micro.by_role(logps), reference, micro.tokens, micro.extras, self.batch)

    def _sharded_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast for FSDP, which accelerate leaves out there: the same arithmetic as on one
        device. Its cache would hold the whole model.
        """
        if not (self.is_fsdp_enabled and self.args.bf16):
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16, cache_enabled=False)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self._stop_if_diverged("gradient norm", float(norm))
        return norm

    def _stop_if_diverged(self, what: str, value: float) -> None:
        drift, limit = self.step_metrics.drift(), self.args.max_log_ratio
        found = ""
        if not math.isfinite(value):
            found = f"{what} is {value}. Lower the learning rate or alpha"
        elif what == "loss" and not drift <= limit:
            found = (
                f"mean |log pi - log pi_ref| is {drift:.4g} nats per token (limit {limit:g}). "
                "Lower the learning rate or alpha, or raise beta"
            )
        if found:
            where = f"iteration {self.args.iteration}, step {self.state.global_step + 1}"
            raise HarnessError(f"training diverged at {where}: {found}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's preference metrics to the Trainer's own."""
        if "loss" in logs:
            found = self.step_metrics.drain(self.accelerator)
            logs.update({name: value for name, value in found.items() if value is not None})
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """6 FLOPs per parameter and token (forward and backward), unique tokens only."""
        return 6 * self._tokens * self.parameter_count

    def get_total_train_batch_size(self, args: Any) -> int:  # noqa: ARG002
        """Rows per optimiser step."""
        return self.global_rows


class StepMetrics:
    """What a step reports: sums and counts over micro-batches, drained once per logged step.

    All log-ratios r = log pi_theta - log pi_ref are in nats, summed over the response's tokens. A
    mean over no rows is None. Log-ratios stay on their device until somebody asks, so that a GPU is
    not waited for between micro-batches.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.waiting: list[tuple[list[str], Tensor, Tensor | None, tuple[str, ...]]] = []
        self.sums = dict.fromkeys(METRICS, 0.0)
        self.counts = dict.fromkeys(METRICS, 0.0)
        self.absolute = 0.0
        self.tokens = 0.0

    def add(self, rows: Rows, micro: MicroBatch) -> None:
        """Count one micro-batch. Without a reference, r is the log-probability itself."""
        if not micro.counts:
            return
        with torch.no_grad():
            names = list(rows.logps)
            ratios = torch.stack(
                [rows.ratio(role) if role in rows.reference else rows.logps[role] for role in names]
            ).detach()
            lengths = torch.stack([rows.tokens[role] for role in names]) if rows.reference else None
        self.waiting.append((names, ratios, lengths, micro.y_roles))

    def _settle(self) -> None:
        """Count what waits."""
        waiting, self.waiting = self.waiting, []
        for names, ratios, lengths, y_roles in waiting:
            if lengths is not None:
                self.absolute += float(ratios.abs().sum())
                self.tokens += float(lengths.sum())
            table = dict(zip(names, ratios.tolist(), strict=True))
            pairs = list(zip(table["chosen"], table["rejected"], strict=True))
            self._count("margin", [chosen - rejected for chosen, rejected in pairs])
            self._count("accuracy", [float(chosen > rejected) for chosen, rejected in pairs])
            for role, values in table.items():
                self._count(f"rhat_{role.partition('_')[0]}", values)
            for role, source in ROLE_OF_Y.items():
                own = zip(table.get(source, ()), y_roles, strict=False)
                self._count(f"rhat_y_{role}", [value for value, is_ in own if is_ == role])

    def _count(self, name: str, values: list[float]) -> None:
        self.sums[name] += sum(values)
        self.counts[name] += len(values)

    def drift(self) -> float:
        """Mean |r| in nats per token since the last drain (0 without a reference)."""
        self._settle()
        return self.absolute / self.tokens if self.tokens else 0.0

    def drain(self, accelerator: Any = None) -> dict[str, Any]:
        """Means since the last drain over all ranks, then start again."""
        self._settle()
        flat = [*self.sums.values(), *self.counts.values()]
        if accelerator is not None and accelerator.num_processes > 1:
            flat = accelerator.reduce(
                torch.tensor(flat, dtype=torch.float64, device=accelerator.device), "sum"
            ).tolist()
        self._reset()
        sums, counts = flat[: len(METRICS)], flat[len(METRICS) :]
        return {
            name: total / count if count else None
            for name, total, count in zip(METRICS, sums, counts, strict=True)
        }


class _StepLoader(DataLoader[Any]):
    """A plain DataLoader of global batches whose sampler draws a new order each epoch."""

    def __init__(self, rows: Any, size: int, seed: int, shuffle: bool) -> None:
        sampler: Any = GlobalBatchSampler(len(rows), size, seed, shuffle)
        super().__init__(rows, batch_sampler=sampler, collate_fn=list)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def without_dropout(model: nn.Module) -> None:
    """Switch off every dropout and a router's jitter: policy and reference then compute the same
    function.

    Raises HarnessError for a model that draws at random in training all the same.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                vars(module)[name] = 0.0
    check_draws_nothing(model)


def round_once(model: nn.Module) -> None:
    """Leave the rounding of adapters' inputs to autocast; peft would copy each to float32 first."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            vars(module)["cast_input_dtype_enabled"] = False


def _tell_half_weights(model: nn.Module) -> None:
    trained = (p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point())
    half = next((dtype for dtype in trained if dtype.itemsize < 4), None)
    if half:
        logger.warning(
            "weights in training are %s, which rounds small steps away; load the model in float32 "
            "(bf16=True computes in bfloat16 all the same)",
            str(half).removeprefix("torch."),
        )


def _each(datasets: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of a dataset, or of each of several by name; None where there is none."""
    if isinstance(datasets, Mapping):
        return {name: change(one) for name, one in datasets.items()}
    return None if datasets is None else change(datasets)


def _as_rows(dataset: Sequence[Any], tokenizer: Any, args: PreferenceConfig) -> list[PreferenceRow]:
    """Rows of tokens from rows of text or tokens. Rows whose prompt is over the limit or leaves no
    room for an answer, and pairs that are equal after cutting, are dropped and told.
    """
    limits = [args.max_prompt_length, (args.max_length or 0) - 1]
    limit = min((one for one in limits if one > 0), default=0)
    rows: list[PreferenceRow] = []
    dropped: dict[str, list[str]] = {}
    for number, item in enumerate(dataset):
        if isinstance(item, PreferenceRow):
            rows.append(item)
            continue
        if tokenizer is None:
            raise HarnessError(f"row {number} is text; pass processing_class (the tokenizer)")
        pair = _pair(item, f"row {number}")
        check_rows(tokenizer, [(f"row {number}", pair.messages, (pair.chosen, pair.rejected))])
        most, why = args.max_length or 0, ""
        try:
            row = encode_pair(tokenizer, pair, max_length=most, max_prompt_length=limit)
        except PromptTooLongError:
            why = f"have prompts over {limit} tokens"
        else:
            if row.responses["chosen"] == row.responses["rejected"]:
                why = f"have answers that are equal when cut to max_length {most}"
        if why:
            dropped.setdefault(why, []).append(str(number))
        else:
            rows.append(row)
    total = len(rows) + sum(map(len, dropped.values()))
    for why, numbers in dropped.items():
        told = f"{len(numbers)} of {total} rows {why}"
        if not rows:
            raise HarnessError(f"{told}, and none is left; raise max_prompt_length or max_length")
        logger.warning("%s and are dropped (rows %s)", told, ", ".join(numbers[:3]))
    needed = set(args.resolved().roles)
    for row in rows:
        if needed - set(row.responses):
            raise HarnessError(
                f"row {row.prompt_id}: objective {args.objective} with alpha {args.alpha} reads y, "
                "but the row has no 'explore' response"
            )
        if OBJECTIVES[args.objective].counts and args.resolved().c and not row.extras:
            raise HarnessError(
                f"row {row.prompt_id}: objective {args.objective} reads how rarely y was met: give "
                "a PreferenceRow with extras {'explore': √mean f²}, as the stage count writes it"
            )
    return with_others(rows, args.resolved().scored, args.max_length or 0)


def _pair(item: Mapping[str, Any], place: str) -> Pair:
    """A row of text, read as the data stage reads it; here every row must be a pair."""
    try:
        prompt = prompt_of(Row(item, place))
        explore = response_of(Row(item, place), "explore", prompt.messages)
    except NotAPairError as reason:
        raise HarnessError(f"{place}: {reason}; leave it out of the dataset") from reason
    role: Any = "middle" if explore else "absent"
    texts = (prompt.chosen, prompt.rejected, explore)
    return Pair(prompt.id, prompt.messages, *texts, y_role=role)


def _have_reference(rows: Sequence[PreferenceRow], roles: Sequence[str]) -> bool:
    return all(role in row.reference for row in rows for role in roles)


def _scored(
    model: nn.Module, rows: list[PreferenceRow], roles: Sequence[str], args: PreferenceConfig
) -> list[PreferenceRow]:
    """The rows with log-probabilities under ``model``, unless they have them."""
    if _have_reference(rows, roles):
        return rows
    budget = args.token_budget or 8192
    return with_reference(model, rows, roles, budget, mixed=args.bf16)


def _references(
    model: nn.Module,
    rows: list[PreferenceRow],
    ref_model: nn.Module | None,
    roles: Sequence[str],
    args: PreferenceConfig,
) -> tuple[list[PreferenceRow], nn.Module | None]:
    """Rows with reference log-probabilities, or the model that computes them live."""
    if args.precompute_ref_log_probs or _have_reference(rows, roles):
        return _scored(ref_model or model, rows, roles, args), None
    frozen = ref_model or copy.deepcopy(base_model_of(model))
    frozen.requires_grad_(False)
    enable_packed_forward(frozen)
    return rows, frozen.eval()
