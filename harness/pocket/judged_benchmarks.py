"""The pocket world's questions of Arena-Hard, as its benchmark lays out its owner's files: their
form and delimiters, our wording.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.pocket import benchmarks
from harness.records import canonical_json, write_jsonl

QUESTIONS = 64
CATEGORIES = ("hard_prompt", "creative_writing")
ARENA_SYSTEM = (
    "Act as an impartial judge of the answers that two AI assistants gave to one prompt. First "
    "compare them in a few words. Then write one of these labels: [[A>>B]] when A is much better, "
    "[[A>B]] when it is better, [[A=B]] for a tie, [[B>A]] when B is better, [[B>>A]] when it is "
    "much better."
)
ARENA_TEMPLATE = "<|User Prompt|>\n{QUESTION}\n\n" + "\n\n".join(
    f"<|The Start of Assistant {x}'s Answer|>\n{{ANSWER_{x}}}\n<|The End of Assistant {x}'s "
    "Answer|>"
    for x in "AB"
)


def write_arena_hard(seed: int, limit: int, folder: Path) -> int:
    """Questions in turn of both categories, with the baseline that AlpacaEval has here."""
    rows = []
    drawn = benchmarks.alpaca_eval(np.random.default_rng([seed, 21]), limit or QUESTIONS)
    for number, row in enumerate(drawn):
        named = {"id": row["id"], "question": row["instruction"], "baseline": row["output"]}
        rows.append(named | {"category": CATEGORIES[number % len(CATEGORIES)]})
    judge = {
        "template": ARENA_TEMPLATE,
        "patterns": [r"\[\[([AB<>=]+)\]\]"],
        "systems": dict.fromkeys(CATEGORIES, ARENA_SYSTEM),
    }
    (folder / "judge.json").write_text(canonical_json(judge) + "\n", encoding="utf-8")
    return write_jsonl(folder / "questions.jsonl", rows)
