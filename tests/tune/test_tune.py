"""Searches: honest about failures, the same store as ablations, nothing lost when a worker dies."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch  # noqa: F401 - not in the middle of a trial that is timed
from optuna.trial import TrialState
from typer.testing import CliRunner

from analysis.search import state_of, trials_table
from harness.cli import app
from harness.engine.archive import needed
from harness.engine.execute import Inline
from harness.engine.store import Store
from harness.records import HarnessError, StageOutcome, StageTask, write_jsonl
from harness.tune import workers as tune
from harness.tune.search import Search, load_tune, open_storage, open_study
from harness.tune.workers import Ending, judge_price, suggest
from tests.tune_world import SEARCH, make_search, toy

ROOT = Path(__file__).parents[2]


class World:
    """Stands in for every stage; notes (stage, iteration, α). ``broken`` makes every training, or
    every judgment, end that way.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, float]] = []
        self.broken: Any = None
        self.before: Callable[[StageTask[Any]], None] = lambda task: None

    def __call__(self, task: StageTask[Any]) -> StageOutcome:
        self.before(task)
        self.calls.append(
            (
                task.stage,
                getattr(task.settings, "iteration", 0),
                task.settings.objective.alpha if task.stage == "train" else 0.0,
            )
        )
        if isinstance(self.broken, BaseException) and task.stage == "train":
            raise self.broken
        if self.broken == "judge" and task.stage.startswith("judge."):
            rows = [
                {"attempts": 1, "prompt_tokens": 1000, "completion_tokens": 100},
                {"attempts": 0, "prompt_tokens": 9, "completion_tokens": 9},
            ]
            write_jsonl(task.out / "judge.journal.jsonl", rows)
            with (task.out / "judge.journal.jsonl").open("a") as torn:
                torn.write('{"attempts": 1, "prom')
            raise HarnessError("the judge is away")
        return toy(task, "unparsed" if self.broken == "missing" else "ok")

    def ran(self, stage: str) -> int:
        return sum(call[0] == stage for call in self.calls)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("harness.engine.worker.function_of", lambda stage: world)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return world


def states(study: optuna.Study) -> list[str]:
    return [state_of(trial) for trial in study.trials]


def changed(text: str = SEARCH, **keys: str) -> str:
    """A search with other top-level lines: ``changed(trials="9")``."""
    lines = [line for line in text.splitlines() if line.split(":")[0] not in keys]
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]) + "\n"


# -- budgets ---------------------------------------------------------------------------------------
def test_a_search_spends_its_budget_and_finds_the_best(tmp_path: Path, world: World) -> None:
    asked = make_search(tmp_path)
    tune.work(asked)
    study = open_study(asked)
    assert len(study.trials) == 4
    best = tune.winners(study)["best"]
    assert best.value == max(t.values[0] for t in study.trials if t.state.name == "COMPLETE")
    tune.work(asked)
    assert len(open_study(asked).trials) == 4
    tune.work(make_search(tmp_path, changed(trials="6")))
    trials = open_study(asked).trials
    assert len(trials) == len({trial.params["objective.alpha"] for trial in trials}) == 6, (
        "a continued search drew its first points again"
    )


def test_no_trial_is_begun_once_judging_cost_the_budget(tmp_path: Path, world: World) -> None:
    judged = SEARCH.replace(
        "[heldout]", "[heldout, mt_bench]"
    )  # 0.25 USD a checkpoint: the base's of 2 seeds, then 2 a trial
    limited = changed(judged, pruner="none", max_cost_usd="1.1")
    asked = make_search(tmp_path, limited)
    tune.work(asked)
    study = open_study(asked)
    assert states(study) == ["complete"] * 2  # 1.00 after the first, 1.50 after the second
    assert judge_price(study, asked) == pytest.approx(1.5)
    assert tune.spent(study, asked).over(asked.spec) == "1.5 of 1.1 USD for judging"
    tune.work(make_search(tmp_path, limited))
    assert len(open_study(make_search(tmp_path, limited)).trials) == 2
    tune.work(make_search(tmp_path, changed(limited, max_cost_usd="1.6")))
    assert len(open_study(make_search(tmp_path, limited)).trials) == 3


