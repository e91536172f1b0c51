"""Every diagnostic of a checkpoint: one small pure function per measurement, listed in
``DIAGNOSTICS``.

A function takes the ``Evidence`` of one prompt and returns its value, or None where it is undefined
there (never 0, never NaN): a prompt whose samples all have one reward has no rank correlation, a
pair whose y became the winner no r̂ of a losing y. Nats per response unless said otherwise. θ is
the checkpoint, ref the iteration's reference policy, π_0 the base, r̂ = log π_θ/π_ref. To add one:
write a function, list it. This file loads no model code: the plan's manifest reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Literal

from harness.pocket import oracle

WINDOW = 128
"""Tokens (words) of an answer that are looked at: longer answers repeat themselves, so distinct-n
falls with length alone.
"""
NEW_BELOW = 0.9
"""ROUGE-L with every earlier answer below which an answer counts as new."""


@dataclass(frozen=True)
class Answer:
    """One answer. logps: log π(answer | prompt) by policy name (theta, reference, base, previous),
    nats, summed over tokens.

    kl: exact Σ_t KL(π_θ(·|t) ‖ π_name(·|t)) along the answer, by policy name; entropy: Σ_t of
    π_θ's; both only for samples of π_θ. reward: the external reward, None where there is no scorer.
    """

    text: str
    token_ids: tuple[int, ...]
    status: str = "ok"
    ended: bool = True
    logps: Mapping[str, float] = field(default_factory=dict)
    kl: Mapping[str, float] = field(default_factory=dict)
    entropy: float = 0.0
    reward: float | None = None

    def rhat(self, against: str = "reference") -> float:
        """r̂ = log π_θ − log π_against, nats."""
        return self.logps["theta"] - self.logps[against]


@dataclass(frozen=True)
class Evidence:
    """One prompt. own: temperature-1 samples of π_θ; reference: of the iteration's reference
    policy; previous: texts sampled by the previous iteration's policy. modes: (text, reward, log
    π_θ) of the answers with a reward above 0 (pocket world). y_role, margin (the ranker's score of
    chosen minus rejected): training pairs only. beta: of the objective. refused: the prompt is over
    the length limit, nothing was measured.
    """

    id: str
    beta: float
    chosen: Answer | None = None
    rejected: Answer | None = None
    explore: Answer | None = None
    own: Sequence[Answer] = ()
    reference: Sequence[Answer] = ()
    previous: Sequence[str] = ()
    modes: Sequence[tuple[str, float, float]] = ()
    best: float | None = None
    y_role: str = "absent"
    margin: float | None = None
    refused: bool = False


Measure = Callable[[Evidence], float | None]


@dataclass(frozen=True)
class Diagnostic:
    """How a measurement is made and how it is shown.

    split: the prompts it is measured on; "batches" are measured in `passes` and have no function of
    a prompt. needs: "" or what must exist: "reward" (an external
    scorer), "pocket", "previous" (answers). core: shown where a study has too many arms for a
    column each. same_as: the diagnostic with the same definition, beside which it is not shown.
    better: +1 higher, −1 lower, 0 neither.
    """

    title: str
    function: Measure | None
    split: Literal["train", "heldout", "ood", "batches"]
    needs: Literal["", "reward", "pocket", "previous"] = ""
    unit: str = "nats"
    digits: int = 3
    core: bool = False
    same_as: str = ""
    better: int = 0


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# --- distance from the reference, the base and the previous policy --------------------------------


def rhat_reference_samples(e: Evidence) -> float | None:
    """Mean r̂ over temperature-1 samples of π_ref; KL(π_ref‖π_θ) is its negative."""
    return _mean(answer.rhat() for answer in e.reference)


def _per_token(values: Sequence[float], answers: Sequence[Answer]) -> float | None:
    tokens = sum(len(answer.token_ids) for answer in answers)
    return math.fsum(values) / tokens if tokens else None


def _kl(against: str) -> Measure:
    """KL(π_θ‖π_against) on samples of π_θ: the per-token KL summed over the response, each step
    exact; mean over samples.
    """
    return lambda e: _mean(answer.kl[against] for answer in e.own)


def _kl_per_token(against: str) -> Measure:
    """Summed KL(π_θ‖π_against) over all tokens of the prompt's samples, nats per token."""
    return lambda e: _per_token([answer.kl[against] for answer in e.own], e.own)


kl_base, kl_base_per_token = _kl("base"), _kl_per_token("base")
kl_previous, kl_previous_per_token = _kl("previous"), _kl_per_token("previous")
"""Against the policy that the iteration started from."""


def entropy(e: Evidence) -> float | None:
    """Σ_t of the entropies of π_θ's next-token distributions, mean over samples of π_θ."""
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
    pairs = [(a, b) for a, b in product(answers, answers) if (a.reward or 0) > (b.reward or 0)]
    return _mean((1 - _sigmoid(e.beta * (a.rhat() - b.rhat()))) ** 2 for a, b in pairs)


