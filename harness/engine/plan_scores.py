"""Stages that score one checkpoint: its answers, the judges', academic tasks, held-out prompts,
diagnostics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.study.settings import Recipe
from harness.study.study import Cell

if TYPE_CHECKING:
    from harness.engine.plan import Builder


def add_scores(
    builder: Builder,
    cell: Cell,
    iteration: int,
    shared: Mapping[str, str],
    policy: str,
    history: Mapping[str, str],
) -> dict[str, str]:
    """Stage name → key of everything that scores ``policy``. ``history``: what diagnostics compare
    it with; empty for the base.
    """
    here, wanted = (
        _Checkpoint(builder, cell, iteration, shared, policy),
        cell.recipe.evaluation.benchmarks,
    )
    sets = [name for name in ("mt_bench", "alpaca_eval", "heldout") if name in wanted]
    if sets:
        here.answer(sets)
    if "mt_bench" in wanted:
        here.judge(
            "judge.mt_bench", {"reference_set": cell.recipe.evaluation.mt_bench.reference_set}
        )
    if "alpaca_eval" in wanted:
        here.judge("judge.alpaca_eval", {"annotator": cell.recipe.evaluation.alpaca_eval.annotator})
    if "academic" in wanted:
        here.academic()
    if "heldout" in wanted:
        here.heldout()
    if cell.recipe.diagnostics.enabled and history:
        here.diagnostics(history)
    return here.stages


@dataclass
class _Checkpoint:
    """One checkpoint while its scoring stages are added; ``stages`` holds those added so far."""

    builder: Builder
    cell: Cell
    iteration: int
    shared: Mapping[str, str]
    policy: str
    stages: dict[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.cell.recipe

    @property
    def threads(self) -> dict[str, Any]:
        return {"threads": self.recipe.training.threads}

    @property
    def generating(self) -> dict[str, Any]:
        """Settings of every stage that draws or reads tokens."""
        model = self.recipe.model
        return {
            "dtype": model.dtype,
            "attention": model.attention,
            "generation_batch": model.generation_batch,
            "backend": self.recipe.runtime.generation_backend,
        } | self.threads

    @property
    def ranker(self) -> dict[str, str]:
        """The ranker's stage where it has one."""
        return {"ranker": self.shared["ranker"]} if "ranker" in self.shared else {}

    def add(
        self,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        located: Mapping[str, Any] | None = None,
    ) -> None:
        fails = self.builder.fails(self.cell, stage, self.iteration)
        self.stages[stage] = self.builder.add(
            stage, settings, inputs, self.recipe, located=located, fails=fails
        )

    def answer(self, sets: Sequence[str]) -> None:
        evaluation = self.recipe.evaluation
        settings = self.generating | {
            "seed": self.cell.seed,
            "iteration": self.iteration,
            "sets": list(sets),
            "mt_bench": {"max_new_tokens": evaluation.mt_bench.max_new_tokens},
            "alpaca_eval": {
                "max_new_tokens": evaluation.alpaca_eval.max_new_tokens,
                "temperature": evaluation.alpaca_eval.temperature,
            },
            "heldout_samples": evaluation.heldout_samples,
            "heldout_max_new_tokens": evaluation.heldout_max_new_tokens,
            "max_prompt_length": self.recipe.training.max_prompt_length,
        }
        self.add(
            "answer",
            settings,
            {
                "policy": self.policy,
                "benchmarks": self.shared["benchmarks"],
                "data": self.shared["data"],
            },
        )

    def judge(self, stage: str, settings: Mapping[str, Any]) -> None:
        inputs = {"answer": self.stages["answer"], "benchmarks": self.shared["benchmarks"]}
        self.add(stage, {"judge": self.builder.dump(self.recipe, "judge"), **settings}, inputs)

    def academic(self) -> None:
        settings, paths = self.builder.located(
            self.builder.dump(self.recipe, "evaluation.academic")
        )
        self.add(
            "academic",
            settings | self.generating,
            {"policy": self.policy, "benchmarks": self.shared["benchmarks"]},
            paths,
        )

    def heldout(self) -> None:
        ranker, paths = self.builder.located(self.builder.ranker(self.recipe))
        judge = (
            self.builder.dump(self.recipe, "judge") if self.recipe.ranker.kind == "judge" else None
        )
        inputs = {"answer": self.stages["answer"], "data": self.shared["data"]} | self.ranker
        settings = {"ranker": ranker, "judge": judge} | self.threads
        if self.recipe.evaluation.rank_alpaca_eval:
            settings, inputs = (
                settings | {"rank_alpaca_eval": True},
                inputs | {"benchmarks": self.shared["benchmarks"]},
            )
        self.add("heldout", settings, inputs, {"ranker": paths} if paths else None)

    def diagnostics(self, history: Mapping[str, str]) -> None:
        recipe = self.recipe
        ranker, paths = self.builder.located(self.builder.ranker(recipe))
        objective, _ = self.builder.objective(recipe, self.iteration)
        settings = (
            self.builder.dump(recipe, "diagnostics", "enabled")
            | self.generating
            | {
                "seed": self.cell.seed,
                "iteration": self.iteration,
                "objective": dict(objective),
                "ranker": ranker,
                "max_length": recipe.training.max_length,
                "max_prompt_length": recipe.training.max_prompt_length,
                "pocket": recipe.data.source == "pocket",
            }
        )
        answer = {"answer": self.stages["answer"]} if "answer" in self.stages else {}
        inputs = (
            {"policy": self.policy, "data": self.shared["data"]}
            | dict(history)
            | self.ranker
            | answer
        )
        self.add(
            "diagnostics",
            settings,
            {name: key for name, key in inputs.items() if key},
            {"ranker": paths} if paths else None,
        )
