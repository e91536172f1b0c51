"""What a study will take: counts by hand, measured rates before assumed ones, and an estimate that the run then keeps to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.commands import prepare, run_study
from harness.cost import DEVICES, Assumptions, Line, Need, budget, lora_parameters, memory, wall_seconds
from harness.cost_view import PAPER_SEED, amount, plan_of, verdict
from harness.records import HarnessError
from harness.store import Store
from harness.work import KNOWN, Work, shape_of
from tests import tiny
from tests.test_recipes import RECIPES, recipe

ROOT = Path(__file__).parent.parent
ZEPHYR = RECIPES / "zephyr-7b.yaml"


@pytest.mark.parametrize(
    ("source", "published"),
    [
        ("HuggingFaceH4/mistral-7b-sft-beta", 7.242e9),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030e9),
        ("microsoft/Phi-3-mini-4k-instruct", 3.821e9),
        ("Qwen/Qwen3-1.7B", 1.721e9),
    ],
)
def test_known_shapes_have_the_published_parameters(source: str, published: float) -> None:
    assert KNOWN[source].parameters == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3"])
def test_the_shape_of_a_folder_counts_the_models_own_parameters(architecture: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, architecture, "chatml")
    counted = shape_of(recipe("small-1b-lora").model_copy(update={"model": recipe("small-1b-lora").model.model_copy(update={"source": str(folder)})}))
    own = tiny.model(architecture, tiny.tokenizer("chatml"))
    norms = sum(p.numel() for name, p in own.named_parameters() if "norm" in name)
    assert counted.parameters == own.num_parameters() - norms


def test_a_model_of_unknown_size_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="hf download nobody/nothing"):
        plan = plan_of(ZEPHYR, {"model.source": "nobody/nothing"})
        budget(plan, Store(tmp_path), Assumptions())


def test_zephyrs_training_by_hand(tmp_path: Path) -> None:
    found = budget(plan_of(ZEPHYR, {}), Store(tmp_path), Assumptions())
    trained = found.of("train")
    assert [line.node.settings["objective"]["name"] for line in trained] == ["dpo", "selm", "selm", "selm"]
    tokens = 15_283 * (180 + 7 / 3 * 300)
    assert trained[1].work.trained == pytest.approx(tokens)
    assert trained[1].work.flops == pytest.approx(6 * found.shape.parameters * tokens)
    assert trained[1].seconds == pytest.approx(6 * found.shape.parameters * tokens / (989e12 * 0.35))
    assert trained[0].work.trained == pytest.approx(15_283 * (180 + 600))
    assert sum(line.work.judge_calls for line in found.lines) == 5 * (160 + 805)
    assert found.usd(found.of("judge.alpaca_eval")) == pytest.approx(5 * 805 * (1300 * 10 + 1 * 30) / 1e6)
    assert sum(need.alone for need in found.memory["training"][:3]) == pytest.approx(16 * found.shape.parameters)


def test_lora_needs_the_adapters_optimiser_only() -> None:
    small = recipe("small-1b-lora")
    shape = shape_of(small)
    assert lora_parameters(shape, 16) == 28 * 16 * ((2048 + 2048) * 2 + (2048 + 1024) * 2 + 3 * (2048 + 6144))
    needs = memory(small, shape, Assumptions(DEVICES["rtx4090"], 1))
    assert all(sum(need.alone for need in parts) < 0.9 * 24e9 for parts in needs.values())


def test_verdicts_say_by_how_much() -> None:
    assert "fits on one device" in verdict([Need("a", "", 10e9, 10e9)], 80e9, "X", 8)
    text = verdict([Need("a", "", 100e9, 12.5e9)], 80e9, "X", 8)
    assert "28.0 too much for one X" in text and "12.5 each: fits" in text
    assert "use LoRA" in verdict([Need("a", "", 800e9, 100e9)], 80e9, "X", 8)


def test_amounts_are_readable() -> None:
    assert [amount(x) for x in (12, 1500, 2_500_000, 7.24e9)] == ["12", "1.5 k", "2.5 M", "7.2 B"]


def test_elapsed_time_of_a_chain_and_of_independent_stages() -> None:
    plan = prepare(ROOT / "tests" / "e2e.yaml", {})
    lines = [Line(node, Work(), 1.0, "") for node in plan.nodes.values()]
    assert wall_seconds(plan, lines, 1) == len(lines)
    depth: dict[str, int] = {}
    for key, node in plan.nodes.items():
        depth[key] = 1 + max((depth[parent] for parent in node.inputs.values()), default=0)
    assert wall_seconds(plan, lines, 1000) == max(depth.values())
    assert max(depth.values()) < wall_seconds(plan, lines, 3) < len(lines)


def test_a_recipe_stands_in_for_a_study() -> None:
    plan = plan_of(ZEPHYR, {"loop.iterations": 1})
    assert [cell.seed for cell in plan.study.cells] == [PAPER_SEED]
    assert sum(node.stage == "train" for node in plan.nodes.values()) == 2


@pytest.mark.parametrize("name", ["zephyr-7b", "llama-3-8b"])
def test_the_command_prints_a_budget_that_can_be_followed(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(RECIPES / f"{name}.yaml"), "--cost", "--devices", "8", "--store", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for text in ("GPU-hours:", "Judge:", "too much for one H100 80 GB", "Assumptions:", "A prompt has 180 tokens"):
        assert text in done.output
    assert not any(tmp_path.iterdir())


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(ZEPHYR), "--cost", "--device", "abacus", "--store", str(tmp_path)])
    assert isinstance(done.exception, HarnessError)


@pytest.mark.slow
def test_the_pocket_estimate_comes_from_measured_stages_and_has_the_runs_size(tmp_path: Path) -> None:
    study, store = ROOT / "tests" / "e2e.yaml", Store(tmp_path / "store")
    options = {"executor": "inline", "workers": 1, "report": False}
    assert run_study(study, store.root, tmp_path, {"loop.prompts_per_iteration": 128}, **options) == 0
    bigger = {"loop.prompts_per_iteration": 128, "loop.iterations": 3, "training.epochs": 2}
    found = budget(prepare(study, bigger), store, Assumptions())
    assert {line.source.split(" ")[0] for line in found.lines} == {"measured"}
    started = time.perf_counter()
    assert run_study(study, store.root, tmp_path, bigger, **options) == 0
    elapsed = time.perf_counter() - started
    expected = wall_seconds(found.plan, found.lines, 1)
    assert elapsed / 6 < expected < elapsed * 6  # units and scaling; how close it comes depends on what else the machine does
