"""The doctor asks a judge's endpoint for the model and sends one request of each kind; no key is
shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from harness.cli import app, findings
from harness.cli.findings import Finding
from harness.study.sections import JudgeSettings
from harness.study.study import checked_judge
from harness.study.tasks import Runtime
from tests.faulty_judge import serve

KEY = "sk-very-secret-0123456789"
FACTS = "facts: {about: mine, licence: open, price_prompt: 1, price_completion: 2, sources: {a: b}}"
GPT = JudgeSettings(kind="openai", model="gpt", base_url="https://judge.example/v1")


def asked(judge: JudgeSettings, get: Any = httpx.get) -> list[Finding]:
    both = ("mt_bench", "alpaca_eval")
    return list(findings.asked(judge, both, Runtime(judge_backoff_s=0.01), get))


def answering(status: int, value: Any, seen: list[str]) -> Any:
    def get(url: str, **_: Any) -> SimpleNamespace:
        seen.append(url)
        return SimpleNamespace(status_code=status, json=lambda: value)

    return get


@pytest.mark.parametrize(
    ("status", "value", "state", "says"),
    [
        (200, {"data": [{"id": "gpt"}]}, "ok", "has gpt; OPENAI_API_KEY is set"),
        (200, {"data": [{"id": "b"}, {"id": "a"}]}, "WRONG", "has no 'gpt'; it has a, b"),
        (404, {}, "note", "lists no models"),
        (200, [], "note", "lists no models"),
        (401, {}, "WRONG", "refuses the key"),
        (503, {}, "WRONG", "503"),
    ],
)
def test_the_endpoint_is_asked_for_the_model_by_name(
    status: int, value: Any, state: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    seen: list[str] = []
    (found,) = findings.model(GPT, answering(status, value, seen), "judge")
    assert found.state == state
    assert seen == ["https://judge.example/v1/models"]
    assert says in found.says and KEY not in found.says


def test_a_judge_on_this_machine_is_asked_by_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked: dict[str, Any] = {}

    def get(url: str, **options: Any) -> Any:
        asked[url] = options["trust_env"]
        return httpx.Response(200, json={"data": [{"id": "m"}]})

    for url in ("http://127.0.0.1:8000/v1", "https://judge.example/v1"):
        judge = GPT.model_copy(update={"base_url": url, "model": "m"})
        list(findings.model(judge, get, "judge"))
    assert list(asked.values()) == [False, True]


def test_no_key_and_no_answer_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (found,) = findings.model(GPT, httpx.get, "judge")
    assert found.state == "WRONG" and "set the OPENAI_API_KEY variable" in found.says
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def refuse(url: str, **options: Any) -> None:
        raise httpx.ConnectError(f"no route with {KEY}")

    (found,) = findings.model(GPT, refuse, "judge")
    assert found.state == "WRONG" and "does not answer" in found.says and KEY not in found.says


def test_an_end_that_the_endpoint_announces_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    listed = {"data": [{"id": "gpt", "shutdown_date": "2027-01-14"}]}
    found = list(findings.model(GPT, answering(200, listed, []), "judge"))
    assert [one.state for one in found] == ["ok", "note"]
    assert "2027-01-14" in found[1].says


def profile(folder: Path, url: str, **changes: Any) -> Path:
    (folder / "judges").mkdir()
    path = folder / "judges" / "mine.yaml"
    lines = {"kind": "openai", "model": "pocket-judge", "base_url": url, **changes}
    path.write_text("\n".join([*(f"{key}: {value}" for key, value in lines.items()), FACTS]))
    return path


def test_one_request_of_each_kind_is_sent_and_read(tmp_path: Path) -> None:
    with serve() as server:
        path = profile(tmp_path, server.base_url, verdict="logprobs")
        found = list(findings.profile(path))
        assert server.counters["answered"] == 2
    states = {one.what: (one.state, one.says) for one in found}
    assert [one.state for one in found] == ["ok"] * 5
    assert "rating" in states["judge mine for mt_bench"][1]
    assert "weighted_alpaca_eval_gpt4_turbo" in states["judge mine for alpaca_eval"][1]
    # 160 × 1,200 + 805 × 1,300 prompt tokens at 1 USD, 160 × 200 + 805 at 2 USD a million
    assert "965 calls of 1,238,500 + 32,805 tokens = 1.30 USD" in states["price"][1]


def test_a_judge_that_cannot_be_asked_as_its_profile_says_is_wrong(tmp_path: Path) -> None:
    with serve(like=("no-logprobs",)) as server:
        path = profile(tmp_path, server.base_url)
        states = {one.what: (one.state, one.says) for one in asked(checked_judge(path))}
        assert states["judge mine for mt_bench"][0] == "ok"
        state, says = states["judge mine for alpaca_eval"]
        assert state == "WRONG" and "judge.verdict: text" in says
        done = CliRunner().invoke(app, ["doctor", str(path), "--store", str(tmp_path / "s")])
    assert done.exit_code == 1
    assert "1 wrong" in done.output


def test_a_judge_without_a_verdict_is_wrong(tmp_path: Path) -> None:
    def script(_body: Mapping[str, Any]) -> str:
        return "I would rather not."

    with serve(script=script) as server:
        judge = checked_judge(profile(tmp_path, server.base_url, verdict="text"))
        found = [one for one in asked(judge) if " for " in one.what]
    assert [one.state for one in found] == ["WRONG", "WRONG"]
    assert all("gave no verdict (unparsed" in one.says for one in found)


@pytest.mark.parametrize(
    ("like", "states"), [((), ("ok", "ok")), (("refuses-logprobs",), ("note", "ok"))]
)
def test_an_address_says_which_verdict_it_can_give(
    like: tuple[str, ...], states: tuple[str, str], tmp_path: Path
) -> None:
    with serve(like=like) as server:
        found = list(findings.address(server.base_url))
        assert found[0].says == "has pocket-judge"
        assert tuple(one.state for one in found[1:]) == states
        done = CliRunner().invoke(app, ["doctor", server.base_url, "--store", str(tmp_path)])
    assert done.exit_code == 0, done.output


def test_a_study_is_told_its_judges_and_their_price(tmp_path: Path) -> None:
    with serve() as server:
        profile(tmp_path, server.base_url, verdict="text", temperature="null")
        study = tmp_path / "study.yaml"
        study.write_text(
            "name: x\nrecipe: RECIPE\nseeds: [0]\n"
            "set: {loop.iterations: 1, evaluation: {mt_bench.judge: mine}}\n".replace(
                "RECIPE", str(Path("ablations/recipes/pocket.yaml").resolve())
            )
        )
        command = ["doctor", str(study), "--store", str(tmp_path / "store")]
        done = CliRunner().invoke(app, command)
        assert server.counters["answered"] == 1, "alpaca_eval keeps the pocket judge"
    assert done.exit_code == 0, done.output
    assert "judge mine for mt_bench: rating" in done.output
    # base and one iteration: 2 × 48 turns of 170 + 8 tokens at 1 and 2 USD a million
    assert "mine: 96 calls of 16,320 + 768 tokens = 0.02 USD" in done.output
