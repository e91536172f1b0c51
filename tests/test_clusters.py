"""The cluster's own script, run here: what a scheduler takes away continues to the same scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.stages.train import JOURNAL
from tests.imports import ROOT

SCRIPT = ROOT / "clusters" / "study.sbatch"
LONG = {
    "pocket.steps": 20,
    "pocket.rows": 400,
    "loop.iterations": 1,
    "loop.prompts_per_iteration": 32,
    "training.epochs": 40,
    "training.batch_size": 8,
    "evaluation.benchmarks": ["heldout"],
    "diagnostics.prompts": 2,
}
"""A few seconds of everything but training."""


def job(tmp_path: Path, shared: str) -> subprocess.Popen[str]:
    """The job's script on this machine, where `selm` is this tree's and `scontrol` writes down what
    it is asked.
    """
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, line in (
        ("selm", f'exec {sys.executable} -m harness.cli "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/asked'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    study = tmp_path / "long.yaml"
    study.write_text(f"name: long\nrecipe: pocket\nset: {json.dumps(LONG)}\nseeds: [0]\n")
    told = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SELM_SHARED": str(tmp_path / shared),
        "SLURM_JOB_ID": "17",
    }
    command = ["bash", str(SCRIPT), str(study), "--workers", "1", "--no-report"]
    return subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **told}, stdout=subprocess.PIPE, text=True
    )


def files(folder: Path) -> Mapping[str, Any]:
    """Hashes of what every stage wrote, by its key."""
    records = folder.glob("store/objects/*/*/record.json")
    return {path.parent.name: json.loads(path.read_text())["files"] for path in records}


@pytest.mark.slow
def test_a_preempted_job_keeps_a_checkpoint_and_continues_to_the_same_bytes(tmp_path: Path) -> None:
    cut = job(tmp_path, "cut")
    work = tmp_path / "cut" / "store" / "work"
    while not list(work.glob("*/checkpoints")):
        assert cut.poll() is None, "it trained before it was looked at"
        time.sleep(0.05)
    time.sleep(1)
    for _ in range(2):  # schedulers send it more than once
        cut.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    said = cut.communicate()[0]
    assert cut.returncode == 130, said
    assert "the same command continues" in said
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    (journal,) = work.glob(f"*/{JOURNAL}")
    step = json.loads(journal.read_text())["step"]
    assert 0 < step < 160, "training had begun and was not at its end"
    unfinished = shutil.ignore_patterns("work", "partial", "locks")
    shutil.copytree(tmp_path / "cut" / "store", tmp_path / "whole" / "store", ignore=unfinished)
    for shared in ("cut", "whole"):
        again = job(tmp_path, shared)
        again.communicate()
        assert again.returncode == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert len(files(tmp_path / "cut")) > 5
