"""How far a judge can be trusted: its noise floor, its position flips, and its agreement with
labelled pairs.

Preferences are as in AlpacaEval: 1..2, 2 when ``output_2`` is better, None when the judge gave
none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.files import file_rows
from harness.evaluate.annotator import OFFICIAL_ANNOTATOR, Pair, annotate
from harness.judge.client import JudgeClient
from harness.records import HarnessError
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

Preferences = Mapping[str, float | None]
"""Pair → the judge's preference."""
Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class LabelledPair:
    """Two outputs and which is better (1 or 2). group: of which agreement is told apart too."""

    id: str
    instruction: str
    output_1: str
    output_2: str
    label: int
    group: str = ""


LLMBAR = ("input", "output_1", "output_2", "label")
JUDGE_BENCH = ("pair_id", "source", "question", "response_A", "response_B", "label")


def read_labelled_pairs(path: Path) -> list[LabelledPair]:
    """Pairs of a JSON list in LLMBar's form, whose ids are positions; or of JSONL in JudgeBench's
    (Tan et al. 2024, arXiv 2410.12784), whose sources are data sets, of which MMLU-Pro comes by
    subject and counts as one.
    """
    lines = path.suffix == ".jsonl"
    names, labels = (JUDGE_BENCH, ("A>B", "B>A")) if lines else (LLMBAR, (1, 2))
    pairs: dict[str, LabelledPair] = {}
    for position, row in enumerate(file_rows(path, object_of_rows=True)):
        try:
            *known, asked, first, second, label = (row.values[name] for name in names)
            number = 1 + labels.index(label)
        except (KeyError, TypeError, ValueError):
            wanted = f"{', '.join(names[:-1])} and label ({labels[0]} or {labels[1]})"
            raise HarnessError(
                f"{path}: item {position} is no labelled pair; it needs {wanted}"
            ) from None
        name, source = map(str, known or (position, ""))
        if name in pairs:
            raise HarnessError(f"{path}: pair_id {name} occurs more than once")
        group = "mmlu-pro" if source.startswith("mmlu-pro") else source
        pairs[name] = LabelledPair(name, asked, first, second, number, group)
    return list(pairs.values())


def noise_floor(repeats: Mapping[str, Sequence[float | None]]) -> Figures:
    """Spread of repeated judgments of the same answer, in the unit of the judgments.

    sd = sqrt(mean over items of the variance (n - 1) of the item's repeats); ``sd_of_mean`` = sd /
    sqrt(items): how far the mean of the set moves by judge noise alone, judged once. Items with
    fewer than two judgments are left out and counted.
    """
    known = [[value for value in values if value is not None] for values in repeats.values()]
    kept = [values for values in known if len(values) >= 2]
    found: Figures = {"items": len(kept), "left_out": len(repeats) - len(kept)}
    if not kept:
        return found | dict.fromkeys(("sd", "sd_of_mean", "unanimous_share"))
    sd = math.sqrt(statistics.fmean(statistics.variance(values) for values in kept))
    unanimous = sum(len(set(values)) == 1 for values in kept) / len(kept)
    return found | {"sd": sd, "sd_of_mean": sd / math.sqrt(len(kept)), "unanimous_share": unanimous}


def position_flips(
    usual: Preferences, flipped: Preferences, switched: Mapping[str, bool]
) -> Figures:
    """How often the preferred output changes when the two change places, and how much the second
    place is favoured.

    Both mappings hold preferences about the same ``output_2``, whatever the order shown;
    ``switched``: the usual order showed ``output_2`` first. ``flip_rate``: share of pairs whose
    verdicts differ (a tie, exactly 1.5, agrees with nothing but a tie). ``second_place_advantage``:
    mean preference for what stands second, minus one half (0: no position bias).
    """
    flips, advantages = 0, []
    for name, a in usual.items():
        b = flipped.get(name)
        if a is not None and b is not None:
            flips += _better(a) != _better(b)
            advantages.append((b - a if switched[name] else a - b) / 2.0)
    both = len(advantages)
    return {
        "pairs": both,
        "missing": len(usual) - both,
        "flips": flips,
        "flip_rate": flips / both if both else None,
        "second_place_advantage": statistics.fmean(advantages) if both else None,
    }


