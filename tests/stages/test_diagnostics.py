"""Diagnostics: every measurement on hand-worked numbers, model passes against a plain forward pass,
the stage on tiny checkpoints.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import spearmanr

from harness.engine.graph import defining_settings
from harness.model.policy import load_policy
from harness.records import Generation, Pair, Prompt, Response, StageTask, write_jsonl
from harness.stages.diagnostics import measures, passes, stage
from harness.stages.diagnostics.measures import Answer, Evidence
from harness.stages.diagnostics.passes import Sheet, score_sheets
from harness.train.batching import ROLES, encode_pair, with_reference
from tests import tiny
from tests.tasks import stage_task

OBJECTIVE = {"name": "selm", "alpha": 0.5, "beta": 0.1}


def answer(theta: float, reference: float, base: float = 0.0, **changes: Any) -> Answer:
    logps = {"theta": theta, "reference": reference, "base": base, "previous": reference}
    return Answer(**{"text": "a", "token_ids": (1, 2), "logps": logps, **changes})


def measured(name: str, e: Evidence) -> float | None:
    function = measures.DIAGNOSTICS[name].function
    assert function is not None
    return function(e)


# --- text -----------------------------------------------------------------------------------------


def sampled(*texts: str, ids: Any = (), previous: tuple[str, ...] = ()) -> Evidence:
    """A prompt with sampled answers: their texts, or their token ids."""
    own = [Answer(text, (1,)) for text in texts] + [Answer("", tuple(one)) for one in ids]
    return Evidence("p", 0.1, own=own, previous=previous)


def test_distinct_n_counts_different_ngrams() -> None:
    # unigrams 1 2 1 | 1 2: 5, of which 2 differ; bigrams 12 21 | 12: 3, of which 2 differ
    e = sampled(ids=[(1, 2, 1), (1, 2)])
    assert (measured("distinct_1", e), measured("distinct_2", e)) == (2 / 5, 2 / 3)
    assert measured("distinct_2", sampled(ids=[(1,)])) is None


def test_distinct_n_looks_at_the_first_128_tokens() -> None:
    assert measured("distinct_1", sampled(ids=[[*range(128), *([0] * 1000)]])) == 1.0


def test_longest_common_subsequence_equals_the_table_method() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.randrange(4) for _ in range(rng.randrange(12))] for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = (
                    table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
                )
        assert measures.longest_common_subsequence(a, b) == table[-1][-1]


def test_rouge_l_equals_the_rouge_score_library() -> None:
    scorer = RougeScorer(["rougeL"])
    for one, two in (
        ("The cat sat on the mat.", "the dog sat on a mat"),
        ("yes", "no"),
        ("a b c d", "d c b a"),
    ):
        expected = scorer.score(one, two)["rougeL"].fmeasure
        assert measures.self_rouge(sampled(one, two)) == pytest.approx(expected)


def test_newness_is_the_share_far_from_every_previous_answer() -> None:
    # "a b c d" is known; "a b c e" shares 3 of 4 words (0.75 < 0.9)
    assert measures.newness(sampled("a b c d", "a b c e", previous=("x", "a b c d"))) == 0.5
    assert measures.newness(sampled("a")) is None
    assert measures.self_rouge(sampled("a b", "a b", "c d")) == pytest.approx(1 / 3)


# --- measurements ---------------------------------------------------------------------------------


def test_means_of_log_ratios() -> None:
    e = Evidence(
        "p",
        0.1,
        reference=[answer(-3.0, -1.0), answer(-2.0, -2.5)],
        own=[answer(-1.0, -2.0, base=-5.0)],
    )
    assert measured("rhat_reference_samples", e) == pytest.approx((-2.0 + 0.5) / 2)
    assert measured("implicit_reward_samples", e) == pytest.approx(0.1 * 4.0)
    assert measured("implicit_reward_reference_samples", e) == pytest.approx(0.1 * (-3.0 - 2.0) / 2)


def test_per_token_divides_by_all_tokens_of_the_prompt() -> None:
    own = [
        answer(0, 0, kl={"base": 3.0, "previous": 1.0}, entropy=2.0),
        answer(0, 0, token_ids=(1,), kl={"base": 0.0, "previous": 2.0}, entropy=4.0),
    ]
    e = Evidence("p", 0.1, own=own)
    assert (measured("kl_base", e), measured("kl_base_per_token", e)) == (1.5, 1.0)
    assert (measured("kl_previous", e), measured("kl_previous_per_token", e)) == (1.5, 1.0)
    assert (measured("entropy", e), measured("entropy_per_token", e)) == (3.0, 2.0)


def test_brier_score_by_hand() -> None:
    # Δ = 2 − (−1) = 3, β = 0.1: σ(0.3) = 0.574443, (1 − σ)² = 0.181099
    e = Evidence("p", 0.1, chosen=answer(-1.0, -3.0), rejected=answer(-4.0, -3.0))
    assert measures.brier_pairs(e) == pytest.approx((1 - 1 / (1 + math.exp(-0.3))) ** 2)
    assert measures.accuracy_pairs(e) == 1.0
    same = Evidence("p", 0.1, chosen=answer(-1.0, -1.0), rejected=answer(-2.0, -2.0))
    assert (measures.brier_pairs(same), measures.accuracy_pairs(same)) == (0.25, 0.5)
    assert measures.brier_pairs(Evidence("p", 0.1, chosen=answer(0, 0))) is None


def test_brier_of_samples_takes_every_pair_with_different_rewards() -> None:
    own = [answer(0.0, 0.0, reward=1.0), answer(1.0, 0.0, reward=0.0), answer(2.0, 0.0, reward=0.0)]
    expected = [
        (1 - 1 / (1 + math.exp(d))) ** 2 for d in (1.0, 2.0)
    ]  # the better one has the lower r̂
    assert measures.brier_samples(Evidence("p", 1.0, own=own)) == pytest.approx(sum(expected) / 2)
    assert measures.brier_samples(Evidence("p", 1.0, own=own[1:])) is None


def test_displacement_and_its_share() -> None:
    down, up = (
        Evidence("p", 0.1, chosen=answer(-3.0, -2.0)),
        Evidence("q", 0.1, chosen=answer(-1.0, -2.0)),
    )
    assert [measures.displacement_chosen(e) for e in (down, up)] == [-1.0, 1.0]
    assert [measures.displaced_share(e) for e in (down, up)] == [1.0, 0.0]


def test_spearman_within_a_prompt_agrees_with_scipy_and_is_undefined_for_constant_rewards() -> None:
    rng = random.Random(1)
    for _ in range(50):
        own = [
            answer(rng.choice([0.0, 1.0, 2.0, 3.0]), 0.0, reward=rng.choice([0.0, 0.5, 1.0]))
            for _ in range(6)
        ]
        found = measures.spearman_reward(Evidence("p", 0.1, own=own))
        x, y = [a.rhat() for a in own], [a.reward for a in own]
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert found is None
        else:
            assert found == pytest.approx(spearmanr(x, y).statistic)
    assert (
        measures.spearman_reward(
            Evidence("p", 0.1, own=[answer(i, 0, reward=float(i)) for i in range(3)])
        )
        is None
    )  # fewer than 4


def test_the_role_of_y_decides_which_measure_it_enters() -> None:
    e = Evidence("p", 0.1, explore=answer(-1.0, -2.0), y_role="loser", margin=0.5)
    wanted = {"rhat_y_winner": None, "rhat_y_loser": 1.0, "pair_margin": 0.5}
    wanted |= {"share_y_winner": 0.0, "share_y_loser": 1.0}
    assert {name: measures.DIAGNOSTICS[name].function(e) for name in wanted} == wanted


def test_unseen_mass_is_what_the_seen_answers_lost_and_counts_equal_answers_once() -> None:
    y_w = answer(math.log(0.2), math.log(0.5), token_ids=(1,))
    y_l = answer(math.log(0.1), math.log(0.2), token_ids=(2,))
    e = Evidence("p", 0.1, chosen=y_w, rejected=y_l, explore=y_w)
    assert measures.unseen_mass(e) == pytest.approx(0.7 - 0.3)


def test_regret_and_mode_coverage_by_hand() -> None:
    modes = [("best", 1.0, math.log(0.25)), ("plain", 0.5, math.log(0.5))]
    e = Evidence(
        "p",
        0.1,
        modes=modes,
        best=1.0,
        own=[answer(0, 0, text="plain"), answer(0, 0, text="wrong")],
    )
    assert measures.regret(e) == pytest.approx(1.0 - (0.25 + 0.25))
    assert measures.mode_coverage(e) == 0.5


def test_the_probability_of_the_best_style_does_not_ask_what_it_is_worth() -> None:
    modes = [("ant.", 0.5, math.log(0.5)), ("ant: checked twice.", 0.0, math.log(0.25))]
    assert measures.best_style_probability(Evidence("p", 0.1, modes=modes)) == pytest.approx(0.25)
    assert measures.best_style_probability(Evidence("p", 0.1)) is None


def test_lengths_and_endings() -> None:
    own = [
        answer(0, 0, token_ids=(1, 2, 3)),
        answer(0, 0, token_ids=(1,), status="truncated", ended=False),
    ]
    e = Evidence("p", 0.1, own=own)
    assert (
        measured("length_tokens", e),
        measured("truncated_share", e),
        measured("missing_eos_share", e),
    ) == (2.0, 0.5, 0.5)


# --- rows -----------------------------------------------------------------------------------------


def test_undefined_values_give_no_row_and_refused_prompts_a_row_without_value() -> None:
    fine = Evidence("p", 0.1, chosen=answer(-1.0, -2.0), rejected=answer(-3.0, -2.0))
    rows = stage.score_rows({"heldout": [fine, Evidence("q", 0.1, refused=True)]})
    by_metric = {(row.metric, row.item): row for row in rows}
    assert by_metric["rhat_heldout_chosen", "p"].value == 1.0
    assert by_metric["rhat_heldout_chosen", "q"].status == "refused"
    assert by_metric["rhat_heldout_chosen", "q"].value is None
    assert ("kl_base", "p") not in by_metric  # no samples: undefined
    assert not {name for name, _ in by_metric} & {
        "reward_samples",
        "regret",
        "newness",
    }  # no scorer, no modes, no earlier answers


def test_rows_of_a_repeated_training_prompt_share_a_cluster(tmp_path: Path) -> None:
    """The data's own ids may hold the sign."""
    write_jsonl(tmp_path / "train.jsonl", [{"id": name} for name in ("p", "c#1", "c#2")])
    names = ("p", "p#2", "c#1", "c#2", "c#2#3")
    rows = stage.score_rows(
        {"train": [Evidence(name, 0.1, chosen=answer(0, 0)) for name in names]},
        stage.known_ids(tmp_path),
    )
    assert {row.item: row.cluster for row in rows} == dict(
        zip(names, ("p", "p", "c#1", "c#2", "c#2"), strict=True)
    )


