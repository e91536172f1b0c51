"""What was asked, answered and spent: an append-only JSONL journal of judge replies, so that what
was paid for is never lost, asked again or counted twice; and the budget that it counts against.

One process writes at a time (``flock``; others wait). A row goes to the file in one ``write`` as
soon as the reply is there, so a kill at any byte loses at most the row being written; ``fsync``
follows within ``SYNC_SECONDS`` and before results are handed out. A torn last line is cut off and
reported when the journal is opened.

The journal is a working file. ``finalise`` turns it into ``judgments.jsonl``: sorted, without
attempts or errors' traces, byte-identical for equal replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from harness.files import held
from harness.judge.endpoint import estimate_tokens, token_limit
from harness.records import FINAL_STATUSES, HarnessError, canonical_json, read_jsonl, write_jsonl
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

JOURNAL_NAME = "judge.journal.jsonl"
JUDGMENTS_NAME = "judgments.jsonl"
SYNC_SECONDS = 0.2
VERDICT = frozenset({"key", "id", "repeat", "status"})
"""What a row holds that is no batch's (``file`` with its ``lines``, later with the batch that was
``opened`` for it)."""
COMMITTED_FIELDS = (
    *("id", "repeat", "key", "model", "status", "text"),
    *("logprobs", "prompt_tokens", "completion_tokens", "error"),
)

log = logging.getLogger(__name__)


class Journal:
    """The rows of one journal by key. ``repaired`` counts bytes cut off and broken lines passed
    over at opening.

    ``final[key]``: the first final row of a key; later ones are ignored. ``asked[key]``: rejected
    replies so far. ``cut``: keys with a reply that was cut off.
    ``spent``: calls and tokens of every row, earlier runs included; ``by_batch``: tokens of prompts
    and replies of those that came in a batch. ``lines``: the vendor's file that last held a
    question, ``batches``: the batch of a file.
    """

    def __init__(self, path: Path, *, wait_s: float = 60.0) -> None:
        self.path = path
        self.final: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, int] = {}
        self.cut: set[str] = set()
        self.ids: set[tuple[str, int, str]] = set()
        self.spent = {"judge_calls": 0, "judge_prompt_tokens": 0, "judge_completion_tokens": 0}
        self.by_batch = (0, 0)
        self.lines: dict[str, str] = {}
        self.batches: dict[str, str] = {}
        self.model = ""
        self.repaired = 0
        self._synced = time.monotonic()
        self._dirty = False
        self._file = _open_locked(path, wait_s)
        try:
            self._repair()
            committed = path.with_name(JUDGMENTS_NAME)
            rows, broken = _parsed_rows(path)
            self.repaired += broken
            for row in [*(read_jsonl(committed) if committed.exists() else ()), *rows]:
                self._read(row)
        except BaseException:
            os.close(self._file)
            raise
        if self.repaired:
            said = "%s: repaired after an interrupted write (%d broken); these are asked again"
            log.warning(said, path, self.repaired)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. On a full disk the file keeps its old end and HarnessError is raised."""
        line = (canonical_json(row) + "\n").encode()
        size = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            self._dirty = True
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            os.ftruncate(self._file, size)
            raise HarnessError(
                f"{self.path}: cannot write ({error.strerror}); judgments so far are kept, free "
                "some space and run again"
            ) from None
        self._read(row)

    def sync(self) -> None:
        """Flush what was written to the disk."""
        if self._dirty:
            os.fsync(self._file)
            self._dirty, self._synced = False, time.monotonic()

    def close(self) -> None:
        """Flush, and let the next process in."""
        self.sync()
        os.close(self._file)

    def _read(self, row: Mapping[str, Any]) -> None:
        if "file" in row:
            self.lines |= dict.fromkeys(row.get("lines", ()), row["file"])
            self.batches[row["file"]] = row.get("opened", "")
            return
        key = row["key"]
        if row.get("attempts", 0):
            prompt, reply = row["prompt_tokens"], row["completion_tokens"]
            self.spent["judge_calls"] += row["attempts"]
            self.spent["judge_prompt_tokens"] += prompt
            self.spent["judge_completion_tokens"] += reply
            if row.get("batch"):
                self.by_batch = (self.by_batch[0] + prompt, self.by_batch[1] + reply)
        self.model = self.model or row.get("model", "")
        if row["status"] == "error":
            return
        if row.get("final", True):
            self.final.setdefault(key, dict(row))
            self.ids.add((row["id"], row["repeat"], key))
        else:
            self.asked[key] = max(self.asked.get(key, 0), row["ask"] + 1)
            if row["status"] == "truncated":
                self.cut.add(key)

    def _repair(self) -> None:
        """Cut a torn last line, or end it, when only its newline is missing."""
        written = self.path.read_bytes()
        torn = written[written.rfind(b"\n") + 1 :]
        if torn and _row(torn):
            os.write(self._file, b"\n")
        elif torn:
            self.repaired += len(torn)
            os.ftruncate(self._file, len(written) - len(torn))


