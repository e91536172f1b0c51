"""Published rows of Zhang et al., "Self-Exploring Language Models" (arXiv 2405.19332 v3, TMLR
2025), as data.

They stand in tables of their own and are never mixed with ours: other models, another judge, one
number per row without seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.load import StudyData
from analysis.table import Table, TableRow
from analysis.text import number

SOURCE = "Zhang et al., arXiv 2405.19332 v3 (TMLR 2025)"
TABLE_1_COLUMNS = ("AlpacaEval LC", "AlpacaEval WR", "length", "MT-Bench mean", "turn 1", "turn 2")
TABLE_2_COLUMNS = ("GSM8K", "HellaSwag", "ARC-C", "TruthfulQA", "EQ-Bench", "OBQA", "mean")

CARDS_SOURCE = "the released models' cards; WildBench: its public leaderboard"
CARDS_COLUMNS = ("AlpacaEval LC", "MT-Bench mean", "WildBench")


@dataclass(frozen=True)
class PublishedRow:
    """One published row. ``values`` follow the table's columns; None where a dash is printed."""

    model: str
    values: tuple[float | None, ...]
    source: str


_TABLE_1 = """
Zephyr-7B-SFT            8.01  4.63  916  5.30 5.63 4.97
Zephyr-7B-DPO           15.41 14.44 1752  7.31 7.55 7.07
DPO Iter 1 (Zephyr)     20.53 16.69 1598  7.53 7.81 7.25
DPO Iter 2 (Zephyr)     22.12 19.82 1717  7.55 7.85 7.24
DPO Iter 3 (Zephyr)     22.19 19.88 1717  7.46 7.85 7.06
SELM Iter 1 (Zephyr)    20.52 17.23 1624  7.53 7.74 7.31
SELM Iter 2 (Zephyr)    21.84 18.78 1665  7.61 7.85 7.38
SELM Iter 3 (Zephyr)    24.25 21.05 1694  7.61 7.74 7.49
Llama-3-8B-Instruct     22.92 22.57 1899  7.93 8.47 7.38
DPO Iter 1 (Llama3-It)  30.89 31.60 1979  8.07 8.44 7.70
DPO Iter 2 (Llama3-It)  33.91 32.95 1939  7.99 8.39 7.60
DPO Iter 3 (Llama3-It)  33.17 32.18 1930  8.18 8.60 7.77
SELM Iter 1 (Llama3-It) 31.09 30.90 1956  8.09 8.57 7.61
SELM Iter 2 (Llama3-It) 33.53 32.61 1919  8.18 8.69 7.66
SELM Iter 3 (Llama3-It) 34.67 34.78 1948  8.25 8.53 7.98
SPIN                     7.23  6.54 1426  6.54 6.94 6.14
Orca-2.5-SFT            10.76  6.99 1174  6.88 7.72 6.02
DNO (Orca-2.5-SFT)      22.59 24.97 2228  7.48 7.62 7.35
Mistral-7B-Instr-v0.2   19.39 15.75 1565  7.51 7.78 7.25
SPPO (Mistral-it)       28.53 31.02 2163  7.59 7.84 7.34
Yi-34B-Chat             27.19 21.23 2123  7.90  -    -
Llama-3-70B-Instruct    33.17 33.18 1919  9.01 9.21 8.80
GPT-4 Turbo (04/09)     55.02 46.12 1802  9.19 9.38 9.00
"""

