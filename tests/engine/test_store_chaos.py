"""What clusters do to a store: kills at every moment, full and read-only disks, damaged files, two
writers, clocks going back.

After each of them nothing committed is lost or altered unnoticed, every repair is reported, and
finishing the work gives a store whose content is byte for byte that of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.engine.store import Store
from harness.files import hash_tree
from harness.records import SCHEMA_VERSION, HarnessError, StageRecord, content_hash

pytestmark = pytest.mark.slow
ENVIRONMENT = {"host": "h", "finished": 0.0}


def keys(count: int) -> list[str]:
    return [content_hash("chaos", index) for index in range(count)]


def do(store: Store, index: int, key: str, inputs: dict[str, str], log: Path | None = None) -> bool:
    """One toy stage, a pure function of its index: three files, committed. False when another
    process has it.
    """
    with store.lock(key) as mine:
        if not mine:
            return False
        if store.has(key):
            return True
        if log:
            with open(log, "a") as handle:
                handle.write(key + "\n")
        work = store.begin(key)
        (work / "model").mkdir(exist_ok=True)
        for name, size in (
            ("rows.jsonl", 3000),
            ("model/model.safetensors", 20_000),
            ("judge.journal.jsonl", 100),
        ):
            (work / name).write_bytes(random.Random(f"{index}{name}").randbytes(size))
        hashes = {
            name: content_hash(dict(store.record(source).files)) for name, source in inputs.items()
        }
        store.commit(
            work,
            StageRecord(
                SCHEMA_VERSION,
                key,
                "toy",
                1,
                {"index": index},
                inputs,
                hashes,
                hash_tree(work),
                1,
                {},
                {},
                ENVIRONMENT,
            ),
        )
        return True


def write(root: Path, count: int, log: Path | None = None) -> None:
    """Do every stage, each the input of the next; wait for those another process has."""
    store, names = Store(root), keys(count)
    for index, key in enumerate(names):
        while not do(store, index, key, {"before": names[index - 1]} if index % 5 else {}, log):
            time.sleep(0.001)


def content(root: Path) -> dict[str, str]:
    """Hash of every committed file, records included."""
    return {
        f"{p.parent.name}/{p.name}" if p.name == "record.json" else str(p.relative_to(root)): h
        for p, h in _hashed(root / "objects")
    }


def _hashed(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, content_hash(path.read_bytes().hex())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Content of an undisturbed store of so many stages."""

    def make(count: int) -> dict[str, str]:
        root = tmp_path_factory.mktemp("clean") / "store"
        assert Store(root).open() == []
        write(root, count)
        return content(root)

    return make


