"""Workers of a search, one trial of it, and what came of it. A trial is a plan in the same store as
any ablation, so trials share work with both.

A trial runs one seed after another, with a report to the pruner after each. A pruned trial's later
seeds are never run; what it did run stays in the store.

Workers share one storage and take turns to begin a trial, so that none is lost, doubled or begun
beyond the budget. The winner is run again on seeds no trial saw: the search's own estimate is
optimistic.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import multiprocessing
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import optuna
import pyarrow.parquet as pq
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat, get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from harness.engine.archive import remember
from harness.engine.execute import Inline, execute, terminable
from harness.engine.graph import Plan
from harness.engine.launch import make_executor, plan_study
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.records import HarnessError, redact
from harness.study.study import Study
from harness.tune.search import Metric, Range, Search, TuneFile, open_study, turn

RETRIES = 2
"""How often a trial whose worker died is queued again."""
DEATHS = 5
"""How many workers are replaced for each that was asked for, before the search gives up."""
ITEMS_PER_SEED = 1_000_000
"""Pruner's steps reserved for the items of one seed, so that (seed, item) has a step of its own."""
Ending = tuple[TrialState, list[float] | None]


# -- a trial ---------------------------------------------------------------------------------------
class TrialFailedError(Exception):
    """A trial that gives no finite value: marked failed with this reason, never best."""


def run_trial(trial: optuna.Trial, search: Search, store: Store, executor: Inline) -> Ending:
    """Run a trial seed by seed; returns how it ended and its values.

    A failure is told to Optuna as pruned, with its ``reason`` and a violated constraint: such a
    trial is never best, and the sampler learns to keep away. Optuna's own FAIL would be left out by
    samplers, and a search would go on where training diverges.
    """
    try:
        return _run_seeds(trial, search, store, executor)
    except UpdateFinishedTrialError:
        return TrialState.FAIL, None  # taken for dead and given to another worker meanwhile
    except StorageInternalError:
        raise
    except (HarnessError, TrialFailedError) as error:
        reason = redact(str(error))
    except Exception as error:  # noqa: BLE001 - a point of the space brought it about: the trial's failure, not the search's
        reason = redact(f"{type(error).__name__}: {error}")
    with suppress(UpdateFinishedTrialError):
        trial.set_user_attr("reason", reason)
        trial.set_constraint("gives a value", 1.0)
    return TrialState.PRUNED, None


def _run_seeds(trial: optuna.Trial, search: Search, store: Store, executor: Inline) -> Ending:
    spec, means = search.spec, []
    plan = plan_study(search.study({"trial": suggest(trial, spec.space)}, spec.seeds))
    for place, seed in enumerate(spec.seeds):
        part = portion(plan, seed)
        remember(store, spec.name, part.nodes)
        asking = {key for key, one in part.nodes.items() if getattr(one.settings, "judge", None)}
        unpaid = {key for key in asking if not store.has(key)}
        if unpaid:
            paid_here = unpaid | set(trial.user_attrs.get("judging", ()))
            trial.set_user_attr("judging", sorted(paid_here))
        summary = execute(part, store, executor)
        if summary.exit_status:
            reasons = [*summary.failed.values(), *summary.partial.values()]
            raise TrialFailedError(reasons[0] if reasons else "a stage it needs failed")
        (run,) = part.runs
        items = [measured(store, run.last, metric) for metric in spec.metrics]
        means.append([sum(found) / len(found) for found in items])
        trial.set_user_attr(f"seed_{seed}", means[-1])
        if spec.prunes:
            for number, value in enumerate(items[0]):
                trial.report(value, place * ITEMS_PER_SEED + number)
            if place + 1 < len(spec.seeds) and trial.should_prune():
                return TrialState.PRUNED, None
    return TrialState.COMPLETE, [sum(one) / len(one) for one in zip(*means, strict=True)]


def suggest(trial: optuna.Trial, space: Mapping[str, Range]) -> dict[str, Any]:
    """One point of the space: dotted key → value."""
    point: dict[str, Any] = {}
    for key, span in space.items():
        if span.choice:
            point[key] = trial.suggest_categorical(key, span.choice)
        else:
            low, high = span.log_uniform or span.uniform
            point[key] = trial.suggest_float(key, low, high, log=bool(span.log_uniform))
    return point


def portion(plan: Plan, seed: int) -> Plan:
    """The plan's stages of one seed, with the whole plan's keys."""
    runs = tuple(run for run in plan.runs if run.cell.seed == seed)
    wanted: set[str] = set()
    frontier = [key for run in runs for one in run.iterations.values() for key in one.values()]
    while frontier:
        key = frontier.pop()
        if key not in wanted:
            wanted.add(key)
            frontier += plan.nodes[key].inputs.values()
    nodes = {key: node for key, node in plan.nodes.items() if key in wanted}
    return replace(plan, nodes=nodes, runs=runs)


