"""Asking through a vendor's /files and /batches: half the price, within a day.

Questions that come together are one batch. What was uploaded is journalled before a batch is opened
for it, and the batch before it is waited for, so that a run that was killed anywhere is followed by
one that takes up the same batch: nothing is lost, nothing asked twice. Schema: OpenAI's Batch API,
which Azure, Groq, Mistral and others have too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import aiohttp

from harness.judge.endpoint import JudgeReply, Parameters, Trouble, read_answer, read_reply
from harness.judge.journal import Journal
from harness.records import HarnessError, canonical_json, content_hash, redact
from harness.study.tasks import Runtime

log = logging.getLogger(__name__)

ASKED_AT = "/v1/chat/completions"
WINDOW = "24h"
"""The only one there is."""
MOST_LINES, MOST_BYTES = 50_000, 100_000_000
"""Of one batch: OpenAI's limit on lines, half of its limit on bytes."""
QUIET_S = 0.05
"""So long no further question must come before those there are become a batch."""
POLL_CAP_S = 30.0
MOST_FAILURES = 4
"""Of one question, or of one call in a row, before the item becomes ``error``."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
FULL = "token_limit_exceeded"
"""OpenAI's code where the batches under way hold as many tokens as the account may have there."""
NO_BATCHES = (
    "the judge takes no batches (it has no /files or /batches); set judge.transport: direct"
)

Line = tuple[int, str] | Trouble | HarnessError
"""What became of a question: status and text of its answer, or why there is none."""
Send = Callable[..., Awaitable[tuple[int, Mapping[str, str], str] | Trouble]]
"""The client's: method, path, longest silence in seconds and what is sent → its answer."""


class _UnreachableError(Exception):
    """The endpoint does not say what became of a batch."""


class _MissingError(Exception):
    """The endpoint has no such address."""


