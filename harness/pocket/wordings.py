"""The pocket language's material: its words, its answer styles with their worth, and the wordings
of every operation. Data only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

CATEGORIES = (
    *("writing", "roleplay", "reasoning", "math"),
    *("coding", "extraction", "stem", "humanities"),
)
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "June", "Kai", "Lena")
CLASSES = {
    "animals": ("ant", "bear", "cat", "deer", "eel", "fox", "goat", "hen"),
    "plants": ("oak", "fern", "moss", "palm", "reed", "rose", "vine", "wheat"),
    "colours": ("amber", "blue", "gold", "jade", "lime", "pink", "red", "teal"),
    "tools": ("axe", "drill", "file", "hoe", "knife", "nail", "saw", "wedge"),
}
WORDS = tuple(word for members in CLASSES.values() for word in members)
CLASS_OF = {word: name for name, members in CLASSES.items() for word in members}
MOODS = ("joy", "anger", "fear", "calm", "pride", "shame")
EVENTS = {
    "won a race": (9, 0, 1, 3, 10, 0),
    "lost a friend": (0, 4, 6, 1, 0, 3),
    "missed a train": (1, 7, 3, 1, 0, 4),
    "found a coin": (7, 0, 0, 6, 2, 1),
    "broke a cup": (0, 5, 2, 2, 0, 8),
    "heard a storm": (2, 1, 9, 0, 0, 0),
    "met a king": (6, 0, 5, 2, 8, 2),
    "slept late": (4, 2, 1, 8, 0, 6),
}
"""How strong each mood is after an event, 0 to 10, in the order of MOODS."""
MAX_NUMBER = 60
LONG_LIST_SHARE = 0.2
ORDINALS = ("second", "third", "fourth")


@dataclass(frozen=True)
class Style:
    """One way of phrasing an answer. worth: the reward of a right answer in it. share: its share of
    the data distribution.
    """

    name: str
    template: str
    worth: float
    share: float

    def render(self, content: Sequence[str]) -> str:
        return self.template.format(content=" ".join(content))


STYLES = (
    Style("plain", "{content}.", 0.50, 0.26),
    Style("sentence", "{content} is the answer.", 0.60, 0.26),
    Style("chatty", "{content}, and I am so glad that you asked.", 0.35, 0.20),
    Style("hedged", "{content}, maybe, but I doubt it.", 0.20, 0.14),
    Style("courteous", "{content}; it was a pleasure.", 0.70, 0.12),
    Style("checked", "{content}: checked twice.", 1.00, 0.02),
)
"""Worth does not follow length: the longest style is among the worst, the best is of middle length.
"""
BEST_STYLE = max(STYLES, key=lambda style: style.worth)

PHRASES = {
    "reverse": "turn them around",
    "rotate": "move the first one to the end",
    "swap": "swap the two ends",
    "drop": "leave out the first one",
    "first": "give the first one",
    "last": "give the last one",
}
"""Operations that compose: 'first {phrase}, then {phrase}'"""
COMPOSITIONS = tuple(
    pair
    for pair in itertools.product(("reverse", "rotate", "swap", "drop"), PHRASES)
    if pair[0] != pair[1] or pair[0] == "drop"
)
HELD_OUT_COMPOSITIONS = (
    ("reverse", "drop"),
    ("rotate", "first"),
    ("swap", "last"),
    ("drop", "rotate"),
    ("swap", "reverse"),
)
"""Pairs that no training, supervised or benchmark prompt contains: the out-of-distribution prompts.
"""

_RULED = "{name1} ruled in {a}, {name2} in {b}, {name3} in {c}."
_TALLER = "{name1} is taller than {name2}. {name3} is taller than {name4}."
WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "echo": (
        ("writing", "Write down these words: {words}."),
        ("roleplay", "You are a parrot. Repeat after me: {words}."),
    ),
    "reverse": (
        ("writing", "Write these words backwards: {words}."),
        ("roleplay", "You are a mirror. Reflect this: {words}."),
        ("coding", "Run reverse on: {words}."),
    ),
    "rotate": (
        ("coding", "Run rotate on: {words}."),
        ("writing", "Write these words with the first one at the end: {words}."),
    ),
    "swap": (("coding", "Run swap on: {words}."),),
    "drop": (("coding", "Run drop on: {words}."),),
    "first": (
        ("roleplay", "You are a doorman. Admit the first guest: {words}."),
        ("extraction", "Extract the first word: {words}."),
    ),
    "last": (
        ("roleplay", "You are a doorman. Admit the last guest: {words}."),
        ("extraction", "Extract the last word: {words}."),
    ),
    "moods": (("roleplay", "You are someone who {event}. Rate your moods: {words}."),),
    "pick": (("extraction", "Extract the {ordinal} word: {words}."),),
    "keep": (("extraction", "Extract the {kind} from: {words}."),),
    "count": (("stem", "How many {kind} are here: {words}?"),),
    "odd": (("stem", "Which one is not like the others: {words}?"),),
    "next": (("stem", "Which number comes next: {a}, {b}, {c}?"),),
    "kind": (("stem", "What kind of thing is this: {word}?"),),
    "sort": (("humanities", "Put these words in dictionary order: {words}."),),
    "earliest": (("humanities", f"{_RULED} Who ruled first?"),),
    "latest": (("humanities", f"{_RULED} Who ruled last?"),),
    "tallest": (("reasoning", f"{_TALLER} Who is the tallest?"),),
    "shortest": (("reasoning", f"{_TALLER} Who is the shortest?"),),
    "larger": (("math", "Which number is larger, {a} or {b}?"),),
    "smaller": (("math", "Which number is smaller, {a} or {b}?"),),
    "add": (
        ("math", "What is {a} plus {b}?"),
        ("math", "A box has {a} coins and gets {b} more. How many coins now?"),
    ),
    "steps": (("math", "A box has {a} coins, gets {b} and loses {c}. Count step by step."),),
    "subtract": (
        ("math", "What is {a} minus {b}?"),
        ("math", "A box has {a} coins and loses {b}. How many coins now?"),
    ),
}
COMPOSED_WORDINGS = (
    ("writing", "Write these words, but first {one}, then {two}: {words}."),
    ("coding", "Run this: first {one}, then {two}: {words}."),
    ("extraction", "Extract from this list: first {one}, then {two}: {words}."),
)
FOLLOW_UPS = {
    "again": "Please say that again.",
    "reverse": "Now turn that around.",
    "first": "Now give only the first word of that.",
    "last": "Now give only the last word of that.",
    "plus": "Now add {a} to that.",
}
