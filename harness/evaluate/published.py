"""``selm published DIR``: every published figure that public artefacts allow to recompute, beside
what this harness computes.

DIR is laid out as the benchmarks' owners publish:
``alpaca_eval/<model>/{annotations,model_outputs}.json`` with ``leaderboard.csv`` and GLM weights,
``mt_bench/judgments_*.jsonl`` with ``published.csv``, answers, references and judge prompts,
``academic/*_eqbench_v2_results.json``. Any model found there is checked. Nothing is written.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.evaluate import alpaca_eval, libraries, mt_bench
from harness.evaluate.annotator import OFFICIAL_ANNOTATOR
from harness.evaluate.benchmark import read_rows
from harness.judge import verdicts
from harness.records import HarnessError

BROKEN = (
    *(HarnessError, LookupError, TypeError, ValueError),
    *(ArithmeticError, AssertionError, AttributeError),
)
"""What artefacts that are cut off or of another form raise."""


# -- figures ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Figure:
    """One figure. tolerance None: only shown, not required to agree (the note says why)."""

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
        if self.published is None or self.recomputed is None:
            return None
        return self.recomputed - self.published


@dataclass
class Sheet:
    """The figures of one model."""

    source: str
    model: str
    figures: list[Figure] = field(default_factory=list)

    def compare(
        self,
        name: str,
        published: float | None,
        recomputed: float | None,
        tolerance: float | None,
        note: str = "",
    ) -> Figure:
        """A figure that must agree within ``tolerance``, or, without one, is only shown."""
        if published is None or math.isnan(published):
            published, tolerance = None, None
            note = note or "no published figure to compare with"
        ok = tolerance is None
        if published is not None and recomputed is not None and tolerance is not None:
            ok = abs(recomputed - published) <= tolerance
        one = Figure(self.source, self.model, name, published, recomputed, tolerance, ok, note)
        self.figures.append(one)
        return one

    @contextlib.contextmanager
    def readable(self, name: str, path: Path) -> Iterator[None]:
        """Artefacts that cannot be read leave one failed figure and the others go on."""
        try:
            yield
        except BROKEN as error:
            note = f"{path}: {type(error).__name__}: {error}"
            failed = Figure(self.source, self.model, name, None, None, None, False, note)
            self.figures[:] = [failed]


def recompute(directory: Path) -> list[Figure]:
    """Every figure for the artefacts below ``directory``; HarnessError when there are none."""
    sheets: list[Sheet] = []
    for name, read in SOURCES.items():
        if (directory / name).is_dir():
            sheets += read(directory / name)
    figures = [figure for sheet in sheets for figure in sheet.figures]
    if not any(figure.tolerance is not None or not figure.ok for figure in figures):
        raise HarnessError(
            f"{directory}: nothing to recompute; looked for alpaca_eval/*/annotations.json with "
            "alpaca_eval/leaderboard.csv, mt_bench/judgments_*.jsonl with mt_bench/published.csv, "
            "academic/*_eqbench_v2_results.json"
        )
    return figures


# -- AlpacaEval ------------------------------------------------------------------------------------
EXACT = 1e-6
"""A single rating moves MT-Bench's mean of 160 by at least 0.0006; published figures carry six
decimals at most.
"""
REFIT = 0.16
"""What a refit with the reconstructed gamed baselines is known to reproduce (57 models, median
0.0004).
"""
WEIGHTS = 1e-4
OTHER_FIT = 0.25
"""Weights of another fit of the same annotations stay this close (largest seen: 0.19)."""
PLAIN = (
    *("win_rate", "standard_error", "n_wins", "n_wins_base"),
    *("n_draws", "n_total", "discrete_win_rate"),
)
LC, LC_ERROR = "length_controlled_winrate", "lc_standard_error"
OFFICIAL_GENERATOR = "gpt4_1106_preview"


class AlpacaEvalArtefacts:
    """What lies beside the model folders, if it does. official: position by instruction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leaderboard = _table(folder / "leaderboard.csv")
        self.weights = {
            model: (row["instruction_difficulty"], row["not_gamed_baseline.astype(float)"])
            for model, row in _table(folder / "published_glm_weights.csv").items()
        }
        recovered = folder / "instruction_difficulty_recovered.csv"
        table = _table(recovered)
        if not all(name.isdigit() for name in table):
            raise HarnessError(f"{recovered}: the first column should be the instruction's number")
        self.difficulty = [table[name]["instruction_difficulty"] for name in sorted(table, key=int)]
        files = [folder / name for name in ("df_gamed.csv", "df_gamed_reconstructed.csv")]
        self.gamed = next((path for path in files if path.exists()), None)
        outputs = folder / OFFICIAL_GENERATOR / "model_outputs.json"
        rows = read_rows(outputs) if outputs.exists() else []
        self.official = {
            alpaca_eval.instruction_key(row["instruction"]): n for n, row in enumerate(rows)
        }

    def positions(self, instructions: Sequence[str]) -> list[int] | str:
        """Official position of every instruction, or why it is not known."""
        if not self.official:
            if alpaca_eval.in_official_order(instructions):
                return list(range(len(instructions)))
            return "without gpt4_1106_preview/model_outputs.json the instructions' order is unknown"
        keys = {text: alpaca_eval.instruction_key(text) for text in instructions}
        others = [text for text in instructions if keys[text] not in self.official]
        if others:
            first = f"{len(others)} of {len(instructions)} instructions are not the benchmark's"
            return f"{first}, the first: {others[0][:60]!r}"
        return [self.official[keys[text]] for text in instructions]


