"""The vendors' batches: both benchmarks whole, one call a verdict, half the price; no kill, lost
answer or failed line loses or doubles one.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web

from harness import cost as judging
from harness.cli import findings
from harness.judge import batches, client
from harness.judge.client import DryRunError, JudgeClient, JudgeReply, JudgeRequest
from harness.judge.endpoint import Trouble
from harness.judge.journal import JOURNAL_NAME, JUDGMENTS_NAME, finalise
from harness.records import HarnessError, content_hash, write_jsonl
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime
from harness.study.work import Work
from tests.faulty_judge import FaultRates, serve
from tests.judge.test_judge_kinds import INSTRUCTIONS, NEW, QUESTIONS, TEXT, judged
from tests.judge.test_judge_kinds import files as files

FAST: dict[str, Any] = {"judge_backoff_s": 0.01, "judge_timeout_s": 5.0, "judge_deadline_s": 20.0}
BY_BATCH: dict[str, Any] = {"transport": "batch"}


def requests(count: int) -> list[JudgeRequest]:
    texts = [
        f"[Question]\nWhat is {n} plus 2?\n\n[The Start of Assistant's Answer]\nThe answer is "
        f"{n + 2}.\n[The End of Assistant's Answer]"
        for n in range(count)
    ]
    return [
        JudgeRequest(str(n), ({"role": "user", "content": t},), {}) for n, t in enumerate(texts)
    ]


def client_of(
    url: str, folder: Path, judge: Mapping[str, Any] = BY_BATCH, **runtime: Any
) -> JudgeClient:
    settings = JudgeSettings.model_validate({"transport": "batch"} | dict(judge))
    values = Runtime(**FAST | {"pocket_judge_url": url} | runtime)
    return JudgeClient(settings, values, folder)


def ask(url: str, folder: Path, count: int = 6, **runtime: Any) -> list[JudgeReply]:
    with client_of(url, folder, **runtime) as client:
        return client.complete(requests(count))


def said(folder: Path) -> list[dict[str, Any]]:
    """The committed judgments but for their keys, in which the server's port is."""
    rows = map(json.loads, (folder / JUDGMENTS_NAME).read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "key"} for row in rows]


# -- the server, and both benchmarks ---------------------------------------------------------------
def test_the_official_client_sends_a_batch_and_reads_it() -> None:
    with serve(script=lambda body: body["messages"][0]["content"].upper()) as server:
        official = openai.OpenAI(base_url=server.base_url, api_key="unused", max_retries=0)
        rows = [
            {
                "custom_id": f"q{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "m", "messages": [{"role": "user", "content": text}]},
            }
            for n, text in enumerate(("one", "two"))
        ]
        sent = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
        file = official.files.create(file=("asked.jsonl", sent), purpose="batch")
        batch = official.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        until = time.monotonic() + 5
        while official.batches.retrieve(batch.id).status != "completed":
            assert time.monotonic() < until
        done = official.batches.retrieve(batch.id)
        assert done.request_counts
        assert done.request_counts.completed == 2
        assert done.output_file_id
        found = map(json.loads, official.files.content(done.output_file_id).text.splitlines())
        texts = {
            row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
            for row in found
        }
        assert texts == {"q0": "ONE", "q1": "TWO"}
        assert [one.id for one in official.batches.list()] == [batch.id]
        with pytest.raises(openai.NotFoundError):
            official.batches.retrieve("batch_of_nobody")


@pytest.mark.parametrize("kind", [((), {}), (("new-parameters", "refuses-logprobs"), NEW)])
def test_both_benchmarks_run_through_one_batch_with_one_call_a_verdict(
    kind: tuple[tuple[str, ...], Mapping[str, Any]], files: dict[str, Path], tmp_path: Path
) -> None:
    like, judge = kind
    for benchmark, calls in {"mt_bench": 2 * QUESTIONS, "alpaca_eval": INSTRUCTIONS}.items():
        with serve({"noise": 0.0}) as plain:
            way = TEXT if judge else {}
            right = judged(benchmark, plain, files, tmp_path / f"{benchmark}-plain", **way)
        with serve({"noise": 0.0}, like=like) as server:
            found = judged(benchmark, server, files, tmp_path / benchmark, **judge, **BY_BATCH)
            assert found == right
            assert server.counters["calls"] == calls
            assert server.counters["POST batches"] == 1
        rows = [said(tmp_path / name) for name in (benchmark, f"{benchmark}-plain")]
        assert judge or rows[0] == rows[1]


