"""IFBench: kinds of instruction that IFEval has not, checked by its owners' code without a judge.

Pyatkin et al. 2025, arXiv 2507.02833. The prompts of allenai/IFBench are given by path; the
checkers are the owners', as the package if-verifiable (extra ``ifbench``) holds them. A thought
that ends in ``</think>`` is no part of an answer there. Metrics as of IFEval.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.evaluate import benchmark, ifeval
from harness.evaluate.libraries import ifbench
from harness.records import HarnessError, StageOutcome, StageTask, write_jsonl
from harness.study.sections import Positive
from harness.study.tasks import Answers, AnswerTask, Nothing
from harness.study.work import Work

NAME = "ifbench"
ITEMS = 300
DATA = {
    "punkt_tab": "tokenizers",
    "stopwords": "corpora",
    "averaged_perceptron_tagger_eng": "taggers",
}
"""NLTK's data that the checkers read, and where it lies."""


class IFBenchSettings(ifeval.IFEvalSettings):
    max_new_tokens: Positive = 4096
    """Tokens of an answer."""


def prepare(settings: IFBenchSettings, out: Path) -> Mapping[str, Any]:
    """The prompts, for every checkpoint alike. Raises HarnessError for rows of another form,
    unknown instructions, and without the checkers or their data.
    """
    path, rows = ifeval.read_prompts(settings, NAME, ifbench().INSTRUCTION_DICT)
    absent = [name for name, folder in DATA.items() if not ifeval.has_data(f"{folder}/{name}")]
    if absent:
        raise HarnessError(
            f"{path}: IFBench's checkers need NLTK's data: run `python -m nltk.downloader "
            f"{' '.join(absent)}` where there is a network"
        )
    out.mkdir(parents=True, exist_ok=True)
    return {"expected": write_jsonl(out / "questions.jsonl", rows)}


def run(task: StageTask[Nothing]) -> StageOutcome:
    """Stage ``ifbench``: one score row a prompt, and one an instruction (cluster: its prompt)."""
    return ifeval.score(task, NAME, "1", check)


def check(row: Mapping[str, Any], said: str) -> Mapping[str, Any]:
    """What an answer meets, strictly and loosely; an empty one meets nothing."""
    kinds, options = row["instruction_id_list"], row["kwargs"]
    registry = ifbench()
    each, _ = registry.common.evaluate_instructions(
        said, kinds, options, row["question"], registry.INSTRUCTION_DICT
    )
    strict = [one.strict_pass for one in each] or [False] * len(kinds)
    loose = [one.loose_pass for one in each] or [False] * len(kinds)
    return {
        "prompt_level_strict_acc": all(strict),
        "inst_level_strict_acc": strict,
        "prompt_level_loose_acc": all(loose),
        "inst_level_loose_acc": loose,
    }


def asked(count: benchmark.Counting, task: AnswerTask) -> Work:
    """One answer a prompt."""
    length = min(count.lengths.answer, task.answers[NAME].max_new_tokens)
    return benchmark.asked_work(count.limit(NAME, ITEMS), length, "IFBench prompts")


BENCHMARK = benchmark.Benchmark(
    NAME,
    "IFBench",
    settings=IFBenchSettings,
    stage=NAME,
    run="harness.evaluate.ifbench:run",
    task=Nothing,
    settle=lambda _asked: Nothing(),
    measures=lambda _evaluation: ifeval.measures(NAME),
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
