"""Tables of what somebody else made: what is read, and what is refused by file, line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from harness.engine.launch import plan_study
from harness.records import HarnessError
from harness.study.given import read_table
from harness.study.study import Study, load_study

ROOT = Path(__file__).parents[2]


def study(folder: Path, table: str, name: str = "t.csv", **keys: object) -> Study:
    """A pocket study of this table; files that it names are there."""
    for file in ("answers.json", "turns.jsonl"):
        (folder / file).write_text("")
    for checkpoint in ("one", "two", "own/ada"):
        (folder / checkpoint).mkdir(parents=True)
        (folder / checkpoint / "config.json").write_text("{}")
    (folder / name).write_text(table)
    asked = {"name": "s", "recipe": str(ROOT / "ablations" / "recipes" / "pocket.yaml")}
    asked |= {"given": name, "set": {"evaluation.benchmarks": ["mt_bench", "alpaca_eval"]}} | keys
    (folder / "s.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    return load_study(folder / "s.yaml")


def test_cells_are_the_tables_arms_and_seeds_with_their_steps(tmp_path: Path) -> None:
    table = "arm,seed,step,checkpoint\ndpo,0,20,two\ndpo,0,10,one\nipo,1,10,hub/model\n"
    found = study(tmp_path, table, baseline={"arm": "dpo"})
    runs = {cell.run: list(cell.given) for cell in found.cells}
    assert runs == {"arm=dpo,seed=0": [10, 20], "arm=ipo,seed=1": [10]}
    assert found.cells[0].given[20].checkpoint == str(tmp_path / "two")
    assert found.cells[1].given[10].checkpoint == "hub/model"
    assert [cell.baseline_run for cell in found.cells] == ["arm=dpo,seed=0", ""]
    assert found.seeds == (0, 1)
    assert found.base.loop.iterations == 0


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    listed = [
        {"arm": "dpo", "step": 10, "checkpoint": "one"},
        {"arm": "7", "seed": 2, "step": 0, "alpaca_eval": "answers.json", "model": "m"},
    ]
    study(tmp_path, yaml.safe_dump(listed), "t.yaml")
    text = "arm, seed, step, checkpoint, alpaca_eval, model\n"
    text += "dpo, , 10, one, ,\n\n7, 2, 0, , answers.json, m\n"
    (tmp_path / "t.csv").write_text(text)
    rows = [read_table(tmp_path / name) for name in ("t.yaml", "t.csv")]
    told = [[{**vars(row), "place": ""} for row in table] for table in rows]
    assert told[0] == told[1]
    assert [row.place.rpartition(":")[2] for row in rows[1]] == ["2", "4"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("arm,sed,step\n", "t.csv:1: unknown column 'sed' (did you mean 'seed'?)"),
        ("arm,step,step\n", "t.csv:1: column 'step' stands twice"),
        ("arm,step,checkpoint\n", "t.csv: holds no row"),
        ("arm,step,checkpoint\na,1\n", "t.csv:2: wants 3 cells"),
        ("arm,step,checkpoint\na,,one\n", "t.csv:2: column 'step' is empty or missing"),
        ("arm,step,checkpoint\na,1.5,one\n", "t.csv:2: column 'step': '1.5' is no whole number"),
        ("arm,step,checkpoint\nBase,1,one\n", "t.csv:2: column 'arm': tables call"),
        ("arm,step,checkpoint\na,1,none\n", "t.csv:2: column 'checkpoint': none does not exist"),
        ("arm,step,checkpoint\na,1,one\na,1,two\n", "t.csv:3: arm 'a', seed 0, step 1 is given"),
        ("arm,step,checkpoint\na,1,one\nA,1,two\n", "t.csv:3: column 'arm': 'A' and 'a' would"),
        ("arm,step,alpaca_eval\na,1,no.json\n", "t.csv:2: column 'alpaca_eval': no.json does not"),
        ("arm,step\na,1\n", "t.csv:2: give either a checkpoint or files"),
        (
            "arm,step,alpaca_eval\na,1,answers.json\n",
            "t.csv: evaluation.benchmarks names mt_bench, but no row gives",
        ),
        (
            "arm,step,alpaca_eval,alpaca_eval_verdicts\na,1,answers.json,answers.json\n",
            "t.csv:2: columns 'alpaca_eval' and 'alpaca_eval_verdicts'",
        ),
    ],
)
def test_a_bad_table_names_file_line_and_column(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(HarnessError) as refused:
        study(tmp_path, table)
    assert words in str(refused.value)


def test_a_yaml_row_is_named_by_its_line(tmp_path: Path) -> None:
    text = "- {arm: a, step: 1, checkpoint: one}\n- arm: b\n  step: 1\n  chekpoint: two\n"
    with pytest.raises(HarnessError, match=r"t.yaml:4: unknown column 'chekpoint' \(did you mean"):
        study(tmp_path, text, "t.yaml")


def test_what_is_given_is_not_trained_too(tmp_path: Path) -> None:
    table = "arm,step,checkpoint\na,1,one\n"
    with pytest.raises(HarnessError, match=r"s.yaml:.*: seeds are to be trained"):
        study(tmp_path, table, seeds=[0])


def test_a_benchmark_that_is_not_asked_for_has_no_column(tmp_path: Path) -> None:
    table = "arm,step,checkpoint,mt_bench\na,1,one,\nb,1,,turns.jsonl\n"
    with pytest.raises(HarnessError, match=r"t.csv:3: column 'mt_bench': evaluation.benchmarks"):
        study(tmp_path, table, set={"evaluation.benchmarks": ["alpaca_eval"]})


def adapter(folder: Path, base: str) -> None:
    """An adapter's folder, as far as planning looks into it."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))


