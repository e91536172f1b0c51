"""What is known of a ranker: one record, which plan, rank stage, held-out rewards, diagnostics,
doctor and cost read.

A ranker is one file of this folder that defines ``RANKER`` (`harness.rankers.registry` finds it).
Importing it must not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.records import Status
from harness.study.sections import DataSettings, JudgeSettings, RankerSettings
from harness.study.tasks import RankerTask, Runtime
from harness.study.work import Lengths, Work

Messages = Sequence[Mapping[str, str]]
"""A conversation: role and content of its turns."""


@dataclass(frozen=True)
class RankItem:
    """A prompt and the distinct texts that answer it. ``id`` is unique within one call."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Ranked:
    """A score a text, higher is better, or none and the reason; only "error" is retried."""

    scores: tuple[float, ...]
    status: Status = "ok"


@dataclass(frozen=True)
class RankContext:
    """What a ranker needs besides its items. out: folder in which a judge's replies are kept.
    folder: of the stage that located the ranker's checkpoint. costs: added to by the ranker
    (judge_calls, ranker_texts, …).
    """

    settings: RankerTask
    runtime: Runtime
    out: Path
    folder: Path | None = None
    judge: JudgeSettings | None = None
    costs: dict[str, float] = field(default_factory=dict)

    def add_cost(self, name: str, amount: float) -> None:
        """Add to one of the costs."""
        self.costs[name] = self.costs.get(name, 0) + amount


RankFunction = Callable[[Sequence[RankItem], RankContext], list[Ranked]]


def padded_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Places, shortest first, in batches whose rows × longest stays within ``tokens``."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[place] <= tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def _nothing_missing(_ranker: RankerSettings, _data: DataSettings) -> str:
    return ""


def _looked_up(_lengths: Lengths, prompts: int, texts: int) -> Work:
    return Work(prompts * texts, how=f"{prompts:,} prompts × {texts} answers, nothing to compute")


@dataclass(frozen=True)
class Ranker:
    """kind: its name in ``ranker.kind``. rank: items → one Ranked each. version: raised when its
    scores change, so that what it ranked is ranked again; 1 is in no key.

    pairwise: texts of a prompt are compared with each other, so a score means something within its
    prompt only; even: the score of a text against itself. checkpoint: none, given
    (``ranker.model``), or trained in place when none is given. asks_judge: it needs the judge's
    settings, and is paid for. missing: what its settings lack, as advice; empty text when nothing.
    work: its cost for so many texts a prompt.
    """

    kind: str
    rank: RankFunction
    version: int = 1
    pairwise: bool = False
    even: float = 0.0
    checkpoint: Literal["none", "given", "given or trained"] = "none"
    asks_judge: bool = False
    missing: Callable[[RankerSettings, DataSettings], str] = _nothing_missing
    work: Callable[[Lengths, int, int], Work] = _looked_up
