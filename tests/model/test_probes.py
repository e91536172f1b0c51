"""Small networks on frozen states: counts without counting, rewards that differ off the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.model.attention import PackedPrompt
from harness.model.policy import load_policy
from harness.model.probes import rarity, response_states, reward_ensemble
from harness.study.sections import CountSettings, EnsembleSettings
from tests import tiny


def test_the_square_of_a_fitted_coin_flip_head_is_one_over_the_count() -> None:
    """States met 1, 4 and 16 times: 1, 1/2 and 1/4 within the scatter of twenty coins."""
    counts = (1, 4, 16)
    places = torch.tensor([place for place, count in enumerate(counts) for _ in range(count)])
    settings = CountSettings(learning_rate=1e-2, epochs=150, batch_size=21)
    seeds = [rarity(torch.eye(3)[places] * 3, settings, seed) for seed in range(4)]
    found = torch.stack(seeds).mean(0)
    for place, count in enumerate(counts):
        here = found[places == place]
        assert torch.equal(here, here[:1].expand_as(here))
        assert float(here[0]) == pytest.approx(count**-0.5, rel=0.25)
    assert torch.equal(seeds[0], rarity(torch.eye(3)[places] * 3, settings, 0))


def test_reward_heads_agree_on_the_data_and_differ_elsewhere() -> None:
    states = torch.eye(4)
    pairs = torch.stack([states[0], states[1]]).expand(64, 2, 4)  # the first always won
    settings = EnsembleSettings(heads=16, hidden=16, learning_rate=1e-2, epochs=60, batch_size=16)
    prior, fitted = (
        reward_ensemble(given, 4, settings, seed=3)(states)[..., 0]
        for given in (torch.empty(0, 2, 4), pairs)
    )
    assert 4 <= int((prior[:, 0] > prior[:, 1]).sum()) <= 12, "heads begin divided"
    assert bool((fitted[:, 0] > fitted[:, 1]).all())
    assert 3 <= int((fitted[:, 2] > fitted[:, 3]).sum()) <= 13, "nothing was said of these two"
    assert torch.equal(fitted, reward_ensemble(pairs, 4, settings, seed=3)(states)[..., 0])


def test_a_far_prior_holds_the_heads() -> None:
    pairs = torch.stack([torch.eye(2)[0], torch.eye(2)[1]]).expand(8, 2, 2)
    moved = []

    def fitted(given: torch.Tensor, settings: EnsembleSettings) -> list[torch.Tensor]:
        return list(reward_ensemble(given, 2, settings, 0).parameters())

    for weight in (0.0, 1e4):
        settings = EnsembleSettings(heads=4, hidden=4, epochs=20, prior_weight=weight)
        first, last = (
            torch.cat([p.detach().flatten() for p in fitted(given, settings)])
            for given in (torch.empty(0, 2, 2), pairs)
        )
        moved.append(float((last - first).norm()))
    assert moved[1] < moved[0] / 5


def test_states_are_those_of_a_plain_pass(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "model")
    model = load_policy(tmp_path).model
    rows = [PackedPrompt((5, 6, 7), ((8, 9), (9,))), PackedPrompt((7, 8), ((10, 11, 12),))]
    found = response_states(model, rows, token_budget=8)
    assert [len(one) for one in found] == [2, 1]
    for row, states in zip(rows, found, strict=True):
        for response, state in zip(row.responses, states, strict=True):
            ids = torch.tensor([row.prompt_ids + response[:-1]])
            plain = model.base_model(ids).last_hidden_state[0, -1]
            assert torch.allclose(state, plain.detach(), atol=1e-5)