def test_a_parameter_is_renamed_for_the_whole_batch_and_a_refused_one_ends_it(
    tmp_path: Path,
) -> None:
    with serve(like=("new-parameters",)) as server:
        with client_of(server.base_url, tmp_path, {"temperature": None}) as client:
            assert {reply.status for reply in client.complete(requests(4))} == {"ok"}
        assert server.counters["POST batches"] == 2
        warm = tmp_path / "warm"
        with (
            client_of(server.base_url, warm, {"max_tokens_as": "max_completion_tokens"}) as client,
            pytest.raises(HarnessError, match=r"judge\.temperature"),
        ):
            client.complete(requests(4))


# -- what fails ------------------------------------------------------------------------------------
def test_failed_lines_are_told_item_by_item_and_asked_again_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = FaultRates(server_error=0.15, garbage_json=0.05, batch_expired=0.1, seed=3)
    with serve(faults=faults) as server, caplog.at_level(logging.WARNING):
        replies = ask(server.base_url, tmp_path, 30)
        assert {reply.status for reply in replies} == {"ok"}
        calls, tried = server.counters["calls"], server.counters["POST batches"]
    assert 30 < calls < 30 * tried
    told = [record.getMessage() for record in caplog.records if "asked again" in record.msg]
    assert len(told) == calls - 30
    assert sum(reply.attempts for reply in replies) == calls
    assert any("could not be executed in time" in one for one in told)
    assert any("HTTP 500" in one for one in told)


def test_a_line_that_always_fails_is_an_error_of_its_item_that_the_next_run_asks_again(
    tmp_path: Path,
) -> None:
    with serve(faults=FaultRates(server_error=1.0)) as server:
        replies = ask(server.base_url, tmp_path, 2)
        assert [(reply.status, reply.attempts) for reply in replies] == [("error", 4)] * 2
        assert server.counters["POST batches"] == batches.MOST_FAILURES
        server.desk.answer = server._answered
        server.faults = FaultRates()
        assert {reply.status for reply in ask(server.base_url, tmp_path, 2)} == {"ok"}
        assert server.counters["POST batches"] == batches.MOST_FAILURES + 1


def test_an_unreadable_reply_is_asked_again_in_another_batch(tmp_path: Path) -> None:
    def script(body: Mapping[str, Any]) -> str:
        return "Rating: [[7]]" if "seed" in body else "no idea"

    with serve(script=script) as server, client_of(server.base_url, tmp_path) as client:
        replies = client.complete(requests(3), accept=lambda reply: "[[" in reply.text)
        assert {(reply.status, reply.text) for reply in replies} == {("ok", "Rating: [[7]]")}
        assert (server.counters["calls"], server.counters["POST batches"]) == (6, 2)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"code": "invalid_url", "message": "no such url"}, "no such url"),
        ({"code": "billing_hard_limit_reached", "message": "Billing hard limit"}, "Billing"),
    ],
)
def test_a_batch_that_is_refused_ends_the_run_with_the_vendors_words(
    state: dict[str, str], message: str, tmp_path: Path
) -> None:
    with serve() as server:
        server.desk._run = _fails(state)  # type: ignore[method-assign]
        with pytest.raises(HarnessError, match=message):
            ask(server.base_url, tmp_path)
        del server.desk._run
        assert {one.status for one in ask(server.base_url, tmp_path)} == {"ok"}


def test_a_full_queue_is_waited_out(tmp_path: Path) -> None:
    with serve() as server:
        run, full = server.desk._run, _fails({"code": batches.FULL, "message": "Enqueued tokens"})
        states = iter([full, full, run])
        server.desk._run = lambda *given: next(states)(*given)  # type: ignore[method-assign]
        assert {one.status for one in ask(server.base_url, tmp_path)} == {"ok"}
        assert (server.counters["POST batches"], server.counters["calls"]) == (3, 6)


def _fails(error: Mapping[str, str]) -> Callable[..., Any]:
    async def run(batch: dict[str, Any], _lines: list[str]) -> None:
        batch |= {"status": "failed", "errors": {"data": [dict(error)]}}

    return run


async def none(_request: web.BaseRequest) -> web.StreamResponse:
    """An endpoint without batches."""
    return web.Response(status=404)


def test_an_endpoint_without_batches_says_what_to_set(tmp_path: Path) -> None:
    with serve() as server:
        server.desk.handle = none  # type: ignore[method-assign]
        with pytest.raises(HarnessError, match=r"judge\.transport: direct"):
            ask(server.base_url, tmp_path)


# -- kills -----------------------------------------------------------------------------------------
def interrupted(folder: Path, count: int = 6) -> None:
    """The journal of a run that ended while its batch was waited for."""
    folder.mkdir(exist_ok=True)
    bodies = [client._body(request, JudgeSettings()) for request in requests(count)]
    rows = [
        {"file": "file-a", "lines": [content_hash(body, length=32) for body in bodies]},
        {"file": "file-a", "opened": "batch_a"},
    ]
    write_jsonl(folder / JOURNAL_NAME, rows)


