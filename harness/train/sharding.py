"""What a trainer needs when its ranks divide a model (FSDP2, DeepSpeed), and how they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from harness.model.logprobs import base_model_of, output_head, plain_head
from harness.records import HarnessError

DEEPSPEED = Path(__file__).parent / "deepspeed_zero3.json"
"""DeepSpeed's configuration; ``auto`` entries follow the training arguments. Unmeasured: no machine
with DeepSpeed ran it.
"""


def sharding_arguments(model: Any, sharding: str) -> dict[str, Any]:
    """Training arguments for a way of sharding; none for whole models (then data-parallel when
    there are several ranks).
    """
    if sharding == "none":
        return {}
    base = base_model_of(model)
    name = f"runtime.sharding {sharding}: {type(base).__name__}"
    # Called a chunk at a time, another head would be gathered more often on one rank than another.
    if not plain_head(output_head(base)):
        raise HarnessError(
            f"{name} has a head that is scaled, capped or adapted by LoRA, which cannot be "
            "sharded here; set runtime.sharding: none"
        )
    if sharding == "deepspeed_zero3":
        return {"deepspeed": str(DEEPSPEED)}
    layers = sorted(base._no_split_modules or [])
    if not layers:
        raise HarnessError(
            f"{name} does not say which of its layers stay whole (_no_split_modules); set "
            "runtime.sharding: none"
        )
    how = {
        "version": 2,
        "transformer_layer_cls_to_wrap": layers,
        "state_dict_type": "SHARDED_STATE_DICT",
        "reshard_after_forward": True,
    }
    return {"fsdp": True, "fsdp_config": how}


def keep_precision(args: Any) -> None:
    """Let FSDP gather weights and reduce gradients as they are: accelerate would round
    log-probabilities (the output) to bfloat16.
    """
    if getattr(args, "fsdp_plugin_args", None):
        args.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            cast_forward_inputs=False
        )


def shard_on_cpu(trainer: Any) -> None:
    """Switch FSDP on for CPU ranks: accelerate knows it for accelerators only and would silently
    keep whole models.
    """
    if trainer.args.fsdp_plugin_args is None or trainer.args.device.type != "cpu":
        return
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    trainer.is_fsdp_enabled = True


def whole_state(trainer: Any) -> dict[str, Any]:
    """The divided model's weights by name, whole, on the first rank's CPU; empty on the others. All
    ranks call it.

    Raises HarnessError when the trainer did not divide the model: what was asked for is never
    silently left out.
    """
    if trainer.is_deepspeed_enabled:
        gathered: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return gathered
    if not all(isinstance(p, DTensor) for p in trainer.model.parameters()):
        raise HarnessError(
            "runtime.sharding was set, but the installed accelerate and transformers did not "
            "shard the model; set it to none"
        )
    found = {}
    for name, value in trainer.model.state_dict().items():
        # One weight at a time: no device holds the whole model.
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if trainer.is_world_process_zero():
            found[name] = whole.cpu()
    return found


def any_rank(device: Any, *flags: bool) -> list[bool]:
    """Each flag, true on every rank when it is true on any."""
    told = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in told.tolist()]
