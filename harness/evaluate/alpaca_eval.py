"""AlpacaEval 2.0: alpaca_eval's annotator builds the prompts, draws the order and reads the
log-probs; its metrics make the scores.

Only its completion function is ours: every prompt of a checkpoint goes to the judge in one
concurrent batch. Rows are aligned by id, never by position; a failed row has a status and no
preference (never -1); the length-controlled point is the library's own GLM, its interval comes from
`lc` (jackknife over instructions).
"""

from __future__ import annotations

from harness.evaluate.alpaca_metrics import (
    baseline_hash,
    load_instructions,
    read_gamed,
    read_json_rows,
)
from harness.evaluate.alpaca_rows import align, judge_rows, score_rows, summarise, version
from harness.records import StageOutcome, StageTask, canonical_json, write_scores

BENCHMARK = "alpaca_eval"


def run(task: StageTask) -> StageOutcome:
    """Stage ``judge.alpaca_eval``: answer, benchmarks → scores.parquet, judgments.jsonl,
    summary.json.
    """
    judge = task.settings["judge"]
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
        rows, annotations, gamed, judge, version(instructions, task.settings), BENCHMARK
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
