"""MT-Bench by pairwise grading: FastChat's two games (each answer shown first once) between two
checkpoints.

Stage ``judge.mt_bench_pairwise`` scores checkpoint b against checkpoint a: 100 when b wins both
games, 0 when a does, 50 for ties and for games that contradict each other (FastChat's adjusted win
rate). Position flips are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.evaluate.mt_bench import (
    Bench,
    JudgeTask,
    load_bench,
    make_pair,
    neutral_answer,
    play_pair,
    read_answers,
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
    Score,
    StageOutcome,
    StageTask,
    Status,
    canonical_json,
    content_hash,
    write_scores,
)

NAME = "mt_bench_pairwise"
WINNER = ({"A": "a", "B": "b", "C": "tie"}, {"A": "b", "B": "a", "C": "tie"})
"""Who a verdict names, in the first and the second game."""


def run(task: StageTask[JudgeTask]) -> StageOutcome:
    """Inputs answer_a, answer_b, benchmarks → scores.parquet, judgments.jsonl, summary.json."""
    judge = task.settings.judge
    bench = load_bench(task.inputs["benchmarks"] / "mt_bench", task.settings.reference_set)
    answers = tuple(
        read_answers(task.inputs[name] / "mt_bench.jsonl") for name in ("answer_a", "answer_b")
    )
    statuses, requests, sources = plan(bench, answers, judge.model)
    journal = task.out / JOURNAL_NAME
    with JudgeClient(judge, task.runtime, journal) as client:
        replies = client.complete(
            requests, accept=lambda reply: bool(verdicts.parse_choice(reply.text))
        )
        costs = dict(client.costs)
    by_id = {reply.id: reply for reply in replies}
    scores: list[Score] = []
    notes: dict[tuple[str, int], dict[str, Any]] = {}
    outcomes: Counter[str] = Counter()
    for item, status in statuses.items():
        games = [by_id[f"{item}:{game}"] for game in (1, 2) if f"{item}:{game}" in by_id]
        value, final, outcome, winners = decide(games) if games else (None, status, status, [])
        outcomes[outcome] += 1
        notes |= {
            (f"{item}:{game}", 0): {"winner": winner} for game, winner in enumerate(winners, 1)
        }
        version = f"references:{bench.reference_set or 'unnamed'}@{bench.hashes['references']} questions:{bench.hashes['questions']}"
        scores.append(
            Score(
                NAME,
                version,
                item,
                item.split(":")[0],
                "win_rate",
                value,
                final,
                verdicts.judge_label(judge),
                0,
                sources[item],
            )
        )
    write_scores(task.out / "scores.parquet", scores)
    finalise(journal, task.out / JUDGMENTS_NAME, notes)
    values = [score.value for score in scores if score.value is not None]
    summary = {
        "win_rate": sum(values) / len(values) if values else None,
        "scored": len(values),
        "expected": len(scores),
        "outcomes": dict(outcomes),
    }
    (task.out / "summary.json").write_text(canonical_json(summary) + "\n", encoding="utf-8")
    return StageOutcome(
        rows=len(scores),
        errors=sum(score.status == "error" for score in scores),
        costs=costs,
        summary=summary,
    )


def plan(
    bench: Bench, answers: Sequence[Mapping[int, Mapping[str, Any]]], judge_model: str
) -> tuple[dict[str, Status], list[JudgeRequest], dict[str, str]]:
    """Status of every item by name, the two requests of those both checkpoints answered, and the
    hash of what each is scored from.
    """
    statuses: dict[str, Status] = {}
    requests, sources = [], {}
    for question in bench.questions:
        rows = [side.get(question["question_id"]) for side in answers]
        for turn in range(1, len(question["turns"]) + 1):
            item = f"{question['question_id']}:{turn}"
            both = [turn_status(row, turn) for row in rows]
            statuses[item] = next(
                (status for status in ("error", *both) if status in both and status != "ok"), "ok"
            )  # type: ignore[misc]
            texts = [
                [turn_of(row, t)[0] for t in range(1, turn + 1)] if row else [] for row in rows
            ]
            sources[item] = content_hash(question["turns"][:turn], texts, bench.hashes, length=16)
            if statuses[item] == "ok":
                safe = [neutral_answer(row)[0] for row in rows if row is not None]
                sent, _ = play_pair(
                    make_pair(bench, question, turn, (safe[0], safe[1]), judge_model)
                )
                requests += [
                    JudgeRequest(f"{item}:{game}", tuple(messages), {})
                    for game, messages in enumerate(sent, 1)
                ]
    return statuses, requests, sources


def decide(games: Sequence[JudgeReply]) -> tuple[float | None, Status, str, list[str]]:
    """(b's score in percent or None, status, outcome, winner of each game): both games must have a
    verdict.
    """
    winners: list[str] = []
    for reply, names in zip(games, WINNER, strict=True):
        choice = verdicts.parse_choice(reply.text) if reply.status in ("ok", "truncated") else ""
        if not choice:
            status: Status = "unparsed" if reply.status in ("ok", "truncated") else reply.status
            winners.append(status)
            continue
        winners.append(names[choice])
    failed = [winner for winner in winners if winner not in ("a", "b", "tie")]
    if failed:
        worst: Status = "error" if "error" in failed else failed[0]  # type: ignore[assignment]
        return None, worst, worst, winners
    if winners[0] == winners[1]:
        return {"a": 0.0, "b": 100.0, "tie": 50.0}[winners[0]], "ok", winners[0], winners
    return 50.0, "ok", "inconsistent", winners
