"""What ranks do in tests instead of training: a module that loads nothing heavy."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from harness.records import StageTask
from harness.study.tasks import Runtime, Threads
from harness.train.distributed import run_processes


class Toy(Threads):
    what: str


def rank_of(task: StageTask[Toy]) -> dict[str, Any]:
    """Tell, break, die or sleep."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank = int(os.environ["RANK"])
    what = task.settings.what
    if what == "tell":
        return {
            "rank": rank,
            "ranks": os.environ["WORLD_SIZE"],
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ["OMP_NUM_THREADS"],
        }
    if what == "die" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "break" and rank == 1:
        raise ValueError("a thing went wrong")
    (task.out / f"pid-{rank}").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def toy(out: Path, what: str, **runtime: Any) -> StageTask[Toy]:
    return StageTask("k", "toy", Toy(what=what, threads=3), {}, out, Runtime(**runtime))


def run_toy(task: StageTask[Toy]) -> Any:
    return run_processes("tests.ranks:rank_of", task, 2)
