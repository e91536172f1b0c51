"""Study → graph of stages with content keys. Pure: reads no store, runs nothing, imports no torch.

A stage's key is the hash of its name and version, the settings that define its computation, and its
inputs' keys. Two cells that need the same stage share it. Paths, devices, worker counts and
micro-batches are in no key (files enter by fingerprint).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

from harness.engine.graph import Builder, Plan, RunPlan, total_iterations
from harness.engine.scores import add_pairs, add_scores
from harness.evaluate.registry import BENCHMARKS
from harness.rankers.registry import RANKERS
from harness.study import tasks
from harness.study.sections import DecodingSettings, WorldSettings, at_iteration
from harness.study.settings import Recipe
from harness.study.study import Cell, Study


def build_plan(study: Study, fingerprints: Mapping[str, str] | None = None) -> Plan:
    """Lay out every cell's stages. ``fingerprints``: content hash of every file or checkpoint the
    recipe names.
    """
    # Hundreds of thousands of nodes that all stay: looking through them again and again for garbage
    # takes as long as making them.
    collecting = gc.isenabled()
    gc.disable()
    try:
        builder = Runs(study, fingerprints or {})
        runs = tuple(builder.run(cell) for cell in study.cells)
        ordered, graded = add_pairs(builder, runs)
        return Plan(study, builder.nodes, runs, ordered, graded)
    finally:
        if collecting:
            gc.enable()


def files_of(recipe: Recipe) -> list[str]:
    """Every file or checkpoint folder whose content decides a run: the caller fingerprints them."""
    names = []
    for name, benchmark in BENCHMARKS.items():
        names += benchmark.named_files(recipe.evaluation.of(name))
    names += [recipe.data.heldout_path, recipe.model.chat_template]
    names += [recipe.data.path] if recipe.data.source == "files" else []
    names += [recipe.model.source] if recipe.model.source != "pocket" else []
    names += [recipe.ranker.model, recipe.exploration.checkpoint]
    return sorted({name for name in names if name})


ALWAYS_PREPARED = ("mt_bench", "alpaca_eval", "academic")
"""Whose sections are in the key of the benchmarks' files also where they are not scored: they were
when that stage was first stored.
"""


def _offline_world(world: WorldSettings) -> WorldSettings:
    """What of the world decides its data: no offline answer in the best style says what it is
    worth, so both worlds have the same data then.
    """
    return world.model_copy(update={"best_style_worth": 1.0}) if world.unseen else world


class Runs(Builder):
    """The stages of a study's runs."""

    def __init__(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        super().__init__(study, fingerprints)
        self._prepared: dict[str, dict[str, str]] = {}

    # -- what all runs share ----------------------------------------------------
    def prepared(self, recipe: Recipe) -> dict[str, str]:
        """Role (data, base, benchmarks, and ranker or explorer where there is one) → key."""

        def make() -> dict[str, str]:
            shared = {"model", "pocket", "world", "data", "evaluation", "ranker", "ranker_training"}
            shared |= {"exploration", "runtime"}
            training = recipe.training
            tag = recipe.model_dump_json(include=shared)
            tag += f"/{training.threads}/{training.max_prompt_length}"
            if tag not in self._prepared:
                self._prepared[tag] = self._prepare(recipe)
            return self._prepared[tag]

        found: dict[str, str] = self.once(recipe, "prepared", make)
        return found

    def _prepare(self, recipe: Recipe) -> dict[str, str]:
        prepared = self._pocket(recipe) if recipe.data.source == "pocket" else self._files(recipe)
        ranker, model = RANKERS[recipe.ranker.kind], recipe.ranker.model
        if model and ranker.checkpoint != "none":
            prepared["ranker"] = self._checkpoint(recipe, model, recipe.ranker.revision, False)
        elif ranker.checkpoint == "given or trained":
            trained = tasks.RankerTrainTask(
                **vars(recipe.ranker_training), threads=recipe.training.threads
            )
            inputs = {"data": prepared["data"], "base": prepared["base"]}
            prepared["ranker"] = self.add("ranker.train", trained, inputs, recipe)
        if recipe.exploration.checkpoint:
            prepared["explorer"] = self._checkpoint(recipe, recipe.exploration.checkpoint, "", True)
        return prepared

    def _pocket(self, recipe: Recipe) -> dict[str, str]:
        pocket, evaluation = recipe.pocket, recipe.evaluation
        data_task = tasks.PocketDataTask(
            **vars(recipe.data),
            rows=pocket.rows,
            best_style_share=pocket.best_style_share,
            world=_offline_world(recipe.world),
        )
        data = self.add("data.pocket", data_task, {}, recipe)
        base_task = tasks.PocketBaseTask(**vars(pocket), threads=recipe.training.threads)
        base = self.add("base.pocket", base_task, {"data": data}, recipe)
        # No judge in it: a benchmark's gamed-baseline rows come with it, whoever judges later.
        limits = {
            name: tasks.Limit(limit=evaluation.of(name).limit)
            for name, benchmark in BENCHMARKS.items()
            if name in ALWAYS_PREPARED or (benchmark.pocket and name in evaluation.benchmarks)
        }
        bench_task = tasks.PocketBenchmarksTask(seed=recipe.data.seed, limits=limits)
        benchmarks = self.add("benchmarks.pocket", bench_task, {"data": data}, recipe)
        return {"data": data, "base": base, "benchmarks": benchmarks}

    def _files(self, recipe: Recipe) -> dict[str, str]:
        evaluation = recipe.evaluation
        base = self._checkpoint(recipe, recipe.model.source, recipe.model.revision, True)
        data_task = tasks.FileDataTask(
            **vars(recipe.data), max_prompt_length=recipe.training.max_prompt_length
        )
        data = self.add("data.files", data_task, {"base": base}, recipe)
        sections = {
            name: evaluation.of(name)
            for name, benchmark in BENCHMARKS.items()
            if name in ALWAYS_PREPARED or (benchmark.prepare and name in evaluation.benchmarks)
        }
        bench_task = tasks.FileBenchmarksTask(benchmarks=evaluation.benchmarks, sections=sections)
        benchmarks = self.add("benchmarks.files", bench_task, {}, recipe)
        return {"data": data, "base": base, "benchmarks": benchmarks}

    def _checkpoint(self, recipe: Recipe, source: str, revision: str, needs_template: bool) -> str:
        model = recipe.model
        settings = tasks.CheckpointTask(
            source=source,
            revision=revision,
            dtype=model.dtype,
            attention=model.attention,
            trust_remote_code=model.trust_remote_code,
            chat_template=model.chat_template,
            pickle_weights=model.pickle_weights,
            needs_template=needs_template,
        )
        return self.add("base.checkpoint", settings, {}, recipe)

    # -- one run ----------------------------------------------------------------
    def run(self, cell: Cell) -> RunPlan:
        recipe = cell.recipe
        shared = self.prepared(recipe)
        total = total_iterations(recipe)
        base = dict(shared) | add_scores(self, cell, 0, shared, shared["base"], {})
        iterations: list[Mapping[str, str]] = [base]
        coefficients: list[Mapping[str, float]] = [{"alpha": 0.0, "c": 0.0, "kappa": 0.0}]
        policy = shared["base"]
        collected: list[str] = []
        for iteration in range(1, total + 1):
            objective = self.objective(recipe, iteration)
            stages = self.train(cell, iteration, shared, policy, collected)
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
            alpha = -objective.alpha if objective.placebo == "negative" else objective.alpha
            coefficients.append({"alpha": alpha, "c": objective.c, "kappa": objective.kappa})
        return RunPlan(cell, tuple(iterations), tuple(coefficients))

    def train(
        self,
        cell: Cell,
        iteration: int,
        shared: Mapping[str, str],
        policy: str,
        collected: Sequence[str],
    ) -> dict[str, str]:
        """The stages of one iteration, from ``policy`` to the next one."""
        recipe, training = cell.recipe, cell.recipe.training
        rollout = self.rollout(cell, iteration, shared, policy)
        rank = self.rank(cell, iteration, shared, rollout)
        pairs = rank
        if training.accumulate_data and collected:
            parts = enumerate([*collected, rank], 1)
            inputs = {f"pairs_{index:02d}": key for index, key in parts}
            pairs = self.add("pairs.merge", tasks.Nothing(), inputs, recipe)
        anchor = shared["base"] if recipe.loop.reference_policy == "base" else policy
        reference = self.add(
            "reference",
            self.once(recipe, "reference", lambda: self._reference_task(recipe)),
            {"policy": anchor, "pairs": pairs},
            recipe,
            fails=self.fails(cell, "reference", iteration),
        )
        settings = tasks.TrainTask(
            **self.computing(recipe),
            objective=self.objective(recipe, iteration),
            training=self._optimiser(recipe, iteration),
            seed=cell.seed,
            iteration=iteration,
        )
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

    def _reference_task(self, recipe: Recipe) -> tasks.ReferenceTask:
        return tasks.ReferenceTask(
            **self.computing(recipe),
            max_length=recipe.training.max_length,
            max_prompt_length=recipe.training.max_prompt_length,
            roles=["chosen", "rejected", "explore"],
        )

    def _optimiser(self, recipe: Recipe, iteration: int) -> tasks.OptimiserTask:
        def make() -> tasks.OptimiserTask:
            fields = dict(vars(recipe.training))
            for not_the_optimisers in ("threads", "accumulate_data"):
                del fields[not_the_optimisers]
            rate = at_iteration(recipe.training.learning_rate, iteration, total_iterations(recipe))
            return tasks.OptimiserTask(**fields | {"learning_rate": rate})

        found: tasks.OptimiserTask = self.once(recipe, ("optimiser", iteration), make)
        return found

    def rollout(self, cell: Cell, iteration: int, shared: Mapping[str, str], policy: str) -> str:
        """What y is drawn, and by whom: a named checkpoint, the first policy, or ``policy``."""
        recipe, explore = cell.recipe, cell.recipe.exploration
        sampler = policy
        if explore.checkpoint:
            sampler = shared["explorer"]
        elif explore.policy == "base":
            sampler = shared["base"]
        decoding = {name: getattr(explore, name) for name in DecodingSettings.model_fields}
        settings = tasks.RolloutTask(
            **decoding,
            **self.generating(recipe),
            seed=cell.seed,
            iteration=iteration,
            portion=iteration - 1,
            portions=recipe.loop.portions or total_iterations(recipe),
            prompts_per_iteration=recipe.loop.prompts_per_iteration,
            prompts=recipe.data.prompts,
            max_prompt_length=recipe.training.max_prompt_length,
        )
        inputs = {"policy": sampler, "data": shared["data"]}
        fails = self.fails(cell, "rollout", iteration)
        return self.add("rollout", settings, inputs, recipe, fails=fails)

    def rank(self, cell: Cell, iteration: int, shared: Mapping[str, str], rollout: str) -> str:
        """The pairs of an iteration."""
        recipe = cell.recipe
        placebo = self.objective(recipe, iteration).placebo
        settings = tasks.RankTask(
            **vars(self.ranker(recipe)),
            threads=recipe.training.threads,
            rule=recipe.pairs.rule,
            truncated_y=recipe.pairs.truncated_y,
            judge=self.judge(recipe) if RANKERS[recipe.ranker.kind].asks_judge else None,
            seed=cell.seed,
            iteration=iteration,
            placebo="other_prompt" if placebo == "other_prompt" else "none",
        )
        inputs = {"data": shared["data"], "rollout": rollout}
        if "ranker" in shared:
            inputs["ranker"] = shared["ranker"]
        fails = self.fails(cell, "rank", iteration)
        return self.add("rank", settings, inputs, recipe, fails=fails)