# --- model passes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("policies")
    return {
        name: tiny.checkpoint(root / name, seed=seed)
        for seed, name in enumerate(("theta", "other", "base"))
    }


def plain_distributions(
    model: Any, prompt: tuple[int, ...], response: tuple[int, ...]
) -> torch.Tensor:
    """Log-probabilities (T, V) of the next token at every step of the response, by an ordinary
    forward pass.
    """
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0]
    distributions: torch.Tensor = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return distributions


def test_one_pass_gives_logps_kl_and_entropy_of_a_plain_forward_pass(
    folders: dict[str, Path],
) -> None:
    sheets = [Sheet((3, 4, 5)), Sheet((9, 8))]
    sheets[0].add((11, 12, 13), own=True)
    sheets[0].add((11, 12))
    sheets[1].add((20, 21, 22, 23), own=True)
    loaders = {name: lambda folder=folder: load_policy(folder) for name, folder in folders.items()}
    names = {"theta": "theta", "reference": "other", "previous": "other", "base": "base"}
    score_sheets(sheets, loaders, names, token_budget=8192)
    models = {name: load_policy(folder).model for name, folder in folders.items()}
    for sheet in sheets:
        for ids in sheet.responses:
            steps = {
                role: plain_distributions(models[name], sheet.prompt_ids, ids)
                for role, name in names.items()
            }
            for role, logp in steps.items():
                assert sheet.logps[role][ids] == pytest.approx(
                    float(logp[range(len(ids)), list(ids)].sum()), abs=1e-4
                )
            if ids in sheet.own:
                p = steps["theta"]
                for role in ("base", "previous"):
                    assert sheet.kl[role][ids] == pytest.approx(
                        float((p.exp() * (p - steps[role])).sum()), abs=1e-4
                    )
                assert sheet.entropy[ids] == pytest.approx(float(-(p.exp() * p).sum()), abs=1e-4)
    assert (11, 12) not in sheets[
        0
    ].entropy  # not sampled by the checkpoint: no expectation to take along it


