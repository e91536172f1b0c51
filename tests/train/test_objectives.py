"""Every objective against numbers worked by hand, and the coefficients that studies report.

The worked row: log pi (y_w, y_l, y) = (-3, -7, -4), log pi_ref = (-5, -6, -6), tokens (2, 4, 3),
beta 0.5. So r(y_w) = 2, r(y_l) = -1, r(y) = 2, Delta = 3, beta Delta = 1.5 and -log sigma(1.5) =
ln(1 + e^-1.5) = 0.2014132779827524.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.records import HarnessError
from harness.train.objectives import OBJECTIVES, Rows, resolve, source_of

ROLES = ("chosen", "rejected", "explore")
BATCH = {
    name: torch.tensor(v, dtype=torch.float64) for name, v in (("mean", 3.0), ("average", 1.0))
}
BETA, ALPHA = 0.5, 0.2
DPO = 0.2014132779827524  # ln(1 + e^-1.5)
FLIPPED = 1.7014132779827524  # ln(1 + e^1.5) = 1.5 + DPO
LOST = 0.18242552380635635  # sigma(-1.5)

WORKED: dict[str, list[tuple[dict[str, Any], float]]] = {
    "dpo": [({}, DPO)],
    "selm": [({}, DPO + 0.2 * 0.5 * 2)],
    "selm_algorithm_1": [({}, DPO + 0.2 * 2)],
    "xpo": [({}, DPO + 0.2 * 2), ({"clip": 1.5}, DPO + 0.2 * 1.5)],
    "vpo": [({}, DPO + 0.2 * 0.5 * 2)],
    "se_popo": [({}, DPO + 0.2 * (0.7310585786300049 - 0.5) / 0.5)],  # sigma(0.5 * 2) = sigma(1)
    "copo": [({}, DPO + 0.2 * 5 * 0.1 * 1 * 4)],  # exp r(y) = e^2, cut at 5; rarity 1, log pi -4
    "ipo": [({}, (3 - 1) ** 2)],  # 1 / (2 beta) = 1
    "ipo_mean": [({}, (2 / 2 - (-1) / 4 - 1) ** 2)],
    "cdpo": [({}, 0.9 * DPO + 0.1 * FLIPPED), ({"epsilon": 0.25}, 0.75 * DPO + 0.25 * FLIPPED)],
    "robust": [({}, (0.9 * DPO - 0.1 * FLIPPED) / 0.8)],
    "hinge": [({}, 0.0)],  # 1 - 1.5 < 0
    "simpo": [({}, math.log1p(math.exp(0.375)))],  # 0.5 (-3/2 + 7/4) - 0.5 = -0.375
    "rpo": [({}, DPO + 1.5), ({"weight": 0.1}, DPO + 0.15)],  # -log pi(y_w) / 2 tokens = 1.5
    "dpop": [({}, DPO)],  # r(y_w) > 0: no penalty
    "dpo_norm": [({}, math.log1p(math.exp(-0.625)))],  # 0.5 (2/2 + 1/4)
    "wpo": [({}, math.exp(-3 / 2 - 7 / 4) * DPO)],
    "exo": [
        ({}, 0.8175744761936437 * (-DPO - math.log(0.999)) + LOST * (-FLIPPED - math.log(0.001))),
        ({"epsilon": 0.5}, -0.8175744761936437 * DPO - LOST * FLIPPED + math.log(2)),
    ],
    "nca": [  # beta r = 1 and -0.5
        ({}, math.log1p(math.exp(-1)) + (math.log1p(math.e) + math.log1p(math.exp(-0.5))) / 2)
    ],
    "sppo": [({}, (2 - 1) ** 2 + (-1 + 1) ** 2)],
    "orpo": [  # odds p / (1 - p) of p = e^-1.5 and e^-1.75
        ({}, 1.5 + 0.5 * math.log1p((math.exp(1.5) - 1) / (math.exp(1.75) - 1)))
    ],
    "beta_dpo": [  # E = 3, M = 1: beta 0.5 (1 + 0.6 * 2) = 1.1
        ({}, math.log1p(math.exp(-3.3))),
        ({"scale": 0.0}, DPO),
        ({"scale": -1.0}, math.log1p(math.exp(-0.003))),  # not below 1e-3
    ],
    "kto": [  # z = 3: 1 - sigma(0.5 (2 - 3)) and 1 - sigma(0.5 (3 + 1))
        ({}, (1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(2))) / 2),
        ({"desirable_weight": 2.0, "undesirable_weight": 0.0}, 1 / (1 + math.exp(-0.5))),
    ],
    "geb_p": [({}, DPO + math.exp(-7)), ({"kappa": 3.0}, DPO + 3 * math.exp(-7))],
    "geb_f": [({"kappa": 1e-3}, DPO - 1e-3 / (math.exp(-7) + 1e-5))],
    "geb_tanh": [  # artanh(1 - p) = ln((2 - p) / p) / 2
        ({}, DPO - math.log((2 - math.exp(-7) - 1e-5) / (math.exp(-7) + 1e-5)) / 2)
    ],
}


def worked_rows(**changes: float) -> Rows:
    logps = {"chosen": -3.0, "rejected": -7.0, "explore": -4.0} | changes
    reference = {"chosen": -5.0, "rejected": -6.0, "explore": -6.0}
    tokens = {"chosen": 2.0, "rejected": 4.0, "explore": 3.0}

    def tensors(values: dict[str, float]) -> dict[str, torch.Tensor]:
        return {
            role: torch.tensor([value], dtype=torch.float64, requires_grad=True)
            for role, value in values.items()
        }

    met_once = {"explore": torch.ones(1, dtype=torch.float64)}
    return Rows(tensors(logps), tensors(reference), tensors(tokens), met_once, BATCH)


def loss_of(
    name: str, rows: Rows, *, alpha: float = ALPHA, beta: float = BETA, **params: Any
) -> torch.Tensor:
    return resolve(name, alpha=alpha, beta=beta, params=params).losses(rows)


def test_every_objective_has_worked_numbers() -> None:
    assert set(WORKED) == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [(name, *case) for name, cases in WORKED.items() for case in cases],
)
def test_worked_by_hand(name: str, params: dict[str, Any], expected: float) -> None:
    assert loss_of(name, worked_rows(), **params).item() == pytest.approx(
        expected, rel=1e-12, abs=1e-12
    )


def test_hinge_and_dpop_on_the_other_side_of_their_corner() -> None:
    assert loss_of("hinge", worked_rows(rejected=-5.5)).item() == pytest.approx(
        1 - 0.5 * 1.5
    )  # Delta = 2 - 0.5
    # r(y_w) = -1, Delta = -1 + 1 = 0, penalty 50 * 1: -log sigma(-25)
    assert loss_of("dpop", worked_rows(chosen=-6.0)).item() == pytest.approx(25.0, abs=1e-9)
    assert loss_of("dpop", worked_rows(chosen=-6.0), penalty=2.0).item() == pytest.approx(
        math.log1p(math.exp(1.0))
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_one_number_per_row(name: str) -> None:
    generator = torch.Generator().manual_seed(3)

    def numbers(low: float, high: float) -> dict[str, torch.Tensor]:
        return {
            role: torch.rand(5, generator=generator, dtype=torch.float64) * (high - low) + low
            for role in ROLES
        }

    rows = Rows(numbers(-9, -1), numbers(-9, -1), numbers(1, 9), numbers(0, 1), BATCH)
    losses = loss_of(name, rows)
    assert losses.shape == (5,)
    alone = [
        loss_of(
            name,
            Rows(
                *(
                    {role: values[i : i + 1] for role, values in part.items()}
                    for part in (rows.logps, rows.reference, rows.tokens, rows.extras)
                ),
                batch=BATCH,
            ),
        )
        for i in range(5)
    ]
    assert torch.equal(losses, torch.cat(alone))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("alpha", [0.3, -0.3, 0.0])
def test_coefficient_is_the_slope_in_y_where_policy_is_reference(name: str, alpha: float) -> None:
    rows = worked_rows(chosen=-5.0, rejected=-6.0, explore=-6.0)
    objective = resolve(name, alpha=alpha, beta=BETA)
    objective.losses(rows).sum().backward()
    slope = rows.logps["explore"].grad
    assert (0.0 if slope is None else slope.item()) == pytest.approx(objective.c, abs=1e-12)
    assert objective.kappa == pytest.approx(2 * objective.c / BETA)


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name in {"dpo", "selm", "xpo", "vpo", "se_popo"}]
)
def test_preference_part_weighs_beta_half_at_the_start(name: str) -> None:
    rows = worked_rows(chosen=-5.0, rejected=-6.0, explore=-6.0)
    loss_of(name, rows).sum().backward()
    assert rows.logps["chosen"].grad.item() == pytest.approx(-BETA / 2)
    assert rows.logps["rejected"].grad.item() == pytest.approx(BETA / 2)


def test_coefficients_as_published() -> None:
    zephyr = resolve("selm", alpha=1e-3, beta=0.01)
    xpo = resolve("xpo", alpha=1e-5, beta=0.1)
    assert (zephyr.c, zephyr.kappa) == pytest.approx((1e-5, 2e-3))
    assert (xpo.c, xpo.kappa) == pytest.approx((1e-5, 2e-4))
    algorithm_1 = resolve("selm_algorithm_1", alpha=1e-3, beta=0.01)
    assert algorithm_1.c == pytest.approx(100 * zephyr.c)
    assert resolve("se_popo", alpha=0.4, beta=0.1).c == pytest.approx(0.1)


@pytest.mark.parametrize(
    "name", [name for name, objective in OBJECTIVES.items() if objective.explores]
)
def test_alpha_zero_is_dpo_and_never_reads_y(name: str) -> None:
    rows = worked_rows()
    without_y = Rows(
        *(
            {role: part[role] for role in ("chosen", "rejected")}
            for part in (rows.logps, rows.reference, rows.tokens)
        )
    )
    objective = resolve(name, alpha=0.0, beta=BETA)
    assert objective == resolve("dpo", beta=BETA)
    assert objective.roles == ("chosen", "rejected")
    assert torch.equal(objective.losses(without_y), loss_of("dpo", rows))


def test_negative_placebo_turns_the_term_round() -> None:
    plain = resolve("selm", alpha=ALPHA, beta=BETA)
    turned = resolve("selm", alpha=ALPHA, beta=BETA, placebo="negative")
    assert turned.c == -plain.c
    rows = worked_rows()
    assert (plain.losses(rows) + turned.losses(rows)).item() == pytest.approx(2 * DPO)
    assert resolve("selm", alpha=ALPHA, beta=BETA, placebo="other_prompt").c == plain.c


def test_copo_raises_y_by_its_rarity_and_without_a_gradient_through_the_bonus() -> None:
    """r(y) = -0.5, met four times: -0.2 e^-0.5 0.1 (1/2) is the loss's whole slope in log pi(y)."""
    rows = replace(worked_rows(explore=-6.5), extras={"explore": torch.full((1,), 0.5)})
    losses = loss_of("copo", rows)
    losses.sum().backward()
    slope = -0.2 * math.exp(-0.5) * 0.1 * 0.5
    assert losses.item() == pytest.approx(DPO + slope * -6.5, rel=1e-6)
    assert rows.logps["explore"].grad.item() == pytest.approx(slope, rel=1e-6)
    assert rows.reference["explore"].grad is None
    opposite = [resolve(name, alpha=0.2, beta=BETA).c for name in ("selm", "copo")]
    assert opposite == pytest.approx([0.1, -0.02])


