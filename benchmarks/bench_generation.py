"""MT-Bench answers of a pocket checkpoint: ours against FastChat's own sequential loop, on the same
model. Writes ``generation.json``.

    python -m benchmarks.bench_generation [--rounds 3] [--questions 80] [--store results/store]

FastChat's ``get_model_answers`` runs as installed; adapted are its model loading (the same weights,
already in memory), its GPU call (``.cuda()`` stays on the CPU) and the conversation template (the
checkpoint's own). Both arms write their answer files; rounds take turns. Expected: at least 5 times
as fast, and the same text wherever the temperature is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import timed, write
from harness.engine.execute import Inline, execute
from harness.engine.launch import prepare
from harness.engine.store import Store
from harness.evaluate import mt_bench
from harness.model.policy import Policy, load_policy
from harness.model.tokenizer import render
from harness.pocket import benchmarks as pocket
from harness.records import StageTask, read_jsonl, write_jsonl
from harness.stages import answer
from harness.study.tasks import Answers, AnswerTask, Runtime

STUDY = Path("ablations/smoke.yaml")
MAX_NEW_TOKENS = 24
"""As in the pocket recipe; both arms."""


class Conversation:
    """FastChat's conversation interface over the checkpoint's own chat template."""

    name, roles, stop_str, stop_token_ids = "own", ("user", "assistant"), None, None

    def __init__(self, policy: Policy) -> None:
        self.policy, self.messages = policy, []  # type: ignore[var-annotated]
        self.stop_token_ids = list(policy.stop_token_ids)

    def append_message(self, role: str, text: str | None) -> None:
        self.messages.append([role, text])

    def update_last_message(self, text: str) -> None:
        self.messages[-1][1] = text

    def get_prompt(self) -> str:
        turns = [
            {"role": role, "content": text} for role, text in self.messages if text is not None
        ]
        return render(self.policy.tokenizer, turns, generation=True)


@contextlib.contextmanager
def fastchat_loop(policy: Policy) -> Iterator[Any]:
    """FastChat's module with loading, GPU call and template adapted; its output swallowed."""
    from fastchat.llm_judge import gen_model_answer as module

    kept = (module.load_model, module.get_conversation_template, module.tqdm, torch.Tensor.cuda)
    module.load_model = lambda *_args, **_kwargs: (policy.model, policy.tokenizer)
    module.get_conversation_template = lambda _model_id: Conversation(policy)
    module.tqdm = lambda questions: questions
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign,assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield module
    finally:
        module.load_model, module.get_conversation_template, module.tqdm, torch.Tensor.cuda = kept  # type: ignore[method-assign]


def sequential(policy: Policy, questions: list[dict[str, Any]], out: Path) -> dict[int, list[str]]:
    """FastChat's answers: one prompt after another."""
    with fastchat_loop(policy) as module:
        names: dict[str, Any] = {
            "model_path": "own",
            "model_id": "own",
            "revision": "main",
            "dtype": None,
        }
        counts = {"num_choices": 1, "num_gpus_per_model": 1, "max_gpu_memory": None}
        names |= {"answer_file": str(out / "fastchat.jsonl"), "questions": questions}
        module.get_model_answers(max_new_token=MAX_NEW_TOKENS, **names, **counts)
    return turns(out / "fastchat.jsonl")


def ours(folder: Path, benchmarks: Path, out: Path) -> dict[int, list[str]]:
    """The answers of stage ``answer``."""
    settings = AnswerTask(
        threads=torch.get_num_threads(),
        dtype="float32",
        attention="sdpa",
        generation_batch=80,
        seed=0,
        iteration=0,
        sets=["mt_bench"],
        answers={"mt_bench": Answers(max_new_tokens=MAX_NEW_TOKENS)},
        heldout_samples=1,
        heldout_max_new_tokens=MAX_NEW_TOKENS,
        max_prompt_length=4096,
    )
    inputs = {"policy": folder, "benchmarks": benchmarks}
    answer.run(StageTask("k", "answer", settings, inputs, out, Runtime()))
    return turns(out / "mt_bench.jsonl")


def turns(path: Path) -> dict[int, list[str]]:
    return {row["question_id"]: row["choices"][0]["turns"] for row in read_jsonl(path)}


def checkpoint(store: Store) -> Path:
    """The pocket base of the smallest study, from the store or made now."""
    store.open()
    plan = prepare(STUDY, {})
    summary = execute(plan, store, Inline(store), only=("data.pocket", "base.pocket"))
    assert summary.exit_status == 0, summary
    key = next(key for key, node in plan.nodes.items() if node.stage == "base.pocket")
    return store.folder(key)


def write_questions(folder: Path, count: int) -> list[dict[str, Any]]:
    """``count`` pocket questions with FastChat's numbers; ten per category for 80."""
    drawn: list[dict[str, Any]] = []
    while len(drawn) < count:
        rows, _ = pocket.mt_bench(np.random.default_rng([0, 10, len(drawn)]))
        drawn += rows
    questions = [{**row, "question_id": 81 + place} for place, row in enumerate(drawn[:count])]
    (folder / "mt_bench").mkdir(parents=True)
    write_jsonl(folder / "mt_bench" / "question.jsonl", questions)
    return questions


def measure(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Both arms in turns on the same questions; the model is in memory for both."""
    policy = load_policy(folder)
    answers: dict[str, dict[int, list[str]]] = {}
    taken: dict[str, list[float]] = {"fastchat": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        questions = write_questions(root / "benchmarks", count)
        arms = {
            "fastchat": partial(sequential, policy, questions),
            "ours": partial(ours, folder, root / "benchmarks"),
        }
        for number in range(rounds + 1):  # the first round warms both up and is not counted
            for name, arm in arms.items():
                out = root / f"{name}{number}"
                out.mkdir()
                spent, answers[name] = timed(partial(arm, out))
                taken[name] += [spent] if number else []
    temperature = mt_bench.ANSWER_TEMPERATURE
    greedy = [q["question_id"] for q in questions if not temperature.get(q["category"], 0.0)]
    ratios = [a / b for a, b in zip(*taken.values(), strict=True)]
    return {
        "questions": count,
        "turns": sum(len(q["turns"]) for q in questions),
        **{f"seconds_{name}": [round(s, 3) for s in seconds] for name, seconds in taken.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        "greedy_questions": len(greedy),
        "greedy_identical": sum(answers["fastchat"][n] == answers["ours"][n] for n in greedy),
        "threads": 1,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--store", type=Path, default=Path("results/store"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(checkpoint(Store(args.store)), args.questions, args.rounds)
    write("generation", found)
    print(json.dumps(found, indent=1))
    identical = found["greedy_identical"] == found["greedy_questions"]
    return 0 if found["ratio"] >= 5 and identical else 1


if __name__ == "__main__":
    raise SystemExit(main())
