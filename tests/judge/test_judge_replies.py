"""What endpoints of many makers answer: every reply is a verdict, a status, a retry or one message
that ends the stage.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluate import annotator
from harness.evaluate.annotator import Pair, annotate
from harness.judge import chat_http, verdicts
from harness.judge.client import JudgeClient, JudgeReply, JudgeRequest
from harness.judge.endpoint import read_reply
from harness.rankers import judge as ranker
from harness.records import HarnessError
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

FAST = {"judge_backoff_s": 0.001, "judge_timeout_s": 5.0, "judge_deadline_s": 20.0}
Answer = tuple[int, Any]
Script = Callable[[Mapping[str, Any]], Answer]


@contextmanager
def endpoint(script: Script) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, calls received) of a server that answers (status, JSON or text) by a script."""
    calls: list[dict[str, Any]] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        calls.append(json.loads(await request.read()))
        status, body = script(calls[-1])
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text)

    with chat_http.serving(handle) as url:
        yield url, calls


def ask(
    script: Script,
    folder: Path,
    judge: Mapping[str, Any] | None = None,
    count: int = 1,
    **params: Any,
) -> tuple[list[JudgeReply], list[dict[str, Any]]]:
    """Replies to ``count`` requests for a rating, and the calls that they took."""
    requests = [
        JudgeRequest(str(i), ({"role": "user", "content": f"Rate {i}."},), params)
        for i in range(count)
    ]
    with endpoint(script) as (url, calls):
        own = JudgeSettings(kind="openai", base_url=url, model="judge-1", **(judge or {}))
        runtime = Runtime(**FAST, judge_concurrency=2)
        with JudgeClient(own, runtime, folder) as client:
            return client.complete(requests, accept=is_rated), calls


def is_rated(reply: JudgeReply) -> bool:
    return verdicts.parse_rating(reply.text).value is not None


def said(content: Any, reason: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more}
    return {"model": "judge-1", "choices": [{"message": message, "finish_reason": reason}]}


def error(message: str, code: Any = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": code, "param": param}}


def rating(reply: JudgeReply) -> tuple[str, float | None]:
    value = verdicts.parse_rating(reply.text).value if reply.status == "ok" else None
    return reply.status, value


# -- cut off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        said("I could start from [[4]] and go up", "length"),
        said("I could start from [[4]] and go up", "MAX_TOKENS"),
        said("Rating: [[4]]", "model_length"),
        said("<think>Perhaps Rating: [[4]]"),
        said("\n<thinking>\nRating: [[4]]\n"),
        said("[THINK]Rating: [[4]]"),
        said("Well.\n<reasoning>\nRating: [[4]]"),
        said("first thought</think><think>Rating: [[4]]"),
        said(None, "length", reasoning_content="Rating: [[4]]"),
        said("Rating: [[4]]", "model_context_window_exceeded"),
        {"choices": [{"finish_reason": "length"}]},
        said("<|channel|>analysis<|message|>Rating: [[4]]"),
        said("analysisWe could say Rating: [[4]]"),
        said("<|channel>thought\nRating: [[4]]"),
        said("<|START_THINKING|>Rating: [[4]]"),
        said("Here is my thought process: Rating: [[4]]"),
    ],
)
def test_a_reply_that_was_cut_off_is_asked_again_once_with_more_room_and_holds_no_verdict(
    reply: dict[str, Any], tmp_path: Path
) -> None:
    (found,), calls = ask(lambda _body: (200, reply), tmp_path)
    assert rating(found) == ("unparsed", None)
    assert found.error
    assert [call["max_tokens"] for call in calls] == [2048, 4096]
    (again,), more = ask(lambda _body: (200, said("Rating: [[9]]")), tmp_path / "other")
    assert rating(again) == ("ok", 9.0)
    assert len(more) == 1


