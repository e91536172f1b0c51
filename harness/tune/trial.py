"""One trial of a search: a plan cut into steps, a report to the pruner after each, and what its
judging cost.

A step is one seed of the whole run or, with the pruners median and halving on a recipe of several
iterations, one iteration of all seeds. A pruned trial's later steps are never run; what it did run
stays in the store, where other trials find it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
from optuna.trial import TrialState

from harness.engine.execute import Inline, execute
from harness.engine.garbage import remember
from harness.engine.graph import Plan
from harness.engine.launch import plan_study
from harness.engine.store import Store
from harness.engine.worker import redact
from harness.records import HarnessError
from harness.study.sections import RuntimeSettings
from harness.study.study import compose
from harness.tune.search import Metric, Range, Search, TuneFile

ITEMS_PER_SEED = 1_000_000
"""Pruner's steps reserved for the items of one seed, so that (seed, item) has a step of its own."""


class TrialFailedError(Exception):
    """A trial that gives no finite value: marked failed with this reason, never best."""


class TimeUpError(BaseException):
    """The trial's time is over. No Exception, so that no stage takes it for one of its own and goes
    on.
    """


Ending = tuple[TrialState, list[float] | None]


def run_trial(
    trial: optuna.Trial, search: Search, spec: TuneFile, store: Store, executor: Inline
) -> Ending:
    """Run a trial step by step; returns how it ended and its values.

    A failure is told to Optuna as pruned, with its ``reason`` and a violated constraint: such a
    trial is never best, and the sampler learns to keep away. Optuna's own FAIL would be left out by
    samplers, and a search would go on where training diverges.
    """
    try:
        return _run_steps(trial, search, spec, store, executor)
    except optuna.exceptions.UpdateFinishedTrialError:
        return TrialState.FAIL, None  # taken for dead and given to another worker meanwhile
    except optuna.exceptions.StorageInternalError:
        raise
    except TimeUpError as error:
        executor.close()  # the stage that was interrupted
        reason = str(error)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr("timed_out", True)
    except (HarnessError, TrialFailedError) as error:
        reason = redact(str(error))
    except Exception as error:  # noqa: BLE001 - whatever a point of the space brings about is that trial's failure, not the search's
        reason = redact(f"{type(error).__name__}: {error}")
    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("reason", reason)
        trial.set_constraint("gives a value", 1.0)
    return TrialState.PRUNED, None


def _run_steps(
    trial: optuna.Trial, search: Search, spec: TuneFile, store: Store, executor: Inline
) -> Ending:
    point = suggest(trial, spec.space)
    deadline = time.monotonic() + spec.trial_timeout_s if spec.trial_timeout_s else math.inf
    study = compose(search.path, spec.name, spec.recipe, spec.set, {"trial": point}, spec.seeds)
    plan = plan_study(study)
    latest: dict[int, list[float]] = {}
    steps = steps_of(spec, len(plan.runs[0].iterations) - 1)
    for number, (iteration, seeds) in enumerate(steps, 1):
        part = portion(plan, iteration, seeds)
        _note(trial, part, spec, store)
        with time_limit(deadline, spec.trial_timeout_s):
            summary = execute(part, store, executor)
        if summary.exit_status:
            reasons = [*summary.failed.values(), *summary.partial.values()] or [
                "a stage it needs failed"
            ]
            raise TrialFailedError(reasons[0])
        for run in part.runs:
            items = [measured(store, run.iterations[-1], metric) for metric in spec.metrics]
            latest[run.cell.seed] = [sum(found) / len(found) for found in items]
            trial.set_user_attr(f"seed_{run.cell.seed}", latest[run.cell.seed])
        if len(spec.metrics) == 1 and _prune(trial, spec, number, len(steps), items[0], latest):
            return TrialState.PRUNED, None
    return TrialState.COMPLETE, [
        sum(values) / len(values) for values in zip(*latest.values(), strict=True)
    ]


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


def steps_of(spec: TuneFile, iterations: int) -> list[tuple[int, list[int]]]:
    """(up to which iteration, which seeds) of every step."""
    if spec.pruner in ("median", "halving") and iterations > 1 and len(spec.metrics) == 1:
        return [(iteration, list(spec.seeds)) for iteration in range(1, iterations + 1)]
    return [(iterations, [seed]) for seed in spec.seeds]


