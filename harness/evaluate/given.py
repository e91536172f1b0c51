"""Answers and verdicts that somebody else made, read as a study's own: AlpacaEval's model_outputs
and annotations, model_answer and model_judgment of FastChat and of Arena-Hard, WildBench's results.

Rows are aligned by instruction or question id. A file that is not of the study's questions, of its
baseline, or of one model alone is refused. What is read is scored by the benchmarks' own code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.evaluate import alpaca_eval, arena_hard, mt_bench, wildbench
from harness.evaluate.annotator import OFFICIAL_ANNOTATOR, Annotation
from harness.evaluate.benchmark import MODEL_ID, by_key, finish, judging, load, read_rows
from harness.evaluate.lc import read_gamed
from harness.evaluate.registry import BENCHMARKS
from harness.files import hash_file
from harness.judge import verdicts as reading
from harness.records import (
    HarnessError,
    StageOutcome,
    StageTask,
    Status,
    Tally,
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
    """Stage ``verdicts.given``: benchmarks (and answer, of a file with both) → scores, summary."""
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
    for number, row in enumerate(listed, 1):
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
    """``alpaca_eval.json`` from model_outputs or annotations (with verdicts); returns its rows."""
    instructions = alpaca_eval.load_instructions(benchmarks / alpaca_eval.NAME / "eval.json")
    known = {alpaca_eval.instruction_key(one.instruction): one for one in instructions}
    given = read_rows(path)
    annotated = bool(given) and isinstance(given[0], dict) and "output_2" in given[0]
    kept = _of(given, "generator_2" if annotated else "generator", model, path)
    if annotated:
        kept = alpaca_eval.check_annotations(kept, path)
    said, told = ("output_2", ("preference", "annotator")) if annotated else ("output", ())
    for number, row in enumerate(kept, 1):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get(said), str):
            raise HarnessError(f"{path}: row {number}: wants texts 'instruction' and 'output'")
    keys = [alpaca_eval.instruction_key(row["instruction"]) for row in kept]
    _check_ids(path, keys, known, "instructions")
    rows, other = [], []
    for key, row in zip(keys, kept, strict=True):
        if key not in known:
            continue
        one = known[key]
        if annotated and row["output_1"] != one.output:
            other.append(one.id)
        fields = {"id": one.id, "instruction": one.instruction, "output": row[said], "status": "ok"}
        rows.append(fields | {"generator": MODEL_ID} | {name: row.get(name) for name in told})
    if other:
        raise HarnessError(
            f"{path}: {len(other)} of {len(rows)} annotations are against another output than the "
            f"baseline's in evaluation.alpaca_eval.instructions (id {', '.join(other[:5])})"
        )
    alpaca_eval.write_outputs(out, sorted(rows, key=lambda row: int(row["id"])))
    return len(rows)


def alpaca_eval_verdicts(task: StageTask[GivenVerdictsTask]) -> StageOutcome:
    """Scores from annotations: the library's metrics of their preferences, as in a study."""
    folder = task.inputs["benchmarks"] / alpaca_eval.NAME
    instructions = alpaca_eval.load_instructions(folder / "eval.json")
    answered = task.inputs["answer"] / "alpaca_eval.json"
    given, rows = read_rows(answered), alpaca_eval.align(instructions, answered)
    if any("preference" not in row for row in given):
        raise HarnessError(
            f"{task.settings.path}: these are answers, not annotations (no output_2, no "
            f"preference); give them in column {alpaca_eval.NAME!r}"
        )
    judged = {
        row["id"]: Annotation(row["preference"], "ok" if row["preference"] else "unparsed")
        for row in given
    }
    annotator = str(given[0]["annotator"] or "unnamed annotator")
    gamed = read_gamed(folder / "df_gamed.csv", len(instructions))
    version = alpaca_eval.version_of(annotator, instructions)
    shared = (alpaca_eval.NAME, version, f"{annotator} (given)", 0)
    scores, summary = alpaca_eval.scored(rows, judged, gamed, shared)
    summary |= {
        "judge": annotator,
        "benchmark_version": version,
        "comparable": annotator == OFFICIAL_ANNOTATOR
        and alpaca_eval.baseline_hash(instructions) == alpaca_eval.OFFICIAL_BASELINE,
    }
    return finish(task, scores, summary, primary="win_rate")


