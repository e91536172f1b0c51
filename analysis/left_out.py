"""What a study did not use, or not whole, as its stages' records say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis import text
from analysis.load import StudyData, once

SHOWN = 3
TOLD_FROM = 0.01
"""Share of what its stages met from which a kind stands in the report's first screen."""


@dataclass
class Kind:
    """of: all that stages met which left anything out. reasons: reason -> how many. examples:
    reason -> where the first stand. stages: how many left something out.
    """

    stage: str
    what: str
    of: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    stages: int = 0

    @property
    def count(self) -> int:
        return self.reasons.total()

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """What one stage's record says of this kind."""
        for entry in entries:
            reason, places = str(entry["reason"]), list(entry["examples"])
            self.reasons[reason] += int(entry["count"])
            known = self.examples.setdefault(reason, [])
            known += [place for place in places if place not in known][: SHOWN - len(known)]
            of = int(entry["of"])
        self.of, self.stages = self.of + of, self.stages + 1

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
    found: dict[tuple[str, str], Kind] = {}
    for record in records:
        own: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for entry in record:
            own.setdefault((entry["stage"], entry["what"]), []).append(entry)
        for key, entries in own.items():
            found.setdefault(key, Kind(*key)).add(entries)
    return list(found.values())


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
