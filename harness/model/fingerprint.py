"""The content hash by which files and checkpoints enter keys."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from harness.files import hash_file, write_atomic
from harness.records import HarnessError, content_hash

IGNORED = frozenset(
    {
        ".gitattributes",
        "README.md",
        "LICENSE",
        "training_args.bin",
        "trainer_state.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }
)
"""Files of a checkpoint folder that change nothing about the model."""


def fingerprint(path: Path) -> str:
    """SHA-256 over the contents of a file, or over names and contents of a folder's files (hex).

    Hashes of files are remembered by real path, size and modification time in
    ``$XDG_CACHE_HOME/selm/fingerprints.json``, so that a checkpoint of many gigabytes is read once.
    """
    path = Path(path)
    if not path.exists():
        raise HarnessError(f"{path}: no such file or folder")
    files = (
        [path]
        if path.is_file()
        else sorted(
            f
            for f in path.rglob("*")
            if f.is_file() and f.name not in IGNORED and ".git" not in f.parts
        )
    )
    memory = _Memory()
    hashes = {str(f.relative_to(path)) if path.is_dir() else "": memory.hash(f) for f in files}
    memory.save()
    return next(iter(hashes.values())) if path.is_file() else content_hash("folder", hashes)


class _Memory:
    """File hashes by (real path, size, mtime in ns). A lost memory file only costs time."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.file = cache / "selm" / "fingerprints.json"
        self.known: dict[str, str] = self._read()
        self.new: dict[str, str] = {}

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def hash(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self.known:
            self.known[key] = self.new[key] = hash_file(path)
        return self.known[key]

    def save(self) -> None:
        """Merge what was computed into the memory file; a folder that cannot be written is no
        error.
        """
        if not self.new:
            return
        with contextlib.suppress(HarnessError, OSError):
            write_atomic(self.file, json.dumps(self._read() | self.new, sort_keys=True))
