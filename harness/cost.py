"""``selm plan --cost``: what a study will take, stage by stage, and how each figure comes about.

Work is counted from a stage's settings and those of its inputs, a benchmark's by its own record;
every count keeps the sentence it came from. A stage's time is the median of this store's finished
stages of the same kind and settings where there are any, else its operations over a device's peak
at a stated utilisation; in the pocket world the stage's prior. No stage is run, nothing is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.engine.execute import estimate, longest_chain
from harness.engine.graph import Node, Plan
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.evaluate.benchmark import reply_tokens
from harness.evaluate.registry import BENCHMARKS
from harness.model.shape import (
    GB,
    Shape,
    arithmetic,
    node_needed,
    shape_of,
    training_bytes,
    training_parts,
)
from harness.rankers.pairs import SELECTORS
from harness.rankers.registry import RANKERS
from harness.records import HarnessError
from harness.study.sections import JudgeSettings
from harness.study.settings import Recipe
from harness.study.tasks import PortionTask, Runtime
from harness.study.work import LENGTHS, POCKET_LENGTHS, Lengths, Work
from harness.train.objectives import OBJECTIVES

# -- the work of a stage ---------------------------------------------------------------------------
ROWS = {"HuggingFaceH4/ultrafeedback_binarized": 61_135}
"""Training rows of known data sets; of others the data stage's record or ``data.prompts`` tells."""
POCKET_ROWS = 1536
ROLLOUTS = ("rollout", "current", "first")
ANSWERS_OF_A_ROW = 7 / 3
"""y is one of the pair in two of three rows, so that a row holds 2⅓ different answers."""


@dataclass(frozen=True)
class Counted:
    """A stage, and what its work is counted with. rows_in_all: training rows, 0 where nothing
    tells.
    """

    plan: Plan
    node: Node
    lengths: Lengths
    pocket: bool
    rows_in_all: int

    def settings(self, name: str) -> Any:
        """Settings of the stage that makes an input; of the benchmarks' files, by benchmark."""
        return self.plan.nodes[self.node.inputs[name]].settings

    def limit(self, benchmark: str, whole: int) -> int:
        """Items of a benchmark: all of them, or as many as its limit says."""
        prepared = self.settings("benchmarks")
        sections = prepared.limits if self.pocket else prepared.sections
        limit = sections[benchmark].limit if benchmark in sections else 0
        return min(whole, limit or whole)

    def ranked(self, kind: str, prompts: int, texts: int) -> Work:
        """Ranking so many texts for each prompt."""
        return RANKERS[kind].work(self.lengths, prompts, texts)

    def answer_tokens(self, limit: int) -> int:
        """Tokens of an answer of at most ``limit``."""
        return min(self.lengths.answer, limit)

    def trained_answer(self, max_length: int) -> int:
        """Tokens of an answer in a training row of at most ``max_length``."""
        return max(1, min(self.lengths.answer, max_length - self.lengths.prompt))

    def prompts(self) -> int:
        """Prompts of one iteration, found by following the stage back to its portion of them."""
        stage, share = self, 1.0
        while not isinstance(stage.node.settings, PortionTask):
            inputs = stage.node.inputs
            if stage.node.stage == "pairs.merge":
                merged = (replace(self, node=self.plan.nodes[key]) for key in inputs.values())
                return sum(one.prompts() for one in merged)
            if "select" in inputs:
                selected = stage.settings("select")
                share = SELECTORS[selected.selector].share(selected)
            back = next(name for name in ("pairs", *ROLLOUTS) if name in inputs)
            stage = replace(self, node=self.plan.nodes[inputs[back]])
        settings = stage.node.settings
        known = self.rows_in_all or ROWS.get(stage.settings("data").path, POCKET_ROWS)
        portion = (settings.prompts or known) // settings.portions
        return math.ceil(share * min(portion, settings.prompts_per_iteration or portion))

    def drawn(self) -> int:
        """Candidates of a prompt that were drawn: y's samples and further ones."""
        asked: Any = self.node.settings
        further = [name for name in ROLLOUTS[1:] if name in self.node.inputs]
        y = 1 if asked.y is None else asked.y
        return int(y + sum(self.settings(name).samples for name in further))


def work_of(stage: Counted) -> Work:
    """The work of one stage; stages that only move files are one row."""
    node = stage.node
    if node.stage in RULES:
        return RULES[node.stage](stage, node.settings)
    for benchmark in BENCHMARKS.values():
        for scoring in (benchmark, benchmark.pairs):
            if scoring and node.stage == scoring.stage:
                return scoring.work(stage, node.settings)
    return Work(rows=1)


def _base_pocket(stage: Counted, settings: Any) -> Work:
    rows = float(settings.steps * settings.batch_size)
    tokens = 2 * (stage.lengths.prompt + stage.lengths.answer)
    return Work(rows, trained=rows * tokens, how=f"{rows:,.0f} rows × {tokens} tokens")


