"""Several workers on one search: no trial lost or doubled, shared stages run once, a killed
worker's trial tried again or marked.

PostgreSQL is Debian's server on loopback, started here; where it is not installed these tests skip
and say so.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness.engine.store import Store
from harness.tune import workers as tune
from harness.tune.search import open_study
from tests.tune_world import SEARCH, make_search

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TRIALS = 16
MANY = SEARCH.replace("trials: 4", f"trials: {TRIALS}\npruner: none")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Address of a server of our own; it refuses to run as root, so root runs it as the user
    ``postgres``.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip(
            "no PostgreSQL server at /usr/lib/postgresql/*/bin (Debian: apt-get install postgresql)"
        )
    pytest.importorskip("psycopg2", reason="the extra [postgresql] is not installed")
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root and there is no user postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
    port = free_port()
    subprocess.run(
        [programs[-1] / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "-N"],
        check=True,
        capture_output=True,
        cwd=folder,
        **user,
    )  # type: ignore[call-overload]
    options = [
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        "unix_socket_directories=",
        "-c",
        "fsync=off",
        "-p",
        str(port),
    ]
    with open(os.devnull, "wb") as nothing:
        server = subprocess.Popen(
            [programs[-1] / "postgres", "-D", folder / "data", *options],
            cwd=folder,
            stderr=nothing,
            stdout=nothing,
            **user,
        )  # type: ignore[call-overload]
    try:
        wait_for(
            lambda: (
                subprocess.run(
                    [programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port)],
                    capture_output=True,
                    check=False,
                ).returncode
                == 0
            )
        )
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(ready: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@dataclass
class Run:
    """One search by two worker processes over toy stages."""

    folder: Path
    storage: str
    text: str = MANY

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        search = make_search(self.folder, self.text, self.storage)
        command = [
            sys.executable,
            "-m",
            "tests.tune_world",
            str(search.path),
            str(search.store),
            self.storage,
            "2",
        ]
        surroundings = {
            **os.environ,
            "TUNE_WORLD_LOG": str(self.folder / "log"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        with open(self.folder / "output", "wb") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=surroundings, stdout=output, stderr=output
            )

    def wait(self, search: subprocess.Popen[bytes]) -> None:
        assert search.wait(400) == 0, (self.folder / "output").read_text()[-2000:]

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="t", storage=self.storage)

    def lines(self, kind: str) -> list[list[str]]:
        """(kind, key, stage, process) of every start, or end, so far."""
        path = self.folder / "log"
        return (
            [line.split() for line in path.read_text().splitlines() if line.startswith(kind)]
            if path.exists()
            else []
        )

    def executions(self) -> Counter[str]:
        return Counter(line[1] for line in self.lines("end"))


def workers(parent: int) -> list[int]:
    """Process ids of the spawned workers of a search."""
    found = []
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'optuna.db'}"
    return fresh_database(request.getfixturevalue("postgresql"), f"d{random.randrange(10**9)}")


def fresh_database(url: str, name: str) -> str:
    import psycopg2

    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return url.rsplit("/", 1)[0] + f"/{name}"


def test_two_workers_share_trials_and_stages(tmp_path: Path, storage: str) -> None:
    run = Run(tmp_path, storage)
    run.wait(run.start(TUNE_WORLD_MEET="2"))
    trials = run.study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * TRIALS
    assert sorted(trial.number for trial in trials) == list(range(TRIALS))
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    executed = run.executions()
    assert set(executed.values()) == {1}, "a stage ran twice"
    assert sorted(executed) == Store(tmp_path / "store").all_keys()
    run.wait(run.start())
    assert len(run.study().trials) == TRIALS, "the same command again added trials"
    assert run.executions() == executed


def test_ten_kills_lose_no_trial(tmp_path: Path, storage: str) -> None:
    """The moments are drawn over the stages that start. At five of them the worker kills itself, so
    inside a trial; after the other five the worker that started the stage is killed from outside,
    wherever it is by then. No check leans on how fast anything is.
    """
    run, moments = (
        Run(tmp_path, storage),
        random.Random(storage.partition(":")[0]).sample(range(3, 90), 10),
    )
    search = run.start(TUNE_WORLD_KILLS=",".join(str(moment) for moment in moments[:5]))
    kill_after(run, search, sorted(moments[5:]))
    run.wait(search)
    trials = run.study().trials
    assert len(run.lines("start")) >= 90, "not every moment came"
    assert [trial.number for trial in trials] == list(range(len(trials)))
    states = Counter(trial.state.name for trial in trials)
    assert states["COMPLETE"] == TRIALS
    assert set(states) == {"COMPLETE", "FAIL"}, "a trial was left running or waiting"
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    assert len(lost) >= 5, "five kills were inside trials"
    check_lost(trials, run.study().user_attrs["lost"])
    executed, store = run.executions(), Store(tmp_path / "store")
    assert sum(executed.values()) - len(executed) <= 10, "a stage that was done was done again"
    store.open()
    assert set(store.all_keys()) <= set(executed)
    assert store.verify() == []


def kill_after(run: Run, search: subprocess.Popen[bytes], moments: list[int]) -> None:
    """Kill the worker that started the n-th stage as soon as that is seen, for every n, unless it
    is dead already.
    """
    for moment in moments:
        wait_for(
            lambda moment=moment: len(run.lines("start")) >= moment or search.poll() is not None,
            300,
        )  # type: ignore[misc]
        if search.poll() is None:
            victim = int(run.lines("start")[moment - 1][3])
            if victim in workers(search.pid):
                os.kill(victim, signal.SIGKILL)


def check_lost(trials: list[optuna.trial.FrozenTrial], reasons: dict[str, str]) -> None:
    """Every lost trial has its reason, and was tried again exactly once with its settings, or had
    been tried as often as allowed.
    """
    successors: dict[int, list[optuna.trial.FrozenTrial]] = {}
    for trial in trials:
        for before in trial.system_attrs.get("retry_history", [])[-1:]:
            successors.setdefault(before, []).append(trial)
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    assert set(reasons) == {str(trial.number) for trial in lost}
    assert set(successors) <= {trial.number for trial in lost}
    for trial in lost:
        assert "its worker" in reasons[str(trial.number)]
        after = successors.get(trial.number, [])
        if len(trial.system_attrs.get("retry_history", [])) < tune.RETRIES:
            assert len(after) == 1, f"trial {trial.number} was tried again {len(after)} times"
            assert after[0].number > trial.number
            assert trial.params.items() <= after[0].params.items()
        else:
            assert after == []
            assert "not again" in reasons[str(trial.number)]


def test_the_dashboard_shows_the_search(tmp_path: Path) -> None:
    """What ``optuna-dashboard sqlite:///results/NAME/optuna.db`` serves: our study, its trials and
    their reasons.
    """
    program = Path(sys.executable).with_name("optuna-dashboard")
    if not program.exists():
        pytest.skip("the extra [dashboard] is not installed")
    search = make_search(tmp_path)
    study = open_study(search)
    good, bad = study.ask(), study.ask()
    study.tell(good, 0.5)
    bad.set_user_attr("reason", "loss is nan")
    study.tell(bad, state=optuna.trial.TrialState.PRUNED)
    port = free_port()
    server = subprocess.Popen(
        [program, "--host", "127.0.0.1", "--port", str(port), "--quiet", search.storage],
        stderr=subprocess.PIPE,
    )
    try:
        wait_for(lambda: answers(port) or server.poll() is not None, 120)
        assert server.poll() is None, server.stderr and server.stderr.read()
        (found,) = fetch(port, "/api/studies")["study_summaries"]
        assert found["study_name"] == "t"
        trials = fetch(port, f"/api/studies/{found['study_id']}?after=0")["trials"]
        assert [(trial["number"], trial["state"]) for trial in trials] == [
            (0, "Complete"),
            (1, "Pruned"),
        ]
        assert trials[0]["values"] == [0.5]
        assert {"key": "reason", "value": "loss is nan"} in trials[1]["user_attrs"]
    finally:
        server.terminate()
        server.wait(30)
        assert server.stderr is not None
        server.stderr.close()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def fetch(port: int, path: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=60) as reply:
        found: dict[str, Any] = json.load(reply)
    return found