# -- MT-Bench --------------------------------------------------------------------------------------
def mt_bench_answers(path: Path, model: str, benchmarks: Path, out: Path) -> int:
    """``mt_bench.jsonl`` from FastChat's model_answer; returns its rows."""
    rows = []
    for row in _of(mt_bench.model_answers(path), "model_id", model, path):
        if len(row["choices"]) != 1:
            raise HarnessError(
                f"{path}: question {row['question_id']}: wants one choice (FastChat judges the "
                f"first alone), found {len(row['choices'])}"
            )
        rows.append({**row, "model_id": MODEL_ID})
    asked = mt_bench.load_bench(benchmarks / mt_bench.NAME).questions
    named = by_key(rows, "question_id", path)
    _check_ids(path, named, [question["question_id"] for question in asked])
    write_jsonl(out / "mt_bench.jsonl", rows)
    return len(rows)


def mt_bench_verdicts(task: StageTask[GivenVerdictsTask]) -> StageOutcome:
    """Scores from single-answer judgments, read from their text as a study reads a judge's."""
    settings, path = task.settings, Path(task.settings.path)
    told = _of(mt_bench.model_judgments(path), "model", settings.model, path)
    judge = JudgeSettings(kind="openai", model=_one_judge(path, (row["judge"][0] for row in told)))
    bench = mt_bench.load_bench(task.inputs["benchmarks"] / mt_bench.NAME, judge.model)
    named = ({**row, "question": f"{row['question_id']}:{row['turn']}"} for row in told)
    given = by_key(named, "question", path)
    items, found = [], {}
    shown = Tally(task.stage, "given mt_bench judgments")
    for question in bench.questions:
        for turn in range(1, len(question["turns"]) + 1):
            item = mt_bench.Item(question, turn, "no_answer")
            if item.name in given:
                row = given[item.name]
                shown.meet(item.name, _shown(path, row, bench, item))
                item.source = content_hash(row["user_prompt"], row["judgment"], length=16)
                rating = reading.parse_rating(row["judgment"])
                found[item.name, 0] = {
                    "rating": rating.value,
                    "score_status": "unparsed" if rating.value is None else "ok",
                    "reason": rating.reason,
                    "fastchat_score": row.get("score", rating.value),
                }
            items.append(item)
    _check_ids(path, given, [item.name for item in items])
    scores = []
    for item in items:
        read = [found[item.name, 0]] if (item.name, 0) in found else []
        row = mt_bench.score_row(item, 0, read, bench, judge)
        scores.append(replace(row, judge=f"{judge.model} (given)"))
    summary = mt_bench.summarise(scores, items, found, bench, judge)
    outcome = finish(task, scores, summary)
    return replace(outcome, left_out=(*outcome.left_out, *shown.left_out()))


def _shown(path: Path, row: Mapping[str, Any], bench: mt_bench.Bench, item: mt_bench.Item) -> str:
    """Whether the judge saw ``bench``'s references. HarnessError of another question."""
    # References were corrected over the years, and a translation has the same ids.
    prompt = " ".join(row["user_prompt"].split())
    asked, references = (
        [" ".join(text.split()) in prompt for text in (texts or [])[: item.turn]]
        for texts in (item.question["turns"], bench.reference_turns(item.question))
    )
    if not all(asked):
        raise HarnessError(
            f"{path}: question {item.name}: the judge was shown another question than "
            "evaluation.mt_bench names"
        )
    return "ok" if all(references) else "the judge was shown another reference answer"


