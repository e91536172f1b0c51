"""What the commands do, apart from parsing their arguments."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import analysis
from harness.cli.console import (
    ProgressDisplay,
    console,
    describe,
    errors,
    relative,
    show_plan,
    show_summary,
    show_table,
)
from harness.cli.lazy import lazy
from harness.cost.budget import DEVICES, Assumptions, budget, columns, explained, rows
from harness.engine.execute import Summary, estimate, retain, terminable
from harness.engine.graph import Node, Plan
from harness.engine.launch import (
    check_memory,
    device_memory,
    devices,
    execute_checked,
    make_executor,
    plan_study,
    prepare,
    prepare_recipe,
    report_stamp,
    share_cost,
)
from harness.engine.manifest import manifest
from harness.engine.stages import function_of
from harness.engine.store import Store
from harness.engine.worker import runtime_of
from harness.files import hash_file, write_atomic
from harness.records import HarnessError, StageTask, canonical_json, content_hash
from harness.study.study import compose, load_study
from harness.study.tasks import Runtime
from harness.study.yaml import parse_scalar

judge_table_module = lazy("analysis.judge_table")
report_module = lazy("analysis.report")
analysis_search_module = lazy("analysis.search")
archive_module = lazy("harness.engine.archive")
garbage_module = lazy("harness.engine.garbage")
chat_http_module = lazy("harness.judge.chat_http")
client_module = lazy("harness.judge.client")
meta_module = lazy("harness.judge.meta")
served_module = lazy("harness.judge.served")
verdicts_module = lazy("harness.judge.verdicts")
policy_module = lazy("harness.model.policy")
base_module = lazy("harness.stages.base")
file_module = lazy("harness.tune.file")
search_module = lazy("harness.tune.search")
storage_module = lazy("harness.tune.storage")


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs of the command line; values are read as YAML scalars."""
    result: dict[str, Any] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise HarnessError(
                f"--set {item!r}: give key=value, for example --set training.batch_size=32"
            )
        result[key] = parse_scalar(value)
    return result


def show_study(path: Path, store_root: Path, overrides: Mapping[str, Any], workers: int) -> Plan:
    """Print the plan: nothing is written."""
    plan = prepare(path, overrides)
    store = Store(store_root)
    states = store.states(list(plan.nodes))
    show_plan(plan, states, _seconds(plan, store), workers)
    return plan


def _seconds(plan: Plan, store: Store) -> dict[str, float]:
    return {key: expected.seconds for key, expected in estimate(plan, store).items()}


def show_cost(
    path: Path,
    store: Store,
    overrides: Mapping[str, Any],
    workers: int,
    devices: int,
    device: str,
    price: float,
) -> None:
    """Count and print the budget of a study's or a recipe's file."""
    if device not in DEVICES:
        raise HarnessError(f"--device {device!r} is unknown; allowed: {', '.join(DEVICES)}")
    assumed = Assumptions(DEVICES[device], devices, usd_per_gpu_hour=price)
    found = budget(prepare_recipe(path, overrides), store, assumed)
    name, todo = found.plan.study.name, len(found.lines)
    table = Table(title=f"Cost of {name}: {todo} stages to do, {found.done} done", box=None)
    for head in columns(found):
        left = head in ("stage", "from")
        table.add_column(head, justify="left" if left else "right", no_wrap=head == "stage")
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    for line in explained(found, workers):
        console.print(line, markup=False, soft_wrap=True)


def run_study(
    path: Path,
    store_root: Path,
    results: Path,
    overrides: Mapping[str, Any],
    *,
    executor: str,
    workers: int,
    only: Sequence[str] = (),
    report: bool = True,
    max_cost: float = 0.0,
) -> int:
    """Run what is missing of a study file; returns the exit status."""
    return run_plan(
        share_cost(prepare(path, overrides), Store(store_root), max_cost),
        store_root,
        results,
        executor=executor,
        workers=workers,
        only=only,
        report=report,
    )


def open_store(root: Path) -> Store:
    """Open a store for writing and report what had to be mended."""
    store = Store(root)
    for repair in store.open():
        errors.print(f"repaired: {repair.path}: {repair.what}; {repair.action}", markup=False)
    return store


