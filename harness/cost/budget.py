"""``selm plan --cost``: what a study will take, stage by stage, and how each figure comes about.

A stage's time is measured where this store holds finished stages of the same kind on the same model
(seconds scaled by the work), else its floating-point operations over a device's peak at a stated
utilisation; in the pocket world, constants of a reference core times this machine's slowness. No
stage is run and nothing is fetched.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.cost.count import Counter
from harness.cost.rates import (
    POCKET,
    PROPORTIONAL,
    REPORT,
    START_UP,
    History,
    Rate,
    StartUp,
    model_of,
    scaled,
)
from harness.cost.work import POCKET_LENGTHS, Lengths, Shape, Work, shape_of
from harness.engine.plan import Node, Plan
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.records import HarnessError
from harness.study.settings import Recipe
from harness.train.memory import Setup, training_parts
from harness.train.memory import lora_parameters as lora_parameters

GB = 1e9
GENERATING_TRANSFORMERS = 0.015
"""Utilisation of generating in plain batches, without vLLM: every step waits for the longest answer
and reads all weights.
"""


@dataclass(frozen=True)
class Device:
    """One accelerator as its maker states it: dense bfloat16 operations a second, and memory."""

    name: str
    flops: float
    memory: float


DEVICES = {
    "h100": Device("H100 80 GB", 989e12, 80 * GB),
    "h200": Device("H200 141 GB", 989e12, 141 * GB),
    "a100": Device("A100 80 GB", 312e12, 80 * GB),
    "rtx4090": Device("RTX 4090 24 GB", 165e12, 24 * GB),
}


@dataclass(frozen=True)
class Assumptions:
    """What the budget rests on where nothing was measured. Utilisation: share of the peak that the
    counted operations reach.
    """

    device: Device = DEVICES["h100"]
    devices: int = 8
    training: float = 0.35
    reading: float = 0.40
    generating: float = 0.08
    usd_per_gpu_hour: float = 0.0
    lengths: Lengths = field(default_factory=Lengths)
    slowness: float = 1.0
    """Of the pocket world's stages: this machine's seconds for one of the reference core
    (``cost_rates.slowness``).
    """


@dataclass(frozen=True)
class Line:
    """One stage with its work, seconds on one device (or core), and where the seconds come from."""

    node: Node
    work: Work
    seconds: float
    source: str


@dataclass(frozen=True)
class Need:
    """One part of the memory of a device, in bytes: ``alone`` on one device, ``shared`` when the
    parameters are spread over all.
    """

    what: str
    how: str
    alone: float
    shared: float


@dataclass(frozen=True)
class Budget:
    """A plan's costs: every stage to do, the memory a device needs, and the assumptions."""

    plan: Plan
    shape: Shape
    assumptions: Assumptions
    lines: tuple[Line, ...]
    memory: Mapping[str, tuple[Need, ...]]
    done: int

    def of(self, stage: str) -> list[Line]:
        return [line for line in self.lines if line.node.stage == stage]

    def gpu_seconds(self, lines: Sequence[Line]) -> float:
        """Seconds of an accelerator; the pocket world uses none."""
        return (
            0.0
            if self.shape.name == "pocket"
            else sum(line.seconds for line in lines if STAGES[line.node.stage].accelerator)
        )

    def usd(self, lines: Sequence[Line]) -> float:
        """Price of the judge's tokens by the recipe's prices."""
        return sum(judge_price(line) for line in lines)


def judge_price(line: Line) -> float:
    """USD of one stage's judge tokens."""
    runtime = line.node.runtime
    prompt, reply = (
        float(runtime.get(f"price_{kind}_usd_per_million", 0.0))
        for kind in ("prompt", "completion")
    )
    return (line.work.judge_prompt * prompt + line.work.judge_reply * reply) / 1e6


def budget(plan: Plan, store: Store, assumptions: Assumptions) -> Budget:
    """Count every stage that is not done. Raises HarnessError when a model's sizes are unknown or
    differ between arms.
    """
    recipe = plan.study.base
    shape = shape_of(recipe)
    if any(cell.recipe.model.source != recipe.model.source for cell in plan.study.cells):
        raise HarnessError(
            f"{plan.study.file}: its arms use different models; ask for the cost of one at a time "
            "(--set model.source=…)"
        )
    if shape.name == "pocket":
        assumptions = replace(assumptions, lengths=POCKET_LENGTHS)
    if recipe.runtime.generation_backend == "transformers":
        assumptions = replace(assumptions, generating=GENERATING_TRANSFORMERS)
    history = History(store)
    counter = Counter(plan.nodes.get, shape, assumptions.lengths, _rows(plan, history))
    states = store.states(list(plan.nodes))
    lines = []
    for key, node in plan.nodes.items():
        if states[key] == "done":
            continue
        work = counter.work(node)
        lines.append(Line(node, work, *_seconds(node, work, plan, history, counter, assumptions)))
    return Budget(
        plan,
        shape,
        assumptions,
        tuple(lines),
        memory(recipe, shape, assumptions),
        len(plan.nodes) - len(lines),
    )


def _rows(plan: Plan, history: History) -> int:
    """Training rows that the data stage's record counted, or 0."""
    for key, node in plan.nodes.items():
        if node.stage.startswith("data.") and key in history.records:
            return int(history.records[key].summary.get("train", 0))
    return 0


