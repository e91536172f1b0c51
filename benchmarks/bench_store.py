"""What the house itself costs: planning, status, verifying, the overhead of a stage, help. Writes
``results/bench/store.json``.

Expected on one 2020s core: plan of 10,000 cells under 5 s, status of 10,000 stages under 1 s,
verify as fast as plain hashing (large files), under 50 ms a stage, help under 0.5 s.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import seconds, write
from harness.cli import COMMANDS
from harness.engine import stages, worker
from harness.engine.execute import Inline, execute
from harness.engine.graph import Node, manifest
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.files import hash_tree
from harness.records import (
    SCHEMA_VERSION,
    StageOutcome,
    StageRecord,
    StageTask,
    content_hash,
    write_jsonl,
)
from harness.study.study import load_study

ROOT = Path(__file__).resolve().parent.parent
GRID = (ROOT / "tests" / "grid.yaml").read_text().replace("../ablations", f"{ROOT}/ablations")


def planning(folder: Path, cells: int = 10_000) -> dict[str, Any]:
    """Reading and planning the α study (5 arms, 3 iterations, every checkpoint scored) with so many
    cells, in a process of its own.
    """
    text = GRID.replace("seeds: [0, 1, 2]", f"seeds: {list(range(cells // 5))}")
    (folder / "alpha.yaml").write_text(text)
    code = (
        "import sys, time, json; from pathlib import Path; from harness.engine.runs import "
        "build_plan; from harness.study.study import load_study\n"
        "start, cpu = time.perf_counter(), time.process_time(); plan = "
        "build_plan(load_study(Path(sys.argv[1])))\n"
        "taken, cpu = time.perf_counter() - start, time.process_time() - cpu\n"
        "import resource; print(json.dumps([taken, cpu, len(plan.runs), len(plan.nodes), "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"
    )
    found = [json.loads(_python("-c", code, str(folder / "alpha.yaml"))) for _ in range(3)]
    taken, cpu, runs, nodes, peak = min(found)
    return {
        "cells": runs,
        "stages": nodes,
        "seconds": round(taken, 3),
        "cpu_seconds": round(cpu, 3),
        "seconds_of_each": [round(row[0], 3) for row in found],
        "peak_mb": peak // 1024,
    }


def status(folder: Path, stages: int = 10_000) -> dict[str, Any]:
    """``selm status`` as a command on a study whose stages are all done; opening and verifying that
    store.
    """
    seeds = stages // 140
    text = GRID.replace("seeds: [0, 1, 2]", f"seeds: {list(range(seeds))}")
    (folder / "alpha.yaml").write_text(text)
    plan = build_plan(load_study(folder / "alpha.yaml"))
    store = Store(folder / "store")
    store.open()
    (folder / "results" / "alpha").mkdir(parents=True)
    (folder / "results" / "alpha" / "manifest.json").write_text(json.dumps(manifest(plan, {})))
    for key, node in plan.nodes.items():  # as committed, without the flushes
        target = store.folder(key)
        target.mkdir(parents=True)
        (target / "rows.jsonl").write_text("{}\n")
        record = StageRecord(
            SCHEMA_VERSION,
            key,
            node.stage,
            node.version,
            dict(node.settings),
            dict(node.inputs),
            {},
            hash_tree(target),
            1,
            {"seconds": 1.0},
            {},
            {},
        )
        (target / "record.json").write_text(
            json.dumps(vars(record.sealed()), sort_keys=True, separators=(",", ":"))
        )
    where = ["--store", str(store.root), "--results", str(folder / "results")]
    return {
        "stages": len(plan.nodes),
        "status_seconds": seconds(lambda: _selm("status", "alpha", *where), 5),
        "status_cpu_seconds": _child_cpu(lambda: _selm("status", "alpha", *where)),
        "of_which_states_seconds": seconds(lambda: store.states(list(plan.nodes))),
        "open_and_repair_seconds": seconds(store.open),
        "verify_seconds": seconds(store.verify, 1),
    }


def verifying(folder: Path, files: int = 24, size: int = 16 << 20) -> dict[str, Any]:
    """Verify against plain hashing of the same bytes in one pass, both with a warm page cache."""
    store = Store(folder / "large")
    store.open()
    for index in range(files):
        key = content_hash("large", index)
        work = store.begin(key)
        (work / "model.bin").write_bytes(os.urandom(size))
        store.commit(
            work,
            StageRecord(SCHEMA_VERSION, key, "toy", 1, {}, {}, {}, hash_tree(work), 1, {}, {}, {}),
        )
    paths = sorted(store.root.glob("objects/*/*/model.bin"))

    def plain() -> None:
        for path in paths:
            with open(path, "rb") as handle:
                hashlib.file_digest(handle, "sha256").hexdigest()

    megabytes = files * size / 1e6
    ours, theirs = seconds(store.verify), seconds(plain)
    return {
        "megabytes": round(megabytes),
        "verify_mb_per_s": round(megabytes / ours),
        "plain_hash_mb_per_s": round(megabytes / theirs),
        "share": round(theirs / ours, 3),
    }


def overhead(folder: Path) -> dict[str, Any]:
    """Wall time of a stage that does nothing: lease, folders, hashing its inputs, flushes, record;
    inline, files of 4 kB.
    """

    def nothing(task: StageTask) -> StageOutcome:
        write_jsonl(task.out / "rows.jsonl", [{"text": "x" * 4000}])
        return StageOutcome(1)

    real = stages.function_of
    setattr(worker, "function_of", lambda _stage: nothing)  # noqa: B010
    try:
        plan = build_plan(load_study(ROOT / "tests" / "grid.yaml"))
        store = Store(folder / "overhead")
        store.open()
        taken: list[float] = []

        def note(event: str, _node: Node | None, result: worker.Result | None) -> None:
            if event == "end" and result:
                taken.append(result.seconds)

        start = time.perf_counter()
        summary = execute(plan, store, Inline(store), note)
        whole = time.perf_counter() - start
    finally:
        setattr(worker, "function_of", real)  # noqa: B010
    assert summary.executed == len(plan.nodes)
    taken.sort()
    return {
        "stages": len(taken),
        "ms_per_stage": round(1000 * whole / len(taken), 2),
        "median_ms": round(1000 * taken[len(taken) // 2], 2),
        "p99_ms": round(1000 * taken[int(len(taken) * 0.99)], 2),
    }


def helps() -> dict[str, float]:
    """Seconds of ``selm --help`` and of every command's help."""
    return {
        f"selm {command}".strip() + " --help": seconds(partial(_selm, *command.split(), "--help"))
        for command in ("", *COMMANDS)
    }


def _child_cpu(job: Callable[[], Any]) -> float:
    """CPU seconds of the processes a job starts: what it would take where nothing else runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 3)


def _python(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def _selm(*arguments: str) -> str:
    return _python("-m", "harness.cli", *arguments)


def main() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        found = {
            "plan": planning(Path(first)),
            "status": status(Path(second)),
            "verify": verifying(Path(second)),
            "overhead": overhead(Path(second)),
            "help_seconds": helps(),
            "cores": os.cpu_count(),
            "load_average_at_end": round(os.getloadavg()[0], 2),
        }
    write("store", found)
    return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
