"""Judge profiles: every one that is there is whole, a recipe names one that exists, and a study is
told of an end.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.engine.runs import build_plan
from harness.judge.verdicts import judge_label
from harness.records import HarnessError
from harness.study.sections import JudgeSettings
from harness.study.study import Study, checked_judge, compose
from tests.tree import ROOT

PROFILES = sorted((ROOT / "ablations" / "judges").glob("*.yaml"))
RECIPES = sorted((ROOT / "ablations" / "recipes").glob("*.yaml"))
RETIRED = ("gpt-4", "gpt-4-1106-preview")
TODAY = date(2026, 11, 26)


def study(**changes: Any) -> Study:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return compose(ROOT / "ablations" / "x.yaml", "x", "pocket", dotted, {"a": {}}, [0])


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_whole_and_what_takes_its_place_is_there(path: Path) -> None:
    judge = checked_judge(path)
    assert judge.profile == path.stem
    assert judge.facts and judge.facts.licence and judge.facts.sources
    assert bool(judge.sunset(TODAY)) == (path.stem in RETIRED)
    if judge.facts.instead:
        instead = checked_judge(path.with_name(f"{judge.facts.instead}.yaml"))
        assert not instead.sunset(TODAY)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_a_judge_that_is_still_there(path: Path) -> None:
    base = compose(path, "x", str(path), {}, {"a": {}}, [0]).base
    for judge in base.judges.values():
        assert judge.kind == "pocket" or judge.profile in {one.stem for one in PROFILES}
        assert not judge.sunset(TODAY)


def test_a_benchmark_has_its_own_judge_and_the_others_the_recipes() -> None:
    base = study(evaluation__mt_bench__judge="gpt-4", judge="gpt-6-luna").base
    found = {name: judge.model for name, judge in base.judges.items()}
    assert found == {"mt_bench": "gpt-4", "alpaca_eval": "gpt-6-luna"}
    changed = study(judge="llama-3-70b", judge__base_url="https://other.example/v1").base.judge
    assert (changed.base_url, changed.annotator, changed.profile) == (
        "https://other.example/v1",
        "weighted_alpaca_eval_vllm_llama3_70b",
        "llama-3-70b",
    )


def test_a_benchmarks_judge_moves_the_keys_of_its_own_judging_alone() -> None:
    plain = {n.key: n.stage for n in build_plan(study()).nodes.values()}
    other = build_plan(study(evaluation__mt_bench__judge="qwen3-8b"))
    assert {other.nodes[key].stage for key in set(other.nodes) - set(plain)} == {"judge.mt_bench"}


def test_a_profile_written_out_has_the_keys_and_label_of_the_same_settings() -> None:
    named = study(judge="pocket")
    assert set(build_plan(named).nodes) == set(build_plan(study()).nodes)
    assert judge_label(named.base.judge) == judge_label(JudgeSettings())


def test_an_unknown_name_and_a_wrong_key_are_found_where_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"command line: judge 'gpt4' .*did you mean 'gpt-4'"):
        study(judge="gpt4")
    (tmp_path / "judges").mkdir()
    profile = tmp_path / "judges" / "mine.yaml"
    profile.write_text("kind: openai\nmodle: x\nfacts: {about: a, licence: b}\n")
    with pytest.raises(HarnessError, match=r"mine\.yaml:2: unknown key 'modle'"):
        checked_judge(profile)
    with pytest.raises(HarnessError, match=r"mine\.yaml:2: unknown key 'judge\.modle'"):
        compose(
            tmp_path / "x.yaml",
            "x",
            str(ROOT / "ablations" / "recipes" / "pocket.yaml"),
            {"judge": "mine"},
            {"a": {}},
            [0],
        )
    profile.write_text("kind: openai\nmodel: x\n")
    with pytest.raises(HarnessError, match=r"mine\.yaml:1: .* with facts"):
        checked_judge(profile)


@pytest.mark.parametrize(
    ("day", "says"),
    [
        (date(2026, 10, 23), "was shut down"),
        (date(2026, 10, 22), "in 1 days"),
        (date(2026, 7, 25), "in 90 days"),
        (date(2026, 7, 24), ""),
    ],
)
def test_an_end_is_spoken_of_when_it_is_near_or_past(day: date, says: str) -> None:
    told = checked_judge(ROOT / "ablations" / "judges" / "gpt-4.yaml").sunset(day)
    assert says in told
    assert bool(told) == bool(says)
    assert not told or "use llama-3-70b instead" in told


def test_plan_tells_a_study_of_a_retired_judge_and_prices_each(tmp_path: Path) -> None:
    command = ["plan", "ablations/smoke.yaml", "--store", str(tmp_path / "store")]
    command += ["--set", "evaluation.mt_bench.judge=gpt-4"]
    command += ["--set", "evaluation.alpaca_eval.judge=gpt-6-luna"]
    plain = CliRunner().invoke(app, command)
    assert "gpt-4 was shut down on 2026-10-23: use llama-3-70b instead" in plain.output
    priced = CliRunner().invoke(app, [*command, "--cost"])
    assert "gpt-4 was shut down" in priced.output
    # two arms' checkpoints and the base; 16 turns of 170 + 8 tokens; 24 instructions of 360 + 550
    assert "Judge: gpt-4: 48 calls of 8,160 + 384 tokens = 0.27 USD." in priced.output
    assert "Judge: gpt-6-luna: 72 calls of 25,920 + 39,600 tokens = 0.02 USD." in priced.output