def test_the_divergence_from_itself_is_exactly_zero(folders: dict[str, Path]) -> None:
    sheet = Sheet((3, 4))
    ids = sheet.add((7, 8, 9), own=True)
    loaders = {
        name: lambda folder=folders[name]: load_policy(folder) for name in ("theta", "other")
    }
    score_sheets(
        [sheet],
        loaders,
        {"theta": "theta", "reference": "other", "previous": "theta", "base": "other"},
        token_budget=100,
    )
    assert sheet.kl["previous"][ids] == 0.0
    assert sheet.kl["base"][ids] > 0


# --- gradient -------------------------------------------------------------------------------------


def test_gradient_numbers_from_products_by_hand() -> None:
    # ‖g_DPO‖ = 2, ‖g_y‖ = 3, dot 3: ratio 0.125·3/2, cosine 3/6; a negative coefficient turns the
    # direction
    assert passes.compare(3.0, 4.0, 9.0, 0.125) == passes.GradientPair(0.1875, 0.5)
    assert passes.compare(3.0, 4.0, 9.0, -0.125) == passes.GradientPair(0.1875, -0.5)
    assert passes.compare(3.0, 4.0, 9.0, 0.0) == passes.GradientPair(0.0, 0.5)
    assert passes.compare(0.0, 0.0, 9.0, 0.1) == passes.GradientPair(None, None)


