"""Prompts, answers and judgments of every checkpoint for the sample browser, within a size.

What is shown of a benchmark stands in the manifest (``samples``); its ``form`` says how questions
and answers lie in the store. A page opened from a file cannot fetch others, so all of it travels in
the page: prompts are taken in turn from every set until the size is reached, long texts are cut,
and both are said. Every text passes ``text.visible``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.load import Run, StudyData, iterate, parsed
from analysis.text import one_line, visible
from harness.records import read_jsonl

MOST_PROMPTS = 120
"""Prompts of one set that are considered at all."""
JUDGMENT_LIMIT = 1500
"""Characters shown of a judgment."""
Key = tuple[str, str]
"""A prompt: title of its set, and its id there."""


@dataclass(frozen=True)
class Answer:
    """One turn's answer. value: the benchmark's score of it; scored: the score's status, empty
    where there is none. reward: the ranker's, minus that of the baseline's answer. judgment: the
    judge's text.
    """

    text: str
    status: str = "ok"
    value: float | None = None
    scored: str = ""
    reward: float | None = None
    judgment: str = ""


@dataclass(frozen=True)
class Place:
    """Whose answers a column of ``Samples.answers`` holds; arms may share one."""

    arm: str
    after: str
    seed: int
    column: int


@dataclass(frozen=True)
class Samples:
    """``sets``: title, words, digits and neutral value of each benchmark's score. ``prompts``: set,
    id, user turns. ``answers[prompt][column]``: answers by turn, or None. baseline: label of the
    arm that the others are compared with. notices: what was left out.
    """

    sets: tuple[Mapping[str, Any], ...]
    prompts: tuple[tuple[int, str, tuple[str, ...]], ...]
    places: tuple[Place, ...]
    answers: tuple[tuple[tuple[Answer, ...] | None, ...], ...]
    baseline: str = ""
    notices: tuple[str, ...] = ()

    def as_json(self) -> str:
        """Compact JSON that is safe inside a script element; equal texts stand in it once."""
        texts: dict[str, int] = {}

        def at(text: str) -> int:
            return texts.setdefault(text, len(texts))

        def packed(turns: tuple[Answer, ...] | None) -> list[list[Any]] | None:
            if turns is None:
                return None
            rows = ((a.status, a.value, a.scored, a.reward) for a in turns)
            return [[at(a.text), *row, at(a.judgment)] for a, row in zip(turns, rows, strict=True)]

        content: dict[str, Any] = {
            "sets": self.sets,
            "prompts": [
                [one, name, [at(turn) for turn in turns]] for one, name, turns in self.prompts
            ],
            "places": [[p.arm, p.after, p.seed, p.column] for p in self.places],
            "answers": [[packed(turns) for turns in row] for row in self.answers],
            "baseline": self.baseline,
        }
        content["texts"] = list(texts)
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace(
            "<", "\\u003c"
        )


@dataclass
class _Cut:
    """Cuts texts and counts what it cut."""

    limit: int
    cut: int = 0
    longest: int = 0

    def __call__(self, value: object, limit: int = 0) -> str:
        limit = limit or self.limit
        raw = "" if value is None else str(value)
        self.longest = max(self.longest, len(raw))
        if len(raw) <= limit:
            return visible(raw)
        self.cut += 1
        return visible(raw[:limit]) + f" … [cut: {len(raw)} characters in all]"


@dataclass
class _Book:
    """Prompts in order by set, and answers by (set, id) and checkpoint."""

    prompts: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    answers: dict[Key, dict[int, tuple[Answer, ...]]] = field(default_factory=dict)


def collect(data: StudyData, *, size: int = 5_000_000, text_limit: int = 4_000) -> Samples:
    """Samples of every run and iteration that has answers, at most about ``size`` bytes of JSON."""
    cut, book = _Cut(text_limit), _Book()
    places: list[Place] = []
    columns: dict[str, int] = {}
    shown = [one for one in data.benchmarks if one["samples"]]
    for run, iteration in iterate(data):
        stage = data.stage(run, iteration, "answer")
        if stage is None or not stage.has_rows:
            continue
        if stage.key not in columns:
            found: dict[Key, tuple[Answer, ...]] = {}
            for benchmark in shown:
                _read_prompts(data, stage, benchmark, book, cut)
                found |= _answers(data, run, iteration, stage.folder, benchmark, book, cut)
            if not found:
                continue
            columns[stage.key] = len(columns)
            for key, turns in found.items():
                book.answers.setdefault(key, {})[columns[stage.key]] = turns
        start = "base" if iteration < 0 else run.start.lower()
        after = f"{run.counted} {iteration}" if iteration > 0 else start
        places.append(Place(one_line(run.label, 80), after, run.seed, columns[stage.key]))
    return _fit(data, places, book, size, cut)


def _fit(data: StudyData, places: Sequence[Place], book: _Book, size: int, cut: _Cut) -> Samples:
    """Prompts in turn from every set until ``size`` is reached."""
    kinds = {
        one["title"]: one["samples"] for one in data.benchmarks if one["title"] in book.prompts
    }
    queues = {
        title: [(title, name) for name in book.prompts[title] if (title, name) in book.answers]
        for title in kinds
    }
    turns_about = itertools.chain.from_iterable(itertools.zip_longest(*queues.values()))
    columns = 1 + max((place.column for place in places), default=-1)
    chosen: list[Key] = []
    known: set[str] = set()
    used = 0
    for key in filter(None, turns_about):
        texts = set(book.prompts[key[0]][key[1]])
        told = [answer for turns in book.answers[key].values() for answer in turns]
        texts |= {text for answer in told for text in (answer.text, answer.judgment)}
        new = sum(len(json.dumps(text, ensure_ascii=False).encode()) for text in texts - known)
        used += new + 48 * len(told) + 5 * columns
        if used > size and chosen:
            break
        known |= texts
        chosen.append(key)
    order = list(kinds)
    chosen.sort(key=lambda key: order.index(key[0]))
    total = sum(book.totals.values())
    notices = []
    if len(chosen) < total:
        notices.append(
            f"{len(chosen)} of {total} prompts are shown, to keep this page small; all answers "
            "are in the store."
        )
    if cut.cut:
        notices.append(f"{cut.cut} long texts are cut (the longest has {cut.longest} characters).")
    return Samples(
        tuple(
            {"title": title, **{name: kind.get(name) for name in ("words", "digits", "neutral")}}
            for title, kind in kinds.items()
        ),
        tuple((order.index(t), one_line(n, 60), book.prompts[t][n]) for t, n in chosen),
        tuple(places),
        tuple(tuple(book.answers[key].get(n) for n in range(columns)) for key in chosen),
        one_line(data.label(data.baseline_arm), 80),
        tuple(notices),
    )


# -- forms: how questions and answers lie in the store ---------------------------------------------
Folders = Mapping[str, Path]
"""Of the answer stage ("answer") and of its inputs ("benchmarks", "data")."""
Prompt = tuple[str, tuple[str, ...]]
"""Id and the user's turns."""
Said = tuple[str, list[tuple[str, Any, str]]]
"""Id of a prompt, and (item, text, status) of every turn's answer."""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file or of a JSON list; none where the file is missing."""
    if path.suffix == ".json":
        yield from (row for row in parsed(path) or () if isinstance(row, dict))
    elif path.is_file():
        yield from read_jsonl(path)


def _mt_bench_prompts(folders: Folders, _file: str) -> Iterator[Prompt]:
    for row in _rows(folders["benchmarks"] / "mt_bench" / "question.jsonl"):
        yield str(row["question_id"]), tuple(row["turns"])


def _mt_bench_answers(file: Path) -> Iterator[Said]:
    for row in _rows(file):
        name, statuses = str(row["question_id"]), row.get("status") or []
        turns = []
        for turn, text in enumerate(row["choices"][0]["turns"], 1):
            status = str(statuses[turn - 1]) if turn <= len(statuses) else "ok"
            turns.append((f"{name}:{turn}", text, status))
        yield name, turns


def _alpaca_eval_prompts(folders: Folders, _file: str) -> Iterator[Prompt]:
    for place, row in enumerate(_rows(folders["benchmarks"] / "alpaca_eval" / "eval.json")):
        yield str(row.get("id", place)), (row["instruction"],)


def _heldout_prompts(folders: Folders, _file: str) -> Iterator[Prompt]:
    for name in ("heldout", "ood"):
        for row in _rows(folders["data"] / f"{name}.jsonl"):
            turns = [f"{m['role']}: {m['content']}" for m in row["messages"]]
            said = turns if len(turns) > 1 else [str(m["content"]) for m in row["messages"]]
            yield str(row["id"]), ("\n\n".join(said),)


def _heldout_answers(file: Path) -> Iterator[Said]:
    for row in _rows(file):
        if int(row.get("sample", 0)) == 0:
            name = str(row["prompt_id"])
            yield name, [(name, row.get("text"), str(row.get("status", "ok")))]


def _row_prompts(folders: Folders, file: str) -> Iterator[Prompt]:
    for row in _rows(folders["answer"] / file):
        yield str(row["id"]), (row["question"],)


def _row_answers(file: Path) -> Iterator[Said]:
    for row in _rows(file):
        name = str(row.get("id", ""))
        yield name, [(name, row.get("output"), str(row.get("status", "ok")))]


Reader = tuple[Callable[[Folders, str], Iterator[Prompt]], Callable[[Path], Iterator[Said]]]
FORMS: Mapping[str, Reader] = {
    "mt_bench": (_mt_bench_prompts, _mt_bench_answers),
    "alpaca_eval": (_alpaca_eval_prompts, _row_answers),
    "heldout": (_heldout_prompts, _heldout_answers),
    "rows": (_row_prompts, _row_answers),
}


def _read_prompts(
    data: StudyData, answer: Any, benchmark: Mapping[str, Any], book: _Book, cut: _Cut
) -> None:
    title, shown = benchmark["title"], benchmark["samples"]
    if title in book.prompts:
        return
    folders = {"answer": answer.folder}
    for name in ("benchmarks", "data"):
        folder = data.input_folder(answer, name)
        if folder is None:
            return
        folders[name] = folder
    prompts, _ = FORMS[shown["form"]]
    rows = list(prompts(folders, shown["file"]))
    if rows:
        book.totals[title] = len(rows)
        book.prompts[title] = {
            name: tuple(cut(turn) for turn in turns) for name, turns in rows[:MOST_PROMPTS]
        }


def _answers(
    data: StudyData,
    run: Run,
    iteration: int,
    folder: Path,
    benchmark: Mapping[str, Any],
    book: _Book,
    cut: _Cut,
) -> dict[Key, tuple[Answer, ...]]:
    title, shown = benchmark["title"], benchmark["samples"]
    wanted = set(book.prompts.get(title, {}))
    names = {one["benchmark"] for one in benchmark["measures"] if one["metric"] == shown["metric"]}
    scores: dict[str, tuple[float | None, str]] = {}
    for name in sorted(names):
        scores |= _scores(data, run, iteration, name, shown["metric"])
    rewards = _scores(data, run, iteration, f"ranker_{benchmark['name']}", "reward_difference")
    judgments = _judgments(data, run, iteration, benchmark["stage"]) if benchmark["judged"] else {}
    _, answers = FORMS[shown["form"]]
    found: dict[Key, tuple[Answer, ...]] = {}
    for name, turns in answers(folder / shown["file"]):
        if name not in wanted:
            continue
        found[title, name] = tuple(
            Answer(
                cut(text),
                status,
                *scores.get(item, (None, "")),
                reward=rewards.get(item, (None, ""))[0],
                judgment=_judged(judgments.get(item, {}), cut),
            )
            for item, text, status in turns
        )
        if len(found) == len(wanted):  # sorted by prompt: stop when the last wanted one is read
            break
    return found


def _judged(row: Mapping[str, Any], cut: _Cut) -> str:
    """The judge's words; of a comparison, whose text is one token, what was shown first."""
    if "switched" in row:
        return "the judge saw this answer first" if row["switched"] else ""
    return cut(row.get("text"), JUDGMENT_LIMIT)


def _scores(
    data: StudyData, run: Run, iteration: int, benchmark: str, metric: str
) -> dict[str, tuple[float | None, str]]:
    """Value and status of every item's first repeat."""
    rows = data.rows(run.name, iteration, benchmark, metric)
    columns = (rows["item"].astype(str), rows["value"], rows["status"].astype(str), rows["repeat"])
    return {
        item: (None if value != value else round(float(value), 5), status)
        for item, value, status, repeat in zip(*columns, strict=True)
        if repeat == 0
    }


def _judgments(
    data: StudyData, run: Run, iteration: int, stage_name: str
) -> dict[str, Mapping[str, Any]]:
    stage = data.stage(run, iteration, stage_name)
    if stage is None or stage.state not in ("done", "partial"):
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for row in _rows(stage.folder / "judgments.jsonl"):
        if int(row.get("repeat", 0)) == 0:
            found.setdefault(str(row.get("id", "")), row)
    return found
