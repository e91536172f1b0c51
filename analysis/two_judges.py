"""Every arm against the baseline under two judges, side by side: does the finding hang on who
judged?
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis import findings, measures
from analysis.cells import POPULATIONS_NOTE, ends, interval_text
from analysis.findings import Comparison
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.table import Table, TableRow
from analysis.text import number
from harness.records import HarnessError

SIDES = ("first judge", "second judge")


def table_two_judges(first: StudyData, second: StudyData) -> Table:
    """Arm − baseline after the last iteration on every judged measure. The same answers were
    judged, so what differs is the judge alone: its bias, and its noise.

    Raises HarnessError where no judged measure is stored under both.
    """
    rows, observations = [], []
    judges: dict[str, list[str]] = {}
    for measure in _judged(first):
        sides = [_by_arm(data, measure) for data in (first, second)]
        for arm, a in sides[0].items():
            b = sides[1].get(arm)
            if b is None:
                continue
            head = {"measure": measure.name, "arm": a.label}
            cells = {side: _cell(one, measure) for side, one in zip(SIDES, (a, b), strict=True)}
            rows.append(TableRow({**head, **cells, "sign": _sign(a, b)}))
            numbers: dict[str, object] = {}
            for side, one in zip(("first", "second"), (a, b), strict=True):
                numbers[side] = one.estimate.value
                told = ends(one.estimate, "A", "B", p=True)
                numbers |= {f"{side}_{name}": value for name, value in told.items()}
            observations.append({**head, **numbers})
            judges[measure.name] = [_who(data, measure) for data in (first, second)]
    if not rows:
        raise HarnessError(
            f"{first.name}: no difference to a baseline is stored under both judges; `selm run` "
            "judges the study, and its baseline is named in its file"
        )
    notes = [f"{name}: {' | '.join(who)}." for name, who in judges.items()]
    caption = (
        "Arm minus baseline after the last iteration, interval (A), under each judge, on the same "
        "answers. Sign: whether both judges say the same direction; in brackets where neither "
        "interval excludes zero, so that the signs may be chance."
    )
    notes.append(POPULATIONS_NOTE)
    title = "Arms against the baseline under two judges"
    return Table("two_judges", title, caption, rows, observations, notes, left=2)


def _judged(data: StudyData) -> Sequence[Measure]:
    judged = {benchmark["name"] for benchmark in data.benchmarks if benchmark["judged"]}
    return [
        measure
        for measure in measures.columns(data, "table_1")
        if measure.benchmark in judged and measure.better and not measure.part
    ]


def _by_arm(data: StudyData, measure: Measure) -> dict[str, Comparison]:
    found = findings.compare_arms(data, measure, data.last_iteration)
    return {one.arm: one for one in found if one.estimate.value is not None}


def _who(data: StudyData, measure: Measure) -> str:
    found = {
        data.identity(checkpoint, measure.benchmark, measure.metric)
        for checkpoint in data.checkpoints
    }
    return " and ".join(sorted(found - {""}))


def _cell(one: Comparison, measure: Measure) -> str:
    value = number(one.estimate.value, measure.digits, sign=True)
    return f"{value} ({interval_text(one.estimate.intervals.get('A'), measure.digits)})"


def _sign(a: Comparison, b: Comparison) -> str:
    values = [one.estimate.value or 0.0 for one in (a, b)]
    word = "same" if values[0] * values[1] > 0 else "other"
    clear = any(_excludes_zero(one) for one in (a, b))
    return word if clear else f"({word})"


def _excludes_zero(one: Comparison) -> bool:
    interval = one.estimate.intervals.get("A")
    if interval is None or interval.low is None or interval.high is None:
        return False
    return interval.low > 0 or interval.high < 0
