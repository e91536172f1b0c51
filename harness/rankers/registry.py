"""Every ranker by kind: those modules of this folder that define ``RANKER``; and ranking by name.

Found by reading the files, so that only rankers are imported; a new file is all that a new ranker
needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.files import defined
from harness.model.checkpoint import check_checkpoint
from harness.model.checkpoint_files import location, model_folder, settings_of
from harness.rankers import pairrm
from harness.rankers.ranker import RankContext, Ranked, Ranker, RankItem

RANKERS: Mapping[str, Ranker] = {
    one.kind: one for one in defined("harness.rankers", Path(__file__).parent, "RANKER")
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
    ranked = zip(duels, rank_texts(duels, context), strict=True)
    found = {duel.id: one for duel, one in ranked}
    even = Ranked((ranker.even, ranker.even))
    rewarded = []
    for item, reference in zip(items, references, strict=True):
        own = [found.get(f"{item.id}#{place}", even) for place in range(len(item.texts))]
        failed = [duel.status for duel in own if duel.status != "ok"]
        if not reference or failed:
            rewarded.append(Ranked((), failed[0] if reference else "no_answer"))
        else:
            rewarded.append(Ranked(tuple(duel.scores[0] for duel in own)))
    return rewarded


# -- checkpoints -----------------------------------------------------------------------------------
def is_ranker(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is PairRM's, or names a sequence classifier (a reward model)."""
    names = config.get("architectures") or ()
    classifier = any(str(name).endswith("ForSequenceClassification") for name in names)
    return classifier or pairrm.is_pairrm(config)


def check_ranker(folder: Path) -> str:
    """Check a ranker's folder as its load would; what it is, in words. Raises CheckpointError."""
    path = model_folder(folder)
    source = str(location(folder).get("source", path))
    if pairrm.is_pairrm(settings_of(path / "config.json", source)):
        stored, _ = pairrm.check(pairrm.open_checkpoint(folder))
        return f"PairRM, {len(stored.headers)} tensors"
    found = check_checkpoint(folder, head="sequence")
    return f"{found.architecture}, {found.tensors} tensors"
