"""Where stages run besides this process: in a pool of long-lived local workers (one per core, or
per device), or on the machines of a Ray cluster. What is done, by whom, and whether it counts is
decided by the store's locks and records alike.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.engine.graph import Node
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.engine.worker import Result, failed, prepare_environment, run_stage, worker_main
from harness.records import HarnessError, first_line

LOST_WORKER_RETRIES, LOST_NODE_RETRIES = 2, 3
"""Times a stage is started again after what it ran on was lost."""
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
    """A worker. lent: key of the stage of another worker that uses this one's device, while its own
    process has ended.
    """

    process: Any
    connection: Connection
    device: str
    node: Node | None = None
    restore: bool = False
    policy: str = ""
    lent: str = ""


class Pool:
    """Spawned workers that import once and live for the whole study.

    Beside devices there are as many workers without one (at most ``workers``), for judging and
    data. A training stage of several processes waits until so many devices are free, which nothing
    new takes meanwhile; the workers of the further ones end, so that their memory is free too, and
    start again afterwards.
    """

    def __init__(
        self, store: Store, workers: int, devices: Sequence[str] = (), hub: bool = False
    ) -> None:
        self.store, self._hub, self._devices = store, hub, len(devices)
        self._context = multiprocessing.get_context("spawn")
        self._lost: dict[str, int] = {}
        self._queued: tuple[Node, bool] | None = None
        self._refused: list[Result] = []
        (store.root / "logs").mkdir(parents=True, exist_ok=True)
        workers = max(1, workers)
        names = [*devices, *[NO_DEVICE] * min(workers, len(devices))] or [""] * workers
        self._slots = [self._start(device) for device in names]

    def _start(self, device: str) -> _Slot:
        ours, theirs = self._context.Pipe()
        log = self.store.root / "logs" / f"worker-{os.getpid()}-{time.monotonic_ns()}.log"
        told = (theirs, str(self.store.root), str(log), device, self._hub)
        process = self._context.Process(target=worker_main, args=told, daemon=True)
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
        """To a worker that has the stage's policy loaded, where there is one."""
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
        busy = [slot.connection for slot in self._slots if slot.node is not None]
        ready = set(wait(busy, 0 if results else timeout))
        for index, slot in enumerate(self._slots):
            node = slot.node
            if slot.connection not in ready or node is None:
                continue
            try:
                results.append(slot.connection.recv())
                slot.node = None
            except (EOFError, OSError):
                results += self._replace(index, node)
        return self._settled(results)

    def _settled(self, results: list[Result]) -> list[Result]:
        """Take back what ended stages had borrowed, and start the stage that waited for it."""
        ended = {result.key for result in results}
        for index, slot in enumerate(self._slots):
            if slot.lent in ended:
                self._slots[index] = self._start(slot.device)
        self._start_queued()
        return results

    def _replace(self, index: int, node: Node) -> list[Result]:
        """A worker died: start another and give it the same stage, a bounded number of times."""
        dead = self._slots[index]
        dead.process.join(1)
        self._slots[index] = started = self._start(dead.device)
        self._lost[node.key] = self._lost.get(node.key, 0) + 1
        if self._lost[node.key] > LOST_WORKER_RETRIES:
            how = f"{self._lost[node.key]} times (exit code {dead.process.exitcode})"
            return [failed(self.store, node, f"its worker died {how}; out of memory?")]
        self._give([started], node, dead.restore)
        return []

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


# -- Ray -------------------------------------------------------------------------------------------
ADDRESS_VARIABLE, AUTH_VARIABLE = "RAY_ADDRESS", "RAY_AUTH_MODE"


def run_remote(root: str, node: Node, restore: bool, hub: bool) -> Result:
    """The body of a task on its node: what an inline run does with this stage."""
    prepare_environment(hub)
    return run_stage(Store(Path(root)), node, restore=restore)


