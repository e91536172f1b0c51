"""Layout, mean squares and intervals: hand-worked arrays, agreement with scipy and statsmodels, and
what must stay undefined.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.proportion import proportion_confint

from analysis.layout import complete, from_array, layout, paired
from analysis.measures import stack
from analysis.stats import (
    cochran_half_width,
    cochran_p,
    difference,
    mean_over_seeds,
    one_checkpoint,
    two_way,
)

T1, T2 = 12.706204736, 4.302652730
"""Student's t, two-sided 5 %, 1 and 2 degrees of freedom (any printed table)."""
HAND = [[1.0, 3.0], [2.0, 6.0], [6.0, 6.0]]
"""Three seeds, two items. Mean 4; seed means 2, 4, 6; item means 3, 5; sums of squares 16 + 6 + 4 =
26.
"""


def test_mean_squares_of_the_hand_worked_array() -> None:
    squares = two_way(np.array(HAND))
    assert (
        float(squares.mean),
        float(squares.seed),
        float(squares.item),
        float(squares.error),
    ) == (4.0, 8.0, 6.0, 2.0)
    assert float(squares.a2) == pytest.approx(8 / 6, abs=1e-15)
    assert float(squares.b2) == pytest.approx((6 - 2) / 6, abs=1e-15)


def test_intervals_of_the_hand_worked_array() -> None:
    result = mean_over_seeds(from_array(HAND), null=0.0)
    a, b = result.intervals["A"], result.intervals["B"]
    assert result.value == 4.0
    assert result.points == (2.0, 4.0, 6.0)
    assert a.half_width == pytest.approx(T2 * math.sqrt(4 / 3), rel=1e-9)
    assert b.half_width == pytest.approx((T2 * 4 / 3 + T1 * 2 / 3) / math.sqrt(2), rel=1e-9)
    assert a.df == (2.0,)
    assert b.df == (2.0, 1)
    assert "new seeds" in a.population
    assert "new items" in b.population
    assert "new items" not in a.population
    assert b.flags == ("only 2 item clusters: the interval leans on normal item effects",)


def test_mean_squares_agree_with_statsmodels_anova() -> None:
    y = np.random.default_rng(1).normal(size=(4, 9)) + np.arange(4)[:, None]
    frame = pd.DataFrame(
        {"y": y.ravel(), "s": np.repeat(np.arange(4), 9), "i": np.tile(np.arange(9), 4)}
    )
    table = anova_lm(ols("y ~ C(s) + C(i)", frame).fit())
    squares = two_way(y)
    expected = [
        table.loc[row, "sum_sq"] / table.loc[row, "df"] for row in ("C(s)", "C(i)", "Residual")
    ]
    assert [float(squares.seed), float(squares.item), float(squares.error)] == pytest.approx(
        expected, rel=1e-12
    )


def test_interval_a_is_scipys_t_test_on_seed_means() -> None:
    y = np.random.default_rng(2).normal(0.4, 1, size=(5, 40))
    ours, theirs = (
        mean_over_seeds(from_array(y), null=0.0).intervals["A"],
        scipy_stats.ttest_1samp(y.mean(axis=1), 0.0),
    )
    low, high = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p) == pytest.approx((low, high, theirs.pvalue), rel=1e-12)


def test_one_checkpoint_is_scipys_t_test_over_clusters() -> None:
    y = np.random.default_rng(3).normal(7, 2, size=(1, 80))
    ours, theirs = (
        one_checkpoint(from_array(y), null=7.2).intervals["items"],
        scipy_stats.ttest_1samp(y[0], 7.2),
    )
    low, high = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p) == pytest.approx((low, high, theirs.pvalue), rel=1e-12)


def test_difference_is_scipys_paired_t_test_over_seeds() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(4, 30)), rng.normal(size=(4, 30))
    ours = difference(from_array(x), from_array(y)).intervals["A"]
    assert ours.p == pytest.approx(
        scipy_stats.ttest_rel(x.mean(axis=1), y.mean(axis=1)).pvalue, rel=1e-12
    )


