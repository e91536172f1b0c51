"""Academic tasks: what is asked of lm-eval, and the data and YAML that its packaged tasks read,
without the hub. `harness.evaluate.academic_run` runs them.

For each column of the paper's Table 2 a small YAML ``include:``s the task that ships with lm-eval
and changes only where its rows come from and how many shots it has; prompt, parsing and metric stay
lm-eval's. Paths in the YAML are relative (to the folder, and ``lm_eval/…`` for the packaged task),
so that the folder's content is the same on every machine; `academic_run.materialise` makes them
absolute in a temporary copy.

The paper names shots but neither the lm-eval task nor the metric key. What is set here, and why:
gsm8k: ``gsm8k_cot`` is the only packaged 8-shot chain-of-thought task (its eight worked examples
are in its YAML), its first filter is strict-match. hellaswag, arc_challenge: ``acc_norm``, the
leaderboards' key (the table's 78-86 for HellaSwag cannot be ``acc``). truthfulqa_mc2: the only
packaged TruthfulQA metric on which the table's Llama-3-8B-Instruct reads 51.7. openbookqa: ``acc``,
by the table's scale (35-43; ``acc_norm`` of these models is near 10 points higher). An inference,
so tables name the task and metric.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from harness.evaluate.benchmark import PERCENT, Asked, Benchmark, Counting, Measure, read_rows
from harness.files import hash_file
from harness.records import HarnessError, content_hash, write_jsonl
from harness.study.sections import Backend, Different, NonNegative, Section
from harness.study.tasks import Generating
from harness.study.work import Work

NAME = "academic"
Item = dict[str, Any]
"""A row of a task's data."""


def scale_of(metric: str) -> float:
    """From lm-eval's value to percent: EQ-Bench's is one already."""
    return 1.0 if metric == "eqbench" else 100.0


@dataclass(frozen=True)
class PaperTask:
    """One column of the paper's Table 2 and the lm-eval task behind it.

    yaml: below ``lm_eval/tasks``. split: the one scored. trains: whether the packaged task draws
    its shots from a ``train`` split. hub: where the items come from when no local file is given.
    """

    title: str
    task: str
    yaml: str
    metric: str
    filter: str
    shots: int
    split: str
    trains: bool
    hub: str

    @property
    def scale(self) -> float:
        return scale_of(self.metric)


_PAPER = """
gsm8k GSM8K gsm8k_cot gsm8k/gsm8k-cot exact_match strict-match 8 test - openai/gsm8k
hellaswag HellaSwag = hellaswag/hellaswag acc_norm none 10 validation train Rowan/hellaswag
arc_challenge ARC-C = arc/arc_challenge acc_norm none 25 test train allenai/ai2_arc
truthfulqa_mc2 TruthfulQA = truthfulqa/truthfulqa_mc2 acc none 0 validation - truthfulqa/truthful_qa
eq_bench EQ-Bench = eq_bench/default eqbench none 0 validation - pbevan11/EQ-Bench
openbookqa OBQA = openbookqa/openbookqa acc none 10 test train allenai/openbookqa
"""
"""Column and the fields of PaperTask; task "=": named as the column."""


def _paper_tasks() -> Mapping[str, PaperTask]:
    found = {}
    for line in _PAPER.strip().splitlines():
        column, title, task, yaml, metric, chosen, shots, split, trains, hub = line.split()
        task = column if task == "=" else task
        scored = (f"{yaml}.yaml", metric, chosen, int(shots), split, trains == "train", hub)
        found[column] = PaperTask(title, task, *scored)
    return found


PAPER_TASKS = _paper_tasks()
OWN_EXAMPLES = {"gsm8k": 8}
"""Worked examples in the YAML of a packaged task that draws none from a split."""
PASSAGES = {**dict.fromkeys(("drop", "boolq", "record"), "passage"), "multirc": "paragraph"}
"""lm-eval's task → the field that its items share."""


class AcademicSettings(Section):
    tasks: Different = list(PAPER_TASKS)
    """lm-eval's tasks by name."""
    data: dict[str, str] = {}
    """Task → local data file, in place of the hub; ``<task>:train`` → the items its examples are
    drawn from. For a task of one's own: its lm-eval YAML, and ``<task>:<split>`` → the rows.
    """
    shots: dict[str, NonNegative] = {}
    """Task → examples before each question, where not the paper's number."""
    metrics: dict[str, str] = {}
    """Task → the metric it is scored by, or ``metric,filter``, where not the usual one: a mean over
    items of values from 0 to 1 of which more is better.
    """
    passages: dict[str, str] = {}
    """Task → the field of its documents (a passage) that several items share: they are one sampled
    unit. Known of drop, boolq, record and multirc.
    """
    limit: NonNegative = 0
    """Items of a task: the first so many; 0: all."""
    chat_template: bool = True
    """Whether questions stand in the model's chat template."""
    fewshot_as_multiturn: bool = True
    """Whether examples are turns of the conversation (with ``chat_template``)."""
    max_new_tokens: NonNegative = 0
    """0: as the task says."""
    engine: Backend = "transformers"
    """What reads and answers. vLLM's log-likelihoods are transformers' but for their rounding; it
    has two positions less for a request, and draws on behind a text at which an answer is cut.
    """

    later: ClassVar[Mapping[str, Any]] = {"metrics": {}, "passages": {}, "engine": "transformers"}


