"""Length-controlled win rate without the library: an unpenalised fit fast enough to be repeated
once per instruction.

Model (alpaca_eval's ``length_controlled_v1``): P(model wins on x) = sigma(a tanh((len_baseline -
len_model) / sd) + b difficulty(x) + c), no intercept, c only on the model's own rows; two gamed
baselines' rows enter with weight 0.1 each; the LC win rate is the mean of sigma(b difficulty + c)
in percent. The point estimate reported anywhere is the library's; this module makes its interval.

Arrays: n own rows, m gamed rows, B fits side by side, parameters (a, b, c).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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
    """preference in [0, 1] (1: the model wins), delta = characters of the baseline minus characters
    of the model, difficulty.
    """

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
    delta = rows.delta / rows.delta.std(ddof=1)
    theta = _fit(
        np.tanh(delta)[None, :],
        np.ones((1, len(delta))),
        np.full((1, len(gamed.item)), GAMED_WEIGHT),
        rows,
        gamed,
        np.zeros((1, 3)),
    )
    return float(_win_rates(theta, np.ones((1, len(delta))), rows)[0])


def leave_one_out(rows: OwnRows, gamed: GamedRows, chunk: int = 64) -> Floats:
    """LC win rate in percent without instruction i, for every i: its gamed rows leave too and the
    standard deviation is recomputed.
    """
    count = len(rows.delta)
    centred = rows.delta - rows.delta.mean()
    rest = count - 1
    variance = ((centred**2).sum() - centred**2 - centred**2 / rest) / (
        rest - 1
    )  # sum of the others is -centred_i
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    whole = np.tanh(rows.delta / rows.delta.std(ddof=1))[None, :]
    start = _fit(
        whole,
        np.ones((1, count)),
        np.full((1, len(gamed.item)), GAMED_WEIGHT),
        rows,
        gamed,
        np.zeros((1, 3)),
    )
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

    Their spread is the jackknife's: sd / sqrt(n) is the standard error of the length-controlled win
    rate.
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
        gradient = (
            np.stack(
                [
                    (error * tanh).sum(1) + error_g @ length,
                    error @ hard + error_g @ level,
                    error.sum(1),
                ],
                axis=1,
            )
            + RIDGE * theta
        )
        hessian = np.empty((len(theta), 3, 3))
        hessian[:, 0, 0] = (sloped * tanh).sum(1) + curve_g @ (length * length)
        hessian[:, 0, 1] = hessian[:, 1, 0] = sloped @ hard + curve_g @ (length * level)
        hessian[:, 0, 2] = hessian[:, 2, 0] = sloped.sum(1)
        hessian[:, 1, 1] = curve @ hard2 + curve_g @ (level * level)
        hessian[:, 1, 2] = hessian[:, 2, 1] = curve @ hard
        hessian[:, 2, 2] = curve.sum(1)
        hessian += RIDGE * np.eye(3)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        step /= np.maximum(
            1.0, np.abs(step).max(axis=1, keepdims=True) / 2.0
        )  # at most 2 a step: far starts cannot overshoot
        theta -= step
        if np.abs(step).max() < 1e-9:
            break
    return theta