def _one_judge(path: Path, names: Iterable[Any]) -> str:
    judges = sorted({str(name) for name in names})
    if len(judges) > 1:
        raise HarnessError(f"{path}: judgments of {', '.join(judges)} are mixed; give one judge's")
    return judges[0]


# -- rows of the benchmark's questions -------------------------------------------------------------
def _answered(path: Path, benchmarks: Path, name: str, given: Mapping[str, str], out: Path) -> int:
    """``<name>.jsonl`` of the answers given by question id; returns their number."""
    questions = list(read_jsonl(benchmarks / name / "questions.jsonl"))
    _check_ids(path, given, [row["id"] for row in questions])
    rows = []
    for row in questions:
        status = "ok" if row["id"] in given else "no_answer"
        rows.append({**row, "output": given.get(row["id"], "").strip(), "status": status})
    write_jsonl(out / f"{name}.jsonl", rows)
    return len(given)


def _check_ids(
    path: Path, given: Collection[Any], asked: Collection[Any], what: str = "questions"
) -> None:
    """Raise HarnessError for another benchmark's rows; a limited study reads a whole file."""
    strange = [name for name in given if name not in asked]
    if len(strange) == len(given) or (strange and len(given) <= len(asked)):
        raise HarnessError(
            f"{path}: {len(strange)} of {len(given)} {what} are not the benchmark's, the "
            f"first: {strange[:1]}"
        )


# -- Arena-Hard ------------------------------------------------------------------------------------
def arena_hard_answers(path: Path, model: str, benchmarks: Path, out: Path) -> int:
    """``arena_hard.jsonl`` from a file of model_answer; returns its rows."""
    rows = by_key(_of(arena_hard.answers_of(path), "model", model, path), "uid", path)
    texts = {uid: row["answer"] for uid, row in rows.items()}
    return _answered(path, benchmarks, arena_hard.NAME, texts, out)


def arena_hard_verdicts(task: StageTask[GivenVerdictsTask]) -> StageOutcome:
    """Scores from a file of model_judgment, by the verdicts that the owner's script read."""
    path = Path(task.settings.path)
    folder = task.inputs["benchmarks"] / arena_hard.NAME
    files = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    questions = list(read_jsonl(folder / "questions.jsonl"))
    told = by_key(_of(read_jsonl(path), "model", task.settings.model, path), "uid", path)
    _check_ids(path, told, [row["id"] for row in questions])
    named = _one_judge(path, (row.get("judge", "unnamed judge") for row in told.values()))
    items, found = [], {}
    for row in questions:
        games = _games(told[row["id"]], row, path) if row["id"] in told else ()
        status: Status = "ok" if games else "no_answer"
        item = arena_hard.item_of({**row, "output": "-", "status": "ok"})
        items.append(replace(item, status=status, source=content_hash(row, games, length=16)))
        for game, read in enumerate(games):
            kept = {"label": read, "score_status": "ok" if read else "unparsed", "reason": ""}
            found[f"{row['id']}:{game}", 0] = kept
    judge = JudgeSettings(kind="openai", model=named)
    return arena_hard.outcome(task, items, files, found, judge, f"{named} (given)")


