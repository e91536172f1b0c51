"""Stage ``academic``: lm-eval's own evaluator over the six academic tasks (or any others), one
score row per item.

Inputs: policy, benchmarks (its ``academic`` folder: tasks.json and task YAMLs with paths relative
to the folder). Settings: an AcademicSettings dump with ``dtype``, ``attention``,
``generation_batch``. Out: scores.parquet, samples.jsonl (the text or log-likelihoods that earned
each score), summary.json {column: {"value", "stderr", "n", …}}.

Prompts, few-shot draws, answer parsing and metrics are lm-eval's; here is only what it leaves open:
batches by length, no cache that forgets the model, no global seeding left behind, tokens checked
against the ones the policy is trained on. An answer that lm-eval cannot parse scores 0 there by
definition and here too; a score that could not be computed is a row without a value.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.evaluate.academic_files import (
    PAPER_TASKS,
    AcademicSettings,
    AcademicTask,
    item_name,
    prepare_academic,
)
from harness.evaluate.academic_lm import ROWS, compiled_templates, language_model, quiet
from harness.evaluate.benchmark import Asked, Benchmark, Counting, Measure
from harness.model.isolated_rng import fenced_random
from harness.records import (
    HarnessError,
    Score,
    StageOutcome,
    StageTask,
    content_hash,
    write_jsonl,
    write_scores,
)
from harness.study.work import Work

FEWSHOT_SEED = 1234
"""lm-eval's default: few-shot draws equal its command line's."""


Entry = Mapping[str, Any]


def run(task: StageTask[AcademicTask]) -> StageOutcome:
    """Score one checkpoint. Raises HarnessError for a policy or a task that lm-eval would score on
    wrong tokens or prompts.
    """
    from harness.model.policy import load_policy, preflight

    settings = task.settings
    device = task.runtime.device
    policy = load_policy(
        task.inputs["policy"], dtype=settings.dtype, attention=settings.attention, device=device
    )
    if settings.chat_template:
        preflight(policy.tokenizer)
    scores, samples, summary, cut = evaluate_policy(
        policy, task.inputs["benchmarks"] / "academic", settings
    )
    write_jsonl(task.out / "samples.jsonl", samples)
    (task.out / "summary.json").write_text(
        json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    rows = write_scores(task.out / "scores.parquet", scores)
    errors = sum(score.status == "error" for score in scores)
    shown = {column: entry["value"] for column, entry in summary.items()} | (
        {"prompts_cut": cut} if cut else {}
    )
    return StageOutcome(rows=rows, errors=errors, summary=shown)


def evaluate_policy(
    policy: Any, folder: Path, settings: AcademicTask
) -> tuple[list[Score], list[dict[str, Any]], dict[str, Any], int]:
    """Score rows, samples, summary by column, and the number of prompts that lm-eval cut on the
    left to fit the model.
    """
    entries = task_entries(folder, settings.tasks)
    with (
        tempfile.TemporaryDirectory(prefix="selm-academic-") as temporary,
        quiet(),
        fenced_random(),
        compiled_templates(),
    ):
        lm = language_model(policy, settings)
        columns = load_tasks(folder, entries, settings, Path(temporary))
        found = evaluate_all(
            lm, {name: task for tasks in columns.values() for name, task in tasks.items()}, settings
        )
        scores: list[Score] = []
        samples: list[dict[str, Any]] = []
        summary: dict[str, Any] = {}
        for column, tasks in columns.items():
            rows, texts = score_rows(column, entries[column], tasks, found, settings.limit)
            scores += rows
            samples += texts
            summary[column] = summarise(entries[column], rows)
    return scores, samples, summary, lm.cut


# --- tasks ----------------------------------------------------------------------------------------


def task_entries(folder: Path, wanted: list[str]) -> dict[str, Entry]:
    """The wanted columns of ``folder/tasks.json``. Raises HarnessError naming the ones it lacks."""
    file = folder / "tasks.json"
    if not file.is_file():
        raise HarnessError(f"{file} is missing; the benchmarks stage writes it")
    entries: dict[str, Entry] = json.loads(file.read_text(encoding="utf-8"))
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise HarnessError(f"{file} has no task {', '.join(missing)}; it has {', '.join(entries)}")
    return {name: entries[name] for name in wanted}


def materialise(folder: Path, target: Path) -> None:
    """Copy the task YAMLs with absolute paths: data files of ``folder``, and ``lm_eval/…`` for the
    tasks that ship with lm-eval.
    """
    import lm_eval

    packaged = Path(lm_eval.__file__).parent.parent

    def absolute(match: re.Match[str]) -> str:
        name = match[0]
        return str((folder / name).resolve()) if (folder / name).is_file() else name

    for file in sorted(folder.glob("*.yaml")):
        text = re.sub(
            r"(?m)^(include:\s*)(lm_eval/\S+)",
            lambda m: f"{m[1]}{packaged / m[2]}",
            file.read_text(encoding="utf-8"),
        )
        text = re.sub(
            r"(?<![\w/.-])[\w-][\w.-]*\.(?:jsonl\.gz|jsonl|json|parquet|csv)(?![\w.-])",
            absolute,
            text,
        )
        (target / file.name).write_text(text, encoding="utf-8")


def load_tasks(
    folder: Path, entries: Mapping[str, Entry], settings: AcademicTask, temporary: Path
) -> dict[str, dict[str, Any]]:
    """lm-eval's task objects by column (a group such as ``mmlu`` has many), with shots and
    generation limit set.
    """
    import datasets
    from lm_eval.tasks import TaskManager

    (temporary / "tasks").mkdir()
    materialise(folder, temporary / "tasks")
    from_hub = any(
        not (folder / f"{column}.yaml").is_file() and entry.get("source") == "hub"
        for column, entry in entries.items()
    )
    manager = TaskManager(include_path=str(temporary / "tasks"), include_defaults=from_hub)
    cache = datasets.config.HF_DATASETS_CACHE
    if not any(
        entry.get("source") in ("hub", *(t.hub for t in PAPER_TASKS.values()))
        for entry in entries.values()
    ):
        datasets.config.HF_DATASETS_CACHE = (
            temporary / "datasets"
        )  # local rows only: leave nothing behind
    columns: dict[str, dict[str, Any]] = {}
    try:
        for column, entry in entries.items():
            columns[column] = dict(manager.load([entry["task"]])["tasks"])
    except (KeyError, ValueError, ConnectionError, FileNotFoundError) as error:
        hint = "give it a local file under academic.data"
        raise HarnessError(
            f"academic task {column} ({entry['task']}): lm-eval cannot load it ({error}); {hint}"
        ) from error
    finally:
        datasets.config.HF_DATASETS_CACHE = cache
    for column, tasks in columns.items():
        for task in tasks.values():
            shots = entries[column].get("shots")
            if shots is not None:
                task.set_config("num_fewshot", int(shots))
            elif task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            if settings.max_new_tokens and task.get_config("output_type") == "generate_until":
                task.set_config(
                    "generation_kwargs", {"max_gen_toks": settings.max_new_tokens}, update=True
                )
    return columns


# --- evaluation -----------------------------------------------------------------------------------


def evaluate_all(
    lm: Any, tasks: Mapping[str, Any], settings: AcademicTask
) -> dict[str, list[dict[str, Any]] | None]:
    """lm-eval's logged samples by task; None for a task that ran out of memory even one row at a
    time.
    """
    try:
        return dict(_with_smaller_batches(lm, tasks, settings))
    except MemoryError:
        lm.shrink = 1
    found: dict[str, list[dict[str, Any]] | None] = {}
    for name, task in tasks.items():
        try:
            found |= _with_smaller_batches(lm, {name: task}, settings)
        except MemoryError:
            found[name] = None
    return found


def _with_smaller_batches(
    lm: Any, tasks: Mapping[str, Any], settings: AcademicTask
) -> dict[str, list[dict[str, Any]]]:
    """One evaluation; out of memory halves the batches and starts again. Raises MemoryError when
    batches of one row do not fit.
    """
    while True:
        try:
            return _evaluate(lm, tasks, settings)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
                raise
            if lm.shrink >= max(ROWS, settings.generation_batch):
                raise MemoryError(str(error)) from error
            lm.shrink *= 2
            lm.cut = 0


def _evaluate(
    lm: Any, tasks: Mapping[str, Any], settings: AcademicTask
) -> dict[str, list[dict[str, Any]]]:
    from lm_eval.evaluator import evaluate

    for task in tasks.values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    try:
        results = evaluate(
            lm,
            {"tasks": dict(tasks), "groups": {}, "group_map": {}},
            limit=settings.limit or None,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=bool(settings.chat_template and settings.fewshot_as_multiturn),
        )
    except AssertionError as error:
        raise HarnessError(
            f"lm-eval refuses the academic tasks: {error} (a shorter academic.max_new_tokens or "
            "fewer shots may help)"
        ) from error
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    return samples


# --- rows -----------------------------------------------------------------------------------------


def score_rows(
    column: str,
    entry: Entry,
    tasks: Mapping[str, Any],
    found: Mapping[str, list[dict[str, Any]] | None],
    limit: int,
) -> tuple[list[Score], list[dict[str, Any]]]:
    """Score rows in percent and sample rows of one column, in lm-eval's order of items."""
    from importlib.metadata import version

    scores: list[Score] = []
    samples: list[dict[str, Any]] = []
    several = len(tasks) > 1
    for name, task in tasks.items():
        shown = entry.get("lm_eval_task", entry["task"]) if not several else name
        benchmark_version = f"lm_eval {version('lm_eval')} {shown} {task.VERSION}"
        logged = found[name]
        docs: list[tuple[int, Mapping[str, Any], dict[str, Any] | None]]
        if logged is None:
            docs = [
                (i, doc, None)
                for i, doc in zip(range(limit or len(task.eval_docs)), task.eval_docs, strict=False)
            ]
        else:
            wanted = entry.get("filter") or logged[0]["filter"]
            chosen = [sample for sample in logged if sample["filter"] == wanted]
            if not chosen:
                raise HarnessError(
                    f"academic task {column}: lm-eval has no filter {wanted!r}; it has "
                    f"{sorted({s['filter'] for s in logged})}"
                )
            docs = [
                (sample["doc_id"], sample["doc"], sample)
                for sample in sorted(chosen, key=lambda sample: sample["doc_id"])
            ]
        names = _item_names([(position, doc) for position, doc, _ in docs])
        for item, (_, _, sample) in zip(names, docs, strict=True):
            item = f"{name}:{item}" if several else item
            value = None if sample is None else _value(column, entry, task, sample)
            source = (
                ""
                if sample is None
                else content_hash(
                    sample["doc_hash"], sample["prompt_hash"], sample["target_hash"], length=16
                )
            )
            status: Any = "ok" if value is not None else "error"
            scores.append(
                Score(column, benchmark_version, item, item, "score", value, status, source=source)
            )
            if sample is not None:
                answer = {
                    "answer": _plain(sample["filtered_resps"]),
                    "raw": _plain(sample["resps"]),
                }
                samples.append({"benchmark": column, "item": item, "value": value} | answer)
    return scores, samples


