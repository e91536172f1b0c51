"""``selm``: ask, run, look, report. Every command imports what it needs when it runs, so that help
is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import judging as cli_judging
from harness.cli import store as cli_store
from harness.cli.lazy import lazy
from harness.cli.options import (
    RESULTS,
    STORE,
    MaxCost,
    Overrides,
    Results,
    StoreRoot,
    StudyFile,
    StudyName,
    Workers,
    worker_count,
)
from harness.records import HarnessError

compare_module = lazy("analysis.compare")
power_report_module = lazy("analysis.power_report")
commands_module = lazy("harness.cli.commands")
console_module = lazy("harness.cli.console")
doctor_module = lazy("harness.cli.doctor")
store_module = lazy("harness.engine.store")


def plan(
    study: StudyFile,
    store: StoreRoot = STORE,
    overrides: Overrides = None,
    workers: Workers = 0,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost",
            help="Tokens, operations, GPU-hours, memory, judge calls and price, with the "
            "arithmetic.",
        ),
    ] = False,
    devices: Annotated[
        int, typer.Option(min=1, help="With --cost: accelerators there will be.")
    ] = 8,
    device: Annotated[str, typer.Option(help="With --cost: h100 | h200 | a100 | rtx4090")] = "h100",
    gpu_price: Annotated[
        float, typer.Option(min=0, help="With --cost: USD for one GPU-hour.")
    ] = 0.0,
) -> None:
    """Print cells, stages, how many are shared, done and to do, and the estimated time. Runs
    nothing.

    With --cost a recipe's file may stand in for the study: one run of it.

    Example: selm plan ablations/alpha.yaml

    Example: selm plan ablations/recipes/zephyr-7b.yaml --cost --devices 8
    """

    if cost:
        commands_module.show_cost(
            study,
            store_module.Store(store),
            commands_module.parse_overrides(overrides or []),
            worker_count(workers),
            devices,
            device,
            gpu_price,
        )
    else:
        commands_module.show_study(
            study, store, commands_module.parse_overrides(overrides or []), worker_count(workers)
        )


def run(
    study: StudyFile,
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    overrides: Overrides = None,
    workers: Workers = 0,
    executor: Annotated[str, typer.Option(help="inline | pool | ray")] = "pool",
    only: Annotated[
        list[str] | None, typer.Option(help="Run only stages of this name. May be repeated.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    max_cost: MaxCost = 0.0,
) -> None:
    """Run every stage of a study that is not done, then write its report. Run it again to continue.

    Exit status: 0 all there; 1 something failed; 2 the study or the command is wrong; 3 rows are
    still missing.

    Example: selm run ablations/smoke.yaml
    """

    changes = commands_module.parse_overrides(overrides or [])
    status = commands_module.run_study(
        study,
        store,
        results,
        changes,
        executor=executor,
        workers=worker_count(workers),
        only=only or (),
        report=report,
        max_cost=max_cost,
    )
    raise typer.Exit(status)


def status(study: StudyName, store: StoreRoot = STORE, results: Results = RESULTS) -> None:
    """Show running, done, failed and missing stages of a study, also while it runs elsewhere.

    Example: selm status alpha
    """

    _, manifest = commands_module.read_manifest(results, study)
    console_module.show_status(manifest, store_module.Store(store))


def show(
    key: Annotated[str, typer.Argument(help="The first characters of a stage's key.")],
    store: StoreRoot = STORE,
) -> None:
    """Show one finished stage: settings, inputs, files, costs.

    Example: selm show 3fa9c1
    """

    opened = store_module.Store(store)
    console_module.show_stage(opened, commands_module.find_key(opened, key))


def report(study: StudyName, store: StoreRoot = STORE, results: Results = RESULTS) -> None:
    """Write a study's tables, figures and report from what is stored. Works on unfinished studies
    and says so.

    Example: selm report alpha
    """

    folder, _ = commands_module.read_manifest(results, study)
    commands_module.report_study(folder, store)


def tune(
    search: Annotated[
        Path,
        typer.Argument(help="The search's YAML file, for example ablations/tune_alpha_beta.yaml."),
    ],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    storage: Annotated[
        str, typer.Option(help="Optuna storage address; empty: SQLite in the search's folder.")
    ] = "",
    workers: Workers = 0,
) -> None:
    """Search settings with Optuna, then compare the winner with the default on seeds no trial saw.
    Run it again to continue.

    Example: selm tune ablations/tune_alpha_beta.yaml --workers 2
    """

    raise typer.Exit(
        commands_module.tune_study(search, store, results, storage, worker_count(workers))
    )


def compare(
    a: Annotated[
        str,
        typer.Argument(help="A run, an arm or base, with @iteration behind it; without: the last."),
    ],
    b: Annotated[str, typer.Argument(help="What A is compared with.")],
    study: Annotated[str, typer.Option("--study", help="The study's name or YAML file.")] = "alpha",
    benchmark: Annotated[str, typer.Option(help="One benchmark or measure; empty: all.")] = "",
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Compare two cells or checkpoints of a study, paired by item and seed.

    Example: selm compare objective.alpha=1 objective.alpha=0 --study alpha --benchmark alpaca_eval
    """

    console_module.show_table(
        compare_module.compare_study(
            commands_module.read_manifest(results, study)[0], store, a, b, benchmark
        )
    )


