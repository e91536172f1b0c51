"""Who judged a study's scores and on what, and whether published scores may stand beside them."""

from __future__ import annotations

from collections.abc import Collection

from analysis.load import StudyData, stage_of

JUDGED = {"alpaca_eval": ("AlpacaEval", "win_rate"), "mt_bench": ("MT-Bench", "rating")}
"""Judged benchmark → its name in notes, the metric whose rows are looked at."""


def verdict(comparable: bool) -> str:
    """Whether scores may stand beside published ones, in words."""
    if comparable:
        return "comparable with published scores: judge, questions, references and prompts are the published ones"
    return "not comparable with published scores: another judge, or other questions, references or prompts"


def notes(data: StudyData, benchmarks: Collection[str]) -> list[str]:
    """One sentence for every judge and benchmark version among the scores: comparable with
    published scores or not.

    Comparable only if every stored set says so (judge, questions, references and prompts are the
    published ones); nothing is assumed.
    """
    sentences = []
    for benchmark, (title, metric) in JUDGED.items():
        if benchmark not in benchmarks:
            continue
        found: dict[str, list[bool]] = {}
        titles: dict[str, list[str]] = {}
        for checkpoint in data.checkpoints:
            if name := data.identity(checkpoint, benchmark, metric):
                summaries = [
                    data.summary(run, checkpoint.iteration, stage_of(benchmark))
                    for run in checkpoint.runs
                ]
                found.setdefault(name, []).append(
                    all(s.get("comparable") is True for s in summaries if s)
                )
                titles.setdefault(name, []).append(checkpoint.title)
        for name, comparable in found.items():
            where = f" ({', '.join(titles[name])})" if len(found) > 1 else ""
            sentences.append(f"{title}{where}, judged by {name}: {verdict(all(comparable))}.")
        if len(found) > 1:
            sentences.append(
                f"{title}: rows of different judges or references are not comparable with one "
                "another, and no difference between them is given."
            )
    return sentences
