"""Which kind of ranker a checkpoint is, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.model.checkpoint import check_checkpoint
from harness.model.checkpoint_files import location, model_folder, settings_of
from harness.rankers import pairrm_model
from harness.rankers.pairrm_files import is_pairrm, open_checkpoint


def is_ranker(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is PairRM's, or names a sequence classifier (a reward model)."""
    names = config.get("architectures") or ()
    classifier = any(str(name).endswith("ForSequenceClassification") for name in names)
    return classifier or is_pairrm(dict(config))


def check_ranker(folder: Path) -> str:
    """Check a ranker's stage or checkpoint folder as its load would; what it is, in words. Raises
    CheckpointError, and HarnessError for files that are missing.
    """
    path = model_folder(Path(folder))
    source = str(location(Path(folder)).get("source", path))
    if is_pairrm(settings_of(path / "config.json", source)):
        stored, _ = pairrm_model.check(open_checkpoint(folder))
        return f"PairRM, {len(stored.headers)} tensors"
    found = check_checkpoint(Path(folder), head="sequence")
    return f"{found.architecture}, {found.tensors} tensors"
