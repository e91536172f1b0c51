"""What stands first in a terminal, in ``report.md`` and on the page: the answer, arms by measures,
what was not used, and what to do next.
"""

from __future__ import annotations

from analysis import findings, measures, prose, text
from analysis.findings import Comparison
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.power_report import seeds_for_less
from analysis.screen import Matrix, Next, Opening, Score, Statement
from analysis.stats import MIN_SEEDS
from analysis.table import items_note, spread_text
from analysis.tables.study import left_out_statement
from analysis.text import number

MOST_MEASURES = 7


def opening(data: StudyData) -> Opening:
    """The first screen of a study's report, finished or not."""
    trained = not prose.nothing_trained(data)
    warnings = (left_out_statement(data), prose.unfitted(data), prose.missing(data))
    statements = (
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
        tuple(warning for warning in warnings if warning),
        tuple(statement for statement in statements if statement is not None),
        matrix(data),
        next_steps(data),
        tuple(data.manifest["study"].get("set", ())),
    )


# -- arms by measures ------------------------------------------------------------------------------
def _measures(data: StudyData) -> list[tuple[Measure, int]]:
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
    wanted = _measures(data)
    compared = {
        measure.key: {c.arm: c for c in findings.compare_arms(data, measure, iteration)}
        for measure, iteration in wanted
    }
    rows = [
        tuple(_score(data, arm, *one, compared[one[0].key].get(arm)) for one in wanted)
        for arm in data.arms
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
        scored = {measure: _items(data, measure, iteration) for measure, iteration in wanted}
        items = items_note(data, scored, alone=True).removesuffix(".")
        given = "with the 95 % interval over new items, given these very checkpoints"
        caption += f", {given}. {items}"
    names = tuple(measure.name for measure, _ in wanted)
    labels = tuple(text.one_line(data.label(arm)) for arm in data.arms)
    return Matrix(names, labels, tuple(rows), f"{caption}.")


def _items(data: StudyData, measure: Measure, iteration: int) -> int:
    """How many items were scored."""
    there = [found for arm in data.arms if (found := data.at(arm, iteration))]
    return max((findings.estimate(data, one, measure).clusters for one in there), default=0)


def _score(
    data: StudyData, arm: str, measure: Measure, iteration: int, compared: Comparison | None
) -> Score:
    checkpoint = data.at(arm, iteration) if data.baseline_arm in ("", arm) else None
    if compared:
        estimate = compared.estimate
    elif checkpoint:
        estimate = findings.estimate(data, checkpoint, measure)
    else:
        return Score("–")
    value, half = estimate.value, estimate.half_width()
    if value is None:
        of = f"{estimate.scored} of {estimate.expected} scored"
        return Score(of if estimate.expected else "–")
    digits = estimate.digits(measure.digits)
    shown = number(value, digits, sign=compared is not None)
    # (A); of a study of one seed the interval over its items
    interval = estimate.intervals.get("items" if len(data.seeds) == 1 else "A")
    if interval and interval.defined:
        shown += f" {spread_text(interval, digits).replace('± ', '±')}"
    if not compared:
        return Score(shown, value, half, baseline=True)
    if half is not None and abs(value) > half:
        shown += "*"
    effect = value / half * (measure.better or 1) if half else None
    return Score(shown, value, half, effect)


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
    detected = [c for c in primary if c.detected()]
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
