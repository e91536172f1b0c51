"""``selm compare A B``: a paired comparison of two checkpoints, same items (and same seeds), on
every benchmark or one.

A name is a run (``objective.alpha=0.3,seed=1``: one checkpoint), an arm (``objective.alpha=0.3`` or
its label: all its seeds) or ``base``, with ``@iteration`` behind it; without, the last iteration.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from analysis import findings, measures
from analysis.cells import POPULATIONS_NOTE, cell_text, interval_text
from analysis.load import Checkpoint, StudyData, load_study
from analysis.measures import Measure
from analysis.stats import Estimate, difference
from analysis.table import Row, Table
from analysis.text import number, p_value
from harness.records import HarnessError

DATA = (
    "measure",
    "unit",
    "a",
    "b",
    "mean_a",
    "mean_b",
    "difference",
    "items_low",
    "items_high",
    "items_p",
    "A_low",
    "A_high",
    "A_p",
    "B_low",
    "B_high",
    "B_p",
    "seeds",
    "clusters",
    "scored",
    "expected",
)


def compare_study(study_dir: Path, store_dir: Path, a: str, b: str, benchmark: str = "") -> Table:
    """``compare`` on a study read from disk."""
    return compare(load_study(study_dir, store_dir), a, b, benchmark)


def compare(data: StudyData, a: str, b: str, benchmark: str = "") -> Table:
    """A minus B on every measure both hold. ``benchmark`` keeps one benchmark or one measure
    (``alpaca_eval``, ``mt_bench.rating``).

    Two single checkpoints: the interval over items, given these checkpoints. Several seeds: (A) and
    (B). None of the p is corrected. Raises HarnessError for a name that is not in the study, and
    when there is nothing to compare.
    """
    left, right = resolve(data, a), resolve(data, b)
    if left.iteration == right.iteration and left.runs == right.runs:
        raise HarnessError(f"{a!r} and {b!r} are the same checkpoint ({name_of(left)}); name two")
    chosen = _measures(data, benchmark)
    rows, numbers, notes = (
        [],
        [],
        [POPULATIONS_NOTE, "Every p is for its own comparison and not corrected for the others."],
    )
    for measure in chosen:
        cells = [measures.layout_of(data, checkpoint, measure) for checkpoint in (left, right)]
        if not all(cell.values.size for cell in cells):
            continue
        if (
            len(left.runs) == len(right.runs) == 1
        ):  # one checkpoint each: paired by item whatever their seeds
            cells[1] = replace(cells[1], seeds=cells[0].seeds)
        if not set(cells[0].seeds) & set(cells[1].seeds):
            raise HarnessError(
                f"{a!r} and {b!r} have no seed in common; compare single runs, or arms with "
                "common seeds"
            )
        found = difference(cells[0], cells[1], bar=findings.bar(data))
        ends = [findings.estimate(data, checkpoint, measure) for checkpoint in (left, right)]
        rows.append(
            Row(
                (
                    measure.name,
                    *(cell_text(e, measure) for e in ends),
                    *_shown(found, measure),
                    _n(found),
                )
            )
        )
        numbers.append(_numbers(measure, left, right, ends, found))
        notes += [f"{measure.name}: {flag}" for flag in found.flags]
    if not rows:
        raise HarnessError(
            f"nothing to compare: {name_of(left)} and {name_of(right)} hold no common "
            f"scores{f' of {benchmark}' if benchmark else ''}"
        )
    columns = (
        "measure",
        name_of(left),
        name_of(right),
        "difference",
        "(items) 95 %",
        "(A) 95 %",
        "p (A)",
        "(B) 95 %",
        "p (B)",
        "n",
    )
    caption = (
        f"{name_of(left)} minus {name_of(right)}, paired by "
        f"item{'' if len(left.runs) == 1 else ' and seed'}."
    )
    return Table(
        "compare",
        f"{name_of(left)} against {name_of(right)}",
        caption,
        columns,
        tuple(rows),
        DATA,
        tuple(numbers),
        tuple(dict.fromkeys(notes)),
    )


def resolve(data: StudyData, name: str) -> Checkpoint:
    """The checkpoint a name stands for. Raises HarnessError listing what there is."""
    head, at, tail = name.strip().rpartition("@")
    if not at:
        head, tail = name.strip(), ""
    if tail and not tail.isdigit():
        raise HarnessError(
            f"{name!r}: {tail!r} is no iteration; write for example {head}@{data.last_iteration}"
        )
    if head.lower() == "base":
        base = (
            data.checkpoints[0] if data.checkpoints and data.checkpoints[0].iteration == 0 else None
        )
        if base is None or tail not in ("", "0"):
            raise HarnessError(
                f"{name!r}: the base is iteration 0"
                + ("" if base else ", and this study does not score it")
            )
        return base
    runs = [run for run in data.runs if run.name == head]
    if not runs:
        arms = [arm for arm, members in data.arms.items() if head in (arm, members[0].label)]
        runs = data.arms[arms[0]] if arms else []
    if not runs:
        raise HarnessError(
            f"{name!r} is no run or arm of study {data.name}; arms: {', '.join(data.arms)}; "
            f"seeds: {', '.join(map(str, data.seeds))}"
        )
    iteration = int(tail) if tail else max(max(run.iterations, default=0) for run in runs)
    if not any(iteration in run.iterations for run in runs):
        raise HarnessError(
            f"{name!r}: no iteration {iteration}; there are 0 to {data.last_iteration}"
        )
    return Checkpoint(
        runs[0].arm_name if iteration else "",
        runs[0].label if iteration else "Base",
        iteration,
        tuple(runs),
    )


def name_of(checkpoint: Checkpoint) -> str:
    """A checkpoint's title, with its seed when it is a single run."""
    return checkpoint.title + (
        f", seed {checkpoint.runs[0].seed}" if len(checkpoint.runs) == 1 else ""
    )


def _measures(data: StudyData, benchmark: str) -> list[Measure]:
    known = measures.all_measures(data)
    if not benchmark:
        return list(known.values())
    if benchmark == "academic":
        return list(measures.academic(data))
    chosen = [
        m
        for key, m in known.items()
        if benchmark in (m.benchmark, key, f"{m.benchmark}.{m.metric}")
    ]
    if not chosen:
        names = ", ".join(dict.fromkeys(m.benchmark for m in known.values()))
        raise HarnessError(f"unknown benchmark {benchmark!r}; known: {names}")
    return chosen


def _n(found: Estimate) -> str:
    return f"{found.seeds} × {found.clusters}"


def _shown(found: Estimate, measure: Measure) -> tuple[str, ...]:
    if found.value is None:
        return (f"INCOMPLETE ({found.scored} of {found.expected})", *["–"] * 5)
    a, b, items = (found.intervals.get(name) for name in ("A", "B", "items"))
    digits = measure.digits
    return (
        number(found.value, digits, sign=True),
        interval_text(items, digits),
        interval_text(a, digits),
        p_value(a.p if a else None),
        interval_text(b, digits),
        p_value(b.p if b else None),
    )


def _numbers(
    measure: Measure, left: Checkpoint, right: Checkpoint, ends: list[Estimate], found: Estimate
) -> tuple[object, ...]:
    intervals: list[float | None] = []
    for name in ("items", "A", "B"):
        interval = found.intervals.get(name)
        intervals += [interval.low, interval.high, interval.p] if interval else [None, None, None]
    return (
        measure.key,
        measure.unit,
        name_of(left),
        name_of(right),
        ends[0].value,
        ends[1].value,
        found.value,
        *intervals,
        found.seeds,
        found.clusters,
        found.scored,
        found.expected,
    )