class Batches:
    """``await batches.ask(item, body, deadline)`` of many questions at once, on one event loop.

    earlier: questions that a run before this one has sent, each with its file.
    """

    def __init__(
        self, journal: Journal, send: Send, parameters: Parameters, runtime: Runtime
    ) -> None:
        self.journal, self.send = journal, send
        self.parameters, self.runtime = parameters, runtime
        self.earlier = dict(journal.lines)
        self._pending: dict[str, bytes] = {}
        self._gathering: asyncio.Task[dict[str, asyncio.Task[str]]] | None = None
        self._settling: dict[str, asyncio.Task[dict[str, Line]]] = {}
        self._standing: dict[str, str] = {}
        self._tasks: list[asyncio.Task[Any]] = []

    async def ask(
        self, item: str, body: Mapping[str, Any], deadline: float
    ) -> tuple[JudgeReply | Trouble, int, str]:
        """(the reply, or why there is none; how many batches gave an answer; the last one's file).

        A question whose line failed is asked again, at most ``MOST_FAILURES`` times; one that is
        not back by the deadline stays with its batch.
        """
        line, failures = content_hash(body, length=32), 0
        earlier = self.earlier.pop(line, "")
        for attempts in itertools.count(0 if earlier else 1):
            sent = self.parameters.sent(body)
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    file = earlier or await self._sent(line, sent)
                    held = await asyncio.shield(self._settled(file, new=not earlier))
            except TimeoutError:
                return Trouble(self._where(line)), max(0, attempts - 1), ""
            except _UnreachableError as error:
                return Trouble(str(error)), max(0, attempts - 1), ""
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                shown = f"batches are not of the published schema ({type(error).__name__})"
                return Trouble(shown), max(0, attempts - 1), ""
            try:
                found = self._read(held, line, sent)
            except HarnessError:
                if not earlier:
                    raise
                found = Trouble("failed in an earlier run")
            if isinstance(found, JudgeReply):
                return found, max(1, attempts), file
            if earlier:
                earlier = ""
                continue
            self.parameters.learn(found)
            if found.instead:
                continue
            failures += 1
            if found.permanent or failures == MOST_FAILURES:
                return found, attempts, file
            log.warning("judge: %s: %s in a batch; asked again", item, found.reason)
            wait = found.delay(failures, self.runtime.judge_backoff_s, POLL_CAP_S)
            await asyncio.sleep(max(0.0, min(wait, deadline - time.monotonic())))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Stop waiting."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- a question's way ------------------------------------------------------------------------
    async def _sent(self, line: str, sent: Mapping[str, Any]) -> str:
        """The file in which a question was uploaded, with those that come at the same time."""
        row = {"custom_id": line, "method": "POST", "url": ASKED_AT, "body": sent}
        self._pending[line] = (canonical_json(row) + "\n").encode()
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._gather())
            self._tasks.append(self._gathering)
        uploads = await asyncio.shield(self._gathering)
        return await asyncio.shield(uploads[line])

    async def _gather(self) -> dict[str, asyncio.Task[str]]:
        """Upload the questions that are there, as soon as no more come: question → its file."""
        count = 0
        while len(self._pending) > count:
            count = len(self._pending)
            await asyncio.sleep(QUIET_S)
        pending, self._pending, self._gathering = self._pending, {}, None
        uploads: dict[str, asyncio.Task[str]] = {}
        for lines in _cut(pending):
            text = b"".join(pending[line] for line in lines)
            self._tasks.append(upload := asyncio.create_task(self._submit(lines, text)))
            uploads |= dict.fromkeys(lines, upload)
        return uploads

    async def _submit(self, lines: list[str], text: bytes) -> str:
        """Upload questions, and journal in which file before a batch is opened for them."""
        file = await self._upload(text)
        self._note({"file": file, "lines": lines})
        return file

    def _settled(self, file: str, new: bool) -> asyncio.Task[dict[str, Line]]:
        """What a file's batch holds, by question, once it has ended; waited for once."""
        if file not in self._settling:
            self._settling[file] = asyncio.create_task(self._settle(file, new))
            self._tasks.append(self._settling[file])
        return self._settling[file]

    async def _settle(self, file: str, new: bool) -> dict[str, Line]:
        """Open a file's batch unless it is open, and wait for it."""
        try:
            batch = self.journal.batches[file] or await self._open(file, new)
            return await self._results(file, batch)
        except _MissingError:
            self._standing[file] = "is unknown to the endpoint"
            return {}

    def _read(
        self, held: Mapping[str, Line], line: str, sent: Mapping[str, Any]
    ) -> JudgeReply | Trouble:
        """What a batch holds of a question; "" is of all that are not there."""
        found = held.get(line) or held.get("") or Trouble(f"no answer: {self._where(line)}")
        if isinstance(found, HarnessError):
            raise found
        return found if isinstance(found, Trouble) else read_reply(found[0], {}, found[1], sent)

    def _where(self, line: str) -> str:
        file = self.journal.lines.get(line, "")
        batch = self.journal.batches.get(file, "")
        return f"batch {batch} {self._standing.get(file, 'was not opened yet')}".replace("  ", " ")

    def _note(self, row: Mapping[str, Any]) -> None:
        self.journal.append(row)
        self.journal.sync()

    # -- the endpoint's side ---------------------------------------------------------------------
    async def _upload(self, text: bytes) -> str:
        def form() -> dict[str, Any]:
            data = aiohttp.FormData({"purpose": "batch"})
            data.add_field("file", text, filename="judge.jsonl", content_type="application/jsonl")
            return {"data": data}

        try:
            return str(json.loads(await self._call("POST", "/files", form))["id"])
        except _MissingError:
            raise HarnessError(NO_BATCHES) from None

    async def _open(self, file: str, new: bool) -> str:
        """The batch of a file: where it may have been opened already, the one that is there."""
        asked = {"input_file_id": file, "endpoint": ASKED_AT, "completion_window": WINDOW}
        reason = ""
        for failures in range(1, MOST_FAILURES + 1):
            try:
                batch = "" if new else await self._find(file)
                found = batch or await self._once("POST", "/batches", {"json": asked})
            except _MissingError:
                raise HarnessError(NO_BATCHES) from None
            new = False
            if not isinstance(found, Trouble):
                batch = batch or str(json.loads(found)["id"])
                self._note({"file": file, "opened": batch})
                return batch
            if found.permanent:
                raise HarnessError(f"the judge opens no batch: {found.reason}")
            reason = found.reason
            await asyncio.sleep(found.delay(failures, self.runtime.judge_backoff_s, POLL_CAP_S))
        raise _UnreachableError(f"no batch could be opened ({reason})")

    async def _find(self, file: str) -> str:
        """The batch that was opened for a file, or nothing."""
        after = ""
        while True:
            page = json.loads(await self._call("GET", f"/batches?limit=100{after}"))
            for row in page["data"]:
                if row["input_file_id"] == file:
                    return str(row["id"])
            if not page.get("has_more") or not page["data"]:
                return ""
            after = f"&after={page['data'][-1]['id']}"

    async def _results(self, file: str, batch: str) -> dict[str, Line]:
        """What a batch holds when it has ended, by question; "" for all that are not there."""
        for turn in itertools.count():
            state = json.loads(await self._call("GET", f"/batches/{batch}"))
            status, counts = str(state["status"]).lower(), state.get("request_counts") or {}
            done = f"{counts.get('completed', 0)} of {counts.get('total', 0)} answered"
            if status in ENDED:
                break
            self._standing[file] = f"is {status} ({done}); the next run takes it up"
            await asyncio.sleep(min(POLL_CAP_S, self.runtime.judge_backoff_s * 2.0**turn))
        self._standing[file] = f"{status} ({done})"
        if status == "failed":
            return {"": _refused(batch, state)}
        found: dict[str, Line] = {}
        for name in (state.get("output_file_id"), state.get("error_file_id")):
            if name:
                found = dict(_lines(await self._call("GET", f"/files/{name}/content"))) | found
        return found

    async def _call(self, method: str, path: str, sent: Callable[[], dict[str, Any]] = dict) -> str:
        """The endpoint's answer, however often it takes."""
        for failures in itertools.count(1):
            found = await self._once(method, path, sent())
            if not isinstance(found, Trouble):
                return found
            if found.permanent or failures == MOST_FAILURES:
                raise _UnreachableError(f"{method} {path.partition('?')[0]}: {found.reason}")
            await asyncio.sleep(found.delay(failures, self.runtime.judge_backoff_s, POLL_CAP_S))
        raise AssertionError("unreachable")

    async def _once(self, method: str, path: str, sent: Mapping[str, Any]) -> str | Trouble:
        answer = await self.send(method, path, self.runtime.judge_timeout_s, **sent)
        if isinstance(answer, Trouble):
            return answer
        if answer[0] in (404, 405):
            raise _MissingError
        return read_answer(*answer)


