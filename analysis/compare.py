"""``selm compare A B``: a paired comparison of two checkpoints, same items (and same seeds), on
every benchmark or one.

A name is a run (``objective.alpha=0.3,seed=1``: one checkpoint), an arm (``objective.alpha=0.3`` or
its label: all its seeds) or ``base``, with ``@iteration`` behind it; without, the last iteration.
``--gate`` makes the verdict on one measure the command's exit status.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from analysis import findings, measures
from analysis.layout import Layout
from analysis.load import Checkpoint, Run, StudyData
from analysis.measures import Measure
from analysis.stats import Estimate, difference
from analysis.table import (
    POPULATIONS_NOTE,
    Table,
    TableRow,
    cell_text,
    counts,
    ends,
    incomplete_text,
    interval_text,
    unique,
)
from analysis.text import number, p_value
from harness.records import HarnessError

VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "equivalent": "equivalent to",
    "undecided": "undecided against",
}
"""Of A against B, in the order of the exit statuses of ``selm compare --gate``: 0, 1, 2, 3."""


@dataclass(frozen=True)
class Asked:
    """What decides a verdict. delta: difference in the measure's unit below which two scores count
    as equal (0: none does). gate: one measure is compared: the chosen one, or the study's declared
    outcome.
    """

    delta: float = 0.0
    gate: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.delta < math.inf:
            raise HarnessError(f"--delta is {self.delta:g}; give a number of 0 or more")


DEFAULT = Asked()


def compare(data: StudyData, a: str, b: str, benchmark: str = "", asked: Asked = DEFAULT) -> Table:
    """A minus B on every measure both hold. ``benchmark`` keeps one benchmark or one measure
    (``alpaca_eval``, ``mt_bench.rating``).

    Two single checkpoints: the interval over items, given these checkpoints. Several seeds: (A) and
    (B). None of the p is corrected. Raises HarnessError for a name that is not in the study, and
    when there is nothing to compare.
    """
    left, right = resolve(data, a), resolve(data, b)
    ours, theirs = name_of(left), name_of(right)
    if left.iteration == right.iteration and left.runs == right.runs:
        raise HarnessError(f"{a!r} and {b!r} are the same checkpoint ({ours}); name two")
    rows, observations = [], []
    notes = [
        POPULATIONS_NOTE,
        "Every p is for its own comparison and not corrected for the others.",
    ]
    chosen = _chosen(data, benchmark, asked)
    for measure in chosen:
        cells = [measures.layout_of(data, checkpoint, measure) for checkpoint in (left, right)]
        if not all(cell.values.size for cell in cells):
            continue
        if len(left.runs) == len(right.runs) == 1:  # paired by item whatever their seeds
            cells[1] = replace(cells[1], seeds=cells[0].seeds)
        if not set(cells[0].seeds) & set(cells[1].seeds):
            raise HarnessError(
                f"{a!r} and {b!r} have no seed in common; compare single runs, or arms with "
                "common seeds"
            )
        found = difference(*cells, min_complete=data.min_complete)
        of = [findings.estimate(data, checkpoint, measure) for checkpoint in (left, right)]
        shown = {name: cell_text(e, measure) for name, e in zip((ours, theirs), of, strict=True)}
        word, reason = verdict(cells[0], cells[1], found, measure, asked, data.min_complete)
        told = {**_difference(found, measure), "verdict": word or "–"}
        rows.append({"measure": measure.name, **shown, **told})
        observations.append(
            {
                "measure": measure.key,
                "unit": measure.unit,
                "a": ours,
                "b": theirs,
                "mean_a": of[0].value,
                "mean_b": of[1].value,
                "difference": found.value,
                **ends(found, "items", "A", "B", p=True),
                **counts(found),
                "delta": asked.delta,
                "verdict": word,
                "reason": reason,
            }
        )
        if len(chosen) == 1 and word:
            notes.insert(0, f"{ours} is {VERDICTS[word]} {theirs}: {reason}.")
        notes += [f"{measure.name}: {flag}" for flag in found.cautions]
    if not rows:
        of_it = f" of {benchmark}" if benchmark else ""
        raise HarnessError(f"nothing to compare: {ours} and {theirs} hold no common scores{of_it}")
    paired_by = "item" if len(left.runs) == 1 else "item and seed"
    caption = f"{ours} minus {theirs}, paired by {paired_by}."
    empty = {name for name in rows[0] if all(row[name] == "–" for row in rows)}
    kept = [TableRow({name: row[name] for name in row if name not in empty}) for row in rows]
    title = f"{ours} against {theirs}"
    return Table("compare", title, caption, kept, observations, unique(notes))


def verdict(
    a: Layout, b: Layout, found: Estimate, measure: Measure, asked: Asked, min_complete: float
) -> tuple[str, str]:
    """One of VERDICTS and why; empty for a measure that is neither better nor worse.

    Equivalent: two one-sided tests at 5 % each refuse a difference of −δ and of δ, which is the
    90 % interval lying between them (Schuirmann 1987); it goes before the others, since δ says that
    smaller differences do not matter. Better or worse: the 95 % interval leaves out 0. Undecided:
    neither, or there is no interval, for the reason given.
    """
    if not measure.better:
        return "", ""
    name = "items" if "items" in found.intervals and found.seeds == 1 else "A"
    digits, interval = found.digits(measure.digits), found.intervals[name]
    if interval.low is None or interval.high is None:
        return "undecided", interval.undefined
    shown = (
        f"95 % interval of the difference {interval_text(interval, digits)} ({interval.population})"
    )
    if asked.delta:
        narrow = difference(a, b, level=0.90, min_complete=min_complete).intervals[name]
        ends = f"90 % interval {interval_text(narrow, digits)}, δ = {asked.delta:g}"
        assert narrow.low is not None and narrow.high is not None
        if -asked.delta < narrow.low and narrow.high < asked.delta:
            return "equivalent", f"both one-sided tests at 5 % ({ends}); {shown}"
        shown += f"; {ends}"
    low, high = sorted((measure.better * interval.low, measure.better * interval.high))
    if low > 0:
        return "better", shown
    return ("worse" if high < 0 else "undecided"), shown


def _chosen(data: StudyData, benchmark: str, asked: Asked) -> list[Measure]:
    """The measures to compare; one for a gate. Raises HarnessError where that is not said."""
    if asked.gate and not benchmark:
        return [measures.declared(data, data.declare["primary"])[0]]
    found = _measures(data, benchmark)
    names = ", ".join(f"{m.benchmark}.{m.metric}" for m in found)
    if asked.gate and (len(found) > 1 or not found[0].better):
        raise HarnessError(
            f"--gate wants one measure of which more or less is better; --benchmark {benchmark} "
            f"is {names}"
        )
    if asked.delta and len({measure.unit for measure in found}) > 1:
        raise HarnessError(
            f"--delta {asked.delta:g} is in the unit of one measure; name one by --benchmark: "
            f"{names}"
        )
    return found


def resolve(data: StudyData, name: str) -> Checkpoint:
    """The checkpoint a name stands for. Raises HarnessError listing what there is."""
    whole = name.strip()
    head, at, tail = whole.rpartition("@")
    if not at or _runs_of(data, whole):  # a label may hold an @ itself
        if at and tail.isdigit() and _runs_of(data, head):
            raise HarnessError(
                f"{name!r} is both an arm and iteration {tail} of {head!r}; write the run's or "
                f"arm's name: {', '.join(data.arms)}"
            )
        head, tail = whole, ""
    if tail and not tail.isdigit():
        raise HarnessError(
            f"{name!r}: {tail!r} is no iteration; write for example {head}@{data.last_iteration}"
        )
    if head.lower() == "base":
        base = next((c for c in data.checkpoints if c.iteration == 0), None)
        if base is None or tail not in ("", "0"):
            raise HarnessError(
                f"{name!r}: the base is iteration 0"
                + ("" if base else ", and this study does not score it")
            )
        return base
    runs = _runs_of(data, head)
    if not runs:
        raise HarnessError(
            f"{name!r} is no run or arm of study {data.name}; arms: {', '.join(data.arms)}; "
            f"seeds: {', '.join(map(str, data.seeds))}"
        )
    there = sorted({one for run in runs for one in run.iterations})
    iteration = int(tail) if tail else max(run.last_iteration for run in runs)
    if iteration not in there:
        known = ", ".join(map(str, there))
        raise HarnessError(f"{name!r}: no iteration {iteration}; there are {known}")
    arm, label = (runs[0].arm_name, runs[0].label) if iteration else ("", "Base")
    return Checkpoint(arm, label, iteration, tuple(runs))


def _runs_of(data: StudyData, name: str) -> list[Run]:
    """The runs of a run's name, an arm's, or an arm's label."""
    runs = [run for run in data.runs if run.name == name]
    arms = [arm for arm, members in data.arms.items() if name in (arm, members[0].label)]
    return runs or (data.arms[arms[0]] if arms else [])


