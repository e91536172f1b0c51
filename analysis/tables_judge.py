"""Tables about the judge: verdicts it did not give, its noise, and what AlpacaEval's own summaries
say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis import comparable, measures, rank
from analysis.load import Checkpoint, StudyData, stage_of
from analysis.measures import Measure
from analysis.table import Row, Table, Unavailable
from analysis.text import number


def _groups(data: StudyData, measure: Measure) -> dict[str, list[Checkpoint]]:
    """Label of a base or an arm → its checkpoints that hold rows of the measure, in study order."""
    found: dict[str, list[Checkpoint]] = {}
    for checkpoint in data.checkpoints:
        if data.cell(checkpoint, measure.benchmark, measure.metric).statuses:
            found.setdefault(checkpoint.label, []).append(checkpoint)
    return found


# -- verdicts and noise ----------------------------------------------------------------------------
JUDGE_DATA = (
    "benchmark",
    "checkpoint",
    "arm",
    "iteration",
    "unparsed",
    "asked",
    "unparsed_low",
    "unparsed_high",
    "truncated_answers",
    "neutralised_answers",
    "fastchat_reads_otherwise",
    "judgment_sd",
    "judgment_sd_low",
    "judgment_sd_high",
    "floor_mean",
    "floor_difference",
    "items_judged_twice",
    "items_unequal",
    "df",
)


def table_judge(data: StudyData) -> Table | Unavailable:
    """By arm, all its iterations and seeds together: verdicts not read, answers that were cut or
    defused, noise of repeated judgments.

    Unparsed: k of the verdicts that came, Wilson interval. sd: of one judgment, pooled within items
    (``rank.judge_noise``); floors: standard error that the judge alone gives a mean over the
    benchmark's items judged once, and a difference of two such means (√2 larger).
    """
    judged = [m for m in (measures.MT, measures.WR) if (m.benchmark, m.metric) in data.metrics()]
    if not judged:
        return Unavailable("judge", "The judge", "no judged benchmark is stored yet")
    rows: list[tuple[tuple[str, ...], bool]] = []
    numbers = []
    for measure in judged:
        for place, (label, checkpoints) in enumerate(_groups(data, measure).items()):
            rows.append(
                (
                    (
                        comparable.JUDGED[measure.benchmark][0],
                        label,
                        *_judge_cells(data, measure, checkpoints),
                    ),
                    place == 0,
                )
            )
        for checkpoint in data.checkpoints:
            numbers.append(
                (
                    measure.benchmark,
                    checkpoint.title,
                    checkpoint.arm,
                    checkpoint.iteration,
                    *_judge_numbers(data, measure, [checkpoint]),
                )
            )
    known = any(row[JUDGE_DATA.index("df")] for row in numbers)
    columns = (
        "benchmark",
        "arm",
        "verdicts not read",
        "answers cut off",
        "answers defused",
        "read otherwise by FastChat",
    )
    noise = (
        "repeats unequal",
        "sd of a judgment (95 %)",
        "floor of a mean",
        "floor of a difference",
    )
    caption = (
        "All iterations and seeds of an arm together; by checkpoint in the CSV. Not read: k of n "
        "verdicts, with Wilson interval. Cut off: at the "
        "limit of new tokens, judged all the same. Defused: held verdict syntax or the judge "
        "prompt's delimiters."
    )
    if known:
        caption += " Noise: what the judge alone adds, in the benchmark's unit, to one judgment, to a mean over its items and to a difference."
        notes = (
            "A difference below its floor may be the judge's noise alone, with these very answers.",
        )
    else:
        notes = (
            "No item was judged twice, so the judge's noise is unknown; set judge.repeats above 1 "
            "to measure it.",
        )
        rows = [(row[: len(columns)], rule) for row, rule in rows]
    shown = tuple(Row(row, rule) for row, rule in rows)
    return Table(
        "judge",
        "The judge",
        caption,
        (*columns, *(noise if known else ())),
        shown,
        JUDGE_DATA,
        tuple(numbers),
        notes,
        left=2,
    )


def _judge_numbers(
    data: StudyData, measure: Measure, checkpoints: Sequence[Checkpoint]
) -> tuple[Any, ...]:
    statuses = Counter[str]()
    flagged = Counter[str]()
    for checkpoint in checkpoints:
        statuses.update(data.cell(checkpoint, measure.benchmark, measure.metric).statuses)
        for run in checkpoint.runs:
            summary = data.summary(run, checkpoint.iteration, stage_of(measure.benchmark))
            flagged.update(
                {
                    name: len(summary.get(name) or ())
                    for name in ("truncated", "neutralised", "fastchat_reads_otherwise")
                }
            )
    unread = rank.proportion(
        statuses["unparsed"], sum(statuses[name] for name in ("ok", "unparsed", "refused"))
    )
    tables = [table for checkpoint in checkpoints for table in _repeats(data, checkpoint, measure)]
    width = max((table.shape[1] for table in tables), default=1)
    every = np.vstack(
        [
            np.empty((0, width)),
            *(np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=np.nan) for t in tables),
        ]
    )
    noise = rank.judge_noise(every, items=max((len(table) for table in tables), default=1))
    return (
        unread.k,
        unread.n,
        unread.low,
        unread.high,
        flagged["truncated"],
        flagged["neutralised"],
        flagged["fastchat_reads_otherwise"],
        noise.sd,
        noise.low,
        noise.high,
        noise.floor,
        noise.floor_difference,
        noise.changed.n,
        noise.changed.k,
        noise.df,
    )


def _judge_cells(
    data: StudyData, measure: Measure, checkpoints: Sequence[Checkpoint]
) -> tuple[str, ...]:
    v = dict(zip(JUDGE_DATA[4:], _judge_numbers(data, measure, checkpoints), strict=True))
    digits = measure.digits
    sd = f"{number(v['judgment_sd'], digits)} ({number(v['judgment_sd_low'], digits)}–{number(v['judgment_sd_high'], digits)})"
    return (
        share_text(rank.proportion(v["unparsed"], v["asked"])),
        str(v["truncated_answers"]),
        str(v["neutralised_answers"]),
        str(v["fastchat_reads_otherwise"]) if measure.benchmark == "mt_bench" else "–",
        f"{v['items_unequal']} of {v['items_judged_twice']}",
        sd if v["judgment_sd"] is not None else "–",
        number(v["floor_mean"], digits),
        number(v["floor_difference"], digits),
    )


def share_text(share: rank.Proportion) -> str:
    """ "3 of 144 (0.7–5.9 %)", or a dash where nothing was counted."""
    if share.low is None or share.high is None:
        return "–"
    return f"{share.k} of {share.n} ({number(100 * share.low, 1)}–{number(100 * share.high, 1)} %)"


def _repeats(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> list[np.ndarray]:
    """Items × repeats of every run of a checkpoint, NaN where missing; one column when nothing was
    judged twice.
    """
    frames = [
        data.rows(run.name, checkpoint.iteration, measure.benchmark, measure.metric)
        for run in checkpoint.runs
    ]
    return [
        f.assign(item=f["item"].astype(str))
        .pivot(index="item", columns="repeat", values="value")
        .to_numpy(dtype=float)
        for f in frames
        if len(f)
    ]


# -- AlpacaEval's summary --------------------------------------------------------------------------
FLAGS = {
    "no_scored_rows": "no row scored",
    "no_gamed_baseline": "no gamed baselines: no length-controlled win rate",
    "too_few_rows": "under 10 rows: LC is the plain win rate",
    "no_length_variance": "all length differences equal: LC is the plain win rate",
    "constant_preference": "constant preference: LC is the plain win rate",
    "constant_answers": "most answers are one text",
}
"""What the benchmark's stage flags, in words."""
FEW_INSTRUCTIONS = 100
"""Below this number the jackknife interval of the length-controlled win rate, checked by simulation
on hundreds, is flagged.
"""
ALPACA_DATA = (
    "checkpoint",
    "arm",
    "iteration",
    "seed",
    "scored",
    "expected",
    "length_controlled_win_rate",
    "jackknife_se",
    "library_se",
    "win_rate",
    "win_rate_se",
    "mean_length",
    "truncated",
    "neutralised",
    "comparable",
    "flags",
)
_SUMMARY = (
    "length_controlled_win_rate",
    "lc_standard_error",
    "lc_standard_error_library",
    "win_rate",
    "standard_error",
    "avg_length",
)


