"""IFBench's rows are the verdicts of its owners' checkers, strict and loose."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nltk
import pandas as pd
import pytest

from harness.evaluate import ifbench, libraries
from harness.evaluate.libraries import ifeval as lm_eval
from harness.records import HarnessError, read_jsonl, write_jsonl
from tests.tasks import stage_task

NUMBERS, SOLID = "count:numbers", "format:no_whitespace"
DOCS = [
    {"key": "0", "prompt": "A?", "instruction_id_list": [NUMBERS, SOLID], "kwargs": [{"N": 2}, {}]},
    {"key": "1", "prompt": "B?", "instruction_id_list": [SOLID], "kwargs": [{"N": None}]},
    {"key": "2", "prompt": "C?", "instruction_id_list": [NUMBERS], "kwargs": [{"N": 1}]},
]
SAID = ["1 and 2", "Well,\nyes", ""]
"""By hand: two numbers but blanks; no blank in either line alone; nothing."""
EXPECTED = {
    "prompt_level_strict_acc": [0, 0, 0],
    "inst_level_strict_acc": [100, 0, 0, 0],
    "prompt_level_loose_acc": [0, 100, 0],
    "inst_level_loose_acc": [100, 0, 100, 0],
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, and folders in place of NLTK's data, which these kinds do not read."""
    pytest.importorskip("if_verifiable", reason="the extra `ifbench` is not installed")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    for name, folder in ifbench.DATA.items():
        (tmp_path / "nltk" / folder / name).mkdir(parents=True)


def prepared(tmp_path: Path) -> Path:
    questions = tmp_path / "IFBench_test.jsonl"
    questions.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    settings = ifbench.IFBenchSettings(questions=str(questions))
    assert ifbench.prepare(settings, tmp_path / "bench") == {"expected": 3}
    return tmp_path / "bench" / "questions.jsonl"


@pytest.mark.usefixtures("data")
def test_rows_are_the_checkers_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = zip(read_jsonl(prepared(tmp_path)), SAID, strict=True)
    for folder in ("answer", "out"):
        (tmp_path / folder).mkdir()
    answers = [{**row, "output": said, "status": "ok"} for row, said in rows]
    write_jsonl(tmp_path / "answer" / "ifbench.jsonl", answers)
    task = stage_task("k", "ifbench", {}, {"answer": tmp_path / "answer"}, tmp_path / "out")
    summary = ifbench.run(task).summary
    found = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    for metric, values in EXPECTED.items():
        assert found.loc[found["metric"] == metric, "value"].tolist() == values
        assert summary[metric] == pytest.approx(sum(values) / len(values))
    # The rule is IFEval's, which lm-eval's code holds apart from these checkers.
    known = ifbench.ifbench().INSTRUCTION_DICT
    monkeypatch.setattr(lm_eval().utils.instructions_registry, "INSTRUCTION_DICT", known)
    for row in answers:
        doc = {"key": 0, "prompt": row["question"], **row}
        assert lm_eval().utils.process_results(doc, [row["output"]]) == ifbench.check(
            row, row["output"]
        )


@pytest.mark.usefixtures("data")
def test_the_checkers_need_their_data(tmp_path: Path) -> None:
    (tmp_path / "nltk" / "corpora" / "stopwords").rmdir()
    with pytest.raises(HarnessError, match=r"nltk\.downloader stopwords` where"):
        prepared(tmp_path)


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps(DOCS[0]))
    for name in ("if_verifiable", "if_verifiable.ifbench", "if_verifiable.common"):
        monkeypatch.setitem(sys.modules, name, None)
    libraries.ifbench.cache_clear()
    with pytest.raises(HarnessError, match=r"pip install 'selm-harness\[ifbench\]'"):
        ifbench.prepare(ifbench.IFBenchSettings(questions=str(questions)), tmp_path / "out")
