"""The budget of a plan as a person reads it: a table per stage, the arithmetic behind it, memory,
and every assumption.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.cli.commands import fingerprints, prepare
from harness.cli.console import console
from harness.cost.budget import (
    DEVICES,
    GB,
    Assumptions,
    Budget,
    Need,
    budget,
    elapsed,
    wall_seconds,
)
from harness.cost.rates import POCKET, REFERENCE, START_UP, slowness
from harness.engine.plan import Plan, build_plan
from harness.engine.store import Store
from harness.records import HarnessError
from harness.study.study import compose
from harness.study.yaml import load_yaml

PAPER_SEED = 42
"""Seed of the one run when a recipe stands in for a study."""


def plan_of(path: Path, overrides: Mapping[str, Any]) -> Plan:
    """The plan of a study's file, or of a recipe's: one run of it."""
    tree, _ = load_yaml(path)
    if isinstance(tree, dict) and "recipe" not in tree and "model" in tree:
        study = compose(
            path, path.stem, str(path.resolve()), overrides, {"recipe": {}}, [PAPER_SEED]
        )
        return build_plan(study, fingerprints(study))
    return prepare(path, overrides)


def show_cost(
    path: Path,
    store: Store,
    overrides: Mapping[str, Any],
    workers: int,
    devices: int,
    device: str,
    price: float,
) -> Budget:
    """Count and print the budget of a study's or a recipe's file."""
    if device not in DEVICES:
        raise HarnessError(f"--device {device!r} is unknown; allowed: {', '.join(DEVICES)}")
    plan = plan_of(path, overrides)
    slow = slowness() if plan.study.base.model.source == "pocket" else 1.0
    found = budget(
        plan, store, Assumptions(DEVICES[device], devices, usd_per_gpu_hour=price, slowness=slow)
    )
    console.print(_table(found))
    for text in (
        *arithmetic(found),
        *time_and_price(found, workers),
        *memory_lines(found),
        *assumption_lines(found),
    ):
        console.print(text, markup=False, soft_wrap=True)
    return found


def amount(value: float) -> str:
    """A count with a unit a person can hold: 1.2 k, 53.8 M, 2.6 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def _table(found: Budget) -> Table:
    pocket = found.shape.name == "pocket"
    table = Table(
        title=f"Cost of {found.plan.study.name}: {len(found.lines)} stages to do, {found.done} "
        "done",
        box=None,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    for column in (
        "stage",
        "n",
        "tokens",
        "10¹⁵ op",
        "seconds" if pocket else "GPU-hours",
        "from",
        "judge calls",
        "judge tokens",
        "USD",
    ):
        table.add_column(
            column,
            justify="left" if column in ("stage", "from") else "right",
            no_wrap=column == "stage",
            min_width=5,
        )
    for stage in [*dict.fromkeys(line.node.stage for line in found.lines), ""]:
        lines = found.of(stage) if stage else list(found.lines)
        works = [line.work for line in lines]
        tokens = sum(w.read + w.generated + w.trained for w in works)
        time = sum(line.seconds for line in lines) if pocket else found.gpu_seconds(lines) / 3600
        sources = (
            sorted({line.source.split(" (")[0] for line in lines})
            if stage and (pocket or time)
            else []
        )
        cells = [
            stage or "all",
            str(len(lines)),
            amount(tokens),
            f"{sum(w.flops for w in works) / 1e15:,.1f}",
            f"{time:,.1f}",
            ", ".join(sources),
        ]
        cells += [
            amount(sum(w.judge_calls for w in works)),
            amount(sum(w.judge_prompt + w.judge_reply for w in works)),
            f"{found.usd(lines):,.2f}",
        ]
        table.add_row(*(cell.replace(" ", "\u00a0") for cell in cells))
    return table


def arithmetic(found: Budget) -> Iterator[str]:
    """One line per kind of stage: its work in words, its operations, its time."""
    yield "How each figure comes about (of one stage; stages of a kind may differ by a little):"
    size = f"{found.shape.parameters / 1e9:.2f} B"
    assumed, peak = found.assumptions, found.assumptions.device.flops / 1e12
    for stage in dict.fromkeys(line.node.stage for line in found.lines):
        line = max(found.of(stage), key=lambda one: one.seconds)
        work = line.work
        if not work.how:
            continue
        text = f"  {stage}: {work.how}"
        if work.flops and line.source == "operations":
            parts = [
                (6, work.trained, assumed.training),
                (2, work.read, assumed.reading),
                (2, work.generated, assumed.generating),
            ]
            of = "0.435 B" if "PairRM" in work.how else size
            shown = [
                f"{k} × {of} × {amount(tokens)} tokens / ({peak:,.0f} T × {share:.3g})"
                for k, tokens, share in parts
                if tokens
            ]
            text += f"; {' + '.join(shown)} = {line.seconds / 3600:.2f} GPU-hours"
        elif line.source.startswith("measured"):
            text += f"; {line.seconds:.1f} s by the nearest of {line.source.split('(')[1].rstrip(')')} measured in this store"
        elif line.source == "prior" and found.shape.name == "pocket" and stage in POCKET:
            rate = POCKET[stage]
            share = (
                f"{work.flops / 1e9:,.1f} G operations × {rate.each * 1e9:.2g} s"
                if work.flops
                else f"{work.rows:,.0f} rows × {rate.each:.2g} s"
            )
            text += f"; ({rate.fixed:.3g} s + {share})" if rate.each else f"; {rate.fixed:.3g} s"
            text += f" × {assumed.slowness:.2f} for this machine = {line.seconds:.2f} s"
        yield text


def time_and_price(found: Budget, workers: int) -> Iterator[str]:
    """Elapsed time on the workers or devices, and money."""
    lines, assumed = found.lines, found.assumptions
    if found.shape.name == "pocket":
        taken, total = elapsed(found, workers), sum(line.seconds for line in lines)
        yield f"Elapsed: about {taken['all'] / 60:.1f} minutes on {workers} workers: {total:,.0f} stage-seconds in {taken['stages']:,.0f} s,"
        yield f"  start-up of every worker included, and {taken['report']:,.0f} s for the report."
        return
    hours = found.gpu_seconds(lines) / 3600
    alone = wall_seconds(found.plan, lines, assumed.devices) / 3600
    devices = f"{assumed.devices} device{'s' if assumed.devices > 1 else ''}"
    yield f"GPU-hours: {hours:,.1f}; on {devices} {alone:,.1f} hours when every stage runs on one device,"
    yield f"  {hours / assumed.devices:,.1f} hours when every stage is spread over all of them without loss."
    if assumed.usd_per_gpu_hour:
        yield f"Devices: {hours:,.1f} × {assumed.usd_per_gpu_hour:.2f} USD = {hours * assumed.usd_per_gpu_hour:,.0f} USD."
    calls, prompt, reply = (
        sum(getattr(line.work, name) for line in lines)
        for name in ("judge_calls", "judge_prompt", "judge_reply")
    )
    runtime = next((line.node.runtime for line in lines if line.work.judge_calls), {})
    prices = [
        float(runtime.get(f"price_{kind}_usd_per_million", 0.0))
        for kind in ("prompt", "completion")
    ]
    shown = f"{amount(prompt)} × {prices[0]:g} + {amount(reply)} × {prices[1]:g} USD a million tokens = {found.usd(lines):,.2f} USD"
    yield f"Judge: {calls:,.0f} calls; {shown}{'' if any(prices) else ' (no prices in runtime.price_…)'}."


def memory_lines(found: Budget) -> Iterator[str]:
    """Memory part by part, alone and shared, against the device's."""
    if found.shape.name == "pocket":
        return
    device, devices = found.assumptions.device, found.assumptions.devices
    for what, needs in found.memory.items():
        spread = f"with the parameters spread over {devices}" if what == "training" else "each"
        yield f"Memory of {what}, in GB on one device ({spread}):"
        for need in needs:
            yield f"  {need.what}: {need.how} = {need.alone / GB:.1f}" + (
                f" ({need.shared / GB:.1f})" if need.shared != need.alone else ""
            )
        yield f"  in all: {verdict(needs, device.memory, device.name, devices)}"


def verdict(needs: Sequence[Need], memory: float, name: str, devices: int) -> str:
    """Whether it fits, and by how much it does not."""
    alone, shared = (sum(getattr(need, which) for need in needs) for which in ("alone", "shared"))
    room = 0.9 * memory
    if alone <= room:
        return f"{alone / GB:.1f} of {room / GB:.0f} usable (nine tenths of {name}): fits on one device"
    over = f"{alone / GB:.1f}, {(alone - room) / GB:.1f} too much for one {name} ({room / GB:.0f} usable)"
    if shared == alone:
        return f"{over}: a smaller generation_batch (vLLM keeps what fits and queues the rest)"
    return f"{over}; spread over {devices} devices {shared / GB:.1f} each: {'fits' if shared <= room else 'does not fit either; use LoRA'}"


def assumption_lines(found: Budget) -> Iterator[str]:
    """Everything the budget rests on."""
    shape, assumed, lengths = found.shape, found.assumptions, found.assumptions.lengths
    yield "Assumptions:"
    yield (
        f"  {shape.name}: {shape.layers} layers × {shape.hidden}, inner {shape.inner:,}, "
        f"{shape.heads} heads ({shape.kv_heads} of keys), "
        f"{shape.vocabulary:,} words: {amount(shape.parameters)} parameters."
    )
    yield f"  A prompt has {lengths.prompt} tokens, an answer {lengths.answer} (never over its limit), a judged answer {lengths.judged_answer}."
    yield "  The exploration answer y is one of the pair in two of three rows, so that a row holds 2⅓ different answers."
    if found.plan.study.base.training.lora is not None:
        yield "  LoRA needs no gradients of the frozen weights (about 4 operations instead of 6); counted as 6, so that the figure is an upper one."
    if found.shape.name != "pocket":
        yield (
            f"  {assumed.device.name}: {assumed.device.flops / 1e12:,.0f}·10¹² bfloat16 "
            "operations a second, of which training reaches "
            f"{assumed.training:.0%}, reading {assumed.reading:.0%} and generating "
            f"{assumed.generating:.1%}. Loading and start-up are not counted."
        )
    else:
        started = ", ".join(f"{one.what} {one.seconds:g} s" for one in START_UP)
        compared = f"{assumed.slowness:.2f} times as long for a tiny training step as {REFERENCE}"
        yield f"  This machine as it is now takes {compared}, where the constants were measured."
        yield f"  A worker starts once, on that core: {started}. There is a core for every worker."
    yield "  6 operations per parameter and trained token, 2 per token read or generated; measured seconds replace them where there are any."
