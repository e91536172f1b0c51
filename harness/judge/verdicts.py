"""Reading a judge's rating, and keeping answers from writing it. Pure functions of text.

FastChat takes the first bracketed number anywhere; studies take the judge's last, final verdict or
none at all. What a judge thinks before it answers is never read.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records import Status, content_hash
from harness.study.sections import JudgeSettings

_DOUBLE = re.compile(r"(?<![^\W_])(?<![_)\]])\[\[\s*([^\[\]\n]{1,24}?)\s*\]\]")
"""Not after a letter, a figure or a bracket: those are indices."""
_ATTEMPT = re.compile(r"[+\-−]?\d[\d.,]*(\s*/\s*\d+)?|[+\-]?(nan|inf|infinity)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?")
_LABEL = re.compile(
    r"\b(rating|score|verdict|grade)\b[^\n]{0,30}?(:|=|\bis)\W{0,12}$", re.IGNORECASE
)
_ESCAPED = re.compile(r"\\([\[\]])")
_SINGLE = re.compile(
    r"\b(?:rating|score|verdict|grade)\b(?: is| of)?\W{0,6}\[\s*([^\[\]\n]{1,12}?)\s*\](?!\])",
    re.IGNORECASE,
)
_ALONE = " \t*_\"'`.#>-"

ZERO_WIDTH = "\u200b"
FAILED_ANSWERS = ("$ERROR$", "ERROR")
"""What FastChat stores for an answer that could not be generated."""


@dataclass(frozen=True)
class Rating:
    """1 to 10, or None with no_verdict, ambiguous, not_a_number or out_of_range."""

    value: float | None
    reason: str = ""


def parse_rating(text: str) -> Rating:
    """The last final verdict ``[[n]]`` of a judgment.

    Several verdicts: the last counts if it is labelled ("Rating: [[n]]"), stands alone on its line,
    or all agree; otherwise the judgment is ambiguous. ``x[[3]]`` and ``arr[0]`` are indices, not
    verdicts. Without double brackets a labelled ``Rating: [n]`` counts. Only ASCII numbers from 1
    to 10 are ratings. Brackets may be escaped, as in Markdown and LaTeX.
    """
    text = _ESCAPED.sub(r"\1", text)
    attempts = [match for match in _DOUBLE.finditer(text) if _ATTEMPT.fullmatch(match.group(1))]
    if attempts:
        final = _is_final(attempts, text)
        return _value(attempts[-1].group(1)) if final else Rating(None, "ambiguous")
    written = [match.group(1) for match in _SINGLE.finditer(text)]
    single = {one for one in written if _ATTEMPT.fullmatch(one)}
    if len(single) == 1:
        return _value(single.pop())
    return Rating(None, "ambiguous" if single else "no_verdict")


def _is_final(found: Sequence[re.Match[str]], text: str) -> bool:
    """Whether the last of several verdicts counts: all agree, a label stands between it and the one
    before, or it stands alone on its line.
    """
    last = found[-1]
    if len({match.group(1) for match in found}) == 1:
        return True
    if _LABEL.search(text[found[-2].end() : last.start()]) is not None:
        return True
    start, end = text.rfind("\n", 0, last.start()) + 1, text.find("\n", last.end())
    line = text[start : end if end >= 0 else len(text)]
    return line.replace(last.group(0), "", 1).strip(_ALONE) == ""


def _value(written: str) -> Rating:
    if not _NUMBER.fullmatch(written):
        return Rating(None, "not_a_number")
    value = float(written)
    return Rating(value) if 1.0 <= value <= 10.0 else Rating(None, "out_of_range")


_TAGS = "think(?:ing)?|thought|reasoning|seed:think"
_OPENED = re.compile(
    rf"^\s*(?:<(?:{_TAGS})>|\[THINK\]|\u25c1think\u25b7|<\|(?:begin_of_thought|START_THINKING)\|>"
    r"|<\|channel\|?>(?:analysis|commentary|thought)|analysis(?-i:[A-Z])"
    r"|Here(?: is|'s) my thought process:)",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSED = re.compile(
    rf"</(?:{_TAGS})>|\[/THINK\]|\u25c1/think\u25b7|<\|(?:end_of_thought|END_THINKING)\|>"
    r"|<channel\|>|<\|channel\|>final[^\n]{0,30}?<\|message\|>|assistantfinal"
    r"|Here(?: is|'s) my response:",
    re.IGNORECASE,
)
"""Marks of thinking, as DeepSeek, Mistral, Kimi, OpenThinker, Cohere, gpt-oss (with and without its
special tokens), Gemma and Granite write them where the server does not take it out."""
_MARK = re.compile(r"<\|(?:return|end|(?:START|END)_RESPONSE|(?:begin|end)_of_solution)\|>")


def spoken(text: str) -> str | None:
    """A reply after its last thinking block; None while one is open. A mark in the middle of a line
    quotes an answer and opens nothing. The opening mark may stand in the prompt's template, so the
    closing one alone ends a block.
    """
    closed = list(_CLOSED.finditer(text))
    if closed:
        text = _MARK.sub("", text[closed[-1].end() :]).strip()
    return None if _OPENED.search(text) else text


SEED_PERIOD = 1_000_000
"""Added to ``seed`` for a re-ask: the pocket judge's opinion depends on the seed modulo this."""
CUT_OFF = "cut off"
"""How the reason of a verdict begins that is missing because its reply was cut off."""
MOST_MASS = 0.5
"""The verdict's tokens must together be likelier than everything else."""


