"""A study's stored results as one object: the long table of score rows, and what is missing, with
the reason.

Reads ``manifest.json`` and store folders only; holds no torch and loads no model. Everything
returned is a function of those files: rows are sorted, and the order in which stages finished
changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.layout import Layout, layout
from harness.records import SCHEMA_VERSION, HarnessError

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
        # The base's own entry stands first where there are as many as iterations.
        first = min(iterations) if len(value) == len(iterations) and 0 in iterations else 1
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
            return (
                f"waits for {parent.name}, which "
                f"{'failed' if parent.state == 'failed' else 'is partial'}: {parent.reason}"
            )
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


__all__ = [
    "Cell",
    "Checkpoint",
    "Run",
    "Stage",
    "StudyData",
    "iterate",
    "load_study",
    "natural",
    "read_json",
    "stage_of",
]

SCORING_STAGES = ("judge.mt_bench", "judge.alpaca_eval", "academic", "heldout", "diagnostics")
"""Stages that write scores.parquet; other stages that do are read as well."""


@dataclass(frozen=True)
class Checkpoint:
    """One row of a table: an arm after an iteration, with one run per seed. Iteration 0 is the
    shared base, ``arm`` then empty.
    """

    arm: str
    label: str
    iteration: int
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        return self.label if self.iteration == 0 else f"{self.label}, iter {self.iteration}"


@dataclass(frozen=True)
class Cell:
    """Scores of one checkpoint on one metric: the crossed layout, and what is not in it.

    points: mean over all surviving rows, one per seed of the layout (NaN without any). statuses:
    score rows by status. absent: why a seed has no rows at all, one sentence per run.
    """

    layout: Layout
    points: np.ndarray
    statuses: Mapping[str, int]
    absent: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.layout.expected > 0 and self.layout.scored == self.layout.expected


class StudyData:
    """A study read from disk; see ``load_study``. ``scores`` has one row per score and run (the
    base's rows once per run).
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        runs: Sequence[Run],
        stages: Mapping[str, Stage],
        scores: pd.DataFrame,
    ) -> None:
        self.manifest = manifest
        self.name = str(manifest["study"]["name"])
        self.question = str(manifest["study"].get("question", ""))
        self.recipe: Mapping[str, Any] = manifest.get("recipe") or {}
        self.axes: Mapping[str, Sequence[Any]] = manifest.get("axes") or {}
        self.declare: Mapping[str, Any] = manifest.get("declare") or {}
        self.baseline: Mapping[str, Any] = manifest.get("baseline") or {}
        for part in ("benchmarks", "diagnostics"):
            if part not in manifest:
                raise HarnessError(
                    f"the manifest of {self.name} was written by an earlier version (no {part!r}); "
                    "`selm run` or `selm report` with the study's YAML file writes it again"
                )
        self.benchmarks: Sequence[Mapping[str, Any]] = manifest["benchmarks"]
        self.shown_diagnostics: Sequence[Mapping[str, Any]] = manifest["diagnostics"]
        self.runs = tuple(runs)
        self.seeds = tuple(sorted({run.seed for run in runs}))
        self.stages = stages
        self.scores = scores
        self._cells: dict[tuple[Any, ...], Cell] = {}

    # -- what was planned --------------------------------------------------------------------------
    @cached_property
    def arms(self) -> dict[str, list[Run]]:
        """Arm name → its runs by seed, arms in study order."""
        arms: dict[str, list[Run]] = {}
        for run in self.runs:
            arms.setdefault(run.arm_name, []).append(run)
        return {arm: sorted(runs, key=lambda run: run.seed) for arm, runs in arms.items()}

    @cached_property
    def baseline_arm(self) -> str:
        """Name of the arm the others are compared with, or an empty text."""
        twins = {run.twin for run in self.runs if run.twin}
        return next((run.arm_name for run in self.runs if run.name in twins), "")

    @property
    def last_iteration(self) -> int:
        return max((max(run.iterations, default=0) for run in self.runs), default=0)

    def own_last(self, arm: str) -> int:
        """An arm's last iteration: arms may differ in it (a study of the number of iterations)."""
        return max((max(run.iterations, default=0) for run in self.arms.get(arm, ())), default=0)

    def at(self, arm: str, iteration: int) -> Checkpoint | None:
        """The checkpoint of an arm after an iteration; at the study's last, the arm's own last."""
        return self.checkpoint(
            arm, self.own_last(arm) if iteration == self.last_iteration else iteration
        )

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The bases (one per different first model), then arm by arm its iterations; only those
        that the study scores.
        """
        bases: dict[tuple[str, ...], Checkpoint] = {}
        rest = []
        for arm, runs in self.arms.items():
            keys = _bases(runs)
            if keys not in bases and any(self._scoring(run, 0) for run in runs):
                warm = any(-1 in run.iterations for run in runs)
                bases[keys] = Checkpoint("", "Warm-up" if warm else "Base", 0, tuple(runs))
            for iteration in sorted({i for run in runs for i in run.iterations if i > 0}):
                if any(self._scoring(run, iteration) for run in runs):
                    rest.append(Checkpoint(arm, runs[0].label, iteration, tuple(runs)))
        named = list(bases.values())
        if len(named) > 1:
            named = [
                Checkpoint("", f"Base of {base.runs[0].label}", 0, base.runs) for base in named
            ]
        return named + rest

    def checkpoint(self, arm: str, iteration: int) -> Checkpoint | None:
        """The checkpoint of an arm after an iteration; at iteration 0 the base that the arm started
        from.
        """
        if iteration > 0:
            return next(
                (c for c in self.checkpoints if c.arm == arm and c.iteration == iteration), None
            )
        runs = tuple(self.arms.get(arm, ()))
        if not runs or not any(self._scoring(run, 0) for run in runs):
            return None
        found = next(
            (c for c in self.checkpoints if c.iteration == 0 and _bases(c.runs) == _bases(runs)),
            None,
        )
        return Checkpoint("", found.label if found else "Base", 0, runs)

    def _scoring(self, run: Run, iteration: int) -> bool:
        stages = run.iterations.get(iteration, {})
        return any(name in stages for name in SCORING_STAGES)

    def title_of(self, name: str) -> str:
        """``run@iteration`` as the tables call it: the arm's label, iteration and seed."""
        run_name, _, iteration = name.rpartition("@")
        run = next((run for run in self.runs if run.name == run_name), None)
        if run is None:
            return name
        return (
            f"Base, seed {run.seed}"
            if iteration == "0"
            else f"{run.label}, iter {iteration}, seed {run.seed}"
        )

    # -- scores ------------------------------------------------------------------------------------
    @cached_property
    def _positions(self) -> dict[tuple[str, int, str, str], np.ndarray]:
        groups = self.scores.groupby(
            ["run", "iteration", "benchmark", "metric"], observed=True, sort=False
        )
        return cast("dict[tuple[str, int, str, str], np.ndarray]", dict(groups.indices))

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        frame = self.scores
        codes = {
            name: frame[name].cat.codes.to_numpy()
            for name in ("cluster", "status", "judge", "benchmark_version")
        }
        return {"value": frame["value"].to_numpy(dtype=float), "item": frame["item"], **codes}

    def metrics(self, benchmark: str = "") -> list[tuple[str, str]]:
        """(benchmark, metric) pairs that hold rows, sorted."""
        return sorted({(b, m) for _, _, b, m in self._positions if benchmark in ("", b)})

    def rows(self, run: str, iteration: int, benchmark: str, metric: str) -> pd.DataFrame:
        """Score rows of one run at one iteration."""
        return self.scores.iloc[
            self._positions.get((run, iteration, benchmark, metric), np.array([], dtype=int))
        ]

    def cell(
        self,
        checkpoint: Checkpoint,
        benchmark: str,
        metric: str,
        part: str = "",
        scale: tuple[float, float] | None = None,
    ) -> Cell:
        """Scores of a checkpoint. ``part`` keeps the items whose name ends so (":1" is MT-Bench's
        first turn); scale: see ``Layout``.

        A run without any row counts as missing every row that the fullest run of the study has.
        """
        key = (
            checkpoint.iteration,
            tuple(run.name for run in checkpoint.runs),
            benchmark,
            metric,
            part,
            scale,
        )
        if key not in self._cells:
            self._cells[key] = self._build_cell(checkpoint, benchmark, metric, part, scale)
        return self._cells[key]

    def _build_cell(
        self,
        checkpoint: Checkpoint,
        benchmark: str,
        metric: str,
        part: str,
        scale: tuple[float, float] | None,
    ) -> Cell:
        arrays = self._arrays
        rows_of = {
            run.seed: self._select(run.name, checkpoint.iteration, benchmark, metric, part)
            for run in checkpoint.runs
        }
        absent = tuple(
            f"seed {run.seed}: {reason}"
            for run in checkpoint.runs
            if not len(rows_of[run.seed])
            and (reason := self.why_absent(run, checkpoint.iteration, benchmark))
        )
        model = self._fullest(benchmark, metric, part)
        seeds = [np.full(len(rows) or len(model), seed) for seed, rows in rows_of.items()]
        clusters = [arrays["cluster"][rows if len(rows) else model] for rows in rows_of.values()]
        values = [
            arrays["value"][rows] if len(rows) else np.full(len(model), np.nan)
            for rows in rows_of.values()
        ]
        names = self.scores["cluster"].cat.categories.to_numpy(dtype=str)
        built = layout(
            np.concatenate(seeds), names[np.concatenate(clusters)], np.concatenate(values), scale
        )
        points = np.array([_mean(values[list(rows_of).index(seed)]) for seed in built.seeds])
        every = np.concatenate(list(rows_of.values()))
        self._refuse_mixture(checkpoint, benchmark, every)
        codes, counts = np.unique(arrays["status"][every], return_counts=True)
        categories = self.scores["status"].cat.categories
        statuses = {
            str(categories[code]): int(count) for code, count in zip(codes, counts, strict=True)
        }
        return Cell(built, points, dict(sorted(statuses.items())), absent)

    def identities(self, rows: np.ndarray) -> list[str]:
        """Who judged these rows and on what (judge, benchmark version with the hashes of its
        files), each once, sorted.
        """
        names = ("judge", "benchmark_version")
        pairs = np.unique(np.stack([self._arrays[name][rows] for name in names], axis=1), axis=0)
        words = [self.scores[name].cat.categories for name in names]
        return sorted(
            " on ".join(
                str(word[code]) for word, code in zip(words, pair, strict=True) if word[code]
            )
            for pair in pairs
        )

    def identity(self, checkpoint: Checkpoint, benchmark: str, metric: str) -> str:
        """The one identity of a checkpoint's rows of a metric; empty without rows."""
        found = [
            self._select(run.name, checkpoint.iteration, benchmark, metric, "")
            for run in checkpoint.runs
        ]
        rows = np.concatenate(found) if found else np.array([], dtype=int)
        return " and ".join(self.identities(rows)) if len(rows) else ""

    def _refuse_mixture(self, checkpoint: Checkpoint, benchmark: str, rows: np.ndarray) -> None:
        if any(
            len(np.unique(self._arrays[name][rows])) > 1 for name in ("judge", "benchmark_version")
        ):
            raise HarnessError(
                f"{checkpoint.title}: {benchmark} mixes rows of "
                f"{' and '.join(self.identities(rows))}; scores of different judges, questions or "
                "references are never averaged. `selm invalidate` the one that is not wanted and "
                "run again"
            )

    def _select(
        self, run: str, iteration: int, benchmark: str, metric: str, part: str
    ) -> np.ndarray:
        rows = self._positions.get((run, iteration, benchmark, metric), np.array([], dtype=int))
        if part and len(rows):
            rows = rows[self._arrays["item"].iloc[rows].astype(str).str.endswith(part).to_numpy()]
        return rows

    def _fullest(self, benchmark: str, metric: str, part: str) -> np.ndarray:
        """Rows of the first run that has most: what a run without any row should have had."""
        found = [
            (-len(rows), order, key)
            for order, (key, rows) in enumerate(self._positions.items())
            if key[2:] == (benchmark, metric)
        ]
        if not found:
            return np.array([], dtype=int)
        run, iteration, _, _ = min(found)[2]
        return self._select(run, iteration, benchmark, metric, part)

    # -- stages ------------------------------------------------------------------------------------
    def stage(self, run: Run, iteration: int, name: str) -> Stage | None:
        key = run.iterations.get(iteration, {}).get(name)
        return self.stages.get(key) if key else None

    def summary(self, run: Run, iteration: int, name: str) -> Mapping[str, Any]:
        """``summary.json`` of a scoring stage, or of its partial folder; empty without one."""
        stage = self.stage(run, iteration, name)
        return (
            read_json(stage.folder / "summary.json")
            if stage and stage.state in ("done", "partial")
            else {}
        )

    def why_absent(self, run: Run, iteration: int, benchmark: str) -> str:
        """Why a run has no rows of a benchmark: the failed or missing stage, with its reason."""
        stage = self.stage(run, iteration, stage_of(benchmark))
        return (
            f"{stage.name} {stage.state}" + (f" ({stage.reason})" if stage.reason else "")
            if stage and stage.state != "done"
            else ""
        )

    def input_folder(self, stage: Stage | None, name: str) -> Path | None:
        """Folder of a stage's input when it is done."""
        source = self.stages.get(stage.inputs.get(name, "")) if stage else None
        return source.folder if source and source.state == "done" else None

    @cached_property
    def unfinished(self) -> list[tuple[Stage, list[str]]]:
        """Stages that are not done, with the runs and iterations that wait for them, in study
        order.
        """
        users: dict[str, list[str]] = {}
        for run in self.runs:
            for iteration, stages in run.iterations.items():
                for key in stages.values():
                    users.setdefault(key, []).append(f"{run.name}@{iteration}")
        return [
            (stage, users.get(key, []))
            for key, stage in self.stages.items()
            if stage.state != "done"
        ]


