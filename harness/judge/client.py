"""The one client of the judged benchmarks: asks an OpenAI-compatible endpoint once for every
judgment, whatever happens on the way.

Calls run on one event loop of their own with keep-alive connections. What is asked is decided by
the key (endpoint, model, full prompt, sampling, repeat); what is answered goes to the journal and
is never asked again. 429, 5xx, time-outs and broken replies are retried with jittered back-off; a
late reply to an attempt given up still counts, first valid one wins; a reply that ``accept``
rejects is asked again with another ``seed``, one that was cut off once more with twice the room; a
refused key or parameter and an exhausted quota stop everything at once. Retrying libraries
(openai's client, tenacity) end an attempt before the next begins: with them a reply that is paid
for but late would be lost and paid for twice.

The API key is read from the environment and lives only in the connection's headers.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from harness.judge.batches import Batches
from harness.judge.chat_http import looping
from harness.judge.endpoint import (
    KEY_VARIABLE,
    Parameters,
    Trouble,
    auth_headers,
    estimate_tokens,
    read_reply,
    resolve_endpoint,
    token_limit,
)
from harness.judge.endpoint import JudgeReply as JudgeReply  # what its callers read
from harness.judge.journal import JOURNAL_NAME, Budget, Journal
from harness.judge.verdicts import CUT_OFF, SEED_PERIOD
from harness.records import FINAL_STATUSES, HarnessError, StageTask, content_hash, redact
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

MORE_ROOM = 2
"""Factor on ``max_tokens`` after a reply that was cut off."""
MAX_ATTEMPTS = 8
"""Failed attempts (429 with a waiting time not counted) before an item becomes ``error``."""
BACKOFF_CAP_S = 30.0
LEAST_CONTEXT = 512
"""Tokens that any judge's context holds."""
CONNECT_CAP_S = 60.0
"""For a connection, however long a reply may take."""
REPLY_FIELDS = (
    *("status", "text", "logprobs", "prompt_tokens", "completion_tokens", "error", "model"),
)
Accept = Callable[[JudgeReply], bool]


@dataclass(frozen=True)
class JudgeRequest:
    """One judgment to ask for. params: sent, and before what the judge's settings say."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    params: Mapping[str, Any]
    repeat: int = 0


def _body(
    request: JudgeRequest, judge: JudgeSettings, ask: int = 0, room: int = 1
) -> dict[str, Any]:
    """The call's JSON. The seed is sent only where it says something: given, or a repeat, or a
    re-ask. room: factor on the limit of the reply.
    """
    params = {"temperature": judge.temperature, "max_tokens": judge.max_tokens, **request.params}
    params["max_tokens"] *= room
    if judge.temperature is None:
        del params["temperature"]
    shift = request.repeat + ask * SEED_PERIOD
    if shift or "seed" in params:
        params["seed"] = int(params.get("seed", 0)) + shift
    params[judge.max_tokens_as] = params.pop("max_tokens")
    if judge.reasoning_effort:
        params["reasoning_effort"] = judge.reasoning_effort
    messages = [dict(m) for m in request.messages]
    return {"model": judge.model, "messages": messages, **params, **judge.extra_body}


def request_key(request: JudgeRequest, judge: JudgeSettings, identity: str) -> str:
    """Hash of everything that decides the reply, which the item's id does not."""
    return content_hash(identity, _body(request, judge), request.repeat)


