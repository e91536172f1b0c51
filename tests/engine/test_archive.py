"""A study in one file and back; a store's waste: nothing needed is deleted or comes in wrong."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.engine.archive import collect, export_study, import_archive, remember, waste
from harness.engine.store import Store
from harness.records import HarnessError
from tests.engine.test_store import KEY, OTHER, commit, record

THIRD = "ef" + "0" * 62


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Data ← base, and a stage that no study names."""
    opened = Store(tmp_path / "store")
    opened.open()
    commit(opened, KEY, "data")
    with opened.lock(OTHER):
        work = opened.begin(OTHER)
        (work / "model").mkdir()
        (work / "model" / "model.safetensors").write_bytes(b"weights" * 1000)
        opened.commit(work, record(opened, work, OTHER, {"data": KEY}))
    commit(opened, THIRD, "old")
    return opened


def manifest(results: Path, *keys: str, name: str = "s") -> Path:
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(
        json.dumps({"study": {"name": name}, "stages": {key: {} for key in keys}, "runs": []})
    )
    return folder


def test_an_archive_holds_the_study_and_comes_back_whole(store: Store, tmp_path: Path) -> None:
    folder = manifest(tmp_path / "results", KEY, OTHER, "aa" * 32)
    done = export_study(folder, store, tmp_path / "s.tar")
    assert (done.stages, done.missing) == (2, 1)
    other = Store(tmp_path / "other")
    other.open()
    back = import_archive(tmp_path / "s.tar", other, tmp_path / "there")
    assert (back.stages, back.present, back.missing) == (2, 0, 1)
    assert other.verify() == []
    assert (other.folder(KEY) / "record.json").read_bytes() == (
        store.folder(KEY) / "record.json"
    ).read_bytes()
    assert (tmp_path / "there" / "s" / "manifest.json").read_bytes() == (
        folder / "manifest.json"
    ).read_bytes()
    again = import_archive(tmp_path / "s.tar", other, tmp_path / "there")
    assert (again.stages, again.present) == (0, 2)
    export_study(tmp_path / "there" / "s", other, tmp_path / "t.tar")
    assert (tmp_path / "t.tar").read_bytes() == (tmp_path / "s.tar").read_bytes()
    assert list((other.root / "work").iterdir()) == []


def test_weights_can_stay_behind(store: Store, tmp_path: Path) -> None:
    export_study(manifest(tmp_path / "results", OTHER), store, tmp_path / "s.tar", weights=False)
    assert (tmp_path / "s.tar").stat().st_size < 12_000
    other = Store(tmp_path / "other")
    other.open()
    import_archive(tmp_path / "s.tar", other, tmp_path / "there")
    assert other.verify() == []
    assert not other.has_model(OTHER)


@pytest.mark.parametrize("damage", ["flip", "truncate", "head", "text"])
def test_a_damaged_archive_imports_nothing(store: Store, tmp_path: Path, damage: str) -> None:
    export_study(manifest(tmp_path / "results", KEY, OTHER), store, tmp_path / "s.tar")
    data = bytearray((tmp_path / "s.tar").read_bytes())
    data[data.index(b"weights")] ^= damage == "flip"
    cut = {"truncate": len(data) // 2, "head": 700}.get(damage, len(data))
    (tmp_path / "s.tar").write_bytes(b"no archive" if damage == "text" else data[:cut])
    other = Store(tmp_path / "other")
    other.open()
    with pytest.raises(HarnessError):
        import_archive(tmp_path / "s.tar", other, tmp_path / "there")
    assert other.all_keys() == []
    assert not (tmp_path / "there").exists()


def test_a_tar_of_something_else_is_no_archive(store: Store, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(HarnessError, match=r"not a whole archive .* is not in it"):
        import_archive(tmp_path / "s.tar", store, tmp_path / "there")


@pytest.mark.parametrize(
    "name", [f"objects/{KEY[:2]}/{KEY}/../../../../x", "/etc/x", "objects/x", "../x"]
)
def test_an_archive_cannot_write_outside_the_store(store: Store, tmp_path: Path, name: str) -> None:
    export_study(manifest(tmp_path / "results", KEY), store, tmp_path / "s.tar")
    with tarfile.open(tmp_path / "s.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo(name))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HarnessError, match="nothing was imported"):
        import_archive(tmp_path / "s.tar", store, tmp_path / "there")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_no_record_names_is_refused(store: Store, tmp_path: Path) -> None:
    export_study(manifest(tmp_path / "results", KEY), store, tmp_path / "s.tar")
    with tarfile.open(tmp_path / "s.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo(f"objects/{KEY[:2]}/{KEY}/more"))
    other = Store(tmp_path / "other")
    other.open()
    with pytest.raises(HarnessError, match=r"more.*which no export writes"):
        import_archive(tmp_path / "s.tar", other, tmp_path / "there")
    assert other.all_keys() == []


def test_an_archive_that_contradicts_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    export_study(manifest(tmp_path / "results", KEY, OTHER), store, tmp_path / "s.tar")
    other = Store(tmp_path / "other")
    other.open()
    commit(other, KEY, "something else")
    with pytest.raises(HarnessError, match="with other content"):
        import_archive(tmp_path / "s.tar", other, tmp_path / "there")
    assert other.all_keys() == [KEY]


def test_an_altered_stage_is_not_exported(store: Store, tmp_path: Path) -> None:
    folder = manifest(tmp_path / "results", KEY)
    (store.folder(KEY) / "rows.jsonl").write_text("DATA")
    with pytest.raises(HarnessError, match="changed after it was committed"):
        export_study(folder, store, tmp_path / "s.tar")
    assert not (tmp_path / "s.tar").exists()


def test_waste_is_what_no_study_needs(store: Store, tmp_path: Path) -> None:
    manifest(tmp_path / "results", OTHER)
    store.fail("bb" * 32, "train", "old")
    store.begin("cc" * 32)
    found = waste(store, tmp_path / "results")
    assert [(item.kind, item.key[:2]) for item in found] == [
        ("dead attempt", "cc"),
        ("old failure", "bb"),
        ("unneeded stage", "ef"),
    ]
    where = ["--store", str(store.root), "--results", str(tmp_path / "results")]
    assert "Nothing was deleted" in CliRunner().invoke(app, ["gc", *where]).output
    assert store.has(THIRD)
    with store.lock(THIRD):  # being worked on
        assert {item.key[:2] for item in waste(store, tmp_path / "results")} == {"bb", "cc"}
    assert collect(store, found) > 0
    assert store.all_keys() == [KEY, OTHER]
    assert waste(store, tmp_path / "results") == []


def test_a_search_keeps_what_its_trials_used(store: Store, tmp_path: Path) -> None:
    manifest(tmp_path / "results", OTHER)
    remember(store, "tune", [THIRD])
    assert waste(store, tmp_path / "results") == []
    assert [item.key for item in waste(store, tmp_path / "results", searches=False)] == [THIRD]


def test_without_any_manifest_nothing_counts_as_waste(store: Store, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="--results"):
        waste(store, tmp_path / "nothing")
