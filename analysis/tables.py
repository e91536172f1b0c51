"""Every table of a report. A new table is one function of a study and one entry of ``TABLES``.

A function returns a ``Table``, or ``Unavailable`` with the reason when the study does not hold its data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from analysis import findings, measures, paper
from analysis.findings import Comparison
from analysis.load import Checkpoint, StudyData, stage_of
from analysis.measures import Measure
from analysis.stats import Estimate, Interval
from analysis.table import Row, Table, Unavailable, unique
from analysis.text import coefficient, number, p_value

SCORE_DATA = (
    "checkpoint", "arm", "iteration", "c", "kappa", "measure", "unit", "mean", "A_low", "A_high", "B_low", "B_high", "items_low", "items_high",
    "seeds", "clusters", "scored", "expected", "incomplete", "worst", "best", "points",
)  # fmt: skip
POPULATIONS_NOTE = (
    "Intervals are 95 %. (A): this benchmark, new seeds. (B): new seeds and new items. Seeds and items are crossed; none is given below 3 seeds."
)


# -- cells ---------------------------------------------------------------------------------------------------
def cell_text(estimate: Estimate, measure: Measure) -> str:
    """ "24.25 ± 0.41 (1.62)": mean, half-width (A), half-width (B); "INCOMPLETE (94 of 96) 8.61–8.70" with bounds."""
    digits = measure.digits
    if estimate.incomplete or estimate.value is None:
        if not estimate.expected:
            return "–"
        bounds = f" {number(estimate.bounds[0], digits)}–{number(estimate.bounds[1], digits)}" if estimate.bounds else ""
        return f"INCOMPLETE ({estimate.scored} of {estimate.expected}){bounds}"
    dagger = "†" if estimate.scored < estimate.expected else ""
    if "items" in estimate.intervals:
        return f"{number(estimate.value, digits)}{dagger} ± {number(estimate.intervals['items'].half_width, digits)}"
    halves = [number(estimate.intervals[p].half_width, digits) for p in ("A", "B")]
    return f"{number(estimate.value, digits)}{dagger} ± {halves[0]} ({halves[1]})"


def score_data(data: StudyData, checkpoint: Checkpoint, measure: Measure, estimate: Estimate) -> tuple[object, ...]:
    """One row of full-precision numbers behind a cell."""
    ends: list[float | None] = []
    for name in ("A", "B", "items"):
        interval = estimate.intervals.get(name)
        ends += [interval.low, interval.high] if interval else [None, None]
    worst, best = estimate.bounds if estimate.bounds and estimate.scored < estimate.expected else (None, None)
    run = checkpoint.runs[0]
    points = measures.points(data, checkpoint, measure)
    return (
        checkpoint.title, checkpoint.arm, checkpoint.iteration, _c(checkpoint), _kappa(checkpoint) if run else None, measure.key, measure.unit,
        estimate.value, *ends, estimate.seeds, estimate.clusters, estimate.scored, estimate.expected, estimate.incomplete, worst, best,
        ";".join(f"{seed}:{value!r}" for seed, value in sorted(points.items())),
    )  # fmt: skip


def _c(checkpoint: Checkpoint) -> float | None:
    return checkpoint.runs[0].c.get(checkpoint.iteration) if checkpoint.iteration else None


def _kappa(checkpoint: Checkpoint) -> float | None:
    return checkpoint.runs[0].kappa.get(checkpoint.iteration) if checkpoint.iteration else None


def interval_text(interval: Interval | None, digits: int) -> str:
    """ "−0.80 to 3.20", or a dash."""
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


# -- scores --------------------------------------------------------------------------------------------------
def score_table(data: StudyData, key: str, title: str, columns: Sequence[Measure], extra: str = "") -> Table | Unavailable:
    """Checkpoints × measures in the paper's form, with c, κ and the number of seeds."""
    present = {benchmark for benchmark, _ in data.metrics()}
    if not any(set(measure.strata or (measure.benchmark,)) & present for measure in columns):
        return Unavailable(key, title, "no score of these benchmarks is stored yet")
    rows, numbers, notes, arm = [], [], [], None
    for checkpoint in data.checkpoints:
        estimates = [findings.estimate(data, checkpoint, measure) for measure in columns]
        numbers += [score_data(data, checkpoint, m, e) for m, e in zip(columns, estimates, strict=True)]
        cells = [cell_text(e, m) for m, e in zip(columns, estimates, strict=True)]
        seeds = str(max((len(measures.points(data, checkpoint, m)) for m in columns), default=0))
        rows.append(Row((checkpoint.title, coefficient(_c(checkpoint)), coefficient(_kappa(checkpoint)), *cells, seeds), checkpoint.arm != arm))
        arm = checkpoint.arm
        notes += [f"{checkpoint.title}: {reason}" for m in columns for part in measures.parts(data, checkpoint, m) for reason in part.absent]
    single = all(len(c.runs) == 1 for c in data.checkpoints)
    shown = (
        "± half-width of the interval over items, given this one checkpoint"
        if single
        else "mean over seeds ± half-width (A), in brackets half-width (B)"
    )
    caption = f"{shown}; c: coefficient on log π(y), κ = 2c/β; n: seeds with scores.{' ' + extra if extra else ''}"
    if any("†" in cell for row in rows for cell in row.cells):
        notes.insert(0, f"†: at least {findings.bar(data):.0%} but not all rows are scored; items not scored for every seed are left out.")
    heads = tuple(measure.title for measure in columns)
    return Table(
        key, title, caption[0].upper() + caption[1:], ("checkpoint", "c", "κ", *heads, "n"), tuple(rows), SCORE_DATA, tuple(numbers),
        unique([POPULATIONS_NOTE, *notes] if not single else notes),
    )  # fmt: skip


