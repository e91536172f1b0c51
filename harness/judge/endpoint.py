"""Where a judge is asked and how its replies are read: addresses, keys, redaction, and the
published chat-completions schema.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from harness.judge.chat_http import is_loopback
from harness.records import HarnessError, Status, content_hash, redact
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
CHARACTERS_PER_TOKEN = 3.5
"""For estimates before anything is sent, and for endpoints that give no ``usage``."""
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_FILTER_CODES = ("content_filter", "content_policy_violation")
_RETRIED = frozenset({408, 409, 425, 429})


@dataclass(frozen=True)
class Endpoint:
    """url: where calls go. identity: what enters the keys (the pocket judge's port does not).
    loopback: no proxy, key optional.
    """

    url: str
    identity: str
    loopback: bool


def resolve_endpoint(judge: JudgeSettings, runtime: Runtime) -> Endpoint:
    """The endpoint the settings name. Pocket: ``runtime.pocket_judge_url`` or a server started
    in this process.
    """
    allowed = judge.allow_insecure_url
    if judge.kind == "pocket":
        url = runtime.pocket_judge_url
        if not url:
            from harness.pocket.judge_server import shared_server

            url = shared_server(judge.opinion)
        opinion = judge.opinion
        checked, loopback = check_url(url, allowed)
        return Endpoint(checked, f"pocket:{content_hash(opinion, length=16)}", loopback)
    url = judge.base_url or os.environ.get(URL_VARIABLE, "")
    if not url:
        raise HarnessError(
            "judge.kind is 'openai' but there is no address: set judge.base_url or the "
            f"{URL_VARIABLE} variable"
        )
    checked, loopback = check_url(url, allowed)
    return Endpoint(checked, checked, loopback)


def check_url(url: str, allowed_host: str = "") -> tuple[str, bool]:
    """(address without trailing slash, whether it is loopback); HarnessError unless https,
    loopback, or plain http to the host named.

    Addresses that carry a secret (user information, a query) are refused without being shown.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment or "@" in parts.netloc:
        raise HarnessError(
            "judge.base_url carries user information or a query; give the plain address and put "
            f"the key into {KEY_VARIABLE}"
        )
    host = parts.hostname or ""
    loopback = is_loopback(host)
    if parts.scheme not in ("http", "https") or not host:
        raise HarnessError(f"judge.base_url {url!r} is no http(s) address")
    if (
        parts.scheme == "http"
        and not loopback
        and host not in (allowed_host, urlsplit(allowed_host).hostname)
    ):
        raise HarnessError(
            f"judge.base_url {url!r} would send the key unencrypted; use https, or name {host!r} "
            "in judge.allow_insecure_url"
        )
    return url.rstrip("/"), loopback


def auth_headers(judge: JudgeSettings, endpoint: Endpoint) -> dict[str, str]:
    """The Authorization header from the environment; none for the pocket judge. Nothing else ever
    holds the key.
    """
    if judge.kind == "pocket":
        return {}
    if not os.environ.get(KEY_VARIABLE):
        if endpoint.loopback:
            return {}
        raise HarnessError(f"no key for {endpoint.url}: set the {KEY_VARIABLE} variable")
    if not re.fullmatch(r"[!-~]+", os.environ[KEY_VARIABLE].strip()):
        raise HarnessError(
            f"{KEY_VARIABLE} holds spaces or characters that no key has (it is not shown here)"
        )
    return {"Authorization": "Bearer " + os.environ[KEY_VARIABLE].strip()}


@dataclass(frozen=True)
class Trouble:
    """An attempt that gave no reply. permanent: asking again is no use. counts: 1 when it uses up
    one of the attempts.
    """

    reason: str
    retry_after_s: float | None = None
    permanent: bool = False
    counts: int = 1

    def delay(self, failures: int, base_s: float, cap_s: float) -> float:
        """Seconds to wait: what the endpoint asked for plus jitter, else a random share of base *
        2^failures (at most the cap).
        """
        if self.retry_after_s is not None:
            return self.retry_after_s + random.uniform(
                0.0, min(base_s, 0.1 + 0.1 * self.retry_after_s)
            )
        return random.uniform(0.5, 1.0) * min(cap_s, base_s * 2.0 ** max(0, failures - 1))


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered, read from the published schema."""

    status: Status
    text: str
    logprobs: list[Any] | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    error: str = ""

    def fields(self) -> dict[str, Any]:
        return dict(self.__dict__)


def read_reply(
    status: int, headers: Mapping[str, str], text: str, body: Mapping[str, Any]
) -> Reply | Trouble:
    """Read one HTTP answer to ``body``, ``text`` being without the key already.

    HarnessError when no later call can do better (key refused, quota exhausted, wrong address or
    model).
    """
    if status == 200:
        try:
            return _completion(json.loads(text, parse_constant=_refuse_constant), body)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return Trouble(f"reply is not of the published schema ({type(error).__name__})")
    code, message = _error_of(text)
    shown = redact(f"HTTP {status} {code} {message}".strip())[:300]
    if status in (401, 402, 403, 404, 405) or 300 <= status < 400 or code in _QUOTA_CODES:
        raise HarnessError(
            f"the judge refuses every call: {shown}; check {KEY_VARIABLE}, the quota, "
            "judge.base_url and judge.model"
        )
    if code in _FILTER_CODES:
        return Reply("refused", "", None, 0, 0, "", shown)
    if status in _RETRIED or status >= 500:
        after = _retry_after(headers)
        return Trouble(shown, after, counts=0 if status == 429 and after is not None else 1)
    return Trouble(shown, permanent=True)


def _completion(data: Mapping[str, Any], body: Mapping[str, Any]) -> Reply:
    choice = data["choices"][0]
    message = choice["message"]
    text = message.get("content") or ""
    if not isinstance(text, str):
        raise TypeError("content is not text")
    usage = data.get("usage") or {
        "prompt_tokens": estimate_tokens(body["messages"]),
        "completion_tokens": int(len(text) / CHARACTERS_PER_TOKEN) + 1,
    }
    logprobs = (choice.get("logprobs") or {}).get("content")
    status: Status = "ok"
    if choice.get("finish_reason") == "content_filter" or message.get("refusal"):
        status = "refused"
    elif choice.get("finish_reason") == "length" and body.get("max_tokens") != 1:
        status = "truncated"
    return Reply(
        status=status,
        text=text or str(message.get("refusal") or ""),
        logprobs=None if logprobs is None else [_token(entry) for entry in logprobs],
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        model=str(data.get("model") or ""),
    )


def estimate_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(4 + int(len(message["content"]) / CHARACTERS_PER_TOKEN) for message in messages)


def _token(entry: Mapping[str, Any]) -> dict[str, Any]:
    top = [
        {"token": str(t["token"]), "logprob": float(t["logprob"])}
        for t in entry.get("top_logprobs") or ()
    ]
    return {"token": str(entry["token"]), "logprob": float(entry["logprob"]), "top_logprobs": top}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _error_of(text: str) -> tuple[str, str]:
    try:
        error = json.loads(text)["error"]
        return str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", text[:200]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from ``retry-after-ms`` or ``Retry-After`` (number or date); None without."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000.0)
        value = headers.get("Retry-After", "")
        if not value:
            return None
        try:
            return max(0.0, float(value))
        except ValueError:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
