"""How long stages take: what a store has measured, and for the pocket world without measurements
constants and a calibration.

The pocket constants are seconds on one reference core: ``fixed + each × units`` for a stage,
start-up of the libraries once a worker, and the report at the end. A machine is compared with that
core by the time it takes for one tiny training step.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.engine.plan import Node
from harness.engine.store import Store
from harness.records import HarnessError, StageRecord


@dataclass(frozen=True)
class Rate:
    """Seconds of one stage on the reference core: fixed + each × units (operations, or rows for
    stages without).
    """

    fixed: float
    each: float

    def seconds(self, units: float) -> float:
        return self.fixed + self.each * units


REFERENCE = "one core of an AMD EPYC server of 2020, torch 2.13"
REFERENCE_STEP_S = 0.010
"""``tiny_step_seconds`` there."""

POCKET: Mapping[str, Rate] = {
    "data.pocket": Rate(0.1, 9e-5),
    "base.pocket": Rate(1.2, 1.8e-11),
    "benchmarks.pocket": Rate(1.2, 0),
    "rollout": Rate(0.1, 4.7e-11),
    "rank": Rate(0.01, 1.5e-5),
    "pairs.merge": Rate(0.01, 0),
    "reference": Rate(0.07, 5.2e-11),
    "train": Rate(0.36, 3.5e-11),
    "answer": Rate(0.08, 3.9e-11),
    "judge.mt_bench": Rate(0.01, 9e-4),
    "judge.alpaca_eval": Rate(0.13, 1.1e-3),
    "judge.pairwise": Rate(0.13, 1.1e-3),
    "judge.mt_bench_pairwise": Rate(0.02, 9e-4),
    "academic": Rate(0.32, 3.2e-12),
    "heldout": Rate(0.002, 1.7e-5),
    "diagnostics": Rate(0.17, 3.1e-11),
}
"""Measured over the α study and the smoke study, start-up left out."""


@dataclass(frozen=True)
class StartUp:
    """Seconds on the reference core for what a worker imports and prepares before its first stage
    of these names.
    """

    what: str
    seconds: float
    stages: frozenset[str]


START_UP = (
    StartUp("data tools", 1.0, frozenset({"data.pocket", "benchmarks.pocket"})),
    StartUp(
        "torch, transformers and TRL",
        3.0,
        frozenset(
            {"base.pocket", "rollout", "reference", "train", "answer", "academic", "diagnostics"}
        ),
    ),
    StartUp("lm-eval", 1.8, frozenset({"academic"})),
    StartUp("alpaca_eval", 1.2, frozenset({"judge.alpaca_eval", "judge.pairwise"})),
)
REPORT = Rate(8.0, 0.3)
"""The report after the stages: fixed, and for every run."""


@functools.cache
def tiny_step_seconds(budget_s: float = 0.4) -> float:
    """Median seconds of one training step of two small layers on one thread, timed for
    ``budget_s``; once a process.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = [
        (torch.randn(128, 128, generator=generator) / 12).requires_grad_() for _ in range(12)
    ]
    x_BTH = torch.randn(16, 32, 128, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken: list[float] = []
        while len(taken) < 10 or sum(taken) < budget_s:
            start = time.perf_counter()
            h_BTH = x_BTH
            for weight in weights:
                h_BTH = (
                    torch.nn.functional.silu(torch.nn.functional.layer_norm(h_BTH, (128,)) @ weight)
                    + h_BTH
                )
            torch.autograd.grad(h_BTH.square().mean(), weights)
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return sorted(taken)[len(taken) // 2]


def slowness() -> float:
    """How many times as long this machine takes as the reference core."""
    return tiny_step_seconds() / REFERENCE_STEP_S


class History:
    """Finished stages of a store by key, and by kind and model."""

    def __init__(self, store: Store) -> None:
        self.records: dict[str, StageRecord] = {}
        for key in store.all_keys()[:5000]:
            try:
                self.records[key] = store.record(key)
            except HarnessError:
                continue
        self._by_kind: dict[tuple[str, str], list[StageRecord]] = {}
        for record in self.records.values():
            self._by_kind.setdefault(
                (record.stage, model_of(self.node(record.key), self.node)), []
            ).append(record)

    def node(self, key: str) -> Node | None:
        """A recorded stage in the form of a planned one."""
        record = self.records.get(key)
        return (
            Node(key, record.stage, record.version, record.settings, record.inputs)
            if record
            else None
        )

    def of(self, stage: str, model: str) -> list[tuple[Node, float]]:
        """Finished stages of this name on this model, with the seconds they took."""
        found = [
            (self.node(record.key), float(record.costs.get("seconds", 0.0)))
            for record in self._by_kind.get((stage, model), [])
        ]
        return [(node, seconds) for node, seconds in found if node is not None]


def model_of(node: Node | None, lookup: Callable[[str], Node | None]) -> str:
    """Which model a stage works with: its base checkpoint, found by following its inputs; empty for
    stages without one.
    """
    while node is not None and not node.stage.startswith("base."):
        names = ("policy", "answer", "answer_a", "base", "rollout", "pairs")
        node = next((lookup(node.inputs[name]) for name in names if name in node.inputs), None)
    if node is None:
        return ""
    if node.stage == "base.pocket":
        return "pocket {hidden_size} {layers}".format(**node.settings)
    return str(node.settings.get("source_fingerprint") or node.settings.get("source", ""))


PROPORTIONAL = Rate(0.0, 1.0)


def scaled(found: Sequence[tuple[float, float]], units: float, rate: Rate = PROPORTIONAL) -> float:
    """Seconds for ``units`` from measured (units, seconds): a third up the nine nearest in size,
    for the slow ones held a worker's start-up.

    Where none has this size, each of them is first scaled by what ``rate`` gives for the two sizes.
    """
    nearest = sorted(found, key=lambda pair: abs(math.log(pair[0] / units)))[:9]
    same = [pair for pair in nearest if 0.8 <= pair[0] / units <= 1.25]
    seconds = sorted(
        taken if same else taken * rate.seconds(units) / rate.seconds(own)
        for own, taken in same or nearest
    )
    return seconds[(len(seconds) - 1) // 3]
