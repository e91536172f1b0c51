"""The 25 faults and bad inputs a trusted harness survives: each has tests, named in ``CASES``; those of the whole chain are here.

Real libraries, the real executor and store, the local judge server with its fault switches.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
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
from harness import generate, tune
from harness.commands import fingerprints
from harness.evaluate.journal import JOURNAL_NAME
from harness.execute import Inline, execute
from harness.plan import Plan, build_plan, stage_key
from harness.pocket import judge_server
from harness.pocket.judge_server import FaultRates, serve
from harness.records import HarnessError, StageOutcome, StageTask, canonical_json, write_jsonl
from harness.store import Store
from harness.study import compose
from tests import test_tune, tiny
from tests.judged_world import ROOT, World, refusing

CASES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("answer generation fails for some items", (
        "test_faults::test_memory_runs_out_for_one_item_it_is_never_judged_and_the_next_run_makes_it_good",
        "test_answer::test_a_failed_first_turn_fails_the_second_and_is_never_text", "test_mt_bench::test_failed_answers_are_never_judged",
        "test_alpaca_eval::test_failed_and_missing_answers_are_never_judged_and_never_numbers",
        "test_execute::test_judging_incomplete_answers_stays_incomplete")),
    2: ("out of memory in generation", (
        "test_faults::test_memory_runs_out_for_one_item_it_is_never_judged_and_the_next_run_makes_it_good",
        "test_generate::test_out_of_memory_halves_the_batch_and_ends_as_error", "test_academic::test_out_of_memory_shrinks_the_batches")),
    3: ("judge 429, time-out, 5xx", (
        "test_judge_client::test_429_5xx_time_outs_and_broken_replies_are_retried_while_others_go_on",
        "test_judge_client::test_retry_after_is_honoured", "test_judge_client::test_waiting_times_are_bounded_jittered_and_read_from_both_headers",
        "test_judge_client::test_the_deadline_ends_a_run_against_a_dead_judge",
        "test_judge_chaos::test_a_thousand_judgments_survive_faults_and_twenty_kills")),
    4: ("judge 401 or quota", (
        "test_faults::test_a_refused_key_or_quota_fails_the_stage_at_once_and_the_next_run_goes_on",
        "test_judge_client::test_a_refused_key_or_exhausted_quota_stops_at_once_and_writes_no_verdict")),
    5: ("unparsable verdict", (
        "test_faults::test_every_kind_of_missing_verdict_is_counted_in_the_tables",
        "test_mt_bench::test_unreadable_verdicts_are_asked_again_within_bounds_then_unparsed",
        "test_alpaca_eval::test_unreadable_replies_are_asked_again_then_unparsed")),
    6: ("several verdicts or bracketed indices", (
        "test_mt_bench::test_the_last_final_verdict_counts", "test_mt_bench::test_fastchat_reads_the_first_bracket_and_crashes_on_full_width_digits",
        "test_mt_bench::test_disagreement_with_fastchats_first_match_is_counted",
        "test_published::test_mt_bench_scores_prompts_and_ratings_are_exact")),
    7: ("rating 100, −1, NaN, full-width digits", ("test_mt_bench::test_bad_ratings_are_rejected_without_a_crash",)),
    8: ("partly judged set", (
        "test_faults::test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it",
        "test_tables::test_incomplete_cells_have_bounds_and_no_value")),
    9: ("a failed verdict in the cache", (
        "test_faults::test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it",
        "test_mt_bench::test_failed_calls_stay_errors_and_are_retried_by_the_next_run",
        "test_alpaca_eval::test_failed_calls_are_errors_retried_by_the_next_run_and_finished_work_is_not_repeated")),
    10: ("finished work run again", (
        "test_faults::test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it",
        "test_judge_client::test_finished_work_run_again_makes_no_call_and_the_same_bytes", "test_end_to_end::test_a_finished_study_runs_no_stage_again")),
    11: ("late reply after a retry", (
        "test_judge_client::test_a_late_reply_counts_and_the_first_valid_one_wins", "test_judge_client::test_of_two_final_rows_of_one_key_the_first_wins")),
    12: ("SIGKILL at any byte of any write", (
        "test_judge_client::test_a_journal_cut_at_any_byte_loses_at_most_the_row_being_written", "test_judge_client::test_a_torn_tail_is_reported",
        "test_store::test_a_folder_moved_but_not_recorded_is_removed", "test_store::test_the_journal_of_a_killed_attempt_is_continued",
        "test_end_to_end::test_killed_at_five_moments_it_continues_to_the_same_bytes")),
    13: ("disk full", (
        "test_faults::test_a_full_disk_fails_the_stage_keeps_what_was_paid_for_and_the_old_manifest",
        "test_judge_client::test_a_full_disk_leaves_the_old_rows_and_says_so", "test_judge_client::test_a_full_disk_at_the_end_keeps_the_journal",
        "test_store::test_a_failed_write_leaves_the_old_file")),
    14: ("two processes on one store", (
        "test_faults::test_two_processes_on_one_store_ask_once_and_commit_once", "test_judge_client::test_a_second_process_waits_and_finds_the_judgments",
        "test_store::test_a_lock_excludes_others_and_dies_with_its_owner")),
    15: ("same item under another model, prompt, template, sampling or judge", (
        "test_judge_client::test_the_key_holds_everything_that_decides_the_reply", "test_mt_bench::test_a_changed_answer_is_a_new_question_to_the_judge",
        "test_plan::test_settings_that_decide_numbers_change_the_first_stage_they_reach")),
    16: ("resume after a change of configuration, code version or data", (
        "test_faults::test_a_changed_setting_code_version_or_file_is_a_new_key_and_old_rows_stay",
        "test_plan::test_a_stage_whose_code_changed_has_a_new_version", "test_models::test_checkpoint_changed_since_planning_is_refused",
        "test_tune::test_a_changed_space_is_refused_with_the_difference", "test_store::test_a_store_of_another_schema_is_refused_with_what_to_do")),
    17: ("missing, duplicated or reordered instructions", (
        "test_alpaca_eval::test_reordered_answers_give_the_same_bytes", "test_alpaca_eval::test_partial_sets_are_joined_by_id_not_by_position",
        "test_alpaca_eval::test_answers_that_do_not_fit_are_named", "test_published::test_the_802_row_model_shows_all_three_values",
        "test_mt_bench::test_missing_answers_are_rows_and_foreign_or_doubled_ones_are_refused")),
    18: ("degenerate length-controlled input", (
        "test_alpaca_eval::test_constant_preference_and_equal_lengths_fall_back_to_the_win_rate_and_are_flagged",
        "test_lc::test_degenerate_rows_are_named")),
    19: ("wrong chat template, doubled BOS, missing end-of-turn token", (
        "test_models::test_broken_templates_are_refused_and_the_tokens_shown", "test_models::test_checkpoint_stage_runs_the_token_preflight",
        "test_academic::test_a_doubled_bos_is_refused_with_the_tokens_shown")),
    20: ("judge alias or reference set changed between runs", (
        "test_faults::test_a_changed_judge_behind_the_same_name_fails_the_stage_with_both_shown",
        "test_faults::test_another_reference_set_is_another_stage_and_the_report_refuses_to_mix_them",
        "test_judge_client::test_another_model_behind_the_same_name_is_refused_with_both_shown",
        "test_mt_bench::test_another_reference_set_or_judge_shows_in_every_row")),
    21: ("verdict syntax or delimiters in answers, constant answers", (
        "test_mt_bench::test_verdict_syntax_in_answers_changes_no_other_item_and_is_listed", "test_mt_bench::test_constant_answers_are_flagged",
        "test_alpaca_eval::test_injections_change_no_other_row_and_are_listed")),
    22: ("pickle checkpoint, repository code", (
        "test_models::test_pickle_weights_are_refused_unless_named", "test_models::test_repository_code_is_refused_unless_named")),
    23: ("secrets; hostile answers", (
        "test_secrets::test_a_key_is_nowhere_but_in_the_header", "test_judge_client::test_the_key_goes_to_the_endpoint_and_nowhere_else",
        "test_execute::test_secrets_are_redacted_from_reasons", "test_tables::test_hostile_text_stays_text_in_every_form",
        "test_report::test_hostile_outputs_are_text_and_the_page_loads_nothing")),
    24: ("a trial killed, NaN or infinite objective, locked database", (
        "test_faults::test_a_killed_trial_is_tried_again_and_the_search_goes_on", "test_faults::test_an_infinite_objective_is_a_failed_trial_with_its_reason",
        "test_faults::test_a_locked_database_is_waited_for", "test_tune::test_failures_keep_their_reason_and_are_never_best")),
    25: ("one seed, one item, 0 or 100 %, NaN", (
        "test_faults::test_equal_scores_of_one_seed_have_no_zero_width_interval", "test_stats::test_one_item_is_undefined_unless_binary",
        "test_stats::test_binary_scores_get_wilson_even_at_the_ends", "test_stats::test_no_interval_below_three_seeds",
        "test_stats::test_equal_scores_never_give_a_zero_width_interval", "test_stats::test_nothing_at_all_is_incomplete")),
}  # fmt: skip
"""Case of the evaluation's list of faults → what it is, and the tests that hold it."""


