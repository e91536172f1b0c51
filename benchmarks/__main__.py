"""``make bench``: every benchmark in turn, each in a process of its own; results below
``results/bench/``. Run nothing else meanwhile. On a GPU: ``python -m benchmarks gpu``.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = {
    "training": ["-m", "benchmarks.bench_training"],
    "generation": ["-m", "benchmarks.bench_generation"],
    "judge": ["-m", "benchmarks.bench_judge"],
    "report": ["-m", "benchmarks.bench_report"],
    "lc": ["-m", "benchmarks.bench_lc"],
    "coverage": ["-m", "benchmarks.bench_coverage"],
    "store": ["-m", "benchmarks.bench_store"],
    "gpu": ["-m", "benchmarks.bench_gpu"],
}
WITH_OPTIONS = ("training", "gpu")
NAMED_ONLY = ("gpu",)
"""Parts that a machine without a GPU cannot run."""


def main() -> int:
    """Run the parts named on the command line, or all but those of a GPU; 1 when one failed."""
    chosen = [name for name in sys.argv[1:] if not name.startswith("-")]
    chosen = chosen or [name for name in PARTS if name not in NAMED_ONLY]
    options = [name for name in sys.argv[1:] if name.startswith("-")]
    failed = 0
    for name in chosen:
        print(f"== {name}", flush=True)
        failed |= (
            subprocess.run(
                [sys.executable, *PARTS[name], *(options if name in WITH_OPTIONS else [])],
                check=False,
            ).returncode
            != 0
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
