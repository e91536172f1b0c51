"""The graph over Ray: the same bytes as inline, a lost node only delays, and what a cluster cannot
give is said at once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.engine.execute import Inline, execute
from harness.engine.graph import Node, Plan
from harness.engine.launch import prepare
from harness.engine.store import Store, hash_file
from harness.records import HarnessError
from tests.processes import selm

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "tests" / "e2e.yaml"

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    ray.shutdown()


def opened(path: Path) -> Store:
    store = Store(path)
    store.open()
    return store


def contents(store: Store, plan: Plan) -> dict[str, str]:
    """Hash of every file of every stage, by stage's key and name; log lines and times are in none
    of them.
    """
    return {
        f"{key[:12]} {path.name}": hash_file(path)
        for key in plan.nodes
        for path in sorted(store.folder(key).rglob("*.parquet"))
    }


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, str]]:
    """The study done inline, in a process of its own so that its thread settings stay there."""
    root = tmp_path_factory.mktemp("inline")
    where = ("--store", root / "store", "--results", root)
    selm("run", STUDY, "--executor", "inline", "--no-report", *where)
    plan = prepare(STUDY, {})
    return plan, contents(Store(root / "store"), plan)


@pytest.mark.slow
def test_two_drivers_through_ray_do_each_stage_once_and_equal_inline_byte_for_byte(
    inline: tuple[Plan, dict[str, str]], tmp_path: Path
) -> None:
    plan, expected = inline
    command = [sys.executable, "-m", "harness.cli", "run", str(STUDY), "--no-report"]
    command += ["--executor", "ray", "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    opened(tmp_path / "store")
    drivers = [
        subprocess.Popen(
            [*command, "--store", str(tmp_path / "store"), "--results", str(tmp_path / name)],
            cwd=ROOT,
            env=environment,
            stdout=-1,
            stderr=-2,
            text=True,
        )
        for name in ("one", "two")
    ]
    said = [driver.communicate(timeout=300)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said[0][-2000:] + said[1][-2000:]
    counts = [re.search(r"(\d+) stages executed, (\d+) reused, 0 failed", text) for text in said]
    assert sum(int(count.group(1)) for count in counts if count) == len(plan.nodes)
    assert all(int(count.group(1)) > 0 for count in counts if count)
    assert len(expected) >= 10
    assert contents(Store(tmp_path / "store"), plan) == expected


@pytest.mark.slow
def test_a_node_removed_in_the_middle_delays_but_changes_nothing(
    inline: tuple[Plan, dict[str, str]],
    tmp_path: Path,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.cluster_utils import Cluster

    from harness.engine.pool import RayExecutor

    plan, expected = inline
    store = opened(tmp_path / "store")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    doomed = cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    executor = RayExecutor(store, 2)
    removed = threading.Event()

    def listener(node: Any, result: Any) -> None:
        if result is None and node.stage == "train" and not removed.is_set():
            removed.set()
            threading.Timer(1.0, cluster.remove_node, (doomed,)).start()

    try:
        summary = execute(plan, store, executor, listener)
    finally:
        executor.close()
        cluster.shutdown()
    assert removed.is_set()
    assert summary.exit_status == 0, summary.failed
    assert contents(store, plan) == expected


@pytest.mark.slow
def test_a_stage_that_asks_for_more_than_any_node_has_fails_at_once(
    tmp_path: Path, environment: None
) -> None:
    from harness.engine.pool import RayExecutor

    plan, store = prepare(STUDY, {}), opened(tmp_path / "store")

    class Greedy(RayExecutor):
        def needs(self, node: Node) -> dict[str, float]:
            cpus = {"num_cpus": 4096.0} if node.stage == "data.pocket" else {}
            return super().needs(node) | cpus

    executor = Greedy(store, 1)
    started = time.perf_counter()
    try:
        summary = execute(plan, store, executor)
    finally:
        executor.close()
    assert time.perf_counter() - started < 10
    assert [
        reason
        for reason in summary.failed.values()
        if "data.pocket asks for 4096 CPU, but no node of the cluster has more than" in reason
    ]
    assert len(summary.blocked) == len(plan.nodes) - len(summary.failed)
    assert any("4096 CPU" in str(store.failure(key).get("reason")) for key in summary.failed)


def test_a_cluster_that_is_not_there_is_a_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.engine.pool import RayExecutor

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(HarnessError, match="unset RAY_ADDRESS"):
        RayExecutor(Store(tmp_path), 1)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.engine.pool import RayExecutor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HarnessError, match=r"\.\[ray\]"):
        RayExecutor(Store(tmp_path), 1)
    assert Inline(Store(tmp_path)).free() == 1
