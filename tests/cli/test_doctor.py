"""The doctor says what is wrong and what to do, and never shows a key."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from harness.cli import app, doctor
from harness.model.checkpoint import check_checkpoint
from harness.model.checkpoint_files import CheckpointError
from harness.records import HarnessError
from harness.study.sections import RankerSettings
from harness.study.settings import Recipe
from tests import tiny
from tests.study.test_recipes import RECIPES, recipe
from tests.tree import ROOT


def states(found: Any) -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.state, finding.says) for finding in found}


def test_the_pocket_study_is_well_here(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["doctor", "ablations/alpha.yaml", "--store", str(tmp_path / "store")]
    )
    assert done.exit_code == 0, done.output
    assert "0 wrong" in done.output and "versions" in done.output
    assert not (tmp_path / "store").exists()


def test_a_package_out_of_range_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda name: ["torch>=99", "no-such-package>=1", "numpy", 'vllm==1; extra == "gpu"'],
    )
    found = states(doctor.versions())
    assert found["torch"][0] == found["no-such-package"][0] == "WRONG"
    assert "pip install 'no-such-package>=1'" in found["no-such-package"][1]
    assert "vllm" not in found


def test_a_large_model_without_a_gpu_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = list(doctor.accelerators(recipe("zephyr-7b")))
    assert any(f.state == "WRONG" and "7.2 B parameters needs a GPU" in f.says for f in found)
    assert "vllm" in {f.what for f in found if f.state == "WRONG"}


@pytest.mark.parametrize(
    ("attention", "backend", "engine", "benchmarks", "flash", "vllm"),
    [
        ("flash_attention_2", "transformers", "transformers", ["heldout"], True, False),
        ("flash_attention_2", "vllm", "transformers", ["academic"], True, True),
        ("flash_attention_2", "vllm", "vllm", ["academic"], False, True),
        ("flash_attention_2", "vllm", "transformers", ["heldout"], False, True),
        ("sdpa", "transformers", "transformers", ["academic"], False, False),
        ("sdpa", "transformers", "vllm", ["academic"], False, True),
    ],
)
def test_packages_are_asked_for_where_their_engine_samples_or_reads(
    monkeypatch: pytest.MonkeyPatch,
    attention: str,
    backend: str,
    engine: str,
    benchmarks: list[str],
    flash: bool,
    vllm: bool,
) -> None:
    for module in ("harness.study.optimizers", "harness.model.vllm_engine"):
        monkeypatch.setattr(f"{module}.find_spec", lambda _: None)
    given = recipe("zephyr-7b")
    changed = {"attention": attention, "generation_backend": backend}
    model = given.model.model_copy(update=changed)
    scored = {
        "benchmarks": benchmarks,
        "academic": given.evaluation.of("academic").model_copy(update={"engine": engine}),
    }
    evaluation = given.evaluation.model_copy(update=scored)
    given = given.model_copy(update={"model": model, "evaluation": evaluation})
    found = states(doctor.accelerators(given))
    assert ("flash-attn" in found, "vllm" in found) == (flash, vllm)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, size: float) -> None:
    gpu = SimpleNamespace(name="GPU", total_memory=size)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: gpu)


def on(given: Recipe, **runtime: Any) -> Recipe:
    return given.model_copy(update={"runtime": given.runtime.model_copy(update=runtime)})


def test_a_gpu_too_small_is_told_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1, 24e9)
    found = states(doctor.accelerators(on(recipe("zephyr-7b"), processes=1, sharding="none")))
    state, says = found["memory of training"]
    assert state == "WRONG"
    assert "21.6 GB usable" in says and "try training.lora" in says
    assert found["memory of generating"][0] == "ok"
    assert "43.4 GB before the first row" in found["memory of scoring"][1]
    assert states(doctor.accelerators(recipe("small-1b-lora")))["memory of training"][0] == "ok"


def test_devices_that_only_together_hold_the_model_are_no_help_until_it_is_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_gpus(monkeypatch, 8, 80e9)
    divided = recipe("zephyr-7b")
    whole = on(divided, sharding="none")
    state, says = states(doctor.accelerators(whole))["memory of training"]
    assert state == "WRONG" and "runtime.sharding: fsdp" in says
    state, says = states(doctor.accelerators(divided))["memory of training"]
    assert state == "ok" and "72.0 GB usable" in says


def test_pickled_weights_and_code_of_a_repository_are_named(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "model", "llama", "llama3")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "model.pickle_weights" in states(doctor.model(str(folder)))[f"loading {folder}"][1]
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "made_up",
        "auto_map": {"AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "model.trust_remote_code" in states(doctor.model(str(folder)))[f"loading {folder}"][1]


def test_a_full_or_closed_disk_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=50e9))
    assert states(doctor.disk(tmp_path, recipe("zephyr-7b")))["disk"][0] == "WRONG"
    assert states(doctor.disk(tmp_path, Recipe()))["disk"][0] == "ok"
    monkeypatch.setattr("os.access", lambda folder, mode: False)
    assert states(doctor.disk(tmp_path, None))["store"][0] == "WRONG"


def test_benchmark_files_that_a_recipe_leaves_open_are_asked_for() -> None:
    found = states(doctor.files(recipe("llama-3-8b")))
    assert "evaluation.mt_bench.questions" in found["mt_bench"][1]
    assert "evaluation.alpaca_eval.instructions" in found["alpaca_eval"][1]


def test_a_models_template_is_checked(tmp_path: Path) -> None:
    good = tiny.checkpoint(tmp_path / "good", "llama", "llama3")
    assert states(doctor.model(str(good)))[f"template of {good}"] == (
        "ok",
        "passes the token check; an answer ends with '<|end_of_text|>', '<|eot_id|>'",
    )
    bad = tiny.checkpoint(
        tmp_path / "bad", "llama", "llama3", template="{{ bos_token }}{{ bos_token }}" + tiny.LLAMA3
    )
    done = CliRunner().invoke(app, ["doctor", str(bad), "--store", str(tmp_path)])
    assert done.exit_code == 1
    assert "doubled" in done.output


def test_the_hub_out_of_reach_is_a_note_when_cached_and_wrong_when_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(self: Any, name: str, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", unreachable)
    repo = SimpleNamespace(repo_id="llm-blender/PairRM-hf", repo_type="model")
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: SimpleNamespace(repos=[repo]))
    found = states(doctor.hub(recipe("zephyr-7b")))
    assert found["llm-blender/PairRM-hf"][0] == "note"
    assert (
        found["HuggingFaceH4/mistral-7b-sft-beta"][0] == "WRONG"
        and "hf download" in found["HuggingFaceH4/mistral-7b-sft-beta"][1]
    )
    assert found["HuggingFaceH4/ultrafeedback_binarized"][0] == "WRONG"
    assert (
        "hf download HuggingFaceH4/ultrafeedback_binarized --repo-type dataset"
        in found["HuggingFaceH4/ultrafeedback_binarized"][1]
    )


def test_a_hub_models_line_on_the_hub_comes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gated(self: Any, name: str, **options: Any) -> None:
        raise GatedRepoError(
            "gated",
            response=httpx.Response(
                403, request=httpx.Request("GET", "https://huggingface.co/owner/name")
            ),
        )

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", gated)
    monkeypatch.setattr("huggingface_hub.snapshot_download", gated)
    found = states(doctor.findings("owner/name", tmp_path, {}))
    assert found["owner/name"][0] == "WRONG" and "hf auth login" in found["owner/name"][1]
    assert found["loading owner/name"][0] == "WRONG"


def test_what_ranks_and_every_benchmark_has_a_line(tmp_path: Path) -> None:
    found = states(doctor.findings(str(RECIPES / "pocket.yaml"), tmp_path, {}))
    assert found["ranker oracle"][0] == "ok"
    assert {"mt_bench", "alpaca_eval", "academic"} <= set(found)


def test_recipes_and_models_are_told_apart() -> None:
    assert doctor.recipe_of(str(RECIPES / "zephyr-7b.yaml"), {}) == recipe("zephyr-7b")
    assert doctor.recipe_of("owner/name", {}) is None


def test_rows_are_shown_as_the_tokens_that_would_be_trained(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "model", "llama", "llama3")
    file = tmp_path / "pairs.jsonl"
    good = {"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A stone."}
    lines = [good, good | {"chosen": None}, good | {"prompt": "Name a tree."}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = CliRunner().invoke(app, ["doctor", str(file), "--model", str(folder)])
    assert done.exit_code == 0, done.output
    assert "2 of 3 rows are pairs" in done.output
    assert f"{file}:2" in done.output
    trained = re.findall(r"«(.*?)»", done.output, re.DOTALL)
    words = ["".join(one.split()).replace("Ġ", "").replace("▁", "") for one in trained]
    assert [word.removesuffix("<|eot_id|>") for word in words] == ["Anapple.", "Astone."] * 2
    assert all(word.endswith("<|eot_id|>") for word in words)


def test_rows_that_went_through_a_template_or_are_no_pairs_are_wrong(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "model", "llama", "llama3")
    file = tmp_path / "pairs.jsonl"
    row = {"prompt": "Name a fruit.", "chosen": "An apple.<|eot_id|>", "rejected": "A stone."}
    file.write_text(json.dumps(row) + "\n")
    found = CliRunner().invoke(app, ["doctor", str(file), "--model", str(folder)])
    assert found.exit_code == 1
    assert f"{file}:1" in found.output
    assert "<|eot_id|>" in found.output
    file.write_text(json.dumps(row | {"rejected": ""}) + "\n")
    assert CliRunner().invoke(app, ["doctor", str(file)]).exit_code == 1


def test_a_reward_model_is_looked_at_as_one(tmp_path: Path) -> None:
    folder = tiny.reward_model(tmp_path)
    found = states(doctor.model(str(folder)))
    assert found[f"ranker {folder}"] == ("ok", "LlamaForSequenceClassification, 21 tensors")
    sound = Recipe(ranker=RankerSettings(kind="reward_model", model=str(folder)))
    assert doctor.ranker(sound).state == "ok"
    weights = load_file(folder / "model.safetensors")
    weights["v_head.weight"] = weights.pop("score.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "score.weight" in states(doctor.model(str(folder)))[f"loading {folder}"][1]
    assert doctor.ranker(sound).state == "WRONG"


def test_pairrm_is_looked_at_as_a_ranker() -> None:
    folder = ROOT / "tests" / "golden" / "pairrm"
    given = next(path.parent for path in sorted(folder.rglob("config.json")))
    assert states(doctor.model(str(given)))[f"ranker {given}"][0] == "ok"


@pytest.mark.parametrize("text", ["", '{"model_type": "lla', "[1]", "null", "\ufeff{}"])
def test_a_configuration_that_is_none_is_one_message(tmp_path: Path, text: str) -> None:
    folder = tiny.checkpoint(tmp_path / "model", "llama", "llama3")
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check_checkpoint(folder, head="causal")
    assert "config.json" in states(doctor.model(str(folder)))[f"loading {folder}"][1]


def test_columns_of_other_names_are_given_as_in_a_study_and_nothing_else_is(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    row = {"ask": "Name a fruit.", "good": "An apple.", "bad": "A stone."}
    file.write_text(json.dumps(row) + "\n")
    assert CliRunner().invoke(app, ["doctor", str(file)]).exit_code == 1
    names = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    given = [part for our, own in names.items() for part in ("--set", f"data.columns.{our}={own}")]
    assert "1 of 1 rows are pairs" in CliRunner().invoke(app, ["doctor", str(file), *given]).output
    for ignored in (["--set", "data.seed=1"], ["--set", "training.epochs=2"]):
        done = CliRunner().invoke(app, ["doctor", str(file), *ignored])
        assert isinstance(done.exception, HarnessError)
    done = CliRunner().invoke(app, ["doctor", "ablations/alpha.yaml", "--model", "x"])
    assert isinstance(done.exception, HarnessError)
