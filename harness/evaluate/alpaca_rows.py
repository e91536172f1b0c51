"""Rows of AlpacaEval on their way from answers to scores: aligned by id, made safe to judge,
annotated, scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluate.alpaca_metrics import (
    OFFICIAL_BASELINE,
    OFFICIAL_JUDGE,
    Instruction,
    Metrics,
    baseline_hash,
    compute_metrics,
)
from harness.evaluate.annotator import Annotation, Pair, annotate
from harness.judge import verdicts
from harness.judge.client import JOURNAL_NAME, JUDGMENTS_NAME, JudgeClient, finalise
from harness.records import HarnessError, Score, StageTask, Status, content_hash

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
    task: StageTask, rows: Sequence[Row], judge: Mapping[str, Any]
) -> tuple[dict[tuple[str, int], Annotation], dict[str, float]]:
    """Annotate every row that has an answer, for every repeat; journal and judgments.jsonl are left
    in ``task.out``.
    """
    pairs = [safe_pair(row) for row in rows if row.status == "ok"]
    journal = task.out / JOURNAL_NAME
    with JudgeClient(judge, task.runtime, journal) as client:
        found = annotate(
            pairs,
            client,
            annotator=str(task.settings.get("annotator", ANNOTATOR)),
            repeats=int(judge.get("repeats", 1)),
        )
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
    judge: Mapping[str, Any],
    benchmark_version: str,
    benchmark: str,
) -> tuple[list[Score], Metrics]:
    """Score rows of every repeat (win_rate, length_controlled_win_rate, length) and the first
    repeat's metrics.
    """
    scores: list[Score] = []
    first: Metrics | None = None
    for repeat in range(int(judge.get("repeats", 1))):
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


def version(instructions: Sequence[Instruction], settings: Mapping[str, Any]) -> str:
    """Library version, annotator and the hashed instruction set."""
    annotator = settings.get("annotator", ANNOTATOR)
    return f"alpaca-eval-{metadata.version('alpaca-eval')} {annotator} instructions:{baseline_hash(instructions)}"


def summarise(
    rows: Sequence[Row],
    found: Mapping[tuple[str, int], Annotation],
    metrics: Metrics,
    judge: Mapping[str, Any],
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
        "judge": judge["model"],
        "benchmark_version": benchmark_version,
        "comparable": baseline == OFFICIAL_BASELINE and judge["model"] == OFFICIAL_JUDGE,
    }
