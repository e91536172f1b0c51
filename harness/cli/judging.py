"""``selm`` commands that score and judge: models outside a study, stored answers, the judges
themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.lazy import lazy
from harness.cli.options import (
    RESULTS,
    STORE,
    MaxCost,
    Overrides,
    Results,
    StoreRoot,
    StudyFile,
    Workers,
    worker_count,
)

commands_module = lazy("harness.cli.commands")
published_module = lazy("harness.evaluate.published")
chat_http_module = lazy("harness.judge.chat_http")
judge_server_module = lazy("harness.pocket.judge_server")
sections_module = lazy("harness.study.sections")


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    recipe: Annotated[
        Path, typer.Option(help="Recipe that names benchmarks, judge and data.")
    ] = Path("ablations/recipes/own_data.yaml"),
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    overrides: Overrides = None,
    workers: Workers = 0,
    name: Annotated[str, typer.Option(help="Name of the result folder.")] = "evaluate",
    max_cost: MaxCost = 0.0,
) -> None:
    """Score one model on a recipe's benchmarks, outside any study: no training.

    Example: selm evaluate CHECKPOINT --set data.path=pairs.jsonl --set
    evaluation.benchmarks=[mt_bench]
    """

    raise typer.Exit(
        commands_module.evaluate_model(
            model,
            recipe,
            name,
            store,
            results,
            commands_module.parse_overrides(overrides or []),
            worker_count(workers),
            max_cost,
        )
    )


def judge(
    study: StudyFile,
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    overrides: Overrides = None,
    workers: Workers = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print calls, tokens and price; ask nothing.")
    ] = False,
    max_cost: MaxCost = 0.0,
) -> None:
    """Judge a study's stored answers again, for example by another judge. Trains and generates
    nothing, needs no GPU.

    Example: selm judge ablations/alpha.yaml --set judge.noise=0.6 --dry-run
    """

    raise typer.Exit(
        commands_module.rejudge(
            study,
            store,
            results,
            commands_module.parse_overrides(overrides or []),
            worker_count(workers),
            dry_run,
            max_cost,
        )
    )


def meta_judge(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Labelled pairs: a JSON list with input, output_1, output_2, label (LLMBar's "
            "form)."
        ),
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe that names the judge.")] = Path(
        "ablations/recipes/own_data.yaml"
    ),
    results: Results = RESULTS,
    overrides: Overrides = None,
    repeats: Annotated[
        int,
        typer.Option(min=1, help="Verdicts per pair and order; two or more give the noise floor."),
    ] = 2,
) -> None:
    """How far a judge can be trusted: agreement with labelled pairs, position-flip rate, noise
    floor. Run it again to continue.

    Example: selm meta-judge ../shared/data/preferences/llmbar/natural.json --set judge.noise=0.6
    --repeats 3
    """

    commands_module.meta_judge(
        pairs, recipe, results, commands_module.parse_overrides(overrides or []), repeats
    )


def published(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Public artefacts: alpaca_eval/, mt_bench/, academic/ with their published "
            "figures."
        ),
    ],
) -> None:
    """Recompute published figures from public artefacts: published, recomputed, difference,
    tolerance. Exit status 1 if one is outside.

    Example: selm published ../shared/data
    """

    rows = published_module.recompute(folder)
    published_module.show_figures(rows)
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of that noise.")] = 0,
    model: Annotated[
        str, typer.Option(help="Serve this chat model instead: a checkpoint folder or hub id.")
    ] = "",
    revision: Annotated[str, typer.Option(help="With --model: the hub's revision.")] = "",
    name: Annotated[
        str, typer.Option(help="With --model: what judge.model calls it; empty: as given.")
    ] = "",
    device: Annotated[str, typer.Option(help="With --model: auto | cpu | cuda | cuda:N")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="With --model: auto (bfloat16 on a GPU) | float32 | bfloat16")
    ] = "auto",
) -> None:
    """Serve a judge as an OpenAI-compatible endpoint on loopback: the pocket judge, or with --model
    a local chat model.

    The pocket judge rates pocket answers exactly and other text by a plain heuristic. A chat model
    answers by its own template, one request at a time, the same text for the same seed, with
    log-probabilities. A study asks it by judge.kind: openai, judge.base_url: the address printed,
    judge.model: its name. For many judgments serve it by vLLM instead, which has the same
    interface.

    Example: selm judge-server --port 8765

    Example: selm judge-server --model Qwen/Qwen3-1.7B --name judge
    """

    chat_http_module.check_host(host, public)
    if model:
        commands_module.serve_model(model, revision, name, host, port, device, dtype)
    else:
        judge_server_module.run_forever(
            host, port, sections_module.JudgeSettings(noise=noise, seed=seed).model_dump()
        )
