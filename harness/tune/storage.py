"""Begin, continue or fork a search: its Optuna study, and what was asked of it.

What decides a trial's values is kept with the study when it begins: settings, space, metrics,
seeds, pruner. A search that asks something else is refused, showing the difference, or forked under
another name. Budgets are no part of it: they may grow.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from harness.engine.store import Store
from harness.records import HarnessError, canonical_json, content_hash
from harness.study.settings import Recipe
from harness.study.study import Study, compose
from harness.tune.file import Range, TuneFile, load_tune

HEARTBEAT_S, GRACE_S = 5, 20


@dataclass(frozen=True)
class Search:
    """Where one search lives: its file, the store, the address of Optuna's storage, and of the one
    that ``fork_of`` lives in.
    """

    path: Path
    store: Path
    storage: str
    origin: str = ""

    @property
    def spec(self) -> TuneFile:
        return load_tune(self.path)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """SQLite or any SQLAlchemy address, with heartbeats, so that a worker's death is noticed."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings(
        "ignore", message="Heartbeat of storage"
    )  # told to those who ask for trials: ours do send one
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(
        url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S
    )


@contextmanager
def turn(store: Store, name: str) -> Iterator[None]:
    """One process at a time: counts trials, starts one, or opens the search. Waits for its turn."""
    while True:
        with store.lock(f"search-{name}") as mine:
            if mine:
                yield
                return
        time.sleep(0.05)


def open_study(search: Search, seed_offset: int = 0) -> optuna.Study:
    """Create or continue the search. Refuses, showing the difference, when what it asks has changed
    since it began.
    """
    spec = search.spec
    checked = base_study(search, spec)
    asked = what_is_asked(spec, checked.base)
    _check(search, spec, checked.base)
    (search.store / "locks").mkdir(parents=True, exist_ok=True)
    with turn(Store(search.store), spec.name):
        study = optuna.create_study(
            storage=open_storage(search.storage),
            study_name=spec.name,
            load_if_exists=True,
            directions=[metric.direction for metric in spec.metrics],
            pruner=make_pruner(spec),
        )
        begun = len(
            study.get_trials(deepcopy=False)
        )  # in the seed, so that a continued search does not draw its first points again
        seed = int(content_hash("sampler", spec.sampler_seed, seed_offset, begun, length=8), 16)
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        before = study.user_attrs.get("asked")
        if before is None:  # new, or killed while it was made: every step here may be done twice
            if spec.fork_of:
                take_over(study, search, spec, asked)
            enqueue_default(study, spec, checked.base)
            study.set_user_attr("asked", asked)
            return study
    changed = differences(before, asked)
    if changed:
        raise HarnessError(
            f"{search.path}: the search {spec.name!r} began with other settings "
            f"({'; '.join(changed.values())}). Change them back, or give it "
            f"another name; with `fork_of: {spec.name}` that one takes over the finished trials "
            "inside its space"
        )
    return study


def base_study(search: Search, spec: TuneFile) -> Study:
    """The recipe as every trial begins with it, and one corner of the space: composing that checks
    the searched keys.
    """
    corner = {
        key: (span.choice or span.log_uniform or span.uniform)[0]
        for key, span in spec.space.items()
    }
    return compose(
        search.path,
        spec.name,
        spec.recipe,
        spec.set,
        {"default": {}, "space": corner},
        spec.seeds[:1],
    )


def _check(search: Search, spec: TuneFile, recipe: Recipe) -> None:
    prices = (
        recipe.runtime.price_prompt_usd_per_million,
        recipe.runtime.price_completion_usd_per_million,
    )
    if spec.max_cost_usd and recipe.judge.kind != "pocket" and not any(prices):
        raise HarnessError(
            f"{search.path}: max_cost_usd is set but no price is: give "
            "runtime.price_prompt_usd_per_million and "
            "runtime.price_completion_usd_per_million under set"
        )
    if (
        spec.pruner in ("median", "halving")
        and recipe.loop.iterations > 1
        and recipe.evaluation.iterations == "last"
    ):
        raise HarnessError(
            f"{search.path}: pruner {spec.pruner} looks at every iteration, but "
            "evaluation.iterations is 'last'; set it to all or take another pruner"
        )


def make_pruner(spec: TuneFile) -> optuna.pruners.BasePruner:
    """The pruner by name; searches with several metrics cannot prune. halving keeps the better half
    after 1, 2, 4, … steps.
    """
    if len(spec.metrics) > 1 or spec.pruner == "none":
        return optuna.pruners.NopPruner()
    if spec.pruner == "wilcoxon":
        return optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    if spec.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)


def enqueue_default(study: optuna.Study, spec: TuneFile, recipe: Recipe) -> None:
    """The recipe's own values go first, where they lie in the searched range."""
    inside = {
        key: value_at(recipe, key)
        for key, span in spec.space.items()
        if span.holds(value_at(recipe, key))
    }
    if inside:
        study.enqueue_trial(inside, skip_if_exists=True)


def value_at(recipe: Recipe, dotted: str) -> Any:
    """A recipe's value by dotted key."""
    value: Any = recipe
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    return value