class DryRunError(HarnessError):
    """Raised in place of asking for ``judge_dry_run``; costs: what the requests would take."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        super().__init__("dry run: nothing was asked")
        self.costs = dict(costs)


class JudgeClient:
    """``with JudgeClient(judge, runtime, folder) as client: client.complete(requests)``.

    folder: holds the journal; judgments that are committed there count as journalled. ``complete``
    may be called from several threads.
    """

    def __init__(self, judge: JudgeSettings, runtime: Runtime, folder: Path) -> None:
        self.judge, self.runtime = judge, runtime
        self.budget = Budget(judge, runtime)
        self.pace = Pace(runtime.judge_requests_per_minute)
        self.endpoint = resolve_endpoint(judge, runtime)
        self.parameters = Parameters()
        self.calls = 0
        """Calls sent by this client (the journal's count in ``costs`` holds earlier runs too)."""
        self._journal_path = folder / JOURNAL_NAME
        by_batch = judge.transport == "batch"
        self._slots = asyncio.Semaphore(sys.maxsize if by_batch else runtime.judge_concurrency)
        self._asking: dict[str, asyncio.Lock] = {}
        self._session: aiohttp.ClientSession | None = None
        self._batches: Batches | None = None

    def __enter__(self) -> JudgeClient:
        with ExitStack() as opened:
            self._journal = self.budget.journal = Journal(self._journal_path)
            opened.callback(self._journal.close)
            self._run = opened.enter_context(looping("judge-client"))
            opened.callback(lambda: self._run(self._disconnect()))
            self._run(self._connect())
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def costs(self) -> dict[str, float]:
        """Calls, tokens and USD of this journal's judgments, interrupted runs included."""
        return {**self._journal.spent, "judge_usd": self.budget.spent()}

    def complete(
        self, requests: Sequence[JudgeRequest], *, accept: Accept | None = None, reasks: int = 2
    ) -> list[JudgeReply]:
        """Replies in the order of ``requests``. Rejected by ``accept`` after ``reasks`` more tries:
        status ``unparsed``.

        Items that failed have status ``error`` and are asked again by the next run. Raises
        HarnessError when nothing more can be asked (key refused, quota exhausted, cost limit, full
        disk, judge changed); replies so far are in the journal. A dry run raises DryRunError with
        the cost instead.
        """
        if self.runtime.judge_dry_run:
            raise DryRunError(self.plan_cost(requests))
        try:
            replies: list[JudgeReply] = self._run(self._complete(requests, accept, reasks))
            return replies
        finally:
            self._journal.sync()

    def plan_cost(self, requests: Sequence[JudgeRequest]) -> dict[str, float]:
        """What ``complete`` would ask for and at most cost; tokens of prompts are estimated."""
        left = [one for one in requests if self._key(one) not in self._journal.final]
        bodies = [_body(one, self.judge) for one in left]
        prompt = sum(estimate_tokens(body["messages"]) for body in bodies)
        completion = sum(token_limit(body) or 0 for body in bodies)
        return {
            "judge_calls": len(bodies),
            "judge_prompt_tokens": prompt,
            "judge_completion_tokens_at_most": completion,
            "judge_usd_at_most": self.budget.usd(prompt, completion),
        }

    # -- everything below runs on the loop's thread ------------------------------------------------
    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession(
            headers=auth_headers(self.judge, self.endpoint),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            proxy=self.endpoint.proxy,
        )
        if self.judge.transport == "batch":
            self._batches = Batches(self._journal, self._send, self.parameters, self.runtime)

    async def _disconnect(self) -> None:
        if self._batches:
            await self._batches.close()
        if self._session:
            await self._session.close()

    def _key(self, request: JudgeRequest) -> str:
        return request_key(request, self.judge, self.endpoint.identity)

    async def _complete(
        self, requests: Sequence[JudgeRequest], accept: Accept | None, reasks: int
    ) -> list[JudgeReply]:
        self._last_reply = time.monotonic()
        keys = [self._key(request) for request in requests]
        first: dict[str, JudgeRequest] = {}
        for key, request in zip(keys, requests, strict=True):
            first.setdefault(key, request)
        errors: dict[str, JudgeReply] = {}

        async def judge_one(key: str, request: JudgeRequest) -> None:
            async with self._asking.setdefault(key, asyncio.Lock()), self._slots:
                if key not in self._journal.final:
                    reply = await self._judge(key, request, accept, reasks)
                    if reply.status == "error":
                        errors[key] = reply

        try:
            async with asyncio.TaskGroup() as group:  # the first HarnessError cancels the others
                for key, request in first.items():
                    group.create_task(judge_one(key, request))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        both = zip(requests, keys, strict=True)
        return [self._reply(request, key, errors) for request, key in both]

    def _reply(
        self, request: JudgeRequest, key: str, errors: Mapping[str, JudgeReply]
    ) -> JudgeReply:
        """The reply for this item; one whose prompt equals another's gets a row without a call."""
        if key not in self._journal.final:
            return replace(errors[key], id=request.id, repeat=request.repeat)
        row = self._journal.final[key]
        if (request.id, request.repeat, key) not in self._journal.ids:
            self._journal.append({**row, "id": request.id, "repeat": request.repeat, "attempts": 0})
        fields = {name: row[name] for name in REPLY_FIELDS}
        return JudgeReply(request.id, request.repeat, attempts=row.get("attempts", 0), **fields)

    async def _judge(
        self, key: str, request: JudgeRequest, accept: Accept | None, reasks: int
    ) -> JudgeReply:
        """Ask, and ask again while ``accept`` rejects; every paid reply is journalled."""
        deadline = self._last_reply + self.runtime.judge_deadline_s
        asked = self._journal.asked.get(key, 0)
        for ask in range(min(asked, reasks), reasks + 1):
            room = MORE_ROOM if key in self._journal.cut else 1
            body = _body(request, self.judge, ask, room)
            async with self.budget.call(body):
                if self._batches:
                    found, attempts, file = await self._batches.ask(request.id, body, deadline)
                else:
                    (found, attempts), file = await self._ask(body, deadline), ""
                if isinstance(found, Trouble):
                    found = _failed(found, room)
                reply = replace(
                    found, id=request.id, repeat=request.repeat, attempts=attempts, batch=file
                )
                reply = self._whole(request, reply)
                last = ask == reasks or (reply.status == "truncated" and room > 1)
                reply, final = self._record(reply, key, ask, accept, last)
            if final or reply.status == "error":
                return reply
        raise AssertionError("unreachable")

    def _whole(self, request: JudgeRequest, reply: JudgeReply) -> JudgeReply:
        """The reply, or an error where its judge was shown less than the prompt: every word is a
        token at least, and Ollama cuts what exceeds its context without a word. A smaller count
        than any context is no cut: some servers count no prompt, or what was not in their cache.
        """
        words = sum(len(message["content"].split()) for message in request.messages)
        if self.judge.kind == "pocket" or not LEAST_CONTEXT <= reply.prompt_tokens < words:
            return reply
        error = (
            f"the judge read {reply.prompt_tokens} tokens of a prompt of {words} words: its server "
            "cuts what exceeds its context; give it a longer one (Ollama: OLLAMA_CONTEXT_LENGTH)"
        )
        return replace(reply, status="error", error=error)

    def _record(
        self, reply: JudgeReply, key: str, ask: int, accept: Accept | None, last: bool
    ) -> tuple[JudgeReply, bool]:
        """Judge the reply's form, refuse a changed judge, write the row; whether it is final."""
        if reply.status == "truncated" and last:
            reply = replace(reply, status="unparsed")
        if reply.status == "ok" and (not reply.text or (accept is not None and not accept(reply))):
            reply = replace(reply, status="unparsed")
        seen = self._journal.model
        if reply.model and seen not in ("", reply.model):
            raise HarnessError(
                f"{self._journal.path}: the judge changed: replies so far come from {seen!r}, this "
                f"one from {reply.model!r}; judges are not mixed: start anew or restore the "
                "earlier (OpenRouter: judge.extra_body {provider: {only: [ONE]}})"
            )
        final = last or reply.status not in ("unparsed", "truncated")
        final = final and reply.status in FINAL_STATUSES
        self._journal.append({**vars(reply), "key": key, "ask": ask, "final": final})
        if reply.status != "error":
            self._last_reply = time.monotonic()
        return reply, final

    async def _ask(
        self, body: Mapping[str, Any], deadline: float
    ) -> tuple[JudgeReply | Trouble, int]:
        """(the reply, or why there is none; attempts), through as many as it takes."""
        timeout_s = self.runtime.judge_timeout_s
        pending: set[Attempt] = set()
        attempts = failures = 0
        try:
            while True:
                await self.pace.wait()
                if time.monotonic() >= deadline:
                    late = f"deadline of {self.runtime.judge_deadline_s:g} s reached"
                    return Trouble(late), attempts
                newest = asyncio.create_task(self._post(body))
                pending.add(newest)
                attempts += 1
                until = min(time.monotonic() + timeout_s, deadline)
                found = await _first_reply(pending, newest, until)
                if found is None:
                    trouble = Trouble(f"no reply within {timeout_s:g} s")
                    if newest.done() and isinstance(failed := newest.result(), Trouble):
                        trouble = failed
                    failures += trouble.counts
                    self.pace.yield_to_limit(trouble.retry_after_s)
                    delay = trouble.delay(failures, self.runtime.judge_backoff_s, BACKOFF_CAP_S)
                    if trouble.permanent:
                        return trouble, attempts
                    told = f"{trouble.reason} ({attempts} attempts"
                    if delay >= deadline - time.monotonic():
                        return Trouble(f"{told}; deadline reached)"), attempts
                    if failures >= MAX_ATTEMPTS:
                        return Trouble(f"{told})"), attempts
                    for older in pending - {newest}:
                        older.cancel()  # one late attempt at most stays open beside the next
                    pending &= {newest}
                    found = await _first_reply(pending, None, time.monotonic() + delay)
                if found is not None:
                    return found, attempts
        finally:
            for task in pending:
                task.cancel()

    async def _post(self, body: Mapping[str, Any]) -> JudgeReply | Trouble:
        self.calls += 1
        sent = self.parameters.sent(body)
        answer = await self._send("POST", "/chat/completions", json=sent)
        found = answer if isinstance(answer, Trouble) else read_reply(*answer, sent)
        if isinstance(found, Trouble) and found.instead:
            self.parameters.learn(found)
            return await self._post(body)
        return found

    async def _send(
        self, method: str, path: str, read_s: float | None = None, **sent: Any
    ) -> tuple[int, Mapping[str, str], str] | Trouble:
        """Status, headers and text of the endpoint's answer. read_s: longest silence."""
        assert self._session is not None
        connect_s = min(CONNECT_CAP_S, self.runtime.judge_timeout_s)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)
        options: dict[str, Any] = {"timeout": timeout, "allow_redirects": False, **sent}
        try:
            async with self._session.request(
                method, self.endpoint.url + path, **options
            ) as response:
                text = (await response.read()).decode("utf-8", errors="replace")
                return response.status, response.headers, redact(text, only=KEY_VARIABLE)
        except (aiohttp.ClientError, OSError) as error:
            return Trouble(redact(f"{type(error).__name__}: {error}"))


