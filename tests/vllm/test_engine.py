"""vLLM's own engine on a CPU (``make test-vllm`` makes the environment it wants): the rows that
transformers gives, one process a checkpoint, and nothing left of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from harness.model import generate as g
from harness.model.chat import encode_prompt
from harness.model.policy import Policy, load_policy
from harness.records import GenerationRequest, HarnessError, request_seed
from harness.study.tasks import Generating, Runtime
from tests import tiny

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
pytestmark = pytest.mark.slow

CONTEXT = 256
SETTINGS = Generating(
    threads=1, dtype="float32", attention="sdpa", generation_batch=64, backend="vllm"
)
RUNTIME = Runtime(vllm_memory_share=0.1)
# vLLM's kernels on a CPU have heads of 32 and more.
SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}


def checkpoint(folder: Path, seed: int = 0) -> Path:
    return tiny.checkpoint(
        folder, seed=seed, max_position_embeddings=CONTEXT, initializer_range=0.3, **SHAPE
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def draw(folder: Path) -> Iterator[Callable[[list[GenerationRequest]], list[g.Generation]]]:
    policy = load_policy(folder, weights=False)
    with g.engine_of(policy, SETTINGS, RUNTIME) as engine:
        yield lambda requests: g.generate(policy, requests, engine=engine)


def requests(policy: Policy, count: int, new: int, temperature: float) -> list[GenerationRequest]:
    turns = [[{"role": "user", "content": "Hi there " * (1 + i % 5)}] for i in range(count)]
    prompts = [tuple(encode_prompt(policy.tokenizer, messages)) for messages in turns]
    seeds = [request_seed(0, i) for i in range(count)]
    return [
        GenerationRequest(prompt, new, temperature, seed=seed)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def alive(group: int) -> bool:
    """Whether any process of a session's group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_rows_are_those_of_transformers(folder, draw):
    """Greedy, so that both draw the same tokens: answers that end and answers that are cut, between
    an empty prompt, one as long as the context, one that nearly is, no new tokens, a token that the
    model has no embedding of.
    """
    policy = load_policy(folder)
    words = policy.model.config.vocab_size
    odd = [
        GenerationRequest((), 8, 0.0),
        GenerationRequest((65,) * CONTEXT, 8, 0.0),
        GenerationRequest((65,) * (CONTEXT + 1), 8, 0.0),
        GenerationRequest((65,) * (CONTEXT - 3), 8, 0.0),
        GenerationRequest((65, 66), 0, 0.0),
        GenerationRequest((65, words), 8, 0.0),
    ]
    good = requests(policy, 40, 120, 0.0)
    asked = [*good[:20], *odd, *good[20:]]
    theirs, ours = draw(asked), g.generate(policy, asked)
    assert theirs == ours
    found = [answer.status for answer in theirs[20 : 20 + len(odd)]]
    assert found == ["no_answer", "no_answer", "no_answer", "truncated", "no_answer", "error"]
    assert len(theirs[23].token_ids) == 3


def test_an_answer_ends_with_the_first_stop_token_or_is_cut(folder, draw):
    policy = load_policy(folder, weights=False)
    stops = set(policy.stop_token_ids)
    assert len(stops) == 2, "the end of turn beside the eos"
    answers = draw(requests(policy, 60, 150, 1.5))
    ended = [answer for answer in answers if answer.status == "ok"]
    cut = [answer for answer in answers if answer.status == "truncated"]
    assert len(ended) + len(cut) == 60
    assert {answer.token_ids[-1] for answer in ended} == stops
    assert not any(stops & set(answer.token_ids[:-1]) for answer in ended)
    assert cut
    assert all(len(answer.token_ids) == 150 for answer in cut)
    assert not any(stops & set(answer.token_ids) for answer in cut)
    assert not any("<|" in answer.text for answer in ended)


def test_a_seed_is_the_requests_own(folder, draw):
    asked = requests(load_policy(folder, weights=False), 12, 20, 1.0)
    first = draw(asked)
    assert draw(asked) == first
    assert draw(asked[::-1])[::-1] == first
    assert len({answer.token_ids for answer in first}) == 12


