"""The graph of a study as data: stages with their keys, and what each run needs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.engine.stages import STAGES
from harness.rankers.registry import RANKERS
from harness.records import content_hash
from harness.study import tasks
from harness.study.sections import Section, at_iteration
from harness.study.settings import Recipe
from harness.study.study import Cell, Study
from harness.study.tasks import ObjectiveTask, Runtime
from harness.train.objectives import ResolvedObjective, resolve

FINGERPRINT = "_fingerprint"


@dataclass(frozen=True)
class Node:
    """One stage. settings: what the stage is given. defining: what of it enters the key, in which
    files stand as content hashes. runtime: what changes speed, in no key.
    """

    key: str
    stage: str
    version: int
    settings: Section
    inputs: Mapping[str, str]
    defining: Mapping[str, Any] = field(default_factory=dict)
    runtime: Runtime = field(default_factory=Runtime)
    fails: bool = False


@dataclass(frozen=True)
class RunPlan:
    """A cell's stages: for every iteration (0 is the base) a mapping of stage name to key."""

    cell: Cell
    iterations: tuple[Mapping[str, str], ...]
    coefficients: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class JudgedPair:
    """Two checkpoints ``run@iteration`` and the stage that scores b against a."""

    a: str
    b: str
    key: str


@dataclass(frozen=True)
class Plan:
    """Nodes by key in an order in which every input precedes its users, and what each run needs of
    them. pairwise: every ordered pair of the declared checkpoints; pairwise_mt_bench: every
    unordered pair graded on MT-Bench.
    """

    study: Study
    nodes: Mapping[str, Node]
    runs: tuple[RunPlan, ...]
    pairwise: Sequence[JudgedPair] = ()
    pairwise_mt_bench: Sequence[JudgedPair] = ()

    @property
    def uses(self) -> dict[str, int]:
        """In how many runs each stage is needed: more than one is sharing."""
        counts: dict[str, int] = {}
        for run in self.runs:
            for key in {key for stages in run.iterations for key in stages.values()}:
                counts[key] = counts.get(key, 0) + 1
        return counts


