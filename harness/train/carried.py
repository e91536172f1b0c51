"""One optimiser and one schedule over several training stages.

Part k of K continues where part k - 1 ended: the optimiser's state (and the float32 weights of a
policy that is stored in fewer bits) is what it left, and the schedule is that of the whole run, at
step k n of K n, where n are the steps of this part. A part without a step leaves the state as it
came; its place in the schedule is passed over.
"""

from __future__ import annotations

import json
import shutil
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from harness.records import HarnessError

FILE = "carried/optimizer.safetensors"
WEIGHT = "weight."


class Carried(TrainerCallback):  # type: ignore[misc]
    """Takes up the state of the part before in ``policy`` and leaves this part's in ``out``."""

    def __init__(self, part: int, policy: Path, out: Path, whole_weights: bool) -> None:
        self.part, self.policy, self.out = part, policy, out
        self.whole_weights = whole_weights

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Continue; a part that was killed has its own checkpoint, which holds everything."""
        if self.part == 0 or state.global_step:
            return
        schedule, step = kwargs["lr_scheduler"], self.part * state.max_steps
        # A LambdaLR, as all of the recipe's are, put at a step of the whole run.
        factors = [factor(step) for factor in schedule.lr_lambdas]
        rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
        schedule.load_state_dict(schedule.state_dict() | {"last_epoch": step, "_last_lr": rates})
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        tensors, numbers = _read(self.policy / FILE)
        for name, parameter in kwargs["model"].named_parameters():
            if WEIGHT + name in tensors:
                parameter.data.copy_(tensors.pop(WEIGHT + name))
        optimizer = kwargs["optimizer"]
        loaded: dict[int, dict[str, Any]] = {}
        for key, value in {**tensors, **numbers}.items():
            index, _, name = key.partition(".")
            loaded.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": loaded})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave the state for the next part."""
        if not state.is_world_process_zero or state.global_step < state.max_steps:
            return
        tensors, numbers = _state_of(kwargs["optimizer"])
        if self.whole_weights:
            named = kwargs["model"].named_parameters()
            tensors |= {WEIGHT + name: parameter.detach() for name, parameter in named}
        (self.out / FILE).parent.mkdir(exist_ok=True)
        metadata = {"numbers": json.dumps(numbers, sort_keys=True)}
        # Copies: parameters share tables of quantisation, which the format does not allow.
        kept = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(kept, self.out / FILE, metadata=metadata)


def pass_on(policy: Path | None, out: Path) -> None:
    """Leave in ``out`` the state that ``policy`` brings; that of before the first step without one.
    Raises HarnessError where it brings none.
    """
    (out / FILE).parent.mkdir(exist_ok=True)
    if policy is None:
        save_file({}, out / FILE, metadata={"numbers": "{}"})
        return
    _read(policy / FILE)
    shutil.copyfile(policy / FILE, out / FILE)


def _state_of(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """``<parameter's number>.<name>`` → the state's tensors, and its plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        # Bitsandbytes keeps its quantised entries a level deeper.
        deeper: list[Any] = [one for one in entries.values() if isinstance(one, Mapping)]
        for name, value in ChainMap(entries, *deeper).items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif value is not None and not isinstance(value, Mapping):
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    if not path.is_file():
        raise HarnessError(
            f"{path}: the optimiser's state that this iteration continues with is not there; "
            "`selm invalidate` the training stage before it, and run the study again"
        )
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["numbers"])
