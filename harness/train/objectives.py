"""Preference objectives: pure functions from log-probabilities to one loss per row.

Legend: B rows; y_w chosen, y_l rejected, y the exploration response ("explore"); log pi is summed
over the response's tokens, end of turn included; r(y) = log pi(y) - log pi_ref(y); Delta = r(y_w) -
r(y_l); all logarithms natural.

Every function takes ``Rows`` (tensors of shape (B,)), the numbers ``alpha`` and ``beta`` and its
own parameters by name, and returns a tensor of shape (B,). Nothing here knows a model, a device or
a file. An objective is added by writing one function and one entry of ``OBJECTIVES``. Importing
this module does not import torch.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.records import HarnessError

if TYPE_CHECKING:
    from torch import Tensor

PAIR = ("chosen", "rejected")
OTHERS = ("other_chosen", "other_rejected")
"""The responses of another row's prompt: what KTO estimates its KL from."""
PLACEBOS = ("none", "negative", "other_prompt")
COPO_CLIP, COPO_SCALE = 5.0, 0.1
"""What exp r(y) is cut at, and the scale of the bonus: constants of the released code."""
GEB_FLOOR = 1e-5
"""Keeps the bonuses of GEB finite where pi is 0; the released code's value."""


def explore_roles(samples: int) -> tuple[str, ...]:
    """Roles of the samples of y: explore, explore_1, …"""
    return ("explore", *(f"explore_{number}" for number in range(1, samples)))


@dataclass(frozen=True)
class Rows:
    """One batch as numbers. Each mapping goes from the response's role to a tensor of shape (B,).

    logps: log pi_theta. reference: log pi_ref, without gradient (empty for objectives without a
    reference). tokens: response lengths in tokens. extras: further per-row numbers an objective
    names. batch: scalars of the whole global batch, without gradient (``Statistic``).
    """

    logps: Mapping[str, Tensor]
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    batch: Mapping[str, Tensor] = field(default_factory=dict)

    def reading(self, role: str) -> Rows:
        """The same rows with the sample of y that ``role`` names in y's place."""
        tables = {name: getattr(self, name) for name in ("logps", "reference", "tokens", "extras")}
        moved = {name: {**t, "explore": t[role]} for name, t in tables.items() if role in t}
        return replace(self, **moved)

    def ratio(self, role: str) -> Tensor:
        """r(y) = log pi_theta(y) - log pi_ref(y), nats, shape (B,)."""
        return self.logps[role] - self.reference[role]

    def delta(self) -> Tensor:
        """Delta = r(y_w) - r(y_l), nats, shape (B,)."""
        return self.ratio("chosen") - self.ratio("rejected")

    def mean_delta(self) -> Tensor:
        """r(y_w)/|y_w| - r(y_l)/|y_l|, nats per token, shape (B,)."""
        chosen, rejected = (self.ratio(role) / self.tokens[role] for role in PAIR)
        return chosen - rejected

    def mean_logp(self, role: str) -> Tensor:
        """Log-probability per token, nats, shape (B,)."""
        return self.logps[role] / self.tokens[role]