@pytest.mark.parametrize(
    ("correct", "n", "published"),
    [
        (
            653,
            1172,
            0.014515573873348906,
        ),  # ARC-Challenge acc 0.5571672354948806, Open LLM Leaderboard result file
        (696, 1172, 0.014351656690097862),  # the same file, acc_norm 0.5938566552901023
        (6280, 10042, 0.004830371317841054),  # HellaSwag acc 0.6253734315873332, the same file
        (229, 817, 0.015723139524608767),  # TruthfulQA mc1 0.2802937576499388, the same file
        (
            229,
            1319,
            0.010433463221257619,
        ),  # GSM8K-CoT exact match 0.17361637604245642, lm-evaluation-harness discussion 1274
    ],
)
def test_published_standard_errors_of_lm_eval(correct: int, n: int, published: float) -> None:
    cell = from_array([[1.0] * correct + [0.0] * (n - correct)])
    assert one_checkpoint(cell).intervals["items"].se == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize("top", [1.0, 100.0])
@pytest.mark.parametrize("correct", [0, 3, 10])
def test_binary_scores_get_wilson_even_at_the_ends(correct: int, top: float) -> None:
    cell = from_array([[top] * correct + [0.0] * (10 - correct)], scale=(0.0, top))
    interval = one_checkpoint(cell).intervals["items"]
    low, high = proportion_confint(correct, 10, method="wilson")
    assert interval.method == "Wilson"
    assert (interval.low, interval.high) == pytest.approx((top * low, top * high), abs=1e-12 * top)
    assert interval.high > interval.low  # type: ignore[operator]


def test_soft_scores_do_not_get_wilson() -> None:
    assert (
        one_checkpoint(from_array([[0.0, 100.0, 40.0]], scale=(0.0, 100.0)))
        .intervals["items"]
        .method.startswith("t with 2")
    )


def test_one_item_is_undefined_unless_binary() -> None:
    assert one_checkpoint(from_array([[7.0]])).intervals["items"].undefined == "one item"
    wilson = one_checkpoint(from_array([[1.0]], scale=(0.0, 1.0))).intervals["items"]
    assert wilson.defined
    assert wilson.half_width
    assert wilson.half_width > 0.3
    assert wilson.se is None
    assert (
        mean_over_seeds(from_array([[1.0], [2.0], [4.0]])).intervals["B"].undefined
        == "one item cluster"
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_no_interval_below_three_seeds(seeds: int) -> None:
    result = mean_over_seeds(from_array(np.arange(4.0 * seeds).reshape(seeds, 4)), null=0.0)
    for interval in result.intervals.values():
        assert "none below 3" in interval.undefined
        assert interval.low is None
        assert interval.p is None
    assert result.value is not None
    assert len(result.points) == seeds


def test_equal_scores_never_give_a_zero_width_interval() -> None:
    y = np.full((3, 7), 0.1)  # sums of 0.1 round: the spread must still be exactly nothing
    result = mean_over_seeds(from_array(y), null=0.0)
    assert result.intervals["A"].undefined == "all seeds give the same mean"
    assert result.intervals["B"].undefined == "all scores are equal"
    assert one_checkpoint(from_array(y[:1])).intervals["items"].undefined == "all scores are equal"
    assert difference(from_array(y), from_array(y)).intervals["B"].p is None


def test_identical_seeds_keep_an_interval_over_items_only() -> None:
    row = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 1.0, 2.0, 7.0])
    result = mean_over_seeds(from_array(np.tile(row, (3, 1))))
    assert not result.intervals["A"].defined
    b = result.intervals["B"]
    assert b.half_width == pytest.approx(
        one_checkpoint(from_array(row)).intervals["items"].half_width, rel=1e-12
    )
    assert "all seeds give the same mean" in b.flags[0]


