"""The tokenizer a checkpoint stores, whatever the class it names would make of it.

transformers 5 builds the tokenizers of some classes anew: vocabulary and merges from
``tokenizer.json``, normalisation, splitting and decoding from the class. Where the two differ the
ids are not those the model was trained on, and nothing says so: a byte-level vocabulary under the
name LlamaTokenizerFast loses its spaces, DeBERTa-v3 its compatibility normalisation
(https://github.com/huggingface/transformers/issues/45488). What is stored is what the model has
seen, so it is what is used here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.model.checkpoint_files import settings_of
from harness.records import HarnessError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROBES = (
    "Hello world",
    " a leading space",
    "a trailing space ",
    "two  spaces and   three",
    "lines\nbroken\n\ntwice\r\n\tand a tab",
    "It's 2024: 1,234.56 + 7 = 1241.56, isn't it?",
    "def f(x):\n    return {x[0]: '\\n'}",
    "naïve café, nai\u0308ve cafe\u0301",
    "ﬁne ½ ｆｕｌｌ ① ™ \u00a0\u3000 \u200b",
    "日本語 한국어 العربية हिन्दी",
    "🙂👩\u200d👩\u200d👧",
    "▁lower Ġline",
)
"""Texts in which ways of normalising and splitting differ."""
JOINTS = ("Hi{}there", "Hi {} there", "Hi.{}\nThere", "{} Hi")
"""Around special tokens: some pipelines begin every piece of text between them anew."""
MARKS_TRIED = 8
FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SETTINGS = (
    ("pre_tokenizer", "ByteLevel", "add_prefix_space", "add_prefix_space"),
    ("normalizer", "BertNormalizer", "do_lower_case", "lowercase"),
    ("normalizer", "BertNormalizer", "strip_accents", "strip_accents"),
    ("normalizer", "BertNormalizer", "tokenize_chinese_chars", "handle_chinese_chars"),
)
"""(part of tokenizer.json, its type, the setting of tokenizer_config.json that overrides it, its
name in the part).
"""


def load(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint folder, with the ids of its ``tokenizer.json`` when it has one.

    The class the folder names is kept when it agrees with the file, and always when it is the
    repository's own code; otherwise the file is loaded as it is, without that class. What
    ``tokenizer_config.json`` sets beside the file (``SETTINGS``) counts as stored. Raises
    HarnessError for a folder without a readable tokenizer, when the file cannot be followed, and
    when there is a sentencepiece model in its place.
    """
    from transformers import PreTrainedTokenizerFast

    _check_stored(Path(path), trust_remote_code)
    file = Path(path) / "tokenizer.json"
    stored = _read(file) if file.is_file() else None
    named = _named(Path(path), trust_remote_code)
    if (
        stored is None
        or not hasattr(named, "backend_tokenizer")
        or not type(named).__module__.startswith("transformers.")
    ):
        return named
    # transformers asks for neither unless it is told to, whatever the file says.
    named.backend_tokenizer.no_padding()
    named.backend_tokenizer.no_truncation()
    texts = _texts(stored, named)
    if first_difference(stored, named.backend_tokenizer, texts) is None:
        return named
    plain: Any = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    plain.backend_tokenizer.normalizer = stored.normalizer
    plain.backend_tokenizer.pre_tokenizer = stored.pre_tokenizer
    difference = first_difference(stored, plain.backend_tokenizer, texts)
    if difference is None:
        return plain
    text, wanted, found = difference
    raise HarnessError(
        f"{path}: {file.name} splits {text!r} into {wanted[:12]}, but loads as a tokenizer that "
        f"makes {found[:12]} of it; "
        "save the checkpoint's tokenizer again with the transformers that trained it"
    )


def _named(path: Path, trust_remote_code: bool) -> Any:
    """What transformers makes of the folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # of any kind, by which of its files is wrong
        raise HarnessError(
            f"{path}: cannot load the tokenizer ({type(error).__name__}: {first_line(error, 300)})"
        ) from error


def _check_stored(path: Path, own_code: bool) -> None:
    """Raise HarnessError for a file of settings that holds none, and for a sentencepiece or
    tiktoken model without the ``tokenizer.json`` made of it: what transformers 5 makes (without the
    package, from the bytes as tiktoken's) loses the blank before a text and the pieces of several.
    A repository's own class reads it itself.
    """
    found = {name: settings_of(path / name, str(path)) for name in FILES if (path / name).is_file()}
    models = sorted(file.name for file in path.glob("*.model"))
    own = own_code and "auto_map" in found.get("tokenizer_config.json", {})
    if not models or own or (path / "tokenizer.json").is_file():
        return
    raise HarnessError(
        f"{path}: has {models[0]} but no tokenizer.json, and what the installed transformers makes "
        "of it has other ids than the model was trained on. Make tokenizer.json once, with the "
        "transformers of that model's time (pip install 'transformers<5' sentencepiece protobuf): "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def first_difference(
    stored: Tokenizer, other: Tokenizer, texts: tuple[str, ...]
) -> tuple[str, list[str], list[str]] | None:
    """(text, tokens, other tokens) of the first text with other ids, or whose ids read back
    otherwise; None when all agree.
    """
    for text in texts:
        wanted, found = (t.encode(text, add_special_tokens=False) for t in (stored, other))
        if wanted.ids != found.ids or stored.decode(wanted.ids) != other.decode(found.ids):
            return text, wanted.tokens, found.tokens
    return None


def _read(file: Path) -> Tokenizer:
    """``tokenizer.json`` with the settings of the ``tokenizer_config.json`` beside it, as
    transformers has always read the two.
    """
    from tokenizers import Tokenizer

    beside = file.with_name("tokenizer_config.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        asked = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        for part, kind, name, stored_as in SETTINGS:
            if (content.get(part) or {}).get("type") == kind and isinstance(asked.get(name), bool):
                content[part][stored_as] = asked[name]
        stored: Tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing narrower
        raise HarnessError(
            f"{file}: cannot be read as a tokenizer ({first_line(error)}); fetch or save it again"
        ) from error
    stored.no_padding()
    stored.no_truncation()
    return stored


def _texts(stored: Tokenizer, named: Any) -> tuple[str, ...]:
    """Probe texts, and probes around the special tokens that file and tokenizer both have."""
    known = {
        token.content: number
        for number, token in stored.get_added_tokens_decoder().items()
        if token.special
    }
    shared = [text for text, number in known.items() if named.convert_tokens_to_ids(text) == number]
    used = [text for text in shared if text in named.all_special_tokens]
    marks = list(dict.fromkeys([*used, *shared]))[:MARKS_TRIED]
    return (*PROBES, *(joint.format(mark) for mark in marks for joint in JOINTS))
