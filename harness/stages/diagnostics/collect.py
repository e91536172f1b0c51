"""From a stage's inputs to ``Evidence``: which prompts, which answers, drawn and scored once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

from harness.model.chat import PromptTooLongError, encode_prompt, encode_response
from harness.model.checkpoint_files import model_folder
from harness.model.generate import engine_of, generate
from harness.model.logprobs import response_logps
from harness.model.packing import PackedPrompt
from harness.model.policy import Policy, load_policy
from harness.pocket import oracle
from harness.rankers.ranker import RankContext, RankItem
from harness.rankers.registry import RANKERS, rewards
from harness.records import (
    Generation,
    GenerationRequest,
    Pair,
    Prompt,
    StageTask,
    read_jsonl,
    request_seed,
)
from harness.stages.diagnostics.measures import Answer, Evidence
from harness.stages.diagnostics.passes import Sheet, TokenIds, score_sheets
from harness.study.tasks import DiagnosticsTask

ROLES = {"theta": "policy", "reference": "reference_policy", "base": "base", "previous": "previous"}
"""Role of a policy → the stage's input that holds it."""


@dataclass
class Draft:
    """A prompt on its way to Evidence. sheet None: it is over max_prompt_length."""

    id: str
    messages: Sequence[Mapping[str, str]]
    sheet: Sheet | None
    texts: dict[str, str] = field(default_factory=dict)
    given: dict[str, TokenIds] = field(default_factory=dict)
    own: list[Generation] = field(default_factory=list)
    reference: list[Generation] = field(default_factory=list)
    previous: list[str] = field(default_factory=list)
    modes: list[tuple[TokenIds, float, float]] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    y_role: str = "absent"
    margin: float | None = None


class Policies:
    """The stage's policies by role, distinct checkpoints once."""

    def __init__(self, task: StageTask[DiagnosticsTask]) -> None:
        settings = self.settings = task.settings
        self.runtime = task.runtime
        how = settings.scoring(task.runtime.device)
        if not settings.by_vllm:
            how["attention"] = settings.attention
        self.names: dict[str, str] = {}
        self.loaders: dict[str, Callable[..., Policy]] = {}
        for role, name in ROLES.items():
            checkpoint = str(model_folder(task.inputs[name]).resolve())
            self.names[role] = checkpoint
            self.loaders[checkpoint] = partial(load_policy, task.inputs[name], **how)

    def load(self, role: str) -> Policy:
        """The policy of a role (theta, reference, base, previous)."""
        return self.loaders[self.names[role]]()

    def sampler(self, role: str) -> Policy:
        """The same to draw from: without its weights where vLLM loads them."""
        return self.loaders[self.names[role]](weights=not self.settings.by_vllm)


def collect(task: StageTask[DiagnosticsTask], beta: float) -> dict[str, list[Evidence]]:
    """Evidence by split. Draws what no earlier stage has drawn: samples of the reference policy,
    and own ones if there is no ``answer`` input.
    """
    settings, policies = task.settings, Policies(task)
    drafts = read_drafts(task, policies.sampler("theta").tokenizer)
    heldout = [draft for draft in drafts["heldout"] if draft.sheet is not None]
    own = stored_samples(task.inputs.get("answer"), heldout)
    if not own:
        own = draw(policies, heldout, "theta")
    previous = stored_samples(task.inputs.get("answer_previous"), heldout)
    reference = draw(policies, heldout, "reference")
    theta = policies.load("theta")
    for draft in heldout:
        draft.own, draft.reference = own.get(draft.id, []), reference.get(draft.id, [])
        draft.previous = [sample.text for sample in previous.get(draft.id, [])]
        assert draft.sheet is not None
        for sample in draft.own:
            draft.sheet.add(sample.token_ids, own=True)
        for sample in draft.reference:
            draft.sheet.add(sample.token_ids)
    budget = task.runtime.token_budget or 8192
    if settings.pocket:
        add_modes(heldout, theta, budget, settings.ranker.world.best_style_worth)
    add_rewards(task, heldout)
    sheets = [draft.sheet for draft in chain(*drafts.values()) if draft.sheet is not None]
    score_sheets(sheets, policies.loaders, policies.names, token_budget=budget)
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
        texts = {"chosen": pair.chosen, "rejected": pair.rejected, "explore": pair.explore}
        draft = new_draft(pair.prompt_id, pair.messages, texts, task, tokenizer, pair.drawn)
        draft.y_role = pair.y_role
        if pair.chosen_from in pair.scores and pair.rejected_from in pair.scores:
            draft.margin = pair.scores[pair.chosen_from] - pair.scores[pair.rejected_from]
        drafts["train"].append(draft)
    for split in ("heldout", "ood"):
        file = task.inputs["data"] / f"{split}.jsonl"
        drafts[split] = []
        for row in islice(read_jsonl(file), count) if file.is_file() else ():
            prompt = Prompt(**row)
            texts = {"chosen": prompt.chosen, "rejected": prompt.rejected}
            drafts[split].append(new_draft(prompt.id, prompt.messages, texts, task, tokenizer))
    return drafts


