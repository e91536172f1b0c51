"""Responses → preference pairs. Stage ``rank``; ``pairs.merge`` joins the pairs of several
iterations.

Candidates of a prompt are its labelled answers ("chosen", "rejected"), samples of y ("y", "y1", …;
what the exploration term reads), of the current policy ("current", "current1", …) and of the first
("first", …), as many as ``pairs`` asks for. Equal texts are one candidate. Ties: see
`harness.rankers.pairs`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from harness.rankers.pairs import PAIR_RULES, Candidates, Choice, PairRule, Row, read_candidates
from harness.rankers.ranker import RankContext, Ranked, RankItem
from harness.rankers.registry import rank_texts
from harness.records import (
    HarnessError,
    Pair,
    StageOutcome,
    StageTask,
    Tally,
    read_jsonl,
    write_jsonl,
)
from harness.study.tasks import RankTask
from harness.train.objectives import PAIR, explore_roles

Role = Literal["winner", "loser", "middle", "absent"]


def run(task: StageTask[RankTask]) -> StageOutcome:
    """Write ``pairs.jsonl`` (records.Pair) in the rollout's prompt order; a judge's replies are
    kept beside it.

    Settings: kind, rule, placebo, and the ranker's own. Prompts without a pair (identical answers,
    all tied) are counted in the record; where none has one, nothing is trained on. Rows whose
    ranker failed keep the stage partial. Raises HarnessError where no labelled pair is one.
    """
    rule = PAIR_RULES[task.settings.rule]
    settings = task.settings
    candidates = read_candidates(task.inputs, settings.offline, settings.y)
    if "select" in task.inputs:
        candidates = _selected(candidates, task.inputs["select"])
    rows = list(candidates)
    context = RankContext(
        task.settings, task.runtime, task.out, task.inputs.get("ranker"), task.settings.judge
    )
    ranked = _score([row.candidates for row in rows], rule, context)
    pairs, tally = _pairs(rows, ranked, rule, task.stage)
    if task.settings.truncated_y == "ended":
        pairs = [replace(pair, drawn={}) for pair in pairs]
    if task.settings.placebo == "other_prompt":
        pairs = _other_prompt(pairs, tally)
    errors = sum(found.status == "error" for found in ranked)
    if not pairs and not errors and not rule.scored:
        reasons = {one.reason: one.count for one in tally.left_out()}
        raise HarnessError(f"no prompt of the portion has a labelled pair ({reasons})")
    write_jsonl(task.out / "pairs.jsonl", pairs)
    roles = Counter(pair.y_role for pair in pairs)
    summary = {"pairs": len(pairs), "y_role": dict(sorted(roles.items()))}
    return StageOutcome(len(pairs), errors, dict(context.costs), summary, tally.left_out())


def _selected(rows: Iterable[Row], folder: Path) -> Iterator[Row]:
    """The rows that were selected, with the two answers that were."""
    chosen = {row["prompt_id"]: row["names"] for row in read_jsonl(folder / "selected.jsonl")}
    for row in rows:
        if names := chosen.get(row.candidates.prompt.id):
            texts = {name: row.candidates.texts[name] for name in names}
            yield replace(row, candidates=replace(row.candidates, texts=texts))


def _score(rows: Sequence[Candidates], rule: PairRule, context: RankContext) -> list[Ranked]:
    """One Ranked per row, its scores as ``row.texts``; equal texts are scored once."""
    if not rule.scored:
        return [Ranked((0.0,) * len(row.texts)) for row in rows]
    items = [
        RankItem(row.prompt.id, row.prompt.messages, tuple(dict.fromkeys(row.texts.values())))
        for row in rows
    ]
    found = rank_texts(items, context)
    result = []
    for row, item, ranked in zip(rows, items, found, strict=True):
        by_text = dict(zip(item.texts, ranked.scores, strict=False))
        scores = tuple(by_text.get(text, math.nan) for text in row.texts.values())
        result.append(replace(ranked, scores=scores) if ranked.status == "ok" else ranked)
    return result


def _pairs(
    rows: Sequence[Row], ranked: Sequence[Ranked], rule: PairRule, stage: str
) -> tuple[list[Pair], Tally]:
    pairs, tally = [], Tally(stage, "prompts")
    for each, found in zip(rows, ranked, strict=True):
        row = each.candidates
        tally.read += 1
        if found.status != "ok":
            tally.leave_out(found.status, row.prompt.id)
            continue
        scores = dict(zip(row.texts, found.scores, strict=True))
        choice = rule.choose(row, scores)
        if choice.reason:
            tally.leave_out(choice.reason, row.prompt.id)
            continue
        kept = {name: score for name, score in scores.items() if not math.isnan(score)}
        pairs.append(_pair(each, choice, kept if rule.scored else {}))
    return pairs, tally


def _pair(row: Row, choice: Choice, scores: Mapping[str, float]) -> Pair:
    texts, prompt = row.candidates.texts, row.candidates.prompt
    y = [row.drawn[name].text for name in row.y]
    named = {"chosen": choice.chosen, "rejected": choice.rejected}
    named |= dict(zip(explore_roles(len(y)), row.y, strict=True)) if y else {}
    drawn = {role: row.drawn[name] for role, name in named.items() if name in row.drawn}
    chosen, rejected = texts[choice.chosen], texts[choice.rejected]
    return Pair(
        prompt.id,
        prompt.messages,
        chosen,
        rejected,
        explore=y[0] if y else "",
        chosen_from=choice.chosen,
        rejected_from=choice.rejected,
        scores=scores,
        y_role=role_of(y[0] if y else None, chosen, rejected),
        explore_more=tuple(y[1:]),
        drawn={role: one.ids for role, one in drawn.items() if one.truncated},
    )


def role_of(explore: str | None, chosen: str, rejected: str) -> Role:
    """What became of y; absent: there is none (an empty answer is an answer)."""
    if explore is None:
        return "absent"
    if explore == chosen:
        return "winner"
    return "loser" if explore == rejected else "middle"


def _other_prompt(pairs: Sequence[Pair], tally: Tally) -> list[Pair]:
    """Placebo: every pair that has a y gets the y of the next such pair, the last that of the
    first. A single such pair has no other, and is left out.
    """
    places = [i for i, pair in enumerate(pairs) if pair.y_role != "absent"]
    result = list(pairs)
    if len(places) == 1:
        alone = result.pop(places[0])
        tally.leave_out("no other prompt's y for the placebo", alone.prompt_id)
        return result
    for place, source in zip(places, [*places[1:], places[0]], strict=True):
        pair, other = pairs[place], pairs[source]
        drawn = {role: ids for role, ids in pair.drawn.items() if role in PAIR}
        drawn |= {role: ids for role, ids in other.drawn.items() if role not in PAIR}
        role = role_of(other.explore, pair.chosen, pair.rejected)
        more = other.explore_more
        y = replace(pair, explore=other.explore, explore_more=more, y_role=role)
        result[place] = replace(y, drawn=drawn)
    return result


def merge(task: StageTask[RankTask]) -> StageOutcome:
    """Stage ``pairs.merge``: the pairs of all inputs, in the order of their names, as one
    ``pairs.jsonl``.

    A prompt met again gets ``#2``, ``#3``, … after its id, so that every row has its own reference
    log-probs.
    """
    seen: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for name in sorted(task.inputs, key=lambda name: (len(name), name)):  # 99 before 100
        for row in read_jsonl(task.inputs[name] / "pairs.jsonl"):
            seen[row["prompt_id"]] += 1
            times = seen[row["prompt_id"]]
            rows.append(row if times == 1 else {**row, "prompt_id": f"{row['prompt_id']}#{times}"})
    write_jsonl(task.out / "pairs.jsonl", rows)
    return StageOutcome(rows=len(rows))
