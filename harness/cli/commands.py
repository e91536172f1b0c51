"""What the commands do, apart from parsing their arguments."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from harness.engine.execute import Executor, Inline, Pool, Summary, estimate, retain, terminable
from harness.engine.graph import Node, Plan
from harness.engine.manifest import manifest
from harness.engine.precheck import check_memory, device_memory, execute_checked
from harness.engine.runs import build_plan, files_of
from harness.engine.stages import function_of
from harness.engine.store import Store
from harness.engine.worker import runtime_of
from harness.files import hash_file, write_atomic
from harness.records import HarnessError, StageTask, canonical_json, content_hash
from harness.study.study import Study, compose, load_study
from harness.study.tasks import Runtime
from harness.study.yaml import parse_scalar
from harness.train.distributed import check_ready

FILE_ENDINGS = {".json", ".jsonl", ".gz", ".parquet", ".csv", ".yaml", ".jinja", ".txt"}


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


def fingerprints(study: Study) -> dict[str, str]:
    """Content hash of every file, checkpoint folder or hub name the study's recipes use. A missing
    file is an error here, before any compute.
    """
    names = sorted({name for cell in study.cells for name in files_of(cell.recipe)})
    found = {}
    for name in names:
        path = Path(name)
        if path.is_file():
            found[name] = hash_file(path)
        elif path.is_dir():
            from harness.stages.base import fingerprint

            found[name] = fingerprint(path)
        elif (
            name.count("/") == 1
            and not name.startswith((".", "/"))
            and path.suffix not in FILE_ENDINGS
        ):
            continue  # a hub id: its revision is part of the settings
        else:
            raise HarnessError(
                f"{study.file}: {name}: no such file or folder (named by the recipe or on the "
                "command line)"
            )
    return found


def prepare(path: Path, overrides: Mapping[str, Any]) -> Plan:
    """Read a study and lay out its graph."""
    study = load_study(path, overrides)
    return build_plan(study, fingerprints(study))


def plan_study(path: Path, store_root: Path, overrides: Mapping[str, Any], workers: int) -> Plan:
    """Print the plan: nothing is written."""
    plan = prepare(path, overrides)
    store = Store(store_root)
    states = store.states(list(plan.nodes))
    show_plan(plan, states, estimate(plan, store), workers)
    return plan


def make_executor(kind: str, store: Store, workers: int, plan: Plan) -> Executor:
    """The executor by name. Pools have one worker per core, or per GPU where there are any."""
    hub = any(
        name.count("/") == 1 and not Path(name).exists()
        for cell in plan.study.cells
        for name in files_of(cell.recipe)
    )
    here = None if kind == "ray" else len(devices())
    for runtime in [cell.recipe.runtime for cell in plan.study.cells]:
        check_ready(runtime, 0 if runtime.device == "cpu" else here)
    if kind == "inline":
        return Inline(store, hub)
    if kind == "ray":
        from harness.engine.ray_executor import RayExecutor

        ray: Executor = RayExecutor(store, workers, hub=hub)
        return ray
    if kind != "pool":
        raise HarnessError(f"--executor {kind!r} is unknown; allowed: inline, pool, ray")
    return Pool(store, workers, devices(), hub)


def devices() -> list[str]:
    """Visible GPUs by index, empty on a machine without; asks the driver's tool, so that torch need
    not be imported here.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [
            name
            for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",")
            if name.strip() not in ("", "-1")
        ]
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return listing.stdout.split() if listing.returncode == 0 else []


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
    write_atomic(folder / "manifest.json", canonical_json(manifest(plan, estimate(plan, store))))
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
        stamp = report_stamp(plan, store)
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


def report_stamp(plan: Plan, store: Store) -> str:
    """Hash of what a report shows: the study, the state of every stage, and the code that draws it."""
    import analysis

    sources = {
        path.name: hash_file(path) for path in sorted(Path(analysis.__file__).parent.glob("*.py"))
    }
    return content_hash(manifest(plan, {}), store.states(list(plan.nodes)), sources)


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
    from analysis.report import write_report

    if not (folder / "manifest.json").is_file():
        raise HarnessError(f"{folder}: no manifest.json; run the study first (`selm run`)")
    path = write_report(folder, store_root)
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
    from harness.tune import search as tune
    from harness.tune import storage as tune_open
    from harness.tune.file import load_tune

    spec = load_tune(path)
    folder = results / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    default = f"sqlite:///{(folder / 'optuna.db').resolve()}"
    origin = (
        storage or f"sqlite:///{(results / spec.fork_of / 'optuna.db').resolve()}"
        if spec.fork_of
        else ""
    )
    search = tune_open.Search(path, store_root, storage or default, origin)
    open_store(store_root)
    study = tune_open.open_study(search)
    if "fork" in study.user_attrs:
        console.print(tune.fork_text(study), markup=False, soft_wrap=True)
    if workers > 1 or len(devices()) > 1 or spec.trial_timeout_s:
        tune.run_workers(search, workers, devices())
    else:
        with terminable():
            tune.work(search)
    report_search(folder, search, study, {})
    final = tune.finalists(search, study)
    status = run_plan(
        build_plan(final, fingerprints(final)),
        store_root,
        results,
        executor="pool",
        workers=workers,
    )
    report_search(folder, search, study, tune.fresh_values(search, final))
    return status


