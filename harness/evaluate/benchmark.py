"""What is known of a benchmark: one record, over which plan, answers, judging, cost, doctor,
manifest, tables, figures and samples iterate.

A benchmark is one file of this folder that defines ``BENCHMARK`` (`harness.evaluate.registry` finds
it). Importing it must not load torch or a benchmark library: planning reads these records.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from harness.data.files import file_rows
from harness.records import (
    Generation,
    HarnessError,
    LeftOut,
    Score,
    StageOutcome,
    StageTask,
    Tally,
    canonical_json,
    read_jsonl,
    write_jsonl,
    write_scores,
)
from harness.study.sections import JudgeSettings, NonNegative, Positive, Section
from harness.study.tasks import Answers, AnswerTask, RankerTask
from harness.study.work import Lengths, Work

MODEL_ID = "model"
"""Name of the checkpoint in the benchmark libraries' files: the same for all, so that equal answers
are equal files.
"""
PERCENT = (0.0, 100.0)


# -- what analysis shows ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Measure:
    """A column of a table and an axis of a figure; written into the manifest, so that analysis
    imports nothing of the harness.

    benchmark, metric: of the score rows. better: +1 higher, -1 lower, 0 neither. scale: lowest and
    highest possible value. part: ending of the item names that belong to it. point: key of the
    stage's summary that holds the library's own value. strata: benchmarks whose mean it is. items:
    what one item is. table: the table it is a column of, the benchmark's own if it is named after
    it. long: its title outside that table.
    """

    benchmark: str
    metric: str
    title: str
    unit: str = ""
    digits: int = 2
    better: int = 1
    scale: tuple[float, float] | None = None
    part: str = ""
    point: str = ""
    strata: tuple[str, ...] = ()
    items: str = "items"
    table: str = ""
    long: str = ""


@dataclass(frozen=True)
class Samples:
    """How the report shows an item's question, answer and score.

    form: of the answer file: ``rows`` (JSONL with id, question, output, status), or one of the
    libraries' own. file: in the answer stage's folder. metric: of the score shown beside it; words:
    what that score is. neutral: of a preference, the value on whose two sides an answer won or
    lost.
    """

    file: str
    metric: str
    words: str
    form: str = "rows"
    digits: int = 1
    neutral: float | None = None


# -- what is asked of a policy ---------------------------------------------------------------------
@dataclass(frozen=True)
class Ask:
    """One answer wanted of a policy: its name, the conversation before it, how it is drawn. limit:
    prompt tokens allowed (0: what the model can read).
    """

    key: tuple[Any, ...]
    messages: tuple[Mapping[str, str], ...]
    max_new_tokens: int
    temperature: float
    limit: int = 0


class Desk(Protocol):
    """Where answers are, by the key of their Ask."""

    answers: dict[tuple[Any, ...], Generation]

    def seed(self, key: tuple[Any, ...]) -> int: ...


class Questions(Protocol):
    """What a policy is asked, in rounds that see the answers before them."""

    def rounds(self, desk: Desk) -> Sequence[Iterable[Ask]]: ...

    def write(self, desk: Desk, out: Path) -> None: ...


class QuestionRows:
    """Questions from ``<name>/questions.jsonl`` (id, question, …), of one turn or with their
    ``conversation``; answers go to ``<name>.jsonl``: the same rows with output and status.
    """

    def __init__(self, name: str, task: StageTask[AnswerTask]) -> None:
        self.name, self.drawn = name, task.settings.answers[name]
        self.rows = list(read_jsonl(task.inputs["benchmarks"] / name / "questions.jsonl"))

    def rounds(self, _desk: Desk) -> Sequence[Iterable[Ask]]:
        drawn = self.drawn.max_new_tokens, self.drawn.temperature or 0.0
        asks = []
        for row in self.rows:
            said = row.get("conversation", [{"role": "user", "content": row["question"]}])
            asks.append(Ask((self.name, row["id"]), tuple(said), *drawn))
        return (asks,)

    def write(self, desk: Desk, out: Path) -> None:
        rows = []
        for row in self.rows:
            answer = desk.answers[self.name, row["id"]]
            rows.append({**row, "output": answer.text.strip(), "status": answer.status})
        write_jsonl(out / f"{self.name}.jsonl", rows)


# -- the record ------------------------------------------------------------------------------------
class JudgedSettings(Section):
    """What a judged benchmark's section has."""

    unkeyed: ClassVar[tuple[str, ...]] = ("judge",)

    limit: NonNegative = 0
    """Items: the first so many; 0: all."""
    max_new_tokens: Positive = 24
    """Tokens of an answer (of a turn)."""
    judge: JudgeSettings | None = None
    """Its own judge, or the name of its profile; empty: the recipe's."""


@dataclass(frozen=True)
class Asked:
    """What a benchmark's stage is told. generating: fields of every stage that runs the policy."""

    settings: Any
    evaluation: Any
    judge: JudgeSettings
    ranker: RankerTask
    ranker_judge: JudgeSettings | None
    generating: Mapping[str, Any]
    threads: int


