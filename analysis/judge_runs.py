"""What a judge's verdicts are worth: its runs as a source of variance of their own, a correction by
labels, two judges on the same answers, and a judge on labelled pairs.

Two runs of one judge on the same answers differ as a whole, not only item by item. With D (S, n, R)
over seeds, items and judge runs (repeats), (C) adds c² = max(MS_run − MS_rest, 0)/(S·n·R) with
R − 1 degrees of freedom to a² and b² of the means over runs, by the same approximation (Cochran's):
half-width = Σ t_k·v_k / √Σ v_k. Checked by simulation in ``tests/analysis/test_judge_runs.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as distributions
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

from analysis import findings, measures
from analysis.compare import resolve
from analysis.findings import Comparison
from analysis.layout import Floats, from_array
from analysis.load import StudyData
from analysis.measures import PERCENT, Measure
from analysis.stats import ITEMS, LEVEL, MIN_SEEDS, Estimate, Interval, one_checkpoint, two_way
from analysis.table import POPULATIONS_NOTE, Table, TableRow, ends, interval_text, spread_text
from analysis.text import number, plural, size
from harness.records import HarnessError

NEW_RUNS = "(C) new seeds, new items and new judge runs"
LABEL_COLUMNS = ("checkpoint", "item", "preference")
MIN_LABELS = 30
MIN_APART = 10
"""Labels, and those of them that are not the commonest one, which the normal approximation needs:
with 1 to 5 wins among 30 to 100 labels its 95 % interval covers 60 to 90 %, or has no width.
"""


# -- the judge's runs ------------------------------------------------------------------------------
@dataclass(frozen=True)
class JudgeRuns:
    """interval: (C). judge: variance of one verdict about its cell's mean over runs."""

    value: float
    interval: Interval
    judge: float


def judge_runs(values: Floats) -> JudgeRuns:
    """(C) of ``values`` (S, n, R) without NaN; undefined below 3 seeds or 3 runs."""
    S, n, R = values.shape
    cells = values.mean(axis=-1, keepdims=True)
    squares = two_way(cells[..., 0])
    value = float(squares.mean)
    by_run = values.mean(axis=(0, 1)) - value
    ms_run = S * n * float((by_run**2).sum()) / max(R - 1, 1)
    rest = values - cells - by_run
    ms_rest = float((rest**2).sum()) / max((S * n - 1) * (R - 1), 1)
    within = float(((values - cells) ** 2).sum()) / max(S * n * (R - 1), 1)
    c2 = max(ms_run - ms_rest, 0.0) / (S * n * R)
    parts = ((float(squares.a2), S - 1), (float(squares.b2), n - 1), (c2, R - 1))
    total = sum(part for part, _ in parts)
    found = Interval(NEW_RUNS, "Cochran's t over seeds, items and judge runs")
    if min(S, R) < MIN_SEEDS:
        few = f"{S} seeds, {R} judge runs: none below {MIN_SEEDS} of either"
        found = replace(found, undefined=few)
    elif total <= 0:
        found = replace(found, undefined="all scores are equal")
    else:
        tails = [float(distributions.t.isf((1 - LEVEL) / 2, df)) for _, df in parts]
        weighed = sum(t * part for t, (part, _) in zip(tails, parts, strict=True))
        half, df = weighed / math.sqrt(total), tuple(float(df) for _, df in parts)
        low, high = value - half, value + half
        found = replace(found, df=df, low=low, high=high, se=math.sqrt(total))
    return JudgeRuns(value, found, within)


def differences(data: StudyData, measure: Measure, one: Comparison) -> Floats | None:
    """D (S, n, R) over what both have; None of a measure that was judged once."""
    sides = []
    for arm in (one.arm, data.baseline_arm):
        checkpoint = data.at(arm, one.iteration)
        if checkpoint is None:
            return None
        parts = []
        for run in checkpoint.runs:
            rows = data.rows(run.name, one.iteration, measure.benchmark, measure.metric)
            rows = rows.astype({"cluster": str, "item": str})
            if measure.part:
                rows = rows[rows["item"].str.endswith(measure.part)]
            parts.append(rows.assign(seed=run.seed))
        cells = pd.concat(parts).groupby(["seed", "cluster", "repeat"])["value"]
        sides.append(cells.agg(lambda v: v.mean(skipna=False)))
    apart = (sides[0] - sides[1]).unstack("repeat").unstack("seed").dropna()
    runs, seeds = (apart.columns.unique(level) for level in ("repeat", "seed"))
    if len(runs) < 2 or apart.empty:
        return None
    cube = apart.to_numpy(dtype=float).reshape(len(apart), len(runs), len(seeds))
    return np.ascontiguousarray(cube.transpose(2, 0, 1))


