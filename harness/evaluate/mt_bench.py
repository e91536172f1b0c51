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
from typing import Annotated, Any

from pydantic import Field

from harness.evaluate import benchmark, libraries
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

    def rounds(self, desk: benchmark.Desk) -> Sequence[Iterable[benchmark.Ask]]:
        return self.turn(0, desk), self.turn(1, desk)

    def turn(self, turn: int, desk: benchmark.Desk) -> Iterator[benchmark.Ask]:
        """Asks for one turn of every question whose earlier turns were answered."""
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
            yield benchmark.Ask(key, tuple(messages), self.max_new_tokens, temperature)

    def write(self, desk: benchmark.Desk, out: Path) -> None:
        """``mt_bench.jsonl``: FastChat's model_answer rows, and a ``status`` per turn."""
        rows = []
        for question in self.questions:
            number = question["question_id"]
            turns = range(len(question["turns"]))
            answers = [desk.answers[NAME, str(number), turn] for turn in turns]
            texts = [answer.text.strip() for answer in answers]
            row = {"question_id": number, "answer_id": content_hash(number, texts, length=22)}
            row |= {
                "model_id": benchmark.MODEL_ID,
                "choices": [{"index": 0, "turns": texts}],
                "tstamp": 0,
            }
            rows.append(row | {"status": [answer.status for answer in answers]})
        write_jsonl(out / "mt_bench.jsonl", rows)


# -- its files, in FastChat's forms ---------------------------------------------------------------
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
FILES = ("question.jsonl", "reference_answer.jsonl", "judge_prompts.jsonl")


class _Question(benchmark.Form):
    question_id: int
    category: str
    turns: list[Any]


class _Prompt(benchmark.Form):
    name: str
    system_prompt: str
    prompt_template: str
    output_format: str


class _Choice(benchmark.Form):
    turns: list[benchmark.Text]


class _Answer(benchmark.Form):
    question_id: int
    choices: Annotated[list[_Choice], Field(min_length=1)]


class _Judgment(benchmark.Form):
    question_id: int
    turn: int
    model: str
    user_prompt: str
    judgment: benchmark.Text = ""
    judge: Annotated[list[Any], Field(min_length=2, max_length=2)]
    """Its name, and its prompt's."""


@dataclass(frozen=True)
class Bench:
    """Questions in file order, references by id, judge prompts by name."""

    questions: tuple[Mapping[str, Any], ...]
    references: Mapping[int, Mapping[str, Any]]
    prompts: Mapping[str, Mapping[str, Any]]
    reference_set: str = ""

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """Content hashes (12 hex digits), independent of file layout."""
        references = self.references.items()
        named = [(name, self.prompts[name]) for name in sorted(PROMPT_NAMES.values())]
        parts: dict[str, list[Any]] = {
            "questions": [(q["question_id"], q["category"], q["turns"]) for q in self.questions],
            "references": sorted((number, turns_in(row)) for number, row in references),
            "judge_prompts": [(n, p["system_prompt"], p["prompt_template"]) for n, p in named],
        }
        return {name: content_hash(part, length=12) for name, part in parts.items()}

    def reference_turns(self, question: Mapping[str, Any]) -> list[str] | None:
        """The reference answers a question is judged with, if its category wants any."""
        if question["category"] not in NEED_REFERENCE:
            return None
        return list(turns_in(self.references[question["question_id"]]))


def turns_in(answer: Mapping[str, Any]) -> list[Any]:
    """The turns of an answer's first choice, which FastChat judges alone."""
    found: list[Any] = answer["choices"][0]["turns"]
    return found


def load_bench(folder: Path, reference_set: str = "") -> Bench:
    """The bench of a benchmark folder."""
    questions, references, prompts = (folder / name for name in FILES)
    return read_bench(questions, references, prompts, reference_set)


def read_bench(questions: Path, references: Path, prompts: Path, reference_set: str = "") -> Bench:
    """Questions, references and judge prompts in FastChat's forms, checked."""
    asked = tuple(benchmark.checked(benchmark.read_rows(questions), _Question, questions))
    if not asked:
        raise HarnessError(f"{questions}: holds no question")
    benchmark.by_key(asked, "question_id", questions)
    rows = model_answers(references) if references.exists() else []
    answered = benchmark.by_key(rows, "question_id", references)
    named = benchmark.by_key(
        benchmark.checked(benchmark.read_rows(prompts), _Prompt, prompts), "name", prompts
    )
    missing = [name for name in PROMPT_NAMES.values() if name not in named]
    if missing:
        raise HarnessError(f"{prompts}: no judge prompt named {', '.join(missing)}")
    without = []
    for question in asked:
        row = answered.get(question["question_id"])
        short = sum(map(bool, turns_in(row) if row else ())) < len(question["turns"])
        if short and question["category"] in NEED_REFERENCE:
            without.append(str(question["question_id"]))
    if without:
        raise HarnessError(
            f"{references}: no reference for every turn of question {', '.join(without[:10])}; "
            f"{', '.join(NEED_REFERENCE[:3])} are judged with one"
        )
    return Bench(asked, answered, named, reference_set)


