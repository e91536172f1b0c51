"""Tables of scores: checkpoints × measures, the interquartile mean over seeds, the diagnostics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis import findings, measures, prose, rank
from analysis.load import Checkpoint, StudyData
from analysis.measures import Measure
from analysis.stats import Estimate
from analysis.table import (
    POPULATIONS_NOTE,
    Table,
    TableRow,
    Unavailable,
    cell_text,
    grouped,
    items_note,
    judge_notes,
    score_observation,
    unique,
)
from analysis.text import capitalised, coefficient, number

MANY_ARMS = 8
"""Above this number arms are rows, and only the core diagnostics are shown."""


def score_table(
    data: StudyData, key: str, title: str, columns: Sequence[Measure], extra: str = ""
) -> Table | Unavailable:
    """Checkpoints × measures as in the paper, with c and κ (where any arm explores) and n."""
    present = {benchmark for benchmark, _ in data.metrics()}
    if present.isdisjoint(name for measure in columns for name in measure.benchmarks):
        return Unavailable(key, title, "no score of these benchmarks is stored yet")
    explores = any(checkpoint.c for checkpoint in data.checkpoints)
    single = all(len(checkpoint.runs) == 1 for checkpoint in data.checkpoints)
    rows, observations, absent, arm = [], [], [], None
    cautions: dict[str, dict[str, None]] = {}
    everything: list[tuple[Measure, Estimate]] = []
    items = dict.fromkeys(columns, 0)
    for checkpoint in data.checkpoints:
        estimates = {m: findings.estimate(data, checkpoint, m) for m in columns}
        everything += estimates.items()
        for measure, estimate in estimates.items():
            observations.append(score_observation(data, checkpoint, measure, estimate))
            items[measure] = max(items[measure], estimate.clusters)
            told = () if estimate.incomplete else estimate.cautions[len(estimate.flags) :]
            for flag in told:
                cautions.setdefault(flag, {})[measure.title] = None
            for cell in measures.parts(data, checkpoint, measure):
                absent += [f"{checkpoint.title}: {reason}" for reason in cell.absent]
        line = {"checkpoint": checkpoint.title}
        if explores:
            line["c"] = coefficient(checkpoint.c)
            line["κ"] = coefficient(checkpoint.kappa)
        line |= {measure.title: cell_text(told, measure) for measure, told in estimates.items()}
        seeds = max(len(measures.points(data, checkpoint, measure)) for measure in columns)
        rows.append(TableRow({**line, "n": str(seeds)}, checkpoint.arm != arm))
        arm = checkpoint.arm
    caption = "Mean over seeds ± half-width (A), in brackets half-width (B)"
    if single:
        caption = (
            "± half-width of the interval over items, given this one checkpoint; its ends where "
            "the score is not its middle (Wilson's, of right and wrong)"
        )
    if explores:
        caption += "; c: coefficient on log π(y), κ = 2c/β"
    caption += f"; n: seeds with scores. {extra}"
    notes = [] if single else [POPULATIONS_NOTE]
    notes.append(grouped("Units", {m.title: m.unit for m in columns}))
    notes.append(items_note(data, items))
    notes += judge_notes(data, {measure.benchmark for measure in columns})
    notes.append(no_interval(everything))
    warned = [f"{capitalised(flag)} ({', '.join(of)})." for flag, of in cautions.items()]
    if any("†" in cell_text(told, measure) for measure, told in everything):
        notes.append(
            f"†: at least {100 * data.min_complete:g} % but not all rows are scored; items not "
            "scored for every seed are left out."
        )
    return Table(
        key, title, caption.strip(), rows, observations, unique([*notes, *warned, *absent])
    )


def no_interval(shown: Sequence[tuple[Measure, Estimate]]) -> str:
    """Why intervals are missing; empty where none is."""
    reasons: dict[str, None] = {}
    for measure, estimate in shown:
        if estimate.value is not None and "–" in cell_text(estimate, measure):
            reasons |= {i.undefined: None for i in estimate.intervals.values() if i.undefined}
    said = "; ".join(reasons)
    return f"–: no interval ({said}); it is never shown as zero." if said else ""


def table_1(data: StudyData) -> Table | Unavailable:
    return score_table(
        data,
        "table_1",
        "Table 1. AlpacaEval 2.0 and MT-Bench",
        measures.columns(data, "table_1"),
        "Length-controlled win rate: the library's point, intervals from the "
        "delete-one-instruction jackknife.",
    )


def table_2(data: StudyData) -> Table | Unavailable:
    extra = "The mean weighs every benchmark the same."
    columns = measures.columns(data, "table_2")
    return score_table(data, "table_2", "Table 2. Academic benchmarks", columns, extra)


def table_heldout(data: StudyData) -> Table | Unavailable:
    held = set(data.metrics())
    columns = [m for m in measures.columns(data, "heldout") if (m.benchmark, m.metric) in held]
    extra = f"Reward by the recipe's ranker ({data.recipe['ranker']['kind']})."
    return score_table(data, "heldout", "Reward of answers to held-out prompts", columns, extra)


def own_tables(data: StudyData) -> dict[str, Table | Unavailable]:
    """A table for each benchmark that shares none, by key ``scores_<benchmark>``."""
    titles = {benchmark["name"]: benchmark["title"] for benchmark in data.benchmarks}
    return {
        f"scores_{name}": score_table(
            data, f"scores_{name}", titles[name], measures.columns(data, name)
        )
        for name in measures.own_tables(data)
    }


def table_iqm(data: StudyData) -> Table | Unavailable:
    """Interquartile mean over seeds beside the mean, every measure by itself: the mean of the
    middle half of the seeds' scores.

    ``rank.interquartile_mean``: from 5 seeds, interval (A) from 6 (Tukey and McLaughlin's). A mean
    far from it leans on one or two seeds.
    """
    title = "Interquartile mean over seeds"
    columns = [
        one
        for one in measures.headlines(data)
        if one.better
        and not one.part
        and any(measures.points(data, c, one) for c in data.checkpoints)
    ]
    rows, observations, most = [], [], 0
    for checkpoint in data.checkpoints:
        shown = {"checkpoint": checkpoint.title}
        for measure in columns:
            points = [v for _, v in sorted(measures.points(data, checkpoint, measure).items())]
            found = rank.interquartile_mean(points)
            interval, mean = found.interval, float(np.mean(points)) if points else None
            most = max(most, found.n)
            of = {**checkpoint.place, "measure": measure.key, "unit": measure.unit}
            ends = {name: getattr(interval, name) for name in ("low", "high", "se")}
            undefined = found.undefined or interval.undefined
            told = {"iqm": found.value, **ends, "mean": mean, "seeds": found.n}
            observations.append({**of, **told, "undefined": undefined})
            values = (found.value, interval.half_width, mean)
            text = "{} ± {} ({})".format(*(number(value, measure.digits) for value in values))
            shown[measure.name] = "–" if found.value is None else text
        if data.is_end(checkpoint):
            rows.append(TableRow(shown))
    if all(observation["iqm"] is None for observation in observations):
        reason = (
            f"it needs {rank.MIN_SEEDS_IQM} seeds and there are {most} (at 3 it is the mean); the "
            "study's seeds set them"
        )
        return Unavailable("iqm", title, reason)
    caption = (
        "Base and last iterations; every iteration in the CSV. IQM ± half-width of its 95 % "
        "interval (A), in brackets the plain mean."
    )
    note = "No interval is given below 6 seeds. Measures are never pooled: their scales differ."
    return Table("iqm", title, caption, rows, observations, [note])


def table_diagnostics(data: StudyData) -> Table | Unavailable:
    """Every diagnostic of the last checkpoints; with many arms the core ones, an arm a row."""
    title, known = "Exploration and extrapolation diagnostics", measures.diagnostics(data)
    if not known:
        return Unavailable("diagnostics", title, "no diagnostics are stored yet")
    present = {measure.metric for measure in known}
    told = data.shown_diagnostics
    doubled = {one["metric"] for one in told if one["same_as"] in present}
    listed = [measure for measure in known if measure.metric not in doubled]
    ends = [data.at(arm, data.last_iteration) for arm in data.arms]
    shown = [checkpoint for checkpoint in ends if checkpoint and checkpoint.iteration]
    observations = [
        score_observation(data, checkpoint, measure, estimate)
        for measure in known
        for checkpoint in data.checkpoints
        if (estimate := findings.estimate(data, checkpoint, measure)).expected
    ]

    everything = []

    def cell(checkpoint: Checkpoint, measure: Measure) -> str:
        estimate = findings.estimate(data, checkpoint, measure)
        everything.append((measure, estimate))
        return cell_text(estimate, measure)

    if len(shown) > MANY_ARMS:
        core = [one["metric"] for one in told if one["core"]]
        listed = [m for m in listed if m.metric in core] or listed[: len(core)]
        cells = [{"arm": c.label} | {m.with_unit: cell(c, m) for m in listed} for c in shown]
    else:
        cells = [{"diagnostic": m.with_unit} | {c.label: cell(c, m) for c in shown} for m in listed]
    rows = list(map(TableRow, cells))
    more = "the other diagnostics and every iteration are"
    if len(listed) + len(doubled) >= len(known):
        more = "every iteration is"
    caption = (
        f"{capitalised(prose.after(data, data.last_iteration))}; {more} in the CSV. Mean over "
        "seeds ± half-width (A), in brackets (B), clusters are prompts."
    )
    notes = [
        POPULATIONS_NOTE,
        "Where the prompts differ between seeds (training prompts, or a diagnostic undefined on "
        "some) seeds are compared by their means: (A) only.",
    ]
    notes.append(no_interval(everything))
    return Table("diagnostics", title, caption, rows, observations, unique(notes))
