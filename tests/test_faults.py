"""Faults and bad inputs that the whole chain survives; those of one part are tested with it.

Real libraries, the real executor and store, the local judge server with its fault switches.
"""

from __future__ import annotations

import multiprocessing
import resource
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
import torch

from analysis.load import load_study as load_results
from analysis.table import Table
from analysis.tables import TABLES
from harness.engine.execute import Inline, execute
from harness.engine.graph import Plan, stage_key
from harness.engine.launch import fingerprints
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.judge.journal import JOURNAL_NAME
from harness.model import generate
from harness.records import HarnessError, StageOutcome, StageTask, canonical_json, write_jsonl
from harness.study.study import compose
from harness.tune import search as tune_open
from harness.tune import workers as tune
from tests import tiny
from tests.faulty_judge import FaultRates, serve
from tests.judged_world import ROOT, World, refusing
from tests.tasks import settings_of
from tests.tune import test_tune
from tests.tune_world import SEARCH, make_search

# -- generation ------------------------------------------------------------------------------------


def answering_world(tmp_path: Path, url: str) -> World:
    """A tiny checkpoint answers both judged benchmarks; the third instruction is much longer than
    the others.
    """
    world = World(tmp_path, url)

    def write_benchmarks(folder: Path) -> None:
        from tests.judged_world import benchmarks

        benchmarks(folder)
        rows = [
            {
                "id": str(i),
                "instruction": f"Name {i} things" + " please" * 60 * (i == 2),
                "output": "ref",
                "generator": "b",
            }
            for i in range(4)
        ]
        (folder / "alpaca_eval" / "eval.json").write_text(canonical_json(rows))
        (folder / "alpaca_eval" / "df_gamed.csv").unlink()

    inputs = {
        "policy": world.commit(
            "policy", "base.checkpoint", lambda folder: tiny.checkpoint(folder / "model")
        ),
        "benchmarks": world.commit("benchmarks", "benchmarks.files", write_benchmarks),
        "data": world.commit(
            "data", "data.files", lambda folder: write_jsonl(folder / "heldout.jsonl", [])
        ),
    }
    settings = {
        "seed": 0,
        "iteration": 0,
        "sets": ["mt_bench", "alpaca_eval"],
        "answers": {"mt_bench": {"max_new_tokens": 4}, "alpaca_eval": {"max_new_tokens": 4}},
    }
    world.add("answer", "answer", settings_of("answer", settings), inputs)
    for stage in ("judge.mt_bench", "judge.alpaca_eval"):
        world.judged(stage)
    return world


def test_memory_runs_out_for_one_item_it_is_never_judged_and_the_next_run_makes_it_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = generate._decode, []

    def small(policy: Any, requests: list[Any]) -> Any:
        sizes.append(len(requests))
        if len(requests) > 2 or any(len(request.prompt_ids) > 400 for request in requests):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, requests)

    with serve() as server:
        world = answering_world(tmp_path, server.base_url)
        monkeypatch.setattr(generate, "_decode", small)
        summary = world.walk()
        assert summary.exit_status == 3
        assert summary.partial[world.keys["answer"]] == "1 of 12 rows ended in error"
        assert max(sizes) > 2
        assert Counter(sizes)[2] >= 2, "smaller batches are tried, and used"
        rows = world.rows(world.keys["judge.alpaca_eval"])
        assert (rows["2"]["status"], rows["2"]["value"]) == ("error", None)
        assert "2" not in {row["id"] for row in world.judgments(world.keys["judge.alpaca_eval"])}
        calls = server.counters["calls"]
        monkeypatch.setattr(generate, "_decode", real)
        assert world.walk().exit_status == 0
        again = world.rows(world.keys["judge.alpaca_eval"])
        assert again["2"]["status"] != "error"
        assert {name: row for name, row in again.items() if name != "2"} == {
            name: row for name, row in rows.items() if name != "2"
        }
        assert server.counters["calls"] - calls == (again["2"]["status"] == "ok"), (
            "only the item that failed is asked"
        )


# -- the judge -------------------------------------------------------------------------------------


