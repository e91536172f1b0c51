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


# -- checkpoints -----------------------------------------------------------------------------------
def is_ranker(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is PairRM's, or names a sequence classifier (a reward model)."""
    names = config.get("architectures") or ()
    classifier = any(str(name).endswith("ForSequenceClassification") for name in names)
    return classifier or _is_pairrm(config)


def _is_pairrm(config: Mapping[str, Any]) -> bool:
    return "ranker_type" in config or "cand1_prefix_id" in config


def check_ranker(folder: Path) -> str:
    """Check a ranker's stage or checkpoint folder as its load would; what it is, in words. Raises
    CheckpointError, and HarnessError for files that are missing.
    """
    from harness.rankers import pairrm_model

    path = model_folder(folder)
    source = str(location(folder).get("source", path))
    if _is_pairrm(settings_of(path / "config.json", source)):
        stored, _ = pairrm_model.check(pairrm_model.open_checkpoint(folder))
        return f"PairRM, {len(stored.headers)} tensors"
    found = check_checkpoint(folder, head="sequence")
    return f"{found.architecture}, {found.tensors} tensors"
