"""What a study will take: counts by hand, and measured rates before assumed ones. How near it comes
is for ``benchmarks/bench_cost.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.cost.count import RULES
from harness.cost.rates import (
    POCKET,
    REFERENCE,
    REPORT,
    START_UP,
    Rate,
    StartUp,
    scaled,
    tiny_step_seconds,
)
from harness.cost.view import PAPER_SEED, amount, plan_of, verdict
from typer.testing import CliRunner

from harness.cli import app
from harness.cost.budget import (
    DEVICES,
    Assumptions,
    Line,
    Need,
    budget,
    elapsed,
    lora_parameters,
    memory,
    wall_seconds,
)
from harness.cost.work import KNOWN, Work, shape_of
from harness.engine.graph import Node, Plan
from harness.engine.launch import prepare
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.files import hash_tree
from harness.records import SCHEMA_VERSION, HarnessError, StageRecord
from tests import tiny
from tests.study.test_recipes import RECIPES, recipe

ROOT = Path(__file__).parents[2]
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
def test_the_shape_of_a_folder_counts_the_models_own_parameters(
    architecture: str, tmp_path: Path
) -> None:
    folder = tiny.checkpoint(tmp_path, architecture, "chatml")
    counted = shape_of(
        recipe("small-1b-lora").model_copy(
            update={
                "model": recipe("small-1b-lora").model.model_copy(update={"source": str(folder)})
            }
        )
    )
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
    assert [line.node.settings["objective"]["name"] for line in trained] == [
        "dpo",
        "selm",
        "selm",
        "selm",
    ]
    tokens = 15_283 * (180 + 7 / 3 * 300)
    assert trained[1].work.trained == pytest.approx(tokens)
    assert trained[1].work.flops == pytest.approx(6 * found.shape.parameters * tokens)
    assert trained[1].seconds == pytest.approx(
        6 * found.shape.parameters * tokens / (989e12 * 0.35)
    )
    assert trained[0].work.trained == pytest.approx(15_283 * (180 + 600))
    assert sum(line.work.judge_calls for line in found.lines) == 5 * (160 + 805)
    assert found.usd(found.of("judge.alpaca_eval")) == pytest.approx(
        5 * 805 * (1300 * 10 + 1 * 30) / 1e6
    )
    assert sum(need.alone for need in found.memory["training"][:3]) == pytest.approx(
        16 * found.shape.parameters
    )


def test_lora_needs_the_adapters_optimiser_only() -> None:
    small = recipe("small-1b-lora")
    shape = shape_of(small)
    assert lora_parameters(shape, 16) == 28 * 16 * (
        (2048 + 2048) * 2 + (2048 + 1024) * 2 + 3 * (2048 + 6144)
    )
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
    done = CliRunner().invoke(
        app,
        [
            "plan",
            str(RECIPES / f"{name}.yaml"),
            "--cost",
            "--devices",
            "8",
            "--store",
            str(tmp_path),
        ],
    )
    assert done.exit_code == 0, done.output
    for text in (
        "GPU-hours:",
        "Judge:",
        "too much for one H100 80 GB",
        "Assumptions:",
        "A prompt has 180 tokens",
    ):
        assert text in done.output
    assert not any(tmp_path.iterdir())


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["plan", str(ZEPHYR), "--cost", "--device", "abacus", "--store", str(tmp_path)]
    )
    assert isinstance(done.exception, HarnessError)


# -- the pocket world: constants, calibration, measured stages -------------------------------------


def commit(store: Store, node: Node, seconds: float) -> None:
    """A finished stage that took so long."""
    work = store.begin(node.key)
    (work / "rows.jsonl").write_text("{}\n")
    hashes = dict.fromkeys(node.inputs, "0" * 64)
    record = StageRecord(
        SCHEMA_VERSION,
        node.key,
        node.stage,
        node.version,
        node.settings,
        node.inputs,
        hashes,
        hash_tree(work),
        1,
        {"seconds": seconds},
        {},
        {},
    )
    store.commit(work, record)


def e2e(**changes: Any) -> Plan:
    return prepare(ROOT / "tests" / "e2e.yaml", changes)


def of(plan: Plan, stage: str) -> list[Node]:
    return [node for node in plan.nodes.values() if node.stage == stage]


def test_every_stage_has_a_counting_rule() -> None:
    assert set(RULES) == set(STAGES)


def test_every_pocket_stage_has_constants() -> None:
    assert {
        node.stage for node in prepare(ROOT / "ablations" / "alpha.yaml", {}).nodes.values()
    } <= set(POCKET)


def test_games_of_mt_bench_pairs_by_hand(tmp_path: Path) -> None:
    study = tmp_path / "pairs.yaml"
    study.write_text(
        f"name: pairs\nrecipe: {RECIPES / 'pocket.yaml'}\nseeds: [0]\nset: "
        f"{{evaluation.mt_bench.limit: 8}}\naxes: {{objective.alpha: [0, 1]}}\n"
        "declare: {pairwise: ['objective.alpha=0,seed=0@3', 'objective.alpha=1,seed=0@3'], "
        "pairwise_mt_bench: true}\n"
    )
    (line,) = budget(prepare(study, {}), Store(tmp_path / "store"), Assumptions()).of(
        "judge.mt_bench_pairwise"
    )
    assert (line.work.judge_calls, line.work.judge_prompt, line.work.judge_reply) == (
        8 * 2 * 2,
        32 * (170 + 10),
        32 * 8,
    )


def test_constants_by_hand(tmp_path: Path) -> None:
    found = budget(e2e(), Store(tmp_path), Assumptions(slowness=2.0))
    (data,) = found.of("data.pocket")
    assert data.work.rows == 800 + 8 + 4 + 1536
    assert (data.seconds, data.source) == (pytest.approx(2 * (0.1 + 9e-5 * 2348)), "prior")
    train = found.of("train")[0]
    operations = 6 * found.shape.parameters * 32 * (20 + 2 * 10)
    assert train.seconds == pytest.approx(2 * (0.36 + 3.5e-11 * operations))
    assert {line.source for line in found.lines} == {"prior"}


def test_start_up_comes_once_a_worker_and_the_report_last(tmp_path: Path) -> None:
    found = budget(e2e(), Store(tmp_path), Assumptions(slowness=2.0))
    alone = elapsed(found, 1)
    assert alone["stages"] == pytest.approx(
        sum(line.seconds for line in found.lines) + 2 * sum(one.seconds for one in START_UP)
    )
    assert alone["report"] == pytest.approx(2 * (REPORT.fixed + 2 * REPORT.each))
    assert alone["all"] == alone["stages"] + alone["report"]
    two = [StartUp("tools", 5.0, frozenset({"train"}))]
    lines = [Line(node, Work(), 1.0, "") for node in of(found.plan, "train")]
    assert [wall_seconds(found.plan, lines, workers, two) for workers in (1, 2)] == [
        5 + 1 + 1,
        5 + 1,
    ]


def test_measured_stages_come_before_constants(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open()
    earlier = e2e()
    for node in earlier.nodes.values():
        commit(store, node, 7.0 if node.stage == "train" else 3.0)
    assert budget(earlier, store, Assumptions()).lines == ()
    found = budget(e2e(**{"data.seed": 1, "pocket.seed": 1}), store, Assumptions(slowness=50.0))
    assert {line.source.split(" ")[0] for line in found.lines} == {"measured"}
    assert {line.seconds for line in found.of("train")} == {7.0}
    assert {line.seconds for line in found.lines if line.node.stage != "train"} == {3.0}


def test_measured_seconds_of_another_size_keep_their_fixed_share() -> None:
    rate = Rate(1.0, 0.5)
    assert scaled([(10, 12.0)], 20, rate) == pytest.approx(12 * (1 + 10) / (1 + 5))
    assert scaled([(10, 12.0)], 20) == pytest.approx(24)
    assert scaled([(10, 12.0), (20, 5.0)], 20, rate) == 5.0


def test_first_stages_of_workers_do_not_count_as_typical() -> None:
    assert scaled([(10, 9.0), (10, 2.0)], 10) == 2.0
    assert scaled([(10, 9.0), (10, 8.0), (10, 2.0)], 10) == 2.0
    assert scaled([(10, 9.0)] + [(10, float(n)) for n in (3, 4, 5, 6)], 10) == 4.0


def test_the_calibration_is_made_once_and_leaves_torch_as_it_was() -> None:
    import torch

    before, state = torch.get_num_threads(), torch.get_rng_state()
    assert tiny_step_seconds(0.01) == tiny_step_seconds(0.01) > 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_command_shows_the_pocket_arithmetic(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            "plan",
            str(ROOT / "ablations" / "smoke.yaml"),
            "--cost",
            "--workers",
            "2",
            "--store",
            str(tmp_path),
        ],
    )
    assert done.exit_code == 0, done.output
    for text in (
        "minutes on 2 workers",
        "start-up of every worker included",
        "for this machine =",
        "times as long for a tiny training step",
        REFERENCE,
    ):
        assert text in done.output
    assert not any(tmp_path.iterdir())
