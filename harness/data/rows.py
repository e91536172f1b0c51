"""One row in any published form → a prompt with its pair.

Read: TRL's forms (a prompt of its own, or what chosen and rejected share; text or turns),
Anthropic's transcripts, UltraFeedback binarized, ShareGPT's conversations, LLaMA-Factory's
(instruction, input, system, history) and axolotl's and ms-swift's columns. Turns may stand as JSON
text. A row in none of these forms, or with tools or images, is an error with file and line; a row
that is no pair (equal or empty answers, prompts that contradict one another) is left out and
counted, and so is every column of text that is not read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from harness.data.files import Row
from harness.records import HarnessError, LeftOut, Prompt, Tally, content_hash, printable

ANSWERS = ("chosen", "rejected", "rejected_response", "rejected_messages")
PROMPTS = ("prompt", "question", "instruction", "input", "messages", "conversations")
"""Columns that hold the prompt; where a row has several they must agree (``input`` continues
``instruction``).
"""
NAMES = (*ANSWERS, *PROMPTS, "system", "history", "prompt_id", "id", "category")
CARRYING = (
    *("tools", "tool_calls", "tool_call_id", "tool_responses"),
    *("functions", "function_call", "observation"),
    *("image", "images", "video", "videos", "audio", "audios"),
    *("documents", "thinking", "reasoning", "reasoning_content", "refusal", "chat_template_kwargs"),
)
"""Columns and keys of turns that a model would be shown beside the text: none of them is trained
here, so a row that has one is refused.
"""
READ = {*NAMES, *CARRYING}
OF_TURNS = {"role", "content", "from", "value", "name", *CARRYING}
LABELS = ("label", "preference", "winner", "choice", "status")
TIE, OTHER_WAY = ("tie", "draw", "same", "equal"), "rejected"
SAYING = (*TIE, OTHER_WAY, "chosen")
"""How labels begin that say whether the pair is one."""
TEACHING = re.compile(r"((sample|loss)_?)?weights?|margin|train|split|.*_logps?")
"""Columns of any kind that change what a row teaches elsewhere, and nothing here."""
DESCRIBING = re.compile(
    r"(source|dataset|model|language|lang|tags?|topic|domain|type|date|timestamp)s?$"
    r"|.*_(ids?|models?|scores?|ratings?|source|name|type)$"
)
"""Names of columns that describe a row and hold none of its text."""
SCORE = re.compile("(score|rating|reward).*chosen|chosen.*(score|rating|reward)")
"""Columns whose counterpart of the rejected answer must not be higher."""
NO_TEXT = re.compile("[\ud800-\udfff\0]")
"""What text never holds: halves of surrogate pairs and null characters."""
OPENAI = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
UNPAIRED = ("completion", "kto_tag")
LABELLED = (
    *("response_0", "response_1", "response_a", "answer_0"),
    *("human_ref_A", "conversation_a", "summaries"),
)
FOREIGN = {
    **dict.fromkeys(UNPAIRED, "unpaired rows (KTO): each has one answer, and a pair needs two"),
    **dict.fromkeys(
        LABELLED, "two answers with a label beside them: write them as chosen and rejected"
    ),
    "completions": "answers with scores, such as UltraFeedback's before it was binarized: write "
    "the one with the highest overall_score as chosen and another, drawn or the lowest, as "
    "rejected, or take HuggingFaceH4/ultrafeedback_binarized",
}
"""Columns by which a published form that is not read is known."""

Messages = tuple[Mapping[str, str], ...]
ROLES = {role: role for role in ("system", "user", "assistant")}
ROLES |= {"human": "user", "gpt": "assistant"}  # ShareGPT's names
TEXTUAL = (None, "text", "input_text", "output_text")
"""Types of a part of a turn's content that is text."""
_TURN_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*["'](role|content|from|value)["']\s*:""")
_LABEL = re.compile(r"\r?\n\r?\n(Human|Assistant):[ \t]?")


class NotAPairError(Exception):
    """A well-formed row that gives no preference pair; the text is the reason that is counted."""


class Reader:
    """Reads rows and tells what it left out: rows that are no pair, and columns of text that are
    not read.

    columns: our name of a column → its name in the data, where it differs.
    """

    def __init__(self, stage: str, what: str, columns: Mapping[str, str] | None = None) -> None:
        self.rows, self.columns = Tally(stage, what), Tally(stage, f"columns of {what}")
        self.names = columns or {}
        self.places: dict[str, str] = {}
        for name in self.names:
            if name not in NAMES:
                raise HarnessError(
                    f"data.columns.{name} is no column of ours; allowed: {', '.join(NAMES)}"
                )

    def prompts(self, rows: Iterable[Row]) -> list[Prompt]:
        """Prompts with unique ids, and ``places`` of them by id."""
        found, places = [], []
        for row in rows:
            self.rows.read += 1
            self.columns.read += 1
            own = self._named(row)
            for column in _unread(own.values):
                self.columns.leave_out(f"{column!r} is not read", row.place)
            try:
                found.append(prompt_of(own))
                places.append(row.place)
            except NotAPairError as reason:
                self.rows.leave_out(str(reason), row.place)
        prompts = unique(found, set())
        self.places = {one.id: place for one, place in zip(prompts, places, strict=True)}
        return prompts

    def _named(self, row: Row) -> Row:
        """The row with its columns under our names."""
        for name, theirs in self.names.items():
            if theirs not in row.values:
                raise HarnessError(
                    f"{row.place}: data.columns.{name} names column {theirs!r}; the row has: "
                    f"{_names(row)}"
                )
        taken = {*self.names, *self.names.values()}
        values = {name: value for name, value in row.values.items() if name not in taken}
        values |= {name: row.values[theirs] for name, theirs in self.names.items()}
        return Row(values, row.place)

    def left_out(self) -> tuple[LeftOut, ...]:
        """Rows, then columns."""
        return (*self.rows.left_out(), *self.columns.left_out())


def unique(prompts: Sequence[Prompt], taken: set[str]) -> list[Prompt]:
    """A repeated id gets ``#2``, ``#3``, … after it."""
    seen: Counter[str] = Counter()
    result = []
    for prompt in prompts:
        name = prompt.id
        while name in taken or seen[name]:
            seen[prompt.id] += 1
            name = f"{prompt.id}#{seen[prompt.id]}"
        seen[name] += 1
        result.append(replace(prompt, id=name))
    return result


def prompt_of(row: Row) -> Prompt:
    """The row as a Prompt. HarnessError: a wrong form; NotAPairError: no usable pair."""
    row = Row(_unwrapped(row.values), row.place)
    values = row.values
    _refuse_carried(values, row.place)
    prompts = _prompts(row)
    messages, chosen, rejected = _pair(row, next(iter(prompts.values()), None))
    messages = _with_system(messages, values.get("system"), row.place)
    for name, turns in prompts.items():
        if not _agree(turns, messages, chosen):
            raise NotAPairError(f"column {name} holds another prompt than the answers")
    if not messages or messages[-1]["role"] != "user":
        raise NotAPairError("no user turn before the answer")
    if any(not turn["content"].strip() for turn in messages):
        raise NotAPairError("empty turn in the prompt")
    if not chosen.strip() or not rejected.strip():
        raise NotAPairError("empty answer")
    if chosen.strip() == rejected.strip():
        raise NotAPairError("identical answers")
    _check_labels(values)
    names = (values.get(name) for name in ("prompt_id", "id"))
    given = next((str(name) for name in names if not _absent(name)), "")
    category = "" if _absent(values.get("category")) else str(values["category"])
    name = given or content_hash(messages, length=16)
    texts = [name, category, chosen, rejected, *(turn["content"] for turn in messages)]
    if any(NO_TEXT.search(text) for text in texts):
        raise NotAPairError("a lone surrogate or a null character in its text")
    return Prompt(name, messages, chosen, rejected, category)


def response_of(row: Row, column: str, messages: Messages) -> str:
    """A further response to the prompt, such as y; empty where the row has none."""
    if _absent(row.values.get(column)):
        return ""
    before, text = _answer(row, column, messages)
    if before != messages:
        raise NotAPairError(f"column {column} holds another prompt than the answers")
    return text


# -- columns ---------------------------------------------------------------------------------------
def _unread(values: Mapping[str, Any]) -> list[str]:
    """Columns that hold text or lists, or would weigh a row, and are neither read nor known to
    describe the row; and such keys of turns, as ``column[].key``.
    """
    values = _unwrapped(values)
    found = [name for name, value in values.items() if name not in READ and _tells(name, value)]
    for name in (*ANSWERS, *PROMPTS):
        turns = values.get(name)
        said: dict[str, Any] = {}
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, Mapping):
                said |= {key: one for key, one in turn.items() if not _absent(one)}
        told = [key for key, one in said.items() if key not in OF_TURNS and _tells(key, one)]
        found += [f"{name}[].{key}" for key in told]
    return found


