"""Stage ``benchmarks.pocket``: the pocket world's MT-Bench, AlpacaEval, Arena-Hard, WildBench and
academic tasks, in the form of their owners' files, in our wording.

All items come from the language's ``benchmark`` split, which no training or held-out prompt shares.
Each benchmark's record names the function that writes its pocket files: seed, limit of items (0:
all) and folder → number of items.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.evaluate.academic import scale_of
from harness.evaluate.benchmark import load, write_questions
from harness.evaluate.lc import write_gamed
from harness.evaluate.registry import BENCHMARKS
from harness.pocket import language, oracle, wordings
from harness.pocket.judge import OPINION
from harness.pocket.language import Rng
from harness.records import HarnessError, StageOutcome, StageTask, write_jsonl
from harness.study.tasks import PocketBenchmarksTask

Row = dict[str, Any]
HERE = Path(__file__).parent
STYLES = {style.name: style for style in wordings.STYLES}
TOLD: Row = yaml.safe_load((HERE / "judge_prompts.yaml").read_text(encoding="utf-8"))
"""What the judge of a benchmark is told."""


def run(task: StageTask[PocketBenchmarksTask]) -> StageOutcome:
    """Write every benchmark's folder into ``task.out``."""
    counts: dict[str, int] = {}
    for name, limit in task.settings.limits.items():
        folder = task.out / name
        folder.mkdir(exist_ok=True)
        counts[name] = load(BENCHMARKS[name].pocket)(task.settings.seed, limit.limit, folder)
    return StageOutcome(rows=sum(counts.values()), summary=counts)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# -- MT-Bench --------------------------------------------------------------------------------------
FIRST_QUESTION = 81
"""MT-Bench numbers its questions from 81."""
MT_BENCH_PER_CATEGORY = 3
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")


def write_mt_bench(seed: int, limit: int, folder: Path) -> int:
    """Questions, reference answers, and the four single-answer judge prompts in FastChat's form."""
    questions, references = mt_bench(np.random.default_rng([seed, 10]))
    kept = questions[: limit or None]
    numbers = [row["question_id"] for row in kept]
    wanted = [row for row in references if row["question_id"] in numbers]
    write_jsonl(folder / "question.jsonl", kept)
    write_jsonl(folder / "reference_answer.jsonl", wanted)
    write_jsonl(folder / "judge_prompts.jsonl", TOLD["mt_bench"])
    return len(kept)


def mt_bench(rng: Rng) -> tuple[list[Row], list[Row]]:
    """Questions, categories in turn, and the reference answers that some categories need."""
    how: Row = {"split": "benchmark", "two_turn_share": 0.0}
    drawn = {
        category: language.sample_prompts(MT_BENCH_PER_CATEGORY, rng, category=category, **how)
        for category in wordings.CATEGORIES
    }
    questions: list[Row] = []
    references: list[Row] = []
    for place, category in product(range(MT_BENCH_PER_CATEGORY), wordings.CATEGORIES):
        first = drawn[category][place].messages[0]
        second = language.render(language.sample_follow_up(oracle.task_of([first]), rng), rng)
        number, turns = FIRST_QUESTION + len(questions), [first["content"], second]
        questions.append({"question_id": number, "category": category, "turns": turns})
        if category in REFERENCE_CATEGORIES:
            references.append(_reference(number, first, second))
    return questions, references


def _reference(number: int, first: Mapping[str, str], second: str) -> Row:
    """The best answers to both turns of a question."""
    best = oracle.reference([first])
    then = oracle.reference([first, {"role": "assistant", "content": best}, *_user(second)])
    return {
        "question_id": number,
        "answer_id": f"pocket-{number}",
        "model_id": "pocket",
        "choices": [{"index": 0, "turns": [best, then]}],
        "tstamp": 0.0,
    }


# -- AlpacaEval ------------------------------------------------------------------------------------
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


def write_alpaca_eval(seed: int, limit: int, folder: Path) -> int:
    """Instructions with the baseline's outputs, and the gamed baseline."""
    instructions = _instructions(np.random.default_rng([seed, 11]), limit)
    text = json.dumps(instructions, indent=1) + "\n"
    (folder / "eval.json").write_text(text, encoding="utf-8")
    write_gamed(folder / "df_gamed.csv", gamed_rows(instructions, OPINION))
    return len(instructions)


def _instructions(rng: Rng, limit: int) -> list[dict[str, str]]:
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


