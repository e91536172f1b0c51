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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.records import HarnessError

if TYPE_CHECKING:
    from torch import Tensor

PAIR = ("chosen", "rejected")
TRIPLE = ("chosen", "rejected", "explore")
CONVENTIONS = ("alpha_beta", "alpha")
PLACEBOS = ("none", "negative", "other_prompt")


@dataclass(frozen=True)
class Rows:
    """One batch as numbers. Each mapping goes from the response's role to a tensor of shape (B,).

    logps: log pi_theta. reference: log pi_ref, without gradient (empty for objectives without a
    reference). tokens: response lengths in tokens. extras: further per-row numbers an objective
    names.
    """

    logps: Mapping[str, Tensor]
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def ratio(self, role: str) -> Tensor:
        """r(y) = log pi_theta(y) - log pi_ref(y), nats, shape (B,)."""
        return self.logps[role] - self.reference[role]

    def delta(self) -> Tensor:
        """Delta = r(y_w) - r(y_l), nats, shape (B,)."""
        return self.ratio("chosen") - self.ratio("rejected")

    def mean_logp(self, role: str) -> Tensor:
        """Log-probability per token, nats, shape (B,)."""
        return self.logps[role] / self.tokens[role]


def _logsigmoid(x: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def dpo(rows: Rows, *, beta: float) -> Tensor:
    """-log sigma(beta Delta). Rafailov et al. 2023, arXiv 2305.18290, eq. 7."""
    return -_logsigmoid(beta * rows.delta())


def selm(rows: Rows, *, alpha: float, beta: float, convention: str = "alpha_beta") -> Tensor:
    """dpo + c r(y), c = alpha beta (``alpha_beta``) or alpha (``alpha``). Zhang et al. 2024, arXiv
    2405.19332.

    ``alpha_beta`` is eq. 4.2 and the released code; ``alpha`` is how Algorithm 1 writes it. The
    subtracted reference term is a constant. With alpha 0 this is dpo.
    """
    return dpo(rows, beta=beta) + _selm_c(alpha, beta, {"convention": convention}) * rows.ratio(
        "explore"
    )


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


def ipo(rows: Rows, *, beta: float, variant: str = "token_sum") -> Tensor:
    """(h - 1 / (2 beta))^2 with h = Delta (``token_sum``) or Delta of the per-token means
    (``token_mean``).

    Azar et al. 2023, arXiv 2310.12036, eq. 17 (beta is its tau) is ``token_sum``; ``token_mean`` is
    what TRL computes.
    """
    if variant == "token_sum":
        gap = rows.delta()
    elif variant == "token_mean":
        gap = (
            rows.ratio("chosen") / rows.tokens["chosen"]
            - rows.ratio("rejected") / rows.tokens["rejected"]
        )
    else:
        raise HarnessError(f"objective ipo: variant {variant!r}; use 'token_sum' or 'token_mean'")
    return (gap - 1 / (2 * beta)) ** 2


def cdpo(rows: Rows, *, beta: float, epsilon: float = 0.1) -> Tensor:
    """-(1 - eps) log sigma(beta Delta) - eps log sigma(-beta Delta): DPO with smoothed labels.
    Mitchell 2023 (note on cDPO).
    """
    gap = beta * rows.delta()
    return -(1 - epsilon) * _logsigmoid(gap) - epsilon * _logsigmoid(-gap)


def robust(rows: Rows, *, beta: float, epsilon: float = 0.1) -> Tensor:
    """((1 - eps) dpo(Delta) - eps dpo(-Delta)) / (1 - 2 eps): unbiased under labels flipped with
    probability eps < 1/2.

    Chowdhury et al. 2024, arXiv 2403.00409.
    """
    if not 0 <= epsilon < 0.5:
        raise HarnessError(
            f"objective robust: epsilon {epsilon}; it is a flip probability below 0.5"
        )
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
    al. 2024, arXiv 2402.13228, eq. 3.

    penalty is the paper's lambda (its value there: 50).
    """
    return -_logsigmoid(beta * (rows.delta() - penalty * (-rows.ratio("chosen")).clamp(min=0)))


Coefficient = Callable[[float, float, Mapping[str, Any]], float]


def _selm_c(alpha: float, beta: float, params: Mapping[str, Any]) -> float:
    convention = params.get("convention", "alpha_beta")
    if convention not in CONVENTIONS:
        raise HarnessError(
            f"objective selm: convention {convention!r}; allowed: {', '.join(CONVENTIONS)}"
        )
    return alpha * beta if convention == "alpha_beta" else alpha


@dataclass(frozen=True)
class Objective:
    """An objective and what a study must know about it.

    function: ``(rows, *, beta, **parameters) -> losses (B,)``, with ``alpha`` too when it explores;
    its docstring holds equation and source. reads: roles of the responses whose log-probabilities
    it reads. parameters: names with defaults. coefficient: c(alpha, beta, parameters), the
    coefficient on log pi_theta(y) where pi_theta = pi_ref; None: there is no y.
    """

    function: Callable[..., Tensor]
    reads: tuple[str, ...] = PAIR
    parameters: Mapping[str, float | str] = field(default_factory=dict)
    coefficient: Coefficient | None = None
    needs_reference: bool = True

    @property
    def explores(self) -> bool:
        """Whether it has a term in y."""
        return self.coefficient is not None


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(dpo),
    "selm": Objective(selm, TRIPLE, {"convention": "alpha_beta"}, _selm_c),
    "xpo": Objective(xpo, TRIPLE, {"clip": 500.0}, lambda alpha, _beta, _params: alpha),
    "vpo": Objective(vpo, TRIPLE, {}, lambda alpha, beta, _params: alpha * beta),
    "se_popo": Objective(se_popo, TRIPLE, {}, lambda alpha, _beta, _params: alpha / 4),
    "ipo": Objective(ipo, PAIR, {"variant": "token_sum"}),
    "cdpo": Objective(cdpo, PAIR, {"epsilon": 0.1}),
    "robust": Objective(robust, PAIR, {"epsilon": 0.1}),
    "hinge": Objective(hinge),
    "simpo": Objective(simpo, PAIR, {"gamma": 0.5}, needs_reference=False),
    "rpo": Objective(rpo, PAIR, {"weight": 1.0}),
    "dpop": Objective(dpop, PAIR, {"penalty": 50.0}),
}


@dataclass(frozen=True)
class ResolvedObjective:
    """An objective with its numbers filled in: what one iteration of one arm trains.

    alpha: signed (the ``negative`` placebo flips it). c: coefficient on log pi(y) where pi =
    pi_ref. kappa: 2 c / beta, y's weight against DPO's own beta / 2. roles: responses that must be
    scored; y is left out where c is 0, so that alpha 0 is DPO bit for bit.
    """

    name: str
    alpha: float
    beta: float
    params: Mapping[str, float | str]
    c: float
    kappa: float
    roles: tuple[str, ...]
    needs_reference: bool

    def losses(self, rows: Rows) -> Tensor:
        """Losses of shape (B,)."""
        objective = OBJECTIVES[self.name]
        if not objective.explores:
            return objective.function(rows, beta=self.beta, **self.params)
        if self.c == 0:
            return dpo(rows, beta=self.beta)
        return objective.function(rows, alpha=self.alpha, beta=self.beta, **self.params)


def resolve_objective(
    name: str,
    *,
    alpha: float = 0.0,
    beta: float,
    convention: str = "alpha_beta",
    placebo: str = "none",
    params: Mapping[str, float | str] | None = None,
) -> ResolvedObjective:
    """Check an objective's settings and fill in its defaults.

    placebo: ``negative`` trains with -alpha; ``other_prompt`` changes only which y stands in the
    pairs, so it changes nothing here. Raises HarnessError on an unknown name, parameter, convention
    or placebo, or a beta that is not positive.
    """
    if name not in OBJECTIVES:
        raise HarnessError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
    objective, given = OBJECTIVES[name], dict(params or {})
    unknown = sorted(set(given) - set(objective.parameters))
    if unknown:
        known = ", ".join(objective.parameters) or "none"
        raise HarnessError(
            f"objective {name}: unknown parameter {unknown[0]!r}; its parameters: {known}"
        )
    if placebo not in PLACEBOS:
        raise HarnessError(f"objective {name}: placebo {placebo!r}; allowed: {', '.join(PLACEBOS)}")
    if convention not in CONVENTIONS:
        raise HarnessError(
            f"objective {name}: convention {convention!r}; allowed: {', '.join(CONVENTIONS)}"
        )
    if not beta > 0:
        raise HarnessError(f"objective {name}: beta is {beta}; it must be positive")
    filled = {**objective.parameters, **given}
    if "convention" in objective.parameters and "convention" not in given:
        filled["convention"] = convention
    for key, value in filled.items():
        if isinstance(value, str) != isinstance(objective.parameters[key], str):
            raise HarnessError(
                f"objective {name}: parameter {key} is {value!r}; wanted "
                f"{type(objective.parameters[key]).__name__}"
            )
    signed = -alpha if placebo == "negative" else alpha
    c = 0.0 if objective.coefficient is None else objective.coefficient(signed, beta, filled) + 0.0
    roles = tuple(role for role in objective.reads if role != "explore" or c != 0)
    return ResolvedObjective(
        name, signed, beta, filled, c, 2 * c / beta, roles, objective.needs_reference
    )
