"""Two judges on the same answers: how far they agree, and the map from one's scale to the other's.

Rows are those of ``harness.evaluate.bridge``: old and new score of an item, a model and a measure.
Everything here but a regression is a function of sums over items, so one estimator serves all:
the delete-one-cluster jackknife, value ± t_{n−1}·sd(pseudo-values)/√n, which speaks for *new items
of these models*. Intercept and slope of the map divide by the spread of the models' new scores,
which few models may lack: their intervals are Fieller's, from the pseudo-values of both parts, and
there is none where that spread is not clear or there are two models. Only the map to the published
scale for *another model* has an interval over models: the prediction interval of the regression of
old on new means (t with M − 2 degrees of freedom), which needs three models; their items' noise is
in its residuals.

No interval has zero width: where every item says the same there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm  # type: ignore[import-untyped]
from scipy import stats as distributions
from statsmodels.stats.inter_rater import cohens_kappa  # type: ignore[import-untyped]

from analysis import findings, measures, rank
from analysis.layout import Floats
from analysis.load import StudyData, read_json
from analysis.rank import JudgeNoise
from analysis.stats import LEVEL
from analysis.table import Table, TableRow
from analysis.text import number

FOLDER, FILE = "bridge", "bridge.json"
"""Folder beside the studies, below ``results/``, and the file in each of its own."""
RATINGS = 10
WON = 50.0
MOST_MODELS_WITHOUT_SCATTER = 2
"""A line through two models leaves nothing that says how another would lie beside it."""
FEW_MODELS = 5
"""Fewer make a prediction interval that holds but is wide: in simulation its median half-width is
22 to 60 points of win rate at 3 models, 8 to 22 at 4, 6 to 16 at 5.
"""
TITLES = {
    "win_rate": "AlpacaEval WR",
    "length_controlled_win_rate": "AlpacaEval LC",
    "rating": "MT-Bench",
}
NOT_PUBLISHED = "‡"
"""Marks what was never judged by the published judge."""


@dataclass(frozen=True)
class Known:
    """A value and its interval; without one where the items do not vary or there are too few."""

    value: float
    low: float | None = None
    high: float | None = None

    def holds(self, truth: float) -> bool:
        """Whether the interval holds a value; where there is none, whether it is the value."""
        if self.low is None or self.high is None:
            return abs(self.value - truth) < 1e-9
        return self.low <= truth <= self.high


def _pseudo(parts: Floats, statistic: Callable[[Floats], Any]) -> Floats:
    """Delete-one pseudo-values of ``statistic`` of the sums of ``parts`` (clusters, …)."""
    n, whole = len(parts), parts.sum(axis=0)
    left = np.array([statistic(whole - part) for part in parts])
    return np.asarray(n * np.array(statistic(whole)) - (n - 1) * left)


def jackknife(parts: Floats, statistic: Callable[[Floats], float]) -> Known:
    """``statistic`` of the sums of ``parts`` (clusters, …), with its delete-one interval."""
    n, value = len(parts), statistic(parts.sum(axis=0))
    if n < 2:
        return Known(value)
    se = float(_pseudo(parts, statistic).std(ddof=1)) / math.sqrt(n)
    if not math.isfinite(se) or se < 1e-9 * max(1.0, abs(value)):
        return Known(value)
    half = float(distributions.t.isf((1 - LEVEL) / 2, n - 1)) * se
    return Known(value, value - half, value + half)


def fieller(parts: Floats, statistic: Callable[[Floats], tuple[float, float]]) -> Known:
    """Top over bottom (``statistic`` of the sums of ``parts``) with Fieller's interval: the ratios
    b at which the mean pseudo-value of top − b·bottom is not told from 0.
    """
    n, both = len(parts), statistic(parts.sum(axis=0))
    value = both[0] / both[1]
    if n < 2:
        return Known(value)
    pseudo = _pseudo(parts, statistic)
    top, bottom = pseudo.mean(axis=0)
    squared = float(distributions.t.isf((1 - LEVEL) / 2, n - 1)) ** 2
    (var_top, cov), (_, var_bottom) = squared * np.cov(pseudo.T) / n
    lead, middle = bottom**2 - var_bottom, top * bottom - cov
    room = middle**2 - lead * (top**2 - var_top)
    if lead <= 0 or room <= (1e-9 * lead * max(1.0, abs(value))) ** 2:
        return Known(value)
    low, high = ((middle + sign * math.sqrt(room)) / lead for sign in (-1, 1))
    return Known(value, float(low), float(high))


# -- one measure -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scale:
    """sums (clusters, models, 3): old, new and count over items that both judges scored for every
    model, means over repeats. rows: one for each item and model.
    """

    benchmark: str
    metric: str
    models: tuple[str, ...]
    clusters: tuple[str, ...]
    sums: Floats
    rows: pd.DataFrame
    left_out: int
    noise: JudgeNoise

    @property
    def total(self) -> Floats:
        return np.asarray(self.sums.sum(axis=0))

    def mean(self, judge: int, model: int) -> Known:
        """A model's score by the old judge (0) or the new (1)."""
        return jackknife(self.sums[:, model], lambda total: float(total[judge] / total[2]))

    def shift(self, model: int) -> Known:
        """New minus old score of a model."""
        return jackknife(self.sums[:, model], lambda t: float((t[1] - t[0]) / t[2]))

    def difference(self, judge: int, a: int, b: int) -> Known:
        """Model a minus model b under one judge, on the same items."""

        def apart(total: Floats) -> float:
            return float(total[0, judge] / total[0, 2] - total[1, judge] / total[1, 2])

        return jackknife(self.sums[:, [a, b]], apart)

    def line(self) -> tuple[Known, Known] | None:
        """(intercept, slope) of the map old = intercept + slope · new over the models, with the
        intervals of new items; None of a single model or equal new scores.
        """
        old, new = _means(self.total)
        if len(self.models) < 2 or np.ptp(new) < 1e-9:
            return None
        if len(self.models) <= MOST_MODELS_WITHOUT_SCATTER:
            slope, intercept = np.polyfit(new, old, 1)
            return Known(float(intercept)), Known(float(slope))
        return fieller(self.sums, _intercept_parts), fieller(self.sums, _slope_parts)

    def published(self, new: float) -> Known | None:
        """A new score on the old scale, with the prediction interval for another model."""
        line = self.line()
        if line is None:
            return None
        if len(self.models) <= MOST_MODELS_WITHOUT_SCATTER:
            return Known(line[0].value + line[1].value * new)
        old, scores = _means(self.total)
        fit = sm.OLS(old, sm.add_constant(scores)).fit()
        told = fit.get_prediction([[1.0, new]]).summary_frame(alpha=1 - LEVEL).iloc[0]
        value, low, high = (float(told[name]) for name in ("mean", "obs_ci_lower", "obs_ci_upper"))
        return Known(value, low, high) if high - low > 1e-9 else Known(value)

    def kept_signs(self) -> tuple[int, int, int, int]:
        """(pairs of models that both judges put in one order, pairs; the same of the pairs whose
        old difference is outside its interval).
        """
        kept = clear = kept_clear = pairs = 0
        for a, b in combinations(range(len(self.models)), 2):
            old, new = self.difference(0, a, b), self.difference(1, a, b)
            same = old.value * new.value > 0
            pairs, kept = pairs + 1, kept + same
            if old.low is not None and not old.holds(0.0):
                clear, kept_clear = clear + 1, kept_clear + same
        return kept, pairs, kept_clear, clear

    def correlation(self) -> float | None:
        """Kendall's tau of the models' scores under both judges; None below three models."""
        if len(self.models) < 3:
            return None
        return float(distributions.kendalltau(*_means(self.total)).statistic)


