"""Every diagnostic of a checkpoint: one entry of ``DIAGNOSTICS`` per measurement.

Its function takes the ``Evidence`` of one prompt and returns its value, or None where it is
undefined there (never 0, never NaN): a prompt whose samples all have one reward has no rank
correlation, a pair whose y became the winner no r̂ of a losing y. Nats per response unless said
otherwise. θ is the checkpoint, ref the iteration's reference policy, π_0 the base, r̂ = log
π_θ/π_ref. This file loads no model code: the plan's manifest reads it.
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
    a prompt. needs: "" or what must exist: "reward" (an external scorer), "pocket", "previous"
    (answers). core: shown where a study has too many arms for a column each. same_as: the
    diagnostic with the same definition, beside which it is not shown. better: +1 higher, −1 lower,
    0 neither.
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


def _own(value: Callable[[Answer], float]) -> Measure:
    """Mean over samples of π_θ."""
    return lambda e: _mean(float(value(answer)) for answer in e.own)


def _per_token(value: Callable[[Answer], float]) -> Measure:
    """Sum over samples of π_θ, by all their tokens."""

    def measure(e: Evidence) -> float | None:
        tokens = sum(len(answer.token_ids) for answer in e.own)
        return math.fsum(value(answer) for answer in e.own) / tokens if tokens else None

    return measure


# --- implicit against external reward -------------------------------------------------------------


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties at their mean rank."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None where either is constant."""
    x, y = _ranks(a), _ranks(b)
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    spread = math.sqrt(math.fsum((p - mx) ** 2 for p in x) * math.fsum((q - my) ** 2 for q in y))
    return covariance / spread if spread > 0 else None


def _rewarded(e: Evidence) -> list[tuple[float, float]]:
    """(r̂, external reward) of the fresh samples of π_θ and π_ref."""
    return [(a.rhat(), a.reward) for a in (*e.own, *e.reference) if a.reward is not None]


def spearman_reward(e: Evidence) -> float | None:
    """Spearman within the prompt of r̂ and the external reward over at least 4 fresh samples."""
    found = _rewarded(e)
    return spearman([a for a, _ in found], [b for _, b in found]) if len(found) >= 4 else None


def brier_samples(e: Evidence) -> float | None:
    """Brier score of σ(β(r̂(a) − r̂(b))) over pairs of fresh samples whose external rewards differ,
    a being the better one.
    """
    pairs = [(a, b) for (a, x), (b, y) in product(_rewarded(e), repeat=2) if x > y]
    return _mean((1 - _sigmoid(e.beta * (a - b))) ** 2 for a, b in pairs)


def _gap(e: Evidence) -> float | None:
    """Δ = r̂(y_w) − r̂(y_l)."""
    return e.chosen.rhat() - e.rejected.rhat() if e.chosen and e.rejected else None


def brier_pairs(e: Evidence) -> float | None:
    """(1 − σ(βΔ))² of a labelled pair: 0.25 when nothing is known."""
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


def _rhat_y(role: str) -> Measure:
    """r̂ of the loss's own y on training pairs where it became the role."""
    return lambda e: e.explore.rhat() if e.explore and e.y_role == role else None


# --- diversity ------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    """Lower-case words of the first ``WINDOW``."""
    return re.findall(r"\w+", text.lower())[:WINDOW]


def _distinct(n: int) -> Measure:
    """Share of different n-grams of tokens among all of the K samples. Li et al. 2016."""

    def measure(e: Evidence) -> float | None:
        grams: list[tuple[int, ...]] = []
        for answer in e.own:
            ids = answer.token_ids[:WINDOW]
            grams += [ids[i : i + n] for i in range(len(ids) - n + 1)]
        return len(set(grams)) / len(grams) if grams else None

    return measure


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


