"""Portions of prompts, seeds of answers, long prompts, retried rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.model import generate as g
from harness.model.chat import encode_prompt
from harness.records import HarnessError, Prompt, StageTask, read_jsonl, write_jsonl
from harness.stages import rollout
from tests import tiny
from tests.tasks import settings_of, stage_task

SETTINGS: dict[str, Any] = {"portions": 3, "samples": 2, "generation_batch": 16}
SETTINGS |= {"decoding": "sample", "temperature": 1.0, "top_p": 1.0}
SETTINGS |= {"max_new_tokens": 6, "max_prompt_length": 1000}


def _prompt(i: int) -> Prompt:
    return Prompt(f"p{i:02d}", ({"role": "user", "content": f"Question {i}?"},), "good", "bad")


PROMPTS = [_prompt(i) for i in range(20)]


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def task(tmp_path, policy_folder):
    data = tmp_path / "data"
    data.mkdir()
    write_jsonl(data / "train.jsonl", PROMPTS)

    def make(name: str = "out", **changes) -> StageTask:
        (tmp_path / name).mkdir(exist_ok=True)
        return stage_task(
            "k",
            "rollout",
            SETTINGS | changes,
            {"policy": policy_folder, "data": data},
            tmp_path / name,
            {"device": "cpu"},
        )

    return make


def settings(changes=None):
    return settings_of("rollout", SETTINGS | (changes or {}))


def _ids(portion):
    return [prompt.id for prompt in portion]


def test_portions_in_the_datas_order_are_ranges_of_its_rows():
    parts = [
        _ids(rollout.portion(PROMPTS, settings({"portion": i, "order": "data"}))) for i in (0, 2)
    ]
    names = _ids(PROMPTS)
    assert parts == [names[:6], names[12:18]]


def test_portions_are_equal_disjoint_and_shuffled_by_the_runs_seed():
    """20 prompts in 3 portions: 6 each, 2 left out."""
    parts = [_ids(rollout.portion(PROMPTS, settings({"portion": i}))) for i in range(3)]
    assert [len(part) for part in parts] == [6, 6, 6]
    assert len({name for part in parts for name in part}) == 18
    assert parts[0] != sorted(parts[0])
    assert _ids(rollout.portion(PROMPTS, settings())) == parts[0]
    assert _ids(rollout.portion(PROMPTS, settings({"seed": 1}))) != parts[0]


def test_more_iterations_than_portions_meet_the_prompts_in_another_order():
    first, again = (
        _ids(rollout.portion(PROMPTS, settings({"portion": i, "portions": 1}))) for i in (0, 1)
    )
    assert sorted(first) == sorted(again)
    assert first != again


def test_prompts_per_iteration_takes_the_first_of_the_portion():
    whole = _ids(rollout.portion(PROMPTS, settings()))
    assert _ids(rollout.portion(PROMPTS, settings({"prompts_per_iteration": 4}))) == whole[:4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_iteration": 7}, r"is 7; a portion has 6 prompts \(20 // 3\)"),
        ({"prompts": 21}, "asks for 21 training prompts; there are 20"),
        ({"portions": 21}, "cannot be cut into 21 portions"),
    ],
)
def test_fewer_prompts_than_asked_is_an_error(changes, message):
    with pytest.raises(HarnessError, match=message):
        rollout.portion(PROMPTS, settings(changes))


def test_stage_writes_responses_in_prompt_and_sample_order(task):
    made = task()
    outcome = rollout.run(made)
    prompts = [row["id"] for row in read_jsonl(made.out / "prompts.jsonl")]
    rows = list(read_jsonl(made.out / "responses.jsonl"))
    assert prompts == _ids(rollout.portion(PROMPTS, settings()))
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [
        (name, sample) for name in prompts for sample in (0, 1)
    ]
    assert (outcome.rows, outcome.errors) == (12, 0)
    assert outcome.costs["tokens_generated"] == sum(len(row["token_ids"]) for row in rows)
    assert len({row["seed"] for row in rows}) == 12
    assert sorted(file.name for file in made.out.iterdir()) == ["prompts.jsonl", "responses.jsonl"]


def test_prompts_in_no_portion_are_told_with_the_first(task):
    made = [rollout.run(task(f"out{i}", portion=i, samples=1)) for i in (0, 1)]
    told, nothing = (
        [one for one in outcome.left_out if one.what == "training prompts"] for outcome in made
    )
    assert [(one.count, one.of) for one in told] == [(2, 20)]
    parts = [_ids(rollout.portion(PROMPTS, settings({"portion": i}))) for i in range(3)]
    assert not any(set(told[0].examples) & set(part) for part in parts)
    assert not nothing


def test_same_seed_same_bytes_other_seed_other_samples(task):
    first, again, other = task("a"), task("b"), task("c", seed=1)
    for made in (first, again, other):
        rollout.run(made)
    read = lambda made: (made.out / "responses.jsonl").read_bytes()  # noqa: E731
    assert read(first) == read(again)
    texts = [
        {(r["prompt_id"], r["sample"]): r["text"] for r in read_jsonl(made.out / "responses.jsonl")}
        for made in (first, other)
    ]
    shared = texts[0].keys() & texts[1].keys()
    assert shared
    assert all(texts[0][key] != texts[1][key] for key in shared)


def test_samples_counted_from_two_are_none_of_the_first_two(task):
    """Another rollout of the same policy draws other samples, numbered after those."""
    rows = {}
    for name, changes in {"a": {"samples": 2}, "b": {"samples": 1, "first_sample": 2}}.items():
        made = task(**changes)
        rollout.run(made)
        drawn = read_jsonl(made.out / "responses.jsonl")
        rows[name] = {(row["prompt_id"], row["sample"]): row["seed"] for row in drawn}
    assert {sample for _, sample in rows["b"]} == {2}
    assert not set(rows["a"].values()) & set(rows["b"].values())


def _limit(folder: Path) -> int:
    tokenizer = rollout.load_policy(folder).tokenizer
    return len(
        encode_prompt(tokenizer, PROMPTS[0].messages)
    )  # "Question 0?": prompts 10-19 are one token longer


def test_long_prompts_are_dropped_and_counted(task, policy_folder):
    made = task(max_prompt_length=_limit(policy_folder), max_left_out=0.9)
    outcome = rollout.run(made)
    kept = {row["id"] for row in read_jsonl(made.out / "prompts.jsonl")}
    expected = {name for name in _ids(rollout.portion(PROMPTS, settings())) if name < "p10"}
    assert kept == expected
    (left,) = (one for one in outcome.left_out if one.what == "prompts")
    assert (left.count, left.of) == (6 - len(expected), 6)
    assert left.reason.startswith("over training.max_prompt_length")
    with pytest.raises(HarnessError, match=r"of 6 prompts are left out.*data\.max_left_out = 0"):
        rollout.run(task(max_prompt_length=_limit(policy_folder), max_left_out=0.0))


def test_long_prompts_are_refused_when_asked(task, policy_folder):
    with pytest.raises(HarnessError, match=r"prompt p1\d: a prompt has .* tokens, the limit is"):
        rollout.run(task(max_prompt_length=_limit(policy_folder), overlong_prompts="refuse"))


def test_kept_prompts_are_whole_and_counted(task, policy_folder):
    made = task(max_prompt_length=_limit(policy_folder), overlong_prompts="keep")
    outcome = rollout.run(made)
    rows = list(read_jsonl(made.out / "prompts.jsonl"))
    whole = {prompt.id: prompt.messages[0]["content"] for prompt in PROMPTS}
    assert {row["id"]: row["messages"][0]["content"] for row in rows}.items() <= whole.items()
    (left,) = (one for one in outcome.left_out if one.what == "prompts")
    assert (left.count > 0, left.reason.split()[:2]) == (True, ["kept", "over"])
    assert len(rows) == 6


def test_long_prompts_are_truncated_when_asked_and_later_stages_see_it(task, policy_folder):
    made = task(max_prompt_length=_limit(policy_folder), overlong_prompts="truncate")
    outcome = rollout.run(made)
    contents = {
        row["id"]: row["messages"][0]["content"] for row in read_jsonl(made.out / "prompts.jsonl")
    }
    assert len(contents) == 6
    assert {contents[name] for name in contents if name >= "p10"} == {
        f"uestion {int(name[1:])}?" for name in contents if name >= "p10"
    }
    (left,) = (one for one in outcome.left_out if one.what == "prompts")
    assert left.count == sum(name >= "p10" for name in contents)
    assert left.reason.startswith("cut to training.max_prompt_length")


def test_truncation_drops_the_oldest_turns_first():
    tokenizer = tiny.tokenizer("zephyr")
    turns = [
        ("user", "first"),
        ("assistant", "answer"),
        ("user", "second"),
        ("assistant", "answer"),
        ("user", "third"),
    ]
    prompt = Prompt(
        "p",
        ({"role": "system", "content": "Be brief"}, *({"role": r, "content": c} for r, c in turns)),
    )
    without_one = [m for m in prompt.messages if m["content"] not in ("first",)][:1] + list(
        prompt.messages[3:]
    )
    limit = len(encode_prompt(tokenizer, without_one))
    assert list(rollout.truncate(tokenizer, prompt, limit).messages) == without_one


def test_a_token_spelled_out_in_a_prompt_outlives_its_truncation():
    tokenizer = tiny.tokenizer("zephyr")
    prompt = Prompt("p", ({"role": "user", "content": "What does </s> end?"},))
    limit = len(encode_prompt(tokenizer, prompt.messages)) - 5
    (kept,) = rollout.truncate(tokenizer, prompt, limit).messages
    assert kept["content"] == "does </s> end?"


def test_all_prompts_too_long_is_an_error(task):
    with pytest.raises(HarnessError, match=r"6 of 6 prompts are left out.*over training\.max_prom"):
        rollout.run(task(max_prompt_length=5))
    none = task(max_prompt_length=5, max_left_out=1.0)
    assert rollout.run(none).rows == 0
    assert not list(read_jsonl(none.out / "responses.jsonl"))


def test_only_failed_rows_are_drawn_again(task, monkeypatch):
    made = task()
    real = g._decode

    def fails(policy, requests):
        results = real(policy, requests)
        return [([], "error", "injected"), *results[1:]]

    monkeypatch.setattr(g, "_decode", fails)
    first = rollout.run(made)
    assert first.errors == 1
    monkeypatch.setattr(g, "_decode", real)
    second = rollout.run(made)
    assert (second.errors, second.costs["answers_generated"]) == (0, 1)
    whole = task("whole")
    rollout.run(whole)
    assert (made.out / "responses.jsonl").read_bytes() == (
        whole.out / "responses.jsonl"
    ).read_bytes()


def test_vllm_without_the_package_is_a_clear_error(task):
    with pytest.raises(HarnessError, match="vllm"):
        rollout.run(task(backend="vllm"))
