"""``selm power``: what a study could detect, and the seeds and items that a difference needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis import findings
from analysis.load import load_study
from analysis.power import (
    Components,
    Needed,
    detectable,
    from_components,
    from_estimate,
    items_needed,
    seeds_needed,
)
from analysis.table import Row, Table
from analysis.text import number
from harness.records import HarnessError

COLUMNS = (
    "comparison",
    "population",
    "σ seed",
    "σ item",
    "σ error",
    "detectable now",
    "seeds for delta",
    "items for delta",
)
DATA = (
    "comparison",
    "population",
    "sigma_s",
    "sigma_s_low",
    "sigma_s_high",
    "sigma_i",
    "sigma_e",
    "detectable",
    "detectable_low",
    "detectable_high",
    "seeds",
    "items",
)


def power_study(study_dir: Path, store_dir: Path, delta: float) -> Table:
    """For the study's primary outcome, every arm against the baseline: what it could detect, what
    ``delta`` would need.

    Raises HarnessError when the study has no complete comparison over two seeds or more.
    """
    _check_delta(delta)
    found = findings.find(load_study(study_dir, store_dir))
    rows = []
    for comparison in found.primary:
        estimate = comparison.estimate
        if estimate.squares is not None and estimate.seeds >= 2 and estimate.clusters >= 2:
            rows.append(
                (
                    f"{comparison.label} minus {found.baseline_label}",
                    from_estimate(estimate),
                    estimate.seeds,
                    estimate.clusters,
                )
            )
    if not rows:
        raise HarnessError(
            f"{study_dir}: no complete comparison over 2 seeds or more; give --sigma-seed, "
            "--sigma-item and --sigma-error instead"
        )
    return _table(
        rows, delta, f"{found.primary_measure.name} after iteration {found.primary_iteration}"
    )


def power_given(sigma: tuple[float, float, float], seeds: int, items: int, delta: float) -> Table:
    """The same from given components (σ over seeds, over items, residual), in the score's units."""
    _check_delta(delta)
    if min(sigma) < 0 or seeds < 2 or items < 2:
        raise HarnessError("power: the three σ must be 0 or more, seeds and items 2 or more")
    return _table(
        [("given components", from_components(*sigma), seeds, items)], delta, "given components"
    )


def _check_delta(delta: float) -> None:
    if not delta > 0:
        raise HarnessError(f"power: --delta is {delta}; it must be above 0, in the score's units")


def _table(rows: Sequence[tuple[str, Components, int, int]], delta: float, what: str) -> Table:
    shown, data = [], []
    for name, c, seeds, items in rows:
        for population in findings.POPULATIONS:
            now = detectable(c, seeds, items, population)
            more_seeds = seeds_needed(c, delta, items, population)
            more_items = items_needed(c, delta, seeds, population)
            value = number(now.value, 2) if now.value is not None else now.undefined
            shown.append(
                Row(
                    (
                        name,
                        population,
                        number(c.sigma_s, 2),
                        number(c.sigma_i, 2),
                        number(c.sigma_e, 2),
                        value,
                        needed_text(more_seeds),
                        needed_text(more_items),
                    )
                )
            )
            data.append(
                (
                    name,
                    population,
                    c.sigma_s,
                    c.low,
                    c.high,
                    c.sigma_i,
                    c.sigma_e,
                    now.value,
                    now.low,
                    now.high,
                    more_seeds.value,
                    more_items.value,
                )
            )
    seeds, items = rows[0][2], rows[0][3]
    caption = (
        f"{what}: 80 % power, two-sided 5 %, delta = {delta:g} points; {seeds} seeds × "
        f"{items} items now."
    )
    notes = (
        "(A): this benchmark, new seeds. (B): new seeds and new items.",
        "Ranges: the spread over few seeds is itself known only roughly.",
    )
    return Table(
        "power", "Seeds and items needed", caption, COLUMNS, tuple(shown), DATA, tuple(data), notes
    )


def needed_text(found: Needed) -> str:
    if found.value is None:
        return found.reason
    ends = [str(end) if end is not None else f">{found.limit}" for end in (found.low, found.high)]
    return (
        f"{found.value} ({ends[0]} to {ends[1]})"
        if found.low is not None or found.high is not None
        else str(found.value)
    )
