"""The pocket world's closed instruction language: small tasks in English, in the eight categories of MT-Bench.

Every prompt is text made from one wording and its arguments, and every such text parses back to its task, so the right
answer of any prompt is known. Answers put the right (or a wrong) content into one of six styles of known worth. Which tasks
are trained on, held out, or kept for the benchmarks is decided by a hash of the task, so splits never share a task.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.records import HarnessError, Prompt, content_hash

Split = Literal["train", "heldout", "benchmark", "ood"]
Message = Mapping[str, str]

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
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
    """One way of phrasing an answer. worth: the reward of a right answer in it. share: its share of the data distribution."""

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
"""Worth does not follow length: the longest style is among the worst, the best is of middle length."""
BEST_STYLE = max(STYLES, key=lambda style: style.worth)


@dataclass(frozen=True)
class Task:
    """What a prompt asks: operations applied in order to the arguments, and ``param`` (a class, an ordinal, a number).

    first: the task of the first turn when this is a follow-up, else None.
    """

    category: str
    ops: tuple[str, ...]
    args: tuple[str, ...]
    param: str = ""
    first: Task | None = None

    @property
    def key(self) -> str:
        """Hash of what is asked, the same in every wording and category. A follow-up has its first turn's key."""
        return self.first.key if self.first else content_hash(self.ops, self.args, self.param, length=16)


def _taller(args: Sequence[str]) -> list[str]:
    pairs = [(args[i], args[i + 1]) for i in range(0, len(args), 2)]
    losers = {b for _, b in pairs}
    above = dict(pairs)
    current = next((a for a, _ in pairs if a not in losers), None)
    order: list[str] = []
    while current is not None and current not in order:
        order.append(current)
        current = above.get(current)
    return order


def _odd(args: Sequence[str]) -> list[str]:
    kinds = [CLASS_OF[word] for word in args]
    return [word for word, kind in zip(args, kinds, strict=True) if kinds.count(kind) == 1]


def _years(args: Sequence[str]) -> list[str]:
    """Names (even places) in the order of their years (odd places)."""
    return [name for _, name in sorted((int(args[i + 1]), args[i]) for i in range(0, len(args), 2))]


def _moods(args: Sequence[str], event: str) -> list[str]:
    strength = dict(zip(MOODS, EVENTS[event], strict=True))
    return list(itertools.chain.from_iterable((f"{mood}:", str(strength[mood])) for mood in args))


def _numbers(args: Sequence[str]) -> list[int]:
    return [int(a) for a in args]


OPERATIONS: dict[str, Callable[[Sequence[str], str], list[str]]] = {
    "echo": lambda a, _: list(a),
    "reverse": lambda a, _: list(a)[::-1],
    "rotate": lambda a, _: [*a[1:], *a[:1]],
    "swap": lambda a, _: [a[-1], *a[1:-1], a[0]] if len(a) > 1 else list(a),
    "drop": lambda a, _: list(a[1:]),
    "first": lambda a, _: list(a[:1]),
    "last": lambda a, _: list(a[-1:]),
    "pick": lambda a, p: [a[ORDINALS.index(p) + 1]],
    "sort": lambda a, _: sorted(a),
    "keep": lambda a, p: [word for word in a if CLASS_OF[word] == p],
    "count": lambda a, p: [str(sum(CLASS_OF[word] == p for word in a))],
    "odd": lambda a, _: _odd(a),
    "kind": lambda a, _: [CLASS_OF[a[0]]],
    "add": lambda a, _: [str(sum(_numbers(a)))],
    "subtract": lambda a, _: [str(int(a[0]) - int(a[1]))],
    "steps": lambda a, _: [str(int(a[0]) + int(a[1])), str(int(a[0]) + int(a[1]) - int(a[2]))],
    "larger": lambda a, _: [str(max(_numbers(a)))],
    "smaller": lambda a, _: [str(min(_numbers(a)))],
    "next": lambda a, _: [str(2 * int(a[-1]) - int(a[-2]))],
    "tallest": lambda a, _: _taller(a)[:1],
    "shortest": lambda a, _: _taller(a)[-1:],
    "earliest": lambda a, _: _years(a)[:1],
    "latest": lambda a, _: _years(a)[-1:],
    "moods": _moods,
    "again": lambda a, _: list(a),
    "plus": lambda a, p: [str(int(a[0]) + int(p))],
}

