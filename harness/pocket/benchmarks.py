"""Stage ``benchmarks.pocket``: the pocket world's MT-Bench, AlpacaEval, Arena-Hard, WildBench and
academic tasks, in the form of their owners' files, in our wording.

All items come from the language's ``benchmark`` split, which no training or held-out prompt shares.
Each benchmark's record names the function that writes its pocket files.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluate.benchmark import load, write_questions
from harness.evaluate.lc import write_gamed
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

# -- MT-Bench --------------------------------------------------------------------------------------
_EXPLAIN = (
    "First explain your view in a few words and stay impartial. Then rate the answer from 1 to 10 "
    'in exactly this form: "[[rating]]", for example: "Rating: [[5]]".'
)
_JUDGE = (
    "Act as an impartial judge of the answer that an AI assistant gave to the user question below. "
)


def _answer(of: str, place: str) -> str:
    return f"[The Start of {of} Answer]\n{{{place}}}\n[The End of {of} Answer]"


def _talk(title: str, speaker: str, place: str) -> str:
    turns = (f"### User:\n{{question_{n}}}\n\n### {speaker}:\n{{{place}_{n}}}\n\n" for n in (1, 2))
    return f"<|The Start of {title}|>\n\n{''.join(turns)}<|The End of {title}|>"


def judge_prompts() -> list[dict[str, str]]:
    """The four single-answer judge prompts, in FastChat's form: its names, placeholders and
    markers, our wording.
    """
    return [_judge_prompt(two, math) for two, math in product((False, True), repeat=2)]


def _judge_prompt(two_turns: bool, math: bool) -> dict[str, str]:
    category, name = ("math", "single-math-v1") if math else ("general", "single-v1")
    task = f"{_JUDGE}Look at correctness and at how well it is put. "
    if math:
        task = f"{_JUDGE}Compare it with the reference answer, which is right. "
    if two_turns:
        task += "Judge the assistant's answer to the second user question only. "
        system, shown = f"{task}{_EXPLAIN}\n\n", ""
        reference = _talk("Reference Answer", "Reference answer", "ref_answer") + "\n\n\n"
        answer = _talk("Assistant A's Conversation with User", "Assistant A", "answer")
    else:
        system = "You are a helpful assistant."
        shown = f"[Instruction]\n{task}{_EXPLAIN}\n\n[Question]\n{{question}}\n\n"
        reference = _answer("Reference", "ref_answer_1") + "\n\n"
        answer = _answer("Assistant's", "answer")
    return {
        "name": name + "-multi-turn" * two_turns,
        "type": "single",
        "system_prompt": system,
        "prompt_template": shown + (reference if math else "") + answer,
        "description": f"Prompt for {category} questions",
        "category": category,
        "output_format": "[[rating]]",
    }


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
    kept = questions[: limit or None]
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


# -- AlpacaEval ------------------------------------------------------------------------------------
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
        named = {"id": str(len(rows)), "instruction": prompt.messages[0]["content"]}
        named |= {"output": style.render(content), "generator": BASELINE}
        rows.append(named | {"dataset": prompt.category})
    return rows[: limit or None]


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
        both = list(zip(rows, outputs, strict=True))
        deltas = [len(row["output"]) - len(output) for row, output in both]
        spread = statistics.stdev(deltas) or 1.0
        for index, (row, output) in enumerate(both):
            named = {"model": f"{BASELINE}_{gamed}", "preference": judged(row, output, judge)}
            named |= {"index": index, "instruction_difficulty": difficulty[index]}
            delta = {"std_delta_len": deltas[index] / spread, "not_gamed_baseline": False}
            found.append(named | delta)
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
    write_gamed(folder / "df_gamed.csv", gamed_rows(instructions, OPINION))
    return len(instructions)


def write_academic(seed: int, limit: int, folder: Path) -> int:
    """The academic tasks' files; returns the number of items."""
    return academic_tasks.write(folder, np.random.default_rng([seed, 12]), limit)


# -- Arena-Hard and WildBench ----------------------------------------------------------------------
QUESTIONS = 64
ARENA_CATEGORIES = ("hard_prompt", "creative_writing")
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
    drawn = alpaca_eval(np.random.default_rng([seed, 21]), limit or QUESTIONS)
    for number, row in enumerate(drawn):
        named = {"id": row["id"], "question": row["instruction"], "baseline": row["output"]}
        rows.append(named | {"category": ARENA_CATEGORIES[number % len(ARENA_CATEGORIES)]})
    judge = {
        "template": ARENA_TEMPLATE,
        "patterns": [r"\[\[([AB<>=]+)\]\]"],
        "systems": dict.fromkeys(ARENA_CATEGORIES, ARENA_SYSTEM),
    }
    return write_questions(folder, rows, judge)


WILDBENCH_GROUPS = {
    "math": "Math & Data Analysis",
    "reasoning": "Planning & Reasoning",
    "coding": "Coding & Debugging",
    "stem": "Information/Advice seeking",
    "humanities": "Information/Advice seeking",
}
"""Group of a category; of any other: creative tasks."""


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
    drawn = alpaca_eval(np.random.default_rng([seed, 22]), limit or QUESTIONS)
    for row in drawn:
        said = {"role": "user", "content": row["instruction"]}
        named = {"id": row["id"], "question": row["instruction"], "conversation": [said]}
        named |= {"checklist": ["Is it right?", "Is it well put?"]}
        groups = [WILDBENCH_GROUPS.get(row["dataset"], "Creative Tasks")]
        rows.append(named | {"groups": groups, "references": {"pocket": row["output"]}})
    judge = {"score_template": SCORE_TEMPLATE, "reward_template": REWARD_TEMPLATE}
    return write_questions(folder, rows, judge)


def run(task: StageTask[PocketBenchmarksTask]) -> StageOutcome:
    """Write every benchmark's folder into ``task.out``."""
    counts: dict[str, int] = {}
    for name, limit in task.settings.limits.items():
        folder = task.out / name
        folder.mkdir(exist_ok=True)
        counts[name] = load(BENCHMARKS[name].pocket)(task.settings.seed, limit.limit, folder)
    return StageOutcome(rows=sum(counts.values()), summary=counts)
