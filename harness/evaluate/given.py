"""Answers and verdicts that somebody else made, read as a study's own: AlpacaEval's model_outputs
and annotations, FastChat's model_answer and model_judgment.

Rows are aligned by instruction or question id. A file that is not of the study's questions, of its
baseline, or of one model alone is refused. What is read is scored by the benchmarks' own code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.evaluate import alpaca_eval, fastchat, mt_bench
from harness.evaluate.annotator import OFFICIAL_ANNOTATOR, Annotation
from harness.evaluate.benchmark import MODEL_ID, finish, load
from harness.evaluate.lc import read_gamed
from harness.evaluate.published import check_annotations
from harness.evaluate.registry import BENCHMARKS
from harness.files import hash_file
from harness.judge import verdicts as reading
from harness.records import (
    HarnessError,
    StageOutcome,
    StageTask,
    canonical_json,
    content_hash,
    read_jsonl,
    write_jsonl,
)
from harness.study.sections import JudgeSettings
from harness.study.tasks import GivenAnswersTask, GivenFile, GivenVerdictsTask


def answers(task: StageTask[GivenAnswersTask]) -> StageOutcome:
    """Stage ``answers.given``: benchmarks → the answer stage's file of every benchmark given."""
    rows = {}
    for name, file in task.settings.files.items():
        given = BENCHMARKS[name].given
        assert given is not None
        path = _unchanged(file)
        rows[name] = load(given.answers)(path, file.model, task.inputs["benchmarks"], task.out)
    return StageOutcome(rows=sum(rows.values()), summary=rows)


def verdicts(task: StageTask[GivenVerdictsTask]) -> StageOutcome:
    """Stage ``verdicts.given``: benchmarks (and answer, where one file holds both) →
    scores.parquet, summary.json.
    """
    given = BENCHMARKS[task.settings.benchmark].given
    assert given is not None
    _unchanged(task.settings)
    outcome: StageOutcome = load(given.verdicts)(task)
    return outcome


def _unchanged(file: GivenFile) -> Path:
    path = Path(file.path)
    if file.path_fingerprint and hash_file(path) != file.path_fingerprint:
        raise HarnessError(f"{path}: changed since the study was planned; plan and run again")
    return path


def _of(rows: Iterable[Any], key: str, model: str, path: Path) -> list[dict[str, Any]]:
    """The rows of one model. Raises HarnessError where it is not said which."""
    listed = list(rows)
    for number, row in enumerate(listed):
        if not isinstance(row, dict):
            raise HarnessError(f"{path}: row {number}: wants a mapping, found {str(row)[:40]!r}")
    found = dict.fromkeys(str(row.get(key, "")) for row in listed)
    if not model and len(found) > 1:
        raise HarnessError(
            f"{path}: holds {key} {', '.join(list(found)[:5])}; name one in column 'model'"
        )
    kept = [row for row in listed if not model or str(row.get(key, "")) == model]
    if not kept:
        raise HarnessError(
            f"{path}: no row of {key} {model!r}; it holds {', '.join(list(found)[:5]) or 'none'}"
        )
    return kept


# -- AlpacaEval ------------------------------------------------------------------------------------
def alpaca_eval_answers(path: Path, model: str, benchmarks: Path, out: Path) -> int:
    """``alpaca_eval.json`` from model_outputs or annotations; returns its rows."""
    folder = benchmarks / alpaca_eval.NAME
    instructions = alpaca_eval.load_instructions(folder / "eval.json")
    rows = _alpaca_eval(path, model, instructions)
    texts = (canonical_json(row) for row in rows)
    (out / "alpaca_eval.json").write_text("[\n" + ",\n".join(texts) + "\n]\n", encoding="utf-8")
    return len(rows)


def _alpaca_eval(
    path: Path, model: str, instructions: Sequence[alpaca_eval.Instruction]
) -> list[dict[str, Any]]:
    """The rows of a file of outputs or annotations as the answer stage writes them, with what is
    known of verdicts.
    """
    known = {alpaca_eval.instruction_key(one.instruction): one for one in instructions}
    given = alpaca_eval.read_json_rows(path)
    annotated = bool(given) and isinstance(given[0], dict) and "output_2" in given[0]
    kept = _of(given, "generator_2" if annotated else "generator", model, path)
    if annotated:
        try:
            check_annotations(kept)
        except HarnessError as error:
            raise HarnessError(f"{path}: {error}") from error
    rows, strange, other = [], [], []
    for number, row in enumerate(kept):
        text = row.get("output_2" if annotated else "output")
        if not isinstance(row.get("instruction"), str) or not isinstance(text, str):
            raise HarnessError(f"{path}: row {number}: wants texts 'instruction' and 'output'")
        one = known.get(alpaca_eval.instruction_key(row["instruction"]))
        if one is None:
            strange.append(row["instruction"])
            continue
        if annotated and row["output_1"] != one.output:
            other.append(one.id)
        fields = {"id": one.id, "instruction": one.instruction, "output": text, "status": "ok"}
        told = {name: row.get(name) for name in ("preference", "annotator") if annotated}
        rows.append(fields | {"generator": MODEL_ID} | told)
    # A study on fewer instructions (evaluation.alpaca_eval.limit) reads a whole file.
    if not rows or (strange and len(kept) <= len(instructions)):
        raise HarnessError(
            f"{path}: {len(strange)} of {len(kept)} instructions are not the benchmark's, the "
            f"first: {strange[:1]}"
        )
    if other:
        raise HarnessError(
            f"{path}: {len(other)} of {len(rows)} annotations are against another output than the "
            f"baseline's in evaluation.alpaca_eval.instructions (id {', '.join(other[:5])})"
        )
    return sorted(rows, key=lambda row: int(row["id"]))


