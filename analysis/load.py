"""A study's stored results as one object: the long table of score rows, and what is missing, with
the reason.

Reads ``manifest.json`` and store folders only; holds no torch and loads no model. Everything
returned is a function of those files: rows are sorted, and the order in which stages finished
changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.layout import Layout, layout
from harness.records import SCHEMA_VERSION, HarnessError, read_jsonl

STRINGS = ("benchmark", "benchmark_version", "item", "cluster", "metric", "status", "judge")
NO_ROWS = np.array([], dtype=int)
WORDS = pa.dictionary(pa.int32(), pa.string())
NO_SCORES = pa.schema(
    [(name, WORDS) for name in STRINGS]
    + [("value", pa.float64())]
    + [(name, pa.int32()) for name in ("repeat", "run", "iteration")]
)
DIAGNOSTICS = "diagnostics"
"""Stage and benchmark name of the diagnostics."""
RANKER_DIFFERENCES = "ranker_alpaca_eval"
"""Benchmark name, in the held-out stage's rows, of the ranker's rewards of AlpacaEval's answers."""
Asked = ParamSpec("Asked")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stage:
    """state: done | partial | failed | missing (not run, or it waits for what failed)."""

    key: str
    name: str
    state: str
    folder: Path
    reason: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[Mapping[str, Any]] = ()

    @property
    def has_rows(self) -> bool:
        return self.state in ("done", "partial")

    def file(self, name: str) -> Path | None:
        """A file of a stage that has rows, where it is there."""
        path = self.folder / name
        return path if self.has_rows and path.is_file() else None


@dataclass(frozen=True, eq=False)
class Run:
    """One arm with one seed, equal to itself alone. ``iterations[t]`` maps stage names to keys; per
    iteration, from 1, ``c`` is the coefficient on log π(y) and ``kappa`` = 2c/β. baseline_run: name
    of the run that this one is compared with. given: it was trained elsewhere, and its iterations
    are steps; absent: why a stage of a step is not there. mode: ``loop.mode``.
    """

    name: str
    arm: Mapping[str, Any]
    label: str
    seed: int
    baseline_run: str
    c: Mapping[int, float]
    kappa: Mapping[int, float]
    iterations: Mapping[int, Mapping[str, str]]
    given: bool = False
    absent: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    mode: str = ""

    @property
    def arm_name(self) -> str:
        """The run's name without its seed: the same for every seed of the arm."""
        parts = [part for part in self.name.split(",") if not part.startswith("seed=")]
        return ",".join(parts) or "recipe"

    @property
    def counted(self) -> str:
        """What its iterations are called before their number."""
        return "step" if self.given else "iter"

    def title(self, iteration: int) -> str:
        """Its label at an iteration; the first model's, before any."""
        if iteration <= 0:
            return "Base" if iteration < 0 else self.start
        return f"{self.label}, {self.counted} {iteration}"

    @property
    def last_iteration(self) -> int:
        return max(self.iterations, default=0)

    @property
    def start(self) -> str:
        """What iteration 0 is: the first model or, where a warm-up comes before, what it gave."""
        return "Warm-up" if -1 in self.iterations else "Base"


@dataclass(frozen=True)
class Checkpoint:
    """An arm after an iteration, one run per seed. Iteration 0 is the shared base or its warm-up
    (the base is then iteration -1); ``arm`` is empty for both.
    """

    arm: str
    label: str
    iteration: int
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        return self.label if self.iteration <= 0 else self.runs[0].title(self.iteration)

    @property
    def place(self) -> dict[str, object]:
        """The fields by which an observation says which checkpoint it is of."""
        return {"checkpoint": self.title, "arm": self.arm, "iteration": self.iteration}

    @property
    def c(self) -> float | None:
        return self.runs[0].c.get(self.iteration)

    @property
    def kappa(self) -> float | None:
        return self.runs[0].kappa.get(self.iteration)


