"""PreferenceTrainer against a plain float64 reference, against TRL's DPOTrainer, and against itself
run in other ways.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.model import attention as shared_prefix
from harness.records import HarnessError
from harness.train.batching import (
    GlobalBatchSampler,
    PreferenceRow,
    collate_for_rank,
    plan_global_batch,
)
from harness.train.trainer import CHECKPOINTING, PreferenceConfig, PreferenceTrainer
from tests import plain, tiny
from tests.preferences import RARITY, ROLES, config, model, rows, trls

Numbers = dict[str, Tensor]
ALPHA, BETA = 0.5, 0.1


def _log_sigma(x: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-x)))


def _gap(p: Numbers, q: Numbers) -> Tensor:
    return (p["chosen"] - q["chosen"]) - (p["rejected"] - q["rejected"])


def _dpo(p: Numbers, q: Numbers) -> Tensor:
    return -_log_sigma(BETA * _gap(p, q))


PLAIN: dict[str, Callable[[Numbers, Numbers, dict[str, int]], Tensor]] = {
    "dpo": lambda p, q, n: _dpo(p, q),
    "selm": lambda p, q, n: _dpo(p, q) + ALPHA * BETA * (p["explore"] - q["explore"]),
    "copo": lambda p, q, n: (
        _dpo(p, q)
        - ALPHA
        * torch.exp(p["explore"] - q["explore"]).detach().clamp(max=5)
        * (0.1 * RARITY * p["explore"])
    ),
    "ipo_mean": lambda p, q, n: (
        (p["chosen"] - q["chosen"]) / n["chosen"]
        - (p["rejected"] - q["rejected"]) / n["rejected"]
        - 1 / (2 * BETA)
    ).square(),
    "simpo": lambda p, q, n: (
        -_log_sigma(BETA * (p["chosen"] / n["chosen"] - p["rejected"] / n["rejected"]) - 0.5)
    ),
}
"""Losses of one row written again, one for each thing that an objective may read: the pair, y, what
its row says of y, lengths, no reference. The equations are ``test_objectives``'s.
"""


def plain_loss(name: str, policy: Any, start: Any, batch: list[PreferenceRow]) -> Tensor:
    """Mean over rows, every response in a pass of its own."""
    losses = []
    for row in batch:
        p = {role: plain.logp(policy, row.prompt_ids, row.responses[role]) for role in ROLES}
        with torch.no_grad():
            q = {role: plain.logp(start, row.prompt_ids, row.responses[role]) for role in ROLES}
        losses.append(PLAIN[name](p, q, {role: len(row.responses[role]) for role in ROLES}))
    return torch.stack(losses).mean()


def moved(start: Any) -> Any:
    """A policy that has left the reference."""
    policy = copy.deepcopy(start)
    generator = torch.Generator().manual_seed(9)
    for p in policy.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    return policy


def step(
    trainer: PreferenceTrainer, batch: list[PreferenceRow], budget: int = 60
) -> tuple[float, Tensor]:
    """Loss and gradient of one global batch through the trainer's own step."""
    trainer.args.token_budget = budget
    assert len(trainer._micro_batches(batch, trainer.objective.roles)) > 1
    loss = trainer.training_step(trainer.model, batch)
    return float(loss), plain.gradient(trainer.model)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", PLAIN)
def test_loss_and_gradient_equal_the_plain_reference(
    name: str, dtype: torch.dtype, limit: float, tmp_path: Path
) -> None:
    exact_start = plain.exact_norms(model(dtype=torch.float64))
    exact_policy = plain.exact_norms(moved(exact_start))
    batch = rows(12)
    wanted = plain_loss(name, exact_policy, exact_start, batch)
    wanted.backward()
    gradient = plain.gradient(exact_policy)
    policy, start = model(dtype=dtype), model(dtype=dtype)
    policy.load_state_dict(exact_policy.state_dict())
    start.load_state_dict(exact_start.state_dict())
    if dtype == torch.float64:
        policy, start = plain.exact_norms(policy), plain.exact_norms(start)
    trainer = PreferenceTrainer(
        policy,
        config(tmp_path, objective=name, alpha=ALPHA, max_log_ratio=1e9),
        batch,
        ref_model=start,
    )
    loss, found = step(trainer, batch)
    assert loss == pytest.approx(
        wanted.item(), rel=max(limit, 1e-6), abs=1e-7
    )  # the reported loss is float32
    assert plain.relative_error(found, gradient) < limit


