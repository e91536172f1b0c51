"""What a pair may be chosen from: labelled answers and what rollouts drew, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.rankers.pair_rules import Candidates
from harness.records import Prompt, read_jsonl

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