def power(
    study: Annotated[
        str, typer.Argument(help="A study's name or YAML file; empty with given components.")
    ] = "",
    delta: Annotated[
        float, typer.Option(help="The difference to detect, in the score's units.")
    ] = 1.0,
    sigma: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--sigma", help="Given components: over seeds, over items, residual."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds, with given components.")] = 3,
    items: Annotated[int, typer.Option(help="Items, with given components.")] = 805,
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Seeds and items needed to detect a difference, from a study's variance components or given
    ones.

    Example: selm power alpha --delta 1.0
    """

    if sigma is not None:
        console_module.show_table(power_report_module.power_given(sigma, seeds, items, delta))
    else:
        console_module.show_table(
            power_report_module.power_study(
                commands_module.read_manifest(results, study)[0], store, delta
            )
        )


def doctor(
    what: Annotated[
        str,
        typer.Argument(
            help="A study, a recipe, a checkpoint folder or a hub id; empty: the installation "
            "alone."
        ),
    ] = "",
    store: StoreRoot = STORE,
    overrides: Overrides = None,
) -> None:
    """Check versions, devices, disk, hub, judge and the model's template, and say what to fix. Exit
    status 1 if something needed is wrong.

    Example: selm doctor ablations/recipes/zephyr-7b.yaml
    """

    raise typer.Exit(
        doctor_module.examine(what, store, commands_module.parse_overrides(overrides or []))
    )


app = typer.Typer(
    name="selm",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does a change to preference optimisation help, by how much, and could we have told?",
)

COMMANDS: dict[str, Callable[..., None]] = {
    "plan": plan,
    "run": run,
    "status": status,
    "show": show,
    "report": report,
    "tune": tune,
    "evaluate": cli_judging.evaluate,
    "judge": cli_judging.judge,
    "meta-judge": cli_judging.meta_judge,
    "published": cli_judging.published,
    "compare": compare,
    "power": power,
    "invalidate": cli_store.invalidate,
    "verify": cli_store.verify,
    "gc": cli_store.gc,
    "export": cli_store.export,
    "import": cli_store.import_,
    "doctor": doctor,
    "judge-server": cli_judging.judge_server,
}
"""Every command in the order in which help lists them."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Entry point: user errors become one message on stderr and exit status 2."""
    try:
        app()
    except HarnessError as error:
        sys.stderr.write(f"selm: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("selm: stopped; run the same command again to continue\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