def test_copo_reads_the_rarity_of_each_sample_of_y() -> None:
    extras = {"explore": torch.tensor([1.0]), "explore_1": torch.tensor([0.25])}
    rows = worked_rows()
    twice = replace(
        rows,
        logps={**rows.logps, "explore_1": rows.logps["explore"]},
        reference={**rows.reference, "explore_1": rows.reference["explore"]},
        tokens={**rows.tokens, "explore_1": rows.tokens["explore"]},
        extras=extras,
    )
    found = resolve("copo", alpha=ALPHA, beta=BETA, samples=2).losses(twice)
    assert found.item() == pytest.approx(DPO + 0.4 * (1 + 0.25) / 2)


def test_xpo_clips_the_exploration_term_only() -> None:
    rows = worked_rows(explore=-1000.0)
    losses = loss_of("xpo", rows)
    losses.sum().backward()
    assert losses.item() == pytest.approx(DPO - 0.2 * 500)
    assert rows.logps["explore"].grad.item() == 0.0
    assert rows.logps["chosen"].grad.item() != 0.0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_documented_with_equation_and_source(name: str) -> None:
    text = OBJECTIVES[name].function.__doc__ or ""
    assert any(mark in text for mark in ("sigma", "max(", "^2", "dpo")), (
        "the docstring gives the equation"
    )
    assert source_of(OBJECTIVES[name].function), "the docstring gives the source"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "self"}, "unknown objective 'self'; known: dpo, selm"),
        (
            {"name": "cdpo", "params": {"eps": 0.1}},
            "unknown parameter 'eps'; its parameters: epsilon",
        ),
        ({"name": "dpo", "params": {"eps": 0.1}}, "its parameters: none"),
        ({"name": "selm", "beta": 0.0}, "beta is 0.0"),
        ({"name": "selm", "placebo": "sugar"}, "placebo 'sugar'"),
        ({"name": "cdpo", "params": {"epsilon": "small"}}, "epsilon is 'small'"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(
    arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(HarnessError) as refused:
        resolve(**{"beta": BETA, **arguments})
    assert says in str(refused.value)


def test_kto_never_takes_a_divergence_below_zero() -> None:
    rows = dataclasses.replace(worked_rows(), batch={"mean": torch.tensor(-3.0).double()})
    expected = (1 / (1 + math.e) + 1 / (1 + math.exp(0.5))) / 2  # z = 0
    assert loss_of("kto", rows).item() == pytest.approx(expected)


def test_what_the_reference_scores_is_what_loss_and_statistic_read() -> None:
    assert resolve("kto", beta=BETA).scored == (
        "chosen",
        "rejected",
        "other_chosen",
        "other_rejected",
    )
    assert resolve("beta_dpo", beta=BETA).scored == ("chosen", "rejected")


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_exo_needs_a_label_that_may_be_wrong(epsilon: float) -> None:
    with pytest.raises(HarnessError, match="between 0 and 1"):
        loss_of("exo", worked_rows(), epsilon=epsilon)


def test_wpo_weighs_without_a_gradient_of_its_own() -> None:
    rows = worked_rows()
    loss_of("wpo", rows).sum().backward()
    slope = -0.5 * LOST * math.exp(-3 / 2 - 7 / 4)
    assert rows.logps["chosen"].grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("name", ["geb_p", "geb_f", "geb_tanh"])
def test_an_exploratory_bonus_lowers_the_rejected_answers_probability(name: str) -> None:
    rows = worked_rows()
    (loss_of(name, rows) - loss_of("dpo", rows)).sum().backward()
    assert rows.logps["rejected"].grad.item() > 0


def test_a_flip_probability_of_one_half_has_no_unbiased_loss() -> None:
    with pytest.raises(HarnessError, match=r"epsilon 0\.5"):
        loss_of("robust", worked_rows(), epsilon=0.5)


def test_the_term_is_the_mean_over_the_samples_of_y() -> None:
    """SE-POPO bends, so that the mean of the terms is not the term of the mean."""
    rows = worked_rows()
    more = {"explore_1": torch.tensor([-9.0], dtype=torch.float64)}
    both = replace(
        rows,
        logps=rows.logps | more,
        reference=rows.reference | {"explore_1": rows.reference["explore"]},
    )
    objective = resolve("se_popo", alpha=0.4, beta=BETA, samples=2)
    assert objective.roles == ("chosen", "rejected", "explore", "explore_1")

    def sigma(ratio: float) -> float:
        return 1 / (1 + math.exp(-BETA * ratio))

    # r(y) = -4 + 6 = 2 and -9 + 6 = -3
    term = 0.4 * ((sigma(2) + sigma(-3)) / 2 - 0.5) / BETA
    assert objective.losses(both).item() == pytest.approx(DPO + term, rel=1e-12)


def test_orpo_has_finite_odds_for_an_answer_that_float32_calls_certain() -> None:
    rows = worked_rows(chosen=0.0)
    loss = loss_of("orpo", rows)
    loss.sum().backward()
    certain = math.log(2.0**24)  # the odds of 1 - 2^-24
    lost = math.log(math.expm1(1.75))  # of e^-1.75 is minus this
    assert loss.item() == pytest.approx(0.5 * math.log1p(math.exp(-certain - lost)), rel=1e-6)
    assert all(one.grad is None or one.grad.isfinite().all() for one in rows.logps.values())
    assert loss_of("orpo", worked_rows(chosen=0.0, rejected=0.0)).item() == pytest.approx(
        0.5 * math.log(2)
    )
