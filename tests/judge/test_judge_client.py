"""The judge client: one call per judgment whatever happens, nothing lost, nothing doubled, no
secret anywhere.
"""

from __future__ import annotations

import io
import json
import logging
import math
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge import client as judge_module
from harness.judge import endpoint as endpoint_module
from harness.judge.client import JudgeClient, JudgeReply, JudgeRequest, request_key
from harness.judge.endpoint import Trouble, check_url, read_reply, resolve_endpoint
from harness.judge.journal import JOURNAL_NAME, JUDGMENTS_NAME, Journal, finalise
from harness.records import HarnessError, redact
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime
from tests.faulty_judge import FaultRates, FaultyJudge, serve

CANARY = "sk-canary-4f9a1d7c2b8e6035"
FAST = {"judge_backoff_s": 0.01, "judge_timeout_s": 5.0, "judge_deadline_s": 30.0}


def settings(**changed: Any) -> JudgeSettings:
    return JudgeSettings(**changed)


def request(
    item: int | str, *, answer: str = "The answer is 7.", repeat: int = 0, **params: Any
) -> JudgeRequest:
    shown = f"[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
    prompt = f"[Question]\nWhat is {item}?\n\n{shown}"
    return JudgeRequest(str(item), ({"role": "user", "content": prompt},), params, repeat)


@contextmanager
def client_of(server: FaultyJudge, folder: Path, **runtime: Any) -> Iterator[JudgeClient]:
    values = Runtime(**FAST | {"pocket_judge_url": server.base_url} | runtime)
    with JudgeClient(settings(), values, folder) as client:
        yield client


def openai_client(server: FaultyJudge, folder: Path, **runtime: Any) -> JudgeClient:
    values = Runtime(**FAST | runtime)
    return JudgeClient(
        settings(kind="openai", base_url=server.base_url, model="gpt-test"), values, folder
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL_NAME).read_text().splitlines()]


def is_rating(reply: JudgeReply) -> bool:
    return "Rating: [[" in reply.text


# -- asking once -----------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_requests_and_are_counted(tmp_path: Path) -> None:
    with (
        serve(
            script=lambda body: body["messages"][0]["content"].split()[3],
            faults=FaultRates(latency_s=0.01),
        ) as server,
        client_of(server, tmp_path) as client,
    ):
        replies = client.complete([request(i) for i in range(20)])
        assert [reply.id for reply in replies] == [str(i) for i in range(20)]
        assert [reply.text for reply in replies] == [f"{i}?" for i in range(20)]
        assert {reply.status for reply in replies} == {"ok"}
        assert client.costs["judge_calls"] == server.counters["calls"] == 20
        assert (
            client.costs["judge_prompt_tokens"] == sum(reply.prompt_tokens for reply in replies) > 0
        )


def test_finished_work_run_again_makes_no_call_and_the_same_bytes(tmp_path: Path) -> None:
    requests = [request(i) for i in range(30)]
    with serve() as server:
        for _ in range(2):
            with client_of(server, tmp_path) as client:
                first = client.complete(requests)
        assert server.counters["calls"] == 30
        assert finalise(tmp_path) == 0
        assert not (tmp_path / JOURNAL_NAME).exists()
        committed = (tmp_path / JUDGMENTS_NAME).read_bytes()
        with client_of(
            server, tmp_path
        ) as client:  # killed between finalise and commit: the judgments count as asked
            assert [r.text for r in client.complete(requests)] == [r.text for r in first]
        finalise(tmp_path)
        assert (tmp_path / JUDGMENTS_NAME).read_bytes() == committed
        assert server.counters["calls"] == 30