def test_every_case_has_tests_that_exist() -> None:
    assert list(CASES) == list(range(1, 26))
    known: set[str] = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        known |= {f"{path.stem}::{node.name}" for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {name for _, names in CASES.values() for name in names} <= known
    assert all(names for _, names in CASES.values())


# -- generation ------------------------------------------------------------------------------------------------------


def answering_world(tmp_path: Path, url: str) -> World:
    """A tiny checkpoint answers both judged benchmarks; the third instruction is much longer than the others."""
    world = World(tmp_path, url)

    def write_benchmarks(folder: Path) -> None:
        from tests.judged_world import benchmarks

        benchmarks(folder)
        rows = [{"id": str(i), "instruction": f"Name {i} things" + " please" * 60 * (i == 2), "output": "ref", "generator": "b"} for i in range(4)]
        (folder / "alpaca_eval" / "eval.json").write_text(canonical_json(rows))
        (folder / "alpaca_eval" / "df_gamed.csv").unlink()

    inputs = {
        "policy": world.commit("policy", "base.checkpoint", lambda folder: tiny.checkpoint(folder / "model")),
        "benchmarks": world.commit("benchmarks", "benchmarks.files", write_benchmarks),
        "data": world.commit("data", "data.files", lambda folder: write_jsonl(folder / "heldout.jsonl", [])),
    }
    settings = {"seed": 0, "iteration": 0, "sets": ["mt_bench", "alpaca_eval"], "mt_bench": {"max_new_tokens": 4}, "alpaca_eval": {"max_new_tokens": 4}}
    world.add("answer", "answer", settings, inputs)
    for stage in ("judge.mt_bench", "judge.alpaca_eval"):
        world.judged(stage)
    return world


def test_memory_runs_out_for_one_item_it_is_never_judged_and_the_next_run_makes_it_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert {name: row for name, row in again.items() if name != "2"} == {name: row for name, row in rows.items() if name != "2"}
        assert server.counters["calls"] - calls == (again["2"]["status"] == "ok"), "only the item that failed is asked"


# -- the judge -------------------------------------------------------------------------------------------------------


def test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it(tmp_path: Path) -> None:
    with serve(script=refusing("reply 82-2")) as server:
        world = World(tmp_path, server.base_url)
        key = world.judged()
        assert world.run() == 3
    assert world.store.state(key) == "partial"
    assert [item for item, row in world.rows(key).items() if row["status"] == "error"] == ["82:2"]
    table = TABLES["table_1"](load_results(world.results / "faults", world.store.root))
    assert isinstance(table, Table)
    cell = table.rows[0].cells[table.columns.index("MT-Bench mean")]
    assert cell == "INCOMPLETE (7 of 8) 6.25–7.38"  # seven times 7, and the missing one at 1 or at 10
    assert "INCOMPLETE (7 of 8)" in world.report()
    with serve(script=refusing()) as server:
        world.nodes = {name: node.__class__(**{**vars(node), "runtime": {**node.runtime, "pocket_judge_url": server.base_url}})
                       for name, node in world.nodes.items()}  # fmt: skip
        assert world.run() == 0
        assert server.counters["calls"] == 1, "what was judged is not asked again, what failed is"
        assert "INCOMPLETE (" not in world.report()
        written = {path: path.read_bytes() for path in [*world.store.folder(key).iterdir(), world.results / "faults" / "report" / "report.md"]}
        assert world.run() == 0
        assert server.counters["calls"] == 1
        assert {path: path.read_bytes() for path in written} == written


def test_equal_scores_of_one_seed_have_no_zero_width_interval(tmp_path: Path) -> None:
    with serve(script=refusing()) as server:
        world = World(tmp_path, server.base_url)
        world.judged()
        assert world.walk().exit_status == 0
        assert world.run() == 0
    table = TABLES["table_1"](load_results(world.results / "faults", world.store.root))
    assert isinstance(table, Table)
    assert table.rows[0].cells[table.columns.index("MT-Bench mean")] == "7.00 ± –"


@pytest.mark.parametrize(("faults", "words"), [
    (FaultRates(unauthorized=1.0), "invalid_api_key"), (FaultRates(calls_before_quota=3), "insufficient_quota"),
])  # fmt: skip
def test_a_refused_key_or_quota_fails_the_stage_at_once_and_the_next_run_goes_on(tmp_path: Path, faults: FaultRates, words: str) -> None:
    with serve(faults=faults, script=refusing()) as server:
        world = World(tmp_path, server.base_url, judge_concurrency=1)
        key = world.judged()
        summary = world.walk()
        assert summary.exit_status == 1
        assert words in summary.failed[key]
        assert server.counters["calls"] <= 4
        answered = server.counters["answered"]
    assert not list(world.store.root.rglob("scores.parquet"))
    with serve(script=refusing()) as server:
        world.runtime["pocket_judge_url"] = server.base_url
        world.judged()
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
        statuses = {item: row["status"] for item, row in world.rows(key).items() if row["status"] != "ok"}
        assert statuses == {"81:2": "unparsed", "83:2": "error"}
    table = TABLES["completeness"](load_results(world.results / "faults", world.store.root))
    assert isinstance(table, Table)
    assert table.rows[0].cells[table.columns.index("mt_bench")] == "6/8 (1 error, 1 unparsed)"
    assert "6/8 (1 error, 1 unparsed)" in world.report()


def test_a_changed_judge_behind_the_same_name_fails_the_stage_with_both_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(script=refusing("reply 84-2")) as server:
        world = World(tmp_path, server.base_url)
        key = world.judged()
        assert world.walk().exit_status == 3
        before = world.judgments(key)
        real = judge_server._completion
        monkeypatch.setattr(judge_server, "_completion", lambda *given: {**real(*given), "model": "pocket-judge-2"})
        server.script = refusing()
        summary = world.walk()
    assert summary.exit_status == 1
    assert "'pocket-judge', this one from 'pocket-judge-2'" in summary.failed[key]
    world.store.open()
    assert [row for row in world.judgments(key) if row["status"] == "ok"] == [row for row in before if row["status"] == "ok"]


def test_another_reference_set_is_another_stage_and_the_report_refuses_to_mix_them(tmp_path: Path) -> None:
    with serve(script=refusing()) as server:
        world = World(tmp_path, server.base_url)
        first, second = world.judged(reference_set="first"), world.judged(reference_set="second")
        assert first != second
        assert world.run() == 0
    versions = [next(iter(world.rows(key).values()))["benchmark_version"] for key in (first, second)]
    assert "references:first@" in versions[0]
    assert "references:second@" in versions[1]
    mixed = pq.read_table(world.store.folder(first) / "scores.parquet").to_pylist()
    mixed[-1]["benchmark_version"] = versions[1]
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(mixed), world.store.folder(second) / "scores.parquet")
    with pytest.raises(HarnessError, match=r"mixes .*references:first@[0-9a-f]{12}.*references:second@[0-9a-f]{12}"):
        TABLES["table_1"](load_results(world.results / "faults", world.store.root))


