"""A small study that never ran: a manifest and a store in the real layout, with known effects, for
tests of the analysis.

Three values of α × three seeds × two iterations after a shared base. Every score is drawn from a
numpy generator whose seed is the content of what it stands for, so the order of writing changes
nothing. Faults (a partial, a failed and a missing stage) and hostile model outputs are there on
request.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluate.registry import manifest_of as benchmarks_manifest
from harness.files import hash_tree
from harness.pocket.wordings import CATEGORIES
from harness.records import Response, Score, content_hash, write_jsonl, write_scores
from harness.stages.diagnostics.measures import manifest_of as diagnostics_manifest
from harness.study.settings import Recipe

TASKS = ("gsm8k", "hellaswag", "arc_challenge", "truthfulqa_mc2", "eq_bench", "openbookqa")
HOSTILE = (
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)" x=\'',
    r"\input{/etc/passwd} \write18{ls} $x^2$ % & # _ {}",
    "\x1b[31mred\x1b[0m\x07",
    "a\u202eevil\u202c b\u200f",
    "lone \ud800 surrogate",
    "</script><!-- ]]> <img src=https://example.org/x onerror=alert(1)>",
    '=HYPERLINK("https://example.org")',
)


@dataclass(frozen=True)
class Synthetic:
    """Sizes and effects. effect: what α = 1 adds to a probability-scale score at the last
    iteration.
    """

    alphas: Sequence[float] = (0.0, 0.3, 1.0)
    seeds: Sequence[int] = (0, 1, 2)
    iterations: int = 2
    questions: int = 16
    instructions: int = 24
    task_items: int = 10
    heldout: int = 12
    ood: int = 6
    effect: float = 0.3
    faults: bool = True
    hostile: bool = False
    long_answer: int = 0
    answers: bool = True
    name: str = "synthetic"
    declare: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Other axes than α, every combination an arm: their order stands for α, from 0 to 1.
    ``loop.iterations`` sets an arm's length.
    """
    repeats: int = 1
    """Judgments of every item; further ones differ a little."""
    both_orders: bool = False
    """The base and the last iteration of the first run judged against each other, AlpacaEval and
    MT-Bench.
    """
    ranked: bool = False
    """The ranker scored AlpacaEval's answers."""
    weights: bool = False
    """Checkpoints have files, listed in their records."""

    def arms(self) -> list[tuple[dict[str, Any], float, int]]:
        """(arm, what stands for its α, its iterations)."""
        if not self.axes:
            return [({"objective.alpha": alpha}, alpha, self.iterations) for alpha in self.alphas]
        grid = [
            dict(zip(self.axes, point, strict=True))
            for point in itertools.product(*self.axes.values())
        ]
        return [
            (arm, i / max(len(grid) - 1, 1), int(arm.get("loop.iterations", self.iterations)))
            for i, arm in enumerate(grid)
        ]


def build(root: Path, spec: Synthetic | None = None) -> tuple[Path, Path]:
    """Write the study below ``root``; returns (study folder, store folder)."""
    spec = spec or Synthetic()
    writer = _Writer(root / "store", spec)
    arms = spec.arms()
    runs = [
        writer.run(arm, strength, seed, iterations)
        for arm, strength, iterations in arms
        for seed in spec.seeds
    ]
    declare = {
        "primary": {
            "benchmark": "alpaca_eval",
            "metric": "length_controlled_win_rate",
            "iteration": "last",
        },
        "family": [],
        "trend": {
            "benchmark": "diagnostics",
            "metric": "rhat_reference_samples",
            "iteration": 1,
            "axis": "objective.alpha",
            "expected": "falling",
        },
        "pairwise": [],
        "completeness_bar": 0.99,
        **spec.declare,
    }
    manifest = {
        "schema": 1,
        "study": {
            "name": spec.name,
            "question": "Does the exploration coefficient help?",
            "file": f"ablations/{spec.name}.yaml",
        },
        "recipe": Recipe().model_dump(mode="json"),
        "axes": {
            name: list(levels)
            for name, levels in (spec.axes or {"objective.alpha": spec.alphas}).items()
        },
        "seeds": list(spec.seeds),
        "declare": declare,
        "baseline": arms[0][0],
        "checkpoints_kept": "last",
        "runs": runs,
        "pairwise": [],
        **(writer.both_orders(runs[0]) if spec.both_orders else {}),
        "stages": dict(sorted(writer.stages.items())),
        "benchmarks": benchmarks_manifest(Recipe().evaluation),
        "diagnostics": diagnostics_manifest(),
    }
    study = root / spec.name
    study.mkdir(parents=True, exist_ok=True)
    (study / "manifest.json").write_text(
        json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8"
    )
    return study, root / "store"


