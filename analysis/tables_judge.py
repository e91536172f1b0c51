"""Tables about the judge: verdicts it did not give, its noise, and what AlpacaEval's own summaries
say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import cells as comparable
from analysis import findings, measures, rank
from analysis.cells import POPULATIONS_NOTE, cell_text
from analysis.layout import layout
from analysis.load import Checkpoint, Stage, StudyData, stage_of
from analysis.measures import Measure
from analysis.rank import proportion
from analysis.stats import Estimate, mean_over_seeds, one_checkpoint
from analysis.table import Row, Table, Unavailable, unique
from analysis.text import number
from harness.records import read_jsonl


def judge_table(judge: str, source: str, repeats: int, found: Mapping[str, Any]) -> Table:
    """``found``: the result of a meta-evaluation ("agreement", "position", "noise", "costs").
    Shares in percent, with Wilson intervals where they are counts.
    """
    agree, position, noise, costs = (
        found[name] for name in ("agreement", "position", "noise", "costs")
    )
    flips = proportion(int(position["flips"]), int(position["pairs"]))
    wilson = f" ({_share(flips.low)}–{_share(flips.high)})" if flips.low is not None else ""
    rows = [
        ("agreement with the labels, both orders", _share(agree["accuracy"])),
        (
            "agreement, first order / flipped order",
            f"{_share(agree['accuracy_usual'])} / {_share(agree['accuracy_flipped'])}",
        ),
        ("agreement, the two orders averaged", _share(agree["accuracy_averaged"])),
        ("agreement of always naming the commoner label", _share(agree["majority_label_share"])),
        ("position-flip rate", _share(position["flip_rate"]) + wilson),
        (
            "advantage of the second place [points]",
            _share(position["second_place_advantage"], sign=True),
        ),
        ("noise floor: sd of one repeated verdict [points]", _share(noise["sd"])),
        ("noise floor: sd of the mean of the set [points]", _share(noise["sd_of_mean"])),
        ("verdicts equal in every repeat", _share(noise["unanimous_share"])),
        ("pairs without a verdict in both orders", f"{agree['missing']} of {agree['pairs']}"),
        ("judge calls; prompt and answer tokens; USD", _costs(costs)),
    ]
    caption = (
        f"{agree['pairs']} pairs of {source}, each shown in both orders, judged {repeats} "
        f"time{'s' if repeats > 1 else ''}. Percent."
    )
    note = "The noise floor needs two or more repeats (--repeats 2)." if noise["sd"] is None else ""
    data = tuple(
        (group, name, value)
        for group in ("agreement", "position", "noise", "costs")
        for name, value in found[group].items()
    )
    shown = tuple(Row(row) for row in rows)
    return Table(
        "meta_judge",
        f"The judge {judge}",
        caption,
        ("measure", "value"),
        shown,
        ("group", "name", "value"),
        data,
        (note,) if note else (),
    )


def _share(value: float | None, *, sign: bool = False) -> str:
    return number(None if value is None else 100.0 * value, 1, sign=sign)


def _costs(costs: Mapping[str, float]) -> str:
    names = ("judge_calls", "judge_prompt_tokens", "judge_completion_tokens")
    calls, prompt, completion = (f"{costs.get(name, 0):,.0f}" for name in names)
    return f"{calls}; {prompt} and {completion}; {costs.get('judge_usd', 0.0):.2f}"


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


def _groups(data: StudyData, measure: Measure) -> dict[str, list[Checkpoint]]:
    """Label of a base or an arm → its checkpoints that hold rows of the measure, in study order."""
    found: dict[str, list[Checkpoint]] = {}
    for checkpoint in data.checkpoints:
        if data.cell(checkpoint, measure.benchmark, measure.metric).statuses:
            found.setdefault(checkpoint.label, []).append(checkpoint)
    return found


# -- verdicts and noise ----------------------------------------------------------------------------
JUDGE_DATA = (
    "benchmark",
    "checkpoint",
    "arm",
    "iteration",
    "unparsed",
    "asked",
    "unparsed_low",
    "unparsed_high",
    "truncated_answers",
    "neutralised_answers",
    "fastchat_reads_otherwise",
    "judgment_sd",
    "judgment_sd_low",
    "judgment_sd_high",
    "floor_mean",
    "floor_difference",
    "items_judged_twice",
    "items_unequal",
    "df",
)


def table_judge(data: StudyData) -> Table | Unavailable:
    """By arm, all its iterations and seeds together: verdicts not read, answers that were cut or
    defused, noise of repeated judgments.

    Unparsed: k of the verdicts that came, Wilson interval. sd: of one judgment, pooled within items
    (``rank.judge_noise``); floors: standard error that the judge alone gives a mean over the
    benchmark's items judged once, and a difference of two such means (√2 larger).
    """
    judged = [m for m in (measures.MT, measures.WR) if (m.benchmark, m.metric) in data.metrics()]
    if not judged:
        return Unavailable("judge", "The judge", "no judged benchmark is stored yet")
    rows: list[tuple[tuple[str, ...], bool]] = []
    numbers = []
    for measure in judged:
        for place, (label, checkpoints) in enumerate(_groups(data, measure).items()):
            rows.append(
                (
                    (
                        comparable.JUDGED[measure.benchmark][0],
                        label,
                        *_judge_cells(data, measure, checkpoints),
                    ),
                    place == 0,
                )
            )
        for checkpoint in data.checkpoints:
            numbers.append(
                (
                    measure.benchmark,
                    checkpoint.title,
                    checkpoint.arm,
                    checkpoint.iteration,
                    *_judge_numbers(data, measure, [checkpoint]),
                )
            )
    known = any(row[JUDGE_DATA.index("df")] for row in numbers)
    columns = (
        "benchmark",
        "arm",
        "verdicts not read",
        "answers cut off",
        "answers defused",
        "read otherwise by FastChat",
    )
    noise = (
        "repeats unequal",
        "sd of a judgment (95 %)",
        "floor of a mean",
        "floor of a difference",
    )
    caption = (
        "All iterations and seeds of an arm together; by checkpoint in the CSV. Not read: k of n "
        "verdicts, with Wilson interval. Cut off: at the "
        "limit of new tokens, judged all the same. Defused: held verdict syntax or the judge "
        "prompt's delimiters."
    )
    if known:
        caption += (
            " Noise: what the judge alone adds, in the benchmark's unit, to one judgment, to "
            "a mean over its items and to a difference."
        )
        notes = (
            "A difference below its floor may be the judge's noise alone, with these very answers.",
        )
    else:
        notes = (
            "No item was judged twice, so the judge's noise is unknown; set judge.repeats above 1 "
            "to measure it.",
        )
        rows = [(row[: len(columns)], rule) for row, rule in rows]
    shown = tuple(Row(row, rule) for row, rule in rows)
    return Table(
        "judge",
        "The judge",
        caption,
        (*columns, *(noise if known else ())),
        shown,
        JUDGE_DATA,
        tuple(numbers),
        notes,
        left=2,
    )


def _judge_numbers(
    data: StudyData, measure: Measure, checkpoints: Sequence[Checkpoint]
) -> tuple[Any, ...]:
    statuses = Counter[str]()
    flagged = Counter[str]()
    for checkpoint in checkpoints:
        statuses.update(data.cell(checkpoint, measure.benchmark, measure.metric).statuses)
        for run in checkpoint.runs:
            summary = data.summary(run, checkpoint.iteration, stage_of(measure.benchmark))
            flagged.update(
                {
                    name: len(summary.get(name) or ())
                    for name in ("truncated", "neutralised", "fastchat_reads_otherwise")
                }
            )
    unread = rank.proportion(
        statuses["unparsed"], sum(statuses[name] for name in ("ok", "unparsed", "refused"))
    )
    tables = [table for checkpoint in checkpoints for table in _repeats(data, checkpoint, measure)]
    width = max((table.shape[1] for table in tables), default=1)
    every = np.vstack(
        [
            np.empty((0, width)),
            *(np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=np.nan) for t in tables),
        ]
    )
    noise = rank.judge_noise(every, items=max((len(table) for table in tables), default=1))
    return (
        unread.k,
        unread.n,
        unread.low,
        unread.high,
        flagged["truncated"],
        flagged["neutralised"],
        flagged["fastchat_reads_otherwise"],
        noise.sd,
        noise.low,
        noise.high,
        noise.floor,
        noise.floor_difference,
        noise.changed.n,
        noise.changed.k,
        noise.df,
    )


def _judge_cells(
    data: StudyData, measure: Measure, checkpoints: Sequence[Checkpoint]
) -> tuple[str, ...]:
    v = dict(zip(JUDGE_DATA[4:], _judge_numbers(data, measure, checkpoints), strict=True))
    digits = measure.digits
    sd = (
        f"{number(v['judgment_sd'], digits)} "
        f"({number(v['judgment_sd_low'], digits)}–{number(v['judgment_sd_high'], digits)})"
    )
    return (
        share_text(rank.proportion(v["unparsed"], v["asked"])),
        str(v["truncated_answers"]),
        str(v["neutralised_answers"]),
        str(v["fastchat_reads_otherwise"]) if measure.benchmark == "mt_bench" else "–",
        f"{v['items_unequal']} of {v['items_judged_twice']}",
        sd if v["judgment_sd"] is not None else "–",
        number(v["floor_mean"], digits),
        number(v["floor_difference"], digits),
    )


def share_text(share: rank.Proportion) -> str:
    """ "3 of 144 (0.7–5.9 %)", or a dash where nothing was counted."""
    if share.low is None or share.high is None:
        return "–"
    return f"{share.k} of {share.n} ({number(100 * share.low, 1)}–{number(100 * share.high, 1)} %)"


def _repeats(data: StudyData, checkpoint: Checkpoint, measure: Measure) -> list[np.ndarray]:
    """Items × repeats of every run of a checkpoint, NaN where missing; one column when nothing was
    judged twice.
    """
    frames = [
        data.rows(run.name, checkpoint.iteration, measure.benchmark, measure.metric)
        for run in checkpoint.runs
    ]
    return [
        f.assign(item=f["item"].astype(str))
        .pivot(index="item", columns="repeat", values="value")
        .to_numpy(dtype=float)
        for f in frames
        if len(f)
    ]


# -- AlpacaEval's summary --------------------------------------------------------------------------
FLAGS = {
    "no_scored_rows": "no row scored",
    "no_gamed_baseline": "no gamed baselines: no length-controlled win rate",
    "too_few_rows": "under 10 rows: LC is the plain win rate",
    "no_length_variance": "all length differences equal: LC is the plain win rate",
    "constant_preference": "constant preference: LC is the plain win rate",
    "constant_answers": "most answers are one text",
}
"""What the benchmark's stage flags, in words."""
FEW_INSTRUCTIONS = 100
"""Below this number the jackknife interval of the length-controlled win rate, checked by simulation
on hundreds, is flagged.
"""
ALPACA_DATA = (
    "checkpoint",
    "arm",
    "iteration",
    "seed",
    "scored",
    "expected",
    "length_controlled_win_rate",
    "jackknife_se",
    "library_se",
    "win_rate",
    "win_rate_se",
    "mean_length",
    "truncated",
    "neutralised",
    "comparable",
    "flags",
)
_SUMMARY = (
    "length_controlled_win_rate",
    "lc_standard_error",
    "lc_standard_error_library",
    "win_rate",
    "standard_error",
    "avg_length",
)