def table_1(data: StudyData) -> Table | Unavailable:
    return score_table(
        data, "table_1", "Table 1. AlpacaEval 2.0 and MT-Bench", measures.TABLE_1,
        "Length-controlled win rate: the library's point, intervals from the delete-one-instruction jackknife.",
    )  # fmt: skip


def table_2(data: StudyData) -> Table | Unavailable:
    return score_table(data, "table_2", "Table 2. Academic benchmarks", measures.academic(data), "The mean weighs every benchmark the same.")


def table_heldout(data: StudyData) -> Table | Unavailable:
    columns = [measures.heldout(data, sampled=s, ood=o) for o in (False, True) for s in (False, True)]
    present = [m for m in columns if (m.benchmark, m.metric) in data.metrics()]
    kind = (data.recipe.get("ranker") or {}).get("kind", "oracle")
    return score_table(data, "heldout", "Reward of answers to held-out prompts", present, f"Reward by the recipe's ranker ({kind}).")


# -- differences ---------------------------------------------------------------------------------------------
DIFFERENCE_DATA = (
    "arm", "label", "measure", "unit", "iteration", "declared", "difference", "A_low", "A_high", "A_p", "A_p_holm", "B_low",
    "B_high", "B_p", "B_p_holm",
    "A_paired_low", "A_paired_high", "A_paired_p", "B_paired_low", "B_paired_high", "B_paired_p", "dunnett_low", "dunnett_high", "dunnett_p",
    "mde_A", "mde_A_low", "mde_A_high", "mde_B", "mde_B_low", "mde_B_high", "sign_flip_p", "sign_flip_floor", "pairs_won", "pairs", "mann_whitney_p",
    "seeds", "clusters", "scored", "expected", "points", "method",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "arm", "measure", "iter", "difference", "(A) 95 %", "p (A)", "(B) 95 %", "p (B)", "paired (A)", "paired (B)", "MDE (A)", "MDE (B)",
    "sign flip p", "pairs won",
    "n",
)  # fmt: skip


