"""Academic tasks: conversion of public files, lm-eval's scores reproduced, its global side effects
fenced, failures without numbers.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from harness.engine.store import Store
from harness.evaluate import academic_run
from harness.evaluate.academic import (
    PAPER_TASKS,
    AcademicSettings,
    AcademicTask,
    convert,
    first_pass_prompt,
    prepare,
    scoring_items,
    settle,
)
from harness.evaluate.benchmark import read_rows
from harness.evaluate.published import eq_bench_recorded
from harness.model import isolated_rng as fence
from harness.model.chat import encode_prompt
from harness.model.generate import generate
from harness.model.policy import load_policy
from harness.model.vllm_engine import Drawn, Scored
from harness.records import GenerationRequest, HarnessError, StageTask
from harness.stages.inputs import benchmarks
from tests import tiny
from tests.conftest import ACADEMIC_FILES as FILES
from tests.model.families import FAMILIES
from tests.tasks import settings_of, stage_task

SETTINGS: dict[str, Any] = {
    "limit": 0,
    "chat_template": True,
    "fewshot_as_multiturn": True,
    "max_new_tokens": 4,
    "shots": {},
    "data": {},
    "generation_batch": 8,
}
ITEMS = {
    "gsm8k": 1319,
    "hellaswag": 1000,
    "arc_challenge": 1172,
    "truthfulqa_mc2": 817,
    "eq_bench": 171,
    "openbookqa": 500,
}
EMOTIONS = ("Calm", "Angry", "Sad", "Proud")


def request(name: str, choice: int, context: str) -> dict[str, Any]:
    doc = {
        "id": name,
        "query": f"Question: Which is {name}?\nAnswer:",
        "choices": [f"{name} {i}" for i in range(3)],
        "gold": 1,
    }
    return {
        "request_type": "loglikelihood",
        "doc": doc,
        "native_id": name,
        "idx": choice,
        "request": {"context": context, "continuation": " x"},
    }


def requests(names: str) -> list[dict[str, Any]]:
    """Scoring requests of the public form: every item with its question, and once more
    unconditionally.
    """
    rows = [
        request(name, i, f"Question: shot?\nAnswer: it\n\nQuestion: Which is {name}?\nAnswer:")
        for name in names
        for i in range(3)
    ]
    return rows + [request(name, i, "Answer:") for name in names for i in range(3)]


def write(path: Path, rows: Any) -> str:
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row) + "\n" for row in rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def reference(*scores: int) -> dict[str, Any]:
    return {f"emotion{i}": e for i, e in enumerate(EMOTIONS, 1)} | {
        f"emotion{i}_score": s for i, s in enumerate(scores, 1)
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return public_files(tmp_path_factory.mktemp("data"))


def public_files(root: Path) -> dict[str, str]:
    """Small files in the six public forms."""
    mc = {"mc1_targets": {"yes": 1, "no": 0}, "mc2_targets": {"yes": 1, "aye": 1, "no": 0}}
    swag = [request(name, i, f"Cooking: {name} stirs.") for name in "abcdef" for i in range(3)]
    for row in swag:
        row["doc"] |= {
            "ind": row["native_id"],
            "query": f"Cooking: {row['native_id']} stirs.",
            "choices": [" then.", "it ends.", "so."],
        }
    return {
        "gsm8k": write(
            root / "gsm8k.jsonl",
            [
                {"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}
                for i in range(5)
            ],
        ),
        "arc_challenge": write(root / "arc.requests.jsonl.gz", requests("abcdefg")),
        "openbookqa": write(root / "obqa.requests.jsonl.gz", requests("abcdefg")),
        "hellaswag": write(root / "swag.requests.jsonl.gz", swag),
        "truthfulqa_mc2": write(
            root / "truthful.json", [{"question": f"Is {i} odd?"} | mc for i in range(4)]
        ),
        "eq_bench": write(
            root / "eq.json",
            {
                str(i): {"prompt": "Feel?", "reference_answer_fullscale": reference(i, 2, 3, 4)}
                for i in range(1, 5)
            },
        ),
    }


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("policy"), max_position_embeddings=8192)


def asked(**changes: Any) -> Any:
    return settings_of("academic", SETTINGS | changes)


def prepared(files: dict[str, str], out: Path, **changes: Any) -> Any:
    shots = {"arc_challenge": 2, "openbookqa": 2, "hellaswag": 2, "gsm8k": 2}
    settings = asked(**{"tasks": list(files), "data": files, "shots": shots} | changes)
    prepare(settings, out)
    return settings


# --- what is evaluated ----------------------------------------------------------------------------


@pytest.mark.parametrize("column", PAPER_TASKS)
def test_the_table_names_tasks_metrics_and_filters_that_lm_eval_has(column: str) -> None:
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    paper = PAPER_TASKS[column]
    packaged = load_yaml(Path(lm_eval.__file__).parent / "tasks" / paper.yaml)
    assert packaged["task"] == paper.task
    assert paper.metric in {row["metric"] for row in packaged["metric_list"]}
    assert paper.filter in {row["name"] for row in packaged.get("filter_list", [{"name": "none"}])}
    assert packaged.get(f"{paper.split}_split") == paper.split
    assert paper.trains == (packaged.get("training_split") == "train")
    assert packaged["dataset_path"] == paper.hub


def test_the_papers_shots() -> None:
    shots = {
        "gsm8k": 8,
        "hellaswag": 10,
        "arc_challenge": 25,
        "truthfulqa_mc2": 0,
        "eq_bench": 0,
        "openbookqa": 10,
    }
    assert {column: paper.shots for column, paper in PAPER_TASKS.items()} == shots


# --- files ----------------------------------------------------------------------------------------


def test_unconditional_documents_are_left_out() -> None:
    assert [item["id"] for item in scoring_items(requests("ab"))] == ["a", "b"]
    with pytest.raises(HarnessError, match="no item"):
        scoring_items([request("a", 0, "Answer:")])


def test_items_become_the_rows_of_the_packaged_task(data: dict[str, str]) -> None:
    assert convert("arc_challenge", Path(data["arc_challenge"]))[0] == {
        "id": "a",
        "question": "Which is a?",
        "choices": {"text": ["a 0", "a 1", "a 2"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    assert convert("openbookqa", Path(data["openbookqa"]))[0]["question_stem"] == "Which is a?"
    assert convert("truthfulqa_mc2", Path(data["truthfulqa_mc2"]))[0]["mc2_targets"] == {
        "choices": ["yes", "aye", "no"],
        "labels": [1, 1, 0],
    }
    assert convert("eq_bench", Path(data["eq_bench"]))[0]["reference_answer_fullscale"] == str(
        reference(1, 2, 3, 4)
    )


def test_rows_in_the_hubs_own_form_pass_unchanged(tmp_path: Path) -> None:
    row = {"id": "x", "question": "Q", "choices": {"text": ["1"], "label": ["A"]}, "answerKey": "A"}
    assert convert("arc_challenge", Path(write(tmp_path / "arc.jsonl", [row]))) == [row]


def test_an_item_without_an_id_has_the_same_name_in_any_order(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}", "answer": f"#### {n}"} for n in range(5)]
    named = {}
    for order in (rows, rows[::-1], [{**rows[0], "id": 7}, *rows[1:]]):
        path = write(tmp_path / "gsm8k.jsonl", order)
        (tmp_path / "out").mkdir(exist_ok=True)
        settings = AcademicSettings(tasks=["gsm8k"], data={"gsm8k": path}, shots={"gsm8k": 0})
        prepare(settings, tmp_path / "out")
        written = [*read_rows(next((tmp_path / "out").glob("gsm8k_test*.jsonl")))]
        named[len(named)] = {row["question"]: row["id"] for row in written}
    assert named[0] == named[1]
    assert len(set(named[0].values())) == len(named[0]) > 1
    assert {type(name) for name in named[2].values()} == {str}


def test_the_revision_part_of_an_eq_bench_prompt_is_removed() -> None:
    prompt = (
        "Score. Then critique your answer by thinking it through step by step. Finally, give your "
        "revised scores.\n\n"
        "First pass scores:\nCalm: <score>\n\nCritique: <your critique here>\n\nRevised scores:\n"
        "Calm: <revised score>\n\n[End of answer]\n\nRemember."
    )
    assert first_pass_prompt(prompt) == "Score.\n\nCalm: <score>\n\n[End of answer]\n\nRemember."


def test_shots_come_from_items_that_are_held_aside_named_and_not_scored(
    data: dict[str, str], tmp_path: Path
) -> None:
    prepared(data, tmp_path)
    about = json.loads((tmp_path / "tasks.json").read_text())["arc_challenge"]
    assert (about["held_aside"], about["shots"], about["paper_shots"], about["items"]) == (
        ["e", "f", "g"],
        2,
        25,
        4,
    )
    assert [row["id"] for row in read_rows(tmp_path / "arc_challenge_test.jsonl")] == list("abcd")


def test_without_shots_every_item_is_scored_and_what_is_held_aside_is_told(
    data: dict[str, str], tmp_path: Path
) -> None:
    tasks = ["arc_challenge", "openbookqa"]
    files, shots = {name: data[name] for name in tasks}, {"arc_challenge": 0, "openbookqa": 2}
    sections = {"academic": asked(tasks=tasks, data=files, shots=shots)}
    settings = {"benchmarks": ["academic"], "sections": sections}
    task = stage_task("k", "benchmarks.files", settings, {}, tmp_path)
    (told,) = benchmarks(task).left_out
    assert (told.what, told.count, told.of) == ("openbookqa items", 3, 7)
    assert told.examples == ("e", "f", "g")
    written = read_rows(tmp_path / "academic" / "arc_challenge_test.jsonl")
    assert [row["id"] for row in written] == list("abcdefg")


def test_training_items_are_used_for_shots_where_there_are_some(
    data: dict[str, str], tmp_path: Path
) -> None:
    file = data["arc_challenge"]
    files = {"arc_challenge": file, "arc_challenge:train": file}
    settings = asked(tasks=["arc_challenge"], data=files)
    prepare(settings, tmp_path)
    about = json.loads((tmp_path / "tasks.json").read_text())["arc_challenge"]
    assert (about["shots"], about["shots_from"], about["items"]) == (25, "training items", 7)
    assert "held_aside" not in about


def test_what_is_written_names_no_machine_path_and_repeats_byte_for_byte(
    data: dict[str, str], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        prepared(data, tmp_path / name)
    files = {f.name: f.read_bytes() for f in (tmp_path / "one").iterdir()}
    assert files == {f.name: f.read_bytes() for f in (tmp_path / "two").iterdir()}
    assert not any(
        str(tmp_path).encode() in content or b"site-packages" in content
        for content in files.values()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"mmlu": "x.json"}}, "academic.data names mmlu"),
        ({"data": {"gsm8k": "missing.jsonl"}}, "missing.jsonl does not exist"),
        ({"shots": {"arc_challenge": 9}}, "cannot spare 10"),
        ({"shots": {"gsm8k": 9}}, "gsm8k_cot has 8 examples of its own"),
        (
            {"tasks": ["truthfulqa_mc2"], "shots": {"truthfulqa_mc2": 1}},
            "truthfulqa_mc2 has 0 examples of its own",
        ),
        ({"tasks": ["eq_bench"], "shots": {"eq_bench": 1}}, "eq_bench has 0 examples of its own"),
    ],
)
def test_bad_files_are_refused_with_what_is_wrong(
    data: dict[str, str], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HarnessError, match=message):
        prepared(data, tmp_path, **changes)


def test_rows_of_another_form_are_refused_with_the_fields_wanted(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="activity_label, ctx_a, ctx_b, endings, label"):
        convert("hellaswag", Path(write(tmp_path / "x.jsonl", [{"question": "Q"}])))
    gold = {"id": 1, "query": "Q", "choices": ["a"], "gold": 1}
    with pytest.raises(HarnessError, match="row 1 is no arc_challenge item with its answer"):
        convert("arc_challenge", Path(write(tmp_path / "y.jsonl", [gold])))


@pytest.mark.parametrize(
    ("column", "changes"),
    [
        ("gsm8k", {"answer": None}),
        ("hellaswag", {"label": ""}),
        ("hellaswag", {"label": 2}),
        ("arc_challenge", {"answerKey": "3"}),
        ("openbookqa", {"choices": None}),
    ],
)
def test_every_item_has_its_fields_and_a_right_answer_among_its_choices(
    column: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    asks = {"question": "Q", "answer": "#### 1", "question_stem": "Q"}
    whole = asks | {"choices": choices, "answerKey": "B", "label": "1", "endings": ["a", "b"]}
    whole |= {"activity_label": "x", "ctx_a": "y", "ctx_b": "z"}
    assert convert(column, Path(write(tmp_path / "x.jsonl", [whole, whole]))) == [whole, whole]
    with pytest.raises(HarnessError, match=f"x.jsonl: row 2 is no {column} item with its answer"):
        convert(column, Path(write(tmp_path / "x.jsonl", [whole, whole | changes])))


@pytest.mark.parametrize("name", ["x.json", "x.jsonl.gz", "x.parquet"])
def test_a_file_that_is_cut_off_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"[1,")
    with pytest.raises(HarnessError, match=f"{name}.*not (valid JSON|a readable Parquet file)"):
        read_rows(tmp_path / name)


def test_what_a_file_holds_says_how_it_is_read(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "é"}, {"id": "b", "text": "2"}]
    listed, lines = json.dumps(rows), "".join(json.dumps(row) + "\n" for row in rows)
    by_id = {row["id"]: {"text": row["text"]} for row in rows}
    for name, content in {
        "lines.json": lines.encode(),
        "list.jsonl": listed.encode(),
        "packed.json": gzip.compress(listed.encode()),
        "packed.json.gz": gzip.compress(listed.encode()),
        "utf_16.jsonl": lines.encode("utf-16"),
        "by_id.json": json.dumps(by_id).encode(),
        "by_id_in_lines.json": json.dumps(by_id, indent=1).encode(),
        "an_id_a_line.json": json.dumps(by_id).replace("}, ", "},\n").encode(),
        "lines.txt": lines.encode(),
        "listed": listed.encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read_rows(tmp_path / name) == rows, name
    (tmp_path / "cut.jsonl").write_text('{"id": "a"}\n{"id": "b",\n{"id": "c"}\n')
    with pytest.raises(HarnessError, match=r"cut.jsonl:2: not valid JSON"):
        read_rows(tmp_path / "cut.jsonl")


@pytest.mark.parametrize("column", FILES)
def test_public_files_convert_whole(shared_data: Path, column: str) -> None:
    assert len(convert(column, shared_data / "academic" / FILES[column])) == ITEMS[column]


def test_hellaswag_reads_as_the_published_requests_do(shared_data: Path) -> None:
    from lm_eval.tasks.hellaswag.utils import preprocess

    path = shared_data / "academic" / FILES["hellaswag"]
    for item, row in zip(scoring_items(read_rows(path)), convert("hellaswag", path), strict=True):
        assert (
            preprocess(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
            == item["query"]
        )
        assert [preprocess(ending) for ending in row["endings"]] == item["choices"]


# --- EQ-Bench -------------------------------------------------------------------------------------


def test_recorded_answers_score_by_hand(tmp_path: Path) -> None:
    # 1: exact, 100. 2: one emotion off by 8, 100 − 7.477·8 = 40.184. 3 cannot be parsed and is left
    # out. Revised answers are worse.
    write(
        tmp_path / "eq_bench_questions.json",
        {str(i): {"reference_answer_fullscale": reference(8, 2, 3, 4)} for i in (1, 2, 3)},
    )
    right, wrong = (f"Calm: {calm}\nAngry: 2\nSad: 3\nProud: 4\n" for calm in (8, 0))
    texts = {"1": f"{right}Revised scores:\n{wrong}", "2": wrong, "3": "?"}
    path = tmp_path / "x_eqbench_v2_results.json"
    write(path, {"benchmark_score": 70.0, "raw_results": {"1": {"raw_inference": texts}}})
    published, recomputed = eq_bench_recorded(path)
    assert (published, round(recomputed, 6)) == (70.0, (100 + 40.184) / 2)
    # Iterations are averaged; better revised answers that are too few do not count.
    few = {"1": f"{wrong}Revised scores:\n{right}", "2": wrong}
    runs = {"1": {"raw_inference": texts}, "2": {"raw_inference": few}}
    write(path, {"benchmark_score": 55.14, "raw_results": runs})
    assert round(eq_bench_recorded(path)[1], 6) == (70.092 + 40.184) / 2


def test_the_published_eq_bench_scores_are_reproduced(shared_data: Path) -> None:
    found = {
        f.name.split("_")[0]: eq_bench_recorded(f)
        for f in (shared_data / "academic").glob("*_eqbench_v2_results.json")
    }
    assert {name: scores[0] for name, scores in found.items()} == {
        "huggingfaceh4": 58.33,
        "teknium": 66.89,
    }
    assert all(abs(published - recomputed) < 0.02 for published, recomputed in found.values())


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["llama3", "zephyr", "phi3", "chatml"])
def test_lm_eval_reads_the_tokens_of_training_with_one_bos_at_most(
    style: str, tmp_path: Path
) -> None:
    policy = load_policy(tiny.checkpoint(tmp_path, style=style))
    with academic_run.quiet():
        lm = academic_run.language_model(policy, asked())
    context = lm.apply_chat_template([{"role": "user", "content": "Hi"}])
    start, rest = lm._encode_pair(context, "Yes")
    whole = start + rest  # lm-eval counts white space at the end of the header as the answer's
    prompt = encode_prompt(policy.tokenizer, [{"role": "user", "content": "Hi"}])
    assert whole[: len(prompt)] == prompt
    assert policy.tokenizer.decode(whole[len(prompt) :]) == "Yes"
    assert whole.count(policy.tokenizer.bos_token_id) == (0 if style in ("phi3", "chatml") else 1)


@pytest.mark.parametrize("templated", [True, False])
def test_what_an_item_says_is_text_whatever_tokens_it_spells_out(
    tmp_path: Path, templated: bool
) -> None:
    policy = load_policy(tiny.checkpoint(tmp_path / "policy", style="zephyr"))
    tokenizer, settings = policy.tokenizer, SETTINGS | {"chat_template": templated}
    lm = academic_run.language_model(policy, settings_of("academic", settings))
    asked = [{"role": "user", "content": text} for text in ("What is </s> for?", "And <s>?", "Hi")]
    if templated:
        texts = [lm.apply_chat_template([turn]) for turn in asked]
        wanted = [encode_prompt(tokenizer, [turn]) for turn in asked]
    else:
        texts = [turn["content"] for turn in asked]
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        wanted = [
            [tokenizer.bos_token_id, *tokenizer(text, **plain)["input_ids"]] for text in texts
        ]
    assert [lm.tok_encode(text) for text in texts] == wanted
    for limit in (None, 5):
        ids, mask = lm.tok_batch_encode(texts, left_truncate_len=limit)
        found = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        assert found == [row[-(limit or 0) :] for row in wanted]
    assert (lm.asked, lm.cut) == (3, 2 + templated)
    start, answer = lm._encode_pair(texts[0], " It ends </s>.")
    assert (start + answer)[: len(wanted[0])] == wanted[0]
    assert tokenizer.eos_token_id not in answer
    assert tokenizer.decode(answer).lstrip() == "It ends </s>."


@pytest.mark.parametrize("family", ["phi-3-mini", "gemma"])
def test_a_tasks_description_is_not_dropped_where_a_template_has_no_system_turn(
    tmp_path: Path, family: str
) -> None:
    made = FAMILIES[family].tokenizer()
    tiny.model("llama", made).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    lm = academic_run.language_model(policy, settings_of("academic", SETTINGS))
    asked = [{"role": "system", "content": "Answer A or B."}, {"role": "user", "content": "Hi"}]
    assert "Answer A or B.\n\nHi" in lm.apply_chat_template(asked)


def test_a_doubled_bos_is_refused_with_the_tokens_shown(policy_folder: Path) -> None:
    policy = load_policy(policy_folder)

    class Doubling:
        def apply_chat_template(self, messages: Any) -> str:
            return str(
                policy.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )

        def tok_batch_encode(self, strings: list[str]) -> Any:
            return policy.tokenizer(strings, return_tensors="pt")["input_ids"], None

        def tok_encode(self, string: str) -> list[int]:
            return list(policy.tokenizer(string)["input_ids"])

    with pytest.raises(HarnessError, match=r"other tokens.*begin_of_text\|>' '<\|begin_of_text"):
        academic_run.check_tokens(Doubling(), policy.tokenizer)


# --- scores ---------------------------------------------------------------------------------------


def lm_evals_own(
    folder: Path,
    settings: Any,
    policy_folder: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """``simple_evaluate`` with its own model class, loader, batches of one and seeds, on the same
    folder.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (temporary / "yaml").mkdir(parents=True)
    academic_run.materialise(folder, temporary / "yaml")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", temporary / "cache")
    with academic_run.quiet(), fence.isolated_rng():
        results = simple_evaluate(
            model=HFLM(
                pretrained=load_policy(policy_folder).model,
                tokenizer=load_policy(policy_folder).tokenizer,
                batch_size=1,
            ),
            tasks=[f"selm_{column}" for column in settings.tasks],
            task_manager=TaskManager(include_path=str(temporary / "yaml"), include_defaults=False),
            bootstrap_iters=0,
            limit=settings.limit or None,
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=settings.chat_template,
            gen_kwargs=f"max_gen_toks={settings.max_new_tokens}",
        )
    return dict(results["results"])  # type: ignore[index]


