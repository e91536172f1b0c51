"""Every diagnostic of a checkpoint: one small pure function per measurement, listed in
``DIAGNOSTICS``.

A function takes the ``Evidence`` of one prompt and returns its value, or None where it is undefined
there (never 0, never NaN): a prompt whose samples all have one reward has no rank correlation, a
pair whose y became the winner no r̂ of a losing y. Nats per response unless said otherwise. θ is
the checkpoint, ref the iteration's reference policy, π_0 the base, r̂ = log π_θ/π_ref. To add one:
write a function, list it with the prompts it is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.stages.diagnostics import text
from harness.stages.diagnostics.evidence import Answer, Evidence

Split = Literal["train", "heldout", "ood"]
Measure = Callable[[Evidence], float | None]


@dataclass(frozen=True)
class Diagnostic:
    """split: which prompts it is measured on. needs: "" or what must exist: "reward" (an external
    scorer), "pocket", "previous" (answers).
    """

    function: Measure
    split: Split
    needs: Literal["", "reward", "pocket", "previous"] = ""


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# --- distance from the reference, the base and the previous policy --------------------------------


def rhat_reference_samples(e: Evidence) -> float | None:
    """Mean r̂ over temperature-1 samples of π_ref; KL(π_ref‖π_θ) is its negative."""
    return _mean(answer.rhat() for answer in e.reference)


def kl_base(e: Evidence) -> float | None:
    """KL(π_θ‖π_0) on samples of π_θ: mean over samples of the per-token KL summed over the
    response, each step exact.
    """
    return _mean(answer.kl["base"] for answer in e.own)


def kl_previous(e: Evidence) -> float | None:
    """KL(π_θ‖π_previous), as ``kl_base``, against the policy the iteration started from."""
    return _mean(answer.kl["previous"] for answer in e.own)


def _per_token(values: Sequence[float], answers: Sequence[Answer]) -> float | None:
    tokens = sum(len(answer.token_ids) for answer in answers)
    return math.fsum(values) / tokens if tokens else None


def kl_base_per_token(e: Evidence) -> float | None:
    """Summed KL(π_θ‖π_0) over all tokens of the prompt's samples, nats per token."""
    return _per_token([answer.kl["base"] for answer in e.own], e.own)


def kl_previous_per_token(e: Evidence) -> float | None:
    """Summed KL(π_θ‖π_previous) over all tokens of the prompt's samples, nats per token."""
    return _per_token([answer.kl["previous"] for answer in e.own], e.own)


def entropy(e: Evidence) -> float | None:
    """Sum over the response of the entropies of π_θ's next-token distributions, mean over samples
    of π_θ.
    """
    return _mean(answer.entropy for answer in e.own)


def entropy_per_token(e: Evidence) -> float | None:
    """The same, nats per token."""
    return _per_token([answer.entropy for answer in e.own], e.own)


# --- implicit against external reward -------------------------------------------------------------


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties at their mean rank."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None where either is constant."""
    x, y = ranks(a), ranks(b)
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    spread = math.sqrt(math.fsum((p - mx) ** 2 for p in x) * math.fsum((q - my) ** 2 for q in y))
    return covariance / spread if spread > 0 else None


def _rewarded(e: Evidence) -> list[Answer]:
    return [answer for answer in (*e.own, *e.reference) if answer.reward is not None]


def spearman_reward(e: Evidence) -> float | None:
    """Spearman within the prompt of r̂ and the external reward over the fresh samples of π_θ and
    π_ref (at least 4).
    """
    answers = _rewarded(e)
    if len(answers) < 4:
        return None
    return spearman(
        [answer.rhat() for answer in answers], [answer.reward or 0.0 for answer in answers]
    )


def brier_samples(e: Evidence) -> float | None:
    """Brier score of σ(β(r̂(a) − r̂(b))) over pairs of fresh samples whose external rewards differ,
    a being the better one.
    """
    answers = _rewarded(e)
    pairs = [
        (a, b)
        for a in answers
        for b in answers
        if a.reward is not None and b.reward is not None and a.reward > b.reward
    ]
    return _mean((1 - _sigmoid(e.beta * (a.rhat() - b.rhat()))) ** 2 for a, b in pairs)


def _gap(e: Evidence) -> float | None:
    return e.chosen.rhat() - e.rejected.rhat() if e.chosen and e.rejected else None


