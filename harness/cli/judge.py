"""``selm`` commands that score and judge: single models, stored answers, judges themselves."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.options import lazily, parse_overrides, worker_count
from harness.cli.run import run_plan
from harness.files import hash_file, write_atomic
from harness.records import HarnessError, StageTask, canonical_json, content_hash

with lazily():
    import pandas as pd
    import torch

    from analysis import bridge as reading
    from analysis import judge_runs as runs
    from analysis import load as loading
    from analysis import table as tables
    from harness.cli import console as shown
    from harness.cli import findings
    from harness.engine import launch, stages, worker
    from harness.engine import store as stores
    from harness.engine.graph import Node
    from harness.engine.store import Store
    from harness.evaluate import bridge as bridging
    from harness.evaluate import published as figures
    from harness.evaluate import registry
    from harness.judge import chat_http, client, meta, verdicts
    from harness.model import policy, sources, tokenizer
    from harness.pocket import judge as pocket_judge
    from harness.study import sections, tasks
    from harness.study import study as studies

OWN_DATA = Path("ablations/recipes/own_data.yaml")
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print calls, tokens and price; ask nothing.")
]


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    recipe: Annotated[
        Path, typer.Option(help="Recipe that names benchmarks, judge and data.")
    ] = OWN_DATA,
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
    overrides: options.Overrides = None,
    workers: options.Workers = 0,
    name: Annotated[str, typer.Option(help="Name of the result folder.")] = "evaluate",
    max_cost: options.MaxCost = 0.0,
) -> None:
    """Score one model on a recipe's benchmarks, outside any study: no training.

    Example: selm evaluate CHECKPOINT --set data.path=pairs.jsonl
    --set evaluation.benchmarks=[academic]
    """
    if not recipe.is_file():
        raise HarnessError(f"{recipe}: no such recipe; give one with --recipe")
    changes = {"loop.iterations": 0, "loop.warmup_dpo": False, "model.source": model}
    changes |= parse_overrides(overrides)
    whole, question = str(recipe.resolve()), f"How does {model} score?"
    named = Path(model).resolve().name if Path(model).exists() else model
    arm: dict[str, dict[str, str]] = {named: {}}
    study = studies.compose(recipe, name, whole, changes, arm, [0], question)
    scored = [registry.BENCHMARKS[one] for one in study.base.evaluation.benchmarks]
    if not any("ranker" in one.inputs for one in scored):
        # Nothing is ranked: a ranker that the recipe names need not be there.
        changes |= {"ranker.kind": "oracle", "ranker.model": ""}
        study = studies.compose(recipe, name, whole, changes, arm, [0], question)
    plan = launch.share_cost(launch.plan_study(study), stores.Store(store), max_cost)
    raise typer.Exit(run_plan(plan, store, results, workers=worker_count(workers)))


def judge(
    study: options.StudyFile,
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
    overrides: options.Overrides = None,
    workers: options.Workers = 0,
    dry_run: DryRun = False,
    max_cost: options.MaxCost = 0.0,
) -> None:
    """Judge a study's stored answers again, for example by another judge.

    Trains and generates nothing, needs no GPU. Ends in one table that sets every arm against the
    baseline under both judges.

    Example: selm judge ablations/alpha.yaml --set judge.noise=0.6 --dry-run
    """
    plan, opened = launch.prepare(study, parse_overrides(overrides)), stores.Store(store)
    judged = registry.JUDGED_STAGES
    nodes = plan.nodes.values()
    waiting = [node for node in nodes if node.stage in judged and not opened.has(node.key)]
    answers = {
        key for node in waiting for name, key in node.inputs.items() if name.startswith("answer")
    }
    missing = [key for key in answers if not opened.has(key)]
    if missing:
        says = f"{len(missing)} sets of answers are not in {store}"
        raise HarnessError(f"{study}: {says}; `selm run` makes them")
    if dry_run:
        total: dict[str, float] = {}
        for node in waiting:
            for name, value in judging_cost(node, opened).items():
                total[name] = total.get(name, 0.0) + value
        told = ", ".join(f"{value:,.2f} {name}" for name, value in total.items())
        shown.say(f"Nothing was asked. This would take: {told}")
        return
    who = {name: verdicts.judge_label(one) for name, one in plan.study.base.judges.items()}
    label = content_hash(who, length=8)
    limited = launch.share_cost(plan, opened, max_cost)
    renamed = dataclasses.replace(plan.study, name=f"{plan.study.name}-judged-by-{label}")
    asked = dataclasses.replace(limited, study=renamed)
    status = run_plan(asked, store, results, workers=worker_count(workers), only=judged)
    first, second = results / plan.study.name, results / renamed.name
    try:
        table = runs.table_two_judges(*(loading.load_study(one, store) for one in (first, second)))
        shown.analysis_table(table)
        tables.write_table(table, second / "report" / "tables")
    except HarnessError as error:
        shown.say(f"The two judges are not set side by side: {error}")
    raise typer.Exit(status)


def judging_cost(node: Node, store: Store) -> dict[str, float]:
    """Calls, tokens and price of a judging stage, by running it up to the moment it would ask."""
    inputs = {name: store.folder(key) for name, key in node.inputs.items()}
    runtime = worker.runtime_of(node.runtime).model_copy(update={"judge_dry_run": True})
    with tempfile.TemporaryDirectory() as scratch:
        task = StageTask(node.key, node.stage, node.settings, inputs, Path(scratch), runtime)
        try:
            stages.function_of(node.stage)(task)
        except client.DryRunError as stopped:
            return stopped.costs
    return {}


def meta_judge(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Labelled pairs: a JSON list with input, output_1, output_2, label (LLMBar), or "
            "JSONL with pair_id, source, question, response_A, response_B, label (JudgeBench)."
        ),
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe that names the judge.")] = OWN_DATA,
    results: options.Results = options.RESULTS,
    overrides: options.Overrides = None,
    repeats: Annotated[
        int,
        typer.Option(min=1, help="Verdicts per pair and order; two or more give the noise floor."),
    ] = 2,
) -> None:
    """How far a judge can be trusted: agreement with labels, position-flip rate, noise floor.

    Judges every pair in both orders. Everything is kept below ``meta-judge`` in --results; run it
    again to continue.

    Example: selm meta-judge pairs.json --set judge.noise=0.6 --repeats 3
    """
    for path in (pairs, recipe):
        if not path.is_file():
            raise HarnessError(f"{path}: no such file")
    labelled = meta.read_labelled_pairs(pairs)
    whole, changes = str(recipe.resolve()), parse_overrides(overrides)
    base = studies.compose(recipe, "meta-judge", whole, changes, {"judge": {}}, [0]).base
    asked, annotator = base.judge, base.evaluation.of("alpaca_eval").annotator
    key = content_hash(hash_file(pairs), asked.model_dump(), annotator, repeats, length=12)
    folder = results / "meta-judge" / f"{pairs.stem}-{key}"
    runtime = tasks.Runtime(**vars(base.runtime))
    found = meta.meta_evaluate(
        labelled, asked, runtime, folder, annotator=annotator, repeats=repeats
    )
    label = verdicts.judge_label(asked)
    about = {"judge": label, "pairs": pairs.name, "repeats": repeats}
    write_atomic(folder / "meta.json", canonical_json(about | found))
    shown.analysis_table(runs.judge_table(label, pairs.name, repeats, found))
    shown.say(f"Kept in {shown.relative(folder)}; asked again only for what is missing.")


def published(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Public artefacts with their published figures: alpaca_eval/, mt_bench/, academic/"
        ),
    ],
) -> None:
    """Recompute published figures from public artefacts, with difference and tolerance.

    Exit status 1 if one is outside.

    Example: selm published artefacts/
    """
    rows = figures.recompute(folder)
    figures.show_figures(rows)
    raise typer.Exit(0 if rows and all(row.ok for row in rows) else 1)


def judge_server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, help="Port; 0 takes a free one and prints it.")
    ] = 8765,
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="Allow an address that other machines reach: no key is asked for."
        ),
    ] = False,
    noise: Annotated[float, typer.Option(help="Spread of the pocket judge's verdicts.")] = 0.3,
    model: Annotated[
        str, typer.Option(help="Serve this chat model instead: a checkpoint folder or hub id.")
    ] = "",
    name: Annotated[
        str, typer.Option(help="With --model: what judge.model calls it; empty: as given.")
    ] = "",
    device: Annotated[
        str, typer.Option(help="With --model: auto | cpu | cuda | cuda:N (in bfloat16 on a GPU)")
    ] = "auto",
) -> None:
    """Serve a judge as an OpenAI-compatible endpoint: the pocket judge, or a local chat model.

    The pocket judge rates pocket answers exactly and other text by a plain heuristic. A chat model
    (--model) answers by its own template, one request at a time, the same text for the same seed,
    with log-probabilities. A study asks it by judge.kind: openai, judge.base_url: the address
    printed, judge.model: its name.

    vLLM's server has the same interface and answers many requests at once:
    ``vllm serve MODEL --served-model-name judge --generation-config vllm --port 8765``; on a CPU
    with ``--enforce-eager --no-enable-chunked-prefill --gpu-memory-utilization 0.2`` (of main
    memory; ``make test-vllm`` makes that environment). The profiles ``vllm-choice`` (AlpacaEval)
    and ``vllm-rating`` (MT-Bench) ask it at that address and hold it to a verdict, which a small
    model may otherwise never give.

    Example: selm judge-server --port 8765

    Example: selm judge-server --model Qwen/Qwen3-1.7B --name judge
    """
    chat_http.check_host(host, public)
    if not model:
        opinion = sections.JudgeSettings(noise=noise).opinion
        answering = pocket_judge.JudgeServer(opinion)
        chat_http.serve_until_interrupted(answering.handle, host, port)
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    loaded = policy.load_policy(sources.resolve(model, ""), dtype=dtype, device=device)
    serving = chat_http.ServedModel(loaded, name or model)
    room = f"{serving.positions:,} tokens of context, one request at a time"
    shown.say(f"{serving.name}: {dtype} on {device}, {room}.", wrong=True)
    if not tokenizer.takes_system_turn(loaded.tokenizer):
        turn = "Its template has no system turn: that text is put before the first user's."
        shown.say(turn, wrong=True)
    chat_http.serve_until_interrupted(serving.handle, host, port)


def bridge(
    profile: Annotated[
        str, typer.Argument(help="The judge: a profile's name or file (ablations/judges).")
    ],
    folder: Annotated[
        Path, typer.Argument(help="Public answers with verdicts: alpaca_eval/, mt_bench/")
    ],
    results: options.Results = options.RESULTS,
    items: Annotated[
        int, typer.Option(min=0, help="Items of a benchmark, the same for all models; 0: all.")
    ] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Verdicts an item; two or more give the judge's noise.")
    ] = 1,
    max_cost: options.MaxCost = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 8,
    dry_run: DryRun = False,
) -> None:
    """Judge public answers again and set the judge beside the one whose verdicts they carry.

    Agreement and kappa item by item, scores of every model under both, which differences between
    models keep their sign, what each judge leans to, and the map from one scale to the other. With
    --max-cost as many items are judged as it pays for. Studies judged by this judge then show their
    scores on the published scale too. Run it again to go on.

    Example: selm bridge qwen3-8b artefacts/ --items 200 --repeats 2
    """
    path = findings.profile_of(profile)
    if path is None:
        raise HarnessError(f"{profile}: no such profile in ablations/judges; give its name or file")
    judge = studies.checked_judge(path)
    runtime = tasks.Runtime(judge_concurrency=concurrency, max_cost_usd=max_cost)
    found = bridging.sample(bridging.read_public(folder), judge, runtime, items, repeats)
    price = bridging.cost(found, judge, runtime, repeats)
    calls = len(found) * repeats * judge.samples
    shown.say(f"{len(found):,} answers, {calls:,} calls, about {price:,.2f} USD.")
    if dry_run:
        return
    label = verdicts.judge_label(judge)
    key = content_hash(label, [(one.model, one.item, one.old) for one in found], repeats, length=8)
    out = results / reading.FOLDER / f"{path.stem}-{key}"
    values, costs = bridging.judge_again(found, judge, runtime, out, repeats)
    rows = bridging.rows_of(found, values, folder)
    about = {"judge": label, "profile": path.stem, "repeats": repeats, "costs": costs}
    write_atomic(out / reading.FILE, canonical_json({**about, "rows": rows}) + "\n")
    scales = reading.scales(rows)
    for table in (reading.table_judges(about, scales), reading.table_models(about, scales)):
        shown.analysis_table(table)
        tables.write_table(table, out)
    missing = sum(row["new"] is None for row in rows)
    shown.say(f"{missing} verdicts are missing. Kept in {shown.relative(out)}.")
    raise typer.Exit(3 if any(row["status"] == "error" for row in rows) else 0)


def correct(
    study: options.StudyName,
    labels: Annotated[
        Path, typer.Argument(help="CSV with columns checkpoint, item, preference (1 to 2).")
    ],
    store: options.StoreRoot = options.STORE,
    results: options.Results = options.RESULTS,
) -> None:
    """AlpacaEval win rates corrected by labels of a random subset (prediction-powered inference).

    The labels are people's, or a dearer judge's. A checkpoint is named as in `selm compare`.

    Example: selm correct alpha labels.csv
    """
    if not labels.is_file():
        raise HarnessError(f"{labels}: no such file")
    data = loading.load_study(results / study, store)
    shown.analysis_table(runs.table_corrected(data, pd.read_csv(labels)))