def test_an_adapter_and_its_base_are_in_the_key_and_their_paths_are_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        adapter(tmp_path / name, "one")
    table = "arm,step,checkpoint,base\na,1,a,\nb,1,b,two\nc,1,a,owner/model\n"
    found = study(tmp_path, table)
    rows = [cell.given[1] for cell in found.cells]
    bases = [str(tmp_path / "one"), str(tmp_path / "two"), "owner/model"]
    assert [row.base for row in rows] == bases
    keys = [run.iterations[1]["given"] for run in plan_study(found).runs]
    assert keys[0] == keys[1] != keys[2]
    (tmp_path / "two" / "config.json").write_text('{"x": 1}')
    (tmp_path / "a" / "adapter_model.safetensors").write_text("other weights")
    moved = [run.iterations[1]["given"] for run in plan_study(found).runs]
    assert len({*keys, *moved[:2]}) == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("one,two", r"t.csv:2: column 'base': this row's checkpoint is no PEFT adapter"),
        ("none,", r"t.csv:2: .*none names no base; name it in column 'base'"),
        ("gone,", r"t.csv:2: column 'base': /no/model does not exist"),
    ],
)
def test_an_adapter_wants_a_base_that_is_there(row: str, words: str, tmp_path: Path) -> None:
    adapter(tmp_path / "none", "")
    adapter(tmp_path / "gone", "/no/model")
    with pytest.raises(HarnessError, match=words):
        study(tmp_path, f"arm,step,checkpoint,base\na,1,{row}\n")


def test_a_folder_without_a_model_is_refused_as_checkpoint_and_as_base(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    adapter(tmp_path / "a", str(tmp_path / "empty"))
    adapter(tmp_path / "b", str(tmp_path / "a"))
    found = study(tmp_path, "arm,step,checkpoint\na,1,empty\n")
    with pytest.raises(HarnessError, match=r"t.csv:2: column 'checkpoint': .*is no checkpoint"):
        plan_study(found)
    for name, words in (("a", "is no checkpoint"), ("b", "PEFT adapter alone")):
        (tmp_path / "t.csv").write_text(f"arm,step,checkpoint\na,1,{name}\n")
        with pytest.raises(HarnessError, match=rf"t.csv:2: column 'base': .*{words}"):
            plan_study(load_study(tmp_path / "s.yaml"))


def test_the_content_of_a_checkpoint_is_in_the_key_and_its_path_is_not(tmp_path: Path) -> None:
    found = study(tmp_path, "arm,step,checkpoint\na,1,one\nb,1,two\n")
    first = plan_study(found)
    assert len({run.iterations[1]["given"] for run in first.runs}) == 1
    (tmp_path / "two" / "config.json").write_text('{"x": 1}')
    one, two = (run.iterations[1]["given"] for run in plan_study(found).runs)
    assert one == first.runs[0].iterations[1]["given"] != two
