"""``selm plan --cost``: what a study will take, stage by stage, and how each figure comes about.

A stage's time is the median of this store's finished stages of the same kind and settings where
there are any, else its operations over a device's peak at a stated utilisation; in the pocket world
the stage's prior. No stage is run and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harness.cost.work import Bill, Counting, bills, price
from harness.engine.execute import estimate, longest_chain
from harness.engine.graph import Node, Plan
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.model.shape import (
    GB,
    Shape,
    arithmetic,
    node_needed,
    shape_of,
    training_bytes,
    training_parts,
)
from harness.records import HarnessError
from harness.study.sections import JudgeSettings
from harness.study.settings import Recipe
from harness.study.work import LENGTHS, POCKET_LENGTHS, Lengths, Work

USABLE = 0.9
"""Share of a device's memory that can be filled: the rest is for fragments and buffers."""


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
    "cpu": Device("CPU core", 190e9, 4 * GB),
}


@dataclass(frozen=True)
class Assumptions:
    """What the budget rests on where nothing was measured. training, reading, generating: share of
    the peak that the counted operations reach.
    """

    device: Device = DEVICES["h100"]
    devices: int = 8
    usd_per_gpu_hour: float = 0.0
    training: float = 0.35
    reading: float = 0.40
    generating: float = 0.08
    lengths: Lengths = LENGTHS

    def seconds(self, work: Work, parameters: float) -> float:
        """Operations over the device's peak: 6 per parameter and trained token (2 forward, 4
        backward), 2 per parameter and token read or generated.
        """
        weighed = 6 * work.trained / self.training
        weighed += 2 * work.read / self.reading + 2 * work.generated / self.generating
        return (work.parameters or parameters) * weighed / self.device.flops


GENERATING_TRANSFORMERS = 0.015
"""Utilisation of generating without vLLM: every step waits for the longest answer and reads all
weights.
"""
GENERATING_CPU = 0.06
"""The same on a CPU core, whose peak (AVX-512 in float32 at 3 GHz) is nearer to its memory."""


@dataclass(frozen=True)
class Line:
    """One stage with its work, seconds on one device (or core), and where the seconds come from."""

    node: Node
    work: Work
    seconds: float
    source: str

    @property
    def usd(self) -> float:
        """Price of its judge's tokens by the judge's profile, or the recipe's prices."""
        judge = self.judge
        return price(judge, self.node.runtime, self.work) if judge else 0.0

    @property
    def judge(self) -> JudgeSettings | None:
        """Whom it asks."""
        found: JudgeSettings | None = getattr(self.node.settings, "judge", None)
        return found


@dataclass(frozen=True)
class Budget:
    """A plan's costs: every stage to do, and the assumptions."""

    plan: Plan
    shape: Shape
    assumptions: Assumptions
    lines: tuple[Line, ...]
    done: int

    @property
    def pocket(self) -> bool:
        return self.shape.name == "pocket"

    @property
    def hours(self) -> str:
        """What an hour of the study's devices is called."""
        on_cores = self.pocket or self.assumptions.device == DEVICES["cpu"]
        return "core-hours" if on_cores else "GPU-hours"

    def of(self, stage: str) -> list[Line]:
        """The lines of one kind of stage."""
        return [line for line in self.lines if line.node.stage == stage]

    def gpu_seconds(self, lines: Sequence[Line]) -> float:
        """Seconds of an accelerator; the pocket world uses none."""
        if self.pocket:
            return 0.0
        return sum(line.seconds for line in lines if STAGES[line.node.stage].accelerator)

    def bills(self) -> Sequence[Bill]:
        """What each judge takes."""
        return bills(
            (line.judge, line.node.runtime, line.work) for line in self.lines if line.judge
        )

    def elapsed(self, workers: int) -> float:
        """Seconds on so many workers: work shared evenly, but no less than the longest chain."""
        seconds = {line.node.key: line.seconds for line in self.lines}
        return max(sum(seconds.values()) / workers, longest_chain(self.plan, seconds))


@dataclass(frozen=True)
class SeedCost:
    """What one more seed of every arm takes, ``unit``: GPU-hours or core-hours."""

    hours: float
    usd: float
    unit: str

    def of(self, seeds: int, what: str) -> str:
        """The price of ``what`` that so many seeds detect, in a sentence."""
        each = f"a seed of every arm takes {self.hours:,.3g} {self.unit} and {self.usd:,.2f} USD"
        return (
            f"Cost of detecting {what}: {seeds} seeds, {seeds * self.hours:,.3g} {self.unit}, "
            f"{seeds * self.usd:,.2f} USD of judge ({each})."
        )