def test_equal_seed_means_that_differ_on_items_fall_back_to_the_residual() -> None:
    result = mean_over_seeds(from_array([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0], [2.0, 2.0, 2.0]]))
    squares = two_way(np.array([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0], [2.0, 2.0, 2.0]]))
    assert float(squares.seed) == 0.0
    assert result.intervals["B"].half_width == pytest.approx(
        T2 * math.sqrt(float(squares.error) / 9), rel=1e-9
    )


def test_p_is_the_level_at_which_the_interval_touches_zero() -> None:
    rng = np.random.default_rng(5)
    cell = from_array(
        rng.normal(0.3, 1, (4, 25)) + rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 0.5, 25)
    )
    found = mean_over_seeds(cell, null=0.0)
    p, squares = found.intervals["B"].p, found.squares
    assert p is not None
    assert squares is not None
    assert 0 < p < 1
    half = cochran_half_width(squares.a2, 3, squares.b2, 24, 1 - p)
    assert abs(found.value or 0) - half == pytest.approx(0.0, abs=1e-9)


def test_p_of_extreme_and_zero_differences_is_finite() -> None:
    assert cochran_p(0.0, 0.4, 2, 0.6, 79) == 1.0
    assert 0 < cochran_p(1e6, 0.4, 2, 0.6, 79) < 1e-11
    assert 0 < cochran_p(1e3, 1e-6, 8, 1e-6, 999) < 1e-20


def test_half_width_is_students_when_one_part_is_missing() -> None:
    assert float(cochran_half_width(4.0, 2, 0.0, 9)) == pytest.approx(2 * T2, rel=1e-9)
    assert float(cochran_half_width(0.0, 2, 9.0, 1)) == pytest.approx(3 * T1, rel=1e-9)
    assert float(cochran_half_width(0.0, 2, 0.0, 1)) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_order_of_rows_changes_nothing_to_the_last_bit(seed: int, repeats: int) -> None:
    rng = np.random.default_rng(seed)
    n = 4 * 6 * repeats
    seeds, clusters = (
        np.tile(np.repeat(np.arange(4), 6), repeats),
        np.tile(np.tile([f"q{i}" for i in range(6)], 4), repeats),
    )
    values = rng.normal(size=n)
    order = rng.permutation(n)
    one, other = (
        layout(seeds, clusters, values),
        layout(seeds[order], clusters[order], values[order]),
    )
    assert np.array_equal(one.values, other.values)
    assert one.clusters == other.clusters
    assert mean_over_seeds(one, null=0.0).intervals == mean_over_seeds(other, null=0.0).intervals


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_intervals_follow_shift_and_scale(seed: int, factor: float, shift: float) -> None:
    y = np.random.default_rng(seed).normal(size=(3, 12))
    base, moved = (mean_over_seeds(from_array(v)).intervals["B"] for v in (y, y * factor + shift))
    assert moved.low == pytest.approx(base.low * factor + shift, rel=1e-8, abs=1e-8)  # type: ignore[operator]
    assert moved.high == pytest.approx(base.high * factor + shift, rel=1e-8, abs=1e-8)  # type: ignore[operator]


def test_a_cluster_is_the_mean_of_its_rows_and_missing_when_any_of_them_is() -> None:
    cell = layout([0, 0, 0, 0], ["81", "81", "82", "82"], [4.0, 6.0, 9.0, None], scale=(1.0, 10.0))
    assert cell.values[0, 0] == 5.0
    assert math.isnan(cell.values[0, 1])
    assert (cell.scored, cell.expected) == (3, 4)
    assert cell.bounds == ((5 + (9 + 1) / 2) / 2, (5 + (9 + 10) / 2) / 2)


