"""Prompts, answers and judgments of every checkpoint for the sample browser, within a size.

What is shown of a benchmark stands in the manifest (``samples``); its ``form`` says how questions
and answers lie in the store. A page opened from a file cannot fetch others, so all of it travels in
the page: prompts are taken in turn from every set until the size is reached, long texts are cut,
and both are said. Every text passes ``text.visible``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.load import Run, StudyData, iterate
from analysis.text import number, one_line, visible
from harness.records import HarnessError, read_jsonl

MOST_PROMPTS = 120
"""Prompts of one set that are considered at all."""
JUDGMENT_LIMIT = 1500
"""Characters shown of a judgment."""


@dataclass(frozen=True)
class Answer:
    """One turn's answer with its score in words and the judge's text (both may be empty)."""

    text: str
    status: str = "ok"
    score: str = ""
    judgment: str = ""


@dataclass(frozen=True)
class Samples:
    """``prompts``: set, id, user turns. ``answers[prompt][checkpoint]``: answers by turn, or None.
    notices: what was left out.
    """

    checkpoints: tuple[str, ...]
    prompts: tuple[tuple[str, str, tuple[str, ...]], ...]
    answers: tuple[tuple[tuple[Answer, ...] | None, ...], ...]
    notices: tuple[str, ...] = ()

    def as_json(self) -> str:
        """Compact JSON that is safe inside a script element."""
        content = {
            "checkpoints": self.checkpoints,
            "prompts": [{"set": s, "id": i, "turns": t} for s, i, t in self.prompts],
            "answers": [[_packed(turns) for turns in row] for row in self.answers],
        }
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _packed(turns: tuple[Answer, ...] | None) -> list[list[str]] | None:
    if turns is None:
        return None
    return [[a.text, a.status, a.score, a.judgment] for a in turns]


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
    answers: dict[tuple[str, str], dict[int, tuple[Answer, ...]]] = field(default_factory=dict)


def collect(data: StudyData, *, size: int = 5_000_000, text_limit: int = 4_000) -> Samples:
    """Samples of every run and iteration that has answers, at most about ``size`` bytes of JSON.
    The shared base is listed once per seed.
    """
    cut, book = _Cut(text_limit), _Book()
    names: list[str] = []
    seen: set[str] = set()
    shown = [one for one in data.benchmarks if one["samples"]]
    for run, iteration in iterate(data):
        stage = data.stage(run, iteration, "answer")
        if stage is None or stage.state not in ("done", "partial") or stage.key in seen:
            continue
        seen.add(stage.key)
        found: dict[tuple[str, str], tuple[Answer, ...]] = {}
        for benchmark in shown:
            _read_prompts(data, stage, benchmark, book, cut)
            found |= _answers(data, run, iteration, stage.folder, benchmark, book, cut)
        if found:
            name = f"{run.label}, seed {run.seed}, {run.counted} {iteration}"
            start = "base" if iteration < 0 else run.start.lower()
            names.append(name if iteration > 0 else f"{start}, seed {run.seed}")
            for key, turns in found.items():
                book.answers.setdefault(key, {})[len(names) - 1] = turns
    return _fit(names, book, size, cut)


def _fit(names: list[str], book: _Book, size: int, cut: _Cut) -> Samples:
    queues = {
        s: [(s, i, turns) for i, turns in prompts.items() if (s, i) in book.answers]
        for s, prompts in book.prompts.items()
    }
    chosen: list[tuple[str, str, tuple[str, ...]]] = []
    used = 0
    while any(queues.values()) and used < size:
        for queue in queues.values():
            if queue and used < size:
                prompt = queue.pop(0)
                texts = []
                for turns in book.answers[prompt[:2]].values():
                    texts += [[a.text, a.score, a.judgment] for a in turns]
                cost = len(json.dumps([prompt, texts])) + 12 * len(names)
                if used + cost > size and chosen:
                    used = size
                    break
                chosen.append(prompt)
                used += cost
    order = {s: n for n, s in enumerate(book.prompts)}
    chosen.sort(key=lambda p: order[p[0]])
    notices = []
    total = sum(book.totals.values())
    if len(chosen) < total:
        notices.append(
            f"{len(chosen)} of {total} prompts are shown, to keep this page small; all answers "
            "are in the store."
        )
    if cut.cut:
        notices.append(f"{cut.cut} long texts are cut (the longest has {cut.longest} characters).")
    answers = tuple(tuple(book.answers[p[:2]].get(n) for n in range(len(names))) for p in chosen)
    return Samples(
        tuple(one_line(n, 80) for n in names),
        tuple((s, one_line(i, 60), t) for s, i, t in chosen),
        answers,
        tuple(notices),
    )


# -- forms: how questions and answers lie in the store ---------------------------------------------
Folders = Mapping[str, Path]
"""Of the answer stage ("answer") and of its inputs ("benchmarks", "data")."""
Prompt = tuple[str, tuple[str, ...]]
"""Id and the user's turns."""
Said = tuple[str, list[tuple[str, Any, str]]]
"""Id of a prompt, and (item, text, status) of every turn's answer."""


