"""The pocket judge as endpoints are on bad days: faults drawn per call, limits, manners of several
makers, batches, and counts of what was asked (``GET /counters``; ``POST`` resets them).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from harness.judge import chat_http
from harness.pocket.judge import JudgeServer, completion, verdict
from tests.batch_desk import BatchDesk

GARBAGE_TEXTS = (
    "I would rather talk about the weather.",
    "",
    "The assistant's answer is interesting in several ways.",
)
VERDICT_LIKE_TEXTS = (
    "Some would say [[9]], others [[2]]; I cannot decide between the two.",
    "The expression arr[0] is fine. 9/10.",
    "Rating: [[100]]",
    "Rating: [[-1]]",
    "Rating: [[NaN]]",
    "Rating: [[\uff17]]",
)
GARBAGE_BODIES = (
    b'{"choices": [{"message": {"content": "Rating: [[',
    b"<html>Bad gateway</html>",
    b'{"choices": []}',
    b'{"object": "chat.completion", "choices": null}',
)


@dataclass(frozen=True)
class FaultRates:
    """Shares of calls, drawn per call in this order (their sum at most 1), and what the faults look
    like.

    hang: the reply comes after ``hang_s``. verdict_like: text with verdict syntax but no usable
    verdict. requests_per_minute: token bucket of ``burst`` calls (0: no limit). latency_s: every
    reply waits this long. calls_before_quota: quota error afterwards (0: never). batch_s: how long
    a batch takes; batch_expired: share of its lines whose time runs out.
    """

    rate_limited: float = 0.0
    server_error: float = 0.0
    hang: float = 0.0
    garbage_json: float = 0.0
    garbage_text: float = 0.0
    verdict_like: float = 0.0
    refused: float = 0.0
    truncated: float = 0.0
    disconnect: float = 0.0
    unauthorized: float = 0.0
    retry_after_s: float = 1.0
    hang_s: float = 3600.0
    latency_s: float = 0.0
    requests_per_minute: float = 0.0
    burst: int = 10
    calls_before_quota: int = 0
    batch_s: float = 0.0
    batch_expired: float = 0.0
    api_key: str = ""
    seed: int = 0

    KINDS = (
        "rate_limited",
        "server_error",
        "hang",
        "garbage_json",
        "garbage_text",
        "verdict_like",
        "refused",
        "truncated",
        "disconnect",
        "unauthorized",
    )


MANNERS = {
    "no-logprobs": "answers without the log-probabilities that were asked for",
    "refuses-logprobs": "answers a request for log-probabilities with an error",
    "new-parameters": "takes neither max_tokens nor a temperature",
    "thinks": "writes its thoughts before its answer",
    "thinks-apart": "thinks in a field of its own, within the same limit",
    "parts": "gives its text in parts",
    "streams-only": "answers in a stream whatever was asked",
}
"""How endpoints of several makers differ from the plain one."""
THOUGHTS = "Let me see. It could be [[3]] or m. No."


class FaultyJudge(JudgeServer):
    """script replaces the judge's text; like: names in ``MANNERS``."""

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        faults: FaultRates | None = None,
        script: Callable[[Mapping[str, Any]], str] | None = None,
        like: Collection[str] = (),
    ) -> None:
        super().__init__(settings or {})
        assert set(like) <= set(MANNERS), like
        self.faults, self.script, self.like = faults or FaultRates(), script, like
        self.base_url = ""
        self.counters: Counter[str] = Counter()
        self._random = random.Random(self.faults.seed)
        self._tokens, self._filled = float(self.faults.burst), time.monotonic()
        self.desk = BatchDesk(self._line, self.faults.batch_s)
        self.in_flight = 0
        """Calls received and not answered yet."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/v1/chat/completions" and request.method == "POST":
            self.in_flight += 1
            self.counters["max_in_flight"] = max(self.counters["max_in_flight"], self.in_flight)
            try:
                return await self.chat(request)
            finally:
                self.in_flight -= 1
        if request.path.startswith(("/v1/files", "/v1/batches")):
            self.counters[f"{request.method} {request.path.split('/')[2]}"] += 1
            return self._refusal(request) or await self.desk.handle(request)
        if request.path == "/counters":
            shown = dict(self.counters)
            if request.method == "POST":
                self.counters.clear()
            return chat_http.reply(shown)
        return await super().handle(request)

    async def _line(self, body: bytes) -> web.Response | None:
        """A line of a batch, answered as a call is."""
        self.counters["calls"] += 1
        if self._random.random() < self.faults.batch_expired:
            return None
        return await self._answered(body)

    async def chat(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        self.counters["calls"] += 1
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        return await self._answered(raw, request)

    async def _answered(self, raw: bytes, request: web.BaseRequest | None = None) -> web.Response:
        """The answer to a completion's body, with the faults that are drawn for it."""
        fault = self._draw()
        self.counters[fault] += 1
        if self.faults.latency_s:
            await asyncio.sleep(self.faults.latency_s)
        if fault == "rate_limited":
            return _rate_limited(self.faults.retry_after_s)
        if fault == "server_error":
            return chat_http.error(
                500, "server_error", "The server had an error while processing your request."
            )
        if fault == "unauthorized":
            return chat_http.error(
                401, "invalid_api_key", f"Incorrect API key provided: {_shown_key(request)}."
            )
        if fault == "disconnect":
            if request and request.transport:
                request.transport.abort()
            return chat_http.reply({})
        if fault == "garbage_json":
            return web.Response(
                body=self._random.choice(GARBAGE_BODIES), content_type="application/json"
            )
        if fault == "hang":
            await asyncio.sleep(self.faults.hang_s)
        try:
            body = json.loads(raw)
            untaken = self._untaken(body)
            if untaken is not None:
                return untaken
            answer = self._spoken(body, fault)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return chat_http.error(
                400, "invalid_request_error", f"bad request: {type(error).__name__}: {error}"
            )
        self.counters["answered"] += 1
        if "streams-only" in self.like:
            chunk = json.dumps({**answer, "object": "chat.completion.chunk"})
            return web.Response(text=f"data: {chunk}\n\ndata: [DONE]\n\n")
        return chat_http.reply(answer)

    def _untaken(self, body: Mapping[str, Any]) -> web.Response | None:
        """The error about a parameter that this endpoint does not take."""
        if "refuses-logprobs" in self.like and body.get("logprobs"):
            says = "'logprobs' is not supported with this model."
            return chat_http.error(400, "unsupported_parameter", f"Unsupported parameter: {says}")
        if "new-parameters" not in self.like:
            return None
        if "max_tokens" in body:
            says = "'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            return chat_http.error(400, "unsupported_parameter", f"Unsupported parameter: {says}")
        if body.get("temperature", 1) != 1:
            says = "'temperature' does not support other values than the default (1)."
            return chat_http.error(400, "unsupported_value", f"Unsupported value: {says}")
        return None

    def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        """Key, quota and rate limit."""
        if (
            self.faults.api_key
            and request.headers.get("Authorization") != f"Bearer {self.faults.api_key}"
        ):
            return chat_http.error(
                401, "invalid_api_key", f"Incorrect API key provided: {_shown_key(request)}."
            )
        if (
            self.faults.calls_before_quota
            and self.counters["calls"] > self.faults.calls_before_quota
        ):
            return chat_http.error(
                429,
                "insufficient_quota",
                "You exceeded your current quota, please check your plan and billing details.",
            )
        if self.faults.requests_per_minute:
            per_second = self.faults.requests_per_minute / 60.0
            now = time.monotonic()
            self._tokens = min(
                float(self.faults.burst), self._tokens + (now - self._filled) * per_second
            )
            self._filled = now
            if self._tokens < 1.0:
                self.counters["over_limit"] += 1
                return _rate_limited((1.0 - self._tokens) / per_second)
            self._tokens -= 1.0
        return None

    def _draw(self) -> str:
        draw = self._random.random()
        for kind in FaultRates.KINDS:
            draw -= getattr(self.faults, kind)
            if draw < 0:
                return kind
        return "clean"

    def _spoken(self, body: Mapping[str, Any], fault: str) -> dict[str, Any]:
        if body.get("stream"):
            raise ValueError("streaming is not supported")
        tokens = None
        if fault in ("garbage_text", "verdict_like"):
            texts = GARBAGE_TEXTS if fault == "garbage_text" else VERDICT_LIKE_TEXTS
            text = self._random.choice(texts)
        elif self.script is not None:
            text = self.script(body)
        else:
            text, tokens = verdict(body, self.settings)
        if "thinks" in self.like:
            text, tokens = f"<think>\n{THOUGHTS}\n</think>\n\n{text}", None
        reason = {"truncated": "length", "refused": "content_filter"}.get(fault, "")
        if reason:
            pieces = re.findall(r"\s*\S+\s*", text)
            text = "".join(pieces[: len(pieces) // 2]) if fault == "truncated" else ""
        thought = len(THOUGHTS.split()) if "thinks-apart" in self.like else 0
        found = completion(body, text, tokens, reason, thought)
        for choice in found["choices"]:
            if "no-logprobs" in self.like:
                choice["logprobs"] = None
            if "parts" in self.like:
                said = {"type": "text", "text": choice["message"]["content"]}
                choice["message"]["content"] = [{"type": "thinking", "thinking": THOUGHTS}, said]
        return found


def _rate_limited(wait_s: float) -> web.Response:
    headers = {
        "Retry-After": str(math.ceil(wait_s)),
        "retry-after-ms": str(math.ceil(1000 * wait_s)),
    }
    return chat_http.error(
        429,
        "rate_limit_exceeded",
        "Rate limit reached for requests per minute (rate limit).",
        headers,
    )


def _shown_key(request: web.BaseRequest | None) -> str:
    return request.headers.get("Authorization", "") if request else ""


@contextmanager
def serve(
    settings: Mapping[str, Any] | None = None,
    faults: FaultRates | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    script: Callable[[Mapping[str, Any]], str] | None = None,
    like: Collection[str] = (),
) -> Iterator[FaultyJudge]:
    """Serve from a thread of this process while the block runs; yields the server with its
    ``base_url`` and ``counters``.
    """
    server = FaultyJudge(settings, faults, script, like)
    with chat_http.serving(server.handle, host, port) as server.base_url:
        yield server
