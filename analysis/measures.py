"""What a table column or a figure axis shows: a metric of a benchmark, its scale, its unit, and how
seeds' points come about.

A measure over several benchmarks (the mean of the academic tasks) is a stratified mean: every
benchmark weighs the same whatever its number of items, and the difference between benchmarks is no
part of the items' variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.layout import Layout
from analysis.load import Cell, Checkpoint, StudyData

RATING, PERCENT, UNIT = (1.0, 10.0), (0.0, 100.0), (0.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """One column. better: +1 higher, −1 lower, 0 neither. part: MT-Bench's turn. summary: the
    library's own point (stage, key).
    """

    title: str
    benchmark: str
    metric: str
    unit: str = ""
    digits: int = 2
    better: int = 1
    scale: tuple[float, float] | None = None
    part: str = ""
    summary: tuple[str, str] | None = None
    strata: tuple[str, ...] = ()
    unit_of_items: str = "items"
    long: str = ""
    table: str = ""

    @property
    def name(self) -> str:
        """The title where it stands alone, outside its table."""
        return self.long or self.title

    @property
    def key(self) -> str:
        return f"{self.benchmark}.{self.metric}" + (
            f"{self.part.replace(':', '.turn_')}" if self.part else ""
        )


LC = Measure(
    "AlpacaEval LC",
    "alpaca_eval",
    "length_controlled_win_rate",
    "percent",
    summary=("judge.alpaca_eval", "length_controlled_win_rate"),
    unit_of_items="instructions",
)
WR = Measure(
    "AlpacaEval WR",
    "alpaca_eval",
    "win_rate",
    "percent",
    scale=PERCENT,
    unit_of_items="instructions",
)
LENGTH = Measure(
    "length",
    "alpaca_eval",
    "length",
    "characters",
    digits=1,
    better=0,
    unit_of_items="instructions",
    long="answer length (AlpacaEval)",
)
MT = Measure(
    "MT-Bench mean", "mt_bench", "rating", "rating 1–10", scale=RATING, unit_of_items="questions"
)


def of_manifest(data: StudyData) -> tuple[Measure, ...]:
    """What the study's benchmarks show, as their records say it in the manifest."""
    found = []
    for benchmark in data.benchmarks:
        for told in benchmark["measures"]:
            point = (str(benchmark["stage"]), str(told["point"])) if told["point"] else None
            scale = tuple(told["scale"]) if told["scale"] else None
            found.append(
                Measure(
                    told["title"],
                    told["benchmark"],
                    told["metric"],
                    told["unit"],
                    told["digits"],
                    told["better"],
                    scale,  # type: ignore[arg-type]
                    told["part"],
                    point,
                    tuple(told["strata"]),
                    told["items"],
                    told["long"],
                    told["table"],
                )
            )
    return tuple(found)


def columns(data: StudyData, table: str) -> tuple[Measure, ...]:
    """The measures that are columns of a table, benchmarks by name."""
    found = [measure for measure in of_manifest(data) if measure.table == table]
    if table == "table_1":  # the paper's order: AlpacaEval before MT-Bench
        found.sort(key=lambda measure: measure.benchmark)
    return tuple(found)


PAPERS = ("table_1", "table_2", "heldout")
"""Tables with a form of their own; other benchmarks have one table each."""


def other_tables(data: StudyData) -> tuple[str, ...]:
    """Names of the benchmarks that have a table of their own."""
    names = (measure.table for measure in of_manifest(data) if measure.table not in PAPERS)
    return tuple(dict.fromkeys(names))


def others(data: StudyData) -> tuple[Measure, ...]:
    """The measures of those benchmarks."""
    return tuple(measure for measure in of_manifest(data) if measure.table not in PAPERS)


def academic(data: StudyData) -> tuple[Measure, ...]:
    """One column per academic task that has scores (all of them before there are any), then their
    mean.
    """
    asked = columns(data, "table_2")
    present = {benchmark for benchmark, metric in data.metrics() if metric == "score"}
    tasks = [measure for measure in asked if not measure.strata]
    tasks = [measure for measure in tasks if measure.benchmark in present] or tasks
    if len(tasks) < 2:
        return tuple(tasks)
    strata = tuple(measure.benchmark for measure in tasks)
    means = (replace(measure, strata=strata) for measure in asked if measure.strata)
    return (*tasks, *means)


