"""What both forms of a report (Markdown and HTML) say besides tables and figures: the summary, the
settings, the versions.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from analysis import left_out, prose, samples, text
from analysis.figure import Drawn, render
from analysis.load import StudyData
from analysis.table import Table, Unavailable, as_html

CSS = resources.files("analysis").joinpath("page.css").read_text(encoding="utf-8")
JS = resources.files("analysis").joinpath("page.js").read_text(encoding="utf-8")
"""Style and script of the page: in it, so that it opens from a file."""


FIRST_TABLES = ("differences", "table_1", "table_2")
"""Shown before the figures; the others come after them."""


def is_volatile(table: Table | Unavailable) -> bool:
    """Whether a table holds times or costs, which differ between two runs of one study."""
    return isinstance(table, Table) and table.volatile


def summary(data: StudyData) -> list[list[str]]:
    """The opening: paragraphs of sentences. The first paragraph is the finding."""
    paragraphs = [prose.finding(data)]
    if told := left_out.statement(data):
        paragraphs.append([told])
    second = [
        prose.other_outcomes(data),
        prose.selection(data),
        prose.improvement(data),
        prose.trend(data),
    ]
    paragraphs.append([sentence for sentence in second if sentence])
    if missing := prose.missing(data):
        paragraphs.append([missing])
    paragraphs.append([prose.conditions(data)])
    return paragraphs


def settings(data: StudyData) -> dict[str, Any]:
    """What was asked: recipe, axes, seeds, baseline, declaration, and every run's coefficients."""
    runs = [
        {"run": r.name, "label": r.label, "seed": r.seed, "c": dict(r.c), "kappa": dict(r.kappa)}
        for r in data.runs
    ]
    keep = ("study", "recipe", "axes", "seeds", "declare", "baseline", "checkpoints_kept")
    return {**{key: data.manifest.get(key) for key in keep}, "runs": runs}


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and JSON values of a nested mapping, in order."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append(
                (
                    f"{prefix}{key}",
                    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
                )
            )
    return rows


def versions(data: StudyData) -> dict[str, dict[str, int]]:
    """Hosts and package versions that the stages ran under: name → value → number of stages."""
    counted: dict[str, dict[str, int]] = {}
    for stage in data.stages.values():
        env = dict(stage.environment)
        packages = env.pop("versions", {})
        for name, value in {**env, **(packages if isinstance(packages, Mapping) else {})}.items():
            if name in ("finished", "seconds", "started") or isinstance(value, (Mapping, list)):
                continue
            seen = counted.setdefault(str(name), {})
            seen[str(value)] = seen.get(str(value), 0) + 1
    return dict(sorted(counted.items()))


SVG_LIMIT = 120_000
"""Bytes of an SVG above which the page holds the PNG (files of both are beside it)."""
PAGE_LIMIT = 9_500_000
SAMPLES_LIMIT = 5_000_000
SECTIONS = {
    "scores": "Scores",
    "figures": "Figures",
    "samples": "Samples",
    "tables": "Further tables",
    "costs": "Costs",
    "settings": "Settings and versions",
}

Exhibits = Mapping[str, Table | Unavailable]
Figures = Mapping[str, Drawn | Unavailable]
Versions = Mapping[str, Mapping[str, int]]


def page(
    data: StudyData,
    tables: Exhibits,
    figures: Figures,
    facts: Versions,
    *,
    limit: int = PAGE_LIMIT,
    search: str = "",
) -> str:
    """The whole page, under ``limit`` bytes: samples get what the rest leaves."""
    before, after = (
        _before_samples(data, tables, figures),
        _after_samples(data, tables, facts, search),
    )
    room = limit - len(before.encode()) - len(after.encode()) - 20_000
    found = samples.collect(data, size=max(min(room, SAMPLES_LIMIT), 50_000))
    return before + _samples(found) + after


def policy() -> str:
    """The content policy: nothing from anywhere, this style, this script, data images."""
    style, script = (
        base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for content in (CSS, JS)
    )
    rules = (
        "default-src 'none'",
        f"style-src 'sha256-{style}'",
        f"script-src 'sha256-{script}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _before_samples(data: StudyData, tables: Exhibits, figures: Figures) -> str:
    parts = [_head(data), "<body>", _summary(data), _navigation(), "<main>", _heading("scores")]
    parts += [_table(key, tables[key]) for key in FIRST_TABLES]
    parts += [
        _heading("figures"),
        *(_figure(key, figure) for key, figure in figures.items()),
        _heading("samples"),
    ]
    return "".join(parts)


def _after_samples(data: StudyData, tables: Exhibits, facts: Versions, search: str) -> str:
    further = [
        _table(key, table)
        for key, table in tables.items()
        if key not in FIRST_TABLES and not is_volatile(table)
    ]
    costs = [_table(key, table) for key, table in tables.items() if is_volatile(table)]
    asked = [(name, value) for name, value in flat(settings(data)) if not name.startswith("runs")]
    ran = [
        (name, ", ".join(f"{value} ({count} stages)" for value, count in sorted(seen.items())))
        for name, seen in facts.items()
    ]
    close = (
        "<p class=small>Made by <code>selm report</code> from stored scores. Every table and "
        "figure is also a file beside this page.</p>"
    )
    close += (
        f'<p class=small>The search that found these settings: <a href="{search}">{search}</a>.</p>'
        if search
        else ""
    )
    parts = [
        _heading("tables"),
        *further,
        _heading("costs"),
        *costs,
        _heading("settings"),
        _facts("All settings", asked),
    ]
    parts += [
        _facts("Versions and hosts of the stages", ran),
        f"</main><footer>{close}</footer><script>{JS}</script></body></html>\n",
    ]
    return "".join(parts)


def _head(data: StudyData) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{text.html(text.one_line(data.name, 80))}: "
        f"report</title><style>{CSS}</style></head>"
    )


