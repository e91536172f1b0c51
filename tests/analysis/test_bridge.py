"""Two judges on the same answers: a copy is the identity, a known bias is found, and the intervals
hold what they say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import bridge
from analysis.bridge import Scale
from analysis.layout import Floats
from analysis.rank import judge_noise

STRENGTH = (-1.5, -0.5, 0.4, 1.2)
"""Log-odds of four models against the baseline."""


def sigma(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def old_logits(rng: np.random.Generator, items: int) -> Floats:
    """(items, models): log-odds of the old judge, items more or less hard for all."""
    hard = rng.normal(0, 1.0, (items, 1))
    return np.asarray(np.array(STRENGTH) + hard + rng.normal(0, 1.5, (items, len(STRENGTH))))


def rows(old: Floats, new: Floats, **more: Any) -> list[dict[str, Any]]:
    """Rows of win rates from (items, models) percents; new may have repeats behind."""
    new = new.reshape(*old.shape, -1)
    return [
        {
            "benchmark": "alpaca_eval",
            "metric": "win_rate",
            "model": f"m{model}",
            "item": str(item),
            "cluster": str(item),
            "repeat": repeat,
            "old": float(old[item, model]),
            "new": float(new[item, model, repeat]),
            "status": "ok",
            "first": bool((item + model) % 2),
            "length": float(100 * (model - item % 7)),
            **more,
        }
        for item in range(len(old))
        for model in range(old.shape[1])
        for repeat in range(new.shape[-1])
    ]


def scale_of(found: list[dict[str, Any]]) -> Scale:
    (scale,) = bridge.scales(found)
    return scale


def test_a_copy_of_the_judge_agrees_wholly_and_its_map_is_the_identity() -> None:
    old = 100 * sigma(old_logits(np.random.default_rng(0), 60))
    scale = scale_of(rows(old, old))
    agreed = bridge.agreement(scale)
    assert agreed is not None
    assert (agreed.share.value, agreed.kappa.value) == (1.0, pytest.approx(1.0))
    assert agreed.share.low is None, "no interval of zero width"
    line = scale.line()
    assert line is not None
    assert [known.value for known in line] == pytest.approx([0.0, 1.0], abs=1e-9)
    mapped = scale.published(33.0)
    assert mapped is not None and mapped.value == pytest.approx(33.0)
    assert scale.kept_signs()[:2] == (6, 6)
    assert scale.correlation() == pytest.approx(1.0)
    assert bridge.first_bias(scale, "old") == bridge.first_bias(scale, "new")
    assert bridge.length_bias(scale, "old") == bridge.length_bias(scale, "new")


def test_hand_worked_agreement_and_kappa_of_winners() -> None:
    """20 both A, 5 old A new B, 10 old B new A, 15 both B: share 0.7, kappa 0.4."""
    table = [(80, 90)] * 20 + [(80, 10)] * 5 + [(20, 90)] * 10 + [(20, 10)] * 15 + [(50, 90)] * 3
    old, new = (np.array(side, dtype=float)[:, None] for side in zip(*table, strict=True))
    found = bridge.agreement(scale_of(rows(old, new)))
    assert found is not None
    assert found.share.value == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.ties == 3


def test_hand_worked_agreement_of_ratings() -> None:
    """Ratings 1, 5, 9 against 2, 5, 5: a third equal, two thirds at most one apart; quadratic
    kappa 1 − Σw·O/Σw·E = 1 − 17/(3 × 105/9) of squared distances.
    """
    old, new = np.array([[1.0], [5.0], [9.0]]), np.array([[2.0], [5.0], [5.0]])
    found = bridge.agreement(scale_of(rows(old, new, metric="rating", benchmark="mt_bench")))
    assert found is not None and found.near is not None
    assert found.share.value == pytest.approx(1 / 3)
    assert found.near.value == pytest.approx(2 / 3)
    expected = sum((a - b) ** 2 for a in (1, 5, 9) for b in (2, 5, 5)) / 9
    assert found.kappa.value == pytest.approx(1 - (17 / 3) / expected)


def test_the_mean_of_a_model_has_the_usual_interval() -> None:
    old = 100 * sigma(old_logits(np.random.default_rng(1), 40))
    known = scale_of(rows(old, old)).mean(0, 2)
    half = 2.0226909 * old[:, 2].std(ddof=1) / np.sqrt(40)  # t of 39 degrees of freedom
    assert known.low == pytest.approx(old[:, 2].mean() - half, rel=1e-6)
    assert known.high == pytest.approx(old[:, 2].mean() + half, rel=1e-6)


def test_known_bias_and_noise_are_found() -> None:
    """0.8 log-odds for what is shown first, 0.5 against the models, noise of sd 1 twice."""
    rng = np.random.default_rng(2)
    logits = old_logits(rng, 400)
    first = np.array([[(i + m) % 2 for m in range(4)] for i in range(400)], dtype=bool)
    shifted = logits - 0.5 + 0.8 * (2 * first - 1)
    new = 100 * sigma(shifted[..., None] + rng.normal(0, 1, (*logits.shape, 2)))
    scale = scale_of(rows(100 * sigma(logits), new))
    truth = 100 * sigma(shifted[..., None] + rng.normal(0, 1, (*logits.shape, 500))).mean(axis=-1)
    for model in range(4):
        assert scale.mean(1, model).holds(truth[:, model].mean())
    lean, fair = bridge.first_bias(scale, "new"), bridge.first_bias(scale, "old")
    assert lean is not None and fair is not None
    effect = np.mean(
        [truth[first[:, m], m].mean() - truth[~first[:, m], m].mean() for m in range(4)]
    )
    assert lean.holds(effect / 2) and not lean.holds(0.0)
    assert fair.holds(0.0)
    within = new.std(axis=-1, ddof=1)
    assert scale.noise.sd == pytest.approx(np.sqrt((within**2).mean()))


def test_a_length_bias_is_found_where_it_is() -> None:
    rng = np.random.default_rng(3)
    logits = old_logits(rng, 300)
    length = np.array([[100.0 * (m - i % 7) for m in range(4)] for i in range(300)])
    x = np.tanh(length / length.std(ddof=1))
    new = 100.0 * (rng.random(logits.shape) < sigma(np.array(STRENGTH) + 1.0 * x))
    old = 100.0 * (rng.random(logits.shape) < sigma(np.broadcast_to(STRENGTH, logits.shape)))
    scale = scale_of(rows(old, new))
    new_bias, old_bias = bridge.length_bias(scale, "new"), bridge.length_bias(scale, "old")
    assert new_bias is not None and old_bias is not None
    assert new_bias.holds(1.0) and not new_bias.holds(0.0)
    assert old_bias.holds(0.0)


def test_an_item_that_misses_one_models_score_is_left_out_of_all_and_counted() -> None:
    old = 100 * sigma(old_logits(np.random.default_rng(4), 12))
    found = rows(old, old)
    found[5]["new"] = None
    found[16]["old"] = None
    scale = scale_of(found)
    assert scale.left_out == 2
    assert scale.sums[..., 2].sum() == 10 * 4


def test_two_models_make_a_line_without_an_interval_for_another() -> None:
    old = 100 * sigma(old_logits(np.random.default_rng(5), 50))[:, :2]
    scale = scale_of(rows(old, np.clip(old * 0.8 + 5, 0, 100)))
    mapped, line = scale.published(30.0), scale.line()
    assert mapped is not None and mapped.low is None
    assert line is not None and line[1].value == pytest.approx(1 / 0.8)
    assert [known.low for known in line] == [None, None]
    assert mapped.value == pytest.approx((30.0 - 5) / 0.8)
    single = scale_of(rows(old[:, :1], old[:, :1]))
    assert single.line() is None and single.published(30.0) is None


UNKNOWN = judge_noise(np.zeros((1, 1)), items=1)


def similar(rng: np.random.Generator, models: int, items: int) -> tuple[Scale, tuple[float, float]]:
    """Models of nearly one strength under both judges, and (intercept, slope) of their line over
    all items there could be."""
    strength, lean = rng.normal(0, 0.3, models), -0.4 + rng.normal(0, 0.2, models)
    old = strength + rng.normal(0, 1, (items, 1)) + rng.normal(0, 1.5, (items, models))
    new = old + lean + rng.normal(0, 1, old.shape)
    sums = np.stack([100 * sigma(old), 100 * sigma(new), np.ones_like(old)], axis=-1)
    names = tuple(map(str, range(models))), tuple(map(str, range(items)))
    scale = Scale("alpaca_eval", "win_rate", *names, sums, pd.DataFrame(), 0, UNKNOWN)
    places, weights = np.polynomial.hermite_e.hermegauss(60)
    means = [
        100 * sigma(logit[:, None] + sd * places) @ weights / weights.sum()
        for logit, sd in ((strength, 3.25**0.5), (strength + lean, 4.25**0.5))
    ]
    slope, intercept = np.polyfit(means[1], means[0], 1)
    return scale, (intercept, slope)


def test_a_lines_interval_holds_the_ratios_that_the_items_do_not_refute() -> None:
    """At both ends of Fieller's interval pseudo-values of top − b·bottom have |mean| = t · se."""
    scale = drawn(np.random.default_rng(1), 200)
    line, (n, whole) = scale.line(), (200, scale.sums.sum(axis=0))
    assert line is not None and line[1].low is not None and line[1].high is not None
    assert line[1].low < line[1].value < line[1].high

    def top(total: Floats, b: float) -> float:
        old, new = total[:, 0] / total[:, 2], total[:, 1] / total[:, 2]
        return float(((new - new.mean()) * (old - b * new)).sum())

    for end in (line[1].low, line[1].high):
        left = np.array([top(whole - part, end) for part in scale.sums])
        pseudo = n * top(whole, end) - (n - 1) * left
        found = abs(pseudo.mean()) / (pseudo.std(ddof=1) / np.sqrt(n))
        assert found == pytest.approx(1.9719565, rel=1e-5)  # t of 199 degrees of freedom