def _ranker_train(stage: Counted, settings: Any) -> Work:
    pairs = stage.settings("data").ranker_pairs * settings.epochs
    tokens = pairs * 2 * (stage.lengths.prompt + stage.lengths.answer)
    return Work(pairs, trained=tokens, how=f"{pairs:,} pairs × 2 × (prompt + answer) tokens")


def _rollout(stage: Counted, settings: Any) -> Work:
    prompts, samples, prompt = stage.prompts(), settings.samples, stage.lengths.prompt
    rows, length = prompts * samples, stage.answer_tokens(settings.max_new_tokens)
    how = f"{prompts:,} prompts × {samples} answers × ({prompt} read + {length} generated) tokens"
    return Work(rows, rows * prompt, rows * length, how=how)


def _select(stage: Counted, _settings: Any) -> Work:
    prompts, answers, lengths = stage.prompts(), stage.drawn(), stage.lengths
    passes = 2 if "reference_policy" in stage.node.inputs else 1
    read = passes * prompts * (lengths.prompt + answers * lengths.answer)
    tokens = f"({lengths.prompt} + {answers} × {lengths.answer}) tokens"
    return Work(prompts * answers, read, how=f"{passes} × {prompts:,} prompts × {tokens}")


def _count(stage: Counted, settings: Any) -> Work:
    prompts, prompt = stage.prompts(), stage.lengths.prompt
    answer = stage.trained_answer(settings.max_length)
    how = f"{prompts:,} prompts × ({prompt} + {answer}) tokens"
    return Work(prompts, float(prompts * (prompt + answer)), how=how)


def _rank(stage: Counted, settings: Any) -> Work:
    texts = 2 if "select" in stage.node.inputs else 2 * settings.offline + stage.drawn()
    return stage.ranked(settings.kind, stage.prompts(), texts)


def _answers(roles: Sequence[str]) -> float:
    """Different answers of a row: its pair, the first y, and further samples of y."""
    return 2.0 if len(roles) == 2 else ANSWERS_OF_A_ROW + len(roles) - 3


def _reference(stage: Counted, settings: Any) -> Work:
    prompts, prompt = stage.prompts(), stage.lengths.prompt
    answers, answer = _answers(settings.roles), stage.trained_answer(settings.max_length)
    how = f"{prompts:,} pairs × ({prompt} + {answers:.3g} × {answer}) tokens"
    return Work(prompts, prompts * (prompt + answers * answer), how=how)


def _train(stage: Counted, settings: Any) -> Work:
    prompts, epochs, prompt = stage.prompts(), settings.training.epochs, stage.lengths.prompt
    answers = _answers(settings.objective.roles)
    answer = stage.trained_answer(settings.training.max_length)
    rows = prompts * epochs
    how = f"{prompts:,} pairs × {epochs} epochs × ({prompt} + {answers:.3g} × {answer}) tokens"
    statistic, read = OBJECTIVES[settings.objective.name].statistic, 0
    if statistic:
        others = len(statistic.reads)
        read = rows * (prompt + others * answer)
        how += f", and × ({prompt} + {others} × {answer}) read before, for the batch's mean"
    return Work(rows, float(read), trained=rows * (prompt + answers * answer), how=how)


def _answer(stage: Counted, settings: Any) -> Work:
    counts = [BENCHMARKS[name].asked for name in settings.sets]
    asked = [count(stage, settings) for count in counts if count]
    rows = float(sum(one.rows for one in asked))
    prompt, parts = stage.lengths.prompt, " + ".join(one.how for one in asked)
    how = f"{parts} tokens, and {prompt} read for each"
    return Work(rows, rows * prompt, sum(one.generated for one in asked), how=how)


def _diagnostics(stage: Counted, settings: Any) -> Work:
    rows = float(settings.prompts * settings.samples)
    length = stage.answer_tokens(settings.max_new_tokens)
    read = rows * 8 * (stage.lengths.prompt + length)
    how = f"{settings.prompts} prompts × {settings.samples} samples × {length} tokens drawn"
    return Work(rows, read, rows * length, how=f"{how}, and about 8 passes over them")


RULES: Mapping[str, Callable[[Counted, Any], Work]] = {
    "base.pocket": _base_pocket,
    "ranker.train": _ranker_train,
    "rollout": _rollout,
    "select": _select,
    "rank": _rank,
    "count": _count,
    "reference": _reference,
    "train": _train,
    "answer": _answer,
    "diagnostics": _diagnostics,
}

# -- judging ---------------------------------------------------------------------------------------
CHECKPOINT = {"mt_bench": 160, "alpaca_eval": 805}
"""Judgments of one checkpoint on the whole benchmarks."""


