"""Public answers judged again: by a copy of the judge whose verdicts they carry, and by one with a
known bias.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from typer.testing import CliRunner

from analysis import bridge as reading
from harness.cli import app
from harness.evaluate import bridge
from harness.judge import chat_http
from harness.judge.endpoint import estimate_tokens
from harness.pocket import judge as pocket_judge
from harness.records import HarnessError, content_hash, read_jsonl, write_jsonl
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime

MODELS = ("claude-2", "alpaca-7b")
FACTS = "facts: {about: mine, licence: open, price_prompt: 1, price_completion: 2, sources: {a: b}}"
ITEMS = 60
Shift = Callable[[str, str], tuple[float, float]]
"""(instruction, model's answer) → what is added to the log-odds of that answer and to ratings."""


def unchanged(_instruction: str, _answer: str) -> tuple[float, float]:
    return 0.0, 0.0


def biased(instruction: str, answer: str) -> tuple[float, float]:
    """3 log-odds against the model, and noise of sd 1.5 that is the same for the same answer."""
    seed = int(content_hash(instruction, answer, length=8), 16)
    return -3.0 + 1.5 * float(np.random.default_rng(seed).normal()), 0.0


@pytest.fixture(scope="module")
def public(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefacts of two models on AlpacaEval and of both on MT-Bench."""
    folder = tmp_path_factory.mktemp("public")
    (folder / "alpaca_eval").mkdir()
    for name in (*MODELS, "gpt4_1106_preview", "df_gamed_reconstructed.csv"):
        (folder / "alpaca_eval" / name).symlink_to(shared_data / "alpaca_eval" / name)
    (folder / "mt_bench").symlink_to(shared_data / "mt_bench")
    return folder


@contextmanager
def old_judge(folder: Path, shift: Shift) -> Iterator[tuple[str, list[str]]]:
    """The judge of the stored verdicts, asked again: the same reply to the same prompt."""
    odds: dict[tuple[str, str, str], float] = {}
    for model in MODELS:
        for row in json.loads((folder / "alpaca_eval" / model / "annotations.json").read_text()):
            share = min(max(row["preference"] - 1.0, 1e-9), 1 - 1e-9)
            value = math.log(share / (1 - share)) + shift(row["instruction"], row["output_2"])[0]
            one, two = row["output_1"].strip(), row["output_2"].strip()
            odds[row["instruction"].strip(), one, two] = value
            odds[row["instruction"].strip(), two, one] = -value
    said = {
        row["user_prompt"].strip(): row["judgment"]
        for path in (folder / "mt_bench").glob("judgments_*.jsonl")
        for row in read_jsonl(path)
    }
    calls: list[str] = []

    def answer(body: Mapping[str, Any]) -> chat_http.Choice:
        prompt = body["messages"][-1]["content"]
        calls.append(prompt)
        if prompt.strip() in said:
            return chat_http.Choice(said[prompt.strip()], "stop", 9)
        judgment = pocket_judge.read(body["messages"])
        assert judgment is not None
        texts = (judgment.messages[0]["content"], *judgment.answers)
        instruction, first, second = (text.strip() for text in texts)
        second_wins = 1 / (1 + math.exp(-odds[instruction, first, second]))
        tokens = [("m", math.log(1 - second_wins)), ("M", math.log(second_wins))]
        tokens.sort(key=lambda one: -one[1])
        return chat_http.Choice(
            tokens[0][0], "length", 1, [chat_http.token_entry(tokens[0], tokens)]
        )

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = json.loads(await request.read())
        tokens = estimate_tokens(body["messages"])
        return chat_http.reply(chat_http.completion("old", answer(body), tokens, "test"))

    with chat_http.serving(handle) as url:
        yield url, calls


def command(folder: Path, url: str, tmp: Path, *more: str) -> Any:
    (tmp / "judges").mkdir(exist_ok=True)
    profile = tmp / "judges" / "copy.yaml"
    profile.write_text(f"kind: openai\nmodel: old\nbase_url: {url}\nverdict: logprobs\n{FACTS}\n")
    asked = ["bridge", str(profile), str(folder), "--results", str(tmp / "results")]
    return CliRunner().invoke(app, [*asked, *more])


def scales(tmp: Path) -> dict[str, reading.Scale]:
    (path,) = (tmp / "results" / "bridge").glob("*/bridge.json")
    return {scale.metric: scale for scale in reading.read(path)[1]}


def test_a_copy_of_the_old_judge_is_the_identity(public: Path, tmp_path: Path) -> None:
    with old_judge(public, unchanged) as (url, calls):
        done = command(public, url, tmp_path, "--items", str(ITEMS))
        assert done.exit_code == 0, done.output
        assert len(calls) == ITEMS * 2 + ITEMS * 2 * 2, "a call a pair, and a turn of MT-Bench"
        again = command(public, url, tmp_path, "--items", str(ITEMS))
        assert again.exit_code == 0 and len(calls) == ITEMS * 6, "finished work asks nothing"
    found = scales(tmp_path)
    assert set(found) == {"win_rate", "length_controlled_win_rate", "rating"}
    for name in ("win_rate", "rating"):
        agreed = reading.agreement(found[name])
        assert agreed is not None
        assert agreed.share.value == pytest.approx(1.0)
        assert agreed.kappa.value == pytest.approx(1.0)
    for scale in found.values():
        line = scale.line()
        assert line is not None
        assert line[0].value == pytest.approx(0.0, abs=1e-3)
        assert line[1].value == pytest.approx(1.0, abs=1e-4)
        assert scale.kept_signs()[:2] == (1, 1)


def test_a_biased_copy_is_recovered_within_its_intervals(public: Path, tmp_path: Path) -> None:
    """On 300 items: few of them are close enough for the bias to move much."""
    with old_judge(public, biased) as (url, _):
        done = command(public, url, tmp_path, "--items", "300")
    assert done.exit_code == 0, done.output
    scale = scales(tmp_path)["win_rate"]
    for place, model in enumerate(scale.models):
        rows = json.loads((public / "alpaca_eval" / model / "annotations.json").read_text())
        odds = np.array([row["preference"] - 1.0 for row in rows]).clip(1e-9, 1 - 1e-9)
        logits = np.log(odds / (1 - odds))
        noise = np.random.default_rng(0).normal(-3.0, 1.5, (200, len(rows)))
        truth = float((100 / (1 + np.exp(-logits - noise)) - 100 * odds).mean())
        assert truth < -1
        assert scale.shift(place).holds(truth)
    assert not scale.shift(scale.models.index("claude-2")).holds(0.0)
    agreed = reading.agreement(scale)
    assert agreed is not None and agreed.share.value < 1.0


def test_a_judge_that_gives_no_verdict_is_told(public: Path, tmp_path: Path) -> None:
    token = ("I", -0.1)

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        said = chat_http.Choice("I", "stop", 1, [chat_http.token_entry(token, [token])])
        return chat_http.reply(chat_http.completion("old", said, 900, "test"))

    with chat_http.serving(handle) as url:
        done = command(public, url, tmp_path, "--items", "2")
    assert "gave no verdict on any of 12 answers (unparsed)" in str(done.exception)


def test_more_items_are_a_superset_and_a_price_decides_how_many(public: Path) -> None:
    found = bridge.read_public(public)
    judge = JudgeSettings.model_validate(
        {
            "facts": {"about": "", "licence": "", "price_prompt": 1.0, "price_completion": 0.0}
            | {"sources": {"a": "b"}}
        }
    )
    free = Runtime()
    few, more = (bridge.sample(found, judge, free, items, 1) for items in (10, 20))
    assert {(one.benchmark, one.item, one.model) for one in few} < {
        (one.benchmark, one.item, one.model) for one in more
    }
    assert len(few) == 10 * 2 + 10 * 2 * 2
    whole = bridge.cost(found, judge, free, 1)
    half = bridge.sample(found, judge, Runtime(max_cost_usd=whole / 2), 0, 1)
    assert bridge.cost(half, judge, free, 1) == pytest.approx(whole / 2, rel=0.1)
    with pytest.raises(HarnessError, match="pays for no item"):
        bridge.sample(found, judge, Runtime(max_cost_usd=1e-6), 0, 1)


def test_verdicts_of_two_old_judges_on_one_model_or_doubled_ones_are_refused(
    public: Path, tmp_path: Path
) -> None:
    folder, name = tmp_path / "alpaca_eval" / "m", "annotations.json"
    stored = json.loads((public / "alpaca_eval" / MODELS[0] / name).read_text())[:3]
    for annotator, preference in (("alpaca_eval_gpt4", 0), ("weighted_alpaca_eval_gpt4_turbo", 2)):
        (folder / annotator).mkdir(parents=True)
        rows = [row | {"annotator": annotator, "preference": preference} for row in stored]
        (folder / annotator / name).write_text(json.dumps(rows))
    with pytest.raises(HarnessError, match="annotations of one old judge are wanted"):
        bridge.read_public(tmp_path)
    (folder / "weighted_alpaca_eval_gpt4_turbo" / name).unlink()
    assert [one.old for one in bridge.read_public(tmp_path)] == [50.0, 50.0, 50.0]
    (tmp_path / "mt_bench").mkdir()
    (tmp_path / "mt_bench" / "judge_prompts.jsonl").symlink_to(
        public / "mt_bench" / "judge_prompts.jsonl"
    )
    judged = list(read_jsonl(next((public / "mt_bench").glob("judgments_*.jsonl"))))[:2]
    judged[0] |= {"score": None, "turn": float(judged[0]["turn"])}
    write_jsonl(tmp_path / "mt_bench" / "judgments_m.jsonl", judged)
    read = [one for one in bridge.read_public(tmp_path) if one.benchmark == "mt_bench"]
    assert [one.old for one in read] == [None, judged[1]["score"]]
    assert read[0].item == f"{judged[0]['question_id']}:{judged[0]['turn']:.0f}"
    write_jsonl(tmp_path / "mt_bench" / "judgments_m.jsonl", [*judged, judged[1]])
    with pytest.raises(HarnessError, match="is judged twice"):
        bridge.read_public(tmp_path)


def test_a_folder_without_verdicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no answers with verdicts"):
        bridge.read_public(tmp_path)