def stage_key(
    stage: str, version: int, defining: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """SHA-256 over what the stage's numbers depend on."""
    return content_hash("stage", stage, version, defining, dict(inputs))


def defining_settings(settings: Section, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What of a stage's settings enters its key: every field; a file as the hash of its content
    (``<name>_fingerprint``), so that a path never does; without fields added later that stand at
    their default.
    """
    found: dict[str, Any] = {}
    later = settings.later
    for name, value in vars(settings).items():
        if name in settings.flattened:
            entries = value.items()
            found |= {key: defining_settings(one, fingerprints) for key, one in entries}
        elif isinstance(value, ObjectiveTask):
            found[name] = value.keyed()
        elif isinstance(value, Section):
            found[name] = defining_settings(value, fingerprints)
        elif name.endswith(FINGERPRINT) or (name in later and value == later[name]):
            continue
        elif fingerprints:
            _put(found, name, value, fingerprints)
        else:
            found[name] = value
    return found


def _put(found: dict[str, Any], name: str, value: Any, fingerprints: Mapping[str, str]) -> None:
    if isinstance(value, str) and value in fingerprints:
        found[name + FINGERPRINT] = fingerprints[value]
    elif isinstance(value, Mapping):
        inner: dict[str, Any] = {}
        for key, one in value.items():
            _put(inner, key, one, fingerprints)
        found[name] = inner
    else:
        found[name] = value


def with_fingerprints(settings: Section, fingerprints: Mapping[str, str]) -> Section:
    """The settings with their ``…_fingerprint`` fields filled in."""
    changes: dict[str, Any] = {}
    fields = type(settings).model_fields
    for name in fields:
        value = getattr(settings, name)
        if isinstance(value, Section):
            filled = with_fingerprints(value, fingerprints)
            if filled is not value:
                changes[name] = filled
        elif name + FINGERPRINT in fields and value in fingerprints:
            changes[name + FINGERPRINT] = fingerprints[value]
    return settings.model_copy(update=changes) if changes else settings


def total_iterations(recipe: Recipe) -> int:
    """Training iterations of a run, with the warm-up."""
    return recipe.loop.iterations + (1 if recipe.loop.warmup_dpo else 0)


def resolve_objective(recipe: Recipe, iteration: int) -> ResolvedObjective:
    """The objective of one iteration (from 1); the warm-up is without exploration."""
    total = total_iterations(recipe)
    asked = recipe.objective
    alpha = at_iteration(asked.alpha, iteration, total)
    if recipe.loop.warmup_dpo and iteration == 1:
        alpha = 0.0
    beta = at_iteration(asked.beta, iteration, total)
    return resolve(asked.name, alpha=alpha, beta=beta, placebo=asked.placebo, params=asked.params)


class Builder:
    """Collects nodes; equal settings and inputs give the same node."""

    def __init__(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        self.study = study
        self.fingerprints = fingerprints
        self.nodes: dict[str, Node] = {}
        self._shared: dict[Any, Any] = {}

    def once(self, recipe: Recipe, what: Any, make: Callable[[], Any]) -> Any:
        """Cells of one arm have the same recipe object: what only it decides is computed once.
        Callers do not write into it.
        """
        key = (id(recipe), what)
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    # -- settings that several stages share -------------------------------------
    def objective(self, recipe: Recipe, iteration: int) -> tasks.ObjectiveTask:
        """The objective of one iteration as stages are given it."""

        def make() -> tasks.ObjectiveTask:
            fields = vars(resolve_objective(recipe, iteration))
            return tasks.ObjectiveTask(**fields)

        found: tasks.ObjectiveTask = self.once(recipe, ("objective", iteration), make)
        return found

    def ranker(self, recipe: Recipe) -> tasks.RankerTask:
        """The ranker as stages are given it."""

        def make() -> tasks.RankerTask:
            version = RANKERS[recipe.ranker.kind].version
            return tasks.RankerTask(**vars(recipe.ranker), version=version)

        found: tasks.RankerTask = self.once(recipe, "ranker", make)
        return found

    def generating(self, recipe: Recipe) -> dict[str, Any]:
        """Fields of every stage that draws tokens."""
        model = recipe.model
        return self.computing(recipe) | {
            "generation_batch": model.generation_batch,
            "backend": model.generation_backend,
        }

    def computing(self, recipe: Recipe) -> dict[str, Any]:
        """Fields of every stage that runs a model."""
        model = recipe.model
        return {
            "threads": recipe.training.threads,
            "dtype": model.dtype,
            "attention": model.attention,
        }

    # -- nodes ------------------------------------------------------------------
    def add(
        self,
        stage: str,
        settings: Section,
        inputs: Mapping[str, str],
        recipe: Recipe,
        *,
        fails: bool = False,
    ) -> str:
        """The key of a stage with these settings and inputs; a new node unless it is there."""
        version = STAGES[stage].version
        defining = defining_settings(settings, self.fingerprints)
        key = stage_key(stage, version, defining, inputs)
        if key not in self.nodes or (fails and not self.nodes[key].fails):
            if self.fingerprints:
                settings = with_fingerprints(settings, self.fingerprints)
            runtime = self.once(recipe, "runtime", lambda: tasks.Runtime(**vars(recipe.runtime)))
            self.nodes[key] = Node(
                key, stage, version, settings, dict(inputs), defining, runtime, fails
            )
        return key

    def fails(self, cell: Cell, stage: str, iteration: int) -> bool:
        """Whether the study's fault injection names this stage of this cell."""
        wanted = self.study.fail
        if not wanted:
            return False
        here: dict[str, Any] = {"stage": stage, "seed": cell.seed, "iteration": iteration}
        here |= {f"arm.{name}": value for name, value in cell.arm.items()}
        return all(here.get(name) == value for name, value in wanted.items())
