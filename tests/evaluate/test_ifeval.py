"""IFEval's rows are lm-eval's verdicts, and its means lm-eval's aggregates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.evaluate import ifeval
from harness.evaluate.libraries import ifeval as checkers
from harness.records import HarnessError, read_jsonl, write_jsonl
from tests.tasks import stage_task

TITLE, COMMA, WORDS = (
    "detectable_format:title",
    "punctuation:no_comma",
    "length_constraints:number_words",
)
LONG = {"num_words": 3, "relation": "at least"}
DOCS = [
    {"key": 1, "prompt": "A?", "instruction_id_list": [TITLE, COMMA], "kwargs": [{}, {}]},
    {"key": 2, "prompt": "B?", "instruction_id_list": [WORDS], "kwargs": [LONG]},
    {"key": 3, "prompt": "C?", "instruction_id_list": [COMMA], "kwargs": [{}]},
]
SAID = [("<<A>>\nyes, it is", "ok"), ("one two", "truncated"), ("Well, so\nno comma", "ok")]


def scored(tmp_path: Path, statuses: list[str]) -> tuple[Any, pd.DataFrame]:
    questions = tmp_path / "prompts.jsonl"
    questions.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    settings = ifeval.IFEvalSettings(questions=str(questions))
    assert ifeval.prepare(settings, tmp_path / "bench") == {"expected": 3}
    (tmp_path / "answer").mkdir()
    (tmp_path / "out").mkdir()
    rows = list(read_jsonl(tmp_path / "bench" / "questions.jsonl"))
    said = zip(rows, SAID, statuses, strict=True)
    answers = [{**row, "output": text, "status": status} for row, (text, _), status in said]
    write_jsonl(tmp_path / "answer" / "ifeval.jsonl", answers)
    task = stage_task("k", "ifeval", {}, {"answer": tmp_path / "answer"}, tmp_path / "out")
    return ifeval.run(task), pd.read_parquet(tmp_path / "out" / "scores.parquet")


def test_means_are_lm_evals(tmp_path: Path) -> None:
    outcome, rows = scored(tmp_path, [status for _, status in SAID])
    theirs = checkers().utils
    found = [theirs.process_results(doc, [text]) for doc, (text, _) in zip(DOCS, SAID, strict=True)]
    for metric in ifeval.METRICS:
        values = [one[metric] for one in found]
        inner = metric.startswith("inst")
        mean = theirs.agg_inst_level_acc(values) if inner else sum(values) / len(values)
        assert outcome.summary[metric] == pytest.approx(100 * mean)
        assert rows.loc[rows["metric"] == metric, "value"].mean() == pytest.approx(100 * mean)
    # By hand: of title, comma, words and comma only the title is strictly met; each comma stands in
    # a first or last line.
    strict, loose = (outcome.summary[f"inst_level_{kind}_acc"] for kind in ("strict", "loose"))
    assert (strict, loose) == (25.0, 75.0)
    assert rows.loc[rows["metric"].str.startswith("inst"), "cluster"].tolist() == [*"1123"] * 2


def test_an_answer_that_is_missing_has_no_value(tmp_path: Path) -> None:
    outcome, rows = scored(tmp_path, ["ok", "no_answer", "ok"])
    lost = rows[rows["cluster"] == "2"]
    assert lost["value"].isna().all() and (lost["status"] == "no_answer").all() and len(lost) == 4
    assert outcome.summary["prompt_level_strict_acc"] == 0.0


WRONG = {
    "unknown instruction rhyme": {"instruction_id_list": ["rhyme"]},
    "not one kwargs for each": {"kwargs": [{}, {}, {}]},
    "prompt: String should have at least 1": {"prompt": ""},
}


@pytest.mark.parametrize("says", WRONG)
def test_rows_of_another_form_are_refused(says: str, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps(DOCS[0] | WRONG[says]) + "\n")
    with pytest.raises(HarnessError, match=f"row 1: {says}"):
        ifeval.prepare(ifeval.IFEvalSettings(questions=str(questions)), tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_file_without_a_prompt_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(HarnessError, match=r"q.json.*(holds no prompt|row 1: )"):
        ifeval.read_prompts(ifeval.IFEvalSettings(questions=str(tmp_path / "q.json")), "ifeval", ())


def test_prompts_stand_once_and_have_a_key_in_whatever_file(tmp_path: Path) -> None:
    def prepare(name: str, text: str) -> Any:
        (tmp_path / name).write_text(text)
        settings = ifeval.IFEvalSettings(questions=str(tmp_path / name))
        return ifeval.prepare(settings, tmp_path / "out")

    padded = DOCS[2] | {"kwargs": [None]}
    assert prepare("list.json", json.dumps([DOCS[0], padded])) == {"expected": 2}
    with pytest.raises(HarnessError, match="id 1 occurs more than once"):
        prepare("twice.jsonl", f"{json.dumps(DOCS[0])}\n" * 2)
    nameless = {key: value for key, value in DOCS[0].items() if key != "key"}
    with pytest.raises(HarnessError, match="row 1: key: Field required"):
        prepare("nameless.jsonl", json.dumps(nameless))


def test_what_counts_sentences_needs_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "q.jsonl"
    options = [{"num_sentences": 2, "relation": "at least"}]
    kinds = ["length_constraints:number_sentences"]
    questions.write_text(json.dumps(DOCS[1] | {"instruction_id_list": kinds, "kwargs": options}))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(HarnessError, match=r"nltk\.downloader punkt_tab"):
        ifeval.prepare(ifeval.IFEvalSettings(questions=str(questions)), tmp_path / "out")
