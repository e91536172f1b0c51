"""The moving reference of ``loop.reference_policy: ema``. Stage ``average``."""

from __future__ import annotations

import shutil
from typing import Any

from safetensors.torch import load_file, save_file

from harness.records import StageOutcome, StageTask
from harness.study.tasks import AverageTask


def run(task: StageTask[AverageTask]) -> StageOutcome:
    """Write the policy's folder with its parameters replaced by d average + (1 - d) policy, in
    float32 before they are stored in the policy's precision. d: ``decay``.
    """
    decay = task.settings.decay
    average: dict[str, Any] = {}
    for file in sorted((task.inputs["average"] / "model").glob("*.safetensors")):
        average |= load_file(file)
    shutil.copytree(task.inputs["policy"] / "model", task.out / "model", dirs_exist_ok=True)
    count = 0
    for file in sorted((task.out / "model").glob("*.safetensors")):
        mixed = {}
        for name, new in load_file(file).items():
            old = average[name].float()
            mixed[name] = (decay * old + (1 - decay) * new.float()).to(new.dtype)
        save_file(mixed, file, metadata={"format": "pt"})
        count += len(mixed)
    return StageOutcome(rows=count)
