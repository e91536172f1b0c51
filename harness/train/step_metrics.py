"""What a training step reports: margins and implicit log-ratios, averaged over the rows of the
global batch.

All log-ratios r = log pi_theta - log pi_ref are in nats, summed over the response's tokens. A mean
over no rows is None.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.train.batching import MicroBatch
from harness.train.objectives import Rows

Y_ROLES = ("winner", "loser", "middle")
_ROLE_OF_Y = {"winner": "chosen", "loser": "rejected", "middle": "explore"}
NAMES = (
    "margin",
    "accuracy",
    "rhat_chosen",
    "rhat_rejected",
    "rhat_explore",
    *(f"rhat_y_{role}" for role in Y_ROLES),
)


class StepMetrics:
    """Sums and counts over micro-batches, drained once per logged step."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.sums = dict.fromkeys(NAMES, 0.0)
        self.counts = dict.fromkeys(NAMES, 0.0)
        self.absolute = 0.0
        self.tokens = 0.0

    def add(self, rows: Rows, micro: MicroBatch) -> None:
        """Count one micro-batch. Without a reference, r is the log-probability itself."""
        weights = micro.weights
        if not bool(weights.any()):
            return
        with torch.no_grad():
            names = list(rows.logps)
            ratios = torch.stack(
                [rows.ratio(role) if role in rows.reference else rows.logps[role] for role in names]
            ).detach()
            table = dict(zip(names, ratios.tolist(), strict=True))
            if rows.reference:
                lengths = torch.stack([rows.tokens[role] for role in names])
                self.absolute += float(ratios.abs().sum())
                self.tokens += float(lengths.sum())
        chosen, rejected = table["chosen"], table["rejected"]
        self._count("margin", [c - r for c, r in zip(chosen, rejected, strict=True)])
        self._count("accuracy", [float(c > r) for c, r in zip(chosen, rejected, strict=True)])
        for role, values in table.items():
            self._count(f"rhat_{role}", values)
        for role, source in _ROLE_OF_Y.items():
            if source in table:
                self._count(
                    f"rhat_y_{role}",
                    [
                        value
                        for value, own in zip(table[source], micro.y_roles, strict=True)
                        if own == role
                    ],
                )

    def _count(self, name: str, values: list[float]) -> None:
        self.sums[name] += sum(values)
        self.counts[name] += len(values)

    def drift(self) -> float:
        """Mean |r| in nats per token since the last drain (0 without a reference)."""
        return self.absolute / self.tokens if self.tokens else 0.0

    def drain(self, accelerator: Any = None) -> dict[str, Any]:
        """Means since the last drain over all ranks, then start again."""
        flat = [*self.sums.values(), *self.counts.values()]
        if accelerator is not None and accelerator.num_processes > 1:
            flat = accelerator.reduce(
                torch.tensor(flat, dtype=torch.float64, device=accelerator.device), "sum"
            ).tolist()
        self._reset()
        sums, counts = flat[: len(NAMES)], flat[len(NAMES) :]
        return {
            name: total / count if count else None
            for name, total, count in zip(NAMES, sums, counts, strict=True)
        }
