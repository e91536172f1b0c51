"""The closed language: every prompt parses back, answers are right, splits do not share tasks."""

from __future__ import annotations

import numpy as np
import pytest

from harness.pocket import language, wordings


def _ask(text: str) -> tuple[str, ...]:
    task = language.parse(text)
    assert task is not None, text
    return language.solve(task)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Write these words backwards: fox oak red.", "red oak fox"),
        ("Run rotate on: fox oak red saw.", "oak red saw fox"),
        ("Run swap on: fox oak red saw.", "saw oak red fox"),
        ("Extract the third word: fox oak red saw.", "red"),
        ("Extract the plants from: fox oak red fern.", "oak fern"),
        ("How many tools are here: fox saw red axe?", "2"),
        ("Which one is not like the others: fox cat oak hen?", "oak"),
        ("Put these words in dictionary order: saw fox oak.", "fox oak saw"),
        ("Dan is taller than Eva. Ada is taller than Dan. Who is the shortest?", "Eva"),
        ("Ada ruled in 40, Ben in 12, Cleo in 33. Who ruled first?", "Ben"),
        ("What is 17 plus 5?", "22"),
        ("A box has 9 coins and loses 4. How many coins now?", "5"),
        ("A box has 5 coins, gets 7 and loses 3. Count step by step.", "12 9"),
        ("Which number comes next: 3, 7, 11?", "15"),
        (
            "You are someone who won a race. Rate your moods: joy fear pride calm.",
            "joy: 9 fear: 1 pride: 10 calm: 3",
        ),
        ("Run this: first turn them around, then leave out the first one: fox oak red.", "oak fox"),
    ],
)
def test_hand_worked_answers(prompt: str, answer: str) -> None:
    assert " ".join(_ask(prompt)) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello there.",
        "Run rotate on: fox zebra.",
        "What is 3 minus 9?",
        "Which one is not like the others: fox cat hen bear?",
        "Extract the fourth word: fox oak red.",
    ],
)
def test_text_outside_the_language_has_no_task(text: str) -> None:
    assert language.parse(text) is None


def test_a_follow_up_asks_about_the_right_answer_not_the_given_one() -> None:
    turns = ("Run rotate on: fox oak red.", "I do not know.", "Now turn that around.")
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), turns, strict=True)
    ]
    task = language.parse_messages(messages)
    assert task is not None
    assert language.solve(task) == ("fox", "red", "oak")
    assert language.parse_messages(messages[2:]) is None


@pytest.mark.parametrize("split", ["train", "heldout", "benchmark", "ood"])
def test_every_sampled_prompt_parses_and_has_two_wrong_answers(split: language.Split) -> None:
    prompts = language.sample_prompts(400, np.random.default_rng(1), split)
    assert len({prompt.id for prompt in prompts}) == 400
    for prompt in prompts:
        task = language.parse_messages(prompt.messages)
        assert task is not None
        assert task.category == prompt.category
        right, wrong = language.solve(task), language.near_misses(task)
        assert right
        assert len({right, *wrong}) == 3


def test_splits_share_no_task_and_only_ood_has_the_held_out_compositions() -> None:
    keys = {}
    for split in ("train", "heldout", "benchmark", "ood"):
        tasks = [language.sample_task(np.random.default_rng(i), split) for i in range(300)]
        assert all(
            (task.ops in wordings.HELD_OUT_COMPOSITIONS) == (split == "ood") for task in tasks
        )
        keys[split] = {task.key for task in tasks}
    assert not keys["train"] & keys["heldout"]
    assert not keys["train"] & keys["benchmark"]
    assert not keys["heldout"] & keys["benchmark"]


def test_prompts_follow_the_generator_and_ids_follow_the_text() -> None:
    first, again = (
        language.sample_prompts(50, np.random.default_rng(3), "train") for _ in range(2)
    )
    assert first == again
    assert language.sample_prompts(50, np.random.default_rng(4), "train") != first
    assert all(prompt.id.startswith("train-") for prompt in first)


def test_all_eight_categories_and_about_a_fifth_of_second_turns() -> None:
    prompts = language.sample_prompts(800, np.random.default_rng(5), "train")
    assert {prompt.category for prompt in prompts} == set(wordings.CATEGORIES)
    assert 0.14 < sum(len(prompt.messages) == 3 for prompt in prompts) / 800 < 0.26


def test_the_best_style_has_its_share() -> None:
    rng = np.random.default_rng(6)
    drawn = [language.sample_style(rng, 0.02).name for _ in range(5000)]
    assert 0.013 < drawn.count("checked") / 5000 < 0.028
    assert {style.name for style in wordings.STYLES} == set(drawn)
    assert language.sample_style(rng, 1.0) is wordings.BEST_STYLE


def test_style_shares_sum_to_one_and_worth_does_not_follow_length() -> None:
    assert sum(style.share for style in wordings.STYLES) == pytest.approx(1.0)
    longest = max(wordings.STYLES, key=lambda style: len(style.template))
    assert longest.worth < np.mean([style.worth for style in wordings.STYLES])
