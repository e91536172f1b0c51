"""``manifest.json``: what a study consists of, for readers that import nothing of the harness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.engine.graph import Plan
from harness.evaluate.benchmark import load
from harness.evaluate.registry import manifest_of

DIAGNOSTICS = "harness.stages.diagnostics.measures:manifest_of"


def manifest(plan: Plan, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What analysis reads: each run's stages by iteration, the resolved recipe, what was declared.
    """
    study = plan.study
    runs = [
        {
            "run": run.cell.run,
            "arm": dict(run.cell.arm),
            "label": run.cell.label,
            "seed": run.cell.seed,
            "twin": run.cell.baseline_run,
            "alpha": [n["alpha"] for n in run.coefficients],
            "c": [n["c"] for n in run.coefficients],
            "kappa": [n["kappa"] for n in run.coefficients],
            "iterations": [
                {"iteration": i, "stages": dict(stages)} for i, stages in enumerate(run.iterations)
            ],
        }
        for run in plan.runs
    ]
    stages = {
        node.key: {
            "stage": node.stage,
            "version": node.version,
            "inputs": dict(node.inputs),
            "seconds_estimated": seconds.get(node.key, 0.0),
        }
        for node in plan.nodes.values()
    }
    return {
        "schema": 1,
        "study": {"name": study.name, "question": study.question, "file": study.file.name},
        "recipe": study.base.model_dump(mode="json"),
        "axes": {name: list(values) for name, values in study.axes.items()},
        "seeds": list(study.seeds),
        "baseline": dict(study.baseline),
        "declare": study.declare.model_dump(mode="json"),
        "checkpoints_kept": study.keep,
        "runs": runs,
        "pairwise": [vars(pair) for pair in plan.pairwise],
        "pairwise_mt_bench": [vars(pair) for pair in plan.pairwise_mt_bench],
        "stages": stages,
        "benchmarks": manifest_of(study.base.evaluation),
        "diagnostics": load(DIAGNOSTICS)(),
    }
