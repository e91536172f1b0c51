"""Commands and servers as processes of their own; a server is ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
Done = subprocess.CompletedProcess[str]


def python(
    *arguments: object, cwd: Path = ROOT, status: int | None = 0, **environment: str
) -> Done:
    """Python on these arguments over this tree's sources. It must end with ``status``, if any."""
    command, told = [sys.executable, *map(str, arguments)], {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | told, capture_output=True, text=True, timeout=900
    )
    assert status in (None, done.returncode), done.stdout[-4000:] + done.stderr[-4000:]
    return done


def selm(*arguments: object, **options: Any) -> Done:
    return python("-m", "harness.cli", *arguments, **options)


def _heed_interrupts() -> None:
    """Shells start background jobs with SIGINT ignored, and so would be what these start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, its output piped; SIGINT reaches it, and it is killed when the block ends."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command, text=True, cwd=ROOT, preexec_fn=_heed_interrupts, **pipes
    ) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()
