"""``docs/arithmetic.md``: what the paper's recipes take, and what a detectable difference does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from analysis.power import from_components, seeds_needed
from harness.cost.budget import Assumptions, Budget, amount, budget
from harness.engine.launch import PAPER_SEED
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.study.shipped import FOLDER
from harness.study.study import compose

RECIPES = ("zephyr-7b", "llama-3-8b", "phi-3-mini")
PRICED = ("llama-3-70b", "gpt-6-luna")
"""Judges whose price is told: an open one served by oneself, and an API's."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "rollout, ranking": ("rollout", "rank"),
    "reference, training": ("reference", "train"),
    "answers, held-out rewards": ("answer", "heldout"),
    "academic tasks": ("academic",),
    "diagnostics": ("diagnostics",),
}
ITEMS, DELTA = 805, 1.0
SPREADS = (0.5, 1.0, 2.0)
"""Assumed standard deviations over seeds of a difference between two arms, LC points."""
GPU_PRICE = 2.5
"""USD for an hour of an H100, assumed; `selm plan --cost --gpu-price` takes another."""


def cost_of(recipe: str, judge: str) -> Budget:
    """One run of a recipe, nothing of it done; the hub is not asked."""
    path = FOLDER / "recipes" / f"{recipe}.yaml"
    whole = str(path.resolve())
    study = compose(path, recipe, whole, {"judge": judge}, {"recipe": {}}, [PAPER_SEED])
    with tempfile.TemporaryDirectory() as folder:
        return budget(build_plan(study), Store(Path(folder)), Assumptions())


def hours(found: Budget, *stages: str) -> float:
    """GPU-hours of these stages, or of all."""
    lines = [line for line in found.lines if not stages or line.node.stage in stages]
    return found.gpu_seconds(lines) / 3600


def price(found: Budget) -> float:
    """USD of its judging."""
    return sum(line.usd for line in found.lines)


def table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Markdown, numbers to the right."""
    lines = [heads, (":--", *("--:" for _ in heads[1:])), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def cost_page() -> str:
    """The page, from the planner's own figures."""
    open_judge, paid = PRICED
    found = {name: cost_of(name, paid) for name in RECIPES}
    free = {name: cost_of(name, open_judge) for name in RECIPES}
    total = {name: hours(one) for name, one in found.items()}

    def parts() -> Iterator[tuple[str, ...]]:
        for part, stages in PARTS.items():
            yield part, *(f"{hours(one, *stages):.1f}" for one in found.values())
        yield "**GPU-hours**", *(f"**{one:.1f}**" for one in total.values())
        yield (
            f"USD at {GPU_PRICE:.2f} an hour",
            *(f"{one * GPU_PRICE:.0f}" for one in total.values()),
        )
        for judges in (free, found):
            yield from judging(judges)

    def judging(judges: Mapping[str, Budget]) -> Iterator[tuple[str, ...]]:
        bills = {name: one.bills()[0] for name, one in judges.items()}
        said = (f"{amount(bill.calls)} calls, {bill.usd:.2f} USD" for bill in bills.values())
        yield f"judge {bills[RECIPES[0]].name}", *said

    def differences() -> Iterator[tuple[str, ...]]:
        for spread in SPREADS:
            seeds = seeds_needed(from_components(spread, 0, 0), DELTA, ITEMS, "A").value or 0
            runs = 2 * seeds
            costs = (
                f"{runs * total[name]:,.0f} h, "
                f"{runs * (total[name] * GPU_PRICE + price(found[name])):,.0f} USD"
                for name in RECIPES
            )
            yield f"{spread:g}", str(seeds), *costs

    return PAGE.format(
        parts=table(("one run", *RECIPES), parts()),
        differences=table(("σ over seeds", "seeds", *RECIPES), differences()),
        paid=paid,
        shares=Assumptions(),
    )


PAGE = """# What it costs

Written by `python -m harness.cli.docs` from what `selm plan ablations/recipes/NAME.yaml --cost`
counts. That command shows how each figure comes about, with every assumption, and takes your
devices, their price and your judge.

## The paper's recipes: one run

One arm, one seed, every checkpoint scored; on H100s, by operations: of a card's peak training is
taken to reach {shares.training:.0%}, reading {shares.reading:.0%} and generating with vLLM
{shares.generating:.0%}. Loading and start-up are not counted. None of these runs has been made with
this harness.

{parts}

Judge tokens are those of MT-Bench and AlpacaEval 2.0 at the profile's prices; an open judge costs
its own GPU instead. Stages that arms share (data, base, its scores) are counted in each run here
and are run once in a study.

## One difference that can be told

How many seeds an arm and its α = 0 twin need, so that a true difference of 1 point of AlpacaEval's
length-controlled win rate is found four times in five (two-sided 5 % test over seeds, these items),
and what both arms then take, judge {paid} included. σ is the standard deviation over seeds of the
difference of the two arms in LC points. It is assumed: nobody has published it for SELM. A study of
three seeds estimates it within a factor of 0.5 to 6; `selm power STUDY --delta 1.0` then says what
it takes.

{differences}

New items widen the interval further: on 805 instructions no number of seeds tells a difference
under 2.8·σ_i/√805, where σ_i is the difference's standard deviation over instructions.
"""
