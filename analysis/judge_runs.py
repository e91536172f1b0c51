"""The judge as a source of variance of its own, beside seeds and items, and a judge corrected by
labels.

Two runs of one judge on the same answers differ as a whole, not only item by item. With D (S, n, R)
over seeds, items and judge runs (repeats), (C) adds c² = max(MS_run − MS_rest, 0)/(S·n·R) with
R − 1 degrees of freedom to a² and b² of the means over runs, by the same approximation (Cochran's):
half-width = Σ t_k·v_k / √Σ v_k. Checked by simulation in ``tests/analysis/test_judge_runs.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats as distributions

from analysis import findings, measures, power
from analysis.compare import resolve
from analysis.findings import Comparison
from analysis.layout import Floats, from_array
from analysis.load import StudyData
from analysis.measures import PERCENT, Measure
from analysis.power import Components
from analysis.stats import ITEMS, LEVEL, MIN_SEEDS, Estimate, Interval, one_checkpoint, two_way
from analysis.table import POPULATIONS_NOTE, Table, TableRow, ends, interval_text, spread_text
from analysis.text import number, size
from harness.records import HarnessError

NEW_RUNS = "(C) new seeds, new items and new judge runs"
LABEL_COLUMNS = ("checkpoint", "item", "preference")
MIN_LABELS = 30
MIN_APART = 10
"""Labels, and those of them that are not the commonest one, which the normal approximation needs:
with 1 to 5 wins among 30 to 100 labels its 95 % interval covers 60 to 90 %, or has no width.
"""


@dataclass(frozen=True)
class JudgeRuns:
    """interval: (C). judge: variance of one verdict about its cell's mean over runs. runs: R."""

    value: float
    interval: Interval
    judge: float
    runs: int


def judge_runs(values: Floats) -> JudgeRuns:
    """(C) of ``values`` (S, n, R) without NaN; undefined below 3 seeds or 3 runs."""
    S, n, R = values.shape
    squares = two_way(values.mean(axis=-1))
    value = float(squares.mean)
    cells = values.mean(axis=-1, keepdims=True)
    by_run = values.mean(axis=(0, 1)) - value
    ms_run = S * n * float((by_run**2).sum()) / max(R - 1, 1)
    rest = values - cells - by_run
    ms_rest = float((rest**2).sum()) / max((S * n - 1) * (R - 1), 1)
    within = float(((values - cells) ** 2).sum()) / max(S * n * (R - 1), 1)
    blank = Interval(NEW_RUNS, "Cochran's t over seeds, items and judge runs", LEVEL)
    if min(S, R) < MIN_SEEDS:
        few = f"{S} seeds, {R} judge runs: none below {MIN_SEEDS} of either"
        return JudgeRuns(value, replace(blank, undefined=few), within, R)
    c2 = max(ms_run - ms_rest, 0.0) / (S * n * R)
    parts = ((float(squares.a2), S - 1), (float(squares.b2), n - 1), (c2, R - 1))
    total = sum(part for part, _ in parts)
    if total <= 0:
        return JudgeRuns(value, replace(blank, undefined="all scores are equal"), within, R)
    tails = [float(distributions.t.isf((1 - LEVEL) / 2, df)) for _, df in parts]
    weighed = sum(t * part for t, (part, _) in zip(tails, parts, strict=True))
    half, df = weighed / math.sqrt(total), tuple(float(df) for _, df in parts)
    ends = {"low": value - half, "high": value + half, "se": math.sqrt(total)}
    return JudgeRuns(value, replace(blank, df=df, **ends), within, R)


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
        frame = pd.concat(parts)
        keys = ["seed", "cluster", "repeat"]
        sides.append(frame.groupby(keys)["value"].agg(lambda v: v.mean(skipna=False)))
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
            found, told_now = judge_runs(cube), one.estimate.intervals
            b = told_now.get("B_paired", told_now["B"])
            head = {"measure": measure.name, "arm": one.label}
            half = found.interval.half_width
            cells = {
                "difference": number(found.value, measure.digits, sign=True),
                "± (B)": size(b.half_width, measure.digits),
                "± (C)": size(half, measure.digits),
                "sd of one verdict": size(math.sqrt(found.judge), measure.digits),
            }
            rows.append(TableRow({**head, **cells}))
            told = {"difference": found.value, "b": b.half_width, "c": half}
            observations.append({**head, **told, "judge_sd": math.sqrt(found.judge)})
    if not rows:
        return None
    caption = (
        "After the last iteration, paired, on the mean over judge runs (repeats). (B): new seeds "
        "and new items, this judge's runs as they fell. (C): new judge runs too; none below 3 runs."
    )
    title = "Arms against the baseline, with the judge's runs as a source of variance"
    return Table("judge_runs", title, caption, rows, observations, left=2)


