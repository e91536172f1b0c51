"""A checkpoint as the hub's repository: a folder first, then real requests to a local server."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from analysis.load import load_study
from harness.cli import app
from harness.records import HarnessError
from tests import synthetic

CELL, REPO, TOKEN = "objective.alpha=1,seed=0", "ours/selm-1", "hf_neverShownAnywhere"
SPEC = synthetic.Synthetic(
    alphas=(0.0, 1.0), seeds=(0, 1), faults=False, weights=True, questions=4, instructions=6
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("push")
    folder, _ = synthetic.build(root, SPEC)
    manifest = folder / "manifest.json"
    told = json.loads(manifest.read_text())
    told["recipe"]["judge"]["base_url"] = "https://judge.internal/v1"
    manifest.write_text(json.dumps(told))
    return root


def push(root: Path, *arguments: str) -> Any:
    places = ["--results", str(root), "--store", str(root / "store")]
    return CliRunner().invoke(app, ["push", "synthetic", *arguments, *places])


def test_without_yes_a_folder_is_written_and_nothing_is_sent(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    told = push(root, f"{CELL}@1", REPO)
    assert told.exit_code == 0, told.output
    assert "Nothing was uploaded" in told.output
    folder = root / "synthetic" / "push" / "ours--selm-1"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"model.safetensors", "README.md", "study/settings.json"} < names
    assert "study/answers/alpaca_eval.json" in names
    assert not [name for name in names if name.endswith("record.json")]
    settings = json.loads((folder / "study" / "settings.json").read_text())
    assert settings["axes"] == {"objective.alpha": [0.0, 1.0]}
    assert "judge.internal" not in "".join(path.read_text() for path in folder.rglob("*.json"))


def test_the_card_holds_this_cells_scores_in_the_hubs_form(root: Path) -> None:
    assert push(root, f"{CELL}@2", REPO).exit_code == 0
    folder = root / "synthetic" / "push" / "ours--selm-1"
    read = huggingface_hub.ModelCard.load(folder / "README.md")
    assert read.data.model_name == f"synthetic, {CELL}, iteration 2"
    scores = {
        (one.dataset_type, one.metric_type): one.metric_value for one in read.data.eval_results
    }
    store = root / "store" / "objects"
    (key,) = re.findall(r"objects/../(\w+)/model", read.text)
    train = store / key[:2] / key / "model" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == train.read_bytes()
    data = load_study(root / "synthetic", root / "store")
    rows = data.rows(CELL, 2, "alpaca_eval", "win_rate")
    assert scores["alpaca_eval", "win_rate"] == pytest.approx(float(rows["value"].mean()))


@pytest.mark.parametrize(
    ("cell", "repo", "says"),
    [
        ("objective.alpha=1", REPO, "names 2 checkpoints; name one run"),
        (CELL, "no/such/name", "is no repository of the hub"),
        (f"{CELL}@9", REPO, "no iteration 9"),
    ],
)
def test_what_is_no_single_checkpoint_or_repository_is_refused(
    root: Path, cell: str, repo: str, says: str
) -> None:
    told = push(root, cell, repo).exception
    assert isinstance(told, HarnessError) and says in str(told)


def test_weights_that_are_gone_are_told(root: Path, tmp_path: Path) -> None:
    spec = synthetic.Synthetic(alphas=(0.0,), seeds=(0,), iterations=1, faults=False, answers=False)
    synthetic.build(tmp_path, spec)
    told = push(tmp_path, "objective.alpha=0,seed=0", REPO).exception
    assert "are not in the store" in str(told)


class Hub(BaseHTTPRequestHandler):
    """What a client asks of the hub to put small files into a repository."""

    received: dict[str, Any]
    refuses: bool

    def do_POST(self) -> None:
        body = self.body()
        self.received.setdefault("tokens", set()).add(self.headers["Authorization"])
        if self.refuses:
            return self.answer(403, {"error": "You are not in the organisation ours"})
        address = f"http://{self.headers['Host']}/{REPO}"
        if self.path == "/api/repos/create":
            self.received["repo"] = json.loads(body)
            return self.answer(200, {"url": address})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            asked = [one["path"] for one in json.loads(body)["files"]]
            told = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]
            return self.answer(200, {"files": told})
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.received["files"] = {one["path"]: base64.b64decode(one["content"]) for one in files}
        commit = {"commitUrl": f"{address}/commit/{'a' * 40}", "commitOid": "a" * 40}
        return self.answer(200, commit)

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, told: dict[str, Any]) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class One(Hub):
        received: dict[str, Any] = {}
        refuses = False

    server = ThreadingHTTPServer(("127.0.0.1", 0), One)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield One
    server.shutdown()
    server.server_close()


def test_with_yes_every_file_reaches_the_hub(root: Path, hub: type[Hub]) -> None:
    told = push(root, f"{CELL}@2", REPO, "--yes")
    assert told.exit_code == 0, told.exception
    assert f"{constants.ENDPOINT}/{REPO}/commit/" in told.output
    assert TOKEN not in told.output and hub.received["tokens"] == {f"Bearer {TOKEN}"}
    assert hub.received["repo"]["visibility"] == "private"
    folder = root / "synthetic" / "push" / "ours--selm-1"
    written = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert hub.received["files"] == written


def test_a_refusal_is_said_with_the_hubs_reason_and_no_token(root: Path, hub: type[Hub]) -> None:
    hub.refuses = True
    told = push(root, f"{CELL}@2", REPO, "--yes").exception
    assert isinstance(told, HarnessError)
    assert "403" in str(told) and TOKEN not in str(told)
