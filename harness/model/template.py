"""A chat template as text: which one a checkpoint uses, on what day, and what it writes around the
turns of a conversation. Tokens are ``chat``'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from harness.records import HarnessError, first_line
from harness.study.sections import TEMPLATE_DATE

Messages = Sequence[Mapping[str, str]]
_DIRECTIVES = "aAbBdHIjmMpSuUwWxXyYcDeFGVTR"
_FIXED = "{%- set date_string = "
"""How a template begins once its day is fixed."""

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


@lru_cache(maxsize=64)
def dated(template: str, day: str = "") -> str:
    """The template with its clock stopped: ``strftime_now`` and ``date_string`` give ``day`` in
    whatever renders it: transformers, lm-eval, vLLM, or who loads the trained checkpoint.

    day: ISO date; empty: the day it was given before, else ``TEMPLATE_DATE``. A template that reads
    neither stays as it is.
    """
    if template.startswith(_FIXED):
        if not day:
            return template
        template = template.partition("\n")[2]
    if not re.search(r"\b(strftime_now|date_string)\b", template):
        return template
    when = date.fromisoformat(day or TEMPLATE_DATE)
    values = {f"%{letter}": when.strftime(f"%{letter}") for letter in _DIRECTIVES}
    short = {f"%-{key[1]}": value.lstrip("0") or "0" for key, value in values.items()}
    replaced = "".join(f".replace('{a}', '{b}')" for a, b in {**short, **values, "%%": "%"}.items())
    stopped = f"{_FIXED}'{when:%d %b %Y}' %}}{{%- macro strftime_now(format) %}}"
    # The template's first line break of its own stays: Jinja drops the one after a block.
    return f"{stopped}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"


def template_of(tokenizer: Any) -> str:
    """The text of the tokenizer's template, its clock stopped. Raises HarnessError for none."""
    text = dated(chosen(tokenizer.chat_template))
    if not text:
        raise HarnessError(
            "the tokenizer has no chat template; give one with model.chat_template: <file.jinja>"
        )
    return text


def render(tokenizer: Any, messages: Messages, *, generation: bool) -> str:
    """Text of a conversation as the chat template writes it; ``generation`` adds the header of the
    coming assistant turn. A system turn that the template has no place for stands before the first
    user's text.
    """
    if messages and messages[0]["role"] == "system" and not takes_system_turn(tokenizer):
        messages = without_system_turn(messages)
    return _apply(tokenizer, messages, generation)


def _apply(tokenizer: Any, messages: Messages, generation: bool) -> str:
    text = template_of(tokenizer)
    # A repository's own method may not know the argument.
    given = {} if text == tokenizer.chat_template else {"chat_template": text}
    try:
        found = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation, **given
        )
    except Exception as error:
        if type(error).__module__.startswith("jinja2"):
            roles = [m.get("role") for m in messages]
            message = f"the chat template refuses a conversation with roles {roles}: "
            raise HarnessError(message + first_line(error, 300)) from error
        raise
    return str(found)


def takes_system_turn(tokenizer: Any) -> bool:
    """Whether the chat template writes a system turn instead of refusing or forgetting it."""
    return _takes_system_turn(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _takes_system_turn(tokenizer: Any, template: str) -> bool:
    # Only a part of the cache's key: a template may be set on a tokenizer already seen.
    del template
    try:
        return _SYSTEM["content"] in _apply(tokenizer, (_SYSTEM, _USER), True)
    except HarnessError:
        return False


def without_system_turn(messages: Messages) -> Messages:
    """The conversation with its system turn's text, and an empty line, before the first user's."""
    system, *rest = messages
    first = rest[0] if rest and rest[0]["role"] == "user" else None
    if first is None:
        return [{"role": "user", "content": system["content"]}, *rest]
    text = f"{system['content']}\n\n{first['content']}".strip()
    return [{**first, "content": text}, *rest[1:]]


@dataclass(frozen=True)
class Frame:
    """What a template writes around texts. openings: what stands before a turn's text, blanks
    stripped. lead: between the generation prompt and the answer in a finished turn. end: the token
    that ends an assistant's turn.
    """

    openings: tuple[str, ...]
    lead: str
    end: str


def frame(tokenizer: Any) -> Frame:
    """The frame of the tokenizer's template. Raises HarnessError where an assistant's turn has no
    end.
    """
    return _frame(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _frame(tokenizer: Any, template: str) -> Frame:
    del template
    header = render(tokenizer, FORMS[0], generation=True)
    whole = render(tokenizer, [*FORMS[0], ANSWERED], generation=False)
    before, found, tail = whole.rpartition(ANSWER)
    if not found:
        written = whole[len(header) :]
        raise HarnessError(f"the chat template rewrites the answer {ANSWER!r}: {written[:60]!r}")
    known = sorted(added_tokens(tokenizer), key=len, reverse=True)
    end = next((token for token in known if tail.lstrip().startswith(token)), "")
    if not end:
        raise HarnessError(
            "the chat template ends an assistant's turn without an end-of-turn token: after the "
            f"answer comes {tail!r}"
        )
    openings = _openings(tokenizer, end)
    return Frame(openings, before[len(header) :] if before.startswith(header) else "", end)


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


def added_tokens(tokenizer: Any) -> set[str]:
    """Every token that stands outside the vocabulary's own pieces, special or not."""
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return {token for token in added | set(tokenizer.all_special_tokens) if token}
