"""Checkpoints that appear in a folder while somebody trains: which are whole, and what they are
called.

``RUN/checkpoint-500``, ``RUN/step_500``, … are step 500 of an arm named as the folders between; a
part ``seed-1`` of these is the seed. A checkpoint counts when its configuration, tokenizer and
every shard are there and readable, and nothing in it changed between two looks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from harness.files import write_atomic
from harness.model.checkpoint_files import fingerprint, settings_of, weight_files
from harness.records import HarnessError, canonical_json, first_line
from harness.study import names
from harness.study.given import Given

POLL_S = 5.0
"""Between two looks."""
STEP = re.compile(r"(?:(?:checkpoint|ckpt|step|global_?step|iter|iteration)[-_]?)?(\d+)", re.I)
SEED = re.compile(r"[-_./]?seed[-_=]?(\d+)", re.I)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def not_whole(folder: Path) -> str:
    """Why a checkpoint's folder is not whole; empty where it is."""
    from safetensors import SafetensorError, safe_open

    source = folder.name
    try:
        settings_of(folder / "config.json", source)
        found = [name for name in TOKENIZERS if (folder / name).is_file()]
        if not found:
            return "it holds no tokenizer"
        if found[0].endswith(".json"):
            settings_of(folder / found[0], source)
        for file in weight_files(folder, source).files:
            # Opening compares the file's length with what its header says.
            with safe_open(file, framework="numpy"):
                pass
    except (HarnessError, SafetensorError, OSError) as error:
        return first_line(error)
    return ""


class Watcher:
    """What has been whole below ``folder`` so far, also where it is deleted later (trainers keep
    the last few); ``memory`` is a file that carries it from one run of the command to the next.
    waiting: folders that do not count, and why.
    """

    def __init__(self, folder: Path, memory: Path) -> None:
        if not folder.is_dir():
            raise HarnessError(f"--watch {folder}: no such folder")
        self.folder, self.memory = folder.resolve(), memory
        self.waiting: dict[str, str] = {}
        self._states: dict[Path, list[tuple[str, int, int]]] = {}
        known = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else []
        self.rows = {row["checkpoint"]: Given(**row) for row in known}

    def look(self) -> list[Given]:
        """Every checkpoint that is or was whole, in the order of arm, seed and step."""
        self.waiting = {}
        for config in sorted(self.folder.rglob("config.json")):
            folder = config.parent
            if str(folder) in self.rows:
                continue
            step, reason = STEP.fullmatch(folder.name), "the name ends in no step"
            if step is not None:
                reason = not_whole(folder) or self._changing(folder)
            if step is None or reason:
                self.waiting[str(folder)] = reason
                continue
            self.rows[str(folder)] = self._row(folder, int(step[1]))
        rows = sorted(self.rows.values(), key=lambda row: (row.arm, row.seed, row.step))
        if rows:
            write_atomic(self.memory, canonical_json([vars(row) for row in rows]))
        return rows

    def _changing(self, folder: Path) -> str:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        stats = [(file.name, file.stat()) for file in files]
        state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        same = self._states.get(folder) == state
        self._states[folder] = state
        return "" if same else "it changed since the last look"

    def _row(self, folder: Path, step: int) -> Given:
        run = folder.parent.relative_to(self.folder).as_posix()
        run = self.folder.name if run == "." else run
        seed = SEED.search(run)
        arm = SEED.sub("", run).strip("-_./") or self.folder.name
        try:
            names.check_label(arm)
        except ValueError as error:
            raise HarnessError(f"{folder}: arm {arm!r}: {error}") from None
        content, number = fingerprint(folder), int(seed[1]) if seed else 0
        return Given(arm, number, step, str(folder), str(folder), content=content)
