"""Which prompts, and which two of their answers, the ranker is asked about: one entry of
``SELECTORS`` each. A selector sees no label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from harness.records import request_seed
from harness.study.tasks import SelectTask

if TYPE_CHECKING:
    from torch import Tensor

Duel = tuple[int, int]
"""Numbers of the two answers that are labelled."""


@dataclass(frozen=True)
class Choices:
    """What a selector sees of a prompt. drawn: log π_t of every answer that was drawn (nats).

    Of the N different ones, in order: ratios, r = log π_t − log π_ref, and rewards (E, N) of the
    ensemble.
    """

    prompt: str
    drawn: Sequence[float] = ()
    ratios: Sequence[float] = ()
    rewards: Tensor | None = None


@dataclass(frozen=True)
class Selected:
    """Prompt → the two answers, and prompt → why it is not labelled."""

    duels: Mapping[str, Duel] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


def apl(rows: Sequence[Choices], settings: SelectTask, seed: int) -> Selected:  # noqa: ARG001
    """Prompts of the highest predictive entropy −E_{y~π_t}[log π_t(y|x)], and of these the ones
    with the largest implicit reward margin |r(y) − r(y')|, over all pairs of their samples. Muldrew
    et al. 2024, arXiv 2402.08114, Algorithm 1.

    ``entropy_share`` of the prompts are kept, then ``margin_share`` of these; the reward is beta r,
    whose beta changes no order. Where π_t is π_ref every margin is 0 and the first are taken.
    """
    uncertain = _largest(rows, entropy, settings.entropy_share)
    margins = {row.prompt: _margin(row) for row in uncertain}
    certain = _largest(uncertain, lambda row: margins[row.prompt][0], settings.margin_share)
    reasons = {row.prompt: "of low predictive entropy" for row in rows}
    reasons |= {row.prompt: "of a small implicit reward margin" for row in uncertain}
    kept = {row.prompt: margins[row.prompt][1] for row in certain}
    return Selected(kept, {name: why for name, why in reasons.items() if name not in kept})


def entropy(row: Choices) -> float:
    """−Σ log π_t(y) / n over the n answers that were drawn, nats."""
    return -sum(row.drawn) / len(row.drawn)


def _margin(row: Choices) -> tuple[float, Duel]:
    """The largest margin (nats) and its pair, the first of equals."""
    pairs = combinations(range(len(row.ratios)), 2)
    margins = {pair: abs(row.ratios[pair[0]] - row.ratios[pair[1]]) for pair in pairs}
    best = max(margins, key=lambda pair: margins[pair])
    return margins[best], best


def _largest(
    rows: Sequence[Choices], value: Callable[[Choices], float], share: float
) -> list[Choices]:
    """The share of the rows with the largest values, at least one, in their order."""
    count = max(1, math.ceil(share * len(rows)))
    best = sorted(range(len(rows)), key=lambda i: (-value(rows[i]), i))[:count]
    return [rows[i] for i in sorted(best)]


def thompson(rows: Sequence[Choices], settings: SelectTask, seed: int) -> Selected:  # noqa: ARG001
    """Double Thompson sampling: the favourite of a head drawn from the ensemble of rewards against
    the favourite of the next drawn head that has another. Liu et al. 2024, arXiv 2411.01493,
    Algorithm 1 (explore and exploit).

    Every prompt draws heads of its own. Where all heads have one favourite nothing is labelled.
    Left out: the synthetic pairs that the paper mixes in.
    """
    duels: dict[str, Duel] = {}
    reasons: dict[str, str] = {}
    for row in rows:
        assert row.rewards is not None
        generator = np.random.default_rng(request_seed(seed, row.prompt, "thompson"))
        favourites = row.rewards.argmax(1).tolist()
        first, *others = [favourites[head] for head in generator.permutation(len(favourites))]
        second = next((one for one in others if one != first), None)
        if second is None:
            reasons[row.prompt] = "all heads have one favourite"
        else:
            duels[row.prompt] = (first, second)
    return Selected(duels, reasons)


@dataclass(frozen=True)
class Selector:
    """choose: rows with at least two answers → what is labelled. reads: what the stage works out of
    every answer: ``logps`` under π_t and π_ref, or ``rewards`` of an ensemble fitted to the pairs
    so far. share: of the prompts that it keeps at most.
    """

    choose: Callable[[Sequence[Choices], SelectTask, int], Selected]
    reads: str
    share: Callable[[SelectTask], float] = lambda _settings: 1.0


SELECTORS: Mapping[str, Selector] = {
    "apl": Selector(apl, "logps", lambda asked: asked.entropy_share * asked.margin_share),
    "thompson": Selector(thompson, "rewards"),
}
"""Every selector by its name in ``pairs.selector``."""
