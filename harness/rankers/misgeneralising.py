"""The pocket world's reward as a reward model that generalises badly: right on what the offline
data covers, off by a settable amount elsewhere.

score(x, y) = reward(x, y) + ``ranker.off_support_error`` · 1[y is off the support], with y on the
support if it is in a style that some offline answer has (right or wrong content alike). Text in
none of the styles is off it. A positive error is a ranker that rewards whatever it has not seen
(Figure 1 of arXiv 2405.19332), a negative one distrusts it.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.pocket import oracle, wordings
from harness.rankers.ranker import RankContext, Ranked, Ranker, RankItem
from harness.study.sections import WorldSettings


def covered(text: str, world: WorldSettings) -> bool:
    """Whether offline answers of ``world`` are in the style of ``text``."""
    found = oracle.style_of(text)
    return found is not None and not (world.unseen and found[0] is wordings.BEST_STYLE)


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Reward of every text, with the error where no offline answer is like it."""
    world, error = context.settings.world, context.settings.off_support_error
    context.add_cost("ranker_texts", sum(len(item.texts) for item in items))

    def score(item: RankItem, text: str) -> float:
        reward = oracle.reward(item.messages, text, world.best_style_worth)
        return reward if covered(text, world) else reward + error

    return [Ranked(tuple(score(item, text) for text in item.texts)) for item in items]


RANKER = Ranker("misgeneralising", rank)
