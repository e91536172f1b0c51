"""A local chat model behind the published chat-completions schema: the judge that costs no money
(``selm judge-server --model``).

Messages go through the model's own template and the project's sampler; one request is answered at a
time, so that equal requests with equal seeds give equal text whatever else is asked.
Log-probabilities are the model's own log-softmax, not divided by the temperature.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from harness.judge import chat_http
from harness.model.chat import encode_prompt
from harness.model.generate import generate
from harness.model.policy import Policy
from harness.records import GenerationRequest, HarnessError, first_line, request_seed

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


def read(body: Mapping[str, Any]) -> Asked:
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
    """Answers ``POST /v1/chat/completions`` and ``GET /v1/models`` with a policy. name: what
    requests must call it.
    """

    def __init__(self, policy: Policy, name: str) -> None:
        self.policy, self.name = policy, name
        stated = getattr(policy.model.config, "max_position_embeddings", None)
        self.positions = int(stated or DEFAULT_POSITIONS)
        self._turn = asyncio.Lock()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One HTTP request. Bad ones get the published error object and never reach the model."""
        if request.path == "/v1/models" and request.method == "GET":
            return chat_http.models(self.name, "local")
        if request.path != "/v1/chat/completions" or request.method != "POST":
            said = f"no such path: {request.method} {request.path}"
            return chat_http.error(404, "not_found", said)
        try:
            body = json.loads(await request.read())
            if body.get("model") != self.name:
                said = f"the model {body.get('model')!r} is not served here; ask for {self.name!r}"
                return chat_http.error(404, "model_not_found", said)
            asked = read(body)
            messages = [turn.model_dump() for turn in asked.messages]
            ids = tuple(encode_prompt(self.policy.tokenizer, messages))
        except (ValueError, TypeError, KeyError, AttributeError, HarnessError) as problem:
            said = str(problem) or type(problem).__name__
            return chat_http.error(400, "invalid_request_error", said)
        if len(ids) >= self.positions:
            said = f"the prompt has {len(ids)} tokens, the model takes {self.positions} in all"
            return chat_http.error(400, "context_length_exceeded", said)
        async with self._turn:  # a request whose client has gone leaves the queue here
            try:
                choice = await asyncio.to_thread(self.answer, ids, asked)
            except RuntimeError as problem:
                return chat_http.error(500, "server_error", first_line(problem))
        return chat_http.reply(chat_http.completion(self.name, [choice], len(ids), "local"))

    def answer(self, ids: tuple[int, ...], asked: Asked) -> chat_http.Choice:
        """The model's answer. Raises RuntimeError when it gives none (out of memory, logits that
        are not finite).
        """
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
        return chat_http.Choice(drawn.text, reason, len(written), logprobs)

    @torch.inference_mode()
    def _logprobs(
        self, ids: tuple[int, ...], written: tuple[int, ...], top: int
    ) -> list[dict[str, Any]]:
        """log softmax of the logits before each written token: its own, and the ``top`` largest."""
        if not written:
            return []
        inputs_BT = torch.tensor([[*ids, *written]], device=self.policy.device)
        kept = len(written) + 1
        output = self.policy.model(input_ids=inputs_BT, logits_to_keep=kept, use_cache=False)
        logprobs_TV = output.logits[0, :-1].float().log_softmax(-1)
        values_TK, tokens_TK = logprobs_TV.topk(min(top, logprobs_TV.shape[-1]))
        entries = []
        for row, token in enumerate(written):
            best = zip(tokens_TK[row].tolist(), values_TK[row].tolist(), strict=True)
            most = [(self._token(other), value) for other, value in best]
            own = self._token(token), float(logprobs_TV[row, token])
            entries.append(chat_http.token_entry(own, most))
        return entries

    def _token(self, token: int) -> str:
        return str(self.policy.tokenizer.decode([token]))
