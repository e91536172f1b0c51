"""``selm compare A B``: a paired comparison of two checkpoints, same items (and same seeds), on
every benchmark or one.

A name is a run (``objective.alpha=0.3,seed=1``: one checkpoint), an arm (``objective.alpha=0.3`` or
its label: all its seeds) or ``base``, with ``@iteration`` behind it; without, the last iteration.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from analysis import findings, measures
from analysis.cells import POPULATIONS_NOTE, cell_text, counts, ends, incomplete_text, interval_text
from analysis.load import Checkpoint, StudyData, load_study
from analysis.measures import Measure
from analysis.stats import Estimate, difference
from analysis.table import Table, TableRow, unique
from analysis.text import number, p_value
from harness.records import HarnessError


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
    rows, observations = [], []
    notes = [
        POPULATIONS_NOTE,
        "Every p is for its own comparison and not corrected for the others.",
    ]
    for measure in _measures(data, benchmark):
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
        of = {name_of(c): findings.estimate(data, c, measure) for c in (left, right)}
        shown = {name: cell_text(estimate, measure) for name, estimate in of.items()}
        rows.append(TableRow({"measure": measure.name, **shown, **_difference(found, measure)}))
        observations.append(_observation(measure, of, found))
        notes += [f"{measure.name}: {flag}" for flag in found.flags]
    if not rows:
        raise HarnessError(
            f"nothing to compare: {name_of(left)} and {name_of(right)} hold no common "
            f"scores{f' of {benchmark}' if benchmark else ''}"
        )
    paired_by = "item" if len(left.runs) == 1 else "item and seed"
    caption = f"{name_of(left)} minus {name_of(right)}, paired by {paired_by}."
    title = f"{name_of(left)} against {name_of(right)}"
    return Table("compare", title, caption, rows, observations, unique(notes))


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
        base = next((c for c in data.checkpoints if c.iteration == 0), None)
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
    iteration = int(tail) if tail else max(run.last_iteration for run in runs)
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
    single = f", seed {checkpoint.runs[0].seed}" if len(checkpoint.runs) == 1 else ""
    return checkpoint.title + single


def _measures(data: StudyData, benchmark: str) -> list[Measure]:
    known = measures.all_measures(data)
    if not benchmark:
        return list(known.values())
    if benchmark == "academic":
        return list(measures.columns(data, "table_2"))
    chosen = [
        m
        for key, m in known.items()
        if benchmark in (m.benchmark, key, f"{m.benchmark}.{m.metric}")
    ]
    if not chosen:
        names = ", ".join(dict.fromkeys(m.benchmark for m in known.values()))
        raise HarnessError(f"unknown benchmark {benchmark!r}; known: {names}")
    return chosen


def _difference(found: Estimate, measure: Measure) -> dict[str, str]:
    a, b, items = (found.intervals.get(name) for name in ("A", "B", "items"))
    digits, n = measure.digits, f"{found.seeds} × {found.clusters}"
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


def _observation(measure: Measure, of: dict[str, Estimate], found: Estimate) -> dict[str, object]:
    (a, first), (b, second) = of.items()
    return {
        "measure": measure.key,
        "unit": measure.unit,
        "a": a,
        "b": b,
        "mean_a": first.value,
        "mean_b": second.value,
        "difference": found.value,
        **ends(found, "items", "A", "B", p=True),
        **counts(found),
    }
