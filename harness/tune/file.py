"""The YAML of a search: what varies over which range, what is maximised, which seeds prune, which
seeds judge the winner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.records import HarnessError
from harness.study.sections import Section
from harness.study.study import validate
from harness.study.yaml import load_yaml


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
        """Whether a value lies inside, bounds included."""
        if self.choice:
            return any(
                value == option and isinstance(value, bool) == isinstance(option, bool)
                for option in self.choice
            )
        low, high = self.log_uniform or self.uniform
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        )


class Metric(Section):
    """A stored metric, averaged over items, at the last iteration."""

    benchmark: str = "heldout"
    metric: str = "reward"
    direction: Literal["maximize", "minimize"] = "maximize"


class TuneFile(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Names the folder below ``results/`` and the Optuna study."""
    fork_of: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")] = ""
    """Name of an earlier search whose finished trials are taken over where they lie inside this
    one's space.
    """
    question: str = ""
    recipe: str
    """A file, or the name of one in ``recipes/`` beside the search."""
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
    fresh_seeds: list[Annotated[int, Field(ge=0)]]
    """Seeds no trial saw: the best settings and the default are compared on them."""
    trials: Annotated[int, Field(gt=0)] = 20
    """Finished trials in all, pruned and failed ones included; those taken over by a fork are not
    counted.
    """
    hours: Annotated[float, Field(ge=0)] = 0.0
    """Start no trial once trials ran for this long (wall-clock, all invocations together); 0: no
    limit.
    """
    max_cost_usd: Annotated[float, Field(ge=0)] = 0.0
    """Start no trial once judging for the trials cost this much (the finalists come on top); 0: no
    limit.
    """
    trial_timeout_s: Annotated[float, Field(ge=0)] = 0.0
    """A trial that runs longer fails; 0: no limit."""
    pruner: Literal["wilcoxon", "median", "halving", "none"] = "wilcoxon"
    """wilcoxon pairs a trial with the best one on the same seeds and items, after each seed. median
    and halving compare the mean over seeds after each iteration (with one iteration: after each
    seed).
    """
    sampler_seed: Annotated[int, Field(ge=0)] = 0
    """Of Optuna's sampler; with one worker the trials follow from it."""

    @model_validator(mode="after")
    def _fresh(self) -> TuneFile:
        if set(self.seeds) & set(self.fresh_seeds):
            raise ValueError(
                "fresh_seeds must be seeds that no trial saw; both lists hold "
                f"{sorted(set(self.seeds) & set(self.fresh_seeds))}"
            )
        if self.fork_of == self.name:
            raise ValueError(
                f"fork_of names the search itself ({self.name!r}); a fork has a name of its own"
            )
        if not self.space:
            raise ValueError("space is empty; give at least one key to search")
        return self


def load_tune(path: Path) -> TuneFile:
    """Read and check a search. Raises HarnessError with file, line and key."""
    data, lines = load_yaml(path)
    if not isinstance(data, dict):
        raise HarnessError(f"{path}:1: a search is a mapping with name, recipe, space and seeds")
    return validate(TuneFile, data, path, lines)