def test_models_that_do_not_differ_make_a_line_without_an_interval() -> None:
    logits = old_logits(np.random.default_rng(0), 80)[:, [1, 1, 1]]
    other = logits + np.random.default_rng(1).normal(0, 1.5, logits.shape)
    line = scale_of(rows(100 * sigma(logits), 100 * sigma(other))).line()
    assert line is not None
    assert [known.low for known in line] == [None, None]


# -- coverage --------------------------------------------------------------------------------------
DRAWS = 400
BAND = (0.93, 0.975)


def drawn(rng: np.random.Generator, items: int) -> Scale:
    """Winners by an old judge, and by one that is biased by 0.4 log-odds and noisy by sd 1."""
    logits = old_logits(rng, items)
    noisy = logits - 0.4 + rng.normal(0, 1.0, logits.shape)
    return scale_of(rows(100 * sigma(logits), 100 * sigma(noisy)))


@pytest.mark.slow
def test_intervals_over_items_cover_what_they_say() -> None:
    rng = np.random.default_rng(6)
    large = drawn(rng, 20_000)
    agreed, line = bridge.agreement(large), large.line()
    assert agreed is not None and line is not None
    truth = {
        "share": agreed.share.value,
        "kappa": agreed.kappa.value,
        "intercept": line[0].value,
        "slope": line[1].value,
        "shift": large.shift(1).value,
        "difference": large.difference(1, 0, 3).value,
    }
    hits = dict.fromkeys(truth, 0)
    for _ in range(DRAWS):
        scale = drawn(rng, 100)
        agreed, line = bridge.agreement(scale), scale.line()
        assert agreed is not None and line is not None
        found = {"share": agreed.share, "kappa": agreed.kappa, "intercept": line[0]}
        found |= {"slope": line[1], "shift": scale.shift(1)}
        found["difference"] = scale.difference(1, 0, 3)
        for name, known in found.items():
            hits[name] += known.holds(truth[name])
    shares = {name: count / DRAWS for name, count in hits.items()}
    assert all(BAND[0] <= share <= BAND[1] for share in shares.values()), shares


