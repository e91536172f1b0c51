"""Searches: honest about failures, the same store as ablations, nothing lost when a worker dies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness import tune
from harness.records import HarnessError, Score, StageOutcome, StageTask, write_jsonl, write_scores
from harness.tune_file import load_tune

ROOT = Path(__file__).parent.parent

SEARCH = """\
name: t
recipe: RECIPE
set: {loop.iterations: 1, evaluation.benchmarks: [heldout], diagnostics.enabled: false}
space:
  objective.alpha: {log_uniform: [0.01, 10]}
  pairs.rule: {choice: [best_worst, replace]}
seeds: [0, 1, 2]
fresh_seeds: [7, 8, 9]
trials: 6
"""


class World:
    """Stands in for every stage: the score of a held-out item is −|log10 α| plus the item, or whatever ``broken`` says."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken: Any = None

    def __call__(self, task: StageTask) -> StageOutcome:
        self.calls.append(task.stage)
        alpha = task.settings.get("objective", {}).get("alpha", 1.0)
        if task.stage == "train":
            (task.out / "alpha.jsonl").write_text(str(alpha))
            if isinstance(self.broken, Exception):
                raise self.broken
        if task.stage == "answer":
            source = task.inputs["policy"] / "alpha.jsonl"
            (task.out / "alpha.jsonl").write_text(source.read_text() if source.exists() else "1")
        if task.stage == "heldout":
            value = -abs(math.log10(float((task.inputs["answer"] / "alpha.jsonl").read_text())))
            status = "unparsed" if self.broken == "missing" else "ok"
            rows = [Score("heldout", "1", str(i), str(i), "reward", None if status != "ok" else value + i / 100, status) for i in range(8)]  # type: ignore[arg-type]
            write_scores(task.out / "scores.parquet", rows)
        write_jsonl(task.out / "rows.jsonl", [])
        return StageOutcome(1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("harness.worker.function_of", lambda stage: world)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return world


def search(tmp_path: Path, text: str = SEARCH) -> tune.Search:
    path = tmp_path / "t.yaml"
    path.write_text(text.replace("RECIPE", str(ROOT / "ablations" / "recipes" / "pocket.yaml")))
    return tune.Search(path, tmp_path / "store", f"sqlite:///{tmp_path / 'optuna.db'}")


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_a_search_spends_its_budget_and_finds_the_best(tmp_path: Path, world: World) -> None:
    asked = search(tmp_path)
    tune.work(asked)
    study = tune.open_study(asked)
    assert len(study.trials) == 6
    best = tune.winners(study)["best"]
    assert best.value == max(t.value for t in study.trials if t.state.name == "COMPLETE")
    tune.work(asked)
    assert len(tune.open_study(asked).trials) == 6


def test_trials_share_stages_with_each_other(tmp_path: Path, world: World) -> None:
    tune.work(search(tmp_path))
    assert world.calls.count("base.pocket") == 1
    assert world.calls.count("rollout") == 3


@pytest.mark.parametrize(
    ("broken", "words"), [(HarnessError("loss is nan at step 3"), "loss is nan"), (ValueError("inf"), "ValueError"), ("missing", "finite")]
)
def test_failures_keep_their_reason_and_are_never_best(tmp_path: Path, world: World, broken: Any, words: str) -> None:
    asked = search(tmp_path)
    world.broken = broken
    tune.work(asked)
    study = tune.open_study(asked)
    assert set(states(study)) == {"FAIL"}
    assert all(words in trial.user_attrs["reason"] for trial in study.trials)
    with pytest.raises(HarnessError, match="no trial ended with a finite value"):
        tune.winners(study)


def test_a_changed_space_is_refused_with_the_difference(tmp_path: Path, world: World) -> None:
    tune.work(search(tmp_path))
    with pytest.raises(HarnessError, match=r"space: was .*10.*now .*5.*another name"):
        tune.open_study(search(tmp_path, SEARCH.replace("[0.01, 10]", "[0.01, 5]")))


def test_finalists_run_on_fresh_seeds_against_the_default(tmp_path: Path, world: World) -> None:
    asked = search(tmp_path)
    tune.work(asked)
    final = tune.finalists(asked, tune.open_study(asked))
    assert [cell.seed for cell in final.cells] == [7, 8, 9, 7, 8, 9]
    assert final.baseline == {"arm": "default"}
    assert final.cells[3].recipe.objective.alpha == pytest.approx(tune.winners(tune.open_study(asked))["best"].params["objective.alpha"])


@pytest.mark.parametrize(("change", "words"), [
    ("  objective.alpha: {log_uniform: [0, 10]}", "above 0"), ("  objective.alpha: {uniform: [3, 1]}", "low below high"),
    ("  objective.alpha: {choice: [1], uniform: [0, 1]}", "exactly one"), ("  objective.alfa: {choice: [1]}", "did you mean 'alpha'"),
])  # fmt: skip
def test_a_bad_search_is_refused(tmp_path: Path, world: World, change: str, words: str) -> None:
    text = SEARCH.replace("  objective.alpha: {log_uniform: [0.01, 10]}", change)
    with pytest.raises(HarnessError, match=words):
        asked = search(tmp_path, text)
        asked.spec  # noqa: B018
        tune.open_study(asked)


def test_the_search_that_ships_loads() -> None:
    spec = load_tune(ROOT / "ablations" / "tune_alpha_beta.yaml")
    assert not set(spec.seeds) & set(spec.fresh_seeds)
