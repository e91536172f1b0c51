"""A study's findings under two judges side by side, and its scores on the published scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis import report
from analysis.bridge import study_tables
from analysis.judge_runs import table_two_judges
from analysis.load import StudyData, load_study
from harness.records import HarnessError, canonical_json
from tests.synthetic import Synthetic, build


def study(folder: Path, **changes: Any) -> StudyData:
    return load_study(*build(folder, Synthetic(faults=False, answers=False, **changes)))


def test_the_same_answers_under_two_judges_stand_side_by_side(tmp_path: Path) -> None:
    first, second = study(tmp_path / "a"), study(tmp_path / "b", effect=-0.4)
    table = table_two_judges(first, second)
    found = {(row["measure"], row["arm"]): row for row in table.data}
    row = found["AlpacaEval WR", "α = 1"]
    assert row["first"] > 0 > row["second"]
    shown = {(one.cells["measure"], one.cells["arm"]): one.cells["sign"] for one in table.rows}
    assert shown["AlpacaEval WR", "α = 1"] == "other"
    same = table_two_judges(first, first)
    assert {one.cells["sign"].strip("()") for one in same.rows} == {"same"}
    assert all(one["first"] == one["second"] for one in same.data)
    assert any("pocket-judge" in note for note in table.notes)


def test_without_a_baseline_there_is_nothing_to_set_side_by_side(tmp_path: Path) -> None:
    alone = study(tmp_path, alphas=(0.0,))
    with pytest.raises(HarnessError, match="no difference to a baseline"):
        table_two_judges(alone, alone)


def bridge_file(results: Path, judge: str, slope: float, models: Sequence[float]) -> None:
    """Old scores are ``slope`` times the new ones, plus one."""
    rows = [
        {"benchmark": "alpaca_eval", "metric": "win_rate", "model": str(model), "item": str(item)}
        | {"cluster": str(item), "repeat": 0, "old": 1 + slope * new, "new": new, "status": "ok"}
        | {"first": True, "length": 1.0}
        for model, level in enumerate(models)
        for item, new in enumerate((level - 5, level, level + 5))
    ]
    folder = results / "bridge" / judge
    folder.mkdir(parents=True)
    told = {"judge": judge, "profile": judge, "repeats": 1, "costs": {}, "rows": rows}
    (folder / "bridge.json").write_text(canonical_json(told))


def test_a_bridged_judges_scores_are_shown_on_the_published_scale_and_marked(
    tmp_path: Path,
) -> None:
    data = study(tmp_path)
    assert study_tables(data, tmp_path) == {}
    bridge_file(tmp_path, "another-judge", 2.0, (20, 40, 60))
    assert study_tables(data, tmp_path) == {}
    bridge_file(tmp_path, "pocket-judge", 0.5, (20, 40, 60))
    (table,) = study_tables(data, tmp_path).values()
    assert len(table.rows) == len(data.checkpoints)
    for row in table.data:
        assert row["mapped"] == pytest.approx(1 + 0.5 * row["value"])
    assert "‡" in table.title and any("‡" in name for name in table.columns)
    path = report.write_report(tmp_path / data.name, tmp_path / "store")
    assert "published scale ‡" in path.read_text()