def _rouge_l(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """ROUGE-L F1 (Lin 2004): 2·LCS / (len(a) + len(b)); two empty answers are equal (1)."""
    total = len(a) + len(b)
    return 2 * longest_common_subsequence(a, b) / total if total else 1.0


def self_rouge(e: Evidence) -> float | None:
    """Mean ROUGE-L over pairs of the K samples: 1 when they are all equal. None below two."""
    listed = [_words(answer.text) for answer in e.own]
    pairs = [_rouge_l(listed[i], listed[j]) for i in range(len(listed)) for j in range(i)]
    return sum(pairs) / len(pairs) if pairs else None


def newness(e: Evidence) -> float | None:
    """Share of samples with ROUGE-L below 0.9 to every answer the previous iteration's policy gave
    to this prompt. None where either set is empty.
    """
    if not e.own or not e.previous:
        return None
    known = [_words(text) for text in e.previous]
    samples = [_words(answer.text) for answer in e.own]
    new = [all(_rouge_l(sample, old) < NEW_BELOW for old in known) for sample in samples]
    return sum(new) / len(new)


# --- finite worlds --------------------------------------------------------------------------------


def mode_coverage(e: Evidence) -> float | None:
    """Share of the prompt's right answer modes that at least one of the K samples is."""
    texts = {answer.text for answer in e.own}
    return sum(mode in texts for mode, _, _ in e.modes) / len(e.modes) if e.modes else None


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
    """Σ_seen π_ref − Σ_seen π_θ: what training moved from {y_w, y_l, y} to all other answers."""
    seen = {answer.token_ids: answer for answer in (e.chosen, e.rejected, e.explore) if answer}
    if not seen:
        return None
    return math.fsum(
        math.exp(a.logps["reference"]) - math.exp(a.logps["theta"]) for a in seen.values()
    )


# --- all of them ----------------------------------------------------------------------------------

_train, _heldout = (partial(Diagnostic, split=split) for split in ("train", "heldout"))
_ood = partial(Diagnostic, split="ood")
_batches = partial(Diagnostic, function=None, split="batches")
_share, _rate = (partial(_heldout, unit=unit) for unit in ("share", "nats/token"))
_reward, _pocket = (partial(_heldout, needs=needs) for needs in ("reward", "pocket"))
DIAGNOSTICS: Mapping[str, Diagnostic] = {
    # Mean over temperature-1 samples of π_ref; KL(π_ref‖π_θ) is its negative.
    "rhat_reference_samples": _heldout(
        "mean r̂ on samples of π_ref", lambda e: _mean(a.rhat() for a in e.reference), core=True
    ),
    # The per-token KL summed over a sample of π_θ, each step exact; π_prev: where the iteration
    # started.
    "kl_base": _heldout("KL(π_θ‖π_0)", _own(lambda a: a.kl["base"]), core=True),
    "kl_previous": _heldout("KL(π_θ‖π_prev)", _own(lambda a: a.kl["previous"])),
    "kl_base_per_token": _rate("KL(π_θ‖π_0) per token", _per_token(lambda a: a.kl["base"])),
    "kl_previous_per_token": _rate(
        "KL(π_θ‖π_prev) per token", _per_token(lambda a: a.kl["previous"])
    ),
    # Σ_t of the entropies of π_θ's next-token distributions.
    "entropy": _heldout("entropy", _own(lambda a: a.entropy), core=True),
    "entropy_per_token": _rate("entropy per token", _per_token(lambda a: a.entropy)),
    "spearman_reward": _reward(
        "Spearman, implicit and external reward", spearman_reward, unit="correlation", core=True
    ),
    "brier_samples": _reward("Brier score, own samples", brier_samples, unit=""),
    "brier_pairs_train": _train("Brier score, training pairs", brier_pairs, unit=""),
    "brier_pairs_heldout": _heldout("Brier score, held-out pairs", brier_pairs, unit=""),
    "brier_pairs_ood": _ood("Brier score, out-of-distribution pairs", brier_pairs, unit=""),
    "accuracy_pairs_train": _train("pairs ranked right, training", accuracy_pairs, unit="share"),
    "accuracy_pairs_heldout": _share("pairs ranked right, held-out", accuracy_pairs),
    "accuracy_pairs_ood": _ood(
        "pairs ranked right, out of distribution", accuracy_pairs, unit="share"
    ),
    "displacement_chosen_train": _train("displacement of y_w, training", displacement_chosen),
    "displacement_chosen_heldout": _heldout(
        "displacement of y_w, held-out", displacement_chosen, core=True
    ),
    "displaced_share_train": _train(
        "share of y_w below reference, training", displaced_share, unit="share"
    ),
    "displaced_share_heldout": _share("share of y_w below reference, held-out", displaced_share),
    "rhat_heldout_chosen": _heldout(
        "r̂ of y_w, held-out", displacement_chosen, same_as="displacement_chosen_heldout"
    ),
    "rhat_heldout_rejected": _heldout(
        "r̂ of y_l, held-out", lambda e: e.rejected.rhat() if e.rejected else None
    ),
    "rhat_y_winner": _train("r̂ of y that won", _rhat_y("winner")),
    "rhat_y_middle": _train("r̂ of y in the middle", _rhat_y("middle")),
    "rhat_y_loser": _train("r̂ of y that lost", _rhat_y("loser")),
    "share_y_winner": _train("y won", lambda e: float(e.y_role == "winner"), unit="share"),
    "share_y_middle": _train(
        "y in the middle", lambda e: float(e.y_role == "middle"), unit="share"
    ),
    "share_y_loser": _train("y lost", lambda e: float(e.y_role == "loser"), unit="share"),
    # The ranker's score of the chosen minus the rejected answer.
    "pair_margin": _train("margin of the pair", lambda e: e.margin, unit="reward"),
    "distinct_1": _share("distinct-1", _distinct(1)),
    "distinct_2": _share("distinct-2", _distinct(2)),
    "self_rouge": _heldout("similarity among samples", self_rouge, unit="ROUGE-L"),
    "newness": _share("share of new answers", newness, needs="previous", core=True),
    # End of turn included.
    "length_tokens": _heldout(
        "answer length", _own(lambda a: len(a.token_ids)), unit="tokens", digits=1, core=True
    ),
    # At the token limit.
    "truncated_share": _share("truncated answers", _own(lambda a: a.status == "truncated")),
    # Whose last token is no stop token.
    "missing_eos_share": _share("answers without end of turn", _own(lambda a: not a.ended)),
    "grad_ratio": _batches("‖g_explore‖/‖g_DPO‖ at the start", unit="ratio", core=True),
    "grad_ratio_end": _batches("‖g_explore‖/‖g_DPO‖ at the end", unit="ratio"),
    "grad_cosine": _batches("cosine of both gradients at the start", unit="cosine"),
    "grad_cosine_end": _batches("cosine of both gradients at the end", unit="cosine"),
    "reward_samples": _reward(
        "external reward of own samples",
        lambda e: _mean(a.reward for a in e.own if a.reward is not None),
        unit="reward",
        better=1,
    ),
    # β·log π_θ/π_0 (Fig. 5). Against the common π_0; it is an estimate of β·KL(π_θ‖π_0), so read
    # it beside that.
    "implicit_reward_samples": _heldout(
        "implicit reward of own samples",
        lambda e: _mean(e.beta * a.rhat("base") for a in e.own),
        unit="reward",
    ),
    # Checkpoints with the same reference policy share its samples: no drift of them in it.
    "implicit_reward_reference_samples": _heldout(
        "implicit reward of samples of π_ref",
        lambda e: _mean(e.beta * a.rhat("base") for a in e.reference),
        unit="reward",
    ),
    "mode_coverage": _pocket("coverage of answer modes", mode_coverage, unit="share"),
    "unseen_mass": _train(
        "probability moved to unseen answers",
        unseen_mass,
        needs="pocket",
        unit="probability",
        digits=4,
    ),
    "best_style_probability": _pocket(
        "probability of a right answer in the best style",
        best_style_probability,
        unit="probability",
        digits=4,
    ),
    "regret": _pocket("regret", regret, unit="reward", digits=4, better=-1),
}
"""Metric name → how it is measured and shown, in reading order."""


def manifest_of() -> list[dict[str, Any]]:
    """What readers of a study are told of each: metric, title, unit and how it is shown."""
    shown = ("title", "unit", "digits", "core", "same_as", "better")
    return [
        {"metric": metric} | {name: getattr(diagnostic, name) for name in shown}
        for metric, diagnostic in DIAGNOSTICS.items()
    ]
