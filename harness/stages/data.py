"""Preference data from local files or the hub → prompts with their offline pair. Stage
``data.files``.

Rows have ``chosen`` and ``rejected``, and mostly ``prompt``. Each may be plain text, a list of chat
turns, or a transcript "\\n\\nHuman: … \\n\\nAssistant: …" (Anthropic HH); without ``prompt`` it is
what chosen and rejected share before their last assistant turn. A row in none of these forms is an
error with file, line and column; a row that is no pair (identical answers, an empty answer,
different prompts) is left out and counted.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.records import (
    HarnessError,
    Prompt,
    StageOutcome,
    StageTask,
    Tally,
    content_hash,
    write_jsonl,
)
from harness.study.tasks import FileDataTask

Messages = tuple[Mapping[str, str], ...]
_HH_TURN = re.compile(r"\n\n(Human|Assistant):[ \t]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class _NotAPair(Exception):
    """A well-formed row that gives no preference pair; the text is the reason that is counted."""


@dataclass(frozen=True)
class Row:
    """One row of the data and where it stands, for messages."""

    values: Mapping[str, Any]
    place: str


def run(task: StageTask[FileDataTask]) -> StageOutcome:
    """Write ``train.jsonl``, ``heldout.jsonl`` (records.Prompt) and an empty ``ood.jsonl``.

    Held-out prompts: drawn from ``heldout_path`` (or the hub's held-out split); without one, the
    last ``heldout`` usable rows of ``path``. Training prompts: all the others, or ``prompts`` of
    them drawn by ``seed``, in the order of the file. A prompt that is held out is never trained on;
    ``ranker_pairs`` rows are set aside for a reward model in ``ranker.jsonl``. Fewer rows than
    asked for is an error.
    """
    settings = task.settings
    if settings.ood:
        raise HarnessError(
            "data.ood asks for out-of-distribution prompts; only the pocket world has them: set "
            "it to 0"
        )
    train_rows, heldout_rows, where = _sources(settings)
    rows_left, heldout_left, repeated = (
        Tally(task.stage, what) for what in ("rows", "held-out rows", "training prompts")
    )
    train = prompts_of(train_rows, rows_left)
    wanted = settings.heldout
    if heldout_rows is None:
        if len(train) <= wanted:
            raise HarnessError(
                f"{where}: {len(train)} usable rows; data.heldout takes {wanted}, and none is "
                "left to train on"
            )
        train, heldout = train[:-wanted], train[-wanted:]
    else:
        heldout = prompts_of(heldout_rows, heldout_left)
        heldout = _drawn(heldout, wanted, settings, "heldout", where)
    kept_out = {content_hash(prompt.messages) for prompt in heldout}
    trainable = []
    for prompt in train:
        repeated.read += 1
        if content_hash(prompt.messages) in kept_out:
            repeated.leave_out("prompt is held out", prompt.id)
        else:
            trainable.append(prompt)
    aside = settings.ranker_pairs
    if aside:
        for_ranker = _drawn(trainable, aside, settings, "ranker_pairs", where)
        taken = {prompt.id for prompt in for_ranker}
        trainable = [prompt for prompt in trainable if prompt.id not in taken]
        write_jsonl(task.out / "ranker.jsonl", for_ranker)
    train = _drawn(trainable, settings.prompts, settings, "prompts", where)
    write_jsonl(task.out / "train.jsonl", train)
    write_jsonl(task.out / "heldout.jsonl", _unique(heldout, {prompt.id for prompt in train}))
    write_jsonl(task.out / "ood.jsonl", [])
    summary = {"train": len(train), "heldout": len(heldout)}
    left_out = [*rows_left.left_out(), *heldout_left.left_out(), *repeated.left_out()]
    return StageOutcome(len(train) + len(heldout), summary=summary, left_out=tuple(left_out))


def _drawn(
    prompts: list[Prompt], wanted: int, settings: FileDataTask, name: str, where: str
) -> list[Prompt]:
    """``wanted`` of the prompts (0: all), drawn by the data seed, in their own order."""
    if wanted > len(prompts):
        raise HarnessError(
            f"{where}: data.{name} asks for {wanted} prompts; there are {len(prompts)} usable "
            "ones. Ask for fewer or give more data"
        )
    if not prompts:
        raise HarnessError(f"{where}: no usable preference pair is left")
    if wanted in (0, len(prompts)):
        return prompts
    generator = np.random.default_rng(int(content_hash("data", name, settings.seed, length=16), 16))
    return [
        prompts[i] for i in sorted(generator.choice(len(prompts), wanted, replace=False).tolist())
    ]


def _sources(settings: FileDataTask) -> tuple[Iterable[Row], Iterable[Row] | None, str]:
    """Training rows, held-out rows (None: none of their own), and a name for messages."""
    path = settings.path
    if settings.source == "hub":
        train, heldout = (settings.train_split, settings.heldout_split)
        revision = settings.revision
        return (
            hub_rows(path, revision, train),
            hub_rows(path, revision, heldout) if heldout else None,
            path,
        )
    extra = settings.heldout_path
    return file_rows(Path(path)), file_rows(Path(extra)) if extra else None, path


def file_rows(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .jsonl.gz, .json (a list) or .parquet file."""
    if not path.is_file():
        raise HarnessError(
            f"{path}: no such data file; data.path takes a .jsonl, .jsonl.gz, .json or .parquet "
            "file"
        )
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        yield from _jsonl_rows(path)
    elif name.endswith(".json"):
        rows = _parse(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(rows, list):
            raise HarnessError(
                f"{path}: a .json data file holds a list of rows; this one holds a "
                f"{type(rows).__name__}"
            )
        yield from (_row(values, f"{path}, row {number}") for number, values in enumerate(rows, 1))
    else:
        raise HarnessError(
            f"{path}: unknown kind of data file; data.path takes .jsonl, .jsonl.gz, .json or "
            ".parquet"
        )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    open_text = gzip.open if path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with open_text(path, "rt", encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    yield _row(_parse(line, f"{path}:{number}"), f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read after line {number} ({error})") from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise HarnessError(
            f"{place}: not valid JSON ({error.msg} at character {error.colno})"
        ) from error


def _row(values: Any, place: str) -> Row:
    if not isinstance(values, Mapping):
        raise HarnessError(
            f"{place}: a row is an object with prompt, chosen and rejected; this is a "
            f"{type(values).__name__}"
        )
    return Row(values, place)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise HarnessError(f"{path}: not a readable Parquet file ({error})") from error
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for values in batch.to_pylist():
            number += 1
            yield Row(values, f"{path}, row {number}")


def hub_rows(name: str, revision: str, split: str) -> Iterator[Row]:
    """Rows of one split of a dataset of the Hugging Face hub (or of a folder that datasets can
    read).
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name, revision=revision or None, split=split)
    except (
        Exception
    ) as error:  # datasets raises many kinds: missing, gated, no network, no such split
        raise HarnessError(_hub_message(name, revision, split, error)) from error
    for number, values in enumerate(loaded, 1):
        yield Row(values, f"{name} ({split}), row {number}")


def _hub_message(name: str, revision: str, split: str, error: Exception) -> str:
    """What to do about a failed load_dataset, by what went wrong."""
    kind, text = type(error).__name__, (str(error).strip().splitlines() or [""])[0][:300]
    at = f" at revision {revision}" if revision else ""
    if (
        isinstance(error, ConnectionError)
        or "Offline" in kind
        or "Connect" in kind
        or "couldn't reach" in text.lower()
    ):
        advice = (
            "no network or no access to huggingface.co: download it where there is one "
            "(its cache is reused), or set data.source: files"
        )
    elif "gated" in text.lower() or "Gated" in kind:
        advice = "it is gated: accept its terms on its page and log in with `hf auth login`"
    elif "split" in text.lower():
        advice = f"it has no split {split!r}: set data.train_split and data.heldout_split"
    else:
        advice = "check data.path, data.revision and your access"
    return f"dataset {name}{at}, split {split}: {advice} ({kind}: {text})"


# One row → one prompt
# ---------------------------------------------------------------------------------------


def prompts_of(rows: Iterable[Row], tally: Tally) -> list[Prompt]:
    """Prompts with unique ids; rows that are no pair are told to ``tally``."""
    prompts = []
    for row in rows:
        tally.read += 1
        try:
            prompts.append(prompt_of(row))
        except _NotAPair as reason:
            tally.leave_out(str(reason), row.place)
    return _unique(prompts, set())


def _unique(prompts: Sequence[Prompt], taken: set[str]) -> list[Prompt]:
    """A repeated id gets ``#2``, ``#3``, … after it."""
    seen: Counter[str] = Counter()
    result = []
    for prompt in prompts:
        name = prompt.id
        while name in taken or seen[name]:
            seen[prompt.id] += 1
            name = f"{prompt.id}#{seen[prompt.id]}"
        seen[name] += 1
        result.append(replace(prompt, id=name))
    return result


def prompt_of(row: Row) -> Prompt:
    """The row as a Prompt; HarnessError for a wrong form, _NotAPair for a row without a usable
    pair.
    """
    for column in ("chosen", "rejected"):
        if column not in row.values:
            raise HarnessError(
                f"{row.place}: no column {column!r}; a row has prompt, chosen and rejected, this "
                f"one has: {', '.join(row.values) or 'nothing'}"
            )
    given = _turns(row, "prompt") if row.values.get("prompt") not in (None, "", []) else None
    before_chosen, chosen = _answer(row, "chosen", given)
    before_rejected, rejected = _answer(row, "rejected", given)
    if before_chosen != before_rejected:
        raise _NotAPair("prompts differ")
    messages = before_chosen
    if not messages or messages[-1]["role"] != "user":
        raise _NotAPair("no user turn before the answer")
    if any(not m["content"].strip() for m in messages):
        raise _NotAPair("empty turn in the prompt")
    if not chosen.strip() or not rejected.strip():
        raise _NotAPair("empty answer")
    if chosen.strip() == rejected.strip():
        raise _NotAPair("identical answers")
    named = next(
        (
            str(row.values[name])
            for name in ("prompt_id", "id")
            if row.values.get(name) not in (None, "")
        ),
        "",
    )
    return Prompt(
        named or content_hash(messages, length=16),
        messages,
        chosen,
        rejected,
        str(row.values.get("category") or ""),
    )


def _turns(row: Row, column: str) -> Messages:
    """A column as chat turns: a list of them, a transcript, or plain text (one user turn)."""
    value = row.values[column]
    if isinstance(value, str):
        return transcript(value) or ({"role": "user", "content": value},)
    if isinstance(value, Sequence):
        return tuple(_turn(row, column, place, turn) for place, turn in enumerate(value))
    raise HarnessError(
        f"{row.place}, column {column}: text or a list of turns is wanted, this is a "
        f"{type(value).__name__}"
    )


def _turn(row: Row, column: str, place: int, turn: Any) -> Mapping[str, str]:
    if (
        not isinstance(turn, Mapping)
        or not isinstance(turn.get("role"), str)
        or not isinstance(turn.get("content"), str)
    ):
        raise HarnessError(
            f"{row.place}, column {column}: turn {place + 1} is not {{role: text, content: "
            f"text}}: {str(turn)[:80]}"
        )
    if turn["role"] not in ("system", "user", "assistant"):
        raise HarnessError(
            f"{row.place}, column {column}: turn {place + 1} has role {turn['role']!r}; allowed: "
            "system, user, assistant"
        )
    return {"role": turn["role"], "content": turn["content"]}


def _answer(row: Row, column: str, given: Messages | None) -> tuple[Messages, str]:
    """(prompt, final assistant text) of the chosen or rejected column."""
    value = row.values[column]
    if value is None:
        raise _NotAPair("empty answer")
    if isinstance(value, str) and not transcript(value):
        if given is None:
            raise HarnessError(
                f"{row.place}, column {column}: plain text needs a column prompt (or a transcript "
                "that starts with '\\n\\nHuman: ')"
            )
        return given, value
    turns = _turns(row, column)
    if not turns or turns[-1]["role"] != "assistant":
        raise _NotAPair("no assistant turn at the end")
    before, answer = turns[:-1], turns[-1]["content"]
    if not before:
        if given is None:
            raise HarnessError(
                f"{row.place}, column {column}: a lone assistant turn needs a column prompt"
            )
        return given, answer
    return before, answer


def transcript(text: str) -> Messages:
    """Turns of a transcript in Anthropic's form; empty when ``text`` is not one (it must start with
    a Human turn).
    """
    if not text.startswith("\n\nHuman:"):
        return ()
    parts = _HH_TURN.split(text)[1:]
    turns: list[dict[str, str]] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        turns.append({"role": _ROLES[speaker], "content": content.strip()})
    return tuple(turns)