def test_judgments_are_byte_identical_whatever_order_and_faults_they_came_through(
    tmp_path: Path,
) -> None:
    requests = [request(i) for i in range(60)]
    written = []
    for name, faults in (
        ("clean", FaultRates()),
        (
            "faulty",
            FaultRates(
                rate_limited=0.1,
                server_error=0.1,
                garbage_json=0.1,
                garbage_text=0.1,
                retry_after_s=0,
            ),
        ),
    ):
        folder = tmp_path / name
        with serve(faults=faults) as server, client_of(server, folder) as client:
            client.complete(requests, accept=is_rating, reasks=4)
        assert finalise(folder) == 0
        written.append((folder / JUDGMENTS_NAME).read_bytes())
    assert written[0] == written[1]
    assert [json.loads(line)["id"] for line in written[0].splitlines()] == sorted(
        str(i) for i in range(60)
    )
    assert b"attempts" not in written[0]


def test_equal_prompts_are_asked_once_and_listed_for_every_item(tmp_path: Path) -> None:
    twin = JudgeRequest("twin", request(1).messages, {})
    with serve() as server, client_of(server, tmp_path) as client:
        one, two = client.complete([request(1), twin])
        assert (one.text, one.id, two.text, two.id) == (one.text, "1", one.text, "twin")
        assert client.costs["judge_calls"] == server.counters["calls"] == 1
    finalise(tmp_path)
    assert [
        json.loads(line)["id"] for line in (tmp_path / JUDGMENTS_NAME).read_text().splitlines()
    ] == ["1", "twin"]


def test_the_key_holds_everything_that_decides_the_reply() -> None:
    def key(item: JudgeRequest, identity: str = "https://a/v1", **changed: Any) -> str:
        return request_key(item, settings(kind="openai", **changed), identity)

    same = key(request(1))
    different = [
        key(request(2)),
        key(request(1, answer="other")),
        key(request(1), temperature=0.5),
        key(request(1, logprobs=True)),
        key(request(1), max_tokens=9),
        key(request(1), model="m2"),
        key(request(1), identity="https://b/v1"),
        key(request(1, repeat=1)),
        key(request(1, seed=3)),
    ]
    assert len({same, *different}) == 10
    assert key(JudgeRequest("another id", request(1).messages, {})) == same
    assert key(request(1, temperature=0.5)) == key(request(1), temperature=0.5), (
        "what is sent counts, not who said it"
    )


def test_the_pocket_judges_port_is_in_no_key_but_its_opinions_are() -> None:
    a, b, c = (
        resolve_endpoint(settings(**s), Runtime(pocket_judge_url=u))
        for s, u in (
            ({}, "http://127.0.0.1:1/v1"),
            ({}, "http://127.0.0.1:2/v1"),
            ({"noise": 0.0}, "http://127.0.0.1:1/v1"),
        )
    )
    assert a.identity == b.identity != c.identity


def test_a_repeat_is_another_call_with_another_seed(tmp_path: Path) -> None:
    with (
        serve(script=lambda body: f"seed {body.get('seed')}") as server,
        client_of(server, tmp_path) as client,
    ):
        replies = client.complete([request(1), request(1, repeat=1), request(1, repeat=2)])
        assert [reply.text for reply in replies] == ["seed None", "seed 1", "seed 2"]


# -- re-asking and final statuses ------------------------------------------------------------------


def test_an_unreadable_reply_is_asked_again_with_another_seed_then_unparsed_and_final(
    tmp_path: Path,
) -> None:
    seeds: list[Any] = []

    def script(body: Mapping[str, Any]) -> str:
        seeds.append(body.get("seed"))
        return "Rating: [[7]]" if "What is 1?" in str(body) and body.get("seed") else "no verdict"

    with serve(script=script) as server:
        with client_of(server, tmp_path, judge_concurrency=1) as client:
            good, bad = client.complete([request(1), request(2)], accept=is_rating, reasks=2)
        assert (good.status, good.text, bad.status, bad.text) == (
            "ok",
            "Rating: [[7]]",
            "unparsed",
            "no verdict",
        )
        assert seeds == [None, 1_000_000, None, 1_000_000, 2_000_000]
        with client_of(server, tmp_path) as client:
            again = client.complete([request(1), request(2)], accept=is_rating, reasks=2)
        assert [r.status for r in again] == ["ok", "unparsed"]
        assert len(seeds) == 5, "unparsed is final: not asked again"
    assert finalise(tmp_path) == 0
    assert [
        json.loads(line)["status"] for line in (tmp_path / JUDGMENTS_NAME).read_text().splitlines()
    ] == ["ok", "unparsed"]


