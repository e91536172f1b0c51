"""Small benchmark and preference files in the public formats, with a tiny checkpoint: what a user
brings to ``selm evaluate``.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.records import write_jsonl
from tests import tiny
from tests.evaluate.test_mt_bench import prompt_rows


def write(folder: Path) -> dict[str, object]:
    """Write them below ``folder``; returns recipe keys that name them, sizes kept small."""
    folder.mkdir(parents=True, exist_ok=True)
    categories = {81: "writing", 101: "math", 141: "stem"}
    questions = [
        {"question_id": n, "category": c, "turns": [f"What is {n}?", f"And what is {n + 1}?"]}
        for n, c in categories.items()
    ]
    references = [
        {"question_id": 101, "choices": [{"index": 0, "turns": ["It is 101.", "It is 102."]}]}
    ]
    instructions = [
        {
            "instruction": f"Name {i} things.",
            "output": "One thing. " * (i % 3 + 1),
            "generator": "base",
        }
        for i in range(6)
    ]
    sums = [
        {"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}
        for i in range(4)
    ]
    write_jsonl(
        folder / "pairs.jsonl",
        [{"prompt": f"Say {i}.", "chosen": f"{i}", "rejected": "no"} for i in range(12)],
    )
    write_jsonl(folder / "question.jsonl", questions)
    write_jsonl(folder / "reference_answer.jsonl", references)
    write_jsonl(folder / "judge_prompts.jsonl", prompt_rows())
    write_jsonl(folder / "gsm8k.jsonl", sums)
    (folder / "model_outputs.json").write_text(json.dumps(instructions))
    tiny.checkpoint(folder / "checkpoint", max_position_embeddings=8192)
    return {
        "data.path": folder / "pairs.jsonl",
        "data.prompts": 4,
        "data.heldout": 4,
        "evaluation.mt_bench.questions": folder / "question.jsonl",
        "evaluation.mt_bench.references": folder / "reference_answer.jsonl",
        "evaluation.mt_bench.judge_prompts": folder / "judge_prompts.jsonl",
        "evaluation.mt_bench.reference_set": "mine",
        "evaluation.mt_bench.max_new_tokens": 4,
        "evaluation.alpaca_eval.instructions": folder / "model_outputs.json",
        "evaluation.alpaca_eval.max_new_tokens": 4,
        "evaluation.academic.data": json.dumps({"gsm8k": str(folder / "gsm8k.jsonl")}),
        "evaluation.academic.tasks": "[gsm8k]",
        "evaluation.academic.max_new_tokens": 4,
    }


def options(settings: dict[str, object]) -> list[str]:
    """``--set key=value`` for every key."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
