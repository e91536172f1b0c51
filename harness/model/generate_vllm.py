"""Sampling by vLLM (extra ``gpu``), for rollouts of models that need a GPU. Written to vLLM's
documented interface; NOT YET MEASURED.

Every request carries its own seed, so that a request's answer does not depend on its neighbours (up
to the floating-point effects of vLLM's batching). The samples differ from the transformers path's:
another sampler, another use of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from harness.model.policy import Policy
from harness.records import Generation, GenerationRequest, HarnessError


def generate_vllm(
    policy: Policy, requests: Sequence[GenerationRequest], *, memory_share: float = 0.9
) -> list[Generation]:
    """Draw every request, in the order given. ``policy`` gives the checkpoint's folder, tokenizer
    and stop tokens; its model is not used.
    """
    try:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
    except ImportError as error:
        raise HarnessError(
            'model.generation_backend vllm needs the package vllm: pip install -e ".[gpu]" on a '
            "machine with a CUDA GPU"
        ) from error
    engine = _engine(
        str(policy.folder), str(policy.model.dtype).removeprefix("torch."), memory_share
    )
    prompts = [TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in requests]
    parameters = [
        SamplingParams(
            n=1,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed % 2**63,
            max_tokens=request.max_new_tokens,
            stop_token_ids=list(policy.stop_token_ids),
            ignore_eos=False,
            detokenize=False,
        )
        for request in requests
    ]
    outputs = engine.generate(prompts, parameters, use_tqdm=False)
    return [_generation(policy, output.outputs[0]) for output in outputs]


def _generation(policy: Policy, output: Any) -> Generation:
    """vLLM's finish_reason: "stop" (a stop token, which is the last of token_ids or its
    stop_reason), "length", or anything else: an error.
    """
    ids = [int(token) for token in output.token_ids]
    if output.finish_reason not in ("stop", "length"):
        return Generation((), "", "error", f"vLLM ended the request with {output.finish_reason!r}")
    if output.finish_reason == "length":
        return Generation(
            tuple(ids), policy.tokenizer.decode(ids, skip_special_tokens=True), "truncated"
        )
    if not ids or ids[-1] not in policy.stop_token_ids:
        ids.append(
            int(
                output.stop_reason
                if output.stop_reason is not None
                else policy.tokenizer.eos_token_id
            )
        )
    return Generation(tuple(ids), policy.tokenizer.decode(ids[:-1], skip_special_tokens=True), "ok")


@lru_cache(maxsize=1)
def _engine(folder: str, dtype: str, memory_share: float) -> Any:
    from vllm import LLM

    return LLM(
        model=folder,
        dtype=dtype,
        gpu_memory_utilization=memory_share,
        trust_remote_code=False,
        enable_prefix_caching=True,
    )
