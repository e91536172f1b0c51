"""Packages that a recipe needs and that are not always installed."""

from __future__ import annotations

from harness.study.optimizers import check_package
from harness.study.settings import Recipe


def check_packages(recipe: Recipe) -> None:
    """Raise HarnessError where training in 4 bits or an attention kernel lacks its package."""
    lora, attention = recipe.training.lora, recipe.model.attention
    if lora and lora.base != "whole":
        check_package("training.lora.base nf4", "bitsandbytes", "training.lora.base: whole")
    if "/" in attention:
        check_package(f"model.attention {attention}", "kernels", "model.attention: sdpa")
