"""Coverage of the length-controlled win rate's jackknife interval, on public annotations taken as
the population.

The 805 published rows of a model (with their gamed-baseline rows) are the population, its fitted LC
win rate the truth. Each draw takes 805 instructions with replacement, fits, makes the
delete-one-instruction jackknife, and asks whether t over instructions covers the truth. Expected:
92.5–97.5 % at 400 draws. Also printed: the library's standard error against the spread of the
draws. Writes results/bench/lc.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks import write
from harness.evaluate import lc

DRAWS, TARGET = 400, (92.5, 97.5)


def public(folder: Path, model: str) -> tuple[lc.OwnRows, lc.GamedRows]:
    """A model's rows and the gamed rows from files as the benchmark's owners publish them."""
    gamed = pd.read_csv(folder / "df_gamed_reconstructed.csv")
    frame = pd.DataFrame(json.loads((folder / model / "annotations.json").read_text()))
    difficulty = gamed.drop_duplicates("index")["instruction_difficulty"].to_numpy()
    delta = np.asarray(frame["output_1"].str.len() - frame["output_2"].str.len(), np.float64)
    own = lc.OwnRows(frame["preference"].to_numpy(float) - 1, delta, difficulty)
    names = ("index", "preference", "std_delta_len", "instruction_difficulty")
    return own, lc.GamedRows(*(gamed[name].to_numpy() for name in names))


def resample(
    own: lc.OwnRows, gamed: lc.GamedRows, rng: np.random.Generator
) -> tuple[lc.OwnRows, lc.GamedRows]:
    """As many instructions with replacement; each brings its own gamed rows."""
    drawn = rng.integers(len(own.delta), size=len(own.delta))
    order = np.argsort(gamed.item, kind="stable")
    start = np.searchsorted(gamed.item[order], np.arange(len(own.delta) + 1))
    rows = [order[start[item] : start[item + 1]] for item in drawn]
    place = np.repeat(np.arange(len(drawn)), [len(part) for part in rows])
    kept = np.concatenate(rows)
    others = (gamed.preference, gamed.std_delta_len, gamed.difficulty)
    mine = lc.OwnRows(own.preference[drawn], own.delta[drawn], own.difficulty[drawn])
    return mine, lc.GamedRows(place, *(values[kept] for values in others))


def coverage(
    own: lc.OwnRows, gamed: lc.GamedRows, draws: int, rng: np.random.Generator
) -> dict[str, float]:
    """Share of draws that hold the population's LC; mean jackknife error against the spread."""
    truth = lc.length_controlled(own, gamed)
    count = len(own.delta)
    quantile = float(stats.t.ppf(0.975, count - 1))
    points, errors = [], []
    for _ in range(draws):
        rows = resample(own, gamed, rng)
        point = lc.length_controlled(*rows)
        points.append(point)
        errors.append(lc.standard_error(lc.pseudo_values(point, lc.leave_one_out(*rows))))
    covered = np.abs(np.array(points) - truth) <= quantile * np.array(errors)
    return {
        "lc": truth,
        "coverage": 100 * float(covered.mean()),
        "jackknife_se": float(np.mean(errors)),
        "spread": float(np.std(points, ddof=1)),
    }


def main() -> int:
    """Returns 1 when a model's coverage is outside the target, 0 without the public files."""
    folder = Path(os.environ.get("SHARED_DATA", "../shared/data")) / "alpaca_eval"
    if not folder.is_dir():
        print(f"no public annotations at {folder}; set SHARED_DATA")
        return 0
    found = {}
    for path in sorted(folder.glob("*/annotations.json")):
        own, gamed = public(folder, path.parent.name)
        if len(own.delta) == len(np.unique(gamed.item)) and not lc.degenerate(own):
            found[path.parent.name] = coverage(own, gamed, DRAWS, np.random.default_rng(0))
            shown = {key: round(value, 3) for key, value in found[path.parent.name].items()}
            print(path.parent.name, shown, flush=True)
    write("lc", {"draws": DRAWS, "models": found})
    return int(any(not TARGET[0] <= row["coverage"] <= TARGET[1] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
