"""What a store holds, carried elsewhere (``selm export``, ``selm import``) or let go (``selm gc``).

A study in one file is a plain tar: ``archive.json`` (schema, study, its stages, the manifest's
hash), ``manifest.json``, and the store's folder of every committed stage that the manifest names.
Equal studies give byte-identical archives. An archive is unpacked into a store of its own and
verified there like any other, before anything of it is moved; nothing in it is ever unpickled or
run. A stage is needed when a manifest below the results names it, or a search's trial used it, or
one of those reads it.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.engine.store import Store
from harness.files import RECORD, hash_file, hash_tree, names, write_atomic
from harness.records import SCHEMA_VERSION, HarnessError, canonical_json, content_hash

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
            _add(tar, INDEX, canonical_json(index).encode())
            _add(tar, MANIFEST, manifest)
            for key in keys:
                within = store.folder(key).relative_to(store.root).as_posix()
                bare = not (weights and store.has_model(key))
                files = sorted([RECORD, *store.record(key).files])
                left = {one for one in files if bare and re.match(r"model/.*\.safetensors$", one)}
                for name in files:
                    if name not in left:
                        _add(tar, f"{within}/{name}", store.folder(key) / name)
                if left:
                    _add(tar, f"{within}/{DROPPED}", b"")
        temporary.replace(file)
    except OSError as error:
        raise HarnessError(
            f"{file}: cannot be written ({error.strerror or error}); no archive was made"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Archived(study, len(keys), 0, len(data["stages"]) - len(keys))


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    """A member with its name and size, without whose it is and when it was written."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    if isinstance(content, bytes):
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        return
    info.size = content.stat().st_size
    with content.open("rb") as handle:
        tar.addfile(info, handle)


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
            index = _unpacked(file, scratch)
            manifest = (scratch.root / MANIFEST).read_text(encoding="utf-8")
            stages = json.loads(manifest)["stages"]
            target = results / index["study"] / MANIFEST
            _no_contradiction(file, scratch, store, target, stages)
            new = [key for key in index["stages"] if _commit(store, scratch, key)]
            write_atomic(target, manifest)
        except OSError as error:
            raise HarnessError(
                f"{file}: could not be imported ({error.strerror or error}); run the import again"
            ) from error
        finally:
            shutil.rmtree(scratch.root, ignore_errors=True)
    missing = sum(not store.has(key) for key in stages)
    return Archived(index["study"], len(new), len(index["stages"]) - len(new), missing)


def _unpacked(file: Path, into: Store) -> dict[str, Any]:
    """The archive's index, with every member written below ``into`` and every stage verified."""

    def refusal(why: str) -> HarnessError:
        advice = "nothing was imported. Copy or export the archive again"
        return HarnessError(f"{file}: {why}; {advice}")

    try:
        with tarfile.open(file, "r:") as tar:
            for info in tar:
                parts = set(info.name.split("/"))
                if not (info.isreg() and MEMBER.fullmatch(info.name)) or parts & {"", ".", ".."}:
                    raise refusal(f"it holds {info.name!r}, which no export writes")
                tar.extract(info, into.root, filter="data")
        index: dict[str, Any] = json.loads((into.root / INDEX).read_text(encoding="utf-8"))
        whole = index["manifest"] == hash_file(into.root / MANIFEST)
        named = STUDY.fullmatch(index["study"])
        schema, keys = index["schema"], set(index["stages"])
    except FileNotFoundError as error:
        if error.filename == str(file):
            raise HarnessError(f"{file}: no such archive") from None
        raise refusal(f"{Path(str(error.filename)).name} is not in it") from None
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise refusal(f"it is not a whole archive of `selm export` ({error})") from error
    if schema != SCHEMA_VERSION:
        raise refusal(f"it has schema {schema}, this version reads {SCHEMA_VERSION}")
    if not whole or not named or keys != set(into.all_keys()):
        raise refusal("what it holds is not what its index names")
    for found in into.verify():
        raise refusal(f"{Path(found.path).relative_to(into.root)}: {found.what}")
    for key in keys:
        record = into.record(key)
        unknown = set(hash_tree(into.folder(key))) - {*record.files, DROPPED}
        if record.key != key or unknown:
            what = min(unknown, default=RECORD)
            raise refusal(f"objects/{key}: {what} does not match its record")
    return index


def _no_contradiction(
    file: Path, unpacked: Store, store: Store, target: Path, stages: Iterable[str]
) -> None:
    """Refuse stages that are here with other content, and another study of that name."""
    for key in unpacked.all_keys():
        record = unpacked.record(key)
        if store.has(key) and dict(store.record(key).files) != dict(record.files):
            raise HarnessError(
                f"{file}: stage {record.stage} [{key[:12]}] is in {store.root} with other "
                "content; nothing was imported. Give another folder with --store"
            )
    if target.is_file() and set(json.loads(target.read_text("utf-8"))["stages"]) != set(stages):
        raise HarnessError(
            f"{target}: another study of that name is here; nothing was imported. Give "
            "another folder with --results"
        )


def _commit(store: Store, unpacked: Store, key: str) -> bool:
    """Commit one unpacked stage; False when it was there already."""
    record, folder = unpacked.record(key), unpacked.folder(key)
    with store.lock(key) as mine:
        if store.has(key):
            return False
        if not mine:
            raise HarnessError(
                f"store {store.root}: stage {record.stage} [{key[:12]}] is being worked on; run "
                "the import again later"
            )
        (folder / RECORD).unlink()
        store.commit(folder, record)
        return True


# -- what nothing asks for any more ----------------------------------------------------------------
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
    """What could go, by kind and key: unneeded stages, old journals and failures, dead attempts."""
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
