"""The HTML page of a report: its Markdown as HTML, with sortable tables, figures inside, and a
browser of samples. One file that asks nothing of the network.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from analysis import samples, text
from analysis.figure import Drawn, render
from analysis.load import StudyData
from analysis.table import Unavailable


def _own(name: str) -> str:
    return resources.files("analysis").joinpath(name).read_text(encoding="utf-8")


CSS = _own("page.css")
JS = _own("page.js") + _own("samples.js")
"""Style and script of the page: in it, so that it opens from a file."""
SVG_LIMIT = 120_000
"""Bytes of an SVG above which the page holds the PNG (files of both are beside it)."""
PAGE_LIMIT = 9_500_000
SAMPLES_LIMIT = 5_000_000

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


PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")
Images = Mapping[str, str]
"""File name of a picture -> its HTML."""


def page(data: StudyData, parts: Parts, figures: Figures, *, limit: int = PAGE_LIMIT) -> str:
    """The whole page, under ``limit`` bytes: samples get what the rest leaves."""
    loader = PackageLoader("analysis", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    images = {f"figures/{k}.png": _image(f) for k, f in figures.items() if isinstance(f, Drawn)}

    def blocks(some: Sequence[Block]) -> list[tuple[Block, Markup]]:
        return [(block, Markup(to_html(block.markdown, images))) for block in some]

    known = {
        "title": text.one_line(data.name, 80),
        "policy": policy(),
        "css": Markup(CSS),
        "js": Markup(JS),
        "opening": {name: blocks(some) for name, some in parts.opening.items()},
        "sections": {name: blocks(some) for name, some in parts.sections.items()},
        "costs": {name: blocks(some) for name, some in parts.costs.items()},
    }
    template = environment.get_template("page.html.jinja")
    room = limit - len(template.render(**known, samples=None).encode()) - 20_000
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
    rules = (
        "default-src 'none'",
        f"style-src 'sha256-{style}'",
        f"script-src 'sha256-{script}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


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


# -- Markdown to HTML ------------------------------------------------------------------------------
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
            token.content = (
                f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
                '<table class="sortable">'
            )
        elif token.type == "table_close":
            token.content, seen = "</table></div>\n", "table"
        elif token.type == "bullet_list_open" and seen == "table":
            token.attrSet("class", "notes")
        if token.type in ("table_open", "table_close"):
            token.type = "html_block"
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
            left = "left" in str(token.attrs.pop("style", ""))
            inline, end, shown = tokens[at + 1], tokens[at + 2], _plain(tokens[at + 1])
            if left:
                token.attrSet("class", "text")
            if head:
                token.attrs |= {"scope": "col", "aria-sort": "none"}
                label = f'<button type="button" class="sort">{text.html(shown)}</button>'
                inline.children = [Token("html_inline", "", 0, content=label)]
            else:
                token.attrSet("data-v", sort_value(shown))
                if column == 0:
                    token.tag = end.tag = "th"
                    token.attrs = {"scope": "row", "data-v": sort_value(shown)}
                elif shown.startswith("INCOMPLETE"):
                    token.attrSet("class", "missing")
            column += 1


def sort_value(cell: str) -> str:
    """The number a cell starts with, else its text; empty (sorted last) where missing."""
    if cell in ("", "–") or cell.startswith("INCOMPLETE"):
        return ""
    match = re.match(r"[+<≥≈ ]*([−-]?\d+(?:\.\d+)?(?:e[−+-]?\d+)?)(?=$|[\s/%†(])", cell)
    return match.group(1).replace("−", "-") if match else cell