def test_re_asks_of_an_interrupted_run_count_after_the_restart(tmp_path: Path) -> None:
    with serve(script=lambda _: "no verdict") as server:
        with client_of(server, tmp_path) as client:
            client.complete([request(1)], accept=is_rating, reasks=2)
        lines = (tmp_path / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
        (tmp_path / JOURNAL_NAME).write_bytes(b"".join(lines[:2]))  # killed before the third reply
        with client_of(server, tmp_path) as client:
            assert client.complete([request(1)], accept=is_rating, reasks=2)[0].status == "unparsed"
            assert client.calls == 1
            assert client.costs["judge_calls"] == 3


@pytest.mark.parametrize(
    ("faults", "status", "calls"),
    [({"refused": 1.0}, "refused", 1), ({"truncated": 1.0}, "unparsed", 2)],
)
def test_refused_is_final_and_truncated_is_asked_again_once(
    tmp_path: Path, faults: dict[str, float], status: str, calls: int
) -> None:
    with serve(faults=FaultRates(**faults)) as server:
        for _ in range(2):
            with client_of(server, tmp_path) as client:
                assert client.complete([request(1)], accept=is_rating)[0].status == status
        assert server.counters["calls"] == calls


def test_a_one_token_verdict_is_not_truncated() -> None:
    raw = json.dumps({"choices": [{"message": {"content": "m"}, "finish_reason": "length"}]})
    for limit, status in ((1, "ok"), (2048, "truncated")):
        reply = read_reply(200, {}, raw, {"max_tokens": limit, "messages": []})
        assert isinstance(reply, JudgeReply)
        assert reply.status == status


# -- trouble on the way ----------------------------------------------------------------------------


def test_429_5xx_time_outs_and_broken_replies_are_retried_while_others_go_on(
    tmp_path: Path,
) -> None:
    requests = [request(i) for i in range(80)]
    with serve() as server, client_of(server, tmp_path / "clean") as client:
        clean = [reply.text for reply in client.complete(requests)]
    faults = FaultRates(
        rate_limited=0.1,
        server_error=0.1,
        hang=0.1,
        garbage_json=0.1,
        disconnect=0.1,
        retry_after_s=0.01,
    )
    with (
        serve(faults=faults) as server,
        client_of(server, tmp_path / "faulty", judge_timeout_s=0.1) as client,
    ):
        replies = client.complete(requests)
        assert [reply.text for reply in replies] == clean
        assert max(reply.attempts for reply in replies) > 1
        assert all(
            server.counters[kind]
            for kind in ("rate_limited", "server_error", "hang", "garbage_json", "disconnect")
        )
        assert server.counters["max_in_flight"] <= 8 * 2


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    with (
        serve(faults=FaultRates(requests_per_minute=300, burst=1)) as server,
        client_of(server, tmp_path, judge_concurrency=1) as client,
    ):
        start = time.monotonic()
        replies = client.complete([request(1), request(2)])
        assert 0.2 <= time.monotonic() - start < 1.0
        assert [(r.status, r.attempts) for r in replies] == [("ok", 1), ("ok", 2)]


def test_waiting_times_are_bounded_jittered_and_read_from_both_headers() -> None:
    doubling = [Trouble("x").delay(n, 0.5, 30.0) for n in range(1, 12) for _ in range(50)]
    assert all(0.25 <= wait <= 30.0 for wait in doubling)
    assert len(set(doubling)) == len(doubling)
    body: dict[str, Any] = {"messages": []}
    for headers, says, least in (
        ({"Retry-After": "3"}, "", 3.0),
        ({"Retry-After": "3", "retry-after-ms": "250"}, "", 0.25),
        ({}, "You exceeded your current quota. Please retry in 34.07s.", 34.07),
        ({}, "Please retry after 26 seconds.", 26.0),
        ({}, "Please try again in 7m12.5s.", 432.5),
        ({}, "Please try again in 214ms.", 0.214),
        ({"Retry-After": "3"}, "Please try again in 2h0m1s.", 3.0),
    ):
        trouble = read_reply(429, headers, says, body)
        assert isinstance(trouble, Trouble)
        assert trouble.retry_after_s == pytest.approx(least)
        assert least <= trouble.delay(1, 0.5, 30.0) <= least + 0.5
    for none in ("soon", "0", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert read_reply(429, {"Retry-After": none}, "", body) == Trouble("HTTP 429")


def test_attempts_are_bounded_and_the_item_is_retried_by_the_next_run(tmp_path: Path) -> None:
    with (
        serve(faults=FaultRates(server_error=1.0)) as server,
        client_of(server, tmp_path, judge_backoff_s=0.001) as client,
    ):
        reply = client.complete([request(1)])[0]
        assert (reply.status, reply.attempts) == ("error", judge_module.MAX_ATTEMPTS)
        assert "HTTP 500" in reply.error
    assert finalise(tmp_path) == 1
    assert (tmp_path / JOURNAL_NAME).exists(), "the journal stays while an error is left"
    with serve() as server, client_of(server, tmp_path) as client:
        assert client.complete([request(1)])[0].status == "ok"
        assert client.costs["judge_calls"] == judge_module.MAX_ATTEMPTS + 1
    assert finalise(tmp_path) == 0
    assert [
        json.loads(line)["status"] for line in (tmp_path / JUDGMENTS_NAME).read_text().splitlines()
    ] == ["ok"]


def test_the_deadline_ends_a_run_against_a_dead_judge(tmp_path: Path) -> None:
    with (
        serve(faults=FaultRates(hang=1.0)) as server,
        client_of(server, tmp_path, judge_deadline_s=0.4, judge_timeout_s=0.15) as client,
    ):
        start = time.monotonic()
        replies = client.complete([request(i) for i in range(30)])
        assert time.monotonic() - start < 1.5
        assert {reply.status for reply in replies} == {"error"}
        assert {reply.text for reply in replies} == {""}


def test_a_slow_judge_that_answers_is_heard_out_whatever_the_deadline(tmp_path: Path) -> None:
    slow = FaultRates(latency_s=0.05)
    with (
        serve(faults=slow) as server,
        client_of(server, tmp_path, judge_deadline_s=0.4, judge_concurrency=1) as client,
    ):
        replies = client.complete([request(i) for i in range(15)])
        assert {reply.status for reply in replies} == {"ok"}


def test_a_late_reply_counts_and_the_first_valid_one_wins(tmp_path: Path) -> None:
    answers = iter(["first", "second"])
    faults = FaultRates(hang=1.0, hang_s=0.5)
    with (
        serve(faults=faults, script=lambda _: next(answers)) as server,
        client_of(server, tmp_path, judge_timeout_s=0.3) as client,
    ):
        start = time.monotonic()
        reply = client.complete([request(1)])[0]
        assert time.monotonic() - start < 0.75, "the second attempt alone would take 0.8 s"
        assert (reply.text, reply.attempts, server.counters["calls"]) == ("first", 2, 2)
    assert [row["text"] for row in rows_of(tmp_path)] == ["first"]


def test_of_two_final_rows_of_one_key_the_first_wins(tmp_path: Path) -> None:
    base = {
        "key": "k",
        "id": "1",
        "repeat": 0,
        "ask": 0,
        "final": True,
        "status": "ok",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "attempts": 1,
    }
    journal = Journal(tmp_path / JOURNAL_NAME)
    for text in ("first", "late"):
        journal.append({**base, "text": text})
    journal.close()
    journal = Journal(tmp_path / JOURNAL_NAME)
    journal.close()
    assert journal.final["k"]["text"] == "first"
    finalise(tmp_path)
    assert [
        json.loads(line)["text"] for line in (tmp_path / JUDGMENTS_NAME).read_text().splitlines()
    ] == ["first"]


@pytest.mark.parametrize(
    "faults", [FaultRates(unauthorized=1.0), FaultRates(calls_before_quota=12)]
)
def test_a_refused_key_or_exhausted_quota_stops_at_once_and_writes_no_verdict(
    tmp_path: Path, faults: FaultRates
) -> None:
    with serve(faults=faults) as server:
        with (
            client_of(server, tmp_path) as client,
            pytest.raises(
                HarnessError,
                match=r"refuses every call: HTTP (401 invalid_api_key|429 insufficient_quota)",
            ),
        ):
            client.complete([request(i) for i in range(200)])
        assert server.counters["calls"] <= faults.calls_before_quota + 2 * 8
        rows = rows_of(tmp_path)
    assert len(rows) <= faults.calls_before_quota
    assert all(row["status"] == "ok" for row in rows)


def test_a_rejected_prompt_is_an_error_of_that_item_only() -> None:
    raw = json.dumps({"error": {"code": "context_length_exceeded", "message": "too long"}})
    assert read_reply(400, {}, raw, {"messages": []}) == Trouble(
        "HTTP 400 context_length_exceeded too long", permanent=True
    )
    raw = json.dumps({"error": {"code": "content_policy_violation", "message": "no"}})
    reply = read_reply(400, {}, raw, {"messages": []})
    assert isinstance(reply, JudgeReply)
    assert reply.status == "refused"


@hypothesis.settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([200, 400, 429, 500]),
    st.one_of(
        st.text(max_size=80),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "choices",
                            "message",
                            "content",
                            "usage",
                            "logprobs",
                            "error",
                            "model",
                            "code",
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(json.dumps),
    ),
)
def test_no_reply_body_breaks_the_client(status: int, raw: str) -> None:
    outcome = read_reply(status, {}, raw, {"messages": [], "max_tokens": 5})
    assert isinstance(outcome, (JudgeReply, Trouble))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_log_probs_that_are_no_numbers_are_a_broken_reply(number: str) -> None:
    token = f'{{"token": "m", "logprob": {number}}}'
    raw = (
        f'{{"choices": [{{"message": {{"content": "m"}}, "logprobs": {{"content": [{token}]}}}}]}}'
    )
    assert read_reply(200, {}, raw, {"messages": [], "max_tokens": 1}) == Trouble(
        "reply is no JSON of the published schema"
    )


def test_another_model_behind_the_same_name_is_refused_with_both_shown(tmp_path: Path) -> None:
    row = {
        "key": "k",
        "id": "0",
        "repeat": 0,
        "ask": 0,
        "final": True,
        "status": "ok",
        "text": "",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "attempts": 1,
        "model": "gpt-4-0613",
    }
    (tmp_path / JOURNAL_NAME).write_text(json.dumps(row) + "\n")
    with (
        serve() as server,
        client_of(server, tmp_path) as client,
        pytest.raises(HarnessError, match=r"'gpt-4-0613', this one from 'pocket-judge'"),
    ):
        client.complete([request(1)])
    assert len(rows_of(tmp_path)) == 1


# -- the journal -----------------------------------------------------------------------------------


def test_a_journal_cut_at_any_byte_loses_at_most_the_row_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "sync", lambda _: None)  # 500 times
    path = tmp_path / JOURNAL_NAME
    journal = Journal(path)
    for i in range(3):
        journal.append(
            {
                "key": f"k{i}",
                "id": str(i),
                "repeat": 0,
                "ask": 0,
                "final": True,
                "status": "ok",
                "text": "é\n[[7]]",
                "prompt_tokens": 1,
                "completion_tokens": 1,
                "attempts": 1,
            }
        )
    journal.close()
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        complete = sum(end <= cut for end in ends)  # a row that lacks only its newline is whole
        assert len(journal.final) == complete, cut
        torn = cut - max([0, *(end + 1 for end in ends if end <= cut)])
        assert journal.repaired == max(0, torn), cut
        journal.append(
            {
                "key": "new",
                "id": "9",
                "repeat": 0,
                "ask": 0,
                "final": True,
                "status": "ok",
                "text": "x",
                "prompt_tokens": 0,
                "completion_tokens": 0,
                "attempts": 1,
            }
        )
        journal.close()
        assert [row["key"] for row in rows_of(tmp_path)] == [f"k{i}" for i in range(complete)] + [
            "new"
        ], cut


