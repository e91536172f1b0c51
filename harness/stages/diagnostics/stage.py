"""Stage ``diagnostics``: what training did to the policy, beyond scores. Definitions:
`harness.stages.diagnostics.measures`.

Inputs: policy (the checkpoint), reference_policy, previous (where the iteration started), base,
pairs, data; optional answer and answer_previous (their sampled held-out answers are used), ranker.
Out: scores.parquet (benchmark "diagnostics", one row per metric and prompt, clustered by prompt),
summary.json (means).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

from harness.model.attention import PackedPrompt
from harness.model.chat import PromptTooLongError, encode_prompt, encode_response
from harness.model.checkpoint_files import model_folder
from harness.model.generate import engine_of, generate
from harness.model.logprobs import response_logps
from harness.model.policy import Policy, load_policy
from harness.pocket import oracle
from harness.rankers.ranker import RankContext, RankItem
from harness.rankers.registry import RANKERS, rewards
from harness.records import (
    Generation,
    GenerationRequest,
    LeftOut,
    Pair,
    Prompt,
    Score,
    StageOutcome,
    StageTask,
    Status,
    Tally,
    content_hash,
    read_jsonl,
    request_seed,
    write_scores,
)
from harness.stages.diagnostics import passes
from harness.stages.diagnostics.measures import DIAGNOSTICS, Answer, Evidence
from harness.stages.diagnostics.passes import Sheet, TokenIds, score_sheets
from harness.study.tasks import DiagnosticsTask
from harness.train.batching import ROLES, with_reference

VERSION = "1"
"""Version of the definitions, written into every row."""
HEADLINE = ("rhat_reference_samples", "kl_base", "entropy")
"""Means that the stage's record repeats."""
POLICIES = {
    "theta": "policy",
    "reference": "reference_policy",
    "base": "base",
    "previous": "previous",
}
"""Role of a policy → the stage's input that holds it."""


def run(task: StageTask[DiagnosticsTask]) -> StageOutcome:
    """Measure one checkpoint. Where a measurement is undefined for a prompt there is no row."""
    objective = task.settings.objective
    found = collect(task, objective.beta)
    scores = score_rows(found, known_ids(task.inputs["data"]))
    scores += gradient_rows(task, objective.c, objective.beta)
    rows = write_scores(task.out / "scores.parquet", scores)
    drawn = sum(len(answer.token_ids) for e in found["heldout"] for answer in e.reference)
    summary = means(scores)
    text = json.dumps(summary, indent=1, sort_keys=True)
    (task.out / "summary.json").write_text(text + "\n", encoding="utf-8")
    shown: dict[str, Any] = {name: summary[name]["mean"] for name in HEADLINE if name in summary}
    left_out = _unmeasured(task, found)
    return StageOutcome(rows, costs={"tokens_generated": drawn}, summary=shown, left_out=left_out)