def _gap(e: Evidence) -> float | None:
    return e.chosen.rhat() - e.rejected.rhat() if e.chosen and e.rejected else None


def brier_pairs(e: Evidence) -> float | None:
    """(1 − σ(βΔ))² of a labelled pair, Δ = r̂(y_w) − r̂(y_l): 0.25 when nothing is known."""
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
    """r̂ of the loss's own y on training pairs where it became the role."""
    return lambda e: e.explore.rhat() if e.explore and e.y_role == role else None


def _share_y(role: str) -> Measure:
    """1 where y became the role of its training pair."""
    return lambda e: float(e.y_role == role)


def pair_margin(e: Evidence) -> float | None:
    """The ranker's score of the chosen minus the rejected answer (the ranker's units)."""
    return e.margin


# --- diversity, length ----------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    """Lower-case words of the first ``WINDOW``."""
    return re.findall(r"\w+", text.lower())[:WINDOW]


def _distinct(e: Evidence, n: int) -> float | None:
    grams: list[tuple[int, ...]] = []
    for answer in e.own:
        ids = answer.token_ids[:WINDOW]
        grams += [ids[i : i + n] for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_1(e: Evidence) -> float | None:
    """Share of different tokens among all of the K samples (first 128 of each). Li et al. 2016."""
    return _distinct(e, 1)


def distinct_2(e: Evidence) -> float | None:
    """Share of different token pairs among all of the K samples (first 128 tokens of each)."""
    return _distinct(e, 2)


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Its length, by bit-parallel rows of len(a) bits, one pass over ``b`` (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | (1 << i)
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """ROUGE-L F1 (Lin 2004): 2·LCS / (len(a) + len(b)); two empty answers are equal (1)."""
    total = len(a) + len(b)
    return 2 * longest_common_subsequence(a, b) / total if total else 1.0


def self_rouge(e: Evidence) -> float | None:
    """Mean ROUGE-L over pairs of the K samples: 1 when they are all equal. None below two."""
    listed = [_words(answer.text) for answer in e.own]
    pairs = [rouge_l(listed[i], listed[j]) for i in range(len(listed)) for j in range(i)]
    return sum(pairs) / len(pairs) if pairs else None


def newness(e: Evidence) -> float | None:
    """Share of samples with ROUGE-L below 0.9 to every answer the previous iteration's policy gave
    to this prompt. None where either set is empty.
    """
    if not e.own or not e.previous:
        return None
    known = [_words(text) for text in e.previous]
    samples = [_words(answer.text) for answer in e.own]
    new = [all(rouge_l(sample, old) < NEW_BELOW for old in known) for sample in samples]
    return sum(new) / len(new)


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
    if not e.modes:
        return None
    texts = {answer.text for answer in e.own}
    return sum(mode in texts for mode, _, _ in e.modes) / len(e.modes)


def regret(e: Evidence) -> float | None:
    """Best reward minus E_π_θ[reward], exact: only the listed modes have a reward above 0."""
    if e.best is None:
        return None
    return e.best - math.fsum(reward * math.exp(logp) for _, reward, logp in e.modes)


def best_style_probability(e: Evidence) -> float | None:
    """Probability of the right answer in the best style, exact: Σ π_θ over that mode's texts,
    whatever the style is worth in this world.
    """
    if not e.modes:
        return None
    return math.fsum(math.exp(logp) for text, _, logp in e.modes if oracle.in_best_style(text))


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


_share = partial(Diagnostic, unit="share")
_per_token_of = partial(Diagnostic, unit="nats/token")
DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "rhat_reference_samples": Diagnostic(
        "mean r̂ on samples of π_ref", rhat_reference_samples, "heldout", core=True
    ),
    "kl_base": Diagnostic("KL(π_θ‖π_0)", kl_base, "heldout", core=True),
    "kl_previous": Diagnostic("KL(π_θ‖π_prev)", kl_previous, "heldout"),
    "kl_base_per_token": _per_token_of("KL(π_θ‖π_0) per token", kl_base_per_token, "heldout"),
    "kl_previous_per_token": _per_token_of(
        "KL(π_θ‖π_prev) per token", kl_previous_per_token, "heldout"
    ),
    "entropy": Diagnostic("entropy", entropy, "heldout", core=True),
    "entropy_per_token": _per_token_of("entropy per token", entropy_per_token, "heldout"),
    "spearman_reward": Diagnostic(
        "Spearman, implicit and external reward",
        spearman_reward,
        "heldout",
        "reward",
        unit="correlation",
        core=True,
    ),
    "brier_samples": Diagnostic(
        "Brier score, own samples", brier_samples, "heldout", "reward", unit=""
    ),
    "brier_pairs_train": Diagnostic("Brier score, training pairs", brier_pairs, "train", unit=""),
    "brier_pairs_heldout": Diagnostic(
        "Brier score, held-out pairs", brier_pairs, "heldout", unit=""
    ),
    "brier_pairs_ood": Diagnostic(
        "Brier score, out-of-distribution pairs", brier_pairs, "ood", unit=""
    ),
    "accuracy_pairs_train": _share("pairs ranked right, training", accuracy_pairs, "train"),
    "accuracy_pairs_heldout": _share("pairs ranked right, held-out", accuracy_pairs, "heldout"),
    "accuracy_pairs_ood": _share("pairs ranked right, out of distribution", accuracy_pairs, "ood"),
    "displacement_chosen_train": Diagnostic(
        "displacement of y_w, training", displacement_chosen, "train"
    ),
    "displacement_chosen_heldout": Diagnostic(
        "displacement of y_w, held-out", displacement_chosen, "heldout", core=True
    ),
    "displaced_share_train": _share(
        "share of y_w below reference, training", displaced_share, "train"
    ),
    "displaced_share_heldout": _share(
        "share of y_w below reference, held-out", displaced_share, "heldout"
    ),
    "rhat_heldout_chosen": Diagnostic(
        "r̂ of y_w, held-out", displacement_chosen, "heldout", same_as="displacement_chosen_heldout"
    ),
    "rhat_heldout_rejected": Diagnostic("r̂ of y_l, held-out", rhat_rejected, "heldout"),
    "rhat_y_winner": Diagnostic("r̂ of y that won", _rhat_y("winner"), "train"),
    "rhat_y_middle": Diagnostic("r̂ of y in the middle", _rhat_y("middle"), "train"),
    "rhat_y_loser": Diagnostic("r̂ of y that lost", _rhat_y("loser"), "train"),
    "share_y_winner": _share("y won", _share_y("winner"), "train"),
    "share_y_middle": _share("y in the middle", _share_y("middle"), "train"),
    "share_y_loser": _share("y lost", _share_y("loser"), "train"),
    "pair_margin": Diagnostic("margin of the pair", pair_margin, "train", unit="reward"),
    "distinct_1": _share("distinct-1", distinct_1, "heldout"),
    "distinct_2": _share("distinct-2", distinct_2, "heldout"),
    "self_rouge": Diagnostic("similarity among samples", self_rouge, "heldout", unit="ROUGE-L"),
    "newness": _share("share of new answers", newness, "heldout", "previous", core=True),
    "length_tokens": Diagnostic(
        "answer length", length_tokens, "heldout", unit="tokens", digits=1, core=True
    ),
    "truncated_share": _share("truncated answers", truncated_share, "heldout"),
    "missing_eos_share": _share("answers without end of turn", missing_eos_share, "heldout"),
    "grad_ratio": Diagnostic(
        "‖g_explore‖/‖g_DPO‖ at the start", None, "batches", unit="ratio", core=True
    ),
    "grad_ratio_end": Diagnostic("‖g_explore‖/‖g_DPO‖ at the end", None, "batches", unit="ratio"),
    "grad_cosine": Diagnostic(
        "cosine of both gradients at the start", None, "batches", unit="cosine"
    ),
    "grad_cosine_end": Diagnostic(
        "cosine of both gradients at the end", None, "batches", unit="cosine"
    ),
    "reward_samples": Diagnostic(
        "external reward of own samples",
        reward_samples,
        "heldout",
        "reward",
        unit="reward",
        better=1,
    ),
    "implicit_reward_samples": Diagnostic(
        "implicit reward of own samples", implicit_reward_samples, "heldout", unit="reward"
    ),
    "implicit_reward_reference_samples": Diagnostic(
        "implicit reward of samples of π_ref",
        implicit_reward_reference_samples,
        "heldout",
        unit="reward",
    ),
    "mode_coverage": _share("coverage of answer modes", mode_coverage, "heldout", "pocket"),
    "unseen_mass": Diagnostic(
        "probability moved to unseen answers",
        unseen_mass,
        "train",
        "pocket",
        unit="probability",
        digits=4,
    ),
    "best_style_probability": Diagnostic(
        "probability of a right answer in the best style",
        best_style_probability,
        "heldout",
        "pocket",
        unit="probability",
        digits=4,
    ),
    "regret": Diagnostic("regret", regret, "heldout", "pocket", unit="reward", digits=4, better=-1),
}
"""Metric name → how it is measured and shown, in reading order."""


def manifest_of() -> list[dict[str, Any]]:
    """What readers of a study are told of each: metric, title, unit and how it is shown."""
    shown = ("title", "unit", "digits", "core", "same_as", "better")
    return [
        {"metric": metric} | {name: getattr(diagnostic, name) for name in shown}
        for metric, diagnostic in DIAGNOSTICS.items()
    ]