def _tells(name: str, value: Any) -> bool:
    if _absent(value) or (name in LABELS and _label(value).startswith(SAYING)):
        return False
    if name in LABELS or TEACHING.fullmatch(name.lower()):
        return True
    return isinstance(value, (str, list, dict)) and not DESCRIBING.match(name.lower())


def _unwrapped(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Columns of a row; those of OpenAI's preference form under our names."""
    asked = values.get("input")
    if not isinstance(asked, Mapping) or not OPENAI.keys() <= values.keys():
        return values
    own = {OPENAI.get(name, name): one for name, one in values.items() if name != "input"}
    return own | {name: asked[name] for name in ("messages", "tools") if name in asked}


def _refuse_carried(values: Mapping[str, Any], at: str) -> None:
    for name in CARRYING:
        value = values.get(name)
        if not _absent(value) and value not in ("[]", "{}", "null"):
            raise HarnessError(
                f"{at}: {name!r} is not read here, and without it the row says something else; "
                "use rows of text alone"
            )


def _check_labels(values: Mapping[str, Any]) -> None:
    """Scores and labels beside the pair must not say another thing than the pair."""
    said = [_label(values.get(name)) for name in LABELS]
    if any(label.startswith(TIE) for label in said):
        raise NotAPairError("labelled a tie")
    if any(label.startswith(OTHER_WAY) for label in said):
        raise NotAPairError("labelled the other way")
    for name, best in values.items():
        worst = values.get(name.replace("chosen", "rejected")) if SCORE.search(name) else None
        if _number(best) < _number(worst):
            raise NotAPairError("the rejected answer has the higher score")


def _label(value: Any) -> str:
    return str(value).strip().lower()


def _number(value: Any) -> float:
    """NaN, of which nothing is less or more, where it is none."""
    try:
        return float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:
        return math.nan


def _absent(value: Any) -> bool:
    """Whether a value stands for none: null, NaN, blank text, an empty list or mapping."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (Sequence, Mapping)) and not value)


def _names(row: Row) -> str:
    return printable(", ".join(map(str, row.values))) or "nothing"


def _shown(value: Any) -> str:
    return printable(str(value)[:80])


# -- the prompt ------------------------------------------------------------------------------------
def _prompts(row: Row) -> dict[str, Messages]:
    """What the row's prompt columns hold, as turns, without an open assistant turn at the end."""
    found = {}
    for name in PROMPTS:
        if _absent(row.values.get(name)):
            continue
        turns = _turns_or_text(row.values[name], f"{row.place}, column {name}")
        if isinstance(turns, str):
            turns = _stripped_transcript(turns) or ({"role": "user", "content": turns},)
        if not turns:  # columns of turns without one
            continue
        if turns[-1]["role"] == "assistant" and _absent(turns[-1]["content"]):
            turns = turns[:-1]
        found[name] = turns
    if "instruction" in found and "input" in found:
        both = "\n".join(found.pop(name)[-1]["content"] for name in ("instruction", "input"))
        found = {"instruction": ({"role": "user", "content": both},), **found}
    history = row.values.get("history")
    if found and not _absent(history):
        first = next(iter(found))
        found[first] = (*_history(history, f"{row.place}, column history"), *found[first])
    return found


def _history(value: Any, at: str) -> Messages:
    """Earlier turns: a list of [user, assistant] texts, or of turns."""
    pairs = isinstance(value, list) and all(isinstance(pair, (list, tuple)) for pair in value)
    if not pairs:
        read = _turns_or_text(value, at)
        if isinstance(read, str):
            raise HarnessError(f"{at}: a list of [user, assistant] pairs is wanted, this is text")
        return read
    turns: list[Mapping[str, str]] = []
    for number, pair in enumerate(value, 1):
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise HarnessError(f"{at}: pair {number} is not [user, assistant]: {_shown(pair)}")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return tuple(turns)


def _with_system(messages: Messages, system: Any, place: str) -> Messages:
    if _absent(system):
        return messages
    read = _turns_or_text(system, f"{place}, column system")
    text = read if isinstance(read, str) else "\n".join(turn["content"] for turn in read)
    own = [turn["content"] for turn in messages if turn["role"] == "system"]
    if own and own != [text]:
        raise NotAPairError("column system holds another text than the system turn")
    return messages if own else ({"role": "system", "content": text}, *messages)


def _agree(turns: Messages, messages: Messages, chosen: str) -> bool:
    """Whether a prompt column says what the pair's prompt says: the same turns (a system turn and
    blanks aside), these with the chosen answer, or one of its user turns.
    """
    said, wanted = (
        [(turn["role"], " ".join(turn["content"].split())) for turn in some]
        for some in (turns, messages)
    )
    said, wanted = ([turn for turn in some if turn[0] != "system"] for some in (said, wanted))
    whole = [*wanted, ("assistant", " ".join(chosen.split()))]
    return said in (wanted, whole) or (len(said) == 1 and said[0] in wanted)


# -- the pair --------------------------------------------------------------------------------------
def _pair(row: Row, given: Messages | None) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected answer. given: what the first prompt column holds."""
    chosen, rejected = _answer_columns(row)
    if chosen == "messages":
        given = None
    elif given and given[-1]["role"] == "assistant":  # the whole conversation
        given = given[:-1]
    before, best = _answer(row, chosen, given)
    other, worst = _answer(row, rejected, before if chosen == "messages" else given)
    if before != other:
        raise NotAPairError("prompts differ")
    return before, best, worst


def _answer_columns(row: Row) -> tuple[str, str]:
    """Which columns hold the two answers. Raises HarnessError where there are none."""
    if "chosen" in row.values and "rejected" in row.values:
        return "chosen", "rejected"
    for rejected in ("rejected_response", "rejected_messages"):
        if rejected in row.values and "messages" in row.values:
            return "messages", rejected
    missing = "rejected" if "chosen" in row.values else "chosen"
    known = (f" ({what})" for column, what in FOREIGN.items() if column in row.values)
    raise HarnessError(
        f"{row.place}: no column {missing!r}{next(known, '')}; a row has prompt, chosen and "
        f"rejected, this one has: {_names(row)}. data.columns takes other "
        f"names of them, such as {{{missing}: COLUMN}}"
    )


def _answer(row: Row, column: str, given: Messages | None) -> tuple[Messages, str]:
    """(prompt, final assistant text) of an answer's column. Turns that begin with the assistant go
    on from the prompt; others bring their own.
    """
    if _absent(row.values[column]):
        raise NotAPairError("empty answer")
    read = _turns_or_text(row.values[column], f"{row.place}, column {column}")
    if isinstance(read, str) and given is None:
        read = _stripped_transcript(read) or read
    if isinstance(read, str):
        return (_no_prompt(row, column, "plain text") if given is None else given), read
    if not read:
        raise NotAPairError("empty answer")
    if read[-1]["role"] != "assistant":
        raise NotAPairError("no assistant turn at the end")
    before, answer = read[:-1], read[-1]["content"]
    if read[0]["role"] == "assistant":
        if given is None:
            _no_prompt(row, column, "a lone assistant turn")
        before = (*given, *before)
    return before, answer


def _no_prompt(row: Row, column: str, what: str) -> NoReturn:
    """Raise: an error where the row has no prompt column, else it is left out."""
    if any(name in row.values for name in PROMPTS):
        raise NotAPairError("empty prompt")
    raise HarnessError(
        f"{row.place}, column {column}: {what} needs a column prompt (or a transcript that starts "
        "with '\\n\\nHuman: ')"
    )


# -- turns -----------------------------------------------------------------------------------------
def _turns_or_text(value: Any, at: str) -> Messages | str:
    """Turns where the value holds turns in any form, else the text it is.

    at: file, line and column, for messages. Raises HarnessError for anything else.
    """
    if isinstance(value, str):
        return _transcript(value) or _turns_in_json(value, at) or value
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
    named, content = "role", "content"
    if isinstance(turn, Mapping):
        _refuse_carried(turn, at)
        if "role" not in turn:
            named, content = "from", "value"
    if not isinstance(turn, Mapping) or not isinstance(turn.get(named), str):
        raise HarnessError(f"{at} is not {{role: text, content: text}}: {_shown(turn)}")
    if content not in turn:
        raise HarnessError(f"{at} has no {content}: {_shown(turn)}")
    role = turn[named]
    if role not in ROLES:
        raise HarnessError(f"{at} has role {role!r}; allowed: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": _content(turn[content], at)}


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
        f"{at} is not {{role: text, content: text}}: its content is {_shown(content)}"
    )


def _turns_in_json(text: str, at: str) -> Messages:
    """Turns that were written as JSON text; empty where the text is no such thing."""
    if not _TURN_AS_TEXT.match(text):
        return ()
    forms = (("role", "content"), ("from", "value"))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if any(role in text and content in text for role, content in forms):
            raise HarnessError(
                f"{at}: turns written as text that is no JSON ({text[:40]!r}…); write them as "
                "a list of {role, content}"
            ) from error
        return ()
    turns = [found] if isinstance(found, dict) else found
    for turn in turns:
        if isinstance(turn, dict) and any(
            str(turn.get(role)) in ROLES and content in turn for role, content in forms
        ):
            return tuple(_turn(one, f"{at}: turn {number}") for number, one in enumerate(turns, 1))
    return ()


def _stripped_transcript(text: str) -> Messages:
    """Turns of a transcript that lost its first blank lines; empty for text that could be another
    (an answer may be a dialogue: ask only of prompts).
    """
    turns = _transcript("\n\n" + text)
    return turns if any(turn["role"] == "assistant" for turn in turns) else ()


def _transcript(text: str) -> Messages:
    """Turns of Anthropic's transcript "\\n\\nHuman: … \\n\\nAssistant: …"; empty for other text."""
    first = _LABEL.match(text)
    if not first or first[1] != "Human":
        return ()
    parts = _LABEL.split(text)[1:]
    return tuple(
        {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )
