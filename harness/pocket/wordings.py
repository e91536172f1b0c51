"""The pocket language's material, read from ``world.yaml``: its words, its answer styles with their
worth, and the wordings of every operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_WORLD: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("world.yaml").read_text(encoding="utf-8")
)
Wordings = tuple[tuple[str, str], ...]
"""(category, wording) of each way to ask."""


@dataclass(frozen=True)
class Style:
    """A way of phrasing. worth: reward of a right answer; share: of the data distribution."""

    name: str
    template: str
    worth: float
    share: float

    def render(self, content: Sequence[str]) -> str:
        """An answer of this content."""
        return self.template.format(content=" ".join(content))


CATEGORIES = tuple[str, ...](_WORLD["categories"])
NAMES = tuple[str, ...](_WORLD["names"])
CLASSES = {name: tuple[str, ...](words) for name, words in _WORLD["classes"].items()}
WORDS = tuple(word for members in CLASSES.values() for word in members)
CLASS_OF = {word: name for name, members in CLASSES.items() for word in members}
ORDINALS = tuple[str, ...](_WORLD["ordinals"])
MOODS = tuple[str, ...](_WORLD["moods"])
EVENTS = {event: tuple[int, ...](strengths) for event, strengths in _WORLD["events"].items()}
MAX_NUMBER = 60
LONG_LIST_SHARE = 0.2
STYLES = tuple(Style(**row) for row in _WORLD["styles"])
BEST_STYLE = max(STYLES, key=lambda style: style.worth)


def _wordings(rows: Sequence[Sequence[str]]) -> Wordings:
    return tuple((category, text) for category, text in rows)


WORDINGS = {op: _wordings(rows) for op, rows in _WORLD["wordings"].items()}
PHRASES: dict[str, str] = _WORLD["phrases"]
COMPOSED_WORDINGS = _wordings(_WORLD["composed_wordings"])
COMPOSITIONS = tuple(
    pair
    for pair in itertools.product(("reverse", "rotate", "swap", "drop"), PHRASES)
    if pair[0] != pair[1] or pair[0] == "drop"
)
HELD_OUT_COMPOSITIONS = tuple((one, two) for one, two in _WORLD["held_out_compositions"])
FOLLOW_UPS: dict[str, str] = _WORLD["follow_ups"]
