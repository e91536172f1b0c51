"""The pocket world's exact reward as a ranker."""

from __future__ import annotations

from collections.abc import Sequence

from harness.pocket import oracle
from harness.rankers.ranker import RankContext, Ranked, Ranker, RankItem


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Oracle reward of every text, in [0, 1]."""
    context.add_cost("ranker_texts", sum(len(item.texts) for item in items))
    worth = context.settings.world.best_style_worth
    return [
        Ranked(tuple(oracle.reward(item.messages, text, worth) for text in item.texts))
        for item in items
    ]


RANKER = Ranker("oracle", rank)
