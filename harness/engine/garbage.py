"""What a store holds that nothing asks for any more: ``selm gc``.

A stage is needed when a manifest below the results names it, or a search's trial used it, or one of
those reads it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.engine.store import Store
from harness.files import names, write_atomic
from harness.records import HarnessError, canonical_json, content_hash


@dataclass(frozen=True)
class Waste:
    """One thing that could be deleted: its kind, the stage's key, where it is, and its size."""

    kind: str
    key: str
    path: Path
    size: int


def remember(store: Store, search: str, keys: Iterable[str]) -> None:
    """Note the stages that a trial of a search uses: no manifest names them."""
    wanted = sorted(keys)
    path = store.root / "searches" / search / f"{content_hash(wanted, length=24)}.json"
    if not path.is_file():
        write_atomic(path, canonical_json(wanted))


def needed(store: Store, results: Path, searches: bool = True) -> set[str]:
    """Keys that a manifest names or, with ``searches``, a trial used; and everything those read.

    Raises HarnessError when there is no manifest at all, or one is broken: then nothing can be
    called unneeded.
    """
    manifests = sorted(results.glob("*/manifest.json"))
    if not manifests:
        raise HarnessError(
            f"{results}: no study has a manifest here, so every stage would count as unneeded; "
            "give the folder with --results"
        )
    found: set[str] = set()
    for path in [*manifests, *(sorted(store.root.glob("searches/*/*.json")) if searches else [])]:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found |= set(data["stages"]) if isinstance(data, dict) else set(data)
        except (ValueError, KeyError, TypeError) as error:
            raise HarnessError(
                f"{path}: cannot be read ({error}); mend or remove it first, so that nothing it "
                "needs is deleted"
            ) from None
    frontier = [key for key in found if store.has(key)]
    while frontier:
        for source in store.record(frontier.pop()).inputs.values():
            if source not in found:
                found.add(source)
                frontier += [source] if store.has(source) else []
    return found


def waste(store: Store, results: Path, searches: bool = True) -> list[Waste]:
    """Everything that could go, sorted by kind and key: unneeded stages, journals and failures, and
    what dead attempts left.
    """
    keep = needed(store, results, searches)
    found = [
        Waste("unneeded stage", key, store.folder(key), size(store.folder(key)))
        for key in store.all_keys()
        if key not in keep
    ]
    beside = (("partial", "unneeded journal"), ("failed", "old failure"), ("work", "dead attempt"))
    for folder, kind in beside:
        for name in names(store.root / folder):
            key, path = name.split(".")[0], store.root / folder / name
            if folder == "work" or key not in keep or store.has(key):
                found.append(Waste(kind, key, path, size(path)))
    idle = [item for item in found if not store.is_locked(item.key)]
    return sorted(idle, key=lambda item: (item.kind, item.key, str(item.path)))


def collect(store: Store, items: Iterable[Waste]) -> int:
    """Delete; a stage that is being worked on meanwhile is left alone. Returns bytes freed."""
    freed = 0
    for item in items:
        with store.lock(item.key) as mine:
            if not mine:
                continue
            if item.kind == "unneeded stage":
                store.invalidate(item.key)
            elif item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
            freed += item.size
    return freed


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
