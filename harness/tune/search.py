"""A search: its YAML, its Optuna study, and what was asked of it.

What decides a trial's values is kept with the study when it begins: settings, space, metrics,
seeds, pruner. A search that asks something else is refused, showing the difference; stages are in
the store, so that the same trials under another name cost nothing again. Budgets are no part of it:
they may grow.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import sqlalchemy
from pydantic import Field, model_validator

from harness.engine.launch import check_measured
from harness.engine.store import Store
from harness.records import HarnessError, canonical_json, content_hash, first_line
from harness.study.names import FolderName
from harness.study.sections import Section
from harness.study.settings import Recipe
from harness.study.study import Study, compose, leaves, validate
from harness.study.yaml import load_mapping


# -- the file --------------------------------------------------------------------------------------
class Range(Section):
    """One searched key: exactly one of ``log_uniform`` or ``uniform`` (two numbers, low to high) or
    ``choice`` (a list).
    """

    log_uniform: list[float] = []
    """[low, high], even on a log scale."""
    uniform: list[float] = []
    """[low, high]."""
    choice: list[Any] = []
    """The values themselves."""

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        given = [values for values in (self.log_uniform, self.uniform, self.choice) if values]
        if len(given) != 1:
            raise ValueError("give exactly one of log_uniform, uniform, choice")
        bounds = self.log_uniform or self.uniform
        if bounds and (len(bounds) != 2 or bounds[0] >= bounds[1]):
            raise ValueError(f"a range is [low, high] with low below high, not {bounds}")
        if self.log_uniform and bounds[0] <= 0:
            raise ValueError("a log-uniform range starts above 0")
        return self

    def holds(self, value: Any) -> bool:
        """Whether a value lies inside, bounds included. A truth value is no number."""
        truth = isinstance(value, bool)
        if self.choice:
            return any(value == one and isinstance(one, bool) == truth for one in self.choice)
        low, high = self.log_uniform or self.uniform
        return isinstance(value, (int, float)) and not truth and low <= value <= high


class Metric(Section):
    """A stored metric, averaged over items, at the last iteration."""

    benchmark: str = "heldout"
    """Its name, or a task's of the academic ones."""
    metric: str = "reward"
    """As in scores.parquet."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Which of two values is better."""


class TuneFile(Section):
    """The YAML of a search, key by key."""

    name: FolderName
    """Names the folder below ``results/`` and the Optuna study."""
    question: str = ""
    """Stands at the head of the report."""
    recipe: str
    """A file, or the name of one in ``recipes/`` beside the search or of the harness."""
    set: dict[str, Any] = {}
    """Recipe keys changed for the search's trials and the finalists."""
    finalists: dict[str, Any] = {}
    """Recipe keys changed for the finalists only, for example the full list of benchmarks."""
    space: dict[str, Range]
    """Recipe key → what is searched: exactly one of log_uniform, uniform, choice."""
    metrics: Annotated[list[Metric], Field(min_length=1, max_length=3)] = [Metric()]
    """One: its best trial wins. Several: the Pareto front."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """A trial runs these one after another; a pruner may stop it between two."""
    fresh_seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Seeds no trial saw: the best settings and the default are compared on them."""
    trials: Annotated[int, Field(gt=0)] = 20
    """Finished trials in all, pruned and failed ones included."""
    hours: Annotated[float, Field(ge=0)] = 0.0
    """Start no trial once trials ran for this long (wall-clock, all invocations together); 0: no
    limit.
    """
    max_cost_usd: Annotated[float, Field(ge=0)] = 0.0
    """Start no trial once judging for the trials cost this much (the finalists come on top); 0: no
    limit.
    """
    pruner: Literal["wilcoxon", "none"] = "wilcoxon"
    """wilcoxon pairs a trial with the best one on the same seeds and items, after each seed; with
    several metrics nothing is pruned.
    """
    sampler_seed: Annotated[int, Field(ge=0)] = 0
    """Of Optuna's sampler; with one worker the trials follow from it."""

    @property
    def prunes(self) -> bool:
        """Whether trials are compared while they run."""
        return self.pruner != "none" and len(self.metrics) == 1

    @model_validator(mode="after")
    def _fresh(self) -> TuneFile:
        seen = sorted(set(self.seeds) & set(self.fresh_seeds))
        if seen:
            raise ValueError(f"fresh_seeds must be seeds that no trial saw; both lists hold {seen}")
        if not self.space:
            raise ValueError("space is empty; give at least one key to search")
        return self


def load_tune(path: Path) -> TuneFile:
    """Read and check a search. Raises HarnessError with file, line and key."""
    return validate(
        TuneFile, *load_mapping(path, "a search is a mapping with name, recipe, space and seeds")
    )