def _means(total: Floats) -> tuple[Floats, Floats]:
    """Old and new means of every model."""
    return total[:, 0] / total[:, 2], total[:, 1] / total[:, 2]


def _slope_parts(total: Floats) -> tuple[float, float]:
    """What the slope is the ratio of: Σ of products, and of squares of the new scores."""
    old, new = _means(total)
    apart = new - new.mean()
    return float(apart @ old), float(apart @ apart)


def _intercept_parts(total: Floats) -> tuple[float, float]:
    old, new = _means(total)
    products, squares = _slope_parts(total)
    return float(old.mean() * squares - new.mean() * products), squares


def read(path: Path) -> tuple[dict[str, Any], list[Scale]]:
    """What a bridge's file says of itself, and its measures."""
    told = read_json(path)
    return told, scales(told["rows"])


def scales(rows: Sequence[Mapping[str, Any]]) -> list[Scale]:
    """The measures of a bridge's rows; items that miss a score of any model are counted only."""
    groups = pd.DataFrame(rows).groupby(["benchmark", "metric"], sort=True)
    return [_scale(str(benchmark), str(metric), part) for (benchmark, metric), part in groups]


def _scale(benchmark: str, metric: str, part: pd.DataFrame) -> Scale:
    part = part.assign(old=part["old"].astype(float), new=part["new"].astype(float))
    told = {name: (name, "first") for name in ("old", "first", "length")}
    cells = part.groupby(["model", "cluster", "item"], sort=True)
    every = cells.agg(**told, new=("new", "mean")).reset_index()
    models, items = tuple(sorted(every["model"].unique())), every["item"].nunique()
    rows = every.dropna(subset=["old", "new"])
    counts = rows.groupby("item")["model"].transform("size")
    rows = rows[counts == len(models)].reset_index(drop=True)
    clusters = tuple(sorted(rows["cluster"].unique()))
    sums = np.zeros((len(clusters), len(models), 3))
    where = _codes(rows["cluster"], clusters), _codes(rows["model"], models)
    np.add.at(sums, where, rows[["old", "new"]].assign(count=1.0).to_numpy())
    repeats = part.pivot_table(
        index=["model", "item"], columns="repeat", values="new", dropna=False
    )
    noise = rank.judge_noise(repeats.to_numpy(dtype=float), items=max(1, items))
    left = items - rows["item"].nunique()
    return Scale(benchmark, metric, models, clusters, sums, rows, left, noise)


