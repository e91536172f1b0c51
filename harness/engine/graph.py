"""The graph of a study as data: stages with their keys, what each run needs of them, and the
manifest that tells readers which import nothing of the harness.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_origin

from harness.engine.stages import STAGES
from harness.evaluate.benchmark import load
from harness.evaluate.registry import manifest_of
from harness.rankers.registry import RANKERS
from harness.records import canonical_json, content_hash
from harness.study import shipped, tasks
from harness.study.sections import JudgeSettings, Schedule, Section, at_iteration
from harness.study.settings import Recipe
from harness.study.study import Cell, Study
from harness.study.tasks import ObjectiveTask, Runtime
from harness.train.objectives import ResolvedObjective, resolve

FINGERPRINT = "_fingerprint"
Made = TypeVar("Made")
P = ParamSpec("P")
Settings = TypeVar("Settings", bound=Section)
DIAGNOSTICS = "harness.stages.diagnostics.measures:manifest_of"


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


@dataclass(frozen=True)
class RunPlan:
    """A cell's stages: stage name → key for every iteration of the method (`iterations_of`), from
    the base on, or every step that is given; and its coefficients (none of a given step). absent:
    why a stage of a step is not there.
    """

    cell: Cell
    iterations: Mapping[int, Mapping[str, str]]
    coefficients: Mapping[int, Mapping[str, float]]
    absent: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    @property
    def last(self) -> Mapping[str, str]:
        """Stages of the last iteration."""
        return self.iterations[max(self.iterations)]


@dataclass(frozen=True)
class JudgedPair:
    """Two checkpoints ``run@iteration`` and the stage that scores b against a."""

    a: str
    b: str
    key: str


@dataclass(frozen=True)
class Plan:
    """Nodes by key in an order in which every input precedes its users, and what each run needs of
    them. pairwise: every ordered pair of the declared checkpoints.
    """

    study: Study
    nodes: Mapping[str, Node]
    runs: tuple[RunPlan, ...]
    pairwise: Sequence[JudgedPair] = ()

    @property
    def uses(self) -> Counter[str]:
        """In how many runs each stage is needed: more than one is sharing."""
        counts = Counter[str]()
        for run in self.runs:
            counts.update({key for one in run.iterations.values() for key in one.values()})
        return counts


def stage_key(
    stage: str, version: int, defining: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """SHA-256 over what the stage's numbers depend on."""
    return content_hash("stage", stage, version, defining, dict(inputs))


