"""What arms, runs and studies are called: text that reads back equal, one name for one thing, safe
as a folder's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli.run import show_plan
from harness.engine.graph import same_arms
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.records import HarnessError
from harness.study import names
from harness.study.study import load_study
from harness.study.yaml import load_yaml, parse_scalar
from tests.study.test_study import GOOD, study

AXIS = "objective.alpha: [0, 1e-3]"
SEEDS = "data.seed: [20240101, 20240102, 9007199254740993]"


def with_axis(axis: str) -> str:
    return GOOD.replace(AXIS, axis).replace("baseline: {objective.alpha: 0}\n", "")


def with_labels(*labels: str) -> str:
    arms = "".join(
        f"  - {{label: {label}, set: {{objective.alpha: 0.{place}}}}}\n"
        for place, label in enumerate(labels, 1)
    )
    return f"name: mine\nrecipe: tiny\nseeds: [0]\narms:\n{arms}"


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(HarnessError) as raised:
        load_study(study(tmp_path, text))
    return str(raised.value)


def test_a_run_that_no_folder_could_be_called_is_cut_and_still_its_own() -> None:
    long = [{"data.path": f"{'folder' * 60}{end}"} for end in "ab"]
    runs = [names.run_name(arm, 7) for arm in [*long, {"arm": "長" * 100}]]
    assert all(len(run.encode()) <= 240 and run.endswith(",seed=7") for run in runs)
    assert runs[0] != runs[1] and runs[2].startswith("arm=長長")


def test_two_dates_as_seeds_are_two_arms(tmp_path: Path) -> None:
    """Six digits called both of them 2.02401e+07, and the report averaged two arms as one."""
    loaded = load_study(study(tmp_path, with_axis(SEEDS)))
    assert [cell.run for cell in loaded.cells][::2] == [
        "data.seed=20240101,seed=0",
        "data.seed=20240102,seed=0",
        "data.seed=9007199254740993,seed=0",
    ]
    assert loaded.cells[0].label == "seed = 20240101"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0, "0"),
        (1.0, "1"),
        (0.1, "0.1"),
        (1e-5, "1e-05"),
        (3e-4, "0.0003"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1.2345678, "1.2345678"),
        (10**18 + 1, "1000000000000000001"),
        (5e-324, "5e-324"),
        (True, "true"),
        (None, "null"),
        ([1, 12], "[1;12]"),
        ([11, 2], "[11;2]"),
        ({"start": 1e-5, "end": 0}, "{start:1e-05;end:0}"),
        ("best of y, y_w", "bestofyy_w"),
        ("org/a", "org%2Fa"),
        ("../x@3", "..%2Fx%403"),
        ("50%", "50%25"),
    ],
)
def test_a_value_is_named_by_text_that_keeps_it_apart(value: Any, name: str) -> None:
    assert names.run_name({"key": value}, 7) == f"key={name},seed=7"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert parse_scalar(name) == value


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("objective.alpha: [0, -0.0]", ["given twice"]),
        ("objective.alpha: [1e-05, 0.00001]", ["1e-05", "given twice"]),
        ("objective.alpha: [1, 1.0]", ["given twice"]),
        ("model.revision: ['1', 'a', 1]", ["1 and '1'"]),
        ("model.revision: [Main, main]", ["'Main'", "'main'", "letter case"]),
        ('model.revision: ["caf\\u00e9", "cafe\\u0301"]', ["café"]),
        ("training.learning_rate: [[1e-5, 0], [0.00001, 0.0]]", ["given twice"]),
    ],
)
def test_two_values_of_one_name_are_refused_by_both(
    tmp_path: Path, axis: str, words: list[str]
) -> None:
    said = refusal(tmp_path, with_axis(axis))
    assert ":4: value of axis" in said
    assert all(word in said for word in words)


def test_lists_and_mappings_as_values_have_names_of_their_own(tmp_path: Path) -> None:
    axis = "training.learning_rate: [[1, 12], [11, 2], {start: 1, end: 12}]"
    loaded = load_study(study(tmp_path, with_axis(axis)))
    assert len({cell.run for cell in loaded.cells}) == 6


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("A", "a"), "letter case"),
        (("own samples", "ownsamples"), "'own samples'"),
        (('"ﬁne"', "fine"), "letter case"),
        (("''", "b"), "empty"),
        (("' '", "b"), "empty"),
        (("Base", "b"), "untrained"),
        (('"a\\nb"', "b"), "printed"),
        (("x" * 101, "b"), "100 characters"),
    ],
)
def test_labels_are_one_visible_name_each(
    tmp_path: Path, labels: tuple[str, ...], words: str
) -> None:
    said = refusal(tmp_path, with_labels(*labels))
    assert words in said
    assert "study.yaml:" in said


def test_a_study_is_not_called_like_a_folder_of_the_results(tmp_path: Path) -> None:
    assert "store" in refusal(tmp_path, GOOD.replace("mine", "Store"))
    assert "100" in refusal(tmp_path, GOOD.replace("mine", "m" * 101))
    for name in ("../up", ".hidden", "''", "a/b"):
        assert "name" in refusal(tmp_path, GOOD.replace("name: mine", f"name: {name}"))


def test_axes_that_end_alike_are_labelled_in_full(tmp_path: Path) -> None:
    axes = "data.seed: [1]\n  pocket.seed: [2]"
    loaded = load_study(study(tmp_path, with_axis(axes)))
    assert loaded.cells[0].label == "data.seed = 1, pocket.seed = 2"


def test_arms_that_come_to_the_same_and_values_that_none_reads_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = with_labels("one", "two", "three").replace("alpha: 0.2", "alpha: 0.1")
    text += "set: {training.learning_rate: [0.1, 0.1, 0.1]}\n"
    plan = build_plan(load_study(study(tmp_path, text)))
    assert same_arms(plan) == [["one", "two"]]
    show_plan(plan, Store(tmp_path / "store"), 1)
    told = capsys.readouterr().out
    assert "Arms 'one' and 'two' come to the same settings" in told
    assert told.count("training.learning_rate lists 3 values and loop.iterations is 2") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"question: &a [*a]", "contains itself"),
        (b"question: " + b"[" * 3000, "nested"),
        (b"question: \x00", "special characters"),
        (b"question: !!int x", "'x' (1 characters) is no int"),
        (b"question: !!bool maybe", "'maybe' (5 characters) is no bool"),
        (b"question: !!float x", "'x' (1 characters) is no float"),
        (b"question: " + b"9" * 5000, "5000 characters"),
        (b'question: "\\ud800"', "surrogate"),
        (b"question:\n\t- 1", "\\t"),
        (b"question: 1\n---\nname: 2", "another document"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_odd_yaml_is_refused_with_its_line(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"name: a\n" + line + b"\n")
    with pytest.raises(HarnessError) as raised:
        load_yaml(path)
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"{path}")


def test_odd_values_on_the_command_line_are_refused_too() -> None:
    for text in ("!!int x", "9" * 5000, "[" * 3000, "&a [*a]"):
        with pytest.raises(HarnessError, match="command line"):
            parse_scalar(text)
    assert parse_scalar("a: b: c") == "a: b: c"


def test_minus_zero_is_zero(tmp_path: Path) -> None:
    loaded = load_study(study(tmp_path, GOOD.replace("[0, 1e-3]", "[-0.0, 1e-3]")))
    assert str(loaded.cells[0].recipe.objective.alpha) == "0.0"