def _codes(values: pd.Series, kinds: Sequence[str]) -> np.ndarray:
    return np.asarray(pd.Categorical(values, categories=list(kinds)).codes)


# -- item by item ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Agreement:
    """How the two judges' verdicts on single items agree. share: the same winner, or the same
    rating; near: ratings at most one apart. kappa: Cohen's, of winners; quadratically weighted, of
    ratings. ties: items without a winner under one of them, left out.
    """

    share: Known
    kappa: Known
    near: Known | None
    ties: int


def agreement(scale: Scale) -> Agreement | None:
    """Agreement over all models' items; None of length-controlled scores, which no verdict has."""
    if scale.metric == "length_controlled_win_rate":
        return None
    rated = scale.metric == "rating"
    scores = [scale.rows[judge].to_numpy() for judge in ("old", "new")]
    if rated:
        kinds, used = RATINGS, np.ones(len(scale.rows), dtype=bool)
        codes = [np.rint(score).astype(int) - 1 for score in scores]
    else:
        kinds, used = 2, (scores[0] != WON) & (scores[1] != WON)
        codes = [(score > WON).astype(int) for score in scores]
    places = _codes(scale.rows["cluster"], scale.clusters)
    tables = np.zeros((len(scale.clusters), kinds, kinds))
    np.add.at(tables, (places[used], codes[0][used], codes[1][used]), 1.0)

    def kappa(table: Floats) -> float:
        if len(np.flatnonzero(table.sum(axis=0) + table.sum(axis=1))) < 2:
            return math.nan
        weights = "quadratic" if rated else None
        return float(cohens_kappa(table, wt=weights, return_results=False))

    def near(table: Floats) -> float:
        return sum(float(np.trace(table, offset)) for offset in (-1, 0, 1)) / float(table.sum())

    return Agreement(
        jackknife(tables, lambda table: float(np.trace(table) / table.sum())),
        jackknife(tables, kappa),
        jackknife(tables, near) if rated else None,
        int((~used).sum()),
    )


