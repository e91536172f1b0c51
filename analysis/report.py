"""The report of a study: ``report.md``, ``index.html``, ``finding.json``, ``tables/``,
``figures/``; a pure function of the store.

Both documents have one order: the finding with its pictures, further figures, then tables of
numbers. ``report.md``, ``finding.json``, tables and figures hold no times, hosts or versions, so
they are byte-identical for equal results. Costs and versions are in ``costs/``; the page shows them
too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis import cards, text
from analysis.bridge import study_tables
from analysis.figure import Drawn, write_figure
from analysis.figures import FIGURES, draw
from analysis.judge_runs import table_judge_runs
from analysis.load import StudyData, load_study
from analysis.opening import opening
from analysis.page import Block, Figures, Parts, page
from analysis.screen import ADAPTER, TERMS, Next, Opening, Statement, command
from analysis.table import Table, Unavailable, as_markdown, flat, pipes, write_table
from analysis.tables import tables_of
from harness.files import write_atomic

SEARCH = "search/search.md"
"""What a search wrote beside the report of its finalists."""
FIRST_FIGURES = ("differences", "matrix")
"""Drawn above the text of the finding."""
NOT_HERE = "Not in this report"
"""Heads the list of what a part of the report lacks."""
Tables = Mapping[str, Table | Unavailable]


def write_report(study_dir: Path, store_dir: Path) -> Path:
    """Write ``<study_dir>/report``, of an unfinished study too; returns ``report.md``'s path.
    HarnessError: the manifest is missing or broken, or a file cannot be written.
    """
    data = load_study(Path(study_dir), Path(store_dir))
    folder = Path(study_dir) / "report"
    tables = tables_of(data) | study_tables(data, Path(study_dir).parent)
    repeated = table_judge_runs(data)
    tables |= {repeated.key: repeated} if repeated else {}
    figures = {key: draw(key, data) for key in FIGURES}
    _remove_stale(folder / "tables", tables, Table)
    _remove_stale(folder / "figures", figures, Drawn)
    for table in tables.values():
        if isinstance(table, Table):
            write_table(table, folder / ("costs" if table.volatile else "tables"))
    for figure in figures.values():
        if isinstance(figure, Drawn):
            write_figure(figure, folder / "figures")
    _write_json(folder / "costs" / "versions.json", versions(data))
    _write_json(folder / "settings.json", cards.settings(data))
    models = len(cards.write_cards(data, Path(study_dir)))
    searched = (Path(study_dir) / SEARCH).is_file()
    found = opening(data)
    if searched:  # its file is no study
        found = replace(found, next=tuple(Next(step.says) for step in found.next))
    write_atomic(folder / "finding.json", ADAPTER.dump_json(found, indent=1) + b"\n")
    parts = parts_of(data, found, tables, figures, searched, models)
    write_atomic(folder / "index.html", page(data, parts, figures))
    path = folder / "report.md"
    write_atomic(path, markdown(parts, files(tables, figures)))
    return path


def _write_json(path: Path, content: Any) -> None:
    write_atomic(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _remove_stale(folder: Path, exhibits: Mapping[str, Any], kind: type) -> None:
    """Delete an earlier report's exhibits that this one lacks: no old number beside new ones."""
    gone = {key for key, exhibit in exhibits.items() if not isinstance(exhibit, kind)}
    for path in folder.glob("*"):
        if path.is_file() and path.stem in gone:
            path.unlink()


# -- the document ----------------------------------------------------------------------------------
def parts_of(
    data: StudyData,
    found: Opening,
    tables: Tables,
    figures: Figures,
    searched: bool = False,
    models: int = 0,
) -> Parts:
    """What both documents show, in order. models: checkpoints that have a model card."""
    drawn = {key: one for key in FIRST_FIGURES if isinstance(one := figures.get(key), Drawn)}
    first = [Block(f"figure-{key}", _picture(key, one)) for key, one in drawn.items()]
    shown: dict[str, list[Block]] = {"tables": [], "costs": []}
    for key, table in tables.items():
        if isinstance(table, Table):
            block = Block(f"table-{key}", as_markdown(table))
            shown["costs" if table.volatile else "tables"].append(block)
    return Parts(
        {
            "answer": [Block("finding", _answer(found))],
            "pictures": first,
            "text": [Block("said", _said(data, found, searched))],
        },
        {
            "Figures": [
                Block(f"figure-{key}", f"### {text.markdown(one.title)}\n\n{_picture(key, one)}")
                for key, one in figures.items()
                if key not in drawn and isinstance(one, Drawn)
            ]
            + _lacking("figures", figures),
            "Tables": shown["tables"] + _lacking("tables", tables),
            "Settings": [Block("settings", _settings(data, models))],
        },
        {"Costs": shown["costs"], "Versions": [Block("versions", _versions(data))]},
    )


