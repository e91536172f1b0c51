"""Every stage by name: its version, the function that runs it, and the modules whose change asks
for a new version.

Adding a stage is one entry. Functions are named, not imported: nothing heavy loads until a worker
runs the stage.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.records import StageOutcome, StageTask


@dataclass(frozen=True)
class Stage:
    """version: raised whenever the stage's numbers can change. seconds: prior cost on one CPU core
    in the pocket world.

    reads_partial: may run on an input that still holds ``error`` rows; what it makes then stays
    partial too. added: settings that came later, with the default at which they leave old keys
    unchanged.
    """

    function: str
    version: int
    modules: tuple[str, ...]
    seconds: float
    accelerator: bool = False
    reads_partial: bool = False
    added: Mapping[str, Any] = field(default_factory=dict)


_POLICY = ("harness/model/policy.py", "harness/model/tokenizer.py")
_GENERATE = (*_POLICY, "harness/model/generate.py", "harness/model/generate_vllm.py")
_PASS = (
    *_POLICY,
    "harness/train/batching.py",
    *(f"harness/model/{name}.py" for name in ("logprobs", "head", "attention")),
)
_LANGUAGE = tuple(
    f"harness/pocket/{name}.py" for name in ("language", "oracle", "wordings", "tasks")
)
_BACKEND = {"backend": "transformers"}

_ALPACA = tuple(
    f"harness/evaluate/{name}.py"
    for name in (
        "alpaca_rows",
        "alpaca_metrics",
        "annotator",
        "lc",
        "libraries",
    )
) + ("harness/judge/verdicts.py", "harness/judge/client.py")
_MT_BENCH = tuple(f"harness/evaluate/{name}.py" for name in ("fastchat_bench", "libraries")) + (
    "harness/judge/verdicts.py",
    "harness/judge/client.py",
)

STAGES: dict[str, Stage] = {
    "data.pocket": Stage("harness.pocket.data:run", 1, ("harness/pocket/data.py", *_LANGUAGE), 1),
    "data.files": Stage("harness.stages.data:run", 1, ("harness/stages/data.py",), 2),
    "base.pocket": Stage(
        "harness.pocket.base:run",
        1,
        (
            "harness/pocket/base.py",
            "harness/pocket/tokenizer.py",
            "harness/model/isolated_rng.py",
            *_LANGUAGE,
        ),
        90,
        True,
    ),
    "base.checkpoint": Stage("harness.stages.base:run", 2, ("harness/stages/base.py", *_POLICY), 1),
    "benchmarks.pocket": Stage(
        "harness.pocket.benchmarks:run",
        1,
        ("harness/pocket/benchmarks.py", "harness/pocket/academic_tasks.py", *_LANGUAGE),
        1,
    ),
    "benchmarks.files": Stage(
        "harness.evaluate.files:run",
        1,
        tuple(
            f"harness/evaluate/{name}.py"
            for name in ("files", "academic_files", "fastchat_bench", "alpaca_metrics")
        ),
        2,
    ),
    "ranker.train": Stage(
        "harness.stages.reward:run", 1, ("harness/stages/reward.py", *_POLICY), 60, True
    ),
    "rollout": Stage(
        "harness.stages.rollout:run",
        1,
        ("harness/stages/rollout.py", *_GENERATE),
        3,
        True,
        added=_BACKEND,
    ),
    "rank": Stage(
        "harness.stages.rank:run",
        1,
        ("harness/stages/rank.py", "harness/rankers", *_POLICY, *_LANGUAGE),
        1,
        True,
    ),
    "pairs.merge": Stage("harness.stages.rank:merge", 1, ("harness/stages/rank.py",), 0.1),
    "reference": Stage(
        "harness.stages.reference:run", 1, ("harness/stages/reference.py", *_PASS), 1, True
    ),
    "train": Stage(
        "harness.stages.train:run",
        1,
        (
            "harness/stages/train.py",
            "harness/train/trainer.py",
            "harness/train/step_metrics.py",
            "harness/train/objectives.py",
            *_PASS,
        ),
        6,
        True,
    ),
    "answer": Stage(
        "harness.stages.answer:run",
        1,
        ("harness/stages/answer.py", *_GENERATE),
        3,
        True,
        added=_BACKEND,
    ),
    "judge.mt_bench": Stage(
        "harness.evaluate.mt_bench:run",
        1,
        ("harness/evaluate/mt_bench.py", *_MT_BENCH),
        1,
        reads_partial=True,
    ),
    "judge.alpaca_eval": Stage(
        "harness.evaluate.alpaca_eval:run",
        1,
        ("harness/evaluate/alpaca_eval.py", *_ALPACA),
        2,
        reads_partial=True,
    ),
    "judge.pairwise": Stage(
        "harness.evaluate.pairwise:run",
        1,
        ("harness/evaluate/pairwise.py", *_ALPACA),
        2,
        reads_partial=True,
    ),
    "judge.mt_bench_pairwise": Stage(
        "harness.evaluate.mt_bench_pairwise:run",
        1,
        ("harness/evaluate/mt_bench_pairwise.py", *_MT_BENCH),
        2,
        reads_partial=True,
    ),
    "academic": Stage(
        "harness.evaluate.academic:run",
        1,
        (
            "harness/evaluate/academic.py",
            "harness/evaluate/academic_lm.py",
            "harness/evaluate/academic_files.py",
            *_POLICY,
        ),
        4,
        True,
    ),
    "heldout": Stage(
        "harness.stages.heldout:run",
        1,
        ("harness/stages/heldout.py", "harness/rankers", *_POLICY, *_LANGUAGE),
        1,
        True,
        reads_partial=True,
    ),
    "diagnostics": Stage(
        "harness.stages.diagnostics:run",
        1,
        ("harness/stages/diagnostics", *_PASS, *_GENERATE, *_LANGUAGE),
        2,
        True,
        added=_BACKEND,
    ),
}

RANKER_VERSIONS: Mapping[str, int] = {"pairrm": 2}
"""Ranker kind → version, raised when its scores change: what it ranked is ranked again, what others
ranked is not. 1 is in no key.
"""


def function_of(stage: str) -> Callable[[StageTask], StageOutcome]:
    """Import and return the function that runs ``stage``."""
    module, _, name = STAGES[stage].function.partition(":")
    function: Callable[[StageTask], StageOutcome] = getattr(importlib.import_module(module), name)
    return function