def first_bias(scale: Scale, judge: str) -> Known | None:
    """How much oftener than half "old" or "new" lets the answer shown first win, in points; None
    without pairs. Both orders are weighted alike, model by model, so that a model's strength is no
    bias.
    """
    shown = scale.rows[scale.rows["first"].notna()]
    if shown.empty or scale.metric != "win_rate":
        return None
    places, model = _codes(shown["cluster"], scale.clusters), _codes(shown["model"], scale.models)
    order = shown["first"].astype(bool).astype(int).to_numpy()
    parts = np.zeros((len(scale.clusters), len(scale.models), 2, 2))
    scores = shown[judge].to_numpy(dtype=float)
    np.add.at(parts, (places, model, order), np.column_stack([scores, np.ones_like(scores)]))

    def advantage(total: Floats) -> float:
        means = total[..., 0] / total[..., 1]
        return float((means[:, 1] - means[:, 0]).mean() / 2)

    return jackknife(parts, advantage) if (parts.sum(axis=0)[..., 1] > 1).all() else None


def length_bias(scale: Scale, judge: str) -> Known | None:
    """Effect of a longer answer on "old" or "new", in log-odds of winning per standard deviation of
    the difference's tanh, or in rating points per e-fold of characters: a level for every model,
    standard errors clustered by item.
    """
    used, rated = scale.rows[scale.rows["length"].notna()], scale.metric == "rating"
    length, value = used["length"].to_numpy(dtype=float), used[judge].to_numpy(dtype=float)
    if len(used) < 10 or np.ptp(length) == 0 or (not rated and np.ptp(value) == 0):
        return None
    x = np.log(np.maximum(length, 1.0)) if rated else np.tanh(length / length.std(ddof=1))
    design = pd.get_dummies(used["model"], dtype=float).assign(length=x)
    model = sm.OLS(value, design)
    if not rated:
        model = sm.GLM(value / 100, design, family=sm.families.Binomial())
    groups = {"groups": pd.factorize(used["cluster"])[0]}
    fit = model.fit(cov_type="cluster", cov_kwds=groups)
    low, high = fit.conf_int(alpha=1 - LEVEL).loc["length"]
    return Known(float(fit.params["length"]), float(low), float(high))


# -- tables ----------------------------------------------------------------------------------------
def known_text(known: Known | None, digits: int = 2, *, sign: bool = False) -> str:
    """ "23.10 (20.31 to 25.89)"; a dash for the ends where there is no interval."""
    if known is None:
        return "–"
    ends = "–"
    if known.low is not None:
        ends = f"{number(known.low, digits, sign=sign)} to {number(known.high, digits, sign=sign)}"
    return f"{number(known.value, digits, sign=sign)} ({ends})"


