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
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import findings, prose, samples, text
from analysis.figure import Drawn
from analysis.figures import FIGURES
from analysis.load import StudyData, load_study
from analysis.opening import opening
from analysis.power_report import power_study
from analysis.report import CSS, JS, NOT_HERE, page, parts_of, policy, write_report
from analysis.screen import Next, command
from analysis.table import Table
from analysis.tables import TABLES
from harness.records import HarnessError, Score, write_scores
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
    data = study(tmp_path)
    said = prose.finding(data)
    assert said.plain == (
        "Against α = 0 after iteration 2, α = 0.3 raised AlpacaEval LC by 9.51 points (better; 95 "
        "% interval 8.17 to 10.85); α = 1 raised AlpacaEval LC by 29.60 points (better; 95 % "
        "interval 28.26 to 30.95)."
    )
    assert said.exact.endswith(
        "α = 1: (A) 28.26 to 30.95, p < 0.001, Holm < 0.001; (B) 27.28 to 31.92, p < 0.001, "
        "Holm < 0.001; n = 3 seeds × 24 instructions."
    )
    told = prose.detectable(data)
    assert told is not None
    assert told.plain == (
        "Could we have told? A true difference of 3.08 points (3.08 to 5.23, as far as 3 seeds "
        "tell their spread) would be found four times in five in one comparison alone."
    )
    assert told.exact == "MDE: (A) 3.08 (3.08 to 5.23); (B) 4.07; n = 3 seeds × 24 instructions."


def test_a_null_says_that_it_is_one_and_what_would_have_been_found(tmp_path: Path) -> None:
    data = study(tmp_path, effect=0.0, seeds=(0, 1, 2, 3))
    assert prose.finding(data).plain == (
        "No difference from α = 0 was detected in AlpacaEval LC after iteration 2 for any of the "
        "2 arms; that is not evidence of no effect. The largest observed difference is that of "
        "α = 1, which is +1.34 points (95 % interval −0.64 to 3.31)."
    )
    told = prose.detectable(data)
    assert told is not None
    assert told.plain.startswith("Could we have told? A true difference of 2.73 points")
    assert told.plain.endswith(
        "a smaller one, in either direction, would most likely have been missed."
    )


def test_where_less_is_better_a_lower_score_is_called_better(tmp_path: Path) -> None:
    regret = {"benchmark": "diagnostics", "metric": "rhat_reference_samples", "iteration": 1}
    folder, store = synthetic.build(
        tmp_path, synthetic.Synthetic(answers=False, faults=False, declare={"primary": regret})
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    for told in manifest["diagnostics"]:
        told["better"] = -1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = opening(load_study(folder, store))
    assert re.search(
        r"α = 1 lowered .* by 0\.\d+ nats \(better; 95 % interval −", found.answer.plain
    )
    assert found.matrix.cells[2][0].value < 0 < found.matrix.cells[2][0].effect  # type: ignore[operator]


def test_the_answer_names_arms_in_the_studys_order(tmp_path: Path) -> None:
    data = study(tmp_path, alphas=(0.0, 0.6, 1.0), faults=False)
    data.manifest["runs"].reverse()
    folder = tmp_path / "turned"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(data.manifest))
    said = [prose.finding(one).plain for one in (data, load_study(folder, tmp_path / "store"))]
    places = [[text.index(f"α = {a} raised") for a in (0.6, 1)] for text in said]
    assert [first < second for first, second in places] == [True, False]


def test_one_arm_alone_is_scored_and_compared_with_nothing(tmp_path: Path) -> None:
    said = prose.finding(study(tmp_path, alphas=(0.0,)))
    assert said.plain == (
        "This study has one arm, α = 0, so it compares nothing. AlpacaEval LC after iteration 2 is "
        "49.95 percent."
    )
    assert said.exact.endswith("n = 3 seeds × 24 instructions.")


def test_of_a_model_as_it_is_nothing_is_said_of_training_or_seeds(tmp_path: Path) -> None:
    data = study(tmp_path, alphas=(0.0,), seeds=(0,), iterations=0)
    data.recipe["evaluation"]["academic"]["limit"] = 10  # type: ignore[index]
    found = opening(data)
    assert found.answer.plain == "α = 0 was scored and nothing trained; the table shows its scores."
    assert all(one.plain.startswith("Declared in advance") for one in found.statements)
    assert found.next == ()
    # t over 24 instructions, 30.35 ± 2.069·sd/√24; the caption says how many of what were scored
    (rating, *_), measures = found.matrix.cells[0], found.matrix.measures
    assert (measures[0], rating.shown, rating.half) == ("AlpacaEval LC", "30.35 ±7.70", None)
    assert found.matrix.caption.startswith(
        "Scores, with the 95 % interval over new items, given these very checkpoints. Items "
        "scored: 24 instructions (AlpacaEval LC, "
    )
    drawn = FIGURES["matrix"](data)
    assert isinstance(drawn, Drawn)
    assert drawn.caption == found.matrix.caption
    limited = "60 items, the first of each by evaluation.academic.limit (mean of academic benchm"
    assert limited in found.matrix.caption


def test_arms_with_names_are_quoted_and_their_own_last_iterations_are_meant(tmp_path: Path) -> None:
    def answer(name: str, **axes: list[Any]) -> str:
        return prose.finding(study(tmp_path / name, axes=axes)).plain

    assert answer("a", arm=["constant", "decay at the last"]).startswith(
        "Against “constant” after iteration 2, “decay at the last” raised AlpacaEval LC by "
    )
    assert answer("b", **{"loop.iterations": [1, 2]}).startswith(
        "Against iterations = 1 after each arm's last iteration (1 to 2), iterations = 2 raised "
        "AlpacaEval LC by "
    )
    crossed = {"objective.alpha": [0, 1], "pairs.rule": ["best_worst", "replace"]}
    assert answer("c", **crossed).startswith(
        "Against “α = 0, rule = best_worst” after iteration 2, “α = 0, rule = replace” raised "
    )


def test_below_three_seeds_nothing_is_claimed_about_seeds(tmp_path: Path) -> None:
    one = prose.finding(study(tmp_path / "one", seeds=(0,)))
    assert one.plain.startswith("With 1 seed nothing can be said about other seeds")
    assert "for these two checkpoints only" in one.exact
    table = TABLES["differences"](study(tmp_path / "table", seeds=(0,)))
    assert isinstance(table, Table)
    assert list(table.rows[0].cells)[2:] == [
        "difference",
        "(items) 95 %",
        "p (items)",
        "seeds × items",
    ]
    assert table.rows[1].cells["(items) 95 %"] in one.exact.replace("only: ", "")
    assert one.exact.endswith("As the largest of 2: p < 0.001.")
    two = study(tmp_path / "two", seeds=(0, 1))
    said = prose.finding(two)
    assert said.plain.startswith("With 2 seeds nothing can be said about other seeds")
    assert "p =" not in said.plain + said.exact
    found = opening(two)
    assert found.next == (Next("3 seeds would give intervals over seeds", ("seeds=3",)),)
    assert {score.half for row in found.matrix.cells for score in row} == {None}


def test_arms_of_few_seeds_hide_no_finding_and_are_named(tmp_path: Path) -> None:
    """Whichever comes first: one seed of the first arm beside, or two of the last."""
    folder, store = synthetic.build(
        tmp_path, synthetic.Synthetic(faults=False, answers=False, seeds=(0, 1, 2, 3))
    )
    manifest = json.loads((folder / "manifest.json").read_text())

    def without(alpha: float, seeds: int) -> StudyData:
        runs = [
            run
            for run in manifest["runs"]
            if run["arm"]["objective.alpha"] != alpha or run["seed"] < seeds
        ]
        (folder / "manifest.json").write_text(json.dumps(manifest | {"runs": runs}))
        return load_study(folder, store)

    first = without(0.3, 1)
    said = prose.finding(first).plain
    assert said.startswith("Against α = 0 after iteration 2, α = 1 raised AlpacaEval LC by ")
    assert said.endswith("Nothing is said of α = 0.3 (1 seed): intervals over seeds need 3.")
    assert "±" not in opening(first).matrix.cells[1][0].shown
    last = without(1.0, 3)
    table = TABLES["differences"](last)
    assert isinstance(table, Table)
    # of four seeds one is not in every arm: the pool's three are told
    assert "AlpacaEval LC, iter 2: seeds left out of the pool, not in every arm: 3" in table.notes
    last = without(1.0, 2)
    assert prose.finding(last).plain.endswith(
        "Nothing is said of α = 1 (2 seeds): intervals over seeds need 3."
    )
    told = prose.detectable(last)
    assert told is not None
    assert told.plain.startswith("Could we have told? A true difference of ")