def _difference_row(c: Comparison) -> tuple[str, ...]:
    digits, value = c.measure.digits, c.estimate
    intervals = value.intervals
    if value.value is None:
        return (c.label, c.measure.name, str(c.iteration), f"INCOMPLETE ({value.scored} of {value.expected})", *["–"] * 10, str(value.seeds))
    shown = {p: p_value(c.p(p)) + (" ᴴ" if c.declared and c.p(p) is not None else "") for p in ("A", "B")}
    mde = [number(c.detectable[p].value, digits) if p in c.detectable else "–" for p in ("A", "B")]
    flip = f"{p_value(c.flip.p)} (floor {c.flip.floor:.3g})" if c.flip and c.flip.p is not None and c.flip.floor is not None else "–"
    won = f"{c.improvement.k:g} of {c.improvement.pairs}" if c.improvement else "–"
    return (
        c.label, c.measure.name, str(c.iteration), number(value.value, digits, sign=True), interval_text(intervals.get("A"), digits), shown["A"],
        interval_text(intervals.get("B"), digits), shown["B"], interval_text(intervals.get("A_paired"), digits),
        interval_text(intervals.get("B_paired"), digits), *mde, flip, won, f"{value.seeds} × {value.clusters}",
    )  # fmt: skip


def _difference_data(c: Comparison) -> tuple[object, ...]:
    value, by = c.estimate, c.estimate.intervals
    ends: list[object] = []
    for name in ("A", "B"):
        interval = by.get(name)
        ends += [interval.low, interval.high, interval.p] if interval else [None] * 3
        ends.append(c.holm.get(name))
    for name in ("A_paired", "B_paired"):
        interval = by.get(name)
        ends += [interval.low, interval.high, interval.p] if interval else [None] * 3
    d = c.member.dunnett
    mde = [getattr(c.detectable.get(p), end, None) for p in ("A", "B") for end in ("value", "low", "high")]
    flip = [c.flip.p, c.flip.floor] if c.flip else [None, None]
    won = [c.improvement.k, c.improvement.pairs, c.improvement.p] if c.improvement else [None] * 3
    return (
        c.arm, c.label, c.measure.key, c.measure.unit, c.iteration, c.declared, value.value, *ends, d.low, d.high, d.p, *mde, *flip, *won,
        value.seeds,
        value.clusters, value.scored, value.expected, ";".join(repr(p) for p in value.points), value.method,
    )  # fmt: skip


def _difference_table(data: StudyData, key: str, title: str, caption: str, comparisons: Sequence[Comparison]) -> Table | Unavailable:
    if not data.baseline_arm:
        return Unavailable(key, title, "the study declares no baseline, so nothing is compared")
    if not comparisons:
        return Unavailable(key, title, "no arm beside the baseline has scores yet")
    rows, last = [], None
    for c in comparisons:
        rows.append(Row(_difference_row(c), (c.measure.key, c.iteration) != last))
        last = (c.measure.key, c.iteration)
    notes = [
        POPULATIONS_NOTE,
        "With three or more complete arms (A) and (B) pool the arm × seed residual; the paired columns use the two arms alone.",
        "ᴴ: p after Holm over the study's declared family. Other p are exploratory and not corrected.",
        "MDE: smallest difference found with 80 % power at 5 %, two-sided; its range over what is known of the seeds' spread is in the CSV.",
        "Sign flip: permutation over seeds; its p is never below the floor. Pairs won: (arm seed, baseline seed) pairs in which the arm is higher.",
    ]
    notes += [f"{c.label}, {c.measure.name}, iter {c.iteration}: {flag}" for c in comparisons for flag in c.estimate.flags]
    return Table(
        key, title, caption, DIFFERENCE_COLUMNS, tuple(rows), DIFFERENCE_DATA, tuple(_difference_data(c) for c in comparisons), unique(notes), left=2
    )


