"""Arms against a baseline: the pooled residual, Dunnett, Holm and selection, by hand and against
scipy and statsmodels.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

from analysis.family import (
    apart,
    dunnett_cdf,
    dunnett_critical,
    dunnett_p,
    family,
    holm,
    reestimate_best,
    residual,
    stray,
    unequal,
)
from analysis.layout import Layout, from_array
from analysis.stats import difference

T4 = 2.776445105
"""Student's t, two-sided 5 %, 4 degrees of freedom."""


def _arms(seed: int = 0, arms: int = 4, seeds: int = 3, items: int = 20) -> dict[str, Layout]:
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 2, (1, items))
    return {
        f"a{k}": from_array(
            common + rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 1, (seeds, items))
        )
        for k in range(arms)
    }


def test_residual_of_a_hand_worked_table() -> None:
    # arms × seeds; arm means 2, 4, 6; seed means 3, 4, 5; the residuals are ±1 in four cells
    ms, df = residual(np.array([[2.0, 1.0, 3.0], [2.0, 5.0, 5.0], [5.0, 6.0, 7.0]]))
    assert df == 4
    assert ms == pytest.approx(4 / 4)


def test_residual_agrees_with_statsmodels_anova() -> None:
    y = np.random.default_rng(1).normal(size=(5, 4))
    frame = pd.DataFrame(
        {"y": y.ravel(), "a": np.repeat(np.arange(5), 4), "s": np.tile(np.arange(4), 5)}
    )
    table = anova_lm(ols("y ~ C(a) + C(s)", frame).fit())
    ms, df = residual(y)
    assert (ms, df) == pytest.approx((table.loc["Residual", "sum_sq"] / 12, 12), rel=1e-12)


def test_headline_pools_and_the_paired_interval_stays_beside_it() -> None:
    means = np.array([[2.0, 1.0, 3.0], [2.0, 5.0, 5.0], [5.0, 6.0, 7.0]])
    result = family(
        {
            name: from_array(np.tile(row[:, None], (1, 2)))
            for name, row in zip("xyz", means, strict=True)
        },
        "x",
    )
    found = result.arms["z"]
    a, own = found.intervals["A"], found.intervals["A_paired"]
    assert (result.ms, result.df) == (pytest.approx(1.0), 4)
    assert found.value == pytest.approx(4.0)
    assert a.half_width == pytest.approx(T4 * math.sqrt(2 / 3), rel=1e-8)
    assert a.df == (4.0,)
    assert (
        own
        == difference(
            from_array(np.tile(means[2][:, None], (1, 2))),
            from_array(np.tile(means[0][:, None], (1, 2))),
        ).intervals["A"]
    )
    assert "pooled over 3 arms" in a.method
    assert "pooled" not in own.method


def test_two_arms_are_only_paired() -> None:
    arms = _arms(arms=2)
    result = family(arms, "a0")
    assert result.ms is None
    assert result.arms["a1"].intervals["A"] == difference(arms["a1"], arms["a0"]).intervals["A"]
    assert result.arms["a1"].intervals["dunnett"].undefined == "no pooled residual"


def test_order_of_arms_changes_no_number() -> None:
    arms = _arms()
    one, other = family(arms, "a0"), family(dict(reversed(arms.items())), "a0")
    assert list(other.arms) == ["a3", "a2", "a1"]
    for name in ("a1", "a2", "a3"):
        assert one.arms[name].intervals == other.arms[name].intervals


def test_holm_agrees_with_statsmodels() -> None:
    found = family(_arms(3), "a0").arms
    raw = {name: estimate.p("B") for name, estimate in found.items()}
    theirs = multipletests(list(raw.values()), method="holm")[1]
    assert list(holm(raw).values()) == pytest.approx(theirs.tolist(), rel=1e-12)


def test_holm_by_hand_counts_an_undefined_p_as_a_member() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    with_hole = holm({"a": 0.01, "b": None, "c": 0.03})
    assert with_hole["b"] is None
    assert (with_hole["a"], with_hole["c"]) == pytest.approx((0.03, 0.06))
    assert holm({}) == {}
    assert holm({"a": 0.0}) == {"a": 0.0}


