"""What ``selm doctor`` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``note``: only worth knowing; ``WRONG``: a run would fail."""

    state: Literal["ok", "note", "WRONG"]
    what: str
    says: str


def ok(what: str, says: str) -> Finding:
    return Finding("ok", what, says)


def note(what: str, says: str) -> Finding:
    return Finding("note", what, says)


def wrong(what: str, says: str) -> Finding:
    return Finding("WRONG", what, says)
