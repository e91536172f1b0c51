"""AlpacaEval's numbers: instructions and gamed baselines read with care, win rates by the library,
intervals by `lc`.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluate import lc, libraries
from harness.records import HarnessError, content_hash

OFFICIAL_BASELINE = "4ebba41e7401"
"""Content hash of the 805 instructions with the gpt4_1106_preview outputs, in official order."""
OFFICIAL_JUDGE = "gpt-4-1106-preview"
GAMED_COLUMNS = (
    "model",
    "preference",
    "index",
    "instruction_difficulty",
    "std_delta_len",
    "not_gamed_baseline",
)


@dataclass(frozen=True)
class Instruction:
    """One row of eval.json. Its position among all rows is its ``index`` in df_gamed.csv."""

    id: str
    instruction: str
    output: str
    generator: str = "baseline"


@dataclass(frozen=True)
class Metrics:
    """Scores of one model against the baseline over the rows that have a preference. Percent; None
    where undefined.

    pseudo: jackknife pseudo-value of the length-controlled win rate by row, in the order of the
    rows given; their mean is the point.
    """

    win_rate: float | None
    standard_error: float | None
    length_controlled: float | None
    lc_standard_error: float | None
    lc_standard_error_library: float | None
    scored: int
    pseudo: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """A JSON file that holds a list of rows; HarnessError names the file otherwise."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HarnessError(f"{path} does not exist") from None
    except ValueError as error:
        raise HarnessError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise HarnessError(f"{path}: wants a JSON list of rows, found {type(rows).__name__}")
    return rows


def load_instructions(path: Path) -> list[Instruction]:
    """The benchmark's rows in official order; doubled ids are an error."""
    rows = [
        Instruction(
            str(row["id"]), row["instruction"], row["output"], row.get("generator", "baseline")
        )
        for row in read_json_rows(path)
    ]
    doubled = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if doubled:
        raise HarnessError(f"{path}: id {', '.join(doubled[:10])} occurs more than once")
    return rows


def baseline_hash(instructions: Sequence[Instruction]) -> str:
    """Content hash of instructions and baseline outputs, in order."""
    return content_hash([(item.instruction, item.output) for item in instructions], length=12)


def read_gamed(path: Path, count: int) -> list[dict[str, Any]]:
    """Rows of df_gamed.csv, checked: every gamed baseline covers index 0..count-1 once. Empty when
    there is no such file.
    """
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in GAMED_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise HarnessError(
                f"{path}: no column {', '.join(missing)}; wants {', '.join(GAMED_COLUMNS)}"
            )
        rows: list[dict[str, Any]] = []
        for line, raw in enumerate(reader, 2):
            try:
                rows.append(
                    {
                        "model": raw["model"],
                        "preference": float(raw["preference"]),
                        "index": int(raw["index"]),
                        "instruction_difficulty": float(raw["instruction_difficulty"]),
                        "std_delta_len": float(raw["std_delta_len"]),
                        "not_gamed_baseline": raw["not_gamed_baseline"].strip() == "True",
                    }
                )
            except (ValueError, AttributeError, TypeError) as error:
                raise HarnessError(f"{path}:{line}: {error}") from error
    for model in dict.fromkeys(row["model"] for row in rows):
        index = sorted(row["index"] for row in rows if row["model"] == model)
        if index != list(range(count)):
            raise HarnessError(
                f"{path}: gamed baseline {model} has {len(index)} rows; wants one for each index "
                f"0..{count - 1}"
            )
    return rows


def write_gamed(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write df_gamed.csv in the library's columns; floats in full."""
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(GAMED_COLUMNS)
        writer.writerows(
            [row[name] if isinstance(row[name], str) else repr(row[name]) for name in GAMED_COLUMNS]
            for row in rows
        )


def keep_gamed(rows: Sequence[Mapping[str, Any]], positions: Sequence[int]) -> list[dict[str, Any]]:
    """The gamed rows of the instructions at ``positions``, renumbered 0..n-1: the library's join by
    position is then the join by id.
    """
    renumbered = {old: new for new, old in enumerate(positions)}
    order = {
        model: number for number, model in enumerate(dict.fromkeys(row["model"] for row in rows))
    }
    kept = [
        {**row, "index": renumbered[row["index"]]} for row in rows if row["index"] in renumbered
    ]
    return sorted(kept, key=lambda row: (order[row["model"]], row["index"]))


def compute_metrics(
    preferences: Sequence[float],
    baseline: Sequence[str],
    outputs: Sequence[str],
    positions: Sequence[int],
    gamed: Sequence[Mapping[str, Any]],
) -> Metrics:
    """Win rate and length-controlled win rate of n rows with preferences in 1..2 (2: the model's
    output is better).

    positions: index of each row in df_gamed. Gamed rows of absent instructions are left out. Where
    the GLM is undefined (all length differences equal, constant preference, fewer than ten rows)
    the length-controlled win rate is the win rate, and flagged.
    """
    if not preferences:
        return Metrics(None, None, None, None, None, 0, flags=("no_scored_rows",))
    library = libraries.alpaca_eval()
    plain = library.metrics.get_winrate([{"preference": p} for p in preferences])
    win_rate, error = (
        float(plain["win_rate"]),
        float(plain["standard_error"]) if len(preferences) > 1 else None,
    )
    if not gamed:
        return Metrics(
            win_rate, error, None, None, None, len(preferences), flags=("no_gamed_baseline",)
        )
    kept = keep_gamed(gamed, positions)
    chance = np.asarray(preferences, dtype=float) - 1.0
    difficulty = {row["index"]: row["instruction_difficulty"] for row in reversed(kept)}
    own = lc.OwnRows(
        chance,
        np.array([len(a) - len(b) for a, b in zip(baseline, outputs, strict=True)], dtype=float),
        np.array([difficulty[i] for i in range(len(chance))]),
    )
    reason = lc.degenerate(own)
    if reason:
        return Metrics(
            win_rate, error, win_rate, error, None, len(chance), tuple(100.0 * chance), (reason,)
        )
    with tempfile.TemporaryDirectory() as folder:
        write_gamed(Path(folder) / "df_gamed.csv", kept)
        found = libraries.library_length_controlled(
            _frame(preferences, baseline, outputs), Path(folder) / "df_gamed.csv"
        )
    column = {
        name: np.array([row[name] for row in kept], dtype=float)
        for name in ("preference", "std_delta_len", "instruction_difficulty")
    }
    rows = lc.GamedRows(
        np.array([row["index"] for row in kept]),
        column["preference"],
        column["std_delta_len"],
        column["instruction_difficulty"],
    )
    point = float(found["length_controlled_winrate"])
    pseudo = lc.pseudo_values(point, lc.leave_one_out(own, rows))
    return Metrics(
        win_rate,
        error,
        point,
        lc.standard_error(pseudo),
        float(found["lc_standard_error"]),
        len(chance),
        tuple(pseudo.tolist()),
    )


def _frame(preferences: Sequence[float], baseline: Sequence[str], outputs: Sequence[str]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {
            "preference": list(preferences),
            "output_1": list(baseline),
            "output_2": list(outputs),
            "generator_1": "baseline",
            "generator_2": "model",
        }
    )
