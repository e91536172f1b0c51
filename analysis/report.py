"""The report of a study: ``report.md``, ``index.html``, ``finding.json``, ``tables/``,
``figures/``; a pure function of the store.

Both documents have one order: the finding with its pictures, further figures, then tables of
numbers. The page is the Markdown as HTML, with sortable tables, figures inside and a browser of
samples: one file that asks nothing of the network. ``report.md``, ``finding.json``, tables and
figures hold no times, hosts or versions, so they are byte-identical for equal results. Costs and
versions are in ``costs/``; the page shows them too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from analysis import cards, samples, text
from analysis.bridge import study_tables
from analysis.figure import Drawn, render, write_figure
from analysis.figures import FIGURES, draw
from analysis.judge_runs import table_judge_runs
from analysis.load import StudyData, load_study
from analysis.opening import opening
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
Figures = Mapping[str, Drawn | Unavailable]


@dataclass(frozen=True)
class Block:
    """A piece of Markdown that can be linked to. folded: the words that open it on the page, and
    its heading in Markdown; without any it is open.
    """

    anchor: str
    markdown: str
    folded: str = ""


@dataclass(frozen=True)
class Parts:
    """A report in its order, by heading. costs: what differs between two runs of one study."""

    opening: Mapping[str, Sequence[Block]]
    sections: Mapping[str, Sequence[Block]]
    costs: Mapping[str, Sequence[Block]]


def write_report(study_dir: Path, store_dir: Path) -> Path:
    """Write ``<study_dir>/report``, of an unfinished study too; returns ``report.md``'s path.
    HarnessError: the manifest is missing or broken, or a file cannot be written.
    """
    data = load_study(study_dir, store_dir)
    folder = study_dir / "report"
    tables = tables_of(data) | study_tables(data, study_dir.parent)
    repeated = table_judge_runs(data)
    tables |= {repeated.key: repeated} if repeated else {}
    figures = {key: draw(key, data) for key in FIGURES}
    for part, exhibits in (("tables", tables), ("figures", figures)):
        gone = {key for key, exhibit in exhibits.items() if isinstance(exhibit, Unavailable)}
        for path in (folder / part).glob("*"):  # of an earlier report: no old number beside new
            if path.is_file() and path.stem in gone:
                path.unlink()
    for table in tables.values():
        if isinstance(table, Table):
            write_table(table, folder / ("costs" if table.volatile else "tables"))
    for figure in figures.values():
        if isinstance(figure, Drawn):
            write_figure(figure, folder / "figures")
    told = {"costs/versions": versions(data), "settings": cards.settings(data)}
    for name, content in told.items():
        written = json.dumps(content, indent=1, sort_keys=True) + "\n"
        write_atomic(folder / f"{name}.json", written)
    models = len(cards.write_cards(data, study_dir))
    searched = (study_dir / SEARCH).is_file()
    found = opening(data)
    if searched:  # its file is no study
        found = replace(found, next=tuple(Next(step.says) for step in found.next))
    write_atomic(folder / "finding.json", ADAPTER.dump_json(found, indent=1) + b"\n")
    parts = parts_of(data, found, tables, figures, searched, models)
    write_atomic(folder / "index.html", page(data, parts, figures))
    write_atomic(folder / "report.md", markdown(parts, tables, figures))
    return folder / "report.md"


# -- what both documents show ----------------------------------------------------------------------
def parts_of(
    data: StudyData,
    found: Opening,
    tables: Tables,
    figures: Figures,
    searched: bool = False,
    models: int = 0,
) -> Parts:
    """Everything, in order. models: checkpoints that have a model card."""
    shown: dict[str, list[Block]] = {"first": [], "figures": [], "tables": [], "costs": []}
    for key, one in figures.items():
        if isinstance(one, Drawn):
            image = f"![{text.markdown(one.alt or one.title)}](figures/{key}.png)"
            picture, title = f"{image}\n\n{text.markdown(one.caption)}", ""
            if key not in FIRST_FIGURES:
                title = f"### {text.markdown(one.title)}\n\n"
            block = Block(f"figure-{key}", title + picture)
            shown["figures" if title else "first"].append(block)
    for key, table in tables.items():
        if isinstance(table, Table):
            block = Block(f"table-{key}", as_markdown(table))
            shown["costs" if table.volatile else "tables"].append(block)
    return Parts(
        {
            "answer": [Block("finding", _answer(found))],
            "pictures": shown["first"],
            "text": [Block("said", _said(data, found, searched))],
        },
        {
            "Figures": shown["figures"] + _lacking("figures", figures),
            "Tables": shown["tables"] + _lacking("tables", tables),
            "Settings": [Block("settings", _settings(data, models))],
        },
        {"Costs": shown["costs"], "Versions": [Block("versions", _versions(data))]},
    )


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
    rows = []
    for name, value in flat(data.recipe):
        levels = data.axes.get(name, ())
        if name.split(".")[0] in SHOWN_SETTINGS and not name.startswith("judge.base_url"):
            varied = f"varied: {', '.join(map(str, levels))}"
            rows.append((name, varied if len(levels) > 1 else value))
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
        told = {**stage.environment, **(stage.environment.get("versions") or {})}
        for name in sorted({*told} - {"finished", "seconds", "started"}):
            if not isinstance(told[name], (Mapping, list)):
                counted.setdefault(name, Counter())[str(told[name])] += 1
    return {name: dict(seen) for name, seen in sorted(counted.items())}


def markdown(parts: Parts, tables: Tables, figures: Figures) -> str:
    """The whole report as Markdown; figures are linked as PNG, and every exhibit's files below."""
    blocks = [block.markdown for some in parts.opening.values() for block in some]
    for title, some in parts.sections.items():
        blocks.append(f"## {title}")
        for block in some:
            blocks += [f"### {block.folded}", block.markdown] if block.folded else [block.markdown]
    files = []
    for key, one in (*tables.items(), *figures.items()):
        if not isinstance(one, Unavailable):
            kinds, at = "pdf svg png csv", f"figures/{key}"
            if isinstance(one, Table):
                kinds, at = "csv md tex", f"{'costs' if one.volatile else 'tables'}/{key}"
            links = ", ".join(f"[{kind}]({at}.{kind})" for kind in kinds.split())
            files.append(f"- {at}: {links}")
    blocks += ["## Files", "\n".join(files)]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