def test_gradients_equal_those_of_a_plain_loss(folders: dict[str, Path]) -> None:
    policy = load_policy(folders["theta"])
    pairs = [
        Pair(f"p{i}", ({"role": "user", "content": q},), "yes", "no way", "maybe", y_role="middle")
        for i, q in enumerate(("Is it?", "Why then?"))
    ]
    rows = [encode_pair(policy.tokenizer, pair) for pair in pairs]
    rows = with_reference(load_policy(folders["other"]).model, rows, ROLES)
    found = passes.gradient_pair(policy.model, rows, c=0.05, beta=0.1)
    assert all(p.grad is None for p in policy.model.parameters())
    assert not policy.model.training

    def logp(prompt: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
        logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        total: torch.Tensor = logits.log_softmax(-1)[range(len(ids)), list(ids)].sum()
        return total

    terms, explore = [], []
    for row in rows:
        values = {role: logp(row.prompt_ids, ids) for role, ids in row.responses.items()}
        gap = (
            values["chosen"]
            - row.reference["chosen"]
            - values["rejected"]
            + row.reference["rejected"]
        )
        terms.append(-torch.nn.functional.logsigmoid(0.1 * gap))
        explore.append(values["explore"])
    parameters = list(policy.model.parameters())
    g = torch.cat(
        [
            x.flatten()
            for x in torch.autograd.grad(torch.stack(terms).mean(), parameters, retain_graph=True)
        ]
    )
    h = torch.cat(
        [x.flatten() for x in torch.autograd.grad(torch.stack(explore).mean(), parameters)]
    )
    assert found.ratio == pytest.approx(0.05 * float(h.norm() / g.norm()), rel=1e-3)
    assert found.cosine == pytest.approx(float(torch.dot(g, h) / (g.norm() * h.norm())), abs=1e-3)


# --- the stage ------------------------------------------------------------------------------------


def user(content: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": content},)


@pytest.fixture
def task(tmp_path: Path, folders: dict[str, Path]) -> StageTask[Any]:
    data, pairs = tmp_path / "data", tmp_path / "pairs"
    data.mkdir()
    pairs.mkdir()
    heldout = [Prompt(f"h{i}", user(f"Name {i}"), chosen="one", rejected="two") for i in range(3)]
    write_jsonl(
        data / "heldout.jsonl",
        [*heldout, Prompt("long", user("x" * 300), chosen="one", rejected="two")],
    )
    write_jsonl(data / "ood.jsonl", [Prompt("o0", user("Other"), chosen="a", rejected="b")])
    rows = [
        Pair(
            f"t{i}",
            user(f"Say {i}"),
            "good",
            "bad",
            "hm",
            scores={"chosen": 2.0, "rejected": 0.5},
            y_role="middle",
        )
        for i in range(8)
    ]
    write_jsonl(pairs / "pairs.jsonl", rows)
    settings = {"prompts": 8, "samples": 4, "max_new_tokens": 6, "generation_batch": 8}
    settings |= {"objective": OBJECTIVE, "ranker": {"kind": "judge"}}
    settings |= {"max_length": 256, "max_prompt_length": 128}
    inputs = {
        "policy": folders["theta"],
        "previous": folders["other"],
        "reference_policy": folders["other"],
        "base": folders["base"],
    }
    return stage_task(
        "k",
        "diagnostics",
        settings,
        inputs | {"data": data, "pairs": pairs},
        tmp_path / "out",
        {"device": "cpu"},
    )


def rows_of(task: StageTask[Any]) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    task.out.mkdir(exist_ok=True)
    stage.run(task)
    rows: list[dict[str, Any]] = pq.read_table(task.out / "scores.parquet").to_pylist()
    return rows


def test_the_stage_measures_every_prompt_and_repeats_byte_for_byte(task: StageTask[Any]) -> None:
    rows = rows_of(task)
    values = {(row["metric"], row["item"]): row for row in rows}
    expected = {
        name
        for name, d in measures.DIAGNOSTICS.items()
        if d.function and not d.needs and not name.startswith(("rhat_y_winner", "rhat_y_loser"))
    }
    assert {row["metric"] for row in rows} == expected | {
        "grad_ratio",
        "grad_cosine",
        "grad_ratio_end",
        "grad_cosine_end",
    }
    assert {item for metric, item in values if metric == "kl_base"} == {"h0", "h1", "h2", "long"}
    assert values["kl_base", "long"]["status"] == "refused"
    assert all(
        values["kl_base", f"h{i}"]["value"] > 0 and values["entropy", f"h{i}"]["value"] > 0
        for i in range(3)
    )
    assert values["pair_margin", "t0"]["value"] == 1.5
    first = {f.name: f.read_bytes() for f in task.out.iterdir()}
    rows_of(task)
    assert first == {f.name: f.read_bytes() for f in task.out.iterdir()}
    assert set(first) == {"scores.parquet", "summary.json"}


def test_a_placebos_gradient_points_where_it_is_trained(
    task: StageTask[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "collect", lambda *_: {"heldout": []})
    plain = {row["metric"]: row["value"] for row in rows_of(task)}
    turned = task.settings.objective.model_copy(
        update={"placebo": "negative", "c": -task.settings.objective.c}
    )
    settings = task.settings.model_copy(update={"objective": turned})
    found = {row["metric"]: row["value"] for row in rows_of(replace(task, settings=settings))}
    for end in ("", "_end"):
        assert found[f"grad_cosine{end}"] == -plain[f"grad_cosine{end}"] != 0
        assert found[f"grad_ratio{end}"] == plain[f"grad_ratio{end}"]
    keys = [defining_settings(one, {})["objective"] for one in (task.settings, settings)]
    assert "cosine" not in keys[0], "what is stored of other objectives was right"
    assert keys[1]["cosine"] == "signed"


def test_prompts_that_were_not_measured_are_told(
    task: StageTask[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_policy: Any, requests: Any, **_options: Any) -> list[Any]:
        return [Generation((), "", "no_answer") for _ in requests]

    task.out.mkdir()
    (told,) = stage.run(task).left_out
    assert (told.what, told.count, told.of, told.examples) == ("heldout prompts", 1, 4, ("long",))
    assert told.reason == "over training.max_prompt_length = 128 tokens"
    monkeypatch.setattr("harness.stages.diagnostics.stage.generate", nothing)
    found = {one.reason: one.count for one in stage.run(task).left_out}
    assert found == {told.reason: 1, "no answer drawn": 3}


def test_another_seed_draws_other_reference_samples(task: StageTask[Any]) -> None:
    def drawn(seed: int) -> list[Any]:
        seeded = replace(task, settings=task.settings.model_copy(update={"seed": seed}))
        rows = rows_of(seeded)
        return [row["value"] for row in rows if row["metric"] == "rhat_reference_samples"]

    assert drawn(0) != drawn(1)


def test_sampled_answers_of_the_answer_stage_are_used_and_the_greedy_one_is_not(
    task: StageTask[Any], tmp_path: Path
) -> None:
    folder = tmp_path / "answer"
    folder.mkdir()
    stop = load_policy(task.inputs["policy"]).stop_token_ids[0]
    rows = [
        Response(f"h{i}", s, "abc"[: s + 1], (*[97] * (s + 1), stop))
        for i in range(3)
        for s in range(3)
    ]
    write_jsonl(folder / "heldout.jsonl", rows)
    inputs = {**task.inputs, "answer": folder, "answer_previous": folder}
    with_answers = replace(task, inputs=inputs)
    found = {row["metric"]: row["value"] for row in rows_of(with_answers) if row["item"] == "h0"}
    assert (
        found["length_tokens"] == 3.5
    )  # samples 1 and 2 have 3 and 4 tokens; the greedy one has 2
    assert found["newness"] == 0.0
    assert found["missing_eos_share"] == 0.0


def test_the_pocket_world_adds_rewards_regret_and_coverage(
    task: StageTask[Any], tmp_path: Path
) -> None:
    import numpy as np

    from harness.pocket import base, language, oracle

    made = base.build_tokenizer()
    folder = tmp_path / "pocket"
    tiny.model("llama", made).save_pretrained(folder)
    made.save_pretrained(folder)
    prompts = language.sample_prompts(3, np.random.default_rng(0), "heldout", two_turn_share=0.0)
    texts = [[text for text, _ in oracle.modes(p.messages)] for p in prompts]
    full = [
        Prompt(p.id, p.messages, chosen=t[0], rejected=t[-1])
        for p, t in zip(prompts, texts, strict=True)
    ]
    write_jsonl(task.inputs["data"] / "heldout.jsonl", full)
    write_jsonl(task.inputs["data"] / "ood.jsonl", full[:1])
    write_jsonl(
        task.inputs["pairs"] / "pairs.jsonl",
        [Pair(p.id, p.messages, p.chosen, p.rejected, p.chosen, y_role="winner") for p in full],
    )
    answers = tmp_path / "answers"
    answers.mkdir()
    ids = {
        text: (*tuple(made(text, add_special_tokens=False)["input_ids"]), made.eos_token_id)
        for t in texts
        for text in t
    }
    rows = [
        Response(p.id, s, made.decode(list(ids[text][:-1])), ids[text])
        for p, t in zip(full, texts, strict=True)
        for s, text in enumerate((t[0], t[1], t[-1], t[-1]), 1)
    ]
    write_jsonl(answers / "heldout.jsonl", rows)
    policies = dict.fromkeys(("policy", "previous", "reference_policy", "base"), folder)
    oracle_ranker = task.settings.ranker.model_copy(update={"kind": "oracle"})
    settings = task.settings.model_copy(update={"pocket": True, "ranker": oracle_ranker})
    inputs = {**task.inputs, **policies, "answer": answers}
    pocket = replace(task, settings=settings, inputs=inputs)
    found = {(row["metric"], row["item"]): row["value"] for row in rows_of(pocket)}
    for p in full:
        right = [reward for _, reward in oracle.modes(p.messages) if reward > 0]
        assert found["reward_samples", p.id] == pytest.approx((right[0] + right[1]) / 4)
        assert found["mode_coverage", p.id] == pytest.approx(2 / len(right))
        assert found["regret", p.id] == pytest.approx(
            right[0], abs=1e-3
        )  # an untrained model gives its modes next to nothing
        assert 0 < found["best_style_probability", p.id] < 1e-3
        assert found["unseen_mass", p.id] == 0.0
        assert found["kl_previous", p.id] == 0.0
