"""The smoke study's scores are the same bytes whatever instruction set the machine asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.refresh import GOLDEN, processor, score_hashes
from tests.golden.versions import ROOT

OTHERS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}


def test_scores_are_the_committed_bytes_under_another_instruction_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accepted = json.loads(Path(GOLDEN, "smoke.json").read_text(encoding="utf-8"))
    if processor() not in accepted:
        pytest.skip(f"no scores were accepted on a processor of {processor() or 'this kind'}")
    for name, value in OTHERS.items():
        monkeypatch.setenv(name, value)
    assert score_hashes(ROOT) == accepted[processor()]
