"""Constraints on an answer whose fulfilment lm-eval's IFEval code checks, and answers that meet
them.

The set is closed: a prompt states each of its constraints in IFEval's own words, so they are read
back from the prompt alone. None of them needs NLTK's data. IFEval: Zhou et al. 2023,
arXiv 2311.07911.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from harness.evaluate.libraries import ifeval

Options = Mapping[str, Any]
Edit = Callable[[str, Options], str]


@dataclass(frozen=True)
class Constraint:
    """kind: IFEval's instruction id. options: what it is given there. text: how a prompt says
    it. place: in the order in which an answer is made to meet several.
    """

    kind: str
    options: Options
    text: str
    place: int


def _fewer_words(answer: str, options: Options) -> str:
    return " ".join(answer.split()[: options["num_words"] // 2])


def _more_words(answer: str, options: Options) -> str:
    while len(answer.split()) < options["num_words"]:
        answer += f" In other words: {answer}"
    return answer


def _highlights(answer: str, options: Options) -> str:
    words = answer.split()
    count = options["num_highlights"]
    return " ".join([*(f"*{word}*" for word in words[:count]), *words[count:]])


def _bullets(answer: str, options: Options) -> str:
    words, count = answer.split(), options["num_bullets"]
    size = -(-len(words) // count)
    parts = (" ".join(islice(words, n * size, (n + 1) * size)) for n in range(count))
    return "\n".join(f"* {part}" for part in parts)


WORDS, LESS = "length_constraints:number_words", {"relation": "less than"}
FORMAT, CONTENT = "detectable_format:", "detectable_content:"
TABLE: tuple[tuple[str, Sequence[Options], Edit], ...] = (
    (WORDS, [{"num_words": n, **LESS} for n in (20, 40)], _fewer_words),
    (WORDS, [{"num_words": n, "relation": "at least"} for n in (30, 45)], _more_words),
    ("punctuation:no_comma", [{}], lambda answer, _: answer.replace(",", "")),
    (
        CONTENT + "number_placeholders",
        [{"num_placeholders": n} for n in (1, 2)],
        lambda answer, options: answer + " See [source]." * options["num_placeholders"],
    ),
    (FORMAT + "number_highlighted_sections", [{"num_highlights": n} for n in (1, 2)], _highlights),
    (FORMAT + "number_bullet_lists", [{"num_bullets": n} for n in (2, 3)], _bullets),
    (FORMAT + "title", [{}], lambda answer, _: f"<<Answer>>\n{answer}"),
    (
        CONTENT + "postscript",
        [{"postscript_marker": "P.S."}],
        lambda answer, _: f"{answer}\n\nP.S. I hope this helps.",
    ),
    (
        "startend:end_checker",
        [
            {"end_phrase": "Any other questions?"},
            {"end_phrase": "Is there anything else I can help with?"},
        ],
        lambda answer, options: f"{answer}\n{options['end_phrase']}",
    ),
    ("change_case:english_lowercase", [{}], lambda answer, _: answer.lower()),
    ("startend:quotation", [{}], lambda answer, _: f'"{answer}"'),
    (FORMAT + "json_format", [{}], lambda answer, _: json.dumps({"answer": answer})),
)
"""(kind, its options, edit that makes an answer meet it), in the order of editing. Not in it:
capital letters, whose checker takes one of ten plain English answers for another language.
"""
KINDS = tuple(dict.fromkeys(kind for kind, _, _ in TABLE))


@cache
def constraints() -> tuple[Constraint, ...]:
    """Every constraint of the set."""
    made = []
    for place, (kind, choices, _) in enumerate(TABLE):
        for options in choices:
            checker = ifeval().INSTRUCTION_DICT[kind](kind)
            made.append(Constraint(kind, options, checker.build_description(**options), place))
    return tuple(made)


@cache
def conflicts() -> Mapping[str, frozenset[str]]:
    """IFEval's own table: kinds that may not stand together, each with itself."""
    found = ifeval().conflict_make({k: set(v) for k, v in ifeval().INSTRUCTION_CONFLICTS.items()})
    return {kind: frozenset(others) for kind, others in found.items()}


def stated(prompt: str) -> list[Constraint]:
    """The constraints that a prompt states."""
    return [one for one in constraints() if one.text in prompt]


def met(asked: Sequence[Constraint], prompt: str, answer: str) -> list[bool]:
    """Which of the constraints an answer meets, by IFEval's strict rule."""
    kinds, options = [one.kind for one in asked], [dict(one.options) for one in asked]
    example = ifeval().utils.InputExample(0, kinds, prompt, options)
    found = ifeval().utils.test_instruction_following_strict(example, answer)
    return [bool(one) for one in found.follow_instruction_list]


def share(asked: Sequence[Constraint], prompt: str, answer: str) -> float:
    """The reward: the share of the constraints that an answer meets."""
    return sum(met(asked, prompt, answer)) / len(asked)


def edited(answer: str, asked: Sequence[Constraint]) -> str:
    """An answer changed so as to meet constraints."""
    for one in sorted(asked, key=lambda one: one.place):
        answer = TABLE[one.place][2](answer, one.options)
    return answer
