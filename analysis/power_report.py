"""``selm power``: what a study could detect, and the seeds and items that a difference needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import findings
from analysis.findings import Comparison
from analysis.judge_runs import differences, judge_runs
from analysis.load import StudyData, load_study
from analysis.power import Components, Needed, Population, detectable, items_needed, seeds_needed
from analysis.table import Table, TableRow
from analysis.text import finer, number, size
from harness.records import HarnessError

SEEDS = (3, 5, 10)
"""Numbers of seeds for which a table says what they would detect."""


@dataclass(frozen=True)
class Design:
    """A spread, the seeds and items now, the arms that told the spread, digits to show."""

    name: str
    spread: Components
    seeds: int
    items: int
    arms: int = 2
    digits: int = 2


def power_study(study_dir: Path, store_dir: Path, delta: float | None) -> Table:
    """What every arm could detect on the primary outcome, and what ``delta`` (None: a round one at
    most half of that) would need. HarnessError without a complete comparison over two seeds.
    """
    data = load_study(study_dir, store_dir)
    found = findings.find(data)
    if delta is None:
        less = next(filter(None, map(seeds_for_less, found.primary)), None)
        delta = less[0] if less else 1.0
    designs = []
    for c in found.primary:
        if c.spread is not None:
            name = f"{c.label} minus {found.baseline_label}"
            sizes = c.estimate.seeds, c.estimate.clusters
            designs.append(Design(name, c.spread, *sizes, c.arms, c.measure.digits))
    if not designs:
        raise HarnessError(
            f"{study_dir}: no complete comparison over 2 seeds or more; give --sigma with three "
            "numbers instead: over seeds, over items, residual"
        )
    what = f"{found.primary_measure.with_unit} after iteration {found.primary_iteration}"
    table = _table(designs, delta, what)
    judged = {one["name"] for one in data.benchmarks if one["judged"]}
    if found.primary_measure.benchmark not in judged:
        return table
    return replace(table, notes=[*table.notes, *(advised(data, c) for c in found.primary)])


def power_given(sigma: tuple[float, float, float], seeds: int, items: int, delta: float) -> Table:
    """The same from given components (σ over seeds, over items, residual), in the score's units."""
    if not all(0 <= one < math.inf for one in sigma) or seeds < 2 or items < 2:
        raise HarnessError("power: the three σ must be 0 or more, seeds and items 2 or more")
    digits = finer(2, delta)  # the unit is the user's: delta says how small a number matters
    given = Design("given components", Components(*sigma), seeds, items, digits=digits)
    return _table([given], delta, given.name)


def seeds_for_less(c: Comparison) -> tuple[float, Needed] | None:
    """The largest 1, 2 or 5 times a power of ten at most half of what is detectable under (A), and
    the seeds that would detect it; None where that is undefined.
    """
    now = c.detectable.get("A")
    if c.spread is None or now is None or now.value is None:
        return None
    power = math.floor(math.log10(now.value / 2))
    delta = max(step for n in (1, 2, 5) if (step := n * 10.0**power) <= now.value / 2)
    return delta, seeds_needed(c.spread, delta, c.estimate.clusters, "A", arms=c.arms)


def _table(designs: Sequence[Design], delta: float, what: str) -> Table:
    if not 0 < delta < math.inf:
        raise HarnessError(f"power: --delta is {delta}; it must be above 0, in the score's units")
    rows, observations = [], []
    for design in designs:
        for population in findings.POPULATIONS:
            shown, numbers = _row(design, population, delta)
            rows.append(TableRow(shown))
            observations.append({**numbers, "delta": delta, "of": what})
    caption = (
        f"{what}: 80 % power, two-sided 5 %, delta = {delta:g}; {designs[0].seeds} seeds × "
        f"{designs[0].items} items now."
    )
    notes = ["(A): this benchmark, new seeds. (B): new seeds and new items."]
    if any(design.spread.low is not None for design in designs):
        notes.append(
            "Ranges: the spread over few seeds is itself known only roughly. At what is printed "
            "before them the true power is 0.59 on average where 3 seeds of two arms told it, 0.68 "
            "with 5, 0.74 with 10."
        )
    return Table("power", "Seeds and items needed", caption, rows, observations, notes)


