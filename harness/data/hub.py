"""Datasets of the Hugging Face hub: the commit that a revision stands for, and rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from harness.data.files import Row
from harness.records import HarnessError

SECONDS = 10.0
"""How long the hub is waited for when a study is planned."""


@cache
def commit_of(kind: Literal["dataset", "model"], name: str, revision: str) -> str:
    """The commit (40 hex digits) that ``revision`` (empty: the main branch) stands for: the hub's,
    or its cache's where the hub cannot be asked. Empty where neither knows: the stage that loads it
    says what to do. Asked once a process, so that a search does not change under way.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants

    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision or None, timeout=SECONDS)
        return found.sha or ""
    except Exception:  # noqa: BLE001 - no network, no such name, no access: many kinds
        folder = f"{kind}s--{name.replace('/', '--')}"
        ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / (revision or "main")
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""


def hub_rows(name: str, revision: str, split: str) -> Iterator[Row]:
    """Rows of one split of a hub dataset, or of a folder that datasets can read. Raises
    HarnessError saying what to do.
    """
    try:
        loaded = _load(name, revision, split)
    except (
        Exception
    ) as error:  # datasets raises many kinds: missing, gated, no network, no such split
        raise HarnessError(_message(name, revision, split, error)) from error
    for number, values in enumerate(loaded, 1):
        yield Row(values, f"{name} ({split}), row {number}")


def _load(name: str, revision: str, split: str) -> Any:
    """The split, from the hub's cache where the hub cannot be reached."""
    import datasets
    from huggingface_hub import snapshot_download

    try:
        return datasets.load_dataset(name, revision=revision or None, split=split)
    except Exception as error:  # noqa: BLE001 - as below
        try:
            folder = snapshot_download(
                name, repo_type="dataset", revision=revision or None, local_files_only=True
            )
        except Exception:  # noqa: BLE001 - what counts is why the hub did not give it
            raise error from None
        return datasets.load_dataset(folder, split=split)


def _message(name: str, revision: str, split: str, error: Exception) -> str:
    """What to do about a failed load_dataset, by what went wrong."""
    kind, text = type(error).__name__, (str(error).strip().splitlines() or [""])[0][:300]
    at = f" at revision {revision}" if revision else ""
    if (
        isinstance(error, ConnectionError)
        or "Offline" in kind
        or "Connect" in kind
        or "couldn't reach" in text.lower()
    ):
        advice = (
            "no network or no access to huggingface.co: download it where there is one "
            "(its cache is reused), or set data.source: files"
        )
    elif "gated" in text.lower() or "Gated" in kind:
        advice = "it is gated: accept its terms on its page and log in with `hf auth login`"
    elif "split" in text.lower():
        advice = f"it has no split {split!r}: set data.train_split and data.heldout_split"
    else:
        advice = "check data.path, data.revision and your access"
    return f"dataset {name}{at}, split {split}: {advice} ({kind}: {text})"
