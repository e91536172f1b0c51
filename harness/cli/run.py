"""``selm`` commands that ask: plan, run, search, and the report and tables of what was found."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from harness.cli import options
from harness.cli.options import lazily, parse_overrides, study_file, worker_count
from harness.files import hash_file, read_json, write_atomic
from harness.records import HarnessError, canonical_json, content_hash
from harness.study import shipped

with lazily():
    from optuna import Study as OptunaStudy

    from analysis import compare as comparing
    from analysis import load as loading
    from analysis import power_report, trackers
    from analysis import report as reporting
    from analysis import search as found_search
    from analysis.tables import study as missed
    from harness import cost as costs
    from harness.cli import console as shown
    from harness.engine import execute, graph, launch
    from harness.engine import store as stores
    from harness.engine.graph import Plan
    from harness.engine.launch import Watcher
    from harness.engine.store import Store
    from harness.study import study as studies
    from harness.study.given import Given
    from harness.tune import search as searches
    from harness.tune import workers as searching
    from harness.tune.search import Search

# -- plan ------------------------------------------------------------------------------------------


def plan(
    study: options.StudyFile,
    store: options.StoreRoot = options.STORE,
    overrides: options.Overrides = None,
    workers: options.Workers = 0,
    cost: Annotated[
        bool, Option("--cost", help="Tokens, operations, hours, memory, judging, price.")
    ] = False,
    devices: Annotated[int, Option(min=1, help="With --cost: accelerators.")] = 8,
    device: Annotated[str, Option(help="With --cost: h100 | h200 | a100 | rtx4090 | cpu")] = "h100",
    gpu_price: Annotated[float, Option(min=0, help="With --cost: USD for a GPU-hour.")] = 0.0,
) -> None:
    """Print cells, stages (shared, done, to do) and the estimated time. Runs nothing.

    With --cost a recipe's file may stand in for the study: one run of it.

    Example: selm plan ablations/alpha.yaml

    Example: selm plan ablations/recipes/zephyr-7b.yaml --cost --devices 8
    """
    changes, opened, count = parse_overrides(overrides), stores.Store(store), worker_count(workers)
    if not cost:
        show_plan(launch.prepare(study, changes), opened, count)
        return
    if device not in costs.DEVICES:
        raise HarnessError(f"--device {device!r} is unknown; allowed: {', '.join(costs.DEVICES)}")
    assumed = costs.Assumptions(costs.DEVICES[device], devices, usd_per_gpu_hour=gpu_price)
    found = costs.budget(launch.prepare_recipe(study, changes), opened, assumed)
    _show_warnings(found.plan)
    title = f"Cost of {found.plan.study.name}: {len(found.lines)} stages to do, {found.done} done"
    heads = costs.columns(found)
    left = [index for index, head in enumerate(heads) if head in ("stage", "from")]
    shown.table(title, heads, costs.rows(found), left)
    for line in costs.explained(found, count):
        shown.say(line)


def show_plan(plan: Plan, store: Store, workers: int) -> None:
    """Stages by name, shared, done and to do, and the estimated time with and without sharing."""
    states, uses, seconds = store.states(list(plan.nodes)), plan.uses, _seconds(plan, store)

    def line(name: str, keys: Sequence[str]) -> list[object]:
        todo = [key for key in keys if states[key] != "done"]
        shared = sum(uses[key] > 1 for key in keys)
        left = f"{sum(seconds[key] for key in todo):.0f}"
        return [name, len(keys), shared, len(keys) - len(todo), len(todo), left]

    by_stage: dict[str, list[str]] = {}
    for key, node in plan.nodes.items():
        by_stage.setdefault(node.stage, []).append(key)
    cells, seeds = len(plan.study.cells), len(plan.study.seeds)
    title = f"Study {plan.study.name}: {cells} cells ({cells // seeds} arms × {seeds} seeds)"
    heads = ("stage", "in all", "shared", "done", "to do", "seconds to do")
    rows = [line(name, keys) for name, keys in by_stage.items()]
    shown.table(title, heads, [*rows, line("all", list(plan.nodes))])
    whole = sum(seconds.values())
    unshared = sum(seconds[key] * (uses[key] or 1) for key in plan.nodes)
    shown.say(
        f"Stage-seconds of the whole study: {whole:.0f} with sharing, {unshared:.0f} without "
        f"({unshared / max(whole, 1e-9):.2f}×)."
    )
    if needed := costs.node(plan.study.base):
        shown.say(needed)
    _show_warnings(plan)
    left = sum(seconds[key] for key in plan.nodes if states[key] != "done")
    shown.say(
        f"Left to do: {left:.0f} stage-seconds, about {left / max(1, workers) / 60:.1f} minutes "
        f"on {workers} worker{'s' if workers != 1 else ''}."
    )


def _show_warnings(plan: Plan) -> None:
    """Arms that are one result under several names; values of schedules that no iteration reads;
    judges that are gone or soon will be.
    """
    for labels in graph.same_arms(plan):
        listed = " and ".join(map(repr, labels))
        shown.say(f"Arms {listed} come to the same settings: one result under several names.")
    recipes = [cell.recipe for cell in plan.study.cells]
    for told in dict.fromkeys(told for recipe in recipes for told in recipe.unread()):
        shown.say(f"{told}.")
    asked = [judge for recipe in recipes for judge in recipe.judges.values()]
    for told in dict.fromkeys(judge.sunset(date.today()) for judge in asked):
        if told:
            shown.say(f"Judge: {told}.", wrong=True)


def _seconds(plan: Plan, store: Store) -> dict[str, float]:
    return {key: expected.seconds for key, expected in execute.estimate(plan, store).items()}


# -- run -------------------------------------------------------------------------------------------


def run(
    study: options.StudyFile,
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
    overrides: options.Overrides = None,
    workers: options.Workers = 0,
    executor: Annotated[str, Option(help="inline | pool | ray")] = "pool",
    only: Annotated[list[str] | None, Option(help="Only stages of this name. Repeatable.")] = None,
    report: Annotated[bool, Option(help="Write the report at the end.")] = True,
    max_cost: options.MaxCost = 0.0,
    watch: Annotated[Path | None, Option(help="Score what is trained below this folder.")] = None,
    patience: Annotated[
        float, Option(min=0, help="With --watch: end after so many seconds without one; 0: never.")
    ] = 0.0,
    verbose: Annotated[bool, Option("--verbose", help="A line for every stage.")] = False,
) -> None:
    """Run every stage of a study that is not done, then write its report and show its finding.

    Run it again to continue. Exit status: 0 all there; 1 something failed; 2 the study or the
    command is wrong; 3 rows are still missing.

    With --watch the study is of checkpoints that somebody trains meanwhile (it names no axes, arms
    or seeds): RUN/checkpoint-500 is step 500 of arm RUN, with a part seed-1 in RUN of that seed.

    Example: selm run ablations/smoke.yaml

    Example: selm run ours.yaml --watch outputs/
    """
    how: dict[str, Any] = {"executor": executor, "only": only or (), "report": report}
    count = worker_count(workers)

    def go(found: Sequence[Given]) -> int:
        laid_out = launch.prepare(study, parse_overrides(overrides), found)
        limited = launch.share_cost(laid_out, stores.Store(store), max_cost)
        return run_plan(limited, store, results, workers=count, verbose=verbose, **how)

    if watch is None:
        raise typer.Exit(go(()))
    memory = results / studies.name_of(study) / "watched.json"
    raise typer.Exit(_watch(launch.Watcher(watch, memory), patience, go))


def _watch(watcher: Watcher, patience: float, go: Callable[[Sequence[Given]], int]) -> int:
    """Score what becomes whole until nothing did for ``patience`` seconds; the last status."""
    status, scored, last = 0, 0, time.monotonic()
    while not patience or time.monotonic() - last < patience:
        rows = watcher.look()
        if len(rows) > scored:
            status, scored = go(rows), len(rows)
            last = time.monotonic()
        time.sleep(launch.POLL_S)
    for folder, reason in watcher.waiting.items():
        shown.say(f"not scored: {shown.relative(Path(folder))}: {reason}", wrong=True)
    if not scored:
        raise HarnessError(f"--watch {watcher.folder}: no whole checkpoint in {patience:g} seconds")
    return status


def open_store(root: Path) -> Store:
    """Open a store for writing and report what had to be mended."""
    store = stores.Store(root)
    for repair in store.open():
        shown.say(f"repaired: {repair.path}: {repair.what}; {repair.action}", wrong=True)
    return store


def run_plan(
    plan: Plan,
    store_root: Path,
    results: Path,
    *,
    executor: str = "pool",
    workers: int,
    only: Sequence[str] = (),
    report: bool = True,
    verbose: bool = False,
) -> int:
    """Run what is missing, write manifest and report, show the finding; the exit status."""
    store, folder = open_store(store_root), results / plan.study.name
    seconds = _seconds(plan, store)
    write_atomic(folder / "manifest.json", canonical_json(graph.manifest(plan, seconds)))
    done = {key for key, state in store.states(list(plan.nodes)).items() if state == "done"}
    todo = len(plan.nodes) - len(done)
    shown.say(f"Study {plan.study.name}: {len(plan.nodes)} stages, {todo} to do.")
    _show_warnings(plan)
    started, summary = time.time(), execute.Summary(reused=len(done))
    if todo:
        if executor != "ray":
            launch.check_memory(plan, launch.device_memory())
        with execute.terminable():
            pool = launch.make_executor(executor, store, workers, plan)
            try:
                with shown.ProgressDisplay(plan, seconds, done, workers, verbose) as display:
                    summary = execute.execute(plan, store, pool, display, only)
            finally:
                pool.close()
    summary.failed |= execute.untrained(plan, store)
    freed = execute.retain(plan, store)
    shown.say(
        f"{summary.executed} stages executed, {summary.reused} reused, {len(summary.failed)} "
        f"failed, {len(summary.partial)} partial, {len(summary.blocked)} not reached; "
        f"{time.time() - started:.1f} s ({summary.seconds:.0f} stage-seconds)."
    )
    names = shown.describe(plan)
    for title, reasons in (("FAILED", summary.failed), ("PARTIAL", summary.partial)):
        for key, reason in reasons.items():
            shown.say(f"{title} {names.get(key, key[:12])} [{key[:12]}]: {reason}", wrong=True)
    if freed:
        shown.say(f"Retention ({plan.study.keep}): {freed / 1e6:.1f} MB of weights deleted.")
    show_left_out(store, plan.nodes)
    if report:
        show_report(plan, store, folder)
    return summary.exit_status


def show_left_out(store: Store, keys: Iterable[str]) -> None:
    """One line a kind of thing that the finished of these stages did not use, or not whole."""
    records = (store.record(key).left_out for key in keys if store.has(key))
    for line in missed.left_out_lines(records):
        shown.say(line)


def show_report(plan: Plan, store: Store, folder: Path) -> None:
    """Write the report where anything in it changed, and show its finding."""
    code = {str(path): hash_file(path) for path in Path(reporting.__file__).parent.rglob("*.py")}
    shows = (graph.manifest(plan, {}), store.states(list(plan.nodes)), code)
    stamp, kept = content_hash(*shows), folder / "report.stamp"
    written = (folder / "report" / "finding.json").is_file() and kept.is_file()
    if not written or kept.read_text(encoding="utf-8") != stamp:
        reporting.write_report(folder, store.root)
        write_atomic(kept, stamp)
    shown.show_finding(folder / "report", shipped.word(plan.study.file))


# -- what was found --------------------------------------------------------------------------------


def report(
    study: options.StudyName,
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
    to: Annotated[list[str] | None, Option(help="tensorboard, trackio, wandb, mlflow")] = None,
) -> None:
    """Write a study's tables, figures and report from what is stored.

    Works on unfinished studies and says so. With --to (repeatable) scores, intervals, diagnostics,
    training curves and the report also go to an experiment tracker: one run a cell, grouped by arm,
    at its iteration (training curves: at the optimiser's step). Sent again, the same runs are
    replaced. Where the tracker writes is told by its own variables (TRACKIO_DIR, WANDB_MODE,
    MLFLOW_TRACKING_URI, ...).

    Example: selm report alpha

    Example: selm report alpha --to trackio
    """
    folder, manifest = read_manifest(results, study)
    for name in to or ():
        trackers.check(name)
    reporting.write_report(folder, store)
    if to:
        sent = trackers.tracked(loading.load_study(folder, store), folder)
        for name in to:
            shown.say(f"{len(sent.runs)} runs sent: {trackers.TRACKERS[name](sent)}")
        if sent.incomplete:
            shown.say(f"Not sent: {sent.incomplete} scores of which too few rows are there.")
    show_left_out(stores.Store(store), manifest["stages"])
    by_file = study.endswith((".yaml", ".yml"))
    shown.show_finding(folder / "report", study if by_file else manifest["study"]["file"])


def read_manifest(results: Path, study: str) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of a study given by name or by its YAML file."""
    name = studies.name_of(Path(study)) if study.endswith((".yaml", ".yml")) else study
    path = results / name / "manifest.json"
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in results.glob("*/manifest.json")))
        raise HarnessError(f"{path}: no such study has run here; known: {known or 'none'}")
    return path.parent, dict(read_json(path, "`selm run` of the study writes it again"))


