"""``selm power``: what a study could detect, and the seeds and items that a difference needs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from analysis import findings
from analysis.findings import Comparison
from analysis.judge_runs import differences, judge_runs
from analysis.load import StudyData, load_study
from analysis.power import Components, Needed, Population, detectable, items_needed, seeds_needed
from analysis.table import Table, TableRow
from analysis.text import number, size
from harness.records import HarnessError

SEEDS = (3, 5, 10)
"""Numbers of seeds for which a table says what they would detect."""


def power_study(study_dir: Path, store_dir: Path, delta: float | None) -> Table:
    """What every arm could detect on the primary outcome, and what ``delta`` (None: a round one at
    most half of that) would need. HarnessError without a complete comparison over two seeds.
    """
    data = load_study(study_dir, store_dir)
    found = findings.find(data)
    if delta is None:
        less = next(filter(None, map(seeds_for_less, found.primary)), None)
        delta = less[0] if less else 1.0
    if not 0 < delta < math.inf:
        raise HarnessError(f"power: --delta is {delta}; it must be above 0, in the score's units")
    measure = found.primary_measure
    what = f"{measure.with_unit} after iteration {found.primary_iteration}"
    designs = [(c, c.spread) for c in found.primary if c.spread is not None]
    if not designs:
        raise HarnessError(f"{study_dir}: no complete comparison over 2 seeds or more")
    rows, observations = [], []
    for c, spread in designs:
        for population in findings.POPULATIONS:
            head = {"comparison": f"{c.label} minus {found.baseline_label}"}
            shown, numbers = _row(c, spread, population, delta)
            rows.append(TableRow({**head, **shown}))
            observations.append({**head, **numbers, "delta": delta, "of": what})
    first = designs[0][0].estimate
    caption = (
        f"{what}: 80 % power, two-sided 5 %, delta = {delta:g}; {first.seeds} seeds × "
        f"{first.clusters} items now."
    )
    notes = [
        "(A): this benchmark, new seeds. (B): new seeds and new items.",
        "Ranges: the spread over few seeds is itself known only roughly. At what is printed "
        "before them the true power is 0.59 on average where 3 seeds of two arms told it, 0.68 "
        "with 5, 0.74 with 10.",
    ]
    if measure.benchmark in {one["name"] for one in data.benchmarks if one["judged"]}:
        notes += [advised(data, c) for c in found.primary]
    return Table("power", "Seeds and items needed", caption, rows, observations, notes)


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


def _row(
    c: Comparison, spread: Components, population: Population, delta: float
) -> tuple[dict[str, str], dict[str, object]]:
    """What is shown of a comparison for one population, and the numbers behind it."""
    digits, items = c.measure.digits, c.estimate.clusters
    now, *others = (
        detectable(spread, seeds, items, population, arms=c.arms)
        for seeds in (c.estimate.seeds, *SEEDS)
    )
    seeds = seeds_needed(spread, delta, items, population, arms=c.arms)
    more = items_needed(spread, delta, c.estimate.seeds, population, arms=c.arms)
    detected = now.undefined
    if now.value is not None:
        detected = size(now.value, digits)
        if now.low is not None and now.high is not None:
            detected += f" ({size(now.low, digits)} to {size(now.high, digits)})"
    with_seeds = f"with {', '.join(map(str, SEEDS))} seeds"
    shown = {
        "population": population,
        "σ seed": size(spread.sigma_s, digits),
        "σ item": size(spread.sigma_i, digits),
        "σ error": size(spread.sigma_e, digits),
        "detectable now": detected,
        with_seeds: ", ".join(size(found.value, digits) for found in others),
        "seeds for delta": _needed_text(seeds),
        "items for delta": _needed_text(more),
    }
    numbers: dict[str, object] = {
        "population": population,
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
        "items": more.value,
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
    judge, runs = judge_runs(cube).judge, cube.shape[-1]
    sizes = c.estimate.seeds, c.estimate.clusters
    return f"{c.label}: {advice(c.spread, *sizes, judge, runs, arms=c.arms)}"


def advice(
    spread: Components, seeds: int, items: int, judge: float, runs: int, *, arms: int = 2
) -> str:
    """What (A) detects now, with twice the judge's runs, and with one more seed, and the judge's
    share of a² = σ_s²/S + σ_e²/(S·n). judge: variance of one verdict of the difference.
    """
    own = min(judge / runs, spread.sigma_e**2)
    doubled = replace(spread, sigma_e=math.sqrt(spread.sigma_e**2 - own / 2))
    designs = ((spread, seeds), (doubled, seeds), (spread, seeds + 1))
    now, repeats, more = (
        detectable(one, count, items, "A", arms=arms).value for one, count in designs
    )
    if now is None or repeats is None or more is None:
        return "repeats and seeds cannot be compared below 3 seeds."
    rest = spread.sigma_e**2 / (seeds * items)
    share = own / (seeds * items) / (spread.sigma_s**2 / seeds + rest)
    better = "more repeats help more" if repeats < more else "more seeds help more"
    return (
        f"the judge's noise is {100 * share:.0f} % of the variance of (A). Twice the repeats would "
        f"detect {number(repeats)}, one more seed {number(more)} (now {number(now)}): {better}."
    )