# -- repeats or seeds ------------------------------------------------------------------------------
def repeats_or_seeds(
    spread: Components, judge: float, runs: int, seeds: int, items: int, arms: int = 2
) -> dict[str, float | None]:
    """What (A) detects now, with twice the runs, with one more seed; and the judge's share of
    a² = σ_s²/S + σ_e²/(S·n). judge: variance of one verdict of the difference.
    """
    own = min(judge / runs, spread.sigma_e**2)
    doubled = replace(spread, sigma_e=math.sqrt(spread.sigma_e**2 - own / 2))
    a2 = spread.sigma_s**2 / seeds + spread.sigma_e**2 / (seeds * items)
    return {
        "now": power.detectable(spread, seeds, items, "A", arms=arms).value,
        "twice the repeats": power.detectable(doubled, seeds, items, "A", arms=arms).value,
        "one more seed": power.detectable(spread, seeds + 1, items, "A", arms=arms).value,
        "judge's share": own / (seeds * items) / a2 if a2 else None,
    }


def advised(data: StudyData, one: Comparison) -> str:
    """Whether a comparison gains more by repeats or by seeds, in a sentence."""
    cube = differences(data, one.measure, one)
    if cube is None or one.spread is None:
        return (
            f"{one.label}: the judge's noise is unknown, so nothing says whether repeats or seeds "
            "help more; judge.repeats 2 tells."
        )
    items = one.estimate.clusters
    runs = judge_runs(cube)
    found = repeats_or_seeds(one.spread, runs.judge, runs.runs, one.estimate.seeds, items, one.arms)
    return advice(one.label, found)


def advice(name: str, found: Mapping[str, float | None]) -> str:
    """What more of either would bring, in a sentence."""
    now, repeats, seeds = (found[key] for key in ("now", "twice the repeats", "one more seed"))
    share = found["judge's share"]
    if now is None or repeats is None or seeds is None or share is None:
        return f"{name}: repeats and seeds cannot be compared below 3 seeds."
    better = "more repeats help more" if repeats < seeds else "more seeds help more"
    return (
        f"{name}: the judge's noise is {100 * share:.0f} % of the variance of (A). Twice the "
        f"repeats would detect {number(repeats)}, one more seed {number(seeds)} (now "
        f"{number(now)}): {better}."
    )


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
    if n < MIN_LABELS or N < 2 or len(judged) != n:
        raise ValueError(f"{n} labels, {len(judged)} scores beside them and {N} others: too few")
    together = np.concatenate([judged, rest])
    spread = float(together.var(ddof=1))
    weight = float(np.cov(labels, judged)[0, 1]) / (spread * (1 + n / N)) if spread else 0.0
    value = float(labels.mean()) + weight * float(rest.mean() - judged.mean())
    variance = float((labels - weight * judged).var(ddof=1)) / n + weight**2 * spread / N
    half = float(distributions.t.isf((1 - LEVEL) / 2, n - 1)) * math.sqrt(variance)
    interval = Interval(
        ITEMS, "prediction-powered", low=value - half, high=value + half, df=(n - 1,)
    )
    apart = n - int(np.unique(labels, return_counts=True)[1].max())
    if apart < MIN_APART:
        why = f"only {apart} of {n} labels differ from the commonest; {MIN_APART} are needed"
        interval = replace(interval, low=None, high=None, undefined=why)
    return Corrected(value, interval, weight, one_checkpoint(from_array([labels], PERCENT)))