def test_what_is_not_back_by_the_deadline_is_taken_up_by_the_next_run(tmp_path: Path) -> None:
    with serve(faults=FaultRates(batch_s=60.0)) as server:
        replies = ask(server.base_url, tmp_path, judge_deadline_s=1.5)
        assert {reply.status for reply in replies} == {"error"}
        assert "is in_progress (0 of 6 answered)" in replies[0].error
        assert finalise(tmp_path) == 6
        server.desk.takes_s = 0.0
        with client_of(server.base_url, tmp_path) as asking:
            assert {reply.status for reply in asking.complete(requests(6))} == {"ok"}
            assert asking.costs["judge_calls"] == 6
        assert (server.counters["calls"], server.counters["POST batches"]) == (6, 1)
        assert finalise(tmp_path) == 0


MOMENTS = [
    ("POST", "/files", "before"),
    ("POST", "/files", "after"),
    ("POST", "/batches", "before"),
    ("POST", "/batches", "after"),
    ("GET", "/batches/", "after"),
    ("GET", "/files/", "before"),
    ("GET", "/files/", "after"),
]


def killed_at_each(url: str, folder: Path) -> None:
    """A run for every moment of ``MOMENTS``, in a process of its own that is killed there."""
    once = batches.Batches._once
    for number, (method, path, when) in enumerate(MOMENTS):

        async def dying(
            self: batches.Batches, verb: str, to: str, sent: Mapping[str, Any]
        ) -> str | Trouble:
            here = verb == method and to.startswith(path)  # noqa: B023 - forked at once
            if here and when == "before":  # noqa: B023
                os.kill(os.getpid(), signal.SIGKILL)
            found = await once(self, verb, to, sent)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        child = os.fork()
        if not child:
            batches.Batches._once = dying  # type: ignore[method-assign]
            ask(url, folder / str(number))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_kill_at_any_call_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with serve() as server:
        code = (
            "import sys; from pathlib import Path; from tests.judge import test_judge_batches as "
            f"mine; mine.{killed_at_each.__name__}(sys.argv[1], Path(sys.argv[2]))"
        )
        command = [sys.executable, "-c", code, server.base_url, str(tmp_path)]
        subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
        for number in range(len(MOMENTS)):
            with client_of(server.base_url, tmp_path / str(number)) as asking:
                assert {reply.status for reply in asking.complete(requests(6))} == {"ok"}
                assert asking.costs["judge_calls"] == 6
        assert server.counters["calls"] == 6 * len(MOMENTS)
        assert server.counters["POST batches"] == len(MOMENTS)


def test_an_opening_whose_answer_is_lost_opens_no_second_batch(tmp_path: Path) -> None:
    with serve() as server:
        handle, lost = server.desk.handle, []

        async def losing(request: web.BaseRequest) -> web.StreamResponse:
            found = await handle(request)
            if request.method == "POST" and request.path.endswith("batches") and not lost:
                lost.append(found)
                return web.Response(status=502, text="Bad gateway")
            return found

        server.desk.handle = losing  # type: ignore[method-assign]
        assert {reply.status for reply in ask(server.base_url, tmp_path)} == {"ok"}
        assert lost
        assert (server.counters["calls"], len(server.desk.batches)) == (6, 1)