class RayExecutor:
    """Runs stages as Ray tasks, at most ``workers`` at a time. Attaches to ``RAY_ADDRESS``, else
    starts Ray on this machine. The store's root has to be one POSIX folder that every node sees
    under the same path.

    A stage takes one CPU, and one GPU when it uses an accelerator and the cluster has any; training
    takes as many of both as ``runtime.processes``. A stage that asks for more than any node has
    fails at once.
    """

    def __init__(self, store: Store, workers: int, hub: bool = False) -> None:
        try:
            import ray
        except ImportError as error:
            says = '--executor ray needs the package ray: pip install -e ".[ray]"'
            raise HarnessError(says) from error
        self.ray, self.store, self.workers, self.hub = ray, store, max(1, workers), hub
        self._folder = ""
        self._owned = not ray.is_initialized()
        if self._owned:
            self._connect(os.environ.get(ADDRESS_VARIABLE, "") or "local")
        self._remote = ray.remote(run_remote)
        self._tasks: dict[Any, Node] = {}
        self._refused: list[Result] = []

    def _connect(self, address: str) -> None:
        """Attach to the cluster that the environment names, or start one that ends with us."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            # The paths of Ray's sockets, below its folder, may have about 100 characters only.
            short = "/tmp" if os.path.isdir("/tmp") else None
            self._folder = tempfile.mkdtemp(prefix="ray", dir=short)
            # Nobody else reaches it; a cluster's own setting is left as it is.
            os.environ.setdefault(AUTH_VARIABLE, "disabled")
            options |= {"num_cpus": self.workers, "_temp_dir": self._folder}
            options["include_dashboard"] = False
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdigit() and "/" not in host:
                # Where nobody listens there, Ray would end the whole process.
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            self.ray.init(address=address, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise HarnessError(
                f"Ray at {address!r} cannot be reached ({first_line(error)}). Start it with "
                f"`ray start`, or unset {ADDRESS_VARIABLE} to run on this machine; with token "
                f"authentication on, driver and nodes need the same {AUTH_VARIABLE} and token"
            ) from error

    def needs(self, node: Node) -> dict[str, float]:
        """What a stage asks the cluster for."""
        devices = devices_needed(node) if self._most("GPU") > 0 else 0
        processes = node.runtime.processes if node.stage == "train" else 1
        return {"num_cpus": float(processes), "num_gpus": float(devices)}

    def _most(self, resource: str) -> float:
        """The most that any living node has in all: a task cannot be split over nodes."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return max((float(has.get(resource, 0.0)) for has in alive), default=0.0)

    def too_much(self, node: Node) -> str:
        """Why a stage can never run here, or nothing."""
        for asked, resource in zip(self.needs(node).values(), ("CPU", "GPU"), strict=True):
            most = self._most(resource)
            if asked > most:
                return (
                    f"stage {node.stage} asks for {asked:g} {resource}, but no node of the cluster "
                    f"has more than {most:g}; ask for less or add a node"
                )
        return ""

    def takes(self, node: Node) -> bool:  # noqa: ARG002
        return True

    def free(self) -> int:
        return max(0, self.workers - len(self._tasks) - len(self._refused))

    def submit(self, node: Node, restore: bool) -> None:
        refused = self.too_much(node)
        if refused:
            self._refused.append(failed(self.store, node, refused))
            return
        options: dict[str, Any] = dict(self.needs(node))
        if options["num_gpus"]:
            # Processes of their own: torch settles on its devices once.
            options["runtime_env"] = {"env_vars": {"SELM_ACCELERATOR": "1"}}
        else:
            node = replace(node, runtime=node.runtime.model_copy(update={"device": "cpu"}))
        options |= {"max_retries": LOST_NODE_RETRIES, "retry_exceptions": False}
        task = self._remote.options(**options, name=f"{node.stage} {node.key[:12]}")
        self._tasks[task.remote(str(self.store.root.resolve()), node, restore, self.hub)] = node

    def collect(self, timeout: float) -> list[Result]:
        results, self._refused = self._refused, []
        if results or not self._tasks:
            return results
        for reference in self.ray.wait(list(self._tasks), num_returns=1, timeout=timeout)[0]:
            node = self._tasks.pop(reference)
            try:
                results.append(self.ray.get(reference))
            except self.ray.exceptions.RayError as error:
                why = f"{type(error).__name__}: {first_line(error)}"
                times = f"{LOST_NODE_RETRIES + 1} times ({why}); out of memory?"
                reason = f"its node or process was lost {times}"
                results.append(failed(self.store, node, reason))
        return results

    def close(self) -> None:
        """Cancel what still runs and leave the cluster (a local one ends)."""
        for reference in list(self._tasks):
            self.ray.cancel(reference, force=True)
        self._tasks.clear()
        if self._owned:
            self.ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
