"""``selm plan --cost``: what a study will take, stage by stage, and how each figure comes about.

A stage's time is measured where this store holds finished stages of the same kind on the same model (seconds scaled by the work),
else its floating-point operations over a device's peak at a stated utilisation. Nothing is run and nothing is fetched.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.plan import Node, Plan
from harness.records import HarnessError, StageRecord
from harness.settings import Recipe
from harness.stages import STAGES
from harness.store import Store
from harness.work import POCKET_LENGTHS, Counter, Lengths, Shape, Work, shape_of

GB = 1e9
GENERATING_TRANSFORMERS = 0.015
"""Utilisation of generating in plain batches, without vLLM: every step waits for the longest answer and reads all weights."""


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
    """What the budget rests on where nothing was measured. Utilisation: share of the peak that the counted operations reach."""

    device: Device = DEVICES["h100"]
    devices: int = 8
    training: float = 0.35
    reading: float = 0.40
    generating: float = 0.08
    usd_per_gpu_hour: float = 0.0
    lengths: Lengths = field(default_factory=Lengths)


@dataclass(frozen=True)
class Line:
    """One stage with its work, seconds on one device (or core), and where the seconds come from."""

    node: Node
    work: Work
    seconds: float
    source: str


@dataclass(frozen=True)
class Need:
    """One part of the memory of a device, in bytes: ``alone`` on one device, ``shared`` when the parameters are spread over all."""

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
        return 0.0 if self.shape.name == "pocket" else sum(line.seconds for line in lines if STAGES[line.node.stage].accelerator)

    def usd(self, lines: Sequence[Line]) -> float:
        """Price of the judge's tokens by the recipe's prices."""
        return sum(judge_price(line) for line in lines)


def judge_price(line: Line) -> float:
    """USD of one stage's judge tokens."""
    runtime = line.node.runtime
    prompt, reply = (float(runtime.get(f"price_{kind}_usd_per_million", 0.0)) for kind in ("prompt", "completion"))
    return (line.work.judge_prompt * prompt + line.work.judge_reply * reply) / 1e6


def budget(plan: Plan, store: Store, assumptions: Assumptions) -> Budget:
    """Count every stage that is not done. Raises HarnessError when a model's sizes are unknown or differ between arms."""
    recipe = plan.study.base
    shape = shape_of(recipe)
    if any(cell.recipe.model.source != recipe.model.source for cell in plan.study.cells):
        raise HarnessError(f"{plan.study.file}: its arms use different models; ask for the cost of one at a time (--set model.source=…)")
    if shape.name == "pocket":
        assumptions = replace(assumptions, lengths=POCKET_LENGTHS)
    if recipe.runtime.generation_backend == "transformers":
        assumptions = replace(assumptions, generating=GENERATING_TRANSFORMERS)
    history = _History(store)
    counter = Counter(plan.nodes.get, shape, assumptions.lengths, _rows(plan, history))
    states = store.states(list(plan.nodes))
    lines = []
    for key, node in plan.nodes.items():
        if states[key] == "done":
            continue
        work = counter.work(node)
        lines.append(Line(node, work, *_seconds(node, work, plan, history, counter, assumptions)))
    return Budget(plan, shape, assumptions, tuple(lines), memory(recipe, shape, assumptions), len(plan.nodes) - len(lines))


def _rows(plan: Plan, history: _History) -> int:
    """Training rows that the data stage's record counted, or 0."""
    for key, node in plan.nodes.items():
        if node.stage.startswith("data.") and key in history.records:
            return int(history.records[key].summary.get("train", 0))
    return 0


class _History:
    """Finished stages of a store by key, and by kind and model."""

    def __init__(self, store: Store) -> None:
        self.records: dict[str, StageRecord] = {}
        for key in store.all_keys()[:5000]:
            try:
                self.records[key] = store.record(key)
            except HarnessError:
                continue
        self.by_kind: dict[tuple[str, str], list[StageRecord]] = {}
        for record in self.records.values():
            self.by_kind.setdefault((record.stage, model_of(self.node(record.key), self.node)), []).append(record)

    def node(self, key: str) -> Node | None:
        """A recorded stage in the form of a planned one."""
        record = self.records.get(key)
        return Node(key, record.stage, record.version, record.settings, record.inputs) if record else None


def model_of(node: Node | None, lookup: Callable[[str], Node | None]) -> str:
    """Which model a stage works with: its base checkpoint, found by following its inputs; empty for stages without one."""
    while node is not None and not node.stage.startswith("base."):
        names = ("policy", "answer", "answer_a", "base", "rollout", "pairs")
        node = next((lookup(node.inputs[name]) for name in names if name in node.inputs), None)
    if node is None:
        return ""
    if node.stage == "base.pocket":
        return "pocket {hidden_size} {layers}".format(**node.settings)
    return str(node.settings.get("source_fingerprint") or node.settings.get("source", ""))


def _seconds(node: Node, work: Work, plan: Plan, history: _History, counter: Counter, assumptions: Assumptions) -> tuple[float, str]:
    measured = history.by_kind.get((node.stage, model_of(node, plan.nodes.get)), [])
    if measured:
        past = Counter(history.node, counter.shape, counter.lengths, counter.rows_in_all)
        found = [(past.work(Node(r.key, r.stage, r.version, r.settings, r.inputs)).units, float(r.costs.get("seconds", 0.0))) for r in measured]
        return _scaled(found, work.units), f"measured ({len(found)})"
    if not STAGES[node.stage].accelerator or counter.shape.name == "pocket":
        return STAGES[node.stage].seconds, "prior"
    total = work.flops or 1.0
    tokens = max(1.0, 2 * (work.read + work.generated) + 6 * work.trained)
    shares = {"reading": 2 * work.read / tokens, "generating": 2 * work.generated / tokens, "training": 6 * work.trained / tokens}
    return sum(total * share / (assumptions.device.flops * getattr(assumptions, name)) for name, share in shares.items()), "operations"