def test_with_more_room_the_verdict_comes(tmp_path: Path) -> None:
    def script(body: Mapping[str, Any]) -> Answer:
        room = body["max_tokens"] > 100
        return 200, said("A [[4]]. Rating: [[6]]" if room else "A [[4]]", "" if room else "length")

    (found,), calls = ask(script, tmp_path, {"max_tokens": 100})
    assert rating(found) == ("ok", 6.0)
    assert [call["max_tokens"] for call in calls] == [100, 200]


def test_where_more_room_is_refused_the_cut_reply_stands(tmp_path: Path) -> None:
    says = "This model's maximum context length is 4096 tokens. You requested 5096."
    replies = {2048: (200, said("A [[4]] and", "length")), 4096: (400, error(says))}
    (found,), calls = ask(lambda body: replies[body["max_tokens"]], tmp_path)
    assert (rating(found), len(calls)) == (("unparsed", None), 2)
    assert found.error.startswith(verdicts.CUT_OFF)
    assert says in found.error


@pytest.mark.parametrize(
    "content",
    [
        "<|channel|>analysis<|message|>[[2]]<|end|><|start|>assistant<|channel|>final<|message|>"
        "Rating: [[6]]<|return|>",
        "analysisWe see [[2]].assistantfinalRating: [[6]]",
        "<|channel>thought\nRating: [[2]]<channel|>[[6]]",
        "<|begin_of_thought|>Rating: [[2]]<|end_of_thought|>[[6]]",
        "Here is my thought process: Rating: [[2]] Here is my response: [[6]]",
        r"Rating: \[\[6\]\]",
        "<think>First [[2]], or [[9]].</think>\nRating: [[6]]",
        "Rating: [[2]]</think> Rating: [[6]]",
        "<Thinking>[[2]]</Thinking><think>[[3]]</think>[[6]]",
        "[THINK]Rating: [[2]][/THINK]Rating: [[6]]",
        [{"type": "thinking", "thinking": "[[2]]"}, {"type": "text", "text": "Rating: [[6]]"}],
        [{"type": "text", "text": "Rating: "}, {"type": "output_text", "text": "[[6]]"}],
        'The answer quotes "<think>" in its text. Rating: [[6]]',
        "\ud800 is no character. Rating: [[6]]",
    ],
)
def test_thinking_is_never_read_and_parts_are_joined(content: Any, tmp_path: Path) -> None:
    (found,), calls = ask(lambda _body: (200, said(content, reasoning="[[2]]")), tmp_path)
    assert rating(found) == ("ok", 6.0)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "reply",
    [
        said("Rating: [[4]]", "content_filter"),
        said("Rating: [[4]]", "SAFETY"),
        said("Rating: [[4]]", "content_filter: PROHIBITED_CONTENT"),
        error("litellm.ContentPolicyViolationError: the content management policy", "400"),
        error("Content Exists Risk", "invalid_request_error"),
        error("Input data may contain inappropriate content.", "data_inspection_failed"),
        error("Output blocked by content filtering policy", "invalid_request_error"),
        said(None, refusal="I will not rate [[4]]"),
        error("Your input was flagged by moderation", 403) | {},
    ],
)
def test_refusals_are_final(reply: dict[str, Any], tmp_path: Path) -> None:
    (found,), calls = ask(lambda _body: (200, reply), tmp_path)
    assert rating(found) == ("refused", None)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 11, "completion_tokens": 9, "total_tokens": 241}, (11, 230)),
        ({"prompt_tokens": 11, "completion_tokens": 9, "total_tokens": 20}, (11, 9)),
        ({"input_tokens": 11, "output_tokens": 9}, (11, 9)),
        ({"prompt_tokens": 11, "completion_tokens": -1}, (11, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (6, 4)),
        (None, (6, 4)),
    ],
)
def test_thinking_is_counted_wherever_it_is_told(usage: Any, tokens: tuple[int, int]) -> None:
    raw = json.dumps(said("Rating: [[6]]") | {"usage": usage})
    body = {"messages": [{"role": "user", "content": "Rate it."}], "max_tokens": 8}
    found = read_reply(200, {}, raw, body)
    assert isinstance(found, JudgeReply)
    assert (found.prompt_tokens, found.completion_tokens) == tokens


