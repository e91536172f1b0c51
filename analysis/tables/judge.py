"""The judge's verdicts, noise and position, beside the ranker, and AlpacaEval's summaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import measures, rank
from analysis.layout import layout
from analysis.load import RANKER_DIFFERENCES, Checkpoint, Stage, StudyData
from analysis.measures import Measure
from analysis.rank import Proportion, proportion
from analysis.stats import Estimate, mean_over_seeds, one_checkpoint
from analysis.table import (
    POPULATIONS_NOTE,
    Observation,
    Table,
    TableRow,
    Unavailable,
    cell_text,
    ends,
    judged,
)
from analysis.text import number
from harness.records import read_jsonl


# -- position --------------------------------------------------------------------------------------
def table_position_flips(data: StudyData) -> Table | Unavailable:
    """How often the judge's verdict changes when the two answers change places, from pairs of
    checkpoints judged in both orders.

    AlpacaEval: "a against b" and "b against a" show each instruction's two answers in opposite
    orders; a flip is a different preferred answer (a tie agrees with a tie only). Equal answers are
    not judged and not counted. Wilson intervals of one pair of checkpoints; the row of all pairs,
    which share instructions, gets none.
    """
    title = "Position flips of the judge"
    observations = _flips(data)
    if not observations:
        reason = "the pairwise judgments are not stored yet"
        if not data.manifest["pairwise"]:
            reason = (
                "no two answers were judged in both orders; declare.pairwise lists checkpoints to "
                "judge against one another, in both orders"
            )
        return Unavailable("position_flips", title, reason)
    flips, pairs = (sum(told[name] for told in observations) for name in ("flips", "answer_pairs"))
    known = [told for told in observations if told["second_place_advantage"] is not None]
    weighed = sum(told["second_place_advantage"] * told["answer_pairs"] for told in known)
    advantage = weighed / sum(told["answer_pairs"] for told in known) if known else None
    percent = number(100 * flips / pairs, 1) if pairs else "–"
    shown = [(f"all {len(observations)}", f"{flips} of {pairs} ({percent} %)", advantage)]
    for told in observations:
        text = share_text(proportion(told["flips"], told["answer_pairs"]))
        shown.append((f"{told['a']} and {told['b']}", text, told["second_place_advantage"]))
    rows = [
        TableRow(
            {
                "benchmark": "AlpacaEval",
                "checkpoints": where,
                "flips": text,
                "advantage of the second place [points]": number(
                    None if second is None else 100.0 * second, 1, sign=True
                ),
            }
        )
        for where, text, second in shown
    ]
    caption = (
        "The same two answers shown in both orders: how many verdicts change, of how many answer "
        "pairs (Wilson interval for one pair of checkpoints; all pairs share their questions, so "
        "their sum has none). Advantage: mean preference for the second place, minus one half."
    )
    note = (
        "The benchmarks show every two answers once, in an order drawn for each instruction: there "
        "a flip is noise in a single verdict, and a liking for one place averages out over "
        "instructions."
    )
    return Table("position_flips", title, caption, rows, observations, [note], left=2)


def _flips(data: StudyData) -> list[Observation]:
    """An observation for every pair of checkpoints that was judged in both orders."""
    keys = {
        (str(pair["a"]), str(pair["b"])): str(pair["key"]) for pair in data.manifest["pairwise"]
    }
    found: list[Observation] = []
    order = list(keys)
    for place, (a, b) in enumerate(order):
        if (b, a) not in order[place + 1 :]:  # once, and only where both orders were asked for
            continue
        first, second = (_verdicts(data.stages.get(keys[of])) for of in ((a, b), (b, a)))
        if first and second:
            pairs, flips, advantage = flips_of(first, second)
            rate = proportion(flips, pairs)
            found.append(
                {
                    "benchmark": "AlpacaEval",
                    "a": data.title_of(a),
                    "b": data.title_of(b),
                    "answer_pairs": pairs,
                    "flips": flips,
                    "flip_rate": rate.share,
                    "low": rate.low,
                    "high": rate.high,
                    "second_place_advantage": advantage,
                }
            )
    return found


def _verdicts(stage: Stage | None) -> dict[str, tuple[float, bool]]:
    """Instruction → (preference for b, 1..2; whether b was shown first), first repeat."""
    path = stage.file("judgments.jsonl") if stage else None
    return {
        str(row["id"]): (float(row["preference"]), bool(row.get("switched")))
        for row in (read_jsonl(path) if path else ())
        if row.get("repeat", 0) == 0 and isinstance(row.get("preference"), (int, float))
    }


def flips_of(
    first: Mapping[str, tuple[float, bool]], second: Mapping[str, tuple[float, bool]]
) -> tuple[int, int, float | None]:
    """Pairs of answers shown in both orders, verdicts that change, and the mean preference for what
    stands second, minus one half (None: unknown). ``first``: "b against a", ``second``: "a against
    b"; showings in one order do not count.
    """
    count, flips, advantage = 0, 0, 0.0
    for name in sorted(set(first) & set(second)):
        (p, b_first), (q, a_first) = first[name], second[name]
        if b_first != a_first:  # then the same answer came first in both showings
            continue
        count += 1
        flips += bool(np.sign(p - 1.5) != np.sign(1.5 - q))
        seconds = (2.0 - p, 2.0 - q) if b_first else (p - 1.0, q - 1.0)
        advantage += (seconds[0] + seconds[1]) / 2.0 - 0.5
    return count, flips, advantage / count if count else None


# -- ranker against judge --------------------------------------------------------------------------
DISAGREEMENT = Measure(
    "disagreement", RANKER_DIFFERENCES, "reward_difference", "percent", digits=1, better=0
)
"""Rows: the ranker's reward of an answer minus that of the baseline's answer."""
ORDER = "order of checkpoints"


def table_ranker_judge(data: StudyData) -> Table | Unavailable:
    """How often ranker (what training optimises) and judge (what is reported) disagree, in percent;
    ties of either count one half.

    Items: AlpacaEval instructions on which the ranker prefers the baseline's answer and the judge
    the model's, or the other way; intervals as for any score. Checkpoints: pairs of checkpoints of
    one seed that held-out reward (sampled) and win rate put in different orders.
    """
    title = "Ranker against judge"
    rows: list[TableRow] = []
    observations: list[Observation] = []
    numbers = [f"{name}_{end}" for name in ("A", "B", "items") for end in ("low", "high")]

    def row(what: str, shown: str, ties: int, n: str) -> TableRow:
        cells = {"checkpoint": what, "disagreement [percent]": shown, "ties": str(ties), "n": n}
        return TableRow(cells, rule=what == ORDER)

    for checkpoint in data.checkpoints:
        estimate, ties = disagreement(data, checkpoint)
        if estimate is None:
            continue
        told = {"disagreement": estimate.value, **ends(estimate, "A", "B", "items"), "ties": ties}
        sizes = {"n": estimate.clusters, "seeds": estimate.seeds}
        observations.append({"kind": "items", **checkpoint.place, **told, **sizes})
        if data.is_end(checkpoint):
            n = f"{estimate.seeds} × {estimate.clusters}"
            rows.append(row(checkpoint.title, cell_text(estimate, DISAGREEMENT), ties, n))
    ask = "set evaluation.rank_alpaca_eval: true to have the ranker score AlpacaEval's answers"
    notes = [POPULATIONS_NOTE] if rows else [f"Item by item the disagreement is unknown: {ask}."]
    apart, ties, pairs = orders(data)
    if pairs:
        share = 100 * (apart + ties / 2) / pairs
        rows.append(row(ORDER, number(share, 1), ties, f"{pairs} pairs"))
        told = {"kind": "checkpoints", "checkpoint": "", "arm": "", "iteration": None}
        told |= {"disagreement": share, **dict.fromkeys(numbers), "ties": ties}
        observations.append({**told, "n": pairs, "seeds": len(data.seeds)})
        notes.append("Pairs of checkpoints share checkpoints, so their share has no interval.")
    if not rows:
        reason = f"ranker and judge have not scored the same checkpoints yet; item by item: {ask}"
        return Unavailable("ranker_judge", title, reason)
    caption = (
        "Disagreement in percent (50: unrelated), ties one half. Items: AlpacaEval instructions on "
        "which one prefers the model's answer and the other the baseline's. Order of checkpoints: "
        "pairs of checkpoints of one seed, held-out reward (sampled) against AlpacaEval WR."
    )
    return Table("ranker_judge", title, caption, rows, observations, notes)


def disagreement(data: StudyData, checkpoint: Checkpoint) -> tuple[Estimate | None, int]:
    """Share of instructions on which they disagree, and ties; None where none was ranked."""
    parts = []
    for run in checkpoint.runs:
        ranked, judged = (
            data.rows(run.name, checkpoint.iteration, *of).astype({"item": str})
            for of in ((DISAGREEMENT.benchmark, DISAGREEMENT.metric), measures.WIN_RATE.split("."))
        )
        wins = judged.groupby("item")["value"].agg(lambda repeats: repeats.mean(skipna=False))
        win = wins.reindex(ranked["item"]).to_numpy(dtype=float)
        product = np.sign(ranked["value"]) * np.sign(win - 50.0)
        parts.append(ranked.assign(seed=run.seed, product=product))
    every = pd.concat(parts)
    if every.empty:
        return None, 0
    values = 50.0 * (1.0 - every["product"].to_numpy(dtype=float))
    cell = layout(every["seed"].to_numpy(), every["item"].to_numpy(), values, measures.PERCENT)
    estimate = one_checkpoint if len(cell.seeds) == 1 else mean_over_seeds
    return estimate(cell, min_complete=data.min_complete), int((every["product"] == 0).sum())


def orders(data: StudyData) -> tuple[int, int, int]:
    """Pairs of a seed's checkpoints ordered differently; tied in either; all."""
    both = (
        measures.heldout(data, sampled=True),
        measures.find(data, *measures.WIN_RATE.split(".")),
    )
    points = [[measures.points(data, c, measure) for measure in both] for c in data.checkpoints]
    signs = []
    for seed in data.seeds:
        xy = np.array([(x[seed], y[seed]) for x, y in points if seed in x and seed in y])
        i, j = np.triu_indices(len(xy), 1)
        if len(i):
            signs.append(np.sign(xy[i] - xy[j]).prod(axis=1))
    every = np.concatenate([np.empty(0), *signs])
    return int((every < 0).sum()), int((every == 0).sum()), len(every)


