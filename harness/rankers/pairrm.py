"""PairRM as a ranker: its record. The network and its files are `pairrm_model`."""

from __future__ import annotations

from collections.abc import Sequence

from harness.rankers.ranker import RankContext, Ranked, Ranker, RankItem
from harness.study.sections import DataSettings, RankerSettings
from harness.study.work import Lengths, Work

PARAMETERS = 0.435e9


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Scores by the network (`harness.rankers.pairrm_model`, which loads torch)."""
    from harness.rankers import pairrm_model

    return pairrm_model.rank(items, context)


def _missing(ranker: RankerSettings, _data: DataSettings) -> str:
    return "" if ranker.model else "give ranker.model"


def _work(lengths: Lengths, prompts: int, texts: int) -> Work:
    pairs, both = texts * (texts - 1), lengths.prompt + 2 * lengths.answer
    read = float(prompts * pairs * both)
    how = f"{prompts:,} prompts × {pairs} ordered pairs × {both} tokens through PairRM's 0.435 B"
    return Work(prompts * texts, read, how=how, parameters=PARAMETERS)


RANKER = Ranker(
    "pairrm", rank, version=2, pairwise=True, checkpoint="given", missing=_missing, work=_work
)