def _bases(runs: Sequence[Run]) -> tuple[str, ...]:
    """Keys of the first model, seed by seed."""
    return tuple(run.iterations.get(0, {}).get("base", "") for run in runs)


def stage_of(benchmark: str) -> str:
    """The stage that scores a benchmark; academic benchmarks are named by their table column."""
    known = {
        "mt_bench": "judge.mt_bench",
        "alpaca_eval": "judge.alpaca_eval",
        "heldout": "heldout",
        "heldout_ood": "heldout",
        "diagnostics": "diagnostics",
        "ranker_alpaca_eval": "heldout",
    }
    return known.get(benchmark, "academic")


def _mean(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def natural(text: str) -> tuple[int, float, str]:
    """Sort key: numbers by value before other text."""
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def load_study(study_dir: Path, store_dir: Path) -> StudyData:
    """Read a study's manifest and every stored score row.

    Raises HarnessError when there is no manifest, or it is of another schema; a store without
    results is a study without scores.
    """
    path = Path(study_dir) / "manifest.json"
    if not path.is_file():
        raise HarnessError(f"{path} is missing; run `selm run` on the study first")
    manifest = read_json(path)
    if manifest.get("schema") != SCHEMA_VERSION:
        raise HarnessError(
            f"{path}: schema {manifest.get('schema')!r}, this version reads {SCHEMA_VERSION}; run "
            "the study again with this version"
        )
    stages = read_stages(manifest, Path(store_dir))
    runs = [read_run(row) for row in manifest.get("runs", [])]
    return StudyData(manifest, runs, stages, read_scores(runs, stages))


def iterate(data: StudyData) -> Iterator[tuple[Run, int]]:
    """Every run and iteration, in study order."""
    for run in data.runs:
        for iteration in run.iterations:
            yield run, iteration
