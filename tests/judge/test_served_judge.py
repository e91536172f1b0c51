"""A local chat model as the judge: the published schema by its own client, the model's own
log-probabilities, our judge client end to end.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from typer.testing import CliRunner

from harness.cli import app
from harness.judge import chat_http
from harness.judge.chat_http import ServedModel
from harness.model.chat import encode_prompt
from harness.model.policy import load_policy
from harness.pocket.judge import JudgeServer
from harness.records import HarnessError, write_jsonl
from tests import tiny
from tests.judged_world import World, benchmarks
from tests.processes import running

ROOT = Path(__file__).parents[2]
HELLO = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Hello?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tiny.checkpoint(
        tmp_path_factory.mktemp("judge") / "tiny", max_position_embeddings=16_384
    )
    return ServedModel(load_policy(folder), "tiny-judge")


@pytest.fixture(scope="module")
def address(model: ServedModel) -> Iterator[str]:
    with chat_http.serving(model.handle) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as found:
        yield found


def ask(client: openai.OpenAI, messages: list[dict[str, str]] = HELLO, **params: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny-judge", "messages": messages, "max_tokens": 8, **params}
    )


# -- the published schema --------------------------------------------------------------------------


def test_log_probs_are_the_models_own_log_softmax(
    model: ServedModel, client: openai.OpenAI
) -> None:
    reply = ask(client, temperature=0.7, seed=3, logprobs=True, top_logprobs=20)
    choice, tokenizer = reply.choices[0], model.policy.tokenizer
    ids = encode_prompt(tokenizer, HELLO)
    assert reply.usage.prompt_tokens == len(ids)
    assert reply.usage.completion_tokens == len(choice.logprobs.content) == 8
    assert choice.finish_reason == "length"
    for entry in choice.logprobs.content:
        with torch.inference_mode():
            logprobs_V = model.policy.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        values, tokens = logprobs_V.topk(20)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            values.tolist(), abs=1e-4
        )
        assert [top.token for top in entry.top_logprobs] == [
            tokenizer.decode([token]) for token in tokens.tolist()
        ]
        matching = [
            token for token in range(len(tokenizer)) if tokenizer.decode([token]) == entry.token
        ]
        written = min(
            matching, key=lambda token: abs(float(logprobs_V[token]) - entry.logprob)
        )  # bytes of no letter look alike
        assert float(logprobs_V[written]) == pytest.approx(entry.logprob, abs=1e-4)
        ids.append(written)


def test_greedy_is_the_most_likely_token_whatever_the_seed(client: openai.OpenAI) -> None:
    replies = [
        ask(client, temperature=0, seed=seed, logprobs=True, top_logprobs=1, max_tokens=1).choices[
            0
        ]
        for seed in (1, 2)
    ]
    entries = [choice.logprobs.content[0] for choice in replies]
    assert entries[0].token == entries[1].token == entries[0].top_logprobs[0].token
    assert replies[0].finish_reason == "length"


def test_the_same_seed_gives_the_same_text_and_another_another(client: openai.OpenAI) -> None:
    def text(**params: Any) -> str:
        return str(ask(client, temperature=1.0, max_tokens=16, **params).choices[0].message.content)

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text() == text()


def test_requests_sent_at_once_do_not_change_one_another(client: openai.OpenAI) -> None:
    prompts = [[{"role": "user", "content": f"Number {i}"}] for i in range(6)]
    alone = [
        ask(client, prompt, temperature=1.0, seed=5).choices[0].message.content
        for prompt in prompts
    ]
    together: dict[int, str] = {}

    def one(i: int) -> None:
        together[i] = ask(client, prompts[i], temperature=1.0, seed=5).choices[0].message.content

    threads = [threading.Thread(target=one, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(6)] == alone


def test_an_end_token_is_no_part_of_the_text(tmp_path: Path) -> None:
    """A model whose every logit but the end of turn's is the same small number ends at once."""
    policy = load_policy(tiny.checkpoint(tmp_path / "ends"), cached=False)
    end = policy.tokenizer.convert_tokens_to_ids("<|eot_id|>")

    def only_the_end(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([end]), 50.0)

    policy.model.lm_head.register_forward_hook(only_the_end)
    served = ServedModel(policy, "tiny-judge")
    with (
        chat_http.serving(served.handle) as url,
        openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as ended,
    ):
        reply = ask(ended, logprobs=True)
    assert (
        reply.choices[0].message.content,
        reply.choices[0].finish_reason,
        reply.choices[0].logprobs.content,
    ) == ("", "stop", [])


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stream": True}, "not supported here: stream"),
        ({"temperature": 3}, r"temperature: Input should be less than or equal to 2"),
        ({"top_logprobs": 5}, "top_logprobs needs logprobs"),
        (
            {"logprobs": True, "top_logprobs": 21},
            r"top_logprobs: Input should be less than or equal to 20",
        ),
        ({"max_tokens": 0}, r"max_tokens: Input should be greater than or equal to 1"),
        ({"n": 2}, r"n: Input should be less than or equal to 1"),
        ({"stop": "a"}, "not supported here: stop"),
        ({"messages": []}, r"messages: List should have at least 1 item"),
        (
            {"messages": [{"role": "poet", "content": "x"}]},
            r"role: Input should be 'system', 'user' or 'assistant'",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            r"content: Input should be a valid string",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 17_000}]},
            "17023 tokens, the model takes 16384 in all",
        ),
    ],
)
def test_bad_requests_get_the_published_error(
    client: openai.OpenAI, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, **params)


