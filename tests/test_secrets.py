"""The judge's key is in the environment and in the header of a call, and nowhere else: a canary is
looked for in everything that is written.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import evaluation_files
from tests.faulty_judge import FaultRates, serve
from tests.judged_world import ROOT, World, refusing

CANARY = "sk-canary-4f9a1d7c2b8e6035"
WRONG = "sk-canary-of-another-account-77"


def files_with(root: Path, *secrets: str) -> list[str]:
    """Files below ``root`` that hold one of the secrets."""
    return [
        str(path)
        for path in root.rglob("*")
        if path.is_file() and any(s.encode() in path.read_bytes() for s in secrets)
    ]


def test_a_key_is_nowhere_but_in_the_header(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whole runs through the executor: a server that demands the key and an answer that repeats it,
    a refused key, then the report.
    """
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    script = refusing(text=f"You sent {CANARY}. Rating: [[7]]")
    with (
        caplog.at_level(logging.DEBUG),
        serve(faults=FaultRates(api_key=CANARY), script=script) as server,
    ):
        world = World(tmp_path, server.base_url)
        key = world.judged(kind="openai", base_url=server.base_url, model="judge-a")
        assert world.run() == 0
        assert server.counters["calls"] == 8
        assert {row["value"] for row in world.rows(key).values()} == {7.0}
        monkeypatch.setenv("OPENAI_API_KEY", WRONG)
        world.judged(kind="openai", base_url=server.base_url, model="judge-b")
        assert world.run() == 1
    shown = capfd.readouterr()
    assert "invalid_api_key" in shown.err
    assert "[redacted]" in shown.err
    assert "HTTP 401" in world.report()
    for text in (shown.out, shown.err, caplog.text):
        assert CANARY not in text
        assert WRONG not in text
    assert files_with(tmp_path, CANARY, WRONG) == []


def watched(*arguments: object, key: str) -> tuple[int, str, set[str]]:
    """Run ``selm``: exit status, everything it printed, and the command lines of every process seen
    meanwhile.
    """
    command = [sys.executable, "-m", "harness.cli", *map(str, arguments)]
    lines: set[str] = set()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OPENAI_API_KEY": key},
    ) as process:
        while process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    lines.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue
            time.sleep(0.05)
        assert process.stdout is not None
        return process.returncode, process.stdout.read(), lines


@pytest.mark.slow
def test_run_and_judge_never_show_the_key(tmp_path: Path) -> None:
    settings = evaluation_files.write(tmp_path / "files") | {
        "model.source": tmp_path / "files" / "checkpoint",
        "evaluation.benchmarks": "[mt_bench, alpaca_eval]",
    }
    kept = {k: v for k, v in settings.items() if "academic" not in k}
    study = tmp_path / "study.yaml"
    with serve(faults=FaultRates(api_key=CANARY)) as server:
        study.write_text(
            f"name: secret\nrecipe: {ROOT / 'ablations' / 'recipes' / 'own_data.yaml'}\nseeds: "
            "[0]\nset:\n  loop.iterations: 0\n"
            f"  ranker: {{kind: oracle, model: ''}}\n  judge: {{kind: openai, base_url: "
            f"'{server.base_url}', model: judge-a}}\n"
            + "".join(f"  {k}: {v}\n" for k, v in kept.items())
        )
        where = ["--store", tmp_path / "store", "--results", tmp_path / "results", "--workers", 1]
        outcomes = [
            watched("run", study, *where, key=CANARY),
            watched("judge", study, *where, "--set", "judge.model=judge-b", key=CANARY),
            watched("judge", study, *where, "--set", "judge.model=judge-c", key=WRONG),
        ]
    assert [status for status, _, _ in outcomes] == [0, 0, 1], "\n".join(
        text[-1500:] for _, text, _ in outcomes
    )
    assert "invalid_api_key" in outcomes[2][1]
    for _, text, lines in outcomes:
        assert CANARY not in text
        assert WRONG not in text
        assert any("harness.cli" in line for line in lines)
        assert not any(CANARY in line or WRONG in line for line in lines)
    assert files_with(tmp_path, CANARY, WRONG) == []
