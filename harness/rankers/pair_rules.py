"""From a prompt's scored candidates to its preference pair: one entry of ``PAIR_RULES`` each.

Ties keep the order of the labels: a tied best prefers chosen, then drawn answers in order, then
rejected; a tied worst the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.records import Prompt


@dataclass(frozen=True)
class Candidates:
    """A prompt's answers by name (in this order: chosen, rejected, y, y1, …, current, …, first, …),
    without failed samples.

    A sample may be empty: a policy that ends its turn at once has answered. An empty offline answer
    is a missing one.
    """

    prompt: Prompt
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """Names of the winner and the loser, or None with the reason there is no pair."""

    chosen: str = ""
    rejected: str = ""
    reason: str = ""


def best_worst(candidates: Candidates, scores: Mapping[str, float]) -> Choice:
    """Best and worst of the candidates. Where all score the same the labelled pair decides; without
    one there is no pair.
    """
    texts = candidates.texts
    names = sorted(texts, key=lambda name: name == "rejected")
    if len(set(texts.values())) < 2:
        return Choice(reason="identical" if len(texts) > 1 else "one answer")
    best = max(names, key=lambda name: scores[name])  # the first of equals
    others = [name for name in reversed(names) if texts[name] != texts[best]]
    worst = min(others, key=lambda name: scores[name])
    labelled = {"chosen", "rejected"} & set(texts)
    if scores[best] == scores[worst] and not labelled:
        return Choice(reason="tied")
    return Choice(best, worst)


def replace_offline(candidates: Candidates, scores: Mapping[str, float]) -> Choice:
    """y against y_w: better y becomes chosen, worse y becomes rejected, the other answer stays as
    given; even, the pair stays as given.
    """
    texts = candidates.texts
    if "chosen" not in texts or "rejected" not in texts:
        return Choice(reason="no offline pair")
    if "y" not in texts or scores["y"] == scores["chosen"]:
        choice = Choice("chosen", "rejected")
    else:
        better = scores["y"] > scores["chosen"]
        choice = Choice("y", "rejected") if better else Choice("chosen", "y")
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
    """choose: candidates and their scores → a choice; its docstring says which. scored: whether the
    ranker is asked.
    """

    choose: Callable[[Candidates, Mapping[str, float]], Choice]
    scored: bool = True


PAIR_RULES: Mapping[str, PairRule] = {
    "best_worst": PairRule(best_worst),
    "replace": PairRule(replace_offline),
    "offline": PairRule(offline, scored=False),
}
"""Every pair rule by its name in ``pairs.rule``."""
