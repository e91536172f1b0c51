"""Held-out prompts: the ranker's reward of the policy's answers. Stage ``heldout``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.rankers import RankContext, Ranked, RankItem, rank_texts, rewards
from harness.records import (
    Prompt,
    Score,
    StageOutcome,
    StageTask,
    Status,
    content_hash,
    read_jsonl,
    write_scores,
)

SETS = (("heldout", "heldout.jsonl"), ("heldout_ood", "ood.jsonl"))
"""Benchmark name and the data file that lists its prompts."""


def run(task: StageTask) -> StageOutcome:
    """Write ``scores.parquet``: for every prompt "reward" (greedy answer) and "reward_sampled"
    (mean over the samples).

    Units: the ranker's. A pairwise ranker scores each answer against the prompt's chosen one. With
    ``rank_alpaca_eval`` also, for every AlpacaEval instruction, "reward_difference": the answer's
    reward minus the baseline answer's. One row per prompt and metric whatever happened; an answer
    that is missing or not scored gives the row its status and no value.
    """
    ranker: Mapping[str, Any] = task.settings["ranker"]
    answers: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in read_jsonl(task.inputs["answer"] / "heldout.jsonl"):
        answers.setdefault(row["prompt_id"], {})[row["sample"]] = row
    prompts = [(name, Prompt(**row)) for name, file in SETS for row in _rows(task, file)]
    texts = {
        p.id: tuple(
            dict.fromkeys(
                a["text"]
                for a in answers.get(p.id, {}).values()
                if a["status"] in ("ok", "truncated")
            )
        )
        for _, p in prompts
    }
    scored = [prompt for _, prompt in prompts if texts[prompt.id]]
    context = RankContext(
        ranker, task.runtime, task.out, task.inputs.get("ranker"), task.settings.get("judge")
    )
    found = rewards(
        [RankItem(p.id, p.messages, texts[p.id]) for p in scored],
        [p.chosen for p in scored],
        context,
    )
    by_prompt = {prompt.id: ranked for prompt, ranked in zip(scored, found, strict=True)}
    judge = _identity(ranker)
    rows = [
        score
        for name, prompt in prompts
        for score in _scores(
            name,
            prompt,
            answers.get(prompt.id, {}),
            texts[prompt.id],
            by_prompt.get(prompt.id),
            judge,
        )
    ]
    if task.settings.get("rank_alpaca_eval"):
        rows += _against_baseline(task, context, judge)
    write_scores(task.out / "scores.parquet", rows)
    errors = sum(row.status == "error" for row in rows)
    return StageOutcome(len(rows), errors, dict(context.costs), _means(rows))


def _identity(ranker: Mapping[str, Any]) -> str:
    """The ranker's kind and which checkpoint it is: the fingerprint of local files, or the hub id;
    never a path.
    """
    which = str(ranker.get("model_fingerprint", ""))[:12] or str(ranker.get("model", ""))
    return f"{ranker['kind']}:{which}" if which else str(ranker["kind"])


def _rows(task: StageTask, file: str) -> list[dict[str, Any]]:
    path = task.inputs["data"] / file
    return list(read_jsonl(path)) if path.exists() else []


def _scores(
    benchmark: str,
    prompt: Prompt,
    answers: Mapping[int, Mapping[str, Any]],
    texts: Sequence[str],
    ranked: Ranked | None,
    judge: str,
) -> list[Score]:
    reward = dict(zip(texts, ranked.scores, strict=False)) if ranked else {}
    unscored: Status = ranked.status if ranked else "no_answer"

    def row(metric: str, samples: Sequence[int]) -> Score:
        statuses = [str(answers[s]["status"]) if s in answers else "no_answer" for s in samples]
        values = [
            reward.get(answers[s]["text"]) if status in ("ok", "truncated") else None
            for s, status in zip(samples, statuses, strict=True)
        ]
        known = [value for value in values if value is not None]
        source = content_hash(
            prompt.messages, [answers[s]["text"] for s in samples if s in answers], length=12
        )
        if samples and len(known) == len(samples):
            return Score(
                benchmark,
                "1",
                prompt.id,
                prompt.id,
                metric,
                sum(known) / len(known),
                "ok",
                judge,
                source=source,
            )
        bad = [status for status in statuses if status not in ("ok", "truncated")] or [unscored]
        status: Status = "error" if "error" in bad else bad[0]  # type: ignore[assignment]
        return Score(
            benchmark,
            "1",
            prompt.id,
            prompt.id,
            metric,
            None,
            status if status != "ok" else "no_answer",
            judge,
            source=source,
        )

    return [row("reward", [0]), row("reward_sampled", sorted(s for s in answers if s > 0))]


def _against_baseline(task: StageTask, context: RankContext, judge: str) -> list[Score]:
    """Benchmark ``ranker_alpaca_eval``: 0 where both answers are the same text; a missing or failed
    one gives its status.
    """
    instructions = json.loads(
        (task.inputs["benchmarks"] / "alpaca_eval" / "eval.json").read_text(encoding="utf-8")
    )
    answers = {
        str(row["id"]): row
        for row in json.loads(
            (task.inputs["answer"] / "alpaca_eval.json").read_text(encoding="utf-8")
        )
    }
    items, different = [], {}
    for row in instructions:
        answer = answers.get(str(row["id"]), {"output": "", "status": "no_answer"})
        status: Status = "ok" if answer["status"] == "truncated" else answer["status"]
        items.append((str(row["id"]), status, answer["output"], row["output"], row["instruction"]))
        if status == "ok" and answer["output"] != row["output"]:
            message = {"role": "user", "content": row["instruction"]}
            different[str(row["id"])] = RankItem(
                f"alpaca_eval:{row['id']}", (message,), (answer["output"], row["output"])
            )
    found = dict(zip(different, rank_texts(list(different.values()), context), strict=True))
    rows = []
    for name, status, ours, theirs, instruction in items:
        ranked = found.get(name) or Ranked((0.0, 0.0), status)
        value = ranked.scores[0] - ranked.scores[1] if ranked.status == "ok" else None
        source = content_hash(instruction, ours, theirs, length=12)
        rows.append(
            Score(
                "ranker_alpaca_eval",
                "1",
                name,
                name,
                "reward_difference",
                value,
                ranked.status,
                judge,
                source=source,
            )
        )
    return rows


def _means(rows: Sequence[Score]) -> dict[str, float]:
    kept: dict[str, list[float]] = {}
    for row in rows:
        if row.value is not None:
            kept.setdefault(f"{row.benchmark}_{row.metric}", []).append(row.value)
    return {name: sum(values) / len(values) for name, values in sorted(kept.items())}