def test_judgments_paid_for_by_others_are_not_in_the_price(tmp_path: Path, world: World) -> None:
    text = changed(SEARCH.replace("[heldout]", "[heldout, mt_bench]"), pruner="none", trials="2")
    tune.work(make_search(tmp_path, text))
    again = make_search(tmp_path, changed(text, name="again"))  # same sampler's seed, same points
    tune.work(again)
    assert len(open_study(again).trials) == 2
    assert judge_price(open_study(again), again) == 0


def test_judging_that_never_came_to_an_end_is_paid_for_too(tmp_path: Path, world: World) -> None:
    world.broken = "judge"
    prices = (
        "runtime.price_prompt_usd_per_million: 10.0, runtime.price_completion_usd_per_million: 30.0"
    )
    text = SEARCH.replace("[heldout]", f"[heldout, mt_bench], {prices}")
    asked = make_search(tmp_path, changed(text, trials="1"))
    tune.work(asked)
    calls = world.ran("judge.mt_bench")
    assert calls == 2  # the base's answers and the first trial's
    assert judge_price(open_study(asked), asked) == pytest.approx(calls * (0.01 + 0.003))


def test_a_price_limit_without_prices_is_refused(tmp_path: Path, world: World) -> None:
    text = changed(SEARCH.replace("set: {", "set: {judge.kind: openai, "), max_cost_usd="1")
    with pytest.raises(HarnessError, match="max_cost_usd is set but no price is"):
        open_study(make_search(tmp_path, text))


def test_hours_are_counted_over_all_invocations(tmp_path: Path, world: World) -> None:
    limited = changed(pruner="none", hours="0.00001")  # 36 ms: less than one trial takes
    for _ in range(2):
        tune.work(make_search(tmp_path, limited))
        assert len(open_study(make_search(tmp_path, limited)).trials) == 1
    tune.work(make_search(tmp_path, changed(limited, hours="9")))
    assert len(open_study(make_search(tmp_path, limited)).trials) == 4


def test_trials_share_stages_with_each_other(tmp_path: Path, world: World) -> None:
    tune.work(make_search(tmp_path))
    assert world.ran("base.pocket") == 1
    assert world.ran("rollout") == 2


# -- failures --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (HarnessError("loss is nan at step 3"), "loss is nan"),
        (ValueError("inf"), "ValueError"),
        ("missing", "8 of 8 rows without a finite value"),
    ],
)
@pytest.mark.parametrize("several", [False, True], ids=["one metric", "Pareto"])
def test_failures_keep_their_reason_and_are_never_best(
    tmp_path: Path, world: World, broken: Any, words: str, several: bool
) -> None:
    text = changed(trials="2", pruner="none")
    if several:
        text = changed(
            text,
            metrics="[{benchmark: heldout, metric: reward}, {benchmark: heldout, metric: reward, "
            "direction: minimize}]",
        )
    asked = make_search(tmp_path, text)
    world.broken = broken
    tune.work(asked)
    study = open_study(asked)
    assert states(study) == ["failed", "failed"]
    assert all(words in trial.user_attrs["reason"] for trial in study.trials)
    with pytest.raises(HarnessError, match="no trial ended with a finite value"):
        tune.finalists(asked, study)
    world.broken = None
    tune.work(make_search(tmp_path, changed(text, trials="4")))
    assert states(open_study(asked)) == ["failed", "failed", "complete", "complete"]
    assert {trial.number for trial in tune.winners(open_study(asked)).values()} <= {2, 3}


