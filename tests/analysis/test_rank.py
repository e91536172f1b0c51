"""Permutations, ranks, the trend in α and the judge's noise: by hand, against scipy, and with their
floors.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from analysis.family import page_trend, trend
from analysis.layout import from_array
from analysis.rank import (
    interquartile_mean,
    judge_noise,
    probability_of_improvement,
    proportion,
    sign_flip,
)


def test_sign_flip_floor_by_number_of_seeds() -> None:
    assert [sign_flip(np.arange(1.0, s + 1)).floor for s in (3, 5, 6)] == [0.25, 0.0625, 0.03125]
    assert sign_flip([1.0, 2.0, 3.0]).p == 0.25
    assert "cannot reject" in sign_flip([1.0, 2.0, 3.0]).flags[0]
    assert sign_flip(np.arange(1.0, 7)).flags == ()


def test_sign_flip_by_hand() -> None:
    # |sum| of the 8 flips of 3, 2, −1: 4, 6, 0, 2 and their negatives; at least 4: 4 of 8
    assert sign_flip([3.0, 2.0, -1.0]).p == 0.5


def test_sign_flip_agrees_with_scipys_exact_permutation() -> None:
    d = np.random.default_rng(0).normal(0.5, 1, 8)
    theirs = scipy_stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(d).p == pytest.approx(theirs.pvalue, rel=1e-12)


def test_many_seeds_need_a_generator_and_equal_generators_agree() -> None:
    d = np.random.default_rng(1).normal(0.3, 1, 20)
    with pytest.raises(TypeError, match="Generator"):
        sign_flip(d)
    one, again, other = (sign_flip(d, np.random.default_rng(s), draws=999).p for s in (5, 5, 6))
    assert one == again
    assert one != other
    assert sign_flip(d, np.random.default_rng(5)).p == pytest.approx(
        scipy_stats.ttest_1samp(d, 0).pvalue, abs=0.03
    )


def test_sign_flip_without_data_is_undefined() -> None:
    assert sign_flip([1.0]).undefined == "1 seed"
    assert sign_flip([0.0, 0.0]).undefined == "all differences are zero"
    assert sign_flip([1.0, math.nan]).undefined == "a difference is missing"


def test_probability_of_improvement_by_hand() -> None:
    result = probability_of_improvement([3.0, 5.0, 6.0], [1.0, 2.0, 4.0])
    assert (result.k, result.pairs) == (8, 9)
    assert result.floor == 2 / 20
    assert result.p == pytest.approx(4 / 20)
    assert result.interval.undefined == "3 seeds: none below 10"


def test_mann_whitney_agrees_with_scipy_without_ties() -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        x, y = rng.normal(0.5, 1, 6), rng.normal(0, 1, 7)
        assert probability_of_improvement(x, y).p == pytest.approx(
            scipy_stats.mannwhitneyu(x, y, method="exact").pvalue, rel=1e-12
        )


def test_ties_count_half_and_stay_exact() -> None:
    x, y = [1.0, 2.0, 2.0], [2.0, 0.0, 1.0]
    result = probability_of_improvement(x, y)
    pooled, k = np.array(x + y), []
    for pick in itertools.combinations(range(6), 3):
        a, b = pooled[list(pick)], np.delete(pooled, list(pick))
        k.append(sum((u > v) + 0.5 * (u == v) for u in a for v in b))
    assert result.k == 6.5
    assert result.p == pytest.approx(np.mean(np.abs(np.array(k) - 4.5) >= abs(6.5 - 4.5) - 1e-9))
    assert probability_of_improvement([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]).p == 1.0


def test_interval_of_improvement_from_ten_seeds() -> None:
    result = probability_of_improvement(np.arange(10.0) + 3.5, np.arange(10.0))
    low, high = result.interval.low, result.interval.high
    assert low is not None
    assert high is not None
    assert 0 < low < result.share < high < 1
    for theta in (low, high):  # both ends solve |share − θ| = 1.96·√V(θ), m = n = 10, c = 9
        variance = (
            theta
            * (1 - theta)
            * (1 + 9 * (1 - theta) / (2 - theta) + 9 * theta / (1 + theta))
            / 100
        )
        assert abs(result.share - theta) == pytest.approx(
            1.959963985 * math.sqrt(variance), rel=1e-8
        )


def test_complete_separation_is_not_certainty() -> None:
    up, down = (
        probability_of_improvement(a, b)
        for a, b in (
            (np.arange(10.0) + 20, np.arange(10.0)),
            (np.arange(10.0), np.arange(10.0) + 20),
        )
    )
    assert up.share == 1.0
    assert up.interval.high == 1.0
    assert up.interval.low is not None
    assert 0.6 < up.interval.low < 0.95
    assert down.interval.low == 0.0
    assert down.interval.high == pytest.approx(1 - up.interval.low)


def test_forty_runs_stay_exact_and_fast() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(0.5, 1, 20), rng.normal(0, 1, 20)
    assert probability_of_improvement(x, y).p == pytest.approx(
        scipy_stats.mannwhitneyu(x, y, method="exact").pvalue, rel=1e-9
    )


def test_interquartile_mean_from_five_seeds() -> None:
    assert interquartile_mean([1.0, 2.0, 3.0]).undefined == "3 seeds: none below 5"
    five = interquartile_mean([100.0, 2.0, 3.0, 4.0, -50.0])
    assert five.value == 3.0 == scipy_stats.trim_mean([100.0, 2.0, 3.0, 4.0, -50.0], 0.25)
    assert "below 6" in five.interval.undefined
    six = interquartile_mean([100.0, 2.0, 3.0, 4.0, 5.0, -50.0])
    # h = 4 of 6; winsorised 2, 2, 3, 4, 5, 5: mean 3.5, squares 2·2.25 + 2·0.25 + 2·2.25 = 9.5; 2
    # degrees of freedom
    assert six.value == 3.5
    assert six.interval.df == (2.0,)
    assert six.interval.half_width == pytest.approx(
        4.302652730 * math.sqrt(9.5 / 5) / (4 / 6 * math.sqrt(6)), rel=1e-8
    )
    assert not interquartile_mean([1.0] * 6).interval.defined


def _falling(seeds: int = 3, noise: float = 0.0) -> dict[float, object]:
    rng = np.random.default_rng(6)
    return {
        a: from_array(
            -float(k) + rng.normal(0, noise, (seeds, 12))
            if noise
            else np.full((seeds, 12), -float(k))
        )
        for k, a in enumerate((0.0, 0.1, 0.3, 1.0))
    }


def test_trend_slope_is_the_regression_slope_of_every_seed() -> None:
    arms = _falling(4, 0.5)
    result = trend(arms, "falling")  # type: ignore[arg-type]
    means = np.array([cell.values.mean(axis=1) for cell in arms.values()]).T  # type: ignore[attr-defined]
    slopes = [scipy_stats.linregress(range(4), row).slope for row in means]
    assert result.estimate.points == pytest.approx(slopes, rel=1e-10)
    test = scipy_stats.ttest_1samp(slopes, 0.0, alternative="less")
    assert result.p_directed == pytest.approx(test.pvalue, rel=1e-9)
    assert result.estimate.intervals["A"].p == pytest.approx(2 * test.pvalue, rel=1e-9)


def test_trend_in_the_other_direction_is_not_confirmed() -> None:
    result = trend(_falling(4, 0.5), "rising")  # type: ignore[arg-type]
    assert result.p_directed is not None
    assert result.p_directed > 0.95
    assert result.page.p is not None
    assert result.page.p > 0.9


def test_trend_refuses_what_was_not_declared() -> None:
    with pytest.raises(ValueError, match="declare"):
        trend(_falling(), "either")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="three values"):
        trend({0.0: from_array([[1.0]]), 1.0: from_array([[2.0]])}, "falling")


def test_trend_without_spread_over_seeds_has_a_permutation_p_but_no_interval() -> None:
    result = trend(_falling(), "falling")  # type: ignore[arg-type]
    assert not result.estimate.intervals["A"].defined
    assert result.p_directed is None
    assert result.page.p == pytest.approx(24.0**-3) == result.page.floor


def test_trend_of_an_incomplete_arm_is_incomplete() -> None:
    arms = _falling(3, 0.5)
    broken = arms[1.0].values.copy()  # type: ignore[attr-defined]
    broken[0, 0] = np.nan
    result = trend({**arms, 1.0: from_array(broken)}, "falling")  # type: ignore[arg-type]
    assert result.estimate.incomplete
    assert result.page.p is None
    assert "INCOMPLETE" in result.page.undefined


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 4), (2, 6), (3, 9)])
def test_page_agrees_with_scipys_exact_p(shape: tuple[int, int]) -> None:
    y = np.random.default_rng(7).normal(size=shape) + 0.4 * np.arange(shape[1])
    ours, theirs = page_trend(y), scipy_stats.page_trend_test(y, method="exact")
    assert ours.statistic == theirs.statistic
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)


def test_page_with_ties_is_exact_over_all_orders() -> None:
    y = np.array([[1.0, 1.0, 2.0], [3.0, 1.0, 3.0]])
    ranks, L = [[1.5, 1.5, 3.0], [2.5, 1.0, 2.5]], []
    for one in itertools.permutations(ranks[0]):
        for two in itertools.permutations(ranks[1]):
            L.append(sum(p * r for p, r in zip((1, 2, 3) * 2, one + two, strict=True)))
    assert page_trend(y).p == pytest.approx(np.mean(np.array(L) >= 13.5 + 12.0 - 1e-9))
    assert page_trend(np.ones((3, 3))).undefined == "all arms are tied in every seed"


def test_page_counts_the_orders_of_many_arms_and_has_no_p_above_fourteen() -> None:
    row = np.arange(12.0)
    assert page_trend(row[None]).p == pytest.approx(1 / math.factorial(12))
    row[[0, 1]] = row[[1, 0]]  # of all orders, 11 lie one below the best and one is the best
    assert page_trend(row[None]).p == pytest.approx(12 / math.factorial(12))
    found = page_trend(np.random.default_rng(8).normal(size=(3, 15)))
    assert (found.p, found.undefined) == (None, "15 arms: none above 14")


def test_proportion_is_wilson_and_never_of_nothing() -> None:
    low, high = proportion_confint(0, 20, method="wilson")
    assert (proportion(0, 20).low, proportion(0, 20).high) == pytest.approx((low, high))
    assert proportion(0, 0).share is None


def test_judge_noise_by_hand() -> None:
    # within-item sums of squares 2, 0, 2 (one item has a single verdict and is left out): sd² = 4/3
    repeats = np.array([[5.0, 7.0], [4.0, 4.0], [3.0, 1.0], [9.0, np.nan]])
    noise = judge_noise(repeats, items=80)
    assert noise.sd == pytest.approx(math.sqrt(4 / 3))
    assert noise.df == 3
    assert (noise.changed.k, noise.changed.n) == (2, 3)
    assert noise.floor == pytest.approx(math.sqrt(4 / 3 / 80))
    assert noise.floor_difference == pytest.approx(math.sqrt(8 / 3 / 80))
    assert noise.low == pytest.approx(math.sqrt(4 / 9.348404), rel=1e-6)
    assert noise.high == pytest.approx(math.sqrt(4 / 0.2157953), rel=1e-6)


def test_judge_that_never_changes_has_no_estimated_noise() -> None:
    assert judge_noise(np.ones((5, 3)), items=80).undefined == "all repeats agree"
    assert judge_noise(np.ones((5, 1)), items=80).undefined == "no item was judged twice"