class Counting(Protocol):
    """What a benchmark's work is counted with: `harness.cost.Counted`."""

    @property
    def lengths(self) -> Lengths: ...

    @property
    def pocket(self) -> bool: ...

    def settings(self, name: str) -> Any: ...

    def limit(self, benchmark: str, whole: int) -> int: ...

    def ranked(self, kind: str, prompts: int, texts: int) -> Work: ...


@dataclass(frozen=True)
class PairStage:
    """The stage that compares two checkpoints' answers; inputs answer_a, answer_b, benchmarks."""

    stage: str
    run: str
    work: Callable[[Counting, Any], Work]
    seconds: float = 2.0


@dataclass(frozen=True)
class GivenFiles:
    """By what somebody else's files are read, "module:function" each. answers: (file, the model's
    name in it, the benchmark's folder, out) writes them as the answer stage does. verdicts: a
    stage's function that scores verdicts which exist. both: a file of verdicts holds the answers.
    keys: of its section, that decide what verdicts count.
    """

    answers: str
    verdicts: str
    both: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """name: in ``evaluation.benchmarks``, and of its section ``evaluation.<name>``. settings: the
    section's type, None without one.

    stage, run, task, version, seconds, accelerator: the stage that scores one checkpoint, its
    function ("module:function"), settings type, version, and cost on one core in the pocket world.
    settle: makes its settings. inputs: which of policy, answer, benchmarks, data, ranker it reads;
    more_inputs: by the evaluation section. judged: it asks a judge. work: counts it. pairs: the
    stage that compares two checkpoints.

    questions: what a policy is asked, from the answer stage's task. answers: how its answers are
    drawn, from its section. asked: counts them.

    files: keys of its section that name files which must be given outside the pocket world;
    other_files: may be given. prepare: lays them out in a folder and tells how many items there are
    ("expected"). pocket: "module:function" of (seed, limit, folder) that writes the pocket world's
    and returns their number.

    given: how others' files of answers and verdicts are read, None where they are not.

    measures: of the evaluation section. samples: how the report shows an item.
    """

    name: str
    title: str
    settings: type[Section] | None
    stage: str
    run: str
    task: type[Section]
    settle: Callable[[Asked], Section]
    measures: Callable[[Any], Sequence[Measure]]
    work: Callable[[Counting, Any], Work]
    inputs: tuple[str, ...] = ("answer", "benchmarks")
    more_inputs: Callable[[Any], tuple[str, ...]] = lambda _evaluation: ()
    version: int = 1
    seconds: float = 1.0
    accelerator: bool = False
    judged: bool = False
    questions: Callable[[StageTask[AnswerTask]], Questions] | None = None
    answers: Callable[[Any], Answers] | None = None
    asked: Callable[[Counting, AnswerTask], Work] | None = None
    files: tuple[str, ...] = ()
    other_files: tuple[str, ...] = ()
    prepare: Callable[[Any, Path], Mapping[str, Any]] | None = None
    pocket: str = ""
    samples: Samples | None = None
    pairs: PairStage | None = None
    given: GivenFiles | None = None

    def named_files(self, settings: Any) -> list[str]:
        """The files that its section of a recipe names."""
        found: list[str] = []
        for key in (*self.files, *self.other_files):
            value = getattr(settings, key)
            found += value.values() if isinstance(value, Mapping) else [value]
        return [name for name in found if name]


def load(function: str) -> Any:
    """The function that "module:function" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


# -- what several benchmarks do --------------------------------------------------------------------
def finish(
    task: StageTask[Any],
    scores: Sequence[Score],
    summary: Mapping[str, Any],
    costs: Mapping[str, float] | None = None,
    primary: str = "",
) -> StageOutcome:
    """Write scores and summary; the outcome counts rows and errors (of the metric ``primary``)."""
    write_scores(task.out / "scores.parquet", scores)
    (task.out / "summary.json").write_text(canonical_json(summary) + "\n", encoding="utf-8")
    counted = [score for score in scores if not primary or score.metric == primary]
    errors = sum(score.status == "error" for score in counted)
    return StageOutcome(len(counted), errors, costs or {}, summary, unscored(task.stage, counted))


def unscored(stage: str, scores: Iterable[Score]) -> tuple[LeftOut, ...]:
    """What has no value, by metric and status."""
    tallies: dict[str, Tally] = {}
    for score in scores:
        what = f"{score.benchmark} {score.metric} scores"
        tallies.setdefault(what, Tally(stage, what)).meet(score.item, score.status)
    return tuple(one for tally in tallies.values() for one in tally.left_out())


def mean(values: Sequence[float]) -> float | None:
    """Mean, None of nothing: missing is never a number."""
    return sum(values) / len(values) if values else None


def asked_work(items: int, length: int, what: str) -> Work:
    """Answers drawn by a policy, each of ``length`` tokens."""
    return Work(items, generated=items * length, how=f"{items:,} {what} × {length}")


def reply_tokens(judge: JudgeSettings, lengths: Lengths, *, pairwise: bool) -> int:
    """Tokens of a judge's reply: a rating, or a verdict on a pair; and of its thinking."""
    said = lengths.rating_reply
    if pairwise:
        said = lengths.verdict_text if judge.verdict == "text" else lengths.verdict_reply
    return said + (lengths.thinking if judge.reasoning_effort not in ("", "none") else 0)


