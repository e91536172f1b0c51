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

FILE = "bridge.json"
RATINGS = range(1, 11)
WON = 50.0
MOST_MODELS_WITHOUT_SCATTER = 2
"""A line through two models leaves nothing that says how another would lie beside it."""
FEW_MODELS = 5
"""Fewer make a prediction interval that holds but is wide: in simulation its median half-width is
22 to 60 points of win rate at 3 models, 8 to 22 at 4, 6 to 16 at 5.
"""


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


def jackknife(parts: Floats, statistic: Callable[[Floats], float]) -> Known:
    """``statistic`` of the sums of ``parts`` (clusters, …), with its delete-one interval."""
    n, whole = len(parts), parts.sum(axis=0)
    value = statistic(whole)
    if n < 2:
        return Known(value)
    pseudo = np.array([n * value - (n - 1) * statistic(whole - part) for part in parts])
    se = float(pseudo.std(ddof=1)) / math.sqrt(n)
    if not math.isfinite(se) or se < 1e-9 * max(1.0, abs(value)):
        return Known(value)
    half = float(distributions.t.isf((1 - LEVEL) / 2, n - 1)) * se
    return Known(value, value - half, value + half)


def fieller(parts: Floats, statistic: Callable[[Floats], tuple[float, float]]) -> Known:
    """Top over bottom (``statistic`` of the sums of ``parts``) with Fieller's interval: the ratios
    b at which the mean pseudo-value of top − b·bottom is not told from 0.
    """
    n, whole = len(parts), parts.sum(axis=0)
    both = np.array(statistic(whole))
    value = float(both[0] / both[1])
    if n < 2:
        return Known(value)
    pseudo = n * both - (n - 1) * np.array([statistic(whole - part) for part in parts])
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

    def mean(self, judge: int, model: int) -> Known:
        """A model's score by the old judge (0) or the new (1)."""
        return jackknife(self.sums[:, model], lambda total: float(total[judge] / total[2]))

    def shift(self, model: int) -> Known:
        """New minus old score of a model."""
        return jackknife(self.sums[:, model], lambda t: float((t[1] - t[0]) / t[2]))

    def difference(self, judge: int, a: int, b: int) -> Known:
        """Model a minus model b under one judge, on the same items."""
        return jackknife(
            self.sums[:, [a, b]], lambda t: float(t[0, judge] / t[0, 2] - t[1, judge] / t[1, 2])
        )

    def line(self) -> tuple[Known, Known] | None:
        """(intercept, slope) of the map old = intercept + slope · new over the models, with the
        intervals of new items; None of a single model or equal new scores.
        """
        total = self.sums.sum(axis=0)
        if len(self.models) < 2 or np.ptp(_means(total)[1]) < 1e-9:
            return None
        if len(self.models) <= MOST_MODELS_WITHOUT_SCATTER:
            intercept, slope = _line(total)
            return Known(intercept), Known(slope)
        return fieller(self.sums, _intercept_parts), fieller(self.sums, _slope_parts)

    def published(self, new: float) -> Known | None:
        """A new score on the old scale, with the prediction interval for another model."""
        if self.line() is None:
            return None
        old, scores = _means(self.sums.sum(axis=0))
        if len(self.models) <= MOST_MODELS_WITHOUT_SCATTER:
            intercept, slope = _line(self.sums.sum(axis=0))
            return Known(intercept + slope * new)
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
        old, new = _means(self.sums.sum(axis=0))
        return float(distributions.kendalltau(old, new).statistic)


def _means(total: Floats) -> tuple[Floats, Floats]:
    """Old and new means of every model."""
    return total[:, 0] / total[:, 2], total[:, 1] / total[:, 2]


def _line(total: Floats) -> tuple[float, float]:
    old, new = _means(total)
    slope, intercept = np.polyfit(new, old, 1)
    return float(intercept), float(slope)


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
    frame = pd.DataFrame(rows)
    found = []
    for (benchmark, metric), part in frame.groupby(["benchmark", "metric"], sort=True):
        found.append(_scale(str(benchmark), str(metric), part))
    return found