def run_plan(
    plan: Plan,
    store_root: Path,
    results: Path,
    *,
    executor: str,
    workers: int,
    only: Sequence[str] = (),
    report: bool = True,
) -> int:
    """Run what is missing of a plan, write its manifest and its report; returns the exit status."""
    store = open_store(store_root)
    folder = results / plan.study.name
    write_atomic(folder / "manifest.json", canonical_json(manifest(plan, _seconds(plan, store))))
    states = store.states(list(plan.nodes))
    todo = sum(state != "done" for state in states.values())
    console.print(f"Study {plan.study.name}: {len(plan.nodes)} stages, {todo} to do.", markup=False)
    started = time.time()
    summary = _walk(plan, store, executor, workers, only, todo)
    freed = retain(plan, store)
    show_summary(summary, time.time() - started, describe(plan))
    if freed:
        console.print(f"Retention ({plan.study.keep}): {freed / 1e6:.1f} MB of weights deleted.")
    if report:
        sources = Path(analysis.__file__).parent.rglob("*.py")
        stamp = report_stamp(plan, store, sources)
        if (
            stamp != _read(folder / "report.stamp")
            or not (folder / "report" / "report.md").is_file()
        ):
            report_study(folder, store_root)
            write_atomic(folder / "report.stamp", stamp)
        else:
            console.print(
                f"Report: {relative(folder / 'report' / 'report.md')} is up to date.", markup=False
            )
    return summary.exit_status


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _walk(
    plan: Plan, store: Store, kind: str, workers: int, only: Sequence[str], todo: int
) -> Summary:
    if not todo:
        return Summary(reused=len(plan.nodes))
    if kind != "ray":
        check_memory(plan, device_memory())
    pool = make_executor(kind, store, workers, plan)
    try:
        with terminable(), ProgressDisplay(plan, todo) as display:
            return execute_checked(plan, store, pool, display, only)
    finally:
        pool.close()


def report_study(folder: Path, store_root: Path) -> Path:
    """Write the report of a study from its manifest and the store."""

    if not (folder / "manifest.json").is_file():
        raise HarnessError(f"{folder}: no manifest.json; run the study first (`selm run`)")
    path = report_module.write_report(folder, store_root)
    console.print(f"Report: {relative(Path(path))}", markup=False)
    return Path(path)


def read_manifest(results: Path, study: str) -> tuple[Path, dict[str, Any]]:
    """The manifest of a study given by name or by its YAML file."""
    name = load_study(Path(study)).name if study.endswith((".yaml", ".yml")) else study
    path = results / name / "manifest.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in results.glob("*/manifest.json"))
        raise HarnessError(
            f"{path}: no such study has run here; known: {', '.join(known) or 'none'}"
        )
    return path.parent, json.loads(path.read_text(encoding="utf-8"))


def find_key(store: Store, prefix: str) -> str:
    """The one committed stage whose key starts with ``prefix``."""
    matches = [key for key in store.all_keys() if key.startswith(prefix)]
    if len(matches) != 1:
        raise HarnessError(
            f"{prefix!r} names {len(matches)} stages in {store.root}; give more of the key"
        )
    return matches[0]


def tune_study(path: Path, store_root: Path, results: Path, storage: str, workers: int) -> int:
    """Search, then judge the winners on fresh seeds; run again to continue. Returns the exit
    status.
    """

    spec = file_module.load_tune(path)
    folder = results / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    default = f"sqlite:///{(folder / 'optuna.db').resolve()}"
    origin = (
        storage or f"sqlite:///{(results / spec.fork_of / 'optuna.db').resolve()}"
        if spec.fork_of
        else ""
    )
    search = storage_module.Search(path, store_root, storage or default, origin)
    open_store(store_root)
    study = storage_module.open_study(search)
    if "fork" in study.user_attrs:
        console.print(search_module.fork_text(study), markup=False, soft_wrap=True)
    if workers > 1 or len(devices()) > 1 or spec.trial_timeout_s:
        search_module.run_workers(search, workers, devices())
    else:
        with terminable():
            search_module.work(search)
    report_search(folder, search, study, {})
    final = search_module.finalists(search, study)
    status = run_plan(plan_study(final), store_root, results, executor="pool", workers=workers)
    report_search(folder, search, study, search_module.fresh_values(search, final))
    return status


