"""Tables about the measuring itself: diagnostics, the judge, completeness, what is unfinished, published rows, costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from analysis import findings, measures, paper, rank
from analysis.load import Cell, Checkpoint, StudyData, iterate
from analysis.table import Row, Table, Unavailable
from analysis.table_cells import POPULATIONS_NOTE, SCORE_DATA, cell_text, score_data
from analysis.text import number


# -- diagnostics, completeness -------------------------------------------------------------------------------
def table_diagnostics(data: StudyData) -> Table | Unavailable:
    title, rows_of = "Exploration and extrapolation diagnostics", measures.diagnostics(data)
    if not rows_of:
        return Unavailable("diagnostics", title, "no diagnostics are stored yet")
    iteration = data.last_iteration
    shown = [c for c in data.checkpoints if c.iteration == iteration]
    rows, numbers = [], []
    for measure in rows_of:
        name = f"{measure.title} [{measure.unit}]" if measure.unit else measure.title
        rows.append(Row((name, *(cell_text(findings.estimate(data, c, measure), measure) for c in shown))))
        for checkpoint in data.checkpoints:
            estimate = findings.estimate(data, checkpoint, measure)
            if estimate.expected:
                numbers.append(score_data(data, checkpoint, measure, estimate))
    heads = ("diagnostic", *(c.label for c in shown))
    note = "Where the prompts differ between seeds (training prompts, or a diagnostic undefined on some) seeds are compared by their means: (A) only."
    caption = f"After iteration {iteration}; every iteration is in the CSV. Mean over seeds ± half-width (A), in brackets (B), clusters are prompts."
    return Table("diagnostics", title, caption, heads, tuple(rows), SCORE_DATA, tuple(numbers), (POPULATIONS_NOTE, note))


# -- the judge -----------------------------------------------------------------------------------------------
JUDGE_DATA = (
    "benchmark", "checkpoint", "arm", "iteration", "unparsed", "asked", "unparsed_low", "unparsed_high", "judgment_sd", "floor_mean",
    "floor_difference", "df",
)  # fmt: skip


def table_judge(data: StudyData) -> Table | Unavailable:
    """Verdicts that could not be read, by checkpoint, and the noise of repeated judgments where there are any."""
    judged = [m for m in (measures.MT, measures.WR) if (m.benchmark, m.metric) in data.metrics()]
    if not judged:
        return Unavailable("judge", "The judge", "no judged benchmark is stored yet")
    rows, numbers = [], []
    for measure in judged:
        for number_, checkpoint in enumerate(data.checkpoints):
            cell = data.cell(checkpoint, measure.benchmark, measure.metric)
            asked = sum(count for status, count in cell.statuses.items() if status in ("ok", "unparsed", "refused"))
            unread = rank.proportion(cell.statuses.get("unparsed", 0), asked)
            noise = rank.judge_noise(_repeats(data, checkpoint, measure), items=len(cell.layout.clusters))
            spread = (noise.sd, noise.floor, noise.floor_difference)
            rows.append(Row((measure.benchmark, checkpoint.title, _share(unread), *(number(v, measure.digits) for v in spread)), number_ == 0))
            place = (measure.benchmark, checkpoint.title, checkpoint.arm, checkpoint.iteration)
            numbers.append((*place, unread.k, unread.n, unread.low, unread.high, *spread, noise.df))
    caption = (
        "Verdicts that could not be read (share with Wilson interval), and what the judge alone adds: standard deviation of one judgment, noise "
        "floor of a mean and of a difference."
    )
    unknown = all(row[JUDGE_DATA.index("judgment_sd")] is None for row in numbers)
    notes = ("No item was judged twice, so the judge's noise is unknown; set judge.repeats above 1 to measure it.",) if unknown else ()
    columns = ("benchmark", "checkpoint", "unparsed", "sd of a judgment", "floor of a mean", "floor of a difference")
    return Table("judge", "The judge", caption, columns, tuple(rows), JUDGE_DATA, tuple(numbers), notes, left=2)


def _share(unread: rank.Proportion) -> str:
    if unread.low is None or unread.high is None:
        return "–"
    return f"{unread.k} of {unread.n} ({number(100 * unread.low, 1)}–{number(100 * unread.high, 1)} %)"


def _repeats(data: StudyData, checkpoint: Checkpoint, measure: measures.Measure) -> np.ndarray:
    """Items × repeats of every run of a checkpoint, NaN where missing; one column when nothing was judged twice."""
    frames = [data.rows(run.name, checkpoint.iteration, measure.benchmark, measure.metric) for run in checkpoint.runs]
    tables = [
        f.assign(item=f["item"].astype(str)).pivot(index="item", columns="repeat", values="value").to_numpy(dtype=float) for f in frames if len(f)
    ]
    width = max((table.shape[1] for table in tables), default=1)
    return np.vstack([np.empty((0, width)), *(np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=np.nan) for t in tables)])


def table_completeness(data: StudyData) -> Table | Unavailable:
    columns = {benchmark: metric for benchmark, metric in reversed(data.metrics()) if benchmark not in ("diagnostics",)}
    names = [
        b
        for b in ("alpaca_eval", "mt_bench", *(m.benchmark for m in measures.academic(data) if not m.strata), "heldout", "heldout_ood")
        if b in columns
    ]
    title = "Completeness"
    if not names:
        return Unavailable("completeness", title, "no score rows are stored yet")
    rows, numbers, counted = [], [], Counter[str]()
    for checkpoint in data.checkpoints:
        cells = []
        for benchmark in names:
            cell = data.cell(checkpoint, benchmark, columns[benchmark])
            cells.append(_counted(cell))
            for status, count in cell.statuses.items():
                numbers.append((checkpoint.title, checkpoint.arm, checkpoint.iteration, benchmark, columns[benchmark], status, count))
                counted[status] += count
            absent = cell.layout.expected - sum(cell.statuses.values())
            if absent > 0:
                numbers.append((checkpoint.title, checkpoint.arm, checkpoint.iteration, benchmark, columns[benchmark], "not run", absent))
                counted["not run"] += absent
        rows.append(Row((checkpoint.title, *cells)))
    total = ", ".join(f"{count} {status}" for status, count in sorted(counted.items()))
    caption = f"Score rows with a value / expected, all seeds together. A cell under {findings.bar(data):.0%} is INCOMPLETE. In all: {total}."
    return Table(
        "completeness", title, caption, ("checkpoint", *names), tuple(rows),
        ("checkpoint", "arm", "iteration", "benchmark", "metric", "status", "rows"), tuple(numbers),
    )  # fmt: skip


def _counted(cell: Cell) -> str:
    """ "94/96 (1 error, 1 unparsed)": score rows with a value of those expected, and what the others are."""
    lacking = {status: count for status, count in cell.statuses.items() if status != "ok"}
    absent = cell.layout.expected - sum(cell.statuses.values())
    words = ", ".join(f"{count} {status}" for status, count in sorted({**lacking, "not run": absent}.items()) if count > 0)
    return f"{cell.layout.scored}/{cell.layout.expected}" + (f" ({words})" if words else "")


def table_unfinished(data: StudyData) -> Table | Unavailable:
    """Stages that are not done; grouped by stage, state and reason."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for stage, users in data.unfinished:
        grouped.setdefault((stage.state, stage.name, stage.reason), []).extend(users or ["shared by all runs"])
    rows, numbers = [], []
    for (state, name, reason), users in sorted(grouped.items(), key=lambda item: (("failed", "partial", "missing").index(item[0][0]), item[0])):
        place = {f"{run.name}@{iteration}": number_ for number_, (run, iteration) in enumerate(iterate(data))}
        ordered = sorted(set(users), key=lambda user: (place.get(user, -1), user))
        shown = ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")
        rows.append(Row((state, name, reason or "not run yet", shown)))
        numbers += [(state, name, reason, user) for user in ordered]
    done = sum(1 for stage in data.stages.values() if stage.state == "done")
    caption = f"{done} of {len(data.stages)} stages are done."
    return Table(
        "unfinished", "Failed, partial and missing stages", caption, ("state", "stage", "reason", "run@iteration"), tuple(rows),
        ("state", "stage", "reason", "run"), tuple(numbers), left=4,
    )  # fmt: skip