def name_of(checkpoint: Checkpoint) -> str:
    """A checkpoint's title, with its seed when it is a single run."""
    single = f", seed {checkpoint.runs[0].seed}" if len(checkpoint.runs) == 1 else ""
    return checkpoint.title + single


def _measures(data: StudyData, benchmark: str) -> list[Measure]:
    known = measures.all_measures(data)
    if not benchmark:
        return list(known.values())
    if benchmark == "academic":
        return list(measures.columns(data, "table_2"))
    names = {key: (m.benchmark, key, f"{m.benchmark}.{m.metric}") for key, m in known.items()}
    chosen = [known[key] for key in known if benchmark in names[key]]
    if not chosen:
        benchmarks = ", ".join(dict.fromkeys(m.benchmark for m in known.values()))
        raise HarnessError(f"unknown benchmark {benchmark!r}; known: {benchmarks}")
    return chosen


def _difference(found: Estimate, measure: Measure) -> dict[str, str]:
    a, b, items = (found.intervals.get(name) for name in ("A", "B", "items"))
    digits, n = found.digits(measure.digits), f"{found.seeds} × {found.clusters}"
    cells = {
        "difference": number(found.value, digits, sign=True),
        "(items) 95 %": interval_text(items, digits),
        "(A) 95 %": interval_text(a, digits),
        "p (A)": p_value(a.p if a else None),
        "(B) 95 %": interval_text(b, digits),
        "p (B)": p_value(b.p if b else None),
    }
    if found.value is None:
        cells = {**dict.fromkeys(cells, "–"), "difference": incomplete_text(found)}
    return {**cells, "n": n}
