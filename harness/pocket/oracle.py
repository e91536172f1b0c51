"""The truth of the pocket world: the exact reward of any text, the modes of an answer, and a
judge's noisy view of them.

Reward = correctness times style worth: ``worth`` of the style when the content is right, 0 when it
is wrong or the text is in none of the styles. Everything here is a pure function; what looks random
is keyed by a hash of its arguments.
"""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Mapping, Sequence

from harness.pocket import language, wordings
from harness.records import HarnessError, content_hash

PREFERENCE_SHARPNESS = 6.0
"""Log-odds of a preference per unit of reward: 0.5 reward apart is preferred with probability 0.95.
"""
LENGTH_SCALE = 50.0
"""Characters over which the length bias of a preference saturates."""
_STYLE_PATTERNS = [
    (
        s,
        re.compile(
            re.escape(s.template).replace(re.escape("{content}"), r"(?P<content>\w+:?(?: \w+:?)*)")
        ),
    )
    for s in wordings.STYLES
]


def style_of(answer: str) -> tuple[wordings.Style, tuple[str, ...]] | None:
    """Style and content of an answer, or None when it is in none of the styles. The plain style
    claims what no other does.
    """
    text = language.normalise(answer)
    for style, pattern in reversed(_STYLE_PATTERNS):
        match = pattern.fullmatch(text)
        if match:
            return style, tuple(match["content"].split())
    return None


def in_best_style(answer: str) -> bool:
    """Whether a text is in the style that only exploration may find."""
    found = style_of(answer)
    return found is not None and found[0] is wordings.BEST_STYLE


def task_of(messages: Sequence[Mapping[str, str]]) -> language.Task:
    """The task of the last user turn; HarnessError for a prompt outside the language."""
    task = language.parse_messages(messages)
    if task is None:
        shown = messages[-1]["content"] if messages else ""
        raise HarnessError(
            f"the pocket oracle cannot read this prompt: {shown!r}; it knows only prompts of "
            "harness.pocket.language"
        )
    return task


def worth_of(style: wordings.Style, best_style_worth: float = 1.0) -> float:
    """Reward of a right answer in ``style``, where the best style is worth ``best_style_worth``."""
    return best_style_worth if style is wordings.BEST_STYLE else style.worth


def reward(
    messages: Sequence[Mapping[str, str]], answer: str, best_style_worth: float = 1.0
) -> float:
    """Exact reward in [0, 1] of ``answer`` to the last user turn of ``messages``."""
    task = task_of(messages)
    found = style_of(answer)
    right = found is not None and found[1] == language.solve(task)
    return worth_of(found[0], best_style_worth) if found and right else 0.0


def is_correct(messages: Sequence[Mapping[str, str]], answer: str) -> bool:
    """Whether the content is right, whatever the style (texts in no style are wrong)."""
    found = style_of(answer)
    return found is not None and found[1] == language.solve(task_of(messages))


def modes(
    messages: Sequence[Mapping[str, str]], best_style_worth: float = 1.0
) -> list[tuple[str, float]]:
    """The answer modes (text, reward), best first: every style with the right content and with two
    near misses (18).
    """
    task = task_of(messages)
    contents = (language.solve(task), *language.near_misses(task))
    listed = [
        (style.render(content), worth_of(style, best_style_worth) if i == 0 else 0.0)
        for i, content in enumerate(contents)
        for style in wordings.STYLES
    ]
    return sorted(listed, key=lambda row: -row[1])


def reference(messages: Sequence[Mapping[str, str]]) -> str:
    """The best answer: right, in the best style."""
    return wordings.BEST_STYLE.render(language.solve(task_of(messages)))


def quality(
    messages: Sequence[Mapping[str, str]], answer: str, best_style_worth: float = 1.0
) -> float:
    """What the judge looks at, in [0, 1]: the reward for prompts of the language.

    For any other prompt a crude stand-in, so that the judge answers on real text too: the share of
    distinct words, times a length factor that saturates at 40 words. It says nothing about how good
    the answer is.
    """
    if language.parse_messages(messages) is not None:
        return reward(messages, answer, best_style_worth)
    words = answer.lower().split()
    return len(set(words)) / len(words) * math.tanh(len(words) / 40.0) if words else 0.0


def preference(
    messages: Sequence[Mapping[str, str]],
    output_a: str,
    output_b: str,
    *,
    noise: float,
    position_bias: float,
    length_bias: float,
    seed: int,
    best_style_worth: float = 1.0,
) -> float:
    """Probability that the judge prefers ``output_b``, shown second, to ``output_a``, shown first.

    log-odds = 6 (q_b - q_a) - position_bias + length_bias tanh((len_b - len_a) / 50) + noise z,
    with q the quality, lengths in characters, and z standard normal, decided by (seed, messages,
    outputs) and changing sign when the outputs change places.
    """
    first, second = (quality(messages, output, best_style_worth) for output in (output_a, output_b))
    logit = PREFERENCE_SHARPNESS * (second - first) - position_bias
    logit += length_bias * math.tanh((len(output_b) - len(output_a)) / LENGTH_SCALE)
    if output_a != output_b:
        sign = 1.0 if output_a < output_b else -1.0
        logit += (
            noise
            * sign
            * standard_normal("preference", seed, _plain(messages), *sorted((output_a, output_b)))
        )
    return 1.0 / (1.0 + math.exp(-logit))


def rating(
    messages: Sequence[Mapping[str, str]],
    answer: str,
    *,
    noise: float,
    seed: int,
    best_style_worth: float = 1.0,
) -> int:
    """The judge's rating 1..10 of ``answer`` to the last user turn: 1 + 9 quality + noise z,
    rounded and kept in range.
    """
    value = (
        1.0
        + 9.0 * quality(messages, answer, best_style_worth)
        + noise * standard_normal("rating", seed, _plain(messages), answer)
    )
    return max(1, min(10, math.floor(value + 0.5)))


def standard_normal(*parts: object) -> float:
    """A standard normal number decided by the hash of ``parts``."""
    return _quantile((int(content_hash(*parts, length=13), 16) + 0.5) / 16**13)


def _plain(messages: Sequence[Mapping[str, str]]) -> list[list[str]]:
    return [[message["role"], message["content"]] for message in messages]


@functools.cache
def _normal() -> statistics.NormalDist:
    return statistics.NormalDist()


def _quantile(share: float) -> float:
    return _normal().inv_cdf(share)
