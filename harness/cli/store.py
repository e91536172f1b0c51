"""``selm`` commands for what is stored: forget, check, clean, carry elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.lazy import lazy
from harness.cli.options import RESULTS, STORE, Results, StoreRoot, StudyName

commands_module = lazy("harness.cli.commands")
console_module = lazy("harness.cli.console")
store_module = lazy("harness.engine.store")


def invalidate(
    key: Annotated[str, typer.Argument(help="The first characters of a stage's key.")],
    store: StoreRoot = STORE,
) -> None:
    """Forget one finished stage, so that the next run does it again.

    Example: selm invalidate 3fa9c1
    """

    opened = store_module.Store(store)
    whole = commands_module.find_key(opened, key)
    opened.invalidate(whole)
    console_module.console.print(f"Forgotten: {whole}")


def verify(store: StoreRoot = STORE) -> None:
    """Re-hash every finished stage; name what is missing or altered and what depends on it. Exit
    status 1 if anything is.

    Example: selm verify
    """

    found = store_module.Store(store).verify()
    for item in found:
        console_module.console.print(
            f"{item.path}: {item.what}; {item.action}", markup=False, soft_wrap=True
        )
    console_module.console.print(
        f"{len(store_module.Store(store).all_keys())} stages checked, {len(found)} findings."
    )
    raise typer.Exit(1 if found else 0)


def gc(
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is listed; without it nothing is touched.")
    ] = False,
    searches: Annotated[bool, typer.Option(help="Keep what only a search's trials used.")] = True,
) -> None:
    """List stages that no study below --results needs, journals and failures of such stages, and
    what dead attempts left.

    Example: selm gc --delete
    """

    commands_module.collect_garbage(store_module.Store(store), results, delete, searches)


def export(
    study: StudyName,
    file: Annotated[Path, typer.Argument(help="The archive to write, for example alpha.tar.")],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    weights: Annotated[bool, typer.Option(help="With the checkpoints' weights.")] = True,
) -> None:
    """Write a study and its finished stages into one archive with the checksum of every file. Equal
    studies give equal archives.

    Example: selm export alpha alpha.tar --no-weights
    """

    commands_module.export_named(results, study, store_module.Store(store), file, weights)


def import_(
    file: Annotated[Path, typer.Argument(help="An archive written by `selm export`.")],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Check an archive's every file, then add its study. An archive that is not whole, or
    contradicts the store, changes nothing.

    Example: selm import alpha.tar
    """

    commands_module.import_file(file, store, results)
