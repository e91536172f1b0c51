"""IFEval: instructions whose fulfilment lm-eval's own code checks, without a judge.

Zhou et al. 2023, arXiv 2311.07911. Strict and loose accuracy of prompts (all instructions of one
met) and of instructions; loose ignores asterisks and a first or last line, as the paper does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from harness.evaluate import benchmark
from harness.evaluate.academic import read_rows
from harness.evaluate.libraries import ifeval
from harness.records import (
    HarnessError,
    Score,
    StageOutcome,
    StageTask,
    Status,
    content_hash,
    read_jsonl,
    write_jsonl,
)
from harness.study.sections import NonNegative, Positive, Section
from harness.study.tasks import Answers, AnswerTask, Nothing
from harness.study.work import Work

NAME = "ifeval"
ITEMS = 541
READ = ("ok", "truncated")
SENTENCES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Kinds whose checkers need NLTK's punkt_tab."""
METRICS = {
    "prompt_level_strict_acc": "prompts, strict",
    "inst_level_strict_acc": "instructions, strict",
    "prompt_level_loose_acc": "prompts, loose",
    "inst_level_loose_acc": "instructions, loose",
}
"""lm-eval's names, and what they count."""


class IFEvalSettings(Section):
    questions: str = ""
    """The owners' JSONL: key, prompt, instruction_id_list, kwargs."""
    limit: NonNegative = 0
    """Prompts: the first so many; 0: all."""
    max_new_tokens: Positive = 1280
    """Tokens of an answer."""


def prepare(settings: IFEvalSettings, out: Path) -> Mapping[str, Any]:
    """The user's prompts, for every checkpoint alike. Raises HarnessError for rows of another form,
    unknown instructions, and instructions whose checker lacks its data.
    """
    path, rows = read_prompts(settings, NAME, ifeval().INSTRUCTION_DICT)
    asked = {kind for row in rows for kind in row["instruction_id_list"]}
    if asked & set(SENTENCES) and not has_data("tokenizers/punkt_tab"):
        raise HarnessError(
            f"{path}: instructions that count sentences or capital words need NLTK's data: run "
            "`python -m nltk.downloader punkt_tab` where there is a network"
        )
    out.mkdir(parents=True, exist_ok=True)
    return {"expected": write_jsonl(out / "questions.jsonl", rows)}


def read_prompts(
    settings: Any, name: str, known: Container[str]
) -> tuple[Path, list[dict[str, Any]]]:
    """The file of a section's ``questions`` and its rows, up to the section's limit."""
    path = benchmark.given_file(settings, name, "questions")
    rows = [_row(row, known, f"{path}, item {n}") for n, row in enumerate(read_rows(path), 1)]
    benchmark.by_key(rows, "id", path)
    return path, rows[: settings.limit or None]


def _row(row: Any, known: Container[str], place: str) -> dict[str, Any]:
    told = row if isinstance(row, dict) else {}
    kinds, options = told.get("instruction_id_list"), told.get("kwargs")
    asked = told.get("prompt") and "key" in told
    if not (asked and isinstance(kinds, list) and isinstance(options, list)):
        raise HarnessError(
            f"{place}: wants key, prompt and the lists instruction_id_list and kwargs; has: "
            f"{', '.join(told)}"
        )
    options = [one or {} for one in options]
    unknown = sorted(kind for kind in kinds if kind not in known)
    if unknown or len(kinds) != len(options):
        wrong = f"unknown instruction {unknown[0]}" if unknown else "not one kwargs an instruction"
        raise HarnessError(f"{place}: {wrong}")
    named = {"id": str(row["key"]), "question": row["prompt"], "kwargs": options}
    return named | {"instruction_id_list": kinds}


def has_data(resource: str) -> bool:
    """Whether NLTK finds its data of a name."""
    data = importlib.import_module("nltk").data
    try:
        data.find(resource)
    except LookupError:
        return False
    return True


def write_pocket(_seed: int, _limit: int, _folder: Path) -> NoReturn:
    """Raises HarnessError: the pocket world's language has no such instructions."""
    raise HarnessError(
        "ifeval and ifbench ask real questions, which a pocket model does not speak; leave them "
        "out of evaluation.benchmarks"
    )


Check = Callable[[Mapping[str, Any], str], Mapping[str, Any]]
"""(row, answer) → what is met, by lm-eval's names: of the prompt, or a list by instruction."""


def run(task: StageTask[Nothing]) -> StageOutcome:
    """Stage ``ifeval``: one score row a prompt, and one an instruction (cluster: its prompt)."""
    return score(task, NAME, "4", _check)


def _check(row: Mapping[str, Any], said: str) -> Mapping[str, Any]:
    doc = {"key": 0, "prompt": row["question"], "kwargs": row["kwargs"]}
    doc |= {"instruction_id_list": row["instruction_id_list"]}
    found: Mapping[str, Any] = ifeval().utils.process_results(doc, [said])
    return found


def score(task: StageTask[Nothing], name: str, version: str, check: Check) -> StageOutcome:
    """Score rows of the answers to a benchmark of checked instructions."""
    rows = list(read_jsonl(task.inputs["answer"] / f"{name}.jsonl"))
    scores = [one for row in rows for one in _scores(row, name, version, check)]
    known: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for one in scores:
        if one.value is not None:
            known[one.metric].append(one.value)
    means = {metric: benchmark.mean(values) for metric, values in known.items()}
    return benchmark.finish(task, scores, means, primary="prompt_level_strict_acc")


def _scores(row: Mapping[str, Any], name: str, version: str, check: Check) -> Iterator[Score]:
    """An empty answer meets nothing; one that is missing has no value."""
    key, said = row["id"], row["output"]
    status: Status = row["status"]
    found = check(row, said) if status in READ else {}
    source = content_hash(row["question"], said, length=16)
    for metric in METRICS:
        parts = row["instruction_id_list"] if metric.startswith("inst") else [""]
        for place in range(len(parts)):
            value = None
            if found:
                met = found[metric]
                value = 100.0 * bool(met[place] if isinstance(met, list) else met)
            item = f"{key}#{place}" if metric.startswith("inst") else key
            kept: Status = "ok" if found else status
            yield Score(name, version, item, key, metric, value, kept, source=source)


def measures(name: str) -> list[benchmark.Measure]:
    """Shares of prompts and of instructions, in percent."""
    return [
        benchmark.Measure(name, metric, title, "percent", 1, scale=benchmark.PERCENT, table=name)
        for metric, title in METRICS.items()
    ]


def asked(count: benchmark.Counting, task: AnswerTask) -> Work:
    """One answer a prompt."""
    length = min(count.lengths.answer, task.answers[NAME].max_new_tokens)
    return benchmark.asked_work(count.limit(NAME, ITEMS), length, "IFEval prompts")


BENCHMARK = benchmark.Benchmark(
    NAME,
    "IFEval",
    settings=IFEvalSettings,
    stage=NAME,
    run="harness.evaluate.ifeval:run",
    task=Nothing,
    settle=lambda _asked: Nothing(),
    measures=lambda _evaluation: measures(NAME),
    inputs=("answer",),
    work=lambda _count, _task: Work(rows=1),
    questions=lambda task: benchmark.QuestionRows(NAME, task),
    answers=lambda settings: Answers(max_new_tokens=settings.max_new_tokens, temperature=0.0),
    asked=asked,
    files=("questions",),
    prepare=prepare,
    pocket="harness.evaluate.ifeval:write_pocket",
    samples=benchmark.Samples(f"{NAME}.jsonl", "prompt_level_strict_acc", "all met"),
)