def _logsigmoid(x: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def dpo(rows: Rows, *, beta: float) -> Tensor:
    """-log sigma(beta Delta). Rafailov et al. 2023, arXiv 2305.18290, eq. 7."""
    return -_logsigmoid(beta * rows.delta())


def selm(rows: Rows, *, alpha: float, beta: float) -> Tensor:
    """dpo + alpha beta r(y). Zhang et al. 2024, arXiv 2405.19332, eq. 4.2 and the released code.

    The subtracted reference term is a constant. With alpha 0 this is dpo.
    """
    return dpo(rows, beta=beta) + alpha * beta * rows.ratio("explore")


def selm_algorithm_1(rows: Rows, *, alpha: float, beta: float) -> Tensor:
    """dpo + alpha r(y): the coefficient as Algorithm 1 of arXiv 2405.19332 has it, without beta."""
    return dpo(rows, beta=beta) + alpha * rows.ratio("explore")


def xpo(rows: Rows, *, alpha: float, beta: float, clip: float = 500.0) -> Tensor:
    """dpo + alpha clip(r(y), -clip, clip), y from the fixed first policy. Xie et al. 2024, arXiv
    2405.21046, Algorithm 1.

    The paper's term is alpha log pi(y): it differs from alpha r(y) by a constant. No beta in the
    coefficient. The clip (nats) bounds the exploration term only; beyond it the term has no
    gradient.
    """
    return dpo(rows, beta=beta) + alpha * rows.ratio("explore").clamp(-clip, clip)


def vpo(rows: Rows, *, alpha: float, beta: float) -> Tensor:
    """dpo + alpha beta r(y), y from a calibration policy (online form). Cen et al. 2024, arXiv
    2405.19320.
    """
    return dpo(rows, beta=beta) + alpha * beta * rows.ratio("explore")


def se_popo(rows: Rows, *, alpha: float, beta: float) -> Tensor:
    """dpo + alpha (sigma(beta r(y)) - 1/2) / beta, y the first of two on-policy samples. arXiv
    2502.00666.

    The coefficient on log pi(y) is alpha sigma'(beta r(y)): alpha / 4 where pi = pi_ref, fading as
    r(y) moves away.
    """
    return dpo(rows, beta=beta) + alpha * ((beta * rows.ratio("explore")).sigmoid() - 0.5) / beta


def copo(rows: Rows, *, alpha: float, beta: float) -> Tensor:
    """dpo - alpha b log pi(y), b = min(exp r(y), 5) 0.1 sqrt(mean f(x, y)^2) without gradient, f a
    coin-flip head whose mean square is about 1/n for a y met n times. Bai et al. 2025, arXiv
    2501.12735, as the released code has it.

    The sign is the opposite of selm's: answers that were rarely met become likelier. A positive
    alpha is the paper's; its c is negative, and is that of an answer met once.
    """
    rarity = rows.extras["explore"]
    bonus = rows.ratio("explore").exp().clamp(max=COPO_CLIP) * COPO_SCALE * rarity
    return dpo(rows, beta=beta) - alpha * bonus.detach() * rows.logps["explore"]


def ipo(rows: Rows, *, beta: float) -> Tensor:
    """(Delta - 1 / (2 beta))^2. Azar et al. 2023, arXiv 2310.12036, eq. 17 (beta is its tau)."""
    return (rows.delta() - 1 / (2 * beta)) ** 2


def ipo_mean(rows: Rows, *, beta: float) -> Tensor:
    """(r(y_w)/|y_w| - r(y_l)/|y_l| - 1 / (2 beta))^2: IPO on means over tokens, as TRL does. Azar
    et al. 2023, arXiv 2310.12036.
    """
    return (rows.mean_delta() - 1 / (2 * beta)) ** 2


def cdpo(rows: Rows, *, beta: float, epsilon: float = 0.1) -> Tensor:
    """-(1 - eps) log sigma(beta Delta) - eps log sigma(-beta Delta): DPO with smoothed labels.
    Mitchell 2023 (note on cDPO).
    """
    gap = beta * rows.delta()
    return -(1 - epsilon) * _logsigmoid(gap) - epsilon * _logsigmoid(-gap)


def robust(rows: Rows, *, beta: float, epsilon: float = 0.1) -> Tensor:
    """((1 - eps) dpo(Delta) - eps dpo(-Delta)) / (1 - 2 eps): unbiased under labels flipped with
    probability eps < 1/2. Chowdhury et al. 2024, arXiv 2403.00409.
    """
    if not 0 <= epsilon < 0.5:
        raise HarnessError(f"objective robust: epsilon {epsilon}; a flip probability below 0.5")
    gap = beta * rows.delta()
    return (-(1 - epsilon) * _logsigmoid(gap) + epsilon * _logsigmoid(-gap)) / (1 - 2 * epsilon)


def hinge(rows: Rows, *, beta: float) -> Tensor:
    """max(0, 1 - beta Delta). SLiC-HF, Zhao et al. 2023, arXiv 2305.10425, on log-ratios."""
    return (1 - beta * rows.delta()).clamp(min=0)


def simpo(rows: Rows, *, beta: float, gamma: float = 0.5) -> Tensor:
    """-log sigma(beta (log pi(y_w)/|y_w| - log pi(y_l)/|y_l|) - gamma); no reference. Meng et al.
    2024, arXiv 2405.14734, eq. 6.
    """
    return -_logsigmoid(beta * (rows.mean_logp("chosen") - rows.mean_logp("rejected")) - gamma)


def rpo(rows: Rows, *, beta: float, weight: float = 1.0) -> Tensor:
    """dpo - weight log pi(y_w)/|y_w|: DPO with the chosen response's NLL per token. Pang et al.
    2024, arXiv 2404.19733, eq. 1.
    """
    return dpo(rows, beta=beta) - weight * rows.mean_logp("chosen")


def dpop(rows: Rows, *, beta: float, penalty: float = 50.0) -> Tensor:
    """-log sigma(beta (Delta - penalty max(0, -r(y_w)))): DPO that punishes a falling y_w. Pal et
    al. 2024, arXiv 2402.13228, eq. 3 (penalty is its lambda).
    """
    return -_logsigmoid(beta * (rows.delta() - penalty * (-rows.ratio("chosen")).clamp(min=0)))


def dpo_norm(rows: Rows, *, beta: float) -> Tensor:
    """-log sigma(beta (r(y_w)/|y_w| - r(y_l)/|y_l|)): DPO on means over tokens. Lambert et al. 2024
    (Tulu 3), arXiv 2411.15124.
    """
    return -_logsigmoid(beta * rows.mean_delta())


def wpo(rows: Rows, *, beta: float) -> Tensor:
    """w(y_w) w(y_l) dpo, w(y) = exp(log pi(y)/|y|) without gradient: pairs weigh as the policy
    would write them. Zhou et al. 2024, arXiv 2406.11827, eq. 2, without its alignment of weights.
    """
    weights = (rows.mean_logp("chosen") + rows.mean_logp("rejected")).detach().exp()
    return weights * dpo(rows, beta=beta)


def exo(rows: Rows, *, beta: float, epsilon: float = 1e-3) -> Tensor:
    """KL(q || p), q = (sigma(beta Delta), sigma(-beta Delta)), p = (1 - eps, eps), 0 < eps < 1: the
    reverse of cDPO's cross-entropy. Ji et al. 2024, arXiv 2402.00856, eq. 16.
    """
    if not 0 < epsilon < 1:
        raise HarnessError(f"objective exo: epsilon {epsilon}; it lies between 0 and 1")
    gap = beta * rows.delta()
    won = gap.sigmoid() * (_logsigmoid(gap) - math.log1p(-epsilon))
    return won + (-gap).sigmoid() * (_logsigmoid(-gap) - math.log(epsilon))


def nca(rows: Rows, *, beta: float) -> Tensor:
    """-log sigma(beta r(y_w)) - (log sigma(-beta r(y_w)) + log sigma(-beta r(y_l))) / 2. Chen et
    al. 2024, arXiv 2402.05369, for one pair.
    """
    chosen, rejected = beta * rows.ratio("chosen"), beta * rows.ratio("rejected")
    noise = _logsigmoid(-chosen) + _logsigmoid(-rejected)
    return -_logsigmoid(chosen) - noise / 2


def sppo(rows: Rows, *, beta: float) -> Tensor:
    """(r(y_w) - 1/(2 beta))^2 + (r(y_l) + 1/(2 beta))^2: the winner is taken to win always (hard
    probabilities). Wu et al. 2024, arXiv 2405.00675, eq. 4.7 (beta is 1/eta).
    """
    half = 1 / (2 * beta)
    return (rows.ratio("chosen") - half) ** 2 + (rows.ratio("rejected") + half) ** 2


def orpo(rows: Rows, *, beta: float) -> Tensor:
    """-log pi(y_w)/|y_w| - beta log sigma(o(y_w) - o(y_l)), o = log(p / (1 - p)), p = exp(log
    pi(y)/|y|); no reference. Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7 (beta is its lambda).

    TRL counts the prompt's tokens in the first term; the paper and this do not. An answer that
    float32 calls certain (p = 1) has the odds of the last number before.
    """

    def log_odds(role: str) -> Tensor:
        mean = rows.mean_logp(role).clamp(max=-(2.0**-24))
        return mean - (-mean.expm1()).log()

    odds = _logsigmoid(log_odds("chosen") - log_odds("rejected"))
    return -rows.mean_logp("chosen") - beta * odds


def geb_p(rows: Rows, *, beta: float, kappa: float = 1.0) -> Tensor:
    """dpo + kappa pi(y_l): general exploratory bonus u f'(u) - f(u) = u under KL, with u = 2 - pi,
    on the rejected response. Li et al. 2025, arXiv 2510.03269, and the released code.

    pi(y_l) is the whole response's probability: for long ones the term is next to nothing.
    """
    return dpo(rows, beta=beta) + kappa * rows.logps["rejected"].exp()


def geb_f(rows: Rows, *, beta: float, kappa: float = 1.0) -> Tensor:
    """dpo - kappa / (pi(y_l) + 1e-5): general exploratory bonus with u = 1/pi. arXiv 2510.03269 and
    the released code.
    """
    return dpo(rows, beta=beta) - kappa / (rows.logps["rejected"].exp() + GEB_FLOOR)


def geb_tanh(rows: Rows, *, beta: float, kappa: float = 1.0) -> Tensor:
    """dpo - kappa artanh(1 - pi(y_l) - 1e-5): general exploratory bonus with u = artanh(1 - pi).
    arXiv 2510.03269 and the released code.
    """
    u = (1 - rows.logps["rejected"].exp() - GEB_FLOOR).atanh()
    return dpo(rows, beta=beta) - kappa * u


def beta_dpo(rows: Rows, *, beta: float, scale: float = 0.6) -> Tensor:
    """dpo with beta (1 + scale (E[Delta] - M)), at least 1e-3: E over the global batch, M its
    moving average (0.9) over steps. Wu et al. 2024, arXiv 2407.08639, as the released code has it;
    the filter of outlying pairs is left out. M starts at 0 in every iteration.
    """
    surplus = rows.batch["mean"] - rows.batch["average"]
    used = (beta * (1 + scale * surplus)).clamp(min=1e-3)
    return -_logsigmoid(used * rows.delta())


def kto(
    rows: Rows, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    """(w_d (1 - sigma(beta (r(y_w) - z))) + w_u (1 - sigma(beta (z - r(y_l))))) / 2, with z =
    max(0, E[r(y')]) without gradient. Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7.

    Every pair stands for its two unpaired rows. E is over the global batch and both responses y'
    of the row before in the data, read after this row's prompt; 0 where the data is a single row.
    """
    z = rows.batch["mean"].clamp(min=0)
    gain = 1 - (beta * (rows.ratio("chosen") - z)).sigmoid()
    loss = 1 - (beta * (z - rows.ratio("rejected"))).sigmoid()
    return (desirable_weight * gain + undesirable_weight * loss) / 2


def _others_ratio(rows: Rows) -> Tensor:
    return (rows.ratio("other_chosen") + rows.ratio("other_rejected")) / 2


@dataclass(frozen=True)
class Statistic:
    """What an objective reads of the whole global batch: ``rows.batch["mean"]``, the mean of ``of``
    (B,) over all its rows, and ``rows.batch["average"]``, that mean's moving average over steps,
    m <- memory m + (1 - memory) mean from 0. Worked out in a pass of its own, without gradient.

    reads: roles of the responses that pass scores.
    """

    of: Callable[[Rows], Tensor]
    reads: tuple[str, ...] = PAIR
    memory: float = 0.0


@dataclass(frozen=True)
class Objective:
    """An objective and what a study must know about it.

    function: ``(rows, *, beta, **parameters) -> losses (B,)``, with ``alpha`` too when it explores;
    its docstring holds equation and source. coefficient: c(alpha, beta), the coefficient on
    log pi_theta(y) where pi_theta = pi_ref; None: there is no y. trl: trainer and loss of TRL
    beside which the tests run it; empty: checked against its formula only. statistic: what it reads
    of the whole batch. counts: it reads how rarely y was met (stage ``count``), as ``rows.extras``.
    """

    function: Callable[..., Tensor]
    coefficient: Callable[[float, float], float] | None = None
    needs_reference: bool = True
    trl: str = ""
    statistic: Statistic | None = None
    counts: bool = False

    @property
    def parameters(self) -> dict[str, float]:
        """Its own parameters with their defaults, as its function states them."""
        named = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in named if one.default is not one.empty}

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles of the responses whose log-probabilities it reads."""
        return (*PAIR, "explore") if self.explores else PAIR

    @property
    def explores(self) -> bool:
        """Whether it has a term in y."""
        return self.coefficient is not None


def others_of(name: str) -> tuple[str, ...]:
    """Roles beyond the pair and y that an objective's statistic reads."""
    statistic = OBJECTIVES[name].statistic
    return tuple(role for role in statistic.reads if role in OTHERS) if statistic else ()


def source_of(function: Callable[..., Any]) -> str:
    """The arXiv number or note that a docstring names."""
    found = re.search(r"arXiv\s+[\d.]+\d|note on \w+", function.__doc__ or "")
    return " ".join(found[0].split()) if found else ""


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(dpo, trl="DPOTrainer sigmoid"),
    "selm": Objective(selm, lambda alpha, beta: alpha * beta),
    "selm_algorithm_1": Objective(selm_algorithm_1, lambda alpha, _beta: alpha),
    "xpo": Objective(xpo, lambda alpha, _beta: alpha),
    "vpo": Objective(vpo, lambda alpha, beta: alpha * beta),
    "se_popo": Objective(se_popo, lambda alpha, _beta: alpha / 4),
    "copo": Objective(copo, lambda alpha, _beta: -COPO_SCALE * alpha, counts=True),
    "ipo": Objective(ipo),
    "ipo_mean": Objective(ipo_mean, trl="DPOTrainer ipo"),
    "cdpo": Objective(cdpo),
    "robust": Objective(robust, trl="DPOTrainer robust"),
    "hinge": Objective(hinge, trl="DPOTrainer hinge"),
    "simpo": Objective(simpo, needs_reference=False, trl="CPOTrainer simpo"),
    "rpo": Objective(rpo),
    "dpop": Objective(dpop),
    "dpo_norm": Objective(dpo_norm, trl="DPOTrainer sigmoid_norm"),
    "wpo": Objective(wpo),
    "exo": Objective(exo, trl="DPOTrainer exo_pair"),
    "nca": Objective(nca, trl="DPOTrainer nca_pair"),
    "sppo": Objective(sppo, trl="DPOTrainer sppo_hard"),
    "orpo": Objective(orpo, needs_reference=False, trl="ORPOTrainer odds_ratio"),
    "beta_dpo": Objective(beta_dpo, statistic=Statistic(Rows.delta, memory=0.9)),
    "kto": Objective(kto, trl="KTOTrainer kto", statistic=Statistic(_others_ratio, OTHERS)),
    "geb_p": Objective(geb_p),
    "geb_f": Objective(geb_f),
    "geb_tanh": Objective(geb_tanh),
}


