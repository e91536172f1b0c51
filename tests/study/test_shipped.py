"""A name stands for what comes with the harness, wherever one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import findings
from harness.records import HarnessError
from harness.study import shipped
from harness.study.study import load_study

STUDY = "name: mine\nrecipe: {recipe}\nset: {{judge: {judge}}}\nseeds: [0]\n"


def test_a_study_is_found_by_name_and_one_here_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    smoke = shipped.study(Path("smoke"))
    assert smoke == shipped.FOLDER / "smoke.yaml"
    assert shipped.word(smoke) == "smoke"
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "smoke.yaml").touch()
    assert shipped.study(Path("smoke")) == Path("ablations/smoke.yaml")
    assert shipped.word(Path("ablations/smoke.yaml")) == "smoke"
    assert shipped.word(shipped.FOLDER / "smoke.yaml") == str(shipped.FOLDER / "smoke.yaml")
    assert shipped.word(Path("mine/own.yaml")) == "mine/own.yaml"


@pytest.mark.parametrize("given", ["mine.yaml", "ablations/none.yaml", "folder/smoke"])
def test_a_path_is_left_as_it_is(given: str) -> None:
    assert shipped.study(Path(given)) == Path(given)


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(HarnessError, match=r"'smok' not found \(did you mean 'smoke'\?\); known: "):
        shipped.study(Path("smok"))


def test_a_study_of_ones_own_takes_recipe_and_judge_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "mine.yaml"
    own.write_text(STUDY.format(recipe="pocket", judge="gpt-4"))
    base = load_study(own).base
    assert (base.model.source, base.judge.profile) == ("pocket", "gpt-4")
    assert findings.profile_of("gpt-4") == shipped.FOLDER / "judges" / "gpt-4.yaml"
    for text, said in (
        (STUDY.format(recipe="poket", judge="pocket"), r"mine.yaml:2: recipe 'poket' .*'pocket'\?"),
        (STUDY.format(recipe="pocket", judge="gpt-5"), r"mine.yaml:3: judge 'gpt-5' not found"),
    ):
        own.write_text(text)
        with pytest.raises(HarnessError, match=said):
            load_study(own)