def _scaled(found: Sequence[tuple[float, float]], units: float) -> float:
    """Seconds for ``units`` from measured (units, seconds): the median of the nine nearest in size; a fixed share when sizes differ is fitted."""
    nearest = sorted(found, key=lambda pair: abs(math.log(pair[0] / units)))[:9]
    same = [seconds for own, seconds in nearest if 0.8 <= own / units <= 1.25]
    if same:
        return sorted(same)[len(same) // 2]
    own, seconds = sorted(nearest, key=lambda pair: pair[1] / pair[0])[len(nearest) // 2]
    return seconds * units / own


def wall_seconds(plan: Plan, lines: Sequence[Line], workers: int) -> float:
    """Elapsed time of the stages on so many workers: longest remaining chain first, as the executors do."""
    seconds = {line.node.key: line.seconds for line in lines}
    chain = dict(seconds)
    for key in reversed([key for key in plan.nodes if key in seconds]):
        for parent in plan.nodes[key].inputs.values():
            if parent in chain:
                chain[parent] = max(chain[parent], seconds[parent] + chain[key])
    users: dict[str, list[str]] = {}
    missing = {key: sum(parent in seconds for parent in set(plan.nodes[key].inputs.values())) for key in seconds}
    for key in seconds:
        for parent in set(plan.nodes[key].inputs.values()):
            users.setdefault(parent, []).append(key)
    ready = [(-chain[key], key) for key, count in missing.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < max(1, workers):
            _, key = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[key], key))
        now, ended = heapq.heappop(running)
        for key in users.get(ended, []):
            missing[key] -= 1
            if not missing[key]:
                heapq.heappush(ready, (-chain[key], key))
    return now


# -- memory -----------------------------------------------------------------------------------------------------


def memory(recipe: Recipe, shape: Shape, assumptions: Assumptions) -> dict[str, tuple[Need, ...]]:
    """Memory of training and of generating on a device, part by part."""
    return {"training": _training_memory(recipe, shape, assumptions.devices), "generating": _generating_memory(recipe, shape, assumptions.lengths)}


def _training_memory(recipe: Recipe, shape: Shape, devices: int) -> tuple[Need, ...]:
    """Full: float32 weights, gradients and two optimiser moments (16 bytes a parameter); LoRA: frozen weights, 16 bytes a parameter of adapters."""
    training, n = recipe.training, shape.parameters
    wide = 2 if recipe.model.dtype == "bfloat16" else 4
    tokens = recipe.runtime.token_budget or recipe.runtime.micro_batch * training.max_length
    if training.lora is None:
        parts = [("weights", "4 bytes", 4 * n), ("gradients", "4 bytes", 4 * n), ("optimiser", "8 bytes (two moments)", 8 * n)]
        needs = [Need(what, f"{n / 1e9:.2f} B × {how}", size, size / devices) for what, how, size in parts]
        if wide == 2:
            layer = wide * n / shape.layers
            needs.append(Need("one layer in bfloat16", f"2 bytes × {n / 1e9:.2f} B / {shape.layers}", layer, layer))
    else:
        adapters = lora_parameters(shape, training.lora.r)
        needs = [
            Need("weights (frozen)", f"{n / 1e9:.2f} B × {wide} bytes", wide * n, wide * n / devices),
            Need("adapters with gradients and optimiser", f"{adapters / 1e6:.0f} M × 16 bytes", 16 * adapters, 16 * adapters / devices),
        ]
    within = wide * (10 * shape.hidden + 3 * shape.inner)
    kept = wide * shape.hidden if training.gradient_checkpointing else within
    rule = f"{wide} × {shape.hidden}" if training.gradient_checkpointing else f"{wide} × (10 × {shape.hidden} + 3 × {shape.inner})"
    stored = float(tokens * shape.layers * kept)
    needs.append(Need("activations kept", f"{tokens:,} tokens × {shape.layers} layers × {rule} bytes", stored, stored))
    if training.gradient_checkpointing:
        again, rule = float(tokens * within), f"{wide} × (10 × {shape.hidden} + 3 × {shape.inner})"
        needs.append(Need("activations of the layer under way", f"{tokens:,} tokens × {rule} bytes", again, again))
    return tuple(needs)


def lora_parameters(shape: Shape, rank: int) -> float:
    """Parameters of adapters of this rank on every linear layer but the head."""
    query, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    pairs = [(shape.hidden, query), (shape.hidden, keys), (shape.hidden, keys), (query, shape.hidden)] + 3 * [(shape.hidden, shape.inner)]
    return float(shape.layers * rank * sum(a + b for a, b in pairs))


def _generating_memory(recipe: Recipe, shape: Shape, lengths: Lengths) -> tuple[Need, ...]:
    wide = 2 if recipe.model.dtype == "bfloat16" else 4
    n, batch = shape.parameters, recipe.model.generation_batch
    longest = recipe.training.max_prompt_length + recipe.exploration.max_new_tokens
    cache = float(batch * longest * shape.cache_per_token * wide)
    mean = min(longest, lengths.prompt + lengths.answer)
    each = shape.cache_per_token * wide
    how = f"{batch} answers × {longest:,} tokens × {each / 1e3:,.0f} KB (at the mean {mean:,} tokens: {batch * mean * each / GB:.1f} GB)"
    return (Need("weights", f"{n / 1e9:.2f} B × {wide} bytes", wide * n, wide * n), Need("keys and values", how, cache, cache))