def verdict_logprobs(entry: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, float] | None:
    """Log-probability of each verdict token at the position where the judge gave one, variants with
    blanks summed; None when there is no verdict: the answer itself is none of ``tokens``, together
    they hold no more than half of the mass, or the numbers are no log-probabilities.

    entry: ``token``, ``logprob`` and ``top_logprobs`` of one position, as the client reads them.
    """
    if _bare(entry["token"]) not in tokens:
        return None
    found: dict[str, list[float]] = {}
    listed = {(one["token"], one["logprob"]) for one in entry["top_logprobs"]}
    if entry["token"] not in {token for token, _ in listed}:
        listed.add((entry["token"], entry["logprob"]))
    for token, value in sorted(listed):
        if _bare(token) in tokens:
            found.setdefault(_bare(token), []).append(value)
    every = [value for values in found.values() for value in values]
    if not entry["top_logprobs"] or any(value > 1e-6 for value in every):
        return None
    if not MOST_MASS < math.fsum(map(math.exp, every)) < 1.001:
        return None
    return {
        token: values[0] if len(values) == 1 else math.log(math.fsum(map(math.exp, values)))
        for token, values in found.items()
    }


def _bare(token: str) -> str:
    """A token without blanks, also where a server shows them as its tokenizer writes them."""
    return token.strip(" \t\r\n\u2581\u0120")


MT_BENCH_PATTERNS: tuple[re.Pattern[str], ...] = (
    re.compile(r"\[\[\s*(?:[+\-]?\d[\d.,/ ]*|nan|inf|rating|[ABC])\s*\]\]", re.IGNORECASE),
    re.compile(r"\[The (?:Start|End) of [^\]\n]{1,60}\]", re.IGNORECASE),
    re.compile(r"<\|The (?:Start|End) of [^|\n]{1,80}\|>", re.IGNORECASE),
    re.compile(r"^\[(?:Question|User Question|Instruction|System)\][ \t]*$", re.MULTILINE),
    re.compile(r"^###[ \t]*(?:User|Assistant(?: [AB])?|Reference answer):[ \t]*$", re.MULTILINE),
)
"""Verdict syntax and the delimiters of FastChat's judge prompts."""

ALPACA_EVAL_PATTERNS: tuple[re.Pattern[str], ...] = (
    re.compile(r"<\|im_(?:start|end)\|>"),
    re.compile(r"\{(?:instruction|output_1|output_2)\}"),
    re.compile(r'"{3}\s*,?\s*\}'),
    re.compile(r'"model_identifier"'),
    re.compile(r"^## (?:Best Model Identifier|Model Outputs)[ \t]*$", re.MULTILINE),
)
"""ChatML marks, the template's placeholders and the delimiters of alpaca_eval's prompt."""


@functools.cache
def annotator_prompt(file: str) -> tuple[tuple[str, str], ...]:
    """(role, text) of the turns of a prompt below alpaca_eval's ``evaluators_configs``, read from
    its package, which is not imported: that takes seconds.
    """
    spec = importlib.util.find_spec("alpaca_eval")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "evaluators_configs" / file
    turn = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
    found = turn.findall(path.read_text(encoding="utf-8"))
    return tuple((role, text.strip()) for role, text in found)


def neutralise(text: str, patterns: Sequence[re.Pattern[str]]) -> tuple[str, list[str]]:
    """The text with a zero-width space in every match, and what was found."""
    found: list[str] = []
    for pattern in patterns:
        found += [match.group(0)[:80] for match in pattern.finditer(text)]
        text = pattern.sub(lambda match: match[0][0] + ZERO_WIDTH + match[0][1:], text)
    return text, found


def answer_status(status: Status, text: str) -> tuple[Status, list[str]]:
    """An answer's status as a judge is asked about it, and what is noticed: a cut-off one is judged
    and flagged, an empty one is no answer, FastChat's mark of a failed one an error.
    """
    flags = ["truncated"] if status == "truncated" else []
    if status == "ok" or flags:
        failed: Status = "error" if text.strip() in FAILED_ANSWERS else "ok"
        return (failed if text.strip() else "no_answer"), flags
    return status, flags


def mean_of(verdicts: Sequence[tuple[float | None, Status]]) -> tuple[float | None, Status]:
    """One judgment of several sampled verdicts: the mean of those that were read. One that failed
    makes it an error, which the next run asks again; the first's status stands for none read.
    """
    read = [value for value, _ in verdicts if value is not None]
    if any(status == "error" for _, status in verdicts):
        return None, "error"
    return (sum(read) / len(read), "ok") if read else (None, verdicts[0][1])


def cut_off(reasons: Mapping[tuple[str, int], str]) -> list[str]:
    """``item#repeat`` of the verdicts that are missing because a reply was cut off."""
    found = [key for key, reason in reasons.items() if reason.startswith(CUT_OFF)]
    return [f"{item}#{repeat}" for item, repeat in sorted(found)]


def judge_label(judge: JudgeSettings) -> str:
    """The judge's name and a hash of what else decides its verdicts (not its address)."""
    unset = {name for name, default in judge.later.items() if getattr(judge, name) == default}
    elsewhere = {"base_url", "allow_insecure_url", "repeats", *judge.unkeyed}
    defining = judge.model_dump(exclude=elsewhere | unset)
    return f"{judge.model}@{content_hash(defining, length=8)}"
