"""Optimisers of transformers' Trainer: what each needs installed and keeps in memory.

The names are those of ``transformers.OptimizerNames``, written here because that class loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from harness.records import HarnessError


@dataclass(frozen=True)
class Optimizer:
    """state: bytes kept per trained parameter. package: to install, and module: to import, empty
    where torch and transformers suffice. paged: moves state between a GPU and main memory. refused:
    why it cannot be used here; empty: it can.
    """

    state: float = 8
    package: str = ""
    module: str = ""
    refused: str = ""
    paged: bool = False


def _bnb(state: float, paged: bool = False) -> Optimizer:
    return Optimizer(state, "bitsandbytes", "bitsandbytes", paged=paged)


REFUSED = {
    "it wants target modules and a rank, which no key gives": (
        *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
        *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
        *("apollo_adamw", "apollo_adamw_layerwise"),
    ),
    "it steps within the backward pass, where micro-batches are still to come": ("lomo", "adalomo"),
    "its weights are an average that is not what would be saved": (
        *("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"),
    ),
}
"""Why → what cannot be used here."""
OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw_torch": Optimizer(),
    "adamw_torch_fused": Optimizer(),
    "adamw_torch_xla": Optimizer(package="torch_xla", module="torch_xla"),
    "adamw_torch_npu_fused": Optimizer(package="torch_npu", module="torch_npu"),
    "adafactor": Optimizer(0),  # row and column sums of each matrix
    "adamw_anyprecision": Optimizer(10, "torchdistx", "torchdistx"),
    "adamw_torch_4bit": Optimizer(1, "torchao", "torchao"),
    "adamw_torch_8bit": Optimizer(2, "torchao", "torchao"),
    "ademamix": _bnb(12),
    "sgd": Optimizer(0),  # without momentum
    "adagrad": Optimizer(4),
    "adamw_bnb_8bit": _bnb(2),
    "adamw_8bit": _bnb(2),
    "ademamix_8bit": _bnb(3),
    "lion_8bit": _bnb(1),
    "lion_32bit": _bnb(4),
    "paged_adamw_32bit": _bnb(8, paged=True),
    "paged_adamw_8bit": _bnb(2, paged=True),
    "paged_ademamix_32bit": _bnb(12, paged=True),
    "paged_ademamix_8bit": _bnb(3, paged=True),
    "paged_lion_32bit": _bnb(4, paged=True),
    "paged_lion_8bit": _bnb(1, paged=True),
    "rmsprop": Optimizer(4),
    "rmsprop_bnb": _bnb(4),
    "rmsprop_bnb_8bit": _bnb(1),
    "rmsprop_bnb_32bit": _bnb(4),
    "grokadamw": Optimizer(12, "grokadamw", "grokadamw"),
    "stable_adamw": Optimizer(8, "torch-optimi", "optimi"),
    **{name: Optimizer(refused=why) for why, names in REFUSED.items() for name in names},
}

UNPAGED = {name: name.removeprefix("paged_") for name, one in OPTIMIZERS.items() if one.paged}
"""What takes the same steps with all its state on one device."""
UNPAGED["paged_adamw_32bit"] = "adamw_torch"
UNPAGED["paged_ademamix_32bit"] = "ademamix"


def known(name: str) -> str:
    """The name. Raises ValueError, with what is allowed, for one that is unknown or refused."""
    if name not in OPTIMIZERS:
        allowed = ", ".join(key for key, one in OPTIMIZERS.items() if not one.refused)
        raise ValueError(f"no optimiser of transformers' Trainer; allowed: {allowed}")
    if OPTIMIZERS[name].refused:
        raise ValueError(f"cannot be used here: {OPTIMIZERS[name].refused}")
    return name


def check_usable(name: str, devices: int) -> None:
    """Raise HarnessError where its package or one of the ``devices`` (0: a CPU) is missing."""
    one = OPTIMIZERS[name]
    if one.paged and not devices:
        raise HarnessError(
            f"training.optimizer {name} moves its state between a GPU and main memory, and a CPU "
            f"trains here, where that is one: set training.optimizer: {UNPAGED[name]}, which takes "
            "the same steps"
        )
    if one.module:
        instead = "training.optimizer: adamw_torch"
        check_package(f"training.optimizer {name}", one.package, instead, one.module)


def check_package(setting: str, package: str, instead: str, module: str = "") -> None:
    """Raise HarnessError where the package that a setting needs is missing. module: what is
    imported, where it is not called as the package.
    """
    if find_spec(module or package) is None:
        raise HarnessError(
            f"{setting} needs the package {package}, which is not installed: "
            f"`pip install {package}`, or set {instead}"
        )
