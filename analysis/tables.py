"""Every table of a report. A new table is one function of a study and one entry of ``TABLES``.

A function returns a ``Table``, or ``Unavailable`` with the reason when the study does not hold its
data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from analysis import cells as comparable
from analysis import findings, measures, paper, prose, rank
from analysis import tables_differences as differences
from analysis import tables_judge as judge
from analysis.cells import POPULATIONS_NOTE, SCORE_DATA, c_of, cell_text, kappa_of, score_data
from analysis.load import Cell, Checkpoint, StudyData, iterate
from analysis.measures import Measure
from analysis.table import Row, Table, Unavailable, unique
from analysis.text import coefficient, number

# -- seeds -----------------------------------------------------------------------------------------
IQM_DATA = (
    "checkpoint",
    "arm",
    "iteration",
    "measure",
    "unit",
    "iqm",
    "low",
    "high",
    "se",
    "mean",
    "seeds",
    "undefined",
)


def table_iqm(data: StudyData) -> Table | Unavailable:
    """Interquartile mean over seeds beside the mean, every measure by itself: the mean of the
    middle half of the seeds' scores.

    ``rank.interquartile_mean``: from 5 seeds, interval (A) from 6 (Tukey and McLaughlin's). A mean
    far from it leans on one or two seeds.
    """
    title = "Interquartile mean over seeds"
    wanted = [
        measures.LC,
        measures.WR,
        measures.MT,
        *measures.academic(data)[-1:],
        measures.heldout(data),
        measures.heldout(data, sampled=True),
    ]
    rows, numbers = [], []
    present = {m.key: m for m in wanted for c in data.checkpoints if measures.points(data, c, m)}
    chosen = [m for m in wanted if m.key in present]
    for checkpoint in data.checkpoints:
        cells = []
        for measure in chosen:
            points = [
                value for _, value in sorted(measures.points(data, checkpoint, measure).items())
            ]
            found = rank.interquartile_mean(points)
            i, mean = found.interval, float(np.mean(points)) if points else None
            place = (
                checkpoint.title,
                checkpoint.arm,
                checkpoint.iteration,
                measure.key,
                measure.unit,
            )
            numbers.append(
                (
                    *place,
                    found.value,
                    i.low,
                    i.high,
                    i.se,
                    mean,
                    found.n,
                    found.undefined or i.undefined,
                )
            )
            shown = [number(value, measure.digits) for value in (found.value, i.half_width, mean)]
            cells.append("{} ± {} ({})".format(*shown) if found.value is not None else "–")
        if checkpoint.iteration in (0, data.own_last(checkpoint.arm)):
            rows.append(Row((checkpoint.title, *cells)))
    if all(row[IQM_DATA.index("iqm")] is None for row in numbers):
        most = max((int(str(row[IQM_DATA.index("seeds")])) for row in numbers), default=0)
        return Unavailable(
            "iqm",
            title,
            f"it needs {rank.MIN_SEEDS_IQM} seeds and there are {most} (at 3 it is the mean); the "
            "study's seeds set them",
        )
    caption = (
        "Base and last iterations; every iteration in the CSV. IQM ± half-width of its 95 % "
        "interval (A), in brackets the plain mean."
    )
    notes = ("No interval is given below 6 seeds. Measures are never pooled: their scales differ.",)
    return Table(
        "iqm",
        title,
        caption,
        ("checkpoint", *(m.name for m in chosen)),
        tuple(rows),
        IQM_DATA,
        tuple(numbers),
        notes,
    )


# -- diagnostics, completeness ---------------------------------------------------------------------
MANY_ARMS = 8
"""Above this number arms are rows, and only the core diagnostics are shown."""


def table_diagnostics(data: StudyData) -> Table | Unavailable:
    title, all_of = "Exploration and extrapolation diagnostics", measures.diagnostics(data)
    if not all_of:
        return Unavailable("diagnostics", title, "no diagnostics are stored yet")
    present = {measure.metric for measure in all_of}
    shown = [c for arm in data.arms if (c := data.at(arm, data.last_iteration)) and c.iteration]
    told = {one["metric"]: one for one in data.shown_diagnostics}
    doubled = {metric for metric, one in told.items() if one["same_as"] in present}
    listed = [m for m in all_of if m.metric not in doubled]
    numbers = [
        score_data(data, checkpoint, measure, estimate)
        for measure in all_of
        for checkpoint in data.checkpoints
        if (estimate := findings.estimate(data, checkpoint, measure)).expected
    ]
    if len(shown) > MANY_ARMS:
        core = [metric for metric, one in told.items() if one["core"]]
        listed = [m for m in listed if m.metric in core] or listed[: len(core)]
        heads: tuple[str, ...] = ("arm", *(_with_unit(m) for m in listed))
        rows = [
            Row((c.label, *(cell_text(findings.estimate(data, c, m), m) for m in listed)))
            for c in shown
        ]
    else:
        heads = ("diagnostic", *(c.label for c in shown))
        rows = [
            Row((_with_unit(m), *(cell_text(findings.estimate(data, c, m), m) for c in shown)))
            for m in listed
        ]
    more = (
        "every iteration is"
        if len(listed) + len(doubled) >= len(all_of)
        else "the other diagnostics and every iteration are"
    )
    when = prose.after(data, data.last_iteration)
    caption = (
        f"{when[0].upper()}{when[1:]}; {more} in the CSV. Mean over seeds ± half-width (A), "
        "in brackets (B), clusters are prompts."
    )
    notes = [
        POPULATIONS_NOTE,
        "Where the prompts differ between seeds (training prompts, or a diagnostic undefined on "
        "some) seeds are compared by their means: (A) only.",
    ]
    if any("± –" in cell for row in rows for cell in row.cells):
        notes.append(
            "± –: no interval, because all seeds gave the same value; it is never shown as zero."
        )
    return Table(
        "diagnostics", title, caption, heads, tuple(rows), SCORE_DATA, tuple(numbers), tuple(notes)
    )


def _with_unit(measure: measures.Measure) -> str:
    return f"{measure.title} [{measure.unit}]" if measure.unit else measure.title


def table_completeness(data: StudyData) -> Table | Unavailable:
    """Score rows by status. Complete checkpoints are counted in one row; the CSV has every
    checkpoint, benchmark and status.
    """
    columns = {
        benchmark: metric
        for benchmark, metric in reversed(data.metrics())
        if benchmark not in ("diagnostics",)
    }
    academic = [m.benchmark for m in measures.academic(data) if not m.strata]
    names = [
        b for b in ("alpaca_eval", "mt_bench", *academic, "heldout", "heldout_ood") if b in columns
    ]
    title = "Completeness"
    if not names:
        return Unavailable("completeness", title, "no score rows are stored yet")
    rows, numbers, counted = [], [], Counter[str]()
    whole = _complete(data, names, columns)
    for checkpoint in data.checkpoints:
        cells = []
        for benchmark in names:
            cell = data.cell(checkpoint, benchmark, columns[benchmark])
            cells.append(_counted(cell))
            absent = cell.layout.expected - sum(cell.statuses.values())
            for status, count in [
                *cell.statuses.items(),
                *([("not run", absent)] if absent > 0 else []),
            ]:
                numbers.append(
                    (
                        checkpoint.title,
                        checkpoint.arm,
                        checkpoint.iteration,
                        benchmark,
                        columns[benchmark],
                        status,
                        count,
                    )
                )
                counted[status] += count
        if checkpoint not in whole:
            rows.append(Row((checkpoint.title, *cells)))
    if whole:
        sums = [sum(data.cell(c, b, columns[b]).layout.scored for c in whole) for b in names]
        rows.append(
            Row(
                (
                    f"{len(whole)} complete checkpoint{'s' * (len(whole) != 1)}",
                    *(f"{n}/{n}" for n in sums),
                ),
                True,
            )
        )
    everything = ", ".join(f"{count} {status}" for status, count in sorted(counted.items()))
    bar = f"{100 * findings.bar(data):g} %"
    caption = (
        "Score rows with a value / expected, all seeds together. Checkpoints that lack something "
        f"stand alone. A cell under {bar} is INCOMPLETE. "
        f"In all: {everything}."
    )
    return Table(
        "completeness",
        title,
        caption,
        ("checkpoint", *names),
        tuple(rows),
        ("checkpoint", "arm", "iteration", "benchmark", "metric", "status", "rows"),
        tuple(numbers),
    )


def _complete(
    data: StudyData, names: Sequence[str], columns: Mapping[str, str]
) -> list[Checkpoint]:
    return [c for c in data.checkpoints if all(data.cell(c, b, columns[b]).complete for b in names)]


def _counted(cell: Cell) -> str:
    """ "94/96 (1 error, 1 unparsed)": score rows with a value of those expected, and what the
    others are.
    """
    lacking = {status: count for status, count in cell.statuses.items() if status != "ok"}
    absent = cell.layout.expected - sum(cell.statuses.values())
    words = ", ".join(
        f"{count} {status}"
        for status, count in sorted({**lacking, "not run": absent}.items())
        if count > 0
    )
    return f"{cell.layout.scored}/{cell.layout.expected}" + (f" ({words})" if words else "")


def table_unfinished(data: StudyData) -> Table | Unavailable:
    """Stages that are not done; grouped by stage, state and reason."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for stage, users in data.unfinished:
        grouped.setdefault((stage.state, stage.name, stage.reason), []).extend(
            users or ["shared by all runs"]
        )
    rows, numbers = [], []
    for (state, name, reason), users in sorted(
        grouped.items(),
        key=lambda item: (("failed", "partial", "missing").index(item[0][0]), item[0]),
    ):
        place = {
            f"{run.name}@{iteration}": number_
            for number_, (run, iteration) in enumerate(iterate(data))
        }
        ordered = sorted(set(users), key=lambda user: (place.get(user, -1), user))
        shown = ", ".join(ordered[:4]) + (
            f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
        )
        rows.append(Row((state, name, reason or "not run yet", shown)))
        numbers += [(state, name, reason, user) for user in ordered]
    done = sum(1 for stage in data.stages.values() if stage.state == "done")
    caption = f"{done} of {len(data.stages)} stages are done."
    return Table(
        "unfinished",
        "Failed, partial and missing stages",
        caption,
        ("state", "stage", "reason", "run@iteration"),
        tuple(rows),
        ("state", "stage", "reason", "run"),
        tuple(numbers),
        left=4,
    )


# -- published rows, costs -------------------------------------------------------------------------
def _published(
    key: str, title: str, columns: Sequence[str], rows: Sequence[paper.PublishedRow], digits: int
) -> Table:
    caption = (
        f"As printed in {paper.SOURCE}: other models, another judge, one number a row. For "
        "orientation; not comparable with this study's numbers."
    )
    shown = tuple(
        Row(
            (
                row.model,
                *(
                    number(v, 0 if name == "length" else digits)
                    for name, v in zip(columns, row.values, strict=True)
                ),
            )
        )
        for row in rows
    )
    return Table(
        key,
        title,
        caption,
        ("model", *columns),
        shown,
        ("model", *columns, "source"),
        tuple((r.model, *r.values, r.source) for r in rows),
    )


def table_published_1(_: StudyData) -> Table:
    return _published(
        "published_1", "Published Table 1 (not ours)", paper.TABLE_1_COLUMNS, paper.TABLE_1, 2
    )


def table_published_2(_: StudyData) -> Table:
    return _published(
        "published_2", "Published Table 2 (not ours)", paper.TABLE_2_COLUMNS, paper.TABLE_2, 1
    )


COSTS = (
    ("seconds", "seconds", 1),
    ("cpu_seconds", "CPU seconds", 1),
    ("tokens_generated", "tokens generated", 0),
    ("tokens_trained", "tokens trained", 0),
    ("judge_calls", "judge calls", 0),
    ("judge_prompt_tokens", "judge prompt tokens", 0),
    ("judge_completion_tokens", "judge answer tokens", 0),
    ("judge_usd", "judge USD", 2),
)


PIPELINE = (
    "data",
    "base",
    "benchmarks",
    "rollout",
    "rank",
    "pairs",
    "reference",
    "train",
    "answer",
    "judge",
    "academic",
    "heldout",
    "diagnostics",
)


def _place(stage: str) -> int:
    head = stage.partition(".")[0]
    return PIPELINE.index(head) if head in PIPELINE else len(PIPELINE)


def table_costs(data: StudyData) -> Table | Unavailable:
    """Costs by stage, every shared stage counted once. Times differ between two runs of the same
    study: kept apart from the data.
    """
    if not any(stage.state == "done" for stage in data.stages.values()):
        return Unavailable("costs", "Costs", "no stage is done yet")
    names = sorted(
        {stage.name for stage in data.stages.values()}, key=lambda name: (_place(name), name)
    )
    rows, numbers = [], []
    for name in [*names, "all"]:
        chosen = [s for s in data.stages.values() if name in (s.name, "all")]
        done = sum(1 for s in chosen if s.state == "done")
        sums = [math.fsum(float(s.costs.get(key, 0.0)) for s in chosen) for key, _, _ in COSTS]
        shown = [
            number(v, digits) if v else "–" for v, (_, _, digits) in zip(sums, COSTS, strict=True)
        ]
        rows.append(Row((name, f"{done} of {len(chosen)}", *shown), name == "all"))
        numbers.append((name, done, len(chosen), *sums))
    return Table(
        "costs",
        "Costs",
        "By stage; a stage that several runs share is counted once.",
        ("stage", "done", *(title for _, title, _ in COSTS)),
        tuple(rows),
        ("stage", "done", "stages", *(key for key, _, _ in COSTS)),
        tuple(numbers),
        volatile=True,
    )


# -- scores ----------------------------------------------------------------------------------------
def score_table(
    data: StudyData, key: str, title: str, columns: Sequence[Measure], extra: str = ""
) -> Table | Unavailable:
    """Checkpoints × measures in the paper's form, with c, κ (where any arm explores) and the number
    of seeds.
    """
    present = {benchmark for benchmark, _ in data.metrics()}
    if not any(set(measure.strata or (measure.benchmark,)) & present for measure in columns):
        return Unavailable(key, title, "no score of these benchmarks is stored yet")
    explores = any(c_of(checkpoint) for checkpoint in data.checkpoints)
    rows, numbers, notes, arm = [], [], [], None
    items: dict[str, int] = {}
    for checkpoint in data.checkpoints:
        estimates = [findings.estimate(data, checkpoint, measure) for measure in columns]
        numbers += [
            score_data(data, checkpoint, m, e) for m, e in zip(columns, estimates, strict=True)
        ]
        items |= {
            m.key: max(items.get(m.key, 0), e.clusters)
            for m, e in zip(columns, estimates, strict=True)
        }
        cells = [cell_text(e, m) for m, e in zip(columns, estimates, strict=True)]
        seeds = str(max((len(measures.points(data, checkpoint, m)) for m in columns), default=0))
        strength = (
            (coefficient(c_of(checkpoint)), coefficient(kappa_of(checkpoint))) if explores else ()
        )
        rows.append(Row((checkpoint.title, *strength, *cells, seeds), checkpoint.arm != arm))
        arm = checkpoint.arm
        notes += [
            f"{checkpoint.title}: {reason}"
            for m in columns
            for part in measures.parts(data, checkpoint, m)
            for reason in part.absent
        ]
    single = all(len(c.runs) == 1 for c in data.checkpoints)
    shown = (
        "± half-width of the interval over items, given this one checkpoint"
        if single
        else "mean over seeds ± half-width (A), in brackets half-width (B)"
    )
    caption = (
        f"{shown}{'; c: coefficient on log π(y), κ = 2c/β' if explores else ''}; n: seeds "
        f"with scores.{' ' + extra if extra else ''}"
    )
    if any("†" in cell for row in rows for cell in row.cells):
        notes.insert(
            0,
            f"†: at least {_percent(findings.bar(data))} but not all rows are scored; items not "
            "scored for every seed are left out.",
        )
    if any("± –" in cell or "(–)" in cell for row in rows for cell in row.cells):
        notes.insert(
            0,
            "± –: no interval, because all seeds (or all items) gave the same score; it is never "
            "shown as zero.",
        )
    notes[:0] = comparable.notes(data, {measure.benchmark for measure in columns})
    notes[:0] = [
        _grouped("Units", [(m.unit, m) for m in columns]),
        _grouped("Items a seed", [(_items(m, items), m) for m in columns]),
    ]
    heads = (
        "checkpoint",
        *(("c", "κ") if explores else ()),
        *(measure.title for measure in columns),
        "n",
    )
    return Table(
        key,
        title,
        caption[0].upper() + caption[1:],
        heads,
        tuple(rows),
        SCORE_DATA,
        tuple(numbers),
        unique([POPULATIONS_NOTE, *notes] if not single else notes),
    )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _items(measure: Measure, items: dict[str, int]) -> str:
    return f"{items.get(measure.key, 0)} {measure.unit_of_items}"


def _grouped(head: str, pairs: Sequence[tuple[str, Measure]]) -> str:
    """ "Units: percent (AlpacaEval LC, AlpacaEval WR), characters (length)."."""
    by: dict[str, list[str]] = {}
    for value, measure in pairs:
        by.setdefault(value, []).append(measure.title)
    return (
        f"{head}: "
        + ", ".join(
            value if len(by) == 1 else f"{value} ({', '.join(titles)})"
            for value, titles in by.items()
        )
        + "."
    )


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
    return score_table(
        data,
        "table_2",
        "Table 2. Academic benchmarks",
        measures.academic(data),
        "The mean weighs every benchmark the same.",
    )


def table_heldout(data: StudyData) -> Table | Unavailable:
    columns = [
        measures.heldout(data, sampled=s, ood=o) for o in (False, True) for s in (False, True)
    ]
    present = [m for m in columns if (m.benchmark, m.metric) in data.metrics()]
    kind = (data.recipe.get("ranker") or {}).get("kind", "oracle")
    return score_table(
        data,
        "heldout",
        "Reward of answers to held-out prompts",
        present,
        f"Reward by the recipe's ranker ({kind}).",
    )


TABLES: dict[str, Callable[[StudyData], Table | Unavailable]] = {
    "differences": differences.table_differences,
    "difference_checks": differences.table_difference_checks,
    "differences_by_iteration": differences.table_differences_by_iteration,
    "table_1": table_1,
    "table_2": table_2,
    "heldout": table_heldout,
    "iqm": table_iqm,
    "selection": differences.table_selection,
    "diagnostics": table_diagnostics,
    "judge": judge.table_judge,
    "alpaca_eval": judge.table_alpaca_eval,
    "position_flips": judge.table_position_flips,
    "ranker_judge": judge.table_ranker_judge,
    "completeness": table_completeness,
    "unfinished": table_unfinished,
    "published_1": table_published_1,
    "published_2": table_published_2,
    "costs": table_costs,
}
"""Every table, in the report's order."""


def tables_of(data: StudyData) -> dict[str, Table | Unavailable]:
    """Every table of a study: those of ``TABLES``, and one for each benchmark that has its own."""
    built = {key: build(data) for key, build in TABLES.items()}
    for name in measures.other_tables(data):
        key = f"scores_{name}"
        title = next(one["title"] for one in data.benchmarks if one["name"] == name)
        built[key] = score_table(data, key, title, measures.columns(data, name))
    return built
