"""Coverage, size and power by simulation: the smaller version of ``benchmarks/bench_coverage.py``
(targets there, slack two standard errors).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_coverage as bench


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "means",
        "difference",
        "five arms",
        "three arms",
        "limits",
        "binary",
        "checkpoints",
        "seed tests",
    ],
)
def test_rates_reach_their_targets(part: str) -> None:
    rng = np.random.default_rng(20)
    rows = {
        "means": lambda: bench.means(rng, 3000),
        "difference": lambda: bench.means(rng, 3000, "difference"),
        "five arms": lambda: bench.pooled(rng, 1500),
        "three arms": lambda: bench.pooled(rng, 1500, A=3),
        "limits": lambda: bench.limits(rng, 1500),
        "binary": lambda: bench.binary(rng, 1500),
        "checkpoints": lambda: bench.checkpoints(rng, 1500),
        "seed tests": lambda: bench.seed_tests(rng, 3000),
    }[part]()
    rows = list(rows)
    missed = [row for row in rows if row.ok is False]
    # two standard errors of slack: one rate in twenty at a target's very edge may miss by chance, a
    # real fault misses many
    assert len(missed) <= max(1, len(rows) // 40), bench.table(missed)


@pytest.mark.slow
def test_pooling_narrows_the_interval_at_three_seeds() -> None:
    rows = list(bench.pooled(np.random.default_rng(21), 1000))
    widths = {
        row.share: row.rate for row in rows if row.estimator.startswith("width") and row.seeds == 3
    }
    assert all(0.5 < w < 0.9 for w in widths.values()), widths


def test_a_rate_outside_its_target_is_seen() -> None:
    row = bench.Row("what", "B", 3, 80, 0.5, 0.80, 2000, bench.COVERAGE)
    assert row.ok is False
    assert "80.0!" in bench.table([row])
    assert bench.Row("what", "B", 3, 80, 0.5, 0.95, 2000, bench.COVERAGE).ok is True
    assert bench.Row("what", "B", 3, 80, 0.5, 0.1, 2000, None).ok is None


def test_a_nested_bootstrap_would_fail_the_simulation() -> None:
    rng = np.random.default_rng(22)
    S, n, R = 3, 40, 200
    y, _ = bench.crossed(rng, R, S, n, bench.sigmas(S, n, 0.8))
    draws = np.array(
        [
            [
                [part[s][rng.integers(0, n, n)].mean() for s in rng.integers(0, S, S)]
                for _ in range(60)
            ]
            for part in y
        ]
    ).mean(axis=2)
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)
    assert np.mean((low < 0) & (high > 0)) < 0.9


def test_the_same_seed_gives_the_same_rates() -> None:
    one, again, other = (list(bench.binary(np.random.default_rng(s), 50)) for s in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.slow
def test_the_command_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--quick", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "coverage.json").read_text(encoding="utf-8"))
    assert written["draws"] == 2000
    assert {row["share"] for row in written["rows"] if row["what"] == "mean"} == {
        0.0,
        0.2,
        0.5,
        0.8,
        0.95,
    }
    assert "seed" in capsys.readouterr().out
