"""Every stage by name: its version, the function that runs it, and the settings it is given.

Adding a stage is one entry; a benchmark's stage comes with its record. Functions are named, not
imported: nothing heavy loads until a worker runs the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from harness.evaluate.registry import BENCHMARKS
from harness.records import StageOutcome, StageTask
from harness.study import tasks
from harness.study.sections import Section


@dataclass(frozen=True)
class Stage:
    """settings: the type it is given. version: raised whenever the stage's numbers can change.
    seconds: prior cost on one CPU core in the pocket world. accelerator: it runs a model.

    reads_partial: may run on an input that still holds ``error`` rows; what it makes then stays
    partial too.
    """

    function: str
    settings: type[Section]
    version: int = 1
    seconds: float = 1.0
    accelerator: bool = False
    reads_partial: bool = False


STAGES: Mapping[str, Stage] = {
    "data.pocket": Stage("harness.pocket.data:run", tasks.PocketDataTask),
    "data.files": Stage("harness.stages.inputs:data", tasks.FileDataTask, version=2, seconds=2),
    "data.rules": Stage("harness.rules.data:run", tasks.RulesDataTask, seconds=10),
    "base.pocket": Stage(
        "harness.pocket.base:run", tasks.PocketBaseTask, version=2, seconds=80, accelerator=True
    ),
    "base.checkpoint": Stage("harness.stages.inputs:checkpoint", tasks.CheckpointTask, version=3),
    "benchmarks.pocket": Stage("harness.pocket.benchmarks:run", tasks.PocketBenchmarksTask),
    "benchmarks.files": Stage(
        "harness.stages.inputs:benchmarks", tasks.FileBenchmarksTask, version=2, seconds=2
    ),
    "ranker.train": Stage(
        "harness.stages.reward:run", tasks.RankerTrainTask, seconds=60, accelerator=True
    ),
    "rollout": Stage("harness.stages.rollout:run", tasks.RolloutTask, seconds=1, accelerator=True),
    "select": Stage("harness.stages.rank:select", tasks.SelectTask, seconds=0.5, accelerator=True),
    "rank": Stage("harness.stages.rank:run", tasks.RankTask, seconds=0.2, accelerator=True),
    "pairs.labelled": Stage("harness.stages.rollout:labelled", tasks.LabelledTask, seconds=0.1),
    "pairs.merge": Stage("harness.stages.rank:merge", tasks.Nothing, seconds=0.1),
    "reference": Stage(
        "harness.stages.reference:run", tasks.ReferenceTask, seconds=0.3, accelerator=True
    ),
    "count": Stage(
        "harness.stages.reference:count", tasks.CountTask, seconds=0.5, accelerator=True
    ),
    "average": Stage("harness.stages.reference:average", tasks.AverageTask, seconds=0.1),
    "train": Stage("harness.stages.train:run", tasks.TrainTask, seconds=3, accelerator=True),
    "answer": Stage("harness.stages.answer:run", tasks.AnswerTask, seconds=1, accelerator=True),
    "answers.given": Stage("harness.evaluate.given:answers", tasks.GivenAnswersTask),
    "verdicts.given": Stage("harness.evaluate.given:verdicts", tasks.GivenVerdictsTask),
    **{
        one.stage: Stage(
            one.run,
            one.task,
            one.version,
            one.seconds,
            one.accelerator,
            reads_partial="answer" in one.inputs,
        )
        for one in BENCHMARKS.values()
    },
    **{
        one.pairs.stage: Stage(
            one.pairs.run, one.task, seconds=one.pairs.seconds, reads_partial=True
        )
        for one in BENCHMARKS.values()
        if one.pairs
    },
    "diagnostics": Stage(
        "harness.stages.diagnostics.stage:run",
        tasks.DiagnosticsTask,
        version=2,
        seconds=1.5,
        accelerator=True,
    ),
}


def function_of(stage: str) -> Callable[[StageTask[Any]], StageOutcome]:
    """Import and return the function that runs ``stage``."""
    function: Callable[[StageTask[Any]], StageOutcome] = resolve_name(STAGES[stage].function)
    return function
