"""Servers as processes of their own, ended by the test whatever happens."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
