"""A judge's endpoint: its address, its key and the way there; and what it answers, read from the
published chat-completions schema and from what makers add to it: a reply, why there is none, or one
message that ends the stage.
"""

from __future__ import annotations

import email.utils
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from harness.judge import verdicts
from harness.judge.chat_http import is_loopback
from harness.records import HarnessError, Status, content_hash, redact
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"


@dataclass(frozen=True)
class Endpoint:
    """url: where calls go. identity: what enters the keys (the pocket judge's port does not).
    loopback: no proxy, key optional.
    """

    url: str
    identity: str
    loopback: bool

    @property
    def proxy(self) -> str | None:
        """As the environment has it. aiohttp's own way there would read a .netrc too, whose
        password cannot be sent beside a key.
        """
        parts = urlsplit(self.url)
        without = self.loopback or proxy_bypass(parts.netloc)
        return None if without else getproxies().get(parts.scheme)


def resolve_endpoint(judge: JudgeSettings, runtime: Runtime) -> Endpoint:
    """The endpoint the settings name; for the pocket judge it may be started in this process."""
    if judge.kind == "pocket":
        from harness.pocket.judge import shared_server

        url, loopback = check_url(runtime.pocket_judge_url or shared_server(judge.opinion))
        return Endpoint(url, f"pocket:{content_hash(judge.opinion, length=16)}", loopback)
    url = judge.base_url or os.environ.get(URL_VARIABLE, "")
    if not url:
        raise HarnessError(
            "judge.kind is 'openai' but there is no address: set judge.base_url or the "
            f"{URL_VARIABLE} variable"
        )
    url, loopback = check_url(url, judge.allow_insecure_url)
    return Endpoint(url, url, loopback)


def check_url(url: str, allowed_host: str = "") -> tuple[str, bool]:
    """(address without trailing slash and without ``/chat/completions``, whether it is loopback);
    HarnessError unless https, loopback, or plain http to the host named.

    Addresses that carry a secret (user information, a query) are refused without being shown.
    """
    url = url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment or "@" in parts.netloc:
        raise HarnessError(
            "judge.base_url carries user information or a query; give the plain address (Azure: "
            f"https://NAME.openai.azure.com/openai/v1) and put the key into {KEY_VARIABLE}"
        )
    host = parts.hostname or ""
    loopback = is_loopback(host)
    if parts.scheme not in ("http", "https") or not host:
        raise HarnessError(f"judge.base_url {url!r} is no http(s) address")
    allowed = loopback or host in (allowed_host, urlsplit(allowed_host).hostname)
    if parts.scheme == "http" and not allowed:
        raise HarnessError(
            f"judge.base_url {url!r} would send the key unencrypted; use https, or name {host!r} "
            "in judge.allow_insecure_url"
        )
    return url, loopback


def auth_headers(judge: JudgeSettings, endpoint: Endpoint) -> dict[str, str]:
    """The Authorization header from the environment; nothing else ever holds the key."""
    given = os.environ.get(KEY_VARIABLE, "")
    if judge.kind == "pocket" or (endpoint.loopback and not given):
        return {}
    if not given:
        raise HarnessError(f"no key for {endpoint.url}: set the {KEY_VARIABLE} variable")
    key = given.strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise HarnessError(
            f"{KEY_VARIABLE} holds spaces or characters that no key has (it is not shown here)"
        )
    return {"Authorization": f"Bearer {key}"}


# -- what it answers -------------------------------------------------------------------------------
CHARACTERS_PER_TOKEN = 3.5
"""For estimates before anything is sent, and for endpoints that give no ``usage``."""


@dataclass(frozen=True)
class JudgeReply:
    """The endpoint's reply to one question, its ``id`` and ``repeat``.

    ``logprobs``: the ``content`` list of the published schema (token, logprob, top_logprobs).
    model: as the endpoint names itself. batch: the vendor's file in whose batch it was asked.
    """

    id: str
    repeat: int
    status: Status
    text: str = ""
    logprobs: list[Any] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    attempts: int = 0
    model: str = ""
    batch: str = ""


