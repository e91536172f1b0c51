"""The report page in a real browser: it sorts, browses samples, works by keyboard and on a phone,
and asks the network for nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.report import write_report
from tests import synthetic

CHROMIUM = next(
    (path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()),
    shutil.which("chromium") or "",
)
ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-dev-shm-usage",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM, reason="no chromium on this machine (apt-get install chromium)"
    ),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, store = synthetic.build(
        tmp_path_factory.mktemp("browser"), synthetic.Synthetic(hostile=True)
    )
    write_report(folder, store)
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Watched:
    """A page that notes every console message, error, dialog and request that is not the file
    itself.
    """

    def __init__(self, browser: Any, report: Path, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())
        self.home = report.as_uri()

    def clean(self) -> None:
        assert self.said == []
        assert [url for url in self.asked if url != self.home and not url.startswith("data:")] == []


@pytest.fixture(params=[1300, 400])
def watched(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    found = Watched(browser, report, request.param)
    yield found
    found.page.close()


def column(page: Any, table: str, at: int) -> list[str]:
    return list(page.locator(f"#{table} tbody tr > :nth-child({at})").all_inner_texts())


def test_a_table_sorts_by_number_and_puts_missing_last(watched: Watched) -> None:
    page = watched.page
    heads = page.locator("#table-table_1 thead th").all_inner_texts()
    at = next(i for i, head in enumerate(heads, 1) if head.startswith("AlpacaEval WR"))
    before = column(page, "table-table_1", at)
    button = page.locator(f"#table-table_1 thead th:nth-child({at}) button")
    button.click()
    up = column(page, "table-table_1", at)
    assert sorted(up) == sorted(before)
    assert up[-1].startswith("INCOMPLETE")
    assert [float(cell.split()[0]) for cell in up[:-1]] == sorted(
        float(cell.split()[0]) for cell in up[:-1]
    )
    assert (
        page.locator(f"#table-table_1 thead th:nth-child({at})").get_attribute("aria-sort")
        == "ascending"
    )
    button.focus()
    page.keyboard.press("Enter")  # by keyboard, the other way round
    down = column(page, "table-table_1", at)
    assert down[:-1] == up[:-1][::-1]
    assert down[-1].startswith("INCOMPLETE")
    watched.clean()


def test_the_sample_browser_shows_another_prompt_and_pair(watched: Watched) -> None:
    page = watched.page
    first = page.locator("#sample-left").inner_text()
    assert "α = 0, seed 0, iteration 0" in first
    page.locator("#pick-left").select_option(label="α = 0.3, seed 1, iter 1")
    assert "by α = 0.3, seed 1, iteration 1" in page.locator("#sample-left").inner_text()
    page.locator("#pick-right").select_option(label="α = 1, seed 0, iter 2")
    prompt = page.locator("#sample-prompt").inner_text()
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert page.locator("#sample-prompt").inner_text() != prompt
    assert "rating:" in page.locator("#sample-right").inner_text()
    page.locator("#pick-prompt").select_option(index=20)
    assert "AlpacaEval" in page.evaluate(
        "document.getElementById('pick-prompt').selectedOptions[0].parentElement.label"
    )
    assert "preferred to the baseline" in page.locator("#sample-left").inner_text()
    watched.clean()


def test_hostile_answers_are_shown_and_never_run(watched: Watched) -> None:
    page, seen = watched.page, ""
    count = page.locator("#pick-prompt option").count()
    for _ in range(count):
        page.locator("#next").click()
        seen += (
            page.locator("#sample-left").inner_text() + page.locator("#sample-right").inner_text()
        )
    for shown in (
        "<script>alert(1)</script>",
        "␛[31mred",
        "‹U+202E›",
        "‹U+D800›",
        "\\input{/etc/passwd}",
        "<img src=https://example.org/x",
    ):
        assert shown in seen, shown
    assert page.locator("img").count() == page.locator("figure img").count()
    assert page.evaluate("document.scripts.length") == 2
    watched.clean()


def test_nothing_is_wider_than_the_screen(watched: Watched) -> None:
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    watched.clean()


def test_the_answer_stands_above_the_fold_and_nothing_of_the_opening_is_cut_off(
    watched: Watched,
) -> None:
    page = watched.page
    answer = page.locator("#finding strong").first.bounding_box()
    assert answer["y"] + answer["height"] < (850 if page.viewport_size["width"] == 400 else 450)
    picture = page.locator("#figure-differences img").bounding_box()
    assert picture["y"] < 900
    shown = page.locator("header p, header blockquote, header img, nav a")
    cut = shown.evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth"
        " || one.getBoundingClientRect().right > innerWidth).map(one => one.outerHTML.slice(0, 80))"
    )
    assert cut == []
    assert page.locator("h2").first.inner_text() == "Figures"  # tables of numbers come behind
    watched.clean()


def test_every_control_is_reached_by_keyboard(watched: Watched) -> None:
    page = watched.page
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.className")
        reached.add(name)
        if "pick-right" in reached:
            break
    assert {"sort", "pick-prompt", "previous", "next", "pick-left", "pick-right"} <= reached
    watched.clean()