@dataclass(frozen=True)
class Cell:
    """points: mean over surviving rows by the layout's seeds (NaN without any). statuses: score
    rows by status. absent: why a seed has no rows at all, one sentence per run.
    """

    layout: Layout
    points: np.ndarray
    statuses: Mapping[str, int]
    absent: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.layout.expected > 0 and self.layout.scored == self.layout.expected

    def point(self, seed: int) -> float:
        """A seed's point, NaN of one that is not there."""
        there = seed in self.layout.seeds
        return float(self.points[self.layout.seeds.index(seed)]) if there else np.nan

    @property
    def not_run(self) -> int:
        """Score rows that should be there and are not, not even with a status."""
        return self.layout.expected - sum(self.statuses.values())


def parsed(path: Path) -> Any:
    """What a JSON file holds, None of a missing file. HarnessError names a broken one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise HarnessError(
            f"{path}: not valid JSON ({error}); `selm verify` lists what depends on it"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty of a missing file."""
    data = parsed(path)
    return data if isinstance(data, dict) else {}


def _run(row: Mapping[str, Any]) -> Run:
    """A run as the manifest tells it: its ``c`` and ``kappa`` begin with the first model's."""
    iterations = {int(entry["iteration"]): dict(entry["stages"]) for entry in row["iterations"]}

    def trained(values: Sequence[float | None]) -> dict[int, float]:
        told = zip(sorted(iterations), values, strict=True)
        return {i: float(value) for i, value in told if i > 0 and value is not None}

    return Run(
        **{name: row[name] for name in ("arm", "label", "seed")},
        name=row["run"],
        baseline_run=row["baseline_run"] or "",
        c=trained(row["c"]),
        kappa=trained(row["kappa"]),
        iterations=dict(sorted(iterations.items())),
        given=bool(row.get("given")),
        absent={int(step): reasons for step, reasons in row.get("absent", {}).items()},
        mode=row.get("mode", ""),
    )


def _stage(key: str, entry: Mapping[str, Any], store: Path) -> Stage:
    folder = store / "objects" / key[:2] / key
    stage = Stage(key, str(entry["stage"]), "missing", folder, inputs=entry["inputs"])
    record = read_json(folder / "record.json")
    if record:
        told: dict[str, Any] = {
            name: record.get(name) or {} for name in ("settings", "costs", "summary", "environment")
        }
        told["rows"] = int(record.get("rows") or 0)
        return replace(stage, state="done", left_out=record.get("left_out") or (), **told)
    partial = store / "partial" / key
    failure = read_json(store / "failed" / f"{key}.json")
    reason = " ".join(str(failure.get("reason", "")).split())
    if partial.is_dir():
        note = read_json(partial / "partial.json")
        reason = reason or str(note.get("note", "")) or "some rows ended in an error"
        costs = note.get("costs") or {}
        return replace(stage, state="partial", folder=partial, reason=reason, costs=costs)
    return replace(stage, state="failed" if failure else "missing", reason=reason)


def _blocked_by(key: str, stages: Mapping[str, Stage]) -> str:
    """The nearest failed or partial ancestor of a stage that was not run, in words."""
    words = {"failed": "failed", "partial": "is partial"}
    queue, seen = list(stages[key].inputs.values()), {key}
    while queue:
        parent = stages.get(queue.pop(0))
        if parent is None or parent.key in seen:
            continue
        seen.add(parent.key)
        if parent.state in words:
            return f"waits for {parent.name}, which {words[parent.state]}: {parent.reason}"
        queue.extend(parent.inputs.values())
    return ""