def test_long_prompts_with_seeds_go_together(folder, draw):
    """More tokens than one step of vLLM takes: a prompt cut into chunks would end it on a CPU."""
    policy = load_policy(folder, weights=False)
    asked = [GenerationRequest((65 + i % 20,) * 250, 4, 1.0, seed=i) for i in range(60)]
    assert {answer.status for answer in draw(asked)} <= {"ok", "truncated"}
    assert policy.model.device.type == "meta"


def test_logits_that_are_no_numbers_are_an_error(tmp_path):
    policy = load_policy(checkpoint(tmp_path))
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(3e38)
    policy.model.save_pretrained(tmp_path)
    asked = requests(policy, 2, 4, 1.0)
    with g.engine_of(policy, SETTINGS, RUNTIME) as engine:
        answers = g.generate(policy, asked, engine=engine)
    assert [answer.status for answer in answers] == ["error", "error"]
    assert "not finite" in answers[0].error


def test_two_checkpoints_after_another(folder, tmp_path):
    """In one process, as a worker samples: the first engine has ended when the second starts, and
    each answers with its own weights.
    """
    groups, answers = [], []
    folders = [folder, checkpoint(tmp_path, seed=1)]
    for place in folders:
        policy = load_policy(place, weights=False)
        asked = requests(policy, 4, 12, 0.0)
        with g.engine_of(policy, SETTINGS, RUNTIME) as engine:
            answers.append(g.generate(policy, asked, engine=engine))
            groups += [process.pid for process in engine.processes]
            assert [alive(group) for group in groups] == [False] * (len(groups) - 1) + [True]
    assert not any(alive(group) for group in groups)
    assert answers[0] != answers[1]
    assert answers == [g.generate(load_policy(place), asked) for place in folders]


def test_two_engines_share_the_prompts(folder):
    policy = load_policy(folder)
    asked = requests(policy, 5, 12, 0.0)
    two = RUNTIME.model_copy(update={"vllm_data_parallel": 2})
    with g.engine_of(policy, SETTINGS, two) as engine:
        theirs = g.generate(policy, asked, engine=engine)
        assert len(engine.processes) == 2
        assert g.generate(policy, asked[:1], engine=engine) == theirs[:1]
    assert theirs == g.generate(policy, asked)


def test_an_engine_that_is_killed_is_an_error_and_leaves_nothing(folder):
    policy = load_policy(folder, weights=False)
    asked = requests(policy, 3000, 200, 1.0)
    with g.engine_of(policy, SETTINGS, RUNTIME) as engine:
        g.generate(policy, asked[:1], engine=engine)
        (process,) = engine.processes
        threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises(HarnessError, match="killed by SIGKILL"):
            g.generate(policy, asked, engine=engine)
    assert not alive(process.pid)


def test_an_engine_that_cannot_start_says_why(folder):
    policy = load_policy(folder, weights=False)
    asked = requests(policy, 1, 4, 0.0)
    greedy = RUNTIME.model_copy(update={"vllm_memory_share": 1.0})
    with (
        pytest.raises(HarnessError, match="memory utilization"),
        g.engine_of(policy, SETTINGS, greedy) as engine,
    ):
        g.generate(policy, asked, engine=engine)


PARENT = """
import sys, time
from pathlib import Path
from harness.model import generate as g
from harness.model.policy import load_policy
from tests.vllm import test_engine as t

policy = load_policy(Path(sys.argv[1]), weights=False)
with g.engine_of(policy, t.SETTINGS, t.RUNTIME) as engine:
    g.generate(policy, t.requests(policy, 1, 4, 0.0), engine=engine)
    print(engine.processes[0].pid, flush=True)
    time.sleep(600)
"""


def test_an_engine_ends_with_its_parent(folder):
    command = [sys.executable, "-c", PARENT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert alive(group)
        parent.kill()
    deadline = time.monotonic() + 20
    while alive(group) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(group)
