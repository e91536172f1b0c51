"""Stage ``select``: which prompts, and which two of their answers, the ranker is asked about.

Written: selected.jsonl, one row a prompt: prompt_id, names (of the two candidates, as
`harness.rankers.pairs` has them, and the selectors).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.model.chat import encode_prompt
from harness.model.logprobs import response_logps
from harness.model.packing import PackedPrompt
from harness.model.policy import load_policy
from harness.model.probes import response_states, reward_ensemble
from harness.rankers.pairs import SELECTORS, Choices, Row, read_candidates
from harness.records import StageOutcome, StageTask, Tally, request_seed, write_jsonl
from harness.study.tasks import SelectTask
from harness.train.batching import encode_pairs
from harness.train.objectives import PAIR


def run(task: StageTask[SelectTask]) -> StageOutcome:
    """Select among the drawn answers. Prompts with fewer than two different ones, and those that
    the selector does not want labelled, are counted in the record.
    """
    settings, tally = task.settings, Tally(task.stage, "prompts")
    seed = request_seed(settings.seed, settings.iteration, "select")
    rows: list[Row] = []
    names: list[list[str]] = []
    for row in read_candidates(task.inputs, False, settings.y):
        tally.read += 1
        different: dict[str, str] = {}
        for name, text in row.candidates.texts.items():
            different.setdefault(text, name)
        if len(different) < 2:
            tally.leave_out("one answer", row.candidates.prompt.id)
            continue
        rows.append(row)
        names.append([*different.values()])
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
        pairs = [(logps[ids[name]], former[ids[name]]) for name in own]
        made.append(Choices(row.candidates.prompt.id, drawn, tuple(a - b for a, b in pairs)))
    return made


def _with_rewards(
    task: StageTask[SelectTask], rows: Sequence[Row], names: Sequence[Sequence[str]], seed: int
) -> list[Choices]:
    """Rewards of an ensemble on the states of ``policy``, fitted to the pairs of earlier iterations
    (``pairs_01``, …); without any, its first weights.
    """
    policy = load_policy(task.inputs["policy"], **task.settings.scoring(task.runtime.device))
    budget = task.runtime.token_budget or 8192
    labelled = []
    for name in sorted(name for name in task.inputs if name.startswith("pairs_")):
        pairs = encode_pairs(policy.tokenizer, task.inputs[name], task.settings.limits)
        labelled += [row.packed(PAIR)[0] for row in pairs]
    asked = [_packed(policy.tokenizer, row) for row in rows]
    states = response_states(policy.model, [*labelled, *asked], token_budget=budget)
    width = policy.model.config.get_text_config().hidden_size
    known = [pair for pair in states[: len(labelled)] if len(pair) == len(PAIR)]
    pairs_so_far = torch.stack(known) if known else torch.empty(0, len(PAIR), width)
    asked_of = task.settings.ensemble
    assert asked_of is not None, "the plan gives one where rewards are read"
    probes = reward_ensemble(pairs_so_far, width, asked_of, seed)
    made = []
    for row, own, prompt, one in zip(rows, names, asked, states[len(labelled) :], strict=True):
        places = [prompt.responses.index(row.drawn[name].ids) for name in own]
        made.append(Choices(row.candidates.prompt.id, rewards=probes(one[places])[..., 0]))
    return made