def _scores(runs: Sequence[Run], stages: Mapping[str, Stage]) -> pd.DataFrame:
    """One row per score and run, with the run's name, iteration and seed beside it."""
    tables: dict[str, pa.Table | None] = {}
    parts = []
    for number, run in enumerate(runs):
        for iteration, keys in run.iterations.items():
            for key in keys.values():
                if key not in tables:
                    tables[key] = _score_table(stages.get(key))
                table = tables[key]
                if table is not None and table.num_rows:
                    here = np.full(table.num_rows, number, dtype=np.int32)
                    at = np.full(table.num_rows, iteration, dtype=np.int32)
                    table = table.append_column("run", pa.array(here))
                    parts.append(table.append_column("iteration", pa.array(at)))
    whole = pa.concat_tables(parts or [NO_SCORES.empty_table()]).unify_dictionaries()
    frame: pd.DataFrame = whole.to_pandas()
    codes = frame["run"].to_numpy(dtype=int)
    names = pd.CategoricalDtype([run.name for run in runs])
    frame["run"] = pd.Categorical.from_codes(codes, dtype=names)
    frame["seed"] = np.array([run.seed for run in runs] or [0], dtype=int)[codes]
    return frame


def _score_table(stage: Stage | None) -> pa.Table | None:
    path = stage.file("scores.parquet") if stage else None
    if stage is None or path is None:
        return None
    columns = [*STRINGS, "value", "repeat"]
    try:
        table = pq.read_table(path, columns=columns, read_dictionary=STRINGS, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise HarnessError(
            f"{path}: cannot be read as score rows ({error}); `selm verify` lists what depends on "
            "it"
        ) from error
    for name in STRINGS:  # files written with dictionaries of another index type
        words = table.column(name).cast(WORDS)
        if name == "judge":
            words = _as_served(words, stage)
        table = table.set_column(table.schema.get_field_index(name), name, words)
    return table


def _as_served(judges: pa.ChunkedArray, stage: Stage) -> pa.ChunkedArray:
    """The judge's name with that by which its endpoint answered, where that is another: an alias
    that moves on between two stages is two judges, whose scores are never averaged.
    """
    path = stage.file("judgments.jsonl") if stage.name.startswith("judge.") else None
    rows = read_jsonl(path) if path else ()
    served = next((str(row["model"]) for row in rows if row.get("model")), "")
    names = [name.as_py() for name in judges.unique()]
    if not served or {name.partition("@")[0] for name in names} <= {served, ""}:
        return judges
    known = {name: f"{name} as {served}" if name else "" for name in names}
    renamed = [known[name] for name in judges.to_pylist()]
    return pa.chunked_array([pa.array(renamed).dictionary_encode()]).cast(WORDS)


def once(
    function: Callable[Concatenate[StudyData, Asked], Result],
) -> Callable[Concatenate[StudyData, Asked], Result]:
    """A function of a study and hashable arguments that is computed once for each study object."""

    @wraps(function)
    def found(data: StudyData, /, *args: Asked.args, **kwargs: Asked.kwargs) -> Result:
        key = (function.__module__, function.__qualname__, *args, *kwargs.items())
        if key not in data.computed:
            data.computed[key] = function(data, *args, **kwargs)
        return cast("Result", data.computed[key])

    return found


class StudyData:
    """A study read from disk. ``scores``: one row per score and run (the base's once per run)."""

    def __init__(
        self,
        manifest: Mapping[str, Any],
        runs: Sequence[Run],
        stages: Mapping[str, Stage],
        scores: pd.DataFrame,
    ) -> None:
        self.manifest = manifest
        self.name = str(manifest["study"]["name"])
        self.question = str(manifest["study"]["question"])
        self.recipe: Mapping[str, Any] = manifest["recipe"]
        self.axes: Mapping[str, Sequence[Any]] = manifest["axes"]
        self.declare: Mapping[str, Any] = manifest["declare"]
        self.baseline: Mapping[str, Any] = manifest["baseline"]
        self.min_complete = float(self.declare["completeness_bar"])
        """The share of score rows a cell needs before it has a value."""
        self.benchmarks: Sequence[Mapping[str, Any]] = manifest["benchmarks"]
        """What the study's benchmarks show, as their records say it."""
        self.shown_diagnostics: Sequence[Mapping[str, Any]] = manifest["diagnostics"]
        self.runs = tuple(runs)
        self.seeds = tuple(sorted({run.seed for run in runs}))
        self.stages = stages
        self.scores = scores
        self.computed: dict[tuple[Any, ...], Any] = {}
        """What ``once`` has found."""

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
        named = {run.baseline_run for run in self.runs}
        return next((run.arm_name for run in self.runs if run.name in named), "")

    def label(self, arm: str) -> str:
        """An arm as tables call it; empty for no arm."""
        return self.arms[arm][0].label if arm else ""

    @cached_property
    def last_iteration(self) -> int:
        return max((run.last_iteration for run in self.runs), default=0)

    @property
    def given(self) -> bool:
        """Whether its checkpoints were trained elsewhere."""
        return any(run.given for run in self.runs)

    @property
    def trains(self) -> bool:
        """Whether it trains: models scored as they are and given checkpoints are not its own."""
        return self.last_iteration > 0 and not self.given

    @cached_property
    def iterations(self) -> list[int]:
        """The iterations, or given steps, from the first model (0) on."""
        return sorted({i for run in self.runs for i in run.iterations if i >= 0}) or [0]

    def own_last(self, arm: str) -> int:
        """An arm's last iteration: arms may differ in it (a study of the number of iterations)."""
        return max((run.last_iteration for run in self.arms.get(arm, ())), default=0)

    def is_end(self, checkpoint: Checkpoint) -> bool:
        """Whether it is a base or an arm's last iteration."""
        return checkpoint.iteration <= 0 or checkpoint.iteration == self.own_last(checkpoint.arm)

    def at(self, arm: str, iteration: int) -> Checkpoint | None:
        """An arm's checkpoint after an iteration; at the study's last one the arm's own last."""
        last = iteration == self.last_iteration
        return self.checkpoint(arm, self.own_last(arm) if last else iteration)

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Those scored: the bases (one per first model), then arm by arm its iterations."""
        bases: dict[tuple[int, tuple[str, ...]], Checkpoint] = {}
        rest = []
        for arm, runs in self.arms.items():
            for iteration in sorted(set().union(*(run.iterations for run in runs))):
                scored = set(self.scoring_stages.values())
                if all(scored.isdisjoint(run.iterations.get(iteration, ())) for run in runs):
                    continue
                if iteration > 0:
                    rest.append(Checkpoint(arm, runs[0].label, iteration, tuple(runs)))
                    continue
                base = Checkpoint("", runs[0].title(iteration), iteration, tuple(runs))
                bases.setdefault((iteration, _bases(runs, iteration)), base)
        labels = Counter(base.label for base in bases.values())
        for key, base in bases.items():
            if labels[base.label] > 1:
                bases[key] = replace(base, label=f"{base.label} of {base.runs[0].label}")
        return [*bases.values(), *rest]

    def checkpoint(self, arm: str, iteration: int) -> Checkpoint | None:
        """An arm's checkpoint; at iteration 0 the base that it started from."""
        if iteration > 0:
            there = (c for c in self.checkpoints if c.arm == arm and c.iteration == iteration)
            return next(there, None)
        runs = tuple(self.arms.get(arm, ()))
        for base in self.checkpoints:
            if runs and base.iteration == 0 and _bases(base.runs) == _bases(runs):
                return replace(base, runs=runs)
        return None

    @cached_property
    def scoring_stages(self) -> Mapping[str, str]:
        """Benchmark name in score rows → the stage that writes them."""
        named = {DIAGNOSTICS: DIAGNOSTICS}
        for benchmark in self.benchmarks:
            for measure in benchmark["measures"]:
                named[measure["benchmark"]] = benchmark["stage"]
            if benchmark["name"] == "heldout":
                named[RANKER_DIFFERENCES] = benchmark["stage"]
        return named

    def title_of(self, name: str) -> str:
        """``run@iteration`` as the tables call it: the arm's label, iteration and seed."""
        run_name, _, iteration = name.rpartition("@")
        run = next((run for run in self.runs if run.name == run_name), None)
        if run is None:
            return name
        return f"{run.title(int(iteration))}, seed {run.seed}"

    # -- scores ------------------------------------------------------------------------------------
    @cached_property
    def _positions(self) -> dict[tuple[str, int, str, str], np.ndarray]:
        names = ["run", "iteration", "benchmark", "metric"]
        groups = self.scores.groupby(names, observed=True, sort=False)
        return cast("dict[tuple[str, int, str, str], np.ndarray]", dict(groups.indices))

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        """Values, and the codes of the words, as arrays: a million rows are read many times."""
        names = ("cluster", "status", "judge", "benchmark_version")
        codes = {name: self.scores[name].cat.codes.to_numpy() for name in names}
        return {"value": self.scores["value"].to_numpy(dtype=float), **codes}

    def metrics(self, benchmark: str = "") -> list[tuple[str, str]]:
        """(benchmark, metric) pairs that hold rows, sorted."""
        return sorted({(b, m) for _, _, b, m in self._positions if benchmark in ("", b)})

    def rows(self, run: str, iteration: int, benchmark: str, metric: str) -> pd.DataFrame:
        """Score rows of one run at one iteration."""
        return self.scores.iloc[self._select(run, iteration, benchmark, metric)]

    @once
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
        arrays, of = self._arrays, (checkpoint.iteration, benchmark, metric, part)
        model = self._fullest(benchmark, metric, part)
        found, seeds, clusters, values, absent = [], [], [], {}, []
        for run in checkpoint.runs:
            rows = self._select(run.name, *of)
            shape = rows if len(rows) else model
            found.append(rows)
            seeds.append(np.full(len(shape), run.seed))
            clusters.append(arrays["cluster"][shape])
            values[run.seed] = arrays["value"][rows] if len(rows) else np.full(len(shape), np.nan)
            reason = "" if len(rows) else self.why_absent(run, checkpoint.iteration, benchmark)
            absent += [f"seed {run.seed}: {reason}"] * bool(reason)
        names = self.scores["cluster"].cat.categories.to_numpy(dtype=str)
        columns = np.concatenate(seeds), names[np.concatenate(clusters)]
        built = layout(*columns, np.concatenate(list(values.values())), scale)
        kept = (values[seed][~np.isnan(values[seed])] for seed in built.seeds)
        points = np.array([some.mean() if len(some) else np.nan for some in kept])
        every = np.concatenate(found)
        identities = self._identities(every)
        if len(identities) > 1:
            raise HarnessError(
                f"{checkpoint.title}: {benchmark} mixes rows of {' and '.join(identities)}; scores "
                "of different judges, questions or references are never averaged. `selm "
                "invalidate` the one that is not wanted and run again"
            )
        words = self.scores["status"].cat.categories
        codes, counts = np.unique(arrays["status"][every], return_counts=True)
        statuses = dict(zip(words[codes].astype(str), counts.tolist(), strict=True))
        return Cell(built, points, dict(sorted(statuses.items())), tuple(absent))

    def _identities(self, rows: np.ndarray) -> list[str]:
        """Every judge and benchmark version (with its files' hashes) of these rows, sorted."""
        judges, versions = (
            self.scores[name].cat.categories for name in ("judge", "benchmark_version")
        )
        judge, version = (self._arrays[name][rows] for name in ("judge", "benchmark_version"))
        codes = np.unique(judge.astype(int) * len(versions) + version).tolist()
        pairs = (divmod(code, len(versions)) for code in codes)
        return sorted(" on ".join(filter(None, (judges[j], versions[v]))) for j, v in pairs)

    def identity(self, checkpoint: Checkpoint, benchmark: str, metric: str) -> str:
        """The one identity of a checkpoint's rows of a metric; empty without rows."""
        of = (checkpoint.iteration, benchmark, metric)
        rows = np.concatenate([NO_ROWS, *(self._select(run.name, *of) for run in checkpoint.runs)])
        return " and ".join(self._identities(rows))

    def _select(
        self, run: str, iteration: int, benchmark: str, metric: str, part: str = ""
    ) -> np.ndarray:
        rows = self._positions.get((run, iteration, benchmark, metric), NO_ROWS)
        if part and len(rows):
            items = self.scores["item"].iloc[rows].astype(str)
            rows = rows[items.str.endswith(part).to_numpy()]
        return rows

    def _fullest(self, benchmark: str, metric: str, part: str) -> np.ndarray:
        """Rows of the first run that has most: what a run without any row should have had."""
        there = [at for at in self._positions if at[2:] == (benchmark, metric)]
        fullest = max(there, key=lambda at: len(self._positions[at]), default=None)
        return self._select(*fullest, part) if fullest else NO_ROWS

    # -- stages ------------------------------------------------------------------------------------
    def stage(self, run: Run, iteration: int, name: str) -> Stage | None:
        return self.stages.get(run.iterations.get(iteration, {}).get(name, ""))

    def stage_of(self, run: Run, iteration: int, benchmark: str) -> Stage | None:
        """The stage that scored a benchmark, named as its score rows name it."""
        return self.stage(run, iteration, self.scoring_stages.get(benchmark, ""))

    def summary(self, run: Run, iteration: int, benchmark: str) -> Mapping[str, Any]:
        """``summary.json`` of the scoring stage, also of a partial one; else empty."""
        stage = self.stage_of(run, iteration, benchmark)
        return read_json(stage.folder / "summary.json") if stage and stage.has_rows else {}

    def why_absent(self, run: Run, iteration: int, benchmark: str) -> str:
        """Why a run has no rows of a benchmark: the failed or missing stage, with its reason."""
        stage = self.stage_of(run, iteration, benchmark)
        if stage is None:
            return run.absent.get(iteration, {}).get(self.scoring_stages.get(benchmark, ""), "")
        if stage.state == "done":
            return ""
        return f"{stage.name} {stage.state}" + (f" ({stage.reason})" if stage.reason else "")

    def input_folder(self, stage: Stage | None, name: str) -> Path | None:
        """Folder of a stage's input when it is done."""
        source = self.stages.get(stage.inputs.get(name, "")) if stage else None
        return source.folder if source and source.state == "done" else None

    @cached_property
    def unfinished(self) -> list[tuple[Stage, list[str]]]:
        """Stages that are not done, with the run@iteration that wait for them."""
        users: dict[str, list[str]] = {}
        for run, iteration in iterate(self):
            for key in run.iterations[iteration].values():
                users.setdefault(key, []).append(f"{run.name}@{iteration}")
        waiting = [stage for stage in self.stages.values() if stage.state != "done"]
        return [(stage, users.get(stage.key, [])) for stage in waiting]


def _bases(runs: Sequence[Run], iteration: int = 0) -> tuple[str, ...]:
    """Keys of the models of an iteration before the first, seed by seed."""
    stages = [run.iterations.get(iteration, {}) for run in runs]
    return tuple(found.get("base") or found.get("train", "") for found in stages)


def load_study(study_dir: Path, store_dir: Path) -> StudyData:
    """Read a study's manifest and every stored score row (a store may hold none).
    HarnessError: no manifest, or another version wrote it.
    """
    path = Path(study_dir) / "manifest.json"
    if not path.is_file():
        raise HarnessError(f"{path} is missing; run `selm run` on the study first")
    manifest = read_json(path)
    written, parts = manifest.get("schema"), {"benchmarks", "diagnostics"}
    if written != SCHEMA_VERSION or not parts <= manifest.keys():
        raise HarnessError(
            f"{path}: schema {written!r} of another version, this one reads {SCHEMA_VERSION}; "
            "`selm run` with the study's file writes it again and computes only what is missing"
        )
    store = Path(store_dir)
    stages = {key: _stage(key, entry, store) for key, entry in manifest["stages"].items()}
    for key, stage in list(stages.items()):
        if stage.state == "missing":
            stages[key] = replace(stage, reason=_blocked_by(key, stages) or stage.reason)
    runs = [_run(row) for row in manifest["runs"]]
    return StudyData(manifest, runs, stages, _scores(runs, stages))


def iterate(data: StudyData) -> Iterator[tuple[Run, int]]:
    """Every run and iteration, in study order."""
    for run in data.runs:
        for iteration in run.iterations:
            yield run, iteration
