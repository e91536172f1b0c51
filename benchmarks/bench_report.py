"""A report from a million score rows, the estimators on 15 × 10,000 scores, and 805 refits of the
length-controlled fit. Writes ``analysis.json``.

    python -m benchmarks.bench_report [--rows 1000000]

The report is written by a process of its own, so that its peak memory is its own. Expected on one
2020s core: under 30 s and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from analysis.layout import from_array
from analysis.stats import difference, mean_over_seeds, one_checkpoint
from benchmarks import seconds, write
from harness.evaluate import lc
from harness.records import Score, write_scores
from tests import synthetic

TASKS = ("gsm8k", "hellaswag", "arc_challenge")
REPORT = """\
import json, resource, sys, time
from pathlib import Path
started, cpu = time.perf_counter(), time.process_time()
from analysis.report import write_report
write_report(Path(sys.argv[1]), Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak / 1e6}))
"""


def million(root: Path, rows: int) -> tuple[Path, Path, int]:
    """A study of five values of α, three seeds and three iterations with about ``rows`` score rows;
    (study, store, rows).
    """
    folder, store = synthetic.build(
        root, synthetic.Synthetic(alphas=(0.0, 0.1, 0.3, 1.0, 3.0), iterations=3, faults=False)
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    keys = [entry["stages"]["academic"] for run in manifest["runs"] for entry in run["iterations"]]
    items = rows // (len(keys) * len(TASKS)) + 1
    for number, key in enumerate(sorted(set(keys))):
        right = np.random.default_rng(number).random(items) < 0.5
        scores = [
            Score(task, "1", f"{task}-{i}", f"{task}-{i}", "score", 100.0 * bool(right[i]))
            for task in TASKS
            for i in range(items)
        ]
        write_scores(store / "objects" / key[:2] / key / "scores.parquet", scores)
    return folder, store, items * len(TASKS) * len(keys)


def report(rows: int) -> dict[str, Any]:
    """Seconds and peak memory of one report, imports included."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, store, written = million(Path(scratch), rows)
        done = subprocess.run(
            [sys.executable, "-c", REPORT, str(folder), str(store)],
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return {"score_rows": written, **{name: round(value, 2) for name, value in found.items()}}


def estimators() -> dict[str, float]:
    """15 runs × 10,000 items: mean, difference, one checkpoint."""
    scores = np.random.default_rng(7).normal(size=(15, 10_000))
    cell, twin = from_array(scores), from_array(scores[::-1] + 0.1)
    return {
        "mean_over_seeds_s": seconds(lambda: mean_over_seeds(cell, null=0.0)),
        "difference_s": seconds(lambda: difference(cell, twin)),
        "one_checkpoint_s": seconds(lambda: one_checkpoint(cell.take([3]))),
    }


def refits(count: int = 805) -> dict[str, float]:
    """Every delete-one refit of the length-controlled win rate of ``count`` instructions with two
    gamed baselines.
    """
    rng = np.random.default_rng(0)
    own = lc.OwnRows(
        rng.uniform(0.0, 1.0, count), rng.normal(100, 600, count), rng.normal(0, 1, count)
    )
    item = np.tile(np.arange(count), 2)
    gamed = lc.GamedRows(
        item, rng.uniform(0.2, 0.8, 2 * count), rng.normal(0, 1.5, 2 * count), own.difficulty[item]
    )
    return {"refits": count, "seconds": seconds(lambda: lc.leave_one_out(own, gamed))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    found = {
        "report": report(args.rows),
        "estimators_15_by_10000": estimators(),
        "length_controlled": refits(),
    }
    write("analysis", found)
    print(json.dumps(found, indent=1))
    return 0 if found["report"]["cpu_seconds"] < 30 and found["report"]["peak_gb"] < 2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
