"""``selm plan --cost``: counts by hand, every stage counted, measured seconds before priors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cost import (
    DEVICES,
    Assumptions,
    Budget,
    amount,
    budget,
    cost_of_seeds,
    generating_bytes,
    verdict,
)
from harness.engine.launch import prepare, prepare_recipe
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.model.shape import KNOWN, shape_from_config, shape_of, training_bytes
from harness.records import HarnessError
from harness.study.study import PAPER_SEED
from harness.study.work import Work
from tests import tiny
from tests.study.test_recipes import RECIPES, recipe
from tests.tasks import commit_finished

ROOT = Path(__file__).parents[2]
ALPHA = ROOT / "tests" / "grid.yaml"
ZEPHYR = RECIPES / "zephyr-7b.yaml"


def budget_of(path: Path, store: Path, **overrides: Any) -> Budget:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return budget(prepare_recipe(path, changes), Store(store), Assumptions())


@pytest.mark.parametrize(
    ("source", "published"),
    [
        ("HuggingFaceH4/mistral-7b-sft-beta", 7.242e9),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030e9),
        ("microsoft/Phi-3-mini-4k-instruct", 3.821e9),
        ("Qwen/Qwen3-1.7B", 1.721e9),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.236e9),
        ("microsoft/Phi-4-mini-instruct", 3.836e9),
        ("google/gemma-3-1b-it", 1.000e9),
    ],
)
def test_known_shapes_have_the_published_parameters(source: str, published: float) -> None:
    assert KNOWN[source].parameters == pytest.approx(published, rel=1e-3)


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 1}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("mistral", {}), ("gpt_neox", {}), ("gpt2", {"n_embd": 32}), ("mixtral", EXPERTS)],
)
def test_the_shape_of_a_folder_counts_the_models_own_parameters(
    architecture: str, changes: dict[str, int], tmp_path: Path
) -> None:
    folder = tiny.checkpoint(tmp_path, architecture, "chatml", **changes)
    small = recipe("small-1b-lora")
    model = small.model.model_copy(update={"source": str(folder)})
    counted = shape_of(small.model_copy(update={"model": model}))
    own = tiny.model(architecture, tiny.tokenizer("chatml"), **changes)
    assert counted.parameters == own.num_parameters()
    idle = 3 * 2 * 3 * 32 * 64 if changes is EXPERTS else 0
    assert counted.active == own.num_parameters() - idle, "three of four experts in two layers"


def test_a_model_of_unknown_size_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="hf download nobody/nothing"):
        budget_of(ZEPHYR, tmp_path, model__source="nobody/nothing")


def test_zephyrs_training_by_hand(tmp_path: Path) -> None:
    found = budget_of(ZEPHYR, tmp_path, evaluation__alpaca_eval__judge="gpt-4-1106-preview")
    trained = found.of("train")
    names = [line.node.settings.objective.name for line in trained]  # type: ignore[attr-defined]
    assert names == ["dpo", "selm", "selm", "selm"]
    tokens = 15_283 * (180 + 7 / 3 * 300)
    assert trained[1].work.trained == pytest.approx(tokens)
    operations = 6 * found.shape.parameters * tokens
    assert trained[1].seconds == pytest.approx(operations / (989e12 * 0.35))
    assert trained[0].work.trained == pytest.approx(15_283 * (180 + 600))
    assert sum(line.work.judge_calls for line in found.lines) == 5 * (160 + 805)
    verdicts = sum(line.usd for line in found.of("judge.alpaca_eval"))
    assert verdicts == pytest.approx(5 * 805 * (1300 * 10 + 1 * 30) / 1e6)
    states = training_bytes(found.shape, found.plan.study.base)
    assert states == pytest.approx(16 * found.shape.parameters / 8), "eight shards"


def test_lora_needs_the_adapters_optimiser_only() -> None:
    small = recipe("small-1b-lora")
    shape = shape_of(small)
    adapters = 28 * 16 * ((2048 + 2048) * 2 + (2048 + 1024) * 2 + 3 * (2048 + 6144))
    assert shape.adapters(16) == adapters
    assert training_bytes(shape, small) == 2 * shape.parameters + 16 * adapters
    assert sum(generating_bytes(small, shape)) < 0.9 * 24e9


def test_verdicts_say_by_how_much() -> None:
    card = DEVICES["rtx4090"]
    assert verdict(20e9, card) == "20.0 of 22 GB usable on one RTX 4090 24 GB: fits"
    assert verdict(30e9, card).startswith("30.0 GB, 8.4 too much for one RTX 4090 24 GB")


def test_amounts_are_readable() -> None:
    assert [amount(value) for value in (0, 999, 1234, 5.38e7, 2.6e9)] == [
        "0",
        "999",
        "1.2 k",
        "53.8 M",
        "2.6 B",
    ]


def test_elapsed_time_is_shared_work_but_never_less_than_the_longest_chain(tmp_path: Path) -> None:
    found = budget_of(ALPHA, tmp_path)
    total = sum(line.seconds for line in found.lines)
    assert found.elapsed(1) == pytest.approx(total)
    assert found.elapsed(2) == pytest.approx(total / 2)
    chain = found.elapsed(10_000)
    per_iteration = sum(STAGES[name].seconds for name in ("rollout", "rank", "reference", "train"))
    start = STAGES["data.pocket"].seconds + STAGES["base.pocket"].seconds
    assert chain >= start + 3 * per_iteration
    assert chain < total / 5


def test_a_recipe_stands_in_for_a_study() -> None:
    plan = prepare_recipe(ZEPHYR, {})
    assert [run.cell.seed for run in plan.runs] == [PAPER_SEED]


@pytest.mark.parametrize("name", ["zephyr-7b", "llama-3-8b"])
def test_the_command_prints_a_budget_that_can_be_followed(name: str, tmp_path: Path) -> None:
    arguments = ["plan", str(RECIPES / f"{name}.yaml"), "--cost", "--store", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--gpu-price", "2.5"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for text in (
        "× (180 read + 300 generated) tokens",
        "tokens / (989 T × 0.35)",
        "GPU-hours:",
        "× 2.50 USD",
        "Judge:",
        "Memory of training before the first row: weights:",
        "GB usable on one H100 80 GB: fits",
        "needs a node of 8 GPUs, and on each",
        "Assumptions:",
    ):
        assert text in result.output, text


def test_a_plan_says_which_node_training_needs(tmp_path: Path) -> None:
    recipes = (("zephyr-7b", "8 GPUs, and on each 14.5 GB"), ("phi-3-mini", "one GPU, and on each"))
    for name, node in recipes:
        study = tmp_path / f"{name}.yaml"
        study.write_text(
            f"name: which\nquestion: Which node?\nrecipe: {RECIPES / name}.yaml\nseeds: [0]\n"
        )
        result = CliRunner().invoke(
            app, ["plan", str(study), "--store", str(tmp_path)], env={"COLUMNS": "300"}
        )
        assert f"needs a node of {node}" in result.output, result.output


def test_hours_of_cores_are_not_called_gpu_hours(tmp_path: Path) -> None:
    arguments = ["plan", str(ZEPHYR), "--cost", "--device", "cpu", "--store", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Core-hours: " in result.output
    assert "GPU-hours" not in result.output


def test_what_a_seed_takes_leaves_out_what_all_seeds_share(tmp_path: Path) -> None:
    found = budget_of(ALPHA, tmp_path, seeds=[0, 1])
    hours = {"base.pocket": 1000.0, "train": 3.0}
    lines = [
        replace(line, seconds=3600 * hours.get(line.node.stage, 0.0), work=Work())
        for line in found.lines
    ]
    arms = len(found.plan.runs) // 2
    said = cost_of_seeds(replace(found, lines=tuple(lines)), 1, "x")
    hours = f"{3.0 * 3 * arms:.3g} core-hours"  # three iterations an arm
    assert f"1 seeds, {hours}, 0.00 USD" in said and f"takes {hours} and 0.00 USD" in said


def test_a_seed_of_a_paid_judge_has_a_price(tmp_path: Path) -> None:
    study = tmp_path / "paid.yaml"
    study.write_text(
        f"name: paid\nquestion: q\nrecipe: {RECIPES / 'zephyr-7b.yaml'}\nseeds: [0, 1]\n"
    )
    found = budget(prepare(study, {"judge": "gpt-4"}), Store(tmp_path), Assumptions())
    usd = sum(line.usd for line in found.lines if line.judge) / 2
    assert usd > 0
    said = cost_of_seeds(found, 8, "1 LC point")
    assert said.startswith("Cost of detecting 1 LC point: 8 seeds, ")
    assert f"GPU-hours, {8 * usd:,.2f} USD of judge (a seed of every arm takes " in said
    assert said.endswith(f" GPU-hours and {usd:,.2f} USD).")


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    arguments = ["plan", str(ZEPHYR), "--cost", "--device", "abacus", "--store", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert "abacus" in str(result.exception)


def test_every_stage_of_the_studies_is_counted(tmp_path: Path) -> None:
    for path in (ALPHA, ROOT / "ablations" / "pair_rule.yaml"):
        for line in budget_of(path, tmp_path).lines:
            moved = line.node.stage.startswith(("data.", "benchmarks.", "pairs."))
            assert moved or line.work.how, line.node.stage


def test_measured_seconds_come_before_priors(tmp_path: Path) -> None:
    plan, store = prepare(ALPHA, {}), Store(tmp_path)
    store.open()
    nodes = list(plan.nodes.values())
    base = next(node for node in nodes if node.stage == "base.pocket")
    rollout, other = [node for node in nodes if node.stage == "rollout"][:2]
    for node, seconds in ((base, 50.0), (rollout, 7.0)):
        commit_finished(store, node, seconds)
    found = budget(plan, store, Assumptions())
    line = next(line for line in found.lines if line.node.key == other.key)
    assert (line.seconds, line.source) == (7.0, "measured")
    trained = found.of("train")[0]
    assert (trained.seconds, trained.source) == (STAGES["train"].seconds, "prior")


def test_a_training_row_holds_no_more_than_its_limit(tmp_path: Path) -> None:
    changes = {"training__max_length": 300, "training__max_prompt_length": 200}
    found = budget_of(ZEPHYR, tmp_path / "store", **changes)
    assert "pairs × (180 + 2.33 × 120) tokens" in found.of("reference")[-1].work.how


def test_what_an_objective_reads_of_the_whole_batch_is_counted(tmp_path: Path) -> None:
    """KTO reads another row's two answers after each prompt, β-DPO its pair once more."""
    trained = {}
    for name in ("dpo", "kto", "beta_dpo"):
        trained[name] = budget_of(ZEPHYR, tmp_path, objective__name=name).of("train")[-1].work
    assert trained["dpo"].read == 0
    for name in ("kto", "beta_dpo"):
        assert trained[name].read == 15_283 * (180 + 2 * 300)
        assert trained[name].trained == trained["dpo"].trained
        assert "and × (180 + 2 × 300) read before, for the batch's mean" in trained[name].how


@pytest.mark.parametrize(
    ("said", "heads"),
    [
        ({"multi_query": True}, 1),
        ({"multi_query": False}, 4),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"new_decoder_architecture": False, "num_kv_heads": 2}, 1),
    ],
)
def test_falcons_keys_are_as_many_as_its_own_settings_say(said: dict[str, int], heads: int) -> None:
    """They name them otherwise: 71 of Falcon 7B's 71 heads would be counted, of which one is."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
    found = shape_from_config("falcon", {"model_type": "falcon", **sizes, **said})
    assert (found.kv_heads, found.head_size) == (heads, 8)
    assert found.cache_per_token == 2 * 2 * heads * 8
