"""The moving reference of ``loop.reference_policy: ema``. Stage ``average``."""

from __future__ import annotations

import shutil

import torch

from harness.model.policy import load_policy
from harness.records import StageOutcome, StageTask
from harness.study.tasks import AverageTask


def run(task: StageTask[AverageTask]) -> StageOutcome:
    """Write the policy's folder with its parameters replaced by d average + (1 - d) policy,
    computed in float32 and stored in the run's precision. d: ``decay``.
    """
    settings = task.settings
    average, policy = (
        load_policy(
            task.inputs[name],
            dtype="float32",
            attention=settings.scoring_attention,
            device="cpu",
            cached=False,
        ).model
        for name in ("average", "policy")
    )
    former = dict(average.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.lerp_(former[name], settings.decay)
    shutil.copytree(task.inputs["policy"] / "model", task.out / "model", dirs_exist_ok=True)
    for file in (task.out / "model").glob("*.safetensors*"):
        file.unlink()
    policy.to(getattr(torch, settings.dtype)).save_pretrained(task.out / "model")
    return StageOutcome(rows=len(former))
