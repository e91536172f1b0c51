"""A study whose every answer is vLLM's: under the pool, with an engine killed on the way, and under
Ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engine.launch import prepare
from harness.engine.store import Store

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # two runs of up to 500 s

ROOT = Path(__file__).parents[2]
STUDY = """
name: engines
question: Does vLLM sample wherever a policy answers?
recipe: {root}/ablations/recipes/pocket.yaml
set:
  model.generation_backend: vllm
  runtime.vllm_memory_share: 0.1
  loop: {{iterations: {iterations}, prompts_per_iteration: 16}}
  pocket: {{steps: 25, rows: 800, heads: 2}}
  training: {{epochs: 1, batch_size: 16}}
  data: {{heldout: 8, ood: 4}}
  evaluation.benchmarks: [heldout]
  diagnostics: {{prompts: 8, enabled: {diagnostics}}}
axes:
  objective.alpha: [1]
seeds: [0]
baseline: {{objective.alpha: 1}}
"""


def study(folder: Path, iterations: int) -> Path:
    file = folder / f"engines{iterations}.yaml"
    diagnostics = str(iterations > 0).lower()
    told = STUDY.format(root=ROOT, iterations=iterations, diagnostics=diagnostics)
    file.write_text(told, encoding="utf-8")
    return file


def command(file: Path, *more: str) -> list[str]:
    place = ("--store", str(file.parent / "store"), "--results", str(file.parent))
    return [sys.executable, "-m", "harness.cli", "run", str(file), *place, *more]


def engines(folder: Path) -> Iterator[int]:
    """Processes of vLLM that sample from a checkpoint below ``folder``, by what they were told."""
    marker = f"SELM_TEST_FOLDER={folder}".encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"harness.model.vllm_engine" in words and marker in variables:
            yield int(process.name)


def states(file: Path) -> dict[str, str]:
    plan = prepare(file, {})
    found = Store(file.parent / "store").states(list(plan.nodes))
    return {plan.nodes[key].stage: state for key, state in found.items()}


def told(folder: Path) -> dict[str, str]:
    return os.environ | {"SELM_TEST_FOLDER": str(folder)}


def test_the_pool_samples_and_survives_a_killed_engine(tmp_path: Path) -> None:
    file = study(tmp_path, 1)
    options = {"cwd": ROOT, "env": told(tmp_path), "text": True}
    pool = command(file, "--executor", "pool", "--workers", "2")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(pool, **pipes, **options) as first:
        while not (found := list(engines(tmp_path))) and first.poll() is None:
            time.sleep(0.1)
        os.kill(found[0], signal.SIGKILL)
        said, _ = first.communicate(timeout=500)
    assert first.returncode == 1, said
    assert "killed by SIGKILL" in " ".join(said.split())
    assert not list(engines(tmp_path))

    again = subprocess.run(pool, capture_output=True, timeout=500, check=False, **options)
    assert again.returncode == 0, again.stdout + again.stderr
    assert set(states(file).values()) == {"done"}
    assert not list(engines(tmp_path))
    rows = (tmp_path / "store").glob("objects/*/*/responses.jsonl")
    assert sum(len(path.read_text().splitlines()) for path in rows) == 16


def test_ray_samples(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    file = study(tmp_path, 0)
    found = subprocess.run(
        command(file, "--executor", "ray", "--workers", "1"),
        cwd=ROOT,
        env=told(tmp_path),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert states(file)["answer"] == "done"
    assert not list(engines(tmp_path))
