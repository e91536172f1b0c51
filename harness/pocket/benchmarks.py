"""Stage ``benchmarks.pocket``: the pocket world's MT-Bench, AlpacaEval and academic tasks, in those
libraries' own file formats.

All items come from the language's ``benchmark`` split, which no training or held-out prompt shares.
Each benchmark's record names the function that writes its pocket files.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluate.benchmark import load
from harness.evaluate.registry import BENCHMARKS
from harness.pocket import academic_tasks, language, oracle, wordings
from harness.pocket.judge_opinion import OPINION
from harness.records import StageOutcome, StageTask, write_jsonl
from harness.study.tasks import PocketBenchmarksTask

FIRST_QUESTION = 81
"""MT-Bench numbers its questions from 81."""
MT_BENCH_PER_CATEGORY = 3
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
INSTRUCTIONS = 128
"""128 preferences give a win rate a standard error of at most 4.4 points (sd 0.5 / sqrt(128))."""
BASELINE = "pocket_baseline"
BASELINE_CORRECT_SHARE = 0.9
BASELINE_SHARES = {
    "plain": 0.20,
    "sentence": 0.30,
    "chatty": 0.15,
    "hedged": 0.05,
    "courteous": 0.20,
    "checked": 0.10,
}
"""Styles of the baseline's outputs: better than the data distribution, far from the best."""
GAMED_STYLES = {"verbose": "chatty", "concise": "plain"}
MAX_DIFFICULTY = 3.0

_EXPLAIN = (
    "First explain your view in a few words and stay impartial. Then rate the answer from 1 to 10 "
    "in exactly this form: "
    '"[[rating]]", for example: "Rating: [[5]]".'
)
_JUDGE = (
    "Act as an impartial judge of the answer that an AI assistant gave to the user question below. "
)
_GENERAL = f"{_JUDGE}Look at correctness and at how well it is put. "
_MATH = f"{_JUDGE}Compare it with the reference answer, which is right. "
_SECOND = "Judge the assistant's answer to the second user question only. "
_SINGLE = "[Question]\n{question}\n\n"
_ANSWER = "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
_REFERENCE = "[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n\n"
_CONVERSATION = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n{question_1}\n\n### "
    "Assistant A:\n{answer_1}\n\n"
    "### User:\n{question_2}\n\n### Assistant A:\n{answer_2}\n\n<|The End of Assistant A's "
    "Conversation with User|>"
)
_BOTH = (
    "Act as an impartial judge of the answers that two AI assistants gave to the user question "
    "below. "
)
_BOTH_MATH = f"{_BOTH}Compare them with the reference answer, which is right. "
_CHOOSE = (
    "First compare the two answers in a few words and stay impartial. The order in which they are "
    "shown says nothing. Then write your final "
    'verdict in exactly this form: "[[A]]" if assistant A is better, "[[B]]" if assistant B is '
    'better, "[[C]]" for a tie.'
)
_BOTH_SECOND = "Judge the answers to the second user question only. "
_PAIR = "".join(
    f"[The Start of Assistant {x}'s Answer]\n{{answer_{x.lower()}}}\n[The End of Assistant {x}'s "
    "Answer]\n\n"
    for x in "AB"
).rstrip()
_PAIR_CONVERSATIONS = "\n\n\n".join(
    f"<|The Start of Assistant {x}'s Conversation with User|>\n\n### User:\n{{question_1}}\n\n### "
    f"Assistant {x}:\n{{answer_{x.lower()}_1}}\n\n"
    f"### User:\n{{question_2}}\n\n### Assistant {x}:\n{{answer_{x.lower()}_2}}\n\n<|The End of "
    f"Assistant {x}'s Conversation with User|>"
    for x in "AB"
)
_REFERENCES = (
    "<|The Start of Reference Answer|>\n\n### User:\n{question_1}\n\n### Reference "
    "answer:\n{ref_answer_1}\n\n"
    "### User:\n{question_2}\n\n### Reference answer:\n{ref_answer_2}\n\n<|The End of Reference "
    "Answer|>\n\n\n"
)
_HELPFUL = "You are a helpful assistant."


