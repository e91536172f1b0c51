"""Tables of a bridge between two judges, and a study's scores on the published scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import bridge, findings, measures
from analysis.bridge import Known, Scale
from analysis.load import StudyData
from analysis.table import Table, TableRow
from analysis.text import number

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
    if any(len(scale.models) <= bridge.MOST_MODELS_WITHOUT_SCATTER for scale in scales):
        notes.append(
            "Two models make a line and leave nothing that says how far another lies from it: a "
            "mapped score has no interval. Three are needed, more are better."
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
    agreed = bridge.agreement(scale)
    if agreed:
        shown |= {"agreement on items": agreed.share, "kappa": agreed.kappa}
        if agreed.near:
            shown["ratings at most one apart"] = agreed.near
        if agreed.ties:
            shown["ties, left out of agreement"] = str(agreed.ties)
        for judge in ("old", "new"):
            lean = bridge.bias(scale, judge)
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
    """The scores of a study whose judge has a bridge below ``results``, on the published scale;
    nothing of another.
    """
    held = {str(name) for name in data.scores["judge"].unique()} - {""}
    found: dict[str, Table] = {}
    for path in sorted((results / FOLDER).glob(f"*/{bridge.FILE}")):
        about, scales = bridge.read(path)
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
