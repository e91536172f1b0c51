"""A study file says what is asked; a wrong one is refused with file, line, key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.records import HarnessError
from harness.study.sections import Linear, at_iteration
from harness.study.study import load_study
from harness.study.yaml import load_yaml, parse_scalar

ABLATIONS = Path(__file__).parents[2] / "ablations"

RECIPE = "title: t\nloop: {iterations: 2}\n"
GOOD = """\
name: mine
recipe: tiny
axes:
  objective.alpha: [0, 1e-3]
seeds: [0, 1]
baseline: {objective.alpha: 0}
"""


def study(tmp_path: Path, text: str, recipe: str = RECIPE) -> Path:
    (tmp_path / "recipes").mkdir(exist_ok=True)
    (tmp_path / "recipes" / "tiny.yaml").write_text(recipe)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "path",
    sorted(p for p in ABLATIONS.glob("*.yaml") if not p.stem.startswith("tune")),
    ids=lambda p: p.stem,
)
def test_every_study_that_ships_loads(path: Path) -> None:
    from harness.engine.runs import build_plan

    loaded = load_study(
        path,
        {"data.path": "rows.jsonl", "model.source": "folder"} if path.stem == "own_data" else {},
    )
    assert build_plan(loaded).nodes
    assert loaded.name == path.stem


def test_cells_are_arms_times_seeds_with_their_baseline_runs(tmp_path: Path) -> None:
    loaded = load_study(study(tmp_path, GOOD))
    assert [cell.run for cell in loaded.cells] == [
        "objective.alpha=0,seed=0",
        "objective.alpha=0,seed=1",
        "objective.alpha=0.001,seed=0",
        "objective.alpha=0.001,seed=1",
    ]
    assert loaded.cells[3].baseline_run == "objective.alpha=0,seed=1"
    assert loaded.cells[2].recipe.objective.alpha == 1e-3
    assert loaded.cells[0].recipe.loop.iterations == 2


def test_a_baseline_may_name_its_keys_in_any_order_and_form(tmp_path: Path) -> None:
    text = GOOD.replace("  objective.alpha:", "  objective.beta: [0.1, 0.2]\n  objective.alpha:")
    text = text.replace("{objective.alpha: 0}", "{objective.alpha: 0.0, objective.beta: 0.1}")
    loaded = load_study(study(tmp_path, text))
    assert {cell.baseline_run for cell in loaded.cells} == {
        "objective.beta=0.1,objective.alpha=0,seed=0",
        "objective.beta=0.1,objective.alpha=0,seed=1",
    }


def test_a_file_below_the_home_folder_may_be_named_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load_study(study(tmp_path, GOOD + "set: {data.path: ~/pairs.jsonl, title: a~/b}\n"))
    assert loaded.base.data.path == str(tmp_path / "pairs.jsonl") and loaded.base.title == "a~/b"


def test_seeds_of_the_command_line_are_a_count_or_a_list(tmp_path: Path) -> None:
    path = study(tmp_path, GOOD.replace("seeds: [0, 1]", "seeds: [3, 1]"))
    assert load_study(path, {"seeds": 4}).seeds == (3, 1, 4, 5)
    assert load_study(path, {"seeds": 1}).seeds == (3,)
    found = load_study(path, {"seeds": [7, 8, 9]})
    assert [cell.seed for cell in found.cells[:3]] == [7, 8, 9]
    assert found.changes == {"seeds": [7, 8, 9]}
    for wrong in (0, "many", [1, 1], [], [-1], True):
        with pytest.raises(HarnessError, match=r"command line: seeds: .* neither how many"):
            load_study(path, {"seeds": wrong})


def test_scientific_notation_is_a_number_and_yes_is_text() -> None:
    assert parse_scalar("1e-3") == 0.001
    assert parse_scalar("-2E+4") == -20000.0
    assert parse_scalar("yes") == "yes"
    assert parse_scalar("012") == 12
    assert parse_scalar("[1, 2.5]") == [1, 2.5]


BAD = {
    "unknown key": (GOOD + "sedes: [1]\n", ":7:", "did you mean 'seeds'?"),
    "misspelt objective": (GOOD + "set: {objective.name: sellm}\n", "", "did you mean 'selm'?"),
    "alpha as text": (GOOD.replace("1e-3", "'0.1'"), "", "objective.alpha"),
    "negative seed": (GOOD.replace("[0, 1]\n", "[0, -1]\n"), ":5:", "greater than or equal to 0"),
    "missing recipe": (GOOD.replace("tiny", "tinny"), ":2:", "did you mean 'tiny'?"),
    "duplicate axis": (
        GOOD.replace(
            "  objective.alpha: [0, 1e-3]\n", "  objective.alpha: [0]\n  objective.alpha: [1]\n"
        ),
        ":5:",
        "given twice",
    ),
    "duplicate value": (GOOD.replace("1e-3", "0.0"), ":4:", "given twice"),
    "duplicate seed": (GOOD.replace("[0, 1]\n", "[1, 1]\n"), ":5:", "given twice"),
    "empty grid": (GOOD.replace("[0, 1e-3]", "[]"), ":4:", "is empty"),
    "no seeds": (GOOD.replace("[0, 1]\n", "[]\n"), ":5:", "at least one"),
    "unknown axis": (
        GOOD.replace("objective.alpha: [0, 1e-3]", "objective.alfa: [0, 1]"),
        ":4:",
        "did you mean 'alpha'?",
    ),
    "unknown override": (
        GOOD + "set:\n  training:\n    batchsize: 4\n",
        ":",
        "did you mean 'batch_size'?",
    ),
    "baseline that is no arm": (
        GOOD.replace("{objective.alpha: 0}", "{objective.alpha: 7}"),
        ":6:",
        "is no arm",
    ),
    "broken yaml": (GOOD + "set: {a: [\n", ":8:", "not valid YAML"),
    "python tag": (GOOD + "question: !!python/name:os.system\n", ":7:", "tag"),
    "a key given twice": (
        GOOD + "set:\n  loop: {iterations: 1}\n  loop.iterations: 3\n",
        ":9:",
        "set twice",
    ),
    "empty batch in an arm": (
        GOOD.replace("objective.alpha: [0, 1e-3]", "training.batch_size: [64, 0]"),
        ":4:",
        "training.batch_size",
    ),
    "a rate below zero": (
        GOOD + "set: {training.learning_rate: [1e-3, -1e-3]}\n",
        "",
        "learning_rate is -0.001: it would train away",
    ),
    "a falling rate that passes zero": (
        GOOD + "set: {training.learning_rate: {start: 1e-3, end: -1e-5}}\n",
        "",
        "learning_rate is -1e-05: it would train away",
    ),
    "a schedule of nothing": (GOOD + "set: {objective.beta: []}\n", "", "beta is an empty list"),
    "a benchmark twice": (
        GOOD + "set: {evaluation.benchmarks: [mt_bench, mt_bench]}\n",
        ":7:",
        "'mt_bench' stands twice",
    ),
    "a task twice": (
        GOOD + "set: {evaluation.academic.tasks: [gsm8k, arc_challenge, gsm8k]}\n",
        ":7:",
        "'gsm8k' stands twice",
    ),
    "an argument of a template as text": (
        GOOD + "set: {model.template_arguments: {enable_thinking: off}}\n",
        "",
        "enable_thinking is the text 'off'; write true or false",
    ),
    "a key one level too high": (
        GOOD + "set: {alpha: 1}\n",
        ":7:",
        "unknown key 'alpha' (did you mean 'objective.alpha' or",
    ),
    "a recipe's section beside set": (
        GOOD + "training: {epochs: 1}\n",
        ":7:",
        "unknown key 'training' (did you mean 'training', under set?)",
    ),
    "infinite alpha": (GOOD.replace("1e-3", ".inf"), "", "finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_study_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    text, place, words = BAD[case]
    with pytest.raises(HarnessError) as raised:
        load_study(study(tmp_path, text))
    message = str(raised.value)
    assert "study.yaml" in message
    assert place in message
    assert words in message


def test_a_bad_recipe_names_its_own_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError,
        match=r"tiny\.yaml:3: unknown key 'loop\.iteration' \(did you mean 'iterations'\?\)",
    ):
        load_study(study(tmp_path, GOOD, "title: t\nloop:\n  iteration: 2\n"))


def test_unknown_objective_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="allowed: none"):
        load_study(study(tmp_path, GOOD + "set: {objective.params: {gamma: 1.0}}\n"))


def test_arms_change_several_keys_together(tmp_path: Path) -> None:
    text = """\
