"""Length-controlled win rates between checkpoints: one checkpoint's AlpacaEval answers judged
against another's.

Stage ``judge.pairwise`` scores checkpoint b against checkpoint a with the annotator and the metrics
of the benchmark itself, a's answers in the place of the baseline's. ``matrix`` lays the summaries
of the ordered pairs of a declared list out as a square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

from harness.evaluate.alpaca_eval import (
    JudgeTask,
    Row,
    align,
    baseline_hash,
    judge_rows,
    load_instructions,
    read_gamed,
    read_json_rows,
    score_rows,
    summarise,
    version,
)
from harness.records import HarnessError, StageOutcome, StageTask, canonical_json, write_scores

NAME = "alpaca_eval_pairwise"
MOST_CHECKPOINTS = 8
"""56 ordered pairs of one judgment an instruction."""


def run(task: StageTask[JudgeTask]) -> StageOutcome:
    """Inputs answer_a, answer_b, benchmarks → scores.parquet, judgments.jsonl, summary.json: b's
    win rates against a, in percent.
    """
    judge = task.settings.judge
    folder = task.inputs["benchmarks"] / "alpaca_eval"
    instructions = load_instructions(folder / "eval.json")
    sides = []
    for name in ("answer_a", "answer_b"):
        path = task.inputs[name] / "alpaca_eval.json"
        sides.append(align(instructions, read_json_rows(path), path))
    rows = opposed(*sides)
    annotations, costs = judge_rows(task, rows, judge)
    label = version(instructions, task.settings)
    scores, metrics = score_rows(
        rows,
        annotations,
        read_gamed(folder / "df_gamed.csv", len(instructions)),
        judge,
        label,
        NAME,
    )
    write_scores(task.out / "scores.parquet", scores)
    summary = summarise(
        rows, annotations, metrics, judge, label, baseline_hash([row.item for row in rows])
    )
    (task.out / "summary.json").write_text(canonical_json(summary) + "\n", encoding="utf-8")
    primary = [score for score in scores if score.metric == "win_rate"]
    return StageOutcome(
        rows=len(primary),
        errors=sum(score.status == "error" for score in primary),
        costs=costs,
        summary=summary,
    )


def opposed(baseline: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """b's rows with a's answers as the baseline; a row is judged when both answered, else it
    carries the failure of b, or of a.
    """
    result = []
    for a, b in zip(baseline, rows, strict=True):
        status = b.status if b.status != "ok" else a.status
        flags = [*b.flags, *(f"baseline {flag}" for flag in a.flags)]
        result.append(
            Row(
                replace(b.item, output=a.output, generator="checkpoint_a"),
                b.position,
                b.output,
                status,
                flags,
            )
        )
    return result


def ordered_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(a, b) for every ordered pair of at most eight differently named checkpoints."""
    if len(set(names)) != len(names) or not 2 <= len(names) <= MOST_CHECKPOINTS:
        raise HarnessError(
            f"pairwise: wants 2 to {MOST_CHECKPOINTS} different checkpoints, got {len(names)}: "
            f"{', '.join(names)}"
        )
    return list(permutations(names, 2))


def matrix(
    names: Sequence[str],
    folders: Mapping[tuple[str, str], Path],
    metric: str = "length_controlled_win_rate",
) -> list[list[float | None]]:
    """Square of ``metric`` in percent: row a, column b holds b's win rate against a. None on the
    diagonal and where a pair is not judged.
    """
    import json

    ordered_pairs(names)
    found: dict[tuple[str, str], float | None] = {}
    for pair, folder in folders.items():
        path = folder / "summary.json"
        if path.exists():
            found[pair] = json.loads(path.read_text(encoding="utf-8")).get(metric)
    return [[None if a == b else found.get((a, b)) for b in names] for a in names]
