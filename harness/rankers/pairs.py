"""How answers become preference pairs: what a pair may be chosen from (labelled answers and what
rollouts drew, by name); which prompts and which two of their answers the ranker is asked about, one
entry of ``SELECTORS`` each; and how scored candidates become a pair, one entry of ``PAIR_RULES``
each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.records import Prompt, read_jsonl, request_seed
from harness.study.tasks import SelectTask

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """A prompt's answers by name (in this order: chosen, rejected, y, y1, …, current, …, first, …),
    without failed samples.

    A sample may be empty: a policy that ends its turn at once has answered. An empty offline answer
    is a missing one.
    """

    prompt: Prompt
    texts: Mapping[str, str]


SOURCES = {"rollout": "y", "current": "current", "first": "first"}
"""Rollouts → how their samples are named among the candidates."""


@dataclass(frozen=True)
class Sample:
    """A drawn answer as text and token ids. truncated: it ran into its limit."""

    number: int
    text: str
    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Row:
    """A prompt's candidates, its drawn answers by name, and y: those that the term reads."""

    candidates: Candidates
    drawn: Mapping[str, Sample]
    y: Sequence[str]


def read_candidates(inputs: Mapping[str, Path], offline: bool, most_y: int | None) -> Iterator[Row]:
    """The portion's prompts in order, each with its candidates and the samples of y.

    offline, most_y: whether the labelled pair and how many of y's samples are candidates (None:
    all).
    """
    drawn = {name: _samples(inputs[name]) for name in SOURCES if name in inputs}
    for row in read_jsonl(inputs[next(iter(drawn))] / "prompts.jsonl"):
        prompt = Prompt(**row)
        labelled = {"chosen": prompt.chosen, "rejected": prompt.rejected}
        named = {
            f"{SOURCES[source]}{place or ''}": sample
            for source, samples in drawn.items()
            for place, sample in enumerate(samples.get(prompt.id, []))
        }
        y = [name for name in named if name.startswith("y")]
        texts = {name: text for name, text in labelled.items() if offline and text.strip()}
        wanted = y[:most_y]
        texts |= {name: one.text for name, one in named.items() if name in wanted or name not in y}
        yield Row(Candidates(prompt, texts), named, y)


def _samples(folder: Path) -> dict[str, list[Sample]]:
    """Samples by prompt in order; those that failed or were never drawn are left out."""
    found: dict[str, list[Sample]] = {}
    for row in read_jsonl(folder / "responses.jsonl"):
        if row["status"] in ("ok", "truncated"):
            ids, cut = tuple(row["token_ids"]), row["status"] == "truncated"
            sample = Sample(row["sample"], row["text"], ids, cut)
            found.setdefault(row["prompt_id"], []).append(sample)
    return {name: sorted(drawn, key=lambda one: one.number) for name, drawn in found.items()}


# -- selectors -------------------------------------------------------------------------------------
Duel = tuple[int, int]
"""Numbers of the two answers that are labelled."""


@dataclass(frozen=True)
class Choices:
    """What a selector sees of a prompt: no label. drawn: log π_t of every answer that was drawn
    (nats).

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

    duels: Mapping[str, Duel]
    reasons: Mapping[str, str]


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


# -- rules -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Choice:
    """Names of the winner and the loser, or None with the reason there is no pair."""

    chosen: str = ""
    rejected: str = ""
    reason: str = ""


def best_worst(candidates: Candidates, scores: Mapping[str, float]) -> Choice:
    """Best and worst of the candidates. Where all score the same the labelled pair decides; without
    one there is no pair.

    Ties keep the order of the labels: a tied best prefers chosen, then drawn answers in order, then
    rejected; a tied worst the reverse.
    """
    texts = candidates.texts
    names = sorted(texts, key=lambda name: name == "rejected")
    if len(set(texts.values())) < 2:
        return Choice(reason="identical" if len(texts) > 1 else "one answer")
    best = max(names, key=lambda name: scores[name])  # the first of equals
    others = [name for name in reversed(names) if texts[name] != texts[best]]
    worst = min(others, key=lambda name: scores[name])
    if scores[best] == scores[worst] and not {"chosen", "rejected"} & set(texts):
        return Choice(reason="tied")
    return Choice(best, worst)


def replace_offline(candidates: Candidates, scores: Mapping[str, float]) -> Choice:
    """y against y_w: better y becomes chosen, worse y becomes rejected, the other answer stays as
    given; even, the pair stays as given.
    """
    texts = candidates.texts
    if "chosen" not in texts or "rejected" not in texts or "y" not in texts:
        return offline(candidates, scores)
    choice = Choice("chosen", "rejected")
    if scores["y"] > scores["chosen"]:
        choice = Choice("y", "rejected")
    elif scores["y"] < scores["chosen"]:
        choice = Choice("chosen", "y")
    return Choice(reason="identical") if texts[choice.chosen] == texts[choice.rejected] else choice


def offline(candidates: Candidates, _scores: Mapping[str, float]) -> Choice:
    """The pair as the data give it; nothing is scored."""
    texts = candidates.texts
    if "chosen" not in texts or "rejected" not in texts:
        return Choice(reason="no offline pair")
    if texts["chosen"] == texts["rejected"]:
        return Choice(reason="identical")
    return Choice("chosen", "rejected")


@dataclass(frozen=True)
class PairRule:
    """choose: candidates and their scores → a choice. scored: whether the ranker is asked."""

    choose: Callable[[Candidates, Mapping[str, float]], Choice]
    scored: bool = True


PAIR_RULES: Mapping[str, PairRule] = {
    "best_worst": PairRule(best_worst),
    "replace": PairRule(replace_offline),
    "offline": PairRule(offline, scored=False),
}
"""Every pair rule by its name in ``pairs.rule``."""
