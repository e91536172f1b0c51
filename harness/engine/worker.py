"""Run one stage against the store (lock, work folder, commit), alike inline, in the pool and on
Ray; and the long-lived process that does so for the pool.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from harness.engine.graph import Node
from harness.engine.stages import STAGES, function_of
from harness.engine.store import Store
from harness.files import hash_tree
from harness.records import (
    SCHEMA_VERSION,
    HarnessError,
    StageRecord,
    StageTask,
    content_hash,
    redact,
)
from harness.study.tasks import Runtime

State = Literal["done", "partial", "failed", "busy"]
PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "numpy", "selm-harness"),
    *("lm-eval", "alpaca-eval", "fschat"),
)
X86_64 = ("x86_64", "amd64")
KERNELS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
"""The instruction set that torch, oneDNN and MKL are kept to on x86-64. Left to themselves they
take the widest that a processor has, add in another order, and train another pocket base.
"""


@dataclass(frozen=True)
class Result:
    """How one attempt at a stage ended."""

    key: str
    state: State
    seconds: float = 0.0
    message: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)


def run_stage(store: Store, node: Node, *, restore: bool = False) -> Result:
    """Do one stage unless it is done or being done. A stage's failure is stored, not raised.
    restore: make the dropped weights of a committed one again.
    """
    started = time.monotonic()
    return replace(_locked(store, node, restore), seconds=time.monotonic() - started)


def _locked(store: Store, node: Node, restore: bool) -> Result:
    """The same, not timed."""
    try:
        with store.lock(node.key) as mine:
            if not mine:
                return Result(node.key, "busy")
            if store.has(node.key) and not restore:
                return Result(node.key, "done")
            try:
                return _attempt(store, node, restore)
            except HarnessError as error:
                return failed(store, node, str(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the study goes on
                reason = f"{type(error).__name__}: {error}"
                return failed(store, node, reason, traceback.format_exc())
    except HarnessError as error:  # the lease could not be taken: full disk, read-only store
        return failed(store, node, str(error))


def _attempt(store: Store, node: Node, restore: bool) -> Result:
    inputs, incomplete = _inputs(store, node)
    work = store.begin(node.key)
    wall, cpu = time.perf_counter(), time.process_time()
    with _threads(getattr(node.settings, "threads", 1)):
        runtime = runtime_of(node.runtime)
        task = StageTask(node.key, node.stage, node.settings, inputs, work, runtime)
        outcome = function_of(node.stage)(task)
    seconds = time.perf_counter() - wall
    costs = {**outcome.costs, "seconds": seconds, "cpu_seconds": time.process_time() - cpu}
    if outcome.errors or incomplete:
        note = f"its input {incomplete} is incomplete"
        if outcome.errors:
            note = f"{outcome.errors} of {outcome.rows} rows ended in error"
        info = {"stage": node.stage, "rows": outcome.rows, "errors": outcome.errors}
        store.keep_partial(work, node.key, info | {"note": note, "costs": costs})
        return Result(node.key, "partial", message=note, costs=costs)
    sources = node.inputs.items()
    record = StageRecord(
        SCHEMA_VERSION,
        node.key,
        node.stage,
        node.version,
        dict(node.defining),
        dict(node.inputs),
        {name: content_hash(dict(store.record(key).files)) for name, key in sources},
        hash_tree(work),
        outcome.rows,
        costs,
        dict(outcome.summary),
        environment(),
        left_out=[vars(one) for one in outcome.left_out],
    )
    if restore:
        store.restore_model(node.key, work, record)
    else:
        store.commit(work, record)
    return Result(node.key, "done", costs=costs)


def _inputs(store: Store, node: Node) -> tuple[dict[str, Path], str]:
    """Folders of the inputs, which are as they were committed; the name of an incomplete one."""
    folders, incomplete = {}, ""
    for name, key in node.inputs.items():
        which = f"input {name} ({key[:12]}) of stage {node.stage}"
        if store.has(key):
            altered = store.altered(key)
            if altered:
                raise HarnessError(
                    f"{which} is not what was committed: {', '.join(altered)} changed or missing; "
                    f"`selm verify` names what depends on it, `selm invalidate {key[:12]}` lets it "
                    "be made again"
                )
            folders[name] = store.folder(key)
        elif STAGES[node.stage].reads_partial and store.partial_folder(key).is_dir():
            folders[name], incomplete = store.partial_folder(key), name
        else:
            raise HarnessError(f"{which} is not in the store")
    return folders, incomplete


def failed(store: Store, node: Node, reason: str, trace: str = "") -> Result:
    """Note why a stage failed, without secrets."""
    reason = redact(reason)
    with contextlib.suppress(HarnessError, OSError):  # a full disk must not hide the reason
        store.fail(node.key, node.stage, reason, redact(trace))
    return Result(node.key, "failed", message=reason)


def runtime_of(runtime: Runtime) -> Runtime:
    """The runtime settings with ``device`` resolved to ``cpu`` or ``cuda``."""
    if runtime.device != "auto":
        return runtime
    torch = sys.modules.get("torch")
    device = "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
    return runtime.model_copy(update={"device": device})


def environment() -> dict[str, Any]:
    """Host, time and versions: kept beside the numbers, never in a key."""
    torch = sys.modules.get("torch")
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        # The instruction set that torch's CPU kernels use; empty before its import.
        "kernels": str(torch.backends.cpu.get_cpu_capability()) if torch is not None else "",
        "finished": time.time(),
        "versions": dict(_versions()),
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Once a process: reading nine packages' metadata takes 15 ms."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch threads for one stage; the worker's setting comes back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- the long-lived worker process ---------------------------------------------
def prepare_environment(hub: bool) -> None:
    """Set before heavy imports: one thread, one instruction set, no hub unless named."""
    if platform.machine().lower() in X86_64:
        os.environ.update(KERNELS)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not hub:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def worker_main(connection: Connection, root: str, log: str, device: str, hub: bool) -> None:
    """A pool worker's loop: (node, restore) → its result; None or a lost parent ends it."""
    prepare_environment(hub)
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()
    store = Store(Path(root))
    while True:
        try:
            message = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if message is None:
            return
        node, restore = message
        connection.send(run_stage(store, node, restore=restore))


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)
