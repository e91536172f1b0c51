"""Any sequence-classification model with one label as a ranker: the conversation, formatted by its
own template, → its logit.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.model.chat import encode_conversation
from harness.model.checkpoint import check_checkpoint, load_model
from harness.model.policy import load_tokenizer
from harness.rankers.ranker import Messages, RankContext, Ranked, Ranker, RankItem, padded_batches
from harness.study.sections import DataSettings, RankerSettings
from harness.study.work import Lengths, Work

TOKENS_PER_BATCH = 16_384


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Logit of every (conversation, text); equal ones are computed once; batches are cut by length.

    A conversation over ``max_length`` tokens loses its beginning, never the answer; the number cut
    is in the costs.
    """
    import torch

    assert context.folder is not None
    limit = context.settings.max_length
    model, tokenizer = load(str(context.folder), context.runtime.device)
    encoded: dict[tuple[Any, str], Encoded] = {}
    for item in items:
        for text in item.texts:
            if (key := _key(item, text)) not in encoded:
                encoded[key] = encode(tokenizer, item.messages, text, limit)
    context.add_cost("ranker_texts", len(encoded))
    context.add_cost("ranker_texts_cut", sum(row.length > limit for row in encoded.values()))
    keys = sorted(encoded, key=lambda key: (len(encoded[key].ids), key))
    scores: dict[tuple[Any, str], float] = {}
    with torch.inference_mode():
        for places in padded_batches([len(encoded[key].ids) for key in keys], TOKENS_PER_BATCH):
            batch = [keys[place] for place in places]
            scores.update(zip(batch, _logits(model, [encoded[key] for key in batch]), strict=True))
    return [Ranked(tuple(scores[_key(item, text)] for text in item.texts)) for item in items]


@dataclass(frozen=True)
class Encoded:
    """Tokens of one conversation, at most the limit. types: 0 question, 1 answer, for encoders that
    tell them apart; length: before cutting.
    """

    ids: list[int]
    types: list[int] | None
    length: int


def _key(item: RankItem, text: str) -> tuple[tuple[tuple[str, str], ...], str]:
    return tuple((m["role"], m["content"]) for m in item.messages), text


def encode(tokenizer: Any, messages: Messages, text: str, limit: int) -> Encoded:
    """A conversation by the model's own chat template; without one, question and answer as the pair
    of texts encoders are trained on.

    Over the limit the beginning of the question goes: a pair keeps its special tokens (an encoder's
    score is read off the first one).
    """
    if tokenizer.chat_template:
        ids = encode_conversation(tokenizer, [*messages, {"role": "assistant", "content": text}])
        return Encoded(ids[-limit:], None, len(ids))
    question = "\n\n".join(m["content"] for m in messages)
    # A separator that the texts spell out is text.
    options = {"return_token_type_ids": True, "split_special_tokens": True}
    found = tokenizer(question, text, **options)
    length = len(found["input_ids"])
    if length > limit:
        answer = len(tokenizer("", text, **options)["input_ids"])
        side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
        try:
            cut = "only_first" if answer < limit else "longest_first"
            found = tokenizer(question, text, truncation=cut, max_length=limit, **options)
        finally:
            tokenizer.truncation_side = side
    return Encoded(found["input_ids"], found.get("token_type_ids"), length)


def _logits(model: Any, rows: Sequence[Encoded]) -> list[float]:
    """One logit a row. A causal model's is that of its last token that is no padding.

    Where the configuration names no padding, the last token counts whatever it is, as when its
    authors score one text at a time: the padding is then a token that no row holds, for the
    tokenizer's may be the very end-of-turn token that ends each row.
    """
    import torch

    settings = model.config.get_text_config()
    pad = named = settings.pad_token_id
    if named is None:
        held = {token for row in rows for token in row.ids}
        pad = next(token for token in range(settings.vocab_size) if token not in held)
    longest = max(len(row.ids) for row in rows)
    blanks = [longest - len(row.ids) for row in rows]
    arguments = {
        "input_ids": [[*row.ids, *[pad] * n] for row, n in zip(rows, blanks, strict=True)],
        "attention_mask": [[1] * (longest - n) + [0] * n for n in blanks],
    }
    types = [row.types or [0] * len(row.ids) for row in rows]
    kinds = max((kind for own in types for kind in own), default=0)
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and 0 < kinds < getattr(settings, "type_vocab_size", 0):
        padded = zip(types, blanks, strict=True)
        arguments["token_type_ids"] = [[*own, *[0] * n] for own, n in padded]
    tensors = {name: torch.tensor(value, device=model.device) for name, value in arguments.items()}
    try:
        settings.pad_token_id = pad
        logits: list[float] = model(**tensors).logits[:, 0].double().tolist()
    finally:
        settings.pad_token_id = named
    return logits


@lru_cache(maxsize=1)
def load(folder: str, device: str) -> tuple[Any, Any]:
    """Reward model (evaluation mode, float32) and tokenizer of a ranker folder."""
    tokenizer = load_tokenizer(Path(folder))
    found = check_checkpoint(Path(folder), head="sequence", tokenizer=tokenizer, values=False)
    return load_model(found, dtype="float32", attention=None, device=device), tokenizer


def _missing(ranker: RankerSettings, data: DataSettings) -> str:
    if ranker.model or data.ranker_pairs:
        return ""
    return "give ranker.model, or data.ranker_pairs to train one in place"


def _work(lengths: Lengths, prompts: int, texts: int) -> Work:
    rows = prompts * texts
    read = float(rows * (lengths.prompt + lengths.answer))
    how = f"{prompts:,} prompts × {texts} answers through a reward model of the policy's size"
    return Work(rows, read, how=how)


RANKER = Ranker("reward_model", rank, checkpoint="given or trained", missing=_missing, work=_work)
