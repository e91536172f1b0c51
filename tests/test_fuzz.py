"""What people bring, changed at random, is read right or refused in one message that names the
place: never another exception, never a file left behind.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.data.files import file_rows
from harness.data.rows import Reader
from harness.model.checkpoint import check_checkpoint
from harness.records import HarnessError, Prompt
from harness.study.study import load_study
from tests import tiny
from tests.tree import ROOT


def fuzz(examples: int) -> settings:
    """So many examples, the same ones in every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def refusal(work: Callable[[], object], place: Path) -> str:
    """The message with which the work is refused, which names the place; empty: it was done."""
    try:
        work()
    except HarnessError as error:
        message = str(error)
    else:
        return ""
    assert str(place) in message
    assert "Traceback" not in message
    return message


TURN = {"role": "user", "content": "Name a fruit."}
FORMS: tuple[Mapping[str, Any], ...] = (
    {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Stone."},
    {
        "prompt": [TURN],
        "chosen": [{"role": "assistant", "content": "Apple."}],
        "rejected": [{"role": "assistant", "content": "Stone."}],
    },
    {
        "conversations": [{"from": "human", "value": "Name a fruit."}],
        "chosen": {"from": "gpt", "value": "Apple."},
        "rejected": {"from": "gpt", "value": "Stone."},
    },
    {"instruction": "Name", "input": "a fruit.", "history": [], "chosen": "A.", "rejected": "S."},
    {
        "chosen": "\n\nHuman: Name a fruit.\n\nAssistant: Apple.",
        "rejected": "\n\nHuman: Name a fruit.\n\nAssistant: Stone.",
    },
)
TEXT = st.text(max_size=12) | st.sampled_from(
    ["Apple.", "", " ", "\ud800", "\0", '[{"role": "u"}]']
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text"]), inner)
    ),
    max_leaves=6,
)
NAMES = ("prompt", "chosen", "rejected", "system", "history", "tools", "messages", "score_chosen")


@fuzz(300)
@given(
    form=st.sampled_from(FORMS),
    changes=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    gone=st.sets(st.sampled_from(NAMES), max_size=2),
)
def test_rows_of_changed_columns(
    tmp_path: Path, form: Mapping[str, Any], changes: Mapping[str, Any], gone: set[str]
) -> None:
    row = {name: value for name, value in (form | dict(changes)).items() if name not in gone}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(FORMS[0]) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    reader = Reader("data.files", "rows")
    prompts: list[Prompt] = []
    if refusal(lambda: prompts.extend(reader.prompts(file_rows(file))), file):
        return
    left = reader.rows.left_out()
    assert len(prompts) + sum(one.count for one in left) == 2
    assert all(place == f"{file}:2" for one in left for place in one.examples)
    for prompt in prompts:
        assert prompt.messages[-1]["role"] == "user"
        assert prompt.chosen.strip()
        assert prompt.rejected.strip()
        assert prompt.chosen != prompt.rejected


@fuzz(200)
@given(
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3
    )
)
def test_data_files_of_changed_bytes(tmp_path: Path, cuts: list[tuple[float, int, bytes]]) -> None:
    raw = "".join(json.dumps(form) + "\n" for form in FORMS).encode()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(_changed(raw, cuts))
    reader = Reader("data.files", "rows")
    prompts: list[Prompt] = []
    if not refusal(lambda: prompts.extend(reader.prompts(file_rows(file))), file):
        assert len(prompts) + sum(one.count for one in reader.rows.left_out()) == reader.rows.read


def _changed(raw: bytes, cuts: list[tuple[float, int, bytes]]) -> bytes:
    """``raw`` with some bytes taken out and others put in, at shares of its length."""
    for share, length, new in cuts:
        at = int(share * len(raw))
        raw = raw[:at] + new + raw[at + length :]
    return raw


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablations")
    shutil.copytree(ROOT / "ablations" / "recipes", folder / "recipes")
    return folder


@fuzz(150)
@given(
    cuts=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 4),
            st.sampled_from(
                [
                    *(b"", b"\t", b":", b"- ", b"&a", b"*a", b"{", b"[", b"!!bool ", b"1e-5"),
                    *(b"\xff", b"\n", b"#", b"''", b"no", b"010", b"!!python/object:os.system "),
                ]
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_studies_of_changed_text(studies: Path, cuts: list[tuple[float, int, bytes]]) -> None:
    file = studies / "study.yaml"
    text = "\n".join(
        line
        for line in (ROOT / "ablations" / "smoke.yaml").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    file.write_bytes(_changed(text.encode(), cuts))
    refusal(lambda: load_study(file), file)
    assert sorted(path.name for path in studies.iterdir()) == ["recipes", "study.yaml"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("model"), "llama", "llama3")


HEADERS = st.sampled_from(
    [
        lambda header, name: header.pop(name),
        lambda header, name: header.update({"_orig_mod." + name: header.pop(name)}),
        lambda header, name: header[name].update(dtype="F8_E4M3"),
        lambda header, name: header[name].update(dtype="Q9"),
        lambda header, name: header[name].update(shape=list(reversed(header[name]["shape"]))),
        lambda header, name: header[name].update(shape=[]),
        lambda header, name: header[name].update(shape=[-1]),
        lambda header, name: header[name].update(data_offsets=[0, 10**12]),
        lambda header, name: header[name].update(data_offsets=[0, 0]),
        lambda header, name: header.update({name: "text"}),
        lambda header, name: header.update({"__metadata__": {"format": "pt", "step": "3"}}),
    ]
)


@fuzz(60)
@given(change=HEADERS, place=st.integers(0, 100))
def test_weights_of_a_changed_header(
    tmp_path: Path, checkpoint: Path, change: Any, place: int
) -> None:
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    raw = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    names = sorted(name for name in header if name != "__metadata__")
    name = names[place % len(names)]
    before = json.dumps(header[name])
    change(header, name)
    same = name in header and json.dumps(header[name]) == before
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    said = refusal(lambda: check_checkpoint(folder, head="causal"), folder)
    assert said or same, f"{name} was changed and is taken"
