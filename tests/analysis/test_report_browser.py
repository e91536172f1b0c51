"""The report page in a real browser: it sorts, browses samples, works by keyboard and on a phone,
and asks the network for nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.load import iterate, load_study
from analysis.opening import opening
from analysis.report import page, parts_of, write_report
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


def shown_pairs(page: Any) -> tuple[int, int]:
    """How many pairs of answers the list holds, and how many there are."""
    found = re.match(r"(\d+) of (\d+) pairs", page.locator("#found").inner_text())
    assert found
    return int(found[1]), int(found[2])


def test_the_sample_browser_shows_two_arms_beside_each_other(watched: Watched) -> None:
    page = watched.page
    heads = [page.locator(f"#sample-{side} h4").inner_text() for side in ("left", "right")]
    assert heads == ["α = 0, iter 2, seed 0", "α = 0.3, iter 2, seed 0"]
    page.locator("#pick-left").select_option(label="α = 1, iter 1")
    page.locator("#pick-seed").select_option(label="seed 1")
    assert "by α = 1, seed 1, iteration 1" in page.locator("#sample-left").inner_text()
    assert "by α = 0.3, seed 1, iteration 2" in page.locator("#sample-right").inner_text()
    assert "rating: " in page.locator("#sample-right").inner_text()
    page.locator("#pick-left").select_option(label="α = 0.3, base")  # the base all arms share
    assert "by α = 0, seed 1, iteration 0" in page.locator("#sample-left").inner_text()
    page.locator("#pick-set").select_option(label="AlpacaEval")
    assert shown_pairs(page) == (24, 24)
    assert "preferred to the baseline, percent: " in page.locator("#sample-left").inner_text()
    watched.clean()


def test_the_arm_whose_answers_differ_most_is_shown_at_first(
    browser: Any, report: Path, tmp_path: Path
) -> None:
    """The first arm behind the baseline is given the baseline's answers."""
    head, rest = report.read_text(encoding="utf-8").split('id="sample-data">')
    packed, tail = rest.split("</script>", 1)
    data = json.loads(packed)
    columns = {(arm, after, seed): column for arm, after, seed, column in data["places"]}
    for (arm, after, seed), column in columns.items():
        if arm == "α = 0.3" and ("α = 0", after, seed) in columns:
            for row in data["answers"]:
                row[column] = row[columns["α = 0", after, seed]]
    packed = json.dumps(data).replace("<", "\\u003c")
    alike = tmp_path / "index.html"
    alike.write_text(f'{head}id="sample-data">{packed}</script>{tail}', encoding="utf-8")
    watched = Watched(browser, alike, 1300)
    assert watched.page.locator("#sample-right h4").inner_text() == "α = 1, iter 2, seed 0"
    watched.page.close()


def test_the_words_of_one_answer_alone_are_marked(watched: Watched) -> None:
    page = watched.page
    page.locator("#pick-right").select_option(label="α = 1, iter 1")
    page.locator("#pick-set").select_option(label="MT-Bench")
    for side, own in (("left", ["0", "2"]), ("right", ["1", "1"])):  # of each of the two turns
        box = page.locator(f"#sample-{side}")
        assert box.locator("mark").all_inner_texts() == own * 2
        text = box.locator("pre.answer").first.inner_text()
        assert text.startswith(f"answer to 81:1 by α = {own[0]}, seed 0, iteration {own[1]}")
    watched.clean()


def test_verdicts_that_changed_are_those_on_the_other_side_of_the_baseline(
    watched: Watched,
) -> None:
    page = watched.page
    page.locator("#pick-set").select_option(label="AlpacaEval")
    page.locator("#pick-show").select_option(label="verdict changed")
    some, every = shown_pairs(page)
    assert 0 < some < every == 3 * 24
    for _ in range(some):
        went = page.locator(".row[aria-selected=true] .went").inner_text()
        assert re.fullmatch(r"(won|lost), [\d.]+ → (?!\1)(won|lost), [\d.]+", went), went
        page.locator("#pairs").press("ArrowDown")
    watched.clean()


def test_hostile_answers_are_shown_and_never_run(watched: Watched) -> None:
    page, seen = watched.page, ""
    for _ in range(shown_pairs(page)[1]):
        page.locator("#pairs").press("ArrowDown")
        seen += page.locator("#sample-left").inner_text()
        seen += page.locator("#sample-right").inner_text()
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
        if "pairs" in reached:
            break
    picks = {f"pick-{name}" for name in ("left", "right", "set", "seed", "show")}
    assert {"sort", "find", "pairs"} | picks <= reached
    watched.clean()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with over 10,000 answers in its browser."""
    sizes = {"questions": 80, "instructions": 120, "heldout": 60, "ood": 20}
    spec = synthetic.Synthetic(seeds=tuple(range(5)), task_items=2, faults=False, **sizes)
    folder, store = synthetic.build(tmp_path_factory.mktemp("large"), spec)
    data = load_study(folder, store)
    for path in {data.stage(run, at, "answer").folder for run, at in iterate(data)}:
        draw = np.random.default_rng(int(path.name[:8], 16))
        rows = json.loads((path / "alpaca_eval.json").read_text())
        for row in rows:
            row["output"] += " " + " ".join(map(str, draw.integers(10_000, size=90)))
        (path / "alpaca_eval.json").write_text(json.dumps(rows))
    parts = parts_of(data, opening(data), {}, {})
    (folder / "index.html").write_text(page(data, parts, {}), encoding="utf-8")
    return folder / "index.html"


@pytest.mark.parametrize("width", [1300, 400])
def test_ten_thousand_answers_open_and_are_searched_by_keyboard(
    browser: Any, large: Path, width: int
) -> None:
    began = time.perf_counter()
    watched = Watched(browser, large, width)
    page = watched.page
    page.locator(".row").first.wait_for()
    took = time.perf_counter() - began
    answers = page.evaluate(
        "JSON.parse(document.getElementById('sample-data').textContent).answers.flat()"
        ".reduce((sum, turns) => sum + (turns ? turns.length : 0), 0)"
    )
    print(f"{answers} answers, {large.stat().st_size / 1e6:.1f} MB: first row after {took:.2f} s")
    assert answers > 10_000
    assert took < 5  # on a machine shared with others; under 2 on its own
    every = shown_pairs(page)[1]
    assert page.locator(".row").count() < 30 < every
    page.keyboard.press("/")
    page.keyboard.type("INSTRUCTION 117")
    assert shown_pairs(page) == (5, every)  # one a seed
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    assert "117: instruction 117" in page.locator(".row[aria-selected=true]").inner_text()
    assert page.locator("#sample-right h4").inner_text().endswith("seed 4")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Shift+Tab")  # the filter: its second entry
    page.keyboard.press("v")
    changed, _ = shown_pairs(page)
    assert page.locator("#pick-show").input_value() == "changed"
    assert 0 < changed < every
    assert page.locator(".row:not(.changed)").count() == 0
    page.locator("#pairs").focus()
    page.keyboard.press("End")
    assert page.locator(".row[aria-selected=true]").get_attribute("aria-posinset") == str(changed)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    watched.clean()
    page.close()
