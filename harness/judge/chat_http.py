"""A chat-completions server of the published OpenAI schema, but for the answers: replies, errors,
addresses, life and end.

The pocket judge and a served model stand on it. Nothing here asks for a key, so only loopback is
bound unless asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from harness.records import HarnessError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Choice:
    """One answer. tokens: how many were written. logprobs: ``token_entry`` of each, or None when
    they were not asked for.
    """

    text: str
    finish_reason: str
    tokens: int
    logprobs: list[dict[str, Any]] | None = None


def completion(
    model: str, choices: Sequence[Choice], prompt_tokens: int, server: str
) -> dict[str, Any]:
    """The published ``chat.completion`` object. server: names the maker in ``id`` and
    ``system_fingerprint``.
    """
    written = sum(choice.tokens for choice in choices)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": written}
    return {
        "id": f"chatcmpl-{server}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(index, choice) for index, choice in enumerate(choices)],
        "usage": usage | {"total_tokens": prompt_tokens + written},
        "service_tier": "default",
        "system_fingerprint": f"fp_{server}",
    }


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text}
    message |= {"refusal": None, "annotations": []}
    logprobs = None if choice.logprobs is None else {"content": choice.logprobs, "refusal": None}
    said = {"index": index, "message": message, "logprobs": logprobs}
    return said | {"finish_reason": choice.finish_reason}


def token_entry(own: tuple[str, float], top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """(token, log-probability) of the written token and of the most likely ones, as
    ``logprobs.content`` lists them.
    """
    both = (own, *top)
    rows = [{"token": t, "logprob": value, "bytes": list(t.encode())} for t, value in both]
    return {**rows[0], "top_logprobs": rows[1:]}


def reply(value: Any) -> web.Response:
    """JSON with status 200."""
    return web.Response(body=json.dumps(value).encode(), content_type="application/json")


def models(name: str, owner: str) -> web.Response:
    """The list of one model, for ``GET /v1/models``."""
    model = {"id": name, "object": "model", "created": 0, "owned_by": owner}
    return reply({"object": "list", "data": [model]})


def error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The published error object."""
    told = {"message": message, "type": code, "param": None, "code": code}
    body = json.dumps({"error": told}).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


# -- serving ---------------------------------------------------------------------------------------
def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, public: bool) -> None:
    """Raises HarnessError for an address that other machines reach, unless ``public`` allows it."""
    if not is_loopback(host) and not public:
        raise HarnessError(
            f"--host {host!r} can be reached from other machines, and the server asks for no key; "
            "add --public if that is meant"
        )


async def _listen(handle: Handler, host: str, port: int) -> tuple[web.ServerRunner, str]:
    server = web.Server(handle, handler_cancellation=True)
    quiet: dict[str, Any] = {"handle_signals": False, "access_log": None, "shutdown_timeout": 0.1}
    runner = web.ServerRunner(server, **quiet)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as problem:
        await runner.cleanup()
        raise HarnessError(
            f"cannot listen on {host}, port {port}: {problem.strerror or problem}; give another "
            "--port (0: a free one)"
        ) from problem
    shown = f"[{host}]" if ":" in host else host
    return runner, f"http://{shown}:{runner.addresses[0][1]}/v1"


async def _stop(runner: web.ServerRunner) -> None:
    """Close the server and end calls that still hang."""
    await runner.cleanup()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def serving(handle: Handler, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread of this process while the block runs; yields the base address (…/v1).
    Port 0: a free one.
    """
    loop = asyncio.new_event_loop()
    try:
        runner, address = loop.run_until_complete(_listen(handle, host, port))
    except BaseException:
        loop.close()
        raise
    thread = threading.Thread(target=loop.run_forever, name="judge-server", daemon=True)
    thread.start()
    try:
        yield address
    finally:
        asyncio.run_coroutine_threadsafe(_stop(runner), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def serve_until_interrupted(handle: Handler, host: str, port: int) -> None:
    """Serve until interrupted; prints the address."""

    async def main() -> None:
        runner, address = await _listen(handle, host, port)
        print(address, flush=True)  # noqa: T201 - the command's output
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    with suppress(KeyboardInterrupt):
        asyncio.run(main())