def annotation_files(folder: Path) -> list[Path]:
    """Every model's annotations below AlpacaEval's folder."""
    return sorted([*folder.glob("*/annotations.json"), *folder.glob("*/*/annotations.json")])


def alpaca_eval_sheets(folder: Path) -> list[Sheet]:
    """A sheet for every model folder, then for every leaderboard row with published GLM weights."""
    public = AlpacaEvalArtefacts(folder)
    sheets = []
    for path in annotation_files(folder):
        model, *between = path.relative_to(folder).parts[:-1]
        others = [name for name in between if name != OFFICIAL_ANNOTATOR]
        sheet = Sheet("alpaca_eval", " ".join([model, *(f"({name})" for name in others)]))
        board = "_".join([*others, "leaderboard.csv"])
        with sheet.readable("annotations", path):
            _annotated(sheet, path, model, board, public)
        sheets.append(sheet)
    return [*sheets, *_fitted(public)]


def _annotated(
    sheet: Sheet, path: Path, model: str, leaderboard: str, public: AlpacaEvalArtefacts
) -> None:
    """All figures of one model. leaderboard: the file of its annotator."""
    import pandas as pd

    stored = alpaca_eval.check_annotations(read_rows(path), path)
    places = public.positions([row["instruction"] for row in stored])
    if isinstance(places, list):
        order = sorted(range(len(stored)), key=places.__getitem__)
        stored, places = [stored[i] for i in order], sorted(places)
    frame = pd.DataFrame(stored, columns=["output_1", "output_2"])
    frame["preference"] = np.array([row["preference"] for row in stored], dtype=float)
    frame["generator_1"] = stored[0].get("generator_1", "baseline")
    frame["generator_2"] = model
    board = _table(public.folder / leaderboard).get(model, {})
    note = "" if board else f"model is not in {leaderboard}"
    plain = libraries.alpaca_eval().metrics.get_winrate(frame)
    for name in PLAIN:
        if name == "win_rate" or not board or name in board:
            sheet.compare(name, board.get(name), float(plain[name]), EXACT, note)
    texts = [row["output_2"] for row in stored]
    outputs = public.folder / model / "model_outputs.json"
    if outputs.exists():
        texts = [row["output"] for row in read_rows(outputs) if isinstance(row["output"], str)]
    # Absent outputs count as empty where that is how the published figure was made.
    total, complete = sum(map(len, texts)), max(len(public.official), len(texts))
    published, value = board.get("avg_length"), float(total // len(texts))
    if len(texts) < complete and published == total // complete != value:
        absent = f"{complete - len(texts)} absent outputs counted as empty, as published"
        note, value = f"{absent}; without them {value:.0f}", float(total // complete)
    sheet.compare("avg_length", published, value, EXACT, note)
    _refit(sheet, frame, board.get(LC), public, places)


def _refit(
    sheet: Sheet,
    frame: Any,
    published: float | None,
    public: AlpacaEvalArtefacts,
    places: list[int] | str,
) -> None:
    """LC win rate of rows in official order: joined by position, which is by instruction where all
    are there; both where some are missing. places: of the rows, or why they are unknown.
    """
    gamed = public.gamed
    if gamed is None:
        sheet.compare(LC, published, None, None, "no df_gamed file: not refitted")
        return
    baseline = str(frame["generator_1"][0])
    if baseline not in ("baseline", OFFICIAL_GENERATOR):
        places = f"its difficulties are those against {OFFICIAL_GENERATOR}, not {baseline}"
    if isinstance(places, str):
        sheet.compare(LC, published, None, REFIT, f"not refitted: {places}")
        return
    complete = len(public.official) or len(frame)
    value = float(libraries.library_length_controlled(frame.copy(), gamed)[LC])
    joined = f"refit with {gamed.name}, joined by position"
    if len(frame) == complete:
        sheet.compare(LC, published, value, REFIT, joined)
        return
    shifted = f"{len(frame)} of {complete} instructions, so positions are shifted"
    note = f"{joined}; {shifted}, as they were in the published fit"
    sheet.compare(f"{LC} (by position)", published, value, None, note)
    # The library looks difficulties up by index label.
    value = float(libraries.library_length_controlled(frame.set_axis(places), gamed)[LC])
    note = "joined by instruction, as studies do; not what was published"
    sheet.compare(f"{LC} (by id)", published, value, None, note)


def _fitted(public: AlpacaEvalArtefacts) -> list[Sheet]:
    """LC win rate and its published standard error from the published GLM weights, for every model
    that has both.

    The leaderboard's two figures come from one fit. Where neither is what the weights give, and the
    difference is small, the weights are of another fit (not current) and nothing is required; where
    one agrees, the other must. The error is left out where none is published.
    """
    sheets = []
    for model, board in public.leaderboard.items():
        published = [board.get(name, math.nan) for name in (LC, LC_ERROR)]
        if model not in public.weights or not public.difficulty or math.isnan(published[0]):
            continue
        slope, level = public.weights[model]
        count, total = len(public.difficulty), board.get("n_total", math.nan)
        if not math.isnan(total):
            count = min(int(total), count)
        chance = 100.0 / (1.0 + np.exp(-(slope * np.array(public.difficulty[:count]) + level)))
        found = float(chance.mean()), float(chance.std(ddof=1) / math.sqrt(count))
        agree = any(abs(a - b) <= WEIGHTS for a, b in zip(found, published, strict=True))
        no_error = math.isnan(published[1])
        tolerance: float | None = WEIGHTS
        note = "from published GLM weights at zero length difference"
        if not agree and abs(found[0] - published[0]) <= OTHER_FIT:
            tolerance = None
            stale = "weights not current: neither this nor the standard error is of the published"
            stale += " fit"
            if no_error:
                stale = "probably weights of another fit: no published standard error to tell"
            note = f"{note}; {stale}"
        sheet = Sheet("alpaca_eval", model)
        sheet.compare(f"{LC} (weights)", published[0], found[0], tolerance, note)
        if not no_error:
            sheet.compare(f"{LC_ERROR} (weights)", published[1], found[1], tolerance, note)
        sheets.append(sheet)
    return sheets


def _table(path: Path) -> dict[str, dict[str, float]]:
    """A CSV's numbers by its first column, of which the last counts, as for the library."""
    if not path.exists():
        return {}
    found = {}
    with open(path, encoding="utf-8", newline="") as handle:
        header, *lines = list(csv.reader(handle)) or [[]]
    for line in filter(None, lines):
        row: dict[str, float] = {}
        for name, text in zip(header[1:], line[1:], strict=False):
            with contextlib.suppress(ValueError):
                row[name] = float(text) if text else math.nan
        found[line[0]] = row
    return found


# -- MT-Bench --------------------------------------------------------------------------------------
NO_ANSWER = {"choices": [{"index": 0, "turns": ["", ""]}]}


def judgment_files(folder: Path) -> list[Path]:
    """Files of single-answer judgments below MT-Bench's folder."""
    return sorted(
        [*folder.glob("judgments_*.jsonl"), *folder.glob("model_judgment/*_single.jsonl")]
    )


def judge_prompts(folder: Path) -> Path:
    """The judge prompts in MT-Bench's folder, or beside it, where FastChat has them."""
    inside, beside = (place / "judge_prompts.jsonl" for place in (folder, folder.parent))
    return beside if beside.exists() and not inside.exists() else inside


def mt_bench_sheets(folder: Path) -> list[Sheet]:
    """A sheet for every model that has judgments, and for published ones that have none."""
    judged: dict[str, list[dict[str, Any]]] = {}
    sheets: list[Sheet] = []
    for path in judgment_files(folder):
        sheet = Sheet("mt_bench", path.stem)
        with sheet.readable("judgments", path):
            for row in mt_bench.model_judgments(path):
                judged.setdefault(row["model"], []).append(row)
        sheets.append(sheet)
    if not judged:
        return sheets
    published = _table(folder / "published.csv")
    for model in sorted(judged):
        sheet = Sheet("mt_bench", model)
        with sheet.readable("judgments", folder):
            _judged(sheet, judged[model], folder, published.get(model, {}))
        sheets.append(sheet)
    for model in sorted(set(published) - set(judged)):
        sheet = Sheet("mt_bench", model)
        note = "no judgments found for this model"
        sheet.compare("mean", published[model].get("mean"), None, None, note)
        sheets.append(sheet)
    return sheets


def _judged(
    sheet: Sheet, rows: Sequence[Mapping[str, Any]], folder: Path, published: Mapping[str, float]
) -> None:
    """Prompts, ratings, and means as FastChat's show_result averages them (-1 left out)."""
    answers = folder / "model_answer" / f"{sheet.model}.jsonl"
    given = mt_bench.read_answers(answers) if answers.exists() else None
    bench = _bench(folder, sheet.model, rows)
    questions = {question["question_id"]: question for question in bench.questions}
    scores: dict[int, list[float]] = {1: [], 2: []}
    same_prompt, same_rating, otherwise = [], [], []
    for row in rows:
        number, turn = row["question_id"], row["turn"]
        answer = (given or {}).get(number, NO_ANSWER)
        if len(answer["choices"][0]["turns"]) < turn:
            raise HarnessError(
                f"{answers}: question {number} has no answer in turn {turn}, which was judged"
            )
        if number not in questions:
            raise HarnessError(f"judgment of question {number}, which is not in question.jsonl")
        match = mt_bench.make_match(bench, questions[number], turn, answer, row["judge"][0])
        rating, name = mt_bench.replay(match, row["judgment"]), f"{number}:{turn}"
        same_prompt.append((mt_bench.render(match)[1] == row["user_prompt"], name))
        if row.get("score") is not None:
            same_rating.append((rating == row["score"], name))
        if rating is not None and rating != -1:
            scores.setdefault(turn, []).append(rating)
        if verdicts.parse_rating(row["judgment"]).value != rating:
            otherwise.append(name)
    everything = [score for turn in scores.values() for score in turn]
    named = {f"{row['question_id']}:{row['turn']}" for row in rows}
    wanted = [f"{n}:{turn}" for n, q in questions.items() for turn in range(1, len(q["turns"]) + 1)]
    absent = [name for name in wanted if name not in named]
    note = f"{len(everything)} of {len(rows)} judgments have a rating"
    if len(named) < len(rows):
        note += f"; {len(rows) - len(named)} doubled, averaged in as FastChat does"
    if absent:
        note += f"; {len(absent)} absent: {', '.join(absent[:8])}"
    for figure, values in (("turn_1", scores[1]), ("turn_2", scores[2]), ("mean", everything)):
        value = sum(values) / len(values) if values else None
        sheet.compare(figure, published.get(figure), value, EXACT, note)
    _agreement(sheet, "ratings read", same_rating)
    if given is None:
        missing = f"no {answers.name} in model_answer: not rendered"
        sheet.compare("judge prompts rendered", float(len(rows)), None, None, missing)
    else:
        _agreement(sheet, "judge prompts rendered", same_prompt)
    listed = f": {', '.join(otherwise[:8])}" if otherwise else ""
    note = f"last final verdict against FastChat's first match{listed}"
    sheet.compare("verdicts studies read otherwise", None, float(len(otherwise)), None, note)


def _agreement(sheet: Sheet, name: str, same: Sequence[tuple[bool, str]]) -> None:
    wrong = [item for agrees, item in same if not agrees]
    right = len(same) - len(wrong)
    note = f"{right} of {len(same)} equal the stored ones"
    if wrong:
        note += f"; not {', '.join(wrong[:8])}"
    sheet.compare(name, float(len(same)), float(right), 0.0, note)


def _bench(folder: Path, model: str, rows: Sequence[Mapping[str, Any]]) -> mt_bench.Bench:
    """Questions, prompts and the judge's references: named after it, or the only ones."""
    judges = sorted({str(row["judge"][0]) for row in rows})
    if len(judges) > 1:
        raise HarnessError(
            f"judgments of {model} by {', '.join(judges)} are mixed; wants one judge's alone"
        )
    (judge,) = judges
    pairwise = {row["judge"][1] for row in rows} - set(mt_bench.PROMPT_NAMES.values())
    if pairwise:
        raise HarnessError(
            f"judgments of {model} use prompt {', '.join(map(repr, sorted(pairwise)))}; "
            f"single-answer grading uses {', '.join(mt_bench.PROMPT_NAMES.values())}"
        )
    files = [
        folder / f"reference_answers_{judge}.jsonl",
        folder / "reference_answer" / f"{judge}.jsonl",
        folder / "reference_answer.jsonl",
        *sorted(folder.glob("reference_answers_*.jsonl")),
    ]
    references = next((path for path in files if path.exists()), files[0])
    return mt_bench.read_bench(folder / "question.jsonl", references, judge_prompts(folder), judge)


# -- EQ-Bench --------------------------------------------------------------------------------------
EQ_BENCH_TOLERANCE = 0.02
"""Published with two decimals, some cut and some rounded."""


def eq_bench(folder: Path) -> list[Sheet]:
    """EQ-Bench v2 scores of recorded answers."""
    sheets = []
    for path in sorted(folder.glob("*_eqbench_v2_results.json")):
        sheet = Sheet("academic", path.name.removesuffix("_eqbench_v2_results.json"))
        with sheet.readable("eq_bench", path):
            published, recomputed = eq_bench_recorded(path)
            note = "EQ-Bench v2: better of first and revised answers, mean over iterations"
            sheet.compare("eq_bench", published, recomputed, EQ_BENCH_TOLERANCE, note)
        sheets.append(sheet)
    return sheets


def eq_bench_recorded(path: Path) -> tuple[float, float]:
    """(published, recomputed) EQ-Bench v2 score of a recorded run ``*_eqbench_v2_results.json``, by
    lm-eval's scoring function and the ``eq_bench*questions*.json`` beside the file.

    The v2 score is the mean over iterations; that of one is the mean over parseable questions of
    the revised answers, where that is no lower than the first answers' and at least 95 % as many
    can be parsed, else of the first ones.
    """
    files = sorted(path.parent.glob("eq_bench*questions*.json"))
    if not files:
        raise HarnessError(
            f"{path}: no eq_bench*questions*.json beside it; its reference answers are needed to "
            "recompute the score"
        )
    questions = json.loads(files[0].read_text(encoding="utf-8"))
    recorded = json.loads(path.read_text(encoding="utf-8"))
    iterations = []
    for run in recorded["raw_results"].values():
        first, revised = (_eq_scores(questions, run["raw_inference"], part) for part in (0, 2))
        one, two = (statistics.fmean(scores) if scores else 0.0 for scores in (first, revised))
        better = two >= one and len(revised) >= 0.95 * len(first)
        iterations.append(two if better else one)
    if not any(iterations):
        raise HarnessError(f"{path}: none of its answers can be parsed")
    return float(recorded["benchmark_score"]), statistics.fmean(iterations)


def _eq_scores(questions: Mapping[str, Any], answers: Mapping[str, str], part: int) -> list[float]:
    """Scores of the answers that can be parsed; part: 0 before "Revised scores", 2 behind it."""
    from lm_eval.tasks.eq_bench.utils import calculate_score_fullscale

    scored = []
    for key, question in questions.items():
        reference = {"reference_answer_fullscale": str(question["reference_answer_fullscale"])}
        said = answers.get(key, "").partition("Revised scores")[part]
        result = calculate_score_fullscale(reference, [said])
        if result["percent_parseable"]:
            scored.append(float(result["eqbench"]))
    return scored


SOURCES = {"alpaca_eval": alpaca_eval_sheets, "mt_bench": mt_bench_sheets, "academic": eq_bench}


# -- showing ---------------------------------------------------------------------------------------
def show_figures(figures: Sequence[Figure], console: Console | None = None) -> None:
    """Print the figures as a table, and how many agree."""
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
    for one in figures:
        verdict = "shown" if one.tolerance is None else "ok"
        table.add_row(
            *(one.source, _plain(one.model), one.figure),
            *(_number(one.published), _number(one.recomputed)),
            "" if one.difference is None else f"{one.difference:+.2g}",
            "" if one.tolerance is None else f"{one.tolerance:g}",
            *(verdict if one.ok else "FAIL", _plain(one.note)),
            style=None if one.ok else "bold red",
        )
    console.print(table)
    compared = [one for one in figures if one.tolerance is not None]
    failed = sum(not one.ok for one in figures)
    shown = sum(one.tolerance is None and one.ok for one in figures)
    console.print(
        f"{len(compared)} figures compared, {sum(one.ok for one in compared)} agree, {failed} "
        f"fail, {shown} only shown"
    )


def _plain(text: str) -> str:
    return escape("".join(character if character.isprintable() else "\ufffd" for character in text))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    whole = float(value).is_integer() and abs(value) >= 1
    return f"{value:.0f}" if whole else f"{value:.6f}"