def plain_gaps(policy: Any, start: Any, batch: list[PreferenceRow]) -> list[tuple[Tensor, Tensor]]:
    """r(y_w) and r(y_l) of every row, every response in a pass of its own."""
    return [
        (
            plain.logp(policy, row.prompt_ids, row.responses["chosen"])
            - plain.logp(start, row.prompt_ids, row.responses["chosen"]).detach(),
            plain.logp(policy, row.prompt_ids, row.responses["rejected"])
            - plain.logp(start, row.prompt_ids, row.responses["rejected"]).detach(),
        )
        for row in batch
    ]


def plain_beta_dpo(gaps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The first step: the moving average is a tenth of the mean."""
    deltas = torch.stack([chosen - rejected for chosen, rejected in gaps])
    used = max(BETA * (1 + 0.6 * 0.9 * float(deltas.mean())), 1e-3)
    return -_log_sigma(used * deltas).mean()


def plain_kto(gaps: list[tuple[Tensor, Tensor]], others: list[tuple[Tensor, Tensor]]) -> Tensor:
    z = max(float(sum(a + b for a, b in others)) / (2 * len(others)), 0.0)
    losses = [1 - 1 / (1 + torch.exp(-BETA * (chosen - z))) for chosen, _ in gaps]
    losses += [1 - 1 / (1 + torch.exp(-BETA * (z - rejected))) for _, rejected in gaps]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", ["beta_dpo", "kto"])
@pytest.mark.parametrize("budget", [40, 200])
def test_what_is_read_of_the_whole_batch_does_not_depend_on_its_cut(
    name: str, budget: int, tmp_path: Path
) -> None:
    start = plain.exact_norms(model(dtype=torch.float64))
    policy, batch = plain.exact_norms(moved(start)), rows(12)
    before = [batch[-1], *batch[:-1]]
    mixed = [
        dataclasses.replace(row, responses=other.responses)
        for row, other in zip(batch, before, strict=True)
    ]
    gaps, others = plain_gaps(policy, start, batch), plain_gaps(policy, start, mixed)
    assert sum(float(a + b) for a, b in others) > 0
    wanted = plain_kto(gaps, others) if name == "kto" else plain_beta_dpo(gaps)
    wanted.backward()
    gradient = plain.gradient(policy)
    policy.zero_grad()
    arguments = config(tmp_path, objective=name, max_log_ratio=1e9)
    trainer = PreferenceTrainer(policy, arguments, batch, ref_model=start)
    loss, found = step(trainer, list(trainer.train_dataset), budget)
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    assert plain.relative_error(found, gradient) < 1e-9


def test_copo_says_what_its_rows_lack(tmp_path: Path) -> None:
    uncounted = [dataclasses.replace(row, extras={}) for row in rows(6)]
    with pytest.raises(HarnessError, match=r"row p0: objective copo reads how rarely y was met"):
        PreferenceTrainer(model(), config(tmp_path, objective="copo"), uncounted)


@pytest.mark.parametrize("stored", [True, False])
def test_a_single_row_has_no_other_and_its_divergence_is_zero(
    stored: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = plain.exact_norms(model(dtype=torch.float64))
    policy, (row,) = plain.exact_norms(moved(start)), rows(1)
    ((chosen, rejected),) = plain_gaps(policy, start, [row])
    wanted = 1 - (torch.sigmoid(BETA * chosen) + torch.sigmoid(-BETA * rejected)) / 2
    if stored:
        known = {r: float(plain.logp(start, row.prompt_ids, row.responses[r])) for r in ROLES}
        row = dataclasses.replace(row, reference=known)
    args = config(tmp_path, objective="kto", max_log_ratio=1e9)
    trainer = PreferenceTrainer(policy, args, [row], ref_model=None if stored else start)
    assert (trainer.ref_model is None) is stored
    loss = trainer.training_step(trainer.model, list(trainer.train_dataset))
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-6)
    assert "kto estimates a divergence from other rows, and there is none" in caplog.text


def trajectory(trainer: PreferenceTrainer) -> tuple[Tensor, Tensor]:
    """Losses and gradient norms of every step, and the final parameters, as vectors."""
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    steps = torch.tensor(
        [[entry["loss"], entry["grad_norm"]] for entry in history], dtype=torch.float64
    )
    final = torch.cat([p.detach().flatten().double() for p in trainer.model.parameters()])
    return steps, final


@pytest.mark.parametrize(
    ("precomputed", "optimizer", "rate"),
    [
        (False, "adamw_torch", 2e-4),
        (True, "adamw_torch", 2e-4),
        (False, "sgd", 1e-1),
        (False, "adafactor", 2e-4),
    ],
)
def test_alpha_zero_is_trls_dpo_trainer(
    precomputed: bool, optimizer: str, rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [
        row for row in rows(100, seed=3) if row.responses["chosen"] != row.responses["rejected"]
    ][:60]
    common: dict[str, Any] = {
        "optim": optimizer,
        "learning_rate": rate,
        "max_steps": 50,
        "num_train_epochs": 10,
        "beta": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "precompute_ref_log_probs": precomputed,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 8,
        "max_length": 64,
    }
    tokenizer = tiny.tokenizer("llama3")
    start = model(vocab_size=len(tokenizer))  # TRL pads with the tokenizer's pad token
    theirs = trls(
        copy.deepcopy(start),
        copy.deepcopy(start),
        data,
        tokenizer,
        tmp_path / "trl",
        monkeypatch,
        **common,
    )
    ours = PreferenceTrainer(
        copy.deepcopy(start),
        PreferenceConfig(output_dir=str(tmp_path / "ours"), alpha=0.0, token_budget=64, **common),
        data,
    )
    their_steps, their_final = trajectory(theirs)  # type: ignore[arg-type]
    our_steps, our_final = trajectory(ours)
    assert len(our_steps) == len(their_steps) == 50
    assert (our_steps - their_steps).abs().max() < 1e-5
    assert (our_final - their_final).abs().max() < 1e-5
    moved_by = (
        (our_final - torch.cat([p.detach().flatten().double() for p in start.parameters()]))
        .abs()
        .max()
    )
    assert moved_by > 1e-3, "fifty steps must go somewhere for the comparison to mean anything"


def run(
    tmp_path: Path,
    data: list[PreferenceRow],
    live: bool = True,
    reorder: bool = False,
    **changes: Any,
) -> tuple[Tensor, Tensor]:
    start = model(dtype=torch.float64)
    args = config(tmp_path, precompute_ref_log_probs=not live, **changes)
    trainer = PreferenceTrainer(start, args, data)
    if reorder:
        turned = ("explore", "rejected", "chosen")
        trainer.objective = dataclasses.replace(trainer.objective, roles=turned)
    return trajectory(trainer)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    return run(tmp_path_factory.mktemp("uncut"), rows(16))


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 4},
        {"token_budget": 40},
        {"token_budget": 40, "per_device_train_batch_size": 2},
        {CHECKPOINTING: True},
        {"live": False},
        {"reorder": True},
        {"short_prompt_tokens": 0},  # the other form of attention
        {  # as any transformers user says it
            "global_batch_size": 0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 3,
        },
    ],
    ids=str,
)
def test_same_trajectory_however_it_is_cut(
    changes: dict[str, Any],
    uncut: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Float64, so that Adam does not turn a rounding into a step; rows are not a multiple of the
    global batch.
    """
    changes = dict(changes)
    short = changes.pop("short_prompt_tokens", shared_prefix.SHORT_PROMPT_TOKENS)
    monkeypatch.setattr(shared_prefix, "SHORT_PROMPT_TOKENS", short)
    steps, final = run(tmp_path, rows(16), **changes)
    assert len(steps) == 6
    assert (steps - uncut[0]).abs().max() < 1e-5
    assert (final - uncut[1]).abs().max() < 1e-5


def test_y_is_scored_once_when_it_is_chosen_or_rejected(tmp_path: Path) -> None:
    row = rows(4)
    assert [len(r.packed(ROLES)[0].responses) for r in row] == [2, 2, 3, 1]
    trainer = PreferenceTrainer(model(), config(tmp_path, alpha=0.0), row)
    assert trainer.objective.roles == ("chosen", "rejected")
    assert [len(r.packed(trainer.objective.roles)[0].responses) for r in row] == [2, 2, 2, 1]


def test_plan_of_a_global_batch_by_hand() -> None:
    assert plan_global_batch([5, 9, 3, 9], token_budget=14) == [[[1], [3, 0], [2]]]
    assert plan_global_batch([5, 9, 3, 9], ranks=2) == [[[1, 0]], [[3, 2]]], (
        "longest first, each to the rank with least: 9 + 5 and 9 + 3"
    )
    assert plan_global_batch([5, 9, 3, 9], ranks=2, token_budget=12) == [[[1], [0]], [[3, 2], []]]
    assert plan_global_batch([7], ranks=2) == [[[0]], [[]]], (
        "a rank without work keeps step with an empty micro-batch"
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_do_the_same_number_of_micro_batches_and_every_row_once(ranks: int) -> None:
    data = rows(13)
    plans = [
        collate_for_rank(data, ROLES, token_budget=50, micro_batch=3, ranks=ranks, rank=rank)
        for rank in range(ranks)
    ]
    assert len({len(plan) for plan in plans}) == 1
    assert sum(float(micro.weights.sum()) for plan in plans for micro in plan) == 13
    assert all(micro.global_rows == 13 for plan in plans for micro in plan)


def test_shares_of_ranks_add_up_to_the_whole_gradient(tmp_path: Path) -> None:
    data = rows(7)
    trainer = PreferenceTrainer(
        plain.exact_norms(model(dtype=torch.float64)), config(tmp_path), data
    )
    whole, gradient = step(trainer, data)
    total, parts = 0.0, torch.zeros_like(gradient)
    for rank in range(3):
        share = collate_for_rank(data, ROLES, token_budget=30, micro_batch=0, ranks=3, rank=rank)
        total += float(trainer._accumulate(trainer.model, share))
        parts += plain.gradient(trainer.model)
    assert total == pytest.approx(whole, rel=1e-6)
    assert plain.relative_error(parts, gradient) < 1e-9


def test_every_row_once_an_epoch_in_an_order_of_its_own() -> None:
    sampler = GlobalBatchSampler(10, 4, seed=1)
    first = list(sampler)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(i for batch in first for i in batch) == list(range(10))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(GlobalBatchSampler(10, 4, seed=2)) != first
    assert list(GlobalBatchSampler(5, 4, seed=2, shuffle=False)) == [[0, 1, 2, 3], [4]]


def test_metrics_of_the_first_step_by_hand(tmp_path: Path) -> None:
    """Where policy and reference agree every log-ratio is 0, DPO's loss is ln 2, nobody wins."""
    args = config(tmp_path, max_steps=1, precompute_ref_log_probs=True, global_batch_size=12)
    trainer = PreferenceTrainer(model(dtype=torch.float64), args, rows(12))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(math.log(2))
    for name in (
        "margin",
        "rhat_chosen",
        "rhat_rejected",
        "rhat_explore",
        "rhat_y_winner",
        "rhat_y_loser",
        "rhat_y_middle",
    ):
        assert entry[name] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("precomputed", [True, False])
def test_bfloat16_begins_at_log_2(precomputed: bool, tmp_path: Path) -> None:
    """Reference log-probabilities are computed in the precision of the policy's."""
    args = config(
        tmp_path, bf16=True, max_steps=1, precompute_ref_log_probs=precomputed, global_batch_size=12
    )
    trainer = PreferenceTrainer(model(), args, rows(12))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)


TEXT = {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Stone.", "explore": "A pear."}
ASKED = [{"role": "user", "content": "Name a fruit."}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def of_text(
    tmp_path: Path, data: list[dict[str, Any]], evaluated: Any = None, **changes: Any
) -> PreferenceTrainer:
    tokenizer = tiny.tokenizer("zephyr")
    args = config(tmp_path, **changes)
    policy = tiny.model("mistral", tokenizer)
    return PreferenceTrainer(policy, args, data, evaluated, processing_class=tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        {**TEXT, "chosen": said("Apple."), "rejected": said("Stone.")},
        {"prompt": ASKED, **{name: said(TEXT[name]) for name in ROLES}},
        {
            "chosen": [*ASKED, *said("Apple.")],
            "rejected": [*ASKED, *said("Stone.")],
            "explore": [*ASKED, *said("A pear.")],
        },
    ],
    ids=["text and turns", "turns", "the shared prompt"],
)
def test_rows_of_turns_are_the_rows_of_text(tmp_path: Path, row: dict[str, Any]) -> None:
    (wanted,) = of_text(tmp_path, [TEXT]).train_dataset
    (found,) = of_text(tmp_path, [row]).train_dataset
    assert found == wanted
    assert set(found.responses) == {*ROLES}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": None}, "row 1: empty answer"),
        ({"rejected": float("nan")}, "row 1: empty answer"),
        ({"prompt": " "}, "row 1: empty prompt"),
        ({"rejected": "Apple. "}, "row 1: identical answers"),
        ({"chosen": "\ud83d"}, "row 1: a lone surrogate"),
        ({"chosen": "Apple.</s>"}, "row 1: a text ends with '</s>'"),
        ({"explore": 7}, "row 1, column explore: text or a list of turns is wanted"),
        ({"tools": ["search"]}, "row 1: 'tools' is not read here"),
        ({"explore": float("nan")}, "reads y, but the row has no 'explore'"),
    ],
)
def test_a_row_of_text_that_is_no_pair_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(HarnessError, match=says):
        of_text(tmp_path, [TEXT, {**TEXT, **change}])


