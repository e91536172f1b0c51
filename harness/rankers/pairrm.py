"""PairRM: a DeBERTa-v3 that reads the prompt and two answers together and says which is better.

Jiang, Ren and Lin, "LLM-Blender", arXiv 2306.02561; weights llm-blender/PairRM-hf (0.4 B). The input is
``<|source|>prompt[SEP]<|candidate1|>answer[SEP]<|candidate2|>answer[SEP]``, each part with its own [CLS]; the last hidden
states at the three marks s, a, b go through one head: logit = mean over tasks of head([s, a]) - head([s, b]). All ordered
pairs are compared, and with L_ij the logit of i shown first, the score of i is mean_j(L_ij - L_ji) over all candidates,
itself included (0): the order in which two answers are shown cancels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.models import check_weights, load_tokenizer, location, model_folder
from harness.rankers import RankContext, Ranked, RankItem
from harness.records import HarnessError

SOURCE, FIRST, SECOND = "<|source|>", "<|candidate1|>", "<|candidate2|>"
SOURCE_TOKENS = 1224
"""Longest prompt as published; what it leaves of TOTAL_TOKENS is split between the two answers."""
TOTAL_TOKENS = 1224 + 2 * 412
BATCH = 16


class PairRM(nn.Module):
    """The published network: an encoder without its own head, and a two-layer head over a pair of marks."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import DebertaV2Model

        self.pretrained_model = DebertaV2Model(config)
        width = config.hidden_size
        drop = float(getattr(config, "drop_out", 0.05))
        self.head_layer = nn.Sequential(
            nn.Dropout(drop), nn.Linear(2 * width, width), nn.Tanh(), nn.Dropout(drop), nn.Linear(width, int(getattr(config, "n_tasks", 1)))
        )

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, marks: tuple[int, int, int]) -> Tensor:
        """Logits (B,), above 0 where the first answer is better. ``marks``: ids of the three special tokens."""
        hidden_BTD = self.pretrained_model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        rows = torch.arange(len(ids_BT), device=ids_BT.device)
        source_BD, first_BD, second_BD = (hidden_BTD[rows, (ids_BT == mark).int().argmax(1)] for mark in marks)
        first_BK = self.head_layer(torch.cat([source_BD, first_BD], -1))
        second_BK = self.head_layer(torch.cat([source_BD, second_BD], -1))
        logits: Tensor = (first_BK - second_BK).mean(-1)
        return logits


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Aggregate score of every text against the other texts of its prompt; a single text scores 0."""
    if context.folder is None:
        raise HarnessError("ranker.kind pairrm needs ranker.model: llm-blender/PairRM-hf or a folder that holds it")
    model, tokenizer = load(str(context.folder), str(context.runtime.get("device", "cpu")))
    duels = [(i, a, b) for i, item in enumerate(items) for a in range(len(item.texts)) for b in range(len(item.texts)) if a != b]
    rows = [encode_pair(tokenizer, source_text(items[i].messages), items[i].texts[a], items[i].texts[b]) for i, a, b in duels]
    context.add_cost("ranker_texts", len(rows))
    logits = dict(zip(duels, compare(model, tokenizer, rows), strict=True))
    return [
        Ranked(aggregate([[logits.get((i, a, b), 0.0) for b in range(len(item.texts))] for a in range(len(item.texts))]))
        for i, item in enumerate(items)
    ]


def aggregate(logits: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """score_i = mean_j (L_ij - L_ji) over a square matrix whose diagonal is 0."""
    n = len(logits)
    return tuple(sum(logits[i][j] - logits[j][i] for j in range(n)) / n for i in range(n))


def source_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt as PairRM reads it: a single user turn as it is, a conversation turn by turn with the speakers' names."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{m['role'].upper()}: {m['content']}" for m in messages)


def encode_pair(tokenizer: Any, source: str, first: str, second: str) -> list[int]:
    """Token ids of one comparison, cut as published: the prompt to SOURCE_TOKENS, the answers to half of what is left each."""
    separator = tokenizer.sep_token or tokenizer.eos_token

    def part(mark: str, text: str, limit: int) -> list[int]:
        ids: list[int] = tokenizer(mark + text.replace(separator, " "), max_length=limit, truncation=True)["input_ids"]
        return ids

    head = part(SOURCE, source, SOURCE_TOKENS)
    room = (TOTAL_TOKENS - len(head)) // 2
    return head + part(FIRST, first, room) + part(SECOND, second, room)


@torch.inference_mode()
def compare(model: PairRM, tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[float]:
    """Logit of every encoded comparison, in the order given; batches are cut after sorting by length."""
    device = next(model.parameters()).device
    marks = (tokenizer.convert_tokens_to_ids(SOURCE), tokenizer.convert_tokens_to_ids(FIRST), tokenizer.convert_tokens_to_ids(SECOND))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    logits = [0.0] * len(rows)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        longest = max(len(rows[i]) for i in batch)
        ids = torch.tensor([[*rows[i], *[tokenizer.pad_token_id] * (longest - len(rows[i]))] for i in batch], device=device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in batch], device=device)
        for i, logit in zip(batch, model(ids, mask, marks).double().tolist(), strict=True):
            logits[i] = logit
    return logits


@lru_cache(maxsize=1)
def load(folder: str, device: str) -> tuple[PairRM, Any]:
    """PairRM (evaluation mode, float32) and its tokenizer from a folder in the form of llm-blender/PairRM-hf."""
    from safetensors.torch import load_file
    from transformers import DebertaV2Config

    path, where = model_folder(Path(folder)), location(Path(folder))
    source = str(where.get("source", path))
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "hidden_size" not in settings:
        raise HarnessError(f"{source}: config.json describes no DeBERTa; use the checkpoint in transformers' form, llm-blender/PairRM-hf")
    check_weights(path, source)
    tokenizer = load_tokenizer(Path(folder))
    missing = [mark for mark in (SOURCE, FIRST, SECOND) if mark not in tokenizer.get_vocab()]
    if missing:
        raise HarnessError(f"{source}: the tokenizer has no {', '.join(missing)}; this is not a PairRM checkpoint")
    model = PairRM(
        DebertaV2Config(**{k: v for k, v in settings.items() if k not in ("architectures", "transformers_version", "torch_dtype", "dtype")})
    )
    weights = {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    unmatched = model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    lost = [name for name in unmatched.missing_keys if not name.endswith("position_ids")]
    if lost:
        raise HarnessError(
            f"{source}: weights are missing for PairRM: {', '.join(lost[:3])}" + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        )
    return model.to(device).eval(), tokenizer
