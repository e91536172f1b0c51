"""Stage ``academic``: lm-eval's own evaluator over the six academic tasks (or any others), one
score row per item.

Inputs: policy, benchmarks (its ``academic`` folder: tasks.json and task YAMLs with paths relative
to the folder). Out: scores.parquet, samples.jsonl (the text or log-likelihoods that earned each
score), summary.json {column: {"value", "stderr", "n", …}}. Tasks are evaluated one after another,
and each is kept in a journal of its own as soon as it is done: an attempt that is killed repeats
the one it was at.

Prompts, few-shot draws, answer parsing and metrics are lm-eval's; here is only what it leaves open:
batches by length, no cache that forgets the model, no global seeding left behind, tokens checked
against the ones the policy is trained on. An answer that lm-eval cannot parse scores 0 there by
definition and here too; a score that could not be computed is a row without a value.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import logging
import math
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from harness.evaluate.academic import PAPER_TASKS, AcademicTask, item_name, scale_of
from harness.evaluate.benchmark import unscored
from harness.files import write_atomic
from harness.model import chat
from harness.model.generate import engine_of
from harness.model.isolated_rng import isolated_rng
from harness.model.policy import load_policy
from harness.model.vllm_engine import Engine
from harness.records import (
    GenerationRequest,
    HarnessError,
    LeftOut,
    Score,
    StageOutcome,
    StageTask,
    Status,
    canonical_json,
    content_hash,
    request_seed,
    write_jsonl,
    write_scores,
)

FEWSHOT_SEED = 1234
"""lm-eval's default: few-shot draws equal its command line's."""
Entry = Mapping[str, Any]
"""A column's entry in tasks.json."""
Sample = Mapping[str, Any]
"""What lm-eval logs of an item under one filter."""


@dataclass(frozen=True)
class Done:
    """One task's score rows and sample rows, and how many of how many requests were cut."""

    scores: list[Score]
    samples: list[dict[str, Any]]
    cut: int
    asked: int


def run(task: StageTask[AcademicTask]) -> StageOutcome:
    """Score one checkpoint. Raises HarnessError where lm-eval would read the wrong tokens."""
    settings = task.settings
    policy = load_policy(task.inputs["policy"], **settings.sampling(task.runtime.device))
    if settings.chat_template:
        chat.preflight(policy.tokenizer)
    with engine_of(policy, settings, task.runtime) as engine:
        scores, samples, summary, (cut, asked) = evaluate_policy(
            policy, task.inputs["benchmarks"] / "academic", settings, task.out, engine
        )
    write_jsonl(task.out / "samples.jsonl", samples)
    text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
    (task.out / "summary.json").write_text(text, encoding="utf-8")
    rows = write_scores(task.out / "scores.parquet", scores)
    errors = sum(score.status == "error" for score in scores)
    for journal in task.out.glob("*.journal.jsonl") if not errors else ():
        journal.unlink()
    shown = {column: entry["value"] for column, entry in summary.items()}
    left_out = unscored(task.stage, scores)
    if cut:
        reason = "cut on the left to fit the model"
        left_out += (LeftOut(task.stage, "requests of lm-eval", reason, cut, asked),)
    return StageOutcome(rows=rows, errors=errors, summary=shown, left_out=left_out)