def dump(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def scored(benchmark: str, item: str, metric: str, value: float, **more: Any) -> Score:
    """A score of an item that is a cluster of its own."""
    return Score(benchmark, "1", item, item, metric, value, **more)


def short(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}"
    return re.sub(r"[\s,]+", "", str(value))


def run_name(arm: Mapping[str, Any], seed: int) -> str:
    return ",".join([*(f"{name}={short(value)}" for name, value in arm.items()), f"seed={seed}"])


def label(arm: Mapping[str, Any]) -> str:
    if set(arm) == {"arm"}:
        return str(arm["arm"])
    return ", ".join(
        f"{name.rsplit('.', 1)[-1].replace('alpha', 'α')} = {short(value)}"
        for name, value in arm.items()
    )


class _Writer:
    def __init__(self, store: Path, spec: Synthetic) -> None:
        self.store, self.spec = store, spec
        self.stages: dict[str, dict[str, Any]] = {}
        self.data = self.stage("data.pocket", {}, self.write_data)
        self.base = self.stage(
            "base.pocket",
            {"data": self.data},
            lambda folder: {**self.write_model(folder, "base"), "tokens_trained": 1000.0},
        )
        self.benchmarks = self.stage(
            "benchmarks.pocket", {"data": self.data, "base": self.base}, self.write_benchmarks
        )

    # -- stages ------------------------------------------------------------------------------------
    def folder(self, key: str) -> Path:
        return self.store / "objects" / key[:2] / key

    def stage(
        self,
        name: str,
        inputs: Mapping[str, str],
        write: Any,
        state: str = "done",
        tag: Sequence[Any] = (),
    ) -> str:
        key = content_hash(name, dict(inputs), list(tag))
        if key in self.stages:
            return key
        self.stages[key] = {
            "stage": name,
            "version": 1,
            "inputs": dict(inputs),
            "seconds_estimated": 1.0,
        }
        if not all((self.folder(k) / "record.json").exists() for k in inputs.values()):
            return key  # waits for an input
        if state == "failed":
            told = {"stage": name, "traceback": "", "attempts": 1}
            told["reason"] = "judge endpoint answered 401: the key was refused"
            dump(self.store / "failed" / f"{key}.json", told)
        elif state in ("done", "partial"):
            folder = self.store / "partial" / key
            if state == "done":
                folder = self.folder(key)
            folder.mkdir(parents=True, exist_ok=True)
            costs = dict(write(folder) or {})
            files = {name: h for name, h in hash_tree(folder).items() if name.startswith("model/")}
            record = {
                "schema": 1,
                "key": key,
                "stage": name,
                "version": 1,
                "settings": {"stage": name, "training": {"epochs": 2}},
                "inputs": dict(inputs),
                "input_hashes": {},
                "files": files,
                "rows": 1,
                "costs": {**costs, "seconds": 1.5},
                "summary": {},
                "environment": {"host": "h", "finished": 1.0, "versions": {"torch": "2.11"}},
            }
            if state == "done":
                dump(folder / "record.json", record)
        return key

    def run(self, arm: Mapping[str, Any], alpha: float, seed: int, length: int) -> dict[str, Any]:
        spec = self.spec
        iterations = [
            {
                "iteration": 0,
                "stages": {
                    "data": self.data,
                    "benchmarks": self.benchmarks,
                    "base": self.base,
                    **self.score(self.base, alpha=0.0, seed=seed, iteration=0),
                },
            }
        ]
        policy = self.base
        for iteration in range(1, length + 1):
            rollout = self.stage(
                "rollout",
                {"policy": policy, "data": self.data},
                lambda folder: {"tokens_generated": 500.0},
                tag=(seed, iteration),
            )
            rank = self.stage("rank", {"data": self.data, "rollout": rollout}, self.write_pairs)
            reference = self.stage(
                "reference", {"policy": policy, "pairs": rank}, lambda folder: {}
            )
            inputs = {
                "policy": policy,
                "reference_policy": policy,
                "pairs": rank,
                "reference": reference,
            }
            written = f"{short(alpha)} {seed} {iteration}"
            trained = self.stage(
                "train",
                inputs,
                lambda folder, w=written: self.write_trained(folder, w),
                tag=(alpha, seed),
            )
            made = {"rollout": rollout, "rank": rank, "reference": reference, "train": trained}
            iterations.append(
                {
                    "iteration": iteration,
                    "stages": {
                        **made,
                        **self.score(trained, alpha=alpha, seed=seed, iteration=iteration),
                    },
                }
            )
            policy = trained
        beta, explores = 0.1, float(arm.get("objective.alpha", 0.0))
        return {
            "run": run_name(arm, seed),
            "arm": dict(arm),
            "label": label(arm),
            "seed": seed,
            "mode": arm.get("loop.mode", "iterative"),
            "baseline_run": run_name(spec.arms()[0][0], seed),
            "c": [0.0] + [explores * beta] * length,
            "kappa": [0.0] + [2 * explores] * length,
            "iterations": iterations,
        }

    def write_trained(self, folder: Path, written: str) -> dict[str, float]:
        rows = [{"step": step, "loss": 0.7 / step, "grad_norm": None} for step in (1, 2, 3)]
        write_jsonl(folder / "steps.jsonl", rows)
        return {**self.write_model(folder, written), "tokens_trained": 4000.0}

    def both_orders(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Judgments of the base (a) and the last checkpoint (b) in both orders; instructions 0, 4,
        8, … flip, and the second place is liked.
        """
        a, b = (f"{run['run']}@{iteration}" for iteration in (0, self.spec.iterations))

        def verdicts(folder: Path, for_b: bool) -> dict[str, float]:
            rows = []
            for i in range(self.spec.instructions):
                b_wins, switched = i % 3 > 0, i % 2 == 0
                preference = (
                    1.5 + (0.3 if b_wins == for_b else -0.3)
                    if i % 4
                    else 1.5 + (0.3 if not switched else -0.3)
                )
                rows.append(
                    {
                        "id": str(i),
                        "repeat": 0,
                        "preference": preference,
                        "switched": switched,
                        "status": "ok",
                    }
                )
            write_jsonl(folder / "judgments.jsonl", rows)
            return {}

        keys = [
            self.stage("judge.pairwise", {}, lambda f, w=for_b: verdicts(f, w), tag=(for_b,))
            for for_b in (True, False)
        ]
        pairs = [{"a": a, "b": b, "key": keys[0]}, {"a": b, "b": a, "key": keys[1]}]
        return {"pairwise": pairs}

    def score(self, policy: str, *, alpha: float, seed: int, iteration: int) -> dict[str, str]:
        spec, at = self.spec, (alpha, seed, iteration)
        last = spec.faults and iteration == spec.iterations and alpha == spec.alphas[-1]
        answer = self.stage(
            "answer",
            {"policy": policy, "benchmarks": self.benchmarks, "data": self.data},
            lambda f: self.write_answers(f, at),
            tag=(seed,),
        )
        judged = {"answer": answer, "benchmarks": self.benchmarks}
        broken = last and seed == spec.seeds[-1]
        keys = {
            "answer": answer,
            "judge.mt_bench": self.stage(
                "judge.mt_bench",
                judged,
                lambda f: self.write_mt_bench(f, at, broken),
                state="partial" if broken else "done",
                tag=at,
            ),
            "judge.alpaca_eval": self.stage(
                "judge.alpaca_eval",
                judged,
                lambda f: self.write_alpaca(f, at),
                state="failed" if last and seed == spec.seeds[0] else "done",
                tag=at,
            ),
            "academic": self.stage(
                "academic",
                {"policy": policy, "benchmarks": self.benchmarks},
                lambda f: self.write_academic(f, at),
                state="missing"
                if last and len(spec.seeds) > 1 and seed == spec.seeds[1]
                else "done",
                tag=at,
            ),
            "heldout": self.stage(
                "heldout",
                {"answer": answer, "data": self.data},
                lambda f: self.write_heldout(f, at),
                tag=at,
            ),
        }
        if iteration:
            keys["diagnostics"] = self.stage(
                "diagnostics",
                {"policy": policy, "base": self.base, "answer": answer},
                lambda f: self.write_diagnostics(f, at),
                tag=at,
            )
        return keys

    # -- draws -------------------------------------------------------------------------------------
    def skill(self, at: tuple[float, int, int]) -> float:
        """Between 0 and 1: rises over iterations, by α's effect at the last, with a seed's own
        luck.
        """
        alpha, _, iteration = at
        luck = float(self.draw("seed", *at).normal(0, 0.01)) if iteration else 0.0
        gain = 0.1 * iteration + self.spec.effect * alpha * iteration / max(1, self.spec.iterations)
        return min(max(0.3 + gain + luck, 0.0), 1.0)

    def draw(self, *parts: Any) -> np.random.Generator:
        return np.random.default_rng(int(content_hash(*parts, length=15), 16))

    def level(
        self, at: tuple[float, int, int], benchmark: str, item: str, spread: float = 0.2
    ) -> float:
        """Skill plus the item's difficulty (shared by all) plus noise of this answer."""
        item_effect = float(self.draw(benchmark, item).normal(0, spread))
        noise = float(self.draw(benchmark, item, *at).normal(0, 0.05))
        return min(max(self.skill(at) + item_effect + noise, 0.0), 1.0)

    def text(self, at: tuple[float, int, int], item: str) -> str:
        number = int(content_hash(item, length=4), 16)
        answer = f"answer to {item} by α = {at[0]:g}, seed {at[1]}, iteration {at[2]}"
        if self.spec.hostile:
            answer += " " + HOSTILE[number % len(HOSTILE)]
        return answer + "x" * (self.spec.long_answer if number % 7 == 0 else 0)

    # -- files -------------------------------------------------------------------------------------
    def write_model(self, folder: Path, content: str) -> dict[str, float]:
        if self.spec.weights:
            (folder / "model").mkdir(parents=True, exist_ok=True)
            (folder / "model" / "model.safetensors").write_bytes(content.encode())
        return {}

    def write_data(self, folder: Path) -> dict[str, float]:
        for name, count in (("train", 4), ("heldout", self.spec.heldout), ("ood", self.spec.ood)):
            rows = [
                {
                    "id": f"{name}-{i}",
                    "messages": [{"role": "user", "content": f"{name} prompt {i}"}],
                    "chosen": "good",
                    "rejected": "bad",
                    "category": "list",
                }
                for i in range(count)
            ]
            write_jsonl(folder / f"{name}.jsonl", rows)
        return {}

    def write_benchmarks(self, folder: Path) -> dict[str, float]:
        (folder / "mt_bench").mkdir(parents=True, exist_ok=True)
        questions = [
            {
                "question_id": 81 + i,
                "category": CATEGORIES[i % 8],
                "turns": [f"question {i}?", f"and then {i}?"],
            }
            for i in range(self.spec.questions)
        ]
        write_jsonl(folder / "mt_bench" / "question.jsonl", questions)
        rows = [
            {
                "id": str(i),
                "instruction": f"instruction {i}",
                "output": f"baseline {i}",
                "generator": "b",
                "dataset": "d",
            }
            for i in range(self.spec.instructions)
        ]
        dump(folder / "alpaca_eval" / "eval.json", rows)
        return {}

    def write_pairs(self, folder: Path) -> dict[str, float]:
        row = {"prompt_id": "train-0", "chosen": "good", "rejected": "bad"}
        write_jsonl(folder / "pairs.jsonl", [{**row, "explore": "y", "y_role": "loser"}])
        return {}

    def write_answers(self, folder: Path, at: tuple[float, int, int]) -> dict[str, float]:
        if self.spec.answers:
            rows = []
            for number in range(81, 81 + self.spec.questions):
                turns = [self.text(at, f"{number}:{turn}") for turn in (1, 2)]
                choices = [{"index": 0, "turns": turns}]
                rows.append({"question_id": number, "choices": choices, "status": ["ok", "ok"]})
            write_jsonl(folder / "mt_bench.jsonl", rows)
            alpaca = [
                {
                    "id": str(i),
                    "instruction": f"instruction {i}",
                    "output": self.text(at, f"a{i}"),
                    "generator": "m",
                    "dataset": "d",
                    "status": "ok",
                }
                for i in range(self.spec.instructions)
            ]
            dump(folder / "alpaca_eval.json", alpaca)
            names = [f"heldout-{i}" for i in range(self.spec.heldout)]
            names += [f"ood-{i}" for i in range(self.spec.ood)]
            drawn = itertools.product(names, range(3))
            samples = [Response(n, s, self.text(at, n), (1, 2), "ok", s) for n, s in drawn]
            write_jsonl(folder / "heldout.jsonl", samples)
        return {"tokens_generated": 300.0}

    def write_mt_bench(
        self, folder: Path, at: tuple[float, int, int], broken: bool
    ) -> dict[str, float]:
        scores, judged = [], []
        for i in range(self.spec.questions):
            for turn in (1, 2):
                item = f"{81 + i}:{turn}"
                failed = broken and i == 0
                status: Any = "error" if failed else "ok"
                value = None if failed else float(round(1 + 9 * self.level(at, "mt_bench", item)))
                for r in range(self.spec.repeats):
                    again = value if value is None or (i + r) % 4 else value + r
                    rated = ("mt_bench", "1", item, str(81 + i), "rating", again, status)
                    scores.append(Score(*rated, "pocket-judge", r))
                said = self.text(at, item) if self.spec.hostile else "A fair answer."
                row = {"id": item, "question_id": 81 + i, "turn": turn, "repeat": 0, "key": "k"}
                row |= {"text": f"{said} Rating: [[{value}]]", "rating": value, "reason": ""}
                judged.append({**row, "flags": [], "status": status, "score_status": status})
        write_scores(folder / "scores.parquet", scores)
        write_jsonl(folder / "judgments.jsonl", judged)
        values = {
            turn: [s.value for s in scores if s.value is not None and s.item.endswith(f":{turn}")]
            for turn in (1, 2)
        }
        everything = [value for part in values.values() for value in part]
        summary = {f"turn_{turn}": float(np.mean(part)) for turn, part in values.items()}
        summary |= {"mean": float(np.mean(everything)), "scored": len(everything)}
        dump(folder / "summary.json", {**summary, "expected": len(scores)})
        tokens = {"judge_prompt_tokens": 900.0, "judge_completion_tokens": 90.0}
        return {"judge_calls": float(len(scores)), **tokens}

    def write_alpaca(self, folder: Path, at: tuple[float, int, int]) -> dict[str, float]:
        scores, win = [], []
        for i in range(self.spec.instructions):
            level = 100 * self.level(at, "alpaca_eval", str(i))
            win.append(level)
            for metric, value in (
                ("win_rate", level),
                ("length_controlled_win_rate", level - 1.0),
                ("length", 50.0 + i + 5 * at[2]),
            ):
                row = ("alpaca_eval", "2", str(i), str(i), metric, value)
                scores.append(Score(*row, "ok", "pocket-judge"))
        write_scores(folder / "scores.parquet", scores)
        verdict = {"repeat": 0, "key": "k", "status": "ok", "text": "m", "switched": False}
        verdicts = [{"id": str(i), **verdict, "preference": 1 + w / 100} for i, w in enumerate(win)]
        write_jsonl(folder / "judgments.jsonl", verdicts)
        mean, count = float(np.mean(win)), len(win)
        summary = {"win_rate": mean, "standard_error": 1.0, "n_total": count, "expected": count}
        summary |= {"length_controlled_win_rate": mean - 1.2, "lc_standard_error": 0.5}
        dump(folder / "summary.json", {**summary, "avg_length": 60, "flags": []})
        return {"judge_calls": float(count)}

    def write_academic(self, folder: Path, at: tuple[float, int, int]) -> dict[str, float]:
        scores, summary = [], {}
        for task in TASKS:
            values = []
            for i in range(self.spec.task_items):
                level = self.level(at, task, str(i))
                value = (
                    100 * level if task in ("truthfulqa_mc2", "eq_bench") else 100.0 * (level > 0.5)
                )
                values.append(value)
                scores.append(scored(task, f"{task}-{i}", "score", value))
            summary[task] = {"value": float(np.mean(values)), "stderr": 1.0, "n": len(values)}
        write_scores(folder / "scores.parquet", scores)
        dump(folder / "summary.json", summary)
        return {"tokens_generated": 200.0}

    def write_heldout(self, folder: Path, at: tuple[float, int, int]) -> dict[str, float]:
        scores = []
        for benchmark, name, count in (
            ("heldout", "heldout", self.spec.heldout),
            ("heldout_ood", "ood", self.spec.ood),
        ):
            for i in range(count):
                for metric in ("reward", "reward_sampled"):
                    item = f"{name}-{i}"
                    level = self.level(at, benchmark + metric, item)
                    scores.append(scored(benchmark, item, metric, level))
        for i in range(self.spec.instructions if self.spec.ranked else 0):
            row = ("ranker_alpaca_eval", str(i), "reward_difference", float(i % 4) - 1.0)
            scores.append(scored(*row, judge="oracle"))
        write_scores(folder / "scores.parquet", scores)
        return {}

    def write_diagnostics(self, folder: Path, at: tuple[float, int, int]) -> dict[str, float]:
        alpha, _, iteration = at
        centre = {
            "rhat_reference_samples": -0.2 - 0.5 * alpha,
            "kl_base": 0.3 * iteration + 0.4 * alpha,
            "kl_previous": 0.3 + 0.2 * alpha,
            "kl_base_per_token": 0.05 * iteration,
            "entropy": 5 - iteration - alpha,
            "spearman_reward": 0.4 - 0.1 * alpha,
            "grad_ratio": alpha,
            "displacement_chosen_train": 0.1 - alpha,
            "displacement_chosen_heldout": -0.1 - alpha,
            "displaced_share_heldout": 0.4,
            "distinct_2": 0.6,
            "self_rouge": 0.5,
            "newness": 0.3 + 0.1 * alpha,
            "length_tokens": 12.0,
            "truncated_share": 0.02,
            "mode_coverage": 0.3 + 0.1 * alpha,
            "unseen_mass": 0.2,
            "regret": 0.5 - 0.1 * iteration,
            "rhat_heldout_chosen": 0.1 - alpha,
            "rhat_heldout_rejected": -0.2 - alpha,
            "implicit_reward_samples": 0.1 * iteration,
            "brier_pairs_heldout": 0.2,
            "rhat_y_winner": 0.1,
            "rhat_y_loser": -0.3,
            "grad_cosine": 0.1,
        }
        scores = []
        for metric, mean in centre.items():
            trained_on = metric.endswith("_train") or metric.startswith("rhat_y")
            for i in range(self.spec.heldout):
                item = f"train-{at[1]}-{i}" if trained_on else f"heldout-{i}"
                value = mean + float(self.draw(metric, item, *at).normal(0, 0.1))
                scores.append(scored("diagnostics", item, metric, value))
        write_scores(folder / "scores.parquet", scores)
        return {}
