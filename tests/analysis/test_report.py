"""The report: the finding in words for every kind of outcome, byte-identical files, hostile outputs
as text, size.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from analysis import prose, samples
from analysis.figures import FIGURES
from analysis.load import StudyData, load_study
from analysis.page import CSS, JS, page, policy
from analysis.report import write_report
from analysis.tables import TABLES
from harness.records import Score, write_scores
from tests import synthetic

ROOT = Path(__file__).parents[2]


def study(tmp_path: Path, **options) -> StudyData:  # type: ignore[no-untyped-def]
    return load_study(
        *synthetic.build(
            tmp_path, synthetic.Synthetic(**{"answers": False, "faults": False, **options})
        )
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, store = synthetic.build(
        tmp_path_factory.mktemp("report"), synthetic.Synthetic(hostile=True)
    )
    write_report(folder, store)
    return folder / "report"


# -- the finding -----------------------------------------------------------------------------------
def test_a_real_effect_is_stated_with_interval_p_holm_mde_and_n(tmp_path: Path) -> None:
    sentences = " ".join(prose.finding(study(tmp_path)))
    assert sentences.startswith(
        "Against α = 0 after iteration 2, α = 1 raised AlpacaEval LC by 29.60 points; α = 0.3 "
        "raised AlpacaEval LC by 9.51 points."
    )
    for part in (
        "(A) this benchmark, new seeds:",
        "(B) new seeds and new instructions:",
        "after Holm over 2",
        "n = 3 seeds × 24 instructions",
        "Could we have told? With 80 % power",
    ):
        assert part in sentences, part


def test_a_null_says_that_it_is_one_and_what_would_have_been_found(tmp_path: Path) -> None:
    sentences = prose.finding(study(tmp_path, effect=0.0, seeds=(0, 1, 2, 3)))
    assert sentences[0] == (
        "No difference from α = 0 was detected in AlpacaEval LC after iteration 2 for any of the "
        "2 arms; that is not evidence of no effect."
    )
    assert sentences[1].startswith("The largest observed difference is that of α = ")
    assert sentences[-1].startswith("Could we have told?")
    assert sentences[-1].endswith(
        "a smaller effect, in either direction, would most likely have been missed."
    )


def test_one_arm_alone_is_scored_and_compared_with_nothing(tmp_path: Path) -> None:
    (sentence,) = prose.finding(study(tmp_path, alphas=(0.0,)))
    assert sentence.startswith(
        "This study has one arm, α = 0, so it compares nothing. AlpacaEval LC after iteration 2 is "
    )
    assert "n = 3 seeds × 24 instructions" in sentence


def test_arms_with_names_are_quoted_and_their_own_last_iterations_are_meant(tmp_path: Path) -> None:
    named = prose.finding(study(tmp_path / "a", axes={"arm": ["constant", "decay at the last"]}))[0]
    assert named.startswith(
        "Against “constant” after iteration 2, “decay at the last” raised AlpacaEval LC by "
    )
    lengths = prose.finding(study(tmp_path / "b", axes={"loop.iterations": [1, 2]}))[0]
    assert lengths.startswith(
        "Against iterations = 1 after each arm's last iteration (1 to 2), iterations = 2 raised "
        "AlpacaEval LC by "
    )
    crossed = prose.finding(
        study(
            tmp_path / "c",
            axes={"objective.alpha": [0, 1], "pairs.rule": ["best_worst", "replace"]},
        )
    )[0]
    assert crossed.startswith(
        "Against “α = 0, rule = best_worst” after iteration 2, “α = 1, rule = replace” raised "
    )


def test_below_three_seeds_nothing_is_claimed_about_seeds(tmp_path: Path) -> None:
    one = " ".join(prose.finding(study(tmp_path / "one", seeds=(0,))))
    assert one.startswith("With 1 seed nothing can be said about other seeds")
    assert "for these two checkpoints only" in one
    two = " ".join(prose.finding(study(tmp_path / "two", seeds=(0, 1))))
    assert two.startswith("With 2 seeds nothing can be said about other seeds")
    assert "p =" not in two


def test_an_unfinished_study_says_so_and_names_what_takes_no_part(tmp_path: Path) -> None:
    data = study(tmp_path, faults=True)
    assert "Not included: α = 1 (48 of 72 rows scored)" in " ".join(prose.finding(data))
    assert prose.missing(data).startswith(
        "This study is unfinished: 177 of 180 stages are done, 1 failed, 1 partial and 1 missing."
    )
    folder, _ = synthetic.build(tmp_path / "bare")
    assert prose.finding(load_study(folder, tmp_path / "nowhere"))[0].startswith("No finding yet")


def test_a_study_without_baseline_compares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.FIGURES", {})
    folder, store = synthetic.build(tmp_path, synthetic.Synthetic(faults=False, answers=False))
    manifest = json.loads((folder / "manifest.json").read_text())
    for run in manifest["runs"]:
        run["baseline_run"] = ""
    (folder / "manifest.json").write_text(json.dumps(manifest | {"baseline": {}}))
    data = load_study(folder, store)
    assert prose.finding(data)[0].startswith("This study declares no baseline")
    assert (
        "Not available"
        not in (
            write_report(folder, store).read_text().split("## Figures")[0].split("### Table 1")[1]
        )
    )


def test_improvement_and_declared_trend_are_stated(tmp_path: Path) -> None:
    data = study(tmp_path)
    assert prose.improvement(data).startswith(
        "Training improves on the base: from the base to α = 0 after iteration 2, held-out reward "
        "(greedy) goes from"
    )
    trend = prose.trend(data)
    assert "expected to fall with α. It falls: slope −0.2" in trend
    assert "Page's test" in trend
    against = study(
        tmp_path / "b",
        declare={
            "trend": {
                "benchmark": "diagnostics",
                "metric": "rhat_reference_samples",
                "iteration": 1,
                "axis": "objective.alpha",
                "expected": "rising",
            }
        },
    )
    assert "Observed in the opposite direction" in prose.trend(against)


# -- files -----------------------------------------------------------------------------------------
def test_every_table_and_figure_is_in_both_forms(written: Path) -> None:
    markdown, html = (written / "report.md").read_text(), (written / "index.html").read_text()
    for key in TABLES:
        assert f'id="table-{key}"' in html
    for key in FIGURES:
        assert f'id="figure-{key}"' in html
    for link in re.findall(r"\]\(([^)#]+)\)", markdown):
        assert (written / link).is_file(), link
    assert "published" in markdown.lower()


def test_the_report_is_byte_identical_but_for_costs(written: Path, tmp_path: Path) -> None:
    folder, store = synthetic.build(tmp_path, synthetic.Synthetic(hostile=True))
    for record in store.glob("objects/*/*/record.json"):  # another run: other times and hosts
        content = json.loads(record.read_text())
        content["costs"]["seconds"] = 99.0
        content["environment"]["host"] = "elsewhere"
        record.write_text(json.dumps(content))
    write_report(folder, store)
    first, second = (_digests(place) for place in (written, folder / "report"))
    assert set(first) == set(second)
    differing = {name for name in first if first[name] != second[name]}
    assert differing <= {
        "index.html",
        "costs/costs.csv",
        "costs/costs.md",
        "costs/costs.tex",
        "costs/versions.json",
    }
    assert "costs/costs.csv" in differing


def _digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_kept_checkpoints_get_their_cards_with_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.FIGURES", {})
    spec = synthetic.Synthetic(
        alphas=(0.0, 1.0), seeds=(0,), iterations=1, answers=False, faults=False, weights=True
    )
    folder, store = synthetic.build(tmp_path, spec)
    assert (
        "Checkpoints whose weights are kept: 3, each with a model card"
        in write_report(folder, store).read_text()
    )
    assert len(list((folder / "models").glob("*/iteration-*/README.md"))) == 3


def test_a_varied_setting_is_shown_with_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.FIGURES", {})
    report = write_report(
        *synthetic.build(tmp_path, synthetic.Synthetic(answers=False, faults=False))
    ).read_text()
    assert "| objective.alpha | varied: 0.0, 0.3, 1.0 |" in report
    assert "models/README.md" not in report


@pytest.mark.slow
def test_a_search_is_linked_where_there_was_one(tmp_path: Path) -> None:
    folder, store = synthetic.build(tmp_path, synthetic.Synthetic(answers=False, faults=False))
    assert "search.md" not in write_report(folder, store).read_text()
    (folder / "search").mkdir()
    (folder / "search" / "search.md").write_text("# Search\n")
    assert "](../search/search.md)" in write_report(folder, store).read_text()
    assert 'href="../search/search.md"' in (folder / "report" / "index.html").read_text()


def test_an_old_exhibit_does_not_outlive_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.FIGURES", {"trend": FIGURES["trend"]})
    folder, store = synthetic.build(tmp_path, synthetic.Synthetic(faults=False, answers=False))
    write_report(folder, store)
    assert (folder / "report" / "figures" / "trend.pdf").is_file()
    for path in store.glob("objects/*/*/scores.parquet"):
        if "diagnostics" in json.loads((path.parent / "record.json").read_text())["stage"]:
            shutil.rmtree(path.parent)
    write_report(folder, store)
    assert not (folder / "report" / "figures" / "trend.pdf").exists()
    assert not (folder / "report" / "tables" / "diagnostics.csv").exists()


# -- hostile outputs -------------------------------------------------------------------------------
class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.handlers: list[str] = []
        self.loads: list[str] = []
        self.content: list[str] = []
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.handlers += [name for name in named if name.startswith("on") or name == "style"]
        self.loads += [
            value or ""
            for name, value in attrs
            if name in ("src", "href") and not (value or "").startswith(("data:", "#"))
        ]
        self._in = tag
        if tag == "script":
            self.scripts.append(named)

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.content.append(data)


def test_hostile_outputs_are_text_and_the_page_loads_nothing(written: Path) -> None:
    html = (written / "index.html").read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(html)
    assert reader.handlers == []
    assert reader.loads == []
    assert [script.get("type") for script in reader.scripts] == ["application/json", None]
    stored = json.loads(reader.content[0])
    texts = json.dumps(stored, ensure_ascii=False)
    for shown in (
        "<script>alert(1)</script>",
        "␛[31mred",
        "‹U+202E›evil",
        "‹U+D800›",
        r"\\input{/etc/passwd}",
    ):
        assert shown in texts, shown
    assert not any(c in html for c in "\x1b\x07\u202e\u200f")
    assert not re.search(
        r"https?://(?!arxiv)", html.split("<script type")[0].replace("http-equiv", "")
    )


def test_the_policy_allows_only_this_style_and_script(written: Path) -> None:
    import base64

    html = (written / "index.html").read_text(encoding="utf-8")
    assert f'http-equiv="Content-Security-Policy" content="{policy()}"' in html
    assert policy().startswith("default-src 'none'")
    assert "unsafe" not in policy()
    for inline in (CSS, JS):
        assert base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() in policy()
        assert inline in html


def test_long_answers_are_cut_and_said(tmp_path: Path) -> None:
    folder, store = synthetic.build(
        tmp_path,
        synthetic.Synthetic(alphas=(0.0, 1.0), seeds=(0,), iterations=1, long_answer=1_000_000),
    )
    found = samples.collect(load_study(folder, store))
    assert len(found.as_json()) < 5_500_000
    assert any("are cut" in notice for notice in found.notices)
    assert any(
        a.text.endswith("characters in all]")
        for row in found.answers
        for turns in row
        if turns
        for a in turns
    )


@pytest.mark.slow
def test_a_hundred_checkpoints_stay_under_ten_megabytes(tmp_path: Path) -> None:
    spec = synthetic.Synthetic(
        alphas=(0.0, 1.0),
        seeds=tuple(range(10)),
        iterations=4,
        task_items=2,
        heldout=4,
        ood=2,
        faults=False,
        long_answer=0,
    )
    folder, store = synthetic.build(tmp_path, spec)
    data = load_study(folder, store)
    for run in data.runs:
        for iteration in run.iterations:
            stage = data.stage(run, iteration, "answer")
            assert stage is not None
            path = stage.folder / "alpaca_eval.json"
            rows = json.loads(path.read_text())
            path.write_text(json.dumps([row | {"output": "word " * 2000} for row in rows]))
    found = samples.collect(data)
    assert len(found.checkpoints) == 90  # 10 bases and 2 × 10 × 4
    assert len(found.as_json()) < 6_000_000
    assert any("prompts are shown" in notice for notice in found.notices)
    assert len(page(data, {key: TABLES[key](data) for key in TABLES}, {}, {}).encode()) < 10_000_000


@pytest.mark.slow
def test_a_million_rows_are_reported_in_thirty_seconds_and_two_gigabytes(tmp_path: Path) -> None:
    folder, store = synthetic.build(
        tmp_path, synthetic.Synthetic(alphas=(0.0, 0.1, 0.3, 1.0, 3.0), iterations=3, faults=False)
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    keys = sorted(
        {entry["stages"]["academic"] for run in manifest["runs"] for entry in run["iterations"]}
    )
    items = 1_000_000 // (60 * 3) + 1
    for number, key in enumerate(keys):
        right = np.random.default_rng(number).random(items) < 0.5
        rows = [
            Score(t, "1", f"{t}-{i}", f"{t}-{i}", "score", 100.0 * bool(right[i]))
            for t in ("gsm8k", "hellaswag", "arc_challenge")
            for i in range(items)
        ]
        write_scores(store / "objects" / key[:2] / key / "scores.parquet", rows)
    code = (
        "import resource, sys, time; from pathlib import Path; from analysis.report import "
        "write_report; "
        "write_report(Path(sys.argv[1]), Path(sys.argv[2])); print(time.process_time(), "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(store)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 30
    assert kilobytes < 2_000_000
