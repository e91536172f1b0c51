"""The judge's runs as a third source of variance, repeats against seeds, and a judge corrected by
labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import findings, judge_runs, measures, power_report
from analysis.power import Components
from harness.records import HarnessError
from tests.analysis.test_two_judges import study


def cube(
    rng: np.random.Generator, shape: tuple[int, int, int], sd: tuple[float, float, float, float]
) -> np.ndarray:
    """Zero-mean scores: effects of seeds, items, judge runs, and single verdicts."""
    (S, n, R), (seed, item, run, one) = shape, sd
    return np.asarray(
        rng.normal(0, seed, (S, 1, 1))
        + rng.normal(0, item, (1, n, 1))
        + rng.normal(0, run, (1, 1, R))
        + rng.normal(0, one, (S, n, R))
    )


def test_hand_worked_judge_runs() -> None:
    """Runs at −3, 0 and 3 around every cell, a seed effect of −1, 0, 1: a² = 1/3, b² = 0,
    c² = MS_run/(S·n·R) = 9/3, of t 4.303 each.
    """
    values = np.zeros((3, 4, 3)) + np.array([-3.0, 0, 3]) + np.array([-1.0, 0, 1])[:, None, None]
    found = judge_runs.judge_runs(values)
    assert found.value == pytest.approx(0.0)
    total = 1 / 3 + 3.0
    assert found.interval.half_width == pytest.approx(4.3026527 * total / np.sqrt(total))
    assert found.judge == pytest.approx(9.0)
    assert "none below 3" in judge_runs.judge_runs(values[..., :2]).interval.undefined


@pytest.mark.parametrize("run", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("runs", [3, 5])
def test_the_interval_over_judge_runs_covers(run: float, runs: int) -> None:
    """Standard errors of 1.0 over 4 seeds, 1.0 over 50 items, and of up to 1.2 over the runs."""
    rng, draws = np.random.default_rng(int(10 * run) + runs), 1500
    hits = 0
    for _ in range(draws):
        values = cube(rng, (4, 50, runs), (2.0, 7.0, run, 4.0))
        found = judge_runs.judge_runs(values).interval
        assert found.low is not None and found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / draws <= 0.985, hits / draws


def test_a_study_with_repeats_has_the_table_and_one_without_has_none(tmp_path: Path) -> None:
    once = study(tmp_path / "once")
    assert judge_runs.table_judge_runs(once) is None
    (one, *_) = findings.find(once).primary
    assert "judge's noise is unknown" in power_report.advised(once, one)
    thrice = study(tmp_path / "thrice", repeats=3)
    table = judge_runs.table_judge_runs(thrice)
    assert table is not None
    by = {(row["measure"], row["arm"]): row for row in table.data}
    row = by["MT-Bench mean", "α = 1"]
    # further judgments of the synthetic study move all arms alike, so that they cancel
    assert row["c"] == pytest.approx(row["b"])
    assert row["judge_sd"] == pytest.approx(0.0, abs=1e-9)
    measure = measures.find(thrice, "mt_bench", "rating")
    (one, *_) = findings.compare_arms(thrice, measure, thrice.last_iteration)
    assert "% of the variance of (A)" in power_report.advised(thrice, one)


@pytest.mark.parametrize(
    ("judge", "says"), [(0.9 * 400, "more repeats help more"), (0.02 * 400, "more seeds help more")]
)
def test_repeats_beat_seeds_where_the_judge_is_most_of_the_noise(judge: float, says: str) -> None:
    """σ_seed 0.2, σ_error 20, of it 90 % or 2 % the judge's; 12 seeds × 100 items."""
    told = power_report.advice(Components(0.2, 5.0, 20.0), 12, 100, judge, 1)
    share = judge / 1200 / (0.04 / 12 + 400 / 1200)
    assert says in told
    assert f"{100 * share:.0f} % of the variance" in told