def _scale(benchmark: str, metric: str, part: pd.DataFrame) -> Scale:
    part = part.assign(old=part["old"].astype(float), new=part["new"].astype(float))
    names = ["model", "cluster", "item"]
    mean = part.groupby(names, sort=True).agg(
        old=("old", "first"),
        new=("new", "mean"),
        first=("first", "first"),
        length=("length", "first"),
    )
    rows = mean.reset_index()
    models = tuple(sorted(rows["model"].unique()))
    items = rows["item"].nunique()
    rows = rows.dropna(subset=["old", "new"])
    counts = rows.groupby("item")["model"].transform("size")
    rows = rows[counts == len(models)].reset_index(drop=True)
    clusters = tuple(sorted(rows["cluster"].unique()))
    sums = np.zeros((len(clusters), len(models), 3))
    where = (
        {name: place for place, name in enumerate(clusters)},
        {m: i for i, m in enumerate(models)},
    )
    for row in rows.itertuples():
        sums[where[0][row.cluster], where[1][row.model]] += (row.old, row.new, 1.0)
    every = part.pivot_table(index=["model", "item"], columns="repeat", values="new", dropna=False)
    noise = rank.judge_noise(every.to_numpy(dtype=float), items=max(1, items))
    left = items - rows["item"].nunique()
    return Scale(benchmark, metric, models, clusters, sums, rows, left, noise)


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
    rows = scale.rows
    if scale.metric == "length_controlled_win_rate":
        return None
    rated = scale.metric == "rating"
    if rated:
        codes = [np.rint(rows[judge].to_numpy()).astype(int) - 1 for judge in ("old", "new")]
        kinds, ties = len(RATINGS), np.zeros(len(rows), dtype=bool)
    else:
        codes = [(rows[judge].to_numpy() > WON).astype(int) for judge in ("old", "new")]
        kinds = 2
        ties = (rows["old"].to_numpy() == WON) | (rows["new"].to_numpy() == WON)
    places = pd.Categorical(rows["cluster"], categories=list(scale.clusters)).codes
    tables = np.zeros((len(scale.clusters), kinds, kinds))
    np.add.at(tables, (places[~ties], codes[0][~ties], codes[1][~ties]), 1.0)
    weights = "quadratic" if rated else None

    def kappa(table: Floats) -> float:
        if len(np.flatnonzero(table.sum(axis=0) + table.sum(axis=1))) < 2:
            return math.nan
        return float(cohens_kappa(table, wt=weights, return_results=False))

    def near(table: Floats) -> float:
        return sum(float(np.trace(table, offset)) for offset in (-1, 0, 1)) / float(table.sum())

    return Agreement(
        jackknife(tables, lambda table: float(np.trace(table) / table.sum())),
        jackknife(tables, kappa),
        jackknife(tables, near) if rated else None,
        int(ties.sum()),
    )


@dataclass(frozen=True)
class Bias:
    """What a judge leans to. first: how much oftener than half the answer shown first wins, in
    points (None without pairs). length: effect of a longer answer, in log-odds of winning per
    standard deviation of the difference's tanh, or in rating points per e-fold of characters.
    """

    first: Known | None
    length: Known | None


def bias(scale: Scale, judge: str) -> Bias:
    """Biases of "old" or "new": a level for every model, standard errors clustered by item."""
    rows = scale.rows
    return Bias(_first(scale, rows, judge), _length(rows, judge, scale.metric == "rating"))


def _first(scale: Scale, rows: pd.DataFrame, judge: str) -> Known | None:
    """Both orders are weighted alike, model by model, so that a model's strength is no bias."""
    shown = rows[rows["first"].notna()]
    if shown.empty or scale.metric != "win_rate":
        return None
    places = pd.Categorical(shown["cluster"], categories=list(scale.clusters)).codes
    model = pd.Categorical(shown["model"], categories=list(scale.models)).codes
    order = shown["first"].astype(bool).astype(int).to_numpy()
    parts = np.zeros((len(scale.clusters), len(scale.models), 2, 2))
    scores = shown[judge].to_numpy(dtype=float)
    np.add.at(parts, (places, model, order), np.column_stack([scores, np.ones_like(scores)]))

    def advantage(total: Floats) -> float:
        means = total[..., 0] / total[..., 1]
        return float((means[:, 1] - means[:, 0]).mean() / 2)

    return jackknife(parts, advantage) if (parts.sum(axis=0)[..., 1] > 1).all() else None


