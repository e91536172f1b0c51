"""vLLM's own server as the judge of both benchmarks: a model of random weights has a verdict for
every item where it is held to one, and none where it is not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness.cli.run import run_plan
from harness.engine.launch import plan_study
from harness.engine.store import Store
from harness.records import write_jsonl
from harness.study.study import load_study
from tests import evaluation_files, tiny
from tests.vllm.test_engine import SHAPE

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
JUDGED = ("mt_bench", "alpaca_eval")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server that the documentation starts answers."""
    folder = tmp_path_factory.mktemp("judge")
    tiny.checkpoint(folder, max_position_embeddings=16384, **SHAPE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    options = "--served-model-name judge --generation-config vllm --enforce-eager"
    options += f" --no-enable-chunked-prefill --gpu-memory-utilization 0.1 --port {port}"
    with subprocess.Popen(
        [*server, *options.split(), "--dtype", "float32"],
        env=os.environ | ENVIRONMENT,
        start_new_session=True,
    ) as process:
        try:
            _wait(process, f"http://127.0.0.1:{port}/v1/models")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 400
    while True:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.5)


def judged(folder: Path, address: str, profiles: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Score rows by benchmark of answers that exist, judged at ``address``."""
    named = evaluation_files.write(folder / "files")
    written = json.loads((folder / "files" / "model_outputs.json").read_text())
    outputs = [{**row, "output": f"{row['output']}And more."} for row in written]
    (folder / "outputs.json").write_text(json.dumps(outputs))
    turns = [
        {"question_id": n, "model_id": "m", "choices": [{"index": 0, "turns": ["Yes.", "No."]}]}
        for n in (81, 101, 141)
    ]
    write_jsonl(folder / "turns.jsonl", turns)
    (folder / "t.yaml").write_text(
        "- {arm: a, step: 1, alpaca_eval: outputs.json, mt_bench: turns.jsonl}\n"
    )
    changes = {key: str(value) for key, value in named.items() if key.startswith("evaluation.")}
    changes = {key: value for key, value in changes.items() if key.split(".")[1] in JUDGED}
    for name, profile in profiles.items():
        changes[f"evaluation.{name}.judge"] = profile | {"base_url": address}
    asked = {
        "name": "judged",
        "recipe": str(ROOT / "ablations" / "recipes" / "own_data.yaml"),
        "given": "t.yaml",
        "set": {key: value for key, value in changes.items() if "max_new" not in key}
        | {"evaluation.benchmarks": list(JUDGED)},
    }
    (folder / "judged.yaml").write_text(yaml.safe_dump(asked))
    plan = plan_study(load_study(folder / "judged.yaml"))
    assert not run_plan(plan, folder / "store", folder, executor="inline", workers=1)
    stages, store = plan.runs[0].iterations[1], Store(folder / "store")
    found = {}
    for name in JUDGED:
        stage = store.folder(stages[f"judge.{name}"])
        found[name] = pd.read_parquet(stage / "scores.parquet")
        calls = json.loads((stage / "record.json").read_text())["costs"]["judge_calls"]
        found[name].attrs["calls"] = calls
    return found


def test_a_judge_that_is_held_to_a_verdict_gives_every_one(address: str, tmp_path: Path) -> None:
    """One call each; log-probabilities of two tokens, so that preferences are between 1 and 2."""
    profiles = {"mt_bench": "vllm-rating", "alpaca_eval": "vllm-choice"}
    given = {name: {"profile": one} for name, one in profiles.items()}
    found = judged(tmp_path, address, given)
    assert {name: rows.attrs["calls"] for name, rows in found.items()} == dict.fromkeys(JUDGED, 6)
    ratings = found["mt_bench"].query("metric == 'rating'")
    assert list(ratings["status"]) == ["ok"] * 6
    assert set(ratings["value"]) <= set(range(1, 11))
    preferences = found["alpaca_eval"].query("metric == 'win_rate'")
    assert list(preferences["status"]) == ["ok"] * 6
    assert preferences["value"].between(0, 100, inclusive="neither").all()


def test_random_weights_give_no_verdict_of_their_own(address: str, tmp_path: Path) -> None:
    """So it is the profile's choice that gives them above."""
    free = {"extra_body": {}, "max_tokens": 16}
    given = {
        "mt_bench": {"profile": "vllm-rating"} | free,
        "alpaca_eval": {"profile": "vllm-choice"} | free,
    }
    for rows in judged(tmp_path, address, given).values():
        assert set(rows["status"]) & {"unparsed", "truncated"}
