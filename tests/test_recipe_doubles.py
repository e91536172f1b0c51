"""Every recipe of a real model runs whole on the CPU with a shape double: its architecture, special
tokens and template, tiny.

Only the keys of ``recipe_double.yaml`` and paths differ from the recipe; the batch, the schedule,
the template, the lengths, the warm-up iteration, LoRA and gradient checkpointing are the recipe's
own.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tokenizers import Tokenizer

from harness.engine.store import Store
from harness.study.settings import Recipe
from harness.study.study import load_study
from tests import tiny
from tests.conftest import ACADEMIC_FILES
from tests.model.families import FAMILIES
from tests.processes import ROOT, selm
from tests.study.test_recipes import RECIPES, recipe

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "zephyr-7b": ("mistral", "zephyr", {}),
    "llama-3-8b": ("llama", "llama3", {}),
    "phi-3-mini": ("phi3", "phi3", {}),
    "small-1b-lora": ("qwen3", "chatml", {}),
    "llama-3.2-1b": (
        "llama",
        "llama-3.2",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 2048,
            },
        },
    ),
    "phi-4-mini": (
        "phi3",
        "phi-4-mini",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "gemma-3-1b": (
        "gemma3_text",
        "gemma",
        {
            "tie_word_embeddings": True,
            "vocab_size": 8192,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}
"""Recipe → architecture, template (of `tiny.STYLES` or `FAMILIES`), and what its configuration has
beside the sizes.
"""
MAY_DIFFER = (
    *(
        "model.",
        "data.",
        "ranker.",
        "ranker_training.",
        "judge.",
        "evaluation.",
        "model.generation_backend",
    ),
    *(
        "loop.iterations",
        "loop.prompts_per_iteration",
        "diagnostics.prompts",
        "diagnostics.max_new_tokens",
        "exploration.max_new_tokens",
    ),
)
STAYS = {"model.chat_template", "evaluation.iterations", "evaluation.heldout_samples"}


def widened(made: Any, size: int) -> Any:
    """A tokenizer of ``size`` words: those that no text is split into can still be drawn and
    read back.
    """
    state = json.loads(made.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"word{number}": number for number in range(len(made), size)}
    made._tokenizer = Tokenizer.from_str(json.dumps(state))
    return made


def double_study(name: str, folder: Path, shared: Path) -> Path:
    """The study file of a recipe's double, with its checkpoint and data below ``folder``."""
    architecture, style, more = SHAPES[name]
    made = tiny.tokenizer(style) if style in tiny.STYLES else FAMILIES[style].tokenizer()
    made = widened(made, more.get("vocab_size", len(made)))
    sizes = {"max_position_embeddings": 4096, "initializer_range": 0.05}
    start = tiny.written(folder / "start", architecture, made, **sizes | more)
    rows = []
    with gzip.open(
        shared / "preferences" / "hh_helpful_base_test.jsonl.gz", "rt", encoding="utf-8"
    ) as handle:
        for line in handle:
            row = json.loads(line)
            if len(row["chosen"]) + len(row["rejected"]) < 800:
                rows.append(row)
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows[:48]), encoding="utf-8"
    )
    changes = yaml.safe_load((ROOT / "tests" / "recipe_double.yaml").read_text(encoding="utf-8"))
    bench, alpaca, mt = changes["evaluation"], shared / "alpaca_eval", shared / "mt_bench"
    changes["model"]["source"], changes["data"]["path"] = str(start), str(folder / "pairs.jsonl")
    bench["mt_bench"] |= {
        "questions": str(mt / "question.jsonl"),
        "references": str(mt / "reference_answers_gpt-4.jsonl"),
        "judge_prompts": str(mt / "judge_prompts.jsonl"),
    }
    bench["alpaca_eval"] |= {
        "instructions": str(alpaca / "gpt4_1106_preview" / "model_outputs.json"),
        "gamed_baseline": str(alpaca / "df_gamed_reconstructed.csv"),
    }
    bench["academic"]["data"] = {
        column: str(shared / "academic" / file) for column, file in ACADEMIC_FILES.items()
    }
    study = {"name": name, "recipe": str(RECIPES / f"{name}.yaml"), "set": changes, "seeds": [42]}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(study), encoding="utf-8")
    return path


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, dict) and key not in ("data", "shots", "params", "lora")
        found |= (
            flat(value, f"{prefix}{key}.")
            if inner or (key == "data" and not prefix)
            else {f"{prefix}{key}": value}
        )
    return found