@dataclass(frozen=True)
class ResolvedObjective:
    """An objective with its numbers filled in: what one iteration of one arm trains.

    alpha: as asked; the ``negative`` placebo flips its sign in c and in the loss. params: every
    parameter, defaults filled in; given: those that were asked for. c: coefficient on log pi(y)
    where pi = pi_ref. kappa: 2 c / beta, y's weight against DPO's own beta / 2. roles: responses
    that must be scored.
    """

    name: str
    alpha: float
    beta: float
    placebo: str
    params: Mapping[str, float]
    given: Mapping[str, float]
    c: float
    kappa: float
    roles: tuple[str, ...]
    needs_reference: bool

    @property
    def statistic(self) -> Statistic | None:
        """What it reads of the whole global batch."""
        return OBJECTIVES[self.name].statistic

    @property
    def scored(self) -> tuple[str, ...]:
        """Roles that the reference scores: those of the loss and those of the statistic."""
        return (*self.roles, *others_of(self.name))

    def losses(self, rows: Rows) -> Tensor:
        """Losses of shape (B,): with several samples of y the mean over them."""
        objective = OBJECTIVES[self.name]
        if not objective.explores:
            return objective.function(rows, beta=self.beta, **self.params)
        alpha = -self.alpha if self.placebo == "negative" else self.alpha
        first, *others = [
            objective.function(rows.reading(role), alpha=alpha, beta=self.beta, **self.params)
            for role in self.roles
            if role.startswith("explore")
        ]
        return sum(others, first) / (1 + len(others))


