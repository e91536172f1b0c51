"""``make bench``: every benchmark in turn, each in a process of its own; results below
``results/bench/``. Run nothing else meanwhile. On a GPU: ``python -m benchmarks gpu``.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = {
    "training": ["bench_training"],
    "generation": ["bench_generation"],
    "report": ["bench_house", "report"],
    "lc": ["bench_lc"],
    "coverage": ["bench_coverage"],
    "store": ["bench_house", "store"],
    "gpu": ["bench_gpu"],
}
WITH_OPTIONS = ("training", "gpu")
NAMED_ONLY = ("gpu",)
"""Parts that a machine without a GPU cannot run."""


def main() -> int:
    """Run the parts named on the command line, or all but those of a GPU; 1 when one failed."""
    chosen = [name for name in sys.argv[1:] if not name.startswith("-")]
    options = [name for name in sys.argv[1:] if name.startswith("-")]
    failed = False
    for name in chosen or [name for name in PARTS if name not in NAMED_ONLY]:
        print(f"== {name}", flush=True)
        module, *rest = PARTS[name]
        rest += options if name in WITH_OPTIONS else []
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *rest], check=False)
        failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
