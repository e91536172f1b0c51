"""Academic tasks from local files: the data and YAML that lm-eval's packaged tasks read, without
the hub.

For each column of the paper's Table 2 a small YAML ``include:``s the task that ships with lm-eval
and changes only where its rows come from and how many shots it has; prompt, parsing and metric stay
lm-eval's. Paths in the YAML are relative (to the folder, and ``lm_eval/…`` for the packaged task),
so that the folder's content is the same on every machine; `harness.evaluate.academic.materialise`
makes them absolute in a temporary copy.

The paper names shots but neither the lm-eval task nor the metric key. What is set here, and why:
gsm8k: ``gsm8k_cot`` is the only packaged 8-shot chain-of-thought task (its eight worked examples
are in its YAML), its first filter is strict-match. hellaswag, arc_challenge: ``acc_norm``, the
leaderboards' key (the table's 78-86 for HellaSwag cannot be ``acc``). truthfulqa_mc2: the only
packaged TruthfulQA metric on which the table's Llama-3-8B-Instruct reads 51.7. openbookqa: ``acc``,
by the table's scale (35-43; ``acc_norm`` of these models is near 10 points higher). An inference,
so tables name the task and metric.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.records import HarnessError, read_jsonl, write_jsonl
from harness.study.sections import NonNegative, Section
from harness.study.tasks import Generating

Row = dict[str, Any]


class AcademicSettings(Section):
    tasks: list[str] = [
        "gsm8k",
        "hellaswag",
        "arc_challenge",
        "truthfulqa_mc2",
        "eq_bench",
        "openbookqa",
    ]
    data: dict[str, str] = {}
    """Task → local data file, in place of the hub."""
    shots: dict[str, NonNegative] = {}
    limit: NonNegative = 0
    chat_template: bool = True
    fewshot_as_multiturn: bool = True
    max_new_tokens: NonNegative = 0
    """0: as the task says."""


class AcademicTask(AcademicSettings, Generating):
    """``academic``. Its keys have always held the backend."""

    later: ClassVar[Mapping[str, Any]] = {}


@dataclass(frozen=True)
class PaperTask:
    """One column of the paper's Table 2 and the lm-eval task behind it.

    yaml: below ``lm_eval/tasks``. scale: factor from lm-eval's value to percent. split: the one
    scored. trains: whether the packaged task draws its shots from a ``train`` split. hub: where the
    rows come from when no local file is given.
    """

    column: str
    task: str
    yaml: str
    metric: str
    filter: str
    shots: int
    scale: float
    split: str
    trains: bool
    hub: str


PAPER_TASKS: dict[str, PaperTask] = {
    row.column: row
    for row in (
        PaperTask(
            "gsm8k",
            "gsm8k_cot",
            "gsm8k/gsm8k-cot.yaml",
            "exact_match",
            "strict-match",
            8,
            100.0,
            "test",
            False,
            "openai/gsm8k",
        ),
        PaperTask(
            "hellaswag",
            "hellaswag",
            "hellaswag/hellaswag.yaml",
            "acc_norm",
            "none",
            10,
            100.0,
            "validation",
            True,
            "Rowan/hellaswag",
        ),
        PaperTask(
            "arc_challenge",
            "arc_challenge",
            "arc/arc_challenge.yaml",
            "acc_norm",
            "none",
            25,
            100.0,
            "test",
            True,
            "allenai/ai2_arc",
        ),
        PaperTask(
            "truthfulqa_mc2",
            "truthfulqa_mc2",
            "truthfulqa/truthfulqa_mc2.yaml",
            "acc",
            "none",
            0,
            100.0,
            "validation",
            False,
            "truthfulqa/truthful_qa",
        ),
        PaperTask(
            "eq_bench",
            "eq_bench",
            "eq_bench/default.yaml",
            "eqbench",
            "none",
            0,
            1.0,
            "validation",
            False,
            "pbevan11/EQ-Bench",
        ),
        PaperTask(
            "openbookqa",
            "openbookqa",
            "openbookqa/openbookqa.yaml",
            "acc",
            "none",
            10,
            100.0,
            "test",
            True,
            "allenai/openbookqa",
        ),
    )
}


# --- reading --------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """Rows of a .jsonl, .jsonl.gz, .json (list, or mapping of id to row) or .parquet file. Raises
    HarnessError naming the file.
    """
    if not path.is_file():
        raise HarnessError(
            f"academic data file {path} does not exist; give evaluation.academic.data a file"
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".json":
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return (
            [{"id": key, **row} for key, row in loaded.items()]
            if isinstance(loaded, dict)
            else list(loaded)
        )
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            return [json.loads(line) for line in handle if line.strip()]
    return list(read_jsonl(path))


def scoring_items(rows: Sequence[Row]) -> list[Row]:
    """The items behind OLMo-style scoring requests (one row per choice), in file order, each once.

    Every item appears a second time with an unconditional context (the bare ``Answer:``, used for
    normalising); those do not end in the item's own question and are left out. Raises HarnessError
    if nothing is left.
    """
    items: dict[str, Row] = {}
    for row in rows:
        if row["request"]["context"].endswith(row["doc"]["query"]):
            items.setdefault(str(row["native_id"]), row["doc"])
    if not items:
        raise HarnessError(
            "a file of scoring requests holds no item whose context ends in its question"
        )
    return list(items.values())


# --- conversion to the columns the packaged tasks read --------------------------------------------


def _question(query: str) -> str:
    return query.removeprefix("Question: ").removesuffix("\nAnswer:")


def _lettered(doc: Row) -> Row:
    letters = [chr(ord("A") + i) for i in range(len(doc["choices"]))]
    return {
        "choices": {"text": doc["choices"], "label": letters},
        "answerKey": letters[doc["gold"]],
    }


def _arc(doc: Row) -> Row:
    return {"id": str(doc["id"]), "question": _question(doc["query"]), **_lettered(doc)}


def _openbookqa(doc: Row) -> Row:
    return {"id": str(doc["id"]), "question_stem": _question(doc["query"]), **_lettered(doc)}


def _hellaswag(doc: Row) -> Row:
    """The requests hold processed text; lm-eval processes again. A leading space is what
    ``[title]`` left behind and would be stripped.
    """
    activity, _, context = doc["query"].partition(": ")
    endings = ["[title]" + text if text.startswith(" ") else text for text in doc["choices"]]
    return {
        "ind": doc["ind"],
        "activity_label": activity,
        "ctx_a": context,
        "ctx_b": "",
        "endings": endings,
        "label": str(doc["gold"]),
    }


def _truthfulqa(row: Row) -> Row:
    def targets(answers: Mapping[str, int]) -> Row:
        return {"choices": list(answers), "labels": list(answers.values())}

    return {
        "question": row["question"],
        "mc1_targets": targets(row["mc1_targets"]),
        "mc2_targets": targets(row["mc2_targets"]),
    }


def _eq_bench(row: Row) -> Row:
    return {
        "id": str(row["id"]),
        "prompt": first_pass_prompt(row["prompt"]),
        "reference_answer_fullscale": str(row["reference_answer_fullscale"]),
    }


def first_pass_prompt(prompt: str) -> str:
    """An EQ-Bench v2 prompt without its critique-and-revise part, which lm-eval's version of the
    task leaves out.
    """
    prompt = prompt.replace(
        " Then critique your answer by thinking it through step by step. Finally, give your "
        "revised scores.",
        "",
    )
    prompt = prompt.replace("First pass scores:\n", "")
    return re.sub(r"\nCritique: .*?(?=\n\[End of answer\])", "", prompt, flags=re.DOTALL)


def _is_scoring_request(rows: Sequence[Row]) -> bool:
    return {"request", "doc", "native_id"} <= set(rows[0])


CONVERT: dict[str, tuple[frozenset[str], Callable[[Row], Row]]] = {
    "gsm8k": (
        frozenset({"question", "answer"}),
        lambda row: {"question": row["question"], "answer": row["answer"]},
    ),
    "hellaswag": (frozenset({"activity_label", "ctx_a", "ctx_b", "endings", "label"}), _hellaswag),
    "arc_challenge": (frozenset({"question", "choices", "answerKey"}), _arc),
    "truthfulqa_mc2": (frozenset({"question", "mc2_targets"}), _truthfulqa),
    "eq_bench": (frozenset({"prompt", "reference_answer_fullscale"}), _eq_bench),
    "openbookqa": (frozenset({"question_stem", "choices", "answerKey"}), _openbookqa),
}
"""Column → (the fields of the hub's own rows, conversion from the public files' form)."""


def _in_hub_form(column: str, row: Row) -> bool:
    if column == "truthfulqa_mc2":
        return isinstance(row.get("mc2_targets"), dict) and "labels" in row["mc2_targets"]
    if column == "eq_bench":
        return isinstance(row.get("reference_answer_fullscale"), str)
    return CONVERT[column][0] <= set(row)


def convert(column: str, path: Path) -> list[Row]:
    """Rows of ``path`` in the columns lm-eval's packaged task reads. Raises HarnessError naming
    file and missing fields.
    """
    rows = read_rows(path)
    if not rows:
        raise HarnessError(f"{path}: no rows for academic task {column}")
    if _is_scoring_request(rows):
        rows = scoring_items(rows)
    elif _in_hub_form(column, rows[0]):
        return rows
    try:
        return [CONVERT[column][1](row) for row in rows]
    except (KeyError, AttributeError, TypeError) as error:
        fields = ", ".join(sorted(CONVERT[column][0]))
        raise HarnessError(
            f"{path}: rows are not {column} items ({type(error).__name__}: {error}); wanted the "
            f"fields {fields}"
        ) from error


# --- writing --------------------------------------------------------------------------------------


def prepare_academic(settings: AcademicSettings, out: Path) -> dict[str, Row]:
    """Write ``tasks.json``, ``<column>.yaml`` and ``<column>_<split>.jsonl`` into ``out`` (the
    ``academic`` folder) and return tasks.json.

    settings: an AcademicSettings dump. ``data`` maps a task to its local file; ``<task>:train`` to
    a file of training items for its shots. Without training items a task that needs shots holds
    aside its last items (shots + 1, named in tasks.json) and does not score them. A paper task
    without a file reads the hub; any other name is taken as an lm-eval task of that name.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = {name: Path(path) for name, path in settings.data.items()}
    unknown = {name.removesuffix(":train") for name in data} - set(PAPER_TASKS)
    if unknown:
        raise HarnessError(
            f"academic.data names {', '.join(sorted(unknown))}; local files are read for "
            f"{', '.join(PAPER_TASKS)}"
        )
    tasks = {name: _prepare_one(name, settings, data, out) for name in settings.tasks}
    (out / "tasks.json").write_text(
        json.dumps(tasks, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    return tasks


def _prepare_one(
    column: str, settings: AcademicSettings, data: Mapping[str, Path], out: Path
) -> Row:
    asked = settings.shots.get(column)
    paper = PAPER_TASKS.get(column)
    if paper is None:
        return {"task": column, "lm_eval_task": column, "shots": asked, "source": "hub"}
    shots = paper.shots if asked is None else int(asked)
    entry: Row = {
        key: value for key, value in asdict(paper).items() if key in ("metric", "filter", "scale")
    }
    entry |= {
        "task": f"selm_{column}",
        "lm_eval_task": paper.task,
        "shots": shots,
        "paper_shots": paper.shots,
        "source": paper.hub,
    }
    entry["shots_from"] = (
        "none" if not shots else "training items" if paper.trains else "the task's own examples"
    )
    lines = [
        f"include: lm_eval/tasks/{paper.yaml}",
        f"task: selm_{column}",
        f"num_fewshot: {shots}",
    ]
    if column in data:
        files, about = _write_data(paper, shots, data, out)
        entry |= about
        lines += ["dataset_path: json", "dataset_name: null", "dataset_kwargs:", "  data_files:"]
        lines += [f"    {split}: {name}" for split, name in files.items()]
    (out / f"{column}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return entry


def _write_data(
    paper: PaperTask, shots: int, data: Mapping[str, Path], out: Path
) -> tuple[dict[str, str], Row]:
    """The task's splits as JSONL in ``out``; returns file names by split and what tasks.json says
    about them.
    """
    column = paper.column
    path = data[column]
    rows = convert(column, path)
    about: Row = {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    splits = {paper.split: rows}
    if paper.trains:
        train = data.get(f"{column}:train")
        if train is not None:
            splits["train"] = convert(column, train)
        else:
            splits = {paper.split: rows[: -(shots + 1)], "train": rows[-(shots + 1) :]}
            about["shots_from"] = "held aside" if shots else "none"
            about["held_aside"] = [
                item_name(row, len(rows) - shots - 1 + i) for i, row in enumerate(splits["train"])
            ]
        if not splits[paper.split]:
            raise HarnessError(
                f"{path}: {len(rows)} items cannot spare {shots + 1} for shots; give "
                f"{column}:train a file or lower its shots"
            )
    for split, part in splits.items():
        write_jsonl(out / f"{column}_{split}.jsonl", part)
    return {split: f"{column}_{split}.jsonl" for split in splits}, about | {
        "items": len(splits[paper.split])
    }


def item_name(doc: Mapping[str, Any], position: int) -> str:
    """A stable name of an item: its own id where the data have one, else its position in the file."""
    for key in ("id", "ind", "question_id"):
        if doc.get(key) not in (None, ""):
            return str(doc[key])
    return str(position)
