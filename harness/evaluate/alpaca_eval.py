"""AlpacaEval 2.0: alpaca_eval's annotator builds the prompts, draws the order and reads the
log-probs; its metrics make the scores.

Only its completion function is ours: every prompt of a checkpoint goes to the judge in one
concurrent batch. Rows are aligned by id, never by position; a failed row has a status and no
preference (never -1); the length-controlled point is the library's own GLM, its interval comes from
`lc` (jackknife over instructions).
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from harness.evaluate import lc, libraries
from harness.evaluate.annotator import Annotation, Pair, annotate
from harness.evaluate.benchmark import (
    MODEL_ID,
    Ask,
    Asked,
    Benchmark,
    Counting,
    Desk,
    Measure,
    PairStage,
    Samples,
    asked_work,
    given_file,
    judged_work,
)
from harness.judge import verdicts
from harness.judge.client import JOURNAL_NAME, JUDGMENTS_NAME, JudgeClient, finalise
from harness.records import (
    HarnessError,
    Score,
    StageOutcome,
    StageTask,
    Status,
    canonical_json,
    content_hash,
    write_scores,
)
from harness.study.sections import JudgeSettings, NonNegative, Positive, Section
from harness.study.tasks import Answers, AnswerTask
from harness.study.work import Work


class AlpacaEvalSettings(Section):
    instructions: str = ""
    """JSON list with instruction, output (the baseline's), dataset; empty: the pocket world's."""
    gamed_baseline: str = ""
    """CSV in the library's df_gamed form."""
    annotator: str = "weighted_alpaca_eval_gpt4_turbo"
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of the policy's answers; 0: greedy."""
    limit: NonNegative = 0
    max_new_tokens: Positive = 24


class JudgeTask(Section):
    """``judge.alpaca_eval``, and ``judge.pairwise``."""

    judge: JudgeSettings
    annotator: str


OFFICIAL_BASELINE = "4ebba41e7401"
"""Content hash of the 805 instructions with the gpt4_1106_preview outputs, in official order."""
OFFICIAL_JUDGE = "gpt-4-1106-preview"
GAMED_COLUMNS = (
    "model",
    "preference",
    "index",
    "instruction_difficulty",
    "std_delta_len",
    "not_gamed_baseline",
)


@dataclass(frozen=True)
class Instruction:
    """One row of eval.json. Its position among all rows is its ``index`` in df_gamed.csv."""

    id: str
    instruction: str
    output: str
    generator: str = "baseline"


@dataclass(frozen=True)
class Metrics:
    """Scores of one model against the baseline over the rows that have a preference. Percent; None
    where undefined.

    pseudo: jackknife pseudo-value of the length-controlled win rate by row, in the order of the
    rows given; their mean is the point.
    """

    win_rate: float | None
    standard_error: float | None
    length_controlled: float | None
    lc_standard_error: float | None
    lc_standard_error_library: float | None
    scored: int
    pseudo: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """A JSON file that holds a list of rows; HarnessError names the file otherwise."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HarnessError(f"{path} does not exist") from None
    except ValueError as error:
        raise HarnessError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise HarnessError(f"{path}: wants a JSON list of rows, found {type(rows).__name__}")
    return rows


def load_instructions(path: Path) -> list[Instruction]:
    """The benchmark's rows in official order; doubled ids are an error."""
    rows = [
        Instruction(
            str(row["id"]), row["instruction"], row["output"], row.get("generator", "baseline")
        )
        for row in read_json_rows(path)
    ]
    doubled = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if doubled:
        raise HarnessError(f"{path}: id {', '.join(doubled[:10])} occurs more than once")
    return rows


def baseline_hash(instructions: Sequence[Instruction]) -> str:
    """Content hash of instructions and baseline outputs, in order."""
    return content_hash([(item.instruction, item.output) for item in instructions], length=12)


def read_gamed(path: Path, count: int) -> list[dict[str, Any]]:
    """Rows of df_gamed.csv, checked: every gamed baseline covers index 0..count-1 once. Empty when
    there is no such file.
    """
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in GAMED_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise HarnessError(
                f"{path}: no column {', '.join(missing)}; wants {', '.join(GAMED_COLUMNS)}"
            )
        rows: list[dict[str, Any]] = []
        for line, raw in enumerate(reader, 2):
            try:
                rows.append(
                    {
                        "model": raw["model"],
                        "preference": float(raw["preference"]),
                        "index": int(raw["index"]),
                        "instruction_difficulty": float(raw["instruction_difficulty"]),
                        "std_delta_len": float(raw["std_delta_len"]),
                        "not_gamed_baseline": raw["not_gamed_baseline"].strip() == "True",
                    }
                )
            except (ValueError, AttributeError, TypeError) as error:
                raise HarnessError(f"{path}:{line}: {error}") from error
    for model in dict.fromkeys(row["model"] for row in rows):
        index = sorted(row["index"] for row in rows if row["model"] == model)
        if index != list(range(count)):
            raise HarnessError(
                f"{path}: gamed baseline {model} has {len(index)} rows; wants one for each index "
                f"0..{count - 1}"
            )
    return rows


def write_gamed(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write df_gamed.csv in the library's columns; floats in full."""
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(GAMED_COLUMNS)
        writer.writerows(
            [row[name] if isinstance(row[name], str) else repr(row[name]) for name in GAMED_COLUMNS]
            for row in rows
        )


def keep_gamed(rows: Sequence[Mapping[str, Any]], positions: Sequence[int]) -> list[dict[str, Any]]:
    """The gamed rows of the instructions at ``positions``, renumbered 0..n-1: the library's join by
    position is then the join by id.
    """
    renumbered = {old: new for new, old in enumerate(positions)}
    order = {
        model: number for number, model in enumerate(dict.fromkeys(row["model"] for row in rows))
    }
    kept = [
        {**row, "index": renumbered[row["index"]]} for row in rows if row["index"] in renumbered
    ]
    return sorted(kept, key=lambda row: (order[row["model"]], row["index"]))


def compute_metrics(
    preferences: Sequence[float],
    baseline: Sequence[str],
    outputs: Sequence[str],
    positions: Sequence[int],
    gamed: Sequence[Mapping[str, Any]],
) -> Metrics:
    """Win rate and length-controlled win rate of n rows with preferences in 1..2 (2: the model's
    output is better).

    positions: index of each row in df_gamed. Gamed rows of absent instructions are left out. Where
    the GLM is undefined (all length differences equal, constant preference, fewer than ten rows)
    the length-controlled win rate is the win rate, and flagged.
    """
    if not preferences:
        return Metrics(None, None, None, None, None, 0, flags=("no_scored_rows",))
    library = libraries.alpaca_eval()
    plain = library.metrics.get_winrate([{"preference": p} for p in preferences])
    win_rate, error = (
        float(plain["win_rate"]),
        float(plain["standard_error"]) if len(preferences) > 1 else None,
    )
    if not gamed:
        return Metrics(
            win_rate, error, None, None, None, len(preferences), flags=("no_gamed_baseline",)
        )
    kept = keep_gamed(gamed, positions)
    chance = np.asarray(preferences, dtype=float) - 1.0
    difficulty = {row["index"]: row["instruction_difficulty"] for row in reversed(kept)}
    own = lc.OwnRows(
        chance,
        np.array([len(a) - len(b) for a, b in zip(baseline, outputs, strict=True)], dtype=float),
        np.array([difficulty[i] for i in range(len(chance))]),
    )
    reason = lc.degenerate(own)
    if reason:
        return Metrics(
            win_rate, error, win_rate, error, None, len(chance), tuple(100.0 * chance), (reason,)
        )
    with tempfile.TemporaryDirectory() as folder:
        write_gamed(Path(folder) / "df_gamed.csv", kept)
        found = libraries.library_length_controlled(
            _frame(preferences, baseline, outputs), Path(folder) / "df_gamed.csv"
        )
    column = {
        name: np.array([row[name] for row in kept], dtype=float)
        for name in ("preference", "std_delta_len", "instruction_difficulty")
    }
    rows = lc.GamedRows(
        np.array([row["index"] for row in kept]),
        column["preference"],
        column["std_delta_len"],
        column["instruction_difficulty"],
    )
    point = float(found["length_controlled_winrate"])
    pseudo = lc.pseudo_values(point, lc.leave_one_out(own, rows))
    return Metrics(
        win_rate,
        error,
        point,
        lc.standard_error(pseudo),
        float(found["lc_standard_error"]),
        len(chance),
        tuple(pseudo.tolist()),
    )


def _frame(preferences: Sequence[float], baseline: Sequence[str], outputs: Sequence[str]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {
            "preference": list(preferences),
            "output_1": list(baseline),
            "output_2": list(outputs),
            "generator_1": "baseline",
            "generator_2": "model",
        }
    )


ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"


@dataclass
class Row:
    """An instruction with the model's answer: what is judged, and why it is not."""

    item: Instruction
    position: int
    output: str
    status: Status
    flags: list[str] = field(default_factory=list)


def align(
    instructions: Sequence[Instruction], answers: Sequence[Mapping[str, Any]], path: Path
) -> list[Row]:
    """Every instruction with its answer, by id. Reordered answers are put right; doubled, unknown
    or mismatched ones are an error naming them.

    An instruction without an answer row gets status ``no_answer``; so does an empty answer. Cut-off
    answers are judged and flagged.
    """
    by_id: dict[str, Mapping[str, Any]] = {}
    wrong: list[str] = []
    known = {item.id: item for item in instructions}
    for answer in answers:
        name = str(answer["id"])
        if name in by_id:
            wrong.append(f"{name} (answered twice)")
        elif name not in known:
            wrong.append(f"{name} (not in the benchmark)")
        elif answer.get("instruction", known[name].instruction) != known[name].instruction:
            wrong.append(f"{name} (another instruction than the benchmark's)")
        by_id[name] = answer
    if wrong:
        raise HarnessError(
            f"{path}: answers do not fit the benchmark: id "
            f"{', '.join(wrong[:10])}{' …' if len(wrong) > 10 else ''}"
        )
    rows = []
    for position, item in enumerate(instructions):
        answer = by_id.get(item.id, {"output": "", "status": "no_answer"})
        output, status, flags = str(answer.get("output") or ""), answer.get("status", "ok"), []
        if status == "truncated":
            status, flags = "ok", ["truncated"]
        if status == "ok" and output.strip() in verdicts.FAILED_ANSWERS:
            status = "error"
        if status == "ok" and not output.strip():
            status = "no_answer"
        rows.append(Row(item, position, output, status, flags))
    return rows


def safe_pair(row: Row) -> Pair:
    """What the judge is shown: both outputs with judge delimiters defused (noted in the row's
    flags); equal outputs stay as they are.
    """
    baseline, output = row.item.output, row.output
    if baseline != output:
        baseline, in_baseline = verdicts.neutralise(baseline, verdicts.ALPACA_EVAL_PATTERNS)
        output, in_output = verdicts.neutralise(output, verdicts.ALPACA_EVAL_PATTERNS)
        row.flags += [f"neutralised in the baseline: {match}" for match in in_baseline] + [
            f"neutralised: {match}" for match in in_output
        ]
    return Pair(row.item.id, row.item.instruction, baseline, output)


def judge_rows(
    task: StageTask[JudgeTask], rows: Sequence[Row], judge: JudgeSettings
) -> tuple[dict[tuple[str, int], Annotation], dict[str, float]]:
    """Annotate every row that has an answer, for every repeat; journal and judgments.jsonl are left
    in ``task.out``.
    """
    pairs = [safe_pair(row) for row in rows if row.status == "ok"]
    journal = task.out / JOURNAL_NAME
    with JudgeClient(judge, task.runtime, journal) as client:
        found = annotate(pairs, client, annotator=task.settings.annotator, repeats=judge.repeats)
        costs = dict(client.costs)
    flags = {row.item.id: row.flags for row in rows}
    finalise(
        journal,
        task.out / JUDGMENTS_NAME,
        {key: note.fields() | {"flags": flags[key[0]]} for key, note in found.items()},
    )
    return found, costs


def score_rows(
    rows: Sequence[Row],
    found: Mapping[tuple[str, int], Annotation],
    gamed: Sequence[Mapping[str, Any]],
    judge: JudgeSettings,
    benchmark_version: str,
    benchmark: str,
) -> tuple[list[Score], Metrics]:
    """Score rows of every repeat (win_rate, length_controlled_win_rate, length) and the first
    repeat's metrics.
    """
    scores: list[Score] = []
    first: Metrics | None = None
    for repeat in range(judge.repeats):
        judged = [
            row
            for row in rows
            if (note := found.get((row.item.id, repeat))) is not None
            and note.preference is not None
        ]
        preferences = [float(found[row.item.id, repeat].preference or 0.0) for row in judged]
        metrics = compute_metrics(
            preferences,
            [r.item.output for r in judged],
            [r.output for r in judged],
            [r.position for r in judged],
            gamed,
        )
        first = first or metrics
        pseudo = dict(zip([row.item.id for row in judged], metrics.pseudo, strict=False))
        for row in rows:
            note = found.get((row.item.id, repeat))
            status: Status = row.status if note is None else note.status
            shared: dict[str, Any] = {
                "benchmark": benchmark,
                "benchmark_version": benchmark_version,
                "item": row.item.id,
                "cluster": row.item.id,
                "judge": verdicts.judge_label(judge),
                "repeat": repeat,
                "source": content_hash(
                    row.item.instruction, row.item.output, row.output, length=16
                ),
            }
            value = (
                None if note is None or note.preference is None else 100.0 * (note.preference - 1.0)
            )
            scores.append(Score(metric="win_rate", value=value, status=status, **shared))
            if gamed:
                scores.append(
                    Score(
                        metric="length_controlled_win_rate",
                        value=pseudo.get(row.item.id),
                        status=status,
                        **shared,
                    )
                )
            if repeat == 0:
                answered = row.status == "ok"
                scores.append(
                    Score(
                        metric="length",
                        value=float(len(row.output)) if answered else None,
                        status=row.status,
                        **shared | {"judge": ""},
                    )
                )
    assert first is not None
    return scores, first


def version(instructions: Sequence[Instruction], settings: JudgeTask) -> str:
    """Library version, annotator and the hashed instruction set."""
    annotator = settings.annotator
    return f"alpaca-eval-{metadata.version('alpaca-eval')} {annotator} instructions:{baseline_hash(instructions)}"


def summarise(
    rows: Sequence[Row],
    found: Mapping[tuple[str, int], Annotation],
    metrics: Metrics,
    judge: JudgeSettings,
    benchmark_version: str,
    baseline: str,
) -> dict[str, Any]:
    """The first repeat's metrics, counts by status, everything flagged, and whether the published
    leaderboard may be compared.
    """
    flags = list(metrics.flags)
    texts = Counter(row.output for row in rows if row.status == "ok")
    if sum(texts.values()) >= 10 and max(texts.values()) > sum(texts.values()) / 2:
        flags.append("constant_answers")
    lengths = [len(row.output) for row in rows if row.status == "ok"]
    statuses = [
        row.status if (note := found.get((row.item.id, 0))) is None else note.status for row in rows
    ]
    return {
        "win_rate": metrics.win_rate,
        "standard_error": metrics.standard_error,
        "length_controlled_win_rate": metrics.length_controlled,
        "lc_standard_error": metrics.lc_standard_error,
        "lc_standard_error_library": metrics.lc_standard_error_library,
        "n_total": metrics.scored,
        "expected": len(rows),
        "avg_length": int(np.mean(lengths)) if lengths else None,
        "flags": sorted(flags),
        "statuses": dict(Counter(statuses)),
        "truncated": [row.item.id for row in rows if "truncated" in row.flags],
        "neutralised": [
            row.item.id for row in rows if any(flag.startswith("neutralised") for flag in row.flags)
        ],
        "judge": judge.model,
        "benchmark_version": benchmark_version,
        "comparable": baseline == OFFICIAL_BASELINE and judge.model == OFFICIAL_JUDGE,
    }


NAME = "alpaca_eval"


def run(task: StageTask[JudgeTask]) -> StageOutcome:
    """Stage ``judge.alpaca_eval``: answer, benchmarks → scores.parquet, judgments.jsonl,
    summary.json.
    """
    judge = task.settings.judge
    folder = task.inputs["benchmarks"] / "alpaca_eval"
    instructions = load_instructions(folder / "eval.json")
    rows = align(
        instructions,
        read_json_rows(task.inputs["answer"] / "alpaca_eval.json"),
        task.inputs["answer"] / "alpaca_eval.json",
    )
    annotations, costs = judge_rows(task, rows, judge)
    gamed = read_gamed(folder / "df_gamed.csv", len(instructions))
    scores, metrics = score_rows(
        rows, annotations, gamed, judge, version(instructions, task.settings), NAME
    )
    write_scores(task.out / "scores.parquet", scores)
    summary = summarise(
        rows,
        annotations,
        metrics,
        judge,
        version(instructions, task.settings),
        baseline_hash(instructions),
    )
    (task.out / "summary.json").write_text(canonical_json(summary) + "\n", encoding="utf-8")
    primary = [score for score in scores if score.metric == "win_rate"]
    return StageOutcome(
        rows=len(primary),
        errors=sum(score.status == "error" for score in primary),
        costs=costs,
        summary=summary,
    )


# -- what a policy is asked ------------------------------------------------------------------------


class Instructions:
    """Every instruction, asked once."""

    def __init__(self, task: StageTask[AnswerTask]) -> None:
        path = task.inputs["benchmarks"] / NAME / "eval.json"
        rows = json.loads(path.read_text(encoding="utf-8"))
        self.rows = [{**row, "id": str(row.get("id", place))} for place, row in enumerate(rows)]
        self.drawn = task.settings.answers[NAME]

    def rounds(self, _desk: Desk) -> Sequence[Iterable[Ask]]:
        """One round."""
        limit, temperature = self.drawn.max_new_tokens, self.drawn.temperature or 0.0
        asks = [
            Ask(
                (NAME, row["id"]),
                ({"role": "user", "content": row["instruction"]},),
                limit,
                temperature,
            )
            for row in self.rows
        ]
        return (asks,)

    def write(self, desk: Desk, out: Path) -> None:
        """``alpaca_eval.json``: the library's model_outputs, and a status beside each."""
        rows = (canonical_json(self._row(row, desk)) for row in self.rows)
        (out / "alpaca_eval.json").write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")

    def _row(self, row: Mapping[str, Any], desk: Desk) -> dict[str, Any]:
        answer = desk.answers[NAME, row["id"]]
        return {
            "id": row["id"],
            "instruction": row["instruction"],
            "output": answer.text.strip(),
            "generator": MODEL_ID,
            "dataset": row.get("dataset", ""),
            "status": answer.status,
        }


# -- its files -------------------------------------------------------------------------------------


COLUMNS = {"instruction": "", "output": "", "generator": "baseline", "dataset": ""}
"""Columns of eval.json besides the id, with what stands for a missing one."""


def prepare(settings: AlpacaEvalSettings, out: Path) -> dict[str, Any]:
    """eval.json with ids "0", "1", … in the file's order, and df_gamed.csv for exactly these
    instructions.
    """
    path = given_file(settings, "alpaca_eval", "instructions")
    rows = read_json_rows(path)
    for number, row in enumerate(rows):
        for key in ("instruction", "output"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise HarnessError(f"{path}: row {number}: key {key!r} should be text")
    ids = [str(row.get("id", number)) for number, row in enumerate(rows)]
    if ids != [str(number) for number in range(len(rows))]:
        raise HarnessError(
            f"{path}: ids should be 0 to {len(rows) - 1} in order (or be left out); difficulty is "
            "looked up by this number"
        )
    limit = settings.limit or len(rows)
    kept = [
        {"id": name, **{key: str(row.get(key, default)) for key, default in COLUMNS.items()}}
        for name, row in zip(ids[:limit], rows, strict=False)
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "eval.json").write_text(
        json.dumps(kept, ensure_ascii=True, indent=0) + "\n", encoding="utf-8"
    )
    digest = baseline_hash(load_instructions(out / "eval.json"))
    summary: dict[str, Any] = {
        "expected": len(kept),
        "instructions": digest,
        "left_out": len(rows) - len(kept),
    }
    if settings.gamed_baseline:
        gamed = read_gamed(given_file(settings, "alpaca_eval", "gamed_baseline"), len(rows))
        write_gamed(out / "df_gamed.csv", [row for row in gamed if row["index"] < len(kept)])
    else:
        summary["flags"] = ["no_gamed_baseline"]
    return summary


# -- its record ------------------------------------------------------------------------------------


INSTRUCTIONS, POCKET_INSTRUCTIONS = 805, 128
LC = Measure(
    NAME,
    "length_controlled_win_rate",
    "AlpacaEval LC",
    "percent",
    point="length_controlled_win_rate",
    items="instructions",
    table="table_1",
)
MEASURES = (
    LC,
    replace(LC, metric="win_rate", title="AlpacaEval WR", point="", scale=(0.0, 100.0)),
    replace(
        LC,
        metric="length",
        title="length",
        unit="characters",
        digits=1,
        better=0,
        point="",
        long="answer length (AlpacaEval)",
    ),
)


def settle(asked: Asked) -> JudgeTask:
    """Settings of the judging stage."""
    return JudgeTask(judge=asked.judge, annotator=asked.settings.annotator)


def _items(count: Counting) -> int:
    return count.limit(NAME, POCKET_INSTRUCTIONS if count.pocket else INSTRUCTIONS)


def _asked(count: Counting, task: AnswerTask) -> Work:
    length = min(count.lengths.judged_answer, task.answers[NAME].max_new_tokens)
    return asked_work(_items(count), length, "AlpacaEval instructions")


def _work(count: Counting, task: JudgeTask) -> Work:
    calls = _items(count) * task.judge.repeats
    return judged_work(calls, count.lengths.verdict_prompt, count.lengths.verdict_reply, "verdicts")


BENCHMARK = Benchmark(
    NAME,
    "AlpacaEval 2.0",
    settings=AlpacaEvalSettings,
    stage="judge.alpaca_eval",
    run="harness.evaluate.alpaca_eval:run",
    task=JudgeTask,
    settle=settle,
    measures=lambda _evaluation: MEASURES,
    work=_work,
    seconds=2.0,
    judged=True,
    answers=lambda settings: Answers(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature
    ),
    questions=Instructions,
    asked=_asked,
    files=("instructions",),
    other_files=("gamed_baseline",),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_alpaca_eval",
    samples=Samples(
        "alpaca_eval.json", "win_rate", "preferred to the baseline, percent", form="alpaca_eval"
    ),
    pairs=PairStage("judge.pairwise", "harness.evaluate.pairwise:run", _work),
)