def test_several_metrics_give_a_front_and_its_ends_are_the_finalists(
    tmp_path: Path, world: World
) -> None:
    """Held-out reward is −|log10 α| and the rating its opposite: every trial is on the front."""
    both = "[{benchmark: heldout, metric: reward}, {benchmark: mt_bench, metric: rating}]"
    asked = make_search(
        tmp_path, changed(SEARCH.replace("[heldout]", "[heldout, mt_bench]"), metrics=both)
    )
    tune.work(asked)
    study = open_study(asked)
    assert states(study) == ["complete"] * 4
    assert len(study.best_trials) == 4
    values = [trial.values for trial in study.trials]
    assert [trial.values for trial in tune.winners(study).values()] == [
        max(values),
        max(values, key=lambda pair: pair[1]),
    ]


def test_the_sampler_learns_where_trials_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the space fails, the rest is pruned: told as Optuna's FAIL, 18 to 20 of the last 20
    trials fail (eight seeds).
    """
    began: list[int] = []

    def steps(trial: optuna.Trial, search: Search, *_: Any) -> Ending:
        if suggest(trial, search.spec.space)["objective.alpha"] > 0.32:
            raise HarnessError("loss is nan")
        began.append(trial.number)
        trial.report(0.5, 1)
        return (TrialState.COMPLETE, [1.0]) if len(began) == 1 else (TrialState.PRUNED, None)

    monkeypatch.setattr("harness.tune.workers._run_seeds", steps)
    asked = make_search(tmp_path, changed(pruner="none", trials="40"))
    tune.work(asked)
    assert states(open_study(asked))[20:].count("failed") <= 12


# -- asking something else -------------------------------------------------------------------------
def test_a_changed_space_is_refused_with_the_difference(tmp_path: Path, world: World) -> None:
    open_study(make_search(tmp_path))
    with pytest.raises(
        HarnessError,
        match=r"space.objective.alpha.log_uniform: was \[0.01, 10.0\], now \[0.01, 5.0\].*another "
        r"name",
    ):
        open_study(make_search(tmp_path, SEARCH.replace("[0.01, 10]", "[0.01, 5]")))
    with pytest.raises(HarnessError, match=r"training.batch_size: was the default, now 32\)"):
        open_study(
            make_search(tmp_path, SEARCH.replace("set: {", "set: {training.batch_size: 32, "))
        )
    open_study(
        make_search(tmp_path, SEARCH.replace("set: {", "set: {objective.alpha: 1, "))
    )  # searched: every trial has its own


def test_seeds_are_the_steps_of_the_wilcoxon_pruner(tmp_path: Path, world: World) -> None:
    tune.work(make_search(tmp_path))
    trials = open_study(make_search(tmp_path)).trials
    assert {
        len(trial.intermediate_values) for trial in trials if trial.state == TrialState.COMPLETE
    } == {2 * 8}
    assert all(
        len(trial.intermediate_values) < 2 * 8
        for trial in trials
        if trial.state == TrialState.PRUNED
    )


# -- lost workers ----------------------------------------------------------------------------------
def test_a_trial_whose_worker_died_is_queued_again_with_its_settings_twice_and_then_left(
    tmp_path: Path, world: World
) -> None:
    study = open_study(make_search(tmp_path))
    for attempt in range(1, 4):
        trial = study.ask()
        assert "worker" not in trial.user_attrs, (
            "the dead worker's name would pass for a living one's"
        )
        trial.suggest_float("objective.alpha", 0.01, 10, log=True)
        tune.fail_stale_trials(study)  # nobody has put a name to it in this turn: dead
        tune.fail_stale_trials(study)
        assert study.trials[trial.number].state == TrialState.FAIL
        assert len(study.get_trials(states=(TrialState.WAITING,))) == (1 if attempt < 3 else 0)
    alphas = {trial.params["objective.alpha"] for trial in study.trials}
    assert len(alphas) == 1
    assert [trial.system_attrs.get("retry_history") for trial in study.trials] == [
        None,
        [0],
        [0, 1],
    ]
    notes = list(trials_table(study)["note"])
    assert "queued again as trial 1" in notes[0]
    assert "not again: that was attempt 3" in notes[2]
    assert tune.spent(study, make_search(tmp_path)).trials == 0, "lost trials are in the budget"


def test_a_named_trial_has_had_a_heartbeat_so_that_its_death_is_noticed(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker killed between the name and Optuna's first beat would otherwise be waited for
    without end.
    """
    monkeypatch.setattr("harness.tune.search.GRACE_S", 1)
    study = open_study(make_search(tmp_path))
    assert tune._begin(study).number == 0
    tune.fail_stale_trials(study)
    assert states(study) == ["running"]
    while states(study) == ["running"]:
        time.sleep(0.2)
        tune.fail_stale_trials(study)
    assert states(study) == ["lost", "waiting"]


