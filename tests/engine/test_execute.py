"""The walk over a plan: everything that can run runs, once; failures block only what needs them;
runs continue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.engine.execute import Inline, Summary, estimate, execute, retain, untrained
from harness.engine.graph import Plan
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.engine.worker import run_stage
from harness.records import (
    HarnessError,
    LeftOut,
    StageOutcome,
    StageTask,
    Tally,
    read_jsonl,
    redact,
    write_jsonl,
)
from harness.study.study import load_study

ROOT = Path(__file__).parents[2]


class Toy:
    """Stands in for every stage's function: writes what it read, counts its calls, misbehaves on
    request.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, int] = {}
        self.raises: dict[str, Exception] = {}
        self.left_out: tuple[LeftOut, ...] = ()
        self.rows: dict[str, int] = {}

    def __call__(self, task: StageTask) -> StageOutcome:
        self.calls.append(task.stage)
        if task.stage in self.raises:
            raise self.raises[task.stage]
        read = {
            name: [row["text"] for row in read_jsonl(folder / "rows.jsonl")]
            for name, folder in sorted(task.inputs.items())
        }
        write_jsonl(task.out / "rows.jsonl", [{"text": f"{task.stage} {len(read)}"}])
        if task.stage in ("train", "base.pocket"):
            (task.out / "model").mkdir(exist_ok=True)
            (task.out / "model" / "model.safetensors").write_bytes(
                task.settings.model_dump_json().encode()
            )
        errors = self.errors.get(task.stage, 0)
        rows = self.rows.get(task.key, 10)
        return StageOutcome(rows, errors, {"judge_calls": 2}, left_out=self.left_out)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    toy = Toy()
    monkeypatch.setattr("harness.engine.worker.function_of", lambda stage: toy)
    return toy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "store")
    opened.open()
    return opened


@pytest.fixture
def plan() -> Plan:
    return build_plan(load_study(ROOT / "ablations" / "smoke.yaml"))


def walk(
    plan: Plan,
    store: Store,
    only: tuple[str, ...] = (),
    listener: Callable[..., None] | None = None,
) -> Summary:
    return execute(plan, store, Inline(store), listener, only)


def test_a_run_of_which_no_portion_held_a_pair_failed(store: Store, toy: Toy) -> None:
    study = load_study(ROOT / "ablations" / "smoke.yaml", {"loop.iterations": 2})
    plan = build_plan(study)
    zero, one = ([run.iterations[i]["train"] for i in (1, 2)] for run in plan.runs)
    toy.rows = dict.fromkeys([*zero, one[0]], 0)  # the other run has a pair in its second portion
    assert untrained(plan, store) == {}, "nothing ran yet"
    walk(plan, store)
    found = untrained(plan, store)
    assert list(found) == [zero[1]]
    assert "none of the 2 portions held a preference pair" in found[zero[1]]
    assert "pairs.current" in found[zero[1]]


def test_every_stage_runs_once_and_a_second_walk_runs_none(
    plan: Plan, store: Store, toy: Toy
) -> None:
    summary = walk(plan, store)
    assert summary.executed == len(plan.nodes) == len(toy.calls)
    assert summary.exit_status == 0
    again = walk(plan, store)
    assert (again.executed, again.reused) == (0, len(plan.nodes))
    assert len(toy.calls) == len(plan.nodes)


def test_what_a_stage_left_out_stands_in_its_record(plan: Plan, store: Store, toy: Toy) -> None:
    tally = Tally("data.pocket", "rows")
    tally.read = 9
    for line in range(1, 6):
        tally.leave_out("empty answer", f"rows.jsonl:{line}")
    toy.left_out = tally.left_out()
    walk(plan, store, ("data.pocket",))
    (key,) = (key for key in store.all_keys() if store.states([key])[key] == "done")
    assert store.record(key).left_out == [
        {
            "stage": "data.pocket",
            "what": "rows",
            "reason": "empty answer",
            "count": 5,
            "of": 9,
            "examples": ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"],
        }
    ]


