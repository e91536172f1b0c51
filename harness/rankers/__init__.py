"""Rankers: texts that answer one prompt → one score each. A new ranker is one function and one
entry here.

Pointwise rankers (oracle, reward model) score a text by itself. Pairwise ones (PairRM, judge)
compare the texts of a prompt with each other, so their scores mean something within the prompt
only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.records import HarnessError, Status


@dataclass(frozen=True)
class RankItem:
    """A prompt and the distinct texts that answer it. ``id`` is unique within one call."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Ranked:
    """One score per text (higher is better), or none and the reason: "error" is retried, other
    statuses are final.
    """

    scores: tuple[float, ...]
    status: Status = "ok"


@dataclass(frozen=True)
class RankContext:
    """What a ranker needs besides its items. out: folder in which a judge's replies are kept.

    folder: of the stage that located the ranker's checkpoint. costs: added to by the ranker
    (judge_calls, ranker_texts, …).
    """

    settings: Mapping[str, Any]
    runtime: Mapping[str, Any]
    out: Path
    folder: Path | None = None
    judge: Mapping[str, Any] | None = None
    costs: dict[str, float] = field(default_factory=dict)

    def add_cost(self, name: str, amount: float) -> None:
        self.costs[name] = self.costs.get(name, 0) + amount


RankFunction = Callable[[Sequence[RankItem], RankContext], list[Ranked]]

RANKERS: dict[str, str] = {
    "oracle": "harness.rankers.oracle:rank",
    "reward_model": "harness.rankers.reward_model:rank",
    "pairrm": "harness.rankers.pairrm:rank",
    "judge": "harness.rankers.judge:rank",
}
"""Kind → function, imported when used."""

PAIRWISE = frozenset({"pairrm", "judge"})


def rank_texts(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Scores of every item's texts by the ranker that ``context.settings["kind"]`` names."""
    kind = str(context.settings["kind"])
    if kind not in RANKERS:
        raise HarnessError(f"ranker.kind is {kind!r}; allowed: {', '.join(sorted(RANKERS))}")
    module, _, name = RANKERS[kind].partition(":")
    function: RankFunction = getattr(importlib.import_module(module), name)
    return function(items, context) if items else []


def rewards(
    items: Sequence[RankItem], references: Sequence[str], context: RankContext
) -> list[Ranked]:
    """Scores that compare across prompts: a pointwise ranker's own; a pairwise one's score of each
    text against the prompt's reference.

    Without a reference text a pairwise ranker gives status "no_answer".
    """
    if context.settings["kind"] not in PAIRWISE:
        return rank_texts(items, context)
    duels = [
        RankItem(f"{item.id}#{place}", item.messages, (text, reference))
        for item, reference in zip(items, references, strict=True)
        for place, text in enumerate(item.texts)
        if reference and text != reference
    ]
    found = dict(zip((duel.id for duel in duels), rank_texts(duels, context), strict=True))
    return [
        _against(item, reference, found, 0.5 if context.settings["kind"] == "judge" else 0.0)
        for item, reference in zip(items, references, strict=True)
    ]


def _against(item: RankItem, reference: str, found: Mapping[str, Ranked], even: float) -> Ranked:
    if not reference:
        return Ranked((), "no_answer")
    duels = [
        Ranked((even, even)) if text == reference else found[f"{item.id}#{place}"]
        for place, text in enumerate(item.texts)
    ]
    failed = [duel.status for duel in duels if duel.status != "ok"]
    return Ranked((), failed[0]) if failed else Ranked(tuple(duel.scores[0] for duel in duels))
