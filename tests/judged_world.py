"""A study of one checkpoint in the real store layout, for faults of judging: real stages, real
executor, four questions, twelve instructions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.cli.run import run_plan
from harness.engine.execute import Inline, Summary, execute
from harness.engine.graph import Node, Plan, RunPlan, defining_settings, stage_key
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.pocket import benchmarks as pocket_benchmarks
from harness.records import write_jsonl
from harness.study.sections import JudgeSettings, Section
from harness.study.study import load_study
from harness.study.tasks import Nothing, Runtime
from tests.tasks import record_of, settings_of, stage_task

ROOT = Path(__file__).parent.parent
FAST = {"judge_backoff_s": 0.01, "judge_timeout_s": 5.0, "judge_deadline_s": 20.0}
QUESTIONS = (81, 82, 83, 84)


def answers(folder: Path) -> None:
    """An answer for every turn and instruction, each with a name of its own ("reply 82-2") that a
    judge's script can look for.
    """
    turns = [
        {
            "question_id": n,
            "choices": [{"index": 0, "turns": [f"reply {n}-1", f"reply {n}-2"]}],
            "status": ["ok", "ok"],
        }
        for n in QUESTIONS
    ]
    write_jsonl(folder / "mt_bench.jsonl", turns)


def benchmarks(folder: Path) -> None:
    """The pocket world's files, cut to four questions and twelve instructions."""
    limits = {
        "mt_bench": {"limit": len(QUESTIONS)},
        "alpaca_eval": {"limit": 12},
        "academic": {"limit": 2},
    }
    pocket_benchmarks.run(stage_task("k", "benchmarks.pocket", {"limits": limits}, {}, folder))


class World:
    """``nodes`` grow with ``commit`` (finished inputs) and ``add`` (stages to run); ``run`` is what
    ``selm run`` does with the plan.
    """

    def __init__(self, root: Path, url: str, **runtime: Any) -> None:
        self.store, self.results = Store(root / "store"), root / "results"
        self.store.open()
        self.runtime = Runtime(**FAST | {"pocket_judge_url": url} | runtime)
        self.nodes: dict[str, Node] = {}
        self.keys: dict[str, str] = {}

    def use(self, url: str) -> None:
        """Another judge's address, for the stages that are there too."""
        self.runtime = self.runtime.model_copy(update={"pocket_judge_url": url})
        for key, node in self.nodes.items():
            self.nodes[key] = dataclasses.replace(node, runtime=self.runtime)

    def commit(
        self, name: str, stage: str, write: Callable[[Path], Any], settings: Section | None = None
    ) -> str:
        """A finished stage whose folder ``write`` fills."""
        key = self.add(name, stage, settings or Nothing(), {})
        if not self.store.has(key):
            with self.store.lock(key) as mine:
                assert mine
                work = self.store.begin(key)
                write(work)
                self.store.commit(work, record_of(work, key, stage, costs={"seconds": 0.0}))
        return key

    def add(self, name: str, stage: str, settings: Section, inputs: Mapping[str, str]) -> str:
        version, defining = STAGES[stage].version, defining_settings(settings, {})
        key = stage_key(stage, version, defining, inputs)
        self.nodes[key] = Node(key, stage, version, settings, inputs, defining, self.runtime)
        self.keys[name] = key
        return key

    def judged(
        self, stage: str = "judge.mt_bench", reference_set: str = "test", **judge: Any
    ) -> str:
        """The inputs (made by hand where they are missing) and one judging stage; returns its
        key.
        """
        for name, made_by, write in (
            ("benchmarks", "benchmarks.files", benchmarks),
            ("answer", "data.files", answers),
        ):
            if name not in self.keys:
                self.commit(name, made_by, write)
        own = {
            "judge.mt_bench": {"reference_set": reference_set},
            "judge.alpaca_eval": {"annotator": "weighted_alpaca_eval_gpt4_turbo"},
        }
        inputs = {"answer": self.keys["answer"], "benchmarks": self.keys["benchmarks"]}
        settings = settings_of(stage, {"judge": JudgeSettings(**judge), **own[stage]})
        return self.add(stage, stage, settings, inputs)

    @property
    def plan(self) -> Plan:
        study = load_study(ROOT / "tests" / "e2e.yaml")
        cell = dataclasses.replace(
            study.cells[0], run="model", arm={}, label="model", baseline_run=""
        )
        named = dataclasses.replace(
            study, name="faults", axes={}, baseline={}, seeds=(0,), cells=(cell,)
        )
        run = RunPlan(cell, {0: dict(self.keys)}, {0: {"alpha": 0.0, "c": 0.0, "kappa": 0.0}})
        return Plan(named, dict(self.nodes), (run,))

    def walk(self) -> Summary:
        self.store.open()
        return execute(self.plan, self.store, Inline(self.store))

    def run(self) -> int:
        """Exit status of the whole command, report included."""
        return run_plan(self.plan, self.store.root, self.results, executor="inline", workers=1)

    def report(self) -> str:
        return (self.results / "faults" / "report" / "report.md").read_text()

    def rows(self, key: str) -> dict[str, dict[str, Any]]:
        """Score rows of a finished or partial stage by item (headline metric, first repeat)."""
        import pyarrow.parquet as pq

        folder = self.store.folder(key) if self.store.has(key) else self.store.partial_folder(key)
        found = pq.read_table(folder / "scores.parquet").to_pylist()
        return {
            row["item"]: row
            for row in found
            if row["metric"] in ("rating", "win_rate") and row["repeat"] == 0
        }

    def judgments(self, key: str) -> list[dict[str, Any]]:
        folder = self.store.folder(key) if self.store.has(key) else self.store.partial_folder(key)
        return [json.loads(line) for line in (folder / "judgments.jsonl").read_text().splitlines()]


def refusing(*names: str, text: str = "Fine. Rating: [[7]]") -> Callable[[Mapping[str, Any]], str]:
    """A judge that answers ``text``, except that a prompt which holds one of ``names`` is a bad
    request (an error of that item alone).
    """

    def script(body: Mapping[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        if any(name in prompt for name in names):
            raise ValueError("no such item")
        return text

    return script
