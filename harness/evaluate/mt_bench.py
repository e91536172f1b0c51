"""MT-Bench by single-answer grading: FastChat renders every judge prompt and reads every judgment;
only its network call is ours.

All prompts are collected first, sent to the judge in one concurrent batch, then FastChat's matches
are played again with the replies. Guarded from outside: failed answers are never judged, verdict
syntax in answers is neutralised, the verdict is the judge's last final one
(`verdicts.parse_rating`) instead of the first bracket, and what cannot be read is ``unparsed``, not
-1.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.evaluate import libraries
from harness.evaluate.benchmark import (
    MODEL_ID,
    Ask,
    Asked,
    Benchmark,
    Counting,
    Desk,
    Measure,
    PairStage,
    Samples,
    asked_work,
    finish,
    given_file,
    judged_work,
    mean,
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
from harness.study.sections import JudgeSettings, NonNegative, Positive, Section
from harness.study.tasks import Answers, AnswerTask
from harness.study.work import Work


class MTBenchSettings(Section):
    questions: str = ""
    references: str = ""
    judge_prompts: str = ""
    """Files in FastChat's formats; empty: the pocket world's."""
    reference_set: str = "pocket"
    limit: NonNegative = 0
    max_new_tokens: Positive = 24


class JudgeTask(Section):
    """``judge.mt_bench``, and ``judge.mt_bench_pairwise``."""

    judge: JudgeSettings
    reference_set: str


NEED_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
"""FastChat's NEED_REF_CATS: these categories are judged with the ``-math-`` prompts and a reference
answer.
"""
PROMPT_NAMES = {
    "default": "single-v1",
    "math": "single-math-v1",
    "default-mt": "single-v1-multi-turn",
    "math-mt": "single-math-v1-multi-turn",
}
PAIR_PROMPT_NAMES = ("pair-v2", "pair-math-v1", "pair-v2-multi-turn", "pair-math-v1-multi-turn")
OFFICIAL = {
    "questions": "1c5ac98db58b",
    "references": "88f06568f8ba",
    "judge_prompts": "ca2cb45233ee",
}
"""Content hashes of lm-sys/FastChat's 80 questions, 30 GPT-4 references and four single-answer
prompts.
"""
OFFICIAL_JUDGES = ("gpt-4", "gpt-4-0314", "gpt-4-0613")


@dataclass(frozen=True)
class Bench:
    """Questions in file order, references by question id, judge prompts by name, and what the set
    of references is called.
    """

    questions: tuple[Mapping[str, Any], ...]
    references: Mapping[int, Mapping[str, Any]]
    prompts: Mapping[str, Mapping[str, Any]]
    reference_set: str = ""

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """Content hashes (12 hex digits) of questions, references and prompts, independent of file
        layout.
        """
        questions = [(q["question_id"], q["category"], q["turns"]) for q in self.questions]
        references = sorted(
            (number, row["choices"][0]["turns"]) for number, row in self.references.items()
        )
        prompts = [
            (name, self.prompts[name]["system_prompt"], self.prompts[name]["prompt_template"])
            for name in sorted(PROMPT_NAMES.values())
        ]
        return {
            "questions": content_hash(questions, length=12),
            "references": content_hash(references, length=12),
            "judge_prompts": content_hash(prompts, length=12),
        }


def load_bench(folder: Path, reference_set: str = "") -> Bench:
    """The bench of a benchmark folder: question.jsonl, reference_answer.jsonl, judge_prompts.jsonl."""
    return read_bench(
        folder / "question.jsonl",
        folder / "reference_answer.jsonl",
        folder / "judge_prompts.jsonl",
        reference_set,
    )


def read_bench(questions: Path, references: Path, prompts: Path, reference_set: str = "") -> Bench:
    """Questions, references and judge prompts in FastChat's formats, checked; HarnessError names
    file, line and what is wrong.
    """
    asked = tuple(_rows(questions, {"question_id": int, "category": str, "turns": list}))
    doubled = sorted(
        {
            q["question_id"]
            for q in asked
            if sum(r["question_id"] == q["question_id"] for r in asked) > 1
        }
    )
    if doubled or not asked:
        raise HarnessError(
            f"{questions}: "
            + (
                f"question {', '.join(map(str, doubled))} occurs more than once"
                if doubled
                else "holds no question"
            )
        )
    answered = (
        {
            row["question_id"]: row
            for row in _rows(references, {"question_id": int, "choices": list})
        }
        if references.exists()
        else {}
    )
    named = {
        row["name"]: row
        for row in _rows(
            prompts,
            {"name": str, "system_prompt": str, "prompt_template": str, "output_format": str},
        )
    }
    missing = [name for name in PROMPT_NAMES.values() if name not in named]
    if missing:
        raise HarnessError(f"{prompts}: no judge prompt named {', '.join(missing)}")
    without = [
        q["question_id"]
        for q in asked
        if q["category"] in NEED_REFERENCE and not _answers_all(answered.get(q["question_id"]), q)
    ]
    if without:
        raise HarnessError(
            f"{references}: no reference for every turn of question "
            f"{', '.join(map(str, without[:10]))}; "
            f"{', '.join(NEED_REFERENCE[:3])} are judged with one"
        )
    return Bench(asked, answered, named, reference_set)


def _answers_all(row: Mapping[str, Any] | None, question: Mapping[str, Any]) -> bool:
    return row is not None and len(row["choices"][0]["turns"]) >= len(question["turns"])


def _rows(path: Path, keys: Mapping[str, type]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise HarnessError(f"{path} does not exist")
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, 1):
        for key, kind in keys.items():
            found = row.get(key) if isinstance(row, dict) else row
            if not isinstance(row, dict) or not isinstance(found, kind):
                raise HarnessError(
                    f"{path}: row {number}: key {key!r} should be {kind.__name__}, found "
                    f"{type(found).__name__}"
                )
    return rows


def read_answers(path: Path) -> dict[int, dict[str, Any]]:
    """Answers by question id. A doubled question is an error: FastChat would silently use the last."""
    answers: dict[int, dict[str, Any]] = {}
    for row in read_jsonl(path):
        if row["question_id"] in answers:
            raise HarnessError(f"{path}: question {row['question_id']} is answered twice")
        answers[row["question_id"]] = row
    return answers


def turn_of(answer: Mapping[str, Any], turn: int) -> tuple[str, Status]:
    """Text and status of one turn of an answer row; rows without ``status`` (FastChat's own) are
    judged by their text.
    """
    turns = answer["choices"][0]["turns"]
    text = turns[turn - 1] if turn <= len(turns) else ""
    statuses = answer.get("status") or []
    status: Status = statuses[turn - 1] if turn <= len(statuses) else "ok"
    if status in ("ok", "truncated") and str(text).strip() in verdicts.FAILED_ANSWERS:
        return "", "error"
    if status in ("ok", "truncated") and not str(text).strip():
        return "", "no_answer"
    return text, status


def turn_status(answer: Mapping[str, Any] | None, turn: int) -> Status:
    """``ok`` when this turn and the ones before it have an answer to judge (cut-off ones count);
    else the worst of their statuses.
    """
    if answer is None:
        return "no_answer"
    found = [turn_of(answer, t)[1] for t in range(1, turn + 1)]
    for status in ("error", "refused", "no_answer", "unparsed"):
        if status in found:
            return status  # type: ignore[return-value]
    return "ok"


def neutral_answer(answer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, list[str]]]:
    """The answer row with verdict syntax and prompt delimiters defused, and what was found by turn."""
    turns, found = [], {}
    for turn, text in enumerate(answer["choices"][0]["turns"], 1):
        defused, matches = verdicts.neutralise(str(text), verdicts.MT_BENCH_PATTERNS)
        turns.append(defused)
        if matches:
            found[turn] = matches
    return {**answer, "choices": [{"index": 0, "turns": turns}]}, found


def reference_turns(bench: Bench, question: Mapping[str, Any]) -> list[str] | None:
    """The reference answers a question is judged with, if its category wants any."""
    return (
        list(bench.references[question["question_id"]]["choices"][0]["turns"])
        if question["category"] in NEED_REFERENCE
        else None
    )


def make_match(
    bench: Bench,
    question: Mapping[str, Any],
    turn: int,
    answer: Mapping[str, Any],
    judge_model: str,
) -> Any:
    """FastChat's MatchSingle of one question and turn, with the judge prompt and reference that
    FastChat's main program would take.
    """
    fastchat = libraries.fastchat()
    needs = question["category"] in NEED_REFERENCE
    judge = fastchat.make_judge_single(judge_model, dict(bench.prompts))[
        ("math" if needs else "default") + ("-mt" if turn == 2 else "")
    ]
    references = {judge_model: dict(bench.references)} if needs else None
    answers = {"answer": {question["question_id"]: answer}}
    return fastchat.make_match_single(
        [question], ["answer"], answers, judge, None, references, turn == 2
    )[0]


def make_pair(
    bench: Bench,
    question: Mapping[str, Any],
    turn: int,
    answers: tuple[Mapping[str, Any], Mapping[str, Any]],
    judge_model: str,
) -> Any:
    """FastChat's MatchPair of two models' answers to one question and turn; HarnessError when the
    bench has no pairwise prompts.
    """
    missing = [name for name in PAIR_PROMPT_NAMES if name not in bench.prompts]
    if missing:
        raise HarnessError(
            f"judge_prompts.jsonl: no judge prompt named {', '.join(missing)}; pairwise grading "
            "needs them"
        )
    fastchat = libraries.fastchat()
    needs = question["category"] in NEED_REFERENCE
    judge = fastchat.make_judge_pairwise(judge_model, dict(bench.prompts))[
        ("math" if needs else "default") + ("-mt" if turn == 2 else "")
    ]
    references = {judge_model: dict(bench.references)} if needs else None
    given = {
        name: {question["question_id"]: answer}
        for name, answer in zip(("a", "b"), answers, strict=True)
    }
    return fastchat.make_match([question], ["a"], given, judge, "b", references, turn == 2)[0]


def play_pair(
    match: Any, judgments: Sequence[str] = ("[[C]]", "[[C]]")
) -> tuple[list[list[dict[str, str]]], dict[str, Any]]:
    """FastChat's two games of a pair (a first, then b first) with these judgments: (messages of
    each game, FastChat's result row).
    """
    sent: list[list[dict[str, str]]] = []

    def answer(messages: list[dict[str, str]]) -> str:
        sent.append(messages)
        return judgments[len(sent) - 1]

    with libraries.fastchat_completions(answer, match.judge.model_name) as fastchat:
        row: dict[str, Any] = fastchat.play_a_match_pair(match, output_file=None)
    return sent, row


def render(match: Any) -> tuple[list[dict[str, str]], str]:
    """(messages, user prompt) FastChat would send for a match."""
    sent: list[list[dict[str, str]]] = []

    def record(messages: list[dict[str, str]]) -> str:
        sent.append(messages)
        return "[[1]]"

    with libraries.fastchat_completions(record, match.judge.model_name) as fastchat:
        row = fastchat.play_a_match_single(match, output_file=None)
    return sent[0], row["user_prompt"]


def replay(match: Any, judgment: str) -> float | None:
    """FastChat's score of a judgment: -1 when it finds none, None when its parser crashes
    (full-width digits).
    """
    with libraries.fastchat_completions(
        lambda _messages: judgment, match.judge.model_name
    ) as fastchat:
        try:
            return float(fastchat.play_a_match_single(match, output_file=None)["score"])
        except (SyntaxError, ValueError):
            return None


NAME = "mt_bench"


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
    """Stage ``judge.mt_bench``: answer, benchmarks → scores.parquet, judgments.jsonl, summary.json."""
    judge = task.settings.judge
    bench = load_bench(task.inputs["benchmarks"] / "mt_bench", task.settings.reference_set)
    items = plan_items(bench, read_answers(task.inputs["answer"] / "mt_bench.jsonl"), judge.model)
    repeats = range(judge.repeats)
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
        identity: verdict(item, by_identity[identity], judge.model)
        for item in judged
        for identity in [(item.name, r) for r in repeats]
    }
    scores = [
        score_row(item, repeat, verdict_rows.get((item.name, repeat)), bench, judge)
        for repeat in repeats
        for item in items
    ]
    finalise(journal, task.out / JUDGMENTS_NAME, verdict_rows)
    return finish(task, scores, summarise(scores, items, verdict_rows, bench, judge), costs)


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
    item: Item, repeat: int, found: Mapping[str, Any] | None, bench: Bench, judge: JudgeSettings
) -> Score:
    """The score row of an item: its rating, or the reason why there is none."""
    status: Status = item.status if found is None else found["score_status"]
    return Score(
        NAME,
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
    judge: JudgeSettings,
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
        "turn_1": mean(values[1]),
        "turn_2": mean(values[2]),
        "mean": mean(everything),
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
        "judge": judge.model,
        "reference_set": bench.reference_set,
        "hashes": bench.hashes,
        "comparable": not differing and judge.model in OFFICIAL_JUDGES,
    }


def flags_of(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """``constant_answers`` when more than half of ten or more first turns are the same text."""
    texts = Counter(answer["choices"][0]["turns"][0] for answer in answers)
    return (
        ["constant_answers"]
        if len(answers) >= 10 and max(texts.values()) > len(answers) / 2
        else []
    )


# -- what a policy is asked ------------------------------------------------------------------------


ANSWER_TEMPERATURE = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""FastChat's answer temperature by category; every other category is greedy."""


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
            usual = ANSWER_TEMPERATURE.get(question["category"], 0.0)
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
    questions, references, prompts = (
        given_file(settings, "mt_bench", name)
        for name in ("questions", "references", "judge_prompts")
    )
    bench = read_bench(questions, references, prompts, settings.reference_set)
    kept = bench.questions[: settings.limit or None]
    for row in kept:
        if not 1 <= len(row["turns"]) <= 2 or not all(
            isinstance(turn, str) and turn for turn in row["turns"]
        ):
            raise HarnessError(
                f"{questions}: question {row['question_id']}: key 'turns' wants one or two texts"
            )
    needed = {row["question_id"] for row in kept if row["category"] in NEED_REFERENCE}
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "question.jsonl", kept)
    write_jsonl(
        out / "reference_answer.jsonl", [bench.references[number] for number in sorted(needed)]
    )
    write_jsonl(
        out / "judge_prompts.jsonl", [bench.prompts[name] for name in sorted(bench.prompts)]
    )
    hashes = load_bench(out, bench.reference_set).hashes
    expected = sum(len(row["turns"]) for row in kept)
    return {
        "expected": expected,
        "reference_set": bench.reference_set,
        "hashes": hashes,
        "official": hashes == OFFICIAL,
    }