def _summary(data: StudyData) -> str:
    paragraphs = summary(data)
    head, *rest = paragraphs[0]
    parts = [f"<header><h1>{text.html(text.one_line(data.name, 120))}</h1>"]
    if data.question:
        parts.append(f'<p class="question">{text.html(text.one_line(data.question))}</p>')
    parts.append(
        f'<p class="lead" id="finding"><strong>{text.html(head)}</strong> '
        f"{text.html(' '.join(rest))}</p>"
    )
    unfinished = prose.missing(data)
    for paragraph in paragraphs[1:]:
        kind = ' class="warn"' if unfinished and paragraph == [unfinished] else ""
        parts.append(f"<p{kind}>{text.html(' '.join(paragraph))}</p>")
    return "".join(parts) + "</header>"


def _navigation() -> str:
    items = "".join(
        f'<li><a href="#{anchor}">{label}</a></li>' for anchor, label in SECTIONS.items()
    )
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def _heading(anchor: str) -> str:
    return f'<h2 id="{anchor}">{SECTIONS[anchor]}</h2>'


def _table(key: str, table: Table | Unavailable) -> str:
    return as_html(table) if isinstance(table, Table) else _not_available(f"table-{key}", table)


def _not_available(anchor: str, missing: Unavailable) -> str:
    reason = f'<p class="caption">Not available: {text.html(missing.reason)}.</p>'
    return f'<section id="{anchor}"><h3>{text.html(missing.title)}</h3>{reason}</section>'


def _figure(key: str, figure: Drawn | Unavailable) -> str:
    if isinstance(figure, Unavailable):
        return _not_available(f"figure-{key}", figure)
    image, kind = render(figure, "svg"), "svg+xml"
    if len(image) > SVG_LIMIT:
        image, kind = render(figure, "png"), "png"
    inches = float(figure.figure.get_size_inches()[0])
    width = round(inches * 130)
    wide = ' class="wide" role="region" tabindex="0" aria-label="figure"' if inches > 4 else ""
    source = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    return (
        f'<section id="figure-{key}"><h3>{text.html(figure.title)}</h3><figure>'
        f'<div{wide}><img width="{width}" alt="{text.html(figure.alt or figure.title)}" '
        f'src="{source}"></div>'
        f"<figcaption>{text.html(figure.caption)}</figcaption></figure></section>"
    )


def _samples(found: samples.Samples) -> str:
    if not found.prompts:
        return '<p class="caption">No answers are stored yet.</p>'
    notices = "".join(f'<p class="small">{text.html(notice)}</p>' for notice in found.notices)
    return (
        '<p class="caption">Pick a prompt and two checkpoints; answers stand side by side with '
        "their judgments. "
        f"Characters that are invisible or would act are shown by name.</p>{notices}"
        '<div class="controls"><div><label for="pick-prompt">prompt</label><select '
        'id="pick-prompt"></select></div>'
        '<div class="step"><button type="button" id="previous" aria-label="previous '
        'prompt">previous</button>'
        '<button type="button" id="next" aria-label="next prompt">next</button></div>'
        '<div><label for="pick-left">left checkpoint</label><select id="pick-left"></select></div>'
        '<div><label for="pick-right">right checkpoint</label><select '
        'id="pick-right"></select></div></div>'
        '<div id="sample-prompt" aria-live="polite"></div><div class="pair">'
        '<div class="box" id="sample-left" aria-live="polite"></div><div class="box" '
        'id="sample-right" aria-live="polite"></div></div>'
        f'<script type="application/json" id="sample-data">{found.as_json()}</script>'
    )


def _facts(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Name and value, folded away."""
    body = "".join(
        f'<tr><th scope="row">{text.html(name)}</th><td class="text">{text.html(value)}</td></tr>'
        for name, value in rows
    )
    table = f"<table><tbody>{body or '<tr><td>none</td></tr>'}</tbody></table>"
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">{table}</div>'
    return f"<details><summary>{title}</summary>{region}</details>"