def heldout(data: StudyData, *, sampled: bool = False, ood: bool = False) -> Measure:
    """The ranker's reward of answers to held-out prompts: greedy, or the mean over temperature-1
    samples.
    """
    oracle = (data.recipe.get("ranker") or {}).get("kind", "oracle") == "oracle"
    title = (
        f"{'out-of-distribution' if ood else 'held-out'} reward "
        f"({'sampled' if sampled else 'greedy'})"
    )
    name = "heldout_ood" if ood else "heldout"
    scale = UNIT if oracle else None
    return Measure(
        title,
        name,
        "reward_sampled" if sampled else "reward",
        "reward",
        3,
        scale=scale,
        unit_of_items="prompts",
    )


def diagnostic(metric: str, title: str, unit: str = "nats", digits: int = 3) -> Measure:
    """A diagnostic as a measure (clusters are prompts)."""
    return Measure(title, "diagnostics", metric, unit, digits, better=0, unit_of_items="prompts")


def diagnostics(data: StudyData) -> tuple[Measure, ...]:
    """The diagnostics that the study holds: the known ones in reading order, then any other by
    name.
    """
    present = [metric for _, metric in data.metrics("diagnostics")]
    told = {one["metric"]: one for one in data.shown_diagnostics}
    known = [
        diagnostic(metric, one["title"], one["unit"], one["digits"])
        for metric, one in told.items()
        if metric in present
    ]
    rest = [metric for metric in present if metric not in told]
    return (*known, *(diagnostic(metric, metric.replace("_", " "), "") for metric in rest))


def all_measures(data: StudyData) -> dict[str, Measure]:
    """Every measure the study can show, by key ("alpaca_eval.win_rate")."""
    found = [
        *of_manifest(data),
        *academic(data),
        *(heldout(data, sampled=s, ood=o) for o in (False, True) for s in (False, True)),
    ]
    return {measure.key: measure for measure in [*found, *diagnostics(data)]}


def find(data: StudyData, benchmark: str, metric: str) -> Measure:
    """The measure of a declared outcome; one that the tables do not know is taken as it is."""
    known = all_measures(data).get(f"{benchmark}.{metric}")
    return known or Measure(f"{benchmark} {metric.replace('_', ' ')}", benchmark, metric)