def agreement(pairs: Sequence[LabelledPair], usual: Preferences, flipped: Preferences) -> Figures:
    """Share of labelled pairs on which the judge agrees with people: per order, their mean, and
    with the two orders averaged.

    A tie counts half. Pairs without a verdict are left out of the share they miss in and counted.
    """
    averaged: dict[str, float | None] = {}
    for pair in pairs:
        a, b = usual.get(pair.id), flipped.get(pair.id)
        averaged[pair.id] = None if a is None or b is None else (a + b) / 2.0
    orders = [_accuracy(pairs, usual), _accuracy(pairs, flipped)]
    known = [value for value in orders if value is not None]
    first = sum(pair.label == 1 for pair in pairs)
    return {
        "pairs": len(pairs),
        "missing": list(averaged.values()).count(None),
        "accuracy_usual": orders[0],
        "accuracy_flipped": orders[1],
        "accuracy": statistics.fmean(known) if known else None,
        "accuracy_averaged": _accuracy(pairs, averaged),
        "accuracy_by_both": both_orders(pairs, usual, flipped),
        "majority_label_share": max(first, len(pairs) - first) / len(pairs) if pairs else None,
    }


def _better(preference: float) -> int:
    """1 or 2: the preferred output; 0: a tie."""
    return 0 if preference == 1.5 else 1 + int(preference > 1.5)


def _accuracy(pairs: Sequence[LabelledPair], verdicts: Preferences) -> float | None:
    scores = []
    for pair in pairs:
        value = verdicts.get(pair.id)
        if value is not None:
            better = _better(value)
            scores.append(0.5 if better == 0 else float(better == pair.label))
    return statistics.fmean(scores) if scores else None


def both_orders(
    pairs: Sequence[LabelledPair], usual: Preferences, flipped: Preferences
) -> float | None:
    """JudgeBench's accuracy: share of all pairs on which right verdicts outnumber wrong ones over
    the two orders. A tie or a missing verdict is neither; a pair without any is not right.
    """
    right = 0
    for pair in pairs:
        said = [_better(value) for value in (usual.get(pair.id), flipped.get(pair.id)) if value]
        right += said.count(pair.label) > said.count(3 - pair.label)
    return right / len(pairs) if pairs else None


def meta_evaluate(
    pairs: Sequence[LabelledPair],
    judge: JudgeSettings,
    runtime: Runtime,
    folder: Path,
    *,
    annotator: str = OFFICIAL_ANNOTATOR,
    repeats: int = 1,
) -> dict[str, Any]:
    """Judge every pair in both orders, ``repeats`` times, with alpaca_eval's annotator prompt.

    Returns {"agreement", "by_group", "position", "noise", "costs"}; all but the noise come from the
    first repeat. Replies stay in ``folder``'s journal, so that an interrupted evaluation goes on
    where it stopped.
    """
    asked = [Pair(pair.id, pair.instruction, pair.output_1, pair.output_2) for pair in pairs]
    with JudgeClient(judge, runtime, folder) as client:
        found = [
            annotate(asked, client, annotator=annotator, repeats=repeats, flipped=flip)
            for flip in (False, True)
        ]
        costs = client.costs
    said = {
        (pair.id, flip): [notes[pair.id, repeat].preference for repeat in range(repeats)]
        for flip, notes in enumerate(found)
        for pair in pairs
    }
    usual, flipped = ({pair.id: said[pair.id, flip][0] for pair in pairs} for flip in (0, 1))
    switched = {pair.id: found[0][pair.id, 0].switched for pair in pairs}
    groups: dict[str, list[LabelledPair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.group):
        groups.setdefault(pair.group, []).append(pair)
    return {
        "agreement": agreement(pairs, usual, flipped),
        "by_group": {
            name: both_orders(group, usual, flipped) for name, group in groups.items() if name
        },
        "position": position_flips(usual, flipped, switched),
        "noise": noise_floor({f"{name}/{flip}": values for (name, flip), values in said.items()}),
        "costs": costs,
    }
