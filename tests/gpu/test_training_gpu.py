"""Training on a CUDA device: it begins at log 2, checkpointing changes no number, a cut run goes
on, adapters and one-device FSDP train what plain training trains, and a study runs end to end.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from harness.cli import app
from harness.model.policy import load_policy
from harness.records import read_jsonl
from harness.stages import train
from harness.train.distributed import run_processes
from harness.train.trainer import PreferenceTrainer
from tests.gpu.device import DEVICE, NEEDS_DEVICE
from tests.preferences import base, config, model, rows, stage_inputs, train_task

pytestmark = NEEDS_DEVICE

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
STUDY = """
name: on_gpu
question: Does a study run on this device?
recipe: {recipe}
set:
  loop: {{iterations: 1, prompts_per_iteration: 64}}
  pocket: {{steps: 100, rows: 2000}}
  training: {{epochs: 1, batch_size: 32}}
  data: {{heldout: 16, ood: 8}}
  evaluation.benchmarks: [heldout]
  diagnostics.prompts: 16
axes: {{objective.alpha: [0, 1]}}
seeds: [0]
baseline: {{objective.alpha: 0}}
"""


def inputs_of(tmp: Path, dtype: str = "float32", lora: Any = None) -> dict[str, Path]:
    scoring = {"dtype": dtype, "mixed": dtype == "bfloat16" and lora is None}
    return stage_inputs(tmp, scoring=scoring, runtime={"device": DEVICE}, count=30)


def task(inputs: dict[str, Path], out: Path, runtime: Any = None, **changes: Any) -> Any:
    return train_task(inputs, out, runtime={"device": DEVICE, **(runtime or {})}, **changes)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "steps.jsonl"))


def weights_of(folder: Path) -> torch.Tensor:
    state = load_policy(folder, cached=False).model.state_dict()
    return torch.cat([state[name].float().reshape(-1) for name in sorted(state)])


def far(a: Path, b: Path, start: Path) -> float:
    """Distance between two trained models over the distance that training went."""
    first, second, before = (weights_of(folder) for folder in (a, b, start))
    return float((first - second).norm() / (second - before).norm())


@pytest.mark.parametrize("precomputed", [True, False])
def test_bfloat16_begins_at_log_2(precomputed: bool, tmp_path: Path) -> None:
    args = config(
        tmp_path,
        bf16=True,
        use_cpu=DEVICE == "cpu",
        max_steps=1,
        precompute_ref_log_probs=precomputed,
        global_batch_size=12,
    )
    trainer = PreferenceTrainer(model().to(DEVICE), args, rows(12))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_begin_at_log_2_and_learn(lora: Any, dtype: str, tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, dtype, lora)
    settings = {"dtype": dtype, "lora": lora, "batch_size": 10, "epochs": 4}
    train.run(task(inputs, tmp_path / "out", learning_rate=3e-3, **settings))
    steps = steps_of(tmp_path / "out")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=2e-4)
    assert steps[-1]["margin"] > steps[0]["margin"] + 0.1
    assert str(load_policy(tmp_path / "out", dtype=dtype).model.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_checkpointing_changes_no_number(lora: Any, tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, "bfloat16", lora)
    for name, checkpointing in (("a", True), ("b", False)):
        settings = {"dtype": "bfloat16", "lora": lora, "gradient_checkpointing": checkpointing}
        train.run(task(inputs, tmp_path / name, batch_size=30, epochs=1, **settings))
    a, b = steps_of(tmp_path / "a")[0], steps_of(tmp_path / "b")[0]
    assert a["loss"] == b["loss"]
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_a_cut_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(tmp_path)
    train.run(task(inputs, tmp_path / "whole"))
    original = PreferenceTrainer.training_step

    def dying(self: PreferenceTrainer, *given: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *given)

    cut = task(inputs, tmp_path / "cut", runtime={"checkpoint_seconds": 1e-9})
    monkeypatch.setattr(PreferenceTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train.run(cut)
    monkeypatch.setattr(PreferenceTrainer, "training_step", original)
    train.run(cut)
    assert far(tmp_path / "cut", tmp_path / "whole", base(tmp_path)) < 1e-3


def test_fsdp_on_one_device_trains_what_one_process_trains(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, "bfloat16")
    settings = {"dtype": "bfloat16", "gradient_checkpointing": True, "epochs": 1}
    train.run(task(inputs, tmp_path / "one", **settings))
    sharded = task(inputs, tmp_path / "shards", runtime={"sharding": "fsdp"}, **settings)
    told = run_processes("harness.stages.train:train_here", sharded, 1)
    one, shards = steps_of(tmp_path / "one"), steps_of(tmp_path / "shards")
    assert told["rows"] == 30
    assert shards[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-3)
    assert shards[-1]["margin"] == pytest.approx(one[-1]["margin"], rel=0.1)


def test_a_study_runs_end_to_end(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "ablations" / "recipes" / "pocket.yaml"
    study = tmp_path / "on_gpu.yaml"
    study.write_text(STUDY.format(recipe=recipe))
    places = ["--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")]
    changes = ["--set", f"runtime.device={DEVICE}", "--executor", "inline"]
    done = CliRunner().invoke(app, ["run", str(study), *places, *changes])
    assert done.exit_code == 0, done.output
    report = tmp_path / "results" / "on_gpu" / "report" / "report.md"
    assert "heldout" in report.read_text(encoding="utf-8")