# -- verdicts and noise ----------------------------------------------------------------------------
FLAGGED = ("truncated", "neutralised", "fastchat_reads_otherwise", "verdicts_cut_off")
"""Lists of items in a judged benchmark's summary."""


def table_judge(data: StudyData) -> Table | Unavailable:
    """By arm, all its iterations and seeds together: verdicts not read, answers that were cut or
    defused, noise of repeated judgments.

    Unparsed: k of the verdicts that came, Wilson interval. sd: of one judgment, pooled within items
    (``rank.judge_noise``); floors: standard error that the judge alone gives a mean over the
    benchmark's items judged once, and a difference of two such means (√2 larger).
    """
    held = set(data.metrics())
    shown: list[tuple[dict[str, str], Measure, dict[str, Any], bool]] = []
    observations = []
    for title, measure in judged(data).items():
        of = (measure.benchmark, measure.metric)
        if of not in held:
            continue
        for checkpoint in data.checkpoints:
            told = _judging(data, measure, [checkpoint])
            observations.append({"benchmark": measure.benchmark, **checkpoint.place, **told})
        arms: dict[str, list[Checkpoint]] = {}
        for checkpoint in data.checkpoints:
            if data.cell(checkpoint, *of).statuses:
                arms.setdefault(checkpoint.label, []).append(checkpoint)
        for place, (label, there) in enumerate(arms.items()):
            head = {"benchmark": title, "arm": label}
            shown.append((head, measure, _judging(data, measure, there), place == 0))
    if not shown:
        return Unavailable("judge", "The judge", "no judged benchmark is stored yet")
    caption = (
        "All iterations and seeds of an arm together; by checkpoint in the CSV. Not read: k of n "
        "verdicts, with Wilson interval; how many of them because the judge's reply was cut off "
        "twice, and how many it refused. Answers cut off: verdicts on an answer, or on a turn "
        "after one, that ended at the limit; judged all the same. "
        "Defused: held verdict syntax or the judge prompt's delimiters."
    )
    known = any(told["df"] for told in observations)
    note = (
        "No item was judged twice, so the judge's noise is unknown; set judge.repeats above 1 to "
        "measure it."
    )
    if known:
        caption += (
            " Noise: what the judge alone adds, in the benchmark's unit, to one judgment, to a "
            "mean over its items and to a difference."
        )
        note = (
            "A difference below its floor may be the judge's noise alone, with these very answers."
        )
    rows = [
        TableRow(head | _judge_cells(told, measure, known), rule)
        for head, measure, told, rule in shown
    ]
    return Table("judge", "The judge", caption, rows, observations, [note], left=2)


