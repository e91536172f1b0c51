"""A pool of long-lived local workers, and which of them a stage takes: one per core, or one per
device.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from harness.engine.graph import Node
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.engine.worker import Result, failed, worker_main

LOST_WORKER_RETRIES = 2
GRACE_S = 100.0
"""For the checkpoint of a worker that trains, below the 120 seconds before the end at which
``clusters/study.sbatch`` asks for the signal.
"""
NO_DEVICE = "-1"
"""Device of a worker that sees no accelerator (as CUDA_VISIBLE_DEVICES)."""


def devices_needed(node: Node) -> int:
    """Accelerators a stage uses at once: none, one, one a training process, or vLLM's engines'."""
    if not STAGES[node.stage].accelerator or node.runtime.device == "cpu":
        return 0
    if node.stage == "train":
        return node.runtime.processes
    return node.runtime.vllm_devices if getattr(node.settings, "by_vllm", False) else 1


@dataclass
class _Slot:
    process: Any
    connection: Connection
    device: str
    node: Node | None = None
    restore: bool = False
    policy: str = ""
    lent: str = ""
    """Key of the stage of another worker that uses this one's device; its own process has ended
    meanwhile.
    """


class Pool:
    """Spawned workers that import once and live for the whole study: one per core, or one per
    device.

    Beside devices there are as many workers without one (at most ``workers``), for judging and
    data. A training stage of several processes waits until so many devices are free, which nothing
    new takes meanwhile; the workers of the further ones end, so that their memory is free too, and
    start again afterwards.
    """

    def __init__(
        self, store: Store, workers: int, devices: Sequence[str] = (), hub: bool = False
    ) -> None:
        self.store = store
        self._context = multiprocessing.get_context("spawn")
        self._hub = hub
        self._lost: dict[str, int] = {}
        (store.root / "logs").mkdir(parents=True, exist_ok=True)
        workers = max(1, workers)
        names = [*devices, *[NO_DEVICE] * min(workers, len(devices))] or [""] * workers
        self._devices = len(devices)
        self._queued: tuple[Node, bool] | None = None
        self._refused: list[Result] = []
        self._slots = [self._start(device) for device in names]

    def _start(self, device: str) -> _Slot:
        ours, theirs = self._context.Pipe()
        log = self.store.root / "logs" / f"worker-{os.getpid()}-{time.monotonic_ns()}.log"
        process = self._context.Process(
            target=worker_main,
            args=(theirs, str(self.store.root), str(log), device, self._hub),
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Slot(process, ours, device)

    def _needs(self, node: Node) -> int:
        return devices_needed(node) if self._devices else 0

    def _idle(self, needs: int) -> list[_Slot]:
        """Workers free for a stage of so many devices. One of none goes to those without a device
        first, and to no device that is waited for.
        """
        idle = [slot for slot in self._slots if slot.node is None and not slot.lent]
        if not self._devices:
            return idle
        with_device = [slot for slot in idle if slot.device != NO_DEVICE]
        if needs:
            return with_device
        without = [slot for slot in idle if slot.device == NO_DEVICE]
        return without if self._queued else without + with_device

    def free(self) -> int:
        return len(self._idle(0)) if not self._refused else 0

    def takes(self, node: Node) -> bool:
        """Whether it can be submitted now: to start, to queue for its devices, or to be refused."""
        needs = self._needs(node)
        if needs > 1:
            return self._queued is None
        return bool(self._idle(needs)) and not (needs and self._queued)

    def submit(self, node: Node, restore: bool) -> None:
        needs = self._needs(node)
        if needs > self._devices:
            reason = (
                f"stage {node.stage} asks for {needs} devices (runtime.processes, or "
                f"runtime.vllm_tensor_parallel × vllm_data_parallel), but this machine has "
                f"{self._devices}; ask for less, or use --executor ray on nodes with so many"
            )
            self._refused.append(failed(self.store, node, reason))
        elif needs > 1:
            self._queued = (node, restore)
            self._start_queued()
        else:
            self._give(self._idle(needs), node, restore)

    def _give(self, idle: Sequence[_Slot], node: Node, restore: bool) -> None:
        policy = node.inputs.get("policy", "")
        slot = next((s for s in idle if s.policy == policy), idle[0])
        slot.node, slot.restore, slot.policy = node, restore, policy
        slot.connection.send((node, restore))

    def _start_queued(self) -> None:
        """Start the queued stage once enough devices are free: one worker runs it, the others'
        processes end for as long.
        """
        if self._queued is None:
            return
        node, restore = self._queued
        idle = self._idle(self._needs(node))[: self._needs(node)]
        if len(idle) < self._needs(node):
            return
        self._queued = None
        for slot in idle[1:]:
            slot.lent = node.key
            self._end(slot)
        devices = ",".join(slot.device for slot in idle)
        node = replace(node, runtime=node.runtime.model_copy(update={"devices": devices}))
        self._give(idle[:1], node, restore)

    def collect(self, timeout: float) -> list[Result]:
        results, self._refused = self._refused, []
        busy = [slot for slot in self._slots if slot.node is not None]
        waited = wait([slot.connection for slot in busy], 0 if results else timeout)
        ready = set(waited)
        for index, slot in enumerate(self._slots):
            if slot.connection not in ready or slot.node is None:
                continue
            try:
                results.append(slot.connection.recv())
                slot.node = None
            except (EOFError, OSError):
                lost = self._replace(index)
                results.extend([lost] if lost else [])
        return self._settled(results)

    def _settled(self, results: list[Result]) -> list[Result]:
        """Take back what ended stages had borrowed, and start the stage that waited for it."""
        ended = {result.key for result in results}
        for index, slot in enumerate(self._slots):
            if slot.lent in ended:
                self._slots[index] = self._start(slot.device)
        self._start_queued()
        return results

    def _replace(self, index: int) -> Result | None:
        """A worker died: start another and give it the same stage, a bounded number of times."""
        slot = self._slots[index]
        slot.process.join(1)
        node, restore = slot.node, slot.restore
        assert node is not None
        self._slots[index] = self._start(slot.device)
        self._lost[node.key] = self._lost.get(node.key, 0) + 1
        if self._lost[node.key] > LOST_WORKER_RETRIES:
            how = f"{self._lost[node.key]} times (exit code {slot.process.exitcode})"
            return failed(self.store, node, f"its worker died {how}; out of memory?")
        replacement = self._slots[index]
        replacement.node, replacement.restore = node, restore
        replacement.connection.send((node, restore))
        return None

    def close(self) -> None:
        """End all workers; one that trains writes a checkpoint first."""
        ours = [slot for slot in self._slots if not slot.lent]
        for slot in ours:
            if slot.node is None:
                _dismiss(slot)
            else:
                slot.process.terminate()
        for slot in ours:
            self._end(slot)

    @staticmethod
    def _end(slot: _Slot) -> None:
        """End a worker's process, which is idle and asked, or busy and told to end."""
        if slot.node is None:
            _dismiss(slot)
        slot.process.join(0.5 if slot.node is None else GRACE_S)
        if slot.process.is_alive():
            slot.process.kill()
            slot.process.join()
        slot.connection.close()


def _dismiss(slot: _Slot) -> None:
    with suppress(OSError):
        slot.connection.send(None)
