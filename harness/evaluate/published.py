"""``selm published DIR``: every published figure that public artefacts allow to recompute, beside
what this harness computes.

DIR is laid out as the benchmarks' owners publish:
``alpaca_eval/<model>/{annotations,model_outputs}.json`` with ``leaderboard.csv`` and GLM weights,
``mt_bench/judgments_*.jsonl`` with ``published.csv``, answers, references and judge prompts,
``academic/*_eqbench_v2_results.json``. Any model found there is checked. Nothing is written.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.evaluate import libraries
from harness.evaluate.academic_files import eq_bench_recorded
from harness.evaluate.alpaca_eval import read_json_rows
from harness.evaluate.mt_bench import (
    PROMPT_NAMES,
    Bench,
    make_match,
    read_answers,
    read_bench,
    render,
    replay,
)
from harness.judge import verdicts
from harness.records import HarnessError, read_jsonl

if TYPE_CHECKING:
    from rich.console import Console

ALPACA_EVAL_SOURCE = "alpaca_eval"
ALPACA_EVAL_EXACT = 1e-6
REFIT = 0.16
"""What a refit with the reconstructed gamed baselines is known to reproduce (57 models, median
0.0004).
"""
WEIGHTS = 1e-4
OTHER_FIT = 0.25
"""Weights of another fit of the same annotations stay this close (largest seen: 0.19); a larger
difference is an error.
"""
PLAIN = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
)


@dataclass(frozen=True)
class Published:
    """What lies beside the model folders; every part may be missing."""

    leaderboard: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, tuple[float, float]]
    difficulty: Sequence[float]
    gamed: Path | None
    official: Mapping[tuple[str, str], int]


def recompute_alpaca_eval(folder: Path) -> list[Row]:
    """Rows for every model folder, then for every leaderboard row that has published GLM weights."""
    weights = {
        model: (row["instruction_difficulty"], row["not_gamed_baseline.astype(float)"])
        for model, row in _table(folder / "published_glm_weights.csv").items()
    }
    table = _table(folder / "instruction_difficulty_recovered.csv")
    if not all(name.isdigit() for name in table):
        raise HarnessError(
            f"{folder / 'instruction_difficulty_recovered.csv'}: the first column should be the "
            "instruction's number"
        )
    difficulty = [table[name]["instruction_difficulty"] for name in sorted(table, key=int)]
    gamed = [
        path
        for name in ("df_gamed.csv", "df_gamed_reconstructed.csv")
        if (path := folder / name).exists()
    ]
    public = Published(
        _table(folder / "leaderboard.csv"),
        weights,
        difficulty,
        gamed[0] if gamed else None,
        _official(folder),
    )
    rows: list[Row] = []
    for path in sorted([*folder.glob("*/annotations.json"), *folder.glob("*/*/annotations.json")]):
        model = path.relative_to(folder).parts[0]
        try:
            rows += rows_of_alpaca_eval(model, path, folder / model / "model_outputs.json", public)
        except (
            HarnessError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AssertionError,
            AttributeError,
        ) as error:
            rows.append(
                failed(
                    ALPACA_EVAL_SOURCE,
                    model,
                    "annotations",
                    f"{path}: {type(error).__name__}: {error}",
                )
            )
    return rows + weight_rows(public)


def rows_of_alpaca_eval(
    model: str, annotations: Path, outputs: Path, public: Published
) -> list[Row]:
    """Win rates, counts, length and the refitted length-controlled win rate of one model."""
    import pandas as pd

    stored = read_json_rows(annotations)
    frame = pd.DataFrame(
        {
            name: [row[name] for row in stored]
            for name in ("preference", "output_1", "output_2", "instruction")
        }
    )
    frame["generator_1"], frame["generator_2"] = stored[0].get("generator_1", "baseline"), model
    board = public.leaderboard.get(model, {})
    note = "" if board else "model is not in leaderboard.csv"
    plain = libraries.alpaca_eval().metrics.get_winrate(frame)
    rows = [
        compare(
            ALPACA_EVAL_SOURCE,
            model,
            name,
            board.get(name),
            float(plain[name]),
            ALPACA_EVAL_EXACT,
            note,
        )
        for name in PLAIN
        if name == "win_rate" or not board or name in board
    ]
    texts = (
        [row["output"] for row in read_json_rows(outputs)]
        if outputs.exists()
        else [row["output_2"] for row in stored]
    )
    texts = [text for text in texts if isinstance(text, str)]
    rows.append(
        length_row(
            model, texts, board.get("avg_length"), max(len(public.official), len(texts)), note
        )
    )
    return rows + refit_rows(model, frame, board.get("length_controlled_winrate"), public)


def length_row(
    model: str, texts: Sequence[str], published: float | None, complete: int, note: str
) -> Row:
    """Mean characters, cut to an integer; absent outputs count as empty where that is how the
    published figure was made.
    """
    total = sum(len(text) for text in texts)
    value, filled = float(total // len(texts)), float(total // complete)
    if len(texts) < complete and published == filled != value:
        value, note = (
            filled,
            f"{complete - len(texts)} absent outputs counted as empty, as published; without them "
            f"{total // len(texts)}",
        )
    return compare(
        ALPACA_EVAL_SOURCE, model, "avg_length", published, value, ALPACA_EVAL_EXACT, note
    )


def refit_rows(model: str, frame: Any, published: float | None, public: Published) -> list[Row]:
    """LC win rate by the library's join by position, and by id where positions do not agree with
    ids.
    """
    figure = "length_controlled_winrate"
    if public.gamed is None:
        return [
            show(
                ALPACA_EVAL_SOURCE, model, figure, published, None, "no df_gamed file: not refitted"
            )
        ]
    complete = len(public.official) or len(public.difficulty) or len(frame)
    ids = _ids(frame, public.official)
    value = _library(frame, range(len(frame)), public.gamed) if len(frame) <= complete else None
    joined = f"refit with {public.gamed.name}, joined by position"
    if len(frame) == complete:
        rows = [compare(ALPACA_EVAL_SOURCE, model, figure, published, value, REFIT, joined)]
    else:
        note = f"{joined}; {len(frame)} of {complete} instructions, so positions are shifted, as they were in the published fit"
        rows = [show(ALPACA_EVAL_SOURCE, model, f"{figure} (by position)", published, value, note)]
    if ids is None or ids != list(range(len(frame))):
        by_id = None if ids is None else _library(frame, ids, public.gamed)
        note = (
            "annotations do not match the official instructions, no join by id"
            if ids is None
            else "joined by instruction, as studies do; not what was published"
        )
        rows.append(show(ALPACA_EVAL_SOURCE, model, f"{figure} (by id)", published, by_id, note))
    return rows


def weight_rows(public: Published) -> list[Row]:
    """LC win rate and its published standard error from the published GLM weights, for every model
    that has both.

    The leaderboard's two figures come from one fit. Where neither is what the weights give, and the
    difference is small, the weights are of another fit (not current) and nothing is required; where
    one agrees, the other must.
    """
    rows: list[Row] = []
    for model, board in public.leaderboard.items():
        if (
            model not in public.weights
            or not public.difficulty
            or math.isnan(board.get("length_controlled_winrate", math.nan))
        ):
            continue
        slope, level = public.weights[model]
        count = (
            min(int(board.get("n_total", math.inf)), len(public.difficulty))
            if not math.isnan(board.get("n_total", math.nan))
            else len(public.difficulty)
        )
        chance = 100.0 / (1.0 + np.exp(-(slope * np.array(public.difficulty[:count]) + level)))
        value, error = float(chance.mean()), float(chance.std(ddof=1) / math.sqrt(count))
        rows += _weight_pair(
            model,
            board["length_controlled_winrate"],
            value,
            board.get("lc_standard_error", math.nan),
            error,
        )
    return rows


def _weight_pair(
    model: str, published: float, value: float, published_error: float, error: float
) -> list[Row]:
    figure, error_figure = "length_controlled_winrate (weights)", "lc_standard_error (weights)"
    note = "from published GLM weights at zero length difference"
    agrees, error_agrees = (
        abs(value - published) <= WEIGHTS,
        abs(error - published_error) <= WEIGHTS,
    )
    if not agrees and not error_agrees and abs(value - published) <= OTHER_FIT:
        if math.isnan(published_error):
            unknown = (
                f"{note}; probably weights of another fit: no published standard error to tell"
            )
            return [show(ALPACA_EVAL_SOURCE, model, figure, published, value, unknown)]
        stale = f"{note}; weights not current: neither this nor the standard error is of the published fit"
        return [
            show(ALPACA_EVAL_SOURCE, model, figure, published, value, stale),
            show(ALPACA_EVAL_SOURCE, model, error_figure, published_error, error, stale),
        ]
    rows = [compare(ALPACA_EVAL_SOURCE, model, figure, published, value, WEIGHTS, note)]
    return (
        rows
        if math.isnan(published_error)
        else [
            *rows,
            compare(ALPACA_EVAL_SOURCE, model, error_figure, published_error, error, WEIGHTS, note),
        ]
    )


def _library(frame: Any, index: Sequence[int], gamed: Path) -> float:
    """The library's LC win rate; ``index`` gives each row's position in the gamed file."""
    rows = frame.drop(columns="instruction")
    rows.index = list(index)
    return float(libraries.library_length_controlled(rows, gamed)["length_controlled_winrate"])


def _ids(frame: Any, official: Mapping[tuple[str, str], int]) -> list[int] | None:
    """Official position of every annotation by instruction and baseline output; None when one is
    unknown.
    """
    keys = list(zip(frame["instruction"], frame["output_1"], strict=True))
    return (
        [official[key] for key in keys]
        if official and all(key in official for key in keys)
        else None
    )


def _official(folder: Path) -> dict[tuple[str, str], int]:
    """Position by (instruction, baseline output): the outputs of the model that every annotation is
    compared with.
    """
    for path in sorted(folder.glob("*/model_outputs.json")):
        if path.parent.name == "gpt4_1106_preview":
            return {
                (row["instruction"], row["output"]): position
                for position, row in enumerate(read_json_rows(path))
            }
    return {}


def _table(path: Path) -> dict[str, dict[str, float]]:
    """A CSV of numbers by its first column; other text is left out. A doubled name keeps its last
    row, as the library does.
    """
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as handle:
        lines = list(csv.reader(handle))
    return {
        line[0]: {
            name: value
            for name, text in zip(lines[0][1:], line[1:], strict=False)
            if (value := _float(text)) is not None
        }
        for line in lines[1:]
        if line
    }


def _float(text: str) -> float | None:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return None


MT_BENCH_SOURCE = "mt_bench"
MT_BENCH_EXACT = 1e-6
"""A single rating moves the mean of 160 by at least 0.0006; published figures carry six decimals at
most.
"""
NO_ANSWER = {"choices": [{"index": 0, "turns": ["", ""]}]}


def recompute_mt_bench(folder: Path) -> list[Row]:
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
                failed(
                    MT_BENCH_SOURCE,
                    path.stem,
                    "judgments",
                    f"{path}: {type(error).__name__}: {error}",
                )
            )
    if not judgments:
        return rows
    published = _published(folder / "published.csv")
    benches = _Benches(folder)
    for model in sorted(judgments):
        try:
            rows += rows_of_mt_bench(
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
            rows.append(
                failed(MT_BENCH_SOURCE, model, "judgments", f"{type(error).__name__}: {error}")
            )
    missing = sorted(set(published) - set(judgments))
    return rows + [
        show(
            MT_BENCH_SOURCE,
            model,
            "mean",
            published[model].get("mean"),
            None,
            "no judgments found for this model",
        )
        for model in missing
    ]


def rows_of_mt_bench(
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
            MT_BENCH_SOURCE,
            model,
            figure,
            (published or {}).get(figure),
            sum(v) / len(v) if v else None,
            MT_BENCH_EXACT,
            note,
        )
        for figure, v in means.items()
    ]
    rows.append(_agreement(model, "ratings read", same_rating))
    if given is None:
        rows.append(
            show(
                MT_BENCH_SOURCE,
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
            MT_BENCH_SOURCE,
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
        MT_BENCH_SOURCE, model, figure, float(len(same)), float(len(same) - len(wrong)), 0.0, note
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


EQ_BENCH_TOLERANCE = 0.02
"""Published with two decimals, some cut and some rounded."""


@dataclass(frozen=True)
class Row:
    """One figure. tolerance None: shown for comparison, not required to agree (the note says why);
    such rows are ``ok``.
    """

    source: str
    model: str
    figure: str
    published: float | None
    recomputed: float | None
    tolerance: float | None
    ok: bool
    note: str = ""

    @property
    def difference(self) -> float | None:
        """recomputed - published, or None when one of them is missing."""
        return (
            None
            if self.published is None or self.recomputed is None
            else self.recomputed - self.published
        )


def compare(
    source: str,
    model: str,
    figure: str,
    published: float | None,
    recomputed: float | None,
    tolerance: float,
    note: str = "",
) -> Row:
    """A row that must agree within ``tolerance`` (absolute); without a published figure it is only
    shown.
    """
    if published is None or math.isnan(published):
        return show(
            source, model, figure, None, recomputed, note or "no published figure to compare with"
        )
    ok = recomputed is not None and abs(recomputed - published) <= tolerance
    return Row(source, model, figure, published, recomputed, tolerance, ok, note)


def show(
    source: str,
    model: str,
    figure: str,
    published: float | None,
    recomputed: float | None,
    note: str,
) -> Row:
    """A row that is shown and not compared."""
    published = None if published is None or math.isnan(published) else published
    return Row(source, model, figure, published, recomputed, None, True, note)


def failed(source: str, model: str, figure: str, note: str) -> Row:
    """A row for artefacts that cannot be read."""
    return Row(source, model, figure, None, None, None, False, note)


def recompute(directory: Path) -> list[Row]:
    """Every row for the artefacts below ``directory``; HarnessError when there are none."""
    rows: list[Row] = []
    if (directory / "alpaca_eval").is_dir():
        rows += recompute_alpaca_eval(directory / "alpaca_eval")
    if (directory / "mt_bench").is_dir():
        rows += recompute_mt_bench(directory / "mt_bench")
    if (directory / "academic").is_dir():
        rows += eq_bench(directory / "academic")
    if not any(row.tolerance is not None or not row.ok for row in rows):
        raise HarnessError(
            f"{directory}: nothing to recompute; looked for alpaca_eval/*/annotations.json with "
            "alpaca_eval/leaderboard.csv, "
            "mt_bench/judgments_*.jsonl with mt_bench/published.csv, "
            "academic/*_eqbench_v2_results.json"
        )
    return rows


def eq_bench(folder: Path) -> list[Row]:
    """EQ-Bench v2 scores of recorded answers, by lm-eval's scoring function."""
    rows = []
    for path in sorted(folder.glob("*_eqbench_v2_results.json")):
        model = path.name.removesuffix("_eqbench_v2_results.json")
        try:
            published, recomputed = eq_bench_recorded(path)
        except (HarnessError, KeyError, TypeError, ValueError, AttributeError) as error:
            rows.append(
                failed(
                    "academic", model, "eq_bench", f"{path.name}: {type(error).__name__}: {error}"
                )
            )
            continue
        rows.append(
            compare(
                "academic",
                model,
                "eq_bench",
                published,
                recomputed,
                EQ_BENCH_TOLERANCE,
                "EQ-Bench v2: better of first and revised answers",
            )
        )
    return rows