def table_alpaca_eval(data: StudyData) -> Table | Unavailable:
    """What the benchmark's summaries say of single checkpoints: n, standard errors over
    instructions, flags.

    jackknife SE: sd of the delete-one-instruction pseudo-values / √n, percent points, of one
    checkpoint (what (B) rests on); library SE: AlpacaEval's own, the spread of predictions over
    items, about half the true one. Means over the seeds of a checkpoint.
    """
    title, rows, numbers, few = "AlpacaEval: standard errors and flags", [], [], 0
    for checkpoint in data.checkpoints:
        found = [
            (run, data.summary(run, checkpoint.iteration, "judge.alpaca_eval"))
            for run in checkpoint.runs
        ]
        found = [(run, summary) for run, summary in found if summary]
        flags: Counter[str] = Counter()
        for run, summary in found:
            raised = [
                *summary.get("flags", ()),
                *(["few_instructions"] if (summary.get("n_total") or 0) < FEW_INSTRUCTIONS else []),
            ]
            few += "few_instructions" in raised
            flags.update(name for name in raised if name != "few_instructions")
            counts = (summary.get("n_total"), summary.get("expected"))
            values = [summary.get(name) for name in _SUMMARY]
            lists = (len(summary.get("truncated") or ()), len(summary.get("neutralised") or ()))
            place = (checkpoint.title, checkpoint.arm, checkpoint.iteration, run.seed)
            numbers.append(
                (*place, *counts, *values, *lists, summary.get("comparable"), ";".join(raised))
            )
        if not found or not (flags or checkpoint.iteration in (0, data.own_last(checkpoint.arm))):
            continue
        means = [_mean([summary.get(name) for _, summary in found]) for name in _SUMMARY]
        scored = [
            sum(int(summary.get(name) or 0) for _, summary in found)
            for name in ("n_total", "expected")
        ]
        said = "; ".join(
            f"{FLAGS.get(name, name.replace('_', ' '))} ({count} of {len(found)} seeds)"
            for name, count in sorted(flags.items())
        )
        shown = [
            number(value, 0 if name == "avg_length" else 2)
            for name, value in zip(_SUMMARY, means, strict=True)
        ]
        rows.append(Row((checkpoint.title, f"{scored[0]} of {scored[1]}", *shown, said or "none")))
    if not numbers:
        return Unavailable("alpaca_eval", title, "no AlpacaEval judgments are stored yet")
    columns = (
        "checkpoint",
        "scored",
        "LC",
        "jackknife SE",
        "library's SE",
        "WR",
        "SE of WR",
        "length",
        "flags",
    )
    caption = (
        "Base, last iterations, and whatever is flagged; every checkpoint and seed in the CSV. "
        "Means over seeds, percent (length: characters). "
        "Standard errors are of one checkpoint over new instructions."
    )
    notes = [
        "The library's standard error is the spread of predictions over items, about half the "
        "true one; no interval here rests on it."
    ]
    if few:
        notes.append(
            f"{few} sets have under {FEW_INSTRUCTIONS} scored instructions: their "
            "length-controlled intervals are less sure than they look."
        )
    return Table(
        "alpaca_eval",
        title,
        caption,
        columns,
        tuple(rows),
        ALPACA_DATA,
        tuple(numbers),
        tuple(notes),
    )


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, (int, float))]
    return float(np.mean(known)) if known else None
