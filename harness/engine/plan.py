"""Study → graph of stages with content keys. Pure: reads no store, runs nothing, imports no torch.

A stage's key is the hash of its name and version, the settings that define its computation, and its
inputs' keys. Two cells that need the same stage share it. Paths, devices, worker counts and
micro-batches are in no key (files enter by fingerprint).
"""

from __future__ import annotations

import gc
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.engine.plan_objective import resolve_objective
from harness.engine.plan_pairs import Pairs, add_pairs
from harness.engine.plan_prepared import add_prepared
from harness.engine.plan_scores import add_scores
from harness.engine.stages import RANKER_VERSIONS, STAGES
from harness.records import content_hash
from harness.study.settings import Recipe, at_iteration
from harness.study.study import Cell, Study

SCORING = ("answer", "judge.mt_bench", "judge.alpaca_eval", "academic", "heldout", "diagnostics")
"""Stages that score a checkpoint, in the order they are listed for it."""


@dataclass(frozen=True)
class Node:
    """One stage of the graph. ``located`` (paths, runtime facts) reaches the stage but not the key."""

    key: str
    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    located: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    fails: bool = False


@dataclass(frozen=True)
class RunPlan:
    """A cell's stages: for every iteration (0 is the base) a mapping of stage name to key."""

    cell: Cell
    iterations: tuple[Mapping[str, str], ...]
    coefficients: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Plan:
    """Nodes by key in an order in which every input precedes its users, and what each run needs of
    them.
    """

    study: Study
    nodes: Mapping[str, Node]
    runs: tuple[RunPlan, ...]
    pairwise: Pairs = ()
    """(checkpoint a, checkpoint b, key) for every ordered pair of the declared checkpoints."""
    pairwise_mt_bench: Pairs = ()
    """The same for every unordered pair graded on MT-Bench."""

    @property
    def uses(self) -> dict[str, int]:
        """In how many runs each stage is needed: more than one is sharing."""
        counts: dict[str, int] = {}
        for run in self.runs:
            for key in {key for stages in run.iterations for key in stages.values()}:
                counts[key] = counts.get(key, 0) + 1
        return counts