def _judging(
    data: StudyData, measure: Measure, checkpoints: Sequence[Checkpoint]
) -> dict[str, Any]:
    statuses, flagged = Counter[str](), Counter[str]()
    repeats: list[pd.DataFrame] = []
    for checkpoint in checkpoints:
        statuses.update(data.cell(checkpoint, measure.benchmark, measure.metric).statuses)
        for run in checkpoint.runs:
            of = (checkpoint.iteration, measure.benchmark)
            summary = data.summary(run, *of)
            flagged.update({name: len(summary.get(name) or ()) for name in FLAGGED})
            rows = data.rows(run.name, *of, measure.metric)
            if len(rows):  # items × repeats, NaN where missing
                rows = rows.assign(item=rows["item"].astype(str))
                repeats.append(rows.pivot(index="item", columns="repeat", values="value"))
    came = sum(statuses[name] for name in ("ok", "unparsed", "refused"))
    unread = proportion(statuses["unparsed"], came)
    every = pd.concat(repeats).to_numpy(dtype=float) if repeats else np.empty((0, 1))
    noise = rank.judge_noise(every, items=max(map(len, repeats), default=1))
    return {
        "unparsed": unread.k,
        "asked": unread.n,
        "unparsed_low": unread.low,
        "unparsed_high": unread.high,
        "verdicts_cut_off": flagged["verdicts_cut_off"],
        "verdicts_refused": statuses["refused"],
        "truncated_answers": flagged["truncated"],
        "neutralised_answers": flagged["neutralised"],
        "fastchat_reads_otherwise": flagged["fastchat_reads_otherwise"],
        "judgment_sd": noise.sd,
        "judgment_sd_low": noise.low,
        "judgment_sd_high": noise.high,
        "floor_mean": noise.floor,
        "floor_difference": noise.floor_difference,
        "items_judged_twice": noise.changed.n,
        "items_unequal": noise.changed.k,
        "df": noise.df,
    }