def brier_pairs(e: Evidence) -> float | None:
    """(1 − σ(βΔ))² of a labelled pair, Δ = r̂(y_w) − r̂(y_l): 0.25 for a model that knows nothing."""
    gap = _gap(e)
    return None if gap is None else (1 - _sigmoid(e.beta * gap)) ** 2


def accuracy_pairs(e: Evidence) -> float | None:
    """1 where Δ > 0, ½ at 0."""
    gap = _gap(e)
    return None if gap is None else 0.5 * ((gap > 0) + (gap >= 0))


# --- displacement ---------------------------------------------------------------------------------


def displacement_chosen(e: Evidence) -> float | None:
    """log π_θ/π_ref(y_w)."""
    return e.chosen.rhat() if e.chosen else None


def displaced_share(e: Evidence) -> float | None:
    """1 where log π_θ/π_ref(y_w) < 0."""
    return float(e.chosen.rhat() < 0) if e.chosen else None


def rhat_rejected(e: Evidence) -> float | None:
    """log π_θ/π_ref(y_l)."""
    return e.rejected.rhat() if e.rejected else None


def _rhat_y(role: str) -> Measure:
    def measure(e: Evidence) -> float | None:
        return e.explore.rhat() if e.explore and e.y_role == role else None

    measure.__doc__ = f"r̂ of the loss's own y on training pairs where it became the {role}."
    return measure


def _share_y(role: str) -> Measure:
    def measure(e: Evidence) -> float | None:
        return float(e.y_role == role)

    measure.__doc__ = f"1 where y became the {role} of its training pair."
    return measure


def pair_margin(e: Evidence) -> float | None:
    """The ranker's score of the chosen minus the rejected answer (the ranker's units)."""
    return e.margin


# --- diversity, length ----------------------------------------------------------------------------


def distinct_1(e: Evidence) -> float | None:
    """Share of different tokens among all tokens of the K samples (first 128 tokens of each)."""
    return text.distinct_n([answer.token_ids for answer in e.own], 1)


def distinct_2(e: Evidence) -> float | None:
    """Share of different token pairs among all of the K samples (first 128 tokens of each)."""
    return text.distinct_n([answer.token_ids for answer in e.own], 2)


def self_rouge(e: Evidence) -> float | None:
    """Mean pairwise ROUGE-L of the K samples: 1 when they are all equal."""
    return text.self_rouge([answer.text for answer in e.own])


def newness(e: Evidence) -> float | None:
    """Share of samples with ROUGE-L below 0.9 to every answer the previous iteration's policy gave
    to this prompt.
    """
    return text.newness([answer.text for answer in e.own], e.previous)


def length_tokens(e: Evidence) -> float | None:
    """Mean tokens of a sample, end of turn included."""
    return _mean(float(len(answer.token_ids)) for answer in e.own)


def truncated_share(e: Evidence) -> float | None:
    """Share of samples that hit the token limit."""
    return _mean(float(answer.status == "truncated") for answer in e.own)


def missing_eos_share(e: Evidence) -> float | None:
    """Share of samples whose last token is no stop token."""
    return _mean(float(not answer.ended) for answer in e.own)


# --- rewards of samples ---------------------------------------------------------------------------


def implicit_reward_samples(e: Evidence) -> float | None:
    """Mean of β·log π_θ/π_0 over own samples (Fig. 5). Against the common π_0; it is an estimate of
    β·KL(π_θ‖π_0), so read it beside that.
    """
    return _mean(e.beta * answer.rhat("base") for answer in e.own)


def implicit_reward_reference_samples(e: Evidence) -> float | None:
    """Mean of β·log π_θ/π_0 over samples of π_ref, which checkpoints with the same reference policy
    share: no drift of the samples in it.
    """
    return _mean(e.beta * answer.rhat("base") for answer in e.reference)


def reward_samples(e: Evidence) -> float | None:
    """Mean external reward of own samples."""
    return _mean(answer.reward for answer in e.own if answer.reward is not None)


# --- finite worlds --------------------------------------------------------------------------------


def mode_coverage(e: Evidence) -> float | None:
    """Share of the prompt's right answer modes that at least one of the K samples is."""
    return (
        sum(any(answer.text == mode for answer in e.own) for mode, _, _ in e.modes) / len(e.modes)
        if e.modes
        else None
    )