def stage_key(
    stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """SHA-256 over what the stage's numbers depend on. Settings added to a stage later are left out
    at their default.
    """
    added = STAGES[stage].added
    defining = {
        name: value
        for name, value in settings.items()
        if not (name in added and added[name] == value)
    }
    return content_hash("stage", stage, version, defining, dict(inputs))


def build_plan(study: Study, fingerprints: Mapping[str, str] | None = None) -> Plan:
    """Lay out every cell's stages. ``fingerprints``: content hash of every file or checkpoint the
    recipe names.
    """
    collecting = gc.isenabled()
    # hundreds of thousands of nodes that all stay: looking through them again and again takes as
    # long as making them
    gc.disable()
    try:
        return _build(study, fingerprints or {})
    finally:
        if collecting:
            gc.enable()


def _build(study: Study, fingerprints: Mapping[str, str]) -> Plan:
    builder = Builder(study, fingerprints)
    runs = tuple(builder.run(cell) for cell in study.cells)
    ordered, graded = add_pairs(
        study, runs, builder.add, lambda recipe: builder.prepared(recipe)["benchmarks"]
    )
    return Plan(study, builder.nodes, runs, ordered, graded)


def files_of(recipe: Recipe) -> list[str]:
    """Every file or checkpoint folder whose content decides a run: the caller fingerprints them."""
    mt, alpaca = recipe.evaluation.mt_bench, recipe.evaluation.alpaca_eval
    names = [
        mt.questions,
        mt.references,
        mt.judge_prompts,
        alpaca.instructions,
        alpaca.gamed_baseline,
        *recipe.evaluation.academic.data.values(),
    ]
    names += [recipe.data.heldout_path, recipe.model.chat_template]
    names += [recipe.data.path] if recipe.data.source == "files" else []
    names += [recipe.model.source] if recipe.model.source != "pocket" else []
    names += [recipe.ranker.model, recipe.exploration.checkpoint]
    return sorted({name for name in names if name})


class Builder:
    """Collects nodes; equal settings and inputs give the same node."""

    def __init__(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        self.study = study
        self.fingerprints = fingerprints
        self.nodes: dict[str, Node] = {}
        self._prepared: dict[str, dict[str, str]] = {}
        self._shared: dict[Any, Any] = {}

    def once(self, recipe: Recipe, what: Any, make: Callable[[], Any]) -> Any:
        """Cells of one arm have the same recipe object: what only it decides is computed once.
        Callers do not write into it.
        """
        key = (id(recipe), what)
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def objective(self, recipe: Recipe, iteration: int) -> tuple[dict[str, Any], dict[str, float]]:
        found: tuple[dict[str, Any], dict[str, float]] = self.once(
            recipe, iteration, lambda: resolve_objective(recipe, iteration)
        )
        return found

    def dump(self, recipe: Recipe, name: str, *left_out: str) -> dict[str, Any]:
        """A section of a recipe as a mapping, without some of its keys; computed once, not to be
        written into.
        """
        found: dict[str, Any] = self.once(
            recipe,
            (name, left_out),
            lambda: operator.attrgetter(name)(recipe).model_dump(exclude=set(left_out)),
        )
        return found

    def ranker(self, recipe: Recipe) -> dict[str, Any]:
        """The ranker's settings, with its version once it was raised."""
        kind = recipe.ranker.kind
        return self.dump(recipe, "ranker") | (
            {"version": RANKER_VERSIONS[kind]} if kind in RANKER_VERSIONS else {}
        )

    def add(
        self,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        recipe: Recipe,
        *,
        located: Mapping[str, Any] | None = None,
        fails: bool = False,
    ) -> str:
        spec = STAGES[stage]
        key = stage_key(stage, spec.version, settings, inputs)
        if key not in self.nodes or (fails and not self.nodes[key].fails):
            self.nodes[key] = Node(
                key,
                stage,
                spec.version,
                dict(settings),
                dict(inputs),
                dict(located or {}),
                self.dump(recipe, "runtime"),
                fails,
            )
        return key

    def located(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split settings into what defines the computation (paths replaced by fingerprints) and the
        paths themselves.
        """
        if not self.fingerprints:
            return dict(settings), {}
        defining: dict[str, Any] = {}
        paths: dict[str, Any] = {}
        for name, value in settings.items():
            if isinstance(value, str) and value in self.fingerprints:
                paths[name] = value
                defining[f"{name}_fingerprint"] = self.fingerprints[value]
            elif isinstance(value, Mapping):
                inner_defining, inner_paths = self.located(value)
                defining[name] = inner_defining
                if inner_paths:
                    paths[name] = inner_paths
            else:
                defining[name] = value
        return defining, paths

    # -- what all runs share -----------------------------------------------------------------------
    def prepared(self, recipe: Recipe) -> dict[str, str]:
        """Data, base checkpoint, benchmark files and ranker of a recipe."""
        found: dict[str, str] = self.once(
            recipe, "prepared", lambda: self._prepared_by_content(recipe)
        )
        return found

    def _prepared_by_content(self, recipe: Recipe) -> dict[str, str]:
        shared = {
            "model",
            "pocket",
            "data",
            "evaluation",
            "ranker",
            "ranker_training",
            "exploration",
            "runtime",
        }
        tag = recipe.model_dump_json(include=shared) + f"/{recipe.training.threads}"
        if tag not in self._prepared:
            self._prepared[tag] = add_prepared(self, recipe)
        return self._prepared[tag]

    # -- one run -----------------------------------------------------------------------------------
    def run(self, cell: Cell) -> RunPlan:
        recipe = cell.recipe
        shared = self.prepared(recipe)
        total = recipe.loop.iterations + (1 if recipe.loop.warmup_dpo else 0)
        base = dict(shared) | add_scores(self, cell, 0, shared, shared["base"], {})
        iterations: list[Mapping[str, str]] = [base]
        coefficients: list[Mapping[str, float]] = [{"alpha": 0.0, "c": 0.0, "kappa": 0.0}]
        policy = shared["base"]
        collected: list[str] = []
        for iteration in range(1, total + 1):
            objective, numbers = self.objective(recipe, iteration)
            stages = self.train(cell, iteration, total, shared, policy, objective, collected)
            collected = [*collected, stages["rank"]]
            history = {
                "previous": policy,
                "base": shared["base"],
                "pairs": stages["pairs"],
                "reference_policy": stages.pop("reference_policy"),
                "answer_previous": iterations[-1].get("answer", ""),
            }
            policy = stages["train"]
            if recipe.evaluation.iterations == "all" or iteration == total:
                stages |= add_scores(self, cell, iteration, shared, policy, history)
            iterations.append(stages)
            coefficients.append(numbers)
        return RunPlan(cell, tuple(iterations), tuple(coefficients))

    def train(
        self,
        cell: Cell,
        iteration: int,
        total: int,
        shared: Mapping[str, str],
        policy: str,
        objective: Mapping[str, Any],
        collected: list[str],
    ) -> dict[str, str]:
        recipe = cell.recipe
        threads = {"threads": recipe.training.threads}
        rollout = self.rollout(cell, iteration, total, shared, policy)
        rank = self.rank(cell, iteration, shared, rollout, str(objective["placebo"]))
        pairs = rank
        if recipe.training.accumulate_data and collected:
            parts = [*collected, rank]
            pairs = self.add(
                "pairs.merge",
                {},
                {f"pairs_{index:02d}": key for index, key in enumerate(parts, 1)},
                recipe,
            )
        anchor = shared["base"] if recipe.loop.reference_policy == "base" else policy
        precision = {"dtype": recipe.model.dtype, "attention": recipe.model.attention}
        lengths = (
            {
                "max_length": recipe.training.max_length,
                "max_prompt_length": recipe.training.max_prompt_length,
            }
            | precision
            | threads
        )
        reference = self.add(
            "reference",
            lengths | {"roles": ["chosen", "rejected", "explore"]},
            {"policy": anchor, "pairs": pairs},
            recipe,
            fails=self.fails(cell, "reference", iteration),
        )
        training = dict(self.dump(recipe, "training", "threads", "accumulate_data"))
        training["learning_rate"] = at_iteration(recipe.training.learning_rate, iteration, total)
        settings = {
            "objective": dict(objective),
            "training": training,
            "seed": cell.seed,
            "iteration": iteration,
            "dtype": recipe.model.dtype,
            "attention": recipe.model.attention,
        } | threads
        train = self.add(
            "train",
            settings,
            {"policy": policy, "pairs": pairs, "reference": reference, "reference_policy": anchor},
            recipe,
            fails=self.fails(cell, "train", iteration),
        )
        return {
            "rollout": rollout,
            "rank": rank,
            "pairs": pairs,
            "reference": reference,
            "train": train,
            "reference_policy": anchor,
        }

    def rollout(
        self, cell: Cell, iteration: int, total: int, shared: Mapping[str, str], policy: str
    ) -> str:
        recipe, threads = cell.recipe, {"threads": cell.recipe.training.threads}
        explore = recipe.exploration
        sampler = (
            shared["explorer"]
            if explore.checkpoint
            else shared["base"]
            if explore.policy == "base"
            else policy
        )
        settings = (
            self.dump(recipe, "exploration", "policy", "checkpoint")
            | threads
            | {
                "seed": cell.seed,
                "iteration": iteration,
                "portion": iteration - 1,
                "portions": recipe.loop.portions or total,
                "prompts_per_iteration": recipe.loop.prompts_per_iteration,
                "prompts": recipe.data.prompts,
                "max_prompt_length": recipe.training.max_prompt_length,
                "generation_batch": recipe.model.generation_batch,
                "backend": recipe.runtime.generation_backend,
                "dtype": recipe.model.dtype,
                "attention": recipe.model.attention,
            }
        )
        return self.add(
            "rollout",
            settings,
            {"policy": sampler, "data": shared["data"]},
            recipe,
            fails=self.fails(cell, "rollout", iteration),
        )

    def rank(
        self, cell: Cell, iteration: int, shared: Mapping[str, str], rollout: str, placebo: str
    ) -> str:
        recipe, threads = cell.recipe, {"threads": cell.recipe.training.threads}
        rank_settings, rank_paths = self.located(
            self.ranker(recipe)
            | {
                "rule": recipe.pairs.rule,
                "judge": self.dump(recipe, "judge") if recipe.ranker.kind == "judge" else None,
                "seed": cell.seed,
                "iteration": iteration,
                "placebo": "other_prompt" if placebo == "other_prompt" else "none",
            }
            | threads
        )
        inputs = {"data": shared["data"], "rollout": rollout} | (
            {"ranker": shared["ranker"]} if "ranker" in shared else {}
        )
        return self.add(
            "rank",
            rank_settings,
            inputs,
            recipe,
            located=rank_paths,
            fails=self.fails(cell, "rank", iteration),
        )

    def fails(self, cell: Cell, stage: str, iteration: int) -> bool:
        """Whether the study's fault injection names this stage of this cell."""
        wanted = self.study.fail
        if not wanted:
            return False
        here: dict[str, Any] = {"stage": stage, "seed": cell.seed, "iteration": iteration} | {
            f"arm.{k}": v for k, v in cell.arm.items()
        }
        return all(here.get(name) == value for name, value in wanted.items())