def cost_of_a_seed(found: Budget) -> SeedCost:
    """Mean over seeds of the stages that only one seed's runs need."""
    users: dict[str, set[int]] = {}
    for run in found.plan.runs:
        for key in (key for stages in run.iterations.values() for key in stages.values()):
            users.setdefault(key, set()).add(run.cell.seed)
    own = [line for line in found.lines if len(users.get(line.node.key, ())) == 1]
    seconds = sum(line.seconds for line in own) if found.pocket else found.gpu_seconds(own)
    seeds = len(found.plan.study.seeds)
    return SeedCost(seconds / 3600 / seeds, sum(line.usd for line in own) / seeds, found.hours)


def budget(plan: Plan, store: Store, assumptions: Assumptions, *, whole: bool = False) -> Budget:
    """Count every stage that is not done; with ``whole`` also those that are. Raises HarnessError
    when a model's sizes are unknown or differ between arms.
    """
    recipe = plan.study.base
    # Given answers need no model: nothing is counted that one would do.
    shape = shape_of(recipe if plan.study.has_models else Recipe())
    if any(cell.recipe.model.source != recipe.model.source for cell in plan.study.cells):
        raise HarnessError(
            f"{plan.study.file}: its arms use different models; ask for the cost of one at a time "
            "(--set model.source=…)"
        )
    pocket = recipe.data.source == "pocket"
    if pocket:
        assumptions = replace(assumptions, lengths=POCKET_LENGTHS)
    if recipe.model.generation_backend == "transformers":
        on_cpu = assumptions.device == DEVICES["cpu"]
        share = GENERATING_CPU if on_cpu else GENERATING_TRANSFORMERS
        assumptions = replace(assumptions, generating=share)
    counting = Counting(plan, assumptions.lengths, pocket, _rows(plan, store))
    states = store.states(list(plan.nodes))
    known = estimate(plan, store)
    lines = []
    for key, node in plan.nodes.items():
        if states[key] == "done" and not whole:
            continue
        work = counting.work(node)
        seconds, source = known[key].seconds, known[key].source
        if source == "prior" and STAGES[node.stage].accelerator and not pocket:
            seconds, source = assumptions.seconds(work, shape.active), "operations"
        lines.append(Line(node, work, seconds, source))
    return Budget(plan, shape, assumptions, tuple(lines), len(plan.nodes) - len(lines))


def _rows(plan: Plan, store: Store) -> int:
    """Training rows that the data stage's record counted, or 0."""
    for key, node in plan.nodes.items():
        if node.stage.startswith("data.") and store.has(key):
            return int(store.record(key).summary.get("train", 0))
    return 0