def gamed_rows(rows: Sequence[Mapping[str, str]], judge: Mapping[str, Any]) -> list[Row]:
    """alpaca_eval's df_gamed: the judge's preference for a verbose and a concise wording of each
    baseline output over that output.

    preference: probability that the gamed output wins, mean over both orders. std_delta_len:
    characters of the baseline's output less the gamed one's, over their standard deviation.
    instruction_difficulty: see ``difficulties``.
    """
    difficulty = difficulties(rows, judge)
    found: list[Row] = []
    for gamed, style in GAMED_STYLES.items():
        outputs = []
        for row in rows:
            parsed = oracle.style_of(row["output"])
            outputs.append(STYLES[style].render(parsed[1]) if parsed else row["output"])
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
    """Probability that the judge prefers ``output`` to the row's, mean over both orders."""
    messages = _user(row["instruction"])
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
        total = weight = 0.0
        for text, _ in oracle.modes(_user(row["instruction"])):
            parsed = oracle.style_of(text)
            share = parsed[0].share if parsed else 0.0
            preference = min(max(judged(row, text, judge), 1e-6), 1.0 - 1e-6)
            total += share * float(np.log(preference / (1.0 - preference)))
            weight += share
        raw.append(-total / weight)
    centre, spread = statistics.fmean(raw), statistics.pstdev(raw) or 1.0
    return [max(-MAX_DIFFICULTY, min(MAX_DIFFICULTY, (value - centre) / spread)) for value in raw]


# -- Arena-Hard and WildBench ----------------------------------------------------------------------
QUESTIONS = 64
ARENA_CATEGORIES = ("hard_prompt", "creative_writing")


def write_arena_hard(seed: int, limit: int, folder: Path) -> int:
    """Questions in turn of both categories, with the baseline that AlpacaEval has here."""
    rows = []
    drawn = _instructions(np.random.default_rng([seed, 21]), limit or QUESTIONS)
    for number, row in enumerate(drawn):
        named = {"id": row["id"], "question": row["instruction"], "baseline": row["output"]}
        rows.append(named | {"category": ARENA_CATEGORIES[number % len(ARENA_CATEGORIES)]})
    return write_questions(folder, rows, TOLD["arena_hard"])


WILDBENCH_GROUPS = {
    "math": "Math & Data Analysis",
    "reasoning": "Planning & Reasoning",
    "coding": "Coding & Debugging",
    "stem": "Information/Advice seeking",
    "humanities": "Information/Advice seeking",
}
"""Group of a category; of any other: creative tasks."""


def write_wildbench(seed: int, limit: int, folder: Path) -> int:
    """Tasks of one turn, with the baseline that AlpacaEval has here as the reference model."""
    rows = []
    for row in _instructions(np.random.default_rng([seed, 22]), limit or QUESTIONS):
        asked = row["instruction"]
        named = {"id": row["id"], "question": asked, "conversation": _user(asked)}
        named |= {"checklist": ["Is it right?", "Is it well put?"]}
        groups = [WILDBENCH_GROUPS.get(row["dataset"], "Creative Tasks")]
        rows.append(named | {"groups": groups, "references": {"pocket": row["output"]}})
    return write_questions(folder, rows, TOLD["wildbench"])


# -- academic tasks --------------------------------------------------------------------------------
ITEMS = 60
"""Items of a task; the standard error of a share is at most 6.5 points (0.5 / sqrt(60))."""
SHOTS_POOL = 12
"""Rows of the train split from which lm-eval draws its shots."""


@dataclass(frozen=True)
class Form:
    """A task over local JSONL files in the form of one of lm-eval's, whose YAML stands in
    ``academic/``. Rows have the columns of the real data set; scoring is lm-eval's own.

    row: a task of one of the operations ``ops`` and its question → its row.
    """

    ops: tuple[str, ...]
    row: Callable[[language.Task, str, Rng], Row]
    metric: str
    shots: int = 2
    filter: str = "none"


def _choices(task: language.Task, rng: Rng, style: str = "plain") -> tuple[list[str], int]:
    """Four answers in one style, shuffled, and the place of the right one."""
    contents = [language.solve(task), *islice(language.wrong_contents(task), 3)]
    order = [int(i) for i in rng.permutation(len(contents))]
    return [STYLES[style].render(contents[i]) for i in order], order.index(0)


def _lettered(task: language.Task, rng: Rng) -> Row:
    choices, right = _choices(task, rng)
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    return {"choices": {"text": choices, "label": letters}, "answerKey": letters[right]}