def test_rows_with_prompts_over_the_limit_are_dropped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {**TEXT, "prompt": "Name a fruit. " * 9}
    both = {"max_prompt_length": 500, "max_length": 60}
    for limit in ({"max_prompt_length": 60}, {"max_length": 60}, both):
        caplog.clear()
        assert len(of_text(tmp_path, [TEXT, long, TEXT, long], **limit).train_dataset) == 2
        assert "2 of 4 rows have prompts over" in caplog.text
        assert "are dropped (rows 1, 3)" in caplog.text
    with pytest.raises(HarnessError, match="1 of 1 rows have prompts over 60 tokens, and none"):
        of_text(tmp_path, [long], max_prompt_length=60)


def test_pairs_that_are_equal_after_cutting_are_dropped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alike = {**TEXT, "chosen": "A long answer.", "rejected": "A long anchor."}
    room = {"max_length": len(of_text(tmp_path, [alike]).train_dataset[0].prompt_ids) + 8}
    assert len(of_text(tmp_path, [TEXT, alike], **room).train_dataset) == 1
    assert "1 of 2 rows have answers that are equal when cut to max_length" in caplog.text


@pytest.mark.parametrize("precomputed", [False, True])
def test_evaluation_reports_the_metrics_of_a_step(tmp_path: Path, precomputed: bool) -> None:
    """On the rows of the step itself, before it is taken: the same numbers; afterwards other ones,
    and the training metrics are as without evaluation.
    """
    data = rows(12)
    known = [dataclasses.replace(row, reference=dict.fromkeys(ROLES, -9.0)) for row in data]
    changes: dict[str, Any] = {"max_steps": 2, "global_batch_size": 12, "token_budget": 60}
    changes |= {"per_device_eval_batch_size": 5, "precompute_ref_log_probs": precomputed}
    start = model(dtype=torch.float64)
    args = config(tmp_path, eval_strategy="steps", eval_steps=1, **changes)
    trainer = PreferenceTrainer(copy.deepcopy(start), args, known, {"same": known, "new": data})
    before = trainer.evaluate()
    trainer.train()
    first, *others = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("loss", "margin", "accuracy", "rhat_explore", "rhat_y_loser")
    for name in names:
        assert before[f"eval_same_{name}"] == pytest.approx(first[name]), name
    assert before["eval_new_margin"] == pytest.approx(0, abs=1e-9)
    after = trainer.evaluate({"same": known})
    assert after["eval_same_loss"] < before["eval_same_loss"]
    plain_run = PreferenceTrainer(start, config(tmp_path, **changes), known)
    plain_run.train()
    again = [entry for entry in plain_run.state.log_history if "loss" in entry]
    assert [entry["margin"] for entry in again] == [first["margin"], others[0]["margin"]]


