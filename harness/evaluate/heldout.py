"""Held-out prompts: the ranker's reward of the policy's answers. Stage ``heldout``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from harness.evaluate.benchmark import (
    Ask,
    Asked,
    Benchmark,
    Counting,
    Desk,
    Measure,
    Samples,
    asked_work,
)
from harness.rankers.ranker import RankContext, Ranked, RankItem
from harness.rankers.registry import rank_texts, rewards
from harness.records import (
    Prompt,
    Response,
    Score,
    StageOutcome,
    StageTask,
    Status,
    content_hash,
    read_jsonl,
    write_jsonl,
    write_scores,
)
from harness.study.sections import JudgeSettings
from harness.study.tasks import AnswerTask, RankerTask, Threads
from harness.study.work import Work

SETS = (("heldout", "heldout.jsonl"), ("heldout_ood", "ood.jsonl"))
"""Benchmark name and the data file that lists its prompts."""


class HeldoutTask(Threads):
    """``heldout``. judge: only where the ranker is one."""

    later: ClassVar[Mapping[str, Any]] = {"rank_alpaca_eval": False}

    ranker: RankerTask
    judge: JudgeSettings | None
    rank_alpaca_eval: bool = False


def run(task: StageTask[HeldoutTask]) -> StageOutcome:
    """Write ``scores.parquet``: for every prompt "reward" (greedy answer) and "reward_sampled"
    (mean over the samples).

    Units: the ranker's. A pairwise ranker scores each answer against the prompt's chosen one. With
    ``rank_alpaca_eval`` also, for every AlpacaEval instruction, "reward_difference": the answer's
    reward minus the baseline answer's. One row per prompt and metric whatever happened; an answer
    that is missing or not scored gives the row its status and no value.
    """
    ranker = task.settings.ranker
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
        ranker, task.runtime, task.out, task.inputs.get("ranker"), task.settings.judge
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
    if task.settings.rank_alpaca_eval:
        rows += _against_baseline(task, context, judge)
    write_scores(task.out / "scores.parquet", rows)
    errors = sum(row.status == "error" for row in rows)
    return StageOutcome(len(rows), errors, dict(context.costs), _means(rows))


def _identity(ranker: RankerTask) -> str:
    """The ranker's kind and which checkpoint it is: the fingerprint of local files, or the hub id;
    never a path.
    """
    which = ranker.model_fingerprint[:12] or ranker.model
    return f"{ranker.kind}:{which}" if which else ranker.kind


def _rows(task: StageTask[Any], file: str) -> list[dict[str, Any]]:
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


def _against_baseline(
    task: StageTask[HeldoutTask], context: RankContext, judge: str
) -> list[Score]:
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


# -- what a policy is asked ------------------------------------------------------------------------


class Prompts:
    """The greedy answer (sample 0) and ``heldout_samples`` at temperature 1 of every held-out
    prompt. Prompts over ``max_prompt_length`` tokens are "no_answer".
    """

    def __init__(self, task: StageTask[AnswerTask]) -> None:
        settings = task.settings
        samples = range(1 + settings.heldout_samples)
        self.asks = [
            Ask(
                (NAME, row["id"], sample),
                tuple(row["messages"]),
                settings.heldout_max_new_tokens,
                1.0 if sample else 0.0,
                settings.max_prompt_length,
            )
            for _, file in SETS
            for row in _rows(task, file)
            for sample in samples
        ]

    def rounds(self, _desk: Desk) -> Sequence[Iterable[Ask]]:
        """One round."""
        return (self.asks,)

    def write(self, desk: Desk, out: Path) -> None:
        """``heldout.jsonl``: a Response each."""
        write_jsonl(out / "heldout.jsonl", (self._response(ask, desk) for ask in self.asks))

    def _response(self, ask: Ask, desk: Desk) -> Response:
        answer, (_, prompt, sample) = desk.answers[ask.key], ask.key
        seed = desk.seed(ask.key)
        return Response(prompt, sample, answer.text, answer.token_ids, answer.status, seed)


# -- its record ------------------------------------------------------------------------------------


NAME = "heldout"
REWARD = Measure(
    NAME, "reward", "held-out reward (greedy)", "reward", 3, items="prompts", table="heldout"
)
SAMPLED = replace(REWARD, metric="reward_sampled", title="held-out reward (sampled)")
OOD = replace(REWARD, benchmark="heldout_ood", title="out-of-distribution reward (greedy)")
OOD_SAMPLED = replace(
    SAMPLED, benchmark="heldout_ood", title="out-of-distribution reward (sampled)"
)


def settle(asked: Asked) -> HeldoutTask:
    """Settings of the ranking stage."""
    return HeldoutTask(
        threads=asked.threads,
        ranker=asked.ranker,
        judge=asked.ranker_judge,
        rank_alpaca_eval=asked.evaluation.rank_alpaca_eval,
    )


def _prompts(count: Counting) -> int:
    data = count.settings("data")
    return int(data.heldout + data.ood)


def _asked(count: Counting, task: AnswerTask) -> Work:
    rows = _prompts(count) * (1 + task.heldout_samples)
    length = min(count.lengths.answer, task.heldout_max_new_tokens)
    return asked_work(rows, length, "held-out answers")


def _work(count: Counting, task: HeldoutTask) -> Work:
    samples = count.settings("answer").heldout_samples
    return count.ranked(task.ranker.kind, _prompts(count), 1 + samples)


BENCHMARK = Benchmark(
    NAME,
    "Held-out reward",
    settings=None,
    stage="heldout",
    run="harness.evaluate.heldout:run",
    task=HeldoutTask,
    settle=settle,
    measures=lambda _evaluation: (REWARD, SAMPLED, OOD, OOD_SAMPLED),
    work=_work,
    inputs=("answer", "data", "ranker"),
    more_inputs=lambda evaluation: ("benchmarks",) if evaluation.rank_alpaca_eval else (),
    accelerator=True,
    questions=Prompts,
    asked=_asked,
    samples=Samples("heldout.jsonl", "reward", "reward (greedy)", form="heldout", digits=3),
)
