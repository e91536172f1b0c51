"""The report as one self-contained HTML page: no network, a strict content policy, everything escaped.

Style and script are inline and allowed by their hashes alone; figures are data images; model text travels as JSON in a script
element that is not run, and is shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from analysis import samples, text
from analysis.figure import Drawn, render
from analysis.load import StudyData
from analysis.page_assets import CSS, JS
from analysis.table import Table, Unavailable, as_html

SVG_LIMIT = 120_000
"""Bytes of an SVG above which the page holds the PNG (files of both are beside it)."""
PAGE_LIMIT = 9_500_000
FIRST_TABLES = ("differences", "table_1", "table_2")


def page(
    data: StudyData, tables: Mapping[str, Table | Unavailable], figures: Mapping[str, Drawn | Unavailable], facts: Mapping[str, Any], *, limit: int = PAGE_LIMIT
) -> str:
    """The whole page, under ``limit`` bytes: samples get what the rest leaves."""
    frame = _frame(data, tables, figures, facts)
    room = limit - sum(len(part) for part in frame) - 20_000
    found = samples.collect(data, size=max(min(room, 5_000_000), 50_000))
    return frame[0] + _samples(found) + frame[1]


def _frame(
    data: StudyData, tables: Mapping[str, Table | Unavailable], figures: Mapping[str, Drawn | Unavailable], facts: Mapping[str, Any]
) -> tuple[str, str]:
    first = [_table(key, tables[key]) for key in FIRST_TABLES]
    further = [_table(key, table) for key, table in tables.items() if key not in FIRST_TABLES and not _volatile(table)]
    costs = [_table(key, table) for key, table in tables.items() if _volatile(table)]
    before = "".join([
        _head(data), "<body>", _summary(data), _nav(),
        '<main><h2 id="scores">Scores</h2>', *first, '<h2 id="figures">Figures</h2>', *[_figure(key, figure) for key, figure in figures.items()],
        '<h2 id="samples">Samples</h2>',
    ])  # fmt: skip
    after = "".join([
        '<h2 id="tables">Further tables</h2>', *further, '<h2 id="costs">Costs</h2>', *costs, '<h2 id="settings">Settings and versions</h2>',
        _settings(data), _versions(facts), "</main>",
        '<footer><p class="small">Made by <code>selm report</code> from stored scores. Every table and figure is also a file beside this page.</p></footer>',
        f"<script>{JS}</script></body></html>\n",
    ])  # fmt: skip
    return before, after


def policy() -> str:
    """The content policy: nothing from anywhere, this style, this script, data images."""
    hashes = {name: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for name, content in (("style", CSS), ("script", JS))}
    return (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _head(data: StudyData) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{text.html(text.one_line(data.name, 80))}: report</title><style>{CSS}</style></head>"
    )


def _summary(data: StudyData) -> str:
    from analysis.prose import missing
    from analysis.report import summary

    paragraphs = summary(data)
    head, *rest = paragraphs[0]
    parts = [f'<header><h1>{text.html(text.one_line(data.name, 120))}</h1>']
    if data.question:
        parts.append(f'<p class="question">{text.html(text.one_line(data.question))}</p>')
    parts.append(f'<p class="lead" id="finding"><strong>{text.html(head)}</strong> {text.html(" ".join(rest))}</p>')
    unfinished = missing(data)
    for paragraph in paragraphs[1:]:
        kind = ' class="warn"' if unfinished and paragraph == [unfinished] else ""
        parts.append(f"<p{kind}>{text.html(' '.join(paragraph))}</p>")
    return "".join(parts) + "</header>"


def _nav() -> str:
    links = (("scores", "Scores"), ("figures", "Figures"), ("samples", "Samples"), ("tables", "Further tables"), ("costs", "Costs"), ("settings", "Settings"))
    items = "".join(f'<li><a href="#{anchor}">{label}</a></li>' for anchor, label in links)
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def _volatile(table: Table | Unavailable) -> bool:
    return isinstance(table, Table) and table.volatile


def _table(key: str, table: Table | Unavailable) -> str:
    if isinstance(table, Table):
        return as_html(table)
    return (
        f'<section id="table-{key}" class="exhibit"><h3>{text.html(table.title)}</h3><p class="caption">Not available: {text.html(table.reason)}.</p></section>'
    )


def _figure(key: str, figure: Drawn | Unavailable) -> str:
    if isinstance(figure, Unavailable):
        return f'<section id="figure-{key}"><h3>{text.html(figure.title)}</h3><p class="caption">Not available: {text.html(figure.reason)}.</p></section>'
    image, kind = render(figure, "svg"), "svg+xml"
    if len(image) > SVG_LIMIT:
        image, kind = render(figure, "png"), "png"
    width = round(figure.figure.get_size_inches()[0] * 110)
    return (
        f'<section id="figure-{key}"><h3>{text.html(figure.title)}</h3><figure><img width="{width}" alt="{text.html(figure.alt or figure.title)}" '
        f'src="data:image/{kind};base64,{base64.b64encode(image).decode()}"><figcaption>{text.html(figure.caption)}</figcaption></figure></section>'
    )


def _samples(found: samples.Samples) -> str:
    if not found.prompts:
        return '<p class="caption">No answers are stored yet.</p>'
    notices = "".join(f'<p class="small">{text.html(notice)}</p>' for notice in found.notices)
    return (
        '<p class="caption">Pick a prompt and two checkpoints; answers stand side by side with their judgments. Characters that are invisible or would act are '
        f"shown by name.</p>{notices}"
        '<div class="controls"><div><label for="pick-prompt">prompt</label><select id="pick-prompt"></select></div>'
        '<div class="step"><button type="button" id="previous">previous prompt</button><button type="button" id="next">next prompt</button></div>'
        '<div><label for="pick-left">left checkpoint</label><select id="pick-left"></select></div>'
        '<div><label for="pick-right">right checkpoint</label><select id="pick-right"></select></div></div>'
        '<div id="sample-prompt" aria-live="polite"></div>'
        '<div class="pair"><div class="box" id="sample-left" aria-live="polite"></div><div class="box" id="sample-right" aria-live="polite"></div></div>'
        f'<script type="application/json" id="sample-data">{found.as_json()}</script>'
    )


def _settings(data: StudyData) -> str:
    from analysis.report import flat, settings

    rows = "".join(
        f'<tr><th scope="row">{text.html(name)}</th><td class="text">{text.html(value)}</td></tr>' for name, value in flat(settings(data)) if not name.startswith("runs")
    )
    return f'<details><summary>All settings</summary><div class="scroll" role="region" tabindex="0" aria-label="Settings"><table><tbody>{rows}</tbody></table></div></details>'


def _versions(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text.html(name)}</th><td class="text">{text.html(", ".join(f"{value} ({count} stages)" for value, count in sorted(seen.items())))}</td></tr>'
        for name, seen in facts.items()
    )
    content = f"<table><tbody>{rows}</tbody></table>" if rows else f"<p>{json.dumps('no stage is done')}</p>"
    return f'<details><summary>Versions and hosts of the stages</summary><div class="scroll" role="region" tabindex="0" aria-label="Versions">{content}</div></details>'
