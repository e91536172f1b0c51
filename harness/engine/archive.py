"""What a store holds, carried elsewhere (``selm export``, ``selm import``) or let go (``selm gc``).

A study in one file is a plain tar: ``archive.json`` (study, its stages, the manifest's hash),
``manifest.json``, and the store's folder of every committed stage that the manifest names. Equal
studies give byte-identical archives. An archive is unpacked into a store of its own and verified
there like any other, before anything of it is moved; nothing in it is ever unpickled or run.
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
from harness.files import RECORD, hash_file, names, write_atomic
from harness.records import HarnessError, StageRecord, canonical_json, content_hash

INDEX, MANIFEST, DROPPED = "archive.json", "manifest.json", "dropped"
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
    study, keys = data["study"]["name"], [key for key in sorted(data["stages"]) if store.has(key)]
    index = {"study": study, "stages": keys, "manifest": hash_file(manifest)}
    told = canonical_json(index).encode()
    files, left_out = {MANIFEST: manifest}, set()
    for key in keys:
        source = store.folder(key)
        for name in store.altered(key):
            raise HarnessError(
                f"{source / name}: missing, or changed after it was committed; `selm verify` tells "
                "what depends on it"
            )
        bare = not (weights and store.has_model(key))
        for name in sorted([RECORD, *store.record(key).files]):
            if bare and name.startswith("model/") and name.endswith(".safetensors"):
                left_out.add(_within(key, DROPPED))
            else:
                files[_within(key, name)] = source / name
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        # A member has a name and a size alone: not whose it is, nor when it was written.
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo(INDEX)
            info.size = len(told)
            tar.addfile(info, io.BytesIO(told))
            for name, path in files.items():
                info = tarfile.TarInfo(name)
                info.size = path.stat().st_size
                with path.open("rb") as handle:
                    tar.addfile(info, handle)
            for name in sorted(left_out):
                tar.addfile(tarfile.TarInfo(name))
        temporary.replace(file)
    except OSError as error:
        raise HarnessError(
            f"{file}: cannot be written ({error.strerror or error}); no archive was made"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Archived(study, len(keys), 0, len(data["stages"]) - len(keys))


def _within(key: str, name: str) -> str:
    """Name of a stage's file in an archive: where it lies in a store."""
    return f"objects/{key[:2]}/{key}/{name}"


def import_archive(file: Path, store: Store, results: Path) -> Archived:
    """Check a whole archive, then commit its stages and write its manifest below ``results``.

    Raises HarnessError, with nothing imported, when a member is altered, missing or unexpected, or
    something here contradicts it.
    """
    token = f"import-{uuid.uuid4().hex[:12]}"
    with store.lock(token):  # so that no repair takes the folder for a dead attempt's
        scratch = Store(store.root / "work" / token)
        try:
            index = _unpacked(file, scratch)
            manifest = (scratch.root / MANIFEST).read_text(encoding="utf-8")
            stages, target = (
                set(json.loads(manifest)["stages"]),
                results / index["study"] / MANIFEST,
            )
            if target.is_file() and set(json.loads(target.read_text("utf-8"))["stages"]) != stages:
                raise HarnessError(
                    f"{target}: another study of that name is here; nothing was imported. Give "
                    "another folder with --results"
                )
            new = {key: scratch.record(key) for key in index["stages"]}
            for key in filter(store.has, index["stages"]):
                record = new.pop(key)
                if store.record(key).files != record.files:
                    raise HarnessError(
                        f"{file}: stage {record.stage} [{key[:12]}] is in {store.root} with other "
                        "content; nothing was imported. Give another folder with --store"
                    )
            for record in new.values():
                _commit(store, scratch.folder(record.key), record)
            write_atomic(target, manifest)
        except OSError as error:
            raise HarnessError(f"{file}: could not be imported ({error}); run it again") from error
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
            members = tar.getmembers()
            for name in {INDEX, MANIFEST}.difference(tar.getnames()):
                raise ValueError(f"{name} is not in it")
            tar.extractall(into.root, members, filter="data")
        index: dict[str, Any] = json.loads((into.root / INDEX).read_text(encoding="utf-8"))
        whole = index["manifest"] == hash_file(into.root / MANIFEST)
        named, keys = STUDY.fullmatch(index["study"]), index["stages"]
        expected = {_within(key, name) for key in keys for name in into.record(key).files}
    except (HarnessError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise refusal(f"it is not a whole archive of `selm export` ({error})") from error
    if not whole or not named or set(keys) != set(into.all_keys()):
        raise refusal("what it holds is not what its index names")
    expected |= {_within(key, name) for key in keys for name in (RECORD, DROPPED)}
    for info in members:
        if not info.isreg() or info.name not in {INDEX, MANIFEST, *expected}:
            raise refusal(f"it holds {info.name!r}, which no export writes")
    for found in into.verify():
        raise refusal(f"{Path(found.path).relative_to(into.root)}: {found.what}")
    return index


def _commit(store: Store, folder: Path, record: StageRecord) -> None:
    with store.lock(record.key) as mine:
        if not mine:
            raise HarnessError(
                f"store {store.root}: stage {record.stage} [{record.key[:12]}] is being worked on; "
                "run the import again later"
            )
        (folder / RECORD).unlink()
        store.commit(folder, record)


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
        sources = {*store.record(frontier.pop()).inputs.values()} - found
        found |= sources
        frontier += filter(store.has, sources)
    return found


def waste(store: Store, results: Path, searches: bool = True) -> list[Waste]:
    """What could go, by kind and key: unneeded stages, old journals and failures, dead attempts."""
    keep = needed(store, results, searches)
    paths = [("unneeded stage", key, store.folder(key)) for key in store.all_keys()]
    paths = [found for found in paths if found[1] not in keep]
    beside = (("partial", "unneeded journal"), ("failed", "old failure"), ("work", "dead attempt"))
    for folder, kind in beside:
        for name in names(store.root / folder):
            key = name.split(".")[0]
            if folder == "work" or key not in keep or store.has(key):
                paths.append((kind, key, store.root / folder / name))
    return [
        Waste(kind, key, path, size(path))
        for kind, key, path in sorted(paths)
        if not store.is_locked(key)
    ]


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
