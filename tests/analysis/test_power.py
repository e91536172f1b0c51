"""Detectable effects: the published multipliers, hand-worked inversions, and what seeds or items
alone forbid.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from analysis.family import family
from analysis.layout import from_array
from analysis.power import (
    Components,
    detectable,
    from_squares,
    items_needed,
    multiplier,
    power_at,
    seed_df,
    seeds_needed,
)
from analysis.stats import difference, two_way


@pytest.mark.parametrize(
    ("df", "shift"), [(2, 5.66), (4, 3.76), (9, 3.15), (10, 3.11), (10_000, 2.80)]
)
def test_multipliers_of_the_closed_form(df: int, shift: float) -> None:
    assert multiplier(df) == pytest.approx(shift, abs=0.01)


@pytest.mark.parametrize("df", [2, 4, 8, 30])
def test_power_of_a_t_test_agrees_with_statsmodels(df: int) -> None:
    for shift in (0.5, 2.0, 3.0):
        theirs = TTestPower().power(shift / math.sqrt(df + 1), nobs=df + 1, alpha=0.05, df=df)
        assert power_at(shift, 1.0, df) == pytest.approx(theirs, abs=1e-8)


def test_power_at_no_difference_is_the_size() -> None:
    assert power_at(0.0, 1.0, 4) == pytest.approx(0.05, abs=1e-10)
    assert power_at(0.0, 0.0, 4) == 0.05
    assert power_at(1.0, 0.0, 4) == 1.0
    assert 0.02 < power_at(0.0, 1.0, 2, 1.0, 79) < 0.05


def test_detectable_effect_by_hand() -> None:
    c = Components(sigma_s=3.0, sigma_i=20.0, sigma_e=10.0)
    a2, b2 = 9 / 3 + 100 / 300, 400 / 100
    b = detectable(c, 3, 100)
    assert b.value == pytest.approx(
        (multiplier(2) * a2 + multiplier(99) * b2) / math.sqrt(a2 + b2), rel=1e-12
    )
    assert b.floor == pytest.approx((1.959964 + 0.841621) * 2.0, rel=1e-6)
    a = detectable(c, 3, 100, "A")
    assert a.value == pytest.approx(multiplier(2) * math.sqrt(a2), rel=1e-12)
    assert a.floor == 0.0
    assert (a.low, a.high) == (None, None)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize(("seeds", "clusters"), [(3, 24), (3, 805), (5, 80), (10, 805)])
def test_power_at_the_detectable_effect_is_eighty_percent(
    seeds: int, clusters: int, share: float
) -> None:
    c = Components(
        math.sqrt(share * seeds),
        math.sqrt((1 - share) * clusters * 0.7),
        math.sqrt((1 - share) * clusters * seeds * 0.3),
    )
    a2, b2 = c.sigma_s**2 / seeds + c.sigma_e**2 / (seeds * clusters), c.sigma_i**2 / clusters
    value = detectable(c, seeds, clusters).value
    assert value is not None
    assert 0.78 <= power_at(value, a2, seeds - 1, b2, clusters - 1) <= 0.82


def test_components_of_the_hand_worked_array() -> None:
    c = from_squares(two_way(np.array([[1.0, 3.0], [2.0, 6.0], [6.0, 6.0]])))  # MS 8, 6, 2
    assert (c.sigma_s, c.sigma_i, c.sigma_e) == pytest.approx(
        (math.sqrt(3), math.sqrt(4 / 3), math.sqrt(2))
    )
    assert c.low == pytest.approx(math.sqrt((8 * 2 / 7.377759 - 2) / 2), rel=1e-5)
    assert c.high == pytest.approx(math.sqrt((8 * 2 / 0.0506356 - 2) / 2), rel=1e-5)
    assert c.df == 2


def test_at_three_seeds_the_range_is_a_factor_of_half_to_six() -> None:
    y = np.array([[-1.0], [0.0], [1.0]]) * 10 + np.random.default_rng(0).normal(0, 1e-6, (3, 50))
    c = from_squares(two_way(y))
    assert c.low is not None
    assert c.high is not None
    assert c.low / c.sigma_s == pytest.approx(0.52, abs=0.01)
    assert c.high / c.sigma_s == pytest.approx(6.28, abs=0.01)


def test_components_are_recovered_on_average() -> None:
    rng, found = np.random.default_rng(1), []
    for _ in range(200):
        y = rng.normal(0, 2, (6, 1)) + rng.normal(0, 5, (1, 60)) + rng.normal(0, 3, (6, 60))
        c = from_squares(two_way(y))
        found.append([c.sigma_s**2, c.sigma_i**2, c.sigma_e**2])
    assert np.mean(found, axis=0) == pytest.approx([4, 25, 9], rel=0.12)


def test_pooled_components_use_the_familys_residual() -> None:
    rng = np.random.default_rng(2)
    arms = {
        f"a{k}": from_array(rng.normal(0, 1, (3, 1)) + rng.normal(0, 1, (3, 40))) for k in range(4)
    }
    result = family(arms, "a0")
    estimate = result.arms["a2"]
    assert estimate.squares is not None
    c = from_squares(estimate.squares, ms=result.ms, df=result.df)
    assert estimate.squares is not None
    assert c.df == 6
    assert c.sigma_s**2 == pytest.approx(
        max(2 * (result.ms or 0) - float(estimate.squares.error) / 40, 0)
    )


def test_more_seeds_or_items_detect_smaller_differences() -> None:
    c = Components(2.0, 20.0, 10.0)
    sizes = ((3, 80), (5, 80), (10, 80), (10, 805))
    shrinking = [detectable(c, *size).value or math.nan for size in sizes]
    assert shrinking == sorted(shrinking, reverse=True)
    assert all((detectable(c, *s, "A").value or 9) < (detectable(c, *s).value or 0) for s in sizes)


def test_seeds_needed_is_the_first_number_that_reaches_delta() -> None:
    c = Components(1.5, 10.0, 10.0)
    need = seeds_needed(c, 1.5, 1000)
    assert need.value is not None
    assert need.low is None
    assert (
        (detectable(c, need.value, 1000).value or 9)
        <= 1.5
        < (detectable(c, need.value - 1, 1000).value or 0)
    )
    assert seed_df(3, 5) == 8


def test_no_number_of_seeds_beats_the_items() -> None:
    need = seeds_needed(Components(1.0, 20.0, 5.0), 1.0, 100)
    assert need.value is None
    assert "more items, not more seeds" in need.reason
    assert seeds_needed(Components(1.0, 20.0, 5.0), 1.0, 100, "A").value is not None


def test_no_number_of_items_beats_the_seeds() -> None:
    c = Components(1.0, 20.0, 5.0)
    need = items_needed(c, 1.0, 3)
    assert need.value is None
    assert "more seeds, not more items" in need.reason
    enough = items_needed(c, 1.0, 20)
    assert enough.value is not None
    assert (
        (detectable(c, 20, enough.value).value or 9)
        <= 1.0
        < (detectable(c, 20, enough.value - 1).value or 0)
    )


def test_range_of_seeds_needed_follows_the_range_of_sigma() -> None:
    rng = np.random.default_rng(3)
    x = from_array(rng.normal(0, 1, (3, 1)) + rng.normal(0, 1, (3, 400)))
    y = from_array(rng.normal(0, 1, (3, 1)) + rng.normal(0, 1, (3, 400)))
    squares = difference(x, y).squares
    assert squares is not None
    need = seeds_needed(from_squares(squares), 1.0, 400)
    assert need.low is not None
    assert need.value is not None
    assert need.high is not None
    assert need.low <= need.value <= need.high


def test_too_few_and_wrong_inputs_are_told() -> None:
    c = Components(1.0, 1.0, 1.0)
    assert detectable(c, 2, 80).value is None
    assert "no interval" in detectable(c, 2, 80).undefined
    assert items_needed(c, 1.0, 2).value is None
    assert detectable(Components(0.0, 0.0, 0.0), 3, 80).undefined == "no variance in the components"