@pytest.mark.parametrize(("read", "status"), [(2050, "error"), (12, "ok"), (4001, "ok")])
def test_a_prompt_of_which_the_judge_read_a_part_has_no_verdict(
    tmp_path: Path, read: int, status: str
) -> None:
    """A count below any context is one that leaves out a cache, or says nothing."""
    reply = said("Rating: [[6]]") | {"usage": {"prompt_tokens": read, "completion_tokens": 4}}
    with endpoint(lambda _body: (200, reply)) as (url, _):
        own = JudgeSettings(kind="openai", base_url=url, model="judge-1")
        with JudgeClient(own, Runtime(**FAST), tmp_path) as client:
            texts = "word " * 4000, "Rate."
            asked = [JudgeRequest(t[:5], ({"role": "user", "content": t},), {}) for t in texts]
            long, short = client.complete(asked, accept=is_rated)
    assert (long.status, rating(short)) == (status, ("ok", 6.0))
    assert ("2050 tokens of a prompt of 4000 words" in long.error) == (status == "error")


def test_verdicts_of_two_providers_under_one_name_are_not_mixed(tmp_path: Path) -> None:
    providers = iter(["One", "Two"])
    reply = said("Rating: [[6]]")
    with pytest.raises(HarnessError, match=r"'judge-1 by (One|Two)'.*extra_body"):
        ask(lambda _body: (200, reply | {"provider": next(providers)}), tmp_path, count=2)


@pytest.mark.parametrize("text", ["[[11]]", "[[0.5]]", "[[-1]]", "[[0]]", "[[10.5]]", "[[1e1]]"])
def test_ratings_out_of_range_are_none(text: str) -> None:
    assert verdicts.parse_rating(f"Rating: {text}").value is None


# -- errors ----------------------------------------------------------------------------------------

LIMIT = "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
LIMIT += "'max_completion_tokens' instead."


def test_the_other_name_of_the_limit_is_learned_once(tmp_path: Path) -> None:
    def script(body: Mapping[str, Any]) -> Answer:
        if "max_tokens" in body:
            return 400, error(LIMIT, "unsupported_parameter", "max_tokens")
        return 200, said("Rating: [[6]]" if body["max_completion_tokens"] == 2048 else "")

    found, calls = ask(script, tmp_path, count=12)
    assert {rating(one) for one in found} == {("ok", 6.0)}
    assert sum("max_tokens" in call for call in calls) <= 2, "one a call in flight at most"
    assert len(calls) <= 14


def test_a_seed_that_is_refused_is_left_out(tmp_path: Path) -> None:
    def script(body: Mapping[str, Any]) -> Answer:
        if "seed" in body:
            detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "no"}]
            return 422, {"object": "error", "message": {"detail": detail}}
        return 200, said("Rating: [[6]]" if len(seen) else "unreadable")

    seen: list[int] = []

    def first_unreadable(body: Mapping[str, Any]) -> Answer:
        answer = script(body)
        seen.append(answer[0])
        return answer

    (found,), calls = ask(first_unreadable, tmp_path)
    assert rating(found) == ("ok", 6.0)
    assert ["seed" in call for call in calls] == [False, True, False]