def test_an_interrupted_trial_is_queued_again_by_the_same_command(
    tmp_path: Path, world: World
) -> None:
    asked = make_search(tmp_path, changed(pruner="none", trials="3"))
    world.broken = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tune.work(asked)
    world.broken = None
    tune.work(asked)
    study = open_study(asked)
    assert states(study) == ["lost", "complete", "complete", "complete"]
    assert study.trials[1].params == study.trials[0].params
    assert study.trials[1].system_attrs["retry_history"] == [0]


def test_a_trial_taken_for_dead_while_it_ran_ends_once(tmp_path: Path, world: World) -> None:
    asked = make_search(tmp_path, changed(pruner="none", trials="1"))
    open_study(asked)

    def declare(task: StageTask[Any]) -> None:
        other = optuna.load_study(study_name="t", storage=open_storage(asked.storage))
        if task.stage == "train" and other.trials[0].state == TrialState.RUNNING:
            other.tell(0, state=TrialState.FAIL)

    world.before = declare
    tune.work(asked)
    assert states(open_study(asked)) == ["lost", "complete"]


# -- what came of it -------------------------------------------------------------------------------
def test_finalists_run_on_fresh_seeds_against_the_default(tmp_path: Path, world: World) -> None:
    asked = make_search(tmp_path)
    tune.work(asked)
    final = tune.finalists(asked, open_study(asked))
    assert [cell.seed for cell in final.cells] == [7, 8, 9, 7, 8, 9]
    assert final.baseline == {"arm": "default"}
    assert final.cells[3].recipe.objective.alpha == pytest.approx(
        tune.winners(open_study(asked))["best"].params["objective.alpha"]
    )


def test_the_command_searches_runs_the_finals_and_reports_both(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "harness.engine.launch.make_executor", lambda kind, store, workers, plan: Inline(store)
    )
    monkeypatch.setattr("harness.cli.run.show_report", lambda plan, store, folder: None)
    text = changed(
        SEARCH.replace("set: {", "set: {objective.alpha: 0.1, "),
        trials="6",
        pruner="none",
        question="Which α?",
    )
    asked = make_search(tmp_path, text)
    arguments = ["tune", str(asked.path), "--store", str(asked.store), "--workers", "1"]
    outcome = CliRunner().invoke(app, [*arguments, "--results", str(tmp_path / "results")])
    assert outcome.exit_code == 0, outcome.output
    folder = tmp_path / "results" / "t" / "search"
    report = (folder / "search.md").read_text()
    numbers = json.loads((folder / "search.json").read_text())
    assert numbers["fresh"]["default"] == [
        pytest.approx({"7": -0.965, "8": -0.965, "9": -0.965})
    ]  # −|log10 0.1| + mean of 0 … 0.07
    assert "Which α?" in report
    assert "6 trials: " in report
    assert "Ended at 6 of 6 trials" in report
    assert "| default |" in report
    assert "(optimistic)" in report
    assert {path.stem for path in folder.glob("*.png")} == {
        "history",
        "slice",
        "importance",
        "contour",
    }
    assert len((folder / "trials.csv").read_text().splitlines()) == 7
    kept = needed(Store(asked.store), tmp_path / "results")
    assert set(Store(asked.store).all_keys()) <= kept, "selm gc would delete what the trials used"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("  objective.alpha: {log_uniform: [0, 10]}", "above 0"),
        ("  objective.alpha: {uniform: [3, 1]}", "low below high"),
        ("  objective.alpha: {choice: [1], uniform: [0, 1]}", "exactly one"),
        ("  objective.alfa: {choice: [1]}", "did you mean 'alpha'"),
    ],
)
def test_a_bad_search_is_refused(tmp_path: Path, world: World, change: str, words: str) -> None:
    text = SEARCH.replace("  objective.alpha: {log_uniform: [0.01, 10]}", change)
    with pytest.raises(HarnessError, match=words):
        open_study(make_search(tmp_path, text))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"fresh_seeds": "[]"}, "fresh_seeds: List should have at least 1 item"),
        ({"fresh_seeds": "[7, 7]"}, "seed 7 is given twice"),
        ({"seeds": "[0, 0]"}, "seed 0 is given twice"),
        ({"finalists": "{evaluation.benchmarkz: [heldout]}"}, "did you mean 'benchmarks'"),
        ({"metrics": "[{metric: rewrd}]"}, "metrics: nothing measures heldout/rewrd"),
        ({"metrics": "[{benchmark: mt_bench, metric: rating}]"}, "measures mt_bench/rating"),
    ],
)
def test_what_would_end_a_search_after_its_trials_is_told_before_them(
    tmp_path: Path, world: World, keys: dict[str, str], words: str
) -> None:
    with pytest.raises(HarnessError, match=re.escape(words)):
        open_study(make_search(tmp_path, changed(**keys)))
    assert not world.calls


