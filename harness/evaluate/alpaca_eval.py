"""AlpacaEval 2.0: alpaca_eval's annotator builds the prompts, draws the order and reads the
log-probs; its metrics make the scores. And two checkpoints against each other, one's answers in the
place of the baseline's.

Only the annotator's completion function is ours: every prompt of a checkpoint goes to the judge in
one concurrent batch. Rows are aligned by id, never by position; a failed row has a status and no
preference (never -1); the length-controlled point is the library's own GLM, its interval comes from
`lc` (jackknife over instructions).
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from harness.evaluate import annotator as annotators
from harness.evaluate import benchmark
from harness.evaluate.annotator import OFFICIAL_ANNOTATOR, Annotation, Pair
from harness.evaluate.benchmark import MODEL_ID, Counting, Desk, Measure
from harness.evaluate.lc import compute_metrics, read_gamed, write_gamed
from harness.judge import verdicts
from harness.judge.client import JudgeClient
from harness.judge.journal import finalise
from harness.records import (
    HarnessError,
    Score,
    StageOutcome,
    StageTask,
    Status,
    canonical_json,
    content_hash,
)
from harness.study.sections import JudgeSettings, Section
from harness.study.tasks import Answers, AnswerTask
from harness.study.work import Work

NAME = "alpaca_eval"
OFFICIAL_BASELINE = "4ebba41e7401"
"""Content hash of the 805 instructions with the gpt4_1106_preview outputs, in official order."""
OFFICIAL_INSTRUCTIONS = ("3dadce0b6ed9", "765e42983059")
"""Content hash of the 805 instructions in official order, and sorted."""
OFFICIAL_JUDGE = "gpt-4-1106-preview"


class AlpacaEvalSettings(benchmark.JudgedSettings):
    instructions: str = ""
    """JSON list with instruction, output (the baseline's), dataset; empty: the pocket world's."""
    gamed_baseline: str = ""
    """CSV in the library's df_gamed form."""
    annotator: str = OFFICIAL_ANNOTATOR
    """The library's annotator, by name; ``judge.annotator`` goes before it."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of the policy's answers; 0: greedy."""


class JudgeTask(Section):
    """``judge.alpaca_eval``, and ``judge.pairwise``."""

    judge: JudgeSettings
    annotator: str


# -- its files -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Instruction:
    """One row of eval.json. id: its position, which is its ``index`` in df_gamed.csv."""

    id: str
    instruction: str
    output: str


class _Baseline(benchmark.Form):
    instruction: str
    output: str


class _Annotated(benchmark.Form):
    instruction: str
    output_1: str
    output_2: str


def check_annotations(stored: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    """One model's annotations against one baseline, checked, with `preference_of` them."""
    if not stored:
        raise HarnessError(f"{path}: holds no annotation")
    rows = benchmark.checked(stored, _Annotated, path)
    for number, row in enumerate(rows, 1):
        value = row.get("preference")
        preference = annotators.preference_of(value)
        if preference is None and value not in (None, -1) and value == value:
            raise HarnessError(
                f"{path}: row {number}: preference {value!r} is no number from 1 (output_1 wins) "
                "to 2 (output_2 wins), 0 (a draw), nothing or -1 (unread)"
            )
        row["preference"] = preference
    for key in ("annotator", "generator_1", "generator_2"):
        names = sorted({str(row[key]) for row in rows if key in row})
        if len(names) > 1:
            raise HarnessError(f"{path}: mixes {key} {', '.join(names[:5])}; wants one file each")
    doubled = doubled_instructions([row["instruction"] for row in rows])
    if doubled:
        raise HarnessError(f"{path}: rows {', '.join(doubled[:5])} annotate the same instruction")
    return rows


def load_instructions(path: Path) -> list[Instruction]:
    """The benchmark's rows in official order; doubled ids are an error."""
    rows = benchmark.by_key(benchmark.read_rows(path), "id", path)
    return [Instruction(str(name), r["instruction"], r["output"]) for name, r in rows.items()]


def baseline_hash(instructions: Sequence[Instruction]) -> str:
    """Content hash of instructions and baseline outputs, in order."""
    return content_hash([(item.instruction, item.output) for item in instructions], length=12)


def instruction_key(text: str) -> str:
    """An instruction as it is matched: Unicode composed, white space of one blank."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def doubled_instructions(instructions: Sequence[str]) -> list[str]:
    """The rows of every instruction that occurs more than once, from 1: ``3 and 7``."""
    rows: dict[str, list[str]] = {}
    for number, text in enumerate(instructions, 1):
        rows.setdefault(instruction_key(text), []).append(str(number))
    return [" and ".join(numbers) for numbers in rows.values() if len(numbers) > 1]


def in_official_order(instructions: Sequence[str]) -> bool | None:
    """Whether AlpacaEval's 805 instructions stand as the library numbers them; None of others."""
    keys = [instruction_key(text) for text in instructions]
    hashes = tuple(content_hash(order, length=12) for order in (keys, sorted(keys)))
    return hashes[0] == OFFICIAL_INSTRUCTIONS[0] if hashes[1] == OFFICIAL_INSTRUCTIONS[1] else None


def prepare(settings: AlpacaEvalSettings, out: Path) -> dict[str, Any]:
    """eval.json with ids "0", "1", … in the file's order, and df_gamed.csv for just these."""
    path = benchmark.given_file(settings, NAME, "instructions")
    rows = benchmark.checked(benchmark.read_rows(path), _Baseline, path)
    if not rows:
        raise HarnessError(f"{path}: holds no instruction")
    if any(str(row.get("id", number)) != str(number) for number, row in enumerate(rows)):
        raise HarnessError(
            f"{path}: ids should be 0 to {len(rows) - 1} in order (or be left out); difficulty is "
            "looked up by this number"
        )
    asked = [row["instruction"] for row in rows]
    doubled = doubled_instructions(asked)
    if doubled:
        raise HarnessError(
            f"{path}: rows {', '.join(doubled[:5])} hold the same instruction; keep one of each"
        )
    if settings.gamed_baseline and in_official_order(asked) is False:
        raise HarnessError(
            f"{path}: AlpacaEval's 805 instructions in another order; their difficulty in "
            f"{settings.gamed_baseline} is looked up by position, so give them in the order of the "
            "library's own file"
        )
    kept = [
        {
            "id": str(number),
            "instruction": row["instruction"],
            "output": row["output"],
            "generator": str(row.get("generator", "baseline")),
            "dataset": str(row.get("dataset", "")),
        }
        for number, row in enumerate(rows[: settings.limit or None])
    ]
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, ensure_ascii=True, indent=0) + "\n"
    (out / "eval.json").write_text(text, encoding="utf-8")
    summary: dict[str, Any] = {
        "expected": len(kept),
        "instructions": baseline_hash(load_instructions(out / "eval.json")),
        "left_out": len(rows) - len(kept),
    }
    if settings.gamed_baseline:
        gamed = read_gamed(benchmark.given_file(settings, NAME, "gamed_baseline"), len(rows))
        write_gamed(out / "df_gamed.csv", [row for row in gamed if row["index"] < len(kept)])
    else:
        summary["flags"] = ["no_gamed_baseline"]
    return summary


# -- what a policy is asked ------------------------------------------------------------------------
class Instructions(benchmark.QuestionRows):
    def __init__(self, task: StageTask[AnswerTask]) -> None:
        self.name, self.drawn = NAME, task.settings.answers[NAME]
        rows = benchmark.read_rows(task.inputs["benchmarks"] / NAME / "eval.json")
        self.rows = [
            {"id": str(place), "dataset": "", **row, "question": row["instruction"]}
            for place, row in enumerate(rows)
        ]

    def write(self, desk: Desk, out: Path) -> None:
        """``alpaca_eval.json``: the library's model_outputs, and a status beside each."""
        rows = []
        for row in self.rows:
            answer = desk.answers[NAME, row["id"]]
            kept = {key: row[key] for key in ("id", "instruction", "dataset")}
            said = {"output": answer.text.strip(), "status": answer.status}
            rows.append(kept | said | {"generator": MODEL_ID})
        write_outputs(out, rows)


def write_outputs(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``alpaca_eval.json``, a row a line."""
    text = ",\n".join(canonical_json(row) for row in rows)
    (out / "alpaca_eval.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


# -- judging ---------------------------------------------------------------------------------------
@dataclass
class Answered:
    """An instruction with the model's answer: what is judged, and why it is not."""

    item: Instruction
    output: str
    status: Status
    flags: list[str]


def align(instructions: Sequence[Instruction], path: Path) -> list[Answered]:
    """Every instruction with its answer, by id. Reordered answers are put right; doubled, unknown
    or mismatched ones are an error naming them.

    An instruction without an answer row gets status ``no_answer``; so does an empty answer. Cut-off
    answers are judged and flagged.
    """
    by_id: dict[str, Mapping[str, Any]] = {}
    wrong: list[str] = []
    known = {item.id: item.instruction for item in instructions}
    for given in benchmark.read_rows(path):
        name = str(given["id"])
        if name in by_id:
            wrong.append(f"{name} (answered twice)")
        elif name not in known:
            wrong.append(f"{name} (not in the benchmark)")
        elif given.get("instruction", known[name]) != known[name]:
            wrong.append(f"{name} (another instruction than the benchmark's)")
        by_id[name] = given
    if wrong:
        listed = ", ".join(wrong[:10]) + (" …" if len(wrong) > 10 else "")
        raise HarnessError(f"{path}: answers do not fit the benchmark: id {listed}")
    rows = []
    for item in instructions:
        answer = by_id.get(item.id, {"status": "no_answer"})
        output = str(answer.get("output") or "")
        status, flags = verdicts.answer_status(answer.get("status", "ok"), output)
        rows.append(Answered(item, output, status, flags))
    return rows


def safe_pair(row: Answered) -> Pair:
    """What the judge is shown: delimiters defused, and flagged, where the outputs differ."""
    baseline, output = row.item.output, row.output
    if baseline != output:
        baseline, in_baseline = verdicts.neutralise(baseline, verdicts.ALPACA_EVAL_PATTERNS)
        output, in_output = verdicts.neutralise(output, verdicts.ALPACA_EVAL_PATTERNS)
        row.flags += [f"neutralised in the baseline: {match}" for match in in_baseline]
        row.flags += [f"neutralised: {match}" for match in in_output]
    return Pair(row.item.id, row.item.instruction, baseline, output)


def run(task: StageTask[JudgeTask]) -> StageOutcome:
    """Stage ``judge.alpaca_eval``: answer, benchmarks → scores, judgments, summary."""
    instructions = load_instructions(task.inputs["benchmarks"] / NAME / "eval.json")
    rows = align(instructions, task.inputs["answer"] / "alpaca_eval.json")
    return _judge(task, NAME, instructions, rows)


def run_pair(task: StageTask[JudgeTask]) -> StageOutcome:
    """Stage ``judge.pairwise``: answer_a, answer_b, benchmarks → the same files: b's win rates
    against a, in percent. A row is judged when both answered, else it carries the failure of b, or
    of a.
    """
    instructions = load_instructions(task.inputs["benchmarks"] / NAME / "eval.json")
    folders = (task.inputs[name] for name in ("answer_a", "answer_b"))
    both = (align(instructions, folder / "alpaca_eval.json") for folder in folders)
    rows = []
    for a, b in zip(*both, strict=True):
        status = b.status if b.status != "ok" else a.status
        flags = [*b.flags, *(f"baseline {flag}" for flag in a.flags)]
        rows.append(Answered(replace(b.item, output=a.output), b.output, status, flags))
    return _judge(task, "alpaca_eval_pairwise", instructions, rows)


def _judge(
    task: StageTask[JudgeTask],
    name: str,
    instructions: Sequence[Instruction],
    rows: Sequence[Answered],
) -> StageOutcome:
    """Annotate every row that has an answer, for every repeat, and score it."""
    judge, annotator = task.settings.judge, task.settings.annotator
    pairs = [safe_pair(row) for row in rows if row.status == "ok"]
    with JudgeClient(judge, task.runtime, task.out) as client:
        calls = judge.repeats * judge.samples
        drawn = annotators.annotate(pairs, client, annotator=annotator, repeats=calls)
        costs = client.costs
    flags = {row.item.id: row.flags for row in rows}
    notes = {key: note.fields() | {"flags": flags[key[0]]} for key, note in drawn.items()}
    finalise(task.out, notes)
    found = annotators.pooled(drawn, judge.samples)
    gamed = read_gamed(task.inputs["benchmarks"] / NAME / "df_gamed.csv", len(instructions))
    version = version_of(annotator, instructions)
    scores: list[Score] = []
    summary: dict[str, Any] = {}
    for repeat in range(judge.repeats):
        judged = {one: note for (one, number), note in found.items() if number == repeat}
        shared = (name, version, verdicts.judge_label(judge), repeat)
        more, told = scored(rows, judged, gamed, shared)
        scores += more
        summary = summary or told
    summary |= {
        "verdicts_cut_off": verdicts.cut_off({key: note.reason for key, note in found.items()}),
        "judge": judge.model,
        "verdict": annotators.how_read(annotator, judge),
        "benchmark_version": version,
        "comparable": baseline_hash([row.item for row in rows]) == OFFICIAL_BASELINE
        and judge.model == OFFICIAL_JUDGE,
    }
    return benchmark.finish(task, scores, summary, costs, primary="win_rate")


def version_of(annotator: str, instructions: Sequence[Instruction]) -> str:
    """What is compared: library, annotator, instructions with the baseline's outputs."""
    library = f"alpaca-eval-{metadata.version('alpaca-eval')}"
    return f"{library} {annotator} instructions:{baseline_hash(instructions)}"


def scored(
    rows: Sequence[Answered],
    judged: Mapping[str, Annotation],
    gamed: Sequence[Mapping[str, Any]],
    shared: tuple[str, str, str, int],
) -> tuple[list[Score], dict[str, Any]]:
    """Score rows of one repeat (win_rate, length_controlled_win_rate, in the first repeat length),
    and its summary: the library's metrics, counts by status, and everything flagged. shared:
    benchmark, its version, judge, repeat.
    """
    benchmark_name, version, judge, repeat = shared
    statuses = {row.item.id: row.status for row in rows}
    statuses |= {name: note.status for name, note in judged.items()}
    known = {name: one.preference for name, one in judged.items() if one.preference is not None}
    kept = [row for row in rows if row.item.id in known]
    preferences = [known[row.item.id] for row in kept]
    outputs = [row.item.output for row in kept], [row.output for row in kept]
    metrics = compute_metrics(preferences, *outputs, [int(row.item.id) for row in kept], gamed)
    pseudo = dict(zip((row.item.id for row in kept), metrics.pseudo, strict=False))
    scores = []
    for row in rows:
        name, texts = row.item.id, (row.item.instruction, row.item.output, row.output)
        source, status = content_hash(*texts, length=16), statuses[name]
        win = 100.0 * (known[name] - 1.0) if name in known else None
        values: list[tuple[str, float | None, Status, str]] = [("win_rate", win, status, judge)]
        if gamed:
            values.append(("length_controlled_win_rate", pseudo.get(name), status, judge))
        if repeat == 0:
            length = float(len(row.output)) if row.status == "ok" else None
            values.append(("length", length, row.status, ""))
        for value in values:
            scores.append(Score(benchmark_name, version, name, name, *value, repeat, source))
    answers = [row.output for row in rows if row.status == "ok"]
    kinds = [
        (one.item.id, [flag.replace(":", "").split()[0] for flag in one.flags]) for one in rows
    ]
    flagged = benchmark.flagged(kinds)
    return scores, {
        "win_rate": metrics.win_rate,
        "standard_error": metrics.standard_error,
        "length_controlled_win_rate": metrics.length_controlled,
        "lc_standard_error": metrics.lc_standard_error,
        "lc_standard_error_library": metrics.lc_standard_error_library,
        "n_total": metrics.scored,
        "expected": len(rows),
        "avg_length": sum(map(len, answers)) // len(answers) if answers else None,
        "flags": sorted([*metrics.flags, *benchmark.constant(answers)]),
        "statuses": dict(Counter(statuses.values())),
        "truncated": flagged.get("truncated", []),
        "neutralised": flagged.get("neutralised", []),
    }


# -- the record ------------------------------------------------------------------------------------
SIZE = benchmark.Size(NAME, "AlpacaEval instructions", 805, 128)
LC = Measure(
    NAME,
    "length_controlled_win_rate",
    "AlpacaEval LC",
    "percent",
    point="length_controlled_win_rate",
    items="instructions",
    table="table_1",
)
WIN_RATE = replace(LC, metric="win_rate", title="AlpacaEval WR", point="", scale=benchmark.PERCENT)
LENGTH = Measure(
    NAME,
    "length",
    "length",
    "characters",
    digits=1,
    better=0,
    items="instructions",
    table="table_1",
    long="answer length (AlpacaEval)",
)


def settle(asked: benchmark.Asked) -> JudgeTask:
    """Settings of the judging stage."""
    annotator = annotators.annotator_of(asked.judge, asked.settings.annotator)
    return JudgeTask(judge=asked.judge, annotator=annotator)


def _work(count: Counting, task: JudgeTask) -> Work:
    prompt = count.lengths.verdict_prompt
    return SIZE.judged(count, task.judge, prompt, "verdicts", pairwise=True)


BENCHMARK = benchmark.Benchmark(
    NAME,
    "AlpacaEval",
    settings=AlpacaEvalSettings,
    stage="judge.alpaca_eval",
    run="harness.evaluate.alpaca_eval:run",
    task=JudgeTask,
    settle=settle,
    measures=lambda _evaluation: (LC, WIN_RATE, LENGTH),
    work=_work,
    seconds=2.0,
    judged=True,
    answers=lambda settings: Answers(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature
    ),
    questions=Instructions,
    asked=SIZE.asked,
    files=("instructions",),
    other_files=("gamed_baseline",),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_alpaca_eval",
    samples=benchmark.Samples(
        "alpaca_eval.json",
        "win_rate",
        "preferred to the baseline, percent",
        form="alpaca_eval",
        neutral=50.0,
    ),
    pairs=benchmark.PairStage("judge.pairwise", "harness.evaluate.alpaca_eval:run_pair", _work),
    given=benchmark.GivenFiles(
        "harness.evaluate.given:alpaca_eval_answers",
        "harness.evaluate.given:alpaca_eval_verdicts",
        both=True,
    ),
)