def _cut(pending: Mapping[str, bytes]) -> Iterator[list[str]]:
    """Questions in parts that a batch may hold."""
    part: list[str] = []
    size = 0
    for line, text in pending.items():
        if part and (len(part) == MOST_LINES or size + len(text) > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(text)
    yield part


def _lines(text: str) -> Iterator[tuple[str, Line]]:
    """(question, what became of it) of a file of results; other lines are passed over."""
    for written in text.splitlines():
        try:
            row = json.loads(written)
            answer, error = row.get("response"), row.get("error") or {}
            found: Line = Trouble(redact(str(error.get("message") or "no answer"))[:300])
            if answer:
                found = int(answer["status_code"]), json.dumps(answer["body"])
            yield row["custom_id"], found
        except (ValueError, LookupError, TypeError, AttributeError):
            continue


def _refused(batch: str, state: Mapping[str, Any]) -> Line:
    """What a batch that failed before it began means for its questions."""
    errors = (state.get("errors") or {}).get("data") or [{}]
    says = "; ".join(dict.fromkeys(str(one.get("message", "no reason given")) for one in errors))
    reason = redact(f"batch {batch} failed: {says}")[:300]
    if any(one.get("code") == FULL for one in errors):
        return Trouble(reason)
    return HarnessError(f"the judge refuses every call: {reason}")
