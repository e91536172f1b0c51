"""MT-Bench's published scores from published judgments: FastChat renders the prompts again and
reads the ratings again.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.evaluate.fastchat_bench import (
    PROMPT_NAMES,
    Bench,
    make_match,
    read_answers,
    read_bench,
    render,
    replay,
)
from harness.evaluate.published import Row, compare, failed, show
from harness.judge import verdicts
from harness.records import HarnessError, read_jsonl

SOURCE = "mt_bench"
EXACT = 1e-6
"""A single rating moves the mean of 160 by at least 0.0006; published figures carry six decimals at
most.
"""
NO_ANSWER = {"choices": [{"index": 0, "turns": ["", ""]}]}


def recompute(folder: Path) -> list[Row]:
    """Rows for every model that has judgments."""
    judgments: dict[str, list[dict[str, Any]]] = {}
    rows: list[Row] = []
    for path in sorted(
        [*folder.glob("judgments_*.jsonl"), *folder.glob("model_judgment/*_single.jsonl")]
    ):
        try:
            for row in read_jsonl(path):
                judgments.setdefault(str(row["model"]), []).append(row)
        except (HarnessError, KeyError, TypeError) as error:
            rows.append(
                failed(SOURCE, path.stem, "judgments", f"{path}: {type(error).__name__}: {error}")
            )
    if not judgments:
        return rows
    published = _published(folder / "published.csv")
    benches = _Benches(folder)
    for model in sorted(judgments):
        try:
            rows += model_rows(
                model,
                judgments[model],
                folder / "model_answer" / f"{model}.jsonl",
                benches,
                published.get(model),
            )
        except (
            HarnessError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
        ) as error:
            rows.append(failed(SOURCE, model, "judgments", f"{type(error).__name__}: {error}"))
    missing = sorted(set(published) - set(judgments))
    return rows + [
        show(
            SOURCE,
            model,
            "mean",
            published[model].get("mean"),
            None,
            "no judgments found for this model",
        )
        for model in missing
    ]


def model_rows(
    model: str,
    judgments: Sequence[Mapping[str, Any]],
    answers: Path,
    benches: _Benches,
    published: Mapping[str, float] | None,
) -> list[Row]:
    """Rendered prompts, parsed ratings, and the two turns and mean as FastChat's show_result
    averages them (-1 left out).
    """
    given = read_answers(answers) if answers.exists() else None
    scores: dict[int, list[float]] = {1: [], 2: []}
    same_prompt, same_rating, otherwise = [], [], []
    for row in judgments:
        bench, question = benches.of(row)
        answer = (given or {}).get(row["question_id"], NO_ANSWER)
        match = make_match(bench, question, int(row["turn"]), answer, row["judge"][0])
        rating, name = replay(match, row["judgment"]), f"{row['question_id']}:{row['turn']}"
        same_prompt.append((render(match)[1] == row["user_prompt"], name))
        same_rating.append((rating == row["score"], name))
        if rating is not None and rating != -1:
            scores.setdefault(int(row["turn"]), []).append(rating)
        if verdicts.parse_rating(row["judgment"]).value != rating:
            otherwise.append(name)
    everything = [score for turn in scores.values() for score in turn]
    doubled = len(judgments) - len({(row["question_id"], row["turn"]) for row in judgments})
    note = f"{len(everything)} of {len(judgments)} judgments have a rating" + (
        f"; {doubled} doubled, averaged in as FastChat does" if doubled else ""
    )
    means = {"turn_1": scores[1], "turn_2": scores[2], "mean": everything}
    rows = [
        compare(
            SOURCE,
            model,
            figure,
            (published or {}).get(figure),
            sum(v) / len(v) if v else None,
            EXACT,
            note,
        )
        for figure, v in means.items()
    ]
    rows.append(_agreement(model, "ratings read", same_rating))
    if given is None:
        rows.append(
            show(
                SOURCE,
                model,
                "judge prompts rendered",
                float(len(judgments)),
                None,
                f"no {answers.name} in model_answer: not rendered",
            )
        )
    else:
        rows.append(_agreement(model, "judge prompts rendered", same_prompt))
    listed = f": {', '.join(otherwise[:8])}" if otherwise else ""
    return [
        *rows,
        show(
            SOURCE,
            model,
            "verdicts studies read otherwise",
            None,
            float(len(otherwise)),
            f"last final verdict against FastChat's first match{listed}",
        ),
    ]


def _agreement(model: str, figure: str, same: Sequence[tuple[bool, str]]) -> Row:
    wrong = [name for agrees, name in same if not agrees]
    note = f"{len(same) - len(wrong)} of {len(same)} equal the stored ones" + (
        f"; not {', '.join(wrong[:8])}" if wrong else ""
    )
    return compare(
        SOURCE, model, figure, float(len(same)), float(len(same) - len(wrong)), 0.0, note
    )


class _Benches:
    """Questions, prompts and, by the judge's name, references."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache: dict[str, tuple[Bench, dict[Any, Mapping[str, Any]]]] = {}

    def of(self, row: Mapping[str, Any]) -> tuple[Bench, Mapping[str, Any]]:
        """The bench and question of a judgment row; HarnessError when they are not there."""
        judge, prompt = row["judge"]
        if judge not in self.cache:
            bench = read_bench(
                self.folder / "question.jsonl",
                self.references(judge),
                self.folder / "judge_prompts.jsonl",
                judge,
            )
            self.cache[judge] = bench, {q["question_id"]: q for q in bench.questions}
        bench, questions = self.cache[judge]
        if prompt not in PROMPT_NAMES.values():
            raise HarnessError(
                f"judgment of question {row['question_id']} uses prompt {prompt!r}; single-answer "
                f"grading uses {', '.join(PROMPT_NAMES.values())}"
            )
        if row["question_id"] not in questions:
            raise HarnessError(
                f"judgment of question {row['question_id']}, which is not in question.jsonl"
            )
        return bench, questions[row["question_id"]]

    def references(self, judge: str) -> Path:
        named = [
            self.folder / f"reference_answers_{judge}.jsonl",
            self.folder / "reference_answer" / f"{judge}.jsonl",
            self.folder / "reference_answer.jsonl",
        ]
        found = [path for path in named if path.exists()] or sorted(
            self.folder.glob("reference_answers_*.jsonl")
        )
        return found[0] if found else named[0]


def _published(path: Path) -> dict[str, dict[str, float]]:
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as handle:
        try:
            return {
                row["model"]: {
                    name: float(row[name]) for name in ("turn_1", "turn_2", "mean") if row.get(name)
                }
                for row in csv.DictReader(handle)
            }
        except (KeyError, ValueError) as error:
            raise HarnessError(
                f"{path}: wants columns model, turn_1, turn_2, mean ({error})"
            ) from error
