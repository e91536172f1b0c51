"""Held-out prompts: the ranker's reward of the policy's answers. Stage ``heldout``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from harness.evaluate import benchmark
from harness.evaluate.alpaca_eval import align, load_instructions
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

NAME = "heldout"
SETS = {NAME: "heldout.jsonl", "heldout_ood": "ood.jsonl"}
"""Benchmark name and the data file that lists its prompts."""
READ = ("ok", "truncated")
"""Statuses of answers that a ranker reads."""


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
    settings = task.settings
    answers: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in read_jsonl(task.inputs["answer"] / "heldout.jsonl"):
        answers.setdefault(row["prompt_id"], {})[row["sample"]] = row
    prompts = [(name, Prompt(**row)) for name, file in SETS.items() for row in _rows(task, file)]
    items: dict[str, RankItem] = {}
    chosen = []
    for _, prompt in prompts:
        rows = answers.get(prompt.id, {}).values()
        texts = tuple(dict.fromkeys(row["text"] for row in rows if row["status"] in READ))
        if texts:
            items[prompt.id] = RankItem(prompt.id, prompt.messages, texts)
            chosen.append(prompt.chosen)
    context = RankContext(
        settings.ranker, task.runtime, task.out, task.inputs.get("ranker"), settings.judge
    )
    ranked = rewards(list(items.values()), chosen, context)
    found: dict[str, tuple[Mapping[str, float], Status]] = {
        item.id: (dict(zip(item.texts, one.scores, strict=False)), one.status)
        for item, one in zip(items.values(), ranked, strict=True)
    }
    judge = _identity(settings.ranker)
    scores: list[Score] = []
    for name, prompt in prompts:
        said = answers.get(prompt.id, {})
        reward, unscored = found.get(prompt.id, ({}, "no_answer"))
        for metric, samples in (("reward", [0]), ("reward_sampled", sorted(s for s in said if s))):
            value, status = _mean([said.get(s) for s in samples], reward, unscored)
            spoken = [said[s]["text"] for s in samples if s in said]
            source = content_hash(prompt.messages, spoken, length=12)
            fields = (name, "1", prompt.id, prompt.id, metric, value, status, judge)
            scores.append(Score(*fields, source=source))
    if settings.rank_alpaca_eval:
        scores += _against_baseline(task, context, judge)
    kept: dict[str, list[float]] = {}
    for score in scores:
        if score.value is not None:
            kept.setdefault(f"{score.benchmark}_{score.metric}", []).append(score.value)
    means = {name: benchmark.mean(values) for name, values in sorted(kept.items())}
    write_scores(task.out / "scores.parquet", scores)
    errors = sum(score.status == "error" for score in scores)
    left_out = benchmark.unscored(task.stage, scores)
    return StageOutcome(len(scores), errors, dict(context.costs), means, left_out)


def _identity(ranker: RankerTask) -> str:
    """The ranker's kind and checkpoint: the fingerprint of local files, or the hub id; no path."""
    which = ranker.model_fingerprint[:12] or ranker.model
    return f"{ranker.kind}:{which}" if which else ranker.kind


def _rows(task: StageTask[Any], file: str) -> list[dict[str, Any]]:
    path = task.inputs["data"] / file
    return list(read_jsonl(path)) if path.exists() else []


def _mean(
    answers: Sequence[Mapping[str, Any] | None], reward: Mapping[str, float], unscored: Status
) -> tuple[float | None, Status]:
    """Mean reward (by text) of some answers, or the worst status where one has none."""
    bad: list[Status] = []
    values = []
    for answer in answers:
        status: Status = answer["status"] if answer else "no_answer"
        if answer is None or status not in READ:
            bad.append(status)
        elif answer["text"] in reward:
            values.append(reward[answer["text"]])
    if answers and len(values) == len(answers):
        return sum(values) / len(values), "ok"
    bad = bad or [unscored]
    worst = "error" if "error" in bad else bad[0]
    return None, "no_answer" if worst == "ok" else worst


