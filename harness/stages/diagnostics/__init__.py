"""Stage ``diagnostics``: what training did to the policy, beyond scores. Definitions:
`harness.stages.diagnostics.measures`.

Inputs: policy (the checkpoint), reference_policy, previous (where the iteration started), base,
pairs, data; optional answer and answer_previous (their sampled held-out answers are used), ranker.
Settings: prompts, samples, max_new_tokens, seed, iteration, objective, ranker, pocket, max_length,
max_prompt_length, generation_batch, dtype, attention. Out: scores.parquet (benchmark "diagnostics",
one row per metric and prompt, clustered by prompt), summary.json (means), arrays.json (per-sample
columns for scatter plots).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness.records import Score, StageOutcome, StageTask, content_hash, write_scores
from harness.stages.diagnostics.evidence import Evidence
from harness.stages.diagnostics.measures import DIAGNOSTICS
from harness.study.tasks import DiagnosticsTask

__all__ = ["DIAGNOSTICS", "VERSION", "run", "score_rows"]

VERSION = "1"
"""Version of the definitions, written into every row."""


def run(task: StageTask[DiagnosticsTask]) -> StageOutcome:
    """Measure one checkpoint. Where a measurement is undefined for a prompt (constant reward,
    another role of y) there is no row.
    """
    from harness.stages.diagnostics.collect import collect
    from harness.stages.diagnostics.gradient import coefficient

    c, beta = coefficient(task.settings.objective)
    found = collect(task, beta)
    scores = score_rows(found)
    scores += gradient_rows(task, c, beta)
    (task.out / "arrays.json").write_text(
        json.dumps(arrays(found["heldout"])) + "\n", encoding="utf-8"
    )
    summary = summarise(scores)
    (task.out / "summary.json").write_text(
        json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    rows = write_scores(task.out / "scores.parquet", scores)
    drawn = sum(len(answer.token_ids) for e in found["heldout"] for answer in e.reference)
    headline = ("rhat_reference_samples", "kl_base", "entropy")
    shown: dict[str, Any] = {name: summary[name]["mean"] for name in headline if name in summary}
    return StageOutcome(rows=rows, costs={"tokens_generated": drawn}, summary=shown)


def score_rows(found: Mapping[str, Sequence[Evidence]]) -> list[Score]:
    """One row per diagnostic and prompt of its split where it is defined; prompts over the length
    limit are rows with status "refused".

    Diagnostics whose need is met nowhere (no scorer, no earlier answers) give no rows.
    """
    heldout = found.get("heldout", [])
    met = {
        "": True,
        "reward": any(answer.reward is not None for e in heldout for answer in e.own),
        "pocket": any(e.modes for e in heldout),
        "previous": any(e.previous for e in heldout),
    }
    scores = []
    for metric, diagnostic in DIAGNOSTICS.items():
        if not met[diagnostic.needs]:
            continue
        for e in found.get(diagnostic.split, []):
            value = None if e.refused else diagnostic.function(e)
            if value is None and not e.refused:
                continue
            status: Any = (
                "refused" if value is None else "ok" if math.isfinite(value) else "no_answer"
            )
            cluster = e.id.partition("#")[0]
            scores.append(
                Score(
                    "diagnostics",
                    VERSION,
                    e.id,
                    cluster,
                    metric,
                    value if status == "ok" else None,
                    status,
                    source=_source(e),
                )
            )
    return scores


def _source(e: Evidence) -> str:
    answers = [
        a.token_ids
        for a in (e.chosen, e.rejected, e.explore, *e.own, *e.reference)
        if a is not None
    ]
    return content_hash(e.id, answers, length=16)


def gradient_rows(task: StageTask[DiagnosticsTask], c: float, beta: float) -> list[Score]:
    """grad_ratio and grad_cosine at the start of the iteration, and at the checkpoint (``_end``),
    one row per small batch.
    """
    from harness.stages.diagnostics import gradient
    from harness.stages.diagnostics.collect import Policies

    policies = Policies(task)
    rows = gradient.read_rows(task, policies.load("theta").tokenizer)
    if len(rows) < gradient.ROWS:
        return []
    rows = gradient.with_reference(rows, policies.load("reference").model)
    scores = []
    for suffix, role in (("", "previous"), ("_end", "theta")):
        model = policies.load(role).model
        for number in range(len(rows) // gradient.ROWS):
            batch = rows[number * gradient.ROWS : (number + 1) * gradient.ROWS]
            measured = gradient.measure(model, batch, c=c, beta=beta)
            source = content_hash([row.prompt_id for row in batch], length=16)
            for metric, value in (("grad_ratio", measured.ratio), ("grad_cosine", measured.cosine)):
                status: Any = "ok" if value is not None else "no_answer"
                scores.append(
                    Score(
                        "diagnostics",
                        VERSION,
                        f"batch{number}",
                        f"batch{number}",
                        metric + suffix,
                        value,
                        status,
                        source=source,
                    )
                )
    return scores


def arrays(heldout: Sequence[Evidence]) -> dict[str, list[Any]]:
    """Own samples, one entry each: r̂ and log π_θ/π_0 (nats), KL to the base, tokens, external
    reward (null where unknown).
    """
    samples = [(e.id, answer) for e in heldout for answer in e.own]
    return {
        "prompt": [name for name, _ in samples],
        "rhat": [round(answer.rhat(), 6) for _, answer in samples],
        "rhat_base": [round(answer.rhat("base"), 6) for _, answer in samples],
        "kl_base": [round(answer.kl["base"], 6) for _, answer in samples],
        "tokens": [len(answer.token_ids) for _, answer in samples],
        "reward": [answer.reward for _, answer in samples],
    }


def summarise(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Mean over the rows that have a value, with how many there are; no interval here (the analysis
    makes them).
    """
    by_metric: dict[str, list[Score]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, []).append(score)
    summary = {}
    for metric, rows in by_metric.items():
        values = [row.value for row in rows if row.value is not None]
        summary[metric] = {
            "mean": statistics.fmean(values) if values else None,
            "n": len(values),
            "expected": len(rows),
        }
    return summary
