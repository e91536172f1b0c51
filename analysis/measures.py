"""What a table column or a figure axis shows: a metric of a benchmark, its scale, its unit, and how
seeds' points come about.

A measure over several benchmarks (the mean of the academic tasks) is a stratified mean: every
benchmark weighs the same whatever its number of items, and the difference between benchmarks is no
part of the items' variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.layout import Floats, Layout, empty
from analysis.load import DIAGNOSTICS, Cell, Checkpoint, Run, StudyData, once, read_json

PERCENT, UNIT = (0.0, 100.0), (0.0, 1.0)
WIN_RATE = "alpaca_eval.win_rate"
SHARED_TABLES = ("table_1", "table_2", "heldout")
"""Tables of several benchmarks; any other benchmark has a table of its own."""


@dataclass(frozen=True)
class Measure:
    """One column. better: +1 higher, −1 lower, 0 neither. part: the end of the items' names that it
    is about (MT-Bench's turn). point: key of the library's own value in the stage's summary.
    strata: the benchmarks it is the mean of. long: the title where it stands alone, outside its
    table.
    """

    title: str
    benchmark: str
    metric: str
    unit: str = ""
    digits: int = 2
    better: int = 1
    scale: tuple[float, float] | None = None
    part: str = ""
    point: str = ""
    strata: tuple[str, ...] = ()
    unit_of_items: str = "items"
    long: str = ""
    table: str = ""

    @property
    def name(self) -> str:
        return self.long or self.title

    @property
    def key(self) -> str:
        return f"{self.benchmark}.{self.metric}{self.part.replace(':', '.turn_')}"

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names in score rows."""
        return self.strata or (self.benchmark,)

    @property
    def with_unit(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@once
def of_benchmarks(data: StudyData) -> tuple[Measure, ...]:
    """What the study's benchmarks show, as their records say it in the manifest."""
    oracle = data.recipe["ranker"]["kind"] == "oracle"  # whose rewards lie between 0 and 1
    found = []
    for benchmark in data.benchmarks:
        for told in benchmark["measures"]:
            fields = {**told, "strata": tuple(told["strata"]), "unit_of_items": told["items"]}
            fields["scale"] = tuple(told["scale"]) if told["scale"] else None
            if told["table"] == "heldout" and oracle:
                fields["scale"] = UNIT
            del fields["items"]
            found.append(Measure(**fields))
    return tuple(found)


def columns(data: StudyData, table: str) -> tuple[Measure, ...]:
    """The measures that are columns of a table. A mean of several benchmarks is that of those with
    scores (of all before there are any), which its name says, and stands only where there are two
    or more.
    """
    asked = [measure for measure in of_benchmarks(data) if measure.table == table]
    if table == "table_1":  # the paper's order: AlpacaEval before MT-Bench
        asked.sort(key=lambda measure: measure.benchmark)
    parts = {name for measure in asked for name in measure.strata}
    present = {name for name, _ in data.metrics()}
    kept = [name for name in parts if name in present] or parts
    found = []
    for measure in asked:
        strata = tuple(name for name in measure.strata if name in kept)
        if measure.benchmark in parts and measure.benchmark not in kept:
            continue
        if len(strata) < len(measure.strata):
            lacks = f" ({len(strata)} of {len(measure.strata)})"
            long = measure.long and measure.long + lacks
            measure = replace(measure, title=measure.title + lacks, long=long)
        if not measure.strata or len(strata) > 1:
            found.append(replace(measure, strata=strata))
    return tuple(found)


def judged(data: StudyData) -> tuple[Measure, ...]:
    """Table 1's measures by a judge of which more or less is better."""
    names = {benchmark["name"] for benchmark in data.benchmarks if benchmark["judged"]}
    return tuple(m for m in columns(data, "table_1") if m.benchmark in names and m.better)


def own_tables(data: StudyData) -> tuple[str, ...]:
    """Names of the benchmarks that have a table of their own."""
    found = dict.fromkeys(measure.table for measure in of_benchmarks(data))
    return tuple(table for table in found if table not in SHARED_TABLES)


def tables(data: StudyData) -> tuple[str, ...]:
    """Every table that holds measures."""
    return (*SHARED_TABLES, *own_tables(data))


def headlines(data: StudyData) -> tuple[Measure, ...]:
    """What summaries compare: Table 1's columns, the mean of Table 2, held-out reward in the
    distribution, and every measure of the other benchmarks.
    """
    found = [*columns(data, "table_1"), *columns(data, "table_2")[-1:]]
    found += [heldout(data), heldout(data, sampled=True)]
    for table in own_tables(data):
        found += columns(data, table)
    return tuple(found)


def present(data: StudyData, asked: Sequence[Measure]) -> list[Measure]:
    """Those of which any score is stored."""
    held = set(data.metrics())
    return [m for m in asked if any((name, m.metric) in held for name in m.benchmarks)]


def heldout(data: StudyData, *, sampled: bool = False) -> Measure:
    """The ranker's reward of held-out answers: greedy, or mean over temperature-1 samples."""
    return find(data, "heldout", "reward_sampled" if sampled else "reward")


def diagnostic(
    metric: str, title: str, unit: str = "nats", digits: int = 3, better: int = 0
) -> Measure:
    """A diagnostic as a measure (clusters are prompts)."""
    return Measure(title, DIAGNOSTICS, metric, unit, digits, better, unit_of_items="prompts")


def diagnostics(data: StudyData) -> tuple[Measure, ...]:
    """The study's diagnostics: known ones in reading order, then any other by name."""
    held = [metric for _, metric in data.metrics(DIAGNOSTICS)]
    found = {}
    for told in data.shown_diagnostics:
        if told["metric"] in held:
            told = {"better": 0, **told}
            shown = [told[name] for name in ("metric", "title", "unit", "digits", "better")]
            found[told["metric"]] = diagnostic(*shown)
    rest = [name for name in held if name not in found]
    return (*found.values(), *(diagnostic(name, name.replace("_", " "), "") for name in rest))


@once
def all_measures(data: StudyData) -> dict[str, Measure]:
    """Every measure the study can show, by key ("alpaca_eval.win_rate")."""
    found = {measure.key: measure for measure in of_benchmarks(data)}
    for table in tables(data):
        found |= {measure.key: measure for measure in columns(data, table)}
    return found | {measure.key: measure for measure in diagnostics(data)}


def find(data: StudyData, benchmark: str, metric: str) -> Measure:
    """The measure of a declared outcome; one that the tables do not know is taken as it is."""
    known = all_measures(data).get(f"{benchmark}.{metric}")
    return known or Measure(f"{benchmark} {metric.replace('_', ' ')}", benchmark, metric)


def declared(data: StudyData, outcome: Mapping[str, Any]) -> tuple[Measure, int]:
    """Measure and iteration of a declared outcome."""
    last = outcome["iteration"] == "last"
    iteration = data.last_iteration if last else int(outcome["iteration"])
    return find(data, outcome["benchmark"], outcome["metric"]), iteration


# -- scores of a measure ---------------------------------------------------------------------------
def parts(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> list[Cell]:
    """The measure's cells: one, or one per stratum."""
    of = (measure.metric, measure.part, measure.scale)
    return [data.cell(checkpoint, name, *of) for name in measure.benchmarks]


def layout_of(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> Layout:
    """Seeds × clusters of a measure. Where the library gives the point (length-controlled win
    rate), a seed's pseudo-values are shifted so that their mean is that point: the jackknife gives
    the spread, never the value.
    """
    cells = parts(data, checkpoint, measure)
    if measure.strata:
        return stack([cell.layout for cell in cells])
    if measure.benchmark == DIAGNOSTICS and not crossed(data, measure):
        return by_seed(cells[0])
    cell = cells[0].layout
    if not measure.point:
        return cell
    values = cell.values.copy()
    for run in checkpoint.runs:
        point = _library_point(data, run, checkpoint.iteration, measure)
        if run.seed in cell.seeds and point is not None:
            row = cell.seeds.index(run.seed)
            if not np.isnan(values[row]).all():
                values[row] += point - float(np.nanmean(values[row]))
    return replace(cell, values=values, low=None, high=None)


def _library_point(data: StudyData, run: Run, iteration: int, measure: Measure) -> float | None:
    point = data.summary(run, iteration, measure.benchmark).get(measure.point)
    return float(point) if isinstance(point, (int, float)) else None


def items_told(data: StudyData, measure: Measure, scored: int) -> str:
    """ "12 items", or "12 items, the first of 1172 by evaluation.academic.limit" (of how many:
    where they come from a file that the study read).
    """
    told, held = f"{scored} {measure.unit_of_items}", measure.benchmark
    owners = (
        one["name"]
        for one in data.benchmarks
        if any(row["benchmark"] == held for row in one["measures"])
    )
    owner = next(owners, "")
    limit = (data.recipe["evaluation"].get(owner) or {}).get("limit")
    cells = (cell for c in data.checkpoints for cell in parts(data, c, measure))
    if not limit or max((len(cell.layout.clusters) for cell in cells), default=0) < limit:
        return told
    of = set()
    for stage in data.stages.values():
        if stage.state == "done" and stage.name.startswith("benchmarks."):
            tasks = read_json(stage.folder / owner / "tasks.json")
            counts = (tasks.get(name, {}).get("items") for name in measure.benchmarks)
            of |= {count for count in counts if count is not None}
    more = " of each" if measure.strata else ""
    if len(of) == 1 and max(of) > limit:
        more = f" of {max(of)}"
    return f"{told}, the first{more} by evaluation.{owner}.limit"


def penalised_to_nothing(summary: Mapping[str, Any]) -> bool:
    """Whether AlpacaEval's own fit kept no coefficient: its L1 penalty, chosen by cross-validation
    on few or near instructions, leaves every prediction at one half, and its LC at exactly 50.
    """
    names = ("length_controlled_win_rate", "lc_standard_error_library")
    return [summary.get(name) for name in names] == [50.0, 0.0] and summary.get("win_rate") != 50.0


@once
def crossed(data: StudyData, measure: Measure) -> bool:
    """Whether every run has values of a diagnostic on the same prompts. Training prompts differ
    between seeds, and some diagnostics are undefined on some prompts; then seeds are compared by
    their means, and only (A) is given.
    """
    prompts = set()
    for checkpoint in data.checkpoints:
        cell = parts(data, checkpoint, measure)[0]
        if not cell.statuses or cell.statuses.get("error") or cell.absent:
            continue
        if np.isnan(cell.layout.values).any():
            return False
        prompts.add(cell.layout.clusters)
    return len(prompts) <= 1


def by_seed(cell: Cell) -> Layout:
    """One cluster a seed: its mean where the measure is defined; else it stays missing."""
    values = cell.points[:, None].astype(float)
    missing = np.isnan(values).astype(np.int64)
    ends = None if missing.any() else values
    rows = np.ones_like(missing)
    return Layout(values, cell.layout.seeds, ("all",), None, missing, rows, ends, ends)


def points(data: StudyData, checkpoint: Checkpoint | None, measure: Measure) -> dict[int, float]:
    """Seed → score as the benchmark defines it (mean over rows, or the library's point)."""
    if checkpoint is None:
        return {}
    cells = parts(data, checkpoint, measure)
    found: dict[int, float] = {}
    for run in checkpoint.runs:
        values = [cell.point(run.seed) for cell in cells]
        if measure.point and not np.isnan(values[0]):
            point = _library_point(data, run, checkpoint.iteration, measure)
            values = [np.nan if point is None else point]
        if not np.isnan(values).any():
            found[run.seed] = float(np.mean(values))
    return found


def stack(layouts: Sequence[Layout]) -> Layout:
    """One layout whose plain mean is the mean of the parts' means, with the parts' items as
    independent strata.

    Each part is centred on its own mean and scaled by N/(K·n_k); what an item adds to its seed's
    mean also by √(n_k/(n_k − 1)·(N − 1)/N). So the two-way layout's item variance is
    Σ s_k²/(K²·n_k), s_k² with the n_k − 1 of its part, and holds no difference between parts. Parts
    with other seeds than the first, or empty ones, make the whole incomplete. With a part of one
    item the items' variance is unknown: then all stand in one cluster.
    """
    seeds = sorted(set().union(*(part.seeds for part in layouts)))
    if any(sorted(part.seeds) != seeds or not part.clusters for part in layouts):
        return empty(layouts[0].scale)
    ordered = [part.take(seeds) for part in layouts]
    total = sum(len(part.clusters) for part in ordered)
    weights = [total / (len(ordered) * len(part.clusters)) for part in ordered]
    centres = [
        np.nan if np.isnan(part.values).all() else float(np.nanmean(part.values))
        for part in ordered
    ]
    overall = float(np.mean(centres))

    def joined(pick: Callable[[Layout], Floats | None]) -> Floats | None:
        scaled = []
        for part, centre, weight in zip(ordered, centres, weights, strict=True):
            columns, n = pick(part), len(part.clusters)
            if columns is None:
                return None
            there = ~np.isnan(columns)
            mean = np.where(there, columns, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
            grown = np.sqrt(n / max(n - 1, 1) * (total - 1) / total)
            own = (columns - mean[:, None]) * grown
            scaled.append((mean[:, None] - centre + own) * weight + overall)
        return np.hstack(scaled)

    names = [f"{k}:{name}" for k, part in enumerate(ordered) for name in part.clusters]
    values = joined(lambda part: part.values)
    assert values is not None
    found = Layout(
        values,
        tuple(seeds),
        tuple(names),
        layouts[0].scale,
        np.hstack([part.missing for part in ordered]),
        np.hstack([part.rows for part in ordered]),
        joined(lambda part: part.low),
        joined(lambda part: part.high),
    )
    return found if min(len(part.clusters) for part in ordered) > 1 else one_cluster(found)


def one_cluster(cell: Layout) -> Layout:
    """All items as one: their mean, missing where any is."""
    ends = (
        None if end is None else end.mean(axis=1, keepdims=True) for end in (cell.low, cell.high)
    )
    missing, rows = (part.sum(axis=1, keepdims=True) for part in (cell.missing, cell.rows))
    values = cell.values.mean(axis=1, keepdims=True)
    return Layout(values, cell.seeds, ("all",), cell.scale, missing, rows, *ends)