# -- in words --------------------------------------------------------------------------------------
def amount(value: float) -> str:
    """A count with a unit a person can hold: 1.2 k, 53.8 M, 2.6 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def columns(found: Budget) -> tuple[str, ...]:
    """Heads of the table."""
    time = "seconds" if found.pocket else found.hours
    return ("stage", "n", "tokens", time, "from", "judge calls", "judge tokens", "USD")


def rows(found: Budget) -> Iterator[tuple[str, ...]]:
    """A row per kind of stage, then all of them."""
    for stage in [*dict.fromkeys(line.node.stage for line in found.lines), ""]:
        lines = found.of(stage) if stage else list(found.lines)
        works = [line.work for line in lines]
        tokens = sum(work.read + work.generated + work.trained for work in works)
        time = found.gpu_seconds(lines) / 3600
        if found.pocket:
            time = sum(line.seconds for line in lines)
        sources = ", ".join(sorted({line.source for line in lines})) if stage else ""
        calls = sum(work.judge_calls for work in works)
        judged = sum(work.judge_prompt + work.judge_reply for work in works)
        yield (
            stage or "all",
            str(len(lines)),
            amount(tokens),
            f"{time:,.1f}",
            sources,
            amount(calls),
            amount(judged),
            f"{sum(line.usd for line in lines):,.2f}",
        )


def explained(found: Budget, workers: int) -> Iterator[str]:
    """How each figure comes about, time and price, memory, and every assumption."""
    yield "How each figure comes about (of one stage; stages of a kind may differ by a little):"
    for stage in dict.fromkeys(line.node.stage for line in found.lines):
        line = max(found.of(stage), key=lambda one: one.seconds)
        if line.work.how:
            yield f"  {stage}: {line.work.how}{_operations(found, line)}"
    yield from _time_and_price(found, workers)
    for bill in found.bills():
        yield f"Judge: {bill}."
    if not found.pocket:
        yield from memory_lines(found.plan.study.base, found.shape, found.assumptions)
    yield from _assumed(found)


def _operations(found: Budget, line: Line) -> str:
    if line.source != "operations":
        return ""
    assumed, work = found.assumptions, line.work
    size = f"{(work.parameters or found.shape.active) / 1e9:.2f} B"
    peak = f"{assumed.device.flops / 1e12:,.3g} T"
    parts = (
        (6, work.trained, assumed.training),
        (2, work.read, assumed.reading),
        (2, work.generated, assumed.generating),
    )
    shown = " + ".join(
        f"{each} × {size} × {amount(tokens)} tokens / ({peak} × {share:.3g})"
        for each, tokens, share in parts
        if tokens
    )
    return f"; {shown} = {line.seconds / 3600:.2f} {found.hours}"


def _time_and_price(found: Budget, workers: int) -> Iterator[str]:
    lines, assumed = found.lines, found.assumptions
    if found.pocket:
        total = f"{sum(line.seconds for line in lines):,.0f} stage-seconds"
        minutes = found.elapsed(workers) / 60
        yield f"Elapsed: about {minutes:.1f} minutes on {workers} workers ({total})."
        return
    hours = found.gpu_seconds(lines) / 3600
    alone = found.elapsed(assumed.devices) / 3600
    yield (
        f"{found.hours[0].upper()}{found.hours[1:]}: {hours:,.1f}; on {assumed.devices} devices "
        f"{alone:,.1f} hours when every stage runs on one, {hours / assumed.devices:,.1f} when "
        "each is spread over all of them."
    )
    if assumed.usd_per_gpu_hour:
        price = assumed.usd_per_gpu_hour
        yield f"Devices: {hours:,.1f} × {price:.2f} USD = {hours * price:,.0f} USD."


def memory_lines(recipe: Recipe, shape: Shape, assumed: Assumptions) -> Iterator[str]:
    """What a device holds while training and while generating, and whether it fits."""
    parts = training_parts(shape, recipe)
    yield f"Memory of training before the first row: {arithmetic(parts)}."
    yield f"  in all: {verdict(training_bytes(shape, recipe), assumed)}"
    yield f"  {node_needed(shape, recipe)}"
    weights, cache = generating_bytes(recipe, shape)
    yield (
        f"Memory of generating: weights {weights / GB:.1f} GB, keys and values of "
        f"{recipe.model.generation_batch} longest answers {cache / GB:.1f} GB."
    )
    yield f"  in all: {verdict(weights + cache, assumed)}"


def node(recipe: Recipe) -> str:
    """The node that training needs, in a sentence; empty where none is or sizes are unknown."""
    if recipe.model.source == "pocket":
        return ""
    try:
        return node_needed(shape_of(recipe), recipe)
    except HarnessError:
        return ""


def generating_bytes(recipe: Recipe, shape: Shape) -> tuple[float, float]:
    """Bytes of weights, and of the keys and values of one batch at its longest."""
    wide = 2 if recipe.model.dtype == "bfloat16" else 4
    longest = recipe.training.max_prompt_length + recipe.exploration.max_new_tokens
    cache = recipe.model.generation_batch * longest * shape.cache_per_token * wide
    return wide * shape.parameters, float(cache)


def verdict(size: float, assumed: Assumptions) -> str:
    """Whether it fits on one device, and by how much it does not."""
    room = USABLE * assumed.device.memory
    if size <= room:
        return f"{size / GB:.1f} of {room / GB:.0f} GB usable on one {assumed.device.name}: fits"
    short = (size - room) / GB
    return (
        f"{size / GB:.1f} GB, {short:.1f} too much for one {assumed.device.name} ({room / GB:.0f} "
        "usable): training.lora, runtime.sharding: fsdp over more runtime.processes, or a smaller "
        "model.generation_batch (vLLM keeps what fits and queues the rest)"
    )


def _assumed(found: Budget) -> Iterator[str]:
    shape, assumed, lengths = found.shape, found.assumptions, found.assumptions.lengths
    yield "Assumptions:"
    yield (
        f"  {shape.name}: {shape.layers} layers × {shape.hidden}, inner {shape.inner:,}, "
        f"{shape.heads} heads ({shape.kv_heads} of keys), {shape.vocabulary:,} words: "
        f"{amount(shape.parameters)} parameters."
    )
    yield (
        f"  A prompt has {lengths.prompt} tokens, an answer {lengths.answer} (never over its "
        f"limit), a judged answer {lengths.judged_answer}."
    )
    if not found.pocket:
        peak = f"{assumed.device.flops / 1e12:,.3g}·10¹² bfloat16 operations a second"
        yield (
            f"  {assumed.device.name}: {peak}, of which training reaches {assumed.training:.0%}, "
            f"reading {assumed.reading:.0%} and generating {assumed.generating:.1%}. Loading and "
            "start-up are not counted."
        )
    yield "  Measured seconds stand in their place where this store has any."
