"""The pocket world's closed instruction language: small tasks in English, in the eight categories
of MT-Bench.

Every prompt is text made from one wording and its arguments, and every such text parses back to its
task, so the right answer of any prompt is known. Answers put the right (or a wrong) content into
one of six styles of known worth. Which tasks are trained on, held out, or kept for the benchmarks
is decided by a hash of the task, so splits never share a task.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.pocket import wordings
from harness.pocket.wordings import CLASS_OF, CLASSES, EVENTS, MOODS, NAMES, ORDINALS, WORDS
from harness.records import HarnessError, Prompt, content_hash

Split = Literal["train", "heldout", "benchmark", "ood"]
Message = Mapping[str, str]
Messages = Sequence[Message]
Rng = np.random.Generator


# -- what is asked, and its answers ----------------------------------------------------------------
@dataclass(frozen=True)
class Task:
    """What a prompt asks: operations applied in order to the arguments, and ``param`` (a class, an
    ordinal, a number). first: the task of the first turn when this is a follow-up.
    """

    category: str
    ops: tuple[str, ...]
    args: tuple[str, ...]
    param: str = ""
    first: Task | None = None

    @property
    def key(self) -> str:
        """Hash of what is asked, the same in every wording and category."""
        return content_hash(self.ops, self.args, self.param, length=16)


def _by_height(args: Sequence[str]) -> list[str]:
    """Names from the tallest down, of pairs (taller, smaller)."""
    above = dict(zip(args[::2], args[1::2], strict=True))
    current = next((name for name in above if name not in above.values()), None)
    order: list[str] = []
    while current is not None and current not in order:
        order.append(current)
        current = above.get(current)
    return order


def _by_year(args: Sequence[str]) -> list[str]:
    years = zip(map(int, args[1::2]), args[::2], strict=True)
    return [name for _, name in sorted(years)]


def _odd(args: Sequence[str]) -> list[str]:
    kinds = [CLASS_OF[word] for word in args]
    return [word for word, kind in zip(args, kinds, strict=True) if kinds.count(kind) == 1]


def _moods(args: Sequence[str], event: str) -> list[str]:
    strength = dict(zip(MOODS, EVENTS[event], strict=True))
    return [word for mood in args for word in (f"{mood}:", str(strength[mood]))]


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
    "add": lambda a, _: [str(sum(map(int, a)))],
    "subtract": lambda a, _: [str(int(a[0]) - int(a[1]))],
    "steps": lambda a, _: [str(int(a[0]) + int(a[1])), str(int(a[0]) + int(a[1]) - int(a[2]))],
    "larger": lambda a, _: [str(max(map(int, a)))],
    "smaller": lambda a, _: [str(min(map(int, a)))],
    "next": lambda a, _: [str(2 * int(a[-1]) - int(a[-2]))],
    "tallest": lambda a, _: _by_height(a)[:1],
    "shortest": lambda a, _: _by_height(a)[-1:],
    "earliest": lambda a, _: _by_year(a)[:1],
    "latest": lambda a, _: _by_year(a)[-1:],
    "moods": _moods,
    "again": lambda a, _: list(a),
    "plus": lambda a, p: [str(int(a[0]) + int(p))],
}


def checked(task: Task) -> Task | None:
    """The task, or None without an answer (unknown words, a tie, a negative result)."""
    words, op = {*CLASS_OF, *NAMES, *MOODS}, task.ops[0]
    try:
        numbers = [] if task.first else [int(arg) for arg in task.args if arg not in words]
        answer = solve(task)
    except (KeyError, ValueError, IndexError):
        return None
    clear = all(0 <= number <= wordings.MAX_NUMBER for number in numbers) and bool(answer)
    if op in ("odd", "tallest", "shortest", "earliest", "latest"):
        clear = clear and len(answer) == 1
    if op in ("tallest", "shortest"):
        clear = clear and len(_by_height(task.args)) == 3
    return task if clear and not any(word.startswith("-") for word in answer) else None


def solve(task: Task) -> tuple[str, ...]:
    """The right content of the answer, in words."""
    content: Sequence[str] = task.args
    for op in task.ops:
        content = OPERATIONS[op](content, task.param)
    return tuple(content)


def near_misses(task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two plausible wrong contents, fixed by the task."""
    first, second = itertools.islice(wrong_contents(task), 2)
    return first, second


