"""The pocket world's questions of Arena-Hard and WildBench, as these benchmarks lay out their
owners' files: their form and delimiters, our wording.
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


GROUPS = {
    "math": "Math & Data Analysis",
    "reasoning": "Planning & Reasoning",
    "coding": "Coding & Debugging",
    "stem": "Information/Advice seeking",
    "humanities": "Information/Advice seeking",
}
"""Group of a category; of any other: creative tasks."""
REFERENCE = "pocket"


def _part(name: str, place: str) -> str:
    return f"<|begin_of_{name}|>\n\n{{${place}}}\n\n<|end_of_{name}|>\n\n"


_ASKED = _part("history", "history") + _part("query", "user_query")
_CHECKLIST = _part("checklist", "checklist")
SCORE_TEMPLATE = (
    f"Rate the response to the query.\n\n{_ASKED}{_part('response', 'model_output')}{_CHECKLIST}"
    'Say what is good and what is not, and end with JSON: {"score": "[1~10]"}'
)
REWARD_TEMPLATE = (
    f"Compare the two responses to the query.\n\n{_ASKED}{_part('response_A', 'candidate_A')}"
    f"{_part('response_B', 'candidate_B')}{_CHECKLIST}"
    'End with JSON: {"choice": "[A++ or A+ or A=B or B+ or B++]"}'
)


def write_wildbench(seed: int, limit: int, folder: Path) -> int:
    """Tasks of one turn, with the baseline that AlpacaEval has here as the reference model."""
    rows = []
    drawn = benchmarks.alpaca_eval(np.random.default_rng([seed, 22]), limit or QUESTIONS)
    for row in drawn:
        said = {"role": "user", "content": row["instruction"]}
        named = {"id": row["id"], "question": row["instruction"], "conversation": [said]}
        named |= {"checklist": ["Is it right?", "Is it well put?"]}
        groups = [GROUPS.get(row["dataset"], "Creative Tasks")]
        rows.append(named | {"groups": groups, "references": {REFERENCE: row["output"]}})
    judge = {"score_template": SCORE_TEMPLATE, "reward_template": REWARD_TEMPLATE}
    (folder / "judge.json").write_text(canonical_json(judge) + "\n", encoding="utf-8")
    return write_jsonl(folder / "questions.jsonl", rows)
