"""Existence means done: what is not committed never counts, what is committed is never lost or
rewritten.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from harness.engine.store import Store
from harness.files import hash_tree, write_atomic
from harness.records import HarnessError, StageRecord, content_hash
from tests.tasks import record_of

KEY = "ab" + "0" * 62
OTHER = "cd" + "0" * 62


def record(
    store: Store, work: Path, key: str = KEY, inputs: dict[str, str] | None = None
) -> StageRecord:
    told = {"settings": {"seed": 1}, "inputs": inputs or {}, "costs": {"seconds": 1.0}}
    return record_of(work, key, "rollout", **told)


def commit(
    store: Store, key: str = KEY, text: str = "one", inputs: dict[str, str] | None = None
) -> Path:
    with store.lock(key) as mine:
        assert mine
        work = store.begin(key)
        (work / "rows.jsonl").write_text(text)
        return store.commit(work, record(store, work, key, inputs))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "store")
    assert opened.open() == []
    return opened


def test_a_committed_stage_is_found_by_its_key(store: Store) -> None:
    assert store.states([KEY])[KEY] == "missing"
    folder = commit(store)
    assert store.states([KEY])[KEY] == "done"
    assert (folder / "rows.jsonl").read_text() == "one"
    assert store.record(KEY).settings == {"seed": 1}
    assert store.all_keys() == [KEY]


def test_a_second_commit_of_the_same_key_changes_nothing(store: Store) -> None:
    commit(store)
    folder = commit(store, text="two")
    assert (folder / "rows.jsonl").read_text() == "one"


def test_a_work_folder_without_record_never_counts_and_is_removed(store: Store) -> None:
    work = store.begin(KEY)
    (work / "rows.jsonl").write_text("half")
    assert store.states([KEY])[KEY] == "missing"
    repairs = Store(store.root).open()
    assert [r.what for r in repairs] == ["attempt was killed"]
    assert not work.exists()


def test_a_folder_moved_but_not_recorded_is_removed(store: Store) -> None:
    folder = store.folder(KEY)
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("half")
    assert store.states([KEY])[KEY] == "missing"
    assert "before its record" in Store(store.root).open()[0].what
    assert not folder.exists()


def test_the_journal_of_a_killed_attempt_is_continued(store: Store) -> None:
    work = store.begin(KEY)
    (work / "judge.journal.jsonl").write_text("{}\n")
    Store(store.root).open()
    assert store.states([KEY])[KEY] == "partial"
    assert (store.begin(KEY) / "judge.journal.jsonl").read_text() == "{}\n"


def test_a_killed_deletion_is_finished_and_called_one(store: Store) -> None:
    grave = store.root / "work" / f"{KEY}.0123456789ab.deleted"
    grave.mkdir()
    (grave / "judge.journal.jsonl").write_text("{}\n")
    (repair,) = Store(store.root).open()
    assert (repair.what, repair.action) == ("a deletion was interrupted", "finished")
    assert not grave.exists() and store.states([KEY])[KEY] == "missing"


def test_a_partial_stage_is_kept_and_continued(store: Store) -> None:
    work = store.begin(KEY)
    (work / "scores.parquet").write_text("rows")
    store.keep_partial(work, KEY, {"errors": 1})
    assert store.states([KEY])[KEY] == "partial"
    again = store.begin(KEY)
    assert (again / "scores.parquet").read_text() == "rows"


def test_failures_keep_their_reason_and_count(store: Store) -> None:
    store.fail(KEY, "train", "loss is nan at step 3")
    store.fail(KEY, "train", "loss is nan at step 3")
    assert store.states([KEY])[KEY] == "failed"
    assert store.failure(KEY)["attempts"] == 2
    commit(store)
    assert store.states([KEY])[KEY] == "done"
    assert store.failure(KEY) == {}


def _hold(root: str, ready: object, key: str) -> None:
    with Store(Path(root)).lock(key) as mine:
        ready.set() if mine else None  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_lock_excludes_others_and_dies_with_its_owner(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(store.root), ready, KEY))
    process.start()
    assert ready.wait(30)
    assert store.states([KEY])[KEY] == "running"
    with store.lock(KEY) as mine:
        assert not mine
    assert process.pid
    owner = store.owner(KEY)
    assert (owner["host"], owner["pid"]) == (socket.gethostname(), process.pid)
    assert abs(owner["since"] - time.time()) < 60
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.states([KEY])[KEY] == "missing"
    assert store.owner(KEY) == {}
    with store.lock(KEY) as mine:
        assert mine


def test_verify_names_altered_files_and_everything_built_on_them(store: Store) -> None:
    folder = commit(store)
    commit(store, OTHER, "two", {"data": KEY})
    assert store.verify() == []
    data = bytearray((folder / "rows.jsonl").read_bytes())
    data[0] ^= 1
    (folder / "rows.jsonl").write_bytes(data)
    found = store.verify()
    assert len(found) == 2
    assert "content changed" in found[0].what
    assert "input's content changed" in found[1].what


def test_a_truncated_record_is_reported_not_read(store: Store) -> None:
    path = commit(store) / "record.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(HarnessError, match="broken record"):
        store.record(KEY)
    assert len(store.verify()) == 1


def test_a_store_of_another_schema_is_refused_with_what_to_do(store: Store) -> None:
    (store.root / "schema.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(HarnessError, match=r"schema 99.*--store"):
        Store(store.root).open()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HarnessError, match="No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_retention_drops_weights_but_keeps_the_record(store: Store) -> None:
    with store.lock(KEY):
        work = store.begin(KEY)
        (work / "model").mkdir()
        (work / "model" / "model.safetensors").write_bytes(b"weights")
        store.commit(work, record(store, work))
    assert store.has_model(KEY)
    assert store.drop_model(KEY) == 7
    assert store.has(KEY)
    assert not store.has_model(KEY)
    assert store.verify() == []


def test_states_of_many_are_found_at_once(store: Store) -> None:
    commit(store)
    store.fail(OTHER, "train", "x")
    third = "ef" + "0" * 62
    states = {KEY: "done", OTHER: "failed", third: "missing"}
    assert store.states([*states]) == states


def test_a_changed_field_of_a_record_breaks_its_seal(store: Store) -> None:
    path = commit(store) / "record.json"
    path.write_text(path.read_text().replace('"seed":1', '"seed":7'))
    with pytest.raises(HarnessError, match="do not match its seal"):
        store.record(KEY)
    assert len(store.verify()) == 1


def test_a_seal_made_before_anything_was_left_out_still_holds(store: Store) -> None:
    path = commit(store) / "record.json"
    fields = json.loads(path.read_text())
    del fields["left_out"]
    path.write_text(json.dumps(fields))
    assert store.record(KEY).left_out == ()
    fields["left_out"] = [{"stage": "rollout", "what": "rows", "count": 1}]
    path.write_text(json.dumps(fields))
    with pytest.raises(HarnessError, match="do not match its seal"):
        store.record(KEY)


def test_an_altered_input_is_noticed_before_it_is_used(store: Store) -> None:
    path = commit(store) / "rows.jsonl"
    assert store.altered(KEY) == []
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert store.altered(KEY) == ["rows.jsonl"]


def test_an_input_made_again_with_other_content_makes_its_users_stale(store: Store) -> None:
    folder = commit(store)
    with store.lock(OTHER):
        work = store.begin(OTHER)
        made = record(store, work, OTHER, {"data": KEY})
        store.commit(
            work, dataclasses.replace(made, input_hashes={"data": content_hash(hash_tree(folder))})
        )
    assert store.verify() == []
    store.invalidate(KEY)
    commit(store, text="other")
    assert [(r.path, r.what) for r in store.verify()] == [
        (str(store.folder(OTHER)), "its input data was made again with other content")
    ]


def test_a_store_written_by_the_first_version_opens(tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(Path(__file__).parents[1] / "golden" / "store_v1", root)
    old = Store(root)
    assert old.open() == []
    assert old.verify() == []
    assert sorted(old.record(key).stage for key in old.all_keys()) == [
        "base.pocket",
        "data.pocket",
        "heldout",
    ]
    assert all(old.record(key).seal == "" for key in old.all_keys())
    commit(old)
    assert old.record(KEY).seal
    assert len(old.all_keys()) == 4


def test_a_repair_never_takes_what_was_committed_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process commits between the look and the removal: the second look, under the lease,
    sees it.
    """
    store.folder(KEY).mkdir(parents=True)
    real, first = Store.has, iter([True])

    def has(self: Store, key: str) -> bool:
        if not next(first, False):
            return real(self, key)
        commit(store)
        return False

    monkeypatch.setattr(Store, "has", has)
    assert Store(store.root).repair() == []
    assert store.has(KEY)


