"""Store folders and manifest rows read into frozen records and one long table; the parts of
``analysis.load`` that touch files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.records import HarnessError

STRINGS = ("benchmark", "benchmark_version", "item", "cluster", "metric", "status", "judge")


@dataclass(frozen=True)
class Stage:
    """One stage of the study. state: done | partial | failed | missing (not run, or waiting for an
    input that failed).
    """

    key: str
    name: str
    state: str
    folder: Path
    reason: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One arm with one seed. ``iterations[t]`` maps stage names to keys; ``c`` and ``kappa`` are
    per iteration, from 1.
    """

    name: str
    arm: Mapping[str, Any]
    label: str
    seed: int
    twin: str
    c: Mapping[int, float]
    kappa: Mapping[int, float]
    iterations: Mapping[int, Mapping[str, str]]

    @property
    def arm_name(self) -> str:
        """The run's name without its seed: the same for every seed of the arm."""
        return (
            ",".join(part for part in self.name.split(",") if not part.startswith("seed="))
            or "recipe"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is missing. Broken JSON raises HarnessError
    naming the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise HarnessError(
            f"{path}: not valid JSON ({error}); `selm verify` lists what depends on it"
        ) from error
    return data if isinstance(data, dict) else {}


def read_run(row: Mapping[str, Any]) -> Run:
    iterations = {int(entry["iteration"]): dict(entry["stages"]) for entry in row["iterations"]}
    return Run(
        row["run"],
        row.get("arm") or {},
        row.get("label") or row["run"],
        int(row["seed"]),
        row.get("twin") or "",
        _schedule(row.get("c"), iterations),
        _schedule(row.get("kappa"), iterations),
        dict(sorted(iterations.items())),
    )


def _schedule(value: Any, iterations: Mapping[int, Any]) -> dict[int, float]:
    """Coefficients by iteration from one number, a list (one entry per iteration, the base among
    them or not) or a mapping.
    """
    if isinstance(value, Mapping):
        return {int(k): float(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        first = 0 if len(value) == len(iterations) and 0 in iterations else 1
        return {i: float(v) for i, v in enumerate(value, first) if v is not None and i > 0}
    return {i: float(value) for i in iterations if i > 0} if isinstance(value, (int, float)) else {}


def read_stages(manifest: Mapping[str, Any], store: Path) -> dict[str, Stage]:
    found = {key: _stage(key, entry, store) for key, entry in manifest.get("stages", {}).items()}
    for key, stage in list(found.items()):
        if stage.state == "missing" and (reason := _blocked_by(key, found)):
            found[key] = Stage(key, stage.name, "missing", stage.folder, reason, stage.inputs)
    return found


def _stage(key: str, entry: Mapping[str, Any], store: Path) -> Stage:
    name, inputs = str(entry["stage"]), dict(entry.get("inputs") or {})
    folder = store / "objects" / key[:2] / key
    record = read_json(folder / "record.json")
    if record:
        return Stage(
            key,
            name,
            "done",
            folder,
            "",
            inputs,
            record.get("costs") or {},
            record.get("summary") or {},
            record.get("environment") or {},
        )
    partial = store / "partial" / key
    failure = read_json(store / "failed" / f"{key}.json")
    reason = " ".join(str(failure.get("reason", "")).split())
    if partial.is_dir():
        note = read_json(partial / "partial.json")
        reason = reason or str(note.get("note", "")) or "some rows ended in an error"
        return Stage(key, name, "partial", partial, reason, inputs, note.get("costs") or {})
    return Stage(key, name, "failed" if failure else "missing", folder, reason, inputs)


def _blocked_by(key: str, stages: Mapping[str, Stage]) -> str:
    """The nearest failed or partial ancestor of a stage that was not run."""
    queue, seen = list(stages[key].inputs.values()), {key}
    while queue:
        parent = stages.get(queue.pop(0))
        if parent is None or parent.key in seen:
            continue
        seen.add(parent.key)
        if parent.state in ("failed", "partial"):
            return f"waits for {parent.name}, which {'failed' if parent.state == 'failed' else 'is partial'}: {parent.reason}"
        queue.extend(parent.inputs.values())
    return ""


def read_scores(runs: Sequence[Run], stages: Mapping[str, Stage]) -> pd.DataFrame:
    tables: dict[str, pa.Table | None] = {}
    parts = []
    for number, run in enumerate(runs):
        for iteration, keys in run.iterations.items():
            for key in keys.values():
                if key not in tables:
                    tables[key] = _score_table(stages.get(key))
                table = tables[key]
                if table is not None and table.num_rows:
                    where = {
                        "run": pa.array(np.full(table.num_rows, number, dtype=np.int32)),
                        "iteration": np.full(table.num_rows, iteration, dtype=np.int16),
                    }
                    for name, column in where.items():
                        table = table.append_column(name, pa.array(column))
                    parts.append(table)
    if not parts:
        frame = pd.DataFrame(
            {
                **{name: pd.Categorical([]) for name in STRINGS},
                "value": np.array([], float),
                "repeat": np.array([], int),
            }
        )
        frame["run"], frame["iteration"] = np.array([], dtype=int), np.array([], dtype=int)
    else:
        frame = pa.concat_tables(parts).unify_dictionaries().to_pandas()
    codes = frame["run"].to_numpy(dtype=int)
    for name, values in (
        ("run", [run.name for run in runs]),
        ("arm", [run.arm_name for run in runs]),
        ("label", [run.label for run in runs]),
        ("twin", [run.twin for run in runs]),
    ):
        categories = list(dict.fromkeys(values))
        numbers = np.array([categories.index(v) for v in values], dtype=int)[codes]
        frame[name] = pd.Categorical.from_codes(numbers, dtype=pd.CategoricalDtype(categories))
    frame["seed"] = np.array([run.seed for run in runs] or [0], dtype=int)[codes]
    return frame


def _score_table(stage: Stage | None) -> pa.Table | None:
    path = stage.folder / "scores.parquet" if stage and stage.state in ("done", "partial") else None
    if path is None or not path.is_file():
        return None
    try:
        table = pq.read_table(
            path,
            columns=[*STRINGS, "value", "repeat"],
            read_dictionary=list(STRINGS),
            use_threads=False,
        )
    except (pa.ArrowException, OSError) as error:
        raise HarnessError(
            f"{path}: cannot be read as score rows ({error}); `selm verify` lists what depends on "
            "it"
        ) from error
    for name in STRINGS:  # files written with dictionaries of another index type
        index = table.schema.get_field_index(name)
        table = table.set_column(
            index, name, table.column(name).cast(pa.dictionary(pa.int32(), pa.string()))
        )
    return table
