"""Questions with constraints: what a prompt states is what is checked, offline answers meet what
they are said to, and the ranker's reward is the share.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from harness.rankers.ranker import RankItem
from harness.rankers.registry import rank_texts
from harness.records import HarnessError, Prompt, read_jsonl
from harness.rules import constraints, data
from harness.study.settings import Recipe
from tests import tiny
from tests.tasks import rank_context, stage_task

BULLETS = "detectable_format:number_bullet_lists"
JSON = "detectable_format:json_format"
TITLE, COMMA = "detectable_format:title", "punctuation:no_comma"


def of(kind: str) -> constraints.Constraint:
    return next(one for one in constraints.constraints() if one.kind == kind)


def test_no_constraint_is_read_out_of_the_words_of_another() -> None:
    for one, other in combinations(constraints.constraints(), 2):
        assert one.text not in other.text and other.text not in one.text
    text = "\n".join(["Why?", of(TITLE).text, of(COMMA).text])
    assert {one.kind for one in constraints.stated(text)} == {TITLE, COMMA}
    assert constraints.stated("Why?") == []


CHECKED = [
    (TITLE, "<<Tides>>\nThe Moon pulls.", "Tides: the Moon pulls."),
    (COMMA, "The Moon pulls.", "The Moon, mostly."),
    (BULLETS, "* Moon\n* Sun", "* Moon"),
    (JSON, '```json\n{"cause": "Moon"}\n```', "cause: Moon"),
    ("startend:quotation", '"The Moon."', "The Moon."),
    ("startend:end_checker", "The Moon. Any other questions?", "Any other questions? The Moon."),
    ("change_case:english_lowercase", "the moon pulls the sea up.", "The moon pulls the sea up."),
    ("length_constraints:number_words", "word " * 19, "word " * 20),
    ("detectable_content:postscript", "The Moon.\nP.S. And the Sun.", "The Moon."),
    ("detectable_content:number_placeholders", "See [book].", "See book."),
    ("detectable_format:number_highlighted_sections", "The *Moon* pulls.", "The Moon pulls."),
]


@pytest.mark.parametrize(("kind", "good", "bad"), CHECKED, ids=[row[0] for row in CHECKED])
def test_a_constraint_is_met_by_what_meets_it_alone(kind: str, good: str, bad: str) -> None:
    assert constraints.met([of(kind)], "Why?", good) == [True]
    assert constraints.met([of(kind)], "Why?", bad) == [False]


def test_every_kind_is_checked_and_every_answer_of_ours_can_be_made_to_meet_it() -> None:
    assert {row[0] for row in CHECKED} == set(constraints.KINDS)
    for row in read_jsonl(data.QUESTIONS):
        for one in constraints.constraints():
            answer = constraints.edited(row["answer"], [one])
            assert constraints.met([one], row["question"], answer) == [True], (one, answer)


def ranked(prompt: str, *answers: str) -> Any:
    item = RankItem("p", ({"role": "user", "content": prompt},), answers)
    (found,) = rank_texts([item], rank_context(kind="rules"))
    return found


def test_the_reward_is_the_share_of_the_constraints_that_are_met() -> None:
    text = "\n".join(["Why?", of(TITLE).text, of(COMMA).text])
    both, one, none = "<<Moon>>\nIt pulls.", "It pulls.", "It pulls, up."
    assert ranked(text, both, one, none, "").scores == (1.0, 0.5, 0.0, 0.0)
    assert ranked("Why?", both).status == "no_answer"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.save(tiny.tokenizer("chatml"), folder)
    return folder


def made(base: Path, out: Path, **changes: Any) -> Any:
    out.mkdir(exist_ok=True)
    recipe = Recipe.model_validate(
        {
            "model": {"source": "x"},
            "ranker": {"kind": "rules"},
            "rules": changes.pop("rules", {}),
            "data": {"source": "rules", "prompts": 40, "heldout": 12, **changes},
        }
    )
    settings = {**vars(recipe.data), "rules": recipe.rules, "max_prompt_length": 700}
    task = stage_task("k", "data.rules", settings, {"base": base}, out)
    outcome = data.run(task)
    splits = ("train", "heldout", "ood", "ranker")
    rows = {name: [Prompt(**row) for row in read_jsonl(out / f"{name}.jsonl")] for name in splits}
    return outcome, rows


def reward(prompt: Prompt, answer: str) -> float:
    text = prompt.messages[0]["content"]
    return constraints.share(constraints.stated(text), text, answer)


def test_offline_answers_meet_all_but_what_only_exploration_finds(
    base: Path, tmp_path: Path
) -> None:
    unmet = [BULLETS, TITLE]
    changes = {"rules": {"unmet_offline": unmet}, "ood": 6, "ranker_pairs": 5}
    _, rows = made(base, tmp_path / "a", **changes)
    assert {name: len(found) for name, found in rows.items()} == {
        "train": 40,
        "heldout": 12,
        "ood": 6,
        "ranker": 5,
    }
    kinds = set()
    for prompt in (*rows["train"], *rows["heldout"], *rows["ranker"]):
        asked = prompt.category.split(",")
        kinds |= set(asked)
        text = prompt.messages[0]["content"]
        assert {one.kind for one in constraints.stated(text)} == set(asked)
        known = [kind for kind in asked if kind not in unmet]
        assert reward(prompt, prompt.chosen) == len(known) / len(asked)
        assert reward(prompt, prompt.chosen) > reward(prompt, prompt.rejected)
        assert known and 1 <= len(asked) <= 3
    assert kinds == set(constraints.KINDS)
    assert all(set(prompt.category.split(",")) <= set(unmet) for prompt in rows["ood"])
    questions = {
        name: {prompt.messages[0]["content"].partition("\n")[0] for prompt in found}
        for name, found in rows.items()
    }
    assert not (questions["train"] | questions["ranker"]) & questions["heldout"]
    again = made(base, tmp_path / "b", **changes)[1]
    assert again == rows
    assert made(base, tmp_path / "c", seed=1, **changes)[1]["train"] != rows["train"]


REFUSED = {
    "rules.kinds names 'rhyme'": {"rules": {"kinds": ["rhyme"]}},
    "data.ood asks for prompts": {"ood": 3},
    "names every kind": {"rules": {"kinds": [TITLE], "unmet_offline": [TITLE]}},
    "data.prompts is 0": {"prompts": 0},
    "data.columns is not read": {"columns": {"prompt": "question"}},
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_no_prompt_can_follow_is_refused(says: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=says):
        made(base, tmp_path / "out", **REFUSED[says])


def test_questions_of_ones_own_are_read_and_checked(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    rows = [{"question": f"Why {n}?", "answer": "Because it is so, I think."} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, found = made(base, tmp_path / "out", path=str(file), rules={"most": 1})
    assert all(one.messages[0]["content"].startswith("Why ") for one in found["train"])
    file.write_text(json.dumps({"question": "Why?", "output": "So."}) + "\n")
    with pytest.raises(HarnessError, match=r"q\.jsonl:1: a row of questions .* question, output"):
        made(base, tmp_path / "out", path=str(file))


def test_the_ranker_wants_its_world() -> None:
    wrong = {"model": {"source": "x"}, "ranker": {"kind": "rules"}}
    with pytest.raises(ValueError, match=r"its prompts come from data\.source: rules"):
        Recipe.model_validate(wrong | {"data": {"source": "files", "path": "p.jsonl"}})
