"""The tokenizer that a checkpoint stores, and its chat template as text: which one it uses, what it
is told (a day, its own arguments), and what it writes around the turns of a conversation. Tokens
are ``chat``'s.

transformers 5 builds the tokenizers of some classes anew: vocabulary and merges from
``tokenizer.json``, normalisation, splitting and decoding from the class. Where the two differ the
ids are not those the model was trained on, and nothing says so: a byte-level vocabulary under the
name LlamaTokenizerFast loses its spaces, DeBERTa-v3 its compatibility normalisation
(https://github.com/huggingface/transformers/issues/45488). What is stored is what the model has
seen, so it is what is used here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.model.checkpoint_files import settings_of
from harness.records import HarnessError, first_line
from harness.study.sections import TEMPLATE_DATE, Argument

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
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(path)
    _check_stored(path, trust_remote_code)
    file = path / "tokenizer.json"
    stored = _read(file) if file.is_file() else None
    try:
        named = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # of any kind, by which of its files is wrong
        raise HarnessError(
            f"{path}: cannot load the tokenizer ({type(error).__name__}: {first_line(error, 300)})"
        ) from error
    theirs = type(named).__module__.startswith("transformers.")
    if stored is None or not theirs or not hasattr(named, "backend_tokenizer"):
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
        f"makes {found[:12]} of it; save the checkpoint's tokenizer again with the transformers "
        "that trained it"
    )


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
    """``tokenizer.json``, changed as the ``tokenizer_config.json`` beside it says."""
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


# -- its chat template -----------------------------------------------------------------------------

Messages = Sequence[Mapping[str, str]]
Kept = TypeVar("Kept")
_DIRECTIVES = "aAbBdHIjmMpSuUwWxXyYcDeFGVTR"
_ARGUMENTS, _DAY = "{#- arguments #}", "{%- set date_string = "
_TOLD = re.compile(rf"({re.escape(_ARGUMENTS)}.*\n)?({re.escape(_DAY)}.*\n)?")
"""The lines before a template that say what it is told."""

ANSWER = "Fine thanks"
ANSWERED = {"role": "assistant", "content": ANSWER}
_USER, _AGAIN = {"role": "user", "content": "How are you"}, {"role": "user", "content": "Hello"}
_REPLY = {"role": "assistant", "content": "Hi there"}
_SYSTEM = {"role": "system", "content": "Talk plainly"}
FORMS: tuple[Messages, ...] = (
    (_USER,),
    (_AGAIN, _REPLY, _USER),
    (_SYSTEM, _USER),
    (_SYSTEM, _AGAIN, _REPLY, _USER),
)
"""Every form of prompt that data have."""


def chosen(given: Any, name: str = "") -> str:
    """The template of a tokenizer that has one, none (empty) or several by name.

    Raises HarnessError for a name that is not there, and for several without a ``default``.
    """
    if isinstance(given, Mapping):
        if (name or "default") in given:
            return str(given[name or "default"])
        which = f"none is {name!r}" if name else "none is 'default'"
        raise HarnessError(
            f"the tokenizer has named chat templates ({', '.join(sorted(given))}), {which}; choose "
            "one with model.chat_template: <name>"
        )
    if name:
        raise HarnessError(
            f"model.chat_template: no file {name}, and the tokenizer has no named templates"
        )
    return str(given or "")


def told(template: str, day: str = "", arguments: Mapping[str, Argument] | None = None) -> str:
    """The template with its clock stopped and its arguments given, in whatever renders it:
    transformers, lm-eval, vLLM, or who loads the trained checkpoint. ``strftime_now`` and
    ``date_string`` give ``day``. What it was told before stays where nothing else is said.

    day: ISO date; empty: ``TEMPLATE_DATE``. arguments: variables of the template's own
    (``enable_thinking``). A template that reads no clock stays as it is. Raises HarnessError for an
    argument that it does not read.
    """
    before = _TOLD.match(template)
    asked, stopped = (before[1] or "", before[2] or "") if before else ("", "")
    text = template[len(asked) + len(stopped) :]
    if re.search(r"\b(strftime_now|date_string)\b", text) and (day or not stopped):
        stopped = _stopped(day or TEMPLATE_DATE)
    if arguments:
        unread = [name for name in arguments if not re.search(rf"\b{re.escape(name)}\b", text)]
        if unread:
            raise HarnessError(
                f"model.template_arguments.{unread[0]}: the chat template reads no such variable"
            )
        # Jinja's constants for booleans and texts are JSON's.
        sets = (f"{{%- set {name} = {json.dumps(one)} %}}" for name, one in arguments.items())
        asked = f"{_ARGUMENTS}{''.join(sets)}\n"
    return f"{asked}{stopped}{text}"


@lru_cache(maxsize=64)
def _stopped(day: str) -> str:
    """The line that stops the clock."""
    when = date.fromisoformat(day)
    values = {f"%{letter}": when.strftime(f"%{letter}") for letter in _DIRECTIVES}
    short = {f"%-{key[1]}": value.lstrip("0") or "0" for key, value in values.items()}
    replaced = "".join(f".replace('{a}', '{b}')" for a, b in {**short, **values, "%%": "%"}.items())
    macro = f"{{%- macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{%- endmacro %}}"
    # The template's first line break of its own stays: Jinja drops the one after a block.
    return f"{_DAY}'{when:%d %b %Y}' %}}{macro}\n"


def template_of(tokenizer: Any) -> str:
    """The text of the tokenizer's template, its clock stopped. Raises HarnessError for none."""
    text = told(chosen(tokenizer.chat_template))
    if not text:
        raise HarnessError(
            "the tokenizer has no chat template; give one with model.chat_template: <file.jinja>"
        )
    return text