_TABLE_2 = """
Zephyr-7B-SFT           43.8 82.2 57.4 43.6 39.1 35.4 50.3
Zephyr-7B-DPO           47.2 84.5 61.9 45.5 65.2 38.0 57.0
DPO Iter 1 (Zephyr)     45.5 85.2 62.1 52.4 68.4 39.0 58.8
DPO Iter 2 (Zephyr)     44.9 85.4 62.0 53.1 69.3 39.4 59.0
DPO Iter 3 (Zephyr)     43.2 85.2 60.8 52.5 69.1 39.6 58.4
SELM Iter 1 (Zephyr)    46.3 84.8 62.9 52.9 68.8 39.6 59.2
SELM Iter 2 (Zephyr)    46.2 85.4 62.1 53.1 69.3 39.6 59.3
SELM Iter 3 (Zephyr)    43.8 85.4 61.9 52.4 69.9 39.8 58.9
Llama-3-8B-Instruct     76.7 78.6 60.8 51.7 61.8 38.0 61.3
DPO Iter 1 (Llama3-It)  78.5 81.7 63.9 55.5 64.1 42.6 64.4
DPO Iter 2 (Llama3-It)  79.4 81.7 64.4 56.4 64.3 42.6 64.8
DPO Iter 3 (Llama3-It)  80.1 81.7 64.1 56.5 64.1 42.6 64.8
SELM Iter 1 (Llama3-It) 78.7 81.7 64.5 55.4 64.1 42.4 64.5
SELM Iter 2 (Llama3-It) 79.3 81.8 64.7 56.5 64.2 42.6 64.9
SELM Iter 3 (Llama3-It) 80.1 81.8 64.3 56.5 64.2 42.8 65.0
SPIN                    44.7 85.9 65.9 55.6 54.4 39.6 57.7
Mistral-7B-Instr-v0.2   43.4 85.3 63.4 67.5 65.9 41.2 61.1
SPPO (Mistral-it)       42.4 85.6 65.4 70.7 56.5 40.0 60.1
"""


_CARDS = """
SELM-Zephyr-7B-iter-1    20.28 7.42 -
SELM-Zephyr-7B-iter-2    23.40 7.72 -
SELM-Zephyr-7B-iter-3    24.00 7.48 6.576
DPO-Zephyr-7B            14.45 7.28 -
Llama-3-8B-Instruct      24.31 7.93 6.659
SELM-Llama-3-8B-iter-1   32.02 7.92 -
SELM-Llama-3-8B-iter-2   35.65 8.09 -
SELM-Llama-3-8B-iter-3   33.47 8.29 6.998
Phi-3-mini-4k-instruct   23.05 8.12 -
SELM-Phi-3-mini-iter-1   27.33 8.37 -
SELM-Phi-3-mini-iter-2   26.79 8.44 -
SELM-Phi-3-mini-iter-3   27.98 8.32 -
"""


def _rows(block: str, columns: Sequence[str], source: str) -> tuple[PublishedRow, ...]:
    rows = []
    for line in block.strip().splitlines():
        words = line.split()
        model, printed = words[: -len(columns)], words[-len(columns) :]
        values = tuple(None if word == "-" else float(word) for word in printed)
        rows.append(PublishedRow(" ".join(model), values, source))
    return tuple(rows)


TABLE_1 = _rows(_TABLE_1, TABLE_1_COLUMNS, f"{SOURCE}, Table 1")
"""AlpacaEval 2.0 (percent, percent, characters) and MT-Bench (1–10)."""
TABLE_2 = _rows(_TABLE_2, TABLE_2_COLUMNS, f"{SOURCE}, Table 2")
"""Academic benchmarks, percent: GSM8K 8-shot, HellaSwag 10, ARC-C 25, TruthfulQA 0, EQ-Bench 0,
OpenBookQA 10 shots.
"""
CARDS = _rows(_CARDS, CARDS_COLUMNS, CARDS_SOURCE)
"""The only published figures for Phi-3, and another run of the others than Table 1's."""


def _table(
    key: str,
    title: str,
    columns: Sequence[str],
    published: Sequence[PublishedRow],
    digits: int,
    source: str = SOURCE,
) -> Table:
    caption = (
        f"As printed in {source}: other models, another judge, one number a row. For orientation; "
        "not comparable with this study's numbers."
    )
    rows, observations = [], []
    for row in published:
        values = dict(zip(columns, row.values, strict=True))
        observations.append({"model": row.model, **values, "source": row.source})
        places = {"length": 0, "WildBench": 3}
        shown = {name: number(v, places.get(name, digits)) for name, v in values.items()}
        rows.append(TableRow({"model": row.model, **shown}))
    return Table(key, title, caption, rows, observations)


def table_published_1(_: StudyData) -> Table:
    title = "Published Table 1 (not ours)"
    return _table("published_1", title, TABLE_1_COLUMNS, TABLE_1, 2)


def table_published_2(_: StudyData) -> Table:
    title = "Published Table 2 (not ours)"
    return _table("published_2", title, TABLE_2_COLUMNS, TABLE_2, 1)


def table_published_cards(_: StudyData) -> Table:
    title = "Published on the released models' cards (not ours)"
    return _table("published_cards", title, CARDS_COLUMNS, CARDS, 2, CARDS_SOURCE)
