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
MT_1 = replace(MT, title="turn 1", part=":1", long="MT-Bench turn 1")
MT_2 = replace(MT, title="turn 2", part=":2", long="MT-Bench turn 2")
TABLE_1 = (LC, WR, LENGTH, MT, MT_1, MT_2)

TASK_TITLES = {
    "gsm8k": "GSM8K",
    "hellaswag": "HellaSwag",
    "arc_challenge": "ARC-C",
    "truthfulqa_mc2": "TruthfulQA",
    "eq_bench": "EQ-Bench",
    "openbookqa": "OBQA",
}


def academic(data: StudyData) -> tuple[Measure, ...]:
    """One column per academic task of the recipe, in its order, then their mean."""
    tasks = _tasks(data)
    columns = [
        Measure(TASK_TITLES.get(task, task), task, "score", "percent", 1, scale=PERCENT)
        for task in tasks
    ]
    mean = Measure(
        "mean",
        "academic",
        "score",
        "percent",
        1,
        scale=PERCENT,
        strata=tuple(tasks),
        long="mean of academic benchmarks",
    )
    return (*columns, mean) if len(columns) > 1 else tuple(columns)


def _tasks(data: StudyData) -> list[str]:
    named = ((data.recipe.get("evaluation") or {}).get("academic") or {}).get("tasks") or []
    found = [benchmark for benchmark, metric in data.metrics() if metric == "score"]
    if not found:
        return list(named)
    return [task for task in named if task in found] + [task for task in found if task not in named]


def heldout(data: StudyData, *, sampled: bool = False, ood: bool = False) -> Measure:
    """The ranker's reward of answers to held-out prompts: greedy, or the mean over temperature-1
    samples.
    """
    oracle = (data.recipe.get("ranker") or {}).get("kind", "oracle") == "oracle"
    title = f"{'out-of-distribution' if ood else 'held-out'} reward ({'sampled' if sampled else 'greedy'})"
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


@dataclass(frozen=True)
class Diagnostic:
    """How a diagnostic is named and read; its definition is in the documentation of the
    measurements.
    """

    metric: str
    title: str
    unit: str = "nats"
    digits: int = 3


DIAGNOSTICS = (
    Diagnostic("rhat_reference_samples", "mean r̂ on samples of π_ref"),
    Diagnostic("kl_base", "KL(π_θ‖π_0)"),
    Diagnostic("kl_previous", "KL(π_θ‖π_prev)"),
    Diagnostic("kl_base_per_token", "KL(π_θ‖π_0) per token", "nats/token"),
    Diagnostic("kl_previous_per_token", "KL(π_θ‖π_prev) per token", "nats/token"),
    Diagnostic("entropy", "entropy"),
    Diagnostic("entropy_per_token", "entropy per token", "nats/token"),
    Diagnostic("spearman_reward", "Spearman, implicit and external reward", "correlation"),
    Diagnostic("brier_samples", "Brier score, own samples", ""),
    Diagnostic("brier_pairs_train", "Brier score, training pairs", ""),
    Diagnostic("brier_pairs_heldout", "Brier score, held-out pairs", ""),
    Diagnostic("brier_pairs_ood", "Brier score, out-of-distribution pairs", ""),
    Diagnostic("accuracy_pairs_train", "pairs ranked right, training", "share"),
    Diagnostic("accuracy_pairs_heldout", "pairs ranked right, held-out", "share"),
    Diagnostic("accuracy_pairs_ood", "pairs ranked right, out of distribution", "share"),
    Diagnostic("displacement_chosen_train", "displacement of y_w, training"),
    Diagnostic("displacement_chosen_heldout", "displacement of y_w, held-out"),
    Diagnostic("displaced_share_train", "share of y_w below reference, training", "share"),
    Diagnostic("displaced_share_heldout", "share of y_w below reference, held-out", "share"),
    Diagnostic("rhat_heldout_chosen", "r̂ of y_w, held-out"),
    Diagnostic("rhat_heldout_rejected", "r̂ of y_l, held-out"),
    Diagnostic("rhat_y_winner", "r̂ of y that won"),
    Diagnostic("rhat_y_middle", "r̂ of y in the middle"),
    Diagnostic("rhat_y_loser", "r̂ of y that lost"),
    Diagnostic("share_y_winner", "y won", "share"),
    Diagnostic("share_y_middle", "y in the middle", "share"),
    Diagnostic("share_y_loser", "y lost", "share"),
    Diagnostic("pair_margin", "margin of the pair", "reward"),
    Diagnostic("distinct_1", "distinct-1", "share"),
    Diagnostic("distinct_2", "distinct-2", "share"),
    Diagnostic("self_rouge", "similarity among samples", "ROUGE-L"),
    Diagnostic("newness", "share of new answers", "share"),
    Diagnostic("length_tokens", "answer length", "tokens", 1),
    Diagnostic("truncated_share", "truncated answers", "share"),
    Diagnostic("missing_eos_share", "answers without end of turn", "share"),
    Diagnostic("grad_ratio", "‖g_explore‖/‖g_DPO‖ at the start", "ratio"),
    Diagnostic("grad_ratio_end", "‖g_explore‖/‖g_DPO‖ at the end", "ratio"),
    Diagnostic("grad_cosine", "cosine of both gradients at the start", "cosine"),
    Diagnostic("grad_cosine_end", "cosine of both gradients at the end", "cosine"),
    Diagnostic("reward_samples", "external reward of own samples", "reward"),
    Diagnostic("implicit_reward_samples", "implicit reward of own samples", "reward"),
    Diagnostic(
        "implicit_reward_reference_samples", "implicit reward of samples of π_ref", "reward"
    ),
    Diagnostic("mode_coverage", "coverage of answer modes", "share"),
    Diagnostic("unseen_mass", "probability moved to unseen answers", "probability"),
    Diagnostic("regret", "regret", "reward"),
)
CORE = (
    "rhat_reference_samples",
    "kl_base",
    "entropy",
    "spearman_reward",
    "displacement_chosen_heldout",
    "newness",
    "length_tokens",
    "grad_ratio",
)
"""Shown where a study has too many arms for a column each."""
SAME_AS = {"rhat_heldout_chosen": "displacement_chosen_heldout"}
"""Diagnostic → the one with the same definition, beside which it is not shown."""


def diagnostic(entry: Diagnostic) -> Measure:
    """A diagnostic as a measure (clusters are prompts)."""
    return Measure(
        entry.title,
        "diagnostics",
        entry.metric,
        entry.unit,
        entry.digits,
        better=0,
        unit_of_items="prompts",
    )


def diagnostics(data: StudyData) -> tuple[Measure, ...]:
    """The diagnostics that the study holds: the known ones in reading order, then any other by
    name.
    """
    present = [metric for _, metric in data.metrics("diagnostics")]
    known = [entry for entry in DIAGNOSTICS if entry.metric in present]
    rest = [
        Diagnostic(metric, metric.replace("_", " "), "")
        for metric in present
        if metric not in {entry.metric for entry in DIAGNOSTICS}
    ]
    return tuple(diagnostic(entry) for entry in [*known, *rest])


def all_measures(data: StudyData) -> dict[str, Measure]:
    """Every measure the study can show, by key ("alpaca_eval.win_rate")."""
    found = [
        *TABLE_1,
        *academic(data),
        heldout(data),
        heldout(data, sampled=True),
        heldout(data, ood=True),
        heldout(data, sampled=True, ood=True),
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