# -- its record ------------------------------------------------------------------------------------


QUESTIONS, POCKET_QUESTIONS = 80, 24
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


def settle(asked: Asked) -> JudgeTask:
    """Settings of the judging stage."""
    return JudgeTask(judge=asked.judge, reference_set=asked.settings.reference_set)


def turns_to_judge(count: Counting) -> int:
    """Two turns a question."""
    return 2 * count.limit(NAME, POCKET_QUESTIONS if count.pocket else QUESTIONS)


def _asked(count: Counting, task: AnswerTask) -> Work:
    turns = turns_to_judge(count)
    length = min(count.lengths.judged_answer, task.answers[NAME].max_new_tokens)
    return asked_work(turns, length, "MT-Bench turns")


def _work(count: Counting, task: JudgeTask) -> Work:
    calls = turns_to_judge(count) * task.judge.repeats
    lengths = count.lengths
    return judged_work(calls, lengths.rating_prompt, lengths.rating_reply, "ratings")


def _pair_work(count: Counting, _task: JudgeTask) -> Work:
    """Two games a turn (each answer shown first once); a prompt holds a second answer."""
    lengths = count.lengths
    prompt = lengths.rating_prompt + lengths.judged_answer
    return judged_work(2 * turns_to_judge(count), prompt, lengths.rating_reply, "games")


BENCHMARK = Benchmark(
    NAME,
    "MT-Bench",
    settings=MTBenchSettings,
    stage="judge.mt_bench",
    run="harness.evaluate.mt_bench:run",
    task=JudgeTask,
    settle=settle,
    measures=lambda _evaluation: MEASURES,
    work=_work,
    judged=True,
    answers=lambda settings: Answers(max_new_tokens=settings.max_new_tokens),
    questions=Turns,
    asked=_asked,
    files=("questions", "references", "judge_prompts"),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_mt_bench",
    samples=Samples("mt_bench.jsonl", "rating", "rating", form="mt_bench"),
    pairs=PairStage(
        "judge.mt_bench_pairwise", "harness.evaluate.mt_bench_pairwise:run", _pair_work
    ),
)
