"""WildBench: the owner's files and arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from harness.engine.execute import Inline, execute
from harness.engine.launch import plan_study
from harness.engine.store import Store
from harness.evaluate import given, wildbench
from harness.pocket.benchmarks import TOLD, write_wildbench
from harness.records import HarnessError, read_jsonl, write_jsonl
from harness.study.sections import JudgeSettings
from harness.study.study import load_study
from tests.faulty_judge import serve
from tests.tasks import stage_task

ROOT = Path(__file__).parents[2]
FAST = {"judge_backoff_s": 0.01, "judge_timeout_s": 5.0, "judge_deadline_s": 20.0}
TAGS = [("Math", ["Editing"]), ("Math", []), ("Coding & Debugging", ["Coding & Debugging"])]


@pytest.fixture
def owner(tmp_path: Path) -> wildbench.WildBenchSettings:
    """Three tasks in the owner's form, the first of two turns, and two reference models."""
    rows = []
    for number, (tag, more) in enumerate(TAGS):
        turns = [{"role": "user", "content": f"Ask {number}?", "language": "English"}]
        if number == 0:
            turns = [*turns, {"role": "assistant", "content": "Said."}, *turns]
        tags = {"primary_tag": tag, "secondary_tags": more, "checklist": ["Right?", "Short?"]}
        rows.append({"session_id": f"s{number}", "conversation_input": turns, **tags})
    write_jsonl(tmp_path / "tasks.jsonl", rows)
    for name in ("gpt", "haiku"):
        outputs = [{"session_id": row["session_id"], "output": [f"{name} says"]} for row in rows]
        write_jsonl(tmp_path / f"{name}.jsonl", outputs)
    (tmp_path / "score.md").write_text(TOLD["wildbench"]["score_template"])
    (tmp_path / "pair.md").write_text(TOLD["wildbench"]["reward_template"])
    return wildbench.WildBenchSettings(
        tasks=str(tmp_path / "tasks.jsonl"),
        score_template=str(tmp_path / "score.md"),
        reward_template=str(tmp_path / "pair.md"),
        references={name: str(tmp_path / f"{name}.jsonl") for name in ("gpt", "haiku")},
    )


def judged(
    settings: wildbench.WildBenchSettings, folder: Path, script: Callable[[Mapping[str, Any]], str]
) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """((metric, task) → score row, summary) of the whole stage."""
    bench = folder / "benchmarks" / wildbench.NAME
    assert wildbench.prepare(settings, bench)["expected"] == 3
    rows = [
        row | {"output": f"mine {row['id']}", "status": "ok"}
        for row in read_jsonl(bench / "questions.jsonl")
    ]
    for name in ("answer", "out"):
        (folder / name).mkdir()
    write_jsonl(folder / "answer" / "wildbench.jsonl", rows)
    own = {"references": 2, "length_margin": settings.length_margin}
    with serve(script=script) as server:
        task = stage_task(
            "k",
            "judge.wildbench",
            {"judge": JudgeSettings(), **own},
            {"answer": folder / "answer", "benchmarks": folder / "benchmarks"},
            folder / "out",
            FAST | {"pocket_judge_url": server.base_url},
        )
        wildbench.run(task)
        assert server.counters["calls"] == 9
    found = pq.read_table(folder / "out" / "scores.parquet").to_pylist()
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return {(row["metric"], row["item"]): row for row in found}, summary


RATINGS = {"0": "9", "1": "4", "2": "6"}


def script(body: Mapping[str, Any]) -> str:
    """Ratings 9, 4, 6; against gpt much better, against haiku slightly worse, in both orders."""
    text = body["messages"][-1]["content"]
    number = text.split("mine s")[1][0]
    if "begin_of_response_A" not in text:
        return f'```json\n{{"strengths": "two\nlines", "score": "{RATINGS[number]}"}}\n```'
    mine, other = ("A", "B") if text.index("mine") < text.index(" says") else ("B", "A")
    choice = f"{mine}++" if "gpt says" in text else f"{other}+"
    return json.dumps({"analysis of A": "x", "choice": choice})


def test_scores_and_rewards_are_weighted_means_of_task_groups(
    owner: wildbench.WildBenchSettings, tmp_path: Path
) -> None:
    """Own scores 80, −20, 20: creative 80, maths (80 − 20)/2 = 30, coding 20; weights 0.5, 1, 1.25
    of 4.75 in all, although no task is of the other two groups."""
    rows, summary = judged(owner, tmp_path, script)
    assert [rows["own_score", f"s{n}"]["value"] for n in range(3)] == [80.0, -20.0, 20.0]
    whole = (0.5 * 80 + 1.0 * 30 + 1.25 * 20) / 4.75
    assert summary["score"] == pytest.approx(whole)
    values = [rows["score", f"s{n}"]["value"] for n in range(3)]
    assert sum(values) / 3 == pytest.approx(whole)
    first = (0.5 * (80 + 0) + 1.0 * (30 + 1.5 * 50) + 1.25 * 20) / 4.75 + 0.5 * 0 / 4.75
    assert values[0] == pytest.approx(first)
    assert [rows["own_reward", f"s{n}"]["value"] for n in range(3)] == [25.0, 25.0, 25.0]
    assert summary["reward"] == pytest.approx(25 * 2.75 / 4.75)


