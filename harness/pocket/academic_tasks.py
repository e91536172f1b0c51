"""Six lm-eval tasks over local JSONL files, one in each of the forms of gsm8k, hellaswag,
arc_challenge, truthfulqa_mc2, eq_bench, openbookqa.

Rows have the columns of the real data sets; scoring is lm-eval's own (TruthfulQA's and EQ-Bench's
functions are named in the YAML from the installed package). File names in the YAML are relative to
the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
    right = language.solve(task)
    contents = [right, *language.near_misses(task)]
    for wrong in language.wrong_contents(task):
        if wrong not in contents:
            contents.append(wrong)
            break
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


_MULTIPLE_CHOICE = """output_type: multiple_choice
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
_TRAIN = "training_split: train\nfewshot_split: train\n"
_LETTERED = (
    'doc_to_target: "{{choices.label.index(answerKey)}}"\ndoc_to_choice: "{{choices.text}}"\n'
)
YAML = {
    "gsm8k": """output_type: generate_until
training_split: train
fewshot_split: train
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore:
      - "[^0-9]+$"
      - "(?s).*[^0-9](?=[0-9])"
generation_kwargs:
  until: ["<|end|>"]
  do_sample: false
  max_gen_toks: 24
filter_list:
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "[0-9]+"
      - function: take_first
""",
    "hellaswag": _MULTIPLE_CHOICE
    + _TRAIN
    + 'doc_to_text: "{{query}}"\ndoc_to_target: "{{label}}"\ndoc_to_choice: "{{choices}}"\n',
    "arc_challenge": _MULTIPLE_CHOICE + _TRAIN + 'doc_to_text: "{{question}}"\n' + _LETTERED,
    "truthfulqa_mc2": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: "{{mc2_targets.choices}}"
process_results: !function lm_eval.tasks.truthfulqa.utils.process_results_mc2
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "eq_bench": """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{reference_answer_fullscale}}"
process_results: !function lm_eval.tasks.eq_bench.utils.calculate_score_fullscale
generation_kwargs:
  until: ["<|end|>"]
  do_sample: false
  max_gen_toks: 24
metric_list:
  - metric: eqbench
    aggregation: mean
    higher_is_better: true
  - metric: percent_parseable
    aggregation: mean
    higher_is_better: true
""",
    "openbookqa": _MULTIPLE_CHOICE + _TRAIN + 'doc_to_text: "{{question_stem}}"\n' + _LETTERED,
}
"""What each task does, apart from its name, files and shots."""


Convert = Callable[[language.Task, str, np.random.Generator], Row]
FORMS: dict[str, tuple[tuple[str, ...], Convert, str, str, int, float]] = {
    "gsm8k": (("steps",), _gsm8k, "exact_match", "flexible-extract", 2, 100.0),
    "hellaswag": (
        ("echo", "drop", "swap", "rotate", "sort"),
        _hellaswag,
        "acc_norm",
        "none",
        2,
        100.0,
    ),
    "arc_challenge": (
        ("tallest", "shortest", "earliest", "latest", "next", "add"),
        _arc,
        "acc_norm",
        "none",
        2,
        100.0,
    ),
    "truthfulqa_mc2": (("odd", "count", "larger", "pick"), _truthfulqa, "acc", "none", 0, 100.0),
    "eq_bench": (("moods",), _eq_bench, "eqbench", "none", 0, 1.0),
    "openbookqa": (("kind", "odd", "keep"), _openbookqa, "acc", "none", 2, 100.0),
}
"""Column: operations asked, row form, metric, filter, shots, factor from lm-eval's value to
percent.
"""


def write(folder: Path, rng: np.random.Generator, limit: int = 0) -> int:
    """Write tasks.json, <column>.yaml and <column>_<split>.jsonl into ``folder``; returns the
    number of items.
    """
    tasks: dict[str, Mapping[str, Any]] = {}
    count = 0
    for column, (ops, convert, metric, chosen, shots, scale) in FORMS.items():
        splits = {"test": _rows(ops, convert, rng, "benchmark", limit or ITEMS)}
        if shots:
            splits["train"] = _rows(ops, convert, rng, "train", SHOTS_POOL)
        for split, rows in splits.items():
            write_jsonl(folder / f"{column}_{split}.jsonl", rows)
        files = "".join(f"    {split}: {column}_{split}.jsonl\n" for split in splits)
        head = f"task: pocket_{column}\ndataset_path: json\ndataset_name: null\n"
        head += f"dataset_kwargs:\n  data_files:\n{files}"
        head += f"test_split: test\nnum_fewshot: {shots}\n"
        text = head + YAML[column] + "metadata:\n  version: 1.0\n"
        (folder / f"{column}.yaml").write_text(text, encoding="utf-8")
        name = f"pocket_{column}"
        tasks[column] = {
            "task": name,
            "lm_eval_task": name,
            "metric": metric,
            "filter": chosen,
            "shots": shots,
            "scale": scale,
            "source": "pocket",
            "file": f"{column}.yaml",
            "items": len(splits["test"]),
        }
        count += len(splits["test"])
    text = json.dumps(tasks, indent=1, sort_keys=True) + "\n"
    (folder / "tasks.json").write_text(text, encoding="utf-8")
    return count


def _rows(
    ops: tuple[str, ...],
    convert: Convert,
    rng: np.random.Generator,
    split: language.Split,
    count: int,
) -> list[Row]:
    """``count`` rows with distinct prompts, the operations in turn; the 32 'kind' facts come from
    the train split (an open book).
    """
    rows: list[Row] = []
    seen: set[str] = set()
    for _ in range(1000 * count):
        if len(rows) == count:
            return rows
        op = ops[len(rows) % len(ops)]
        task = language.sample_operation(op, rng, "train" if op == "kind" else split)
        question = language.render(task, rng)
        if question not in seen:
            seen.add(question)
            rows.append({"id": f"{split}-{len(rows)}", **convert(task, question, rng)})
    raise HarnessError(
        f"split {split!r} has fewer than {count} distinct prompts for {', '.join(ops)}; ask for "
        "fewer academic items"
    )
