"""Workers of a search, and what came of it. A trial is a plan in the same store as any ablation, so
trials share work with both.

Workers share one storage and take turns to begin a trial, so that none is lost, doubled or begun
beyond the budget. The winner is run again on seeds no trial saw: the search's own estimate is
optimistic.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.storages._heartbeat import BaseHeartbeat, get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from harness.engine.execute import Inline, terminable
from harness.engine.launch import make_executor, plan_study
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.records import HarnessError
from harness.study.sections import RuntimeSettings
from harness.study.study import Study, compose
from harness.tune.search import Search, TuneFile, base_study, open_study, turn
from harness.tune.trial import Ending, TrialFailedError, judge_price, measured, run_trial

RETRIES = 2
"""How often a trial whose worker died is queued again."""
REPLACE = 75
"""Exit status of a worker that wants to be replaced by a fresh process."""


@dataclass(frozen=True)
class Spent:
    """What a search used of its budget. trials: finished here. hours: wall-clock time in which
    trials ran. usd: price of their judging.
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


def spent(study: optuna.Study, store: Store, runtime: RuntimeSettings) -> Spent:
    """Counted from what the storage and the store hold, so that it is the same for every worker and
    after a restart.
    """
    trials = study.get_trials(deepcopy=False)
    finished = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    running = sum(t.state == TrialState.RUNNING for t in trials)
    return Spent(finished, running, _hours(trials), judge_price(study, store, runtime))


def _hours(trials: Sequence[FrozenTrial]) -> float:
    """Length of the union of the trials' times; those that lost their worker are left out (nobody
    knows when they ended).
    """
    spans = sorted(
        (trial.datetime_start, trial.datetime_complete or datetime.now())
        for trial in trials
        if trial.datetime_start and trial.state != TrialState.FAIL
    )
    seconds, reached = 0.0, datetime.min
    for start, end in spans:
        seconds += max(0.0, (end - max(start, reached)).total_seconds())
        reached = max(reached, end)
    return seconds / 3600


def work(search: Search, seed_offset: int = 0, device: str = "", replaceable: bool = False) -> bool:
    """Run trials until a budget is spent: one worker of the search. Waits for trials that others
    run: if one dies, it is tried again.

    A replaceable worker returns False after a trial that timed out: what was interrupted (an import
    of torch, say) may have left the process unfit for another trial.
    """
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store, spec, study = Store(search.store), search.spec, open_study(search, seed_offset)
    store.open()
    base = base_study(search, spec)
    executor = make_executor("inline", store, 1, build_plan(base))
    assert isinstance(executor, Inline)
    while True:
        trial = None
        with turn(store, spec.name):
            fail_stale_trials(study)
            used = spent(study, store, base.base.runtime)
            if not used.over(spec) and used.trials + used.running < spec.trials:
                trial = _begin(study)
        if trial is not None:
            with get_heartbeat_thread(trial._trial_id, trial.storage):
                _finish(study, trial, search, spec, store, executor)
            if replaceable and trial.user_attrs.get("timed_out"):
                return False
        elif not used.running:
            return True
        else:
            time.sleep(0.5)


def _begin(study: optuna.Study) -> optuna.Trial:
    """A trial with its first heartbeat and then its worker's name: in a later turn, one without a
    name is known to be dead.
    """
    trial = study.ask()
    assert isinstance(trial.storage, BaseHeartbeat)
    trial.storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
    return trial


def _finish(
    study: optuna.Study,
    trial: optuna.Trial,
    search: Search,
    spec: TuneFile,
    store: Store,
    executor: Inline,
) -> None:
    started = time.monotonic()
    ending: Ending = (TrialState.FAIL, None)
    try:
        ending = run_trial(trial, search, spec, store, executor)
    finally:  # also when it is interrupted: FAIL means lost, and the next worker queues it again
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            study.tell(trial, ending[1], state=ending[0], skip_if_finished=True)
    said = " ".join([ending[0].name.lower(), *(f"{value:.4g}" for value in ending[1] or ())])
    if trial.user_attrs.get("reason"):
        said = f"failed: {trial.user_attrs['reason']}"
    line = f"trial {trial.number}: {said} ({time.monotonic() - started:.0f} s)"
    Console().print(line, markup=False, soft_wrap=True)


