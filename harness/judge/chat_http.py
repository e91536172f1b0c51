"""A chat-completions server of the published OpenAI schema, on which the pocket judge stands too;
and a local chat model behind it, the judge that costs no money (``selm judge-server --model``).

Nothing here asks for a key, so only loopback is bound unless asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from harness.model.chat import encode_prompt
from harness.model.policy import Policy
from harness.records import GenerationRequest, HarnessError, first_line, request_seed

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Choice:
    """One answer of so many tokens. logprobs: ``token_entry`` of each where asked for."""

    text: str
    finish_reason: str
    tokens: int
    logprobs: list[dict[str, Any]] | None = None


def completion(model: str, choice: Choice, prompt_tokens: int, server: str) -> dict[str, Any]:
    """The published ``chat.completion`` object. server: names the maker."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": choice.tokens}
    message: dict[str, Any] = {"role": "assistant", "content": choice.text}
    message |= {"refusal": None, "annotations": []}
    logprobs = None
    if choice.logprobs is not None:
        logprobs = {"content": choice.logprobs, "refusal": None}
    said = {"index": 0, "message": message, "logprobs": logprobs}
    return {
        "id": f"chatcmpl-{server}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [said | {"finish_reason": choice.finish_reason}],
        "usage": usage | {"total_tokens": prompt_tokens + choice.tokens},
        "service_tier": "default",
        "system_fingerprint": f"fp_{server}",
    }


