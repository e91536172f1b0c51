"""From a stage's inputs to ``Evidence``: which prompts, which answers, drawn and scored once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.model.chat import PromptTooLongError, encode_prompt, encode_response
from harness.model.generate import generate
from harness.model.logprobs import PackedPrompt, response_logps
from harness.model.policy import Policy, load_policy, model_folder
from harness.pocket import oracle
from harness.rankers.ranker import RankContext, RankItem
from harness.rankers.registry import rewards
from harness.records import GenerationRequest, Pair, Prompt, StageTask, read_jsonl, request_seed
from harness.stages.diagnostics.measures import Answer, Evidence
from harness.stages.diagnostics.passes import Sheet, TokenIds, score_sheets
from harness.study.tasks import DiagnosticsTask

EXTERNAL = ("oracle", "reward_model", "pairrm")
"""Rankers that score samples here; a judge is paid per call and left to its own stages."""


@dataclass(frozen=True)
class Sample:
    """One sampled answer as drawn."""

    ids: TokenIds
    text: str
    status: str


@dataclass
class Draft:
    """A prompt on its way to becoming Evidence. sheet None: the prompt is over max_prompt_length
    and is refused.
    """

    id: str
    messages: Sequence[Mapping[str, str]]
    sheet: Sheet | None
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    given: dict[str, TokenIds] = dataclasses.field(default_factory=dict)
    own: list[Sample] = dataclasses.field(default_factory=list)
    reference: list[Sample] = dataclasses.field(default_factory=list)
    previous: list[str] = dataclasses.field(default_factory=list)
    modes: list[tuple[TokenIds, float, float]] = dataclasses.field(default_factory=list)
    rewards: dict[str, float] = dataclasses.field(default_factory=dict)
    y_role: str = "absent"
    margin: float | None = None


class Policies:
    """The stage's policies by role, distinct checkpoints once."""

    def __init__(self, task: StageTask[DiagnosticsTask]) -> None:
        folders = {
            "theta": "policy",
            "reference": "reference_policy",
            "base": "base",
            "previous": "previous",
        }
        options = {
            "dtype": task.settings.dtype,
            "attention": task.settings.attention,
            "device": task.runtime.device,
        }
        self.names = {
            role: str(model_folder(task.inputs[name]).resolve()) for role, name in folders.items()
        }
        inputs = {
            str(model_folder(task.inputs[name]).resolve()): task.inputs[name]
            for name in folders.values()
        }
        self.loaders = {
            name: lambda folder=folder: load_policy(folder, **options)
            for name, folder in inputs.items()
        }

    def load(self, role: str) -> Policy:
        policy: Policy = self.loaders[self.names[role]]()
        return policy


def collect(task: StageTask[DiagnosticsTask], beta: float) -> dict[str, list[Evidence]]:
    """Evidence by split. Draws what no earlier stage has drawn: samples of the reference policy,
    and own ones if there is no ``answer`` input.
    """
    settings, policies = task.settings, Policies(task)
    theta = policies.load("theta")
    drafts = read_drafts(task, theta.tokenizer)
    heldout = [draft for draft in drafts["heldout"] if draft.sheet is not None]
    own = stored_samples(task.inputs.get("answer"), heldout) or draw(
        theta, heldout, settings, "theta"
    )
    previous = stored_samples(task.inputs.get("answer_previous"), heldout)
    reference = draw(policies.load("reference"), heldout, settings, "reference")
    for draft in heldout:
        draft.own, draft.reference = own.get(draft.id, []), reference.get(draft.id, [])
        draft.previous = [sample.text for sample in previous.get(draft.id, [])]
        for sample in (*draft.own, *draft.reference):
            draft.sheet.add(sample.ids, own=any(sample is mine for mine in draft.own))  # type: ignore[union-attr]
    budget = int(task.runtime.token_budget or 8192)
    if settings.pocket:
        add_modes(heldout, theta, budget)
    add_rewards(task, heldout)
    everything = [draft for rows in drafts.values() for draft in rows]
    score_sheets(
        [draft.sheet for draft in everything if draft.sheet is not None],
        policies.loaders,
        policies.names,
        token_budget=budget,
    )
    return {
        split: [evidence(draft, theta, beta) for draft in rows] for split, rows in drafts.items()
    }