@pytest.mark.parametrize(
    ("arms", "df", "printed"),
    [
        (1, 10, 2.23),
        (2, 10, 2.57),
        (3, 20, 2.54),
        (4, 20, 2.65),
        (2, 5, 3.03),
        (9, 60, 2.72 + 0.03),
    ],
)
def test_dunnett_critical_values_of_the_printed_table(arms: int, df: int, printed: float) -> None:
    # Dunnett (1964), two-sided 5 %; the last is checked only to its neighbourhood
    assert dunnett_critical(arms, df) == pytest.approx(printed, abs=0.006 if arms < 9 else 0.04)


def test_dunnett_with_one_arm_is_student() -> None:
    for df in (2, 4, 8, 30):
        assert 1 - dunnett_cdf(2.5, 1, df) == pytest.approx(
            2 * scipy_stats.t.sf(2.5, df), abs=1e-10
        )
    assert dunnett_p(2.5, 1, 8) == pytest.approx(2 * scipy_stats.t.sf(2.5, 8), rel=1e-12)


def test_dunnett_p_agrees_with_scipy_on_independent_groups() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.normal(0.3 * k, 1, 8) for k in range(4)]
    theirs = scipy_stats.dunnett(*groups[1:], control=groups[0], rng=np.random.default_rng(0))
    pooled = math.sqrt(sum(float(g.var(ddof=1)) for g in groups) / 4)
    for k in range(1, 4):
        t = float(groups[k].mean() - groups[0].mean()) / (pooled * math.sqrt(2 / 8))
        assert t == pytest.approx(float(theirs.statistic[k - 1]), rel=1e-12)
        assert dunnett_p(t, 3, 28) == pytest.approx(float(theirs.pvalue[k - 1]), abs=2e-3)


def test_dunnett_lies_between_the_single_test_and_bonferroni() -> None:
    for arm in family(_arms(4), "a0").arms.values():
        p, single = arm.p("dunnett"), arm.p("A")
        assert p is not None
        assert single is not None
        assert single < p < min(3 * single, 1) + 1e-12
        assert (arm.half_width("dunnett") or 0) > (arm.half_width("A") or 0)


def test_an_arm_whose_seeds_jump_is_flagged_unequal() -> None:
    rng = np.random.default_rng(5)
    arms = {
        f"a{k}": from_array(rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.01, (5, 30)))
        for k in range(8)
    }
    arms["a7"] = from_array(arms["a7"].values + np.array([[3.0], [-4.0], [2.0], [5.0], [-6.0]]))
    result = family(arms, "a0")
    assert any("unequal: this difference varies" in flag for flag in result.arms["a7"].flags)
    assert not any("unequal" in flag for flag in result.arms["a1"].flags)
    assert result.flags == ()
    assert all("unequal" in family(arms, "a7").arms[name].flags[0] for name in ("a0", "a3"))


def test_an_unequal_arm_goes_back_to_its_paired_interval_and_dunnett_is_withheld() -> None:
    rng = np.random.default_rng(5)
    arms = {
        f"a{k}": from_array(rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.01, (5, 30)))
        for k in range(8)
    }
    arms["a7"] = from_array(arms["a7"].values + np.array([[3.0], [-4.0], [2.0], [5.0], [-6.0]]))
    found = family(arms, "a0").arms
    jumpy, calm = found["a7"].intervals, found["a1"].intervals
    assert jumpy["A"] == jumpy["A_paired"]
    assert "unequal" in jumpy["dunnett"].undefined
    assert calm["dunnett"].defined
    assert "pooled" in calm["A"].method


def test_copies_of_an_arm_are_pooled_once() -> None:
    arms = _arms(12, arms=3)
    doubled = family({**arms, "copy": arms["a0"]}, "a0")
    assert (doubled.ms, doubled.df) == (family(arms, "a0").ms, 4)
    assert doubled.arms["a1"].intervals["A"] == family(arms, "a0").arms["a1"].intervals["A"]


def test_the_checks_for_unequal_arms_are_exact_f_tests() -> None:
    rng = np.random.default_rng(11)
    means = rng.normal(size=(4000, 4, 3)) + rng.normal(size=(4000, 1, 3))
    for p in (stray(means, 1), apart(means, 1, 0)):
        assert scipy_stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.01 < unequal(means, 1, 0).mean() < 0.025


