"""Preference data in its common forms, held-out splits, limits, and what bad files are told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.records import HarnessError, Tally, read_jsonl
from harness.stages import data
from tests.tasks import stage_task

HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Name a colour\n\nAssistant: Blue.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Name a colour\n\nAssistant: No: "
    "never\n\nand that is it.",
}
ULTRA = {
    "prompt": "Name a colour",
    "prompt_id": "abc",
    "chosen": [
        {"role": "user", "content": "Name a colour"},
        {"role": "assistant", "content": "Blue."},
    ],
    "rejected": [
        {"role": "user", "content": "Name a colour"},
        {"role": "assistant", "content": "No."},
    ],
    "score_chosen": 8.0,
}
PLAIN = {"prompt": "Name a colour", "chosen": "Blue.", "rejected": "No."}
TURNS = {
    "prompt": [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Name a colour"},
    ],
    "chosen": [{"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}


def _prompt(row: dict):
    return data.prompt_of(data.Row(row, "f:1"))


def test_anthropic_transcripts():
    prompt = _prompt(HH)
    assert [(m["role"], m["content"]) for m in prompt.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Name a colour"),
    ]
    assert (prompt.chosen, prompt.rejected) == ("Blue.", "No: never\n\nand that is it.")


@pytest.mark.parametrize("row", [ULTRA, PLAIN, TURNS])
def test_messages_and_plain_text(row):
    prompt = _prompt(row)
    assert prompt.messages[-1] == {"role": "user", "content": "Name a colour"}
    assert (prompt.chosen, prompt.rejected) == ("Blue.", "No.")


def test_ids_come_from_the_data_or_the_content():
    assert _prompt(ULTRA).id == "abc"
    assert _prompt(PLAIN).id == _prompt({**PLAIN, "chosen": "Green."}).id
    assert _prompt(PLAIN).id != _prompt({**PLAIN, "prompt": "Name a tree"}).id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"f:1: no column 'rejected'.*prompt, chosen"),
        ({"chosen": "b", "rejected": "c"}, "f:1, column chosen: plain text needs a column prompt"),
        (
            {**PLAIN, "chosen": 7},
            "f:1, column chosen: text or a list of turns is wanted, this is a int",
        ),
        (
            {**TURNS, "chosen": [{"role": "bot", "content": "x"}]},
            "f:1, column chosen: turn 1 has role 'bot'; allowed: system, user, assistant",
        ),
        ({**TURNS, "prompt": ["hello"]}, "f:1, column prompt: turn 1 is not"),
        (
            {"chosen": [{"role": "assistant", "content": "x"}], "rejected": "y"},
            "column chosen: a lone assistant turn needs a column prompt",
        ),
    ],
)
def test_wrong_forms_name_place_and_column(row, message):
    with pytest.raises(HarnessError, match=message):
        _prompt(row)


def test_rows_that_are_no_pairs_are_counted():
    other = {**HH, "rejected": HH["rejected"].replace("Hi", "Hey")}
    rows = [
        HH,
        {**PLAIN, "rejected": "Blue. "},
        {**PLAIN, "chosen": " "},
        other,
        {**PLAIN, "rejected": None},
        {**HH, "chosen": "\n\nHuman: Hi"},
    ]
    tally = Tally("data.files", "rows")
    prompts = data.prompts_of((data.Row(row, f"f:{n}") for n, row in enumerate(rows, 1)), tally)
    assert len(prompts) == 1
    assert {one.reason: (one.count, one.of, one.examples) for one in tally.left_out()} == {
        "identical answers": (1, 6, ("f:2",)),
        "empty answer": (2, 6, ("f:3", "f:5")),
        "prompts differ": (1, 6, ("f:4",)),
        "no assistant turn at the end": (1, 6, ("f:6",)),
    }


def test_repeated_ids_are_told_apart():
    rows = [PLAIN, {**PLAIN, "chosen": "Green."}, {**PLAIN, "chosen": "Red."}]
    prompts = data.prompts_of((data.Row(row, "f") for row in rows), Tally("data.files", "rows"))
    first = prompts[0].id
    assert [p.id for p in prompts] == [first, f"{first}#2", f"{first}#3"]


def _rows(count: int, offset: int = 0) -> list[dict]:
    return [
        {"prompt": f"Question {i + offset}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(count)
    ]


def _write(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text(text)
    return path


def _run(tmp_path: Path, path: Path | str, out: str = "out", **settings):
    (tmp_path / out).mkdir(exist_ok=True)
    defaults = {
        "source": "files",
        "path": str(path),
        "heldout": 3,
        "prompts": 0,
        "seed": 0,
        "heldout_path": "",
        "ood": 0,
    }
    outcome = data.run(stage_task("k", "data.files", defaults | settings, {}, tmp_path / out))

    def read(name: str) -> list[str]:
        rows = read_jsonl(tmp_path / out / name)
        return [row["messages"][-1]["content"] for row in rows]

    return outcome, read("train.jsonl"), read("heldout.jsonl")


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.parquet"])
def test_every_kind_of_file_gives_the_same_prompts(tmp_path, name):
    outcome, train, heldout = _run(tmp_path, _write(tmp_path / name, _rows(10)))
    assert train == [f"Question {i}" for i in range(7)]
    assert heldout == ["Question 7", "Question 8", "Question 9"]
    assert outcome.rows == 10
    assert (tmp_path / "out" / "ood.jsonl").read_text() == ""


def test_parquet_with_lists_of_turns(tmp_path):
    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    rows = [
        {
            "prompt": f"Q{i}",
            "prompt_id": f"id{i}",
            "chosen": turns(f"Q{i}", "a"),
            "rejected": turns(f"Q{i}", "b"),
        }
        for i in range(3)
    ]
    _, train, heldout = _run(tmp_path, _write(tmp_path / "d.parquet", rows), heldout=1)
    assert (train, heldout) == (["Q0", "Q1"], ["Q2"])
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "train.jsonl")] == ["id0", "id1"]


def test_a_heldout_file_of_its_own(tmp_path):
    """Question 3 is in both: it is held out and not trained on."""
    path, extra = (
        _write(tmp_path / "d.jsonl", _rows(5)),
        _write(tmp_path / "h.jsonl", _rows(2, offset=3)),
    )
    outcome, train, heldout = _run(tmp_path, path, heldout_path=str(extra), heldout=2)
    assert train == ["Question 0", "Question 1", "Question 2"]
    assert heldout == ["Question 3", "Question 4"]
    (left,) = outcome.left_out
    assert (left.what, left.reason, left.count, left.of) == (
        "training prompts",
        "prompt is held out",
        2,
        5,
    )


def test_drawn_by_the_data_seed_in_the_files_order(tmp_path):
    path = _write(tmp_path / "d.jsonl", _rows(40))
    _, first, _ = _run(tmp_path, path, prompts=10)
    _, again, _ = _run(tmp_path, path, "b", prompts=10)
    _, other, _ = _run(tmp_path, path, "c", prompts=10, seed=1)
    numbers = [int(text.split()[1]) for text in first]
    assert first == again
    assert first != other
    assert len(first) == 10
    assert numbers == sorted(numbers)


def test_pairs_held_aside_for_a_ranker_are_not_trained_on(tmp_path):
    _, train, heldout = _run(tmp_path, _write(tmp_path / "d.jsonl", _rows(20)), ranker_pairs=5)
    aside = [
        row["messages"][-1]["content"] for row in read_jsonl(tmp_path / "out" / "ranker.jsonl")
    ]
    assert (len(train), len(heldout), len(aside)) == (12, 3, 5)
    assert len({*train, *heldout, *aside}) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 8}, r"data.prompts asks for 8 prompts; there are 7 usable ones"),
        ({"heldout": 10}, "10 usable rows; data.heldout takes 10, and none is left"),
        ({"ood": 4}, "only the pocket world has them"),
    ],
)
def test_fewer_rows_than_asked_is_an_error(tmp_path, settings, message):
    with pytest.raises(HarnessError, match=message):
        _run(tmp_path, _write(tmp_path / "d.jsonl", _rows(10)), **settings)


def test_bad_files_name_file_and_line(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(PLAIN) + "\n{oops\n")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(
        gzip.compress(("\n".join(json.dumps(row) for row in _rows(2000))).encode())[:-40]
    )
    not_parquet = tmp_path / "x.parquet"
    not_parquet.write_text("hello")
    listed = tmp_path / "list.jsonl"
    listed.write_text("[1, 2]\n")
    for path, message in [
        (broken, r"broken\.jsonl:2: not valid JSON \(.* at character 2\)"),
        (cut, r"cut\.jsonl\.gz: cannot be read after line \d+"),
        (not_parquet, r"x\.parquet: not a readable Parquet file"),
        (listed, r"list\.jsonl:1: a row is an object .* this is a list"),
        (tmp_path / "none.jsonl", r"none\.jsonl: no such data file"),
        (_write(tmp_path / "d.csv", _rows(2)), r"d\.csv: unknown kind of data file"),
    ]:
        with pytest.raises(HarnessError, match=message):
            _run(tmp_path, path)


def test_the_hub_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(
        HarnessError,
        match=r"dataset owner/name, split train_prefs: no network.*data\.source: files",
    ):
        _run(tmp_path, "owner/name", source="hub")


def test_a_missing_split_and_a_gated_dataset_say_what_to_do(tmp_path, monkeypatch):
    for error, message in [
        (ValueError('Unknown split "train_prefs"'), "no split 'train_prefs': set data.train_split"),
        (OSError("is a gated dataset"), "hf auth login"),
    ]:
        monkeypatch.setattr(
            "datasets.load_dataset", lambda *a, _error=error, **k: (_ for _ in ()).throw(_error)
        )
        with pytest.raises(HarnessError, match=message):
            _run(tmp_path, "owner/name", source="hub")


def test_hub_splits_are_train_and_heldout(tmp_path, monkeypatch):
    splits = {"train_prefs": _rows(6), "test_prefs": _rows(4, offset=100)}
    monkeypatch.setattr("datasets.load_dataset", lambda name, revision, split: splits[split])
    _, train, heldout = _run(tmp_path, "owner/name", source="hub", heldout=3)
    assert len(train) == 6
    assert len(heldout) == 3
    assert all(int(text.split()[1]) >= 100 for text in heldout)


def test_real_helpful_transcripts(tmp_path, shared_data):
    outcome, train, heldout = _run(
        tmp_path, shared_data / "preferences" / "hh_helpful_base_test.jsonl.gz", heldout=64
    )
    assert len(train) + len(heldout) + sum(one.count for one in outcome.left_out) == 2354
    assert len(train) > 2000
    assert all(text.strip() for text in train)