def show_rows(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows as a table, and how many agree."""
    from rich.console import Console
    from rich.table import Table

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)  # a pipe or file is no narrow screen
    table = Table(title="Published figures recomputed", show_lines=False)
    for name in ("benchmark", "model", "figure"):
        table.add_column(name, overflow="fold")
    for name in ("published", "recomputed", "difference", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("note", overflow="fold")
    for row in rows:
        verdict = "FAIL" if not row.ok else "ok" if row.tolerance is not None else "shown"
        numbers = (
            _number(row.published),
            _number(row.recomputed),
            "" if row.difference is None else f"{row.difference:+.2g}",
        )
        tolerance = "" if row.tolerance is None else f"{row.tolerance:g}"
        table.add_row(
            row.source,
            _plain(row.model),
            row.figure,
            *numbers,
            tolerance,
            verdict,
            _plain(row.note),
            style=None if row.ok else "bold red",
        )
    console.print(table)
    compared, wrong = (
        [row for row in rows if row.tolerance is not None],
        [row for row in rows if not row.ok],
    )
    console.print(
        f"{len(compared)} figures compared, {len(compared) - sum(not row.ok for row in compared)} "
        f"agree, {len(wrong)} fail, "
        f"{len(rows) - len(compared) - sum(row.tolerance is None and not row.ok for row in rows)} "
        "only shown"
    )


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else "\ufffd" for character in text))


def _number(value: float | None) -> str:
    return (
        ""
        if value is None
        else f"{value:.0f}"
        if float(value).is_integer() and abs(value) >= 1
        else f"{value:.6f}"
    )
