"""The pocket world's closed instruction language: small tasks in English, in the eight categories
of MT-Bench.

Every prompt is text made from one wording and its arguments, and every such text parses back to its
task, so the right answer of any prompt is known. Answers put the right (or a wrong) content into
one of six styles of known worth. Which tasks are trained on, held out, or kept for the benchmarks
is decided by a hash of the task, so splits never share a task.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from harness.pocket.tasks import Task, checked, near_misses, solve, wrong_contents
from harness.pocket.wordings import (
    BEST_STYLE,
    CATEGORIES,
    CLASS_OF,
    CLASSES,
    COMPOSED_WORDINGS,
    COMPOSITIONS,
    EVENTS,
    FOLLOW_UPS,
    HELD_OUT_COMPOSITIONS,
    LONG_LIST_SHARE,
    MAX_NUMBER,
    MOODS,
    NAMES,
    ORDINALS,
    PHRASES,
    STYLES,
    WORDINGS,
    WORDS,
    Style,
)
from harness.records import HarnessError, Prompt, content_hash

__all__ = [
    "Message",
    "Split",
    "Task",
    "near_misses",
    "normalise",
    "parse",
    "parse_messages",
    "render",
    "sample_answer",
    "sample_follow_up",
    "sample_operation",
    "sample_prompts",
    "sample_style",
    "sample_task",
    "solve",
    "wrong_contents",
]

Split = Literal["train", "heldout", "benchmark", "ood"]
Message = Mapping[str, str]

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


def _slots(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = enumerate(re.split(r"\{(\w+)\}", template))
    return re.compile("".join(_SLOTS[one] if i % 2 else re.escape(one) for i, one in pieces))


_PATTERNS = [
    (op, category, template, _pattern(template))
    for op, rows in WORDINGS.items()
    for category, template in rows
]
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
            named = [found[slot] for slot in _slots(template) if slot in found]
            args = found["words"].split() if "words" in found else named
            return checked(Task(category, (op,), tuple(args), found.get("param", "")))
    for category, pattern in _COMPOSED:
        match = pattern.fullmatch(text)
        if match:
            ops = (_OP_OF_PHRASE[match["one"]], _OP_OF_PHRASE[match["two"]])
            return checked(Task(category, ops, tuple(match["words"].split())))
    return None


def parse_messages(messages: Sequence[Message]) -> Task | None:
    """The task of the last user turn of a conversation: a fresh prompt, or a follow-up to the task
    before it.
    """
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
            added = match.groupdict().get("a", "")
            return checked(Task(first.category, (op,), solve(first), added, first))
    return None


def sample_style(rng: np.random.Generator, best_style_share: float = BEST_STYLE.share) -> Style:
    """A style of the data distribution, the best style's share set to ``best_style_share``."""
    rest, best = 1.0 - BEST_STYLE.share, best_style_share
    shares = [best if s is BEST_STYLE else s.share * (1.0 - best) / rest for s in STYLES]
    return STYLES[int(rng.choice(len(STYLES), p=np.asarray(shares) / sum(shares)))]


def sample_answer(
    task: Task,
    rng: np.random.Generator,
    *,
    correct_share: float = 1.0,
    best_style_share: float = BEST_STYLE.share,
) -> str:
    """An answer from the data distribution: a style by its share, right with probability
    ``correct_share``, else a near miss.
    """
    right = rng.random() < correct_share
    content = solve(task) if right else near_misses(task)[int(rng.integers(2))]
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
        names = _pick(rng, NAMES, 3)
        return tuple(one for both in zip(names, years, strict=True) for one in both), ""
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
        one, two = (PHRASES[op] for op in task.ops)
        return template.format(words=" ".join(task.args), one=one, two=two)
    templates = [text for category, text in WORDINGS[task.ops[0]] if category == task.category]
    template = templates[int(rng.integers(len(templates)))]
    whole = {"words": " ".join(task.args), "word": task.args[0]}
    whole |= dict.fromkeys(_PARAMETER_SLOTS, task.param)
    slots = [slot for slot in _slots(template) if slot not in whole]
    values = dict(zip(slots, task.args, strict=True)) if slots else {}
    return template.format(**whole, **values)


_SINGLE_BY_CATEGORY = {
    c: [op for op, rows in WORDINGS.items() if any(category == c for category, _ in rows)]
    for c in CATEGORIES
}
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
        categories = _COMPOSED_CATEGORIES if split == "ood" else CATEGORIES
        chosen = category or categories[int(rng.integers(len(categories)))]
        if split == "ood" or (chosen in _COMPOSED_CATEGORIES and rng.random() < 0.3):
            pairs = HELD_OUT_COMPOSITIONS if split == "ood" else COMPOSITIONS
            ops = pairs[int(rng.integers(len(pairs)))]
            task = Task(chosen, ops, tuple(_pick(rng, WORDS, _length(rng))))
        else:
            singles = _SINGLE_BY_CATEGORY[chosen]
            op = singles[int(rng.integers(len(singles)))]
            task = Task(chosen, (op,), *_draw_arguments(op, rng))
        if _in_split(task, split) and checked(task) is not None:
            return task


def sample_operation(op: str, rng: np.random.Generator, split: Split) -> Task:
    """A task of one named operation in ``split``, in one of its categories."""
    categories = list(dict.fromkeys(category for category, _ in WORDINGS[op]))
    while True:
        args, param = _draw_arguments(op, rng)
        task = Task(categories[int(rng.integers(len(categories)))], (op,), args, param)
        if _in_split(task, split) and checked(task) is not None:
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
    added = str(int(rng.integers(1, 10))) if op == "plus" else ""
    return Task(first.category, (op,), answer, added, first)


def sample_prompts(
    n: int,
    rng: np.random.Generator,
    split: Split,
    *,
    two_turn_share: float = 0.2,
    category: str = "",
) -> list[Prompt]:
    """``n`` prompts of ``split`` with distinct text and stable ids (a hash of the messages), a
    share of them second turns.

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
            messages += [
                {"role": "assistant", "content": sample_answer(task, rng)},
                {"role": "user", "content": render(follow_up, rng)},
            ]
        identity = f"{split}-{content_hash(messages, length=12)}"
        prompts.setdefault(identity, Prompt(identity, tuple(messages), category=task.category))
    raise HarnessError(
        f"split {split!r} of the pocket language has fewer than {n} distinct prompts; ask for fewer"
    )