@pytest.mark.slow
def test_the_published_scale_covers_another_model() -> None:
    """Old = 4 + 1.1 · new over models, scatter of sd 2; six models, and a seventh asked for."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(DRAWS):
        new = rng.uniform(5, 60, 7)
        old = 4 + 1.1 * new + rng.normal(0, 2, 7)
        noise = rng.normal(0, 5, (40, 6))
        noise -= noise.mean(axis=0)
        scale = scale_of(rows(old[:6] + noise, new[:6] + noise))
        mapped = scale.published(float(new[6]))
        assert mapped is not None
        hits += mapped.holds(float(old[6]))
    assert BAND[0] <= hits / DRAWS <= BAND[1], hits / DRAWS


@pytest.mark.slow
@pytest.mark.parametrize("models", [3, 5, 8])
def test_intervals_of_a_line_cover_also_where_few_models_are_alike(models: int) -> None:
    """With an interval at all; the usual jackknife's covered 90 % at three models."""
    rng, hits, told = np.random.default_rng(8), np.zeros(2), 0
    while told < DRAWS:
        scale, truth = similar(rng, models, 300)
        line = scale.line()
        assert line is not None
        if line[1].low is not None:
            hits += [known.holds(value) for known, value in zip(line, truth, strict=True)]
            told += 1
    assert all(BAND[0] <= hit / told <= BAND[1] for hit in hits), hits / told


@pytest.mark.slow
@pytest.mark.parametrize("models", [3, 5, 8])
def test_a_mapped_score_covers_with_few_models_of_noisy_items(models: int) -> None:
    rng, hits = np.random.default_rng(9), 0
    for _ in range(2 * DRAWS):
        scale, _ = similar(rng, models + 1, 100)
        known = replace(scale, models=scale.models[:-1], sums=scale.sums[:, :-1])
        old, new = scale.sums[:, -1, :2].mean(axis=0)
        mapped = known.published(float(new))
        assert mapped is not None
        hits += mapped.holds(float(old))
    assert BAND[0] <= hits / (2 * DRAWS) <= BAND[1], hits / (2 * DRAWS)