PHRASES = {
    "reverse": "turn them around",
    "rotate": "move the first one to the end",
    "swap": "swap the two ends",
    "drop": "leave out the first one",
    "first": "give the first one",
    "last": "give the last one",
}
"""Operations that compose: 'first {phrase}, then {phrase}'"""
COMPOSITIONS = tuple(pair for pair in itertools.product(("reverse", "rotate", "swap", "drop"), PHRASES) if pair[0] != pair[1] or pair[0] == "drop")
HELD_OUT_COMPOSITIONS = (("reverse", "drop"), ("rotate", "first"), ("swap", "last"), ("drop", "rotate"), ("swap", "reverse"))
"""Pairs that no training, supervised or benchmark prompt contains: the out-of-distribution prompts."""

WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "echo": (("writing", "Write down these words: {words}."), ("roleplay", "You are a parrot. Repeat after me: {words}.")),
    "reverse": (
        ("writing", "Write these words backwards: {words}."),
        ("roleplay", "You are a mirror. Reflect this: {words}."),
        ("coding", "Run reverse on: {words}."),
    ),
    "rotate": (("coding", "Run rotate on: {words}."), ("writing", "Write these words with the first one at the end: {words}.")),
    "swap": (("coding", "Run swap on: {words}."),),
    "drop": (("coding", "Run drop on: {words}."),),
    "first": (("roleplay", "You are a doorman. Admit the first guest: {words}."), ("extraction", "Extract the first word: {words}.")),
    "last": (("roleplay", "You are a doorman. Admit the last guest: {words}."), ("extraction", "Extract the last word: {words}.")),
    "moods": (("roleplay", "You are someone who {event}. Rate your moods: {words}."),),
    "pick": (("extraction", "Extract the {ordinal} word: {words}."),),
    "keep": (("extraction", "Extract the {kind} from: {words}."),),
    "count": (("stem", "How many {kind} are here: {words}?"),),
    "odd": (("stem", "Which one is not like the others: {words}?"),),
    "next": (("stem", "Which number comes next: {a}, {b}, {c}?"),),
    "kind": (("stem", "What kind of thing is this: {word}?"),),
    "sort": (("humanities", "Put these words in dictionary order: {words}."),),
    "earliest": (("humanities", "{name1} ruled in {a}, {name2} in {b}, {name3} in {c}. Who ruled first?"),),
    "latest": (("humanities", "{name1} ruled in {a}, {name2} in {b}, {name3} in {c}. Who ruled last?"),),
    "tallest": (("reasoning", "{name1} is taller than {name2}. {name3} is taller than {name4}. Who is the tallest?"),),
    "shortest": (("reasoning", "{name1} is taller than {name2}. {name3} is taller than {name4}. Who is the shortest?"),),
    "larger": (("math", "Which number is larger, {a} or {b}?"),),
    "smaller": (("math", "Which number is smaller, {a} or {b}?"),),
    "add": (("math", "What is {a} plus {b}?"), ("math", "A box has {a} coins and gets {b} more. How many coins now?")),
    "steps": (("math", "A box has {a} coins, gets {b} and loses {c}. Count step by step."),),
    "subtract": (("math", "What is {a} minus {b}?"), ("math", "A box has {a} coins and loses {b}. How many coins now?")),
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

_SLOTS = {
    "words": "(?P<words>[a-z]+(?: [a-z]+)*)",
    "word": "(?P<words>[a-z]+)",
    "ordinal": f"(?P<param>{'|'.join(ORDINALS)})",
    "kind": f"(?P<param>{'|'.join(CLASSES)})",
    "event": f"(?P<param>{'|'.join(EVENTS)})",
    "one": f"(?P<one>{'|'.join(PHRASES.values())})",
    "two": f"(?P<two>{'|'.join(PHRASES.values())})",
    **{letter: rf"(?P<{letter}>\d+)" for letter in "abc"},
    **{f"name{i}": f"(?P<name{i}>{'|'.join(NAMES)})" for i in range(1, 5)},
}

_PARAMETER_SLOTS = ("ordinal", "kind", "event")


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(_SLOTS[piece] if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)))


_PATTERNS = [(op, category, template, _pattern(template)) for op, rows in WORDINGS.items() for category, template in rows]
_COMPOSED = [(category, _pattern(template)) for category, template in COMPOSED_WORDINGS]
_FOLLOW_UP_PATTERNS = [(op, _pattern(template)) for op, template in FOLLOW_UPS.items()]
_OP_OF_PHRASE = {phrase: op for op, phrase in PHRASES.items()}