def test_an_arm_without_rows_counts_in_the_declared_family(tmp_path: Path) -> None:
    folder, store = synthetic.build(tmp_path, synthetic.Synthetic(faults=False, answers=False))
    manifest = json.loads((folder / "manifest.json").read_text())
    for run in manifest["runs"]:
        for entry in run["iterations"]:
            for stage in entry["stages"]:
                if run["arm"]["objective.alpha"] == 0.3 and entry["iteration"] == 2:
                    entry["stages"][stage] = "0" * 64
    manifest["stages"]["0" * 64] = {"stage": "judge.alpaca_eval", "inputs": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    data = load_study(folder, store)
    found = findings.find(data)
    assert len(found.declared) == 2
    assert found.declared[1].holm["A"] == pytest.approx(
        2 * (found.declared[1].estimate.p("A") or 0)
    )
    assert prose.finding(data).plain.endswith(
        "Not included, because INCOMPLETE cells take no part: α = 0.3: 0 of 72 rows scored."
    )


def test_an_unfinished_study_says_so_and_names_what_takes_no_part(tmp_path: Path) -> None:
    data = study(tmp_path, faults=True)
    assert "α = 1: 48 of 72 rows scored" in prose.finding(data).plain
    found = opening(data)
    (warning,) = found.warnings
    assert warning.startswith(
        "This study is unfinished: 177 of 180 stages are done, 1 failed, 1 partial and 1 missing."
    )
    assert found.matrix.cells[2][0].shown == "48 of 72 scored"
    assert found.next == (Next("Continue the run; what failed is tried again", ()),)
    folder, _ = synthetic.build(tmp_path / "bare")
    bare = load_study(folder, tmp_path / "nowhere")
    assert prose.finding(bare).plain.startswith("No finding yet")


def test_a_study_without_baseline_compares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.FIGURES", {})
    folder, store = synthetic.build(tmp_path, synthetic.Synthetic(faults=False, answers=False))
    manifest = json.loads((folder / "manifest.json").read_text())
    for run in manifest["runs"]:
        run["baseline_run"] = ""
    (folder / "manifest.json").write_text(json.dumps(manifest | {"baseline": {}}))
    found = opening(load_study(folder, store))
    assert found.answer.plain.startswith("This study declares no baseline")
    assert all(score.baseline for row in found.matrix.cells for score in row)
    write_report(folder, store)


def test_improvement_and_declared_trend_are_stated(tmp_path: Path) -> None:
    data = study(tmp_path)
    assert prose.improvement(data).plain.startswith(
        "Training improves on the base: from the base to α = 0 after iteration 2, held-out reward "
        "(greedy) goes from"
    )
    trend = prose.trend(data)
    assert trend is not None
    assert trend.plain.endswith("expected to fall with α. It falls.")
    assert trend.exact.startswith("Slope −0.2")
    assert "Page's test" in trend.exact
    rising = data.declare["trend"] | {"expected": "rising"}
    against = prose.trend(study(tmp_path / "b", declare={"trend": rising}))
    assert against is not None
    assert "Observed in the opposite direction" in against.plain


def test_seeds_to_run_next_are_those_of_the_power_table(tmp_path: Path) -> None:
    folder, store = synthetic.build(
        tmp_path, synthetic.Synthetic(answers=False, faults=False, effect=0.0, seeds=(0, 1, 2, 3))
    )
    (step,) = opening(load_study(folder, store)).next
    assert step.says.startswith(
        "22 seeds would detect a difference of 1 point in AlpacaEval LC (decide on their number "
    )
    table = power_study(folder, store, 1.0)
    with pytest.raises(HarnessError, match="--delta is 0"):
        power_study(folder, store, 0.0)
    asked = {(row["comparison"], row["population"]): row["seeds"] for row in table.data}
    assert asked["α = 1 minus α = 0", "A"] == 22
    assert command(step, "a study.yaml", ["seeds=[1,2]", "loop.iterations=2"]) == (
        "selm run 'a study.yaml' --set loop.iterations=2 --set seeds=22"
    )


# -- files -----------------------------------------------------------------------------------------
def test_every_table_and_figure_is_in_both_forms(written: Path) -> None:
    markdown, html = (written / "report.md").read_text(), (written / "index.html").read_text()
    data = load_study(written.parent, written.parents[1] / "store")
    lacking = []
    for kind, exhibits in (("table", TABLES), ("figure", FIGURES)):
        gone = [key for key in exhibits if f'id="{kind}-{key}"' not in html]
        lacking += [exhibits[key](data) for key in gone]
    assert len(lacking) == markdown.count(f"### {NOT_HERE}") + 2 == 4
    for one in lacking:
        assert f"\n- {text.markdown(one.title)}: {text.markdown(one.reason)}.\n" in markdown
        assert f"<li>{one.title}: {one.reason}.</li>" in unescape(html)
    for link in re.findall(r"\]\(([^)#]+)\)", markdown):
        assert (written / link).is_file(), link
    assert "published" in markdown.lower()


def test_what_a_scored_model_has_no_part_in_is_one_folded_list(tmp_path: Path) -> None:
    spec = synthetic.Synthetic(
        alphas=(0.0,), seeds=(0,), iterations=0, answers=False, faults=False, heldout=4, ood=2
    )
    report = write_report(*synthetic.build(tmp_path, spec))
    figures, tables = report.read_text().split("\n## Figures\n")[1].split("\n## Tables\n")
    for part in (figures, tables.split("\n## Settings\n")[0]):
        shown, lacking = part.split(f"\n### {NOT_HERE}\n")
        assert ("### " in shown, "### " in lacking) == (True, False)
        assert all(line.startswith("- ") for line in lacking.split("\n") if line)
    assert "\n- Figure 1. Optimism off the data (exact, finite answer set): it is about " in figures
    page_ = (report.parent / "index.html").read_text()
    assert page_.count(f"<details><summary>{NOT_HERE}</summary>") == 2


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert set(reader.loads) == {"settings.json", "costs/costs.csv", "costs/versions.json"}  # links
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
            for row in rows:
                row["output"] = f"{stage.key} {row['id']} " + "word " * 2000
            path.write_text(json.dumps(rows))
    found = samples.collect(data)
    assert len({place.column for place in found.places}) == 90  # 10 bases and 2 × 10 × 4
    assert len(found.as_json()) < 6_000_000
    assert any("prompts are shown" in notice for notice in found.notices)
    tables = {key: build(data) for key, build in TABLES.items()}
    parts = parts_of(data, opening(data), tables, {})
    assert len(page(data, parts, {}).encode()) < 10_000_000


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
