"""Prompts, answers and judgments of every checkpoint for the sample browser, within a size.

A page opened from a file cannot fetch others, so all of it travels in the page: prompts are taken
in turn from every set until the size is reached, long texts are cut, and both are said. Every text
passes ``text.visible``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.load import Run, StudyData, iterate
from analysis.text import number, one_line, visible
from harness.records import HarnessError, read_jsonl

SETS = {"mt_bench": "MT-Bench", "alpaca_eval": "AlpacaEval", "heldout": "held-out prompts"}
MOST_PROMPTS = 120
"""Prompts of one set that are considered at all."""


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
            "prompts": [{"set": SETS.get(s, s), "id": i, "turns": t} for s, i, t in self.prompts],
            "answers": [
                [
                    None
                    if turns is None
                    else [[a.text, a.status, a.score, a.judgment] for a in turns]
                    for turns in row
                ]
                for row in self.answers
            ],
        }
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


@dataclass
class _Cut:
    """Cuts texts and counts what it cut."""

    limit: int
    cut: int = 0
    longest: int = 0

    def __call__(self, value: object, limit: int = 0) -> str:
        limit = limit or self.limit
        raw = value if isinstance(value, str) else "" if value is None else str(value)
        self.longest = max(self.longest, len(raw))
        if len(raw) <= limit:
            return visible(raw)
        self.cut += 1
        return visible(raw[:limit]) + f" … [cut: {len(raw)} characters in all]"


@dataclass
class _Book:
    """Prompts in order, and answers by (set, id) and checkpoint."""

    prompts: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    answers: dict[tuple[str, str], dict[int, tuple[Answer, ...]]] = field(default_factory=dict)


def collect(data: StudyData, *, size: int = 5_000_000, text_limit: int = 4_000) -> Samples:
    """Samples of every run and iteration that has answers, at most about ``size`` bytes of JSON.
    The shared base is listed once per seed.
    """
    cut, book, names, seen = _Cut(text_limit), _Book(), [], set()  # type: _Cut, _Book, list[str], set[str]
    for run, iteration in iterate(data):
        stage = data.stage(run, iteration, "answer")
        if stage is None or stage.state not in ("done", "partial") or stage.key in seen:
            continue
        seen.add(stage.key)
        _read_prompts(data, run, iteration, book, cut)
        found = dict(_answers(data, run, iteration, stage.folder, book, cut))
        if found:
            names.append(
                f"base, seed {run.seed}"
                if iteration == 0
                else f"{run.label}, seed {run.seed}, iter {iteration}"
            )
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
                row = book.answers[prompt[:2]]
                cost = len(
                    json.dumps(
                        [
                            prompt,
                            [
                                [a.text, a.score, a.judgment]
                                for turns in row.values()
                                for a in turns
                            ],
                        ]
                    )
                ) + 12 * len(names)
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


# -- prompts ---------------------------------------------------------------------------------------
def _read_prompts(data: StudyData, run: Run, iteration: int, book: _Book, cut: _Cut) -> None:
    if book.prompts:
        return
    answer = data.stage(run, iteration, "answer")
    benchmarks, source = (data.input_folder(answer, name) for name in ("benchmarks", "data"))
    if benchmarks is not None:
        rows = [
            (str(r["question_id"]), tuple(cut(t) for t in r["turns"]))
            for r in _jsonl(benchmarks / "mt_bench" / "question.jsonl")
        ]
        _keep(book, "mt_bench", rows)
        rows = [
            (str(r.get("id", i)), (cut(r["instruction"]),))
            for i, r in enumerate(_json_list(benchmarks / "alpaca_eval" / "eval.json"))
        ]
        _keep(book, "alpaca_eval", rows)
    if source is not None:
        rows = []
        for name in ("heldout", "ood"):
            for r in _jsonl(source / f"{name}.jsonl"):
                said = "\n\n".join(
                    f"{m['role']}: {m['content']}" if len(r["messages"]) > 1 else str(m["content"])
                    for m in r["messages"]
                )
                rows.append((str(r["id"]), (cut(said),)))
        _keep(book, "heldout", rows)


def _keep(book: _Book, name: str, rows: list[tuple[str, tuple[str, ...]]]) -> None:
    if rows:
        book.totals[name] = len(rows)
        book.prompts[name] = dict(rows[:MOST_PROMPTS])


# -- answers ---------------------------------------------------------------------------------------
def _answers(
    data: StudyData, run: Run, iteration: int, folder: Path, book: _Book, cut: _Cut
) -> Iterator[tuple[tuple[str, str], tuple[Answer, ...]]]:
    ratings, verdicts = (
        _scores(data, run, iteration, "mt_bench", "rating"),
        _judgments(data, run, iteration, "judge.mt_bench"),
    )
    wanted = book.prompts.get("mt_bench", {})
    for row in _jsonl(folder / "mt_bench.jsonl"):
        name = str(row["question_id"])
        if name in wanted:
            turns, statuses = row["choices"][0]["turns"], row.get("status") or []
            answers = []
            for turn, said in enumerate(turns, 1):
                item = f"{name}:{turn}"
                status = str(statuses[turn - 1]) if turn <= len(statuses) else "ok"
                answers.append(
                    Answer(
                        cut(said),
                        status,
                        _words("rating", ratings.get(item), 1),
                        cut(verdicts.get(item, {}).get("text"), 1500),
                    )
                )
            yield ("mt_bench", name), tuple(answers)
    wins, verdicts = (
        _scores(data, run, iteration, "alpaca_eval", "win_rate"),
        _judgments(data, run, iteration, "judge.alpaca_eval"),
    )
    wanted = book.prompts.get("alpaca_eval", {})
    for row in _json_list(folder / "alpaca_eval.json"):
        name = str(row.get("id", ""))
        if name in wanted:
            verdict = verdicts.get(name, {})
            shown = "the judge saw this answer first" if verdict.get("switched") else ""
            answer = Answer(
                cut(row.get("output")),
                str(row.get("status", "ok")),
                _words("preferred to the baseline, percent", wins.get(name), 1),
                shown,
            )
            yield ("alpaca_eval", name), (answer,)
    yield from _heldout(data, run, iteration, folder, book, cut)


def _heldout(
    data: StudyData, run: Run, iteration: int, folder: Path, book: _Book, cut: _Cut
) -> Iterator[tuple[tuple[str, str], tuple[Answer, ...]]]:
    wanted = book.prompts.get("heldout", {})
    rewards = {
        **_scores(data, run, iteration, "heldout", "reward"),
        **_scores(data, run, iteration, "heldout_ood", "reward"),
    }
    left = set(wanted)
    for row in _jsonl(
        folder / "heldout.jsonl"
    ):  # sorted by prompt: stop when the last wanted one is read
        name = str(row["prompt_id"])
        if name in left and int(row.get("sample", 0)) == 0:
            left.discard(name)
            yield (
                ("heldout", name),
                (
                    Answer(
                        cut(row.get("text")),
                        str(row.get("status", "ok")),
                        _words("reward (greedy)", rewards.get(name), 3),
                    ),
                ),
            )
            if not left:
                return


def _words(name: str, value: tuple[float | None, str] | None, digits: int) -> str:
    if value is None:
        return ""
    return (
        f"{name}: {number(value[0], digits)}"
        if value[0] is not None
        else f"{name}: none ({value[1]})"
    )


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
