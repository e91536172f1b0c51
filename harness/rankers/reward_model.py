"""Any sequence-classification model with one label as a ranker: the conversation, formatted by its own template, → its logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.models import check_code, check_weights, encode_conversation, load_tokenizer, location, model_folder
from harness.rankers import RankContext, Ranked, RankItem
from harness.records import HarnessError

TOKENS_PER_BATCH = 16_384


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Logit of every (conversation, text); equal ones are computed once; batches are cut by length.

    A conversation over ``max_length`` tokens loses its beginning, never the answer; the number cut is in the costs.
    """
    import torch

    if context.folder is None:
        raise HarnessError("ranker.kind reward_model needs ranker.model: a checkpoint folder or a hub id")
    limit = int(context.settings.get("max_length", 1024))
    model, tokenizer = load(str(context.folder), str(context.runtime.get("device", "cpu")))
    encoded: dict[tuple[Any, str], list[int]] = {}
    for item in items:
        for text in item.texts:
            key = (_identity(item.messages), text)
            if key not in encoded:
                encoded[key] = _encode(tokenizer, item.messages, text)
    context.add_cost("ranker_texts", len(encoded))
    context.add_cost("ranker_texts_cut", sum(len(ids) > limit for ids in encoded.values()))
    keys = sorted(encoded, key=lambda key: (len(encoded[key]), key))
    scores: dict[tuple[Any, str], float] = {}
    with torch.inference_mode():
        for batch in _batches(keys, {key: min(len(ids), limit) for key, ids in encoded.items()}):
            scores.update(zip(batch, _logits(model, tokenizer, [encoded[key][-limit:] for key in batch]), strict=True))
    return [Ranked(tuple(scores[_identity(item.messages), text] for text in item.texts)) for item in items]


def _identity(messages: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((m["role"], m["content"]) for m in messages)


def _encode(tokenizer: Any, messages: Sequence[Mapping[str, str]], text: str) -> list[int]:
    if tokenizer.chat_template:
        return encode_conversation(tokenizer, [*messages, {"role": "assistant", "content": text}])
    question = "\n\n".join(m["content"] for m in messages)
    ids: list[int] = tokenizer(question, text)["input_ids"]
    return ids


def _batches(keys: Sequence[Any], lengths: Mapping[Any, int]) -> list[list[Any]]:
    """Cut length-sorted keys so that rows × longest stays within TOKENS_PER_BATCH."""
    batches: list[list[Any]] = []
    for key in keys:
        if batches and (len(batches[-1]) + 1) * lengths[key] <= TOKENS_PER_BATCH:
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches


def _logits(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[float]:
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[tokenizer.pad_token_id] * (longest - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    logits: list[float] = model(input_ids=ids, attention_mask=mask).logits[:, 0].double().tolist()
    return logits


@lru_cache(maxsize=1)
def load(folder: str, device: str) -> tuple[Any, Any]:
    """Reward model (evaluation mode, float32) and tokenizer of a ranker folder; refuses a model with other than one label."""
    from transformers import AutoModelForSequenceClassification

    path, where = model_folder(Path(folder)), location(Path(folder))
    source = str(where.get("source", path))
    pickled = check_weights(path, source, str(where.get("pickle_weights", "")))
    code = check_code(path, source, str(where.get("trust_remote_code", "")))
    tokenizer = load_tokenizer(Path(folder))
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            path, dtype="float32", use_safetensors=not pickled, trust_remote_code=code, local_files_only=True
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise HarnessError(f"{source}: cannot load as a reward model ({str(error).splitlines()[0][:300]})") from error
    if model.config.num_labels != 1:
        raise HarnessError(f"{source}: a reward model has one label, this one has {model.config.num_labels}")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval(), tokenizer
