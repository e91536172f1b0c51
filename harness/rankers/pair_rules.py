"""From a prompt's scored candidates to its preference pair: one entry of ``PAIR_RULES`` each.

Ties keep the offline order: a tied best prefers chosen, then y, then rejected; a tied worst prefers
rejected, then later samples, then y, then chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from harness.records import Prompt


@dataclass(frozen=True)
class Candidates:
    """A prompt's answers by name (insertion order: chosen, rejected, y, y1, …), without failed
    samples.

    A sample may be empty: a policy that ends its turn at once has answered. An empty offline answer
    is a missing one.
    """

    prompt: Prompt
    texts: Mapping[str, str]

    @property
    def samples(self) -> dict[str, str]:
        return {
            name: text for name, text in self.texts.items() if name not in ("chosen", "rejected")
        }


@dataclass(frozen=True)
class Choice:
    """Names of the winner and the loser, or None with the reason there is no pair."""

    chosen: str = ""
    rejected: str = ""
    reason: str = ""


def best_worst(candidates: Candidates, scores: Mapping[str, float]) -> Choice:
    """Best and worst of everything: {y_w, y_l} and every sample."""
    return _extremes(candidates.texts, scores)


def samples_only(candidates: Candidates, scores: Mapping[str, float]) -> Choice:
    """Best and worst of the policy's own samples; no pair where they all score the same."""
    choice = _extremes(candidates.samples, scores)
    if choice.chosen and scores[choice.chosen] == scores[choice.rejected]:
        return Choice(reason="tied")
    return choice


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


def _extremes(texts: Mapping[str, str], scores: Mapping[str, float]) -> Choice:
    names = sorted(texts, key=_preference)
    if len(set(texts.values())) < 2:
        return Choice(reason="identical" if len(texts) > 1 else "one answer")
    best = max(names, key=lambda name: scores[name])  # the first of equals
    others = [name for name in reversed(names) if texts[name] != texts[best]]
    return Choice(best, min(others, key=lambda name: scores[name]))


def _preference(name: str) -> tuple[int, int]:
    if name == "chosen":
        return (0, 0)
    if name == "rejected":
        return (2, 0)
    return (1, int(name[1:] or 0))


@dataclass(frozen=True)
class PairRule:
    """choose: candidates and the scores of those it looks at → a choice; its docstring says which.
    looks_at: all candidates, the policy's samples, or none (nothing is scored). samples: the fewest
    samples a prompt it needs.
    """

    choose: Callable[[Candidates, Mapping[str, float]], Choice]
    looks_at: Literal["all", "samples", "none"] = "all"
    samples: int = 0


PAIR_RULES: Mapping[str, PairRule] = {
    "best_worst": PairRule(best_worst),
    "replace": PairRule(replace_offline),
    "samples_only": PairRule(samples_only, "samples", samples=2),
    "offline": PairRule(offline, "none"),
}
"""Every pair rule by its name in ``pairs.rule``."""