def alpaca_eval_verdicts(task: StageTask[GivenVerdictsTask]) -> StageOutcome:
    """Scores from annotations: the library's metrics of their preferences, as in a study."""
    folder = task.inputs["benchmarks"] / alpaca_eval.NAME
    instructions = alpaca_eval.load_instructions(folder / "eval.json")
    answered = task.inputs["answer"] / "alpaca_eval.json"
    given, rows = alpaca_eval.read_json_rows(answered), alpaca_eval.align(instructions, answered)
    if any("preference" not in row for row in given):
        raise HarnessError(
            f"{task.settings.path}: these are answers, not annotations (no output_2, no "
            f"preference); give them in column {alpaca_eval.NAME!r}"
        )
    judged = {row["id"]: _annotation(row["preference"]) for row in given}
    annotator = str(given[0]["annotator"] or "unnamed annotator")
    gamed = read_gamed(folder / "df_gamed.csv", len(instructions))
    library = f"alpaca-eval-{metadata.version('alpaca-eval')}"
    hashed = alpaca_eval.baseline_hash(instructions)
    version = f"{library} {annotator} instructions:{hashed}"
    metrics = alpaca_eval.measure(rows, judged, gamed)
    shared = (alpaca_eval.NAME, version, f"{annotator} (given)", 0)
    scores = alpaca_eval.score_rows(rows, judged, metrics, shared, bool(gamed))
    summary = alpaca_eval.summarise(rows, judged, metrics) | {
        "judge": annotator,
        "benchmark_version": version,
        "comparable": hashed == alpaca_eval.OFFICIAL_BASELINE and annotator == OFFICIAL_ANNOTATOR,
    }
    return finish(task, scores, summary, primary="win_rate")


def _annotation(preference: Any) -> Annotation:
    """The library's preference (1 to 2); -1 and nothing are its words for unparsed."""
    if isinstance(preference, (int, float)) and 1.0 <= preference <= 2.0:
        return Annotation(float(preference), "ok")
    return Annotation(None, "unparsed")


# -- MT-Bench --------------------------------------------------------------------------------------
def mt_bench_answers(path: Path, model: str, _benchmarks: Path, out: Path) -> int:
    """``mt_bench.jsonl`` from FastChat's model_answer; returns its rows."""
    rows = []
    for row in _of(read_jsonl(path), "model_id", model, path):
        if len(row.get("choices", ())) != 1:
            raise HarnessError(
                f"{path}: question {row.get('question_id')}: wants one choice (FastChat judges the "
                f"first alone), found {len(row.get('choices', ()))}"
            )
        rows.append({**row, "model_id": MODEL_ID})
    write_jsonl(out / "mt_bench.jsonl", rows)
    fastchat.read_answers(out / "mt_bench.jsonl")
    return len(rows)


def mt_bench_verdicts(task: StageTask[GivenVerdictsTask]) -> StageOutcome:
    """Scores from single-answer judgments, read from their text as a study reads a judge's."""
    settings, path = task.settings, Path(task.settings.path)
    folder = task.inputs["benchmarks"] / mt_bench.NAME
    told = _of(read_jsonl(path), "model", settings.model, path)
    wanted = {"question_id", "turn", "judge", "user_prompt", "judgment"}
    for number, row in enumerate(told, 1):
        if not wanted <= set(row):
            missing = ", ".join(sorted(wanted - set(row)))
            raise HarnessError(f"{path}: judgment {number} has no {missing}")
    judges = sorted({str(row["judge"][0]) for row in told})
    if len(judges) > 1:
        raise HarnessError(f"{path}: judgments of {', '.join(judges)} are mixed; give one judge's")
    judge = JudgeSettings(kind="openai", model=judges[0])
    bench = fastchat.load_bench(folder, judges[0])
    given: dict[str, dict[str, Any]] = {}
    for row in map(fastchat.with_number, told):
        name = f"{row['question_id']}:{row['turn']}"
        if name in given:
            raise HarnessError(f"{path}: question {name} is judged twice")
        given[name] = row
    items, found = [], {}
    for question in bench.questions:
        for turn in range(1, len(question["turns"]) + 1):
            item = mt_bench.Item(question, turn, "no_answer")
            if item.name in given:
                row = given.pop(item.name)
                item.source = content_hash(row["user_prompt"], row["judgment"], length=16)
                found[item.name, 0] = _rating(row)
            items.append(item)
    if given and len(told) <= len(items):
        raise HarnessError(f"{path}: judges what the benchmark does not ask: {', '.join(given)}")
    judged = ((one, [found[one.name, 0]] if (one.name, 0) in found else []) for one in items)
    label = f"{judge.model} (given)"
    scores = [
        replace(mt_bench.score_row(one, 0, row, bench, judge), judge=label) for one, row in judged
    ]
    summary = mt_bench.summarise(scores, items, found, bench, judge)
    return finish(task, scores, summary)


def _rating(row: Mapping[str, Any]) -> dict[str, Any]:
    rating = reading.parse_rating(row["judgment"])
    return {
        "rating": rating.value,
        "score_status": "ok" if rating.value is not None else "unparsed",
        "reason": rating.reason,
        "fastchat_score": row.get("score"),
    }
