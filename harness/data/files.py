"""Rows of data files and of datasets of the Hugging Face hub, each with the place where it stands;
and the commit that a revision there stands for.

JSON (one object a line, or one list of them; plain or gzip) and Parquet. Text is UTF-8; a
byte-order mark says UTF-8, UTF-16 or UTF-32. Nothing is repaired: a byte, a key or a number that
could be read in two ways is an error with file and line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from harness.records import HarnessError, first_line

KINDS = ".jsonl, .json (either with .gz) or .parquet"
MARKS = {
    # UTF-32's little-endian mark begins with UTF-16's.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UTF_8 = "save the file as UTF-8 (from Latin-1: iconv -f LATIN1 -t UTF-8)"


@dataclass(frozen=True)
class Row:
    """One row of the data and where it stands, for messages."""

    values: Mapping[str, Any]
    place: str


def file_rows(path: Path, *, object_of_rows: bool = False) -> Iterator[Row]:
    """Rows of a data file; object_of_rows: one JSON object over several lines may be its only row,
    and its name may end in anything. Raises HarnessError naming file, line and what to do.
    """
    if path.is_dir():
        raise HarnessError(
            f"{path}: a folder; one file is wanted ({KINDS}), or the folder of a dataset with "
            "data.source: hub"
        )
    if not path.is_file():
        raise HarnessError(f"{path} does not exist; a data file is {KINDS}")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif object_of_rows or name.endswith((".jsonl", ".json")):
        yield from _json_rows(path, object_of_rows)
    else:
        raise HarnessError(
            f"{path}: unknown kind of data file; one is {KINDS} (pandas converts tables: "
            "to_json(orient='records', lines=True))"
        )


# -- JSON ------------------------------------------------------------------------------------------
def _json_rows(path: Path, object_of_rows: bool) -> Iterator[Row]:
    lines = _lines(path)
    for number, line in lines:
        text = line.strip()
        cut = text == "{" or (number == 1 and text[:1] == "{" and text[-1] != "}")
        if text.startswith("[") or (object_of_rows and cut):
            whole = _parsed(line + "".join(text for _, text in lines), path, number)
            for row, values in enumerate([whole] if isinstance(whole, dict) else whole, 1):
                yield _row(values, f"{path}, row {row}")
        elif text:
            yield _row(_parsed(line.rstrip(), path, number), f"{path}:{number}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, unpacked where it is gzip."""
    number = offset = 0
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            handle: Any = gzip.GzipFile(fileobj=file) if packed else file
            encoding = _encoding(path, handle.read(4))
            handle.seek(0)
            if encoding:
                with io.TextIOWrapper(handle, encoding) as wrapped:
                    for number, text in enumerate(wrapped, 1):
                        yield number, text
                return
            # Of bytes: text has further separators. A lone \r ends a line too.
            lines = (line for block in handle for line in block.splitlines(keepends=True))
            for number, line in enumerate(lines, 1):
                yield number, _text(line, f"{path}:{number}", offset)
                offset += len(line)
    except UnicodeDecodeError as error:
        why = f"not {error.encoding} after line {number} ({error.reason})"
        raise HarnessError(f"{path}: {why}; {UTF_8}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise HarnessError(f"{path}: cannot be read after line {number} ({error})") from error


def _encoding(path: Path, head: bytes) -> str:
    """What the file's first bytes say; empty: UTF-8, which is decoded a line at a time."""
    if head == b"PAR1":
        raise HarnessError(f"{path}: its content is Parquet; give it a name that ends in .parquet")
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), "")
    if not marked and b"\0" in head:
        raise HarnessError(
            f"{path}:1: byte {head.index(0)} is 0: this is no UTF-8 (UTF-16 without its byte-order "
            "mark?); save the file as UTF-8"
        )
    return marked


