"""What of the preference data is held out, set aside, trained on and left out."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest

from harness.records import HarnessError, read_jsonl
from harness.stages import inputs as entrance
from tests import tiny
from tests.model.families import FAMILIES
from tests.tasks import stage_task


def _rows(count: int, offset: int = 0) -> list[dict]:
    return [
        {"prompt": f"Question {i + offset}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(count)
    ]


def _write(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return path


@functools.cache
def _base() -> Path:
    """A tokenizer of bytes and a few tokens of template."""
    folder = Path(tempfile.mkdtemp())
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text("{}")
    return folder


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
    inputs = settings.pop("inputs", None) or {"base": _base()}
    outcome = entrance.data(
        stage_task("k", "data.files", defaults | settings, inputs, tmp_path / out)
    )

    def read(name: str) -> list[str]:
        rows = read_jsonl(tmp_path / out / name)
        return [row["messages"][-1]["content"] for row in rows]

    return outcome, read("train.jsonl"), read("heldout.jsonl")


def test_the_last_rows_are_held_out(tmp_path):
    outcome, train, heldout = _run(tmp_path, _write(tmp_path / "d.jsonl", _rows(10)))
    assert train == [f"Question {i}" for i in range(7)]
    assert heldout == ["Question 7", "Question 8", "Question 9"]
    assert outcome.rows == 10
    assert (tmp_path / "out" / "ood.jsonl").read_text() == ""


def test_doubled_rows_are_counted(tmp_path):
    outcome, train, _ = _run(tmp_path, _write(tmp_path / "d.jsonl", _rows(2) * 2 + _rows(9)))
    assert len(train) == 10
    assert outcome.summary == {"read": 13, "train": 10, "heldout": 3, "doubled": 4}


def _phi(tmp_path: Path) -> dict[str, Path]:
    tiny.save(FAMILIES["phi-3-mini"].tokenizer(), tmp_path / "phi" / "model")
    return {"base": tmp_path / "phi"}


def test_rows_with_system_turns_are_joined_and_counted_or_refused_by_line(tmp_path):
    rows = [{"system": "Be brief", **row} for row in _rows(4)] + _rows(6)
    file, base = _write(tmp_path / "d.jsonl", rows), _phi(tmp_path)
    outcome, _, _ = _run(tmp_path, file, inputs=base)
    assert outcome.summary["system_turns_joined"] == 4
    with pytest.raises(HarnessError, match=r"d\.jsonl:1: a system turn.*d\.jsonl:3.*1 more rows"):
        _run(tmp_path, file, inputs=base, system_turns="refuse")
    kept, _, _ = _run(tmp_path, file, system_turns="refuse")  # Llama-3 has a place for them
    assert "system_turns_joined" not in kept.summary


@pytest.mark.parametrize("heldout", [False, True])
def test_rows_that_went_through_a_template_are_refused_by_line(tmp_path, heldout):
    sound = _write(tmp_path / "sound.jsonl", _rows(10))
    rows = _rows(9)
    rows[4]["rejected"] += "<|eot_id|>"
    bad = _write(tmp_path / "bad.jsonl", rows)
    files = {"path": sound, "heldout_path": str(bad)} if heldout else {"path": bad}
    with pytest.raises(HarnessError, match=r"bad\.jsonl:5: a text ends with '<\|eot_id\|>'"):
        _run(tmp_path, **files)


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


@pytest.mark.parametrize("change", [lambda q: f" {q} ", lambda q: q.replace(" ", "\n\t")])
def test_a_heldout_prompt_with_other_blanks_is_not_trained_on(tmp_path, change):
    rows = [{**row, "prompt": change(row["prompt"])} for row in _rows(5)]
    path = _write(tmp_path / "d.jsonl", rows)
    extra = _write(tmp_path / "h.jsonl", _rows(2, offset=3))
    _, train, _ = _run(tmp_path, path, heldout_path=str(extra), heldout=2)
    assert [text.split() for text in train] == [["Question", str(i)] for i in range(3)]


def test_a_heldout_prompt_in_another_form_of_unicode_is_not_trained_on(tmp_path):
    def row(prompt: str) -> dict:
        return {"prompt": prompt, "chosen": "good", "rejected": "bad"}

    path = _write(tmp_path / "d.jsonl", [row("Un cafe\u0301"), row("Cafe"), row("cafe")])
    extra = _write(tmp_path / "h.jsonl", [row("Un caf\u00e9")])
    _, train, heldout = _run(tmp_path, path, heldout_path=str(extra), heldout=1)
    assert (train, heldout) == (["Cafe", "cafe"], ["Un caf\u00e9"])


LONG = {"prompt": "why " * 60, "chosen": "good", "rejected": "bad", "id": "long"}


def test_heldout_prompts_are_ones_that_can_be_asked(tmp_path):
    """Two of the last five are too long: the rows before them fill the set, and they stay training
    rows, where the study's rule for such prompts meets them."""
    rows = [*_rows(6), LONG, LONG, *_rows(2, offset=6)]
    outcome, train, heldout = _run(
        tmp_path, _write(tmp_path / "d.jsonl", rows), heldout=3, max_prompt_length=120
    )
    assert heldout == ["Question 5", "Question 6", "Question 7"]
    assert train == [f"Question {i}" for i in range(5)] + [LONG["prompt"]] * 2
    (left,) = outcome.left_out
    assert (left.what, left.count, left.of, left.examples) == (
        "held-out prompts",
        2,
        5,
        (f"{tmp_path}/d.jsonl:8", f"{tmp_path}/d.jsonl:7"),
    )


