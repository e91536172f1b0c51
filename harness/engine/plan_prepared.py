"""Stages that every run of a recipe shares: data, base checkpoint, benchmark files, ranker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.study.settings import Recipe

if TYPE_CHECKING:
    from harness.engine.plan import Builder


def add_prepared(builder: Builder, recipe: Recipe) -> dict[str, str]:
    """Role (data, base, benchmarks, and ranker or explorer where there is one) → key."""
    threads = {"threads": recipe.training.threads}
    defining, paths = builder.located(recipe.data.model_dump())
    pocket = recipe.data.source == "pocket"
    if pocket:
        defining |= {"rows": recipe.pocket.rows, "best_style_share": recipe.pocket.best_style_share}
    data = builder.add(
        "data.pocket" if pocket else "data.files", defining, {}, recipe, located=paths
    )
    if pocket:
        base = builder.add(
            "base.pocket", recipe.pocket.model_dump() | threads, {"data": data}, recipe
        )
        # no judge: a benchmark's gamed-baseline rows come with it, whoever judges later
        bench_settings = {
            "seed": recipe.data.seed,
            "mt_bench": {"limit": recipe.evaluation.mt_bench.limit},
            "alpaca_eval": {"limit": recipe.evaluation.alpaca_eval.limit},
            "academic": {"limit": recipe.evaluation.academic.limit},
        }
        benchmarks = builder.add("benchmarks.pocket", bench_settings, {"data": data}, recipe)
    else:
        base = _checkpoint(builder, recipe, recipe.model.source, recipe.model.revision)
        evaluation = {
            name: getattr(recipe.evaluation, name).model_dump()
            for name in ("mt_bench", "alpaca_eval", "academic")
        }
        defining, paths = builder.located({"benchmarks": recipe.evaluation.benchmarks} | evaluation)
        benchmarks = builder.add("benchmarks.files", defining, {}, recipe, located=paths)
    prepared = {"data": data, "base": base, "benchmarks": benchmarks}
    if recipe.ranker.kind == "reward_model" and not recipe.ranker.model:
        prepared["ranker"] = builder.add(
            "ranker.train",
            recipe.ranker_training.model_dump() | threads,
            {"data": data, "base": base},
            recipe,
        )
    elif recipe.ranker.kind in ("reward_model", "pairrm"):
        prepared["ranker"] = _checkpoint(
            builder, recipe, recipe.ranker.model, recipe.ranker.revision, needs_template=False
        )
    if recipe.exploration.checkpoint:
        prepared["explorer"] = _checkpoint(builder, recipe, recipe.exploration.checkpoint, "")
    return prepared


def _checkpoint(
    builder: Builder, recipe: Recipe, source: str, revision: str, needs_template: bool = True
) -> str:
    settings = recipe.model.model_dump(exclude={"generation_batch"}) | {
        "source": source,
        "revision": revision,
        "needs_template": needs_template,
    }
    defining, paths = builder.located(settings)
    return builder.add("base.checkpoint", defining, {}, recipe, located=paths)