def compare(
    a: Annotated[
        str,
        Argument(
            autocompletion=options.arms,
            help="A run, an arm or base, with @iteration behind it; without: the last.",
        ),
    ],
    b: Annotated[str, Argument(autocompletion=options.arms, help="What A is compared with.")],
    study: Annotated[
        str, Option(autocompletion=options.finished, help="The study's name or YAML file.")
    ] = "alpha",
    benchmark: Annotated[str, Option(help="One benchmark or measure; empty: all.")] = "",
    delta: Annotated[float, Option(help="Differences below it, in its unit, do not matter.")] = 0.0,
    gate: Annotated[bool, Option("--gate", help="Exit with the verdict on one measure.")] = False,
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
) -> None:
    """Compare two cells or checkpoints of a study, paired by item and seed.

    The verdict on A: equivalent, where two one-sided tests at 5 % hold the difference within
    --delta; better or worse, where the 95 % interval (A), of one seed that over items, leaves out
    0; else undecided. With --gate the exit status is 0 better, 1 worse, 2 equivalent, 3 undecided,
    and 64 where there is no verdict (a name that is not there, a wrong option, a crash). Without
    --benchmark a gate looks at the study's declared outcome.

    Example: selm compare objective.alpha=1 objective.alpha=0 --study alpha --benchmark alpaca_eval

    Example: selm compare new@3 old@3 --study ours --gate --delta 1
    """
    folder, _ = read_manifest(results, study)
    asked = comparing.Asked(delta, gate)
    found = comparing.compare(loading.load_study(folder, store), a, b, benchmark, asked)
    shown.analysis_table(found)
    if gate:
        raise typer.Exit([*comparing.VERDICTS].index(str(found.data[0]["verdict"])))