def finalise(folder: Path, extra: Mapping[tuple[str, int], Mapping[str, Any]] | None = None) -> int:
    """Write the replies of a folder's journal, sorted by (id, repeat), to its ``JUDGMENTS_NAME``;
    returns the number of ``error`` rows. Call it when the client is closed.

    The first final row of a key wins; an item without one is listed with its last error.
    ``extra[(id, repeat)]`` adds fields (a parsed rating, say) under other names. The journal is
    deleted, after they are on disk, when no error is left.
    """
    journal, out = folder / JOURNAL_NAME, folder / JUDGMENTS_NAME
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in [*(read_jsonl(out) if out.exists() else ()), *_parsed_rows(journal)[0]]:
        if "file" in row:
            continue
        identity = (row["id"], row["repeat"], row["key"])
        rejected = row["status"] != "error" and not row.get("final", True)
        if rejected or (identity in rows and rows[identity]["status"] in FINAL_STATUSES):
            continue
        kept = {name: row[name] for name in COMMITTED_FIELDS if name in row}
        rows[identity] = {**(extra or {}).get(identity[:2], {}), **kept}
    try:
        write_jsonl(out, [rows[identity] for identity in sorted(rows)])
    except OSError as error:
        raise HarnessError(
            f"{out}: cannot write ({error.strerror}); the journal is kept, free some space and "
            "run again"
        ) from None
    errors = [row["status"] for row in rows.values()].count("error")
    if not errors:
        journal.unlink(missing_ok=True)
    return errors


def _open_locked(path: Path, wait_s: float) -> int:
    """Open for appending under an exclusive lock; wait at most ``wait_s`` for its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_s
    while (handle := held(path)) is None:
        if time.monotonic() > until:
            raise HarnessError(
                f"{path}: another process has been judging into this journal for {wait_s:g} s; "
                "wait for it or stop it"
            )
        time.sleep(0.05)
    return handle


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and ("file" in row or row.keys() >= VERDICT)
    return row if whole else None


def _parsed_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a journal, and how many of its lines are none."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = [row for row in map(_row, lines) if row is not None]
    return rows, len(lines) - len(rows)


class Budget:
    """What judging has cost and may cost, in USD: a call is sent only when, at its dearest, it fits
    under the limit with those in flight.
    """

    def __init__(self, judge: JudgeSettings, runtime: Runtime) -> None:
        self.prices, self.limit = judge.prices(runtime), runtime.max_cost_usd
        self.each = [judge.prices(runtime, way) for way in ("direct", "batch")]
        if self.limit and judge.kind != "pocket" and not any(self.prices) and not judge.facts:
            raise HarnessError(
                "max_cost_usd is set but no price is: give runtime.price_prompt_usd_per_million "
                "and price_completion_usd_per_million"
            )
        self.journal: Journal
        self.reserved: dict[object, float] = {}
        self.released = asyncio.Condition()

    def usd(self, prompt: int, reply: int) -> float:
        """Price of so many tokens."""
        return (prompt * self.prices[0] + reply * self.prices[1]) / 1e6

    def spent(self) -> float:
        """Price of every journalled reply, each by the transport with which it came."""
        spent, batched = self.journal.spent, self.journal.by_batch
        prompts = spent["judge_prompt_tokens"] - batched[0], batched[0]
        replies = spent["judge_completion_tokens"] - batched[1], batched[1]
        ways = zip(prompts, replies, self.each, strict=True)
        return sum(prompt * price[0] + reply * price[1] for prompt, reply, price in ways) / 1e6

    @contextlib.asynccontextmanager
    async def call(self, body: Mapping[str, Any]) -> AsyncIterator[None]:
        """Room for one call; HarnessError when the limit leaves none any more."""
        if not self.limit:
            yield
            return
        worst = self.usd(estimate_tokens(body["messages"]), token_limit(body) or 0)
        mine = object()
        async with self.released:
            while self.spent() + sum(self.reserved.values()) + worst > self.limit:
                if not self.reserved:
                    raise HarnessError(
                        f"max_cost_usd {self.limit:g} reached: {self.spent():.4f} USD spent on "
                        f"{len(self.journal.final)} judgments, the next may cost {worst:.4f}; the "
                        "journal keeps them, raise the limit and run again"
                    )
                await self.released.wait()
            self.reserved[mine] = worst
        try:
            yield
        finally:
            async with self.released:
                del self.reserved[mine]
                self.released.notify_all()
