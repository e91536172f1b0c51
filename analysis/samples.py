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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from analysis.load import Run, Stage, StudyData, iterate, parsed
from analysis.text import one_line, visible
from harness.records import read_jsonl

MOST_PROMPTS = 120
"""Prompts of one set that are considered at all."""
TEXT_LIMIT, JUDGMENT_LIMIT = 4_000, 1_500
"""Characters shown of a prompt's turn or an answer, and of a judgment."""
Key = tuple[str, str]
"""A prompt: title of its set, and its id there."""


class Answer(NamedTuple):
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


class Place(NamedTuple):
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

    sets: Sequence[Mapping[str, Any]]
    prompts: Sequence[tuple[int, str, tuple[str, ...]]]
    places: Sequence[Place]
    answers: Sequence[Sequence[tuple[Answer, ...] | None]]
    baseline: str = ""
    notices: Sequence[str] = ()

    def as_json(self) -> str:
        """Compact JSON that is safe inside a script element; equal texts stand in it once."""
        texts: dict[str, int] = {}

        def at(text: str) -> int:
            return texts.setdefault(text, len(texts))

        def packed(turn: Answer) -> list[Any]:
            return [at(turn.text), *turn[1:-1], at(turn.judgment)]

        content = {
            "sets": self.sets,
            "prompts": [(of, name, list(map(at, turns))) for of, name, turns in self.prompts],
            "places": self.places,
            "answers": [
                [None if turns is None else list(map(packed, turns)) for turns in row]
                for row in self.answers
            ],
            "baseline": self.baseline,
            "texts": list(texts),
        }
        whole = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return whole.replace("<", "\\u003c")


def collect(data: StudyData, *, size: int = 5_000_000) -> Samples:
    """Samples of every run and iteration that has answers, at most about ``size`` bytes of JSON."""
    reader = _Reader(data)
    places: list[Place] = []
    columns: dict[str, int] = {}
    for run, iteration in iterate(data):
        stage = data.stage(run, iteration, "answer")
        if stage is None or not stage.has_rows:
            continue
        if stage.key not in columns:
            if not reader.read(run, iteration, stage, len(columns)):
                continue
            columns[stage.key] = len(columns)
        start = "base" if iteration < 0 else run.start.lower()
        after = f"{run.counted} {iteration}" if iteration > 0 else start
        places.append(Place(one_line(run.label, 80), after, run.seed, columns[stage.key]))
    of_set = {one["title"]: one["samples"] for one in reader.shown}
    order = [title for title in of_set if title in reader.prompts]
    chosen = reader.fit(order, len(columns), size)
    total, notices = sum(reader.totals.values()), []
    if len(chosen) < total:
        notices.append(
            f"{len(chosen)} of {total} prompts are shown, to keep this page small; all answers "
            "are in the store."
        )
    if reader.cuts:
        long = f"(the longest has {reader.longest} characters)"
        notices.append(f"{reader.cuts} long texts are cut {long}.")
    words = ("words", "digits", "neutral")
    return Samples(
        [{"title": t, **{name: of_set[t].get(name) for name in words}} for t in order],
        [(order.index(t), one_line(n, 60), reader.prompts[t][n]) for t, n in chosen],
        places,
        [[reader.answers[key].get(n) for n in range(len(columns))] for key in chosen],
        one_line(data.label(data.baseline_arm), 80),
        notices,
    )


