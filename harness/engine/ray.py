"""The same graph over the machines of a Ray cluster: every stage is one remote task that works on
the shared store.

The store's root has to be one POSIX folder that every node sees under the same path. Ray only says
where a stage runs; what is done, by whom, and whether it counts is decided by the store's locks and
records, as everywhere.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.engine.graph import Node
from harness.engine.pool import devices_needed
from harness.engine.store import Store
from harness.engine.worker import Result, failed, prepare_environment, run_stage
from harness.records import HarnessError, first_line

LOST_NODE_RETRIES = 3
"""Times a stage is started again after the node or process it ran on was lost."""
ADDRESS_VARIABLE = "RAY_ADDRESS"
AUTH_VARIABLE = "RAY_AUTH_MODE"


def run_remote(root: str, node: Node, restore: bool, hub: bool) -> Result:
    """The body of a task on its node: what an inline run does with this stage."""
    prepare_environment(hub)
    return run_stage(Store(Path(root)), node, restore=restore)


class RayExecutor:
    """Runs stages as Ray tasks, at most ``workers`` at a time. Attaches to ``RAY_ADDRESS``, else
    starts Ray on this machine.

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
            self._connect()
        self._remote = ray.remote(run_remote)
        self._tasks: dict[Any, Node] = {}
        self._refused: list[Result] = []

    def _connect(self) -> None:
        """Attach to the cluster that the environment names, or start one that ends with us."""
        address = os.environ.get(ADDRESS_VARIABLE, "") or "local"
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            self._folder = _short_folder()
            # Nobody else reaches it; a cluster's own setting is left as it is.
            os.environ.setdefault(AUTH_VARIABLE, "disabled")
            options |= {"num_cpus": self.workers, "_temp_dir": self._folder}
            options["include_dashboard"] = False
        try:
            _knock(address)
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

    # -- the executor's protocol -----------------------------------------------
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
        refused, self._refused = self._refused, []
        if refused or not self._tasks:
            return refused
        ready, _ = self.ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        return [self._result(reference) for reference in ready]

    def _result(self, reference: Any) -> Result:
        node = self._tasks.pop(reference)
        try:
            found: Result = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            times = LOST_NODE_RETRIES + 1
            reason = f"its node or process was lost {times} times ({why}); out of memory?"
            return failed(self.store, node, reason)
        return found

    def close(self) -> None:
        """Cancel what still runs and leave the cluster (a local one ends)."""
        for reference in list(self._tasks):
            self.ray.cancel(reference, force=True)
        self._tasks.clear()
        if self._owned:
            self.ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _knock(address: str) -> None:
    """Raise OSError when nobody listens at a ``host:port``: Ray would end the whole process."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _short_folder() -> str:
    """Ray's sockets live below its folder, and their path may have about 100 characters only."""
    return tempfile.mkdtemp(prefix="ray", dir="/tmp" if os.path.isdir("/tmp") else None)