def _text(line: bytes, place: str, offset: int) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        at, byte = offset + error.start, error.object[error.start]
        raise HarnessError(f"{place}: byte {at} (0x{byte:02x}) is no UTF-8; {UTF_8}") from error
    return text if offset else text.removeprefix("\ufeff")


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise HarnessError(
            f"{path}:{line + error.lineno - 1}: not valid JSON ({error.msg} at character "
            f"{error.colno}); a data file holds one object a line, or one list of objects"
        ) from error
    except (ValueError, RecursionError) as error:  # a doubled key; numbers or nesting past limits
        raise HarnessError(f"{path}:{line}: {first_line(error)}") from error


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name!r} stands twice in one object; keep one of them")
        found[name] = value
    return found


def _row(values: Any, place: str) -> Row:
    if not isinstance(values, Mapping):
        raise HarnessError(
            f"{place}: a row is an object with its columns by name; this is a "
            f"{type(values).__name__}"
        )
    return Row(values, place)


# -- Parquet ---------------------------------------------------------------------------------------
def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(path)
        names = table.schema_arrow.names
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise HarnessError(f"{path}: column {doubled[0]!r} stands twice; keep one of them")
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"{path}, row {number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"{path}: not a readable Parquet file"
        raise HarnessError(f"{where} after row {number} ({first_line(error)})") from error


# -- the hub ---------------------------------------------------------------------------------------
SECONDS = 10.0
"""How long the hub is waited for when a study is planned."""


@cache
def commit_of(kind: Literal["dataset", "model"], name: str, revision: str) -> str:
    """The commit (40 hex digits) that ``revision`` (empty: the main branch) stands for: the hub's,
    or its cache's where the hub cannot be asked. Empty where neither knows: the stage that loads it
    says what to do. Asked once a process, so that a search does not change under way.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants

    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision or None, timeout=SECONDS)
        return found.sha or ""
    except Exception:  # noqa: BLE001 - no network, no such name, no access: many kinds
        folder = f"{kind}s--{name.replace('/', '--')}"
        ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / (revision or "main")
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""


def hub_rows(name: str, revision: str, split: str) -> Iterator[Row]:
    """Rows of a split of a hub dataset, or of a folder. Raises HarnessError: what to do."""
    try:
        loaded = _load(name, revision or None, split)
    except Exception as error:  # datasets raises many kinds
        at = f" at revision {revision}" if revision else ""
        why = f"{_advice(split, error)} ({type(error).__name__}: {first_line(error, 300)})"
        raise HarnessError(f"dataset {name}{at}, split {split}: {why}") from error
    for number, values in enumerate(loaded, 1):
        yield Row(values, f"{name} ({split}), row {number}")


def _load(name: str, revision: str | None, split: str) -> Any:
    """The split: of a folder that ``save_to_disk`` wrote, or of the hub (from its cache where it
    cannot be reached).
    """
    import datasets
    from huggingface_hub import snapshot_download

    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        saved = datasets.load_from_disk(name)
        splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if split not in splits:
            raise ValueError(f"its splits: {', '.join(splits)}")
        return splits[split]
    try:
        return datasets.load_dataset(name, revision=revision, split=split)
    except Exception as error:  # noqa: BLE001 - as above
        try:
            folder = snapshot_download(
                name, repo_type="dataset", revision=revision, local_files_only=True
            )
        except Exception:  # noqa: BLE001 - what counts is why the hub did not give it
            raise error from None
        return datasets.load_dataset(folder, split=split)


def _advice(split: str, error: Exception) -> str:
    """What to do about a failed load_dataset, by what went wrong."""
    kind, text = type(error).__name__, first_line(error, 300).lower()
    lost = "Offline" in kind or "Connect" in kind or "couldn't reach" in text
    if lost or isinstance(error, ConnectionError):
        return (
            "no network or no access to huggingface.co: download it where there is one "
            "(its cache is reused), or set data.source: files"
        )
    if "gated" in text or "Gated" in kind:
        return "it is gated: accept its terms on its page and log in with `hf auth login`"
    if "config name" in text:
        return "it has several parts: save the one you want as a file (data.source: files)"
    if "split" in text:
        return f"it has no split {split!r}: set data.train_split and data.heldout_split"
    return "check data.path, data.revision and your access"