Attempt = asyncio.Task[JudgeReply | Trouble]


async def _first_reply(
    pending: set[Attempt], newest: Attempt | None, until: float
) -> JudgeReply | None:
    """The first valid reply among ``pending`` before ``until``; None as soon as ``newest`` failed.
    Without ``newest``: waits it out.
    """
    while (left := until - time.monotonic()) > 0:
        if not pending:
            await asyncio.sleep(left)
            return None
        done, _ = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        pending -= done
        for task in done:
            outcome = task.result()
            if isinstance(outcome, JudgeReply):
                return outcome
        if newest in done:
            return None
    return None


def _failed(trouble: Trouble, room: int) -> JudgeReply:
    """What no reply means for its item: an error, but where more room is refused to a reply that
    was cut off, that one stands.
    """
    if room > 1 and trouble.permanent:
        error = f"{CUT_OFF}, and more room is refused: {trouble.reason}"
        return JudgeReply("", 0, "truncated", error=error)
    return JudgeReply("", 0, "error", error=trouble.reason)


class Pace:
    """Spaces calls under ``judge_requests_per_minute``."""

    def __init__(self, per_minute: int) -> None:
        self.interval_s = 60.0 / per_minute if per_minute else 0.0
        self.next_slot = 0.0
        self.no_slack = False
        self.turn = asyncio.Lock()

    async def wait(self) -> None:
        """Wait for this call's turn."""
        if not self.interval_s:
            return
        async with self.turn:
            slot = max(self.next_slot, time.monotonic())
            await asyncio.sleep(slot - time.monotonic())
            # an endpoint without slack counts from the call itself, which is a little late:
            # then the next must not be early
            self.next_slot = (time.monotonic() if self.no_slack else slot) + self.interval_s

    def yield_to_limit(self, retry_after_s: float | None) -> None:
        """After a 429 the paced calls fall into step with the endpoint's own count; at most a
        second, so that others go on.
        """
        if self.interval_s and retry_after_s is not None:
            self.no_slack = True
            self.next_slot = max(self.next_slot, time.monotonic() + min(1.0, retry_after_s))


