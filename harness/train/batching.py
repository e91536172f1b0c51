"""Preference rows as tokens, and the plan that turns global batches into micro-batches by token
budget.

A global batch is what one optimiser step sees, whatever the number of devices and the size of their
memory. Every rank runs the same number of micro-batches of it (a rank without work repeats a row at
weight 0), and each row's loss is divided by the rows of the whole global batch, so that the
gradient is the same however the batch is cut.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.data.files import Row
from harness.data.rows import NotAPairError, prompt_of, response_of
from harness.model.attention import PackedBatch, PackedPrompt, chunk_by_tokens, on_device, pack
from harness.model.chat import PromptTooLongError, check_rows, encode_prompt, encode_response
from harness.model.logprobs import response_logps
from harness.records import HarnessError, Pair, Tally, content_hash, read_jsonl
from harness.train.objectives import OBJECTIVES, OTHERS, ResolvedObjective, explore_roles, others_of

logger = logging.getLogger(__name__)

ROLES = ("chosen", "rejected", "explore")


@dataclass(frozen=True)
class PreferenceRow:
    """One training row as token ids. responses: role → ids, end-of-turn token included. reference:
    role → log pi_ref in nats.

    y_role: whether y ("explore") became the pair's winner, loser or neither. extras: further
    numbers an objective names.
    """

    prompt_id: str
    prompt_ids: tuple[int, ...]
    responses: Mapping[str, tuple[int, ...]]
    reference: Mapping[str, float] = field(default_factory=dict)
    y_role: str = "absent"
    extras: Mapping[str, float] = field(default_factory=dict)

    def packed(self, roles: Sequence[str]) -> tuple[PackedPrompt, dict[str, int]]:
        """The prompt with the unique responses of those of ``roles`` that it has and, for every
        such role, which of them it is.
        """
        unique: dict[tuple[int, ...], int] = {}
        own = [role for role in roles if role in self.responses]
        slots = {role: unique.setdefault(self.responses[role], len(unique)) for role in own}
        return PackedPrompt(self.prompt_ids, tuple(unique)), slots

    def has_reference(self, roles: Sequence[str]) -> bool:
        """Whether its responses of ``roles`` are scored."""
        return all(role in self.reference for role in roles if role in self.responses)


def encode_pair(
    tokenizer: Any,
    pair: Pair,
    *,
    max_length: int = 0,
    max_prompt_length: int = 0,
    truncation: str = "responses",
) -> PreferenceRow:
    """Tokens of a pair. Where prompt and response together are over ``max_length`` (0: no limit),
    ``responses`` cuts the end of the response. ``prompt_first``: where the prompt and the longest
    response are, the prompt loses its beginning (but not its begin-of-text) down to
    ``max_prompt_length``; where they still are, all responses are cut to the rest.

    A response whose end is cut loses its end-of-turn token, as in generation; one that generation
    cut keeps the tokens it was drawn with. Raises HarnessError
    for a prompt that leaves no room for a response or, with ``responses``, is over
    ``max_prompt_length``.
    """
    if truncation == "prompt_first":
        whole = encode_pair(tokenizer, pair)
        return _prompt_first(whole, max_length, max_prompt_length, tokenizer.bos_token_id)
    prompt_ids = tuple(encode_prompt(tokenizer, pair.messages, max_prompt_length))
    room = max_length - len(prompt_ids) if max_length else 0
    if max_length and room < 1:
        raise HarnessError(
            f"prompt {pair.prompt_id}: {len(prompt_ids)} tokens leave no room for a response "
            f"within max_length {max_length}"
        )
    texts = {"chosen": pair.chosen, "rejected": pair.rejected}
    if pair.y_role != "absent":
        y = (pair.explore, *pair.explore_more)
        texts |= dict(zip(explore_roles(len(y)), y, strict=True))
    ids: dict[str, tuple[int, ...]] = {}
    for role, text in texts.items():
        if role not in pair.drawn and text not in ids:
            ids[text] = tuple(encode_response(tokenizer, pair.messages, text, room))
    drawn = {role: tuple(given[: room or None]) for role, given in pair.drawn.items()}
    responses = {role: drawn.get(role) or ids[text] for role, text in texts.items()}
    return PreferenceRow(pair.prompt_id, prompt_ids, responses, y_role=pair.y_role)


def _prompt_first(row: PreferenceRow, most: int, prompt: int, begin: int | None) -> PreferenceRow:
    longest = max(map(len, row.responses.values()))
    ids = row.prompt_ids
    if len(ids) + longest <= most:
        return row
    if len(ids) > prompt:
        kept = ids[:1] if ids[0] == begin else ()
        ids = (*kept, *ids[len(ids) - prompt + len(kept) :])
    if len(ids) + longest > most:
        cut = {role: response[: most - prompt] for role, response in row.responses.items()}
        row = replace(row, responses=cut)
    return replace(row, prompt_ids=ids)


def encode_pairs(tokenizer: Any, folder: Path, limits: Mapping[str, Any]) -> list[PreferenceRow]:
    """Token rows of a folder of pairs, in file order, within the limits of `encode_pair`."""
    pairs = read_jsonl(folder / "pairs.jsonl")
    return [encode_pair(tokenizer, Pair(**row), **limits) for row in pairs]


def encode_rows(
    dataset: Sequence[Any],
    *,
    tokenizer: Any,
    objective: ResolvedObjective,
    max_length: int,
    max_prompt_length: int,
) -> list[PreferenceRow]:
    """Rows of tokens from rows of text or tokens, with all that the objective reads. Rows whose
    prompt is over a limit or leaves no room for an answer, and pairs that are equal after cutting,
    are dropped and told. Raises HarnessError for any other that cannot be trained on.
    """
    limit = min((one for one in (max_prompt_length, max_length - 1) if one > 0), default=0)
    rows: list[PreferenceRow] = []
    tally = Tally("", "rows")
    for number, item in enumerate(dataset):
        tally.read += 1
        if isinstance(item, PreferenceRow):
            rows.append(item)
            continue
        place = f"row {number}"
        if tokenizer is None:
            raise HarnessError(f"{place} is text; pass processing_class (the tokenizer)")
        pair = _pair_of(Row(item, place))
        check_rows(tokenizer, [(place, pair.messages, (pair.chosen, pair.rejected))])
        try:
            row = encode_pair(tokenizer, pair, max_length=max_length, max_prompt_length=limit)
        except PromptTooLongError:
            tally.leave_out(f"have prompts over {limit} tokens", str(number))
            continue
        if row.responses["chosen"] == row.responses["rejected"]:
            why = f"have answers that are equal when cut to max_length {max_length}"
            tally.leave_out(why, str(number))
        else:
            rows.append(row)
    for one in tally.left_out():
        told = f"{one.count} of {one.of} rows {one.reason}"
        if not rows:
            raise HarnessError(f"{told}, and none is left; raise max_prompt_length or max_length")
        logger.warning("%s and are dropped (rows %s)", told, ", ".join(one.examples))
    for row in rows:
        if not set(objective.roles) <= set(row.responses):
            raise HarnessError(
                f"row {row.prompt_id}: objective {objective.name} with alpha {objective.alpha} "
                "reads y, but the row has no 'explore' response"
            )
        if OBJECTIVES[objective.name].counts and not row.extras:
            raise HarnessError(
                f"row {row.prompt_id}: objective {objective.name} reads how rarely y was met: give "
                "a PreferenceRow with extras {'explore': √mean f²}, as the stage count writes it"
            )
    if len(rows) == 1 and others_of(objective.name):
        told = "%s estimates a divergence from other rows, and there is none: it is taken to be 0"
        logger.warning(told, objective.name)
    return with_others(rows, objective.scored, max_length)


def _pair_of(row: Row) -> Pair:
    """A row of text, read as the data stage reads it; here every row must be a pair."""
    try:
        prompt = prompt_of(row)
        explore = response_of(row, "explore", prompt.messages)
    except NotAPairError as reason:
        raise HarnessError(f"{row.place}: {reason}; leave it out of the dataset") from reason
    role: Any = "middle" if explore else "absent"
    texts = (prompt.chosen, prompt.rejected, explore)
    return Pair(prompt.id, prompt.messages, *texts, y_role=role)


def with_others(
    rows: Sequence[PreferenceRow], roles: Sequence[str], max_length: int = 0
) -> list[PreferenceRow]:
    """The rows with the responses of the row before (the last one's for the first), where ``roles``
    name them, cut to ``max_length`` with this row's prompt (0: no limit). A single row has no other
    and stays as it is: what is estimated from others is then taken to be 0.
    """
    wanted = [role for role in OTHERS if role in roles]
    if len(rows) < 2 or all(role in row.responses for row in rows for role in wanted):
        return list(rows)
    found = []
    for before, row in zip([rows[-1], *rows[:-1]], rows, strict=True):
        room = max_length - len(row.prompt_ids) if max_length else None
        given = {role: before.responses[role.removeprefix("other_")][:room] for role in wanted}
        found.append(replace(row, responses={**row.responses, **given}))
    return found


def with_reference(
    model: Any,
    rows: Sequence[PreferenceRow],
    roles: Sequence[str],
    token_budget: int = 8192,
    *,
    mixed: bool = False,
) -> list[PreferenceRow]:
    """The rows with log pi (nats, under ``model``) of those of ``roles`` that they have. Responses
    that are equal are scored once. ``mixed``: in the arithmetic of bfloat16 mixed precision, as
    training in it computes the policy's.
    """
    packed = [row.packed(roles) for row in rows]
    prompts = [prompt for prompt, _ in packed]
    values = response_logps(model, prompts, token_budget=token_budget, mixed=mixed)
    return [
        replace(row, reference={role: own[slot] for role, slot in slots.items()})
        for row, own, (_, slots) in zip(rows, values, packed, strict=True)
    ]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes. slots: role → (B,) response index; weights: (B,) 1, or 0 for a
    row that only keeps ranks in step (``counts`` is false then).
    """

    batch: PackedBatch
    slots: Mapping[str, Tensor]
    weights: Tensor
    reference: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]
    y_roles: tuple[str, ...]
    global_rows: int
    counts: bool

    def by_role(self, responses: Tensor) -> dict[str, Tensor]:
        """Numbers of the batch's responses, (R,), as role → (B,)."""
        return {role: responses.index_select(0, slots) for role, slots in self.slots.items()}

    def to(self, device: torch.device | str) -> MicroBatch:
        """The micro-batch on another device."""
        if torch.device(device) == self.weights.device:
            return self

        def moved(tensors: Mapping[str, Tensor]) -> Any:
            return {name: on_device(tensor, device) for name, tensor in tensors.items()}

        tables = ("slots", "reference", "tokens", "extras")
        return replace(
            self,
            batch=self.batch.to(device),
            weights=on_device(self.weights, device),
            **{name: moved(getattr(self, name)) for name in tables},
        )


