"""A small OpenAI-compatible judge on loopback, whose opinion is the pocket oracle's. The libraries
cannot tell it from a paid one.

``POST /v1/chat/completions`` and ``GET /v1/models`` follow the published schema (usage, log-probs,
error objects). Every opinion is a pure function of (judge seed, prompt, the request's ``seed``),
see ``judge_opinion``.
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from aiohttp import web

from harness.judge import chat_http
from harness.pocket.judge_opinion import OPINION, verdict


class JudgeServer:
    """Answers with the opinions (noise, biases, seed) of ``settings``."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {**OPINION, **settings}
        self.base_url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One HTTP request."""
        if request.path == "/v1/chat/completions" and request.method == "POST":
            return await self.chat(request)
        if request.path == "/v1/models":
            return chat_http.models("pocket-judge", "pocket")
        return chat_http.error(404, "not_found", f"no such path: {request.path}")

    async def chat(self, request: web.BaseRequest) -> web.StreamResponse:
        """One completion; a body of another form gets the published error object."""
        raw = await request.read()
        try:
            return chat_http.reply(self.answer(json.loads(raw)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"bad request: {type(error).__name__}: {error}"
            return chat_http.error(400, "invalid_request_error", said)

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The judge's opinion of what a request shows."""
        if body.get("stream"):
            raise ValueError("streaming is not supported")
        return completion(body, *verdict(body, self.settings))


def completion(
    body: Mapping[str, Any],
    text: str,
    tokens: Mapping[str, float] | None,
    reason: str = "",
    thought: int = 0,
) -> dict[str, Any]:
    """The judge's text as a published completion: words are its tokens. tokens: probabilities of a
    verdict of one. reason: why it ends, if not by its length; thought: tokens written before it.
    """
    pieces = re.findall(r"\s*\S+\s*", text) or [text]
    asked = int(body.get("max_tokens") or body.get("max_completion_tokens") or 4096)
    limit = max(0, asked - thought)
    if not reason:
        reason = "length" if len(pieces) > limit or (limit == 1 and pieces) else "stop"
    pieces = pieces[:limit]
    top = int(body.get("top_logprobs") or 0)
    logprobs = [_token(piece, tokens, top) for piece in pieces] if body.get("logprobs") else None
    prompt_tokens = sum(4 + len(str(m.get("content") or "")) // 4 for m in body["messages"])
    choice = chat_http.Choice("".join(pieces), reason, len(pieces) + thought, logprobs)
    choices = [choice] * int(body.get("n") or 1)
    return chat_http.completion(body["model"], choices, prompt_tokens, "pocket")


def _token(piece: str, tokens: Mapping[str, float] | None, top: int) -> dict[str, Any]:
    shares = sorted((tokens or {piece: 0.999}).items(), key=lambda item: -item[1])
    listed = [(token, math.log(share)) for token, share in shares]
    own = next((entry for entry in listed if entry[0] == piece), listed[0])
    return chat_http.token_entry(own, listed[:top])


@contextmanager
def serve(settings: Mapping[str, Any], host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread of this process while the block runs; yields the address."""
    with chat_http.serving(JudgeServer(settings).handle, host, port) as address:
        yield address


def shared_server(opinion: Mapping[str, Any]) -> str:
    """Address of this process's judge with these opinions (noise, biases, seed); started at the
    first call, gone with the process.
    """
    return _shared(json.dumps(dict(opinion), sort_keys=True))


@functools.cache
def _shared(settings: str) -> str:
    kept_open = ExitStack()
    atexit.register(kept_open.close)
    return kept_open.enter_context(serve(json.loads(settings)))


def run_forever(host: str, port: int, settings: Mapping[str, Any]) -> None:
    """Serve until interrupted; prints the address. For ``selm judge-server``."""
    chat_http.serve_until_interrupted(JudgeServer(settings).handle, host, port)
