"""Bad input is told by ``selm run`` before any compute is spent: a clear message, and no stage that
uses a model or a judge has started.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli import app, main
from harness.cli.options import worker_count
from harness.cli.run import run_plan
from harness.engine.execute import CHECKS, Inline, execute
from harness.engine.launch import Watcher, check_memory, device_memory, devices, prepare
from harness.engine.store import Store
from harness.engine.worker import Result
from harness.records import HarnessError, read_jsonl, write_jsonl
from tests import tiny
from tests.study.test_recipes import RECIPES
from tests.tasks import commit_finished

STUDY = """
name: bad
recipe: {recipe}
seeds: [0]
set:
  model: {{source: CHECKPOINT}}
  data: {{source: files, path: {folder}/pairs.jsonl, heldout: 4, ood: 0, prompts: 0}}
  loop: {{iterations: 1}}
  ranker: {{kind: reward_model, model: {folder}/ranker}}
  evaluation: {{benchmarks: [heldout]}}
  diagnostics: {{enabled: false}}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of own data whose policy is called CHECKPOINT; sound but for what a test breaks."""
    tiny.checkpoint(tmp_path / "policy")
    tiny.checkpoint(tmp_path / "ranker")
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"Say {i}.", "chosen": f"{i}", "rejected": "no"} for i in range(12)],
    )
    path = tmp_path / "bad.yaml"
    path.write_text(
        STUDY.format(recipe=RECIPES / "pocket.yaml", folder=tmp_path).replace(
            "CHECKPOINT", str(tmp_path / "policy")
        )
    )
    return path


def told(
    study: Path, capsys: pytest.CaptureFixture[str], changes: Mapping[str, Any] | None = None
) -> str:
    """What the command says, one way or the other; no stage but the checking ones has a trace in
    the store.
    """
    folder, planned = study.parent, True
    try:
        status = run_plan(
            prepare(study, changes or {}),
            folder / "store",
            folder / "results",
            executor="inline",
            workers=1,
            report=False,
        )
        assert status == 1
        output = " ".join("".join(capsys.readouterr()).split())
    except HarnessError as error:
        output, planned = str(error), False
    store = Store(folder / "store")
    started = {store.record(key).stage for key in store.all_keys()}
    failed = {
        json.loads(path.read_text())["stage"]
        for path in (folder / "store" / "failed").rglob("*.json")
    }
    assert bool(failed) == planned
    assert started | failed <= set(CHECKS)
    return output


def pickled(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    torch.save(
        load_file(folder / "policy" / "model.safetensors"), folder / "policy" / "pytorch_model.bin"
    )
    (folder / "policy" / "model.safetensors").unlink()
    return {}


def own_code(folder: Path) -> dict[str, Any]:
    file = folder / "policy" / "config.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {"model_type": "made_up", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
        )
    )
    return {}


CASES: dict[str, tuple[Callable[[Path], dict[str, Any]], tuple[str, ...]]] = {
    "missing folder": (
        lambda folder: {"model.source": str(folder / "nothing")},
        ("nothing: no such file or folder",),
    ),
    "no checkpoint in the folder": (
        lambda folder: {"model.source": str(folder)},
        ("no checkpoint (no config.json)",),
    ),
    "pickle-only weights": (
        pickled,
        (
            "pickle files (pytorch_model.bin)",
            "Convert them to safetensors",
            "model.pickle_weights:",
        ),
    ),
    "trust_remote_code needed": (
        own_code,
        ("needs code from the repository itself", "model.trust_remote_code:"),
    ),
    "missing data file": (
        lambda folder: {"data.path": str(folder / "none.jsonl")},
        ("none.jsonl: no such file or folder",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_before_anything_computes(
    case: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, texts = CASES[case]
    output = told(study, capsys, spoil(study.parent))
    for text in texts:
        assert " ".join(text.split()) in output, output


def hub_error(kind: str) -> Exception:
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(
        403, request=httpx.Request("GET", "https://huggingface.co/owner/name")
    )
    if kind == "LocalEntryNotFoundError":
        return errors.LocalEntryNotFoundError("no route to the hub")
    found: Exception = getattr(errors, kind)("refused", response=response)
    return found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "GatedRepoError",
            "gated on the hub; accept its terms on its page and log in with `hf auth login`",
        ),
        ("RepositoryNotFoundError", "no such model on the hub, or it is private"),
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
    ],
)
@pytest.mark.parametrize("role", ["model.source", "ranker.model"])
def test_hub_models_that_cannot_be_had(
    role: str,
    kind: str,
    text: str,
    study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A ranker is needed long after the first rollout; it is missed before it all the same."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert text in told(study, capsys, {role: "owner/name"})


# -- a GPU too small -------------------------------------------------------------------------------


def test_a_gpu_that_cannot_hold_the_model_is_refused_by_how_much(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.242 B parameters: 16 bytes each for weights, gradients and two moments are 115.9 GB."""
    plan = prepare(
        study, {"model.source": "HuggingFaceH4/mistral-7b-sft-beta", "model.dtype": "bfloat16"}
    )
    with pytest.raises(
        HarnessError,
        match=r"does not fit: 115\.9 GB before the first row, 80\.0 GB on a device, "
        r"35\.9 GB short .*Set training\.lora",
    ) as raised:
        check_memory(plan, [80e9, 141e9])
    assert "7.24 B × 4 bytes = 29.0 GB" in str(raised.value)
    check_memory(plan, [400e9])
    check_memory(plan, [])
    check_memory(
        prepare(
            study, {"model.source": "HuggingFaceH4/mistral-7b-sft-beta", "runtime.memory": "off"}
        ),
        [1e9],
    )
    sharded = {
        "model.source": "HuggingFaceH4/mistral-7b-sft-beta",
        "runtime.processes": 8,
        "runtime.sharding": "fsdp",
        "model.dtype": "bfloat16",
        "training.gradient_checkpointing": True,
    }
    check_memory(prepare(study, sharded), [80e9] * 8)


