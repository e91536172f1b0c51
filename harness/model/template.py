"""A chat template as text: which one a checkpoint uses, what it is told (a day, its own arguments),
and what it writes around the turns of a conversation. Tokens are ``chat``'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, wraps
from typing import Any, TypeVar

from harness.records import HarnessError, first_line
from harness.study.sections import TEMPLATE_DATE, Argument

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
    """The conversation, its system turn joined where the template has no place for one."""
    if messages and messages[0]["role"] == "system" and not takes_system_turn(tokenizer):
        return without_system_turn(messages)
    return messages


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


@_kept
def frame(tokenizer: Any) -> Frame:
    """The frame of the tokenizer's template. Raises HarnessError where an assistant's turn has no
    end.
    """
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
            f"answer comes {tail!r}; give one that writes it with model.chat_template"
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
