"""Six lm-eval tasks over local JSONL files, one in each of the forms of gsm8k, hellaswag,
arc_challenge, truthfulqa_mc2, eq_bench, openbookqa.

Rows have the columns of the real data sets; scoring is lm-eval's own (TruthfulQA's and EQ-Bench's
functions are named in the YAML from the installed package). File names in the YAML are relative to
the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluate.academic import scale_of
from harness.pocket import language, wordings
from harness.records import HarnessError, write_jsonl

ITEMS = 60
"""Items of a task; the standard error of a share is at most 6.5 points (0.5 / sqrt(60))."""
SHOTS_POOL = 12
"""Rows of the train split from which lm-eval draws its shots."""
_STYLE = {style.name: style for style in wordings.STYLES}
Row = dict[str, Any]


def _word_choices(
    task: language.Task, rng: np.random.Generator, style: str
) -> tuple[list[str], int]:
    """Four answers in one style, shuffled, and the place of the right one."""
    contents = [language.solve(task), *islice(language.wrong_contents(task), 3)]
    order = [int(i) for i in rng.permutation(len(contents))]
    return [_STYLE[style].render(contents[i]) for i in order], order.index(0)


def _lettered(choices: list[str], right: int) -> Row:
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    return {"choices": {"text": choices, "label": letters}, "answerKey": letters[right]}


def _gsm8k(task: language.Task, question: str, _: np.random.Generator) -> Row:
    return {"question": question, "answer": _STYLE["sentence"].render(language.solve(task))}


def _hellaswag(task: language.Task, question: str, rng: np.random.Generator) -> Row:
    choices, right = _word_choices(task, rng, "sentence")
    return {"query": question, "choices": choices, "label": right}


def _arc(task: language.Task, question: str, rng: np.random.Generator) -> Row:
    return {"question": question, **_lettered(*_word_choices(task, rng, "plain"))}


def _openbookqa(task: language.Task, question: str, rng: np.random.Generator) -> Row:
    return {"question_stem": question, **_lettered(*_word_choices(task, rng, "plain"))}


def _truthfulqa(task: language.Task, question: str, _: np.random.Generator) -> Row:
    """True answers in two styles, misconceptions (near misses) in the same two."""
    contents = [(language.solve(task), 1), *((wrong, 0) for wrong in language.near_misses(task))]
    answers = [
        (_STYLE[style].render(content), label)
        for content, label in contents
        for style in ("plain", "sentence")
    ]
    answers.sort(key=lambda answer: -answer[1])
    one = answers[:1] + [answer for answer in answers if not answer[1]]
    return {"question": question, "mc1_targets": _targets(one), "mc2_targets": _targets(answers)}


def _targets(answers: list[tuple[str, int]]) -> Row:
    return {"choices": [text for text, _ in answers], "labels": [label for _, label in answers]}


def _eq_bench(task: language.Task, question: str, _: np.random.Generator) -> Row:
    answer = language.solve(task)
    reference: dict[str, str] = {}
    for place, (mood, strength) in enumerate(zip(answer[::2], answer[1::2], strict=True), 1):
        reference |= {f"emotion{place}": mood.removesuffix(":"), f"emotion{place}_score": strength}
    return {"prompt": question, "reference_answer_fullscale": repr(reference)}


def _metrics(*names: str) -> str:
    rows = (f"  - metric: {m}\n    aggregation: mean\n    higher_is_better: true\n" for m in names)
    return "metric_list:\n" + "".join(rows)


_TRAIN = "training_split: train\nfewshot_split: train\n"
_CHOICE = "output_type: multiple_choice\n"
_CHOICES = _CHOICE + _metrics("acc", "acc_norm") + _TRAIN
_LETTERED = (
    'doc_to_target: "{{choices.label.index(answerKey)}}"\ndoc_to_choice: "{{choices.text}}"\n'
)
_GENERATE = """generation_kwargs:
  until: ["<|end|>"]
  do_sample: false
  max_gen_toks: 24
"""
_GSM8K = f"""output_type: generate_until
{_TRAIN}doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{_metrics("exact_match")}    regexes_to_ignore:
      - "[^0-9]+$"
      - "(?s).*[^0-9](?=[0-9])"
{_GENERATE}filter_list:
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "[0-9]+"
      - function: take_first
