"""Optimism off the data where every expectation is a sum: the paper's statements without sampling,
its Figure 1 and a bandit.

One prompt, Y answers, softmax policies with one logit per answer. Preferences are Bradley-Terry
with soft labels over a fixed set of compared pairs. Rewards and log-probabilities in nats; beta as
in DPO. pi policy, pi_ref reference, r(y) = beta (log pi(y) - log pi_ref(y)) the implicit reward,
L the exact DPO loss, S = E_{pi_ref}[log pi] the exploration term; SELM minimises L + alpha beta S
(arXiv 2405.19332, eq. 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp  # type: ignore[import-untyped]

from analysis.figure import DISTINCT, DOUBLE, MARKERS, Drawn, legend_below, new_figure, nth_style
from analysis.load import StudyData
from analysis.table import Observation, Unavailable

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Reference policy (Y,); ``first`` beats ``second`` with probability ``label``, weighted."""

    reference: Vector
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    labels: Vector
    weights: Vector
    beta: float

    @property
    def seen(self) -> NDArray[np.int64]:
        """Answers that occur in a compared pair."""
        return np.unique(np.concatenate([self.first, self.second]))


def world(
    reference: Sequence[float],
    pairs: Sequence[tuple[int, int]],
    rewards: Sequence[float],
    beta: float,
) -> World:
    """Pairs of equal weight; P(first beats second) = sigma(reward difference)."""
    first, second = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
    true = np.asarray(rewards, dtype=np.float64)
    labels = sigmoid(true[first] - true[second])
    weights = np.full(len(pairs), 1 / len(pairs))
    return World(np.asarray(reference, dtype=np.float64), first, second, labels, weights, beta)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(x) / 2))


def score(logits: Vector) -> NDArray[np.float64]:
    """(Y, Y) matrix whose row y is the gradient of log pi(y) in the logits: onehot(y) - pi."""
    matrix: NDArray[np.float64] = np.eye(len(logits)) - np.exp(log_softmax(logits))
    return matrix


def implicit_reward(logits: Vector, at: World) -> Vector:
    """r(y) = beta (log pi(y) - log pi_ref(y))."""
    rewards: Vector = at.beta * (log_softmax(logits) - np.log(at.reference))
    return rewards


def kl(p: Vector, q: Vector) -> float:
    """KL(p || q) in nats."""
    return float(np.sum(p * (np.log(p) - np.log(q))))


def mean_log_ratio(logits: Vector, at: World) -> float:
    """E_{pi_ref}[r / beta], by the definition of r; by section 5.1 it is -KL(pi_ref || pi)."""
    return float(at.reference @ (implicit_reward(logits, at) / at.beta))


def dpo_gradient(logits: Vector, at: World) -> Vector:
    """Gradient of L in the logits."""
    rewards = implicit_reward(logits, at)
    gap = rewards[at.first] - rewards[at.second]
    slope = at.weights * (sigmoid(gap) - at.labels) * at.beta
    gradient = np.zeros_like(logits)
    np.add.at(gradient, at.first, slope)
    np.add.at(gradient, at.second, -slope)
    return gradient


def exploration_gradient(logits: Vector, at: World) -> Vector:
    """Gradient of S = E_{y ~ pi_ref}[log pi(y)], as written in eq. 4.2."""
    gradient: Vector = at.reference @ score(logits)
    return gradient


def selm_gradient(logits: Vector, at: World, alpha: float) -> Vector:
    """Gradient of L + alpha beta S."""
    return dpo_gradient(logits, at) + alpha * at.beta * exploration_gradient(logits, at)


def descend(
    at: World, alpha: float, *, steps: int, rate: float, start: Vector | None = None
) -> NDArray[np.float64]:
    """Logits (steps + 1, Y) of gradient descent on L + alpha beta S from pi_ref or ``start``."""
    logits = np.log(at.reference) if start is None else start.copy()
    path = [logits]
    for _ in range(steps):
        logits = logits - rate * selm_gradient(logits, at, alpha)
        path.append(logits)
    return np.array(path)