def _mt_bench_prompts(folders: Folders, _file: str) -> Iterator[Prompt]:
    for row in _jsonl(folders["benchmarks"] / "mt_bench" / "question.jsonl"):
        yield str(row["question_id"]), tuple(row["turns"])


def _mt_bench_answers(file: Path) -> Iterator[Said]:
    for row in _jsonl(file):
        name, statuses = str(row["question_id"]), row.get("status") or []
        turns = []
        for turn, text in enumerate(row["choices"][0]["turns"], 1):
            status = str(statuses[turn - 1]) if turn <= len(statuses) else "ok"
            turns.append((f"{name}:{turn}", text, status))
        yield name, turns


def _alpaca_eval_prompts(folders: Folders, _file: str) -> Iterator[Prompt]:
    rows = _json_list(folders["benchmarks"] / "alpaca_eval" / "eval.json")
    for place, row in enumerate(rows):
        yield str(row.get("id", place)), (row["instruction"],)


def _alpaca_eval_answers(file: Path) -> Iterator[Said]:
    for row in _json_list(file):
        name = str(row.get("id", ""))
        yield name, [(name, row.get("output"), str(row.get("status", "ok")))]


def _heldout_prompts(folders: Folders, _file: str) -> Iterator[Prompt]:
    for name in ("heldout", "ood"):
        for row in _jsonl(folders["data"] / f"{name}.jsonl"):
            turns = [f"{m['role']}: {m['content']}" for m in row["messages"]]
            said = turns if len(turns) > 1 else [str(m["content"]) for m in row["messages"]]
            yield str(row["id"]), ("\n\n".join(said),)


def _heldout_answers(file: Path) -> Iterator[Said]:
    for row in _jsonl(file):
        if int(row.get("sample", 0)) == 0:
            name = str(row["prompt_id"])
            yield name, [(name, row.get("text"), str(row.get("status", "ok")))]


def _row_prompts(folders: Folders, file: str) -> Iterator[Prompt]:
    for row in _jsonl(folders["answer"] / file):
        yield str(row["id"]), (row["question"],)


def _row_answers(file: Path) -> Iterator[Said]:
    for row in _jsonl(file):
        name = str(row["id"])
        yield name, [(name, row["output"], str(row["status"]))]


Reader = tuple[Callable[[Folders, str], Iterator[Prompt]], Callable[[Path], Iterator[Said]]]
FORMS: Mapping[str, Reader] = {
    "mt_bench": (_mt_bench_prompts, _mt_bench_answers),
    "alpaca_eval": (_alpaca_eval_prompts, _alpaca_eval_answers),
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
) -> dict[tuple[str, str], tuple[Answer, ...]]:
    title, shown = benchmark["title"], benchmark["samples"]
    wanted = set(book.prompts.get(title, {}))
    names = {one["benchmark"] for one in benchmark["measures"] if one["metric"] == shown["metric"]}
    scores: dict[str, tuple[float | None, str]] = {}
    for name in sorted(names):
        scores |= _scores(data, run, iteration, name, shown["metric"])
    judgments = _judgments(data, run, iteration, benchmark["stage"]) if benchmark["judged"] else {}
    _, answers = FORMS[shown["form"]]
    found: dict[tuple[str, str], tuple[Answer, ...]] = {}
    for name, turns in answers(folder / shown["file"]):
        if name not in wanted:
            continue
        said = []
        for item, text, status in turns:
            score = _words(shown["words"], scores.get(item), shown["digits"])
            said.append(Answer(cut(text), status, score, _judged(judgments.get(item, {}), cut)))
        found[title, name] = tuple(said)
        if len(found) == len(wanted):  # sorted by prompt: stop when the last wanted one is read
            break
    return found


def _judged(row: Mapping[str, Any], cut: _Cut) -> str:
    """The judge's words; of a comparison, whose text is one token, what was shown first."""
    if "switched" in row:
        return "the judge saw this answer first" if row["switched"] else ""
    return cut(row.get("text"), JUDGMENT_LIMIT)


def _words(name: str, value: tuple[float | None, str] | None, digits: int) -> str:
    if value is None:
        return ""
    known = value[0] is not None
    return f"{name}: {number(value[0], digits)}" if known else f"{name}: none ({value[1]})"


def _scores(
    data: StudyData, run: Run, iteration: int, benchmark: str, metric: str
) -> dict[str, tuple[float | None, str]]:
    rows = data.rows(run.name, iteration, benchmark, metric)
    columns = (rows["item"].astype(str), rows["value"], rows["status"].astype(str), rows["repeat"])
    return {
        item: (None if value != value else float(value), status)
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
    for row in _jsonl(stage.folder / "judgments.jsonl"):
        if int(row.get("repeat", 0)) == 0:
            found.setdefault(str(row.get("id", "")), row)
    return found


# -- files -----------------------------------------------------------------------------------------
def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from read_jsonl(path)


def _json_list(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HarnessError(
            f"{path}: not valid JSON ({error}); `selm verify` lists what depends on it"
        ) from error
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