# -- what judged benchmarks call -------------------------------------------------------------------
Found = dict[tuple[str, int], dict[str, Any]]
"""Item and call → what is added to its judgment's row."""


def judgments(
    judge: JudgeSettings,
    task: StageTask[Any],
    requests: Sequence[JudgeRequest],
    read: Callable[[JudgeReply], Mapping[str, Any]],
    name: str,
) -> tuple[Found, dict[str, float]]:
    """(what was read of every reply, costs) of requests, each asked for every repeat and sample,
    journalled in the stage's folder.

    read: what is read of a reply; its ``name`` is None where there is no verdict. Beside it stand
    ``score_status`` and ``reason``; of a reply that failed, these alone.
    """
    calls = range(judge.repeats * judge.samples)
    every = [replace(one, repeat=call) for call in calls for one in requests]
    with JudgeClient(judge, task.runtime, task.out) as client:
        replies = client.complete(every, accept=lambda reply: read(reply)[name] is not None)
        costs = client.costs
    found: Found = {}
    for reply in replies:
        row: dict[str, Any] = {name: None, "score_status": reply.status, "reason": reply.error}
        if reply.status in ("ok", "unparsed") and not reply.error:
            row |= read(reply)
            row["score_status"] = "unparsed" if row[name] is None else "ok"
        found[reply.id, reply.repeat] = row
    return found, costs


def calls_of(judge: JudgeSettings, repeat: int) -> range:
    """The calls of ``judgments`` whose verdicts are one repeat's."""
    return range(repeat * judge.samples, (repeat + 1) * judge.samples)