def _games(told: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Both verdicts on a question, empty where none was read; HarnessError of other texts."""
    games = told.get("games")
    if not isinstance(games, list) or len(games) != 2 or not all(map(_is_game, games)):
        raise HarnessError(f"{path}: uid {asked['id']}: wants two games, each a mapping or null")
    for game in games:
        prompt = str(game["prompt"][-1]["content"]) if game and game.get("prompt") else ""
        if prompt and not (asked["baseline"] in prompt and asked["question"] in prompt):
            raise HarnessError(
                f"{path}: uid {asked['id']}: the judge was shown another question or baseline than "
                "evaluation.arena_hard names"
            )
    read = [str((game or {}).get("score") or "") for game in games]
    return tuple(label if label in arena_hard.VOTES else "" for label in read)


def _is_game(game: Any) -> bool:
    prompt = (game.get("prompt") or [{}]) if isinstance(game, dict) else game and [game]
    return game is None or (isinstance(prompt, list) and isinstance(prompt[-1], dict))


# -- WildBench -------------------------------------------------------------------------------------
def wildbench_answers(path: Path, model: str, benchmarks: Path, out: Path) -> int:
    """``wildbench.jsonl`` from results or judged results; returns its rows."""
    texts = {row["id"]: row["output"] for row in _wildbench(path, model, benchmarks)}
    return _answered(path, benchmarks, wildbench.NAME, texts, out)


def _wildbench(path: Path, model: str, benchmarks: Path) -> list[dict[str, Any]]:
    """Rows of one model: id, kind (``score``, the reference's name of a comparison, or empty for
    an answer alone), output, and value: its WB-Score or reward, None where it cannot be read.
    """
    asked = next(iter(read_jsonl(benchmarks / wildbench.NAME / "questions.jsonl")))
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            rows.append(_wildbench_row(row, set(asked["references"])))
            if not isinstance(rows[-1]["output"], str):
                raise TypeError
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise HarnessError(
                f"{path}: row {number}: wants session_id and output; or model_test, model_output "
                "and score; or model_A, model_B, one of them in evaluation.wildbench.references, "
                "model_outputs, winner and extent"
            ) from None
    kept = _of(rows, "model", model, path)
    by_key(({"task and kind": (row["id"], row["kind"])} for row in kept), "task and kind", path)
    return kept


def _wildbench_row(row: Mapping[str, Any], references: set[str]) -> dict[str, Any]:
    named: dict[str, Any] = {"id": wildbench.name_of(row), "kind": "", "value": None}
    if "score" in row:
        value = wildbench.value_of("score", canonical_json({"score": row["score"]}))
        named |= {"kind": "score", "value": value}
        return named | {"model": row["model_test"], "output": row["model_output"]}
    if "winner" in row:
        both = {row["model_A"], row["model_B"]}
        (reference,) = both & references
        (model,) = both - {reference}
        signs = {model: 1.0, reference: -1.0, "tie": 0.0}
        value = 50.0 * {0: 0, 1: 1, 2: 2}[row["extent"]] * signs[row["winner"]]
        named |= {"kind": reference, "value": value}
        return named | {"model": model, "output": row["model_outputs"][model]}
    return named | {"model": row.get("generator", ""), "output": wildbench.text_of(row["output"])}


def wildbench_verdicts(task: StageTask[GivenVerdictsTask]) -> StageOutcome:
    """Scores from judged results: ratings, and comparisons with every reference."""
    path = Path(task.settings.path)
    told = _wildbench(path, task.settings.model, task.inputs["benchmarks"])
    given = {(row["id"], row["kind"]): row["value"] for row in told if row["kind"]}
    if not given:
        raise HarnessError(
            f"{path}: these are answers, not judged results (no score, no winner); give them in "
            f"column {wildbench.NAME!r}"
        )
    templates, answered = judging(task, wildbench.NAME)
    items = [wildbench.item_of(row) for row in answered]
    found = {}
    for item in items:
        for kind in ("score", *item.row["references"]):
            value = given.get((item.id, kind))
            status = "unparsed" if (item.id, kind) in given else "no_answer"
            if value is not None:
                status = "ok"
                value = value if kind == "score" or item.first(kind) else -value
            kept = {"value": value, "score_status": status, "reason": ""}
            found[f"{item.id}:{kind}", 0] = kept
    judge = JudgeSettings(kind="openai", model="unnamed judge")
    shown = (task.settings.own.get("length_margin"), f"{judge.model} (given)")
    return wildbench.outcome(task, items, templates, found, judge, shown)