def test_a_torn_tail_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / JOURNAL_NAME).write_text('{"key": "a')
    with caplog.at_level(logging.WARNING):
        Journal(tmp_path / JOURNAL_NAME).close()
    assert "repaired after an interrupted write (10 broken)" in caplog.text


def test_a_full_disk_leaves_the_old_rows_and_says_so(tmp_path: Path) -> None:
    with serve() as server, client_of(server, tmp_path) as client:
        client.complete([request(i) for i in range(3)])
        before = (tmp_path / JOURNAL_NAME).read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (len(before) + 100, hard)
        )  # the next row does not fit
        try:
            with pytest.raises(
                HarnessError, match=r"judge\.journal\.jsonl: cannot write .*free some space"
            ):
                client.complete([request(9)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / JOURNAL_NAME).read_bytes() == before
        assert client.complete([request(9)])[0].status == "ok", "goes on when there is space again"


def test_a_full_disk_at_the_end_keeps_the_journal(tmp_path: Path) -> None:
    with serve() as server, client_of(server, tmp_path) as client:
        client.complete([request(i) for i in range(3)])
    before = (tmp_path / JOURNAL_NAME).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(
            HarnessError, match=r"judgments\.jsonl: cannot write .*the journal is kept"
        ):
            finalise(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_NAME]
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


def test_added_fields_never_replace_what_the_judge_said(tmp_path: Path) -> None:
    with serve() as server, client_of(server, tmp_path) as client:
        client.complete([request(1)])
    finalise(tmp_path, {("1", 0): {"rating": 7, "model": "not the judge"}})
    row = json.loads((tmp_path / JUDGMENTS_NAME).read_text())
    assert (row["rating"], row["model"]) == (7, "pocket-judge")


def test_a_second_process_waits_and_finds_the_judgments(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from tests.judge.test_judge_client import *\n"
        "values = Runtime(**FAST | {'pocket_judge_url': sys.argv[1]})\n"
        "with JudgeClient(settings(), values, Path(sys.argv[2])) as client:\n"
        "    print(len([r for r in client.complete([request(i) for i in range(100)]) if r.status "
        "== 'ok']), client.calls)\n"
    )
    with serve(faults=FaultRates(latency_s=0.02)) as server:
        command = [
            sys.executable,
            "-c",
            code,
            server.base_url,
            str(tmp_path),
            str(Path(__file__).parents[2]),
        ]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        outputs = sorted(process.communicate(timeout=60)[0].split()[-2:] for process in processes)
        assert outputs == [["100", "0"], ["100", "100"]]
        assert server.counters["calls"] == 100
    assert len({row["id"] for row in rows_of(tmp_path)}) == len(rows_of(tmp_path)) == 100


def test_a_journal_held_for_too_long_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL_NAME)
    with pytest.raises(HarnessError, match="another process"):
        Journal(tmp_path / JOURNAL_NAME, wait_s=0.1)
    journal.close()
    Journal(tmp_path / JOURNAL_NAME, wait_s=0.1).close()


