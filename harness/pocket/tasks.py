"""What a prompt of the pocket language asks: operations on words and numbers, their right answers
and plausible wrong ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.pocket.wordings import (
    CLASS_OF,
    CLASSES,
    EVENTS,
    MAX_NUMBER,
    MOODS,
    NAMES,
    ORDINALS,
    WORDS,
)
from harness.records import HarnessError, content_hash


@dataclass(frozen=True)
class Task:
    """What a prompt asks: operations applied in order to the arguments, and ``param`` (a class, an
    ordinal, a number).

    first: the task of the first turn when this is a follow-up, else None.
    """

    category: str
    ops: tuple[str, ...]
    args: tuple[str, ...]
    param: str = ""
    first: Task | None = None

    @property
    def key(self) -> str:
        """Hash of what is asked, the same in every wording and category. A follow-up has its first
        turn's key.
        """
        if self.first:
            return self.first.key
        return content_hash(self.ops, self.args, self.param, length=16)


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


def checked(task: Task) -> Task | None:
    """The task, or None when its arguments give it no answer (unknown words, a tie, a negative
    result).
    """
    words, op = {*CLASS_OF, *NAMES, *MOODS}, task.ops[0]
    try:
        numbers = [] if task.first else [int(arg) for arg in task.args if arg not in words]
        answer = solve(task)
    except (KeyError, ValueError, IndexError):
        return None
    clear = all(0 <= number <= MAX_NUMBER for number in numbers) and bool(answer)
    if op in ("odd", "tallest", "shortest", "earliest", "latest"):
        clear = clear and len(answer) == 1
    if op in ("tallest", "shortest"):
        clear = clear and len(_taller(task.args)) == 3
    return task if clear and not any(word.startswith("-") for word in answer) else None


def solve(task: Task) -> tuple[str, ...]:
    """The right content of the answer, in words."""
    content: Sequence[str] = task.args
    for op in task.ops:
        content = OPERATIONS[op](content, task.param)
    return tuple(content)


def near_misses(task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two plausible wrong contents, fixed by the task: an order error or a wrong element; numbers
    err by one.
    """
    found = list(itertools.islice(wrong_contents(task), 2))
    if len(found) < 2:
        raise HarnessError(f"task {task} has fewer than two wrong answers; widen its arguments")
    return found[0], found[1]


def wrong_contents(task: Task) -> Iterator[tuple[str, ...]]:
    """Distinct plausible wrong contents of a task, always the same in the same order; at least two,
    mostly three or more.
    """
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
    kind = next((words for words in (CLASSES, NAMES) if right[0] in words), None)
    pool, others = (task.args, WORDS) if kind is None else (kind, kind)
    for word in (*[word for word in task.args if word in pool], *others):
        yield (word,)
