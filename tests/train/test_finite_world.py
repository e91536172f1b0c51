"""The paper's statements where every answer can be enumerated: no samples, no tolerance but
rounding.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from analysis.figures import optimism as exact

ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0)
SEEDS = range(8)


def dpo_loss(logits: np.ndarray, at: exact.World) -> float:
    """L = -sum_w [label log sigma(D) + (1 - label) log sigma(-D)], D = r(first) - r(second)."""
    rewards = exact.implicit_reward(logits, at)
    gap = rewards[at.first] - rewards[at.second]
    one, other = np.logaddexp(0, -gap), np.logaddexp(0, gap)
    return float(at.weights @ (at.labels * one + (1 - at.labels) * other))


def selm_loss(logits: np.ndarray, at: exact.World, alpha: float) -> float:
    """L + alpha beta S (constants dropped): what ``exact.selm_gradient`` is the gradient of."""
    exploration = float(at.reference @ exact.log_softmax(logits))
    return dpo_loss(logits, at) + alpha * at.beta * exploration


TWO_BASINS = exact.World(
    np.array([0.36, 0.60, 0.04]),
    np.array([2, 2]),
    np.array([0, 1]),
    np.array([0.38, 0.43]),
    np.array([0.54, 0.46]),
    beta=1.0,
)
TWO_BASINS_START = np.array([-0.5, 2.0, 2.0])
"""Convex minus concave: from this start, descent on alpha 0.4 stops nearer to the reference than on
alpha 0.3, and from the reference alpha 0.35 has no minimiser at all. (Where global minimisers
exist, a larger alpha never raises S: add the two optimality inequalities.) So what alpha does is a
statement about early steps.
"""


def exploration_gradient_on_policy(logits: np.ndarray, at: exact.World) -> np.ndarray:
    """The same gradient as eq. 4.3 writes it: E_{y ~ pi}[exp(-r(y) / beta) grad log pi(y)]."""
    policy = np.exp(exact.log_softmax(logits))
    gradient: np.ndarray = (
        policy * np.exp(-exact.implicit_reward(logits, at) / at.beta)
    ) @ exact.score(logits)
    return gradient


def regularised_value(policy: np.ndarray, rewarder: np.ndarray, at: exact.World) -> float:
    """E_pi[r_rho] + beta KL(pi || rho) with r_rho the implicit reward of ``rewarder`` (logits of
    rho): what Theorem 5.1 minimises.
    """
    rho = np.exp(exact.log_softmax(rewarder))
    return float(policy @ exact.implicit_reward(rewarder, at)) + at.beta * exact.kl(policy, rho)


def random_world(seed: int, answers: int = 6) -> tuple[exact.World, np.ndarray]:
    """A world with soft labels on half of the pairs, and a policy away from its reference."""
    rng = np.random.default_rng(seed)
    reference = rng.dirichlet(np.ones(answers))
    pairs = [(i, j) for i in range(answers) for j in range(i) if rng.random() < 0.5] or [(0, 1)]
    return exact.world(
        reference, pairs, rng.normal(size=answers), beta=float(rng.uniform(0.05, 1.0))
    ), rng.normal(size=answers)


def two_answers() -> exact.World:
    """pi_ref = (1/2, 1/2), one pair with label 3/4, beta 1."""
    return exact.World(
        np.array([0.5, 0.5]), np.array([0]), np.array([1]), np.array([0.75]), np.array([1.0]), 1.0
    )


def test_two_answers_by_hand() -> None:
    """Logits (ln 3, 0) give pi = (3/4, 1/4), r = (ln 3/2, ln 1/2), D = ln 3: the soft-label
    optimum.
    """
    at, logits = two_answers(), np.array([np.log(3), 0.0])
    assert exact.implicit_reward(logits, at) == pytest.approx([np.log(1.5), np.log(0.5)])
    assert dpo_loss(logits, at) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert exact.dpo_gradient(logits, at) == pytest.approx([0, 0], abs=1e-15)
    assert exact.exploration_gradient(logits, at) == pytest.approx([-0.25, 0.25])  # pi_ref - pi
    assert exact.mean_log_ratio(logits, at) == pytest.approx(
        0.5 * np.log(0.75)
    )  # (ln 1.5 + ln 0.5) / 2
    assert exact.optimism(np.array([np.log(3), 0.0]), at) == pytest.approx(
        np.log(2) - 0.5 * np.log(3)
    )  # ln((3 + 1) / 2) - E[r]
    assert selm_loss(logits, at, 2.0) == pytest.approx(
        dpo_loss(logits, at) + np.log(0.75) + np.log(0.25)
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_are_the_slopes_of_the_loss(seed: int, alpha: float) -> None:
    at, logits = random_world(seed)
    step = 1e-5
    slopes = [
        (selm_loss(logits + step * unit, at, alpha) - selm_loss(logits - step * unit, at, alpha))
        / (2 * step)
        for unit in np.eye(len(logits))
    ]
    assert exact.selm_gradient(logits, at, alpha) == pytest.approx(slopes, abs=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_identity_4_3(seed: int) -> None:
    """E_{pi_ref}[grad log pi] = E_pi[exp(-r / beta) grad log pi]: samples of pi_ref pushed down are
    samples of pi, reweighted.
    """
    at, logits = random_world(seed)
    by_reference = exact.exploration_gradient(logits, at)
    assert np.abs(by_reference).max() > 1e-3
    assert exploration_gradient_on_policy(logits, at) == pytest.approx(by_reference, abs=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_theorem_5_1(seed: int) -> None:
    """E_pi[r_rho] + beta KL(pi || rho) = beta KL(pi || pi_ref) for every pi: least, and 0, at
    pi_ref itself, whatever rho is.
    """
    at, rewarder = random_world(seed)
    rng = np.random.default_rng(100 + seed)
    assert regularised_value(at.reference, rewarder, at) == pytest.approx(0.0, abs=1e-13)
    for _ in range(50):
        policy = rng.dirichlet(np.full(len(rewarder), rng.choice([0.3, 1.0, 10.0]))).clip(1e-12)
        policy /= policy.sum()
        value = regularised_value(policy, rewarder, at)
        assert value == pytest.approx(at.beta * exact.kl(policy, at.reference), abs=1e-11)
        assert value > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_reference_answers_never_gain_on_average(seed: int) -> None:
    """E_{pi_ref}[r / beta] = -KL(pi_ref || pi) <= 0 for any policy at all, trained or not; 0 only
    at pi_ref.
    """
    at, _ = random_world(seed)
    rng = np.random.default_rng(200 + seed)
    for scale in (0.01, 1.0, 5.0):
        logits = rng.normal(size=len(at.reference)) * scale
        policy = np.exp(exact.log_softmax(logits))
        assert exact.mean_log_ratio(logits, at) == pytest.approx(
            -exact.kl(at.reference, policy), abs=1e-12
        )
        assert exact.mean_log_ratio(logits, at) < 0
    assert exact.mean_log_ratio(np.log(at.reference), at) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_expected_exploration_gradient_is_zero_at_the_reference(seed: int) -> None:
    at, _ = random_world(seed)
    assert exact.exploration_gradient(np.log(at.reference), at) == pytest.approx(
        np.zeros(len(at.reference)), abs=1e-15
    )
    greedy = exact.score(np.log(at.reference))[int(at.reference.argmax())]
    assert np.abs(greedy).max() > 0.1, (
        "a greedy y has no such mean: it pushes off the mode from the first step"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_more_alpha_lowers_reference_answers_further_over_twenty_steps(seed: int) -> None:
    at, _ = random_world(seed)
    rate = 0.1 / at.beta
    found = [
        exact.mean_log_ratio(exact.descend(at, alpha, steps=20, rate=rate)[-1], at)
        for alpha in ALPHAS
    ]
    assert all(more < less for less, more in itertools.pairwise(found)), found
    assert found[0] < 0, "without any exploration DPO lowers them already"


def test_at_convergence_more_alpha_need_not_lower_them() -> None:
    at = TWO_BASINS
    found = {}
    for alpha in (0.3, 0.4):
        logits = exact.descend(at, alpha, steps=6000, rate=4.0, start=TWO_BASINS_START)[-1]
        assert np.abs(exact.selm_gradient(logits, at, alpha)).max() < 1e-13, (
            "converged: a stationary point, not a stop on the way"
        )
        found[alpha] = exact.mean_log_ratio(logits, at)
    assert found[0.3] == pytest.approx(-2.0189, abs=1e-4)
    assert found[0.4] == pytest.approx(-0.4145, abs=1e-4)


def test_there_may_be_no_minimiser() -> None:
    """Soft labels over every pair that matters; still at alpha 0.35 the loss falls without end."""
    at = TWO_BASINS
    path = exact.descend(at, 0.35, steps=6000, rate=4.0)
    losses = [selm_loss(path[k], at, 0.35) for k in (0, 2000, 4000, 6000)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[1] - 5
    assert exact.mean_log_ratio(path[-1], at) < -100
    assert np.abs(exact.selm_gradient(path[-1], at, 0.35)).max() > 1e-3


def test_figure_one_two_models_equal_on_the_data() -> None:
    answers, paths = exact.figure_one()
    at = exact.FIGURE_ONE
    off = np.setdiff1d(np.arange(len(at.reference)), at.seen)
    plain, optimistic = answers["reward_model"], answers["optimistic_reward_model"]
    assert off.size
    assert (plain[at.seen] == optimistic[at.seen]).all()
    assert (optimistic[off] >= plain[off]).all()
    assert (optimistic[off] > plain[off]).any()
    assert exact.optimism(optimistic, at) > exact.optimism(plain, at)
    policy, explorer = answers["policy"], answers["optimistic_policy"]
    assert explorer[off].sum() > policy[off].sum(), (
        "the optimistic model sends its policy off the data"
    )
    last = [line[-1] for line in paths.values()]
    assert list(paths) == [0.0, 0.3, 1.0]
    assert last == sorted(last, reverse=True)
    assert all(line[0] == pytest.approx(0.0, abs=1e-15) for line in paths.values())


BANDIT = {  # reward of a → alpha → a ever seen, ends at the optimistic policy, regret
    1.0: {
        0.0: (0.20, 0.06, 0.100),
        1e-5: (1, 0.20, 0.085),
        1e-3: (1, 0.59, 0.044),
        1e-2: (1, 1, 0.000),
        3e-2: (1, 1, 0.000),
        0.1: (1, 1, 0.000),
    },
    0.0: {
        0.0: (None, 0, 0),
        1e-5: (None, 0, 0),
        1e-3: (None, 0.01, 0.010),
        1e-2: (None, 0.24, 0.182),
        3e-2: (None, 0.80, 0.618),
        0.1: (None, 1, 0.774),
    },
}
"""Worked out beforehand with 400 runs each."""


@pytest.mark.parametrize(
    ("reward", "alpha"), [(reward, alpha) for reward, row in BANDIT.items() for alpha in row]
)
def test_the_bandits_table(reward: float, alpha: float) -> None:
    """To half of the last digit and 3.5 standard errors of a share in the table's 400 runs."""
    found = exact.bandit(reward, alpha, np.random.default_rng(1), runs=4000)
    seen, ends, regret = BANDIT[reward][alpha]
    lost = 0.10618 if reward else 0.77447

    def noise(share: float) -> float:
        return 3.5 * math.sqrt(share * (1 - share) / exact.BANDIT_RUNS)

    if seen is not None:
        assert found["seen"] == pytest.approx(seen, abs=0.005 + noise(found["seen"]))
    assert found["optimistic"] == pytest.approx(ends, abs=0.005 + noise(found["optimistic"]))
    assert found["regret"] == pytest.approx(regret, abs=5e-4 + lost * noise(found["optimistic"]))
    wrong = found["optimistic"]
    if reward:
        wrong = 1 - wrong
    assert found["regret"] == pytest.approx(lost * wrong, abs=2e-4)


def test_the_rare_answer_is_seen_as_often_as_two_draws_a_round_say() -> None:
    found = exact.bandit(1.0, 0.0, np.random.default_rng(2), runs=20_000)
    share = 1 - (1 - math.exp(-8)) ** 600
    assert found["seen"] == pytest.approx(share, abs=4 * 0.0028)