def child(job: Callable[[], None]) -> int:
    """Run ``job`` in a forked process; returns its id. Its exit status is 1 when the job raised."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with contextlib.suppress(BaseException):
        job()
        status = 0
    os._exit(status)


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def leftovers(root: Path) -> set[str]:
    """Paths a dead writer left: attempts, half records, folders without a record."""
    recordless = {str(p) for p in root.glob("objects/*/*") if not (p / "record.json").exists()}
    return recordless | {str(p) for p in (root / "work").iterdir()}


def test_two_hundred_kills_lose_nothing(
    tmp_path: Path, clean: Callable[[int], dict[str, str]]
) -> None:
    root, rng, count = tmp_path / "store", random.Random(0), 400
    Store(root).open()
    started = time.perf_counter()
    clean(30)
    stage = (
        time.perf_counter() - started
    ) / 30  # seconds a stage takes; follows the machine below, so that some kills come late enough
    committed: dict[str, str] = {}
    mended = 0
    for kill in range(200):
        begun, begin = os.pipe()
        pid = child(lambda begin=begin: os.write(begin, b"x") and write(root, count))  # type: ignore[misc]
        os.read(begun, 1)
        os.close(begun)
        os.close(begin)
        time.sleep(rng.uniform(0, 3 * stage))
        os.kill(pid, signal.SIGKILL)
        finish(pid)
        left, store = leftovers(root), Store(root)
        repairs = store.open()
        assert {repair.path for repair in repairs} == left, f"kill {kill}"
        mended += len(repairs)
        now = {key: store.record(key).expected_seal() for key in store.all_keys()}
        assert committed.items() <= now.items(), f"kill {kill} lost or altered a stage"
        if len(now) < count:  # once all is done there is no pace to follow
            gained = len(now) - len(committed)
            stage *= 1.15 if gained == 0 else 0.75 if gained > 1 else 1.0
        committed = now
        assert not leftovers(root) and not list((root / "locks").iterdir())
    assert mended > 20, "the kills missed the writer"
    assert len(committed) > 30, "no writer got through between two kills"
    write(root, count)
    assert Store(root).verify() == []
    assert content(root) == clean(count)


@pytest.mark.parametrize("call", ["rename", "link", "fsync", "unlink", "open"])
def test_a_kill_before_any_call_of_a_commit_is_mended(
    tmp_path: Path, clean: Callable[[int], dict[str, str]], call: str
) -> None:
    """Not at random moments: at the n-th rename, link, flush, … of a writer, for every n until it
    survives.
    """
    wanted = clean(2)
    for place in range(40):
        root = tmp_path / f"store{place}"
        Store(root).open()
        status = finish(child(lambda root=root, place=place: killed_at(call, place, root)))  # type: ignore[misc]
        left, store = leftovers(root), Store(root)
        assert {repair.path for repair in store.open()} == left
        assert store.verify() == []
        write(root, 2)
        assert content(root) == wanted
        if status == 0:
            break
    assert status == 0
    assert place > 1


def killed_at(call: str, place: int, root: Path) -> None:
    real, seen = getattr(os, call), iter(range(place))

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if next(seen, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, call, deadly)
    write(root, 2)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size; skips where this user may not mount."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"may not mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_stops_with_a_reason_and_loses_nothing(
    tmp_path: Path, clean: Callable[[int], dict[str, str]]
) -> None:
    with small_disk(tmp_path / "disk", "400k") as disk:
        root = disk / "store"
        Store(root).open()
        with pytest.raises((HarnessError, OSError), match="No space left"):
            write(root, 30)
        store = Store(root)
        before = content_of_committed(store)
        assert 5 < len(before) < 30
        store.open()
        assert content_of_committed(store) == before
        assert store.verify() == []
        remount(disk, "size=4m")
        store.open()
        write(root, 30)
        assert content(root) == clean(30)


def test_a_file_size_limit_stops_with_a_reason_and_loses_nothing(
    tmp_path: Path, clean: Callable[[int], dict[str, str]]
) -> None:
    """The same where nothing may be mounted: the system refuses to let a file grow."""
    root = tmp_path / "store"
    Store(root).open()
    write(root, 3)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # a record is longer
        write(root, 10)

    assert finish(child(limited)) == 1
    store = Store(root)
    assert len(store.open()) == 1
    assert store.all_keys() == sorted(keys(3))
    write(root, 10)
    assert content(root) == clean(10)


def content_of_committed(store: Store) -> dict[str, str]:
    return {
        key: content_hash(hash_tree(store.folder(key)))
        for key in store.all_keys()
        if store.has(key)
    }


def test_a_read_only_disk_can_be_read_and_says_why_it_cannot_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        root = disk / "store"
        Store(root).open()
        write(root, 10)
        before = content(root)
        remount(disk, "ro")
        store, names = Store(root), keys(11)
        assert store.open() == []
        assert list(store.states(names).values()) == ["done"] * 10 + ["missing"]
        assert store.verify() == []
        with pytest.raises(HarnessError, match=r"Read-only file system.*intact.*--store"):
            do(store, 10, names[10], {})
        with pytest.raises(HarnessError, match="Read-only file system"):
            Store(disk / "new").open()
        remount(disk, "rw")
        assert content(root) == before


def damage(path: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    facts = path.stat()
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1
    else:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # a failing disk does not tell


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_every_damaged_byte_is_noticed_with_all_it_spoils(
    tmp_path: Path, clean: Callable[[int], dict[str, str]], kind: str
) -> None:
    root, rng, count = tmp_path / "store", random.Random(1), 10
    store, names = Store(root), keys(count)
    store.open()
    write(root, count)
    wanted = clean(count)
    for _ in range(40):
        victim = rng.randrange(count)
        damage(
            rng.choice([p for p in sorted(store.folder(names[victim]).rglob("*")) if p.is_file()]),
            kind,
            rng,
        )
        found = Store(root).verify()
        named = {key for key in names if any(key in repair.path for repair in found)}
        spoilt = {
            key for index, key in enumerate(names) if index >= victim and index // 5 == victim // 5
        }
        assert named == spoilt
        for key in spoilt:
            store.invalidate(key)
        write(root, count)
        assert content(root) == wanted


def test_two_writers_do_every_stage_once(
    tmp_path: Path, clean: Callable[[int], dict[str, str]]
) -> None:
    root, count = tmp_path / "store", 60
    Store(root).open()
    wanted = clean(count)
    for round_ in range(2):
        log = tmp_path / f"log{round_}"
        pids = [child(lambda log=log: write(root, count, log)) for _ in range(2)]  # type: ignore[misc]
        for _ in range(20):  # a third process that opens, and so repairs, meanwhile
            Store(root).open()
        assert [finish(pid) for pid in pids] == [0, 0]
        assert sorted(log.read_text().split()) == sorted(keys(count))
        assert content(root) == wanted
        shutil.rmtree(root / "objects")
        Store(root).open()


def test_clocks_that_go_back_change_nothing(
    tmp_path: Path, clean: Callable[[int], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, moments = tmp_path / "store", iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    Store(root).open()
    log = tmp_path / "log"
    pids = [child(lambda: write(root, 60, log)), child(lambda: skewed(root, 60, log, moments))]
    assert [finish(pid) for pid in pids] == [0, 0]
    assert sorted(log.read_text().split()) == sorted(keys(60))
    for path in root.rglob("*"):
        os.utime(path, (0, 0))  # files from before the epoch of everything
    assert Store(root).open() == []
    assert Store(root).verify() == []
    assert content(root) == clean(60)


def skewed(root: Path, count: int, log: Path, moments: Iterator[int]) -> None:
    for _ in range(1000):
        next(moments)
    write(root, count, log)


def test_a_lease_from_the_future_ends_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, key = Store(tmp_path / "store"), keys(1)[0]
    store.open()
    ready, done = os.pipe()

    def hold() -> None:
        time.time = lambda: 1e11
        with store.lock(key):
            os.write(done, b"x")
            signal.pause()

    pid = child(hold)
    os.read(ready, 1)
    assert store.owner(key)["since"] == 1e11
    assert store.open() == []
    with store.lock(key) as mine:
        assert not mine
    os.kill(pid, signal.SIGKILL)
    finish(pid)
    assert do(store, 0, key, {})
