"""The objective of one iteration as a stage's settings hold it."""

from __future__ import annotations

from typing import Any

from harness.study.settings import Recipe, at_iteration
from harness.train import objectives


def resolve_objective(recipe: Recipe, iteration: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The objective at one iteration in canonical form, with its numbers α, β, c and κ = 2c/β.

    An exploration objective whose coefficient is 0 is DPO: the plan writes it so, and both share
    one stage.
    """
    total = recipe.loop.iterations + (1 if recipe.loop.warmup_dpo else 0)
    settings = recipe.objective
    beta = at_iteration(settings.beta, iteration, total)
    alpha = (
        0.0
        if recipe.loop.warmup_dpo and iteration == 1
        else at_iteration(settings.alpha, iteration, total)
    )
    found = objectives.resolve_objective(
        settings.name,
        alpha=alpha,
        beta=beta,
        convention=settings.convention,
        placebo=settings.placebo,
        params=settings.params,
    )
    numbers = {"alpha": found.alpha, "beta": beta, "c": found.c, "kappa": found.kappa}
    if objectives.OBJECTIVES[settings.name].explores and found.c == 0:
        return {
            "name": "dpo",
            "alpha": 0.0,
            "beta": beta,
            "convention": "alpha_beta",
            "placebo": "none",
            "params": {},
        }, numbers
    objective = {
        "name": settings.name,
        "alpha": alpha,
        "beta": beta,
        "convention": settings.convention,
        "placebo": settings.placebo,
        "params": dict(settings.params),
    }
    return objective, numbers
