"""TRL's configurations become studies: TRL's own parser reads them first, the study plans, and no
field is lost on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli import app, console, import_trl, trl_fields
from harness.engine.launch import build_plan
from harness.records import HarnessError
from harness.study.study import load_study
from tests.processes import selm

FULL = {
    "model_name_or_path": "Qwen/Qwen3-0.6B",
    "dataset_name": "trl-lib/ultrafeedback_binarized",
    "loss_type": ["sigmoid"],
    "beta": 0.05,
    "learning_rate": "5e-7",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "num_train_epochs": 2,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "steps",
    "eval_steps": 50,
    "output_dir": "out",
    "seed": 7,
}
LORA = FULL | {
    "loss_type": ["robust"],
    "label_smoothing": 0.2,
    "use_peft": True,
    "lora_r": 32,
    "lora_alpha": 16,
    "dtype": "bfloat16",
    "max_steps": 100,
}
BOTH = FULL | {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}
ONLINE = {
    "model_name_or_path": "Qwen/Qwen3-0.6B",
    "reward_model_path": "REWARD",
    "dataset_name": "trl-lib/ultrafeedback-prompt",
    "beta": [0.1, 0.05],
    "max_new_tokens": 53,
    "output_dir": "out",
    "bf16": False,
}
CASES = {"full": (FULL, "dpo"), "lora": (LORA, "dpo"), "both": (BOTH, "dpo")}
CASES |= {"online": (ONLINE, "online-dpo")}
ODDS = {key: value for key, value in FULL.items() if key != "loss_type"}
ODDS |= {"lora_target_modules": ["q_proj"]}  # a list: each field on its line
CASES |= {"orpo": (ODDS | {"max_length": 512}, "orpo")}
HANDBOOK = {
    "model_name_or_path": "alignment-handbook/zephyr-7b-sft-full",
    "torch_dtype": None,
    "dataset_mixer": {"HuggingFaceH4/ultrafeedback_binarized": 1.0},
    "dataset_splits": ["train_prefs", "test_prefs"],
    "bf16": True,
    "beta": 0.01,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-7,
    "lr_scheduler_type": "cosine",
    "max_length": 1024,
    "max_prompt_length": 512,
    "num_train_epochs": 1,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 8,
    "evaluation_strategy": "steps",
    "adam_beta2": 0.95,
    "warmup_ratio": 0.1,
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sentence of a table is broken (a worker of pytest's has 80 columns, whatever is set)."""
    monkeypatch.setattr(console.console, "width", 400)


def written(folder: Path, values: dict[str, Any], *options: str) -> tuple[Path, str]:
    """The study that the command writes, and what it prints."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False, default_flow_style=None))
    arguments = ["import-trl", str(config), "--out", str(folder), "--name", "mine", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "mine.yaml", done.output


def by_trl(folder: Path, values: dict[str, Any], method: str) -> dict[str, Any]:
    """What TRL's own parser makes of it."""
    import trl
    from trl.experimental.online_dpo import OnlineDPOConfig
    from trl.experimental.orpo import ORPOConfig

    (folder / "theirs.yaml").write_text(yaml.safe_dump(values))
    kind = {"dpo": trl.DPOConfig, "orpo": ORPOConfig, "online-dpo": OnlineDPOConfig}[method]
    parser = trl.TrlParser((trl.ScriptArguments, kind, trl.ModelConfig))
    parts = parser.parse_args_and_config(["--config", str(folder / "theirs.yaml"), "--use_cpu"])
    return {key: value for part in parts for key, value in vars(part).items()}


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_that_trl_reads_becomes_a_study_that_plans(
    name: str, tmp_path: Path
) -> None:
    values, method = CASES[name]
    theirs = by_trl(tmp_path, values, method)
    path, _ = written(tmp_path, values, "--method", method)
    study = load_study(path)
    recipe, training = study.base, study.base.training
    assert build_plan(study).nodes
    assert study.seeds == (theirs["seed"],)
    assert training.learning_rate == theirs["learning_rate"]
    rows = theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"]
    assert training.batch_size == rows
    assert training.optimizer == theirs["optim"]
    assert training.scheduler == theirs["lr_scheduler_type"].value
    assert training.warmup_ratio == theirs["warmup_steps"]
    assert training.max_length == theirs["max_length"]
    assert training.gradient_checkpointing is theirs["gradient_checkpointing"] is True
    assert recipe.objective.beta == theirs["beta"]
    assert recipe.model.dtype == ("bfloat16" if theirs["bf16"] else "float32")
    assert recipe.data.train_split == theirs["dataset_train_split"]


