"""What a pair may be chosen from (labelled answers and what rollouts drew, by name), and how scored
candidates become a preference pair: one entry of ``PAIR_RULES`` each.

Ties keep the order of the labels: a tied best prefers chosen, then drawn answers in order, then
rejected; a tied worst the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.records import Prompt, read_jsonl


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
    """A prompt's candidates, its drawn answers by name, and which of these are y's, that the
    exploration term reads.
    """

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
            found.setdefault(row["prompt_id"], []).append(
                Sample(row["sample"], row["text"], ids, cut)
            )
    return {name: sorted(drawn, key=lambda one: one.number) for name, drawn in found.items()}


# -- the rules -------------------------------------------------------------------------------------
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