# --- prompts and given answers --------------------------------------------------------------------


def read_drafts(task: StageTask[DiagnosticsTask], tokenizer: Any) -> dict[str, list[Draft]]:
    """The last ``prompts`` training pairs (with accumulated data: the iteration's own), and the
    first held-out and out-of-distribution prompts.
    """
    count = task.settings.prompts
    drafts: dict[str, list[Draft]] = {"train": []}
    for row in list(read_jsonl(task.inputs["pairs"] / "pairs.jsonl"))[-count:]:
        pair = Pair(**row)
        draft = new_draft(
            pair.prompt_id,
            pair.messages,
            {"chosen": pair.chosen, "rejected": pair.rejected, "explore": pair.explore},
            task,
            tokenizer,
        )
        draft.y_role = pair.y_role
        if pair.chosen_from in pair.scores and pair.rejected_from in pair.scores:
            draft.margin = pair.scores[pair.chosen_from] - pair.scores[pair.rejected_from]
        drafts["train"].append(draft)
    for split in ("heldout", "ood"):
        file = task.inputs["data"] / f"{split}.jsonl"
        prompts = [Prompt(**row) for row in read_jsonl(file)][:count] if file.is_file() else []
        drafts[split] = [
            new_draft(
                p.id, p.messages, {"chosen": p.chosen, "rejected": p.rejected}, task, tokenizer
            )
            for p in prompts
        ]
    return drafts


def new_draft(
    name: str,
    messages: Sequence[Mapping[str, str]],
    texts: Mapping[str, str],
    task: StageTask[DiagnosticsTask],
    tokenizer: Any,
) -> Draft:
    """Encode a prompt with its given answers, cut as in training."""
    settings = task.settings
    try:
        prompt_ids = encode_prompt(tokenizer, messages, settings.max_prompt_length)
    except PromptTooLongError:
        return Draft(name, messages, None, dict(texts))
    draft = Draft(name, messages, Sheet(tuple(prompt_ids)), dict(texts))
    limit = settings.max_length
    room = max(1, limit - len(prompt_ids)) if limit else 0
    for role, text in texts.items():
        if text and draft.sheet is not None:
            draft.given[role] = draft.sheet.add(encode_response(tokenizer, messages, text, room))
    return draft


# --- samples --------------------------------------------------------------------------------------


def stored_samples(folder: Path | None, drafts: Sequence[Draft]) -> dict[str, list[Sample]]:
    """Temperature-1 samples (sample 1 and up) that the answer stage kept, by prompt; empty if there
    is no such input.
    """
    wanted = {draft.id for draft in drafts}
    found: dict[str, list[Sample]] = {}
    if folder is None or not (folder / "heldout.jsonl").is_file():
        return found
    rows = [
        row
        for row in read_jsonl(folder / "heldout.jsonl")
        if row["sample"] > 0 and row["prompt_id"] in wanted
    ]
    for row in sorted(rows, key=lambda row: (row["prompt_id"], row["sample"])):
        if row["token_ids"] and row["status"] in ("ok", "truncated"):
            found.setdefault(row["prompt_id"], []).append(
                Sample(tuple(row["token_ids"]), row["text"], row["status"])
            )
    return found


def draw(
    policy: Policy, drafts: Sequence[Draft], settings: DiagnosticsTask, role: str
) -> dict[str, list[Sample]]:
    """Fresh samples at temperature 1, seeded by run seed, iteration, role, prompt and sample."""
    keys = [(draft, sample) for draft in drafts for sample in range(settings.samples)]
    requests = [
        GenerationRequest(
            draft.sheet.prompt_ids if draft.sheet else (),
            settings.max_new_tokens,
            temperature=1.0,
            seed=request_seed(
                settings.seed, settings.iteration, f"diagnostics.{role}", draft.id, sample
            ),
        )
        for draft, sample in keys
    ]
    found: dict[str, list[Sample]] = {}
    drawn = generate(
        policy, requests, batch_size=settings.generation_batch, backend=settings.backend
    )
    for (draft, _), answer in zip(keys, drawn, strict=True):
        if answer.status != "error" and answer.token_ids:
            found.setdefault(draft.id, []).append(
                Sample(tuple(answer.token_ids), answer.text, answer.status)
            )
    return found


