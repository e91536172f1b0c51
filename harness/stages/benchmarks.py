"""Stage ``benchmarks.files``: the user's benchmark files, checked and laid out the one way the
scoring stages read them, a folder per benchmark.
"""

from __future__ import annotations

from typing import Any

from harness.evaluate.registry import BENCHMARKS
from harness.records import StageOutcome, StageTask
from harness.study.tasks import FileBenchmarksTask


def run(task: StageTask[FileBenchmarksTask]) -> StageOutcome:
    """Write the folder of every wanted benchmark that has files."""
    summary: dict[str, Any] = {}
    for name in task.settings.benchmarks:
        prepare = BENCHMARKS[name].prepare
        if prepare is not None:
            summary[name] = prepare(task.settings.sections[name], task.out / name)
    rows = sum(int(part.get("expected", part.get("tasks", 0))) for part in summary.values())
    return StageOutcome(rows=rows, summary=summary)
