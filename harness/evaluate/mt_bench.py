"""MT-Bench by single-answer grading: FastChat renders every judge prompt and reads every judgment;
only its network call is ours (`harness.evaluate.fastchat`).

All prompts are collected first, sent to the judge in one concurrent batch, then FastChat's matches
are played again with the replies. Guarded from outside: failed answers are never judged, verdict
syntax in answers is neutralised, the verdict is the judge's last final one
(`verdicts.parse_rating`) instead of the first bracket, and what cannot be read is ``unparsed``, not
-1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.evaluate import benchmark, fastchat
from harness.evaluate.benchmark import MODEL_ID, Ask, Counting, Desk, Measure
from harness.evaluate.fastchat import Bench
from harness.judge import verdicts
from harness.judge.client import Found, JudgeReply, JudgeRequest, calls_of, judgments
from harness.judge.journal import finalise
from harness.records import (
    Generation,
    HarnessError,
    Score,
    StageOutcome,
    StageTask,
    Status,
    content_hash,
    read_jsonl,
    write_jsonl,
)
from harness.study.sections import JudgeSettings, Section
from harness.study.tasks import Answers, AnswerTask
from harness.study.work import Work

NAME = "mt_bench"
OFFICIAL = {
    "questions": "1c5ac98db58b",
    "references": "88f06568f8ba",
    "judge_prompts": "ca2cb45233ee",
}
"""Content hashes of lm-sys/FastChat's 80 questions, 30 GPT-4 references and four single-answer
prompts.
"""
OFFICIAL_JUDGES = ("gpt-4", "gpt-4-0314", "gpt-4-0613")


class MTBenchSettings(benchmark.JudgedSettings):
    questions: str = ""
    """FastChat's question.jsonl; empty: the pocket world's."""
    references: str = ""
    """FastChat's reference answers of one model, for the questions of mathematics and logic."""
    judge_prompts: str = ""
    """Files in FastChat's formats; empty: the pocket world's."""
    reference_set: str = "pocket"
    """What the references are, in the rows' version: scores over others are not compared."""


class JudgeTask(Section):
    """``judge.mt_bench``."""

    judge: JudgeSettings
    reference_set: str


# -- what a policy is asked ------------------------------------------------------------------------
ANSWER_TEMPERATURE = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("stem", "humanities"), 0.1),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning", "arena-hard-200"), 0.0),
}
OTHER_TEMPERATURE = 0.7
"""FastChat's answer temperature by category, and that of any other category."""


class Turns:
    """Every question's turns, the second after the first was answered."""

    def __init__(self, task: StageTask[AnswerTask]) -> None:
        self.questions = list(read_jsonl(task.inputs["benchmarks"] / NAME / "question.jsonl"))
        self.max_new_tokens = task.settings.answers[NAME].max_new_tokens

    def rounds(self, desk: Desk) -> Sequence[Iterable[Ask]]:
        """First turns, then second ones."""
        return self.turn(0, desk), self.turn(1, desk)

    def turn(self, turn: int, desk: Desk) -> Iterator[Ask]:
        """Asks for one turn of every question that has it and whose earlier turns were answered;
        the others get a status.
        """
        for question in self.questions:
            if turn >= len(question["turns"]):
                continue
            key = (NAME, str(question["question_id"]), turn)
            before = [desk.answers[(*key[:2], earlier)] for earlier in range(turn)]
            failed = next((one for one in before if one.status in ("error", "no_answer")), None)
            if failed:
                error = failed.error and f"turn 1: {failed.error}"
                desk.answers[key] = Generation((), "", failed.status, error)
                continue
            messages: list[Mapping[str, str]] = []
            for text, answer in zip(question["turns"], before, strict=False):
                messages.append({"role": "user", "content": text})
                messages.append({"role": "assistant", "content": answer.text.strip()})
            messages.append({"role": "user", "content": question["turns"][turn]})
            usual = ANSWER_TEMPERATURE.get(question["category"], OTHER_TEMPERATURE)
            temperature = float(question.get("required_temperature", usual))
            yield Ask(key, tuple(messages), self.max_new_tokens, temperature)

    def write(self, desk: Desk, out: Path) -> None:
        """``mt_bench.jsonl``: FastChat's model_answer rows with a constant time stamp, and
        ``status`` per turn beside the choices.
        """
        write_jsonl(out / "mt_bench.jsonl", (self._row(one, desk) for one in self.questions))

    def _row(self, question: Mapping[str, Any], desk: Desk) -> dict[str, Any]:
        number = question["question_id"]
        turns = range(len(question["turns"]))
        answers = [desk.answers[NAME, str(number), turn] for turn in turns]
        texts = [answer.text.strip() for answer in answers]
        return {
            "question_id": number,
            "answer_id": content_hash(number, texts, length=22),
            "model_id": MODEL_ID,
            "choices": [{"index": 0, "turns": texts}],
            "tstamp": 0,
            "status": [answer.status for answer in answers],
        }