def test_the_prompt_holds_history_query_and_checklist(
    owner: wildbench.WildBenchSettings, tmp_path: Path
) -> None:
    seen = []

    def recorded(body: Mapping[str, Any]) -> str:
        seen.append(body["messages"][-1]["content"])
        return script(body)

    judged(owner, tmp_path, recorded)
    first = next(text for text in seen if "mine s0" in text)
    assert "USER: Ask 0?\n\nASSISTANT: Said.\n\n" in first
    assert "- Right?\n- Short?\n" in first
    assert "{$" not in first


def results(folder: Path) -> list[dict[str, Any]]:
    """The script's verdicts in the owner's form: of ratings and of both comparisons, of which the
    model is once A and once B."""
    rows: list[dict[str, Any]] = []
    for number, rating in RATINGS.items():
        name, mine = f"s{number}", f"mine s{number}"
        told = {"session_id": name, "model_test": "m", "score": rating, "model_output": mine}
        outputs = {"m": mine, "gpt": "gpt says"}
        won = {"session_id": name, "model_A": "m", "model_B": "gpt", "model_outputs": outputs}
        won |= {"winner": "m", "extent": 2}
        outputs = {"m": mine, "haiku": "haiku says"}
        lost = {"session_id": name, "model_A": "haiku", "model_B": "m", "model_outputs": outputs}
        rows += [told, won, lost | {"winner": "haiku", "extent": 1}]
    (folder / "results.json").write_text(json.dumps(rows))
    return rows