def normalise(text: str) -> str:
    """Text with every run of white space as one space, none at the ends."""
    return " ".join(text.split())


@functools.lru_cache(maxsize=65536)
def parse(prompt_text: str) -> Task | None:
    """The task of a first-turn prompt, or None for text outside the language."""
    text = normalise(prompt_text)
    for op, category, template, pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            found = match.groupdict()
            order = [slot for slot in re.findall(r"\{(\w+)\}", template) if slot not in _PARAMETER_SLOTS]
            args = tuple(found["words"].split()) if "words" in found else tuple(found[slot] for slot in order)
            return _checked(Task(category, (op,), args, found.get("param", "")))
    for category, pattern in _COMPOSED:
        match = pattern.fullmatch(text)
        if match:
            ops = (_OP_OF_PHRASE[match["one"]], _OP_OF_PHRASE[match["two"]])
            return _checked(Task(category, ops, tuple(match["words"].split())))
    return None


def parse_messages(messages: Sequence[Message]) -> Task | None:
    """The task of the last user turn of a conversation: a fresh prompt, or a follow-up to the task before it."""
    current: Task | None = None
    for message in messages:
        if message["role"] == "user":
            current = parse(message["content"]) or _parse_follow_up(current, message["content"])
    return current


def _parse_follow_up(first: Task | None, text: str) -> Task | None:
    if first is None:
        return None
    for op, pattern in _FOLLOW_UP_PATTERNS:
        match = pattern.fullmatch(normalise(text))
        if match:
            return _checked(Task(first.category, (op,), solve(first), match.groupdict().get("a", ""), first))
    return None


def _checked(task: Task) -> Task | None:
    """The task, or None when its arguments give it no answer (unknown words, a tie, a negative result)."""
    try:
        if task.first is None and not all(arg in CLASS_OF or arg in NAMES or arg in MOODS or 0 <= int(arg) <= MAX_NUMBER for arg in task.args):
            return None
        answer = solve(task)
    except (KeyError, ValueError, IndexError):
        return None
    lone = {"odd", "tallest", "shortest", "earliest", "latest"}
    unclear = (task.ops[0] == "odd" and len(_odd(task.args)) != 1) or (task.ops[0] in ("tallest", "shortest") and len(_taller(task.args)) != 3)
    if not answer or unclear or (task.ops[0] in lone and len(answer) != 1) or any(word.startswith("-") for word in answer):
        return None
    return task


def solve(task: Task) -> tuple[str, ...]:
    """The right content of the answer, in words."""
    content: Sequence[str] = task.args
    for op in task.ops:
        content = OPERATIONS[op](content, task.param)
    return tuple(content)