def markdown(parts: Parts, links: str) -> str:
    """The whole report as Markdown; figures are linked as PNG."""
    blocks = [block.markdown for some in parts.opening.values() for block in some]
    for title, some in parts.sections.items():
        blocks.append(f"## {title}")
        for block in some:
            blocks += [f"### {block.folded}", block.markdown] if block.folded else [block.markdown]
    return "\n\n".join([*(block.strip() for block in blocks), "## Files", links]) + "\n"


def _answer(found: Opening) -> str:
    asked = [f"*{text.markdown(found.question)}*"] if found.question else []
    notes = [f"**Note:** {text.markdown(warning)}" for warning in found.warnings]
    answer = _statement(found.answer, "**")
    return "\n\n".join([f"# {text.markdown(found.name)}", *asked, answer, *notes])


def _statement(statement: Statement, mark: str = "") -> str:
    """Plain words, and the statistics as a quotation under them."""
    exact = f"\n\n> {text.markdown(statement.exact)}" if statement.exact else ""
    plain = f"{mark}{text.markdown(statement.plain)}{mark}" if statement.plain else ""
    return f"{plain}{exact}".strip()


def _said(data: StudyData, found: Opening, searched: bool) -> str:
    said = [_statement(statement) for statement in found.statements]
    said.append(f"> {text.markdown(TERMS)}")
    for step in found.next:
        typed = command(step, str(data.manifest["study"]["file"]), found.changed)
        code = f": `{typed.replace('`', ' ')}`" if typed else "."
        said.append(f"Next: {text.markdown(step.says)}{code}")
    if searched:
        said.append(
            "The settings compared here were found by a search: [its trials, failures, "
            f"importance and figures](../{SEARCH})."
        )
    return "\n\n".join(said)


def _lacking(part: str, exhibits: Mapping[str, Any]) -> list[Block]:
    """One block with the title of every exhibit that is not there, and why."""
    gone = [one for one in exhibits.values() if isinstance(one, Unavailable)]
    lines = [f"- {text.markdown(one.title)}: {text.markdown(one.reason)}." for one in gone]
    return [Block(f"no-{part}", "\n".join(lines), NOT_HERE)] if gone else []


def _picture(key: str, figure: Drawn) -> str:
    image = f"![{text.markdown(figure.alt or figure.title)}](figures/{key}.png)"
    return f"{image}\n\n{text.markdown(figure.caption)}"


# -- settings, versions, files ---------------------------------------------------------------------
SHOWN_SETTINGS = (
    *("model", "loop", "objective", "exploration"),
    *("ranker", "pairs", "training", "judge"),
)


def _settings(data: StudyData, models: int) -> str:
    lines = [
        f"Study file: {text.markdown(str(data.manifest['study'].get('file', '')))}. The resolved "
        "recipe, axes, seeds and declaration are in [settings.json](settings.json). Costs by stage "
        "([costs/costs.csv](costs/costs.csv)) and package versions "
        "([costs/versions.json](costs/versions.json)) differ between two runs of the same study "
        "and are kept apart from the results."
    ]
    if models:
        lines.append(
            f"Checkpoints whose weights are kept: {models}, each with a model card; "
            "`models/README.md` beside the report's folder lists them."
        )
    varied = {
        name: f"varied: {', '.join(map(str, values))}"
        for name, values in data.axes.items()
        if len(values) > 1
    }
    rows = [
        (name, varied.get(name, value))
        for name, value in flat(data.recipe)
        if name.split(".")[0] in SHOWN_SETTINGS and not name.startswith("judge.base_url")
    ]
    return "\n\n".join([*lines, pipes(("setting", "value"), rows, 2)])


def _versions(data: StudyData) -> str:
    rows = [
        (name, ", ".join(f"{value} ({count} stages)" for value, count in sorted(seen.items())))
        for name, seen in versions(data).items()
    ]
    return pipes(("what the stages ran under", "values"), rows, 2)


def versions(data: StudyData) -> dict[str, dict[str, int]]:
    """Hosts and package versions that the stages ran under: name → value → number of stages."""
    counted: dict[str, Counter[str]] = {}
    for stage in data.stages.values():
        for name, value in {
            **stage.environment,
            **(stage.environment.get("versions") or {}),
        }.items():
            if name in ("finished", "seconds", "started") or isinstance(value, (Mapping, list)):
                continue
            counted.setdefault(str(name), Counter())[str(value)] += 1
    return {name: dict(seen) for name, seen in sorted(counted.items())}


def files(tables: Tables, figures: Figures) -> str:
    """A line an exhibit that links its files."""
    kinds: dict[str, Sequence[str]] = {}
    for key, table in tables.items():
        if isinstance(table, Table):
            kinds[f"{'costs' if table.volatile else 'tables'}/{key}"] = ("csv", "md", "tex")
    for key, figure in figures.items():
        if isinstance(figure, Drawn):
            kinds[f"figures/{key}"] = ("pdf", "svg", "png", "csv")
    links = {at: ", ".join(f"[{kind}]({at}.{kind})" for kind in of) for at, of in kinds.items()}
    return "\n".join(f"- {at}: {of}" for at, of in links.items())
