"""Files that are whole or absent, or held by one process: hashes, writes, flushing to disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from harness.records import HarnessError

RECORD = "record.json"
UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""How a file system says that it has no such operation."""


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_tree(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file below ``folder`` but the record itself."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    return {p.relative_to(folder).as_posix(): hash_file(p) for p in files}


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file's content (text as UTF-8): a reader, and a kill, finds the old or the new."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HarnessError(
            f"{path}: cannot be written ({error.strerror or error}); the old file is intact"
        ) from error


def read_json(path: Path, advice: str) -> Any:
    """What a JSON file holds. Raises HarnessError, with what to do, for one that is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HarnessError(f"{path}: cannot be read ({error}); {advice}") from None


def write_exclusive(path: Path, text: str, temporary: Path | None = None) -> None:
    """Create ``path`` with its whole content in one step (hard link of a finished file);
    FileExistsError if it is there. Where a file system has no hard links (FAT, SMB, some of FUSE)
    the file is renamed, and two processes that come at once are parted by their caller's lease.

    temporary: where the file is written first, on the same file system; a kill may leave it there.
    """
    temporary = temporary or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "x", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in {*UNSUPPORTED, errno.EPERM, errno.EMLINK}:
                raise
            if path.exists():
                raise FileExistsError(errno.EEXIST, "is there already", str(path)) from None
            os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def held(path: Path) -> int | None:
    """Descriptor of the file (made where it is missing), open for appending, while this process
    alone holds it; None where another does. The kernel lets go when the descriptor is closed or its
    owner dies.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have deleted it between our opening and our lock.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.ENOENT):
            os.close(descriptor)
            raise
    os.close(descriptor)
    return None


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below a folder to disk, but not the folder itself."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        elif path.is_dir():
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries to disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {*UNSUPPORTED, errno.EINVAL}:  # SMB and some of FUSE
            raise
    finally:
        os.close(descriptor)


def defined(package: str, folder: Path, name: str) -> list[Any]:
    """What the modules of a package's folder that assign ``name`` at their top mean by it, by file
    name. Found by reading the files: the others are not imported.
    """
    assigned = re.compile(rf"^{name}\b[^=\n]*=", re.MULTILINE)
    files = [p for p in sorted(folder.glob("*.py")) if assigned.search(p.read_text("utf-8"))]
    return [getattr(importlib.import_module(f"{package}.{file.stem}"), name) for file in files]


def names(folder: Path) -> list[str]:
    """Entries of a folder but hidden ones, which desktops and NFS leave; none when it is none."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
