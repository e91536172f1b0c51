"""What somebody else made: the table of a study whose checkpoints, answers or verdicts are given.

A CSV file, or a YAML list of mappings: ``arm``, ``seed`` (0 where left out), ``step``, then either
``checkpoint`` (a folder or hub id, with ``revision``; a PEFT adapter's folder, with ``base`` where
its configuration names none that is there), or files of benchmarks: a column named as the benchmark
holds answers, ``<benchmark>_verdicts`` verdicts that exist already. Names of files are relative to
the table's folder, or to the current one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.evaluate.registry import BENCHMARKS
from harness.model.checkpoint_files import base_of, is_adapter
from harness.records import HarnessError, is_hub_id
from harness.study import names, shipped
from harness.study.yaml import load_yaml

VERDICTS = "_verdicts"
FILES = tuple(
    column
    for name, benchmark in BENCHMARKS.items()
    if benchmark.given
    for column in (name, name + VERDICTS)
)
COLUMNS = ("arm", "seed", "step", "checkpoint", "revision", "base", "model", *FILES)


@dataclass(frozen=True)
class Given:
    """One row. step: 0 is what the arm started from. place: file and line. model: its name in files
    that hold several. answers, verdicts: benchmark → file. content: fingerprint of a checkpoint
    that may be deleted once it is scored. base: folder or hub id, of an adapter.
    """

    arm: str
    seed: int
    step: int
    place: str
    checkpoint: str = ""
    revision: str = ""
    model: str = ""
    answers: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    content: str = ""
    base: str = ""

    @property
    def files(self) -> set[str]:
        """Every file or checkpoint that it names."""
        named = filter(None, [self.checkpoint, self.base])
        return {*named, *self.answers.values(), *self.verdicts.values()}


def read_table(path: Path) -> list[Given]:
    """The rows of a table. Raises HarnessError naming file, line and column."""
    read = _yaml if path.suffix in (".yaml", ".yml") else _csv
    rows = [_row(row, place, path) for row, place in read(path)]
    if not rows:
        raise HarnessError(f"{path}: holds no row; give one a checkpoint: {', '.join(COLUMNS[:4])}")
    return rows


def check_rows(rows: Sequence[Given], benchmarks: Sequence[str]) -> None:
    """Every row its own arm, seed and step; every benchmark has what it is scored on, and every
    file a benchmark. Raises HarnessError naming file, line and column.
    """
    seen: dict[tuple[str, int, int], str] = {}
    for row in rows:
        key = (row.arm, row.seed, row.step)
        if key in seen:
            raise HarnessError(
                f"{row.place}: arm {row.arm!r}, seed {row.seed}, step {row.step} is given before, "
                f"at {seen[key]}"
            )
        seen[key] = row.place
        for name in (*row.answers, *row.verdicts):
            if name not in benchmarks:
                raise HarnessError(
                    f"{row.place}: column {name!r}: evaluation.benchmarks does not name {name}"
                )
    arms = list(dict.fromkeys(row.arm for row in rows))
    twice = names.first_of_the_same_name(arms)
    if twice:
        later, earlier = (arms[place] for place in twice)
        place = next(row.place for row in rows if row.arm == later)
        raise HarnessError(
            f"{place}: column 'arm': {later!r} and {earlier!r} would have one name; write both "
            "alike, or apart by more than blanks, commas, quotes and letter case"
        )
    for name in benchmarks:
        if not any(row.checkpoint or name in {*row.answers, *row.verdicts} for row in rows):
            raise HarnessError(
                f"{rows[0].place.rpartition(':')[0]}: evaluation.benchmarks names {name}, but no "
                f"row gives a checkpoint or a file of its answers or verdicts; leave {name} out"
            )


# -- the two forms ---------------------------------------------------------------------------------
Row = tuple[dict[str, Any], str]
"""Cells that are not empty, by column; and ``file:line``."""


def _csv(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read ({error})") from None
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    heads = [str(head).strip() for head in reader.fieldnames or ()]
    for head in heads:
        if heads.count(head) > 1:
            raise HarnessError(f"{path}:1: column {head!r} stands twice")
        _known(head, f"{path}:1")
    reader.fieldnames = heads
    for cells in reader:
        place = f"{path}:{reader.line_num}"
        if None in cells or None in cells.values():
            raise HarnessError(f"{place}: wants {len(heads)} cells, one for each of {heads}")
        yield {name: text.strip() for name, text in cells.items() if text.strip()}, place


def _yaml(path: Path) -> Iterator[Row]:
    listed, lines = load_yaml(path)
    if not isinstance(listed, list):
        raise HarnessError(f"{path}:1: wants a list of rows with {', '.join(COLUMNS[:4])}, …")
    for number, cells in enumerate(listed):
        place = f"{path}:{lines[number,]}"
        if not isinstance(cells, dict):
            raise HarnessError(f"{place}: wants a mapping with {', '.join(COLUMNS[:4])}, …")
        for name in cells:
            _known(str(name), f"{path}:{lines[number, name]}")
        yield {name: value for name, value in cells.items() if value not in ("", None)}, place


def _known(column: str, place: str) -> None:
    if column not in COLUMNS:
        meant, allowed = shipped.suggest(column, COLUMNS), ", ".join(COLUMNS)
        raise HarnessError(f"{place}: unknown column {column!r}{meant}; allowed: {allowed}")


# -- a row -----------------------------------------------------------------------------------------
def _row(cells: Mapping[str, Any], place: str, table: Path) -> Given:
    for name in ("arm", "step"):
        if name not in cells:
            raise HarnessError(f"{place}: column {name!r} is empty or missing")
    try:
        arm = names.check_label(str(cells["arm"]))
    except ValueError as error:
        raise HarnessError(f"{place}: column 'arm': {error}") from None
    files = {name: _file(str(cells[name]), place, name, table) for name in FILES if name in cells}
    for name, benchmark in BENCHMARKS.items():
        if benchmark.given and benchmark.given.both and {name, name + VERDICTS} <= set(files):
            raise HarnessError(
                f"{place}: columns {name!r} and {name + VERDICTS!r}: the verdicts' file holds the "
                f"answers; leave {name!r} empty"
            )
    if bool(files) == ("checkpoint" in cells):
        raise HarnessError(
            f"{place}: give either a checkpoint or files of answers or verdicts "
            f"({', '.join(FILES)})"
        )
    checkpoint = ""
    if not files:
        checkpoint = _file(str(cells["checkpoint"]), place, "checkpoint", table)
    return Given(
        arm,
        _number(cells.get("seed", 0), place, "seed"),
        _number(cells["step"], place, "step"),
        place,
        checkpoint,
        str(cells.get("revision", "")),
        str(cells.get("model", "")),
        {name: file for name, file in files.items() if name in BENCHMARKS},
        {
            name.removesuffix(VERDICTS): file
            for name, file in files.items()
            if name not in BENCHMARKS
        },
        base=_base(cells, place, checkpoint, table),
    )


def _base(cells: Mapping[str, Any], place: str, checkpoint: str, table: Path) -> str:
    """The base of an adapter: the one that the row names, or its configuration."""
    named, folder = str(cells.get("base", "")), Path(checkpoint)
    if not checkpoint or not is_adapter(folder):
        if named:
            raise HarnessError(f"{place}: column 'base': this row's checkpoint is no PEFT adapter")
        return ""
    found = named or base_of(folder)
    if not found:
        raise HarnessError(f"{place}: {checkpoint} names no base; name it in column 'base'")
    return _file(found, place, "base", table)


def _number(value: Any, place: str, column: str) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) >= 2**31:
        raise HarnessError(f"{place}: column {column!r}: {value!r} is no whole number from 0 on")
    return int(text)


def _file(name: str, place: str, column: str, table: Path) -> str:
    """A file beside the table, from here, or (checkpoints) on the hub."""
    model = column in ("checkpoint", "base")
    for path in (table.parent / Path(name).expanduser(), Path(name).expanduser()):
        if path.is_dir() if model else path.is_file():
            return str(path)
    if model and is_hub_id(name):
        return name
    raise HarnessError(f"{place}: column {column!r}: {name} does not exist")
