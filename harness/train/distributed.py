"""One stage over several processes of this machine: started under torch's elastic launcher, ended
with one answer or one error; and what a model needs that they divide (FSDP2, DeepSpeed).

``run_processes`` is what a stage calls. It starts this module as a launcher (workers of a pool may
have no children of multiprocessing's, and torch's agent takes signals over), which lets torch start
one rank per process; every rank runs the same function on the same task. Ranks meet on the loopback
interface at a port that torch chooses. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from harness.files import write_atomic
from harness.records import HarnessError, StageTask, canonical_json
from harness.study.sections import RuntimeSettings
from harness.study.tasks import Runtime, TrainTask

FOLDER = "processes"
"""Below a stage's folder while its processes run: the task, their log, their errors, their answer.
"""
STOP, ANSWER, KILLED, LOG = "stop", "answer.json", "killed", "log.txt"
SHUTDOWN_SECONDS = 3
"""What the other ranks have to end once one has failed."""
DEEPSPEED = Path(__file__).parent / "deepspeed_zero3.json"
"""DeepSpeed's configuration; ``auto`` entries follow the training arguments. Unmeasured: no machine
with DeepSpeed ran it.
"""


def check_ready(runtime: RuntimeSettings, devices: int | None) -> None:
    """Raise HarnessError where training as ``runtime`` says lacks a package or devices.

    devices: accelerators that there are; 0 for the CPU, None where others will train (a cluster's
    nodes).
    """
    deepspeed = runtime.sharding == "deepspeed_zero3"
    if deepspeed and find_spec("deepspeed") is None:
        raise HarnessError(
            "runtime.sharding deepspeed_zero3 needs the package deepspeed, which is not installed: "
            "`pip install deepspeed` on a CUDA machine, or set runtime.sharding: fsdp, which "
            "divides the same things and needs nothing more"
        )
    if deepspeed and devices == 0:
        raise HarnessError(
            "runtime.sharding deepspeed_zero3 needs GPUs, and none is visible; set "
            "runtime.sharding: fsdp to train on a CPU"
        )
    if devices and runtime.processes > devices:
        raise HarnessError(
            f"a training stage asks for {runtime.processes} devices (runtime.processes), but "
            f"visible here are only {devices}; ask for less, make more visible "
            "(CUDA_VISIBLE_DEVICES), or run on a bigger node"
        )


def run_processes(function: str, task: StageTask[Any], processes: int) -> Any:
    """Run ``function`` ("module:name", called with the task) in ``processes`` ranks; returns what
    rank 0 returned (plain JSON).

    A SIGTERM is passed on by a file that the ranks look for (``stop_asked``), and delivered here
    again once they have ended. Raises HarnessError with the message of the rank that failed first.
    """
    folder = task.out / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(
        canonical_json({"function": function, "task": _told(task)}), encoding="utf-8"
    )
    with termination_noted((folder / STOP).touch):
        _launch(folder, processes, _environment(task))
    answer = folder / ANSWER
    if answer.is_file():
        found = json.loads(answer.read_text(encoding="utf-8"))
        shutil.rmtree(folder)
        return found
    if (folder / STOP).exists():
        raise SystemExit(128 + signal.SIGTERM)
    message = _reason(folder, processes)
    shutil.rmtree(folder, ignore_errors=True)
    raise HarnessError(message)


def stop_asked(out: Path) -> bool:
    """Whether the stage that works in ``out`` was told to end (for its ranks)."""
    return (out / FOLDER / STOP).exists()


def _environment(task: StageTask[TrainTask]) -> dict[str, str]:
    """Variables of the ranks: the stage's threads and devices, and this package wherever it was
    imported from.
    """
    found = dict(os.environ)
    found["OMP_NUM_THREADS"] = str(task.settings.threads)
    paths = [str(Path(__file__).parents[2]), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if task.runtime.devices:
        found["CUDA_VISIBLE_DEVICES"] = task.runtime.devices
    if sys.platform == "linux":
        # Else gloo looks the host's name up, which not every container can.
        found.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return found


def _launch(folder: Path, processes: int, environment: Mapping[str, str]) -> None:
    """Start the launcher and wait for it; it never outlives this call."""
    command = [sys.executable, "-m", "harness.train.distributed", str(folder), str(processes)]
    with open(folder / LOG, "wb") as log:
        # A session of its own: Ctrl-C of a terminal reaches this process only, which then ends the
        # others.
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()  # The ranks notice and follow.
                process.wait()


@contextlib.contextmanager
def termination_noted(note: Callable[[], None]) -> Iterator[None]:
    """Hold a SIGTERM back: the signal calls ``note``, and is delivered again afterwards."""
    asked = []

    def hold(_number: int, _frame: Any) -> None:
        asked.append(True)
        note()

    try:
        before = signal.signal(signal.SIGTERM, hold)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if asked:
        os.kill(os.getpid(), signal.SIGTERM)


def _reason(folder: Path, processes: int) -> str:
    """What went wrong, from the ranks' own words: the harness's errors first, then whoever failed
    first, then the log.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("error-*.json")]
    first = min(found, key=lambda error: (not error["known"], error["time"]), default=None)
    where = f"training over {processes} processes failed"
    if first and first["known"]:
        return str(first["message"])
    if (folder / KILLED).exists():
        return (
            f"{where}: a process was killed by the system (out of memory?); lower "
            "runtime.token_budget, or see runtime.sharding and training.lora"
        )
    if first:
        return f"{where}: process {first['rank']}: {first['message']}\n{first['traceback']}"
    log = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return f"{where} without a word; the end of its log:\n" + "\n".join(log.splitlines()[-15:])