class _Reader:
    """Reads a study's prompts and answers, cuts long texts and counts what it cut.

    shown: benchmarks with samples. prompts: by set and id, in order; totals: how many a set has;
    answers: by prompt and column.
    """

    def __init__(self, data: StudyData) -> None:
        self.data, self.cuts, self.longest = data, 0, 0
        self.shown = [benchmark for benchmark in data.benchmarks if benchmark["samples"]]
        self.prompts: dict[str, dict[str, tuple[str, ...]]] = {}
        self.totals: dict[str, int] = {}
        self.answers: dict[Key, dict[int, tuple[Answer, ...]]] = {}

    def cut(self, value: object, limit: int = TEXT_LIMIT) -> str:
        """A text that can be shown, of at most ``limit`` characters."""
        raw = "" if value is None else str(value)
        self.longest = max(self.longest, len(raw))
        if len(raw) <= limit:
            return visible(raw)
        self.cuts += 1
        return visible(raw[:limit]) + f" … [cut: {len(raw)} characters in all]"

    def read(self, run: Run, iteration: int, stage: Stage, column: int) -> bool:
        """Take a checkpoint's answers; False where there are none."""
        found: dict[Key, tuple[Answer, ...]] = {}
        for benchmark in self.shown:
            self.read_prompts(stage, benchmark)
            found |= self.turns_of(run, iteration, stage, benchmark)
        for key, turns in found.items():
            self.answers.setdefault(key, {})[column] = turns
        return bool(found)

    def read_prompts(self, answer: Stage, benchmark: Mapping[str, Any]) -> None:
        """Take a benchmark's prompts, once, where the inputs of an answer stage hold them."""
        title, shown = benchmark["title"], benchmark["samples"]
        inputs = {name: self.data.input_folder(answer, name) for name in ("benchmarks", "data")}
        known = {name: folder for name, folder in inputs.items() if folder}
        if title in self.prompts or len(known) < len(inputs):
            return
        prompts, _ = FORMS[shown["form"]]
        rows = list(prompts({"answer": answer.folder, **known}, shown["file"]))
        if rows:
            self.totals[title] = len(rows)
            first = rows[:MOST_PROMPTS]
            self.prompts[title] = {name: tuple(map(self.cut, turns)) for name, turns in first}

    def turns_of(
        self, run: Run, iteration: int, stage: Stage, benchmark: Mapping[str, Any]
    ) -> dict[Key, tuple[Answer, ...]]:
        """Answers of a checkpoint to the prompts of a benchmark."""
        title, shown, at = benchmark["title"], benchmark["samples"], (self.data, run, iteration)
        wanted, metric = self.prompts.get(title, {}), shown["metric"]
        names = {one["benchmark"] for one in benchmark["measures"] if one["metric"] == metric}
        scores: dict[str, tuple[float | None, str]] = {}
        for name in sorted(names):
            scores |= _scores(*at, name, metric)
        rewards = _scores(*at, f"ranker_{benchmark['name']}", "reward_difference")
        judgments = _judgments(*at, benchmark["stage"]) if benchmark["judged"] else {}
        _, answers = FORMS[shown["form"]]
        found: dict[Key, tuple[Answer, ...]] = {}
        for name, turns in answers(stage.folder / shown["file"]):
            if name not in wanted:
                continue
            found[title, name] = tuple(
                Answer(
                    self.cut(text),
                    status,
                    *scores.get(item, (None, "")),
                    reward=rewards.get(item, (None, ""))[0],
                    judgment=self.judgment(judgments.get(item, {})),
                )
                for item, text, status in turns
            )
            if len(found) == len(wanted):  # sorted by prompt: stop at the last wanted one
                break
        return found

    def judgment(self, row: Mapping[str, Any]) -> str:
        """The judge's words; of a comparison, whose text is one token, what was shown first."""
        if "switched" in row:
            return "the judge saw this answer first" if row["switched"] else ""
        return self.cut(row.get("text"), JUDGMENT_LIMIT)

    def fit(self, order: Sequence[str], columns: int, size: int) -> list[Key]:
        """Prompts in turn from every set until ``size`` is reached, in the sets' order."""
        queues = [[(t, n) for n in self.prompts[t] if (t, n) in self.answers] for t in order]
        chosen: list[Key] = []
        known: set[str] = set()
        used = 0
        for key in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*queues))):
            answers = list(itertools.chain.from_iterable(self.answers[key].values()))
            texts = {*self.prompts[key[0]][key[1]], *(a.text for a in answers)}
            texts |= {a.judgment for a in answers}
            new = sum(len(json.dumps(text, ensure_ascii=False).encode()) for text in texts - known)
            used += new + 48 * len(answers) + 5 * columns
            if used > size and chosen:
                break
            known |= texts
            chosen.append(key)
        return sorted(chosen, key=lambda key: order.index(key[0]))


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


def _row_prompts(folders: Folders, file: str) -> Iterator[Prompt]:
    for row in _rows(folders["answer"] / file):
        yield str(row["id"]), (row["question"],)


def _one_turn(file: Path, name: str = "id", text: str = "output") -> Iterator[Said]:
    """Answers of one turn, whose name and text stand under these keys; the first sample of each."""
    for row in _rows(file):
        if int(row.get("sample", 0)) == 0:
            item = str(row.get(name, ""))
            yield item, [(item, row.get(text), str(row.get("status", "ok")))]


Reader = tuple[Callable[[Folders, str], Iterator[Prompt]], Callable[[Path], Iterator[Said]]]
FORMS: Mapping[str, Reader] = {
    "mt_bench": (_mt_bench_prompts, _mt_bench_answers),
    "alpaca_eval": (_alpaca_eval_prompts, _one_turn),
    "heldout": (_heldout_prompts, partial(_one_turn, name="prompt_id", text="text")),
    "rows": (_row_prompts, _one_turn),
}


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
    """Every item's first judgment."""
    stage = data.stage(run, iteration, stage_name)
    found: dict[str, Mapping[str, Any]] = {}
    if stage is not None and stage.has_rows:
        for row in _rows(stage.folder / "judgments.jsonl"):
            if int(row.get("repeat", 0)) == 0:
                found.setdefault(str(row.get("id", "")), row)
    return found
