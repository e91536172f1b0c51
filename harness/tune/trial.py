"""One trial of a search: a plan cut into steps, a report to the pruner after each, and what its
judging cost.

A step is one seed of the whole run or, with the pruners median and halving on a recipe of several
iterations, one iteration of all seeds. A pruned trial's later steps are never run; what it did run
stays in the store, where other trials find it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import optuna
import pyarrow.parquet as pq
from optuna.trial import TrialState

from harness.engine.archive import remember
from harness.engine.execute import Inline, execute
from harness.engine.graph import Plan
from harness.engine.launch import plan_study
from harness.engine.store import Store
from harness.records import HarnessError, redact
from harness.study.sections import RuntimeSettings
from harness.tune.search import Metric, Range, Search, TuneFile

ITEMS_PER_SEED = 1_000_000
"""Pruner's steps reserved for the items of one seed, so that (seed, item) has a step of its own."""
Ending = tuple[TrialState, list[float] | None]


class TrialFailedError(Exception):
    """A trial that gives no finite value: marked failed with this reason, never best."""


def run_trial(trial: optuna.Trial, search: Search, store: Store, executor: Inline) -> Ending:
    """Run a trial step by step; returns how it ended and its values.

    A failure is told to Optuna as pruned, with its ``reason`` and a violated constraint: such a
    trial is never best, and the sampler learns to keep away. Optuna's own FAIL would be left out by
    samplers, and a search would go on where training diverges.
    """
    try:
        return _run_steps(trial, search, store, executor)
    except optuna.exceptions.UpdateFinishedTrialError:
        return TrialState.FAIL, None  # taken for dead and given to another worker meanwhile
    except optuna.exceptions.StorageInternalError:
        raise
    except (HarnessError, TrialFailedError) as error:
        reason = redact(str(error))
    except Exception as error:  # noqa: BLE001 - a point of the space brought it about: the trial's failure, not the search's
        reason = redact(f"{type(error).__name__}: {error}")
    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("reason", reason)
        trial.set_constraint("gives a value", 1.0)
    return TrialState.PRUNED, None


def _run_steps(trial: optuna.Trial, search: Search, store: Store, executor: Inline) -> Ending:
    spec = search.spec
    plan = plan_study(search.study({"trial": suggest(trial, spec.space)}, spec.seeds))
    latest: dict[int, list[float]] = {}
    steps = steps_of(spec, plan.study.base.loop.iterations)
    for number, (iteration, seeds) in enumerate(steps, 1):
        part = portion(plan, iteration, seeds)
        remember(store, spec.name, part.nodes)
        _note_judging(trial, part, store)
        summary = execute(part, store, executor)
        if summary.exit_status:
            reasons = [*summary.failed.values(), *summary.partial.values()]
            raise TrialFailedError(reasons[0] if reasons else "a stage it needs failed")
        for run in part.runs:
            items = [measured(store, run.last, metric) for metric in spec.metrics]
            latest[run.cell.seed] = [sum(found) / len(found) for found in items]
            trial.set_user_attr(f"seed_{run.cell.seed}", latest[run.cell.seed])
        if len(spec.metrics) == 1:
            _report(trial, spec, number, items[0], latest)
            if number < len(steps) and trial.should_prune():
                return TrialState.PRUNED, None
    columns = zip(*latest.values(), strict=True)
    return TrialState.COMPLETE, [sum(column) / len(column) for column in columns]


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
    """The plan's stages up to an iteration, of some seeds, with the whole plan's keys."""
    runs = tuple(
        replace(run, iterations={i: one for i, one in run.iterations.items() if i <= iteration})
        for run in plan.runs
        if run.cell.seed in seeds
    )
    wanted: set[str] = set()
    stages = [one for run in runs for one in run.iterations.values()]
    frontier = [key for one in stages for key in one.values()]
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
    name = f"{metric.benchmark}/{metric.metric}"
    if not values:
        raise TrialFailedError(
            f"{name}: no such rows among the scores; is the benchmark in evaluation.benchmarks?"
        )
    if len(finite) < len(values):
        missing = len(values) - len(finite)
        raise TrialFailedError(f"{name}: {missing} of {len(values)} rows without a finite value")
    return finite


def _report(
    trial: optuna.Trial,
    spec: TuneFile,
    number: int,
    items: Sequence[float],
    latest: Mapping[int, list[float]],
) -> None:
    """Tell the pruner of step ``number`` (from 1): every item, or the mean over seeds."""
    if spec.pruner == "wilcoxon":
        for place, value in enumerate(items):
            trial.report(value, (number - 1) * ITEMS_PER_SEED + place)
    else:
        trial.report(sum(values[0] for values in latest.values()) / len(latest), number)


# -- what judging costs ----------------------------------------------------------------------------
def _note_judging(trial: optuna.Trial, part: Plan, store: Store) -> None:
    """Before a step: which of its stages will ask a judge, and are not paid already."""
    asking = set(trial.user_attrs.get("judging", ()))
    for key, node in part.nodes.items():
        if getattr(node.settings, "judge", None) and not store.has(key):
            asking.add(key)
    if asking:
        trial.set_user_attr("judging", sorted(asking))


def judge_price(study: optuna.Study, store: Store, runtime: RuntimeSettings) -> float:
    """USD that judging for trials cost so far, failed and unfinished ones included."""
    keys: set[str] = set()
    for trial in study.get_trials(deepcopy=False):
        keys.update(trial.user_attrs.get("judging", ()))
    dollars = 0.0
    for key in sorted(keys):
        if store.has(key):
            dollars += store.record(key).costs.get("judge_usd", 0.0)
        else:
            dollars += _journalled(store, key, runtime)
    return dollars


def _journalled(store: Store, key: str, runtime: RuntimeSettings) -> float:
    """USD of the replies that a stage's unfinished attempts paid for."""
    micro_dollars = 0.0
    for folder in (store.partial_folder(key), *(store.root / "work").glob(f"{key}.*")):
        for path in folder.glob("*.journal.jsonl"):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # torn by a kill: that reply is asked again
                if row.get("attempts"):  # else it came from elsewhere and cost nothing
                    prompt, reply = row["prompt_tokens"], row["completion_tokens"]
                    micro_dollars += prompt * runtime.price_prompt_usd_per_million
                    micro_dollars += reply * runtime.price_completion_usd_per_million
    return micro_dollars / 1e6