def tilted(rewards: Vector, at: World) -> Vector:
    """argmax of E_pi[reward] - beta KL(pi || pi_ref): pi_ref exp(reward / beta), normalised."""
    best: Vector = np.exp(log_softmax(np.log(at.reference) + rewards / at.beta))
    return best


def optimism(rewards: Vector, at: World) -> float:
    """max_pi E_pi[r] - E_{pi_ref}[r] - beta KL(pi || pi_ref) = beta log E_{pi_ref}[exp(r / beta)] -
    E_{pi_ref}[r] (eq. 4.1).
    """
    scaled = np.log(at.reference) + rewards / at.beta
    return float(at.beta * logsumexp(scaled) - at.reference @ rewards)


def reward_models(at: World, true: Vector, low: float, high: float) -> tuple[Vector, Vector]:
    """Two reward models of the same likelihood: equal on the compared answers, free in [low, high]
    elsewhere.

    The first puts ``low`` off the data; the optimistic one takes the values that maximise
    ``optimism``. It is convex in the rewards, so the maximum lies at a corner of the box and every
    corner is tried.
    """
    unseen = np.setdiff1d(np.arange(len(at.reference)), at.seen)
    plain = true.copy()
    plain[unseen] = low
    best, best_value = plain, optimism(plain, at)
    for corner in product((low, high), repeat=len(unseen)):
        candidate = true.copy()
        candidate[unseen] = corner
        if optimism(candidate, at) > best_value:
            best, best_value = candidate, optimism(candidate, at)
    return plain, best


FIGURE_ONE_REWARDS = (0.9, 0.5, 0.2, 0.4, 0.1, 0.8, 0.3, 1.0)
FIGURE_ONE = world(
    reference=(0.22, 0.20, 0.16, 0.12, 0.10, 0.08, 0.07, 0.05),
    pairs=((0, 1), (1, 2), (0, 2), (2, 3)),
    rewards=FIGURE_ONE_REWARDS,
    beta=0.5,
)


def figure_one() -> tuple[dict[str, Vector], dict[float, list[float]]]:
    """Data of the paper's Fig. 1 and section 5.1, exact: rewards by models and their policies (Y,),
    and by alpha E_{pi_ref}[r / beta] along 20 gradient steps.
    """
    at, true = FIGURE_ONE, np.array(FIGURE_ONE_REWARDS)
    plain, optimistic = reward_models(at, true, low=0.0, high=1.0)
    answers = {
        "true_reward": true,
        "reward_model": plain,
        "optimistic_reward_model": optimistic,
        "policy": tilted(plain, at),
        "optimistic_policy": tilted(optimistic, at),
    }
    paths = {alpha: descend(at, alpha, steps=20, rate=1.0) for alpha in (0.0, 0.3, 1.0)}
    return answers, {a: [mean_log_ratio(logits, at) for logits in p] for a, p in paths.items()}


BANDIT_ALPHAS = (0.0, 1e-5, 1e-3, 1e-2, 3e-2, 0.1)
BANDIT_RUNS = 400


