"""Which workers a stage takes: one for a device each, all that a training of several processes asks
for, none for judging.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.engine.graph import Node
from harness.engine.pool import GRACE_S, NO_DEVICE, Pool, RayExecutor, devices_needed
from harness.engine.store import Store
from harness.engine.worker import Result
from harness.study.sections import Section
from harness.study.tasks import Generating, Nothing, Runtime
from tests.tasks import settings_of


class Process:
    """Stands in for a worker's process and for our end of its pipe."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.alive = True
        self.ended: list[str] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)
        self.alive = message is not None

    def join(self, seconds: float = 0) -> None:
        self.ended.append(f"join {seconds:g}")

    def is_alive(self) -> bool:
        return self.alive

    def terminate(self) -> None:
        self.ended.append("terminate")

    def kill(self) -> None:
        self.ended.append("kill")
        self.alive = False

    def close(self) -> None: ...


class Fake(Pool):
    """A pool without processes: ``finish`` answers for a worker."""

    def _start(self, device: str) -> Any:
        from harness.engine.pool import _Slot

        process = Process()
        return _Slot(process, process, device)  # type: ignore[arg-type]

    def collect(self, timeout: float) -> list[Result]:
        return self._settled(list(self._refused))

    def running(self) -> dict[str, str]:
        """Device of the worker of every stage under way."""
        return {slot.node.key: slot.device for slot in self._slots if slot.node is not None}

    def finish(self, key: str) -> None:
        slot = next(slot for slot in self._slots if slot.node is not None and slot.node.key == key)
        slot.node = None
        self._settled([Result(key, "done")])

    def sent(self, key: str) -> Node:
        return next(
            message[0]
            for slot in self._slots
            for message in slot.connection.sent
            if message and message[0].key == key
        )  # type: ignore[attr-defined]


def node(key: str, stage: str, settings: Section | None = None, **runtime: Any) -> Node:
    told = Runtime(**{"device": "auto", **runtime})
    return Node(key, stage, 1, settings or Nothing(), {}, {}, told)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.mark.parametrize(
    ("stage", "runtime", "devices"),
    [
        ("train", {"processes": 4}, 4),
        ("train", {}, 1),
        ("train", {"processes": 4, "device": "cpu"}, 0),
        ("rollout", {"processes": 4}, 1),
        ("judge.mt_bench", {"processes": 4}, 0),
        ("data.files", {}, 0),
    ],
)
def test_devices_of_a_stage(stage: str, runtime: dict[str, Any], devices: int) -> None:
    assert devices_needed(node("a", stage, **runtime)) == devices


def test_vllm_samples_on_the_devices_of_its_engines(store: Store) -> None:
    """Two engines of two devices each; what scores by transformers, and the CPU, need no more."""
    store.open()
    drawing = Generating(
        threads=1, dtype="float32", attention="sdpa", generation_batch=8, backend="vllm"
    )
    reading = settings_of("academic", vars(drawing))
    wide = {"vllm_tensor_parallel": 2, "vllm_data_parallel": 2}
    asked = [
        devices_needed(node("a", stage, settings, **wide, **more))
        for stage, settings, more in (
            ("answer", drawing, {}),
            ("answer", drawing, {"device": "cpu"}),
            ("answer", drawing.model_copy(update={"backend": "transformers"}), {}),
            ("academic", reading, {}),
            ("academic", reading.model_copy(update={"engine": "vllm"}), {}),
        )
    ]
    assert asked == [4, 0, 1, 1, 4]
    pool = Fake(store, 1, ["0", "1", "2", "3"])
    pool.submit(node("a", "rollout", drawing, **wide), False)
    assert pool.sent("a").runtime.devices == "0,1,2,3"


def test_judging_leaves_the_devices_to_others(store: Store) -> None:
    pool = Fake(store, 8, ["0", "1"])
    for key, stage in {
        "a": "judge.mt_bench",
        "b": "rollout",
        "c": "answer",
        "d": "judge.alpaca_eval",
    }.items():
        assert pool.takes(node(key, stage))
        pool.submit(node(key, stage), False)
    assert pool.running() == {"a": NO_DEVICE, "b": "0", "c": "1", "d": NO_DEVICE}
    assert not pool.takes(node("e", "rollout"))
    assert not pool.takes(node("e", "data.files"))
    pool.finish("b")
    assert pool.takes(node("e", "data.files")), (
        "a device's worker judges too when nothing else is to do"
    )


