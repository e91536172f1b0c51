"""Several processes train what one trains: the same losses, the same model; their errors and
signals arrive as one process's would.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.utils.deepspeed import HfDeepSpeedConfig as AccelerateConfig
from safetensors.torch import load_file
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from harness.engine.launch import prepare
from harness.records import HarnessError, read_jsonl
from harness.stages import train
from harness.study.sections import RuntimeSettings
from harness.study.settings import Recipe
from harness.train import distributed
from tests import tiny
from tests.preferences import config, model, stage_inputs, train_task
from tests.ranks import run_toy, toy

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return stage_inputs(tmp_path_factory.mktemp("stage"), count=11)


def trained(
    inputs: dict[str, Path], out: Path, runtime: dict[str, Any] | None = None, **changes: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Loss, gradient norm and metrics of every step, and the final parameters. Small budgets, so
    that a step has several micro-batches.
    """
    train.run(train_task(inputs, out, runtime={"token_budget": 150, **(runtime or {})}, **changes))
    assert sorted(path.name for path in out.iterdir()) == ["model", "steps.jsonl"]
    steps = [
        [row["loss"], row["grad_norm"], row["margin"], row["rhat_explore"]]
        for row in read_jsonl(out / "steps.jsonl")
    ]
    return np.array(steps, dtype=float), load_file(out / "model" / "model.safetensors")


