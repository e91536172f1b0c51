"""``selm bridge``: public answers that carry an old judge's verdicts, judged again by another.

FOLDER is laid out as the benchmarks' owners publish: ``alpaca_eval/<model>/annotations.json``
(with a ``df_gamed*.csv`` for length-controlled win rates) and ``mt_bench/judgments_*.jsonl`` with
``judge_prompts.jsonl``. Every model is judged on the same items. What comes of it is a row for each
item, model, measure and repeat with both judges' scores, which `analysis.bridge` reads.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.evaluate import annotator, mt_bench
from harness.evaluate.alpaca_eval import check_annotations, instruction_key
from harness.evaluate.benchmark import read_rows, reply_tokens
from harness.evaluate.lc import compute_metrics, read_gamed
from harness.evaluate.published import (
    AlpacaEvalArtefacts,
    annotation_files,
    judge_prompts,
    judgment_files,
)
from harness.judge import verdicts
from harness.judge.client import JudgeClient, JudgeRequest
from harness.judge.endpoint import estimate_tokens
from harness.records import HarnessError, Status, read_jsonl
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime
from harness.study.work import LENGTHS

Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Judged:
    """One answer with the old judge's verdict. old: percent for the model, or a rating; None where
    it gave none. length: characters of the model's answer, less those of the baseline where there
    is one. shown: what a new judge is shown, a pair or whole messages. position: of the instruction
    in the benchmark's own order.
    """

    benchmark: str
    model: str
    item: str
    cluster: str
    old: float | None
    length: float | None
    shown: annotator.Pair | Messages
    position: int = 0


TEMPLATE_TOKENS = 300
"""Of AlpacaEval's annotator prompts without the pair."""


def read_public(folder: Path) -> list[Judged]:
    """Every answer below ``folder`` that carries a verdict. Raises HarnessError where none does."""
    found = [*_alpaca_eval(folder / "alpaca_eval"), *_mt_bench(folder / "mt_bench")]
    if not found:
        raise HarnessError(
            f"{folder}: no answers with verdicts; looked for alpaca_eval/*/annotations.json and "
            "mt_bench/judgments_*.jsonl"
        )
    return found


def _alpaca_eval(folder: Path) -> Iterable[Judged]:
    public = AlpacaEvalArtefacts(folder)
    read: dict[str, Path] = {}
    annotators = set()
    for path in annotation_files(folder):
        model = path.relative_to(folder).parts[0]
        stored = check_annotations(read_rows(path), path)
        annotators.add(stored[0].get("annotator", ""))
        if read.setdefault(model, path) != path or len(annotators) > 1:
            raise HarnessError(
                f"{folder}: annotations of one old judge are wanted, one file for each model; "
                f"{path} is beside {next(iter(read.values()))}: leave one of them out"
            )
        if all(row["output_1"] == row["output_2"] for row in stored):
            continue  # the baseline against itself, which no judge was asked
        places = public.positions([row["instruction"] for row in stored])
        if isinstance(places, str):
            places = list(range(len(stored)))
        for row, place in zip(stored, places, strict=True):
            text, one, two = row["instruction"], row["output_1"], row["output_2"]
            item, score = instruction_key(text), _percent(row["preference"])
            shown = annotator.Pair(f"{model}/{place}", text, one, two)
            length = float(len(two) - len(one))
            yield Judged("alpaca_eval", model, item, item, score, length, shown, place)


def _percent(preference: float | None) -> float | None:
    return None if preference is None else 100.0 * (preference - 1.0)


def _mt_bench(folder: Path) -> Iterable[Judged]:
    files = judgment_files(folder)
    if not files:
        return
    prompts = {row["name"]: row for row in read_jsonl(judge_prompts(folder))}
    lengths: dict[str, dict[str, float]] = {}
    seen: set[tuple[str, str]] = set()
    for path in files:
        for row in mt_bench.model_judgments(path):
            model, prompt = row["model"], row["judge"][1]
            question = str(row["question_id"])
            item = f"{question}:{row['turn']}"
            if prompt not in prompts:
                raise HarnessError(
                    f"{path}: question {item}: no prompt {prompt} in judge_prompts.jsonl"
                )
            if (model, item) in seen:
                raise HarnessError(f"{path}: {model}'s answer to question {item} is judged twice")
            seen.add((model, item))
            if model not in lengths:
                lengths[model] = _lengths(folder / "model_answer" / f"{model}.jsonl")
            score = row.get("score") or 0.0
            old = float(score) if 1.0 <= score <= 10.0 else None
            system = {"role": "system", "content": prompts[prompt]["system_prompt"]}
            shown = (system, {"role": "user", "content": row["user_prompt"]})
            yield Judged("mt_bench", model, item, question, old, lengths[model].get(item), shown)


def _lengths(path: Path) -> dict[str, float]:
    """Characters of every answer of a model, where its answers are there."""
    if not path.exists():
        return {}
    return {
        f"{row['question_id']}:{turn}": float(len(text))
        for row in mt_bench.model_answers(path)
        for turn, text in enumerate(row["choices"][0]["turns"], 1)
    }


# -- how many --------------------------------------------------------------------------------------
def sample(
    found: Sequence[Judged], judge: JudgeSettings, runtime: Runtime, items: int, repeats: int
) -> list[Judged]:
    """The answers of at most ``items`` clusters a benchmark (0: all), the same for all models, and
    of no more than ``runtime.max_cost_usd`` pays for. More of them is a superset.

    Raises HarnessError where that pays for none.
    """
    price, limit = cost(found, judge, runtime, repeats), runtime.max_cost_usd
    share = min(1.0, limit / price) if limit and price else 1.0
    kept: set[tuple[str, str]] = set()
    for benchmark in {one.benchmark for one in found}:
        clusters = sorted({one.cluster for one in found if one.benchmark == benchmark})
        count = min(items or len(clusters), int(share * len(clusters)))
        if not count:
            raise HarnessError(
                f"max_cost_usd {limit:g} pays for no item of {benchmark} that all models answered; "
                f"everything takes about {price:.2f} USD"
            )
        random.Random(0).shuffle(clusters)
        kept |= {(benchmark, cluster) for cluster in clusters[:count]}
    return [one for one in found if (one.benchmark, one.cluster) in kept]


