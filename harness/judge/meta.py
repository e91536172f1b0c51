"""How far a judge can be trusted: its noise floor, its position flips, and its agreement with
labelled pairs.

Preferences are as in AlpacaEval: 1..2, 2 when ``output_2`` is better, None when the judge gave
none.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evaluate.annotator import OFFICIAL_ANNOTATOR, Pair, annotate
from harness.judge.client import JudgeClient
from harness.records import HarnessError, read_jsonl
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime


@dataclass(frozen=True)
class LabelledPair:
    """Two outputs and which of them people agreed is better (1 or 2)."""

    id: str
    instruction: str
    output_1: str
    output_2: str
    label: int
    group: str = ""
    """Of which agreement is told apart too."""


JUDGE_BENCH = {"A>B": 1, "B>A": 2}
"""Its labels."""


def read_labelled_pairs(path: Path) -> list[LabelledPair]:
    """Pairs of a JSON list with ``input``, ``output_1``, ``output_2``, ``label`` (LLMBar's form),
    whose ids are positions; or of JSONL with ``pair_id``, ``source``, ``question``, ``response_A``,
    ``response_B``, ``label`` (JudgeBench's, Tan et al. 2024, arXiv 2410.12784).
    """
    lines = path.suffix == ".jsonl"
    rows = list(read_jsonl(path)) if lines else json.loads(path.read_text(encoding="utf-8"))
    wanted = "input, output_1, output_2 and label (1 or 2)"
    if lines:
        wanted = "pair_id, source, question, response_A, response_B and label (A>B or B>A)"
    pairs: dict[str, LabelledPair] = {}
    for position, row in enumerate(rows):
        try:
            pair = _judge_bench(row) if lines else _llmbar(str(position), row)
        except (KeyError, TypeError):
            pair = None
        if pair is None or pair.label not in (1, 2):
            raise HarnessError(f"{path}: item {position} is no labelled pair; it needs {wanted}")
        if pair.id in pairs:
            raise HarnessError(f"{path}: pair_id {pair.id} occurs more than once")
        pairs[pair.id] = pair
    return list(pairs.values())


def _llmbar(name: str, row: Mapping[str, Any]) -> LabelledPair:
    return LabelledPair(name, row["input"], row["output_1"], row["output_2"], row["label"])


def _judge_bench(row: Mapping[str, Any]) -> LabelledPair:
    """Its sources are data sets, of which MMLU-Pro comes by subject and counts as one."""
    source = str(row["source"])
    group = "mmlu-pro" if source.startswith("mmlu-pro") else source
    texts = (row["question"], row["response_A"], row["response_B"])
    return LabelledPair(str(row["pair_id"]), *texts, JUDGE_BENCH[row["label"]], group)


def noise_floor(repeats: Mapping[str, Sequence[float | None]]) -> dict[str, float | int | None]:
    """Spread of repeated judgments of the same answer, in the unit of the judgments.

    sd = sqrt(mean over items of the variance (n - 1) of the item's repeats); ``sd_of_mean`` = sd /
    sqrt(items): how far the mean of the set moves by judge noise alone, judged once. Items with
    fewer than two judgments are left out and counted.
    """
    kept = [[value for value in values if value is not None] for values in repeats.values()]
    kept = [values for values in kept if len(values) >= 2]
    left_out = len(repeats) - len(kept)
    counts: dict[str, float | int | None] = {"items": len(kept), "left_out": left_out}
    if not kept:
        return counts | dict.fromkeys(("sd", "sd_of_mean", "unanimous_share"))
    sd = math.sqrt(statistics.fmean(statistics.variance(values) for values in kept))
    unanimous = sum(1 for values in kept if len(set(values)) == 1) / len(kept)
    spread = {"sd": sd, "sd_of_mean": sd / math.sqrt(len(kept)), "unanimous_share": unanimous}
    return counts | spread


def position_flips(
    usual: Mapping[str, float | None],
    flipped: Mapping[str, float | None],
    switched: Mapping[str, bool],
) -> dict[str, float | int | None]:
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
    rates: dict[str, float | int | None] = {"flip_rate": None, "second_place_advantage": None}
    if both:
        rates = {"flip_rate": flips / both, "second_place_advantage": statistics.fmean(advantages)}
    return {"pairs": both, "missing": len(usual) - both, "flips": flips} | rates


def agreement(
    pairs: Sequence[LabelledPair],
    usual: Mapping[str, float | None],
    flipped: Mapping[str, float | None],
) -> dict[str, float | int | None]:
    """Share of labelled pairs on which the judge agrees with people: per order, their mean, and
    with the two orders averaged.

    A tie counts half. Pairs without a verdict are left out of the share they miss in and counted.
    """
    orders = [_accuracy(pairs, usual), _accuracy(pairs, flipped)]
    averaged: dict[str, float | None] = {}
    for pair in pairs:
        a, b = usual.get(pair.id), flipped.get(pair.id)
        averaged[pair.id] = None if a is None or b is None else (a + b) / 2.0
    known = [value for value in orders if value is not None]
    first = sum(1 for pair in pairs if pair.label == 1)
    return {
        "pairs": len(pairs),
        "missing": sum(1 for value in averaged.values() if value is None),
        "accuracy_usual": orders[0],
        "accuracy_flipped": orders[1],
        "accuracy": statistics.fmean(known) if known else None,
        "accuracy_averaged": _accuracy(pairs, averaged),
        "accuracy_by_both": both_orders(pairs, usual, flipped),
        "majority_label_share": max(first, len(pairs) - first) / len(pairs) if pairs else None,
    }


def both_orders(
    pairs: Sequence[LabelledPair],
    usual: Mapping[str, float | None],
    flipped: Mapping[str, float | None],
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
        found = {
            flip: annotate(asked, client, annotator=annotator, repeats=repeats, flipped=flip)
            for flip in (False, True)
        }
        costs = client.costs
    first: dict[bool, dict[str, float | None]] = {False: {}, True: {}}
    spread: dict[str, list[float | None]] = {}
    for flip, notes in found.items():
        for pair in pairs:
            said = [notes[pair.id, repeat].preference for repeat in range(repeats)]
            spread[f"{pair.id}/{flip}"] = said
            first[flip][pair.id] = said[0]
    switched = {pair.id: found[False][pair.id, 0].switched for pair in pairs}
    groups = sorted({pair.group for pair in pairs if pair.group})
    orders = first[False], first[True]
    return {
        "agreement": agreement(pairs, *orders),
        "by_group": {
            name: both_orders([pair for pair in pairs if pair.group == name], *orders)
            for name in groups
        },
        "position": position_flips(*orders, switched),
        "noise": noise_floor(spread),
        "costs": costs,
    }


def _better(preference: float) -> int:
    """1 or 2: the preferred output; 0: a tie."""
    return 0 if preference == 1.5 else 1 + int(preference > 1.5)


def _accuracy(pairs: Sequence[LabelledPair], verdicts: Mapping[str, float | None]) -> float | None:
    scores = []
    for pair in pairs:
        value = verdicts.get(pair.id)
        if value is not None:
            better = _better(value)
            scores.append(0.5 if better == 0 else float(better == pair.label))
    return statistics.fmean(scores) if scores else None