@dataclass
class Bill:
    """What one judge is asked by some stages. Tokens of prompts and replies; usd: their price."""

    name: str
    priced: bool
    calls: float = 0
    prompt: float = 0
    reply: float = 0
    usd: float = 0

    def __str__(self) -> str:
        tokens = f"{self.prompt:,.0f} + {self.reply:,.0f} tokens"
        unknown = "" if self.usd or self.priced else " (no prices in runtime.price_…)"
        return f"{self.name}: {self.calls:,.0f} calls of {tokens} = {self.usd:,.2f} USD{unknown}"


def price(judge: JudgeSettings, runtime: Runtime, work: Work) -> float:
    """USD of a stage's judging, by the judge's profile or the recipe's prices."""
    prompt, completion = judge.prices(runtime)
    return (work.judge_prompt * prompt + work.judge_reply * completion) / 1e6


def bills(asked: Iterable[tuple[JudgeSettings, Runtime, Work]]) -> Sequence[Bill]:
    """One bill for every judge, in the order in which they first come."""
    found: dict[str, Bill] = {}
    for judge, runtime, work in asked:
        name = judge.profile or judge.model
        name += " by batch" if judge.transport == "batch" else ""
        priced = judge.facts is not None or judge.kind == "pocket"
        bill = found.setdefault(name, Bill(name, priced))
        bill.calls += work.judge_calls
        bill.prompt += work.judge_prompt
        bill.reply += work.judge_reply
        bill.usd += price(judge, runtime, work)
    return list(found.values())


def of_a_checkpoint(judge: JudgeSettings, runtime: Runtime) -> str:
    """What one checkpoint costs on whole MT-Bench and AlpacaEval, in words."""
    prompts = {"mt_bench": LENGTHS.rating_prompt, "alpaca_eval": LENGTHS.verdict_prompt}
    works = []
    for benchmark, items in CHECKPOINT.items():
        calls = items * judge.repeats * judge.samples
        reply = reply_tokens(judge, LENGTHS, pairwise=benchmark == "alpaca_eval")
        prompt = calls * prompts[benchmark]
        works.append(Work(judge_calls=calls, judge_prompt=prompt, judge_reply=calls * reply))
    (bill,) = bills((judge, runtime, work) for work in works)
    return f"one checkpoint on MT-Bench and AlpacaEval, {bill}"


# -- the budget of a plan --------------------------------------------------------------------------
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
GENERATING_TRANSFORMERS = 0.015
"""Utilisation of generating without vLLM: every step waits for the longest answer and reads all
weights.
"""
GENERATING_CPU = 0.06
"""The same on a CPU core, whose peak (AVX-512 in float32 at 3 GHz) is nearer to its memory."""


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

    @property
    def peak(self) -> str:
        """Operations of the device a second, in 10¹²."""
        return f"{self.device.flops / 1e12:,.3g}"

    def terms(self, work: Work) -> list[tuple[int, float, float]]:
        """(operations for each parameter and token, tokens, share of the peak): 2 forward, 4
        backward.
        """
        return [
            (6, work.trained, self.training),
            (2, work.read, self.reading),
            (2, work.generated, self.generating),
        ]

    def seconds(self, work: Work, parameters: float) -> float:
        """Operations over the device's peak."""
        weighed = sum(each * tokens / share for each, tokens, share in self.terms(work))
        return (work.parameters or parameters) * weighed / self.device.flops


@dataclass(frozen=True)
class Line:
    """One stage with its work, seconds on one device (or core), and where the seconds come from."""

    node: Node
    work: Work
    seconds: float
    source: str

    @property
    def judge(self) -> JudgeSettings | None:
        """Whom it asks."""
        found: JudgeSettings | None = getattr(self.node.settings, "judge", None)
        return found

    @property
    def usd(self) -> float:
        """Price of its judge's tokens."""
        return price(self.judge, self.node.runtime, self.work) if self.judge else 0.0


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