def test_a_failed_stage_blocks_only_what_needs_it(plan: Plan, store: Store, toy: Toy) -> None:
    toy.raises["judge.mt_bench"] = RuntimeError("judge is down")
    summary = walk(plan, store)
    judged = {key for key, node in plan.nodes.items() if node.stage == "judge.mt_bench"}
    assert set(summary.failed) == judged
    assert summary.exit_status == 1
    assert summary.blocked == []
    assert summary.executed == len(plan.nodes) - len(judged)
    assert "judge is down" in store.failure(next(iter(judged)))["reason"]
    assert "Traceback" in store.failure(next(iter(judged)))["traceback"]
    toy.raises.clear()
    assert walk(plan, store).executed == len(judged)


def test_a_failed_training_blocks_its_descendants_and_names_them(
    plan: Plan, store: Store, toy: Toy
) -> None:
    toy.raises["train"] = HarnessError("loss is nan at iteration 1, step 3")
    summary = walk(plan, store)
    assert set(summary.failed.values()) == {"loss is nan at iteration 1, step 3"}
    assert {plan.nodes[key].stage for key in summary.blocked} >= {
        "answer",
        "academic",
        "diagnostics",
    }
    assert all(store.states([key])[key] == "missing" for key in summary.blocked)


def test_error_rows_keep_a_stage_partial_and_the_next_walk_retries_it(
    plan: Plan, store: Store, toy: Toy
) -> None:
    toy.errors["judge.alpaca_eval"] = 3
    summary = walk(plan, store)
    judged = [key for key, node in plan.nodes.items() if node.stage == "judge.alpaca_eval"]
    assert set(summary.partial) == set(judged)
    assert summary.exit_status == 3
    assert "3 of 10" in summary.partial[judged[0]]
    assert store.states(judged)[judged[0]] == "partial"
    toy.errors.clear()
    assert walk(plan, store).executed == len(judged)
    assert store.states(judged)[judged[0]] == "done"


def test_judging_incomplete_answers_stays_incomplete(plan: Plan, store: Store, toy: Toy) -> None:
    toy.errors["answer"] = 1
    summary = walk(plan, store)
    states = {plan.nodes[key].stage for key in summary.partial}
    assert {"answer", "judge.mt_bench", "judge.alpaca_eval", "heldout"} <= states
    toy.errors.clear()
    assert walk(plan, store).exit_status == 0


def test_only_the_named_stages_run(plan: Plan, store: Store, toy: Toy) -> None:
    walk(plan, store, only=("data.pocket", "base.pocket"))
    assert sorted(toy.calls) == ["base.pocket", "data.pocket"]


def test_a_stage_another_process_runs_is_waited_for(plan: Plan, store: Store, toy: Toy) -> None:
    node = next(iter(plan.nodes.values()))
    with store.lock(node.key) as mine:
        assert mine
        assert run_stage(store, node).state == "busy"
    assert run_stage(store, node).state == "done"


def test_dropped_weights_come_back_only_when_something_needs_them(store: Store, toy: Toy) -> None:
    study = dataclasses.replace(load_study(ROOT / "ablations" / "smoke.yaml"), keep="none")
    plan = build_plan(study)
    walk(plan, store)
    assert retain(plan, store) > 0
    trained = [key for key, node in plan.nodes.items() if node.stage == "train"]
    assert not any(store.has_model(key) for key in trained)
    assert walk(plan, store).executed == 0
    scored = next(
        key
        for key, node in plan.nodes.items()
        if node.stage == "academic" and node.inputs["policy"] in trained
    )
    store.invalidate(scored)
    toy.calls.clear()
    walk(plan, store)
    assert sorted(toy.calls) == ["academic", "train"]
    assert store.has_model(plan.nodes[scored].inputs["policy"])


def test_measured_seconds_replace_the_prior(plan: Plan, store: Store, toy: Toy) -> None:
    before = estimate(plan, store)
    walk(plan, store)
    after = estimate(plan, store)
    base = next(key for key, node in plan.nodes.items() if node.stage == "base.pocket")
    assert before[base].seconds > 1 > after[base].seconds


def test_secrets_are_redacted_from_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-123456")
    text = redact(
        "401 for canary-123456 at https://me:pw@host/v1 with Bearer abcdefgh and sk-abcdef123"
    )
    assert "canary" not in text
    assert "pw@" not in text
    assert "abcdef" not in text