@pytest.mark.parametrize(
    ("status", "body", "names"),
    [
        (
            400,
            error(
                "Unsupported value: 'temperature' does not support 0.0 with this model.",
                "unsupported_value",
                "temperature",
            ),
            "judge.temperature",
        ),
        (400, error("`temperature` is deprecated for this model."), "judge.temperature"),
        (403, error("You are not allowed to request logprobs from this model"), "judge.verdict"),
        (400, error("property 'logprobs' is unsupported"), "judge.verdict"),
        (400, error("max_tokens is too large: 2048", "invalid_value", "max_tokens"), "max_tokens"),
        (404, error("The model `judge-1` does not exist", "model_not_found"), "judge.model"),
        (404, {"error": 'model "judge-1" not found, try pulling it first'}, "judge.model"),
        (401, error("Incorrect API key"), "OPENAI_API_KEY"),
        (400, [{"error": {"code": 400, "message": 'Unknown name "temperature"'}}], "temperature"),
        (200, error("Insufficient credits. Add more credits", 402), "quota"),
        (200, {"error": "Insufficient Balance"}, "quota"),
        (400, error("Your credit balance is too low to access the API"), "quota"),
        (429, error("You exceeded your current quota", "insufficient_quota"), "quota"),
        (200, {"object": "error", "message": "no such model", "code": 404}, "judge.model"),
        (200, error("no", "invalid_api_key"), "OPENAI_API_KEY"),
        (400, error("API key not valid. Please pass a valid API key."), "OPENAI_API_KEY"),
        (400, error("judge-1 is not a valid model ID"), "judge.model"),
        (400, error("Budget has been exceeded! Max budget: 1.0", "400"), "quota"),
        (429, {"error": "Your team has used all available credits"}, "quota"),
        (400, error("You have reached your specified API usage limits."), "quota"),
        (400, error("Logprobs is not enabled for models/judge-1"), "judge.verdict"),
        (400, error("Requested sample logprobs of 5, greater than max allowed: 3"), "verdict"),
        (200, {"choices": [{"error": {"code": 402, "message": "pay"}}]}, "quota"),
        (200, 'data: {"choices": [{"delta": {"content": "R"}}]}\n\ndata: [DONE]\n', "stream"),
        (200, {"object": "chat.completion.chunk", "choices": [{"delta": {}}]}, "stream"),
    ],
)
def test_errors_of_the_requests_form_end_the_stage_at_once_and_name_the_key(
    status: int, body: Any, names: str, tmp_path: Path
) -> None:
    calls: list[int] = []

    def script(_body: Mapping[str, Any]) -> Answer:
        calls.append(status)
        return status, body

    with pytest.raises(HarnessError) as raised:
        ask(script, tmp_path, count=40, logprobs=True)
    assert names in str(raised.value)
    assert len(calls) <= 4


@pytest.mark.parametrize(
    "body",
    [
        {"error": "upstream is busy"},
        {"object": "error", "message": "Overloaded", "code": 503},
        error("slow down", 429),
        {"choices": []},
        {"choices": [{"error": {"code": 502, "message": "provider"}}]},
        said("Perhaps Rating: [[4]]", "error"),
        said("Perhaps Rating: [[4]]", "abort"),
        said("Perhaps Rating: [[4]]", "insufficient_system_resource"),
        "<html>",
        "[" * 100_000,
        json.dumps(said("Rating: [[4]]"))[:-1] + ', "usage": {"completion_tokens": 1e999}}',
    ],
)
def test_passing_errors_are_asked_again_whatever_the_status(body: Any, tmp_path: Path) -> None:
    answers = iter([(200, body), (200, body), (200, {"error": None} | said("Rating: [[6]]"))])
    (found,), calls = ask(lambda _body: next(answers), tmp_path)
    assert rating(found) == ("ok", 6.0)
    assert found.attempts == len(calls) == 3


def test_a_prompt_too_long_for_the_judge_is_that_items_error_alone(tmp_path: Path) -> None:
    long = "This model's maximum context length is 4096 tokens; please reduce max_tokens"

    def script(body: Mapping[str, Any]) -> Answer:
        if "Rate 1." in str(body):
            return 400, error(long, "context_length_exceeded", "messages")
        return 200, said("Rating: [[6]]")

    found, calls = ask(script, tmp_path, count=3)
    assert [rating(one) for one in found] == [("ok", 6.0), ("error", None), ("ok", 6.0)]
    assert len(calls) == 3


def test_a_judge_that_takes_no_temperature_is_sent_none(tmp_path: Path) -> None:
    _, calls = ask(lambda _b: (200, said("[[6]]")), tmp_path, {"temperature": None}, temperature=1)
    assert "temperature" not in calls[0]


