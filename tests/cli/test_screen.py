"""The finding on one terminal screen, and a run's progress: nothing cut off, failures at once."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from analysis.load import load_study
from analysis.opening import opening
from analysis.screen import Opening
from harness.cli import console
from harness.engine.graph import Node, Plan
from harness.engine.launch import prepare
from harness.engine.worker import Result, State
from tests import synthetic

SMOKE = Path(__file__).parents[2] / "ablations" / "smoke.yaml"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Opening:
    """Twenty arms with long names."""
    arms = ["DPO", *(f"an objective with a long name, {i}" for i in range(19))]
    made = synthetic.Synthetic(
        axes={"arm": arms},
        iterations=1,
        faults=False,
        answers=False,
        heldout=4,
        ood=2,
        task_items=2,
        questions=4,
        instructions=6,
    )
    return opening(load_study(*synthetic.build(tmp_path_factory.mktemp("many"), made)))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Opening:
    made = synthetic.Synthetic(answers=False)
    return opening(load_study(*synthetic.build(tmp_path_factory.mktemp("faulty"), made)))


def printed(found: Opening, width: int) -> str:
    to = Console(file=io.StringIO(), width=width, highlight=False)
    to.print(console.screen(found, Path("results/x/report"), "ablations/x.yaml", width))
    return to.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("study", ["many", "faulty"])
def test_the_screen_fits_and_says_it_all(
    study: str, width: int, request: pytest.FixtureRequest
) -> None:
    found: Opening = request.getfixturevalue(study)
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    whole, narrow = " ".join(text.split()), "".join(text.split())
    assert found.answer.plain in whole
    assert found.answer.exact in whole
    for warning in found.warnings:
        assert warning in whole
    for label, row in zip(found.matrix.arms, found.matrix.cells, strict=True):
        assert row[0].shown in text
        assert any(word in text for word in label.split())
    assert "selmrunablations/x.yaml" in narrow
    assert "results/x/report/index.html" in narrow


@pytest.mark.parametrize("width", [60, 80, 81, 82, 83, 84, 90, 100, 140])
def test_no_cell_is_cut_at_any_width(faulty: Opening, width: int) -> None:
    lines = printed(faulty, width).splitlines()
    for label, row in zip(faulty.matrix.arms, faulty.matrix.cells, strict=True):
        words = (*label.split(), *row[0].shown.split())
        (line,) = [x.split() for x in lines if tuple(x.split())[: len(words)] == words]
        shown = line[len(label.split()) :]
        assert shown in [" ".join(c.shown for c in row[:n]).split() for n in range(1, 9)]


def test_a_wider_terminal_shows_more_measures(faulty: Opening) -> None:
    narrow, wide = printed(faulty, 80), printed(faulty, 140)
    assert faulty.matrix.cells[0][0].shown in narrow
    assert faulty.matrix.cells[0][4].shown not in narrow
    assert faulty.matrix.cells[0][4].shown in wide


# -- progress --------------------------------------------------------------------------------------
@pytest.fixture
def plan() -> Plan:
    return prepare(SMOKE, {})


def display(plan: Plan, *, verbose: bool = False) -> console.ProgressDisplay:
    seconds = dict.fromkeys(plan.nodes, 2.0)
    done = {node.key for node in plan.nodes.values() if node.stage.startswith("data.")}
    return console.ProgressDisplay(plan, seconds, done, 2, verbose)


def ended(node: Node, state: State, message: str = "") -> Result:
    return Result(node.key, state, 3.0, message, {"seconds": 3.0})


def test_only_what_fails_is_said_and_at_once(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    show, (first, second, *_) = display(plan), list(plan.nodes.values())[1:]
    show(first, ended(first, "done"))
    assert capsys.readouterr().out == ""
    show(second, ended(second, "failed", "the judge's key was refused"))
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert "the judge's key was refused" in said
    show = display(plan, verbose=True)
    show(first, ended(first, "done"))
    assert first.stage in capsys.readouterr().out


def test_a_line_counts_kinds_and_expects_the_rest(plan: Plan) -> None:
    show = display(plan)
    todo, base = len(plan.nodes) - 1, next(n for n in plan.nodes.values() if "base" in n.stage)
    assert f"0/{todo}  about {console.duration(todo)} left" in show.line()  # 2 s each, 2 workers
    show(base, ended(base, "done"))
    assert f"1/{todo}" in show.line()
    assert "base.pocket 1/1" in show.line()
    assert "train 0/2" in show.line()


def test_a_short_first_stage_beside_a_long_one_does_not_set_the_pace(plan: Plan) -> None:
    first, second, *others = plan.nodes
    with display(plan) as show:
        show.todo = {first: 0.1, second: 60.0, **dict.fromkeys(others, 1.0)}
        show.left = {key: seconds for key, seconds in show.todo.items() if key != first}
        show.started = time.monotonic() - 60.0
        (said,) = re.findall(r"about (.*) left", show.remaining())
    assert said.endswith(" s"), said  # some minutes, where 0.1 s ended in 60 s would say hours


def test_one_line_a_minute_where_output_is_no_terminal(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "MINUTE", 0.05)
    with display(plan) as show:
        show.over.wait(0.4)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 8
    assert all("left  (" in line for line in lines)


def test_durations_read_as_people_say_them() -> None:
    assert [console.duration(s) for s in (4.4, 125, 7500)] == ["4 s", "2 min 5 s", "2 h 5 min"]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_table_too_wide_for_the_terminal_becomes_a_list_and_loses_nothing(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = Console(file=io.StringIO(), width=width, highlight=False)
    monkeypatch.setattr(console, "console", to)
    heads = ("measure", *(f"quantity {n}" for n in range(8)))
    rows = [[f"out-of-distribution [{r}]", *(f"−0.{r}{n}1234" for n in range(8))] for r in range(3)]
    console.table("A title", heads, rows, caption="Said of all.")
    text = to.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "A title" in text and "Said of all." in text
    for row in rows:
        assert all(cell in text for cell in row), text
    assert ("quantity 7: −0.271234" in " ".join(text.split())) == (width < 140)