def _row(
    design: Design, population: Population, delta: float
) -> tuple[dict[str, str], dict[str, object]]:
    """What is shown of a comparison for one population, and the numbers behind it."""
    spread, digits, arms = design.spread, design.digits, design.arms
    now, *others = (
        detectable(spread, seeds, design.items, population, arms=arms)
        for seeds in (design.seeds, *SEEDS)
    )
    seeds = seeds_needed(spread, delta, design.items, population, arms=arms)
    items = items_needed(spread, delta, design.seeds, population, arms=arms)
    detected = now.undefined
    if now.value is not None:
        detected = size(now.value, digits)
        if now.low is not None and now.high is not None:
            detected += f" ({size(now.low, digits)} to {size(now.high, digits)})"
    with_seeds = f"with {', '.join(map(str, SEEDS))} seeds"
    head = {"comparison": design.name, "population": population}
    shown = {
        **head,
        "σ seed": size(spread.sigma_s, digits),
        "σ item": size(spread.sigma_i, digits),
        "σ error": size(spread.sigma_e, digits),
        "detectable now": detected,
        with_seeds: ", ".join(size(found.value, digits) for found in others),
        "seeds for delta": _needed_text(seeds),
        "items for delta": _needed_text(items),
    }
    numbers: dict[str, object] = {
        **head,
        **{f"detectable_{n}_seeds": d.value for n, d in zip(SEEDS, others, strict=True)},
        "sigma_s": spread.sigma_s,
        "sigma_s_low": spread.low,
        "sigma_s_high": spread.high,
        "sigma_i": spread.sigma_i,
        "sigma_e": spread.sigma_e,
        "detectable": now.value,
        "detectable_low": now.low,
        "detectable_high": now.high,
        "seeds": seeds.value,
        "items": items.value,
    }
    return shown, numbers


def _needed_text(found: Needed) -> str:
    if found.value is None:
        return found.reason
    if found.low is None and found.high is None:
        return str(found.value)
    low, high = (f">{found.limit}" if end is None else end for end in (found.low, found.high))
    return f"{found.value} ({low} to {high})"


def most_seeds(found: Table) -> tuple[int, str] | None:
    """The seeds that ``power``'s most demanding comparison needs under (A), and the difference that
    they detect; None where no number of seeds does.
    """
    needed = [row["seeds"] for row in found.data if row["population"] == "A"]
    if None in needed:
        return None
    first = found.data[0]
    return max(needed), f"{first['delta']:g} in {first['of']} with 80 % power under (A)"


# -- repeats or seeds ------------------------------------------------------------------------------
def advised(data: StudyData, c: Comparison) -> str:
    """Whether a comparison gains more by repeats or by seeds, in a sentence."""
    cube = differences(data, c.measure, c)
    if cube is None or c.spread is None:
        return (
            f"{c.label}: the judge's noise is unknown, so nothing says whether repeats or seeds "
            "help more; judge.repeats 2 tells."
        )
    now = Design(c.label, c.spread, c.estimate.seeds, c.estimate.clusters, c.arms)
    return advice(now, judge_runs(cube).judge, cube.shape[-1])


def advice(now: Design, judge: float, runs: int) -> str:
    """What (A) detects now, with twice the judge's runs, and with one more seed, and the judge's
    share of a² = σ_s²/S + σ_e²/(S·n). judge: variance of one verdict of the difference.
    """
    spread, seeds, items = now.spread, now.seeds, now.items
    own = min(judge / runs, spread.sigma_e**2)
    doubled = replace(spread, sigma_e=math.sqrt(spread.sigma_e**2 - own / 2))
    designs = ((spread, seeds), (doubled, seeds), (spread, seeds + 1))
    today, repeats, more = (
        detectable(one, count, items, "A", arms=now.arms).value for one, count in designs
    )
    if today is None or repeats is None or more is None:
        return f"{now.name}: repeats and seeds cannot be compared below 3 seeds."
    share = (
        own / (seeds * items) / (spread.sigma_s**2 / seeds + spread.sigma_e**2 / (seeds * items))
    )
    better = "more repeats help more" if repeats < more else "more seeds help more"
    return (
        f"{now.name}: the judge's noise is {100 * share:.0f} % of the variance of (A). Twice the "
        f"repeats would detect {number(repeats)}, one more seed {number(more)} (now "
        f"{number(today)}): {better}."
    )