# -- disk, processes, keys -------------------------------------------------------------------------------------------


def test_a_full_disk_fails_the_stage_keeps_what_was_paid_for_and_the_old_manifest(tmp_path: Path) -> None:
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
            with pytest.raises(HarnessError, match=r"manifest\.json: cannot be written .*the old file is intact"):
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
        assert server.counters["calls"] == 8 + 1, "asked again: only the reply that could not be written"
    assert {row["value"] for row in world.rows(key).values()} == {7.0}


def walk_apart(root: str, plan: Plan, queue: Any) -> None:
    """What the second process does."""
    summary = execute(plan, Store(Path(root)), Inline(Store(Path(root))))
    queue.put((summary.exit_status, summary.executed))


def test_two_processes_on_one_store_ask_once_and_commit_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with serve(script=refusing(), faults=FaultRates(latency_s=0.3)) as server:
        world = World(tmp_path, server.base_url, judge_concurrency=1)
        key = world.judged()
        processes = [context.Process(target=walk_apart, args=(str(world.store.root), world.plan, queue)) for _ in range(2)]
        for process in processes:
            process.start()
        ended = [queue.get(timeout=120) for _ in processes]
        for process in processes:
            process.join()
        assert [status for status, _ in ended] == [0, 0]
        assert sum(executed for _, executed in ended) == 1
        assert server.counters["calls"] == 8
    rows = pq.read_table(world.store.folder(key) / "scores.parquet").to_pylist()
    assert sorted(row["item"] for row in rows) == sorted(f"{n}:{turn}" for n in (81, 82, 83, 84) for turn in (1, 2))
    assert world.store.verify() == []


