"""One row in any published form → a prompt with its pair.

Read: TRL's forms (a prompt of its own, or what chosen and rejected share; text or turns),
Anthropic's transcripts, UltraFeedback binarized, ShareGPT's conversations, LLaMA-Factory's
(instruction, input, system, history) and axolotl's and ms-swift's columns. Turns may stand as JSON
text. A row in none of these forms, or with tools or images, is an error with file and line; a row
that is no pair (equal or empty answers, prompts that contradict one another) is left out and
counted, and so is every column of text that is not read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from harness.data.files import Row
from harness.data.turns import (
    CARRYING,
    Messages,
    NotAPairError,
    absent,
    refuse_carried,
    shown,
    stripped_transcript,
    turns_or_text,
)
from harness.records import HarnessError, LeftOut, Prompt, Tally, content_hash, printable

ANSWERS = ("chosen", "rejected", "rejected_response", "rejected_messages")
PROMPTS = ("prompt", "question", "instruction", "input", "messages", "conversations")
"""Columns that hold the prompt; where a row has several they must agree (``input`` continues
``instruction``).
"""
BESIDE = ("system", "history", "prompt_id", "id", "category")
NAMES = (*ANSWERS, *PROMPTS, *BESIDE)
LABELS = ("label", "preference", "winner", "choice", "status")
TIE, OTHER_WAY, THIS_WAY = ("tie", "draw", "same", "equal"), ("rejected",), ("chosen",)
KNOWN = (*TIE, *OTHER_WAY, *THIS_WAY)
"""How labels begin that say whether the pair is one."""
TEACHING = re.compile(r"((sample|loss)_?)?weights?|margin|train|split|.*_logps?")
"""Columns of any kind that change what a row teaches elsewhere, and nothing here."""
SCORE = re.compile("(score|rating|reward).*chosen|chosen.*(score|rating|reward)")
"""Columns whose counterpart of the rejected answer must not be higher."""
READ = {*ANSWERS, *PROMPTS, *BESIDE, *CARRYING}
DESCRIBING = re.compile(
    r"(source|dataset|model|language|lang|tags?|topic|domain|type|date|timestamp)s?$"
    r"|.*_(ids?|models?|scores?|ratings?|source|name|type)$"
)
"""Names of columns that describe a row and hold none of its text."""
OF_TURNS = {"role", "content", "from", "value", "name", *CARRYING}
NO_TEXT = re.compile("[\ud800-\udfff\0]")
"""What text never holds: halves of surrogate pairs and null characters."""
OPENAI = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
FOREIGN = (
    ({"completion", "label"}, "unpaired rows (KTO): each has one answer, and a pair needs two"),
    ({"kto_tag"}, "unpaired rows (KTO): each has one answer, and a pair needs two"),
    (
        {"completions"},
        "answers with scores, such as UltraFeedback's before it was binarized: write the one with "
        "the highest overall_score as chosen and another, drawn or the lowest, as rejected, or "
        "take HuggingFaceH4/ultrafeedback_binarized",
    ),
    ({"human_ref_A"}, "SHP's two answers with a label: write them as chosen and rejected"),
    *(
        ({name}, "two answers with a label beside them: write them as chosen and rejected")
        for name in ("response_0", "response_1", "response_a", "answer_0")
    ),
    ({"conversation_a"}, "Chatbot Arena's battles: write the winner as chosen"),
    ({"summaries"}, "two summaries with a choice: write them as chosen and rejected"),
)
"""Columns by which a published form that is not read is known."""


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
            own = named(row, self.names)
            for column in unread(own.values):
                self.columns.leave_out(f"{column!r} is not read", row.place)
            try:
                found.append(prompt_of(own))
                places.append(row.place)
            except NotAPairError as reason:
                self.rows.leave_out(str(reason), row.place)
        prompts = unique(found, set())
        self.places = {one.id: place for one, place in zip(prompts, places, strict=True)}
        return prompts

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


def unread(values: Mapping[str, Any]) -> list[str]:
    """Columns that hold text or lists, or would weigh a row, and are neither read nor known to
    describe the row; and such keys of turns, as ``column[].key``.
    """
    values = _unwrapped(values)
    found = [name for name, value in values.items() if name not in READ and _tells(name, value)]
    for name in (*ANSWERS, *PROMPTS):
        found += [f"{name}[].{key}" for key in _of_turns(values.get(name))]
    return found


def _tells(name: str, value: Any) -> bool:
    if absent(value) or (name in LABELS and _label(value).startswith(KNOWN)):
        return False
    if name in LABELS or TEACHING.fullmatch(name.lower()):
        return True
    return isinstance(value, (str, list, dict)) and not DESCRIBING.match(name.lower())


def _of_turns(value: Any) -> list[str]:
    """Keys of turns that say something and are not read."""
    turns = [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list) else []
    found = {key: one for turn in turns for key, one in turn.items() if not absent(one)}
    return [key for key, one in found.items() if key not in OF_TURNS and _tells(key, one)]


def named(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns under our names. Raises HarnessError for one it does not have."""
    if not columns:
        return row
    for name, theirs in columns.items():
        if theirs not in row.values:
            raise HarnessError(
                f"{row.place}: data.columns.{name} names column {theirs!r}; the row has: "
                f"{_names(row)}"
            )
    taken = set(columns.values()) | set(columns)
    values = {name: value for name, value in row.values.items() if name not in taken}
    return Row(values | {name: row.values[theirs] for name, theirs in columns.items()}, row.place)


