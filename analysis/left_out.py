"""What a study did not use, or not whole, as its stages' records say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import text
from analysis.load import StudyData, once

SHOWN = 3
TOLD_FROM = 0.01
"""Share of what its stages met from which a kind stands in the report's first screen."""


@dataclass(frozen=True)
class Kind:
    """of: all that stages met which left anything out. reasons: reason -> how many. examples:
    reason -> where the first stand. stages: how many left something out.
    """

    stage: str
    what: str
    of: int
    reasons: Counter[str]
    examples: Mapping[str, Sequence[str]]
    stages: int

    @property
    def count(self) -> int:
        return self.reasons.total()

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    def line(self) -> str:
        """``96 of 108 rows by data.files (form 90: rows.jsonl:3, …; length 6: …)``."""
        by = self.stage if self.stages == 1 else f"{self.stages} stages {self.stage}"
        parts = []
        for reason, count in self.reasons.most_common():
            more = [", …"] if count > len(self.examples[reason]) else []
            parts.append(f"{reason} {count}: " + "".join([", ".join(self.examples[reason]), *more]))
        return f"{self.count} of {self.of} {self.what} by {by} ({'; '.join(parts)})"


def kinds(records: Iterable[Iterable[Mapping[str, Any]]]) -> list[Kind]:
    """By stage name and kind of thing, in order. records: ``left_out`` of each stage's record."""
    entries: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for number, record in enumerate(records):
        for entry in record:
            entries.setdefault((entry["stage"], entry["what"]), []).append((number, entry))
    found = []
    for key, of_kind in entries.items():
        met = {number: int(entry["of"]) for number, entry in of_kind}
        reasons: Counter[str] = Counter()
        examples: dict[str, dict[str, None]] = {}
        for _, entry in of_kind:
            reasons[str(entry["reason"])] += int(entry["count"])
            examples.setdefault(str(entry["reason"]), {}).update(dict.fromkeys(entry["examples"]))
        first = {reason: list(places)[:SHOWN] for reason, places in examples.items()}
        found.append(Kind(*key, sum(met.values()), reasons, first, len(met)))
    return found


@once
def of_study(data: StudyData) -> list[Kind]:
    """Every kind of thing that the study's stages left out."""
    return kinds(stage.left_out for stage in data.stages.values())


def statement(data: StudyData) -> str:
    """One sentence about every kind of which more than 1 % was left out; empty where none was."""
    parts = []
    for kind in of_study(data):
        if kind.share > TOLD_FROM:
            reasons = ", ".join(f"{reason} {count}" for reason, count in kind.reasons.most_common())
            share = text.number(100 * kind.share, 1)
            counted = f"{kind.count:,} of {kind.of:,}: {reasons}"
            parts.append(f"{share} % of {kind.what} by {kind.stage} ({counted})")
    if not parts:
        return ""
    return f"Left out or cut: {'; '.join(parts)}. The table of what was left out names the first."


def lines(records: Iterable[Iterable[Mapping[str, Any]]]) -> list[str]:
    """A line a kind, for a terminal."""
    return [f"left out or cut: {kind.line()}" for kind in kinds(records)]