def cost(found: Sequence[Judged], judge: JudgeSettings, runtime: Runtime, repeats: int) -> float:
    """USD of judging these answers, estimated."""
    prompt, completion = judge.prices(runtime)
    usd = 0.0
    for one in found:
        if isinstance(one.shown, annotator.Pair):
            pair = [{"content": text} for text in one.shown.shown]
            asked = estimate_tokens(pair) + TEMPLATE_TOKENS
        else:
            asked = estimate_tokens(one.shown)
        reply = reply_tokens(judge, LENGTHS, pairwise=one.benchmark == "alpaca_eval")
        usd += asked * prompt + reply * completion
    return usd * repeats * judge.samples / 1e6


# -- judging ---------------------------------------------------------------------------------------
Value = tuple[float | None, Status, bool | None]
"""Score (percent or rating), status, and whether the model's answer was shown first."""


def judge_again(
    found: Sequence[Judged], judge: JudgeSettings, runtime: Runtime, folder: Path, repeats: int
) -> tuple[dict[tuple[int, int], Value], dict[str, float]]:
    """(place in ``found``, repeat) → the new judge's verdict; costs. Replies stay in ``folder``'s
    journal: run again, it goes on where it stopped.
    """
    calls = repeats * judge.samples
    pairs, requests = [], []
    for i, one in enumerate(found):
        if isinstance(one.shown, annotator.Pair):
            pairs.append(replace(one.shown, id=str(i)))
        else:
            requests.append(JudgeRequest(str(i), one.shown, {}))
    values: dict[tuple[int, int], Value] = {}
    with JudgeClient(judge, runtime, folder) as client:
        name = annotator.annotator_of(judge, annotator.OFFICIAL_ANNOTATOR)
        drawn = annotator.annotate(pairs, client, annotator=name, repeats=calls)
        for (place, repeat), note in annotator.pooled(drawn, judge.samples).items():
            first = None if note.reason == "identical outputs" else note.switched
            values[int(place), repeat] = _percent(note.preference), note.status, first
        every = [replace(one, repeat=call) for call in range(calls) for one in requests]
        ratings: dict[tuple[int, int], list[tuple[float | None, Status]]] = {}
        for reply in client.complete(every, accept=mt_bench.readable):
            read = verdicts.parse_rating(reply.text).value if reply.status == "ok" else None
            key = int(reply.id), reply.repeat // judge.samples
            ratings.setdefault(key, []).append((read, reply.status))
        for key, several in ratings.items():
            values[key] = (*verdicts.mean_of(several), None)
    if all(value is None for value, _, _ in values.values()):
        statuses = ", ".join(sorted({status for _, status, _ in values.values()}))
        raise HarnessError(
            f"the judge gave no verdict on any of {len(found)} answers ({statuses}); why stands in "
            f"{folder}"
        )
    return values, client.costs


# -- rows ------------------------------------------------------------------------------------------
METRIC = {"alpaca_eval": "win_rate", "mt_bench": "rating"}


def rows_of(
    found: Sequence[Judged], values: Mapping[tuple[int, int], Value], folder: Path
) -> list[dict[str, Any]]:
    """A row for every answer, measure and repeat. Length-controlled win rates, where ``folder``
    holds the gamed baselines, are the jackknife's pseudo-values, whose mean over items is the win
    rate.
    """
    rows = []
    kept = ("benchmark", "model", "item", "cluster", "old", "length")
    for (place, repeat), (new, status, first) in sorted(values.items()):
        one = found[place]
        row = {"metric": METRIC[one.benchmark], "repeat": repeat}
        row |= {"new": new, "status": status, "first": first}
        rows.append(row | {name: getattr(one, name) for name in kept})
    gamed = AlpacaEvalArtefacts(folder / "alpaca_eval").gamed
    return rows if gamed is None else rows + _length_controlled(found, rows, gamed)


def _length_controlled(
    found: Sequence[Judged], rows: Sequence[Mapping[str, Any]], gamed: Path
) -> list[dict[str, Any]]:
    """The rows of AlpacaEval again, with both judges' length-controlled pseudo-values."""
    shown = {
        (one.model, one.item): (one.position, one.shown)
        for one in found
        if isinstance(one.shown, annotator.Pair)
    }
    baseline = read_gamed(gamed, 1 + max(position for position, _ in shown.values()))
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        both = row["old"] is not None and row["new"] is not None
        if row["benchmark"] == "alpaca_eval" and both:
            groups.setdefault((row["model"], row["repeat"]), []).append(row)
    result = []
    for group in groups.values():
        ordered = sorted(group, key=lambda row: shown[row["model"], row["item"]][0])
        pairs = [shown[row["model"], row["item"]] for row in ordered]
        outputs = [pair.output_1 for _, pair in pairs], [pair.output_2 for _, pair in pairs]
        places = [position for position, _ in pairs]
        pseudo = []
        for judge in ("old", "new"):
            preferences = [1.0 + row[judge] / 100.0 for row in ordered]
            pseudo.append(compute_metrics(preferences, *outputs, places, baseline).pseudo)
        for row, old, new in zip(ordered, *pseudo, strict=True):
            result.append({**row, "metric": "length_controlled_win_rate", "old": old, "new": new})
    return result
