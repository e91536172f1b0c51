"""Pair rules by hand, ties, placebo, and every ranker."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from harness.rankers import judge, reward_model
from harness.rankers.pairs import PAIR_RULES, Candidates
from harness.rankers.ranker import RankContext, Ranked, RankItem
from harness.rankers.registry import RANKERS, rank_texts, rewards
from harness.records import HarnessError, Pair, Prompt, Response, StageTask, read_jsonl, write_jsonl
from harness.stages import rank
from harness.stages import reward as reward_train
from harness.study.sections import JudgeSettings
from harness.study.settings import Recipe
from tests import tiny
from tests.tasks import rank_context, settings_of, stage_task

USER = ({"role": "user", "content": "Q"},)


def _candidates(**texts: str) -> Candidates:
    return Candidates(Prompt("p", USER), {name: text for name, text in texts.items() if text})


def _choice(rule: str, scores: dict[str, float], **texts: str) -> tuple[str, str] | str:
    candidates = _candidates(**(texts or {name: name for name in scores}))
    choice = PAIR_RULES[rule].choose(candidates, scores)
    return choice.reason or (choice.chosen, choice.rejected)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.9}, ("y", "rejected")),
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.3}, ("chosen", "rejected")),
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.0}, ("chosen", "y")),
        ({"chosen": 0.1, "rejected": 0.5, "y": 0.3}, ("rejected", "chosen")),
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.5}, ("chosen", "rejected")),
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.1}, ("chosen", "rejected")),
        ({"chosen": 0.2, "rejected": 0.2, "y": 0.2}, ("chosen", "rejected")),
        ({"chosen": 0.1, "rejected": 0.1, "y": 0.1, "y1": 0.7}, ("y1", "rejected")),
        ({"chosen": 0.4, "y": 0.4, "y1": 0.4}, ("chosen", "y1")),
    ],
)
def test_best_worst_and_its_ties(scores, expected):
    assert _choice("best_worst", scores) == expected


def test_equal_texts_are_one_candidate():
    scores = {"chosen": 0.5, "rejected": 0.1, "y": 0.5}
    assert _choice("best_worst", scores, chosen="a", rejected="b", y="a") == ("chosen", "rejected")
    assert (
        _choice(
            "best_worst",
            {"chosen": 0.5, "rejected": 0.5, "y": 0.5},
            chosen="a",
            rejected="a",
            y="a",
        )
        == "identical"
    )
    assert _choice("best_worst", {"y": 0.5}, y="a") == "one answer"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.9}, ("y", "rejected")),
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.3}, ("chosen", "y")),
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.0}, ("chosen", "y")),
        ({"chosen": 0.5, "rejected": 0.1, "y": 0.5}, ("chosen", "rejected")),
        ({"chosen": 0.5, "rejected": 0.1}, ("chosen", "rejected")),
        ({"rejected": 0.1, "y": 0.5}, "no offline pair"),
    ],
)
def test_replace(scores, expected):
    assert _choice("replace", scores) == expected


def test_replace_with_the_rejected_text_better_than_chosen_is_no_pair():
    """y repeats y_l and beats y_w: the pair would be y_l against itself."""
    assert (
        _choice(
            "replace", {"chosen": 0.1, "rejected": 0.5, "y": 0.5}, chosen="a", rejected="b", y="b"
        )
        == "identical"
    )


def test_own_samples_of_equal_score_are_no_pair():
    assert _choice("best_worst", {"y": 0.2, "y1": 0.8, "current": 0.5}) == ("y1", "y")
    assert _choice("best_worst", {"y": 0.5, "y1": 0.5}) == "tied"
    assert _choice("best_worst", {"y": 0.5, "y1": 0.5}, y="a", y1="a") == "identical"


def test_ten_samples_are_in_their_numeric_order():
    scores = {"chosen": 0.0} | {f"y{i or ''}": 0.5 for i in range(11)}
    assert _choice("best_worst", scores) == ("y", "chosen")
    assert _choice("best_worst", {name: -score for name, score in scores.items()}) == (
        "chosen",
        "y10",
    )


def test_role_of_y():
    assert [rank.role_of(y, "a", "b") for y in ("a", "b", "", None)] == [
        "winner",
        "loser",
        "middle",
        "absent",
    ]


# The stage
# --------------------------------------------------------------------------------------------------

PROMPTS = [
    Prompt(f"p{i}", ({"role": "user", "content": f"Q{i}"},), f"good{i}", f"bad{i}")
    for i in range(4)
]
SAMPLES = {"p0": ["long answer 0"], "p1": ["x"], "p2": ["good2"], "p3": ["bad3x"]}


def _by_length(monkeypatch):
    monkeypatch.setattr(
        "harness.pocket.oracle.reward", lambda messages, text, worth: float(len(text))
    )


def _task(tmp_path: Path, responses: list[Response] | None = None, **settings) -> StageTask:
    rollout, out = tmp_path / "rollout", tmp_path / "out"
    rollout.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    rows = responses or [
        Response(name, sample, text, (1,))
        for name, texts in SAMPLES.items()
        for sample, text in enumerate(texts)
    ]
    write_jsonl(rollout / "prompts.jsonl", PROMPTS)
    write_jsonl(rollout / "responses.jsonl", rows)
    settings = {"kind": "oracle", "max_length": 64} | settings
    inputs = {"rollout": rollout, "data": tmp_path}
    return stage_task("k", "rank", settings, inputs, out, {"device": "cpu"})


def _pairs(task: StageTask) -> dict[str, Pair]:
    return {row["prompt_id"]: Pair(**row) for row in read_jsonl(task.out / "pairs.jsonl")}


def test_stage_by_hand(tmp_path, monkeypatch):
    """Score = length: "good0" 5, "bad0" 4; y is 13, 1, 5 (equal to chosen), 5 ("bad3x", tied with
    chosen) characters.
    """
    _by_length(monkeypatch)
    task = _task(tmp_path)
    outcome = rank.run(task)
    pairs = _pairs(task)
    assert list(pairs) == ["p0", "p1", "p2", "p3"]
    assert [(p.chosen, p.rejected, p.y_role) for p in pairs.values()] == [
        ("long answer 0", "bad0", "winner"),
        ("good1", "x", "loser"),
        ("good2", "bad2", "winner"),
        ("good3", "bad3", "middle"),
    ]
    assert [p.explore for p in pairs.values()] == ["long answer 0", "x", "good2", "bad3x"]
    assert (pairs["p0"].chosen_from, pairs["p0"].scores) == (
        "y",
        {"chosen": 5.0, "rejected": 4.0, "y": 13.0},
    )
    assert outcome.summary == {"pairs": 4, "y_role": {"loser": 1, "middle": 1, "winner": 2}}


def test_failed_samples_leave_the_offline_pair_without_y(tmp_path, monkeypatch):
    _by_length(monkeypatch)
    task = _task(
        tmp_path,
        [Response("p0", 0, "", (), "no_answer"), Response("p1", 0, "cut short", (1,), "truncated")],
    )
    rank.run(task)
    pairs = _pairs(task)
    assert (pairs["p0"].explore, pairs["p0"].y_role, pairs["p0"].chosen) == ("", "absent", "good0")
    assert (pairs["p1"].chosen, pairs["p1"].y_role) == ("cut short", "winner")


CUT = [
    Response("p0", 0, "cut short", (7, 7, 8), "truncated"),
    Response("p1", 0, "x", (9, 2), "ok"),
    Response("p2", 0, "good2", (4, 5), "truncated"),
    Response("p3", 0, "a", (6,), "ok"),
    Response("p3", 1, "cut shorter", (3, 1), "truncated"),
]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            [
                {"chosen": [7, 7, 8], "explore": [7, 7, 8]},
                {},
                {"explore": [4, 5]},  # the offline answer of the same text ends its turn
                {"chosen": [3, 1], "explore_1": [3, 1]},
            ],
        ),
        (
            {"placebo": "other_prompt"},
            [
                {"chosen": [7, 7, 8]},
                {"explore": [4, 5]},
                {"explore_1": [3, 1]},
                {"chosen": [3, 1], "explore": [7, 7, 8]},
            ],
        ),
        ({"truncated_y": "ended"}, [{}, {}, {}, {}]),
    ],
    ids=["every role", "another prompt's y", "ended"],
)
def test_a_truncated_sample_keeps_the_tokens_it_was_drawn_with(
    tmp_path, monkeypatch, settings, expected
):
    _by_length(monkeypatch)
    task = _task(tmp_path, CUT, y=2, **settings)
    rank.run(task)
    assert [dict(pair.drawn) for pair in _pairs(task).values()] == expected


def test_an_empty_sample_is_an_answer(tmp_path, monkeypatch):
    _by_length(monkeypatch)
    task = _task(tmp_path, [Response("p0", 0, "", (2,), "ok")])
    rank.run(task)
    pair = _pairs(task)["p0"]
    assert (pair.chosen, pair.rejected, pair.rejected_from, pair.y_role) == (
        "good0",
        "",
        "y",
        "loser",
    )


def test_offline_rule_scores_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.pocket.oracle.reward", lambda *_: pytest.fail("scored"))
    task = _task(tmp_path, rule="offline")
    rank.run(task)
    assert {(p.chosen, p.rejected) for p in _pairs(task).values()} == {
        (f"good{i}", f"bad{i}") for i in range(4)
    }
    assert _pairs(task)["p0"].scores == {}


def test_placebo_gives_every_pair_another_prompts_y(tmp_path, monkeypatch):
    _by_length(monkeypatch)
    task = _task(tmp_path, placebo="other_prompt")
    rank.run(task)
    pairs = list(_pairs(task).values())
    assert [p.explore for p in pairs] == ["x", "good2", "bad3x", "long answer 0"]
    assert [(p.chosen, p.rejected) for p in pairs][:2] == [
        ("long answer 0", "bad0"),
        ("good1", "x"),
    ]
    assert [p.y_role for p in pairs] == ["middle"] * 4


def test_a_portion_in_which_all_tie_has_no_pair_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.pocket.oracle.reward", lambda *_: 0.5)
    drawn = [Response("p0", sample, text, (1,)) for sample, text in enumerate(["a", "b"])]
    outcome = rank.run(_task(tmp_path, drawn, offline=False, y=2))
    assert _pairs(_task(tmp_path)) == {}
    assert {(one.reason, one.count, one.of) for one in outcome.left_out} == {
        ("tied", 1, 4),
        ("one answer", 3, 4),
    }


def test_labelled_pairs_of_which_none_is_one_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.stages.test_ranking.PROMPTS", [Prompt("p0", USER, "a", "a")])
    with pytest.raises(HarnessError, match=r"has a labelled pair \(\{'identical': 1\}\)"):
        rank.run(_task(tmp_path, rule="offline"))


def test_the_placebo_leaves_a_single_y_out(tmp_path, monkeypatch):
    _by_length(monkeypatch)
    outcome = rank.run(_task(tmp_path, [Response("p1", 0, "x", (1,))], placebo="other_prompt"))
    assert outcome.left_out[0].reason == "no other prompt's y for the placebo"
    assert outcome.left_out[0].examples == ("p1",)
    assert list(_pairs(_task(tmp_path))) == ["p0", "p2", "p3"]


def test_the_term_reads_samples_that_are_no_candidates(tmp_path, monkeypatch):
    """y is drawn twice for the term, and the pair is chosen from another rollout."""
    _by_length(monkeypatch)
    drawn = [Response("p0", sample, text, (1,)) for sample, text in enumerate(["yy", "y"])]
    task = _task(tmp_path, drawn, offline=False, y=0)
    current = tmp_path / "current"
    current.mkdir()
    rows = [Response("p0", sample, text, (1,)) for sample, text in ((3, "long"), (2, "short"))]
    write_jsonl(current / "responses.jsonl", rows)
    task = dataclasses.replace(task, inputs={**task.inputs, "current": current})
    rank.run(task)
    pair = _pairs(task)["p0"]
    assert (pair.chosen, pair.rejected, pair.chosen_from) == ("short", "long", "current")
    assert (pair.explore, pair.explore_more, pair.y_role) == ("yy", ["y"], "middle")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"offline": False}, "names too few candidates"),
        ({"y": 0}, "names too few candidates.*loop.mode stepwise"),
        ({"y": 2}, "pairs.y is 2, but exploration.samples draws 1"),
        ({"rule": "replace", "y": 0, "current": 2}, "replace compares y with the labelled pair"),
        ({"rule": "offline"}, "loop.mode stepwise"),
        ({"rule": "best"}, "'best'; known: best_worst, replace"),
    ],
)
def test_candidates_that_make_no_pair_are_refused(pairs, message):
    with pytest.raises(ValidationError, match=message):
        Recipe(pairs=pairs)


def test_y_from_a_checkpoint_names_it_and_greedy_samples_are_one():
    with pytest.raises(ValidationError, match="policy: checkpoint and the checkpoint"):
        Recipe(exploration={"policy": "checkpoint"})
    with pytest.raises(ValidationError, match="4 greedy answers of one prompt are the same answer"):
        Recipe(exploration={"decoding": "greedy", "samples": 4})


def test_unknown_kind_says_what_is_allowed():
    with pytest.raises(
        ValidationError, match=r"'gpt'; known: judge, misgeneralising, oracle, pairrm, reward_model"
    ):
        Recipe(ranker={"kind": "gpt"})


def test_failed_rankings_keep_the_stage_partial_and_final_ones_are_counted(tmp_path, monkeypatch):
    statuses = iter(["ok", "error", "unparsed", "ok"])

    def some(items, context):
        return [
            Ranked(tuple(float(len(t)) for t in item.texts), s)
            if (s := next(statuses)) == "ok"
            else Ranked((), s)
            for item in items
        ]

    oracle = dataclasses.replace(RANKERS["oracle"], rank=some)
    monkeypatch.setitem(RANKERS, "oracle", oracle)
    task = _task(tmp_path)
    outcome = rank.run(task)
    assert (outcome.rows, outcome.errors) == (2, 1)
    (left,) = (one for one in outcome.left_out if one.reason == "unparsed")
    assert (left.what, left.count, left.of) == ("prompts", 1, 4)
    assert list(_pairs(task)) == ["p0", "p3"]


def test_merge_keeps_order_and_renames_repeats(tmp_path):
    folders = {}
    for name, ids in (("pairs_01", "ab"), ("pairs_99", "bc"), ("pairs_100", "b")):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "pairs.jsonl", [Pair(i, USER, "w", "l", "") for i in ids])
        folders[name] = tmp_path / name
    out = tmp_path / "out"
    out.mkdir()
    rank.merge(stage_task("k", "pairs.merge", {}, dict(reversed(folders.items())), out))
    assert [row["prompt_id"] for row in read_jsonl(out / "pairs.jsonl")] == [
        "a",
        "b",
        "b#2",
        "c",
        "b#3",
    ]


# Rankers
# --------------------------------------------------------------------------------------------------


def _context(tmp_path: Path, kind: str, **extra) -> RankContext:
    return rank_context(kind, tmp_path, max_length=64, **extra)


ITEMS = [
    RankItem("a", USER, ("one", "two two", "x" * 40)),
    RankItem("b", ({"role": "user", "content": "Longer question"},), ("one", "9")),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return tiny.reward_model(tmp_path_factory.mktemp("reward"), "zephyr")


def test_reward_model_scores_are_the_models_logits(tmp_path, classifier):
    context = _context(tmp_path, "reward_model", folder=classifier)
    found = rank_texts(ITEMS, context)
    model, tokenizer = reward_model.load(str(classifier), "cpu")
    for item, ranked in zip(ITEMS, found, strict=True):
        for text, score in zip(item.texts, ranked.scores, strict=True):
            rendered = tokenizer.apply_chat_template(
                [*item.messages, {"role": "assistant", "content": text}], tokenize=False
            )
            ids = torch.tensor([tokenizer(rendered)["input_ids"][-64:]])
            with torch.inference_mode():
                assert score == pytest.approx(model(ids).logits.item(), abs=1e-5)
    assert context.costs["ranker_texts"] == 5
    lengths = [
        reward_model.encode(tokenizer, i.messages, t, 64).length for i in ITEMS for t in i.texts
    ]
    assert lengths == [32, 36, 69, 46, 44]
    assert context.costs["ranker_texts_cut"] == 1


def test_reward_model_batches_do_not_change_scores(tmp_path, classifier, monkeypatch):
    together = rank_texts(ITEMS, _context(tmp_path, "reward_model", folder=classifier))
    monkeypatch.setattr(reward_model, "TOKENS_PER_BATCH", 1)
    alone = rank_texts(ITEMS, _context(tmp_path, "reward_model", folder=classifier))
    for a, b in zip(together, alone, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-5)


def test_reward_model_without_padding_in_its_configuration_reads_the_last_token(
    tmp_path, classifier
):
    """Its tokenizer pads with the very token that ends a conversation; the score is still that of a
    text scored alone.
    """
    folder = Path(shutil.copytree(classifier, tmp_path / "copy"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if k != "pad_token_id"})
    )
    words = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**words, "pad_token": words["eos_token"]})
    )
    model, tokenizer = reward_model.load(str(folder), "cpu")
    assert model.config.pad_token_id is None
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    found = rank_texts(ITEMS, _context(tmp_path, "reward_model", folder=folder))
    for item, ranked in zip(ITEMS, found, strict=True):
        for text, score in zip(item.texts, ranked.scores, strict=True):
            row = reward_model.encode(tokenizer, item.messages, text, 64)
            assert row.ids[-1] == tokenizer.eos_token_id
            with torch.inference_mode():
                assert score == pytest.approx(
                    model(torch.tensor([row.ids])).logits.item(), abs=1e-5
                )
    assert model.config.pad_token_id is None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny BERT with one label, two token types and no chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz0123456789?"]
    raw = Tokenizer(
        models.WordPiece(
            {word: i for i, word in enumerate([*words, *(f"##{w}" for w in words[4:])])},
            unk_token="[UNK]",
        )
    )
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(
            BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_as_reward_model_sees_two_texts_and_keeps_its_first_token(tmp_path, encoder):
    """Token types tell question from answer; over the limit the question loses its beginning, [CLS]
    and the answer stay.
    """
    long = RankItem("long", ({"role": "user", "content": "begin " * 20 + "end"},), ("one", "two"))
    endless = RankItem("endless", USER, ("z" * 100,))
    found = rank_texts([*ITEMS, long, endless], _context(tmp_path, "reward_model", folder=encoder))
    model, tokenizer = reward_model.load(str(encoder), "cpu")
    for item, ranked in zip([*ITEMS, long, endless], found, strict=True):
        for text, score in zip(item.texts, ranked.scores, strict=True):
            row = reward_model.encode(tokenizer, item.messages, text, 64)
            assert len(row.ids) == min(row.length, 64)
            assert (row.ids[0], row.ids.count(2), set(row.types)) == (1, 2, {0, 1})
            with torch.inference_mode():
                alone = model(
                    torch.tensor([row.ids]), token_type_ids=torch.tensor([row.types])
                ).logits.item()
                blind = model(torch.tensor([row.ids])).logits.item()
            assert score == pytest.approx(alone, abs=1e-5)
            assert abs(alone - blind) > 1e-3
    spelled = reward_model.encode(tokenizer, USER, "a [SEP] b", 64)
    assert (spelled.ids.count(2), spelled.ids.count(3)) == (2, 3 + 1)  # "[", "SEP", "]" and "Q"
    cut = reward_model.encode(tokenizer, long.messages, "two", 64)
    assert tokenizer.convert_ids_to_tokens(cut.ids)[-8:] == [
        "e",
        "##n",
        "##d",
        "[SEP]",
        "t",
        "##w",
        "##o",
        "[SEP]",
    ]


def test_a_reward_model_needs_one_label(tmp_path):
    with pytest.raises(HarnessError, match=r"score\.weight.*no reward head"):
        rank_texts(ITEMS, _context(tmp_path, "reward_model", folder=tiny.checkpoint(tmp_path)))


def test_reward_model_trained_in_place_ranks_its_pairs(tmp_path):
    """Chosen answers say "yes", rejected "no": 60 steps are enough to put every pair of other
    prompts in order; twice the same bytes.
    """
    base = tiny.checkpoint(tmp_path / "base", style="zephyr", initializer_range=0.05)
    prompts = [
        Prompt(
            f"p{i}", ({"role": "user", "content": f"Question {i}?"},), f"yes {i % 3}", f"no {i % 3}"
        )
        for i in range(48)
    ]
    settings = settings_of(
        "ranker.train", {"learning_rate": 5e-3, "batch_size": 8, "epochs": 10, "max_length": 128}
    )
    state = torch.get_rng_state()
    done = reward_train.train_reward_model(base, prompts, tmp_path / "rm", settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert done.summary["pairs"] == 48
    reward_train.train_reward_model(base, prompts, tmp_path / "again", settings)
    assert (tmp_path / "rm" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()
    items = [
        RankItem(f"t{i}", ({"role": "user", "content": f"Question {i}?"},), ("yes 1", "no 1"))
        for i in range(50, 60)
    ]
    found = rank_texts(items, _context(tmp_path, "reward_model", folder=tmp_path / "rm"))
    assert all(r.scores[0] > r.scores[1] for r in found)


def test_ranker_train_stage_needs_pairs_set_aside(tmp_path):
    base, data, out = (
        tiny.checkpoint(tmp_path / "base", style="zephyr"),
        tmp_path / "data",
        tmp_path / "out",
    )
    data.mkdir()
    out.mkdir()
    settings = {"seed": 0, "learning_rate": 1e-4, "batch_size": 2, "epochs": 1, "max_length": 40}
    task = stage_task("k", "ranker.train", settings, {"base": base, "data": data}, out)
    with pytest.raises(HarnessError, match=r"set data\.ranker_pairs"):
        reward_train.run(task)
    write_jsonl(data / "ranker.jsonl", [*PROMPTS, Prompt("long", USER, "x" * 40, "y")])
    outcome = reward_train.run(task)
    assert (outcome.rows, outcome.summary["pairs"]) == (4, 4)
    (told,) = outcome.left_out
    assert (told.count, told.of, told.examples) == (1, 5, ("long",))
    model, _ = reward_model.load(str(out), "cpu")
    assert model.config.num_labels == 1


# Judge
# --------------------------------------------------------------------------------------------------


def _reply(first: float | None, status: str = "ok", text: str = "") -> judge.JudgeReply:
    logprobs = (
        None
        if first is None
        else [
            {"token": "m", "logprob": 0.0, "top_logprobs": [_top("m", first), _top("M", 1 - first)]}
        ]
    )
    return judge.JudgeReply("i", 0, status, text, logprobs)


def _top(token: str, p: float) -> dict[str, float | str]:
    return {"token": token, "logprob": math.log(p)}


def test_judge_preference_from_logprobs_or_text():
    assert judge.preference(_reply(0.8)) == pytest.approx(0.8)
    assert judge.preference(_reply(None, text=" M ")) == 0.0
    assert judge.preference(_reply(None, text="m")) == 1.0
    assert judge.preference(_reply(None, text="both")) is None


def test_judge_scores_by_hand(tmp_path, monkeypatch):
    """Shown first, a beats b with 0.9; shown second, a still wins with 1 - 0.3: score of a (0.9 +
    0.7)/2 = 0.8.
    """
    asked = []

    class Client(contextlib.nullcontext):
        costs = {"judge_calls": 2.0}

        def __init__(self, settings, runtime, out):
            super().__init__(self)
            assert (settings.kind, out) == ("pocket", context.out)

        def complete(self, requests, accept):
            asked.extend(requests)
            return [_reply({"a:0:1": 0.9, "a:1:0": 0.3}[request.id]) for request in requests]

    monkeypatch.setattr(judge, "JudgeClient", Client)
    monkeypatch.setattr(judge, "finalise", lambda folder: 0)
    context = _context(tmp_path, "judge", judge=JudgeSettings(kind="pocket"))
    (ranked,) = rank_texts([RankItem("a", USER, ("A {output_2}", "B"))], context)
    assert ranked.scores == pytest.approx((0.8, 0.2))
    assert context.costs == {"judge_calls": 2.0}
    first = asked[0].messages
    assert [m["role"] for m in first] == ["system", "user"]
    assert '"instruction": """Q"""' in first[1]["content"]
    assert (
        '"output": """A {output_2}"""' in first[1]["content"]
    )  # an answer's own braces are left alone
    assert asked[0].params["max_tokens"] == 1


def test_judge_errors_and_unreadable_verdicts():
    ok, bad, none = _reply(0.9), _reply(None, "error"), _reply(None, text="?")
    assert judge._ranked(2, iter([ok, bad])).status == "error"
    assert judge._ranked(2, iter([ok, none])).status == "unparsed"
    assert judge._ranked(1, iter(())).scores == (0.5,)


def test_rewards_of_a_pointwise_ranker_need_no_reference(tmp_path, monkeypatch):
    _by_length(monkeypatch)
    assert rewards([RankItem("a", USER, ("one", "three"))], [""], _context(tmp_path, "oracle"))[
        0
    ].scores == (3.0, 5.0)