def add_modes(drafts: Sequence[Draft], theta: Policy, token_budget: int) -> None:
    """The answers that have a reward (pocket world) with log π_θ; no other policy is asked for
    them.
    """
    modes = [
        [(text, reward) for text, reward in oracle.modes(draft.messages) if reward > 0]
        for draft in drafts
    ]
    rows = [
        PackedPrompt(
            draft.sheet.prompt_ids if draft.sheet else (),
            tuple(
                tuple(encode_response(theta.tokenizer, draft.messages, text)) for text, _ in listed
            ),
        )
        for draft, listed in zip(drafts, modes, strict=True)
    ]
    for draft, listed, row, logps in zip(
        drafts,
        modes,
        rows,
        response_logps(theta.model, rows, token_budget=token_budget),
        strict=True,
    ):
        draft.modes = [
            (ids, reward, logp)
            for (_, reward), ids, logp in zip(listed, row.responses, logps, strict=True)
        ]


def add_rewards(task: StageTask[DiagnosticsTask], drafts: Sequence[Draft]) -> None:
    """External rewards of the samples, where the ranker is one that may be asked here."""
    settings = task.settings.ranker
    if settings.kind not in EXTERNAL:
        return
    items = [
        RankItem(
            draft.id,
            tuple(draft.messages),
            tuple(dict.fromkeys(s.text for s in (*draft.own, *draft.reference))),
        )
        for draft in drafts
    ]
    context = RankContext(
        settings, task.runtime, task.out / "ranker.jsonl", task.inputs.get("ranker")
    )
    for draft, item, ranked in zip(
        drafts,
        items,
        rewards(items, [d.texts.get("chosen", "") for d in drafts], context),
        strict=True,
    ):
        if ranked.status == "ok":
            draft.rewards = dict(zip(item.texts, ranked.scores, strict=True))


# --- evidence -------------------------------------------------------------------------------------


def evidence(draft: Draft, policy: Policy, beta: float) -> Evidence:
    """The scored draft as numbers."""
    sheet = draft.sheet
    if sheet is None:
        return Evidence(draft.id, beta, y_role=draft.y_role, margin=draft.margin, refused=True)

    def answer(ids: TokenIds, text: str, status: str = "ok") -> Answer:
        logps = {role: values[ids] for role, values in sheet.logps.items()}
        kl = {role: values[ids] for role, values in sheet.kl.items() if ids in values}
        return Answer(
            text,
            ids,
            status,
            ids[-1] in policy.stop_token_ids,
            logps,
            kl,
            sheet.entropy.get(ids, 0.0),
            draft.rewards.get(text),
        )

    given = {role: answer(ids, draft.texts[role]) for role, ids in draft.given.items()}
    bodies = [ids[:-1] if ids[-1] in policy.stop_token_ids else ids for ids, _, _ in draft.modes]
    decoded = policy.tokenizer.batch_decode(bodies, skip_special_tokens=True) if bodies else []
    return Evidence(
        draft.id,
        beta,
        chosen=given.get("chosen"),
        rejected=given.get("rejected"),
        explore=given.get("explore"),
        own=[answer(sample.ids, sample.text, sample.status) for sample in draft.own],
        reference=[answer(sample.ids, sample.text, sample.status) for sample in draft.reference],
        previous=draft.previous,
        modes=[
            (text, reward, logp)
            for text, (_, reward, logp) in zip(decoded, draft.modes, strict=True)
        ],
        best=max((reward for _, reward, _ in draft.modes), default=None),
        y_role=draft.y_role,
        margin=draft.margin,
    )
