"""Keys hold what a number depends on and nothing else; cells share what they can."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.engine.graph import Plan, defining_settings, manifest, resolve_objective
from harness.engine.runs import build_plan
from harness.engine.stages import STAGES
from harness.records import HarnessError
from harness.study.sections import Section
from harness.study.study import load_study
from tests.golden.versions import source_hash

ROOT = Path(__file__).parents[2]
ALPHA = ROOT / "tests" / "grid.yaml"
GOLDEN = ROOT / "tests" / "golden"
GRID = ALPHA.read_text().replace("../ablations", f"{ROOT}/ablations")


def plan_of(**overrides: object) -> Plan:
    return build_plan(
        load_study(ALPHA, {key.replace("__", "."): value for key, value in overrides.items()})
    )


def keys(plan: Plan, stage: str) -> set[str]:
    return {key for key, node in plan.nodes.items() if node.stage == stage}


def test_speed_settings_are_in_no_key() -> None:
    fast = plan_of(
        runtime__micro_batch=2,
        runtime__token_budget=100,
        runtime__device="cpu",
        runtime__judge_concurrency=1,
    )
    assert set(fast.nodes) == set(plan_of().nodes)


def test_a_ranker_that_asks_a_judge_refuses_several_samples() -> None:
    asked = {"ranker__kind": "judge", "judge__verdict": "text", "judge__temperature": None}
    assert keys(plan_of(**asked), "rank")
    with pytest.raises(HarnessError, match=r"judge\.samples is 3, but a ranker"):
        plan_of(**asked, judge__samples=3)


@pytest.mark.parametrize("change", [("benchmarks", []), ("iterations", "last")])
def test_a_pair_of_checkpoints_that_answer_nothing_is_refused(change: tuple[str, Any]) -> None:
    study = load_study(ALPHA, {f"evaluation.{change[0]}": change[1], "seeds": 1})
    cell = study.cells[0]
    declared = study.declare.model_copy(update={"pairwise": [f"{cell.run}@1", f"{cell.run}@3"]})
    with pytest.raises(HarnessError, match=r"declare.pairwise: .*@1' is no checkpoint .* answers"):
        build_plan(replace(study, declare=declared))


def test_only_what_an_objective_reads_of_other_rows_is_scored_for_it() -> None:
    def scored(name: str) -> set[tuple[str, ...]]:
        plan = plan_of(objective__name=name)
        nodes = plan.nodes.values()
        return {tuple(node.settings.roles) for node in nodes if node.stage == "reference"}

    roles = ("chosen", "rejected", "explore")
    assert scored("selm") == scored("beta_dpo") == {roles}
    assert scored("kto") == {(*roles, "other_chosen", "other_rejected")}


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("training.threads", 2, "base.pocket"),
        ("model.dtype", "bfloat16", "rollout"),
        ("objective.beta", 0.2, "train"),
        ("judge.noise", 0.9, "judge.mt_bench"),
        ("data.seed", 5, "data.pocket"),
        ("exploration.temperature", 0.7, "rollout"),
        ("pairs.rule", "replace", "rank"),
    ],
)
def test_settings_that_decide_numbers_change_the_first_stage_they_reach(
    key: str, value: object, first: str
) -> None:
    before, after = plan_of(), build_plan(load_study(ALPHA, {key: value}))
    assert keys(before, first).isdisjoint(keys(after, first))


def test_one_base_serves_all_runs_and_first_rollouts_serve_all_alphas() -> None:
    plan = plan_of()
    assert len(keys(plan, "base.pocket")) == 1
    first = {run.iterations[1]["rollout"] for run in plan.runs}
    assert len(first) == len(plan.study.seeds)
    assert len({run.iterations[1]["reference"] for run in plan.runs}) == len(plan.study.seeds)
    assert len({run.iterations[1]["train"] for run in plan.runs}) == len(plan.runs)


def test_alpha_zero_under_selm_and_dpo_are_one_stage() -> None:
    selm, dpo = plan_of(), plan_of(objective__name="dpo")
    zero = [run for run in selm.runs if run.cell.arm["objective.alpha"] == 0]
    assert {run.iterations[3]["train"] for run in zero} <= keys(dpo, "train")


def test_a_new_alpha_adds_only_its_own_stages(tmp_path: Path) -> None:
    text = GRID.replace("[0, ", "[0, 0.77, ", 1)
    (tmp_path / "alpha.yaml").write_text(text)
    before, after = plan_of(), build_plan(load_study(tmp_path / "alpha.yaml"))
    assert set(before.nodes) < set(after.nodes)
    new = set(after.nodes) - set(before.nodes)
    mine = {
        key
        for run in after.runs
        if run.cell.arm["objective.alpha"] == 0.77
        for stages in run.iterations.values()
        for key in stages.values()
    }
    assert new <= mine


def test_inputs_precede_their_users() -> None:
    seen: set[str] = set()
    for key, node in plan_of().nodes.items():
        assert set(node.inputs.values()) <= seen
        seen.add(key)


def test_every_checkpoint_is_scored_by_every_benchmark() -> None:
    for run in plan_of().runs:
        assert len(run.iterations) == 4
        for stages in run.iterations.values():
            assert {"answer", "judge.mt_bench", "judge.alpaca_eval", "academic", "heldout"} <= set(
                stages
            )


def test_a_setting_added_later_leaves_old_keys_alone_at_its_default() -> None:
    class Before(Section):
        seed: int

    class Now(Before):
        later = {"min_p": 0.0}
        min_p: float = 0.0

    old = defining_settings(Before(seed=1), {})
    assert defining_settings(Now(seed=1), {}) == old
    assert defining_settings(Now(seed=1, min_p=0.1), {}) == old | {"min_p": 0.1}


def test_the_coefficient_and_kappa_follow_the_objective() -> None:
    numbers = {"objective.alpha": 1e-3, "objective.beta": 0.01}
    found = resolve_objective(load_study(ALPHA, numbers).base, 1)
    assert found.c == pytest.approx(1e-5)
    assert found.kappa == pytest.approx(0.002)
    numbers["objective.name"] = "selm_algorithm_1"
    assert resolve_objective(load_study(ALPHA, numbers).base, 1).c == pytest.approx(1e-3)


@pytest.mark.parametrize("objective", [{"name": "selm", "alpha": 1.0}, {"name": "ipo_mean"}])
def test_the_warm_up_is_plain_dpo_on_labelled_pairs_before_iteration_one(objective: object) -> None:
    changes = {"objective": objective, "pairs.rule": "replace", "loop.warmup_dpo": True}
    plan = build_plan(load_study(ROOT / "ablations" / "batch_size.yaml", changes))
    for run in plan.runs:
        assert list(run.iterations) == [-1, 0, 1, 2, 3]
        warm, first = run.iterations[0], run.iterations[1]
        assert not {"rollout", "rank"} & set(warm)
        assert plan.nodes[warm["pairs"]].stage == "pairs.labelled"
        assert plan.nodes[warm["train"]].settings.objective.name == "dpo"  # type: ignore[attr-defined]
        assert plan.nodes[first["train"]].inputs["policy"] == warm["train"]
        portions = [plan.nodes[run.iterations[i]["rollout"]].settings.portion for i in (1, 2, 3)]  # type: ignore[attr-defined]
        assert portions == [1, 2, 3]
    rows = manifest(plan, {})["runs"][0]["iterations"]
    assert [row["iteration"] for row in rows] == [-1, 0, 1, 2, 3]


def test_arms_share_the_warm_up_and_differ_after_iteration_one() -> None:
    plan = plan_of(loop__warmup_dpo=True)
    trained = [{run.iterations[i]["train"] for run in plan.runs} for i in (0, 1)]
    assert [len(keys) for keys in trained] == [len(plan.study.seeds), len(plan.runs)]


def test_schedules_count_the_methods_iterations() -> None:
    rates = {"training.learning_rate": [3e-4, 2e-4, 1e-4], "loop.warmup_dpo": True}
    plan = build_plan(load_study(ROOT / "ablations" / "batch_size.yaml", rates))
    trained = [plan.runs[0].iterations[i]["train"] for i in (0, 1, 2, 3)]
    settings: list[Any] = [plan.nodes[key].settings for key in trained]
    assert [one.training.learning_rate for one in settings] == [3e-4, 3e-4, 2e-4, 1e-4]


def test_stepwise_draws_only_what_the_term_reads() -> None:
    plain = plan_of(loop__mode="stepwise", objective__alpha=0)
    run = plain.runs[0]
    assert not {"rollout", "rank"} & set(run.iterations[2])
    exploring = next(run for run in plan_of(loop__mode="stepwise").runs if "=3," in run.cell.run)
    assert {"rollout", "rank"} <= set(exploring.iterations[2])
    # Whatever the candidates otherwise are, the labelled pair is there to be taken.
    own = {"pairs.offline": False, "pairs.current": 2, "loop.mode": "stepwise"}
    plan = build_plan(load_study(ALPHA, own))
    assert all(plan.nodes[key].settings.offline for key in keys(plan, "rank"))  # type: ignore[attr-defined]


def test_an_averaged_reference_starts_at_the_first_policy_and_follows() -> None:
    plan = plan_of(loop__reference_policy="ema")
    one, two, three = (plan.runs[0].iterations[i] for i in (1, 2, 3))
    reference = {
        i: plan.nodes[it["train"]].inputs["reference_policy"]
        for i, it in enumerate((one, two, three), 1)
    }
    assert plan.nodes[reference[1]].stage == "base.pocket"
    assert plan.nodes[reference[2]].inputs == {"average": reference[1], "policy": one["train"]}
    assert plan.nodes[reference[3]].inputs == {"average": reference[2], "policy": two["train"]}


def test_ten_thousand_cells_are_planned_in_seconds(tmp_path: Path) -> None:
    text = GRID.replace("seeds: [0, 1, 2]", f"seeds: {list(range(200))}").replace(
        "[0, 0.1, 0.3, 1, 3]", str([0, 1, 2, 3, 4])
    )
    (tmp_path / "alpha.yaml").write_text(text)
    started = time.process_time()
    plan = build_plan(load_study(tmp_path / "alpha.yaml"))
    assert len(plan.runs) == 1000
    assert len(manifest(plan, {})["runs"]) == 1000
    assert (
        time.process_time() - started < 60
    )  # a guard against quadratic growth; the figure is measured by the benchmark


def test_golden_keys() -> None:
    golden = json.loads((GOLDEN / "keys.json").read_text())
    assert {node.stage: key for key, node in reversed(list(plan_of().nodes.items()))} == golden


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_code_changed_has_a_new_version(stage: str) -> None:
    golden = json.loads((GOLDEN / "stages.json").read_text())
    now = {"version": STAGES[stage].version, "source": source_hash(stage)}
    assert now == golden.get(stage), (
        f"the code behind stage {stage} changed. If its numbers can change, raise its version in "
        "harness/engine/stages.py; then run `make golden`"
    )