# -- its files -------------------------------------------------------------------------------------
def prepare(settings: MTBenchSettings, out: Path) -> dict[str, Any]:
    """question.jsonl, reference_answer.jsonl and judge_prompts.jsonl; the summary says which are
    FastChat's own.
    """
    files = [benchmark.given_file(settings, NAME, key) for key in BENCHMARK.files]
    bench = fastchat.read_bench(files[0], files[1], files[2], settings.reference_set)
    kept = bench.questions[: settings.limit or None]
    for row in kept:
        texts = [turn for turn in row["turns"] if isinstance(turn, str) and turn]
        if len(texts) != len(row["turns"]) or len(texts) not in (1, 2):
            where = f"{files[0]}: question {row['question_id']}"
            raise HarnessError(f"{where}: key 'turns' wants one or two texts")
    needed = {row["question_id"] for row in kept if row["category"] in fastchat.NEED_REFERENCE}
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "question.jsonl", kept)
    write_jsonl(out / "reference_answer.jsonl", [bench.references[one] for one in sorted(needed)])
    write_jsonl(out / "judge_prompts.jsonl", [bench.prompts[one] for one in sorted(bench.prompts)])
    hashes = fastchat.load_bench(out, bench.reference_set).hashes
    return {
        "expected": sum(len(row["turns"]) for row in kept),
        "reference_set": bench.reference_set,
        "hashes": hashes,
        "official": hashes == OFFICIAL,
    }


# -- judging ---------------------------------------------------------------------------------------
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


def run(task: StageTask[JudgeTask]) -> StageOutcome:
    """Stage ``judge.mt_bench``: answer, benchmarks → scores.parquet, judgments.jsonl,
    summary.json.
    """
    judge = task.settings.judge
    bench = fastchat.load_bench(task.inputs["benchmarks"] / NAME, task.settings.reference_set)
    answers = fastchat.read_answers(task.inputs["answer"] / "mt_bench.jsonl")
    items = plan_items(bench, answers, judge.model)
    judged = {item.name: item for item in items if item.match is not None}
    requests = [JudgeRequest(name, item.messages, {}) for name, item in judged.items()]

    def read(reply: JudgeReply) -> dict[str, Any]:
        rating = verdicts.parse_rating(reply.text)
        return {"rating": rating.value, "reason": rating.reason, "text": reply.text}

    found, costs = judgments(judge, task, requests, read, "rating")
    for (name, _), row in found.items():
        row |= _told(judged[name], judge.model, row.pop("text", None))
    finalise(task.out, found)
    scores = []
    for repeat in range(judge.repeats):
        for item in items:
            calls = [(item.name, call) for call in calls_of(judge, repeat)]
            drawn = [found[call] for call in calls if call in found]
            scores.append(score_row(item, repeat, drawn, bench, judge))
    return benchmark.finish(task, scores, summarise(scores, items, found, bench, judge), costs)


def _told(item: Item, judge_model: str, judgment: str | None) -> dict[str, Any]:
    """What else a judgment's row holds: FastChat's own reading, prompt name, flags."""
    return {
        "question_id": item.question["question_id"],
        "turn": item.turn,
        "judge": [judge_model, item.match.judge.prompt_template["name"]],
        "flags": item.flags,
        "fastchat_score": None if judgment is None else fastchat.replay(item.match, judgment),
    }


def plan_items(
    bench: Bench, answers: Mapping[int, Mapping[str, Any]], judge_model: str
) -> list[Item]:
    """One item per question and turn, in the questions' order; those with an answer carry
    FastChat's match and rendered messages.
    """
    unknown = sorted(set(answers) - {question["question_id"] for question in bench.questions})
    if unknown:
        listed = ", ".join(map(str, unknown[:10]))
        raise HarnessError(f"answers to questions that the benchmark does not hold: {listed}")
    items: list[Item] = []
    for question in bench.questions:
        answer = answers.get(question["question_id"])
        safe, found = fastchat.neutral_answer(answer) if answer else ({}, {})
        hashed = (bench.reference_turns(question), bench.hashes["judge_prompts"])
        flags: list[str] = []
        for turn in range(1, len(question["turns"]) + 1):
            said = fastchat.turns_of(answer, turn)
            texts = [text for text, _ in said]
            source = content_hash(question["turns"][:turn], texts, *hashed, length=16)
            item = Item(question, turn, fastchat.turn_status(said), source)
            flags += [f"neutralised: {text}" for text in found.get(turn, ())]
            item.flags = list(flags)
            item.flags += ["truncated"] * any(status == "truncated" for _, status in said)
            if item.status == "ok":
                item.match = fastchat.make_match(bench, question, turn, safe, judge_model)
                item.messages = tuple(fastchat.render(item.match)[0])
            items.append(item)
    return items


