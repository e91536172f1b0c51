"""Stage tasks for tests: what a test does not name stands at the recipe's default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.engine.graph import Node
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.files import hash_tree
from harness.rankers.ranker import RankContext
from harness.records import SCHEMA_VERSION, StageRecord, StageTask
from harness.stages import inputs as entrance
from harness.study.sections import Section
from harness.study.settings import Recipe
from harness.study.tasks import ObjectiveTask, OptimiserTask, RankerTask, Runtime
from harness.train.objectives import resolve

RECIPE = Recipe()


def objective(name: str = "dpo", **settings: Any) -> ObjectiveTask:
    """A resolved objective as stages are given it."""
    return ObjectiveTask(**vars(resolve(name, **{"beta": 0.1} | settings)))


def optimiser(**changes: Any) -> OptimiserTask:
    """The recipe's training section with its learning rate as a number."""
    fields = {name: getattr(RECIPE.training, name) for name in OptimiserTask.model_fields}
    return OptimiserTask(**fields | changes)


REQUIRED: Mapping[str, Any] = {
    "threads": 1,
    "dtype": "float32",
    "attention": "sdpa",
    "generation_batch": RECIPE.model.generation_batch,
    "seed": 0,
    "iteration": 1,
    "portion": 0,
    "first_sample": 0,
    "order": "seed",
    "truncation": "responses",
    "offline": True,
    "overlong_prompts": "drop",
    "decay": 0.9,
    "selector": "apl",
    "entropy_share": RECIPE.pairs.entropy_share,
    "margin_share": RECIPE.pairs.margin_share,
    "portions": 1,
    "prompts": 0,
    "prompts_per_iteration": 0,
    "max_prompt_length": RECIPE.training.max_prompt_length,
    "max_length": RECIPE.training.max_length,
    "rule": "best_worst",
    "truncated_y": RECIPE.pairs.truncated_y,
    "placebo": "none",
    "roles": ["chosen", "rejected", "explore"],
    "mixed": False,
    "base": "whole",
    "rows": RECIPE.pocket.rows,
    "best_style_share": RECIPE.pocket.best_style_share,
    "revision": "",
    "trust_remote_code": "",
    "chat_template": "",
    "template_date": RECIPE.model.template_date,
    "template_arguments": {},
    "pickle_weights": "",
    "needs_template": True,
    "reference_set": RECIPE.evaluation.mt_bench.reference_set,
    "annotator": RECIPE.evaluation.alpaca_eval.annotator,
    "sets": ["mt_bench", "alpaca_eval", "heldout"],
    "heldout_samples": RECIPE.evaluation.heldout_samples,
    "heldout_max_new_tokens": RECIPE.evaluation.heldout_max_new_tokens,
    "benchmarks": ["mt_bench", "alpaca_eval", "academic"],
    "pocket": False,
    "max_new_tokens": 24,
    "max_left_out": RECIPE.data.max_left_out,
    "temperature": 0.0,
    "limit": 0,
}


def settings_of(stage: str, given: Mapping[str, Any]) -> Section:
    """The stage's settings: those given, nested mappings filled in alike."""
    return _filled(STAGES[stage].settings, given)


def _filled(kind: type[Section], given: Mapping[str, Any]) -> Any:
    if issubclass(kind, ObjectiveTask):
        return kind(**vars(objective(**given)))
    if kind is OptimiserTask:
        return optimiser(**given)
    unknown = sorted(set(given) - set(kind.model_fields))
    assert not unknown, f"{kind.__name__} has no {unknown}"
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
        if name in given:
            value = given[name]
            if inner is None or not isinstance(value, Mapping):
                values[name] = value
            elif name in kind.flattened:
                values[name] = {key: _filled(inner, one) for key, one in value.items()}
            else:
                values[name] = _filled(inner, value)
        elif field.is_required() and type(None) in options:
            values[name] = None
        elif field.is_required() and inner is not None:
            values[name] = _filled(inner, {})
        elif field.is_required():
            values[name] = REQUIRED[name]
    return kind(**values)


def stage_task(
    key: str,
    stage: str,
    settings: Mapping[str, Any] | Section,
    inputs: Mapping[str, Path],
    out: Path,
    runtime: Mapping[str, Any] | Runtime | None = None,
) -> StageTask[Any]:
    """A task of a stage of the registry."""
    typed = settings if isinstance(settings, Section) else settings_of(stage, settings)
    running = runtime if isinstance(runtime, Runtime) else Runtime(**runtime or {})
    return StageTask(key, stage, typed, inputs, out, running)


def located(source: Path | str, out: Path, **settings: Any) -> Path:
    """What stage ``base.checkpoint`` writes for a source."""
    out.mkdir(exist_ok=True)
    entrance.checkpoint(
        stage_task("k", "base.checkpoint", {"source": str(source), **settings}, {}, out)
    )
    return out


def rank_context(kind: str, out: Path = Path("unused"), **extra: Any) -> RankContext:
    """What a ranker of this kind is given on a CPU; settings beside ``kind`` by name."""
    settings = {name: extra.pop(name) for name in list(extra) if name in RankerTask.model_fields}
    task = RankerTask(**{"kind": kind, "world": RECIPE.world} | settings)
    return RankContext(task, Runtime(), out, **extra)


def record_of(work: Path, key: str, stage: str, **given: Any) -> StageRecord:
    """The record of a stage of one row, whose files lie in ``work``."""
    fields = {"version": 1, "settings": {}, "inputs": {}, "input_hashes": {}, "rows": 1}
    fields |= {"costs": {}, "summary": {}, "environment": {}} | given
    return StageRecord(SCHEMA_VERSION, key, stage, files=hash_tree(work), **fields)


def commit_finished(
    store: Store, node: Node, seconds: float, left_out: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Put into ``store`` what stands for ``node``'s stage, finished in ``seconds``."""
    work = store.begin(node.key)
    (work / "rows.jsonl").write_text("{}\n")
    told = {"version": node.version, "settings": node.defining, "inputs": node.inputs}
    told |= {"input_hashes": dict.fromkeys(node.inputs, "0" * 64), "costs": {"seconds": seconds}}
    store.commit(work, record_of(work, node.key, node.stage, left_out=left_out, **told))
