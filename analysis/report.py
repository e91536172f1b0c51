"""The report of a study: ``report.md``, ``index.html``, ``tables/``, ``figures/``; a pure function
of the store.

``report.md``, tables and figures hold no times, hosts or versions, so they are byte-identical for
equal results. Costs and versions are in ``costs/``; the HTML page shows them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis import cards, text
from analysis.figure import Drawn, write_figure
from analysis.figures import FIGURES, draw
from analysis.load import StudyData, load_study
from analysis.page import FIRST_TABLES, flat, is_volatile, page, settings, summary, versions
from analysis.table import Table, Unavailable, as_markdown, write_table
from analysis.tables import tables_of
from analysis.tables.bridge import study_tables
from harness.files import write_atomic

SEARCH = "search/search.md"
"""What a search wrote beside the report of its finalists."""


def write_report(study_dir: Path, store_dir: Path) -> Path:
    """Write ``<study_dir>/report`` from the manifest and the store; returns the path of
    ``report.md``. Works on unfinished studies.

    Raises HarnessError when the manifest is missing or broken, or a file cannot be written.
    """
    data = load_study(Path(study_dir), Path(store_dir))
    folder = Path(study_dir) / "report"
    tables = tables_of(data) | study_tables(data, Path(study_dir).parent)
    figures = {key: draw(key, data) for key in FIGURES}
    _remove_stale(folder, tables, figures)
    for table in tables.values():
        if isinstance(table, Table):
            write_table(table, folder / ("costs" if table.volatile else "tables"))
    for figure in figures.values():
        if isinstance(figure, Drawn):
            write_figure(figure, folder / "figures")
    facts = versions(data)
    write_atomic(
        folder / "costs" / "versions.json", json.dumps(facts, indent=1, sort_keys=True) + "\n"
    )
    write_atomic(
        folder / "settings.json", json.dumps(settings(data), indent=1, sort_keys=True) + "\n"
    )
    path = folder / "report.md"
    models = len(cards.write_cards(data, Path(study_dir)))
    searched = (Path(study_dir) / SEARCH).is_file()
    write_atomic(path, markdown(data, tables, figures, searched, models))
    write_atomic(
        folder / "index.html",
        page(data, tables, figures, facts, search=f"../{SEARCH}" if searched else ""),
    )
    return path


def _remove_stale(
    folder: Path,
    tables: Mapping[str, Table | Unavailable],
    figures: Mapping[str, Drawn | Unavailable],
) -> None:
    """Delete exhibits of an earlier report that this one does not have, so that no old number
    stands beside new ones.
    """
    groups: tuple[tuple[str, Mapping[str, Any], type], ...] = (
        ("tables", tables, Table),
        ("figures", figures, Drawn),
    )
    for name, exhibits, kind in groups:
        kept = {key for key, exhibit in exhibits.items() if isinstance(exhibit, kind)}
        for path in sorted((folder / name).glob("*")):
            if path.is_file() and path.stem in exhibits and path.stem not in kept:
                path.unlink()


def markdown(
    data: StudyData,
    tables: Mapping[str, Table | Unavailable],
    figures: Mapping[str, Drawn | Unavailable],
    searched: bool = False,
    models: int = 0,
) -> str:
    """The whole report as Markdown; figures are linked as PNG. models: checkpoints that have a
    model card.
    """
    lines = [f"# {text.markdown(data.name)}", ""]
    paragraphs = summary(data)
    head, *rest = paragraphs[0]
    lines += [f"**{text.markdown(head)}** {text.markdown(' '.join(rest))}".rstrip(), ""]
    if data.question:
        lines += [f"Question asked: {text.markdown(data.question)}", ""]
    for paragraph in paragraphs[1:]:
        lines += [text.markdown(" ".join(paragraph)), ""]
    if searched:
        lines += [
            "The settings compared here were found by a search: [its trials, failures, "
            f"importance and figures](../{SEARCH}).",
            "",
        ]
    lines += ["## Scores", ""]
    lines += [_table(tables[key]) for key in FIRST_TABLES]
    lines += ["## Figures", ""]
    lines += [_figure(key, figure) for key, figure in figures.items()]
    lines += ["## Further tables", ""]
    lines += [
        _table(table)
        for key, table in tables.items()
        if key not in FIRST_TABLES and not is_volatile(table)
    ]
    lines += ["## Settings, versions, costs", ""]
    lines += [
        f"Study file: {text.markdown(str(data.manifest['study'].get('file', '')))}. The resolved "
        "recipe, axes, seeds and declaration are in "
        "[settings.json](settings.json). Costs by stage ([costs/costs.csv](costs/costs.csv)) and "
        "package versions "
        "([costs/versions.json](costs/versions.json)) differ between two runs of the same study "
        "and are kept apart from the results.",
        "",
    ]
    if models:
        lines += [
            f"Checkpoints whose weights are kept: {models}, each with a model card; "
            "`models/README.md` beside the report's folder lists them.",
            "",
        ]
    lines += [_settings_table(data), ""]
    lines += ["## Files", "", *(f"- {line}" for line in _files(tables, figures)), ""]
    return "\n".join(lines)


def _table(table: Table | Unavailable) -> str:
    if isinstance(table, Unavailable):
        return (
            f"### {text.markdown(table.title)}\n\nNot available: {text.markdown(table.reason)}.\n"
        )
    return as_markdown(table)


def _figure(key: str, figure: Drawn | Unavailable) -> str:
    title = text.markdown(figure.title)
    if isinstance(figure, Unavailable):
        return f"### {title}\n\nNot available: {text.markdown(figure.reason)}.\n"
    image = f"![{text.markdown(figure.alt or figure.title)}](figures/{key}.png)"
    return f"### {title}\n\n{image}\n\n{text.markdown(figure.caption)}\n"


def _settings_table(data: StudyData) -> str:
    shown = [
        row
        for row in flat(data.recipe)
        if row[0].split(".")[0]
        in ("model", "loop", "objective", "exploration", "ranker", "pairs", "training", "judge")
    ]
    lines = ["| setting | value |", "| :-- | :-- |"]
    for name, value in shown:
        varied = data.axes.get(name)
        said = (
            f"varied: {', '.join(str(level) for level in varied)}"
            if varied and len(varied) > 1
            else value
        )
        if not name.startswith("judge.base_url"):
            lines.append(f"| {text.markdown(name)} | {text.markdown(said)} |")
    return "\n".join(lines)


def _files(
    tables: Mapping[str, Table | Unavailable], figures: Mapping[str, Drawn | Unavailable]
) -> list[str]:
    lines = []
    for key, table in tables.items():
        if isinstance(table, Table):
            folder = "costs" if table.volatile else "tables"
            lines.append(
                f"{folder}/{key}: "
                f"{', '.join(f'[{s}]({folder}/{key}.{s})' for s in ('csv', 'md', 'tex'))}"
            )
    for key, figure in figures.items():
        if isinstance(figure, Drawn):
            lines.append(
                f"figures/{key}: "
                f"{', '.join(f'[{s}](figures/{key}.{s})' for s in ('pdf', 'svg', 'png', 'csv'))}"
            )
    return lines
