"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.engine.worker import prepare_environment

prepare_environment(hub=False)  # what a test computes itself equals what its workers compute


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public benchmark artefacts; tests that need it skip with the reason where it is
    absent.
    """
    folder = Path(
        os.environ.get(
            "SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"
        )
    )
    if not folder.is_dir():
        pytest.skip(f"no public benchmark artefacts at {folder}; set SHARED_DATA")
    return folder


ACADEMIC_FILES = {
    "gsm8k": "gsm8k_test.jsonl",
    "hellaswag": "hellaswag_rc_5shot.requests.jsonl.gz",
    "arc_challenge": "arc_challenge_test_rc_5shot.requests.jsonl.gz",
    "truthfulqa_mc2": "truthfulqa_mc_task.json",
    "eq_bench": "eq_bench_v2_questions_171.json",
    "openbookqa": "openbookqa_test_rc_5shot.requests.jsonl.gz",
}
"""Column of Table 2 → file below ``shared_data / "academic"``."""
