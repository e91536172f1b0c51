"""Frozen rows that pass between stages, and the contract of a stage. Imports nothing of ours.

A stage is a function ``run(task: StageTask) -> StageOutcome`` that reads only ``task.inputs``
(committed folders, never written), writes only below ``task.out``, and whose result is decided by
``task.settings`` and the inputs alone. What changes speed but not results (device, micro-batch,
endpoint address) arrives in ``task.runtime``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

SCHEMA_VERSION = 1
"""Version of everything written into the store. A store of another version is refused."""

Status = Literal["ok", "no_answer", "unparsed", "refused", "truncated", "error"]
FINAL_STATUSES: frozenset[str] = frozenset(get_args(Status)) - {"error"}
"""Rows with these statuses are never retried; ``error`` rows are retried by the next run."""


@dataclass(frozen=True)
class Prompt:
    """One training or held-out prompt with the offline pair that came with it.

    messages: chat turns ``{"role", "content"}``, the last one from the user. chosen, rejected: the
    final assistant turn as text, empty when the data has none.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    chosen: str = ""
    rejected: str = ""
    category: str = ""


@dataclass(frozen=True)
class Response:
    """One answer of a policy. ``token_ids`` include the end-of-turn token when it was produced;
    ``status`` says why it ended.
    """

    prompt_id: str
    sample: int
    text: str
    token_ids: tuple[int, ...]
    status: Status = "ok"
    seed: int = 0


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to draw. temperature 0 is greedy. seed: from ``request_seed``."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """One answer. status: "ok" ended by a stop token (the last of ``token_ids``), "truncated" hit
    the limit, "no_answer" had no room, "error"; ``error`` says why the last two.
    """

    token_ids: tuple[int, ...]
    text: str
    status: Status
    error: str = ""


@dataclass(frozen=True)
class Pair:
    """One training row: prompt, chosen, rejected, and the exploration response y (all text);
    explore_more: further samples of y, where there are.

    scores: the ranker's score of every candidate by name. y_role: whether y became the winner, the
    loser or neither. drawn: role → token ids of a response that ran into its limit, which has no
    end of turn: its text, encoded again, would be given one.
    """

    prompt_id: str
    messages: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str
    explore: str
    chosen_from: str = "chosen"
    rejected_from: str = "rejected"
    scores: Mapping[str, float] = field(default_factory=dict)
    y_role: Literal["winner", "loser", "middle", "absent"] = "absent"
    explore_more: tuple[str, ...] = ()
    drawn: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One score row. ``value`` is None unless ``status`` is "ok": missing is never a number.

    item: unique within (benchmark, metric, repeat). cluster: the unit that was sampled (MT-Bench:
    the question, both turns). source: short hash of what the score was computed from (answer text
    and reference).
    """

    benchmark: str
    benchmark_version: str
    item: str
    cluster: str
    metric: str
    value: float | None
    status: Status = "ok"
    judge: str = ""
    repeat: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        wrong = ""
        if self.status not in get_args(Status):
            wrong = f"unknown status {self.status!r}; allowed: {', '.join(get_args(Status))}"
        elif (self.value is None) == (self.status == "ok"):
            wrong = f"status {self.status!r} with value {self.value!r}; only 'ok' rows have a value"
        elif self.value is not None and not math.isfinite(self.value):
            wrong = f"value {self.value!r} is not finite; give it a status instead"
        if wrong:
            raise ValueError(f"score {self.benchmark}/{self.item}: {wrong}")


Settings = TypeVar("Settings")


@dataclass(frozen=True)
class StageTask(Generic[Settings]):
    """What a stage is given. settings: the stage's own frozen type (`harness.study.tasks`), runtime
    (`harness.study.tasks.Runtime`): what changes speed, not numbers. inputs: an input's name → the
    committed folder of the stage that made it.
    """

    key: str
    stage: str
    settings: Settings
    inputs: Mapping[str, Path]
    out: Path
    runtime: Any


@dataclass(frozen=True)
class LeftOut:
    """``count`` of the ``of`` ``what`` (rows, prompts, …) that a stage met were not used, or not
    whole, for one reason. examples: where the first of them stand, ``file:line`` or an id.
    """

    stage: str
    what: str
    reason: str
    count: int
    of: int
    examples: tuple[str, ...] = ()


class Tally:
    """Collects what a stage leaves out of its ``what``, by reason; ``read`` counts all it met."""

    EXAMPLES = 3

    def __init__(self, stage: str, what: str) -> None:
        self.stage, self.what, self.read = stage, what, 0
        self._places: dict[str, list[str]] = {}

    def meet(self, place: str, status: str) -> None:
        """Count one that was met; every status but "ok" is a reason."""
        self.read += 1
        if status != "ok":
            self.leave_out(status, place)

    def leave_out(self, reason: str, place: str) -> None:
        """Count one. place: ``file:line`` or an id."""
        self._places.setdefault(reason, []).append(place)

    @property
    def count(self) -> int:
        """How many were left out."""
        return sum(map(len, self._places.values()))

    def check(self, most: float, where: str) -> None:
        """Raise HarnessError where more than the share ``most`` of what was met is left out."""
        told = [f"{one.reason}: {one.count} ({', '.join(one.examples)})" for one in self.left_out()]
        if self.count > most * self.read:
            raise HarnessError(
                f"{where}: {self.count} of {self.read} {self.what} are left out, more than "
                f"data.max_left_out = {most:g} allows: {'; '.join(told)}"
            )

    def left_out(self) -> tuple[LeftOut, ...]:
        """One entry a reason, the commonest first."""
        ordered = sorted(self._places.items(), key=lambda item: (-len(item[1]), item[0]))
        return tuple(
            LeftOut(self.stage, self.what, reason, len(at), self.read, tuple(at[: self.EXAMPLES]))
            for reason, at in ordered
        )