def test_a_changed_setting_code_version_or_file_is_a_new_key_and_old_rows_stay(tmp_path: Path) -> None:
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
    changes = {"data.path": str(pairs), "model.source": str(tiny.checkpoint(tmp_path / "model")), "ranker.model": str(tmp_path / "model")}
    for text in ("a", "b"):
        write_jsonl(pairs, [{"prompt": text, "chosen": "good", "rejected": "bad"}])
        study = compose(ROOT / "ablations" / "own_data.yaml", "t", "own_data", {**changes, "evaluation.benchmarks": ["heldout"]}, {"x": {}}, [0])
        plans.append(build_plan(study, fingerprints(study)))
    by_stage = [{node.stage: key for key, node in plan.nodes.items()} for plan in plans]
    same = {stage for stage in by_stage[0] if by_stage[0][stage] == by_stage[1][stage]}
    assert same == {"base.checkpoint", "benchmarks.files"}, "another data file: everything that reads it is made anew"


# -- searches --------------------------------------------------------------------------------------------------------

world = test_tune.world

KILLED = """\
import sys, time; from pathlib import Path; from harness import tune
tune.HEARTBEAT_S, tune.GRACE_S = 1, 2
study = tune.open_study(tune.Search(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
study.optimize(lambda trial: (print("running", flush=True), time.sleep(600)), n_trials=1)
"""