def _fields(name: str, known: Known | None) -> dict[str, float | None]:
    value, low, high = (known.value, known.low, known.high) if known else (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def table_models(about: Mapping[str, Any], scales: Sequence[Scale]) -> Table:
    """Every model under both judges, and its new score on the old scale."""
    rows, observations = [], []
    for scale in scales:
        for place, model in enumerate(scale.models):
            old, new, shift = scale.mean(0, place), scale.mean(1, place), scale.shift(place)
            mapped = scale.published(new.value)
            head = {"measure": TITLES[scale.metric], "model": model}
            cells = {
                "old judge": known_text(old),
                "new judge": known_text(new),
                "new − old": known_text(shift, sign=True),
                "new on the old scale": known_text(mapped),
            }
            rows.append(TableRow({**head, **cells}, rule=place == 0))
            numbers = _fields("old", old) | _fields("new", new) | _fields("shift", shift)
            observations.append({**head, **numbers, **_fields("mapped", mapped)})
    caption = (
        f"{about['judge']} and the judge whose verdicts were published, on the same answers. In "
        "brackets 95 % intervals over new items of these models; of the last column, the "
        "prediction interval for a model that the map was not fitted to."
    )
    return Table("bridge_models", "Models under both judges", caption, rows, observations, left=2)


def table_judges(about: Mapping[str, Any], scales: Sequence[Scale]) -> Table:
    """How the judges agree, item by item and model by model, what each leans to, and the map."""
    rows, observations, notes = [], [], []
    for scale in scales:
        title = TITLES[scale.metric]
        for place, (name, known) in enumerate(_judges(scale).items()):
            text = known if isinstance(known, str) else known_text(known, 3)
            head = {"measure": title, "what": name}
            rows.append(TableRow({**head, "value": text}, rule=place == 0))
            numbers = _fields("value", None if isinstance(known, str) else known)
            observations.append({**head, "text": text, **numbers})
        if scale.left_out:
            notes.append(
                f"{title}: {scale.left_out} items without a score of some model by some judge are "
                "left out."
            )
    fewest = min((len(scale.models) for scale in scales), default=FEW_MODELS)
    if fewest <= MOST_MODELS_WITHOUT_SCATTER:
        notes.append(
            "Two models make a line and leave nothing that says how far another lies from it: a "
            "mapped score has no interval, and neither has the line. Three are needed."
        )
    elif fewest < FEW_MODELS:
        notes.append(
            f"Fewer than {FEW_MODELS} models hardly make a map: the interval of a mapped score "
            "holds, but with one or two degrees of freedom it is several times as wide as with "
            "eight models. Trust the signs of differences, not mapped scores."
        )
    caption = (
        f"{about['judge']} beside the published judge; {about['repeats']} verdicts an item. "
        "Agreement: the same winner, or the same rating. Shown first: points by which the answer "
        "shown first wins oftener than half. Length: log-odds of winning per sd of the length "
        "difference's tanh; rating points per e-fold of characters."
    )
    return Table("bridge_judges", "The two judges", caption, rows, observations, notes, left=3)


def _judges(scale: Scale) -> dict[str, Known | str | None]:
    shown: dict[str, Known | str | None] = {}
    agreed = agreement(scale)
    if agreed:
        shown |= {"agreement on items": agreed.share, "kappa": agreed.kappa}
        if agreed.near:
            shown["ratings at most one apart"] = agreed.near
        if agreed.ties:
            shown["ties, left out of agreement"] = str(agreed.ties)
        for judge in ("old", "new"):
            first = first_bias(scale, judge)
            if first:
                shown[f"shown first, {judge} judge"] = first
            shown[f"length, {judge} judge"] = length_bias(scale, judge)
    shown["map: intercept"], shown["map: slope"] = scale.line() or (None, None)
    kept, pairs, kept_clear, clear = scale.kept_signs()
    shown["differences of models that keep their sign"] = f"{kept} of {pairs}"
    shown["… of those clear under the old judge"] = f"{kept_clear} of {clear}"
    shown["rank correlation of models (Kendall)"] = number(scale.correlation(), 3)
    noise = scale.noise
    shown["noise of repeats: sd of one verdict"] = noise.undefined or number(noise.sd, 3)
    return shown


# -- a study ---------------------------------------------------------------------------------------
def study_tables(data: StudyData, results: Path) -> dict[str, Table]:
    """The published scale of a study whose judge has a bridge below ``results``; else nothing."""
    held = {str(name).partition(" as ")[0] for name in data.scores["judge"].unique()} - {""}
    found: dict[str, Table] = {}
    for path in sorted((results / FOLDER).glob(f"*/{FILE}")):
        about, scales = read(path)
        if about["judge"] in held:
            key = f"published_scale_{len(found)}" if found else "published_scale"
            table = _published_scale(data, key, about["judge"], scales)
            if table.rows:
                found[key] = table
    return found


def _published_scale(data: StudyData, key: str, judge: str, scales: Sequence[Scale]) -> Table:
    rows, observations = [], []
    by_measure = {(scale.benchmark, scale.metric): scale for scale in scales}
    for measure in measures.columns(data, "table_1"):
        of = (measure.benchmark, measure.metric)
        if of not in by_measure or measure.part:
            continue
        for checkpoint in data.checkpoints:
            if judge not in data.identity(checkpoint, *of):
                continue
            value = findings.estimate(data, checkpoint, measure).value
            mapped = None if value is None else by_measure[of].published(value)
            if mapped is None:
                continue
            head = {"measure": measure.title, "checkpoint": checkpoint.title}
            cells = {
                "this judge": number(value, measure.digits),
                f"published scale {NOT_PUBLISHED}": known_text(mapped, measure.digits),
            }
            rows.append(TableRow({**head, **cells}))
            observations.append({**head, "value": value, **_fields("mapped", mapped)})
    caption = (
        f"{NOT_PUBLISHED} Not judged by the published judge: the score by {judge} through "
        "the map of its bridge, with the prediction interval for another model. The study's own "
        "noise comes on top. Compare arms under this judge, not here."
    )
    title = f"Scores on the published scale {NOT_PUBLISHED}"
    return Table(key, title, caption, rows, observations, left=2)