def test_training_over_three_devices_waits_for_them_and_gives_them_back(store: Store) -> None:
    pool = Fake(store, 1, ["4", "5", "6"])
    pool.submit(node("a", "rollout"), False)
    wide = node("wide", "train", processes=3)
    assert pool.takes(wide)
    pool.submit(wide, False)
    assert pool.running() == {"a": "4"}
    assert not pool.takes(node("b", "rollout")), "nothing new delays what waits"
    assert not pool.takes(replace(wide, key="second"))
    assert pool.takes(node("c", "judge.mt_bench"))
    pool.submit(node("c", "judge.mt_bench"), False)
    pool.finish("a")
    assert pool.running() == {"wide": "4", "c": NO_DEVICE}
    assert pool.sent("wide").runtime.devices == "4,5,6"
    lent = [slot for slot in pool._slots if slot.lent]
    assert [slot.device for slot in lent] == ["5", "6"]
    assert not any(slot.process.is_alive() for slot in lent), "their memory is free for the ranks"
    assert not pool.takes(node("b", "rollout"))
    pool.finish("wide")
    assert not any(slot.lent for slot in pool._slots)
    assert all(slot.process.is_alive() for slot in pool._slots)
    assert pool.takes(node("b", "rollout"))
    pool.close()


def test_two_of_four_devices_leave_two(store: Store) -> None:
    pool = Fake(store, 1, ["0", "1", "2", "3"])
    for key in ("a", "b"):
        pool.submit(node(key, "train", processes=2), False)
    assert {key: pool.sent(key).runtime.devices for key in ("a", "b")} == {"a": "0,1", "b": "2,3"}


def test_more_devices_than_there_are_fails_at_once(store: Store) -> None:
    store.open()
    pool = Fake(store, 1, ["0", "1"])
    pool.submit(node("0" * 64, "train", processes=3), False)
    assert pool.free() == 0
    (result,) = pool.collect(0.0)
    assert result.state == "failed"
    assert "asks for 3 devices (runtime.processes" in result.message
    assert "this machine has 2" in result.message


def test_without_devices_processes_take_one_worker(store: Store) -> None:
    pool = Fake(store, 2, [])
    assert pool.free() == 2
    pool.submit(node("a", "train", processes=2), False)
    assert pool.running() == {"a": ""}
    assert pool.free() == 1
    assert not pool.sent("a").runtime.devices


def test_ray_asks_for_a_gpu_and_a_core_per_training_process() -> None:
    executor = object.__new__(RayExecutor)
    executor._most = {"GPU": 4.0, "CPU": 16.0, "memory": 0.0}.get  # type: ignore[method-assign,assignment]
    assert executor.needs(node("a", "train", processes=4)) == {"num_cpus": 4.0, "num_gpus": 4.0}
    assert executor.needs(node("a", "rollout", processes=4)) == {"num_cpus": 1.0, "num_gpus": 1.0}
    assert executor.needs(node("a", "judge.mt_bench")) == {"num_cpus": 1.0, "num_gpus": 0.0}
    assert not executor.too_much(node("a", "train", processes=4))
    assert (
        "stage train asks for 8 GPU, but no node of the cluster has more than 4"
        in executor.too_much(node("a", "train", processes=8))
    )
    executor._most = {"GPU": 0.0, "CPU": 1.0, "memory": 0.0}.get  # type: ignore[method-assign,assignment]
    assert executor.needs(node("a", "train", processes=2)) == {"num_cpus": 2.0, "num_gpus": 0.0}
    assert "asks for 2 CPU" in executor.too_much(node("a", "train", processes=2))


def test_a_pool_that_closes_waits_for_what_trains_and_asks_what_is_idle(store: Store) -> None:
    store.open()
    pool = Fake(store, 2)
    pool.submit(node("a", "train"), False)
    busy, idle = (slot.process for slot in pool._slots)
    pool.close()
    assert busy.ended == ["terminate", f"join {GRACE_S:g}", "kill", "join 0"]
    assert idle.ended == ["join 0.5"]


def test_a_second_sigterm_does_not_change_the_status_of_a_process_that_is_at_its_end() -> None:
    told = """
import os, signal, sys
from harness.engine.execute import terminable
try:
    with terminable():
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(130)
"""
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 130