def means(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Of each metric: mean over the rows that have a value, how many have, how many there are."""
    by_metric: dict[str, list[float | None]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, []).append(score.value)
    found = {}
    for metric, values in by_metric.items():
        known = [value for value in values if value is not None]
        mean = statistics.fmean(known) if known else None
        found[metric] = {"mean": mean, "n": len(known), "expected": len(values)}
    return found


def _unmeasured(
    task: StageTask[DiagnosticsTask], found: Mapping[str, Sequence[Evidence]]
) -> tuple[LeftOut, ...]:
    """Prompts of each split that are over the limit or of which a policy drew no answer."""
    left_out: tuple[LeftOut, ...] = ()
    for split, rows in found.items():
        tally = Tally(task.stage, f"{split} prompts")
        for e in rows:
            reason = "ok"
            if e.refused:
                limit = task.settings.max_prompt_length
                reason = f"over training.max_prompt_length = {limit} tokens"
            elif split == "heldout" and not (e.own and e.reference):
                reason = "no answer drawn"
            tally.meet(e.id, reason)
        left_out += tally.left_out()
    return left_out


# -- rows ------------------------------------------------------------------------------------------


def known_ids(data: Path) -> set[str]:
    """Ids of the data's prompts."""
    files = [data / f"{split}.jsonl" for split in ("train", "heldout", "ood")]
    return {row["id"] for row in chain(*(read_jsonl(file) for file in files if file.is_file()))}


def _prompt_of(item: str, known: Collection[str]) -> str:
    """The prompt that an item repeats: without ``#2``, …, where that is an id of the data."""
    first, _, number = item.rpartition("#")
    return _prompt_of(first, known) if number.isdigit() and first in known else item


def score_rows(found: Mapping[str, Sequence[Evidence]], known: Collection[str] = ()) -> list[Score]:
    """One row per diagnostic and prompt of its split where it is defined; prompts over the length
    limit are rows with status "refused". Repetitions of a ``known`` prompt are one cluster.

    Diagnostics whose need is met nowhere (no scorer, no earlier answers) give no rows.
    """
    heldout = found.get("heldout", [])
    met = {
        "": True,
        "reward": any(answer.reward is not None for e in heldout for answer in e.own),
        "pocket": any(e.modes for e in heldout),
        "previous": any(e.previous for e in heldout),
    }
    scores = []
    for metric, diagnostic in DIAGNOSTICS.items():
        if diagnostic.function is None or not met[diagnostic.needs]:
            continue
        for e in found.get(diagnostic.split, []):
            value = None if e.refused else diagnostic.function(e)
            if value is None and not e.refused:
                continue
            status: Status = "refused" if e.refused else "ok"
            if value is not None and not math.isfinite(value):
                value, status = None, "no_answer"
            scores.append(_score(e.id, _prompt_of(e.id, known), metric, value, status, _source(e)))
    return scores


def _score(
    item: str, cluster: str, metric: str, value: float | None, status: Status, source: str
) -> Score:
    return Score("diagnostics", VERSION, item, cluster, metric, value, status, source=source)


def _source(e: Evidence) -> str:
    """A hash of what was measured: the prompt and all its answers."""
    given = [answer for answer in (e.chosen, e.rejected, e.explore) if answer is not None]
    answers = [answer.token_ids for answer in (*given, *e.own, *e.reference)]
    return content_hash(e.id, answers, length=16)


def gradient_rows(task: StageTask[DiagnosticsTask], c: float, beta: float) -> list[Score]:
    """grad_ratio and grad_cosine at the iteration's start and end, one row a small batch."""
    policies = Policies(task)
    rows = passes.read_rows(task, policies.load("theta").tokenizer)
    if len(rows) < passes.ROWS:
        return []
    rows = with_reference(policies.load("reference").model, rows, ROLES)
    scores = []
    for suffix, role in (("", "previous"), ("_end", "theta")):
        model = policies.load(role).model
        for number in range(len(rows) // passes.ROWS):
            batch = rows[number * passes.ROWS : (number + 1) * passes.ROWS]
            measured = passes.gradient_pair(model, batch, c=c, beta=beta)
            source = content_hash([row.prompt_id for row in batch], length=16)
            name = f"batch{number}"
            for metric, value in (("grad_ratio", measured.ratio), ("grad_cosine", measured.cosine)):
                status: Status = "no_answer" if value is None else "ok"
                scores.append(_score(name, name, metric + suffix, value, status, source))
    return scores


# -- evidence: which prompts, which answers, drawn and scored once ---------------------------------


@dataclass
class Draft:
    """A prompt on its way to Evidence. sheet None: it is over max_prompt_length."""

    id: str
    messages: Sequence[Mapping[str, str]]
    sheet: Sheet | None
    texts: dict[str, str]
    given: dict[str, TokenIds] = field(default_factory=dict)
    own: list[Generation] = field(default_factory=list)
    reference: list[Generation] = field(default_factory=list)
    previous: list[str] = field(default_factory=list)
    modes: list[tuple[TokenIds, float, float]] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    y_role: str = "absent"
    margin: float | None = None

    @property
    def scored(self) -> Sheet:
        """The sheet of a prompt that has one."""
        assert self.sheet is not None
        return self.sheet


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
        for role, name in POLICIES.items():
            checkpoint = str(model_folder(task.inputs[name]).resolve())
            self.names[role] = checkpoint
            self.loaders[checkpoint] = partial(load_policy, task.inputs[name], **how)

    def load(self, role: str, *, weights: bool = True) -> Policy:
        """The policy of a role (theta, reference, base, previous)."""
        return self.loaders[self.names[role]](weights=weights)

    def sampler(self, role: str) -> Policy:
        """The same to draw from: without its weights where vLLM loads them."""
        return self.load(role, weights=not self.settings.by_vllm)


def collect(task: StageTask[DiagnosticsTask], beta: float) -> dict[str, list[Evidence]]:
    """Evidence by split. Draws what no earlier stage has drawn: samples of the reference policy,
    and own ones if there is no ``answer`` input.
    """
    settings, policies = task.settings, Policies(task)
    drafts = _read_drafts(task, policies.sampler("theta").tokenizer)
    heldout = [draft for draft in drafts["heldout"] if draft.sheet is not None]
    own = _stored_samples(task.inputs.get("answer"), heldout)
    own = own or _draw(policies, heldout, "theta")
    previous = _stored_samples(task.inputs.get("answer_previous"), heldout)
    reference = _draw(policies, heldout, "reference")
    theta = policies.load("theta")
    for draft in heldout:
        draft.own, draft.reference = own.get(draft.id, []), reference.get(draft.id, [])
        draft.previous = [sample.text for sample in previous.get(draft.id, [])]
        for sample in draft.own:
            draft.scored.add(sample.token_ids, own=True)
        for sample in draft.reference:
            draft.scored.add(sample.token_ids)
    budget = task.runtime.token_budget or 8192
    if settings.pocket:
        _add_modes(heldout, theta, budget, settings.ranker.world.best_style_worth)
    _add_rewards(task, heldout)
    sheets = [draft.sheet for draft in chain(*drafts.values()) if draft.sheet is not None]
    score_sheets(sheets, policies.loaders, policies.names, token_budget=budget)
    return {
        split: [_evidence(draft, theta, beta) for draft in rows] for split, rows in drafts.items()
    }


def _read_drafts(task: StageTask[DiagnosticsTask], tokenizer: Any) -> dict[str, list[Draft]]:
    """The last ``prompts`` training pairs (with accumulated data: the iteration's own), and the
    first held-out and out-of-distribution prompts.
    """
    count = task.settings.prompts
    drafts: dict[str, list[Draft]] = {"train": []}
    for row in list(read_jsonl(task.inputs["pairs"] / "pairs.jsonl"))[-count:]:
        pair = Pair(**row)
        texts = {"chosen": pair.chosen, "rejected": pair.rejected, "explore": pair.explore}
        draft = _draft(pair.prompt_id, pair.messages, texts, task.settings, tokenizer, pair.drawn)
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
            draft = _draft(prompt.id, prompt.messages, texts, task.settings, tokenizer, {})
            drafts[split].append(draft)
    return drafts


def _draft(
    name: str,
    messages: Sequence[Mapping[str, str]],
    texts: dict[str, str],
    settings: DiagnosticsTask,
    tokenizer: Any,
    drawn: Mapping[str, Sequence[int]],
) -> Draft:
    """A prompt with its given answers, cut as in training. drawn: ids of those that were cut."""
    try:
        prompt_ids = encode_prompt(tokenizer, messages, settings.max_prompt_length)
    except PromptTooLongError:
        return Draft(name, messages, None, texts)
    sheet = Sheet(tuple(prompt_ids))
    draft = Draft(name, messages, sheet, texts)
    room = max(1, settings.max_length - len(prompt_ids))
    for role, text in texts.items():
        if text:
            ids = drawn.get(role) or encode_response(tokenizer, messages, text, room)
            draft.given[role] = sheet.add(ids[:room])
    return draft


def _stored_samples(folder: Path | None, drafts: Sequence[Draft]) -> dict[str, list[Generation]]:
    """Temperature-1 samples that the answer stage kept, by prompt; none without that input."""
    found: dict[str, list[Generation]] = {}
    if folder is None or not (folder / "heldout.jsonl").is_file():
        return found
    wanted = {draft.id for draft in drafts}
    rows = [row for row in read_jsonl(folder / "heldout.jsonl") if row["sample"] > 0]
    for row in sorted(rows, key=lambda row: (row["prompt_id"], row["sample"])):
        usable = row["token_ids"] and row["status"] in ("ok", "truncated")
        if usable and row["prompt_id"] in wanted:
            sample = Generation(tuple(row["token_ids"]), row["text"], row["status"])
            found.setdefault(row["prompt_id"], []).append(sample)
    return found


def _draw(policies: Policies, drafts: Sequence[Draft], role: str) -> dict[str, list[Generation]]:
    """Fresh samples of a role's policy at temperature 1, each with a seed of its own."""
    settings, policy = policies.settings, policies.sampler(role)
    names, requests = [], []
    for draft, sample in product(drafts, range(settings.samples)):
        identity = (settings.iteration, f"diagnostics.{role}", draft.id, sample)
        seed = request_seed(settings.seed, *identity)
        ids, most = draft.scored.prompt_ids, settings.max_new_tokens
        requests.append(GenerationRequest(ids, most, temperature=1.0, seed=seed))
        names.append(draft.id)
    with engine_of(policy, settings, policies.runtime) as engine:
        batch = settings.generation_batch
        drawn = generate(policy, requests, batch_size=batch, engine=engine)
    found: dict[str, list[Generation]] = {}
    for name, answer in zip(names, drawn, strict=True):
        if answer.status != "error" and answer.token_ids:
            found.setdefault(name, []).append(answer)
    return found


def _add_modes(
    drafts: Sequence[Draft], theta: Policy, token_budget: int, best_style_worth: float
) -> None:
    """The right answers (pocket world; no other has a reward) with log π_θ."""
    listed_rewards, rows = [], []
    for draft in drafts:
        modes = oracle.modes(draft.messages, best_style_worth)
        right = [mode for mode in modes if oracle.is_correct(draft.messages, mode[0])]
        responses = [encode_response(theta.tokenizer, draft.messages, text) for text, _ in right]
        rows.append(PackedPrompt(draft.scored.prompt_ids, tuple(map(tuple, responses))))
        listed_rewards.append([reward for _, reward in right])
    scored = response_logps(theta.model, rows, token_budget=token_budget)
    for draft, listed, row, logps in zip(drafts, listed_rewards, rows, scored, strict=True):
        draft.modes = list(zip(row.responses, listed, logps, strict=True))


def _add_rewards(task: StageTask[DiagnosticsTask], drafts: Sequence[Draft]) -> None:
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


def _evidence(draft: Draft, policy: Policy, beta: float) -> Evidence:
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

    given: dict[str, Any] = {
        role: answer(ids, draft.texts[role]) for role, ids in draft.given.items()
    }
    bodies = [ids[:-1] if ids[-1] in policy.stop_token_ids else ids for ids, _, _ in draft.modes]
    decoded = policy.tokenizer.batch_decode(bodies, skip_special_tokens=True) if bodies else []
    listed = zip(decoded, draft.modes, strict=True)
    return Evidence(
        draft.id,
        beta,
        **given,
        own=[answer(one.token_ids, one.text, one.status) for one in draft.own],
        reference=[answer(one.token_ids, one.text, one.status) for one in draft.reference],
        previous=draft.previous,
        modes=[(text, reward, logp) for text, (_, reward, logp) in listed],
        best=max((reward for _, reward, _ in draft.modes), default=None),
        y_role=draft.y_role,
        margin=draft.margin,
    )
