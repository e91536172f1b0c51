"""Rows of a dataset of the Hugging Face hub, or of a folder that datasets can read."""

from __future__ import annotations

from collections.abc import Iterator

from harness.data.files import Row
from harness.records import HarnessError


def hub_rows(name: str, revision: str, split: str) -> Iterator[Row]:
    """Rows of one split. Raises HarnessError saying what to do."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, revision=revision or None, split=split)
    except (
        Exception
    ) as error:  # datasets raises many kinds: missing, gated, no network, no such split
        raise HarnessError(_message(name, revision, split, error)) from error
    for number, values in enumerate(loaded, 1):
        yield Row(values, f"{name} ({split}), row {number}")


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