def portion(plan: Plan, iteration: int, seeds: Sequence[int]) -> Plan:
    """The plan's stages up to an iteration, of some seeds: keys are those of the whole plan, so
    that going on re-runs nothing.
    """
    runs = tuple(
        dataclasses.replace(
            run,
            iterations=run.iterations[: iteration + 1],
            coefficients=run.coefficients[: iteration + 1],
        )
        for run in plan.runs
        if run.cell.seed in seeds
    )
    wanted: set[str] = set()
    frontier = [key for run in runs for stages in run.iterations for key in stages.values()]
    while frontier:
        key = frontier.pop()
        if key not in wanted:
            wanted.add(key)
            frontier += plan.nodes[key].inputs.values()
    return dataclasses.replace(
        plan, nodes={key: node for key, node in plan.nodes.items() if key in wanted}, runs=runs
    )


def measured(store: Store, stages: Mapping[str, str], metric: Metric) -> list[float]:
    """A checkpoint's values of a metric, items in order. Raises TrialFailedError without rows, or
    with one that has no finite value.
    """
    values: list[float | None] = []
    for key in dict.fromkeys(stages.values()):
        path = store.folder(key) / "scores.parquet"
        rows = pq.read_table(path).to_pylist() if path.is_file() else []
        values += [
            row["value"]
            for row in rows
            if (row["benchmark"], row["metric"]) == (metric.benchmark, metric.metric)
        ]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not values:
        raise TrialFailedError(
            f"{metric.benchmark}/{metric.metric}: no such rows among the scores; is the benchmark "
            "in evaluation.benchmarks?"
        )
    if len(finite) < len(values):
        raise TrialFailedError(
            f"{metric.benchmark}/{metric.metric}: {len(values) - len(finite)} of {len(values)} "
            "rows without a finite value"
        )
    return finite


def _prune(
    trial: optuna.Trial,
    spec: TuneFile,
    number: int,
    steps: int,
    items: list[float],
    latest: Mapping[int, list[float]],
) -> bool:
    """Report step ``number`` (from 1) and ask the pruner, except after the last."""
    if spec.pruner == "wilcoxon":
        for place, value in enumerate(items):
            trial.report(value, (number - 1) * ITEMS_PER_SEED + place)
    else:
        trial.report(sum(values[0] for values in latest.values()) / len(latest), number)
    return number < steps and trial.should_prune()


@contextmanager
def time_limit(deadline: float, seconds: float) -> Iterator[None]:
    """Raise TimeUpError in the main thread when ``time.monotonic()`` passes ``deadline``, and again
    every second until it is heard.
    """

    armed = True

    def ring(_signum: int, _frame: Any) -> None:
        if armed:
            raise TimeUpError(f"the trial ran longer than {seconds:g} s")

    if deadline == math.inf:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise HarnessError(
            "trial_timeout_s works in the main thread of a process only; run the search with "
            "`selm tune`"
        )
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 1e-6), 1.0)
    try:
        try:
            yield
        finally:
            armed = False
    finally:  # also when it rings between the two
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- what judging costs ----------------------------------------------------------------------------
def _note(trial: optuna.Trial, part: Plan, spec: TuneFile, store: Store) -> None:
    """Before a step: its stages (for ``selm gc``), and those that will ask a judge. What another
    study has paid already is not among them.
    """
    remember(store, spec.name, part.nodes)
    asking = {
        key
        for key, node in part.nodes.items()
        if getattr(node.settings, "judge", None) and not store.has(key)
    }
    if asking:
        trial.set_user_attr("judging", sorted(asking.union(trial.user_attrs.get("judging", ()))))


def judge_price(study: optuna.Study, store: Store, runtime: RuntimeSettings) -> float:
    """USD that judging for the search's trials cost so far, failed, killed and unfinished ones
    included.
    """
    keys = {
        key
        for trial in study.get_trials(deepcopy=False)
        for key in trial.user_attrs.get("judging", ())
    }
    return sum(
        store.record(key).costs.get("judge_usd", 0.0)
        if store.has(key)
        else _journalled(store, key, runtime)
        for key in sorted(keys)
    )


def _journalled(store: Store, key: str, runtime: RuntimeSettings) -> float:
    folders: Iterable[Path] = [store.partial_folder(key), *(store.root / "work").glob(f"{key}.*")]
    dollars = 0.0
    for path in (path for folder in folders for path in folder.glob("*.journal.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a kill: that reply is asked again
            if row.get("attempts"):  # else it came from elsewhere and cost nothing
                dollars += row["prompt_tokens"] * runtime.price_prompt_usd_per_million / 1e6
                dollars += row["completion_tokens"] * runtime.price_completion_usd_per_million / 1e6
    return dollars
