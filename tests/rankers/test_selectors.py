"""Which prompts and which two answers are labelled, by hand."""

from __future__ import annotations

import torch

from harness.rankers.pairs import Choices, apl, entropy, thompson
from harness.study.tasks import SelectTask
from tests.tasks import settings_of


def task(**changes: object) -> SelectTask:
    made = settings_of("select", {"selector": "apl", "y": 0} | changes)
    assert isinstance(made, SelectTask)
    return made


def test_apl_takes_uncertain_prompts_and_of_these_those_of_wide_margin() -> None:
    """Entropies 3, 1.5, 8, 5 nats; margins of the three kept ones 4, 6 and 1."""
    rows = [
        Choices("a", (-2.0, -4.0), (3.0, -1.0)),
        Choices("b", (-1.0, -1.0, -1.0, -3.0), (8.0, 6.0)),  # one of its two drawn thrice
        Choices("c", (-9.0, -8.0, -7.0), (-1.0, 0.0, 5.0)),
        Choices("d", (-6.0, -4.0), (0.0, 1.0)),
    ]
    assert [entropy(row) for row in rows] == [3.0, 1.5, 8.0, 5.0]
    found = apl(rows, task(entropy_share=0.75, margin_share=0.5), 0)
    assert found.duels == {"a": (0, 1), "c": (0, 2)}  # the widest pair of c's three
    assert found.reasons == {
        "b": "of low predictive entropy",
        "d": "of a small implicit reward margin",
    }
    assert set(apl(rows, task(entropy_share=0.2, margin_share=1.0), 0).duels) == {"c"}


def test_apl_without_margins_takes_the_first() -> None:
    rows = [Choices(name, (-2.0, -4.0), (0.0, 0.0)) for name in "abcd"]
    assert apl(rows, task(entropy_share=0.5, margin_share=0.5), 0).duels == {"a": (0, 1)}
    assert apl([], task(), 0).duels == {}


def test_thompson_pairs_the_favourites_of_two_heads() -> None:
    split = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 1.0], [3.0, 0.0, 1.0]])  # favourites 0, 2, 0
    one = torch.tensor([[0.0, 5.0, 1.0]] * 3)
    rows = [Choices(f"p{i}", rewards=split) for i in range(60)]
    rows.append(Choices("agreed", rewards=one))
    found = thompson(rows, task(selector="thompson"), 7)
    assert found.reasons == {"agreed": "all heads have one favourite"}
    assert set(found.duels.values()) == {(0, 2), (2, 0)}
    first = sum(duel[0] == 0 for duel in found.duels.values())
    assert 30 <= first <= 50, "two heads of three prefer the first answer"
    assert found == thompson(rows, task(selector="thompson"), 7)
    assert found.duels != thompson(rows, task(selector="thompson"), 8).duels
