"""IFBench: kinds of instruction that IFEval has not, checked by its owners' code without a judge.

Pyatkin et al. 2025, arXiv 2507.02833. The prompts of allenai/IFBench are given by path; the
checkers are the owners', as the package if-verifiable (extra ``ifbench``) holds them. A thought
that ends in ``</think>`` is no part of an answer there. Metrics as of IFEval.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.evaluate import ifeval
from harness.evaluate.libraries import ifbench
from harness.records import StageOutcome, StageTask, write_jsonl
from harness.study.sections import Positive
from harness.study.tasks import Nothing

NAME = "ifbench"
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
    """The prompts, checked. Raises HarnessError also without the checkers or their data."""
    rows = ifeval.read_prompts(settings, NAME, ifbench().INSTRUCTION_DICT)
    ifeval.need_data(NAME, DATA)
    out.mkdir(parents=True, exist_ok=True)
    return {"expected": write_jsonl(out / "questions.jsonl", rows)}


def run(task: StageTask[Nothing]) -> StageOutcome:
    """Stage ``ifbench``: one score row a prompt, and one an instruction (cluster: its prompt)."""
    return ifeval.score(task, NAME, "1", check)


def check(row: Mapping[str, Any], said: str) -> Mapping[str, Any]:
    """What an answer meets, strictly and loosely; an empty one meets nothing."""
    kinds, registry = row["instruction_id_list"], ifbench()
    each, _ = registry.common.evaluate_instructions(
        said, kinds, row["kwargs"], row["question"], registry.INSTRUCTION_DICT
    )
    found: dict[str, Any] = {}
    for name in ("strict", "loose"):
        met = [getattr(one, f"{name}_pass") for one in each] or [False] * len(kinds)
        found |= {f"prompt_level_{name}_acc": all(met), f"inst_level_{name}_acc": met}
    return found


BENCHMARK = ifeval.checked(NAME, "IFBench", 300, IFBenchSettings, prepare)