def new_draft(
    name: str,
    messages: Sequence[Mapping[str, str]],
    texts: Mapping[str, str],
    task: StageTask[DiagnosticsTask],
    tokenizer: Any,
    drawn: Mapping[str, Sequence[int]] | None = None,
) -> Draft:
    """A prompt with its given answers, cut as in training. drawn: ids of those that were cut."""
    settings = task.settings
    try:
        prompt_ids = encode_prompt(tokenizer, messages, settings.max_prompt_length)
    except PromptTooLongError:
        return Draft(name, messages, None, dict(texts))
    sheet = Sheet(tuple(prompt_ids))
    draft = Draft(name, messages, sheet, dict(texts))
    room = max(1, settings.max_length - len(prompt_ids))
    for role, text in texts.items():
        if text:
            ids = (drawn or {}).get(role) or encode_response(tokenizer, messages, text, room)
            draft.given[role] = sheet.add(ids[:room])
    return draft


# --- samples --------------------------------------------------------------------------------------


def stored_samples(folder: Path | None, drafts: Sequence[Draft]) -> dict[str, list[Generation]]:
    """Temperature-1 samples that the answer stage kept, by prompt; none without that input."""
    wanted = {draft.id for draft in drafts}
    found: dict[str, list[Generation]] = {}
    if folder is None or not (folder / "heldout.jsonl").is_file():
        return found
    rows = [row for row in read_jsonl(folder / "heldout.jsonl") if row["sample"] > 0]
    for row in sorted(rows, key=lambda row: (row["prompt_id"], row["sample"])):
        usable = row["token_ids"] and row["status"] in ("ok", "truncated")
        if usable and row["prompt_id"] in wanted:
            sample = Generation(tuple(row["token_ids"]), row["text"], row["status"])
            found.setdefault(row["prompt_id"], []).append(sample)
    return found


def draw(policies: Policies, drafts: Sequence[Draft], role: str) -> dict[str, list[Generation]]:
    """Fresh samples of a role's policy at temperature 1, each with a seed of its own."""
    settings, policy = policies.settings, policies.sampler(role)
    names, requests = [], []
    for draft, sample in product(drafts, range(settings.samples)):
        assert draft.sheet is not None
        identity = (settings.iteration, f"diagnostics.{role}", draft.id, sample)
        seed = request_seed(settings.seed, *identity)
        ids, most = draft.sheet.prompt_ids, settings.max_new_tokens
        requests.append(GenerationRequest(ids, most, temperature=1.0, seed=seed))
        names.append(draft.id)
    found: dict[str, list[Generation]] = {}
    with engine_of(policy, settings, policies.runtime) as engine:
        batch = settings.generation_batch
        drawn = generate(policy, requests, batch_size=batch, engine=engine)
    for name, answer in zip(names, drawn, strict=True):
        if answer.status != "error" and answer.token_ids:
            found.setdefault(name, []).append(answer)
    return found


def add_modes(
    drafts: Sequence[Draft], theta: Policy, token_budget: int, best_style_worth: float = 1.0
) -> None:
    """The right answers (pocket world; no other has a reward) with log π_θ."""
    listed_rewards, rows = [], []
    for draft in drafts:
        assert draft.sheet is not None
        modes = oracle.modes(draft.messages, best_style_worth)
        right = [mode for mode in modes if oracle.is_correct(draft.messages, mode[0])]
        responses = [encode_response(theta.tokenizer, draft.messages, text) for text, _ in right]
        rows.append(PackedPrompt(draft.sheet.prompt_ids, tuple(map(tuple, responses))))
        listed_rewards.append([reward for _, reward in right])
    scored = response_logps(theta.model, rows, token_budget=token_budget)
    for draft, listed, row, logps in zip(drafts, listed_rewards, rows, scored, strict=True):
        draft.modes = list(zip(row.responses, listed, logps, strict=True))


def add_rewards(task: StageTask[DiagnosticsTask], drafts: Sequence[Draft]) -> None:
    """External rewards of the samples, where the ranker is one that may be asked here."""
    settings = task.settings.ranker
    if RANKERS[settings.kind].asks_judge:  # paid per call: left to its own stages
        return
    items = []
    for draft in drafts:
        texts = dict.fromkeys(sample.text for sample in (*draft.own, *draft.reference))
        items.append(RankItem(draft.id, tuple(draft.messages), tuple(texts)))
    journal, checkpoint = task.out / "ranker.jsonl", task.inputs.get("ranker")
    context = RankContext(settings, task.runtime, journal, checkpoint)
    found = rewards(items, [draft.texts.get("chosen", "") for draft in drafts], context)
    for draft, item, ranked in zip(drafts, items, found, strict=True):
        if ranked.status == "ok":
            draft.rewards = dict(zip(item.texts, ranked.scores, strict=True))


# --- evidence -------------------------------------------------------------------------------------


def evidence(draft: Draft, policy: Policy, beta: float) -> Evidence:
    """The scored draft as numbers."""
    sheet = draft.sheet
    if sheet is None:
        return Evidence(draft.id, beta, y_role=draft.y_role, margin=draft.margin, refused=True)

    def answer(ids: TokenIds, text: str, status: str = "ok") -> Answer:
        return Answer(
            text,
            ids,
            status,
            ended=ids[-1] in policy.stop_token_ids,
            logps={role: values[ids] for role, values in sheet.logps.items()},
            kl={role: values[ids] for role, values in sheet.kl.items() if ids in values},
            entropy=sheet.entropy.get(ids, 0.0),
            reward=draft.rewards.get(text),
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
        own=[answer(one.token_ids, one.text, one.status) for one in draft.own],
        reference=[answer(one.token_ids, one.text, one.status) for one in draft.reference],
        previous=draft.previous,
        modes=[
            (text, reward, logp)
            for text, (_, reward, logp) in zip(decoded, draft.modes, strict=True)
        ],
        best=max((reward for _, reward, _ in draft.modes), default=None),
        y_role=draft.y_role,
        margin=draft.margin,
    )