@pytest.mark.parametrize("chat_template", [True, False])
def test_scores_equal_lm_evals_own(
    data: dict[str, str],
    policy_folder: Path,
    tmp_path: Path,
    chat_template: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = prepared(data, tmp_path / "academic", chat_template=chat_template)
    policy = load_policy(policy_folder)
    scores, _, summary, cut = academic_run.evaluate_policy(policy, tmp_path / "academic", settings)
    theirs = lm_evals_own(
        tmp_path / "academic", settings, policy_folder, tmp_path / "theirs", monkeypatch
    )
    assert cut[0] == 0
    for column, paper in PAPER_TASKS.items():
        ours = [score.value for score in scores if score.benchmark == column]
        published = theirs[f"selm_{column}"][f"{paper.metric},{paper.filter}"] * paper.scale
        assert summary[column]["value"] == pytest.approx(published, abs=1e-4)
        assert statistics.fmean(v for v in ours if v is not None) == pytest.approx(
            published, abs=1e-4
        )
    assert {column: entry["n"] for column, entry in summary.items()} == {
        "gsm8k": 5,
        "hellaswag": 3,
        "arc_challenge": 4,
        "truthfulqa_mc2": 4,
        "eq_bench": 4,
        "openbookqa": 4,
    }
    assert 0 < summary["truthfulqa_mc2"]["value"] < 100


class Loop:
    """In an engine's place: the transformers model that the policy given to lm-eval lacks."""

    def __init__(self, folder: Path) -> None:
        self.policy = load_policy(folder)
        self.longest = 0

    def draw(self, requests: Sequence[GenerationRequest]) -> list[Drawn]:
        rows = generate(self.policy, requests)
        return [(list(row.token_ids), row.status, row.error) for row in rows]

    @torch.inference_mode()
    def score(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[Scored]:
        found = []
        for ids, last in rows:
            self.longest = max(self.longest, len(ids))
            logits_TV = self.policy.model(input_ids=torch.tensor([ids[:-1]])).logits[0, -last:]
            own_T = torch.tensor(ids[-last:])
            logps_T = logits_TV.log_softmax(-1).gather(1, own_T[:, None])
            found.append((float(logps_T.sum()), bool((logits_TV.argmax(-1) == own_T).all())))
        return found


@pytest.mark.parametrize("chat_template", [True, False])
def test_an_engine_in_the_models_place_is_asked_the_same(
    data: dict[str, str], policy_folder: Path, tmp_path: Path, chat_template: bool
) -> None:
    """The same samples, but for the rounding of sums in other batches."""
    settings = prepared(data, tmp_path, chat_template=chat_template)
    empty, loop = load_policy(policy_folder, weights=False), Loop(policy_folder)
    ours = academic_run.evaluate_policy(empty, tmp_path, settings, engine=loop)
    theirs = academic_run.evaluate_policy(loop.policy, tmp_path, settings)
    assert same_samples(ours[1], theirs[1])
    assert [row.source for row in ours[0]] == [row.source for row in theirs[0]]
    assert ours[3] == theirs[3]


def same_samples(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """Whether answers are equal as text, and log-likelihoods within 1e-4 nats."""
    for one, other in zip(ours, theirs, strict=True):
        texts = [re.sub(r"-?\d+\.\d+(e-?\d+)?", "#", str(row["raw"])) for row in (one, other)]
        numbers = [re.findall(r"-?\d+\.\d+(?:e-?\d+)?", str(row["raw"])) for row in (one, other)]
        if texts[0] != texts[1] or one["item"] != other["item"]:
            return False
        if [float(n) for n in numbers[0]] != pytest.approx(
            [float(n) for n in numbers[1]], abs=1e-4
        ):
            return False
    return True


def test_an_engine_is_asked_for_no_more_than_its_positions(
    data: dict[str, str], tmp_path: Path
) -> None:
    """One fewer than the model's, as vLLM wants room for a new token; what is cut is counted."""
    folder = tiny.checkpoint(tmp_path / "policy", max_position_embeddings=160)
    settings = prepared(data, tmp_path / "academic", tasks=["arc_challenge", "truthfulqa_mc2"])
    empty, loop = load_policy(folder, weights=False), Loop(folder)
    *_, cut = academic_run.evaluate_policy(empty, tmp_path / "academic", settings, engine=loop)
    assert loop.longest == 159
    assert 0 < cut[0] <= cut[1]


def test_probabilities_that_underflow_have_their_share_and_nothing_is_asked_again(
    policy_folder: Path, tmp_path: Path
) -> None:
    """Answers so unlikely that lm-eval divides 0 by 0; by hand, e^-1 = 0.36788 of 1 + e^-1."""
    long = {"yes, " * 60: 1, "no, or " * 50: 0}
    rows = [{"question": f"Is {i} odd?", "mc1_targets": long, "mc2_targets": long} for i in "12"]
    files = {"truthfulqa_mc2": write(tmp_path / "truthful.json", rows)}
    task = stage(files, policy_folder, tmp_path)
    outcome = academic_run.run(task)
    assert (outcome.rows, outcome.errors, outcome.left_out) == (2, 0, ())
    for sample in read_rows(task.out / "samples.jsonl"):
        true, false = (float(logp) for logp, _ in sample["answer"])
        assert max(true, false) < -800
        share = 100 / (1 + math.exp(min(false - true, 700)))
        assert sample["value"] == pytest.approx(share, rel=1e-4)
    told = {"mc2_targets": {"labels": [1, 0]}}
    one = {"filtered_resps": [(-901.0, False), (-900.0, False)], "doc": told}
    assert academic_run.truthful_share(one) == pytest.approx(0.36788 / 1.36788, abs=1e-5)


def test_what_an_engine_does_not_take_is_refused(policy_folder: Path) -> None:
    policy = load_policy(policy_folder, weights=False)
    lm = academic_run.language_model(policy, asked(), Loop(policy_folder))
    with pytest.raises(HarnessError, match="vllm does not take num_beams"):
        lm._model_generate(torch.ones(1, 2), 4, attention_mask=torch.ones(1, 2), num_beams=2)


def stage(data: dict[str, str], policy_folder: Path, root: Path, **changes: Any) -> StageTask:
    settings = prepared(data, root / "benchmarks" / "academic", **changes)
    (root / "out").mkdir(exist_ok=True)
    inputs = {"policy": policy_folder, "benchmarks": root / "benchmarks"}
    return stage_task("k", "academic", settings, inputs, root / "out", {"device": "cpu"})


def test_the_stage_writes_one_row_per_item_and_repeats_byte_for_byte(
    data: dict[str, str], policy_folder: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    task = stage(data, policy_folder, tmp_path, limit=3)
    outcome = academic_run.run(task)
    first = {f.name: f.read_bytes() for f in task.out.iterdir()}
    rows = pq.read_table(task.out / "scores.parquet").to_pylist()
    assert (outcome.rows, outcome.errors) == (len(rows), 0) == (18, 0)
    assert {row["item"] for row in rows if row["benchmark"] == "arc_challenge"} == {"a", "b", "c"}
    assert {row["benchmark_version"] for row in rows if row["benchmark"] == "gsm8k"} == {
        "lm_eval 0.4.13 gsm8k_cot 3.0"
    }
    assert len([json.loads(line) for line in first["samples.jsonl"].splitlines()]) == 18
    academic_run.run(task)
    assert first == {f.name: f.read_bytes() for f in task.out.iterdir()}


def test_nothing_global_is_left_changed(
    data: dict[str, str], policy_folder: Path, tmp_path: Path
) -> None:
    import datasets

    settings = prepared(data, tmp_path, tasks=["truthfulqa_mc2", "gsm8k"])
    policy = load_policy(policy_folder)
    state = (random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist())
    before = (
        datasets.config.HF_DATASETS_CACHE,
        policy.model.training,
        policy.tokenizer.padding_side,
        policy.model.config.to_dict(),
    )
    academic_run.evaluate_policy(policy, tmp_path, settings)
    assert state == (
        random.getstate(),
        str(np.random.get_state()),
        torch.random.get_rng_state().tolist(),
    )
    assert before == (
        datasets.config.HF_DATASETS_CACHE,
        policy.model.training,
        policy.tokenizer.padding_side,
        policy.model.config.to_dict(),
    )


def test_prompts_that_lm_eval_cuts_are_counted(data: dict[str, str], tmp_path: Path) -> None:
    short = load_policy(tiny.checkpoint(tmp_path / "policy", max_position_embeddings=160))
    settings = prepared(data, tmp_path / "academic", tasks=["arc_challenge", "truthfulqa_mc2"])
    *_, cut = academic_run.evaluate_policy(short, tmp_path / "academic", settings)
    assert 0 < cut[0] <= cut[1]


# --- failures -------------------------------------------------------------------------------------


WANTED = ["arc_challenge", "truthfulqa_mc2", "openbookqa"]


def killed_at_the_second(data: dict[str, str], policy: str, root: str, store: str) -> None:
    """An attempt of the stage whose process is killed when it comes to its second task."""
    evaluated, original = [], academic_run._evaluate

    def killed(lm: Any, name: str, *rest: Any) -> Any:
        evaluated.append(name)
        if len(evaluated) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(lm, name, *rest)

    academic_run._evaluate = killed
    task, opened = stage(data, Path(policy), Path(root), tasks=WANTED), Store(Path(store))
    with opened.lock(KEY):
        academic_run.run(replace(task, out=opened.begin(KEY)))


KEY = "ab" + "0" * 62


def test_a_kill_between_two_tasks_repeats_at_most_one(
    data: dict[str, str], policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = stage(data, policy_folder, tmp_path, tasks=WANTED)
    academic_run.run(task)
    whole = {f.name: f.read_bytes() for f in task.out.iterdir()}
    assert sorted(whole) == ["samples.jsonl", "scores.parquet", "summary.json"]
    store = Store(tmp_path / "store")
    store.open()
    made = killed_at_the_second
    called = f"from {made.__module__} import {made.__name__} as attempt"
    code = f"import json, sys; {called}; attempt(*json.loads(sys.argv[1]))"
    given = json.dumps([data, str(policy_folder), str(tmp_path), str(store.root)])
    child = subprocess.run([sys.executable, "-c", code, given], check=False)
    assert child.returncode == -signal.SIGKILL
    assert [one.action for one in store.open()] == ["its journal is kept and will be continued"]
    evaluated, original = [], academic_run._evaluate

    def watched(lm: Any, name: str, *rest: Any) -> Any:
        evaluated.append(name)
        return original(lm, name, *rest)

    monkeypatch.setattr(academic_run, "_evaluate", watched)
    with store.lock(KEY):
        again = store.begin(KEY)
        academic_run.run(replace(task, out=again))
    assert evaluated == ["selm_truthfulqa_mc2", "selm_openbookqa"]
    assert {f.name: f.read_bytes() for f in again.iterdir()} == whole


def test_out_of_memory_shrinks_the_batches(
    data: dict[str, str], policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    settings = prepared(data, tmp_path, tasks=["truthfulqa_mc2"])
    policy = load_policy(policy_folder)
    expected = [
        score.value for score in academic_run.evaluate_policy(policy, tmp_path, settings)[0]
    ]
    sizes: list[int] = []
    original = HFLM._model_call

    def limited(self: Any, inps: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(inps))
        if len(inps) > 2:
            raise RuntimeError("CUDA out of memory")
        return original(self, inps, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_call", limited)
    scores, *_ = academic_run.evaluate_policy(policy, tmp_path, settings)
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-4)
    assert max(sizes) > 2 >= sizes[-1]


def test_a_task_that_never_fits_is_error_rows_and_the_others_are_scored(
    data: dict[str, str], policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    def full(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(HFLM, "_model_generate", full)
    task = stage(data, policy_folder, tmp_path, tasks=["gsm8k", "truthfulqa_mc2"])
    outcome = academic_run.run(task)
    assert (outcome.rows, outcome.errors) == (9, 5)
    summary = json.loads((task.out / "summary.json").read_text())
    assert (summary["gsm8k"]["value"], summary["gsm8k"]["n"], summary["gsm8k"]["expected"]) == (
        None,
        0,
        5,
    )
    assert summary["truthfulqa_mc2"]["n"] == 4


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"metric": "f1"}, "cannot be scored by 'f1'"),
        ({"filter": "loose"}, "no filter 'loose'"),
        ({"task": "selm_nothing"}, "cannot load it"),
    ],
)
def test_wrong_entries_are_refused_with_what_there_is(
    data: dict[str, str], policy_folder: Path, tmp_path: Path, entry: dict[str, str], message: str
) -> None:
    settings = prepared(data, tmp_path, tasks=["truthfulqa_mc2"])
    file = tmp_path / "tasks.json"
    file.write_text(
        json.dumps({"truthfulqa_mc2": json.loads(file.read_text())["truthfulqa_mc2"] | entry})
    )
    with pytest.raises(HarnessError, match=message):
        academic_run.evaluate_policy(load_policy(policy_folder), tmp_path, settings)


def test_a_task_that_was_not_prepared_is_refused(
    data: dict[str, str], policy_folder: Path, tmp_path: Path
) -> None:
    settings = prepared(data, tmp_path, tasks=["truthfulqa_mc2"])
    with pytest.raises(HarnessError, match="has no task gsm8k"):
        academic_run.evaluate_policy(
            load_policy(policy_folder), tmp_path, settings.model_copy(update={"tasks": ["gsm8k"]})
        )


# --- any task by its lm-eval name ---------------------------------------------------------------

YES_NO = """
dataset_path: json
dataset_kwargs: {{data_files: {{{files}}}}}
output_type: multiple_choice
doc_to_text: "{{{{question}}}} It is"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list: {metrics}
task: mine
{more}
"""
SPLITS = {"train": "abcdef", "validation": "ghijkl", "test": "mnopqr"}


def own_task(
    folder: Path,
    metrics: str,
    shots: int = 0,
    splits: str = "train validation test",
    more: str = "",
    metrics_named: dict[str, str] | None = None,
) -> tuple[Any, Path]:
    """A task of six questions a split, as lm-eval would find it by its name."""
    (folder / "tasks").mkdir(parents=True)
    names = {split: f"mine_{split}.jsonl" for split in splits.split()}
    for split, name in names.items():
        rows = [
            {"question": f"Is {letter} odd?", "label": place % 2}
            for place, letter in enumerate(SPLITS[split])
        ]
        write(folder / "tasks" / name, rows)
    more += "".join(
        f"\n{key}_split: {split}" for key, split in SPLIT_KEYS.items() if split in names
    )
    files = ", ".join(f"{split}: {name}" for split, name in names.items())
    text = YES_NO.format(files=files, metrics=metrics, more=more)
    asks = asked(
        tasks=["mine"], shots={"mine": shots}, chat_template=False, metrics=metrics_named or {}
    )
    prepare(asks, folder / "tasks")
    (folder / "tasks" / "mine.yaml").write_text(text)
    return asks, folder / "tasks"


SPLIT_KEYS = {"training": "train", "validation": "validation", "test": "test"}
ACC = "{metric: acc, aggregation: mean, higher_is_better: true}"
F1 = "{metric: f1, aggregation: f1, higher_is_better: true}"
BRIER = "{metric: brier_score, aggregation: brier_score, higher_is_better: false}"
MCC = "{metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}"


@pytest.mark.parametrize(
    "metrics", [f"[{F1}, {BRIER}, {ACC}]", f"[{MCC}, {ACC}]", f"[{ACC}, {F1}]"]
)
def test_a_task_is_scored_by_its_first_mean_of_shares(
    metrics: str, policy_folder: Path, tmp_path: Path
) -> None:
    settings, folder = own_task(tmp_path, metrics)
    scores, _, summary, _ = academic_run.evaluate_policy(
        load_policy(policy_folder), folder, settings
    )
    assert summary["mine"]["metric"] == "acc"
    assert {score.value for score in scores} <= {0.0, 100.0}
    assert len(scores) == 6


@pytest.mark.parametrize(
    ("metrics", "named", "says"),
    [
        (f"[{F1}, {MCC}]", {}, "no one metric that is a mean of shares.*it has f1, mcc"),
        (f"[{BRIER}]", {}, "no one metric that is a mean of shares.*it has brier_score"),
        (f"[{ACC}, {F1}]", {"mine": "f1"}, "cannot be scored by 'f1'"),
        (f"[{ACC}]", {"mine": "acc_norm"}, "cannot be scored by 'acc_norm'.*it has acc"),
        (f"[{ACC}]", {"mine": "acc,strict"}, "no filter 'strict'"),
        (f"[{ACC}]", {"other": "acc"}, "academic.metrics names other"),
    ],
)
def test_a_task_without_a_share_asks_for_the_metrics_name(
    metrics: str, named: dict[str, str], says: str, policy_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError, match=says):
        settings, folder = own_task(tmp_path, metrics, metrics_named=named)
        academic_run.evaluate_policy(load_policy(policy_folder), folder, settings)


def test_nothing_outside_0_to_100_is_a_percentage(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain = (
        "def process_results(doc, results):\n"
        "    return {'gain': results[0][0] - results[1][0] - 7.0}\n"
    )
    metric = "{metric: gain, aggregation: mean, higher_is_better: true}"
    settings, folder = own_task(
        tmp_path, f"[{metric}]", more="process_results: !function gain_of_yes.process_results"
    )
    (tmp_path / "gain_of_yes.py").write_text(gain)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(HarnessError, match=r"metric 'gain' of item 0 is -.*no share from 0 to 1"):
        academic_run.evaluate_policy(load_policy(policy_folder), folder, settings)


@pytest.mark.parametrize(
    ("splits", "more"),
    [
        ("test", ""),
        ("validation", ""),
        ("train validation test", "fewshot_split: test"),
        ("train test", "fewshot_split: test\nfewshot_config: {sampler: first_n}"),
    ],
)
def test_shots_from_the_scored_items_are_refused(
    splits: str, more: str, policy_folder: Path, tmp_path: Path
) -> None:
    settings, folder = own_task(tmp_path, f"[{ACC}]", 4, splits, more)
    with pytest.raises(HarnessError, match="4 shots are asked for, and 0 of the 6 items"):
        academic_run.evaluate_policy(load_policy(policy_folder), folder, settings)


def test_more_shots_than_items_to_draw_from_are_refused(
    policy_folder: Path, tmp_path: Path
) -> None:
    settings, folder = own_task(tmp_path, f"[{ACC}]", 7)
    with pytest.raises(HarnessError, match=r"7 shots are asked for, and 6 of the 6 items"):
        academic_run.evaluate_policy(load_policy(policy_folder), folder, settings)


def test_no_prompt_shows_a_scored_item(policy_folder: Path, tmp_path: Path) -> None:
    settings, folder = own_task(tmp_path, f"[{ACC}]", 4)
    rows = read_rows(folder / "mine_train.jsonl")
    rows[:2] = read_rows(folder / "mine_test.jsonl")[:2]
    write(folder / "mine_train.jsonl", rows)
    (tmp_path / "copy").mkdir()
    entries = academic_run.task_entries(folder, ["mine"])
    columns, _ = academic_run.load_tasks(folder, entries, settings, tmp_path / "copy")
    (task,) = columns["mine"].values()
    academic_run.keep_shots_apart("mine", task)
    pool = {doc["question"] for doc in task.sampler.fewshot_docs()}
    assert pool == {f"Is {letter} odd?" for letter in "cdef"}
    task.set_fewshot_seed(1)
    for doc in task.eval_docs:
        assert task.fewshot_context(doc, 4).count(doc["question"]) == 1


def test_an_item_that_stands_twice_is_refused_whatever_its_id(
    data: dict[str, str], tmp_path: Path
) -> None:
    rows = [{"id": i, "question": f"What is {i % 3}?", "answer": "#### 1"} for i in range(4)]
    file = write(tmp_path / "gsm8k.jsonl", rows)
    with pytest.raises(HarnessError, match=r"gsm8k.jsonl: items 1 and 4 are the same"):
        prepared({"gsm8k": file}, tmp_path / "out")


GROUP = """
group: mine
task: [first, second]
aggregate_metric_list: [{{metric: {metric}, aggregation: mean, weight_by_size: {weighted}}}]
"""


@pytest.mark.parametrize(
    ("metric", "weighted", "value"),
    [("acc", True, 87.5), ("acc", False, 75.0), ("acc_norm", False, 25.0)],
)
def test_a_group_is_what_lm_eval_reports_of_it(
    metric: str, weighted: bool, value: float, policy_folder: Path, tmp_path: Path
) -> None:
    """Two items, of which one is right, and six that are all right by acc and wrong by acc_norm."""
    settings, folder = own_task(tmp_path, f"[{ACC}, {ACC.replace('acc,', 'acc_norm,')}]")
    text = (folder / "mine.yaml").read_text().replace('["yes", "no"]', '["y", "no, it is not"]')
    rows = [{"question": f"Is {i} odd?", "label": int(i == 1)} for i in range(8)]
    for name, mine in (("first", rows[:2]), ("second", rows[2:])):
        write(folder / f"mine_{name}.jsonl", mine)
        named = text.replace("task: mine", f"task: {name}").replace("mine_test", f"mine_{name}")
        (folder / f"{name}.yaml").write_text(named)
    (folder / "mine.yaml").write_text(GROUP.format(metric=metric, weighted=weighted))
    scores, samples, summary, _ = academic_run.evaluate_policy(
        load_policy(policy_folder), folder, settings
    )
    assert summary["mine"]["value"] == pytest.approx(value)
    assert statistics.fmean(score.value or 0.0 for score in scores) == pytest.approx(value)
    assert {sample["value"] for sample in samples} == {0.0, 100.0}
    kept = {"metric": metric, "filter": "none", "mean_of": "items" if weighted else "tasks"}
    assert summary["mine"].items() >= kept.items()
    # A task of the group may be a column of its own beside it.
    settings = asked(tasks=["mine", "second"], chat_template=False)
    prepare(settings, folder)
    (folder / "mine.yaml").write_text(GROUP.format(metric=metric, weighted=weighted))
    both, *_ = academic_run.evaluate_policy(
        load_policy(policy_folder), folder, settings, journals=tmp_path
    )
    assert [(one.benchmark, one.item) for one in both[8:]] == [("second", str(i)) for i in range(6)]


def test_items_that_share_a_passage_are_one_unit(policy_folder: Path, tmp_path: Path) -> None:
    settings, folder = own_task(tmp_path, f"[{ACC}]", splits="test")
    rows = read_rows(folder / "mine_test.jsonl")
    write(
        folder / "mine_test.jsonl", [row | {"passage": "abc"[i // 2]} for i, row in enumerate(rows)]
    )
    policy = load_policy(policy_folder)
    alone, *_ = academic_run.evaluate_policy(policy, folder, settings)
    assert [row.cluster for row in alone] == [row.item for row in alone] == list("012345")
    shared = settings.model_copy(update={"passages": {"mine": "passage"}})
    found, *_ = academic_run.evaluate_policy(policy, folder, shared)
    assert [(row.item, row.value) for row in found] == [(row.item, row.value) for row in alone]
    assert [[row.cluster for row in found].index(row.cluster) for row in found] == [
        0,
        0,
        2,
        2,
        4,
        4,
    ]
    wrong = settings.model_copy(update={"passages": {"mine": "text"}})
    with pytest.raises(HarnessError, match="an item has no field 'text'; it has question, label"):
        academic_run.evaluate_policy(policy, folder, wrong)


def test_the_passages_of_known_tasks_are_named_and_add_nothing_to_other_keys() -> None:
    generating = asked().model_dump(exclude=set(AcademicSettings.model_fields))
    own = {"drop": "a task of one's own.yaml"}
    for tasks, data, passages in (
        (["drop", "mmlu"], {}, {"drop": "passage"}),
        (["gsm8k"], {}, AcademicTask.later["passages"]),
        (["drop"], own, AcademicTask.later["passages"]),
    ):
        settings = AcademicSettings(tasks=tasks, data=data)
        told = SimpleNamespace(settings=settings, generating=generating)
        assert settle(told).passages == passages


def test_a_task_that_runs_what_a_model_writes_is_refused(
    policy_folder: Path, tmp_path: Path
) -> None:
    settings, folder = own_task(tmp_path, f"[{ACC}]", more="unsafe_code: true")
    with pytest.raises(HarnessError, match="mine: lm-eval marks it as unsafe"):
        academic_run.evaluate_policy(load_policy(policy_folder), folder, settings)


def test_a_task_of_ones_own_is_its_yaml_and_its_rows(policy_folder: Path, tmp_path: Path) -> None:
    _, folder = own_task(tmp_path, f"[{ACC}]")
    named = {"mine": folder / "mine.yaml"}
    named |= {f"mine:{split}": folder / f"mine_{split}.jsonl" for split in SPLITS}
    settings = asked(tasks=["mine"], data={key: str(path) for key, path in named.items()})
    prepare(settings, tmp_path / "out")
    scores, _, summary, _ = academic_run.evaluate_policy(
        load_policy(policy_folder), tmp_path / "out", settings
    )
    assert (len(scores), summary["mine"]["task"]) == (6, "mine")
    write(tmp_path / "out" / "mine_train.jsonl", [{"other": 1}])
    with pytest.raises(HarnessError, match="mine: lm-eval cannot load its data: Couldn't cast"):
        academic_run.evaluate_policy(load_policy(policy_folder), tmp_path / "out", settings)
    for changes, words in (
        ({"tasks": [str(folder / "mine.yaml")], "data": {}}, "academic.tasks names a file"),
        ({"data": {"mine": str(folder / "mine.yaml")}}, "local rows be named beside it as mine:"),
        ({"data": {"mine": str(folder / "mine_test.jsonl")}}, "should be an lm-eval YAML"),
    ):
        with pytest.raises(HarnessError, match=words):
            prepare(asked(**{"tasks": ["mine"]} | changes), tmp_path / "other")


# --- against the command line, on the public files ------------------------------------------------


def word_tokenizer(texts: list[str]) -> Any:
    """A byte-pair tokenizer of 1,500 tokens: public prompts with 25 shots stay short."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = tiny.CHATML
    return made


@pytest.mark.slow
def test_scores_equal_lm_evals_command_line_on_the_public_files(
    shared_data: Path, tmp_path: Path
) -> None:
    """The paper's shots, six items a task; the command line loads the checkpoint, the files and the
    packaged tasks by itself.
    """
    folder = shared_data / "academic"
    files = {column: str(folder / name) for column, name in FILES.items()}
    settings = asked(tasks=list(FILES), data=files, limit=6)
    prepare(settings, tmp_path / "academic")
    made = word_tokenizer(
        [row["question"] + row["answer"] for row in read_rows(folder / FILES["gsm8k"])]
    )
    checkpoint = tmp_path / "policy"
    tiny.model("llama", made, max_position_embeddings=8192).save_pretrained(checkpoint)
    made.save_pretrained(checkpoint)
    _, _, summary, cut = academic_run.evaluate_policy(
        load_policy(checkpoint), tmp_path / "academic", settings
    )
    assert cut[0] == 0
    assert {column: entry["shots"] for column, entry in summary.items()} == {
        column: paper.shots for column, paper in PAPER_TASKS.items()
    }

    (tmp_path / "yaml").mkdir()
    academic_run.materialise(tmp_path / "academic", tmp_path / "yaml")
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={checkpoint},dtype=float32",
    ]
    command += [
        "--tasks",
        ",".join(f"selm_{column}" for column in FILES),
        "--include_path",
        str(tmp_path / "yaml"),
        "--device",
        "cpu",
    ]
    command += [
        "--batch_size",
        "4",
        "--limit",
        "6",
        "--apply_chat_template",
        "--fewshot_as_multiturn",
        "true",
        "--gen_kwargs",
        "max_gen_toks=4",
    ]
    command += ["--output_path", str(tmp_path / "theirs")]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(written.read_text())["results"]
    for column, paper in PAPER_TASKS.items():
        published = theirs[f"selm_{column}"][f"{paper.metric},{paper.filter}"] * paper.scale
        assert summary[column]["value"] == pytest.approx(published, abs=1e-3), column


def test_the_yaml_written_here_includes_the_packaged_task(
    data: dict[str, str], tmp_path: Path
) -> None:
    prepared(data, tmp_path)
    written = yaml.safe_load((tmp_path / "gsm8k.yaml").read_text())
    assert (written["include"], written["num_fewshot"]) == ("lm_eval/tasks/gsm8k/gsm8k-cot.yaml", 2)
    assert written["dataset_kwargs"]["data_files"] == {"test": "gsm8k_test.jsonl"}


def test_the_pocket_worlds_six_tasks_run(tmp_path: Path) -> None:
    from harness.pocket import base, benchmarks

    made = base.build_tokenizer()
    tiny.model("llama", made).save_pretrained(tmp_path / "policy")
    made.save_pretrained(tmp_path / "policy")
    (tmp_path / "academic").mkdir()
    benchmarks.write_academic(0, 5, tmp_path / "academic")
    settings = asked(tasks=list(PAPER_TASKS), max_new_tokens=0)
    scores, samples, summary, cut = academic_run.evaluate_policy(
        load_policy(tmp_path / "policy"), tmp_path / "academic", settings
    )
    assert (len(scores), len(samples), cut[0]) == (30, 30, 0)
    assert {column: entry["n"] for column, entry in summary.items()} == dict.fromkeys(
        PAPER_TASKS, 5
    )
    assert all(
        score.value is not None and 0 <= score.value <= 100
        for score in scores
        if score.benchmark != "eq_bench"
    )
