"""``selm``: ask, run, look, report. Commands load what they need when they run: help is instant."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import click
import typer

from harness.cli import doctor, import_trl, judge, run, store
from harness.records import HarnessError

app = typer.Typer(
    name="selm",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does a change to preference optimisation help, by how much, and could we have told?",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(metadata.version("selm-harness"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    del version


COMMANDS: dict[str, Callable[..., None]] = {
    "init": store.init,
    "plan": run.plan,
    "run": run.run,
    "status": store.status,
    "show": store.show,
    "report": run.report,
    "tune": run.tune,
    "evaluate": judge.evaluate,
    "judge": judge.judge,
    "meta-judge": judge.meta_judge,
    "bridge": judge.bridge,
    "correct": judge.correct,
    "published": judge.published,
    "compare": run.compare,
    "power": run.power,
    "invalidate": store.invalidate,
    "verify": store.verify,
    "gc": store.gc,
    "export": store.export,
    "import": store.import_,
    "push": store.push,
    "import-trl": import_trl.import_trl,
    "doctor": doctor.doctor,
    "judge-server": judge.judge_server,
}
"""Every command in the order in which help lists them."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


NO_VERDICT = 64
"""Exit status of ``selm compare --gate`` where there is no verdict: 0 to 3 are verdicts there, so
that neither a usage error (2 elsewhere) nor a crash (1) may look like one.
"""


def main() -> None:
    """Entry point: user errors, and files that cannot be had, become one message on stderr and exit
    status 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an α on a terminal without it is no crash
            stream.reconfigure(errors="replace")
    gate = sys.argv[1:2] == ["compare"] and "--gate" in sys.argv
    try:
        if gate:
            raise SystemExit(_gate())
        app()
    except HarnessError as error:
        sys.stderr.write(f"selm: {error}\n")
        raise SystemExit(NO_VERDICT if gate else 2) from None
    except OSError as error:
        if not error.filename:
            raise
        sys.stderr.write(f"selm: {error.filename}: {error.strerror}\n")
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C
            sys.stderr.write("selm: stopped; run the same command again to continue\n")
        raise


def _gate() -> int:
    """The verdict's status."""
    try:
        status = app(standalone_mode=False)
    except HarnessError:
        raise
    except click.ClickException as error:
        error.show()
    except Exception:  # noqa: BLE001 - whatever it is, it is no verdict
        traceback.print_exc()
    else:
        return int(status or 0)
    return NO_VERDICT
