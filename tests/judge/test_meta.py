"""How far a judge can be trusted: hand-worked figures, and the pocket judge on pairs whose better
output is known.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from analysis.judge_runs import judge_table
from harness.judge.meta import (
    LabelledPair,
    agreement,
    meta_evaluate,
    noise_floor,
    position_flips,
    read_labelled_pairs,
)
from harness.pocket import oracle
from harness.records import HarnessError, write_jsonl
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime


def pair(name: str, label: int) -> LabelledPair:
    return LabelledPair(name, "q", "a", "b", label)


def test_the_noise_floor_is_the_pooled_spread_within_items() -> None:
    found = noise_floor({"a": [7.0, 9.0], "b": [5.0, 5.0], "c": [3.0, None], "d": [None, None]})
    # variances 2 and 0, mean 1
    assert found == {
        "items": 2,
        "left_out": 2,
        "sd": 1.0,
        "sd_of_mean": 1.0 / math.sqrt(2.0),
        "unanimous_share": 0.5,
    }
    assert noise_floor({"a": [1.0]}) == {
        "items": 0,
        "left_out": 1,
        "sd": None,
        "sd_of_mean": None,
        "unanimous_share": None,
    }


def test_flips_are_verdicts_that_change_with_the_order() -> None:
    usual = {"same": 1.9, "flip": 1.8, "tie": 1.5, "half tie": 1.5, "lost": 1.2}
    flipped = {"same": 1.7, "flip": 1.4, "tie": 1.5, "half tie": 1.6, "lost": None}
    found = position_flips(usual, flipped, dict.fromkeys(usual, False))
    assert (found["pairs"], found["missing"], found["flips"], found["flip_rate"]) == (4, 1, 2, 0.5)
    assert found["second_place_advantage"] == pytest.approx((0.2 + 0.4 + 0.0 - 0.1) / 2 / 4)
    opposite = position_flips(usual, flipped, dict.fromkeys(usual, True))
    assert opposite["second_place_advantage"] == pytest.approx(-(0.2 + 0.4 + 0.0 - 0.1) / 2 / 4)
    assert position_flips({"x": None}, {}, {"x": False})["flip_rate"] is None


def test_agreement_counts_ties_half_and_missing_apart() -> None:
    pairs = [pair("a", 1), pair("b", 2), pair("c", 2), pair("d", 1)]
    usual = {"a": 1.1, "b": 1.9, "c": 1.5, "d": None}
    flipped = {"a": 1.2, "b": 1.3, "c": 1.4, "d": 1.1}
    found = agreement(pairs, usual, flipped)
    assert found["accuracy_usual"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["accuracy_flipped"] == pytest.approx(2 / 4)
    assert found["accuracy"] == pytest.approx((2.5 / 3 + 0.5) / 2)
    assert found["accuracy_averaged"] == pytest.approx((1 + 1 + 0) / 3)  # b: 1.6, c: 1.45
    assert (found["pairs"], found["missing"], found["majority_label_share"]) == (4, 1, 0.5)
    assert agreement([], {}, {})["accuracy"] is None


def bench_row(number: int, label: str = "A>B", **changed: str) -> dict[str, str]:
    texts = {"question": f"q{number}", "response_A": "a", "response_B": "b"}
    return {"pair_id": f"p{number}", "source": "livebench-math", "label": label} | texts | changed


def test_judge_bench_counts_a_pair_by_its_two_orders_over_all_pairs() -> None:
    """Both right; right and a tie; right and wrong; two ties; wrong and missing; right and missing;
    nothing: 3 of 7."""
    pairs = [pair(name, 1) for name in "abcdefg"]
    usual = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.5, "e": 2.0, "f": 1.0, "g": None}
    flipped = {"a": 1.2, "b": 1.5, "c": 2.0, "d": 1.5, "e": None, "f": None, "g": None}
    assert agreement(pairs, usual, flipped)["accuracy_by_both"] == pytest.approx(3 / 7)


def test_judge_benchs_file_is_read_and_told_by_source(tmp_path: Path) -> None:
    rows = [
        bench_row(0, source="mmlu-pro-law", question="Which number is larger, 1 or 9?"),
        bench_row(1, "B>A", source="mmlu-pro-math", question="Which number is larger, 2 or 9?"),
        bench_row(2, question="Which number is larger, 3 or 9?"),
    ]
    for row in rows:
        best = oracle.reference([{"role": "user", "content": row["question"]}])
        row |= {"response_A": best, "response_B": "nothing"}
    write_jsonl(tmp_path / "bench.jsonl", rows)
    pairs = read_labelled_pairs(tmp_path / "bench.jsonl")
    assert [(one.id, one.label, one.group) for one in pairs] == [
        ("p0", 1, "mmlu-pro"),
        ("p1", 2, "mmlu-pro"),
        ("p2", 1, "livebench-math"),
    ]
    found = meta_evaluate(pairs, JudgeSettings(noise=0.0), Runtime(), tmp_path / "out")
    assert found["by_group"] == {"livebench-math": 1.0, "mmlu-pro": 0.5}
    assert found["agreement"]["accuracy_by_both"] == pytest.approx(2 / 3)
    assert found["costs"]["judge_calls"] == 6
    shown = [row.cells for row in judge_table("judge", "bench.jsonl", 1, found).rows]
    assert {"measure": "the same on mmlu-pro", "value": "50.0"} in shown


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([bench_row(0, "A=B")], "item 0 is no labelled pair"),
        ([{"pair_id": "p"}], r"response_B and label \(A>B or B>A\)"),
        ([bench_row(1), bench_row(1)], "pair_id p1 occurs more than once"),
    ],
)
def test_a_file_that_is_not_judge_benchs_is_refused(
    rows: list[dict[str, str]], message: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "bench.jsonl", rows)
    with pytest.raises(HarnessError, match=message):
        read_labelled_pairs(tmp_path / "bench.jsonl")


def test_a_file_that_is_no_list_of_labelled_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(
        json.dumps([{"input": "q", "output_1": "a", "output_2": "b", "label": 3}])
    )
    with pytest.raises(HarnessError, match=r"pairs\.json: item 0 is no labelled pair"):
        read_labelled_pairs(tmp_path / "pairs.json")


def test_a_list_of_pairs_is_read_whatever_its_name_ends_in(tmp_path: Path) -> None:
    row = {"input": "q", "output_1": "a", "output_2": "b", "label": 2}
    (tmp_path / "pairs.txt").write_text(json.dumps([row]))
    assert read_labelled_pairs(tmp_path / "pairs.txt") == [LabelledPair("0", "q", "a", "b", 2)]


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
@pytest.mark.parametrize("text", ["{bad", "5", '["x"]'])
def test_a_file_of_no_rows_is_refused_with_its_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(HarnessError, match=name):
        read_labelled_pairs(tmp_path / name)


def test_the_pocket_judge_agrees_with_the_oracle_and_its_bias_is_found(tmp_path: Path) -> None:
    pairs = []
    for i in range(20):
        question = f"Which number is larger, {i} or {i + 20}?"
        good = oracle.reference([{"role": "user", "content": question}])
        pairs.append(
            LabelledPair(
                str(i),
                question,
                good if i % 2 else "no",
                "no" if i % 2 else good,
                1 if i % 2 else 2,
            )
        )
    runtime = Runtime()
    fair = meta_evaluate(
        pairs, JudgeSettings(position_bias=0.0), runtime, tmp_path / "fair", repeats=3
    )
    assert fair["agreement"]["accuracy"] == 1.0
    assert fair["position"]["flips"] == 0
    assert abs(fair["position"]["second_place_advantage"]) < 0.01
    assert fair["noise"]["items"] == 40
    assert 0.0 < fair["noise"]["sd"] < 0.05
    assert fair["costs"]["judge_calls"] == 120
    biased = meta_evaluate(
        pairs, JudgeSettings(position_bias=20.0, noise=0.0), runtime, tmp_path / "biased"
    )
    assert biased["agreement"]["accuracy"] == 0.5
    assert biased["position"]["flip_rate"] == 1.0
    assert biased["position"]["second_place_advantage"] == pytest.approx(-0.5, abs=1e-4)


def test_llmbar_runs_through_and_again_from_its_journal(shared_data: Path, tmp_path: Path) -> None:
    pairs = read_labelled_pairs(shared_data / "preferences" / "llmbar" / "natural.json")
    assert len(pairs) == 100
    judge, runtime = JudgeSettings(), Runtime()
    found = meta_evaluate(pairs, judge, runtime, tmp_path)
    assert (
        found["agreement"]["pairs"],
        found["agreement"]["missing"],
        found["costs"]["judge_calls"],
    ) == (100, 0, 200)
    assert meta_evaluate(pairs, judge, runtime, tmp_path) == found
