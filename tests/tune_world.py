"""``python -m tests.tune_world SEARCH STORE STORAGE WORKERS LOG``: a search by real worker processes over toy stages.

Workers are spawned, so they import this file again (as ``__mp_main__``): the toy stages take the real ones' place there too.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

from harness import tune, worker
from harness.records import Score, StageOutcome, StageTask, write_jsonl, write_scores


def toy(task: StageTask) -> StageOutcome:
    """Any stage: notes that it ran; a held-out item scores −|log10 α| and a little more than the item before."""
    alpha = task.settings.get("objective", {}).get("alpha", 1.0)
    if task.stage == "train":
        (task.out / "alpha.jsonl").write_text(str(alpha))
    if task.stage == "answer":
        source = task.inputs["policy"] / "alpha.jsonl"
        (task.out / "alpha.jsonl").write_text(source.read_text() if source.exists() else "1")
    if task.stage == "heldout":
        value = -abs(math.log10(float((task.inputs["answer"] / "alpha.jsonl").read_text())))
        write_scores(task.out / "scores.parquet", [Score("heldout", "1", str(i), str(i), "reward", value + i / 100) for i in range(8)])
    write_jsonl(task.out / "rows.jsonl", [{"stage": task.stage}])
    time.sleep(0.15 if task.stage in ("train", "data.pocket", "base.pocket") else 0.02)
    descriptor = os.open(os.environ["TUNE_WORLD_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{task.key} {task.stage} {os.getpid()}\n".encode())
    os.close(descriptor)
    return StageOutcome(1)


if __name__ in ("__main__", "__mp_main__"):
    worker.function_of = lambda _stage: toy  # type: ignore[attr-defined]
    tune.HEARTBEAT_S, tune.GRACE_S = 1, 3  # type: ignore[misc]

if __name__ == "__main__":
    path, store, storage, count = sys.argv[1:5]
    tune.run_workers(tune.Search(Path(path), Path(store), storage), int(count))
