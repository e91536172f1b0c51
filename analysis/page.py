"""What both forms of a report (Markdown and HTML) say besides tables and figures: the summary, the
settings, the versions.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from analysis import prose, samples, text
from analysis.figure import Drawn, render
from analysis.load import StudyData
from analysis.table import Table, Unavailable, as_html

FIRST_TABLES = ("differences", "table_1", "table_2")
"""Shown before the figures; the others come after them."""


def is_volatile(table: Table | Unavailable) -> bool:
    """Whether a table holds times or costs, which differ between two runs of one study."""
    return isinstance(table, Table) and table.volatile


def summary(data: StudyData) -> list[list[str]]:
    """The opening: paragraphs of sentences. The first paragraph is the finding."""
    paragraphs = [prose.finding(data)]
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
    close = "<p class=small>Made by <code>selm report</code> from stored scores. Every table and figure is also a file beside this page.</p>"
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
    return f'<details><summary>{title}</summary><div class="scroll" role="region" tabindex="0" aria-label="{title}">{table}</div></details>'


CSS = """
:root{color-scheme:light;--ink:#1a1a1a;--soft:#5a5a5a;--line:#d5d5d5;--wash:#f5f6f8;--link:#0b57a4}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:#fff;font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,nav,footer{max-width:72rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.7rem;line-height:1.2;margin:1.5rem 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:2px solid var(--ink)}
h3{font-size:1.05rem;margin:1.6rem 0 .2rem;overflow-wrap:anywhere}
a{color:var(--link)}
.lead{font-size:1.08rem}.question{color:var(--soft);font-style:italic}
.warn{border-left:4px solid #b35c00;background:#fff6ea;padding:.5rem .8rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;padding:.4rem 0;margin:.5rem 0;border-block:1px solid var(--line)}
.caption,.notes,.small{color:var(--soft);font-size:.88rem}.caption{margin:.1rem 0 .5rem}.notes{padding-left:1.2rem;margin:.4rem 0}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:4px;max-width:100%}
.scroll:focus-visible,button:focus-visible,select:focus-visible,a:focus-visible,summary:focus-visible{outline:3px solid #ffb000;outline-offset:1px}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;min-width:100%;background:#fff}
th,td{padding:.28rem .55rem;text-align:right;white-space:nowrap;border-bottom:1px solid #ececec}
th[scope=row],td.text{text-align:left;font-weight:400}th[scope=row]{position:sticky;left:0;background:#fff;border-right:1px solid var(--line)}
td.text{white-space:normal;min-width:8rem;max-width:28rem;overflow-wrap:anywhere}
td.missing{color:#8a3b00;background:#fff6ea;white-space:normal;min-width:7rem;max-width:11rem}
th.text button.sort{text-align:left}
.wide{overflow-x:auto}
thead th{background:var(--wash);padding:0;border-bottom:2px solid var(--line)}thead th:first-child{position:sticky;left:0;z-index:1}
tr.rule>*{border-top:2px solid var(--line)}
button.sort{all:unset;box-sizing:border-box;width:100%;padding:.35rem .55rem;cursor:pointer;font-weight:600;text-align:inherit}
th:first-child button.sort{text-align:left}
button.sort::after{content:" \\2195";color:#aaa}th[aria-sort=ascending] button.sort::after{content:" \\2191";color:var(--ink)}
th[aria-sort=descending] button.sort::after{content:" \\2193";color:var(--ink)}
figure{margin:1rem 0 1.6rem}figure img{max-width:100%;height:auto;display:block;background:#fff}
figcaption{color:var(--soft);font-size:.88rem;margin-top:.3rem}
.controls{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:.6rem;margin:.6rem 0;align-items:end}
.controls label{display:block;font-size:.85rem;color:var(--soft)}
select,.controls button{font:inherit;width:100%;padding:.4rem;border:1px solid #999;
  border-radius:4px;background:#fff;color:var(--ink);min-height:2.6rem}
.step{display:flex;gap:.5rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin-top:.8rem}
.box{border:1px solid var(--line);border-radius:4px;padding:.6rem .8rem;min-width:0}
.box h4{margin:.1rem 0 .4rem;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0;
  font:.85rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;unicode-bidi:plaintext;max-height:28rem;overflow-y:auto}
.said{background:var(--wash);padding:.5rem .7rem;border-radius:4px}
.score{font-weight:600;font-size:.88rem;margin:.3rem 0}.judged{border-left:3px solid var(--line);padding-left:.6rem;color:var(--soft)}
details{margin:.6rem 0}summary{cursor:pointer}
@media (max-width:40rem){body{font-size:15px}.pair{grid-template-columns:1fr}.wide img{max-width:none;width:42rem}
  table{font-size:.8rem}th[scope=row]{max-width:9rem;white-space:normal}}
@media print{nav,#samples{display:none}.scroll{overflow:visible;border:0}h2{break-after:avoid}figure,.exhibit{break-inside:avoid}}
"""

JS = """
"use strict";
(function () {
  function compare(a, b) {
    var x = parseFloat(a), y = parseFloat(b);
    var nx = a !== "" && isFinite(a), ny = b !== "" && isFinite(b);
    if (nx && ny) { return x - y; }
    if (nx !== ny) { return nx ? -1 : 1; }
    return a < b ? -1 : a > b ? 1 : 0;
  }
  function sort(button) {
    var head = button.parentElement, row = head.parentElement, table = head.closest("table"), body = table.tBodies[0];
    var column = Array.prototype.indexOf.call(row.cells, head), up = head.getAttribute("aria-sort") !== "ascending";
    Array.prototype.forEach.call(row.cells, function (cell) { cell.setAttribute("aria-sort", "none"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    var rows = Array.prototype.map.call(body.rows, function (tr, i) {
      var cell = tr.cells[column];
      return { tr: tr, i: i, v: cell ? cell.getAttribute("data-v") || "" : "" };
    });
    rows.sort(function (a, b) {
      if ((a.v === "") !== (b.v === "")) { return a.v === "" ? 1 : -1; }
      return (up ? 1 : -1) * compare(a.v, b.v) || a.i - b.i;
    });
    rows.forEach(function (r) { r.tr.classList.remove("rule"); body.appendChild(r.tr); });
  }
  document.addEventListener("click", function (event) {
    var button = event.target.closest ? event.target.closest("button.sort") : null;
    if (button) { sort(button); }
  });

  var store = document.getElementById("sample-data");
  if (!store) { return; }
  var data = JSON.parse(store.textContent);
  var pick = document.getElementById("pick-prompt"), left = document.getElementById("pick-left"), right = document.getElementById("pick-right");
  function option(parent, value, label) {
    var node = document.createElement("option");
    node.value = String(value);
    node.textContent = label;
    parent.appendChild(node);
  }
  var groups = {};
  data.prompts.forEach(function (prompt, i) {
    if (!groups[prompt.set]) {
      groups[prompt.set] = document.createElement("optgroup");
      groups[prompt.set].label = prompt.set;
      pick.appendChild(groups[prompt.set]);
    }
    option(groups[prompt.set], i, prompt.id + ": " + prompt.turns[0].replace(/\\s+/g, " ").slice(0, 70));
  });
  data.checkpoints.forEach(function (name, i) { option(left, i, name); option(right, i, name); });
  left.value = "0";
  right.value = String(data.checkpoints.length - 1);
  function add(parent, tag, kind, content) {
    var node = document.createElement(tag);
    if (kind) { node.className = kind; }
    node.textContent = content;
    parent.appendChild(node);
    return node;
  }
  function show(box, checkpoint) {
    var prompt = data.prompts[Number(pick.value)], turns = data.answers[Number(pick.value)][checkpoint];
    box.textContent = "";
    add(box, "h4", "", data.checkpoints[checkpoint]);
    if (!turns) { add(box, "p", "small", "No answer of this checkpoint is stored."); return; }
    turns.forEach(function (answer, t) {
      if (prompt.turns.length > 1) { add(box, "p", "small", "Turn " + (t + 1)); }
      add(box, "pre", "", answer[0] === "" ? "(empty)" : answer[0]);
      add(box, "p", "score", (answer[2] || "not scored") + (answer[1] === "ok" ? "" : " — answer: " + answer[1]));
      if (answer[3]) {
        var more = document.createElement("details");
        more.open = answer[3].length < 400;
        add(more, "summary", "small", "judgment");
        add(more, "pre", "judged", answer[3]);
        box.appendChild(more);
      }
    });
  }
  function draw() {
    var prompt = data.prompts[Number(pick.value)], said = document.getElementById("sample-prompt");
    said.textContent = "";
    prompt.turns.forEach(function (turn, t) {
      if (prompt.turns.length > 1) { add(said, "p", "small", "Turn " + (t + 1)); }
      add(said, "pre", "said", turn);
    });
    show(document.getElementById("sample-left"), Number(left.value));
    show(document.getElementById("sample-right"), Number(right.value));
  }
  function step(by) {
    var count = data.prompts.length;
    pick.value = String((Number(pick.value) + by + count) % count);
    draw();
  }
  [pick, left, right].forEach(function (control) { control.addEventListener("change", draw); });
  document.getElementById("previous").addEventListener("click", function () { step(-1); });
  document.getElementById("next").addEventListener("click", function () { step(1); });
  pick.value = "0";
  draw();
})();
"""