def make_micro_batch(
    rows: Sequence[PreferenceRow],
    roles: Sequence[str],
    *,
    global_rows: int = 0,
    weight: float = 1.0,
) -> MicroBatch:
    """Pack rows for ``roles``. ``global_rows``: rows of the whole global batch (default: these)."""
    prompts: list[PackedPrompt] = []
    slots: dict[str, list[int]] = {role: [] for role in roles}
    first = 0
    for row in rows:
        packed, own = row.packed(roles)
        prompts.append(packed)
        for role in roles:
            slots[role].append(first + own[role])
        first += len(packed.responses)
    batch = pack(prompts)
    lengths = torch.tensor(batch.lengths, dtype=torch.float64)
    indices = {role: torch.tensor(index) for role, index in slots.items()}

    def shared(tables: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        """Columns (B,) of the names that every row has."""
        names = sorted(set.intersection(*(set(table) for table in tables)))
        columns = {name: [table[name] for table in tables] for name in names}
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}

    return MicroBatch(
        batch,
        indices,
        weights=torch.full((len(rows),), weight, dtype=torch.float64),
        reference=shared([row.reference for row in rows]),
        tokens={role: lengths[index] for role, index in indices.items()},
        extras=shared([row.extras for row in rows]),
        y_roles=tuple(row.y_role for row in rows),
        global_rows=global_rows or len(rows),
        counts=weight > 0,
    )


