"""Show what changed behind the golden keys and stage sources, and accept it: run it after raising a
version, or when numbers provably did not change.

Run with ``--smoke`` it also runs the smoke study twice (the committed code and the working tree)
and prints the hashes of its scores side by side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.engine.stages import STAGES
from harness.files import hash_file
from tests.engine.test_plan import GOLDEN, plan_of
from tests.golden.versions import ROOT, source_hash


def accepted() -> dict[str, Any]:
    """Version and source of every stage as they are now."""
    return {
        name: {"version": stage.version, "source": source_hash(name)}
        for name, stage in STAGES.items()
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for every stage whose version or source is not what was accepted."""
    lines = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if old is None or new is None:
            lines.append(f"{name}: {'new' if old is None else 'gone'}")
        elif old["version"] != new["version"]:
            lines.append(f"{name}: version {old['version']} -> {new['version']}")
        else:
            lines.append(f"{name}: source changed, version still {new['version']}")
    return lines


SMOKE = GOLDEN / "smoke.json"
"""Processor → stage key → hash of the smoke study's scores, as it was seen on such a processor."""
NARROW = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
"""An environment that asks for other kernels than the workers fix."""


def processor() -> str:
    """Maker and family of an x86-64 processor under Linux (``AuthenticAMD 25``); else empty."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    said = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if line]))
    return f"{said.get('vendor_id', '')} {said.get('cpu family', '')}".strip()


def score_hashes(tree: Path, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Key of every stage of the smoke study → hash of its scores, by the code of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness.cli", "run", "ablations/smoke.yaml"]
        command += ["--store", f"{folder}/store", "--results", folder]
        settings = {**os.environ, **(environment or {})}
        subprocess.run(command, cwd=tree, check=True, capture_output=True, env=settings)
        scores = sorted(Path(folder, "store").rglob("scores.parquet"))
        return {path.parent.name[:12]: hash_file(path) for path in scores}


def show_smoke() -> None:
    """Score hashes of the smoke study before (committed code) and after (working tree)."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", tree], cwd=ROOT, check=True)
        try:
            before = score_hashes(tree)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    now = score_hashes(ROOT)
    for key in sorted({*before, *now}):
        old, new = before.get(key, "-")[:12], now.get(key, "-")[:12]
        print(f"{key}  {old}  {new}  {'equal' if old == new else 'DIFFERENT'}")
    seen = json.loads(SMOKE.read_text()) if before == now and SMOKE.is_file() else {}
    SMOKE.write_text(json.dumps({**seen, processor(): now}, indent=1, sort_keys=True) + "\n")


def main() -> None:
    if "--smoke" in sys.argv:
        show_smoke()
    file = GOLDEN / "stages.json"
    now = accepted()
    for line in differences(json.loads(file.read_text()), now):
        print(line)
    file.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    keys = {node.stage: key for key, node in reversed(list(plan_of().nodes.items()))}
    (GOLDEN / "keys.json").write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
