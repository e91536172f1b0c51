"""What a cell of a table shows and the observation behind it; who judged the scores, and whether
published ones may stand beside them.
"""

from __future__ import annotations

from collections.abc import Collection

from analysis import measures
from analysis.load import Checkpoint, StudyData
from analysis.measures import Measure
from analysis.stats import Estimate, Interval
from analysis.text import number

POPULATIONS_NOTE = (
    "Intervals are 95 %. (A): this benchmark, new seeds. (B): new seeds and new items. Seeds and "
    "items are crossed; none is given below 3 seeds."
)


def judged(data: StudyData) -> dict[str, Measure]:
    """Title of a judged benchmark → its measure that has one value an item."""
    found = {}
    for benchmark in data.benchmarks:
        if benchmark["judged"]:
            metric = (benchmark["samples"] or benchmark["measures"][0])["metric"]
            found[benchmark["title"]] = measures.find(data, benchmark["name"], metric)
    return found


def verdict(comparable: bool) -> str:
    """Whether scores may stand beside published ones, in words."""
    if comparable:
        return (
            "comparable with published scores: judge, questions, references and prompts are the "
            "published ones"
        )
    return (
        "not comparable with published scores: another judge, or other questions, references or "
        "prompts"
    )


def judge_notes(data: StudyData, benchmarks: Collection[str]) -> list[str]:
    """One sentence for every judge and benchmark version among the scores: comparable with
    published scores or not.

    Comparable only if every stored set says so (judge, questions, references and prompts are the
    published ones); nothing is assumed.
    """
    sentences = []
    by_name = sorted(judged(data).items(), key=lambda item: item[1].benchmark)
    for title, measure in by_name:
        if measure.benchmark not in benchmarks:
            continue
        comparable: dict[str, bool] = {}
        read: dict[str, str] = {}
        titles: dict[str, list[str]] = {}
        for checkpoint in data.checkpoints:
            name = data.identity(checkpoint, measure.benchmark, measure.metric)
            if not name:
                continue
            titles.setdefault(name, []).append(checkpoint.title)
            for run in checkpoint.runs:
                summary = data.summary(run, checkpoint.iteration, measure.benchmark)
                same = not summary or summary.get("comparable") is True
                comparable[name] = comparable.get(name, True) and same
                read[name] = str(summary.get("verdict", ""))
        for name, same in comparable.items():
            where = f" ({', '.join(titles[name])})" if len(titles) > 1 else ""
            by = f"{name}, its verdicts read from {read[name]}" if read.get(name) else name
            sentences.append(f"{title}{where}, judged by {by}: {verdict(same)}.")
        if len(titles) > 1:
            sentences.append(
                f"{title}: rows of different judges or references are not comparable with one "
                "another, and no difference between them is given."
            )
    return sentences


def cell_text(estimate: Estimate, measure: Measure) -> str:
    """ "24.25 ± 0.41 (1.62)": mean, half-width (A), half-width (B); "INCOMPLETE (94 of 96)
    8.61–8.70" with bounds.
    """
    digits = measure.digits
    if estimate.incomplete or estimate.value is None:
        if not estimate.expected:
            return "–"
        ends = [number(end, digits) for end in estimate.bounds or ()]
        return f"{incomplete_text(estimate)} {'–'.join(ends)}".rstrip()
    dagger = "†" if estimate.scored < estimate.expected else ""
    value = number(estimate.value, digits) + dagger
    half = {name: number(i.half_width, digits) for name, i in estimate.intervals.items()}
    if "items" in half:
        return f"{value} ± {half['items']}"
    return f"{value} ± {half['A']} ({half['B']})"


def incomplete_text(estimate: Estimate) -> str:
    return f"INCOMPLETE ({estimate.scored} of {estimate.expected})"


def interval_text(interval: Interval | None, digits: int) -> str:
    """ "−0.80 to 3.20", or a dash."""
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def ends(estimate: Estimate, *names: str, p: bool = False) -> dict[str, object]:
    """Fields "A_low", "A_high" (and "A_p") of the named intervals; None where there is none."""
    fields: dict[str, object] = {}
    for name in names:
        interval = estimate.intervals.get(name)
        for end in ("low", "high", "p") if p else ("low", "high"):
            fields[f"{name}_{end}"] = getattr(interval, end, None)
    return fields


def counts(estimate: Estimate) -> dict[str, object]:
    """Fields that say what an estimate rests on."""
    names = ("seeds", "clusters", "scored", "expected")
    return {name: getattr(estimate, name) for name in names}


def score_observation(
    data: StudyData, checkpoint: Checkpoint, measure: Measure, estimate: Estimate
) -> dict[str, object]:
    """The full-precision numbers behind a cell."""
    worst, best = None, None
    if estimate.bounds and estimate.scored < estimate.expected:
        worst, best = estimate.bounds
    points = sorted(measures.points(data, checkpoint, measure).items())
    return {
        **checkpoint.place,
        "c": c_of(checkpoint),
        "kappa": kappa_of(checkpoint),
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


def c_of(checkpoint: Checkpoint) -> float | None:
    """The coefficient on log π(y) of this iteration."""
    return checkpoint.runs[0].c.get(checkpoint.iteration)


def kappa_of(checkpoint: Checkpoint) -> float | None:
    """κ = 2c/β of this iteration."""
    return checkpoint.runs[0].kappa.get(checkpoint.iteration)