def evaluate_policy(
    policy: Any,
    folder: Path,
    settings: AcademicTask,
    journals: Path | None = None,
    engine: Engine | None = None,
) -> tuple[list[Score], list[dict[str, Any]], dict[str, Any], tuple[int, int]]:
    """Score rows, samples, summary by column, and how many of how many requests lm-eval cut on the
    left to fit the model. journals: folder in which finished tasks are kept and found. engine:
    reads and answers in the policy's place.
    """
    from lm_eval.utils import env as templates  # which it compiles again for every document

    compiled = functools.lru_cache(256)(templates.from_string)
    entries = task_entries(folder, settings.tasks)
    done: dict[str, list[Done]] = {column: [] for column in entries}
    with (
        tempfile.TemporaryDirectory(prefix="selm-academic-") as temporary,
        quiet(),
        isolated_rng(),
        mock.patch.object(templates, "from_string", compiled),
        np.errstate(invalid="ignore"),  # probabilities that underflow: see truthful_share
    ):
        lm = language_model(policy, settings, engine)
        columns, groups = load_tasks(folder, entries, settings, Path(temporary))
        for column, tasks in columns.items():
            entry = reported(entries[column], groups[column], tasks)
            entries[column] = {**entry, "metric": metric_of(column, entry, tasks)}
            for task in tasks.values():
                if getattr(task, "UNSAFE_CODE", False):
                    raise HarnessError(
                        f"academic task {column}: lm-eval marks it as unsafe, since it runs what "
                        "the model writes, which is not done here: take it out of "
                        "evaluation.academic.tasks"
                    )
                keep_shots_apart(column, task)
        for column, tasks in columns.items():
            for name, task in tasks.items():
                prefix = f"{name}:" if len(tasks) > 1 else ""
                asked = (lm, column, entries[column], name, task, settings, prefix)
                score = functools.partial(score_task, *asked)
                done[column].append(_kept(journals, f"{column}:{name}", score))
    scores, samples, summary, cut, asked_for = [], [], {}, 0, 0
    for column, each in done.items():
        by_task = [one.scores for one in each]
        mean_of_tasks = entries[column].get("mean_of") == "tasks"
        rows = of_tasks(by_task) if mean_of_tasks else list(itertools.chain(*by_task))
        summary[column] = summarise(entries[column], rows)
        scores += rows
        samples += [text for one in each for text in one.samples]
        cut, asked_for = cut + sum(one.cut for one in each), asked_for + sum(o.asked for o in each)
    return scores, samples, summary, (cut, asked_for)


def _kept(journals: Path | None, name: str, evaluate: Callable[[], Done]) -> Done:
    """A task as its journal holds it, else evaluated now. One with a row in error is not kept."""
    if journals is None:
        return evaluate()
    file = journals / f"{content_hash(name, length=16)}.journal.jsonl"
    if file.is_file():
        told = json.loads(file.read_text(encoding="utf-8"))
        return Done(**told | {"scores": [Score(**row) for row in told["scores"]]})
    done = evaluate()
    if all(row.status != "error" for row in done.scores):
        write_atomic(file, canonical_json(asdict(done)) + "\n")
    return done


# -- tasks -----------------------------------------------------------------------------------------
def task_entries(folder: Path, wanted: list[str]) -> dict[str, Entry]:
    """The wanted columns of ``folder/tasks.json``. Raises HarnessError naming the ones it lacks."""
    file = folder / "tasks.json"
    entries: dict[str, Entry] = json.loads(file.read_text(encoding="utf-8"))
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise HarnessError(f"{file} has no task {', '.join(missing)}; it has {', '.join(entries)}")
    return {name: entries[name] for name in wanted}


def reported(entry: Entry, group: Any, tasks: Mapping[str, Any]) -> Entry:
    """A column's entry with what its lm-eval group reports (metric, filter, and ``mean_of`` where
    that is the mean of its tasks' means, however many items they have), where nothing else is
    named; and the filter where its tasks have the same first one.
    """
    first = {task._filters[0].name for task in tasks.values() if getattr(task, "_filters", None)}
    told = {"filter": first.pop()} if len(first) == 1 else {}
    for config in reversed(group.aggregate_metric_list or () if group else ()):
        if entry.get("metric") in (None, config.metric):
            names = config.filter_list or [told.get("filter")]
            told = {"metric": config.metric, "filter": names[0]}
            told["mean_of"] = "items" if config.weight_by_size else "tasks"
    return {key: value for key, value in told.items() if value} | dict(entry)