def plan_global_batch(
    sizes: Sequence[int], *, token_budget: int = 0, micro_batch: int = 0, ranks: int = 1
) -> list[list[list[int]]]:
    """Micro-batches of row indices for every rank: ``plan[rank][k]``; the same number for each
    rank, empty where there is no work.

    sizes: tokens per row. token_budget: most tokens of a micro-batch (0: no limit; a longer row
    runs alone). micro_batch: most rows of one (0: no limit). Rows of similar length go together;
    ranks get similar token counts.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        shares[rank].append(i)
        load[rank] += sizes[i]
    plan = []
    for share in shares:
        groups = chunk_by_tokens([sizes[i] for i in share], token_budget, micro_batch)
        plan.append([[share[k] for k in group] for group in groups])
    rounds = max(len(groups) for groups in plan)
    return [groups + [[] for _ in range(rounds - len(groups))] for groups in plan]


class GlobalBatchSampler:
    """Yields the row indices of one global batch after the other, in an order drawn from (``seed``,
    epoch).

    The last batch of an epoch holds what is left; every row comes exactly once per epoch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.epoch = 0
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.rows))
        if self.shuffle:
            seed = int(content_hash("row order", self.seed, self.epoch, length=15), 16)
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(self.rows, generator=generator).tolist()
        for start in range(0, self.rows, self.batch_size):
            yield order[start : start + self.batch_size]


def collate_for_rank(
    rows: Sequence[PreferenceRow],
    roles: Sequence[str],
    *,
    token_budget: int,
    micro_batch: int,
    ranks: int = 1,
    rank: int = 0,
) -> list[MicroBatch]:
    """This rank's micro-batches of one global batch. A rank without work scores the shortest row at
    weight 0.
    """
    sizes = [row.packed(roles)[0].tokens for row in rows]
    limits = {"token_budget": token_budget, "micro_batch": micro_batch}
    shortest = min(range(len(rows)), key=lambda i: (sizes[i], i))
    batches = []
    for group in plan_global_batch(sizes, **limits, ranks=ranks)[rank]:
        weight = 1.0 if group else 0.0
        members = [rows[i] for i in group or [shortest]]
        batches.append(make_micro_batch(members, roles, global_rows=len(rows), weight=weight))
    return batches
