"""Tables about the study itself: which score rows and stages are there, what was left out, and what
it cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from analysis import measures
from analysis.load import Cell, Stage, StudyData, iterate, once
from analysis.table import Table, TableRow, Unavailable
from analysis.text import number

STATES = ("failed", "partial", "missing")
MOST_USERS = 4
"""Runs named for a stage that is not done; the CSV has all."""


def table_completeness(data: StudyData) -> Table | Unavailable:
    """Score rows by status; complete checkpoints in one row, all of them in the CSV."""
    stored: dict[str, str] = {}
    for benchmark, metric in data.metrics():
        stored.setdefault(benchmark, metric)
    shown = [m for table in measures.tables(data) for m in measures.columns(data, table)]
    names = dict.fromkeys(m.benchmark for m in shown if m.benchmark in stored)
    if not names:
        return Unavailable("completeness", "Completeness", "no score rows are stored yet")
    rows, observations, counted = [], [], Counter[str]()
    whole, sums = 0, Counter[str]()
    for checkpoint in data.checkpoints:
        cells = {name: data.cell(checkpoint, name, stored[name]) for name in names}
        for name, cell in cells.items():
            of = {**checkpoint.place, "benchmark": name, "metric": stored[name]}
            for status, count in _statuses(cell).items():
                observations.append({**of, "status": status, "rows": count})
                counted[status] += count
        if all(cell.complete for cell in cells.values()):
            whole += 1
            sums.update({name: cell.layout.scored for name, cell in cells.items()})
        else:
            counts = {name: _counted(cell) for name, cell in cells.items()}
            rows.append(TableRow({"checkpoint": checkpoint.title, **counts}))
    if whole:
        title = f"{whole} complete checkpoint{'s' * (whole != 1)}"
        counts = {name: f"{sums[name]}/{sums[name]}" for name in names}
        rows.append(TableRow({"checkpoint": title, **counts}, rule=True))
    everything = ", ".join(f"{count} {status}" for status, count in sorted(counted.items()))
    caption = (
        "Score rows with a value / expected, all seeds together. Checkpoints that lack something "
        f"stand alone. A cell under {100 * data.min_complete:g} % is INCOMPLETE. "
        f"In all: {everything}."
    )
    return Table("completeness", "Completeness", caption, rows, observations)


def _statuses(cell: Cell) -> dict[str, int]:
    return {**cell.statuses, **({"not run": cell.not_run} if cell.not_run > 0 else {})}


def _counted(cell: Cell) -> str:
    """ "94/96 (1 error, 1 unparsed)": rows with a value / expected, and the others."""
    others = sorted((s, count) for s, count in _statuses(cell).items() if s != "ok" and count > 0)
    words = ", ".join(f"{count} {status}" for status, count in others)
    return f"{cell.layout.scored}/{cell.layout.expected}" + f" ({words})" * bool(words)


def table_unfinished(data: StudyData) -> Table | Unavailable:
    """Stages that are not done; grouped by stage, state and reason."""
    order = [f"{run.name}@{iteration}" for run, iteration in iterate(data)]
    place = {user: number_ for number_, user in enumerate(order)}
    grouped: dict[tuple[int, str, str], set[str]] = {}
    for stage, users in data.unfinished:
        alike = grouped.setdefault((STATES.index(stage.state), stage.name, stage.reason), set())
        alike.update(users or ["shared by all runs"])
    rows, observations = [], []
    for (state, name, reason), alike in sorted(grouped.items()):
        users = sorted(alike, key=lambda user: (place.get(user, -1), user))
        of = {"state": STATES[state], "stage": name}
        observations += [{**of, "reason": reason, "run": user} for user in users]
        more = f" and {len(users) - MOST_USERS} more" * (len(users) > MOST_USERS)
        shown = ", ".join(users[:MOST_USERS]) + more
        rows.append(TableRow({**of, "reason": reason or "not run yet", "run@iteration": shown}))
    done = sum(stage.state == "done" for stage in data.stages.values())
    caption = f"{done} of {len(data.stages)} stages are done."
    by = ("state", "stage", "reason")
    empty = ((*by, "run@iteration"), (*by, "run"))
    title = "Failed, partial and missing stages"
    return Table("unfinished", title, caption, rows, observations, left=4, empty=empty)


# -- what was left out -----------------------------------------------------------------------------
PLACES = 3
"""Where the first of a reason stand, that many."""
TOLD_FROM = 0.01
"""Share of what its stages met from which a kind stands in the report's first screen."""


@dataclass(frozen=True)
class Kind:
    """What stages did not use, or not whole. of: all that stages met which left anything out.
    reasons: reason -> how many. places: reason -> where the first stand. stages: how many.
    """

    stage: str
    what: str
    of: int
    reasons: Counter[str]
    places: Mapping[str, Sequence[str]]
    stages: int

    @property
    def share(self) -> float:
        return self.reasons.total() / self.of if self.of else 0.0


Records = Iterable[Iterable[Mapping[str, Any]]]
"""``left_out`` of each stage's record."""


def kinds(records: Records) -> list[Kind]:
    """By stage name and kind of thing, in order."""
    entries: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for number_, record in enumerate(records):
        for entry in record:
            entries.setdefault((entry["stage"], entry["what"]), []).append((number_, entry))
    found = []
    for key, of_kind in entries.items():
        met = {number_: int(entry["of"]) for number_, entry in of_kind}
        reasons: Counter[str] = Counter()
        places: dict[str, dict[str, None]] = {}
        for _, entry in of_kind:
            reasons[entry["reason"]] += int(entry["count"])
            places.setdefault(entry["reason"], {}).update(dict.fromkeys(entry["examples"]))
        first = {reason: list(some)[:PLACES] for reason, some in places.items()}
        found.append(Kind(*key, sum(met.values()), reasons, first, len(met)))
    return found