def of_tasks(scored: Sequence[list[Score]]) -> list[Score]:
    """The rows of T tasks with values whose mean over all rows is the mean M of the tasks' means:
    M + n/(T·n_t) · (x − m_t) with a task's mean m_t and its n_t of all n values.
    """
    values = [[row.value for row in rows if row.value is not None] for rows in scored]
    means = [statistics.fmean(mine) for mine in values if mine]
    found = []
    for rows, mine in zip(scored, values, strict=True):
        share = sum(map(len, values)) / max(len(means) * len(mine), 1)
        for row in rows:
            value = row.value
            if value is not None:
                value = statistics.fmean(means) + share * (value - statistics.fmean(mine))
            found.append(replace(row, value=value))
    return found


def metric_of(column: str, entry: Entry, tasks: Mapping[str, Any]) -> str:
    """The metric of a column: the one that is named, else the first of the task's that is a mean
    over items of which more is better. HarnessError asks for a name where there is none, or where
    the tasks of a group have different ones.
    """
    from lm_eval.api import metrics

    means, wanted = (metrics.mean, metrics.nanmean), entry.get("metric")
    found, known = set[str](), dict[str, None]()
    for task in tasks.values():
        made, better = task.aggregation(), task.higher_is_better()
        known |= dict.fromkeys(made)
        shares = [name for name in made if made[name] in means and better.get(name)]
        found.update([name for name in shares if name == wanted] if wanted else shares[:1])
    if len(found) == 1:
        return found.pop()
    why = "has no one metric that is a mean of shares"
    raise HarnessError(
        f"academic task {column} {f'cannot be scored by {wanted!r}' if wanted else why}; name a "
        "metric in evaluation.academic.metrics that is a mean over items and better when higher; "
        f"it has {', '.join(known)}"
    )


def keep_shots_apart(column: str, task: Any) -> None:
    """Draw a task's shots from outside its scored items: lm-eval takes them from the scored split
    where there is no other, and a prompt may then show its own answer. HarnessError when too few
    are left.
    """
    shots = task.get_config("num_fewshot") or 0
    if not shots or not hasattr(task, "sampler"):
        return
    scored = {_content(doc) for doc in task.eval_docs}
    pool = list(task.sampler.fewshot_docs())
    apart = [doc for doc in pool if _content(doc) not in scored]
    split = getattr(getattr(task, "fewshot_cfg", None), "split", None)
    if split and split == (task.config.test_split or task.config.validation_split):
        apart = []  # its rows may be processed otherwise than the scored ones
    if len(apart) < shots:
        raise HarnessError(
            f"academic task {column}: {shots} shots are asked for, and {len(apart)} of the "
            f"{len(pool)} items that lm-eval would draw them from are not scored themselves; lower "
            f"evaluation.academic.shots.{column}, or give it a split of its own to draw from"
        )
    if len(apart) < len(pool):
        task.sampler.df = apart


def _content(doc: Any) -> str:
    return json.dumps(doc, sort_keys=True, default=str)


def materialise(folder: Path, target: Path) -> None:
    """Copy the task YAMLs with absolute paths of data files and of lm-eval's packaged tasks."""
    import lm_eval

    packaged = Path(lm_eval.__file__).parent.parent

    def absolute(match: re.Match[str]) -> str:
        name = match[0]
        return str((folder / name).resolve()) if (folder / name).is_file() else name

    included = re.compile(r"(?m)^(include:\s*)(lm_eval/\S+)")
    data_file = r"(?<![\w/.-])[\w-][\w.-]*\.(?:jsonl\.gz|jsonl|json|parquet|csv)(?![\w.-])"
    for file in sorted(folder.glob("*yaml")):
        text = file.read_text(encoding="utf-8")
        text = included.sub(lambda m: f"{m[1]}{packaged / m[2]}", text)
        (target / file.name).write_text(re.sub(data_file, absolute, text), encoding="utf-8")


