"""Exact rewards of hand-worked answers, and the judge's view of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.pocket import oracle, wordings
from harness.records import HarnessError

ASK = [{"role": "user", "content": "Run reverse on: fox oak red."}]
QUIET: dict[str, Any] = {"noise": 0.0, "position_bias": 0.0, "length_bias": 0.0, "seed": 0}


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("red oak fox.", 0.5),
        ("  red oak fox\nis the answer. ", 0.6),
        ("red oak fox, and I am so glad that you asked.", 0.35),
        ("red oak fox, maybe, but I doubt it.", 0.2),
        ("red oak fox; it was a pleasure.", 0.7),
        ("red oak fox: checked twice.", 1.0),
        ("fox oak red: checked twice.", 0.0),
        ("red oak fox: checked twice", 0.0),
        ("red oak", 0.0),
        ("", 0.0),
    ],
)
def test_reward_is_style_worth_when_right(answer: str, reward: float) -> None:
    assert oracle.reward(ASK, answer) == reward
    assert oracle.is_correct(ASK, answer) == (reward > 0)


def test_modes_are_eighteen_distinct_texts_with_their_exact_rewards() -> None:
    modes = oracle.modes(ASK)
    assert len({text for text, _ in modes}) == 18
    assert [reward for _, reward in modes][:7] == [1.0, 0.7, 0.6, 0.5, 0.35, 0.2, 0.0]
    assert all(oracle.reward(ASK, text) == reward for text, reward in modes)
    assert oracle.reference(ASK) == modes[0][0] == "red oak fox: checked twice."


def test_the_second_turn_is_what_counts() -> None:
    messages = [
        *ASK,
        {"role": "assistant", "content": "wrong."},
        {"role": "user", "content": "Now give only the first word of that."},
    ]
    assert oracle.reward(messages, "red.") == 0.5
    assert oracle.reward(messages, "fox.") == 0.0


def test_a_prompt_outside_the_language_is_refused() -> None:
    other = [{"role": "user", "content": "Describe Hawaii."}]
    with pytest.raises(HarnessError, match="Describe Hawaii"):
        oracle.reward(other, "Nice.")


def test_preference_without_noise_is_the_logistic_of_six_times_the_difference() -> None:
    found = oracle.preference(ASK, "red oak fox.", "red oak fox is the answer.", **QUIET)
    assert found == pytest.approx(1 / (1 + math.exp(-0.6)))


def test_position_and_length_bias_move_the_log_odds_by_what_they_say() -> None:
    same = ("red oak fox.", "red oak fox.")
    assert oracle.preference(ASK, *same, **QUIET | {"position_bias": 0.5}) == pytest.approx(
        1 / (1 + math.exp(0.5))
    )
    short, long = "fox oak red.", "fox oak red is the answer."  # both wrong; 14 characters apart
    assert oracle.preference(ASK, short, long, **QUIET | {"length_bias": 2.0}) == pytest.approx(
        1 / (1 + math.exp(-2 * math.tanh(14 / 50)))
    )


def test_noise_repeats_with_its_seed_changes_with_another_and_swaps_with_the_order() -> None:
    a, b = "red oak fox.", "red oak fox is the answer."
    noisy = QUIET | {"noise": 1.0}
    first = oracle.preference(ASK, a, b, **noisy)
    assert first == oracle.preference(ASK, a, b, **noisy)
    assert first != oracle.preference(ASK, a, b, **noisy | {"seed": 1})
    assert first + oracle.preference(ASK, b, a, **noisy) == pytest.approx(1.0)


def test_ratings_stay_between_one_and_ten_and_follow_quality() -> None:
    best, plain, wrong = oracle.reference(ASK), "red oak fox.", "fox."
    assert [oracle.rating(ASK, text, noise=0.0, seed=0) for text in (best, plain, wrong)] == [
        10,
        6,
        1,
    ]
    assert all(1 <= oracle.rating(ASK, best, noise=5.0, seed=s) <= 10 for s in range(50))


def test_standard_normal_has_mean_zero_and_variance_one() -> None:
    drawn = [oracle.standard_normal("test", i) for i in range(4000)]
    mean = sum(drawn) / len(drawn)
    assert abs(mean) < 0.05
    assert abs(sum((x - mean) ** 2 for x in drawn) / len(drawn) - 1) < 0.08


def test_every_style_is_recognised_with_its_content() -> None:
    for style in wordings.STYLES:
        assert oracle.style_of(style.render(("fox", "oak"))) == (style, ("fox", "oak"))
    assert oracle.style_of("fox oak") is None