def _gsm8k(task: language.Task, question: str, _: Rng) -> Row:
    return {"question": question, "answer": STYLES["sentence"].render(language.solve(task))}


def _hellaswag(task: language.Task, question: str, rng: Rng) -> Row:
    choices, right = _choices(task, rng, "sentence")
    return {"query": question, "choices": choices, "label": right}


def arc(task: language.Task, question: str, rng: Rng) -> Row:
    """A row of ARC's form."""
    return {"question": question, **_lettered(task, rng)}


def _openbookqa(task: language.Task, question: str, rng: Rng) -> Row:
    return {"question_stem": question, **_lettered(task, rng)}


def _truthfulqa(task: language.Task, question: str, _: Rng) -> Row:
    """True answers in two styles, misconceptions (near misses) in the same two."""
    styles = STYLES["plain"], STYLES["sentence"]
    right = [style.render(language.solve(task)) for style in styles]
    wrong = [style.render(miss) for miss in language.near_misses(task) for style in styles]
    targets = {
        name: {"choices": [*true, *wrong], "labels": [1] * len(true) + [0] * len(wrong)}
        for name, true in (("mc1_targets", right[:1]), ("mc2_targets", right))
    }
    return {"question": question, **targets}


def _eq_bench(task: language.Task, question: str, _: Rng) -> Row:
    answer = language.solve(task)
    reference: dict[str, str] = {}
    for place, (mood, strength) in enumerate(zip(answer[::2], answer[1::2], strict=True), 1):
        reference |= {f"emotion{place}": mood.removesuffix(":"), f"emotion{place}_score": strength}
    return {"prompt": question, "reference_answer_fullscale": repr(reference)}


_LISTS = ("echo", "drop", "swap", "rotate", "sort")
_FACTS = ("tallest", "shortest", "earliest", "latest", "next", "add")
_WORDS = ("odd", "count", "larger", "pick")
FORMS = {
    "gsm8k": Form(("steps",), _gsm8k, "exact_match", filter="flexible-extract"),
    "hellaswag": Form(_LISTS, _hellaswag, "acc_norm"),
    "arc_challenge": Form(_FACTS, arc, "acc_norm"),
    "truthfulqa_mc2": Form(_WORDS, _truthfulqa, "acc", shots=0),
    "eq_bench": Form(("moods",), _eq_bench, "eqbench", shots=0),
    "openbookqa": Form(("kind", "odd", "keep"), _openbookqa, "acc"),
}


def write_academic(seed: int, limit: int, folder: Path) -> int:
    """Every task's YAML, whose file names are relative, its rows, and tasks.json."""
    rng = np.random.default_rng([seed, 12])
    tasks: dict[str, Row] = {}
    for column, form in FORMS.items():
        rows = _rows(form, rng, "benchmark", limit or ITEMS)
        write_jsonl(folder / f"{column}_test.jsonl", rows)
        if form.shots:
            shots = _rows(form, rng, "train", SHOTS_POOL)
            write_jsonl(folder / f"{column}_train.jsonl", shots)
        shutil.copyfile(HERE / "academic" / f"{column}.yaml", folder / f"{column}.yaml")
        tasks[column] = dict.fromkeys(("task", "lm_eval_task"), f"pocket_{column}")
        tasks[column] |= {"metric": form.metric, "filter": form.filter, "shots": form.shots}
        tasks[column] |= {"scale": scale_of(form.metric), "source": "pocket"}
        tasks[column] |= {"file": f"{column}.yaml", "items": len(rows)}
    text = json.dumps(tasks, indent=1, sort_keys=True) + "\n"
    (folder / "tasks.json").write_text(text, encoding="utf-8")
    return sum(task["items"] for task in tasks.values())


def _rows(form: Form, rng: Rng, split: language.Split, count: int) -> list[Row]:
    """Rows with distinct prompts, the operations in turn; 'kind' facts are an open book."""
    rows: dict[str, Row] = {}
    for _ in range(1000 * count):
        if len(rows) == count:
            return list(rows.values())
        op = form.ops[len(rows) % len(form.ops)]
        task = language.sample_operation(op, rng, "train" if op == "kind" else split)
        question = language.render(task, rng)
        if question not in rows:
            rows[question] = {"id": f"{split}-{len(rows)}", **form.row(task, question, rng)}
    raise HarnessError(
        f"split {split!r} has fewer than {count} distinct prompts for {', '.join(form.ops)}; ask "
        "for fewer academic items"
    )
