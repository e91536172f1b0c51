"""Judge calls a second: client and server at full speed, and the share of a rate limit that 16
calls in flight reach. Prints JSON.

Expected on one 2020s core: more than 1,000 calls a second with client and server in one process, at
least 0.9 of the limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.judge.client import JudgeClient, JudgeRequest
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime
from tests.faulty_judge import FaultRates, serve


def requests(count: int) -> list[JudgeRequest]:
    form = (
        "{filler}[Question]\nWhich number is larger, {a} or {b}?\n\n"
        "[The Start of Assistant's Answer]\nIt is {c}.\n[The End of Assistant's Answer]"
    )
    filler = "Please act as an impartial judge and evaluate the quality of the response. " * 8
    return [
        JudgeRequest(
            str(i),
            ({"role": "user", "content": form.format(filler=filler, a=i % 50, b=i % 50 + 1, c=i)},),
            {},
        )
        for i in range(count)
    ]


def rate(url: str, count: int, **runtime: Any) -> dict[str, float]:
    """Judgments a second, 16 in flight."""
    given: dict[str, Any] = {"judge_concurrency": 16, "pocket_judge_url": url} | runtime
    values = Runtime(**given)
    with (
        tempfile.TemporaryDirectory() as folder,
        JudgeClient(JudgeSettings(), values, Path(folder) / "journal") as client,
    ):
        start = time.perf_counter()
        replies = client.complete(requests(count))
        seconds = time.perf_counter() - start
        assert all(reply.status == "ok" for reply in replies)
        return {
            "judgments_per_s": round(count / seconds, 1),
            "calls_per_judgment": round(client.calls / count, 3),
        }


def separate_process(count: int) -> dict[str, float]:
    code = "from harness.pocket.judge_server import run_forever; run_forever('127.0.0.1', 0, {})"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            return rate(process.stdout.readline().strip(), count)
        finally:
            process.terminate()


def limited(
    per_second: float, latency_s: float, paced: bool, count: int, burst: int = 10
) -> dict[str, float]:
    """The share of the server's limit that is reached, with the client told of it or not (then 429
    and Retry-After tell).

    burst: calls the server's token bucket holds; with 1 every call that comes a moment early is
    refused.
    """
    faults = FaultRates(requests_per_minute=60.0 * per_second, burst=burst, latency_s=latency_s)
    with serve(faults=faults) as server:
        found = rate(
            server.base_url, count, judge_requests_per_minute=int(60 * per_second) if paced else 0
        )
    seconds = count / found["judgments_per_s"] - latency_s  # of the last call
    return {
        **found,
        "limit_per_s": per_second,
        "burst": burst,
        "share_of_limit": round((count - burst) / seconds / per_second, 3),
    }


def main() -> dict[str, Any]:
    start = time.perf_counter()
    with serve() as server:
        started = time.perf_counter() - start
        same = rate(server.base_url, 3000)
    return {
        "server_start_s": round(started, 4),
        "client_and_server_in_one_process": same,
        "server_in_its_own_process": separate_process(3000),
        "rate_limited_paced": limited(100.0, 0.05, True, 500),
        "rate_limited_unpaced": limited(100.0, 0.05, False, 500),
        "rate_limited_paced_no_burst": limited(100.0, 0.05, True, 500, burst=1),
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