# -- the launcher and its ranks --------------------------------------------------------------------
def _told(task: StageTask[Any]) -> dict[str, Any]:
    """A task as JSON: its typed settings with the name of their class."""
    kind = type(task.settings)
    return {
        "key": task.key,
        "stage": task.stage,
        "kind": f"{kind.__module__}:{kind.__qualname__}",
        "settings": task.settings.model_dump_json(),
        "inputs": {name: str(path) for name, path in task.inputs.items()},
        "out": str(task.out),
        "runtime": task.runtime.model_dump_json(),
    }


def _read_task(told: Mapping[str, Any]) -> StageTask[Any]:
    settings = resolve_name(told["kind"]).model_validate_json(told["settings"])
    inputs = {name: Path(path) for name, path in told["inputs"].items()}
    runtime = Runtime.model_validate_json(told["runtime"])
    return StageTask(told["key"], told["stage"], settings, inputs, Path(told["out"]), runtime)


def follow_parent() -> None:
    """End this process soon after its parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def launcher_main(folder: Path, processes: int) -> None:
    """Start the ranks, one attempt (the store retries stages). SIGTERM is left to them: they finish
    their step first.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    later: dict[str, Any] = {"shutdown_timeout": SHUTDOWN_SECONDS}  # torch 2.13
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="selm",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        **{name: value for name, value in later.items() if name in known},
    )
    try:
        elastic_launch(config, rank_main)(folder)
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode == -signal.SIGKILL:
            (folder / KILLED).touch()
        raise


def rank_main(folder: Path) -> None:
    """Run the task's function as one rank; leave rank 0's answer, or this rank's error, in the
    folder.
    """
    follow_parent()
    rank = int(os.environ["RANK"])
    told = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    task = _read_task(told["task"])
    try:
        answer = resolve_name(told["function"])(task)
    except Exception as error:
        known = isinstance(error, HarnessError)
        facts = {
            "rank": rank,
            "known": known,
            "time": time.time(),
            "message": str(error) if known else f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
        write_atomic(folder / f"error-{rank}.json", json.dumps(facts))
        raise SystemExit(1) from error
    if rank == 0:
        write_atomic(folder / ANSWER, json.dumps(answer))


# -- inside a rank ---------------------------------------------------------------------------------
def any_rank(device: Any, *flags: bool) -> list[bool]:
    """Each flag, true on every rank when it is true on any."""
    import torch

    told = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in told.tolist()]


def sharding_arguments(model: Any, sharding: str) -> dict[str, Any]:
    """Training arguments for a way of sharding; none for whole models (then data-parallel when
    there are several ranks).
    """
    if sharding == "none":
        return {}
    from harness.model.logprobs import base_model_of, output_head, plain_head

    base = base_model_of(model)
    name = f"runtime.sharding {sharding}: {type(base).__name__}"
    # Called a chunk at a time, another head would be gathered more often on one rank than another.
    if not plain_head(output_head(base)):
        raise HarnessError(
            f"{name} has a head that is scaled, capped or adapted by LoRA, which cannot be "
            "sharded here; set runtime.sharding: none"
        )
    if sharding == "deepspeed_zero3":
        return {"deepspeed": str(DEEPSPEED)}
    layers = sorted(base._no_split_modules or [])
    if not layers:
        raise HarnessError(
            f"{name} does not say which of its layers stay whole (_no_split_modules); set "
            "runtime.sharding: none"
        )
    how = {
        "version": 2,
        "transformer_layer_cls_to_wrap": layers,
        "state_dict_type": "SHARDED_STATE_DICT",
        "reshard_after_forward": True,
    }
    return {"fsdp": True, "fsdp_config": how}


def whole_state(trainer: Any) -> dict[str, Any]:
    """The divided model's weights by name, whole, on the first rank's CPU; empty on the others. All
    ranks call it.

    Raises HarnessError when the trainer did not divide the model: what was asked for is never
    silently left out.
    """
    if trainer.is_deepspeed_enabled:
        gathered: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return gathered
    from torch.distributed.tensor import DTensor

    if not all(isinstance(p, DTensor) for p in trainer.model.parameters()):
        raise HarnessError(
            "runtime.sharding was set, but the installed accelerate and transformers did not "
            "shard the model; set it to none"
        )
    found = {}
    for name, value in trainer.model.state_dict().items():
        # One weight at a time: no device holds the whole model.
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if trainer.is_world_process_zero():
            found[name] = whole.cpu()
    return found


if __name__ == "__main__":
    launcher_main(Path(sys.argv[1]), int(sys.argv[2]))