def regret(e: Evidence) -> float | None:
    """Best reward minus E_π_θ[reward], exact: only the listed modes have a reward above 0."""
    if e.best is None:
        return None
    return e.best - math.fsum(reward * math.exp(logp) for _, reward, logp in e.modes)


def unseen_mass(e: Evidence) -> float | None:
    """Probability that training moved from the seen answers {y_w, y_l, y} to all others: Σ_seen
    π_ref − Σ_seen π_θ.
    """
    seen = {answer.token_ids: answer for answer in (e.chosen, e.rejected, e.explore) if answer}
    if not seen:
        return None
    return math.fsum(
        math.exp(a.logps["reference"]) - math.exp(a.logps["theta"]) for a in seen.values()
    )


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "rhat_reference_samples": Diagnostic(rhat_reference_samples, "heldout"),
    "kl_base": Diagnostic(kl_base, "heldout"),
    "kl_previous": Diagnostic(kl_previous, "heldout"),
    "kl_base_per_token": Diagnostic(kl_base_per_token, "heldout"),
    "kl_previous_per_token": Diagnostic(kl_previous_per_token, "heldout"),
    "entropy": Diagnostic(entropy, "heldout"),
    "entropy_per_token": Diagnostic(entropy_per_token, "heldout"),
    "spearman_reward": Diagnostic(spearman_reward, "heldout", "reward"),
    "brier_samples": Diagnostic(brier_samples, "heldout", "reward"),
    "brier_pairs_train": Diagnostic(brier_pairs, "train"),
    "brier_pairs_heldout": Diagnostic(brier_pairs, "heldout"),
    "brier_pairs_ood": Diagnostic(brier_pairs, "ood"),
    "accuracy_pairs_train": Diagnostic(accuracy_pairs, "train"),
    "accuracy_pairs_heldout": Diagnostic(accuracy_pairs, "heldout"),
    "accuracy_pairs_ood": Diagnostic(accuracy_pairs, "ood"),
    "displacement_chosen_train": Diagnostic(displacement_chosen, "train"),
    "displacement_chosen_heldout": Diagnostic(displacement_chosen, "heldout"),
    "displaced_share_train": Diagnostic(displaced_share, "train"),
    "displaced_share_heldout": Diagnostic(displaced_share, "heldout"),
    "rhat_heldout_chosen": Diagnostic(displacement_chosen, "heldout"),
    "rhat_heldout_rejected": Diagnostic(rhat_rejected, "heldout"),
    "rhat_y_winner": Diagnostic(_rhat_y("winner"), "train"),
    "rhat_y_loser": Diagnostic(_rhat_y("loser"), "train"),
    "rhat_y_middle": Diagnostic(_rhat_y("middle"), "train"),
    "share_y_winner": Diagnostic(_share_y("winner"), "train"),
    "share_y_loser": Diagnostic(_share_y("loser"), "train"),
    "share_y_middle": Diagnostic(_share_y("middle"), "train"),
    "pair_margin": Diagnostic(pair_margin, "train"),
    "distinct_1": Diagnostic(distinct_1, "heldout"),
    "distinct_2": Diagnostic(distinct_2, "heldout"),
    "self_rouge": Diagnostic(self_rouge, "heldout"),
    "newness": Diagnostic(newness, "heldout", "previous"),
    "length_tokens": Diagnostic(length_tokens, "heldout"),
    "truncated_share": Diagnostic(truncated_share, "heldout"),
    "missing_eos_share": Diagnostic(missing_eos_share, "heldout"),
    "implicit_reward_samples": Diagnostic(implicit_reward_samples, "heldout"),
    "implicit_reward_reference_samples": Diagnostic(implicit_reward_reference_samples, "heldout"),
    "reward_samples": Diagnostic(reward_samples, "heldout", "reward"),
    "mode_coverage": Diagnostic(mode_coverage, "heldout", "pocket"),
    "regret": Diagnostic(regret, "heldout", "pocket"),
    "unseen_mass": Diagnostic(unseen_mass, "train", "pocket"),
}
"""Metric name → how it is measured. ``grad_*`` belong to batches, not prompts:
`harness.stages.diagnostics.gradient`.
"""
