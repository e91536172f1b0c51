"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public benchmark artefacts; tests that need it skip with the reason where it is absent."""
    folder = Path(os.environ.get("SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public benchmark artefacts at {folder}; set SHARED_DATA")
    return folder
