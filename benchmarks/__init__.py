"""Speed and coverage, measured; results below ``results/bench/``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "results" / "bench"


def write(name: str, found: Mapping[str, Any], out: Path = OUT) -> None:
    """Write what was found as ``<name>.json``."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of a job, and its result."""
    start = time.perf_counter()
    result = job()
    return time.perf_counter() - start, result


def seconds(job: Callable[[], Any], repeats: int = 3) -> float:
    """Wall seconds of a job, the fastest of several: what it takes where nothing else runs."""
    return round(min(timed(job)[0] for _ in range(repeats)), 4)
