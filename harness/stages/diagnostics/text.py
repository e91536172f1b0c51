"""Diversity and newness of sampled answers: distinct-n and ROUGE-L. Pure functions of tokens and
words.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

WINDOW = 128
"""Tokens (words) of an answer that are looked at: longer answers repeat themselves, so distinct-n
falls with length alone.
"""


def words(text: str) -> list[str]:
    """Lower-case words of the first ``WINDOW``."""
    return re.findall(r"\w+", text.lower())[:WINDOW]


def distinct_n(answers: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Share of different n-grams among all n-grams of the answers' first ``WINDOW`` tokens (Li et
    al. 2016); None without any n-gram.
    """
    grams = [
        tuple(answer[i : i + n])
        for answer in (list(a)[:WINDOW] for a in answers)
        for i in range(len(answer) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, by bit-parallel rows (Hyyrö 2004): one pass over
    ``b`` with integers of len(a) bits.
    """
    places: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | (1 << i)
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """ROUGE-L F1 (Lin 2004): 2·LCS / (len(a) + len(b)); two empty answers are equal (1)."""
    total = len(a) + len(b)
    return 2 * longest_common_subsequence(a, b) / total if total else 1.0


def self_rouge(texts: Sequence[str]) -> float | None:
    """Mean ROUGE-L over pairs of answers to one prompt: 1 when all are equal. None below two
    answers.
    """
    listed = [words(text) for text in texts]
    pairs = [rouge_l(listed[i], listed[j]) for i in range(len(listed)) for j in range(i)]
    return sum(pairs) / len(pairs) if pairs else None


def newness(texts: Sequence[str], previous: Sequence[str], threshold: float = 0.9) -> float | None:
    """Share of answers whose ROUGE-L with every previous answer to the prompt is below
    ``threshold``. None if either set is empty.
    """
    if not texts or not previous:
        return None
    old = [words(text) for text in previous]
    return sum(
        all(rouge_l(words(text), other) < threshold for other in old) for text in texts
    ) / len(texts)
