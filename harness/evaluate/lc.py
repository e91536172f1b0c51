"""AlpacaEval's win rates: the library's, and the length-controlled one's interval by an unpenalised
fit fast enough to be repeated once per instruction.

Model (alpaca_eval's ``length_controlled_v1``): P(model wins on x) = sigma(a tanh((len_baseline -
len_model) / sd) + b difficulty(x) + c), no intercept, c only on the model's own rows; two gamed
baselines' rows enter with weight 0.1 each; the LC win rate is the mean of sigma(b difficulty + c)
in percent. The point estimate reported anywhere is the library's; this module makes its interval.

Arrays: n own rows, m gamed rows, B fits side by side, parameters (a, b, c).
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evaluate import libraries
from harness.evaluate.benchmark import Form, checked
from harness.records import HarnessError

Floats = NDArray[np.float64]


class _Gamed(Form):
    """A row of the library's df_gamed.csv."""

    model: str
    preference: float
    index: int
    instruction_difficulty: float
    std_delta_len: float
    not_gamed_baseline: bool


GAMED_WEIGHT = 0.1
"""lambda 0.2 over two gamed baselines (GLM_INFO of alpaca_eval 0.6.6)."""
RIDGE = 1e-6
"""Keeps the Newton step defined when a column vanishes; far below what moves the second decimal."""


@dataclass(frozen=True)
class GamedRows:
    """Rows of df_gamed: ``item`` is the position of the own row with the same instruction."""

    item: NDArray[np.int64]
    preference: Floats
    std_delta_len: Floats
    difficulty: Floats


@dataclass(frozen=True)
class OwnRows:
    """preference in [0, 1] (1: the model wins), delta: baseline minus model in characters."""

    preference: Floats
    delta: Floats
    difficulty: Floats


def degenerate(rows: OwnRows) -> str:
    """Why no length-controlled fit is defined for these rows, or an empty string."""
    if len(rows.preference) < 10:
        return "too_few_rows"
    if np.ptp(rows.delta) == 0:
        return "no_length_variance"
    if np.ptp(rows.preference) < 1e-12:
        return "constant_preference"
    return ""


def length_controlled(rows: OwnRows, gamed: GamedRows) -> float:
    """LC win rate in percent of all rows by the unpenalised fit."""
    theta, keep = _whole(rows, gamed)
    return float(_win_rates(theta, keep, rows)[0])


def _whole(rows: OwnRows, gamed: GamedRows) -> tuple[Floats, Floats]:
    """(fit of all rows, their weights)."""
    keep, weight = np.ones((1, len(rows.delta))), np.full((1, len(gamed.item)), GAMED_WEIGHT)
    tanh = np.tanh(rows.delta / rows.delta.std(ddof=1))[None, :]
    return _fit(tanh, keep, weight, rows, gamed, np.zeros((1, 3))), keep


def leave_one_out(rows: OwnRows, gamed: GamedRows, chunk: int = 64) -> Floats:
    """LC win rate (percent) without instruction i, its gamed rows and its part of the sd, all i."""
    count = len(rows.delta)
    rest = count - 1
    centred = rows.delta - rows.delta.mean()
    squares = (centred**2).sum() - centred**2  # the sum of the others is -centred_i
    deviation = np.sqrt(np.maximum((squares - centred**2 / rest) / (rest - 1), 1e-12))
    start, _ = _whole(rows, gamed)
    out = np.empty(count)
    for begin in range(0, count, chunk):
        left = np.arange(begin, min(begin + chunk, count))
        keep = np.ones((len(left), count))
        keep[np.arange(len(left)), left] = 0.0
        weight = GAMED_WEIGHT * (gamed.item[None, :] != left[:, None])
        tanh = np.tanh(rows.delta[None, :] / deviation[left, None])
        theta = _fit(tanh, keep, weight, rows, gamed, np.repeat(start, len(left), axis=0))
        out[left] = _win_rates(theta, keep, rows)
    return out


def pseudo_values(point: float, without: Floats) -> Floats:
    """Jackknife pseudo-values n LC - (n-1) LC_(-i), shifted by one constant so that their mean is
    ``point`` (the library's LC).

    Their sd / sqrt(n) is the jackknife's standard error.
    """
    return np.asarray(point + (len(without) - 1) * (without.mean() - without))


def standard_error(pseudo: Floats) -> float:
    """Standard error (percent) of the mean of pseudo-values."""
    return float(pseudo.std(ddof=1) / np.sqrt(len(pseudo)))