# -- what was asked --------------------------------------------------------------------------------
def what_is_asked(spec: TuneFile, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides a trial's value, as plain JSON. Settings at their default are left
    out, so that later ones may be added.
    """
    settings = recipe.model_dump(exclude_defaults=True, exclude={"runtime", "title"})
    space = {key: span.model_dump(exclude_defaults=True) for key, span in spec.space.items()}
    asked = {
        "settings": settings,
        "space": space,
        "metrics": spec.metrics,
        "seeds": spec.seeds,
        "pruner": spec.pruner,
    }
    plain: dict[str, Any] = json.loads(
        canonical_json({**asked, "metrics": [metric.model_dump() for metric in spec.metrics]})
    )
    return plain


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Key → "key: was …, now …". What a searched key is set to in the recipe does not count: trials
    replace it.
    """
    searched = {f"settings.{key}" for asked in (before, now) for key in asked.get("space", {})}
    old, new = _flat(before), _flat(now)
    found = {}
    for key in sorted(old.keys() | new.keys()):
        inside = any(key == name or key.startswith(f"{name}.") for name in searched)
        if not inside and old.get(key) != new.get(key):
            missing = "the default" if key.startswith("settings.") else "absent"
            found[key] = (
                f"{key.removeprefix('settings.')}: was {old.get(key, missing)}, now "
                f"{new.get(key, missing)}"
            )
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{prefix}{key}": value}
        )
    return leaves


# -- forks -----------------------------------------------------------------------------------------
def take_over(
    study: optuna.Study, search: Search, spec: TuneFile, asked: Mapping[str, Any]
) -> None:
    """Copy the finished trials of ``fork_of`` that lie inside the new space; the study's attribute
    ``fork`` says how many and why not the others.

    A key that was not searched before stands at its old recipe's value; one that is not searched
    any more must have had today's value. Raises HarnessError when there is no such search, or more
    than space, pruner and searched keys differ: then the values do not compare.
    """
    old = _origin(search, spec)
    before = old.user_attrs.get("asked", {})
    other = {
        key: text
        for key, text in differences(before, asked).items()
        if key != "pruner" and not key.startswith("space.")
    }
    if other:
        raise HarnessError(
            f"{search.path}: a fork may change the space, the pruner and the budget; the values "
            f"of {spec.fork_of!r} do not compare with this "
            f"search's ({'; '.join(other.values())}). Change these back, or leave fork_of out"
        )
    was, now = Recipe.model_validate(before["settings"]), Recipe.model_validate(asked["settings"])
    same_steps = before.get("pruner") == asked["pruner"]
    there = {trial.user_attrs.get("taken_over") for trial in study.get_trials(deepcopy=False)}
    taken, left = 0, Counter[str]()
    for trial in old.get_trials(deepcopy=False):
        point, why = carried(trial, spec.space, was, now)
        if why:
            left[why] += 1
            continue
        taken += 1
        if trial.number not in there:
            study.add_trial(_copied(trial, point, spec.space, same_steps))
    study.set_user_attr(
        "fork", {"of": spec.fork_of, "taken": taken, "left": dict(sorted(left.items()))}
    )


def _origin(search: Search, spec: TuneFile) -> optuna.Study:
    address = search.origin or search.storage
    file = Path(address.removeprefix("sqlite:///"))
    try:
        if address.startswith("sqlite:///") and not file.is_file():  # opening would create it
            raise KeyError
        return optuna.load_study(study_name=spec.fork_of, storage=open_storage(address))
    except KeyError:
        where = file if address.startswith("sqlite:///") else "the storage"
        raise HarnessError(
            f"{search.path}: fork_of: no search {spec.fork_of!r} in {where}; run it first, or "
            "mend the name"
        ) from None


def carried(
    trial: FrozenTrial, space: Mapping[str, Range], was: Recipe, now: Recipe
) -> tuple[dict[str, Any], str]:
    """A trial's point in the new space, or why it is not taken over."""
    if trial.state == TrialState.FAIL or "reason" in trial.user_attrs:
        return {}, "failed" if "reason" in trial.user_attrs else "lost with its worker"
    if not trial.state.is_finished():
        return {}, "not finished"
    for key, value in trial.params.items():
        if key not in space and value != value_at(now, key):
            return (
                {},
                f"{key} is no longer searched and had another value than {value_at(now, key)}",
            )
    point = {key: trial.params[key] if key in trial.params else value_at(was, key) for key in space}
    outside = [key for key, span in space.items() if not span.holds(point[key])]
    return (point, "") if not outside else ({}, f"outside the range of {', '.join(outside)}")


def _copied(
    trial: FrozenTrial, point: Mapping[str, Any], space: Mapping[str, Range], same_steps: bool
) -> FrozenTrial:
    rungs = {
        key: value for key, value in trial.system_attrs.items() if key.startswith("completed_rung_")
    }
    return optuna.create_trial(
        state=trial.state,
        values=trial.values,
        params={key: value if space[key].choice else float(value) for key, value in point.items()},
        distributions={key: distribution(span) for key, span in space.items()},
        user_attrs={"taken_over": trial.number}
        | {key: value for key, value in trial.user_attrs.items() if key.startswith("seed_")},
        system_attrs=rungs if same_steps else {},
        intermediate_values=trial.intermediate_values if same_steps else {},
    )


def distribution(span: Range) -> BaseDistribution:
    """Optuna's form of a range."""
    if span.choice:
        return CategoricalDistribution(span.choice)
    low, high = span.log_uniform or span.uniform
    return FloatDistribution(low, high, log=bool(span.log_uniform))