name: m
recipe: tiny
seeds: [3]
baseline: {arm: a}
arms:
  - {label: a, set: {objective.name: dpo}}
  - label: b
    set: {objective: {name: xpo, alpha: 1e-5}, training.learning_rate: [1e-5, 1e-6]}
"""
    loaded = load_study(study(tmp_path, text))
    assert [cell.recipe.objective.name for cell in loaded.cells] == ["dpo", "xpo"]
    assert loaded.cells[1].recipe.objective.alpha == 1e-5
    assert loaded.cells[1].recipe.training.learning_rate == [1e-5, 1e-6]
    assert loaded.cells[1].baseline_run == "arm=a,seed=3"


def test_named_arms_stand_beside_a_grid(tmp_path: Path) -> None:
    text = """\
name: m
recipe: tiny
seeds: [3]
baseline: {objective.alpha: 0}
axes: {objective.alpha: [0, 0.1]}
arms:
  - {label: larger step, set: {training.learning_rate: 1e-3}}
"""
    loaded = load_study(study(tmp_path, text))
    assert [cell.label for cell in loaded.cells] == ["α = 0", "α = 0.1", "larger step"]
    assert loaded.axes == {"objective.alpha": [0, 0.1]}
    assert loaded.cells[2].baseline_run == "objective.alpha=0,seed=3"
    with pytest.raises(HarnessError, match=r"arm label 'α = 0\.1' is given twice"):
        load_study(study(tmp_path, text.replace("larger step", "α = 0.1")))


def test_lines_are_known_for_every_value(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb:\n  - x\n  - y: 2\n")
    data, lines = load_yaml(path)
    assert data == {"a": 1, "b": ["x", {"y": 2}]}
    assert lines[("b", 1, "y")] == 4


def test_schedules_are_constant_listed_or_linear() -> None:
    assert at_iteration(3e-5, 2, 3) == 3e-5
    assert [at_iteration([5.0, 3.0], i, 4) for i in (1, 2, 3, 4)] == [5.0, 3.0, 3.0, 3.0]
    assert [at_iteration(Linear(start=1.0, end=0.0), i, 3) for i in (1, 2, 3)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("key", ["objective.alpha", "objective.beta", "training.learning_rate"])
def test_a_schedule_longer_than_the_run_is_told_and_a_shorter_one_repeats_its_last(
    tmp_path: Path, key: str
) -> None:
    """What stands after the last iteration is read by none: an axis over iterations may want that,
    a slip does not.
    """
    section, name = key.split(".")
    for values in ("[0.5]", "[0.5, 0.25]"):
        recipe = load_study(study(tmp_path, f"{GOOD}set: {{{key}: {values}}}\n")).base
        assert at_iteration(getattr(getattr(recipe, section), name), 2, 2) in (0.5, 0.25)
        assert not list(recipe.unread())
    recipe = load_study(study(tmp_path, f"{GOOD}set: {{{key}: [0.5, 0.25, 0.125]}}\n")).base
    told = f"{key} lists 3 values and loop.iterations is 2: only the first 2 are used"
    assert list(recipe.unread()) == [told]