def test_text_is_evaluated_and_a_lost_reference_is_told(tmp_path: Path) -> None:
    trainer = of_text(tmp_path, [TEXT], [TEXT])
    assert trainer.evaluate()["eval_margin"] == 0
    assert trainer.evaluate([TEXT, TEXT], metric_key_prefix="test")["test_accuracy"] == 0
    kept = of_text(tmp_path, [TEXT], [TEXT], precompute_ref_log_probs=True)
    assert kept.evaluate()["eval_margin"] == 0
    with pytest.raises(HarnessError, match="keeps no reference model: pass them as eval_dataset"):
        kept.evaluate([TEXT])
    with pytest.raises(HarnessError, match="nothing to evaluate"):
        of_text(tmp_path, [TEXT]).evaluate()


@pytest.mark.parametrize(
    ("data", "change", "told"),
    [
        (rows(12), {}, ""),
        (rows(12, seed=1), {}, "rows"),
        (rows(12), {"global_batch_size": 4}, "rows per step"),
        (rows(12), {"objective": "xpo", "beta": 0.2}, "objective"),
    ],
    ids=["the same", "rows", "batch", "objective"],
)
def test_resuming_another_run_is_told(
    data: list[PreferenceRow],
    change: dict[str, Any],
    told: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    PreferenceTrainer(model(), config(tmp_path, max_steps=1, **saving), rows(12)).train()
    resumed = PreferenceTrainer(model(), config(tmp_path, max_steps=2, **change), data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    warned = [one.getMessage() for one in caplog.records if "was made with" in one.getMessage()]
    assert len(warned) == bool(told)
    assert all(f"was made with other {told}: the steps" in message for message in warned)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"objective": "sel"}, "unknown objective"),
        ({"objective_params": {"clip": 1.0}}, "unknown parameter"),
        ({"loss_type": "ipo"}, r"loss_type: \['ipo'\] is not read by this trainer"),
        ({"label_smoothing": 0.1}, "label_smoothing: 0.1 is not read"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha: 5.0 is not read"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: 'group"),
    ],
)
def test_wrong_settings_are_refused_at_once(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError, match=says):
        config(tmp_path, **change)