def bandit(
    reward_a: float, alpha: float, generator: np.random.Generator, *, runs: int = BANDIT_RUNS
) -> dict[str, float]:
    """300 rounds of online XPO over two policies, with the exact argmin each round: shares of runs
    that ever saw answer a and that end at the optimistic policy, and the mean regret of the last.

    Two answers, beta 0.05, pi_ref(a) = e^-8, r(b) = 1/2, r(a) = ``reward_a``. The policies are
    pi_ref and pi_ref exp(r / beta) / Z for r(a) = 1, right where ``reward_a`` is 1. Each round
    draws y from the policy and y' from pi_ref, labels the pair by Bradley-Terry and minimises over
    all rounds so far -log sigma(r(y_w) - r(y_l)) + alpha log pi(y'); a tie goes to pi_ref. Regret
    is what the best policy's E[r] - beta KL(pi || pi_ref) has more. After Proposition 2.1 of arXiv
    2405.21046.
    """
    rare, rewards = float(np.exp(-8)), np.array([reward_a, 0.5])
    at = world((rare, 1 - rare), [(0, 1)], (reward_a, 0.5), beta=0.05)
    policies = np.array([at.reference, tilted(np.array([1.0, 0.5]), at)])
    extra = alpha * (np.log(policies[1]) - np.log(policies[0]))
    implied = implicit_reward(np.log(policies[1]), at)
    optimistic, seen = np.zeros(runs, dtype=np.int64), np.zeros(runs, dtype=bool)
    excess = np.zeros(runs)  # loss of the optimistic policy above pi_ref's
    for _ in range(300):
        drawn = (generator.random(runs) >= policies[optimistic, 0]).astype(np.int64)
        other = (generator.random(runs) >= rare).astype(np.int64)
        wins = generator.random(runs) < sigmoid(rewards[drawn] - rewards[other])
        gap = np.where(wins, 1, -1) * (implied[drawn] - implied[other])
        excess += np.logaddexp(0, -gap) - np.log(2) + extra[other]
        optimistic = (excess < 0).astype(np.int64)
        seen |= (drawn == 0) | (other == 0)
    values = policies @ rewards - at.beta * np.array([kl(one, at.reference) for one in policies])
    best = at.beta * float(np.log(at.reference @ np.exp(rewards / at.beta)))
    regret = best - values[optimistic]
    shares = {"seen": seen, "optimistic": optimistic, "regret": regret}
    return {name: float(values.mean()) for name, values in shares.items()}


# -- the figures -----------------------------------------------------------------------------------
PLAIN = {"color": DISTINCT[0], "marker": MARKERS[0]}
OPTIMISTIC = {"color": DISTINCT[1], "marker": MARKERS[1]}
TRUE = {"color": DISTINCT[2], "marker": "_", "linestyle": "none"}


def figure_1(data: StudyData) -> Drawn | Unavailable:
    """Left: reward models equal on the data; middle: their policies; right: SELM's early steps."""
    title = "Figure 1. Optimism off the data (exact, finite answer set)"
    if not data.trains:
        return Unavailable("figure_1", title, "it is about training, and this study trains nothing")
    found, steps = figure_one()
    figure, grid = new_figure(DOUBLE, 2.55, 1, 3)
    left, middle, right = grid[0]
    rows = _stems(left, found, "reward", ("reward_model", "optimistic_reward_model"))
    rows += _stems(middle, found, "policy", ("policy", "optimistic_policy"))
    left.plot(found["true_reward"], markersize=9, **TRUE)
    rows += [*_by_answer(found, "reward", "true_reward"), *_steps(right, steps)]
    left.set_title("reward models")
    middle.set_title("policies they lead to")
    handles = [
        *middle.plot([], [], label="plain reward model", **PLAIN),
        *middle.plot([], [], label="optimistic reward model", **OPTIMISTIC),
        *left.plot([], [], label="true reward", **TRUE),
        *right.get_legend_handles_labels()[0],
    ]
    legend_below(figure, handles, 3)
    caption = (
        "A finite answer set, exact. Left: two reward models that agree on the compared answers; "
        "the optimistic one is larger off them. "
        "Middle: the policies that maximise each with the KL penalty. "
        "Right: mean of r/β under π_ref over gradient steps; DPO already lowers it, α > 0 lowers "
        "it more."
    )
    alt = "Two reward models, their policies, and mean log-ratio over steps."
    return Drawn("figure_1", title, caption, figure, rows, alt)


