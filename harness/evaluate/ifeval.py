"""IFEval: instructions whose fulfilment lm-eval's own code checks, without a judge.

Zhou et al. 2023, arXiv 2311.07911. Strict and loose accuracy of prompts (all instructions of one
met) and of instructions; loose ignores asterisks and a first or last line, as the paper does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field

from harness.evaluate import benchmark
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
    """The prompts, checked. Raises HarnessError also where a checker lacks its data."""
    rows = read_prompts(settings, NAME, ifeval().INSTRUCTION_DICT)
    asked = {kind for row in rows for kind in row["instruction_id_list"]}
    if asked & set(SENTENCES):
        need_data(NAME, {"punkt_tab": "tokenizers"})
    out.mkdir(parents=True, exist_ok=True)
    return {"expected": write_jsonl(out / "questions.jsonl", rows)}


class _Prompt(benchmark.Form):
    key: int | str
    prompt: Annotated[str, Field(min_length=1)]
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any] | None]


def read_prompts(settings: Any, name: str, known: Container[str]) -> list[dict[str, Any]]:
    """Rows of the file of a section's ``questions``, up to the section's limit."""
    path = benchmark.given_file(settings, name, "questions")
    rows = []
    for number, row in enumerate(benchmark.checked(benchmark.read_rows(path), _Prompt, path), 1):
        kinds, options = row["instruction_id_list"], [one or {} for one in row["kwargs"]]
        unknown = sorted(kind for kind in kinds if kind not in known)
        if unknown or len(kinds) != len(options):
            wrong = f"unknown instruction {unknown[0]}" if unknown else "not one kwargs for each"
            raise HarnessError(f"{path}: row {number}: {wrong}")
        named = {"id": str(row["key"]), "question": row["prompt"], "kwargs": options}
        rows.append(named | {"instruction_id_list": kinds})
    if not rows:
        raise HarnessError(f"{path}: holds no prompt")
    benchmark.by_key(rows, "id", path)
    return rows[: settings.limit or None]


def need_data(benchmark_name: str, data: Mapping[str, str]) -> None:
    """Raise HarnessError where NLTK does not find its data of some names. data: name → folder."""
    nltk, absent = importlib.import_module("nltk"), []
    for name, folder in data.items():
        try:
            nltk.data.find(f"{folder}/{name}")
        except LookupError:
            absent.append(name)
    if absent:
        raise HarnessError(
            f"{benchmark_name}'s checkers need NLTK's data: run `python -m nltk.downloader "
            f"{' '.join(absent)}` where there is a network"
        )


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


# -- the record ------------------------------------------------------------------------------------
def checked(
    name: str,
    title: str,
    items: int,
    settings: type[IFEvalSettings],
    prepare: Callable[[Any, Path], Mapping[str, Any]],
) -> benchmark.Benchmark:
    """A benchmark of so many prompts with checked instructions: shares of both, in percent."""
    measures = [
        benchmark.Measure(name, metric, title, "percent", 1, scale=benchmark.PERCENT, table=name)
        for metric, title in METRICS.items()
    ]

    def asked(count: benchmark.Counting, task: AnswerTask) -> Work:
        length = min(count.lengths.answer, task.answers[name].max_new_tokens)
        return benchmark.asked_work(count.limit(name, items), length, f"{title} prompts")

    return benchmark.Benchmark(
        name,
        title,
        settings=settings,
        stage=name,
        run=f"harness.evaluate.{name}:run",
        task=Nothing,
        settle=lambda _asked: Nothing(),
        measures=lambda _evaluation: measures,
        inputs=("answer",),
        work=lambda _count, _task: Work(rows=1),
        questions=lambda task: benchmark.QuestionRows(name, task),
        answers=lambda given: Answers(max_new_tokens=given.max_new_tokens, temperature=0.0),
        asked=asked,
        files=("questions",),
        prepare=prepare,
        pocket="harness.evaluate.ifeval:write_pocket",
        samples=benchmark.Samples(f"{name}.jsonl", "prompt_level_strict_acc", "all met"),
    )


BENCHMARK = checked(NAME, "IFEval", 541, IFEvalSettings, prepare)
