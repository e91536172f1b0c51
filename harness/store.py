"""Content-addressed artefacts: existence means done.

Layout below the root: ``objects/<key[:2]>/<key>/`` committed stages with ``record.json``; ``partial/<key>/`` journals of stages
that still hold ``error`` rows; ``work/<key>.<token>/`` folders of attempts in progress; ``locks/<key>.lock`` leases;
``failed/<key>.json`` reasons. A stage is committed by creating ``record.json`` exclusively, last, then renaming nothing:
the folder is moved into place first, the record makes it count. Committed folders are never rewritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.records import SCHEMA_VERSION, HarnessError, StageRecord, canonical_json

RECORD = "record.json"


@dataclass(frozen=True)
class Repair:
    """One thing the store mended or found broken: what, where, and what was done."""

    path: str
    what: str
    action: str


class Store:
    """A folder of committed stages, safe for several processes on one POSIX file system."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._hashes: dict[str, str] = {}

    def open(self) -> list[Repair]:
        """Create the folders, check the schema version, and clear what dead attempts left behind. Returns what was mended."""
        for name in ("objects", "partial", "work", "locks", "failed"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        check_schema(self.root)
        return self.repair()

    # -- reading ---------------------------------------------------------------------------------------------
    def folder(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def partial_folder(self, key: str) -> Path:
        return self.root / "partial" / key

    def has(self, key: str) -> bool:
        return (self.folder(key) / RECORD).is_file()

    def record(self, key: str) -> StageRecord:
        """The committed record. Raises HarnessError when the stage is missing, or its record is broken or of another schema."""
        path = self.folder(key) / RECORD
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise HarnessError(f"stage {key[:12]} is not in the store {self.root}; run the study first") from None
        except ValueError as error:
            raise HarnessError(f"{path}: broken record ({error}); `selm verify` lists what depends on it") from None
        if data.get("schema") != SCHEMA_VERSION:
            raise HarnessError(
                f"{path}: schema {data.get('schema')}, this version reads {SCHEMA_VERSION}; use the version that wrote it, or a new store"
            )
        return StageRecord(**data)

    def state(self, key: str) -> str:
        """``done`` | ``partial`` | ``failed`` | ``running`` | ``missing``."""
        if self.has(key):
            return "done"
        if self.is_locked(key):
            return "running"
        if (self.root / "failed" / f"{key}.json").is_file():
            return "failed"
        return "partial" if self.partial_folder(key).is_dir() else "missing"

    def states(self, keys: list[str]) -> dict[str, str]:
        """State of many stages with one directory listing a folder instead of several look-ups a stage."""
        failed = {name.removesuffix(".json") for name in _names(self.root / "failed")}
        partial = set(_names(self.root / "partial"))
        locked = {name.removesuffix(".lock") for name in _names(self.root / "locks")}
        present = {name for prefix in _names(self.root / "objects") for name in _names(self.root / "objects" / prefix)}
        result = {}
        for key in keys:
            if key in present and self.has(key):
                result[key] = "done"
            elif key in locked and self.is_locked(key):
                result[key] = "running"
            else:
                result[key] = "failed" if key in failed else "partial" if key in partial else "missing"
        return result

    def failure(self, key: str) -> dict[str, Any]:
        """Why a stage failed, or an empty mapping."""
        path = self.root / "failed" / f"{key}.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}

    # -- writing ---------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Exclusive, non-blocking lock of one stage; yields whether it was taken. The kernel drops it when its owner dies."""
        path = self.root / "locks" / f"{key}.lock"
        with open(path, "a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                yield False
                return
            if not _same_file(handle.fileno(), path):
                yield False
                return
            handle.truncate(0)
            handle.write(canonical_json({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}))
            handle.flush()
            try:
                yield True
            finally:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def is_locked(self, key: str) -> bool:
        path = self.root / "locks" / f"{key}.lock"
        try:
            with open(path, encoding="utf-8") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return True
            raise

    def begin(self, key: str) -> Path:
        """A fresh working folder for an attempt; holds the journal of an earlier partial attempt when there is one."""
        work = self.root / "work" / f"{key}.{uuid.uuid4().hex[:12]}"
        partial = self.partial_folder(key)
        if partial.is_dir():
            os.rename(partial, work)
            (work / RECORD).unlink(missing_ok=True)
        else:
            work.mkdir()
        return work

    def commit(self, work: Path, record: StageRecord) -> Path:
        """Move ``work`` into place and create its record exclusively, last. A stage committed meanwhile by another wins.

        Raises HarnessError on a full disk or a read-only store; nothing committed is touched.
        """
        target = self.folder(record.key)
        try:
            _sync_tree(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and not (target / RECORD).exists():
                shutil.rmtree(target)
            if target.exists():
                shutil.rmtree(work)
                return target
            os.rename(work, target)
            _write_exclusive(target / RECORD, canonical_json(asdict(record)))
            _sync_folder(target.parent)
        except OSError as error:
            raise HarnessError(f"store {self.root}: stage {record.stage} could not be committed: {error.strerror or error}") from error
        (self.root / "failed" / f"{record.key}.json").unlink(missing_ok=True)
        return target

    def keep_partial(self, work: Path, key: str, info: Mapping[str, Any]) -> None:
        """Keep an attempt that still holds ``error`` rows: reports read it as incomplete, the next run continues it."""
        (work / "partial.json").write_text(canonical_json(dict(info)), encoding="utf-8")
        target = self.partial_folder(key)
        if target.exists():
            shutil.rmtree(target)
        os.rename(work, target)

    def fail(self, key: str, stage: str, reason: str, trace: str = "") -> None:
        """Note why a stage failed (atomically); the next run tries it again."""
        attempts = int(self.failure(key).get("attempts", 0)) + 1
        path = self.root / "failed" / f"{key}.json"
        write_atomic(path, canonical_json({"stage": stage, "reason": reason, "traceback": trace, "attempts": attempts}))

    def invalidate(self, key: str) -> None:
        """Forget one committed or partial stage. The folder is renamed away before it is deleted."""
        for folder in (self.folder(key), self.partial_folder(key)):
            if folder.exists():
                grave = self.root / "work" / f"{key}.{uuid.uuid4().hex[:12]}.deleted"
                os.rename(folder, grave)
                shutil.rmtree(grave, ignore_errors=True)
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)

    # -- repair ----------------------------------------------------------------------------------------------
    def repair(self) -> list[Repair]:
        """Remove what attempts that no longer run left behind; journals of dead attempts go back to ``partial``."""
        found: list[Repair] = []
        for name in _names(self.root / "work"):
            key = name.split(".")[0]
            if self.is_locked(key):
                continue
            folder = self.root / "work" / name
            journal = any(folder.glob("*.journal.jsonl")) if folder.is_dir() else False
            if journal and not self.partial_folder(key).exists() and not self.has(key):
                os.rename(folder, self.partial_folder(key))
                found.append(Repair(str(folder), "attempt was killed", "its journal is kept and will be continued"))
            else:
                shutil.rmtree(folder, ignore_errors=True)
                found.append(Repair(str(folder), "attempt was killed", "removed; the stage will be done again"))
        for prefix in _names(self.root / "objects"):
            for key in _names(self.root / "objects" / prefix):
                if not self.has(key) and not self.is_locked(key):
                    shutil.rmtree(self.folder(key), ignore_errors=True)
                    found.append(Repair(str(self.folder(key)), "killed before its record was written", "removed; the stage will be done again"))
        for name in _names(self.root / "locks"):
            if not self.is_locked(name.removesuffix(".lock")):
                (self.root / "locks" / name).unlink(missing_ok=True)
        return found

    def verify(self, keys: list[str] | None = None) -> list[Repair]:
        """Re-hash committed files. Returns missing, truncated or altered files, and the descendants of changed content."""
        found: list[Repair] = []
        bad: set[str] = set()
        records: dict[str, StageRecord] = {}
        for key in keys if keys is not None else self.all_keys():
            try:
                records[key] = self.record(key)
            except HarnessError as error:
                found.append(Repair(str(self.folder(key)), str(error), "run `selm invalidate` on it"))
                bad.add(key)
        for key, record in records.items():
            for name, digest in record.files.items():
                path = self.folder(key) / name
                actual = hash_file(path) if path.is_file() else "missing"
                if actual != digest and not (actual == "missing" and name.startswith("model/") and self._dropped(key)):
                    bad.add(key)
                    found.append(Repair(str(path), f"content changed ({actual[:12]} instead of {digest[:12]})", f"stage {record.stage} is stale"))
        grown = True
        while grown:
            stale = [k for k, r in records.items() if k not in bad and bad.intersection(r.inputs.values())]
            grown = bool(stale)
            bad.update(stale)
            found.extend(Repair(str(self.folder(k)), "an input's content changed", f"stage {records[k].stage} is stale") for k in stale)
        return found

    def drop_model(self, key: str) -> int:
        """Delete the weights of a committed checkpoint (retention); its record stays. Returns bytes freed."""
        folder = self.folder(key) / "model"
        size = 0
        for path in folder.glob("*.safetensors"):
            size += path.stat().st_size
            path.unlink()
        if size:
            (self.folder(key) / "dropped").touch()
        return size

    def restore_model(self, key: str, work: Path, record: StageRecord) -> None:
        """Put weights made again back beside their record. Raises HarnessError when they differ from what was committed."""
        committed = self.record(key).files
        weights = list((work / "model").glob("*.safetensors"))
        for path in weights:
            name = path.relative_to(work).as_posix()
            if committed.get(name) != record.files[name]:
                raise HarnessError(
                    f"stage {key[:12]}: {name} made again differs from the committed one; other versions or hardware? Use `selm invalidate`"
                )
        for path in weights:
            os.replace(path, self.folder(key) / "model" / path.name)
        (self.folder(key) / "dropped").unlink(missing_ok=True)
        shutil.rmtree(work)

    def _dropped(self, key: str) -> bool:
        return (self.folder(key) / "dropped").exists()

    def has_model(self, key: str) -> bool:
        return self.has(key) and not self._dropped(key)

    def all_keys(self) -> list[str]:
        return sorted(key for prefix in _names(self.root / "objects") for key in _names(self.root / "objects" / prefix))


def check_schema(root: Path) -> None:
    """Write the schema version into a new store; refuse one of another version, saying what to do."""
    path = root / "schema.json"
    with contextlib.suppress(FileExistsError):
        _write_exclusive(path, canonical_json({"schema": SCHEMA_VERSION}))
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8") or "{}").get("schema")
    except ValueError:
        found = None
    if found != SCHEMA_VERSION:
        raise HarnessError(
            f"{path}: the store has schema {found}, this version reads and writes {SCHEMA_VERSION}. "
            "Give another folder with --store, or use the version that wrote it"
        )


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_tree(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file below ``folder`` but the record itself."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    return {p.relative_to(folder).as_posix(): hash_file(p) for p in files}


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's content so that a reader sees the old text or the new, and a kill leaves one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HarnessError(f"{path}: cannot be written ({error.strerror or error}); the old file is intact") from error


def _write_exclusive(path: Path, text: str) -> None:
    """Create ``path`` with its whole content in one step (hard link of a finished file); FileExistsError if it is there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "x", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