def table_judge_runs(data: StudyData) -> Table | None:
    """Judge runs as a third source of variance; None of a study judged once."""
    rows, observations = [], []
    for measure in measures.judged(data):
        for one in findings.compare_arms(data, measure, data.last_iteration):
            cube = differences(data, measure, one)
            if cube is None:
                continue
            found, told = judge_runs(cube), one.estimate.intervals
            b, c = told.get("B_paired", told["B"]).half_width, found.interval.half_width
            sd, head = math.sqrt(found.judge), {"measure": measure.name, "arm": one.label}
            cells = {
                "difference": number(found.value, measure.digits, sign=True),
                "± (B)": size(b, measure.digits),
                "± (C)": size(c, measure.digits),
                "sd of one verdict": size(sd, measure.digits),
            }
            rows.append(TableRow({**head, **cells}))
            observations.append({**head, "difference": found.value, "b": b, "c": c, "judge_sd": sd})
    if not rows:
        return None
    caption = (
        "After the last iteration, paired, on the mean over judge runs (repeats). (B): new seeds "
        "and new items, this judge's runs as they fell. (C): new judge runs too; none below 3 runs."
    )
    title = "Arms against the baseline, with the judge's runs as a source of variance"
    return Table("judge_runs", title, caption, rows, observations, left=2)


# -- a judge corrected by labels -------------------------------------------------------------------
@dataclass(frozen=True)
class Corrected:
    """A mean by prediction-powered inference. weight: how far the judge is relied on (0: the labels
    alone). alone: what the labels say without the judge.
    """

    value: float
    interval: Interval
    weight: float
    alone: Estimate


def corrected(labels: Floats, judged: Floats, rest: Floats) -> Corrected:
    """Mean of the labels over all items, from the labelled ones (``labels`` and the judge's scores
    of the same items) and the judge's scores of the ``rest``.

    θ = ȳ + λ(f̄_rest − f̄_labelled), λ = cov(y, f)/(var f·(1 + n/N)), variance s²(y − λf)/n +
    λ²s²(f)/N: Angelopoulos et al., Science 2023, arXiv 2301.09633, with the weight of arXiv
    2311.01453. The labelled items must be drawn at random. No interval where fewer than 10 labels
    differ from the commonest. Raises ValueError below 30 labels or 2 of the rest.
    """
    n, N = len(labels), len(rest)
    if n < MIN_LABELS or N < 2:
        raise ValueError(f"{n} labels and {N} others: too few")
    spread = float(np.concatenate([judged, rest]).var(ddof=1))
    weight = float(np.cov(labels, judged)[0, 1]) / (spread * (1 + n / N)) if spread else 0.0
    value = float(labels.mean()) + weight * float(rest.mean() - judged.mean())
    variance = float((labels - weight * judged).var(ddof=1)) / n + weight**2 * spread / N
    interval = Interval(ITEMS, "prediction-powered", df=(n - 1,))
    apart = n - int(np.unique(labels, return_counts=True)[1].max())
    if apart < MIN_APART:
        why = f"only {apart} of {n} labels differ from the commonest; {MIN_APART} are needed"
        interval = replace(interval, undefined=why)
    else:
        half = float(distributions.t.isf((1 - LEVEL) / 2, n - 1)) * math.sqrt(variance)
        interval = replace(interval, low=value - half, high=value + half)
    return Corrected(value, interval, weight, one_checkpoint(from_array([labels], PERCENT)))


