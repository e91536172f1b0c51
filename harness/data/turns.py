"""A column's value as chat turns: lists, lone turns, JSON text of them, Anthropic's transcripts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.records import HarnessError, printable

Messages = tuple[Mapping[str, str], ...]

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # ShareGPT's names.
    "human": "user",
    "gpt": "assistant",
}
TEXTUAL = (None, "text", "input_text", "output_text")
"""Types of a part of a turn's content that is text."""
CARRYING = (
    *("tools", "tool_calls", "tool_call_id", "tool_responses"),
    *("functions", "function_call", "observation"),
    *("image", "images", "video", "videos", "audio", "audios"),
    *("documents", "thinking", "reasoning", "reasoning_content", "refusal", "chat_template_kwargs"),
)
"""Columns and keys of turns that a model would be shown beside the text: none of them is trained
here, so a row that has one is refused.
"""
_TURN_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*["'](role|content|from|value)["']\s*:""")
_LABEL = re.compile(r"\r?\n\r?\n(Human|Assistant):[ \t]?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class NotAPairError(Exception):
    """A well-formed row that gives no preference pair; the text is the reason that is counted."""


def absent(value: Any) -> bool:
    """Whether a value stands for none: null, NaN, blank text, an empty list or mapping."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (Sequence, Mapping)) and not value)


def shown(value: Any) -> str:
    """The beginning of a value, for messages."""
    return printable(str(value)[:80])


def refuse_carried(values: Mapping[str, Any], at: str) -> None:
    """Raise HarnessError where a row or a turn carries more than text."""
    for name in CARRYING:
        value = values.get(name)
        if not absent(value) and value not in ("[]", "{}", "null"):
            raise HarnessError(
                f"{at}: {name!r} is not read here, and without it the row says something else; "
                "use rows of text alone"
            )


def turns_or_text(value: Any, at: str) -> Messages | str:
    """Turns where the value holds turns in any form, else the text it is.

    at: file, line and column, for messages. Raises HarnessError for anything else.
    """
    if isinstance(value, str):
        return transcript(value) or _turns_in_json(value, at) or value
    if isinstance(value, Mapping):
        value = _unzipped(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return tuple(_turn(turn, f"{at}: turn {number}") for number, turn in enumerate(value, 1))
    raise HarnessError(f"{at}: text or a list of turns is wanted, this is a {type(value).__name__}")


def _unzipped(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A lone turn, or columns of turns as datasets writes them ({role: [...], content: [...]})."""
    columns = list(value.values())
    sizes = {len(column) for column in columns if isinstance(column, list)}
    if len(sizes) != 1 or not all(isinstance(column, list) for column in columns):
        return [value]
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _turn(turn: Any, at: str) -> Mapping[str, str]:
    names = ("role", "content")
    if isinstance(turn, Mapping) and "role" not in turn:
        names = ("from", "value")
    if isinstance(turn, Mapping):
        refuse_carried(turn, at)
    if not isinstance(turn, Mapping) or not isinstance(turn.get(names[0]), str):
        raise HarnessError(f"{at} is not {{role: text, content: text}}: {shown(turn)}")
    if names[1] not in turn:
        raise HarnessError(f"{at} has no {names[1]}: {shown(turn)}")
    role = turn[names[0]]
    if role not in ROLES:
        raise HarnessError(f"{at} has role {role!r}; allowed: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": _content(turn[names[1]], at)}


def _content(content: Any, at: str) -> str:
    """Text, or a list of parts that are all text, joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        # An image's part may carry an empty text where a table gives every part the same keys.
        texts = [one for one in content if isinstance(one, Mapping) and one.get("type") in TEXTUAL]
        parts = [part.get("text") for part in texts] if len(texts) == len(content) else [None]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    raise HarnessError(
        f"{at} is not {{role: text, content: text}}: its content is {shown(content)}"
    )


def _turns_in_json(text: str, at: str) -> Messages:
    """Turns that were written as JSON text; empty where the text is no such thing."""
    if not _TURN_AS_TEXT.match(text):
        return ()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        named = all(name in text for name in ("role", "content"))
        if named or all(name in text for name in ("from", "value")):
            raise HarnessError(
                f"{at}: turns written as text that is no JSON ({text[:40]!r}…); write them as "
                "a list of {role, content}"
            ) from error
        return ()
    turns = [found] if isinstance(found, dict) else found
    known = [isinstance(turn, dict) and _names_a_role(turn) for turn in turns]
    if not any(known):
        return ()
    return tuple(_turn(turn, f"{at}: turn {number}") for number, turn in enumerate(turns, 1))


def _names_a_role(turn: Mapping[str, Any]) -> bool:
    return any(
        str(turn.get(name)) in ROLES and content in turn
        for name, content in (("role", "content"), ("from", "value"))
    )


def stripped_transcript(text: str) -> Messages:
    """Turns of a transcript that lost its first blank lines; empty for text that could be another
    (an answer may be a dialogue: ask only of prompts).
    """
    turns = transcript("\n\n" + text)
    return turns if any(turn["role"] == "assistant" for turn in turns) else ()


def transcript(text: str) -> Messages:
    """Turns of Anthropic's transcript "\\n\\nHuman: … \\n\\nAssistant: …"; empty for other text."""
    first = _LABEL.match(text)
    if not first or first[1] != "Human":
        return ()
    parts = _LABEL.split(text)[1:]
    return tuple(
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )
