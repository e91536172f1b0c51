"""From answers to preference pairs. Stage ``select``: which prompts, and which two of their
answers, the ranker is asked about (by `harness.rankers.pairs`). Stage ``rank``: responses →
preference pairs. Stage ``pairs.merge`` joins the pairs of several iterations.

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

import torch

from harness.model.attention import PackedPrompt
from harness.model.chat import encode_prompt
from harness.model.logprobs import response_logps
from harness.model.policy import load_policy
from harness.model.probes import response_states, reward_ensemble
from harness.rankers.pairs import (
    PAIR_RULES,
    SELECTORS,
    Choice,
    Choices,
    PairRule,
    Row,
    read_candidates,
)
from harness.rankers.ranker import RankContext, Ranked, RankItem
from harness.rankers.registry import rank_texts
from harness.records import (
    HarnessError,
    Pair,
    StageOutcome,
    StageTask,
    Tally,
    read_jsonl,
    request_seed,
    write_jsonl,
)
from harness.study.tasks import RankTask, SelectTask
from harness.train.batching import encode_pairs
from harness.train.objectives import PAIR, explore_roles

Role = Literal["winner", "loser", "middle", "absent"]


# -- select ----------------------------------------------------------------------------------------


def select(task: StageTask[SelectTask]) -> StageOutcome:
    """Write selected.jsonl, one row a prompt: prompt_id and the names of its two candidates.
    Prompts with fewer than two different answers, and those that the selector does not want
    labelled, are counted in the record.
    """
    settings, tally = task.settings, Tally(task.stage, "prompts")
    seed = request_seed(settings.seed, settings.iteration, "select")
    rows: list[Row] = []
    names: list[list[str]] = []
    for row in read_candidates(task.inputs, False, settings.y):
        different: dict[str, str] = {}
        for name, text in row.candidates.texts.items():
            different.setdefault(text, name)
        several = len(different) > 1
        tally.meet(row.candidates.prompt.id, "ok" if several else "one answer")
        rows += [row] if several else []
        names += [[*different.values()]] if several else []
    selector = SELECTORS[settings.selector]
    measure = {"logps": _with_logps, "rewards": _with_rewards}[selector.reads]
    found = selector.choose(measure(task, rows, names, seed), settings, seed)
    for prompt, reason in found.reasons.items():
        tally.leave_out(reason, prompt)
    written = [
        {"prompt_id": row.candidates.prompt.id, "names": [own[place] for place in duel]}
        for row, own in zip(rows, names, strict=True)
        if (duel := found.duels.get(row.candidates.prompt.id))
    ]
    write_jsonl(task.out / "selected.jsonl", written)
    summary = {"prompts": tally.read, "selected": len(written)}
    return StageOutcome(len(written), summary=summary, left_out=tally.left_out())


def _packed(tokenizer: Any, row: Row) -> PackedPrompt:
    """The prompt with what was drawn for it, equal tokens once."""
    prompt = encode_prompt(tokenizer, row.candidates.prompt.messages)
    drawn = dict.fromkeys(row.drawn[name].ids for name in row.candidates.texts)
    return PackedPrompt(tuple(prompt), tuple(drawn))


def _with_logps(
    task: StageTask[SelectTask], rows: Sequence[Row], names: Sequence[Sequence[str]], _seed: int
) -> list[Choices]:
    how = task.settings.scoring(task.runtime.device)
    policy = load_policy(task.inputs["policy"], **how)
    packed = [_packed(policy.tokenizer, row) for row in rows]
    budget = task.runtime.token_budget or 8192
    current = response_logps(policy.model, packed, token_budget=budget)
    model = load_policy(task.inputs["reference_policy"], **how).model
    reference = response_logps(model, packed, token_budget=budget)
    made = []
    for row, own, prompt, *values in zip(rows, names, packed, current, reference, strict=True):
        logps, former = (dict(zip(prompt.responses, one, strict=True)) for one in values)
        ids = {name: row.drawn[name].ids for name in row.candidates.texts}
        drawn = tuple(logps[one] for one in ids.values())
        ratios = tuple(logps[ids[name]] - former[ids[name]] for name in own)
        made.append(Choices(row.candidates.prompt.id, drawn, ratios))
    return made


def _with_rewards(
    task: StageTask[SelectTask], rows: Sequence[Row], names: Sequence[Sequence[str]], seed: int
) -> list[Choices]:
    """Rewards of an ensemble on the states of ``policy``, fitted to the pairs of earlier iterations
    (``pairs_01``, …); without any, its first weights.
    """
    settings = task.settings
    policy = load_policy(task.inputs["policy"], **settings.scoring(task.runtime.device))
    labelled = []
    for name in sorted(name for name in task.inputs if name.startswith("pairs_")):
        pairs = encode_pairs(policy.tokenizer, task.inputs[name], settings.limits)
        labelled += [row.packed(PAIR)[0] for row in pairs]
    asked = [_packed(policy.tokenizer, row) for row in rows]
    budget = task.runtime.token_budget or 8192
    states = response_states(policy.model, [*labelled, *asked], token_budget=budget)
    width = policy.model.config.get_text_config().hidden_size
    known = [pair for pair in states[: len(labelled)] if len(pair) == len(PAIR)]
    pairs_so_far = torch.stack(known) if known else torch.empty(0, len(PAIR), width)
    assert settings.ensemble is not None, "the plan gives one where rewards are read"
    probes = reward_ensemble(pairs_so_far, width, settings.ensemble, seed)
    made = []
    for row, own, prompt, one in zip(rows, names, asked, states[len(labelled) :], strict=True):
        places = [prompt.responses.index(row.drawn[name].ids) for name in own]
        made.append(Choices(row.candidates.prompt.id, rewards=probes(one[places])[..., 0]))
    return made


# -- rank ------------------------------------------------------------------------------------------


def run(task: StageTask[RankTask]) -> StageOutcome:
    """Write ``pairs.jsonl`` (records.Pair) in the rollout's prompt order; a judge's replies are
    kept beside it.

    Prompts without a pair (identical answers, all tied) are counted in the record; where none has
    one, nothing is trained on. Rows whose ranker failed keep the stage partial. Raises HarnessError
    where no labelled pair is one.
    """
    settings, rule = task.settings, PAIR_RULES[task.settings.rule]
    candidates = read_candidates(task.inputs, settings.offline, settings.y)
    if "select" in task.inputs:
        candidates = _selected(candidates, task.inputs["select"])
    rows = list(candidates)
    ranker = task.inputs.get("ranker")
    context = RankContext(settings, task.runtime, task.out, ranker, settings.judge)
    ranked = _score(rows, rule, context)
    pairs, tally = _pairs(rows, ranked, rule, task.stage)
    if settings.truncated_y == "ended":
        pairs = [replace(pair, drawn={}) for pair in pairs]
    if settings.placebo == "other_prompt":
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


def _score(rows: Sequence[Row], rule: PairRule, context: RankContext) -> list[Ranked]:
    """One Ranked per row, its scores as its candidates' texts; equal texts are scored once."""
    asked = [row.candidates for row in rows]
    if not rule.scored:
        return [Ranked((0.0,) * len(one.texts)) for one in asked]
    items = [
        RankItem(one.prompt.id, one.prompt.messages, tuple(dict.fromkeys(one.texts.values())))
        for one in asked
    ]
    result = []
    for one, item, ranked in zip(asked, items, rank_texts(items, context), strict=True):
        by_text = dict(zip(item.texts, ranked.scores, strict=False))
        scores = tuple(by_text.get(text, math.nan) for text in one.texts.values())
        result.append(replace(ranked, scores=scores) if ranked.status == "ok" else ranked)
    return result


def _pairs(
    rows: Sequence[Row], ranked: Sequence[Ranked], rule: PairRule, stage: str
) -> tuple[list[Pair], Tally]:
    pairs, tally = [], Tally(stage, "prompts")
    for row, found in zip(rows, ranked, strict=True):
        candidates, status = row.candidates, str(found.status)
        if status == "ok":
            scores = dict(zip(candidates.texts, found.scores, strict=True))
            choice = rule.choose(candidates, scores)
            status = choice.reason or "ok"
        tally.meet(candidates.prompt.id, status)
        if status == "ok":
            kept = {name: score for name, score in scores.items() if not math.isnan(score)}
            pairs.append(_pair(row, choice, kept if rule.scored else {}))
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
        result[place] = replace(
            pair,
            explore=other.explore,
            explore_more=other.explore_more,
            y_role=role_of(other.explore, pair.chosen, pair.rejected),
            drawn=drawn,
        )
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
            prompt = row["prompt_id"]
            seen[prompt] += 1
            times = seen[prompt]
            rows.append(row if times == 1 else {**row, "prompt_id": f"{prompt}#{times}"})
    write_jsonl(task.out / "pairs.jsonl", rows)
    return StageOutcome(rows=len(rows))
