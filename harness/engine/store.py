"""Content-addressed artefacts: existence means done.

Layout below the root: ``objects/<key[:2]>/<key>/`` committed stages with ``record.json``;
``partial/<key>/`` journals of stages that still hold ``error`` rows; ``work/<key>.<token>/``
folders of attempts in progress; ``locks/<key>.lock`` leases that name their owner;
``failed/<key>.json`` reasons; ``searches/`` keys that a search's trials used. A stage's folder is
moved into place first; its record, created exclusively and last, makes it count. Nothing committed
is rewritten. No decision here reads a clock: a lease ends when the kernel sees its owner end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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

from harness.files import (
    RECORD,
    UNSUPPORTED,
    hash_file,
    held,
    names,
    sync_folder,
    sync_tree,
    write_atomic,
    write_exclusive,
)
from harness.records import SCHEMA_VERSION, HarnessError, StageRecord, canonical_json, content_hash

DONE_AGAIN = "removed; the stage will be done again"


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
        self._hashed: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def open(self) -> list[Repair]:
        """Create the folders, check the schema version, and clear what dead attempts left behind.

        Raises HarnessError when the store is of another schema or cannot be written.
        """
        try:
            for name in ("objects", "partial", "work", "locks", "failed"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self._check_schema()
            return self.repair()
        except OSError as error:
            raise self._unwritable(error) from error

    def _check_schema(self) -> None:
        """Write the schema version into a new store; refuse one of another version."""
        path = self.root / "schema.json"
        if not path.is_file():
            with contextlib.suppress(FileExistsError):
                write_exclusive(path, canonical_json({"schema": SCHEMA_VERSION}))
        found = _read(path).get("schema")
        if found != SCHEMA_VERSION:
            raise HarnessError(
                f"{path}: the store has schema {found}, this version reads and writes "
                f"{SCHEMA_VERSION}. Give another folder with --store, or use the version that "
                "wrote it"
            )

    def _unwritable(self, error: OSError) -> HarnessError:
        advice = "Free the disk or mount it for writing"
        if error.errno in {*UNSUPPORTED, errno.ENOLCK}:
            advice = "Its file system has no locks: mount it with them (flock)"
        return HarnessError(
            f"store {self.root}: cannot be written ({error.strerror or error}); what is committed "
            f"is intact. {advice}, or give another folder with --store"
        )

    # -- reading ---------------------------------------------------------------
    def folder(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def partial_folder(self, key: str) -> Path:
        return self.root / "partial" / key

    def has(self, key: str) -> bool:
        """Whether it is committed. An empty record, as a loss of power may leave it, is none."""
        try:
            return os.stat(self.folder(key) / RECORD).st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def record(self, key: str) -> StageRecord:
        """The committed record. Raises HarnessError when the stage is missing, or its record is
        broken or of another schema.
        """
        path = self.folder(key) / RECORD
        try:
            record = StageRecord(**json.loads(path.read_text(encoding="utf-8")))
            if record.schema != SCHEMA_VERSION:
                raise ValueError(f"schema {record.schema}, this version reads {SCHEMA_VERSION}")
            if record.key != key:
                raise ValueError("it is another stage's")
            if record.seal and record.seal != record.expected_seal():
                raise ValueError("its fields do not match its seal")
        except FileNotFoundError:
            raise HarnessError(
                f"stage {key[:12]} is not in the store {self.root}; run the study first"
            ) from None
        except (TypeError, ValueError) as error:
            raise HarnessError(
                f"{path}: broken record ({error}); `selm verify` lists what depends on it"
            ) from None
        return record

    def states(self, keys: list[str]) -> dict[str, str]:
        """``done`` | ``partial`` | ``failed`` | ``running`` | ``missing`` of every stage, with one
        directory listing a folder instead of several look-ups a stage.
        """
        failed = {name.removesuffix(".json") for name in names(self.root / "failed")}
        partial = set(names(self.root / "partial"))
        locked = {name.removesuffix(".lock") for name in names(self.root / "locks")}
        present = set(self.all_keys())
        result = {}
        for key in keys:
            if key in present and self.has(key):
                result[key] = "done"
            elif key in locked and self.is_locked(key):
                result[key] = "running"
            elif key in failed:
                result[key] = "failed"
            else:
                result[key] = "partial" if key in partial else "missing"
        return result

    def failure(self, key: str) -> dict[str, Any]:
        """Why a stage failed, or an empty mapping."""
        return _read(self.root / "failed" / f"{key}.json")

    # -- writing ---------------------------------------------------------------
    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Exclusive, non-blocking lock of one stage; yields whether it was taken. The kernel drops
        it when its owner dies.
        """
        path = self.root / "locks" / f"{key}.lock"
        try:
            lease = held(path)
        except OSError as error:
            raise self._unwritable(error) from error
        if lease is None:
            yield False
            return
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        with contextlib.suppress(OSError):  # nameless on a full disk, and still a lease
            os.ftruncate(lease, 0)
            os.write(lease, canonical_json(owner).encode())
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            os.close(lease)

    def is_locked(self, key: str) -> bool:
        try:
            with open(self.root / "locks" / f"{key}.lock", encoding="utf-8") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return True
            raise self._unwritable(error) from error

    def owner(self, key: str) -> dict[str, Any]:
        """Who holds a stage's lease: ``host``, ``pid``, ``since`` (s since 1970); empty: nobody."""
        told = _read(self.root / "locks" / f"{key}.lock")
        return told if self.is_locked(key) else {}

    def _scratch(self, key: str, kind: str = "") -> Path:
        return self.root / "work" / f"{key}.{uuid.uuid4().hex[:12]}{kind}"

    def begin(self, key: str) -> Path:
        """A fresh folder for an attempt, with the journal of an earlier partial one."""
        work = self._scratch(key)
        partial = self.partial_folder(key)
        if partial.is_dir():
            os.rename(partial, work)
            (work / RECORD).unlink(missing_ok=True)
        else:
            work.mkdir()
        return work

    def commit(self, work: Path, record: StageRecord) -> Path:
        """Move ``work`` into place and create its record exclusively, last. A stage committed
        meanwhile by another wins.

        Raises HarnessError on a full disk or a read-only store; nothing committed is touched.
        """
        target = self.folder(record.key)
        try:
            sync_tree(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and not self.has(record.key):
                shutil.rmtree(target)
            if target.exists():
                shutil.rmtree(work)
                return target
            os.rename(work, target)
            text = canonical_json(asdict(record.sealed()))
            write_exclusive(target / RECORD, text, self._scratch(record.key, ".record"))
            sync_folder(target)
            sync_folder(target.parent)
        except OSError as error:
            raise HarnessError(
                f"store {self.root}: stage {record.stage} could not be committed: "
                f"{error.strerror or error}"
            ) from error
        (self.root / "failed" / f"{record.key}.json").unlink(missing_ok=True)
        return target

    def keep_partial(self, work: Path, key: str, info: Mapping[str, Any]) -> None:
        """Keep an attempt with ``error`` rows: read as incomplete, continued by the next run."""
        (work / "partial.json").write_text(canonical_json(dict(info)), encoding="utf-8")
        target = self.partial_folder(key)
        if target.exists():
            shutil.rmtree(target)
        os.rename(work, target)

    def fail(self, key: str, stage: str, reason: str, trace: str = "") -> None:
        """Note why a stage failed (atomically); the next run tries it again."""
        attempts = int(self.failure(key).get("attempts", 0)) + 1
        told = {"stage": stage, "reason": reason, "traceback": trace, "attempts": attempts}
        write_atomic(self.root / "failed" / f"{key}.json", canonical_json(told))

    def invalidate(self, key: str) -> None:
        """Forget one committed or partial stage. Its folder is renamed away, then deleted."""
        for folder in (self.folder(key), self.partial_folder(key)):
            if folder.exists():
                grave = self._scratch(key, ".deleted")
                os.rename(folder, grave)
                shutil.rmtree(grave, ignore_errors=True)
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)

    # -- repair ----------------------------------------------------------------
    def repair(self) -> list[Repair]:
        """Remove what dead attempts left behind; their journals go back to ``partial``.

        Everything is looked at again under its own lease, so that an attempt that ends meanwhile
        keeps what it committed.
        """
        found: list[Repair] = []
        for name in sorted(names(self.root / "work")):
            with self.lock(name.split(".")[0]) as mine:
                if mine and (self.root / "work" / name).exists():
                    found.append(self._mend(self.root / "work" / name))
        for key in self.all_keys():
            if self.has(key):
                continue
            with self.lock(key) as mine:
                if mine and self.folder(key).exists() and not self.has(key):
                    shutil.rmtree(self.folder(key))
                    what = "killed before its record was written"
                    found.append(Repair(str(self.folder(key)), what, DONE_AGAIN))
        for name in names(self.root / "locks"):
            with self.lock(name.removesuffix(".lock")):
                pass  # a lease that can be taken is a dead one; letting go deletes it
        return found

    def _mend(self, path: Path) -> Repair:
        key, _, kind = path.name.partition(".")
        what, action = "attempt was killed", DONE_AGAIN
        superseded = self.partial_folder(key).exists() or self.has(key)
        if path.is_file():
            what, action = "killed while its record was written", "the half record is removed"
            path.unlink()
        elif kind.endswith(".deleted"):
            what, action = "a deletion was interrupted", "finished"
            shutil.rmtree(path)
        elif any(path.glob("*.journal.jsonl")) and not superseded:
            action = "its journal is kept and will be continued"
            os.rename(path, self.partial_folder(key))
        else:
            shutil.rmtree(path)
        return Repair(str(path), what, action)

    def verify(self) -> list[Repair]:
        """Re-hash committed files: missing and altered ones, and what descends from them."""
        found: list[Repair] = []
        bad: set[str] = set()
        records: dict[str, StageRecord] = {}

        def wrong(key: str, path: Path, what: str) -> None:
            bad.add(key)
            found.append(Repair(str(path), what, f"stage {records[key].stage} is stale"))

        for key in self.all_keys():
            try:
                records[key] = self.record(key)
            except HarnessError as error:
                bad.add(key)
                action = "run `selm invalidate` on it"
                found.append(Repair(str(self.folder(key)), str(error), action))
        for key, record in records.items():
            for name, actual in self._differing(key, record):
                what = f"content changed ({actual[:12]} instead of {record.files[name][:12]})"
                wrong(key, self.folder(key) / name, what if actual else "missing")
        content = {key: content_hash(dict(record.files)) for key, record in records.items()}
        for key, record in records.items():
            for name, digest in record.input_hashes.items():
                if key not in bad and content.get(record.inputs.get(name, ""), digest) != digest:
                    what = f"its input {name} was made again with other content"
                    wrong(key, self.folder(key), what)
        inputs = {key: set(record.inputs.values()) for key, record in records.items()}
        while stale := [key for key in records if key not in bad and bad & inputs[key]]:
            for key in stale:
                wrong(key, self.folder(key), "an input's content changed")
        return found

    def altered(self, key: str) -> list[str]:
        """Files of a stage that are not what its record says; an unchanged one is hashed once."""
        return [name for name, _ in self._differing(key, self.record(key), remember=True)]

    def _differing(
        self, key: str, record: StageRecord, remember: bool = False
    ) -> Iterator[tuple[str, str]]:
        """(file, its hash or empty) where that is not the recorded one, but for dropped weights."""
        for name, digest in record.files.items():
            path = self.folder(key) / name
            try:
                facts = path.stat()
            except FileNotFoundError:
                if not (name.startswith("model/") and self._dropped(key)):
                    yield name, ""
                continue
            mark = (facts.st_size, facts.st_mtime_ns, facts.st_ino)
            if not remember or self._hashed.get(path, (None, ""))[0] != mark:
                self._hashed[path] = (mark, hash_file(path))
            if self._hashed[path][1] != digest:
                yield name, self._hashed[path][1]

    def drop_model(self, key: str) -> int:
        """Delete a checkpoint's weights (retention), not its record. Returns bytes freed."""
        weights = _weights(self.folder(key))
        size = sum(path.stat().st_size for path in weights)
        if weights:
            # First: a kill in between must not look like a loss.
            (self.folder(key) / "dropped").touch()
        for path in weights:
            path.unlink()
        return size

    def restore_model(self, key: str, work: Path, record: StageRecord) -> None:
        """Put weights made again beside their record. Raises HarnessError where they differ."""
        committed = self.record(key).files
        weights = _weights(work)
        for path in weights:
            name = path.relative_to(work).as_posix()
            if committed.get(name) != record.files[name]:
                raise HarnessError(
                    f"stage {key[:12]}: {name} made again differs from the committed one; other "
                    "versions or hardware? Use `selm invalidate`"
                )
        for path in weights:
            os.replace(path, self.folder(key) / path.relative_to(work))
        (self.folder(key) / "dropped").unlink(missing_ok=True)
        shutil.rmtree(work)

    def _dropped(self, key: str) -> bool:
        return (self.folder(key) / "dropped").exists()

    def has_model(self, key: str) -> bool:
        return self.has(key) and not self._dropped(key)

    def all_keys(self) -> list[str]:
        objects = self.root / "objects"
        return sorted(key for prefix in names(objects) for key in names(objects / prefix))


def _weights(folder: Path) -> list[Path]:
    """What retention deletes of a checkpoint: its weights and the optimiser's state."""
    return [*folder.glob("model/*.safetensors"), *folder.glob("carried/*.safetensors")]


def _read(path: Path) -> dict[str, Any]:
    """What a small JSON file holds; nothing where it is missing or was cut off."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return {}