def fail_stale_trials(study: optuna.Study) -> None:
    """In turn: fail the trials whose worker died and queue each again, at most ``RETRIES`` times.
    The study's attribute ``lost`` says which.

    Every step may be done twice: a worker killed here leaves nothing undone.
    """
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "worker" not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)
    known = study.user_attrs.get("lost", {})
    history_of = optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history
    trials = study.get_trials(deepcopy=False)
    again = {history_of(trial)[-1]: trial.number for trial in trials if history_of(trial)}
    lost = {}
    for trial in trials:
        if trial.state != TrialState.FAIL or str(trial.number) in known:
            continue
        history = [*history_of(trial), trial.number]
        if len(history) <= RETRIES and trial.number not in again:
            fixed = {
                key: value for key, value in trial.system_attrs.items() if key == "fixed_params"
            }
            attrs = {"failed_trial": history[0], "retry_history": history, **fixed}
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    system_attrs=attrs,
                )
            )
        what = (
            "queued again"
            if len(history) <= RETRIES
            else f"not again: that was attempt {len(history)}"
        )
        lost[str(trial.number)] = (
            f"its worker {trial.user_attrs.get('worker', '')} died or was stopped; {what}".replace(
                "  ", " "
            )
        )
    if lost:
        study.set_user_attr("lost", {**known, **lost})


# -- several workers -------------------------------------------------------------------------------
def run_workers(search: Search, workers: int, devices: Sequence[str] = ()) -> None:
    """Search with several processes on one storage, one a device where devices are named; one that
    dies is replaced while trials are left.
    """
    open_study(search)
    names = list(devices) or [""] * workers
    context = multiprocessing.get_context("spawn")
    running = {index: _start(context, search, index, name) for index, name in enumerate(names)}
    deaths = lost = replaced = 0
    with terminable():
        try:
            while running:
                time.sleep(0.5)
                for index, process in list(running.items()):
                    if process.is_alive():
                        continue
                    del running[index]
                    died = process.exitcode not in (0, REPLACE)
                    if process.exitcode == REPLACE or (died and deaths < 5 * len(names)):
                        deaths, replaced = deaths + died, replaced + 1
                        running[index] = _start(
                            context, search, index + 100 * replaced, names[index]
                        )
                    elif process.exitcode != 0:
                        lost = process.exitcode
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.join()
    if lost:
        raise HarnessError(
            f"{search.path}: the search's workers died {deaths} times and more (last exit code "
            f"{lost}); out of memory? "
            "The same command continues"
        )


def _start(context: Any, search: Search, offset: int, device: str) -> Any:
    process = context.Process(target=_worker, args=(search, offset, device))
    process.start()
    return process


def _worker(search: Search, offset: int, device: str) -> None:
    with terminable():
        done = work(search, offset, device, replaceable=True)
    if not done:
        raise SystemExit(REPLACE)


# -- what came of it -------------------------------------------------------------------------------
def winners(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Label → best trial (one metric), or up to three trials of the Pareto front: the best by each
    metric in turn.
    """
    done = (
        [t for t in study.best_trials if t.values and all(math.isfinite(v) for v in t.values)]
        if any_complete(study)
        else []
    )
    if not done:
        raise HarnessError(
            f"search {study.study_name}: no trial ended with a finite value; look at the reasons "
            "in trials.csv"
        )
    if len(study.directions) == 1:
        return {"best": done[0]}
    chosen: dict[int, FrozenTrial] = {}
    for index, direction in enumerate(study.directions):
        sign = -1 if direction == optuna.study.StudyDirection.MAXIMIZE else 1
        first = min(done, key=lambda t: (sign * t.values[index], t.number))
        chosen.setdefault(first.number, first)
    return {f"Pareto {index}": trial for index, trial in enumerate(chosen.values(), 1)}


def any_complete(study: optuna.Study) -> bool:
    """Whether a trial has ended with a value."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def finalists(search: Search, study: optuna.Study) -> Study:
    """The default and the winners on fresh seeds, as a study like any other."""
    spec = search.spec
    arms: dict[str, dict[str, Any]] = {"default": {}} | {
        label: dict(trial.params) for label, trial in winners(study).items()
    }
    return compose(
        search.path,
        spec.name,
        spec.recipe,
        {**spec.set, **spec.finalists},
        arms,
        spec.fresh_seeds,
        spec.question,
        "default",
    )


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
                items = measured(store, run.iterations[-1], metric)
                values[place][run.cell.seed] = sum(items) / len(items)
    return found