def _judge_cells(told: Mapping[str, Any], measure: Measure, known: bool) -> dict[str, str]:
    """Cells of an arm, by column. known: whether the study says anything of the judge's noise."""
    fastchat, digits = str(told["fastchat_reads_otherwise"]), measure.digits
    cells = {
        "verdicts not read": share_text(proportion(told["unparsed"], told["asked"])),
        "cut off, refused": f"{told['verdicts_cut_off']}, {told['verdicts_refused']}",
        "answers cut off": str(told["truncated_answers"]),
        "answers defused": str(told["neutralised_answers"]),
        "read otherwise by FastChat": fastchat if measure.benchmark == "mt_bench" else "–",
    }
    if not known:
        return cells
    low, high, sd = (number(told[f"judgment_sd{end}"], digits) for end in ("_low", "_high", ""))
    return cells | {
        "repeats unequal": f"{told['items_unequal']} of {told['items_judged_twice']}",
        "sd of a judgment (95 %)": "–" if told["judgment_sd"] is None else f"{sd} ({low}–{high})",
        "floor of a mean": number(told["floor_mean"], digits),
        "floor of a difference": number(told["floor_difference"], digits),
    }


def share_text(share: Proportion) -> str:
    """ "3 of 144 (0.7–5.9 %)", or a dash where nothing was counted."""
    if share.low is None or share.high is None:
        return "–"
    return f"{share.k} of {share.n} ({number(100 * share.low, 1)}–{number(100 * share.high, 1)} %)"