@dataclass(frozen=True)
class Trouble:
    """An attempt that gave no reply. permanent: asking again is no use. counts: 1 when it uses up
    one of the attempts. instead: a parameter that it does not take, and the name under which it
    does (empty: none).
    """

    reason: str
    retry_after_s: float | None = None
    permanent: bool = False
    counts: int = 1
    instead: tuple[str, str] | None = None

    def delay(self, failures: int, base_s: float, cap_s: float) -> float:
        """Seconds to wait: what the endpoint asked for plus jitter, else a random share of base *
        2^failures (at most the cap).
        """
        if self.retry_after_s is not None:
            jitter = min(base_s, 0.1 + 0.1 * self.retry_after_s)
            return self.retry_after_s + random.uniform(0.0, jitter)
        return random.uniform(0.5, 1.0) * min(cap_s, base_s * 2.0 ** max(0, failures - 1))


class Parameters:
    """What an endpoint takes, learned from its refusals: parameter → name there, or nothing."""

    def __init__(self) -> None:
        self.instead: dict[str, str] = {}

    def sent(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request's body as this endpoint takes it."""
        renamed = {self.instead.get(name, name): value for name, value in body.items()}
        return {name: value for name, value in renamed.items() if name}

    def learn(self, trouble: Trouble) -> None:
        """Remember what an answer says of a parameter."""
        parameter, name = trouble.instead or ("", "")
        if parameter and parameter not in self.instead:
            self.instead[parameter] = name
            log.warning("the judge does not take %s: %s", parameter, name or "it is left out")


def read_answer(status: int, headers: Mapping[str, str], text: str) -> str | Trouble:
    """An HTTP answer that is no completion: its text, or why there is none."""
    if status == 200:
        return text
    failure = _failure(status, _json(text), text) or Failure(status)
    found = _read_failure(failure, headers, {})
    return found if isinstance(found, Trouble) else Trouble(found.error, permanent=True)


def read_reply(
    status: int, headers: Mapping[str, str], text: str, body: Mapping[str, Any]
) -> JudgeReply | Trouble:
    """Read one HTTP answer to ``body``, ``text`` being without the key already; the caller names
    the question. An error object counts whatever the status.

    HarnessError when no later call can do better (key refused, quota exhausted, wrong address or
    model, a parameter that the endpoint does not take).
    """
    data = _json(text)
    failure = _failure(status, data, text)
    if failure is not None:
        return _read_failure(failure, headers, body)
    if re.match(r"\s*(data|event):", text) or _first(data, "object") == "chat.completion.chunk":
        raise HarnessError(
            "the judge answers in a stream only; judge.base_url needs an endpoint that gives whole "
            "replies (stream: false)"
        )
    if data is None:
        return Trouble("reply is no JSON of the published schema")
    try:
        return _completion(data, body)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        return Trouble(f"reply is not of the published schema ({type(error).__name__})")


def _json(text: str) -> Any:
    """What a text says in JSON proper, without NaN and Infinity; None where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _first(data: Any, name: str) -> Any:
    return data.get(name) if isinstance(data, Mapping) else None


# -- a completion ----------------------------------------------------------------------------------
CUT = (
    *("length", "max_tokens", "model_length", "max_output_tokens", "incomplete"),
    "model_context_window_exceeded",
)
FILTERED = (
    *("content_filter", "safety", "refusal", "sensitive", "recitation", "prohibited_content"),
    *("blocklist", "guardrail_intervened"),
)
BROKEN = (
    *("error", "abort", "aborted", "cancelled", "failed", "network_error", "timeout"),
    "insufficient_system_resource",
)
"""``finish_reason`` in lower case, as endpoints of several makers write it."""
NO_LOGPROB = -9999.0


def _completion(data: Mapping[str, Any], body: Mapping[str, Any]) -> JudgeReply | Trouble:
    choice = data["choices"][0]
    reason, limit = str(choice.get("finish_reason") or "").lower(), token_limit(body)
    reason = reason.partition(":")[0]
    if reason in BROKEN:
        return Trouble(f"the reply was broken off ({reason})")
    message = choice.get("message") or {} if reason in CUT else choice["message"]
    text, refusal = _texts(message.get("content")), message.get("refusal")
    thought = message.get("reasoning_content") or message.get("reasoning")
    logprobs = (choice.get("logprobs") or {}).get("content")
    said = verdicts.spoken(text)
    if limit == 1 and (said is None or (thought and not text)):
        raise HarnessError(
            "the judge thinks before it answers, so its first token is no verdict; turn its "
            "thinking off (judge.extra_body) or set judge.verdict: text"
        )
    status: Status = "ok"
    error = ""
    if reason in FILTERED or refusal:
        status = "refused"
    elif reason in CUT and limit != 1:
        status, error = "truncated", f"{verdicts.CUT_OFF} at {limit} tokens"
    elif said is None:
        status, error = "truncated", f"{verdicts.CUT_OFF} in its thinking"
    elif thought and not said:
        error = "empty: all of it is in its thinking"
    prompt_tokens, completion_tokens = _usage(data.get("usage") or {}, text, body)
    return JudgeReply(
        *("", 0),
        status=status,
        text=(text if said is None else said) or str(refusal or ""),
        logprobs=None if logprobs is None else [_token(entry) for entry in logprobs],
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=" by ".join(str(data[name]) for name in ("model", "provider") if data.get(name)),
        error=error,
    )


def _usage(usage: Mapping[str, Any], text: str, body: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the reply, its thinking included (which Gemini and xAI count in
    the total alone); estimated where the endpoint tells none.
    """
    names = ("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")
    prompt, reply = (max(int(usage.get(a) or usage.get(b) or 0), 0) for a, b in names)
    if not prompt and not reply:
        return estimate_tokens(body["messages"]), int(len(text) / CHARACTERS_PER_TOKEN) + 1
    total = int(usage.get("total_tokens") or 0)
    return prompt, max(reply, total - prompt) if prompt else reply


def _texts(content: Any) -> str:
    """A message's content: text, or parts of which those that are text count (not its thinking)."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = [part["text"] for part in content if part["type"] in ("text", "output_text")]
    return "".join(texts)


def token_limit(body: Mapping[str, Any]) -> int | None:
    """Most tokens of the reply, under either name of the parameter."""
    limit: int | None = body.get("max_tokens", body.get("max_completion_tokens"))
    return limit


def estimate_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Tokens of a prompt, before a tokenizer has seen it."""
    return sum(4 + int(len(message["content"]) / CHARACTERS_PER_TOKEN) for message in messages)


def _token(entry: Mapping[str, Any]) -> dict[str, Any]:
    top = [_likelihood(one) for one in entry.get("top_logprobs") or ()]
    return {**_likelihood(entry), "top_logprobs": top}


def _likelihood(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A token and its log-probability; one that has none gets the published schema's lowest."""
    token = str(entry["token"])
    if re.fullmatch(r"token_id:\d+", token):
        raise HarnessError(
            "the judge names tokens by their numbers, so no verdict can be read; start vLLM "
            "without --return-tokens-as-token-ids"
        )
    value = float(NO_LOGPROB if entry.get("logprob") is None else entry["logprob"])
    return {"token": token, "logprob": value if math.isfinite(value) else NO_LOGPROB}


# -- an error --------------------------------------------------------------------------------------
_RETRIED = frozenset({408, 409, 425, 429})
_STATUS_OF = {
    **dict.fromkeys(("invalid_request_error", "BadRequestError"), 400),
    **dict.fromkeys(("invalid_api_key", "authentication_error"), 401),
    **dict.fromkeys(("model_not_found", "not_found_error", "NotFoundError"), 404),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error"), 429),
    "permission_error": 403,
}
"""Of error objects that come with HTTP 200; any other is taken for a fault of the server."""
_QUOTA = re.compile(
    r"insufficient[ _](quota|balance|credit|fund)|billing_(hard_limit|not_active)|credit balance is"
    r" too low|(more|out of|no|run out of) credits|credits? (are |is |has been )?exhausted|budget"
    r"(_| has been )exceeded|used all available credits|spending limit|specified API usage limit",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"API key (is )?(not valid|invalid)|(invalid|incorrect) API key|not a valid model|model not "
    r"exist|model_not_found|no models loaded",
    re.IGNORECASE,
)
"""The key or the model, where the status does not say it."""
_FILTER = re.compile(
    r"content[ _-]?(filter|management policy|policy[ _]?violation|exists risk)|data_inspection"
    r"|inappropriate content|(input|prompt) was (flagged|blocked)|considered high risk|敏感内容",
    re.IGNORECASE,
)
_WAIT = re.compile(
    r"(?:retry|try again) (?:in|after) (?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+) ?(m?)s)?",
    re.IGNORECASE,
)
"""How long to wait, where a message says it."""
_KEY_OF = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "judge.max_tokens"),
    "temperature": "judge.temperature (null: not sent)",
    "reasoning_effort": "judge.reasoning_effort",
    "seed": "",
    **dict.fromkeys(
        ("top_logprobs", "logprobs", "top_p"),
        "judge.verdict (text: no log-probabilities are asked for)",
    ),
}
"""Parameters that an endpoint may refuse, and what to change then."""
_PARAMETER = re.compile(rf"(?<!\w)({'|'.join(_KEY_OF)})(?!\w)", re.IGNORECASE)
_NOT_TAKEN = re.compile(
    r"(un|not |n't )(support|allow|permit|recogni[sz]|accept|available)"
    r"|unknown|unexpected|unsupported|deprecated|extra_forbidden|extra inputs|cannot both|must be"
    r"|not enabled|greater than|less than or equal|too large",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """An error as the endpoint words it. parameter: of the request, where it names one."""

    status: int
    code: str = ""
    message: str = ""
    parameter: str = ""

    def is_about(self, pattern: re.Pattern[str]) -> bool:
        """Whether its words match."""
        return pattern.search(f"{self.code} {self.message}") is not None


def _failure(status: int, data: Any, text: str) -> Failure | None:
    """The error that an answer holds: of the answer, of its choice, or an object that is one; None
    of a sound answer. Some wrap the answer in a list, some give the error as text alone.
    """
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    choices = _first(data, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    error = _first(data, "error") or _first(choice, "error")
    if not error and (_first(data, "object") == "error" or status != 200):
        error = data
    if not error:
        return None if status == 200 else Failure(status, message=text[:200])
    if not isinstance(error, Mapping):
        error = {"message": error if isinstance(error, str) else text[:200]}
    code = str(error.get("code") or error.get("type") or "")
    said = error.get("message") or error.get("detail") or text[:200]
    message = said if isinstance(said, str) else json.dumps(said)
    upstream = _first(error.get("metadata"), "raw")
    message += f" ({upstream})" if upstream else ""
    if status == 200:
        status = int(code) if re.fullmatch(r"[345]\d\d", code) else _STATUS_OF.get(code, 500)
    return Failure(status, code, message, str(error.get("param") or ""))


def _refused_parameter(failure: Failure, body: Mapping[str, Any]) -> str:
    """The parameter of the request that the endpoint does not take, or nothing. A prompt that is
    too long for the model is a fault of that prompt alone.
    """
    too_long = failure.is_about(re.compile("context", re.IGNORECASE))
    if failure.status not in (400, 403, 422) or too_long:
        return ""
    if not (failure.parameter or failure.is_about(_NOT_TAKEN)):
        return ""
    named = [failure.parameter, *map(str.lower, _PARAMETER.findall(failure.message))]
    return next((name for name in named if name in body and name in _KEY_OF), "")


def _read_failure(
    failure: Failure, headers: Mapping[str, str], body: Mapping[str, Any]
) -> JudgeReply | Trouble:
    status, parameter = failure.status, _refused_parameter(failure, body)
    shown = redact(f"HTTP {status} {failure.code} {failure.message}".strip())[:300]
    if parameter == "max_tokens" and "max_completion_tokens" in failure.message:
        return Trouble(shown, instead=(parameter, "max_completion_tokens"))
    if parameter == "seed":
        return Trouble(shown, instead=(parameter, ""))
    if parameter:
        raise HarnessError(
            f"the judge does not take {parameter}: {shown}; change {_KEY_OF[parameter]} or "
            "judge.model"
        )
    if failure.is_about(_FILTER):
        return JudgeReply("", 0, "refused", error=shown)
    ends = status in (401, 402, 403, 404, 405) or 300 <= status < 400
    ends = ends or (status == 400 and failure.is_about(_UNKNOWN))
    if ends or failure.is_about(_QUOTA):
        raise HarnessError(
            f"the judge refuses every call: {shown}; check {KEY_VARIABLE}, the quota, "
            "judge.base_url and judge.model"
        )
    if status in _RETRIED or status >= 500:
        after = _retry_after(headers) or _wait_named(failure.message)
        return Trouble(shown, after, counts=0 if status == 429 and after is not None else 1)
    return Trouble(shown, permanent=True)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from ``retry-after-ms`` or ``Retry-After`` (number or date); None for no time."""
    value = headers.get("Retry-After", "")
    try:
        if "retry-after-ms" in headers:
            found = float(headers["retry-after-ms"]) / 1000.0
        elif re.fullmatch(r"\s*[-+]?[\d.]+\s*", value):
            found = float(value)
        else:
            found = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return found if found > 0 else None


def _wait_named(message: str) -> float | None:
    """Seconds that a message asks to wait ("try again in 7m12.5s"); None where it names none."""
    found = _WAIT.search(message)
    hours, minutes, seconds, milli = found.groups() if found else ("",) * 4
    try:
        rest = float(seconds or 0) / (1000.0 if milli else 1.0)
    except ValueError:
        return None
    return 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + rest or None