def report_search(folder: Path, search: Any, study: Any, fresh: Mapping[str, Any]) -> None:
    """Write what a search found; ``fresh``: label of a finalist → its values on fresh seeds, empty
    before they ran.
    """
    from analysis.search import Found, write_search
    from harness.tune import search as tune
    from harness.tune import storage as tune_open

    spec = search.spec
    base = tune_open.base_study(search, spec).base
    used = tune.spent(study, Store(search.store), base.runtime)
    metrics = [f"{metric.benchmark}/{metric.metric}" for metric in spec.metrics]
    chosen = (
        {label: trial.number for label, trial in tune.winners(study).items()}
        if tune.any_complete(study)
        else {}
    )
    default = {key: tune_open.value_at(base, key) for key in spec.space}
    found = Found(
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
        f"Search: {relative(write_search(study, folder / 'search', found))}", markup=False
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
    plan = share_cost(build_plan(study, fingerprints(study)), Store(store_root), max_cost)
    return run_plan(plan, store_root, results, executor="pool", workers=workers)


JUDGED = ("judge.mt_bench", "judge.alpaca_eval", "judge.pairwise", "judge.mt_bench_pairwise")


def share_cost(plan: Plan, store: Store, max_cost: float) -> Plan:
    """The plan with ``max_cost`` USD (0: no limit) shared evenly by its stages that ask a judge and
    are not done, so that all of them together stay within it. What a stage's own journal spent
    earlier counts against its share.
    """
    waiting = [
        key
        for key, node in plan.nodes.items()
        if getattr(node.settings, "judge", None) and not store.has(key)
    ]
    if not max_cost or not waiting:
        return plan
    share = max_cost / len(waiting)
    limited = {
        key: dataclasses.replace(
            plan.nodes[key],
            runtime=plan.nodes[key].runtime.model_copy(update={"max_cost_usd": share}),
        )
        for key in waiting
    }
    return dataclasses.replace(plan, nodes={**plan.nodes, **limited})


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
    from harness.judge.client import DryRunError

    total: dict[str, float] = {}
    for node in nodes:
        inputs = {name: store.folder(key) for name, key in node.inputs.items()}
        with tempfile.TemporaryDirectory() as scratch:
            runtime = runtime_of(node.runtime).model_copy(update={"judge_dry_run": True})
            try:
                function_of(node.stage)(
                    StageTask(node.key, node.stage, node.settings, inputs, Path(scratch), runtime)
                )
            except DryRunError as stopped:
                for name, value in stopped.costs.items():
                    total[name] = total.get(name, 0.0) + value
    return total


def export_named(results: Path, study: str, store: Store, file: Path, weights: bool) -> None:
    """Write one study's manifest and stages into an archive."""
    from harness.engine.archive import export_study

    folder, _ = read_manifest(results, study)
    done = export_study(folder, store, file, weights)
    console.print(
        f"{file}: study {done.study}, {done.stages} stages, {file.stat().st_size / 1e6:.1f} MB; "
        f"{done.missing} are not done.",
        markup=False,
    )


def import_file(file: Path, store_root: Path, results: Path) -> None:
    """Check an archive and add its study to the store and the results."""
    from harness.engine.archive import import_archive

    done = import_archive(file, open_store(store_root), results)
    console.print(
        f"Study {done.study}: {done.stages} stages added, {done.present} were here already, "
        f"{done.missing} are not done.",
        markup=False,
    )
    console.print(f"Every checksum agrees. Next: selm report {done.study}", markup=False)


def collect_garbage(store: Store, results: Path, delete: bool, searches: bool) -> None:
    """Show what no study needs; delete it when told to."""
    from harness.engine.garbage import collect, waste

    found = waste(store, results, searches)
    for item in found:
        console.print(
            f"{item.kind:17s} {item.size / 1e6:10.2f} MB  {item.path}", markup=False, soft_wrap=True
        )
    if delete:
        console.print(f"{len(found)} things deleted, {collect(store, found) / 1e6:.1f} MB freed.")
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
    from analysis.judge_table import judge_table
    from harness.judge.meta import meta_evaluate, read_labelled_pairs
    from harness.judge.verdicts import judge_label

    for path in (pairs_file, recipe):
        if not path.is_file():
            raise HarnessError(f"{path}: no such file")
    pairs = read_labelled_pairs(pairs_file)
    base = compose(recipe, "meta-judge", str(recipe.resolve()), overrides, {"judge": {}}, [0]).base
    judge, annotator = base.judge, base.evaluation.alpaca_eval.annotator
    asked = hash_file(pairs_file), judge.model_dump(), annotator, repeats
    folder = results / "meta-judge" / f"{pairs_file.stem}-{content_hash(*asked, length=12)}"
    runtime = Runtime(**vars(base.runtime))
    found = meta_evaluate(pairs, judge, runtime, folder, annotator=annotator, repeats=repeats)
    write_atomic(
        folder / "meta.json",
        canonical_json(
            {"judge": judge_label(judge), "pairs": pairs_file.name, "repeats": repeats, **found}
        ),
    )
    show_table(judge_table(judge_label(judge), pairs_file.name, repeats, found))
    console.print(
        f"Kept in {relative(folder)}; asked again only for what is missing.", markup=False
    )


def serve_model(
    source: str, revision: str, name: str, host: str, port: int, device: str, dtype: str
) -> None:
    """Serve a local chat model through the chat-completions schema until interrupted."""
    import torch

    from harness.judge.chat_http import serve_until_interrupted
    from harness.judge.served import ServedModel
    from harness.model.policy import load_policy
    from harness.stages.base import resolve

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise HarnessError(
            f"--dtype {dtype!r} is unknown; allowed: auto, float32, bfloat16, float16"
        )
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = ("bfloat16" if device == "cuda" else "float32") if dtype == "auto" else dtype
    served = ServedModel(
        load_policy(resolve(source, revision), dtype=dtype, device=device), name or source
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
    serve_until_interrupted(served.handle, host, port)