def _win_rates(theta: Floats, keep: Floats, rows: OwnRows) -> Floats:
    chance = _sigmoid(theta[:, 1:2] * rows.difficulty[None, :] + theta[:, 2:3])
    return np.asarray(100.0 * (chance * keep).sum(axis=1) / keep.sum(axis=1))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _fit(
    tanh: Floats, keep: Floats, weight: Floats, rows: OwnRows, gamed: GamedRows, theta: Floats
) -> Floats:
    """Newton's method for B weighted logistic fits with soft labels. tanh, keep (B, n); weight (B,
    m); theta (B, 3), the start.
    """
    hard, hard2 = rows.difficulty, rows.difficulty**2
    length, level = np.tanh(gamed.std_delta_len), gamed.difficulty
    theta = theta.copy()
    for _ in range(50):
        own = _sigmoid(theta[:, 0:1] * tanh + theta[:, 1:2] * hard + theta[:, 2:3])
        other = _sigmoid(theta[:, 0:1] * length + theta[:, 1:2] * level)
        error, error_g = keep * (own - rows.preference), weight * (other - gamed.preference)
        curve, curve_g = keep * own * (1.0 - own), weight * other * (1.0 - other)
        sloped = curve * tanh
        along = (error * tanh).sum(1) + error_g @ length
        gradient = np.stack([along, error @ hard + error_g @ level, error.sum(1)], axis=1)
        gradient += RIDGE * theta
        hessian = np.empty((len(theta), 3, 3))
        hessian[:, 0, 0] = (sloped * tanh).sum(1) + curve_g @ (length * length)
        hessian[:, 0, 1] = hessian[:, 1, 0] = sloped @ hard + curve_g @ (length * level)
        hessian[:, 0, 2] = hessian[:, 2, 0] = sloped.sum(1)
        hessian[:, 1, 1] = curve @ hard2 + curve_g @ (level * level)
        hessian[:, 1, 2] = hessian[:, 2, 1] = curve @ hard
        hessian[:, 2, 2] = curve.sum(1)
        hessian += RIDGE * np.eye(3)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        # At most 2 a step: far starts cannot overshoot.
        step /= np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True) / 2.0)
        theta -= step
        if np.abs(step).max() < 1e-9:
            break
    return theta


# -- the library's metrics -------------------------------------------------------------------------
@dataclass(frozen=True)
class Metrics:
    """Scores of one model against the baseline over the rows that have a preference. Percent; None
    where undefined.

    pseudo: jackknife pseudo-value of the length-controlled win rate by row, in the order of the
    rows given; their mean is the point.
    """

    win_rate: float | None = None
    standard_error: float | None = None
    length_controlled: float | None = None
    lc_standard_error: float | None = None
    lc_standard_error_library: float | None = None
    scored: int = 0
    pseudo: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()


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
    import pandas as pd

    if not preferences:
        return Metrics(flags=("no_scored_rows",))
    plain = libraries.alpaca_eval().metrics.get_winrate([{"preference": p} for p in preferences])
    rate = float(plain["win_rate"])
    error = float(plain["standard_error"]) if len(preferences) > 1 else None
    scored = len(preferences)
    if not gamed:
        return Metrics(rate, error, scored=scored, flags=("no_gamed_baseline",))
    kept = keep_gamed(gamed, positions)
    chance = np.asarray(preferences, dtype=float) - 1.0
    deltas = [len(a) - len(b) for a, b in zip(baseline, outputs, strict=True)]
    difficulty = {row["index"]: row["instruction_difficulty"] for row in reversed(kept)}
    ordered = np.array([difficulty[i] for i in range(scored)])
    own = OwnRows(chance, np.array(deltas, dtype=float), ordered)
    reason = degenerate(own)
    if reason:
        pseudo = tuple(100.0 * chance)
        return Metrics(rate, error, rate, error, None, scored, pseudo, (reason,))
    columns = {"preference": preferences, "output_1": baseline, "output_2": outputs}
    frame = pd.DataFrame(columns | {"generator_1": "baseline", "generator_2": "model"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "df_gamed.csv"
        write_gamed(path, kept)
        found = libraries.library_length_controlled(frame, path)
    names = ("preference", "std_delta_len", "instruction_difficulty")
    numbers = [np.array([row[name] for row in kept], dtype=float) for name in names]
    rows = GamedRows(np.array([row["index"] for row in kept]), *numbers)
    point, theirs = float(found["length_controlled_winrate"]), float(found["lc_standard_error"])
    jackknife = pseudo_values(point, leave_one_out(own, rows))
    mine = standard_error(jackknife)
    return Metrics(rate, error, point, mine, theirs, scored, tuple(jackknife.tolist()))


# -- the gamed baselines' rows ---------------------------------------------------------------------
def read_gamed(path: Path, count: int) -> list[dict[str, Any]]:
    """Rows of df_gamed.csv, of each gamed baseline one for every index; none without the file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8-sig", newline="") as handle:
        rows = checked(csv.DictReader(handle, restkey="more"), _Gamed, path)
    if not rows:
        raise HarnessError(f"{path}: holds no row; wants columns {', '.join(_Gamed.model_fields)}")
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
        writer.writerow(_Gamed.model_fields)
        for row in rows:
            values = [row[name] for name in _Gamed.model_fields]
            writer.writerow([value if isinstance(value, str) else repr(value) for value in values])


def keep_gamed(rows: Sequence[Mapping[str, Any]], positions: Sequence[int]) -> list[dict[str, Any]]:
    """The gamed rows at ``positions``, renumbered: the library's join by position is by id."""
    renumbered = {old: new for new, old in enumerate(positions)}
    models = list(dict.fromkeys(row["model"] for row in rows))
    present = [row for row in rows if row["index"] in renumbered]
    kept = [{**row, "index": renumbered[row["index"]]} for row in present]
    return sorted(kept, key=lambda row: (models.index(row["model"]), row["index"]))
