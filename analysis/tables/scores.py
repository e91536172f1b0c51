"""Tables of scores: checkpoints × measures, the interquartile mean over seeds, the diagnostics, and
the published rows beside them.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from importlib import resources

import numpy as np

from analysis import findings, measures, prose, rank
from analysis.load import Checkpoint, StudyData
from analysis.measures import Measure
from analysis.stats import Estimate
from analysis.table import (
    POPULATIONS_NOTE,
    Observation,
    Table,
    TableRow,
    Unavailable,
    cell_text,
    counts,
    ends,
    grouped,
    items_note,
    judged,
    unique,
    verdict,
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
            observations.append(_observation(data, checkpoint, measure, estimate))
            items[measure] = max(items[measure], estimate.clusters)
            told = () if estimate.incomplete else estimate.cautions[len(estimate.flags) :]
            for flag in told:
                cautions.setdefault(flag, {})[measure.title] = None
            for cell in measures.parts(data, checkpoint, measure):
                absent += [f"{checkpoint.title}: {reason}" for reason in cell.absent]
        line = {"checkpoint": checkpoint.title}
        if explores:
            line |= {"c": coefficient(checkpoint.c), "κ": coefficient(checkpoint.kappa)}
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
    notes += _judge_notes(data, {measure.benchmark for measure in columns})
    notes.append(_no_interval(everything))
    if any("†" in cell_text(told, measure) for measure, told in everything):
        notes.append(
            f"†: at least {100 * data.min_complete:g} % but not all rows are scored; items not "
            "scored for every seed are left out."
        )
    notes += [f"{capitalised(flag)} ({', '.join(of)})." for flag, of in cautions.items()]
    return Table(key, title, caption.strip(), rows, observations, unique([*notes, *absent]))


def _observation(
    data: StudyData, checkpoint: Checkpoint, measure: Measure, estimate: Estimate
) -> Observation:
    """The full-precision numbers behind a cell."""
    worst, best = None, None
    if estimate.bounds and estimate.scored < estimate.expected:
        worst, best = estimate.bounds
    points = sorted(measures.points(data, checkpoint, measure).items())
    return {
        **checkpoint.place,
        "c": checkpoint.c,
        "kappa": checkpoint.kappa,
        "measure": measure.key,
        "unit": measure.unit,
        "mean": estimate.value,
        **ends(estimate, "A", "B", "items"),
        **counts(estimate),
        "incomplete": estimate.incomplete,
        "worst": worst,
        "best": best,
        "points": ";".join(f"{seed}:{value!r}" for seed, value in points),
    }


def _judge_notes(data: StudyData, benchmarks: Collection[str]) -> list[str]:
    """One sentence for every judge and benchmark version; comparable with published scores only if
    every stored set says so (judge, questions, references and prompts are the published ones).
    """
    sentences = []
    asked = [(title, m) for title, m in judged(data).items() if m.benchmark in benchmarks]
    for title, measure in sorted(asked, key=lambda one: one[1].benchmark):
        by_judge: dict[str, list[Checkpoint]] = {}
        for checkpoint in data.checkpoints:
            name = data.identity(checkpoint, measure.benchmark, measure.metric)
            by_judge.setdefault(name, []).append(checkpoint)
        by_judge.pop("", None)
        for name, there in by_judge.items():
            where = f" ({', '.join(c.title for c in there)})" if len(by_judge) > 1 else ""
            runs = [(run, c.iteration) for c in there for run in c.runs]
            summaries = [data.summary(*at, measure.benchmark) for at in runs]
            same = all(told.get("comparable") is True for told in summaries if told)
            read = summaries[-1].get("verdict", "")
            by = f"{name}, its verdicts read from {read}" if read else name
            sentences.append(f"{title}{where}, judged by {by}: {verdict(same)}.")
        if len(by_judge) > 1:
            sentences.append(
                f"{title}: rows of different judges or references are not comparable with one "
                "another, and no difference between them is given."
            )
    return sentences


def _no_interval(shown: Sequence[tuple[Measure, Estimate]]) -> str:
    """Why intervals are missing; empty where none is."""
    reasons: dict[str, None] = {}
    for measure, estimate in shown:
        if estimate.value is not None and "–" in cell_text(estimate, measure):
            reasons |= {i.undefined: None for i in estimate.intervals.values() if i.undefined}
    said = "; ".join(reasons)
    return f"–: no interval ({said}); it is never shown as zero." if said else ""


def table_1(data: StudyData) -> Table | Unavailable:
    extra = (
        "Length-controlled win rate: the library's point, intervals from the "
        "delete-one-instruction jackknife."
    )
    title, columns = "Table 1. AlpacaEval 2.0 and MT-Bench", measures.columns(data, "table_1")
    return score_table(data, "table_1", title, columns, extra)


def table_2(data: StudyData) -> Table | Unavailable:
    extra = "The mean weighs every benchmark the same."
    columns = measures.columns(data, "table_2")
    return score_table(data, "table_2", "Table 2. Academic benchmarks", columns, extra)


def table_heldout(data: StudyData) -> Table | Unavailable:
    columns = measures.present(data, measures.columns(data, "heldout"))
    extra = f"Reward by the recipe's ranker ({data.recipe['ranker']['kind']})."
    return score_table(data, "heldout", "Reward of answers to held-out prompts", columns, extra)


def own_tables(data: StudyData) -> dict[str, Table | Unavailable]:
    """A table for each benchmark that shares none, by key ``scores_<benchmark>``."""
    titles = {benchmark["name"]: benchmark["title"] for benchmark in data.benchmarks}
    keys = {f"scores_{name}": name for name in measures.own_tables(data)}
    return {
        key: score_table(data, key, titles[name], measures.columns(data, name))
        for key, name in keys.items()
    }


def table_iqm(data: StudyData) -> Table | Unavailable:
    """Interquartile mean over seeds beside the mean, every measure by itself
    (``rank.interquartile_mean``). A mean far from it leans on one or two seeds.
    """
    title, rows, observations, most = "Interquartile mean over seeds", [], [], 0
    headlines = [m for m in measures.headlines(data) if m.better and not m.part]
    points = {
        (checkpoint, m): [v for _, v in sorted(measures.points(data, checkpoint, m).items())]
        for checkpoint in data.checkpoints
        for m in headlines
    }
    columns = [m for m in headlines if any(points[c, m] for c in data.checkpoints)]
    for checkpoint in data.checkpoints:
        shown = {"checkpoint": checkpoint.title}
        for measure in columns:
            values = points[checkpoint, measure]
            found = rank.interquartile_mean(values)
            interval, mean = found.interval, float(np.mean(values)) if values else None
            most = max(most, found.n)
            of = {**checkpoint.place, "measure": measure.key, "unit": measure.unit}
            spread = {name: getattr(interval, name) for name in ("low", "high", "se")}
            undefined = found.undefined or interval.undefined
            told = {"iqm": found.value, **spread, "mean": mean, "seeds": found.n}
            observations.append({**of, **told, "undefined": undefined})
            three = (found.value, interval.half_width, mean)
            text = "{} ± {} ({})".format(*(number(value, measure.digits) for value in three))
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
    present, told = {measure.metric for measure in known}, data.shown_diagnostics
    doubled = {one["metric"] for one in told if one["same_as"] in present}
    listed = [measure for measure in known if measure.metric not in doubled]
    ends = [data.at(arm, data.last_iteration) for arm in data.arms]
    shown = [checkpoint for checkpoint in ends if checkpoint and checkpoint.iteration]
    observations = [
        _observation(data, checkpoint, measure, estimate)
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
        _no_interval(everything),
    ]
    rows = list(map(TableRow, cells))
    return Table("diagnostics", title, caption, rows, observations, unique(notes))


# -- published rows, as data -----------------------------------------------------------------------
SOURCE = "Zhang et al., arXiv 2405.19332 v3 (TMLR 2025)"
PUBLISHED = {
    "published_1": ("Published Table 1 (not ours)", 2, SOURCE, ", Table 1"),
    "published_2": ("Published Table 2 (not ours)", 1, SOURCE, ", Table 2"),
    "published_cards": (
        "Published on the released models' cards (not ours)",
        2,
        "the released models' cards; WildBench: its public leaderboard",
        "",
    ),
}
"""Table → title, digits, source and place in it, of rows of "Self-Exploring Language Models". 1:
AlpacaEval 2.0 (percent, percent, characters) and MT-Bench (1–10). 2: percent, GSM8K 8-shot,
HellaSwag 10, ARC-C 25, TruthfulQA 0, EQ-Bench 0, OpenBookQA 10 shots. cards: the only figures for
Phi-3, and another run of the others than Table 1's. They are never mixed with ours: other models,
another judge, one number per row without seeds.
"""
DIGITS = {"length": 0, "WildBench": 3}


def published(key: str) -> dict[str, dict[str, float | None]]:
    """Model → column → value, None where a dash is printed."""
    text = resources.files("analysis.tables").joinpath(f"{key}.csv").read_text(encoding="utf-8")
    rows = {row.pop("model"): row for row in csv.DictReader(text.splitlines())}
    return {
        model: {name: float(value) if value else None for name, value in row.items()}
        for model, row in rows.items()
    }


def table_published(key: str) -> Table:
    title, digits, source, place = PUBLISHED[key]
    caption = (
        f"As printed in {source}: other models, another judge, one number a row. For orientation; "
        "not comparable with this study's numbers."
    )
    rows, observations = [], []
    for model, values in published(key).items():
        observations.append({"model": model, **values, "source": f"{source}{place}"})
        shown = {name: number(value, DIGITS.get(name, digits)) for name, value in values.items()}
        rows.append(TableRow({"model": model, **shown}))
    return Table(key, title, caption, rows, observations)