def table_corrected(data: StudyData, labels: pd.DataFrame) -> Table:
    """AlpacaEval's win rate of every checkpoint that has labels (columns checkpoint, item and
    preference: 1 the baseline, 2 the model, between them in part), corrected by them.

    Raises HarnessError for a missing column, a preference that is none, an arm of several seeds
    (whose answers differ), an unknown item, or too few labels.
    """
    missing = [name for name in LABEL_COLUMNS if name not in labels]
    if missing:
        raise HarnessError(f"the labels have no column {', '.join(missing)}")
    wrong = labels[~pd.to_numeric(labels["preference"], errors="coerce").between(1, 2)]
    if len(wrong):
        first = wrong.iloc[0]
        raise HarnessError(
            f"preference {first['preference']} of {first['checkpoint']}, item {first['item']}, and "
            f"{len(wrong) - 1} more are not from 1 (the baseline is better) to 2 (the model is)"
        )
    rows, observations, notes = [], [], []
    for name, part in labels.groupby("checkpoint", sort=True):
        title, score, label = _labelled(data, str(name), part)
        others = score[~score.index.isin(label.index)].to_numpy()
        percent = 100 * (label.to_numpy(dtype=float) - 1)
        try:
            found = corrected(percent, score[label.index].to_numpy(), others)
        except ValueError as error:
            raise HarnessError(
                f"{name}: {error}; {MIN_LABELS} drawn at random are needed"
            ) from None
        alone = found.alone.intervals["items"]
        if found.interval.undefined:
            notes.append(f"{title}: no interval, {found.interval.undefined}.")
        cells = {
            "labels": str(len(label)),
            "by the judge": number(float(score.mean())),
            "corrected": f"{number(found.value)} {spread_text(found.interval, 2)}",
            "labels alone": f"{number(found.alone.value)} {spread_text(alone, 2)}",
        }
        rows.append(TableRow({"checkpoint": title, **cells}))
        observations.append(
            {
                "checkpoint": title,
                "labels": len(label),
                "value": found.value,
                "low": found.interval.low,
                "high": found.interval.high,
                "weight": found.weight,
                "alone": found.alone.value,
                "alone_low": alone.low,
                "alone_high": alone.high,
            }
        )
    caption = (
        "AlpacaEval win rate, percent: the judge's, and the labels' mean over all instructions by "
        "prediction-powered inference, 95 % over new items of this checkpoint. The labelled items "
        "must have been drawn at random."
    )
    return Table("corrected", "Win rates corrected by labels", caption, rows, observations, notes)


def _labelled(data: StudyData, name: str, part: pd.DataFrame) -> tuple[str, Any, Any]:
    """A checkpoint's title, the judge's scores and the labels' preferences, both by item."""
    checkpoint = resolve(data, name)
    if checkpoint.iteration > 0 and len(checkpoint.runs) > 1:
        raise HarnessError(
            f"{name} has {len(checkpoint.runs)} seeds, whose answers differ; name the run that "
            f"was labelled, for example {checkpoint.runs[0].name}"
        )
    of = (checkpoint.iteration, "alpaca_eval", "win_rate")
    judged = pd.concat(data.rows(run.name, *of) for run in checkpoint.runs)
    score = judged.astype({"item": str}).groupby("item")["value"].mean().dropna()
    label = part.astype({"item": str}).groupby("item")["preference"].mean()
    unknown = sorted(set(label.index) - set(score.index))
    if unknown:
        raise HarnessError(f"{name}: no judged item {', '.join(unknown[:5])}")
    return checkpoint.title, score, label


# -- two judges ------------------------------------------------------------------------------------
SIDES = ("first", "second")


def table_two_judges(first: StudyData, second: StudyData) -> Table:
    """Arm − baseline after the last iteration under both judges of the same answers.
    HarnessError where no judged measure is stored under both.
    """
    rows, observations = [], []
    notes: dict[str, str] = {}
    for measure in (one for one in measures.judged(first) if not one.part):
        compared = [findings.compare_arms(d, measure, d.last_iteration) for d in (first, second)]
        sides = [{c.arm: c for c in some if c.estimate.value is not None} for some in compared]
        for arm, a in sides[0].items():
            if arm not in sides[1]:
                continue
            head: dict[str, Any] = {"measure": measure.name, "arm": a.label}
            cells, numbers = dict(head), dict(head)
            for side, one in zip(SIDES, (a, sides[1][arm]), strict=True):
                value, interval = one.estimate.value, one.estimate.intervals.get("A")
                shown = number(value, one.digits, sign=True)
                cells[f"{side} judge"] = f"{shown} ({interval_text(interval, one.digits)})"
                numbers[side] = value
                told = ends(one.estimate, "A", "B", p=True)
                numbers |= {f"{side}_{name}": end for name, end in told.items()}
            rows.append(TableRow({**cells, "sign": _sign(a, sides[1][arm])}))
            observations.append(numbers)
            who = " | ".join(_who(data, measure) for data in (first, second))
            notes[measure.name] = f"{measure.name}: {who}."
    if not rows:
        raise HarnessError(
            f"{first.name}: no difference to a baseline is stored under both judges; `selm run` "
            "judges the study, and its baseline is named in its file"
        )
    caption = (
        "Arm minus baseline after the last iteration, interval (A), under each judge, on the same "
        "answers. Sign: whether both judges say the same direction; in brackets where neither "
        "interval excludes zero, so that the signs may be chance."
    )
    title, said = "Arms against the baseline under two judges", (*notes.values(), POPULATIONS_NOTE)
    return Table("two_judges", title, caption, rows, observations, said, left=2)