def test_the_run_asks_the_driver_first(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.engine.launch.device_memory", lambda: [1e6])
    changes = {"model.source": "HuggingFaceH4/mistral-7b-sft-beta"}
    assert "on a device" in told(study, capsys, changes)


def test_the_drivers_answer_is_read_in_mebibytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *=index*) echo 0; echo 1; exit 0;; esac\n'
        '[ "$1" = -i ] && [ "$2" != 0,1 ] && exit 6\necho 81559\necho 24576\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_memory() == [81559 * 2**20, 24576 * 2**20]
    for visible, count in (("0,1", 2), ("MIG-1", 0), ("", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert len(device_memory()) == count
    for visible, seen in (("NoDevFiles", []), ("1, 0", ["1", "0"]), ("2,-1,0", ["2"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert devices() == seen, visible
    monkeypatch.setenv("PATH", "/nowhere")
    assert device_memory() == []


# -- the order -------------------------------------------------------------------------------------


class Quick(Inline):
    """An executor whose stages do nothing but finish."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.order: list[str] = []

    def collect(self, timeout: float) -> list[Result]:
        done = [node for node, _ in self._waiting]
        self._waiting.clear()
        for node in done:
            commit_finished(self.store, node, 1.0)
            self.order.append(node.stage)
        return [Result(node.key, "done", 1.0, "", {"seconds": 1.0}) for node in done]


def test_the_checks_go_first_and_every_stage_is_counted_once(study: Path) -> None:
    plan, store = prepare(study, {}), Store(study.parent / "store")
    store.open()
    quick = Quick(store)
    found = execute(plan, store, quick, lambda _node, _result: None, ())
    checks = [node.stage for node in plan.nodes.values() if node.stage in CHECKS]
    assert len(checks) == 4
    assert sorted(quick.order[:4]) == sorted(checks)
    assert (found.executed, found.reused, found.seconds, found.blocked) == (
        len(plan.nodes),
        0,
        float(len(plan.nodes)),
        [],
    )
    again = execute(plan, store, quick, lambda _node, _result: None, ())
    assert (again.executed, again.reused) == (0, len(plan.nodes))


# -- what was declared, and where it runs ----------------------------------------------------------
@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ("{primary: {benchmark: alpaca_evl}}", "declare.primary: nothing measures alpaca_evl"),
        (
            "{family: [{benchmark: heldout, metric: reward}, {benchmark: heldout, metric: rwd}]}",
            "declare.family.1: nothing measures heldout/rwd (did you mean 'heldout/reward'?)",
        ),
        ("{trend: {metric: unseen}}", "declare.trend: nothing measures diagnostics/unseen"),
    ],
)
def test_a_declared_outcome_that_nothing_measures_is_told_before_the_run(
    tmp_path: Path, declared: str, says: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"name: s\nrecipe: pocket\nseeds: [0]\ndeclare: {declared}\n")
    with pytest.raises(HarnessError) as raised:
        prepare(path, {})
    assert says in str(raised.value)


def test_there_is_a_worker_for_each_core_that_this_process_may_use() -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert worker_count(0) == 1 and worker_count(3) == 3
    finally:
        os.sched_setaffinity(0, mine)


def test_a_terminal_without_unicode_and_a_manifest_that_was_cut_off_are_no_crash(
    tmp_path: Path,
) -> None:
    def selm(*given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness.cli", *given, "--store", str(tmp_path / "store")]
        ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
        return subprocess.run(command, capture_output=True, text=True, env=ascii_only, check=False)

    shown = selm("plan", "smoke")
    assert shown.returncode == 0 and "(2 arms ? 1 seeds)" in shown.stdout
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "manifest.json").write_text('{"stages": {')
    cut = selm("status", "smoke", "--results", str(tmp_path))
    assert cut.returncode == 2 and "manifest.json: cannot be read" in cut.stderr
    assert "`selm run` of the study writes it again" in cut.stderr


def test_ctrl_c_says_how_to_go_on_and_a_file_that_cannot_be_had_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "file").touch()
    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="130"):
        patched.setattr("harness.engine.launch.prepare", stopped)
        patched.setattr(sys, "argv", ["selm", "plan", "smoke"])
        main()
    assert "selm: stopped; run the same command again to continue" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["selm", "init", str(tmp_path / "file" / "below")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.fullmatch(r"selm: .*/file/below\S*: Not a directory\n", capsys.readouterr().err)


def test_what_a_watch_remembers_may_be_cut_off(tmp_path: Path) -> None:
    (tmp_path / "watched.json").write_text('[{"checkp')
    with pytest.raises(HarnessError, match=r"watched\.json: cannot be read .*; delete it"):
        Watcher(tmp_path, tmp_path / "watched.json")


def test_rows_may_begin_with_a_mark_of_utf8_and_another_encoding_is_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": "\xc3\xa9"}\n')
    assert list(read_jsonl(file)) == [{"a": 1}, {"a": "é"}]
    file.write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(HarnessError, match=r"rows\.jsonl: after line 0: not UTF-8"):
        list(read_jsonl(file))


def test_every_option_that_an_error_names_is_one() -> None:
    group: Any = typer.main.get_command(app)
    options = {
        name
        for command in group.commands.values()
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }
    named: dict[str, str] = {}
    for file in (
        path
        for room in ("harness", "analysis")
        for path in (Path(__file__).parents[1] / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                said = re.findall(r"(?<![\w-])--[a-z][a-z-]+", ast.unparse(node.exc))
                named |= dict.fromkeys(said, str(file))
    assert "--store" in named
    options |= {"--project", "--return-tokens-as-token-ids"}  # trackio's and vLLM's
    assert {name: file for name, file in named.items() if name not in options} == {}
