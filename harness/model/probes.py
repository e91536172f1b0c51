"""Small networks on a frozen policy's states: how rarely an answer was seen, and what rewards the
pairs so far allow.

Legend: N answers, H width of a state, E networks, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, logsigmoid

from harness.model.attention import PackedPrompt
from harness.model.logprobs import base_model_of, batches_of, packed_attention, predicting_states
from harness.study.sections import CountSettings, EnsembleSettings, ProbeSettings

FLIPS = 20
"""Coins of an answer; this and the width below as the released code of COPO has them."""
COUNT_WIDTH = 32


def response_states(
    model: Any, rows: Sequence[PackedPrompt], *, token_budget: int = 8192
) -> list[Tensor]:
    """Last layer's states where the last token of each response is predicted, so that all of its
    text has been read: one tensor (responses, H) a row, float32, without gradient.
    """
    base = base_model_of(model)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with torch.no_grad(), packed_attention(base):
        for members, batch in batches_of(base, rows, token_budget):
            ends = (torch.tensor(batch.lengths).cumsum(0) - 1).to(batch.targets.device)
            states = predicting_states(base, batch).index_select(0, ends).float().cpu()
            parts = states.split([len(rows[i].responses) for i in members])
            for i, part in zip(members, parts, strict=True):
                found[i] = part
    return found


class Probes(nn.Module):
    """E networks H → hidden (leaky ReLU) → K, each with first weights of its own."""

    def __init__(
        self, count: int, width: int, hidden: int, outputs: int, generator: torch.Generator
    ) -> None:
        super().__init__()

        def drawn(inputs: int, outputs: int) -> nn.Parameter:
            uniform = 2 * torch.rand((count, inputs, outputs), generator=generator) - 1
            return nn.Parameter(uniform * inputs**-0.5)

        self.first, self.second = drawn(width, hidden), drawn(hidden, outputs)
        self.first_bias = nn.Parameter(torch.zeros(count, 1, hidden))
        self.second_bias = nn.Parameter(torch.zeros(count, 1, outputs))

    def forward(self, states: Tensor) -> Tensor:
        """(N, H) → (E, N, K)."""
        every = states.expand(len(self.first), *states.shape)
        inner = leaky_relu(torch.baddbmm(self.first_bias, every, self.first))
        outputs: Tensor = torch.baddbmm(self.second_bias, inner, self.second)
        return outputs


def _fit(
    probes: Probes,
    loss: Callable[[Tensor], Tensor],
    rows: int,
    settings: ProbeSettings,
    generator: torch.Generator,
) -> None:
    """Minimise ``loss`` of batches of row numbers by Adam."""
    optimizer = torch.optim.Adam(probes.parameters(), lr=settings.learning_rate)
    for _ in range(settings.epochs):
        for batch in torch.randperm(rows, generator=generator).split(settings.batch_size):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()


def rarity(states: Tensor, settings: CountSettings, seed: int) -> Tensor:
    """√mean f², about n^(-1/2) for states that occur n times among the (N, H): a count without
    counting. Shape (N,).

    Every answer draws a row of coins ±1 once, and f is fitted to them by least squares: where n
    answers look alike, f is the mean of their coins, whose square is 1/n on average. Lobel et al.
    2023, arXiv 2306.03186; the head of COPO, arXiv 2501.12735, without its dropout.
    """
    generator = torch.Generator().manual_seed(seed)
    coins = 2.0 * torch.randint(0, 2, (len(states), FLIPS), generator=generator) - 1
    probes = Probes(1, states.shape[1], COUNT_WIDTH, FLIPS, generator)

    def loss(rows: Tensor) -> Tensor:
        error: Tensor = probes(states[rows])[0] - coins[rows]
        return error.square().mean()

    _fit(probes, loss, len(states), settings, generator)
    with torch.no_grad():
        found: Tensor = probes(states)[0].square().mean(-1).sqrt()
    return found


def reward_ensemble(pairs: Tensor, width: int, settings: EnsembleSettings, seed: int) -> Probes:
    """E reward heads fitted to pairs of states (N, 2, H), the chosen one first: each minimises
    Σ −log σ(r(y_w) − r(y_l)) + λ ‖θ − θ⁰‖², θ⁰ its own first weights and λ ``prior_weight``, so
    that they agree where there are data and differ elsewhere. Liu et al. 2024, arXiv 2411.01493.
    """
    generator = torch.Generator().manual_seed(seed)
    probes = Probes(settings.heads, width, settings.hidden, 1, generator)
    if not len(pairs):
        return probes
    first = [parameter.detach().clone() for parameter in probes.parameters()]
    strength = settings.prior_weight / len(pairs)

    def loss(rows: Tensor) -> Tensor:
        rewards = probes(pairs[rows].flatten(0, 1)).view(settings.heads, -1, 2)
        fitted = -logsigmoid(rewards[..., 0] - rewards[..., 1]).mean(1).sum()
        moved = zip(probes.parameters(), first, strict=True)
        return fitted + strength * torch.stack([(a - b).square().sum() for a, b in moved]).sum()

    _fit(probes, loss, len(pairs), settings, generator)
    return probes.requires_grad_(False)
