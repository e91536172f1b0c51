"""Stage ``benchmarks.files``: the user's benchmark files, checked and laid out the one way the
scoring stages read them.

MT-Bench files are FastChat's; AlpacaEval's instructions are a JSON list with the baseline's outputs
(the form of a published ``model_outputs.json``) and df_gamed a CSV in the library's columns. Order
is kept, ``limit`` takes the first rows, and the gamed rows of the instructions left out go with
them, so that difficulty never shifts against its instruction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.evaluate.academic_files import prepare_academic
from harness.evaluate.alpaca_metrics import (
    baseline_hash,
    load_instructions,
    read_gamed,
    read_json_rows,
    write_gamed,
)
from harness.evaluate.fastchat_bench import NEED_REFERENCE, OFFICIAL, load_bench, read_bench
from harness.records import HarnessError, StageOutcome, StageTask, write_jsonl

COLUMNS = {"instruction": "", "output": "", "generator": "baseline", "dataset": ""}
"""Columns of eval.json besides the id, with what stands for a missing one."""


def run(task: StageTask) -> StageOutcome:
    """Write mt_bench/, alpaca_eval/ and academic/ for the benchmarks in ``settings["benchmarks"]``
    (all that have files, without it).
    """
    settings = task.settings
    wanted = settings.get("benchmarks", ["mt_bench", "alpaca_eval", "academic"])
    summary: dict[str, Any] = {}
    if "mt_bench" in wanted:
        summary["mt_bench"] = write_mt_bench(settings["mt_bench"], task.out / "mt_bench")
    if "alpaca_eval" in wanted:
        summary["alpaca_eval"] = write_alpaca_eval(
            settings["alpaca_eval"], task.out / "alpaca_eval"
        )
    if "academic" in wanted:
        summary["academic"] = {
            "tasks": len(prepare_academic(settings["academic"], task.out / "academic"))
        }
    rows = sum(int(part.get("expected", part.get("tasks", 0))) for part in summary.values())
    return StageOutcome(rows=rows, summary=summary)


def write_mt_bench(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """question.jsonl, reference_answer.jsonl and judge_prompts.jsonl; the summary says which are
    FastChat's own.
    """
    questions, references, prompts = (
        _given(settings, "mt_bench", name) for name in ("questions", "references", "judge_prompts")
    )
    bench = read_bench(questions, references, prompts, str(settings.get("reference_set", "")))
    kept = bench.questions[: int(settings.get("limit", 0)) or None]
    for row in kept:
        if not 1 <= len(row["turns"]) <= 2 or not all(
            isinstance(turn, str) and turn for turn in row["turns"]
        ):
            raise HarnessError(
                f"{questions}: question {row['question_id']}: key 'turns' wants one or two texts"
            )
    needed = {row["question_id"] for row in kept if row["category"] in NEED_REFERENCE}
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "question.jsonl", kept)
    write_jsonl(
        out / "reference_answer.jsonl", [bench.references[number] for number in sorted(needed)]
    )
    write_jsonl(
        out / "judge_prompts.jsonl", [bench.prompts[name] for name in sorted(bench.prompts)]
    )
    hashes = load_bench(out, bench.reference_set).hashes
    expected = sum(len(row["turns"]) for row in kept)
    return {
        "expected": expected,
        "reference_set": bench.reference_set,
        "hashes": hashes,
        "official": hashes == OFFICIAL,
    }


def write_alpaca_eval(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """eval.json with ids "0", "1", … in the file's order, and df_gamed.csv for exactly these
    instructions.
    """
    path = _given(settings, "alpaca_eval", "instructions")
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
    limit = int(settings.get("limit", 0)) or len(rows)
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
    if settings.get("gamed_baseline"):
        gamed = read_gamed(_given(settings, "alpaca_eval", "gamed_baseline"), len(rows))
        write_gamed(out / "df_gamed.csv", [row for row in gamed if row["index"] < len(kept)])
    else:
        summary["flags"] = ["no_gamed_baseline"]
    return summary


def _given(settings: Mapping[str, Any], benchmark: str, name: str) -> Path:
    path = Path(str(settings.get(name) or ""))
    if not settings.get(name):
        raise HarnessError(
            f"evaluation.{benchmark}.{name} is empty; {benchmark} needs this file (or leave "
            f"{benchmark} out of evaluation.benchmarks)"
        )
    if not path.is_file():
        raise HarnessError(f"evaluation.{benchmark}.{name}: {path} does not exist")
    return path