def test_the_client_may_be_used_from_several_threads(tmp_path: Path) -> None:
    replies: list[JudgeReply] = []
    with serve() as server, client_of(server, tmp_path) as client:
        threads = [
            threading.Thread(
                target=lambda i=i: replies.extend(client.complete([request(i), request("shared")]))
            )
            for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(replies) == 12
        assert server.counters["calls"] == 7


# -- money and pace --------------------------------------------------------------------------------


def test_the_dry_run_counts_without_asking(tmp_path: Path) -> None:
    requests = [request(i, max_tokens=10) for i in range(4)]
    with (
        serve() as server,
        client_of(
            server,
            tmp_path,
            price_prompt_usd_per_million=10.0,
            price_completion_usd_per_million=30.0,
        ) as client,
    ):
        client.complete(requests[:1])
        plan = client.plan_cost(requests)
        assert server.counters["calls"] == 1
    prompt = sum(4 + math.floor(len(r.messages[0]["content"]) / 3.5) for r in requests[1:])
    assert plan == {
        "judge_calls": 3,
        "judge_prompt_tokens": prompt,
        "judge_completion_tokens_at_most": 30,
        "judge_usd_at_most": (10 * prompt + 30 * 30) / 1e6,
    }


def test_the_cost_limit_is_never_passed_and_the_work_goes_on_later(tmp_path: Path) -> None:
    prices = {"price_prompt_usd_per_million": 1000.0, "price_completion_usd_per_million": 1000.0}
    requests = [request(i, max_tokens=100) for i in range(40)]
    with serve() as server:
        with (
            client_of(server, tmp_path, max_cost_usd=1.0, **prices) as client,
            pytest.raises(HarnessError, match="max_cost_usd 1 reached"),
        ):
            client.complete(requests)
        assert 0.75 < client.costs["judge_usd"] <= 1.0
        done = server.counters["calls"]
        assert done == len(rows_of(tmp_path)) < 40, "no paid reply is lost at the stop"
        with client_of(server, tmp_path, max_cost_usd=100.0, **prices) as client:
            assert all(reply.status == "ok" for reply in client.complete(requests))
            assert client.calls == 40 - done


def test_a_cost_limit_without_prices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no price is"):
        JudgeClient(
            settings(kind="openai", base_url="https://x/v1"),
            Runtime(max_cost_usd=1.0),
            tmp_path / "j",
        )


def test_requests_per_minute_spaces_the_calls(tmp_path: Path) -> None:
    with serve() as server, client_of(server, tmp_path, judge_requests_per_minute=3000) as client:
        start = time.monotonic()
        client.complete([request(i) for i in range(16)])
        assert 0.3 <= time.monotonic() - start < 1.0


@pytest.mark.parametrize("transport", ["direct", "batch"])
def test_a_connection_has_a_minute_at_most_however_long_a_reply_may_take(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_of, limits = aiohttp.ClientSession.request, set()

    def noting(self: aiohttp.ClientSession, *given: Any, **options: Any) -> Any:
        limits.add(options["timeout"].sock_connect)
        return request_of(self, *given, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "request", noting)
    with serve() as server:
        values = Runtime(pocket_judge_url=server.base_url, judge_backoff_s=0.01)
        assert values.judge_timeout_s > 60
        with JudgeClient(settings(transport=transport), values, tmp_path) as client:
            assert client.complete([request(1)])[0].status == "ok"
    assert limits == {60.0}


def test_calls_in_flight_are_bounded(tmp_path: Path) -> None:
    with (
        serve(faults=FaultRates(latency_s=0.02)) as server,
        client_of(server, tmp_path, judge_concurrency=3) as client,
    ):
        client.complete([request(i) for i in range(12)])
        assert server.counters["max_in_flight"] == 3


# -- secrets and addresses -------------------------------------------------------------------------


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    seen = io.StringIO()
    with caplog.at_level(logging.DEBUG):
        with (
            serve(
                faults=FaultRates(api_key=CANARY),
                script=lambda body: f"Rating: [[7]] {CANARY} echoed",
            ) as server,
            openai_client(server, tmp_path) as client,
        ):
            reply = client.complete([request(1)])[0]
            assert (reply.status, reply.text) == ("ok", "Rating: [[7]] [redacted] echoed")
            print(repr(client), vars(client), reply, file=seen)
        with (
            serve(faults=FaultRates(unauthorized=1.0)) as server,
            openai_client(server, tmp_path / "refused") as client,
        ):  # echoes the header in its message
            try:
                client.complete([request(2)])
            except HarnessError as error:
                print(error, traceback.format_exc(), file=seen)
                captured = traceback.TracebackException.from_exception(error, capture_locals=True)
                print("".join(captured.format()), file=seen)
    finalise(tmp_path)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "[redacted]" in seen.getvalue()
    assert CANARY not in seen.getvalue()
    assert CANARY not in caplog.text
    assert CANARY.encode() not in written


def test_an_impossible_key_is_refused_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY + "\nX-Header: 1")
    with (
        serve() as server,
        pytest.raises(HarnessError, match="OPENAI_API_KEY holds spaces") as refused,
        openai_client(server, tmp_path),
    ):
        pass
    assert "canary" not in str(refused.value)


def test_a_proxy_comes_from_the_environment_and_a_netrc_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password hunter2secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setattr(endpoint_module, "is_loopback", lambda _host: False)
    seen: list[str] = []
    with serve(script=lambda body: seen.append(body["model"]) or "Rating: [[6]]") as server:
        monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
        for number, host in enumerate(("judge.invalid", "127.0.0.1")):
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            url = server.base_url.replace("127.0.0.1", host)
            own = settings(kind="openai", base_url=url, model=host, allow_insecure_url=host)
            with JudgeClient(own, Runtime(**FAST), tmp_path / str(number)) as client:
                assert client.complete([request(1)])[0].text == "Rating: [[6]]"
    assert seen == ["judge.invalid", "127.0.0.1"]


def test_a_remote_judge_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with (
        pytest.raises(HarnessError, match="set the OPENAI_API_KEY variable"),
        JudgeClient(
            settings(kind="openai", base_url="https://judge.example/v1"), Runtime(), tmp_path / "j"
        ),
    ):
        pass


def test_what_looks_like_a_key_is_redacted() -> None:
    assert (
        redact("Incorrect key sk-abcdefgh1234 with Bearer abc.def")
        == "Incorrect key [redacted] with [redacted]"
    )


@pytest.mark.parametrize(
    ("url", "allowed", "expected"),
    [
        ("https://api.example.com/v1/", "", ("https://api.example.com/v1", False)),
        ("http://127.0.0.1:8000/v1", "", ("http://127.0.0.1:8000/v1", True)),
        ("http://[::1]:8000/v1", "", ("http://[::1]:8000/v1", True)),
        ("http://localhost/v1", "", ("http://localhost/v1", True)),
        ("http://judge.lab:8000/v1", "judge.lab", ("http://judge.lab:8000/v1", False)),
        ("http://judge.lab:8000/v1", "http://judge.lab:8000", ("http://judge.lab:8000/v1", False)),
        ("http://judge.lab:8000/v1", "", None),
        ("http://judge.lab.evil.com/v1", "judge.lab", None),
        ("http://127.0.0.1.evil.com/v1", "", None),
        ("http://0.0.0.0/v1", "", None),
        ("ftp://127.0.0.1/v1", "", None),
        ("127.0.0.1:8000", "", None),
        ("http://127.0.0.1@evil.com/v1", "", None),
        ("https://user:hunter2secret@api.example.com/v1", "", None),
        ("https://api.example.com/v1?key=hunter2secret", "", None),
    ],
)
def test_only_https_loopback_or_a_named_host_is_asked(
    url: str, allowed: str, expected: tuple[str, bool] | None
) -> None:
    if expected:
        assert check_url(url, allowed) == expected
        return
    with pytest.raises(HarnessError) as refused:
        check_url(url, allowed)
    assert "hunter2secret" not in str(refused.value)
