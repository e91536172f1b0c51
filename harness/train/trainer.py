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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from trl.trainer.dpo_config import DPOConfig

from harness.model.logprobs import (
    base_model_of,
    check_draws_nothing,
    check_positions,
    enable_packed_forward,
    mixed_precision,
    sequence_logps,
)
from harness.records import HarnessError, canonical_json, content_hash
from harness.train.batching import (
    GlobalBatchSampler,
    MicroBatch,
    PreferenceRow,
    collate_for_rank,
    encode_rows,
    with_reference,
)
from harness.train.distributed import any_rank
from harness.train.objectives import ResolvedObjective, Rows, resolve

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


@dataclass
class PreferenceConfig(DPOConfig):
    """``trl.DPOConfig`` plus what exploration needs. ``beta`` is DPOConfig's; ``objective`` (with
    ``objective_params``) stands for its ``loss_type``; an option in ``UNREAD`` is an error;
    ``data_seed`` orders the rows.

    alpha: the exploration coefficient; 0 is DPO bit for bit. explore_samples: of y, that the
    exploration term is averaged over. schedule_parts: runs like this one that the schedule is over.
    global_batch_size: rows per optimiser step over all devices; 0:
    per_device_train_batch_size times gradient_accumulation_steps times devices. max_prompt_length:
    rows with a longer prompt are dropped (0: by max_length). token_budget: most tokens of one
    forward pass; 0: no limit but the rows of per_device_train_batch_size. max_log_ratio: of
    |log pi - log pi_ref|, nats per token as a mean over a step, at which a run counts as diverged.
    iteration: named in messages of diverging runs.
    """

    objective: str = "selm"
    alpha: float = 0.0
    placebo: str = "none"
    objective_params: dict[str, Any] | str | None = None
    explore_samples: int = 1
    schedule_parts: int = 1
    global_batch_size: int = 0
    max_prompt_length: int = 0
    token_budget: int = 0
    max_log_ratio: float = 20.0
    iteration: int = 0
    # Defaults of transformers that are not ours: mixed precision is asked for, trackers too.
    bf16: bool = False
    gradient_checkpointing: bool = None  # type: ignore[assignment] # the older name
    report_to: Any = "none"
    logging_steps: float = 1

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "objective_params"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.objective_params, str):
            raise ValueError(f"objective_params: {self.objective_params!r} is not a mapping")
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
        self.resolved()

    def resolved(self) -> ResolvedObjective:
        """The objective with its numbers, checked."""
        params: Any = self.objective_params
        numbers = {"alpha": self.alpha, "beta": self.beta, "params": params}
        return resolve(
            self.objective, placebo=self.placebo, samples=self.explore_samples, **numbers
        )


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
        **kwargs: Any,
    ) -> None:
        self.objective = args.resolved()
        per_device = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.global_rows = args.global_batch_size or per_device * args.world_size
        # A step's micro-batches are planned and accumulated in ``training_step``. A copy: the
        # caller's may make another trainer.
        args = copy.copy(args)
        args.gradient_accumulation_steps = 1
        if args.disable_dropout:
            without_dropout(model)
        _tell_half_weights(model)
        self.encoded = partial(
            encode_rows,
            tokenizer=processing_class,
            objective=self.objective,
            max_length=args.max_length or 0,
            max_prompt_length=args.max_prompt_length,
        )
        roles, needed = self.objective.scored, self.objective.needs_reference
        rows = self.encoded(train_dataset)
        stored = args.precompute_ref_log_probs or all(row.has_reference(roles) for row in rows)
        self.ref_model = None
        if needed and not stored:
            self.ref_model = (ref_model or copy.deepcopy(base_model_of(model))).eval()
            self.ref_model.requires_grad_(False)
            enable_packed_forward(self.ref_model)
        scorer = ref_model or model
        if eval_dataset is not None:  # first, so that a wrong row is told at once
            eval_dataset = self._prepared(eval_dataset, scorer, args)
        rows = self._prepared(rows, scorer, args)
        enable_packed_forward(model)
        check_positions(model, (row.packed(roles)[0] for row in rows))
        if args.bf16:
            round_once(model)
        super().__init__(
            model,
            args,
            train_dataset=rows,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.remove_callback(PrinterCallback)
        if self.ref_model is not None:
            self.ref_model.to(self.args.device)
        self.step_metrics = StepMetrics()
        self.batch: Mapping[str, Tensor] = {}

    def _prepared(self, dataset: Any, scorer: nn.Module, args: PreferenceConfig) -> Any:
        """Rows (by name where there are several sets), with the reference log-probabilities that
        they lack where no reference model is kept.
        """
        if isinstance(dataset, Mapping):
            return {name: self._prepared(one, scorer, args) for name, one in dataset.items()}
        rows, roles = self.encoded(dataset), self.objective.scored
        live = self.ref_model is not None or not self.objective.needs_reference
        if live or all(row.has_reference(roles) for row in rows):
            return rows
        return with_reference(scorer, rows, roles, args.token_budget or 8192, mixed=args.bf16)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, over all parts of the run that this one belongs to."""
        return super().create_scheduler(num_training_steps * self.args.schedule_parts, optimizer)

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, with FSDP that gathers weights and reduces gradients as they are
        (accelerate would round log-probabilities, the output, to bfloat16), and on CPU ranks too,
        where accelerate would silently keep whole models.
        """
        plugin = self.args.fsdp_plugin_args
        if plugin and plugin["fsdp_version"] == 2:
            policy = MixedPrecisionPolicy(cast_forward_inputs=False)
            plugin = self.args.fsdp_plugin_args = plugin | {"mixed_precision_policy": policy}
        super().create_accelerator_and_postprocess()
        if plugin and self.args.device.type == "cpu":
            state = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin)
            self.is_fsdp_enabled = True

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
        rows = self.encoded(rows or ())
        if not rows:
            raise HarnessError("nothing to evaluate: pass eval_dataset")
        scored = self.ref_model is not None or not self.objective.needs_reference
        if not scored and not all(row.has_reference(self.objective.scored) for row in rows):
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
                    total += len(rows) * self.micro_batch_loss(model, micro)
        found = {"loss": float(self.accelerator.reduce(total, "sum")) / count}
        found |= self.step_metrics.means(self.accelerator)
        self.step_metrics = training
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
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
            metrics = copy.deepcopy(self.step_metrics)
            total = self._accumulate(model, self._micro_batches(inputs, self.objective.roles))
            if total is None:
                self.step_metrics = metrics
                self._halve_token_budget(model, inputs)
        self._stop_if_diverged("loss", float(total))
        return total

    def _batch_statistic(
        self, model: nn.Module, rows: Sequence[PreferenceRow]
    ) -> dict[str, Tensor]:
        """What the objective reads of the whole global batch, the same on every rank; a mean of 0
        where a single row has no other to read.
        """
        statistic = self.objective.statistic
        if statistic is None:
            return {}
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        known = all(role in row.responses for row in rows for role in statistic.reads)
        with torch.no_grad():
            for micro in self._micro_batches(rows, statistic.reads) if known else ():
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
                    total += self._backward(self.micro_batch_loss(model, micro))
            self.accelerator.gradient_state._set_sync_gradients(True)
            loss = self.micro_batch_loss(model, last)
            if alone:
                return total + self._backward(loss)
        except torch.OutOfMemoryError as error:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise HarnessError(self._does_not_fit("a micro-batch")) from error
            short = True
        if not alone:
            (short,) = any_rank(self.args.device, short)
        return None if short else total + self._backward(loss)

    def _backward(self, loss: Tensor) -> Tensor:
        """Data-parallel engines average gradients over ranks; the loss is a share of the global
        mean.
        """
        scaled: Tensor = (loss * self.args.world_size).float()
        extra = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(scaled, **extra)
        return scaled.detach()

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
        micro = micro.to(self.args.device)
        rows = self._rows_of(model, micro)
        losses = self.objective.losses(rows)
        self.step_metrics.add(rows, micro)
        loss: Tensor = (losses * micro.weights).sum() / micro.global_rows
        return loss

    def _rows_of(self, model: nn.Module, micro: MicroBatch) -> Rows:
        precision: Any = contextlib.nullcontext()
        if self.is_fsdp_enabled and self.args.bf16:
            # Accelerate leaves autocast out for FSDP. Its cache would hold the whole model.
            kind = self.args.device.type
            precision = torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)
        with precision:
            logps = model(packed_batch=micro.batch)
        reference = micro.reference
        if self.ref_model is not None:
            base = base_model_of(self.ref_model)
            with torch.no_grad(), mixed_precision(base, self.args.bf16):
                reference = micro.by_role(sequence_logps(base, micro.batch))
        return Rows(micro.by_role(logps), reference, micro.tokens, micro.extras, self.batch)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self._stop_if_diverged("gradient norm", float(norm))
        return norm

    def _stop_if_diverged(self, what: str, value: float) -> None:
        drift, limit = self.step_metrics.drift(), self.args.max_log_ratio
        if not math.isfinite(value):
            found = f"{what} is {value}. Lower the learning rate or alpha"
        elif what == "loss" and not drift <= limit:
            found = (
                f"mean |log pi - log pi_ref| is {drift:.4g} nats per token (limit {limit:g}). "
                "Lower the learning rate or alpha, or raise beta"
            )
        else:
            return
        where = f"iteration {self.args.iteration}, step {self.state.global_step + 1}"
        raise HarnessError(f"training diverged at {where}: {found}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's preference metrics to the Trainer's own."""
        if "loss" in logs:
            logs.update(self.step_metrics.means(self.accelerator))
            self.step_metrics = StepMetrics()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Not counted here; the Trainer would look for ``input_ids``."""
        return 0

    def get_total_train_batch_size(self, args: Any) -> int:  # noqa: ARG002
        """Rows per optimiser step."""
        return self.global_rows


class StepMetrics:
    """What a step reports: sums and counts over micro-batches.

    All log-ratios r = log pi_theta - log pi_ref are in nats, summed over the response's tokens;
    without a reference, r is the log-probability itself. They stay on their device until somebody
    asks, so that a GPU is not waited for between micro-batches.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[list[str], Tensor, Tensor | None, tuple[str, ...]]] = []
        self.sums = dict.fromkeys(METRICS, 0.0)
        self.counts = dict.fromkeys(METRICS, 0)
        self.absolute = self.tokens = 0.0

    def add(self, rows: Rows, micro: MicroBatch) -> None:
        """Count one micro-batch."""
        if not micro.counts:
            return
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
        """Mean |r| in nats per token (0 without a reference)."""
        self._settle()
        return self.absolute / self.tokens if self.tokens else 0.0

    def means(self, accelerator: Any) -> dict[str, float]:
        """Means over all ranks, but for those over no row."""
        self._settle()
        both = torch.tensor(
            [[*self.sums.values()], [*self.counts.values()]],
            dtype=torch.float64,
            device=accelerator.device,
        )
        if accelerator.num_processes > 1:
            both = accelerator.reduce(both, "sum")
        found = zip(METRICS, *both.tolist(), strict=True)
        return {name: total / count for name, total, count in found if count}


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
