"""Modes with one optimiser and one schedule through all iterations, against TRL and themselves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.engine.store import Store
from harness.model.policy import load_policy
from harness.records import content_hash, read_jsonl
from harness.study.settings import Recipe
from harness.train.batching import GlobalBatchSampler, PreferenceRow, encode_pairs
from tests.engine.test_presets import Ran, run_all, study
from tests.preferences import trls

ROOT = Path(__file__).parents[2]
BATCH, RATE = 8, 1e-3
MODE: dict[str, Any] = {
    "objective.alpha": 0,
    "loop.prompts_per_iteration": BATCH,
    "training.batch_size": BATCH,
    "training.learning_rate": RATE,
    "loop.reference_policy": "fixed",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("store"))
    made.open()
    return made


def ran(folder: Path, store: Store, **changes: Any) -> Ran:
    return run_all(study(folder, "selm", **MODE, **changes), store)


def order(found: Ran, iteration: int) -> list[PreferenceRow]:
    """The rows of an iteration as training saw them."""
    train = found.stage(iteration, "train")
    folder = found.store.folder(train.inputs["pairs"])
    tokenizer = load_policy(found.store.folder(train.inputs["policy"])).tokenizer
    limits = {"max_length": 256, "max_prompt_length": 128}
    return encode_pairs(tokenizer, folder, limits)


def parameters(found: Ran, key: str) -> dict[str, torch.Tensor]:
    return dict(load_policy(found.store.folder(key)).model.named_parameters())


def trl_run(
    found: Ran, rows: list[PreferenceRow], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """Parameters that TRL's DPOTrainer ends with, on these rows in this order."""
    base = found.store.folder(found.plan.runs[0].iterations[0]["base"])
    policy, reference = (load_policy(base, cached=False) for _ in range(2))
    trainer = trls(
        policy.model,
        reference.model,
        rows,
        policy.tokenizer,
        folder,
        monkeypatch,
        learning_rate=RATE,
        num_train_epochs=1,
        lr_scheduler_type="cosine",
        warmup_steps=1,  # a tenth of six steps, rounded up
        per_device_train_batch_size=BATCH,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    trainer.train()
    return dict(trainer.model.named_parameters())


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_one_step_an_iteration_is_trls_dpo_trainer_over_all_of_them(
    mode: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterations = 6
    found = ran(tmp_path, store, **{"loop.mode": mode, "loop.iterations": iterations})
    rows = [row for i in range(1, iterations + 1) for row in order(found, i)]
    assert len(rows) == iterations * BATCH, "a full batch at every step"
    theirs = trl_run(found, rows, tmp_path / "trl", monkeypatch)
    ours = parameters(found, found.stage(iterations, "train").key)
    base = parameters(found, found.plan.runs[0].iterations[0]["base"])
    moved = max(float((ours[name] - base[name]).detach().abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert apart < 1e-5 < 1e-3 < moved
    rates = [
        row["learning_rate"]
        for i in range(1, iterations + 1)
        for row in read_jsonl(store.folder(found.stage(i, "train").key) / "steps.jsonl")
    ]
    assert len(rates) == iterations
    assert rates[1] == RATE
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_offline_in_one_iteration_is_trls_dpo_trainer_over_one_pass(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"loop.mode": "offline", "loop.iterations": 1, "loop.prompts_per_iteration": 48}
    found = run_all(study(tmp_path, "selm", **(MODE | changes)), store)
    rows, train = order(found, 1), found.stage(1, "train").settings
    seed = int(content_hash("train", train.seed, train.iteration, length=7), 16)
    batches = GlobalBatchSampler(len(rows), BATCH, seed)
    theirs = trl_run(found, [rows[i] for batch in batches for i in batch], tmp_path, monkeypatch)
    ours = parameters(found, found.stage(1, "train").key)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"training": {"learning_rate": [1e-4, 1e-5]}}, "learning_rate as one number"),
        ({"training": {"lora": {}}}, "leave training.lora"),
        ({"loop": {"mode": "offline"}}, "set loop.reference_policy: fixed"),
        (
            {"loop": {"mode": "offline", "reference_policy": "fixed"}, "training": {"epochs": 2}},
            "goes through all the data before it meets any again",
        ),
    ],
)
def test_what_one_optimiser_cannot_be_carried_through_is_refused(
    recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe(**({"loop": {"mode": "online"}} | recipe))


HUNDRED = """
name: hundred
recipe: {root}/ablations/recipes/pocket.yaml
preset: {root}/ablations/presets/online_dpo.yaml
set:
  loop: {{mode: online, iterations: 100, prompts_per_iteration: 32, portions: 48}}
  pocket: {{steps: 800, rows: 4000}}
  training: {{epochs: 1, batch_size: 32, learning_rate: 0.001}}
  data: {{heldout: 8, ood: 4}}
  evaluation: {{benchmarks: [heldout], iterations: last}}
  diagnostics.enabled: false
seeds: [0]
"""


@pytest.mark.slow
def test_a_hundred_online_iterations_take_minutes_and_survive_kills(tmp_path: Path) -> None:
    file = tmp_path / "hundred.yaml"
    file.write_text(HUNDRED.format(root=ROOT))

    def command(folder: str) -> list[str]:
        told = ["--executor", "inline", "--store", f"{tmp_path}/{folder}"]
        told += ["--results", f"{tmp_path}/{folder}-results"]
        return [sys.executable, "-m", "harness.cli", "run", str(file), *told]

    def files(folder: str) -> dict[str, Any]:
        records = (tmp_path / folder).glob("objects/*/*/record.json")
        return {path.parent.name: json.loads(path.read_text())["files"] for path in records}

    started = time.monotonic()
    subprocess.run(command("whole"), cwd=ROOT, check=True, capture_output=True)
    assert time.monotonic() - started < 400, "a guard; the figure stands in the lab book"
    for wanted in (100, 250):
        process = subprocess.Popen(command("cut"), cwd=ROOT, stdout=subprocess.DEVNULL)
        while len(files("cut")) < wanted and process.poll() is None:
            time.sleep(0.2)
        assert process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(command("cut"), cwd=ROOT, check=True, capture_output=True)
    assert len(files("whole")) > 300
    assert files("cut") == files("whole")