def model_answers(path: Path) -> list[dict[str, Any]]:
    """Rows of a model_answer file, of any models; a turn that is null is an empty text."""
    return benchmark.checked(benchmark.read_rows(path), _Answer, path)


def read_answers(path: Path) -> dict[int, Mapping[str, Any]]:
    """Answers by question id; of a doubled question FastChat would silently use the last."""
    return benchmark.by_key(model_answers(path), "question_id", path)


def model_judgments(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of single-answer judgments, of any models; a missing text is an empty one."""
    rows = benchmark.read_rows(path)
    if any("g1_winner" in row for row in rows if isinstance(row, dict)):
        raise HarnessError(f"{path}: judgments of pairs (g1_winner); wants those of single answers")
    return benchmark.checked(rows, _Judgment, path)


def prepare(settings: MTBenchSettings, out: Path) -> dict[str, Any]:
    """FastChat's three files, checked; the summary says which are its own."""
    files = [benchmark.given_file(settings, NAME, key) for key in BENCHMARK.files]
    bench = read_bench(files[0], files[1], files[2], settings.reference_set)
    kept = bench.questions[: settings.limit or None]
    for row in kept:
        texts = [turn for turn in row["turns"] if isinstance(turn, str) and turn]
        if len(texts) != len(row["turns"]) or len(texts) not in (1, 2):
            raise HarnessError(
                f"{files[0]}: question {row['question_id']}: key 'turns' wants one or two texts"
            )
    needed = {row["question_id"] for row in kept if row["category"] in NEED_REFERENCE}
    references = [bench.references[one] for one in sorted(needed)]
    prompts = [bench.prompts[one] for one in sorted(bench.prompts)]
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(FILES, (kept, references, prompts), strict=True):
        write_jsonl(out / name, rows)
    hashes = load_bench(out).hashes
    return {
        "expected": sum(len(row["turns"]) for row in kept),
        "reference_set": bench.reference_set,
        "hashes": hashes,
        "official": hashes == OFFICIAL,
    }


def turns_of(answer: Mapping[str, Any] | None, turn: int) -> list[tuple[str, Status]]:
    """(text, status) of an answer's turns up to one; of FastChat's own rows, judged by the text."""
    if not answer:
        return []
    turns, statuses = turns_in(answer), answer.get("status") or ()
    found: list[tuple[str, Status]] = []
    for place in range(turn):
        text = turns[place] if place < len(turns) else ""
        told: Status = statuses[place] if place < len(statuses) else "ok"
        status, _ = verdicts.answer_status(told, text)
        gone = told in ("ok", "truncated") and status != "ok"
        found.append(("", status) if gone else (text, told))
    return found


# -- matches ---------------------------------------------------------------------------------------
# FastChat's maker of matches is called for one question at a time, with the prompt and references
# its main program would take: its own loop over a folder drops what it cannot find.
Messages = list[dict[str, str]]


def make_match(
    bench: Bench, question: Mapping[str, Any], turn: int, answer: Mapping[str, Any], judge: str
) -> Any:
    """FastChat's MatchSingle of one question and turn."""
    fastchat, needs = libraries.fastchat(), question["category"] in NEED_REFERENCE
    kind = ("math" if needs else "default") + ("-mt" if turn == 2 else "")
    prompt = fastchat.make_judge_single(judge, dict(bench.prompts))[kind]
    references = {judge: dict(bench.references)} if needs else None
    given = {"answer": {question["question_id"]: answer}}
    make = fastchat.make_match_single
    return make([question], ["answer"], given, prompt, None, references, turn == 2)[0]


def render(match: Any) -> tuple[Messages, str]:
    """(messages, user prompt) FastChat would send for a match."""
    sent: list[Messages] = []

    def record(messages: Messages) -> str:
        sent.append(messages)
        return "[[1]]"

    with libraries.fastchat_completions(record, match.judge.model_name) as fastchat:
        row = fastchat.play_a_match_single(match, output_file=None)
    return sent[0], row["user_prompt"]


def replay(match: Any, judgment: str) -> float | None:
    """FastChat's score of a judgment: -1 when it finds none, None when its parser crashes."""
    judge = match.judge.model_name
    with libraries.fastchat_completions(lambda _messages: judgment, judge) as fastchat:
        try:
            return float(fastchat.play_a_match_single(match, output_file=None)["score"])
        except (SyntaxError, ValueError):
            return None


# -- judging ---------------------------------------------------------------------------------------
WORST: tuple[Status, ...] = ("error", "refused", "no_answer", "unparsed")
"""Of turns; a cut-off one is judged."""


@dataclass
class Item:
    """One question and turn: its answer's status, FastChat's match when judged, and flags."""

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
    """Stage ``judge.mt_bench``: answer, benchmarks → scores, judgments, summary."""
    judge = task.settings.judge
    bench = load_bench(task.inputs["benchmarks"] / NAME, task.settings.reference_set)
    answers = read_answers(task.inputs["answer"] / "mt_bench.jsonl")
    items = plan_items(bench, answers, judge.model)
    judged = {item.name: item for item in items if item.match is not None}
    requests = [JudgeRequest(name, item.messages, {}) for name, item in judged.items()]

    def read(reply: JudgeReply) -> dict[str, Any]:
        rating = verdicts.parse_rating(reply.text)
        return {"rating": rating.value, "reason": rating.reason, "text": reply.text}

    found, costs = judgments(judge, task, requests, read, "rating")
    for (name, _), row in found.items():
        item, said = judged[name], row.pop("text", None)
        row |= {"question_id": item.question["question_id"], "turn": item.turn}
        row |= {"judge": [judge.model, item.match.judge.prompt_template["name"]]}
        row |= {"flags": item.flags}
        row["fastchat_score"] = None if said is None else replay(item.match, said)
    finalise(task.out, found)
    scores = []
    for repeat in range(judge.repeats):
        for item in items:
            calls = [(item.name, call) for call in calls_of(judge, repeat)]
            drawn = [found[call] for call in calls if call in found]
            scores.append(score_row(item, repeat, drawn, bench, judge))
    return benchmark.finish(task, scores, summarise(scores, items, found, bench, judge), costs)


def plan_items(
    bench: Bench, answers: Mapping[int, Mapping[str, Any]], judge_model: str
) -> list[Item]:
    """An item per question and turn, in order; answered ones carry match and rendered messages."""
    unknown = sorted(set(answers) - {question["question_id"] for question in bench.questions})
    if unknown:
        listed = ", ".join(map(str, unknown[:10]))
        raise HarnessError(f"answers to questions that the benchmark does not hold: {listed}")
    items: list[Item] = []
    for question in bench.questions:
        answer = answers.get(question["question_id"])
        safe, found = _neutral(answer) if answer else ({}, [])
        hashed = (bench.reference_turns(question), bench.hashes["judge_prompts"])
        for turn in range(1, len(question["turns"]) + 1):
            said = turns_of(answer, turn)
            texts = [text for text, _ in said]
            source = content_hash(question["turns"][:turn], texts, *hashed, length=16)
            statuses = [status for _, status in said] or ["no_answer"]
            worst: Status = next((status for status in WORST if status in statuses), "ok")
            item = Item(question, turn, worst, source)
            item.flags = [f"neutralised: {text}" for each in found[:turn] for text in each]
            item.flags += ["truncated"] * ("truncated" in statuses)
            if item.status == "ok":
                item.match = make_match(bench, question, turn, safe, judge_model)
                item.messages = tuple(render(item.match)[0])
            items.append(item)
    return items


def _neutral(answer: Mapping[str, Any]) -> tuple[dict[str, Any], list[list[str]]]:
    """The answer with verdict syntax and delimiters defused, and what was found by turn."""
    patterns = verdicts.MT_BENCH_PATTERNS
    defused = [verdicts.neutralise(str(text), patterns) for text in turns_in(answer)]
    turns, found = [text for text, _ in defused], [matches for _, matches in defused]
    return {**answer, "choices": [{"index": 0, "turns": turns}]}, found


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
    references = f"{bench.reference_set or 'unnamed'}@{bench.hashes['references']}"
    version = f"{library} questions:{bench.hashes['questions']} references:{references}"
    value, status = None, item.status
    if drawn:
        value, status = verdicts.mean_of([(row["rating"], row["score_status"]) for row in drawn])
    names = (item.name, str(item.question["question_id"]), "rating")
    by = (verdicts.judge_label(judge), repeat, item.source)
    return Score(NAME, version, *names, value, status, *by)


def summarise(
    scores: Sequence[Score], items: Sequence[Item], found: Found, bench: Bench, judge: JudgeSettings
) -> dict[str, Any]:
    """Means of the turns and of all scored rows, counts by status, and everything flagged."""
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
    judged = [item for item in items if item.match is not None and item.turn == 1]
    first = [turns_in(item.match.answer)[0] for item in judged]
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
RATING = benchmark.Measure(
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


def _work(count: benchmark.Counting, task: JudgeTask) -> Work:
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
