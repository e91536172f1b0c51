"""How far verdicts can be trusted: the judge against itself with the answers in the other order,
and the ranker against the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis import findings, measures, rank
from analysis.layout import layout
from analysis.load import Checkpoint, Stage, StudyData
from analysis.measures import Measure
from analysis.stats import Estimate, mean_over_seeds, one_checkpoint
from analysis.table import Row, Table, Unavailable, unique
from analysis.table_cells import POPULATIONS_NOTE, cell_text
from analysis.tables_judge import share_text
from analysis.text import number
from harness.records import read_jsonl


# -- position --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Flips:
    """Verdicts on the same two answers in both orders. advantage: mean preference for what stands
    second, minus one half (None: unknown).
    """

    pairs: int
    flips: int
    advantage: float | None = None


FLIP_DATA = (
    "benchmark",
    "a",
    "b",
    "answer_pairs",
    "flips",
    "flip_rate",
    "low",
    "high",
    "second_place_advantage",
)


def table_position_flips(data: StudyData) -> Table | Unavailable:
    """How often the judge's verdict changes when the two answers change places, from pairs of
    checkpoints judged in both orders.

    AlpacaEval: "a against b" and "b against a" show each instruction's two answers in opposite
    orders; a flip is a different preferred answer (a tie agrees with a tie only). MT-Bench:
    FastChat's two games. Equal answers are not judged and not counted. Wilson intervals of one pair
    of checkpoints; the rows of all pairs share instructions and get none.
    """
    title = "Position flips of the judge"
    found = [("AlpacaEval", *row) for row in _alpaca_flips(data)] + [
        ("MT-Bench", *row) for row in _mt_bench_flips(data)
    ]
    if not found:
        declared = data.manifest.get("pairwise") or data.manifest.get("pairwise_mt_bench")
        reason = (
            "the pairwise judgments are not stored yet"
            if declared
            else "no two answers were judged in both orders; declare.pairwise lists checkpoints "
            "to judge against one another, in both orders "
            "(declare.pairwise_mt_bench: on MT-Bench too)"
        )
        return Unavailable("position_flips", title, reason)
    rows, numbers = [], []
    for benchmark in dict.fromkeys(row[0] for row in found):
        of = [(a, b, flips) for name, a, b, flips in found if name == benchmark]
        total = Flips(sum(f.pairs for _, _, f in of), sum(f.flips for _, _, f in of), _pooled(of))
        share = number(100 * total.flips / total.pairs, 1) if total.pairs else "–"
        rows.append(
            Row(
                (
                    benchmark,
                    f"all {len(of)}",
                    f"{total.flips} of {total.pairs} ({share} %)",
                    _points(total.advantage),
                ),
                True,
            )
        )
        rows += [
            Row(
                (
                    benchmark,
                    f"{a} and {b}",
                    share_text(rank.proportion(f.flips, f.pairs)),
                    _points(f.advantage),
                )
            )
            for a, b, f in of
        ]
        for a, b, f in of:
            p = rank.proportion(f.flips, f.pairs)
            numbers.append((benchmark, a, b, f.pairs, f.flips, p.share, p.low, p.high, f.advantage))
    caption = (
        "The same two answers shown in both orders: how many verdicts change, of how many answer "
        "pairs (Wilson interval for one pair of "
        "checkpoints; all pairs share their questions, so their sum has none). Advantage: mean "
        "preference for the second place, minus one half."
    )
    columns = ("benchmark", "checkpoints", "flips", "advantage of the second place [points]")
    note = (
        "The benchmarks show every two answers once, in an order drawn for each instruction: "
        "there a flip is noise in a single verdict, and a liking "
        "for one place averages out over instructions."
    )
    return Table(
        "position_flips",
        title,
        caption,
        columns,
        tuple(rows),
        FLIP_DATA,
        tuple(numbers),
        (note,),
        left=2,
    )


def _points(advantage: float | None) -> str:
    return number(None if advantage is None else 100 * advantage, 1, sign=True)


def _pooled(rows: Sequence[tuple[str, str, Flips]]) -> float | None:
    known = [(f.advantage, f.pairs) for _, _, f in rows if f.advantage is not None]
    return sum(a * n for a, n in known) / sum(n for _, n in known) if known else None


def _alpaca_flips(data: StudyData) -> list[tuple[str, str, Flips]]:
    stages = {
        (str(p["a"]), str(p["b"])): data.stages.get(str(p["key"]))
        for p in data.manifest.get("pairwise") or []
    }
    found = []
    places = {pair: place for place, pair in enumerate(stages)}
    for (a, b), stage in stages.items():
        if places[a, b] < places.get(
            (b, a), -1
        ):  # each two checkpoints once, and only where both orders were asked for
            first, second = _verdicts(stage), _verdicts(stages[b, a])
            if first and second:
                found.append((data.title_of(a), data.title_of(b), flips_of(first, second)))
    return found


def _verdicts(stage: Stage | None) -> dict[str, tuple[float, bool]]:
    """Instruction → (preference for b, 1..2; whether b was shown first), first repeat."""
    path = (
        stage.folder / "judgments.jsonl" if stage and stage.state in ("done", "partial") else None
    )
    if path is None or not path.is_file():
        return {}
    rows = [
        row
        for row in read_jsonl(path)
        if row.get("repeat", 0) == 0 and isinstance(row.get("preference"), (int, float))
    ]
    return {str(row["id"]): (float(row["preference"]), bool(row.get("switched"))) for row in rows}


def flips_of(
    first: Mapping[str, tuple[float, bool]], second: Mapping[str, tuple[float, bool]]
) -> Flips:
    """``first``: verdicts of "b against a", ``second``: of "a against b". Only instructions whose
    two showings differ in order count.
    """
    count, flips, advantage = 0, 0, 0.0
    for name in sorted(set(first) & set(second)):
        (p, b_first), (q, a_first) = first[name], second[name]
        if (
            b_first != a_first
            # not switched: a first, b first; switched: b first, a first. Otherwise the same answer
            # came
            # first twice
        ):
            continue
        count += 1
        flips += _better(p) != _better(3.0 - q)
        seconds = (2.0 - p, 2.0 - q) if b_first else (p - 1.0, q - 1.0)
        advantage += (seconds[0] + seconds[1]) / 2.0 - 0.5
    return Flips(count, flips, advantage / count if count else None)


def _better(preference: float) -> int:
    return 0 if preference == 1.5 else 1 + int(preference > 1.5)


def _mt_bench_flips(data: StudyData) -> list[tuple[str, str, Flips]]:
    found = []
    for pair in data.manifest.get("pairwise_mt_bench") or []:
        stage = data.stages.get(str(pair["key"]))
        outcomes: Mapping[str, int] = (
            (stage.summary.get("outcomes") or {}) if stage and stage.state == "done" else {}
        )
        pairs = sum(int(outcomes.get(name, 0)) for name in ("a", "b", "tie", "inconsistent"))
        if pairs:
            found.append(
                (
                    data.title_of(str(pair["a"])),
                    data.title_of(str(pair["b"])),
                    Flips(pairs, int(outcomes.get("inconsistent", 0))),
                )
            )
    return found


# -- ranker against judge --------------------------------------------------------------------------
RANKER = ("ranker_alpaca_eval", "reward_difference")
"""Benchmark and metric of the ranker's reward of an answer minus that of the baseline's answer to
the same instruction.
"""
RANKER_DATA = (
    "kind",
    "checkpoint",
    "arm",
    "iteration",
    "disagreement",
    "A_low",
    "A_high",
    "B_low",
    "B_high",
    "items_low",
    "items_high",
    "ties",
    "n",
    "seeds",
)
DISAGREEMENT = Measure("disagreement", *RANKER, "percent", 1, better=0, scale=measures.PERCENT)


def table_ranker_judge(data: StudyData) -> Table | Unavailable:
    """How often ranker (what training optimises) and judge (what is reported) disagree, in percent;
    ties of either count one half.

    Items: AlpacaEval instructions on which the ranker prefers the baseline's answer and the judge
    the model's, or the other way; intervals as for any score. Checkpoints: pairs of checkpoints of
    one seed that held-out reward (sampled) and win rate put in different orders.
    """
    title = "Ranker against judge"
    rows, numbers = [], []
    for checkpoint in data.checkpoints:
        estimate, ties = disagreement(data, checkpoint)
        if estimate is None:
            continue
        ends = [
            getattr(estimate.intervals.get(p), end, None)
            for p in ("A", "B", "items")
            for end in ("low", "high")
        ]
        place = ("items", checkpoint.title, checkpoint.arm, checkpoint.iteration)
        numbers.append((*place, estimate.value, *ends, ties, estimate.clusters, estimate.seeds))
        if checkpoint.iteration in (0, data.own_last(checkpoint.arm)):
            rows.append(
                Row(
                    (
                        checkpoint.title,
                        cell_text(estimate, DISAGREEMENT),
                        str(ties),
                        f"{estimate.seeds} × {estimate.clusters}",
                    )
                )
            )
    by_item = bool(rows)
    apart, ties, pairs = orders(data)
    if pairs:
        share = 100 * (apart + ties / 2) / pairs
        rows.append(
            Row(("order of checkpoints", number(share, 1), str(ties), f"{pairs} pairs"), True)
        )
        numbers.append(
            ("checkpoints", "", "", None, share, *[None] * 6, ties, pairs, len(data.seeds))
        )
    ask = "set evaluation.rank_alpaca_eval: true to have the ranker score AlpacaEval's answers"
    if not rows:
        return Unavailable(
            "ranker_judge",
            title,
            f"ranker and judge have not scored the same checkpoints yet; item by item: {ask}",
        )
    caption = (
        "Disagreement in percent (50: unrelated), ties one half. Items: AlpacaEval instructions "
        "on which one prefers the model's answer and the "
        "other the baseline's. Order of checkpoints: pairs of checkpoints of one seed, held-out "
        "reward (sampled) against AlpacaEval WR."
    )
    notes = [POPULATIONS_NOTE] if by_item else [f"Item by item the disagreement is unknown: {ask}."]
    notes += (
        ["Pairs of checkpoints share checkpoints, so their share has no interval."] if pairs else []
    )
    columns = ("checkpoint", "disagreement [percent]", "ties", "n")
    return Table(
        "ranker_judge",
        title,
        caption,
        columns,
        tuple(rows),
        RANKER_DATA,
        tuple(numbers),
        unique(notes),
    )


def disagreement(data: StudyData, checkpoint: Checkpoint) -> tuple[Estimate | None, int]:
    """Estimate of the share of instructions on which ranker and judge disagree, and the number of
    ties; None where nothing was ranked.
    """
    seeds, items, values, ties = [], [], [], 0
    for run in checkpoint.runs:
        ranked = data.rows(run.name, checkpoint.iteration, *RANKER)
        judged = data.rows(
            run.name, checkpoint.iteration, measures.WR.benchmark, measures.WR.metric
        )
        verdicts = (
            judged.assign(item=judged["item"].astype(str))
            .groupby("item")["value"]
            .apply(lambda v: v.mean(skipna=False))
        )
        for item, reward in zip(ranked["item"].astype(str), ranked["value"], strict=True):
            win = verdicts.get(item, np.nan)
            known = not (np.isnan(reward) or np.isnan(win))
            product = np.sign(reward) * np.sign(win - 50.0)
            ties += bool(known and product == 0)
            seeds.append(run.seed)
            items.append(item)
            values.append(50.0 * (1.0 - product) if known else np.nan)
    if not values:
        return None, 0
    cell = layout(seeds, items, np.array(values), measures.PERCENT)
    bar = findings.bar(data)
    return (
        one_checkpoint(cell, bar=bar) if len(cell.seeds) == 1 else mean_over_seeds(cell, bar=bar)
    ), ties


def orders(data: StudyData) -> tuple[int, int, int]:
    """Pairs of checkpoints of one seed that held-out reward and win rate order differently; pairs
    tied in either; all pairs.
    """
    reward = measures.heldout(data, sampled=True)
    apart, ties, pairs = 0, 0, 0
    both = [
        (measures.points(data, c, reward), measures.points(data, c, measures.WR))
        for c in data.checkpoints
    ]
    for seed in data.seeds:
        xy = np.array([(x[seed], y[seed]) for x, y in both if seed in x and seed in y]).reshape(
            -1, 2
        )
        i, j = np.triu_indices(len(xy), 1)
        signs = np.sign(xy[i] - xy[j]).prod(axis=1)
        apart, ties, pairs = (
            apart + int((signs < 0).sum()),
            ties + int((signs == 0).sum()),
            pairs + len(signs),
        )
    return apart, ties, pairs