def report_search(folder: Path, search: Any, study: Any, fresh: Mapping[str, Any]) -> None:
    """Write what a search found; ``fresh``: label of a finalist → its values on fresh seeds, empty
    before they ran.
    """

    spec = search.spec
    base = storage_module.base_study(search, spec).base
    used = search_module.spent(study, Store(search.store), base.runtime)
    metrics = [f"{metric.benchmark}/{metric.metric}" for metric in spec.metrics]
    chosen = (
        {label: trial.number for label, trial in search_module.winners(study).items()}
        if search_module.any_complete(study)
        else {}
    )
    default = {key: storage_module.value_at(base, key) for key in spec.space}
    found = analysis_search_module.Found(
        spec.question,
        metrics,
        spec.seeds,
        spec.fresh_seeds,
        chosen,
        fresh,
        default,
        used.over(spec),
        used.hours,
        used.usd,
    )
    console.print(
        f"Search: {relative(analysis_search_module.write_search(study, folder / 'search', found))}",
        markup=False,
    )


def evaluate_model(
    model: str,
    recipe: Path,
    name: str,
    store_root: Path,
    results: Path,
    overrides: Mapping[str, Any],
    workers: int,
    max_cost: float = 0.0,
) -> int:
    """Score one model on a recipe's benchmarks: a study of no iterations. Returns the exit status."""
    if not recipe.is_file():
        raise HarnessError(f"{recipe}: no such recipe; give one with --recipe")
    changes = {"loop.iterations": 0, "loop.warmup_dpo": False, "model.source": model, **overrides}
    study = compose(
        recipe, name, str(recipe.resolve()), changes, {model: {}}, [0], f"How does {model} score?"
    )
    if (
        "heldout" not in study.base.evaluation.benchmarks
    ):  # nothing is ranked: a ranker named by the recipe need not be there
        changes |= {"ranker.kind": "oracle", "ranker.model": ""}
        study = compose(
            recipe, name, str(recipe.resolve()), changes, {model: {}}, [0], study.question
        )
    plan = share_cost(plan_study(study), Store(store_root), max_cost)
    return run_plan(plan, store_root, results, executor="pool", workers=workers)


JUDGED = ("judge.mt_bench", "judge.alpaca_eval", "judge.pairwise", "judge.mt_bench_pairwise")


def rejudge(
    path: Path,
    store_root: Path,
    results: Path,
    overrides: Mapping[str, Any],
    workers: int,
    dry_run: bool,
    max_cost: float = 0.0,
) -> int:
    """Judge stored answers by the study's judge as changed on the command line; the answers
    themselves must be there.
    """
    plan = prepare(path, overrides)
    store = Store(store_root)
    waiting = [
        node for node in plan.nodes.values() if node.stage in JUDGED and not store.has(node.key)
    ]
    missing = {
        key
        for node in waiting
        for name, key in node.inputs.items()
        if name.startswith("answer") and not store.has(key)
    }
    if missing:
        raise HarnessError(
            f"{path}: {len(missing)} sets of answers are not in {store_root}; `selm run` makes them"
        )
    if dry_run:
        total = judging_cost(waiting, store)
        console.print(
            "Nothing was asked. This would take: "
            + ", ".join(f"{value:,.2f} {name}" for name, value in total.items()),
            markup=False,
        )
        return 0
    name = (
        f"{plan.study.name}-judged-by-{content_hash(plan.study.base.judge.model_dump(), length=8)}"
    )
    renamed = dataclasses.replace(
        share_cost(plan, store, max_cost), study=dataclasses.replace(plan.study, name=name)
    )
    return run_plan(renamed, store_root, results, executor="pool", workers=workers, only=JUDGED)


def judging_cost(nodes: Sequence[Node], store: Store) -> dict[str, float]:
    """Calls, tokens and price of judging stages, by running each up to the moment it would ask."""

    total: dict[str, float] = {}
    for node in nodes:
        inputs = {name: store.folder(key) for name, key in node.inputs.items()}
        with tempfile.TemporaryDirectory() as scratch:
            runtime = runtime_of(node.runtime).model_copy(update={"judge_dry_run": True})
            try:
                function_of(node.stage)(
                    StageTask(node.key, node.stage, node.settings, inputs, Path(scratch), runtime)
                )
            except client_module.DryRunError as stopped:
                for name, value in stopped.costs.items():
                    total[name] = total.get(name, 0.0) + value
    return total


