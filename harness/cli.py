"""``selm``: ask, run, look, report. Every command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.records import HarnessError

app = typer.Typer(
    name="selm",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does a change to preference optimisation help, by how much, and could we have told?",
)

StudyFile = Annotated[Path, typer.Argument(help="The study's YAML file, for example ablations/alpha.yaml.")]
StudyName = Annotated[str, typer.Argument(help="A study's name (a folder below --results) or its YAML file.")]
StoreRoot = Annotated[Path, typer.Option("--store", help="Folder of finished stages.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of manifests and reports.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change one recipe key: key=value. May be repeated.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Worker processes; 0: one per core (or per GPU).")]

MaxCost = Annotated[float, typer.Option("--max-cost", min=0.0, help="USD that this command may spend on judging in all; 0: no limit.")]

STORE, RESULTS = Path("results/store"), Path("results")


def _workers(count: int) -> int:
    return count or os.cpu_count() or 1


@app.command()
def plan(
    study: StudyFile,
    store: StoreRoot = STORE,
    overrides: Overrides = None,
    workers: Workers = 0,
    cost: Annotated[bool, typer.Option("--cost", help="Tokens, operations, GPU-hours, memory, judge calls and price, with the arithmetic.")] = False,
    devices: Annotated[int, typer.Option(min=1, help="With --cost: accelerators there will be.")] = 8,
    device: Annotated[str, typer.Option(help="With --cost: h100 | h200 | a100 | rtx4090")] = "h100",
    gpu_price: Annotated[float, typer.Option(min=0, help="With --cost: USD for one GPU-hour.")] = 0.0,
) -> None:
    """Print cells, stages, how many are shared, done and to do, and the estimated time. Runs nothing.

    With --cost a recipe's file may stand in for the study: one run of it.

    Example: selm plan ablations/alpha.yaml

    Example: selm plan ablations/recipes/zephyr-7b.yaml --cost --devices 8
    """
    from harness.commands import parse_overrides, plan_study

    if cost:
        from harness.cost_view import show_cost
        from harness.store import Store

        show_cost(study, Store(store), parse_overrides(overrides or []), _workers(workers), devices, device, gpu_price)
    else:
        plan_study(study, store, parse_overrides(overrides or []), _workers(workers))


@app.command()
def run(
    study: StudyFile,
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    overrides: Overrides = None,
    workers: Workers = 0,
    executor: Annotated[str, typer.Option(help="inline | pool | ray")] = "pool",
    only: Annotated[list[str] | None, typer.Option(help="Run only stages of this name. May be repeated.")] = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    max_cost: MaxCost = 0.0,
) -> None:
    """Run every stage of a study that is not done, then write its report. Run it again to continue.

    Exit status: 0 all there; 1 something failed; 2 the study or the command is wrong; 3 rows are still missing.

    Example: selm run ablations/smoke.yaml
    """
    from harness.commands import parse_overrides, run_study

    changes = parse_overrides(overrides or [])
    status = run_study(
        study, store, results, changes, executor=executor, workers=_workers(workers), only=only or (), report=report, max_cost=max_cost
    )
    raise typer.Exit(status)


@app.command()
def status(study: StudyName, store: StoreRoot = STORE, results: Results = RESULTS) -> None:
    """Show running, done, failed and missing stages of a study, also while it runs elsewhere.

    Example: selm status alpha
    """
    from harness.commands import read_manifest
    from harness.console import show_status
    from harness.store import Store

    _, manifest = read_manifest(results, study)
    show_status(manifest, Store(store))


@app.command()
def show(key: Annotated[str, typer.Argument(help="The first characters of a stage's key.")], store: StoreRoot = STORE) -> None:
    """Show one finished stage: settings, inputs, files, costs.

    Example: selm show 3fa9c1
    """
    from harness.commands import find_key
    from harness.console import show_stage
    from harness.store import Store

    opened = Store(store)
    show_stage(opened, find_key(opened, key))


@app.command()
def report(study: StudyName, store: StoreRoot = STORE, results: Results = RESULTS) -> None:
    """Write a study's tables, figures and report from what is stored. Works on unfinished studies and says so.

    Example: selm report alpha
    """
    from harness.commands import read_manifest, report_study

    folder, _ = read_manifest(results, study)
    report_study(folder, store)


@app.command()
def tune(
    search: Annotated[Path, typer.Argument(help="The search's YAML file, for example ablations/tune_alpha_beta.yaml.")],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    storage: Annotated[str, typer.Option(help="Optuna storage address; empty: SQLite in the search's folder.")] = "",
    workers: Workers = 0,
) -> None:
    """Search settings with Optuna, then compare the winner with the default on seeds no trial saw. Run it again to continue.

    Example: selm tune ablations/tune_alpha_beta.yaml --workers 2
    """
    from harness.commands import tune_study

    raise typer.Exit(tune_study(search, store, results, storage, _workers(workers)))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    recipe: Annotated[Path, typer.Option(help="Recipe that names benchmarks, judge and data.")] = Path("ablations/recipes/own_data.yaml"),
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    overrides: Overrides = None,
    workers: Workers = 0,
    name: Annotated[str, typer.Option(help="Name of the result folder.")] = "evaluate",
    max_cost: MaxCost = 0.0,
) -> None:
    """Score one model on a recipe's benchmarks, outside any study: no training.

    Example: selm evaluate CHECKPOINT --set data.path=pairs.jsonl --set evaluation.benchmarks=[mt_bench]
    """
    from harness.commands import evaluate_model, parse_overrides

    raise typer.Exit(evaluate_model(model, recipe, name, store, results, parse_overrides(overrides or []), _workers(workers), max_cost))


@app.command()
def judge(
    study: StudyFile,
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    overrides: Overrides = None,
    workers: Workers = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print calls, tokens and price; ask nothing.")] = False,
    max_cost: MaxCost = 0.0,
) -> None:
    """Judge a study's stored answers again, for example by another judge. Trains and generates nothing, needs no GPU.

    Example: selm judge ablations/alpha.yaml --set judge.noise=0.6 --dry-run
    """
    from harness.commands import parse_overrides, rejudge

    raise typer.Exit(rejudge(study, store, results, parse_overrides(overrides or []), _workers(workers), dry_run, max_cost))


@app.command("meta-judge")
def meta_judge(
    pairs: Annotated[Path, typer.Argument(help="Labelled pairs: a JSON list with input, output_1, output_2, label (LLMBar's form).")],
    recipe: Annotated[Path, typer.Option(help="Recipe that names the judge.")] = Path("ablations/recipes/own_data.yaml"),
    results: Results = RESULTS,
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="Verdicts per pair and order; two or more give the noise floor.")] = 2,
) -> None:
    """How far a judge can be trusted: agreement with labelled pairs, position-flip rate, noise floor. Run it again to continue.

    Example: selm meta-judge ../shared/data/preferences/llmbar/natural.json --set judge.noise=0.6 --repeats 3
    """
    from harness.commands import meta_judge as judge_the_judge
    from harness.commands import parse_overrides

    judge_the_judge(pairs, recipe, results, parse_overrides(overrides or []), repeats)


@app.command()
def published(
    folder: Annotated[Path, typer.Argument(help="Public artefacts: alpaca_eval/, mt_bench/, academic/ with their published figures.")],
) -> None:
    """Recompute published figures from public artefacts: published, recomputed, difference, tolerance. Exit status 1 if one is outside.

    Example: selm published ../shared/data
    """
    from harness.evaluate.published import recompute, render

    rows = recompute(folder)
    render(rows)
    raise typer.Exit(0 if rows and all(row.ok for row in rows) else 1)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A run, an arm or base, with @iteration behind it; without: the last.")],
    b: Annotated[str, typer.Argument(help="What A is compared with.")],
    study: Annotated[str, typer.Option("--study", help="The study's name or YAML file.")] = "alpha",
    benchmark: Annotated[str, typer.Option(help="One benchmark or measure; empty: all.")] = "",
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Compare two cells or checkpoints of a study, paired by item and seed.

    Example: selm compare objective.alpha=1 objective.alpha=0 --study alpha --benchmark alpaca_eval
    """
    from analysis.compare import compare_study
    from harness.commands import read_manifest
    from harness.console import show_table

    show_table(compare_study(read_manifest(results, study)[0], store, a, b, benchmark))


