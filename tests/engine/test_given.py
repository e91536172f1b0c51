"""Checkpoints and answers from elsewhere score what they score inside a study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
import yaml

from analysis.compare import compare
from analysis.load import load_study as load_results
from harness.cli import run as running
from harness.cli.run import run_plan
from harness.engine.execute import Inline, execute
from harness.engine.graph import Plan
from harness.engine.launch import Watcher, plan_study
from harness.engine.store import Store
from harness.records import read_jsonl, write_jsonl
from harness.study.study import load_study
from tests import evaluation_files, tiny
from tests.model.test_adapter import trained

ROOT = Path(__file__).parents[2]
SMALL = {
    "loop": {"iterations": 1, "prompts_per_iteration": 32},
    "pocket": {"steps": 25, "rows": 800},
    "training": {"epochs": 1, "batch_size": 16},
    "data": {"heldout": 8, "ood": 4},
    "evaluation": {
        "benchmarks": ["mt_bench", "alpaca_eval", "heldout"],
        "mt_bench.limit": 8,
        "alpaca_eval.limit": 16,
    },
    "diagnostics.prompts": 8,
}
SCORED = ("judge.mt_bench", "judge.alpaca_eval", "heldout")


def plan(folder: Path, recipe: str, **keys: Any) -> Plan:
    path = folder / f"{keys['name']}.yaml"
    whole = str(ROOT / "ablations" / "recipes" / f"{recipe}.yaml")
    path.write_text(yaml.safe_dump({"recipe": whole} | keys, sort_keys=False))
    return plan_study(load_study(path))


def scores(store: Store, stages: Mapping[str, str], name: str) -> pd.DataFrame:
    return pd.read_parquet(store.folder(stages[name]) / "scores.parquet")


def done(plan: Plan, store: Store) -> None:
    store.open()
    summary = execute(plan, store, Inline(store))
    assert not summary.exit_status, summary


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, Mapping[str, str]]:
    """A folder, the store, and the stages of a pocket study's checkpoint after iteration 1."""
    folder = tmp_path_factory.mktemp("given")
    store = Store(folder / "store")
    trained = plan(folder, "pocket", name="ours", seeds=[0], keep="all", set=SMALL)
    done(trained, store)
    return folder, store, trained.runs[0].iterations[1]


def test_the_same_weights_given_score_the_same(
    world: tuple[Path, Store, Mapping[str, str]], tmp_path: Path
) -> None:
    _, store, ours = world
    weights = store.folder(ours["train"]) / "model"
    (tmp_path / "t.csv").write_text(
        f"arm,step,checkpoint\ntheirs,1,{weights}\nlong,70000,{weights}\n"
    )
    given = plan(tmp_path, "pocket", name="theirs", given="t.csv", set=SMALL)
    assert not run_plan(given, store.root, tmp_path, executor="inline", workers=1)
    theirs = given.runs[0].iterations[1]
    for name in SCORED:
        assert theirs[name] != ours[name]
        pd.testing.assert_frame_equal(scores(store, theirs, name), scores(store, ours, name))
    kl = scores(store, theirs, "diagnostics").query("metric == 'kl_base'")["value"]
    assert (kl > 0).all()
    assert len(kl) == 8
    data = load_results(tmp_path / "theirs", store.root)
    told = compare(data, "long@70000", "base", "heldout.reward")
    assert told.title == "long, step 70000, seed 0 against Base, seed 0"
    report = (tmp_path / "theirs" / "report" / "report.md").read_text()
    assert "2 arms, 2 runs, 2 checkpoints after training, all made elsewhere" in report


