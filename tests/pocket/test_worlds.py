"""The two knobs of the pocket world, and a ranker that is wrong off the offline data."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.engine.graph import Plan
from harness.engine.runs import build_plan
from harness.judge.verdicts import judge_label
from harness.pocket import data, judge, oracle, wordings
from harness.rankers.ranker import RankItem
from harness.rankers.registry import rank_texts
from harness.records import read_jsonl
from harness.study.sections import JudgeSettings, WorldSettings
from harness.study.study import load_study
from tests.tasks import rank_context, stage_task

ALPHA = Path(__file__).parents[1] / "grid.yaml"
ASK = [{"role": "user", "content": "Run reverse on: fox oak red."}]
BEST, COURTEOUS, PLAIN = (
    "red oak fox: checked twice.",
    "red oak fox; it was a pleasure.",
    "red oak fox.",
)
WRONG_BEST, NO_STYLE = "fox oak red: checked twice.", "what a lovely day!"
DATA = {"prompts": 60, "heldout": 20, "ood": 8, "rows": 400, "best_style_share": 0.2}
UNSEEN = {"offline_best_style_share": 0.0}
MIRRORED = UNSEEN | {"best_style_worth": 0.0}


def _plan(**world: float) -> Plan:
    return build_plan(load_study(ALPHA, {f"world.{key}": value for key, value in world.items()}))


def _keys(plan: Plan, *stages: str) -> set[str]:
    return {key for key, node in plan.nodes.items() if node.stage in stages}


def test_the_best_style_is_worth_what_the_world_says() -> None:
    assert [oracle.reward(ASK, text, 0.0) for text in (BEST, COURTEOUS, PLAIN)] == [0.0, 0.7, 0.5]
    assert oracle.modes(ASK, 0.0)[0] == (COURTEOUS, 0.7)
    assert dict(oracle.modes(ASK, 0.0))[BEST] == 0.0
    assert oracle.is_correct(ASK, BEST)
    assert not oracle.is_correct(ASK, WRONG_BEST)


def test_only_the_offline_answers_lose_the_best_style(tmp_path: Path) -> None:
    data.run(stage_task("k", "data.pocket", DATA | {"world": UNSEEN}, {}, tmp_path))
    pairs = [
        row[role]
        for name in ("train", "heldout", "ood")
        for row in read_jsonl(tmp_path / f"{name}.jsonl")
        for role in ("chosen", "rejected")
    ]
    styles = {found[0].name for found in map(oracle.style_of, pairs) if found}
    assert styles == {style.name for style in wordings.STYLES} - {"checked"}
    taught = [row["messages"][-1]["content"] for row in read_jsonl(tmp_path / "sft.jsonl")]
    assert any(text.endswith(": checked twice.") for text in taught)


def test_offline_winners_follow_the_worth_of_their_style(tmp_path: Path) -> None:
    world = {"offline_best_style_share": 0.5, "best_style_worth": 0.0}
    data.run(stage_task("k", "data.pocket", DATA | {"world": world}, {}, tmp_path))
    for row in read_jsonl(tmp_path / "train.jsonl"):
        rewards = [
            oracle.reward(row["messages"], row[role], 0.0) for role in ("chosen", "rejected")
        ]
        assert rewards[0] > rewards[1]


def test_twin_worlds_share_data_base_and_first_rollouts_and_nothing_that_is_rewarded() -> None:
    one, other = _plan(**UNSEEN), _plan(**MIRRORED)
    shared = ("data.pocket", "base.pocket", "benchmarks.pocket")
    assert _keys(one, *shared) == _keys(other, *shared)
    first = {run.iterations[1]["rollout"] for run in one.runs}
    assert first == {run.iterations[1]["rollout"] for run in other.runs}
    rewarded = ("rank", "judge.mt_bench", "judge.alpaca_eval", "heldout", "diagnostics")
    for stage in rewarded:
        assert _keys(one, stage)
        assert _keys(one, stage).isdisjoint(_keys(other, stage)), stage
    seen, mirrored = _plan(best_style_worth=1.0), _plan(best_style_worth=0.0)
    assert _keys(seen, "data.pocket").isdisjoint(_keys(mirrored, "data.pocket"))


def test_the_default_world_has_the_keys_it_had_before_it_had_knobs() -> None:
    assert set(_plan().nodes) == set(_plan(best_style_worth=1.0).nodes)


@pytest.mark.parametrize(("opinion", "worth"), [(None, 0.0), (1.0, 1.0)])
def test_the_pocket_judge_knows_the_world_unless_told_otherwise(
    opinion: float | None, worth: float
) -> None:
    settings = JudgeSettings(noise=0.0, best_style_worth=opinion)
    known = settings.within(WorldSettings(**MIRRORED)).opinion
    rating = oracle.rating(ASK, BEST, noise=0.0, seed=0, best_style_worth=worth)
    assert rating == (1 if worth == 0 else 10)
    prompt = "[Question]\n{question}\n\n[The Start of Assistant's Answer]\n{answer}\n[The End of "
    prompt += "Assistant's Answer]"
    text = prompt.format(question=ASK[0]["content"], answer=BEST)
    body = {"messages": [{"role": "user", "content": text}]}
    said, _ = judge.verdict(body, known)
    assert f"[[{rating}]]" in said


@pytest.mark.parametrize("error", [0.0, 0.5, -0.5])
def test_a_misgeneralising_ranker_is_right_on_the_support_and_off_by_the_error_elsewhere(
    error: float,
) -> None:
    texts = (BEST, WRONG_BEST, COURTEOUS, PLAIN, NO_STYLE)
    item = RankItem("p", tuple(ASK), texts)

    def scores(**world: float) -> list[float]:
        context = rank_context("misgeneralising", world=world, off_support_error=error)
        return list(rank_texts([item], context)[0].scores)

    assert scores(**UNSEEN) == [1.0 + error, error, 0.7, 0.5, error]
    assert scores(**MIRRORED) == [error, error, 0.7, 0.5, error]
    assert scores() == [1.0, 0.0, 0.7, 0.5, error]


def test_a_judge_keeps_the_name_it_had_before_it_could_be_told_of_worlds() -> None:
    assert judge_label(JudgeSettings()) == "pocket-judge@aa547e1a"
    assert judge_label(JudgeSettings(best_style_worth=0.0)) != "pocket-judge@aa547e1a"
