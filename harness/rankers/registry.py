"""Every ranker by kind: those modules of this folder that define ``RANKER``; and ranking by name.

Found by reading the files, so that only rankers are imported; a new file is all that a new ranker
needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.files import defined
from harness.rankers.ranker import RankContext, Ranked, Ranker, RankItem

FOLDER = Path(__file__).parent


RANKERS: Mapping[str, Ranker] = {
    one.kind: one for one in defined("harness.rankers", FOLDER, "RANKER")
}


def rank_texts(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Scores of every item's texts by the ranker that ``context.settings.kind`` names."""
    return RANKERS[context.settings.kind].rank(items, context) if items else []


def rewards(
    items: Sequence[RankItem], references: Sequence[str], context: RankContext
) -> list[Ranked]:
    """Scores that compare across prompts: a pointwise ranker's own; a pairwise one's score of each
    text against the prompt's reference.

    Without a reference text a pairwise ranker gives status "no_answer".
    """
    ranker = RANKERS[context.settings.kind]
    if not ranker.pairwise:
        return rank_texts(items, context)
    duels = [
        RankItem(f"{item.id}#{place}", item.messages, (text, reference))
        for item, reference in zip(items, references, strict=True)
        for place, text in enumerate(item.texts)
        if reference and text != reference
    ]
    ranked = rank_texts(duels, context)
    found = {duel.id: one for duel, one in zip(duels, ranked, strict=True)}
    return [
        _against(item, reference, found, ranker.even)
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