def _against_baseline(
    task: StageTask[HeldoutTask], context: RankContext, judge: str
) -> list[Score]:
    """Benchmark ``ranker_alpaca_eval``: 0 where both answers are the same text."""
    asked = load_instructions(task.inputs["benchmarks"] / "alpaca_eval" / "eval.json")
    rows = align(asked, task.inputs["answer"] / "alpaca_eval.json")
    different = {}
    for row in rows:
        if row.status == "ok" and row.output != row.item.output:
            message = {"role": "user", "content": row.item.instruction}
            texts = (row.output, row.item.output)
            different[row.item.id] = RankItem(f"alpaca_eval:{row.item.id}", (message,), texts)
    found = dict(zip(different, rank_texts(list(different.values()), context), strict=True))
    scores = []
    for row in rows:
        name = row.item.id
        ranked = found.get(name) or Ranked((0.0, 0.0), row.status)
        value = ranked.scores[0] - ranked.scores[1] if ranked.status == "ok" else None
        source = content_hash(row.item.instruction, row.output, row.item.output, length=12)
        fields = ("ranker_alpaca_eval", "1", name, name, "reward_difference", value, ranked.status)
        scores.append(Score(*fields, judge, source=source))
    return scores


# -- what a policy is asked ------------------------------------------------------------------------
class Prompts:
    """Of every held-out prompt the greedy answer (sample 0), and ``heldout_samples`` drawn at 1."""

    def __init__(self, task: StageTask[AnswerTask]) -> None:
        settings = task.settings
        limit, longest = settings.heldout_max_new_tokens, settings.max_prompt_length
        self.asks = []
        for file in SETS.values():
            for row in _rows(task, file):
                for sample in range(1 + settings.heldout_samples):
                    key, messages = (NAME, row["id"], sample), tuple(row["messages"])
                    temperature = 1.0 if sample else 0.0
                    self.asks.append(benchmark.Ask(key, messages, limit, temperature, longest))

    def rounds(self, _desk: benchmark.Desk) -> Sequence[Iterable[benchmark.Ask]]:
        return (self.asks,)

    def write(self, desk: benchmark.Desk, out: Path) -> None:
        """``heldout.jsonl``: a Response each."""
        rows = []
        for ask in self.asks:
            answer, (_, prompt, sample) = desk.answers[ask.key], ask.key
            drawn = (answer.text, answer.token_ids, answer.status, desk.seed(ask.key))
            rows.append(Response(prompt, sample, *drawn))
        write_jsonl(out / "heldout.jsonl", rows)


# -- the record ------------------------------------------------------------------------------------
MEASURES = [
    benchmark.Measure(
        name, metric, f"{of} reward ({drawn})", "reward", 3, items="prompts", table=NAME
    )
    for name, of in ((NAME, "held-out"), ("heldout_ood", "out-of-distribution"))
    for metric, drawn in (("reward", "greedy"), ("reward_sampled", "sampled"))
]


def settle(asked: benchmark.Asked) -> HeldoutTask:
    """Settings of the ranking stage."""
    return HeldoutTask(
        threads=asked.threads,
        ranker=asked.ranker,
        judge=asked.ranker_judge,
        rank_alpaca_eval=asked.evaluation.rank_alpaca_eval,
    )


def _prompts(count: benchmark.Counting) -> int:
    data = count.settings("data")
    return int(data.heldout + data.ood)


def _asked(count: benchmark.Counting, task: AnswerTask) -> Work:
    rows = _prompts(count) * (1 + task.heldout_samples)
    length = min(count.lengths.answer, task.heldout_max_new_tokens)
    return benchmark.asked_work(rows, length, "held-out answers")


def _work(count: benchmark.Counting, task: HeldoutTask) -> Work:
    samples = count.settings("answer").heldout_samples
    return count.ranked(task.ranker.kind, _prompts(count), 1 + samples)


BENCHMARK = benchmark.Benchmark(
    NAME,
    "Held-out reward",
    settings=None,
    stage="heldout",
    run="harness.evaluate.heldout:run",
    task=HeldoutTask,
    settle=settle,
    measures=lambda _evaluation: MEASURES,
    work=_work,
    inputs=("answer", "data", "ranker"),
    more_inputs=lambda evaluation: ("benchmarks",) if evaluation.rank_alpaca_eval else (),
    accelerator=True,
    questions=Prompts,
    asked=_asked,
    samples=benchmark.Samples(
        "heldout.jsonl", "reward", "reward (greedy)", form="heldout", digits=3
    ),
)