def test_what_differs_between_the_methods_is_written(tmp_path: Path) -> None:
    def recipe(name: str) -> Any:
        (tmp_path / name).mkdir()
        values, method = CASES[name]
        return load_study(written(tmp_path / name, values, "--method", method)[0]).base

    full, lora, both, online, orpo = map(recipe, CASES)
    assert (full.objective.name, full.loop.mode, full.training.epochs) == ("dpo", "stepwise", 2)
    assert lora.objective.params == {"epsilon": 0.2}
    lora_of = lora.training.lora
    assert (lora_of.r, lora_of.alpha, lora_of.dropout) == (32, 16, 0.0)
    assert lora_of.target_modules == ["q_proj", "v_proj"]
    assert (lora.data.prompts, lora.training.epochs) == (1600, 1)
    assert (both.objective.name, both.objective.params) == ("rpo", {"weight": 0.2})
    assert (orpo.objective.name, orpo.objective.params, orpo.loop.mode) == ("orpo", {}, "stepwise")
    assert (online.loop.mode, online.loop.iterations, online.loop.portions) == ("online", 3, 1)
    assert (online.pairs.offline, online.pairs.y, online.pairs.current) == (False, 0, 2)
    assert (online.pairs.temperature, online.exploration.max_new_tokens) == (0.9, 53)
    assert online.training.max_prompt_length == 512 - 53
    assert (online.ranker.kind, online.ranker.model) == ("reward_model", "REWARD")


def test_xpo_which_trl_removed(tmp_path: Path) -> None:
    values = ONLINE | {"alpha": [1e-5, 1e-6], "beta": 0.1}
    path, _ = written(tmp_path, values, "--method", "xpo", "--draws", "2")
    recipe = load_study(path).base
    assert build_plan(load_study(path)).nodes
    assert recipe.objective.name == "xpo"
    assert recipe.objective.alpha == [1e-5, 1e-5, 1e-6, 1e-6]
    assert (recipe.loop.iterations, recipe.loop.portions) == (6, 2)
    assert (recipe.exploration.policy, recipe.pairs.y, recipe.pairs.current) == ("first", 1, 1)


def test_a_recipe_of_the_alignment_handbook(tmp_path: Path) -> None:
    path, printed = written(tmp_path, HANDBOOK, "--processes", "8")
    recipe = load_study(path).base
    assert (recipe.training.batch_size, recipe.training.warmup_ratio) == (128, 0.1)
    assert recipe.training.truncation == "prompt_first"
    assert recipe.data.path == "HuggingFaceH4/ultrafeedback_binarized"
    assert recipe.data.heldout_split == "test_prefs"
    said = "adam_beta2 (line 16): 0.95: CHANGES NUMBERS: there is no such key"
    assert said in path.read_text()
    assert "adam_beta2 (line 16)" in printed
    assert "evaluation_strategy (line 15): steps: no number depends on it" in path.read_text()


@pytest.mark.parametrize(
    ("files", "read"),
    [
        ("one.jsonl", "one.jsonl"),
        (["one.jsonl", "two.jsonl"], "one.jsonl"),
        ({"test": "held.jsonl", "train": "one.jsonl"}, "one.jsonl"),
    ],
)
def test_files_that_are_not_read_are_told(files: Any, read: str, tmp_path: Path) -> None:
    mixture = {"datasets": [{"path": "json", "data_files": files}]}
    values = {key: one for key, one in FULL.items() if key != "dataset_name"} | mixture
    path, printed = written(tmp_path, values)
    assert load_study(path).base.data.path == read
    assert ("CHANGES NUMBERS: of data_files one.jsonl is read" in printed) is (files != read)


def test_splits_between_the_first_and_the_last_are_told(tmp_path: Path) -> None:
    _, printed = written(tmp_path, HANDBOOK | {"dataset_splits": ["train", "more", "test"]})
    assert "CHANGES NUMBERS: the first is trained on, the last is held out" in printed


def test_what_orpo_counts_otherwise_is_told(tmp_path: Path) -> None:
    path, printed = written(tmp_path, ODDS, "--method", "orpo")
    assert "beta (line 3): 0.05: CHANGES NUMBERS: objective orpo" in path.read_text()
    assert "beta (line 3)" in printed


def test_adapters_over_four_bits_stay_that(tmp_path: Path) -> None:
    path, printed = written(tmp_path, LORA | {"load_in_4bit": True, "use_bnb_nested_quant": True})
    lora = load_study(path).base.training.lora
    assert lora and lora.base == "nf4"
    assert "quant" not in printed


