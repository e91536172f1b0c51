"""A study in one file: ``selm export`` and ``selm import``.

A tar of plain files: ``archive.json`` (schema, study, the SHA-256 of every other member),
``manifest.json`` and ``objects/<key>/…`` for every committed stage the manifest names. Equal
studies give byte-identical archives. Nothing is imported before all of it has been checked, and
nothing in an archive is ever unpickled or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from harness.engine.store import Store, parse_record
from harness.files import RECORD, hash_file, write_atomic
from harness.records import SCHEMA_VERSION, HarnessError, StageRecord, canonical_json

INDEX, MANIFEST = "archive.json", "manifest.json"
MEMBER = re.compile(r"objects/([0-9a-f]{64})/([^\0]+)")


@dataclass(frozen=True)
class Archived:
    """What an export or import moved: stages written, stages already there, stages the manifest
    names but nobody has.
    """

    study: str
    stages: int
    present: int
    missing: int


def export_study(folder: Path, store: Store, file: Path, weights: bool = True) -> Archived:
    """Write the study whose manifest is in ``folder``, and its committed stages, into one archive.

    weights: False leaves checkpoints' weights out, as retention does. Raises HarnessError when a
    stage is not what its record says.
    """
    manifest = (folder / MANIFEST).read_bytes()
    data = json.loads(manifest)
    keys = [key for key in sorted(data["stages"]) if store.has(key)]
    members: dict[str, tuple[str, Path | bytes]] = {
        MANIFEST: (hashlib.sha256(manifest).hexdigest(), manifest)
    }
    for key in keys:
        members |= _members(store, key, weights)
    index = {
        "schema": SCHEMA_VERSION,
        "study": data["study"]["name"],
        "members": {name: digest for name, (digest, _) in sorted(members.items())},
    }
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, INDEX, canonical_json(index).encode(), "")
            for name, (digest, source) in sorted(members.items()):
                _add(tar, name, source, digest)
        temporary.replace(file)
    except OSError as error:
        raise HarnessError(
            f"{file}: cannot be written ({error.strerror or error}); no archive was made"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Archived(index["study"], len(keys), 0, len(data["stages"]) - len(keys))


def _members(store: Store, key: str, weights: bool) -> dict[str, tuple[str, Path | bytes]]:
    record, folder = store.record(key), store.folder(key)
    text = (folder / RECORD).read_bytes()
    found: dict[str, tuple[str, Path | bytes]] = {
        f"objects/{key}/{RECORD}": (hashlib.sha256(text).hexdigest(), text)
    }
    for name, digest in record.files.items():
        is_weight = name.startswith("model/") and name.endswith(".safetensors")
        if is_weight and (not weights or not store.has_model(key)):
            found[f"objects/{key}/dropped"] = (hashlib.sha256(b"").hexdigest(), b"")
        else:
            found[f"objects/{key}/{name}"] = (digest, folder / name)
    return found


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.digest = handle, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.handle.read(size)
        self.digest.update(data)
        return data


def _add(tar: tarfile.TarFile, name: str, source: Path | bytes, digest: str) -> None:
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    if isinstance(source, bytes):
        info.size = len(source)
        tar.addfile(info, io.BytesIO(source))
        return
    try:
        with open(source, "rb") as handle:
            info.size = source.stat().st_size
            hashing = _Hashing(handle)
            tar.addfile(info, hashing)
    except FileNotFoundError:
        raise HarnessError(
            f"{source}: missing, though its record names it; `selm verify` tells what depends on it"
        ) from None
    if hashing.digest.hexdigest() != digest:
        raise HarnessError(
            f"{source}: its content changed after it was committed; `selm verify` tells what "
            "depends on it"
        )


def import_archive(file: Path, store: Store, results: Path) -> Archived:
    """Check a whole archive, then commit its stages and write its manifest below ``results``.

    Raises HarnessError, with nothing imported, when a member is altered, missing or unexpected, or
    something here contradicts it.
    """
    with store.lock("import") as mine:
        if not mine:
            raise HarnessError(f"store {store.root}: another import is running; wait for it")
        scratch = store.root / "work" / f"import.{uuid.uuid4().hex[:12]}"
        try:
            index = _unpack(file, scratch)
            records = _records(file, index, scratch)
            missing = _no_contradiction(file, index, records, scratch, store, results)
            present = sum(
                not _commit(store, record, scratch / "objects" / key)
                for key, record in records.items()
            )
            write_atomic(
                results / index["study"] / MANIFEST,
                (scratch / MANIFEST).read_text(encoding="utf-8"),
            )
        except OSError as error:
            raise HarnessError(
                f"{file}: could not be imported ({error.strerror or error}); run the import again"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Archived(index["study"], len(records) - present, present, missing)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:") as tar:
            yield tar
    except FileNotFoundError:
        raise HarnessError(f"{file}: no such archive") from None
    except (tarfile.TarError, EOFError) as error:
        raise HarnessError(
            f"{file}: not a whole archive ({error}); nothing was imported. Copy it again"
        ) from error


def _unpack(file: Path, scratch: Path) -> dict[str, Any]:
    """Write every expected member below ``scratch`` and compare it with the index; returns the
    index.
    """
    with _reading(file) as tar:
        first = tar.next()
        if first is None or first.name != INDEX:
            raise HarnessError(
                f"{file}: no archive made by `selm export` (it does not begin with {INDEX})"
            )
        index = _index(file, tar, first)
        left = dict(index["members"])
        for info in iter(tar.next, None):
            if info.name not in left or not info.isreg():
                raise HarnessError(f"{file}: unexpected member {info.name!r}; nothing was imported")
            target = scratch / info.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(info)
            assert source is not None
            with source, open(target, "xb") as handle:
                shutil.copyfileobj(source, handle, 1 << 20)
            if hash_file(target) != left.pop(info.name):
                raise HarnessError(
                    f"{file}: member {info.name} is not what was exported; nothing was imported. "
                    "Copy the archive again"
                )
    if left:
        raise HarnessError(
            f"{file}: {len(left)} members are missing, for example {min(left)}; nothing was "
            "imported. Copy the archive again"
        )
    return index


def _index(file: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> dict[str, Any]:
    source = tar.extractfile(info)
    try:
        index = json.loads(source.read() if source else b"")
        members, study = dict(index["members"]), str(index["study"])
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{file}: its index is broken ({error}); nothing was imported. Copy the archive again"
        ) from None
    if index.get("schema") != SCHEMA_VERSION:
        raise HarnessError(
            f"{file}: schema {index.get('schema')}, this version reads {SCHEMA_VERSION}; export "
            "it again with this version"
        )
    bad = [
        name
        for name in members
        if name != MANIFEST
        and not (MEMBER.fullmatch(name) and not {"", ".", ".."} & set(name.split("/")))
    ]
    if bad or MANIFEST not in members or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", study):
        raise HarnessError(
            f"{file}: its index names {bad[0] if bad else study!r}, which no export writes; "
            "nothing was imported"
        )
    return {"members": members, "study": study}


def _records(file: Path, index: Mapping[str, Any], scratch: Path) -> dict[str, StageRecord]:
    """The record of every stage; each must agree with its key and with the files beside it."""
    stages: dict[str, dict[str, str]] = {}
    for name, digest in index["members"].items():
        match = MEMBER.fullmatch(name)
        if match:
            stages.setdefault(match[1], {})[match[2]] = digest
    records = {}
    for key, files in stages.items():
        path = scratch / "objects" / key / RECORD
        try:
            record = parse_record(
                json.loads(path.read_text(encoding="utf-8")), f"{file}: objects/{key}"
            )
        except (FileNotFoundError, ValueError) as error:
            raise HarnessError(
                f"{file}: objects/{key}/{RECORD}: {error}; nothing was imported"
            ) from None
        absent = {name for name in record.files if name not in files}
        dropped = "dropped" in files and all(name.startswith("model/") for name in absent)
        wrong = [
            name
            for name, digest in files.items()
            if name not in (RECORD, "dropped") and record.files.get(name) != digest
        ]
        if record.key != key or wrong or (absent and not dropped):
            raise HarnessError(
                f"{file}: objects/{key}: {(wrong or sorted(absent) or [RECORD])[0]} does not "
                "match its record; nothing was imported"
            )
        records[key] = record
    return records


def _no_contradiction(
    file: Path,
    index: Mapping[str, Any],
    records: Mapping[str, StageRecord],
    scratch: Path,
    store: Store,
    results: Path,
) -> int:
    """Refuse stages that are here with other content, and another study of that name. Returns
    stages the manifest names but nobody has.
    """
    manifest = json.loads((scratch / MANIFEST).read_text(encoding="utf-8"))
    for key, record in records.items():
        if store.has(key) and dict(store.record(key).files) != dict(record.files):
            raise HarnessError(
                f"{file}: stage {record.stage} [{key[:12]}] is in {store.root} with other "
                "content; nothing was imported. "
                "Give another folder with --store"
            )
    there = results / index["study"] / MANIFEST
    if there.is_file() and set(json.loads(there.read_text(encoding="utf-8"))["stages"]) != set(
        manifest["stages"]
    ):
        raise HarnessError(
            f"{there}: another study of that name is here; nothing was imported. Give another "
            "folder with --results"
        )
    return sum(key not in records and not store.has(key) for key in manifest["stages"])


def _commit(store: Store, record: StageRecord, folder: Path) -> bool:
    """Commit one unpacked stage; False when it was there already."""
    with store.lock(record.key) as mine:
        if store.has(record.key):
            return False
        if not mine:
            raise HarnessError(
                f"store {store.root}: stage {record.stage} [{record.key[:12]}] is being worked "
                "on; run the import again later"
            )
        (folder / RECORD).unlink()
        store.commit(folder, StageRecord(**asdict(record)))
        return True
