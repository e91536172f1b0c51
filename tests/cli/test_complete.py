"""What a shell is offered, asked as bash asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.study import shipped

RUNS = [
    {"run": "objective.alpha=0,seed=3", "label": "α = 0", "seed": 3},
    {"run": "objective.alpha=1,seed=3", "label": "α = 1", "seed": 3},
]


def offered(line: str) -> list[str]:
    """Completions of a command line's last word, which may be begun."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    told = CliRunner().invoke(
        app, [], env={"_SELM_COMPLETE": "complete_bash", **words}, prog_name="selm"
    )
    assert told.exception is None or isinstance(told.exception, SystemExit)
    return [one for one in told.output.splitlines() if one]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "manifest.json").write_text(json.dumps({"runs": RUNS}))


def test_studies_by_name(tmp_path: Path) -> None:
    assert offered("selm run smo") == ["smoke"]
    assert offered("selm tune tune") == ["tune_alpha_beta"]
    assert len(offered("selm run ")) == len(list(shipped.FOLDER.glob("*.yaml")))
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "smoked.yaml").touch()
    assert offered("selm plan smo") == ["smoke", "smoked"]


def test_studies_that_have_run() -> None:
    assert offered("selm report ") == ["mine", "other"]
    assert offered("selm report --results elsewhere ") == []


def test_arms_of_the_study_named() -> None:
    assert offered("selm compare --study mine b") == ["base"]
    assert "objective.alpha=1" in offered("selm compare --study mine ")
    assert "α = 1" in offered("selm compare --study mine base ")
    assert offered("selm compare --study none ") == []


def test_recipe_keys() -> None:
    assert offered("selm run smoke --set loop.warm") == ["loop.warmup_dpo="]
    assert offered("selm plan unknown --set evaluation.mt_bench.lim") == [
        "evaluation.mt_bench.limit="
    ]
