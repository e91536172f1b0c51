"""The averaged reference: parameter by parameter, in the policy's own folder form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.model.policy import load_policy
from harness.stages.reference import average
from tests import tiny
from tests.tasks import stage_task


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_are_averaged_and_the_folder_is_a_policy(tmp_path: Path, dtype: str) -> None:
    folders = {}
    for name, scale in {"average": 0.1, "policy": 0.3}.items():
        folders[name] = tiny.checkpoint(tmp_path / name / "model", initializer_range=scale).parent
    # A first policy that lies elsewhere, as a hub's or a user's does.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    told = {"path": str(folders["average"] / "model"), "source": "given"}
    (elsewhere / "location.json").write_text(json.dumps(told))
    folders["average"] = elsewhere
    out = tmp_path / "out"
    out.mkdir()
    average(stage_task("k", "average", {"decay": 0.75, "dtype": dtype}, folders, out))
    old, new, mixed = (
        dict(load_policy(folder).model.named_parameters())
        for folder in (folders["average"], folders["policy"], out)
    )
    assert any(not torch.equal(old[name], new[name]) for name in old)
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * old[name] + 0.25 * new[name])
