"""Stage ``select``: what of a rollout is labelled, against plain passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.model.chat import encode_prompt, encode_response
from harness.model.policy import load_policy
from harness.records import Prompt, Response, StageTask, read_jsonl, write_jsonl
from harness.stages import rank
from tests import plain, tiny
from tests.tasks import stage_task

TEXTS = {
    "p0": ["one", "two", "one"],
    "p1": ["same", "same"],
    "p2": ["a longer answer", "no", "yes"],
    "p3": ["3", "4"],
    "p4": ["left", "right", "straight on"],
}


def prompt(name: str) -> Prompt:
    return Prompt(name, ({"role": "user", "content": f"Which, {name}?"},), "good", "bad")


@pytest.fixture
def task(tmp_path: Path) -> Any:
    for seed, name in enumerate(("theta", "other")):
        tiny.checkpoint(tmp_path / name / "model", seed=seed, initializer_range=0.3)
    tokenizer = load_policy(tmp_path / "theta").tokenizer
    rollout, pairs = tmp_path / "current", tmp_path / "pairs"
    rollout.mkdir()
    pairs.mkdir()
    write_jsonl(rollout / "prompts.jsonl", [prompt(name) for name in TEXTS])
    drawn = [
        Response(name, i, text, tuple(encode_response(tokenizer, prompt(name).messages, text)))
        for name, texts in TEXTS.items()
        for i, text in enumerate(texts)
    ]
    write_jsonl(rollout / "responses.jsonl", drawn)

    def make(selector: str, **settings: Any) -> StageTask[Any]:
        inputs = {"current": rollout, "policy": tmp_path / "theta"}
        inputs |= {"reference_policy": tmp_path / "other"}
        given = {"selector": selector, "y": 0} | settings
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        return stage_task("k", "select", given, inputs, out)

    return make


def chosen(task: StageTask[Any]) -> dict[str, list[str]]:
    return {row["prompt_id"]: row["names"] for row in read_jsonl(task.out / "selected.jsonl")}


def test_apl_by_plain_passes(task: Any) -> None:
    made = task("apl", entropy_share=0.75, margin_share=0.6)
    outcome = rank.select(made)
    policies = [load_policy(made.inputs[name]) for name in ("policy", "reference_policy")]
    measured = {}
    for name, texts in TEXTS.items():
        messages = prompt(name).messages
        ids = encode_prompt(policies[0].tokenizer, messages)
        answers = [encode_response(policies[0].tokenizer, messages, text) for text in texts]
        current, former = (
            [float(plain.logp(one.model, ids, ids_).detach()) for ids_ in answers]
            for one in policies
        )
        ratios = [a - b for a, b in zip(current, former, strict=True)]
        measured[name] = (-sum(current) / len(texts), ratios)
    del measured["p1"]  # a single answer
    uncertain = sorted(measured, key=lambda name: -measured[name][0])[:3]
    width = {name: max(measured[name][1]) - min(measured[name][1]) for name in uncertain}
    certain = sorted(uncertain, key=lambda name: -width[name])[:2]
    found = chosen(made)
    assert set(found) == set(certain)
    for name, pair in found.items():
        ratios = measured[name][1]
        ends = (ratios.index(min(ratios)), ratios.index(max(ratios)))
        assert {f"current{place or ''}" for place in ends} == set(pair)
    told = {(one.reason, one.count) for one in outcome.left_out}
    assert told == {
        ("one answer", 1),
        ("of low predictive entropy", 1),
        ("of a small implicit reward margin", 1),
    }


def test_thompson_repeats_and_follows_the_seed(task: Any) -> None:
    ensemble = {"heads": 6, "hidden": 8}
    first, again, other = (task("thompson", ensemble=ensemble, seed=seed) for seed in (0, 0, 1))
    for made in (first, again, other):
        rank.select(made)
    assert chosen(first) == chosen(again) != chosen(other)
    assert "p1" not in chosen(first)
    assert all(len(set(names)) == 2 for names in chosen(first).values())