def readable(reply: JudgeReply) -> bool:
    """Whether a reply holds a final rating; others are asked again, within bounds."""
    return verdicts.parse_rating(reply.text).value is not None


def score_row(
    item: Item, repeat: int, drawn: Sequence[Mapping[str, Any]], bench: Bench, judge: JudgeSettings
) -> Score:
    """The score row of an item: the mean of its ratings (one, unless the judge is sampled), or the
    reason why there is none. Its version names the library and the hashed inputs: rows of different
    sets never compare as equal.
    """
    library = f"fschat-{metadata.version('fschat')}"
    version = f"{library} questions:{bench.hashes['questions']} {bench.references_hash}"
    value, status = None, item.status
    if drawn:
        value, status = verdicts.mean_of([(row["rating"], row["score_status"]) for row in drawn])
    names = (item.name, str(item.question["question_id"]), "rating")
    by = (verdicts.judge_label(judge), repeat, item.source)
    return Score(NAME, version, *names, value, status, *by)


def summarise(
    scores: Sequence[Score], items: Sequence[Item], found: Found, bench: Bench, judge: JudgeSettings
) -> dict[str, Any]:
    """Turn 1, turn 2, mean over all scored rows (None without any), counts by status, and
    everything flagged.
    """
    values: dict[int, list[float]] = {1: [], 2: []}
    for score in scores:
        if score.value is not None:
            values[int(score.item.rpartition(":")[2])].append(score.value)
    everything = [*values[1], *values[2]]
    disagree = sorted(
        f"{name}#{repeat}"
        for (name, repeat), row in found.items()
        if row["score_status"] != "error" and row["rating"] != row["fastchat_score"]
    )
    kinds = ((item.name, [flag.partition(":")[0] for flag in item.flags]) for item in items)
    flagged = benchmark.flagged(kinds)
    judged = [item.match.answer for item in items if item.match is not None and item.turn == 1]
    first = [answer["choices"][0]["turns"][0] for answer in judged]
    sampled = {"verdict": f"the mean of {judge.samples} ratings"} if judge.samples > 1 else {}
    return {
        **sampled,
        "turn_1": benchmark.mean(values[1]),
        "turn_2": benchmark.mean(values[2]),
        "mean": benchmark.mean(everything),
        "scored": len(everything),
        "expected": len(scores),
        "statuses": dict(Counter(score.status for score in scores)),
        "truncated": sorted(flagged.get("truncated", [])),
        "neutralised": sorted(flagged.get("neutralised", [])),
        "flags": benchmark.constant(first),
        "fastchat_reads_otherwise": disagree,
        "verdicts_cut_off": verdicts.cut_off({key: row["reason"] for key, row in found.items()}),
        "judge": judge.model,
        "reference_set": bench.reference_set,
        "hashes": bench.hashes,
        "comparable": bench.hashes == OFFICIAL and judge.model in OFFICIAL_JUDGES,
    }


# -- the record ------------------------------------------------------------------------------------
SIZE = benchmark.Size(NAME, "MT-Bench turns", 80, 24, each=2)
RATING = Measure(
    NAME,
    "rating",
    "MT-Bench mean",
    "rating 1–10",
    scale=(1.0, 10.0),
    items="questions",
    table="table_1",
)
MEASURES = (
    RATING,
    replace(RATING, title="turn 1", part=":1", long="MT-Bench turn 1"),
    replace(RATING, title="turn 2", part=":2", long="MT-Bench turn 2"),
)


def _work(count: Counting, task: JudgeTask) -> Work:
    return SIZE.judged(count, task.judge, count.lengths.rating_prompt, "ratings")


BENCHMARK = benchmark.Benchmark(
    NAME,
    "MT-Bench",
    settings=MTBenchSettings,
    stage="judge.mt_bench",
    run="harness.evaluate.mt_bench:run",
    task=JudgeTask,
    settle=lambda asked: JudgeTask(judge=asked.judge, reference_set=asked.settings.reference_set),
    measures=lambda _evaluation: MEASURES,
    work=_work,
    judged=True,
    answers=lambda settings: Answers(max_new_tokens=settings.max_new_tokens),
    questions=Turns,
    asked=SIZE.asked,
    files=("questions", "references", "judge_prompts"),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_mt_bench",
    samples=benchmark.Samples("mt_bench.jsonl", "rating", "rating", form="mt_bench"),
    given=benchmark.GivenFiles(
        "harness.evaluate.given:mt_bench_answers", "harness.evaluate.given:mt_bench_verdicts"
    ),
)