WORDS = ("choices", "message", "content", "error", "code", "text", "type", "object", "token")
WORDS += ("finish_reason", "logprobs", "logprob", "top_logprobs", "usage", "completion_tokens")
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(WORDS), st.text()
)
BODIES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(WORDS), inner),
    max_leaves=12,
)
SOUND = {"choices": [{"message": {"content": "Rating: [[6]]"}, "logprobs": {"content": []}}]}


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([200, 200, 200, 302, 400, 429, 500]),
    BODIES,
    st.lists(st.sampled_from(WORDS), max_size=4),
)
def test_any_reply_is_a_status_a_retry_or_one_message(
    status: int, piece: Any, path: list[str]
) -> None:
    body: Any = json.loads(json.dumps(SOUND))
    place = body
    for name in path:  # the piece replaces a part of a sound reply, at any depth
        inner = place.get(name)
        place = inner[0] if isinstance(inner, list) and inner else inner
        if not isinstance(place, dict):
            break
    if isinstance(place, dict):
        place[path[-1] if path else "choices"] = piece
    found = None
    with contextlib.suppress(HarnessError):
        found = read_reply(status, {}, json.dumps(body), {"messages": [], "max_tokens": 8})
    if isinstance(found, JudgeReply):
        assert found.status in ("ok", "refused", "truncated")
        json.dumps(vars(found), allow_nan=False)


# -- weighted verdicts -----------------------------------------------------------------------------


def position(token: str, **top: float) -> dict[str, Any]:
    """A position whose answer is ``token``; top: name → probability, "_" for a blank."""
    listed = [
        {"token": name.replace("_", " "), "logprob": math.log(share)} for name, share in top.items()
    ]
    own = next((one["logprob"] for one in listed if one["token"] == token), math.log(0.01))
    return {"token": token, "logprob": own, "top_logprobs": listed}


UNREADABLE = [
    position("Sure", Sure=0.95, M=0.01),
    position("Sure", m=0.6, M=0.3, Sure=0.1),
    position("M", M=0.3, The=0.6),
    position("m", m=0.4, M=0.1, A=0.5),
    position("m", m=0.9) | {"top_logprobs": [{"token": "m", "logprob": 0.7}]},
    position("m", m=0.9) | {"top_logprobs": [{"token": "m", "logprob": None}]},
]


RANKING = "[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]"
JSON_RANKING = RANKING.replace("'", '"')


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        (RANKING, 2.0),
        (f"```json\n{JSON_RANKING}\n```", 2.0),
        (f"Here is the ranking:\n```python\n{RANKING}\n```\nThe second is right.", 2.0),
        (f'{{"ordered": {JSON_RANKING}}}', 2.0),
        (RANKING.replace("2}", "'2'}").replace("1}", "'1'}"), 2.0),
        (RANKING.replace("'rank': 2", "'rank': 1"), None),
        (RANKING.replace("'rank': 1", "'rank': 2"), None),
        (RANKING.replace("'rank': 2", "'rank': 3"), None),
        (RANKING.replace("model_2", "model_1"), None),
        (RANKING.partition(",")[0] + "}]", None),
        (f"{RANKING} or {RANKING.replace('2}', '1}', 1)}", None),
    ],
)
def test_a_ranking_counts_where_it_puts_one_first_and_the_other_second(
    text: str, preference: float | None, tmp_path: Path
) -> None:
    with endpoint(lambda _body: (200, said(text))) as (url, _):
        own = JudgeSettings(kind="openai", base_url=url, model="judge-1", verdict="text")
        with JudgeClient(own, Runtime(**FAST), tmp_path) as client:
            pairs = [Pair("1", "Name a fruit.", "Apple.", "A pear.")]
            found = annotate(pairs, client, annotator=annotator.TEXT_ANNOTATOR)["1", 0]
    assert not found.switched
    assert found.preference == preference
    assert found.status == ("unparsed" if preference is None else "ok")


def test_tokens_named_by_numbers_end_the_stage_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="return-tokens-as-token-ids"):
        weighted([position("token_id:76", m=0.7)], tmp_path)