def scored_as_given(folder: Path, **own: Any) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    inputs = {"benchmarks": folder / "benchmarks", "answer": folder / "answers"}
    for name in ("answers", "given"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "results.json"
    given.wildbench_answers(path, "", folder / "benchmarks", folder / "answers")
    settings = {"benchmark": wildbench.NAME, "path": str(path), "model": "", "own": own}
    given.verdicts(stage_task("k", "verdicts.given", settings, inputs, folder / "given"))
    found = pq.read_table(folder / "given" / "scores.parquet").to_pylist()
    summary = json.loads((folder / "given" / "summary.json").read_text())
    return {(row["metric"], row["item"]): row for row in found}, summary


def test_judged_results_that_exist_score_as_those_of_a_study(
    owner: wildbench.WildBenchSettings, tmp_path: Path
) -> None:
    ours, told = judged(owner, tmp_path, script)
    rows = results(tmp_path)
    found, summary = scored_as_given(tmp_path)
    assert {key: row["value"] for key, row in found.items()} == {
        key: row["value"] for key, row in ours.items()
    }
    assert summary["reward"] == pytest.approx(25 * 2.75 / 4.75)
    assert summary["benchmark_version"] == told["benchmark_version"]
    # haiku's answer is the longer one: with the margin its slight wins are ties.
    _, summary = scored_as_given(tmp_path, length_margin=2)
    assert summary["reward"] == pytest.approx(50 * 2.75 / 4.75)
    # A rating that is none, and a task that was not compared with haiku.
    (tmp_path / "results.json").write_text(json.dumps([rows[0] | {"score": "11"}, *rows[1:-1]]))
    found, _ = scored_as_given(tmp_path)
    assert found["own_score", "s0"]["status"] == "unparsed"
    assert found["own_reward", "s2"]["status"] == "no_answer"


def test_a_study_reads_judged_results_with_its_length_margin(
    owner: wildbench.WildBenchSettings, tmp_path: Path
) -> None:
    results(tmp_path)
    (tmp_path / "t.csv").write_text("arm,step,wildbench_verdicts\nm,1,results.json\n")
    keys = owner.model_dump(exclude={"judge", "max_new_tokens"}) | {"length_margin": 2}
    evaluation = {"benchmarks": ["wildbench"], "wildbench": keys}
    recipe = str(ROOT / "ablations" / "recipes" / "own_data.yaml")
    asked = {"name": "s", "recipe": recipe, "given": "t.csv", "set": {"evaluation": evaluation}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(asked))
    plan, store = plan_study(load_study(tmp_path / "s.yaml")), Store(tmp_path / "store")
    store.open()
    assert not execute(plan, store, Inline(store)).exit_status
    folder = store.folder(plan.runs[0].iterations[1]["judge.wildbench"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["reward"] == pytest.approx(50 * 2.75 / 4.75)


def test_results_of_another_form_or_reference_are_refused(
    owner: wildbench.WildBenchSettings, tmp_path: Path
) -> None:
    wildbench.prepare(owner, tmp_path / "benchmarks" / wildbench.NAME)
    rows = results(tmp_path)
    for wrong, words in (
        ([rows[1] | {"model_B": "opus"}], "row 1: wants session_id and output; or"),
        ([rows[0] | {"model_output": None}], "row 1: wants session_id and output; or"),
        ([rows[0], rows[0]], r"\('s0', 'score'\) occurs more than once"),
        ([rows[0] | {"session_id": "z"}], "1 of 1 questions are not the benchmark's"),
        ([{"session_id": "s0", "output": ["x"]}], "these are answers, not judged results"),
    ):
        (tmp_path / "results.json").write_text(json.dumps(wrong))
        with pytest.raises(HarnessError, match=words):
            scored_as_given(tmp_path)


@pytest.mark.parametrize(
    ("reward", "margin", "expected"),
    [(50.0, None, 50.0), (50.0, 3, 0.0), (50.0, 7, 50.0), (100.0, 3, 100.0), (-50.0, 3, -50.0)],
)
def test_a_slight_win_of_a_longer_answer_is_a_tie(
    reward: float, margin: int | None, expected: float
) -> None:
    assert wildbench.rewarded(reward, "x" * 10, "y" * 4, margin) == expected


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("score", 'Well. {"score": 7}', 40.0),
        ("score", '{"score": "1", }', -80.0),
        ("score", '{"score": "10.0"}', 100.0),
        ("score", '{"score": 10.0}', 100.0),
        ("score", '{"score": "10.5"}', None),
        ("score", '{"score": "11"}', None),
        ("score", '{"score": "[1~10]"}', None),
        ("score", "7", None),
        ("gpt", '{"choice": "B++"}', -100.0),
        ("gpt", '{"choice": "A>B"}', None),
    ],
)
def test_a_judgment_is_the_json_in_it(kind: str, text: str, value: float | None) -> None:
    assert wildbench.value_of(kind, text) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ""}, "tasks is empty"),
        ({"score_template": "pair.md"}, r"no \{\$model_output\} in it"),
        ({"references": {"gpt": "nowhere.jsonl"}}, "nowhere.jsonl does not exist"),
        ({"references": {"gpt": "half.jsonl"}}, "no answer to s0"),
        ({"references": {"gpt": "null.jsonl"}}, "row 1: all: .*neither id nor session_id"),
        ({"tasks": "odd.jsonl"}, "row 1: unknown tag 'Cooking'"),
        ({"tasks": "half.jsonl"}, "row 1: conversation_input: Field required"),
        ({"tasks": "none.jsonl"}, "its file of questions holds none"),
    ],
)
def test_files_that_do_not_fit_are_named(
    owner: wildbench.WildBenchSettings, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "half.jsonl", [{"session_id": "z", "output": "x"}])
    write_jsonl(tmp_path / "none.jsonl", [])
    write_jsonl(tmp_path / "null.jsonl", [{"id": None, "output": "x"}])
    odd = {"id": "o", "conversation_input": [{"role": "user", "content": "?"}]}
    odd |= {"checklist": [], "primary_tag": "Cooking", "secondary_tags": []}
    write_jsonl(tmp_path / "odd.jsonl", [odd])

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(one) for name, one in value.items()}
        return str(tmp_path / value) if value else value

    here = {key: placed(value) for key, value in change.items()}
    with pytest.raises(HarnessError, match=message):
        wildbench.prepare(owner.model_copy(update=here), tmp_path / "made")


def test_the_pocket_judge_prefers_the_right_answer(tmp_path: Path) -> None:
    bench = tmp_path / "benchmarks" / wildbench.NAME
    bench.mkdir(parents=True)
    assert write_wildbench(0, 8, bench) == 8
    rows = list(read_jsonl(bench / "questions.jsonl"))
    (tmp_path / "answer").mkdir()
    scores = {}
    for said in ("nothing", "baseline"):
        texts = [row["references"]["pocket"] if said == "baseline" else said for row in rows]
        made = [row | {"output": t, "status": "ok"} for row, t in zip(rows, texts, strict=True)]
        write_jsonl(tmp_path / "answer" / "wildbench.jsonl", made)
        (tmp_path / said).mkdir()
        inputs = {"answer": tmp_path / "answer", "benchmarks": tmp_path / "benchmarks"}
        own = {"judge": JudgeSettings(noise=0.0, position_bias=0.0), "references": 0}
        own |= {"length_margin": None}
        with serve({"noise": 0.0, "position_bias": 0.0}) as server:
            url = FAST | {"pocket_judge_url": server.base_url}
            wildbench.run(stage_task("k", "judge.wildbench", own, inputs, tmp_path / said, url))
        scores[said] = json.loads((tmp_path / said / "summary.json").read_text())
    assert scores["baseline"]["reward"] == 0.0
    assert scores["nothing"]["reward"] < -20
    assert scores["nothing"]["score"] < scores["baseline"]["score"]
