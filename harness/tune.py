"""Optuna searches over plans. A trial is a plan in the same store as any ablation, so trials share work with both.

Each seed of a trial is a step: its items are reported one by one, so that the Wilcoxon pruner compares a trial with the best one on
the same seeds and items. The winner is then run again on seeds no trial saw: the search's own estimate is optimistic.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState

from harness.commands import fingerprints, open_store
from harness.execute import Inline, execute
from harness.garbage import remember
from harness.plan import build_plan
from harness.records import HarnessError, canonical_json
from harness.settings import Recipe
from harness.store import Store
from harness.study import Study, compose
from harness.tune_file import Range, TuneFile, load_tune
from harness.worker import redact

HEARTBEAT_S, GRACE_S, RETRIES = 5, 20, 2
ITEMS_PER_SEED = 1_000_000
"""Steps reserved for the items of one seed, so that (seed, item) has a step of its own."""


class TrialFailedError(Exception):
    """A trial that gives no finite value: marked failed with this reason, never best."""


@dataclass(frozen=True)
class Search:
    """Where one search lives: its file, the store, and the address of Optuna's storage."""

    path: Path
    store: Path
    storage: str

    @property
    def spec(self) -> TuneFile:
        return load_tune(self.path)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """SQLite or any SQLAlchemy address, with heartbeats: a worker that dies has its trial retried."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(
        url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S, heartbeat_stale_trial_callback=retry
    )


def open_study(search: Search) -> optuna.Study:
    """Create or continue the search. Refuses, showing the difference, when what it asks has changed since it began."""
    spec = search.spec
    asked = json.loads(canonical_json(spec.model_dump(include={"recipe", "set", "space", "metrics", "seeds"})))
    (search.store / "locks").mkdir(parents=True, exist_ok=True)
    with _turn(Store(search.store), spec.name):
        return _create(search, spec, asked)


def _create(search: Search, spec: TuneFile, asked: dict[str, Any]) -> optuna.Study:
    study = optuna.create_study(
        storage=open_storage(search.storage),
        study_name=spec.name,
        load_if_exists=True,
        directions=[metric.direction for metric in spec.metrics],
        sampler=optuna.samplers.TPESampler(
            seed=None if threading.current_thread() is not threading.main_thread() else spec.sampler_seed, constant_liar=True
        ),
        pruner=make_pruner(spec),
    )
    before = study.user_attrs.get("asked")
    if before is None:
        enqueue_default(study, spec, search)
        study.set_user_attr("asked", asked)
    elif before != asked:
        changes = "; ".join(f"{key}: was {before.get(key)}, now {asked.get(key)}" for key in asked if before.get(key) != asked.get(key))
        raise HarnessError(
            f"{search.path}: the search {spec.name!r} began with other settings ({changes}). Change them back, or give it another name"
        )
    return study


def make_pruner(spec: TuneFile) -> optuna.pruners.BasePruner:
    """The pruner by name; searches with several metrics cannot prune."""
    if len(spec.metrics) > 1 or spec.pruner == "none":
        return optuna.pruners.NopPruner()
    if spec.pruner == "wilcoxon":
        return optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    return optuna.pruners.MedianPruner(n_startup_trials=4) if spec.pruner == "median" else optuna.pruners.SuccessiveHalvingPruner()


def enqueue_default(study: optuna.Study, spec: TuneFile, search: Search) -> None:
    """The recipe's own values go first, where they lie in the searched range."""
    corner = {key: (span.choice or span.log_uniform or span.uniform)[0] for key, span in spec.space.items()}
    cells = compose(search.path, spec.name, spec.recipe, spec.set, {"default": {}, "space": corner}, spec.seeds[:1]).cells
    recipe = cells[0].recipe  # composing the corner as well checks the names of the searched keys
    inside = {}
    for key, span in spec.space.items():
        value = value_at(recipe, key)
        bounds = span.log_uniform or span.uniform
        if value in span.choice or (bounds and isinstance(value, (int, float)) and bounds[0] <= value <= bounds[1]):
            inside[key] = value
    if inside:
        study.enqueue_trial(inside)


def value_at(recipe: Recipe, dotted: str) -> Any:
    """A recipe's value by dotted key."""
    value: Any = recipe
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    return value


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


def work(search: Search, seed_offset: int = 0) -> None:
    """Run trials until the budget is spent: one worker of the search. Waits for trials that others run: if one dies, it is tried again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store = open_store(search.store)
    spec, study = search.spec, open_study(search)
    study.sampler = optuna.samplers.TPESampler(seed=spec.sampler_seed + seed_offset, constant_liar=True)
    executor = Inline(store)
    started = time.monotonic()
    unborn: dict[int, float] = {}
    while not (spec.hours and time.monotonic() - started > spec.hours * 3600):
        with ExitStack() as turn:  # one worker at a time counts trials and starts one, so that none is started beyond the budget
            turn.enter_context(_turn(store, spec.name))
            finished, running = _counts(study, unborn)
            if finished >= spec.trials:
                return
            if finished + running < spec.trials:
                study.optimize(lambda trial: _begun(trial, search, spec, store, executor, turn.close), n_trials=1, catch=(TrialFailedError,))
                continue
        time.sleep(0.5)


@contextmanager
def _turn(store: Store, name: str) -> Iterator[None]:
    while True:
        with store.lock(f"search-{name}") as mine:
            if mine:
                yield
                return
        time.sleep(0.05)


def _begun(trial: optuna.Trial, search: Search, spec: TuneFile, store: Store, executor: Inline, next_one: Callable[[], None]) -> Any:
    """The first heartbeat and the worker's name, then the turn goes to the next worker."""
    if isinstance(trial.storage, optuna.storages.RDBStorage):
        trial.storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
    next_one()
    return run_trial(trial, search, spec, store, executor)


