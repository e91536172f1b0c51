"""``selm bridge``: a new judge beside the published one, on public answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import RESULTS, STORE, MaxCost, Results, StoreRoot, StudyName, lazy
from harness.records import HarnessError, content_hash

if TYPE_CHECKING:
    import pandas as pd

    from analysis import bridge as reading
    from analysis import judge_runs as runs
    from analysis import load as loading
    from analysis import table as tables
    from analysis.tables import bridge as shown_tables
    from harness.cli import console as shown
    from harness.cli import doctor_judge
    from harness.evaluate import bridge as bridging
    from harness.judge import verdicts
    from harness.study import study as studies
    from harness.study import tasks
else:
    pd, runs, loading = lazy("pandas", "analysis.judge_runs", "analysis.load")
    reading, tables, shown_tables, shown, doctor_judge, bridging, verdicts, studies, tasks = lazy(
        "analysis.bridge",
        "analysis.table",
        "analysis.tables.bridge",
        "harness.cli.console",
        "harness.cli.doctor_judge",
        "harness.evaluate.bridge",
        "harness.judge.verdicts",
        "harness.study.study",
        "harness.study.tasks",
    )


def bridge(
    profile: Annotated[
        str, typer.Argument(help="The judge: a profile's name or file (ablations/judges).")
    ],
    folder: Annotated[
        Path, typer.Argument(help="Public answers with verdicts: alpaca_eval/, mt_bench/")
    ],
    results: Results = RESULTS,
    items: Annotated[
        int, typer.Option(min=0, help="Items of a benchmark, the same for all models; 0: all.")
    ] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Verdicts an item; two or more give the judge's noise.")
    ] = 1,
    max_cost: MaxCost = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print calls and price; ask nothing.")
    ] = False,
) -> None:
    """Judge public answers again and set the judge beside the one whose verdicts they carry.

    Agreement and kappa item by item, scores of every model under both, which differences between
    models keep their sign, what each judge leans to, and the map from one scale to the other. With
    --max-cost as many items are judged as it pays for. Studies judged by this judge then show their
    scores on the published scale too. Run it again to go on.

    Example: selm bridge qwen3-8b artefacts/ --items 200 --repeats 2
    """
    path = doctor_judge.profile_of(profile)
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
    out = results / shown_tables.FOLDER / f"{path.stem}-{key}"
    values, costs = bridging.judge_again(found, judge, runtime, out, repeats)
    rows = bridging.rows_of(found, values, bridging.gamed_of(folder))
    about = {"judge": label, "profile": path.stem, "repeats": repeats, "costs": costs}
    bridging.write(out / reading.FILE, about, rows)
    scales = reading.scales(rows)
    for table in (
        shown_tables.table_judges(about, scales),
        shown_tables.table_models(about, scales),
    ):
        shown.analysis_table(table)
        tables.write_table(table, out)
    missing = sum(row["new"] is None for row in rows)
    shown.say(f"{missing} verdicts are missing. Kept in {shown.relative(out)}.")
    raise typer.Exit(3 if any(row["status"] == "error" for row in rows) else 0)


def correct(
    study: StudyName,
    labels: Annotated[
        Path, typer.Argument(help="CSV with columns checkpoint, item, preference (1 to 2).")
    ],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """AlpacaEval win rates corrected by labels of a random subset (prediction-powered inference).

    The labels are people's, or a dearer judge's. A checkpoint is named as in `selm compare`.

    Example: selm correct alpha labels.csv
    """
    if not labels.is_file():
        raise HarnessError(f"{labels}: no such file")
    data = loading.load_study(results / study, store)
    shown.analysis_table(runs.table_corrected(data, pd.read_csv(labels)))