@once
def _left_out(data: StudyData) -> list[Kind]:
    return kinds(stage.left_out for stage in data.stages.values())


def left_out_lines(records: Records) -> list[str]:
    """A line a kind, for a terminal: ``left out or cut: 96 of 108 rows by data.files (form 90:
    rows.jsonl:3, …; length 6: …)``.
    """
    found = []
    for kind in kinds(records):
        by = kind.stage if kind.stages == 1 else f"{kind.stages} stages {kind.stage}"
        parts = []
        for reason, count in kind.reasons.most_common():
            places = ", ".join(kind.places[reason])
            more = ", …" if count > len(kind.places[reason]) else ""
            parts.append(f"{reason} {count}: {places}{more}")
        of = f"{kind.reasons.total()} of {kind.of} {kind.what} by {by}"
        found.append(f"left out or cut: {of} ({'; '.join(parts)})")
    return found


def left_out_statement(data: StudyData) -> str:
    """One sentence about every kind of which more than 1 % was left out; empty where none was."""
    parts = []
    for kind in _left_out(data):
        if kind.share > TOLD_FROM:
            reasons = ", ".join(f"{reason} {count}" for reason, count in kind.reasons.most_common())
            share = number(100 * kind.share, 1)
            counted = f"{kind.reasons.total():,} of {kind.of:,}: {reasons}"
            parts.append(f"{share} % of {kind.what} by {kind.stage} ({counted})")
    if not parts:
        return ""
    return f"Left out or cut: {'; '.join(parts)}. The table of what was left out names the first."


def table_left_out(data: StudyData) -> Table:
    """What the stages did not use, or not whole, by stage, thing and reason."""
    rows, observations = [], []
    for kind in _left_out(data):
        for reason, count in kind.reasons.most_common():
            place = {"stage": kind.stage, "what": kind.what, "reason": reason}
            share = count / kind.of if kind.of else 0.0
            examples = ", ".join(kind.places[reason])
            shown = {"count": f"{count:,}", "of": f"{kind.of:,}", "%": number(100 * share, 1)}
            rows.append(TableRow({**place, **shown, "first of them": examples}))
            counted = {"count": count, "of": kind.of, "share": share, "stages": kind.stages}
            observations.append({**place, **counted, "examples": examples})
    caption = "Nothing was: every stage used all that it met."
    if rows:
        caption = (
            "Summed over the stages of a name that left anything out; of: all that these stages "
            "met. A sample that is cut, and a verdict that cannot be read, is used as its status "
            "says."
        )
    by = ("stage", "what", "reason", "count", "of")
    empty = ((*by, "%", "first of them"), (*by, "share", "stages", "examples"))
    title = "What was left out or cut"
    return Table("left_out", title, caption, rows, observations, left=3, empty=empty)


# -- costs -----------------------------------------------------------------------------------------
COSTS = {
    "seconds": ("seconds", 1),
    "cpu_seconds": ("CPU seconds", 1),
    "tokens_generated": ("tokens generated", 0),
    "tokens_trained": ("tokens trained", 0),
    "judge_calls": ("judge calls", 0),
    "judge_prompt_tokens": ("judge prompt tokens", 0),
    "judge_completion_tokens": ("judge answer tokens", 0),
    "judge_usd": ("judge USD", 2),
}
"""Cost in a stage's record → its title and digits."""


def table_costs(data: StudyData) -> Table | Unavailable:
    """Costs by stage, shared stages counted once; kept apart from the data, as times differ."""
    if not any(stage.state == "done" for stage in data.stages.values()):
        return Unavailable("costs", "Costs", "no stage is done yet")
    names = list(dict.fromkeys(stage.name for stage in _by_depth(data)))
    rows, observations = [], []
    for name in [*names, "all"]:
        chosen = [stage for stage in data.stages.values() if name in (stage.name, "all")]
        done = sum(stage.state == "done" for stage in chosen)
        sums = {cost: math.fsum(float(s.costs.get(cost, 0.0)) for s in chosen) for cost in COSTS}
        row = {"stage": name, "done": f"{done} of {len(chosen)}"}
        for cost, (title, digits) in COSTS.items():
            row[title] = number(sums[cost], digits) if sums[cost] else "–"
        rows.append(TableRow(row, rule=name == "all"))
        observations.append({"stage": name, "done": done, "stages": len(chosen), **sums})
    caption = "By stage; a stage that several runs share is counted once."
    return Table("costs", "Costs", caption, rows, observations, volatile=True)


def _by_depth(data: StudyData) -> list[Stage]:
    """Stages along the pipeline, each name at its last place: by the longest way to them."""
    inputs = {key: list(stage.inputs.values()) for key, stage in data.stages.items()}
    depth: dict[str, int] = {}
    deepest: Counter[str] = Counter()
    for key in TopologicalSorter(inputs).static_order():
        depth[key] = 1 + max((depth[parent] for parent in inputs.get(key, ())), default=0)
        if key in data.stages:
            name = data.stages[key].name
            deepest[name] = max(deepest[name], depth[key])
    return sorted(data.stages.values(), key=lambda stage: (deepest[stage.name], stage.name))
