"""What the documentation site shows of the repository's other pages: mkdocs hooks.

A page below is made of a file outside ``docs/``; its links to pages are kept, those to other files
of the repository become their names.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "studies.md": "ablations/README.md",
    "results.md": "results/README.md",
    "lab_book.md": "ablations/LOG.md",
}
"""Page of the site -> file of the repository."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """The pages of ``PAGES`` beside those of ``docs/``."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_given: Any) -> str:
    """Links as they stand on the site."""
    name = page.file.src_uri
    source = PAGES.get(name, f"docs/{name}")
    return LINK.sub(lambda link: _kept(link, source), markdown)


def _kept(link: re.Match[str], source: str) -> str:
    """A link of ``source``."""
    shows, text, target, anchor = link.groups(default="")
    if "://" in target:
        return link[0]
    whole = normpath(f"{Path(source).parent.as_posix()}/{target}")
    pages = {path: page for page, path in PAGES.items()}
    if whole in pages:
        return f"[{text}]({pages[whole]}{anchor})"
    if whole.startswith("docs/"):
        return f"[{text}]({whole.removeprefix('docs/')}{anchor})"
    return f"`{whole}`" if shows or text in (target, whole) else f"{text} (`{whole}`)"
