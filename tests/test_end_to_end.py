"""The whole chain on the smallest study: real training and benchmark libraries, a local judge."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.engine.store import Store
from tests.golden.refresh import NARROW, SMOKE, processor, score_hashes
from tests.processes import ROOT, Done, python, selm

STUDY = ROOT / "tests" / "e2e.yaml"


def at(folder: Path, *arguments: object, **options: Any) -> Done:
    return selm(*arguments, "--store", folder / "store", "--results", folder, **options)


def run(folder: Path, study: Path = STUDY, **options: Any) -> Done:
    return at(folder, "run", study, **options)


def numbers(folder: Path) -> dict[str, str]:
    """Hash of every score file by stage key, and of the data of every table and figure."""
    found = {}
    for path in sorted((folder / "store" / "objects").glob("*/*/scores.parquet")):
        found[path.parent.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((folder / "e2e" / "report").rglob("*.csv")):
        if "costs" not in path.name:
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study run by the pool, without interruption."""
    folder = tmp_path_factory.mktemp("pool")
    run(folder)
    return folder


@pytest.mark.slow
def test_another_judge_ends_in_one_table_of_both(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "judged")
    done = at(folder, "judge", STUDY, "--set", "judge.noise=0.6")
    assert "Arms against the baseline under two judges" in done.stdout
    (path,) = folder.glob("e2e-judged-by-*/report/tables/two_judges.csv")
    table = pd.read_csv(path)
    assert set(table["measure"]) == {"AlpacaEval LC", "AlpacaEval WR", "MT-Bench mean"}
    assert not table["first"].equals(table["second"])


def test_every_checkpoint_has_scores_of_every_benchmark(finished: Path) -> None:
    manifest = json.loads((finished / "e2e" / "manifest.json").read_text())
    store = Store(finished / "store")
    for each in manifest["runs"]:
        for iteration in each["iterations"]:
            for stage in ("judge.mt_bench", "judge.alpaca_eval", "academic", "heldout"):
                scores = pd.read_parquet(
                    store.folder(iteration["stages"][stage]) / "scores.parquet"
                )
                assert len(scores) > 0
                assert scores["value"].notna().sum() == (scores["status"] == "ok").sum()


def test_the_report_is_there_with_its_tables_and_figures(finished: Path) -> None:
    report = finished / "e2e" / "report"
    text = (report / "report.md").read_text()
    assert "α" in text
    assert list(report.rglob("*.tex"))
    assert list(report.rglob("*.pdf"))
    assert (report / "index.html").stat().st_size > 1000


def test_a_finished_study_runs_no_stage_again(finished: Path) -> None:
    before = numbers(finished)
    started = time.time()
    again = run(finished)
    assert "0 stages executed" in again.stdout.replace("\n", " ")
    assert time.time() - started < 60  # a guard; the figure on a quiet machine stands in the README
    assert numbers(finished) == before


def test_inline_and_pool_give_the_same_bytes_whatever_kernels_are_asked_for(
    finished: Path, tmp_path: Path
) -> None:
    at(tmp_path, "run", STUDY, "--executor", "inline", **NARROW)
    assert numbers(tmp_path) == numbers(finished)


def test_the_smoke_study_scores_as_on_every_such_processor() -> None:
    seen = json.loads(SMOKE.read_text())
    if processor() not in seen:
        pytest.skip(f"nobody has recorded the smoke study on {processor() or 'this machine'}")
    assert score_hashes(ROOT, NARROW) == seen[processor()]


WITHOUT_TRAINING = """
import sys
HEAVY = ("torch", "transformers", "trl", "accelerate", "datasets", "lm_eval", "alpaca_eval")
HEAVY += ("fastchat", "openai")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from harness.cli import main
main()
"""


def test_a_report_needs_no_training_package(finished: Path) -> None:
    where = ("--store", finished / "store", "--results", finished)
    done = python("-c", WITHOUT_TRAINING, "report", "e2e", *where)
    assert "report.md" in done.stdout


@pytest.mark.slow
def test_killed_at_five_moments_it_continues_to_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "harness.cli", "run", STUDY]
    command += ["--store", tmp_path / "store", "--results", tmp_path]
    for seconds in (4.0, 9.0, 12.0, 14.0, 17.0):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(tmp_path)
    assert numbers(tmp_path) == numbers(finished)
    assert Store(tmp_path / "store").verify() == []


def test_status_plan_and_show_speak_of_the_finished_study(finished: Path) -> None:
    assert "0 missing" in at(finished, "status", "e2e").stdout
    store = ("--store", finished / "store")
    planned = selm("plan", STUDY, *store).stdout
    assert "shared" in planned
    assert "with sharing" in planned
    key = Store(finished / "store").all_keys()[0]
    assert "settings" in selm("show", key, *store).stdout


def test_a_failing_stage_is_reported_and_the_others_go_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "store", tmp_path / "store")
    failing = tmp_path / "failing.yaml"
    text = STUDY.read_text().replace("../ablations", str(ROOT / "ablations"))
    wild = "{training.learning_rate: 1.0e+30, training.warmup_ratio: 0.0}"
    failing.write_text(f"{text}arms: [{{label: diverges, set: {wild}}}]\n")
    done = run(tmp_path, failing, status=1)
    assert "training diverged" in done.stderr.replace("\n", " ")
    report = (tmp_path / "e2e" / "report" / "report.md").read_text()
    assert "training diverged" in report
    failing.write_text(text)
    run(tmp_path, failing)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sedes: [1]", "did you mean 'seeds'?"),
        ("set: {objective.name: sellm}", "did you mean 'selm'?"),
        ("set: {objective.alpha: lots}", "objective.alpha"),
    ],
)
def test_a_bad_study_exits_with_2_and_writes_nothing(tmp_path: Path, text: str, words: str) -> None:
    bad = tmp_path / "bad.yaml"
    body = STUDY.read_text().replace("../ablations", str(ROOT / "ablations"))
    bad.write_text(
        (body.split("set:")[0] + "seeds: [0]\n" if text.startswith("set") else body) + text + "\n"
    )
    done = run(tmp_path, bad, status=2)
    assert words in done.stderr
    assert "bad.yaml" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