def _counts(study: optuna.Study, unborn: dict[int, float]) -> tuple[int, int]:
    """(finished, running) trials. Trials of dead workers fail here and are queued again, at most ``RETRIES`` times; they do not count.

    unborn: when trials were first seen that nobody says to work on: their worker died before its first heartbeat.
    """
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "worker" not in trial.user_attrs and time.monotonic() - unborn.setdefault(trial.number, time.monotonic()) > GRACE_S:
            study.tell(trial.number, state=TrialState.FAIL)
            optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, trial)
    trials = study.get_trials(deepcopy=False)
    finished = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) or "reason" in t.user_attrs for t in trials)
    return finished, sum(t.state == TrialState.RUNNING and "reason" not in t.user_attrs for t in trials)


def run_trial(trial: optuna.Trial, search: Search, spec: TuneFile, store: Store, executor: Inline) -> Any:
    """Run a trial's seeds one after another, reporting after each; returns its value, or values.

    Raises TrialPruned, or TrialFailedError with the reason (also stored with the trial).
    """
    point = suggest(trial, spec.space)
    values: list[list[float]] = [[] for _ in spec.metrics]
    try:
        with _time_limit(spec.trial_timeout_s):
            for index, seed in enumerate(spec.seeds):
                items = run_seed(compose(search.path, spec.name, spec.recipe, spec.set, {"trial": point}, [seed]), spec, store, executor)
                for place, found in enumerate(items):
                    values[place].append(sum(found) / len(found))
                trial.set_user_attr(f"seed_{seed}", [v[-1] for v in values])
                if len(spec.metrics) == 1 and _prune(trial, spec, index, items[0], values[0]):
                    raise optuna.TrialPruned
    except (HarnessError, TimeoutError, TrialFailedError) as error:
        reason = redact(str(error)) or type(error).__name__
        trial.set_user_attr("reason", reason)
        raise TrialFailedError(reason) from None
    means = [sum(v) / len(v) for v in values]
    return means[0] if len(means) == 1 else means


def _prune(trial: optuna.Trial, spec: TuneFile, index: int, items: list[float], means: list[float]) -> bool:
    if spec.pruner == "wilcoxon":
        for place, value in enumerate(items):
            trial.report(value, index * ITEMS_PER_SEED + place)
    else:
        trial.report(sum(means) / len(means), index)
    return index + 1 < len(spec.seeds) and trial.should_prune()


def run_seed(study: Study, spec: TuneFile, store: Store, executor: Inline) -> list[list[float]]:
    """Run one cell and read its metrics, items in order. Raises TrialFailedError for failures, missing rows and values that are not finite."""
    plan = build_plan(study, fingerprints(study))
    remember(store, spec.name, plan.nodes)
    summary = execute(plan, store, executor)
    if summary.exit_status:
        reasons = [*summary.failed.values(), *summary.partial.values()] or ["a stage it needs failed"]
        raise TrialFailedError(reasons[0])
    last = plan.runs[0].iterations[-1]
    found = []
    for metric in spec.metrics:
        items: list[float] = []
        for key in dict.fromkeys(last.values()):
            path = store.folder(key) / "scores.parquet"
            rows = pq.read_table(path).to_pylist() if path.is_file() else []
            items += [row["value"] for row in rows if (row["benchmark"], row["metric"]) == (metric.benchmark, metric.metric)]
        if not items or any(value is None or not math.isfinite(value) for value in items):
            raise TrialFailedError(f"{metric.benchmark}/{metric.metric}: {len(items)} rows, some without a finite value")
        found.append(items)
    return found


@contextmanager
def _time_limit(seconds: float) -> Any:
    """Raise TimeoutError in the main thread after ``seconds``; 0: never."""

    def ring(_signum: int, _frame: Any) -> None:
        raise TimeoutError(f"the trial ran longer than {seconds:g} s")

    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_workers(search: Search, workers: int) -> None:
    """Search with several processes on one storage; a worker that dies is replaced while trials are left."""
    open_study(search)
    context = multiprocessing.get_context("spawn")
    running = {index: _start(context, search, index) for index in range(workers)}
    deaths = lost = 0
    while running:
        time.sleep(0.5)
        for index, process in list(running.items()):
            if process.is_alive():
                continue
            del running[index]
            if process.exitcode != 0 and deaths < 5 * workers:
                deaths += 1
                running[index] = _start(context, search, index + 100 * deaths)
            elif process.exitcode != 0:
                lost = process.exitcode
    if lost:
        raise HarnessError(f"{search.path}: the search's workers died {deaths} times and more (last exit code {lost}); out of memory? "
                           "The same command continues")  # fmt: skip


def _start(context: Any, search: Search, index: int) -> Any:
    process = context.Process(target=work, args=(search, index))
    process.start()
    return process


def winners(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Label → best trial (one metric), or the first trials of the Pareto front."""
    done = [t for t in study.best_trials if t.values and all(math.isfinite(v) for v in t.values)]
    if not done:
        raise HarnessError(f"search {study.study_name}: no trial ended with a finite value; look at the reasons in trials.csv")
    if len(study.directions) == 1:
        return {"best": done[0]}
    return {f"Pareto {index}": trial for index, trial in enumerate(sorted(done, key=lambda t: t.values[0], reverse=True)[:3], 1)}


def finalists(search: Search, study: optuna.Study) -> Study:
    """The default and the winners on fresh seeds, as a study like any other."""
    spec = search.spec
    arms: dict[str, dict[str, Any]] = {"default": {}} | {label: dict(trial.params) for label, trial in winners(study).items()}
    return compose(search.path, spec.name, spec.recipe, {**spec.set, **spec.finalists}, arms, spec.fresh_seeds, spec.question, "default")
