"""Stages `reference` and `train`: the same bytes again, also after a kill; refusals; divergence."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.model.chat import encode_prompt, encode_response
from harness.model.policy import load_policy, load_tokenizer
from harness.records import HarnessError, Pair, read_jsonl
from harness.stages import train
from harness.train import carried
from harness.train.batching import encode_pair
from harness.train.objectives import PAIR
from harness.train.trainer import PreferenceTrainer
from tests import plain, tiny
from tests.preferences import ROLES, run_train, stage_inputs, train_task, write_pairs

ROOT = Path(__file__).parents[2]
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return stage_inputs(tmp_path_factory.mktemp("stage"))


def same_files(a: Path, b: Path) -> bool:
    names = sorted(str(path.relative_to(a)) for path in a.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(b)) for path in b.rglob("*") if path.is_file())
    return all(filecmp.cmp(a / name, b / name, shallow=False) for name in names)


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "steps.jsonl"))


def longest_prompt(inputs: dict[str, Path]) -> int:
    tokenizer = load_tokenizer(inputs["policy"])
    return max(
        len(encode_prompt(tokenizer, row["messages"]))
        for row in read_jsonl(inputs["pairs"] / "pairs.jsonl")
    )


def test_reference_holds_every_role_of_every_pair(inputs: dict[str, Path]) -> None:
    table = pq.read_table(inputs["reference"] / "reference.parquet").to_pylist()
    assert [(row["row"], row["role"]) for row in table] == [
        (i, role) for i in range(10) for role in ROLES
    ]
    policy = load_policy(inputs["policy"])
    pairs = list(read_jsonl(inputs["pairs"] / "pairs.jsonl"))
    for row in table[:6]:
        pair = pairs[row["row"]]
        ids = encode_response(policy.tokenizer, pair["messages"], pair[row["role"]])
        wanted = plain.logp(policy.model, encode_prompt(policy.tokenizer, pair["messages"]), ids)
        assert row["tokens"] == len(ids)
        assert row["logp"] == pytest.approx(wanted.item(), rel=1e-5)
    assert table[0]["logp"] == table[2]["logp"], "y is the chosen one here: one score, two roles"


def test_same_bytes_again_and_other_bytes_for_another_seed(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    outcome = run_train(inputs, tmp_path / "a")
    run_train(inputs, tmp_path / "b")
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model", "steps.jsonl"]
    assert outcome.rows == 10
    assert outcome.summary["steps"] == 6, "ten rows in batches of four are three steps, twice"
    for name, changes in {"c": {"seed": 1}, "d": {"iteration": 2}}.items():
        run_train(inputs, tmp_path / name, **changes)
        assert weights(tmp_path / name) != weights(tmp_path / "a")


def test_steps_report_what_happened(inputs: dict[str, Path], tmp_path: Path) -> None:
    run_train(inputs, tmp_path, learning_rate=3e-3, warmup_ratio=0.0)
    steps = steps_of(tmp_path)
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert steps[-1]["margin"] > 0.1 > abs(steps[0]["margin"])
    assert steps[0]["learning_rate"] > steps[-1]["learning_rate"]
    assert set(steps[0]) == {
        "step",
        "loss",
        "grad_norm",
        "learning_rate",
        "margin",
        "accuracy",
        "rhat_chosen",
        "rhat_rejected",
        "rhat_explore",
    } | {f"rhat_y_{role}" for role in ("winner", "loser", "middle")}


def test_the_trained_model_is_a_policy_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    run_train(inputs, tmp_path)
    before, after = load_policy(inputs["policy"]), load_policy(tmp_path)
    assert after.model.config.use_cache
    assert after.stop_token_ids == before.stop_token_ids
    assert any(
        not torch.equal(a, b)
        for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True)
    )


def test_alpha_zero_is_dpo_bit_for_bit(inputs: dict[str, Path], tmp_path: Path) -> None:
    run_train(inputs, tmp_path / "selm", alpha=0.0)
    run_train(inputs, tmp_path / "dpo", name="dpo", alpha=0.7)
    run_train(inputs, tmp_path / "xpo", name="xpo", alpha=0.0)
    assert same_files(tmp_path / "selm", tmp_path / "dpo")
    assert same_files(tmp_path / "selm", tmp_path / "xpo")
    run_train(inputs, tmp_path / "explore", alpha=0.5)
    assert weights(tmp_path / "explore") != weights(tmp_path / "selm")
    assert all(row["rhat_explore"] is None for row in steps_of(tmp_path / "selm")), (
        "y was not scored: no number stands for it"
    )


def test_placebo_pushes_the_other_way(inputs: dict[str, Path], tmp_path: Path) -> None:
    for name, changes in {
        "plain": {},
        "negative": {"placebo": "negative"},
        "minus": {"alpha": -20.0},
    }.items():
        run_train(inputs, tmp_path / name, **{"alpha": 20.0, "epochs": 4, **changes})
    assert same_files(tmp_path / "negative", tmp_path / "minus")
    assert (
        steps_of(tmp_path / "negative")[-1]["rhat_explore"]
        > 0
        > steps_of(tmp_path / "plain")[-1]["rhat_explore"]
    )


def test_kto_reads_what_the_reference_stage_scored_of_other_rows(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    others = ("other_chosen", "other_rejected")
    scored = stage_inputs(tmp_path, roles=("chosen", "rejected", *others))
    run_train(scored, tmp_path / "out", name="kto", alpha=0.0)
    first = steps_of(tmp_path / "out")[0]
    assert first["loss"] == pytest.approx(0.5), "every ratio is 0 and so is z"
    with pytest.raises(HarnessError, match=r"no reference log-probability .* other_chosen"):
        run_train(inputs, tmp_path / "without", name="kto", alpha=0.0)


def test_kto_trains_a_portion_of_a_single_pair(tmp_path: Path) -> None:
    """There is no other row to estimate a divergence from: z is 0, and a first loss one half."""
    alone = stage_inputs(tmp_path, (*ROLES[:2], "other_chosen", "other_rejected"), count=1)
    assert pq.read_table(alone["reference"] / "reference.parquet")["role"].to_pylist() == [*PAIR]
    assert run_train(alone, tmp_path / "out", name="kto", alpha=0.0, epochs=4).rows == 1
    first, *_, last = (row["loss"] for row in steps_of(tmp_path / "out"))
    assert first == pytest.approx(0.5, abs=1e-6)
    assert last < first


def test_global_generators_are_left_alone(inputs: dict[str, Path], tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_train(inputs, tmp_path)
    assert (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ) == before


class Killed(BaseException):
    pass


def die(*_: Any) -> None:
    raise Killed


def at_step(monkeypatch: pytest.MonkeyPatch, number: int | None, act: Callable[..., None]) -> None:
    """Training does ``act`` of its model and rows before step ``number`` + 1 (None: every step)."""
    original = PreferenceTrainer.training_step

    def step(self: PreferenceTrainer, model: Any, rows: Any, items: Any = None) -> torch.Tensor:
        if number in (None, self.state.global_step):
            act(model, rows)
        return original(self, model, rows, items)

    monkeypatch.setattr(PreferenceTrainer, "training_step", step)


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (2, {}),
        (3, {}),
        (5, {}),
        (3, {"optimizer": "sgd"}),
        (3, {"optimizer": "adafactor"}),
        (3, {"name": "beta_dpo"}),
    ],
)
def test_resume_gives_the_same_bits(
    at: int,
    changes: dict[str, str],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut within an epoch, at its end, and in the second one; the torn checkpoint beside the good
    one is not used.
    """
    cut: dict[str, Any] = {"runtime": {"checkpoint_seconds": 1e-9}, **changes}
    run_train(inputs, tmp_path / "whole", **changes)
    with monkeypatch.context() as dying, pytest.raises(Killed):
        at_step(dying, at, die)
        train.run(train_task(inputs, tmp_path / "cut", **cut))
    torn = tmp_path / "cut" / "checkpoints" / "checkpoint-99"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 9')
    seen: list[int] = []
    at_step(monkeypatch, None, lambda _model, rows: seen.append(len(rows)))
    train.run(train_task(inputs, tmp_path / "cut", **cut))
    assert len(seen) == 6 - at, "no step is done twice, none is skipped"
    assert same_files(tmp_path / "whole", tmp_path / "cut")