def _item_names(docs: list[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """The items' own ids where they are all different, else positions."""
    names = [item_name(doc, position) for position, doc in docs]
    return names if len(set(names)) == len(names) else [str(position) for position, _ in docs]


def _value(column: str, entry: Entry, task: Any, sample: Mapping[str, Any]) -> float | None:
    metric = entry.get("metric") or task.config.metric_list[0]["metric"]
    if metric not in sample:
        raise HarnessError(
            f"academic task {column}: lm-eval reports no metric {metric!r} per item; it reports "
            f"{', '.join(sample['metrics'])}"
        )
    if not isinstance(sample[metric], (int, float)) and not hasattr(sample[metric], "item"):
        kind = type(sample[metric]).__name__
        raise HarnessError(
            f"academic task {column}: metric {metric!r} is no number per item ({kind}); name "
            "another in tasks.json"
        )
    value = float(sample[metric]) * float(entry.get("scale", 1.0 if metric == "eqbench" else 100.0))
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """JSON form of lm-eval's responses; log-likelihoods to 6 decimals, infinities as text."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def summarise(entry: Entry, rows: list[Score]) -> dict[str, Any]:
    """Mean and standard error (sd/√n, n − 1) in percent over the scored items; None where nothing
    was scored.
    """
    values = [row.value for row in rows if row.value is not None]
    about = {
        key: entry[key]
        for key in ("metric", "filter", "shots", "shots_from", "paper_shots", "source")
        if key in entry
    }
    return about | {
        "value": statistics.fmean(values) if values else None,
        "stderr": statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        "n": len(values),
        "expected": len(rows),
        "task": entry.get("lm_eval_task", entry["task"]),
        "version": rows[0].benchmark_version if rows else "",
    }


# -- its record ------------------------------------------------------------------------------------


NAME = "academic"
TITLES = {
    "gsm8k": "GSM8K",
    "hellaswag": "HellaSwag",
    "arc_challenge": "ARC-C",
    "truthfulqa_mc2": "TruthfulQA",
    "eq_bench": "EQ-Bench",
    "openbookqa": "OBQA",
}
SIZES: Mapping[str, tuple[int, int, int, int, int]] = {
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
OTHER_SIZE = (1000, 4, 100, 0, 0)
POCKET_ITEMS = 60


def prepare(settings: AcademicSettings, out: Path) -> dict[str, Any]:
    """Task files of the recipe's tasks."""
    return {"tasks": len(prepare_academic(settings, out))}


def measures(evaluation: Any) -> Sequence[Measure]:
    """One column per task, in the recipe's order, then their mean."""
    tasks = evaluation.academic.tasks
    columns = [
        Measure(
            task, "score", TITLES.get(task, task), "percent", 1, scale=(0.0, 100.0), table="table_2"
        )
        for task in tasks
    ]
    if len(columns) < 2:
        return columns
    mean = Measure(
        NAME,
        "score",
        "mean",
        "percent",
        1,
        scale=(0.0, 100.0),
        strata=tuple(tasks),
        table="table_2",
        long="mean of academic benchmarks",
    )
    return (*columns, mean)


def settle(asked: Asked) -> AcademicTask:
    """Settings of the scoring stage."""
    return AcademicTask(**vars(asked.settings), **asked.generating)


def _work(count: Counting, task: AcademicTask) -> Work:
    rows = read = generated = 0.0
    for name in task.tasks:
        items, requests, example, length, shots = SIZES.get(name, OTHER_SIZE)
        limit = task.limit or (POCKET_ITEMS if count.pocket else items)
        shown, asked = task.shots.get(name, shots) + 1, min(items, limit)
        rows, generated = rows + asked, generated + asked * length
        read += asked * requests * example * shown
    each = read / max(rows, 1)
    how = f"{rows:,.0f} items of {len(task.tasks)} tasks, examples read for every choice"
    return Work(rows, read, generated, how=f"{how}: {each:,.0f} tokens an item")


BENCHMARK = Benchmark(
    NAME,
    "Academic tasks",
    settings=AcademicSettings,
    stage="academic",
    run="harness.evaluate.academic:run",
    task=AcademicTask,
    settle=settle,
    measures=measures,
    work=_work,
    inputs=("policy", "benchmarks"),
    seconds=4.0,
    accelerator=True,
    other_files=("data",),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_academic",
)
