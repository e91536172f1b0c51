"""Small preference rows and stage folders for the training tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.records import Pair, StageOutcome, StageTask, write_jsonl
from harness.stages import reference, train
from harness.train.batching import PreferenceRow
from harness.train.trainer import PreferenceConfig
from tests import tiny
from tests.tasks import stage_task

VOCABULARY = 61
ROLES = ("chosen", "rejected", "explore")
RARITY = 0.7
"""Of every y, for objectives that read it."""


class Tokens:
    """Just enough of a tokenizer to size a model."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __len__(self) -> int:
        return VOCABULARY


def model(architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return tiny.model(architecture, Tokens(), **{"initializer_range": 0.15, **changes}).to(dtype)


def rows(count: int = 12, seed: int = 0) -> list[PreferenceRow]:
    """Ragged rows. In turn y is the chosen one, the rejected one, neither, or both; some prompts
    and responses have one token.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(most: int) -> tuple[int, ...]:
        size = int(torch.randint(1, most + 1, (), generator=generator))
        return tuple(torch.randint(3, VOCABULARY, (size,), generator=generator).tolist())

    made = []
    for number in range(count):
        chosen, rejected, other = ids(9), ids(9), ids(9)
        y = (chosen, rejected, other, chosen)[number % 4]
        if number % 4 == 3:
            rejected = chosen
        prompt = ids(1) if number % 5 == 0 else ids(14)
        role = ("winner", "loser", "middle", "winner")[number % 4]
        made.append(
            PreferenceRow(
                f"p{number}",
                prompt,
                {"chosen": chosen, "rejected": rejected, "explore": y},
                y_role=role,
                extras={"explore": RARITY},
            )
        )
    return made


def config(folder: Path, **changes: Any) -> PreferenceConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "beta": 0.1,
        "alpha": 0.5,
        "global_batch_size": 6,
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 5,
    }
    return PreferenceConfig(**{**settings, **changes})


def trls(
    policy: Any,
    reference: Any,
    batch: Sequence[PreferenceRow],
    tokenizer: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    **changes: Any,
) -> Any:
    """TRL's DPOTrainer on these rows in their order, tokens in, as ours: its own tokenisation is
    not what is compared.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", lambda self, dataset, *arguments: dataset)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "CI"):
        monkeypatch.setenv(name, "1")
    common = {"beta": 0.1, "max_length": 256, "train_sampling_strategy": "sequential"}
    common |= {"save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    common |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    columns = [
        {
            "prompt_ids": [*row.prompt_ids],
            "chosen_ids": [*row.responses["chosen"]],
            "rejected_ids": [*row.responses["rejected"]],
        }
        for row in batch
    ]
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(output_dir=str(folder), **common | changes),
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
    )


# A stage's folders.

QUESTIONS = ["Add 2 and 3.", "Name a colour.", "Reverse abc.", "Is 7 odd?", "Say it twice: hi."]


def write_pairs(folder: Path, count: int = 10, long_y: bool = False, same_start: int = 0) -> Path:
    """long_y: one y in three is over the limit. same_start: characters that the two answers of one
    more pair begin with alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number in range(count):
        messages = (
            {"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"},
        )
        chosen, rejected = f"The answer is {number}.", f"{number + 1}?"
        y, role = ((chosen, "winner"), (rejected, "loser"), (f"Maybe {number * 3}", "middle"))[
            number % 3
        ]
        if long_y and role == "middle":
            y = y + " and so on" * 20
        scores = {"chosen": 1.0, "rejected": 0.0, "explore": 0.5}
        pairs.append(Pair(f"p{number}", messages, chosen, rejected, y, scores=scores, y_role=role))  # type: ignore[arg-type]
    if same_start:
        start = "a" * same_start
        messages = ({"role": "user", "content": f"{QUESTIONS[0]} (0)"},)
        pairs.append(Pair("same", messages, f"{start} yes", f"{start} no", ""))
    write_jsonl(folder / "pairs.jsonl", pairs)
    return folder


TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 4,
    "epochs": 2,
    "warmup_ratio": 0.1,
    "scheduler": "cosine",
    "optimizer": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": 128,
    "max_prompt_length": 96,
    "gradient_checkpointing": False,
    "lora": None,
}
COMMON = {"dtype": "float32", "attention": "sdpa", "threads": 1}


def base(tmp: Path) -> Path:
    """A tiny policy folder, written once per ``tmp``."""
    folder = tmp / "base"
    if not folder.exists():
        tiny.checkpoint(folder / "model", initializer_range=0.15)
    return folder


def stage_inputs(
    tmp: Path,
    roles: Sequence[str] = ROLES,
    scoring: Mapping[str, Any] | None = None,
    runtime: Mapping[str, Any] | None = None,
    **pairs: Any,
) -> dict[str, Path]:
    """Folders that the train stage reads, made by the reference stage from a tiny policy."""
    inputs = {
        "policy": base(tmp),
        "pairs": write_pairs(tmp / "pairs", **pairs),
        "reference": tmp / "reference",
        "reference_policy": base(tmp),
    }
    inputs["reference"].mkdir(exist_ok=True)
    settings = {**COMMON, "max_length": 128, "max_prompt_length": 96, "roles": list(roles)}
    settings |= scoring or {}
    scored = {name: inputs[name] for name in ("policy", "pairs")}
    told = {"device": "cpu", **(runtime or {})}
    reference.run(stage_task("r", "reference", settings, scored, inputs["reference"], told))
    return inputs


def train_task(
    inputs: Mapping[str, Path],
    out: Path,
    *,
    runtime: Mapping[str, Any] | None = None,
    **changes: Any,
) -> StageTask[Any]:
    """A train task; ``changes`` go to objective, training, or the settings themselves, by name."""
    objective: dict[str, Any] = {"name": "selm", "alpha": 0.5, "beta": 0.1}
    objective |= {"placebo": "none", "params": {}}
    settings: dict[str, Any] = {"seed": 0, "iteration": 1, **COMMON}
    training = dict(TRAINING)
    for name, value in changes.items():
        target = objective if name in objective else training if name in training else settings
        target[name] = value
    out.mkdir(parents=True, exist_ok=True)
    merged = {"objective": objective, "training": training, **settings}
    return stage_task(
        "t",
        "train",
        merged,
        dict(inputs),
        out,
        {"device": "cpu", "token_budget": 8192, "micro_batch": 64, **(runtime or {})},
    )


def run_train(inputs: Mapping[str, Path], out: Path, **changes: Any) -> StageOutcome:
    return train.run(train_task(inputs, out, **changes))