def resolve(
    name: str,
    *,
    alpha: float = 0.0,
    beta: float,
    placebo: str = "none",
    params: Mapping[str, float] | None = None,
    samples: int = 1,
) -> ResolvedObjective:
    """Check an objective's settings and fill in its defaults.

    An exploration objective whose coefficient is 0 is DPO, here and nowhere else: its y is not
    scored, so that alpha 0 is DPO bit for bit and both share one stage of a study.

    samples: of y, over which the loss is averaged. placebo: ``negative`` trains with -alpha;
    ``other_prompt`` changes only which y stands in the pairs, so it changes nothing here. Raises
    HarnessError on an unknown name, parameter or placebo, or a beta that is not positive.
    """
    if name not in OBJECTIVES:
        raise HarnessError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
    objective, given = OBJECTIVES[name], dict(params or {})
    defaults, wrong = objective.parameters, ""
    for parameter, value in given.items():
        if parameter not in defaults:
            known = ", ".join(defaults) or "none"
            wrong = f"unknown parameter {parameter!r}; its parameters: {known}"
        elif not isinstance(value, (int, float)):
            wrong = f"{parameter} is {value!r}; it must be a number"
    if placebo not in PLACEBOS:
        wrong = f"placebo {placebo!r}; allowed: {', '.join(PLACEBOS)}"
    if not beta > 0:
        wrong = f"beta is {beta}; it must be positive"
    if wrong:
        raise HarnessError(f"objective {name}: {wrong}")
    c, roles = 0.0, objective.reads
    if objective.coefficient is not None:
        c = objective.coefficient(-alpha if placebo == "negative" else alpha, beta)
        roles = (*PAIR, *explore_roles(samples))
        if c == 0:
            return resolve("dpo", beta=beta)
    return ResolvedObjective(
        name,
        alpha,
        beta,
        placebo,
        params=defaults | given,
        given=given,
        c=c,
        kappa=2 * c / beta,
        roles=roles,
        needs_reference=objective.needs_reference,
    )