def test_a_killed_trial_is_tried_again_and_the_search_goes_on(tmp_path: Path, world: test_tune.World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "HEARTBEAT_S", 1)
    monkeypatch.setattr(tune, "GRACE_S", 2)
    asked = test_tune.search(tmp_path)
    command = [sys.executable, "-c", KILLED, str(asked.path), str(asked.store), asked.storage]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "running"
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(3.5)
    tune.work(asked)
    study = tune.open_study(asked)
    states = Counter(trial.state.name for trial in study.trials)
    assert states["FAIL"] == 1, "the killed one"
    assert states["COMPLETE"] == 6
    assert states["RUNNING"] == 0
    assert any(trial.system_attrs.get("failed_trial") == 0 for trial in study.trials if trial.state.name == "COMPLETE")


def test_an_infinite_objective_is_a_failed_trial_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    def infinite(task: StageTask) -> StageOutcome:
        write_jsonl(task.out / "rows.jsonl", [])
        if task.stage == "heldout":
            table = pa.table({"benchmark": ["heldout"], "metric": ["reward"], "value": [float("inf")]})
            pq.write_table(table, task.out / "scores.parquet")
        return StageOutcome(1)

    monkeypatch.setattr("harness.worker.function_of", lambda stage: infinite)
    asked = test_tune.search(tmp_path)
    tune.work(asked)
    study = tune.open_study(asked)
    assert {trial.state.name for trial in study.trials} == {"FAIL"}
    assert all("without a finite value" in trial.user_attrs["reason"] for trial in study.trials)
    with pytest.raises(HarnessError, match="no trial ended with a finite value"):
        tune.winners(study)


def test_a_locked_database_is_waited_for(tmp_path: Path, world: test_tune.World) -> None:
    asked = test_tune.search(tmp_path)
    tune.open_study(asked)
    locked = threading.Event()

    def hold() -> None:
        with sqlite3.connect(tmp_path / "optuna.db", timeout=30, isolation_level=None) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            locked.set()
            time.sleep(1.5)
            connection.execute("COMMIT")

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(30)
    tune.work(asked)
    holder.join()
    assert [trial.state for trial in tune.open_study(asked).trials] == [optuna.trial.TrialState.COMPLETE] * 6