# -- AlpacaEval's summary --------------------------------------------------------------------------
FLAGS = {
    "no_scored_rows": "no row scored",
    "no_gamed_baseline": "no gamed baselines: no length-controlled win rate",
    "too_few_rows": "under 10 rows: LC is the plain win rate",
    "no_length_variance": "all length differences equal: LC is the plain win rate",
    "constant_preference": "constant preference: LC is the plain win rate",
    "constant_answers": "most answers are one text",
    "penalised_to_nothing": "the library's penalty left no coefficient: LC 50 measures nothing",
}
"""What the benchmark's stage flags, in words."""
FEW, FEW_INSTRUCTIONS = "few_instructions", 100
"""Below it the LC jackknife, checked by simulation on hundreds, is flagged."""
SUMMARY = {
    "length_controlled_win_rate": ("LC", "length_controlled_win_rate", 2),
    "lc_standard_error": ("jackknife SE", "jackknife_se", 2),
    "lc_standard_error_library": ("library's SE", "library_se", 2),
    "win_rate": ("WR", "win_rate", 2),
    "standard_error": ("SE of WR", "win_rate_se", 2),
    "avg_length": ("length", "mean_length", 0),
}
"""Number in the stage's summary → column, field of the observation, digits."""


def table_alpaca_eval(data: StudyData) -> Table | Unavailable:
    """What the benchmark's summaries say of single checkpoints: n, standard errors over
    instructions, flags.

    jackknife SE: sd of the delete-one-instruction pseudo-values / √n, percent points, of one
    checkpoint (what (B) rests on); library SE: AlpacaEval's own, the spread of predictions over
    items, about half the true one. Means over the seeds of a checkpoint.
    """
    title, rows, observations = "AlpacaEval: standard errors and flags", [], []
    for checkpoint in data.checkpoints:
        found = [
            {**checkpoint.place, "seed": run.seed, **_alpaca_numbers(summary)}
            for run in checkpoint.runs
            if (summary := data.summary(run, checkpoint.iteration, "alpaca_eval"))
        ]
        observations += found
        raised = Counter(flag for told in found for flag in told["flags"].split(";"))
        flags = {name: raised[name] for name in sorted(raised) if name not in ("", FEW)}
        if not found or not (flags or data.is_end(checkpoint)):
            continue
        scored, expected = (
            sum(int(told[name] or 0) for told in found) for name in ("scored", "expected")
        )
        line = {"checkpoint": checkpoint.title, "scored": f"{scored} of {expected}"}
        for head, field, digits in SUMMARY.values():
            known = [told[field] for told in found if isinstance(told[field], (int, float))]
            line[head] = number(float(np.mean(known)) if known else None, digits)
        said = [
            f"{FLAGS.get(name, name.replace('_', ' '))} ({count} of {len(found)} seeds)"
            for name, count in flags.items()
        ]
        rows.append(TableRow({**line, "flags": "; ".join(said) or "none"}))
    if not observations:
        return Unavailable("alpaca_eval", title, "no AlpacaEval judgments are stored yet")
    caption = (
        "Base, last iterations, and whatever is flagged; every checkpoint and seed in the CSV. "
        "Means over seeds, percent (length: characters). Standard errors are of one checkpoint "
        "over new instructions."
    )
    notes = [
        "The library's standard error is the spread of predictions over items, about half the true "
        "one; no interval here rests on it."
    ]
    few = sum(told["flags"].endswith(FEW) for told in observations)
    if few:
        notes.append(
            f"{few} sets have under {FEW_INSTRUCTIONS} scored instructions: their "
            "length-controlled intervals are less sure than they look."
        )
    return Table("alpaca_eval", title, caption, rows, observations, notes)


def _alpaca_numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    flags = list(summary.get("flags", ()))
    flags += ["penalised_to_nothing"] * measures.penalised_to_nothing(summary)
    flags += [FEW] * ((summary.get("n_total") or 0) < FEW_INSTRUCTIONS)
    return {
        "scored": summary.get("n_total"),
        "expected": summary.get("expected"),
        **{field: summary.get(name) for name, (_, field, _) in SUMMARY.items()},
        **{name: len(summary.get(name) or ()) for name in ("truncated", "neutralised")},
        "comparable": summary.get("comparable"),
        "flags": ";".join(flags),
    }