@dataclass(frozen=True)
class Size:
    """How many answers a judged benchmark wants, ``each`` of an item; fewer in the pocket world."""

    name: str
    what: str
    whole: int
    pocket: int
    each: int = 1

    def answers(self, count: Counting) -> int:
        """As many as its limit leaves."""
        return self.each * count.limit(self.name, self.pocket if count.pocket else self.whole)

    def asked(self, count: Counting, task: AnswerTask) -> Work:
        """Drawing them."""
        length = min(count.lengths.judged_answer, task.answers[self.name].max_new_tokens)
        return asked_work(self.answers(count), length, self.what)

    def judged(
        self,
        count: Counting,
        judge: JudgeSettings,
        prompt: int,
        what: str,
        each: int = 1,
        pairwise: bool = False,
    ) -> Work:
        """Judging them, with ``each`` prompts of so many tokens for a repeat and sample."""
        calls = self.answers(count) * each * judge.repeats * judge.samples
        reply = reply_tokens(judge, count.lengths, pairwise=pairwise)
        read, told = calls * prompt, calls * reply
        how = f"{calls:,} {what} of {prompt:,} + {reply} tokens"
        return Work(calls, judge_calls=calls, judge_prompt=read, judge_reply=told, how=how)


def by_key(rows: Iterable[Mapping[str, Any]], key: str, path: Path) -> dict[Any, Any]:
    """Rows by a key that every one has and no two share. Raises HarnessError."""
    found: dict[Any, Any] = {}
    for row in rows:
        if key not in row:
            raise HarnessError(f"{path}: a row without {key}: it has {', '.join(map(str, row))}")
        if row[key] in found:
            raise HarnessError(f"{path}: {key} {row[key]} occurs more than once; keep one of each")
        found[row[key]] = row
    return found


def write_questions(out: Path, rows: Sequence[Any], judge: Mapping[str, Any]) -> int:
    """questions.jsonl, and judge.json with what its judge is told; returns the rows."""
    if not rows:
        raise HarnessError(f"evaluation.{out.name}: its file of questions holds none")
    out.mkdir(parents=True, exist_ok=True)
    (out / "judge.json").write_text(canonical_json(judge) + "\n", encoding="utf-8")
    return write_jsonl(out / "questions.jsonl", rows)


def judging(task: StageTask[Any], name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a benchmark's judge is told, and the rows of the answer file."""
    file = task.inputs["benchmarks"] / name / "judge.json"
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return told, list(read_jsonl(task.inputs["answer"] / f"{name}.jsonl"))


def flagged(items: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Flag → names of the items, given as (name, flags), that have it."""
    found: dict[str, list[str]] = {}
    for name, flags in items:
        for flag in sorted(set(flags)):
            found.setdefault(flag, []).append(name)
    return dict(sorted(found.items()))


def constant(texts: Sequence[str]) -> list[str]:
    """``constant_answers`` when more than half of ten or more answers are the same text."""
    same = max(Counter(texts).values(), default=0)
    return ["constant_answers"] if len(texts) >= 10 and same > len(texts) / 2 else []


def read_rows(path: Path) -> list[Any]:
    """Rows of a data file (`harness.data.files`), or of one JSON object of id → row."""
    rows = [dict(row.values) for row in file_rows(path, object_of_rows=True)]
    if len(rows) == 1 and all(isinstance(row, Mapping) for row in rows[0].values()):
        return [{"id": key, **row} for key, row in rows[0].items()]
    return rows


class Form(BaseModel):
    """What a row of somebody else's file must have; what more it has is kept."""

    model_config = ConfigDict(extra="allow")


Text = Annotated[str, BeforeValidator(lambda text: text or "")]
"""A text, of which null is an empty one."""


def checked(rows: Iterable[Any], form: type[Form], path: Path) -> list[dict[str, Any]]:
    """Rows of a form. Raises HarnessError naming file, row and key."""
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(form.model_validate(row).model_dump())
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            key = ".".join(map(str, wrong["loc"]))
            raise HarnessError(f"{path}: row {number}: {key or 'all'}: {wrong['msg']}") from None
    return found


def given_file(settings: Any, benchmark: str, key: str) -> Path:
    """The file that a section's key names. Raises HarnessError when it names none that is there."""
    name = getattr(settings, key)
    if not name:
        raise HarnessError(
            f"evaluation.{benchmark}.{key} is empty; {benchmark} needs this file (or leave "
            f"{benchmark} out of evaluation.benchmarks)"
        )
    if not Path(name).is_file():
        raise HarnessError(f"evaluation.{benchmark}.{key}: {name} does not exist")
    return Path(name)
