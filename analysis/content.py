"""What both forms of a report (Markdown and HTML) say besides tables and figures: the summary, the
settings, the versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from analysis import prose
from analysis.load import StudyData
from analysis.table import Table, Unavailable

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
