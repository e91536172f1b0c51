"""Published rows of "Self-Exploring Language Models" (arXiv 2405.19332 v3, TMLR 2025), as data.

``published_1.csv``: AlpacaEval 2.0 (percent, percent, characters) and MT-Bench (1–10).
``published_2.csv``: academic benchmarks, percent: GSM8K 8-shot, HellaSwag 10, ARC-C 25, TruthfulQA
0, EQ-Bench 0, OpenBookQA 10 shots. ``published_cards.csv``: the only figures for Phi-3, and another
run of the others than Table 1's. They are never mixed with ours: other models, another judge, one
number per row without seeds.
"""

from __future__ import annotations

import csv
from importlib import resources

from analysis.load import StudyData
from analysis.table import Table, TableRow
from analysis.text import number

SOURCE = "Zhang et al., arXiv 2405.19332 v3 (TMLR 2025)"
CARDS_SOURCE = "the released models' cards; WildBench: its public leaderboard"


def read(key: str) -> dict[str, dict[str, float | None]]:
    """Model → column → value, None where a dash is printed."""
    text = resources.files("analysis.tables").joinpath(f"{key}.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        model = row.pop("model")
        found[model] = {name: float(value) if value else None for name, value in row.items()}
    return found


def _table(key: str, title: str, digits: int, source: str, place: str = "") -> Table:
    caption = (
        f"As printed in {source}: other models, another judge, one number a row. For orientation; "
        "not comparable with this study's numbers."
    )
    rows, observations = [], []
    own = {"length": 0, "WildBench": 3}
    for model, values in read(key).items():
        observations.append({"model": model, **values, "source": f"{source}{place}"})
        shown = {name: number(value, own.get(name, digits)) for name, value in values.items()}
        rows.append(TableRow({"model": model, **shown}))
    return Table(key, title, caption, rows, observations)


def table_published_1(_: StudyData) -> Table:
    return _table("published_1", "Published Table 1 (not ours)", 2, SOURCE, ", Table 1")


def table_published_2(_: StudyData) -> Table:
    return _table("published_2", "Published Table 2 (not ours)", 1, SOURCE, ", Table 2")


def table_published_cards(_: StudyData) -> Table:
    title = "Published on the released models' cards (not ours)"
    return _table("published_cards", title, 2, CARDS_SOURCE)
