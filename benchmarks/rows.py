"""Preference rows for the training benchmark: real text of real length spread, or the pocket
world's.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.train.batching import PreferenceRow

SHARES = {"winner": 0.45, "loser": 0.30, "middle": 0.25}
"""How often y is the chosen one, the rejected one, or neither."""
VOCABULARY = 8000
PROMPT, RESPONSE = 256, 256
"""Most tokens of a prompt (its last ones are kept) and of a response."""
ROOT = Path(__file__).resolve().parent.parent


def _conversations() -> Iterator[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of the HH test pairs: the last assistant turn is the response."""
    folder = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data")) / "preferences"
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
                if (
                    row["rejected"].startswith(row["chosen"][:cut])
                    and row["chosen"][cut:].strip()
                    and row["rejected"][cut:].strip()
                ):
                    yield row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:]


def hh_rows(count: int, seed: int = 0) -> list[PreferenceRow]:
    """``count`` rows of HH text under a BPE of 8,000 tokens made from it. "Neither": another row's
    chosen response.
    """
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


def pocket_rows(count: int, seed: int = 0) -> tuple[list[PreferenceRow], int]:
    """``count`` rows of the pocket world under its tokenizer, and its vocabulary's size."""
    from harness.pocket import data, tokenizer, wordings
    from harness.records import Pair, StageTask, read_jsonl
    from harness.study.sections import WorldSettings
    from harness.study.tasks import PocketDataTask, Runtime
    from harness.train.batching import encode_pair

    made = tokenizer.build()
    with tempfile.TemporaryDirectory() as scratch:
        share = wordings.BEST_STYLE.share
        settings = PocketDataTask(
            prompts=count + 1,
            heldout=1,
            rows=1,
            seed=seed,
            best_style_share=share,
            world=WorldSettings(),
        )
        data.run(StageTask("", "data.pocket", settings, {}, Path(scratch), Runtime()))
        found = [
            encode_pair(made, Pair(row["id"], row["messages"], row["chosen"], row["rejected"], ""))
            for row in read_jsonl(Path(scratch) / "train.jsonl")
        ]
    triples = [
        (row.prompt_ids, row.responses["chosen"], row.responses["rejected"]) for row in found
    ]
    return _with_y(triples, count, np.random.default_rng(seed)), len(made)


def random_rows(
    count: int, prompt: tuple[int, int], response: tuple[int, int], seed: int = 0
) -> list[PreferenceRow]:
    """``count`` rows of random tokens; fewest and most tokens of a prompt and of a response."""
    rng = np.random.default_rng(seed)

    def ids(limits: tuple[int, int]) -> tuple[int, ...]:
        return tuple(rng.integers(2, VOCABULARY, rng.integers(limits[0], limits[1] + 1)).tolist())

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
        rows.append(
            PreferenceRow(
                str(i),
                prompt,
                {"chosen": chosen, "rejected": rejected, "explore": y},
                y_role=str(role),
            )
        )
    return rows