def _who(data: StudyData, measure: Measure) -> str:
    of = measure.benchmark, measure.metric
    return " and ".join(sorted({data.identity(c, *of) for c in data.checkpoints} - {""}))


def _sign(a: Comparison, b: Comparison) -> str:
    same = (a.estimate.value or 0.0) * (b.estimate.value or 0.0) > 0
    word = "same" if same else "other"
    both = [one.estimate.intervals["A"] for one in (a, b)]
    clear = any(i.low is not None and i.high is not None and i.low * i.high > 0 for i in both)
    return word if clear else f"({word})"


# -- labelled pairs --------------------------------------------------------------------------------
def judge_table(judge: str, source: str, repeats: int, found: Mapping[str, Any]) -> Table:
    """``found``: the result of a meta-evaluation ("agreement", "by_group", "position",
    "noise", "costs"). Shares in percent, those of pairs with Wilson's interval over new pairs (of
    a mean over both orders it is no narrower than it should be: a pair counts once).
    """
    agree, position, noise = (found[name] for name in ("agreement", "position", "noise"))
    judged, costs = int(agree["pairs"]) - int(agree["missing"]), found["costs"]
    tokens = [costs.get(f"judge_{name}_tokens", 0) for name in ("prompt", "completion")]
    shown = {
        "agreement with the labels, both orders": _of(agree["accuracy"], judged),
        "agreement, first order / flipped order": (
            f"{_share(agree['accuracy_usual'])} / {_share(agree['accuracy_flipped'])}"
        ),
        "agreement, the two orders averaged": _of(agree["accuracy_averaged"], judged),
        "right in more orders than wrong, of all pairs": _of(
            agree["accuracy_by_both"], agree["pairs"]
        ),
        **{f"the same on {name}": _share(share) for name, share in found["by_group"].items()},
        "agreement of always naming the commoner label": _share(agree["majority_label_share"]),
        "position-flip rate": _of(position["flip_rate"], int(position["pairs"])),
        "advantage of the second place [points]": _share(
            position["second_place_advantage"], sign=True
        ),
        "noise floor: sd of one repeated verdict [points]": _share(noise["sd"]),
        "noise floor: sd of the mean of the set [points]": _share(noise["sd_of_mean"]),
        "verdicts equal in every repeat": _share(noise["unanimous_share"]),
        "pairs without a verdict in both orders": f"{agree['missing']} of {agree['pairs']}",
        "judge calls; prompt and answer tokens; USD": (
            f"{costs.get('judge_calls', 0):,.0f}; {tokens[0]:,.0f} and {tokens[1]:,.0f}; "
            f"{costs.get('judge_usd', 0.0):.2f}"
        ),
    }
    caption = (
        f"{agree['pairs']} pairs of {source}, each shown in both orders, judged "
        f"{plural(repeats, 'time')}. Percent."
    )
    notes = []
    if noise["sd"] is None:
        notes.append("The noise floor needs two or more repeats (--repeats 2).")
    observations = [
        {"group": group, "name": name, "value": value}
        for group in ("agreement", "by_group", "position", "noise", "costs")
        for name, value in found[group].items()
    ]
    rows = [TableRow({"measure": name, "value": value}) for name, value in shown.items()]
    return Table("meta_judge", f"The judge {judge}", caption, rows, observations, notes)


def _share(value: float | None, *, sign: bool = False) -> str:
    return number(None if value is None else 100.0 * value, 1, sign=sign)


def _of(share: float | None, count: int) -> str:
    """ "66.5 (56.8–75.0)": a share of so many pairs, in percent, with Wilson's interval."""
    if share is None or not count:
        return _share(share)
    low, high = proportion_confint(share * count, count, alpha=1 - LEVEL, method="wilson")
    return f"{_share(share)} ({_share(low)}–{_share(high)})"
