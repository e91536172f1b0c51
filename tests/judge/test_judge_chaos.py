"""A thousand judgments through faults and kills: the verdicts are the fault-free run's, none lost,
none doubled, few calls wasted.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.judge.client import JudgeClient, JudgeReply, JudgeRequest
from harness.judge.journal import JUDGMENTS_NAME, finalise
from harness.judge.verdicts import parse_rating
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime
from tests.faulty_judge import FaultRates, FaultyJudge, serve

JUDGMENTS = 1000
KILLS = 20
FAULTS = FaultRates(
    rate_limited=0.10,
    server_error=0.05,
    hang=0.05,
    garbage_json=0.02,
    garbage_text=0.02,
    verdict_like=0.01,
    retry_after_s=0.02,
    latency_s=0.002,
)
RUNTIME = {
    "judge_concurrency": 8,
    "judge_timeout_s": 0.15,
    "judge_backoff_s": 0.01,
    "judge_deadline_s": 120.0,
}


def requests() -> list[JudgeRequest]:
    form = (
        "[Question]\nWhat is {a} plus {b}?\n\n[The Start of Assistant's Answer]\n"
        "The answer is {c}.\n[The End of Assistant's Answer]"
    )
    texts = [form.format(a=i % 30, b=i // 30, c=i % 30 + i // 30 + i % 2) for i in range(JUDGMENTS)]
    return [
        JudgeRequest(f"{i:04d}", ({"role": "user", "content": text},), {})
        for i, text in enumerate(texts)
    ]


def has_rating(reply: JudgeReply) -> bool:
    return parse_rating(reply.text).value is not None


def judge_all(url: str, folder: Path) -> list[JudgeReply]:
    runtime = Runtime(**RUNTIME | {"pocket_judge_url": url})
    with JudgeClient(JudgeSettings(noise=0.8), runtime, folder) as client:
        return client.complete(requests(), accept=has_rating)


def killed_runs(server: FaultyJudge, folder: Path, rng: random.Random) -> int:
    """Run the client in a process of its own, killed at random moments; then to its end. Returns
    the calls in flight at the kills.
    """
    code = (
        "import sys; from pathlib import Path; from tests.judge.test_judge_chaos import judge_all; "
        "judge_all(sys.argv[1], Path(sys.argv[2]))"
    )
    in_flight = 0
    for kill in range(KILLS + 1):
        before = server.counters["calls"]
        client = subprocess.Popen(
            [sys.executable, "-c", code, server.base_url, str(folder)],
            cwd=Path(__file__).parents[2],
        )
        try:
            if kill == KILLS:
                assert client.wait(120) == 0
                break
            until = before + rng.randint(1, 75)
            while server.counters["calls"] < until:
                assert client.poll() is None, (
                    "the client ended before its kill: fewer calls between kills are needed"
                )
                time.sleep(0.0005)
            time.sleep(rng.uniform(0.0, 0.005))
            in_flight += server.in_flight
            client.send_signal(signal.SIGKILL)
            client.wait(10)
        finally:
            client.kill()
        time.sleep(0.01)
    return in_flight


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JUDGMENTS_NAME).read_text().splitlines()]


@pytest.mark.slow
def test_a_thousand_judgments_survive_faults_and_twenty_kills(
    tmp_path: Path, record_property: Any
) -> None:
    clean, chaos = tmp_path / "clean", tmp_path / "chaos"
    with serve({"noise": 0.8}) as server:
        judge_all(server.base_url, clean)
        assert server.counters["calls"] == JUDGMENTS
    start = time.monotonic()
    with serve({"noise": 0.8}, FAULTS) as server:
        in_flight = killed_runs(server, chaos, random.Random(0))
        calls = server.counters["calls"]
    seconds = time.monotonic() - start
    for folder in (clean, chaos):
        assert finalise(folder) == 0
    verdicts = {row["id"]: row["text"] for row in rows(chaos) if row["status"] == "ok"}
    assert [row["id"] for row in rows(chaos)] == [f"{i:04d}" for i in range(JUDGMENTS)], (
        "none lost, none doubled"
    )
    assert len(verdicts) >= JUDGMENTS - 2, "an item may draw three unreadable replies in a row"
    expected = {row["id"]: row["text"] for row in rows(clean)}
    assert verdicts == {name: expected[name] for name in verdicts}
    figures = {
        "calls": calls,
        "in_flight_at_kills": in_flight,
        "verdicts": len(verdicts),
        "seconds": round(seconds, 1),
    }
    figures["calls_per_verdict"] = round((calls - in_flight) / len(verdicts), 3)
    record_property("chaos", figures)
    print(json.dumps(figures))
    assert calls - in_flight <= 1.5 * len(verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_sixteen_calls_in_flight_reach_nine_tenths_of_a_rate_limit(
    tmp_path: Path, told: bool
) -> None:
    limit, latency, burst = 60.0, 0.1, 10
    faults = FaultRates(requests_per_minute=60.0 * limit, burst=burst, latency_s=latency)
    with serve(faults=faults) as server:
        runtime = Runtime(
            judge_concurrency=16,
            judge_requests_per_minute=int(60 * limit) if told else 0,
            pocket_judge_url=server.base_url,
        )
        with JudgeClient(JudgeSettings(), runtime, tmp_path) as client:
            start = time.monotonic()
            replies = client.complete(requests()[:300])
            seconds = time.monotonic() - start - latency
    assert {reply.status for reply in replies} == {"ok"}
    assert 0.9 <= (len(replies) - burst) / seconds / limit <= 1.01