@dataclass(frozen=True)
class StageOutcome:
    """What a stage reports. ``errors`` > 0 keeps the stage partial: its folder is kept and retried.

    costs: additive counts (``tokens_generated``, ``tokens_trained``, ``judge_calls``,
    ``judge_prompt_tokens``, …). summary: small JSON values worth showing (never used as an input of
    another stage). left_out: what was not used, and why.
    """

    rows: int
    errors: int = 0
    costs: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class StageRecord:
    """``record.json``: its exclusive creation is the commit. Volatile facts (host, times, versions)
    live in ``environment``.
    """

    schema: int
    key: str
    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    input_hashes: Mapping[str, str]
    files: Mapping[str, str]
    rows: int
    costs: Mapping[str, float]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    seal: str = ""
    """Hash of all other fields, against alteration; empty in records of the first version."""
    left_out: Sequence[Mapping[str, Any]] = ()
    """`LeftOut` entries as mappings; in no seal while there are none, as before there were any."""

    def sealed(self) -> StageRecord:
        """This record with its seal."""
        return dataclasses.replace(self, seal=self.expected_seal())

    def expected_seal(self) -> str:
        """What the seal must be."""
        fields = {name: value for name, value in vars(self).items() if name != "seal"}
        if not self.left_out:
            del fields["left_out"]
        # As it will be read back: keys of mappings are text.
        return content_hash("record", json.loads(canonical_json(fields)))


class HarnessError(Exception):
    """An error a user can act on: what was wrong, where, what to do. Shown without a traceback."""


FILE_ENDINGS = {".json", ".jsonl", ".gz", ".parquet", ".csv", ".yaml", ".jinja", ".txt", ".gguf"}


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name of the hub and is nothing on this disk."""
    plain = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return plain and Path(name).suffix not in FILE_ENDINGS and not Path(name).exists()


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:most]


def printable(text: str) -> str:
    """``text`` with halves of surrogate pairs, which no file or terminal takes, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def redact(text: str, *, only: str = "") -> str:
    """``text`` without secrets: the values of secret-looking environment variables, and whatever
    looks like a key, a bearer token or credentials in an address. only: just that variable's value
    (a judge's words must not change with the environment).
    """
    for name, value in os.environ.items():
        secret = name == only if only else re.search(r"KEY|TOKEN|SECRET|PASSWORD", name)
        if secret and len(value.strip()) >= 6:
            text = text.replace(value.strip(), "[redacted]")
    if only:
        return text
    text = re.sub(r"\b(sk-[\w-]{6,}|[Bb]earer\s+[^\s\"',]{6,})", "[redacted]", text)
    return re.sub(r"(://)[^/\s:@]+:[^/\s@]+@", r"\1[redacted]@", text)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, equal text for equal values; NaN and infinity are
    refused.
    """
    return _ENCODER.encode(value)


def content_hash(*parts: Any, length: int = 64) -> str:
    """SHA-256 (hex, cut to ``length``) of the canonical JSON of ``parts``."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:length]


def request_seed(*parts: Any) -> int:
    """63-bit seed from what identifies a request: run seed, iteration, stage, prompt id, sample."""
    return int(content_hash(*parts, length=16), 16) >> 1


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


_ENCODER = json.JSONEncoder(
    sort_keys=True,
    separators=(",", ":"),
    ensure_ascii=True,
    allow_nan=False,
    check_circular=False,
    default=_plain,
)


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write rows (dataclasses or mappings) one JSON object a line and flush them to disk; returns
    the number of rows. A kill or a full disk leaves what was there before.
    """
    count, part = 0, path.with_name(f".{path.name}.part")
    try:
        with open(part, "w", encoding="utf-8") as handle:
            for row in rows:
                handle.write(canonical_json(row) + "\n")
                count += 1
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file; a broken line raises HarnessError naming file and line."""
    number = 0
    with open(path, encoding="utf-8-sig") as handle:
        try:
            for line in handle:
                number += 1
                if line.strip():
                    yield json.loads(line)
        except json.JSONDecodeError as error:
            why = f"not valid JSON ({error.msg} at column {error.colno})"
            raise HarnessError(f"{path}:{number}: {why}") from error
        except UnicodeDecodeError as error:
            why = f"after line {number}: not UTF-8 ({error.reason}); save it as UTF-8"
            raise HarnessError(f"{path}: {why}") from error


def write_scores(path: Path, scores: Iterable[Score]) -> int:
    """Write score rows, sorted, as ``scores.parquet`` (byte-identical for equal rows); returns the
    number of rows. Raises HarnessError on a doubled (benchmark, metric, item, repeat).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(scores, key=lambda s: (s.benchmark, s.metric, s.cluster, s.item, s.repeat))
    seen = Counter((row.benchmark, row.metric, row.item, row.repeat) for row in rows)
    for (benchmark, metric, item, repeat), count in seen.items():
        if count > 1:
            raise HarnessError(
                f"doubled score row: benchmark {benchmark}, metric {metric}, item {item}, repeat "
                f"{repeat}"
            )
    types = {"value": pa.float64(), "repeat": pa.int64()}
    names = [one.name for one in dataclasses.fields(Score)]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    table = pa.Table.from_pylist([vars(row) for row in rows], schema=schema)
    pq.write_table(table, path, compression="zstd")
    return len(rows)
