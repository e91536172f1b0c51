"""What the house itself costs: planning, status, verifying, a stage's overhead; a report from a
million score rows. Writes ``store.json`` and ``analysis.json``.

    python -m benchmarks.bench_house [store] [report]

Expected on one 2020s core: plan of 10,000 cells under 5 s, status of 10,000 stages under 1 s,
verify as fast as plain hashing (large files), under 50 ms a stage; the report under 30 s and 2 GB.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import seconds, timed, write
from harness.engine import stages, worker
from harness.engine.execute import Inline, execute
from harness.engine.graph import Node, manifest
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.files import hash_tree
from harness.records import (
    SCHEMA_VERSION,
    Score,
    StageOutcome,
    StageRecord,
    StageTask,
    content_hash,
    write_jsonl,
    write_scores,
)
from harness.study.study import load_study
from tests import synthetic

ROOT = Path(__file__).resolve().parent.parent
GRID = (ROOT / "tests" / "grid.yaml").read_text().replace("../ablations", f"{ROOT}/ablations")
PLAN = """\
import json, resource, sys, time
from pathlib import Path
from harness.engine.runs import build_plan
from harness.study.study import load_study
start = time.perf_counter()
plan = build_plan(load_study(Path(sys.argv[1])))
taken, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([taken, len(plan.runs), len(plan.nodes), peak]))
"""
REPORT = """\
import json, resource, sys, time
from pathlib import Path
started, cpu = time.perf_counter(), time.process_time()
from analysis.report import write_report
write_report(Path(sys.argv[1]), Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
taken, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"seconds": taken, "cpu_seconds": cpu, "peak_gb": peak / 1e6}))
"""


def python(*arguments: str) -> str:
    """What a process of its own prints."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


# -- the engine ------------------------------------------------------------------------------------
def grid_of(folder: Path, seeds: int) -> Path:
    """The α study (5 arms, 3 iterations, every checkpoint scored) with so many seeds."""
    path = folder / "alpha.yaml"
    path.write_text(GRID.replace("seeds: [0, 1, 2]", f"seeds: {list(range(seeds))}"))
    return path


def planning(folder: Path, cells: int = 10_000) -> dict[str, Any]:
    """Reading and planning a study with so many cells, the fastest of three."""
    path = str(grid_of(folder, cells // 5))
    taken, runs, nodes, peak = min(json.loads(python("-c", PLAN, path)) for _ in range(3))
    return {"cells": runs, "stages": nodes, "seconds": round(taken, 3), "peak_mb": peak // 1024}


def record_of(folder: Path, key: str, stage: str, settings: Any, inputs: Any) -> StageRecord:
    files, costs = hash_tree(folder), {"seconds": 1.0}
    return StageRecord(SCHEMA_VERSION, key, stage, 1, settings, inputs, {}, files, 1, costs, {}, {})


def status(folder: Path, count: int = 10_000) -> dict[str, Any]:
    """``selm status`` as a command on a study whose stages are all done."""
    plan, store = build_plan(load_study(grid_of(folder, count // 140))), Store(folder / "store")
    store.open()
    (folder / "results" / "alpha").mkdir(parents=True)
    (folder / "results" / "alpha" / "manifest.json").write_text(json.dumps(manifest(plan, {})))
    for key, node in plan.nodes.items():  # as committed, without the flushes
        target = store.folder(key)
        target.mkdir(parents=True)
        (target / "rows.jsonl").write_text("{}\n")
        record = record_of(target, key, node.stage, dict(node.defining), dict(node.inputs))
        (target / "record.json").write_text(json.dumps(vars(record.sealed()), sort_keys=True))
    command = ["-m", "harness.cli", "status", "alpha", "--store", str(store.root)]
    taken = seconds(lambda: python(*command, "--results", str(folder / "results")), 5)
    return {"stages": len(plan.nodes), "status_seconds": taken}


def verifying(folder: Path, files: int = 24, size: int = 16 << 20) -> dict[str, Any]:
    """Verify against plain hashing of the same bytes in one pass, both with a warm page cache."""
    store = Store(folder / "large")
    store.open()
    for index in range(files):
        key = content_hash("large", index)
        work = store.begin(key)
        (work / "model.bin").write_bytes(os.urandom(size))
        store.commit(work, record_of(work, key, "toy", {}, {}))
    paths = sorted(store.root.glob("objects/*/*/model.bin"))

    def plain() -> None:
        for path in paths:
            with open(path, "rb") as handle:
                hashlib.file_digest(handle, "sha256").hexdigest()

    megabytes = files * size / 1e6
    ours, theirs = seconds(store.verify), seconds(plain)
    rates = {"verify_mb_per_s": round(megabytes / ours)}
    rates["plain_hash_mb_per_s"] = round(megabytes / theirs)
    return {"megabytes": round(megabytes), **rates, "share": round(theirs / ours, 3)}


def overhead(folder: Path) -> dict[str, Any]:
    """A stage that does nothing: lease, folders, hashing inputs, flushes, record; 4 kB files."""

    def nothing(task: StageTask) -> StageOutcome:
        write_jsonl(task.out / "rows.jsonl", [{"text": "x" * 4000}])
        return StageOutcome(1)

    real = stages.function_of
    setattr(worker, "function_of", lambda _stage: nothing)  # noqa: B010
    try:
        plan, store = build_plan(load_study(ROOT / "tests" / "grid.yaml")), Store(folder / "toy")
        store.open()
        taken: list[float] = []

        def note(_node: Node, result: worker.Result | None) -> None:
            if result:
                taken.append(result.seconds)

        whole, summary = timed(partial(execute, plan, store, Inline(store), note))
    finally:
        setattr(worker, "function_of", real)  # noqa: B010
    assert summary.executed == len(plan.nodes)
    median = round(1000 * float(np.median(taken)), 2)
    each = round(1000 * whole / len(taken), 2)
    return {"stages": len(taken), "ms_per_stage": each, "median_ms": median}


def engine() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        return {
            "plan": planning(Path(first)),
            "status": status(Path(second)),
            "verify": verifying(Path(second)),
            "overhead": overhead(Path(second)),
        }


# -- a report --------------------------------------------------------------------------------------
def reporting(rows: int = 1_000_000, tasks: int = 3) -> dict[str, Any]:
    """Seconds and peak memory, imports included, of the report of a study of five values of α,
    three seeds and three iterations with about ``rows`` score rows.
    """
    spec = synthetic.Synthetic(alphas=(0.0, 0.1, 0.3, 1.0, 3.0), iterations=3, faults=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder, store = synthetic.build(Path(scratch), spec)
        runs = json.loads((folder / "manifest.json").read_text())["runs"]
        keys = [entry["stages"]["academic"] for run in runs for entry in run["iterations"]]
        items = rows // (len(keys) * tasks) + 1
        for number, key in enumerate(sorted(set(keys))):
            right = np.random.default_rng(number).random(items) < 0.5
            scores = []
            for task in synthetic.TASKS[:tasks]:
                names = [f"{task}-{i}" for i in range(items)]
                values = zip(names, right, strict=True)
                scores += [Score(task, "1", n, n, "score", 100.0 * bool(hit)) for n, hit in values]
            write_scores(store / "objects" / key[:2] / key / "scores.parquet", scores)
        found = json.loads(python("-c", REPORT, str(folder), str(store)).splitlines()[-1])
    told = {name: round(value, 2) for name, value in found.items()}
    return {"report": {"score_rows": items * tasks * len(keys), **told}}


PARTS = {"store": ("store", engine), "report": ("analysis", reporting)}


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        file, measure = PARTS[name]
        found = measure()
        write(file, found)
        print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