def test_a_judge_that_thinks_in_another_field_gives_no_first_token(tmp_path: Path) -> None:
    thinks = said("", "length", reasoning="Okay")
    with pytest.raises(HarnessError, match="thinks before it answers"):
        ask(lambda _body: (200, thinks), tmp_path, max_tokens=1)
    (found,), _ = ask(lambda _body: (200, said("", reasoning="[[2]]")), tmp_path / "more")
    assert (found.status, found.error) == ("unparsed", "empty: all of it is in its thinking")


def one_token(entry: Mapping[str, Any]) -> JudgeReply:
    """A reply of one token as the client reads it."""
    body = said(entry["token"], "length")
    body["choices"][0]["logprobs"] = {"content": [entry]}
    read = read_reply(200, {}, json.dumps(body), {"messages": [], "max_tokens": 1})
    assert isinstance(read, JudgeReply)
    return read


def weighted(content: Any, folder: Path) -> annotator.Annotation:
    """The annotation of one pair by an endpoint that gives these log-probabilities."""
    reply = said(content[0]["token"] if content else "M", "length")
    reply["choices"][0]["logprobs"] = {"content": content}
    with endpoint(lambda _body: (200, reply)) as (url, _):
        own = JudgeSettings(kind="openai", base_url=url, model="judge-1")
        with JudgeClient(own, Runtime(**FAST), folder) as client:
            return annotate([Pair("1", "Name a fruit.", "Apple.", "A pear.")], client)["1", 0]


@pytest.mark.parametrize("content", [*([one] for one in UNREADABLE), []])
def test_a_verdict_read_off_the_tail_is_unparsed(content: Any, tmp_path: Path) -> None:
    note = weighted(content, tmp_path)
    assert (note.preference, note.status) == (None, "unparsed")


@pytest.mark.parametrize("none", [[], None])
def test_a_judge_that_lists_no_other_tokens_ends_the_stage_at_once(
    none: Any, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError, match=r"top_logprobs.*judge.verdict: text"):
        weighted([position("m") | {"top_logprobs": none}], tmp_path)


@pytest.mark.parametrize(
    ("entry", "first"),
    [
        (position("m", m=0.75, M=0.25), 0.75),
        (position("m", m=0.5, _m=0.1, M=0.2, Sure=0.1), 0.75),
        (position(" M", _M=0.9, The=0.1), 0.0),
        (position("m", m=0.6, M=0.2, A=0.2), 0.75),
        (position("\u2581m", **{"\u2581m": 0.5, "m": 0.1, "\u0120M": 0.2}), 0.75),
    ],
)
def test_the_mass_of_both_tokens_is_the_preference_in_benchmark_and_ranker_alike(
    entry: dict[str, Any], first: float, tmp_path: Path
) -> None:
    note = weighted([entry], tmp_path)
    shown_first = 1.0 - first if note.switched else first
    assert note.preference == pytest.approx(2.0 - shown_first)
    assert ranker.preference(one_token(entry)) == pytest.approx(first)


@pytest.mark.parametrize("entry", UNREADABLE)
def test_the_ranker_reads_no_tail_either(entry: dict[str, Any]) -> None:
    assert ranker.preference(one_token(entry)) is None


@pytest.mark.parametrize("model", ["claude-2", "alpaca-7b_verbose", "NullModel"])
def test_published_verdicts_are_read_as_the_library_read_them(
    shared_data: Path, model: str
) -> None:
    rows = json.loads((shared_data / "alpaca_eval" / model / "annotations.json").read_text())
    unread = 0
    for row in rows:
        if not row["raw_completion"]:
            continue
        (entry,) = row["raw_completion"]["logprobs"]["content"]
        found = verdicts.verdict_logprobs(entry, ("m", "M"))
        if found is None:
            unread += 1
            continue
        share = math.exp(found.get("m", -math.inf))
        share /= share + math.exp(found.get("M", -math.inf))
        assert min(abs(row["preference"] - 2 + share), abs(row["preference"] - 1 - share)) < 1e-6
    assert unread <= 2, "answers drawn from the tail, at the annotator's temperature of 1"
