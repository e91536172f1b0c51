"""What ``selm doctor`` finds, and what it finds in a file of preference rows, read as the data
stage reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.data.files import file_rows
from harness.data.rows import Reader
from harness.model.chat import check_rows
from harness.records import HarnessError, Pair, Prompt
from harness.study.sections import DataSettings
from harness.train.batching import encode_pair


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``note``: only worth knowing; ``WRONG``: a run would fail."""

    state: Literal["ok", "note", "WRONG"]
    what: str
    says: str


def ok(what: str, says: str) -> Finding:
    return Finding("ok", what, says)


def note(what: str, says: str) -> Finding:
    return Finding("note", what, says)


def wrong(what: str, says: str) -> Finding:
    return Finding("WRONG", what, says)


SHOWN = 3
"""Rows shown as tokens."""
ENDS = 24
"""Tokens shown at either end of a long text."""


def data(path: str, columns: Mapping[str, str], tokenizer: Any = None) -> Iterator[Finding]:
    """What of the file is read, what is left out and why; with a tokenizer, what its chat template
    does to the rows, and the first of them as tokens, those that are trained between « and ».
    columns: as of ``Reader``.
    """
    reader = Reader("data.files", "rows", columns)
    try:
        prompts = reader.prompts(file_rows(Path(path)))
    except HarnessError as error:
        yield wrong(path, str(error))
        return
    tally = reader.rows
    for one in reader.left_out():
        yield note(
            path,
            f"{one.count} of {one.of} {one.what} left out: {one.reason} "
            f"({', '.join(one.examples)})",
        )
    most = DataSettings().max_left_out
    dropped = tally.read - len(prompts)
    says = f"{len(prompts)} of {tally.read} rows are pairs"
    if not prompts or dropped > most * tally.read:
        yield wrong(path, f"{says}; data.max_left_out allows {most:g} to be left out")
        return
    yield ok(path, says)
    if tokenizer is not None:
        yield from _under_template(path, prompts, reader, tokenizer)


def _under_template(
    path: str, prompts: Sequence[Prompt], reader: Reader, tokenizer: Any
) -> Iterator[Finding]:
    rows = ((reader.places[one.id], one.messages, (one.chosen, one.rejected)) for one in prompts)
    try:
        counts = check_rows(tokenizer, rows)
    except HarnessError as error:
        yield wrong(path, str(error))
        return
    for name, count in counts.items():
        yield note(path, f"{name.replace('_', ' ')} in {count} rows")
    for prompt in prompts[:SHOWN]:
        pair = Pair(prompt.id, prompt.messages, prompt.chosen, prompt.rejected, "")
        row = encode_pair(tokenizer, pair)
        for role, ids in row.responses.items():
            says = f"{_tokens(tokenizer, row.prompt_ids)} «{_tokens(tokenizer, ids)}»"
            yield note(f"{reader.places[prompt.id]} {role}", says)


def _tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    """The tokens as the tokenizer writes them, the middle of a long text left out."""
    texts = [repr(token)[1:-1] for token in tokenizer.convert_ids_to_tokens(list(ids))]
    if len(texts) > 2 * ENDS:
        texts[ENDS:-ENDS] = [f"… {len(texts) - 2 * ENDS} tokens …"]
    return " ".join(texts)