@app.command()
def power(
    study: Annotated[str, typer.Argument(help="A study's name or YAML file; empty with given components.")] = "",
    delta: Annotated[float, typer.Option(help="The difference to detect, in the score's units.")] = 1.0,
    sigma: Annotated[tuple[float, float, float] | None, typer.Option("--sigma", help="Given components: over seeds, over items, residual.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds, with given components.")] = 3,
    items: Annotated[int, typer.Option(help="Items, with given components.")] = 805,
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Seeds and items needed to detect a difference, from a study's variance components or given ones.

    Example: selm power alpha --delta 1.0
    """
    from analysis.power_report import power_given, power_study
    from harness.commands import read_manifest
    from harness.console import show_table

    if sigma is not None:
        show_table(power_given(sigma, seeds, items, delta))
    else:
        show_table(power_study(read_manifest(results, study)[0], store, delta))


@app.command()
def invalidate(key: Annotated[str, typer.Argument(help="The first characters of a stage's key.")], store: StoreRoot = STORE) -> None:
    """Forget one finished stage, so that the next run does it again.

    Example: selm invalidate 3fa9c1
    """
    from harness.commands import find_key
    from harness.console import console
    from harness.store import Store

    opened = Store(store)
    whole = find_key(opened, key)
    opened.invalidate(whole)
    console.print(f"Forgotten: {whole}")


@app.command()
def verify(store: StoreRoot = STORE) -> None:
    """Re-hash every finished stage; name what is missing or altered and what depends on it. Exit status 1 if anything is.

    Example: selm verify
    """
    from harness.console import console
    from harness.store import Store

    found = Store(store).verify()
    for item in found:
        console.print(f"{item.path}: {item.what}; {item.action}", markup=False, soft_wrap=True)
    console.print(f"{len(Store(store).all_keys())} stages checked, {len(found)} findings.")
    raise typer.Exit(1 if found else 0)


@app.command()
def gc(
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed; without it nothing is touched.")] = False,
    searches: Annotated[bool, typer.Option(help="Keep what only a search's trials used.")] = True,
) -> None:
    """List stages that no study below --results needs, journals and failures of such stages, and what dead attempts left.

    Example: selm gc --delete
    """
    from harness.commands import collect_garbage
    from harness.store import Store

    collect_garbage(Store(store), results, delete, searches)


@app.command()
def export(
    study: StudyName,
    file: Annotated[Path, typer.Argument(help="The archive to write, for example alpha.tar.")],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    weights: Annotated[bool, typer.Option(help="With the checkpoints' weights.")] = True,
) -> None:
    """Write a study and its finished stages into one archive with the checksum of every file. Equal studies give equal archives.

    Example: selm export alpha alpha.tar --no-weights
    """
    from harness.commands import export_named
    from harness.store import Store

    export_named(results, study, Store(store), file, weights)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An archive written by `selm export`.")],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Check an archive's every file, then add its study. An archive that is not whole, or contradicts the store, changes nothing.

    Example: selm import alpha.tar
    """
    from harness.commands import import_file

    import_file(file, store, results)


@app.command()
def doctor(
    what: Annotated[str, typer.Argument(help="A study, a recipe, a checkpoint folder or a hub id; empty: the installation alone.")] = "",
    store: StoreRoot = STORE,
    overrides: Overrides = None,
) -> None:
    """Check versions, devices, disk, hub, judge and the model's template, and say what to fix. Exit status 1 if something needed is wrong.

    Example: selm doctor ablations/recipes/zephyr-7b.yaml
    """
    from harness.commands import parse_overrides
    from harness.doctor import examine

    raise typer.Exit(examine(what, store, parse_overrides(overrides or [])))


@app.command("judge-server")
def judge_server(
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="Port; 0 takes a free one and prints it.")] = 8765,
    noise: Annotated[float, typer.Option(help="Spread of the verdicts.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of that noise.")] = 0,
) -> None:
    """Serve the pocket judge: an OpenAI-compatible endpoint on loopback that rates pocket answers exactly and other text by a plain heuristic.

    Example: selm judge-server --port 8765
    """
    from harness.pocket.judge_server import run_forever
    from harness.settings import JudgeSettings

    run_forever(host, port, JudgeSettings(noise=noise, seed=seed).model_dump())


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
