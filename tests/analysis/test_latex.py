"""Every table compiles with pdflatex, hostile labels included."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.load import load_study
from analysis.table import Table, TableRow, as_latex
from analysis.tables import TABLES
from tests import synthetic

PDFLATEX = shutil.which("pdflatex")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PDFLATEX is None,
        reason="no pdflatex on this machine (apt-get install texlive-latex-base "
        "texlive-latex-recommended)",
    ),
]


def test_every_table_compiles(tmp_path: Path) -> None:
    study, store = synthetic.build(
        tmp_path, synthetic.Synthetic(seeds=range(5), answers=False, both_orders=True, ranked=True)
    )
    data = load_study(study, store)
    tables = [table for key in TABLES if isinstance(table := TABLES[key](data), Table)]
    assert len(tables) == len(TABLES)
    evil = [
        TableRow({"a_b": text, "c": text})
        for text in (
            *synthetic.HOSTILE,
            "".join(map(chr, range(32, 127))),
            "αβκπθσρλ±−×·≥≤–—…²Δ→‖’“”†ᴴ r̂ KL(π_θ‖π_0) 中文 é",
        )
    ]
    tables.append(Table("hostile", "Hostile & 100 %", "~ ^ \\ {", evil, [], ["note $"]))
    body = "\n".join(
        as_latex(replace(table, key=f"t{number}")) + "\\clearpage"
        for number, table in enumerate(tables)
    )
    packages = "\\usepackage[T1]{fontenc}\\usepackage{textcomp,booktabs,graphicx}"
    source = tmp_path / "tables.tex"
    source.write_text(
        f"\\documentclass[twocolumn]{{article}}{packages}\\begin{{document}}\n{body}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    command = [
        str(PDFLATEX),
        "-no-shell-escape",
        "-interaction=nonstopmode",
        "-halt-on-error",
        source.name,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull \\hbox" not in log
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000
