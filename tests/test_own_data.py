"""Nothing of the pocket world: real preference text, a checkpoint folder, a trained reward model,
the real benchmark question files.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest

from harness.data.files import file_rows
from harness.data.rows import Reader
from harness.engine.store import Store
from harness.records import Prompt
from tests import tiny
from tests.processes import selm


def start_model(folder: Path, prompts: list[Prompt]) -> Path:
    """A small Llama with its own tokenizer and template, trained by SFTTrainer on the chosen
    answers.
    """
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    made: PreTrainedTokenizerFast = tiny.tokenizer("llama3")
    with torch.random.fork_rng(devices=[]):
        trainer = SFTTrainer(
            model=tiny.model("llama", made),
            args=SFTConfig(
                str(folder / "scratch"),
                max_steps=20,
                per_device_train_batch_size=8,
                learning_rate=1e-3,
                max_length=256,
                report_to=[],
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(
                [
                    {
                        "messages": [
                            *map(dict, p.messages),
                            {"role": "assistant", "content": p.chosen},
                        ]
                    }
                    for p in prompts
                ]
            ),
            processing_class=made,
        )
        trainer.train()
    trainer.model.save_pretrained(folder / "model")
    made.save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.slow
def test_the_chain_runs_on_real_text(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "preferences" / "hh_helpful_base_test.jsonl.gz"
    rows = itertools.islice(file_rows(source), 64)
    prompts = Reader("data.files", "rows").prompts(rows)
    start = start_model(tmp_path / "start", prompts)
    bench, alpaca = shared_data / "mt_bench", shared_data / "alpaca_eval"
    settings = {
        "data.path": source,
        "model.source": start,
        "evaluation.mt_bench.questions": bench / "question.jsonl",
        "evaluation.mt_bench.references": bench / "reference_answers_gpt-4.jsonl",
        "evaluation.mt_bench.judge_prompts": bench / "judge_prompts.jsonl",
        "evaluation.alpaca_eval.instructions": alpaca / "gpt4_1106_preview" / "model_outputs.json",
        "evaluation.alpaca_eval.gamed_baseline": alpaca / "df_gamed_reconstructed.csv",
        "data.prompts": 24,
        "data.ranker_pairs": 48,
        "data.heldout": 8,
        "ranker.model": "''",
        "training.batch_size": 8,
        "evaluation.alpaca_eval.limit": 12,
        "diagnostics.prompts": 6,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    where = ("--store", tmp_path / "store", "--results", tmp_path)
    selm("run", "ablations/own_data.yaml", *where, *overrides)
    manifest = json.loads((tmp_path / "own_data" / "manifest.json").read_text())
    store = Store(tmp_path / "store")
    assert not any("pocket" in node["stage"] for node in manifest["stages"].values())
    for run in manifest["runs"]:
        for iteration in run["iterations"]:
            ratings = pd.read_parquet(
                store.folder(iteration["stages"]["judge.mt_bench"]) / "scores.parquet"
            )
            assert len(ratings) == 16
            wins = pd.read_parquet(
                store.folder(iteration["stages"]["judge.alpaca_eval"]) / "scores.parquet"
            )
            assert (wins["metric"] == "win_rate").sum() == 12
    report = (tmp_path / "own_data" / "report" / "report.md").read_text()
    assert "Table 1" in report