def defining_settings(settings: Section, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What of a stage's settings enters its key: every field; a file as the hash of its content
    (``<name>_fingerprint``), so that a path never does; without fields added later that stand at
    their default, and without those that nothing depends on.
    """
    plain, others = _fields(type(settings))
    values = vars(settings)
    found = {name: values[name] for name in plain}
    if fingerprints:
        for name in plain:
            if isinstance(found[name], str) and found[name] in fingerprints:
                found[name + FINGERPRINT] = fingerprints[found.pop(name)]
    for name in others:
        value = values[name]
        if name in settings.later and value == settings.later[name]:
            continue
        if name in settings.flattened:
            found |= {key: defining_settings(one, fingerprints) for key, one in value.items()}
        elif isinstance(value, ObjectiveTask):
            found[name] = value.keyed()
        elif isinstance(value, Section):
            found[name] = defining_settings(value, fingerprints)
        elif isinstance(value, str) and value in fingerprints:
            found[name + FINGERPRINT] = fingerprints[value]
        else:
            found[name] = value
    return found


@cache
def _fields(kind: type[Section]) -> tuple[list[str], list[str]]:
    """Fields of a settings type that hold one plain value, and the few to look into. Once a type: a
    large study asks for hundreds of thousands of keys.
    """
    plain: list[str] = []
    others: list[str] = []
    for name, info in kind.model_fields.items():
        single = (
            info.annotation in (int, float, bool, str) or get_origin(info.annotation) is Literal
        )
        if not name.endswith(FINGERPRINT) and name not in kind.unkeyed:
            (plain if single and name not in kind.later else others).append(name)
    return plain, others


def with_fingerprints(settings: Section, fingerprints: Mapping[str, str]) -> Section:
    """The settings with their ``…_fingerprint`` fields filled in."""
    changes: dict[str, Any] = {}
    fields = type(settings).model_fields
    for name in fields:
        value = getattr(settings, name)
        if isinstance(value, Section):
            changes[name] = with_fingerprints(value, fingerprints)
        elif name in settings.flattened:
            changes[name] = {
                key: with_fingerprints(one, fingerprints) for key, one in value.items()
            }
        elif name + FINGERPRINT in fields and value in fingerprints:
            changes[name + FINGERPRINT] = fingerprints[value]
    return settings.model_copy(update=changes)


def iterations_of(recipe: Recipe) -> range:
    """The iterations of a run as the method counts them: the base's number, that of the warm-up (0)
    where there is one, then from 1.
    """
    return range(-1 if recipe.loop.warmup_dpo else 0, recipe.loop.iterations + 1)


def schedule_at(recipe: Recipe, schedule: Schedule, iteration: int) -> float:
    """A schedule's value; the warm-up has that of iteration 1."""
    return at_iteration(schedule, max(iteration, 1), recipe.loop.iterations)


def resolve_objective(recipe: Recipe, iteration: int) -> ResolvedObjective:
    """The objective of one iteration; the warm-up (0) is plain DPO."""
    asked = recipe.objective
    beta = schedule_at(recipe, asked.beta, iteration)
    if iteration < 1:
        return resolve("dpo", beta=beta)
    alpha = schedule_at(recipe, asked.alpha, iteration)
    return resolve(
        asked.name,
        alpha=alpha,
        beta=beta,
        placebo=asked.placebo,
        params=asked.params,
        samples=recipe.exploration.samples,
    )


def once(make: Callable[Concatenate[Any, P], Made]) -> Callable[Concatenate[Any, P], Made]:
    """A function of (builder, recipe, …) whose value one recipe object decides: computed once in a
    plan. Callers do not write into it.
    """

    @wraps(make)
    def kept(builder: Any, /, *given: P.args, **named: P.kwargs) -> Made:
        recipe, *others = given
        key = (make, id(recipe), *others, *named.items())
        if key not in builder.kept:
            builder.kept[key] = make(builder, *given, **named)
        return cast("Made", builder.kept[key])

    return kept


class Builder:
    """Collects nodes; equal settings and inputs give the same node."""

    def __init__(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        self.study = study
        self.fingerprints = fingerprints
        self.nodes: dict[str, Node] = {}
        self.kept: dict[Any, Any] = {}

    # -- settings that several stages share -------------------------------------
    @once
    def objective(self, recipe: Recipe, iteration: int) -> tasks.ObjectiveTask:
        return tasks.ObjectiveTask(**vars(resolve_objective(recipe, iteration)))

    @once
    def ranker(self, recipe: Recipe) -> tasks.RankerTask:
        version = RANKERS[recipe.ranker.kind].version
        return tasks.RankerTask(**vars(recipe.ranker), version=version, world=recipe.world)

    @once
    def judge(self, recipe: Recipe, benchmark: str = "") -> JudgeSettings:
        """A benchmark's own where it has one."""
        own: JudgeSettings | None = getattr(recipe.evaluation.of(benchmark), "judge", None)
        return (own or recipe.judge).within(recipe.world)

    @once
    def runtime(self, recipe: Recipe) -> Runtime:
        return Runtime(**vars(recipe.runtime))

    def filled(self, kind: type[Settings], recipe: Recipe, /, **own: Any) -> Settings:
        """The settings of a stage: ``own``, and what the recipe says of its other fields."""
        said = self.said(recipe)
        names = said.keys() & kind.model_fields.keys() - own.keys()
        return kind(**{name: said[name] for name in names}, **own)

    @once
    def said(self, recipe: Recipe) -> dict[str, Any]:
        """What stages of many kinds take from the recipe, by the name of their field."""
        model, training, data, loop = recipe.model, recipe.training, recipe.data, recipe.loop
        return {
            "threads": training.threads,
            "dtype": model.dtype,
            "attention": model.attention,
            "generation_batch": model.generation_batch,
            "backend": model.generation_backend,
            "max_length": training.max_length,
            "max_prompt_length": training.max_prompt_length,
            "truncation": training.truncation,
            "prompts": data.prompts,
            "max_left_out": data.max_left_out,
            "order": loop.order,
            "prompts_per_iteration": loop.prompts_per_iteration,
            "overlong_prompts": recipe.exploration.overlong_prompts,
        }

    # -- nodes ------------------------------------------------------------------
    def add(self, stage: str, settings: Section, inputs: Mapping[str, str], recipe: Recipe) -> str:
        """The key of a stage with these settings and inputs; a new node unless it is there."""
        version = STAGES[stage].version
        defining = defining_settings(settings, self.fingerprints)
        key = stage_key(stage, version, defining, inputs)
        if key not in self.nodes:
            if self.fingerprints:
                settings = with_fingerprints(settings, self.fingerprints)
            given = (settings, dict(inputs), defining, self.runtime(recipe))
            self.nodes[key] = Node(key, stage, version, *given)
        return key


def same_arms(plan: Plan) -> list[list[str]]:
    """Labels of arms that come to the very same stages: equal settings under other names."""
    labels: dict[str, list[str]] = {}
    for run in plan.runs:
        if run.cell.seed == plan.study.seeds[0]:
            labels.setdefault(canonical_json(run.iterations), []).append(run.cell.label)
    return [same for same in labels.values() if len(same) > 1]


def manifest(plan: Plan, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What analysis reads: each run's stages by iteration, the recipe, what was declared."""
    study = plan.study
    changes = []
    for key, value in study.changes.items():  # as ``--set`` takes them, quoted for a shell
        said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        changes.append(shlex.quote(f"{key}={said}"))
    runs = [
        {
            "run": run.cell.run,
            "arm": dict(run.cell.arm),
            "label": run.cell.label,
            "seed": run.cell.seed,
            "baseline_run": run.cell.baseline_run,
            **{
                name: [one.get(name) for one in run.coefficients.values()]
                for name in ("alpha", "c", "kappa")
            },
            "given": bool(run.cell.given),
            "mode": run.cell.recipe.loop.mode,
            "absent": run.absent,
            "iterations": [
                {"iteration": i, "stages": dict(stages)} for i, stages in run.iterations.items()
            ],
        }
        for run in plan.runs
    ]
    stages = {
        node.key: {
            "stage": node.stage,
            "version": node.version,
            "inputs": dict(node.inputs),
            "seconds_estimated": seconds.get(node.key, 0.0),
        }
        for node in plan.nodes.values()
    }
    return {
        "schema": 1,
        "study": {
            "name": study.name,
            "question": study.question,
            "file": Path(shipped.word(study.file)).name,
            "set": changes,
        },
        "recipe": study.base.model_dump(mode="json"),
        "axes": {name: list(values) for name, values in study.axes.items()},
        "seeds": list(study.seeds),
        "baseline": dict(study.baseline),
        "declare": study.declare.model_dump(mode="json"),
        "checkpoints_kept": study.keep,
        "runs": runs,
        "pairwise": [vars(pair) for pair in plan.pairwise],
        "stages": stages,
        "benchmarks": manifest_of(study.base.evaluation),
        "diagnostics": load(DIAGNOSTICS)(),
    }
