"""MT-Bench by single-answer grading: FastChat renders every judge prompt and reads every judgment;
only its network call is ours.

All prompts are collected first, sent to the judge in one concurrent batch, then FastChat's matches
are played again with the replies. Guarded from outside: failed answers are never judged, verdict
syntax in answers is neutralised, the verdict is the judge's last final one
(`verdicts.parse_rating`) instead of the first bracket, and what cannot be read is ``unparsed``, not
-1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from harness.evaluate.fastchat_bench import (
    OFFICIAL,
    OFFICIAL_JUDGES,
    Bench,
    load_bench,
    make_match,
    neutral_answer,
    read_answers,
    reference_turns,
    render,
    replay,
    turn_of,
    turn_status,
)
from harness.judge import verdicts
from harness.judge.client import (
    JOURNAL_NAME,
    JUDGMENTS_NAME,
    JudgeClient,
    JudgeReply,
    JudgeRequest,
    finalise,
)
from harness.records import (
    HarnessError,
    Score,
    StageOutcome,
    StageTask,
    Status,
    canonical_json,
    content_hash,
    write_scores,
)

BENCHMARK = "mt_bench"


@dataclass
class Item:
    """One question and turn: the answer's status, FastChat's match when it is judged, and what was
    noticed on the way.
    """

    question: Mapping[str, Any]
    turn: int
    status: Status
    source: str = ""
    match: Any = None
    messages: tuple[Mapping[str, str], ...] = ()
    flags: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.question['question_id']}:{self.turn}"


def run(task: StageTask) -> StageOutcome:
    """Stage ``judge.mt_bench``: answer, benchmarks → scores.parquet, judgments.jsonl, summary.json."""
    judge = task.settings["judge"]
    bench = load_bench(
        task.inputs["benchmarks"] / "mt_bench", str(task.settings.get("reference_set", ""))
    )
    items = plan_items(
        bench, read_answers(task.inputs["answer"] / "mt_bench.jsonl"), judge["model"]
    )
    repeats = range(int(judge.get("repeats", 1)))
    judged = [item for item in items if item.match is not None]
    requests = [
        JudgeRequest(item.name, item.messages, {}, repeat) for repeat in repeats for item in judged
    ]
    journal = task.out / JOURNAL_NAME
    with JudgeClient(judge, task.runtime, journal) as client:
        replies = client.complete(requests, accept=readable)
        costs = dict(client.costs)
    by_identity = {(reply.id, reply.repeat): reply for reply in replies}
    verdict_rows = {
        identity: verdict(item, by_identity[identity], judge["model"])
        for item in judged
        for identity in [(item.name, r) for r in repeats]
    }
    scores = [
        score_row(item, repeat, verdict_rows.get((item.name, repeat)), bench, judge)
        for repeat in repeats
        for item in items
    ]
    write_scores(task.out / "scores.parquet", scores)
    finalise(journal, task.out / JUDGMENTS_NAME, verdict_rows)
    summary = summarise(scores, items, verdict_rows, bench, judge)
    (task.out / "summary.json").write_text(canonical_json(summary) + "\n", encoding="utf-8")
    return StageOutcome(
        rows=len(scores),
        errors=sum(score.status == "error" for score in scores),
        costs=costs,
        summary=summary,
    )


# -- rendering -------------------------------------------------------------------------------------


def plan_items(
    bench: Bench, answers: Mapping[int, Mapping[str, Any]], judge_model: str
) -> list[Item]:
    """One item per question and turn, in the questions' order; those with an answer carry
    FastChat's match and rendered messages.
    """
    known = {q["question_id"] for q in bench.questions}
    unknown = sorted(set(answers) - known)
    if unknown:
        raise HarnessError(
            "answers to questions that the benchmark does not hold: "
            f"{', '.join(map(str, unknown[:10]))}"
        )
    items, safe = [], {}
    for question in bench.questions:
        number = question["question_id"]
        answer = answers.get(number)
        safe[number], found = neutral_answer(answer) if answer else ({}, {})
        for turn in range(1, len(question["turns"]) + 1):
            item = Item(question, turn, turn_status(answer, turn))
            item.flags = [
                f"neutralised: {text}"
                for seen in range(1, turn + 1)
                for text in found.get(seen, ())
            ]
            if answer and "truncated" in [turn_of(answer, t)[1] for t in range(1, turn + 1)]:
                item.flags.append("truncated")
            texts = [turn_of(answer, t)[0] for t in range(1, turn + 1)] if answer else []
            item.source = content_hash(
                question["turns"][:turn],
                texts,
                reference_turns(bench, question),
                bench.hashes["judge_prompts"],
                length=16,
            )
            items.append(item)
    for item in items:
        if item.status == "ok":
            item.match = make_match(
                bench, item.question, item.turn, safe[item.question["question_id"]], judge_model
            )
            item.messages = tuple(render(item.match)[0])
    return items


# -- verdicts --------------------------------------------------------------------------------------


def readable(reply: JudgeReply) -> bool:
    """Whether a reply holds a final rating; others are asked again, within bounds."""
    return verdicts.parse_rating(reply.text).value is not None


def verdict(item: Item, reply: JudgeReply, judge_model: str) -> dict[str, Any]:
    """What is added to a judgment's row: rating, its status and reason, FastChat's own reading,
    prompt name, flags.
    """
    row: dict[str, Any] = {
        "question_id": item.question["question_id"],
        "turn": item.turn,
        "judge": [judge_model, item.match.judge.prompt_template["name"]],
        "flags": item.flags,
        "rating": None,
        "reason": "",
        "fastchat_score": None,
    }
    if reply.status not in ("ok", "truncated", "unparsed"):
        return row | {"score_status": reply.status, "reason": reply.error}
    rating = verdicts.parse_rating(reply.text)
    return row | {
        "rating": rating.value,
        "score_status": "ok" if rating.value is not None else "unparsed",
        "reason": rating.reason,
        "fastchat_score": replay(item.match, reply.text),
    }


def score_row(
    item: Item, repeat: int, found: Mapping[str, Any] | None, bench: Bench, judge: Mapping[str, Any]
) -> Score:
    """The score row of an item: its rating, or the reason why there is none."""
    status: Status = item.status if found is None else found["score_status"]
    return Score(
        BENCHMARK,
        benchmark_version(bench),
        item.name,
        str(item.question["question_id"]),
        "rating",
        found["rating"] if found else None,
        status,
        verdicts.judge_label(judge),
        repeat,
        item.source,
    )


def benchmark_version(bench: Bench) -> str:
    """Library version and the named, hashed inputs: rows of different sets never compare as equal."""
    hashes = bench.hashes
    return f"fschat-{metadata.version('fschat')} questions:{hashes['questions']} references:{bench.reference_set or 'unnamed'}@{hashes['references']}"


def summarise(
    scores: Sequence[Score],
    items: Sequence[Item],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    bench: Bench,
    judge: Mapping[str, Any],
) -> dict[str, Any]:
    """Turn 1, turn 2, mean over all scored rows (None without any), counts by status, and
    everything flagged.
    """
    values: dict[int, list[float]] = {1: [], 2: []}
    for score in scores:
        if score.value is not None:
            values.setdefault(int(score.item.rpartition(":")[2]), []).append(score.value)
    everything = [value for turn in values.values() for value in turn]
    disagree = sorted(
        f"{name}#{repeat}"
        for (name, repeat), row in found.items()
        if row["score_status"] != "error" and row["rating"] != row["fastchat_score"]
    )
    differing = {name: digest for name, digest in bench.hashes.items() if digest != OFFICIAL[name]}
    return {
        "turn_1": _mean(values[1]),
        "turn_2": _mean(values[2]),
        "mean": _mean(everything),
        "scored": len(everything),
        "expected": len(scores),
        "statuses": dict(Counter(score.status for score in scores)),
        "truncated": sorted(item.name for item in items if "truncated" in item.flags),
        "neutralised": sorted(
            item.name
            for item in items
            if any(flag.startswith("neutralised") for flag in item.flags)
        ),
        "flags": flags_of(
            [item.match.answer for item in items if item.match is not None and item.turn == 1]
        ),
        "fastchat_reads_otherwise": disagree,
        "judge": judge["model"],
        "reference_set": bench.reference_set,
        "hashes": bench.hashes,
        "comparable": not differing and judge["model"] in OFFICIAL_JUDGES,
    }


def flags_of(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """``constant_answers`` when more than half of ten or more first turns are the same text."""
    texts = Counter(answer["choices"][0]["turns"][0] for answer in answers)
    return (
        ["constant_answers"]
        if len(answers) >= 10 and max(texts.values()) > len(answers) / 2
        else []
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
