"""Toy stages and a toy search for the tests of searches.

``python -m tests.tune_world SEARCH STORE STORAGE WORKERS`` is a search by real worker processes
over the toy stages. Workers are spawned, so they import this file again (as ``__mp_main__``): the
toy stages take the real ones' place there too. From the environment: TUNE_WORLD_LOG, the file where
every start and end of a stage is noted; TUNE_WORLD_KILLS, numbers of starts at which the worker
kills itself; TUNE_WORLD_MEET, that many workers must have started a stage before any training ends.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness.engine import worker
from harness.records import Score, StageOutcome, StageTask, Status, write_jsonl, write_scores
from harness.tune import search as tune_open
from harness.tune import workers as tune
from harness.tune.search import Search

ROOT = Path(__file__).parent.parent
SEARCH = """\
name: t
recipe: RECIPE
set: {loop.iterations: 1, evaluation.benchmarks: [heldout], diagnostics.enabled: false}
space:
  objective.alpha: {log_uniform: [0.01, 10]}
  pairs.rule: {choice: [best_worst, replace]}
seeds: [0, 1]
fresh_seeds: [7, 8, 9]
trials: 4
"""


def make_search(folder: Path, text: str = SEARCH, storage: str = "") -> Search:
    """A search below ``folder``; ``text`` names its recipe RECIPE."""
    path = folder / "t.yaml"
    path.write_text(text.replace("RECIPE", str(ROOT / "ablations" / "recipes" / "pocket.yaml")))
    return Search(path, folder / "store", storage or f"sqlite:///{folder / 'optuna.db'}")


def toy(task: StageTask[Any], status: Status = "ok") -> StageOutcome:
    """Any stage. A held-out item scores −|log10 α| and a little more than the item before; a judge
    asks for 0.25 USD.
    """
    if task.stage == "train":
        (task.out / "alpha.jsonl").write_text(str(task.settings.objective.alpha))
    if task.stage == "answer":
        source = task.inputs["policy"] / "alpha.jsonl"
        (task.out / "alpha.jsonl").write_text(source.read_text() if source.exists() else "1")
    if task.stage in ("heldout", "judge.mt_bench"):
        size = abs(math.log10(float((task.inputs["answer"] / "alpha.jsonl").read_text())))
        benchmark, metric, value = "mt_bench", "rating", size
        if task.stage == "heldout":
            benchmark, metric, value = "heldout", "reward", -size
        values = [value + i / 100 if status == "ok" else None for i in range(8)]
        rows = [
            Score(benchmark, "1", str(i), str(i), metric, one, status)
            for i, one in enumerate(values)
        ]
        write_scores(task.out / "scores.parquet", rows)
    write_jsonl(task.out / "rows.jsonl", [{"stage": task.stage}])
    return StageOutcome(1, costs={"judge_usd": 0.25} if task.stage.startswith("judge.") else {})


def noted_toy(task: StageTask[Any]) -> StageOutcome:
    """The toy in a worker process: notes start and end, and does what the environment says."""
    started = note(f"start {task.key} {task.stage} {os.getpid()}")
    if str(started) in os.environ.get("TUNE_WORLD_KILLS", "").split(","):
        os.kill(os.getpid(), signal.SIGKILL)
    outcome = toy(task)
    if task.stage == "train":
        wanted, give_up = int(os.environ.get("TUNE_WORLD_MEET", "0")), time.monotonic() + 120
        while (
            len({line.split()[3] for line in log_lines("start")}) < wanted
            and time.monotonic() < give_up
        ):
            time.sleep(0.05)
    time.sleep(0.1 if task.stage in ("train", "data.pocket", "base.pocket") else 0.02)
    note(f"end {task.key} {task.stage} {os.getpid()}")
    return outcome


def note(line: str) -> int:
    """Append a line to the log, one process at a time; returns how many of its kind there are."""
    with open(os.environ["TUNE_WORLD_LOG"], "a+", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write(line + "\n")
        handle.flush()
        handle.seek(0)
        return sum(other.startswith(line.split()[0]) for other in handle)


def log_lines(kind: str) -> list[str]:
    path = Path(os.environ["TUNE_WORLD_LOG"])
    return (
        [line for line in path.read_text().splitlines() if line.startswith(kind)]
        if path.exists()
        else []
    )


if __name__ in ("__main__", "__mp_main__"):
    worker.function_of = lambda _stage: noted_toy  # type: ignore[attr-defined, assignment]
    tune_open.HEARTBEAT_S, tune_open.GRACE_S = 1, 5

if __name__ == "__main__":
    path, store, storage, count = sys.argv[1:5]
    tune.run_workers(Search(Path(path), Path(store), storage), int(count))