def test_sigterm_waits_for_a_checkpoint(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train(inputs, tmp_path / "whole")
    before = signal.signal(signal.SIGTERM, die)
    try:
        with monkeypatch.context() as preempted, pytest.raises(Killed):
            at_step(preempted, 2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            run_train(inputs, tmp_path / "cut")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "cut" / train.JOURNAL).exists()
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-3").is_dir(), (
        "the step under way was finished and kept"
    )
    run_train(inputs, tmp_path / "cut")
    assert same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit"])
def test_a_part_of_a_run_that_was_cut_carries_on_to_the_same_bits(
    optimizer: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two parts, stopped after its first step; its optimiser is the first part's."""
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    part: dict[str, Any] = {"carried": {"part": 0, "parts": 2}, "optimizer": optimizer}
    run_train(inputs, tmp_path / "first", **part)
    with safe_open(tmp_path / "first" / carried.FILE, framework="pt") as held:
        kinds = {held.get_tensor(name).dtype for name in held.keys()}  # noqa: SIM118
    assert (torch.uint8 in kinds) == (optimizer == "adamw_8bit")
    part["carried"]["part"] = 1
    second = {**inputs, "policy": tmp_path / "first"}
    run_train(second, tmp_path / "whole", iteration=2, **part)
    rates = [
        row["learning_rate"] for name in ("first", "whole") for row in steps_of(tmp_path / name)
    ]
    assert len(rates) == 12
    assert rates[2:] == sorted(rates[2:], reverse=True), "one cosine over both parts"
    often = {"checkpoint_seconds": 1e-9}
    with monkeypatch.context() as dying, pytest.raises(Killed):
        at_step(dying, 3, die)
        run_train(second, tmp_path / "cut", iteration=2, runtime=often, **part)
    run_train(second, tmp_path / "cut", iteration=2, runtime=often, **part)
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "first" / "carried" / "optimizer.safetensors").unlink()
    with pytest.raises(HarnessError, match="state that this iteration continues with is not there"):
        run_train(second, tmp_path / "missing", iteration=2, **part)


