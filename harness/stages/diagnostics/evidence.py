"""What is known about one prompt when its diagnostics are computed: answers with log-probabilities
under each policy. Numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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