def _stems(
    axes: Axes, found: Mapping[str, Vector], panel: str, series: tuple[str, str]
) -> list[Observation]:
    """A stem an answer for both models, side by side; grey: the answers in the data."""
    seen, rows = FIGURE_ONE.seen, []
    axes.axvspan(seen.min() - 0.5, seen.max() + 0.5, color="#eeeeee", linewidth=0, zorder=0)
    answers = np.arange(len(found["true_reward"]))
    for name, offset, look in zip(series, (-0.12, 0.12), (PLAIN, OPTIMISTIC), strict=True):
        axes.vlines(answers + offset, 0, found[name], color=look["color"], linewidth=1.2)
        axes.plot(answers + offset, found[name], linestyle="none", **look)  # type: ignore[arg-type]
        rows += _by_answer(found, panel, name)
    axes.set_xlabel("answer (grey: in the data)")
    axes.set_xticks(answers)
    return rows


def _by_answer(found: Mapping[str, Vector], panel: str, name: str) -> list[Observation]:
    of, seen = {"panel": panel, "series": name, "alpha": None}, FIGURE_ONE.seen.tolist()
    return [
        {**of, "answer_or_step": answer, "in_data": answer in seen, "value": value}
        for answer, value in enumerate(found[name].tolist())
    ]


def _steps(axes: Axes, steps: Mapping[float, list[float]]) -> list[Observation]:
    """E_{π_ref}[r/β] over gradient steps, one line an α."""
    rows: list[Observation] = []
    for number, (alpha, values) in enumerate(steps.items()):
        colour = DISTINCT[number + 2] if number else DISTINCT[0]
        style = nth_style(number, colour, f"α = {alpha:g}")
        axes.plot(values, markevery=5, label=style.label, **style.look)
        of = {"panel": "steps", "series": "mean_log_ratio", "alpha": alpha}
        for step, value in enumerate(values):
            rows.append({**of, "answer_or_step": step, "in_data": None, "value": value})
    axes.set_title(r"$E_{\pi_{\mathrm{ref}}}[r/\beta] = -KL(\pi_{\mathrm{ref}} \Vert \pi)$")
    axes.set_xlabel("gradient step")
    axes.set_ylabel("nats")
    return rows


AXIS = "objective.alpha"
SERIES = {
    "seen": "runs that ever saw the rare answer",
    "optimistic": "runs that end at the optimistic policy",
    "regret": "mean regret of the last policy",
}


def figure_bandit(data: StudyData) -> Drawn | Unavailable:
    """XPO with an exact argmin on two answers, the rare one being the best or the worst."""
    key, title = "bandit", "Where optimism must show (exact bandit)"
    if AXIS not in data.axes:
        return Unavailable(key, title, f"the study does not vary {AXIS}")
    figure, grid = new_figure(DOUBLE, 2.4, 1, 2)
    rows: list[Observation] = []
    places = range(len(BANDIT_ALPHAS))
    for axes, reward in zip(grid[0], (1.0, 0.0), strict=True):
        generator = np.random.default_rng(0)
        found = [bandit(reward, alpha, generator) for alpha in BANDIT_ALPHAS]
        for number, (name, label) in enumerate(SERIES.items()):
            style = nth_style(number, DISTINCT[number], label)
            axes.plot(places, [one[name] for one in found], label=label, **style.look)
        for alpha, one in zip(BANDIT_ALPHAS, found, strict=True):
            place = {"reward_of_rare_answer": reward, "alpha": alpha}
            rows += [{**place, "series": name, "value": value} for name, value in one.items()]
        axes.set_title(f"the rare answer's reward is {reward:g}")
        axes.set_xticks(places, [f"{alpha:g}" for alpha in BANDIT_ALPHAS])
        axes.set_xlabel("α")
        axes.set_ylim(-0.05, 1.05)
    legend_below(figure, grid[0][0].get_legend_handles_labels()[0], 3)
    caption = (
        "No model is trained here: two answers, a reference that gives one of them probability "
        "e⁻⁸, two policies to choose from, 300 rounds, "
        f"{BANDIT_RUNS} runs per point. Left: the rare answer is worth 1 and the other ½, so "
        "DPO (α = 0) rarely finds it and optimism always does. Right: it is worth 0, and the same "
        "optimism costs."
    )
    alternative = "Shares of runs and regret over alpha in two worlds."
    return Drawn(key, title, caption, figure, rows, alternative)