def test_one_config_makes_trainers_that_are_alike(tmp_path: Path) -> None:
    sizes = {"global_batch_size": 0, "per_device_train_batch_size": 2}
    args = config(tmp_path, **sizes, gradient_accumulation_steps=3)
    assert [PreferenceTrainer(model(), args, rows(6)).global_rows for _ in range(2)] == [6, 6]


def test_weights_that_round_steps_away_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for dtype, told in ((torch.float32, False), (torch.bfloat16, True)):
        PreferenceTrainer(model(dtype=dtype), config(tmp_path), rows(6))
        assert ("weights in training are bfloat16" in caplog.text) is told


def test_rows_without_y_cannot_explore(tmp_path: Path) -> None:
    bare = [
        dataclasses.replace(
            row, responses={role: row.responses[role] for role in ("chosen", "rejected")}
        )
        for row in rows(4)
    ]
    with pytest.raises(HarnessError, match=r"row p0: objective selm with alpha 0\.5 reads y"):
        PreferenceTrainer(model(), config(tmp_path), bare)
    PreferenceTrainer(model(), config(tmp_path, alpha=0.0), bare)
    with pytest.raises(HarnessError, match="pass processing_class"):
        PreferenceTrainer(
            model(), config(tmp_path), [{"prompt": "a", "chosen": "b", "rejected": "c"}]
        )


def test_only_the_trained_change(tmp_path: Path) -> None:
    """With LoRA the base weights stay; the frozen reference is the model without adapters."""
    from peft import LoraConfig, get_peft_model

    start = model()
    adapted = get_peft_model(
        copy.deepcopy(start),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer = PreferenceTrainer(adapted, config(tmp_path, max_steps=3), rows(12))
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["margin"] == pytest.approx(0.0, abs=1e-5)
    assert trainer.state.log_history[2]["margin"] != pytest.approx(0.0, abs=1e-4)
    kept = {
        name.replace(".base_layer", ""): value
        for name, value in adapted.get_base_model().state_dict().items()
        if "lora" not in name
    }
    assert all(torch.equal(kept[name], value) for name, value in start.state_dict().items())
