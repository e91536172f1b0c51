"""The documentation: it builds without a warning, every link leads somewhere, nothing is asked of
another host, and what its starting pages tell people to type works.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests import tiny
from tests.processes import ROOT, python

DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "first_study.ipynb"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "NO_MKDOCS_2_WARNING": "1",
}


class Page(HTMLParser):
    """Ids of a page, where it leads, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "link", "source"):
            self.loads += [given[name] for name in ("src", "href") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the site, built with warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    done = python("-m", "mkdocs", "build", "--quiet", "--strict", "-d", out, **ENVIRONMENT)
    assert done.stderr == ""
    return {path: Page(path.read_text()) for path in out.rglob("*.html")}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_every_link_leads_somewhere(
    site: dict[Path, Page],
) -> None:
    broken = []
    for path, page in site.items():
        for link in {*page.links, *page.loads}:
            where = urlsplit(link)
            if where.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(where.path)).resolve() if where.path else path
            known = site[target].ids | {""} if target in site else {""}
            if not target.exists() or unquote(where.fragment) not in known | {"__comments"}:
                broken.append(f"{path.name}: {link}")
    assert not broken, broken
    assert {path.stem for path in DOCS.glob("*.md")} <= {path.stem for path in site}


@pytest.mark.slow
def test_the_site_asks_nothing_of_another_host(site: dict[Path, Page]) -> None:
    loaded = {link for page in site.values() for link in page.loads if urlsplit(link).netloc}
    assert not loaded
    for style in next(iter(site)).parent.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?https?:", style.read_text()), style.name


def blocks(page: str) -> Iterator[str]:
    """What a page tells people to type and the tests run."""
    return (found for found in re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.S))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebook has run; with the files that pages name, and ``selm``."""
    import nbformat
    from nbclient import NotebookClient

    made = tmp_path_factory.mktemp("reader")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(made)}})
    before = dict(os.environ)
    os.environ |= ENVIRONMENT
    try:
        client.execute()
    finally:
        os.environ.clear()
        os.environ |= before
    tiny.checkpoint(made / "CHECKPOINT", "llama", "llama3")
    tiny.reward_model(made / "REWARD_MODEL")
    rows = [
        {"prompt": f"Name fruit {n}.", "chosen": f"Apple {n}.", "rejected": f"Stone {n}."}
        for n in range(80)
    ]
    (made / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "bin").mkdir()
    script = made / "bin" / "selm"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m harness.cli "$@"\n')
    script.chmod(0o755)
    return made


@pytest.mark.slow
def test_the_notebook_runs_and_is_kept_without_outputs(folder: Path) -> None:
    assert (folder / "results" / "smoke" / "report" / "index.html").is_file()
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["first_study.md", "own_model.md", "real_judge.md", "cluster.md", "coming_from.md"]
)
def test_what_a_page_tells_people_to_type_works(page: str, folder: Path) -> None:
    shell = {**ENVIRONMENT, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "100"}
    found = list(blocks(page))
    assert found
    subprocess.run(["rm", "-rf", "ablations", "docs"], cwd=folder, check=True)
    for block in found:
        done = subprocess.run(
            ["bash", "-euc", block],
            cwd=folder,
            env=shell,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, block + done.stdout[-2000:] + done.stderr[-2000:]
