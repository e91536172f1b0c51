"""What was left out is summed over stages by kind and reason, with where the first of it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.load import StudyData, load_study
from analysis.opening import opening
from analysis.tables.study import kinds, left_out_lines, table_left_out
from harness.cli.run import show_left_out
from harness.engine.graph import Node
from harness.engine.store import Store
from harness.records import Tally
from harness.study.sections import Section
from tests import synthetic
from tests.tasks import commit_finished


def record(what: str, met: int, **reasons: list[str]) -> list[dict[str, object]]:
    tally = Tally("rollout", what)
    tally.read = met
    for reason, places in reasons.items():
        for place in places:
            tally.leave_out(reason, place)
    return [vars(one) for one in tally.left_out()]


def test_two_stages_are_one_line_by_hand() -> None:
    first = record("prompts", 10, long=["a", "b", "c", "d"], empty=["e"])
    second = record("prompts", 5, long=["a", "f"]) + record("samples", 20, truncated=["x"])
    assert left_out_lines([first, [], second]) == [
        "left out or cut: 7 of 15 prompts by 2 stages rollout (long 6: a, b, c, …; empty 1: e)",
        "left out or cut: 1 of 20 samples by rollout (truncated 1: x)",
    ]
    assert [kind.share for kind in kinds([second])] == [2 / 5, 1 / 20]


def test_nothing_left_out_says_nothing() -> None:
    assert left_out_lines([[], ()]) == []


def test_the_terminal_says_it_from_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, node = Store(tmp_path / "store"), Node("a" * 64, "rollout", 1, Section(), {})
    store.open()
    commit_finished(store, node, 1.0, record("prompts", 4, long=["p1"]))
    show_left_out(store, ["a" * 64, "b" * 64])
    assert "1 of 4 prompts by rollout (long 1: p1)" in capsys.readouterr().out


def _study(folder: Path, record: list[dict[str, object]]) -> StudyData:
    """A finished study, one of whose stages has left out what ``record`` says."""
    made = synthetic.Synthetic(answers=False, faults=False)
    study, store = synthetic.build(folder, made)
    path = min(store.rglob("record.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"left_out": record}))
    return load_study(study, store)


def test_the_report_opens_with_what_is_over_a_hundredth_and_lists_all(tmp_path: Path) -> None:
    many = record("prompts", 10, long=["a", "b"])
    few = record("samples", 1000, truncated=["x"])
    data = _study(tmp_path, many + few)
    (said,) = opening(data).warnings
    assert said.startswith("Left out or cut: 20.0 % of prompts by rollout (2 of 10: long 2).")
    assert "samples" not in said
    table = table_left_out(data)
    assert [(row["what"], row["count"], row["of"]) for row in table.data] == [
        ("prompts", 2, 10),
        ("samples", 1, 1000),
    ]
    assert [row.cells["first of them"] for row in table.rows] == ["a, b", "x"]


def test_a_study_that_left_nothing_out_says_so_in_the_table_alone(tmp_path: Path) -> None:
    data = _study(tmp_path, [])
    assert opening(data).warnings == ()
    assert table_left_out(data).rows == []