class AcademicTask(AcademicSettings, Generating):
    """``academic``. Its keys have always held ``backend``, which draws other stages' answers."""

    later: ClassVar[Mapping[str, Any]] = AcademicSettings.later

    @property
    def by_vllm(self) -> bool:
        return self.engine == "vllm"


# -- conversion to the columns the packaged tasks read ---------------------------------------------
def scoring_items(rows: Sequence[Item]) -> list[Item]:
    """The items behind OLMo-style scoring requests (one row per choice), in file order, each once.

    Every item appears a second time with an unconditional context (the bare ``Answer:``, used for
    normalising); those do not end in the item's own question and are left out. Raises HarnessError
    if nothing is left.
    """
    items: dict[str, Item] = {}
    for row in rows:
        if row["request"]["context"].endswith(row["doc"]["query"]):
            items.setdefault(str(row["native_id"]), row["doc"])
    if not items:
        raise HarnessError(
            "a file of scoring requests holds no item whose context ends in its question"
        )
    return list(items.values())


def _lettered(question: str, doc: Item) -> Item:
    letters = [chr(ord("A") + i) for i in range(len(doc["choices"]))]
    return {
        "id": str(doc["id"]),
        question: doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": doc["choices"], "label": letters},
        "answerKey": letters[doc["gold"]],
    }


def _hellaswag(doc: Item) -> Item:
    """lm-eval processes the requests' text again; ``[title]`` keeps a leading space there."""
    activity, _, context = doc["query"].partition(": ")
    endings = ["[title]" + text if text.startswith(" ") else text for text in doc["choices"]]
    shown = {"ind": doc["ind"], "activity_label": activity, "ctx_a": context, "ctx_b": ""}
    return shown | {"endings": endings, "label": str(doc["gold"])}


def _truthfulqa(row: Item) -> Item:
    found = {"question": row["question"]}
    for name in ("mc1_targets", "mc2_targets"):
        found[name] = {"choices": list(row[name]), "labels": list(row[name].values())}
    return found


def _eq_bench(row: Item) -> Item:
    asked = {"id": str(row["id"]), "prompt": first_pass_prompt(row["prompt"])}
    return asked | {"reference_answer_fullscale": str(row["reference_answer_fullscale"])}


def first_pass_prompt(prompt: str) -> str:
    """An EQ-Bench v2 prompt without its critique-and-revise part, which lm-eval leaves out."""
    critique = (
        " Then critique your answer by thinking it through step by step. Finally, give your "
        "revised scores."
    )
    prompt = prompt.replace(critique, "").replace("First pass scores:\n", "")
    return re.sub(r"\nCritique: .*?(?=\n\[End of answer\])", "", prompt, flags=re.DOTALL)


CONVERT: dict[str, tuple[str, Callable[[Item], Item]]] = {
    "gsm8k": ("answer question", lambda row: {key: row[key] for key in ("question", "answer")}),
    "hellaswag": ("activity_label ctx_a ctx_b endings label", _hellaswag),
    "arc_challenge": ("answerKey choices question", partial(_lettered, "question")),
    "truthfulqa_mc2": ("mc2_targets question", _truthfulqa),
    "eq_bench": ("prompt reference_answer_fullscale", _eq_bench),
    "openbookqa": ("answerKey choices question_stem", partial(_lettered, "question_stem")),
}
"""Column → (the fields of the hub's own rows, conversion from the public files' form)."""


def _in_hub_form(column: str, row: Item) -> bool:
    if column == "truthfulqa_mc2":
        return isinstance(row.get("mc2_targets"), dict) and "labels" in row["mc2_targets"]
    if column == "eq_bench":
        return isinstance(row.get("reference_answer_fullscale"), str)
    return set(CONVERT[column][0].split()) <= set(row)


def _sound(column: str, item: Item) -> bool:
    """Whether an item has all fields, and its right answer is among its choices."""
    if any(item[field] is None for field in CONVERT[column][0].split()):
        return False
    if column == "hellaswag":
        return str(item["label"]) in map(str, range(len(item["endings"])))
    return "answerKey" not in item or item["answerKey"] in item["choices"]["label"]


