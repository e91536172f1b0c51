"""``selm plan --cost`` against the run it speaks of: estimated and taken seconds, by stage and in
all. Writes ``cost.json``.

    python -m benchmarks.bench_cost [--workers 2] [--studies smoke alpha_cut] [--out results/bench]

Every study runs twice in a results folder of its own: first from an empty store (constants and a
calibration of this machine), then with another seed for data, base and run from the store that the
first run left (measured stages). Expected: what ``selm run`` then takes in all is within a factor
of 1.5 of the estimate. The total is elapsed time, start-up and report included. Of each kind the
fastest stage is compared, for a worker's first one holds its start-up as well, which the estimate
keeps apart; ``sum`` is what all of the kind took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.cost.rates import slowness

from harness.cost.budget import Assumptions, Budget, budget, elapsed
from harness.engine.launch import prepare
from harness.engine.store import Store

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "ablations" / "recipes" / "pocket.yaml"
SMALL = """
  loop: {iterations: 1, prompts_per_iteration: 64}
  pocket: {steps: 200, rows: 4000, seed: SEED}
  training: {epochs: 1, batch_size: 32}
  data: {heldout: 16, ood: 8, seed: SEED}
  evaluation: {mt_bench.limit: 8, alpaca_eval.limit: 24, academic.limit: 8}
  diagnostics.prompts: 16"""
WHOLE = """
  loop.iterations: 1
  pocket.seed: SEED
  data.seed: SEED"""
STUDIES = {"smoke": ("[0, 1]", SMALL), "alpha_cut": ("[1]", WHOLE)}
"""α values and settings: the smoke study, and one α, one seed, one iteration of the α study at its
own sizes.
"""
FACTOR = 1.5


def write_study(folder: Path, name: str, seed: int) -> Path:
    """One study file; another seed changes data, base and run, so that nothing is shared with the
    first.
    """
    alphas, settings = STUDIES[name]
    path = folder / f"{name}_{seed}.yaml"
    head = f"name: {name}_{seed}\nrecipe: {RECIPE}\nseeds: [{seed}]\naxes: {{objective.alpha: {alphas}}}\nset:"
    path.write_text(head + settings.replace("SEED", str(seed)) + "\n", encoding="utf-8")
    return path


def estimated(study: Path, store: Store) -> Budget:
    """The budget that ``selm plan --cost`` prints."""
    return budget(prepare(study, {}), store, Assumptions(slowness=slowness()))


def run(study: Path, store: Store, results: Path, workers: int) -> float:
    """Seconds of ``selm run`` in a process of its own, report included."""
    command = [
        "-m",
        "harness.cli",
        "run",
        str(study),
        "--store",
        str(store.root),
        "--results",
        str(results),
        "--workers",
        str(workers),
    ]
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(study: Path, store: Store, results: Path, workers: int) -> dict[str, Any]:
    """Estimate, run, and lay both beside each other."""
    found = estimated(study, store)
    expected = elapsed(found, workers)
    taken = run(study, store, results, workers)
    stages = {}
    for stage in dict.fromkeys(line.node.stage for line in found.lines):
        lines = found.of(stage)
        seconds = [store.record(line.node.key).costs["seconds"] for line in lines]
        each = min(zip(seconds, lines, strict=True), key=lambda pair: pair[0])
        stages[stage] = row(each[1].seconds, each[0]) | {
            "n": len(lines),
            "sum": round(sum(seconds), 3),
            "from": each[1].source.split(" ")[0],
        }
    total = row(expected["all"], taken)
    within = max(total["ratio"], 1 / total["ratio"]) <= FACTOR
    return {
        "total": total,
        "within": within,
        "slowness": round(found.assumptions.slowness, 3),
        "expected": expected,
        "stages": stages,
    }


def row(estimate: float, taken: float) -> dict[str, float]:
    """Estimated and taken seconds, and the first over the second."""
    return {
        "estimated": round(estimate, 3),
        "taken": round(taken, 3),
        "ratio": round(estimate / taken, 3),
    }


def main() -> int:
    """Run the studies named; returns 1 when a total is off by more than the factor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"factor": FACTOR, "workers": arguments.workers}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in arguments.studies:
            store = Store(folder / name / "store")
            for seed, kind in ((0, "empty store"), (1, "measured")):
                found = report[f"{name}, {kind}"] = compare(
                    write_study(folder, name, seed), store, folder / name, arguments.workers
                )
                print(f"{name}, {kind}: {found['total']}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cost.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(not all(value["within"] for value in report.values() if isinstance(value, dict)))


if __name__ == "__main__":
    sys.exit(main())