def _length(rows: pd.DataFrame, judge: str, rated: bool) -> Known | None:
    used = rows[rows["length"].notna()]
    length = used["length"].to_numpy(dtype=float)
    if len(used) < 10 or np.ptp(length) == 0:
        return None
    x = np.log(np.maximum(length, 1.0)) if rated else np.tanh(length / length.std(ddof=1))
    design = pd.get_dummies(used["model"], dtype=float).assign(length=x)
    value = used[judge].to_numpy(dtype=float)
    groups = {"groups": pd.factorize(used["cluster"])[0]}
    if rated:
        fit = sm.OLS(value, design).fit(cov_type="cluster", cov_kwds=groups)
    elif np.ptp(value) == 0:
        return None
    else:
        family = sm.families.Binomial()
        fit = sm.GLM(value / 100, design, family=family).fit(cov_type="cluster", cov_kwds=groups)
    low, high = fit.conf_int(alpha=1 - LEVEL).loc["length"]
    return Known(float(fit.params["length"]), float(low), float(high))


# -- tables ----------------------------------------------------------------------------------------
FOLDER = "bridge"
"""Beside the studies, below ``results/``."""
TITLES = {
    "win_rate": "AlpacaEval WR",
    "length_controlled_win_rate": "AlpacaEval LC",
    "rating": "MT-Bench",
}
NOT_PUBLISHED = "‡"
"""Marks what was never judged by the published judge."""


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
    rows, observations = [], []
    for scale in scales:
        shown = _judges(scale)
        for place, (name, known) in enumerate(shown.items()):
            text = known if isinstance(known, str) else known_text(known, 3)
            head = {"measure": TITLES[scale.metric], "what": name}
            rows.append(TableRow({**head, "value": text}, rule=place == 0))
            numbers = _fields("value", None if isinstance(known, str) else known)
            observations.append({**head, "text": text, **numbers})
    left_out = {TITLES[s.metric]: s.left_out for s in scales if s.left_out}
    notes = [
        f"{name}: {count} items without a score of some model by some judge are left out."
        for name, count in left_out.items()
    ]
    if any(len(scale.models) <= MOST_MODELS_WITHOUT_SCATTER for scale in scales):
        notes.append(
            "Two models make a line and leave nothing that says how far another lies from it: a "
            "mapped score has no interval, and neither has the line. Three are needed."
        )
    elif any(len(scale.models) < FEW_MODELS for scale in scales):
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
    title = "The two judges"
    return Table("bridge_judges", title, caption, rows, observations, notes, left=3)


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
            lean = bias(scale, judge)
            if lean.first:
                shown[f"shown first, {judge} judge"] = lean.first
            shown[f"length, {judge} judge"] = lean.length
    line = scale.line()
    shown["map: intercept"] = line and line[0]
    shown["map: slope"] = line and line[1]
    kept, pairs, kept_clear, clear = scale.kept_signs()
    shown["differences of models that keep their sign"] = f"{kept} of {pairs}"
    shown["… of those clear under the old judge"] = f"{kept_clear} of {clear}"
    tau = scale.correlation()
    shown["rank correlation of models (Kendall)"] = number(tau, 3) if tau is not None else "–"
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
            table = _published_scale(data, key, about, scales)
            if table.rows:
                found[key] = table
    return found


def _published_scale(
    data: StudyData, key: str, about: Mapping[str, Any], scales: Sequence[Scale]
) -> Table:
    rows, observations = [], []
    for measure in measures.columns(data, "table_1"):
        scale = next(
            (s for s in scales if (s.benchmark, s.metric) == (measure.benchmark, measure.metric)),
            None,
        )
        if scale is None or measure.part:
            continue
        for checkpoint in data.checkpoints:
            if about["judge"] not in data.identity(checkpoint, measure.benchmark, measure.metric):
                continue
            value = findings.estimate(data, checkpoint, measure).value
            mapped = None if value is None else scale.published(value)
            if value is None or mapped is None:
                continue
            head = {"measure": measure.title, "checkpoint": checkpoint.title}
            cells = {
                "this judge": number(value, measure.digits),
                f"published scale {NOT_PUBLISHED}": known_text(mapped, measure.digits),
            }
            rows.append(TableRow({**head, **cells}))
            observations.append({**head, "value": value, **_fields("mapped", mapped)})
    caption = (
        f"{NOT_PUBLISHED} Not judged by the published judge: the score by {about['judge']} through "
        "the map of its bridge, with the prediction interval for another model. The study's own "
        "noise comes on top. Compare arms under this judge, not here."
    )
    title = f"Scores on the published scale {NOT_PUBLISHED}"
    return Table(key, title, caption, rows, observations, left=2)
