"""lm-eval's model class with vLLM's engine in place of the model: what is asked, cut and parsed
stays the class's own; log-likelihoods and answers are the engine's.

lm-eval's class for vLLM starts an engine inside the process that asks, which a pool's worker cannot
have, and encodes by a tokenizer of vLLM's, not by the one that the policy is trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.model.vllm_engine import Engine
from harness.records import GenerationRequest, HarnessError, request_seed

TAKEN = {"attention_mask", "do_sample", "stop", "temperature", "top_p", "use_cache"}
"""What may be said of answers beside their length."""


def computed_by(engine: Engine, base: type[Any]) -> type[Any]:
    """A subclass of lm-eval's HFLM for a policy without weights.

    A request has two positions less than the model: vLLM reads the last token of a row too, and
    wants room for a new one. An answer goes on behind the text at which lm-eval cuts it.
    """

    class EngineLM(base):  # type: ignore[misc]
        drawn = 0

        @property
        def device(self) -> torch.device:
            return torch.device("cpu")

        @property
        def max_length(self) -> int:
            return int(super().max_length) - 2

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], *_: Any, **__: Any
        ) -> list[tuple[float, bool]]:
            most = self.max_length + 1
            return engine.score([((a + b)[-most:], len(b)) for _, a, b in requests])

        def _model_generate(self, context: Tensor, max_length: int, **asked: Any) -> Tensor:
            unknown = sorted(set(asked) - TAKEN)
            if unknown:
                raise HarnessError(
                    f"evaluation.academic.engine vllm does not take {', '.join(unknown)}, which a "
                    "task sets for its answers; set it to transformers"
                )
            temperature = float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0
            top_p, new = float(asked.get("top_p", 1.0)), max_length - context.shape[1]
            rows = [
                ids[kept] for ids, kept in zip(context, asked["attention_mask"].bool(), strict=True)
            ]
            seeds = [request_seed("academic", self.drawn + place) for place in range(len(rows))]
            self.drawn += len(rows)
            answers = engine.draw(
                [
                    GenerationRequest(tuple(ids.tolist()), new, temperature, top_p, seed)
                    for ids, seed in zip(rows, seeds, strict=True)
                ]
            )
            for _, status, error in answers:
                if status == "error":
                    raise HarnessError(f"vLLM answers no academic task: {error}")
            found = torch.full((len(rows), new), self.tokenizer.pad_token_id)
            for place, (ids, _, _) in enumerate(answers):
                found[place, : len(ids)] = torch.tensor(ids)
            return torch.cat([context, found], 1)

    return EngineLM
