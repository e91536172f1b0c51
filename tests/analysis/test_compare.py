"""``selm compare``: what names stand for, and its verdict as a gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import measures
from analysis.compare import Asked, compare, resolve, verdict
from analysis.layout import from_array
from analysis.load import StudyData, load_study
from analysis.measures import Measure
from analysis.stats import difference
from harness.records import HarnessError
from tests.processes import Done, selm
from tests.synthetic import Synthetic, build

SPREAD = np.array([3.0, -3.0] * 4 + [0.0])
"""Nine differences of mean 0 and standard error 1: t(8) is 2.306 at 95 % and 1.860 at 90 %."""
UP = Measure("score", "b", "m", better=1)


def _verdict(mean: float, delta: float = 0.0, measure: Measure = UP) -> str:
    a, b = from_array((SPREAD + mean)[None]), from_array(np.zeros((1, 9)))
    return verdict(a, b, difference(a, b), measure, Asked(delta), 1.0)[0]


@pytest.mark.parametrize(
    ("mean", "delta", "word"),
    [
        (2.4, 0.0, "better"),
        (2.2, 0.0, "undecided"),
        (-2.4, 0.0, "worse"),
        (0.0, 1.9, "equivalent"),
        (0.0, 1.8, "undecided"),
        (2.4, 4.3, "equivalent"),
        (2.4, 4.2, "better"),
    ],
)
def test_the_verdict_is_by_the_interval_and_two_one_sided_tests(
    mean: float, delta: float, word: str
) -> None:
    assert _verdict(mean, delta) == word


def test_less_is_better_where_the_measure_says_so() -> None:
    assert _verdict(2.4, measure=Measure("loss", "b", "m", better=-1)) == "worse"
    assert _verdict(2.4, measure=Measure("length", "b", "m", better=0)) == ""


def test_equal_scores_are_undecided_since_nothing_says_how_they_vary() -> None:
    same = from_array(np.ones((1, 9)))
    found = verdict(same, same, difference(same, same), UP, Asked(1.0), 1.0)
    assert found == ("undecided", "all scores are equal")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    spec = Synthetic(axes={"arm": ["v", "v@2", "mail@home"]}, faults=False, answers=False)
    return build(tmp_path_factory.mktemp("gate"), spec)


@pytest.fixture(scope="module")
def data(study: tuple[Path, Path]) -> StudyData:
    return load_study(*study)


def test_a_label_may_hold_an_at_sign(data: StudyData) -> None:
    home = resolve(data, "arm=mail@home")
    assert home.runs[0].arm == {"arm": "mail@home"}
    assert home.iteration == 2
    assert resolve(data, "arm=mail@home@1").iteration == 1
    with pytest.raises(HarnessError, match="both an arm and iteration 2 of 'arm=v'"):
        resolve(data, "arm=v@2")
    assert resolve(data, "arm=v@2@1").runs[0].arm == {"arm": "v@2"}
    with pytest.raises(HarnessError, match="no iteration 3; there are 0, 1, 2"):
        resolve(data, "arm=mail@home@3")


def test_a_gate_looks_at_the_declared_outcome_or_one_measure(data: StudyData) -> None:
    found = compare(data, "arm=v@1", "base", asked=Asked(gate=True))
    declared = measures.declared(data, data.declare["primary"])[0].key
    assert [row["measure"] for row in found.data] == [declared]
    with pytest.raises(HarnessError, match="--gate wants one measure"):
        compare(data, "arm=v@1", "base", "alpaca_eval", Asked(gate=True))
    with pytest.raises(HarnessError, match="--delta 1 is in the unit of one measure"):
        compare(data, "arm=v@1", "base", "alpaca_eval", Asked(1.0))


def _gate(study: tuple[Path, Path], *options: str) -> Done:
    folder, store = study
    given = (*options, "--results", folder.parent, "--store", store, "--study", folder.name)
    return selm("compare", *given, status=None)


def test_the_exit_status_is_the_verdict_and_nothing_else_has_one(study: tuple[Path, Path]) -> None:
    wins = ["--benchmark", "alpaca_eval.win_rate", "--gate"]
    found = _gate(study, "arm=v@1", "base", *wins, "--delta", "200")
    assert (found.returncode, "equivalent to Base" in found.stdout) == (2, True), found.stderr
    assert _gate(study, "arm=v@1", "base", *wins, "--delta", "x").returncode == 64
    assert _gate(study, "nobody", "base", *wins).returncode == 64
    assert _gate(study, "nobody", "base", *wins[:2]).returncode == 2