def table_corrected(data: StudyData, labels: pd.DataFrame) -> Table:
    """AlpacaEval's win rate of every checkpoint that has labels (columns checkpoint, item and
    preference: 1 the baseline, 2 the model, between them in part), corrected by them.

    Raises HarnessError for a missing column, a preference that is none, an arm of several seeds
    (whose answers differ), an unknown item, or too few labels.
    """
    _check(labels)
    rows, observations, notes = [], [], []
    for name, part in labels.groupby("checkpoint", sort=True):
        checkpoint = resolve(data, str(name))
        if checkpoint.iteration > 0 and len(checkpoint.runs) > 1:
            raise HarnessError(
                f"{name} has {len(checkpoint.runs)} seeds, whose answers differ; name the run that "
                f"was labelled, for example {checkpoint.runs[0].name}"
            )
        judged = pd.concat(
            data.rows(run.name, checkpoint.iteration, "alpaca_eval", "win_rate")
            for run in checkpoint.runs
        )
        score = judged.astype({"item": str}).groupby("item")["value"].mean().dropna()
        label = part.assign(item=part["item"].astype(str)).groupby("item")["preference"].mean()
        unknown = sorted(set(label.index) - set(score.index))
        if unknown:
            raise HarnessError(f"{name}: no judged item {', '.join(unknown[:5])}")
        others = score[~score.index.isin(label.index)].to_numpy()
        try:
            percent = 100 * (label.to_numpy(dtype=float) - 1)
            found = corrected(percent, score[label.index].to_numpy(), others)
        except ValueError as error:
            raise HarnessError(
                f"{name}: {error}; {MIN_LABELS} drawn at random are needed"
            ) from None
        alone = found.alone.intervals["items"]
        if found.interval.undefined:
            notes.append(f"{checkpoint.title}: no interval, {found.interval.undefined}.")
        cells = {
            "labels": str(len(label)),
            "by the judge": number(float(score.mean())),
            "corrected": f"{number(found.value)} {spread_text(found.interval, 2)}",
            "labels alone": f"{number(found.alone.value)} {spread_text(alone, 2)}",
        }
        rows.append(TableRow({"checkpoint": checkpoint.title, **cells}))
        told = {"low": found.interval.low, "high": found.interval.high, "weight": found.weight}
        told |= {"alone": found.alone.value, "alone_low": alone.low, "alone_high": alone.high}
        head = {"checkpoint": checkpoint.title, "labels": len(label), "value": found.value}
        observations.append({**head, **told})
    caption = (
        "AlpacaEval win rate, percent: the judge's, and the labels' mean over all instructions by "
        "prediction-powered inference, 95 % over new items of this checkpoint. The labelled items "
        "must have been drawn at random."
    )
    return Table("corrected", "Win rates corrected by labels", caption, rows, observations, notes)


def _check(labels: pd.DataFrame) -> None:
    missing = [name for name in LABEL_COLUMNS if name not in labels]
    if missing:
        raise HarnessError(f"the labels have no column {', '.join(missing)}")
    wrong = labels[~labels["preference"].between(1, 2)]
    if len(wrong):
        first = wrong.iloc[0]
        raise HarnessError(
            f"preference {first['preference']} of {first['checkpoint']}, item {first['item']}, and "
            f"{len(wrong) - 1} more are not from 1 (the baseline is better) to 2 (the model is)"
        )


# -- two judges ------------------------------------------------------------------------------------
SIDES = ("first judge", "second judge")


def table_two_judges(first: StudyData, second: StudyData) -> Table:
    """Arm − baseline after the last iteration under both judges of the same answers.
    HarnessError where no judged measure is stored under both.
    """
    rows, observations = [], []
    judges: dict[str, list[str]] = {}
    for measure in (one for one in measures.judged(first) if not one.part):
        compared = [findings.compare_arms(d, measure, d.last_iteration) for d in (first, second)]
        sides = [{c.arm: c for c in some if c.estimate.value is not None} for some in compared]
        for arm, a in sides[0].items():
            b = sides[1].get(arm)
            if b is None:
                continue
            head = {"measure": measure.name, "arm": a.label}
            cells = {
                side: f"{number(one.estimate.value, one.digits, sign=True)} "
                f"({interval_text(one.estimate.intervals.get('A'), one.digits)})"
                for side, one in zip(SIDES, (a, b), strict=True)
            }
            rows.append(TableRow({**head, **cells, "sign": _sign(a, b)}))
            numbers: dict[str, object] = {}
            for side, one in zip(("first", "second"), (a, b), strict=True):
                numbers[side] = one.estimate.value
                told = ends(one.estimate, "A", "B", p=True)
                numbers |= {f"{side}_{name}": value for name, value in told.items()}
            observations.append({**head, **numbers})
            judges[measure.name] = [_who(data, measure) for data in (first, second)]
    if not rows:
        raise HarnessError(
            f"{first.name}: no difference to a baseline is stored under both judges; `selm run` "
            "judges the study, and its baseline is named in its file"
        )
    notes = [f"{name}: {' | '.join(who)}." for name, who in judges.items()]
    caption = (
        "Arm minus baseline after the last iteration, interval (A), under each judge, on the same "
        "answers. Sign: whether both judges say the same direction; in brackets where neither "
        "interval excludes zero, so that the signs may be chance."
    )
    notes.append(POPULATIONS_NOTE)
    title = "Arms against the baseline under two judges"
    return Table("two_judges", title, caption, rows, observations, notes, left=2)


def _who(data: StudyData, measure: Measure) -> str:
    of = measure.benchmark, measure.metric
    return " and ".join(sorted({data.identity(c, *of) for c in data.checkpoints} - {""}))


def _sign(a: Comparison, b: Comparison) -> str:
    values = [one.estimate.value or 0.0 for one in (a, b)]
    word = "same" if values[0] * values[1] > 0 else "other"
    ends = [one.estimate.intervals["A"] for one in (a, b)]
    clear = any(i.low is not None and i.high is not None and i.low * i.high > 0 for i in ends)
    return word if clear else f"({word})"