def export_named(results: Path, study: str, store: Store, file: Path, weights: bool) -> None:
    """Write one study's manifest and stages into an archive."""

    folder, _ = read_manifest(results, study)
    done = archive_module.export_study(folder, store, file, weights)
    console.print(
        f"{file}: study {done.study}, {done.stages} stages, {file.stat().st_size / 1e6:.1f} MB; "
        f"{done.missing} are not done.",
        markup=False,
    )


def import_file(file: Path, store_root: Path, results: Path) -> None:
    """Check an archive and add its study to the store and the results."""

    done = archive_module.import_archive(file, open_store(store_root), results)
    console.print(
        f"Study {done.study}: {done.stages} stages added, {done.present} were here already, "
        f"{done.missing} are not done.",
        markup=False,
    )
    console.print(f"Every checksum agrees. Next: selm report {done.study}", markup=False)


def collect_garbage(store: Store, results: Path, delete: bool, searches: bool) -> None:
    """Show what no study needs; delete it when told to."""

    found = garbage_module.waste(store, results, searches)
    for item in found:
        console.print(
            f"{item.kind:17s} {item.size / 1e6:10.2f} MB  {item.path}", markup=False, soft_wrap=True
        )
    if delete:
        console.print(
            f"{len(found)} things deleted, {garbage_module.collect(store, found) / 1e6:.1f} MB freed."
        )
    else:
        console.print(
            f"{len(found)} things, {sum(item.size for item in found) / 1e6:.1f} MB. Nothing was "
            "deleted; `selm gc --delete` does it."
        )


def meta_judge(
    pairs_file: Path, recipe: Path, results: Path, overrides: Mapping[str, Any], repeats: int
) -> None:
    """Judge labelled pairs in both orders and print what that says about the judge; everything is
    kept below ``results/meta-judge``.
    """

    for path in (pairs_file, recipe):
        if not path.is_file():
            raise HarnessError(f"{path}: no such file")
    pairs = meta_module.read_labelled_pairs(pairs_file)
    base = compose(recipe, "meta-judge", str(recipe.resolve()), overrides, {"judge": {}}, [0]).base
    judge, annotator = base.judge, base.evaluation.of("alpaca_eval").annotator
    asked = hash_file(pairs_file), judge.model_dump(), annotator, repeats
    folder = results / "meta-judge" / f"{pairs_file.stem}-{content_hash(*asked, length=12)}"
    runtime = Runtime(**vars(base.runtime))
    found = meta_module.meta_evaluate(
        pairs, judge, runtime, folder, annotator=annotator, repeats=repeats
    )
    write_atomic(
        folder / "meta.json",
        canonical_json(
            {
                "judge": verdicts_module.judge_label(judge),
                "pairs": pairs_file.name,
                "repeats": repeats,
                **found,
            }
        ),
    )
    show_table(
        judge_table_module.judge_table(
            verdicts_module.judge_label(judge), pairs_file.name, repeats, found
        )
    )
    console.print(
        f"Kept in {relative(folder)}; asked again only for what is missing.", markup=False
    )


def serve_model(
    source: str, revision: str, name: str, host: str, port: int, device: str, dtype: str
) -> None:
    """Serve a local chat model through the chat-completions schema until interrupted."""
    import torch

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise HarnessError(
            f"--dtype {dtype!r} is unknown; allowed: auto, float32, bfloat16, float16"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    served = served_module.ServedModel(
        policy_module.load_policy(
            base_module.resolve(source, revision), dtype=dtype, device=device
        ),
        name or source,
    )
    errors.print(
        f"{served.name}: {dtype} on {device}, {served.positions:,} tokens of context, one request "
        "at a time.",
        markup=False,
    )
    if not served.system_turn:
        errors.print(
            "Its template has no system turn: that text is put before the first user's.",
            markup=False,
        )
    chat_http_module.serve_until_interrupted(served.handle, host, port)