# -- published rows, costs -----------------------------------------------------------------------------------
def _published(key: str, title: str, columns: Sequence[str], rows: Sequence[paper.PublishedRow], digits: int) -> Table:
    caption = (
        f"As printed in {paper.SOURCE}: other models, another judge, one number a row. For orientation; not comparable with this study's numbers."
    )
    shown = tuple(
        Row((row.model, *(number(v, 0 if name == "length" else digits) for name, v in zip(columns, row.values, strict=True)))) for row in rows
    )
    return Table(key, title, caption, ("model", *columns), shown, ("model", *columns, "source"), tuple((r.model, *r.values, r.source) for r in rows))


def table_published_1(_: StudyData) -> Table:
    return _published("published_1", "Published Table 1 (not ours)", paper.TABLE_1_COLUMNS, paper.TABLE_1, 2)


def table_published_2(_: StudyData) -> Table:
    return _published("published_2", "Published Table 2 (not ours)", paper.TABLE_2_COLUMNS, paper.TABLE_2, 1)


COSTS = (
    ("seconds", "seconds", 1), ("cpu_seconds", "CPU seconds", 1), ("tokens_generated", "tokens generated", 0),
    ("tokens_trained", "tokens trained", 0),
    ("judge_calls", "judge calls", 0), ("judge_prompt_tokens", "judge prompt tokens", 0), ("judge_completion_tokens", "judge answer tokens", 0),
    ("judge_usd", "judge USD", 2),
)  # fmt: skip


PIPELINE = ("data", "base", "benchmarks", "rollout", "rank", "pairs", "reference", "train", "answer", "judge", "academic", "heldout", "diagnostics")


def _place(stage: str) -> int:
    head = stage.partition(".")[0]
    return PIPELINE.index(head) if head in PIPELINE else len(PIPELINE)


def table_costs(data: StudyData) -> Table | Unavailable:
    """Costs by stage, every shared stage counted once. Times differ between two runs of the same study: kept apart from the data."""
    if not any(stage.state == "done" for stage in data.stages.values()):
        return Unavailable("costs", "Costs", "no stage is done yet")
    names = sorted({stage.name for stage in data.stages.values()}, key=lambda name: (_place(name), name))
    rows, numbers = [], []
    for name in [*names, "all"]:
        chosen = [s for s in data.stages.values() if name in (s.name, "all")]
        done = sum(1 for s in chosen if s.state == "done")
        sums = [math.fsum(float(s.costs.get(key, 0.0)) for s in chosen) for key, _, _ in COSTS]
        shown = [number(v, digits) if v else "–" for v, (_, _, digits) in zip(sums, COSTS, strict=True)]
        rows.append(Row((name, f"{done} of {len(chosen)}", *shown), name == "all"))
        numbers.append((name, done, len(chosen), *sums))
    return Table(
        "costs", "Costs", "By stage; a stage that several runs share is counted once.", ("stage", "done", *(title for _, title, _ in COSTS)),
        tuple(rows),
        ("stage", "done", "stages", *(key for key, _, _ in COSTS)), tuple(numbers), volatile=True,
    )  # fmt: skip