# -- other file systems ----------------------------------------------------------------------------
def test_what_desktops_and_nfs_leave_is_no_stage(store: Store) -> None:
    folder = commit(store)
    for place in (store.root / "objects", folder.parent, store.root / "locks", store.root / "work"):
        (place / ".DS_Store").touch()
    assert store.open() == [] and store.verify() == [] and store.all_keys() == [KEY]


def test_a_record_that_a_loss_of_power_left_empty_is_made_again(store: Store) -> None:
    (commit(store) / "record.json").write_text("")
    assert store.states([KEY]) == {KEY: "missing"}
    assert [one.what for one in store.open()] == ["killed before its record was written"]
    assert commit(store, text="again").exists() and store.states([KEY]) == {KEY: "done"}


def test_a_disk_without_hard_links_and_flushed_folders_holds_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FAT, SMB and some of FUSE answer."""
    flush = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", only_files)
    monkeypatch.setattr(os, "link", link)
    store = Store(tmp_path / "store")
    assert store.open() == [] and Store(store.root).open() == []
    first = commit(store)
    assert commit(store, text="two") == first and (first / "rows.jsonl").read_text() == "one"
    assert store.verify() == [] and not list(first.glob(".*"))


def test_a_disk_without_locks_is_refused_for_that(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (store.root / "locks" / f"{KEY}.lock").touch()
    monkeypatch.setattr(fcntl, "flock", flock)
    for ask in (store.open, lambda: store.states([KEY])):
        with pytest.raises(HarnessError, match=r"no locks: mount it with them \(flock\)"):
            ask()
