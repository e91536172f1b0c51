"""What stands first in a terminal, in ``report.md`` and on the page: the answer, arms by measures,
what was not used, and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis import findings, left_out, measures, prose, text
from analysis.findings import Comparison
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.power_report import seeds_for_less
from analysis.screen import Matrix, Next, Opening, Score, Statement
from analysis.stats import MIN_SEEDS, Estimate
from analysis.table import items_note, spread_text
from analysis.text import number

MOST_MEASURES = 7


def opening(data: StudyData) -> Opening:
    """The first screen of a study's report, finished or not."""
    trained = not prose.nothing_trained(data)
    said = (
        prose.detectable(data),
        prose.other_outcomes(data),
        prose.selection(data),
        prose.improvement(data) if trained else None,
        prose.trend(data),
        Statement(prose.conditions(data)) if trained else None,
    )
    return Opening(
        data.name,
        text.one_line(data.question),
        prose.finding(data),
        tuple(filter(None, (left_out.statement(data), prose.unfitted(data), prose.missing(data)))),
        tuple(statement for statement in said if statement is not None),
        matrix(data),
        next_steps(data),
        tuple(data.manifest["study"].get("set", ())),
    )


# -- arms by measures ------------------------------------------------------------------------------
def shown_measures(data: StudyData) -> list[tuple[Measure, int]]:
    """Declared outcomes, then headlines (those with a better side first) that are stored."""
    wanted = findings.declared_outcomes(data)
    headlines = sorted(measures.headlines(data), key=lambda measure: measure.better == 0)
    wanted += [(m, data.last_iteration) for m in headlines if not m.part]
    held = measures.present(data, [measure for measure, _ in wanted])
    found: dict[str, tuple[Measure, int]] = {}
    for measure, iteration in wanted:
        if measure in held:
            found.setdefault(measure.key, (measure, iteration))
    return list(found.values())[:MOST_MEASURES]


def matrix(data: StudyData) -> Matrix:
    """Every arm on every shown measure: its difference to the baseline, or its score."""
    wanted = shown_measures(data)
    compared = {
        measure.key: {c.arm: c for c in findings.compare_arms(data, measure, iteration)}
        for measure, iteration in wanted
    }
    rows = [
        tuple(_score(data, arm, *one, compared[one[0].key]) for one in wanted) for arm in data.arms
    ]
    caption = "Scores"
    if not prose.nothing_trained(data):
        caption = f"{text.capitalised(prose.after(data, data.last_iteration))}: scores"
    if data.baseline_arm and len(data.arms) > 1:
        baseline = prose.named(data.label(data.baseline_arm))
        caption = f"{caption} of {baseline}; other arms: difference to it"
    if len(data.seeds) >= MIN_SEEDS:
        caption += (
            " ± half of the 95 % interval (A), * where a difference's interval leaves out 0, as "
            "one in twenty does by chance (corrected by Holm in the table of differences)"
        )
    elif len(data.seeds) == 1:
        caption += ", with the 95 % interval over new items, given these very checkpoints"
    if len(data.seeds) == 1:
        caption += f". {_items(data, wanted).removesuffix('.')}"
    names = tuple(measure.name for measure, _ in wanted)
    labels = tuple(text.one_line(data.label(arm)) for arm in data.arms)
    return Matrix(names, labels, tuple(rows), f"{caption}.")


def _items(data: StudyData, wanted: Sequence[tuple[Measure, int]]) -> str:
    """How many items of each measure were scored."""
    scored = {}
    for measure, iteration in wanted:
        there = [found for arm in data.arms if (found := data.at(arm, iteration))]
        counts = (findings.estimate(data, checkpoint, measure).clusters for checkpoint in there)
        scored[measure] = max(counts, default=0)
    return items_note(data, scored, alone=True)


def _score(
    data: StudyData, arm: str, measure: Measure, iteration: int, compared: Mapping[str, Comparison]
) -> Score:
    if arm in compared:
        return _difference(data, measure, compared[arm].estimate)
    if data.baseline_arm not in ("", arm):
        return Score("–")
    checkpoint = data.at(arm, iteration)
    estimate = findings.estimate(data, checkpoint, measure) if checkpoint else None
    if estimate is None:
        return Score("–")
    if estimate.value is None:
        return Score(_scored(estimate))
    half, digits = estimate.half_width(), estimate.digits(measure.digits)
    return Score(
        f"{number(estimate.value, digits)}{_spread(data, estimate, digits)}",
        estimate.value,
        half,
        baseline=True,
    )


def _difference(data: StudyData, measure: Measure, estimate: Estimate) -> Score:
    if estimate.value is None:
        return Score(_scored(estimate))
    half, digits = estimate.half_width(), estimate.digits(measure.digits)
    shown = number(estimate.value, digits, sign=True) + _spread(data, estimate, digits)
    if half is None:
        return Score(shown, estimate.value)
    effect = estimate.value / half * (measure.better or 1) if half else None
    star = "*" if abs(estimate.value) > half else ""
    return Score(f"{shown}{star}", estimate.value, half, effect)


def _spread(data: StudyData, estimate: Estimate, digits: int) -> str:
    """Interval (A), of a study of one seed that over its items; empty where there is none."""
    interval = estimate.intervals.get("items" if len(data.seeds) == 1 else "A")
    if interval is None or not interval.defined:
        return ""
    return f" {spread_text(interval, digits).replace('± ', '±')}"


def _scored(estimate: Estimate) -> str:
    return f"{estimate.scored} of {estimate.expected} scored" if estimate.expected else "–"


# -- what to do next -------------------------------------------------------------------------------
def next_steps(data: StudyData) -> tuple[Next, ...]:
    """What would answer more: the rest of the study, seeds for an interval, seeds for a smaller
    difference, or other seeds for one that was found; nothing where others trained the runs, or
    nobody did.
    """
    if data.unfinished:
        states = {stage.state for stage, _ in data.unfinished}
        failed = "what failed is tried again" if "failed" in states else "done stages are kept"
        return (Next(f"Continue the run; {failed}", ()),)
    if not data.trains:
        return ()
    if len(data.seeds) < MIN_SEEDS:
        say = f"{MIN_SEEDS} seeds would give intervals over seeds"
        return (Next(say, (f"seeds={MIN_SEEDS}",)),)
    primary = [c for c in prose.with_intervals(findings.find(data).primary) if c.spread]
    detected = [c for c in primary if c.detected("A") or c.detected("B")]
    if detected:
        first = max(data.seeds) + 1
        fresh = ",".join(str(first + i) for i in range(len(data.seeds)))
        say = "Seeds that no look has used would confirm it"
        return (Next(say, (f"seeds=[{fresh}]",)),)
    if not primary:
        return ()
    far = max(primary, key=lambda c: (abs(c.estimate.value or 0.0), c.arm))
    found = seeds_for_less(far)
    if found is None:
        return ()
    (least, needed), unit = found, prose.unit(far.measure)
    unit = unit.removesuffix("s") if least == 1 else unit
    delta = f"a difference of {least:g} {unit} in {far.measure.name}"
    if needed.value is None:
        return (Next(f"For {delta} no number of seeds will do: {needed.reason}"),)
    say = (
        f"{needed.value} seeds would detect {delta} (decide on their number once: looking again "
        "whenever seeds are added errs in 8 to 16 % where there is nothing, not in 5 %)"
    )
    return (Next(say, (f"seeds={needed.value}",)),)