def near_misses(task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two plausible wrong contents, fixed by the task: an order error or a wrong element; numbers err by one."""
    found = list(itertools.islice(wrong_contents(task), 2))
    if len(found) < 2:
        raise HarnessError(f"task {task} has fewer than two wrong answers; widen its arguments")
    return found[0], found[1]


def wrong_contents(task: Task) -> Iterator[tuple[str, ...]]:
    """Distinct plausible wrong contents of a task, always the same in the same order; at least two, mostly three or more."""
    right = solve(task)
    found: set[tuple[str, ...]] = set()
    for wrong in _wrong_candidates(task, right):
        if wrong and wrong != right and wrong not in found:
            found.add(wrong)
            yield wrong


def _wrong_candidates(task: Task, right: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(right) == 1 and right[0].isdigit():
        yield (str(int(right[0]) + 1),)
        yield (str(int(right[0]) - 1 if int(right[0]) else 2),)
        yield (str(int(right[0]) + 2 if int(right[0]) else 3),)
        return
    if task.ops == ("steps",):
        yield (right[0], str(int(right[1]) + 1))
        yield (str(int(right[0]) + 1), str(int(right[1]) + 2))
        yield (right[0], str(int(right[1]) + 3))
        return
    if task.ops == ("moods",):
        for place in (1, 3):
            yield (*right[:place], str((int(right[place]) + 3) % 11), *right[place + 1 :])
        yield (*right[:3], str(int(right[3]) + 1), *right[4:])
        return
    if len(right) > 1:
        yield (*right[:-2], right[-1], right[-2])
        yield right[1:]
        yield right[:-1]
        return
    pool = CLASSES if right[0] in CLASSES else NAMES if right[0] in NAMES else task.args
    for word in (*[w for w in task.args if w in pool], *(CLASSES if right[0] in CLASSES else NAMES if right[0] in NAMES else WORDS)):
        yield (word,)


def sample_style(rng: np.random.Generator, best_style_share: float = BEST_STYLE.share) -> Style:
    """A style from the data distribution, with the best style's share set to ``best_style_share``."""
    rest = 1.0 - BEST_STYLE.share
    shares = [best_style_share if s is BEST_STYLE else s.share * (1.0 - best_style_share) / rest for s in STYLES]
    return STYLES[int(rng.choice(len(STYLES), p=np.asarray(shares) / sum(shares)))]


def sample_answer(task: Task, rng: np.random.Generator, *, correct_share: float = 1.0, best_style_share: float = BEST_STYLE.share) -> str:
    """An answer from the data distribution: a style by its share, right with probability ``correct_share``, else a near miss."""
    content = solve(task) if rng.random() < correct_share else near_misses(task)[int(rng.integers(2))]
    return sample_style(rng, best_style_share).render(content)


def _pick(rng: np.random.Generator, pool: Sequence[str], count: int) -> list[str]:
    return [pool[int(i)] for i in rng.choice(len(pool), size=count, replace=False)]


def _length(rng: np.random.Generator) -> int:
    """Words in a list: 3, or 4 (the harder ones)."""
    return 4 if rng.random() < LONG_LIST_SHARE else 3


def _draw_arguments(op: str, rng: np.random.Generator) -> tuple[tuple[str, ...], str]:
    """Arguments and parameter of a single operation."""
    kinds = list(CLASSES)
    if op in ("tallest", "shortest"):
        a, b, c = _pick(rng, NAMES, 3)
        return ((a, b, b, c) if rng.random() < 0.5 else (b, c, a, b)), ""
    if op in ("earliest", "latest"):
        years = _pick(rng, [str(i) for i in range(1, MAX_NUMBER)], 3)
        return tuple(itertools.chain.from_iterable(zip(_pick(rng, NAMES, 3), years, strict=True))), ""
    if op == "steps":
        had, got, lost = (int(i) for i in rng.integers(1, 13, size=3))
        return (str(had), str(got), str(min(lost, had + got))), ""
    if op in ("larger", "smaller"):
        return tuple(_pick(rng, [str(i) for i in range(1, 31)], 2)), ""
    if op in ("add", "subtract"):
        one, two = int(rng.integers(1, 21)), int(rng.integers(1, 10))
        if op == "subtract":
            one, two = max(one, two), min(one, two)
        return (str(one), str(two)), ""
    if op == "next":
        start, step = int(rng.integers(0, 40)), int(rng.integers(1, 5))
        return tuple(str(start + i * step) for i in range(3)), ""
    if op == "kind":
        return (WORDS[int(rng.integers(len(WORDS)))],), ""
    if op == "odd":
        common, other = _pick(rng, kinds, 2)
        words = [*_pick(rng, CLASSES[common], 3), *_pick(rng, CLASSES[other], 1)]
        return tuple(_pick(rng, words, 4)), ""
    if op in ("keep", "count"):
        kind = kinds[int(rng.integers(4))]
        hits = int(rng.integers(1, 3))
        others = [word for word in WORDS if CLASS_OF[word] != kind]
        words = [*_pick(rng, CLASSES[kind], hits), *_pick(rng, others, 4 - hits)]
        return tuple(_pick(rng, words, 4)), kind
    if op == "moods":
        return tuple(_pick(rng, MOODS, 4)), list(EVENTS)[int(rng.integers(len(EVENTS)))]
    if op == "pick":
        ordinal = int(rng.integers(3))
        return tuple(_pick(rng, WORDS, max(ordinal + 2, _length(rng)))), ORDINALS[ordinal]
    return tuple(_pick(rng, WORDS, _length(rng))), ""


def render(task: Task, rng: np.random.Generator) -> str:
    """A prompt that asks ``task``, in one of the wordings of its category."""
    if task.first is not None:
        return FOLLOW_UPS[task.ops[0]].format(a=task.param)
    if len(task.ops) == 2:
        template = next(text for category, text in COMPOSED_WORDINGS if category == task.category)
        return template.format(words=" ".join(task.args), one=PHRASES[task.ops[0]], two=PHRASES[task.ops[1]])
    templates = [text for category, text in WORDINGS[task.ops[0]] if category == task.category]
    template = templates[int(rng.integers(len(templates)))]
    slots = [slot for slot in re.findall(r"\{(\w+)\}", template) if slot not in ("words", "word", *_PARAMETER_SLOTS)]
    values = dict(zip(slots, task.args, strict=True)) if slots else {}
    return template.format(words=" ".join(task.args), word=task.args[0], **dict.fromkeys(_PARAMETER_SLOTS, task.param), **values)


_SINGLE_BY_CATEGORY = {c: [op for op, rows in WORDINGS.items() if any(category == c for category, _ in rows)] for c in CATEGORIES}
_COMPOSED_CATEGORIES = tuple(category for category, _ in COMPOSED_WORDINGS)


def _in_split(task: Task, split: Split) -> bool:
    if split == "ood":
        return task.ops in HELD_OUT_COMPOSITIONS
    if task.ops in HELD_OUT_COMPOSITIONS:
        return False
    if task.ops == ("kind",):  # 32 facts: too few to hold out, so they are for training only
        return split == "train"
    bucket = int(task.key, 16) % 16
    return {"heldout": bucket < 2, "benchmark": 2 <= bucket < 4, "train": bucket >= 4}[split]


def sample_task(rng: np.random.Generator, split: Split, category: str = "") -> Task:
    """A first-turn task of ``split``; category uniform unless named."""
    while True:
        chosen = category or (_COMPOSED_CATEGORIES if split == "ood" else CATEGORIES)[int(rng.integers(3 if split == "ood" else 8))]
        singles = _SINGLE_BY_CATEGORY[chosen]
        composed = split == "ood" or (chosen in _COMPOSED_CATEGORIES and rng.random() < 0.3)
        if composed:
            pairs = HELD_OUT_COMPOSITIONS if split == "ood" else COMPOSITIONS
            task = Task(chosen, pairs[int(rng.integers(len(pairs)))], tuple(_pick(rng, WORDS, _length(rng))))
        else:
            op = singles[int(rng.integers(len(singles)))]
            args, param = _draw_arguments(op, rng)
            task = Task(chosen, (op,), args, param)
        if _in_split(task, split) and _checked(task) is not None:
            return task


def sample_operation(op: str, rng: np.random.Generator, split: Split) -> Task:
    """A task of one named operation in ``split``, in one of its categories."""
    categories = list(dict.fromkeys(category for category, _ in WORDINGS[op]))
    while True:
        args, param = _draw_arguments(op, rng)
        task = Task(categories[int(rng.integers(len(categories)))], (op,), args, param)
        if _in_split(task, split) and _checked(task) is not None:
            return task


def sample_follow_up(first: Task, rng: np.random.Generator) -> Task:
    """A second turn that makes sense after ``first``."""
    answer = solve(first)
    if first.ops in (("moods",), ("steps",)):
        op = "again"
    elif len(answer) > 1:
        op = ("again", "reverse", "first", "last")[int(rng.integers(4))]
    elif answer[0].isdigit():
        op = ("again", "plus")[int(rng.integers(2))]
    else:
        op = "again"
    return Task(first.category, (op,), answer, str(int(rng.integers(1, 10))) if op == "plus" else "", first)


def sample_prompts(n: int, rng: np.random.Generator, split: Split, *, two_turn_share: float = 0.2, category: str = "") -> list[Prompt]:
    """``n`` prompts of ``split`` with distinct text and stable ids (a hash of the messages), a share of them second turns.

    The assistant turn before a second turn is an answer from the data distribution.
    """
    prompts: dict[str, Prompt] = {}
    for _ in range(100 * n + 1000):
        if len(prompts) == n:
            return list(prompts.values())
        task = sample_task(rng, split, category)
        messages: list[Message] = [{"role": "user", "content": render(task, rng)}]
        if rng.random() < two_turn_share:
            follow_up = sample_follow_up(task, rng)
            messages += [{"role": "assistant", "content": sample_answer(task, rng)}, {"role": "user", "content": render(follow_up, rng)}]
        identity = f"{split}-{content_hash(messages, length=12)}"
        prompts.setdefault(identity, Prompt(identity, tuple(messages), category=task.category))
    raise HarnessError(f"split {split!r} of the pocket language has fewer than {n} distinct prompts; ask for fewer")
