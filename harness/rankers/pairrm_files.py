"""PairRM's checkpoint files, in both published forms: configuration, tokenizer, weights.

llm-blender/PairRM-hf is whole in itself. llm-blender/PairRM holds the ranker's ``config.json`` and
weights; the encoder's configuration and tokenizer are those of its ``model_name``,
microsoft/deberta-v3-large.

The tokenizer is read with the tokenizers library, as stored: transformers 5 builds DeBERTa-v2
tokenizers anew with a normalisation of its own, and gives other ids than the authors' where
sentencepiece's compatibility normalisation changes a text (½, ﬁ, full width).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.model.checkpoint_files import (
    WeightFiles,
    location,
    model_folder,
    settings_of,
    weight_files,
)
from harness.records import HarnessError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
"""In the order in which the package adds them to DeBERTa's tokens; the last stands for either
answer there and is not used here.
"""
SOURCE_TOKENS, CANDIDATE_TOKENS = 1224, 412
ENCODER_FILES = ("config.json", "spm.model", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, weights not read. config: of the encoder and the head; marks: ids of
    source, first and second answer.
    """

    source: str
    weights: WeightFiles
    config: dict[str, Any]
    tokenizer: Tokenizer
    marks: tuple[int, int, int]
    source_tokens: int
    total_tokens: int


def is_pairrm(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is PairRM's, in either form."""
    return "ranker_type" in config or "cand1_prefix_id" in config


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Everything but the weights of a stage's or a checkpoint's folder. Raises HarnessError saying
    what is missing.
    """
    path, where = model_folder(Path(folder)), location(Path(folder))
    source = str(where.get("source", path))
    settings = settings_of(path / "config.json", source)
    weights = weight_files(path, source)
    packaged = "ranker_type" in settings
    encoder = _encoder_folder(path, settings, source) if packaged else path
    tokenizer = _tokenizer(encoder, source, add_marks=packaged)
    config = {
        **settings_of(encoder / "config.json", source),
        "n_tasks": settings.get("n_tasks", 1),
        "drop_out": settings.get("drop_out", 0.05),
    }
    ids = tokenizer.get_vocab(with_added_tokens=True)
    missing = [mark for mark in MARKS[:3] if mark not in ids]
    if missing:
        raise HarnessError(
            f"{source}: the tokenizer has no {', '.join(missing)}; this is not a PairRM checkpoint"
        )
    marks = [ids[mark] for mark in MARKS[:3]]
    if "hidden_size" not in config:
        raise HarnessError(
            f"{source}: config.json describes no DeBERTa (no hidden_size); this is not a PairRM "
            "checkpoint"
        )
    if [tokenizer.encode(f"{mark}a").ids[1] for mark in MARKS[:3]] != marks:
        raise HarnessError(
            f"{source}: the tokenizer does not begin a text with [CLS] and its mark; this is not "
            "a PairRM checkpoint"
        )
    named = [
        settings.get(name) for name in ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")
    ]
    if any(number is not None for number in named) and named != marks:
        raise HarnessError(
            f"{source}: config.json gives the marks the ids {named}, the tokenizer {marks}; the "
            "files do not belong together"
        )
    source_tokens = int(settings.get("source_maxlength") or SOURCE_TOKENS)
    total = source_tokens + 2 * int(settings.get("candidate_maxlength") or CANDIDATE_TOKENS)
    kept = {
        name: value
        for name, value in config.items()
        if name not in ("architectures", "transformers_version", "torch_dtype", "dtype")
    }
    return Checkpoint(
        source, weights, kept, tokenizer, (marks[0], marks[1], marks[2]), source_tokens, total
    )


def _encoder_folder(path: Path, settings: dict[str, Any], source: str) -> Path:
    """Where the package's form of a checkpoint finds its encoder's configuration and tokenizer: a
    folder, or the hub's cache.
    """
    from huggingface_hub import snapshot_download

    if settings["ranker_type"] != "pairranker":
        raise HarnessError(
            f"{source}: config.json has ranker_type {settings['ranker_type']!r}; only "
            "'pairranker' is PairRM"
        )
    name = str(settings.get("model_name") or "")
    if name and (path / name / "config.json").is_file():
        return path / name
    try:
        return Path(
            snapshot_download(name, allow_patterns=list(ENCODER_FILES), local_files_only=True)
        )
    except (OSError, ValueError) as error:
        raise HarnessError(
            f"{source}: needs the configuration and tokenizer of model_name {name!r}, which is no "
            "folder and not in the hub's cache. Fetch them "
            f"(`hf download {name} config.json spm.model tokenizer_config.json`), or use "
            "llm-blender/PairRM-hf, which holds them"
        ) from error


def _tokenizer(folder: Path, source: str, *, add_marks: bool) -> Tokenizer:
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            raise HarnessError(
                f"{source}: cannot read {folder / 'tokenizer.json'} ({str(error)[:200]})"
            ) from error
    elif (folder / "spm.model").is_file():
        tokenizer, add_marks = _from_pieces(folder, source), True
    else:
        raise HarnessError(f"{source}: {folder} holds no tokenizer (tokenizer.json or spm.model)")
    if add_marks:
        tokenizer.add_tokens(list(MARKS))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _from_pieces(folder: Path, source: str) -> Tokenizer:
    """DeBERTa-v3's tokenizer from its sentencepiece model, by the rules of transformers' own
    conversion.
    """
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import DebertaV2Converter

    settings = (
        settings_of(folder / "tokenizer_config.json", source)
        if (folder / "tokenizer_config.json").is_file()
        else {}
    )
    ends = {"[CLS]": 1, "[SEP]": 2}  # their ids in every published DeBERTa-v2 and v3
    described = SimpleNamespace(
        vocab_file=str(folder / "spm.model"),
        do_lower_case=bool(settings.get("do_lower_case", False)),
        split_by_punct=bool(settings.get("split_by_punct", False)),
        convert_tokens_to_ids=ends.__getitem__,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no byte fallback: nor had the authors' tokenizer
            tokenizer: Tokenizer = DebertaV2Converter(described).converted()
    except ImportError as error:
        raise HarnessError(
            f"{source}: reading {folder / 'spm.model'} needs the package protobuf (`pip install "
            "protobuf`)"
        ) from error
    except Exception as error:
        raise HarnessError(
            f"{source}: cannot read {folder / 'spm.model'} ({str(error)[:200]})"
        ) from error
    tokenizer.add_special_tokens(
        ["[PAD]", "[CLS]", "[SEP]", AddedToken("[UNK]", normalized=True, special=True), "[MASK]"]
    )
    if any(tokenizer.token_to_id(token) != number for token, number in ends.items()):
        raise HarnessError(
            f"{source}: {folder / 'spm.model'} is not DeBERTa's: [CLS] and [SEP] do not have the "
            "ids 1 and 2"
        )
    return tokenizer