def measured(store: Store, stages: Mapping[str, str], metric: Metric) -> list[float]:
    """A checkpoint's values of a metric, items in order. Raises TrialFailedError without rows, or
    with one that has no finite value.
    """
    values: list[float | None] = []
    for key in dict.fromkeys(stages.values()):
        path = store.folder(key) / "scores.parquet"
        for row in pq.read_table(path).to_pylist() if path.is_file() else ():
            if (row["benchmark"], row["metric"]) == (metric.benchmark, metric.metric):
                values.append(row["value"])
    finite = [value for value in values if value is not None and math.isfinite(value)]
    name, missing = f"{metric.benchmark}/{metric.metric}", len(values) - len(finite)
    if missing:
        raise TrialFailedError(f"{name}: {missing} of {len(values)} rows without a finite value")
    if not finite:
        raise TrialFailedError(
            f"{name}: no such rows among the scores; is the benchmark in evaluation.benchmarks?"
        )
    return finite


# -- the budget ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Spent:
    """What a search used of its budget. trials: finished. hours: wall-clock time in which trials
    ran. usd: price of their judging.
    """

    trials: int
    running: int
    hours: float
    usd: float

    def over(self, spec: TuneFile) -> str:
        """The budget that is used up, or nothing."""
        if spec.hours and self.hours >= spec.hours:
            return f"{self.hours:.3g} of {spec.hours:g} hours"
        if spec.max_cost_usd and self.usd >= spec.max_cost_usd:
            return f"{self.usd:.4g} of {spec.max_cost_usd:g} USD for judging"
        return f"{self.trials} of {spec.trials} trials" if self.trials >= spec.trials else ""


def spent(study: optuna.Study, search: Search) -> Spent:
    """Counted from storage and store: the same for every worker and after a restart."""
    trials = study.get_trials(deepcopy=False)
    finished = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    running = sum(t.state == TrialState.RUNNING for t in trials)
    # The union of the trials' times, without those that lost their worker.
    spans = sorted(
        (trial.datetime_start, trial.datetime_complete or datetime.now())
        for trial in trials
        if trial.datetime_start and trial.state != TrialState.FAIL
    )
    seconds, reached = 0.0, datetime.min
    for start, end in spans:
        seconds += max(0.0, (end - max(start, reached)).total_seconds())
        reached = max(reached, end)
    return Spent(finished, running, seconds / 3600, judge_price(study, search))


