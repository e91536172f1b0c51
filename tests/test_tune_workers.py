"""Several workers on one search: no trial lost or doubled, shared stages run once, a killed worker's trial tried again or marked.

PostgreSQL is Debian's server on loopback, started here; where it is not installed these tests skip and say so.
"""

from __future__ import annotations

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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

from analysis.search import trials_table
from harness.store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
TRIALS = 16
SEARCH = """\
name: t
recipe: RECIPE
set: {loop.iterations: 1, evaluation.benchmarks: [heldout], diagnostics.enabled: false}
space:
  objective.alpha: {log_uniform: [0.01, 10]}
  pairs.rule: {choice: [best_worst, replace]}
seeds: [0, 1]
fresh_seeds: [7, 8, 9]
trials: 16
pruner: none
"""


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Address of a server of our own; it refuses to run as root, so root runs it as the user ``postgres``."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL server at /usr/lib/postgresql/*/bin (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="the extra [postgresql] is not installed")
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root and there is no user postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.run([programs[-1] / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "-N"],
                   check=True, capture_output=True, cwd=folder, **user)  # type: ignore[call-overload]  # fmt: skip
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off", "-p", str(port)]
    with open(os.devnull, "wb") as nothing:
        server = subprocess.Popen([programs[-1] / "postgres", "-D", folder / "data", *options], cwd=folder, stderr=nothing, stdout=nothing, **user)  # type: ignore[call-overload]
    try:
        wait_for(
            lambda: (
                subprocess.run([programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True, check=False).returncode == 0
            )
        )
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(ready: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@dataclass
class Run:
    """One search by two worker processes."""

    folder: Path
    storage: str

    def start(self) -> subprocess.Popen[bytes]:
        path = self.folder / "t.yaml"
        path.write_text(SEARCH.replace("RECIPE", str(ROOT / "ablations" / "recipes" / "pocket.yaml")))
        command = [sys.executable, "-m", "tests.tune_world", str(path), str(self.folder / "store"), self.storage, "2"]
        environment = {**os.environ, "TUNE_WORLD_LOG": str(self.folder / "log"), "OMP_NUM_THREADS": "1"}
        with open(self.folder / "output", "wb") as output:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="t", storage=self.storage)

    def executions(self) -> Counter[str]:
        return Counter(line.split()[0] for line in (self.folder / "log").read_text().splitlines())


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
    assert run.start().wait(90) == 0, (tmp_path / "output").read_text()[-2000:]
    trials = run.study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * TRIALS
    assert sorted(trial.number for trial in trials) == list(range(TRIALS))
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    executed = run.executions()
    assert set(executed.values()) == {1}, "a stage ran twice"
    assert sorted(executed) == Store(tmp_path / "store").all_keys()
    assert run.start().wait(60) == 0
    assert len(run.study().trials) == TRIALS, "the same command again added trials"
    assert run.executions() == executed


def test_ten_kills_lose_no_trial(tmp_path: Path, storage: str) -> None:
    run, rng, kills = Run(tmp_path, storage), random.Random(0), 0
    search = run.start()
    wait_for(lambda: (tmp_path / "log").exists())
    while search.poll() is None and kills < 10:
        time.sleep(rng.uniform(0.1, 1.2))
        alive = workers(search.pid) if search.poll() is None else []
        if alive:
            os.kill(rng.choice(alive), signal.SIGKILL)
            kills += 1
    assert search.wait(90) == 0, (tmp_path / "output").read_text()[-2000:]
    study = run.study()
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] == TRIALS
    assert set(states) <= {"COMPLETE", "FAIL"}
    lost = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert kills == 10
    assert lost, "no kill hit a trial"
    assert all("worker died" in reason for reason in trials_table(study).set_index("trial").loc[[t.number for t in lost], "reason"])
    retried = {number for trial in study.trials for number in trial.system_attrs.get("retry_history", [])}
    assert retried or len(lost) < 3, "lost trials are queued again while the budget is open"
    executed, store = run.executions(), Store(tmp_path / "store")
    assert sum(executed.values()) - len(executed) <= kills
    store.open()
    assert set(store.all_keys()) <= set(executed)
    assert store.verify() == []