# -- the page --------------------------------------------------------------------------------------
def _own(name: str) -> str:
    return resources.files("analysis").joinpath(name).read_text(encoding="utf-8")


CSS = _own("page.css")
JS = _own("page.js") + _own("samples.js")
"""Style and script of the page: in it, so that it opens from a file."""
SVG_LIMIT = 120_000
"""Bytes of an SVG above which the page holds the PNG (files of both are beside it)."""
PAGE_LIMIT = 9_500_000
SAMPLES_LIMIT = 5_000_000
PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")
Images = Mapping[str, str]
"""File name of a picture -> its HTML."""


def page(data: StudyData, parts: Parts, figures: Figures) -> str:
    """The whole page, under ``PAGE_LIMIT`` bytes: samples get what the rest leaves."""
    images = {f"figures/{k}.png": _image(f) for k, f in figures.items() if isinstance(f, Drawn)}
    known: dict[str, Any] = {
        "title": text.one_line(data.name, 80),
        "policy": policy(),
        "css": Markup(CSS),
        "js": Markup(JS),
    }
    for part, headed in vars(parts).items():
        known[part] = {
            name: [(block, Markup(to_html(block.markdown, images))) for block in blocks]
            for name, blocks in headed.items()
        }
    template = text.template("page.html.jinja", html=True)
    room = PAGE_LIMIT - len(template.render(**known, samples=None).encode()) - 20_000
    found = samples.collect(data, size=max(min(room, SAMPLES_LIMIT), 50_000))
    notices = [text.visible(notice) for notice in found.notices]
    shown = {"any": bool(found.prompts), "notices": notices, "json": Markup(found.as_json())}
    return template.render(**known, samples=shown)