# -- labels ----------------------------------------------------------------------------------------
def test_a_perfect_judge_needs_few_labels_and_a_useless_one_is_not_heeded() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(50, 20, 1000)
    perfect = judge_runs.corrected(truth[:50], truth[:50], truth[50:])
    assert perfect.weight == pytest.approx(0.95, abs=0.2)
    alone = perfect.alone.half_width("items") or 0.0
    assert (perfect.interval.half_width or 0.0) < 0.4 * alone
    useless = judge_runs.corrected(truth[:50], np.full(50, 7.0), np.full(950, 7.0))
    assert (useless.value, useless.weight) == (pytest.approx(truth[:50].mean()), 0.0)
    assert useless.interval.half_width == pytest.approx(useless.alone.half_width("items"))
    with pytest.raises(ValueError, match="too few"):
        judge_runs.corrected(truth[:10], truth[:10], truth[10:])


@pytest.mark.parametrize(("labels", "noise"), [(40, 1.0), (100, 1.0), (100, 4.0)])
def test_a_biased_judge_corrected_by_labels_covers_the_truth(labels: int, noise: float) -> None:
    """The judge favours the model by 10 points; winners by people, 805 items."""
    rng, draws, hits = np.random.default_rng(labels), 2000, 0
    for _ in range(draws):
        liking = rng.normal(-0.5, 1.5, 805)
        chance = 1 / (1 + np.exp(-liking))
        people = 100.0 * (rng.random(805) < chance)
        judge = np.clip(100 / (1 + np.exp(-liking - noise * rng.normal(0, 1, 805))) + 10, 0, 100)
        found = judge_runs.corrected(people[:labels], judge[:labels], judge[labels:])
        hits += (found.interval.low or 0.0) <= 100 * TRUTH <= (found.interval.high or 0.0)
    assert 0.93 <= hits / draws <= 0.97, hits / draws


_GRID = np.random.default_rng(0).normal(-0.5, 1.5, 4_000_000)
TRUTH = float((1 / (1 + np.exp(-_GRID))).mean())


def test_a_studys_win_rates_are_corrected_by_a_table_of_labels(tmp_path: Path) -> None:
    """Labels that say the model always wins: 100 whatever the judge thought."""
    data = study(tmp_path, instructions=60)
    name = "objective.alpha=1,seed=0"
    rows = [{"checkpoint": name, "item": item, "preference": 2} for item in range(40)]
    table = judge_runs.table_corrected(data, pd.DataFrame(rows))
    assert table.data[0]["value"] == pytest.approx(100.0)
    assert table.data[0]["labels"] == 40
    # equal labels have no spread to go by: never ± 0.00, and Wilson's 40/(40 + z²) for them alone
    cells = table.rows[0].cells
    assert (cells["corrected"], cells["labels alone"]) == ("100.00 ± –", "100.00 (91.24 to 100.00)")
    assert "only 0 of 40 labels differ" in table.notes[0]
    with pytest.raises(
        HarnessError, match=r"preference 0 of .*, item 0, and 39 more are not from 1"
    ):
        judge_runs.table_corrected(data, pd.DataFrame(rows).assign(preference=0))
    with pytest.raises(HarnessError, match=r"has 3 seeds, .* name the run .*seed=0"):
        arm = pd.DataFrame(rows).assign(checkpoint="objective.alpha=1")
        judge_runs.table_corrected(data, arm)
    with pytest.raises(HarnessError, match="no judged item 9999"):
        judge_runs.table_corrected(data, pd.DataFrame([{**rows[0], "item": 9999}]))
    with pytest.raises(HarnessError, match="2 labels"):
        judge_runs.table_corrected(data, pd.DataFrame(rows[:2]))
    words = pd.DataFrame(rows).astype({"preference": object})
    words.loc[3, "preference"] = "model"
    with pytest.raises(HarnessError, match=r"preference model of .*, item 3, and 0 more are not"):
        judge_runs.table_corrected(data, words)
    with pytest.raises(HarnessError, match="no column preference"):
        judge_runs.table_corrected(data, pd.DataFrame(rows).drop(columns="preference"))
