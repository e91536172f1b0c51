"""Files of rows: every kind gives the same rows, and a broken one is told by file and line."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.files import file_rows
from harness.data.rows import Reader
from harness.records import HarnessError

ROW = {"prompt": "Où est né Zoë?", "chosen": "À Nîmes 🙂.", "rejected": "Nulle part."}
ROWS = [{**ROW, "id": str(number)} for number in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in file_rows(path)]


FILES = {
    "lines.jsonl": LINES,
    "packed.jsonl.gz": gzip.compress(LINES.encode()),
    "packed-without-its-ending.jsonl": gzip.compress(LINES.encode()),
    "list.json": json.dumps(ROWS),
    "list-over-lines.json": json.dumps(ROWS, indent=1),
    "list-under-another-ending.jsonl": "\n" + json.dumps(ROWS, indent=1),
    "lines-under-another-ending.json": LINES,
    "windows.jsonl": LINES.replace("\n", "\r\n"),
    "mac.jsonl": LINES.replace("\n", "\r"),
    "blank-lines-and-none-at-the-end.jsonl": "\n" + LINES.replace("\n", "\n \n").strip(),
    "utf-8-mark.jsonl": codecs.BOM_UTF8 + LINES.encode(),
    "utf-8-mark.json": codecs.BOM_UTF8 + json.dumps(ROWS).encode(),
    "utf-16.jsonl": LINES.encode("utf-16"),
    "utf-16-be.jsonl": codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"),
    "utf-32.jsonl": LINES.encode("utf-32"),
    "escapes.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert values(write(tmp_path / name, FILES[name])) == ROWS


def test_a_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    row = {**ROW, "chosen": "one\u2028two\x85three\x0bfour"}
    path = write(
        tmp_path / "d.jsonl", json.dumps(row, ensure_ascii=False).replace("\x0b", "\\u000b")
    )
    assert values(path) == [row]


def test_parquet_rows_may_hold_lists_of_turns(tmp_path: Path) -> None:
    def turns(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]

    rows = [{"chosen": turns("a"), "rejected": turns("b"), "tools": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    (prompt,) = Reader("data.files", "rows").prompts(file_rows(tmp_path / "d.parquet"))
    assert prompt.messages == ({"role": "user", "content": "Q"},)
    assert (prompt.chosen, prompt.rejected) == ("a", "b")


def test_places_are_lines_or_rows(tmp_path: Path) -> None:
    lines = write(tmp_path / "d.jsonl", "\n" + LINES)
    assert [row.place for row in file_rows(lines)] == [f"{lines}:{number}" for number in (2, 3, 4)]
    listed = write(tmp_path / "d.json", json.dumps(ROWS))
    assert [row.place for row in file_rows(listed)][-1] == f"{listed}, row 3"


def bad_bytes(text: str, encoding: str) -> bytes:
    return (LINES + text).encode(encoding, "replace")


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "not-json.jsonl": (LINES + "{oops\n", r":4: not valid JSON \(.* at character 2\)"),
    "comma-after-a-row.jsonl": (LINES.replace("}\n", "},\n"), ":1: not valid JSON"),
    "comma-after-the-last.json": (json.dumps(ROWS, indent=1)[:-2] + ",\n]", ":20: not valid JSON"),
    "cut-off.json": (json.dumps(ROWS)[:-30], ":1: not valid JSON"),
    "one-object.json": (json.dumps({"train": ROWS}, indent=1), ":1: .*one object a line"),
    "lists.jsonl": ("[1, 2]\n", ", row 1: a row is an object .* this is a int"),
    "text.jsonl": (LINES + '"hello"\n', ":4: a row is an object .* this is a str"),
    "twice.jsonl": (
        LINES + '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}\n',
        ":4: key 'chosen' stands twice in one object",
    ),
    "twice-in-a-turn.json": (
        '[{"chosen": [{"role": "user", "role": "assistant", "content": "x"}]}]',
        ":1: key 'role' stands twice",
    ),
    "long-number.jsonl": (LINES + '{"id": ' + "7" * 5000 + "}\n", ":4: .*limit"),
    "deep.jsonl": ('{"a":' + "[" * 200_000 + "\n", ":1: .*recursion"),
    "latin-1.jsonl": (bad_bytes('{"a": "b"}', "latin-1"), r":1: byte 13 \(0xf9\) is no UTF-8"),
    "one-bad-byte.jsonl": (
        LINES.encode() + b'{"prompt": "\xff"}\n',
        rf":4: byte {len(LINES.encode()) + 12} \(0xff\) is no UTF-8; save the file as UTF-8",
    ),
    "bad-byte-after-a-mark.jsonl": (codecs.BOM_UTF8 + b'{"a": "\xff"}', r":1: byte 10 \(0xff\)"),
    "surrogate-in-utf-8.jsonl": (LINES.encode() + b'{"a": "\xed\xa0\xbd"}', ":4: byte .* no UTF-8"),
    "utf-16-without-mark.jsonl": (LINES.encode("utf-16-le"), ":1: byte 1 is 0: this is no UTF-8"),
    "utf-16-cut.jsonl": (LINES.encode("utf-16")[:-1], ": not utf-16.* after line 2"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode() * 900)[:-40], r": cannot be read after line \d+"),
    "flipped.jsonl.gz": (
        gzip.compress(LINES.encode())[:30] + b"\xff\xff" + gzip.compress(LINES.encode())[32:],
        ": cannot be read",
    ),
    "cut-after-a-bad-byte.jsonl.gz": (
        gzip.compress(LINES.encode() + b"\xff" + b"long " * 9000)[:-8],
        ": cannot be read after line",
    ),
    "text.parquet": ("hello", ": not a readable Parquet file"),
    "parquet.jsonl": (b"PAR1 and more", ": its content is Parquet"),
    "table.csv": ("prompt,chosen,rejected\na,b,c\n", ": unknown kind of data file.*pandas"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_by_place(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    with pytest.raises(HarnessError, match=f"{name}{message}") as told:
        values(write(tmp_path / name, content))
    assert len(str(told.value).splitlines()) == 1


def test_a_parquet_file_with_a_column_twice_or_cut_is_told(tmp_path: Path) -> None:
    column = pa.array(["a"] * 2000)
    pq.write_table(pa.table([column, column], names=["chosen", "chosen"]), tmp_path / "a.parquet")
    with pytest.raises(HarnessError, match="column 'chosen' stands twice"):
        values(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(HarnessError, match="not a readable Parquet file"):
        values(write(tmp_path / "b.parquet", whole[:-50]))


def test_missing_files_and_folders_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"none.jsonl does not exist; a data file is .jsonl"):
        values(tmp_path / "none.jsonl")
    with pytest.raises(HarnessError, match=r"a folder; one file is wanted"):
        values(tmp_path)
