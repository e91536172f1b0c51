"""A checkpoint as a repository of the Hugging Face hub: ``<study>/push/<owner--name>/`` holds the
model, its card as README.md, the study's settings and the checkpoint's answers.

Addresses of judges are left out; nothing here reaches the hub.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from analysis import cards
from analysis.compare import resolve
from analysis.load import StudyData
from analysis.report import settings
from harness.files import write_atomic
from harness.records import HarnessError


def write_repository(data: StudyData, cell: str, repo: str, study_dir: Path) -> Path:
    """Write the repository of one checkpoint anew; returns its folder.

    cell: a run's name, with ``@iteration`` behind it (without: its last). Raises HarnessError for a
    name that is no hub id or no single checkpoint, and where the weights are gone.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HarnessError(f"{repo!r} is no repository of the hub: {error}") from error
    item = kept_of(data, cell)
    folder = study_dir / "push" / repo.replace("/", "--")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(item.stage.folder / "model", folder)
    write_atomic(folder / "README.md", cards.card(data, item))
    told = json.dumps(without_addresses(settings(data)), indent=1, sort_keys=True)
    write_atomic(folder / "study" / "settings.json", told + "\n")
    answer = data.stage(item.run, item.iteration, "answer")
    if answer and answer.state == "done":
        ignored = shutil.ignore_patterns("record.json")
        shutil.copytree(answer.folder, folder / "study" / "answers", ignore=ignored)
    return folder


def kept_of(data: StudyData, cell: str) -> cards.Kept:
    """The one checkpoint with weights that a name stands for."""
    named = resolve(data, cell)
    names = {run.name for run in named.runs}
    there = cards.kept(data)
    found = [
        item for item in there if item.iteration == named.iteration and names & set(item.users)
    ]
    if len(found) == 1:
        (item,) = found
        return replace(item, run=next(run for run in named.runs if run.name in item.users))
    if found:
        raise HarnessError(
            f"{cell!r} names {len(found)} checkpoints; name one run: {', '.join(sorted(names))}"
        )
    known = ", ".join(f"{item.run.name}@{item.iteration}" for item in there) or "none"
    raise HarnessError(
        f"{cell!r}: the weights of {named.title} are not in the store (`keep` in the study's file "
        f"says which stay); those that are: {known}"
    )


def without_addresses(tree: Any) -> Any:
    """A tree of settings without its ``base_url`` entries."""
    if isinstance(tree, Mapping):
        kept = {name: value for name, value in tree.items() if name != "base_url"}
        return {name: without_addresses(value) for name, value in kept.items()}
    return [without_addresses(one) for one in tree] if isinstance(tree, list) else tree
