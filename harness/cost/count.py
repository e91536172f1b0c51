"""Counting rules: what each stage has to do, from its settings and those of its inputs. Every count
keeps the sentence it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.cost.work import Lengths, Shape, Work
from harness.engine.plan import Node

Lookup = Callable[[str], Node | None]
"""A stage by its key: of the plan, or as the store recorded it."""

ROWS = {"HuggingFaceH4/ultrafeedback_binarized": 61_135}
"""Training rows of known data sets; of others the data stage's record, the file, or
``data.prompts`` tells.
"""
POCKET_ROWS = 1536
MT_BENCH, MT_BENCH_POCKET = 80, 24
ALPACA_EVAL, ALPACA_EVAL_POCKET = 805, 128
PAIRRM_PARAMETERS = 0.435e9
ACADEMIC: dict[str, tuple[int, int, int, int, int]] = {
    "gsm8k": (1319, 1, 100, 150, 8),
    "hellaswag": (10_042, 4, 100, 0, 10),
    "arc_challenge": (1172, 4, 45, 0, 25),
    "truthfulqa_mc2": (817, 7, 150, 0, 0),
    "eq_bench": (171, 1, 400, 60, 0),
    "openbookqa": (500, 4, 25, 0, 10),
}
"""Task → items, requests an item, tokens of one example, tokens generated, examples shown by
default. Rounded.
"""


class Counter:
    """Counts the work of stages whose inputs ``lookup`` finds."""

    def __init__(self, lookup: Lookup, shape: Shape, lengths: Lengths, rows: int = 0) -> None:
        self.lookup, self.shape, self.lengths, self.rows_in_all = lookup, shape, lengths, rows

    def work(self, node: Node) -> Work:
        """The work of one stage, by its rule in ``RULES``."""
        return RULES[node.stage](self, node)

    def _flops(self, read: float = 0, generated: float = 0, trained: float = 0) -> float:
        return self.shape.parameters * (2 * (read + generated) + 6 * trained)

    def _input(self, node: Node, name: str) -> Node:
        return self.lookup(node.inputs.get(name, "")) or Node("", "", 0, {}, {})

    def _answer_tokens(self, limit: Any) -> int:
        return min(self.lengths.answer, int(limit or self.lengths.answer))

    def prompts(self, node: Node) -> int:
        """Prompts of one iteration, found by following a stage back to its rollout."""
        while node.stage and node.stage != "rollout":
            if node.stage == "pairs.merge":
                return sum(
                    self.prompts(self.lookup(key) or Node("", "", 0, {}, {}))
                    for key in node.inputs.values()
                )
            node = self._input(node, "pairs" if "pairs" in node.inputs else "rollout")
        settings = node.settings
        data = self._input(node, "data").settings
        whole = (
            int(settings.get("prompts") or 0)
            or self.rows_in_all
            or ROWS.get(str(data.get("path")), POCKET_ROWS)
        )
        portion = whole // max(1, int(settings.get("portions", 1)))
        limit = int(settings.get("prompts_per_iteration") or 0)
        return min(portion, limit) if limit else portion

    # -- one counting rule per stage ---------------------------------------------------------------
    def _moved(self, _node: Node) -> Work:
        """Stages that only move files: nothing to count."""
        return Work(rows=1)

    def _data_pocket(self, node: Node) -> Work:
        rows = (
            int(node.settings.get("rows", 0))
            + int(node.settings.get("heldout", 0))
            + int(node.settings.get("ood", 0))
        )
        rows += int(node.settings.get("prompts", 0)) or POCKET_ROWS
        return Work(rows, how=f"{rows:,} rows written")

    def _base_pocket(self, node: Node) -> Work:
        rows = float(node.settings["steps"] * node.settings["batch_size"])
        trained = rows * 2 * (self.lengths.prompt + self.lengths.answer)
        return Work(
            rows,
            trained=trained,
            flops=self._flops(trained=trained),
            how=f"{rows:,.0f} rows × {trained / rows:.0f} tokens",
        )

    def _ranker_train(self, node: Node) -> Work:
        pairs = int(self._input(node, "data").settings.get("ranker_pairs", 0)) * int(
            node.settings["epochs"]
        )
        tokens = pairs * 2 * (self.lengths.prompt + self.lengths.answer)
        return Work(
            pairs,
            trained=tokens,
            flops=self._flops(trained=tokens),
            how=f"{pairs:,} pairs × 2 × (prompt + answer) tokens",
        )

    def _rollout(self, node: Node) -> Work:
        prompts = self.prompts(node)
        samples = 1 if node.settings["decoding"] == "greedy" else int(node.settings["samples"])
        length, rows = self._answer_tokens(node.settings["max_new_tokens"]), prompts * samples
        read, generated = rows * self.lengths.prompt, rows * length
        how = f"{prompts:,} prompts × {samples} answer{'s' if samples > 1 else ''} × ({self.lengths.prompt} read + {length} generated) tokens"
        return Work(rows, read, generated, flops=self._flops(read, generated), how=how)

    def _rank(self, node: Node) -> Work:
        rollout = self._input(node, "rollout").settings
        texts = 2 + (int(rollout.get("samples", 1)) if rollout.get("decoding") == "sample" else 1)
        return self._ranked(
            self.prompts(node), texts, str(node.settings.get("kind")), f"{texts} answers"
        )

    def _heldout(self, node: Node) -> Work:
        answer = self._input(node, "answer")
        data = self._input(node, "data").settings
        samples = 1 + int(answer.settings.get("heldout_samples", 4))
        prompts = int(data.get("heldout", 0)) + int(data.get("ood", 0))
        return self._ranked(
            prompts, samples, str(node.settings.get("ranker", {}).get("kind")), f"{samples} answers"
        )

    def _ranked(self, prompts: int, texts: int, kind: str, what: str) -> Work:
        """Ranking: reward models read every answer once, PairRM and judges every ordered pair of
        answers.
        """
        rows, pairs = prompts * texts, prompts * texts * (texts - 1)
        both = self.lengths.prompt + 2 * self.lengths.answer
        if kind == "judge":
            return Work(
                rows,
                judge_calls=pairs,
                judge_prompt=pairs * both,
                judge_reply=pairs,
                how=f"{prompts:,} prompts × {what}, every ordered pair",
            )
        if kind == "pairrm":
            read = float(pairs * both)
            how = f"{prompts:,} prompts × {texts * (texts - 1)} ordered pairs × {both} tokens through PairRM's 0.435 B"
            return Work(rows, read, flops=2 * PAIRRM_PARAMETERS * read, how=how)
        if kind == "reward_model":
            read = float(rows * (self.lengths.prompt + self.lengths.answer))
            return Work(
                rows,
                read,
                flops=self._flops(read),
                how=f"{prompts:,} prompts × {what} through a reward model of the policy's size",
            )
        return Work(rows, how=f"{prompts:,} prompts × {what}, an exact oracle")

    def _reference(self, node: Node) -> Work:
        prompts = self.prompts(node)
        each = self.lengths.prompt + 7 / 3 * self.lengths.answer
        read = prompts * each
        return Work(
            prompts,
            read,
            flops=self._flops(read),
            how=f"{prompts:,} pairs × ({self.lengths.prompt} + 2⅓ × {self.lengths.answer}) tokens",
        )

    def _train(self, node: Node) -> Work:
        prompts, epochs = self.prompts(node), int(node.settings["training"]["epochs"])
        answers = 2.0 if node.settings["objective"]["name"] == "dpo" else 7 / 3
        each = self.lengths.prompt + answers * self.lengths.answer
        trained = prompts * epochs * each
        shown = "2" if answers == 2 else "2⅓"
        how = f"{prompts:,} pairs × {epochs} epoch{'s' if epochs > 1 else ''} × ({self.lengths.prompt} + {shown} × {self.lengths.answer}) tokens"
        return Work(prompts * epochs, trained=trained, flops=self._flops(trained=trained), how=how)

    def _items(self, node: Node, name: str, all_of_it: tuple[int, int]) -> int:
        bench = self._input(node, "benchmarks")
        whole = all_of_it[1] if bench.stage == "benchmarks.pocket" else all_of_it[0]
        return min(whole, int(bench.settings.get(name, {}).get("limit") or 0) or whole)

    def _answer(self, node: Node) -> Work:
        settings, data = node.settings, self._input(node, "data").settings
        parts, generated = [], 0.0
        rows = 0.0
        if "mt_bench" in settings["sets"]:
            count = 2 * self._items(node, "mt_bench", (MT_BENCH, MT_BENCH_POCKET))
            parts.append(
                (
                    count,
                    min(self.lengths.judged_answer, int(settings["mt_bench"]["max_new_tokens"])),
                    "MT-Bench turns",
                )
            )
        if "alpaca_eval" in settings["sets"]:
            count = self._items(node, "alpaca_eval", (ALPACA_EVAL, ALPACA_EVAL_POCKET))
            parts.append(
                (
                    count,
                    min(self.lengths.judged_answer, int(settings["alpaca_eval"]["max_new_tokens"])),
                    "AlpacaEval instructions",
                )
            )
        if "heldout" in settings["sets"]:
            count = (int(data.get("heldout", 0)) + int(data.get("ood", 0))) * (
                1 + int(settings["heldout_samples"])
            )
            parts.append(
                (count, self._answer_tokens(settings["heldout_max_new_tokens"]), "held-out answers")
            )
        for count, length, _ in parts:
            rows, generated = rows + count, generated + count * length
        read = rows * self.lengths.prompt
        how = (
            " + ".join(f"{count:,} {what} × {length}" for count, length, what in parts)
            + f" tokens, and {self.lengths.prompt} read for each"
        )
        return Work(rows, read, generated, flops=self._flops(read, generated), how=how)

    def _academic(self, node: Node) -> Work:
        settings = node.settings
        read, generated, rows = 0.0, 0.0, 0.0
        for task in settings.get("tasks", []):
            items, requests, example, length, shots = ACADEMIC.get(task, (1000, 4, 100, 0, 0))
            limit = int(settings.get("limit") or 0) or (
                60 if self.shape.name == "pocket" else items
            )
            shown = int(settings.get("shots", {}).get(task, shots)) + 1
            count = min(items, limit)
            rows, generated, read = (
                rows + count,
                generated + count * length,
                read + count * requests * example * shown,
            )
        tasks = len(settings.get("tasks", []))
        how = f"{rows:,.0f} items of {tasks} tasks, examples read for every choice: {read / max(rows, 1):,.0f} tokens an item"
        return Work(rows, read, generated, flops=self._flops(read, generated), how=how)

    def _diagnostics(self, node: Node) -> Work:
        settings = node.settings
        rows = float(settings["prompts"] * settings["samples"])
        length = self._answer_tokens(settings["max_new_tokens"])
        read, generated = rows * 8 * (self.lengths.prompt + length), rows * length
        how = f"{settings['prompts']} prompts × {settings['samples']} samples × {length} tokens drawn, and about 8 passes over them"
        return Work(rows, read, generated, flops=self._flops(read, generated), how=how)

    def _judged(self, node: Node, items: int, prompt: int, reply: int, what: str) -> Work:
        calls = items * int(node.settings["judge"].get("repeats", 1))
        return Work(
            calls,
            judge_calls=calls,
            judge_prompt=calls * prompt,
            judge_reply=calls * reply,
            how=f"{calls:,} {what} of {prompt:,} + {reply} tokens",
        )

    def _judge_mt_bench(self, node: Node) -> Work:
        items = 2 * self._items(node, "mt_bench", (MT_BENCH, MT_BENCH_POCKET))
        return self._judged(
            node, items, self.lengths.rating_prompt, self.lengths.rating_reply, "ratings"
        )

    def _judge_alpaca_eval(self, node: Node) -> Work:
        items = self._items(node, "alpaca_eval", (ALPACA_EVAL, ALPACA_EVAL_POCKET))
        return self._judged(
            node, items, self.lengths.verdict_prompt, self.lengths.verdict_reply, "verdicts"
        )

    def _judge_mt_bench_pairwise(self, node: Node) -> Work:
        """Two games a question and turn (each answer shown first once), once each; a prompt holds a
        second answer.
        """
        games = 2 * 2 * self._items(node, "mt_bench", (MT_BENCH, MT_BENCH_POCKET))
        prompt, reply = (
            self.lengths.rating_prompt + self.lengths.judged_answer,
            self.lengths.rating_reply,
        )
        how = f"{games:,} games of {prompt:,} + {reply} tokens"
        return Work(
            games,
            judge_calls=games,
            judge_prompt=games * prompt,
            judge_reply=games * reply,
            how=how,
        )


RULES: Mapping[str, Callable[[Counter, Node], Work]] = {
    "data.pocket": Counter._data_pocket,
    "data.files": Counter._moved,
    "base.pocket": Counter._base_pocket,
    "base.checkpoint": Counter._moved,
    "benchmarks.pocket": Counter._moved,
    "benchmarks.files": Counter._moved,
    "ranker.train": Counter._ranker_train,
    "rollout": Counter._rollout,
    "rank": Counter._rank,
    "pairs.merge": Counter._moved,
    "reference": Counter._reference,
    "train": Counter._train,
    "answer": Counter._answer,
    "judge.mt_bench": Counter._judge_mt_bench,
    "judge.alpaca_eval": Counter._judge_alpaca_eval,
    "judge.pairwise": Counter._judge_alpaca_eval,
    "judge.mt_bench_pairwise": Counter._judge_mt_bench_pairwise,
    "academic": Counter._academic,
    "heldout": Counter._heldout,
    "diagnostics": Counter._diagnostics,
}
"""How the work of every stage is counted."""