def test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it(
    tmp_path: Path,
) -> None:
    with serve(script=refusing("reply 82-2")) as server:
        world = World(tmp_path, server.base_url)
        key = world.judged()
        assert world.run() == 3
    assert world.store.states([key])[key] == "partial"
    assert [item for item, row in world.rows(key).items() if row["status"] == "error"] == ["82:2"]
    table = TABLES["table_1"](load_results(world.results / "faults", world.store.root))
    assert isinstance(table, Table)
    cell = table.rows[0].cells["MT-Bench mean"]
    assert (
        cell == "INCOMPLETE (7 of 8) 6.25–7.38"
    )  # seven times 7, and the missing one at 1 or at 10
    assert "INCOMPLETE (7 of 8)" in world.report()
    with serve(script=refusing()) as server:
        world.use(server.base_url)
        assert world.run() == 0
        assert server.counters["calls"] == 1, "what was judged is not asked again, what failed is"
        assert "INCOMPLETE (" not in world.report()
        written = {
            path: path.read_bytes()
            for path in [
                *world.store.folder(key).iterdir(),
                world.results / "faults" / "report" / "report.md",
            ]
        }
        assert world.run() == 0
        assert server.counters["calls"] == 1
        assert {path: path.read_bytes() for path in written} == written


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (FaultRates(unauthorized=1.0), "invalid_api_key"),
        (FaultRates(calls_before_quota=3), "insufficient_quota"),
    ],
)
def test_a_refused_key_or_quota_fails_the_stage_at_once_and_the_next_run_goes_on(
    tmp_path: Path, faults: FaultRates, words: str
) -> None:
    with serve(faults=faults, script=refusing()) as server:
        world = World(tmp_path, server.base_url, judge_concurrency=1)
        key = world.judged()
        summary = world.walk()
        assert summary.exit_status == 1
        assert words in summary.failed[key]
        assert server.counters["calls"] <= 5  # one more may be under way when it stops
        answered = server.counters["answered"]
    assert not list(world.store.root.rglob("scores.parquet"))
    with serve(script=refusing()) as server:
        world.use(server.base_url)
        assert world.walk().exit_status == 0
        assert server.counters["calls"] == 8 - answered, "verdicts that were paid for are kept"


def test_every_kind_of_missing_verdict_is_counted_in_the_tables(tmp_path: Path) -> None:
    def script(body: Any) -> str:
        text = body["messages"][-1]["content"]
        if "reply 83-2" in text:
            raise ValueError("no such item")
        return "I cannot say." if "reply 81-2" in text else "Rating: [[8]]"

    with serve(script=script) as server:
        world = World(tmp_path, server.base_url)
        key = world.judged()
        assert world.run() == 3
        statuses = {
            item: row["status"] for item, row in world.rows(key).items() if row["status"] != "ok"
        }
        assert statuses == {"81:2": "unparsed", "83:2": "error"}
    table = TABLES["completeness"](load_results(world.results / "faults", world.store.root))
    assert isinstance(table, Table)
    assert table.rows[0].cells["mt_bench"] == "6/8 (1 error, 1 unparsed)"
    assert "6/8 (1 error, 1 unparsed)" in world.report()


def test_another_reference_set_is_another_stage_and_the_report_refuses_to_mix_them(
    tmp_path: Path,
) -> None:
    with serve(script=refusing()) as server:
        world = World(tmp_path, server.base_url)
        first, second = world.judged(reference_set="first"), world.judged(reference_set="second")
        assert first != second
        assert world.run() == 0
    versions = [
        next(iter(world.rows(key).values()))["benchmark_version"] for key in (first, second)
    ]
    assert "references:first@" in versions[0]
    assert "references:second@" in versions[1]
    mixed = pq.read_table(world.store.folder(first) / "scores.parquet").to_pylist()
    mixed[-1]["benchmark_version"] = versions[1]
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(mixed), world.store.folder(second) / "scores.parquet")
    with pytest.raises(
        HarnessError, match=r"mixes .*references:first@[0-9a-f]{12}.*references:second@[0-9a-f]{12}"
    ):
        TABLES["table_1"](load_results(world.results / "faults", world.store.root))


# -- disk, processes, keys -------------------------------------------------------------------------