def test_a_batch_that_the_vendor_forgot_is_asked_again(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with serve() as server:
        assert {reply.status for reply in ask(server.base_url, tmp_path)} == {"ok"}
        assert (server.counters["calls"], server.counters["POST batches"]) == (6, 1)


def test_an_endpoint_that_cannot_say_what_became_of_a_batch_is_not_asked_anew(
    tmp_path: Path,
) -> None:
    interrupted(tmp_path)
    with serve() as server:

        async def broken(_request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=503)

        server.desk.handle = broken  # type: ignore[method-assign]
        replies = ask(server.base_url, tmp_path)
        assert {reply.status for reply in replies} == {"error"}
        assert "/batches/batch_a: HTTP 503" in replies[0].error
        assert server.counters["POST files"] == 0


@pytest.mark.parametrize("asked", ["POST /files", "POST /batches", "GET /batches/"])
def test_an_answer_of_another_form_is_an_error_of_the_items_that_the_next_run_mends(
    tmp_path: Path, asked: str
) -> None:
    with serve() as server:
        sound = server.desk.handle

        async def portal(request: web.BaseRequest) -> web.StreamResponse:
            told = f"{request.method} {request.path.removeprefix('/v1')}"
            if told.startswith(asked):
                return web.Response(text="<html>Sign in</html>")
            return await sound(request)

        server.desk.handle = portal  # type: ignore[method-assign]
        replies = ask(server.base_url, tmp_path)
        assert {(one.status, "published schema" in one.error) for one in replies} == {
            ("error", True)
        }
        server.desk.handle = sound  # type: ignore[method-assign]
        assert {one.status for one in ask(server.base_url, tmp_path)} == {"ok"}
        assert server.counters["calls"] == 6


def test_lines_of_another_form_are_passed_over() -> None:
    rows: list[Any] = [
        {"custom_id": "a", "response": "gone"},
        {"custom_id": "b", "response": {"body": {}}},
        {"custom_id": "c", "error": "late"},
        ["d"],
        {"custom_id": "e", "response": {"status_code": 200, "body": {}}},
    ]
    text = "\n".join(["<html>", *map(json.dumps, rows)])
    assert dict(batches._lines(text)) == {"e": (200, "{}")}


def test_more_than_a_batch_may_hold_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_LINES", 4)
    with serve() as server:
        assert [one.id for one in ask(server.base_url, tmp_path, 10)] == [*map(str, range(10))]
        assert (server.counters["POST batches"], server.counters["calls"]) == (3, 10)


def test_an_upload_that_fails_costs_no_other_files_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_LINES", 3)
    with serve() as server:
        sound, lost = server.desk.handle, []

        async def losing(request: web.BaseRequest) -> web.StreamResponse:
            if (request.method, request.path) == ("POST", "/v1/files") and not lost:
                lost.append(request)
                return web.Response(text="<html>Sign in</html>")
            return await sound(request)

        server.desk.handle = losing  # type: ignore[method-assign]
        statuses = [reply.status for reply in ask(server.base_url, tmp_path)]
        assert sorted(statuses) == ["error"] * 3 + ["ok"] * 3
        assert {reply.status for reply in ask(server.base_url, tmp_path)} == {"ok"}
        assert server.counters["calls"] == 6


# -- its price -------------------------------------------------------------------------------------
PRICES: dict[str, Any] = {
    "price_prompt_usd_per_million": 3.0,
    "price_completion_usd_per_million": 8.0,
}


def test_a_batch_costs_half_in_the_plan_in_the_limit_and_in_what_was_spent(tmp_path: Path) -> None:
    judge, direct = JudgeSettings(transport="batch"), JudgeSettings()
    runtime = Runtime(**PRICES)
    work = Work(judge_calls=10, judge_prompt=1000, judge_reply=500)
    assert judging.price(direct, runtime, work) == pytest.approx((3000 + 4000) / 1e6)
    (bill,) = judging.bills([(judge, runtime, work)])
    assert bill.usd == pytest.approx(3500 / 1e6)
    assert bill.name == "pocket-judge by batch"
    with serve() as server:
        with client_of(server.base_url, tmp_path, {"transport": "direct"}, **PRICES) as client:
            client.complete(requests(2))
            whole = client.costs["judge_usd"]
        with client_of(server.base_url, tmp_path, **PRICES) as client:
            client.complete(requests(4))
            assert client.costs["judge_usd"] == pytest.approx(1.5 * whole, rel=0.02)
        with (
            client_of(server.base_url, tmp_path, judge_dry_run=True, **PRICES) as client,
            pytest.raises(DryRunError) as planned,
        ):
            client.complete(requests(6))
    assert planned.value.costs["judge_calls"] == 2
    tokens = [planned.value.costs[f"judge_{name}"] for name in ("prompt_tokens",)]
    limit = 2 * direct.max_tokens
    assert planned.value.costs["judge_usd_at_most"] == pytest.approx(
        (tokens[0] * 1.5 + limit * 4.0) / 1e6
    )


def test_the_cost_limit_holds_over_batches(tmp_path: Path) -> None:
    with serve() as server:
        with client_of(server.base_url, tmp_path, **PRICES) as client:
            one = client.plan_cost(requests(1))["judge_usd_at_most"]
        replies = ask(server.base_url, tmp_path, max_cost_usd=2.5 * one, **PRICES)
        assert {reply.status for reply in replies} == {"ok"}
        assert server.counters["POST batches"] >= 3, "no more than two fit under the limit at once"


def test_the_way_it_is_asked_is_in_no_key() -> None:
    assert "transport" in JudgeSettings.unkeyed


def test_the_doctor_asks_directly_and_says_whether_batches_are_taken() -> None:
    with serve() as server:
        fields = {"kind": "openai", "base_url": server.base_url, "model": "pocket-judge"}
        judge = JudgeSettings.model_validate(fields | BY_BATCH | {"profile": "mine"})
        found = list(findings.asked(judge, ("mt_bench",), Runtime(**FAST), httpx.get))
        assert [one.state for one in found] == ["ok", "ok", "ok"]
        assert "takes batches" in found[1].says
        assert server.counters["POST batches"] == 0
        server.desk.handle = none  # type: ignore[method-assign]
        found = list(findings.asked(judge, ("mt_bench",), Runtime(**FAST), httpx.get))
        assert [one.state for one in found] == ["ok", "WRONG"]
        assert "judge.transport: direct" in found[1].says
