"""The truth of the pocket world: the exact reward of any text, the modes of an answer, and a
judge's noisy view of them.

Reward = correctness times style worth: ``worth`` of the style when the content is right, 0 when it
is wrong or the text is in none of the styles. Everything here is a pure function; what looks random
is keyed by a hash of its arguments.
"""

from __future__ import annotations

import math
import re
import statistics

from harness.pocket import language, wordings
from harness.pocket.language import Messages
from harness.records import HarnessError, content_hash

PREFERENCE_SHARPNESS = 6.0
"""Log-odds of a preference per unit of reward: 0.5 apart is preferred with probability 0.95."""
LENGTH_SCALE = 50.0
"""Characters over which the length bias of a preference saturates."""
NORMAL = statistics.NormalDist()
_CONTENT = r"(?P<content>\w+:?(?: \w+:?)*)"
_STYLE_PATTERNS = [
    (style, re.compile(re.escape(style.template).replace(re.escape("{content}"), _CONTENT)))
    for style in wordings.STYLES
]


def style_of(answer: str) -> tuple[wordings.Style, tuple[str, ...]] | None:
    """Style and content of an answer, or None. The plain style claims what no other does."""
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


def task_of(messages: Messages) -> language.Task:
    """The task of the last user turn; HarnessError for a prompt outside the language."""
    task = language.parse_messages(messages)
    if task is None:
        shown = messages[-1]["content"]
        raise HarnessError(
            f"the pocket oracle cannot read this prompt: {shown!r}; it knows only prompts of "
            "harness.pocket.language"
        )
    return task


def _worth(style: wordings.Style, best_style_worth: float) -> float:
    return best_style_worth if style is wordings.BEST_STYLE else style.worth


def reward(messages: Messages, answer: str, best_style_worth: float = 1.0) -> float:
    """Exact reward in [0, 1] of ``answer`` to the last user turn of ``messages``."""
    right, found = is_correct(messages, answer), style_of(answer)
    return _worth(found[0], best_style_worth) if found and right else 0.0


def is_correct(messages: Messages, answer: str) -> bool:
    """Whether the content is right, whatever the style (texts in no style are wrong)."""
    task, found = task_of(messages), style_of(answer)
    return found is not None and found[1] == language.solve(task)


def modes(messages: Messages, best_style_worth: float = 1.0) -> list[tuple[str, float]]:
    """(text, reward), best first: every style with the right content and two near misses (18)."""
    task = task_of(messages)
    contents = (language.solve(task), *language.near_misses(task))
    listed = [
        (style.render(content), _worth(style, best_style_worth) if i == 0 else 0.0)
        for i, content in enumerate(contents)
        for style in wordings.STYLES
    ]
    return sorted(listed, key=lambda row: -row[1])


def reference(messages: Messages) -> str:
    """The best answer: right, in the best style."""
    return wordings.BEST_STYLE.render(language.solve(task_of(messages)))


# -- a judge's view --------------------------------------------------------------------------------
def preference(
    messages: Messages,
    output_a: str,
    output_b: str,
    *,
    seed: int,
    best_style_worth: float = 1.0,
    **views: float,
) -> float:
    """Probability that the judge prefers ``output_b``, shown second, to ``output_a``, shown first:
    ``preferred`` (whose noise and biases are ``views``) by their rewards.
    """
    first, second = (reward(messages, one, best_style_worth) for one in (output_a, output_b))
    return preferred(second - first, output_a, output_b, (seed, _plain(messages)), **views)


def preferred(
    gap: float,
    output_a: str,
    output_b: str,
    shown: tuple[object, ...],
    *,
    noise: float,
    position_bias: float,
    length_bias: float,
    length_scale: float = LENGTH_SCALE,
) -> float:
    """1 / (1 + exp(-log-odds)) of a preference for ``output_b``, whose quality is ``gap`` higher.

    log-odds = 6 gap - position_bias + length_bias tanh((len_b - len_a) / length_scale) + noise z,
    with lengths in characters and z standard normal, decided by what is shown and both outputs,
    changing sign when the outputs change places.
    """
    sign = float(output_a < output_b) - float(output_b < output_a)
    logit = PREFERENCE_SHARPNESS * gap - position_bias
    logit += length_bias * math.tanh((len(output_b) - len(output_a)) / length_scale)
    both = sorted((output_a, output_b))
    logit += noise * sign * standard_normal("preference", *shown, *both)
    return 1.0 / (1.0 + math.exp(-logit))


def rating(
    messages: Messages, answer: str, *, noise: float, seed: int, best_style_worth: float = 1.0
) -> int:
    """The judge's rating 1..10 of ``answer`` to the last user turn, by its reward."""
    value = reward(messages, answer, best_style_worth)
    return rated(value, noise, seed, _plain(messages), answer)


def rated(quality: float, noise: float, *shown: object) -> int:
    """1 + 9 quality + noise z, rounded and kept in 1..10; z is decided by what is shown."""
    value = 1.0 + 9.0 * quality + noise * standard_normal("rating", *shown)
    return max(1, min(10, math.floor(value + 0.5)))


def standard_normal(*parts: object) -> float:
    """A standard normal number decided by the hash of ``parts``."""
    return NORMAL.inv_cdf((int(content_hash(*parts, length=13), 16) + 0.5) / 16**13)


def _plain(messages: Messages) -> list[list[str]]:
    return [[message["role"], message["content"]] for message in messages]
