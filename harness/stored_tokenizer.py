"""The tokenizer a checkpoint stores, whatever the class it names would make of it.

transformers 5 builds the tokenizers of some classes anew: vocabulary and merges from ``tokenizer.json``, normalisation, splitting and
decoding from the class. Where the two differ the ids are not those the model was trained on, and nothing says so: a byte-level
vocabulary under the name LlamaTokenizerFast loses its spaces, DeBERTa-v3 its compatibility normalisation
(https://github.com/huggingface/transformers/issues/45488). What is stored is what the model has seen, so it is what is used here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records import HarnessError

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


def load(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint folder, with the ids of its ``tokenizer.json`` when it has one.

    The class the folder names is kept when it agrees with the file, or differs from it because ``tokenizer_config.json`` says so;
    otherwise the file is loaded as it is, without that class. Raises what transformers raises for a folder without a readable
    tokenizer, and HarnessError when file, class and configuration cannot be reconciled.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    named: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    file = Path(path) / "tokenizer.json"
    if not file.is_file() or not hasattr(named, "backend_tokenizer") or type(named) is PreTrainedTokenizerFast:
        return named
    stored = _read(file)
    texts = _texts(stored, named)
    if first_difference(stored, named.backend_tokenizer, texts) is None:
        return named
    plain: Any = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    difference = first_difference(stored, plain.backend_tokenizer, texts)
    if difference is None:
        return plain
    if first_difference(plain.backend_tokenizer, named.backend_tokenizer, texts) is None:
        return named  # both follow a setting beside the file, as add_prefix_space
    text, wanted, found = difference
    raise HarnessError(
        f"{path}: {file.name} splits {text!r} into {wanted[:12]}, {type(named).__name__} (tokenizer_config.json) and the file's own settings "
        f"into other tokens ({found[:12]}); set tokenizer_class to PreTrainedTokenizerFast in a copy's tokenizer_config.json"
    )


def first_difference(stored: Tokenizer, other: Tokenizer, texts: tuple[str, ...]) -> tuple[str, list[str], list[str]] | None:
    """(text, tokens, other tokens) of the first text with other ids, or whose ids read back otherwise; None when all agree."""
    for text in texts:
        wanted, found = (t.encode(text, add_special_tokens=False) for t in (stored, other))
        if wanted.ids != found.ids or stored.decode(wanted.ids) != other.decode(found.ids):
            return text, wanted.tokens, found.tokens
    return None


def _read(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        stored: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise HarnessError(f"{file}: cannot be read as a tokenizer ({str(error)[:200]})") from error
    stored.no_padding()
    stored.no_truncation()
    return stored


def _texts(stored: Tokenizer, named: Any) -> tuple[str, ...]:
    """Probe texts, and probes around the special tokens that file and loaded tokenizer both have."""
    known = {token.content: number for number, token in stored.get_added_tokens_decoder().items() if token.special}
    shared = [text for text, number in known.items() if named.convert_tokens_to_ids(text) == number]
    used = [text for text in shared if text in named.all_special_tokens]
    marks = list(dict.fromkeys([*used, *shared]))[:MARKS_TRIED]
    return (*PROBES, *(joint.format(mark) for mark in marks for joint in JOINTS))