def test_the_search_that_ships_loads() -> None:
    spec = load_tune(ROOT / "ablations" / "tune_alpha_beta.yaml")
    assert not set(spec.seeds) & set(spec.fresh_seeds)


# -- where a search is kept ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "mysql+mysqldb://me:canary-9@127.0.0.1/db",
            "cannot be used .*'MySQLdb'.*extra .postgresql",
        ),
        ("postgres://me:canary-9@host/db", "cannot be used .*dialects:postgres"),
        ("redis://me:canary-9@host/0", "cannot be used .*dialects:redis"),
        ("postgresql+psycopg2://me:canary-9@host:port/db", "cannot be used .*no address"),
        ("postgresql://me:p@ss:canary-9@host/db", "cannot be used .*no address"),
        ("journal.log", "cannot be used .*no address.*wants sqlite:////"),
        ("", "cannot be used .*no address"),
        ("sqlite://", "names no database that several workers see"),
        ("sqlite:///:memory:", "names no database that several workers see"),
        (
            "postgresql+psycopg2://me:canary-9@127.0.0.1:1/db",
            r"127\.0\.0\.1:1/db: cannot be used .*refused",
        ),
        ("postgresql+psycopg2://me@127.0.0.1:1/db?password=canary-9", "cannot be used"),
        ("postgresql://me:canary-9@127.0.0.1:1/db", r"127\.0\.0\.1:1/db: cannot be used .*refused"),
        ("postgresql+psycopg2://me:canary-9@p/ss@127.0.0.1:1/db", "cannot be used"),
        ("sqlite:///{folder}/text.db", "cannot be used .*not a database"),
        ("sqlite:///{folder}", "cannot be used .*unable to open"),
        ("sqlite:///{folder}/missing/x.db", "cannot be used .*unable to open"),
        (
            "sqlite:///{folder}/other.db",
            "cannot be used .*no column|cannot be used .*no such column",
        ),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_message_without_the_password(
    tmp_path: Path, address: str, says: str
) -> None:
    (tmp_path / "text.db").write_text("This is no database. " * 100)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("create table version_info (x int)")
        other.commit()
    with pytest.raises(HarnessError, match=rf"(?s)^--storage .*({says})") as raised:
        open_storage(address.format(folder=tmp_path))
    assert "canary-9" not in str(raised.value)
    assert "\n" not in str(raised.value)
