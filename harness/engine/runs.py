"""Study → graph of stages with content keys. Pure: reads no store, runs nothing, imports no torch.

Two cells that need the same stage share it. Paths, devices, worker counts and micro-batches are in
no key (files enter by fingerprint).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness.engine.graph import Builder, Plan, RunPlan, iterations_of, once, schedule_at
from harness.engine.scores import add_pairs, add_scores, given_run
from harness.evaluate.registry import BENCHMARKS
from harness.rankers.pairs import SELECTORS
from harness.rankers.registry import RANKERS
from harness.records import FILE_ENDINGS, HarnessError, is_hub_id
from harness.study import tasks
from harness.study.sections import DecodingSettings
from harness.study.settings import Recipe
from harness.study.study import Cell, Study
from harness.train.objectives import OBJECTIVES, explore_roles, others_of


def build_plan(study: Study, fingerprints: Mapping[str, str] | None = None) -> Plan:
    """Lay out every cell's stages. ``fingerprints``: content hash of every file or checkpoint the
    recipe names, and the commit of everything it takes from the hub.
    """
    # Hundreds of thousands of nodes that all stay: looking through them again and again for garbage
    # takes as long as making them.
    collecting = gc.isenabled()
    gc.disable()
    try:
        builder = Runs(study, fingerprints or {})
        runs = tuple(builder.run(cell) for cell in study.cells)
        return Plan(study, builder.nodes, runs, add_pairs(builder, runs))
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class HubName:
    """A repository of the hub at a revision; as text, its name among the fingerprints."""

    kind: Literal["dataset", "model"]
    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.kind}s/{self.name}@{self.revision}"


def named_in(recipe: Recipe, models: bool = True) -> tuple[set[str], set[HubName]]:
    """Every file or checkpoint folder whose content decides a run, and what it takes from the hub:
    the caller fingerprints them and looks up the commits. models: False where answers are given.
    """
    files: set[str] = set()
    hub: set[HubName] = set()
    for name, benchmark in BENCHMARKS.items():
        files |= {*benchmark.named_files(recipe.evaluation.of(name))}
    if models:
        data, model, ranker = recipe.data, recipe.model, recipe.ranker
        checkpoints = [(ranker.model, ranker.revision), (recipe.exploration.checkpoint, "")]
        if model.source != "pocket":
            checkpoints.append((model.source, model.revision))
        for name, revision in checkpoints:
            if is_hub_id(name):
                hub.add(HubName("model", name, revision))
            else:
                files.add(name)
        files.add(data.heldout_path)
        template, path = Path(model.chat_template), Path(data.path)
        if template.suffix in FILE_ENDINGS or template.exists():
            files.add(model.chat_template)
        if data.source in ("files", "rules") or (data.source == "hub" and path.is_dir()):
            files.add(data.path)
        elif data.source == "hub" and not path.exists():
            hub.add(HubName("dataset", data.path, data.revision))
    return files - {""}, hub


def named_by(study: Study) -> tuple[list[str], set[HubName]]:
    """What `named_in` says of all runs of a study, and what its given checkpoints name."""
    files: set[str] = set()
    hub: set[HubName] = set()
    for recipe in {id(cell.recipe): cell.recipe for cell in study.cells}.values():
        read, fetched = named_in(recipe, study.has_models)
        files |= read
        hub |= fetched
    for row in (row for cell in study.cells for row in cell.given.values()):
        files |= row.files
        for name, revision in ((row.checkpoint, row.revision), (row.base, "")):
            if name and is_hub_id(name):
                hub.add(HubName("model", name, revision))
    return sorted(files), hub


ALWAYS_PREPARED = ("mt_bench", "alpaca_eval", "academic")
"""Whose sections are in the key of the benchmarks' files also where they are not scored: they were
when that stage was first stored.
"""


LABELLED = ("offline", "stepwise")
"""Modes that train on the labelled pairs."""
CARRIED = ("offline", "online")
"""Modes with one optimiser and one schedule for all iterations of the method."""


@dataclass(frozen=True)
class Start:
    """Where an iteration of a run starts, as keys. policy: the current model. first: the one that
    the method starts from. reference: π_ref. collected: pairs of the iterations before.
    """

    cell: Cell
    iteration: int
    shared: Mapping[str, str]
    policy: str
    first: str
    reference: str
    collected: tuple[str, ...]

    @property
    def warmup(self) -> bool:
        return self.iteration < 1


class Runs(Builder):
    """The stages of a study's runs."""

    def __init__(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        super().__init__(study, fingerprints)
        self._prepared: dict[str, dict[str, str]] = {}

    # -- what all runs share ----------------------------------------------------
    @once
    def prepared(self, recipe: Recipe) -> dict[str, str]:
        """Role (data, base, benchmarks, and ranker or explorer where there is one) → key."""
        shared = {"model", "pocket", "world", "rules", "data", "evaluation", "ranker"}
        shared |= {"ranker_training", "exploration", "runtime"}
        training = recipe.training
        tag = recipe.model_dump_json(include=shared)
        tag += f"/{training.threads}/{training.max_prompt_length}"
        if tag not in self._prepared:
            self._prepared[tag] = self._prepare(recipe)
        return self._prepared[tag]

    def _prepare(self, recipe: Recipe) -> dict[str, str]:
        pocket = recipe.data.source == "pocket"
        benchmarks = self._pocket_benchmarks if pocket else self._file_benchmarks
        if not self.study.has_models:
            return {"benchmarks": benchmarks(recipe)}
        if pocket:
            data = self._pocket_data(recipe)
            base_task = self.filled(tasks.PocketBaseTask, recipe, **vars(recipe.pocket))
            base = self.add("base.pocket", base_task, {"data": data}, recipe)
        else:
            base = self._checkpoint(recipe, recipe.model.source, recipe.model.revision, True)
            data = self._file_data(recipe, base)
        prepared = {"data": data, "base": base, "benchmarks": benchmarks(recipe)}
        ranker, model = RANKERS[recipe.ranker.kind], recipe.ranker.model
        if ranker.asks_judge and recipe.judge.samples > 1:
            raise HarnessError(
                f"judge.samples is {recipe.judge.samples}, but a ranker that asks a judge takes "
                "one verdict for each order: set judge.samples to 1, and "
                "evaluation.<benchmark>.judge for the benchmarks that want more"
            )
        if model and ranker.checkpoint != "none":
            prepared["ranker"] = self._checkpoint(recipe, model, recipe.ranker.revision, False)
        elif ranker.checkpoint == "given or trained":
            trained = self.filled(tasks.RankerTrainTask, recipe, **vars(recipe.ranker_training))
            inputs = {"data": data, "base": base}
            prepared["ranker"] = self.add("ranker.train", trained, inputs, recipe)
        if recipe.exploration.checkpoint:
            prepared["explorer"] = self._checkpoint(recipe, recipe.exploration.checkpoint, "", True)
        return prepared

    def _pocket_data(self, recipe: Recipe) -> str:
        pocket, world = recipe.pocket, recipe.world
        if world.unseen:
            # No offline answer in the best style says what it is worth: both worlds' data are one.
            world = world.model_copy(update={"best_style_worth": 1.0})
        data_task = tasks.PocketDataTask(
            **vars(recipe.data),
            rows=pocket.rows,
            best_style_share=pocket.best_style_share,
            world=world,
        )
        return self.add("data.pocket", data_task, {}, recipe)

    def _pocket_benchmarks(self, recipe: Recipe) -> str:
        evaluation, data = recipe.evaluation, self._pocket_data(recipe)
        # No judge in it: a benchmark's gamed-baseline rows come with it, whoever judges later.
        limits = {
            name: tasks.Limit(limit=evaluation.of(name).limit)
            for name, benchmark in BENCHMARKS.items()
            if name in ALWAYS_PREPARED or (benchmark.pocket and name in evaluation.benchmarks)
        }
        bench_task = tasks.PocketBenchmarksTask(seed=recipe.data.seed, limits=limits)
        return self.add("benchmarks.pocket", bench_task, {"data": data}, recipe)

    def _file_benchmarks(self, recipe: Recipe) -> str:
        evaluation = recipe.evaluation
        sections = {
            name: evaluation.of(name)
            for name, benchmark in BENCHMARKS.items()
            if name in ALWAYS_PREPARED or (benchmark.prepare and name in evaluation.benchmarks)
        }
        bench_task = tasks.FileBenchmarksTask(benchmarks=evaluation.benchmarks, sections=sections)
        return self.add("benchmarks.files", bench_task, {}, recipe)

    def _file_data(self, recipe: Recipe, base: str) -> str:
        fields = vars(recipe.data)
        if recipe.data.source == "rules":
            rules = self.filled(tasks.RulesDataTask, recipe, **fields, rules=recipe.rules)
            return self.add("data.rules", rules, {"base": base}, recipe)
        commit = self._commit("dataset", recipe.data.path, recipe.data.revision)
        files = self.filled(tasks.FileDataTask, recipe, **fields, commit=commit)
        return self.add("data.files", files, {"base": base}, recipe)

    def _commit(self, kind: Literal["dataset", "model"], name: str, revision: str) -> str:
        return self.fingerprints.get(str(HubName(kind, name, revision)), "")

    def _checkpoint(
        self, recipe: Recipe, source: str, revision: str, needs_template: bool, base: str = ""
    ) -> str:
        model = recipe.model
        settings = self.filled(
            tasks.CheckpointTask,
            recipe,
            source=source,
            revision=revision,
            trust_remote_code=model.trust_remote_code,
            chat_template=model.chat_template,
            template_date=model.template_date,
            template_arguments=model.template_arguments if needs_template else {},
            pickle_weights=model.pickle_weights,
            needs_template=needs_template,
            commit=self._commit("model", source, revision),
            adapter_base=base,
            adapter_commit=self._commit("model", base, ""),
        )
        return self.add("base.checkpoint", settings, {}, recipe)

    # -- one run ----------------------------------------------------------------
    def run(self, cell: Cell) -> RunPlan:
        recipe = cell.recipe
        shared = self.prepared(recipe)
        if cell.given:
            return given_run(self, cell, shared, partial(self._checkpoint, recipe))
        base, *trained = iterations_of(recipe)
        scored = dict(shared) | add_scores(self, cell, base, shared, shared["base"], {})
        iterations: dict[int, Mapping[str, str]] = {base: scored}
        coefficients = {base: {"alpha": 0.0, "c": 0.0, "kappa": 0.0}}
        policy = first = reference = shared["base"]
        collected: tuple[str, ...] = ()
        for iteration in trained:
            start = Start(cell, iteration, shared, policy, first, reference, collected)
            reference = self.anchor(start)
            stages, own_pairs = self.train(replace(start, reference=reference))
            history = {
                "previous": policy,
                "base": shared["base"],
                "pairs": stages["pairs"],
                "reference_policy": reference,
                "answer_previous": iterations[iteration - 1].get("answer", ""),
            }
            policy = stages["train"]
            if start.warmup:
                first = stages["base"] = policy  # what the method starts from
            else:
                collected = (*collected, own_pairs)
            if recipe.evaluation.iterations == "all" or iteration == trained[-1]:
                stages |= add_scores(self, cell, iteration, shared, policy, history)
            iterations[iteration] = stages
            objective = self.objective(recipe, iteration)
            alpha = -objective.alpha if objective.placebo == "negative" else objective.alpha
            told = {"alpha": alpha, "c": objective.c, "kappa": objective.kappa}
            coefficients[iteration] = told
        return RunPlan(cell, iterations, coefficients)

    def anchor(self, start: Start) -> str:
        """π_ref of the iteration that begins."""
        loop = start.cell.recipe.loop
        if loop.reference_policy == "previous" or start.warmup:
            return start.policy
        if loop.reference_policy == "fixed" or start.iteration == 1:
            return start.first
        recipe = start.cell.recipe
        settings = self.filled(tasks.AverageTask, recipe, decay=loop.ema_decay)
        inputs = {"average": start.reference, "policy": start.policy}
        return self.add("average", settings, inputs, recipe)

    def train(self, start: Start) -> tuple[dict[str, str], str]:
        """The stages of one iteration, and its own pairs without those of earlier iterations."""
        cell, iteration, recipe = start.cell, start.iteration, start.cell.recipe
        stages, own = self.pairs(start)
        pairs = own
        if recipe.pairs.accumulate and start.collected:
            parts = enumerate([*start.collected, own], 1)
            inputs = {f"pairs_{index:02d}": key for index, key in parts}
            pairs = self.add("pairs.merge", tasks.Nothing(), inputs, recipe)
        read = {"policy": start.reference, "pairs": pairs}
        reference = self.add("reference", self._reference_task(recipe), read, recipe)
        carried = None
        if recipe.loop.mode in CARRIED and not start.warmup:
            carried = tasks.PartTask(part=iteration - 1, parts=recipe.loop.iterations)
        settings = self.filled(
            tasks.TrainTask,
            recipe,
            carried=carried,
            objective=self.objective(recipe, iteration),
            training=self._optimiser(recipe, iteration),
            seed=cell.seed,
            iteration=iteration,
        )
        read = {"policy": start.policy, "pairs": pairs, "reference": reference}
        if OBJECTIVES[settings.objective.name].counts:
            place = {"seed": cell.seed, "iteration": iteration}
            counted = self.filled(tasks.CountTask, recipe, counts=recipe.counts, **place)
            inputs = {"policy": start.reference, "pairs": pairs}
            read["count"] = stages["count"] = self.add("count", counted, inputs, recipe)
        train = self.add("train", settings, read | {"reference_policy": start.reference}, recipe)
        return stages | {"pairs": pairs, "reference": reference, "train": train}, own

    @once
    def _reference_task(self, recipe: Recipe) -> tasks.ReferenceTask:
        lora = recipe.training.lora
        roles = [*explore_roles(recipe.exploration.samples), *others_of(recipe.objective.name)]
        return self.filled(
            tasks.ReferenceTask,
            recipe,
            roles=["chosen", "rejected", *roles],
            mixed=recipe.model.dtype == "bfloat16" and lora is None,
            base=lora.base if lora else "whole",
        )

    @once
    def _optimiser(self, recipe: Recipe, iteration: int) -> tasks.OptimiserTask:
        rate = schedule_at(recipe, recipe.training.learning_rate, iteration)
        return tasks.OptimiserTask(**vars(recipe.training) | {"learning_rate": rate})

    # -- pairs ------------------------------------------------------------------
    def pairs(self, start: Start) -> tuple[dict[str, str], str]:
        """The stages that make the iteration's pairs, and the key of these. Only answers that the
        term reads or a pair is chosen from are drawn.
        """
        recipe, shared = start.cell.recipe, start.shared
        pairs, explore = recipe.pairs, recipe.exploration
        labelled = start.warmup or recipe.loop.mode in LABELLED
        term = "explore" in self.objective(recipe, start.iteration).roles
        if labelled and not term:
            settings = self.filled(tasks.LabelledTask, recipe, **self._portion(start))
            inputs = {"policy": shared["base"], "data": shared["data"]}
            return {}, self.add("pairs.labelled", settings, inputs, recipe)
        drawn: dict[str, str] = {}
        if term or pairs.y:
            writers = {
                "current": start.policy,
                "reference": start.reference,
                "first": start.first,
                "checkpoint": shared.get("explorer", ""),
            }
            drawn["rollout"] = self.rollout(start, writers[explore.policy], 0, {})
        number = explore.samples
        own = {"decoding": "sample", "temperature": pairs.temperature, "top_p": pairs.top_p}
        wanted = {"current": (start.policy, pairs.current), "first": (start.first, pairs.first)}
        for name, (policy, samples) in wanted.items():
            if samples and not labelled:
                drawn[name] = self.rollout(start, policy, number, own | {"samples": samples})
            number += samples
        if pairs.selector and not labelled:
            drawn["select"] = self.select(start, drawn)
        rank = self.rank(start, drawn, "offline" if labelled else pairs.rule)
        return {**drawn, "rank": rank}, rank

    def _portion(self, start: Start) -> dict[str, Any]:
        """The prompts of an iteration; the warm-up has a portion of its own."""
        _base, *trained = iterations_of(start.cell.recipe)
        return {
            "seed": start.cell.seed,
            "portion": start.iteration - trained[0],
            "portions": start.cell.recipe.loop.portions or len(trained),
        }

    def rollout(self, start: Start, policy: str, first: int, changes: Mapping[str, Any]) -> str:
        """Answers of a policy, from sample number ``first`` on, drawn as y is but for changes."""
        recipe, explore = start.cell.recipe, start.cell.recipe.exploration
        decoding = {name: getattr(explore, name) for name in DecodingSettings.model_fields}
        settings = self.filled(
            tasks.RolloutTask,
            recipe,
            **(decoding | dict(changes)),
            **self._portion(start),
            iteration=start.iteration,
            first_sample=first,
        )
        inputs = {"policy": policy, "data": start.shared["data"]}
        return self.add("rollout", settings, inputs, recipe)

    def select(self, start: Start, drawn: Mapping[str, str]) -> str:
        """Which of the drawn answers are labelled."""
        recipe = start.cell.recipe
        asked, rewards = recipe.pairs, SELECTORS[recipe.pairs.selector].reads == "rewards"
        settings = self.filled(
            tasks.SelectTask,
            recipe,
            selector=asked.selector,
            entropy_share=asked.entropy_share,
            margin_share=asked.margin_share,
            ensemble=recipe.ensemble if rewards else None,
            y=asked.y,
            seed=start.cell.seed,
            iteration=start.iteration,
        )
        read = {"policy": start.policy, "reference_policy": start.reference}
        if rewards:  # states of one and the same policy in every iteration
            pairs = enumerate(start.collected, 1)
            read = {"policy": start.first} | {f"pairs_{index:02d}": key for index, key in pairs}
        return self.add("select", settings, {**drawn, **read}, recipe)

    def rank(self, start: Start, drawn: Mapping[str, str], rule: str) -> str:
        """The pairs of an iteration. drawn: its rollouts by name, and what was selected of them."""
        cell, recipe = start.cell, start.cell.recipe
        placebo = self.objective(recipe, start.iteration).placebo
        settings = self.filled(
            tasks.RankTask,
            recipe,
            **vars(self.ranker(recipe)),
            rule=rule,
            offline=recipe.pairs.offline or rule == "offline",
            y=None if (recipe.pairs.y, recipe.exploration.samples) == (1, 1) else recipe.pairs.y,
            truncated_y=recipe.pairs.truncated_y,
            judge=self.judge(recipe) if RANKERS[recipe.ranker.kind].asks_judge else None,
            seed=cell.seed,
            iteration=start.iteration,
            placebo="other_prompt" if placebo == "other_prompt" else "none",
        )
        inputs = {"data": start.shared["data"], **drawn}
        if "ranker" in start.shared:
            inputs["ranker"] = start.shared["ranker"]
        return self.add("rank", settings, inputs, recipe)