def wrong_contents(task: Task) -> Iterator[tuple[str, ...]]:
    """Distinct plausible wrong contents, always in the same order; at least two."""
    right = solve(task)
    found: set[tuple[str, ...]] = set()
    for wrong in _wrong_candidates(task, right):
        if wrong and wrong != right and wrong not in found:
            found.add(wrong)
            yield wrong


def _wrong_candidates(task: Task, right: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(right) == 1 and right[0].isdigit():
        number = int(right[0])
        for wrong in (number + 1, number - 1 if number else 2, number + 2 if number else 3):
            yield (str(wrong),)
    elif task.ops == ("steps",):
        first, second = map(int, right)
        yield (right[0], str(second + 1))
        yield (str(first + 1), str(second + 2))
        yield (right[0], str(second + 3))
    elif task.ops == ("moods",):
        for place in (1, 3):
            yield (*right[:place], str((int(right[place]) + 3) % 11), *right[place + 1 :])
        yield (*right[:3], str(int(right[3]) + 1), *right[4:])
    elif len(right) > 1:
        yield (*right[:-2], right[-1], right[-2])
        yield right[1:]
        yield right[:-1]
    else:
        kind = next((words for words in (CLASSES, NAMES) if right[0] in words), None)
        pool, others = (task.args, WORDS) if kind is None else (kind, kind)
        for word in (*[word for word in task.args if word in pool], *others):
            yield (word,)


# -- from text to task -----------------------------------------------------------------------------
_SLOTS = {
    "words": "(?P<words>[a-z]+(?: [a-z]+)*)",
    "word": "(?P<words>[a-z]+)",
    "ordinal": f"(?P<param>{'|'.join(ORDINALS)})",
    "kind": f"(?P<param>{'|'.join(CLASSES)})",
    "event": f"(?P<param>{'|'.join(EVENTS)})",
    "one": f"(?P<one>{'|'.join(wordings.PHRASES.values())})",
    "two": f"(?P<two>{'|'.join(wordings.PHRASES.values())})",
    **{letter: rf"(?P<{letter}>\d+)" for letter in "abc"},
    **{f"name{i}": f"(?P<name{i}>{'|'.join(NAMES)})" for i in range(1, 5)},
}


def _slots(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = enumerate(re.split(r"\{(\w+)\}", template))
    return re.compile("".join(_SLOTS[one] if i % 2 else re.escape(one) for i, one in pieces))


_PATTERNS = [
    (op, category, template, _pattern(template))
    for op, rows in wordings.WORDINGS.items()
    for category, template in rows
]
_COMPOSED = [(category, _pattern(template)) for category, template in wordings.COMPOSED_WORDINGS]
_FOLLOW_UPS = [(op, _pattern(template)) for op, template in wordings.FOLLOW_UPS.items()]
_OP_OF_PHRASE = {phrase: op for op, phrase in wordings.PHRASES.items()}


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


def parse_messages(messages: Messages) -> Task | None:
    """The task of the last user turn: a fresh prompt, or a follow-up to the task before it."""
    current: Task | None = None
    for message in messages:
        if message["role"] == "user":
            current = parse(message["content"]) or _parse_follow_up(current, message["content"])
    return current


def _parse_follow_up(first: Task | None, text: str) -> Task | None:
    if first is None:
        return None
    for op, pattern in _FOLLOW_UPS:
        match = pattern.fullmatch(normalise(text))
        if match:
            added = match.groupdict().get("a", "")
            return checked(Task(first.category, (op,), solve(first), added, first))
    return None


# -- drawing tasks, texts and answers --------------------------------------------------------------
def sample_style(rng: Rng, best_style_share: float = wordings.BEST_STYLE.share) -> wordings.Style:
    """A style of the data distribution, the best style's share set to ``best_style_share``."""
    best, styles = wordings.BEST_STYLE, wordings.STYLES
    rest, left = 1.0 - best.share, 1.0 - best_style_share
    shares = [best_style_share if s is best else s.share * left / rest for s in styles]
    return styles[int(rng.choice(len(styles), p=np.asarray(shares) / sum(shares)))]


def sample_answer(
    task: Task,
    rng: Rng,
    *,
    correct_share: float = 1.0,
    best_style_share: float = wordings.BEST_STYLE.share,
) -> str:
    """An answer from the data distribution; one that is not right is a near miss."""
    right = rng.random() < correct_share
    content = solve(task) if right else near_misses(task)[int(rng.integers(2))]
    return sample_style(rng, best_style_share).render(content)


def _pick(rng: Rng, pool: Sequence[str], count: int) -> list[str]:
    return [pool[int(i)] for i in rng.choice(len(pool), size=count, replace=False)]


def _numbers(start: int, stop: int) -> list[str]:
    return [str(number) for number in range(start, stop)]


def _length(rng: Rng) -> int:
    """Words in a list: 3, or 4 (the harder ones)."""
    return 4 if rng.random() < wordings.LONG_LIST_SHARE else 3


def _draw_arguments(op: str, rng: Rng) -> tuple[list[str], str]:
    """Arguments and parameter of a single operation."""
    kinds, param = list(CLASSES), ""
    if op in ("tallest", "shortest"):
        a, b, c = _pick(rng, NAMES, 3)
        args = [a, b, b, c] if rng.random() < 0.5 else [b, c, a, b]
    elif op in ("earliest", "latest"):
        years, names = _pick(rng, _numbers(1, wordings.MAX_NUMBER), 3), _pick(rng, NAMES, 3)
        args = [one for both in zip(names, years, strict=True) for one in both]
    elif op == "steps":
        had, got, lost = (int(i) for i in rng.integers(1, 13, size=3))
        args = [str(had), str(got), str(min(lost, had + got))]
    elif op in ("larger", "smaller"):
        args = _pick(rng, _numbers(1, 31), 2)
    elif op in ("add", "subtract"):
        both = [int(rng.integers(1, 21)), int(rng.integers(1, 10))]
        args = [str(one) for one in (sorted(both, reverse=True) if op == "subtract" else both)]
    elif op == "next":
        start, step = int(rng.integers(0, 40)), int(rng.integers(1, 5))
        args = [str(start + i * step) for i in range(3)]
    elif op == "kind":
        args = [WORDS[int(rng.integers(len(WORDS)))]]
    elif op == "odd":
        common, other = _pick(rng, kinds, 2)
        args = _pick(rng, [*_pick(rng, CLASSES[common], 3), *_pick(rng, CLASSES[other], 1)], 4)
    elif op in ("keep", "count"):
        param, hits = kinds[int(rng.integers(4))], int(rng.integers(1, 3))
        others = [word for word in WORDS if CLASS_OF[word] != param]
        args = _pick(rng, [*_pick(rng, CLASSES[param], hits), *_pick(rng, others, 4 - hits)], 4)
    elif op == "moods":
        args, param = _pick(rng, MOODS, 4), list(EVENTS)[int(rng.integers(len(EVENTS)))]
    elif op == "pick":
        ordinal = int(rng.integers(3))
        args, param = _pick(rng, WORDS, max(ordinal + 2, _length(rng))), ORDINALS[ordinal]
    else:
        args = _pick(rng, WORDS, _length(rng))
    return args, param


def render(task: Task, rng: Rng) -> str:
    """A prompt that asks ``task``, in one of the wordings of its category."""
    if task.first is not None:
        return wordings.FOLLOW_UPS[task.ops[0]].format(a=task.param)
    words = " ".join(task.args)
    if len(task.ops) == 2:
        one, two = (wordings.PHRASES[op] for op in task.ops)
        template = dict(wordings.COMPOSED_WORDINGS)[task.category]
        return template.format(words=words, one=one, two=two)
    rows = wordings.WORDINGS[task.ops[0]]
    templates = [text for category, text in rows if category == task.category]
    template = templates[int(rng.integers(len(templates)))]
    whole = {"words": words, "word": task.args[0]}
    whole |= dict.fromkeys(("ordinal", "kind", "event"), task.param)
    slots = [slot for slot in _slots(template) if slot not in whole]
    values = dict(zip(slots, task.args, strict=True)) if slots else {}
    return template.format(**whole, **values)


_SINGLE_BY_CATEGORY = {
    c: [op for op, rows in wordings.WORDINGS.items() if c in dict(rows)]
    for c in wordings.CATEGORIES
}
_COMPOSED_CATEGORIES = tuple(category for category, _ in wordings.COMPOSED_WORDINGS)


def _in_split(task: Task, split: Split) -> bool:
    if split == "ood" or task.ops in wordings.HELD_OUT_COMPOSITIONS:
        return split == "ood" and task.ops in wordings.HELD_OUT_COMPOSITIONS
    if task.ops == ("kind",):  # 32 facts: too few to hold out, so they are for training only
        return split == "train"
    bucket = int(task.key, 16) % 16
    return {"heldout": bucket < 2, "benchmark": 2 <= bucket < 4, "train": bucket >= 4}[split]


def sample_task(rng: Rng, split: Split, category: str = "") -> Task:
    """A first-turn task of ``split``; category uniform unless named."""
    while True:
        categories = _COMPOSED_CATEGORIES if split == "ood" else wordings.CATEGORIES
        chosen = category or categories[int(rng.integers(len(categories)))]
        if split == "ood" or (chosen in _COMPOSED_CATEGORIES and rng.random() < 0.3):
            held_out = split == "ood"
            pairs = wordings.HELD_OUT_COMPOSITIONS if held_out else wordings.COMPOSITIONS
            ops = pairs[int(rng.integers(len(pairs)))]
            task = Task(chosen, ops, tuple(_pick(rng, WORDS, _length(rng))))
        else:
            singles = _SINGLE_BY_CATEGORY[chosen]
            op = singles[int(rng.integers(len(singles)))]
            args, param = _draw_arguments(op, rng)
            task = Task(chosen, (op,), tuple(args), param)
        if _in_split(task, split) and checked(task) is not None:
            return task


def sample_operation(op: str, rng: Rng, split: Split) -> Task:
    """A task of one named operation in ``split``, in one of its categories."""
    categories = list(dict(wordings.WORDINGS[op]))
    while True:
        args, param = _draw_arguments(op, rng)
        category = categories[int(rng.integers(len(categories)))]
        task = Task(category, (op,), tuple(args), param)
        if _in_split(task, split) and checked(task) is not None:
            return task


def sample_follow_up(first: Task, rng: Rng) -> Task:
    """A second turn that makes sense after ``first``."""
    answer = solve(first)
    possible: tuple[str, ...] = ("again",)
    if len(answer) > 1 and first.ops not in (("moods",), ("steps",)):
        possible = ("again", "reverse", "first", "last")
    elif len(answer) == 1 and answer[0].isdigit():
        possible = ("again", "plus")
    op = possible[int(rng.integers(len(possible)))] if len(possible) > 1 else "again"
    added = str(int(rng.integers(1, 10))) if op == "plus" else ""
    return Task(first.category, (op,), answer, added, first)


def sample_prompts(
    n: int, rng: Rng, split: Split, *, two_turn_share: float = 0.2, category: str = ""
) -> list[Prompt]:
    """``n`` prompts of ``split`` with distinct text and stable ids (a hash of the messages), a
    share of them second turns, before which stands an answer from the data distribution.
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