def policy() -> str:
    """The content policy: nothing from anywhere, this style, this script, data images."""
    style, script = (
        base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for content in (CSS, JS)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _image(drawn: Drawn) -> str:
    """A picture in the page, SVG where it is small; a wide one scrolls on a narrow screen."""
    content, kind = render(drawn, "svg"), "svg+xml"
    if len(content) > SVG_LIMIT:
        content, kind = render(drawn, "png"), "png"
    inches = float(drawn.figure.get_size_inches()[0])
    wide = ' class="wide" role="region" tabindex="0" aria-label="figure"' if inches > 4 else ""
    return (
        f'<div{wide}><img width="{round(inches * 130)}" '
        f'alt="{text.html(drawn.alt or drawn.title)}" '
        f'src="data:image/{kind};base64,{base64.b64encode(content).decode()}"></div>'
    )


def to_html(markdown: str, images: Images) -> str:
    """Tables scroll and sort, pictures (``images``: HTML by linked file) are inside."""
    tokens, title, seen = PARSER.parse(markdown), "", ""
    for at, token in enumerate(tokens):
        if token.type == "inline" and tokens[at - 1].type == "heading_open":
            title, seen = _plain(token), "heading"
        elif token.type == "inline" and tokens[at - 1].type == "paragraph_open":
            seen = _paragraph(token, tokens[at - 1], tokens[at + 1], images, seen)
        elif token.type == "table_open":
            label = text.html(title)
            token.type, token.content = (
                "html_block",
                (
                    f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
                    '<table class="sortable">'
                ),
            )
        elif token.type == "table_close":
            token.type, token.content, seen = "html_block", "</table></div>\n", "table"
        elif token.type == "bullet_list_open" and seen == "table":
            token.attrSet("class", "notes")
    _cells(tokens)
    return str(PARSER.renderer.render(tokens, PARSER.options, {}))


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or ())


def _paragraph(inline: Token, start: Token, end: Token, images: Images, seen: str) -> str:
    """A picture becomes a figure; what follows it or a heading is a caption."""
    children = inline.children or []
    if [child.type for child in children] == ["image"]:
        start.tag = end.tag = "figure"
        content = images[str(children[0].attrs["src"])]
        inline.children = [Token("html_inline", "", 0, content=content)]
        return "figure"
    if inline.content.startswith("**Note:**"):
        start.attrSet("class", "warn")
    elif seen in ("heading", "figure"):
        start.attrSet("class", "caption")
    return ""


def _cells(tokens: Sequence[Token]) -> None:
    """Heads are buttons that sort, the first cell of a row is its head, every cell has the value it
    sorts by. Alignment is a class, because the page's policy allows no style of an element.
    """
    column, head = 0, False
    for at, token in enumerate(tokens):
        if token.type == "tr_open":
            column = 0
        elif token.type in ("thead_open", "thead_close"):
            head = token.type == "thead_open"
        elif token.type in ("th_open", "td_open"):
            inline, end, shown = tokens[at + 1], tokens[at + 2], _plain(tokens[at + 1])
            if "left" in str(token.attrs.pop("style", "")):
                token.attrSet("class", "text")
            if head:
                token.attrs |= {"scope": "col", "aria-sort": "none"}
                label = f'<button type="button" class="sort">{text.html(shown)}</button>'
                inline.children = [Token("html_inline", "", 0, content=label)]
            elif column == 0:
                token.tag = end.tag = "th"
                token.attrs = {"scope": "row", "data-v": sort_value(shown)}
            else:
                token.attrSet("data-v", sort_value(shown))
                if shown.startswith("INCOMPLETE"):
                    token.attrSet("class", "missing")
            column += 1


def sort_value(cell: str) -> str:
    """The number a cell starts with, else its text; empty (sorted last) where missing."""
    if cell in ("", "–") or cell.startswith("INCOMPLETE"):
        return ""
    match = re.match(r"[+<≥≈ ]*([−-]?\d+(?:\.\d+)?(?:e[−+-]?\d+)?)(?=$|[\s/%†(])", cell)
    return match.group(1).replace("−", "-") if match else cell
