"""Where a judge is asked: its address, its key, and the way there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from harness.judge.chat_http import is_loopback
from harness.records import HarnessError, content_hash
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

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
    """The endpoint the settings name. Pocket: ``runtime.pocket_judge_url`` or a server started
    in this process.
    """
    allowed = judge.allow_insecure_url
    if judge.kind == "pocket":
        from harness.pocket.judge import shared_server

        url = runtime.pocket_judge_url or shared_server(judge.opinion)
        checked, loopback = check_url(url, allowed)
        return Endpoint(checked, f"pocket:{content_hash(judge.opinion, length=16)}", loopback)
    url = judge.base_url or os.environ.get(URL_VARIABLE, "")
    if not url:
        raise HarnessError(
            "judge.kind is 'openai' but there is no address: set judge.base_url or the "
            f"{URL_VARIABLE} variable"
        )
    checked, loopback = check_url(url, allowed)
    return Endpoint(checked, checked, loopback)


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
    """The Authorization header from the environment; none for the pocket judge. Nothing else ever
    holds the key.
    """
    if judge.kind == "pocket":
        return {}
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not os.environ.get(KEY_VARIABLE):
        if endpoint.loopback:
            return {}
        raise HarnessError(f"no key for {endpoint.url}: set the {KEY_VARIABLE} variable")
    if not re.fullmatch(r"[!-~]+", key):
        raise HarnessError(
            f"{KEY_VARIABLE} holds spaces or characters that no key has (it is not shown here)"
        )
    return {"Authorization": f"Bearer {key}"}