def _kept(function: Callable[[Any], Kept]) -> Callable[[Any], Kept]:
    """Remembers what follows from a tokenizer's template, which may be set anew."""
    kept = lru_cache(maxsize=16)(lambda tokenizer, _template: function(tokenizer))
    return wraps(function)(lambda tokenizer: kept(tokenizer, template_of(tokenizer)))


def render(tokenizer: Any, messages: Messages, *, generation: bool) -> str:
    """Text of a conversation as the chat template writes it; ``generation`` adds the header of the
    coming assistant turn. A system turn that the template has no place for stands before the first
    user's text.
    """
    return _apply(tokenizer, placed(tokenizer, messages), generation)


def placed(tokenizer: Any, messages: Messages) -> Messages:
    """The conversation; where the template has no place for a system turn, with its text and an
    empty line before the first user's.
    """
    if not messages or messages[0]["role"] != "system" or takes_system_turn(tokenizer):
        return messages
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system["content"]}, *rest]
    text = f"{system['content']}\n\n{rest[0]['content']}".strip()
    return [{**rest[0], "content": text}, *rest[1:]]


def _apply(tokenizer: Any, messages: Messages, generation: bool) -> str:
    from transformers import PreTrainedTokenizerBase

    text, turns = template_of(tokenizer), [dict(m) for m in messages]
    # Not a repository's own method, which may write something else (`check_own_method`).
    apply = PreTrainedTokenizerBase.apply_chat_template
    try:
        given: Any = {"chat_template": text, "add_generation_prompt": generation}
        return str(apply(tokenizer, turns, tokenize=False, **given))
    except Exception as error:  # templates are programs: theirs are of any kind
        roles = [m.get("role") for m in messages]
        message = f"the chat template refuses a conversation with roles {roles}: "
        raise HarnessError(message + first_line(error, 300)) from error


def check_own_method(tokenizer: Any) -> None:
    """Raise HarnessError where a repository's own ``apply_chat_template``, which lm-eval and others
    call, writes something else than its chat template.
    """
    from transformers import PreTrainedTokenizerBase

    if type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template:
        return
    for form in FORMS:
        if form[0]["role"] == "system" and not takes_system_turn(tokenizer):
            continue
        wanted = _apply(tokenizer, form, True)
        turns = [dict(turn) for turn in form]
        try:
            own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # noqa: BLE001 - code of the repository: any kind
            own = first_line(error)
        if own != wanted:
            raise HarnessError(
                "the repository's own apply_chat_template does not write what its chat template "
                f"does: {str(own)[:80]!r} instead of {wanted[:80]!r}. Save the tokenizer without "
                "its own class (PreTrainedTokenizerFast), with the template that it was trained on"
            )


@_kept
def takes_system_turn(tokenizer: Any) -> bool:
    """Whether the chat template writes a system turn instead of refusing or forgetting it."""
    try:
        return _SYSTEM["content"] in _apply(tokenizer, (_SYSTEM, _USER), True)
    except HarnessError:
        return False


@dataclass(frozen=True)
class Frame:
    """What a template writes around texts. openings: what stands before a turn's text, blanks
    stripped. lead: between the generation prompt and the answer in a finished turn. end: the token
    that ends an assistant's turn.
    """

    openings: tuple[str, ...]
    lead: str
    end: str


@_kept
def frame(tokenizer: Any) -> Frame:
    """The frame of the tokenizer's template. Raises HarnessError where answers have no end."""
    header = render(tokenizer, FORMS[0], generation=True)
    whole = render(tokenizer, [*FORMS[0], ANSWERED], generation=False)
    before, found, tail = whole.rpartition(ANSWER)
    if not found:
        written = whole[len(header) :]
        raise HarnessError(f"the chat template rewrites the answer {ANSWER!r}: {written[:60]!r}")
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    known = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
    end = next((token for token in known if token and tail.lstrip().startswith(token)), "")
    if not end:
        raise HarnessError(
            "the chat template ends an assistant's turn without an end-of-turn token: after the "
            f"answer comes {tail!r}; give one that writes it with model.chat_template"
        )
    lead = before[len(header) :] if before.startswith(header) else ""
    return Frame(_openings(tokenizer, end), lead, end)


def _openings(tokenizer: Any, end: str) -> tuple[str, ...]:
    """Texts that begin a user's, an assistant's and a system's turn, longest first."""
    found = {str(tokenizer.bos_token or "")}
    for form in FORMS:
        rest = render(tokenizer, form, generation=True)
        for turn in form:
            before, _, rest = rest.partition(turn["content"])
            before = before.strip()
            found |= {before, before.removeprefix(end).strip()}
        found |= {rest.strip().removeprefix(end).strip()}
    return tuple(sorted((text for text in found if len(text) > 1), key=len, reverse=True))
