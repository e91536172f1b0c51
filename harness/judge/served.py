"""A local chat model behind the published chat-completions schema: the judge that costs no money
(``selm judge-server --model``).

Messages go through the model's own template and the project's sampler; one request is answered at a
time, so that equal requests with equal seeds give equal text whatever else is asked.
Log-probabilities are the model's own log-softmax, not divided by the temperature.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from aiohttp import web
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from harness.judge import chat_http
from harness.model.chat import encode_prompt
from harness.model.generate import generate
from harness.model.policy import Policy
from harness.records import Generation, GenerationRequest, HarnessError, first_line, request_seed

DEFAULT_POSITIONS = 4096
"""Tokens of prompt and answer together, for a model whose configuration states no limit."""
NOT_SUPPORTED = (
    *("stream", "tools", "functions", "logit_bias", "presence_penalty", "frequency_penalty"),
    *("response_format", "audio"),
)


class Part(BaseModel):
    """A part of a turn's text; other than text nothing can be read here."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A turn whose text may come in parts, as the schema allows."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def plain(self) -> dict[str, str]:
        """Role and text, as a template takes them."""
        said = self.content
        text = said if isinstance(said, str) else "".join(part.text for part in said)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Asked(BaseModel):
    """What one request asks for. top_logprobs: how many of the largest for each token."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=16)] = 1
    seed: int = 0
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(max_length=4),
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    ] = []
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
            messages = [turn.plain for turn in asked.messages]
            ids = tuple(encode_prompt(self.policy.tokenizer, messages))
        except (ValueError, TypeError, KeyError, AttributeError, HarnessError) as problem:
            said = str(problem) or type(problem).__name__
            return chat_http.error(400, "invalid_request_error", said)
        if len(ids) >= self.positions:
            said = f"the prompt has {len(ids)} tokens, the model takes {self.positions} in all"
            return chat_http.error(400, "context_length_exceeded", said)
        async with self._turn:  # a request whose client has gone leaves the queue here
            try:
                choices = await asyncio.to_thread(self.answer, ids, asked)
            except RuntimeError as problem:
                return chat_http.error(500, "server_error", first_line(problem))
        return chat_http.reply(chat_http.completion(self.name, choices, len(ids), "local"))

    def answer(self, ids: tuple[int, ...], asked: Asked) -> list[chat_http.Choice]:
        """Every choice asked for. Raises RuntimeError when the model gives none (out of memory,
        logits that are not finite).
        """
        most = asked.max_completion_tokens or asked.max_tokens or self.positions
        limit = min(most, self.positions - len(ids))
        seeds = [request_seed("judge", asked.seed, index) for index in range(asked.n)]
        drawing = (ids, limit, asked.temperature, asked.top_p)
        requests = [GenerationRequest(*drawing, seed) for seed in seeds]
        drawn = generate(self.policy, requests, batch_size=asked.n)
        failed = next((one.error for one in drawn if one.status not in ("ok", "truncated")), "")
        if failed:
            raise RuntimeError(failed)
        return [self._choice(ids, one, asked) for one in drawn]

    def _choice(self, ids: tuple[int, ...], drawn: Generation, asked: Asked) -> chat_http.Choice:
        stops = self.policy.stop_token_ids
        written = drawn.token_ids
        if written and written[-1] in stops:
            written = written[:-1]
        text, reason = drawn.text, "stop" if drawn.status == "ok" else "length"
        places = [text.find(stop) for stop in asked.stop if stop in text]
        if places:
            text, reason = text[: min(places)], "stop"
            written = self._until(written, text, asked.stop)
        logprobs = self._logprobs(ids, written, asked.top_logprobs) if asked.logprobs else None
        return chat_http.Choice(text, reason, len(written), logprobs)

    def _until(self, written: tuple[int, ...], kept: str, stop: Sequence[str]) -> tuple[int, ...]:
        """The tokens up to the one with which a stop text is complete."""
        for count in range(1, len(written) + 1):
            text = self.policy.tokenizer.decode(written[:count], skip_special_tokens=True)
            if text.startswith(kept) and any(one in text for one in stop):
                return written[:count]
        return written

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
