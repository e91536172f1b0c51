"""AlpacaEval 2.0's published leaderboard from published annotations and GLM weights, by the
library's own metrics.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluate import libraries
from harness.evaluate.alpaca_metrics import read_json_rows
from harness.evaluate.published import Row, compare, failed, show
from harness.records import HarnessError

SOURCE = "alpaca_eval"
EXACT = 1e-6
REFIT = 0.16
"""What a refit with the reconstructed gamed baselines is known to reproduce (57 models, median
0.0004).
"""
WEIGHTS = 1e-4
OTHER_FIT = 0.25
"""Weights of another fit of the same annotations stay this close (largest seen: 0.19); a larger
difference is an error.
"""
PLAIN = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
)


@dataclass(frozen=True)
class Published:
    """What lies beside the model folders; every part may be missing."""

    leaderboard: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, tuple[float, float]]
    difficulty: Sequence[float]
    gamed: Path | None
    official: Mapping[tuple[str, str], int]


def recompute(folder: Path) -> list[Row]:
    """Rows for every model folder, then for every leaderboard row that has published GLM weights."""
    weights = {
        model: (row["instruction_difficulty"], row["not_gamed_baseline.astype(float)"])
        for model, row in _table(folder / "published_glm_weights.csv").items()
    }
    table = _table(folder / "instruction_difficulty_recovered.csv")
    if not all(name.isdigit() for name in table):
        raise HarnessError(
            f"{folder / 'instruction_difficulty_recovered.csv'}: the first column should be the "
            "instruction's number"
        )
    difficulty = [table[name]["instruction_difficulty"] for name in sorted(table, key=int)]
    gamed = [
        path
        for name in ("df_gamed.csv", "df_gamed_reconstructed.csv")
        if (path := folder / name).exists()
    ]
    public = Published(
        _table(folder / "leaderboard.csv"),
        weights,
        difficulty,
        gamed[0] if gamed else None,
        _official(folder),
    )
    rows: list[Row] = []
    for path in sorted([*folder.glob("*/annotations.json"), *folder.glob("*/*/annotations.json")]):
        model = path.relative_to(folder).parts[0]
        try:
            rows += model_rows(model, path, folder / model / "model_outputs.json", public)
        except (
            HarnessError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AssertionError,
            AttributeError,
        ) as error:
            rows.append(
                failed(SOURCE, model, "annotations", f"{path}: {type(error).__name__}: {error}")
            )
    return rows + weight_rows(public)


def model_rows(model: str, annotations: Path, outputs: Path, public: Published) -> list[Row]:
    """Win rates, counts, length and the refitted length-controlled win rate of one model."""
    import pandas as pd

    stored = read_json_rows(annotations)
    frame = pd.DataFrame(
        {
            name: [row[name] for row in stored]
            for name in ("preference", "output_1", "output_2", "instruction")
        }
    )
    frame["generator_1"], frame["generator_2"] = stored[0].get("generator_1", "baseline"), model
    board = public.leaderboard.get(model, {})
    note = "" if board else "model is not in leaderboard.csv"
    plain = libraries.alpaca_eval().metrics.get_winrate(frame)
    rows = [
        compare(SOURCE, model, name, board.get(name), float(plain[name]), EXACT, note)
        for name in PLAIN
        if name == "win_rate" or not board or name in board
    ]
    texts = (
        [row["output"] for row in read_json_rows(outputs)]
        if outputs.exists()
        else [row["output_2"] for row in stored]
    )
    texts = [text for text in texts if isinstance(text, str)]
    rows.append(
        length_row(
            model, texts, board.get("avg_length"), max(len(public.official), len(texts)), note
        )
    )
    return rows + refit_rows(model, frame, board.get("length_controlled_winrate"), public)


def length_row(
    model: str, texts: Sequence[str], published: float | None, complete: int, note: str
) -> Row:
    """Mean characters, cut to an integer; absent outputs count as empty where that is how the
    published figure was made.
    """
    total = sum(len(text) for text in texts)
    value, filled = float(total // len(texts)), float(total // complete)
    if len(texts) < complete and published == filled != value:
        value, note = (
            filled,
            f"{complete - len(texts)} absent outputs counted as empty, as published; without them "
            f"{total // len(texts)}",
        )
    return compare(SOURCE, model, "avg_length", published, value, EXACT, note)


def refit_rows(model: str, frame: Any, published: float | None, public: Published) -> list[Row]:
    """LC win rate by the library's join by position, and by id where positions do not agree with
    ids.
    """
    figure = "length_controlled_winrate"
    if public.gamed is None:
        return [show(SOURCE, model, figure, published, None, "no df_gamed file: not refitted")]
    complete = len(public.official) or len(public.difficulty) or len(frame)
    ids = _ids(frame, public.official)
    value = _library(frame, range(len(frame)), public.gamed) if len(frame) <= complete else None
    joined = f"refit with {public.gamed.name}, joined by position"
    if len(frame) == complete:
        rows = [compare(SOURCE, model, figure, published, value, REFIT, joined)]
    else:
        note = f"{joined}; {len(frame)} of {complete} instructions, so positions are shifted, as they were in the published fit"
        rows = [show(SOURCE, model, f"{figure} (by position)", published, value, note)]
    if ids is None or ids != list(range(len(frame))):
        by_id = None if ids is None else _library(frame, ids, public.gamed)
        note = (
            "annotations do not match the official instructions, no join by id"
            if ids is None
            else "joined by instruction, as studies do; not what was published"
        )
        rows.append(show(SOURCE, model, f"{figure} (by id)", published, by_id, note))
    return rows


def weight_rows(public: Published) -> list[Row]:
    """LC win rate and its published standard error from the published GLM weights, for every model
    that has both.

    The leaderboard's two figures come from one fit. Where neither is what the weights give, and the
    difference is small, the weights are of another fit (not current) and nothing is required; where
    one agrees, the other must.
    """
    rows: list[Row] = []
    for model, board in public.leaderboard.items():
        if (
            model not in public.weights
            or not public.difficulty
            or math.isnan(board.get("length_controlled_winrate", math.nan))
        ):
            continue
        slope, level = public.weights[model]
        count = (
            min(int(board.get("n_total", math.inf)), len(public.difficulty))
            if not math.isnan(board.get("n_total", math.nan))
            else len(public.difficulty)
        )
        chance = 100.0 / (1.0 + np.exp(-(slope * np.array(public.difficulty[:count]) + level)))
        value, error = float(chance.mean()), float(chance.std(ddof=1) / math.sqrt(count))
        rows += _weight_pair(
            model,
            board["length_controlled_winrate"],
            value,
            board.get("lc_standard_error", math.nan),
            error,
        )
    return rows


def _weight_pair(
    model: str, published: float, value: float, published_error: float, error: float
) -> list[Row]:
    figure, error_figure = "length_controlled_winrate (weights)", "lc_standard_error (weights)"
    note = "from published GLM weights at zero length difference"
    agrees, error_agrees = (
        abs(value - published) <= WEIGHTS,
        abs(error - published_error) <= WEIGHTS,
    )
    if not agrees and not error_agrees and abs(value - published) <= OTHER_FIT:
        if math.isnan(published_error):
            unknown = (
                f"{note}; probably weights of another fit: no published standard error to tell"
            )
            return [show(SOURCE, model, figure, published, value, unknown)]
        stale = f"{note}; weights not current: neither this nor the standard error is of the published fit"
        return [
            show(SOURCE, model, figure, published, value, stale),
            show(SOURCE, model, error_figure, published_error, error, stale),
        ]
    rows = [compare(SOURCE, model, figure, published, value, WEIGHTS, note)]
    return (
        rows
        if math.isnan(published_error)
        else [*rows, compare(SOURCE, model, error_figure, published_error, error, WEIGHTS, note)]
    )


def _library(frame: Any, index: Sequence[int], gamed: Path) -> float:
    """The library's LC win rate; ``index`` gives each row's position in the gamed file."""
    rows = frame.drop(columns="instruction")
    rows.index = list(index)
    return float(libraries.library_length_controlled(rows, gamed)["length_controlled_winrate"])


def _ids(frame: Any, official: Mapping[tuple[str, str], int]) -> list[int] | None:
    """Official position of every annotation by instruction and baseline output; None when one is
    unknown.
    """
    keys = list(zip(frame["instruction"], frame["output_1"], strict=True))
    return (
        [official[key] for key in keys]
        if official and all(key in official for key in keys)
        else None
    )


def _official(folder: Path) -> dict[tuple[str, str], int]:
    """Position by (instruction, baseline output): the outputs of the model that every annotation is
    compared with.
    """
    for path in sorted(folder.glob("*/model_outputs.json")):
        if path.parent.name == "gpt4_1106_preview":
            return {
                (row["instruction"], row["output"]): position
                for position, row in enumerate(read_json_rows(path))
            }
    return {}


def _table(path: Path) -> dict[str, dict[str, float]]:
    """A CSV of numbers by its first column; other text is left out. A doubled name keeps its last
    row, as the library does.
    """
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as handle:
        lines = list(csv.reader(handle))
    return {
        line[0]: {
            name: value
            for name, text in zip(lines[0][1:], line[1:], strict=False)
            if (value := _float(text)) is not None
        }
        for line in lines[1:]
        if line
    }


def _float(text: str) -> float | None:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return None