def convert(column: str, path: Path) -> list[Item]:
    """Rows in the columns lm-eval's packaged task reads. Raises HarnessError: file and fields."""
    rows = read_rows(path)
    if not rows:
        raise HarnessError(f"{path}: no rows for academic task {column}")
    fields, read = CONVERT[column]
    first = rows[0] if isinstance(rows[0], dict) else {}
    if {"request", "doc", "native_id"} <= set(first):
        rows = scoring_items(rows)
    elif first and _in_hub_form(column, first):
        read = dict
    items = []
    for number, row in enumerate(rows, 1):
        try:
            items.append(read(row))
            sound = _sound(column, items[-1])
        except (LookupError, AttributeError, TypeError, ValueError):
            sound = False
        if not sound:
            raise HarnessError(
                f"{path}: row {number} is no {column} item with its answer; wanted the fields "
                f"{', '.join(fields.split())}"
            )
    return items


# -- writing ---------------------------------------------------------------------------------------
def prepare(settings: AcademicSettings, out: Path) -> Mapping[str, Any]:
    """Write ``tasks.json``, ``<column>.yaml`` and ``<column>_<split>.jsonl`` into ``out``; tells
    how many tasks there are, and of which items were held aside, out of how many.

    Without training items a task that needs shots holds aside its last items (shots + 1, named in
    tasks.json) and does not score them. A paper task without a file reads the hub; any other name
    without one is taken as an lm-eval task of that name.
    """
    out.mkdir(parents=True, exist_ok=True)
    _check_names(settings)
    tasks = {name: _prepare_one(name, settings, out) for name in settings.tasks}
    text = json.dumps(tasks, indent=1, sort_keys=True) + "\n"
    (out / "tasks.json").write_text(text, encoding="utf-8")
    aside = {
        name: {"items": task["held_aside"], "of": task["items"] + len(task["held_aside"])}
        for name, task in tasks.items()
        if "held_aside" in task
    }
    return {"tasks": len(tasks), **({"held_aside": aside} if aside else {})}


def _check_names(settings: AcademicSettings) -> None:
    """Raise HarnessError where sections name tasks that are not there."""
    tasks, given = settings.tasks, {name.partition(":")[0] for name in settings.data}
    for name in tasks:
        if name.endswith((".yaml", ".yml")):
            raise HarnessError(
                f"academic.tasks names a file, {name}; name the task, and give its YAML and rows "
                "as academic.data: {<task>: <its YAML>, <task>:<split>: <its rows>}"
            )
    unknown = given - {*PAPER_TASKS, *(name for name in tasks if name in settings.data)}
    if unknown:
        raise HarnessError(
            f"academic.data names {', '.join(sorted(unknown))}; local files are read for "
            f"{', '.join(PAPER_TASKS)}, and for a task of academic.tasks with its own YAML"
        )
    for key in ("metrics", "passages"):
        foreign = sorted(set(getattr(settings, key)) - set(tasks))
        if foreign:
            raise HarnessError(
                f"academic.{key} names {', '.join(foreign)}, which academic.tasks does not hold"
            )


def _prepare_one(column: str, settings: AcademicSettings, out: Path) -> Item:
    asked = settings.shots.get(column)
    paper = PAPER_TASKS.get(column)
    metric, _, chosen = settings.metrics.get(column, "").partition(",")
    named = {key: name for key, name in (("metric", metric), ("filter", chosen)) if name}
    if paper is None and column in settings.data:
        return _own_task(column, settings.data, out) | {"shots": asked} | named
    if paper is None:
        return {"task": column, "lm_eval_task": column, "shots": asked, "source": "hub"} | named
    shots = paper.shots if asked is None else asked
    own = OWN_EXAMPLES.get(column, 0)
    if shots > own and not paper.trains:
        raise HarnessError(
            f"academic.shots.{column} is {shots}: lm-eval's {paper.task} has {own} examples of its "
            "own and would take the others from the scored items"
        )
    shots_from = "training items" if paper.trains else "the task's own examples"
    entry: Item = {
        "metric": paper.metric,
        "filter": paper.filter,
        "task": f"selm_{column}",
        "lm_eval_task": paper.task,
        "shots": shots,
        "paper_shots": paper.shots,
        "source": paper.hub,
        "shots_from": shots_from if shots else "none",
    } | named
    entry["scale"] = scale_of(entry["metric"])
    splits: Mapping[str, Sequence[Item]] = {}
    if column in settings.data:
        splits, about = _splits(column, paper, shots, settings.data)
        entry |= about
    _write_task(column, f"lm_eval/tasks/{paper.yaml}", [f"num_fewshot: {shots}"], splits, out)
    return entry