"""
_HELLASWAG = 'doc_to_text: "{{query}}"\ndoc_to_target: "{{label}}"\ndoc_to_choice: "{{choices}}"\n'
_TRUTHFULQA = f"""{_CHOICE}doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: "{{{{mc2_targets.choices}}}}"
process_results: !function lm_eval.tasks.truthfulqa.utils.process_results_mc2
{_metrics("acc")}"""
_EQ_BENCH = f"""output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{reference_answer_fullscale}}}}"
process_results: !function lm_eval.tasks.eq_bench.utils.calculate_score_fullscale
{_GENERATE}{_metrics("eqbench", "percent_parseable")}"""


@dataclass(frozen=True)
class Form:
    """ops: operations asked. row: a task as the data set's row. yaml: what the task does, apart
    from its name, files and shots.
    """

    ops: tuple[str, ...]
    row: Callable[[language.Task, str, np.random.Generator], Row]
    yaml: str
    metric: str
    shots: int = 2
    filter: str = "none"


_LISTS = ("echo", "drop", "swap", "rotate", "sort")
_FACTS = ("tallest", "shortest", "earliest", "latest", "next", "add")
_ARC = _CHOICES + 'doc_to_text: "{{question}}"\n' + _LETTERED
_OPEN = _CHOICES + 'doc_to_text: "{{question_stem}}"\n' + _LETTERED
FORMS = {
    "gsm8k": Form(("steps",), _gsm8k, _GSM8K, "exact_match", filter="flexible-extract"),
    "hellaswag": Form(_LISTS, _hellaswag, _CHOICES + _HELLASWAG, "acc_norm"),
    "arc_challenge": Form(_FACTS, _arc, _ARC, "acc_norm"),
    "truthfulqa_mc2": Form(
        ("odd", "count", "larger", "pick"), _truthfulqa, _TRUTHFULQA, "acc", shots=0
    ),
    "eq_bench": Form(("moods",), _eq_bench, _EQ_BENCH, "eqbench", shots=0),
    "openbookqa": Form(("kind", "odd", "keep"), _openbookqa, _OPEN, "acc"),
}


def write(folder: Path, rng: np.random.Generator, limit: int = 0) -> int:
    """Write tasks.json, <column>.yaml and <column>_<split>.jsonl into ``folder``; returns the
    number of items.
    """
    tasks: dict[str, Row] = {}
    for column, form in FORMS.items():
        splits = {"test": _rows(form, rng, "benchmark", limit or ITEMS)}
        if form.shots:
            splits["train"] = _rows(form, rng, "train", SHOTS_POOL)
        for split, rows in splits.items():
            write_jsonl(folder / f"{column}_{split}.jsonl", rows)
        files = "".join(f"    {split}: {column}_{split}.jsonl\n" for split in splits)
        head = f"task: pocket_{column}\ndataset_path: json\ndataset_name: null\n"
        head += f"dataset_kwargs:\n  data_files:\n{files}"
        head += f"test_split: test\nnum_fewshot: {form.shots}\n"
        text = head + form.yaml + "metadata:\n  version: 1.0\n"
        (folder / f"{column}.yaml").write_text(text, encoding="utf-8")
        tasks[column] = dict.fromkeys(("task", "lm_eval_task"), f"pocket_{column}")
        tasks[column] |= {"metric": form.metric, "filter": form.filter, "shots": form.shots}
        tasks[column] |= {"scale": scale_of(form.metric), "source": "pocket"}
        tasks[column] |= {"file": f"{column}.yaml", "items": len(splits["test"])}
    text = json.dumps(tasks, indent=1, sort_keys=True) + "\n"
    (folder / "tasks.json").write_text(text, encoding="utf-8")
    return sum(task["items"] for task in tasks.values())


def _rows(form: Form, rng: np.random.Generator, split: language.Split, count: int) -> list[Row]:
    """``count`` rows with distinct prompts, the operations in turn; the 32 'kind' facts come from
    the train split (an open book).
    """
    rows: list[Row] = []
    seen: set[str] = set()
    for _ in range(1000 * count):
        if len(rows) == count:
            return rows
        op = form.ops[len(rows) % len(form.ops)]
        task = language.sample_operation(op, rng, "train" if op == "kind" else split)
        question = language.render(task, rng)
        if question not in seen:
            seen.add(question)
            rows.append({"id": f"{split}-{len(rows)}", **form.row(task, question, rng)})
    raise HarnessError(
        f"split {split!r} has fewer than {count} distinct prompts for {', '.join(form.ops)}; ask "
        "for fewer academic items"
    )
