"""A study in one file: ``selm export`` and ``selm import``.

A plain tar: ``archive.json`` (schema, study, its stages, the manifest's hash), ``manifest.json``,
and the store's folder of every committed stage that the manifest names. Equal studies give
byte-identical archives. An archive is unpacked into a store of its own and verified there like any
other, before anything of it is moved; nothing in it is ever unpickled or run.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.engine.store import Store
from harness.files import RECORD, hash_file, hash_tree, write_atomic
from harness.records import SCHEMA_VERSION, HarnessError, StageRecord, canonical_json

INDEX, MANIFEST, DROPPED = "archive.json", "manifest.json", "dropped"
MEMBER = re.compile(r"archive\.json|manifest\.json|objects/[0-9a-f]{2}/[0-9a-f]{64}/[^\0]+")
STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Archived:
    """What an export or import moved. stages: written; present: there already; missing: named by
    the manifest, but nobody has them.
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
    manifest = folder / MANIFEST
    data = json.loads(manifest.read_text(encoding="utf-8"))
    keys = [key for key in sorted(data["stages"]) if store.has(key)]
    for key in keys:
        for name in store.altered(key):
            raise HarnessError(
                f"{store.folder(key) / name}: missing, or changed after it was committed; "
                "`selm verify` tells what depends on it"
            )
    study = data["study"]["name"]
    index = {"schema": SCHEMA_VERSION, "study": study, "stages": keys}
    index["manifest"] = hash_file(manifest)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            _add_bytes(tar, INDEX, canonical_json(index).encode())
            tar.add(manifest, MANIFEST, filter=_plain)
            for key in keys:
                _add_stage(tar, store, key, weights)
        temporary.replace(file)
    except OSError as error:
        raise HarnessError(
            f"{file}: cannot be written ({error.strerror or error}); no archive was made"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Archived(study, len(keys), 0, len(data["stages"]) - len(keys))


def _add_stage(tar: tarfile.TarFile, store: Store, key: str, weights: bool) -> None:
    folder = store.folder(key)
    left_out = False
    for name in sorted([RECORD, *store.record(key).files]):
        is_weight = name.startswith("model/") and name.endswith(".safetensors")
        if is_weight and not (weights and store.has_model(key)):
            left_out = True
        else:
            tar.add(folder / name, _member(store, folder / name), filter=_plain)
    if left_out:
        _add_bytes(tar, _member(store, folder / DROPPED), b"")


def _member(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """A file's name and size without whose it is and when it was written."""
    plain = tarfile.TarInfo(info.name)
    plain.size, plain.mode = info.size, 0o644
    return plain


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


def import_archive(file: Path, store: Store, results: Path) -> Archived:
    """Check a whole archive, then commit its stages and write its manifest below ``results``.

    Raises HarnessError, with nothing imported, when a member is altered, missing or unexpected, or
    something here contradicts it.
    """
    with store.lock("import") as mine:
        if not mine:
            raise HarnessError(f"store {store.root}: another import is running; wait for it")
        scratch = Store(store.root / "work" / f"import.{uuid.uuid4().hex[:12]}")
        try:
            index = _unpacked(file, scratch.root)
            records = _checked(file, index, scratch)
            manifest = json.loads((scratch.root / MANIFEST).read_text(encoding="utf-8"))
            target = results / index["study"] / MANIFEST
            _no_contradiction(file, records, store, target, manifest)
            new = [key for key in records if _commit(store, records[key], scratch.folder(key))]
            write_atomic(target, (scratch.root / MANIFEST).read_text(encoding="utf-8"))
        except OSError as error:
            raise HarnessError(
                f"{file}: could not be imported ({error.strerror or error}); run the import again"
            ) from error
        finally:
            shutil.rmtree(scratch.root, ignore_errors=True)
    missing = sum(not store.has(key) for key in manifest["stages"])
    return Archived(index["study"], len(new), len(records) - len(new), missing)


def _unpacked(file: Path, folder: Path) -> dict[str, Any]:
    """The archive's index, with every member written below ``folder``."""
    try:
        with tarfile.open(file, "r:") as tar:
            for info in tar:
                parts = set(info.name.split("/"))
                if not (info.isreg() and MEMBER.fullmatch(info.name)) or parts & {"", ".", ".."}:
                    raise _refusal(file, f"it holds {info.name!r}, which no export writes")
                tar.extract(info, folder, filter="data")
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        whole = index["manifest"] == hash_file(folder / MANIFEST)
        named = STUDY.fullmatch(index["study"])
        schema, keys = index["schema"], set(index["stages"])
    except FileNotFoundError as error:
        if error.filename == str(file):
            raise HarnessError(f"{file}: no such archive") from None
        raise _refusal(file, f"{Path(str(error.filename)).name} is not in it") from None
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _refusal(file, f"it is not a whole archive of `selm export` ({error})") from error
    if schema != SCHEMA_VERSION:
        raise _refusal(file, f"it has schema {schema}, this version reads {SCHEMA_VERSION}")
    if not whole or not named or keys != set(Store(folder).all_keys()):
        raise _refusal(file, "what it holds is not what its index names")
    return index


def _checked(file: Path, index: dict[str, Any], unpacked: Store) -> dict[str, StageRecord]:
    """The record of every stage, each of which is verified with all its files."""
    for found in unpacked.verify():
        raise _refusal(file, f"{Path(found.path).relative_to(unpacked.root)}: {found.what}")
    records = {key: unpacked.record(key) for key in index["stages"]}
    for key, record in records.items():
        unknown = set(hash_tree(unpacked.folder(key))) - {*record.files, DROPPED}
        if record.key != key or unknown:
            what = min(unknown, default=RECORD)
            raise _refusal(file, f"objects/{key}: {what} does not match its record")
    return records


def _refusal(file: Path, why: str) -> HarnessError:
    return HarnessError(f"{file}: {why}; nothing was imported. Copy or export the archive again")


def _no_contradiction(
    file: Path,
    records: dict[str, StageRecord],
    store: Store,
    target: Path,
    manifest: dict[str, Any],
) -> None:
    """Refuse stages that are here with other content, and another study of that name."""
    for key, record in records.items():
        if store.has(key) and dict(store.record(key).files) != dict(record.files):
            raise HarnessError(
                f"{file}: stage {record.stage} [{key[:12]}] is in {store.root} with other "
                "content; nothing was imported. Give another folder with --store"
            )
    if target.is_file():
        there = json.loads(target.read_text(encoding="utf-8"))
        if set(there["stages"]) != set(manifest["stages"]):
            raise HarnessError(
                f"{target}: another study of that name is here; nothing was imported. Give "
                "another folder with --results"
            )


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
        store.commit(folder, record)
        return True