def table_alpaca_eval(data: StudyData) -> Table | Unavailable:
    """What the benchmark's summaries say of single checkpoints: n, standard errors over
    instructions, flags.

    jackknife SE: sd of the delete-one-instruction pseudo-values / √n, percent points, of one
    checkpoint (what (B) rests on); library SE: AlpacaEval's own, the spread of predictions over
    items, about half the true one. Means over the seeds of a checkpoint.
    """
    title, rows, numbers, few = "AlpacaEval: standard errors and flags", [], [], 0
    for checkpoint in data.checkpoints:
        found = [
            (run, data.summary(run, checkpoint.iteration, "judge.alpaca_eval"))
            for run in checkpoint.runs
        ]
        found = [(run, summary) for run, summary in found if summary]
        flags: Counter[str] = Counter()
        for run, summary in found:
            raised = [
                *summary.get("flags", ()),
                *(["few_instructions"] if (summary.get("n_total") or 0) < FEW_INSTRUCTIONS else []),
            ]
            few += "few_instructions" in raised
            flags.update(name for name in raised if name != "few_instructions")
            counts = (summary.get("n_total"), summary.get("expected"))
            values = [summary.get(name) for name in _SUMMARY]
            lists = (len(summary.get("truncated") or ()), len(summary.get("neutralised") or ()))
            place = (checkpoint.title, checkpoint.arm, checkpoint.iteration, run.seed)
            numbers.append(
                (*place, *counts, *values, *lists, summary.get("comparable"), ";".join(raised))
            )
        if not found or not (flags or checkpoint.iteration in (0, data.own_last(checkpoint.arm))):
            continue
        means = [_mean([summary.get(name) for _, summary in found]) for name in _SUMMARY]
        scored = [
            sum(int(summary.get(name) or 0) for _, summary in found)
            for name in ("n_total", "expected")
        ]
        said = "; ".join(
            f"{FLAGS.get(name, name.replace('_', ' '))} ({count} of {len(found)} seeds)"
            for name, count in sorted(flags.items())
        )
        shown = [
            number(value, 0 if name == "avg_length" else 2)
            for name, value in zip(_SUMMARY, means, strict=True)
        ]
        rows.append(Row((checkpoint.title, f"{scored[0]} of {scored[1]}", *shown, said or "none")))
    if not numbers:
        return Unavailable("alpaca_eval", title, "no AlpacaEval judgments are stored yet")
    columns = (
        "checkpoint",
        "scored",
        "LC",
        "jackknife SE",
        "library's SE",
        "WR",
        "SE of WR",
        "length",
        "flags",
    )
    caption = (
        "Base, last iterations, and whatever is flagged; every checkpoint and seed in the CSV. "
        "Means over seeds, percent (length: characters). "
        "Standard errors are of one checkpoint over new instructions."
    )
    notes = [
        "The library's standard error is the spread of predictions over items, about half the "
        "true one; no interval here rests on it."
    ]
    if few:
        notes.append(
            f"{few} sets have under {FEW_INSTRUCTIONS} scored instructions: their "
            "length-controlled intervals are less sure than they look."
        )
    return Table(
        "alpaca_eval",
        title,
        caption,
        columns,
        tuple(rows),
        ALPACA_DATA,
        tuple(numbers),
        tuple(notes),
    )


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, (int, float))]
    return float(np.mean(known)) if known else None
