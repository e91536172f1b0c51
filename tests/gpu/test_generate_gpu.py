"""Sampling on a CUDA device: the same noise as on the CPU, equal batches exact, and vLLM's path
where vLLM is installed.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from harness.model import generate as g
from harness.model.chat import encode_prompt
from harness.model.policy import load_policy
from harness.records import GenerationRequest, request_seed
from harness.study.tasks import Generating, Runtime
from tests import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _requests(policy, count: int = 48, temperature: float = 1.0) -> list[GenerationRequest]:
    ids = [
        tuple(encode_prompt(policy.tokenizer, [{"role": "user", "content": "word " * (i % 7)}]))
        for i in range(count)
    ]
    return [
        GenerationRequest(prompt, 16, temperature, seed=request_seed(0, i))
        for i, prompt in enumerate(ids)
    ]


def test_noise_is_the_cpus():
    cpu = g.gumbel(torch.arange(64), 3, 1000)
    cuda = g.gumbel(torch.arange(64, device="cuda"), 3, 1000).cpu()
    assert torch.allclose(cpu, cuda, rtol=1e-12, atol=1e-12)


def test_samples_are_the_cpus_and_repeat(tmp_path):
    folder = tiny.checkpoint(tmp_path)
    cpu, cuda = load_policy(folder), load_policy(folder, device="cuda")
    requests = _requests(cpu)
    drawn = g.generate(cuda, requests)
    assert drawn == g.generate(cuda, requests)
    pairs = [
        (x, y)
        for a, b in zip(drawn, g.generate(cpu, requests), strict=True)
        for x, y in zip(a.token_ids, b.token_ids, strict=False)
    ]
    assert sum(x == y for x, y in pairs) / len(pairs) >= 0.999


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_greedy_is_ours_and_seeds_decide(tmp_path):
    policy = load_policy(
        tiny.checkpoint(tmp_path, hidden_size=128, num_attention_heads=2, num_key_value_heads=2)
    )
    settings = Generating(
        threads=1, dtype="float32", attention="sdpa", generation_batch=8, backend="vllm"
    )
    greedy, sampled = _requests(policy, 8, temperature=0.0), _requests(policy, 8)
    ours = g.generate(policy, greedy)
    with g.engine_of(policy, settings, Runtime(device="cuda", vllm_memory_share=0.3)) as engine:
        theirs = g.generate(policy, greedy, engine=engine)
        first, again = (g.generate(policy, sampled, engine=engine) for _ in range(2))
    assert [a.token_ids[:4] for a in ours] == [a.token_ids[:4] for a in theirs]
    assert [a.token_ids for a in first] == [a.token_ids for a in again]
    assert all((a.status == "ok") == (a.token_ids[-1] in policy.stop_token_ids) for a in first)