def test_heldout_prompts_of_a_file_of_their_own_are_ones_that_can_be_asked(tmp_path):
    path = _write(tmp_path / "d.jsonl", _rows(5))
    extra = _write(tmp_path / "h.jsonl", [LONG, *_rows(4, offset=90)])
    asked = {"heldout_path": str(extra), "max_prompt_length": 120}
    outcome, _, heldout = _run(tmp_path, path, heldout=4, **asked)
    assert heldout == [f"Question {i}" for i in range(90, 94)]
    assert [(one.count, one.of, one.examples) for one in outcome.left_out] == [
        (1, 5, (f"{extra}:1",))
    ]
    with pytest.raises(HarnessError, match=r"data\.heldout asks for 5 prompts; there are 4 usable"):
        _run(tmp_path, path, heldout=5, **asked)


def test_more_left_out_than_the_study_allows_is_an_error(tmp_path):
    rows = [*_rows(4), *({**row, "chosen": " "} for row in _rows(6))]
    path = _write(tmp_path / "d.jsonl", rows)
    with pytest.raises(
        HarnessError,
        match=r"6 of 10 rows are left out, more than data.max_left_out = 0.5 allows: empty answer: "
        r"6 \(.*d\.jsonl:5, .*d\.jsonl:6, .*d\.jsonl:7\)",
    ):
        _run(tmp_path, path, heldout=1)
    outcome, train, _ = _run(tmp_path, path, heldout=1, max_left_out=0.6)
    assert len(train) == 3
    extra = {"heldout_path": str(_write(tmp_path / "h.jsonl", rows[4:])), "heldout": 1}
    with pytest.raises(HarnessError, match=r"h\.jsonl: 6 of 6 held-out rows are left out"):
        _run(tmp_path, _write(tmp_path / "e.jsonl", _rows(3)), **extra)
    assert [(one.reason, one.count, one.of) for one in outcome.left_out] == [
        ("empty answer", 6, 10)
    ]


def test_columns_are_named_by_the_study(tmp_path):
    rows = [{"ask": row["prompt"], "good": "a", "bad": "b"} for row in _rows(4)]
    names = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    _, train, _ = _run(tmp_path, _write(tmp_path / "d.jsonl", rows), columns=names, heldout=2)
    assert train == ["Question 0", "Question 1"]


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


def test_a_pair_held_aside_for_a_ranker_is_not_trained_on_where_it_stands_again(tmp_path):
    path = _write(tmp_path / "d.jsonl", _rows(6) * 2 + _rows(1, offset=50))
    outcome, train, _ = _run(tmp_path, path, ranker_pairs=2, heldout=1)
    aside = [row["messages"][-1]["content"] for row in read_jsonl(tmp_path / "out/ranker.jsonl")]
    assert len(set(aside)) == 2
    assert len(train) == 8
    assert not {*aside} & {*train}
    assert [(one.reason, one.count) for one in outcome.left_out] == [
        ("pair is set aside for the ranker", 2)
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 8}, r"data.prompts asks for 8 prompts; there are 7 usable ones"),
        ({"heldout": 10}, "10 usable rows, .* data.heldout takes 10, and none is left"),
        ({"ood": 4}, "only the pocket world has them"),
    ],
)
def test_fewer_rows_than_asked_is_an_error(tmp_path, settings, message):
    with pytest.raises(HarnessError, match=message):
        _run(tmp_path, _write(tmp_path / "d.jsonl", _rows(10)), **settings)


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
        tmp_path,
        shared_data / "preferences" / "hh_helpful_base_test.jsonl.gz",
        heldout=64,
        max_prompt_length=9999,
    )
    assert len(train) + len(heldout) + sum(one.count for one in outcome.left_out) == 2354
    assert len(train) > 2000
    assert all(text.strip() for text in train)
