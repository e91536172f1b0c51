"""The tokenizer, the data stage and a base too small to be good: bytes repeat, templates hold,
seeds stay fenced.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.pocket import base, data, language, oracle
from harness.records import read_jsonl
from tests.tasks import stage_task

DATA = {"prompts": 40, "heldout": 12, "ood": 6, "seed": 0, "rows": 200, "best_style_share": 0.02}
TINY = {
    "steps": 4,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "rows": 150,
    "seed": 0,
    "threads": 1,
}


def _data(out: Path, **changed: Any) -> Path:
    out.mkdir()
    data.run(stage_task("k", "data.pocket", DATA | changed, {}, out))
    return out


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return base.build_tokenizer()


def test_every_text_of_the_world_survives_the_tokenizer(tokenizer: Any) -> None:
    for prompt in language.sample_prompts(200, np.random.default_rng(0), "train"):
        texts = [message["content"] for message in prompt.messages] + [
            text for text, _ in oracle.modes(prompt.messages)
        ]
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_any_sequence_of_ordinary_tokens_encodes_back_to_itself(tokenizer: Any) -> None:
    drawn = (
        np.random.default_rng(1).integers(len(base.SPECIAL), len(tokenizer), size=(50, 12)).tolist()
    )
    assert all(
        tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids
        for ids in drawn
    )


def test_template_writes_one_bos_and_ends_every_turn_with_the_stop_token(tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": "What is 3 plus 4?"},
        {"role": "assistant", "content": "7."},
    ]
    whole = tokenizer.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert whole["input_ids"][: len(prompt)] == prompt
    assert tokenizer.convert_ids_to_tokens(whole["input_ids"][len(prompt) :]) == [
        "7",
        ".",
        "<|end|>",
    ]
    assert sum(whole["assistant_masks"]) == 3
    assert whole["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.bos_token != tokenizer.eos_token


def test_answers_of_the_world_fit_into_24_tokens(tokenizer: Any) -> None:
    prompts = language.sample_prompts(300, np.random.default_rng(2), "train")
    longest = max(
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
        for p in prompts
        for text, _ in oracle.modes(p.messages)
    )
    assert longest <= 24


def test_data_repeat_and_pairs_are_ordered_by_reward(tmp_path: Path) -> None:
    first, again, other = (
        _data(tmp_path / "a"),
        _data(tmp_path / "b"),
        _data(tmp_path / "c", seed=1),
    )
    for name, size in (("train", 40), ("heldout", 12), ("ood", 6)):
        rows = list(read_jsonl(first / f"{name}.jsonl"))
        assert len(rows) == size
        assert all(
            oracle.reward(r["messages"], r["chosen"]) > oracle.reward(r["messages"], r["rejected"])
            for r in rows
        )
        assert (
            _hash(first / f"{name}.jsonl")
            == _hash(again / f"{name}.jsonl")
            != _hash(other / f"{name}.jsonl")
        )


def test_supervised_answers_are_right_and_come_from_training_tasks_only(tmp_path: Path) -> None:
    rows = list(read_jsonl(_data(tmp_path / "a") / "sft.jsonl"))
    heldout = {
        row["messages"][0]["content"] for row in read_jsonl(tmp_path / "a" / "heldout.jsonl")
    }
    for row in rows:
        turns = row["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        for i in range(1, len(turns), 2):
            assert oracle.is_correct(turns[:i], turns[i]["content"])
            assert turns[i - 1]["content"] not in heldout
    assert {len(row["messages"]) for row in rows} == {2, 4, 6}


def test_best_style_share_reaches_the_supervised_rows(tmp_path: Path) -> None:
    rows = list(read_jsonl(_data(tmp_path / "a", best_style_share=1.0) / "sft.jsonl"))
    assert all(
        turn["content"].endswith(": checked twice.")
        for row in rows
        for turn in row["messages"]
        if turn["role"] == "assistant"
    )


def test_base_repeats_bit_for_bit_follows_its_seed_and_leaves_the_global_seeds_alone(
    tmp_path: Path,
) -> None:
    import torch

    folder = _data(tmp_path / "data")
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        before = random.getstate(), list(np.random.get_state()), torch.random.get_rng_state()
        out = tmp_path / name
        out.mkdir()
        base.run(stage_task("k", "base.pocket", TINY | {"seed": seed}, {"data": folder}, out))
        assert random.getstate() == before[0]
        assert str(list(np.random.get_state())) == str(before[1])
        assert torch.equal(torch.random.get_rng_state(), before[2])
        hashes.append(_hash(out / "model" / "model.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]
    assert not [
        path for path in (tmp_path / "a").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")
    ]


def test_base_is_small_enough() -> None:
    from harness.study.sections import PocketBaseSettings

    model = base.build_model(PocketBaseSettings(), base.build_tokenizer())
    assert model.num_parameters() < 1_000_000


def test_batches_hold_rows_of_like_length_and_lessons_come_in_order() -> None:
    rng = np.random.default_rng(0)
    lengths = [int(n) for n in rng.integers(10, 100, size=640)]
    lessons = [0] * 256 + [1] * 192 + [2] * 192
    order = base.batch_order(lengths, lessons, 32, 1000, np.random.default_rng(1))
    assert len(order) == 1000 * 32
    assert set(order[: 180 * 32]) == set(range(256))
    assert set(order[180 * 32 : 450 * 32]) == set(range(448))
    assert {lessons[i] for i in order[450 * 32 :]} == {0, 1, 2}
    assert len(base.batch_order(lengths[:5], [0] * 5, 8, 3, np.random.default_rng(1))) == 24
    padded = sum(32 * max(lengths[i] for i in order[k : k + 32]) for k in range(0, len(order), 32))
    assert padded < 1.08 * sum(lengths[i] for i in order)
    assert sorted(order[180 * 32 : 194 * 32]) == list(range(448))


def test_lessons_go_from_copying_to_several_turns() -> None:
    asked = {
        "Run reverse on: fox oak red.": 0,
        "What is 3 plus 4?": 1,
        "Run this: first turn them around, then give the last one: fox oak red.": 1,
    }
    for text, lesson in asked.items():
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "?"}]
        assert base.lesson_of(turns) == lesson
        assert base.lesson_of(turns * 2) == 2