@dataclass(frozen=True)
class Search:
    """One search: its file, the folder of the store, the address of Optuna's storage."""

    path: Path
    store: Path
    storage: str

    @cached_property
    def spec(self) -> TuneFile:
        return load_tune(self.path)

    @cached_property
    def recipe(self) -> Recipe:
        """As every trial begins with it. One corner of the space and the finalists are composed
        too, as a check.
        """
        spec = self.spec
        corner = {
            key: (span.choice or span.log_uniform or span.uniform)[0]
            for key, span in spec.space.items()
        }
        self.study({"default": {}}, spec.fresh_seeds, spec.finalists)
        return self.study({"default": {}, "corner": corner}, spec.seeds).base

    @property
    def default(self) -> dict[str, Any]:
        """The recipe's own values of the searched keys."""
        found = {}
        for key in self.spec.space:
            value: Any = self.recipe
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
            found[key] = value
        return found

    def study(
        self,
        arms: Mapping[str, Mapping[str, Any]],
        seeds: Sequence[int],
        more: Mapping[str, Any] | None = None,
        baseline: str = "",
    ) -> Study:
        """Arms of the search's recipe as a study; more: keys set besides the search's own."""
        spec = self.spec
        changes = {**spec.set, **(more or {})}
        return compose(
            self.path, spec.name, spec.recipe, changes, arms, seeds, spec.question, baseline
        )

    def check(self) -> None:
        """Refuse a metric that nothing gives, and a price limit without prices."""
        spec, recipe = self.spec, self.recipe
        for metric in spec.metrics:
            scored = recipe.evaluation.benchmarks
            place = f"{self.path}: metrics"
            check_measured(place, metric.benchmark, metric.metric, recipe, scored)
        free = recipe.judge.kind != "pocket" and not any(recipe.judge.prices(recipe.runtime))
        if spec.max_cost_usd and free:
            raise HarnessError(
                f"{self.path}: max_cost_usd is set but no price is: give "
                "runtime.price_prompt_usd_per_million and "
                "runtime.price_completion_usd_per_million under set"
            )

    def asked(self) -> dict[str, Any]:
        """Everything that decides a trial's value, as plain JSON. Settings at their default are
        left out, so that later ones may be added.
        """
        spec, without = self.spec, {"runtime", "title"}
        told = {
            "settings": self.recipe.model_dump(exclude_defaults=True, exclude=without),
            "space": {
                key: span.model_dump(exclude_defaults=True) for key, span in spec.space.items()
            },
            "metrics": [metric.model_dump() for metric in spec.metrics],
            "seeds": spec.seeds,
            "pruner": spec.pruner,
        }
        plain: dict[str, Any] = json.loads(canonical_json(told))
        return plain


# -- its Optuna study ------------------------------------------------------------------------------
HEARTBEAT_S, GRACE_S = 5, 20
"""A trial whose worker gave no sign of life for the second is taken for lost."""


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """SQLite or any SQLAlchemy address, with heartbeats, so that a worker's death is noticed.
    HarnessError says why it cannot be opened; a password is never shown.
    """
    # Optuna warns that heartbeats are experimental and that ``ask`` sends none; ours are sent by
    # hand (`harness.tune.workers`).
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage")
    # SQLAlchemy reads a bare postgresql:// as psycopg 3's; the extra [postgresql] has psycopg2.
    url = re.sub(r"^postgresql://", "postgresql+psycopg2://", url)
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    address = None
    try:
        address = sqlalchemy.make_url(url)
        if address.database in (None, "", ":memory:"):
            raise ValueError("it names no database that several workers see")
        return optuna.storages.RDBStorage(
            url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S
        )
    except (
        *(ImportError, ValueError, RuntimeError),
        *(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError),
    ) as error:
        said = "it is no address"  # what cannot be parsed of it may be of the password
        if address is not None:
            cause = getattr(error, "orig", None) or error.__cause__ or error
            said = first_line(cause).replace(str(address.password or "\n"), "[redacted]")
        shown = re.sub(r"//.*@", "//[redacted]@", url.partition("?")[0])
        raise HarnessError(
            f"--storage {shown}: cannot be used as Optuna's storage ({said}); wants "
            "sqlite:////FOLDER/FILE.db or postgresql://USER@HOST/NAME (extra [postgresql])"
        ) from None


@contextmanager
def turn(search: Search) -> Iterator[None]:
    """One process at a time: counts trials, starts one, or opens the search. Waits for its turn."""
    store = Store(search.store)
    (store.root / "locks").mkdir(parents=True, exist_ok=True)
    while True:
        with store.lock(f"search-{search.spec.name}") as mine:
            if mine:
                yield
                return
        time.sleep(0.05)


def open_study(search: Search, seed_offset: int = 0) -> optuna.Study:
    """Create or continue the search; refused, with the difference, where it asks otherwise."""
    spec, default, asked = search.spec, search.default, search.asked()
    search.check()
    with turn(search):
        study = optuna.create_study(
            storage=open_storage(search.storage),
            study_name=spec.name,
            load_if_exists=True,
            directions=[metric.direction for metric in spec.metrics],
        )
        # The trials so far are in the seed, so that a continued search does not draw its first
        # points again.
        begun = len(study.get_trials(deepcopy=False))
        seed = int(content_hash("sampler", spec.sampler_seed, seed_offset, begun, length=8), 16)
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        study.pruner = optuna.pruners.NopPruner()
        if spec.prunes:
            study.pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
        before = study.user_attrs.get("asked")
        if before is None:  # new, or killed while it was made: every step here may be done twice
            inside = {key: one for key, one in default.items() if spec.space[key].holds(one)}
            if inside:  # the recipe's own values go first
                study.enqueue_trial(inside, skip_if_exists=True)
            study.set_user_attr("asked", asked)
            return study
    changed = "; ".join(differences(before, asked))
    if changed:
        raise HarnessError(
            f"{search.path}: the search {spec.name!r} began with other settings ({changed}). "
            "Change them back, or give it another name: stages that both need are not run again"
        )
    return study


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """``key: was …, now …``; of searched keys the recipe's own value does not count."""
    searched = {f"settings.{key}" for asked in (before, now) for key in asked.get("space", {})}
    old, new = ({".".join(at): one for at, one in leaves(asked)} for asked in (before, now))
    for key in sorted(old.keys() | new.keys()):
        inside = any(f"{key}.".startswith(f"{name}.") for name in searched)
        if not inside and old.get(key) != new.get(key):
            missing = "the default" if key.startswith("settings.") else "absent"
            was, is_now = old.get(key, missing), new.get(key, missing)
            yield f"{key.removeprefix('settings.')}: was {was}, now {is_now}"
