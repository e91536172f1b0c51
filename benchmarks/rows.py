"""Rows for the training benchmarks (real text, random tokens), and the published formulation."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks import OUT
from harness.train.batching import PreferenceRow

ROLES = ("chosen", "rejected", "explore")
SHARES = {"winner": 0.45, "loser": 0.30, "middle": 0.25}
"""How often y is the chosen one, the rejected one, or neither."""
VOCABULARY = 8000
PROMPT, RESPONSE = 256, 256
"""Most tokens of a prompt (its last ones are kept) and of a response."""


def _conversations() -> Iterator[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of the HH test pairs: the last assistant turn is the response."""
    folder = Path(os.environ.get("SHARED_DATA", OUT.parents[2] / "shared" / "data")) / "preferences"
    files = sorted(folder.glob("hh_*_test.jsonl.gz"))
    if not files:
        raise SystemExit(
            f"no HH pairs at {folder}; set SHARED_DATA to a folder that holds "
            "preferences/hh_*_test.jsonl.gz"
        )
    mark = "\n\nAssistant:"
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as handle:
            for line in handle:
                row = json.loads(line)
                cut = row["chosen"].rfind(mark) + len(mark)
                prompt, *said = row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:]
                if row["rejected"].startswith(prompt) and all(text.strip() for text in said):
                    yield prompt, *said


def hh_rows(count: int, seed: int = 0) -> list[PreferenceRow]:
    """``count`` rows of HH text under its own BPE; "neither": another row's chosen response."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(_conversations())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<end>"], show_progress=False
    )
    tokenizer.train_from_iterator((part for row in texts[:1500] for part in row), trainer)
    rng = np.random.default_rng(seed)
    chosen_rows = rng.permutation(len(texts))[: count + 1]

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text).ids
        return found

    tokens = [
        (ids(prompt)[-PROMPT:], [*ids(chosen), 1][:RESPONSE], [*ids(rejected), 1][:RESPONSE])
        for prompt, chosen, rejected in (texts[i] for i in chosen_rows)
    ]
    return _with_y([(tuple(p), tuple(c), tuple(r)) for p, c, r in tokens], count, rng)


Length = Callable[[np.random.Generator], int]


def random_rows(
    count: int, prompt: Length, response: Length, seed: int = 0, vocabulary: int = VOCABULARY
) -> list[PreferenceRow]:
    """``count`` rows of random tokens, as many in a prompt and in a response as these draw."""
    rng = np.random.default_rng(seed)

    def ids(length: Length) -> tuple[int, ...]:
        return tuple(rng.integers(2, vocabulary, length(rng)).tolist())

    triples = [(ids(prompt), ids(response), ids(response)) for _ in range(count + 1)]
    return _with_y(triples, count, rng)


def _with_y(
    triples: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]],
    count: int,
    rng: np.random.Generator,
) -> list[PreferenceRow]:
    roles = rng.choice(list(SHARES), size=count, p=list(SHARES.values()))
    rows = []
    for i, role in enumerate(roles):
        prompt, chosen, rejected = triples[i]
        y = {"winner": chosen, "loser": rejected, "middle": triples[i + 1][1]}[str(role)]
        responses = dict(zip(ROLES, (chosen, rejected, y), strict=True))
        rows.append(PreferenceRow(str(i), prompt, responses, y_role=str(role)))
    return rows


# -- the published formulation --------------------------------------------------------------------
def padded_logps(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """log pi(response | prompt) of a padded batch, from full float32 logits; shape (B,)."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    seen, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        size = len(prompt) + len(response)
        ids[i, :size] = torch.tensor([*prompt, *response])
        seen[i, :size] = 1
        labels[i, len(prompt) : size] = ids[i, len(prompt) : size]
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    mask = targets != -100
    table = torch.gather(logits.log_softmax(-1), 2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (table * mask).sum(-1)


def published_loss(
    policy: Any, reference: Any, rows: Sequence[PreferenceRow], *, alpha: float, beta: float
) -> Tensor:
    """Mean over rows of -log sigma(beta Delta) + alpha beta (log pi(y) - log pi_ref(y)): padded,
    y in a pass of its own, full log-softmax. Anew from arXiv 2405.19332; no code is theirs.
    """
    prompts = [row.prompt_ids for row in rows]
    pairs = [row.responses["chosen"] for row in rows] + [row.responses["rejected"] for row in rows]
    explored = [row.responses["explore"] for row in rows]
    logps = []
    for model, context in ((policy, contextlib.nullcontext()), (reference, torch.no_grad())):
        with context:
            pair = padded_logps(model, prompts + prompts, pairs)
            logps.append((pair, padded_logps(model, prompts, explored)))
    (policy_pair, policy_y), (reference_pair, reference_y) = logps
    chosen, rejected = (policy_pair - reference_pair).chunk(2)
    return (
        -logsigmoid(beta * (chosen - rejected)) + alpha * beta * (policy_y - reference_y)
    ).mean()