def changed(ours: Recipe, original: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ."""
    a, b = flat(ours.model_dump()), flat(original.model_dump())
    return [key for key in a if a[key] != b.get(key)]


def run(study: Path, folder: Path) -> None:
    where = ("--store", folder / "store", "--results", folder)
    selm("run", study, "--executor", "inline", *where)


@pytest.mark.slow
def test_figures_of_a_recipe_with_a_warm_up_show_its_arms_apart(
    shared_data: Path, tmp_path: Path
) -> None:
    """Figures 3 to 5 count the method's iterations: after the first one the arms are there, and
    their implicit rewards differ (after the warm-up they were one model). The double takes one step
    an iteration, the recipe's first, whose rate its warm-up makes 0: here it is not.
    """
    study = double_study("zephyr-7b", tmp_path, shared_data)
    asked = json.loads(study.read_text(encoding="utf-8"))
    asked |= {"axes": {"objective.alpha": [0, 0.3]}, "baseline": {"objective.alpha": 0}}
    asked["set"]["training"] = {"learning_rate": 1e-3, "warmup_ratio": 0}
    asked["set"]["evaluation"]["benchmarks"] = ["alpaca_eval", "heldout"]
    study.write_text(json.dumps(asked), encoding="utf-8")
    run(study, tmp_path)
    figures = tmp_path / "zephyr-7b" / "report" / "figures"
    curves = pd.read_csv(figures / "figure_3.csv")
    first = curves[(curves["panel"] == "left") & (curves["iteration"] == 1)]
    assert first["arm"].nunique() == 2
    for number, iteration in ((4, 1), (5, 2)):
        rows = pd.read_csv(figures / f"figure_{number}.csv")
        assert set(rows["iteration"]) == {iteration}
        assert rows["difference"].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_recipe_runs_whole_with_a_double_of_its_shape(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    study = double_study(name, tmp_path, shared_data)
    differ = changed(load_study(study).base, recipe(name))
    assert all(key.startswith(MAY_DIFFER) and key not in STAYS for key in differ), differ
    run(study, tmp_path)
    manifest, store = (
        json.loads((tmp_path / name / "manifest.json").read_text()),
        Store(tmp_path / "store"),
    )
    iterations = manifest["runs"][0]["iterations"]
    assert len(iterations) == 1 + 2 + (name == "zephyr-7b")
    for number, iteration in enumerate(iterations):
        for stage in ("judge.mt_bench", "judge.alpaca_eval", "heldout", "academic"):
            if stage in iteration["stages"]:
                scores = pd.read_parquet(
                    store.folder(iteration["stages"][stage]) / "scores.parquet"
                )
                assert len(scores) > 0, (stage, number)
                assert stage != "academic" or scores.groupby(
                    "benchmark"
                ).size().to_dict() == dict.fromkeys(ACADEMIC_FILES, 2)
    first, last = (store.folder(iterations[n]["stages"]["train"]) for n in (1, -1))
    steps = [json.loads(line) for line in (last / "steps.jsonl").read_text().splitlines()]
    assert steps and all(step["loss"] is not None for step in steps)
    objectives = [
        store.record(iteration["stages"]["train"]).settings["objective"]["name"]
        for iteration in iterations[1:]
    ]
    assert objectives == (["dpo"] if name == "zephyr-7b" else []) + ["selm", "selm"]
    config = json.loads((last / "model" / "config.json").read_text())
    assert config["model_type"] == SHAPES[name][0]
    assert first != last