def test_a_carried_run_in_bfloat16_goes_on_with_its_float32_weights(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The stored policy is rounded; the next part starts from what was rounded."""
    part: dict[str, Any] = {"dtype": "bfloat16", "carried": {"part": 0, "parts": 2}}
    run_train(inputs, tmp_path / "first", **part)
    file = tmp_path / "first" / "carried" / "optimizer.safetensors"
    with safe_open(file, framework="pt") as held:
        names = set(held.keys())
        numbers = held.metadata()
        tensors = {name: held.get_tensor(name) for name in names}
    whole = {name for name in names if name.startswith("weight.")}
    stored = dict(load_policy(tmp_path / "first", dtype="float32").model.named_parameters())
    assert {name.removeprefix("weight.") for name in whole} == set(stored)
    assert any(not torch.equal(tensors[f"weight.{name}"], stored[name]) for name in stored)
    second = {**inputs, "policy": tmp_path / "first"}
    part["carried"] = {"part": 1, "parts": 2}
    run_train(second, tmp_path / "on", **part)
    save_file({name: tensors[name] for name in names - whole}, file, metadata=numbers)
    run_train(second, tmp_path / "rounded", **part)
    assert weights(tmp_path / "on") != weights(tmp_path / "rounded")


@pytest.mark.slow
def test_sigkill_then_resume_gives_the_same_bits(inputs: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from harness.stages import train; from harness.records import StageTask\n"
        "from harness.study.tasks import Runtime, TrainTask\n"
        "told = json.loads(sys.argv[1])\n"
        "settings = TrainTask.model_validate_json(told['settings'])\n"
        "runtime = Runtime.model_validate_json(told['runtime'])\n"
        "inputs = {k: Path(v) for k, v in told['inputs'].items()}\n"
        "train.run(StageTask('t', 'train', settings, inputs, Path(told['out']), runtime))\n"
    )

    def command(out: Path) -> list[str]:
        task = train_task(inputs, out, runtime={"checkpoint_seconds": 1e-9}, epochs=40)
        told = {
            "settings": task.settings.model_dump_json(),
            "inputs": {name: str(path) for name, path in task.inputs.items()},
            "out": str(out),
            "runtime": task.runtime.model_dump_json(),
        }
        return [sys.executable, "-c", code, json.dumps(told)]

    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, check=True)
    for kills in range(3):
        process = subprocess.Popen(command(tmp_path / "cut"), cwd=ROOT)
        deadline = time.monotonic() + 120
        wanted = tmp_path / "cut" / "checkpoints" / f"checkpoint-{20 * (kills + 1)}"
        while not wanted.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.03 * kills)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "cut" / "checkpoints").is_dir(), "killed in mid-iteration"
    subprocess.run(command(tmp_path / "cut"), cwd=ROOT, check=True)
    assert same_files(tmp_path / "whole", tmp_path / "cut")


def test_a_diverging_run_stops_with_iteration_step_and_value(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        HarnessError,
        match=r"diverged at iteration 1, step \d+: mean \|log pi - log pi_ref\| is [\d.e+]+ nats "
        r"per token",
    ):
        run_train(inputs, tmp_path / "kl", learning_rate=3.0, max_grad_norm=0.0, warmup_ratio=0.0)
    assert not (tmp_path / "kl" / "model").exists()
    assert not (tmp_path / "kl" / "steps.jsonl").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(
    value: float, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PreferenceTrainer.micro_batch_loss

    def broken(self: PreferenceTrainer, model: Any, micro: Any) -> torch.Tensor:
        loss = original(self, model, micro)
        return loss * value if self.state.global_step == 3 else loss

    monkeypatch.setattr(PreferenceTrainer, "micro_batch_loss", broken)
    with pytest.raises(HarnessError, match=rf"diverged at iteration 1, step 4: loss is {value}"):
        run_train(inputs, tmp_path)


def test_a_gradient_that_is_no_number_stops_the_run(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PreferenceTrainer.training_step

    def broken(
        self: PreferenceTrainer, model: Any, batches: Any, items: Any = None
    ) -> torch.Tensor:
        loss = original(self, model, batches, items)
        next(model.parameters()).grad[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(PreferenceTrainer, "training_step", broken)
    with pytest.raises(HarnessError, match=r"step 1: gradient norm is (inf|nan)"):
        run_train(inputs, tmp_path)


def test_references_must_be_complete_and_of_these_pairs(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    table = pq.read_table(inputs["reference"] / "reference.parquet")
    holey = {**inputs, "reference": tmp_path / "reference"}
    holey["reference"].mkdir()
    pq.write_table(table.slice(0, 29), holey["reference"] / "reference.parquet")
    with pytest.raises(HarnessError, match="no reference log-probability for prompt p9, explore"):
        run_train(holey, tmp_path / "a")
    run_train(holey, tmp_path / "b", alpha=0.0)
    other = stage_inputs(tmp_path / "other", count=4)
    with pytest.raises(HarnessError, match="no reference log-probability for prompt p4, chosen"):
        run_train({**inputs, "reference": other["reference"]}, tmp_path / "c")
    with pytest.raises(HarnessError, match="differ from the reference stage's"):
        run_train(inputs, tmp_path / "d", max_length=longest_prompt(inputs) + 3)
    with pytest.raises(HarnessError, match="leave no room for a response within max_length"):
        run_train(inputs, tmp_path / "e", max_length=longest_prompt(inputs))


@pytest.mark.parametrize(("room", "kept"), [(0, 3), (3, 3), (2, 2)])
def test_a_truncated_y_is_trained_on_the_tokens_it_was_drawn_with(room: int, kept: int) -> None:
    """ "ab" drawn as "a", "b" and half of a letter that its text shows as a replacement mark."""
    tokenizer = tiny.tokenizer("zephyr")
    drawn = tokenizer("ab", add_special_tokens=False)["input_ids"]
    drawn += tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    messages = ({"role": "user", "content": "Hi"},)
    pair = Pair("p", messages, "good", "ab\ufffd", "ab\ufffd", y_role="loser")
    pair = dataclasses.replace(pair, drawn={"rejected": drawn, "explore": drawn})
    prompt = len(encode_prompt(tokenizer, messages))
    row = encode_pair(tokenizer, pair, max_length=prompt + room if room else 0)
    assert row.responses["rejected"] == row.responses["explore"] == tuple(drawn[:kept])
    assert tokenizer.eos_token_id not in row.responses["rejected"]
    ended = encode_pair(tokenizer, dataclasses.replace(pair, drawn={}))
    assert ended.responses["rejected"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("prompt", "answers", "prompt_kept", "kept"),
    [
        (50, (1100, 600, 700), 50, (512, 512, 512)),
        (600, (200, 300, 10), 600, (200, 300, 10)),
        (700, (400, 300, 10), 512, (400, 300, 10)),
        (700, (600, 500, 900), 512, (512, 500, 512)),
    ],
)
def test_prompt_first_cuts_as_the_original_does(
    prompt: int, answers: tuple[int, ...], prompt_kept: int, kept: tuple[int, ...]
) -> None:
    """Within 1024, prompts to 512: worked by hand from the rule; sizes with template and end."""
    tokenizer = tiny.tokenizer("llama3")
    template = len(encode_prompt(tokenizer, [{"role": "user", "content": ""}]))
    question = ({"role": "user", "content": "a" * (prompt - template)},)
    texts = [letter * (size - 1) for letter, size in zip("bcd", answers, strict=True)]
    row = encode_pair(
        tokenizer,
        Pair("p", question, *texts, y_role="middle"),
        max_length=1024,
        max_prompt_length=512,
        truncation="prompt_first",
    )
    whole, end = encode_prompt(tokenizer, question), tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert len(whole) == prompt
    assert len(row.prompt_ids) == prompt_kept
    assert row.prompt_ids[0] == tokenizer.bos_token_id == whole[0]
    assert list(row.prompt_ids[1:]) == whole[prompt - prompt_kept + 1 :]
    assert tuple(map(len, row.responses.values())) == kept
    for response, size, left in zip(row.responses.values(), answers, kept, strict=True):
        assert (response[-1] == end) == (size == left)


def test_an_over_long_y_is_cut_at_the_maximum_length(tmp_path: Path) -> None:
    cut = stage_inputs(tmp_path, long_y=True)
    table = pq.read_table(cut["reference"] / "reference.parquet").to_pylist()
    tokenizer = load_tokenizer(cut["policy"])
    pairs = list(read_jsonl(cut["pairs"] / "pairs.jsonl"))
    longest = [
        row for row in table if row["role"] == "explore" and pairs[row["row"]]["y_role"] == "middle"
    ]
    assert longest
    for row in longest:
        assert row["tokens"] + len(encode_prompt(tokenizer, pairs[row["row"]]["messages"])) == 128
    run_train(cut, tmp_path / "out")


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_rows_longer_than_the_models_positions_are_refused(tmp_path: Path, objective: str) -> None:
    """Learned positions end in an IndexError, computed ones in angles never trained on."""
    tiny.checkpoint(tmp_path / "base" / "model", max_position_embeddings=100)
    longest = r"have \d+ tokens, the model has positions for 100 .*training\.max_length to 100"
    if objective == "dpo":
        with pytest.raises(HarnessError, match=longest):
            stage_inputs(tmp_path, long_y=True)
        return
    inputs = stage_inputs(tmp_path)
    write_pairs(inputs["pairs"], same_start=60)
    with pytest.raises(HarnessError, match=longest):
        run_train(inputs, tmp_path / "out", name=objective, alpha=0.0)
    run_train(inputs, tmp_path / "cut", name=objective, alpha=0.0, max_length=100)


def test_a_pair_whose_y_had_no_room_is_left_out_where_the_objective_reads_it(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    one_without = stage_inputs(tmp_path / "one", same_start=4)
    outcome = run_train(one_without, tmp_path / "with", alpha=0.5)
    run_train(inputs, tmp_path / "without", alpha=0.5)
    assert same_files(tmp_path / "with", tmp_path / "without")
    (told,) = outcome.left_out
    assert (told.what, told.count, told.of, told.examples) == ("pairs", 1, 11, ("same",))
    assert told.reason == "no 'explore' response, which objective selm reads"
    assert run_train(one_without, tmp_path / "dpo", alpha=0.0).rows == 11
    none = stage_inputs(tmp_path / "none", same_start=4, count=0)
    with pytest.raises(HarnessError, match=r"1 of 1 pairs are left out"):
        run_train(none, tmp_path / "refused", alpha=0.5)
    outcome = run_train(none, tmp_path / "out", alpha=0.5, max_left_out=1.0)
    assert [one.what for one in outcome.left_out] == ["portions without a pair", "pairs"]
    assert weights(tmp_path / "out") == weights(none["policy"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_part_without_a_pair_passes_policy_and_optimiser_on(
    dtype: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Of four parts the first and the third have no pair: the second trains as if alone at its
    place of the schedule, and the fourth goes on from it as if the third had not been.
    """
    none = stage_inputs(tmp_path / "none", count=0)
    assert pq.read_table(none["reference"] / "reference.parquet").num_rows == 0

    def part(number: int, policy: Path, **given: Path) -> Path:
        place = {"part": number, "parts": 4}
        made = {**inputs, **given, "policy": policy}
        out = tmp_path / f"{number} of {len(list(tmp_path.iterdir()))}"
        found = run_train(made, out, carried=place, scheduler="linear", dtype=dtype, epochs=1)
        told = [(one.what, one.count, one.examples) for one in found.left_out]
        expected = ("portions without a pair", 1, ("seed 0, iteration 1",))
        assert told == ([expected] if given else [])
        assert (found.rows, found.costs["tokens_trained"] > 0) == (
            (0, False) if given else (10, True)
        )
        return out

    empty = {name: none[name] for name in ("pairs", "reference")}
    first = part(0, inputs["policy"], **empty)
    second = part(1, first)
    third = part(2, second, **empty)
    assert weights(third) == weights(second) != weights(first)
    assert (third / carried.FILE).read_bytes() == (second / carried.FILE).read_bytes()
    assert steps_of(third) == []
    assert same_files(part(3, third), part(3, second))
    rates = [row["learning_rate"] for row in steps_of(second)]
    # Twelve steps in all, two of them warm-up; three a part.
    assert rates == pytest.approx([1e-3 * (12 - step) / 10 for step in (3, 4, 5)])


def test_pairs_equal_after_cutting_teach_nothing_and_are_counted(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Two answers that differ after the last token that fits: a loss of log 2 and no gradient."""
    cut = stage_inputs(tmp_path / "cut", same_start=200)
    outcome = run_train(cut, tmp_path / "with", alpha=0.0)
    run_train(inputs, tmp_path / "without", alpha=0.0)
    assert same_files(tmp_path / "with", tmp_path / "without")
    told = {(one.what, one.reason): one for one in outcome.left_out}
    equal = told["pairs", "equal after cutting to training.max_length"]
    assert (equal.count, equal.of, equal.examples) == (1, 11, ("same",))
    assert told["answers", "cut at training.max_length"].count == 1
    with pytest.raises(HarnessError, match=r"1 of 11 pairs are left out.*data\.max_left_out = 0"):
        run_train(cut, tmp_path / "refused", alpha=0.0, max_left_out=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": "all-linear"}},
        {"dtype": "bfloat16"},
        {
            "dtype": "bfloat16",
            "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
            "gradient_checkpointing": True,
        },
        {"gradient_checkpointing": True},
        {"optimizer": "rmsprop", "scheduler": "constant", "learning_rate": 3e-5},
        {"name": "simpo", "beta": 2.0, "params": {"gamma": 1.0}},
    ],
    ids=["lora", "bfloat16", "bfloat16-lora-checkpointing", "checkpointing", "rmsprop", "simpo"],
)
def test_ways_to_train(changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> None:
    settings = {"epochs": 6, "learning_rate": 3e-3, **changes}
    run_train(inputs, tmp_path / "a", **settings)
    run_train(inputs, tmp_path / "b", **settings)
    assert same_files(tmp_path / "a", tmp_path / "b")
    steps = steps_of(tmp_path / "a")
    assert steps[-1]["margin"] > steps[0]["margin"]
    assert not list((tmp_path / "a" / "model").glob("adapter*")), (
        "adapters are merged: the next stage loads a plain checkpoint"
    )
    after = load_policy(tmp_path / "a", dtype=settings.get("dtype", "float32"))
    assert str(after.model.dtype).endswith(settings.get("dtype", "float32"))


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_gradient_checkpointing_changes_memory_not_numbers(
    lora: Any, inputs: dict[str, Path], tmp_path: Path
) -> None:
    run_train(inputs, tmp_path / "a", lora=lora, gradient_checkpointing=True)
    run_train(inputs, tmp_path / "b", lora=lora)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize(("budget", "most"), [(8192, 1e-6), (300, 2e-4)], ids=["whole", "cut"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_bfloat16_begins_at_log_2(lora: Any, budget: int, most: float, tmp_path: Path) -> None:
    """Policy and reference are the same numbers before the first step; of rows that were cut into
    other batches, the same but for the rounding of other shapes.
    """
    scoring = {"dtype": "bfloat16", "mixed": lora is None}
    inputs = stage_inputs(tmp_path, scoring=scoring, count=30)
    runtime = {"token_budget": budget}
    settings = {"dtype": "bfloat16", "lora": lora, "batch_size": 30, "epochs": 1}
    run_train(inputs, tmp_path / "out", runtime=runtime, **settings)
    (step,) = steps_of(tmp_path / "out")
    assert step["loss"] == pytest.approx(math.log(2), abs=most)