def power(
    study: Annotated[
        str, Argument(autocompletion=options.finished, help="A study's name or YAML file.")
    ],
    delta: Annotated[
        float | None,
        Option(
            help="The difference to detect, in the score's units (default: about half of what the "
            "study detects now)."
        ),
    ] = None,
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
) -> None:
    """Seeds and items needed to detect a difference, and what they cost.

    From the study's variance components. The cost is that of its file.

    Example: selm power alpha --delta 1.0
    """
    folder, manifest = read_manifest(results, study)
    found = power_report.power_study(folder, store, delta)
    shown.analysis_table(found)
    needed = power_report.most_seeds(found)
    if needed is None:
        return
    changed = [one for part in manifest["study"].get("set", ()) for one in shlex.split(part)]
    plan = launch.prepare(shipped.study(Path(study)), parse_overrides(changed))
    counted = costs.budget(plan, stores.Store(store), costs.Assumptions(), whole=True)
    shown.say(costs.cost_of_seeds(counted, *needed))


# -- search ----------------------------------------------------------------------------------------


def tune(
    search: Annotated[
        Path,
        Argument(
            callback=study_file,
            autocompletion=options.studies,
            help="The search's YAML file, for example ablations/tune_alpha_beta.yaml, or the name "
            "of one there.",
        ),
    ],
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
    storage: Annotated[str, Option(help="Optuna's address; empty: SQLite in its folder.")] = "",
    workers: options.Workers = 0,
) -> None:
    """Search settings with Optuna, then compare the winner with the default on fresh seeds.

    No trial saw the fresh seeds. Run it again to continue.

    Example: selm tune ablations/tune_alpha_beta.yaml --workers 2
    """
    count, devices = worker_count(workers), launch.devices()
    spec = searches.load_tune(search)
    folder = results / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    default = f"sqlite:///{(folder / 'optuna.db').resolve()}"
    asked = searches.Search(search, store, storage or default)
    open_store(store)
    study = searches.open_study(asked)
    if count > 1 or len(devices) > 1:
        searching.run_workers(asked, count, devices)
    else:
        with execute.terminable():
            searching.work(asked)
    _report_search(folder, asked, study, {})
    final = searching.finalists(asked, study)
    status = run_plan(launch.plan_study(final), store, results, workers=count)
    _report_search(folder, asked, study, searching.fresh_values(asked, final))
    raise typer.Exit(status)


def _report_search(
    folder: Path, search: Search, study: OptunaStudy, fresh: Mapping[str, Any]
) -> None:
    """Write what a search found. fresh: finalist → values on fresh seeds, empty before."""
    spec, used = search.spec, searching.spent(study, search)
    found = found_search.Found(
        spec.question,
        [f"{metric.benchmark}/{metric.metric}" for metric in spec.metrics],
        spec.seeds,
        spec.fresh_seeds,
        {label: trial.number for label, trial in searching.winners(study).items()},
        fresh,
        search.default,
        used.over(spec),
        used.hours,
        used.usd,
    )
    path = found_search.write_search(study, folder / "search", found)
    shown.say(f"Search: {shown.relative(path)}")
