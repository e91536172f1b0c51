"""Responses → preference pairs. Stage ``rank``; ``pairs.merge`` joins the pairs of several
iterations.

Candidates of a prompt are its offline answers ("chosen", "rejected") and the policy's samples ("y",
"y1", "y2", …; y, the first, is the exploration response). Equal texts are one candidate. Ties keep
the offline order: a tied best prefers chosen, then y, then rejected; a tied worst prefers rejected,
then later samples, then y, then chosen.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from harness.rankers.pair_rules import PAIR_RULES, Candidates, PairRule
from harness.rankers.ranker import RankContext, Ranked, RankItem
from harness.rankers.registry import rank_texts
from harness.records import (
    HarnessError,
    Pair,
    Prompt,
    StageOutcome,
    StageTask,
    read_jsonl,
    write_jsonl,
)
from harness.study.tasks import RankTask

Role = Literal["winner", "loser", "middle", "absent"]


def run(task: StageTask[RankTask]) -> StageOutcome:
    """Write ``pairs.jsonl`` (records.Pair) in the rollout's prompt order; a judge's replies are
    kept beside it.

    Settings: kind, rule, placebo, and the ranker's own. Prompts without a pair (identical answers,
    all tied) are counted in the summary. Rows whose ranker failed keep the stage partial.
    """
    name = task.settings.rule
    rule = PAIR_RULES[name]
    rows = [_candidates(prompt, samples) for prompt, samples in _read(task)]
    if max((len(row.samples) for row in rows), default=0) < rule.samples:
        raise HarnessError(
            f"pairs.rule {name} needs at least {rule.samples} samples per prompt: set "
            f"exploration.samples to {rule.samples} or more and decoding to sample"
        )
    context = RankContext(
        task.settings, task.runtime, task.out, task.inputs.get("ranker"), task.settings.judge
    )
    ranked = _score(rows, rule, context)
    pairs, counts = _pairs(rows, ranked, rule)
    if task.settings.truncated_y == "as_drawn":
        pairs = _as_drawn(pairs, task.inputs["rollout"] / "responses.jsonl")
    if task.settings.placebo == "other_prompt":
        pairs = _other_prompt(pairs)
    errors = counts.pop("error", 0)
    if not pairs and not errors:
        raise HarnessError(
            f"no prompt gave a preference pair ({dict(counts)}); the policy's samples and the "
            "offline answers do not differ in score"
        )
    write_jsonl(task.out / "pairs.jsonl", pairs)
    roles = Counter(pair.y_role for pair in pairs)
    summary = {
        "pairs": len(pairs),
        "dropped": dict(sorted(counts.items())),
        "y_role": dict(sorted(roles.items())),
    }
    return StageOutcome(rows=len(pairs), errors=errors, costs=dict(context.costs), summary=summary)


def _read(task: StageTask[RankTask]) -> list[tuple[Prompt, list[tuple[int, str]]]]:
    """The portion's prompts in order, each with its (sample, text); samples that failed or were
    never drawn are left out.
    """
    folder = task.inputs["rollout"]
    samples: dict[str, list[tuple[int, str]]] = {}
    for row in read_jsonl(folder / "responses.jsonl"):
        if row["status"] in ("ok", "truncated"):
            samples.setdefault(row["prompt_id"], []).append((row["sample"], row["text"]))
    return [
        (Prompt(**row), sorted(samples.get(row["id"], [])))
        for row in read_jsonl(folder / "prompts.jsonl")
    ]


def _candidates(prompt: Prompt, samples: Sequence[tuple[int, str]]) -> Candidates:
    offline_pair = {
        name: text
        for name, text in (("chosen", prompt.chosen), ("rejected", prompt.rejected))
        if text.strip()
    }
    return Candidates(prompt, offline_pair | {_name(sample): text for sample, text in samples})


def _score(rows: Sequence[Candidates], rule: PairRule, context: RankContext) -> list[Ranked]:
    """One Ranked per row, its scores in the order of ``row.texts``; equal texts of a row are scored
    once.
    """
    if rule.looks_at == "none":
        return [Ranked((0.0,) * len(row.texts)) for row in rows]
    wanted = [row.samples if rule.looks_at == "samples" else row.texts for row in rows]
    items = [
        RankItem(row.prompt.id, row.prompt.messages, tuple(dict.fromkeys(texts.values())))
        for row, texts in zip(rows, wanted, strict=True)
    ]
    found = rank_texts(items, context)
    result = []
    for row, item, ranked in zip(rows, items, found, strict=True):
        by_text = dict(zip(item.texts, ranked.scores, strict=False))
        result.append(
            replace(
                ranked, scores=tuple(by_text.get(text, float("nan")) for text in row.texts.values())
            )
            if ranked.status == "ok"
            else ranked
        )
    return result


def _pairs(
    rows: Sequence[Candidates], ranked: Sequence[Ranked], rule: PairRule
) -> tuple[list[Pair], Counter[str]]:
    pairs, counts = [], Counter[str]()
    for row, found in zip(rows, ranked, strict=True):
        if found.status != "ok":
            counts[found.status] += 1
            continue
        scores = dict(zip(row.texts, found.scores, strict=True))
        choice = rule.choose(row, scores)
        if choice.reason:
            counts[choice.reason] += 1
            continue
        chosen, rejected, explore = (
            row.texts[choice.chosen],
            row.texts[choice.rejected],
            row.texts.get("y"),
        )
        kept = {name: score for name, score in scores.items() if not math.isnan(score)}
        if rule.looks_at == "none":
            kept = {}
        pairs.append(
            Pair(
                prompt_id=row.prompt.id,
                messages=row.prompt.messages,
                chosen=chosen,
                rejected=rejected,
                explore=explore or "",
                chosen_from=choice.chosen,
                rejected_from=choice.rejected,
                scores=kept,
                y_role=role_of(explore, chosen, rejected),
            )
        )
    return pairs, counts


def _as_drawn(pairs: Sequence[Pair], responses: Path) -> list[Pair]:
    """The pairs with the drawn token ids of their truncated samples."""
    cut = {
        (row["prompt_id"], _name(row["sample"])): row["token_ids"]
        for row in read_jsonl(responses)
        if row["status"] == "truncated"
    }
    result = []
    for pair in pairs:
        names = {"chosen": pair.chosen_from, "rejected": pair.rejected_from, "explore": "y"}
        found = {role: cut.get((pair.prompt_id, name)) for role, name in names.items()}
        result.append(replace(pair, drawn={role: ids for role, ids in found.items() if ids}))
    return result


def _name(sample: int) -> str:
    return f"y{sample}" if sample else "y"


def role_of(explore: str | None, chosen: str, rejected: str) -> Role:
    """What became of y: the winner, the loser, neither, or absent when there is none (an empty
    answer is an answer).
    """
    if explore is None:
        return "absent"
    if explore == chosen:
        return "winner"
    return "loser" if explore == rejected else "middle"


def _other_prompt(pairs: Sequence[Pair]) -> list[Pair]:
    """Placebo: every pair that has a y gets the y of the next such pair, the last that of the
    first.
    """
    places = [i for i, pair in enumerate(pairs) if pair.y_role != "absent"]
    if len(places) < 2:
        raise HarnessError(
            "objective.placebo other_prompt needs at least two prompts with an exploration response"
        )
    result = list(pairs)
    for place, source in zip(places, [*places[1:], places[0]], strict=True):
        pair, given = pairs[place], pairs[source]
        drawn = {role: ids for role, ids in pair.drawn.items() if role != "explore"}
        drawn |= {role: ids for role, ids in given.drawn.items() if role == "explore"}
        role = role_of(given.explore, pair.chosen, pair.rejected)
        result[place] = replace(pair, explore=given.explore, y_role=role, drawn=drawn)
    return result


def merge(task: StageTask[RankTask]) -> StageOutcome:
    """Stage ``pairs.merge``: the pairs of all inputs, in the order of their names, as one
    ``pairs.jsonl``.

    A prompt met again gets ``#2``, ``#3``, … after its id, so that every row has its own reference
    log-probs.
    """
    seen: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for name in sorted(task.inputs):
        for row in read_jsonl(task.inputs[name] / "pairs.jsonl"):
            seen[row["prompt_id"]] += 1
            times = seen[row["prompt_id"]]
            rows.append(row if times == 1 else {**row, "prompt_id": f"{row['prompt_id']}#{times}"})
    if len(task.inputs) == 1 and len(rows) == len(seen):
        shutil.copyfile(next(iter(task.inputs.values())) / "pairs.jsonl", task.out / "pairs.jsonl")
    else:
        write_jsonl(task.out / "pairs.jsonl", rows)
    return StageOutcome(rows=len(rows))
