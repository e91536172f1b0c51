"""PairRM against its authors' package: tests/golden/pairrm holds what llm-blender computed, its
make.py how.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.rankers import pairrm
from harness.rankers.ranker import RankContext, RankItem, padded_batches
from harness.rankers.registry import rank_texts, rewards
from harness.records import HarnessError, Pair, Prompt, Response, read_jsonl, write_jsonl
from harness.stages import rank
from tests import tiny
from tests.tasks import located, rank_context, stage_task

FOLDER = Path(__file__).parents[1] / "golden" / "pairrm"
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
ROWS, CONVERSATIONS = GOLDEN["prompts"], GOLDEN["conversations"]
HF = FOLDER / "hf"


def _user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


ITEMS = [
    RankItem(str(i), _user(row["source"]), tuple(row["candidates"])) for i, row in enumerate(ROWS)
]


def _context(folder: Path) -> RankContext:
    return rank_context("pairrm", folder=folder)


def _copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HF, tmp_path / "copy"))


def _settings(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Against the package
# ----------------------------------------------------------------------------------------


def test_token_ids_are_the_packages():
    files = pairrm.open_checkpoint(HF)
    either = files.tokenizer.token_to_id("<|candidate|>")
    for row, item in zip(ROWS, ITEMS, strict=True):
        source, first, second = files.marks
        assert row["source_ids"][1] == source
        answers = row["candidate_ids"]
        assert all(ids.count(either) == 1 and ids[1] == either for ids in answers)
        shown = {
            mark: [tuple(mark if i == either else i for i in ids) for ids in answers]
            for mark in (first, second)
        }
        expected = {
            (a, b): (tuple(row["source_ids"]), shown[first][a], shown[second][b])
            for a in range(4)
            for b in range(4)
            if a != b
        }
        assert pairrm.encode_duels(files, item) == expected


def test_logits_scores_and_ranks_are_the_packages(monkeypatch):
    """All rows, the long ones included."""
    monkeypatch.setattr(pairrm, "TOKENS_PER_BATCH", 2048)
    model, files = pairrm.load(str(HF), "cpu")
    for row, item in zip(ROWS, ITEMS, strict=True):
        duels = pairrm.encode_duels(files, item)
        distinct = list(dict.fromkeys(duels.values()))
        logits = dict(zip(distinct, pairrm.compare(model, distinct), strict=True))
        matrix = [[logits[duels[a, b]] if a != b else 0.0 for b in range(4)] for a in range(4)]
        torch.testing.assert_close(
            torch.tensor(matrix), torch.tensor(row["logits"]), atol=1e-5, rtol=0
        )
        scores = pairrm.aggregate(matrix)
        assert scores == pytest.approx(row["scores"], abs=1e-5)
        assert _ranks(scores) == row["ranks"]


def test_the_ranker_gives_the_packages_scores_and_ranks():
    for row, ranked in zip(ROWS[:4], rank_texts(ITEMS[:4], _context(HF)), strict=True):
        assert ranked.scores == pytest.approx(row["scores"], abs=1e-5)
        assert _ranks(ranked.scores) == row["ranks"]


def _ranks(scores: tuple[float, ...]) -> list[int]:
    return [1 + sum(other > score for other in scores) for score in scores]


def test_conversations_are_read_in_the_packages_form():
    """The second golden one has an earlier answer; the first has a single turn, which the package's
    ``rank`` reads as it is.
    """
    row = CONVERSATIONS[1]
    *before, last = [
        {"role": turn["role"].lower(), "content": turn["content"]} for turn in row["a"]
    ]
    assert [turn["role"] for turn in before] == ["user", "assistant", "user"]
    assert pairrm.as_read(before, (last["content"], row["b"][-1]["content"])) == (
        row["source"],
        row["texts"],
    )


@pytest.mark.parametrize("row", CONVERSATIONS, ids=["one turn", "two turns"])
def test_comparisons_in_both_orders_are_the_packages(row):
    """``Blender.compare`` adds the two orders as the aggregate of two candidates does."""
    model, files = pairrm.load(str(HF), "cpu")
    duels = pairrm.encode_duels(files, RankItem("c", _user(row["source"]), tuple(row["texts"])))
    first, second = pairrm.compare(model, [duels[0, 1], duels[1, 0]])
    found = {"[A,B]": first, "[B,A]": second, "[A,B]+[B,A]": first - second}
    assert found == pytest.approx(row["logits"], abs=1e-5)


def test_one_turn_is_read_as_it_is_and_a_system_turn_before_it():
    messages = ({"role": "system", "content": "Be brief."}, *_user("Why?"))
    assert pairrm.as_read(messages[1:], ("a",)) == ("Why?", ["a"])
    assert pairrm.as_read(messages, ("a",)) == ("Be brief.\nWhy?", ["a"])


def test_best_and_worst_of_the_three_candidates_are_the_packages(tmp_path):
    """The paper's pair rule: chosen is the argmin, rejected the argmax of the ranks that
    ``Blender.rank`` gives {y, y_w, y_l}.

    In the golden rows y is candidate 0, y_w 1 and y_l 2. In one row y and y_w read the same: best
    there is either.
    """
    rollout, out = tmp_path / "rollout", tmp_path / "out"
    rollout.mkdir()
    out.mkdir()
    rows = ROWS[:3]
    write_jsonl(
        rollout / "prompts.jsonl",
        [Prompt(str(i), _user(r["source"]), *r["candidates"][1:3]) for i, r in enumerate(rows)],
    )
    write_jsonl(
        rollout / "responses.jsonl",
        [Response(str(i), 0, r["candidates"][0], (1,)) for i, r in enumerate(rows)],
    )
    settings = {"kind": "pairrm", "rule": "best_worst", "placebo": "none", "judge": None}
    rank.run(
        stage_task(
            "k", "rank", settings, {"rollout": rollout, "ranker": HF}, out, {"device": "cpu"}
        )
    )
    pairs = [Pair(**row) for row in read_jsonl(out / "pairs.jsonl")]
    assert [row["ranks_of_three"] for row in rows] == [[1, 3, 2], [3, 1, 2], [1, 1, 3]]
    for row, pair in zip(rows, pairs, strict=True):
        ranks = dict(zip(row["candidates"][:3], row["ranks_of_three"], strict=True))
        assert (ranks[pair.chosen], ranks[pair.rejected]) == (
            min(ranks.values()),
            max(ranks.values()),
        )


# Batches and order
# ------------------------------------------------------------------------------------------


def test_batches_do_not_change_scores(monkeypatch):
    """Short and long texts side by side, padded to 1230 tokens, against batches of one row and of
    one prompt.
    """
    items = [*ITEMS[:4], RankItem("long", _user(ROWS[4]["source"]), ("", "Short."))]
    together = rank_texts(items, _context(HF))
    monkeypatch.setattr(pairrm, "TOKENS_PER_BATCH", 1)
    alone = rank_texts(items, _context(HF))
    monkeypatch.setattr(pairrm, "PROMPTS_AT_ONCE", 1)
    one = rank_texts(items, _context(HF))
    for a, b, c in zip(together, alone, one, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-5)
        assert b.scores == pytest.approx(c.scores, abs=1e-5)


def test_batches_stay_within_their_tokens():
    assert padded_batches([5, 30, 10, 6, 10], 20) == [[0, 3], [2, 4], [1]]
    assert padded_batches([], 20) == []


def test_equal_comparisons_are_made_once():
    """Four texts, of which three become the same tokens: 2 × 2 ordered pairs of distinct tokens
    less one (the text that stands alone).
    """
    context = _context(HF)
    rank_texts([ITEMS[3]], context)
    assert context.costs == {"ranker_texts": 3}


def test_the_order_of_answers_does_not_matter():
    texts = ITEMS[0].texts[:2]
    forward, backward = (
        rank_texts([RankItem("a", _user("Q"), t)], _context(HF))[0].scores
        for t in (texts, texts[::-1])
    )
    assert forward == pytest.approx(backward[::-1], abs=1e-6)
    assert sum(forward) == pytest.approx(0.0, abs=1e-6)
    assert abs(forward[0]) > 1e-2


def test_an_answer_that_writes_the_marks_is_still_read_as_one():
    files = pairrm.open_checkpoint(HF)
    (row, _) = pairrm.encode_duels(
        files, RankItem("a", _user("<|candidate1|>"), ("<|candidate2|>", "b"))
    ).values()
    assert [part[1] for part in row] == list(files.marks)
    (ranked,) = rank_texts(
        [RankItem("a", _user("<|candidate1|>"), ("<|candidate2|>", "b"))], _context(HF)
    )
    assert all(map(math.isfinite, ranked.scores))


def test_aggregate_by_hand():
    """L01=1, L10=-3, L02=2, L20=0, L12=5, L21=1: scores (4+2)/3, (-4+4)/3, (-2-4)/3."""
    assert pairrm.aggregate([[0, 1, 2], [-3, 0, 5], [0, 1, 0]]) == pytest.approx((2.0, 0.0, -2.0))


def test_a_single_text_scores_zero():
    assert rank_texts([RankItem("a", _user("Q"), ("one",))], _context(HF))[0].scores == (0.0,)


def test_rewards_are_against_the_reference():
    context = _context(HF)
    item = RankItem("a", _user("Q"), ("one", "ref", "three"))
    (found, missing) = rewards([item, RankItem("b", _user("Q"), ("x",))], ["ref", ""], context)
    (duel,) = rank_texts([RankItem("d", _user("Q"), ("one", "ref"))], context)
    assert found.scores[0] == pytest.approx(duel.scores[0], abs=1e-6)
    assert found.scores[1] == 0.0
    assert missing.status == "no_answer"


# Checkpoints
# ------------------------------------------------------------------------------------------------


def test_the_checkpoint_stage_accepts_it(tmp_path):
    located(HF, tmp_path / "out", needs_template=False)
    (ranked,) = rank_texts(ITEMS[:1], _context(tmp_path / "out"))
    assert ranked.scores == pytest.approx(ROWS[0]["scores"], abs=1e-5)


def test_the_packages_own_form_is_refused_with_the_other_ones_name(tmp_path):
    copy = _copy(tmp_path)
    _settings(copy, ranker_type="pairranker")
    with pytest.raises(HarnessError, match=r"give llm-blender/PairRM-hf, the same weights"):
        located(copy, tmp_path / "out", needs_template=False)


def test_lengths_are_those_of_the_configuration(tmp_path):
    """An earlier one reads 128 tokens of each: 4 prompt tokens leave (3 ·
    128 - 4) // 2 = 190 to an answer.
    """
    copy = _copy(tmp_path)
    _settings(copy, source_maxlength=128, candidate_maxlength=128)
    files = pairrm.open_checkpoint(copy)
    assert (files.source_tokens, files.total_tokens) == (128, 384)
    duels = pairrm.encode_duels(files, RankItem("a", _user("a"), ("9" * 500, "b")))
    assert [len(part) for part in duels[0, 1]] == [
        len(duels[0, 1][0]),
        (384 - len(duels[0, 1][0])) // 2,
        len(duels[0, 1][2]),
    ]


def _drop(name: str):
    return lambda copy: (copy / name).unlink()


def _pickled(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")


def _fewer_weights(copy: Path, *, but: str) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if but not in name},
        copy / "model.safetensors",
    )


def _cut(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])


BAD = {
    "no weights": (_drop("model.safetensors"), r"no weights here \(no \*\.safetensors\)"),
    "pickle-only weights": (
        _pickled,
        r"the weights are pickle files \(pytorch_model\.bin\), which can run code",
    ),
    "weights cut short": (_cut, r"the weights cannot be read .*fetch the checkpoint again"),
    "no head": (
        lambda copy: _fewer_weights(copy, but="head_layer"),
        r"missing: head_layer\.1\.bias, head_layer\.1\.weight, .* and 1 more\. It has no reward",
    ),
    "no embeddings": (
        lambda copy: _fewer_weights(copy, but="word_embeddings"),
        r"the weights have 0 embeddings, but the marks have the ids \[384",
    ),
    "other width": (
        lambda copy: _settings(copy, hidden_size=64),
        r"not those of the PairRM .* head_layer\.1\.weight \[32, 64\] instead of \[64, 128\]",
    ),
    "other ids of the marks": (
        lambda copy: _settings(copy, cand1_prefix_id=7),
        r"the marks the ids \[384, 7, 386\], the tokenizer \[384, 385, 386\]",
    ),
    "no tokenizer": (_drop("tokenizer.json"), r"holds no tokenizer \(tokenizer\.json\)"),
    "broken tokenizer": (
        lambda copy: (copy / "tokenizer.json").write_text("{"),
        r"cannot read .*tokenizer\.json",
    ),
    "broken config": (
        lambda copy: (copy / "config.json").write_text("{"),
        r"config\.json cannot be read",
    ),
    "no DeBERTa": (
        lambda copy: (copy / "config.json").write_text("{}"),
        r"describes no DeBERTa \(no hidden_size\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_checkpoints_say_what_is_wrong(case, tmp_path):
    change, message = BAD[case]
    copy = _copy(tmp_path)
    change(copy)
    with pytest.raises(HarnessError, match=message) as raised:
        rank_texts(ITEMS[:1], _context(copy))
    assert str(copy) in str(raised.value)


def test_other_checkpoints_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(HarnessError, match=r"no <\|source\|>.*not a PairRM checkpoint"):
        rank_texts(ITEMS, _context(tiny.checkpoint(tmp_path, style="zephyr")))
    with pytest.raises(HarnessError, match=r"no checkpoint here"):
        rank_texts(ITEMS, _context(tmp_path / "nothing"))


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    copy = _copy(tmp_path)
    save_file(
        {name: tensor.half() for name, tensor in load_file(copy / "model.safetensors").items()},
        copy / "model.safetensors",
    )
    model, _ = pairrm.load(str(copy), "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
