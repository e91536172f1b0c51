"""The README's new table is one function and one entry, and stands in the report."""

from __future__ import annotations

from pathlib import Path

from tests import synthetic
from tests.tree import Tree, code_of_the_readme


def test_it_is_in_the_report_in_all_its_forms(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    function, entry = code_of_the_readme("table")
    start = "TABLES: dict[str, Callable[[StudyData], Table | Unavailable]] = {\n"
    tree.insert("analysis/tables/__init__.py", start, "", entry)
    study = tree.root / "analysis" / "tables" / "study.py"
    study.write_text(study.read_text(encoding="utf-8") + "\n\n" + function, encoding="utf-8")
    folder, store = synthetic.build(tmp_path / "study", synthetic.Synthetic(answers=False))
    code = (
        "import sys; from pathlib import Path; from analysis.report import write_report; "
        "write_report(*map(Path, sys.argv[1:]))"
    )
    done = tree.python("-c", code, str(folder), str(store))
    assert done.returncode == 0, done.stderr[-2000:]
    report = folder / "report"
    assert "Longest stages" in (report / "index.html").read_text(encoding="utf-8")
    files = {suffix: report / "costs" / f"longest.{suffix}" for suffix in ("md", "tex", "csv")}
    text = {suffix: file.read_text(encoding="utf-8") for suffix, file in files.items()}
    assert len(text["md"].splitlines()) > 10
    assert "tabular" in text["tex"]
    seconds = [float(line.rsplit(",", 1)[1]) for line in text["csv"].splitlines()[1:]]
    assert len(seconds) == 10
    assert seconds == sorted(seconds, reverse=True)