def far(a: dict[str, Any], b: dict[str, Any]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True},
        {"lora": LORA, "learning_rate": 1e-2},
        {"name": "beta_dpo"},
    ],
    ids=["whole", "checkpointing", "lora", "reads the whole batch"],
)
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_train_what_one_trains(
    sharding: str, changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """SELM with exploration, batches by token budget, rows not a multiple of ranks or batch."""
    one = trained(inputs, tmp_path / "one", **changes)
    two = trained(inputs, tmp_path / "two", {"processes": 2, "sharding": sharding}, **changes)
    assert len(one[0]) == 6
    assert np.abs(one[0][:, 0] - two[0][:, 0]).max() < 1e-4
    assert np.allclose(one[0], two[0], rtol=1e-4, atol=1e-4, equal_nan=True)
    assert far(one[1], two[1]) < 2e-4


@pytest.mark.slow
def test_shards_of_tied_weights_stay_tied(tmp_path: Path) -> None:
    tiny.checkpoint(
        tmp_path / "base" / "model",
        "qwen3",
        "chatml",
        initializer_range=0.15,
        tie_word_embeddings=True,
    )
    tied = stage_inputs(tmp_path, count=5)
    one = trained(tied, tmp_path / "one")
    two = trained(tied, tmp_path / "two", {"processes": 2, "sharding": "fsdp"})
    assert np.allclose(one[0], two[0], rtol=1e-4, atol=1e-4)
    assert far(one[1], two[1]) < 2e-4
    assert "lm_head.weight" not in two[1]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_bfloat16_shards_round_as_one_process_does(
    lora: Any, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Mixed precision: products in bfloat16 over the same weights, and log-probabilities that are
    never rounded.
    """
    one = trained(inputs, tmp_path / "one", dtype="bfloat16", lora=lora)
    two = trained(
        inputs, tmp_path / "two", {"processes": 2, "sharding": "fsdp"}, dtype="bfloat16", lora=lora
    )
    assert np.abs(one[0][:, 0] - two[0][:, 0]).max() < 2e-2
    assert np.abs(one[0][0, 0] - two[0][0, 0]) < 1e-3, "before the first update only sums differ"


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_term_signal_checkpoints_every_rank_and_training_goes_on_from_there(
    sharding: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = {"processes": 2, "sharding": sharding}
    whole = trained(inputs, tmp_path / "whole", runtime, epochs=60)
    cut = tmp_path / "cut"
    task = train_task(
        inputs, cut, runtime={"token_budget": 150, "checkpoint_seconds": 1e-9, **runtime}, epochs=60
    )
    folder = cut / ("checkpoints" if sharding == "none" else "checkpoints-fsdp")

    def preempt() -> None:
        while not (folder / "checkpoint-3").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        threading.Thread(target=preempt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            train.run(task)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (cut / train.JOURNAL).exists()
    assert not (cut / "model").exists()
    reached = int(Path(train.last_checkpoint(folder) or "").name.split("-")[1])
    assert 3 <= reached < 180
    again = trained(inputs, cut, runtime, epochs=60)
    assert np.allclose(again[0], whole[0], rtol=1e-6, atol=1e-6), f"it went on from step {reached}"
    assert far(again[1], whole[1]) < 1e-6


@pytest.mark.slow
def test_a_ranks_error_is_the_stages_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError,
        match=r"^training diverged at iteration 1, step \d+: mean \|log pi - log pi_ref\|",
    ):
        trained(
            inputs,
            tmp_path,
            {"processes": 2},
            learning_rate=3.0,
            max_grad_norm=0.0,
            warmup_ratio=0.0,
        )
    assert not list(tmp_path.iterdir()), "a diverged attempt leaves nothing to go on from"


def test_the_first_ranks_answer_comes_back_and_nothing_stays(tmp_path: Path) -> None:
    assert run_toy(toy(tmp_path, "tell", devices="3,5")) == {
        "rank": 0,
        "ranks": "2",
        "devices": "3,5",
        "threads": "3",
    }
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_broken_and_a_killed_rank_end_all_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError,
        match=r"training over 2 processes failed: process 1: ValueError: a thing went "
        r"wrong\n.*Traceback",
    ):
        run_toy(toy(tmp_path, "break"))
    with pytest.raises(HarnessError, match="a process was killed by the system"):
        run_toy(toy(tmp_path, "die"))


@pytest.mark.slow
def test_ranks_end_when_the_stage_that_started_them_is_killed(tmp_path: Path) -> None:
    task = f"toy(Path({str(tmp_path)!r}), 'sleep')"
    code = f"from pathlib import Path; from tests.ranks import *; run_toy({task})"
    stage = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    files = [tmp_path / f"pid-{rank}" for rank in range(2)]
    while (
        not all(file.exists() and file.read_text() for file in files)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    stage.kill()
    stage.wait()
    pids = [int(file.read_text()) for file in files]
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("runtime", "devices", "says"),
    [
        ({"processes": 8}, 2, "asks for 8 devices .*, but visible here are only 2"),
        (
            {"processes": 2, "sharding": "deepspeed_zero3"},
            2,
            "needs the package deepspeed, which is not installed",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    runtime: dict[str, Any], devices: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=says):
        distributed.check_ready(RuntimeSettings(**runtime), devices)
    distributed.check_ready(RuntimeSettings(processes=8), 0)
    distributed.check_ready(RuntimeSettings(processes=8), None)


def test_sharding_needs_processes() -> None:
    with pytest.raises(ValueError, match="to 2 or more"):
        Recipe.model_validate({"runtime": {"sharding": "fsdp"}})
    Recipe.model_validate({"runtime": {"sharding": "fsdp", "processes": 2}})


def test_processes_and_sharding_are_in_no_key() -> None:
    study = Path(__file__).parents[2] / "ablations" / "smoke.yaml"
    changed = prepare(
        study, {"runtime.processes": 2, "runtime.sharding": "fsdp", "runtime.memory": "off"}
    )
    assert list(changed.nodes) == list(prepare(study, {}).nodes)


class Accepted(HfTrainerDeepSpeedConfig, AccelerateConfig):  # type: ignore[misc]
    """transformers' own handling of a DeepSpeed file, without its check that the package is
    installed.
    """

    def __init__(self, file: str) -> None:
        AccelerateConfig.__init__(self, file)
        self._dtype, self.mismatches = None, []


def test_the_deepspeed_file_follows_the_training_arguments(tmp_path: Path) -> None:
    """Every ``auto`` is filled, nothing contradicts the trainer, and DeepSpeed's batch identity
    holds.
    """
    written = json.loads(distributed.DEEPSPEED.read_text())
    assert written["zero_optimization"]["stage"] == 3
    args = config(tmp_path, per_device_train_batch_size=4, max_grad_norm=0.7, bf16=True)
    found = Accepted(str(distributed.DEEPSPEED))
    assert found.is_zero3()
    found.trainer_config_process(args)
    found.trainer_config_finalize(args, model(), 10)
    assert not found.mismatches
    assert "auto" not in json.dumps(found.config)
    filled = found.config
    assert (
        filled["train_batch_size"]
        == filled["train_micro_batch_size_per_gpu"]
        * filled["gradient_accumulation_steps"]
        * args.world_size
        == 4
    )
    assert filled["gradient_clipping"] == 0.7
    assert filled["bf16"] == {"enabled": True}
