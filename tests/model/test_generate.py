"""Sampling: right distribution, seeds that belong to the request, stop tokens, errors."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from harness.model import generate as g
from harness.model.chat import encode_prompt, stop_tokens
from harness.model.policy import Policy
from harness.records import Generation, GenerationRequest, request_seed
from tests import tiny

STYLES = ("llama3", "zephyr", "phi3")


def _policy(style: str = "llama3", architecture: str = "llama", **changes) -> Policy:
    tokenizer = tiny.tokenizer(style)
    model = tiny.model(architecture, tokenizer, **changes)
    return Policy(model, tokenizer, Path(), stop_tokens(tokenizer), "cpu")


def _requests(
    policy: Policy, count: int = 24, *, temperature: float = 1.0, new: int = 12, **extra
) -> list[GenerationRequest]:
    texts = [
        "Hi",
        "How are you today",
        "Count to three",
        "a" * 23,
        "What?",
        "Name a colour, please",
    ]
    ids = [
        tuple(encode_prompt(policy.tokenizer, [{"role": "user", "content": text}]))
        for text in texts
    ]
    return [
        GenerationRequest(ids[i % len(ids)], new, temperature, seed=request_seed(0, i), **extra)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return _policy()


def test_request_seed_is_stable_and_63_bits():
    assert request_seed(0, 1, "rollout", "p", 0) == request_seed(0, 1, "rollout", "p", 0)
    parts = itertools.product(range(3), range(3), ["rollout"], "ab", range(3))
    seeds = {request_seed(*identity) for identity in parts}
    assert len(seeds) == 54
    assert all(0 <= seed < 2**63 for seed in seeds)


WINDOWS = [
    ("mistral", {"sliding_window": 16}),
    ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}),
]


@pytest.mark.parametrize(
    ("architecture", "changes"), [*((name, {}) for name in tiny.ARCHITECTURES), *WINDOWS]
)
def test_greedy_is_transformers_greedy(architecture, changes):
    """Ragged prompts in one batch, against one prompt at a time; sliding windows shorter than the
    prompts too.
    """
    policy = _policy("llama3", architecture, **changes)
    requests = _requests(policy, 6, temperature=0.0)
    for request, answer in zip(requests, g.generate(policy, requests), strict=True):
        ids = torch.tensor([request.prompt_ids])
        expected = policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=list(policy.stop_token_ids),
            pad_token_id=policy.tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        assert list(answer.token_ids) == expected


def test_equal_batches_repeat_exactly(policy):
    requests = _requests(policy)
    assert g.generate(policy, requests) == g.generate(policy, requests)


def test_samples_do_not_depend_on_the_batch(policy):
    requests = _requests(policy, 120)
    together = g.generate(policy, requests, batch_size=64)
    other = g.generate(policy, requests, batch_size=7)
    alone = {i: g.generate(policy, [requests[i]])[0] for i in range(0, 120, 10)}
    reverse = g.generate(policy, requests[::-1], batch_size=64)[::-1]
    pairs = [
        *zip(together, other, strict=True),
        *zip(together, reverse, strict=True),
        *((together[i], alone[i]) for i in alone),
    ]
    tokens = [(a, b) for x, y in pairs for a, b in zip(x.token_ids, y.token_ids, strict=False)]
    assert sum(a == b for a, b in tokens) / len(tokens) >= 0.999
    assert len({answer.text for answer in together}) > 60


def test_seed_and_temperature_decide(policy):
    first, second = (
        _requests(policy, 1)[0],
        GenerationRequest(_requests(policy, 1)[0].prompt_ids, 12, 1.0, seed=99),
    )
    a, b, again = g.generate(policy, [first, second, first])
    assert a == again
    assert a.token_ids != b.token_ids


def test_greedy_and_sampled_rows_share_a_batch(policy):
    sampled, greedy = _requests(policy, 6), _requests(policy, 6, temperature=0.0)
    mixed = g.generate(policy, [*sampled, *greedy])
    assert [a.token_ids for a in mixed] == [
        a.token_ids for a in [*g.generate(policy, sampled), *g.generate(policy, greedy)]
    ]


def test_sampling_follows_softmax_at_any_temperature():
    """20,000 draws from three tokens with probabilities 0.5, 0.3, 0.2; chi-square with 2 degrees of
    freedom under its 99.9 % point 13.8.
    """
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    draws = 20_000
    seeds = torch.arange(draws)
    for heat, p in ((1.0, [0.5, 0.3, 0.2]), (0.5, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38])):
        tokens = g.draw(
            logits.expand(draws, 3),
            seeds,
            torch.full((draws,), heat).double(),
            torch.ones(draws).double(),
            3,
        )
        counts = torch.bincount(tokens, minlength=3).tolist()
        assert (
            sum((c - draws * q) ** 2 / (draws * q) for c, q in zip(counts, p, strict=True)) < 13.8
        )


def test_gumbel_noise_has_gumbel_moments_and_no_visible_dependence():
    """Mean 0.5772, variance π²/6; neighbouring tokens, positions and seeds uncorrelated within 4
    standard errors.
    """
    noise = g.gumbel(torch.arange(400), 0, 250)
    assert noise.mean().item() == pytest.approx(0.5772, abs=4 * 1.2825 / math.sqrt(100_000))
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    other = g.gumbel(torch.arange(400), 1, 250)

    def correlation(a, b):
        return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()

    assert correlation(noise, other) < 4 / math.sqrt(100_000)
    assert correlation(noise[:, 1:], noise[:, :-1]) < 4 / math.sqrt(99_600)
    assert correlation(noise[1:], noise[:-1]) < 4 / math.sqrt(99_750)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    """Probabilities 0.5, 0.3, 0.2: top_p 0.5 keeps the first, 0.79 two, 0.81 all three."""
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    seeds = torch.arange(2000)

    def kept(top_p: float) -> set[int]:
        return set(
            g.draw(
                logits.expand(2000, 3),
                seeds,
                torch.ones(2000).double(),
                torch.full((2000,), top_p).double(),
                0,
            ).tolist()
        )

    assert kept(0.5) == {1}
    assert kept(0.79) == {1, 2}
    assert kept(0.81) == {0, 1, 2}


@pytest.mark.parametrize("style", STYLES)
def test_stop_tokens_of_the_template_end_the_answer(style, monkeypatch):
    """A model that always wants the template's end of turn stops at once, status ok, with empty
    text.
    """
    policy = _policy(style)
    end = policy.tokenizer.convert_tokens_to_ids(tiny.STYLES[style].end_of_turn)
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
    monkeypatch.setattr(g, "draw", lambda logits, *_: torch.full((len(logits),), end))
    (answer,) = g.generate(policy, _requests(policy, 1))
    assert answer == Generation((end,), "", "ok")


def test_truncated_answers_keep_all_their_tokens(policy):
    answers = g.generate(policy, _requests(policy, 40, new=3))
    cut = [answer for answer in answers if answer.status == "truncated"]
    assert cut
    assert all(len(answer.token_ids) == 3 for answer in cut)
    assert all(not set(answer.token_ids) & set(policy.stop_token_ids) for answer in cut)
    for answer in answers:
        assert (answer.status == "ok") == (answer.token_ids[-1] in policy.stop_token_ids)


def test_rows_of_different_limits_share_a_batch(policy):
    ids = _requests(policy, 1)[0].prompt_ids
    requests = [GenerationRequest(ids, new, 1.0, seed=5) for new in (1, 4, 9)]
    short, middle, long = g.generate(policy, requests)
    assert middle.token_ids[:1] == short.token_ids
    assert long.token_ids[: len(middle.token_ids)] == middle.token_ids


def test_out_of_memory_halves_the_batch_and_ends_as_error(policy, monkeypatch):
    sizes = []
    real = g._decode

    def limited(given, requests):
        sizes.append(len(requests))
        if len(requests) > 3 or any(len(r.prompt_ids) > 60 for r in requests):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(given, requests)

    monkeypatch.setattr(g, "_decode", limited)
    requests = [*_requests(policy, 8), GenerationRequest(tuple(range(65, 65 + 61)), 4, 1.0)]
    answers = g.generate(policy, requests)
    assert sizes[0] == 9
    assert max(sizes[1:]) < 9
    assert [a.status for a in answers].count("error") == 1
    assert answers[-1].status == "error"
    assert "out of memory" in answers[-1].error
    assert answers[-1].token_ids == ()


def test_other_errors_are_not_swallowed(policy, monkeypatch):
    def broken(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(g, "_decode", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        g.generate(policy, _requests(policy, 2))


def test_a_broken_model_gives_error_rows_not_text():
    policy = _policy()
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(float("nan"))
    for answer in g.generate(policy, _requests(policy, 3)):
        assert (answer.status, answer.token_ids, answer.text) == ("error", (), "")
        assert "not finite" in answer.error


def test_a_prompt_that_fills_the_model_has_no_answer():
    policy = _policy(max_position_embeddings=64)
    fits, full = (GenerationRequest(tuple([65] * n), 12, 1.0) for n in (60, 64))
    a, b = g.generate(policy, [fits, full])
    assert len(a.token_ids) <= 4
    assert (b.status, b.text) == ("no_answer", "")


def test_no_requests_no_answers(policy):
    assert g.generate(policy, []) == []


def test_a_request_that_no_model_can_answer_is_a_row_of_its_own(policy):
    """Between good ones: an empty prompt, no new tokens asked for, a token without an embedding."""
    good = _requests(policy, 2)
    words = policy.model.config.vocab_size
    bad = [
        GenerationRequest((), 4, 1.0),
        GenerationRequest((65,), 0, 1.0),
        GenerationRequest((65, words), 4, 1.0),
        GenerationRequest((-1,), 4, 1.0),
    ]
    answers = g.generate(policy, [good[0], *bad, good[1]])
    statuses = ["no_answer", "no_answer", "error", "error"]
    assert [answer.status for answer in answers[1:-1]] == statuses
    assert f"token {words} of the prompt" in answers[3].error
    assert [answers[0], answers[-1]] == g.generate(policy, good)