def judge_price(study: optuna.Study, search: Search) -> float:
    """USD that judging for trials cost so far, failed and unfinished ones included."""
    store, recipe, dollars = Store(search.store), search.recipe, 0.0
    prices = recipe.judge.prices(recipe.runtime)
    trials = study.get_trials(deepcopy=False)
    for key in sorted({key for one in trials for key in one.user_attrs.get("judging", ())}):
        if store.has(key):
            dollars += store.record(key).costs.get("judge_usd", 0.0)
            continue
        folders = (store.partial_folder(key), *(store.root / "work").glob(f"{key}.*"))
        for path in (path for one in folders for path in one.glob("*.journal.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):  # torn by a kill: that reply is asked again
                    row = json.loads(line)
                    if row.get("attempts"):  # else it came from elsewhere and cost nothing
                        dollars += row["prompt_tokens"] * prices[0] / 1e6
                        dollars += row["completion_tokens"] * prices[1] / 1e6
    return dollars


# -- workers ---------------------------------------------------------------------------------------
def work(search: Search, seed_offset: int = 0, device: str = "") -> None:
    """One worker: run trials until a budget is spent, and wait for those of others."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store, spec, study = Store(search.store), search.spec, open_study(search, seed_offset)
    store.open()
    plan = build_plan(search.study({"default": {}}, spec.seeds[:1]))
    executor = make_executor("inline", store, 1, plan)
    assert isinstance(executor, Inline)
    while True:
        trial = None
        with turn(search):
            fail_stale_trials(study)
            used = spent(study, search)
            if not used.over(spec) and used.trials + used.running < spec.trials:
                trial = _begin(study)
        if trial is not None:
            with get_heartbeat_thread(trial._trial_id, trial.storage):
                _finish(study, trial, search, store, executor)
        elif not used.running:
            return
        else:
            time.sleep(0.5)


def _begin(study: optuna.Study) -> optuna.Trial:
    """A trial with its first heartbeat and then its worker's name: in a later turn, one without a
    name is known to be dead.
    """
    trial = study.ask()
    # ``study.ask`` sends no heartbeat, and Optuna takes no trial without one for stale: a worker
    # killed here would be waited for without end.
    assert isinstance(trial.storage, BaseHeartbeat)
    trial.storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
    return trial


def _finish(
    study: optuna.Study, trial: optuna.Trial, search: Search, store: Store, executor: Inline
) -> None:
    """Run a trial, tell Optuna how it ended, and print a line."""
    started = time.monotonic()
    ending: Ending = (TrialState.FAIL, None)
    try:
        ending = run_trial(trial, search, store, executor)
    finally:  # also when it is interrupted: FAIL means lost, and the next worker queues it again
        with suppress(UpdateFinishedTrialError):
            study.tell(trial, ending[1], state=ending[0], skip_if_finished=True)
    said = " ".join([ending[0].name.lower(), *(f"{value:.4g}" for value in ending[1] or ())])
    if trial.user_attrs.get("reason"):
        said = f"failed: {trial.user_attrs['reason']}"
    line = f"trial {trial.number}: {said} ({time.monotonic() - started:.0f} s)"
    Console().print(line, markup=False, soft_wrap=True)


def fail_stale_trials(study: optuna.Study) -> None:
    """In turn: fail the trials whose worker died and queue each again, at most ``RETRIES`` times.
    The study's attribute ``lost`` says which.

    Every step may be done twice: a worker killed here leaves nothing undone. Optuna's callback is
    called here rather than given to the storage: a worker killed between Optuna's two steps would
    lose the trial, and an interrupted one is no stale one.
    """
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "worker" not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)
    trials, known = study.get_trials(deepcopy=False), study.user_attrs.get("lost", {})
    queue_again = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
    histories = {trial.number: queue_again.retry_history(trial) for trial in trials}
    queued = {before for history in histories.values() for before in history}
    lost = {}
    for trial in trials:
        if trial.state != TrialState.FAIL or str(trial.number) in known:
            continue
        if trial.number not in queued:
            nameless = copy.deepcopy(trial)  # the dead worker's name would pass for a living one's
            nameless.user_attrs = {}
            queue_again(study, nameless)
        attempt = len(histories[trial.number]) + 1
        what = "queued again"
        if attempt > RETRIES:
            what = f"not again: that was attempt {attempt}"
        worker = " ".join(["its worker", *filter(None, [trial.user_attrs.get("worker")])])
        lost[str(trial.number)] = f"{worker} died or was stopped; {what}"
    if lost:
        study.set_user_attr("lost", {**known, **lost})


def run_workers(search: Search, workers: int, devices: Sequence[str] = ()) -> None:
    """Search with several processes on one storage, one a device where devices are named; one that
    dies is replaced while trials are left. Raises HarnessError when they die again and again.
    """
    open_study(search)
    context = multiprocessing.get_context("spawn")
    names, offsets = list(devices) or [""] * workers, itertools.count()
    running: dict[BaseProcess, str] = {}

    def start(name: str) -> None:
        process = context.Process(target=_worker, args=(search, next(offsets), name))
        process.start()
        running[process] = name

    deaths = gave_up = 0
    with terminable():
        try:
            for name in names:
                start(name)
            while running:
                wait([process.sentinel for process in running])
                for process in [one for one in running if not one.is_alive()]:
                    name, status = running.pop(process), process.exitcode or 0
                    deaths += status != 0
                    if status and deaths <= DEATHS * len(names):
                        start(name)
                    elif status:
                        gave_up = status
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.join()
    if gave_up:
        raise HarnessError(
            f"{search.path}: the search's workers died {deaths} times (last exit code {gave_up}); "
            "out of memory? The same command continues"
        )


def _worker(search: Search, offset: int, device: str) -> None:
    with terminable():
        work(search, offset, device)


# -- what came of it -------------------------------------------------------------------------------
def winners(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Label → best trial (one metric), or up to three trials of the Pareto front: the best by each
    metric in turn. None where no trial ended with a finite value.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return {}
    done = [t for t in study.best_trials if all(math.isfinite(v) for v in t.values or [math.nan])]
    if len(study.directions) == 1:
        return {"best": done[0]} if done else {}
    chosen: dict[int, FrozenTrial] = {}
    for index, direction in enumerate(study.directions):
        sign = -1 if direction == optuna.study.StudyDirection.MAXIMIZE else 1
        for first in sorted(done, key=lambda t: (sign * t.values[index], t.number))[:1]:
            chosen.setdefault(first.number, first)
    return {f"Pareto {index}": trial for index, trial in enumerate(chosen.values(), 1)}


def finalists(search: Search, study: optuna.Study) -> Study:
    """Default and winners on fresh seeds, as a study. Raises HarnessError without a winner."""
    arms = {label: trial.params for label, trial in winners(study).items()}
    if not arms:
        raise HarnessError(
            f"search {study.study_name}: no trial ended with a finite value; look at the reasons "
            "in trials.csv"
        )
    spec = search.spec
    return search.study({"default": {}, **arms}, spec.fresh_seeds, spec.finalists, "default")


def fresh_values(search: Search, final: Study) -> dict[str, list[dict[int, float]]]:
    """Label of a finalist → for every metric of the search: fresh seed → mean over items. Seeds
    that are not scored whole are left out.
    """
    store, spec = Store(search.store), search.spec
    found: dict[str, list[dict[int, float]]] = {}
    for run in plan_study(final).runs:
        values = found.setdefault(run.cell.label, [{} for _ in spec.metrics])
        for place, metric in enumerate(spec.metrics):
            with suppress(TrialFailedError):
                items = measured(store, run.last, metric)
                values[place][run.cell.seed] = sum(items) / len(items)
    return found