def test_a_full_disk_fails_the_stage_keeps_what_was_paid_for_and_the_old_manifest(
    tmp_path: Path,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve(script=refusing(text="x" * 3000 + " Rating: [[7]]")) as server:
        world = World(tmp_path, server.base_url, judge_concurrency=1)
        key = world.judged()
        manifest = world.results / "faults" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("the old one")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
            summary = world.walk()
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
            with pytest.raises(
                HarnessError, match=r"manifest\.json: cannot be written .*the old file is intact"
            ):
                world.run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert summary.exit_status == 1
        assert f"{JOURNAL_NAME}: cannot write" in summary.failed[key]
        assert "free some space" in summary.failed[key]
        assert manifest.read_text() == "the old one"
        calls = server.counters["calls"]
        assert 3 <= calls < 8
        assert world.run() == 0
        assert 8 < server.counters["calls"] <= 8 + 2, (
            "asked again: only what could not be written, and one call under way when it stopped"
        )
    assert {row["value"] for row in world.rows(key).values()} == {7.0}


def walk_apart(root: str, plan: Plan, queue: Any) -> None:
    """What the second process does."""
    queue.put(execute(plan, Store(Path(root)), Inline(Store(Path(root)))).exit_status)


def test_two_processes_on_one_store_ask_once_and_commit_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with serve(script=refusing(), faults=FaultRates(latency_s=0.3)) as server:
        world = World(tmp_path, server.base_url, judge_concurrency=1)
        key = world.judged()
        processes = [
            context.Process(target=walk_apart, args=(str(world.store.root), world.plan, queue))
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        ended = [queue.get(timeout=120) for _ in processes]
        for process in processes:
            process.join()
        assert ended == [0, 0]
        assert server.counters["calls"] == 8
    rows = pq.read_table(world.store.folder(key) / "scores.parquet").to_pylist()
    assert sorted(row["item"] for row in rows) == sorted(
        f"{n}:{turn}" for n in (81, 82, 83, 84) for turn in (1, 2)
    )
    assert world.store.verify() == []


def test_a_changed_setting_code_version_or_file_is_a_new_key_and_old_rows_stay(
    tmp_path: Path,
) -> None:
    settings, inputs = {"judge": {"model": "a"}}, {"answer": "1", "benchmarks": "2"}
    keys = [
        stage_key("judge.mt_bench", 1, settings, inputs),
        stage_key("judge.mt_bench", 2, settings, inputs),
        stage_key("judge.mt_bench", 1, {"judge": {"model": "b"}}, inputs),
        stage_key("judge.mt_bench", 1, settings, {**inputs, "answer": "3"}),
    ]
    assert len(set(keys)) == 4
    with serve(script=refusing()) as server:
        world = World(tmp_path, server.base_url)
        old = world.judged()
        assert world.walk().exit_status == 0
        written = {path: path.read_bytes() for path in world.store.folder(old).iterdir()}
        new = world.judged(temperature=0.5)
        summary = world.walk()
        assert (new != old, summary.executed, server.counters["calls"]) == (True, 1, 16)
    assert {path: path.read_bytes() for path in written} == written
    pairs, plans = tmp_path / "pairs.jsonl", []
    changes = {
        "data.path": str(pairs),
        "model.source": str(tiny.checkpoint(tmp_path / "model")),
        "ranker.model": str(tmp_path / "model"),
    }
    for text in ("a", "b"):
        write_jsonl(pairs, [{"prompt": text, "chosen": "good", "rejected": "bad"}])
        study = compose(
            ROOT / "ablations" / "own_data.yaml",
            "t",
            "own_data",
            {**changes, "evaluation.benchmarks": ["heldout"]},
            {"x": {}},
            [0],
        )
        plans.append(build_plan(study, fingerprints(study)))
    by_stage = [{node.stage: key for key, node in plan.nodes.items()} for plan in plans]
    same = {stage for stage in by_stage[0] if by_stage[0][stage] == by_stage[1][stage]}
    assert same == {"base.checkpoint", "benchmarks.files"}, (
        "another data file: everything that reads it is made anew"
    )


# -- searches --------------------------------------------------------------------------------------

world = test_tune.world


def test_an_infinite_objective_is_a_failed_trial_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    def infinite(task: StageTask) -> StageOutcome:
        write_jsonl(task.out / "rows.jsonl", [])
        if task.stage == "heldout":
            table = pa.table(
                {"benchmark": ["heldout"], "metric": ["reward"], "value": [float("inf")]}
            )
            pq.write_table(table, task.out / "scores.parquet")
        return StageOutcome(1)

    monkeypatch.setattr("harness.engine.worker.function_of", lambda stage: infinite)
    asked = make_search(tmp_path, SEARCH + "pruner: none\n")
    tune.work(asked)
    study = tune_open.open_study(asked)
    assert len(study.trials) == 4
    assert all("without a finite value" in trial.user_attrs["reason"] for trial in study.trials)
    with pytest.raises(HarnessError, match="no trial ended with a finite value"):
        tune.finalists(asked, study)


def test_a_locked_database_is_waited_for(tmp_path: Path, world: test_tune.World) -> None:
    asked = make_search(tmp_path, SEARCH + "pruner: none\n")
    tune_open.open_study(asked)
    locked = threading.Event()

    def hold() -> None:
        with sqlite3.connect(
            tmp_path / "optuna.db", timeout=30, isolation_level=None
        ) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            locked.set()
            time.sleep(1.5)
            connection.execute("COMMIT")

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(30)
    tune.work(asked)
    holder.join()
    assert [trial.state for trial in tune_open.open_study(asked).trials] == [
        optuna.trial.TrialState.COMPLETE
    ] * 4