def _unwrapped(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Columns of a row; those of OpenAI's preference form under our names."""
    asked = values.get("input")
    if not isinstance(asked, Mapping) or not OPENAI.keys() <= values.keys():
        return values
    own = {OPENAI.get(name, name): one for name, one in values.items() if name != "input"}
    return own | {name: asked[name] for name in ("messages", "tools") if name in asked}


def prompt_of(row: Row) -> Prompt:
    """The row as a Prompt. HarnessError: a wrong form; NotAPairError: no usable pair."""
    values = _unwrapped(row.values)
    row = Row(values, row.place)
    refuse_carried(values, row.place)
    prompts = _prompts(row)
    messages, chosen, rejected = _pair(row, prompts)
    messages = _with_system(messages, values.get("system"), row.place)
    for name, turns in prompts.items():
        if not _agree(turns, messages, chosen):
            raise NotAPairError(f"column {name} holds another prompt than the answers")
    _check(messages, chosen, rejected)
    _check_labels(values)
    names = (values.get(name) for name in ("prompt_id", "id"))
    given = next((str(name) for name in names if not absent(name)), "")
    category = values.get("category")
    prompt = Prompt(
        given or content_hash(messages, length=16),
        messages,
        chosen,
        rejected,
        "" if absent(category) else str(category),
    )
    texts = [prompt.id, prompt.category, chosen, rejected, *(m["content"] for m in messages)]
    if any(NO_TEXT.search(text) for text in texts):
        raise NotAPairError("a lone surrogate or a null character in its text")
    return prompt


def response_of(row: Row, column: str, messages: Messages) -> str:
    """A further response to the prompt, such as y; empty where the row has none."""
    if absent(row.values.get(column)):
        return ""
    before, text = _answer(row, column, messages)
    if before != messages:
        raise NotAPairError(f"column {column} holds another prompt than the answers")
    return text


# -- the prompt ------------------------------------------------------------------------------------
def _prompts(row: Row) -> dict[str, Messages]:
    """What the row's prompt columns hold, as turns, without an open assistant turn at the end."""
    values = {name: row.values[name] for name in PROMPTS if not absent(row.values.get(name))}
    found = {}
    for name, value in values.items():
        read = turns_or_text(value, f"{row.place}, column {name}")
        if not read:  # columns of turns without one
            continue
        turns = _prompt_turns(read) if isinstance(read, str) else read
        if turns[-1]["role"] == "assistant" and absent(turns[-1]["content"]):
            turns = turns[:-1]
        found[name] = turns
    if "instruction" in found and "input" in found:
        both = "\n".join(found.pop(name)[-1]["content"] for name in ("instruction", "input"))
        found = {"instruction": ({"role": "user", "content": both},), **found}
    history = row.values.get("history")
    if found and not absent(history):
        first = next(iter(found))
        found[first] = (*_history(history, f"{row.place}, column history"), *found[first])
    return found


def _prompt_turns(text: str) -> Messages:
    return stripped_transcript(text) or ({"role": "user", "content": text},)


def _history(value: Any, at: str) -> Messages:
    """Earlier turns: a list of [user, assistant] texts, or of turns."""
    pairs = isinstance(value, list) and all(isinstance(pair, (list, tuple)) for pair in value)
    if not pairs:
        read = turns_or_text(value, at)
        if isinstance(read, str):
            raise HarnessError(f"{at}: a list of [user, assistant] pairs is wanted, this is text")
        return read
    turns: list[Mapping[str, str]] = []
    for number, pair in enumerate(value, 1):
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise HarnessError(f"{at}: pair {number} is not [user, assistant]: {shown(pair)}")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return tuple(turns)


def _with_system(messages: Messages, system: Any, place: str) -> Messages:
    if absent(system):
        return messages
    read = turns_or_text(system, f"{place}, column system")
    text = read if isinstance(read, str) else "\n".join(turn["content"] for turn in read)
    own = [turn["content"] for turn in messages if turn["role"] == "system"]
    if own and own != [text]:
        raise NotAPairError("column system holds another text than the system turn")
    return messages if own else ({"role": "system", "content": text}, *messages)


def _agree(turns: Messages, messages: Messages, chosen: str) -> bool:
    """Whether a prompt column says what the pair's prompt says: the same turns (a system turn
    aside), these with the chosen answer, or one of its user turns.
    """
    said, wanted = ([_plain(turn) for turn in some] for some in (turns, messages))
    said, wanted = ([turn for turn in some if turn[0] != "system"] for some in (said, wanted))
    whole = [*wanted, ("assistant", " ".join(chosen.split()))]
    return said in (wanted, whole) or (len(said) == 1 and said[0] in wanted)


def _plain(turn: Mapping[str, str]) -> tuple[str, str]:
    return turn["role"], " ".join(turn["content"].split())


# -- the pair --------------------------------------------------------------------------------------
def _pair(row: Row, prompts: Mapping[str, Messages]) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected answer."""
    given = next(iter(prompts.values()), None)
    chosen, rejected = _answer_columns(row)
    if chosen == "messages":
        before, best = _answer(row, "messages", None)
        given = before
    else:
        before, best = _answer(row, chosen, _without_answer(given))
    other, worst = _answer(row, rejected, _without_answer(given))
    if before != other:
        raise NotAPairError("prompts differ")
    return before, best, worst


def _without_answer(given: Messages | None) -> Messages | None:
    """A prompt column may hold the whole conversation; its last answer is no part of the prompt."""
    if given and given[-1]["role"] == "assistant":
        return given[:-1]
    return given


def _answer_columns(row: Row) -> tuple[str, str]:
    """Which columns hold the two answers. Raises HarnessError where there are none."""
    if "chosen" in row.values and "rejected" in row.values:
        return "chosen", "rejected"
    for rejected in ("rejected_response", "rejected_messages"):
        if rejected in row.values and "messages" in row.values:
            return "messages", rejected
    missing = "rejected" if "chosen" in row.values else "chosen"
    known = (f" ({what})" for columns, what in FOREIGN if columns <= set(row.values))
    raise HarnessError(
        f"{row.place}: no column {missing!r}{next(known, '')}; a row has prompt, chosen and "
        f"rejected, this one has: {_names(row)}. data.columns takes other "
        f"names of them, such as {{{missing}: COLUMN}}"
    )


def _answer(row: Row, column: str, given: Messages | None) -> tuple[Messages, str]:
    """(prompt, final assistant text) of an answer's column. Turns that begin with the assistant go
    on from the prompt; others bring their own.
    """
    value = row.values[column]
    if absent(value):
        raise NotAPairError("empty answer")
    read = turns_or_text(value, f"{row.place}, column {column}")
    if isinstance(read, str) and given is None:
        read = stripped_transcript(read) or read
    if isinstance(read, str):
        if given is None:
            _no_prompt(row, column, "plain text")
        return given, read
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


def _names(row: Row) -> str:
    return printable(", ".join(map(str, row.values))) or "nothing"


def _no_prompt(row: Row, column: str, what: str) -> NoReturn:
    """Raise: an error where the row has no prompt column, else it is left out."""
    if any(name in row.values for name in PROMPTS):
        raise NotAPairError("empty prompt")
    raise HarnessError(
        f"{row.place}, column {column}: {what} needs a column prompt (or a transcript that starts "
        "with '\\n\\nHuman: ')"
    )


# -- whether it is a pair --------------------------------------------------------------------------
def _check(messages: Messages, chosen: str, rejected: str) -> None:
    if not messages or messages[-1]["role"] != "user":
        raise NotAPairError("no user turn before the answer")
    if any(not turn["content"].strip() for turn in messages):
        raise NotAPairError("empty turn in the prompt")
    if not chosen.strip() or not rejected.strip():
        raise NotAPairError("empty answer")
    if chosen.strip() == rejected.strip():
        raise NotAPairError("identical answers")


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