def test_adapters_have_the_dropout_that_trl_leaves_them(tmp_path: Path) -> None:
    """TRL switches dropout off after it has made the adapters."""
    for number, off in enumerate((True, False)):
        values = LORA | {"lora_dropout": 0.1, "disable_dropout": off}
        path, printed = written(tmp_path / str(number), values)
        lora = load_study(path).base.training.lora
        assert lora
        assert lora.dropout == (0.0 if off else 0.1)
        assert ("disable_dropout (line" in printed) is not off


def test_no_clipping_stays_none(tmp_path: Path) -> None:
    for given, read in ((None, 0.0), (0.0, 0.0), (0.3, 0.3)):
        path, _ = written(tmp_path / str(given), FULL | {"max_grad_norm": given})
        assert load_study(path).base.training.max_grad_norm == read


def other(kind: Any, default: Any) -> Any:
    """A value of a field that is not its default."""
    text = str(kind)
    if "bool" in text and default in (True, False, None):
        return default is False
    if isinstance(default, int | float):
        return default + 2
    if "dict" in text:
        return {"a": 1.0}
    return ["other"] if "list" in text else "other"


@pytest.mark.parametrize("method", trl_fields.METHODS)
def test_no_field_of_trl_vanishes(method: str, tmp_path: Path) -> None:
    """Each field by itself, set to what is not its default, changes the recipe, is told with its
    line, or is refused by name.
    """
    base = {"dpo": FULL, "orpo": ODDS}.get(method, {**ONLINE, "bf16": None})

    def made(values: dict[str, Any]) -> tuple[Any, Any]:
        (tmp_path / "one.yaml").write_text(
            yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
        )
        given = trl_fields.Configuration(tmp_path / "one.yaml", method)
        recipe = import_trl.recipe_of(given, 1, 1)
        return (recipe, given.take("seed")), {place for place, _, _ in given.told()}

    (tmp_path / "one.yaml").write_text(yaml.safe_dump(base))
    fields = trl_fields.Configuration(tmp_path / "one.yaml", method).fields
    before, _ = made(base)
    lost = []
    for field, (kind, default) in fields.items():
        values = {key: value for key, value in base.items() if key != field}
        values[field] = other(kind, default)
        try:
            after, told = made(values)
        except HarnessError as error:
            lost += [] if f": {field}: " in str(error) else [field]
            continue
        line = f"{field} (line {len(values)})"
        lost += [field] if after == before and line not in told else []
    assert not lost, " ".join(lost)
    assert len(fields) > 150


def test_unknown_fields_are_errors_that_name_every_line(tmp_path: Path) -> None:
    values = {"learnig_rate": 1e-6, **FULL, "max_new_tokens": 64}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False, default_flow_style=None))
    with pytest.raises(HarnessError) as caught:
        trl_fields.Configuration(config, "dpo")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{config}:1: learnig_rate is no field")
    assert "did you mean learning_rate?" in first
    assert second.startswith(f"{config}:16: max_new_tokens")
    assert "--method online-dpo" in second


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss_type": ["aot"]}, "config.yaml:3: loss_type: aot is no objective here"),
        ({"beta": "strong"}, "config.yaml:4: beta: 'strong': Input should be a valid number"),
        ({"model_name_or_path": None}, "config.yaml:1: model_name_or_path: a study needs the"),
    ],
)
def test_what_cannot_be_a_study_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(FULL | change, sort_keys=False, default_flow_style=None))
    with pytest.raises(HarnessError) as caught:
        import_trl.recipe_of(trl_fields.Configuration(config, "dpo"), 1, 1)
    assert said in str(caught.value)


@pytest.mark.slow
def test_a_converted_study_runs_on_the_pocket_world(tmp_path: Path) -> None:
    path, _ = written(tmp_path, FULL | {"beta": 0.1})
    changes = (
        "model.source=pocket data.source=pocket data.path= model.dtype=float32 "
        "ranker.kind=oracle ranker.model= pocket.steps=60 pocket.rows=1000 data.prompts=64 "
        "data.heldout=8 training.max_length=128 training.max_prompt_length=64 "
        "evaluation.heldout_max_new_tokens=24 diagnostics.enabled=false runtime.processes=1"
    )
    places = ("--store", tmp_path / "store", "--results", tmp_path / "results")
    settings = [f"--set={change}" for change in changes.split()]
    selm("run", path, "--executor", "inline", *places, *settings)
    report = (tmp_path / "results" / "mine" / "report" / "report.md").read_text()
    assert "In all: 16 ok." in report  # rewards of 8 held-out prompts, before and after