def judge_prompts() -> list[dict[str, str]]:
    """The four single-answer and four pairwise judge prompts, in FastChat's form: its names,
    placeholders and markers, our wording.
    """
    rows = [
        (
            "single-v1",
            _HELPFUL,
            f"[Instruction]\n{_GENERAL}{_EXPLAIN}\n\n{_SINGLE}{_ANSWER}",
            "general",
        ),
        (
            "single-math-v1",
            _HELPFUL,
            f"[Instruction]\n{_MATH}{_EXPLAIN}\n\n{_SINGLE}{_REFERENCE}{_ANSWER}",
            "math",
        ),
        ("single-v1-multi-turn", f"{_GENERAL}{_SECOND}{_EXPLAIN}\n\n", _CONVERSATION, "general"),
        (
            "single-math-v1-multi-turn",
            f"{_MATH}{_SECOND}{_EXPLAIN}\n\n",
            _REFERENCES + _CONVERSATION,
            "math",
        ),
        ("pair-v2", f"{_BOTH}{_CHOOSE}", f"[User Question]\n{{question}}\n\n{_PAIR}", "general"),
        (
            "pair-math-v1",
            f"{_BOTH_MATH}{_CHOOSE}",
            f"[User Question]\n{{question}}\n\n{_REFERENCE}{_PAIR}",
            "math",
        ),
        ("pair-v2-multi-turn", f"{_BOTH}{_BOTH_SECOND}{_CHOOSE}", _PAIR_CONVERSATIONS, "general"),
        (
            "pair-math-v1-multi-turn",
            f"{_BOTH_MATH}{_BOTH_SECOND}{_CHOOSE}",
            _REFERENCES + _PAIR_CONVERSATIONS,
            "math",
        ),
    ]
    return [
        {
            "name": name,
            "type": "single" if name.startswith("single") else "pairwise",
            "system_prompt": system,
            "prompt_template": template,
            "description": f"Prompt for {category} questions",
            "category": category,
            "output_format": "[[rating]]" if name.startswith("single") else "[[A]]",
        }
        for name, system, template, category in rows
    ]


