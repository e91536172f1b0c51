"""Stage ``diagnostics``: what training did to the policy, beyond scores. Definitions:
`harness.stages.diagnostics.measures`.

Inputs: policy (the checkpoint), reference_policy, previous (where the iteration started), base,
pairs, data; optional answer and answer_previous (their sampled held-out answers are used), ranker.
Out: scores.parquet (benchmark "diagnostics", one row per metric and prompt, clustered by prompt),
summary.json (means).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from harness.records import (
    LeftOut,
    Score,
    StageOutcome,
    StageTask,
    Status,
    Tally,
    content_hash,
    read_jsonl,
    write_scores,
)
from harness.stages.diagnostics import passes
from harness.stages.diagnostics.collect import Policies, collect
from harness.stages.diagnostics.measures import DIAGNOSTICS, Evidence
from harness.study.tasks import DiagnosticsTask
from harness.train.batching import ROLES, with_reference

VERSION = "1"
"""Version of the definitions, written into every row."""
HEADLINE = ("rhat_reference_samples", "kl_base", "entropy")
"""Means that the stage's record repeats."""


def run(task: StageTask[DiagnosticsTask]) -> StageOutcome:
    """Measure one checkpoint. Where a measurement is undefined for a prompt there is no row."""
    objective = task.settings.objective
    found = collect(task, objective.beta)
    scores = score_rows(found, known_ids(task.inputs["data"])) + gradient_rows(
        task, objective.c, objective.beta
    )
    summary = summarise(scores)
    text = json.dumps(summary, indent=1, sort_keys=True)
    (task.out / "summary.json").write_text(text + "\n", encoding="utf-8")
    rows = write_scores(task.out / "scores.parquet", scores)
    drawn = sum(len(answer.token_ids) for e in found["heldout"] for answer in e.reference)
    shown: dict[str, Any] = {name: summary[name]["mean"] for name in HEADLINE if name in summary}
    left_out = unmeasured(task, found)
    return StageOutcome(rows, costs={"tokens_generated": drawn}, summary=shown, left_out=left_out)


def unmeasured(
    task: StageTask[DiagnosticsTask], found: Mapping[str, Sequence[Evidence]]
) -> tuple[LeftOut, ...]:
    """Prompts of each split that are over the limit or of which a policy drew no answer."""
    reasons: dict[bool, str] = {
        True: f"over training.max_prompt_length = {task.settings.max_prompt_length} tokens",
        False: "no answer drawn",
    }
    left_out: tuple[LeftOut, ...] = ()
    for split, rows in found.items():
        tally = Tally(task.stage, f"{split} prompts")
        for e in rows:
            undrawn = split == "heldout" and not (e.own and e.reference)
            tally.meet(e.id, reasons[e.refused] if e.refused or undrawn else "ok")
        left_out += tally.left_out()
    return left_out


def known_ids(data: Path) -> set[str]:
    """Ids of the data's prompts."""
    files = [data / f"{split}.jsonl" for split in ("train", "heldout", "ood")]
    return {row["id"] for row in chain(*(read_jsonl(file) for file in files if file.is_file()))}


def prompt_of(item: str, known: Collection[str]) -> str:
    """The prompt that an item repeats: its id without ``#2``, ``#3``, … (an id of the data may hold
    the sign).
    """
    first, _, number = item.rpartition("#")
    return prompt_of(first, known) if number.isdigit() and first in known else item


def score_rows(found: Mapping[str, Sequence[Evidence]], known: Collection[str] = ()) -> list[Score]:
    """One row per diagnostic and prompt of its split where it is defined; prompts over the length
    limit are rows with status "refused". Repetitions of a ``known`` prompt are one cluster.

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
        if diagnostic.function is None or not met[diagnostic.needs]:
            continue
        for e in found.get(diagnostic.split, []):
            cluster = prompt_of(e.id, known)
            if e.refused:
                scores.append(_score(e.id, cluster, metric, None, "refused", _source(e)))
                continue
            value = diagnostic.function(e)
            if value is not None and math.isfinite(value):
                scores.append(_score(e.id, cluster, metric, value, "ok", _source(e)))
            elif value is not None:
                scores.append(_score(e.id, cluster, metric, None, "no_answer", _source(e)))
    return scores


def _score(
    item: str, cluster: str, metric: str, value: float | None, status: Status, source: str
) -> Score:
    return Score("diagnostics", VERSION, item, cluster, metric, value, status, source=source)


def _source(e: Evidence) -> str:
    """A hash of what was measured: the prompt and all its answers."""
    given = [answer for answer in (e.chosen, e.rejected, e.explore) if answer is not None]
    answers = [answer.token_ids for answer in (*given, *e.own, *e.reference)]
    return content_hash(e.id, answers, length=16)


def gradient_rows(task: StageTask[DiagnosticsTask], c: float, beta: float) -> list[Score]:
    """grad_ratio and grad_cosine at the iteration's start and end, one row a small batch."""
    policies = Policies(task)
    rows = passes.read_rows(task, policies.load("theta").tokenizer)
    if len(rows) < passes.ROWS:
        return []
    rows = with_reference(policies.load("reference").model, rows, ROLES)
    scores = []
    for suffix, role in (("", "previous"), ("_end", "theta")):
        model = policies.load(role).model
        for number in range(len(rows) // passes.ROWS):
            batch = rows[number * passes.ROWS : (number + 1) * passes.ROWS]
            measured = passes.gradient_pair(model, batch, c=c, beta=beta)
            source, name = (
                content_hash([row.prompt_id for row in batch], length=16),
                f"batch{number}",
            )
            for metric, value in (("grad_ratio", measured.ratio), ("grad_cosine", measured.cosine)):
                status: Status = "no_answer" if value is None else "ok"
                scores.append(_score(name, name, metric + suffix, value, status, source))
    return scores


def summarise(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Mean over the rows that have a value, and how many; intervals are the analysis's."""
    by_metric: dict[str, list[Score]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, []).append(score)
    summary = {}
    for metric, rows in by_metric.items():
        values = [row.value for row in rows if row.value is not None]
        mean = statistics.fmean(values) if values else None
        summary[metric] = {"mean": mean, "n": len(values), "expected": len(rows)}
    return summary