def test_the_same_answers_given_score_the_same_and_the_rest_is_said(
    world: tuple[Path, Store, Mapping[str, str]], tmp_path: Path
) -> None:
    """In the libraries' own forms: no ids, no statuses, several models in one file."""
    _, store, ours = world
    stored = store.folder(ours["answer"])
    outputs = json.loads((stored / "alpaca_eval.json").read_text())
    kept = [{"instruction": row["instruction"], "output": row["output"]} for row in outputs[::-1]]
    both = [{**row, "generator": name} for name in ("m", "other") for row in kept]
    (tmp_path / "outputs.json").write_text(json.dumps(both))
    turns = [{**row, "model_id": "m"} for row in read_jsonl(stored / "mt_bench.jsonl")]
    for row in turns:
        del row["status"]
    write_jsonl(tmp_path / "turns.jsonl", turns)
    (tmp_path / "t.yaml").write_text(
        "- {arm: all, step: 1, model: m, alpaca_eval: outputs.json, mt_bench: turns.jsonl}\n"
        "- {arm: one, step: 1, model: m, alpaca_eval: outputs.json}\n"
    )
    asked = {
        **SMALL,
        "evaluation": SMALL["evaluation"] | {"benchmarks": ["mt_bench", "alpaca_eval"]},
    }
    given = plan(tmp_path, "pocket", name="answers", given="t.yaml", set=asked)
    assert not any(node.stage.startswith("base") for node in given.nodes.values())
    assert not run_plan(given, store.root, tmp_path, executor="inline", workers=1)
    theirs = given.runs[0].iterations[1]
    for name in ("judge.mt_bench", "judge.alpaca_eval"):
        pd.testing.assert_frame_equal(scores(store, theirs, name), scores(store, ours, name))
    data = load_results(tmp_path / "answers", store.root)
    reason = "no checkpoint is given, and no file of its answers or verdicts"
    assert data.why_absent(data.runs[1], 1, "mt_bench") == reason
    assert reason in (tmp_path / "answers" / "report" / "report.md").read_text()


def test_an_adapter_scores_what_it_does_merged(
    world: tuple[Path, Store, Mapping[str, str]], tmp_path: Path
) -> None:
    _, store, ours = world
    base = store.folder(ours["train"]) / "model"
    policy = trained(base, tmp_path / "adapter")
    policy.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in (tmp_path / "adapter").glob("*"):
        if not file.name.startswith("adapter"):
            shutil.copy(file, tmp_path / "merged")
    table = f"arm,step,checkpoint\na,1,adapter\nm,1,merged\nb,1,{base}\n"
    (tmp_path / "t.csv").write_text(table)
    asked = {**SMALL, "diagnostics.enabled": False}
    given = plan(tmp_path, "pocket", name="adapters", given="t.csv", set=asked)
    done(given, store)
    found = [run.iterations[1] for run in given.runs]
    for name in SCORED:
        adapted, merged, before = (scores(store, stages, name) for stages in found)
        pd.testing.assert_frame_equal(adapted, merged)
        assert not adapted.equals(before)