def test_a_row_absent_from_one_seed_is_missing_there() -> None:
    cell = layout([0, 0, 1, 1, 2], ["a", "b", "a", "b", "a"], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (cell.scored, cell.expected) == (5, 6)
    assert math.isnan(cell.values[2, 1])
    assert cell.bounds is None


def test_a_missing_item_makes_the_cell_incomplete_with_bounds_and_no_value() -> None:
    y = np.array([[1.0, 3.0, 5.0], [2.0, 6.0, 7.0], [6.0, 6.0, np.nan]])
    result = mean_over_seeds(from_array(y, scale=(1.0, 10.0)), null=0.0)
    assert result.incomplete
    assert result.value is None
    assert result.points == ()
    assert result.bounds == pytest.approx((37 / 9, 46 / 9))
    assert all(
        i.undefined == "INCOMPLETE: 8 of 9 scored" and i.low is None
        for i in result.intervals.values()
    )


def test_above_the_bar_only_whole_clusters_are_used_and_nothing_is_imputed() -> None:
    y = np.array([[1.0, 3.0, 5.0], [2.0, 6.0, 7.0], [6.0, 6.0, np.nan]])
    result = mean_over_seeds(from_array(y, scale=(1.0, 10.0)), min_complete=0.8)
    whole = mean_over_seeds(from_array(HAND))
    assert result.value == 4.0
    assert result.intervals["A"] == whole.intervals["A"]
    assert not result.incomplete
    assert result.flags == ("1 of 3 item clusters left out: not scored everywhere",)
    assert (result.scored, result.expected) == (8, 9)
    assert result.bounds == pytest.approx((37 / 9, 46 / 9))


def test_nothing_at_all_is_incomplete() -> None:
    for cell in (layout([], [], []), from_array([[np.nan, np.nan]]), layout([0], ["a"], [None])):
        assert mean_over_seeds(cell).incomplete
        assert one_checkpoint(cell.take(cell.seeds[:1])).value is None


def test_infinite_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        layout([0], ["a"], [math.inf])
    with pytest.raises(ValueError, match="different length"):
        layout([0, 1], ["a"], [1.0])


def test_pairing_matches_seeds_and_clusters_by_name() -> None:
    arm = layout([1, 1, 2, 2, 3, 3], ["b", "a", "b", "a", "b", "a"], [2.0, 1.0, 4.0, 3.0, 9.0, 9.0])
    baseline = layout([2, 2, 1, 1], ["a", "b", "a", "b"], [1.0, 1.0, 0.0, 0.0])
    D, flags = paired(arm, baseline)
    assert D.seeds == (1, 2)
    assert D.values.tolist() == [[1.0, 2.0], [2.0, 3.0]]
    assert flags == ("seeds left out, only on one side: 3",)


def test_difference_bounds_pair_worst_with_best() -> None:
    arm = layout([0, 0], ["a", "b"], [80.0, None], scale=(0.0, 100.0))
    baseline = layout([0, 0], ["a", "b"], [30.0, 40.0], scale=(0.0, 100.0))
    result = difference(arm, baseline)
    assert result.incomplete
    assert result.bounds == ((50 - 40) / 2, (50 + 60) / 2)


def test_clusters_only_one_side_has_are_missing_not_dropped() -> None:
    arm = from_array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
    baseline = arm.keep(np.array([True, False]))
    D, _ = paired(arm, baseline)
    assert D.values.shape == (3, 2)
    assert np.isnan(D.values[:, 1]).all()
    assert D.scored == 3
    assert D.expected == 6
    assert complete(D)[1] == "INCOMPLETE: 3 of 6 scored"


def test_one_seed_gives_a_difference_over_items_labelled_so() -> None:
    result = difference(from_array([[1.0, 2.0, 4.0]]), from_array([[0.0, 1.0, 1.0]]))
    assert not result.intervals["A"].defined
    assert result.intervals["items"].population == "these checkpoints, new items"
    assert result.value == pytest.approx(5 / 3)


def test_swapping_arm_and_twin_turns_the_sign() -> None:
    rng = np.random.default_rng(6)
    x, y = from_array(rng.normal(size=(3, 9))), from_array(rng.normal(size=(3, 9)))
    one, other = difference(x, y).intervals["B"], difference(y, x).intervals["B"]
    assert (one.low, one.high, one.p) == pytest.approx(
        (-(other.high or 0), -(other.low or 0), other.p)
    )


def test_fifteen_runs_of_ten_thousand_items_take_under_a_second() -> None:
    y = np.random.default_rng(7).normal(size=(15, 10_000))
    cell, baseline = from_array(y), from_array(y[::-1] + 0.1)
    start = time.perf_counter()
    mean_over_seeds(cell, null=0.0)
    difference(cell, baseline)
    one_checkpoint(cell.take([3]))
    assert time.perf_counter() - start < 1.0


# -- means of several benchmarks -------------------------------------------------------------------
def test_a_mean_of_benchmarks_has_each_ones_own_item_variance() -> None:
    """Two items 0 and 100 (s² = 5000), four items of variance 1600/3: the mean is 45 and its
    standard error √(5000/2 + 400/3)/2, whatever lies between the two benchmarks.
    """
    parts = [from_array([[0.0, 100.0]]), from_array([[20.0, 20.0, 60.0, 60.0]])]
    found = one_checkpoint(stack(parts))
    assert found.value == pytest.approx(45.0)
    assert found.intervals["items"].se == pytest.approx(math.sqrt(5000 / 2 + 1600 / 3 / 4) / 2)
    one = one_checkpoint(stack([from_array([[0.0]]), parts[1]]))
    assert (one.value, one.intervals["items"].undefined) == (20.0, "one item")
    seeds = stack([from_array([[0.0, 9.0], [4.0, 9.0]]), from_array([[7.0, 8.0], [1.0, 4.0]])])
    assert seeds.values.mean(axis=1) == pytest.approx([(4.5 + 7.5) / 2, (6.5 + 2.5) / 2])


@pytest.mark.parametrize("items", [2, 4])
def test_a_mean_of_benchmarks_of_few_items_covers(items: int) -> None:
    """Six benchmarks: before each had its own n − 1, 84 and 91 %."""
    rng, hits, draws = np.random.default_rng(items), 0, 1000
    for _ in range(draws):
        parts = [from_array([row]) for row in rng.normal(0, 1, (6, items))]
        interval = one_checkpoint(stack(parts)).intervals["items"]
        assert interval.low is not None and interval.high is not None
        hits += interval.low <= 0 <= interval.high
    assert 0.91 <= hits / draws <= 0.97, hits / draws


def test_right_answers_nearly_all_alike_are_flagged() -> None:
    scores = np.full((3, 40), 100.0)
    scores[0, :2] = scores[1, 1:4] = 0.0
    near = mean_over_seeds(from_array(scores, scale=(0.0, 100.0)))
    assert near.cautions == (
        "fewer than 10 items off an end of the scale: (B) is too narrow there",
    )
    everywhere = mean_over_seeds(from_array(np.full((3, 40), 100.0), scale=(0.0, 100.0)))
    assert everywhere.cautions == ()
    assert mean_over_seeds(from_array(scores)).cautions == ()
    few = mean_over_seeds(from_array([[1.0, 2.0], [2.0, 4.0], [1.0, 5.0]])).cautions
    assert few == ("only 2 item clusters: the interval leans on normal item effects",)


def test_two_checkpoints_alike_on_every_item_have_an_interval() -> None:
    """0 of 500 differ: at most z²/(500 + z²) of new ones, by at most 100 points."""
    scores = np.tile([0.0, 100.0], 250)[None]
    cell = from_array(scores, scale=(0.0, 100.0))
    interval = difference(cell, cell).intervals["items"]
    z2 = scipy_stats.norm.isf(0.025) ** 2
    assert (interval.high, interval.p) == (pytest.approx(100 * z2 / (500 + z2)), 1.0)
    assert interval.low == pytest.approx(-100 * z2 / (500 + z2))
    assert difference(from_array(scores), from_array(scores)).intervals["items"].undefined


def test_a_share_that_is_just_reached_is_reached() -> None:
    """0.55 · 100 is 55.00000000000001 in floating point."""
    assert complete(from_array([[1.0] * 55 + [math.nan] * 45]), 0.55)[1] == ""
    assert complete(from_array([[1.0] * 54 + [math.nan] * 46]), 0.55)[1]