def cost_of_seeds(found: Budget, seeds: int, what: str) -> str:
    """The price of ``what`` that so many seeds detect, in a sentence: of the stages that only one
    seed's runs need, the mean over seeds.
    """
    users: dict[str, set[int]] = {}
    for run in found.plan.runs:
        for key in (key for stages in run.iterations.values() for key in stages.values()):
            users.setdefault(key, set()).add(run.cell.seed)
    own = [line for line in found.lines if len(users.get(line.node.key, ())) == 1]
    seconds = sum(line.seconds for line in own) if found.pocket else found.gpu_seconds(own)
    there, unit = len(found.plan.study.seeds), found.hours
    hours, usd = seconds / 3600 / there, sum(line.usd for line in own) / there
    return (
        f"Cost of detecting {what}: {seeds} seeds, {seeds * hours:,.3g} {unit}, "
        f"{seeds * usd:,.2f} USD of judge (a seed of every arm takes {hours:,.3g} {unit} and "
        f"{usd:,.2f} USD)."
    )


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
    data = (key for key, node in plan.nodes.items() if node.stage.startswith("data."))
    there = next((key for key in data if store.has(key)), "")
    rows = int(store.record(there).summary.get("train", 0)) if there else 0
    states, known = store.states(list(plan.nodes)), estimate(plan, store)
    lines = []
    for key, node in plan.nodes.items():
        if states[key] == "done" and not whole:
            continue
        work = work_of(Counted(plan, node, assumptions.lengths, pocket, rows))
        seconds, source = known[key].seconds, known[key].source
        if source == "prior" and STAGES[node.stage].accelerator and not pocket:
            seconds, source = assumptions.seconds(work, shape.active), "operations"
        lines.append(Line(node, work, seconds, source))
    return Budget(plan, shape, assumptions, tuple(lines), len(plan.nodes) - len(lines))


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
        time = found.gpu_seconds(lines) / 3600
        if found.pocket:
            time = sum(line.seconds for line in lines)
        yield (
            stage or "all",
            str(len(lines)),
            amount(sum(work.read + work.generated + work.trained for work in works)),
            f"{time:,.1f}",
            ", ".join(sorted({line.source for line in lines})) if stage else "",
            amount(sum(work.judge_calls for work in works)),
            amount(sum(work.judge_prompt + work.judge_reply for work in works)),
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
        yield from _memory(found)
    yield from _assumed(found)


def _operations(found: Budget, line: Line) -> str:
    if line.source != "operations":
        return ""
    assumed = found.assumptions
    size = f"{(line.work.parameters or found.shape.active) / 1e9:.2f} B"
    shown = " + ".join(
        f"{each} × {size} × {amount(tokens)} tokens / ({assumed.peak} T × {share:.3g})"
        for each, tokens, share in assumed.terms(line.work)
        if tokens
    )
    return f"; {shown} = {line.seconds / 3600:.2f} {found.hours}"


def _time_and_price(found: Budget, workers: int) -> Iterator[str]:
    assumed = found.assumptions
    if found.pocket:
        total = f"{sum(line.seconds for line in found.lines):,.0f} stage-seconds"
        minutes = found.elapsed(workers) / 60
        yield f"Elapsed: about {minutes:.1f} minutes on {workers} workers ({total})."
        return
    hours = found.gpu_seconds(found.lines) / 3600
    alone = found.elapsed(assumed.devices) / 3600
    yield (
        f"{found.hours[0].upper()}{found.hours[1:]}: {hours:,.1f}; on {assumed.devices} devices "
        f"{alone:,.1f} hours when every stage runs on one, {hours / assumed.devices:,.1f} when "
        "each is spread over all of them."
    )
    if assumed.usd_per_gpu_hour:
        each = assumed.usd_per_gpu_hour
        yield f"Devices: {hours:,.1f} × {each:.2f} USD = {hours * each:,.0f} USD."


def _memory(found: Budget) -> Iterator[str]:
    """What a device holds while training and while generating, and whether it fits."""
    recipe, shape, device = found.plan.study.base, found.shape, found.assumptions.device
    parts = arithmetic(training_parts(shape, recipe))
    yield f"Memory of training before the first row: {parts}."
    yield f"  in all: {verdict(training_bytes(shape, recipe), device)}"
    yield f"  {node_needed(shape, recipe)}"
    weights, cache = generating_bytes(recipe, shape)
    yield (
        f"Memory of generating: weights {weights / GB:.1f} GB, keys and values of "
        f"{recipe.model.generation_batch} longest answers {cache / GB:.1f} GB."
    )
    yield f"  in all: {verdict(weights + cache, device)}"


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


def verdict(size: float, device: Device) -> str:
    """Whether it fits on one device, and by how much it does not."""
    room = USABLE * device.memory
    if size <= room:
        return f"{size / GB:.1f} of {room / GB:.0f} GB usable on one {device.name}: fits"
    return (
        f"{size / GB:.1f} GB, {(size - room) / GB:.1f} too much for one {device.name} "
        f"({room / GB:.0f} usable): training.lora, runtime.sharding: fsdp over more "
        "runtime.processes, or a smaller model.generation_batch (vLLM keeps what fits and queues "
        "the rest)"
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
        yield (
            f"  {assumed.device.name}: {assumed.peak}·10¹² bfloat16 operations a second, of which "
            f"training reaches {assumed.training:.0%}, reading {assumed.reading:.0%} and "
            f"generating {assumed.generating:.1%}. Loading and start-up are not counted."
        )
    yield "  Measured seconds stand in their place where this store has any."
