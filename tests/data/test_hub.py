"""A hub dataset that moves is another input: the commit is in the key, and the cache will do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from harness.data.files import commit_of, hub_rows
from harness.engine.graph import Plan
from harness.engine.launch import plan_study
from harness.records import HarnessError
from harness.study.study import load_study

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's cache as its library lays it out, on a machine without a network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    commit_of.cache_clear()
    yield folder
    commit_of.cache_clear()


def put(cache: Path, commit: str, answer: str, branch: str = "main") -> None:
    repository = cache / "datasets--owner--pairs"
    snapshot = repository / "snapshots" / commit
    (snapshot / "data").mkdir(parents=True)
    rows = [{"prompt": f"Q{n}", "chosen": answer, "rejected": "no"} for n in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (snapshot / "data" / "train_prefs-00000.jsonl").write_text(lines)
    header = "configs:\n- config_name: default\n  data_files:\n  - split: train_prefs\n"
    (snapshot / "README.md").write_text(
        f"---\n{header}    path: data/train_prefs-*\n---\n", encoding="utf-8"
    )
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)


def test_without_a_network_the_cache_knows_the_commit(cache: Path) -> None:
    assert commit_of("dataset", "owner/pairs", "") == ""
    put(cache, FIRST, "yes")
    commit_of.cache_clear()
    assert commit_of("dataset", "owner/pairs", "") == FIRST
    assert commit_of("dataset", "owner/pairs", "other") == ""
    assert commit_of("model", "owner/pairs", "") == ""
    assert commit_of("dataset", "owner/pairs", SECOND) == SECOND


def test_with_a_network_the_hub_knows_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, FIRST, "yes")
    asked: list[Any] = []

    def info(_api: Any, name: str, **options: Any) -> Any:
        asked.append((name, options["repo_type"], options["revision"]))
        return SimpleNamespace(sha=SECOND)

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", info)
    assert commit_of("dataset", "owner/pairs", "v1") == SECOND
    assert commit_of("dataset", "owner/pairs", "v1") == SECOND
    assert asked == [("owner/pairs", "dataset", "v1")]


def test_rows_come_from_the_cache_at_their_commit(cache: Path) -> None:
    put(cache, FIRST, "old")
    put(cache, SECOND, "new")
    for commit, answer in ((FIRST, "old"), (SECOND, "new"), ("", "new")):
        rows = list(hub_rows("owner/pairs", commit, "train_prefs"))
        assert [row.values["chosen"] for row in rows] == [answer] * 3
    assert rows[2].place == "owner/pairs (train_prefs), row 3"
    with pytest.raises(HarnessError, match="dataset owner/pairs, split test: it has no split"):
        list(hub_rows("owner/pairs", "", "test"))
    with pytest.raises(HarnessError, match="dataset owner/none, split train_prefs: "):
        list(hub_rows("owner/none", "", "train_prefs"))


def test_folders_that_datasets_saved_hold_their_rows_alone(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"chosen": text} for text in "abcd"])
    rows.select([2, 0]).save_to_disk(str(tmp_path / "one"))
    both = datasets.DatasetDict({"train": rows, "test": rows.select([3])})
    both.save_to_disk(str(tmp_path / "both"))

    def read(folder: str, split: str) -> str:
        return "".join(row.values["chosen"] for row in hub_rows(str(tmp_path / folder), "", split))

    assert (read("one", "train"), read("both", "train"), read("both", "test")) == (
        "ca",
        "abcd",
        "d",
    )
    with pytest.raises(HarnessError, match=r"it has no split 'test': .*its splits: train"):
        read("one", "test")


def planned(**changes: Any) -> Plan:
    given = {
        "data.source": "hub",
        "data.path": "owner/pairs",
        "data.heldout_split": "",
        "model.source": "owner/model",
        "ranker.model": "owner/ranker",
        "evaluation.benchmarks": ["heldout"],
    }
    study = load_study(ROOT / "ablations" / "own_data.yaml", given | changes)
    return plan_study(dataclasses.replace(study, cells=study.cells[:1]))


def node_of(plan: Plan, stage: str) -> Any:
    return next(node for node in plan.nodes.values() if node.stage == stage)


@pytest.mark.parametrize("stage", ["data.files", "base.checkpoint"])
def test_what_moved_on_the_hub_has_another_key(
    cache: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    found = {}
    for commit in (FIRST, SECOND):
        commit_of.cache_clear()
        monkeypatch.setattr(
            "huggingface_hub.HfApi.repo_info",
            lambda *_, _commit=commit, **__: SimpleNamespace(sha=_commit),
        )
        node = node_of(planned(), stage)
        assert node.settings.commit == node.defining["commit"] == commit
        found[commit] = node.key
    assert found[FIRST] != found[SECOND]


def test_a_folder_of_a_dataset_is_known_by_its_content(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    keys = []
    for text in ("one", "two"):
        folder.mkdir(exist_ok=True)
        (folder / "train.jsonl").write_text(text)
        keys.append(node_of(planned(**{"data.path": str(folder)}), "data.files").key)
    assert keys[0] != keys[1]
