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
from typing import Any

import torch
from aiohttp import web

from harness.judge import chat_http
from harness.model.chat import encode_prompt
from harness.model.generate import generate
from harness.model.policy import Policy
from harness.records import Generation, GenerationRequest, HarnessError, first_line, request_seed

MOST_CHOICES, MOST_TOP, MOST_STOPS = 16, 20, 4
DEFAULT_POSITIONS = 4096
"""Tokens of prompt and answer together, for a model whose configuration states no limit."""
NOT_SUPPORTED = (
    *("stream", "tools", "functions", "logit_bias", "presence_penalty", "frequency_penalty"),
    *("response_format", "audio"),
)
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ServedModel:
    """Answers ``POST /v1/chat/completions`` and ``GET /v1/models`` with a policy. name: what
    requests must call it.
    """

    def __init__(self, policy: Policy, name: str) -> None:
        self.policy, self.name = policy, name
        self.positions = int(
            getattr(policy.model.config, "max_position_embeddings", None) or DEFAULT_POSITIONS
        )
        self._turn = asyncio.Lock()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One HTTP request. Bad ones get the published error object and never reach the model."""
        if request.path == "/v1/models" and request.method == "GET":
            return chat_http.models(self.name, "local")
        if request.path != "/v1/chat/completions" or request.method != "POST":
            return chat_http.error(
                404, "not_found", f"no such path: {request.method} {request.path}"
            )
        try:
            body = json.loads(await request.read())
            if body.get("model") != self.name:
                return chat_http.error(
                    404,
                    "model_not_found",
                    f"the model {body.get('model')!r} is not served here; ask for {self.name!r}",
                )
            asked = Asked(body)
            ids = tuple(encode_prompt(self.policy.tokenizer, asked.messages))
        except (ValueError, TypeError, KeyError, AttributeError, HarnessError) as problem:
            return chat_http.error(
                400, "invalid_request_error", str(problem) or type(problem).__name__
            )
        if len(ids) >= self.positions:
            return chat_http.error(
                400,
                "context_length_exceeded",
                f"the prompt has {len(ids)} tokens, the model takes {self.positions} in all",
            )
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
        limit = min(asked.max_tokens or self.positions, self.positions - len(ids))
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
        logprobs = self._logprobs(ids, written, asked.top) if asked.logprobs else None
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


class Asked:
    """What one request asks for; ValueError says what is wrong in it.

    top: how many of the largest log-probabilities for each token. max_tokens: 0 for what the model
    has room for.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        given = {name: body.get(name) for name in NOT_SUPPORTED}
        unsupported = [name for name, it in given.items() if it and it != {"type": "text"}]
        if unsupported:
            raise ValueError(f"not supported here: {', '.join(unsupported)}")
        self.messages = _messages(body.get("messages"))
        self.temperature = _number(body, "temperature", 1.0, 0.0, 2.0)
        self.top_p = _number(body, "top_p", 1.0, 1e-6, 1.0)
        self.n = int(_number(body, "n", 1, 1, MOST_CHOICES))
        self.seed = int(_number(body, "seed", 0, -(2**63), 2**63))
        names = ("max_completion_tokens", "max_tokens")
        limit = next((name for name in names if body.get(name) is not None), "")
        self.max_tokens = int(_number(body, limit, 1, 1, 2**31)) if limit else 0
        stop = body.get("stop") or []
        self.stop = [stop] if isinstance(stop, str) else list(stop)
        texts = [one for one in self.stop if isinstance(one, str) and one]
        if len(self.stop) > MOST_STOPS or len(texts) != len(self.stop):
            raise ValueError(f"stop: up to {MOST_STOPS} texts")
        self.logprobs = bool(body.get("logprobs"))
        self.top = int(_number(body, "top_logprobs", 0, 0, MOST_TOP))
        if self.top and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")


def _messages(given: Any) -> list[dict[str, str]]:
    """Turns with text; a turn's text may come in parts, as the schema allows."""
    if not isinstance(given, list) or not given:
        raise ValueError("messages: a list of turns with role and content")
    turns = []
    for turn in given:
        content = turn["content"]
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                raise ValueError("messages: only text can be read here")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str) or turn["role"] not in ROLES:
            wanted = "every turn has a role (system, user or assistant) and a text"
            raise ValueError(f"messages: {wanted}")
        turns.append({"role": ROLES[turn["role"]], "content": content})
    return turns


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}: a number from {low:g} to {high:g}, not {value!r}")
    return value