def load_tasks(
    folder: Path, entries: Mapping[str, Entry], settings: AcademicTask, temporary: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """lm-eval's tasks by column, a group's several, set up as asked; and the column's group."""
    import datasets
    from lm_eval.tasks import TaskManager

    (temporary / "tasks").mkdir()
    materialise(folder, temporary / "tasks")
    hub = [column for column, entry in entries.items() if entry.get("source") == "hub"]
    named = [column for column in hub if not (folder / f"{column}.yaml").is_file()]
    # Defaults only where a task is named by lm-eval: for them it reads thousands of files.
    manager = TaskManager(include_path=str(temporary / "tasks"), include_defaults=bool(named))
    cache = datasets.config.HF_DATASETS_CACHE
    hubs = {"hub", *(paper.hub for paper in PAPER_TASKS.values())}
    if hubs.isdisjoint(str(entry.get("source")) for entry in entries.values()):
        # Local rows only: the datasets library would leave a copy of them in the user's cache.
        cache = temporary / "datasets"
    columns: dict[str, dict[str, Any]] = {}
    groups: dict[str, Any] = {}
    try:
        with mock.patch.object(datasets.config, "HF_DATASETS_CACHE", cache):
            for column, entry in entries.items():
                loaded = manager.load([entry["task"]])
                columns[column] = dict(loaded["tasks"])
                groups[column] = loaded["groups"].get(entry["task"])
    except datasets.exceptions.DatasetGenerationError as error:
        raise HarnessError(
            f"academic task {column}: lm-eval cannot load its data: {error.__cause__ or error}"
        ) from error
    except (KeyError, ValueError, ConnectionError, FileNotFoundError) as error:
        hint = "name a task, group or tag that it has, whose data the hub can give"
        if column in PAPER_TASKS:
            hint = "give it a local file under academic.data"
        raise HarnessError(
            f"academic task {column} ({entry['task']}): lm-eval cannot load it ({error}); {hint}"
        ) from error
    for column, tasks in columns.items():
        for task in tasks.values():
            shots = entries[column].get("shots")
            if shots is not None:
                task.set_config("num_fewshot", int(shots))
            elif task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            if settings.max_new_tokens and task.get_config("output_type") == "generate_until":
                limit = {"max_gen_toks": settings.max_new_tokens}
                task.set_config("generation_kwargs", limit, update=True)
    return columns, groups


# -- evaluation ------------------------------------------------------------------------------------
def score_task(
    lm: Any, column: str, entry: Entry, name: str, task: Any, settings: AcademicTask, prefix: str
) -> Done:
    """One lm-eval task. prefix: before the names of its items, in a column of several tasks. Out of
    memory halves the batches and starts again; error rows where one row at a time does not fit.
    """
    logged: list[Sample] | None = None
    lm.shrink = 1
    while logged is None and lm.shrink < 2 * max(ROWS, settings.generation_batch):
        lm.cut = lm.asked = 0
        try:
            logged = _evaluate(lm, name, task, settings)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
                raise
            lm.shrink *= 2
    scores, samples = score_rows(column, entry, task, logged, settings, prefix)
    return Done(scores, samples, lm.cut, lm.asked)


def _evaluate(lm: Any, name: str, task: Any, settings: AcademicTask) -> list[Sample]:
    from lm_eval.evaluator import evaluate

    task.set_fewshot_seed(FEWSHOT_SEED)
    try:
        results = evaluate(
            lm,
            {"tasks": {name: task}, "groups": {}, "group_map": {}},
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
    return list(results["samples"][name])


# -- rows ------------------------------------------------------------------------------------------
def score_rows(
    column: str,
    entry: Entry,
    task: Any,
    logged: list[Sample] | None,
    settings: AcademicTask,
    prefix: str,
) -> tuple[list[Score], list[dict[str, Any]]]:
    """Score rows in percent and sample rows of one task. logged: None where memory ran out."""
    scores: list[Score] = []
    samples: list[dict[str, Any]] = []
    shown = prefix.removesuffix(":") or entry.get("lm_eval_task", entry["task"])
    benchmark_version = f"lm_eval {version('lm_eval')} {shown} {task.VERSION}"
    chosen = [] if logged is None else _filtered(column, entry, logged)
    docs = {int(sample["doc_id"]): sample["doc"] for sample in chosen}
    if logged is None:
        docs = dict(enumerate(itertools.islice(task.eval_docs, settings.limit or None)))
    names = [item_name(doc, position) for position, doc in docs.items()]
    if len(set(names)) < len(names):
        names = list(map(str, docs))
    for name, doc, sample in itertools.zip_longest(names, docs.values(), chosen):
        value, source, item = None, "", prefix + name
        status: Status = "error"
        if sample is not None:
            value = _value(column, entry, sample)
            status = "unparsed" if value is None else "ok"
            hashes = [sample[f"{part}_hash"] for part in ("doc", "prompt", "target")]
            source = content_hash(*hashes, length=16)
            said = {"answer": sample["filtered_resps"], "raw": sample["resps"]}
            plain = {key: _plain(text) for key, text in said.items()}
            samples.append({"benchmark": column, "item": item, "value": value} | plain)
        row = (column, benchmark_version, item, _cluster(column, doc, item, settings), "score")
        scores.append(Score(*row, value, status, source=source))
    return scores, samples


def _cluster(column: str, doc: Mapping[str, Any], item: str, settings: AcademicTask) -> str:
    """What was sampled: the item, or the passage that it shares with others."""
    field = settings.passages.get(column)
    if field is None:
        return item
    if field not in doc:
        raise HarnessError(
            f"academic.passages.{column}: an item has no field {field!r}; it has {', '.join(doc)}"
        )
    return content_hash(doc[field], length=16)


def _filtered(column: str, entry: Entry, logged: list[Sample]) -> list[Sample]:
    """The samples of the filter that counts, in the order of the items."""
    wanted = entry.get("filter") or logged[0]["filter"]
    chosen = [sample for sample in logged if sample["filter"] == wanted]
    if not chosen:
        raise HarnessError(
            f"academic task {column}: lm-eval has no filter {wanted!r}; it has "
            f"{sorted({s['filter'] for s in logged})}"
        )
    return sorted(chosen, key=lambda sample: int(sample["doc_id"]))


def _value(column: str, entry: Entry, sample: Sample) -> float | None:
    """An item's value in percent; None where lm-eval's metric is not finite."""
    metric = entry["metric"]
    found: Any = sample.get(metric)
    if isinstance(found, float) and math.isnan(found) and "mc2_targets" in sample["doc"]:
        found = truthful_share(sample)
    number = isinstance(found, int | float | np.generic)
    value = float(found) if number else math.nan
    inside = metric == "eqbench" or not math.isfinite(value) or 0.0 <= value <= 1.0
    if not number or not inside:
        raise HarnessError(
            f"academic task {column}: metric {metric!r} of item {sample['doc_id']} is "
            f"{str(found)[:60]}, which is no share from 0 to 1; name another in "
            "evaluation.academic.metrics"
        )
    value *= float(entry.get("scale", scale_of(metric)))
    return value if math.isfinite(value) else None


def truthful_share(sample: Sample) -> float:
    """MC2, the true answers' share of probability; lm-eval's own underflows to 0/0."""
    logps = np.array([float(logp) for logp, _ in sample["filtered_resps"]])
    shares = np.exp(logps - logps.max())
    true = np.array(sample["doc"]["mc2_targets"]["labels"]) == 1
    return float(shares[true].sum() / shares.sum())


def _plain(value: Any) -> Any:
    """JSON form of lm-eval's responses; log-likelihoods to 6 decimals, infinities as text."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def summarise(entry: Entry, rows: list[Score]) -> dict[str, Any]:
    """Mean and standard error (sd/√n, n − 1) over scored items; None where nothing was scored."""
    values = [row.value for row in rows if row.value is not None]
    kept = ("metric", "filter", "mean_of", "shots", "shots_from", "paper_shots", "source")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {key: entry[key] for key in kept if key in entry} | {
        "value": statistics.fmean(values) if values else None,
        "stderr": error,
        "n": len(values),
        "expected": len(rows),
        "task": entry.get("lm_eval_task", entry["task"]),
        "version": rows[0].benchmark_version if rows else "",
    }


# -- lm-eval's model around ours -------------------------------------------------------------------
LOGIT_BUDGET = {"cpu": 2**26, "cuda": 2**29}
"""Logits (rows × tokens × vocabulary) of one scoring batch; 4 bytes each, held twice."""
ROWS = 256
"""Most rows of one scoring batch."""
ENGINE_ROWS = 4096
"""Rows of one call of vLLM, which makes its own batches of them."""


def language_model(policy: Any, settings: AcademicTask, engine: Engine | None = None) -> Any:
    """lm-eval's HFLM around a loaded policy, with batches sized by length; with ``engine``, vLLM
    computes. Raises HarnessError if it would see other tokens.
    """
    from lm_eval.models.huggingface import HFLM

    base = HFLM if engine is None else computed_by(engine, HFLM)
    budget = LOGIT_BUDGET["cuda" if policy.device.startswith("cuda") else "cpu"]

    class LengthBatchedLM(base):  # type: ignore[misc, valid-type]
        """HFLM whose batches follow the requests' lengths; it repeats no encoding of a context and
        counts the ones cut to fit. What an item says is text: a special token spelled out in it is
        encoded as its letters, as in training.
        """

        shrink = 1
        cut = asked = 0
        _last: tuple[str, list[int]] = ("", [])

        # lm-eval encodes a context of 25 shots once for every choice: four times the work.
        def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
            if any(value is not None for value in (*args, *kwargs.values())):
                return list(super().tok_encode(string, *args, **kwargs))
            if string != self._last[0]:
                self._last = (string, self._encoded(string))
            return list(self._last[1])

        def _encoded(self, string: str) -> list[int]:
            string = self._spelled(string)
            if chat.MARK in string:
                return chat.encode_spelled(self.tokenizer, string)
            return list(super().tok_encode(string))

        def _spelled(self, string: str) -> str:
            # Under a chat template the turns are marked when it is applied.
            return string if settings.chat_template else chat.spelled(self.tokenizer, string)

        # lm-eval's own drops a system turn that the template has no place for.
        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            turns = [dict(turn) for turn in chat.spelled_turns(self.tokenizer, chat_history)]
            return str(super().apply_chat_template(turns, add_generation_prompt))

        # lm-eval's own encodes the context twice; this is the same split with the one above.
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            spaces = len(context) - len(context.rstrip())
            if spaces:
                context, continuation = context[:-spaces], context[-spaces:] + continuation
            if settings.chat_template:
                continuation = chat.spelled(self.tokenizer, continuation)
            start = self.tok_encode(context)
            whole = self._encoded(context + continuation)
            return start, whole[len(start) :]

        # "auto" batches are found by trying until memory runs out, and differ between machines.
        def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:  # noqa: ARG002
            rows = settings.generation_batch if engine is None else ENGINE_ROWS
            return max(1, rows // self.shrink)

        def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> int:
            _, context, continuation = n_reordered_requests[pos]
            logits = (len(context) + len(continuation)) * self.model.config.vocab_size
            return int(max(1, min(ROWS, budget // logits) // self.shrink))

        # What does not fit is cut on the left in silence; here it is counted.
        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            self.asked += len(requests)
            self.cut += sum(
                len(context) + len(continuation) > self.max_length + 1
                for _, context, continuation in requests
            )
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def tok_batch_encode(
            self, strings: Any, *args: Any, left_truncate_len: int | None = None, **kwargs: Any
        ) -> Any:
            if any(chat.MARK in self._spelled(string) for string in strings):
                rows = {"input_ids": [self._encoded(string) for string in strings]}
                found = self.tokenizer.pad(rows, padding_side="left", return_tensors="pt")
                ids, mask = found["input_ids"], found["attention_mask"]
            else:
                ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
            if left_truncate_len:
                self.asked += len(strings)
                self.cut += int((mask.sum(1) > left_truncate_len).sum())
                ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
            return ids, mask

    lm = LengthBatchedLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size="auto")
    if settings.chat_template:
        check_tokens(lm, policy.tokenizer)
    return lm


def check_tokens(lm: Any, tokenizer: Any) -> None:
    """lm-eval must feed the tokens of training and sampling, in both of its encoders."""
    for turns in (1, 3):
        roles = ("user", "assistant", "user")[:turns]
        messages = [{"role": role, "content": "Hello there"} for role in roles]
        text = lm.apply_chat_template(messages)
        expected = chat.encode_prompt(tokenizer, messages)
        batched, _ = lm.tok_batch_encode([text])
        for found in (lm.tok_encode(text), batched[0].tolist()):
            if found != expected:
                shown = " ".join(map(repr, tokenizer.convert_ids_to_tokens(found)))
                wanted = " ".join(map(repr, tokenizer.convert_ids_to_tokens(expected)))
                raise HarnessError(
                    "lm-eval would read other tokens than the policy was trained on. lm-eval: "
                    f"{shown}. Training: {wanted}"
                )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, prints or warnings of the libraries; errors still show."""
    import datasets

    level, bars = logging.root.manager.disable, datasets.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        if bars:
            datasets.enable_progress_bars()


# -- lm-eval's model around vLLM's engine ----------------------------------------------------------
TAKEN = {"attention_mask", "do_sample", "stop", "temperature", "top_p", "use_cache"}
"""What may be said of answers beside their length."""


def computed_by(engine: Engine, base: type[Any]) -> type[Any]:
    """A subclass of lm-eval's HFLM for a policy without weights: what is asked, cut and parsed
    stays HFLM's own; log-likelihoods and answers are the engine's. (lm-eval's class for vLLM starts
    an engine inside the process that asks, which a pool's worker cannot have, and encodes by a
    tokenizer of vLLM's, not by the one that the policy is trained with.)

    A request has two positions less than the model: vLLM reads the last token of a row too, and
    wants room for a new one. An answer goes on behind the text at which lm-eval cuts it.
    """

    class EngineLM(base):  # type: ignore[misc]
        drawn = 0

        @property
        def device(self) -> torch.device:
            return torch.device("cpu")

        @property
        def max_length(self) -> int:
            return int(super().max_length) - 2

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], *_: Any, **__: Any
        ) -> list[tuple[float, bool]]:
            most = self.max_length + 1
            return engine.score([((a + b)[-most:], len(b)) for _, a, b in requests])

        def _model_generate(self, context: Tensor, max_length: int, **asked: Any) -> Tensor:
            unknown = sorted(set(asked) - TAKEN)
            if unknown:
                raise HarnessError(
                    f"evaluation.academic.engine vllm does not take {', '.join(unknown)}, which a "
                    "task sets for its answers; set it to transformers"
                )
            temperature = float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0
            top_p, new = float(asked.get("top_p", 1.0)), max_length - context.shape[1]
            requests: list[GenerationRequest] = []
            for ids, kept in zip(context, asked["attention_mask"].bool(), strict=True):
                seed = request_seed("academic", self.drawn + len(requests))
                prompt = tuple(ids[kept].tolist())
                requests.append(GenerationRequest(prompt, new, temperature, top_p, seed))
            self.drawn += len(requests)
            found = torch.full((len(requests), new), self.tokenizer.pad_token_id)
            for place, (ids, status, error) in enumerate(engine.draw(requests)):
                if status == "error":
                    raise HarnessError(f"vLLM answers no academic task: {error}")
                found[place, : len(ids)] = torch.tensor(ids)
            return torch.cat([context, found], 1)

    return EngineLM
