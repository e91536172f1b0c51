"""The share of a prompt's constraints that an answer meets: an exact reward for real text."""

from __future__ import annotations

from collections.abc import Sequence

from harness.rankers.ranker import RankContext, Ranked, Ranker, RankItem
from harness.rules import constraints
from harness.study.sections import DataSettings, RankerSettings


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Share of every text, in [0, 1]; "no_answer" for a prompt that states no constraint."""
    context.add_cost("ranker_texts", sum(len(item.texts) for item in items))
    return [_rank(item) for item in items]


def _rank(item: RankItem) -> Ranked:
    prompt = item.messages[-1]["content"]
    asked = constraints.stated(prompt)
    if not asked:
        return Ranked((), "no_answer")
    return Ranked(tuple(constraints.share(asked, prompt, text) for text in item.texts))


def _missing(_ranker: RankerSettings, data: DataSettings) -> str:
    return "" if data.source == "rules" else "its prompts come from data.source: rules"


RANKER = Ranker("rules", rank, missing=_missing)