def test_another_model_and_another_path_are_not_found(client: openai.OpenAI, address: str) -> None:
    with pytest.raises(openai.NotFoundError, match="ask for 'tiny-judge'"):
        ask(client, model="gpt-4")
    with pytest.raises(openai.NotFoundError, match="no such path"):
        client.embeddings.create(model="tiny-judge", input="x")
    assert [found.id for found in client.models.list()] == ["tiny-judge"]
    for body in (b"no json", b"[]"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(address + "/chat/completions", data=body)


def test_a_model_that_breaks_is_a_server_error_and_the_next_request_is_served(
    model: ServedModel, client: openai.OpenAI
) -> None:
    def broken(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits * float("nan")

    hook = model.policy.model.lm_head.register_forward_hook(broken)
    with pytest.raises(openai.InternalServerError, match="not finite"):
        ask(client)
    hook.remove()
    assert ask(client).choices


def test_a_template_without_system_turns_gets_the_text_before_the_users(tmp_path: Path) -> None:
    strict = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') "
        "}}{% endif %}" + tiny.ZEPHYR.partition("%}")[2]
    )
    served = ServedModel(
        load_policy(tiny.checkpoint(tmp_path / "strict", style="zephyr", template=strict)), "m"
    )
    ids = encode_prompt(served.policy.tokenizer, HELLO)
    assert served.policy.tokenizer.decode(ids) == (
        "<s><|user|>\nJudge.\n\nHello?</s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_only_loopback_is_bound_unless_asked(host: str) -> None:
    done = CliRunner().invoke(app, ["judge-server", "--host", host])
    assert isinstance(done.exception, HarnessError)
    assert "--public" in str(done.exception)
    chat_http.check_host(host, public=True)
    chat_http.check_host("::1", public=False)


def test_a_port_in_use_is_said(address: str) -> None:
    port = int(address.split(":")[2].split("/")[0])
    serving = chat_http.serving(JudgeServer({}).handle, port=port)
    with pytest.raises(HarnessError, match=f"port {port}"), serving:
        pass


# -- our judge client, both benchmarks -------------------------------------------------------------


def two_of_each(folder: Path) -> None:
    """The pocket world's files, cut to two questions and two instructions."""
    benchmarks(folder)
    questions = (folder / "mt_bench" / "question.jsonl").read_text().splitlines()[:1]
    (folder / "mt_bench" / "question.jsonl").write_text("\n".join(questions) + "\n")
    rows = json.loads((folder / "alpaca_eval" / "eval.json").read_text())[:2]
    (folder / "alpaca_eval" / "eval.json").write_text(json.dumps(rows))
    gamed = (folder / "alpaca_eval" / "df_gamed.csv").read_text().splitlines()
    kept = [
        line
        for line in gamed[1:]
        if line.split(",")[gamed[0].split(",").index("index")] in ("0", "1")
    ]
    (folder / "alpaca_eval" / "df_gamed.csv").write_text("\n".join([gamed[0], *kept]) + "\n")


def test_our_client_judges_both_benchmarks_by_it(address: str, tmp_path: Path) -> None:
    """A random model gives no verdict that can be read: every item is asked, answered and
    ``unparsed``; nothing is an error.
    """
    world = World(tmp_path, "", judge_timeout_s=60.0, judge_deadline_s=300.0)
    world.commit("benchmarks", "benchmarks.files", two_of_each)
    folder = world.store.folder(world.keys["benchmarks"])
    question = json.loads((folder / "mt_bench" / "question.jsonl").read_text())
    instructions = json.loads((folder / "alpaca_eval" / "eval.json").read_text())

    def answers(out: Path) -> None:
        turns = [f"reply {turn}" for turn in range(len(question["turns"]))]
        row = {
            "question_id": question["question_id"],
            "choices": [{"index": 0, "turns": turns}],
            "status": ["ok"] * len(turns),
        }
        write_jsonl(out / "mt_bench.jsonl", [row])
        rows = [
            {**item, "output": "my own reply", "generator": "m", "status": "ok"}
            for item in instructions
        ]
        (out / "alpaca_eval.json").write_text(json.dumps(rows))

    world.commit("answer", "data.files", answers)
    judge = {"kind": "openai", "base_url": address, "model": "tiny-judge", "max_tokens": 8}
    keys = [world.judged(stage, **judge) for stage in ("judge.mt_bench", "judge.alpaca_eval")]
    summary = world.walk()
    assert (summary.failed, summary.partial, summary.blocked) == ({}, {}, [])
    for key in keys:
        rows = world.rows(key)
        assert len(rows) == 2
        for row in rows.values():
            assert row["status"] in ("ok", "unparsed")
            assert (row["value"] is None) == (row["status"] == "unparsed")
    ratings, verdicts = (world.judgments(key) for key in keys)
    assert {row["status"] for row in ratings} == {"unparsed"}, "cut off at 8 tokens and at 16"
    assert all(len(row["logprobs"][0]["top_logprobs"]) == 5 for row in verdicts)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_serves_a_checkpoint_until_interrupted(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-m", "harness.cli", "judge-server", "--model", str(folder)]
    command += ["--name", "mine", "--port", "0", "--device", "cpu"]
    with running(command) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as served:
            assert ask(served, model="mine", temperature=0).choices[0].finish_reason in (
                "stop",
                "length",
            )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 0)
    assert err == "mine: float32 on cpu, 1,024 tokens of context, one request at a time.\n"


def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["judge-server", "--model", str(tmp_path / "nothing")])
    assert isinstance(done.exception, HarnessError)
    assert "no such checkpoint folder" in str(done.exception)