def table_differences(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    declared = {(c.measure.key, c.iteration) for c in found.declared}
    others = [*measures.TABLE_1, *measures.academic(data)[-1:], measures.heldout(data), measures.heldout(data, sampled=True)]
    rows = list(found.declared)
    for measure in others:
        if (measure.key, data.last_iteration) not in declared:
            rows += findings.compare_arms(data, measure, data.last_iteration)
    label = found.baseline_label or "the baseline"
    return _difference_table(
        data,
        "differences",
        f"Differences to {label}, same seeds and items",
        f"Each arm minus {label} after the last iteration, declared outcomes first.",
        rows,
    )


def table_differences_by_iteration(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    measure = found.primary_measure
    declared = {(c.measure.key, c.iteration, c.arm): c for c in found.declared}
    rows = []
    for iteration in range(1, data.last_iteration + 1):
        rows += [declared.get((c.measure.key, c.iteration, c.arm), c) for c in findings.compare_arms(data, measure, iteration)]
    label = found.baseline_label or "the baseline"
    return _difference_table(
        data, "differences_by_iteration", f"{measure.name}: differences to {label} by iteration", "The primary outcome after every iteration.", rows
    )


def table_selection(data: StudyData) -> Table | Unavailable:
    found = findings.find(data)
    title, chosen = "Best arm, told on seeds that did not choose it", found.selection
    if chosen is None:
        return Unavailable("selection", title, found.selection_reason)
    digits, value = found.primary_measure.digits, chosen.estimate
    label = data.arms[chosen.best][0].label
    row = (
        label, str(chosen.trials), ", ".join(map(str, chosen.choosing)), number(chosen.naive, digits, sign=True),
        ", ".join(map(str, chosen.estimating)),
        number(value.value, digits, sign=True), interval_text(value.intervals.get("A"), digits), interval_text(value.intervals.get("B"), digits),
        number(chosen.rotated, digits, sign=True),
    )  # fmt: skip
    columns = (
        "best arm", "arms tried", "seeds that chose", "difference there", "other seeds", "difference on them", "(A) 95 %", "(B) 95 %",
        "leave one seed out",
    )  # fmt: skip
    numbers = (
        chosen.best, chosen.trials, ";".join(map(str, chosen.choosing)), chosen.naive, ";".join(map(str, chosen.estimating)), value.value,
        chosen.rotated, ";".join(chosen.rotated_choices),
    )  # fmt: skip
    names = (
        "best",
        "arms_tried",
        "choosing_seeds",
        "naive_difference",
        "other_seeds",
        "difference",
        "leave_one_out_difference",
        "leave_one_out_choices",
    )
    reasons = [i.undefined for i in value.intervals.values() if i.undefined]
    notes = unique([*chosen.flags, *(f"no interval: {reason}" for reason in reasons)])
    caption = f"{found.primary_measure.name} after iteration {found.primary_iteration}. The seeds that chose an arm flatter it; the others do not."
    return Table("selection", title, caption, columns, (Row(row),), names, (numbers,), notes)


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
            cells.append(f"{cell.layout.scored}/{cell.layout.expected}")
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


def table_unfinished(data: StudyData) -> Table | Unavailable:
    """Stages that are not done; grouped by stage, state and reason."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for stage, users in data.unfinished:
        grouped.setdefault((stage.state, stage.name, stage.reason), []).extend(users or ["shared by all runs"])
    rows, numbers = [], []
    for (state, name, reason), users in sorted(grouped.items(), key=lambda item: (("failed", "partial", "missing").index(item[0][0]), item[0])):
        ordered = list(dict.fromkeys(users))
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


def table_costs(data: StudyData) -> Table | Unavailable:
    """Costs by stage, every shared stage counted once. Times differ between two runs of the same study: kept apart from the data."""
    if not any(stage.state == "done" for stage in data.stages.values()):
        return Unavailable("costs", "Costs", "no stage is done yet")
    names = list(dict.fromkeys(stage.name for stage in data.stages.values()))
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


TABLES: dict[str, Callable[[StudyData], Table | Unavailable]] = {
    "differences": table_differences,
    "differences_by_iteration": table_differences_by_iteration,
    "table_1": table_1,
    "table_2": table_2,
    "heldout": table_heldout,
    "selection": table_selection,
    "diagnostics": table_diagnostics,
    "completeness": table_completeness,
    "unfinished": table_unfinished,
    "published_1": table_published_1,
    "published_2": table_published_2,
    "costs": table_costs,
}
"""Every table, in the report's order."""

__all__ = ["TABLES", "cell_text", "interval_text", "score_table", "stage_of"]