def token_entry(own: tuple[str, float], top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """An entry of ``logprobs.content``: the written token and the most likely ones."""
    both = (own, *top)
    rows = [{"token": t, "logprob": value, "bytes": list(t.encode())} for t, value in both]
    return {**rows[0], "top_logprobs": rows[1:]}


def reply(value: Any, status: int = 200, **options: Any) -> web.Response:
    """JSON."""
    body = json.dumps(value).encode()
    return web.Response(body=body, status=status, content_type="application/json", **options)


def error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The published error object."""
    told = {"message": message, "type": code, "param": None, "code": code}
    return reply({"error": told}, status, headers=headers)


class RefusalError(Exception):
    """A request that is answered with an error object: status, code and message."""


async def route(
    request: web.BaseRequest,
    model: str,
    owner: str,
    answer: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]],
) -> web.StreamResponse:
    """One HTTP request of a server of one model: ``GET /v1/models``, and what ``answer`` makes of
    the body of ``POST /v1/chat/completions``; a body of another form gets the error object.
    """
    if request.path == "/v1/models" and request.method == "GET":
        listed = {"id": model, "object": "model", "created": 0, "owned_by": owner}
        return reply({"object": "list", "data": [listed]})
    if request.path != "/v1/chat/completions" or request.method != "POST":
        return error(404, "not_found", f"no such path: {request.method} {request.path}")
    try:
        return reply(await answer(json.loads(await request.read())))
    except RefusalError as refusal:
        return error(*refusal.args)
    except (ValueError, KeyError, TypeError, AttributeError, HarnessError) as problem:
        said = f"bad request: {type(problem).__name__}: {problem}"
        return error(400, "invalid_request_error", said)


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
def looping(name: str) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop in a thread of its own; yields what runs a coroutine there to its end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    try:
        yield run
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def serving(handle: Handler, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread while the block runs; yields the address (…/v1). Port 0: a free one."""
    with looping("judge-server") as run:
        runner, address = run(_listen(handle, host, port))
        try:
            yield address
        finally:
            run(_stop(runner))


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


# -- a local model ---------------------------------------------------------------------------------
DEFAULT_POSITIONS = 4096
"""Tokens of prompt and answer together, for a model whose configuration states no limit."""
NOT_SUPPORTED = (
    *("stream", "stop", "tools", "functions", "logit_bias", "presence_penalty"),
    *("frequency_penalty", "response_format", "audio"),
)


class Turn(BaseModel):
    """A turn as a template takes it: text."""

    role: Literal["system", "user", "assistant"]
    content: str


class Asked(BaseModel):
    """What one request asks for. top_logprobs: how many of the largest for each token."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=1)] = 1
    seed: int = 0
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0


def _read(body: Mapping[str, Any]) -> Asked:
    """A request's body; ValueError says what is wrong in it."""
    given = {name: value for name, value in body.items() if value is not None}
    nothing: tuple[Any, ...] = (False, {}, [], 0, "", {"type": "text"})
    refused = [name for name in NOT_SUPPORTED if given.get(name, False) not in nothing]
    if refused:
        raise ValueError(f"not supported here: {', '.join(refused)}")
    try:
        asked = Asked.model_validate(given)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ValueError("; ".join(wrong)) from None
    if asked.top_logprobs and not asked.logprobs:
        raise ValueError("top_logprobs needs logprobs: true")
    return asked


class ServedModel:
    """A policy that answers as a server does, called ``name``.

    Messages go through the model's own template and the project's sampler; one request is answered
    at a time, so that equal requests with equal seeds give equal text whatever else is asked.
    Log-probabilities are the model's own log-softmax, not divided by the temperature.
    """

    def __init__(self, policy: Policy, name: str) -> None:
        self.policy, self.name = policy, name
        stated = getattr(policy.model.config, "max_position_embeddings", None)
        self.positions = int(stated or DEFAULT_POSITIONS)
        self._turn = asyncio.Lock()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One HTTP request. Bad ones never reach the model."""
        return await route(request, self.name, "local", self._completion)

    async def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("model") != self.name:
            said = f"the model {body.get('model')!r} is not served here; ask for {self.name!r}"
            raise RefusalError(404, "model_not_found", said)
        asked = _read(body)
        messages = [turn.model_dump() for turn in asked.messages]
        ids = tuple(encode_prompt(self.policy.tokenizer, messages))
        if len(ids) >= self.positions:
            said = f"the prompt has {len(ids)} tokens, the model takes {self.positions} in all"
            raise RefusalError(400, "context_length_exceeded", said)
        async with self._turn:  # a request whose client has gone leaves the queue here
            try:
                choice = await asyncio.to_thread(self.answer, ids, asked)
            except RuntimeError as problem:
                raise RefusalError(500, "server_error", first_line(problem)) from None
        return completion(self.name, choice, len(ids), "local")

    def answer(self, ids: tuple[int, ...], asked: Asked) -> Choice:
        """The model's answer; RuntimeError for none (no memory, logits that are not finite)."""
        from harness.model.generate import generate  # loads torch, which few that ask a judge need

        most = asked.max_completion_tokens or asked.max_tokens or self.positions
        limit = min(most, self.positions - len(ids))
        seed = request_seed("judge", asked.seed, 0)
        request = GenerationRequest(ids, limit, asked.temperature, asked.top_p, seed)
        (drawn,) = generate(self.policy, [request], batch_size=1)
        if drawn.status not in ("ok", "truncated"):
            raise RuntimeError(drawn.error)
        written = drawn.token_ids
        if written and written[-1] in self.policy.stop_token_ids:
            written = written[:-1]
        reason = "stop" if drawn.status == "ok" else "length"
        logprobs = self._logprobs(ids, written, asked.top_logprobs) if asked.logprobs else None
        return Choice(drawn.text, reason, len(written), logprobs)

    def _logprobs(
        self, ids: tuple[int, ...], written: tuple[int, ...], top: int
    ) -> list[dict[str, Any]]:
        """log softmax of the logits before each written token: its own, and the ``top`` largest."""
        import torch

        if not written:
            return []
        inputs_BT = torch.tensor([[*ids, *written]], device=self.policy.device)
        kept = len(written) + 1
        with torch.inference_mode():
            output = self.policy.model(input_ids=inputs_BT, logits_to_keep=kept, use_cache=False)
            logprobs_TV = output.logits[0, :-1].float().log_softmax(-1)
            values_TK, tokens_TK = logprobs_TV.topk(min(top, logprobs_TV.shape[-1]))
        entries = []
        for row, token in enumerate(written):
            best = zip(tokens_TK[row].tolist(), values_TK[row].tolist(), strict=True)
            most = [(self._token(other), value) for other, value in best]
            own = self._token(token), float(logprobs_TV[row, token])
            entries.append(token_entry(own, most))
        return entries

    def _token(self, token: int) -> str:
        return str(self.policy.tokenizer.decode([token]))