def mt_bench(
    rng: np.random.Generator, limit: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Questions (two turns, categories in turn) and the reference answers that math, reasoning and
    coding need.
    """
    questions: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    how: dict[str, Any] = {"split": "benchmark", "two_turn_share": 0.0}
    drawn = {
        category: language.sample_prompts(MT_BENCH_PER_CATEGORY, rng, category=category, **how)
        for category in wordings.CATEGORIES
    }
    for place, category in product(range(MT_BENCH_PER_CATEGORY), wordings.CATEGORIES):
        first = drawn[category][place].messages[0]
        second = language.render(language.sample_follow_up(oracle.task_of([first]), rng), rng)
        number, turns = FIRST_QUESTION + len(questions), [first["content"], second]
        questions.append({"question_id": number, "category": category, "turns": turns})
        if category in REFERENCE_CATEGORIES:
            references.append(_reference(number, first, second))
    kept = questions[:limit] if limit else questions
    numbers = {row["question_id"] for row in kept}
    return kept, [row for row in references if row["question_id"] in numbers]


def _reference(number: int, first: Mapping[str, str], second: str) -> dict[str, Any]:
    """The best answers to both turns of a question."""
    best = oracle.reference([first])
    said = {"role": "assistant", "content": best}
    then = oracle.reference([first, said, {"role": "user", "content": second}])
    return {
        "question_id": number,
        "answer_id": f"pocket-{number}",
        "model_id": "pocket",
        "choices": [{"index": 0, "turns": [best, then]}],
        "tstamp": 0.0,
    }


def alpaca_eval(rng: np.random.Generator, limit: int = 0) -> list[dict[str, str]]:
    """Instructions with the baseline's outputs, in alpaca_eval's form and order."""
    rows: list[dict[str, str]] = []
    shares = [BASELINE_SHARES[style.name] for style in wordings.STYLES]
    for prompt in language.sample_prompts(INSTRUCTIONS, rng, "benchmark", two_turn_share=0.0):
        task = oracle.task_of(prompt.messages)
        content = language.solve(task)
        if rng.random() >= BASELINE_CORRECT_SHARE:
            content = language.near_misses(task)[int(rng.integers(2))]
        style = wordings.STYLES[int(rng.choice(len(shares), p=shares))]
        rows.append(
            {
                "id": str(len(rows)),
                "instruction": prompt.messages[0]["content"],
                "output": style.render(content),
                "generator": BASELINE,
                "dataset": prompt.category,
            }
        )
    return rows[:limit] if limit else rows


def gamed_rows(rows: Sequence[Mapping[str, str]], judge: Mapping[str, Any]) -> list[dict[str, Any]]:
    """alpaca_eval's df_gamed: the judge's preference for a verbose and a concise wording of each
    baseline output over that output.

    preference: probability that the gamed output wins, mean over both orders. std_delta_len:
    characters of the baseline's output less the gamed one's, over their standard deviation.
    instruction_difficulty: see ``difficulties``.
    """
    difficulty = difficulties(rows, judge)
    styles = {style.name: style for style in wordings.STYLES}
    found: list[dict[str, Any]] = []
    for gamed, style in GAMED_STYLES.items():
        outputs = []
        for row in rows:
            parsed = oracle.style_of(row["output"])
            outputs.append(styles[style].render(parsed[1]) if parsed else row["output"])
        deltas = [
            len(row["output"]) - len(output) for row, output in zip(rows, outputs, strict=True)
        ]
        spread = statistics.stdev(deltas) or 1.0
        for index, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            found.append(
                {
                    "model": f"{BASELINE}_{gamed}",
                    "preference": judged(row, output, judge),
                    "index": index,
                    "instruction_difficulty": difficulty[index],
                    "std_delta_len": deltas[index] / spread,
                    "not_gamed_baseline": False,
                }
            )
    return found


def judged(row: Mapping[str, str], output: str, judge: Mapping[str, Any]) -> float:
    """Probability that the judge prefers ``output`` to the row's baseline output, mean over the two
    orders in which it can be shown.
    """
    messages = [{"role": "user", "content": row["instruction"]}]
    views = {name: judge[name] for name in ("noise", "position_bias", "length_bias", "seed")}
    second = oracle.preference(messages, row["output"], output, **views)
    first = oracle.preference(messages, output, row["output"], **views)
    return (second + 1.0 - first) / 2.0


def difficulties(rows: Sequence[Mapping[str, str]], judge: Mapping[str, Any]) -> list[float]:
    """How hard the baseline is to beat on each instruction: minus the judge's mean log-odds for the
    answer modes, standardised.

    The modes are weighted by the data distribution's style shares, right and wrong alike; values
    are kept within ±3.
    """
    raw = []
    for row in rows:
        messages = [{"role": "user", "content": row["instruction"]}]
        total = weight = 0.0
        for text, _ in oracle.modes(messages):
            parsed = oracle.style_of(text)
            share = parsed[0].share if parsed else 0.0
            preference = min(max(judged(row, text, judge), 1e-6), 1.0 - 1e-6)
            total += share * float(np.log(preference / (1.0 - preference)))
            weight += share
        raw.append(-total / weight)
    centre, spread = statistics.fmean(raw), statistics.pstdev(raw) or 1.0
    return [max(-MAX_DIFFICULTY, min(MAX_DIFFICULTY, (value - centre) / spread)) for value in raw]


def write_mt_bench(seed: int, limit: int, folder: Path) -> int:
    """MT-Bench's files; returns the number of questions."""
    questions, references = mt_bench(np.random.default_rng([seed, 10]), limit)
    write_jsonl(folder / "question.jsonl", questions)
    write_jsonl(folder / "reference_answer.jsonl", references)
    write_jsonl(folder / "judge_prompts.jsonl", judge_prompts())
    return len(questions)


def write_alpaca_eval(seed: int, limit: int, folder: Path) -> int:
    """AlpacaEval's files; returns the number of instructions."""
    instructions = alpaca_eval(np.random.default_rng([seed, 11]), limit)
    text = json.dumps(instructions, indent=1) + "\n"
    (folder / "eval.json").write_text(text, encoding="utf-8")
    _write_csv(folder / "df_gamed.csv", gamed_rows(instructions, OPINION))
    return len(instructions)


def write_academic(seed: int, limit: int, folder: Path) -> int:
    """The academic tasks' files; returns the number of items."""
    return academic_tasks.write(folder, np.random.default_rng([seed, 12]), limit)


def run(task: StageTask[PocketBenchmarksTask]) -> StageOutcome:
    """Write every benchmark's folder into ``task.out``."""
    counts: dict[str, int] = {}
    for name, limit in task.settings.limits.items():
        folder = task.out / name
        folder.mkdir(exist_ok=True)
        counts[name] = load(BENCHMARKS[name].pocket)(task.settings.seed, limit.limit, folder)
    return StageOutcome(rows=sum(counts.values()), summary=counts)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