# -- scores of a measure ---------------------------------------------------------------------------
def parts(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> list[Cell]:
    """The measure's cells: one, or one per stratum."""
    names = measure.strata or (measure.benchmark,)
    return [
        data.cell(checkpoint, name, measure.metric, measure.part, measure.scale) for name in names
    ]


def layout_of(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> Layout:
    """Seeds × clusters of a measure. Where the library gives the point (length-controlled win
    rate), a seed's pseudo-values are shifted so that their mean is that point: the jackknife gives
    the spread, never the value.
    """
    cells = parts(data, checkpoint, measure)
    if measure.strata:
        return stack([cell.layout for cell in cells])
    cell = cells[0]
    if measure.benchmark == "diagnostics" and not crossed(data, measure):
        return by_seed(cell)
    if measure.summary is None:
        return cell.layout
    return _on_library_points(data, checkpoint, cell.layout, measure.summary)


def crossed(data: StudyData, measure: Measure) -> bool:
    """Whether every run has values of a diagnostic on the same prompts. Training prompts differ
    between seeds, and some diagnostics are undefined on some prompts; then seeds are compared by
    their means, and only (A) is given.
    """
    cache: dict[str, bool] = data.__dict__.setdefault("_crossed", {})
    if measure.key not in cache:
        found = []
        for checkpoint in data.checkpoints:
            cell = data.cell(
                checkpoint, measure.benchmark, measure.metric, measure.part, measure.scale
            )
            if not cell.statuses or cell.statuses.get("error") or cell.absent:
                continue
            found.append((cell.layout.clusters, bool(np.isnan(cell.layout.values).any())))
        cache[measure.key] = (
            not any(holes for _, holes in found) and len({clusters for clusters, _ in found}) <= 1
        )
    return cache[measure.key]


def by_seed(cell: Cell) -> Layout:
    """One cluster per seed: its mean over the items where the measure is defined. Seeds without any
    stay missing.
    """
    values = cell.points[:, None].astype(float)
    missing = np.isnan(values).astype(np.int64)
    return Layout(
        values,
        cell.layout.seeds,
        ("all",),
        None,
        missing,
        np.ones_like(missing),
        *([values, values] if not missing.any() else [None, None]),
    )


def _on_library_points(
    data: StudyData, checkpoint: Checkpoint, cell: Layout, summary: tuple[str, str]
) -> Layout:
    values = cell.values.copy()
    for run in checkpoint.runs:
        point = data.summary(run, checkpoint.iteration, summary[0]).get(summary[1])
        if run.seed in cell.seeds and isinstance(point, (int, float)):
            row = cell.seeds.index(run.seed)
            if not np.isnan(values[row]).all():
                values[row] += float(point) - float(np.nanmean(values[row]))
    return replace(cell, values=values, low=None, high=None)


def points(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> dict[int, float]:
    """The score of every seed that has any, as the benchmark defines it (the mean over surviving
    rows, or the library's point).
    """
    cells = parts(data, checkpoint, measure)
    found: dict[int, float] = {}
    for run in checkpoint.runs:
        values = [
            float(cell.points[cell.layout.seeds.index(run.seed)])
            if run.seed in cell.layout.seeds
            else float("nan")
            for cell in cells
        ]
        if measure.summary is not None and not np.isnan(values[0]):
            values = [
                float(
                    data.summary(run, checkpoint.iteration, measure.summary[0]).get(
                        measure.summary[1], "nan"
                    )
                )
            ]
        if values and not np.isnan(values).any():
            found[run.seed] = float(np.mean(values))
    return found


def stack(layouts: Sequence[Layout]) -> Layout:
    """One layout whose plain mean is the mean of the parts' means, with the parts' items as
    independent strata.

    Each part is centred on its own mean and scaled by N/(K·n_k), so that the two-way layout's item
    variance is Σ var_k/(K²·n_k) and holds no difference between parts. Parts with other seeds than
    the first, or empty ones, make the whole incomplete.
    """
    total, count = sum(len(part.clusters) for part in layouts), len(layouts)
    seeds = sorted(set().union(*(part.seeds for part in layouts)))
    if not total or any(sorted(part.seeds) != seeds or not part.clusters for part in layouts):
        nothing = np.zeros((0, 0), np.int64)
        return Layout(
            np.empty((0, 0)), (), (), layouts[0].scale if layouts else None, nothing, nothing
        )
    parts_in_order = [part.take(seeds) for part in layouts]
    centres = [
        float(np.nanmean(part.values)) if not np.isnan(part.values).all() else np.nan
        for part in parts_in_order
    ]
    overall = float(np.mean(centres))

    def scaled(pick: Any) -> Any:
        columns = [pick(part) for part in parts_in_order]
        if any(column is None for column in columns):
            return None
        weights = [total / (count * len(part.clusters)) for part in parts_in_order]
        return np.hstack(
            [
                (column - centre) * weight + overall
                for column, centre, weight in zip(columns, centres, weights, strict=True)
            ]
        )

    names = tuple(
        f"{number}:{name}" for number, part in enumerate(parts_in_order) for name in part.clusters
    )
    missing = np.hstack([part.missing for part in parts_in_order])
    rows = np.hstack([part.rows for part in parts_in_order])
    values = scaled(lambda part: part.values)
    return Layout(
        values,
        tuple(seeds),
        names,
        layouts[0].scale,
        missing,
        rows,
        scaled(lambda part: part.low),
        scaled(lambda part: part.high),
    )


def declared(data: StudyData, outcome: Mapping[str, Any]) -> tuple[Measure, int]:
    """Measure and iteration of a declared outcome."""
    iteration = outcome.get("iteration", "last")
    number = data.last_iteration if iteration == "last" else int(iteration)
    return find(
        data, str(outcome.get("benchmark", LC.benchmark)), str(outcome.get("metric", LC.metric))
    ), number