# -- as they appear --------------------------------------------------------------------------------
def sharded(weights: Path, folder: Path) -> Path:
    """The same checkpoint in several shards."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(weights, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(weights).save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_a_checkpoint_counts_when_it_is_whole_and_no_longer_written(
    world: tuple[Path, Store, Mapping[str, str]], tmp_path: Path
) -> None:
    _, store, ours = world
    whole = sharded(store.folder(ours["train"]) / "model", tmp_path / "whole")
    outputs = tmp_path / "outputs"
    run = outputs / "dpo-seed3" / "checkpoint-20"
    run.mkdir(parents=True)
    (outputs / "config.json").write_text("{}")
    watcher = Watcher(outputs, tmp_path / "memory.json")
    *rest, last = sorted(
        whole.iterdir(), key=lambda file: (file.suffix == ".safetensors", file.name)
    )
    for file in rest:
        shutil.copy(file, run)
        assert not watcher.look()
        assert not watcher.look()
    assert "absent" in watcher.waiting[str(run)]
    (run / last.name).write_bytes(last.read_bytes()[:-8])
    assert not watcher.look()
    assert not watcher.look()
    (run / last.name).write_bytes(last.read_bytes())
    assert not watcher.look()
    assert watcher.waiting[str(run)] == "it changed since the last look"
    (found,) = watcher.look()
    assert (found.arm, found.seed, found.step) == ("dpo", 3, 20)
    assert watcher.waiting == {str(outputs): "the name ends in no step"}
    shutil.rmtree(run)
    assert Watcher(outputs, tmp_path / "memory.json").look() == [found]


def test_an_adapter_counts_when_it_is_whole_and_its_base_is_there(tmp_path: Path) -> None:
    outputs, base = tmp_path / "outputs", tmp_path / "base"
    tiny.checkpoint(base)
    run = outputs / "lora" / "checkpoint-10"
    trained(base, run)
    weights = (run / "adapter_model.safetensors").read_bytes()
    (run / "adapter_model.safetensors").write_bytes(weights[:-8])
    watcher = Watcher(outputs, tmp_path / "memory.json")
    assert not watcher.look()
    assert str(run) in watcher.waiting
    (run / "adapter_model.safetensors").write_bytes(weights)
    base.rename(tmp_path / "elsewhere")
    assert not watcher.look()
    assert "no checkpoint; name it in a table" in watcher.waiting[str(run)]
    (tmp_path / "elsewhere").rename(base)
    assert not watcher.look()
    (found,) = watcher.look()
    assert (found.arm, found.step, found.base) == ("lora", 10, str(base))
    shutil.rmtree(run)
    assert Watcher(outputs, tmp_path / "memory.json").look() == [found]


def test_watching_scores_each_as_it_appears_and_keeps_what_a_trainer_deletes(
    world: tuple[Path, Store, Mapping[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store, ours = world
    weights, outputs = store.folder(ours["train"]) / "model", tmp_path / "outputs"
    first, second = outputs / "dpo" / "checkpoint-1", outputs / "ipo" / "checkpoint-2"
    shutil.copytree(weights, first)
    seen = []

    def work() -> Iterator[None]:
        """What happens outside between one look and the next."""
        yield
        data = load_results(tmp_path / "watched", store.root)
        seen.append([(run.label, list(run.iterations)) for run in data.runs])
        shutil.rmtree(first)
        shutil.copytree(weights, second)
        (second / "marks").write_text("another folder, other content")
        yield

    steps = work()
    monkeypatch.setattr(running.time, "sleep", lambda _seconds: next(steps, None))
    recipe = str(ROOT / "ablations" / "recipes" / "pocket.yaml")
    told = {"name": "watched", "recipe": recipe, "set": SMALL, "baseline": {"arm": "ipo"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(typer.Exit) as ended:
        running.run(
            tmp_path / "s.yaml",
            store.root,
            tmp_path,
            workers=1,
            executor="inline",
            watch=outputs,
            patience=1.0,
        )
    assert not ended.value.exit_code
    assert seen == [[("dpo", [0, 1])]]
    data = load_results(tmp_path / "watched", store.root)
    assert [(run.label, list(run.iterations)) for run in data.runs] == [
        ("dpo", [0, 1]),
        ("ipo", [0, 2]),
    ]
    assert not data.unfinished


def trained_by_trl(folder: Path, checkpoint: Path, pairs: Path) -> None:
    """What TRL's DPOTrainer script does: checkpoints after every step."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_steps=2,
        save_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint),
        args=settings,
        train_dataset=load_dataset("json", data_files=str(pairs), split="train"),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    ).train()


def test_checkpoints_of_trls_trainer_score_what_they_do_inside_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By AlpacaEval, whose answers are greedy: drawn ones are seeded by their step."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    files = evaluation_files.write(tmp_path)
    trained_by_trl(tmp_path / "trl", tmp_path / "checkpoint", tmp_path / "pairs.jsonl")
    asked: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in files.items()
        if ".academic." not in name
    }
    asked |= {"evaluation.benchmarks": ["alpaca_eval"], "evaluation.alpaca_eval.limit": 0}
    asked |= {"ranker": {"kind": "oracle", "model": ""}, "diagnostics.enabled": False}
    asked |= {"model.source": str(tmp_path / "checkpoint")}
    store, trained = Store(tmp_path / "store"), tmp_path / "trl" / "checkpoint-2"
    table = "arm,step,checkpoint\ndpo,1,trl/checkpoint-1\ndpo,2,trl/checkpoint-2\n"
    (tmp_path / "t.csv").write_text(table)
    given = plan(tmp_path, "own_data", name="outside", given="t.csv", set=asked)
    done(given, store)
    asked |= {"model.source": str(trained), "loop.iterations": 0}
    inside = plan(tmp_path, "own_data", name="inside", seeds=[0], set=asked)
    done(inside, store)
    base, first, last = given.runs[0].iterations.values()
    ours = scores(store, inside.runs[0].iterations[0], "judge.alpaca_eval")
    pd.testing.assert_frame_equal(scores(store, last, "judge.alpaca_eval"), ours)
    said = [
        (store.folder(stages["answer"]) / "alpaca_eval.json").read_text()
        for stages in (base, first, last)
    ]
    assert len(set(said)) == 3
