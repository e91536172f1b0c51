"""What is installed runs by itself: no checkout, no file but those of the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.study import shipped
from tests.imports import ROOT

SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
SMALL = {
    "pocket.steps": 20,
    "pocket.rows": 400,
    "loop.prompts_per_iteration": 8,
    "evaluation.benchmarks": "[heldout]",
    "diagnostics.prompts": 2,
}


def ran(*command: str | Path, at: Path, path: Path | None = None) -> str:
    """Output of a command that knows no other code than that below ``path``."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env = {**kept, "PYTHONPATH": str(path)} if path else kept
    done = subprocess.run(command, cwd=at, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_study_runs_from_the_wheel_of_the_sdist_outside_a_checkout(tmp_path: Path) -> None:
    source, made, site, away = (tmp_path / name for name in ("source", "made", "site", "away"))
    made.mkdir()
    away.mkdir()
    unasked = shutil.ignore_patterns("__pycache__", ".*", "results", "build", "*.egg-info", "tests")
    shutil.copytree(ROOT, source, ignore=unasked)
    ran(sys.executable, "-c", SDIST, made, at=source)
    pip = (sys.executable, "-m", "pip", "--quiet")
    alone = ("--no-deps", "--no-index", "--no-build-isolation")
    ran(*pip, "wheel", *alone, "-w", made, *made.glob("*.tar.gz"), at=made)
    ran(*pip, "install", *alone, "--target", site, *made.glob("*.whl"), at=made)
    selm = (sys.executable, site / "bin" / "selm")
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    told = ran(*selm, "run", "smoke", *sets, "--executor", "inline", at=away, path=site)
    assert "selm run smoke " in told, "what to type next names the study as it was named"
    page = (away / "results" / "smoke" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Does every stage run?" in page
    ran(*selm, "init", at=away, path=site)
    for folder in ("recipes", "presets", "judges", "real"):
        files = {one.name for one in (shipped.FOLDER / folder).iterdir()} - {"README.md"}
        assert {one.name for one in (away / "ablations" / folder).iterdir()} == files
    plan = ran(*selm, "plan", "ablations/smoke.yaml", at=away, path=site)
    assert "smoke" in plan