def test_a_spread_that_grows_with_alpha_is_seen_by_the_difference() -> None:
    rng = np.random.default_rng(13)
    means = rng.normal(0, 0.2, size=(2000, 5, 5)) + np.linspace(0, 4, 5)[:, None] * rng.normal(
        size=(2000, 1, 5)
    )
    assert (stray(means, 4) < 0.01).mean() < 0.05
    assert (apart(means, 4, 0) < 0.01).mean() > 0.8


def test_an_incomplete_arm_is_reported_and_left_out() -> None:
    arms = _arms(6)
    broken = arms["a3"].values.copy()
    broken[0, 0] = np.nan
    result = family({**arms, "a3": from_array(broken)}, "a0")
    assert result.arms["a3"].value is None
    assert result.arms["a3"].incomplete
    assert result.flags == ("a3 left out: INCOMPLETE: 59 of 60 scored",)
    assert result.df == 4
    assert result.arms["a1"].intervals["dunnett"].method.startswith("Dunnett, 2 arms")


def test_a_lost_seed_leaves_the_pool_and_says_so() -> None:
    arms = _arms(7, seeds=4)
    arms["a2"] = arms["a2"].take([0, 1, 3])
    result = family(arms, "a0")
    assert "seeds left out of the pool, not in every arm: 2" in result.flags
    assert "its seeds are not those of the pool" in result.arms["a1"].flags[0]
    assert result.arms["a2"].method == "difference, pooled"


def test_equal_arms_are_undefined_not_certain() -> None:
    same = from_array(np.random.default_rng(8).normal(size=(3, 10)))
    result = family({"x": same, "y": same, "z": same}, "x")
    assert not result.arms["y"].intervals["A"].defined
    assert result.arms["y"].p("A") is None
    assert not result.arms["y"].intervals["dunnett"].defined


def test_the_best_arm_is_told_on_seeds_that_did_not_choose_it() -> None:
    base = np.zeros((5, 4))
    lucky = np.array([9.0, 9.0, 1.0, 2.0, 3.0])[:, None] + base
    steady = np.array([4.0, 4.0, 4.0, 5.0, 4.0])[:, None] + base
    result = reestimate_best(
        {"0": from_array(base), "lucky": from_array(lucky), "steady": from_array(steady)}, "0"
    )
    assert (result.best, result.trials, result.choosing, result.estimating) == (
        "lucky",
        2,
        (0, 1),
        (2, 3, 4),
    )
    assert result.naive == 9.0
    assert result.estimate.value == 2.0
    assert result.estimate.intervals["A"].defined
    # leaving out seed 0: means 3.75 against 4.25 → steady (4); seed 1 likewise (4); seeds 2, 3, 4 →
    # lucky (1, 2, 3)
    assert result.rotated == pytest.approx((4 + 4 + 1 + 2 + 3) / 5)
    assert result.rotated_choices == ("steady", "steady", "lucky", "lucky", "lucky")


def test_the_best_of_what_should_be_low_is_the_lowest() -> None:
    base = np.zeros((5, 4))
    cells = {"0": base, "high": base + 9.0, "low": base - [[3.0], [3.0], [1.0], [2.0], [3.0]]}
    result = reestimate_best({arm: from_array(v) for arm, v in cells.items()}, "0", better=-1)
    assert (result.best, result.naive, result.estimate.value) == ("low", -3.0, -2.0)
    assert set(result.rotated_choices) == {"low"}


def test_selection_removes_the_winners_luck() -> None:
    rng, naive, fair = np.random.default_rng(9), [], []
    for _ in range(200):
        arms = {str(k): from_array(rng.normal(0, 1, (6, 1)) + np.zeros((6, 2))) for k in range(6)}
        result = reestimate_best(arms, "0")
        naive.append(result.naive)
        fair.append(result.estimate.value)
    assert np.mean(naive) > 0.5
    assert abs(np.mean(fair)) < 0.15


def test_selection_with_three_seeds_has_no_interval_and_one_seed_is_refused() -> None:
    result = reestimate_best(_arms(10), "a0")
    assert len(result.estimating) == 2
    assert "none below 3" in result.estimate.intervals["A"].undefined
    with pytest.raises(ValueError, match="nothing to choose"):
        reestimate_best(_arms(10, seeds=1), "a0")