def _write_task(
    column: str, include: str, more: list[str], splits: Mapping[str, Sequence[Item]], out: Path
) -> None:
    lines = [f"include: {include}", f"task: selm_{column}", *more]
    if splits:
        lines += ["dataset_path: json", "dataset_name: null", "dataset_kwargs:", "  data_files:"]
    for split, items in splits.items():
        write_jsonl(out / f"{column}_{split}.jsonl", items)
        lines.append(f"    {split}: {column}_{split}.jsonl")
    (out / f"{column}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _own_task(column: str, data: Mapping[str, str], out: Path) -> Item:
    """A task whose YAML is given, with its rows by split."""
    path, prefix = Path(data[column]), f"{column}:"
    files = {name.removeprefix(prefix): data[name] for name in data if name.startswith(prefix)}
    text = path.read_text(encoding="utf-8")
    unread = r"!function|\binclude:" + ("" if files else r"|\bdata_files:")
    if path.suffix not in (".yaml", ".yml") or re.search(unread, text):
        raise HarnessError(
            f"academic.data.{column}: {path} should be an lm-eval YAML without include: and "
            f"!function, and local rows be named beside it as {column}:<split>"
        )
    (out / f"{column}_yaml").write_text(text, encoding="utf-8")
    splits = {split: read_rows(Path(file)) for split, file in files.items()}
    _write_task(column, f"{column}_yaml", [], splits, out)
    source = {"source": path.name, "sha256": hash_file(path)} if files else {"source": "hub"}
    return {"task": f"selm_{column}", "lm_eval_task": column} | source


def _splits(
    column: str, paper: PaperTask, shots: int, data: Mapping[str, str]
) -> tuple[dict[str, list[Item]], Item]:
    """The task's items by split, and what tasks.json says about them."""
    path = Path(data[column])
    items = with_ids(convert(column, path))
    _refuse_doubled(items, path)
    about: Item = {"source": path.name, "sha256": hash_file(path)}
    splits = {paper.split: items}
    train = data.get(f"{column}:train")
    if paper.trains and train is not None:
        splits["train"] = with_ids(convert(column, Path(train)))
    elif paper.trains:
        # lm-eval opens this split even where it takes no example of it.
        splits["train"] = items
        if shots:
            splits = {paper.split: items[: -(shots + 1)], "train": items[-(shots + 1) :]}
            about["held_aside"] = [item_name(one, 0) for one in splits["train"]]
        about["shots_from"] = "held aside" if shots else "none"
    if not splits[paper.split]:
        raise HarnessError(
            f"{path}: {len(items)} items cannot spare {shots + 1} for shots; give "
            f"{column}:train a file or lower its shots"
        )
    return splits, about | {"items": len(splits[paper.split])}


ID_KEYS = ("id", "ind", "question_id")


def _refuse_doubled(items: Sequence[Item], path: Path) -> None:
    """Items that occur twice, whatever their ids, would count twice."""
    rows: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        key = content_hash({name: item[name] for name in item if name not in ID_KEYS})
        if rows.setdefault(key, number) != number:
            raise HarnessError(
                f"{path}: items {rows[key]} and {number} are the same; keep one of each"
            )


def with_ids(items: Sequence[Item]) -> list[Item]:
    """The items; where any has no id, all are named by content: alike in any order of the file."""
    if all(item_name(item, "") for item in items):
        return list(items)
    return [{**item, "id": content_hash(item, length=16)} for item in items]


def item_name(doc: Mapping[str, Any], otherwise: int | str) -> str:
    """A stable name of an item: its own id where the data have one."""
    named = (doc[key] for key in ID_KEYS if doc.get(key) not in (None, ""))
    return str(next(named, otherwise))


# -- the record ------------------------------------------------------------------------------------
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


def measures(evaluation: Any) -> Sequence[Measure]:
    """One column per task, in the recipe's order, then their mean."""
    tasks = evaluation.academic.tasks
    titles = {name: PAPER_TASKS[name].title if name in PAPER_TASKS else name for name in tasks}
    one = Measure(NAME, "score", "mean", "percent", 1, scale=PERCENT, table="table_2")
    columns = [replace(one, benchmark=name, title=title) for name, title in titles.items()]
    if len(columns) > 1:
        long = "mean of academic benchmarks"
        columns.append(replace(one, strata=tuple(tasks), long=long))
    return columns


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


def settle(asked: Asked) -> AcademicTask:
    """Settings of the scoring stage."""
    theirs = [name for name in asked.settings.tasks if name not in asked.settings.data]
    known = {name: PASSAGES[name] for name in theirs if name in PASSAGES}
    passages = known | asked.settings.passages
    return AcademicTask(**vars(asked.settings) | asked.generating | {"passages": passages})


BENCHMARK = Benchmark(
    NAME,
    "Academic tasks",
    settings=AcademicSettings,
    stage="academic",
    run="harness.evaluate.academic_run:run",
    task=AcademicTask,
    settle=settle,
    measures=measures,
    work=_work,
    inputs=("policy", "benchmarks"),
    version=2,
    seconds=4.0,
    accelerator=True,
    other_files=("data",),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_academic",
)