def _seconds(
    node: Node, work: Work, plan: Plan, history: History, counter: Counter, assumptions: Assumptions
) -> tuple[float, str]:
    pocket = counter.shape.name == "pocket"
    rate = POCKET.get(node.stage, Rate(STAGES[node.stage].seconds, 0.0)) if pocket else PROPORTIONAL
    measured = history.of(node.stage, model_of(node, plan.nodes.get))
    if measured:
        past = Counter(history.node, counter.shape, counter.lengths, counter.rows_in_all)
        return scaled(
            [(past.work(one).units, seconds) for one, seconds in measured], work.units, rate
        ), f"measured ({len(measured)})"
    if pocket:
        return rate.seconds(work.units) * assumptions.slowness, "prior"
    if not STAGES[node.stage].accelerator:
        return STAGES[node.stage].seconds, "prior"
    total = work.flops or 1.0
    tokens = max(1.0, 2 * (work.read + work.generated) + 6 * work.trained)
    shares = {
        "reading": 2 * work.read / tokens,
        "generating": 2 * work.generated / tokens,
        "training": 6 * work.trained / tokens,
    }
    return sum(
        total * share / (assumptions.device.flops * getattr(assumptions, name))
        for name, share in shares.items()
    ), "operations"


def elapsed(found: Budget, workers: int) -> dict[str, float]:
    """Seconds of a pocket study on so many workers: ``stages`` (start-up of the workers in them),
    ``report``, ``all``.
    """
    slow = found.assumptions.slowness
    stages = wall_seconds(
        found.plan,
        found.lines,
        workers,
        [replace(one, seconds=one.seconds * slow) for one in START_UP],
    )
    report = REPORT.seconds(len(found.plan.runs)) * slow
    return {"stages": stages, "report": report, "all": stages + report}


def wall_seconds(
    plan: Plan, lines: Sequence[Line], workers: int, start_up: Sequence[StartUp] = ()
) -> float:
    """Elapsed time of the stages on so many workers: longest remaining chain first, as the
    executors do; each worker starts up by itself.
    """
    seconds = {line.node.key: line.seconds for line in lines}
    chain = dict(seconds)
    parents = {
        key: {parent for parent in plan.nodes[key].inputs.values() if parent in seconds}
        for key in plan.nodes
        if key in seconds
    }
    for key in reversed(list(parents)):
        for parent in parents[key]:
            chain[parent] = max(chain[parent], seconds[parent] + chain[key])
    missing = {key: len(those) for key, those in parents.items()}
    users: dict[str, list[str]] = {}
    for key, those in parents.items():
        for parent in those:
            users.setdefault(parent, []).append(key)
    ready = [(-chain[key], key) for key, count in missing.items() if not count]
    heapq.heapify(ready)
    idle = list(range(max(1, workers)))
    prepared: set[tuple[int, str]] = set()
    running: list[tuple[float, str, int]] = []
    now = 0.0
    while ready or running:
        while ready and idle:
            _, key = heapq.heappop(ready)
            worker = heapq.heappop(idle)
            new = [
                one
                for one in start_up
                if plan.nodes[key].stage in one.stages and (worker, one.what) not in prepared
            ]
            prepared |= {(worker, one.what) for one in new}
            heapq.heappush(
                running, (now + seconds[key] + sum(one.seconds for one in new), key, worker)
            )
        now, ended, worker = heapq.heappop(running)
        heapq.heappush(idle, worker)
        for key in users.get(ended, []):
            missing[key] -= 1
            if not missing[key]:
                heapq.heappush(ready, (-chain[key], key))
    return now


# -- memory ----------------------------------------------------------------------------------------


def memory(recipe: Recipe, shape: Shape, assumptions: Assumptions) -> dict[str, tuple[Need, ...]]:
    """Memory of training and of generating on a device, part by part."""
    return {
        "training": _training_memory(recipe, shape, assumptions.devices),
        "generating": _generating_memory(recipe, shape, assumptions.lengths),
    }


def _training_memory(recipe: Recipe, shape: Shape, devices: int) -> tuple[Need, ...]:
    """The parts of ``harness.train.memory``, on one device alone and with weights, gradients and
    optimiser divided over ``devices`` by FSDP.
    """
    training = recipe.training
    tokens = recipe.runtime.token_budget or recipe.runtime.micro_batch * training.max_length
    rank = training.lora.r if training.lora else 0
    setup = Setup(
        recipe.model.dtype == "bfloat16",
        training.gradient_checkpointing,
        rank,
        2 if training.optimizer == "adamw_torch" else 1,
    )
    alone = {part.what: part for part in training_parts(shape, setup, tokens)}
    divided = replace(setup, processes=devices, sharded=True) if devices > 1 else setup
    shared = {part.what: part for part in training_parts(shape, divided, tokens)}
    sizes = {
        what: [parts[what].size if what in parts else 0.0 for parts in (alone, shared)]
        for what in (alone | shared)
    }
    return tuple(Need(what, (shared | alone)[what].how, *both) for what, both in sizes.items())


def _generating_memory(recipe: Recipe, shape: Shape, lengths: Lengths) -> tuple[Need, ...]:
    wide = 2 if recipe.model.dtype == "bfloat16" else 4
    n, batch = shape.parameters, recipe.model.generation_batch
    longest = recipe.training.max_prompt_length + recipe.exploration.max_new_tokens
    cache = float(batch * longest * shape.cache_per_token * wide)
    mean = min(longest, lengths.prompt + lengths.answer)
    each = shape.cache_per_token * wide
    how = f"{batch} answers × {longest:,} tokens × {each / 1e3:,.0f} KB (at the mean {mean:,} tokens: {batch * mean * each / GB:.1f} GB)"
    return (
        Need("weights", f"{n / 1e9:.2f} B × {wide} bytes", wide * n, wide * n),
        Need("keys and values", how, cache, cache),
    )
